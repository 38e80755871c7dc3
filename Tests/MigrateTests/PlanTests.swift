import Testing

@testable import Migrate

struct PlanTests {
  private func record(_ schema: Schema, door: String = "martlet", last: Int? = nil) -> Record {
    var record = Record()
    record.schemaIsInUse = true
    record.rows = schema.migrations.prefix(last ?? .max).map {
      Record.Row(version: $0.version, name: $0.name, checksum: $0.checksum, door: door)
    }
    record.rows?.append(
      Record.Row(version: "sql", name: "sql", checksum: schema.filesChecksum, door: door))
    return record
  }

  @Test func `an empty database needs everything`() throws {
    let schema = try Fixture.schema()
    let plan = try Plan(for: schema, record: Record())
    #expect(plan.pending == schema.migrations)
    #expect(plan.appliesFiles)
    #expect(plan.applied.isEmpty)
    #expect(!plan.isCurrent)
  }

  @Test func `a current database needs nothing`() throws {
    let schema = try Fixture.schema()
    let plan = try Plan(for: schema, record: record(schema))
    #expect(plan.isCurrent)
    #expect(plan.applied == ["20260101000000", "20260102000000"])
  }

  @Test func `a pending migration brings sql with it`() throws {
    let schema = try Fixture.schema()
    let plan = try Plan(for: schema, record: record(schema, last: 1))
    #expect(plan.pending.map(\.name) == ["colour"])
    #expect(plan.appliesFiles)
  }

  @Test func `a change of sql alone is applied`() throws {
    let schema = try Fixture.schema()
    let later = try Fixture.schema(files: Fixture.files + [("90_more.sql", "select 1;")])
    let plan = try Plan(for: later, record: record(schema))
    #expect(plan.pending.isEmpty)
    #expect(plan.appliesFiles)
  }

  @Test func `sql that was never recorded is applied`() throws {
    let schema = try Fixture.schema()
    var record = record(schema)
    record.rows?.removeLast()
    #expect(try Plan(for: schema, record: record).appliesFiles)
  }

  @Test func `a changed migration is refused by its name`() throws {
    let schema = try Fixture.schema()
    let changed = try Fixture.schema([
      Fixture.first, (Fixture.second.file, Fixture.second.text + "\n"),
    ])
    let error = #expect(throws: MigrateError.self) {
      try Plan(for: changed, record: record(schema))
    }
    #expect(error?.sqlState == "PT409")
    #expect(error?.description.contains("20260102000000_colour.sql") == true)
    #expect(error?.hint != nil)
  }

  @Test func `a database that is newer than the binary is refused`() throws {
    let older = try Fixture.schema([Fixture.first])
    let error = #expect(throws: MigrateError.self) {
      try Plan(for: older, record: record(try Fixture.schema()))
    }
    #expect(error?.sqlState == "PT409")
    #expect(error?.description.contains("20260102000000") == true)
    #expect(error?.hint?.contains("upgrade Martlet") == true)
  }

  @Test func `a migration slipped in before an applied one is refused`() throws {
    let schema = try Fixture.schema()
    let slipped = try Fixture.schema([
      Fixture.first, Fixture.second, ("20260101120000_between.sql", "-- migrate:up\n"),
    ])
    let error = #expect(throws: MigrateError.self) {
      try Plan(for: slipped, record: record(schema))
    }
    #expect(error?.sqlState == "PT409")
    #expect(error?.description.contains("20260101120000") == true)
  }

  @Test(arguments: ["bundle", "extension", "window"])
  func `another door is refused by its name`(_ door: String) throws {
    let schema = try Fixture.schema()
    let error = #expect(throws: MigrateError.self) {
      try Plan(for: schema, record: record(schema, door: door))
    }
    #expect(error?.sqlState == "PT409")
    #expect(error?.description.contains(door) == true)
  }

  @Test func `the extension is refused before it has made any table`() throws {
    var record = Record()
    record.hasExtension = true
    record.schemaIsInUse = true
    let error = #expect(throws: MigrateError.self) {
      try Plan(for: try Fixture.schema(), record: record)
    }
    #expect(error?.description.contains("extension") == true)
  }

  @Test func `somebody else's schema of that name is refused`() throws {
    var record = Record()
    record.schemaIsInUse = true
    let error = #expect(throws: MigrateError.self) {
      try Plan(for: try Fixture.schema(), record: record)
    }
    #expect(error?.sqlState == "PT409")
  }
}
