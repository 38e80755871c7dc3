import Postgres

/// What a check found.
struct Finding: Encodable, Sendable {
  enum State: String, Encodable, Sendable {
    case ok
    /// Something works less well than it could, or could not be looked at.
    case warn
    /// Something does not work.
    case fail
  }

  let check: String
  let state: State
  let message: String
  /// How to mend it.
  let hint: String?

  init(_ check: String, _ state: State, _ message: String, hint: String? = nil) {
    self.check = check
    self.state = state
    self.message = message
    self.hint = hint
  }

  /// A check that the database would not let run.
  init(_ check: String, _ error: PostgresError) {
    if error.sqlState == "42501" {
      self.init(
        check, .warn, "this role may not look: \(error.message)",
        hint: "Connect as the role that owns the schema ai.")
    } else {
      self.init(check, .fail, error.description, hint: error.hint ?? martlet.hint(for: error))
    }
  }
}
