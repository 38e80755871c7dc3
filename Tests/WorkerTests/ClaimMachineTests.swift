import Testing

@testable import Worker

private typealias Action = ClaimMachine.Action

/// A machine with a clock of its own.
private struct Bench {
  var machine: ClaimMachine
  var now = ContinuousClock.now
  var room = 100
  var isIdle = true

  init(once: Bool = false, largestClaim: Int = 50) {
    machine = ClaimMachine(once: once, largestClaim: largestClaim)
  }

  mutating func next() -> ClaimMachine.Action {
    machine.next(at: now, room: room, isIdle: isIdle)
  }

  /// Expects a claim for this reason, and answers it.
  mutating func claim(
    _ reason: ClaimMachine.Reason?, gives rows: Int = 0, wait: Int? = nil, retries: Int = 0,
    sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let action = next()
    guard case .claim(_, reason) = action else {
      Issue.record(
        "\(action) instead of a claim, \(String(describing: reason))",
        sourceLocation: sourceLocation)
      return
    }
    machine.claimed(
      rows, header: .init(waitMilliseconds: wait, retries: retries), at: now)
  }

  mutating func pass(_ duration: Duration) { now += duration }

  /// Takes the machine to sleep: lock held, listener listening, nothing to do.
  mutating func fallAsleep(sourceLocation: SourceLocation = #_sourceLocation) {
    claim(.start, sourceLocation: sourceLocation)
    machine.listening(true)
    claim(.granted, sourceLocation: sourceLocation)
    expectWaiting(sourceLocation: sourceLocation)
    expectStep(.sleep, sourceLocation: sourceLocation)
    machine.granted()
    claim(.granted, sourceLocation: sourceLocation)
    expectWaiting(sourceLocation: sourceLocation)
    expectStep(nil, sourceLocation: sourceLocation)
  }

  /// Takes the machine to rest while another worker holds the lock.
  mutating func fallBehind(sourceLocation: SourceLocation = #_sourceLocation) {
    claim(.start, sourceLocation: sourceLocation)
    machine.listening(true)
    claim(.granted, sourceLocation: sourceLocation)
    expectWaiting(sourceLocation: sourceLocation)
    expectStep(.sleep, sourceLocation: sourceLocation)
    machine.lockNotGranted(isHeld: true)
    expectStep(.sleep, sourceLocation: sourceLocation)
  }

  mutating func expectWaiting(sourceLocation: SourceLocation = #_sourceLocation) {
    let action = next()
    guard case .wait = action else {
      Issue.record("\(action) instead of waiting", sourceLocation: sourceLocation)
      return
    }
  }

  mutating func expectWait(
    _ duration: Duration, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    expect(.wait(until: now + duration), sourceLocation: sourceLocation)
  }

  mutating func expect(_ action: Action, sourceLocation: SourceLocation = #_sourceLocation) {
    let next = next()
    #expect(next == action, sourceLocation: sourceLocation)
  }

  mutating func expectStep(
    _ step: ClaimMachine.LockStep?, sourceLocation: SourceLocation = #_sourceLocation
  ) {
    let next = machine.lockStep()
    #expect(next == step, sourceLocation: sourceLocation)
  }

  /// How long it would wait; nil: for ever, or not at all.
  var wait: Duration? {
    mutating get {
      guard case .wait(let until?) = next() else { return nil }
      return until - now
    }
  }
}

@Suite struct Sleeping {
  @Test("the first claim looks at everything")
  func start() {
    var bench = Bench()
    bench.expect(.claim(limit: 50, reason: .start))
  }

  @Test("a claim never asks for more than there is room for")
  func room() {
    var bench = Bench()
    bench.room = 3
    bench.expect(.claim(limit: 3, reason: .start))
    var full = Bench()
    full.room = 0
    full.expect(.wait(until: nil))
  }

  @Test("an empty claim asks for the lock, and after its grant claims once more before it sleeps")
  func handshake() {
    var bench = Bench()
    bench.machine.listening(true)
    bench.claim(.granted)
    bench.expectWaiting()
    bench.expectStep(.sleep)
    bench.expectStep(nil)
    bench.machine.granted()
    bench.claim(.granted)
    bench.expectWait(ClaimMachine.safetyInterval)
  }

