import HTTP
import Testing

@testable import Worker

private func fence(_ number: Int, attempt: Int = 1) -> Fence {
  Fence(high: 1, low: UInt64(number), attempt: attempt)
}

@Suite struct RosterTests {
  @Test("an attempt is held from its claim to the database's receipt")
  func life() {
    var roster = Roster()
    roster.begin(fence(1))
    #expect(roster.transferring == 1 && roster.unsettled == 0 && !roster.isEmpty)
    let isReported = roster.finished(fence(1))
    #expect(isReported)
    #expect(roster.transferring == 0 && roster.unsettled == 1 && roster.holds(fence(1)))
    roster.settled(fence(1))
    #expect(roster.isEmpty && roster.unsettled == 0)
  }

  @Test("a second end of the same attempt changes nothing")
  func twice() {
    var roster = Roster()
    roster.begin(fence(1))
    _ = roster.finished(fence(1))
    let again = roster.finished(fence(1))
    #expect(!again)
    roster.settled(fence(1))
    roster.settled(fence(1))
    #expect(roster.transferring == 0 && roster.unsettled == 0)
  }

  @Test("the next attempt at a generation may begin before the last one is settled")
  func nextAttempt() {
    var roster = Roster()
    roster.begin(fence(1))
    _ = roster.finished(fence(1))
    roster.begin(fence(1, attempt: 2))
    roster.settled(fence(1))
    #expect(roster.transferring == 1 && roster.holds(fence(1, attempt: 2)))
  }

  @Test("the reason of an early end is kept until the transfer ends")
  func ending() {
    var roster = Roster()
    roster.begin(fence(1))
    _ = roster.end(fence(1), .cancelled)
    _ = roster.end(fence(1), .released)
    #expect(roster.ending(of: fence(1)) == .cancelled)
    let isReported = roster.finished(fence(1))
    #expect(isReported)
  }

  @Test("a dropped attempt is not reported, whatever was wanted before")
  func dropped() {
    var roster = Roster()
    roster.begin(fence(1))
    _ = roster.end(fence(1), .cancelled)
    _ = roster.end(fence(1), .dropped)
    let isReported = roster.finished(fence(1))
    #expect(!isReported)
    #expect(roster.isEmpty && roster.transferring == 0 && roster.unsettled == 0)
  }

  @Test("an end that is asked for before the transfer has a name aborts it when it gets one")
  func endBeforeStart() throws {
    var roster = Roster()
    roster.begin(fence(1))
    let nothing = roster.end(fence(1), .cancelled)
    #expect(nothing == nil)
    let transfer = try anyTransfer()
    let mustAbort = roster.started(fence(1), transfer)
    #expect(mustAbort)
    let named = roster.endAll(.released)
    #expect(named == [transfer])
  }

  @Test("of two transfers that are named in the wrong order the later one is aborted")
  func namedLate() {
    var roster = Roster()
    roster.begin(fence(1))
    _ = roster.started(fence(1), TransferID(number: 2))
    // It has been over since before it was named: its answer began the second.
    let mustAbort = roster.started(fence(1), TransferID(number: 1))
    #expect(!mustAbort)
    let transfer = roster.end(fence(1), .cancelled)
    #expect(transfer == TransferID(number: 2))
  }

  @Test("what has finished is not aborted any more")
  func endAfterFinish() {
    var roster = Roster()
    roster.begin(fence(1))
    _ = roster.finished(fence(1))
    let one = roster.end(fence(1), .cancelled)
    let all = roster.endAll(.dropped)
    #expect(one == nil && all.isEmpty)
    roster.dropFinished()
    #expect(roster.isEmpty && roster.unsettled == 0)
  }

  /// A name as the pool gives it.
  private func anyTransfer() throws -> TransferID {
    final class Nobody: TransferSink {
      func head(status: Int, headers: [String: String]) {}
      func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict { .more }
      var hasBegun: Bool { true }
      func finished(_ outcome: TransferOutcome) {}
    }
    let pool = try TransferPool()
    pool.stop()
    return pool.start(HTTPRequest(url: "http://127.0.0.1/"), sink: Nobody())
  }
}
