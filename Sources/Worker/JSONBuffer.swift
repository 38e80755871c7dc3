import Sealing

/// Writes UTF-8 JSON that `jsonb` accepts: NUL becomes U+FFFD, numbers are finite.
struct JSONBuffer {
  private(set) var bytes: [UInt8] = []
  private var needsComma = false

  init(reserving count: Int = 1_024) { bytes.reserveCapacity(count) }

  var text: String { String(decoding: bytes, as: UTF8.self) }

  mutating func beginArray() { open(UInt8(ascii: "[")) }
  mutating func endArray() { close(UInt8(ascii: "]")) }
  mutating func beginObject() { open(UInt8(ascii: "{")) }
  mutating func endObject() { close(UInt8(ascii: "}")) }

  mutating func member(_ name: StaticString, _ value: String?) {
    guard let value else { return }
    key(name)
    quote(value)
    needsComma = true
  }

  mutating func member(_ name: StaticString, _ value: Int?) {
    guard let value else { return }
    key(name)
    bytes.append(contentsOf: String(value).utf8)
    needsComma = true
  }

  mutating func member(_ name: StaticString, _ value: Bool?) {
    guard let value else { return }
    key(name)
    bytes.append(contentsOf: (value ? "true" : "false").utf8)
    needsComma = true
  }

  /// A member whose name is not known beforehand.
  mutating func member(text name: String, _ value: String) {
    element(name)
    bytes.append(UInt8(ascii: ":"))
    needsComma = false
    element(value)
  }

  /// A member whose name is not known beforehand: an array of texts.
  mutating func member(text name: String, list: [String]) {
    element(name)
    bytes.append(UInt8(ascii: ":"))
    needsComma = false
    beginArray()
    for value in list { element(value) }
    endArray()
  }

  mutating func element(_ value: String) {
    if needsComma { bytes.append(UInt8(ascii: ",")) }
    quote(value)
    needsComma = true
  }

  mutating func member(_ name: StaticString, texts: [String]) {
    key(name)
    beginArray()
    for text in texts { element(text) }
    endArray()
  }

  /// Milliseconds, to the microsecond.
  mutating func member(_ name: StaticString, milliseconds value: Double?) {
    guard let value, value.isFinite else { return }
    key(name)
    let thousandths = Int((min(max(value, 0), 1e12) * 1_000).rounded())
    bytes.append(contentsOf: String(thousandths / 1_000).utf8)
    bytes.append(UInt8(ascii: "."))
    let rest = thousandths % 1_000
    bytes.append(UInt8(ascii: "0") + UInt8(rest / 100))
    bytes.append(UInt8(ascii: "0") + UInt8(rest / 10 % 10))
    bytes.append(UInt8(ascii: "0") + UInt8(rest % 10))
    needsComma = true
  }

  /// An element, or member after `key`, that is JSON already.
  mutating func member(_ name: StaticString, json: [UInt8]?) {
    guard let json else { return }
    key(name)
    bytes.append(contentsOf: json)
    needsComma = true
  }

  mutating func member(_ name: StaticString, base64 value: [UInt8]?) {
    guard let value else { return }
    key(name)
    bytes.append(UInt8(ascii: "\""))
    bytes.append(contentsOf: Base64.encode(value))
    bytes.append(UInt8(ascii: "\""))
    needsComma = true
  }

  mutating func member(_ name: StaticString, uuidOf fence: Fence) {
    key(name)
    bytes.append(UInt8(ascii: "\""))
    fence.appendUUID(to: &bytes)
    bytes.append(UInt8(ascii: "\""))
    needsComma = true
  }

  /// The shortest decimals that give the same numbers. All must be finite.
  mutating func member(_ name: StaticString, vector: [Float]?) {
    guard let vector else { return }
    key(name)
    append(vector)
  }

  mutating func member(_ name: StaticString, vectors: [[Float]]?) {
    guard let vectors else { return }
    key(name)
    beginArray()
    for vector in vectors { append(vector) }
    endArray()
  }

  private mutating func append(_ vector: [Float]) {
    open(UInt8(ascii: "["))
    for (index, value) in vector.enumerated() {
      if index > 0 { bytes.append(UInt8(ascii: ",")) }
      bytes.append(contentsOf: value.description.utf8)
    }
    close(UInt8(ascii: "]"))
  }

  mutating func key(_ name: StaticString) {
    if needsComma { bytes.append(UInt8(ascii: ",")) }
    bytes.append(UInt8(ascii: "\""))
    bytes.append(
      contentsOf: UnsafeBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount))
    bytes.append(UInt8(ascii: "\""))
    bytes.append(UInt8(ascii: ":"))
    needsComma = false
  }

  private mutating func open(_ bracket: UInt8) {
    if needsComma { bytes.append(UInt8(ascii: ",")) }
    bytes.append(bracket)
    needsComma = false
  }

  private mutating func close(_ bracket: UInt8) {
    bytes.append(bracket)
    needsComma = true
  }

  private mutating func quote(_ text: String) {
    bytes.append(UInt8(ascii: "\""))
    var text = text
    text.withUTF8 { utf8 in
      var start = 0
      for index in utf8.indices {
        let byte = utf8[index]
        if byte >= 0x20 && byte != UInt8(ascii: "\"") && byte != UInt8(ascii: "\\") { continue }
        bytes.append(contentsOf: utf8[start..<index])
        start = index + 1
        escape(byte)
      }
      bytes.append(contentsOf: utf8[start...])
    }
    bytes.append(UInt8(ascii: "\""))
  }

  private mutating func escape(_ byte: UInt8) {
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"):
      bytes.append(UInt8(ascii: "\\"))
      bytes.append(byte)
    case 0x0a: bytes.append(contentsOf: [UInt8(ascii: "\\"), UInt8(ascii: "n")])
    case 0x0d: bytes.append(contentsOf: [UInt8(ascii: "\\"), UInt8(ascii: "r")])
    case 0x09: bytes.append(contentsOf: [UInt8(ascii: "\\"), UInt8(ascii: "t")])
    case 0: bytes.append(contentsOf: [0xef, 0xbf, 0xbd])
    default:
      let digits: StaticString = "0123456789abcdef"
      bytes.append(contentsOf: [
        UInt8(ascii: "\\"), UInt8(ascii: "u"), UInt8(ascii: "0"), UInt8(ascii: "0"),
        digits.utf8Start[Int(byte >> 4)], digits.utf8Start[Int(byte & 15)],
      ])
    }
  }
}
