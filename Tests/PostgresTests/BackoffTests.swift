import Postgres
import Testing

struct BackoffTests {
  @Test func `delays stay under a bound that doubles up to the cap`() {
    let seed = UInt64.random(in: 0 ... .max)
    print("seed \(seed)")
    var generator = SplitMix(state: seed)
    for _ in 0..<1_000 {
      var backoff = Backoff(base: .milliseconds(100), cap: .seconds(10))
      var bound = Duration.milliseconds(100)
      for _ in 0..<12 {
        let delay = backoff.next(using: &generator)
        #expect(delay >= .zero)
        #expect(delay <= bound)
        bound = min(bound * 2, .seconds(10))
      }
    }
  }

  @Test func `the jitter uses the whole range`() {
    var highest = Highest()
    var backoff = Backoff(base: .milliseconds(100), cap: .seconds(10))
    let bounds = (0..<9).map { _ in backoff.next(using: &highest) }
    for (delay, bound) in zip(bounds, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]) {
      #expect(delay > .milliseconds(bound) * 0.99)
    }
    var lowest = Lowest()
    #expect(backoff.next(using: &lowest) < .milliseconds(1))
  }

  @Test func `a success starts over`() {
    var highest = Highest()
    var backoff = Backoff()
    for _ in 0..<50 { _ = backoff.next(using: &highest) }
    backoff.reset()
    #expect(backoff.next(using: &highest) <= .milliseconds(100))
  }
}

private struct SplitMix: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
    return mixed ^ mixed >> 31
  }
}

private struct Highest: RandomNumberGenerator {
  func next() -> UInt64 { .max - (1 << 20) }
}

private struct Lowest: RandomNumberGenerator {
  func next() -> UInt64 { 1 << 20 }
}
