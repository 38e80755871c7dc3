import NIOCore

/// Bodies and stream events of OpenAI's Chat Completions, as read by the official SDK.
enum OpenAIWire {
  /// Everything of a whole answer before its text; `tail` is what follows.
  static func head(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"id\":\"chatcmpl-")
    buffer.writeHex(answer.id)
    buffer.writeStaticString("\",\"object\":\"chat.completion\",\"created\":")
    buffer.writeDecimal(answer.created)
    buffer.writeStaticString(",\"model\":\"")
    buffer.writeBytes(answer.model)
    buffer.writeStaticString("\",\"choices\":[")
    choiceHead(answer, index: 0, into: &buffer)
  }

  static func tail(_ answer: Answer, into buffer: inout ByteBuffer) {
    choiceTail(answer, into: &buffer)
    for index in 1..<max(1, answer.choiceCount) {
      buffer.writeStaticString(",")
      choiceHead(answer, index: index, into: &buffer)
      answer.text.write(0..<answer.text.count, to: &buffer)
      choiceTail(answer, into: &buffer)
    }
    buffer.writeStaticString("],\"usage\":")
    usage(answer.usage, into: &buffer)
    buffer.writeStaticString(",\"service_tier\":\"")
    buffer.writeBytes(answer.serviceTier)
    buffer.writeStaticString("\",\"system_fingerprint\":\"fp_simulator\"}")
  }

  private static func choiceHead(_ answer: Answer, index: Int, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"index\":")
    buffer.writeDecimal(index)
    buffer.writeStaticString(",\"message\":{\"role\":\"assistant\",")
    if !answer.toolCalls.isEmpty {
      buffer.writeStaticString("\"tool_calls\":[")
      for (position, call) in answer.toolCalls.enumerated() {
        if position > 0 { buffer.writeStaticString(",") }
        buffer.writeStaticString("{\"id\":\"call_")
        buffer.writeHex(call.id)
        buffer.writeStaticString("\",\"type\":\"function\",\"function\":{\"name\":\"")
        buffer.writeBytes(call.name)
        buffer.writeStaticString("\",\"arguments\":\"")
        buffer.writeJSONEscaped(call.arguments[...])
        buffer.writeStaticString("\"}}")
      }
      buffer.writeStaticString("],")
    }
    if hasText(answer) {
      buffer.writeStaticString("\"content\":\"")
    } else {
      buffer.writeStaticString("\"content\":null")
    }
  }

  private static func choiceTail(_ answer: Answer, into buffer: inout ByteBuffer) {
    if hasText(answer) { buffer.writeStaticString("\"") }
    buffer.writeStaticString(
      ",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,\"finish_reason\":\"")
    buffer.writeBytes(answer.finish)
    buffer.writeStaticString("\"}")
  }

  /// A message that only calls tools has null content.
  private static func hasText(_ answer: Answer) -> Bool {
    answer.toolCalls.isEmpty || answer.text.count > 0
  }

  static func usage(_ usage: TokenUsage, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"prompt_tokens\":")
    buffer.writeDecimal(usage.input)
    buffer.writeStaticString(",\"completion_tokens\":")
    buffer.writeDecimal(usage.output)
    buffer.writeStaticString(",\"total_tokens\":")
    buffer.writeDecimal(usage.input + usage.output)
    buffer.writeStaticString(",\"prompt_tokens_details\":{\"cached_tokens\":")
    buffer.writeDecimal(usage.cached)
    buffer.writeStaticString(",\"cache_write_tokens\":")
    buffer.writeDecimal(usage.write5m + usage.write1h)
    buffer.writeStaticString(
      ",\"audio_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":")
    buffer.writeDecimal(usage.reasoning)
    buffer.writeStaticString(
      ",\"audio_tokens\":0,\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}")
  }
}

// MARK: - Streaming

extension OpenAIWire {
  /// A chunk around one entry of `choices`, whose delta `body` writes.
  static func chunk(
    _ answer: Answer, choice: Int, finish: Bool = false, into buffer: inout ByteBuffer,
    delta: (inout ByteBuffer) -> Void
  ) {
    opening(answer, into: &buffer)
    buffer.writeStaticString("\"choices\":[{\"index\":")
    buffer.writeDecimal(choice)
    buffer.writeStaticString(",\"delta\":{")
    let before = buffer.writerIndex
    delta(&buffer)
    let length = buffer.writerIndex - before
    buffer.writeStaticString("},\"logprobs\":null,\"finish_reason\":")
    if finish {
      buffer.writeStaticString("\"")
      buffer.writeBytes(answer.finish)
      buffer.writeStaticString("\"")
    } else {
      buffer.writeStaticString("null")
    }
    buffer.writeStaticString("}]")
    if answer.includeUsage { buffer.writeStaticString(",\"usage\":null") }
    if answer.obfuscates { obfuscation(hiding: length, into: &buffer) }
    buffer.writeStaticString("}\n\n")
  }

  private static func opening(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("data: {\"id\":\"chatcmpl-")
    buffer.writeHex(answer.id)
    buffer.writeStaticString("\",\"object\":\"chat.completion.chunk\",\"created\":")
    buffer.writeDecimal(answer.created)
    buffer.writeStaticString(",\"model\":\"")
    buffer.writeBytes(answer.model)
    buffer.writeStaticString("\",\"service_tier\":\"")
    buffer.writeBytes(answer.serviceTier)
    buffer.writeStaticString("\",\"system_fingerprint\":\"fp_simulator\",")
  }

  /// Pads chunks so that their length says less about their content, as OpenAI does by default.
  private static func obfuscation(hiding length: Int, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(",\"obfuscation\":\"")
    buffer.writeRepeatingByte(UInt8(ascii: "x"), count: 16 - length % 16)
    buffer.writeStaticString("\"")
  }

  static func toolCallStart(
    _ call: Answer.ToolCall, index: Int, into buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString("\"tool_calls\":[{\"index\":")
    buffer.writeDecimal(index)
    buffer.writeStaticString(",\"id\":\"call_")
    buffer.writeHex(call.id)
    buffer.writeStaticString("\",\"type\":\"function\",\"function\":{\"name\":\"")
    buffer.writeBytes(call.name)
    buffer.writeStaticString("\",\"arguments\":\"\"}}]")
  }

  static func toolCallArguments(
    _ fragment: ArraySlice<UInt8>, index: Int, into buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString("\"tool_calls\":[{\"index\":")
    buffer.writeDecimal(index)
    buffer.writeStaticString(",\"function\":{\"arguments\":\"")
    buffer.writeJSONEscaped(fragment)
    buffer.writeStaticString("\"}}]")
  }

  /// The extra last chunk that `stream_options.include_usage` asks for.
  static func usageChunk(_ answer: Answer, into buffer: inout ByteBuffer) {
    opening(answer, into: &buffer)
    buffer.writeStaticString("\"choices\":[],\"usage\":")
    usage(answer.usage, into: &buffer)
    if answer.obfuscates { obfuscation(hiding: 0, into: &buffer) }
    buffer.writeStaticString("}\n\n")
  }

  static func done(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("data: [DONE]\n\n")
  }
}
