/// Requests of `POST {base}/audio/speech`. Facts are from the types of the official Python SDK,
/// `openai` 3.52.0. Option `voice`: what a call without `params.voice` is spoken with.
enum OpenAISpeech {
  private static let own: Set<String> = ["model", "input", "stream_format", "stream"]

  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    guard let input = parts.request["input"]?.string, !input.isEmpty else {
      throw Failure(.unsendable, message: "speech needs a text")
    }
    var writer = JSONWriter(reserving: call.request.count + 128)
    writer.beginObject()
    writer.member("model", call.model)
    writer.member("input", input)
    for (name, value) in parts.params where !own.contains(name) {
      writer.key(name)
      writer.splice(value)
    }
    if parts.param("voice") == nil, let voice = parts.options["voice"]?.string {
      writer.member("voice", voice)
    }
    writer.endObject()
    var request = try parts.post(
      path: try variant.path("/audio/speech", parts), auth: variant.auth, body: writer.bytes)
    request.headers.removeAll { $0.name == "accept" }
    request.headers.append(("accept", "*/*"))
    return request
  }
}

/// Answers of the speech endpoint: the sound itself. Errors are JSON, as everywhere.
struct OpenAISpeechReader: ResponseReader {
  /// Reads whatever is not sound.
  private var reader: AnswerReader<OpenAIImageAnswer>
  private let characters: Int
  private let format: String?
  private var head: ResponseHead?
  private var sound: [UInt8] = []

  init(for call: Call) {
    reader = AnswerReader(OpenAIImageAnswer(), for: call)
    let request = JSON(call.request)
    characters = request?["input"]?.string?.unicodeScalars.count ?? 0
    format = request?["params"]?["response_format"]?.string
  }

  var isComplete: Bool { false }
  var hasBegun: Bool { !sound.isEmpty }

  mutating func head(_ head: ResponseHead) -> Framing {
    self.head = head
    return reader.head(head)
  }

  mutating func receive(event: String?, data: [UInt8]) -> String {
    guard isSound else { return reader.receive(event: event, data: data) }
    sound = data
    return ""
  }

  mutating func finish(_ end: TransferEnd) -> Outcome {
    // Without a length or chunks nobody can say whether all of it came; with them the transport does.
    guard isSound, !sound.isEmpty, case .complete = end, let head else { return reader.finish(end) }
    var reply = Reply()
    reply.files = [ProducedFile(mediaType: mediaType, content: .bytes(sound))]
    reply.finishReason = "stop"
    reply.requestID = head.headers["x-request-id"]
    var usage = Usage()
    usage.units["characters"] = String(characters)
    reply.usage = usage
    return .success(reply)
  }

  private var isSound: Bool {
    guard let head, (200...299).contains(head.status) else { return false }
    let type = contentType
    return !type.contains("json") && !type.hasPrefix("text/")
  }

  private var contentType: String {
    String((head?.headers["content-type"] ?? "").lowercased().prefix { $0 != ";" })
  }

  private var mediaType: String {
    if contentType.hasPrefix("audio/") { return contentType }
    switch format {
    case nil, "mp3": return "audio/mpeg"
    case "opus": return "audio/ogg"
    case let format?: return "audio/\(format)"
    }
  }
}
