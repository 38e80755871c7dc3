import Migrate
import Postgres

/// The checks of `martlet doctor`, in an order in which each can lean on the ones before it.
struct Checkup {
  let connection: Connection
  let environment: [String: String]

  static func run(conninfo: String, environment: [String: String]) async -> [Finding] {
    let connection: Connection
    do {
      connection = try await Connection.open(conninfo, applicationName: "martlet doctor")
    } catch {
      return [Finding("connection", error)]
    }
    let checkup = Checkup(connection: connection, environment: environment)
    var findings = await checkup.server()
    findings.append(await checkup.writable())
    findings.append(await checkup.notifications())
    findings.append(await checkup.connections())
    findings.append(await checkup.vector())
    let schema = await checkup.schema()
    findings.append(schema.finding)
    if schema.isThere {
      findings.append(await checkup.roles())
      findings += await checkup.rights()
      let identity = await checkup.identity()
      findings.append(identity.finding)
      let life = await WorkerLife.read(connection)
      findings.append(checkup.workers(life))
      findings += await checkup.partitions()
      findings += await checkup.secrets()
      findings += await checkup.masterKeys()
      findings.append(await checkup.prices())
      findings.append(await checkup.roundTrip(isSomebody: identity.isSomebody, life))
    }
    await connection.close()
    return findings
  }

  /// Runs a check; what the database says against it is its finding.
  func check(
    _ name: String, _ body: () async throws(PostgresError) -> Finding
  ) async -> Finding {
    do { return try await body() } catch { return Finding(name, error) }
  }

  private func server() async -> [Finding] {
    let name = await check("connection") { () async throws(PostgresError) in
      let row = try await connection.query(
        "select session_user, current_database(), current_setting('server_version')")
      return Finding(
        "connection", .ok,
        "database \(row[0, 1] ?? ""), role \(row[0, 0] ?? ""), PostgreSQL \(row[0, 2] ?? "")")
    }
    let version = Int(await connection.serverVersion ?? 0) / 10_000
    let server =
      switch version {
      case ..<15:
        Finding(
          "server", .fail, "PostgreSQL \(version) is too old", hint: "Martlet needs 15 or newer.")
      case 15...18: Finding("server", .ok, "PostgreSQL \(version)")
      default:
        Finding(
          "server", .warn,
          "PostgreSQL \(version) is newer than what Martlet is tested with (15 to 18)")
      }
    return [name, server]
  }

  private func vector() async -> Finding {
    await check("pgvector") { () async throws(PostgresError) in
      let row = try await connection.query(
        """
        select e.extversion,
               string_to_array(substring(e.extversion from '^[0-9]+(?:[.][0-9]+)*'), '.')::int[] >= array[0, 8, 3],
               exists (select from pg_catalog.pg_available_extensions a where a.name = 'vector')
          from (values (1)) one left join pg_catalog.pg_extension e on e.extname = 'vector'
        """)
      guard let version = row[0, 0] else {
        return Finding(
          "pgvector", .fail, "the extension vector is not in this database",
          hint: row.bool(0, 2) == true
            ? "create extension vector; martlet migrate does it, too."
            : "Install pgvector 0.8.3 or newer on the server.")
      }
      guard row.bool(0, 1) == true else {
        return Finding(
          "pgvector", .fail, "pgvector \(version) is older than 0.8.3",
          hint: "Install a newer one on the server, then: alter extension vector update;")
      }
      return Finding("pgvector", .ok, "pgvector \(version)")
    }
  }

  private func schema() async -> (finding: Finding, isThere: Bool) {
    do throws(MigrateError) {
      let migrator = Migrator(try Schema.embedded())
      let plan = try await migrator.plan(connection)
      if plan.isCurrent {
        let version = migrator.schema.migrations.last?.version ?? "empty"
        return (Finding("schema", .ok, "current: \(version)"), true)
      }
      if plan.applied.isEmpty {
        return (Finding("schema", .fail, "the schema is not there", hint: "martlet migrate"), false)
      }
      let files = plan.appliesFiles ? "sql/" : nil
      let pending = (plan.pending.map(\.file) + [files].compactMap { $0 }).joined(separator: ", ")
      return (Finding("schema", .fail, "pending: \(pending)", hint: "martlet migrate"), true)
    } catch {
      switch error {
      case .otherDoor: return (Finding("schema", .ok, error.description, hint: error.hint), true)
      case .notOwner: return (Finding("schema", .warn, error.description, hint: error.hint), true)
      case .foreignSchema:
        return (Finding("schema", .fail, error.description, hint: error.hint), false)
      default: return (Finding("schema", .fail, error.description, hint: error.hint), true)
      }
    }
  }
}
