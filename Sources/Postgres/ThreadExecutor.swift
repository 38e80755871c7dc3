#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// A serial executor with a thread of its own, for an actor whose work blocks.
///
/// libpq's blocking calls would hold up Swift's shared thread pool, which has no more threads than
/// the machine has cores. A thread a connection costs least of what was measured: 28 µs for a round
/// trip, 40 with an epoll thread, 70 with a dispatch source.
///
/// The thread ends after `stop()`, once it has run what was enqueued.
final class ThreadExecutor: SerialExecutor, @unchecked Sendable {
  // A condition variable must not move in memory, so the state lives behind pointers.
  private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  // Guarded by `mutex`.
  private var jobs: [UnownedJob] = []
  private var stopped = false

  /// - Throws: `.connection` where the system has no thread to give.
  init() throws(PostgresError) {
    pthread_mutex_init(mutex, nil)
    pthread_cond_init(condition, nil)
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

  deinit {
    pthread_cond_destroy(condition)
    pthread_mutex_destroy(mutex)
    condition.deallocate()
    mutex.deallocate()
  }

  func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    pthread_mutex_lock(mutex)
    jobs.append(job)
    pthread_cond_signal(condition)
    pthread_mutex_unlock(mutex)
  }

  /// Lets the thread end. To be called when no job can be enqueued any more, so from the actor's deinit.
  func stop() {
    pthread_mutex_lock(mutex)
    stopped = true
    pthread_cond_signal(condition)
    pthread_mutex_unlock(mutex)
  }

  fileprivate func run() {
    var batch: [UnownedJob] = []
    while true {
      pthread_mutex_lock(mutex)
      while jobs.isEmpty && !stopped { pthread_cond_wait(condition, mutex) }
      swap(&jobs, &batch)
      pthread_mutex_unlock(mutex)
      if batch.isEmpty { return }
      for job in batch { job.runSynchronously(on: asUnownedSerialExecutor()) }
      batch.removeAll(keepingCapacity: true)
    }
  }
}

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