  @Test("while the lock is not granted it looks by itself, less and less often")
  func pendingPolls() {
    var bench = Bench()
    bench.machine.listening(true)
    bench.claim(.granted)
    var waits: [Duration] = []
    for _ in 0..<10 {
      guard let wait = bench.wait else { return #expect(Bool(false), "does not wait") }
      waits.append(wait)
      bench.pass(wait)
      bench.claim(.pending)
    }
    #expect(waits.first == ClaimMachine.firstPendingPoll)
    #expect(waits == waits.sorted())
    #expect(waits.last == ClaimMachine.lastPendingPoll)
  }

  @Test("with the lock but without a listener it does not rely on notifications")
  func deaf() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.listening(false)
    let wait = bench.wait
    #expect((wait ?? .zero) <= ClaimMachine.lastPendingPoll)
    bench.machine.listening(true)
    bench.claim(.granted)
    bench.expectWait(ClaimMachine.safetyInterval)
  }

  @Test("a notification causes a claim of everything")
  func notified() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.claim(.notified, gives: 1)
    bench.expectWaiting()
  }

  @Test("a notification during a claim causes another claim")
  func notifiedDuringClaim() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.expect(.claim(limit: 50, reason: .notified))
    bench.machine.notified(at: bench.now)
    bench.machine.claimed(0, header: .init(), at: bench.now)
    bench.claim(.notified)
    bench.expectWaiting()
  }

  @Test("a grant during a claim causes another claim")
  func grantedDuringClaim() {
    var bench = Bench()
    bench.machine.listening(true)
    bench.claim(.granted)
    bench.expectWaiting()
    bench.expectStep(.sleep)
    bench.pass(.seconds(1))
    bench.expect(.claim(limit: 50, reason: .pending))
    bench.machine.granted()
    bench.machine.claimed(0, header: .init(), at: bench.now)
    bench.claim(.granted)
    bench.expectWait(ClaimMachine.safetyInterval)
  }

  @Test("a lost lock is asked for again, and nothing is relied on until it is granted")
  func lockGone() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.lockGone()
    let wait = bench.wait
    #expect((wait ?? .zero) <= ClaimMachine.firstPendingPoll)
    bench.expectStep(.sleep)
    bench.machine.lockNotGranted(isHeld: false)
    bench.expectWaiting()
    bench.expectStep(.sleep)
    bench.machine.granted()
    bench.claim(.granted)
  }

  @Test("while another worker holds the lock it rests as if it had it, and goes on asking for it")
  func behind() {
    var bench = Bench()
    bench.fallBehind()
    for seconds in [1, 2, 4, 8, 8] {
      bench.expectWait(.seconds(seconds))
      bench.pass(.seconds(seconds))
      bench.claim(.pending)
      bench.machine.lockNotGranted(isHeld: true)
      bench.expectStep(.sleep)
    }
    bench.machine.lockNotGranted(isHeld: false)
    bench.pass(.seconds(1))
    bench.claim(.pending)
    #expect((bench.wait ?? .zero) <= ClaimMachine.lastPendingPoll, "nobody holds it any more")
  }

  @Test("the lock of the one before it is its own at once")
  func next() {
    var bench = Bench()
    bench.fallBehind()
    bench.machine.granted()
    bench.claim(.granted)
    bench.machine.notified(at: bench.now)
    bench.claim(.notified, gives: 1)
  }

  @Test("what is notified is left to the one that holds the lock, longer while it leaves nothing")
  func courtesy() {
    var bench = Bench()
    bench.fallBehind()
    for milliseconds in [10, 20, 40, 80, 160, 250, 250] {
      bench.machine.notified(at: bench.now)
      bench.expectWait(.milliseconds(milliseconds))
      bench.pass(.milliseconds(milliseconds - 1))
      bench.machine.notified(at: bench.now)
      bench.expectWait(.milliseconds(1))
      bench.pass(.milliseconds(1))
      bench.claim(.notified)
      bench.expectWait(ClaimMachine.safetyInterval)
    }
    bench.machine.notified(at: bench.now)
    bench.pass(.milliseconds(250))
    bench.claim(.notified, gives: 1)
    bench.claim(nil)
    bench.machine.notified(at: bench.now)
    bench.expectWait(.milliseconds(10))
  }

  @Test("without a listener it leaves nothing to others")
  func deafBehind() {
    var bench = Bench()
    bench.fallBehind()
    bench.machine.listening(false)
    #expect((bench.wait ?? .zero) <= ClaimMachine.lastPendingPoll)
  }

  @Test("when it is full, a notification lets the lock go to another worker")
  func fullAndNotified() {
    var bench = Bench()
    bench.fallAsleep()
    bench.room = 0
    bench.expect(.wait(until: nil))
    bench.expectStep(nil)
    bench.machine.notified(at: bench.now)
    bench.expect(.wait(until: nil))
    bench.expectStep(.wake)
    bench.machine.lockGone()
    bench.room = 1
    bench.claim(.notified, gives: 1)
  }

  @Test("without the lock a claim that brought something is followed by another")
  func moreWithoutLock() {
    var bench = Bench()
    bench.claim(.start, gives: 3)
    bench.claim(nil, gives: 1)
    bench.claim(nil, gives: 0)
    bench.expectWaiting()
  }

  @Test(
    "a full claim is followed by another with its cursor, and ten times a second by one without")
  func sweep() {
    var bench = Bench()
    bench.claim(.start, gives: 50)
    bench.claim(nil, gives: 50)
    bench.pass(.milliseconds(99))
    bench.claim(nil, gives: 50)
    bench.pass(.milliseconds(1))
    bench.claim(.sweep, gives: 50)
    bench.claim(nil, gives: 50)
  }

  @Test(
    "sweeps that take long come more seldom, but every second",
    arguments: [(20, 400), (200, 1_000)])
  func slowSweep(takes: Int, pause: Int) {
    var bench = Bench()
    bench.expect(.claim(limit: 50, reason: .start))
    let since = bench.now
    bench.pass(.milliseconds(takes))
    bench.machine.claimed(50, header: .init(), at: bench.now)
    bench.pass(since + .milliseconds(pause - 1) - bench.now)
    bench.claim(nil, gives: 50)
    bench.pass(.milliseconds(1))
    bench.claim(.sweep, gives: 50)
  }

  @Test(
    "when busy the lock is let go, the worker looks by itself, and asks for the lock when it is quiet"
  )
  func busy() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.claim(.notified, gives: 50)
    for _ in 0..<3 { bench.claim(nil, gives: 50) }
    #expect(!bench.machine.wantsLockStep, "one large insert")
    bench.claim(nil, gives: 50)
    bench.expectStep(.wake)
    bench.machine.lockGone()
    bench.claim(nil, gives: 0)
    var looks = 0
    while case .wait(let until?) = bench.next(), !bench.machine.wantsLockStep {
      bench.pass(until - bench.now)
      bench.claim(.pending)
      looks += 1
    }
    #expect(looks == 200 / 4 + 1)
    bench.expectStep(.sleep)
  }

  @Test(
    "a hundred a second that come at once with another are busy, eighty are not",
    arguments: [(10, true), (12, false)])
  func small(gap: Int, isBusy: Bool) {
    var bench = Bench()
    bench.fallAsleep()
    for _ in 0..<100 where !bench.machine.wantsLockStep {
      bench.machine.notified(at: bench.now)
      bench.claim(.notified, gives: 2)
      bench.expectWaiting()
      bench.pass(.milliseconds(gap))
    }
    #expect(bench.machine.wantsLockStep == isBusy)
  }

  @Test("what comes one after the other is claimed when it is notified, however quickly it comes")
  func oneAfterTheOther() {
    var bench = Bench()
    bench.fallAsleep()
    for _ in 0..<1_000 {
      bench.machine.notified(at: bench.now)
      bench.claim(.notified, gives: 1)
      bench.expectWaiting()
      bench.expectStep(nil)
      bench.pass(.microseconds(100))
    }
  }

  @Test(
    "a busy worker stays so while forty a second come at once with another, and not for what comes one after the other",
    arguments: [(2, true), (1, false)])
  func staysBusy(rows: Int, isBusy: Bool) {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.claim(.notified, gives: 50)
    for _ in 0..<4 { bench.claim(nil, gives: 50) }
    bench.expectStep(.wake)
    bench.machine.lockGone()
    var claims = 0
    var wanted = 0
    for _ in 0..<400 {
      bench.pass(.milliseconds(4))
      if case .claim = bench.next() {
        claims += 1
        bench.machine.claimed(
          claims % 5 == 0 ? rows : 0, header: .init(), at: bench.now)
      }
      if bench.machine.wantsLockStep { wanted += 1 }
    }
    #expect(wanted == 0 || !isBusy)
    #expect(wanted > 0 || isBusy)
    #expect(claims >= 100)
  }

  @Test(
    "a hundred notifications a second while it is claiming are busy, however few and large the claims are",
    arguments: [(10, true), (11, false)])
  func bells(gap: Int, isBusy: Bool) {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.expect(.claim(limit: 50, reason: .notified))
    for n in 0..<20 {
      if n > 0 { bench.pass(.milliseconds(gap)) }
      bench.machine.notified(at: bench.now)
    }
    bench.machine.claimed(1, header: .init(), at: bench.now)
    #expect(bench.machine.wantsLockStep == isBusy)
  }

  @Test("slow claims that bring many keep it busy, and eight that bring few do not")
  func slowClaims() {
    var bench = Bench()
    bench.fallAsleep()
    for _ in 0...20 { bench.machine.notified(at: bench.now) }
    bench.expectStep(.wake)
    bench.machine.lockGone()
    func slowly(_ rows: Int) {
      if case .wait(let until?) = bench.next() { bench.now = until }
      guard case .claim = bench.next() else { return }
      bench.pass(.milliseconds(300))
      bench.machine.claimed(rows, header: .init(), at: bench.now)
    }
    for _ in 0..<20 {
      slowly(100)
      slowly(0)
      #expect(!bench.machine.wantsLockStep)
    }
    var claims = 0
    while !bench.machine.wantsLockStep, claims < 20 {
      slowly(0)
      _ = bench.next()
      claims += 1
    }
    #expect((7...9).contains(claims), "\(claims)")
  }

  @Test("no room while there is more lets the lock go")
  func full() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.claim(.notified, gives: 50)
    bench.room = 0
    bench.expect(.wait(until: nil))
    bench.expectStep(.wake)
    bench.machine.lockGone()
    bench.room = 7
    bench.expect(.claim(limit: 7, reason: nil))
  }

  @Test("it wakes for the next delayed generation, and after a result that went back")
  func due() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.requeued()
    bench.claim(.requeued, wait: 300, retries: 1)
    bench.expectWait(.milliseconds(300))
    bench.pass(.milliseconds(300))
    bench.claim(.due, gives: 1)
    #expect(bench.machine.safetyPollFound == 0)
  }

  @Test("a claim with a cursor does not forget what is due")
  func cursorKeepsDue() {
    var bench = Bench()
    bench.claim(.start, gives: 50, wait: 400)
    bench.claim(nil, gives: 0)
    bench.pass(.milliseconds(400))
    bench.claim(.due)
  }

  @Test("it goes on with the rest of a lane and the cursor, and then asks what comes later")
  func restOfALane() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.claim(.notified, gives: 8, wait: 0)
    bench.claim(nil, gives: 8, wait: 0)
    bench.room = 0
    bench.expect(.wait(until: nil))
    bench.room = 100
    bench.claim(nil, gives: 3)
    bench.claim(.due, wait: 300, retries: 1)
    bench.expectWait(.milliseconds(300))
  }

  @Test("a failed claim is made again in full, not before its time")
  func failure() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.notified(at: bench.now)
    bench.expect(.claim(limit: 50, reason: .notified))
    bench.machine.claimFailed(retryAt: bench.now + .seconds(2))
    bench.expectWait(.seconds(2))
    bench.machine.notified(at: bench.now)
    bench.expectWait(.seconds(2))
    bench.pass(.seconds(2))
    bench.claim(.start)
  }

  @Test("after a stop it claims nothing and lets the lock go")
  func stop() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.stop()
    bench.machine.notified(at: bench.now)
    bench.expect(.wait(until: nil))
    bench.expectStep(.wake)
    bench.machine.lockGone()
    bench.expectStep(nil)
  }

  @Test("a new identity looks at everything again")
  func reset() {
    var bench = Bench()
    bench.fallAsleep()
    bench.machine.reset()
    bench.claim(.start)
  }
}

