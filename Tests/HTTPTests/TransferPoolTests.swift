import Dispatch
import Glibc
import Synchronization
import Testing

@testable import HTTP

private func post(_ url: String, _ body: String = "{}") -> HTTPRequest {
  HTTPRequest(
    url: url, headers: [("Content-Type", "application/json")], body: Array(body.utf8))
}

/// Runs one transfer to its end.
private func run(
  _ request: HTTPRequest, _ recorder: Recorder = Recorder()
) async throws -> (TransferOutcome, Recorder) {
  let pool = try TransferPool()
  pool.start(request, sink: recorder)
  let outcome = await recorder.outcome()
  pool.stop()
  #expect(recorder.outcomeCount == 1)
  return (outcome, recorder)
}

@Suite(.timeLimit(.minutes(2))) struct Endings {
  @Test("a complete response is a success, with its head, body and numbers")
  func success() async throws {
    let server = TestServer { connection in
      guard let request = connection.request() else { return }
      connection.respond(
        String(decoding: request.body, as: UTF8.self),
        headers: ["X-One:  a ", "x-one: b", "Empty:"])
    }
    defer { server.stop() }
    let (outcome, recorder) = try await run(post(server.url + "/path?q=1", "hello"))
    #expect(outcome.failure == nil)
    #expect(outcome.requestSent)
    #expect(outcome.bytesSent == 5)
    #expect(outcome.bytesReceived == 5)
    #expect(!outcome.reusedConnection)
    let first = try #require(outcome.firstByte)
    #expect(first > 0 && first <= outcome.total)
    #expect(recorder.text == "hello")
    #expect(recorder.heads.count == 1)
    #expect(recorder.heads[0].status == 200)
    #expect(recorder.heads[0].headers["x-one"] == "b")
    #expect(recorder.heads[0].headers["empty"] == "")
    #expect(recorder.heads[0].headers["content-length"] == "5")
  }

  @Test("the request goes out as it was given, without waiting for 100 Continue")
  func wire() async throws {
    let seen = Mutex<TestConnection.Request?>(nil)
    let server = TestServer { connection in
      let request = connection.request()
      seen.withLock { $0 = request }
      connection.respond("")
    }
    defer { server.stop() }
    let body = String(repeating: "x", count: 3 << 20)
    var request = post(server.url + "/v1/messages", body)
    request.headers += [("X-Empty", ""), ("X-Api-Key", "k: v")]
    let (outcome, _) = try await run(request)
    #expect(outcome.failure == nil && outcome.requestSent && outcome.bytesSent == body.utf8.count)
    let got = try #require(seen.withLock { $0 })
    #expect(got.lines[0] == "POST /v1/messages HTTP/1.1")
    #expect(got.body.count == body.utf8.count)
    let headers = Set(got.lines.dropFirst().map(String.init))
    #expect(headers.contains("X-Api-Key: k: v"))
    #expect(headers.contains("X-Empty:"))
    #expect(headers.contains("Content-Type: application/json"))
    #expect(!headers.contains { $0.lowercased().hasPrefix("expect") })
    #expect(!headers.contains { $0.lowercased().hasPrefix("accept-encoding") })
  }

  @Test("an error status is a complete response")
  func errorStatus() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond("overloaded", status: "529 ", headers: ["Retry-After: 3"])
    }
    defer { server.stop() }
    let (outcome, recorder) = try await run(post(server.url))
    #expect(outcome.failure == nil)
    #expect(recorder.heads[0].status == 529)
    #expect(recorder.heads[0].headers["retry-after"] == "3")
    #expect(recorder.text == "overloaded")
  }

  @Test("a redirect is not followed")
  func redirect() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond("", status: "302 Found", headers: ["Location: /elsewhere"])
      #expect(connection.request() == nil)
    }
    defer { server.stop() }
    let (outcome, recorder) = try await run(post(server.url))
    #expect(outcome.failure == nil)
    #expect(recorder.heads[0].status == 302)
    #expect(server.connections == 1)
  }

  @Test("1xx heads and trailers are not taken for the head")
  func informational() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 100 Continue\r\nX-Early: 1\r\n\r\n")
      connection.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Real: 1\r\n\r\n")
      connection.send("2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n")
    }
    defer { server.stop() }
    let (outcome, recorder) = try await run(post(server.url))
    #expect(outcome.failure == nil)
    #expect(recorder.heads.count == 1)
    #expect(recorder.heads[0].headers["x-real"] == "1")
    #expect(recorder.heads[0].headers["x-early"] == nil)
    #expect(recorder.heads[0].headers["x-trailer"] == nil)
    #expect(recorder.text == "ok")
  }

  @Test("an empty body is a success without a first byte")
  func empty() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond("")
    }
    defer { server.stop() }
    let (outcome, _) = try await run(post(server.url))
    #expect(outcome.failure == nil && outcome.firstByte == nil && outcome.bytesReceived == 0)
  }

  @Test("a refused connection is a connect failure: nothing was sent")
  func refused() async throws {
    let closed = RefusingPort()
    defer { closed.close() }
    let (outcome, recorder) = try await run(post("http://127.0.0.1:\(closed.number)"))
    #expect(outcome.failure?.kind == .connect)
    #expect(!outcome.requestSent && outcome.bytesSent == 0)
    #expect(recorder.heads.isEmpty)
  }

  @Test("a name that does not exist is a connect failure")
  func noSuchName() async throws {
    var request = post("http://no-such-name.invalid/")
    // A resolver without a network may take its time to give up.
    request.connectTimeout = 60_000
    let (outcome, _) = try await run(request)
    #expect(outcome.failure?.kind == .connect)
    #expect(!outcome.requestSent)
  }

  @Test("a closed connection without a response is a reset, and the request counts as sent")
  func closedEarly() async throws {
    let server = TestServer { connection in
      _ = connection.request()
    }
    defer { server.stop() }
    let (outcome, _) = try await run(post(server.url))
    #expect(outcome.failure?.kind == .reset)
    #expect(outcome.requestSent)
    #expect(server.connections == 1)
  }

  @Test("a body shorter than its length is truncated, and what came was given")
  func shortBody() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    }
    defer { server.stop() }
    let (outcome, recorder) = try await run(post(server.url))
    #expect(outcome.failure?.kind == .truncated)
    #expect(recorder.text == "half")
    #expect(outcome.bytesReceived == 4)
  }

  @Test("a chunked body without its last chunk is truncated")
  func shortChunks() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    }
    defer { server.stop() }
    let (outcome, recorder) = try await run(post(server.url))
    #expect(outcome.failure?.kind == .truncated)
    #expect(recorder.text == "half")
  }

  @Test("a reset within the body is a reset")
  func resetWithin() async throws {
    let recorder = Recorder()
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
      // The reset must not overtake the bytes, or the kernel drops them.
      while recorder.bodyCount < 4 { usleep(1_000) }
      connection.reset()
    }
    defer { server.stop() }
    let (outcome, _) = try await run(post(server.url), recorder)
    #expect(outcome.failure?.kind == .reset)
    #expect(recorder.text == "half")
    #expect(outcome.requestSent)
  }

  @Test("bytes that are not HTTP are an invalid response")
  func notHTTP() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("SSH-2.0-OpenSSH_9.2\r\n")
    }
    defer { server.stop() }
    let (outcome, _) = try await run(post(server.url))
    #expect(outcome.failure?.kind == .invalidResponse)
    #expect(outcome.requestSent)
  }

  @Test("plain HTTP where TLS was asked for is a TLS failure: nothing was sent")
  func notTLS() async throws {
    let server = TestServer { connection in
      connection.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    }
    defer { server.stop() }
    let (outcome, _) = try await run(post("https://127.0.0.1:\(server.port)/"))
    #expect(outcome.failure?.kind == .tls)
    #expect(!outcome.requestSent)
  }
}

