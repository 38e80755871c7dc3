import Migrate
import Postgres
import Synchronization
import Testing

@Suite
struct MigratorTests {
  @Test(.ownDatabase) func `all is applied, recorded and usable`() async throws {
    let database = try TestDatabase.required()
    let steps = Mutex<[String]>([])
    try await Fixture.migrate(database, try Fixture.schema()) { step in
      steps.withLock { $0.append("\(step)".prefix { $0 != "(" }.description) }
    }
    #expect(steps.withLock { $0 } == ["waiting", "migration", "migration", "files"])
    let connection = try await database.connect()
    #expect(try await connection.query("select ai.count_things()").int(0, 0) == 1)
    let rows = try await connection.query(
      "select version, name, door, checksum ~ '^[0-9a-f]{64}$' from ai.migrations order by version")
    #expect((0..<rows.count).map { rows[$0, 0] } == ["20260101000000", "20260102000000", "sql"])
    #expect((0..<rows.count).map { rows[$0, 1] } == ["start", "colour", "sql"])
    #expect((0..<rows.count).allSatisfy { rows[$0, 2] == "martlet" && rows.bool($0, 3) == true })
  }

  @Test(.ownDatabase) func `asking for the status changes nothing`() async throws {
    let database = try TestDatabase.required()
    let connection = try await database.connect()
    let plan = try await Migrator(try Fixture.schema()).plan(connection)
    #expect(plan.pending.count == 2)
    #expect(try await connection.query("select to_regnamespace('ai') is null").bool(0, 0) == true)
  }

  @Test(.ownDatabase) func `an upgrade applies what is new and only that`() async throws {
    let database = try TestDatabase.required()
    let older = [
      (
        file: "10_things.sql",
        text: "create function ai.old() returns int language sql as 'select 1';"
      )
    ]
    try await Fixture.migrate(database, try Fixture.schema([Fixture.first], files: older))
    let newer = Fixture.files.map { file in
      file.file == "00_drops.sql" ? (file.file, "drop function if exists ai.old();") : file
    }
    let plan = try await Fixture.migrate(database, try Fixture.schema(files: newer))
    #expect(plan.applied == ["20260101000000"])
    #expect(plan.pending.map(\.name) == ["colour"])
    let connection = try await database.connect()
    let check = try await connection.query(
      "select to_regproc('ai.old') is null, ai.count_things(), (select count(*) from ai.things)")
    #expect(check.bool(0, 0) == true)
    #expect(check.int(0, 1) == 1)
    #expect(check.int(0, 2) == 1)
  }

