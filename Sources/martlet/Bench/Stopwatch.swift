/// Runs from when it is made; all times of one run come from one.
struct Stopwatch: Sendable {
  private let began = ContinuousClock.now

  /// Milliseconds since the start.
  var milliseconds: Double { (ContinuousClock.now - began) / .milliseconds(1) }

  /// Seconds since the start.
  var seconds: Double { (ContinuousClock.now - began) / .seconds(1) }

  /// Sleeps until so many milliseconds after the start; not at all where they are over.
  func sleep(until milliseconds: Double) async {
    let then = began.advanced(by: .milliseconds(milliseconds))
    try? await Task.sleep(until: then, clock: .continuous)
  }
}

/// What many times have in common, in milliseconds.
struct Spread: Encodable, Equatable {
  var count: Int
  var p50: Double
  var p95: Double
  var p99: Double
  var max: Double

  /// nil of no times. A percentile is the nearest time that so many are not above.
  init?(_ times: [Double]) {
    guard !times.isEmpty else { return nil }
    let sorted = times.sorted()
    func rank(_ share: Double) -> Double {
      let place = Int((share * Double(sorted.count)).rounded(.up)) - 1
      return Self.rounded(sorted[Swift.min(Swift.max(place, 0), sorted.count - 1)])
    }
    count = sorted.count
    p50 = rank(0.50)
    p95 = rank(0.95)
    p99 = rank(0.99)
    max = rank(1)
  }

  /// To microseconds.
  static func rounded(_ milliseconds: Double) -> Double { (milliseconds * 1_000).rounded() / 1_000 }
}

/// Lets many tasks begin at the same moment.
actor Gate {
  private var isOpen = false
  private var waiting: [CheckedContinuation<Void, Never>] = []

  func wait() async {
    if isOpen { return }
    await withCheckedContinuation { waiting.append($0) }
  }

  func open() {
    isOpen = true
    for continuation in waiting { continuation.resume() }
    waiting.removeAll()
  }
}
