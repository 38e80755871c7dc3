import NIOCore
import NIOHTTP1

extension Responder {
  /// Chat Completions, Messages and generateContent.
  func chat(
    _ request: IncomingRequest, _ context: Context,
    _ read: (UnsafeRawBufferPointer) throws(JSONScanner.Malformed) -> ChatRequest = {
      (bytes) throws(JSONScanner.Malformed) in try ChatRequest(bytes)
    }
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let chat = try parse(request, context, read)
    guard let model = chat.model, !model.isEmpty else {
      throw missing("model", context.wire)
    }
    context.entry.model = model
    context.entry.isStream = chat.stream
    try check(chat, request, context)
    let (directives, name) = try directives(&context, request, model: model)
    if let exchange = faultyExchange(context, directives, isStream: chat.stream) {
      return exchange
    }
    let answer = compose(chat, request, context, directives, model: name)
    var exchange =
      chat.stream
      ? streamed(answer, context, directives) : whole(answer, context, directives)
    exchange.entry?.status = 200
    exchange.usage = answer.usage
    exchange.reportsUsage =
      !chat.stream || context.wire != .openAI || answer.includeUsage
      || context.host.alwaysReportsUsage
    return exchange
  }

  func parse<Request>(
    _ request: IncomingRequest, _ context: Context,
    _ read: (UnsafeRawBufferPointer) throws(JSONScanner.Malformed) -> Request
  ) throws(ProviderFailure) -> Request {
    let result = request.body.withUnsafeReadableBytes { bytes in
      Result { () throws(JSONScanner.Malformed) -> Request in try read(bytes) }
    }
    switch result {
    case .success(let parsed): return parsed
    case .failure(let malformed):
      throw ProviderFailure(
        context.wire, status: 400,
        message: "We could not parse the JSON body of your request (byte \(malformed.offset)).")
    }
  }

  func missing(_ name: String, _ wire: Wire) -> ProviderFailure {
    switch wire {
    case .openAI:
      ProviderFailure(
        wire, status: 400, message: "Missing required parameter: '\(name)'.", param: name,
        code: "missing_required_parameter")
    case .anthropic: ProviderFailure(wire, status: 400, message: "\(name): Field required")
    case .gemini: ProviderFailure(wire, status: 400, message: "* \(name) is not specified")
    case .ollama: ProviderFailure(wire, status: 400, message: "\(name) is required")
    case .tgi, .tei, .huggingFace:
      ProviderFailure(wire, status: 422, message: "missing field `\(name)`")
    case .replicate: ProviderFailure(wire, status: 422, message: "- \(name) is required")
    }
  }

  private func check(
    _ chat: ChatRequest, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) {
    if context.endpoint == .completions {
      guard chat.question != nil else { throw missing("prompt", context.wire) }
    } else if !chat.hasMessages {
      throw missing(context.wire == .gemini ? "contents" : "messages", context.wire)
    }
    if chat.hasDeveloper, context.host.refusesDeveloper {
      throw ProviderFailure(
        context.wire, status: 400, message: "messages: 'developer' is not one of the roles.",
        param: "messages")
    }
    switch context.wire {
    case .openAI:
      guard (1...8).contains(chat.choiceCount) else {
        throw ProviderFailure(
          .openAI, status: 400, message: "Invalid 'n': the simulator answers 1 to 8 choices.",
          param: "n")
      }
    case .anthropic:
      guard chat.maxTokens != nil else { throw missing("max_tokens", .anthropic) }
      if let parameter = chat.samplingParameter,
        request.head.headers.first(name: "anthropic-version") == Self.versionWithoutSampling
      {
        throw ProviderFailure(
          .anthropic, status: 400, message: "\(parameter): Extra inputs are not permitted")
      }
    case .gemini:
      guard chat.choiceCount == 1 else {
        throw ProviderFailure(
          .gemini, status: 400, message: "Only one candidate can be specified in the current model")
      }
    case .ollama, .tgi, .tei, .huggingFace: break
    case .replicate: break
    }
    if let limit = chat.maxTokens, limit < 1 {
      throw ProviderFailure(
        context.wire, status: 400, message: "max_tokens: must be at least 1", param: "max_tokens")
    }
  }

