/// Parameters of a completion in OpenAI's vocabulary, said in that of Text Generation Inference
/// (`TextGenerationInputGenerateParameters` of `huggingface_hub`).
enum TextGenerationParameters {
  /// `{"inputs", "parameters"}`, and `stream` where `flag` says so.
  static func body(
    _ params: inout ParameterTranslation, flag stream: Bool? = nil
  ) throws(Failure) -> [UInt8] {
    try params.refuseSeveralAnswers()
    var writer = JSONWriter(reserving: params.parts.call.request.count + 128)
    writer.beginObject()
    writer.member("inputs", try params.parts.text())
    writer.key("parameters")
    writer.beginObject()
    // Without it there is no finish reason, and no count of tokens.
    writer.member("details", true)
    _ = params.take("details")
    // A model served by another backend repeats the prompt unless it is told not to.
    let full = params.take("return_full_text")
    writer.member("return_full_text", full?.bool ?? params.take("echo")?.bool ?? false)
    if let limit = params.takeOutputLimit() ?? params.take("max_new_tokens") {
      writer.key("max_new_tokens")
      writer.splice(limit)
    }
    if let stops = params.takeStops() {
      writer.key("stop")
      writer.beginArray()
      for stop in stops { writer.splice(stop) }
      writer.endArray()
    }
    writeSampling(&params, to: &writer)
    writeGrammar(&params, to: &writer)
    for (name, value) in params.takeRest() {
      writer.key(name)
      writer.splice(value)
    }
    writer.endObject()
    if let stream { writer.member("stream", stream) }
    writer.endObject()
    return writer.bytes
  }

  /// A temperature of 0 and a `top_p` of 1 are refused by the server, and mean what it does without.
  private static func writeSampling(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) {
    if let temperature = params.take("temperature"), temperature.double != 0 {
      writer.key("temperature")
      writer.splice(temperature)
    }
    if let share = params.take("top_p"), share.double.map({ $0 < 1 }) ?? true {
      writer.key("top_p")
      writer.splice(share)
    }
    for name in ["seed", "frequency_penalty"] {
      guard let value = params.take(name) else { continue }
      writer.key(name)
      writer.splice(value)
    }
  }

  private static func writeGrammar(
    _ params: inout ParameterTranslation, to writer: inout JSONWriter
  ) {
    let format = params.take("response_format")
    if let own = params.take("grammar") {
      writer.key("grammar")
      writer.splice(own)
      return
    }
    guard let schema = GrammarFormat.schema(of: format) else {
      return params.drop("response_format")
    }
    writer.key("grammar")
    writer.beginObject()
    writer.member("type", "json")
    writer.key("value")
    writer.splice(schema)
    writer.endObject()
  }
}