@Suite(.timeLimit(.minutes(2))) struct Limits {
  @Test("a body beyond its limit stops the transfer", arguments: [true, false])
  func bodyLimit(announced: Bool) async throws {
    let server = TestServer { connection in
      _ = connection.request()
      let framing = announced ? "Content-Length: 2000000" : "Connection: close"
      connection.send("HTTP/1.1 200 OK\r\n\(framing)\r\n\r\n")
      connection.send([UInt8](repeating: 0x78, count: 2_000_000))
    }
    defer { server.stop() }
    var request = post(server.url)
    request.maxResponseBytes = 100_000
    let (outcome, recorder) = try await run(request)
    #expect(outcome.failure?.kind == .tooLarge)
    #expect(recorder.bodyCount <= 100_000)
  }

  @Test("a body of exactly the limit is a success")
  func exactBody() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond(String(repeating: "x", count: 100_000))
    }
    defer { server.stop() }
    var request = post(server.url)
    request.maxResponseBytes = 100_000
    let (outcome, recorder) = try await run(request)
    #expect(outcome.failure == nil)
    #expect(recorder.bodyCount == 100_000)
  }

  @Test("a head beyond its limit stops the transfer")
  func headLimit() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\n")
      for index in 0..<2_000 {
        if !connection.send("X-\(index): \(String(repeating: "y", count: 100))\r\n") { return }
      }
      connection.send("\r\n")
    }
    defer { server.stop() }
    var request = post(server.url)
    request.maxHeaderBytes = 10_000
    let (outcome, recorder) = try await run(request)
    #expect(outcome.failure?.kind == .tooLarge)
    #expect(recorder.heads.isEmpty)
  }

  @Test("a server that accepts and says nothing runs into the total timeout, the request sent")
  func totalTimeout() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      _ = connection.waitForClose()
    }
    defer { server.stop() }
    var request = post(server.url)
    request.totalTimeout = 200
    let (outcome, _) = try await run(request)
    #expect(outcome.failure?.kind == .timeout)
    #expect(outcome.requestSent)
    #expect(outcome.total >= 200)
  }

  @Test("a stream that drips for ever runs into the total timeout, not into the stall timeout")
  func drip() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
      while connection.send("data: x\n\n") { usleep(100_000) }
    }
    defer { server.stop() }
    var request = post(server.url)
    request.stallTimeout = 1_000
    request.totalTimeout = 3_000
    let (outcome, _) = try await run(request)
    #expect(outcome.failure?.kind == .timeout)
    #expect(outcome.total >= 3_000)
    #expect(outcome.bytesReceived > 0)
  }

  @Test("a stream that falls silent runs into the stall timeout")
  func stall() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: x\n\n")
      _ = connection.waitForClose()
    }
    defer { server.stop() }
    var request = post(server.url)
    request.stallTimeout = 1_000
    request.totalTimeout = 60_000
    let (outcome, recorder) = try await run(request)
    #expect(outcome.failure?.kind == .timeout)
    #expect(outcome.total < 60_000)
    #expect(recorder.text == "data: x\n\n")
  }

  @Test("a large body that is taken slowly is no silence")
  func slowUpload() async throws {
    let server = TestServer { connection in
      // More than the buffers of both sides take, over more than the stall timeout.
      var piece = [UInt8](repeating: 0, count: 1 << 20)
      for _ in 0..<30 {
        usleep(300_000)
        var count = 0
        while count < piece.count {
          let got = recv(connection.fd, &piece, piece.count - count, 0)
          if got <= 0 { return }
          count += got
        }
      }
      connection.reset()
    }
    defer { server.stop() }
    var request = post(server.url)
    request.body = [UInt8](repeating: 0x20, count: 60 << 20)
    request.stallTimeout = 5_000
    let (outcome, _) = try await run(request)
    // The head was read with the rest: there is no answer, but not for silence.
    #expect(outcome.failure?.kind != .timeout)
    #expect(outcome.bytesSent > 29 << 20)
    #expect(outcome.total >= 9_000)
  }

  @Test(
    "what came while the thread did not run is neither silence nor late",
    arguments: [\HTTPRequest.stallTimeout, \HTTPRequest.firstAnswerTimeout])
  func pausedThread(_ limit: WritableKeyPath<HTTPRequest, Int> & Sendable) async throws {
    let asked = DispatchSemaphore(value: 0)
    let paused = DispatchSemaphore(value: 0)
    let pause = PausingSink(begins: paused)
    let pausing = TestServer { connection in
      _ = connection.request()
      asked.wait()
      connection.respond("pause")
    }
    defer { pausing.stop() }
    let answering = TestServer { connection in
      _ = connection.request()
      asked.signal()
      paused.wait()
      connection.respond("here")
      usleep(10_500_000)
      pause.ends.signal()
    }
    defer { answering.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    pool.start(post(pausing.url), sink: pause)
    var request = post(answering.url)
    request[keyPath: limit] = 10_000
    let recorder = Recorder()
    pool.start(request, sink: recorder)
    let outcome = await recorder.outcome()
    #expect(outcome.failure == nil)
    #expect(recorder.text == "here")
  }

  @Test("an answer that has not begun in time is given up, and what came of it was read")
  func late() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n: hi\n")
      while connection.send(":\n") { usleep(20_000) }
    }
    defer { server.stop() }
    var request = post(server.url)
    request.firstAnswerTimeout = 5_000  // enough for a head, however busy the machine
    let (outcome, recorder) = try await run(request, Recorder(begunAt: 1 << 20))
    #expect(outcome.failure?.kind == .late)
    #expect(outcome.failure?.message.contains("5000 ms") == true)
    #expect(outcome.requestSent)
    #expect(outcome.total >= 5_000)
    #expect(recorder.heads.count == 1)
    #expect(recorder.text.hasPrefix(": hi\n"))
  }

  @Test("silence is late too, before the head and before the connection")
  func lateAndSilent() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      _ = connection.waitForClose()
    }
    defer { server.stop() }
    var request = post(server.url)
    request.firstAnswerTimeout = 100
    let (outcome, recorder) = try await run(request)
    #expect(outcome.failure?.kind == .late)
    #expect(outcome.requestSent)
    #expect(recorder.heads.isEmpty)

    let mute = TestServer { connection in _ = connection.waitForClose() }
    defer { mute.stop() }
    request = post("https://127.0.0.1:\(mute.port)/")
    request.firstAnswerTimeout = 100
    request.connectTimeout = 60_000
    let (unsent, _) = try await run(request)
    #expect(unsent.failure?.kind == .late)
    #expect(!unsent.requestSent)
  }

  @Test("an answer that has begun in time may take as long as it likes")
  func begunInTime() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst ")
      usleep(6_500_000)
      connection.send("last")
    }
    defer { server.stop() }
    var request = post(server.url)
    request.firstAnswerTimeout = 6_000  // hundreds of tests beside this one share two processors
    let (outcome, recorder) = try await run(request)
    #expect(outcome.failure == nil)
    #expect(outcome.total >= 6_000)
    #expect(recorder.text == "first last")
  }

  @Test("many of one pool each have their own time, whatever the order of their starts")
  func manyDeadlines() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      _ = connection.waitForClose()
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let budgets = [400, 50, 300, 0, 100, 200, 60_000]
    let recorders = budgets.map { _ in Recorder() }
    let ids = zip(budgets, recorders).map { budget, recorder in
      var request = post(server.url)
      request.firstAnswerTimeout = budget
      return pool.start(request, sink: recorder)
    }
    for (budget, recorder) in zip(budgets, recorders) where (1...400).contains(budget) {
      let outcome = await recorder.outcome()
      #expect(outcome.failure?.kind == .late)
      #expect(outcome.total >= Double(budget))
    }
    for (id, recorder) in zip(ids, recorders) where recorder.outcomeCount == 0 { pool.cancel(id) }
    #expect(await recorders[3].outcome().failure?.kind == .cancelled)
    #expect(await recorders[6].outcome().failure?.kind == .cancelled)
  }

  @Test("a handshake that never ends runs into the connect timeout: nothing was sent")
  func connectTimeout() async throws {
    let server = TestServer { connection in _ = connection.waitForClose() }
    defer { server.stop() }
    var request = post("https://127.0.0.1:\(server.port)/")
    request.connectTimeout = 200
    request.totalTimeout = 60_000
    let (outcome, _) = try await run(request)
    #expect(outcome.failure?.kind == .timeout)
    #expect(!outcome.requestSent)
  }

  @Test(
    "what could inject a header, or is no HTTP address, is not sent",
    arguments: [
      ("X", "5ecret\r\nY: b"), ("X", "5ecret\nb"), ("X", "5ecret\rb"), ("X", "5ecret\u{0}b"),
      ("X: Y", "5ecret"), ("X\r\nY", "5ecret"), ("", "5ecret"), ("X Y", "5ecret"),
    ])
  func injection(name: String, value: String) async throws {
    let server = TestServer { _ in }
    defer { server.stop() }
    var request = post(server.url)
    request.headers.append((name, value))
    let (outcome, _) = try await run(request)
    #expect(outcome.failure?.kind == .invalidRequest)
    #expect(!outcome.requestSent)
    #expect(server.connections == 0)
    #expect(outcome.failure?.message.contains("5ecret") == false)
  }

  @Test(
    "only http and https addresses are taken",
    arguments: [
      "file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "127.0.0.1", "",
      "http://127.0.0.1/a b", "http://127.0.0.1/\r\nX: y", "http://[::1", "http://",
    ])
  func addresses(url: String) async throws {
    let (outcome, _) = try await run(post(url))
    #expect(outcome.failure?.kind == .invalidRequest)
    #expect(!outcome.requestSent)
  }

  @Test("a method that is no token is not sent")
  func method() async throws {
    var request = post("http://127.0.0.1:1/")
    request.method = "POST / HTTP/1.1\r\nX:"
    let (outcome, _) = try await run(request)
    #expect(outcome.failure?.kind == .invalidRequest)
  }
}
