import HTTP
import Logging
import Providers
import Testing

@testable import Worker

/// Reads lines of text: `END` completes the answer, everything else is text.
private struct TextReader: ResponseReader {
  let framing: Framing
  var text = ""
  var isComplete = false
  var hasBegun: Bool { !text.isEmpty }

  init(_ framing: Framing) { self.framing = framing }

  mutating func head(_ head: ResponseHead) -> Framing { framing }

  mutating func receive(event: String?, data: [UInt8]) -> String {
    let piece = String(decoding: data, as: UTF8.self)
    if piece.hasSuffix("END") {
      isComplete = true
      return ""
    }
    text += piece
    return piece
  }

  mutating func finish(_ end: TransferEnd) -> Outcome {
    var reply = Reply()
    reply.output = text
    if isComplete { return .success(reply) }
    guard case .broken(let signal, let words) = end else {
      return .failure(Failure(.truncated, message: "no end"))
    }
    var failure = Failure(signal, message: words)
    failure.partial = reply
    return .failure(failure)
  }
}

/// An attempt, and the desk that takes its report.
private struct Bench {
  let fence = Fence(high: 1, low: 2, attempt: 1)
  let desk: Desk
  let attempt: Attempt

  init(_ framing: Framing, streams: Bool = true) {
    let identity = Identity(
      worker: "w", channel: "c", heartbeat: .seconds(1), maintenance: .seconds(1),
      publication: .milliseconds(50))
    desk = Desk(identity: identity, concurrency: 4, once: false)
    let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    attempt = Attempt(
      fence: fence, streams: streams, reader: TextReader(framing), desk: desk,
      report: Report(logger: logger, fence: fence, provider: "p", model: "m"))
    desk.begin(fence, streams: streams)
  }

  func body(_ text: String) -> BodyVerdict {
    Array(text.utf8).withUnsafeBytes { attempt.body($0) }
  }

  func finish(_ kind: TransferFailure.Kind? = nil, sent: Bool = true, received: Int = 1) {
    attempt.finished(
      TransferOutcome(
        failure: kind.map { TransferFailure(kind: $0, message: "words") }, requestSent: sent,
        firstByte: nil, total: 12, bytesReceived: received, bytesSent: 1, reusedConnection: false))
  }

  func result() throws -> Settlement {
    let results = desk.takeResults(for: .all).results
    #expect(results.count == 1)
    return try #require(results.first)
  }
}

@Suite struct AttemptTests {
  @Test("a stream's text is published as it comes, and the end of the protocol is enough")
  func stream() throws {
    let bench = Bench(.events)
    bench.attempt.head(status: 200, headers: [:])
    #expect(bench.body("data: Hel\n\nda") == .more)
    let (_, deltas) = bench.desk.takeTexts(.first)
    #expect(deltas.map(\.text) == ["Hel"])
    bench.desk.published(deltas)
    #expect(bench.body("ta: lo\n\ndata: END\n\ndata: ignored\n\n") == .enough)
    bench.finish()
    let result = try bench.result()
    #expect(result.outcome == .succeeded)
    #expect(result.reply?.output == "Hello")
    #expect(result.tail == "lo")
    #expect(result.httpStatus == 200)
    #expect(result.firstText != nil)
    #expect(result.latency == 12)
  }

  @Test("a body that is read whole reaches the reader in one piece")
  func whole() throws {
    let bench = Bench(.whole, streams: false)
    bench.attempt.head(status: 200, headers: [:])
    #expect(bench.body("text") == .more)
    #expect(bench.body(" END") == .more)
    bench.finish()
    let result = try bench.result()
    #expect(result.outcome == .succeeded)
    #expect(result.tail.isEmpty)
  }

  @Test("a last line without its end is read")
  func lines() throws {
    let bench = Bench(.lines)
    bench.attempt.head(status: 200, headers: [:])
    #expect(bench.body("a\nb\nEND") == .more)
    bench.finish()
    let result = try bench.result()
    #expect(result.outcome == .succeeded)
    #expect(result.reply?.output == "ab")
  }

  @Test(
    "each end of a transfer has its signal",
    arguments: [
      (TransferFailure.Kind.connect, Failure.Signal.connect), (.tls, .connect),
      (.timeout, .timeout), (.late, .slow), (.reset, .reset), (.truncated, .truncated),
      (.tooLarge, .tooLarge),
      (.invalidRequest, .unsendable), (.forbidden, .unsendable), (.invalidResponse, .malformed),
      (.other, .reset),
    ])
  func signals(kind: TransferFailure.Kind, signal: Failure.Signal) throws {
    let bench = Bench(.events)
    bench.finish(kind, sent: false)
    let result = try bench.result()
    #expect(result.outcome == .failed)
    #expect(result.failure?.signal == signal)
    #expect(!result.sent)
    #expect(result.httpStatus == nil)
  }

  @Test("a stream has begun with its first text, an answer that comes whole with its head")
  func begun() {
    let stream = Bench(.events)
    #expect(!stream.attempt.hasBegun)
    stream.attempt.head(status: 200, headers: [:])
    #expect(!stream.attempt.hasBegun)
    _ = stream.body(": keep-alive\n\n")
    #expect(!stream.attempt.hasBegun)
    _ = stream.body("data: Hel\n\n")
    #expect(stream.attempt.hasBegun)

    // What was asked for whole, what came whole, and an error.
    let cases = [(Framing.events, false, 200), (.whole, true, 200), (.events, true, 529)]
    for (framing, streams, status) in cases {
      let bench = Bench(framing, streams: streams)
      #expect(!bench.attempt.hasBegun)
      bench.attempt.head(status: status, headers: [:])
      #expect(bench.attempt.hasBegun)
    }
  }

