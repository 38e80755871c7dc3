import Foundation
import Testing

@testable import ProviderSimulator

@Suite("HTTP and the providers' rules")
struct ProtocolTests {
  private func object(_ response: RawResponse?) throws -> [String: Any] {
    let body = try #require(response?.body)
    return try #require(try JSONSerialization.jsonObject(with: Data(body.utf8)) as? [String: Any])
  }

  private func errorMessage(_ response: RawResponse?) throws -> String {
    let error = try #require(try object(response)["error"] as? [String: Any])
    return try #require(error["message"] as? String)
  }

  @Test("missing and invalid credentials are 401 in the provider's form")
  func credentials() async throws {
    try await withSimulator { simulator in
      let version = "anthropic-version: 2023-06-01"
      for (path, headers) in [
        ("/v1/chat/completions", []), ("/v1/chat/completions", ["authorization: Bearer invalid"]),
        ("/v1/chat/completions", ["authorization: Basic abc"]), ("/v1/embeddings", []),
        ("/v1/models", []), ("/v1/messages", [version]),
        ("/v1/messages", [version, "x-api-key: invalid"]),
        ("/v1/messages", [version, "authorization: Bearer invalid"]),
      ] {
        let method = path == "/v1/models" ? "GET" : "POST"
        let response = await simulator.ask(
          method, path, headers: headers, body: method == "GET" ? "" : Simulator.body())
        #expect(response?.status == 401, "\(path) \(headers)")
      }
      let oauth = await simulator.ask(
        "POST", "/v1/messages", headers: [version, "Authorization: bearer token"],
        body: Simulator.body())
      #expect(oauth?.status == 200)
    }
  }

