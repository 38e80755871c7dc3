/// What waits to be said to the database: texts of streams and results. Pure.
///
/// Text of an attempt never overtakes its result, nor the other way round: what was not published
/// before the result is taken goes with it as its tail.
struct Gathering: Sendable {
  typealias Instant = ContinuousClock.Instant

  /// Text of one stream to be published.
  struct Delta: Sendable, Equatable {
    var fence: Fence
    /// Numbers the deltas of an attempt from 1, so that one sent twice can be told.
    var part: Int
    var text: String
  }

  private struct Stream {
    var pending = ""
    var parts = 0
    var isWaiting = false
    /// Waits with its first text, and is counted in `firsts`.
    var isFirst = false
  }

  /// Between two publications of the same stream, but for its first text.
  var interval: Duration
  private var streams: [Fence: Stream] = [:]
  /// Streams with unpublished text.
  private var waiting: [Fence] = []
  private var firsts = 0
  private var lastTick: Instant?
  private var results: [Settlement] = []

  init(interval: Duration) { self.interval = interval }

  var resultCount: Int { results.count }

  mutating func begin(_ fence: Fence) { streams[fence] = Stream() }

  /// Text arrived. True where the settler has to know at once.
  mutating func text(_ text: String, of fence: Fence) -> Bool {
    guard !text.isEmpty, var stream = streams.removeValue(forKey: fence) else { return false }
    stream.pending += text
    let isNews = !stream.isWaiting
    let isFirst = isNews && stream.parts == 0
    if isNews {
      stream.isWaiting = true
      waiting.append(fence)
      stream.isFirst = isFirst
      if isFirst { firsts += 1 }
    }
    streams[fence] = stream
    // The first of a silence must set the settler's timer.
    return isFirst || (isNews && waiting.count == 1)
  }

  mutating func result(_ settlement: Settlement) { results.append(settlement) }

  /// The attempt is nobody's any more; what it said is void.
  mutating func drop(_ fence: Fence) {
    forget(fence)
    results.removeAll { $0.fence == fence }
  }

  mutating func dropEverything() {
    self = Gathering(interval: interval)
  }

  /// When something is to be taken; nil: not before news. An instant that has passed: now.
  func due(at now: Instant) -> Instant? {
    if !results.isEmpty || firsts > 0 { return now }
    guard !waiting.isEmpty else { return nil }
    return max(now, lastTick.map { $0 + interval } ?? now)
  }

  /// Takes all results with their tails, and the texts that are due.
  mutating func take(at now: Instant) -> (deltas: [Delta], results: [Settlement]) {
    var taken = results
    results.removeAll(keepingCapacity: true)
    for index in taken.indices {
      guard let stream = forget(taken[index].fence) else { continue }
      taken[index].tail = stream.pending
    }
    guard !waiting.isEmpty else { return ([], taken) }
    let isTick = lastTick.map { now - $0 >= interval } ?? true
    guard isTick || firsts > 0 else { return ([], taken) }
    var deltas: [Delta] = []
    var later: [Fence] = []
    for fence in waiting {
      guard var stream = streams.removeValue(forKey: fence) else { continue }
      if isTick || stream.isFirst {
        stream.isFirst = false
        stream.parts += 1
        deltas.append(Delta(fence: fence, part: stream.parts, text: stream.pending))
        stream.pending = ""
        stream.isWaiting = false
      } else {
        later.append(fence)
      }
      streams[fence] = stream
    }
    waiting = later
    firsts = 0
    lastTick = now
    return (deltas, taken)
  }

  /// Texts that the database surely did not take; they go out again, or with the tail.
  mutating func giveBack(_ deltas: [Delta]) {
    for delta in deltas {
      guard var stream = streams.removeValue(forKey: delta.fence) else { continue }
      stream.pending = delta.text + stream.pending
      if stream.parts == delta.part { stream.parts -= 1 }
      if !stream.isWaiting {
        stream.isWaiting = true
        waiting.append(delta.fence)
      }
      streams[delta.fence] = stream
    }
  }

  @discardableResult
  private mutating func forget(_ fence: Fence) -> Stream? {
    guard let stream = streams.removeValue(forKey: fence) else { return nil }
    if stream.isWaiting {
      if stream.isFirst { firsts -= 1 }
      waiting.removeAll { $0 == fence }
    }
    return stream
  }
}
