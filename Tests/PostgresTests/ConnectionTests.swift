import Postgres
import Testing

@Suite(.ownDatabase)
struct ConnectionTests {
  let database: TestDatabase

  init() throws { database = try .required() }

  @Test(arguments: ["", "plain", "naïve 🐦 \u{10FFFF} e\u{301}", "'; drop table x; --", "a\nb\t\\"])
  func `text comes back as it was sent`(_ text: String) async throws {
    let connection = try await database.connect()
    let result = try await connection.query("select $1::text, $2::text", [text, nil])
    #expect(result[0, 0] == text)
    #expect(result[0, 1] == nil)
    #expect(result.bytes(0, 0) == Array(text.utf8))
  }

  @Test func `cells are read as what they are`() async throws {
    let connection = try await database.connect()
    let result = try await connection.query(
      """
      select 9223372036854775807 as big, -1 as "Minus", true as yes, false as no, null::int as nothing,
             'x' as word, 99999999999999999999 as huge
      """)
    #expect(result.count == 1)
    #expect(result.columnCount == 7)
    #expect(result.column(named: "Minus") == 1)
    #expect(result.column(named: "minus") == nil)
    #expect(result.columnNames.last == "huge")
    #expect(result.int(0, 0) == Int.max)
    #expect(result.int(0, 1) == -1)
    #expect(result.bool(0, 2) == true)
    #expect(result.bool(0, 3) == false)
    #expect(result.int(0, 4) == nil)
    #expect(result.bool(0, 4) == nil)
    #expect(result.int(0, 5) == nil)
    #expect(result.bool(0, 5) == nil)
    #expect(result.int(0, 6) == nil)
  }

  @Test func `ten thousand rows arrive in order`() async throws {
    let connection = try await database.connect()
    let result = try await connection.query(
      "select n, repeat('x', n % 100) from generate_series(0, $1::int) n", ["9999"])
    #expect(result.count == 10_000)
    for row in 0..<result.count {
      try #require(result.int(row, 0) == row)
      try #require(result.withBytes(row, 1) { $0?.count } == row % 100)
    }
  }

  @Test func `a result outlives its connection`() async throws {
    var connection: Connection? = try await database.connect()
    let result = try #require(try await connection?.query("select 'still here'"))
    await connection?.close()
    connection = nil
    #expect(result[0, 0] == "still here")
  }

  @Test func `a megabyte goes there and back`() async throws {
    let connection = try await database.connect()
    let text = String(repeating: "0123456789abcdef", count: 65_536)
    let result = try await connection.query("select $1::text, length($1::text)", [text])
    #expect(result[0, 0] == text)
    #expect(result.int(0, 1) == 1_048_576)
  }

