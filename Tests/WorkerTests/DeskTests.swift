import Testing

@testable import Worker

@Suite struct DeskTests {
  private let fence = Fence(high: 3, low: 1, attempt: 1)

  private func desk() -> Desk {
    Desk(
      identity: Identity(
        worker: "w", channel: "c", heartbeat: .seconds(1), maintenance: .seconds(1),
        publication: .milliseconds(30)), concurrency: 4, once: false)
  }

  @Test("who is claiming is not idle: what the claim leases is not known yet")
  func claiming() throws {
    let desk = desk()
    #expect(desk.isIdle)
    guard case .claim = desk.nextClaim() else {
      Issue.record("the first step is a claim")
      return
    }
    #expect(!desk.isIdle)
    desk.begin(fence, streams: false)
    desk.claimed(1, header: .init())
    #expect(!desk.isIdle, "the call is under way")
    desk.handBack(fence)
    #expect(!desk.isIdle, "nobody has been told yet")
    let results = desk.takeResults(for: .all).results
    #expect(results.map(\.outcome) == [.released] && results.map(\.sent) == [false])
    desk.settled(results, requeued: 1, stale: 0)
    #expect(desk.isIdle)
  }

  @Test("an attempt's result is taken with the answers that it began for")
  func company() {
    let desk = desk()
    desk.begin(fence, streams: false, settledWith: .slow)
    desk.begin(fence, streams: false)
    desk.finished(Settlement(fence: fence, outcome: .succeeded))
    #expect(!desk.hasResults(for: .all))
    #expect(desk.takeResults(for: .slow).results.map(\.fence) == [fence])
  }

  @Test("a claim that failed is over")
  func failed() {
    let desk = desk()
    _ = desk.nextClaim()
    desk.claimFailed(retryAt: .now)
    #expect(desk.isIdle)
  }

  @Test("who gives file memory back tells the claimer", .timeLimit(.minutes(1)))
  func files() async {
    let desk = desk()
    #expect(desk.files.add(600 << 20))
    guard case .wait = desk.nextClaim() else {
      Issue.record("there is no room for what a call might bring")
      return
    }
    desk.giveBack(files: 600 << 20)
    await desk.claimerWake.wait(until: nil)
    guard case .claim = desk.nextClaim() else {
      Issue.record("there is room again")
      return
    }
  }
}

@Suite struct FateTests {
  @Test("what was sent before the connection was lost may have been taken, whatever comes later")
  func unknown() {
    var fate = Fate.notTaken
    fate.failed(isSent: false, connectionIsLost: true)
    #expect(fate == .notTaken, "it never went out")
    fate.failed(isSent: true, connectionIsLost: false)
    #expect(fate == .notTaken, "it was refused")
    fate.failed(isSent: true, connectionIsLost: true)
    #expect(fate == .unknown)
    fate.failed(isSent: true, connectionIsLost: false)
    fate.failed(isSent: false, connectionIsLost: true)
    #expect(fate == .unknown)
  }
}
