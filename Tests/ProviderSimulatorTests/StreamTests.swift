import Foundation
import NIOCore
import Testing

@testable import ProviderSimulator

@Suite("Streams")
struct StreamTests {
  private func answer(_ text: AnswerText) -> Answer {
    Answer(
      id: 7, created: 1, model: Array("m".utf8), text: text, finish: Array("stop".utf8),
      usage: TokenUsage(input: 3, output: text.tokenCount), serviceTier: Array("default".utf8))
  }

  private func events(_ wire: Wire, _ answer: Answer) -> [String] {
    var stream = EventStream(wire: wire, answer: answer)
    var buffer = ByteBuffer()
    while stream.next(into: &buffer) != .end {}
    let text = String(buffer: buffer).replacingOccurrences(of: "\r\n", with: "\n")
    return text.components(separatedBy: "\n\n").dropLast()
  }

  private func objects(_ events: [String]) throws -> [[String: Any]] {
    try events.compactMap { event in
      let data = try #require(event.range(of: "data: "))
      let json = event[data.upperBound...]
      if json == "[DONE]" { return nil }
      return try #require(try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any])
    }
  }

  private func text(_ wire: Wire, _ objects: [[String: Any]]) -> String {
    objects.map { object in
      switch wire {
      case .openAI:
        let choice = (object["choices"] as? [[String: Any]])?.first
        return (choice?["delta"] as? [String: Any])?["content"] as? String ?? ""
      case .anthropic: return (object["delta"] as? [String: Any])?["text"] as? String ?? ""
      case .gemini:
        let candidate = (object["candidates"] as? [[String: Any]])?.first
        let content = candidate?["content"] as? [String: Any]
        return (content?["parts"] as? [[String: Any]])?.first?["text"] as? String ?? ""
      case .ollama, .tgi, .tei, .huggingFace, .replicate: return ""
      }
    }.joined()
  }

  @Test(
    "a stream says what the whole answer says", arguments: [Wire.openAI, .anthropic, .gemini],
    Dice.seeds)
  func streamsEqualWholes(wire: Wire, seed: UInt64) throws {
    var dice = Dice(seed: seed)
    for _ in 0..<40 {
      // JSONSerialization, the judge here, drops a byte order mark. By scalars, because a mark with an
      // accent behind it is no occurrence of a mark.
      let scalars = dice.text(upTo: 40).unicodeScalars.filter { $0 != "\u{feff}" }
      let source = String(String.UnicodeScalarView(scalars))
      let answer = answer(AnswerText(escaped: JSONText.escaped(source)))
      let streamed = text(wire, try objects(events(wire, answer)))
      #expect(streamed.unicodeScalars.elementsEqual(source.unicodeScalars), "seed \(seed)")

      var whole = ByteBuffer()
      var end = ByteBuffer()
      wire.write(answer, head: &whole, tail: &end)
      answer.text.write(0..<answer.text.count, to: &whole)
      whole.writeBuffer(&end)
      let object = try #require(
        try JSONSerialization.jsonObject(with: Data(String(buffer: whole).utf8)) as? [String: Any])
      let model = object["model"] ?? object["modelVersion"]
      #expect(model as? String == "m", "seed \(seed)")
    }
  }

  @Test("tool arguments arrive in fragments that join to the object")
  func toolFragments() throws {
    let arguments = #"{"city":"Zürich 😀","days":[1,2,3],"note":"\"quoted\""}"#
    var answer = answer(AnswerText(escaped: []))
    answer.toolCalls = [
      .init(id: 1, name: Array("f".utf8), arguments: Array(arguments.utf8)),
      .init(id: 2, name: Array("g".utf8), arguments: Array("{}".utf8)),
    ]
    var joined: [Int: String] = [:]
    for object in try objects(events(.openAI, answer)) {
      let choice = (object["choices"] as? [[String: Any]])?.first
      let delta = choice?["delta"] as? [String: Any]
      for call in delta?["tool_calls"] as? [[String: Any]] ?? [] {
        let function = call["function"] as? [String: Any]
        joined[try #require(call["index"] as? Int), default: ""] +=
          function?["arguments"] as? String ?? ""
      }
    }
    #expect(joined == [0: arguments, 1: "{}"])
    joined = [:]
    for object in try objects(events(.anthropic, answer)) {
      let delta = object["delta"] as? [String: Any]
      guard let part = delta?["partial_json"] as? String else { continue }
      joined[try #require(object["index"] as? Int), default: ""] += part
    }
    #expect(joined == [0: arguments, 1: "{}"])
  }

  @Test("Anthropic's blocks are opened and closed once each, in order, before the end")
  func blocks() throws {
    var answer = answer(AnswerText(escaped: Array("hi there".utf8)))
    answer.thinking = Array("hm".utf8)
    answer.toolCalls = [.init(id: 1, name: Array("f".utf8), arguments: Array("{}".utf8))]
    let names = events(.anthropic, answer).map { $0.split(separator: "\n")[0].dropFirst(7) }
    #expect(
      names == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta",
        "content_block_stop", "content_block_start", "ping", "content_block_delta",
        "content_block_delta", "content_block_stop", "content_block_start", "content_block_delta",
        "content_block_delta", "content_block_stop", "message_delta", "message_stop",
      ])
  }

  @Test(
    "an empty answer is still a complete stream", arguments: [Wire.openAI, .anthropic, .gemini])
  func emptyAnswer(wire: Wire) throws {
    let events = events(wire, answer(AnswerText(escaped: [])))
    #expect(text(wire, try objects(events)) == "")
    #expect(events.last == (wire == .openAI ? "data: [DONE]" : events.last))
    let starts = events.count { $0.contains("event: content_block_start") }
    let stops = events.count { $0.contains("event: content_block_stop") }
    #expect(starts == stops)
  }
}

