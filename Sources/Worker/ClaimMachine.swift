/// Decides when to claim, when to wait, and when the handshake lock is wanted. Pure: the time is
/// given, the claims are made by `Claimer`.
///
/// No wake-up may be lost. While the lock is held, and the listener listens, every insert that
/// commits sends a notification; so after the lock was granted the machine claims once more, and
/// only then waits. Until it is granted nothing can be relied on, so it looks by itself in short
/// intervals. A notification that comes while a claim is under way always causes another claim.
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
    /// Nothing should be there. Whatever this finds was a lost wake-up.
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
    var waitMilliseconds: Int?
    var retries: Int?
  }

  private enum Lock { case free, requested, held, releasing }

  static let safetyInterval = Duration.seconds(1)
  static let sweepInterval = Duration.seconds(1)
  static let firstPendingPoll = Duration.milliseconds(4)
  static let lastPendingPoll = Duration.milliseconds(250)
  /// Claims in a row that brought something, after which the worker counts as busy.
  static let busyStreak = 8
  static let fullStreak = 3
  /// Claims count as in a row when no more than this lies between them.
  static let streakGap = Duration.milliseconds(5)
  /// A notification may be on its way while the safety poll finds its row.
  static let suspicion = Duration.milliseconds(250)

  let once: Bool
  let largestClaim: Int

  private var stopped = false
  private var fresh: Reason? = .start
  private var hasMore = false
  private var due: Instant?
  private var retries = 0
  private var lastFresh: Instant?
  private var lastClaim: Instant?
  private var pendingPoll = firstPendingPoll
  private var streak = 0
  private var fulls = 0
  private var lock = Lock.free
  private var wantsLock = false
  private var listening = false
  private var claiming: (limit: Int, reason: Reason?, idle: Bool)?
  private var emptyWhileIdle = false
  private var notBefore: Instant?
  private var suspect: (since: Instant, rows: Int)?
  /// A notification came while the claim was under way: it may be that of the rows it brings.
  private var notifiedWhileClaiming = false
  /// Rows that only the safety poll found.
  private(set) var safetyPollFound = 0

  init(once: Bool, largestClaim: Int) {
    self.once = once
    self.largestClaim = max(1, largestClaim)
  }

  // MARK: What happens

  mutating func notified() {
    suspect = nil
    notifiedWhileClaiming = true
    if fresh == nil || fresh == .sweep { fresh = .notified }
    emptyWhileIdle = false
  }

  mutating func requeued() {
    if fresh == nil { fresh = .requeued }
    emptyWhileIdle = false
  }

  /// The listener listens, or does no longer.
  mutating func listening(_ isListening: Bool) {
    listening = isListening
    pendingPoll = Self.firstPendingPoll
    if isListening { fresh = .granted }
  }

  /// The database granted the lock.
  mutating func granted() {
    lock = .held
    fresh = .granted
    fulls = 0
    streak = 0
  }

  /// The lock was let go, or went with its connection.
  mutating func lockGone() {
    lock = .free
    pendingPoll = Self.firstPendingPoll
  }

  /// The request for the lock came to nothing so far.
  mutating func lockNotGranted() { lock = .free }

  mutating func stop() { stopped = true }

  /// The worker has a new name in the database: nothing learned before counts.
  mutating func reset() {
    fresh = .start
    hasMore = false
    due = nil
    retries = 0
  }

  /// A claim gave so many calls.
  mutating func claimed(_ rows: Int, header: Header, at now: Instant) {
    guard let claim = claiming else { return }
    claiming = nil
    hasMore = rows >= claim.limit || (rows > 0 && lock != .held)
    emptyWhileIdle = rows == 0 && claim.idle && claim.reason != nil
    if claim.reason != nil {
      due = header.waitMilliseconds.map { now + .milliseconds($0) }
      retries = header.retries ?? 0
    } else if let wait = header.waitMilliseconds {
      due = now + .milliseconds(wait)
    }
    if claim.reason == .safety && rows > 0 && !notifiedWhileClaiming { suspect = (now, rows) }
    let isInRow = lastClaim.map { now - $0 <= Self.streakGap } ?? false
    streak = rows > 0 ? (isInRow ? streak + 1 : 1) : 0
    fulls = rows >= claim.limit ? fulls + 1 : 0
    lastClaim = now
    if rows > 0 { pendingPoll = Self.firstPendingPoll }
    if lock == .held, streak >= Self.busyStreak || fulls >= Self.fullStreak { wantsLock = false }
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
      // Full: a notification would be of no use.
      if hasMore { wantsLock = false }
      return .wait(until: nil)
    }
    if let fresh {
      self.fresh = nil
      return claim(fresh, room, isIdle, now)
    }
    if let due, due <= now {
      self.due = nil
      return claim(.due, room, isIdle, now)
    }
    if hasMore {
      let sweepIsDue = lastFresh.map { now - $0 >= Self.sweepInterval } ?? true
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
    wantsLock = true
    let isSafe = lock == .held && listening
    let deadline = (lastFresh ?? now) + (isSafe ? Self.safetyInterval : pendingPoll)
    if deadline <= now {
      if !isSafe { pendingPoll = min(pendingPoll * 2, Self.lastPendingPoll) }
      return claim(isSafe ? .safety : .pending, room, isIdle, now)
    }
    return .wait(until: due.map { min($0, deadline) } ?? deadline)
  }

  private mutating func claim(
    _ reason: Reason?, _ room: Int, _ isIdle: Bool, _ now: Instant
  ) -> Action {
    if reason != nil { lastFresh = now }
    notifiedWhileClaiming = false
    let limit = min(room, largestClaim)
    claiming = (limit, reason, isIdle)
    return .claim(limit: limit, reason: reason)
  }
}
