import Logging
import Postgres
import Synchronization

/// One run of a tool, on a connection of its own: nothing that a function leaves behind in its session
/// (settings, temporary tables, locks, prepared statements) is there for the next one.
struct ToolRun: Sendable {
  /// How much longer than its `statement_timeout` a run may take before its process is ended: a function
  /// can catch the cancelling of a statement, but not that.
  private static let patience = Duration.seconds(2)
  private static let rest = Duration.seconds(1)

  /// Id of the row in `ai.tool_calls`.
  var call: String
  /// Makes one transaction that of the member. Never logged.
  var ticket: String
  /// What one statement of it may take.
  var milliseconds: Int

  /// What became of a run. Without an SQLSTATE it was committed, or nobody knows.
  struct Report: Sendable {
    var call: String
    var sqlState: String?
    /// The function's own words. Never logged.
    var message: String?
  }

  func attempt(_ conninfo: String, _ logger: Logger) async -> Report {
    let connection: Connection
    do throws(PostgresError) {
      connection = try await Connection.open(conninfo, applicationName: "martlet tool")
    } catch {
      logger.warning("the login of tools cannot connect", metadata: ["error": "\(error)"])
      try? await Task.sleep(for: Self.rest)
      return Report(call: call)
    }
    let process = await connection.processID
    let outcome = Outcome()
    return await withTaskGroup(of: Void.self, returning: Report.self) { group in
      group.addTask { await watch(outcome, process, conninfo, logger) }
      var report = await transaction(on: connection)
      outcome.set(.ended)
      group.cancelAll()
      await connection.close()
      switch outcome.value {
      case .late: report.sqlState = "57014"
      case .brokenOff: report = Report(call: call)
      case .underWay, .ended: break
      }
      return report
    }
  }

  private func transaction(on connection: Connection) async -> Report {
    do throws(PostgresError) {
      try await connection.script("begin; set local statement_timeout = \(milliseconds)")
      try await connection.query("select ai.use_session($1)", [ticket])
      try await connection.query("select ai.run_tool()")
      try await connection.script("commit")
      return Report(call: call)
    } catch {
      return Report(call: call, sqlState: error.sqlState, message: error.message)
    }
  }

  /// Ends the process of a run that goes on for too long, or when the worker stops.
  private func watch(
    _ outcome: Outcome, _ process: Int32?, _ conninfo: String, _ logger: Logger
  ) async {
    // The transaction has several statements.
    let limit = Duration.milliseconds(milliseconds) + Self.patience
    let isLate = (try? await Task.sleep(for: limit)) != nil
    guard outcome.set(isLate ? .late : .brokenOff), let process else { return }
    do throws(PostgresError) {
      let connection = try await Connection.open(conninfo, applicationName: "martlet tool end")
      try await connection.query("select pg_terminate_backend($1)", ["\(process)"])
      await connection.close()
    } catch {
      logger.warning("the run of a tool cannot be ended", metadata: ["error": "\(error)"])
    }
  }

  /// The first to set it decides.
  private final class Outcome: Sendable {
    enum Value { case underWay, ended, late, brokenOff }
    private let state = Mutex(Value.underWay)

    var value: Value { state.withLock { $0 } }

    @discardableResult
    func set(_ value: Value) -> Bool {
      state.withLock { state in
        guard state == .underWay else { return false }
        state = value
        return true
      }
    }
  }
}

/// What has ended and is to be reported, and how many are under way.
final class ToolReports: Sendable {
  private struct State {
    var underWay = 0
    var ended: [ToolRun.Report] = []
  }

  private let state = Mutex(State())
  private let wake: Wake

  /// - Parameter wake: signalled when a run ends.
  init(_ wake: Wake) { self.wake = wake }

  var underWay: Int { state.withLock { $0.underWay } }

  /// Nothing runs, and nothing waits to be told.
  var isEmpty: Bool { state.withLock { $0.underWay == 0 && $0.ended.isEmpty } }

  func begin() { state.withLock { $0.underWay += 1 } }

  func end(_ report: ToolRun.Report) {
    state.withLock { state in
      state.underWay -= 1
      state.ended.append(report)
    }
    wake.signal()
  }

  func take() -> [ToolRun.Report] {
    state.withLock { state in
      defer { state.ended = [] }
      return state.ended
    }
  }

  func giveBack(_ reports: [ToolRun.Report]) { state.withLock { $0.ended += reports } }
}
