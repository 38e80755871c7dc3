/// Counts by the paths under `usage` and `units`. They are taken for totals that include their parts; what
/// `usage.beside` names is counted beside them.
struct CustomUsage: Sendable {
  private var counts: [String: Int] = [:]
  private var beside: Set<String> = []
  private var units: [String: String] = [:]

  private static let names = [
    "input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning",
  ]

  mutating func read(_ json: JSON, _ spec: CustomSpec?, streamed: Bool) {
    let usage = (streamed ? spec?.stream?["usage"] : nil) ?? spec?.member("usage")
    beside = Set((usage?["beside"]?.elements ?? []).compactMap(\.string))
    for name in Self.names {
      guard let value = json.value(at: usage?.member(named: name))?.int, Usage.isCount(value) else {
        continue
      }
      counts[name] = value
    }
    for (name, path) in ((streamed ? spec?.stream?["units"] : nil) ?? spec?.member("units"))?
      .members ?? []
    {
      guard let value = json.value(at: path), let amount = value.double, amount >= 0 else {
        continue
      }
      units[name] = value.word
    }
  }

  /// nil where neither tokens nor units were counted.
  func total() -> Usage? {
    guard counts["input"] != nil || counts["output"] != nil || !units.isEmpty else { return nil }
    var usage = Usage()
    usage.units = units
    usage.countsTokens = counts["input"] != nil || counts["output"] != nil
    guard usage.countsTokens else { return usage }
    usage.input = counts["input"] ?? 0
    for name in ["cache_read", "cache_write", "cache_write_1h"] where beside.contains(name) {
      usage.input += counts[name] ?? 0
    }
    usage.cacheRead = min(counts["cache_read"] ?? 0, usage.input)
    usage.cacheWrite = min(counts["cache_write"] ?? 0, usage.input - usage.cacheRead)
    usage.cacheWrite1h = min(
      counts["cache_write_1h"] ?? 0, usage.input - usage.cacheRead - usage.cacheWrite)
    usage.output = counts["output"]
    if let output = usage.output {
      let thought = counts["reasoning"] ?? 0
      usage.output = beside.contains("reasoning") ? output + thought : output
      usage.reasoning = min(thought, usage.output ?? 0)
    }
    return Usage.isCount(usage.input) && Usage.isCount(usage.output ?? 0) ? usage : nil
  }
}
