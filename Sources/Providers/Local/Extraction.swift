/// Answers a question with the sentences of the given text that share most words with it. Lexical:
/// it neither understands the question nor writes a sentence of its own, and it says so where
/// nothing matches.
///
/// The question is the last message of the user; of one with several paragraphs its last or first
/// short paragraph that asks something (else the first short one), and the rest is text. Text is also
/// every system, developer and tool message and what the user wrote before; never what an
/// assistant said. A word that is rare among the sentences counts more than a common one.
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

  private static let maxSentences = 3
  private static let nothing = "No passage of the given text shares a word with the question."

  static func answer(to messages: [Message], maxBytes: Int? = nil) -> Answer {
    let (question, texts) = divide(messages)
    let sentences = texts.flatMap { Sentences.split($0) }
    guard !sentences.isEmpty else { return cut([Substring(nothing)], maxBytes) }
    let chosen = best(of: sentences, for: question)
    guard chosen.isEmpty else { return cut(chosen.map { sentences[$0] }, maxBytes) }
    // A request such as "summarise this" shares no word with its text: how it begins is the best guess.
    let isInstruction = !question.contains("?") && !question.contains("？")
    guard isInstruction else { return cut([Substring(nothing)], maxBytes) }
    return cut(Array(sentences.prefix(maxSentences)), maxBytes)
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
  private static func best(of sentences: [Substring], for question: String) -> [Int] {
    var wanted: [String: Int] = [:]
    Words.forEach(in: question) { word in
      if wanted.count < 200, wanted[word] == nil { wanted[word] = wanted.count }
    }
    guard !wanted.isEmpty else { return [] }
    // First pass: which words of the question are in which sentence.
    var frequency = [Int](repeating: 0, count: wanted.count)
    var matches: [(sentence: Int, words: [Int], length: Int)] = []
    for (index, sentence) in sentences.enumerated() {
      var found: Set<Int> = []
      var length = 0
      Words.forEach(in: sentence) { word in
        length += 1
        if let number = wanted[word] { found.insert(number) }
      }
      guard !found.isEmpty else { continue }
      for number in found { frequency[number] += 1 }
      matches.append((index, found.sorted(), length))
    }
    // Second pass: scores. A word that is in half of the sentences or more says little.
    var top: [(score: Double, sentence: Int)] = []
    for match in matches {
      var score = 0.0
      for number in match.words {
        score += 1 + Double(sentences.count) / Double(frequency[number] + 1)
      }
      score /= Double(match.length + 8).squareRoot()
      let place = top.firstIndex { score > $0.score } ?? top.count
      guard place < maxSentences else { continue }
      top.insert((score, match.sentence), at: place)
      if top.count > maxSentences { top.removeLast() }
    }
    // What is far below the best match is not part of the answer.
    let least = (top.first?.score ?? 0) / 2
    return top.filter { $0.score >= least }.map(\.sentence).sorted()
  }

  /// Joins sentences up to `maxBytes`; of a first sentence that is too long its beginning.
  private static func cut(_ sentences: [Substring], _ maxBytes: Int?) -> Answer {
    var text = ""
    for sentence in sentences {
      let addition = text.isEmpty ? String(sentence) : " " + sentence
      if let maxBytes, text.utf8.count + addition.utf8.count > maxBytes {
        if text.isEmpty {
          for character in addition {
            if text.utf8.count + character.utf8.count > maxBytes { break }
            text.append(character)
          }
        }
        return Answer(text: text, isCut: true)
      }
      text += addition
    }
    return Answer(text: text)
  }
}
