import HTTP
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
    /// Providers that are being told that nobody waits any more.
    var farewells = 0
    var isOnceDone = false
  }

  private let state: Mutex<State>
  private let concurrency: Int
  /// Results that may wait for the database before claiming pauses.
  private let backlog: Int
  let claimerWake = Wake()
  let settlerWake = Wake()
  let handshakeWake = Wake()
  let pulseWake = Wake()
  /// Woken when there may be something to do with stores.
  let jobsWake = Wake()
  /// Woken when the worker may have become idle, or is to stop.
  let workerWake = Wake()

  /// What files under way take.
  let files: FileMemory

  init(identity: Identity, concurrency: Int, once: Bool, files: FileMemory = FileMemory()) {
    self.files = files
    self.concurrency = max(1, concurrency)
    backlog = max(1_024, concurrency * 4)
    state = Mutex(
      State(
        claims: ClaimMachine(once: once, largestClaim: min(self.concurrency, 1_000)),
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
      // Where files wait for a store that does not take them, no more calls are begun.
      let room =
        files.isFull
        ? 0 : min(concurrency - state.roster.transferring, backlog - state.roster.unsettled)
      let action = state.claims.next(at: .now, room: room, isIdle: state.roster.isEmpty)
      if action == .finished { state.isOnceDone = true }
      return (action, state.claims.wantsLockStep)
    }
    if stepped { handshakeWake.signal() }
    if action == .finished { workerWake.signal() }
    return action
  }

  func claimed(_ rows: Int, header: ClaimMachine.Header) {
    state.withLock { state in
      state.tally.claims += 1
      state.tally.claimed += rows
      state.claims.claimed(rows, header: header, at: .now)
    }
  }

  func claimFailed(retryAt: Instant) {
    state.withLock { $0.claims.claimFailed(retryAt: retryAt) }
  }

  func notified() {
    state.withLock { state in
      state.tally.wakeUps += 1
      state.claims.notified()
    }
    claimerWake.signal()
  }

  func mayHaveRequeued() {
    state.withLock { $0.claims.requeued() }
    claimerWake.signal()
  }

  func listening(_ isListening: Bool) {
    state.withLock { $0.claims.listening(isListening) }
    claimerWake.signal()
    if isListening { pulseWake.signal() }
  }

  func lockStep() -> ClaimMachine.LockStep? { state.withLock { $0.claims.lockStep() } }

  func lockGranted() {
    state.withLock { $0.claims.granted() }
    claimerWake.signal()
  }

  func lockNotGranted() { state.withLock { $0.claims.lockNotGranted() } }

  func lockGone() {
    state.withLock { $0.claims.lockGone() }
    claimerWake.signal()
  }

  // MARK: Attempts

  /// Takes an attempt on; before anything is started for it.
  func begin(_ fence: Fence, streams: Bool) {
    state.withLock { state in
      state.roster.begin(fence)
      if streams { state.gathering.begin(fence) }
    }
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
    let isNews = state.withLock { $0.gathering.text(text, of: fence) }
    if isNews { settlerWake.signal() }
  }

  func finished(_ settlement: Settlement) {
    let isReported = state.withLock { state in
      guard state.roster.finished(settlement.fence) else {
        state.gathering.drop(settlement.fence)
        return false
      }
      state.gathering.result(settlement)
      return true
    }
    if isReported { settlerWake.signal() }
    // There is room for another.
    claimerWake.signal()
    if !isReported { workerWake.signal() }
  }

  // MARK: Settling

  func settlingIsDue() -> Instant? { state.withLock { $0.gathering.due(at: .now) } }

  func takeForSettling() -> (
    identity: Identity, deltas: [Gathering.Delta], results: [Settlement]
  ) {
    state.withLock { state in
      let taken = state.gathering.take(at: .now)
      return (state.identity, taken.deltas, taken.results)
    }
  }

  func giveBack(_ deltas: [Gathering.Delta]) {
    state.withLock { $0.gathering.giveBack(deltas) }
  }

  func settled(_ settlements: [Settlement], requeued: Int, stale: Int) {
    let mayBeIdle = state.withLock { state in
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
      return state.roster.isEmpty
    }
    claimerWake.signal()
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

  var isStopping: Bool { state.withLock { $0.isStopping } }
  var isOnceDone: Bool { state.withLock { $0.isOnceDone } }
  var transferring: Int { state.withLock { $0.roster.transferring } }
  var isIdle: Bool { state.withLock { $0.roster.isEmpty } }
}
