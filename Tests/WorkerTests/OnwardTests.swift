import HTTP
import Logging
import Providers
import Sealing
import Synchronization
import Testing

@testable import Worker

/// A job's reader: each response names what is to be done, in words: `text …`, `again MS`, `stream`, `elsewhere`,
/// `done`, `bad` (an address that is none). What breaks is asked for again, three times at most.
private struct JobReader: ResponseReader {
  var text = ""
  var next: FollowUp?
  var isComplete = false
  var hasJob = false
  var troubles = 0
  var status = 0
  var hasBegun: Bool { !text.isEmpty }

  mutating func head(_ head: ResponseHead) -> Framing {
    status = head.status
    return head.headers["stream"] == nil ? .whole : .events
  }

  mutating func receive(event: String?, data: [UInt8]) -> String {
    guard status == 200 else { return "" }
    hasJob = true
    let said = String(decoding: data, as: UTF8.self)
    let words = said.split(separator: " ", maxSplits: 1).map(String.init)
    switch words.first {
    case "text":
      text += words[1]
      return words[1]
    case "again":
      next = FollowUp(.path("/job"))
      next?.delay = Int(words[1]) ?? 0
      next?.supersedes = true
    case "stream": next = FollowUp(.path("/stream"))
    case "elsewhere": next = FollowUp(.url("https://elsewhere.example/stream"))
    case "bad": next = FollowUp(.url("https://u@elsewhere.example/"))
    case "done": isComplete = true
    default: break
    }
    return ""
  }

  mutating func followUp(_ end: TransferEnd) -> FollowUp? {
    guard !isComplete, hasJob else { return nil }
    if let next {
      self.next = nil
      return next
    }
    troubles += 1
    return troubles <= 3 ? FollowUp(.path("/job")) : nil
  }

  mutating func finish(_ end: TransferEnd) -> Outcome {
    var reply = Reply()
    reply.output = text
    if isComplete { return .success(reply) }
    var failure = Failure(.truncated, message: "no end")
    if case .broken(let signal, let words) = end { failure = Failure(signal, message: words) }
    failure.partial = reply
    return .failure(failure)
  }

  var farewell: FollowUp? {
    guard hasJob, !isComplete else { return nil }
    var cancel = FollowUp(.path("/cancel"))
    cancel.method = "POST"
    return cancel
  }
}

/// Keeps what is to be sent.
private final class Wires: Transport {
  private let state = Mutex(
    (started: [HTTPRequest](), cancelled: [TransferID](), next: UInt64(100)))

  func start(_ request: HTTPRequest, sink: any TransferSink) -> TransferID {
    state.withLock { state in
      state.started.append(request)
      state.next += 1
      return TransferID(number: state.next)
    }
  }

  func cancel(_ id: TransferID) { state.withLock { $0.cancelled.append(id) } }

  var started: [HTTPRequest] { state.withLock { $0.started } }
  var cancelled: [TransferID] { state.withLock { $0.cancelled } }
}

private struct Bench {
  let fence = Fence(high: 1, low: 2, attempt: 1)
  let desk: Desk
  let wires = Wires()
  let attempt: Attempt

  init(
    streams: Bool = true, capture: Capture? = nil,
    limits change: (inout HTTPRequest) -> Void = { _ in }
  ) {
    let identity = Identity(
      worker: "w", channel: "c", heartbeat: .seconds(1), maintenance: .seconds(1),
      publication: .milliseconds(50))
    desk = Desk(identity: identity, concurrency: 4, once: false)
    let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    var limits = HTTPRequest(url: "")
    change(&limits)
    let first = ProviderRequest(
      url: "https://api.example/jobs",
      headers: [("authorization", "Bearer sk-secret-1234"), ("accept", "text/event-stream")],
      body: [])
    attempt = Attempt(
      fence: fence, streams: streams, reader: JobReader(), desk: desk,
      report: Report(logger: logger, fence: fence, provider: "p", model: "m"), capture: capture,
      onward: Onward(
        transport: wires, first: first, base: "https://api.example", limits: limits))
    desk.begin(fence, streams: streams)
    _ = desk.started(fence, TransferID(number: 1))
  }

