import ArgumentParser
import FoundationEssentials
import Postgres

/// `martlet batch`: what became of many generations, and what is to become of them.
struct BatchCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "batch",
    abstract: "Lists, shows, pauses, resumes and cancels batches.",
    discussion: """
      A batch is made by ai.create_batch() and filled by inserts into ai.generations with its batch_id. What can be \
      seen and done is what the session's member may (ai.whoami()). Exit codes: 0 done, 1 an error, 2 a wrong call, \
      3 the batch that was watched has ended, and not all of it succeeded.
      """,
    subcommands: [
      BatchListCommand.self, BatchShowCommand.self, BatchPauseCommand.self,
      BatchResumeCommand.self, BatchCancelCommand.self,
    ],
    defaultSubcommand: BatchListCommand.self)
}

/// What all of them take.
struct BatchOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Where the database is. Default: DATABASE_URL, else libpq's environment (PGHOST, …).",
      valueName: "url"))
  var databaseURL: String?

  @Flag(help: "Print JSON.")
  var json = false

  func open() async throws(PostgresError) -> Connection {
    try await Connection.open(
      databaseURL ?? ProcessInfo.processInfo.environment["DATABASE_URL"] ?? "",
      applicationName: "martlet batch")
  }

  /// Runs `body` on a connection; an error of the database is told, and ends the command.
  func withConnection(_ body: (Connection) async throws -> Void) async throws {
    do {
      let connection = try await open()
      try await body(connection)
      await connection.close()
    } catch let error as PostgresError {
      report(error)
      throw ExitCode(1)
    }
  }
}

/// The batch that is meant.
struct BatchArgument: ParsableArguments {
  @Argument(help: ArgumentHelp("The batch's id.", valueName: "id"))
  var id: String

  func validate() throws {
    guard UUID(uuidString: id) != nil else {
      throw ValidationError("\(id) is not the id of a batch.")
    }
  }
}

struct BatchListCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Lists the latest batches.")

  @OptionGroup var options: BatchOptions

  @Option(help: ArgumentHelp("How many, 1 to 1000.", valueName: "count"))
  var limit = 20

  func validate() throws {
    guard (1...1_000).contains(limit) else { throw ValidationError("--limit: 1 to 1000") }
  }

  func run() async throws {
    try await options.withConnection { connection in
      let batches = try await Batch.latest(limit, on: connection)
      if options.json {
        print("[" + batches.map(\.json).joined(separator: ",") + "]")
      } else {
        try TerminalText().write(Batch.table(batches))
      }
    }
  }
}

struct BatchShowCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show",
    abstract: "Shows how far a batch has come, what it has cost and when it will be done.",
    discussion: """
      With --watch it waits for the end, with a progress bar where standard error is a terminal; Ctrl-C ends the \
      watching, not the batch. With --json as well it prints a line whenever something has changed.
      """)

  @OptionGroup var batch: BatchArgument
  @OptionGroup var options: BatchOptions

  @Flag(help: "Wait until the batch has ended.")
  var watch = false

  func run() async throws {
    ignoreBrokenPipe()
    do {
      let last = try await watch ? followed() : once()
      if !(watch && options.json) { try show(last) }
      if watch && !last.hasAllSucceeded { throw ExitCode(3) }
    } catch let error as PostgresError {
      report(error)
      throw ExitCode(1)
    } catch is ReaderGone {
      throw ExitCode(141)
    }
  }

  private func show(_ state: Batch) throws {
    try TerminalText().write(options.json ? state.json + "\n" : state.report)
  }

  private func once() async throws -> Batch {
    let connection = try await options.open()
    let state = try await Batch.read(batch.id, on: connection)
    await connection.close()
    return state
  }

  /// Looks until it has ended. Counting a large batch is work for the database: the pause between two looks
  /// is at least ten times as long as a look takes. A lost connection is opened again.
  private func followed() async throws -> Batch {
    let line = ProgressLine()
    defer { line.clear() }
    var connection = try await options.open()
    var backoff = Backoff(base: .milliseconds(200), cap: .seconds(5))
    var losses = 0
    var printed = ""
    while true {
      let start = ContinuousClock.now
      do {
        let state = try await Batch.read(batch.id, on: connection)
        losses = 0
        line.show(state.line)
        if options.json && state.json != printed {
          try show(state)
          printed = state.json
        }
        if state.hasEnded {
          await connection.close()
          return state
        }
      } catch let error as PostgresError where error.kind == .connection && losses < 20 {
        losses += 1
        try await Task.sleep(for: backoff.next())
        if let new = try? await options.open() { connection = new }
        continue
      }
      let took = ContinuousClock.now - start
      try await Task.sleep(for: min(max(.seconds(1), took * 10), .seconds(30)))
    }
  }
}

struct BatchPauseCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pause", abstract: "Lets nothing more of a batch begin; what runs goes on.")

  @OptionGroup var batch: BatchArgument
  @OptionGroup var options: BatchOptions

  func run() async throws {
    try await options.withConnection { connection in
      try await connection.query("select ai.pause_batch($1::uuid)", [batch.id])
      print(options.json ? #"{"id": "\#(batch.id.lowercased())", "state": "paused"}"# : "paused")
    }
  }
}

struct BatchResumeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "resume", abstract: "Lets a paused batch go on.")

  @OptionGroup var batch: BatchArgument
  @OptionGroup var options: BatchOptions

  func run() async throws {
    try await options.withConnection { connection in
      try await connection.query("select ai.resume_batch($1::uuid)", [batch.id])
      print(options.json ? #"{"id": "\#(batch.id.lowercased())", "state": "running"}"# : "resumed")
    }
  }
}

struct BatchCancelCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cancel",
    abstract: "Ends what is queued of a batch and aborts what runs. This cannot be undone.")

  @OptionGroup var batch: BatchArgument
  @OptionGroup var options: BatchOptions

  func run() async throws {
    try await options.withConnection { connection in
      let ended = try await connection.query(
        "select cancelled, running from ai.cancel_batch($1::uuid)", [batch.id])
      let (cancelled, running) = (ended.int(0, 0) ?? 0, ended.int(0, 1) ?? 0)
      print(
        options.json
          ? #"{"id": "\#(batch.id.lowercased())", "state": "cancelled", "cancelled": \#(cancelled), "running": \#(running)}"#
          : "cancelled: \(cancelled) ended, \(running) are being aborted")
    }
  }
}
