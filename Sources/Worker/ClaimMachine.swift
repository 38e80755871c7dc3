/// Decides when to claim, when to wait, and when the handshake lock is wanted. Pure: the time is
/// given, the claims are made by `Claimer`.
///
/// No wake-up may be lost. While the lock is held, and the listener listens, every insert that
/// commits sends a notification; so after the lock was granted the machine claims once more, and
/// only then waits. Until it is granted nothing can be relied on, so it looks by itself in short
/// intervals. A notification that comes while a claim is under way always causes another claim.
///
/// Of several workers one holds the lock. While it does every insert notifies all of them; the others rest, too, and
/// leave it to the first to look, a little while: they look as well, since it may be full, or frozen. Their own
/// request waits in the line for the lock, so that one of them has it as soon as it is free.
struct ClaimMachine: Sendable {
  typealias Instant = ContinuousClock.Instant

  /// Why a claim looks at everything (with a null cursor).
  enum Reason: Sendable, Equatable {
    case start
    case notified
    /// The lock was just granted, or the listener just listens.
    case granted
    /// A result of this worker went back into the queue, or maintenance may have put something there.
    case requeued
    /// A delayed generation is due.
    case due
    /// About once a second while there is work, since cursors are hints.
    case sweep
    /// The lock is not granted yet.
    case pending
    /// Nothing should be there. Whatever this finds was a lost wake-up. Seldom, where it finds nothing for long.
    case safety
    /// What is there before `once` ends.
    case drain
  }

  enum Action: Sendable, Equatable {
    /// `reason` nil: with the last cursor.
    case claim(limit: Int, reason: Reason?)
    /// Until woken, or until then.
    case wait(until: Instant?)
    /// With `once`: there is nothing more to do.
    case finished
  }

  enum LockStep: Sendable, Equatable {
    case sleep
    case wake
  }

  /// The header of a claim.
  struct Header: Sendable, Equatable {
    /// Until a claim that looks at everything may find something; 0: one with the cursor may, now.
    var waitMilliseconds: Int?
    var retries: Int?
  }

  private enum Lock { case free, requested, held, releasing }

  static let safetyInterval = Duration.seconds(1)
  /// A safety poll that finds nothing doubles the time to the next, up to this.
  static let lastSafetyInterval = Duration.seconds(8)
  /// Between two sweeps: so long that they take no more than a twentieth of the time, within these.
  static let sweepInterval = Duration.seconds(1)
  static let firstSweepInterval = Duration.milliseconds(100)
  static let firstPendingPoll = Duration.milliseconds(4)
  static let lastPendingPoll = Duration.milliseconds(250)
  /// A worker to which so many come at once with others within `busyWindow`, generations of one claim or, with the lock,
  /// notifications while it is claiming, is busy, until no more than `quietCount` do in that time, or, where claims are slow,
  /// at that rate in the time of `fewClaims`. A busy worker looks by itself and lets the lock go: while it sleeps every
  /// insert notifies, and commits that notify wait for each other; so do its own reports with them, which makes claims so
  /// few and large that by them alone it would take itself for idle. What comes one after the other waits for nobody:
  /// whoever asks again when they have the answer is not made to wait for the next look.
  static let busyWindow = Duration.milliseconds(200)
  static let busyCount = 20
  static let quietCount = 8
  static let fewClaims = 8
  /// A claim makes it no busier than so many beside the first: one large insert does not.
  static let mostOfClaim = 4
  static let busyPoll = Duration.milliseconds(4)
  /// So long a worker leaves what was notified to the one that holds the lock; twice as long each time that nothing was left.
  static let firstCourtesy = Duration.milliseconds(10)
  static let lastCourtesy = Duration.milliseconds(250)
  /// A notification may be on its way while the safety poll finds its row.
  static let suspicion = Duration.milliseconds(250)

  let once: Bool
  let largestClaim: Int

  private var stopped = false
  private var fresh: Reason? = .start
  private var hasMore = false
  private var due: Instant?
  /// The last claim that looked at everything was told to go on at once, and not what comes later: one more looks when nothing is left.
  private var dueIsUnknown = false
  private var retries = 0
  private var lastFresh: Instant?
  private var lastClaim: Instant?
  private var pendingPoll = firstPendingPoll
  private var safetyPoll = safetyInterval
  private var sweepPause = sweepInterval
  /// Since when; nil: it is not.
  private var busySince: Instant?
  /// How many came at once with another by claims lately, with the time of their end. Kept while busy.
  private var looks: [(at: Instant, atOnce: Int)] = []
  private var lookTime = Duration.zero
  /// When the last generations came that were not the first of their claim, at most `busyCount` of them.
  private var arrivals: [Instant] = []
  /// When the last notifications came while there was one to claim for, at most `busyCount` of them.
  private var bells: [Instant] = []
  private var lock = Lock.free
  private var wantsLock = false {
    didSet { if !wantsLock { isBehind = false } }
  }
  /// Another worker has the lock, as far as is known.
  private var isBehind = false
  private var courtesy = firstCourtesy
  /// When to look for what another worker was told of as well.
  private var deferred: Instant?
  private var listening = false
  private var claiming: (limit: Int, reason: Reason?, idle: Bool, since: Instant)?
  private var emptyWhileIdle = false
  private var notBefore: Instant?
  private var suspect: (since: Instant, rows: Int)?
  /// A notification came while the claim was under way: it may be that of the rows it brings.
  private var notifiedWhileClaiming = false
  /// Rows that only the safety poll found.
  private(set) var safetyPollFound = 0

