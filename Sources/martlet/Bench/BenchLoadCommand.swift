import ArgumentParser
import Postgres
import Synchronization

/// `martlet bench load`: many clients insert at once, and the last answer stops the watch.
struct BenchLoadCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "load",
    abstract: "Many clients insert generations; times the inserts and the answers.",
    discussion: """
      `settled_per_second` counts from the first insert to the moment when no generation of this run \
      is unfinished. An insert that fails is counted by its SQLSTATE and not repeated.
      """)

  @OptionGroup var options: BenchOptions

  @Option(help: "Clients, each on a connection of its own, 1 to 1000.")
  var clients = 32

  @Option(help: "Generations in all, 1 to 10000000.")
  var requests = 10_000

  @Option(help: "Rows of one INSERT, which is one transaction, 1 to 1000000.")
  var batch = 1

  @Flag(help: "Stream the answers.")
  var stream = false

  @Flag(help: "Stop after the inserts; do not wait for answers.")
  var noWait = false

  func validate() throws {
    try check("--clients", clients, 1...1_000)
    try check("--requests", requests, 1...10_000_000)
    try check("--batch", batch, 1...1_000_000)
  }

  private struct Report: Encodable {
    var clients: Int
    var batch: Int
    var requests: Int
    var inserted = 0
    var insertSeconds = 0.0
    var insertedPerSecond = 0.0
    var insertMs: Spread?
    /// Inserts that failed, by SQLSTATE.
    var refused: [String: Int] = [:]
    /// nil: nobody waited for the answers.
    var seconds: Double?
    var settledPerSecond: Double?
    var unfinished: Int?
    var statuses: [String: Int]?

    enum CodingKeys: String, CodingKey {
      case clients, batch, requests, inserted, refused, seconds, unfinished, statuses
      case insertSeconds = "insert_seconds"
      case insertedPerSecond = "inserted_per_second"
      case insertMs = "insert_ms"
      case settledPerSecond = "settled_per_second"
    }
  }

  /// What the clients have done so far.
  private final class Progress: Sendable {
    struct Counts {
      var next = 0
      var inserted = 0
      var times: [Double] = []
      var refused: [String: Int] = [:]
    }

    private let counts = Mutex(Counts())

    func with<Value: Sendable>(_ body: (inout sending Counts) -> sending Value) -> Value {
      counts.withLock(body)
    }
  }

  private static let single = """
    insert into ai.generations (model, prompt, stream) values ($1, $2, $3::boolean)
    """
  private static let several = """
    insert into ai.generations (model, prompt, stream)
    select $1, $2 || n, $3::boolean from generate_series(1, $4::integer) n
    """

  func run() async throws {
    let monitor = try await options.connect()
    let completion = try await Completion(monitor)
    var connections: [Connection] = []
    for _ in 0..<clients { connections.append(try await options.connect()) }

    let progress = Progress()
    let watch = Stopwatch()
    var report = Report(clients: clients, batch: batch, requests: requests)
    await withTaskGroup(of: Void.self) { group in
      for connection in connections {
        group.addTask { await insert(on: connection, watch, progress) }
      }
    }
    let insertSeconds = watch.seconds
    for connection in connections { await connection.close() }
    let done = progress.with { $0 }
    report.inserted = done.inserted
    report.insertSeconds = insertSeconds
    report.insertedPerSecond = Double(done.inserted) / insertSeconds
    report.insertMs = Spread(done.times)
    report.refused = done.refused

    if !noWait {
      let ended = try await completion.wait(until: Double(options.seconds), by: watch)
      let seconds = watch.seconds
      report.seconds = seconds
      report.statuses = try await completion.statuses()
      report.unfinished = ["queued", "running"].reduce(0) { $0 + (report.statuses?[$1] ?? 0) }
      let settled = report.statuses?.values.reduce(0, +) ?? 0
      report.settledPerSecond = Double(settled - (report.unfinished ?? 0)) / seconds
      if !ended { writeError("martlet: not all generations ended within \(options.seconds) s") }
    }
    await monitor.close()
    print(try jsonLine(report))
  }

  private func insert(
    on connection: Connection, _ watch: Stopwatch, _ progress: Progress
  ) async {
    let limit = Double(options.seconds)
    while watch.seconds < limit {
      let (first, count) = progress.with { progress in
        let count = min(batch, requests - progress.next)
        defer { progress.next += count }
        return (progress.next, count)
      }
      guard count > 0 else { return }
      let began = watch.milliseconds
      do {
        let values = [options.model, options.prompt(first), stream ? "true" : "false"]
        if batch == 1 {
          try await connection.query(Self.single, values)
        } else {
          try await connection.query(Self.several, values + [String(count)])
        }
        let took = watch.milliseconds - began
        progress.with {
          $0.inserted += count
          $0.times.append(took)
        }
      } catch {
        progress.with { $0.refused[error.sqlState ?? "connection", default: 0] += 1 }
        if error.kind == .connection { return }
      }
    }
  }
}
