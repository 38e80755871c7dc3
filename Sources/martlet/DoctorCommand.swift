import ArgumentParser
import FoundationEssentials
import Postgres

/// `martlet doctor`: looks at everything that has to be in place, and says how to mend what is not.
struct DoctorCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor",
    abstract: "Checks database, schema, rights, worker, secrets and one round trip.",
    discussion: """
      Looks with the eyes of the role that it connects as; what that role may not see is a warning. The \
      round trip asks local/extract one question, which is a row of ai.generations. Exit codes: 0 nothing \
      failed, 1 something did, 2 a wrong call.
      """)

  @Option(
    help: ArgumentHelp(
      "Where the database is. Default: DATABASE_URL, else libpq's environment (PGHOST, …).",
      valueName: "url"))
  var databaseURL: String?

  @Flag(help: "Print JSON.")
  var json = false

  private struct Report: Encodable {
    /// Whether nothing failed; there may be warnings.
    let ok: Bool
    let checks: [Finding]
  }

  func run() async throws {
    let environment = ProcessInfo.processInfo.environment
    let findings = await Checkup.run(
      conninfo: databaseURL ?? environment["DATABASE_URL"] ?? "", environment: environment)
    let ok = !findings.contains { $0.state == .fail }
    if json {
      print(try jsonLine(Report(ok: ok, checks: findings)))
    } else {
      for finding in findings { show(finding) }
    }
    if !ok { throw ExitCode(1) }
  }

  private func show(_ finding: Finding) {
    func padded(_ text: String, _ width: Int) -> String {
      text + String(repeating: " ", count: max(1, width - text.count))
    }
    let terminal = TerminalText()
    let line = padded(finding.state.rawValue, 6) + padded(finding.check, 12) + finding.message
    try? terminal.write(line + "\n")
    if let hint = finding.hint {
      try? terminal.write(String(repeating: " ", count: 18) + "→ " + hint + "\n")
    }
  }
}
