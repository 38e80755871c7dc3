import Providers
import Testing

/// Streams and bodies cut at every byte: never a success, never a crash, what arrived is kept.
@Suite struct TruncationTests {
  static let recordings = Recording.all

  @Test(arguments: recordings)
  func aCutAnswerIsNeverASuccess(_ recording: Recording) throws {
    let body = Array((recording.body + (recording.stream ? "" : "\n")).utf8)
    let whole = try read(recording.call, body: body)
    let full = try #require(whole.reply).output
    let complete = try #require(end(of: recording.terminal, in: body)) - (recording.stream ? 0 : 1)
    let mayEnd = recording.mayEnd.flatMap { end(of: $0, in: body) } ?? complete
    for length in 0..<body.count {
      let cut = Array(body[..<length])
      for unfinished in [false, true] {
        let broken = try read(
          recording.call, body: cut,
          end: .broken(.truncated, "cut"), unfinished: unfinished)
        expectSound(broken, "at \(length)")
        if length < complete { #expect(broken.failure?.signal == .truncated, "at \(length)") }
        let closed = try read(
          recording.call, body: cut, unfinished: unfinished)
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
    let units = recording.units
    var last = ""
    for count in 0...units.count {
      let reading = try read(
        recording.call, units: Array(units[..<count]),
        end: .broken(.reset, "gone"))
      #expect(reading.shown.hasPrefix(last))
      last = reading.shown
      let reply = reading.reply ?? reading.failure?.partial
      if count > 0, recording.namesModel { #expect(reply?.model != nil) }
      expectSound(reading)
    }
  }

  private func end(of needle: String, in body: [UInt8]) -> Int? {
    let needle = Array(needle.utf8)
    return body.indices.last { body[$0...].starts(with: needle) }.map { $0 + needle.count }
  }
}
