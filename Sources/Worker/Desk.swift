import HTTP
import Postgres
import Synchronization

/// What the worker's loops share, behind one lock: decisions are made by the pure parts, the loops
/// are woken here.
final class Desk: Sendable {
  typealias Instant = ContinuousClock.Instant

  private struct State: Sendable {
    var claims: ClaimMachine
    var gathering: Gathering
    var roster = Roster()
    var tally = Tally()
    var identity: Identity
    var isStopping = false
    /// The claimer sleeps until there is room, or wants to know of every end.
    var claimerWantsRoom = false
    /// Providers that are being told that nobody waits any more.
    var farewells = 0
    /// With `once`: how often claims found nothing left.
    var rounds = 0
    /// And have looked for nothing since.
    var isOutOfWork = false
    /// What had been claimed when nobody else had anything left to do.
    var claimedBefore: Int?
    var isOnceDone = false
    /// Why the database will never have this worker again.
    var refusal: PostgresError?
  }

  private let state: Mutex<State>
  private let concurrency: Int
  private let isOnce: Bool
  /// Results that may wait for the database before claiming pauses.
  private let backlog: Int
  let claimerWake = Wake()
  private let settlerWake = Wake()
  private let slowSettlerWake = Wake()
  private let firstsWake = Wake()
  private let latersWake = Wake()
  let handshakeWake = Wake()
  let pulseWake = Wake()
  /// Woken when there may be something to do with stores.
  let jobsWake = Wake()
  /// Woken when the worker may have become idle, or is to stop.
  let workerWake = Wake()

  /// What files under way take.
  let files: FileMemory

  /// A larger one is hardly cheaper for each generation, and keeps a quiet tenant's row waiting that comes during it.
  private static let largestClaim = 256

  init(identity: Identity, concurrency: Int, once: Bool, files: FileMemory = FileMemory()) {
    self.files = files
    self.concurrency = max(1, concurrency)
    isOnce = once
    backlog = max(1_024, concurrency * 4)
    state = Mutex(
      State(
        claims: ClaimMachine(once: once, largestClaim: min(self.concurrency, Self.largestClaim)),
        gathering: Gathering(interval: identity.publication),
        identity: identity))
  }

  var identity: Identity { state.withLock { $0.identity } }

  var tally: Tally {
    state.withLock { state in
      var tally = state.tally
      tally.safetyPollFound = state.claims.safetyPollFound
      return tally
    }
  }

  func count(_ change: (inout Tally) -> Void) { state.withLock { change(&$0.tally) } }

  /// A connection was lost. Where one goes, the handshake's may have gone too.
  func lostConnection() {
    state.withLock { $0.tally.reconnects += 1 }
    handshakeWake.signal()
  }

  // MARK: Claiming

  func nextClaim() -> ClaimMachine.Action {
    let (action, stepped) = state.withLock { state in
      if state.isOnceDone { return (ClaimMachine.Action.finished, false) }
      // Where files wait for a store that does not take them, no more calls are begun.
      let room =
        files.isFull
        ? 0 : min(concurrency - state.roster.transferring, backlog - state.roster.unsettled)
      let action = state.claims.next(at: .now, room: room, isIdle: state.roster.isEmpty)
      if action == .finished, !state.isOutOfWork { state.rounds += 1 }
      state.isOutOfWork = action == .finished
      state.claimerWantsRoom = room <= 0 || isOnce
      return (action, state.claims.wantsLockStep)
    }
    if stepped { handshakeWake.signal() }
    if action == .finished { workerWake.signal() }
    return action
  }

  func claimed(_ rows: Int, header: ClaimMachine.Header) {
    let isAwaited = state.withLock { state in
      state.tally.claims += 1
      state.tally.claimed += rows
      state.claims.claimed(rows, header: header, at: .now)
      return state.isStopping
    }
    if isAwaited { workerWake.signal() }
  }

  func claimFailed(retryAt: Instant) {
    let isAwaited = state.withLock { state in
      state.claims.claimFailed(retryAt: retryAt)
      return state.isStopping
    }
    if isAwaited { workerWake.signal() }
  }

  func notified() {
    state.withLock { state in
      state.tally.wakeUps += 1
      state.claims.notified(at: .now)
    }
    claimerWake.signal()
  }

  /// So many bytes of files are gone. Who claims waits while there are too many.
  func giveBack(files bytes: Int) {
    files.giveBack(bytes)
    claimerWake.signal()
  }

  func mayHaveRequeued() {
    state.withLock { $0.claims.requeued() }
    claimerWake.signal()
  }

