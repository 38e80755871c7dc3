import Synchronization

/// The files and batches that the simulator holds.
final class BatchStore: Sendable {
  struct File: Sendable {
    var id: String
    var name: String
    var created: Int
    var bytes: [UInt8]
  }

  struct Member: Sendable {
    var id: String
    var path: String
    var body: [UInt8]
  }

  struct Result: Sendable {
    enum Content: Sendable {
      case response(status: Int, requestID: UInt64, body: [UInt8])
      case expired
      case cancelled
    }

    var id: String
    var content: Content
  }

  struct Job: Sendable {
    var id: String
    var family: BatchEndpoint.Family
    /// Its metadata, or its display name.
    var label: [UInt8]
    var endpoint = ""
    var inputFile = ""
    var members: [Member]
    /// Milliseconds since 1970.
    var created: Int
    var directives: BatchDirectives
    var cancelled: Int?
    /// How it ended, and with what; nil: it runs.
    var end: BatchDirectives.End?
    var results: [Result] = []
  }

  private struct State: Sendable {
    var files: [File] = []
    var jobs: [Job] = []
    var next = 1
  }

  private let state = Mutex(State())

  func reset() { state.withLock { $0 = State() } }

  func add(file name: String, _ bytes: [UInt8], at milliseconds: Int) -> File {
    state.withLock { state in
      let file = File(
        id: "file-sim\(state.next)", name: name, created: milliseconds / 1_000, bytes: bytes)
      state.next += 1
      state.files.append(file)
      return file
    }
  }

  func file(_ id: String) -> File? { state.withLock { $0.files.first { $0.id == id } } }

  /// The newest first.
  var files: [File] { state.withLock { $0.files.reversed() } }

  func add(_ job: Job) -> Job {
    state.withLock { state in
      var job = job
      switch job.family {
      case .openAI: job.id = "batch_sim\(state.next)"
      case .anthropic: job.id = "msgbatch_sim\(state.next)"
      case .gemini: job.id = "sim\(state.next)"
      }
      state.next += 1
      state.jobs.append(job)
      return job
    }
  }

  /// The newest first.
  func jobs(_ family: BatchEndpoint.Family) -> [Job] {
    state.withLock { $0.jobs.filter { $0.family == family && !$0.directives.isGone }.reversed() }
  }

  func job(_ id: String) -> Job? {
    state.withLock { $0.jobs.first { $0.id == id && !$0.directives.isGone } }
  }

  /// Changes a batch; of two that end it at once the second finds it ended.
  func update(_ id: String, _ change: (inout Job) -> Void) -> Job? {
    state.withLock { state in
      guard let index = state.jobs.firstIndex(where: { $0.id == id }) else { return nil }
      change(&state.jobs[index])
      return state.jobs[index]
    }
  }
}