@Suite struct SafetyPoll {
  @Test("what only the safety poll found is counted as a lost wake-up")
  func counted() {
    var bench = Bench()
    bench.fallAsleep()
    bench.pass(ClaimMachine.safetyInterval)
    bench.claim(.safety, gives: 2)
    #expect(bench.machine.safetyPollFound == 0, "its notification may be on its way")
    bench.pass(.seconds(1))
    bench.claim(.safety)
    #expect(bench.machine.safetyPollFound == 2)
  }

  @Test("it is not counted where the notification was only late")
  func late() {
    var bench = Bench()
    bench.fallAsleep()
    bench.pass(ClaimMachine.safetyInterval)
    bench.claim(.safety, gives: 1)
    bench.pass(.milliseconds(2))
    bench.machine.notified(at: bench.now)
    bench.claim(.notified)
    bench.pass(.seconds(1))
    bench.claim(.safety)
    #expect(bench.machine.safetyPollFound == 0)
  }

  @Test("a notification that comes during the safety poll explains what it finds")
  func explainedMeanwhile() {
    var bench = Bench()
    bench.fallAsleep()
    bench.pass(ClaimMachine.safetyInterval)
    bench.expect(.claim(limit: 50, reason: .safety))
    bench.machine.notified(at: bench.now)
    bench.machine.claimed(1, header: .init(), at: bench.now)
    bench.pass(.milliseconds(300))
    bench.claim(.notified)
    #expect(bench.machine.safetyPollFound == 0)
  }

