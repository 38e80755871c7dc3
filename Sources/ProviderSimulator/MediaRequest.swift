/// What the simulator needs to know of a request for images, speech or a transcription: fields of a JSON
/// object or of a form, and the files of a form.
struct MediaRequest {
  struct File {
    var field: String
    var name: String
    var bytes: Int
    /// FNV-1a of the content.
    var hash: UInt64
  }

  var fields: [String: String] = [:]
  var files: [File] = []

  var model: String? { fields["model"] }

  /// Reads JSON: strings and numbers of the outermost object.
  init(json body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      let name = scanner.text(key)
      switch scanner.peek() {
      case UInt8(ascii: "\""): fields[name] = try scanner.stringIfAny().map { scanner.text($0) }
      case .some(UInt8(ascii: "0")...UInt8(ascii: "9")):
        fields[name] = try scanner.integer().map(String.init)
      default: try scanner.skip()
      }
    }
    try scanner.finish()
  }

  /// Reads `multipart/form-data`; nil for what is none.
  init?(form body: [UInt8], contentType: String) {
    guard let range = contentType.end(of: "boundary=") else { return nil }
    let boundary = contentType[range...].prefix { $0 != ";" }.filter { $0 != "\"" }
    let delimiter = Array("--\(boundary)".utf8)
    guard !boundary.isEmpty, body.starts(with: delimiter) else { return nil }
    var at = delimiter.count
    while body[at...].starts(with: [0x0D, 0x0A]) {
      at += 2
      guard let headEnd = Self.find(Array("\r\n\r\n".utf8), in: body, from: at),
        let end = Self.find(Array("\r\n".utf8) + delimiter, in: body, from: headEnd + 2)
      else { return nil }
      add(String(decoding: body[at..<headEnd], as: UTF8.self), body[(headEnd + 4)..<end])
      at = end + 2 + delimiter.count
    }
    guard body[at...].starts(with: Array("--".utf8)) else { return nil }
  }

  private mutating func add(_ head: String, _ content: ArraySlice<UInt8>) {
    func value(_ name: String) -> String? {
      head.end(of: name + "=\"").map { String(head[$0...].prefix { $0 != "\"" }) }
    }
    // ` name`: `filename` ends in it.
    guard let field = value(" name") else { return }
    if let name = value("filename") {
      var hash = Hash64()
      content.withUnsafeBytes { hash.combine($0) }
      files.append(File(field: field, name: name, bytes: content.count, hash: hash.value))
    } else {
      fields[field] = String(decoding: content, as: UTF8.self)
    }
  }

  private static func find(_ needle: [UInt8], in body: [UInt8], from start: Int) -> Int? {
    body.withUnsafeBufferPointer { body in
      guard var at = start <= body.count - needle.count ? start : nil else { return nil }
      while at <= body.count - needle.count {
        if body[at] == needle[0], body[at..<(at + needle.count)].elementsEqual(needle) { return at }
        at += 1
      }
      return nil
    }
  }
}

extension String {
  /// Where the text after the first occurrence of `needle` begins.
  fileprivate func end(of needle: String) -> Index? {
    var at = startIndex
    while at < endIndex {
      if self[at...].hasPrefix(needle) { return index(at, offsetBy: needle.count) }
      at = index(after: at)
    }
    return nil
  }
}