  @Test("Anthropic needs its version, max_tokens and, from 2026-10-21, no sampling parameters")
  func anthropicRules() async throws {
    try await withSimulator { simulator in
      let bare = await simulator.ask(
        "POST", "/v1/messages", headers: ["x-api-key: k"], body: Simulator.body())
      #expect(bare?.status == 400)
      let bareMessage = try errorMessage(bare)
      #expect(bareMessage.hasPrefix("anthropic-version"))
      let unknown = await simulator.ask(
        "POST", "/v1/messages", headers: ["x-api-key: k", "anthropic-version: 1999-01-01"],
        body: Simulator.body())
      #expect(unknown?.status == 400)
      let noLimit = await simulator.ask(
        "POST", "/v1/messages", headers: Simulator.credentials(.anthropic),
        body: Simulator.body().replacingOccurrences(of: "\"max_tokens\":1000,", with: ""))
      #expect(noLimit?.status == 400)
      let noLimitMessage = try errorMessage(noLimit)
      #expect(noLimitMessage == "max_tokens: Field required")
      for (version, status) in [("2023-06-01", 200), ("2026-10-21", 400)] {
        let response = await simulator.ask(
          "POST", "/v1/messages", headers: ["x-api-key: k", "anthropic-version: \(version)"],
          body: Simulator.body(extra: #""temperature":0,"#))
        #expect(response?.status == status)
      }
    }
  }

  @Test(
    "requests that are wrong are 400, never a crash",
    arguments: [
      "", "{", "[]", "null", "{}", #"{"model":"m"}"#, #"{"messages":[{}]}"#,
      #"{"model":"","messages":[{}]}"#, #"{"model":7,"messages":[{}]}"#,
      #"{"model":"m","messages":[]}"#, #"{"model":"m","messages":"x"}"#,
      #"{"model":"m+nonsense=1","messages":[{}],"max_tokens":1}"#,
      #"{"model":"m","messages":[{}],"max_tokens":0}"#,
    ])
  func wrongRequests(body: String) async throws {
    try await withSimulator { simulator in
      for wire in [Wire.openAI, .anthropic] {
        let response = await simulator.ask(
          "POST", wire == .openAI ? "/v1/chat/completions" : "/v1/messages",
          headers: Simulator.credentials(wire), body: body)
        #expect(response?.status == 400)
        let message = try errorMessage(response)
        #expect(!message.isEmpty)
      }
    }
  }

  @Test("unknown paths are 404, wrong methods 405")
  func paths() async throws {
    try await withSimulator { simulator in
      let key = Simulator.credentials(.openAI)
      #expect(await simulator.ask("GET", "/nowhere", headers: key)?.status == 404)
      #expect(await simulator.ask("GET", "/v1/embeddings", headers: key)?.status == 405)
      #expect(await simulator.ask("GET", "/v1/models/sim-small?x=1", headers: key)?.status == 200)
      #expect(await simulator.ask("GET", "/v1/models/none", headers: key)?.status == 404)
    }
  }

  @Test("pipelined requests are answered in order, a slow one first")
  func pipelining() async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      defer { client.close() }
      var text = ""
      for number in 0..<100 {
        let speed = number == 0 ? "latency=30;" : number % 7 == 0 ? "latency=2;" : ""
        text += Simulator.request(
          "POST", "/v1/chat/completions",
          headers: Simulator.credentials(.openAI)
            + ["x-simulate: \(speed)tag=t\(number)"] + (number == 99 ? ["connection: close"] : []),
          body: Simulator.body(stream: false, extra: #""user":"\#(number)","#))
      }
      client.send(text)
      let (bytes, ending) = await client.read()
      #expect(ending == .fin)
      #expect(
        String(decoding: bytes, as: UTF8.self).components(separatedBy: "HTTP/1.1 200").count == 101)
      let entries = simulator.log.entries(since: 0).entries
      #expect(entries.map(\.tag) == (0..<100).map { "t\($0)" })
      #expect(entries.reduce(0) { $0 + $1.bytesSent } == bytes.count)
      #expect(Set(entries.map(\.requestID)).count == 100)
    }
  }

  @Test("a request that arrives byte by byte is one request")
  func slowRequest() async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      defer { client.close() }
      let request = Simulator.request(
        "POST", "/v1/chat/completions", headers: Simulator.credentials(.openAI),
        body: Simulator.body())
      for byte in request.utf8 { client.send([byte]) }
      let (bytes, _) = await client.read { RawResponse($0)?.isWhole == true }
      #expect(RawResponse(bytes)?.status == 200)
      #expect(simulator.log.last == 1)
    }
  }

  @Test("connection: close and HTTP/1.0 end with the connection, also for streams")
  func closing() async throws {
    try await withSimulator { simulator in
      for stream in [false, true] {
        let client = RawClient(port: simulator.port)
        defer { client.close() }
        let body = Simulator.body(stream: stream)
        client.send(
          "POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer k\r\n"
            + "content-length: \(body.utf8.count)\r\n\r\n\(body)")
        let (bytes, ending) = await client.read()
        #expect(ending == .fin)
        let response = try #require(RawResponse(bytes))
        #expect(response.status == 200)
        #expect(response.headers["transfer-encoding"] == nil)
        #expect(response.body.hasSuffix(stream ? "data: [DONE]\n\n" : "}"))
      }
      let client = RawClient(port: simulator.port)
      defer { client.close() }
      client.send(
        Simulator.request(
          "POST", "/v1/chat/completions",
          headers: Simulator.credentials(.openAI) + ["connection: close"], body: Simulator.body()))
      let (bytes, ending) = await client.read()
      #expect(ending == .fin)
      #expect(RawResponse(bytes)?.headers["connection"] == "close")
    }
  }

  @Test("what is not HTTP is refused and closed")
  func notHTTP() async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      defer { client.close() }
      client.send("\u{16}\u{3}\u{1} this is not HTTP\r\n\r\n")
      let (bytes, ending) = await client.read()
      #expect(ending != .silent && ending != .open)
      #expect(bytes.isEmpty || RawResponse(bytes)?.status == 400)
      #expect(await simulator.chat(.openAI)?.status == 200)
    }
  }

  @Test("a megabyte is fine, 100-continue is honoured, more than 16 MiB is 413")
  func sizes() async throws {
    try await withSimulator { simulator in
      let body = Simulator.body().replacingOccurrences(
        of: "Why", with: String(repeating: "Why? ", count: 200_000))
      let client = RawClient(port: simulator.port)
      defer { client.close() }
      let request = Simulator.request(
        "POST", "/v1/messages",
        headers: Simulator.credentials(.anthropic) + ["expect: 100-continue"], body: body)
      let headEnd = try #require(request.range(of: "\r\n\r\n")).upperBound
      client.send(String(request[..<headEnd]))
      let (interim, _) = await client.read { $0.count >= 25 }
      #expect(String(decoding: interim, as: UTF8.self) == "HTTP/1.1 100 Continue\r\n\r\n")
      client.send(String(request[headEnd...]))
      let (bytes, _) = await client.read { RawResponse($0)?.isWhole == true }
      #expect(RawResponse(bytes)?.status == 200)

      for wire in [Wire.openAI, .anthropic] {
        let response = await simulator.ask(
          "POST", wire == .openAI ? "/v1/chat/completions" : "/v1/messages",
          headers: Simulator.credentials(wire),
          body: Simulator.body() + String(repeating: " ", count: 17 << 20))
        #expect(response?.status == 413)
        let message = try errorMessage(response)
        #expect(!message.isEmpty)
        #expect(response?.headers["connection"] == "close")
      }
    }
  }

  @Test("a chunked body without a length is limited too")
  func chunkedTooLarge() async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      defer { client.close() }
      client.send(
        "POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer k\r\n"
          + "transfer-encoding: chunked\r\n\r\n")
      let chunk = "100000\r\n" + String(repeating: " ", count: 1 << 20) + "\r\n"
      for _ in 0..<18 { client.send(chunk) }
      client.send("0\r\n\r\n")
      let (bytes, ending) = await client.read()
      #expect(RawResponse(bytes)?.status == 413)
      #expect(ending == .fin)
    }
  }

  @Test("defaults can be replaced while it runs, and reset restores the first ones")
  func defaults() async throws {
    var configuration = SimulatorConfiguration()
    configuration.defaults.answerText = "first"
    try await withSimulator(configuration) { simulator in
      #expect(await simulator.chat(.openAI)?.body.contains("\"first\"") == true)
      #expect(await simulator.ask("POST", "/__defaults", body: "status=503\n")?.status == 200)
      #expect(await simulator.chat(.openAI)?.status == 503)
      #expect(await simulator.chat(.openAI, "clear")?.status == 200)
      #expect(await simulator.ask("POST", "/__defaults", body: "bogus")?.status == 400)
      #expect(await simulator.chat(.openAI)?.status == 503)
      _ = await simulator.ask("POST", "/__reset")
      #expect(await simulator.chat(.openAI)?.body.contains("\"first\"") == true)
      #expect(simulator.log.last == 1)
    }
  }

  @Test("the log file has a line for every request after a stop")
  func logFile() async throws {
    let path = FileManager.default.temporaryDirectory
      .appendingPathComponent("simulator-\(UUID().uuidString).jsonl").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    var configuration = SimulatorConfiguration()
    configuration.logFile = path
    try await withSimulator(configuration) { simulator in
      for _ in 0..<20 { _ = await simulator.chat(.openAI, "tag=%22%0a") }
    }
    let lines = try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n")
    let sequences = try lines.map { line in
      let object = try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
      #expect(object?["tag"] as? String == "\"\n")
      return object?["seq"] as? Int
    }
    #expect(sequences == Array(1...20))
    await #expect(throws: (any Error).self) {
      var unwritable = SimulatorConfiguration()
      unwritable.logFile = "/nonexistent/folder/log"
      _ = try await Simulator.start(unwritable)
    }
  }

  @Test("many connections at once are all answered and all in the books")
  func crowd() async throws {
    var configuration = SimulatorConfiguration()
    configuration.threads = 2
    try await withSimulator(configuration) { simulator in
      await withTaskGroup(of: Bool.self) { group in
        for number in 0..<200 {
          group.addTask {
            let response = await simulator.chat(
              number % 2 == 0 ? .openAI : .anthropic, "latency=5;tokens=40", stream: number % 3 == 0
            )
            return response?.isWhole == true && response?.status == 200
          }
        }
        for await isFine in group { #expect(isFine) }
      }
      let entries = simulator.log.entries(since: 0).entries
      #expect(entries.count == 200)
      #expect(entries.map(\.sequence) == Array(1...200))
      #expect(entries.allSatisfy { $0.durationMicroseconds >= 5_000 })
      #expect(entries.allSatisfy { $0.usage?.output == 40 })
    }
  }
}
