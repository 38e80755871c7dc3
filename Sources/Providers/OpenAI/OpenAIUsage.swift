extension Usage {
  /// OpenAI's `usage`: cached and cache-write tokens are inside of `prompt_tokens`, reasoning tokens
  /// inside of `completion_tokens`, or beside them where the total says so (xAI). DeepSeek reports its
  /// cache in `prompt_cache_hit_tokens`. nil where totals are missing, since a wrong bill is worse than
  /// an estimate.
  ///
  /// Parts that may have another price go into `units`: `audio_input`, `image_input`, `audio_cache_read`,
  /// `image_cache_read`, `audio_output`, `image_output`; and what is billed beside tokens: `searches` and
  /// `citations` (Perplexity), `input_seconds` (Mistral), `credits` (OpenRouter's `cost`).
  init?(openAI json: JSON) {
    self.init()
    let total = json["total_tokens"]?.int
    let prompt = json["prompt_tokens"]?.int
    let completion = json["completion_tokens"]?.int
    let thought = max(json["completion_tokens_details"]?["reasoning_tokens"]?.int ?? 0, 0)
    let counted: (input: Int, output: Int)
    if let prompt, let completion {
      let isBeside = total == prompt + completion + thought
      counted = (prompt, isBeside ? completion + thought : completion)
    } else if let total, let part = prompt ?? completion, total >= part {
      counted = prompt == nil ? (total - part, part) : (part, total - part)
    } else {
      return nil
    }
    guard Usage.isCount(counted.input), Usage.isCount(counted.output) else { return nil }
    (input, output) = counted
    let details = json["prompt_tokens_details"]
    let hits = details?["cached_tokens"]?.int ?? json["prompt_cache_hit_tokens"]?.int ?? 0
    cacheRead = min(max(hits, 0), input)
    cacheWrite = min(max(details?["cache_write_tokens"]?.int ?? 0, 0), input - cacheRead)
    reasoning = min(thought, counted.output)
    add("audio_input", details?["audio_tokens"])
    add("image_input", details?["image_tokens"])
    let cached = details?["cached_tokens_details"]
    add("audio_cache_read", cached?["audio_tokens"])
    add("image_cache_read", cached?["image_tokens"])
    add("audio_output", json["completion_tokens_details"]?["audio_tokens"])
    add("image_output", json["completion_tokens_details"]?["image_tokens"])
    add("searches", json["num_search_queries"])
    add("citations", json["citation_tokens"])
    add("input_seconds", json["prompt_audio_seconds"])
    add("credits", json["cost"])
  }

  /// Takes an amount that a provider reports, where it is a number above 0.
  mutating func add(_ unit: String, _ amount: JSON?) {
    guard let amount, amount.kind == .number, let value = amount.double, value > 0, value <= 1e15,
      amount.raw.count <= 40
    else { return }
    units[unit] = String(decoding: amount.raw, as: UTF8.self)
  }
}

extension Usage {
  /// Whether a number can be a count of tokens. The books keep 32 bits; more is a broken provider, and
  /// would fail the settling of everything that is settled with it.
  static func isCount(_ value: Int) -> Bool { 0 <= value && value <= Int(Int32.max) }
}
