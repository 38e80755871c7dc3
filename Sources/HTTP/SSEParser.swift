import Glibc

/// A unit of a stream grew beyond its limit.
package struct StreamLimitError: Error, CustomStringConvertible {
  /// In bytes.
  package var limit: Int
  package var description: String { "a unit of the stream exceeds \(limit) bytes" }
}

/// Cuts a byte stream into server-sent events, as the HTML standard (§9.2.6) says: lines end with
/// `\n`, `\r\n` or `\r`; a line that begins with `:` is a comment; several `data` lines join with
/// `\n`; one space after the colon is dropped; a byte order mark at the very start is dropped; an
/// event without its blank line is incomplete and never given.
///
/// Where the stream is cut into pieces makes no difference. `retry` is ignored.
package struct SSEParser: Sendable {
  /// Bytes that one event, or one line, may have.
  package let limit: Int
  /// A line whose end has not arrived.
  private var partial: [UInt8] = []
  private var data: [UInt8] = []
  private var hasData = false
  private var name: String?
  private var id: String?
  /// The last name, to save making the same string for each event.
  private var knownName = ""
  private var isAtStart = true
  /// The last byte was `\r`: a `\n` now belongs to it.
  private var skipsNewline = false

  package init(limit: Int = 16 << 20) {
    self.limit = limit
  }

  /// Bytes of what is not complete yet.
  package var heldBytes: Int { partial.count + data.count }

  /// Takes the next bytes and gives each event they complete: its name (nil where it has none) and
  /// its data. `onEvent` returns false to stop; the rest of the bytes is dropped then. `onID` is told the
  /// id of an event that has one, before the event. After an error the parser must not be used again.
  package mutating func feed(
    _ bytes: UnsafeRawBufferPointer, onID: (String) -> Void = { _ in },
    _ onEvent: (String?, [UInt8]) -> Bool
  ) throws(StreamLimitError) {
    var rest = bytes[...]
    if skipsNewline, let first = rest.first {
      skipsNewline = false
      if first == 0x0a { rest = rest.dropFirst() }
    }
    while !rest.isEmpty {
      guard let end = lineEnd(in: rest) else {
        partial.append(contentsOf: rest)
        try check(partial.count)
        return
      }
      let wantsMore: Bool
      if partial.isEmpty {
        wantsMore = try take(UnsafeRawBufferPointer(rebasing: rest[..<end]), onID, onEvent)
      } else {
        partial.append(contentsOf: rest[..<end])
        try check(partial.count)
        var line: [UInt8] = []
        swap(&line, &partial)
        let result = line.withUnsafeBytes { bytes in
          Result { () throws(StreamLimitError) in try take(bytes, onID, onEvent) }
        }
        wantsMore = try result.get()
        line.removeAll(keepingCapacity: true)
        swap(&line, &partial)
      }
      let isReturn = rest[end] == 0x0d
      rest = rest[(end + 1)...]
      if isReturn {
        if let next = rest.first {
          if next == 0x0a { rest = rest.dropFirst() }
        } else {
          skipsNewline = true
        }
      }
      if !wantsMore { return }
    }
  }

  /// Index of the first `\n` or `\r`.
  private func lineEnd(in bytes: Slice<UnsafeRawBufferPointer>) -> Int? {
    guard let base = bytes.base.baseAddress else { return nil }
    let start = base + bytes.startIndex
    let newline = memchr(start, 0x0a, bytes.count)
    let length = newline.map { $0 - UnsafeMutableRawPointer(mutating: start) } ?? bytes.count
    if let carriageReturn = memchr(start, 0x0d, length) {
      return bytes.startIndex + (carriageReturn - UnsafeMutableRawPointer(mutating: start))
    }
    return newline == nil ? nil : bytes.startIndex + length
  }

  /// Takes one line without its end.
  private mutating func take(
    _ whole: UnsafeRawBufferPointer, _ onID: (String) -> Void,
    _ onEvent: (String?, [UInt8]) -> Bool
  ) throws(StreamLimitError) -> Bool {
    var line = whole[...]
    if isAtStart {
      isAtStart = false
      if line.starts(with: [0xef, 0xbb, 0xbf]) { line = line.dropFirst(3) }
    }
    if line.isEmpty { return dispatch(onID, onEvent) }
    let colon = line.firstIndex(of: UInt8(ascii: ":"))
    if colon == line.startIndex { return true }
    let field = line[..<(colon ?? line.endIndex)]
    var value = line[(colon.map { $0 + 1 } ?? line.endIndex)...]
    if value.first == 0x20 { value = value.dropFirst() }
    if field.elementsEqual("data".utf8) {
      if hasData { data.append(0x0a) }
      hasData = true
      data.append(contentsOf: value)
      try check(data.count)
    } else if field.elementsEqual("event".utf8) {
      if !value.elementsEqual(knownName.utf8) {
        knownName = String(decoding: value, as: UTF8.self)
      }
      name = knownName.isEmpty ? nil : knownName
    } else if field.elementsEqual("id".utf8), !value.contains(0) {
      id = String(decoding: value.prefix(1_024), as: UTF8.self)
    }
    return true
  }

  private mutating func dispatch(
    _ onID: (String) -> Void, _ onEvent: (String?, [UInt8]) -> Bool
  ) -> Bool {
    let (name, id) = (name, id)
    self.name = nil
    self.id = nil
    guard hasData else { return true }
    if let id { onID(id) }
    hasData = false
    var event: [UInt8] = []
    swap(&event, &data)
    return onEvent(name, event)
  }

  private func check(_ count: Int) throws(StreamLimitError) {
    if count > limit { throw StreamLimitError(limit: limit) }
  }
}
