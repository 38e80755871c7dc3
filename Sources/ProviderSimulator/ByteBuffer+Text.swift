import NIOCore

extension ByteBuffer {
  /// Writes a number in decimal without making a `String`.
  mutating func writeDecimal(_ number: Int) {
    if number < 0 {
      writeInteger(UInt8(ascii: "-"))
    }
    var rest = number.magnitude
    withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 20) { digits in
      var index = digits.count
      repeat {
        index -= 1
        digits[index] = UInt8(ascii: "0") + UInt8(truncatingIfNeeded: rest % 10)
        rest /= 10
      } while rest > 0
      _ = writeBytes(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(digits)[index...]))
    }
  }

  /// Writes sixteen lower-case hex digits.
  mutating func writeHex(_ number: UInt64) {
    for shift in stride(from: 60, through: 0, by: -4) {
      let digit = UInt8(truncatingIfNeeded: number >> UInt64(shift)) & 15
      writeInteger(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
    }
  }

  /// Writes a length as the hex digits of a chunk header.
  mutating func writeChunkLength(_ length: Int) {
    var shift = 60
    while shift > 0, length >> shift == 0 { shift -= 4 }
    while shift >= 0 {
      let digit = UInt8(truncatingIfNeeded: length >> shift) & 15
      writeInteger(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
      shift -= 4
    }
  }

  /// Writes UTF-8 text escaped for the inside of a JSON string.
  mutating func writeJSONEscaped(_ text: ArraySlice<UInt8>) {
    writeBytes(JSONText.escaped(String(decoding: text, as: UTF8.self)))
  }
}
