extension QueryResult {
  /// A cell of type `bytea`, in either form that `bytea_output` gives it; nil for SQL NULL.
  ///
  /// A cell of another type is a programming error and traps: taken for NULL, it would be taken for what was destroyed.
  package func bytea(_ row: Int, _ column: Int) -> [UInt8]? {
    withBytes(row, column) { text in
      guard let text else { return nil }
      let isHexadecimal = text.starts(with: [UInt8(ascii: "\\"), UInt8(ascii: "x")])
      guard let bytes = isHexadecimal ? unhexed(text) : unescaped(text) else {
        preconditionFailure("column \(column) is no bytea")
      }
      return bytes
    }
  }
}

/// The bytes of `\x`, then two digits for each.
private func unhexed(_ text: UnsafeBufferPointer<UInt8>) -> [UInt8]? {
  guard text.count % 2 == 0 else { return nil }
  var bytes: [UInt8] = []
  bytes.reserveCapacity(text.count / 2 - 1)
  for index in stride(from: 2, to: text.count, by: 2) {
    guard let high = digit(text[index]), let low = digit(text[index + 1]) else { return nil }
    bytes.append(high << 4 | low)
  }
  return bytes
}

/// The bytes as they are, but for `\\` and, in three octal digits, `\000` to `\377`.
private func unescaped(_ text: UnsafeBufferPointer<UInt8>) -> [UInt8]? {
  var bytes: [UInt8] = []
  bytes.reserveCapacity(text.count)
  var rest = text[...]
  while let byte = rest.popFirst() {
    guard byte == UInt8(ascii: "\\") else {
      bytes.append(byte)
      continue
    }
    if rest.first == byte {
      bytes.append(rest.removeFirst())
      continue
    }
    let octal = rest.prefix(3).compactMap(digit)
    guard octal.count == 3, octal[0] < 4, octal[1] < 8, octal[2] < 8 else { return nil }
    bytes.append(octal[0] << 6 | octal[1] << 3 | octal[2])
    rest = rest.dropFirst(3)
  }
  return bytes
}

private func digit(_ character: UInt8) -> UInt8? {
  switch character {
  case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0")
  case UInt8(ascii: "a")...UInt8(ascii: "f"): character - UInt8(ascii: "a") + 10
  default: nil
  }
}

/// Bytes as a parameter of type `bytea`.
package func hexadecimal(_ bytes: [UInt8]) -> String {
  let digits = Array("0123456789abcdef".utf8)
  var text: [UInt8] = [UInt8(ascii: "\\"), UInt8(ascii: "x")]
  text.reserveCapacity(bytes.count * 2 + 2)
  for byte in bytes {
    text.append(digits[Int(byte >> 4)])
    text.append(digits[Int(byte & 15)])
  }
  return String(decoding: text, as: UTF8.self)
}
