/// Cuts a byte stream into lines, for newline-delimited JSON. Lines end with `\n` or `\r\n`; a
/// lone `\r` is white space within JSON. Empty lines are dropped, and so is a byte order mark at
/// the very start. Where the stream is cut into pieces makes no difference.
package struct LineParser: Sendable {
  /// Bytes that one line may have, without its end.
  package let limit: Int
  private var partial: [UInt8] = []
  private var isAtStart = true

  package init(limit: Int = 16 << 20) {
    self.limit = limit
  }

  /// Bytes of what is not complete yet.
  package var heldBytes: Int { partial.count }

  /// Takes the next bytes and gives each line they complete. `onLine` returns false to stop; the
  /// rest of the bytes is dropped then. After an error the parser must not be used again.
  package mutating func feed(
    _ bytes: UnsafeRawBufferPointer, _ onLine: ([UInt8]) -> Bool
  ) throws(StreamLimitError) {
    var rest = bytes[...]
    while let end = rest.firstIndex(of: 0x0a) {
      partial.append(contentsOf: rest[..<end])
      rest = rest[(end + 1)...]
      if let line = try takeLine(), !onLine(line) { return }
    }
    partial.append(contentsOf: rest)
    // One more for a `\r` that may turn out to belong to the line's end, three for the mark.
    if partial.count > limit + 4 { throw StreamLimitError(limit: limit) }
  }

  /// The last line, where the stream ended without ending it.
  package mutating func finish() throws(StreamLimitError) -> [UInt8]? {
    try takeLine()
  }

  private mutating func takeLine() throws(StreamLimitError) -> [UInt8]? {
    var line: [UInt8] = []
    swap(&line, &partial)
    if line.last == 0x0d { line.removeLast() }
    if isAtStart {
      isAtStart = false
      if line.starts(with: [0xef, 0xbb, 0xbf]) { line.removeFirst(3) }
    }
    if line.count > limit { throw StreamLimitError(limit: limit) }
    return line.isEmpty ? nil : line
  }
}
