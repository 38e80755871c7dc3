/// Answers of the Responses API: events whose last holds the whole response, or the response itself, at
/// once or after having been asked for. Text that was shown stays; where the whole says otherwise, the
/// answer is refused as malformed.
struct ResponsesAnswer: AnswerAssembler {
  static let requestIDHeaders = ["x-request-id", "request-id"]
  static let streams = true

  private(set) var isComplete = false
  private(set) var isPending = false
  private(set) var fault: Failure?

  /// All that was shown: `content` and `refusal` in the order in which they came.
  private var output = ""
  private var content = ""
  private var refusal = ""
  private var items = ResponsesItems()
  private var finishReason: String?
  private var nativeFinish: String?
  private var usage: Usage?
  private var model: String?
  private var serviceTier: String?
  private var job: ResponsesJob
  private var contentText = TextJoiner()
  private var refusalText = TextJoiner()
  /// Contents of which a delta was seen.
  private var streamed: Set<String> = []

  init(to call: Call) { job = ResponsesJob(call) }

  var hasBegun: Bool { !output.isEmpty || items.hasBegun }

  var mayEnd: Bool { false }

  /// OpenAI itself sends none here; some servers that speak like it do.
  mutating func marker(_ data: [UInt8]) -> String? { data.starts(with: "[DONE]".utf8) ? "" : nil }

  mutating func event(named name: String?, _ json: JSON) -> String {
    let type = json["type"]?.string ?? name ?? ""
    // A stream that was taken up again may repeat itself.
    guard job.isNews(json["sequence_number"]?.int) else { return "" }
    switch type {
    case "response.output_text.delta":
      return show(contentText.text(of: json["delta"]), key(json))
    case "response.output_text.done":
      return showUnlessStreamed(json["text"], key(json))
    case "response.refusal.delta":
      return refuse(refusalText.text(of: json["delta"]), key(json))
    case "response.refusal.done":
      let rest = refuse(refusalText.end(), key(json), isDelta: false)
      guard !streamed.contains(key(json)), let all = json["refusal"]?.string else { return rest }
      return rest + refuse(all, key(json))
    case "response.completed", "response.incomplete", "response.failed", "response.cancelled":
      guard let response = json["response"] else { return "" }
      return end(response, isStreamed: true)
    case "response.created", "response.queued", "response.in_progress":
      if let response = json["response"] { readFrame(response) }
      return ""
    case "error":
      fault = Self.failure(json["error"] ?? json, "the provider reported an error in its stream")
      return ""
    default:
      if type.isEmpty, ProviderError.isError(json) {
        fault = Failure(embedded: ProviderError(json))
        return ""
      }
      items.read(type, json)
      return ""
    }
  }

  mutating func whole(_ json: JSON) -> String {
    isPending = false
    if json["object"]?.string != "response", ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    switch json["status"]?.string {
    case "queued", "in_progress":
      readFrame(json)
      isPending = job.id != nil
      return ""
    default:
      guard json["status"] != nil || json["output"] != nil else { return "" }
      return end(json, isStreamed: false)
    }
  }

  /// What broke off and is a job comes again.
  mutating func cut(_ json: JSON) -> String {
    // The last member may be cut itself.
    if json.members.last?.key != "id" { readFrame(json) }
    guard !job.isBackground, json["status"]?.string == "completed" else { return "" }
    let text = showRest(json)
    items.readWhole(json["output"])
    return text
  }

  mutating func followUp(_ ended: ResponseEnd) -> FollowUp? {
    defer { isPending = false }
    return job.followUp(ended, isPending)
  }

  var farewell: FollowUp? { job.farewell }

  func reply() -> Reply {
    var reply = Reply()
    var message = AssistantMessage()
    message.refusal = refusal
    message.content = content
    message.reasoning = items.reasoning
    message.thinkingBlocks = items.reasoningItems
    message.toolCalls = items.calls
    message.nativeFinishReason = nativeFinish
    reply.output = output
    reply.message = message.json()
    reply.files = items.files
    reply.finishReason = finishReason
    reply.usage = usage
    reply.model = model
    reply.serviceTier = serviceTier
    reply.requestID = job.id
    return reply
  }
}

