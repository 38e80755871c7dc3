import Logging
import Postgres

/// Runs the tools that models call, on connections of another login role, which has no rights but those
/// of an app. SQL decides what is run, as whom, and what the model is told; `docs/tools.md` says why.
struct ToolRunner: Sendable {
  private static let channel = "ai_tools"
  /// A call of which no notification tells is found by looking.
  private static let look = Duration.seconds(1)

  let desk: Desk
  let setup: Setup
  /// libpq's connection string of the role that runs tools.
  let conninfo: String
  /// Runs that may be under way at once.
  let concurrency: Int
  private let wake: Wake
  /// With `once`: whether all that could be run has been.
  let drain: Drain

  init(desk: Desk, setup: Setup, conninfo: String, concurrency: Int) {
    self.desk = desk
    self.setup = setup
    self.conninfo = conninfo
    self.concurrency = concurrency
    wake = Wake()
    drain = Drain(wake)
  }

  /// Until cancelled. What is under way then is broken off: another worker takes it over.
  func run() async {
    await withTaskGroup { group in
      group.addTask { await listen() }
      group.addTask { await work() }
    }
  }

  private func work() async {
    let link = Link(setup, desk: desk, purpose: "tools")
    let reports = ToolReports(wake)
    await withDiscardingTaskGroup { runs in
      while !Task.isCancelled {
        let worker = desk.identity.worker
        let round = drain.round
        do throws(PostgresError) {
          try await tell(reports, worker, link)
          let claimed = try await claim(concurrency - reports.underWay, worker, link)
          for run in claimed {
            reports.begin()
            runs.addTask { reports.end(await run.attempt(conninfo, setup.logger)) }
          }
          if claimed.isEmpty, reports.isEmpty, drain.foundNothing(round) {
            desk.workerWake.signal()
          }
          await wake.wait(until: .now + Self.look)
        } catch {
          if Task.isCancelled { break }
          if error.isMissing, reports.underWay == 0, drain.foundNothing(round, because: error) {
            desk.workerWake.signal()
          }
          await link.rest(after: error, "running tools")
        }
      }
    }
    do throws(PostgresError) {
      try await tell(reports, desk.identity.worker, link)
    } catch {
      setup.logger.warning("results of tools were not reported", metadata: ["error": "\(error)"])
    }
    await link.close()
  }

  private func claim(
    _ room: Int, _ worker: String, _ link: Link
  ) async throws(PostgresError) -> [ToolRun] {
    guard room > 0, !desk.isStopping else { return [] }
    let rows = try await link.query(
      "select call_id, ticket, timeout_ms from ai.worker_tools($1, $2)", [worker, "\(room)"])
    return (0..<rows.count).compactMap { row in
      guard let call = rows[row, 0], let ticket = rows[row, 1] else { return nil }
      return ToolRun(call: call, ticket: ticket, milliseconds: rows.int(row, 2) ?? 5_000)
    }
  }

  private func tell(
    _ reports: ToolReports, _ worker: String, _ link: Link
  ) async throws(PostgresError) {
    let ended = reports.take()
    guard !ended.isEmpty else { return }
    var json = JSONBuffer()
    json.beginArray()
    for report in ended {
      json.beginObject()
      json.member("id", report.call)
      json.member("sqlstate", report.sqlState)
      json.member("message", report.message)
      json.endObject()
    }
    json.endArray()
    do {
      try await link.query("select ai.worker_tools_done($1, $2)", [worker, json.text])
      desk.workEndedElsewhere()
    } catch {
      reports.giveBack(ended)
      throw error
    }
  }

  private func listen() async {
    var backoff = Backoff()
    while !Task.isCancelled {
      do {
        let listener = try await Listener.open(
          setup.conninfo, channels: [Self.channel], applicationName: "martlet listen for tools")
        backoff.reset()
        wake.signal()
        for try await _ in listener.notifications { wake.signal() }
        await listener.close()
      } catch {
        if Task.isCancelled { return }
        try? await Task.sleep(for: backoff.next())
      }
    }
  }
}
