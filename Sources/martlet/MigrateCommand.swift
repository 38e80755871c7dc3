internal import ArgumentParser
internal import FoundationEssentials
internal import Migrate
internal import Postgres

struct MigrateCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "migrate",
    abstract: "Brings the schema of a database up to date.",
    discussion: """
      Any number of these may run at once. Exit codes: 0 done, 1 an error, 2 a wrong call, 3 --status \
      found pending work. Connect to the server itself: a pooler in transaction mode would lose the \
      lock. To bound the wait for locks that an application holds, set \
      PGOPTIONS='-c lock_timeout=5s'.
      """)

  @Option(
    help: ArgumentHelp(
      "Where the database is. Default: DATABASE_URL, else libpq's environment (PGHOST, …).",
      valueName: "url"))
  var databaseURL: String?

  @Flag(help: "Say what is applied and what is pending, and change nothing.")
  var status = false

  @Flag(help: "Say what would be applied, and change nothing.")
  var dryRun = false

  @Flag(help: "Print JSON.")
  var json = false

  func validate() throws {
    if status && dryRun { throw ValidationError("--status and --dry-run exclude each other.") }
  }

  func run() async throws {
    do {
      try await migrate()
    } catch let error as MigrateError {
      if json { print(try jsonLine(FailureReport(error))) }
      writeError("martlet: \(error)")
      if let hint = error.hint { writeError("hint: \(hint)") }
      throw ExitCode(1)
    }
  }

  private func migrate() async throws {
    let migrator = Migrator(try Schema.embedded())
    let conninfo = databaseURL ?? ProcessInfo.processInfo.environment["DATABASE_URL"] ?? ""
    let connection: Connection
    do {
      connection = try await Connection.open(conninfo, applicationName: "martlet migrate")
    } catch {
      throw MigrateError.database(error)
    }
    if status || dryRun {
      let plan = try await migrator.plan(connection)
      await connection.close()
      try report(plan, schema: migrator.schema, done: false)
      if status && !plan.isCurrent { throw ExitCode(3) }
      return
    }
    let progress = ProgressLine()
    let plan: Plan
    do {
      plan = try await migrator.migrate(connection) { step in
        switch step {
        case .waiting: progress.show("waiting for the lock")
        case .migration(let migration, let number, let count):
          progress.show("\(number)/\(count) \(migration.file)")
        case .files: progress.show("functions, triggers, views, policies")
        }
      }
      progress.clear()
    } catch {
      progress.clear()
      throw error
    }
    await connection.close()
    try report(plan, schema: migrator.schema, done: true)
  }

  private func report(_ plan: Plan, schema: Schema, done: Bool) throws {
    if json {
      print(try jsonLine(PlanReport(plan, schema: schema, done: done)))
      return
    }
    let verb = done ? "applied" : "pending"
    for migration in plan.pending { print("\(verb)  \(migration.file)") }
    if plan.appliesFiles { print("\(verb)  sql/ (\(schema.files.count) files)") }
    if plan.isCurrent {
      print("the schema is current: \(schema.migrations.last?.version ?? "empty")")
    }
  }
}

/// What `migrate --json` prints.
private struct PlanReport: Encodable {
  struct Item: Encodable {
    let version: String
    let name: String
  }

  /// Whether the database is at this binary's version now.
  let current: Bool
  /// The newest migration of this binary.
  let schema: String?
  /// Applied by this run.
  let applied: [Item]
  /// Not applied.
  let pending: [Item]
  /// `applied`, `pending` or `current`.
  let sql: String

  init(_ plan: Plan, schema: Schema, done: Bool) {
    let items = plan.pending.map { Item(version: $0.version, name: $0.name) }
    current = done || plan.isCurrent
    self.schema = schema.migrations.last?.version
    applied = done ? items : []
    pending = done ? [] : items
    sql = plan.appliesFiles ? (done ? "applied" : "pending") : "current"
  }
}

private struct FailureReport: Encodable {
  struct Failure: Encodable {
    let code: String?
    let message: String
    let hint: String?
  }

  let error: Failure

  init(_ error: MigrateError) {
    self.error = Failure(
      code: error.sqlState, message: error.description, hint: error.hint)
  }
}