extension ResponsesAnswer {
  private func key(_ json: JSON) -> String {
    "\(json["output_index"]?.int ?? 0)/\(json["content_index"]?.int ?? 0)"
  }

  private mutating func show(_ text: String, _ key: String) -> String {
    streamed.insert(key)
    content += text
    output += text
    return text
  }

  private mutating func showUnlessStreamed(_ text: JSON?, _ key: String) -> String {
    let rest = endText()
    guard !streamed.contains(key), let text = text?.string else { return rest }
    return rest + show(text, key)
  }

  private mutating func refuse(_ text: String, _ key: String, isDelta: Bool = true) -> String {
    if isDelta { streamed.insert(key) }
    refusal += text
    output += text
    return text
  }

  /// What is owed for halves of characters.
  private mutating func endText() -> String {
    let rest = contentText.end()
    content += rest
    output += rest
    return rest
  }

  /// Reads what surrounds the items.
  private mutating func readFrame(_ response: JSON) {
    job.read(response)
    if let name = response["model"]?.string, !name.isEmpty { model = name }
    if let tier = response["service_tier"]?.string { serviceTier = tier }
    if let reported = response["usage"], let read = Usage(openAIResponses: reported) {
      usage = read
    }
    if let searches = response["tool_usage"]?["web_search"]?["num_requests"]?.int, searches > 0 {
      usage?.units["searches"] = String(searches)
    }
  }

  /// Takes the response as it ended; gives the text that was not shown before. A stream that came without
  /// a gap is believed: servers that speak like OpenAI trim the whole.
  private mutating func end(_ response: JSON, isStreamed: Bool) -> String {
    readFrame(response)
    switch response["status"]?.string {
    case "failed":
      fault = Self.failure(response["error"] ?? response, "the provider failed to answer")
      return ""
    case "cancelled":
      var failure = Failure(.embeddedError, message: "the answer was cancelled at the provider")
      failure.code = "cancelled"
      fault = failure
      return ""
    default: break
    }
    items.readWhole(response["output"])
    // Half of a character that the whole has completely.
    if !isStreamed { (contentText, refusalText) = (TextJoiner(), TextJoiner()) }
    let text = endText() + refuse(refusalText.end(), "", isDelta: false)
    let rest = isStreamed && !output.isEmpty ? "" : showRest(response)
    if fault != nil { return text }
    finishReason = items.calls.isEmpty ? "stop" : "tool_calls"
    if let reason = response["incomplete_details"]?["reason"]?.string {
      switch reason {
      case "max_output_tokens", "max_tokens": finishReason = "length"
      case "content_filter": finishReason = "content_filter"
      default: nativeFinish = reason
      }
    }
    isComplete = true
    return text + rest
  }

  /// The text of the whole response beyond what was shown.
  private mutating func showRest(_ response: JSON) -> String {
    guard let items = response["output"]?.elements else { return "" }
    let text = ResponsesItems.text(of: items)
    guard text.all.utf8.starts(with: output.utf8) else {
      fault = Failure(.malformed, message: "the whole answer is not the one that was streamed")
      return ""
    }
    let rest = String(decoding: text.all.utf8.dropFirst(output.utf8.count), as: UTF8.self)
    (output, content, refusal) = text
    return rest
  }

  private static func failure(_ error: JSON, _ otherwise: String) -> Failure {
    var failure = Failure(.embeddedError, message: error["message"]?.string ?? otherwise)
    failure.code = error["code"]?.word
    if let type = error["type"]?.string, type != "error" { failure.type = type }
    return failure
  }
}

extension TextJoiner {
  fileprivate mutating func text(of json: JSON?) -> String { json.map { text(of: $0) } ?? "" }
}
