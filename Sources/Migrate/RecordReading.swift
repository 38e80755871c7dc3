package import Postgres

extension Record {
  /// Reads what the database knows of its schema.
  /// - Throws: `.notOwner`, `.database`.
  package static func read(_ connection: Connection) async throws(MigrateError) -> Record {
    let record: Record?
    do { record = try await readVisible(connection) } catch { throw .database(error) }
    guard let record else { throw .notOwner }
    return record
  }

  /// nil where row-level security hides the table's rows: everything would look pending.
  private static func readVisible(
    _ connection: Connection
  ) async throws(PostgresError) -> Record? {
    let state = try await connection.query(
      """
      select t.oid is not null,
             t.oid is not null and pg_catalog.row_security_active(t.oid),
             exists (select from pg_catalog.pg_extension where extname = 'martlet'),
             exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid)
               or exists (select from pg_catalog.pg_proc p where p.pronamespace = n.oid),
             n.nspowner <> coalesce(t.relowner, (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user))
        from (values (1)) one
        left join pg_catalog.pg_namespace n on n.nspname = 'ai'
        left join pg_catalog.pg_class t on t.relnamespace = n.oid and t.relname = 'migrations'
      """)
    var record = Record()
    record.hasExtension = state.bool(0, 2) ?? false
    record.schemaIsInUse = state.bool(0, 3) ?? false
    record.schemaIsForeign = state.bool(0, 4) ?? false
    guard state.bool(0, 0) == true, !record.hasExtension else { return record }
    if state.bool(0, 1) == true { return nil }
    let rows = try await connection.query(
      "select version, name, checksum, door from ai.migrations order by version")
    record.rows = (0..<rows.count).map { row in
      Row(
        version: rows[row, 0] ?? "", name: rows[row, 1] ?? "", checksum: rows[row, 2] ?? "",
        door: rows[row, 3] ?? "")
    }
    return record
  }
}
