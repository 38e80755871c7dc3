package import Postgres

/// Brings a database's schema up to date, through the door `martlet`.
///
/// Any number may run at once: a session advisory lock lets them follow one another, and all but the
/// first find nothing to do. The lock needs a session of the server's own: not through a pooler in
/// transaction mode.
package struct Migrator: Sendable {
  /// What has just begun.
  package enum Step: Sendable, Equatable {
    case waiting
    /// The n-th of so many, from 1.
    case migration(Migration, Int, of: Int)
    case files
  }

  package let schema: Schema

  package init(_ schema: Schema) { self.schema = schema }

  /// What there is to do. Takes no lock and changes nothing.
  package func plan(_ connection: Connection) async throws(MigrateError) -> Plan {
    try Plan(for: schema, record: try await Record.read(connection))
  }

  /// Applies the pending migrations and sql/. In an empty database each migration has a transaction of
  /// its own, and all of sql/ has one. Where there is a schema that apps and workers may be using, all is
  /// one transaction: nobody ever meets the functions of one version on the tables of the other.
  ///
  /// - Parameters:
  ///   - connection: a session for this purpose; close it afterwards, which frees the lock.
  ///   - report: called before each step.
  /// - Returns: what was done.
  /// - Throws: a refusal, or the first failure. What was committed before it stays, whole; the next
  ///   run goes on from there.
  package func migrate(
    _ connection: Connection, report: (Step) -> Void = { _ in }
  ) async throws(MigrateError) -> Plan {
    do {
      try await connection.script(SessionSQL.prepare)
      report(.waiting)
      try await connection.query("select pg_catalog.pg_advisory_lock(\(SessionSQL.lockKey))")
    } catch {
      throw .database(error)
    }
    let plan = try await plan(connection)
    if plan.applied.isEmpty {
      for (index, migration) in plan.pending.enumerated() {
        report(.migration(migration, index + 1, of: plan.pending.count))
        try await transaction(on: connection) { () async throws(MigrateError) in
          try await apply(migration, on: connection)
        }
      }
      report(.files)
      try await transaction(on: connection) { () async throws(MigrateError) in
        try await applyFiles(on: connection)
      }
    } else if !plan.isCurrent {
      try await transaction(on: connection) { () async throws(MigrateError) in
        try await run(SessionSQL.trustPath, on: connection)
        try await run("do \(dollarQuoted(TableLocks.block))", on: connection)
        for (index, migration) in plan.pending.enumerated() {
          report(.migration(migration, index + 1, of: plan.pending.count))
          try await apply(migration, on: connection)
        }
        report(.files)
        try await applyFiles(on: connection)
      }
    }
    do {
      try await connection.query("select pg_catalog.pg_advisory_unlock(\(SessionSQL.lockKey))")
    } catch {
      throw .database(error)
    }
    return plan
  }

  /// Of two that wait for each other the server ends one; if it is this one, it has done nothing and begins anew.
  private func transaction(
    on connection: Connection, _ body: () async throws(MigrateError) -> Void
  ) async throws(MigrateError) {
    for _ in 1..<5 {
      do {
        return try await once(body, on: connection)
      } catch {
        guard error.sqlState == "40P01" else { throw error }
        try await run("rollback", on: connection)
      }
    }
    try await once(body, on: connection)
  }

  private func once(
    _ body: () async throws(MigrateError) -> Void, on connection: Connection
  ) async throws(MigrateError) {
    try await run("begin", on: connection)
    try await body()
    try await run("commit", on: connection)
  }

  private func apply(
    _ migration: Migration, on connection: Connection
  ) async throws(MigrateError) {
    try await run(SessionSQL.trustPath, on: connection)
    try await run(migration.text, of: migration.file, on: connection)
    guard await connection.isInTransaction else { throw .endedTransaction(migration.file) }
    try await record(
      migration.version, migration.name, migration.checksum, on: connection)
  }

  private func applyFiles(on connection: Connection) async throws(MigrateError) {
    try await run(SessionSQL.trustPath, on: connection)
    // Functions may name what a later file makes; all are checked at the end.
    try await run("set local check_function_bodies = off", on: connection)
    for file in schema.files where !file.functions.isEmpty {
      try await run(file.functions, of: file.file, on: connection)
    }
    for file in schema.files where !file.objects.isEmpty {
      try await run(file.objects, of: file.file, fromLine: file.objectsLine, on: connection)
    }
    try await run(SessionSQL.checkFunctions, of: "sql", on: connection)
    guard await connection.isInTransaction else { throw .endedTransaction("sql") }
    try await record(
      Record.filesVersion, Record.filesVersion, schema.filesChecksum, on: connection)
  }

  private func record(
    _ version: String, _ name: String, _ checksum: String, on connection: Connection
  ) async throws(MigrateError) {
    do {
      try await connection.query(
        """
        insert into ai.migrations (version, name, checksum, door, applied_at)
        values ($1, $2, $3, 'martlet', pg_catalog.now())
        on conflict (version) do update
          set checksum = excluded.checksum, door = excluded.door, applied_at = excluded.applied_at
        """, [version, name, checksum])
    } catch {
      throw .database(error)
    }
  }

  private func run(_ sql: String, on connection: Connection) async throws(MigrateError) {
    do { try await connection.script(sql) } catch { throw .database(error) }
  }

  private func run(
    _ sql: String, of file: String, fromLine first: Int = 1, on connection: Connection
  ) async throws(MigrateError) {
    do {
      try await connection.script(sql)
    } catch {
      if error.kind == .connection { throw .database(error) }
      let line = error.position.map { position in
        first + sql.unicodeScalars.prefix(max(0, position - 1)).count { $0 == "\n" }
      }
      throw .failed(file: file, line: line, error)
    }
  }
}
