/// One attempt at one generation: the key of everything the worker holds, and what a report to the
/// database is fenced by.
struct Fence: Hashable, Sendable, CustomStringConvertible {
  /// The generation's UUID, as two numbers in the order of its text.
  let high: UInt64
  let low: UInt64
  let attempt: Int

  init(high: UInt64, low: UInt64, attempt: Int) {
    self.high = high
    self.low = low
    self.attempt = attempt
  }

  /// From a UUID in PostgreSQL's text form (36 characters); nil for anything else.
  init?(uuid: UnsafeBufferPointer<UInt8>, attempt: Int) {
    guard uuid.count == 36 else { return nil }
    var digits = 0
    var high: UInt64 = 0
    var low: UInt64 = 0
    for (index, byte) in uuid.enumerated() {
      if index == 8 || index == 13 || index == 18 || index == 23 {
        guard byte == UInt8(ascii: "-") else { return nil }
        continue
      }
      let value: UInt8
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): value = byte - UInt8(ascii: "0")
      case UInt8(ascii: "a")...UInt8(ascii: "f"): value = byte - UInt8(ascii: "a") + 10
      case UInt8(ascii: "A")...UInt8(ascii: "F"): value = byte - UInt8(ascii: "A") + 10
      default: return nil
      }
      if digits < 16 { high = high << 4 | UInt64(value) } else { low = low << 4 | UInt64(value) }
      digits += 1
    }
    self.init(high: high, low: low, attempt: attempt)
  }

  /// Appends the UUID's 36 characters.
  func appendUUID(to bytes: inout [UInt8]) {
    for index in 0..<32 {
      if index == 8 || index == 12 || index == 16 || index == 20 { bytes.append(UInt8(ascii: "-")) }
      let word = index < 16 ? high : low
      let nibble = UInt8(truncatingIfNeeded: word >> UInt64(60 - (index % 16) * 4)) & 15
      bytes.append(nibble < 10 ? UInt8(ascii: "0") + nibble : UInt8(ascii: "a") + nibble - 10)
    }
  }

  /// The generation's UUID.
  var description: String {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(36)
    appendUUID(to: &bytes)
    return String(decoding: bytes, as: UTF8.self)
  }
}
