/// Keeps the values that were used last, up to a number and a time without use.
struct BoundedCache<Key: Hashable, Value> {
  private var entries: [Key: (value: Value, usedAt: ContinuousClock.Instant)] = [:]
  private let limit: Int
  private let keep: Duration

  init(limit: Int, keep: Duration) {
    self.limit = limit
    self.keep = keep
  }

  var count: Int { entries.count }

  mutating func value(_ key: Key, at now: ContinuousClock.Instant) -> Value? {
    guard let value = entries[key]?.value else { return nil }
    entries[key]?.usedAt = now
    return value
  }

  mutating func insert(_ value: Value, for key: Key, at now: ContinuousClock.Instant) {
    entries[key] = (value, now)
    guard entries.count > limit else { return }
    // A quarter at once: looking for the oldest one each time would cost more.
    let oldest = entries.sorted { $0.value.usedAt < $1.value.usedAt }.prefix(max(1, limit / 4))
    for (key, _) in oldest { entries[key] = nil }
  }

  /// Lets go what was not used for its time.
  mutating func sweep(at now: ContinuousClock.Instant) {
    for (key, entry) in entries where now - entry.usedAt > keep { entries[key] = nil }
  }
}
