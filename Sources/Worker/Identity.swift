import Postgres

/// Who the worker is to the database: what `ai.worker_register()` gave.
struct Identity: Sendable, Equatable {
  /// UUID, as PostgreSQL printed it.
  var worker: String
  /// Notified when one of this worker's generations is cancelled.
  var channel: String
  var heartbeat: Duration
  var maintenance: Duration
  var publication: Duration

  /// Registers on `connection`.
  static func register(
    on connection: Connection, name: String, version: String
  ) async throws(PostgresError) -> Identity {
    let result = try await connection.query(
      """
      select worker_id, channel, heartbeat_ms, maintain_ms, publish_ms \
      from ai.worker_register($1, $2, $3)
      """,
      [name, version, String(Worker.protocolNumber)])
    guard result.count == 1, let worker = result[0, 0],
      let channel = result[0, 1]
    else {
      throw PostgresError(.server, "ai.worker_register() gave no worker")
    }
    func milliseconds(_ column: Int, atLeast least: Int) -> Duration {
      .milliseconds(max(least, result.int(0, column) ?? 1_000))
    }
    return Identity(
      worker: worker, channel: channel, heartbeat: milliseconds(2, atLeast: 100),
      maintenance: milliseconds(3, atLeast: 100), publication: milliseconds(4, atLeast: 0))
  }
}
