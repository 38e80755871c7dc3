import FoundationEssentials
import Logging
import Testing

@testable import Worker

private let time = Date(timeIntervalSince1970: 0)

private func text(_ message: String, _ pairs: (String, String)...) -> String {
  LineLogHandler.line(.text, level: .info, message: message, pairs, at: time)
}

private func json(_ message: String, _ pairs: (String, String)...) -> String {
  LineLogHandler.line(.json, level: .info, message: message, pairs, at: time)
}

/// What providers and tenants may put into an error, a model's name or an address.
private let hostile = [
  "one\ntwo", "one\r\ntwo", "\n2026-01-01T00:00:00Z info everything is well", "\r overwritten",
  "\u{1b}[2J\u{1b}[1;31mred\u{1b}[0m", "\u{1b}]0;title\u{7}", "\u{1b}]8;;http://x\u{1b}\\link",
  "\u{9b}31m", "nul\u{0}after", "del\u{7f}", "back\u{8}\u{8}space", "tab\tstop",
  "form\u{c}feed\u{b}",
  "\u{85}next line", "\u{2028}line\u{2029}paragraph", "\u{202e}desrever\u{202c}",
  "\u{2066}isolated",
  "zero\u{200b}width\u{feff}", "\u{ad}soft", "\u{e0041}tags", "\u{e000}private",
  "\u{a0}space\u{3000}",
  "\",\"level\":\"critical", "a=b level=critical", "\\n", "back\\slash", "\u{fffe}",
]

@Suite struct LogFormatTests {
  @Test("plain values stand as words, others in quotes")
  func plain() {
    #expect(
      text("attempt ended", ("model", "gpt"), ("empty", ""), ("words", "two words"), ("utf", "é漢🙂"))
        == "1970-01-01T00:00:00.000Z info attempt ended "
        + "model=gpt empty=\"\" words=\"two words\" utf=é漢🙂\n")
    #expect(
      json("attempt ended", ("model", "é\"\\"))
        == #"{"time":"1970-01-01T00:00:00.000Z","level":"info","message":"attempt ended","#
        + #""model":"é\"\\"}"# + "\n")
  }

  @Test(
    "whatever a value, a name or a message holds, it is one line of visible text",
    arguments: hostile)
  func oneLine(value: String) throws {
    let lines = [
      text("m", ("k", value)), text(value), text("m", (value, "v")), json("m", ("k", value)),
      json(value), json("m", (value, "v")),
    ]
    for line in lines {
      #expect(line.last == "\n")
      for scalar in line.dropLast().unicodeScalars {
        #expect(scalar.value >= 0x20 && !(0x7f...0xa0).contains(scalar.value), "\(line)")
        #expect(![.control, .format, .privateUse].contains(scalar.properties.generalCategory))
      }
    }
  }

  @Test("as JSON nothing of a value is lost, and no member is added", arguments: hostile)
  func roundTrip(value: String) throws {
    let line = Data(json("m", ("k", value)).utf8)
    let read = try JSONDecoder().decode([String: String].self, from: line)
    #expect(read["k"] == value)
    #expect(read.keys.sorted() == ["k", "level", "message", "time"])
  }

  @Test("a value cannot pretend to be another pair")
  func pairs() {
    #expect(text("m", ("k", "v level=critical")).hasSuffix(" k=\"v level=critical\"\n"))
    #expect(text("m", ("k", "v\" level=\"critical")).hasSuffix(" k=\"v\\\" level=\\\"critical\"\n"))
  }

  @Test("long values are cut", arguments: [3_999, 4_000, 4_001, 1_000_000])
  func long(count: Int) {
    let line = text("m", ("k", String(repeating: "x", count: count)))
    #expect(line.utf8.count < 4_100)
    #expect(line.contains("…") == (count > 4_000))
  }
}
