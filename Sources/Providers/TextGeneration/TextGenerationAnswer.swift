/// Answers of text generation: whole as `{"generated_text", "details"}` or an array of one such
/// object, streamed as an event a token up to the one that has the whole `generated_text`. Tokens that
/// are `special` (the end of the text, say) are not part of it.
struct TextGenerationAnswer: AnswerAssembler {
  static let requestIDHeaders = ["x-request-id"]
  static let streams = true

  private(set) var isComplete = false
  private(set) var fault: Failure?

  private var message = AssistantMessage()
  private var tokenText = TextJoiner()
  private var finishReason: String?
  private var usage: Usage?
  /// Of a whole answer the counts are in its headers.
  private var headUsage: Usage?

  var hasBegun: Bool { isComplete || !message.content.isEmpty }

  /// Servers of another make may leave the whole text out of the last event.
  var mayEnd: Bool { finishReason != nil }

  mutating func head(_ head: ResponseHead) {
    guard let input = head.headers["x-prompt-tokens"].flatMap({ Int($0) }),
      let output = head.headers["x-generated-tokens"].flatMap({ Int($0) }),
      Usage.isCount(input), Usage.isCount(output)
    else { return }
    var counted = Usage()
    counted.input = input
    counted.output = output
    headUsage = counted
  }

  mutating func marker(_ data: [UInt8]) -> String? {
    guard finishReason != nil, data.starts(with: "[DONE]".utf8) else { return nil }
    isComplete = true
    return ""
  }

  mutating func event(named name: String?, _ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    var text = ""
    if let token = json["token"], token["special"]?.bool != true, let piece = token["text"] {
      text = tokenText.text(of: piece)
    }
    if let details = json["details"] { read(details) }
    if let whole = json["generated_text"], whole.kind == .string {
      text += tokenText.end()
      let shown = message.content + text
      // A server that sends its answer in one event has shown nothing of it before.
      if let all = whole.string, all.utf8.starts(with: shown.utf8) {
        text += String(decoding: all.utf8.dropFirst(shown.utf8.count), as: UTF8.self)
      }
      finishReason = finishReason ?? "stop"
      isComplete = true
    }
    message.content += text
    return text
  }

  mutating func whole(_ json: JSON) -> String {
    let answer = json.elements.count == 1 ? json.elements[0] : json
    if ProviderError.isError(answer) {
      fault = Failure(embedded: ProviderError(answer))
      return ""
    }
    guard
      let text = answer["generated_text"]?.string ?? answer["summary_text"]?.string
        ?? answer["translation_text"]?.string
    else { return "" }
    message.content = text
    usage = headUsage
    if let details = answer["details"] { read(details) }
    finishReason = finishReason ?? "stop"
    isComplete = true
    return text
  }

  func reply() -> Reply {
    var reply = Reply()
    reply.output = message.content
    reply.message = message.json()
    reply.finishReason = finishReason
    reply.usage = usage ?? headUsage
    return reply
  }

  private mutating func read(_ details: JSON) {
    switch details["finish_reason"]?.string {
    case "length": finishReason = "length"
    case nil, "eos_token", "stop_sequence", "stop": finishReason = "stop"
    case let reason?:
      finishReason = "stop"
      message.nativeFinishReason = reason
    }
    guard let output = details["generated_tokens"]?.int, Usage.isCount(output) else { return }
    // Only streams say how long the input was; of a whole answer the headers do.
    guard let input = details["input_length"]?.int ?? headUsage?.input, Usage.isCount(input) else {
      return
    }
    var counted = Usage()
    counted.input = input
    counted.output = output
    usage = counted
  }
}