  @Test("an empty safety poll counts for nothing, and comes more and more seldom")
  func empty() {
    var bench = Bench()
    bench.fallAsleep()
    for seconds in [1, 2, 4, 8, 8] {
      bench.expectWait(.seconds(seconds))
      bench.pass(.seconds(seconds))
      bench.claim(.safety)
    }
    #expect(bench.machine.safetyPollFound == 0)
    #expect(ClaimMachine.lastSafetyInterval == .seconds(8))
    bench.machine.notified(at: bench.now)
    bench.claim(.notified)
    bench.expectWait(ClaimMachine.safetyInterval)
  }
}

@Suite struct Once {
  @Test("nothing queued, nothing under way, no retry: finished, without a lock")
  func empty() {
    var bench = Bench(once: true)
    bench.claim(.start)
    bench.expect(.finished)
    #expect(!bench.machine.wantsLockStep)
  }

  @Test("what is under way is waited for, and then looked once more")
  func inFlight() {
    var bench = Bench(once: true)
    bench.claim(.start, gives: 2)
    bench.isIdle = false
    bench.claim(nil)
    bench.expect(.wait(until: nil))
    bench.isIdle = true
    bench.claim(.drain, gives: 0)
    bench.expect(.finished)
  }

  @Test("an empty claim counts only if nothing was under way when it began")
  func emptyWhileBusy() {
    var bench = Bench(once: true)
    bench.isIdle = false
    bench.claim(.start, gives: 0)
    bench.isIdle = true
    bench.claim(.drain, gives: 0)
    bench.expect(.finished)
  }

