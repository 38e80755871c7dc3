internal import CLibpq

extension PostgresError {
  /// Reads the fields of a failed result. `kind` is a guess until the connection's state is known.
  init(result: OpaquePointer) {
    let sqlState = PostgresError.field(result, martlet_diag_sqlstate)
    let primary = PostgresError.field(result, martlet_diag_message)
    // A result that libpq made itself (the socket broke) has no fields, only a text.
    let message =
      primary ?? oneLine(PQresultErrorMessage(result).map { String(cString: $0) } ?? "")
    self.init(
      sqlState == nil ? .connection : .server,
      message.isEmpty ? "the server gave no reason" : message,
      sqlState: sqlState)
    detail = PostgresError.field(result, martlet_diag_detail)
    hint = PostgresError.field(result, martlet_diag_hint)
    context = PostgresError.field(result, martlet_diag_context)
    position = PostgresError.field(result, martlet_diag_position).flatMap { Int($0) }
    schema = PostgresError.field(result, martlet_diag_schema)
    table = PostgresError.field(result, martlet_diag_table)
    column = PostgresError.field(result, martlet_diag_column)
    constraint = PostgresError.field(result, martlet_diag_constraint)
  }

  /// What libpq says of a connection that failed, or of a call that it refused.
  init(_ kind: Kind, connection: OpaquePointer) {
    let text = oneLine(PQerrorMessage(connection).map { String(cString: $0) } ?? "")
    self.init(kind, text.isEmpty ? "the connection failed" : text)
  }

  private static func field(_ result: OpaquePointer, _ code: Int32) -> String? {
    PQresultErrorField(result, code).map { String(cString: $0) }
  }
}

/// libpq's texts have several lines and end with a line feed.
private func oneLine(_ text: String) -> String {
  text.split(separator: "\n").map { line in
    var line = line
    while let last = line.last, last.isWhitespace { line.removeLast() }
    return String(line)
  }.joined(separator: "; ")
}
