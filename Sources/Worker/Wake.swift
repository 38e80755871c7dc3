import Synchronization

/// Wakes the one task that waits, from any thread. A signal that finds nobody waiting is kept for
/// the next wait; several count as one. A wait may end without a signal: look, then wait again.
final class Wake: Sendable {
  private struct State {
    var isSignalled = false
    var waiter: CheckedContinuation<Void, Never>?
  }

  private let state = Mutex(State())

  func signal() {
    let waiter = state.withLock { state in
      guard let waiter = state.waiter else {
        state.isSignalled = true
        return CheckedContinuation<Void, Never>?.none
      }
      state.waiter = nil
      return waiter
    }
    waiter?.resume()
  }

  /// Until a signal, or the task's cancellation.
  func wait() async {
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = state.withLock { state in
          if state.isSignalled || Task.isCancelled {
            state.isSignalled = false
            return true
          }
          state.waiter = continuation
          return false
        }
        if isOver { continuation.resume() }
      }
    } onCancel: {
      poke()
    }
  }

  /// Until a signal, the deadline, or the task's cancellation.
  func wait(until deadline: ContinuousClock.Instant?) async {
    guard let deadline else { return await wait() }
    if deadline <= .now { return }
    await withTaskGroup { group in
      group.addTask {
        try? await Task.sleep(until: deadline, tolerance: .zero, clock: .continuous)
        // Kept if it comes before the wait below: then that ends at once.
        if !Task.isCancelled { self.signal() }
      }
      await wait()
      group.cancelAll()
    }
  }

  /// Ends the wait that is under way, if any, and is not kept.
  private func poke() {
    let waiter = state.withLock { state in
      defer { state.waiter = nil }
      return state.waiter
    }
    waiter?.resume()
  }
}
