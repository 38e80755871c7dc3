/// Requests of `POST {base}/audio/transcriptions`: the sound and, as `prompt`, the text beside it. Facts
/// are from the types of the official Python SDK, `openai` 3.52.0.
enum OpenAITranscriptions {
  private static let own: Set<String> = ["model", "file", "stream"]

  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    let input = try OpenAIInput(parts)
    guard let file = input.files.first, input.files.count == 1 else {
      throw Failure(
        .unsendable, message: "a transcription needs one recording, not \(input.files.count)")
    }
    var form = Multipart(seed: call.request, reserving: file.bytes.count)
    form.field("model", call.model)
    if !input.text.isEmpty { form.field("prompt", input.text) }
    for (name, value) in parts.params where !own.contains(name) {
      form.field(name, value)
    }
    form.file("file", file)
    form.end()
    return try parts.post(
      path: try variant.path("/audio/transcriptions", parts), auth: variant.auth, form)
  }
}

/// Answers of the transcription endpoint: JSON with `text`, more with `response_format` `verbose_json`, or,
/// with `text`, `srt` and `vtt`, the text itself.
struct OpenAITranscriptionAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id", "request-id"]

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()

  func reply() -> Reply { result }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    guard let text = json["text"], text.kind == .string else { return "" }
    result.output = text.string ?? ""
    result.model = json["model"]?.string
    result.finishReason = "stop"
    result.usage = usage(json)
    // Segments, words, language: what else there is.
    if json["segments"] ?? json["words"] ?? json["language"] ?? json["languages"]
      ?? json["logprobs"]
      != nil
    {
      var writer = JSONWriter(reserving: json.raw.count)
      writer.copy(json)
      result.message = writer.bytes
    }
    isComplete = true
    return result.output
  }

  /// Billed by tokens, or by the recording's length.
  private func usage(_ json: JSON) -> Usage? {
    var usage = Usage()
    if let input = json["usage"]?["input_tokens"]?.int, Usage.isCount(input),
      let output = json["usage"]?["output_tokens"]?.int, Usage.isCount(output)
    {
      usage.input = input
      usage.output = output
      if let audio = json["usage"]?["input_token_details"]?["audio_tokens"]?.int, audio > 0 {
        usage.units["audio_input"] = String(min(audio, input))
      }
      return usage
    }
    guard let seconds = json["usage"]?["seconds"] ?? json["duration"], let value = seconds.double,
      value.isFinite, value >= 0, value < 1e9
    else { return nil }
    usage.units["seconds"] = seconds.word ?? String(value)
    return usage
  }
}

/// Reads plain text where the app asked for it, and leaves everything else to the reader of JSON.
struct OpenAITranscriptionReader: ResponseReader {
  private var reader: AnswerReader<OpenAITranscriptionAnswer>
  private let isText: Bool
  private var text: [UInt8]?
  private var status = 0
  private var requestID: String?

  init(for call: Call) {
    reader = AnswerReader(OpenAITranscriptionAnswer(), for: call)
    let format = JSON(call.request)?["params"]?["response_format"]?.string
    isText = ["text", "srt", "vtt"].contains(format)
  }

  var isComplete: Bool { false }
  var hasBegun: Bool { text != nil || reader.hasBegun }

  mutating func head(_ head: ResponseHead) -> Framing {
    status = head.status
    requestID = head.headers["x-request-id"]
    return reader.head(head)
  }

  mutating func receive(event: String?, data: [UInt8]) -> String {
    guard isText, (200...299).contains(status), data.first != UInt8(ascii: "{") else {
      return reader.receive(event: event, data: data)
    }
    text = data
    return String(decoding: data.map { $0 == 0 ? 0x20 : $0 }, as: UTF8.self)
  }

  mutating func finish(_ end: TransferEnd) -> Outcome {
    guard let text, case .complete = end else { return reader.finish(end) }
    var reply = Reply()
    reply.output = String(decoding: text.map { $0 == 0 ? 0x20 : $0 }, as: UTF8.self)
    reply.finishReason = "stop"
    reply.requestID = requestID
    return .success(reply)
  }
}
