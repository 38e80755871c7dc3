/// Decodes the strings of consecutive deltas into one text that PostgreSQL can store.
///
/// Surrogate halves that arrive in neighbouring strings are joined; a half that stays alone, NUL
/// and invalid UTF-8 each become U+FFFD.
struct TextJoiner: Sendable {
  /// A high surrogate at the end of the last string, waiting for its other half.
  private var high: UInt16?

  init() {}

  /// The text of a JSON string, as far as it is certain; "" for other kinds.
  mutating func text(of json: JSON) -> String {
    let node = json.tape[json.index]
    guard node.kind == .string else { return "" }
    return text(of: node, in: json.bytes)
  }

  /// What is owed for a half that never found its other: "" or U+FFFD. To be called where the text
  /// is known to have ended.
  mutating func end() -> String {
    defer { high = nil }
    return high == nil ? "" : "\u{FFFD}"
  }

  fileprivate mutating func text(of node: JSON.Node, in bytes: [UInt8]) -> String {
    let range = Int(node.start)..<Int(node.end)
    if range.isEmpty { return "" }
    return bytes.withUnsafeBufferPointer { all in
      let text = UnsafeBufferPointer(rebasing: all[range])
      if !node.escaped && high == nil { return String(decoding: text, as: UTF8.self) }
      return String(decoding: unescaped(text), as: UTF8.self)
    }
  }

  private mutating func unescaped(_ text: UnsafeBufferPointer<UInt8>) -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(text.count + 3)
    var at = 0
    while at < text.count {
      let byte = text[at]
      guard byte == UInt8(ascii: "\\"), at + 1 < text.count else {
        replaceHalf(&out)
        if byte == 0 { out.append(contentsOf: replacement) } else { out.append(byte) }
        at += 1
        continue
      }
      let escape = text[at + 1]
      at += 2
      if escape == UInt8(ascii: "u"), at + 4 <= text.count {
        var unit: UInt16 = 0
        for digit in text[at..<(at + 4)] { unit = unit << 4 | (hexDigit(digit) ?? 0) }
        at += 4
        append(unit, to: &out)
      } else {
        replaceHalf(&out)
        switch escape {
        case UInt8(ascii: "b"): out.append(0x08)
        case UInt8(ascii: "f"): out.append(0x0C)
        case UInt8(ascii: "n"): out.append(0x0A)
        case UInt8(ascii: "r"): out.append(0x0D)
        case UInt8(ascii: "t"): out.append(0x09)
        default: out.append(escape)
        }
      }
    }
    return out
  }

  private mutating func append(_ unit: UInt16, to out: inout [UInt8]) {
    if (0xDC00...0xDFFF).contains(unit), let first = high {
      high = nil
      let scalar = 0x10000 + (UInt32(first) - 0xD800) << 10 + (UInt32(unit) - 0xDC00)
      append(scalar, to: &out)
      return
    }
    replaceHalf(&out)
    switch unit {
    case 0, 0xDC00...0xDFFF: out.append(contentsOf: replacement)
    case 0xD800...0xDBFF: high = unit
    default: append(UInt32(unit), to: &out)
    }
  }

  private func append(_ value: UInt32, to out: inout [UInt8]) {
    guard let scalar = Unicode.Scalar(value) else { return out.append(contentsOf: replacement) }
    out.append(contentsOf: UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter)
  }

  private mutating func replaceHalf(_ out: inout [UInt8]) {
    guard high != nil else { return }
    high = nil
    out.append(contentsOf: replacement)
  }
}

/// U+FFFD in UTF-8.
private let replacement: [UInt8] = [0xEF, 0xBF, 0xBD]

extension JSON {
  func text(of node: Node) -> String {
    var joiner = TextJoiner()
    let text = joiner.text(of: node, in: bytes)
    return text + joiner.end()
  }

  /// The text of a string; nil for other kinds. Free of NUL and surrogates (each is U+FFFD).
  package var string: String? {
    kind == .string ? text(of: tape[index]) : nil
  }

  /// A whole number, also where written as a string, with a fraction of zero or an exponent. nil
  /// where there is none or it exceeds 2^53.
  package var int: Int? {
    guard let value = double, value == value.rounded(), abs(value) <= 9_007_199_254_740_992 else {
      return nil
    }
    return Int(value)
  }

  /// A finite number, also where written as a string.
  package var double: Double? {
    guard kind == .number || kind == .string, raw.count < 400 else { return nil }
    guard let value = Double(String(decoding: raw, as: UTF8.self)), value.isFinite else {
      return nil
    }
    return value
  }

  package var bool: Bool? {
    kind == .bool ? raw.first == UInt8(ascii: "t") : nil
  }

  /// A string or number as text, for codes that are one here and the other there.
  var word: String? {
    switch kind {
    case .string: string
    case .number: String(decoding: raw, as: UTF8.self)
    default: nil
    }
  }
}

extension JSON {
  /// The numbers of an array; nil if any element is not a number.
  var floats: [Float]? {
    guard kind == .array else { return nil }
    let end = Int(tape[index].next)
    var floats: [Float] = []
    floats.reserveCapacity(end - index)
    for node in tape[(index + 1)..<end] {
      guard node.kind == .number,
        let value = Float(
          String(decoding: bytes[Int(node.start)..<Int(node.end)], as: UTF8.self))
      else { return nil }
      floats.append(value)
    }
    return floats
  }
}
