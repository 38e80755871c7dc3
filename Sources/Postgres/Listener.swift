internal import CLibpq

/// A connection that only listens.
///
/// `notifications` brings every notification of the channels, in the order of the server, without a
/// bound: read it steadily. It ends with a `PostgresError` of kind `.connection` when the
/// connection is lost, and without one after `close()`. What was notified between a loss and the next
/// `open` is gone: whoever needs it must look at the tables after listening again.
package actor Listener {
  private nonisolated let executor = QueueExecutor(label: "martlet.listener")
  private let continuation: AsyncThrowingStream<Notification, any Error>.Continuation
  private var connection: SharedConnection?
  private var watch: SocketWatch?

  /// For one reader.
  package nonisolated let notifications: AsyncThrowingStream<Notification, any Error>

  package nonisolated var unownedExecutor: UnownedSerialExecutor {
    executor.asUnownedSerialExecutor()
  }

  /// Connects as `Connection.open` does, and listens.
  ///
  /// - Parameter channels: names as they are, of any characters; case matters.
  /// - Throws: `.connection`; `.input` for a channel that is empty or has more than 63 bytes.
  package static func open(
    _ conninfo: String, channels: [String] = [], applicationName: String
  ) async throws(PostgresError) -> Listener {
    let listener = Listener()
    try await listener.connect(conninfo, applicationName)
    try await listener.listen(channels)
    return listener
  }

  private init() {
    (notifications, continuation) = AsyncThrowingStream.makeStream()
  }

  deinit { continuation.finish() }

  private func connect(_ conninfo: String, _ applicationName: String) throws(PostgresError) {
    let shared = SharedConnection(
      try ConnectionHandle(opening: conninfo, applicationName: applicationName))
    watch = SocketWatch(shared, on: executor.queue) { [weak self] in
      guard let self else { return }
      self.assumeIsolated { $0.readable() }
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
    // The source may fire once more after it was cancelled.
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
      continuation.yield(
        Notification(
          channel: String(cString: notification.pointee.relname),
          payload: String(cString: notification.pointee.extra),
          processID: notification.pointee.be_pid))
    }
  }

  private func end(_ failure: PostgresError?) {
    guard connection != nil else { return }
    watch = nil
    connection = nil
    if let failure { continuation.finish(throwing: failure) } else { continuation.finish() }
  }
}
