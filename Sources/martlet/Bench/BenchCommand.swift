import ArgumentParser
import FoundationEssentials
import Postgres

/// `martlet bench`: the load generator and stopwatch of `make bench`.
struct BenchCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bench",
    abstract: "Makes load and takes times; `make bench` runs it beside its peers.",
    discussion: """
      Each subcommand makes one kind of load, bounded in time and count, and prints one JSON object. \
      The generations are inserted by the role of the connection, which must be a member; a worker \
      must run. docs/benchmarks.md has the newest results and says how to repeat them.
      """,
    subcommands: [
      BenchLoadCommand.self,
      BenchLatencyCommand.self,
      BenchStreamsCommand.self,
      BenchHTTPCommand.self,
    ])
}

/// What all loads of generations take.
struct BenchOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Where the database is, as a member. Default: DATABASE_URL, else libpq's environment.",
      valueName: "url"))
  var databaseURL: String?

  @Option(help: "Model to ask.")
  var model = "local/extract"

  @Option(help: "Size of each prompt in bytes, 16 to 100000; every prompt is another one.")
  var promptBytes = 200

  @Option(help: "Give up after so many seconds, 1 to 3600.")
  var seconds = 120

  func validate() throws {
    try check("--prompt-bytes", promptBytes, 16...100_000)
    try check("--seconds", seconds, 1...3_600)
  }

  /// A connection of its own.
  func connect() async throws -> Connection {
    try await Connection.open(conninfo, applicationName: "martlet bench")
  }

  var conninfo: String {
    databaseURL ?? ProcessInfo.processInfo.environment["DATABASE_URL"] ?? ""
  }

  /// Prompt number `number`.
  func prompt(_ number: Int) -> String { benchPrompt(number, bytes: promptBytes) }
}

/// A text of so many bytes, at least those of its number, by which every one is another.
func benchPrompt(_ number: Int, bytes: Int) -> String {
  let start = "Question \(number): "
  let fill = max(0, bytes - start.utf8.count)
  return start + String(repeating: "what is a swift? ", count: fill / 17 + 1).prefix(fill)
}

/// - Throws: `ValidationError` where the value of an option is out of its bounds.
func check(_ option: String, _ value: Int, _ bounds: ClosedRange<Int>) throws {
  guard bounds.contains(value) else {
    throw ValidationError("\(option): \(bounds.lowerBound) to \(bounds.upperBound)")
  }
}