  /// A claim is under way: what it leases is known to nobody here yet.
  var isClaiming: Bool { claiming != nil }

  init(once: Bool, largestClaim: Int) {
    self.once = once
    self.largestClaim = max(1, largestClaim)
  }

  // MARK: What happens

  mutating func notified(at now: Instant) {
    safetyPoll = Self.safetyInterval
    suspect = nil
    notifiedWhileClaiming = true
    if isClaiming || fresh == .notified {
      bells = bells.suffix(Self.busyCount - 1) + [now]
      if lock == .held, Self.isMany(bells, at: now) { becomeBusy(at: now) }
    }
    if isBehind && listening {
      deferred = deferred ?? now + courtesy
      return
    }
    if fresh == nil || fresh == .sweep { fresh = .notified }
    emptyWhileIdle = false
  }

  mutating func requeued() {
    safetyPoll = Self.safetyInterval
    if fresh == nil { fresh = .requeued }
    emptyWhileIdle = false
  }

  /// The listener listens, or does no longer.
  mutating func listening(_ isListening: Bool) {
    listening = isListening
    pendingPoll = Self.firstPendingPoll
    safetyPoll = Self.safetyInterval
    if isListening { fresh = .granted }
  }

  /// The database granted the lock.
  mutating func granted() {
    lock = .held
    isBehind = false
    fresh = .granted
    safetyPoll = Self.safetyInterval
  }

  /// The lock was let go, or went with its connection.
  mutating func lockGone() {
    lock = .free
    isBehind = false
    pendingPoll = Self.firstPendingPoll
  }

  /// The request for the lock came to nothing so far.
  ///
  /// - Parameter isHeld: because another worker has it; else because of inserts in flight.
  mutating func lockNotGranted(isHeld: Bool) {
    lock = .free
    isBehind = isHeld && wantsLock
  }

  mutating func stop() { stopped = true }

  /// The worker has a new name in the database: nothing learned before counts.
  mutating func reset() {
    fresh = .start
    hasMore = false
    due = nil
    dueIsUnknown = false
    retries = 0
  }

  /// A claim gave so many calls.
  mutating func claimed(_ rows: Int, header: Header, at now: Instant) {
    guard let claim = claiming else { return }
    claiming = nil
    let goesOn = header.waitMilliseconds == 0
    hasMore = goesOn || rows >= claim.limit || (rows > 0 && lock != .held)
    // What only moved to another lane is there at once.
    let looksAgain = header.waitMilliseconds.map { $0 <= 1 } ?? false
    emptyWhileIdle = rows == 0 && claim.idle && claim.reason != nil && !looksAgain
    if claim.reason != nil {
      due = goesOn ? nil : header.waitMilliseconds.map { now + .milliseconds($0) }
      dueIsUnknown = goesOn
      retries = header.retries ?? 0
    } else if let wait = header.waitMilliseconds, !goesOn {
      due = now + .milliseconds(wait)
    }
    if dueIsUnknown && !hasMore {
      dueIsUnknown = false
      due = now
    }
    if claim.reason == .safety && rows > 0 && !notifiedWhileClaiming { suspect = (now, rows) }
    lastClaim = now
    if rows > 0 {
      pendingPoll = Self.firstPendingPoll
      safetyPoll = Self.safetyInterval
    } else if claim.reason == .safety || claim.reason == .pending && isBehind {
      safetyPoll = min(safetyPoll * 2, Self.lastSafetyInterval)
    }
    if claim.reason == .notified && isBehind {
      courtesy = rows > 0 ? Self.firstCourtesy : min(courtesy * 2, Self.lastCourtesy)
    }
    lookTime = now - claim.since
    let atOnce = max(rows - 1, 0)
    if busySince != nil { looks.append((now, atOnce)) }
    let counted = Array(repeating: now, count: min(atOnce, Self.mostOfClaim))
    arrivals = (arrivals + counted).suffix(Self.busyCount)
    if atOnce > 0, Self.isMany(arrivals, at: now) { becomeBusy(at: now) }
    if claim.reason != nil {
      sweepPause = min(
        max((now - claim.since) * 20, Self.firstSweepInterval), Self.sweepInterval)
    }
  }

