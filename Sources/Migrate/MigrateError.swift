package import Postgres

/// Why a schema was not migrated. Nothing is left half-applied by any of these.
package enum MigrateError: Error, Sendable {
  /// A file of migrations/ or sql/ is not of the form that it must have: its name, and why.
  case invalidFile(String, String)
  /// The database came by its schema through another door.
  case otherDoor(Door)
  /// As above, through one that this binary has never heard of.
  case unknownDoor(String)
  /// A schema `ai` exists, and it is not Martlet's.
  case foreignSchema
  /// A schema `ai` exists, and neither this session's role nor the owner of Martlet's tables owns it.
  case foreignOwner
  /// A migration was changed after it had been applied: its file.
  case changed(String)
  /// The database has a migration that this binary does not know: its version.
  case newerDatabase(String)
  /// A migration that is not applied comes before one that is: both versions.
  case outOfOrder(pending: String, applied: String)
  /// The session's role is not the schema's owner and cannot even read its record.
  case notOwner
  /// SQL of a file failed.
  case failed(file: String, line: Int?, PostgresError)
  /// A migration ended the transaction that it was to run in.
  case endedTransaction(String)
  /// The database said no to something else, or went away.
  case database(PostgresError)
}

extension MigrateError: CustomStringConvertible {
  /// SQLSTATE: `PT409` where the database and this binary do not fit, the server's for its errors.
  package var sqlState: String? {
    switch self {
    case .invalidFile, .endedTransaction: nil
    case .otherDoor, .unknownDoor, .foreignSchema, .foreignOwner, .changed, .newerDatabase,
      .outOfOrder:
      "PT409"
    case .notOwner: "42501"
    case .failed(_, _, let error), .database(let error): error.sqlState
    }
  }

  /// What happened, in one line.
  package var description: String {
    switch self {
    case .invalidFile(let file, let reason): "\(file): \(reason)"
    case .otherDoor(let door): Refusal.otherDoor(door.rawValue)
    case .unknownDoor(let door): Refusal.otherDoor(door)
    case .foreignSchema: Refusal.foreignSchema
    case .foreignOwner: Refusal.foreignOwner
    case .changed(let file): Refusal.changed(file)
    case .newerDatabase(let version): Refusal.newer(version)
    case .outOfOrder(let pending, let applied): Refusal.outOfOrder(pending, applied)
    case .notOwner: "this role may not read ai.migrations"
    case .failed(let file, let line, let error):
      line.map { "\(file):\($0): \(error)" } ?? "\(file): \(error)"
    case .endedTransaction(let file): "\(file): it ends the transaction that it runs in"
    case .database(let error): error.description
    }
  }

  /// What to do about it.
  package var hint: String? {
    switch self {
    case .otherDoor(let door): "Upgrade with: \(door.upgrade)."
    case .unknownDoor: Refusal.newerHint
    case .foreignSchema: Refusal.foreignSchemaHint
    case .foreignOwner: Refusal.foreignOwnerHint
    case .changed: Refusal.changedHint
    case .newerDatabase: Refusal.newerHint
    case .outOfOrder: Refusal.outOfOrderHint
    case .notOwner: "Connect as the role that owns the schema ai."
    case .endedTransaction: "Each migration is one transaction, begun and committed for it."
    case .invalidFile: nil
    case .failed(_, _, let error), .database(let error): error.hint
    }
  }
}
