import Logging
import Postgres

/// One loop's own connection: opened when it is needed, and again when it was lost.
final class Link {
  private let conninfo: String
  private let applicationName: String
  private let logger: Logger
  private let desk: Desk
  /// Whose thread the statements run on; nil: each connection's own.
  private let executor: ThreadExecutor?
  private var connection: Connection?
  private var backoff = Backoff()
  /// The statement that the server refused. That another one is taken does not mean that all is well again.
  private var refused: String?

  init(_ setup: Setup, desk: Desk, purpose: String, on executor: ThreadExecutor? = nil) {
    self.executor = executor
    conninfo = setup.conninfo
    applicationName = "martlet \(purpose)"
    var logger = setup.logger
    logger[metadataKey: "connection"] = "\(purpose)"
    self.logger = logger
    self.desk = desk
  }

  var isOpen: Bool { connection != nil }

  /// The connection, opened if there is none.
  func open() async throws(PostgresError) -> Connection {
    if let connection { return connection }
    let opened = try await Connection.ofWorker(
      conninfo, applicationName: applicationName, on: executor)
    connection = opened
    return opened
  }

  /// Runs one statement, once. A lost connection is forgotten; so is one to a database that is read-only: a new one may
  /// lead to another server, and an old one stays as it is when only the default was changed.
  ///
  /// - Parameter settings: SQL that makes settings of the transaction that the statement is.
  @discardableResult
  func query(
    _ sql: String, _ parameters: [String?], under settings: String? = nil
  ) async throws(PostgresError) -> QueryResult {
    let connection = try await open()
    do {
      let result =
        if let settings {
          try await connection.query(sql, parameters, under: settings)
        } else {
          try await connection.query(sql, parameters)
        }
      if refused == nil || refused == sql {
        refused = nil
        backoff.reset()
      }
      return result
    } catch {
      if error.kind == .connection || error.sqlState == "25006" { forget() }
      if error.kind == .server { refused = refused ?? sql }
      throw error
    }
  }

  /// Logs a failure and waits a little before the next attempt.
  func rest(after error: PostgresError, _ what: String) async {
    let delay = backoff.next()
    if error.kind == .connection { desk.lostConnection() }
    logger.warning(
      "\(what) failed, trying again",
      metadata: [
        "error": "\(error)", "retry_ms": "\(Int(delay / .milliseconds(1)))",
      ])
    try? await Task.sleep(for: delay)
  }

  func forget() { connection = nil }

  func close() async {
    await connection?.close()
    connection = nil
  }
}

extension Connection {
  /// A connection for a worker's own statements. Whatever the role or the database has for default, those that several
  /// workers run at once see what the others have committed: else they would refuse each other again and again.
  static func ofWorker(
    _ conninfo: String, applicationName: String, on executor: ThreadExecutor? = nil
  ) async throws(PostgresError) -> Connection {
    let opened = try await open(conninfo, applicationName: applicationName, on: executor)
    try await opened.script("set default_transaction_isolation = 'read committed'")
    return opened
  }

  /// Runs one statement in a transaction with settings of its own.
  fileprivate func query(
    _ sql: String, _ parameters: [String?], under settings: String
  ) async throws(PostgresError) -> QueryResult {
    do {
      try script("begin; \(settings)")
      let result = try query(sql, parameters)
      try script("commit")
      return result
    } catch {
      // What broke off by itself needs none, and a lost connection takes none.
      try? script("rollback")
      throw error
    }
  }
}

/// What every loop needs to know.
struct Setup: Sendable {
  var conninfo: String
  var name: String
  var version: String
  var masters: MasterKeyring
  var logger: Logger
}
