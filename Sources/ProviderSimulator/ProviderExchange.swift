import NIOCore
import NIOHTTP1

extension Responder {
  /// What all provider endpoints have in common while one request is being answered.
  struct Context {
    var wire: Wire
    var endpoint: Endpoint
    var requestID: UInt64
    var now: WallClock
    var keepAlive: Bool
    /// HTTP/1.0 clients understand no chunks.
    var allowsChunks: Bool
    /// Headers that count something.
    var counts: [(name: StaticString, value: Int)] = []
    var entry: LogEntry
    var host = Host.openAI
  }

  func provider(_ request: IncomingRequest, _ endpoint: Endpoint) -> Exchange {
    let headers = request.head.headers
    let wire = endpoint.wire(headers)
    let milliseconds = WallClock.milliseconds()
    var context = Context(
      wire: wire, endpoint: endpoint, requestID: nextID(), now: now(milliseconds: milliseconds),
      keepAlive: request.head.isKeepAlive && !request.isTooLarge,
      allowsChunks: request.head.version != .http1_0, entry: LogEntry())
    context.host = request.host
    context.entry.time = milliseconds
    context.entry.endpoint =
      request.host == .openAI ? endpoint.path : "/\(request.host.rawValue)\(endpoint.path)"
    context.entry.wire = wire
    context.entry.requestID = context.requestID
    context.entry.connection = request.connection
    context.entry.bodyBytes = request.body.readableBytes
    var hash = Hash64()
    request.body.withUnsafeReadableBytes { hash.combine($0) }
    context.entry.bodyHash = hash.value

    if request.isTooLarge {
      return refuse(context, 413, "The request is larger than 16 MiB.")
    }
    if let refusal = refusal(context, request) { return refusal }
    do throws(ProviderFailure) {
      try checkMembers(request, context)
      switch endpoint {
      case .chatCompletions, .completions, .messages: return try chat(request, context)
      case .moderations: return try moderations(request, context)
      case .rerank: return try rerank(request, context)
      case .embeddings: return try embeddings(request, context)
      case .countTokens: return try countTokens(request, context)
      case .media(let endpoint): return try media(request, endpoint, context)
      case .models: return models(context)
      case .model(let id): return model(id, context)
      case .gemini(let method): return try gemini(method, request, context)
      case .modelServer(let server): return try modelServer(server, request, context)
      case .batch(let endpoint): return refuse(context, 404, endpoint.path)
      case .responses: return try responses(request, context)
      case .response(let id, let question):
        return try response(id, question, request, context)
      case .predictions(let model): return try predictions(model, request, context)
      case .prediction(let id, let question):
        return try prediction(id, question, request, context)
      case .unknown(let path):
        if Endpoint.known.contains(path) {
          return refuse(context, 405, "Method \(request.head.method.rawValue) is not allowed.")
        }
        return refuse(
          context, 404, "Unknown request URL: \(path).",
          code: wire == .openAI ? "unknown_url" : nil)
      }
    } catch {
      return fail(context, error)
    }
  }

  /// Credentials and versions, in the order in which the providers look at them.
  func refusal(_ context: Context, _ request: IncomingRequest) -> Exchange? {
    let headers = request.head.headers
    let bearer =
      context.host.keyHeader.map { headers.first(name: $0)?[...] }
      ?? headers.first(name: "authorization").flatMap { value -> Substring? in
        value.count > 7 && value.prefix(7).lowercased() == "bearer " ? value.dropFirst(7) : nil
      }
    switch context.wire {
    case .openAI where context.host.isOpen && bearer == nil: return nil
    case .openAI:
      guard let bearer else {
        return refuse(
          context, 401, "You didn't provide an API key. Use an Authorization header.")
      }
      if bearer == "invalid" { return fail(context, ProviderFailure(.openAI, status: 401)) }
    case .anthropic:
      guard let key = headers.first(name: "x-api-key").map({ $0[...] }) ?? bearer else {
        return refuse(context, 401, "x-api-key header is required")
      }
      if key == "invalid" { return refuse(context, 401, "invalid x-api-key") }
      guard let version = headers.first(name: "anthropic-version") else {
        return refuse(context, 400, "anthropic-version: header is required")
      }
      guard Self.anthropicVersions.contains(version) else {
        return refuse(
          context, 400, "anthropic-version: \"\(version)\" is not a valid version for this API")
      }
    case .gemini: return geminiRefusal(context, request, bearer: bearer)
    case .ollama, .tgi, .tei, .huggingFace: return modelServerRefusal(context, bearer: bearer)
    case .replicate:
      // The address of a stream is a secret of its own.
      if case .prediction(_, .stream) = context.endpoint { return nil }
      guard let bearer, bearer != "invalid" else {
        return refuse(context, 401, "You did not pass a valid authentication token")
      }
    }
    return nil
  }

