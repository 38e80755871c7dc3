import CCurl
import Glibc
import Synchronization

/// What other threads ask of the transfer thread, and the event descriptor that wakes it.
final class Inbox: Sendable {
  enum Command: Sendable {
    case start(TransferID, HTTPRequest, any TransferSink, at: UInt64)
    case cancel(TransferID)
  }

  private struct State: ~Copyable {
    var commands: [Command] = []
    var nextNumber: UInt64 = 1
    var stopped = false
  }

  /// Readable while something waits.
  let event: Int32
  private let state = Mutex(State())

  init?() {
    event = martlet_event_create()
    if event < 0 { return nil }
  }

  deinit { close(event) }

  func start(_ request: HTTPRequest, sink: any TransferSink) -> (TransferID, accepted: Bool) {
    let now = monotonicNanoseconds()
    let (id, accepted, wake) = state.withLock { state in
      let id = TransferID(number: state.nextNumber)
      state.nextNumber += 1
      if state.stopped { return (id, false, false) }
      state.commands.append(.start(id, request, sink, at: now))
      return (id, true, state.commands.count == 1)
    }
    if wake { martlet_event_signal(event) }
    return (id, accepted)
  }

  func cancel(_ id: TransferID) {
    let wake = state.withLock { state in
      if state.stopped { return false }
      state.commands.append(.cancel(id))
      return state.commands.count == 1
    }
    if wake { martlet_event_signal(event) }
  }

  func stop() {
    state.withLock { $0.stopped = true }
    martlet_event_signal(event)
  }

  /// Everything that waits, and whether the thread is to end. Whoever adds to an empty list signals
  /// the event, and this empties the list: no command can wait without a signal.
  func take(into commands: inout [Command]) -> Bool {
    commands.removeAll(keepingCapacity: true)
    return state.withLock { state in
      swap(&commands, &state.commands)
      return state.stopped
    }
  }
}

/// A clock for durations; unrelated to the time of day.
func monotonicNanoseconds() -> UInt64 {
  var time = timespec()
  clock_gettime(CLOCK_MONOTONIC, &time)
  return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
}
