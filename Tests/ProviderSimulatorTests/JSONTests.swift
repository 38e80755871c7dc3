import Foundation
import Testing

@testable import ProviderSimulator

@Suite("JSON without a tree")
struct JSONTests {
  private func accepts(_ bytes: [UInt8]) -> Bool {
    bytes.withUnsafeBytes { raw in
      var scanner = JSONScanner(raw)
      do throws(JSONScanner.Malformed) {
        try scanner.skip()
        try scanner.finish()
        return true
      } catch {
        return false
      }
    }
  }

  @Test(
    "valid JSON is accepted",
    arguments: [
      "{}", "[]", "0", "-0.5e+10", "\"\"", " { \"a\" : [ 1 , null , true , false ] } ",
      #""\u0000\ud83d\"\\\/\b\f\n\r\t""#, "[[[]]]", "1E5", "\t\r\n1",
    ])
  func valid(_ text: String) {
    #expect(accepts(Array(text.utf8)))
  }

  @Test(
    "anything else is refused",
    arguments: [
      "", " ", "{", "}", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "01", "+1", ".5",
      "1.", "1e", "-", "tru", "nul", "True", "\"", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"",
      "\"\n\"", "1 2", "[1 2]", "{\"a\":1 \"b\":2}", "'a'", "[", "{\"a\":1", "NaN",
      String(repeating: "[", count: 200_000),
    ])
  func invalid(_ text: String) {
    #expect(!accepts(Array(text.utf8)))
  }

  @Test("escaped text is JSON, and unescaping gives it back", arguments: Dice.seeds)
  func escapes(seed: UInt64) throws {
    var dice = Dice(seed: seed)
    for _ in 0..<300 {
      let text = dice.text(upTo: 30)
      let literal = [UInt8(ascii: "\"")] + JSONText.escaped(text) + [UInt8(ascii: "\"")]
      #expect(accepts(literal), "seed \(seed)")
      let decoded = try JSONDecoder().decode(
        [String].self, from: Data("[".utf8 + literal + "]".utf8))
      #expect(decoded == [text], "seed \(seed)")
      let back = JSONText.escaped(text).withUnsafeBytes { JSONText.unescaped($0) }
      #expect(back.unicodeScalars.elementsEqual(text.unicodeScalars), "seed \(seed)")
    }
  }

