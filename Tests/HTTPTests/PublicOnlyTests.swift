import Synchronization
import Testing

@testable import HTTP

private func post(_ url: String, publicOnly: Bool = true) -> HTTPRequest {
  var request = HTTPRequest(
    url: url, headers: [("Authorization", "Bearer 5ecret")], body: Array("{}".utf8))
  request.publicOnly = publicOnly
  request.connectTimeout = 60_000
  return request
}

private func run(_ pool: TransferPool, _ request: HTTPRequest) async -> (TransferOutcome, Recorder)
{
  let recorder = Recorder()
  pool.start(request, sink: recorder)
  return (await recorder.outcome(), recorder)
}

private func pool(
  _ change: (inout TransferPool.Configuration) -> Void = { _ in }
) throws -> TransferPool {
  var configuration = TransferPool.Configuration()
  change(&configuration)
  return try TransferPool(configuration)
}

private func expectForbidden(_ outcome: TransferOutcome) {
  #expect(outcome.failure?.kind == .forbidden)
  #expect(!outcome.requestSent)
  #expect(outcome.bytesSent == 0 && outcome.bytesReceived == 0)
  #expect(outcome.failure?.message.contains("127") == false)
}

@Suite(.timeLimit(.minutes(2))) struct PublicOnly {
  @Test(
    "no spelling of this machine's address is connected to",
    arguments: [
      "127.0.0.1", "localhost", "LOCALHOST", "127.1", "127.0.1", "2130706433",
      "0x7f000001", "0x7F.0.0.1", "0177.0.0.1", "017700000001", "127.255.255.254", "0.0.0.0", "0",
      "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]",
      "[64:ff9b::127.0.0.1]", "user:pass@127.0.0.1", "api.openai.com@127.0.0.1",
    ])
  func spellings(host: String) async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond("inside")
    }
    defer { server.stop() }
    let pool = try pool()
    defer { pool.stop() }
    for scheme in ["http", "https"] {
      let (outcome, recorder) = await run(pool, post("\(scheme)://\(host):\(server.port)/v1"))
      expectForbidden(outcome)
      #expect(recorder.heads.isEmpty)
    }
    #expect(server.connections == 0)
  }

  @Test(
    "no private address is connected to, nor one that gives a machine's credentials",
    arguments: [
      "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.0.1/", "https://100.64.0.1/",
      "http://169.254.169.254/latest/meta-data/", "http://0xa9fea9fe/", "http://2852039166/",
      "http://[fd00:ec2::254]/", "http://[fe80::1]/", "http://[fe80::1%25lo]/", "http://[fc00::1]/",
      "http://[2002:a9fe:a9fe::]/", "http://[::ffff:169.254.169.254]/", "http://224.0.0.1/",
      "http://255.255.255.255/", "http://168.63.129.16/",
    ])
  func privateNetworks(url: String) async throws {
    let pool = try pool()
    defer { pool.stop() }
    expectForbidden(await run(pool, post(url)).0)
  }

  @Test("a name that leads here is not connected to, whatever it led to before")
  func rebinding() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("inside") }
    }
    defer { server.stop() }
    let pool = try pool { $0.resolved = ["rebound.test:\(server.port):127.0.0.1"] }
    defer { pool.stop() }
    expectForbidden(await run(pool, post("http://rebound.test:\(server.port)/")).0)
    #expect(server.connections == 0)
  }

  @Test("all addresses of a name are closed: the failure is not that of a connection")
  func severalAddresses() async throws {
    let server = TestServer { connection in connection.respond("inside") }
    defer { server.stop() }
    let pool = try pool {
      $0.resolved = ["several.test:\(server.port):127.0.0.1,10.0.0.1,::1,169.254.169.254"]
    }
    defer { pool.stop() }
    expectForbidden(await run(pool, post("http://several.test:\(server.port)/")).0)
    #expect(server.connections == 0)
  }

  @Test("of a name with open and closed addresses only the open ones are tried")
  func mixedAddresses() async throws {
    let server = TestServer { connection in
      _ = connection.request()
      connection.respond("outside")
    }
    defer { server.stop() }
    // Nothing listens on the allowed one but the server; the others would be first.
    let pool = try pool {
      $0.resolved = ["mixed.test:\(server.port):10.0.0.1,127.0.0.1"]
      $0.allowedNetworks = [IPNetwork("127.0.0.1")].compactMap(\.self)
    }
    defer { pool.stop() }
    let (outcome, recorder) = await run(pool, post("http://mixed.test:\(server.port)/"))
    #expect(outcome.failure == nil)
    #expect(recorder.text == "outside")
  }

  @Test("an open address that refuses is a failed connection, as of any provider")
  func refused() async throws {
    let closed = RefusingPort()
    defer { closed.close() }
    let pool = try pool {
      $0.resolved = ["mixed.test:\(closed.number):10.0.0.1,127.0.0.1"]
      $0.allowedNetworks = [IPNetwork("127.0.0.0/8")].compactMap(\.self)
    }
    defer { pool.stop() }
    let (outcome, _) = await run(pool, post("http://mixed.test:\(closed.number)/"))
    #expect(outcome.failure?.kind == .connect)
    #expect(!outcome.requestSent)
  }

  @Test("a connection that somebody else opened to a closed address is not used")
  func keptConnection() async throws {
    let requests = Atomic<Int>(0)
    let server = TestServer { connection in
      while connection.request() != nil {
        requests.add(1, ordering: .relaxed)
        connection.respond("inside")
      }
    }
    defer { server.stop() }
    let pool = try pool { $0.resolved = ["shared.test:\(server.port):127.0.0.1"] }
    defer { pool.stop() }
    for host in ["127.0.0.1", "shared.test"] {
      let url = "http://\(host):\(server.port)/"
      #expect(await run(pool, post(url, publicOnly: false)).0.failure == nil)
      let before = requests.load(ordering: .relaxed)
      for _ in 0..<3 { expectForbidden(await run(pool, post(url)).0) }
      #expect(requests.load(ordering: .relaxed) == before)
      // And the other way round: the refusals do not spoil what is not bound by them.
      #expect(await run(pool, post(url, publicOnly: false)).0.failure == nil)
    }
  }

  @Test("networks that are allowed are connected to, and their connections used again")
  func allowed() async throws {
    let server = TestServer { connection in
      while connection.request() != nil { connection.respond("gateway") }
    }
    defer { server.stop() }
    let pool = try pool { $0.allowedNetworks = [IPNetwork("127.0.0.0/8")].compactMap(\.self) }
    defer { pool.stop() }
    for host in ["127.0.0.1", "localhost", "127.0.0.1"] {
      let (outcome, recorder) = await run(pool, post("http://\(host):\(server.port)/"))
      #expect(outcome.failure == nil)
      #expect(recorder.text == "gateway")
    }
    // What is not in them stays closed.
    expectForbidden(await run(pool, post("http://10.0.0.1/")).0)
    expectForbidden(await run(pool, post("http://[::1]:\(server.port)/")).0)
  }

  @Test("a redirect to a closed address is the answer, and nobody goes there")
  func redirect() async throws {
    let inside = TestServer { connection in
      _ = connection.request()
      connection.respond("inside")
    }
    defer { inside.stop() }
    let place = "http://127.0.0.1:\(inside.port)/"
    for status in [301, 302, 303, 307, 308] {
      let server = TestServer { connection in
        _ = connection.request()
        connection.respond("", status: "\(status) Moved", headers: ["Location: \(place)"])
      }
      defer { server.stop() }
      let pool = try pool { $0.allowedNetworks = [IPNetwork("127.0.0.1")].compactMap(\.self) }
      defer { pool.stop() }
      let (outcome, recorder) = await run(pool, post(server.url))
      #expect(outcome.failure == nil)
      #expect(recorder.heads.map(\.status) == [status])
    }
    #expect(inside.connections == 0)
  }

  @Test("a proxy is asked for ordinary requests, and never for public ones")
  func proxy() async throws {
    let seen = Mutex<[String]>([])
    let proxy = TestServer { connection in
      while let request = connection.request() {
        seen.withLock { $0.append(String(request.lines[0])) }
        connection.respond("through the proxy")
      }
    }
    defer { proxy.stop() }
    let pool = try pool { $0.proxy = proxy.url }
    defer { pool.stop() }
    let (through, recorder) = await run(pool, post("http://10.9.8.7/x", publicOnly: false))
    #expect(through.failure == nil)
    #expect(recorder.text == "through the proxy")
    expectForbidden(await run(pool, post("http://10.9.8.7/x")).0)
    #expect(seen.withLock { $0 } == ["POST http://10.9.8.7/x HTTP/1.1"])
  }

  @Test(
    "what goes wrong with a proxy says neither its name nor its password",
    arguments: [
      "http://ann:s3cret#x@proxy.invalid:3128", "ftp://ann:s3cret@proxy.invalid:3128",
      "http://ann:s3cret@proxy.invalid:3128", "http://ann:s3cret@127.0.0.1:9",
    ])
  func trouble(proxy: String) async throws {
    let pool = try pool { $0.proxy = proxy }
    defer { pool.stop() }
    let (outcome, _) = await run(pool, post("http://10.9.8.7/x", publicOnly: false))
    let failure = try #require(outcome.failure)
    #expect(failure.kind == .connect)
    for word in ["ann", "s3cret", "invalid", "127.0.0.1"] {
      #expect(!failure.message.contains(word), "\(failure.message)")
    }
  }
}
