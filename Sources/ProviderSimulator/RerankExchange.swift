import NIOCore

/// What the simulator needs to know of a rerank request.
struct RerankRequest {
  /// Cohere's limit.
  static let mostDocuments = 10_000

  var model: String?
  var query: String?
  var documents: [String] = []
  var top: Int?
  var returnsDocuments = false

  init(_ body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      switch scanner.text(key) {
      case "model": model = try scanner.stringIfAny().map { scanner.text($0) }
      case "query": query = try scanner.stringIfAny().map { scanner.text($0) }
      case "top_n", "top_k": top = try scanner.integer()
      case "return_documents": returnsDocuments = try scanner.isTrue()
      case "documents": try readDocuments(&scanner)
      default: try scanner.skip()
      }
    }
    try scanner.finish()
  }

  /// Texts, or objects with a member `text`.
  private mutating func readDocuments(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    guard scanner.peek() == UInt8(ascii: "[") else { return try scanner.skip() }
    try scanner.array { (scanner) throws(JSONScanner.Malformed) in
      var text = ""
      if scanner.peek() == UInt8(ascii: "{") {
        try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
          if scanner.equals(key, "text"), let found = try scanner.stringIfAny() {
            text = scanner.text(found)
          } else if !scanner.equals(key, "text") {
            try scanner.skip()
          }
        }
      } else {
        text = try scanner.stringIfAny().map { scanner.text($0) } ?? ""
      }
      if documents.count <= Self.mostDocuments { documents.append(text) }
    }
  }
}

extension Responder {
  private static let rerankDimensions = 256

  /// Rerank: documents that share words with the query come first.
  func rerank(
    _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try RerankRequest(bytes)
    }
    guard let model = asked.model, !model.isEmpty else { throw missing("model", context.wire) }
    guard let query = asked.query else { throw missing("query", context.wire) }
    guard !asked.documents.isEmpty else { throw missing("documents", context.wire) }
    guard asked.documents.count <= RerankRequest.mostDocuments, asked.top ?? 1 > 0 else {
      throw ProviderFailure(
        context.wire, status: 400, message: "documents or top_n: out of bounds.",
        param: "documents")
    }
    let (directives, name) = try directives(&context, request, model: model)
    if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }
    let ranks = Self.ranks(query, asked.documents).prefix(asked.top ?? asked.documents.count)
    var usage = TokenUsage(
      input: TokenEstimate.tokens(bytes: request.body.readableBytes), output: 0)
    if let input = directives.usage.input { usage.input = input }
    var body = ByteBuffer()
    write(
      Array(ranks), asked, directives.reportedModel ?? String(name), usage, context, into: &body)
    if directives.malformed { body = Self.halved(body) }
    var exchange = bytes(context, body, directives: directives)
    exchange.usage = usage
    exchange.reportsUsage = !directives.malformed
    return exchange
  }

  private static func ranks(
    _ query: String, _ documents: [String]
  ) -> [(index: Int, score: Float)] {
    let wanted = EmbeddingVector.make(text: query, dimensions: rerankDimensions)
    let scores = documents.enumerated().map { index, text -> (index: Int, score: Float) in
      let vector = EmbeddingVector.make(text: text, dimensions: rerankDimensions)
      let cosine = zip(wanted, vector).reduce(Float(0)) { $0 + $1.0 * $1.1 }
      return (index, max(0, min(1, (1 + cosine) / 2)))
    }
    return scores.sorted { ($1.score, $0.index) < ($0.score, $1.index) }
  }

  private func write(
    _ ranks: [(index: Int, score: Float)], _ asked: RerankRequest, _ model: String,
    _ usage: TokenUsage, _ context: Context, into body: inout ByteBuffer
  ) {
    body.writeStaticString("{\"id\":\"rr-")
    body.writeHex(context.requestID)
    if context.host != .cohere {
      body.writeStaticString("\",\"object\":\"rerank\",\"model\":\"")
      body.writeBytes(JSONText.escaped(model))
    }
    body.writeStaticString("\",\"results\":[")
    let showsText = asked.returnsDocuments || context.host == .together
    for (number, rank) in ranks.enumerated() {
      if number > 0 { body.writeStaticString(",") }
      body.writeStaticString("{\"index\":")
      body.writeDecimal(rank.index)
      body.writeStaticString(",\"relevance_score\":")
      body.writeString(rank.score.description)
      if showsText {
        body.writeStaticString(",\"document\":{\"text\":\"")
        body.writeBytes(JSONText.escaped(asked.documents[rank.index]))
        body.writeStaticString("\"}")
      }
      body.writeStaticString("}")
    }
    if context.host == .cohere {
      // A unit is a query with up to a hundred documents.
      body.writeStaticString(
        "],\"meta\":{\"api_version\":{\"version\":\"2\"},\"billed_units\":{\"search_units\":")
      body.writeDecimal((asked.documents.count + 99) / 100)
      body.writeStaticString("}}}")
      return
    }
    body.writeStaticString("],\"usage\":{\"prompt_tokens\":")
    body.writeDecimal(usage.input)
    body.writeStaticString(",\"completion_tokens\":0,\"total_tokens\":")
    body.writeDecimal(usage.input)
    body.writeStaticString("}}")
  }
}
