internal import CLibpq

/// Gathers the results that follow one request: the last good one, or the first failure.
struct Answer: ~Copyable {
  private var last: ResultHandle?
  private var failure: PostgresError?

  init() {}

  mutating func take(_ result: consuming ResultHandle, from connection: OpaquePointer) {
    switch PQresultStatus(result.pointer) {
    case PGRES_TUPLES_OK, PGRES_COMMAND_OK, PGRES_EMPTY_QUERY:
      last = consume result
    case PGRES_COPY_IN:
      // Until it is told otherwise the server waits for rows, and libpq repeats this result.
      if PQputCopyEnd(connection, "COPY is not supported here") != 1 { abandon(connection) }
      refuseCopy()
    case PGRES_COPY_OUT:
      var row: UnsafeMutablePointer<CChar>?
      while PQgetCopyData(connection, &row, 0) > 0 { PQfreemem(row) }
      refuseCopy()
    case PGRES_COPY_BOTH:
      abandon(connection)
      refuseCopy()
    default:
      if failure == nil { failure = PostgresError(result: result.pointer) }
    }
  }

  consuming func finish(connectionIsGood: Bool) throws(PostgresError) -> QueryResult {
    if var failure {
      // "terminating connection due to administrator command" has an SQLSTATE and is nevertheless
      // the end of the connection.
      if !connectionIsGood {
        failure.kind = .connection
      } else if failure.kind == .connection {
        failure.kind = .server
      }
      throw failure
    }
    guard let last else {
      throw PostgresError(
        connectionIsGood ? .server : .connection, "the server gave no answer")
    }
    return QueryResult(last)
  }

  private mutating func refuseCopy() {
    if failure == nil { failure = PostgresError(.unsupported, "COPY is not supported here") }
  }

  /// The protocol is out of step and cannot be mended: break the socket, so that libpq notices.
  private func abandon(_ connection: OpaquePointer) {
    shutdownSocket(PQsocket(connection))
  }
}
