import Foundation
import NIOCore
import Testing

@testable import ProviderSimulator

@Suite("Answers")
struct AnswerTests {
  private func deltas(_ text: AnswerText) -> [String] {
    var deltas: [String] = []
    var offset = 0
    while offset < text.count {
      let end = text.deltaEnd(from: offset)
      #expect(end > offset)
      if end <= offset { break }
      var buffer = ByteBuffer()
      text.write(offset..<end, to: &buffer)
      deltas.append(String(buffer: buffer))
      offset = end
    }
    return deltas
  }

  private func decoded(_ escaped: String) throws -> String {
    try #require(JSONDecoder().decode([String].self, from: Data("[\"\(escaped)\"]".utf8)).first)
  }

  @Test("deltas are whole characters, and together they are the text", arguments: Dice.seeds)
  func deltasJoin(seed: UInt64) throws {
    var dice = Dice(seed: seed)
    for _ in 0..<200 {
      let source = dice.text(upTo: 60)
      let text = AnswerText(escaped: JSONText.escaped(source))
      let parts = try deltas(text).map(decoded)
      #expect(
        parts.joined().unicodeScalars.elementsEqual(source.unicodeScalars), "seed \(seed)")
      #expect(parts.count == text.tokenCount, "seed \(seed)")
    }
  }

  @Test("a length in tokens is exact, and cutting keeps a beginning", arguments: Dice.seeds)
  func exactTokens(seed: UInt64) throws {
    var dice = Dice(seed: seed)
    for _ in 0..<200 {
      let source = JSONText.escaped(dice.text(upTo: 20))
      let tokens = dice.roll(1...100)
      let text = AnswerText(escaped: source, tokens: tokens)
      #expect(text.tokenCount == tokens, "seed \(seed)")
      let parts = deltas(text)
      #expect(parts.count == tokens, "seed \(seed)")
      let cutAt = dice.roll(0...tokens)
      #expect(deltas(text.cut(toTokens: cutAt)) == Array(parts.prefix(cutAt)), "seed \(seed)")
    }
  }

  @Test("a length in bytes is exact, up to many megabytes, without storing them")
  func exactBytes() throws {
    for bytes in [1, 3, 4_095, 4_096, 4_097, 1 << 20] {
      let text = AnswerText(escaped: Array("é and 😀".utf8), bytes: bytes)
      #expect(text.count == bytes)
      let parts = deltas(text)
      #expect(parts.reduce(0) { $0 + $1.utf8.count } == bytes)
      #expect(!parts.joined().contains("\u{fffd}"))
    }
    #expect(AnswerText(bytes: 64 << 20).count == 64 << 20)
    #expect(AnswerText(bytes: 64 << 20).tokenCount == 16 << 20)
  }

  @Test("the default answer is deterministic, bounded and says who speaks", arguments: Dice.seeds)
  func gist(seed: UInt64) {
    var dice = Dice(seed: seed)
    for _ in 0..<50 {
      let question = dice.text(upTo: 400)
      let context = (0..<dice.roll(0...3)).map { _ in dice.text(upTo: 400) }
      let answer = Gist.answer(question: question, context: context)
      #expect(answer == Gist.answer(question: question, context: context), "seed \(seed)")
      #expect(answer.hasPrefix(Gist.notice), "seed \(seed)")
      #expect(answer.utf8.count < 2_000, "seed \(seed)")
    }
  }

  @Test("a question is answered with sentences of the text that share its words")
  func relevantSentences() {
    let passage = """
      # Birds

      The swift spends most of its life in the air and sleeps on the wing. Bread is baked from \
      flour, water, salt and patience in every village. A martlet is a heraldic swift, which is \
      drawn without feet because it never lands.
      """
    let answer = Gist.answer(
      question: "Why is the heraldic martlet drawn without feet?", context: [passage])
    #expect(answer.contains("because it never lands"))
    let summary = Gist.answer(question: "Summarise:\n\n\(passage)", context: [])
    #expect(summary.contains("sleeps on the wing"))
    #expect(!summary.contains("# Birds"))
  }

  @Test("vectors are of unit length, repeatable, and nearer for shared words")
  func vectors() {
    func dot(_ a: [Float], _ b: [Float]) -> Float { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }
    for dimensions in [1, 2, 3, 384, 1_536] {
      for text in ["", "one", "The martlet never lands", "😀 中文"] {
        let vector = EmbeddingVector.make(text: text, dimensions: dimensions)
        #expect(vector.count == dimensions)
        #expect(vector.allSatisfy { $0 != 0 && $0.isFinite })
        #expect(abs(dot(vector, vector) - 1) < 1e-4)
        #expect(vector == EmbeddingVector.make(text: text, dimensions: dimensions))
      }
    }
    let bird = EmbeddingVector.make(text: "the martlet never lands", dimensions: 1_536)
    let near = EmbeddingVector.make(text: "A martlet, which never lands!", dimensions: 1_536)
    let far = EmbeddingVector.make(text: "bread is baked from flour", dimensions: 1_536)
    #expect(dot(bird, near) > 0.5)
    #expect(dot(bird, far) < 0.3)
    #expect(bird != EmbeddingVector.make(text: "the martlet never lands.", dimensions: 1_536))
  }
}
