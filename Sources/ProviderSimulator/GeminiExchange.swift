import NIOCore
import NIOHTTP1

/// A method of a model, `/v1/models/NAME:METHOD`, of Gemini's API.
struct GeminiMethod: Equatable {
  enum Name: String, CaseIterable {
    case generateContent, streamGenerateContent, countTokens, embedContent, batchEmbedContents
  }

  var name: Name
  /// Directives included.
  var model: String

  /// Reads a path after its version; nil for what is no method of a model.
  init?(_ path: Substring) {
    guard let colon = path.lastIndex(of: ":"),
      let name = Name(rawValue: String(path[path.index(after: colon)...])),
      path.hasPrefix("models/") || path.hasPrefix("tunedModels/"),
      let slash = path.firstIndex(of: "/")
    else { return nil }
    let model = path[path.index(after: slash)..<colon]
    guard !model.isEmpty else { return nil }
    self.name = name
    self.model = Self.unescaped(model)
  }

  private static func unescaped(_ text: Substring) -> String {
    var out: [UInt8] = []
    var rest = Array(text.utf8)[...]
    while let byte = rest.popFirst() {
      if byte == UInt8(ascii: "%"), rest.count >= 2, let high = rest.first?.hexDigit,
        let low = rest.dropFirst().first?.hexDigit
      {
        out.append(high << 4 | low)
        rest = rest.dropFirst(2)
      } else {
        out.append(byte)
      }
    }
    return String(decoding: out, as: UTF8.self)
  }
}

extension Endpoint {
  /// What Gemini's API has under its versions `v1` and `v1beta`, but for the list of models of `v1`,
  /// which others have, too; nil for what it has not.
  init?(gemini method: HTTPMethod, _ path: Substring) {
    let isBeta = path.hasPrefix("/v1beta/")
    guard isBeta || path.hasPrefix("/v1/") else { return nil }
    let rest = path.dropFirst(isBeta ? "/v1beta/".count : "/v1/".count)
    if method == .POST, let method = GeminiMethod(rest) {
      self = .gemini(method)
    } else if isBeta, method == .GET, rest == "models" {
      self = .models
    } else if isBeta, method == .GET, rest.hasPrefix("models/") {
      self = .model(String(rest.dropFirst("models/".count)))
    } else {
      return nil
    }
  }
}

extension Responder {
  /// A key in a header, in the query or as a bearer token; the API answers others with 403.
  func geminiRefusal(_ context: Context, _ request: IncomingRequest, bearer: Substring?)
    -> Exchange?
  {
    let query = request.head.uri.split(separator: "?", maxSplits: 1).dropFirst().first ?? ""
    let inQuery = query.split(separator: "&").first { $0.hasPrefix("key=") }?.dropFirst(4)
    let key =
      request.head.headers.first(name: "x-goog-api-key").map { $0[...] } ?? inQuery ?? bearer
    guard let key else {
      return refuse(
        context, 403,
        "Method doesn't allow unregistered callers. Please use API Key or other form of API consumer identity."
      )
    }
    guard key == "invalid" else { return nil }
    return refuse(
      context, 400, "API key not valid. Please pass a valid API key.", code: "API_KEY_INVALID")
  }

  func gemini(
    _ method: GeminiMethod, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    switch method.name {
    case .generateContent, .streamGenerateContent:
      let streams = method.name == .streamGenerateContent
      if streams, !request.head.uri.contains("alt=sse") {
        throw ProviderFailure(
          .gemini, status: 400, message: "simulator: streams are sent with alt=sse only")
      }
      return try chat(request, context) { bytes throws(JSONScanner.Malformed) in
        var chat = try ChatRequest(gemini: bytes)
        chat.model = method.model
        chat.stream = streams
        return chat
      }
    case .countTokens:
      return try countTokens(request, context) { bytes throws(JSONScanner.Malformed) in
        var chat = try ChatRequest(gemini: bytes)
        chat.model = method.model
        chat.hasMessages = true
        return chat
      }
    case .embedContent, .batchEmbedContents:
      return try geminiEmbeddings(method, request, context)
    }
  }

  private func geminiEmbeddings(
    _ method: GeminiMethod, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try EmbeddingRequest(gemini: bytes)
    }
    guard asked.hasInput else { throw missing("requests", .gemini) }
    if asked.inputs.contains("") {
      throw ProviderFailure(.gemini, status: 400, message: "content is empty")
    }
    if asked.inputs.count > 100 {
      throw ProviderFailure(
        .gemini, status: 400,
        message: "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n")
    }
    let (directives, _) = try directives(&context, request, model: method.model)
    let dimensions = asked.dimensions ?? directives.dimensions ?? 3_072
    guard (1...Self.largestDimensions).contains(dimensions) else {
      throw ProviderFailure(.gemini, status: 400, message: "outputDimensionality is out of range")
    }
    if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }
    var usage = TokenUsage(input: asked.tokenCount, output: 0)
    if let input = directives.usage.input { usage.input = input }
    let isBatch = method.name == .batchEmbedContents
    var body = ByteBuffer()
    body.writeStaticString(isBatch ? "{\"embeddings\":[" : "{\"embedding\":")
    for (index, input) in asked.inputs.enumerated() {
      if index > 0 { body.writeStaticString(",") }
      body.writeStaticString("{\"values\":")
      let vector = EmbeddingVector.make(text: input, dimensions: dimensions)
      for (position, value) in vector.enumerated() {
        body.writeStaticString(position == 0 ? "[" : ",")
        body.writeString(value.description)
      }
      body.writeStaticString("]}")
    }
    body.writeStaticString(isBatch ? "]," : ",")
    GeminiWire.usage(usage, counted: false, tier: [], into: &body)
    body.writeStaticString("}")
    if directives.malformed { body = Self.halved(body) }
    var exchange = bytes(context, body, directives: directives)
    exchange.usage = usage
    exchange.reportsUsage = !directives.malformed
    return exchange
  }
}
