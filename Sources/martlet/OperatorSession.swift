import ArgumentParser
import FoundationEssentials
import Postgres
import Sealing
import Worker

/// What commands about sealed values take.
struct SealedOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Where the database is. Default: DATABASE_URL, else libpq's environment (PGHOST, …).",
      valueName: "url"))
  var databaseURL: String?

  @Flag(help: "Print JSON.")
  var json = false

  /// Runs `body` on a connection; what goes wrong is told, and ends the command.
  func withConnection(_ body: (Connection) async throws -> Void) async throws {
    do {
      let connection = try await Connection.open(
        databaseURL ?? ProcessInfo.processInfo.environment["DATABASE_URL"] ?? "",
        applicationName: "martlet secrets")
      try await body(connection)
      await connection.close()
    } catch let error as PostgresError {
      report(error)
      throw ExitCode(1)
    } catch let error as SealingError {
      writeError("martlet: \(error)")
      throw ExitCode(1)
    } catch let error as SealedTrouble {
      writeError("martlet: \(error.message)")
      if let hint = error.hint { writeError("hint: \(hint)") }
      throw ExitCode(1)
    }
  }

  /// The master keys of this process; there must be one.
  func masters() throws -> MasterKeyring {
    let environment = ProcessInfo.processInfo.environment
    let masters: MasterKeyring
    do {
      masters = try MasterKeyring { environment[$0] }
    } catch {
      throw SealedTrouble(error.description)
    }
    guard !masters.isEmpty else {
      throw SealedTrouble(
        "there is no master key",
        hint: "Set MARTLET_MASTER_KEY_FILE; martlet secrets new-key prints a line for it.")
    }
    return masters
  }
}

/// Why a command about sealed values cannot do what it was asked.
struct SealedTrouble: Error {
  let message: String
  let hint: String?

  init(_ message: String, hint: String? = nil) {
    self.message = message
    self.hint = hint
  }
}

/// What the operator does with data keys: by the schema's owner, with the master keys at hand.
struct OperatorSession {
  let connection: Connection
  let masters: MasterKeyring

  /// - Throws: where the session has not the rights of the schema's owner.
  static func checkOwner(_ connection: Connection) async throws {
    guard try await connection.query("select ai.acts_as_owner()").bool(0, 0) == true else {
      throw SealedTrouble(
        "secrets are kept by the owner of the schema ai", hint: "Connect as that role.")
    }
  }

  /// Begins again where somebody else changed the same at the same time (PT409).
  static func again<Value>(_ body: () async throws -> Value) async throws -> Value {
    for _ in 0..<3 {
      do {
        return try await body()
      } catch {
        guard let error = error as? PostgresError, error.sqlState == "PT409" else { throw error }
      }
    }
    return try await body()
  }

  /// The tenant of this name or id.
  static func tenant(_ name: String, _ connection: Connection) async throws -> String {
    let rows = try await connection.query(
      "select id from ai.tenants where name = $1 or id::text = lower($1)", [name])
    guard rows.count > 0, let id = rows[0, 0] else {
      throw SealedTrouble("there is no tenant \(name)", hint: "select id, name from ai.tenants;")
    }
    guard rows.count == 1 else {
      throw SealedTrouble("several tenants are called \(name)", hint: "Give the id.")
    }
    return id
  }

  /// Opens the data key of a row `id, tenant_id, wrapped, master_key_id`.
  func dataKey(_ rows: QueryResult, _ row: Int) throws -> DataKey {
    let id = rows[row, 0] ?? ""
    guard let wrapped = rows.bytea(row, 2), let masterID = rows[row, 3] else {
      throw SealedTrouble("the data key \(id) was destroyed")
    }
    guard let master = masters.key(masterID) else {
      throw SealedTrouble(
        "the data key \(id) is sealed under the master key \(masterID), which is not at hand",
        hint: "Add it to MARTLET_MASTER_KEY_FILE, behind the current one.")
    }
    do {
      return try DataKey(id: id, tenant: rows[row, 1], wrapped: wrapped, with: master)
    } catch {
      throw SealedTrouble(
        "the data key \(id) does not open with the master key \(masterID): was it changed?")
    }
  }

  /// The current data key of a tenant (nil: the operator's); made where there is none.
  func currentKey(of tenant: String?) async throws -> DataKey {
    let rows = try await connection.query(
      """
      select id, tenant_id, wrapped, master_key_id from ai.data_keys
       where tenant_id is not distinct from $1::uuid and is_current
      """, [tenant])
    if rows.count == 1 { return try dataKey(rows, 0) }
    let (key, wrapped, master) = try newKey(of: tenant)
    return try dataKey(
      try await connection.query(
        "select data_key_id, tenant_id, wrapped, master_key_id from ai.add_data_key($1, $2, $3, $4)",
        [key.id, tenant, hexadecimal(wrapped), master]), 0)
  }

  /// A new data key, sealed with the current master key.
  func newKey(of tenant: String?) throws -> (key: DataKey, wrapped: [UInt8], master: String) {
    guard let master = masters.current() else { throw SealedTrouble("there is no master key") }
    let key = DataKey(newID: UUID().uuidString.lowercased(), tenant: tenant)
    return (key, try key.wrapped(with: master), master.id)
  }
}
