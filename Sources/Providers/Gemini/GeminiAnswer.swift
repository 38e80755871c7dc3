/// Answers of `generateContent`, and of `streamGenerateContent` as events that each are a whole
/// response with more text. Nothing marks the end of a stream but the end itself, after a candidate
/// had its `finishReason`. Streams that come as one JSON array are read, too.
struct GeminiAnswer: AnswerAssembler {
  static let requestIDHeaders = ["x-request-id"]
  static let streams = true

  private(set) var isComplete = false
  private(set) var fault: Failure?

  private let kind: CallKind
  private var message = AssistantMessage()
  private var contentText = TextJoiner()
  private var reasoningText = TextJoiner()
  private var signatures = ThoughtSignatures()
  private var files: [ProducedFile] = []
  private var usage = GeminiUsage()
  /// Searches that the provider made while it answered.
  private var searches = 0
  private var isBlocked = false
  private var finishReason: String?
  private var finishMessage: String?
  private var model: String?
  private var id: String?

  init(kind: CallKind) { self.kind = kind }

  var hasBegun: Bool {
    isComplete || !message.content.isEmpty || !message.reasoning.isEmpty
      || !message.toolCalls.isEmpty || !files.isEmpty
  }

  var mayEnd: Bool { finishReason != nil }

  mutating func marker(_ data: [UInt8]) -> String? { nil }

  mutating func event(named name: String?, _ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    if let name = json["modelVersion"]?.string, !name.isEmpty { model = name }
    if let given = json["responseId"]?.string { id = given }
    if let reported = json["usageMetadata"] { usage.read(reported) }
    let candidates = json["candidates"]?.elements ?? []
    guard let candidate = candidates.first(where: { ($0["index"]?.int ?? 0) == 0 }) else {
      if let reason = json["promptFeedback"]?["blockReason"]?.string {
        block(reason, json["promptFeedback"]?["blockReasonMessage"]?.string)
      }
      return ""
    }
    var text = ""
    for part in candidate["content"]?["parts"]?.elements ?? [] { text += read(part) }
    searches = max(
      searches, candidate["groundingMetadata"]?["webSearchQueries"]?.elements.count ?? 0)
    if let reason = candidate["finishReason"]?.string, reason != "FINISH_REASON_UNSPECIFIED" {
      text += endText()
      finishMessage = candidate["finishMessage"]?.string ?? finishMessage
      finish(reason)
    }
    return text
  }

  mutating func whole(_ json: JSON) -> String {
    var text = ""
    for response in json.kind == .array ? json.elements : [json] where fault == nil {
      text += event(named: nil, response)
    }
    text += endText()
    isComplete = finishReason != nil && fault == nil
    return text
  }

  func reply() -> Reply {
    var reply = Reply()
    var message = message
    message.thoughtSignatures = signatures.elements
    (reply.finishReason, message.nativeFinishReason) = finish()
    reply.output = message.content
    reply.message = message.json()
    reply.files = files
    reply.usage = usage.total(isFinished: finishReason != nil || isBlocked)
    if kind == .image { reply.usage?.units["images"] = String(files.count) }
    if searches > 0 { reply.usage?.units["searches"] = String(searches) }
    reply.model = model
    reply.serviceTier = usage.serviceTier
    reply.requestID = id
    return reply
  }

  private mutating func read(_ part: JSON) -> String {
    var text = ""
    if let given = part["text"] {
      if part["thought"]?.bool == true {
        message.reasoning += reasoningText.text(of: given)
      } else {
        text = contentText.text(of: given)
        message.content += text
      }
    }
    let signature = part["thoughtSignature"]?.string
    if let call = part["functionCall"], let name = call["name"]?.string {
      if let signature { signatures.calls[message.toolCalls.count] = signature }
      var arguments = "{}"
      if let given = call["args"], given.kind == .object {
        var writer = JSONWriter()
        writer.copy(given)
        arguments = String(decoding: writer.bytes, as: UTF8.self)
      }
      message.toolCalls.append(
        ToolCall(id: call["id"]?.string ?? "", name: name, arguments: arguments))
    } else if let signature {
      signatures.text = signature
    }
    if let blob = part["inlineData"], let data = blob["data"]?.string {
      // The bytes of a URL-safe alphabet are the same after two replacements.
      let standard = String(data.map { $0 == "-" ? "+" : $0 == "_" ? "/" : $0 })
      if let bytes = Base64.bytes(standard) {
        files.append(ProducedFile(mediaType: mediaType(of: blob), content: .bytes(bytes)))
      }
    }
    if let file = part["fileData"], let url = file["fileUri"]?.string {
      files.append(ProducedFile(mediaType: mediaType(of: file), content: .url(url)))
    }
    return text
  }

  private func mediaType(of blob: JSON) -> String {
    blob["mimeType"]?.string ?? "application/octet-stream"
  }

  private mutating func endText() -> String {
    let owed = contentText.end()
    message.content += owed
    message.reasoning += reasoningText.end()
    return owed
  }

  /// A prompt that is refused gets a 200 without candidates.
  private mutating func block(_ reason: String, _ words: String?) {
    var failure = Failure(
      .embeddedError, message: words ?? "the provider blocked the prompt: \(reason)")
    failure.type = "prompt_blocked"
    isBlocked = true
    failure.code = reason
    fault = failure
  }

  /// Reasons by which the model says that what it wrote is no answer, and by which there is none.
  private mutating func finish(_ reason: String) {
    finishReason = reason
    let isNone: Bool
    switch reason {
    case "MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL",
      "MISSING_THOUGHT_SIGNATURE", "NO_IMAGE":
      isNone = true
    case "OTHER", "IMAGE_OTHER", "LANGUAGE", "TOO_MANY_TOOL_CALLS": isNone = !hasBegun
    default: isNone = (kind == .image || kind == .speech) && reason == "STOP" && files.isEmpty
    }
    guard isNone else { return }
    var failure = Failure(
      .embeddedError,
      message: finishMessage ?? "the provider stopped with \"\(reason)\" and gave no answer")
    failure.type = "no_answer"
    failure.code = reason
    fault = failure
  }

  /// The reason in OpenAI's vocabulary, and Gemini's own where it says more.
  private func finish() -> (String?, String?) {
    switch finishReason {
    case nil: (nil, nil)
    case "STOP": (message.toolCalls.isEmpty ? "stop" : "tool_calls", nil)
    case "MAX_TOKENS": ("length", nil)
    case "CONTINUATION": ("length", finishReason)
    case "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
      "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION", "MODEL_ARMOR",
      "PUP_LIMITED_DISABLED":
      ("content_filter", finishReason)
    default: ("stop", finishReason)
    }
  }
}