  /// A response with these words as its body, or as its events.
  func respond(
    _ body: String..., status: Int = 200, streamed: Bool = false,
    end: TransferFailure.Kind? = nil
  ) {
    attempt.head(status: status, headers: streamed ? ["stream": "yes"] : [:])
    for part in body {
      let bytes = streamed ? "data: \(part)\n\n" : part
      _ = Array(bytes.utf8).withUnsafeBytes { attempt.body($0) }
    }
    finish(end)
  }

  func finish(_ kind: TransferFailure.Kind? = nil, sent: Bool = true, received: Int = 10) {
    attempt.finished(
      TransferOutcome(
        failure: kind.map { TransferFailure(kind: $0, message: "words") }, requestSent: sent,
        firstByte: nil, total: 12, bytesReceived: received, bytesSent: 1, reusedConnection: false))
  }

  var results: [Settlement] { desk.takeResults(for: .all).results }

  func result() throws -> Settlement {
    let results = results
    #expect(results.count == 1)
    return try #require(results.first)
  }
}

@Suite struct OnwardTests {
  @Test("a job that is polled until it is done is one attempt with one result")
  func polled() throws {
    let bench = Bench(streams: false)
    bench.respond("again 700")
    bench.respond("again 900")
    #expect(bench.results.isEmpty && bench.desk.transferring == 1)
    #expect(bench.wires.started.map(\.delay) == [700, 900])
    let poll = try #require(bench.wires.started.last)
    #expect(poll.method == "GET" && poll.url == "https://api.example/job" && poll.body.isEmpty)
    #expect(poll.headers.map(\.name) == ["authorization"])
    bench.respond("text all ", status: 200)
    bench.respond("done")
    let result = try bench.result()
    #expect(result.outcome == .succeeded && result.reply?.output == "all ")
    #expect(bench.wires.started.allSatisfy { $0.url.hasSuffix("/job") })
    #expect(bench.desk.transferring == 0)
  }

  @Test("a stream goes on where it broke off, and what was shown stays shown")
  func resumed() throws {
    let bench = Bench()
    bench.respond("stream")
    bench.respond("text one", streamed: true, end: .truncated)
    #expect(bench.wires.started.count == 2)
    bench.respond("text two", "done", streamed: true)
    let result = try bench.result()
    #expect(result.outcome == .succeeded && result.reply?.output == "onetwo")
    #expect(result.firstText != nil)
  }

  @Test("half an event before a break is no part of what comes after it")
  func halves() throws {
    let bench = Bench()
    bench.respond("stream")
    bench.attempt.head(status: 200, headers: ["stream": "yes"])
    _ = Array("data: text on".utf8).withUnsafeBytes { bench.attempt.body($0) }
    bench.finish(.reset)
    bench.respond("text one", "done", streamed: true)
    #expect(try bench.result().reply?.output == "one")
  }

  @Test("the whole time is one, over all requests and pauses")
  func deadline() throws {
    let bench = Bench { $0.totalTimeout = 60_000 }
    bench.respond("again 10")
    let left = try #require(bench.wires.started.last).totalTimeout
    #expect((1...60_000).contains(left))
    // A pause that reaches beyond the end leaves time for a last question.
    bench.respond("again 3600000")
    let last = try #require(bench.wires.started.last)
    #expect(last.delay < last.totalTimeout && last.delay >= 55_000)
  }

  @Test("nothing is sent when the time is over")
  func over() throws {
    let bench = Bench { $0.totalTimeout = 1 }
    let until = ContinuousClock.now + .milliseconds(2)
    while ContinuousClock.now < until {}
    bench.respond("again 10")
    #expect(try bench.result().outcome == .failed)
    #expect(bench.wires.started.map(\.url) == ["https://api.example/cancel"])
  }

  @Test("without a whole time there is none for what follows", arguments: [0, -1])
  func endless(total: Int) throws {
    let bench = Bench { $0.totalTimeout = total }
    bench.respond("again 5000")
    #expect(bench.wires.started.first?.totalTimeout == 0)
    #expect(bench.wires.started.first?.delay == 5_000)
  }

