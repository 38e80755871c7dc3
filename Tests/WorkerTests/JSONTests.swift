import Foundation
import Logging
import Providers
import Testing

@testable import Worker

private func parse(_ json: String) throws -> [String: Any] {
  try #require(
    JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any], "not an object: \(json)")
}

private func written(_ settlement: Settlement) throws -> [String: Any] {
  var json = JSONBuffer()
  settlement.write(to: &json)
  return try parse(json.text)
}

private let fence = Fence(high: 0x01a1_fcc3_44d1_7d47, low: 0x822e_2189_e104_5b8c, attempt: 3)

@Suite struct JSONTests {
  @Test("any text comes back as it was, but for NUL")
  func texts() throws {
    let texts = [
      "", "plain", "\"\\/", "\u{1}\u{8}\t\n\u{b}\u{c}\r\u{1f}\u{7f}", "ä\u{301}東\u{1f426}\u{fffd}",
      "a\u{0}b", "\\u0000", "\\", "\"", String(repeating: "\\\"\n", count: 1_000),
    ]
    for text in texts {
      var json = JSONBuffer()
      json.beginObject()
      json.member("text", text)
      json.endObject()
      #expect(!json.bytes.contains(0))
      #expect(try parse(json.text)["text"] as? String == text.replacing("\u{0}", with: "\u{fffd}"))
    }
  }

  @Test("a random text comes back as it was")
  func property() throws {
    let seed = UInt64.random(in: 0 ... .max)
    var random = Seeded(seed)
    for _ in 0..<2_000 {
      let scalars = (0..<Int.random(in: 0...40, using: &random)).compactMap { _ in
        Unicode.Scalar(
          UInt32.random(in: 1...(Bool.random(using: &random) ? 0x7f : 0x10ffff), using: &random))
      }
      let text = String(String.UnicodeScalarView(scalars))
      var json = JSONBuffer()
      json.beginObject()
      json.member(text: text, text)
      json.endObject()
      #expect(try parse(json.text)[text] as? String == text, "seed \(seed)")
    }
  }

  @Test("a success has all members of the contract, and none of a failure")
  func success() throws {
    var settlement = Settlement(fence: fence, outcome: .succeeded)
    settlement.tail = "tail"
    settlement.httpStatus = 200
    var reply = Reply()
    reply.output = "text"
    reply.message = Array(#"{"role":"assistant","content":"text"}"#.utf8)
    reply.finishReason = "stop"
    var usage = Usage()
    usage.input = 1
    usage.cacheRead = 2
    usage.cacheWrite = 3
    usage.cacheWrite1h = 4
    usage.output = 5
    usage.reasoning = 6
    reply.usage = usage
    reply.model = "m"
    reply.serviceTier = "default"
    reply.requestID = "r"
    settlement.reply = reply
    settlement.firstText = 1.23456
    settlement.latency = 1_000
    let json = try written(settlement)
    #expect(
      Set(json.keys) == [
        "id", "attempt", "outcome", "tail", "output", "message", "finish_reason", "usage", "model",
        "service_tier", "request_id", "http_status", "sent", "ttft_ms", "latency_ms",
      ])
    #expect(json["id"] as? String == "01a1fcc3-44d1-7d47-822e-2189e1045b8c")
    #expect(json["attempt"] as? Int == 3)
    #expect(json["ttft_ms"] as? Double == 1.235)
    #expect(json["latency_ms"] as? Double == 1_000)
    #expect((json["message"] as? [String: Any])?["content"] as? String == "text")
    #expect(
      json["usage"] as? [String: Int] == [
        "input": 1, "cache_read": 2, "cache_write": 3, "cache_write_1h": 4, "output": 5,
        "reasoning": 6,
      ])
  }

  @Test("units are told by name, as they were read, in one order")
  func units() throws {
    var settlement = Settlement(fence: fence, outcome: .succeeded)
    var reply = Reply()
    var usage = Usage()
    usage.units = ["seconds": "12.345678901", "images:hd_1024x1024": "2", "audio_input": "7"]
    reply.usage = usage
    settlement.reply = reply
    let json = try written(settlement)
    let written = (json["usage"] as? [String: Any])?["units"] as? [String: String]
    #expect(written == usage.units)
  }

  @Test("a failure has all members of the contract")
  func failure() throws {
    var settlement = Settlement(fence: fence, outcome: .failed)
    var failure = Failure(.http, message: "no\u{0}")
    failure.httpStatus = 529
    failure.type = "overloaded_error"
    failure.code = "c"
    failure.retryAfterMilliseconds = 3_000
    failure.shouldRetry = true
    failure.requestID = "req_1"
    settlement.failure = failure
    // The response's own: it was a 200 with that error in it.
    settlement.httpStatus = 200
    settlement.sent = false
    let json = try written(settlement)
    #expect(
      Set(json.keys) == [
        "id", "attempt", "outcome", "signal", "http_status", "error_type", "error_code",
        "error_message", "retry_after_ms", "should_retry", "request_id", "sent", "latency_ms",
      ])
    #expect(json["signal"] as? String == "http")
    #expect(json["http_status"] as? Int == 529)
    #expect(json["error_message"] as? String == "no\u{fffd}")
    #expect(json["sent"] as? Bool == false)
  }

  @Test("an embedding keeps every bit of its numbers")
  func embedding() throws {
    let seed = UInt64.random(in: 0 ... .max)
    var random = Seeded(seed)
    let vector =
      [0, -0.0, 1, -1, .leastNonzeroMagnitude, .greatestFiniteMagnitude, 0.1, 1e-10]
      + (0..<1_000).map { _ in Float.random(in: -1...1, using: &random) }
    var settlement = Settlement(fence: fence, outcome: .succeeded)
    settlement.reply = Reply()
    settlement.reply?.embedding = vector
    let numbers = try #require(written(settlement)["embedding"] as? [NSNumber])
    #expect(numbers.map(\.floatValue) == vector, "seed \(seed)")
  }

  @Test("several embeddings are written in their order, beside no single one")
  func embeddings() throws {
    var settlement = Settlement(fence: fence, outcome: .succeeded)
    settlement.reply = Reply()
    let empty = settlement.size
    settlement.reply?.embeddings = [[1, 0.5], [-0.25, 2], [3, 4]]
    #expect(settlement.size == empty + 6 * 12)
    let json = try written(settlement)
    let numbers = try #require(json["embeddings"] as? [[NSNumber]])
    #expect(numbers.map { $0.map(\.floatValue) } == [[1, 0.5], [-0.25, 2], [3, 4]])
    #expect(json["embedding"] == nil)
    #expect(json["finish_reason"] == nil)
    #expect(try written(settlement.withoutContent())["embeddings"] == nil)
  }

  @Test("a report without content keeps the fence, the usage and the times")
  func bare() throws {
    var settlement = Settlement(fence: fence, outcome: .succeeded)
    settlement.tail = "poison"
    settlement.reply = Reply()
    settlement.reply?.output = "poison"
    settlement.reply?.usage = Usage()
    settlement.latency = 5
    let json = try written(settlement.withoutContent())
    #expect(json["outcome"] as? String == "failed")
    #expect(json["signal"] as? String == "malformed")
    #expect(json["attempt"] as? Int == 3)
    #expect(json["usage"] != nil)
    #expect(!"\(json)".contains("poison"))
  }

  @Test("a UUID comes back as it was, and anything else is refused")
  func uuid() {
    let text = "01a1fcc3-44d1-7d47-822e-2189e1045b8c"
    func fence(_ text: String) -> Fence? {
      Array(text.utf8).withUnsafeBufferPointer { Fence(uuid: $0, attempt: 3) }
    }
    #expect(fence(text)?.description == text)
    #expect(fence(text.uppercased())?.description == text)
    for wrong in [
      "", "01a1fcc3", text + "0", text.replacing("-", with: "0"), text.replacing("f", with: "g"),
    ] {
      #expect(fence(wrong) == nil)
    }
  }
}

