import NIOCore
import NIOHTTP1

/// The members of one JSON object, as they are written.
struct RawJSON {
  private var members: [String: [UInt8]] = [:]

  /// nil: it is not an object.
  init?(_ bytes: [UInt8]) {
    let members = bytes.withUnsafeBytes { raw -> [String: [UInt8]]? in
      var scanner = JSONScanner(raw)
      var members: [String: [UInt8]] = [:]
      guard scanner.peek() == UInt8(ascii: "{") else { return nil }
      do throws(JSONScanner.Malformed) {
        try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
          _ = scanner.peek()
          let start = scanner.position
          try scanner.skip()
          members[scanner.text(key)] = Array(raw[start..<scanner.position])
        }
        try scanner.finish()
        return members
      } catch {
        return nil
      }
    }
    guard let members else { return nil }
    self.members = members
  }

  func raw(_ name: String) -> [UInt8]? { members[name] }
  func object(_ name: String) -> RawJSON? { members[name].flatMap { RawJSON($0) } }

  func text(_ name: String) -> String? {
    members[name].flatMap { raw in
      guard raw.first == UInt8(ascii: "\"") else { return nil }
      return raw.withUnsafeBytes {
        JSONText.unescaped(UnsafeRawBufferPointer(rebasing: $0[1..<(raw.count - 1)]))
      }
    }
  }

  func elements(_ name: String) -> [[UInt8]]? {
    guard let array = members[name], array.first == UInt8(ascii: "[") else { return nil }
    return array.withUnsafeBytes { raw in
      var scanner = JSONScanner(raw)
      var elements: [[UInt8]] = []
      do throws(JSONScanner.Malformed) {
        try scanner.array { (scanner) throws(JSONScanner.Malformed) in
          _ = scanner.peek()
          let start = scanner.position
          try scanner.skip()
          elements.append(Array(raw[start..<scanner.position]))
        }
      } catch {
        return nil
      }
      return elements
    }
  }
}

/// A form with a purpose and a file (RFC 7578), as far as a batch needs it.
struct BatchForm {
  var purpose = ""
  var name = ""
  var content: [UInt8] = []

  /// nil: the body is not such a form.
  init?(_ request: IncomingRequest) {
    guard let type = request.head.headers.first(name: "content-type"),
      type.lowercased().hasPrefix("multipart/form-data"),
      let boundary = type.split(separator: ";").map({ $0.trimmingSpaces })
        .first(where: { $0.hasPrefix("boundary=") })?.dropFirst("boundary=".count)
    else { return nil }
    let body = Array(request.body.readableBytesView)
    let mark = Array("--\(boundary.filter { $0 != "\"" })".utf8)
    let starts = Self.places(of: mark, in: body)
    guard starts.count >= 2 else { return nil }
    for (start, end) in zip(starts, starts.dropFirst()) {
      let part = Array(body[(start + mark.count)..<end])
      guard let gap = Self.places(of: Array("\r\n\r\n".utf8), in: part).first else { continue }
      let head = String(decoding: part[..<gap], as: UTF8.self)
      // Between the head and the line break before the next boundary.
      let value = Array(part[(gap + 4)..<max(gap + 4, part.count - 2)])
      if head.contains("name=\"purpose\"") {
        purpose = String(decoding: value, as: UTF8.self)
      } else if head.contains("name=\"file\"") {
        content = value
        name =
          head.split(separator: "filename=\"", maxSplits: 1).last
          .map { String($0.prefix { $0 != "\"" }) } ?? ""
      }
    }
  }

  private static func places(of mark: [UInt8], in bytes: [UInt8]) -> [Int] {
    var found: [Int] = []
    var at = 0
    while at + mark.count <= bytes.count {
      if bytes[at] == mark[0], bytes[at..<(at + mark.count)].elementsEqual(mark) {
        found.append(at)
        at += mark.count
      } else {
        at += 1
      }
    }
    return found
  }
}
