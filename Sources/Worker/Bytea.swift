package import Postgres

extension QueryResult {
  /// A cell of type `bytea`; nil for SQL NULL and for what is not in the hexadecimal form.
  package func bytea(_ row: Int, _ column: Int) -> [UInt8]? {
    withBytes(row, column) { text in
      guard let text, text.count >= 2, text.count % 2 == 0, text[0] == UInt8(ascii: "\\"),
        text[1] == UInt8(ascii: "x")
      else { return nil }
      var bytes: [UInt8] = []
      bytes.reserveCapacity(text.count / 2 - 1)
      for index in stride(from: 2, to: text.count, by: 2) {
        guard let high = digit(text[index]), let low = digit(text[index + 1]) else { return nil }
        bytes.append(high << 4 | low)
      }
      return bytes
    }
  }
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