  @Test func `a NUL in a parameter is refused and not cut off`() async throws {
    let connection = try await database.connect()
    let error = await #expect(throws: PostgresError.self) {
      try await connection.query("select $1::text, $2::text", ["fine", "a\0b"])
    }
    #expect(error?.kind == .input)
    #expect(error?.message == "parameter $2 contains a NUL character")
    #expect(try await connection.query("select 1").int(0, 0) == 1)
  }

  @Test func `a NUL in a statement is refused`() async throws {
    let connection = try await database.connect()
    let query = await #expect(throws: PostgresError.self) {
      try await connection.query("select 1\0")
    }
    #expect(query?.kind == .input)
    let script = await #expect(throws: PostgresError.self) {
      try await connection.script("select 1\0")
    }
    #expect(script?.kind == .input)
  }

  @Test func `many parameters with NULLs between keep their places`() async throws {
    let connection = try await database.connect()
    let values: [String?] = (0..<200).map { $0 % 3 == 0 ? nil : "value \($0)" }
    let places = (1...200).map { "$\($0)::text" }.joined(separator: ",")
    let result = try await connection.query("select \(places)", values)
    #expect((0..<200).map { result[0, $0] } == values)
  }

  @Test func `an error has all its parts and shows only two`() async throws {
    let connection = try await database.connect()
    try await connection.script(
      "create table secrets (word text constraint secrets_unique unique); insert into secrets values ('hunter2')"
    )
    let error = try #require(
      await #expect(throws: PostgresError.self) {
        try await connection.query("insert into secrets values ($1)", ["hunter2"])
      })
    #expect(error.kind == .server)
    #expect(error.sqlState == "23505")
    #expect(error.constraint == "secrets_unique")
    #expect(error.schema == "public")
    #expect(error.table == "secrets")
    #expect(error.detail?.contains("hunter2") == true)
    #expect(error.description.hasPrefix("23505: "))
    #expect(!"\(error)".contains("hunter2"))
  }

  @Test func `an error of our own has its hint`() async throws {
    let connection = try await database.connect()
    let error = await #expect(throws: PostgresError.self) {
      try await connection.script(
        "do $$ begin raise exception 'no' using errcode = 'PT429', detail = 'd', hint = 'later'; end $$"
      )
    }
    #expect(error?.sqlState == "PT429")
    #expect(error?.detail == "d")
    #expect(error?.hint == "later")
    #expect(error?.context?.contains("PL/pgSQL") == true)
  }

  @Test(arguments: [
    ("selec 1", "42601"), ("select $1::int", "08P01"), ("select 'x'::int", "22P02"),
    ("select 1; select 2", "42601"),
  ])
  func `a wrong statement leaves the connection good`(_ sql: String, _ state: String) async throws {
    let connection = try await database.connect()
    let error = await #expect(throws: PostgresError.self) { try await connection.query(sql) }
    #expect(error?.kind == .server)
    #expect(error?.sqlState == state)
    #expect(try await connection.query("select 1").int(0, 0) == 1)
  }

  @Test func `an empty statement gives no rows`() async throws {
    let connection = try await database.connect()
    #expect(try await connection.query("").count == 0)
    try await connection.script("")
  }

  @Test func `a statement tells how many rows it touched`() async throws {
    let connection = try await database.connect()
    try await connection.script("create temp table t (n int)")
    #expect(
      try await connection.query("insert into t select generate_series(1, 7)").affectedRows == 7)
    #expect(try await connection.query("set search_path = public").affectedRows == 0)
  }

  @Test func `calls from many tasks each get their own answer`() async throws {
    let connection = try await database.connect()
    try await withThrowingTaskGroup { group in
      for number in 0..<200 {
        group.addTask {
          let result = try await connection.query("select $1::int, pg_backend_pid()", ["\(number)"])
          #expect(result.int(0, 0) == number)
        }
      }
      try await group.waitForAll()
    }
  }

  @Test func `a script is one transaction and says where it failed`() async throws {
    let connection = try await database.connect()
    let script = "create table half (n int);\ninsert into half values ('ä');\nselect 1"
    let error = await #expect(throws: PostgresError.self) { try await connection.script(script) }
    #expect(error?.sqlState == "22P02")
    #expect(error?.position == script.prefix { $0 != "'" }.count + 1)
    #expect(try await connection.query("select to_regclass('half') is null").bool(0, 0) == true)
  }

  @Test func `it knows whether a transaction is open`() async throws {
    let connection = try await database.connect()
    #expect(await connection.isInTransaction == false)
    try await connection.script("begin")
    #expect(await connection.isInTransaction)
    _ = try? await connection.query("select 1/0")
    #expect(await connection.isInTransaction)
    try await connection.script("rollback")
    #expect(await connection.isInTransaction == false)
  }

  @Test(arguments: [
    "copy (select generate_series(1, 100000)) to stdout", "copy copied from stdin",
  ])
  func `COPY is refused and leaves nothing open`(_ sql: String) async throws {
    let connection = try await database.connect()
    try await connection.script("create temp table copied (n int)")
    let query = await #expect(throws: PostgresError.self) { try await connection.query(sql) }
    #expect(query?.kind == .unsupported)
    let script = await #expect(throws: PostgresError.self) { try await connection.script(sql) }
    #expect(script?.kind == .unsupported)
    #expect(await connection.isInTransaction == false)
    #expect(try await connection.query("select count(*) from copied").int(0, 0) == 0)
  }
}
