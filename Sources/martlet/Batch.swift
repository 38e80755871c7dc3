import Postgres

/// A batch as ai.batch_progress() sees it at a moment, and how it is shown.
struct Batch: Sendable {
  var id: String
  var name: String
  var state: String
  var created: String
  var total: Int
  var queued: Int
  var running: Int
  var succeeded: Int
  var failed: Int
  var cancelled: Int
  var rejected: Int
  /// From 0 to 1; nil while the batch is empty.
  var done: Double?
  /// Money, as PostgreSQL prints it: no digit is lost.
  var cost: String
  var expectedCost: String?
  /// Ends a second.
  var rate: Double
  /// Seconds; nil: not known.
  var eta: Int?
  /// All of it as one line of JSON.
  var json: String

  private static let columns = """
    b.id, b.name, p.state, to_char(b.created_at, 'YYYY-MM-DD HH24:MI'), p.total, p.queued, p.running, \
    p.succeeded, p.failed, p.cancelled, p.rejected, p.done, trim_scale(p.cost), \
    trim_scale(round(p.expected_cost, 6)), p.rate, extract(epoch from p.eta)::bigint, \
    jsonb_build_object(
      'id', b.id, 'name', b.name, 'user_id', b.user_id, 'metadata', b.metadata, 'created_at', b.created_at,
      'state', p.state, 'total', p.total, 'queued', p.queued, 'running', p.running, 'succeeded', p.succeeded,
      'failed', p.failed, 'cancelled', p.cancelled, 'rejected', p.rejected, 'done', p.done, 'cost', p.cost,
      'expected_cost', p.expected_cost, 'rate', round(p.rate::numeric, 3), 'eta_seconds',
      extract(epoch from p.eta)::bigint)
    """

  /// - Throws: `PostgresError` with SQLSTATE PT404 where there is none that the session may see.
  static func read(_ id: String, on connection: Connection) async throws -> Batch {
    // Outer, so that the function is called, and raises, where there is no such row.
    let rows = try await connection.query(
      "select \(columns) from ai.batch_progress($1::uuid) p left join ai.batches b on b.id = $1::uuid",
      [id])
    guard rows.count == 1 else {
      throw PostgresError(.server, "ai.batch_progress() gave no batch")
    }
    return Batch(rows, 0)
  }

  /// The latest first.
  static func latest(_ limit: Int, on connection: Connection) async throws -> [Batch] {
    let rows = try await connection.query(
      """
      select \(columns)
        from (select * from ai.batches order by created_at desc, id desc limit $1::integer) b
       cross join lateral ai.batch_progress(b.id) p
       order by b.created_at desc, b.id desc
      """, [String(limit)])
    return (0..<rows.count).map { Batch(rows, $0) }
  }

  private init(_ rows: QueryResult, _ row: Int) {
    func count(_ column: Int) -> Int { rows.int(row, column) ?? 0 }
    id = rows[row, 0] ?? ""
    name = rows[row, 1] ?? ""
    state = rows[row, 2] ?? ""
    created = rows[row, 3] ?? ""
    (total, queued, running) = (count(4), count(5), count(6))
    (succeeded, failed, cancelled, rejected) = (count(7), count(8), count(9), count(10))
    done = rows[row, 11].flatMap(Double.init)
    cost = rows[row, 12] ?? "0"
    expectedCost = rows[row, 13]
    rate = rows[row, 14].flatMap(Double.init) ?? 0
    eta = rows.int(row, 15)
    json = rows[row, 16] ?? "{}"
  }

  /// Nothing of it runs or will.
  var hasEnded: Bool { (state == "done" || state == "cancelled") && queued + running == 0 }

  var hasAllSucceeded: Bool { succeeded == total }
}

// MARK: - For people

extension Batch {
  /// `[########------------]  40.0 %`
  private func bar(_ width: Int) -> String {
    let done = min(max(done ?? 0, 0), 1)
    // Full only at the end.
    let filled = Int(done * Double(width))
    let percent = fixed(done >= 1 ? 100 : min(done * 100, 99.9), 1)
    return "[" + String(repeating: "#", count: filled)
      + String(repeating: "-", count: width - filled) + "] \(padded(percent, -5)) %"
  }