  /// Something was done beside the calls. With `once` it may have put back what was waiting for it.
  func workEndedElsewhere() {
    if isOnce {
      state.withLock { state in
        state.claims.requeued()
        state.isOutOfWork = false
      }
      claimerWake.signal()
    }
    workerWake.signal()
  }

  /// With `once`: which time it is that claims found nothing left; nil: there may be something.
  var roundOutOfWork: Int? {
    state.withLock { $0.isOutOfWork ? $0.rounds : nil }
  }

  /// Nobody else found anything to do since that round: then claims look once more, because those who looked may have put
  /// something back. True: they had, and nothing came of it; nothing more is claimed.
  func endOnce(_ round: Int) -> Bool {
    let isDone = state.withLock { state in
      guard state.isOutOfWork, state.rounds == round else { return false }
      state.isOnceDone = state.claimedBefore == state.tally.claimed
      state.claimedBefore = state.tally.claimed
      state.isOutOfWork = state.isOnceDone
      if !state.isOnceDone { state.claims.requeued() }
      return state.isOnceDone
    }
    if !isDone { claimerWake.signal() }
    return isDone
  }

  func listening(_ isListening: Bool) {
    state.withLock { $0.claims.listening(isListening) }
    claimerWake.signal()
    if isListening { pulseWake.signal() }
  }

  var wantsLockStep: Bool { state.withLock { $0.claims.wantsLockStep } }

  func lockStep() -> ClaimMachine.LockStep? { state.withLock { $0.claims.lockStep() } }

  func lockGranted() {
    state.withLock { $0.claims.granted() }
    claimerWake.signal()
  }

  func lockNotGranted(isHeld: Bool) {
    state.withLock { $0.claims.lockNotGranted(isHeld: isHeld) }
    if !isHeld { claimerWake.signal() }
  }

  func lockGone() {
    state.withLock { $0.claims.lockGone() }
    claimerWake.signal()
  }

  // MARK: Attempts

  /// Takes an attempt on; before anything is started for it.
  func begin(_ fence: Fence, streams: Bool, settledWith company: Settlement.Company = .all) {
    let isNews = state.withLock { state in
      state.roster.begin(fence, settledWith: company)
      guard streams else { return false }
      defer { state.gathering.begin(fence) }
      return !state.gathering.hasStreams
    }
    // They get ready.
    if isNews { wake([.first, .later]) }
  }

  /// Reports an attempt as not begun.
  func handBack(_ fence: Fence) {
    var settlement = Settlement(fence: fence, outcome: .released)
    settlement.sent = false
    begin(fence, streams: false)
    finished(settlement)
  }

  /// Names the attempt's transfer. True where it must be aborted at once.
  func started(_ fence: Fence, _ transfer: TransferID) -> Bool {
    state.withLock { $0.roster.started(fence, transfer) }
  }

  func holds(_ fence: Fence) -> Bool { state.withLock { $0.roster.holds(fence) } }

  /// All that is held.
  var fences: Set<Fence> { state.withLock { $0.roster.fences } }

  func ending(of fence: Fence) -> Roster.Ending? { state.withLock { $0.roster.ending(of: fence) } }

  /// Gives the transfer to abort, if it runs.
  func end(_ fence: Fence, _ ending: Roster.Ending) -> TransferID? {
    state.withLock { $0.roster.end(fence, ending) }
  }

  func endAll(_ ending: Roster.Ending) -> [TransferID] {
    state.withLock { $0.roster.endAll(ending) }
  }

  func text(_ text: String, of fence: Fence) {
    wake(state.withLock { $0.gathering.text(text, of: fence) })
  }

  func finished(_ settlement: Settlement) { finished([settlement]) }

  func finished(_ settlements: [Settlement]) {
    var news: Gathering.News = []
    let (isDropped, isAwaited) = state.withLock { state in
      defer { state.claimerWantsRoom = isOnce }
      var isDropped = false
      for var settlement in settlements {
        settlement.company = state.roster.company(of: settlement.fence)
        if state.roster.finished(settlement.fence) {
          news.formUnion(state.gathering.result(settlement))
        } else {
          state.gathering.drop(settlement.fence)
          isDropped = true
        }
      }
      return (isDropped, state.claimerWantsRoom)
    }
    wake(news)
    if isAwaited { claimerWake.signal() }
    if isDropped { workerWake.signal() }
  }

  // MARK: Publishing

  func wake(of lane: Gathering.Lane) -> Wake { lane == .first ? firstsWake : latersWake }

