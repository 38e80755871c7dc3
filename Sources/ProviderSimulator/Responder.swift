import NIOCore
import NIOHTTP1
import Synchronization

/// A request that has arrived in full.
struct IncomingRequest {
  var head: HTTPRequestHead
  var body: ByteBuffer
  /// The body passed the limit and was thrown away.
  var isTooLarge = false
  var connection: UInt64
  /// Whose deviations the answer has.
  var host = Host.openAI
}

/// A response to be sent, and what the log will say of it; control endpoints are not logged.
struct Exchange {
  var transmission: Transmission
  var entry: LogEntry?
  /// Usage as billed if the whole answer leaves.
  var usage: TokenUsage?
  /// Whether a complete transmission tells the client its usage.
  var reportsUsage = false
}

/// Decides what each request is answered with. Shared by all connections.
final class Responder: Sendable {
  let log: RequestLog
  let occurrences = OccurrenceCounter()
  let batches = BatchStore()
  let jobs = JobStore()
  let started: Directives
  private let defaults: Mutex<Directives>
  private let moment = Mutex(WallClock(second: 0))
  private let counter = Atomic<UInt64>(0)
  private let seed: UInt64
  let inFlight = Atomic<Int>(0)

  init(defaults: Directives, log: RequestLog) {
    self.started = defaults
    self.defaults = Mutex(defaults)
    self.log = log
    var random = SystemRandomNumberGenerator()
    seed = random.next()
  }

  var currentDefaults: Directives {
    get { defaults.withLock { $0 } }
    set { defaults.withLock { $0 = newValue } }
  }

  func nextID() -> UInt64 {
    let number = counter.wrappingAdd(1, ordering: .relaxed).newValue
    return Hash64.mixed(seed &+ number &* 0x9E37_79B9_7F4A_7C15)
  }

  func reset() {
    log.reset()
    occurrences.reset()
    batches.reset()
    jobs.reset()
    currentDefaults = started
  }

  /// The wall clock, formatted once a second.
  func now(milliseconds: Int) -> WallClock {
    let second = milliseconds / 1_000
    return moment.withLock { moment in
      if moment.second != second { moment = WallClock(second: second) }
      return moment
    }
  }

  /// The answer to a request.
  func answer(_ request: IncomingRequest) -> Exchange {
    let uri = request.head.uri
    let path = uri.firstIndex(of: "?").map { uri[..<$0] } ?? uri[...]
    guard let (host, plain) = Host.find(path) else { return answer(request, path: path) }
    var request = request
    request.host = host
    return answer(request, path: plain[...])
  }

  private func answer(_ request: IncomingRequest, path: Substring) -> Exchange {
    if let exchange = batchExchange(request, path) { return exchange }
    switch (request.head.method, path) {
    case (.POST, "/v1/chat/completions"): return provider(request, .chatCompletions)
    case (.POST, "/v1/messages"): return provider(request, .messages)
    case (.POST, "/v1/embeddings"): return provider(request, .embeddings)
    case (.POST, "/v1/completions"): return provider(request, .completions)
    case (.POST, "/v1/moderations"): return provider(request, .moderations)
    case (.POST, "/v1/rerank"): return provider(request, .rerank)
    case (.POST, "/v1/messages/count_tokens"): return provider(request, .countTokens)
    case (.GET, "/v1/models"): return provider(request, .models)
    case (.GET, "/health"), (.GET, "/__log"), (.POST, "/__reset"), (_, "/__defaults"):
      return control(request, path: path)
    default:
      if let endpoint = Endpoint(
        job: request.head.method.rawValue, path, request.head.uri,
        lastEvent: request.head.headers.first(name: "last-event-id"))
      {
        return provider(request, endpoint)
      }
      if let endpoint = Endpoint(gemini: request.head.method, path) {
        return provider(request, endpoint)
      }
      if let media = MediaEndpoint(rawValue: String(path)), request.head.method == .POST {
        return provider(request, .media(media))
      }
      if request.head.method == .GET, path.hasPrefix("/files/"), let file = file(request, path) {
        return file
      }
      if request.head.method == .GET, path.hasPrefix("/v1/models/") {
        return provider(request, .model(String(path.dropFirst("/v1/models/".count))))
      }
      if request.head.method == .POST,
        ["/tgi/v1/chat/completions", "/huggingface/v1/chat/completions"].contains(path)
      {
        return provider(request, .chatCompletions)
      }
      if let server = ModelServer(request.head.method, path) {
        return provider(request, .modelServer(server))
      }
      return provider(request, .unknown(String(path)))
    }
  }
}

/// What a provider is asked for.
enum Endpoint: Equatable {
  case chatCompletions
  case completions
  case moderations
  case rerank
  case messages
  case embeddings
  case countTokens
  case media(MediaEndpoint)
  case models
  case model(String)
  case gemini(GeminiMethod)
  case modelServer(ModelServer)
  case batch(BatchEndpoint)
  case responses
  case response(UInt64, JobQuestion)
  case predictions(model: String?)
  case prediction(UInt64, JobQuestion)
  case unknown(String)

  static let known =
    [
      "/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/messages/count_tokens",
      "/v1/models", "/v1/completions", "/v1/moderations", "/v1/rerank",
    ] + MediaEndpoint.allCases.map(\.rawValue)

  /// The path as the log names it.
  var path: String {
    switch self {
    case .chatCompletions: Self.known[0]
    case .messages: Self.known[1]
    case .embeddings: Self.known[2]
    case .countTokens: Self.known[3]
    case .models: Self.known[4]
    case .completions: Self.known[5]
    case .moderations: Self.known[6]
    case .rerank: Self.known[7]
    case .media(let endpoint): endpoint.rawValue
    case .model(let id): "/v1/models/\(id)"
    case .gemini(let method): "/v1/models:\(method.name.rawValue)"
    case .modelServer(let server): server.path
    case .batch(let endpoint): endpoint.path
    case .responses, .response, .predictions, .prediction: jobPath ?? ""
    case .unknown(let path): path
    }
  }

  /// The step of a batch interface that is asked for; nil: it is none.
  var batchStep: String? {
    if case .batch(let endpoint) = self { return endpoint.step.rawValue }
    return nil
  }

  /// Whose protocol an endpoint speaks. `/v1/models` exists in all; headers decide.
  func wire(_ headers: HTTPHeaders) -> Wire {
    switch self {
    case .messages, .countTokens: .anthropic
    case .predictions, .prediction: .replicate
    case .responses, .response: .openAI
    case .chatCompletions, .completions, .embeddings, .moderations, .rerank, .media: .openAI
    case .gemini: .gemini
    case .modelServer(let server): server.wire
    case .batch(let endpoint): endpoint.wire
    case .models, .model, .unknown:
      headers.contains(name: "x-goog-api-key")
        ? .gemini : headers.contains(name: "anthropic-version") ? .anthropic : .openAI
    }
  }
}
