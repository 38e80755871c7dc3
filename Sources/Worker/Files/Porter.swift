import HTTP
import Logging
import Postgres
import Providers
import Synchronization

/// Carries files: into requests before they are sent, out of answers before they are reported, and between
/// the database and stores. A few at a time, each carrier with a connection of its own; the loops that claim and
/// settle never wait for it.
final class Porter: Sendable {
  /// A request that needs files.
  struct Fetch: Sendable {
    var fence: Fence
    var files: [RequestFile]
    var deadline: ContinuousClock.Instant
    /// Called with the contents, or with why there are none. `memory`: bytes that were taken for them, and are
    /// to be given back when the request is not needed any more.
    var then: @Sendable (Result<[String: FileContent], Failure>, _ memory: Int) -> Void
  }

  /// An answer with files.
  struct Keep: Sendable {
    var settlement: Settlement
    var report: Report
    var provider: String
    var publicOnly: Bool
    var deadline: ContinuousClock.Instant
    /// Bytes that were counted for it.
    var memory = 0
  }

  let desk: Desk
  let pool: TransferPool
  let secrets: Secrets
  let setup: Setup
  private let fetches = Queue<Fetch>()
  private let keeps = Queue<Keep>()

  private static let carriers = 8

  init(desk: Desk, pool: TransferPool, secrets: Secrets, setup: Setup) {
    self.desk = desk
    self.pool = pool
    self.secrets = secrets
    self.setup = setup
  }

  func fetch(_ fetch: Fetch) { fetches.add(fetch) }

  /// Takes an answer whose files are to be stored; it is reported after that.
  func keep(_ keep: Keep) {
    var keep = keep
    keep.memory = keep.settlement.fileBytes
    if desk.files.add(keep.memory) { return keeps.add(keep) }
    keep.memory = 0
    finish(keep, Self.failure("artifact_memory", "the worker has no memory left for files"))
  }

  /// Until cancelled.
  func run() async {
    await withTaskGroup { carriers in
      for _ in 0..<Self.carriers {
        carriers.addTask {
          let carrier = Carrier(self, purpose: "fetch files")
          while let fetch = await self.fetches.next() { await carrier.fetch(fetch) }
          await carrier.close()
        }
        carriers.addTask {
          let carrier = Carrier(self, purpose: "keep files")
          while let keep = await self.keeps.next() { await carrier.keep(keep) }
          await carrier.close()
        }
      }
      carriers.addTask { await Carrier(self, purpose: "move files").runJobs() }
    }
  }

  /// Reports an answer whose files are stored (`failure` nil), or could not be.
  func finish(_ keep: Keep, _ failure: Failure?) {
    var settlement = keep.settlement
    settlement.reply?.files = []
    if let failure {
      settlement.outcome = .failed
      settlement.failure = failure
      settlement.artifacts = []
    }
    desk.files.giveBack(keep.memory)
    keep.report.finished(settlement)
    desk.finished(settlement)
  }

  /// A paid answer that is lost: not to be asked for again.
  static func failure(_ code: String, _ message: String) -> Failure {
    var failure = Failure(.tooLarge, message: message)
    failure.code = code
    return failure
  }
}

/// A line of what waits for a carrier.
private final class Queue<Element: Sendable>: Sendable {
  private let stream: AsyncStream<Element>
  private let continuation: AsyncStream<Element>.Continuation
  /// An `AsyncStream` is for one consumer; here they take turns.
  private let turn = AsyncTurn()

  init() { (stream, continuation) = AsyncStream.makeStream() }

  func add(_ element: Element) { continuation.yield(element) }

  /// nil: cancelled.
  func next() async -> Element? {
    guard await turn.take() else { return nil }
    var iterator = stream.makeAsyncIterator()
    let element = await iterator.next()
    turn.giveBack()
    return element
  }
}

/// Lets one task in at a time, in no order.
private final class AsyncTurn: Sendable {
  private struct State {
    var isTaken = false
    var waiting: [(id: Int, CheckedContinuation<Bool, Never>)] = []
    var nextID = 0
  }

  private let state = Mutex(State())

  /// False: the task was cancelled.
  func take() async -> Bool {
    let id = state.withLock { state in
      state.nextID += 1
      return state.nextID
    }
    return await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let answer: Bool? = state.withLock { state in
          if Task.isCancelled { return false }
          if !state.isTaken {
            state.isTaken = true
            return true
          }
          state.waiting.append((id, continuation))
          return nil
        }
        if let answer { continuation.resume(returning: answer) }
      }
    } onCancel: {
      let waiter = state.withLock { state in
        state.waiting.firstIndex { $0.id == id }.map { state.waiting.remove(at: $0).1 }
      }
      waiter?.resume(returning: false)
    }
  }

  func giveBack() {
    let next = state.withLock { state in
      if state.waiting.isEmpty {
        state.isTaken = false
        return CheckedContinuation<Bool, Never>?.none
      }
      return state.waiting.removeFirst().1
    }
    next?.resume(returning: true)
  }
}

extension Settlement {
  /// Bytes of the files that the answer brought.
  var fileBytes: Int {
    (reply?.files ?? []).reduce(0) { sum, file in
      switch file.content {
      case .bytes(let bytes): sum + bytes.count
      case .url(let url): sum + url.utf8.count
      }
    }
  }
}
