/// Transfers that are to begin later. Confined to the transfer thread; a waiting one costs its memory and
/// an entry of a heap.
struct WaitingRoom {
  struct Waiting {
    var request: HTTPRequest
    var sink: any TransferSink
    /// When it was asked for.
    var since: UInt64
  }

  enum Verdict {
    /// With what is left of its times.
    case begin(HTTPRequest)
    case tooLate(TransferFailure.Kind, String)
  }

  private var waiting: [TransferID: Waiting] = [:]
  private var dues = Deadlines()

  mutating func add(
    _ id: TransferID, _ request: HTTPRequest, _ sink: any TransferSink, since: UInt64
  ) {
    let one = Waiting(request: request, sink: sink, since: since)
    waiting[id] = one
    dues.add(id, at: Self.due(of: one, askFirst: true))
  }

  /// Takes one out before its time.
  mutating func remove(_ id: TransferID) -> Waiting? {
    waiting.removeValue(forKey: id)
  }

  /// Takes all out.
  mutating func empty() -> [Waiting] {
    defer { waiting = [:] }
    return Array(waiting.values)
  }

  /// When `next` has something to give; nil: never.
  var due: UInt64? {
    mutating get {
      // Who has gone must not wake the thread.
      while let first = dues.first, waiting[first.id] == nil { dues.removeFirst() }
      return dues.first?.time
    }
  }

  /// Takes one out whose time has come; nil: none, yet.
  mutating func next(at now: UInt64) -> (TransferID, Waiting, Verdict)? {
    while let due, due <= now, let id = dues.first?.id {
      dues.removeFirst()
      guard let one = waiting[id] else { continue }
      let elapsed = Int((now &- one.since) / 1_000_000)
      let request = one.request
      if request.totalTimeout > 0, elapsed >= request.totalTimeout {
        waiting[id] = nil
        let words = "no answer within \(request.totalTimeout) ms"
        return (id, one, .tooLate(.timeout, words))
      }
      let patience = request.firstAnswerTimeout
      if patience > 0, elapsed >= patience, !one.sink.hasBegun {
        waiting[id] = nil
        return (id, one, .tooLate(.late, "nothing of the answer came within \(patience) ms"))
      }
      guard elapsed >= request.delay else {
        // The answer has begun: no more is asked.
        dues.add(id, at: Self.due(of: one, askFirst: false))
        continue
      }
      waiting[id] = nil
      var rest = request
      rest.delay = 0
      if rest.totalTimeout > 0 { rest.totalTimeout -= elapsed }
      // What is over has been asked for; 0 would be no limit, and is right then.
      rest.firstAnswerTimeout = max(0, patience - elapsed)
      return (id, one, .begin(rest))
    }
    return nil
  }

  private static func due(of one: Waiting, askFirst: Bool) -> UInt64 {
    var milliseconds = one.request.delay
    for limit in [one.request.totalTimeout, askFirst ? one.request.firstAnswerTimeout : 0]
    where limit > 0 { milliseconds = min(milliseconds, limit) }
    return one.since &+ UInt64(milliseconds) &* 1_000_000
  }
}
