import Synchronization

/// Counts how often each request body was seen, in bounded memory.
///
/// Two generations of at most `capacity` keys: when the newer is full, the older is forgotten.
final class OccurrenceCounter: Sendable {
  private struct State {
    var newer: [UInt64: Int] = [:]
    var older: [UInt64: Int] = [:]
  }

  private let state = Mutex(State())
  private let capacity: Int

  init(capacity: Int = 200_000) { self.capacity = capacity }

  /// Counts one more and returns how often the key was seen before.
  func countBefore(_ key: UInt64) -> Int {
    state.withLock { state in
      let before = state.newer[key] ?? state.older[key] ?? 0
      if state.newer.count >= capacity, state.newer[key] == nil {
        state.older = state.newer
        state.newer = [:]
      }
      state.newer[key] = before + 1
      return before
    }
  }

  func reset() {
    state.withLock { $0 = State() }
  }
}
