import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// A serial executor with a thread of its own, for an actor whose work blocks, and for the tasks that
/// use it: what they do between two statements then costs no other thread's wake-up.
///
/// libpq's blocking calls would hold up Swift's shared thread pool, which has no more threads than
/// the machine has cores. Between jobs the thread waits for jobs, alarms and the sockets that are
/// watched, in one `poll`. While a job blocks, all of them wait.
///
/// The thread ends after `stop()`, once it has run what was enqueued.
package final class ThreadExecutor: SerialExecutor, TaskExecutor {
  fileprivate struct State: Sendable {
    var jobs: [UnownedJob] = []
    var alarms: [ObjectIdentifier: Alarm] = [:]
    /// Changes of what is watched, in their order; nil: no more.
    var watches: [(descriptor: Int32, ready: (@Sendable () -> Void)?)] = []
    var watchCount = 0
    /// The thread is in `poll`, or about to be, and nobody has woken it.
    var isAsleep = false
    var isStopped = false
  }

  fileprivate struct Alarm: Sendable {
    let deadline: ContinuousClock.Instant
    let ring: @Sendable () -> Void
  }

  /// While there are jobs, sockets are looked at so often.
  private static let roundsWithoutLooking = 8

  private let state = Mutex(State())
  private let pipe: WakePipe

  /// - Throws: `.connection` where the system has no thread or no pipe to give.
  package init() throws(PostgresError) {
    pipe = try WakePipe()
    // The thread holds a reference of its own until it ends: the actor may be released by the last
    // job that the thread itself runs.
    let context = Unmanaged.passRetained(self)
    #if canImport(Darwin)
      var thread: pthread_t?
    #else
      var thread = pthread_t()
    #endif
    let status = pthread_create(&thread, nil, threadExecutorMain, context.toOpaque())
    guard status == 0 else {
      context.release()
      throw PostgresError(.connection, "cannot start a thread (errno \(status))")
    }
    #if canImport(Darwin)
      if let thread { pthread_detach(thread) }
    #else
      pthread_detach(thread)
    #endif
  }

  /// The executor whose thread this is; nil: no executor's.
  package static var current: ThreadExecutor? {
    pthread_getspecific(currentExecutor).map {
      Unmanaged<ThreadExecutor>.fromOpaque($0).takeUnretainedValue()
    }
  }

  /// The executor on whose thread this task lives; nil: it lives on the shared ones. Its code may run on the thread of
  /// a connection for a while after a call of it, and the connection and its thread may be gone the next moment.
  package static var ofTask: ThreadExecutor? {
    guard let current else { return nil }
    let preferred = withUnsafeCurrentTask { $0?.unownedTaskExecutor }
    return preferred == current.asUnownedTaskExecutor() ? current : nil
  }

  package func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    change { $0.jobs.append(job) }
  }

  package func checkIsolated() {
    precondition(ThreadExecutor.current === self, "not on the thread of this executor")
  }

  /// Calls `ring` on the thread once the deadline has passed, by up to a millisecond. Replaces the alarm that `owner` has.
  package func setAlarm(
    of owner: ObjectIdentifier, at deadline: ContinuousClock.Instant,
    _ ring: @escaping @Sendable () -> Void
  ) {
    change { $0.alarms[owner] = Alarm(deadline: deadline, ring: ring) }
  }

  package func clearAlarm(of owner: ObjectIdentifier) {
    state.withLock { _ = $0.alarms.removeValue(forKey: owner) }
  }

  /// Calls `ready` on the thread while the descriptor is readable, until `unwatch`. What `ready` holds
  /// is released by the thread, when it has let the descriptor go.
  func watch(_ descriptor: Int32, _ ready: @escaping @Sendable () -> Void) {
    change { $0.watches.append((descriptor, ready)) }
  }

  /// To be called with the number that was watched: once libpq has given a connection up, `PQsocket` says -1.
  func unwatch(_ descriptor: Int32) {
    change { $0.watches.append((descriptor, nil)) }
  }

  /// How many descriptors the thread watches.
  package var watchCount: Int { state.withLock { $0.watchCount } }

  /// Lets the thread end. To be called when no job can be enqueued any more: from the actor's deinit, or
  /// after the last task that uses it.
  package func stop() { change { $0.isStopped = true } }

  /// Changes something that the thread has to look at.
  private func change(_ body: (inout sending State) -> Void) {
    let isAsleep = state.withLock { state in
      body(&state)
      defer { state.isAsleep = false }
      return state.isAsleep
    }
    if isAsleep { pipe.signal() }
  }

  fileprivate func run() {
    pthread_setspecific(currentExecutor, Unmanaged.passUnretained(self).toOpaque())
    var batch: [UnownedJob] = []
    var watched = Watched(pipe)
    var rounds = 0
    while true {
      let changes = state.withLock { state in
        swap(&state.jobs, &batch)
        defer { state.watches = [] }
        return state.watches
      }
      for change in changes { watched.set(change.descriptor, change.ready) }
      if !changes.isEmpty {
        let count = watched.count
        state.withLock { $0.watchCount = count }
      }
      for job in batch {
        job.runSynchronously(
          isolatedTo: asUnownedSerialExecutor(), taskExecutor: asUnownedTaskExecutor())
      }
      batch.removeAll(keepingCapacity: true)

      let (due, pause) = state.withLock { state in
        let due = state.takeDue()
        let isBusy = !due.isEmpty || !state.jobs.isEmpty || !state.watches.isEmpty
        state.isAsleep = !isBusy
        return (due, isBusy ? 0 : state.isStopped ? nil : state.millisecondsToAlarm)
      }
      for alarm in due { alarm.ring() }
      guard let pause else { return }
      // A task goes through the queue several times between two statements.
      rounds = pause == 0 ? rounds + 1 : 0
      guard rounds == 0 || rounds >= Self.roundsWithoutLooking else { continue }
      rounds = 0
      let ready = watched.wait(pause)
      state.withLock { $0.isAsleep = false }
      for handler in ready { handler() }
    }
  }
}

