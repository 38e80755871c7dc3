import Testing

@testable import Postgres

@Suite(.ownDatabase)
struct StatementTests {
  let database: TestDatabase

  init() throws { database = try .required() }

  private let prepared = "select count(*) from pg_prepared_statements where statement like $1"

  @Test func `a text is prepared once`() async throws {
    let connection = try await database.connect()
    for number in 0..<10 {
      let result = try await connection.query("select $1::int + 4242", ["\(number)"])
      #expect(result.int(0, 0) == number + 4242)
    }
    #expect(try await connection.query(prepared, ["%4242%"]).int(0, 0) == 1)
  }

  @Test func `a statement that could not be prepared is not remembered`() async throws {
    let connection = try await database.connect()
    await #expect(throws: PostgresError.self) { try await connection.query("select n from late") }
    try await connection.script("create temp table late (n int); insert into late values (5)")
    #expect(try await connection.query("select n from late").int(0, 0) == 5)
  }

  @Test func `a session does not keep prepared statements without end`() async throws {
    let connection = try await database.connect()
    for number in 0..<600 {
      #expect(try await connection.query("select \(number)").int(0, 0) == number)
    }
    #expect(try #require(try await connection.query(prepared, ["%"]).int(0, 0)) <= 256)
  }

  @Test func `an upgrade of the schema under a running session is survived`() async throws {
    let connection = try await database.connect()
    let administrator = try await database.connect()
    try await administrator.script(
      "create function shape() returns table (a int) language sql as 'select 1'")
    #expect(try await connection.query("select * from shape()").columnCount == 1)
    try await administrator.script(
      """
      drop function shape();
      create function shape() returns table (a int, b text) language sql as $$ select 1, 'two' $$
      """)
    #expect(try await connection.query("select * from shape()")[0, 1] == "two")
  }

  @Test func `a session that was reset prepares again`() async throws {
    let connection = try await database.connect()
    #expect(try await connection.query("select 7").int(0, 0) == 7)
    try await connection.script("discard all")
    #expect(try await connection.query("select 7").int(0, 0) == 7)
  }

  @Test func `inside a transaction nothing is run twice`() async throws {
    let connection = try await database.connect()
    #expect(try await connection.query("select 8").int(0, 0) == 8)
    try await connection.script("deallocate all; begin")
    let error = await #expect(throws: PostgresError.self) { try await connection.query("select 8") }
    #expect(error?.sqlState == "26000")
    try await connection.script("rollback")
    #expect(try await connection.query("select 8").int(0, 0) == 8)
  }

  @Test func `a statement that another client of a pooler has prepared is used`() async throws {
    let connection = try await database.connect()
    let sql = "select $1::int + 31"
    try await connection.script("prepare \(StatementCache.name(of: sql)) as \(sql)")
    #expect(try await connection.query(sql, ["1"]).int(0, 0) == 32)
    #expect(try await connection.query(sql, ["2"]).int(0, 0) == 33)
  }

  @Test func `names differ where texts do`() {
    let texts = (0..<10_000).map { "select \($0)" } + ["", " ", "select 1 ", "SELECT 1"]
    #expect(Set(texts.map { StatementCache.name(of: $0) }).count == texts.count)
    #expect(StatementCache.name(of: String(repeating: "x", count: 100_000)).utf8.count <= 63)
  }
}
