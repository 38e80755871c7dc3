/// Parameters in OpenAI's vocabulary, said in Gemini's: most are members of `generationConfig`. Those
/// without a counterpart are left out and named as dropped. What OpenAI does not have (`top_k`,
/// `image_config`, `mediaResolution`, …) becomes a member of `generationConfig` in Gemini's spelling.
struct GeminiParameters {
  private let parts: RequestParts

  /// `parts` are without what cannot be said.
  init(_ parts: RequestParts) {
    self.parts = parts
  }

  /// OpenAI's parameters that are translated below.
  private static let translated: Set<String> = [
    "audio", "frequency_penalty", "logprobs", "max_completion_tokens", "max_tokens", "modalities",
    "n", "presence_penalty", "reasoning_effort", "response_format", "seed", "service_tier", "stop",
    "store", "temperature", "tool_choice", "tools", "top_logprobs", "top_p",
  ]

  /// Gemini's own that are written below, not as they are.
  private static let own: Set<String> = [
    "stream_options", "tool_config", "toolConfig", "top_k", "stop_sequences", "thinking_config",
    "thinkingConfig", "voice", "generation_config", "generationConfig", "safety_settings",
    "safetySettings", "cached_content", "cachedContent", "labels",
  ]

  private static let known = ParameterVocabulary.chat.union(ParameterVocabulary.completion)
    .union(ParameterVocabulary.workersOwn).union(own)

  private static let tiers = [
    "auto": "", "default": "standard", "standard": "standard", "flex": "flex",
    "priority": "priority", "fast": "priority",
  ]

  /// Leaves out what the API has no word for. Throws for what would change what is asked: more than
  /// one answer.
  static func leaveOutUnsayable(of parts: inout RequestParts) throws(Failure) {
    try parts.refuseSeveralAnswers()
    let vocabulary = ParameterVocabulary.chat.union(ParameterVocabulary.completion)
    parts.leaveOut(vocabulary.subtracting(translated))
    if let type = parts.param("response_format")?["type"]?.string,
      !["text", "json_object", "json_schema"].contains(type)
    {
      parts.leaveOut("response_format")
    }
    if let effort = parts.param("reasoning_effort")?.string, level(effort) == nil,
      effort != "none", parts.options["thinking_budgets"]?.member(named: effort) == nil
    {
      parts.leaveOut("reasoning_effort")
    }
    if let tier = parts.param("service_tier"), tiers[tier.string ?? ""] == nil {
      parts.leaveOut("service_tier")
    }
  }

  /// Writes members into the open object.
  func write(to writer: inout JSONWriter) throws(Failure) {
    var config = Members()
    try writeConfig(to: &config)
    if !config.names.isEmpty {
      writer.key("generationConfig")
      writer.splice(config.closed())
    }
    for name in ["safetySettings", "cachedContent", "labels", "store"] {
      guard let value = parts.param(name) ?? parts.param(Self.snakeCase(name)) else { continue }
      writer.key(name)
      writer.splice(value)
    }
    if let tier = parts.param("service_tier")?.string, let word = Self.tiers[tier], !word.isEmpty {
      writer.member("serviceTier", word)
    }
  }

  /// What the app gave in Gemini's own words comes last and fills only what is not said yet.
  private func writeConfig(to config: inout Members) throws(Failure) {
    for (name, parameter) in [
      ("temperature", "temperature"), ("topP", "top_p"), ("topK", "top_k"), ("seed", "seed"),
      ("presencePenalty", "presence_penalty"), ("frequencyPenalty", "frequency_penalty"),
      ("maxOutputTokens", "max_completion_tokens"), ("maxOutputTokens", "max_tokens"),
    ] {
      config.write(name, parts.param(parameter))
    }
    if let stop = parts.param("stop") ?? parts.param("stop_sequences") {
      config.write("stopSequences") { writer in
        if stop.kind == .string { writer.beginArray() }
        writer.splice(stop)
        if stop.kind == .string { writer.endArray() }
      }
    }
    if parts.param("logprobs")?.bool == true {
      config.write("responseLogprobs") { $0.bool(true) }
      config.write("logprobs", parts.param("top_logprobs"))
    }
    try writeFormat(to: &config)
    writeThinking(to: &config)
    writeModalities(to: &config)
    let given = parts.param("generation_config") ?? parts.param("generationConfig")
    let own = parts.params.filter { !Self.known.contains($0.key) } + (given?.members ?? [])
    for (name, value) in own {
      let name = Self.camelCase(name)
      if name == "candidateCount" { try RequestParts.refuseSeveralAnswers(name, value) }
      config.write(name, value)
    }
  }

