import Postgres

/// What ai.workers tells: who is alive, and since when nobody was heard of.
struct WorkerLife: Sendable {
  /// Workers whose last heartbeat is not older than a lease.
  var alive: Int
  /// Age of the youngest heartbeat, in milliseconds; nil where no worker is registered.
  var age: Int?
  /// Versions of those that are alive.
  var versions: [String]

  /// nil where the session may not look at ai.workers, which takes ai_monitor or the owner.
  static func read(_ connection: Connection) async -> WorkerLife? {
    // The lease's time is in ai.settings, which fewer may read; 15 s is its default.
    let row = try? await connection.query(
      """
      select count(*) filter (where ended_at is null and now() - heartbeat_at < interval '15 s'),
             (extract(epoch from now() - max(heartbeat_at) filter (where ended_at is null)) * 1000)::bigint,
             coalesce(string_agg(distinct version, ',' order by version)
                        filter (where ended_at is null and now() - heartbeat_at < interval '15 s'), '')
        from ai.workers
      """)
    guard let row, row.count == 1, let alive = row.int(0, 0) else { return nil }
    let versions = (row[0, 2] ?? "").split(separator: ",").map { String($0) }
    return WorkerLife(alive: alive, age: row.int(0, 1), versions: versions)
  }
}
