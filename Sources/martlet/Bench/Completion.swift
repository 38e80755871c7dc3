import Postgres

/// Finds out when all generations that the caller sees and that were inserted from now on have ended, by looking
/// every few milliseconds, and costs the server little: it goes on from the oldest that was unfinished.
final class Completion {
  private let connection: Connection
  private let base: String

  /// Remembers the newest generation that exists.
  init(_ connection: Connection) async throws {
    self.connection = connection
    let newest = try await connection.query(
      "select id from ai.generations order by id desc limit 1")
    base = newest.isEmpty ? "00000000-0000-0000-0000-000000000000" : newest[0, 0] ?? ""
  }

  /// - Returns: false where some were unfinished at `limit` seconds of `watch`.
  func wait(until limit: Double, by watch: Stopwatch) async throws -> Bool {
    var mark = base
    while watch.seconds < limit {
      // The mark is finished, or unfinished and to be looked at again.
      let oldest = try await connection.query(
        """
        select id from ai.generations where id >= $1 and id > $2 and finished_at is null
         order by id limit 1
        """, [mark, base])
      if oldest.isEmpty {
        // Ids do not commit in their order: a lower one may have come meanwhile.
        if mark == base { return true }
        mark = base
      } else {
        mark = oldest[0, 0] ?? base
        try await Task.sleep(for: .milliseconds(10))
      }
    }
    return false
  }

  /// How many there are of each status.
  func statuses() async throws -> [String: Int] {
    let rows = try await connection.query(
      "select status, count(*) from ai.generations where id > $1 group by status", [base])
    return (0..<rows.count).reduce(into: [:]) { $0[rows[$1, 0] ?? ""] = rows.int($1, 1) }
  }
}
