import Testing

@testable import HTTP

@Suite struct DeadlineTests {
  @Test("they come out by their time, whatever the order in which they went in")
  func order() {
    let seed = UInt64.random(in: 0 ... .max)
    var random = Generator(state: seed)
    for _ in 0..<200 {
      let times = (0..<Int.random(in: 0...60, using: &random)).map { _ in
        UInt64.random(in: 0...20, using: &random)
      }
      var deadlines = Deadlines()
      for (number, time) in times.enumerated() {
        deadlines.add(TransferID(number: UInt64(number)), at: time)
      }
      var taken: [UInt64] = []
      while let first = deadlines.first {
        #expect(times[Int(first.id.number)] == first.time)
        taken.append(first.time)
        deadlines.removeFirst()
      }
      #expect(taken == times.sorted(), "seed \(seed)")
    }
  }

  @Test("what is not kept is gone, and the rest comes out by its time")
  func keep() {
    var deadlines = Deadlines()
    for number in 0..<1_000 {
      deadlines.add(TransferID(number: UInt64(number)), at: UInt64(number * 7_919 % 1_000))
    }
    deadlines.keep { $0.number % 10 == 3 }
    #expect(deadlines.count == 100)
    var taken: [UInt64] = []
    while let first = deadlines.first {
      #expect(first.id.number % 10 == 3)
      taken.append(first.time)
      deadlines.removeFirst()
    }
    #expect(taken.count == 100)
    #expect(taken == taken.sorted())
  }

  /// Repeatable random numbers.
  private struct Generator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
      state &+= 0x9E37_79B9_7F4A_7C15
      var mixed = state
      mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
      mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
      return mixed ^ (mixed >> 31)
    }
  }
}
