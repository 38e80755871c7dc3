internal import CLibpq

/// A connection that only listens.
///
/// `notifications` brings every notification of the channels, in the order of the server, without a
/// bound: read it steadily. It ends with a `PostgresError` of kind `.connection` when the
/// connection is lost, and without one after `close()`. What was notified between a loss and the next
/// `open` is gone: whoever needs it must look at the tables after listening again.
package actor Listener {
  private nonisolated let executor: ThreadExecutor
  private nonisolated let ownsExecutor: Bool
  private let continuation: AsyncThrowingStream<Notification, any Error>.Continuation
  private let handler: (@Sendable (Notification) -> Void)?
  private var connection: SharedConnection?
  private var watched: Int32?

  /// For one reader.
  package nonisolated let notifications: AsyncThrowingStream<Notification, any Error>

  package nonisolated var unownedExecutor: UnownedSerialExecutor {
    executor.asUnownedSerialExecutor()
  }

  /// Connects as `Connection.open` does, and listens.
  ///
  /// - Parameters:
  ///   - channels: names as they are, of any characters; case matters.
  ///   - executor: whose thread reads the connection; nil: one of its own. What blocks that thread delays
  ///     the notifications.
  ///   - handler: is called with each notification, on that thread, in the place of the stream, which then has none and
  ///     only ends: a reader of the stream may come to its turn once for each of many that arrived together.
  /// - Throws: `.connection`; `.input` for a channel that is empty or has more than 63 bytes.
  package static func open(
    _ conninfo: String, channels: [String] = [], applicationName: String,
    on executor: ThreadExecutor? = nil, handler: (@Sendable (Notification) -> Void)? = nil
  ) async throws(PostgresError) -> Listener {
    let thread: ThreadExecutor
    if let executor { thread = executor } else { thread = try ThreadExecutor() }
    let listener = Listener(executor: thread, ownsExecutor: executor == nil, handler: handler)
    try await listener.connect(conninfo, applicationName)
    try await listener.listen(channels)
    return listener
  }

  private init(
    executor: ThreadExecutor, ownsExecutor: Bool, handler: (@Sendable (Notification) -> Void)?
  ) {
    self.executor = executor
    self.ownsExecutor = ownsExecutor
    self.handler = handler
    (notifications, continuation) = AsyncThrowingStream.makeStream()
  }

  deinit {
    continuation.finish()
    if let watched { executor.unwatch(watched) }
    if ownsExecutor { executor.stop() }
  }

  private func connect(_ conninfo: String, _ applicationName: String) throws(PostgresError) {
    let shared = SharedConnection(
      try ConnectionHandle(opening: conninfo, applicationName: applicationName))
    // The watch keeps the connection until the thread has let the socket go: libpq must not close a
    // descriptor that is still watched, since its number may be another file's by then.
    watched = shared.socket
    executor.watch(shared.socket) { [weak self] in
      withExtendedLifetime(shared) {}
      self?.assumeIsolated { $0.readable() }
    }
    connection = shared
  }

  /// Listens to more channels. When it returns, what is notified from now on will arrive.
  package func listen(_ channels: [String]) throws(PostgresError) {
    try execute("listen", channels)
  }

  /// Listens to fewer channels. Notifications that have arrived already stay in the stream.
  package func unlisten(_ channels: [String]) throws(PostgresError) {
    try execute("unlisten", channels)
  }

  /// The server's process, as in `pg_stat_activity.pid`; nil after the end.
  package var processID: Int32? {
    connection.map { PQbackendPID($0.pointer) }
  }

  /// Ends the session and the stream.
  package func close() { end(nil) }

  private func execute(_ verb: String, _ channels: [String]) throws(PostgresError) {
    guard let connection else {
      throw PostgresError(.connection, "the connection is closed")
    }
    var statements = ""
    for channel in channels { statements += "\(verb) \(try quotedIdentifier(channel));" }
    guard !statements.isEmpty else { return }
    let pointer = connection.pointer
    guard let result = PQexec(pointer, statements) else {
      let failure = PostgresError(.connection, connection: pointer)
      end(failure)
      throw failure
    }
    var answer = Answer()
    answer.take(ResultHandle(pointer: result), from: pointer)
    // The answer may have brought notifications along, for which the socket is not readable again.
    deliver(from: pointer)
    do {
      _ = try answer.finish(connectionIsGood: PQstatus(pointer) == CONNECTION_OK)
    } catch {
      if error.kind == .connection { end(error) }
      throw error
    }
  }

  private func readable() {
    guard let pointer = connection?.pointer else { return }
    let alive = PQconsumeInput(pointer) == 1
    deliver(from: pointer)
    if !alive || PQstatus(pointer) != CONNECTION_OK {
      end(PostgresError(.connection, connection: pointer))
    }
  }

  private func deliver(from pointer: OpaquePointer) {
    while let notification = PQnotifies(pointer) {
      defer { PQfreemem(notification) }
      let arrived = Notification(
        channel: String(cString: notification.pointee.relname),
        payload: String(cString: notification.pointee.extra),
        processID: notification.pointee.be_pid)
      if let handler { handler(arrived) } else { continuation.yield(arrived) }
    }
  }

  private func end(_ failure: PostgresError?) {
    guard connection != nil else { return }
    if let watched { executor.unwatch(watched) }
    watched = nil
    connection = nil
    if let failure { continuation.finish(throwing: failure) } else { continuation.finish() }
  }
}
