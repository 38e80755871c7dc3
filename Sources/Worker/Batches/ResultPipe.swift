import Dispatch
import HTTP
import Providers
import Synchronization

/// Results of a batch on their way from the transfer thread to the database, a portion at a time. While a portion waits
/// to be taken the thread waits, too, and with it the provider: so a file of any size needs the memory of a few results.
/// That is why such a transfer has a thread of its own.
///
/// `@unchecked Sendable`: what is received is confined to the transfer thread; the rest is behind the lock.
final class ResultPipe: TransferSink, @unchecked Sendable {
  /// A portion: results, and how many lines were none.
  struct Portion: Sendable {
    var answers: [(fence: Fence, content: BatchAnswer.Content)] = []
    /// Lines that cannot be read, or name nothing of ours.
    var malformed = 0
    var bytes = 0

    var isEmpty: Bool { answers.isEmpty && malformed == 0 }
  }

  /// Results of one portion, and bytes of them.
  private static let largestCount = 200
  private static let largestBytes = 2 << 20

  private struct State {
    var portion: Portion?
    var end: (status: Int?, outcome: TransferOutcome)?
    var waiter: CheckedContinuation<Void, Never>?
    var isAbandoned = false
  }

  private let dialect: any BatchDialect.Type
  private let call: Call
  private let state = Mutex(State())
  private let taken = DispatchSemaphore(value: 1)
  private var lines = LineParser()
  private var splitter: ArraySplitter?
  private var gathered = Portion()
  private var status: Int?
  private var headers: [String: String] = [:]
  /// Of an answer that is an error.
  private var page: [UInt8] = []
  private var overflow = false

  init(_ dialect: any BatchDialect.Type, _ call: Call) {
    self.dialect = dialect
    self.call = call
    if case .array(let name) = dialect.results { splitter = ArraySplitter(name: name) }
  }

  // MARK: The transfer thread

  func head(status: Int, headers: [String: String]) {
    self.status = status
    self.headers = headers
  }

  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict {
    guard let status, (200...299).contains(status) else {
      if page.count < 65_536 { page.append(contentsOf: bytes) }
      return .more
    }
    do {
      if splitter != nil {
        try splitter?.feed(bytes) { take($0) }
      } else {
        try lines.feed(bytes) { line in
          take(line)
          return true
        }
      }
    } catch {
      overflow = true
      return .enough
    }
    return state.withLock { $0.isAbandoned } ? .enough : .more
  }

  var hasBegun: Bool { status != nil }
  var heldBytes: Int { gathered.bytes + lines.heldBytes + (splitter?.heldBytes ?? 0) }

  func finished(_ outcome: TransferOutcome) {
    var outcome = outcome
    if overflow {
      outcome.failure = TransferFailure(kind: .tooLarge, message: "one result is too long")
    }
    if outcome.failure == nil, splitter == nil, let line = try? lines.finish() { take(line) }
    flush()
    let waiter = state.withLock { state in
      state.end = (status, outcome)
      defer { state.waiter = nil }
      return state.waiter
    }
    waiter?.resume()
  }

  private func take(_ unit: [UInt8]) {
    gathered.bytes += unit.count
    if let answer = dialect.answer(in: unit, to: call), let fence = Fence(member: answer.id) {
      gathered.answers.append((fence, answer.content))
    } else {
      gathered.malformed += 1
    }
    if gathered.answers.count >= Self.largestCount || gathered.bytes >= Self.largestBytes {
      flush()
    }
  }

  /// Waits until the portion before was taken.
  private func flush() {
    guard !gathered.isEmpty else { return }
    taken.wait()
    let waiter = state.withLock { state in
      state.portion = gathered
      defer { state.waiter = nil }
      return state.waiter
    }
    gathered = Portion()
    waiter?.resume()
  }

  // MARK: The loop

  /// The next portion; nil: it was the last one.
  func next() async -> Portion? {
    while true {
      let (portion, isOver) = state.withLock { state in
        defer { state.portion = nil }
        return (state.portion, state.end != nil)
      }
      if let portion { return portion }
      if isOver { return nil }
      await withCheckedContinuation { continuation in
        let isNews = state.withLock { state in
          if state.portion != nil || state.end != nil { return true }
          state.waiter = continuation
          return false
        }
        if isNews { continuation.resume() }
      }
    }
  }

  /// The portion is in the database: the next one may come.
  func acknowledge() { taken.signal() }

  /// Nothing more is wanted. What still comes is dropped.
  func abandon() {
    state.withLock { $0.isAbandoned = true }
    for _ in 0..<8 { taken.signal() }
  }

  /// After the last portion: how it ended.
  var exchange: BatchExchange {
    let end = state.withLock { $0.end }
    return BatchExchange(
      status: end?.status, headers: headers, body: page, outcome: end?.outcome)
  }
}

extension Fence {
  /// The name of a member at the provider: `UUID_ATTEMPT`. Anthropic's take letters, digits, `_` and `-`.
  var member: String { "\(description)_\(attempt)" }

  /// nil for a name that is not one of ours.
  init?(member: String) {
    let parts = member.split(separator: "_", omittingEmptySubsequences: false)
    guard parts.count == 2, let attempt = Int(parts[1]), (1...32_767).contains(attempt) else {
      return nil
    }
    var uuid = String(parts[0])
    let fence = uuid.withUTF8 { Fence(uuid: $0, attempt: attempt) }
    guard let fence, fence.member == member else { return nil }
    self = fence
  }
}
