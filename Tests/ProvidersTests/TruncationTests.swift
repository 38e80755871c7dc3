import Providers
import Testing

/// Streams and bodies cut at every byte: never a success, never a crash, what arrived is kept.
@Suite struct TruncationTests {
  struct Recording: Sendable {
    var dialect: String
    var stream: Bool
    var body: String
    /// The event that makes it whole.
    var terminal: String
    /// The event after which a proper end of the response is enough, where the protocol allows it.
    var mayEnd: String?
  }

  static let recordings = [
    Recording(
      dialect: "openai", stream: true, body: Fixture.openAIStream, terminal: "data: [DONE]",
      mayEnd: #""finish_reason":"stop"}],"usage":null}"#),
    Recording(
      dialect: "openai", stream: true, body: Fixture.openAITools, terminal: "data: [DONE]",
      mayEnd: #""finish_reason":"tool_calls"}]}"#),
    Recording(
      dialect: "anthropic", stream: true, body: Fixture.anthropicStream,
      terminal: #"data: {"type":"message_stop"}"#),
    Recording(dialect: "openai", stream: false, body: Fixture.openAIWhole, terminal: "}\n"),
    Recording(dialect: "anthropic", stream: false, body: Fixture.anthropicWhole, terminal: "}\n"),
  ]

  @Test(arguments: recordings)
  func aCutAnswerIsNeverASuccess(_ recording: Recording) throws {
    let body = Array((recording.body + (recording.stream ? "" : "\n")).utf8)
    let whole = try read(call(recording.dialect, stream: recording.stream), body: body)
    let full = try #require(whole.reply).output
    let complete = try #require(end(of: recording.terminal, in: body)) - (recording.stream ? 0 : 1)
    let mayEnd = recording.mayEnd.flatMap { end(of: $0, in: body) } ?? complete
    for length in 0..<body.count {
      let cut = Array(body[..<length])
      for unfinished in [false, true] {
        let broken = try read(
          call(recording.dialect, stream: recording.stream), body: cut,
          end: .broken(.truncated, "cut"), unfinished: unfinished)
        expectSound(broken, "at \(length)")
        if length < complete { #expect(broken.failure?.signal == .truncated, "at \(length)") }
        let closed = try read(
          call(recording.dialect, stream: recording.stream), body: cut, unfinished: unfinished)
        expectSound(closed, "at \(length)")
        if length < mayEnd {
          let signal = closed.failure?.signal
          let expected: Failure.Signal = recording.stream ? .truncated : .malformed
          #expect(signal == expected || signal == .empty, "at \(length): \(closed.outcome)")
        }
        for reading in [broken, closed] {
          #expect(full.utf8.starts(with: trimmed(reading.shown).utf8), "at \(length)")
        }
      }
    }
  }

  /// Cutting a body inside of a character leaves U+FFFD at the end of its text.
  private func trimmed(_ text: String) -> Substring {
    text.last == "\u{FFFD}" ? text.dropLast() : text[...]
  }

  @Test(arguments: recordings.filter(\.stream))
  func textGrowsAsTheStreamDoes(_ recording: Recording) throws {
    let units = events(Array(recording.body.utf8))
    var last = ""
    for count in 0...units.count {
      let reading = try read(
        call(recording.dialect, stream: true), units: Array(units[..<count]),
        end: .broken(.reset, "gone"))
      #expect(reading.shown.hasPrefix(last))
      last = reading.shown
      let reply = reading.reply ?? reading.failure?.partial
      if count > 0 { #expect(reply?.model != nil) }
      expectSound(reading)
    }
  }

  private func end(of needle: String, in body: [UInt8]) -> Int? {
    let needle = Array(needle.utf8)
    return body.indices.last { body[$0...].starts(with: needle) }.map { $0 + needle.count }
  }
}
