import Testing

@testable import HTTP

private func later(_ url: String, _ delay: Int) -> HTTPRequest {
  var request = HTTPRequest(method: "GET", url: url)
  request.delay = delay
  return request
}

@Suite(.timeLimit(.minutes(2))) struct DelayTests {
  @Test("a transfer begins after its delay, and its time counts from when it was asked for")
  func begins() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("here") }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorder = Recorder()
    pool.start(later(server.url, 120), sink: recorder)
    let outcome = await recorder.outcome()
    #expect(outcome.failure == nil && recorder.text == "here")
    #expect(outcome.total >= 120)
  }

  @Test("those that wait for less begin first, and a waiting one holds no other up")
  func order() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("x") }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let (slow, quick, now) = (Recorder(), Recorder(), Recorder())
    let waiting = pool.start(later(server.url, 3_600_000), sink: slow)
    pool.start(later(server.url, 50), sink: quick)
    pool.start(HTTPRequest(method: "GET", url: server.url), sink: now)
    _ = await now.outcome()
    _ = await quick.outcome()
    #expect(slow.outcomeCount == 0)
    pool.cancel(waiting)
    let outcome = await slow.outcome()
    #expect(outcome.failure?.kind == .cancelled && !outcome.requestSent)
    #expect(server.connections <= 2)
  }

  @Test("a stop ends what waits, once")
  func stop() async throws {
    let pool = try TransferPool()
    let recorders = (0..<50).map { _ in Recorder() }
    for (number, recorder) in recorders.enumerated() {
      pool.start(later("http://127.0.0.1:9/", 60_000 + number), sink: recorder)
    }
    pool.stop()
    for recorder in recorders {
      #expect(await recorder.outcome().failure?.kind == .cancelled)
      #expect(recorder.outcomeCount == 1)
    }
  }

  @Test("a time that ends while it waits ends it then, and nothing is sent")
  func timeout() async throws {
    let server = TestServer { _ in }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorder = Recorder()
    var request = later(server.url, 3_600_000)
    request.totalTimeout = 80
    pool.start(request, sink: recorder)
    let outcome = await recorder.outcome()
    #expect(outcome.failure?.kind == .timeout && !outcome.requestSent)
    #expect(outcome.total >= 80 && server.connections == 0)
  }

  @Test("who waits for a first answer is asked while it waits, too", arguments: [false, true])
  func late(hasBegun: Bool) async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("x") }
    }
    defer { server.stop() }
    let pool = try TransferPool()
    defer { pool.stop() }
    let recorder = Recorder(begunAt: hasBegun ? 0 : 1)
    var request = later(server.url, hasBegun ? 150 : 3_600_000)
    request.firstAnswerTimeout = 60
    pool.start(request, sink: recorder)
    let outcome = await recorder.outcome()
    #expect(outcome.failure?.kind == (hasBegun ? nil : .late))
  }

  @Test("the rest of its times is what it begins with")
  func rest() throws {
    var room = WaitingRoom()
    var request = later("http://x", 100)
    request.totalTimeout = 1_000
    request.firstAnswerTimeout = 300
    let sink = Recorder()
    let second: UInt64 = 1_000_000_000
    room.add(TransferID(number: 1), request, sink, since: second)
    #expect(room.due == second + 100_000_000)
    let early = room.next(at: second + 99_999_999)
    #expect(early == nil)
    let due = room.next(at: second + 130_000_000)
    let (_, waiting, verdict) = try #require(due)
    guard case .begin(let rest) = verdict else {
      Issue.record("it must begin")
      return
    }
    #expect(rest.totalTimeout == 870 && rest.firstAnswerTimeout == 170 && rest.delay == 0)
    #expect(waiting.since == second)
    let (next, none, left) = (room.due, room.next(at: .max), room.empty())
    #expect(next == nil && none == nil && left.isEmpty)
  }

  @Test("who was taken out wakes nobody")
  func removed() {
    var room = WaitingRoom()
    let sink = Recorder()
    for number in 1...3 {
      room.add(
        TransferID(number: UInt64(number)), later("http://x", number * 10), sink, since: 0)
    }
    let removed = (0..<2).map { _ in room.remove(TransferID(number: 1)) != nil }
    #expect(removed == [true, false])
    let due = room.due
    #expect(due == 20_000_000)
    let (left, none) = (room.empty(), room.due)
    #expect(left.count == 2 && none == nil)
  }
}
