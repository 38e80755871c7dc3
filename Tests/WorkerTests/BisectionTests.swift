import Testing

@testable import Worker

@Suite struct BisectionTests {
  /// Runs a bisection against a database that refuses `poison`; gives what was sent bare, and how
  /// often each element was taken.
  private func run(_ count: Int, poison: Set<Int>) -> (bare: [Int], taken: [Int], statements: Int) {
    var bisection = Bisection(count: count)
    var taken = [Int](repeating: 0, count: count)
    var bare: [Int] = []
    var statements = 0
    while true {
      switch bisection.step {
      case .done: return (bare.sorted(), taken, statements)
      case .send(let range):
        statements += 1
        if poison.isDisjoint(with: range) {
          for index in range { taken[index] += 1 }
          bisection.accepted()
        } else {
          let goesOn = bisection.refused()
          #expect(goesOn)
        }
      case .sendBare(let index):
        statements += 1
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
      let count = Int.random(in: 0...70, using: &random)
      let poison = Set((0..<count).filter { _ in Int.random(in: 0..<20, using: &random) == 0 })
      let result = run(count, poison: poison)
      #expect(result.bare == poison.sorted(), "seed \(seed)")
      #expect(result.taken.allSatisfy { $0 == 1 }, "seed \(seed)")
    }
  }

  @Test("a batch without poison is one statement, one poisonous element costs a logarithm of them")
  func cost() {
    #expect(run(256, poison: []).statements == 1)
    #expect(run(256, poison: [100]).statements <= 2 * 8 + 2)
  }

  @Test("where even a bare element is refused, what is left is given back")
  func systemic() {
    var bisection = Bisection(count: 5)
    var isGoing = true
    var statements = 0
    while isGoing {
      statements += 1
      isGoing = bisection.refused()
    }
    #expect(statements < 10)
    #expect(bisection.left.flatMap { Array($0) }.sorted() == [0, 1, 2, 3, 4])
  }
}
