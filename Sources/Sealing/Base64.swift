/// Base 64 of RFC 4648 §4, strict: no white space, no other alphabet, whole groups, zero bits behind the
/// last byte. One text stands for given bytes, and only one.
package enum Base64 {
  private static let alphabet = Array(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
  private static let padding = UInt8(ascii: "=")

  /// Four characters for each three bytes begun.
  package static func encode(_ bytes: some Sequence<UInt8>) -> [UInt8] {
    var text: [UInt8] = []
    text.reserveCapacity((bytes.underestimatedCount + 2) / 3 * 4)
    var group: UInt32 = 0
    var count = 0
    for byte in bytes {
      group = group << 8 | UInt32(byte)
      count += 1
      guard count == 3 else { continue }
      for shift in [UInt32(18), 12, 6, 0] { text.append(alphabet[Int(group >> shift & 63)]) }
      group = 0
      count = 0
    }
    if count > 0 {
      group <<= count == 1 ? 16 : 8
      text.append(alphabet[Int(group >> 18 & 63)])
      text.append(alphabet[Int(group >> 12 & 63)])
      text.append(count == 2 ? alphabet[Int(group >> 6 & 63)] : padding)
      text.append(padding)
    }
    return text
  }

  /// nil for what `encode` would not have written.
  package static func decode(_ text: some Collection<UInt8>) -> [UInt8]? {
    guard text.count % 4 == 0 else { return nil }
    var bytes: [UInt8] = []
    // At once: what grows leaves copies behind, and this may be a key.
    bytes.reserveCapacity(text.count / 4 * 3)
    var group: UInt32 = 0
    var count = 0
    var missing = 0
    for character in text {
      group <<= 6
      count += 1
      if character == padding {
        missing += 1
      } else {
        guard missing == 0, let digit = digit(character) else { return failed(&bytes) }
        group |= UInt32(digit)
      }
      guard count == 4 else { continue }
      guard missing <= 2, missing == 0 || group & (missing == 1 ? 0xff : 0xffff) == 0 else {
        return failed(&bytes)
      }
      for (place, shift) in [UInt32(16), 8, 0].enumerated() where place < 3 - missing {
        bytes.append(UInt8(group >> shift & 0xff))
      }
      // Padding ends the text.
      count = missing == 0 ? 0 : 5
      group = 0
    }
    return bytes
  }

  private static func failed(_ bytes: inout [UInt8]) -> [UInt8]? {
    erase(&bytes)
    return nil
  }

  private static func digit(_ character: UInt8) -> UInt8? {
    switch character {
    case UInt8(ascii: "A")...UInt8(ascii: "Z"): character - UInt8(ascii: "A")
    case UInt8(ascii: "a")...UInt8(ascii: "z"): character - UInt8(ascii: "a") + 26
    case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0") + 52
    case UInt8(ascii: "+"): 62
    case UInt8(ascii: "/"): 63
    default: nil
    }
  }
}
