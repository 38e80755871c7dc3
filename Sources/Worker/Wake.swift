import Dispatch
import Postgres
import Synchronization

/// Wakes the one task that waits, from any thread. A signal that finds nobody waiting is kept for
/// the next wait; several count as one. A wait may end without a signal: look, then wait again.
final class Wake: Sendable {
  private struct State {
    var isSignalled = false
    var waiter: CheckedContinuation<Void, Never>?
  }

  private let state = Mutex(State())
  private let alarm = Mutex<Alarm?>(nil)

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
    let rest = deadline - .now
    if rest <= .zero { return }
    // The timer's signal is kept if it comes before the wait below. One that comes after the wait ended
    // by something else ends a later wait too early, which is allowed.
    guard let thread = ThreadExecutor.ofTask else {
      alarm.withLock { alarm in
        let set = alarm ?? Alarm { [weak self] in self?.signal() }
        alarm = set
        set.set(after: rest)
      }
      return await wait()
    }
    // The thread that waits looks at the time itself: no other has to wake it.
    let owner = ObjectIdentifier(self)
    thread.setAlarm(of: owner, at: deadline) { [weak self] in self?.signal() }
    await wait()
    thread.clearAlarm(of: owner)
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

/// A timer that is set again and again, for tasks without a thread of their own. A task that sleeps
/// beside the one that waits would do as well, but the waiter would have to wait for its end, on every
/// wake-up.
///
/// `@unchecked Sendable`: the source is thread-safe.
private final class Alarm: @unchecked Sendable {
  private let source = DispatchSource.makeTimerSource()

  init(_ onRing: @escaping @Sendable () -> Void) {
    source.setEventHandler(handler: onRing)
    source.activate()
  }

  func set(after duration: Duration) {
    let (seconds, attoseconds) = duration.components
    let nanoseconds = min(seconds, 1_000_000) * 1_000_000_000 + attoseconds / 1_000_000_000
    source.schedule(deadline: .now() + .nanoseconds(Int(nanoseconds)), leeway: .nanoseconds(0))
  }

  deinit {
    source.setEventHandler(handler: nil)
    source.cancel()
  }
}
