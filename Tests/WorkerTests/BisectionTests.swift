import Testing

@testable import Worker

@Suite struct BisectionTests {
  /// Runs a bisection against a database that refuses `poison`, and `venom` in whatever form; gives
  /// what was sent bare, how often each element was taken, and what is left.
  private func run(
    _ ranges: [Range<Int>], poison: Set<Int> = [], venom: Set<Int> = []
  ) -> (bare: [Int], taken: [Int], statements: Int, left: [Int]) {
    var bisection = Bisection(ranges)
    var taken = [Int](repeating: 0, count: ranges.last?.upperBound ?? 0)
    var bare: [Int] = []
    var statements = 0
    while true {
      switch bisection.step {
      case .done: return (bare.sorted(), taken, statements, bisection.left.sorted())
      case .send(let range):
        statements += 1
        if poison.union(venom).isDisjoint(with: range) {
          for index in range { taken[index] += 1 }
          bisection.accepted()
        } else {
          bisection.refused()
        }
      case .sendPatiently:
        Issue.record("nothing was late")
        bisection.refused()
      case .sendBare(let index):
        statements += 1
        if venom.contains(index) {
          bisection.refused()
          continue
        }
        bare.append(index)
        taken[index] += 1
        bisection.accepted()
      }
    }
  }

  @Test("only the refused elements go without content, every other as it is, each once")
  func poison() {
    let seed = UInt64.random(in: 0 ... .max)
    var random = Seeded(seed)
    for _ in 0..<300 {
      let count = Int.random(in: 1...70, using: &random)
      let poison = Set((0..<count).filter { _ in Int.random(in: 0..<20, using: &random) == 0 })
      let cut = Int.random(in: 0...count, using: &random)
      let result = run([0..<cut, cut..<count], poison: poison)
      #expect(result.bare == poison.sorted(), "seed \(seed)")
      #expect(result.taken.allSatisfy { $0 == 1 }, "seed \(seed)")
      #expect(result.left.isEmpty, "seed \(seed)")
    }
  }

  @Test("an element that is refused in whatever form holds up no other")
  func venom() {
    for venom in 0..<20 {
      let result = run([0..<20], poison: [3], venom: [venom])
      #expect(result.left == [venom])
      #expect(result.taken.enumerated().allSatisfy { $1 == ($0 == venom ? 0 : 1) })
    }
  }

  @Test("a batch without poison is one statement, one poisonous element costs a logarithm of them")
  func cost() {
    #expect(run([0..<256]).statements == 1)
    #expect(run([0..<256], poison: [100]).statements <= 2 * 8 + 2)
  }

  @Test("where nothing is taken in whatever form, it is given up soon and all is left")
  func systemic() {
    let result = run([0..<500, 500..<1_000], venom: Set(0..<1_000))
    #expect(result.left == Array(0..<1_000))
    #expect(result.statements < 30)
  }

  @Test("where the trouble is not with the elements, none goes without its content")
  func whatever() {
    var bisection = Bisection([0..<500])
    var statements = 0
    while bisection.step != .done {
      guard case .send = bisection.step else {
        Issue.record("\(bisection.step)")
        return
      }
      statements += 1
      bisection.refused(whatever: true)
    }
    #expect(bisection.left.sorted() == Array(0..<500))
    #expect(statements < 30)
  }

  @Test("what takes too long is halved, then has more time, and only then goes without its content")
  func late() {
    var bisection = Bisection([0..<2])
    bisection.refused(whatever: true, wasLate: true)
    #expect(bisection.step == .send(0..<1))
    bisection.refused(whatever: true, wasLate: true)
    #expect(bisection.step == .sendPatiently(0))
    bisection.accepted()
    #expect(bisection.step == .send(1..<2))
    bisection.refused(whatever: true, wasLate: true)
    bisection.refused(whatever: true, wasLate: true)
    #expect(bisection.step == .sendBare(1))
    bisection.accepted()
    #expect(bisection.step == .done && bisection.left.isEmpty)
  }

  @Test("nor does it where the time went by for another reason")
  func lateForAnotherReason() {
    var bisection = Bisection([0..<1])
    bisection.refused(whatever: true, wasLate: true)
    bisection.refused(whatever: true)
    #expect(bisection.step == .done && bisection.left == [0])
  }

  @Test("batches are cut by count and by size, and no element is lost")
  func ranges() {
    #expect(Bisection.ranges(of: [], count: 3, bytes: 10) == [])
    #expect(Bisection.ranges(of: [1, 1, 1, 1], count: 3, bytes: 10) == [0..<3, 3..<4])
    #expect(Bisection.ranges(of: [6, 4, 1], count: 3, bytes: 10) == [0..<2, 2..<3])
    #expect(Bisection.ranges(of: [99, 1, 99], count: 3, bytes: 10) == [0..<1, 1..<2, 2..<3])
  }
}
