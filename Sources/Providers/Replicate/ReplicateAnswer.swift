/// A prediction, from its making to its end: what the requests for it answered, and what its stream said.
struct ReplicateAnswer: AnswerAssembler {
  static let requestIDHeaders: [String] = []
  static let streams = true

  private(set) var isComplete = false
  private(set) var isPending = false
  private(set) var fault: Failure?

  private let kind: CallKind
  private var output = ""
  private var files: [ProducedFile] = []
  private var model: String?
  private var usage: Usage?
  private var job: ReplicateJob

  init(to call: Call) {
    kind = call.kind
    job = ReplicateJob(call)
  }

  private var givesText: Bool { kind != .image && kind != .speech }

  var hasBegun: Bool { !output.isEmpty || !files.isEmpty }

  var mayEnd: Bool { false }

  mutating func eventID(_ id: String) { job.eventID(id) }

  mutating func marker(_ data: [UInt8]) -> String? { nil }
  mutating func event(named name: String?, _ json: JSON) -> String { "" }

  /// Events hold text: a piece of the output, a line of a log, why it failed, or that it is over.
  mutating func plain(named name: String?, _ data: [UInt8]) -> String? {
    guard job.isStreaming else { return nil }
    guard job.takesEvent() else { return "" }
    switch name {
    case "output":
      guard givesText else { return "" }
      let text = Self.text(data)
      output += text
      return text
    case "done":
      job.streamEnded(reason: JSON(data)?["reason"]?.string)
      isPending = true
      return ""
    case "error":
      // The prediction itself says what it was, and what it cost.
      job.streamEnded(reason: "error")
      isPending = true
      return ""
    default:
      return ""
    }
  }

  mutating func whole(_ json: JSON) -> String {
    isPending = false
    guard let status = json["status"]?.string, json["id"] != nil else { return "" }
    job.read(json)
    if let version = json["version"]?.string, let name = json["model"]?.string, !name.isEmpty {
      let isOwn = version.isEmpty || version == "hidden"
      model = isOwn || name.contains(":") ? name : "\(name):\(version)"
    } else if let name = json["model"]?.string, !name.isEmpty {
      model = name
    }
    usage = read(json["metrics"])
    let text = read(json["output"], status)
    switch status {
    case "starting", "processing", "queued":
      isPending = true
    case "succeeded", "successful":
      if fault == nil { isComplete = true }
      if kind == .image { usage?.units["images"] = String(files.count) }
    default:
      var failure = Failure(
        .embeddedError, message: json["error"]?.string ?? "the prediction ended as \(status)")
      failure.code = status
      fault = failure
    }
    return text
  }

  /// What broke off comes again, once it is known what it is.
  mutating func cut(_ json: JSON) -> String {
    // The last member may be cut itself.
    if json.members.last?.key != "id" { job.read(json) }
    return ""
  }

  mutating func followUp(_ ended: ResponseEnd) -> FollowUp? {
    let next = job.followUp(ended, isPending)
    isPending = false
    if next == nil, job.wasStreamedWhole {
      // All of the answer is there; only what it used is not known.
      isComplete = true
    }
    return next
  }

  var farewell: FollowUp? { job.farewell }

  func reply() -> Reply {
    var reply = Reply()
    reply.output = output
    if kind == .chat {
      var message = AssistantMessage()
      message.content = output
      reply.message = message.json()
    }
    reply.files = files
    reply.finishReason = isComplete && givesText ? "stop" : nil
    reply.usage = usage
    reply.model = model
    reply.requestID = job.id
    return reply
  }
}

extension ReplicateAnswer {
  /// Gives the text that was not shown before; of a prediction that runs, as far as it is.
  private mutating func read(_ result: JSON?, _ status: String) -> String {
    guard let result else { return "" }
    let isOver = status == "succeeded" || status == "successful"
    guard givesText else {
      if isOver { files = Self.files(in: result, kind) }
      return ""
    }
    guard isOver || result.kind == .string || result.kind == .array else { return "" }
    let all = Self.text(of: result)
    guard all.utf8.starts(with: output.utf8) else {
      if isOver, !job.wasStreamedWhole {
        fault = Failure(.malformed, message: "the whole answer is not the one that was streamed")
      }
      return ""
    }
    // What was streamed to its end is believed: some models tidy their output afterwards.
    if job.wasStreamedWhole, !output.isEmpty { return "" }
    let rest = String(decoding: all.utf8.dropFirst(output.utf8.count), as: UTF8.self)
    output = all
    return rest
  }

