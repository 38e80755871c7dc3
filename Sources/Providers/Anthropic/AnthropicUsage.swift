/// Anthropic's `usage`, as it gathers over a stream: values are cumulative, so a later one replaces an
/// earlier one, and null keeps it. Uncached, cache-read and cache-write tokens are disjoint.
struct AnthropicUsage: Sendable {
  private var uncached: Int?
  private var cacheRead: Int?
  private var cacheWrite: Int?
  private var fiveMinutes: Int?
  private var oneHour: Int?
  private var output: Int?
  private var thinking: Int?
  private var searches: Int?
  /// `speed: fast`, which has prices of its own.
  private(set) var isFast = false

  mutating func read(_ json: JSON) {
    update(&uncached, json["input_tokens"])
    update(&cacheRead, json["cache_read_input_tokens"])
    update(&cacheWrite, json["cache_creation_input_tokens"])
    update(&fiveMinutes, json["cache_creation"]?["ephemeral_5m_input_tokens"])
    update(&oneHour, json["cache_creation"]?["ephemeral_1h_input_tokens"])
    update(&output, json["output_tokens"])
    update(&thinking, json["output_tokens_details"]?["thinking_tokens"])
    update(&searches, json["server_tool_use"]?["web_search_requests"])
    if let speed = json["speed"]?.string { isFast = speed == "fast" }
  }

  private func update(_ value: inout Int?, _ json: JSON?) {
    guard let new = json?.int, Usage.isCount(new) else { return }
    value = new
  }

  /// Totals that include their parts; nil while the input is unknown. `outputIsCounted`: the output
  /// is not only what the first event of a stream guessed.
  func total(outputIsCounted: Bool) -> Usage? {
    guard let uncached else { return nil }
    var usage = Usage()
    let written = cacheWrite ?? ((fiveMinutes ?? 0) + (oneHour ?? 0))
    usage.cacheWrite1h = min(oneHour ?? 0, written)
    usage.cacheWrite = written - usage.cacheWrite1h
    usage.cacheRead = cacheRead ?? 0
    usage.input = uncached + usage.cacheRead + written
    usage.output = outputIsCounted ? output : nil
    usage.reasoning = min(thinking ?? 0, usage.output ?? 0)
    if let searches, searches > 0 { usage.units["searches"] = String(searches) }
    return Usage.isCount(usage.input) ? usage : nil
  }
}