  /// The version from which on sampling parameters are refused.
  static let versionWithoutSampling = "2026-10-21"
  private static let anthropicVersions = ["2023-06-01", "2023-01-01", versionWithoutSampling]

  /// Server defaults, then the model name, then the header. Returns the model's name without them.
  func directives(
    _ context: inout Context, _ request: IncomingRequest, model: String
  ) throws(ProviderFailure) -> (Directives, model: Substring) {
    var directives = currentDefaults
    var name = model[...]
    do throws(DirectiveError) {
      if let plus = model.firstIndex(of: "+") {
        name = model[..<plus]
        try directives.apply(String(model[model.index(after: plus)...]))
      }
      for header in request.head.headers["x-simulate"] {
        try directives.apply(String(header))
      }
    } catch {
      throw ProviderFailure(
        context.wire, status: 400, message: "simulator: \(error.description)", param: "model")
    }
    context.entry.model = model
    context.entry.tag = directives.tag
    // Of jobs it is for the requests that come later.
    let isLater = directives.at != nil && context.endpoint.makesJobs
    if directives.at != nil, !isLater, directives.at != context.endpoint.batchStep {
      directives.clearFault()
    }
    if directives.hasFault, !isLater, !faultIsDue(directives, context) { directives.clearFault() }
    context.entry.fault = isLater ? nil : directives.faultName
    return (directives, name)
  }

  private func faultIsDue(_ directives: Directives, _ context: Context) -> Bool {
    if directives.times == nil, directives.chance == nil { return true }
    let key = Hash64.mixed(context.entry.bodyHash ^ Hash64.of(context.entry.endpoint))
    let before = occurrences.countBefore(key)
    if let times = directives.times, before >= times { return false }
    if let chance = directives.chance {
      return Hash64.mixed(key &+ UInt64(before)) % 100 < UInt64(chance)
    }
    return true
  }

  func refuse(
    _ context: Context, _ status: Int, _ message: String, code: String? = nil
  ) -> Exchange {
    fail(context, ProviderFailure(context.wire, status: status, message: message, code: code))
  }

  /// An error response in the provider's form.
  func fail(
    _ context: Context, _ failure: ProviderFailure, directives: Directives = Directives()
  ) -> Exchange {
    var body = ByteBuffer()
    var failure = failure
    failure.host = context.host
    failure.write(context.wire, requestID: context.requestID, into: &body)
    return bytes(context, body, status: failure.status, failure: failure, directives: directives)
  }

  /// A response whose body is ready.
  func bytes(
    _ context: Context, _ body: ByteBuffer, status: Int = 200,
    contentType: StaticString = "application/json", failure: ProviderFailure? = nil,
    directives: Directives = Directives()
  ) -> Exchange {
    var body = body
    var buffer = ByteBuffer()
    buffer.reserveCapacity(1_024 + body.readableBytes)
    head(context, status, contentType, .length(body.readableBytes), failure).write(into: &buffer)
    let headBytes = buffer.readableBytes
    let bodyBytes = body.readableBytes
    buffer.writeBuffer(&body)
    var entry = context.entry
    entry.status = status
    let cut = directives.cut.map { cut in
      (headBytes + min(max(0, bodyBytes - 1), cut.tokens * 4), Self.ending(cut.kind))
    }
    return Exchange(
      transmission: Transmission(
        bytes: buffer, due: Pace(directives).whole(tokens: 0), limit: cut?.0,
        drip: directives.drip, ending: cut?.1 ?? ending(context)),
      entry: entry)
  }

  func head(
    _ context: Context, _ status: Int, _ contentType: StaticString,
    _ framing: ResponseHead.Framing, _ failure: ProviderFailure? = nil
  ) -> ResponseHead {
    ResponseHead(
      wire: context.wire, status: status, contentType: contentType, framing: framing,
      requestID: context.requestID, keepAlive: context.keepAlive, now: context.now,
      failure: failure, counts: context.counts)
  }

  func ending(_ context: Context) -> Transmission.Ending {
    context.keepAlive ? .keepAlive : .close
  }

  /// How a cut leaves the connection of a whole response, which cannot end properly too early.
  static func ending(_ kind: Directives.CutKind) -> Transmission.Ending {
    switch kind {
    case .hang: .hang
    case .reset: .reset
    case .truncate, .end: .close
    }
  }
}

extension Directives {
  var drip: Int64? { dripInterval.map { Int64($0) * 1_000_000 } }
}
