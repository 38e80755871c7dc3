/// Writes `multipart/form-data` (RFC 7578).
struct Multipart {
  private(set) var bytes: [UInt8] = []
  /// Does not occur in any part: it is long, and made from what they hold.
  private let boundary: String

  /// - Parameter seed: the request, from which the boundary is made: pure, and another one for
  ///   another request.
  init(seed: [UInt8], reserving count: Int) {
    // FNV-1a, twice: 128 bits that whoever writes a part would have to hit.
    var first: UInt64 = 0xCBF2_9CE4_8422_2325
    var second: UInt64 = 0x9E37_79B9_7F4A_7C15
    for byte in seed {
      first = (first ^ UInt64(byte)) &* 0x100_0000_01B3
      second = (second ^ UInt64(byte)) &* 0x100_0000_01B3 ^ second >> 29
    }
    boundary = "martlet-" + String(first, radix: 16) + "-" + String(second, radix: 16)
    bytes.reserveCapacity(count + 4_096)
  }

  var contentType: String { "multipart/form-data; boundary=\(boundary)" }

  /// A field of text.
  mutating func field(_ name: String, _ value: String) {
    open(name, "")
    bytes.append(contentsOf: value.utf8)
    append("\r\n")
  }

  /// A parameter: text and numbers as they are, lists as repeated fields, objects as JSON.
  mutating func field(_ name: String, _ value: JSON) {
    switch value.kind {
    case .string: field(name, value.string ?? "")
    case .array: for element in value.elements { field(name + "[]", element) }
    default: field(name, String(decoding: value.raw, as: UTF8.self))
    }
  }

  mutating func file(_ name: String, _ file: InlineFile) {
    open(name, "; filename=\"\(Self.quoted(file.name))\"")
    bytes.removeLast(2)
    append("Content-Type: \(Self.quoted(file.mediaType))\r\n\r\n")
    bytes.append(contentsOf: file.bytes)
    append("\r\n")
  }

  mutating func end() { append("--\(boundary)--\r\n") }

  private mutating func open(_ name: String, _ more: String) {
    append("--\(boundary)\r\n")
    append("Content-Disposition: form-data; name=\"\(Self.quoted(name))\"\(more)\r\n\r\n")
  }

  private mutating func append(_ text: String) { bytes.append(contentsOf: text.utf8) }

  /// As browsers write it: what would end the value or the line is percent-encoded.
  private static func quoted(_ text: String) -> String {
    var quoted = ""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": quoted += "%22"
      case "\r": quoted += "%0D"
      case "\n": quoted += "%0A"
      case "\0": quoted += "%00"
      default: quoted.unicodeScalars.append(scalar)
      }
    }
    return quoted
  }
}
