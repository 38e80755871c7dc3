import Postgres
import Testing

@testable import Worker

@Suite struct DrainTests {
  @Test("who is asked says so once it found nothing, for that round alone")
  func rounds() {
    let drain = Drain(Wake())
    #expect(!drain.isOver(1))
    #expect(drain.round == 1)
    #expect(drain.foundNothing(1), "somebody waits for it")
    #expect(!drain.foundNothing(1), "and is told once")
    #expect(drain.isOver(1))
    #expect(!drain.isOver(2))
  }

  @Test("a look that began before it was asked is no answer")
  func early() {
    let drain = Drain(Wake())
    let before = drain.round
    #expect(!drain.isOver(1))
    _ = drain.foundNothing(before)
    #expect(!drain.isOver(1))
    #expect(drain.foundNothing(drain.round))
    #expect(drain.isOver(1))
  }

  @Test("who may not ask any more has nothing to do, and says why until it may")
  func refused() {
    let drain = Drain(Wake())
    #expect(!drain.isOver(1))
    #expect(drain.foundNothing(1, because: PostgresError(.server, "no", sqlState: "42501")))
    #expect(drain.isOver(1))
    #expect(drain.refusal?.sqlState == "42501")
    #expect(!drain.isOver(2))
    #expect(drain.foundNothing(2))
    #expect(drain.refusal == nil)
  }

  @Test("asking wakes the loop, once for each round")
  func wakes() async {
    let wake = Wake()
    let drain = Drain(wake)
    for round in 1...3 {
      #expect(!drain.isOver(round))
      await wake.wait()
      #expect(drain.foundNothing(drain.round))
      #expect(drain.isOver(round))
    }
  }
}
