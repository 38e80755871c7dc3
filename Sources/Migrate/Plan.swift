/// What a database has recorded about its schema.
package struct Record: Sendable, Equatable {
  /// One row of `ai.migrations`; the version `sql` stands for the replaceable part.
  package struct Row: Sendable, Equatable {
    package var version: String
    package var name: String
    package var checksum: String
    package var door: String
  }

  /// nil where the table does not exist yet.
  package var rows: [Row]?
  /// Whether `create extension martlet` was run.
  package var hasExtension = false
  /// Whether a schema `ai` has tables or functions in it.
  package var schemaIsInUse = false
  /// Whether the schema `ai` belongs to somebody else than its tables, or than this session's role where there are none.
  package var schemaIsForeign = false

  /// The version under which sql/ is recorded.
  static let filesVersion = "sql"
}

/// What a schema still needs, by what its database has recorded. Pure: nothing is read or written.
package struct Plan: Sendable, Equatable {
  /// Versions that are applied.
  package let applied: [String]
  /// To be applied, in order.
  package let pending: [Migration]
  /// Whether sql/ is to be applied after them.
  package let appliesFiles: Bool

  package var isCurrent: Bool { pending.isEmpty && !appliesFiles }

  /// - Throws: a refusal, where this binary must not touch that database.
  package init(for schema: Schema, record: Record) throws(MigrateError) {
    if record.hasExtension { throw .otherDoor(.extension) }
    if record.schemaIsForeign { throw .foreignOwner }
    guard let rows = record.rows else {
      if record.schemaIsInUse { throw .foreignSchema }
      applied = []
      pending = schema.migrations
      appliesFiles = true
      return
    }
    for row in rows where row.door != Door.martlet.rawValue {
      throw Door(rawValue: row.door).map { .otherDoor($0) } ?? .unknownDoor(row.door)
    }
    var known: [String: Migration] = [:]
    for migration in schema.migrations { known[migration.version] = migration }
    var applied: [String] = []
    for row in rows where row.version != Record.filesVersion {
      guard let migration = known[row.version] else { throw .newerDatabase(row.version) }
      guard migration.checksum == row.checksum else { throw .changed(migration.file) }
      applied.append(row.version)
    }
    applied.sort()
    let done = Set(applied)
    let pending = schema.migrations.filter { !done.contains($0.version) }
    if let first = pending.first, let last = applied.last, first.version < last {
      throw .outOfOrder(pending: first.version, applied: last)
    }
    let files = rows.first { $0.version == Record.filesVersion }
    self.applied = applied
    self.pending = pending
    // A migration may have dropped and made anew what sql/ builds on.
    appliesFiles = !pending.isEmpty || files?.checksum != schema.filesChecksum
  }
}