  /// Seconds of machine time, and tokens where the model counts them. Of what gives text and counts none
  /// the books estimate them: who pays by the token must not get it for nothing.
  private func read(_ metrics: JSON?) -> Usage? {
    guard let metrics, metrics.kind == .object else { return nil }
    var usage = Usage()
    let counts = (metrics["input_token_count"]?.int, metrics["output_token_count"]?.int)
    if let input = counts.0, let output = counts.1, Usage.isCount(input), Usage.isCount(output) {
      usage.input = input
      usage.output = output
    } else {
      usage.countsTokens = kind != .chat && kind != .completion
    }
    if let seconds = metrics["predict_time"].flatMap(Self.decimal) {
      usage.units["seconds"] = seconds
    }
    return usage.countsTokens || !usage.units.isEmpty ? usage : nil
  }

  /// Digits as they were written.
  private static func decimal(_ json: JSON) -> String? {
    guard json.kind == .number, let value = json.double, value >= 0, value <= 1e9 else {
      return nil
    }
    let raw = String(decoding: json.raw, as: UTF8.self)
    if raw.utf8.allSatisfy({ (0x30...0x39).contains($0) || $0 == UInt8(ascii: ".") }) { return raw }
    let micros = Int((value * 1_000_000).rounded())
    let fraction = String(micros % 1_000_000)
    return "\(micros / 1_000_000)." + String(repeating: "0", count: 6 - fraction.utf8.count)
      + fraction
  }

  /// A text, or pieces of one; anything else as JSON, but for an object with a text of its own.
  private static func text(of result: JSON) -> String {
    switch result.kind {
    case .string: return result.string ?? ""
    case .array where result.elements.allSatisfy { $0.kind == .string }:
      return result.elements.map { $0.string ?? "" }.joined()
    case .object:
      if let text = result["text"]?.string ?? result["transcription"]?.string { return text }
      fallthrough
    default:
      var writer = JSONWriter()
      writer.copy(result)
      return String(decoding: writer.bytes, as: UTF8.self)
    }
  }

  /// Addresses of files, one or several, also as members of an object.
  private static func files(in result: JSON, _ kind: CallKind) -> [ProducedFile] {
    var found: [ProducedFile] = []
    func look(_ value: JSON, _ depth: Int) {
      guard depth < 4, found.count < 64 else { return }
      switch value.kind {
      case .string:
        let text = value.string ?? ""
        if let data = DataURL(text) {
          guard let bytes = Base64.bytes(String(data.base64)), !bytes.isEmpty else { return }
          let type = String(data.mediaType.prefix(100))
          found.append(
            ProducedFile(mediaType: type.isEmpty ? unknown : type, content: .bytes(bytes)))
        } else if Origin(text) != nil {
          found.append(ProducedFile(mediaType: mediaType(of: text), content: .url(text)))
        }
      case .array: for element in value.elements { look(element, depth + 1) }
      case .object: for (_, member) in value.members { look(member, depth + 1) }
      default: break
      }
    }
    look(result, 0)
    return found
  }

  private static let unknown = "application/octet-stream"

  private static func mediaType(of url: String) -> String {
    let path = url.prefix { $0 != "?" && $0 != "#" }.lowercased()
    let types = [
      ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
      ".gif": "image/gif", ".svg": "image/svg+xml", ".wav": "audio/wav", ".mp3": "audio/mpeg",
      ".flac": "audio/flac", ".ogg": "audio/ogg", ".mp4": "video/mp4",
    ]
    return types.first { path.hasSuffix($0.key) }?.value ?? unknown
  }

  /// Text that PostgreSQL can store.
  private static func text(_ data: [UInt8]) -> String {
    let text = String(decoding: data, as: UTF8.self)
    guard text.utf8.contains(0) else { return text }
    return String(
      String.UnicodeScalarView(text.unicodeScalars.map { $0 == "\0" ? "\u{FFFD}" : $0 }))
  }
}
