/// Writes JSON text: commas are its business, values are the caller's.
///
/// What it writes from parsed JSON or from a String is taken by PostgreSQL's `jsonb`: no NUL, no
/// surrogates, no number outside of its range.
struct JSONWriter {
  private(set) var bytes: [UInt8] = []
  private var comma = false

  init(reserving count: Int = 256) {
    bytes.reserveCapacity(count)
  }

  mutating func beginObject() { begin(UInt8(ascii: "{")) }
  mutating func endObject() { end(UInt8(ascii: "}")) }
  mutating func beginArray() { begin(UInt8(ascii: "[")) }
  mutating func endArray() { end(UInt8(ascii: "]")) }

  mutating func key(_ key: String) {
    separate()
    quote(key)
    bytes.append(UInt8(ascii: ":"))
    comma = false
  }

  mutating func string(_ value: String) {
    separate()
    quote(value)
    comma = true
  }

  mutating func int(_ value: Int) { literal(String(value)) }
  mutating func bool(_ value: Bool) { literal(value ? "true" : "false") }
  mutating func null() { literal("null") }

  mutating func member(_ name: String, _ value: String) {
    key(name)
    string(value)
  }

  mutating func member(_ name: String, _ value: Bool) {
    key(name)
    bool(value)
  }

  /// Splices what was written as it stands. Only for JSON that PostgreSQL printed, or this writer.
  mutating func splice(_ json: JSON) {
    separate()
    if json.kind == .string { bytes.append(UInt8(ascii: "\"")) }
    bytes.append(contentsOf: json.raw)
    if json.kind == .string { bytes.append(UInt8(ascii: "\"")) }
    comma = true
  }

  mutating func splice(_ json: [UInt8]) {
    separate()
    bytes.append(contentsOf: json)
    comma = true
  }

  /// A string of `prefix`, which needs no escape, and the bytes in base 64: written in place, since they
  /// may be many.
  mutating func string(_ prefix: String, base64 content: [UInt8]) {
    separate()
    bytes.reserveCapacity(bytes.count + prefix.utf8.count + (content.count + 2) / 3 * 4 + 256)
    bytes.append(UInt8(ascii: "\""))
    bytes.append(contentsOf: prefix.utf8)
    Base64.append(content, to: &bytes)
    bytes.append(UInt8(ascii: "\""))
    comma = true
  }

  /// Writes a value that came from a provider or a model. Recursion is bounded by the parser's limit.
  mutating func copy(_ json: JSON) {
    switch json.kind {
    case .null: null()
    case .bool: bool(json.bool ?? false)
    case .string: string(json.string ?? "")
    case .number: number(json)
    case .array:
      beginArray()
      for element in json.elements { copy(element) }
      endArray()
    case .object:
      beginObject()
      for (name, value) in json.members {
        key(name)
        copy(value)
      }
      endObject()
    }
  }

  /// Digits stay as they are, as far as `numeric` surely takes them; beyond that a number is
  /// reduced to a double's range and precision.
  private mutating func number(_ json: JSON) {
    let raw = json.raw
    if raw.count <= 64, !raw.contains(where: { $0 | 0x20 == UInt8(ascii: "e") }) {
      literal(String(decoding: raw, as: UTF8.self))
    } else if let value = json.double {
      literal(String(value))
    } else {
      null()
    }
  }

  private mutating func literal(_ value: String) {
    separate()
    bytes.append(contentsOf: value.utf8)
    comma = true
  }

  private mutating func begin(_ bracket: UInt8) {
    separate()
    bytes.append(bracket)
    comma = false
  }

  private mutating func end(_ bracket: UInt8) {
    bytes.append(bracket)
    comma = true
  }

  private mutating func separate() {
    if comma { bytes.append(UInt8(ascii: ",")) }
  }

  private mutating func quote(_ value: String) {
    bytes.append(UInt8(ascii: "\""))
    for byte in value.utf8 {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"):
        bytes.append(UInt8(ascii: "\\"))
        bytes.append(byte)
      case 0x0A: bytes.append(contentsOf: #"\n"#.utf8)
      case 0x0D: bytes.append(contentsOf: #"\r"#.utf8)
      case 0x09: bytes.append(contentsOf: #"\t"#.utf8)
      case 0x00: bytes.append(contentsOf: [0xEF, 0xBF, 0xBD])
      case 0x01..<0x20:
        bytes.append(contentsOf: #"\u00"#.utf8)
        let digits = String(byte, radix: 16)
        if digits.utf8.count == 1 { bytes.append(UInt8(ascii: "0")) }
        bytes.append(contentsOf: digits.utf8)
      default: bytes.append(byte)
      }
    }
    bytes.append(UInt8(ascii: "\""))
  }
}