  private func writeFormat(to config: inout Members) throws(Failure) {
    guard let format = parts.param("response_format") else { return }
    let type = format["type"]?.string
    guard type == "json_object" || type == "json_schema" else { return }
    config.write("responseMimeType") { $0.string("application/json") }
    guard type == "json_schema" else { return }
    guard let schema = format["json_schema"]?["schema"] else {
      throw Failure(.unsendable, message: "response_format.json_schema has no schema")
    }
    config.write("responseJsonSchema", schema)
  }

  /// An effort adds what the app has not said in Gemini's own words.
  private func writeThinking(to config: inout Members) {
    let given = parts.param("thinking_config") ?? parts.param("thinkingConfig")
    let effort = parts.param("reasoning_effort")?.string
    guard given != nil || effort != nil else { return }
    var thinking = Members()
    for (name, value) in given?.members ?? [] { thinking.write(Self.camelCase(name), value) }
    if let effort, thinking.names.isDisjoint(with: ["thinkingBudget", "thinkingLevel"]) {
      if let budget = parts.options["thinking_budgets"]?.member(named: effort) {
        thinking.write("thinkingBudget", budget)
      } else if effort == "none" {
        thinking.write("thinkingBudget") { $0.int(0) }
      } else if let level = Self.level(effort) {
        thinking.write("thinkingLevel") { $0.string(level) }
      }
    }
    config.write("thinkingConfig") { $0.splice(thinking.closed()) }
  }

  /// An image or speech is asked for by its modality.
  private func writeModalities(to config: inout Members) {
    var modalities =
      parts.param("modalities")?.elements.compactMap { $0.string?.uppercased() } ?? []
    if modalities.isEmpty {
      switch parts.call.kind {
      case .image: modalities = ["TEXT", "IMAGE"]
      case .speech: modalities = ["AUDIO"]
      default: break
      }
    }
    if !modalities.isEmpty {
      config.write("responseModalities") { writer in
        writer.beginArray()
        for modality in modalities { writer.string(modality) }
        writer.endArray()
      }
    }
    if let voice = (parts.param("voice") ?? parts.param("audio")?["voice"])?.string {
      config.write("speechConfig") { writer in
        for name in ["voiceConfig", "prebuiltVoiceConfig"] {
          writer.beginObject()
          writer.key(name)
        }
        writer.beginObject()
        writer.member("voiceName", voice)
        for _ in 0..<3 { writer.endObject() }
      }
    }
  }

  /// The name of an effort in Gemini's vocabulary; nil: it has none.
  private static func level(_ effort: String) -> String? {
    ["minimal", "low", "medium", "high", "xhigh"].contains(effort) ? effort.uppercased() : nil
  }

  /// `image_config` → `imageConfig`.
  private static func camelCase(_ name: String) -> String {
    var out = ""
    var upper = false
    for character in name {
      if character == "_", !out.isEmpty {
        upper = true
      } else {
        out += upper ? character.uppercased() : String(character)
        upper = false
      }
    }
    return out
  }

  /// `safetySettings` → `safety_settings`.
  private static func snakeCase(_ name: String) -> String {
    name.reduce(into: "") { $0 += $1.isUppercase ? "_" + $1.lowercased() : String($1) }
  }
}

/// The members of an object, each name once: the first one counts.
private struct Members {
  private var writer = JSONWriter()
  private(set) var names: Set<String> = []

  init() { writer.beginObject() }

  mutating func write(_ name: String, _ value: JSON?) {
    guard let value else { return }
    write(name) { $0.splice(value) }
  }

  mutating func write(_ name: String, _ value: (inout JSONWriter) -> Void) {
    guard names.insert(name).inserted else { return }
    writer.key(name)
    value(&writer)
  }

  func closed() -> [UInt8] {
    var writer = writer
    writer.endObject()
    return writer.bytes
  }
}
