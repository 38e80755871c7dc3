/// How long to wait before the next attempt to reconnect: exponential with full jitter, so that
/// many clients of a restarted server do not come back at the same moment.
///
/// The n-th delay is uniform over 0 … min(`cap`, `base` · 2ⁿ).
package struct Backoff: Sendable {
  /// The bound of the first delay.
  package let base: Duration
  /// The bound of every delay.
  package let cap: Duration
  private var attempt = 0

  package init(base: Duration = .milliseconds(100), cap: Duration = .seconds(10)) {
    self.base = base
    self.cap = cap
  }

  /// The delay before the next attempt. Each call doubles the bound of the following one.
  package mutating func next(using generator: inout some RandomNumberGenerator) -> Duration {
    var bound = base
    for _ in 0..<attempt where bound < cap { bound *= 2 }
    if bound < cap { attempt += 1 }
    return min(bound, cap) * Double.random(in: 0..<1, using: &generator)
  }

  /// As above, with the system's generator.
  package mutating func next() -> Duration {
    var generator = SystemRandomNumberGenerator()
    return next(using: &generator)
  }

  /// To be called after a success.
  package mutating func reset() { attempt = 0 }
}
