/// A deterministic, normalised vector for a text.
///
/// Words and pairs of neighbouring words are hashed onto dimensions (feature hashing), so that
/// texts that share words are near each other; a small dense part, seeded by the whole text, keeps
/// vectors free of zeros and any two texts apart. No meaning is captured beyond shared words.
enum EmbeddingVector {
  /// Euclidean length of the dense part before normalising; the lexical part has length 1.
  static let denseShare: Float = 0.05

  /// A unit vector with `dimensions` components; the same text always gives the same one.
  static func make(text: String, dimensions: Int) -> [Float] {
    var vector = [Float](repeating: 0, count: dimensions)
    var word = Hash64()
    var inWord = false
    var previous: UInt64 = 0
    func add(_ hash: UInt64, _ weight: Float) {
      let mixed = Hash64.mixed(hash)
      let slot = Int(truncatingIfNeeded: mixed >> 1) & Int.max
      vector[slot % dimensions] += mixed & 1 == 0 ? weight : -weight
    }
    func endWord() {
      guard inWord else { return }
      add(word.value, 1)
      if previous != 0 { add(previous &* 31 &+ word.value, 0.5) }
      previous = word.value
      word = Hash64()
      inWord = false
    }
    for byte in text.utf8 {
      if let letter = byte.lowercasedWordByte {
        word.combine(letter)
        inWord = true
      } else {
        endWord()
      }
    }
    endWord()
    normalise(&vector, to: 1)
    addDensePart(&vector, seed: Hash64.of(text))
    normalise(&vector, to: 1)
    return vector
  }

  private static func addDensePart(_ vector: inout [Float], seed: UInt64) {
    var state = seed
    let scale = denseShare / Float(vector.count).squareRoot()
    for index in vector.indices {
      state &+= 0x9E37_79B9_7F4A_7C15
      // 24 bits of the mixed state make a uniform value in -1...1.
      let unit = Float(Hash64.mixed(state) >> 40) / 8_388_607.5 - 1
      vector[index] += unit * scale * 1.732
    }
  }

  private static func normalise(_ vector: inout [Float], to length: Float) {
    var sum = 0.0
    for value in vector { sum += Double(value) * Double(value) }
    guard sum > 0 else { return }
    let factor = length / Float(sum.squareRoot())
    for index in vector.indices { vector[index] *= factor }
  }
}

extension UInt8 {
  /// The byte in lower case where it can be part of a word (letters, digits, any non-ASCII byte).
  var lowercasedWordByte: UInt8? {
    switch self {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "0")...UInt8(ascii: "9"), 0x80...:
      self
    case UInt8(ascii: "A")...UInt8(ascii: "Z"): self | 0x20
    default: nil
    }
  }
}
