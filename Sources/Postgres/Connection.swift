internal import CLibpq
import Synchronization

/// One session of a PostgreSQL server.
///
/// Statements run one after the other, in the order of their calls, on a thread of the connection's
/// own, or of whoever opened it. Nothing inside suspends, so a second call never comes between the parts of a first one.
///
/// When the server goes away, the statement under way and all later ones throw `.connection`; open
/// another connection. Cancelling a Swift task does not cancel its statement: `cancel()` does.
package actor Connection {
  private nonisolated let executor: ThreadExecutor
  private nonisolated let ownsExecutor: Bool
  private nonisolated let canceller = Mutex<CancelHandle?>(nil)
  private var handle: ConnectionHandle?
  private var statements = StatementCache()
  /// The socket that is watched between statements.
  private var watched: Int32?

  package nonisolated var unownedExecutor: UnownedSerialExecutor {
    executor.asUnownedSerialExecutor()
  }

  /// Connects with libpq's rules.
  ///
  /// - Parameters:
  ///   - conninfo: a `postgresql://` URI, `key=value` pairs, a database name, or `""` for the
  ///     environment's (`PGHOST`, …). Without `connect_timeout` connecting may take five seconds a host.
  ///   - applicationName: shown in `pg_stat_activity` where neither `conninfo` nor `PGAPPNAME` says
  ///     otherwise.
  ///   - executor: whose thread runs the statements; nil: one of its own.
  /// - Throws: `.connection`; the message never holds the password.
  package static func open(
    _ conninfo: String, applicationName: String, on executor: ThreadExecutor? = nil
  ) async throws(PostgresError) -> Connection {
    let thread: ThreadExecutor
    if let executor { thread = executor } else { thread = try ThreadExecutor() }
    let connection = Connection(executor: thread, ownsExecutor: executor == nil)
    try await connection.connect(conninfo, applicationName)
    return connection
  }

  private init(executor: ThreadExecutor, ownsExecutor: Bool) {
    self.executor = executor
    self.ownsExecutor = ownsExecutor
  }

  deinit {
    if let watched { executor.unwatch(watched) }
    if ownsExecutor { executor.stop() }
  }

  private func connect(_ conninfo: String, _ applicationName: String) throws(PostgresError) {
    let opened = try ConnectionHandle(opening: conninfo, applicationName: applicationName)
    let cancel = CancelHandle(opened.pointer)
    canceller.withLock { $0 = cancel }
    handle = consume opened
  }

  /// The server's process, as in `pg_stat_activity.pid`; nil after `close()`.
  package var processID: Int32? {
    guard let pointer = try? live() else { return nil }
    return PQbackendPID(pointer)
  }

  /// The server's version as a number, such as 180004; nil after `close()`.
  package var serverVersion: Int32? {
    guard let pointer = try? live() else { return nil }
    return PQserverVersion(pointer)
  }

  /// Whether the session is inside a transaction block, a failed one included.
  package var isInTransaction: Bool {
    guard let pointer = try? live() else { return false }
    let status = PQtransactionStatus(pointer)
    return status == PQTRANS_INTRANS || status == PQTRANS_INERROR
  }

  /// Runs one statement of the extended protocol, prepared at its first use.
  ///
  /// - Parameters:
  ///   - sql: one statement with `$1`, `$2`, …. Its text is the key of the prepared statement, so it
  ///     must come from a bounded set: values belong into `parameters`.
  ///   - parameters: in text form, nil for NULL. Their types are inferred by the server.
  /// - Throws: `.server`, `.connection`, `.input` for a NUL character, `.unsupported` for COPY.
  @discardableResult
  package func query(
    _ sql: String, _ parameters: [String?] = []
  ) throws(PostgresError) -> QueryResult {
    let pointer = try live()
    guard let cached = statements[sql] else {
      return try execute(prepare(sql, on: pointer), parameters, on: pointer)
    }
    do {
      return try execute(cached, parameters, on: pointer)
    } catch {
      // Both say that nothing has been run yet, so that it may be run again; inside a transaction,
      // which they have ended, it may not.
      guard PQtransactionStatus(pointer) == PQTRANS_IDLE else { throw error }
      switch error.sqlState {
      case "0A000":  // "cached plan must not change result type": the schema was upgraded
        statements.removeAll()
        _ = try run(on: pointer) { PQsendQuery(pointer, "deallocate all") }
        return try execute(prepare(sql, on: pointer), parameters, on: pointer)
      case "26000":  // DISCARD, or a pooler gave us another session of the server
        statements.removeAll()
        return try executeUnprepared(sql, parameters, on: pointer)
      default: throw error
      }
    }
  }

  /// Runs any number of statements of the simple protocol: one transaction, unless they say otherwise.
  ///
  /// - Throws: as `query`; `position` counts the characters of `sql`.
  package func script(_ sql: String) throws(PostgresError) {
    let pointer = try live()
    try checkNUL(sql)
    _ = try run(on: pointer) { PQsendQuery(pointer, sql) }
  }

  /// Asks the server to cancel the statement under way, which then throws SQLSTATE 57014.
  ///
  /// From any thread, at any time; blocks until the server has taken the request. A request that comes
  /// when nothing runs has no effect, one that comes late may hit the next statement.
  package nonisolated func cancel() {
    _ = canceller.withLock { $0 }?.send()
  }

  /// Calls `lost` once, on the connection's thread, when the server ends the session while nothing runs:
  /// a statement would find out, but there may be none for a long time.
  package func whenLost(_ lost: @escaping @Sendable () -> Void) {
    guard let pointer = handle?.pointer else { return lost() }
    let socket = PQsocket(pointer)
    watched = socket
    executor.watch(socket) { [weak self] in
      guard let self else { return }
      self.assumeIsolated { if $0.hasEnded() { lost() } }
    }
  }

  /// Reads what the server said unasked.
  private func hasEnded() -> Bool {
    guard let pointer = handle?.pointer, watched != nil else { return false }
    let isAlive = PQconsumeInput(pointer) == 1 && PQstatus(pointer) == CONNECTION_OK
    while let notification = PQnotifies(pointer) { PQfreemem(notification) }
    if !isAlive { unwatch() }
    return !isAlive
  }

  private func unwatch() {
    if let watched { executor.unwatch(watched) }
    watched = nil
  }

  /// Ends the session, after the statements called before. What is called later throws `.connection`.
  package func close() {
    unwatch()
    canceller.withLock { $0 = nil }
    handle = nil
    statements.removeAll()
  }
}

