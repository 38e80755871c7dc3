/// Answers of `/api/chat` and `/api/generate`: lines of JSON up to one that is `done`, or that one
/// alone. Calls of tools come whole, one or several in a line.
struct OllamaAnswer: AnswerAssembler {
  static let requestIDHeaders = ["x-request-id"]
  static let streams = true
  static let streamFraming = Framing.lines

  private(set) var isComplete = false
  private(set) var fault: Failure?

  private var message = AssistantMessage()
  private var calls = OpenAIToolCalls()
  private var contentText = TextJoiner()
  private var thinkingText = TextJoiner()
  private var finishReason: String?
  private var usage: Usage?
  private var model: String?

  var hasBegun: Bool {
    isComplete || !message.content.isEmpty || !message.reasoning.isEmpty || !calls.calls.isEmpty
  }

  /// Ollama always says that it is done.
  var mayEnd: Bool { false }

  mutating func event(named name: String?, _ json: JSON) -> String { read(json, whole: false) }

  mutating func whole(_ json: JSON) -> String { read(json, whole: true) }

  func reply() -> Reply {
    var reply = Reply()
    var message = message
    message.toolCalls = calls.calls
    reply.output = message.content
    reply.message = message.json()
    reply.finishReason = finishReason
    reply.usage = usage
    reply.model = model
    return reply
  }

  private mutating func read(_ json: JSON, whole: Bool) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    if let name = json["model"]?.string, !name.isEmpty { model = name }
    let answer = json["message"]
    var text = ""
    if let content = answer?["content"] ?? json["response"] { text = contentText.text(of: content) }
    if let thought = answer?["thinking"] ?? json["thinking"] {
      message.reasoning += thinkingText.text(of: thought)
    }
    for call in answer?["tool_calls"]?.elements ?? [] {
      calls.read(call, at: calls.calls.count)
    }
    // A whole answer is one by its form, should a server leave the mark out.
    let isDone =
      json["done"]?.bool
      ?? (whole && (answer?.kind == .object || json["response"]?.kind == .string))
    if isDone {
      text += contentText.end()
      message.reasoning += thinkingText.end()
    }
    message.content += text
    if isDone { finish(json) }
    return text
  }

  private mutating func finish(_ json: JSON) {
    let output = json["eval_count"]?.int ?? (hasBegun ? nil : 0)
    isComplete = true
    // Where a prefix was cached, older versions leave the count of input tokens out: then the books
    // estimate.
    if let input = json["prompt_eval_count"]?.int, Usage.isCount(input), let output,
      Usage.isCount(output)
    {
      var counted = Usage()
      counted.input = input
      counted.output = output
      usage = counted
    }
    switch json["done_reason"]?.string {
    case "length": finishReason = "length"
    case nil, "", "stop": finishReason = calls.calls.isEmpty ? "stop" : "tool_calls"
    case let reason?:
      finishReason = "stop"
      message.nativeFinishReason = reason
    }
  }
}
