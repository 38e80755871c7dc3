import ArgumentParser
import Postgres
import Synchronization

/// `martlet bench latency`: how long one generation takes, from the commit of its insert.
struct BenchLatencyCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "latency",
    abstract: "Times single generations from the commit of the insert, by LISTEN.",
    discussion: """
      `answered_ms`: until the notification that the answer is committed. `claimed_ms`: until the \
      notification that a worker has it, which only streamed generations have (--stream). The \
      commit is when the INSERT has returned. Without --rate the next is asked when the last has ended.
      """)

  @OptionGroup var options: BenchOptions

  @Option(help: "Generations that count, 1 to 100000.")
  var requests = 500

  @Option(help: "Generations before them that do not count, 0 to 10000.")
  var warmUp = 20

  @Option(help: "So many a second, 1 to 10000, whether the last has ended or not.")
  var rate: Int?

  @Flag(help: "Stream the answers.")
  var stream = false

  func validate() throws {
    try check("--requests", requests, 1...100_000)
    try check("--warm-up", warmUp, 0...10_000)
    if let rate { try check("--rate", rate, 1...10_000) }
  }

  private struct Times {
    var sent = 0.0
    var committed: Double?
    var claimed: Double?
    var answered: Double?
  }

  private struct Report: Encodable {
    var requests: Int
    var answered: Int
    var insertMs: Spread?
    var claimedMs: Spread?
    var answeredMs: Spread?
    /// From before the INSERT was sent.
    var wholeMs: Spread?

    enum CodingKeys: String, CodingKey {
      case requests, answered
      case insertMs = "insert_ms"
      case claimedMs = "claimed_ms"
      case answeredMs = "answered_ms"
      case wholeMs = "whole_ms"
    }
  }

  /// Times by id, and whoever waits for an end.
  private actor Board {
    private(set) var times: [String: Times] = [:]
    private var waiting: [String: CheckedContinuation<Void, Never>] = [:]
    private var gaveUp = false

    func committed(_ id: String, sent: Double, at time: Double) {
      times[id, default: Times()].sent = sent
      times[id, default: Times()].committed = time
    }

    func news(_ event: EventHead, at time: Double) {
      let id = String(event.id)
      if event.isRunning { times[id, default: Times()].claimed = time }
      guard event.isEnd else { return }
      times[id, default: Times()].answered = time
      waiting.removeValue(forKey: id)?.resume()
    }

    func end(of id: String) async {
      if gaveUp || times[id]?.answered != nil { return }
      await withCheckedContinuation { waiting[id] = $0 }
    }

    /// Lets everybody go who waits, when time is up.
    func giveUp() {
      gaveUp = true
      for continuation in waiting.values { continuation.resume() }
      waiting.removeAll()
    }

    var answered: Int { times.values.count { $0.answered != nil } }
  }

  func run() async throws {
    let connection = try await options.connect()
    let channel = try await connection.query("select ai.subscribe()")[0, 0] ?? ""
    let listener = try await Listener.open(
      options.conninfo, channels: [channel], applicationName: "martlet bench")
    let board = Board()
    let watch = Stopwatch()
    let ids = try await withThrowingTaskGroup(of: [String]?.self) { group in
      group.addTask {
        for try await notification in listener.notifications {
          let now = watch.milliseconds
          if let event = EventHead(notification.payload) { await board.news(event, at: now) }
        }
        return nil
      }
      group.addTask {
        try? await Task.sleep(for: .seconds(options.seconds))
        await board.giveUp()
        return nil
      }
      group.addTask { try await ask(on: connection, board, watch) }
      defer { group.cancelAll() }
      while let ids = try await group.next() {
        if let ids { return ids }
      }
      return []
    }
    await listener.close()
    await connection.close()
    let times = await board.times
    let counted = ids.dropFirst(warmUp).compactMap { times[$0] }
    func spread(_ time: (Times) -> Double?) -> Spread? { Spread(counted.compactMap(time)) }
    print(
      try jsonLine(
        Report(
          requests: counted.count, answered: counted.count { $0.answered != nil },
          insertMs: spread { times in times.committed.map { $0 - times.sent } },
          claimedMs: spread { Self.difference($0.claimed, $0.committed) },
          answeredMs: spread { Self.difference($0.answered, $0.committed) },
          wholeMs: spread { Self.difference($0.answered, $0.sent) })))
  }

  /// The notification may be there before the INSERT has returned.
  private static func difference(_ later: Double?, _ earlier: Double?) -> Double? {
    guard let later, let earlier else { return nil }
    return max(0, later - earlier)
  }

  private func ask(
    on connection: Connection, _ board: Board, _ watch: Stopwatch
  ) async throws -> [String] {
    var ids: [String] = []
    let began = watch.milliseconds
    let limit = Double(options.seconds)
    for number in 0..<(requests + warmUp) {
      if let rate { await watch.sleep(until: began + Double(number) * 1_000 / Double(rate)) }
      guard watch.seconds < limit else { break }
      let sent = watch.milliseconds
      let row = try await connection.query(
        """
        insert into ai.generations (model, prompt, stream) values ($1, $2, $3::boolean) returning id
        """, [options.model, options.prompt(number), stream ? "true" : "false"])
      let committed = watch.milliseconds
      let id = row[0, 0] ?? ""
      ids.append(id)
      await board.committed(id, sent: sent, at: committed)
      if rate == nil { await board.end(of: id) }
    }
    while await board.answered < ids.count, watch.seconds < limit {
      try await Task.sleep(for: .milliseconds(5))
    }
    return ids
  }
}
