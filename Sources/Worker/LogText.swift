/// Text from elsewhere, in a form that cannot end a line, move a cursor, or turn around the order in
/// which it is read: everything invisible becomes `\n`, `\t` or `\u…` as in JSON.
enum LogText {
  /// Scalars of one value; the rest is left out.
  static let longest = 4_000

  /// In quotes, as JSON reads it.
  static func quoted(_ text: String) -> String {
    var out = "\""
    append(text, to: &out, quoted: true)
    out += "\""
    return out
  }

  /// Without quotes; quotation marks and backslashes stay as they are.
  static func bare(_ text: String) -> String {
    if text.utf8.count <= longest, text.utf8.allSatisfy({ (0x20..<0x7f).contains($0) }) {
      return text
    }
    var out = ""
    append(text, to: &out, quoted: false)
    return out
  }

  /// Whether it can stand without quotes as the value of a pair.
  static func isWord(_ text: String) -> Bool {
    !text.isEmpty && text.utf8.count <= longest
      && text.unicodeScalars.allSatisfy { $0 != " " && $0 != "\"" && $0 != "\\" && isVisible($0) }
  }

  private static func append(_ text: String, to out: inout String, quoted: Bool) {
    var left = longest
    for scalar in text.unicodeScalars {
      if left == 0 {
        out += "…"
        return
      }
      left -= 1
      switch scalar {
      case "\"" where quoted, "\\" where quoted:
        out += "\\"
        out.unicodeScalars.append(scalar)
      case "\n": out += "\\n"
      case "\r": out += "\\r"
      case "\t": out += "\\t"
      case _ where isVisible(scalar): out.unicodeScalars.append(scalar)
      default:
        for unit in String(scalar).utf16 {
          let digits = String(unit, radix: 16)
          out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        }
      }
    }
  }

  private static func isVisible(_ scalar: Unicode.Scalar) -> Bool {
    if scalar.isASCII { return (0x20..<0x7f).contains(scalar.value) }
    switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator, .spaceSeparator, .privateUse,
      .surrogate, .unassigned:
      return false
    default:
      return true
    }
  }
}
