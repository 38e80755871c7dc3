import Postgres
import Testing

@testable import Migrate

@Suite
struct BundleTests {
  /// The SQLSTATE and message with which a bundle is refused, nil where it is applied.
  private func apply(_ schema: Schema, to connection: Connection) async throws -> PostgresError? {
    do {
      try await connection.script(schema.bundle())
      return nil
    } catch {
      return error
    }
  }

  @Test(.ownDatabase) func `it makes what the command makes, and again does no harm`() async throws
  {
    let connection = try await TestDatabase.required().connect()
    let schema = try Fixture.schema()
    for _ in 0..<3 {
      #expect(try await apply(schema, to: connection) == nil)
      #expect(try await connection.query("select ai.count_things()").int(0, 0) == 1)
    }
    let rows = try await connection.query(
      "select version, checksum, door from ai.migrations order by 1")
    #expect(
      (0..<rows.count).map { rows[$0, 1] }
        == schema.migrations.map(\.checksum) + [schema.filesChecksum])
    #expect((0..<rows.count).allSatisfy { rows[$0, 2] == "bundle" })
    let settings = try await connection.query(
      "select current_setting('check_function_bodies'), current_setting('client_min_messages')")
    #expect(settings[0, 0] == "on")
    #expect(settings[0, 1] == "notice")
  }

  @Test(.ownDatabase) func `an upgrade applies what is new`() async throws {
    let connection = try await TestDatabase.required().connect()
    #expect(try await apply(try Fixture.schema([Fixture.first], files: []), to: connection) == nil)
    #expect(try await apply(try Fixture.schema(), to: connection) == nil)
    #expect(try await connection.query("select ai.count_things()").int(0, 0) == 1)
  }

  @Test(.ownDatabase) func `what does not fit is refused in the command's words`() async throws {
    let connection = try await TestDatabase.required().connect()
    let schema = try Fixture.schema()
    #expect(try await apply(schema, to: connection) == nil)
    let changed = try Fixture.schema([Fixture.first, (Fixture.second.file, "-- migrate:up\n")])
    let slipped = try Fixture.schema([
      Fixture.first, ("20260101120000_between.sql", "-- migrate:up\n"), Fixture.second,
    ])
    for other in [changed, slipped, try Fixture.schema([Fixture.first])] {
      let refused = try #require(try await apply(other, to: connection))
      var record = try await Record.read(connection)
      for index in record.rows?.indices ?? 0..<0 { record.rows?[index].door = "martlet" }
      let expected = #expect(throws: MigrateError.self) { try Plan(for: other, record: record) }
      #expect(refused.sqlState == "PT409")
      #expect(refused.message == expected?.description)
      #expect(refused.hint == expected?.hint)
    }
    #expect(try await connection.query("select ai.count_things()").int(0, 0) == 1)
  }

  @Test(.ownDatabase) func `the doors exclude each other`() async throws {
    let database = try TestDatabase.required()
    let connection = try await database.connect()
    let schema = try Fixture.schema()
    try await Fixture.migrate(database, schema)
    let refused = try #require(try await apply(schema, to: connection))
    #expect(refused.sqlState == "PT409")
    #expect(refused.message.contains("'martlet'"))
    try await connection.script("drop schema ai cascade")
    #expect(try await apply(schema, to: connection) == nil)
    let error = await #expect(throws: MigrateError.self) {
      try await Fixture.migrate(database, schema)
    }
    #expect(error?.description.contains("'bundle'") == true)
  }

  @Test(.ownDatabase) func `somebody else's schema is left alone`() async throws {
    let connection = try await TestDatabase.required().connect()
    try await connection.script("create schema ai; create table ai.theirs (n int)")
    #expect(try await apply(try Fixture.schema(), to: connection)?.sqlState == "PT409")
  }

  @Test(.ownDatabase) func `a failure in it leaves nothing`() async throws {
    let connection = try await TestDatabase.required().connect()
    let broken = (
      file: "30_broken.sql",
      text: "create or replace function ai.no() returns int language sql as 'select x';"
    )
    let schema = try Fixture.schema(files: Fixture.files + [broken])
    #expect(try await apply(schema, to: connection)?.sqlState == "42703")
    #expect(try await connection.query("select to_regnamespace('ai') is null").bool(0, 0) == true)
  }

  @Test(.ownDatabase) func `the embedded one can be applied twice`() async throws {
    let connection = try await TestDatabase.required().connect()
    #expect(try await apply(try Schema.embedded(), to: connection) == nil)
    #expect(try await apply(try Schema.embedded(), to: connection) == nil)
  }
}
