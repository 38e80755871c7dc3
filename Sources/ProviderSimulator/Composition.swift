import NIOCore

extension Responder {
  /// Writes the answer to a chat request.
  func compose(
    _ chat: ChatRequest, _ request: IncomingRequest, _ context: Context,
    _ directives: Directives, model: Substring
  ) -> Answer {
    let question = chat.question.map { Self.text($0, in: request.body) } ?? ""
    let calls = toolCalls(chat, context, directives, question: question)
    let isBlocked = context.wire == .gemini && directives.finish == GeminiWire.blocked
    var text =
      isBlocked
      ? AnswerText(escaped: [])
      : answerText(chat, request, directives, question: question, callsTools: !calls.isEmpty)
    var finish = calls.isEmpty ? "stop" : "tool_calls"
    var output = text.tokenCount
    // A length given in bytes holds whatever the request allows.
    if let limit = chat.maxTokens, output > limit, directives.bigBytes == nil {
      text = text.cut(toTokens: limit)
      output = text.tokenCount
      finish = "length"
    }
    for call in calls { output += max(1, call.arguments.count / 4) }
    output *= chat.choiceCount

    var usage = TokenUsage(
      input: TokenEstimate.tokens(bytes: request.body.readableBytes), output: max(1, output))
    let thinks =
      context.wire == .openAI
      ? context.host.reasoningMember != nil && directives.usage.reasoning ?? 0 > 0 : chat.thinks
    let showsThoughts = chat.showsThoughts || context.wire != .gemini
    let thinking = thinks && showsThoughts ? Self.thought : []
    usage.reasoning = directives.usage.reasoning ?? (thinks ? Self.thoughtTokens : 0)
    usage.output += usage.reasoning
    if isBlocked { usage.output = 0 }
    usage.apply(directives.usage)

    let usualTier = context.host == .groq ? "on_demand" : Self.usualTier(context.wire)
    let tier = directives.serviceTier ?? usualTier
    var answer = Answer(
      id: context.requestID, created: context.now.second,
      model: JSONText.escaped(directives.reportedModel ?? String(model)), text: text,
      toolCalls: calls, thinking: thinking,
      finish: JSONText.escaped(
        Self.finish(directives.finish ?? finish, context.wire)),
      usage: usage, serviceTier: JSONText.escaped(tier), choiceCount: chat.choiceCount,
      includeUsage: chat.includeUsage, obfuscates: chat.obfuscates)
    answer.host = context.host
    answer.isCompletion = context.endpoint == .completions
    if case .modelServer(let server) = context.endpoint {
      answer.isCompletion = server.task != .chat
    }
    answer.logprobs = chat.logprobs
    if directives.finish == "stop_sequence" { answer.stopSequence = Array("END".utf8) }
    return answer
  }

  /// Gemini names a tier only where it is not the usual one; others know none.
  private static func usualTier(_ wire: Wire) -> String {
    switch wire {
    case .openAI: "default"
    case .anthropic: "standard"
    case .gemini, .ollama, .tgi, .tei, .huggingFace, .replicate: ""
    }
  }

  private static let thought = Array("The simulator does not think; this block only looks so.".utf8)
  private static let thoughtTokens = 12

  /// Text of the request, of which only a window is looked at.
  private static func text(_ range: Range<Int>, in body: ByteBuffer) -> String {
    body.withUnsafeReadableBytes { bytes in
      let raw = UnsafeRawBufferPointer(rebasing: bytes[range])
      guard raw.count > Gist.window else { return JSONText.unescaped(raw) }
      let start = UnsafeRawBufferPointer(rebasing: raw[..<Gist.window])
      let end = UnsafeRawBufferPointer(rebasing: raw[(raw.count - Gist.window / 16)...])
      return JSONText.unescaped(start) + "\n\n" + JSONText.unescaped(end)
    }
  }

  private func answerText(
    _ chat: ChatRequest, _ request: IncomingRequest, _ directives: Directives, question: String,
    callsTools: Bool
  ) -> AnswerText {
    var escaped: [UInt8]
    if let answer = directives.answer {
      escaped = answer
    } else if callsTools {
      escaped = []
    } else {
      // Half the window for all context together: an answer must not cost more than a request.
      let context = chat.context.suffix(4).map { Self.text($0, in: request.body) }
      let gist = Gist.answer(question: question, context: context)
      escaped = JSONText.escaped(gist)
      if chat.wantsJSON {
        escaped = JSONText.escaped("{\"answer\": \"\(String(decoding: escaped, as: UTF8.self))\"}")
      }
    }
    if directives.loneSurrogate { escaped += Array(" \\ud83d and \\udc26 stand alone".utf8) }
    if directives.nulCharacter { escaped += Array(" nul\\u0000nul".utf8) }
    if let bytes = directives.bigBytes { return AnswerText(escaped: escaped, bytes: bytes) }
    if let tokens = directives.tokenCount { return AnswerText(escaped: escaped, tokens: tokens) }
    return AnswerText(escaped: escaped)
  }

  /// Calls that directives or `tool_choice` ask for. A conversation that ends with a tool's result
  /// is answered in text, so that an agent's loop ends.
  private func toolCalls(
    _ chat: ChatRequest, _ context: Context, _ directives: Directives, question: String
  ) -> [Answer.ToolCall] {
    guard let first = chat.toolNames.first, chat.toolChoice != .none, !chat.endsWithToolResult
    else { return [] }
    var names = directives.tools.map { $0 == "*" ? first : $0 }
    if names.isEmpty {
      switch chat.toolChoice {
      case .any: names = [first]
      case .named(let name): names = [name]
      case .free, .none: return []
      }
    }
    let quote = Gist.excerpt(question)
    let arguments =
      directives.toolArguments.map { Array($0.utf8) }
      ?? Array("{\"query\":\"".utf8) + JSONText.escaped(quote) + Array("\"}".utf8)
    return names.enumerated().map { index, name in
      Answer.ToolCall(
        id: Hash64.mixed(context.requestID &+ UInt64(index) &+ 1), name: JSONText.escaped(name),
        arguments: arguments)
    }
  }

  /// A stop reason in the provider's own spelling; what another provider says is translated.
  static func finish(_ reason: String, _ wire: Wire) -> String {
    let pairs = [
      ("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"),
      ("content_filter", "refusal"),
    ]
    switch wire {
    case .openAI, .replicate: return pairs.first { $0.1 == reason }?.0 ?? reason
    case .anthropic: return pairs.first { $0.0 == reason }?.1 ?? reason
    case .gemini:
      switch reason {
      case "stop", "end_turn", "tool_calls", "tool_use": return "STOP"
      case "length", "max_tokens": return "MAX_TOKENS"
      case "content_filter", "refusal": return "SAFETY"
      default: return reason
      }
    case .ollama, .tgi, .tei, .huggingFace:
      switch reason {
      case "length", "max_tokens": return "length"
      case "stop", "end_turn", "tool_calls", "tool_use":
        return wire == .ollama ? "stop" : "eos_token"
      default: return reason
      }
    }
  }
}
