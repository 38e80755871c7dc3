/// Why the database did not do what it was asked.
///
/// `description` gives SQLSTATE and message only. The other parts may hold rows (DETAIL of a unique
/// violation) and are for callers who know where they will show them. No part ever holds a
/// connection string or a password.
package struct PostgresError: Error, Sendable {
  /// The kind of a failure. More kinds may come: a switch needs a default.
  package struct Kind: Sendable, Hashable, CustomStringConvertible {
    private enum Raw: String { case connection, server, input, unsupported }
    private let raw: Raw

    /// There is no connection, or it ended: open another one. What became of a statement that was
    /// under way is unknown.
    package static let connection = Kind(raw: .connection)
    /// The server refused the statement; the connection is good for more.
    package static let server = Kind(raw: .server)
    /// The caller's text cannot be sent: a NUL in it, a channel name that is too long.
    package static let input = Kind(raw: .input)
    /// The statement needs what `Connection` does not speak, such as COPY.
    package static let unsupported = Kind(raw: .unsupported)

    package var description: String { raw.rawValue }
  }

  package var kind: Kind
  /// Five characters, as in appendix A of PostgreSQL's manual; nil where no server spoke.
  package var sqlState: String?
  /// The primary message, in one line.
  package var message: String
  package var detail: String?
  package var hint: String?
  /// Where in the server's code path: function names and lines of PL/pgSQL.
  package var context: String?
  /// The place in the statement, in characters from 1.
  package var position: Int?
  package var schema: String?
  package var table: String?
  package var column: String?
  package var constraint: String?

  package init(_ kind: Kind, _ message: String, sqlState: String? = nil) {
    self.kind = kind
    self.message = message
    self.sqlState = sqlState
  }
}

extension PostgresError: CustomStringConvertible {
  package var description: String {
    if let sqlState { return "\(sqlState): \(message)" }
    return message
  }
}