  @Test("a cancel while it waits ends it, and the provider is told")
  func cancelled() throws {
    let bench = Bench()
    bench.respond("again 5000")
    let transfer = bench.desk.end(bench.fence, .cancelled)
    #expect(transfer == TransferID(number: 101))
    bench.finish(.cancelled, sent: false, received: 0)
    let result = try bench.result()
    #expect(result.outcome == .cancelled && result.sent && result.failure == nil)
    let farewell = try #require(bench.wires.started.last)
    #expect(farewell.method == "POST" && farewell.url == "https://api.example/cancel")
    #expect(farewell.headers.map(\.name) == ["authorization"])
    #expect(bench.desk.hasFarewells)
  }

  @Test("a cancel between two requests aborts the second")
  func between() throws {
    let bench = Bench()
    #expect(bench.desk.end(bench.fence, .cancelled) == TransferID(number: 1))
    bench.respond("again 5000")
    #expect(bench.wires.cancelled == [TransferID(number: 101)])
    bench.finish(.cancelled, sent: false, received: 0)
    #expect(try bench.result().outcome == .cancelled)
  }

  @Test("a job that is handed back was sent, and is stopped at the provider")
  func released() throws {
    let bench = Bench()
    bench.respond("again 5000")
    _ = bench.desk.end(bench.fence, .released)
    bench.finish(.cancelled, sent: false, received: 0)
    let result = try bench.result()
    #expect(result.outcome == .released && result.failure?.signal == .reset && result.sent)
    #expect(bench.wires.started.last?.url == "https://api.example/cancel")
  }

  @Test("a job that belongs to somebody else by now is stopped, and not reported")
  func dropped() {
    let bench = Bench()
    bench.respond("again 5000")
    _ = bench.desk.end(bench.fence, .dropped)
    bench.finish(.cancelled, sent: false, received: 0)
    #expect(bench.results.isEmpty && bench.desk.isIdle)
    #expect(bench.wires.started.last?.url == "https://api.example/cancel")
  }

  @Test("a job that was complete is told nothing")
  func noFarewell() throws {
    let bench = Bench()
    bench.respond("again 10")
    bench.respond("done")
    #expect(try bench.result().outcome == .succeeded)
    #expect(bench.wires.started.count == 1 && !bench.desk.hasFarewells)
  }

  @Test(
    "whoever cannot be reached any more had been reached",
    arguments: [
      (TransferFailure.Kind.connect, Failure.Signal.reset), (.tls, .reset), (.reset, .reset),
      (.timeout, .timeout), (.truncated, .truncated), (.forbidden, .malformed),
      (.invalidRequest, .malformed),
    ])
  func signals(kind: TransferFailure.Kind, signal: Failure.Signal) throws {
    let bench = Bench()
    bench.respond("again 10")
    for _ in 0..<4 { bench.finish(kind, sent: false, received: 0) }
    let result = try bench.result()
    #expect(result.failure?.signal == signal && result.sent)
    #expect(result.httpStatus == 200)
  }

  @Test(
    "what is too large or too slow is not asked for again",
    arguments: [
      (TransferFailure.Kind.tooLarge, Failure.Signal.tooLarge), (.late, .slow),
    ])
  func noMore(kind: TransferFailure.Kind, signal: Failure.Signal) throws {
    let bench = Bench()
    bench.respond("again 10")
    bench.finish(kind, sent: false, received: 0)
    #expect(try bench.result().failure?.signal == signal)
  }

  @Test("another server gets no key, and must have a public address")
  func elsewhere() throws {
    let bench = Bench()
    bench.respond("elsewhere")
    let request = try #require(bench.wires.started.last)
    #expect(request.url == "https://elsewhere.example/stream")
    #expect(request.headers.isEmpty && request.publicOnly)
    // And back at home it has it again.
    bench.finish(.forbidden, sent: false, received: 0)
    let home = try #require(bench.wires.started.last)
    #expect(home.headers.map(\.name) == ["authorization"] && !home.publicOnly)
  }

