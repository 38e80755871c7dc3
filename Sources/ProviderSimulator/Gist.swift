/// The text of the default answer: sentences extracted from the request.
///
/// Nothing is generated. Sentences that share words with the question, or whose words are frequent
/// in the text, are repeated in their order; the same request always gives the same text.
enum Gist {
  /// Bytes of one text that are looked at: this many from its start, a sixteenth from its end.
  static let window = 24 * 1_024
  static let notice = "(Simulated answer: no model was called.) "
  static let mostSentences = 3

  /// The answer to `question`, given the other texts of the request. At most about 1,200 bytes.
  static func answer(question: String, context: [String]) -> String {
    let asked = Array(question.utf8)
    if asked.count <= 200, context.isEmpty { return echo(asked) }
    var source = Sentences(asked)
    let instruction = source.splitOffInstruction()
    for text in context { source.add(Array(text.utf8)) }
    let best = source.best(Self.mostSentences, for: instruction)
    if best.isEmpty { return echo(asked) }
    return notice + "What was sent says: " + best.joined(separator: " ")
  }

  /// The beginning of a text on one line.
  static func excerpt(_ text: String) -> String {
    Sentences.tidy(Array(text.utf8.prefix(400))[...], upTo: 120)
  }

  private static func echo(_ asked: [UInt8]) -> String {
    let words = asked.split(whereSeparator: { $0 <= 0x20 }).count
    if words == 0 { return notice + "The request had no text to answer." }
    let quote = Sentences.tidy(asked[...], upTo: 240)
    return notice + "You wrote \(words) \(words == 1 ? "word" : "words"): \u{201C}\(quote)\u{201D} "
      + "A model would answer this; the simulator can only repeat it."
  }
}

/// Sentences of one or more texts, with the frequencies of their words.
private struct Sentences {
  private struct Sentence {
    var text: Int
    var range: Range<Int>
    var words: [UInt64]
  }

  private var texts: [[UInt8]] = []
  private var sentences: [Sentence] = []
  private var frequency: [UInt64: Int] = [:]

  init(_ text: [UInt8]) { add(text) }

  mutating func add(_ text: [UInt8]) {
    let index = texts.count
    texts.append(text)
    var start = 0
    var position = 0
    while position < text.count {
      let end = Self.isSentenceEnd(text, position)
      let lineBreak = Self.isBlockBreak(text, position)
      position += 1
      if end || lineBreak || position == text.count {
        addSentence(index, start..<position)
        start = position
      }
    }
  }

  private static func isSentenceEnd(_ text: [UInt8], _ at: Int) -> Bool {
    switch text[at] {
    case UInt8(ascii: "."), UInt8(ascii: "!"), UInt8(ascii: "?"):
      return at + 1 == text.count || text[at + 1] <= 0x20
    default: return false
    }
  }

  /// A line break that ends a paragraph, a heading, a list item or a table row.
  private static func isBlockBreak(_ text: [UInt8], _ at: Int) -> Bool {
    guard text[at] == 0x0A, at + 1 < text.count else { return false }
    switch text[at + 1] {
    case 0x0A, 0x0D, UInt8(ascii: "#"), UInt8(ascii: "-"), UInt8(ascii: "*"), UInt8(ascii: "|"),
      UInt8(ascii: "`"), UInt8(ascii: ">"), UInt8(ascii: "0")...UInt8(ascii: "9"):
      return true
    default: return false
    }
  }

  private mutating func addSentence(_ text: Int, _ range: Range<Int>) {
    let bytes = texts[text][range]
    var words: [UInt64] = []
    var hash = Hash64()
    var length = 0
    for byte in bytes {
      if let letter = byte.lowercasedWordByte {
        hash.combine(letter)
        length += 1
      } else {
        if length >= 4 { words.append(hash.value) }
        hash = Hash64()
        length = 0
      }
    }
    if length >= 4 { words.append(hash.value) }
    for word in words { frequency[word, default: 0] += 1 }
    sentences.append(Sentence(text: text, range: range, words: words))
  }

  /// Takes questions, and the first sentence of what was asked, out of the candidates; returns
  /// their words.
  mutating func splitOffInstruction() -> Set<UInt64> {
    var words: Set<UInt64> = []
    var kept: [Sentence] = []
    for (index, sentence) in sentences.enumerated() {
      let last = texts[sentence.text][sentence.range].last { $0 > 0x20 }
      if index == 0 || last == UInt8(ascii: "?") || last == UInt8(ascii: ":") {
        words.formUnion(sentence.words)
      } else {
        kept.append(sentence)
      }
    }
    sentences = kept
    return words
  }

  /// The highest ranking sentences in their original order.
  func best(_ count: Int, for question: Set<UInt64>) -> [String] {
    var ranked: [(score: Int, index: Int)] = []
    for (index, sentence) in sentences.enumerated() where isReadable(sentence) {
      var score = 0
      for word in Set(sentence.words) {
        score += min(frequency[word] ?? 0, 12) * 10
        if question.contains(word) { score += 400 }
      }
      ranked.append((score / (sentence.words.count + 4), index))
    }
    ranked.sort { $0.score == $1.score ? $0.index < $1.index : $0.score > $1.score }
    return ranked.prefix(count).map(\.index).sorted().map { index in
      let sentence = sentences[index]
      return Self.tidy(texts[sentence.text][sentence.range], upTo: 360)
    }
  }

  private func isReadable(_ sentence: Sentence) -> Bool {
    guard sentence.words.count >= 4, sentence.range.count <= 360 else { return false }
    let first = texts[sentence.text][sentence.range].first { $0 > 0x20 }
    switch first {
    case nil, UInt8(ascii: "#"), UInt8(ascii: "|"), UInt8(ascii: "`"), UInt8(ascii: "{"),
      UInt8(ascii: "<"), UInt8(ascii: "+"):
      return false
    default: return true
    }
  }

  /// One line: white space collapsed, list marks dropped, cut at a character.
  static func tidy(_ bytes: ArraySlice<UInt8>, upTo limit: Int) -> String {
    var out: [UInt8] = []
    var isCut = false
    var rest = bytes.drop { $0 <= 0x20 || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "*") }
    while let byte = rest.popFirst() {
      if byte > 0x20, byte != 0x7F {
        if out.count >= limit, byte & 0xC0 != 0x80 {
          isCut = true
          break
        }
        out.append(byte)
      } else if let last = out.last, last != 0x20 {
        out.append(0x20)
      }
    }
    while out.last == 0x20 { out.removeLast() }
    return String(decoding: out, as: UTF8.self) + (isCut ? "…" : "")
  }
}
