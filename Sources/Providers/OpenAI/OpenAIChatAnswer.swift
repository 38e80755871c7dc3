/// Answers of Chat Completions and of Completions, streamed as events of chunks up to `[DONE]`, or whole.
/// A choice of a chat has its text in `delta` or `message`, one of a completion in `text`. Only the choice
/// with index 0 counts.
struct OpenAIChatAnswer: AnswerAssembler {
  static let requestIDHeaders = ["x-request-id", "request-id"]
  static let streams = true

  private(set) var isComplete = false
  private(set) var fault: Failure?

  /// Whether a choice was seen. A stream without any has no answer, though it says that it is done.
  private var hasChoice = false
  private var message = AssistantMessage()
  private var calls = OpenAIToolCalls()
  private var contentText = TextJoiner()
  private var refusalText = TextJoiner()
  private var reasoningText = TextJoiner()
  /// All that was visible, content and refusal, in the order of arrival.
  private var output = ""
  private var finishReason: String?
  private var usage: Usage?
  private var model: String?
  private var serviceTier: String?
  private var id: String?
  private let isCompletion: Bool

  init(to call: Call) { isCompletion = call.kind == .completion }

  var hasBegun: Bool {
    isComplete || !output.isEmpty || !message.reasoning.isEmpty || !calls.calls.isEmpty
  }

  /// OpenAI always ends with `[DONE]`; some compatible servers just stop after the finish reason.
  var mayEnd: Bool { finishReason != nil }

  mutating func marker(_ data: [UInt8]) -> String? {
    // The official SDK, too, asks only how the data begins.
    guard data.starts(with: "[DONE]".utf8) else { return nil }
    isComplete = hasChoice
    return endText()
  }

  mutating func event(named name: String?, _ json: JSON) -> String {
    if let error = error(in: json, event: name) {
      fault = Failure(embedded: error)
      return ""
    }
    readFrame(json)
    let choices = json["choices"]?.elements ?? []
    guard let choice = choices.first(where: { ($0["index"]?.int ?? 0) == 0 }) else { return "" }
    hasChoice = true
    var text = ""
    if isCompletion, let piece = choice["text"] {
      text = readContent(piece)
    } else if let delta = choice["delta"] ?? choice["message"] {
      text = read(delta, whole: false)
    }
    if let logprobs = choice["logprobs"] { message.logprobs.add(logprobs) }
    if ProviderError.isError(choice) {
      text += endText()
      fault = Failure(embedded: ProviderError(choice))
    } else if let reason = choice["finish_reason"]?.string, !reason.isEmpty {
      text += endText()
      finish(reason)
    }
    return text
  }

  mutating func whole(_ json: JSON) -> String {
    if let error = error(in: json, event: nil) {
      fault = Failure(embedded: error)
      return ""
    }
    readFrame(json)
    let choices = json["choices"]?.elements ?? []
    guard let choice = choices.first(where: { ($0["index"]?.int ?? 0) == 0 }) ?? choices.first
    else { return "" }
    // OpenRouter says so of a provider that failed under way, perhaps behind a part of its answer.
    if ProviderError.isError(choice) { fault = Failure(embedded: ProviderError(choice)) }
    var text = ""
    if isCompletion, let whole = choice["text"], whole.kind == .string {
      text = readContent(whole)
    } else if let answer = choice["message"], answer.kind == .object {
      text = read(answer, whole: true)
    } else {
      return ""
    }
    text += endText()
    if let logprobs = choice["logprobs"] { message.logprobs.add(logprobs) }
    if fault == nil { finish(choice["finish_reason"]?.string ?? "stop") }
    isComplete = fault == nil
    return text
  }

  func reply() -> Reply {
    var reply = Reply()
    var message = message
    message.toolCalls = calls.calls
    reply.output = output
    reply.message = message.json()
    // A forced call ends with `stop`, also at OpenAI.
    reply.finishReason =
      finishReason == "stop" && !calls.calls.isEmpty ? "tool_calls" : finishReason
    reply.usage = usage
    reply.model = model
    reply.serviceTier = serviceTier
    reply.requestID = id
    return reply
  }

  private func error(in json: JSON, event name: String?) -> ProviderError? {
    if name == "error" || ProviderError.isError(json) { return ProviderError(json) }
    guard let groq = json["x_groq"], ProviderError.isError(groq) else { return nil }
    return ProviderError(groq)
  }

  /// Reads what surrounds the choices. Usage is cumulative where it comes more than once.
  private mutating func readFrame(_ json: JSON) {
    if id == nil { id = json["id"]?.string }
    if let name = json["model"]?.string, !name.isEmpty { model = name }
    if let tier = json["service_tier"]?.string ?? json["usage"]?["service_tier"]?.string {
      serviceTier = tier
    }
    if let reported = json["usage"] ?? json["x_groq"]?["usage"],
      let read = Usage(openAI: reported)
    {
      usage = read
    }
  }

  private mutating func read(_ delta: JSON, whole: Bool) -> String {
    var text = ""
    if let content = delta["content"] { text += readContent(content) }
    if let refusal = delta["refusal"] {
      let part = refusalText.text(of: refusal)
      message.refusal += part
      output += part
      text += part
    }
    if let thought = delta["reasoning_content"] ?? delta["reasoning"] {
      message.reasoning += reasoningText.text(of: thought)
    }
    for (position, call) in (delta["tool_calls"]?.elements ?? []).enumerated() {
      calls.read(call, at: whole ? position : nil)
    }
    if let call = delta["function_call"], call.kind == .object { calls.readLegacy(call) }
    return text
  }

  /// Text, or the text parts of an array (as some compatible servers send it), of which those of the
  /// type `thinking` (Mistral's) are reasoning.
  private mutating func readContent(_ content: JSON) -> String {
    var text = ""
    if content.kind == .array {
      for part in content.elements {
        if let thought = part["thinking"] {
          for piece in thought.kind == .array ? thought.elements : [thought] {
            message.reasoning += reasoningText.text(of: piece["text"] ?? piece)
          }
          continue
        }
        guard let partText = part["text"] else { continue }
        text += contentText.text(of: partText)
      }
    } else {
      text = contentText.text(of: content)
    }
    message.content += text
    output += text
    return text
  }

  private mutating func endText() -> String {
    let content = contentText.end()
    let refusal = refusalText.end()
    message.content += content
    message.refusal += refusal
    message.reasoning += reasoningText.end()
    output += content + refusal
    return content + refusal
  }

  private mutating func finish(_ reason: String) {
    switch reason {
    case "stop", "length", "tool_calls", "content_filter":
      finishReason = reason
    case "function_call", "tool_use":
      finishReason = "tool_calls"
    case "max_tokens", "model_length", "max_length":
      finishReason = "length"
    case "eos", "eos_token", "end_turn", "stop_sequence":
      finishReason = "stop"
    case "error", "abort", "insufficient_system_resource":
      // OpenRouter, vLLM and DeepSeek say by these that the answer is not one.
      var failure = Failure(.embeddedError, message: "the provider stopped with \"\(reason)\"")
      failure.type = reason
      fault = failure
    default:
      finishReason = "stop"
      message.nativeFinishReason = reason
    }
  }
}