  @Test("a tenant's own provider stays on public addresses, whatever follows")
  func publicOnly() throws {
    let bench = Bench { $0.publicOnly = true }
    bench.respond("again 10")
    bench.respond("stream")
    _ = bench.desk.end(bench.fence, .cancelled)
    bench.finish(.cancelled)
    #expect(bench.wires.started.count == 3)
    let isPublic = bench.wires.started.allSatisfy { $0.publicOnly }
    #expect(isPublic)
  }

  @Test("an address that must not be called is passed over")
  func refused() throws {
    let bench = Bench()
    bench.respond("bad")
    #expect(bench.wires.started.last?.url == "https://api.example/job")
  }

  @Test("the bodies of all responses together have a limit")
  func bytes() throws {
    let bench = Bench()
    bench.respond("again 10")
    #expect(bench.wires.started.last?.maxResponseBytes == 64 << 20)
    bench.attempt.head(status: 200, headers: [:])
    _ = Array("again 10".utf8).withUnsafeBytes { bench.attempt.body($0) }
    bench.finish(received: Onward.mostBytes - 1_000)
    #expect(bench.wires.started.last?.maxResponseBytes == 990)
    _ = Array("again 10".utf8).withUnsafeBytes { bench.attempt.body($0) }
    bench.attempt.head(status: 200, headers: [:])
    bench.finish(received: 5_000)
    #expect(bench.wires.started.last?.maxResponseBytes == 0)
  }

  @Test("a provider that wants to be asked at once for ever is asked at leisure, and not for ever")
  func busy() throws {
    let bench = Bench { $0.totalTimeout = 0 }
    for _ in 0..<(Onward.mostExchanges - 1) { bench.respond("again 0") }
    #expect(bench.results.isEmpty)
    #expect(bench.wires.started.dropFirst(7).allSatisfy { $0.delay == 100 })
    bench.respond("again 0")
    #expect(try bench.result().failure?.signal == .truncated)
    #expect(bench.wires.started.count == Onward.mostExchanges)
  }

  @Test("patience for a first answer is over all requests, and a job that was accepted is none")
  func patience() throws {
    let bench = Bench { $0.firstAnswerTimeout = 30_000 }
    bench.respond("again 5000")
    let request = try #require(bench.wires.started.last)
    #expect((1...30_000).contains(request.firstAnswerTimeout))
    bench.attempt.head(status: 200, headers: [:])
    #expect(!bench.attempt.hasBegun)
    _ = Array("data: x\n\n".utf8).withUnsafeBytes { bench.attempt.body($0) }
    #expect(!bench.attempt.hasBegun)
  }

  @Test("what is sealed has the first response, the last, and no question in between")
  func sealed() throws {
    let key = DataKey(newID: "k", tenant: "t")
    let fence = Fence(high: 1, low: 2, attempt: 1)
    let capture = Capture(
      CaptureOrder(key: key, tenant: "t", withContent: true), fence: fence,
      request: Array("asked".utf8), secrets: ["sk-secret-1234"])
    let bench = Bench(capture: capture)
    bench.respond("again 10")
    for _ in 0..<50 { bench.respond("again 20") }
    bench.respond("stream")
    bench.respond("text sk-secret-1234 ", streamed: true, end: .reset)
    bench.respond("done", streamed: true)
    let sealed = try #require(try bench.result().sealed)
    func opened(_ bytes: [UInt8]?, _ part: SealedContext.Part) throws -> String {
      try Sealing.open(
        try #require(bytes), with: key.bytes,
        for: .call(tenant: "t", generation: fence.description, attempt: 1, part: part)
      ).text
    }
    #expect(try opened(sealed.request, .request) == "asked")
    let response = try opened(sealed.response, .response)
    #expect(response == "again 10stream" + "data: text [key] \n\n" + "data: done\n\n")
    let facts = try opened(sealed.facts, .facts)
    #expect(facts.contains("\"exchanges\":54"))
    #expect(facts.contains("\"response_bytes\":\(response.utf8.count - 5 + 14)"))
  }
}
