import Foundation
import Testing

@testable import Providers

@Suite struct JSONTests {
  @Test(arguments: [
    "null", "true", "0", "-0", "-1.5e+10", "\"\"", "[]", "{}", "[1,[2,[3]]]", #"{"a":{"b":[{}]}}"#,
    " \t\r\n{ \"a\" : [ 1 , 2 ] } \n", #""\"\\\/\b\f\n\r\t\u00e4\uD83D\uDC26""#, "\u{FEFF}{}",
    "[1e5,1E-5,0.1]", #"{"a":1,"a":2}"#,
  ]) func validTextsAreRead(_ text: String) {
    #expect(JSON(Array(text.utf8)) != nil)
  }

  @Test(arguments: [
    "", " ", "nul", "tru", "+1", "01", "1.", ".5", "1e", "--1", "0x10", "'a'", "[1,]", "[,1]",
    "{a:1}",
    #"{"a" 1}"#, #"{"a":1,}"#, #"{"a":1"b":2}"#, "[1 2]", "[}", "{]", "]", "1 2", "{} {}", #""\x""#,
    #""\u12g4""#, "\"", #""\u12"#, "[", "{", #"{"a""#, #"{"a":"#, "infinity", "truefalse", "[1}",
  ]) func invalidTextsAreNot(_ text: String) {
    #expect(JSON(Array(text.utf8)) == nil)
  }

  @Test func membersAreFoundWhateverTheirSpelling() throws {
    let json = try #require(JSON(Array(#"{"a":1,"\u0062":2,"c":null,"a":3,"ä":4}"#.utf8)))
    #expect(json["a"]?.int == 3)
    #expect(json["b"]?.int == 2)
    #expect(json["c"] == nil)
    #expect(json["d"] == nil)
    #expect(json.member(named: "ä")?.int == 4)
    #expect(json.members.map(\.key) == ["a", "b", "c", "a", "ä"])
  }

  @Test func numbersAreReadWithinTheirBounds() throws {
    func int(_ text: String) -> Int? { JSON(Array(text.utf8))?.int }
    #expect(int("12") == 12 && int("\"12\"") == 12 && int("12.0") == 12 && int("1.2e1") == 12)
    #expect(int("1.5") == nil && int("1e300") == nil && int("\"x\"") == nil && int("true") == nil)
    #expect(int("99999999999999999999999") == nil && int("null") == nil && int("\"\"") == nil)
    #expect(int(String(repeating: "9", count: 10_000)) == nil)
  }

  @Test func depthIsBoundedAndWritable() throws {
    func nested(_ depth: Int) -> [UInt8] {
      Array((String(repeating: "[", count: depth) + String(repeating: "]", count: depth)).utf8)
    }
    let deep = try #require(JSON(nested(1_000)))
    var writer = JSONWriter()
    writer.copy(deep)
    #expect(writer.bytes == nested(1_000))
    #expect(JSON(nested(1_001)) == nil)
    #expect(JSON(nested(1_000_000)) == nil)
  }

  @Test func valuesAreCounted() {
    func isWhole(_ text: String, _ limit: Int) -> Bool {
      if case .whole = JSON.parse(Array(text.utf8), limit: limit) { return true }
      return false
    }
    for (text, count) in [("0", 1), ("[0,0,0]", 4), (#"{"a":{},"b":[[]]}"#, 6)] {
      #expect(isWhole(text, count))
      #expect(!isWhole(text, count - 1))
    }
  }

  @Test func aCutTextGivesWhatItHeld() throws {
    let text = Array(#"{"a":[1,{"b":"xäy\n\ud83d\udc26z"}],"c":true,"d":12}"#.utf8)
    for length in 0..<text.count {
      guard case .cut(let json) = JSON.parse(Array(text[..<length])) else {
        Issue.record("at \(length)")
        continue
      }
      guard let json else {
        #expect(length == 0)
        continue
      }
      // All of it must be reachable without a trap, and none of it made up.
      var writer = JSONWriter()
      writer.copy(json)
      #expect(JSON(writer.bytes) != nil)
      if let b = json["a"]?.elements.last?["b"]?.string, !b.isEmpty {
        #expect("xäy\n🐦z".utf8.starts(with: b.utf8.prefix { $0 != 0xEF }))
      }
      if let d = json["d"] { #expect(d.int == 12) }
    }
  }

  @Test func copiesAreStorableWhateverTheyAreCopiesOf() throws {
    let text =
      #"{"\u0000k\ud800":["\ud83d","\udc26\ud83d","\u0000",1e999,1e-999,1e400000,NaN,-0.0,123456789012345678901234567890]}"#
    let json = try #require(JSON(Array(text.utf8)))
    var writer = JSONWriter()
    writer.copy(json)
    #expect(isStorable(writer.bytes))
    #expect(
      String(decoding: writer.bytes, as: UTF8.self)
        == "{\"\u{FFFD}k\u{FFFD}\":[\"\u{FFFD}\",\"\u{FFFD}\u{FFFD}\",\"\u{FFFD}\",null,0.0,null,null,"
        + "-0.0,123456789012345678901234567890]}")
  }

  @Test func everyControlCharacterIsEscaped() throws {
    let text = String(String.UnicodeScalarView((0..<0x100).compactMap { Unicode.Scalar($0) }))
    var writer = JSONWriter()
    writer.string(text)
    #expect(isStorable(writer.bytes) || JSON(writer.bytes) != nil)
    let back = try #require(JSON(writer.bytes)?.string)
    #expect(back == text.replacing("\0", with: "\u{FFFD}"))
  }

  @Test func textAgreesWithFoundation() throws {
    var random = SeededGenerator(seed: 7)
    for _ in 0..<2_000 {
      let scalars = (0..<Int.random(in: 0...12, using: &random)).compactMap { _ in
        Unicode.Scalar(
          UInt32.random(in: 1...0x10FFFF, using: &random)
            >> UInt32.random(in: 0...20, using: &random))
      }
      let text = String(String.UnicodeScalarView(scalars.filter { $0 != "\0" }))
      let escaped = text.utf16.map { unit in "\\u" + hex(unit) }.joined()
      #expect(JSON(Array("\"\(escaped)\"".utf8))?.string == text)
      var writer = JSONWriter()
      writer.string(text)
      let decoded = try JSONSerialization.jsonObject(
        with: Data(writer.bytes), options: .fragmentsAllowed)
      #expect(decoded as? String == text)
    }
  }

  private func hex(_ unit: UInt16) -> String {
    let digits = String(unit, radix: 16)
    return String(repeating: "0", count: 4 - digits.count) + digits
  }

  @Test func base64AgreesWithFoundation() {
    var random = SeededGenerator(seed: 11)
    for count in 0..<200 {
      let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
      let text = Data(bytes).base64EncodedString()
      #expect(Base64.bytes(text) == bytes)
      #expect(Base64.bytes(text.replacing("=", with: "")) == bytes)
    }
    for wrong in ["A", "A===", "AA=A", "====", "AA\n", "AA-_", "AAA==", "ä"] {
      #expect(Base64.bytes(wrong) == nil, "\(wrong)")
    }
  }
}
