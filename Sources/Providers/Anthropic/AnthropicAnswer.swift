/// Answers of the Messages API, streamed as named events from `message_start` to `message_stop`, or
/// whole as a `message`. Events and blocks of unknown types are passed over, as Anthropic's
/// versioning policy asks.
struct AnthropicAnswer: AnswerAssembler {
  static let requestIDHeaders = ["request-id", "x-request-id"]
  static let streams = true

  private(set) var isComplete = false
  private(set) var fault: Failure?

  private var blocks = AnthropicBlocks()
  private var usage = AnthropicUsage()
  /// Before the first `message_delta`, `output_tokens` is only what the first event guessed.
  private var outputIsCounted = false
  private var stopReason: String?
  private var refusal = ""
  /// All that was visible, in the order of arrival.
  private var output = ""
  private var model: String?
  private var serviceTier: String?
  private var id: String?

  var hasBegun: Bool { isComplete || blocks.haveBegun }

  /// Only `message_stop` ends a stream.
  var mayEnd: Bool { false }

  mutating func marker(_ data: [UInt8]) -> String? { nil }

  mutating func event(named name: String?, _ json: JSON) -> String {
    let text = readEvent(named: name, json)
    output += text
    return text
  }

  private mutating func readEvent(named name: String?, _ json: JSON) -> String {
    switch json["type"]?.string ?? name {
    case "error":
      fault = Failure(embedded: ProviderError(json))
    case "message_start":
      if let message = json["message"] { return read(message) }
    case "content_block_start":
      if let block = json["content_block"] { return blocks.begin(block, at: json["index"]?.int) }
    case "content_block_delta":
      if let delta = json["delta"] { return blocks.add(delta, at: json["index"]?.int) }
    case "content_block_stop":
      return blocks.end(at: json["index"]?.int)
    case "message_delta":
      if let delta = json["delta"] { readEnd(delta) }
      if let reported = json["usage"] {
        readUsage(reported)
        outputIsCounted = true
      }
    case "message_stop":
      isComplete = true
      return blocks.endAll()
    default:
      if json["type"] == nil, ProviderError.isError(json) {
        fault = Failure(embedded: ProviderError(json))
      }
    }
    return ""
  }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    guard json["content"]?.kind == .array else { return "" }
    let text = read(json) + blocks.endAll()
    output += text
    outputIsCounted = true
    isComplete = true
    return text
  }

  func reply() -> Reply {
    var reply = Reply()
    var message = blocks.message()
    message.refusal = refusal
    (reply.finishReason, message.nativeFinishReason) = finish()
    reply.output = output
    reply.message = message.json()
    // A guess must not get into the books as a count: what is not there they estimate, and say so.
    reply.usage = usage.total(outputIsCounted: outputIsCounted)
    reply.model = model
    reply.serviceTier = serviceTier
    reply.requestID = id
    return reply
  }

  /// Reads a message: in `message_start` without content, elsewhere with all of it.
  private mutating func read(_ message: JSON) -> String {
    id = message["id"]?.string
    model = message["model"]?.string
    readEnd(message)
    if let reported = message["usage"] { readUsage(reported) }
    var text = ""
    for (index, block) in (message["content"]?.elements ?? []).enumerated() {
      text += blocks.begin(block, at: index)
      text += blocks.end(at: index)
    }
    return text
  }

  private mutating func readEnd(_ json: JSON) {
    if let reason = json["stop_reason"]?.string { stopReason = reason }
    if let explanation = json["stop_details"]?["explanation"]?.string { refusal = explanation }
  }

  private mutating func readUsage(_ json: JSON) {
    usage.read(json)
    if let tier = json["service_tier"]?.string { serviceTier = tier }
    if usage.isFast, serviceTier != "batch" { serviceTier = "fast" }
  }

  /// The reason in OpenAI's vocabulary, and Anthropic's own where it says more.
  private func finish() -> (String?, String?) {
    switch stopReason {
    case nil: (isComplete ? "stop" : nil, nil)
    case "end_turn", "stop_sequence": ("stop", nil)
    case "max_tokens": ("length", nil)
    case "tool_use": ("tool_calls", nil)
    case "refusal": ("content_filter", nil)
    // A turn of the provider's own tools that it pauses is not finished, and cannot go on from this
    // message, which has no blocks of theirs.
    case "model_context_window_exceeded", "pause_turn": ("length", stopReason)
    default: ("stop", stopReason)
    }
  }
}
