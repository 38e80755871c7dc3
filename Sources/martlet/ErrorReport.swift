import Postgres

/// Tells people on standard error what the database said, and what to do where that is known.
func report(_ error: PostgresError) {
  writeError("martlet: \(error)")
  if let detail = error.detail { writeError("detail: \(detail)") }
  if let hint = error.hint ?? hint(for: error) { writeError("hint: \(hint)") }
}

/// What mends an error for which the server has no hint.
func hint(for error: PostgresError) -> String? {
  switch error.sqlState {
  case nil where error.kind == .connection:
    "Set DATABASE_URL or --database-url; `make up` starts the embedded database, `make url` prints its URL."
  case "3F000", "42P01", "42883":
    "The schema is missing or older than this program: martlet migrate"
  case "42501":
    "This role lacks a right: grant ai_user (or ai_monitor, ai_admin) to it, or connect as another."
  case "28P01", "28000": "The server does not accept this role or password."
  case "3D000": "The database does not exist: createdb, then martlet migrate"
  default: nil
  }
}
