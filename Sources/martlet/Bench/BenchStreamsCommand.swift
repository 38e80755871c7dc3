import ArgumentParser

/// `martlet bench streams`: many streams at once, each followed to its end.
struct BenchStreamsCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "streams",
    abstract: "Follows many streams at once over few listening connections.",
    discussion: """
      A stream is complete when every event number from 1 to the end was seen, by notification or, where \
      one was missed, by ai.read_stream(). `first_delta_ms` counts from the commit of the insert, so \
      the time that the provider takes is in it.
      """)

  @OptionGroup var options: BenchOptions

  @Option(help: "Streams, 1 to 100000.")
  var count = 1_000

  @Option(help: "Listening connections, 1 to 64, each with an inserting one beside it.")
  var listeners = 8

  @Option(help: "Streams begun in a second, 1 to 100000.")
  var perSecond = 500

  func validate() throws {
    try check("--count", count, 1...100_000)
    try check("--listeners", listeners, 1...64)
    try check("--per-second", perSecond, 1...100_000)
  }

  private struct Report: Encodable {
    var streams: Int
    var complete: Int
    var events: Int
    var deltas: Int
    var gaps: Int
    var seconds: Double
    var firstDeltaMs: Spread?

    enum CodingKeys: String, CodingKey {
      case streams, complete, events, deltas, gaps, seconds
      case firstDeltaMs = "first_delta_ms"
    }
  }

  func run() async throws {
    let watch = Stopwatch()
    let lanes = try await open(watch)
    try await withThrowingTaskGroup(of: Bool.self) { group in
      let began = watch.milliseconds
      for (place, lane) in lanes.enumerated() {
        group.addTask {
          try await lane.follow()
          return false
        }
        group.addTask {
          for number in stride(from: place, to: count, by: listeners) {
            await watch.sleep(until: began + Double(number) * 1_000 / Double(perSecond))
            try await lane.begin(model: options.model, prompt: options.prompt(number))
          }
          return false
        }
      }
      group.addTask {
        try await wait(for: lanes, by: watch)
        return true
      }
      defer { group.cancelAll() }
      while let isOver = try await group.next() {
        if isOver { return }
      }
    }
    var sum = StreamLane.Sum()
    for lane in lanes {
      let one = await lane.result
      sum.streams += one.streams
      sum.complete += one.complete
      sum.events += one.events
      sum.deltas += one.deltas
      sum.gaps += one.gaps
      sum.firstDelta += one.firstDelta
      await lane.close()
    }
    print(
      try jsonLine(
        Report(
          streams: sum.streams, complete: sum.complete, events: sum.events, deltas: sum.deltas,
          gaps: sum.gaps, seconds: watch.seconds, firstDeltaMs: Spread(sum.firstDelta))))
  }

  private func open(_ watch: Stopwatch) async throws -> [StreamLane] {
    var lanes: [StreamLane] = []
    for _ in 0..<listeners { lanes.append(try await StreamLane(options, watch)) }
    return lanes
  }

  /// Until all have ended, or time is up.
  private func wait(for lanes: [StreamLane], by watch: Stopwatch) async throws {
    var known = (complete: 0, events: 0)
    while watch.seconds < Double(options.seconds) {
      try await Task.sleep(for: .milliseconds(100))
      var now = (complete: 0, events: 0)
      for lane in lanes {
        let sum = await lane.result
        now.complete += sum.complete
        now.events += sum.events
      }
      if now.complete >= count { return }
      if now == known {
        for lane in lanes { try await lane.check() }
      }
      known = now
    }
  }
}
