import NIOCore

/// Bodies and stream events of OpenAI's Chat Completions and Completions, as read by the official SDK,
/// and as other hosts write them.
enum OpenAIWire {
  /// Everything of a whole answer before its text; `tail` is what follows.
  static func head(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{")
    identity(answer, chunk: false, into: &buffer)
    if answer.host == .together { buffer.writeStaticString("\"prompt\":[],") }
    buffer.writeStaticString("\"choices\":[")
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
    usage(answer, into: &buffer)
    if answer.host == .groq { groqMember(answer, usage: false, into: &buffer) }
    buffer.writeStaticString(",\"service_tier\":\"")
    buffer.writeBytes(answer.serviceTier)
    buffer.writeStaticString("\",\"system_fingerprint\":\"fp_simulator\"}")
  }

  /// Id, object, time and model, with a comma behind them.
  private static func identity(_ answer: Answer, chunk: Bool, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(answer.isCompletion ? "\"id\":\"cmpl-" : "\"id\":\"chatcmpl-")
    buffer.writeHex(answer.id)
    buffer.writeStaticString("\",\"object\":\"")
    if answer.isCompletion {
      switch (answer.host, chunk) {
      case (.together, true): buffer.writeStaticString("completion.chunk")
      case (.together, false): buffer.writeStaticString("text.completion")
      default: buffer.writeStaticString("text_completion")
      }
    } else {
      buffer.writeStaticString(chunk ? "chat.completion.chunk" : "chat.completion")
    }
    buffer.writeStaticString("\",\"created\":")
    buffer.writeDecimal(answer.created)
    buffer.writeStaticString(",\"model\":\"")
    buffer.writeBytes(answer.model)
    buffer.writeStaticString("\",")
    if answer.host == .openrouter { buffer.writeStaticString("\"provider\":\"Simulator\",") }
  }

  private static func choiceHead(_ answer: Answer, index: Int, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"index\":")
    buffer.writeDecimal(index)
    if answer.isCompletion {
      buffer.writeStaticString(",\"text\":\"")
      return
    }
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
    if !answer.thinking.isEmpty {
      reasoning(answer, into: &buffer)
      buffer.writeStaticString(",")
    }
    if hasText(answer) {
      buffer.writeStaticString("\"content\":\"")
    } else {
      buffer.writeStaticString("\"content\":null")
    }
  }

  private static func choiceTail(_ answer: Answer, into buffer: inout ByteBuffer) {
    if answer.isCompletion {
      buffer.writeStaticString("\"")
    } else {
      if hasText(answer) { buffer.writeStaticString("\"") }
      buffer.writeStaticString(",\"refusal\":null,\"annotations\":[]}")
    }
    buffer.writeStaticString(",\"logprobs\":")
    if answer.logprobs, answer.text.count > 0 {
      logprobs(answer, 0..<answer.text.count, into: &buffer)
    } else {
      buffer.writeStaticString("null")
    }
    buffer.writeStaticString(",\"finish_reason\":\"")
    buffer.writeBytes(answer.finish)
    buffer.writeStaticString("\"}")
  }

  /// A message that only calls tools has null content.
  private static func hasText(_ answer: Answer) -> Bool {
    answer.toolCalls.isEmpty || answer.text.count > 0
  }

  /// The member that holds reasoning, at hosts that show it.
  static func reasoning(_ answer: Answer, into buffer: inout ByteBuffer) {
    guard let member = answer.host.reasoningMember else { return }
    buffer.writeStaticString("\"")
    buffer.writeStaticString(member)
    buffer.writeStaticString("\":\"")
    buffer.writeBytes(answer.thinking)
    buffer.writeStaticString("\"")
  }

