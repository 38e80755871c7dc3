import Synchronization
import Testing

@testable import Postgres

/// Something that several threads count.
private final class Counter: Sendable {
  private let number = Atomic(0)
  var value: Int { number.load(ordering: .acquiring) }
  func increment() { number.add(1, ordering: .acquiringAndReleasing) }
}

@Suite(.timeLimit(.minutes(1)))
struct ThreadExecutorTests {
  @Test func `a task that prefers an executor stays on its thread`() async throws {
    let executor = try ThreadExecutor()
    defer { executor.stop() }
    #expect(ThreadExecutor.current == nil)
    await withTaskExecutorPreference(executor) {
      for _ in 0..<100 {
        #expect(ThreadExecutor.current === executor)
        await Task.yield()
        await withCheckedContinuation { continuation in
          Task.detached { continuation.resume() }
        }
      }
      #expect(ThreadExecutor.current === executor)
    }
    #expect(ThreadExecutor.current == nil)
  }

  @Test func `alarms ring in their order, and not if cleared or replaced`() async throws {
    let executor = try ThreadExecutor()
    defer { executor.stop() }
    let (rung, continuation) = AsyncStream<String>.makeStream()
    let owners = (0..<4).map { _ in Owner() }
    let ids = owners.map { ObjectIdentifier($0) }
    let start = ContinuousClock.now
    executor.setAlarm(of: ids[0], at: start + .milliseconds(1_500)) { continuation.yield("last") }
    executor.setAlarm(of: ids[1], at: start + .milliseconds(1_000)) { continuation.yield("middle") }
    executor.setAlarm(of: ids[2], at: start + .milliseconds(500)) { continuation.yield("cleared") }
    executor.setAlarm(of: ids[3], at: start + .seconds(3_600)) { continuation.yield("replaced") }
    executor.setAlarm(of: ids[3], at: start - .seconds(1)) { continuation.yield("past") }
    executor.clearAlarm(of: ids[2])
    var heard: [String] = []
    for await word in rung {
      heard.append(word)
      if word == "last" { break }
    }
    #expect(heard == ["past", "middle", "last"])
    #expect(.now - start >= .milliseconds(1_500), "never early")
    withExtendedLifetime(owners) {}
  }

  @Test func `an alarm rings also while the thread has jobs without end`() async throws {
    let executor = try ThreadExecutor()
    defer { executor.stop() }
    let owner = Owner()
    let rung = Counter()
    executor.setAlarm(of: ObjectIdentifier(owner), at: .now + .milliseconds(5)) {
      rung.increment()
    }
    await withTaskExecutorPreference(executor) {
      while rung.value == 0 { await Task.yield() }
    }
  }

  @Test func `nothing is lost that many threads enqueue at once`() async throws {
    let executor = try ThreadExecutor()
    defer { executor.stop() }
    let count = Counter()
    await withTaskGroup { group in
      for _ in 0..<2_000 {
        group.addTask(executorPreference: executor) { count.increment() }
      }
    }
    #expect(count.value == 2_000)
  }

  private final class Owner: Sendable {}
}

@Suite(.ownDatabase, .timeLimit(.minutes(1)))
struct SharedThreadTests {
  let database: TestDatabase

  init() throws { database = try .required() }

  @Test func `a listener and connections share a thread, and each goes with its close`()
    async throws
  {
    let executor = try ThreadExecutor()
    defer { executor.stop() }
    for round in 1...3 {
      let listener = try await Listener.open(
        try database.url, channels: ["news"], applicationName: "test", on: executor)
      let connection = try await Connection.open(
        try database.url, applicationName: "test", on: executor)
      try await withTaskExecutorPreference(executor) {
        try await connection.query("select pg_notify('news', $1)", ["\(round)"])
        let first = try await listener.notifications.first { _ in true }
        #expect(first?.payload == "\(round)")
        #expect(ThreadExecutor.current === executor)
      }
      await listener.close()
      await connection.close()
    }
  }

  @Test func `notifications are heard between statements that never end`() async throws {
    let executor = try ThreadExecutor()
    defer { executor.stop() }
    let listener = try await Listener.open(
      try database.url, channels: ["between"], applicationName: "test", on: executor)
    let connection = try await Connection.open(
      try database.url, applicationName: "test", on: executor)
    let heard = Counter()
    try await withThrowingTaskGroup { group in
      group.addTask(executorPreference: executor) {
        _ = try await listener.notifications.first { _ in true }
        heard.increment()
      }
      group.addTask(executorPreference: executor) {
        while heard.value == 0 { try await connection.query("select 1") }
      }
      try await database.connect().query("notify between")
      try await group.waitForAll()
    }
    await listener.close()
  }

  @Test func `the loss of an idle connection is told at once and once`() async throws {
    let connection = try await database.connect()
    let process = try #require(await connection.processID)
    let (losses, continuation) = AsyncStream<Void>.makeStream()
    await connection.whenLost { continuation.yield() }
    // What the server says unasked is no loss.
    try await connection.query("select set_config('application_name', 'another', false)")
    #expect(try await connection.query("select 1").int(0, 0) == 1)
    try await database.connect().query("select pg_terminate_backend($1::int)", ["\(process)"])
    _ = await losses.first { _ in true }
    let error = await #expect(throws: PostgresError.self) { try await connection.query("select 1") }
    #expect(error?.kind == .connection)
    await connection.close()
    continuation.finish()
    #expect(await losses.first { _ in true } == nil, "told again")
  }

  @Test func `a connection that was closed is never told as lost`() async throws {
    let executor = try ThreadExecutor()
    defer { executor.stop() }
    let losses = Counter()
    for _ in 0..<5 {
      let connection = try await Connection.open(
        try database.url, applicationName: "test", on: executor)
      await connection.whenLost { losses.increment() }
      await connection.close()
      // The next one gets the same descriptor.
      let next = try await Connection.open(
        try database.url, applicationName: "test", on: executor)
      #expect(try await next.query("select 1").int(0, 0) == 1)
    }
    #expect(losses.value == 0)
  }
}
