import FoundationEssentials
import Postgres
import Synchronization

/// One generation, from its insert to its end, as an app would follow it: LISTEN first, then
/// ai.read_stream(), which also fills what notifications left out.
final class Asking: Sendable {
  struct Request: Sendable {
    var text: String
    var system: String?
    var model: String?
    var profile: String?
    var stream: Bool
    /// Milliseconds; nil: that of ai.settings.
    var deadline: Int?
  }

  /// How a generation ended.
  struct End: Sendable {
    struct Reason: Decodable, Sendable {
      var `class`: String?
      var message: String?
      var code: String?
      var detail: String?
      var hint: String?

      var summary: String {
        [code ?? `class`, message].compactMap { $0 }.joined(separator: ": ")
      }
    }

    var status: String
    var output: String?
    var finishReason: String?
    var error: Reason?
    /// The row as one line of JSON.
    var json: String
  }

  private enum Input: Sendable {
    case news(String)
    case tick
    case lost
  }

  private let conninfo: String
  private let request: Request
  private let id = Mutex<String?>(nil)

  init(conninfo: String, request: Request) {
    self.conninfo = conninfo
    self.request = request
  }

  /// Inserts the generation and prints its text until it has ended, or until the task is cancelled.
  /// A lost connection is opened again for up to about half a minute.
  func run() async throws {
    let connection = try await Connection.open(conninfo, applicationName: "martlet ask")
    try await insert(on: connection)
    var printer = AnswerPrinter(showsText: request.stream)
    try await follow(connection, &printer)
    try printer.finish()
  }

  /// Cancels the generation, if it was inserted.
  func cancel() async throws {
    guard let id = id.withLock({ $0 }) else { return }
    let connection = try await Connection.open(conninfo, applicationName: "martlet ask")
    try await connection.query("select ai.cancel($1)", [id])
    await connection.close()
  }

  func end() async throws -> End? {
    let connection = try await Connection.open(conninfo, applicationName: "martlet ask")
    let row = try await connection.query(
      """
      select g.status, g.output, g.finish_reason, g.error, jsonb_strip_nulls(jsonb_build_object(
          'id', g.id, 'status', g.status, 'output', g.output, 'message', g.output_message,
          'finish_reason', g.finish_reason, 'error', g.error, 'provider', g.provider,
          'model', g.model_used, 'input_tokens', g.input_tokens, 'cached_tokens', g.cached_tokens,
          'output_tokens', g.output_tokens, 'cost', g.cost, 'attempts', g.attempts,
          'ttft_ms', g.ttft_ms, 'latency_ms', g.latency_ms))
        from ai.generations g where g.id = $1
      """, [id.withLock { $0 }])
    await connection.close()
    guard row.count == 1 else { return nil }
    return End(
      status: row[0, 0] ?? "", output: row[0, 1],
      finishReason: row[0, 2],
      error: row.bytes(0, 3).flatMap { try? JSONDecoder().decode(End.Reason.self, from: Data($0)) },
      json: row[0, 4] ?? "{}")
  }

  private func insert(on connection: Connection) async throws {
    try Task.checkCancellation()
    var messages: String?
    if let system = request.system {
      let list = [
        ["role": "system", "content": system], ["role": "user", "content": request.text],
      ]
      messages = try jsonLine(list)
    }
    let row = try await connection.query(
      """
      select ai.generate(prompt => $1, messages => $2::jsonb, model => $3, profile => $4,
                         stream => $5::boolean, deadline_ms => $6::integer)
      """,
      [
        messages == nil ? request.text : nil, messages, request.model, request.profile,
        request.stream ? "true" : "false", request.deadline.map { String($0) },
      ])
    id.withLock { $0 = row[0, 0] }
  }

  private func follow(_ first: Connection, _ printer: inout AnswerPrinter) async throws {
    var cursor = StreamCursor()
    var connection = first
    var backoff = Backoff(base: .milliseconds(100), cap: .seconds(3))
    var losses = 0
    while !cursor.hasEnded && !Task.isCancelled {
      do {
        try await listen(connection, &cursor, &printer)
      } catch let error as PostgresError where error.kind == .connection && losses < 20 {
        losses += 1
        try await Task.sleep(for: backoff.next())
        // A server that restarts refuses for a while; the next round counts as another loss.
        if let new = try? await Connection.open(conninfo, applicationName: "martlet ask") {
          connection = new
        }
      }
    }
    await connection.close()
  }

  /// Follows over one pair of connections, until the end or the loss of either.
  private func listen(
    _ connection: Connection, _ cursor: inout StreamCursor, _ printer: inout AnswerPrinter
  ) async throws {
    let id = id.withLock { $0 }
    let channel = try await connection.query("select ai.subscribe($1)", [id])[0, 0]
    let listener = try await Listener.open(
      conninfo, channels: [channel ?? ""], applicationName: "martlet ask")
    do {
      // What came before LISTEN took hold.
      try await read(connection, &cursor, &printer)
      if cursor.hasEnded { return await listener.close() }
      try await withThrowingTaskGroup(of: Void.self) { group in
        let (inputs, feed) = AsyncStream.makeStream(of: Input.self)
        group.addTask {
          do {
            for try await notification in listener.notifications {
              feed.yield(.news(notification.payload))
            }
          } catch {}
          feed.yield(.lost)
        }
        group.addTask {
          // Notifications are the fast path; looking once a second is what is certain.
          while (try? await Task.sleep(for: .seconds(1))) != nil { feed.yield(.tick) }
        }
        defer { group.cancelAll() }
        var ticks = 0
        for await input in inputs {
          switch input {
          case .news(let payload):
            switch cursor.take(payload) {
            case .event(let event): try printer.show(event)
            case .known: break
            case .gap: try await read(connection, &cursor, &printer)
            }
          case .tick:
            ticks += 1
            try await read(connection, &cursor, &printer)
            if ticks == 2, !cursor.hasEnded { await hintIfNobodyWorks(connection) }
          case .lost:
            throw PostgresError(.connection, "the listening connection was lost")
          }
          if cursor.hasEnded { break }
        }
      }
    } catch {
      await listener.close()
      throw error
    }
    await listener.close()
  }

  /// Reads what is stored behind the cursor.
  private func read(
    _ connection: Connection, _ cursor: inout StreamCursor, _ printer: inout AnswerPrinter
  ) async throws {
    while !cursor.hasEnded {
      let rows = try await connection.query(
        "select seq, type, data from ai.read_stream($1, $2::integer)",
        [id.withLock { $0 }, String(cursor.last)])
      for row in 0..<rows.count {
        guard let seq = rows.int(row, 0), let type = rows[row, 1] else { continue }
        let event = cursor.take(seq: seq, type: type, data: rows.bytes(row, 2) ?? [])
        if let event { try printer.show(event) }
      }
      if rows.count < 1_000 { return }
    }
  }

  private func hintIfNobodyWorks(_ connection: Connection) async {
    let waits = try? await connection.query(
      "select status = 'queued' from ai.generations where id = $1", [id.withLock { $0 }])
    guard let waits, waits.count == 1, waits.bool(0, 0) == true else { return }
    switch await WorkerLife.read(connection) {
    case .some(let life) where life.alive > 0: break
    case .some: writeError("martlet: no worker is alive; start one with: martlet work")
    // An app's role may not look at workers.
    case nil: writeError("martlet: still waiting; is a worker running? (martlet work)")
    }
  }
}
