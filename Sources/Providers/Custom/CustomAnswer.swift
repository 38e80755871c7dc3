/// Reads answers by the paths of their description.
struct CustomAnswer: AnswerAssembler {
  static let requestIDHeaders = ["x-request-id", "request-id"]
  static let streams = true
  static let maxValues = OpenAIEmbeddingAnswer.maxValues

  private(set) var isComplete = false
  private(set) var isPending = false
  private(set) var fault: Failure?

  private let call: Call
  private let spec: CustomSpec?
  private var job: CustomJob
  private var message = AssistantMessage()
  private var contentText = TextJoiner()
  private var reasoningText = TextJoiner()
  private var calls = OpenAIToolCalls()
  private var usage = CustomUsage()
  private var finishReason: String?
  /// Vectors, labels or ranks, and the frame of every answer.
  private var result = Reply()
  private var sawUnit = false

  init(to call: Call, _ spec: CustomSpec?) {
    self.call = call
    self.spec = spec
    job = CustomJob(spec)
  }

  var hasBegun: Bool {
    isComplete || !message.content.isEmpty || !message.reasoning.isEmpty || !calls.calls.isEmpty
  }

  /// Without a terminal marker, and without a reason to wait for, a proper end is one.
  var mayEnd: Bool {
    guard let stream = spec?.stream, stream["done"] == nil else { return false }
    return spec?.path("finish", streamed: true) == nil ? sawUnit : finishReason != nil
  }

  mutating func marker(_ data: [UInt8]) -> String? {
    let done = spec?.stream?["done"]
    if let marker = done?["marker"]?.string, data.elementsEqual(marker.utf8) { return complete() }
    guard spec?.path("delta", streamed: true)?.isWhole == true,
      done?["path"] == nil || JSON(data)?.kind != .object
    else { return nil }
    // The unit is the text itself, or a JSON text that is one.
    sawUnit = true
    let quoted = JSON(data).flatMap { $0.kind == .string ? $0 : nil }
    let text = quoted?.string ?? CustomAnswer.cleaned(data)
    message.content += text
    return text
  }

  mutating func event(named name: String?, _ json: JSON) -> String {
    sawUnit = true
    if let error = error(in: json) {
      fault = Failure(embedded: error)
      return ""
    }
    var text = read(json, streamed: true)
    if isDone(named: name, json) { text += complete() }
    return text
  }

  mutating func whole(_ json: JSON) -> String {
    isPending = false
    if let error = error(in: json) {
      fault = Failure(embedded: error)
      return ""
    }
    switch job.state(of: json) {
    case .pending:
      isPending = true
      readFrame(json, streamed: false)
      return ""
    case .failed:
      var failure = Failure(embedded: described(json))
      if failure.message.isEmpty { failure.message = "the job failed" }
      fault = failure
      return ""
    case .done: break
    }
    readFrame(json, streamed: false)
    switch call.kind {
    case .embedding, .classification, .rerank: return readResult(json)
    default: break
    }
    guard let path = spec?.path("text"), answers(json, path) else { return "" }
    return read(json, streamed: false) + complete()
  }

  /// Half of a list of numbers is of no use, and of a job half of what is said may be wrong.
  mutating func cut(_ json: JSON) -> String {
    guard spec?.poll == nil else { return "" }
    switch call.kind {
    case .embedding, .classification, .rerank: return ""
    default: return whole(json)
    }
  }

  mutating func followUp(_ ended: ResponseEnd) -> FollowUp? { job.followUp(ended) }
  var farewell: FollowUp? { job.farewell }

  func described(_ json: JSON) -> ProviderError {
    var error = ProviderError(json)
    if let words = json.value(at: spec?.member("error_message"))?.word { error.message = words }
    if let type = json.value(at: spec?.member("error_type"))?.word { error.type = type }
    if let code = json.value(at: spec?.member("error_code")) {
      error.code = code.word ?? error.code
      error.status = ProviderError.status(code)
    }
    return error
  }

  func reply() -> Reply {
    var reply = result
    reply.usage = usage.total()
    reply.finishReason = finishReason
    switch call.kind {
    case .embedding, .classification, .rerank: return reply
    default: break
    }
    var message = message
    message.toolCalls = calls.calls
    if let finishReason { (reply.finishReason, message.nativeFinishReason) = reason(finishReason) }
    reply.output = message.content
    reply.message = message.json()
    return reply
  }

  /// What is an error although the status is 2xx.
  private func error(in json: JSON) -> ProviderError? {
    guard let path = spec?.path("error") else {
      return ProviderError.isError(json) ? described(json) : nil
    }
    guard let value = path.value(in: json), value.bool != false, value.string != "",
      value.kind != .number || value.double != 0, value.kind != .array || !value.elements.isEmpty
    else { return nil }
    var error = described(json)
    error.message = error.message ?? value.word
    return error
  }

