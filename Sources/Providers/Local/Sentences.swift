/// Cuts text into sentences: at line breaks, and after `.`, `!`, `?`, `…` and their CJK counterparts
/// (the first two with white space after them). Headings and list marks at the start of a line are
/// not part of a sentence. Sentences of more than 2,000 bytes end at the next space.
enum Sentences {
  static func split(_ text: String) -> [Substring] {
    var sentences: [Substring] = []
    let scalars = text.unicodeScalars
    var start = scalars.startIndex
    var size = 0
    var ended = false

    func take(upTo end: String.Index) {
      let sentence = trim(text[start..<end])
      if !sentence.isEmpty { sentences.append(sentence) }
      start = end
      size = 0
      ended = false
    }

    var at = start
    while at < scalars.endIndex {
      let scalar = scalars[at]
      if scalar == "\n" || scalar == "\r" || scalar == "\u{2028}" || scalar == "\u{2029}" {
        take(upTo: at)
      } else if scalar.properties.isWhitespace {
        if ended || size > 2_000 { take(upTo: at) }
      } else {
        // Quotation marks and brackets may stand between the full stop and the space.
        if !"\"')]”’»*_`".unicodeScalars.contains(scalar) {
          ended = ".!?…".unicodeScalars.contains(scalar)
        }
        if "。！？｡".unicodeScalars.contains(scalar) {
          take(upTo: scalars.index(after: at))
          at = start
          continue
        }
        if size > 8_000 { take(upTo: at) }
      }
      size += 1
      at = scalars.index(after: at)
    }
    take(upTo: scalars.endIndex)
    return sentences
  }

  /// Takes white space from both ends, and marks of headings, lists and quotes from the start.
  private static func trim(_ text: Substring) -> Substring {
    var text = text.unicodeScalars
    while let first = text.first,
      first.properties.isWhitespace || "#>*-|+=".unicodeScalars.contains(first)
    {
      text.removeFirst()
    }
    while let last = text.last, last.properties.isWhitespace || last == "|" { text.removeLast() }
    return Substring(text)
  }
}
