/// The inside of JSON strings: escaping, unescaping, and steps from one character to the next.
enum JSONText {
  /// Escapes text for the inside of a JSON string (quotes, backslash, control characters).
  static func escaped(_ text: String) -> [UInt8] {
    var copy = text
    return copy.withUTF8 { bytes in
      var out: [UInt8] = []
      out.reserveCapacity(bytes.count + 8)
      // Runs that need no escape are copied at once.
      var start = 0
      for (index, byte) in bytes.enumerated() where needsEscape(byte) {
        out.append(contentsOf: bytes[start..<index])
        appendEscaped(byte, to: &out)
        start = index + 1
      }
      out.append(contentsOf: bytes[start...])
      return out
    }
  }

  private static func needsEscape(_ byte: UInt8) -> Bool {
    byte < 0x20 || byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\")
  }

  private static func appendEscaped(_ byte: UInt8, to out: inout [UInt8]) {
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"):
      out.append(UInt8(ascii: "\\"))
      out.append(byte)
    case 0x0A: out.append(contentsOf: [UInt8(ascii: "\\"), UInt8(ascii: "n")])
    case 0x0D: out.append(contentsOf: [UInt8(ascii: "\\"), UInt8(ascii: "r")])
    case 0x09: out.append(contentsOf: [UInt8(ascii: "\\"), UInt8(ascii: "t")])
    case 0..<0x20:
      let digits = Array("0123456789abcdef".utf8)
      out.append(contentsOf: Array("\\u00".utf8))
      out.append(digits[Int(byte >> 4)])
      out.append(digits[Int(byte & 15)])
    default: out.append(byte)
    }
  }

  /// Undoes the escapes of a JSON string; lone surrogates and invalid UTF-8 become U+FFFD.
  static func unescaped(_ raw: UnsafeRawBufferPointer) -> String {
    guard raw.contains(UInt8(ascii: "\\")) else { return String(decoding: raw, as: UTF8.self) }
    var text = ""
    var index = 0
    while index < raw.count {
      let end = unitEnd(in: raw, from: index)
      append(UnsafeRawBufferPointer(rebasing: raw[index..<end]), to: &text)
      index = end
    }
    return text
  }

  private static func append(_ unit: UnsafeRawBufferPointer, to text: inout String) {
    guard unit[0] == UInt8(ascii: "\\"), unit.count >= 2 else {
      text += String(decoding: unit, as: UTF8.self)
      return
    }
    switch unit[1] {
    case UInt8(ascii: "n"): text += "\n"
    case UInt8(ascii: "r"): text += "\r"
    case UInt8(ascii: "t"): text += "\t"
    case UInt8(ascii: "b"): text += "\u{8}"
    case UInt8(ascii: "f"): text += "\u{c}"
    case UInt8(ascii: "u"):
      var units: [UInt16] = []
      if let first = codeUnit(in: unit, at: 0) { units.append(first) }
      if unit.count == 12, let second = codeUnit(in: unit, at: 6) { units.append(second) }
      text += String(decoding: units, as: UTF16.self)
    default: text.unicodeScalars.append(Unicode.Scalar(unit[1]))
    }
  }

  /// Where the character that starts at `index` ends: one UTF-8 sequence, one escape, or a
  /// surrogate pair of escapes. Always moves forward and never past the end.
  static func unitEnd(in raw: some Collection<UInt8>, from index: Int) -> Int {
    unitEnd(count: raw.count, from: index) { raw[raw.index(raw.startIndex, offsetBy: $0)] }
  }

  static func unitEnd(count: Int, from index: Int, _ byte: (Int) -> UInt8) -> Int {
    let first = byte(index)
    if first == UInt8(ascii: "\\"), index + 1 < count {
      guard byte(index + 1) == UInt8(ascii: "u") else { return index + 2 }
      let end = min(index + 6, count)
      guard isSurrogate(count: count, at: index, lead: true, byte),
        isSurrogate(count: count, at: end, lead: false, byte)
      else { return end }
      return end + 6
    }
    var end = index + 1
    if first >= 0xC0 {
      while end < count, end < index + 4, byte(end) & 0xC0 == 0x80 { end += 1 }
    }
    return end
  }

  private static func isSurrogate(
    count: Int, at index: Int, lead: Bool, _ byte: (Int) -> UInt8
  ) -> Bool {
    guard index + 6 <= count, byte(index) == UInt8(ascii: "\\"),
      byte(index + 1) == UInt8(ascii: "u"), let high = byte(index + 2).hexDigit,
      let low = byte(index + 3).hexDigit
    else { return false }
    return lead ? high == 13 && (8...11).contains(low) : high == 13 && low >= 12
  }

  private static func codeUnit(in raw: UnsafeRawBufferPointer, at index: Int) -> UInt16? {
    guard index + 6 <= raw.count else { return nil }
    var value: UInt16 = 0
    for offset in 2..<6 {
      guard let digit = raw[index + offset].hexDigit else { return nil }
      value = value << 4 | UInt16(digit)
    }
    return value
  }

  /// Whether `text` is one JSON object.
  static func isObject(_ text: String) -> Bool {
    var copy = text
    return copy.withUTF8 { bytes in
      var scanner = JSONScanner(UnsafeRawBufferPointer(bytes))
      guard scanner.peek() == UInt8(ascii: "{") else { return false }
      do throws(JSONScanner.Malformed) {
        try scanner.skip()
        try scanner.finish()
        return true
      } catch {
        return false
      }
    }
  }
}