  @Test("a unit beyond the limit ends the transfer as too large")
  func overflow() throws {
    let bench = Bench(.events)
    bench.attempt.head(status: 200, headers: [:])
    let huge = String(repeating: "x", count: (16 << 20) + 1)
    #expect(bench.body("data: " + huge) == .enough)
    bench.finish()
    #expect(try bench.result().failure?.signal == .tooLarge)
  }

  @Test("an address that is not public has a code of its own")
  func forbidden() throws {
    let bench = Bench(.events)
    bench.finish(.forbidden, sent: false)
    #expect(try bench.result().failure?.code == "private_address")
  }

  @Test("of the page of an error no more is read than is looked at", arguments: [200, 500])
  func errorPage(status: Int) {
    let bench = Bench(.whole, streams: false)
    bench.attempt.head(status: status, headers: [:])
    #expect(bench.body(String(repeating: "x", count: 65_535)) == .more)
    #expect(bench.body("x") == (status == 200 ? .more : .enough))
  }

  @Test("what is held of an answer is counted, and of a stream what it says")
  func held() {
    let whole = Bench(.whole, streams: false)
    whole.attempt.head(status: 200, headers: [:])
    _ = whole.body(String(repeating: "x", count: 1_000))
    #expect(whole.attempt.heldBytes == 1_000)

    let stream = Bench(.events)
    stream.attempt.head(status: 200, headers: [:])
    for _ in 0..<1_000 { _ = stream.body("data: 1234\n\n: comment\n") }
    #expect(stream.attempt.heldBytes == 4_000)
    _ = stream.body("data: " + String(repeating: "x", count: 500))
    #expect(stream.attempt.heldBytes == 4_506)
  }

  @Test("a cancelled stream reports what came")
  func cancelled() throws {
    let bench = Bench(.events)
    bench.attempt.head(status: 200, headers: [:])
    _ = bench.body("data: half\n\n")
    _ = bench.desk.end(bench.fence, .cancelled)
    bench.finish(.cancelled)
    let result = try bench.result()
    #expect(result.outcome == .cancelled)
    #expect(result.reply?.output == "half")
    #expect(result.tail == "half")
    #expect(result.failure == nil)
    #expect(result.sent)
  }

  @Test(
    "at a stop, what was not sent goes back as if never claimed; what was is told with a signal")
  func released() throws {
    let unsent = Bench(.events)
    _ = unsent.desk.end(unsent.fence, .released)
    unsent.finish(.cancelled, sent: false, received: 0)
    let back = try unsent.result()
    #expect(back.outcome == .released && back.failure == nil && !back.sent)

    let sent = Bench(.events)
    sent.attempt.head(status: 200, headers: [:])
    _ = sent.body("data: half\n\n")
    _ = sent.desk.end(sent.fence, .released)
    sent.finish(.cancelled)
    let told = try sent.result()
    #expect(told.outcome == .released)
    #expect(told.failure?.signal == .reset)
    #expect(told.reply?.output == "half")
  }

  @Test("an answer that was complete when the worker stopped is a success")
  func completeAtStop() throws {
    let bench = Bench(.whole)
    bench.attempt.head(status: 200, headers: [:])
    _ = bench.body("text END")
    _ = bench.desk.end(bench.fence, .released)
    bench.finish(.cancelled)
    #expect(try bench.result().outcome == .succeeded)
  }

  @Test("a cancel that comes too late changes nothing")
  func tooLate() throws {
    let bench = Bench(.events)
    bench.attempt.head(status: 200, headers: [:])
    _ = bench.body("data: all\n\ndata: END\n\n")
    _ = bench.desk.end(bench.fence, .cancelled)
    bench.finish()
    #expect(try bench.result().outcome == .succeeded)
  }

  @Test("an attempt that belongs to somebody else by now is not reported")
  func dropped() {
    let bench = Bench(.events)
    bench.attempt.head(status: 200, headers: [:])
    _ = bench.body("data: half\n\n")
    _ = bench.desk.end(bench.fence, .dropped)
    bench.finish(.cancelled)
    #expect(!bench.desk.hasResults(for: .all))
    #expect(bench.desk.takeTexts(.first).deltas.isEmpty)
    #expect(bench.desk.isIdle)
  }

  @Test("a worker that was declared dead drops everything and begins anew")
  func reborn() {
    let bench = Bench(.events)
    bench.attempt.head(status: 200, headers: [:])
    _ = bench.body("data: half\n\n")
    var identity = bench.desk.identity
    identity.worker = "w2"
    _ = bench.desk.reborn(as: identity)
    _ = bench.body("data: more\n\n")
    bench.finish(.cancelled)
    let taken = bench.desk.takeResults(for: .all)
    #expect(taken.results.isEmpty && taken.identity.worker == "w2")
    #expect(bench.desk.takeTexts(.first).deltas.isEmpty)
    #expect(bench.desk.isIdle)
  }
}
