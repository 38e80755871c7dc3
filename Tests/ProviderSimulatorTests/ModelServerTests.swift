import Foundation
import NIOCore
import NIOHTTP1
import Testing

@testable import ProviderSimulator

@Suite("Servers of open models")
struct ModelServerTests {
  private func answer(_ text: AnswerText) -> Answer {
    Answer(
      id: 7, created: 1, model: Array("m".utf8), text: text, finish: Array("stop".utf8),
      usage: TokenUsage(input: 3, output: text.tokenCount), serviceTier: [])
  }

  private func stream(_ wire: Wire, _ answer: Answer) throws -> [[String: Any]] {
    var stream = EventStream(wire: wire, answer: answer)
    var buffer = ByteBuffer()
    while stream.next(into: &buffer) != .end {}
    return try String(buffer: buffer).split(separator: "\n").map { line in
      let json = line.hasPrefix("data:") ? line.dropFirst(5) : line
      return try #require(try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any])
    }
  }

  private func whole(_ wire: Wire, _ answer: Answer) throws -> [String: Any] {
    var bytes = ByteBuffer()
    var end = ByteBuffer()
    wire.write(answer, head: &bytes, tail: &end)
    answer.text.write(0..<answer.text.count, to: &bytes)
    bytes.writeBuffer(&end)
    let json = try JSONSerialization.jsonObject(with: Data(String(buffer: bytes).utf8))
    return try #require((json as? [[String: Any]])?.first ?? json as? [String: Any])
  }

  @Test(
    "a stream says what the whole answer says",
    arguments: [(Wire.ollama, false), (.ollama, true), (.tgi, true), (.huggingFace, true)],
    Dice.seeds)
  func streamsEqualWholes(form: (wire: Wire, isCompletion: Bool), seed: UInt64) throws {
    var dice = Dice(seed: seed)
    for _ in 0..<40 {
      // JSONSerialization, the judge here, drops a byte order mark.
      let scalars = dice.text(upTo: 40).unicodeScalars.filter { $0 != "\u{feff}" }
      let source = String(String.UnicodeScalarView(scalars))
      var answer = answer(AnswerText(escaped: JSONText.escaped(source)))
      answer.isCompletion = form.isCompletion
      let events = try stream(form.wire, answer)
      let whole = try whole(form.wire, answer)
      let last = try #require(events.last)
      func text(_ object: [String: Any]) -> String {
        if let token = object["token"] as? [String: Any] {
          return token["special"] as? Bool == true ? "" : token["text"] as? String ?? ""
        }
        let message = object["message"] as? [String: Any]
        return (message?["content"] ?? object["response"]) as? String ?? ""
      }
      let streamed = events.map(text).joined()
      #expect(streamed.unicodeScalars.elementsEqual(source.unicodeScalars), "seed \(seed)")
      if form.wire == .ollama {
        #expect(text(whole).unicodeScalars.elementsEqual(source.unicodeScalars), "seed \(seed)")
        #expect(last["done"] as? Bool == true)
        #expect(last["eval_count"] as? Int == answer.usage.output)
        #expect(whole["prompt_eval_count"] as? Int == 3)
      } else {
        for object in [last, whole] {
          let full = try #require(object["generated_text"] as? String)
          #expect(full.unicodeScalars.elementsEqual(source.unicodeScalars), "seed \(seed)")
          let details = object["details"] as? [String: Any]
          #expect(details?["generated_tokens"] as? Int == answer.usage.output)
        }
      }
    }
  }

  @Test("calls of tools come whole, one a line, their arguments as an object")
  func toolCalls() throws {
    let arguments = #"{"city":"Z\u00fcrich","days":[1,2]}"#
    var answer = answer(AnswerText(escaped: []))
    answer.toolCalls = [
      .init(id: 1, name: Array("f".utf8), arguments: Array(arguments.utf8)),
      .init(id: 2, name: Array("g".utf8), arguments: Array("{}".utf8)),
    ]
    let lines = try stream(.ollama, answer)
    #expect(lines.count == 3)
    let names = lines.compactMap { line -> String? in
      let call = ((line["message"] as? [String: Any])?["tool_calls"] as? [[String: Any]])?.first
      return (call?["function"] as? [String: Any])?["name"] as? String
    }
    #expect(names == ["f", "g"])
    let calls = (try whole(.ollama, answer)["message"] as? [String: Any])?["tool_calls"]
    let first = (calls as? [[String: Any]])?.first?["function"] as? [String: Any]
    #expect((first?["arguments"] as? [String: Any])?["city"] as? String == "Zürich")
  }

  @Test("paths name the server, the task and, for Hugging Face, the model")
  func paths() {
    func found(_ path: Substring) -> String {
      guard let server = ModelServer(.POST, path) else { return "none" }
      return "\(server.wire.rawValue) \(server.task) \(server.model ?? "-")"
    }
    #expect(found("/ollama/api/chat") == "ollama chat -")
    #expect(found("/tei/rerank") == "tei rerank -")
    let models = "/huggingface/hf-inference/models"
    #expect(
      found("\(models)/org/m%2Btokens%3D3/pipeline/feature-extraction")
        == "huggingface embed org/m+tokens=3")
    #expect(found("\(models)/org/m") == "huggingface unnamed org/m")
    #expect(found("\(models)/org/m%2") == "huggingface unnamed org/m%2")
    #expect(
      found("/huggingface/dedicated/sentence-similarity") == "huggingface rerank sim-dedicated")
    for path in [
      "/ollama/api/pull", "/tgi", "/tgi/", "/", "/huggingface/x", "\(models)/m/pipeline/x",
    ] {
      #expect(found(path[...]) == "none", "\(path)")
    }
  }
}
