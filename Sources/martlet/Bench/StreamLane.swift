import Postgres

/// Some of many streams, followed over one listening connection; a second one inserts, and reads what was missed.
actor StreamLane {
  /// One generation that is followed.
  private struct Stream {
    var committed: Double
    var last = 0
    var deltas = 0
    var firstDelta: Double?
    var hasEnded = false
  }

  /// What became of all streams of a lane.
  struct Sum: Sendable {
    var streams = 0
    /// Ended, with every number from 1 to the end seen.
    var complete = 0
    var events = 0
    var deltas = 0
    /// How often something was missing and was read.
    var gaps = 0
    /// From the commit of the insert to the first delta, in milliseconds.
    var firstDelta: [Double] = []
  }

  private let connection: Connection
  private let listener: Listener
  private let watch: Stopwatch
  private var streams: [String: Stream] = [:]
  private var sum = Sum()
  /// Events of streams that are not known yet: a stream is known when LISTEN has returned.
  private var isFilling: Set<String> = []

  init(_ options: BenchOptions, _ watch: Stopwatch) async throws {
    connection = try await options.connect()
    listener = try await Listener.open(options.conninfo, applicationName: "martlet bench")
    self.watch = watch
  }

  /// Asks for one generation and begins to follow it.
  func begin(model: String, prompt: String) async throws {
    let row = try await connection.query(
      "insert into ai.generations (model, prompt, stream) values ($1, $2, true) returning id",
      [model, prompt])
    let committed = watch.milliseconds
    let id = row[0, 0] ?? ""
    streams[id] = Stream(committed: committed)
    sum.streams += 1
    let channel = try await connection.query("select ai.subscribe($1)", [id])[0, 0] ?? ""
    try await listener.listen([channel])
    try await fill(id)
  }

  /// Takes what is announced, until the task is cancelled.
  func follow() async throws {
    for try await notification in listener.notifications {
      guard let event = EventHead(notification.payload) else { continue }
      let id = String(event.id)
      guard let stream = streams[id], event.seq > stream.last else { continue }
      if event.seq == stream.last + 1 {
        take(id, isDelta: event.isDelta, isEnd: event.isEnd, at: watch.milliseconds)
      } else if isFilling.insert(id).inserted {
        sum.gaps += 1
        try await fill(id)
      }
    }
  }

  /// Reads what has not been seen.
  private func fill(_ id: String) async throws {
    isFilling.insert(id)
    defer { isFilling.remove(id) }
    let last = streams[id]?.last ?? 0
    let rows = try await connection.query(
      "select seq, type from ai.read_stream($1, $2::integer)", [id, String(last)])
    let now = watch.milliseconds
    for row in 0..<rows.count {
      guard rows.int(row, 0) == (streams[id]?.last ?? 0) + 1 else { continue }
      take(id, isDelta: rows[row, 1] == "delta", isEnd: rows[row, 1] == "end", at: now)
    }
  }

  private func take(_ id: String, isDelta: Bool, isEnd: Bool, at time: Double) {
    streams[id]?.last += 1
    sum.events += 1
    if isDelta {
      sum.deltas += 1
      if streams[id]?.firstDelta == nil {
        streams[id]?.firstDelta = time
        if let committed = streams[id]?.committed { sum.firstDelta.append(time - committed) }
      }
    }
    if isEnd, streams[id]?.hasEnded == false {
      streams[id]?.hasEnded = true
      sum.complete += 1
    }
  }

  /// Looks once more at every stream that has not ended: what is announced while LISTEN is on its way may be missed, and
  /// a last event has no successor that would show the gap.
  func check() async throws {
    for id in streams.filter({ !$0.value.hasEnded }).keys { try await fill(id) }
  }

  var result: Sum { sum }

  func close() async {
    await listener.close()
    await connection.close()
  }
}