  @Test("what another encoder escapes is read alike", arguments: Dice.seeds)
  func foreignEscapes(seed: UInt64) throws {
    var dice = Dice(seed: seed)
    for _ in 0..<300 {
      let text = dice.text(upTo: 30)
      // Every UTF-16 unit as an escape, surrogate pairs included.
      let escaped = text.utf16.map { unit in
        let digits = String(unit, radix: 16)
        return "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      }.joined()
      let back = Array(escaped.utf8).withUnsafeBytes { JSONText.unescaped($0) }
      #expect(back.unicodeScalars.elementsEqual(text.unicodeScalars), "seed \(seed)")
    }
  }

  @Test("lone surrogates are read as the replacement character")
  func loneSurrogates() {
    for (raw, text) in [
      (#"a\ud83d"#, "a\u{fffd}"), (#"\udc26b"#, "\u{fffd}b"), (#"\ud83dx"#, "\u{fffd}x"),
      (#"\ud83d\ud83d\udc26"#, "\u{fffd}\u{1f426}"), (#"\ud83d\u0041"#, "\u{fffd}A"),
    ] {
      #expect(Array(raw.utf8).withUnsafeBytes { JSONText.unescaped($0) } == text)
    }
  }

  @Test("a damaged request is read or refused, and never traps", arguments: Dice.seeds)
  func damaged(seed: UInt64) {
    var dice = Dice(seed: seed)
    let whole = Array(
      #"""
      {"model":"m+tokens=3","stream":true,"stream_options":{"include_usage":true},"max_tokens":5,
      "messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text",
      "text":"a\ud83d\ude00b"},{"type":"image_url","image_url":{"url":"x"}}]},{"role":"tool",
      "content":"r"}],"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],
      "tool_choice":{"type":"function","function":{"name":"f"}},"n":2,"input":["a",[1,2],"b"],
      "temperature":0.5,"thinking":{"type":"enabled"},"response_format":{"type":"json_object"}}
      """#.utf8)
    for _ in 0..<3_000 {
      var bytes = whole
      for _ in 0..<dice.roll(1...3) {
        let index = dice.roll(0...(bytes.count - 1))
        switch dice.roll(0...2) {
        case 0: bytes[index] = UInt8(truncatingIfNeeded: dice.roll(0...255))
        case 1: bytes.remove(at: index)
        default: bytes.removeSubrange(index...)
        }
        if bytes.isEmpty { break }
      }
      let isValid = accepts(bytes) && bytes.first { $0 > 0x20 } == UInt8(ascii: "{")
      bytes.withUnsafeBytes { raw in
        #expect(((try? ChatRequest(raw)) != nil) == isValid, "seed \(seed)")
        #expect(((try? EmbeddingRequest(raw)) != nil) == isValid, "seed \(seed)")
      }
    }
  }
}

@Suite("Reading requests")
struct RequestTests {
  private func chat(_ text: String) throws -> (ChatRequest, [UInt8]) {
    let bytes = Array(text.utf8)
    return (try bytes.withUnsafeBytes { try ChatRequest($0) }, bytes)
  }

  @Test("the question is the last text of the last user message, the rest is context")
  func question() throws {
    let (request, bytes) = try chat(
      #"""
      {"system":[{"type":"text","text":"S"}],"messages":[{"role":"user","content":"one"},
      {"role":"assistant","content":"two"},
      {"content":[{"type":"text","text":"three"},{"text":"four","type":"text"}],"role":"user"},
      {"role":"assistant","content":null}]}
      """#)
    let question = try #require(request.question)
    #expect(String(decoding: bytes[question], as: UTF8.self) == "four")
    let context = request.context.map { String(decoding: bytes[$0], as: UTF8.self) }
    #expect(context == ["S", "two", "one", "three"])
  }

  @Test("members are found whatever their order, and strange types do no harm")
  func members() throws {
    let (request, _) = try chat(
      #"""
      {"messages":[],"tools":[{"name":"a"},{"function":{"name":"b"}},7],"stream":"yes","n":"2",
      "tool_choice":"required","max_tokens":null,"max_completion_tokens":7,"model":"x\u002fy",
      "temperature":null,"top_p":1}
      """#)
    #expect(request.model == "x/y")
    #expect(!request.stream)
    #expect(!request.hasMessages)
    #expect(request.toolNames == ["a", "b"])
    #expect(request.toolChoice == .any)
    #expect(request.maxTokens == 7)
    #expect(request.samplingParameter == "top_p")
  }

  @Test("a tool's result at the end is noticed in both providers' forms")
  func toolResults() throws {
    for (text, expected) in [
      (#"{"messages":[{"role":"tool","content":"r"}]}"#, true),
      (#"{"messages":[{"role":"user","content":[{"type":"tool_result","content":"r"}]}]}"#, true),
      (#"{"messages":[{"role":"tool","content":"r"},{"role":"user","content":"q"}]}"#, false),
    ] {
      #expect(try chat(text).0.endsWithToolResult == expected)
    }
  }

  @Test("embedding inputs come as text, texts, tokens or lists of tokens")
  func inputs() throws {
    for (text, inputs) in [
      (#"{"input":"a"}"#, ["a"]), (#"{"input":["a","b\n"]}"#, ["a", "b\n"]),
      (#"{"input":[1,2,3]}"#, ["1 2 3"]), (#"{"input":[[1],[2,3]]}"#, ["1", "2 3"]),
      (#"{"input":[]}"#, []), (#"{"input":7}"#, []),
    ] {
      let request = try Array(text.utf8).withUnsafeBytes { try EmbeddingRequest($0) }
      #expect(request.inputs == inputs)
    }
  }
}
