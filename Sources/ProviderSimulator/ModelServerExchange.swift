import NIOCore
import NIOHTTP1

extension Responder {
  /// What a server that has but one model is taken to have.
  static let servedModel = "sim-small"

  func modelServer(
    _ server: ModelServer, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    switch server.task {
    case .chat, .generate: return try generate(server, request, context)
    case .embed: return try embedTexts(server, request, context)
    case .rerank: return try rankTexts(server, request, context)
    case .classify: return try classify(server, request, context)
    case .unnamed:
      let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
        try TextTask(bytes)
      }
      let classifies = !asked.labels.isEmpty || server.model?.contains("classif") == true
      return classifies
        ? try classify(server, request, context) : try generate(server, request, context)
    case .list, .info: return describe(server, context)
    }
  }

  /// Keys as the servers want them: Hugging Face's router needs one, the others take any.
  func modelServerRefusal(_ context: Context, bearer: Substring?) -> Exchange? {
    guard bearer != "invalid", context.wire != .huggingFace || bearer != nil else {
      return fail(context, ProviderFailure(context.wire, status: 401))
    }
    return nil
  }

  private func generate(
    _ server: ModelServer, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    try chat(request, context) { bytes throws(JSONScanner.Malformed) in
      var asked = try ChatRequest(bytes)
      // Ollama streams unless it is told not to.
      if server.wire == .ollama, !asked.saysStream { asked.stream = true }
      if case .generate(let stream?) = server.task { asked.stream = stream }
      // Below 1 stands for no limit.
      if server.wire == .ollama, asked.maxTokens ?? 1 < 1 { asked.maxTokens = nil }
      if server.wire != .ollama { asked.model = server.model ?? Self.servedModel }
      if server.task != .chat { asked.hasMessages = asked.question != nil }
      return asked
    }
  }

  /// What `check` of a task has in common: texts, directives, faults, usage.
  private func prepared(
    _ server: ModelServer, _ request: IncomingRequest, _ context: inout Context, model: String?
  ) throws(ProviderFailure) -> (Directives, fault: Exchange?, TokenUsage) {
    guard let model = model ?? server.model ?? (server.wire == .ollama ? nil : Self.servedModel)
    else { throw missing("model", context.wire) }
    context.entry.model = model
    let (directives, _) = try directives(&context, request, model: model)
    let fault = faultyExchange(context, directives, isStream: false)
    var usage = TokenUsage(
      input: TokenEstimate.tokens(bytes: request.body.readableBytes), output: 0)
    if let input = directives.usage.input { usage.input = input }
    return (directives, fault, usage)
  }

  private func answer(
    _ body: ByteBuffer, _ usage: TokenUsage, _ context: Context, _ directives: Directives
  ) -> Exchange {
    var context = context
    if context.wire != .ollama { context.counts = [("x-compute-tokens", usage.input)] }
    var exchange = bytes(
      context, directives.malformed ? Self.halved(body) : body, directives: directives)
    exchange.usage = usage
    exchange.reportsUsage = !directives.malformed
    return exchange
  }

  private func embedTexts(
    _ server: ModelServer, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try EmbeddingRequest(bytes)
    }
    guard asked.hasInput, !asked.inputs.isEmpty else {
      throw missing(server.wire == .ollama ? "input" : "inputs", context.wire)
    }
    guard !asked.inputs.contains("") || server.wire == .ollama else {
      throw ProviderFailure(context.wire, status: 400, message: "`inputs` cannot be empty")
    }
    let (directives, fault, usage) = try prepared(server, request, &context, model: asked.model)
    if let fault { return fault }
    let dimensions = asked.dimensions ?? directives.dimensions ?? 384
    guard (1...Self.largestDimensions).contains(dimensions) else {
      throw ProviderFailure(context.wire, status: 422, message: "`dimensions` is out of bounds")
    }
    var body = ByteBuffer()
    if server.wire == .ollama {
      body.writeStaticString("{\"model\":\"")
      body.writeBytes(JSONText.escaped(context.entry.model.prefixBeforeDirectives))
      body.writeStaticString("\",\"embeddings\":")
    }
    // One text alone gets one vector, by Hugging Face without an array around it.
    let isBare = server.wire == .huggingFace && !asked.isList
    if !isBare { body.writeStaticString("[") }
    for (index, text) in asked.inputs.enumerated() {
      if index > 0 { body.writeStaticString(",") }
      let vector = EmbeddingVector.make(text: text, dimensions: dimensions)
      // A model that is not made for embeddings gives a vector for each of its tokens.
      let isByToken = context.entry.model.contains("tokens")
      body.write(vector, byToken: isByToken)
    }
    if !isBare { body.writeStaticString("]") }
    if server.wire == .ollama {
      body.writeStaticString(",\"total_duration\":1000000,\"load_duration\":1000")
      body.writeStaticString(",\"prompt_eval_count\":")
      body.writeDecimal(usage.input)
      body.writeStaticString("}")
    }
    return answer(body, usage, context, directives)
  }

  private func rankTexts(
    _ server: ModelServer, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try TextTask(bytes)
    }
    guard let query = asked.text, !asked.texts.isEmpty else {
      throw missing(server.wire == .tei ? "texts" : "inputs", context.wire)
    }
    let (directives, fault, usage) = try prepared(server, request, &context, model: nil)
    if let fault { return fault }
    let scores = asked.texts.map { TextTask.score(of: $0, for: query) }
    var body = ByteBuffer()
    body.writeStaticString("[")
    let order = Array(scores.indices)
    let ranked =
      server.wire == .tei
      ? order.sorted { (scores[$1], $0) < (scores[$0], $1) } : order
    for (place, index) in ranked.enumerated() {
      if place > 0 { body.writeStaticString(",") }
      guard server.wire == .tei else {
        body.writeString(scores[index].description)
        continue
      }
      body.writeStaticString("{\"index\":")
      body.writeDecimal(index)
      body.writeStaticString(",\"score\":")
      body.writeString(scores[index].description)
      body.writeStaticString("}")
    }
    body.writeStaticString("]")
    return answer(body, usage, context, directives)
  }

  /// By the request's labels, or as the simulator's own classifier: by how a text ends.
  private func classify(
    _ server: ModelServer, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try TextTask(bytes)
    }
    guard let text = asked.text else { throw missing("inputs", context.wire) }
    let (directives, fault, usage) = try prepared(server, request, &context, model: nil)
    if let fault { return fault }
    var scores: [(label: String, score: Float)]
    if asked.labels.isEmpty {
      let share = Float(Hash64.of(text) % 1_000) / 1_000
      scores = [("POSITIVE", share), ("NEGATIVE", 1 - share)]
    } else {
      let raw = asked.labels.map { TextTask.score(of: $0, for: text) + 0.001 }
      let sum = raw.reduce(0, +)
      scores = zip(asked.labels, raw).map { ($0, $1 / sum) }
    }
    scores.sort { ($1.score, $0.label) < ($0.score, $1.label) }
    var body = ByteBuffer()
    // The pipeline of a classifier takes several texts, and gives a list for each.
    let isNested = server.wire == .huggingFace && asked.labels.isEmpty
    body.writeStaticString(isNested ? "[[" : "[")
    for (place, entry) in scores.enumerated() {
      body.writeStaticString(place > 0 ? ",{\"label\":\"" : "{\"label\":\"")
      body.writeBytes(JSONText.escaped(entry.label))
      body.writeStaticString("\",\"score\":")
      body.writeString(entry.score.description)
      body.writeStaticString("}")
    }
    body.writeStaticString(isNested ? "]]" : "]")
    return answer(body, usage, context, directives)
  }

  private func describe(_ server: ModelServer, _ context: Context) -> Exchange {
    var body = ByteBuffer()
    switch server.wire {
    case .ollama:
      body.writeStaticString("{\"models\":[")
      for (index, model) in Self.listedModels.enumerated() {
        body.writeStaticString(index > 0 ? ",{\"name\":\"" : "{\"name\":\"")
        body.writeString(model)
        body.writeStaticString("\",\"model\":\"")
        body.writeString(model)
        body.writeStaticString(
          "\",\"modified_at\":\"2026-01-01T00:00:00Z\",\"size\":1,\"digest\":\"0\",\"details\":{}}")
      }
      body.writeStaticString("]}")
    case .tgi:
      body.writeStaticString(
        """
        {"model_id":"sim-small","model_pipeline_tag":"text-generation","max_concurrent_requests":128,\
        "max_input_tokens":4095,"max_total_tokens":4096,"version":"3.0.0"}
        """)
    default:
      body.writeStaticString(
        """
        {"model_id":"sim-embed","model_type":{"embedding":{"pooling":"mean"}},"max_concurrent_requests":512,\
        "max_input_length":512,"max_client_batch_size":2048,"version":"1.8.0"}
        """)
    }
    return bytes(context, body)
  }
}

extension String {
  fileprivate var prefixBeforeDirectives: String { String(prefix { $0 != "+" }) }
}

extension ByteBuffer {
  /// A vector as an array; by token, as three of which it is the mean.
  fileprivate mutating func write(_ vector: [Float], byToken: Bool) {
    guard byToken else { return write(vector, shift: 0) }
    for (index, shift) in [Float(-0.5), 0, 0.5].enumerated() {
      writeStaticString(index == 0 ? "[" : ",")
      write(vector, shift: shift)
    }
    writeStaticString("]")
  }

  private mutating func write(_ vector: [Float], shift: Float) {
    for (position, value) in vector.enumerated() {
      writeStaticString(position == 0 ? "[" : ",")
      writeString((value + shift).description)
    }
    writeStaticString("]")
  }
}