  private func whole(
    _ answer: Answer, _ context: Context, _ directives: Directives
  ) -> Exchange {
    var context = context
    if context.wire == .tgi {
      context.counts = [
        ("x-prompt-tokens", answer.usage.input), ("x-generated-tokens", answer.usage.output),
      ]
    }
    var beginning = ByteBuffer()
    var end = ByteBuffer()
    context.wire.write(answer, head: &beginning, tail: &end)
    var text = answer.text
    if directives.malformed {
      end.clear()
      text = text.cut(toTokens: max(1, text.tokenCount / 2))
    }
    let length = beginning.readableBytes + text.count + end.readableBytes
    var buffer = ByteBuffer()
    buffer.reserveCapacity(1_024 + (text.count > 65_536 ? beginning.readableBytes : length))
    head(context, 200, "application/json", .length(length)).write(into: &buffer)
    buffer.writeBuffer(&beginning)
    let due = Pace(directives).whole(tokens: answer.usage.output)
    let limit = directives.cut.map { cut in
      let wanted = buffer.readableBytes + text.offset(ofToken: cut.tokens)
      return min(wanted, buffer.readableBytes + text.count + end.readableBytes - 1)
    }
    let ending = directives.cut.map { Self.ending($0.kind) } ?? ending(context)
    return Exchange(
      transmission: Transmission(
        beginning: buffer, text: text, end: end, due: due, limit: limit, drip: directives.drip,
        ending: ending),
      entry: context.entry)
  }

  private func streamed(
    _ answer: Answer, _ context: Context, _ directives: Directives
  ) -> Exchange {
    var context = context
    if !context.allowsChunks { context.keepAlive = false }
    var buffer = ByteBuffer()
    head(
      context, 200, context.wire.streamType,
      context.allowsChunks ? .chunked : .untilClose
    ).write(into: &buffer)
    return Exchange(
      transmission: Transmission(
        head: buffer, stream: EventStream(wire: context.wire, answer: answer),
        isChunked: context.allowsChunks, fault: streamFault(context, directives),
        pace: Pace(directives), drip: directives.drip, ending: ending(context)),
      entry: context.entry)
  }

  func streamFault(
    _ context: Context, _ directives: Directives
  ) -> Transmission.StreamFault? {
    if let tokens = directives.embeddedErrorAfter {
      let failure = embeddedError(context, directives)
      return .init(kind: .error(failure, requestID: context.requestID), tokens: tokens)
    }
    if directives.malformed { return .init(kind: .malformed, tokens: 2) }
    return directives.cut.map { .init(kind: .cut($0.kind), tokens: $0.tokens) }
  }

  /// Anthropic's and Gemini's token counters.
  func countTokens(
    _ request: IncomingRequest, _ context: Context,
    _ read: (UnsafeRawBufferPointer) throws(JSONScanner.Malformed) -> ChatRequest = {
      (bytes) throws(JSONScanner.Malformed) in try ChatRequest(bytes)
    }
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let chat = try parse(request, context, read)
    guard let model = chat.model, !model.isEmpty else { throw missing("model", context.wire) }
    guard chat.hasMessages else { throw missing("messages", context.wire) }
    let (directives, _) = try directives(&context, request, model: model)
    if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }
    var body = ByteBuffer()
    body.writeStaticString(
      context.wire == .gemini ? "{\"totalTokens\":" : "{\"input_tokens\":")
    body.writeDecimal(
      directives.usage.input ?? TokenEstimate.tokens(bytes: request.body.readableBytes))
    body.writeStaticString("}")
    if directives.malformed { body = Self.halved(body) }
    return bytes(context, body, directives: directives)
  }
}

extension Wire {
  /// Writes a whole answer but for its text: what stands before it, and what after.
  func write(_ answer: Answer, head: inout ByteBuffer, tail: inout ByteBuffer) {
    switch self {
    case .openAI:
      OpenAIWire.head(answer, into: &head)
      OpenAIWire.tail(answer, into: &tail)
    case .anthropic:
      AnthropicWire.head(answer, into: &head)
      AnthropicWire.tail(answer, into: &tail)
    case .gemini:
      GeminiWire.head(answer, into: &head)
      GeminiWire.tail(answer, into: &tail)
    case .ollama:
      OllamaWire.head(answer, into: &head)
      OllamaWire.tail(answer, into: &tail)
    case .tgi, .tei, .huggingFace:
      TextGenerationWire.head(self, into: &head)
      TextGenerationWire.tail(answer, self, into: &tail)
    case .replicate: break
    }
  }
}
