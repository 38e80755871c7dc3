/// Parameters in OpenAI's vocabulary, said in Ollama's: what concerns sampling goes into `options`,
/// where Ollama's own model options may be given too (`num_ctx`, `repeat_penalty`, …).
enum OllamaParameters {
  static func writeChat(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) throws(Failure) {
    let choice = params.take("tool_choice")
    let tools = params.take("tools")
    if choice?.string != "none", let tools {
      writer.key("tools")
      writer.splice(tools)
    }
    // Ollama's models always choose for themselves.
    if let choice, choice.string != "none", choice.string != "auto" { params.drop("tool_choice") }
    try writeGeneration(&params, to: &writer)
  }

  static func writeCompletion(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) throws(Failure) {
    if let suffix = params.take("suffix") {
      writer.key("suffix")
      writer.splice(suffix)
    }
    try writeGeneration(&params, to: &writer)
  }

  static func writeEmbedding(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) throws(Failure) {
    if let dimensions = params.take("dimensions") {
      writer.key("dimensions")
      writer.splice(dimensions)
    }
    writeOptions(&params, to: &writer)
    writeRest(&params, to: &writer)
  }

  private static func writeGeneration(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) throws(Failure) {
    try params.refuseSeveralAnswers()
    writeFormat(&params, to: &writer)
    writeThinking(&params, to: &writer)
    for name in ["logprobs", "top_logprobs"] {
      guard let value = params.take(name) else { continue }
      writer.key(name)
      writer.splice(value)
    }
    writeOptions(&params, to: &writer)
    writeRest(&params, to: &writer)
  }

  /// `format`: the schema itself, or `json` for any JSON.
  private static func writeFormat(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) {
    let format = params.take("response_format")
    if let own = params.take("format") {
      writer.key("format")
      writer.splice(own)
      return
    }
    if format?["type"]?.string == "json_object" {
      writer.member("format", "json")
    } else if let schema = format?["json_schema"]?["schema"] {
      writer.key("format")
      writer.splice(schema)
    } else {
      params.drop("response_format")
    }
  }

  /// `think` is on, off, or one of three efforts.
  private static func writeThinking(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) {
    let effort = params.take("reasoning_effort")?.string
    if let own = params.take("think") {
      writer.key("think")
      writer.splice(own)
      return
    }
    switch effort {
    case nil: break
    case "none": writer.member("think", false)
    case "minimal", "low": writer.member("think", "low")
    case "medium": writer.member("think", "medium")
    default: writer.member("think", "high")
    }
  }

  /// Names that OpenAI and Ollama share, and Ollama's own (`Options` of its SDK; `min_p` beside them).
  private static let sampling = [
    "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "top_k", "min_p",
    "typical_p", "tfs_z", "repeat_penalty", "repeat_last_n", "mirostat", "mirostat_tau",
    "mirostat_eta", "penalize_newline", "num_keep", "num_predict", "num_ctx", "num_batch",
    "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "use_mmap", "use_mlock",
  ]

  /// The request's own go over those of its `options`, and these over those of the provider's row.
  private static func writeOptions(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) {
    var options =
      (params.options["options"]?.members ?? []) + (params.take("options")?.members ?? [])
    for name in sampling {
      if let value = params.take(name) { options.append((name, value)) }
    }
    let limit = params.takeOutputLimit()
    let stops = params.takeStops()
    let said = Set((limit == nil ? [] : ["num_predict"]) + (stops == nil ? [] : ["stop"]))
    guard !options.isEmpty || !said.isEmpty else { return }
    writer.key("options")
    writer.beginObject()
    for (number, option) in options.enumerated() where !said.contains(option.key) {
      // Of one that is given twice the last counts.
      if options[(number + 1)...].contains(where: { $0.key == option.key }) { continue }
      writer.key(option.key)
      writer.splice(option.value)
    }
    if let limit {
      writer.key("num_predict")
      writer.splice(limit)
    }
    if let stops {
      writer.key("stop")
      writer.beginArray()
      for stop in stops { writer.splice(stop) }
      writer.endArray()
    }
    writer.endObject()
  }

  private static func writeRest(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) {
    if let keepAlive = params.take("keep_alive") ?? params.options["keep_alive"] {
      writer.key("keep_alive")
      writer.splice(keepAlive)
    }
    for (name, value) in params.takeRest() {
      writer.key(name)
      writer.splice(value)
    }
  }
}
