import HTTP
import Providers
import Testing

/// Streams that arrive in pieces, cut by the parsers that cut them in the worker: wherever one is
/// split, it reads as the whole does.
@Suite struct SplitTests {
  @Test(arguments: Recording.all.filter(\.stream))
  func aStreamReadsTheSameWhereverItIsSplit(_ recording: Recording) throws {
    let body = Array(recording.body.utf8)
    let whole = try reading(of: [body[...]], recording)
    #expect(whole.reply != nil)
    for at in body.indices {
      expect(try reading(of: [body[..<at], body[at...]], recording), is: whole, "split at \(at)")
    }
    let bytes = body.indices.map { body[$0...$0] }
    expect(try reading(of: bytes, recording), is: whole, "byte by byte")
  }

  private func expect(_ reading: Reading, is whole: Reading, _ comment: Comment) {
    #expect(reading.shown == whole.shown, comment)
    #expect(reading.wasComplete == whole.wasComplete, comment)
    #expect(reading.reply?.message == whole.reply?.message, comment)
    #expect(reading.reply?.usage == whole.reply?.usage, comment)
    #expect(reading.reply?.finishReason == whole.reply?.finishReason, comment)
  }

  private func reading(of pieces: [ArraySlice<UInt8>], _ recording: Recording) throws -> Reading {
    var reader = try dialect(of: recording.call).reader(for: recording.call)
    let framing = reader.head(
      ResponseHead(status: 200, headers: ["content-type": streamType(recording.dialect)]))
    var shown = ""
    var events = SSEParser()
    var lines = LineParser()
    for piece in pieces {
      try piece.withUnsafeBytes { bytes in
        switch framing {
        case .events:
          try events.feed(bytes) { name, data in
            shown += reader.receive(event: name, data: data)
            return !reader.isComplete
          }
        case .lines:
          try lines.feed(bytes) { line in
            shown += reader.receive(event: nil, data: line)
            return !reader.isComplete
          }
        case .whole: Issue.record("a stream is not read as a whole")
        }
      }
    }
    let wasComplete = reader.isComplete
    return Reading(outcome: reader.finish(.complete), shown: shown, wasComplete: wasComplete)
  }
}
