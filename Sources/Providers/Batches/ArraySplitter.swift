/// Takes the objects in the arrays of one name out of a JSON text as it arrives, so that a text of any length
/// needs no more memory than its largest element. What is left, with those arrays empty, is `rest`.
///
/// It looks at brackets and strings only: what it gives is to be parsed, and so is the rest.
package struct ArraySplitter: Sendable {
  /// An element, or the rest, is longer than allowed.
  package struct TooLong: Error {}

  private let name: [UInt8]
  private let largest: Int
  private var inString = false
  private var escaped = false
  /// Bytes of the string that is being read or was read last, as far as it may be the name.
  private var word: [UInt8] = []
  /// The name was read, and its colon; nothing but white space since.
  private var isDue = false
  private var sawName = false
  /// Inside such an array.
  private var inside = false
  /// Brackets that are open within the element.
  private var depth = 0
  private var element: [UInt8] = []
  package private(set) var rest: [UInt8] = []

  /// - Parameters:
  ///   - name: of the arrays, ASCII without anything that is escaped.
  ///   - largest: bytes that an element, or the rest, may have.
  package init(name: String, largest: Int = 16 << 20) {
    self.name = Array(name.utf8)
    self.largest = largest
  }

  /// Bytes that it holds.
  package var heldBytes: Int { element.count + rest.count }

  /// Takes the next bytes and gives each element that they complete.
  package mutating func feed(
    _ bytes: UnsafeRawBufferPointer, _ found: ([UInt8]) -> Void
  ) throws(TooLong) {
    for byte in bytes {
      if inside { takeInside(byte, found) } else { takeOutside(byte) }
      if element.count > largest || rest.count > largest { throw TooLong() }
    }
  }

  private mutating func takeInside(_ byte: UInt8, _ found: ([UInt8]) -> Void) {
    if depth > 0 || inString { element.append(byte) }
    if inString { return takeString(byte) }
    switch byte {
    case UInt8(ascii: "\""):
      inString = true
      if depth == 0 { element.append(byte) }
    case UInt8(ascii: "{"), UInt8(ascii: "["):
      if depth == 0 { element = [byte] }
      depth += 1
    case UInt8(ascii: "}"), UInt8(ascii: "]"):
      if depth == 0 {
        inside = false
        element = []
        rest.append(byte)
        return
      }
      depth -= 1
      if depth == 0 {
        found(element)
        element = []
      }
    default: break
    }
  }

  private mutating func takeOutside(_ byte: UInt8) {
    rest.append(byte)
    if inString {
      if byte != UInt8(ascii: "\"") || escaped {
        if word.count <= name.count { word.append(byte) }
      }
      return takeString(byte)
    }
    switch byte {
    case 0x20, 0x09, 0x0A, 0x0D: break
    case UInt8(ascii: "\""):
      inString = true
      word = []
      isDue = false
      sawName = true
    case UInt8(ascii: ":"):
      isDue = sawName && word == name
      sawName = false
    case UInt8(ascii: "["):
      inside = isDue
      isDue = false
      sawName = false
    default:
      isDue = false
      sawName = false
    }
  }

  private mutating func takeString(_ byte: UInt8) {
    if escaped {
      escaped = false
    } else if byte == UInt8(ascii: "\\") {
      escaped = true
    } else if byte == UInt8(ascii: "\"") {
      inString = false
      if inside, depth == 0 { element = [] }
    }
  }
}