  private static func isMany(_ events: [Instant], at now: Instant) -> Bool {
    guard events.count == busyCount, let first = events.first else { return false }
    return now - first <= busyWindow
  }

  private mutating func becomeBusy(at now: Instant) {
    busySince = busySince ?? now
    wantsLock = false
  }

  private mutating func isStillBusy(at now: Instant) -> Bool {
    guard let busySince else { return false }
    let window = max(Self.busyWindow, lookTime * Self.fewClaims)
    looks.removeAll { now - $0.at > window }
    let atOnce = looks.reduce(0) { $0 + $1.atOnce }
    if now - busySince <= window { return true }
    if Self.busyWindow * atOnce > window * Self.quietCount { return true }
    self.busySince = nil
    looks = []
    return false
  }

  /// A claim failed; what it would have looked at is looked at again, not before `retryAt`.
  mutating func claimFailed(retryAt: Instant) {
    guard claiming != nil else { return }
    claiming = nil
    fresh = .start
    notBefore = retryAt
  }

  // MARK: What to do

  /// - Parameters:
  ///   - room: calls that may be taken now.
  ///   - isIdle: no call is under way and no result waits to be settled.
  mutating func next(at now: Instant, room: Int, isIdle: Bool) -> Action {
    if let suspect, now - suspect.since > Self.suspicion {
      safetyPollFound += suspect.rows
      self.suspect = nil
    }
    if stopped {
      wantsLock = false
      return .wait(until: nil)
    }
    if let notBefore {
      if now < notBefore { return .wait(until: notBefore) }
      self.notBefore = nil
    }
    if room <= 0 {
      // Full: a notification would be of no use, and may be of use to another worker.
      if hasMore || fresh != nil { wantsLock = false }
      return .wait(until: nil)
    }
    if let deferred, deferred <= now, fresh == nil { fresh = .notified }
    if let fresh {
      self.fresh = nil
      return claim(fresh, room, isIdle, now)
    }
    if let due, due <= now {
      self.due = nil
      return claim(.due, room, isIdle, now)
    }
    if hasMore {
      let sweepIsDue = lastFresh.map { now - $0 >= sweepPause } ?? true
      return claim(sweepIsDue ? .sweep : nil, room, isIdle, now)
    }
    return once ? nextOfOnce(now, room, isIdle) : nextWithoutWork(now, room, isIdle)
  }

  /// Whether `lockStep` would give something.
  var wantsLockStep: Bool {
    switch lock {
    case .free: wantsLock && !stopped
    case .held: !wantsLock || stopped
    case .requested, .releasing: false
    }
  }

  /// What the handshake connection is to do; asked again after each answer.
  mutating func lockStep() -> LockStep? {
    guard wantsLockStep else { return nil }
    lock = lock == .free ? .requested : .releasing
    return lock == .requested ? .sleep : .wake
  }

  private mutating func nextOfOnce(_ now: Instant, _ room: Int, _ isIdle: Bool) -> Action {
    if isIdle && !emptyWhileIdle { return claim(.drain, room, isIdle, now) }
    if isIdle && retries == 0 { return .finished }
    if isIdle && due == nil { emptyWhileIdle = false }
    // A retry without a time cannot be; but waiting for ever would be the worst answer to it.
    return .wait(until: due ?? (isIdle ? now + Self.safetyInterval : nil))
  }

  private mutating func nextWithoutWork(_ now: Instant, _ room: Int, _ isIdle: Bool) -> Action {
    if isStillBusy(at: now) {
      let deadline = (lastClaim ?? now) + Self.busyPoll
      if deadline <= now { return claim(.pending, room, isIdle, now) }
      return .wait(until: due.map { min($0, deadline) } ?? deadline)
    }
    wantsLock = true
    let isSafe = lock == .held && listening
    let rests = isSafe || isBehind && listening
    let deadline = (lastFresh ?? now) + (rests ? safetyPoll : pendingPoll)
    if deadline <= now {
      if !rests { pendingPoll = min(pendingPoll * 2, Self.lastPendingPoll) }
      return claim(isSafe ? .safety : .pending, room, isIdle, now)
    }
    return .wait(until: [due, deferred].compactMap(\.self).reduce(deadline, min))
  }

  private mutating func claim(
    _ reason: Reason?, _ room: Int, _ isIdle: Bool, _ now: Instant
  ) -> Action {
    if reason != nil {
      lastFresh = now
      deferred = nil
    }
    notifiedWhileClaiming = false
    let limit = min(room, largestClaim)
    claiming = (limit, reason, isIdle, now)
    return .claim(limit: limit, reason: reason)
  }
}
