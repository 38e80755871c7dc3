import Testing

/// Random numbers that a seed repeats (SplitMix64). The seed is in the failure's message.
struct Dice: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  mutating func roll(_ range: ClosedRange<Int>) -> Int { .random(in: range, using: &self) }

  mutating func pick<Element>(_ choices: [Element]) -> Element {
    choices[roll(0...(choices.count - 1))]
  }

  /// Text from every corner of Unicode, quotes, backslashes and control characters included.
  mutating func text(upTo length: Int) -> String {
    var text = ""
    for _ in 0..<roll(0...length) {
      switch roll(0...9) {
      case 0: text += pick(["\"", "\\", "/", "\n", "\r\n", "\t", "\u{0}", "\u{1f}", "\u{7f}"])
      case 1: text += pick(["é", "ß", "中", "\u{301}", "\u{2028}", "\u{feff}"])
      case 2: text += pick(["😀", "👨‍👩‍👧", "🇨🇭", "\u{10ffff}"])
      case 3, 4: text += " "
      default: text += pick(["a", "bird", "never", "lands", ".", "?", "words"])
      }
    }
    return text
  }

  /// Seeds for a property test: fixed ones, and one that changes with every run.
  static var seeds: [UInt64] {
    var random = SystemRandomNumberGenerator()
    return [1, 2, 3, random.next()]
  }
}
