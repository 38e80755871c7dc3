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

  /// One that streams, with its first text said.
  private func begun(_ numbers: Int...) -> Gathering {
    var gathering = Gathering(interval: interval)
    for number in numbers {
      gathering.begin(fence(number))
      _ = gathering.text("a", of: fence(number))
    }
    _ = gathering.published(gathering.take(.first, at: start))
    gathering.finished(.first, at: start)
    return gathering
  }

  @Test("the first text of a stream is due at once, on a lane of its own, and wakes it")
  func first() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    #expect(gathering.due(.first, at: start) == nil)
    let news = gathering.text("a", of: fence(1))
    #expect(news == .first)
    #expect(gathering.due(.first, at: start) == start)
    #expect(gathering.due(.later, at: start) == nil)
    let taken = gathering.take(.first, at: start)
    #expect(taken == [.init(fence: fence(1), part: 1, text: "a")])
    #expect(gathering.due(.first, at: start) == nil)
  }

  @Test("first texts that come while others are being said go together with the next statement")
  func groups() {
    var gathering = Gathering(interval: interval)
    for number in 1...4 { gathering.begin(fence(number)) }
    _ = gathering.text("a", of: fence(1))
    let one = gathering.take(.first, at: start)
    let news = (2...4).map { gathering.text("a", of: fence($0)) }
    #expect(news == [.first, [], []], "the lane is woken once")
    #expect(gathering.published(one) == [])
    #expect(gathering.take(.first, at: start).map(\.fence.low) == [2, 3, 4])
  }

  @Test("a first text does not wait for the texts of others that are being said")
  func firstBesideLater() {
    var gathering = begun(1)
    gathering.begin(fence(2))
    _ = gathering.text("b", of: fence(1))
    let later = gathering.take(.later, at: start)
    #expect(later.map(\.text) == ["b"])
    _ = gathering.text("x", of: fence(2))
    #expect(gathering.take(.first, at: start) == [.init(fence: fence(2), part: 1, text: "x")])
  }

  @Test("later texts of a stream gather until the interval has passed")
  func coalescing() {
    var gathering = begun(1)
    _ = gathering.text("b", of: fence(1))
    _ = gathering.published(gathering.take(.later, at: start))
    gathering.finished(.later, at: start)
    let news = gathering.text("c", of: fence(1))
    #expect(news == .later, "somebody must set the timer")
    let more = gathering.text("d", of: fence(1))
    #expect(more == [])
    let now = start + .milliseconds(10)
    #expect(gathering.due(.later, at: now) == start + interval)
    #expect(gathering.take(.later, at: now).isEmpty)
    #expect(
      gathering.take(.later, at: start + interval)
        == [.init(fence: fence(1), part: 3, text: "cd")])
  }

  @Test(
    "results leave for each company by themselves, and wake whoever takes them",
    arguments: Settlement.Company.allCases)
  func companies(company: Settlement.Company) {
    let other = company == .all ? Settlement.Company.slow : .all
    var gathering = begun(1)
    _ = gathering.text("b", of: fence(1))
    let taken = gathering.take(.later, at: start)
    var one = succeeded(1)
    one.company = company
    var two = succeeded(2)
    two.company = company
    #expect(gathering.result(one) == [], "its last text is under way")
    #expect(gathering.result(two) == .result(for: company))
    #expect(gathering.published(taken) == .result(for: company))
    #expect(!gathering.hasResults(for: other) && gathering.takeResults(for: other).isEmpty)
    gathering.drop(fence(2))
    #expect(gathering.takeResults(for: company).map(\.fence.low) == [1])
  }

  @Test("while a text of a stream is being said, the next waits, and so does the result")
  func inOrder() {
    var gathering = begun(1)
    _ = gathering.text("b", of: fence(1))
    let taken = gathering.take(.later, at: start)
    let news = gathering.text("c", of: fence(1))
    #expect(news == [])
    #expect(gathering.due(.later, at: start + .seconds(1)) == nil)
    let ended = gathering.result(succeeded(1))
    #expect(ended == [])
    #expect(!gathering.hasResults(for: .all))
    let said = gathering.published(taken)
    #expect(said == .result)
    #expect(gathering.takeResults(for: .all).map(\.tail) == ["c"])
    #expect(gathering.due(.later, at: start + .seconds(1)) == nil)
    #expect(!gathering.hasStreams)
  }

  @Test("what came while the first text was being said is a later text")
  func afterTheFirst() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("a", of: fence(1))
    let taken = gathering.take(.first, at: start)
    _ = gathering.text("b", of: fence(1))
    let news = gathering.published(taken)
    #expect(news == .later)
    #expect(gathering.take(.later, at: start) == [.init(fence: fence(1), part: 2, text: "b")])
  }

  @Test(
    "publishing later texts takes no more than a quarter of the time, and waits for ten intervals at most",
    arguments: [(1, 50), (16, 64), (50, 200), (100, 400), (200, 700), (1_000, 1_500)])
  func rests(took: Int, next: Int) {
    var gathering = begun(1)
    _ = gathering.text("b", of: fence(1))
    let taken = gathering.take(.later, at: start)
    let end = start + .milliseconds(took)
    _ = gathering.published(taken)
    gathering.finished(.later, at: end)
    _ = gathering.text("c", of: fence(1))
    #expect(gathering.due(.later, at: end) == start + .milliseconds(next))
    // First texts need no rest.
    gathering.begin(fence(2))
    _ = gathering.text("x", of: fence(2))
    #expect(gathering.due(.first, at: end) == end)
  }

  @Test("what was not published goes as the tail of the result")
  func tail() {
    var gathering = begun(1)
    _ = gathering.text("b", of: fence(1))
    let news = gathering.result(succeeded(1))
    #expect(news == .result)
    _ = gathering.text("late", of: fence(2))
    #expect(gathering.take(.later, at: start + .seconds(1)).isEmpty)
    #expect(gathering.takeResults(for: .all).map(\.tail) == ["b"])
    #expect(gathering.due(.later, at: start + .seconds(1)) == nil)
  }

  @Test("text and result before anything was taken: all of it is tail, nothing is published")
  func onlyTail() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("all", of: fence(1))
    _ = gathering.result(succeeded(1))
    #expect(gathering.due(.first, at: start + .seconds(1)) == nil)
    #expect(gathering.takeResults(for: .all).map(\.tail) == ["all"])
  }

  @Test("results are taken together, once")
  func results() {
    var gathering = Gathering(interval: interval)
    for number in 1...3 {
      let news = gathering.result(succeeded(number))
      #expect(news == .result)
    }
    #expect(gathering.takeResults(for: .all).map(\.fence.low) == [1, 2, 3])
    #expect(!gathering.hasResults(for: .all))
    #expect(gathering.takeResults(for: .all).isEmpty)
  }

  @Test("texts that were refused go again, before what came later, under the same number")
  func giveBack() {
    var gathering = Gathering(interval: interval)
    gathering.begin(fence(1))
    _ = gathering.text("a", of: fence(1))
    let taken = gathering.take(.first, at: start)
    _ = gathering.text("b", of: fence(1))
    let news = gathering.giveBack(taken)
    #expect(news == .first)
    #expect(gathering.take(.first, at: start) == [.init(fence: fence(1), part: 1, text: "ab")])
  }

  @Test("texts that were refused go with the tail where the attempt has ended meanwhile")
  func giveBackToTail() {
    var gathering = begun(1)
    _ = gathering.text("b", of: fence(1))
    let taken = gathering.take(.later, at: start)
    _ = gathering.text("c", of: fence(1))
    _ = gathering.result(succeeded(1))
    let news = gathering.giveBack(taken)
    #expect(news == .result)
    #expect(gathering.takeResults(for: .all).map(\.tail) == ["bc"])
  }

  @Test("a dropped attempt says nothing more, whatever was under way")
  func drop() {
    var gathering = begun(1, 2, 3)
    _ = gathering.text("b", of: fence(1))
    gathering.drop(fence(1))
    #expect(gathering.due(.later, at: start + .seconds(1)) == nil)
    let late = gathering.text("c", of: fence(1))
    #expect(late == [])
    _ = gathering.result(succeeded(2))
    gathering.drop(fence(2))
    #expect(!gathering.hasResults(for: .all))
    _ = gathering.text("b", of: fence(3))
    let taken = gathering.take(.later, at: start)
    _ = gathering.result(succeeded(3))
    gathering.drop(fence(3))
    let news = gathering.published(taken)
    #expect(news == [])
    #expect(!gathering.hasResults(for: .all))
  }

  @Test("an answer about texts of an earlier life concerns nobody")
  func anotherLife() {
    var gathering = begun(1)
    _ = gathering.text("b", of: fence(1))
    let taken = gathering.take(.later, at: start)
    gathering.dropEverything()
    gathering.begin(fence(2))
    _ = gathering.text("x", of: fence(2))
    let news = gathering.giveBack(taken)
    #expect(news == [])
    #expect(gathering.take(.first, at: start).map(\.text) == ["x"])
    #expect(gathering.due(.later, at: start + .seconds(1)) == nil)
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
      var underWay: [Gathering.Lane: [Gathering.Delta]] = [:]
      for number in 0..<count { gathering.begin(fence(number)) }

      func take(_ lane: Gathering.Lane) {
        guard underWay[lane] == nil else { return }
        let taken = gathering.take(lane, at: now)
        for other in underWay.values.joined() {
          #expect(!taken.contains { $0.fence == other.fence }, "seed \(seed): two at once")
        }
        if !taken.isEmpty { underWay[lane] = taken }
      }
      func answer(_ lane: Gathering.Lane) {
        guard let deltas = underWay.removeValue(forKey: lane) else { return }
        if Int.random(in: 0..<4, using: &random) == 0 {
          _ = gathering.giveBack(deltas)
        } else {
          for delta in deltas {
            let number = Int(delta.fence.low)
            #expect(settled[number] == 0, "seed \(seed): text after the result")
            #expect(delta.part == parts[number] + 1, "seed \(seed): parts")
            parts[number] = delta.part
            arrived[number] += delta.text
          }
          _ = gathering.published(deltas)
        }
        gathering.finished(lane, at: now)
      }
      func settle() {
        for result in gathering.takeResults(for: .all) {
          let number = Int(result.fence.low)
          for other in underWay.values.joined() {
            #expect(other.fence != result.fence, "seed \(seed): the result beside a text")
          }
          arrived[number] += result.tail
          settled[number] += 1
        }
      }
      for step in 0..<300 {
        let number = Int.random(in: 0..<count, using: &random)
        switch Int.random(in: 0..<11, using: &random) {
        case 0 where step > 150 && !ended[number]:
          ended[number] = true
          _ = gathering.result(succeeded(number))
        case 1...3 where !ended[number]:
          let text = "\(step) "
          sent[number] += text
          _ = gathering.text(text, of: fence(number))
        case 4, 5: now += .milliseconds(Int.random(in: 0...40, using: &random))
        case 6: take(.first)
        case 7: take(.later)
        case 8: answer(.first)
        case 9: answer(.later)
        default: settle()
        }
      }
      for number in 0..<count where !ended[number] { _ = gathering.result(succeeded(number)) }
      answer(.first)
      answer(.later)
      settle()
      #expect(arrived == sent, "seed \(seed)")
      #expect(settled == [1, 1, 1, 1], "seed \(seed)")
      #expect(gathering.due(.first, at: now + .seconds(9)) == nil, "seed \(seed)")
      #expect(gathering.due(.later, at: now + .seconds(9)) == nil, "seed \(seed)")
    }
  }
}
