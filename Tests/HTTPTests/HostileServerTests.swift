import Dispatch
import Glibc
import Synchronization
import Testing

@testable import HTTP

private func post(_ url: String = "") -> HTTPRequest {
  HTTPRequest(url: url, body: Array("{}".utf8))
}

/// Plays a script against one transfer, whose address is that of the script.
private func meet(
  _ request: HTTPRequest = post(), _ script: @escaping @Sendable (TestConnection) -> Void
) async throws -> (TransferOutcome, Recorder) {
  var request = request
  let recorder = Recorder()
  let server = TestServer { connection in
    _ = connection.request()
    script(connection)
  }
  defer { server.stop() }
  let pool = try TransferPool()
  defer { pool.stop() }
  request.url = server.url
  pool.start(request, sink: recorder)
  let outcome = await recorder.outcome()
  #expect(recorder.outcomeCount == 1)
  return (outcome, recorder)
}

/// Sends until the other side has had enough. The bound is far beyond every limit here.
private func flood(_ connection: TestConnection, _ piece: String) {
  let piece = Array(piece.utf8)
  var left = 256 << 20
  while left > 0, connection.send(piece) { left -= piece.count }
}

@Suite(.timeLimit(.minutes(2))) struct HostileServers {
  // MARK: Compression

  @Test(
    "a compressed body is refused before a byte of it is looked at",
    arguments: [
      "Content-Encoding: gzip", "content-encoding:deflate", "Content-Encoding: br",
      "Content-Encoding: zstd", "Content-Encoding: x-gzip", "Content-Encoding: identity, gzip",
      "Content-Encoding: gzip, gzip, gzip, gzip, gzip, gzip", "Content-Encoding: what-ever",
      "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: gzip", "Transfer-Encoding: deflate",
    ])
  func compressed(header: String) async throws {
    let (outcome, recorder) = try await meet { connection in
      connection.send("HTTP/1.1 200 OK\r\n\(header)\r\nConnection: close\r\n\r\n")
      // A member of gzip that expands a thousandfold would begin like this.
      flood(connection, "\u{1f}" + String(repeating: "z", count: 65_535))
    }
    #expect(outcome.failure?.kind == .invalidResponse)
    #expect(outcome.failure?.message.contains("compressed") == true)
    #expect(recorder.heads.isEmpty && recorder.bodyCount == 0)
  }

  @Test("an encoding that is none is no reason", arguments: ["identity", "Identity", ""])
  func identity(coding: String) async throws {
    let (outcome, recorder) = try await meet { connection in
      connection.respond("plain", headers: ["Content-Encoding: \(coding)"])
    }
    #expect(outcome.failure == nil)
    #expect(recorder.text == "plain")
  }

  // MARK: Heads

  @Test("a head of exactly the limit is read, one byte more is not", arguments: [0, 1])
  func headBytes(over: Int) async throws {
    let limit = 10_000
    var request = post()
    request.maxHeaderBytes = limit
    let (outcome, recorder) = try await meet(request) { connection in
      let start = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Long: "
      let padding = String(repeating: "y", count: limit + over - start.utf8.count - 4)
      connection.send(start + padding + "\r\n\r\nok")
    }
    #expect(outcome.failure?.kind == (over == 0 ? nil : .tooLarge))
    #expect(recorder.text == (over == 0 ? "ok" : ""))
  }

  @Test("a head with as many fields as allowed is read, one more is not", arguments: [0, 1])
  func headFields(over: Int) async throws {
    var request = post()
    request.maxHeaderFields = 100
    let (outcome, recorder) = try await meet(request) { connection in
      let more = (0..<(99 + over)).map { "X-\($0): y" }
      connection.respond("ok", headers: more)
    }
    #expect(outcome.failure?.kind == (over == 0 ? nil : .tooLarge))
    #expect(recorder.text == (over == 0 ? "ok" : ""))
  }

  @Test(
    "a head that never ends is given up",
    arguments: [
      // Fields, one field, the status line, and folded lines.
      ("HTTP/1.1 200 OK\r\n", "X-Header: value\r\n"),
      ("HTTP/1.1 200 OK\r\nX-Endless: ", "yyyyyyyy"),
      ("HTTP/1.1 200 ", "OK OK OK "), ("HTTP/1.1 200 OK\r\nX-Folded: y\r\n", " folded\r\n"),
      // Heads before the head.
      ("", "HTTP/1.1 100 Continue\r\n\r\n"), ("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
      ("", "HTTP/1.1 199 \r\nX-Y: z\r\n\r\n"),
    ])
  func endlessHead(start: String, piece: String) async throws {
    let (outcome, recorder) = try await meet { connection in
      connection.send(start)
      flood(connection, String(repeating: piece, count: 1_000))
    }
    #expect(outcome.failure?.kind == .tooLarge)
    #expect(recorder.heads.isEmpty)
  }

  @Test("another protocol is not talked")
  func upgrade() async throws {
    let (outcome, recorder) = try await meet { connection in
      connection.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
      flood(connection, String(repeating: "\0", count: 65_536))
    }
    #expect(outcome.failure?.kind == .invalidResponse)
    #expect(recorder.heads.isEmpty && recorder.bodyCount == 0)
  }

  @Test("a head that drips is ended by the time of the whole")
  func slowHead() async throws {
    var request = post()
    request.totalTimeout = 1_500
    request.stallTimeout = 60_000
    let (outcome, recorder) = try await meet(request) { connection in
      connection.send("HTTP/1.1 200 OK\r\n")
      while connection.send("X-Slow: 1\r\n") { usleep(50_000) }
    }
    #expect(outcome.failure?.kind == .timeout)
    #expect(outcome.requestSent)
    #expect(recorder.heads.isEmpty)
  }

  @Test("trailers count as head", arguments: [true, false])
  func trailers(endless: Bool) async throws {
    let (outcome, recorder) = try await meet { connection in
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n")
      if endless {
        flood(connection, String(repeating: "X-Trailer: yyyyyyyyyyyyyyyyyyyyyy\r\n", count: 1_000))
      } else {
        connection.send("X-Trailer: 1\r\nContent-Encoding: gzip\r\n\r\n")
      }
    }
    #expect(outcome.failure?.kind == (endless ? .tooLarge : nil))
    #expect(recorder.text == "ok")
    #expect(recorder.heads.first?.headers["content-encoding"] == nil)
  }

  @Test("one trailer that never ends is given up")
  func endlessTrailer() async throws {
    let (outcome, _) = try await meet { connection in
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: ")
      flood(connection, String(repeating: "y", count: 65_536))
    }
    #expect(outcome.failure != nil)
  }

  @Test(
    "what is not HTTP/1 is an invalid response",
    arguments: [
      "{\"choices\":[]}", "<html>", "HTTP/0.9 200 OK\r\n\r\n", "HTTP/3.7 200 OK\r\n\r\n",
      "\r\n\r\n\r\n",
      "HTTP/1.1 OK\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 -20 OK\r\n\r\n",
      "\0\0\0\0\0\0\0\0",
      "ICY 200 OK\r\n\r\n", "RTSP/1.0 200 OK\r\n\r\n",
    ])
  func notHTTP(text: String) async throws {
    let (outcome, recorder) = try await meet { connection in connection.send(text) }
    #expect(outcome.failure != nil)
    #expect(recorder.heads.isEmpty && recorder.bodyCount == 0)
  }

  @Test(
    "lengths that are none, or contradict each other, are no success",
    arguments: [
      "Content-Length: -1", "Content-Length: 99999999999999999999999", "Content-Length: 5x",
      "Content-Length: 2\r\nContent-Length: 200",
    ])
  func lengths(header: String) async throws {
    let (outcome, recorder) = try await meet { connection in
      connection.send("HTTP/1.1 200 OK\r\n\(header)\r\n\r\nok")
      connection.close()
    }
    #expect(outcome.failure != nil || recorder.text == "ok")
    #expect(recorder.bodyCount <= 2)
  }

  @Test(
    "chunks whose sizes are none are no success",
    arguments: [
      "zz\r\n", "-5\r\nhello\r\n", "ffffffffffffffffffff\r\nx", "\r\n\r\n", "5 hello\r\n",
    ])
  func chunks(text: String) async throws {
    let (outcome, _) = try await meet { connection in
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + text)
    }
    #expect(outcome.failure != nil)
  }

  // MARK: Bodies

  @Test("a body that never ends is given up", arguments: ["chunked", "close", "length"])
  func endlessBody(framing: String) async throws {
    let limit = 1 << 20
    var request = post()
    request.maxResponseBytes = limit
    let (outcome, recorder) = try await meet(request) { connection in
      let piece = String(repeating: "data: x\n\n", count: 1_000)
      switch framing {
      case "chunked":
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        flood(connection, String(piece.utf8.count, radix: 16) + "\r\n" + piece + "\r\n")
      case "close":
        connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        flood(connection, piece)
      default:
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000000\r\n\r\n")
        flood(connection, piece)
      }
    }
    #expect(outcome.failure?.kind == .tooLarge)
    #expect(recorder.bodyCount <= limit)
  }

  @Test("extensions of chunks that never end are given up, or cost nothing")
  func chunkExtensions() async throws {
    var request = post()
    request.totalTimeout = 3_000
    let (outcome, recorder) = try await meet(request) { connection in
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=")
      while connection.send(String(repeating: "y", count: 1_000)) { usleep(1_000) }
    }
    #expect(outcome.failure != nil)
    #expect(recorder.bodyCount == 0)
  }

  @Test("answers that together hold too much memory fail, the largest first; the others go on")
  func memory() async throws {
    let server = TestServer { connection in
      guard let request = connection.request() else { return }
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
      if request.head.hasPrefix("POST /flood") {
        flood(connection, String(repeating: "x", count: 65_536))
      } else {
        connection.send(String(repeating: "y", count: 100_000))
      }
    }
    defer { server.stop() }
    var configuration = TransferPool.Configuration()
    configuration.answerMemory = 8 << 20
    let pool = try TransferPool(configuration)
    defer { pool.stop() }
    let floods = (0..<4).map { _ in Holder() }
    let others = (0..<8).map { _ in Holder() }
    for sink in floods { pool.start(post(server.url + "/flood"), sink: sink) }
    for sink in others { pool.start(post(server.url + "/other"), sink: sink) }
    for sink in others {
      #expect(await sink.recorder.outcome().failure == nil)
      #expect(sink.heldBytes == 100_000)
    }
    for sink in floods {
      #expect(await sink.recorder.outcome().failure?.kind == .tooLarge)
      #expect(sink.heldBytes <= 9 << 20)
    }
    // The memory is there again.
    let last = Holder()
    pool.start(post(server.url + "/other"), sink: last)
    #expect(await last.recorder.outcome().failure == nil)
  }

  @Test("a sink may hold as much as allowed, and no byte more", arguments: [0, 1])
  func held(over: Int) async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond(String(repeating: "x", count: 50_000 + over))
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    var request = post(server.url)
    request.maxHeldBytes = 50_000
    let sink = Holder()
    pool.start(request, sink: sink)
    #expect(await sink.recorder.outcome().failure?.kind == (over == 0 ? nil : .tooLarge))
  }

  // MARK: What a server may plant

  @Test("cookies, and hints where to go the next time, are forgotten")
  func planted() async throws {
    let heads = Mutex<[String]>([])
    let server = TestServer { connection in
      while let request = connection.request() {
        heads.withLock { $0.append(request.head.lowercased()) }
        connection.respond(
          "ok",
          headers: [
            "Set-Cookie: session=1; Path=/", "Alt-Svc: h2=\"127.0.0.1:1\"; ma=3600",
            "Strict-Transport-Security: max-age=31536000; includeSubDomains",
            "WWW-Authenticate: Basic", "Link: </x>; rel=preload",
            "Refresh: 0; url=http://127.0.0.1:1/",
          ])
      }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    for host in ["127.0.0.1", "localhost", "localhost"] {
      let recorder = Recorder()
      pool.start(post("http://\(host):\(server.port)/"), sink: recorder)
      #expect(await recorder.outcome().failure == nil)
    }
    let seen = heads.withLock { $0 }
    #expect(seen.count == 3)
    for head in seen {
      #expect(!head.contains("cookie") && !head.contains("authorization"))
    }
  }

  @Test("a server that asks for credentials gets none")
  func challenge() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond(
        "", status: "401 Unauthorized", headers: ["WWW-Authenticate: Negotiate, NTLM, Basic"])
      #expect(connection.request() == nil)
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorder = Recorder()
    pool.start(post(server.url), sink: recorder)
    #expect(await recorder.outcome().failure == nil)
    #expect(recorder.heads.first?.status == 401)
    #expect(server.connections == 1)
  }

  enum SecondAnswer: CaseIterable { case withTheFirst, behindIt, onceItIsIdle }

  /// What comes after the next request was sent is its answer, whoever wrote it when; so the next
  /// one waits until both have come.
  @Test(
    "a second answer on a connection is not taken for that of the next request",
    arguments: SecondAnswer.allCases)
  func tooManyAnswers(comes: SecondAnswer) async throws {
    let isIdle = DispatchSemaphore(value: 0)
    let delivered = Latch()
    let server = TestServer { connection in
      if connection.number == 1 {
        _ = connection.request()
        let first = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"
        let forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
        if comes == .withTheFirst {
          connection.send(first + forged)
        } else {
          connection.send(first)
          if comes == .onceItIsIdle { isIdle.wait() }
          connection.send(forged)
        }
        connection.waitUntilDelivered()
        delivered.open()
        _ = connection.waitForClose()
      } else {
        while connection.request() != nil { connection.respond("second") }
      }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let first = Recorder()
    pool.start(post(server.url), sink: first)
    #expect(await first.outcome().failure == nil)
    #expect(first.text == "first")
    isIdle.signal()
    await delivered.wait()
    let second = Recorder()
    pool.start(post(server.url), sink: second)
    #expect(await second.outcome().failure == nil)
    #expect(second.text == "second")
  }

  @Test("a request that was sent is not sent again, whatever lies on the connection that is left")
  func sentOnce() async throws {
    let connections = Mutex<[TestConnection]>([])
    let requests = Atomic<Int>(0)
    // Neither is answered before there are two.
    let gate = DispatchSemaphore(value: 0)
    let server = TestServer { connection in
      let count = connections.withLock {
        $0.append(connection)
        return $0.count
      }
      if count > 1 { for _ in 1...2 { gate.signal() } }
      _ = connection.request()
      gate.wait()
      connection.respond("first")
      guard connection.request() != nil else { return }
      requests.add(1, ordering: .relaxed)
      // libcurl would send it again, on the other one.
      for other in connections.withLock({ $0 }) where other.number != connection.number {
        other.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        other.waitUntilDelivered()
      }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorders = [Recorder(), Recorder()]
    for recorder in recorders { pool.start(post(server.url), sink: recorder) }
    for recorder in recorders { #expect(await recorder.outcome().failure == nil) }
    let last = Recorder()
    pool.start(post(server.url), sink: last)
    let outcome = await last.outcome()
    #expect(outcome.failure?.kind == .reset)
    #expect(outcome.requestSent)
    #expect(requests.load(ordering: .relaxed) == 1 && server.connections == 2)
  }
}

/// Keeps what it gets, and says so.
private final class Holder: TransferSink {
  let recorder = Recorder()
  func head(status: Int, headers: [String: String]) {
    recorder.head(status: status, headers: headers)
  }
  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict { recorder.body(bytes) }
  var heldBytes: Int { recorder.bodyCount }
  var hasBegun: Bool { true }
  func finished(_ outcome: TransferOutcome) { recorder.finished(outcome) }
}
