/// Makes JSON that came from outside acceptable to `jsonb`, which takes neither U+0000 nor half a
/// surrogate pair, and no invalid UTF-8: each becomes U+FFFD. Nothing else is changed or checked.
enum JSONRepair {
  static func repaired(_ json: [UInt8]) -> [UInt8] {
    let valid =
      String(validating: json, as: UTF8.self) == nil
      ? Array(String(decoding: json, as: UTF8.self).utf8) : json
    guard hasSuspectEscape(valid) || valid.contains(0) else { return valid }
    var out: [UInt8] = []
    out.reserveCapacity(valid.count)
    var index = 0
    while index < valid.count {
      let byte = valid[index]
      if byte == 0 {
        out.append(contentsOf: replacement)
        index += 1
        continue
      }
      guard byte == UInt8(ascii: "\\"), index + 1 < valid.count else {
        out.append(byte)
        index += 1
        continue
      }
      guard let unit = unit(valid, at: index) else {
        // A backslash and the character it escapes stay together.
        out.append(contentsOf: valid[index...index + 1])
        index += 2
        continue
      }
      switch unit {
      case 0, 0xdc00...0xdfff:
        out.append(contentsOf: replacement)
        index += 6
      case 0xd800...0xdbff:
        if let low = self.unit(valid, at: index + 6), (0xdc00...0xdfff).contains(low) {
          out.append(contentsOf: valid[index..<index + 12])
          index += 12
        } else {
          out.append(contentsOf: replacement)
          index += 6
        }
      default:
        out.append(contentsOf: valid[index..<index + 6])
        index += 6
      }
    }
    return out
  }

  private static let replacement: [UInt8] = [0xef, 0xbf, 0xbd]

  /// A quick look for `\u0000` and `\uD…`, to spare the walk.
  private static func hasSuspectEscape(_ json: [UInt8]) -> Bool {
    guard json.count >= 6 else { return false }
    for index in 0..<(json.count - 3)
    where json[index] == UInt8(ascii: "\\") && json[index + 1] == UInt8(ascii: "u") {
      let digit = json[index + 2] | 0x20
      if digit == UInt8(ascii: "d") || json[index + 2] == UInt8(ascii: "0") { return true }
    }
    return false
  }

  /// The code unit of a `\uXXXX` at `index`; nil where there is none.
  private static func unit(_ json: [UInt8], at index: Int) -> UInt16? {
    guard index + 5 < json.count, json[index] == UInt8(ascii: "\\"),
      json[index + 1] == UInt8(ascii: "u")
    else { return nil }
    return UInt16(Substring(decoding: json[(index + 2)...(index + 5)], as: UTF8.self), radix: 16)
  }
}
