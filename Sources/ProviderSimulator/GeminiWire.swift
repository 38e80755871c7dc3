import NIOCore

/// Bodies and stream events of Gemini's `generateContent`, as read by the official SDK.
enum GeminiWire {
  /// Everything of a whole answer before its text; `tail` is what follows.
  static func head(_ answer: Answer, into buffer: inout ByteBuffer) {
    if isBlocked(answer) { return refusal(answer, into: &buffer) }
    buffer.writeStaticString("{\"candidates\":[{\"content\":{\"parts\":[")
    if !answer.thinking.isEmpty {
      thought(answer, into: &buffer)
      if hasText(answer) || !answer.toolCalls.isEmpty { buffer.writeStaticString(",") }
    }
    if hasText(answer) { buffer.writeStaticString("{\"text\":\"") }
  }

  static func tail(_ answer: Answer, into buffer: inout ByteBuffer) {
    if isBlocked(answer) { return }
    if hasText(answer) {
      buffer.writeStaticString("\"}")
      if !answer.toolCalls.isEmpty { buffer.writeStaticString(",") }
    }
    for (index, call) in answer.toolCalls.enumerated() {
      if index > 0 { buffer.writeStaticString(",") }
      functionCall(call, isFirst: index == 0, into: &buffer)
    }
    buffer.writeStaticString("],\"role\":\"model\"}")
    finish(answer, into: &buffer)
    buffer.writeStaticString("}]")
    closing(answer, counted: true, into: &buffer)
  }

  static func hasText(_ answer: Answer) -> Bool {
    answer.toolCalls.isEmpty || answer.text.count > 0
  }

  /// The `finish` by which a simulated answer is the refusal of the prompt.
  static let blocked = "blocked_prompt"

  static func isBlocked(_ answer: Answer) -> Bool { answer.finish.elementsEqual(blocked.utf8) }

  private static func refusal(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"promptFeedback\":{\"blockReason\":\"SAFETY\"}")
    closing(answer, counted: false, into: &buffer)
  }

  private static func thought(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"text\":\"")
    buffer.writeBytes(answer.thinking)
    buffer.writeStaticString("\",\"thought\":true}")
  }

  private static func functionCall(
    _ call: Answer.ToolCall, isFirst: Bool, into buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString("{\"functionCall\":{\"id\":\"")
    buffer.writeHex(call.id)
    buffer.writeStaticString("\",\"name\":\"")
    buffer.writeBytes(call.name)
    buffer.writeStaticString("\",\"args\":")
    buffer.writeBytes(call.arguments)
    buffer.writeStaticString("}")
    // Of parallel calls the first carries the signature.
    if isFirst { buffer.writeStaticString(",\"thoughtSignature\":\"c2ltdWxhdG9y\"") }
    buffer.writeStaticString("}")
  }

  private static func finish(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(",\"finishReason\":\"")
    buffer.writeBytes(answer.finish)
    buffer.writeStaticString("\",\"index\":0")
  }

  /// What stands after the candidates. `counted`: with the output; a count of zero is left out.
  private static func closing(
    _ answer: Answer, counted: Bool, into buffer: inout ByteBuffer
  ) {
    buffer.writeStaticString(",")
    usage(answer.usage, counted: counted, tier: answer.serviceTier, into: &buffer)
    buffer.writeStaticString(",\"modelVersion\":\"")
    buffer.writeBytes(answer.model)
    buffer.writeStaticString("\",\"responseId\":\"")
    buffer.writeHex(answer.id)
    buffer.writeStaticString("\"}")
  }

  /// `input` includes what was cached; `output` includes the thoughts, which the wire counts apart.
  static func usage(
    _ usage: TokenUsage, counted: Bool, tier: [UInt8], into buffer: inout ByteBuffer
  ) {
    let output = counted ? usage.output : 0
    let thoughts = counted ? min(usage.reasoning, output) : 0
    buffer.writeStaticString("\"usageMetadata\":{\"promptTokenCount\":")
    buffer.writeDecimal(usage.input)
    if usage.cached > 0 {
      buffer.writeStaticString(",\"cachedContentTokenCount\":")
      buffer.writeDecimal(usage.cached)
    }
    if output > thoughts {
      buffer.writeStaticString(",\"candidatesTokenCount\":")
      buffer.writeDecimal(output - thoughts)
    }
    if thoughts > 0 {
      buffer.writeStaticString(",\"thoughtsTokenCount\":")
      buffer.writeDecimal(thoughts)
    }
    buffer.writeStaticString(",\"totalTokenCount\":")
    buffer.writeDecimal(usage.input + output)
    buffer.writeStaticString(",\"promptTokensDetails\":[{\"modality\":\"TEXT\",\"tokenCount\":")
    buffer.writeDecimal(usage.input)
    buffer.writeStaticString("}]")
    if !tier.isEmpty {
      buffer.writeStaticString(",\"serviceTier\":\"")
      buffer.writeBytes(tier)
      buffer.writeStaticString("\"")
    }
    buffer.writeStaticString("}")
  }
}

// MARK: - Streaming

extension GeminiWire {
  private static func chunk(
    _ answer: Answer, into buffer: inout ByteBuffer, part: (inout ByteBuffer) -> Void
  ) {
    buffer.writeStaticString("data: {\"candidates\":[{\"content\":{\"parts\":[")
    part(&buffer)
    buffer.writeStaticString("],\"role\":\"model\"},\"index\":0}]")
    closing(answer, counted: false, into: &buffer)
    buffer.writeStaticString("\r\n\r\n")
  }

  static func thoughtChunk(_ answer: Answer, into buffer: inout ByteBuffer) {
    chunk(answer, into: &buffer) { thought(answer, into: &$0) }
  }

  static func textChunk(_ answer: Answer, _ range: Range<Int>, into buffer: inout ByteBuffer) {
    chunk(answer, into: &buffer) {
      $0.writeStaticString("{\"text\":\"")
      answer.text.write(range, to: &$0)
      $0.writeStaticString("\"}")
    }
  }

  /// Calls come whole, also in streams.
  static func callChunk(_ answer: Answer, _ index: Int, into buffer: inout ByteBuffer) {
    chunk(answer, into: &buffer) {
      functionCall(answer.toolCalls[index], isFirst: index == 0, into: &$0)
    }
  }

  /// The last chunk, with an empty text, the reason and the counts.
  static func lastChunk(_ answer: Answer, into buffer: inout ByteBuffer) {
    if isBlocked(answer) {
      buffer.writeStaticString("data: ")
      refusal(answer, into: &buffer)
    } else {
      buffer.writeStaticString(
        "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\"}],\"role\":\"model\"}")
      finish(answer, into: &buffer)
      buffer.writeStaticString("}]")
      closing(answer, counted: true, into: &buffer)
    }
    buffer.writeStaticString("\r\n\r\n")
  }
}