@Suite struct JSONRepairTests {
  private func repair(_ json: String) -> String {
    String(decoding: JSONRepair.repaired(Array(json.utf8)), as: UTF8.self)
  }

  @Test("what jsonb refuses becomes U+FFFD; everything else stays as it is")
  func repairs() {
    let same = [
      #"{"a":"\u00e9\ud83d\udc26\n\\u0000\\\\ud800"}"#, "{}", #"["\u0001"]"#, #""\u000a""#, "",
      #"{"a":"\"#,
    ]
    for json in same { #expect(repair(json) == json) }
    #expect(repair(#"["\u0000"]"#) == "[\"\u{fffd}\"]")
    #expect(repair(#"["\ud800x"]"#) == "[\"\u{fffd}x\"]")
    #expect(repair(#"["\udc00"]"#) == "[\"\u{fffd}\"]")
    #expect(repair(#"["\uD83D\u0041"]"#) == "[\"\u{fffd}\\u0041\"]")
    #expect(repair(#"["\ud83d\ud83d\udc26"]"#) == "[\"\u{fffd}\\ud83d\\udc26\"]")
    #expect(repair(#"["\\\u0000"]"#) == "[\"\\\\\u{fffd}\"]")
    #expect(repair("[\"a\u{0}b\"]") == "[\"a\u{fffd}b\"]")
    let invalid = JSONRepair.repaired([0x22, 0xff, 0x22])
    #expect(String(decoding: invalid, as: UTF8.self) == "\"\u{fffd}\"")
  }
}

@Suite struct LogLines {
  @Test("a log line is one line, whatever is in it")
  func lines() throws {
    let pairs = [("key", "two words\nand a \"quote\""), ("plain", "value")]
    for format in LineLogHandler.Format.allCases {
      let line = LineLogHandler.line(
        format, level: .info, message: "a\nmessage", pairs, at: Date(timeIntervalSince1970: 0))
      #expect(line.hasSuffix("\n"))
      #expect(line.dropLast().contains("\n") == false)
    }
    let json = LineLogHandler.line(
      .json, level: .warning, message: "m", pairs, at: Date(timeIntervalSince1970: 0))
    let object = try parse(json)
    #expect(object["time"] as? String == "1970-01-01T00:00:00.000Z")
    #expect(object["key"] as? String == "two words\nand a \"quote\"")
  }
}
