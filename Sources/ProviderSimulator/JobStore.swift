import Synchronization

/// Jobs that the simulated providers keep: responses with `background`, and predictions.
final class JobStore: Sendable {
  struct Job: Sendable {
    var answer: Answer
    var directives: Directives
    var created: Int
    /// Questions for it so far.
    var questions = 0
    var streams = 0
    var isCancelled = false

    /// The first `polls` questions are answered with "not yet".
    var isDone: Bool { questions > directives.polls ?? 0 }
  }

  /// The oldest go first.
  private static let most = 10_000

  private let state = Mutex((jobs: [UInt64: Job](), order: [UInt64]()))

  func add(_ id: UInt64, _ job: Job) {
    state.withLock { state in
      state.jobs[id] = job
      state.order.append(id)
      if state.order.count > Self.most { state.jobs[state.order.removeFirst()] = nil }
    }
  }

  /// Changes a job and gives it; nil: there is none.
  func change(_ id: UInt64, _ change: (inout Job) -> Void) -> Job? {
    state.withLock { state in
      guard var job = state.jobs[id] else { return nil }
      change(&job)
      state.jobs[id] = job
      return job
    }
  }

  func reset() {
    state.withLock { $0 = ([:], []) }
  }
}

/// The requests for a job that was made before, as the directive `at` names them.
enum JobPlace: String { case poll, stream, cancel }

/// What a request wants of a job.
enum JobQuestion: Equatable {
  case state
  case stream(after: Int)
  case cancel
}

extension Endpoint {
  /// What is under `/v1/responses`, `/v1/predictions`, `/v1/models/…/predictions`, `/v1/deployments/…` and
  /// `/v1/stream`; nil for what is not.
  init?(job method: String, _ path: Substring, _ uri: String, lastEvent: String?) {
    let parts = path.split(separator: "/").dropFirst().map(String.init)
    guard path.hasPrefix("/v1/"), let first = parts.first else { return nil }
    func number(_ text: String, _ prefix: String) -> UInt64? {
      text.hasPrefix(prefix) ? UInt64(text.dropFirst(prefix.count), radix: 16) : nil
    }
    let query =
      uri.split(separator: "?", maxSplits: 1).dropFirst().first?.split(separator: "&") ?? []
    func value(_ name: String) -> Substring? {
      query.first { $0.hasPrefix(name + "=") }?.dropFirst(name.count + 1)
    }
    switch (method, first, parts.count) {
    case ("POST", "responses", 1): self = .responses
    case ("GET", "responses", 2):
      guard let id = number(parts[1], "resp_") else { return nil }
      let after = value("starting_after").flatMap { Int($0) } ?? -1
      self = .response(id, value("stream") == "true" ? .stream(after: after) : .state)
    case ("POST", "responses", 3) where parts[2] == "cancel":
      guard let id = number(parts[1], "resp_") else { return nil }
      self = .response(id, .cancel)
    case ("POST", "predictions", 1): self = .predictions(model: nil)
    case ("POST", "models", 4) where parts[3] == "predictions",
      ("POST", "deployments", 4) where parts[3] == "predictions":
      self = .predictions(model: "\(parts[1])/\(parts[2])")
    case ("GET", "predictions", 2):
      guard let id = number(parts[1], "") else { return nil }
      self = .prediction(id, .state)
    case ("POST", "predictions", 3) where parts[2] == "cancel":
      guard let id = number(parts[1], "") else { return nil }
      self = .prediction(id, .cancel)
    case ("GET", "stream", 2):
      guard let id = number(parts[1], "") else { return nil }
      let after = lastEvent?.split(separator: ":").last.flatMap { Int($0) } ?? -1
      self = .prediction(id, .stream(after: after))
    default: return nil
    }
  }

  var makesJobs: Bool {
    switch self {
    case .responses, .predictions: true
    default: false
    }
  }

  /// As the log names it: without ids.
  var jobPath: String? {
    switch self {
    case .responses: "/v1/responses"
    case .response(_, .state): "/v1/responses/ID"
    case .response(_, .stream): "/v1/responses/ID?stream"
    case .response(_, .cancel): "/v1/responses/ID/cancel"
    case .predictions: "/v1/predictions"
    case .prediction(_, .state): "/v1/predictions/ID"
    case .prediction(_, .stream): "/v1/stream/ID"
    case .prediction(_, .cancel): "/v1/predictions/ID/cancel"
    default: nil
    }
  }
}
