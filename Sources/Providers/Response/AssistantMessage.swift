/// A call of a tool, as the model made it.
struct ToolCall: Sendable {
  var id = ""
  /// `function` or `custom`.
  var type = "function"
  var name = ""
  /// The arguments of a function (JSON text, though models do not always write valid JSON) or the
  /// input of a custom tool (any text).
  var arguments = ""
}

/// The assistant's message in OpenAI's chat form. Beside OpenAI's members it may have `reasoning`
/// (text), `thinking_blocks` (Anthropic's, which it wants back unchanged; the member `after` of one that came
/// behind text or calls says behind how much of them), `thought_signatures` (Gemini's, likewise), `logprobs` (which OpenAI has beside the message) and `native_finish_reason` (where the
/// provider's own word says more than OpenAI's).
struct AssistantMessage: Sendable {
  /// Members that are Martlet's, not OpenAI's: taken out before a message goes back to OpenAI.
  static let ownMembers: Set<String> = [
    "reasoning", "thinking_blocks", "thought_signatures", "logprobs", "native_finish_reason",
  ]

  var content = ""
  var refusal = ""
  var reasoning = ""
  /// JSON objects.
  var thinkingBlocks: [[UInt8]] = []
  /// JSON objects.
  var thoughtSignatures: [[UInt8]] = []
  var toolCalls: [ToolCall] = []
  var logprobs = Logprobs()
  var nativeFinishReason: String?

  /// UTF-8 JSON that PostgreSQL's `jsonb` accepts.
  func json() -> [UInt8] {
    var writer = JSONWriter(reserving: content.utf8.count + 256)
    writer.beginObject()
    writer.member("role", "assistant")
    writer.key("content")
    if content.isEmpty && !(toolCalls.isEmpty && refusal.isEmpty) {
      writer.null()
    } else {
      writer.string(content)
    }
    if !refusal.isEmpty { writer.member("refusal", refusal) }
    if !reasoning.isEmpty { writer.member("reasoning", reasoning) }
    for (name, objects) in [
      ("thinking_blocks", thinkingBlocks), ("thought_signatures", thoughtSignatures),
    ] where !objects.isEmpty {
      writer.key(name)
      writer.beginArray()
      for object in objects { writer.splice(object) }
      writer.endArray()
    }
    if !toolCalls.isEmpty { write(toolCalls, to: &writer) }
    if !logprobs.isEmpty {
      writer.key("logprobs")
      logprobs.write(to: &writer)
    }
    if let nativeFinishReason { writer.member("native_finish_reason", nativeFinishReason) }
    writer.endObject()
    return writer.bytes
  }

  private func write(_ calls: [ToolCall], to writer: inout JSONWriter) {
    writer.key("tool_calls")
    writer.beginArray()
    for (position, call) in calls.enumerated() {
      writer.beginObject()
      // An answer to the call must name it, so it has a name even where the provider gave none.
      writer.member("id", call.id.isEmpty ? "call_\(position)" : call.id)
      writer.member("type", call.type)
      writer.key(call.type == "custom" ? "custom" : "function")
      writer.beginObject()
      writer.member("name", call.name)
      if call.type == "custom" {
        writer.member("input", call.arguments)
      } else {
        writer.member("arguments", call.arguments.isEmpty ? "{}" : call.arguments)
      }
      writer.endObject()
      writer.endObject()
    }
    writer.endArray()
  }
}
