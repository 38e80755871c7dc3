/// Answers a question with the sentences of the given text that share most words with it. Lexical:
/// it neither understands the question nor writes a sentence of its own, and it says so where
/// nothing matches.
///
/// The question is the last message of the user; of one with several paragraphs its last or first
/// short paragraph that asks something (else the first short one), and the rest is text. Text is also
/// every system, developer and tool message and what the user wrote before; never what an
/// assistant said. A word that is rare among the sentences counts more than a common one, and forms of
/// an English word count as one.
///
/// Where the prompt quotes data (`Fences`), only that is text, the whole last message is the question,
/// and the passages are cited by their numbers, as the prompt asks: `… [2]`.
enum Extraction {
  struct Message {
    var role: String
    var text: String
  }

  struct Answer {
    var text: String
    /// A sentence that belonged into the answer was left out for `maxBytes`.
    var isCut = false
  }

  /// What may become part of an answer.
  private struct Sentence {
    var text: Substring
    /// Number of its passage, to be cited.
    var passage: Int?
    /// Which of the headings it stands under.
    var heading = 0
  }

  private static let maxSentences = 3
  private static let nothing = "No passage of the given text shares a word with the question."
  /// English words that ask and say nothing of what is asked.
  private static let asking: Set<String> = [
    "what", "which", "who", "whom", "whose", "when", "where", "why", "how", "does", "did", "can",
    "could", "should", "would", "will", "must", "are", "was", "were", "the", "and", "for", "with",
    "that", "this", "there", "have", "has", "had", "from", "into", "about",
  ]

  static func answer(to messages: [Message], maxBytes: Int? = nil) -> Answer {
    var (question, texts) = divide(messages)
    let quoted = messages.flatMap { $0.role == "user" ? Fences.blocks(in: $0.text) : [] }
    if !quoted.isEmpty, let last = messages.last(where: { $0.role == "user" }) {
      // Where data is quoted, all around it is instruction or history.
      (question, texts) = (last.text, [])
    }
    var headings: [Substring] = [""]
    var sentences = texts.flatMap { Sentences.split($0) }.map { Sentence(text: $0) }
    for block in quoted { read(block, &sentences, &headings) }
    guard !sentences.isEmpty else {
      return cut([Sentence(text: Substring(nothing))], maxBytes)
    }
    let chosen = best(of: sentences, under: headings, for: question)
    guard chosen.isEmpty else { return cut(chosen.map { sentences[$0] }, maxBytes) }
    // A request such as "summarise this" shares no word with its text: how it begins is the best guess.
    let isInstruction = !question.contains("?") && !question.contains("？")
    guard isInstruction else {
      return cut([Sentence(text: Substring(nothing))], maxBytes)
    }
    return cut(Array(sentences.prefix(maxSentences)), maxBytes)
  }

  /// Adds the sentences of quoted data. A heading is no answer, but says what the sentences below it are about:
  /// a first line that is no sentence, and lines that Markdown marks as one.
  private static func read(
    _ block: Fences.Block, _ sentences: inout [Sentence], _ headings: inout [Substring]
  ) {
    var title = Substring()
    headings.append(title)
    let lines = block.text.split(whereSeparator: \.isNewline)
    for (number, line) in lines.enumerated() {
      if number == 0, lines.count > 1, let last = line.last, !".!?…。！？:".contains(last) {
        title = line.prefix(500)
        headings[headings.count - 1] = title
      } else if line.first == "#" {
        headings.append(title + " " + line.prefix(500))
      } else {
        for text in Sentences.split(String(line)) {
          sentences.append(
            Sentence(text: text, passage: block.passage, heading: headings.count - 1))
        }
      }
    }
  }

  /// The question, and the texts that may answer it.
  private static func divide(_ messages: [Message]) -> (question: String, texts: [String]) {
    guard let asking = messages.lastIndex(where: { $0.role == "user" }) else {
      return ("", messages.filter { $0.role != "assistant" }.map(\.text))
    }
    var texts: [String] = []
    for (index, message) in messages.enumerated()
    where index != asking && message.role != "assistant" {
      texts.append(message.text)
    }
    let paragraphs = messages[asking].text.split(whereSeparator: \.isNewline)
      .filter { $0.contains { !$0.isWhitespace } }
    guard paragraphs.count > 1, let first = paragraphs.first, let last = paragraphs.last else {
      return (messages[asking].text, texts)
    }
    func isShort(_ text: Substring) -> Bool { text.utf8.count <= 400 }
    func asks(_ text: Substring) -> Bool { isShort(text) && text.contains { "?？".contains($0) } }
    let fromEnd = asks(last) || (!asks(first) && !isShort(first) && isShort(last))
    guard fromEnd || isShort(first) else {
      return (messages[asking].text, texts + [messages[asking].text])
    }
    texts.append((fromEnd ? paragraphs.dropLast() : paragraphs.dropFirst()).joined(separator: "\n"))
    return (String(fromEnd ? last : first), texts)
  }

