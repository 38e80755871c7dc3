import ArgumentParser
import FoundationEssentials
import Postgres
import UnixSignals

/// `martlet ask`: one question, answered into the terminal while it is being written.
struct AskCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ask",
    abstract: "Asks a question and prints the answer as it is written.",
    discussion: """
      The question becomes a row of ai.generations, asked as the member that the session is (ai.whoami()). \
      The answer goes to standard output, all else to standard error. Ctrl-C cancels the generation. \
      Exit codes: 0 answered, 1 an error or no answer, 2 a wrong call, 130 cancelled by Ctrl-C.
      """)

  @Argument(help: "The question; - reads it from standard input.")
  var question: String

  @Option(help: ArgumentHelp("A model by its name in ai.models.", valueName: "name"))
  var model: String?

  @Option(help: ArgumentHelp("A profile, such as small, instead of a model.", valueName: "name"))
  var profile: String?

  @Option(help: ArgumentHelp("A system prompt.", valueName: "text"))
  var system: String?

  @Option(
    help: ArgumentHelp(
      "Where the database is. Default: DATABASE_URL, else libpq's environment (PGHOST, …).",
      valueName: "url"))
  var databaseURL: String?

  @Flag(help: "Print the generation as JSON when it has ended.")
  var json = false

  @Flag(help: "Print the answer when it is whole.")
  var noStream = false

  @Option(
    help: ArgumentHelp("Cancel when there is no answer after this time.", valueName: "seconds"))
  var timeout: Double?

  func validate() throws {
    if model != nil && profile != nil {
      throw ValidationError("--model and --profile exclude each other.")
    }
    if let timeout, !(0.001...86_400 ~= timeout) {
      throw ValidationError("--timeout: 0.001 to 86400 seconds")
    }
  }

  func run() async throws {
    let text = question == "-" ? try readStandardInput() : question
    guard text.contains(where: { !$0.isWhitespace }) else {
      throw ValidationError("The question is empty.")
    }
    guard !text.utf8.contains(0), !(system ?? "").utf8.contains(0) else {
      throw ValidationError("The question contains a NUL character, which PostgreSQL cannot store.")
    }
    ignoreBrokenPipe()
    let conninfo = databaseURL ?? ProcessInfo.processInfo.environment["DATABASE_URL"] ?? ""
    // Caught from here on, so that no Ctrl-C leaves a generation behind that nobody waits for.
    let signals = await UnixSignalsSequence(trapping: .sigint, .sigterm)
    let asking = Asking(
      conninfo: conninfo,
      request: Asking.Request(
        text: text, system: system, model: model, profile: profile,
        stream: !noStream && !json, deadline: timeout.map { Int(($0 * 1_000).rounded(.up)) }))
    do {
      try await answer(asking, until: signals)
    } catch is ReaderGone {
      // Nobody reads on: what it would still cost is spared.
      try? await asking.cancel()
      throw ExitCode(141)
    } catch let error as PostgresError {
      report(error)
      throw ExitCode(1)
    }
  }

  /// Follows the generation to its end, Ctrl-C or the end of its time, whatever comes first.
  private func answer(_ asking: Asking, until signals: UnixSignalsSequence) async throws {
    enum First: Sendable { case ended, interrupted, late }
    let first = try await withThrowingTaskGroup(of: First.self) { group in
      group.addTask {
        try await asking.run()
        return .ended
      }
      group.addTask {
        for await _ in signals { return .interrupted }
        return .interrupted
      }
      if let timeout {
        group.addTask {
          // The database ends it by itself; this is for when nobody is there to do so.
          try await Task.sleep(for: .seconds(timeout + 2))
          return .late
        }
      }
      defer { group.cancelAll() }
      return try await group.next() ?? .ended
    }
    switch first {
    case .ended:
      try await finish(asking)
    case .interrupted:
      try await asking.cancel()
      writeError("\nmartlet: cancelled")
      throw ExitCode(130)
    case .late:
      try await asking.cancel()
      writeError("martlet: no answer within \(timeout ?? 0) s; the generation is cancelled")
      throw ExitCode(1)
    }
  }

  private func finish(_ asking: Asking) async throws {
    guard let end = try await asking.end() else {
      writeError("martlet: the generation is gone")
      throw ExitCode(1)
    }
    if json {
      print(end.json)
    } else if noStream, let output = end.output {
      try TerminalText().write(output + "\n")
    }
    guard end.status == "succeeded" else {
      writeError("martlet: \(end.status)\(end.error.map { ": \($0.summary)" } ?? "")")
      if let detail = end.error?.detail { writeError("detail: \(detail)") }
      if let hint = end.error?.hint { writeError("hint: \(hint)") }
      throw ExitCode(1)
    }
    if !json && end.output == nil {
      writeError(
        "martlet: the answer has no text (\(end.finishReason ?? "no reason")); --json shows it")
    }
  }
}