  @Test("retries are waited for")
  func retries() {
    var bench = Bench(once: true)
    bench.claim(.start, wait: 500, retries: 1)
    bench.expectWait(.milliseconds(500))
    bench.pass(.milliseconds(500))
    bench.claim(.due, gives: 1)
    bench.isIdle = false
    bench.claim(nil)
    bench.machine.requeued()
    bench.isIdle = true
    bench.claim(.requeued, wait: 800, retries: 1)
    bench.expectWait(.milliseconds(800))
    bench.pass(.milliseconds(800))
    bench.claim(.due, gives: 0, retries: 0)
    bench.expect(.finished)
  }

  @Test("generations scheduled for later are not waited for")
  func scheduled() {
    var bench = Bench(once: true)
    bench.claim(.start, wait: 3_600_000, retries: 0)
    bench.expect(.finished)
  }

  @Test("what was only moved to another lane is claimed at once")
  func moved() {
    var bench = Bench(once: true)
    bench.claim(.start, wait: 1)
    bench.claim(.drain, gives: 1)
    bench.isIdle = false
    bench.claim(nil)
    bench.isIdle = true
    bench.claim(.drain, wait: 1)
    bench.claim(.drain, gives: 0)
    bench.expect(.finished)
  }

  @Test("a result that went back is claimed again")
  func requeued() {
    var bench = Bench(once: true)
    bench.claim(.start, gives: 1)
    bench.isIdle = false
    bench.claim(nil)
    bench.isIdle = true
    bench.machine.requeued()
    bench.claim(.requeued, gives: 1)
  }
}

