import Postgres
import Testing

@Suite(.ownDatabase)
struct ListenerTests {
  let database: TestDatabase

  init() throws { database = try .required() }

  private func listen(_ channels: [String]) async throws -> Listener {
    try await Listener.open(try database.url, channels: channels, applicationName: "test listener")
  }

  @Test(arguments: [
    "plain", "Mixed Case", "with \"quotes\"", "semi;colon", "x\"; drop table t; --", "käse", "🐦🐦",
    "select", "a.b", "'", String(repeating: "ü", count: 31) + "x",
  ])
  func `a channel is heard under any name`(_ channel: String) async throws {
    let listener = try await listen([channel])
    let sender = try await database.connect()
    try await sender.query("select pg_notify($1, $2)", [channel, "hello 🐦"])
    let first = try await listener.notifications.first { _ in true }
    #expect(first?.channel == channel)
    #expect(first?.payload == "hello 🐦")
    #expect(first?.processID == (await sender.processID))
    await listener.close()
  }

  @Test(arguments: [
    "", "nul\0", String(repeating: "x", count: 64), String(repeating: "ü", count: 32),
  ])
  func `a name that the server would cut off or refuse is refused`(_ channel: String) async throws {
    let error = await #expect(throws: PostgresError.self) { try await listen([channel]) }
    #expect(error?.kind == .input)
    let listener = try await listen(["good"])
    let later = await #expect(throws: PostgresError.self) { try await listener.listen([channel]) }
    #expect(later?.kind == .input)
    try await database.connect().query("notify good, 'still'")
    let first = try await listener.notifications.first { _ in true }
    #expect(first?.payload == "still")
  }

  @Test func `thousands arrive in order and whole`() async throws {
    let listener = try await listen(["flood"])
    let sender = try await database.connect()
    let padding = String(repeating: "x", count: 7_900)
    try await sender.query(
      "select pg_notify('flood', n || $1::text) from generate_series(0, 999) n", [padding])
    try await sender.query(
      "select pg_notify('flood', n::text) from generate_series(1000, 4999) n")
    var expected = 0
    for try await notification in listener.notifications {
      let digits = notification.payload.prefix { $0.isNumber }
      try #require(Int(digits) == expected)
      if expected < 1_000 { #expect(notification.payload.utf8.count == digits.utf8.count + 7_900) }
      expected += 1
      if expected == 5_000 { break }
    }
    #expect(expected == 5_000)
  }

  @Test func `channels come and go`() async throws {
    let listener = try await listen([])
    let sender = try await database.connect()
    var reader = listener.notifications.makeAsyncIterator()
    try await listener.listen(["one", "two"])
    try await sender.query("select pg_notify('two', 'a')")
    #expect(try await reader.next()?.payload == "a")
    try await listener.unlisten(["two"])
    try await sender.query("select pg_notify('two', 'unheard')")
    try await sender.query("select pg_notify('one', 'b')")
    #expect(try await reader.next()?.payload == "b")
  }

  @Test func `what arrives together with an answer is delivered`() async throws {
    let listener = try await listen(["own"])
    let sender = try await database.connect()
    var reader = listener.notifications.makeAsyncIterator()
    for number in 0..<200 {
      async let notified = sender.query("select pg_notify('own', $1)", ["\(number)"])
      try await listener.listen(["other \(number % 7)"])
      _ = try await notified
      #expect(try await reader.next()?.payload == "\(number)")
    }
  }

  @Test func `a lost connection ends the stream with its reason, and a new one hears again`()
    async throws
  {
    let listener = try await listen(["again"])
    let sender = try await database.connect()
    let process = try #require(await listener.processID)
    try await sender.query("select pg_notify('again', 'before')")
    try await sender.query("select pg_terminate_backend($1::int)", ["\(process)"])
    var heard: [String] = []
    let error = await #expect(throws: PostgresError.self) {
      for try await notification in listener.notifications { heard.append(notification.payload) }
    }
    #expect(heard == ["before"])
    #expect(error?.kind == .connection)
    let later = await #expect(throws: PostgresError.self) { try await listener.listen(["more"]) }
    #expect(later?.kind == .connection)

    let next = try await listen(["again"])
    try await sender.query("select pg_notify('again', 'after')")
    #expect(try await next.notifications.first { _ in true }?.payload == "after")
  }

  // A descriptor that libpq has closed would end each `poll` at once: a thread that never rests.
  @Test func `a lost connection is watched no more`() async throws {
    let executor = try ThreadExecutor()
    let listener = try await Listener.open(
      try database.url, channels: ["lost"], applicationName: "test listener", on: executor)
    #expect(executor.watchCount == 1)
    let process = try #require(await listener.processID)
    try await database.connect().query("select pg_terminate_backend($1::int)", ["\(process)"])
    await #expect(throws: PostgresError.self) { for try await _ in listener.notifications {} }
    for _ in 0..<1_000 where executor.watchCount > 0 {
      try await Task.sleep(for: .milliseconds(10))
    }
    #expect(executor.watchCount == 0)
    executor.stop()
  }

  @Test func `close ends the stream without an error`() async throws {
    let listener = try await listen(["quiet"])
    await listener.close()
    await listener.close()
    var count = 0
    for try await _ in listener.notifications { count += 1 }
    #expect(count == 0)
  }

  @Test func `a forgotten listener ends its session and its stream`() async throws {
    let witness = try await database.connect()
    let (process, notifications) = try await {
      let listener = try await listen(["forgotten"])
      return (try #require(await listener.processID), listener.notifications)
    }()
    for try await _ in notifications {}
    try await eventually("the session ends") {
      try await witness.query(
        "select not exists (select from pg_stat_activity where pid = $1::int)", ["\(process)"]
      ).bool(0, 0) == true
    }
  }
}
