import Glibc
import Synchronization
import Testing

@testable import HTTP

private func post(_ url: String, _ body: String = "{}") -> HTTPRequest {
  HTTPRequest(url: url, body: Array(body.utf8))
}

@Suite(.timeLimit(.minutes(2))) struct ConnectionsAndThreads {
  @Test("connections are kept and used again")
  func keepAlive() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("ok") }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    for index in 0..<20 {
      let recorder = Recorder()
      pool.start(post(server.url), sink: recorder)
      let outcome = await recorder.outcome()
      #expect(outcome.failure == nil)
      #expect(outcome.reusedConnection == (index > 0))
      #expect(recorder.text == "ok")
    }
    #expect(server.connections == 1)
  }

  @Test("a request whose kept connection dies is not sent again", arguments: [true, false])
  func noReplay(withReset: Bool) async throws {
    let requests = Atomic<Int>(0)
    let server = TestServer { connection in
      guard connection.request() != nil else { return }
      requests.add(1, ordering: .relaxed)
      if connection.number > 1 { return connection.respond("replayed") }
      connection.respond("first")
      guard connection.request() != nil else { return }
      requests.add(1, ordering: .relaxed)
      if withReset { connection.reset() }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let first = Recorder()
    pool.start(post(server.url), sink: first)
    #expect(await first.outcome().failure == nil)
    let second = Recorder()
    pool.start(post(server.url, String(repeating: "x", count: 1_000)), sink: second)
    let outcome = await second.outcome()
    #expect(outcome.failure?.kind == .reset)
    #expect(outcome.requestSent)
    #expect(second.text == "")
    #expect(requests.load(ordering: .relaxed) == 2)
  }

  @Test("a connection that the server closed while idle is not used: the request succeeds")
  func closedWhileIdle() async throws {
    let closed = Latch()
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond("ok")
      connection.close()
      closed.open()
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    for _ in 0..<3 {
      let recorder = Recorder()
      pool.start(post(server.url), sink: recorder)
      #expect(await recorder.outcome().failure == nil)
      await closed.wait()
    }
  }

  @Test("a sink that has enough is finished at once, and the connection is used again")
  func enough() async throws {
    let server = TestServer { connection in
      while connection.request() != nil {
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.send("e\r\ndata: [DONE]\n\n\r\n")
        if connection.number == 1 { connection.send("0\r\n\r\n") }
      }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorder = Recorder(enoughAt: "[DONE]\n\n")
    pool.start(post(server.url), sink: recorder)
    let outcome = await recorder.outcome()
    #expect(outcome.failure == nil)
    #expect(outcome.requestSent)
    #expect(outcome.bytesReceived == 14)
  }

  @Test("a stream that never closes after its sink has enough is given up")
  func lingering() async throws {
    let closed = Latch()
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[DONE]")
      if connection.waitForClose() { closed.open() }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorder = Recorder(enoughAt: "[DONE]")
    let id = pool.start(post(server.url), sink: recorder)
    #expect(await recorder.outcome().failure == nil)
    await closed.wait()
    pool.cancel(id)
    #expect(recorder.outcomeCount == 1)
  }

  @Test("cancelling from any thread closes the connection and tells the sink once")
  func cancel() async throws {
    let closed = Atomic<Int>(0)
    let allClosed = Latch()
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nstarted")
      if connection.waitForClose(), closed.add(1, ordering: .relaxed).newValue == 50 {
        allClosed.open()
      }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorders = (0..<50).map { _ in Recorder() }
    let ids = recorders.map { pool.start(post(server.url), sink: $0) }
    for recorder in recorders { await recorder.bytes(7) }
    await withTaskGroup { group in
      for id in ids + ids { group.addTask { pool.cancel(id) } }
    }
    for recorder in recorders {
      let outcome = await recorder.outcome()
      #expect(outcome.failure?.kind == .cancelled)
      #expect(outcome.requestSent)
      #expect(recorder.text == "started")
    }
    await allClosed.wait()
    #expect(recorders.allSatisfy { $0.outcomeCount == 1 })
  }

  @Test("cancelling before anything began is a cancel, and afterwards nothing")
  func cancelRaces() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("ok") }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    for _ in 0..<300 {
      let recorder = Recorder()
      let id = pool.start(post(server.url), sink: recorder)
      pool.cancel(id)
      let outcome = await recorder.outcome()
      #expect(outcome.failure == nil || outcome.failure?.kind == .cancelled)
      pool.cancel(id)
    }
  }

  @Test("cancelling a transfer whose name lookup hangs does not hold up the others")
  func cancelDuringLookup() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("ok") }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let looking = Recorder()
    let id = pool.start(post("http://some-name.invalid/"), sink: looking)
    pool.cancel(id)
    let other = Recorder()
    pool.start(post(server.url), sink: other)
    #expect(await other.outcome().failure == nil)
    #expect(await looking.outcome().failure != nil)
  }

  @Test("stopping cancels what runs; starting afterwards is refused")
  func stop() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nstarted")
      _ = connection.waitForClose()
    }
    defer { server.stop() }
    let pool = try TransferPool()
    let recorder = Recorder()
    pool.start(post(server.url), sink: recorder)
    await recorder.bytes(1)
    pool.stop()
    #expect(recorder.outcomeCount == 1)
    #expect(await recorder.outcome().failure?.kind == .cancelled)
    let late = Recorder()
    pool.start(post(server.url), sink: late)
    #expect(await late.outcome().failure?.kind == .cancelled)
    pool.stop()
  }

  @Test("a sink may start the next transfer from within its own end")
  func chain() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("ok") }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let chain = Chain(pool: pool, request: post(server.url), left: 500)
    chain.begin()
    await chain.done.wait()
    #expect(server.connections == 1)
  }

  @Test("a thousand streams at once each get their own text, whole")
  func thousandStreams() async throws {
    let count = 1_000
    let everyoneIsIn = Atomic<Int>(0)
    let server = TestServer { connection in
      guard let request = connection.request() else { return }
      let name = String(decoding: request.body, as: UTF8.self)
      connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
      everyoneIsIn.add(1, ordering: .relaxed)
      while everyoneIsIn.load(ordering: .relaxed) < count { usleep(2_000) }
      for index in 0..<20 {
        let event = "data: \(name)-\(index)\n\n"
        connection.send(String(event.utf8.count, radix: 16) + "\r\n" + event + "\r\n")
      }
      connection.send("0\r\n\r\n")
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorders = (0..<count).map { index in
      let recorder = Recorder()
      pool.start(post(server.url, "s\(index)"), sink: recorder)
      return recorder
    }
    for (index, recorder) in recorders.enumerated() {
      let outcome = await recorder.outcome()
      #expect(outcome.failure == nil)
      #expect(recorder.text == (0..<20).map { "data: s\(index)-\($0)\n\n" }.joined())
    }
    #expect(server.connections == count)
  }
}

/// Starts its next transfer when one ends.
private final class Chain: TransferSink {
  let done = Latch()
  private let pool: TransferPool
  private let request: HTTPRequest
  private let left: Atomic<Int>

  init(pool: TransferPool, request: HTTPRequest, left: Int) {
    self.pool = pool
    self.request = request
    self.left = Atomic(left)
  }

  func begin() { pool.start(request, sink: self) }
  func head(status: Int, headers: [String: String]) {}
  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict { .more }
  var hasBegun: Bool { true }
  func finished(_ outcome: TransferOutcome) {
    #expect(outcome.failure == nil)
    if left.subtract(1, ordering: .relaxed).newValue == 0 { done.open() } else { begin() }
  }
}