/// A queue with inserters and the handshake's rules, to try the machine against random orders.
@Suite struct HandshakeProperty {
  @Test("no committed row waits for the safety poll, in any order of events")
  func noneLost() {
    let seed = UInt64.random(in: 0 ... .max)
    var random = Seeded(seed)
    for round in 0..<300 {
      var world = World()
      for _ in 0..<400 { world.step(using: &random) }
      world.settle(using: &random)
      #expect(world.bench.machine.safetyPollFound == 0, "seed \(seed), round \(round)")
      #expect(world.leftForPolls == 0, "seed \(seed), round \(round)")
      #expect(world.queued == 0, "seed \(seed), round \(round)")
    }
  }

  private struct World {
    var bench = Bench(largestClaim: 4)
    var queued = 0
    /// What was still queued a while after everything had come to rest.
    var leftForPolls = 0
    /// Inserts under way; true: it could not share the lock and will notify.
    var inserts: [Bool] = []
    /// Notifications on their way to the listener.
    var flying = 0
    var wantsLock = false
    var holdsLock = false
    /// Another worker holds it, which looked when it got it, and was frozen then: it never claims again.
    var isHeldByAnother = false

    init() { bench.machine.listening(true) }

    mutating func step(using random: inout Seeded) {
      switch Int.random(in: 0..<11, using: &random) {
      case 0, 1: inserts.append(wantsLock || holdsLock || isHeldByAnother)
      case 2, 3: commit(using: &random)
      case 4: if flying > 0 { deliver() }
      case 5: handshake(using: &random)
      case 6:
        // A notification may be late, but not by a quarter of a second.
        let isLong = Bool.random(using: &random)
        if isLong { while flying > 0 { deliver() } }
        bench.pass(.milliseconds(Int.random(in: 0...(isLong ? 400 : 3), using: &random)))
      case 7:
        // It comes and goes; like everybody it gets the lock only where no insert shares it.
        if isHeldByAnother {
          isHeldByAnother = false
        } else if !holdsLock && !inserts.contains(false) {
          isHeldByAnother = true
          queued = 0
        }
      default: work(using: &random)
      }
    }

    mutating func commit(using random: inout Seeded) {
      guard let index = inserts.indices.randomElement(using: &random) else { return }
      if inserts.remove(at: index) { flying += 1 }
      queued += 1
    }

    mutating func deliver() {
      flying -= 1
      bench.machine.notified(at: bench.now)
    }

    /// The lock is granted when every insert that shares it has ended.
    mutating func handshake(using random: inout Seeded) {
      if wantsLock {
        if isHeldByAnother {
          guard Bool.random(using: &random) else { return }
          wantsLock = false
          return bench.machine.lockNotGranted(isHeld: true)
        }
        guard !inserts.contains(false) else { return }
        wantsLock = false
        holdsLock = true
        return bench.machine.granted()
      }
      switch bench.machine.lockStep() {
      case .sleep: wantsLock = true
      case .wake:
        holdsLock = false
        bench.machine.lockGone()
      case nil: break
      }
    }

    /// A claim sees what is committed when it begins; more may be committed before it ends.
    mutating func work(using random: inout Seeded) {
      guard case .claim(let limit, _) = bench.next() else { return }
      let rows = min(limit, queued)
      queued -= rows
      if Bool.random(using: &random) { commit(using: &random) }
      if flying > 0, Bool.random(using: &random) { deliver() }
      bench.machine.claimed(rows, header: .init(), at: bench.now)
    }

    /// Lets everything come to rest, within less than the safety poll's time.
    mutating func settle(using random: inout Seeded) {
      while !inserts.isEmpty { commit(using: &random) }
      for _ in 0..<400 {
        if flying > 0 { deliver() }
        handshake(using: &random)
        work(using: &random)
        bench.pass(.milliseconds(2))
      }
      leftForPolls = queued
      bench.pass(.seconds(2))
      work(using: &random)
      bench.pass(.seconds(2))
      work(using: &random)
    }
  }
}
