import Testing

@testable import Worker

private func fence(_ number: Int, attempt: Int = 1) -> Fence {
  Fence(high: 7, low: UInt64(number), attempt: attempt)
}

private func succeeded(_ number: Int) -> Settlement {
  Settlement(fence: fence(number), outcome: .succeeded)
}

@Suite struct GatheringTests {
  private let start = ContinuousClock.now
  private let interval = Duration.milliseconds(50)

  @Test("the first text of a stream is due at once, and wakes the settler")
  func first() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    #expect(gathering.due(at: start) == nil)
    let wakes = gathering.text("a", of: fence(1))
    #expect(wakes)
    #expect(gathering.due(at: start) == start)
    let taken = gathering.take(at: start)
    #expect(taken.deltas == [.init(fence: fence(1), part: 1, text: "a")])
    #expect(gathering.due(at: start) == nil)
  }

  @Test("later texts of a stream gather until the interval has passed")
  func coalescing() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("a", of: fence(1))
    _ = gathering.take(at: start)
    let wakes = gathering.text("b", of: fence(1))
    #expect(wakes, "somebody must set the timer")
    let wakesAgain = gathering.text("c", of: fence(1))
    #expect(!wakesAgain)
    let now = start + .milliseconds(10)
    #expect(gathering.due(at: now) == start + interval)
    #expect(gathering.take(at: now).deltas.isEmpty)
    let taken = gathering.take(at: start + interval)
    #expect(taken.deltas == [.init(fence: fence(1), part: 2, text: "bc")])
  }

  @Test("a first text goes at once without taking along texts before their time")
  func firstOfAnother() {
    var gathering = Gathering(interval: interval)
    for number in 1...2 { gathering.begin(fence(number)) }
    _ = gathering.text("a", of: fence(1))
    _ = gathering.take(at: start)
    _ = gathering.text("b", of: fence(1))
    _ = gathering.text("x", of: fence(2))
    let now = start + .milliseconds(10)
    #expect(gathering.take(at: now).deltas == [.init(fence: fence(2), part: 1, text: "x")])
    #expect(gathering.take(at: now + interval).deltas.map(\.text) == ["b"])
  }

  @Test("what was not published goes as the tail of the result")
  func tail() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("a", of: fence(1))
    _ = gathering.take(at: start)
    _ = gathering.text("b", of: fence(1))
    gathering.result(succeeded(1))
    _ = gathering.text("late", of: fence(2))
    let taken = gathering.take(at: start)
    #expect(taken.deltas.isEmpty)
    #expect(taken.results.map(\.tail) == ["b"])
    #expect(gathering.due(at: start + .seconds(1)) == nil)
  }

  @Test("text and result before anything was taken: all of it is tail, nothing is published")
  func onlyTail() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("all", of: fence(1))
    gathering.result(succeeded(1))
    let taken = gathering.take(at: start)
    #expect(taken.deltas.isEmpty)
    #expect(taken.results.map(\.tail) == ["all"])
    // The count of first texts is right again: nothing is due.
    #expect(gathering.due(at: start + .seconds(1)) == nil)
  }

  @Test("results are due at once and taken together")
  func results() {
    var gathering = Gathering(interval: interval)
    for number in 1...3 { gathering.result(succeeded(number)) }
    #expect(gathering.due(at: start) == start)
    #expect(gathering.take(at: start).results.map(\.fence.low) == [1, 2, 3])
    #expect(gathering.due(at: start) == nil)
  }

  @Test("texts that were refused go again, before what came later, under the same number")
  func giveBack() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("a", of: fence(1))
    let taken = gathering.take(at: start)
    _ = gathering.text("b", of: fence(1))
    gathering.giveBack(taken.deltas)
    let again = gathering.take(at: start + interval)
    #expect(again.deltas == [.init(fence: fence(1), part: 1, text: "ab")])
  }

  @Test("texts that were refused go with the tail where the attempt has ended meanwhile")
  func giveBackToTail() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("a", of: fence(1))
    let taken = gathering.take(at: start)
    _ = gathering.text("b", of: fence(1))
    gathering.result(succeeded(1))
    gathering.giveBack(taken.deltas)
    #expect(gathering.take(at: start).results.map(\.tail) == ["ab"])
  }

  @Test("a dropped attempt says nothing more")
  func drop() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("a", of: fence(1))
    gathering.drop(fence(1))
    #expect(gathering.due(at: start + .seconds(1)) == nil)
    _ = gathering.text("b", of: fence(1))
    #expect(gathering.due(at: start + .seconds(1)) == nil)
    gathering.result(succeeded(2))
    gathering.drop(fence(2))
    #expect(gathering.take(at: start).results.isEmpty)
  }

  @Test(
    "in any order of events every text reaches the database once, in order, before or with its result"
  )
  func property() {
    let seed = UInt64.random(in: 0 ... .max)
    var random = Seeded(seed)
    for _ in 0..<500 {
      var gathering = Gathering(interval: interval)
      var now = start
      let count = 4
      var sent = [String](repeating: "", count: count)
      var arrived = [String](repeating: "", count: count)
      var parts = [Int](repeating: 0, count: count)
      var ended = [Bool](repeating: false, count: count)
      var settled = [Int](repeating: 0, count: count)
      for number in 0..<count { gathering.begin(fence(number)) }

      func take() {
        let taken = gathering.take(at: now)
        if Int.random(in: 0..<4, using: &random) == 0 {
          gathering.giveBack(taken.deltas)
        } else {
          for delta in taken.deltas {
            let number = Int(delta.fence.low)
            #expect(settled[number] == 0, "seed \(seed): text after the result")
            #expect(delta.part == parts[number] + 1, "seed \(seed): parts")
            parts[number] = delta.part
            arrived[number] += delta.text
          }
        }
        for result in taken.results {
          let number = Int(result.fence.low)
          arrived[number] += result.tail
          settled[number] += 1
        }
      }
      for step in 0..<200 {
        let number = Int.random(in: 0..<count, using: &random)
        switch Int.random(in: 0..<8, using: &random) {
        case 0 where step > 100 && !ended[number]:
          ended[number] = true
          gathering.result(succeeded(number))
        case 1...3 where !ended[number]:
          let text = "\(step) "
          sent[number] += text
          _ = gathering.text(text, of: fence(number))
        case 4, 5: now += .milliseconds(Int.random(in: 0...40, using: &random))
        default: take()
        }
      }
      for number in 0..<count where !ended[number] { gathering.result(succeeded(number)) }
      now += .seconds(1)
      take()
      // A batch that was given back in the last turn belongs to streams that have ended.
      #expect(arrived == sent, "seed \(seed)")
      #expect(settled == [1, 1, 1, 1], "seed \(seed)")
      #expect(gathering.due(at: now) == nil, "seed \(seed)")
    }
  }
}
