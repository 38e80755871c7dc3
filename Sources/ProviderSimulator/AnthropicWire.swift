import NIOCore

/// Bodies and stream events of Anthropic's Messages, as read by the official SDK.
enum AnthropicWire {
  /// Everything of a whole answer before its text; `tail` is what follows.
  static func head(_ answer: Answer, into buffer: inout ByteBuffer) {
    opening(answer, into: &buffer)
    buffer.writeStaticString("[")
    if !answer.thinking.isEmpty {
      buffer.writeStaticString("{\"type\":\"thinking\",\"thinking\":\"")
      buffer.writeBytes(answer.thinking)
      buffer.writeStaticString("\",\"signature\":\"c2ltdWxhdG9y\"}")
      if hasText(answer) || !answer.toolCalls.isEmpty { buffer.writeStaticString(",") }
    }
    if hasText(answer) { buffer.writeStaticString("{\"type\":\"text\",\"text\":\"") }
  }

  static func tail(_ answer: Answer, into buffer: inout ByteBuffer) {
    if hasText(answer) {
      buffer.writeStaticString("\"}")
      if !answer.toolCalls.isEmpty { buffer.writeStaticString(",") }
    }
    for (index, call) in answer.toolCalls.enumerated() {
      if index > 0 { buffer.writeStaticString(",") }
      toolUse(call, input: call.arguments, into: &buffer)
    }
    buffer.writeStaticString("],")
    stop(answer, into: &buffer)
    buffer.writeStaticString(",\"usage\":")
    usage(answer.usage, output: answer.usage.output, tier: answer.serviceTier, into: &buffer)
    buffer.writeStaticString("}")
  }

  static func hasText(_ answer: Answer) -> Bool {
    answer.toolCalls.isEmpty || answer.text.count > 0
  }

  private static func opening(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"id\":\"msg_")
    buffer.writeHex(answer.id)
    buffer.writeStaticString("\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"")
    buffer.writeBytes(answer.model)
    buffer.writeStaticString("\",\"content\":")
  }

  private static func toolUse(
    _ call: Answer.ToolCall, input: [UInt8], into buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString("{\"type\":\"tool_use\",\"id\":\"toolu_")
    buffer.writeHex(call.id)
    buffer.writeStaticString("\",\"name\":\"")
    buffer.writeBytes(call.name)
    buffer.writeStaticString("\",\"input\":")
    buffer.writeBytes(input)
    buffer.writeStaticString("}")
  }

  private static func stop(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("\"stop_reason\":\"")
    buffer.writeBytes(answer.finish)
    buffer.writeStaticString("\",\"stop_sequence\":")
    if let sequence = answer.stopSequence {
      buffer.writeStaticString("\"")
      buffer.writeBytes(sequence)
      buffer.writeStaticString("\"")
    } else {
      buffer.writeStaticString("null")
    }
  }

  private static func usage(
    _ usage: TokenUsage, output: Int, tier: [UInt8], into buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString("{\"input_tokens\":")
    buffer.writeDecimal(usage.input)
    buffer.writeStaticString(",\"cache_creation_input_tokens\":")
    buffer.writeDecimal(usage.write5m + usage.write1h)
    buffer.writeStaticString(",\"cache_read_input_tokens\":")
    buffer.writeDecimal(usage.cached)
    buffer.writeStaticString(",\"cache_creation\":{\"ephemeral_5m_input_tokens\":")
    buffer.writeDecimal(usage.write5m)
    buffer.writeStaticString(",\"ephemeral_1h_input_tokens\":")
    buffer.writeDecimal(usage.write1h)
    buffer.writeStaticString("},\"output_tokens\":")
    buffer.writeDecimal(output)
    thinkingTokens(usage, into: &buffer)
    buffer.writeStaticString(",\"server_tool_use\":null,\"service_tier\":\"")
    buffer.writeBytes(tier)
    buffer.writeStaticString("\"}")
  }

  private static func thinkingTokens(_ usage: TokenUsage, into buffer: inout ByteBuffer) {
    guard usage.reasoning > 0 else { return }
    buffer.writeStaticString(",\"output_tokens_details\":{\"thinking_tokens\":")
    buffer.writeDecimal(usage.reasoning)
    buffer.writeStaticString("}")
  }
}

// MARK: - Streaming

extension AnthropicWire {
  static func messageStart(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(
      "event: message_start\ndata: {\"type\":\"message_start\",\"message\":")
    opening(answer, into: &buffer)
    buffer.writeStaticString("[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":")
    var atStart = answer.usage
    atStart.reasoning = 0
    usage(atStart, output: 1, tier: answer.serviceTier, into: &buffer)
    buffer.writeStaticString("}}\n\n")
  }

  static func ping(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("event: ping\ndata: {\"type\": \"ping\"}\n\n")
  }

  static func blockStart(
    index: Int, into buffer: inout ByteBuffer, block: (inout ByteBuffer) -> Void
  ) {
    buffer.writeStaticString(
      "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":")
    buffer.writeDecimal(index)
    buffer.writeStaticString(",\"content_block\":")
    block(&buffer)
    buffer.writeStaticString("}\n\n")
  }

  static func toolBlock(_ call: Answer.ToolCall, into buffer: inout ByteBuffer) {
    toolUse(call, input: Array("{}".utf8), into: &buffer)
  }

  /// `delta` writes the delta object.
  static func blockDelta(
    index: Int, into buffer: inout ByteBuffer, delta: (inout ByteBuffer) -> Void
  ) {
    buffer.writeStaticString(
      "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":")
    buffer.writeDecimal(index)
    buffer.writeStaticString(",\"delta\":{")
    delta(&buffer)
    buffer.writeStaticString("}}\n\n")
  }

  static func blockStop(index: Int, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(
      "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":")
    buffer.writeDecimal(index)
    buffer.writeStaticString("}\n\n")
  }

  /// Usage here is cumulative and repeats the input classes of `message_start`.
  static func messageDelta(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{")
    stop(answer, into: &buffer)
    buffer.writeStaticString("},\"usage\":{\"input_tokens\":")
    buffer.writeDecimal(answer.usage.input)
    buffer.writeStaticString(",\"cache_creation_input_tokens\":")
    buffer.writeDecimal(answer.usage.write5m + answer.usage.write1h)
    buffer.writeStaticString(",\"cache_read_input_tokens\":")
    buffer.writeDecimal(answer.usage.cached)
    buffer.writeStaticString(",\"output_tokens\":")
    buffer.writeDecimal(answer.usage.output)
    thinkingTokens(answer.usage, into: &buffer)
    buffer.writeStaticString("}}\n\n")
  }

  static func messageStop(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
  }
}
