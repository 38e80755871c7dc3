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
