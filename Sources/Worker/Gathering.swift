/// What waits to be said to the database: texts of streams and results. Pure.
///
/// Texts leave on two lanes, one statement at a time on each. While it runs, what arrives gathers and goes with the next.
/// - A first text goes at once: whoever watches a stream waits for it, and it must not stand behind the texts of others.
/// - Later texts go at most every `interval`, and more seldom where that would keep the database busy.
///
/// Results leave for each company of answers by themselves.
///
/// Nothing of an attempt overtakes anything else of it: while one of its texts is being said, a later one waits, and its
/// result, too. What was not published before the result is taken goes with it as its tail.
struct Gathering: Sendable {
  typealias Instant = ContinuousClock.Instant

  enum Lane: Sendable {
    case first
    case later
  }

  /// Text of one stream to be published.
  struct Delta: Sendable, Equatable {
    var fence: Fence
    /// Numbers the deltas of an attempt from 1, so that one sent twice can be told.
    var part: Int
    var text: String
  }

  /// Who has something to do.
  struct News: OptionSet, Sendable {
    let rawValue: Int
    static let first = News(rawValue: 1)
    static let later = News(rawValue: 2)
    static let result = News(rawValue: 4)
    static let slowResult = News(rawValue: 8)

    static func result(for company: Settlement.Company) -> News {
      company == .all ? .result : .slowResult
    }
  }

  private struct Stream {
    var pending = ""
    var parts = 0
    /// The lane on which it waits with text.
    var waiting: Lane?
    /// Its last text was taken, and the database has not answered yet.
    var isUnderWay = false
  }

  /// Publishing later texts takes no more than a quarter of the time,
  private static let rest = 3
  /// but it waits for no longer than so many intervals.
  private static let longestRest = 10

  /// Between two publications of later texts, at least.
  var interval: Duration
  private var streams: [Fence: Stream] = [:]
  /// Streams with unpublished text.
  private var firsts: [Fence] = []
  private var laters: [Fence] = []
  /// When later texts were taken last, and when they may be again.
  private var tookLater: Instant?
  private var nextLater: Instant?
  private var results: [Settlement.Company: [Settlement]] = [:]
  /// Results of attempts whose last text is under way.
  private var held: [Fence: Settlement] = [:]

  init(interval: Duration) { self.interval = interval }

  /// Whether there is anything that may show text.
  var hasStreams: Bool { !streams.isEmpty }

  mutating func begin(_ fence: Fence) { streams[fence] = Stream() }

  // MARK: What happens

  /// Text arrived.
  mutating func text(_ text: String, of fence: Fence) -> News {
    guard !text.isEmpty, var stream = streams.removeValue(forKey: fence) else { return [] }
    stream.pending += text
    let news = queue(&stream, fence)
    streams[fence] = stream
    return news
  }

  /// The attempt has ended. Text that waits goes with the result from now on, and not by itself.
  mutating func result(_ settlement: Settlement) -> News {
    if streams[settlement.fence]?.isUnderWay == true {
      held[settlement.fence] = settlement
      return []
    }
    var settlement = settlement
    if let stream = forget(settlement.fence) { settlement.tail = stream.pending }
    return report(settlement)
  }

  /// The attempt is nobody's any more; what it said is void.
  mutating func drop(_ fence: Fence) {
    forget(fence)
    for company in results.keys { results[company]?.removeAll { $0.fence == fence } }
  }

  mutating func dropEverything() {
    self = Gathering(interval: interval)
  }

  /// The database has taken texts.
  mutating func published(_ deltas: [Delta]) -> News { landed(deltas, wereTaken: true) }

  /// Texts that the database surely did not take; they go out again, or with the tail.
  mutating func giveBack(_ deltas: [Delta]) -> News { landed(deltas, wereTaken: false) }

  /// All that was taken for a lane at once has been said.
  mutating func finished(_ lane: Lane, at now: Instant) {
    guard lane == .later, let began = tookLater else { return }
    let rest = min((now - began) * Self.rest, interval * Self.longestRest)
    nextLater = max(began + interval, now + rest)
  }

  // MARK: What to do

  /// When texts are to be taken; nil: not before news. An instant that has passed: now.
  func due(_ lane: Lane, at now: Instant) -> Instant? {
    guard !self[lane].isEmpty else { return nil }
    return lane == .first ? now : max(now, nextLater ?? now)
  }

  /// Takes the texts of a lane, if they are due. Each of them is to be answered by `published` or `giveBack`, and then the lane by `finished`.
  mutating func take(_ lane: Lane, at now: Instant) -> [Delta] {
    guard let due = due(lane, at: now), due <= now else { return [] }
    let fences = self[lane]
    self[lane] = []
    if lane == .later {
      tookLater = now
      nextLater = now + interval
    }
    return fences.compactMap { fence in
      guard var stream = streams.removeValue(forKey: fence) else { return nil }
      stream.waiting = nil
      stream.isUnderWay = true
      stream.parts += 1
      let delta = Delta(fence: fence, part: stream.parts, text: stream.pending)
      stream.pending = ""
      streams[fence] = stream
      return delta
    }
  }

  func hasResults(for company: Settlement.Company) -> Bool { results[company]?.isEmpty == false }

  /// Takes all results of a company, with their tails.
  mutating func takeResults(for company: Settlement.Company) -> [Settlement] {
    results.removeValue(forKey: company) ?? []
  }

  // MARK: Parts

  /// Those that wait on a lane.
  private subscript(lane: Lane) -> [Fence] {
    get { lane == .first ? firsts : laters }
    _modify {
      if lane == .first { yield &firsts } else { yield &laters }
    }
  }

  private mutating func landed(_ deltas: [Delta], wereTaken: Bool) -> News {
    var news: News = []
    for delta in deltas where streams[delta.fence]?.isUnderWay == true {
      guard var stream = streams.removeValue(forKey: delta.fence) else { continue }
      stream.isUnderWay = false
      if !wereTaken {
        stream.pending = delta.text + stream.pending
        stream.parts -= 1
      }
      if var result = held.removeValue(forKey: delta.fence) {
        result.tail = stream.pending
        news.formUnion(report(result))
      } else {
        news.formUnion(queue(&stream, delta.fence))
        streams[delta.fence] = stream
      }
    }
    return news
  }

  /// Lets a stream wait, if it has something to say and nothing under way. Who waits already has woken the lane for all
  /// that follow.
  private mutating func queue(_ stream: inout Stream, _ fence: Fence) -> News {
    guard !stream.pending.isEmpty, stream.waiting == nil, !stream.isUnderWay else { return [] }
    let lane = stream.parts == 0 ? Lane.first : .later
    stream.waiting = lane
    self[lane].append(fence)
    guard self[lane].count == 1 else { return [] }
    return lane == .first ? .first : .later
  }

  private mutating func report(_ settlement: Settlement) -> News {
    results[settlement.company, default: []].append(settlement)
    return .result(for: settlement.company)
  }

  @discardableResult
  private mutating func forget(_ fence: Fence) -> Stream? {
    held[fence] = nil
    guard let stream = streams.removeValue(forKey: fence) else { return nil }
    if let lane = stream.waiting { self[lane].removeAll { $0 == fence } }
    return stream
  }
}