  /// Log probabilities of the tokens in a range of the text: all the same, and cheap to check.
  private static func logprobs(
    _ answer: Answer, _ range: Range<Int>, into buffer: inout ByteBuffer
  ) {
    var pieces: [Range<Int>] = []
    var at = range.lowerBound
    while at < range.upperBound {
      let end = min(answer.text.deltaEnd(from: at), range.upperBound)
      guard end > at else { break }
      pieces.append(at..<end)
      at = end
    }
    let isList = answer.isCompletion || answer.host == .together
    buffer.writeStaticString(isList ? "{\"tokens\":[" : "{\"content\":[")
    for (number, piece) in pieces.enumerated() {
      if number > 0 { buffer.writeStaticString(",") }
      buffer.writeStaticString(isList ? "\"" : "{\"token\":\"")
      answer.text.write(piece, to: &buffer)
      buffer.writeStaticString(
        isList ? "\"" : "\",\"logprob\":-0.25,\"bytes\":null,\"top_logprobs\":[]}")
    }
    if isList {
      buffer.writeStaticString("],\"token_logprobs\":[")
      for number in pieces.indices {
        buffer.writeStaticString(number > 0 ? ",-0.25" : "-0.25")
      }
      buffer.writeStaticString("]}")
    } else {
      buffer.writeStaticString("],\"refusal\":null}")
    }
  }
}

// MARK: - Usage

extension OpenAIWire {
  static func usage(_ answer: Answer, into buffer: inout ByteBuffer) {
    let usage = answer.usage
    buffer.writeStaticString("{\"prompt_tokens\":")
    buffer.writeDecimal(usage.input)
    buffer.writeStaticString(",\"completion_tokens\":")
    buffer.writeDecimal(usage.output)
    buffer.writeStaticString(",\"total_tokens\":")
    buffer.writeDecimal(usage.input + usage.output)
    switch answer.host {
    case .openAI, .azure, .cohere: details(usage, into: &buffer)
    case .deepseek:
      buffer.writeStaticString(",\"prompt_cache_hit_tokens\":")
      buffer.writeDecimal(usage.cached)
      buffer.writeStaticString(",\"prompt_cache_miss_tokens\":")
      buffer.writeDecimal(usage.input - usage.cached)
      reasoningDetails(usage, into: &buffer)
    case .groq:
      buffer.writeStaticString(
        """
        ,"queue_time":0.001,"prompt_time":0.002,"completion_time":0.003,"total_time":0.005
        """)
      cacheDetails(usage, into: &buffer)
      reasoningDetails(usage, into: &buffer)
    case .openrouter:
      cacheDetails(usage, into: &buffer)
      reasoningDetails(usage, into: &buffer)
      // A millionth of a credit for each token of the input, two for each of the output.
      let millionths = usage.input + 2 * usage.output
      let digits = String(millionths % 1_000_000)
      buffer.writeStaticString(",\"cost\":")
      buffer.writeDecimal(millionths / 1_000_000)
      buffer.writeStaticString(".")
      buffer.writeRepeatingByte(UInt8(ascii: "0"), count: 6 - digits.utf8.count)
      buffer.writeString(digits)
    case .vllm where usage.cached == 0:
      buffer.writeStaticString(",\"prompt_tokens_details\":null")
    case .vllm, .mistral, .together: cacheDetails(usage, into: &buffer)
    }
    buffer.writeStaticString("}")
  }

