import ArgumentParser
import HTTP
import Synchronization

/// `martlet bench http`: the same load for any server that takes chats in OpenAI's form: the provider itself, or a gateway.
struct BenchHTTPCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "http",
    abstract: "Posts chats to a server that speaks OpenAI's protocol, and times the answers.",
    discussion: """
      Every connection asks again as soon as it has its answer, which must have the status 200. `events` \
      counts the events of streamed answers.
      """)

  @Argument(help: "Address of the endpoint, such as http://127.0.0.1:4000/v1/chat/completions.")
  var url: String

  @Option(help: "Model to ask.")
  var model = "sim-small"

  @Option(help: "Size of each prompt in bytes, 16 to 100000.")
  var promptBytes = 200

  @Option(help: "Bearer token.")
  var token = "any"

  @Option(help: "Requests at once, 1 to 10000.")
  var connections = 1

  @Option(help: "Requests in all, 1 to 10000000.")
  var requests = 1_000

  @Option(help: "Ask no more after so many seconds, 1 to 3600.")
  var seconds = 10

  @Flag(help: "Stream the answers.")
  var stream = false

  func validate() throws {
    try check("--prompt-bytes", promptBytes, 16...100_000)
    try check("--connections", connections, 1...10_000)
    try check("--requests", requests, 1...10_000_000)
    try check("--seconds", seconds, 1...3_600)
  }

  private struct Message: Encodable {
    var role = "user"
    var content: String
  }

  private struct Body: Encodable {
    var model: String
    var messages: [Message]
    var stream: Bool
  }

  private struct Report: Encodable {
    var connections: Int
    var answered: Int
    /// What went wrong, by status or kind of failure.
    var failed: [String: Int]
    var events: Int
    var seconds: Double
    var perSecond: Double
    var answerMs: Spread?
    var firstByteMs: Spread?

    enum CodingKeys: String, CodingKey {
      case connections, answered, failed, events, seconds
      case perSecond = "per_second"
      case answerMs = "answer_ms"
      case firstByteMs = "first_byte_ms"
    }
  }

  func run() async throws {
    let run = HTTPLoad(
      pool: try TransferPool(), requests: requests, seconds: Double(seconds)
    ) { number in
      let body = Body(
        model: model, messages: [Message(content: benchPrompt(number, bytes: promptBytes))],
        stream: stream)
      var request = HTTPRequest(
        url: url,
        headers: [
          ("content-type", "application/json"), ("authorization", "Bearer \(token)"),
        ],
        body: Array(try jsonLine(body).utf8))
      request.totalTimeout = 60_000
      return request
    }
    let sum = await run.run(connections: connections)
    print(
      try jsonLine(
        Report(
          connections: connections, answered: sum.answers.count, failed: sum.failed,
          events: sum.events, seconds: sum.seconds,
          perSecond: Double(sum.answers.count) / sum.seconds, answerMs: Spread(sum.answers),
          firstByteMs: Spread(sum.firstBytes))))
  }
}

/// Keeps a number of transfers under way.
private final class HTTPLoad: Sendable {
  struct Sum: Sendable {
    var next = 0
    var underWay = 0
    var answers: [Double] = []
    var firstBytes: [Double] = []
    var failed: [String: Int] = [:]
    var events = 0
    var seconds = 0.0
  }

  private let pool: TransferPool
  private let requests: Int
  private let limit: Double
  private let make: @Sendable (Int) throws -> HTTPRequest
  private let watch = Stopwatch()
  private let sum = Mutex(Sum())
  private let (over, end) = AsyncStream.makeStream(of: Void.self)

  init(
    pool: TransferPool, requests: Int, seconds: Double,
    _ make: @escaping @Sendable (Int) throws -> HTTPRequest
  ) {
    self.pool = pool
    self.requests = requests
    limit = seconds
    self.make = make
  }

  func run(connections: Int) async -> Sum {
    for _ in 0..<connections { startOne() }
    for await _ in over {}
    pool.stop()
    return sum.withLock { sum in
      sum.seconds = watch.seconds
      return sum
    }
  }

  /// Also from the sink's thread.
  fileprivate func startOne() {
    let number = sum.withLock { sum -> Int? in
      guard sum.next < requests, watch.seconds < limit else {
        if sum.underWay == 0 { end.finish() }
        return nil
      }
      defer { sum.next += 1 }
      sum.underWay += 1
      return sum.next
    }
    guard let number, let request = try? make(number) else { return }
    pool.start(request, sink: HTTPLoadSink(self))
  }

  fileprivate func ended(_ outcome: TransferOutcome, status: Int, events: Int) {
    sum.withLock { sum in
      sum.underWay -= 1
      sum.events += events
      if let failure = outcome.failure {
        sum.failed[failure.kind.rawValue, default: 0] += 1
      } else if status != 200 {
        sum.failed[String(status), default: 0] += 1
      } else {
        sum.answers.append(outcome.total)
        if let first = outcome.firstByte { sum.firstBytes.append(first) }
      }
    }
    startOne()
  }
}

/// Takes one answer. The pool calls it on its own thread only.
private final class HTTPLoadSink: TransferSink, @unchecked Sendable {
  private let load: HTTPLoad
  private var status = 0
  private var events = 0
  private var endsLine = false

  init(_ load: HTTPLoad) { self.load = load }

  var hasBegun: Bool { true }

  func head(status: Int, headers: [String: String]) { self.status = status }

  /// An event ends with an empty line.
  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict {
    for byte in bytes {
      let isNewline = byte == UInt8(ascii: "\n")
      if isNewline, endsLine { events += 1 }
      endsLine = isNewline && !endsLine
    }
    return .more
  }

  func finished(_ outcome: TransferOutcome) {
    load.ended(outcome, status: status, events: events)
  }
}
