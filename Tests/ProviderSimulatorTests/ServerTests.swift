import Foundation
import Testing

@testable import ProviderSimulator

/// Runs a test with a simulator of its own.
func withSimulator(
  _ configuration: SimulatorConfiguration = SimulatorConfiguration(),
  _ test: (Simulator) async throws -> Void
) async throws {
  let simulator = try await Simulator.start(configuration)
  do {
    try await test(simulator)
  } catch {
    try await simulator.stop()
    throw error
  }
  try await simulator.stop()
}

@Suite("Faults on the wire")
struct FaultTests {
  private static let wires = [Wire.openAI, .anthropic]

  @Test("plain answers are whole, in both forms and both ways", arguments: wires, [false, true])
  func plain(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      let response = try #require(await simulator.chat(wire, stream: stream))
      #expect(response.status == 200)
      #expect(response.isWhole)
      #expect(response.ending == .open)
      #expect(response.body.contains("martlet"))
      #expect(response.headers[wire == .openAI ? "x-request-id" : "request-id"] != nil)
      let entry = try #require(simulator.log.entries(since: 0).entries.first)
      #expect(entry.isComplete && !entry.isClientGone)
      #expect(entry.bytesSent == response.rawBytes)
      #expect(entry.isUsageReported == (wire == .anthropic || !stream))
    }
  }

  @Test(
    "errors have the status, the headers and the provider's form", arguments: wires, [false, true])
  func statuses(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      for status in [400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529] {
        let response = try #require(await simulator.chat(wire, "status=\(status)", stream: stream))
        #expect(response.status == status)
        #expect(response.isWhole)
        #expect((response.headers["retry-after"] != nil) == (status == 429))
        let object = try #require(
          try JSONSerialization.jsonObject(with: Data(response.body.utf8)) as? [String: Any])
        let error = try #require(object["error"] as? [String: Any])
        #expect(error["message"] is String && error["type"] is String)
        #expect((object["type"] as? String == "error") == (wire == .anthropic))
      }
    }
  }

  @Test("retry headers are what the directives say")
  func retryHeaders() async throws {
    try await withSimulator { simulator in
      for (directives, header, value) in [
        ("status=429;retry_after=7", "retry-after", "7"),
        ("status=503;retry_after=0.5", "retry-after", "0.5"),
        ("status=429;retry_after=none", "retry-after", nil),
        ("status=429;retry_after_ms=20", "retry-after-ms", "20"),
        ("status=400;should_retry=true", "x-should-retry", "true"),
        ("status=429;code=insufficient_quota", "retry-after", nil),
      ] {
        let response = await simulator.chat(.openAI, directives)
        #expect(response?.headers[header] == value, "\(directives)")
      }
      let dated = await simulator.chat(.openAI, "status=429;retry_after=date")
      #expect(dated?.headers["retry-after"]?.hasSuffix(" GMT") == true)
    }
  }

  @Test("a fault with times=K happens K times for a body, then the same body succeeds")
  func times() async throws {
    try await withSimulator { simulator in
      var statuses: [Int?] = []
      for _ in 0..<4 {
        statuses.append(await simulator.chat(.openAI, "status=529;times=2")?.status)
      }
      #expect(statuses == [529, 529, 200, 200])
      // Another body has its own count.
      let other = await simulator.chat(.openAI, "status=529;times=2", extra: #""seed":1,"#)
      #expect(other?.status == 529)
      _ = await simulator.ask("POST", "/__reset")
      #expect(await simulator.chat(.openAI, "status=529;times=1")?.status == 529)
    }
  }

  @Test("a chance fails some requests, the same ones in every run")
  func chance() async throws {
    try await withSimulator { simulator in
      func statuses(_ chance: Int) async -> [Int] {
        _ = await simulator.ask("POST", "/__reset")
        var statuses: [Int] = []
        for seed in 0..<60 {
          let response = await simulator.chat(
            .openAI, "status=500;chance=\(chance)", extra: "\"seed\":\(seed),")
          statuses.append(response?.status ?? 0)
        }
        return statuses
      }
      let first = await statuses(50)
      #expect(Set(first) == [200, 500])
      #expect(await statuses(50) == first)
      #expect(await Set(statuses(0)) == [200])
      #expect(await Set(statuses(100)) == [500])
    }
  }

  @Test("a hang sends nothing until the client leaves", arguments: wires, [false, true])
  func hang(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      client.send(
        Simulator.request(
          "POST", wire == .openAI ? "/v1/chat/completions" : "/v1/messages",
          headers: Simulator.credentials(wire) + ["x-simulate: hang"],
          body: Simulator.body(stream: stream)))
      // Once health counts it, the request has been answered as far as it ever will be.
      await simulator.waitForHealth("\"in_flight\":1")
      #expect(simulator.log.last == 0)
      client.close()
      let entry = await simulator.firstEntry()
      #expect(entry.bytesSent == 0)
      #expect(entry.status == 0)
      #expect(entry.isClientGone)
      #expect(entry.fault == "hang")
      await simulator.waitForHealth("\"in_flight\":0")
    }
  }

  @Test("a hang in mid-answer has sent the tokens before it", arguments: wires, [false, true])
  func hangAfter(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      client.send(
        Simulator.request(
          "POST", wire == .openAI ? "/v1/chat/completions" : "/v1/messages",
          headers: Simulator.credentials(wire) + ["x-simulate: hang_after=2;answer=one+two+three"],
          body: Simulator.body(stream: stream)))
      let (bytes, ending) = await client.read {
        String(decoding: $0, as: UTF8.self).contains("two")
      }
      #expect(ending == .open)
      #expect(RawResponse(bytes)?.isWhole == false)
      #expect(!String(decoding: bytes, as: UTF8.self).contains("three"))
      client.close()
      let entry = await simulator.firstEntry()
      #expect(entry.isClientGone && !entry.isComplete && !entry.isUsageReported)
      #expect(entry.bytesSent == bytes.count)
      if stream { #expect(entry.usage?.output == 2) }
    }
  }

  @Test(
    "resets are RSTs, truncations FINs, and both leave the message unfinished",
    arguments: wires, [false, true])
  func brokenEndings(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      let answer = "answer=one+two+three+four"
      for (directive, ending) in [
        ("reset_after=2", RawClient.Ending.reset), ("truncate_after=2", .fin),
      ] {
        let response = try #require(
          await simulator.chat(wire, "\(directive);\(answer)", stream: stream))
        #expect(response.ending == ending)
        #expect(response.status == 200)
        #expect(!response.isWhole)
        #expect(response.body.contains("two"))
        #expect(!response.body.contains("three"))
      }
      #expect(await simulator.chat(wire, "reset", stream: stream) == nil)
      let faults = simulator.log.entries(since: 0).entries
      #expect(faults.map(\.fault) == ["reset_after", "truncate_after", "reset"])
      #expect(faults.allSatisfy { !$0.isComplete && !$0.isClientGone && !$0.isUsageReported })
    }
  }

  @Test("a reset at once is an RST without a byte")
  func resetAtOnce() async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      defer { client.close() }
      client.send(
        Simulator.request(
          "POST", "/v1/chat/completions",
          headers: Simulator.credentials(.openAI) + ["x-simulate: reset"], body: Simulator.body()))
      let (bytes, ending) = await client.read()
      #expect(bytes.isEmpty)
      #expect(ending == .reset)
    }
  }

  @Test("a stream can end as valid HTTP without its terminal event", arguments: wires)
  func endWithoutTerminal(wire: Wire) async throws {
    try await withSimulator { simulator in
      let response = try #require(await simulator.chat(wire, "end_after=3", stream: true))
      #expect(response.isWhole)
      #expect(!response.body.contains("[DONE]") && !response.body.contains("message_stop"))
    }
  }

  @Test("bodies that are not what they claim", arguments: wires, [false, true])
  func wrongBodies(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      let html = try #require(await simulator.chat(wire, "html", stream: stream))
      #expect(html.status == 200)
      #expect(html.headers["content-type"] == "text/html")
      #expect(html.isWhole)
      let gateway = await simulator.chat(wire, "html;status=502", stream: stream)
      #expect(gateway?.status == 502)
      let empty = try #require(await simulator.chat(wire, "empty", stream: stream))
      #expect(empty.status == 200 && empty.body.isEmpty && empty.isWhole)

      let malformed = try #require(await simulator.chat(wire, "malformed", stream: stream))
      #expect(malformed.status == 200 && malformed.isWhole)
      let texts =
        stream
        ? malformed.body.components(separatedBy: "\n\n").filter { $0.contains("data: {") }
          .map { String($0[$0.range(of: "data: ")!.upperBound...]) }
        : [malformed.body]
      let broken = texts.count { (try? JSONSerialization.jsonObject(with: Data($0.utf8))) == nil }
      #expect(broken == 1)

      let embedded = try #require(await simulator.chat(wire, "embedded_error", stream: stream))
      #expect(embedded.status == 200 && embedded.isWhole)
      #expect(embedded.body.contains("\"error\""))
      #expect(!embedded.body.contains("[DONE]") && !embedded.body.contains("message_stop"))
      let logged = simulator.log.entries(since: 0).entries
      #expect(logged.allSatisfy { !$0.isUsageReported })
    }
  }

  @Test("an error can be the very first event", arguments: wires)
  func immediateEmbeddedError(wire: Wire) async throws {
    try await withSimulator { simulator in
      let response = try #require(
        await simulator.chat(wire, "embedded_error=0;type=t;message=m%22", stream: true))
      #expect(response.body.components(separatedBy: "\n\n").count == 2)
      #expect(response.body.contains(#""message":"m\"""#))
    }
  }

  @Test("lone surrogates and NUL arrive as escapes", arguments: wires, [false, true])
  func oddCharacters(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      let response = await simulator.chat(wire, "surrogate;nul", stream: stream)
      #expect(response?.body.contains(#"\ud83d and"#) == true || stream)
      #expect(response?.body.contains(#"\ud83d"#) == true)
      #expect(response?.body.contains(#"\u0000"#) == true)
    }
  }

  @Test("a drip arrives whole", arguments: wires)
  func drip(wire: Wire) async throws {
    try await withSimulator { simulator in
      let response = await simulator.chat(wire, "drip=1;tokens=1", stream: true)
      #expect(response?.isWhole == true)
    }
  }

  @Test("a big answer has its size, streamed or not", arguments: wires, [false, true])
  func big(wire: Wire, stream: Bool) async throws {
    try await withSimulator { simulator in
      let response = try #require(
        await simulator.chat(wire, "big=3000000;usage=output:5", stream: stream))
      #expect(response.isWhole)
      #expect(response.body.utf8.count > 3_000_000)
      #expect(response.body.utf8.count < 3_500_000)
    }
  }

  @Test("a client that leaves in the middle of a big answer is noticed")
  func clientLeaves() async throws {
    try await withSimulator { simulator in
      let client = RawClient(port: simulator.port)
      client.send(
        Simulator.request(
          "POST", "/v1/messages",
          headers: Simulator.credentials(.anthropic) + ["x-simulate: big=60000000"],
          body: Simulator.body(stream: true)))
      _ = await client.read { $0.count > 100_000 }
      client.close()
      let entry = await simulator.firstEntry()
      #expect(entry.isClientGone && !entry.isComplete && !entry.isUsageReported)
      #expect(entry.bytesSent < 60_000_000)
    }
  }
}

extension Simulator {
  /// Asks for health until it says `text`.
  func waitForHealth(_ text: String) async {
    for _ in 0..<3_000 {
      if let health = await ask("GET", "/health"), health.body.contains(text) { return }
    }
    Issue.record("health never said \(text)")
  }

  /// The first entry of the log, once there is one.
  func firstEntry() async -> LogEntry {
    for _ in 0..<3_000 {
      if let entry = log.entries(since: 0).entries.first { return entry }
      _ = await ask("GET", "/health")
    }
    Issue.record("nothing was logged")
    return LogEntry()
  }
}
