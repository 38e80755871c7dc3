import Postgres
import Testing

@Suite(.ownDatabase)
struct LossTests {
  let database: TestDatabase

  init() throws { database = try .required() }

  /// Waits until another session's statement runs.
  private func untilBusy(_ process: Int32, _ witness: Connection) async throws {
    try await eventually("the statement runs") {
      try await witness.query(
        "select exists (select from pg_stat_activity where pid = $1::int and wait_event = 'PgSleep')",
        ["\(process)"]
      ).bool(0, 0) == true
    }
  }

  @Test func `a cancelled statement says so and the session goes on`() async throws {
    let connection = try await database.connect()
    let witness = try await database.connect()
    let process = try #require(await connection.processID)
    let answer = Task { try await connection.query("select pg_sleep(60)") }
    try await untilBusy(process, witness)
    connection.cancel()
    let error = await #expect(throws: PostgresError.self) { try await answer.value }
    #expect(error?.sqlState == "57014")
    #expect(error?.kind == .server)
    #expect(try await connection.query("select 1").int(0, 0) == 1)
  }

  @Test func `a cancellation without a statement does nothing`() async throws {
    let connection = try await database.connect()
    connection.cancel()
    // The server may take the signal a moment later; what it hits then is this wait.
    _ = try? await connection.query("select pg_sleep(0.2)")
    #expect(try await connection.query("select 1").int(0, 0) == 1)
    await connection.close()
    connection.cancel()
  }

  @Test func `a server process that ends in mid-query is a lost connection`() async throws {
    let connection = try await database.connect()
    let witness = try await database.connect()
    let process = try #require(await connection.processID)
    let answer = Task { try await connection.query("select pg_sleep(60)") }
    try await untilBusy(process, witness)
    try await witness.query("select pg_terminate_backend($1::int)", ["\(process)"])
    let error = await #expect(throws: PostgresError.self) { try await answer.value }
    #expect(error?.kind == .connection)
    #expect(error?.sqlState == "57P01")
    let later = await #expect(throws: PostgresError.self) { try await connection.query("select 1") }
    #expect(later?.kind == .connection)
    let script = await #expect(throws: PostgresError.self) {
      try await connection.script("select 1")
    }
    #expect(script?.kind == .connection)
    #expect(try await database.connect().query("select 1").int(0, 0) == 1)
  }

  @Test func `a server process that ended while nothing ran is noticed by the next statement`()
    async throws
  {
    let connection = try await database.connect()
    let witness = try await database.connect()
    let process = try #require(await connection.processID)
    try await witness.query("select pg_terminate_backend($1::int, 30000)", ["\(process)"])
    let error = await #expect(throws: PostgresError.self) { try await connection.query("select 1") }
    #expect(error?.kind == .connection)
  }

  @Test func `a closed connection throws and its session is gone`() async throws {
    let connection = try await database.connect()
    let witness = try await database.connect()
    let process = try #require(await connection.processID)
    await connection.close()
    await connection.close()
    #expect(await connection.processID == nil)
    let error = await #expect(throws: PostgresError.self) { try await connection.query("select 1") }
    #expect(error?.kind == .connection)
    try await untilGone(process, witness)
  }

  @Test func `a forgotten connection ends its session`() async throws {
    let witness = try await database.connect()
    let process = try await {
      let connection = try await database.connect()
      return try #require(await connection.processID)
    }()
    try await untilGone(process, witness)
  }

  private func untilGone(_ process: Int32, _ witness: Connection) async throws {
    try await eventually("the session ends") {
      try await witness.query(
        "select not exists (select from pg_stat_activity where pid = $1::int)", ["\(process)"]
      ).bool(0, 0) == true
    }
  }
}
