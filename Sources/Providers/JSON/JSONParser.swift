extension JSON {
  enum Parsed {
    case whole(JSON)
    /// The text ended inside the value. The JSON is what had arrived, every open container and
    /// string closed; nil where nothing had.
    case cut(JSON?)
    case invalid
  }

  /// Parses by RFC 8259, and beyond it: a byte order mark before the text, raw control characters in
  /// strings, and `NaN`/`Infinity`/`-Infinity` (which Python's json module writes) as null.
  /// Nesting is limited to 1,000 levels; texts to 2 GiB; values and keys to `limit`, each of which takes
  /// 16 bytes, where its text may have two.
  static func parse(_ bytes: [UInt8], limit: Int = .max) -> Parsed {
    guard bytes.count < Int(Int32.max) else { return .invalid }
    var parser = Parser(reserving: bytes.count / 12, limit: limit)
    let outcome = bytes.withUnsafeBufferPointer { parser.run($0) }
    switch outcome {
    case .invalid: return .invalid
    case .whole: return .whole(JSON(bytes: bytes, tape: parser.tape, index: 0))
    case .cut:
      guard !parser.tape.isEmpty else { return .cut(nil) }
      return .cut(JSON(bytes: bytes, tape: parser.tape, index: 0))
    }
  }

  private struct Parser {
    enum Ending { case whole, cut, invalid }

    var tape: [Node] = []
    var open: [Int] = []
    var at = 0
    let limit: Int

    init(reserving count: Int, limit: Int) {
      self.limit = limit
      tape.reserveCapacity(min(max(count, 16), 65_536))
    }

    mutating func run(_ text: UnsafeBufferPointer<UInt8>) -> Ending {
      if text.count >= 3, text[0] == 0xEF, text[1] == 0xBB, text[2] == 0xBF { at = 3 }
      let ending = values(text)
      // What is still open ends where the text ends.
      if ending == .cut {
        if let parent = open.last, tape[parent].kind == .object, danglingKey {
          tape.removeLast()
        }
        for node in open {
          tape[node].end = Int32(text.count)
          tape[node].next = Int32(tape.count)
        }
      }
      return ending
    }

    /// Whether the last node is a key whose value has not begun.
    private var danglingKey = false

    private mutating func values(_ text: UnsafeBufferPointer<UInt8>) -> Ending {
      while true {
        skipSpace(text)
        guard at < text.count else { return .cut }
        guard tape.count < limit else { return .invalid }
        switch text[at] {
        case UInt8(ascii: "{"):
          guard begin(.object) else { return .invalid }
          skipSpace(text)
          guard at < text.count else { return .cut }
          if text[at] == UInt8(ascii: "}") {
            close()
          } else {
            if let ending = key(text) { return ending }
            continue
          }
        case UInt8(ascii: "["):
          guard begin(.array) else { return .invalid }
          skipSpace(text)
          guard at < text.count else { return .cut }
          if text[at] == UInt8(ascii: "]") {
            close()
          } else {
            continue
          }
        case UInt8(ascii: "\""):
          danglingKey = false
          if let ending = string(text) { return ending }
        default:
          if let ending = scalar(text) { return ending }
        }
        // A value has ended: close what ends with it, or go on to the next one.
        var next = false
        while !next {
          skipSpace(text)
          guard let container = open.last else { return at == text.count ? .whole : .invalid }
          guard at < text.count else { return .cut }
          let isObject = tape[container].kind == .object
          switch text[at] {
          case UInt8(ascii: ","):
            at += 1
            if isObject {
              skipSpace(text)
              guard at < text.count else { return .cut }
              if let ending = key(text) { return ending }
            }
            next = true
          case UInt8(ascii: "}") where isObject, UInt8(ascii: "]") where !isObject:
            close()
          default:
            return .invalid
          }
        }
      }
    }

    @inline(__always)
    private mutating func skipSpace(_ text: UnsafeBufferPointer<UInt8>) {
      while at < text.count {
        switch text[at] {
        case 0x20, 0x0A, 0x0D, 0x09: at += 1
        default: return
        }
      }
    }

    private mutating func begin(_ kind: Kind) -> Bool {
      guard open.count < 1_000 else { return false }
      danglingKey = false
      open.append(tape.count)
      tape.append(Node(kind: kind, start: Int32(at), end: 0, next: 0))
      at += 1
      return true
    }

    private mutating func close() {
      at += 1
      let node = open.removeLast()
      tape[node].end = Int32(at)
      tape[node].next = Int32(tape.count)
    }

    /// Reads a key and its colon. nil where parsing goes on.
    private mutating func key(_ text: UnsafeBufferPointer<UInt8>) -> Ending? {
      guard text[at] == UInt8(ascii: "\"") else { return .invalid }
      danglingKey = true
      if let ending = string(text) { return ending }
      skipSpace(text)
      guard at < text.count else { return .cut }
      guard text[at] == UInt8(ascii: ":") else { return .invalid }
      at += 1
      return nil
    }

    /// Reads a string. nil where parsing goes on.
    private mutating func string(_ text: UnsafeBufferPointer<UInt8>) -> Ending? {
      let start = at + 1
      var escaped = false
      at = start
      while at < text.count {
        let byte = text[at]
        if byte == UInt8(ascii: "\"") {
          append(.string, start, at, escaped)
          at += 1
          return nil
        }
        if byte < 0x20 {
          escaped = true
        } else if byte == UInt8(ascii: "\\") {
          escaped = true
          guard at + 1 < text.count else { return cutString(start, at) }
          switch text[at + 1] {
          case UInt8(ascii: "u"):
            for digit in (at + 2)..<(at + 6) {
              guard digit < text.count else { return cutString(start, at) }
              guard hexDigit(text[digit]) != nil else { return .invalid }
            }
            at += 5
          case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"), UInt8(ascii: "b"),
            UInt8(ascii: "f"), UInt8(ascii: "n"), UInt8(ascii: "r"), UInt8(ascii: "t"):
            at += 1
          default:
            return .invalid
          }
        }
        at += 1
      }
      return cutString(start, text.count)
    }

    private mutating func cutString(_ start: Int, _ end: Int) -> Ending {
      append(.string, start, end, true)
      return .cut
    }

    @inline(__always)
    private mutating func append(_ kind: Kind, _ start: Int, _ end: Int, _ escaped: Bool) {
      tape.append(
        Node(
          kind: kind, escaped: escaped, start: Int32(start), end: Int32(end),
          next: Int32(tape.count + 1)))
    }

    /// Reads a number or a literal. nil where parsing goes on.
    private mutating func scalar(_ text: UnsafeBufferPointer<UInt8>) -> Ending? {
      let start = at
      while at < text.count {
        switch text[at] {
        case UInt8(ascii: ","), UInt8(ascii: "}"), UInt8(ascii: "]"), 0x20, 0x0A, 0x0D, 0x09: break
        default:
          at += 1
          continue
        }
        break
      }
      let word = text[start..<at]
      let kind: Kind
      if isNumber(word) {
        kind = .number
      } else if word.elementsEqual("null".utf8) || word.elementsEqual("NaN".utf8)
        || word.elementsEqual("Infinity".utf8) || word.elementsEqual("-Infinity".utf8)
      {
        kind = .null
      } else if word.elementsEqual("true".utf8) || word.elementsEqual("false".utf8) {
        kind = .bool
      } else {
        let words = ["null", "true", "false", "NaN", "Infinity", "-Infinity"]
        guard at == text.count else { return .invalid }
        let begun = words.contains { $0.utf8.starts(with: word) } || isNumber(word + [0x30])
        return begun ? .cut : .invalid
      }
      // A number at the very end of a text that is still open may lack digits.
      if kind == .number, at == text.count, !open.isEmpty { return .cut }
      danglingKey = false
      append(kind, start, at, false)
      return nil
    }

    /// `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`
    private func isNumber(_ word: some Collection<UInt8>) -> Bool {
      var rest = word[...]
      func digits() -> Int {
        let count = rest.prefix { (0x30...0x39).contains($0) }.count
        rest = rest.dropFirst(count)
        return count
      }
      if rest.first == UInt8(ascii: "-") { rest = rest.dropFirst() }
      if rest.first == UInt8(ascii: "0") {
        rest = rest.dropFirst()
      } else if digits() == 0 {
        return false
      }
      if rest.first == UInt8(ascii: ".") {
        rest = rest.dropFirst()
        if digits() == 0 { return false }
      }
      if let first = rest.first, first | 0x20 == UInt8(ascii: "e") {
        rest = rest.dropFirst()
        if let sign = rest.first, sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") {
          rest = rest.dropFirst()
        }
        if digits() == 0 { return false }
      }
      return rest.isEmpty
    }
  }
}

/// The value of a hexadecimal digit.
@inline(__always)
func hexDigit(_ byte: UInt8) -> UInt16? {
  switch byte {
  case 0x30...0x39: UInt16(byte - 0x30)
  case 0x41...0x46: UInt16(byte - 0x41 + 10)
  case 0x61...0x66: UInt16(byte - 0x61 + 10)
  default: nil
  }
}