  /// Indices of the best sentences in their order in the text; none where no word matches.
  private static func best(
    of sentences: [Sentence], under headings: [Substring], for question: String
  ) -> [Int] {
    var wanted: [String: Int] = [:]
    var weights: [Double] = []
    Words.forEach(in: question) { word in
      let stem = Stems.stem(word)
      guard wanted.count < 200, wanted[stem] == nil else { return }
      wanted[stem] = wanted.count
      // Short words are mostly function words.
      let says =
        !asking.contains(word) && (word.utf8.count > 3 || word.utf8.contains { $0 >= 0x80 })
      weights.append(says ? 1 : 0.1)
    }
    guard let least = weights.max() else { return [] }
    // First pass: which words of the question are in which sentence, and in the headings above it.
    var frequency = [Int](repeating: 0, count: wanted.count)
    var matches: [(sentence: Int, words: Set<Int>, above: Set<Int>, length: Int)] = []
    func words(of text: Substring) -> (Set<Int>, Int) {
      var found: Set<Int> = []
      var length = 0
      Words.forEach(in: text) { word in
        length += 1
        if let number = wanted[Stems.stem(word)] { found.insert(number) }
      }
      return (found, length)
    }
    let headings = headings.map { words(of: $0).0 }
    for (index, sentence) in sentences.enumerated() {
      let (found, length) = words(of: sentence.text)
      let above = headings[sentence.heading]
      // Function words alone are no match, unless there is nothing else in the question.
      guard found.union(above).contains(where: { weights[$0] >= least }) else { continue }
      for number in found { frequency[number] += 1 }
      matches.append((index, found, above.subtracting(found), length))
    }
    // Second pass: scores. A word that is in half of the sentences or more says little.
    func worth(_ number: Int) -> Double {
      weights[number] * (1 + Double(sentences.count) / Double(frequency[number] + 1))
    }
    var top: [(score: Double, sentence: Int)] = []
    for match in matches {
      // Sorted, so that the sums are the same every time.
      var score = match.words.sorted().reduce(0) { $0 + worth($1) }
      score += match.above.sorted().reduce(0) { $0 + min(worth($1), 3) } / 2
      score /= Double(match.length + 8).squareRoot()
      // Passages come with the nearest first.
      if let passage = sentences[match.sentence].passage { score /= 1 + 0.1 * Double(passage - 1) }
      let place = top.firstIndex { score > $0.score } ?? top.count
      guard place < maxSentences else { continue }
      top.insert((score, match.sentence), at: place)
      if top.count > maxSentences { top.removeLast() }
    }
    // What is far below the best match is not part of the answer.
    let enough = (top.first?.score ?? 0) / 2
    return top.filter { $0.score >= enough }.map(\.sentence).sorted()
  }

  /// Joins sentences up to `maxBytes`, each passage cited behind its last; of a first sentence that is too
  /// long its beginning.
  private static func cut(_ sentences: [Sentence], _ maxBytes: Int?) -> Answer {
    var text = ""
    for (number, sentence) in sentences.enumerated() {
      var addition = (text.isEmpty ? "" : " ") + sentence.text
      let next = number + 1 < sentences.count ? sentences[number + 1].passage : nil
      if let passage = sentence.passage, passage != next { addition += " [\(passage)]" }
      if let maxBytes, text.utf8.count + addition.utf8.count > maxBytes {
        if text.isEmpty { text = cutOff(addition, maxBytes) }
        return Answer(text: text, isCut: true)
      }
      text += addition
    }
    return Answer(text: text)
  }

  private static func cutOff(_ text: String, _ maxBytes: Int?) -> String {
    guard let maxBytes else { return text }
    var beginning = ""
    for character in text {
      if beginning.utf8.count + character.utf8.count > maxBytes { break }
      beginning.append(character)
    }
    return beginning
  }
}