  @Test(.ownDatabase) func `a migration that fails leaves those before it and nothing of itself`()
    async throws
  {
    let database = try TestDatabase.required()
    let broken = (
      file: "20260103000000_broken.sql",
      text:
        "-- migrate:up\ncreate table ai.half (n int);\n-- käse\ninsert into ai.half\nvalues ('x');\n"
    )
    let schema = try Fixture.schema([Fixture.first, Fixture.second, broken])
    let error = await #expect(throws: MigrateError.self) {
      try await Fixture.migrate(database, schema)
    }
    #expect(error?.sqlState == "22P02")
    #expect(error?.description.hasPrefix("20260103000000_broken.sql:5: 22P02") == true)
    let connection = try await database.connect()
    let check = try await connection.query(
      """
      select to_regclass('ai.half') is null, to_regclass('ai.things') is not null,
             (select string_agg(version, ' ' order by version) from ai.migrations)
      """)
    #expect(check.bool(0, 0) == true)
    #expect(check.bool(0, 1) == true)
    #expect(check[0, 2] == "20260101000000 20260102000000")
    let mended = (file: broken.file, text: broken.text.replacing("'x'", with: "1"))
    let plan = try await Fixture.migrate(
      database, try Fixture.schema([Fixture.first, Fixture.second, mended]))
    #expect(plan.pending.map(\.name) == ["broken"])
  }

  @Test(.ownDatabase) func `the first migration may fail too`() async throws {
    let database = try TestDatabase.required()
    let broken = (Fixture.first.file, Fixture.first.text + ";\nselect 1/0")
    let error = await #expect(throws: MigrateError.self) {
      try await Fixture.migrate(database, try Fixture.schema([broken]))
    }
    #expect(error?.sqlState == "22012")
    try await Fixture.migrate(database, try Fixture.schema())
  }

  @Test(.ownDatabase) func `sql that fails leaves the sql of before`() async throws {
    let database = try TestDatabase.required()
    try await Fixture.migrate(database, try Fixture.schema())
    let broken = (
      file: "15_broken.sql",
      text: """
      create or replace function ai.is_red(colour text) returns boolean language plpgsql immutable
      as $$ begin return false; end $$;

      -- objects
      create view ai.broken as
        select nothing from ai.things;
      """
    )
    let error = await #expect(throws: MigrateError.self) {
      try await Fixture.migrate(database, try Fixture.schema(files: Fixture.files + [broken]))
    }
    #expect(error?.sqlState == "42703")
    #expect(error?.description.hasPrefix("15_broken.sql:6: ") == true)
    let connection = try await database.connect()
    #expect(try await connection.query("select ai.is_red('red')").bool(0, 0) == true)
    #expect(try await Fixture.migrate(database, try Fixture.schema()).isCurrent)
  }

  @Test(
    .ownDatabase,
    arguments: [
      "language sql as 'select no_such_column from ai.things'",
      "language plpgsql as 'begin return 1'",
    ])
  func `a function that cannot work is found although it was not checked when it was made`(
    _ body: String
  ) async throws {
    let database = try TestDatabase.required()
    let broken = (
      file: "30_broken.sql", text: "create or replace function ai.no() returns int \(body);"
    )
    let error = await #expect(throws: MigrateError.self) {
      try await Fixture.migrate(database, try Fixture.schema(files: Fixture.files + [broken]))
    }
    #expect(error?.sqlState?.hasPrefix("42") == true)
    #expect(error?.description.contains("ai.no(): ") == true)
    let connection = try await database.connect()
    #expect(try await connection.query("select to_regproc('ai.no') is null").bool(0, 0) == true)
  }

  @Test(.ownDatabase) func `a migration that ends its own transaction is refused`() async throws {
    let database = try TestDatabase.required()
    let file = (file: "20260103000000_own.sql", text: "-- migrate:up\nselect 1; commit;\n")
    let error = await #expect(throws: MigrateError.self) {
      try await Fixture.migrate(database, try Fixture.schema([Fixture.first, file]))
    }
    #expect(error?.description.contains("20260103000000_own.sql") == true)
  }

  @Test(.ownDatabase) func `twenty at once leave one clean schema`() async throws {
    let database = try TestDatabase.required()
    let schema = try Fixture.schema()
    let plans = try await withThrowingTaskGroup(of: Plan.self) { group in
      for _ in 0..<20 { group.addTask { try await Fixture.migrate(database, schema) } }
      var plans: [Plan] = []
      for try await plan in group { plans.append(plan) }
      return plans
    }
    #expect(plans.count == 20)
    #expect(plans.count { !$0.isCurrent } == 1)
    let connection = try await database.connect()
    #expect(try await connection.query("select count(*) from ai.migrations").int(0, 0) == 3)
  }

  @Test(.ownDatabase) func `a process that dies in a migration leaves nothing of it, and no lock`()
    async throws
  {
    let database = try TestDatabase.required()
    let slow = (
      file: Fixture.second.file, text: Fixture.second.text + "select pg_sleep(600);\n"
    )
    let run = Task {
      try await Fixture.migrate(database, try Fixture.schema([Fixture.first, slow]))
    }
    let witness = try await database.connect()
    try await eventually("the migration sleeps") {
      try await witness.query(
        """
        select count(pg_terminate_backend(pid)) > 0 from pg_stat_activity
         where datname = current_database() and application_name = 'test migrate' and wait_event = 'PgSleep'
        """
      ).bool(0, 0) == true
    }
    let error = await #expect(throws: MigrateError.self) { try await run.value }
    #expect(error?.sqlState == "57P01")
    let check = try await witness.query(
      "select to_regclass('ai.\"$martlet$\"') is null, (select string_agg(version, ' ') from ai.migrations)"
    )
    #expect(check.bool(0, 0) == true)
    #expect(check[0, 1] == "20260101000000")
    let plan = try await Fixture.migrate(database, try Fixture.schema())
    #expect(plan.pending.map(\.name) == ["colour"])
  }

  @Test(.ownDatabase) func `a role's time limits do not cut a migration short`() async throws {
    let database = try TestDatabase.required()
    let slow = (file: Fixture.second.file, text: Fixture.second.text + "select pg_sleep(0.3);\n")
    let connection = try await database.connect()
    try await connection.script("set statement_timeout = '100ms'")
    let plan = try await Migrator(try Fixture.schema([Fixture.first, slow])).migrate(connection)
    #expect(plan.pending.count == 2)
  }

  @Test(.ownDatabase) func `a deadlock with an application is no failure`() async throws {
    let database = try TestDatabase.required()
    try await Fixture.migrate(database, try Fixture.schema())
    let crossing = (
      file: "30_crossing.sql",
      text: """
      -- objects
      lock table ai."$martlet$" in access exclusive mode;
      lock table ai.things in access exclusive mode;
      """
    )
    let application = try await database.connect()
    // The application looks for a deadlock much later, so that the migration is the one to be ended.
    try await application.script(
      "set deadlock_timeout = '30s'; begin; lock table ai.things in share mode")
    let migration = try await database.connect("test migrate")
    try await migration.script("set deadlock_timeout = '4s'")
    let run = Task {
      try await Migrator(try Fixture.schema(files: Fixture.files + [crossing])).migrate(migration)
    }
    let witness = try await database.connect()
    try await eventually("the migration waits for the application") {
      try await witness.query(
        """
        select exists (select from pg_locks where relation = 'ai.things'::regclass and not granted
          and mode = 'AccessExclusiveLock')
        """
      ).bool(0, 0) == true
    }
    try await application.script("lock table ai.\"$martlet$\" in share mode; commit")
    #expect(try await run.value.appliesFiles)
    #expect(try await Fixture.migrate(database, try Fixture.schema()).appliesFiles)
  }

  @Test(.ownDatabase) func `a wait for the lock can be bounded by the operator`() async throws {
    let database = try TestDatabase.required()
    let holder = try await database.connect()
    try await holder.query("select pg_advisory_lock(\(0x6d_6172_746c_6574))")
    let connection = try await database.connect()
    try await connection.script("set lock_timeout = '50ms'")
    let error = await #expect(throws: MigrateError.self) {
      try await Migrator(try Fixture.schema()).migrate(connection)
    }
    #expect(error?.sqlState == "55P03")
  }

  @Test(.ownDatabase) func `a role that may not read the record is told so`() async throws {
    let database = try TestDatabase.required()
    try await Fixture.migrate(database, try Fixture.schema())
    let connection = try await database.connect()
    // pg_read_all_data may select, but row-level security applies to it.
    try await connection.script("set role pg_read_all_data")
    let error = await #expect(throws: MigrateError.self) {
      try await Migrator(try Fixture.schema()).plan(connection)
    }
    #expect(error?.sqlState == "42501")
    try await connection.script("set role pg_monitor")
    let denied = await #expect(throws: MigrateError.self) {
      try await Migrator(try Fixture.schema()).plan(connection)
    }
    #expect(denied?.sqlState == "42501")
  }

  @Test(
    .ownDatabase,
    arguments: [
      "create table ai.theirs (n int)",
      "create function ai.f() returns int language sql as 'select 1'",
    ])
  func `somebody else's schema is left alone`(_ theirs: String) async throws {
    let database = try TestDatabase.required()
    let connection = try await database.connect()
    try await connection.script("create schema ai; \(theirs)")
    let error = await #expect(throws: MigrateError.self) {
      try await Fixture.migrate(database, try Fixture.schema())
    }
    #expect(error?.sqlState == "PT409")
  }

  @Test(.ownDatabase) func `an empty schema that an operator made is used`() async throws {
    let database = try TestDatabase.required()
    try await database.connect().script("create schema ai")
    try await Fixture.migrate(database, try Fixture.schema())
  }
}
