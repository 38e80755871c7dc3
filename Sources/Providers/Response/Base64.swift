/// RFC 4648 §4.
enum Base64 {
  /// The bytes, or nil for text that is not base64. Padding may be missing.
  static func bytes(_ text: String) -> [UInt8]? {
    var out: [UInt8] = []
    out.reserveCapacity(text.utf8.count / 4 * 3)
    var bits: UInt32 = 0
    var count = 0
    var padding = 0
    for byte in text.utf8 {
      if byte == UInt8(ascii: "=") {
        padding += 1
        continue
      }
      guard padding == 0, let value = value(of: byte) else { return nil }
      bits = bits << 6 | value
      count += 1
      if count % 4 != 1 {
        let unused = UInt32([0, 0, 4, 2][count % 4])
        out.append(UInt8(truncatingIfNeeded: bits >> unused))
      }
    }
    guard count % 4 != 1, padding == 0 || (count + padding) % 4 == 0, padding < 3 else {
      return nil
    }
    return out
  }

  /// Appends the text for `bytes`, with padding.
  static func append(_ bytes: [UInt8], to text: inout [UInt8]) {
    func digit(_ bits: UInt32) -> UInt8 {
      switch UInt8(truncatingIfNeeded: bits & 63) {
      case let bits where bits < 26: 0x41 + bits
      case let bits where bits < 52: 0x61 + bits - 26
      case let bits where bits < 62: 0x30 + bits - 52
      case 62: UInt8(ascii: "+")
      default: UInt8(ascii: "/")
      }
    }
    var at = 0
    while at < bytes.count {
      let count = min(3, bytes.count - at)
      var group = UInt32(bytes[at]) << 16
      if count > 1 { group |= UInt32(bytes[at + 1]) << 8 }
      if count > 2 { group |= UInt32(bytes[at + 2]) }
      text.append(digit(group >> 18))
      text.append(digit(group >> 12))
      text.append(count > 1 ? digit(group >> 6) : UInt8(ascii: "="))
      text.append(count > 2 ? digit(group) : UInt8(ascii: "="))
      at += 3
    }
  }

  private static func value(of byte: UInt8) -> UInt32? {
    switch byte {
    case 0x41...0x5A: UInt32(byte - 0x41)
    case 0x61...0x7A: UInt32(byte - 0x61 + 26)
    case 0x30...0x39: UInt32(byte - 0x30 + 52)
    case UInt8(ascii: "+"): 62
    case UInt8(ascii: "/"): 63
    default: nil
    }
  }
}
