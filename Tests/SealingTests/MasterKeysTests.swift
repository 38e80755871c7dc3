import Foundation
import Testing

@testable import Sealing

@Suite struct MasterKeysTests {
  private let first = Data(repeating: 1, count: 32).base64EncodedString()
  private let second = Data(repeating: 2, count: 32).base64EncodedString()

  private func trouble(_ text: String) -> String? {
    do {
      _ = try MasterKeys(parsing: text.utf8)
      return nil
    } catch {
      return error.description
    }
  }

  @Test("lines and commas, comments and blanks; the first is the current one")
  func forms() throws {
    for text in [
      "a:\(first)\nb:\(second)", "a:\(first),b:\(second)",
      "# ours\r\n\r\n  a:\(first)  \r\nb:\(second)\n",
      "a:\(first),\n,b:\(second),",
    ] {
      let keys = try MasterKeys(parsing: text.utf8)
      #expect(keys.keys.map(\.id) == ["a", "b"])
      #expect(keys.current.id == "a")
      #expect(keys["b"]?.bytes.withBytes { Array($0) } == [UInt8](repeating: 2, count: 32))
      #expect(keys["c"] == nil)
    }
  }

  @Test("what is no master key is refused, and never quoted")
  func refusals() {
    let long = Data(repeating: 1, count: 33).base64EncodedString()
    let short = Data(repeating: 1, count: 16).base64EncodedString()
    for (text, words) in [
      ("", "no master key"), ("# nothing", "no master key"), (first, "id:base64"),
      (":\(first)", "id of master key 1"), ("a b:\(first)", "id of master key 1"),
      ("\(String(repeating: "x", count: 65)):\(first)", "id of master key 1"),
      ("a:\(first)\na:\(second)", "two master keys a"), ("a:\(first)\nb:\(first)", "the same"),
      ("a:\(long)", "33 bytes"), ("a:\(short)", "16 bytes"), ("a:", "0 bytes"),
      ("a:\(first.dropLast())", "not base64"), ("a:\(first.dropLast(2))!=", "not base64"),
      ("a:b:\(first)", "not base64"),
    ] {
      let found = trouble(text)
      #expect(found?.contains(words) == true, "\(text): \(found ?? "nothing")")
      #expect(found?.contains(first.prefix(8)) != true)
    }
  }

  @Test("a new line is read again, and is another one each time")
  func newLines() throws {
    let lines = (0..<50).map { MasterKeys.newLine(id: "k\($0)") }
    let keys = try MasterKeys(parsing: lines.joined(separator: "\n").utf8)
    #expect(keys.keys.count == 50)
  }

  @Test("base64 as Foundation writes it, and nothing else")
  func base64() {
    for count in 0..<70 {
      let bytes = randomBytes(count).withBytes { Array($0) }
      let text = Data(bytes).base64EncodedString()
      #expect(String(decoding: Base64.encode(bytes), as: UTF8.self) == text)
      #expect(Base64.decode(text.utf8) == bytes)
    }
    for text in [
      "A", "AA", "AAA", "AA=A", "====", "A===", "AAAA=", "AA==AAAA", "AA=", "AB==", "AAB=", "A A=",
      "AA-_", "AAAA\n", "=AAA",
    ] {
      #expect(Base64.decode(text.utf8) == nil, "\(text)")
    }
  }
}