  /// One line that fits into 79 columns, the most important first.
  var line: String {
    var line = bar(20) + " \(total - queued - running)/\(total)"
    var parts: [String] = []
    if state != "running" { parts.append(state) }
    if rate > 0 { parts.append("\(fixed(rate, 1))/s") }
    if let eta, eta > 0 { parts.append("ETA \(Self.duration(eta))") }
    parts.append("cost \(cost)" + (expectedCost.map { " of about \($0)" } ?? ""))
    if failed > 0 { parts.append("\(failed) failed") }
    for part in parts where line.count + part.count + 2 < 80 { line += "  " + part }
    return line
  }

  var report: String {
    var lines = [
      ("name", name), ("id", id), ("state", state), ("created", created), ("progress", bar(40)),
      ("total", "\(total)"),
    ]
    for (what, count) in [
      ("queued", queued), ("running", running), ("succeeded", succeeded), ("failed", failed),
      ("cancelled", cancelled), ("rejected", rejected),
    ] where count > 0 { lines.append((what, "\(count)")) }
    let isOver = queued + running == 0
    lines.append(
      ("cost", cost + (isOver ? "" : expectedCost.map { " of about \($0)" } ?? ", in all unknown")))
    if !isOver && rate > 0 { lines.append(("rate", "\(fixed(rate, 1)) a second")) }
    if let eta, eta > 0 { lines.append(("eta", Self.duration(eta))) }
    return lines.map { padded($0.0, 10) + oneLine($0.1) + "\n" }.joined()
  }

  static func table(_ batches: [Batch]) -> String {
    guard !batches.isEmpty else { return "no batches\n" }
    let head = ["id", "state", "done", "total", "failed", "cost", "created", "name"]
    let rows = batches.map { batch in
      [
        batch.id, batch.state,
        batch.done.map { fixed(min($0 * 100, $0 < 1 ? 99.9 : 100), 1) + " %" } ?? "",
        "\(batch.total)", "\(batch.failed)", batch.cost, batch.created, oneLine(batch.name),
      ]
    }
    let widths = head.indices.map { column in
      ([head] + rows).map { $0[column].count }.max() ?? 0
    }
    return ([head] + rows).map { row in
      let cells = row.enumerated().map { column, cell in
        // Numbers to the right; nothing behind the last column.
        column == head.count - 1
          ? cell : padded(cell, (2...5).contains(column) ? -widths[column] : widths[column])
      }
      return cells.joined(separator: "  ") + "\n"
    }.joined()
  }

  /// Two units at most: `2 d 3 h`, `1 h 5 min`, `1 min 20 s`, `12 s`.
  static func duration(_ seconds: Int) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")]
    guard let first = units.firstIndex(where: { seconds >= $0.0 }) else { return "0 s" }
    let (size, unit) = units[first]
    let whole = "\(seconds / size) \(unit)"
    guard first + 1 < units.count else { return whole }
    let rest = seconds % size / units[first + 1].0
    return rest == 0 ? whole : whole + " \(rest) \(units[first + 1].1)"
  }
}

/// With so many decimals; not rounded up to more.
private func fixed(_ value: Double, _ decimals: Int) -> String {
  var scale = 1
  for _ in 0..<decimals { scale *= 10 }
  let parts = Int(min(value, 1e12) * Double(scale))
  let fraction = String(parts % scale)
  return "\(parts / scale)." + String(repeating: "0", count: decimals - fraction.count) + fraction
}

/// To the left in so many columns; where negative, to the right.
private func padded(_ text: String, _ width: Int) -> String {
  let spaces = String(repeating: " ", count: max(0, abs(width) - text.count))
  return width < 0 ? spaces + text : text + spaces
}

private func oneLine(_ text: String) -> String {
  String(text.map { $0.isNewline || $0 == "\t" ? " " : $0 })
}