extension Connection {
  private func live() throws(PostgresError) -> OpaquePointer {
    guard let pointer = handle?.pointer else {
      throw PostgresError(.connection, "the connection is closed")
    }
    return pointer
  }

  private func prepare(
    _ sql: String, on pointer: OpaquePointer
  ) throws(PostgresError) -> String {
    try checkNUL(sql)
    if statements.isFull {
      statements.removeAll()
      _ = try run(on: pointer) { PQsendQuery(pointer, "deallocate all") }
    }
    let name = StatementCache.name(of: sql)
    do {
      _ = try run(on: pointer) { PQsendPrepare(pointer, name, sql, 0, nil) }
    } catch {
      // It exists: another client of the pooler made it, or this one did before a statement was lost.
      guard error.sqlState == "42P05", PQtransactionStatus(pointer) == PQTRANS_IDLE else {
        throw error
      }
    }
    statements.remember(sql)
    return name
  }

  private func execute(
    _ name: String, _ parameters: [String?], on pointer: OpaquePointer
  ) throws(PostgresError) -> QueryResult {
    try run(parameters, on: pointer) { values in
      PQsendQueryPrepared(pointer, name, Int32(parameters.count), values, nil, nil, 0)
    }
  }

  private func executeUnprepared(
    _ sql: String, _ parameters: [String?], on pointer: OpaquePointer
  ) throws(PostgresError) -> QueryResult {
    try run(parameters, on: pointer) { values in
      PQsendQueryParams(pointer, sql, Int32(parameters.count), nil, values, nil, nil, 0)
    }
  }

  private func run(
    _ parameters: [String?], on pointer: OpaquePointer,
    _ send: (UnsafePointer<UnsafePointer<CChar>?>?) -> Int32
  ) throws(PostgresError) -> QueryResult {
    switch withCStrings(parameters, send) {
    case .sent(let status): return try run(on: pointer) { status }
    case .containsNUL(let number):
      throw PostgresError(.input, "parameter $\(number) contains a NUL character")
    }
  }

  /// Sends, and waits for the end of the answer.
  private func run(
    on pointer: OpaquePointer, _ send: () -> Int32
  ) throws(PostgresError) -> QueryResult {
    guard send() == 1 else {
      throw PostgresError(
        PQstatus(pointer) == CONNECTION_OK ? .input : .connection, connection: pointer)
    }
    var answer = Answer()
    while let result = PQgetResult(pointer) {
      answer.take(ResultHandle(pointer: result), from: pointer)
    }
    // Nobody listens here; libpq would keep what a stray LISTEN brings.
    while let notification = PQnotifies(pointer) { PQfreemem(notification) }
    return try answer.finish(connectionIsGood: PQstatus(pointer) == CONNECTION_OK)
  }

  private func checkNUL(_ sql: String) throws(PostgresError) {
    guard !sql.utf8.contains(0) else {
      throw PostgresError(.input, "the statement contains a NUL character")
    }
  }
}