  /// An answer that only calls tools may have no text, and one that was cut off neither.
  private func answers(_ json: JSON, _ path: JSONPath) -> Bool {
    !path.values(in: json).isEmpty || json.value(at: spec?.member("tool_calls")) != nil
      || json.value(at: spec?.member("finish")) != nil
  }

  private mutating func read(_ json: JSON, streamed: Bool) -> String {
    if streamed { readFrame(json, streamed: true) }
    var text = ""
    let path = streamed ? spec?.path("delta", streamed: true) : spec?.path("text")
    for value in path?.values(in: json) ?? [] {
      for part in value.kind == .array ? value.elements : [value] {
        text += contentText.text(of: part)
      }
    }
    message.content += text
    if let thought = spec?.path("reasoning", streamed: streamed)?.value(in: json) {
      message.reasoning += reasoningText.text(of: thought)
    }
    let made = spec?.path("tool_calls", streamed: streamed)?.value(in: json)?.elements ?? []
    for (position, call) in made.enumerated() { calls.read(call, at: streamed ? nil : position) }
    return text
  }

  private mutating func readFrame(_ json: JSON, streamed: Bool) {
    usage.read(json, spec, streamed: streamed)
    if let reason = spec?.path("finish", streamed: streamed)?.value(in: json)?.word {
      finishReason = reason
    }
    if let name = spec?.path("model", streamed: streamed)?.value(in: json)?.word {
      result.model = name
    }
    if let tier = spec?.path("service_tier", streamed: streamed)?.value(in: json)?.word {
      result.serviceTier = tier
    }
    if let id = spec?.path("request_id", streamed: streamed)?.value(in: json)?.word {
      result.requestID = id
    }
  }

  private func isDone(named name: String?, _ json: JSON) -> Bool {
    guard let done = spec?.stream?["done"] else { return false }
    if let event = done["event"]?.string, event == name { return true }
    guard let value = json.value(at: done["path"]) else { return false }
    guard let wanted = done["equals"] else { return value.bool != false }
    return value.kind == .bool ? value.bool == wanted.bool : value.word == wanted.word
  }

  private mutating func complete() -> String {
    isComplete = true
    let owed = contentText.end()
    message.content += owed
    message.reasoning += reasoningText.end()
    if finishReason == nil { finishReason = calls.calls.isEmpty ? "stop" : "tool_calls" }
    return owed
  }

  /// The reason in OpenAI's vocabulary, by the description's own map first.
  private func reason(_ theirs: String) -> (String, String?) {
    if let ours = spec?.member("finish_reasons")?.member(named: theirs)?.string {
      return (ours, nil)
    }
    switch theirs.lowercased() {
    case "stop", "length", "tool_calls", "content_filter": return (theirs.lowercased(), nil)
    case "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed", "succeeded":
      return ("stop", nil)
    case "max_tokens", "max_length", "model_length": return ("length", nil)
    case "tool_use", "function_call": return ("tool_calls", nil)
    default: return ("stop", theirs)
    }
  }

  private mutating func readResult(_ json: JSON) -> String {
    guard let path = spec?.path(call.kind == .embedding ? "vectors" : "results") else { return "" }
    var found = path.values(in: json)
    if found.count == 1, found[0].kind == .array { found = found[0].elements }
    var writer = JSONWriter()
    writer.beginArray()
    for element in found { write(element, to: &writer) }
    writer.endArray()
    guard let list = JSON(writer.bytes) else { return "" }
    var reply: Reply?
    switch call.kind {
    case .embedding:
      var answer = EmbeddingsAnswer(to: call)
      _ = answer.whole(list)
      if answer.isComplete { reply = answer.reply() }
    case .classification:
      var answer = LabelsAnswer()
      _ = answer.whole(list)
      if answer.isComplete { reply = answer.reply() }
    default:
      var answer = RanksAnswer(to: call)
      _ = answer.whole(list)
      if answer.isComplete { reply = answer.reply() }
    }
    guard let reply else { return "" }
    isComplete = true
    result.embedding = reply.embedding
    result.embeddings = reply.embeddings
    result.message = reply.message
    result.output = reply.output
    finishReason = reply.finishReason
    return reply.output
  }

  /// A label or a rank by the names that Martlet has for its members.
  private func write(_ element: JSON, to writer: inout JSONWriter) {
    guard element.kind == .object else { return writer.copy(element) }
    writer.beginObject()
    for name in call.kind == .classification ? ["label", "score"] : ["index", "score"] {
      let path = spec?.path(name) ?? JSONPath(name)
      guard let value = path?.value(in: element) else { continue }
      writer.key(name)
      writer.copy(value)
    }
    writer.endObject()
  }

  /// Without NUL, which the database cannot keep.
  private static func cleaned(_ data: [UInt8]) -> String {
    String(
      String(decoding: data, as: UTF8.self).unicodeScalars.map {
        $0 == "\0" ? "\u{FFFD}" : Character($0)
      })
  }
}