@Suite("Transmissions")
struct TransmissionTests {
  private func stream(
    tokens: Int, _ directives: Directives, fault: Transmission.StreamFault? = nil
  ) -> Transmission {
    let text = AnswerText(escaped: [], tokens: tokens)
    let answer = Answer(
      id: 7, created: 1, model: Array("m".utf8), text: text, finish: Array("stop".utf8),
      usage: TokenUsage(input: 3, output: tokens), serviceTier: Array("default".utf8))
    return Transmission(
      head: ByteBuffer(string: "HEAD\n"), stream: EventStream(wire: .openAI, answer: answer),
      isChunked: false, fault: fault, pace: Pace(directives), drip: directives.drip,
      ending: .keepAlive)
  }

  private func run(
    _ transmission: Transmission
  ) -> (text: String, waits: [Int64], ending: Transmission.Ending?, after: Transmission) {
    var transmission = transmission
    var out = ByteBuffer()
    var waits: [Int64] = []
    for _ in 0..<1_000_000 {
      switch transmission.step(into: &out) {
      case .more: break
      case .wait(let until): waits.append(until / 1_000_000)
      case .finished(let ending): return (String(buffer: out), waits, ending, transmission)
      }
    }
    return (String(buffer: out), waits, nil, transmission)
  }

  @Test("latency, first token and rate become due times that do not drift")
  func pacing() {
    var directives = Directives()
    directives.latency = 10
    directives.timeToFirstToken = 30
    directives.tokensPerSecond = 100
    let result = run(stream(tokens: 4, directives))
    #expect(result.waits == [10, 40, 50, 60, 70, 80])
    #expect(result.ending == .keepAlive)
    #expect(result.after.isComplete)
    #expect(Pace(directives).whole(tokens: 4) == 70_000_000)
  }

  @Test("without speed limits nothing waits")
  func noWaiting() {
    let result = run(stream(tokens: 50, Directives()))
    #expect(result.waits.isEmpty)
    #expect(result.after.emittedTokens == 50)
  }

  @Test("a drip sends the same bytes one at a time")
  func drip() {
    var directives = Directives()
    let plain = run(stream(tokens: 3, directives))
    directives.dripInterval = 2
    let dripped = run(stream(tokens: 3, directives))
    #expect(dripped.text == plain.text)
    #expect(dripped.waits.count == plain.text.utf8.count)
    #expect(dripped.waits.last == Int64(plain.text.utf8.count) * 2)
  }

  @Test("a cut leaves exactly the tokens before it, and never a complete answer")
  func cuts() {
    let kinds: [(Directives.CutKind, Transmission.Ending)] = [
      (.hang, .hang), (.reset, .reset), (.truncate, .close), (.end, .keepAlive),
    ]
    for (kind, ending) in kinds {
      for tokens in [0, 1, 3, 5, 99] {
        let result = run(
          stream(tokens: 5, Directives(), fault: .init(kind: .cut(kind), tokens: tokens)))
        #expect(result.after.emittedTokens == min(tokens, 5))
        #expect(result.ending == ending)
        #expect(!result.after.isComplete)
        #expect(!result.text.contains("[DONE]"))
        #expect(!result.text.contains("\"finish_reason\":\"stop\""))
      }
    }
  }

  @Test("a limit on a whole response holds to the byte, also across its parts")
  func limits() {
    let text = AnswerText(bytes: 200_000)
    for limit in [0, 1, 4, 5, 6, 100_000, 200_004, 200_005, 200_008] {
      let result = run(
        Transmission(
          beginning: ByteBuffer(string: "HEAD\n"), text: text, end: ByteBuffer(string: "TAIL"),
          due: 0, limit: limit, drip: nil, ending: .close))
      #expect(result.text.utf8.count == limit)
      #expect(result.ending == .close)
      #expect(!result.after.isComplete)
    }
    let whole = run(
      Transmission(
        beginning: ByteBuffer(string: "HEAD\n"), text: text, end: ByteBuffer(string: "TAIL"),
        due: 0, limit: nil, drip: nil, ending: .keepAlive))
    #expect(whole.text.utf8.count == 200_009)
    #expect(whole.after.isComplete)
  }
}