  var hasStreams: Bool { state.withLock { $0.gathering.hasStreams } }

  func publishingIsDue(_ lane: Gathering.Lane) -> Instant? {
    state.withLock { $0.gathering.due(lane, at: .now) }
  }

  func takeTexts(_ lane: Gathering.Lane) -> (identity: Identity, deltas: [Gathering.Delta]) {
    state.withLock { ($0.identity, $0.gathering.take(lane, at: .now)) }
  }

  func published(_ deltas: [Gathering.Delta]) {
    wake(state.withLock { $0.gathering.published(deltas) })
  }

  func giveBack(_ deltas: [Gathering.Delta]) {
    wake(state.withLock { $0.gathering.giveBack(deltas) })
  }

  func finished(_ lane: Gathering.Lane) {
    state.withLock { $0.gathering.finished(lane, at: .now) }
  }

  private func wake(_ news: Gathering.News) {
    if news.contains(.first) { firstsWake.signal() }
    if news.contains(.later) { latersWake.signal() }
    if news.contains(.result) { settlerWake.signal() }
    if news.contains(.slowResult) { slowSettlerWake.signal() }
  }

  // MARK: Settling

  func wake(of company: Settlement.Company) -> Wake {
    company == .all ? settlerWake : slowSettlerWake
  }

  func hasResults(for company: Settlement.Company) -> Bool {
    state.withLock { $0.gathering.hasResults(for: company) }
  }

  func takeResults(
    for company: Settlement.Company
  ) -> (identity: Identity, results: [Settlement]) {
    state.withLock { ($0.identity, $0.gathering.takeResults(for: company)) }
  }

  func settled(_ settlements: [Settlement], requeued: Int, stale: Int) {
    let (mayBeIdle, isAwaited) = state.withLock { state in
      for settlement in settlements {
        state.roster.settled(settlement.fence)
        switch settlement.outcome {
        case .succeeded: state.tally.succeeded += 1
        case .failed: state.tally.failed += 1
        case .cancelled: state.tally.cancelled += 1
        case .released: state.tally.released += 1
        }
      }
      state.tally.settleStatements += 1
      state.tally.requeued += requeued
      state.tally.stale += stale
      if requeued > 0 { state.claims.requeued() }
      defer { state.claimerWantsRoom = isOnce }
      let isEnding = state.isStopping || isOnce
      return (isEnding && state.roster.isEmpty, requeued > 0 || state.claimerWantsRoom)
    }
    if isAwaited { claimerWake.signal() }
    if mayBeIdle { workerWake.signal() }
  }

  // MARK: Life

  /// The database took this worker for dead, and gave it a new identity. Everything it held belongs
  /// to others; gives the transfers to abort.
  func reborn(as identity: Identity) -> [TransferID] {
    let transfers = state.withLock { state in
      state.identity = identity
      let transfers = state.roster.endAll(.dropped)
      state.roster.dropFinished()
      state.gathering.interval = identity.publication
      state.gathering.dropEverything()
      state.claims.reset()
      return transfers
    }
    claimerWake.signal()
    workerWake.signal()
    return transfers
  }

  /// The schema speaks another protocol by now: nothing that is under way can be reported. Gives the transfers to abort.
  func refused(_ error: PostgresError) -> [TransferID] {
    let transfers = state.withLock { state in
      state.refusal = error
      let transfers = state.roster.endAll(.dropped)
      state.roster.dropFinished()
      state.gathering.dropEverything()
      return transfers
    }
    stopClaiming()
    return transfers
  }

  func stopClaiming() {
    state.withLock { state in
      state.isStopping = true
      state.claims.stop()
    }
    claimerWake.signal()
    handshakeWake.signal()
    workerWake.signal()
  }

  func farewellBegins() { state.withLock { $0.farewells += 1 } }

  func farewellEnded() {
    let isLast = state.withLock { state in
      state.farewells -= 1
      return state.farewells == 0
    }
    if isLast { workerWake.signal() }
  }

  var hasFarewells: Bool { state.withLock { $0.farewells > 0 } }

  var refusal: PostgresError? { state.withLock { $0.refusal } }
  var isStopping: Bool { state.withLock { $0.isStopping } }
  var isOnceDone: Bool { state.withLock { $0.isOnceDone } }
  var transferring: Int { state.withLock { $0.roster.transferring } }
  /// Nothing is held, and nothing is being claimed.
  var isIdle: Bool { state.withLock { $0.roster.isEmpty && !$0.claims.isClaiming } }
}