extension ThreadExecutor.State {
  fileprivate mutating func takeDue() -> [ThreadExecutor.Alarm] {
    guard !alarms.isEmpty else { return [] }
    let now = ContinuousClock.now
    let due = alarms.filter { $0.value.deadline <= now }
    for owner in due.keys { alarms[owner] = nil }
    return due.values.sorted { $0.deadline < $1.deadline }
  }

  /// As `poll` takes it: -1 where there is no alarm.
  fileprivate var millisecondsToAlarm: Int32 {
    guard let first = alarms.values.map(\.deadline).min() else { return -1 }
    let rest = (first - .now) / .milliseconds(1)
    return Int32(min(max(rest.rounded(.up), 0), 3_600_000))
  }
}

/// What a thread polls: its pipe, and the descriptors that it watches.
private struct Watched: ~Copyable {
  private let pipe: WakePipe
  private var polled: [pollfd]
  private var handlers: [@Sendable () -> Void] = []

  var count: Int { handlers.count }

  init(_ pipe: WakePipe) {
    self.pipe = pipe
    polled = [pollfd(fd: pipe.readable, events: Int16(POLLIN), revents: 0)]
  }

  mutating func set(_ descriptor: Int32, _ ready: (@Sendable () -> Void)?) {
    // The pipe is the first.
    let known = polled.dropFirst().firstIndex { $0.fd == descriptor }
    switch (known, ready) {
    case (let index?, let ready?): handlers[index - 1] = ready
    case (let index?, nil):
      polled.remove(at: index)
      handlers.remove(at: index - 1)
    case (nil, let ready?):
      polled.append(pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0))
      handlers.append(ready)
    case (nil, nil): break
    }
  }

  /// Gives what is to be called.
  ///
  /// - Parameter pause: milliseconds, -1: for ever, 0: only looks.
  mutating func wait(_ pause: Int32) -> [@Sendable () -> Void] {
    if pause == 0, handlers.isEmpty { return [] }
    guard poll(&polled, nfds_t(polled.count), pause) > 0 else { return [] }
    if polled[0].revents != 0 { pipe.clear() }
    return handlers.indices.filter { polled[$0 + 1].revents != 0 }.map { handlers[$0] }
  }
}

/// Wakes a thread from `poll`.
private final class WakePipe: Sendable {
  let readable: Int32
  private let writable: Int32

  init() throws(PostgresError) {
    var ends: [Int32] = [-1, -1]
    guard pipe(&ends) == 0 else {
      throw PostgresError(.connection, "cannot open a pipe (errno \(errno))")
    }
    for end in ends {
      _ = fcntl(end, F_SETFL, O_NONBLOCK)
      _ = fcntl(end, F_SETFD, FD_CLOEXEC)
    }
    readable = ends[0]
    writable = ends[1]
  }

  deinit {
    close(readable)
    close(writable)
  }

  func signal() {
    var byte: UInt8 = 1
    // A full pipe is a signal that is already there.
    while write(writable, &byte, 1) < 0, errno == EINTR {}
  }

  func clear() {
    var bytes: (UInt64, UInt64) = (0, 0)
    _ = read(readable, &bytes, 16)
  }
}

/// Where a thread keeps its executor.
private let currentExecutor: pthread_key_t = {
  var key = pthread_key_t()
  pthread_key_create(&key, nil)
  return key
}()

// At file scope: a closure written inside an isolated context would inherit its isolation and trap
// when the C library calls it on the new thread.
#if canImport(Darwin)
  private func threadExecutorMain(_ context: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer? {
    let executor = Unmanaged<ThreadExecutor>.fromOpaque(context).takeRetainedValue()
    executor.run()
    return nil
  }
#else
  private func threadExecutorMain(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    guard let context else { return nil }
    let executor = Unmanaged<ThreadExecutor>.fromOpaque(context).takeRetainedValue()
    executor.run()
    return nil
  }
#endif