  private static func details(_ usage: TokenUsage, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(",\"prompt_tokens_details\":{\"cached_tokens\":")
    buffer.writeDecimal(usage.cached)
    buffer.writeStaticString(",\"cache_write_tokens\":")
    buffer.writeDecimal(usage.write5m + usage.write1h)
    buffer.writeStaticString(
      ",\"audio_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":")
    buffer.writeDecimal(usage.reasoning)
    buffer.writeStaticString(
      ",\"audio_tokens\":0,\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}")
  }

  private static func cacheDetails(_ usage: TokenUsage, into buffer: inout ByteBuffer) {
    guard usage.cached > 0 else { return }
    buffer.writeStaticString(",\"prompt_tokens_details\":{\"cached_tokens\":")
    buffer.writeDecimal(usage.cached)
    buffer.writeStaticString("}")
  }

  private static func reasoningDetails(_ usage: TokenUsage, into buffer: inout ByteBuffer) {
    guard usage.reasoning > 0 else { return }
    buffer.writeStaticString(",\"completion_tokens_details\":{\"reasoning_tokens\":")
    buffer.writeDecimal(usage.reasoning)
    buffer.writeStaticString("}")
  }
}

// MARK: - Streaming

extension OpenAIWire {
  /// A chunk around one entry of `choices`, whose delta `body` writes. `tokens`: the part of the text that
  /// is in it.
  static func chunk(
    _ answer: Answer, choice: Int, finish: Bool = false, tokens: Range<Int>? = nil,
    into buffer: inout ByteBuffer, delta: (inout ByteBuffer) -> Void
  ) {
    opening(answer, into: &buffer)
    buffer.writeStaticString("\"choices\":[{\"index\":")
    buffer.writeDecimal(choice)
    buffer.writeStaticString(answer.isCompletion ? "," : ",\"delta\":{")
    if answer.host == .together, !answer.isCompletion {
      buffer.writeStaticString("\"role\":\"assistant\"")
      if !finish { buffer.writeStaticString(",") }
    }
    let before = buffer.writerIndex
    delta(&buffer)
    let length = buffer.writerIndex - before
    buffer.writeStaticString(answer.isCompletion ? ",\"logprobs\":" : "},\"logprobs\":")
    if answer.logprobs, let tokens, answer.host != .together {
      logprobs(answer, tokens, into: &buffer)
    } else {
      buffer.writeStaticString("null")
    }
    buffer.writeStaticString(",\"finish_reason\":")
    if finish {
      buffer.writeStaticString("\"")
      buffer.writeBytes(answer.finish)
      buffer.writeStaticString("\"")
    } else {
      buffer.writeStaticString("null")
    }
    buffer.writeStaticString("}]")
    ending(answer, isLast: finish && choice + 1 == answer.choiceCount, into: &buffer)
    if answer.obfuscates { obfuscation(hiding: length, into: &buffer) }
    buffer.writeStaticString("}\n\n")
  }

  /// What a chunk has behind its choices.
  private static func ending(_ answer: Answer, isLast: Bool, into buffer: inout ByteBuffer) {
    if answer.isCompletion, answer.host == .together {
      buffer.writeStaticString(
        ",\"token\":{\"id\":1,\"text\":\"\",\"logprob\":-0.25,\"special\":false}")
    }
    switch answer.host {
    case .groq:
      if isLast { groqMember(answer, usage: true, into: &buffer) }
    case .mistral, .openrouter, .together:
      guard isLast else { return }
      buffer.writeStaticString(",\"usage\":")
      usage(answer, into: &buffer)
    default:
      if answer.includeUsage { buffer.writeStaticString(",\"usage\":null") }
    }
  }

  private static func groqMember(_ answer: Answer, usage: Bool, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(",\"x_groq\":{\"id\":\"req_")
    buffer.writeHex(answer.id)
    buffer.writeStaticString("\"")
    if usage {
      buffer.writeStaticString(",\"usage\":")
      Self.usage(answer, into: &buffer)
    }
    buffer.writeStaticString("}")
  }

  private static func opening(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("data: {")
    identity(answer, chunk: true, into: &buffer)
    buffer.writeStaticString("\"service_tier\":\"")
    buffer.writeBytes(answer.serviceTier)
    buffer.writeStaticString("\",\"system_fingerprint\":\"fp_simulator\",")
  }

  /// Pads chunks so that their length says less about their content, as OpenAI does by default.
  private static func obfuscation(hiding length: Int, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(",\"obfuscation\":\"")
    buffer.writeRepeatingByte(UInt8(ascii: "x"), count: 16 - length % 16)
    buffer.writeStaticString("\"")
  }

  /// The comments by which some hosts keep a connection alive.
  static func comment(_ answer: Answer, into buffer: inout ByteBuffer) {
    switch answer.host {
    case .openrouter: buffer.writeStaticString(": OPENROUTER PROCESSING\n\n")
    case .deepseek: buffer.writeStaticString(": keep-alive\n\n")
    default: break
    }
  }

  /// Azure's first chunk, which has no choice and no model.
  static func promptFilter(_ answer: Answer, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(
      """
      data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":\
      [{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}


      """)
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
    usage(answer, into: &buffer)
    if answer.obfuscates { obfuscation(hiding: 0, into: &buffer) }
    buffer.writeStaticString("}\n\n")
  }

  static func done(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("data: [DONE]\n\n")
  }
}
