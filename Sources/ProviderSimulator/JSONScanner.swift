/// Walks over JSON bytes without building a tree, so that a request costs no more than one pass.
///
/// Strings are handed out as ranges of raw (still escaped) bytes. Grammar is RFC 8259; whether
/// the bytes are valid UTF-8 is not checked.
struct JSONScanner {
  /// Not JSON; `offset` is the byte where it became clear.
  struct Malformed: Error, Equatable {
    var offset: Int
  }

  static let deepestNesting = 128

  private let bytes: UnsafeRawBufferPointer
  private(set) var position: Int
  private var depth = 0

  init(_ bytes: UnsafeRawBufferPointer, at position: Int = 0) {
    self.bytes = bytes
    self.position = position
  }

  /// The next byte that is not white space, without consuming it; `nil` at the end.
  mutating func peek() -> UInt8? {
    while position < bytes.count {
      let byte = bytes[position]
      switch byte {
      case 0x20, 0x0A, 0x0D, 0x09: position += 1
      default: return byte
      }
    }
    return nil
  }

  /// Throws unless only white space is left.
  mutating func finish() throws(Malformed) {
    if peek() != nil { throw Malformed(offset: position) }
  }

  private mutating func expect(_ byte: UInt8) throws(Malformed) {
    guard peek() == byte else { throw Malformed(offset: position) }
    position += 1
  }

  /// Consumes a string and returns the range between its quotes.
  mutating func string() throws(Malformed) -> Range<Int> {
    try expect(UInt8(ascii: "\""))
    let start = position
    while position < bytes.count {
      let byte = bytes[position]
      if byte == UInt8(ascii: "\"") {
        defer { position += 1 }
        return start..<position
      }
      if byte == UInt8(ascii: "\\") {
        try escape()
      } else if byte < 0x20 {
        throw Malformed(offset: position)
      } else {
        position += 1
      }
    }
    throw Malformed(offset: position)
  }

  private mutating func escape() throws(Malformed) {
    guard position + 1 < bytes.count else { throw Malformed(offset: position) }
    switch bytes[position + 1] {
    case UInt8(ascii: "u"):
      guard position + 6 <= bytes.count,
        bytes[(position + 2)..<(position + 6)].allSatisfy({ $0.hexDigit != nil })
      else { throw Malformed(offset: position) }
      position += 6
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"), UInt8(ascii: "b"),
      UInt8(ascii: "f"), UInt8(ascii: "n"), UInt8(ascii: "r"), UInt8(ascii: "t"):
      position += 2
    default: throw Malformed(offset: position)
    }
  }

  /// Consumes a number and returns its range.
  mutating func number() throws(Malformed) -> Range<Int> {
    _ = peek()
    let start = position
    if byteHere == UInt8(ascii: "-") { position += 1 }
    if byteHere == UInt8(ascii: "0") { position += 1 } else { try digits() }
    if byteHere == UInt8(ascii: ".") {
      position += 1
      try digits()
    }
    if byteHere == UInt8(ascii: "e") || byteHere == UInt8(ascii: "E") {
      position += 1
      if byteHere == UInt8(ascii: "+") || byteHere == UInt8(ascii: "-") { position += 1 }
      try digits()
    }
    return start..<position
  }

  private var byteHere: UInt8? { position < bytes.count ? bytes[position] : nil }

  private mutating func digits() throws(Malformed) {
    let start = position
    while let byte = byteHere, byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") {
      position += 1
    }
    if position == start { throw Malformed(offset: position) }
  }

  /// Consumes an object. `member` is called with the raw range of each key and must consume the
  /// value that follows.
  mutating func object(
    _ member: (inout JSONScanner, Range<Int>) throws(Malformed) -> Void
  ) throws(Malformed) {
    try enter(UInt8(ascii: "{"))
    defer { depth -= 1 }
    if peek() == UInt8(ascii: "}") {
      position += 1
      return
    }
    while true {
      let key = try string()
      try expect(UInt8(ascii: ":"))
      try member(&self, key)
      if peek() == UInt8(ascii: ",") {
        position += 1
      } else {
        return try expect(UInt8(ascii: "}"))
      }
    }
  }

  /// Consumes an array. `element` must consume one value each time it is called.
  mutating func array(
    _ element: (inout JSONScanner) throws(Malformed) -> Void
  ) throws(Malformed) {
    try enter(UInt8(ascii: "["))
    defer { depth -= 1 }
    if peek() == UInt8(ascii: "]") {
      position += 1
      return
    }
    while true {
      try element(&self)
      if peek() == UInt8(ascii: ",") {
        position += 1
      } else {
        return try expect(UInt8(ascii: "]"))
      }
    }
  }

  private mutating func enter(_ bracket: UInt8) throws(Malformed) {
    try expect(bracket)
    depth += 1
    if depth > Self.deepestNesting { throw Malformed(offset: position) }
  }

  /// Consumes any value.
  mutating func skip() throws(Malformed) {
    switch peek() {
    case UInt8(ascii: "\""): _ = try string()
    case UInt8(ascii: "{"):
      try object { (scanner, _) throws(Malformed) in try scanner.skip() }
    case UInt8(ascii: "["):
      try array { (scanner) throws(Malformed) in try scanner.skip() }
    case UInt8(ascii: "t"): try literal("true")
    case UInt8(ascii: "f"): try literal("false")
    case UInt8(ascii: "n"): try literal("null")
    default: _ = try number()
    }
  }

  private mutating func literal(_ word: StaticString) throws(Malformed) {
    guard position + word.utf8CodeUnitCount <= bytes.count else {
      throw Malformed(offset: position)
    }
    let range = position..<(position + word.utf8CodeUnitCount)
    guard equals(range, word) else { throw Malformed(offset: position) }
    position = range.upperBound
  }

  /// Consumes any value; `true` exactly for the literal `true`.
  mutating func isTrue() throws(Malformed) -> Bool {
    let first = peek()
    try skip()
    return first == UInt8(ascii: "t")
  }

  /// Consumes any value; its integer where it is one that fits.
  mutating func integer() throws(Malformed) -> Int? {
    guard let first = peek(), first == UInt8(ascii: "-") || first.isDigit else {
      try skip()
      return nil
    }
    let range = try number()
    return Int(String(decoding: bytes[range], as: UTF8.self))
  }

  /// Consumes any value; the raw range where it is a string.
  mutating func stringIfAny() throws(Malformed) -> Range<Int>? {
    if peek() == UInt8(ascii: "\"") { return try string() }
    try skip()
    return nil
  }

  /// Whether the raw bytes of `range` are exactly `word`.
  func equals(_ range: Range<Int>, _ word: StaticString) -> Bool {
    guard range.count == word.utf8CodeUnitCount else { return false }
    let literal = UnsafeRawBufferPointer(start: word.utf8Start, count: word.utf8CodeUnitCount)
    return bytes[range].elementsEqual(literal)
  }

  /// The text of a string range, unescaped.
  func text(_ range: Range<Int>) -> String {
    JSONText.unescaped(UnsafeRawBufferPointer(rebasing: bytes[range]))
  }
}

extension UInt8 {
  /// The value of an ASCII hex digit.
  var hexDigit: UInt8? {
    switch self {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): self - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): self - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): self - UInt8(ascii: "A") + 10
    default: nil
    }
  }

  var isDigit: Bool { self >= UInt8(ascii: "0") && self <= UInt8(ascii: "9") }
}
