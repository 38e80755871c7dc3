/// A protocol that nothing but data describes: the option `custom` of a provider, or of a model over it,
/// says for each kind of request how it is written and where its answer stands (docs/custom-providers.md).
/// `ai.check_custom()` has refused what could not be understood here.
package enum Custom: Dialect {
  package static let name = "custom"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    var parts = try RequestParts(call)
    let spec = try CustomSpec(call, parts.options)
    let template = try CustomTemplate(parts)
    let streams = call.stream && spec.stream != nil
    let body = spec.stream?["body"]
    parts.leaveOut(
      Set(parts.params.map(\.key)).subtracting(
        CustomTemplate.named(in: [spec.body] + (streams ? [body].compactMap(\.self) : []), parts)))
    var writer = JSONWriter(reserving: call.request.count + 512)
    try template.write(spec.body, over: streams ? body : nil, to: &writer)
    let path = (streams ? spec.stream?["path"]?.string : nil) ?? spec.path
    var request = try parts.post(
      path: template.path(path), auth: "bearer",
      ownHeaders: streams && spec.isOfEvents ? [("accept", "text/event-stream")] : [],
      body: writer.bytes)
    request.method = spec.member("method")?.string ?? "POST"
    if request.method == "GET" { request.body = [] }
    return request
  }

  package static func reader(for call: Call) -> any ResponseReader {
    let spec = JSON(call.options).flatMap { options in try? CustomSpec(call, options) }
    let answer = CustomAnswer(to: call, spec)
    return CustomReader(
      AnswerReader(answer, for: call), streams: call.stream && spec?.stream != nil,
      isOfEvents: spec?.isOfEvents ?? true)
  }
}

/// What the option `custom` says of one kind of request.
struct CustomSpec: Sendable {
  private let own: JSON
  /// A template.
  let body: JSON
  let path: String
  /// What is different where the answer is streamed; nil: it cannot be.
  let stream: JSON?
  /// How a job that answers later is asked for.
  let poll: JSON?

  /// All options of the call.
  let options: JSON

  init(_ call: Call, _ options: JSON) throws(Failure) {
    guard let own = options["custom"]?.member(named: call.kind.rawValue), own.kind == .object,
      let body = own["body"]
    else {
      throw Failure(
        .unsendable,
        message: "the option custom of this provider describes no \(call.kind.rawValue)")
    }
    self.own = own
    self.options = options
    self.body = body
    path = own["path"]?.string ?? ""
    stream = own["stream"]
    poll = own["poll"]
  }

  /// Server-sent events, or else lines.
  var isOfEvents: Bool { stream?["framing"]?.string != "ndjson" }

  func member(_ name: String) -> JSON? { own.member(named: name) }

  /// The path of this name; that of the stream where it has one of its own.
  func path(_ name: String, streamed: Bool = false) -> JSONPath? {
    let text = (streamed ? stream?.member(named: name)?.string : nil) ?? member(name)?.string
    return text.flatMap(JSONPath.init)
  }
}

/// The framing is what the description says, whatever the content type: servers send lines of JSON and
/// events by many names. A stream that turns out to be one JSON text is read as a whole.
struct CustomReader: ResponseReader {
  private var reader: AnswerReader<CustomAnswer>
  private var streams: Bool
  private let isOfEvents: Bool

  init(_ reader: AnswerReader<CustomAnswer>, streams: Bool, isOfEvents: Bool) {
    self.reader = reader
    self.streams = streams
    self.isOfEvents = isOfEvents
  }

  var isComplete: Bool { reader.isComplete }
  var hasBegun: Bool { reader.hasBegun }
  var farewell: FollowUp? { reader.farewell }

  mutating func head(_ head: ResponseHead) -> Framing {
    var head = head
    let type = (head.headers["content-type"] ?? "").lowercased()
    if !streams {
      head.headers["content-type"] = "application/json"
    } else if !isOfEvents {
      head.headers["content-type"] = "application/x-ndjson"
    } else if !type.contains("json") && !type.hasPrefix("text/html") {
      head.headers["content-type"] = "text/event-stream"
    }
    return reader.head(head)
  }

  mutating func receive(event: String?, data: [UInt8]) -> String {
    reader.receive(event: event, data: data)
  }

  mutating func followUp(_ end: TransferEnd) -> FollowUp? {
    guard let next = reader.followUp(end) else { return nil }
    streams = false
    return next
  }

  mutating func finish(_ end: TransferEnd) -> Outcome { reader.finish(end) }
}
