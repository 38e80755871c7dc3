/// Cuts and cleans what a provider says, before people are told.
enum FailureText {
  /// At most `limit` scalars without NUL, and without `secrets` should a provider quote them.
  static func clean(_ text: String, limit: Int = 1_000, secrets: [String]) -> String {
    // Bound the work on bodies of megabytes before looking for anything in them.
    var scalars = String.UnicodeScalarView()
    for scalar in text.unicodeScalars.prefix(limit * 4) {
      scalars.append(scalar == "\0" ? "\u{FFFD}" : scalar)
    }
    var cleaned = String(scalars)
    for secret in secrets { cleaned = replacing(secret, in: cleaned) }
    guard cleaned.unicodeScalars.count > limit else { return cleaned }
    return String(String.UnicodeScalarView(cleaned.unicodeScalars.prefix(limit - 1))) + "…"
  }

  /// What stands where a name is due (a code, a model), if it looks like one; nil: it may be anything, a
  /// prompt that the provider quotes among it, and names are logged, and stay in the books.
  static func name(_ text: String?, limit: Int = 100, secrets: [String]) -> String? {
    guard let text, (1...limit).contains(text.utf8.count), text.utf8.allSatisfy(isOfName)
    else { return nil }
    // Keys that mean nothing are short, and may be words: `ollama`, `EMPTY`.
    let isTold = secrets.contains { $0.utf8.count >= 8 && find($0, in: text[...]) != nil }
    return isTold ? nil : text
  }

  /// Letters, digits, and what stands between them: `com.amazon.coral#Throttled`, `@cf/meta/llama-3:8b`.
  private static func isOfName(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x61...0x7A, 0x41...0x5A, 0x30...0x39: true
    case 0x23, 0x2B, 0x2D, 0x2E, 0x2F, 0x3A, 0x40, 0x5F: true  // # + - . / : @ _
    default: false
    }
  }

  /// What to say of a body that cannot be read: the title of an HTML page, or how the text begins.
  static func describe(_ body: [UInt8]) -> String {
    let start = String(decoding: body.prefix(8_192), as: UTF8.self)
    let text = start.split(whereSeparator: \.isWhitespace).joined(separator: " ")
    if text.isEmpty { return "an empty body" }
    guard isHTML(text) else {
      guard case .whole = JSON.parse(body, limit: 1 << 20) else {
        return "text that is not JSON: \(text.prefix(200))"
      }
      return "JSON that is not what the protocol says: \(text.prefix(200))"
    }
    guard let title = title(of: text) else { return "an HTML page" }
    return "an HTML page: \(title.prefix(200))"
  }

  private static func isHTML(_ text: String) -> Bool {
    let head = text.prefix(200).lowercased()
    return head.hasPrefix("<!doctype html") || head.contains("<html") || head.contains("<head")
  }

  private static func title(of text: String) -> Substring? {
    for (open, close) in [("<title>", "<"), ("<h1>", "<")] {
      guard let start = find(open, in: text[...]),
        let end = find(close, in: text[start.upperBound...])
      else { continue }
      let title = text[start.upperBound..<end.lowerBound]
      if title.contains(where: { !$0.isWhitespace }) { return title }
    }
    return nil
  }

  private static func replacing(_ needle: String, in text: String) -> String {
    var result = ""
    var rest = text[...]
    while let found = find(needle, in: rest) {
      result += rest[..<found.lowerBound] + "[secret]"
      rest = rest[found.upperBound...]
    }
    return result + rest
  }

  /// The first place of `needle`, ASCII letters without regard to case.
  private static func find(_ needle: String, in text: Substring) -> Range<Substring.Index>? {
    let wanted = needle.utf8.map(lower)
    let view = text.utf8
    guard !wanted.isEmpty, view.count >= wanted.count else { return nil }
    var start = view.startIndex
    let last = view.index(view.endIndex, offsetBy: -wanted.count)
    while start <= last {
      if view[start...].prefix(wanted.count).lazy.map(lower).elementsEqual(wanted) {
        return start..<view.index(start, offsetBy: wanted.count)
      }
      start = view.index(after: start)
    }
    return nil
  }

  private static func lower(_ byte: UInt8) -> UInt8 {
    (0x41...0x5A).contains(byte) ? byte | 0x20 : byte
  }
}
