import Foundation
import Providers
import Testing

/// Random damage to valid exchanges: no crash, storable messages, sound counts. Each failure prints the
/// seed that repeats it.
@Suite struct MutationTests {
  static let seeds = (0..<12).map { _ in UInt64.random(in: 0...UInt64.max) }

  static let scraps: [String] = [
    "null", "true", "-1", "1e999", "0.5", "\"\"", "\"\\ud83d\"", "\"\\udc26\"", "\"\\u0000\"", "[]",
    "{}", "[[[[]]]]", "{\"a\":{\"a\":[]}}", "\"7\"", "NaN", "99999999999999999999", "\"x\\\"y\"",
    "{\"text\":\"t\"}", "[{\"type\":\"text\",\"text\":\"p\"}]", "{\"type\":\"error\"}", "-", "tru",
  ]

  @Test(arguments: seeds)
  func damagedAnswersAreReadSoundly(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    for round in 0..<60 {
      for recording in TruncationTests.recordings {
        var units = recording.units
        if recording.stream, Int.random(in: 0..<3, using: &random) == 0 {
          units.swapAt(
            Int.random(in: 0..<units.count, using: &random),
            Int.random(in: 0..<units.count, using: &random))
        }
        for _ in 0..<Int.random(in: 1...4, using: &random) {
          let at = Int.random(in: 0..<units.count, using: &random)
          units[at].data = damage(units[at].data, &random)
        }
        let reading = try read(
          recording.call, units: units,
          end: Bool.random(using: &random) ? .complete : .broken(.reset, "gone"))
        expectSound(reading, "seed \(seed), round \(round)")
      }
    }
  }

  @Test(arguments: seeds)
  func damagedRequestsAreRefusedOrValid(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    for round in 0..<100 {
      let chats = ["openai", "anthropic", "gemini", "ollama", "tgi", "huggingface"].map {
        (dialect: $0, kind: CallKind.chat, request: RequestTests.everything)
      }
      for (dialect, kind, text) in chats + KindRequest.everything {
        let request = damage(Array(text.utf8), &random)
        var damaged = call(dialect, kind: kind, stream: Bool.random(using: &random))
        damaged.request = request
        // PostgreSQL hands out nothing but valid JSON.
        guard isStorable(request) else { continue }
        do {
          let sent = try #require(Dialects.named(dialect)).request(for: damaged)
          #expect(isStorable(sent.body), "seed \(seed), round \(round)")
        } catch {
          #expect((error as? Failure)?.signal == .unsendable, "seed \(seed), round \(round)")
        }
        damaged.dialect = "local"
        damaged.model = "extract"
        if case .success(let reply) = LocalAnswers.answer(damaged) {
          #expect(isStorable(try #require(reply.message)), "seed \(seed), round \(round)")
        }
      }
    }
  }

  /// One change: a byte, a range, a repetition, a cut, or a value in the place of another.
  private func damage(_ bytes: [UInt8], _ random: inout SeededGenerator) -> [UInt8] {
    guard !bytes.isEmpty else { return bytes }
    var bytes = bytes
    let at = Int.random(in: 0..<bytes.count, using: &random)
    let length = min(Int.random(in: 1...12, using: &random), bytes.count - at)
    switch Int.random(in: 0..<7, using: &random) {
    case 0: bytes[at] = UInt8.random(in: 0...255, using: &random)
    case 1: bytes.removeSubrange(at..<(at + length))
    case 2: bytes.insert(contentsOf: bytes[at..<(at + length)], at: at)
    case 3: bytes.removeSubrange(at...)
    default: replaceValue(&bytes, near: at, &random)
    }
    return bytes
  }

  /// Puts a scrap where the value after the colon before `at` was.
  private func replaceValue(
    _ bytes: inout [UInt8], near at: Int, _ random: inout SeededGenerator
  ) {
    guard let colon = bytes[..<at].lastIndex(of: UInt8(ascii: ":")) else { return }
    let rest = bytes[(colon + 1)...]
    let end = rest.firstIndex { ",}]".utf8.contains($0) } ?? bytes.count
    let scrap = Self.scraps.randomElement(using: &random) ?? "null"
    bytes.replaceSubrange((colon + 1)..<end, with: Array(scrap.utf8))
  }
}
