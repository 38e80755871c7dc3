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
