import NIOCore

/// Bodies and lines of Ollama's chats and completions, as read by the official SDK.
enum OllamaWire {
  /// Everything of a whole answer before its text; `tail` is what follows.
  static func head(_ answer: Answer, into buffer: inout ByteBuffer) {
    opening(answer, into: &buffer)
    buffer.writeStaticString(
      answer.isCompletion
        ? "\"response\":\"" : "\"message\":{\"role\":\"assistant\",\"content\":\"")
  }

  static func tail(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("\"")
    if !answer.thinking.isEmpty {
      buffer.writeStaticString(",\"thinking\":\"")
      buffer.writeBytes(answer.thinking)
      buffer.writeStaticString("\"")
    }
    if !answer.toolCalls.isEmpty { toolCalls(answer, answer.toolCalls.indices, into: &buffer) }
    if !answer.isCompletion { buffer.writeStaticString("}") }
    end(answer, into: &buffer)
  }

  static func textLine(_ answer: Answer, _ range: Range<Int>, into buffer: inout ByteBuffer) {
    head(answer, into: &buffer)
    answer.text.write(range, to: &buffer)
    buffer.writeStaticString(answer.isCompletion ? "\",\"done\":false}\n" : "\"},\"done\":false}\n")
  }

  static func thoughtLine(_ answer: Answer, into buffer: inout ByteBuffer) {
    head(answer, into: &buffer)
    buffer.writeStaticString("\",\"thinking\":\"")
    buffer.writeBytes(answer.thinking)
    buffer.writeStaticString(answer.isCompletion ? "\",\"done\":false}\n" : "\"},\"done\":false}\n")
  }

  /// Calls come whole, one a line.
  static func callLine(_ answer: Answer, _ index: Int, into buffer: inout ByteBuffer) {
    head(answer, into: &buffer)
    buffer.writeStaticString("\"")
    toolCalls(answer, index..<(index + 1), into: &buffer)
    buffer.writeStaticString("},\"done\":false}\n")
  }

  static func lastLine(_ answer: Answer, into buffer: inout ByteBuffer) {
    head(answer, into: &buffer)
    buffer.writeStaticString(answer.isCompletion ? "\"" : "\"}")
    end(answer, into: &buffer)
    buffer.writeStaticString("\n")
  }

  static let brokenLine: StaticString = "{\"model\":\"sim\",\"message\":{\"role\":\"assist\n"

  private static func opening(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"model\":\"")
    buffer.writeBytes(answer.model)
    buffer.writeStaticString("\",\"created_at\":\"")
    buffer.writeString(WallClock.rfc3339(answer.created))
    buffer.writeStaticString("\",")
  }

  private static func toolCalls(
    _ answer: Answer, _ range: Range<Int>, into buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString(",\"tool_calls\":[")
    for index in range {
      let call = answer.toolCalls[index]
      if index > range.lowerBound { buffer.writeStaticString(",") }
      buffer.writeStaticString("{\"id\":\"call_")
      buffer.writeHex(call.id)
      buffer.writeStaticString("\",\"function\":{\"index\":")
      buffer.writeDecimal(index)
      buffer.writeStaticString(",\"name\":\"")
      buffer.writeBytes(call.name)
      buffer.writeStaticString("\",\"arguments\":")
      buffer.writeBytes(call.arguments)
      buffer.writeStaticString("}}")
    }
    buffer.writeStaticString("]")
  }

  private static func end(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(",\"done\":true,\"done_reason\":\"")
    buffer.writeBytes(answer.finish)
    buffer.writeStaticString(
      "\",\"total_duration\":2000000,\"load_duration\":1000,\"prompt_eval_count\":")
    buffer.writeDecimal(answer.usage.input)
    buffer.writeStaticString(",\"prompt_eval_duration\":500000,\"eval_count\":")
    buffer.writeDecimal(answer.usage.output)
    buffer.writeStaticString(",\"eval_duration\":1500000}")
  }
}
