/// Embeds text without a model: features are hashed into 384 dimensions with a sign, so that
/// collisions cancel out on average (Weinberger et al., "Feature Hashing for Large Scale Multitask
/// Learning", 2009). Texts that share words come out near each other; texts that only mean the same
/// do not.
///
/// Features: each word, each pair of neighbouring words, and each three neighbouring characters of a
/// word with its borders, which makes inflections and typing errors near. A feature that occurs n times
/// counts √n times its weight; words of up to three letters, mostly function words, weigh less.
///
/// The vector has length 1. It is the same on every machine: hashes are stable and sums are made of
/// integers, whose order does not matter. Any change here makes stored vectors useless and needs
/// another model name.
enum FeatureHashing {
  static let dimensions = 384

  /// nil for text without anything but spaces.
  static func vector(of text: String) -> [Float]? {
    var counts: [UInt64: UInt32] = [:]
    var previous: [UInt8] = []
    Words.forEach(in: text) { word in
      let bytes = Array(word.utf8)
      let length = word.unicodeScalars.count
      count(Array("w".utf8), bytes, weight: length > 3 || bytes[0] >= 0x80 ? 3 : 1, &counts)
      if !previous.isEmpty { count(Array("p".utf8), previous + [0x20] + bytes, weight: 2, &counts) }
      previous = bytes
      countTrigrams(of: word, &counts)
    }
    if counts.isEmpty {
      for scalar in text.unicodeScalars where !scalar.properties.isWhitespace {
        count(Array("c".utf8), Array(String(scalar).utf8), weight: 1, &counts)
      }
    }
    return normalised(counts)
  }

  private static func countTrigrams(of word: String, _ counts: inout [UInt64: UInt32]) {
    let scalars = [" "] + Array(word.unicodeScalars) + [" "]
    guard scalars.count > 3 else { return }
    for start in 0...(scalars.count - 3) {
      var hash = StableHash()
      hash.add(UInt8(ascii: "t"))
      for scalar in scalars[start..<(start + 3)] { hash.add(UTF8.encode(scalar) ?? .init()) }
      counts[tagged(hash.value, weight: 1), default: 0] &+= 1
    }
  }

  private static func count(
    _ kind: [UInt8], _ bytes: [UInt8], weight: UInt64, _ counts: inout [UInt64: UInt32]
  ) {
    var hash = StableHash()
    hash.add(kind)
    hash.add(bytes)
    counts[tagged(hash.value, weight: weight), default: 0] &+= 1
  }

  /// The lowest two bits of a hash give way to the weight of its feature.
  private static func tagged(_ hash: UInt64, weight: UInt64) -> UInt64 {
    hash & ~3 | weight
  }

  private static func normalised(_ counts: [UInt64: UInt32]) -> [Float]? {
    var sums = [Int64](repeating: 0, count: dimensions)
    for (feature, count) in counts {
      let weight = Double(feature & 3) * Double(count).squareRoot() * 1_024
      let amount = Int64(weight.rounded())
      let dimension = Int((feature >> 2) % UInt64(dimensions))
      sums[dimension] += feature >> 63 == 1 ? amount : -amount
    }
    let length = sums.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
    guard length > 0 else { return nil }
    return sums.map { Float(Double($0) / length) }
  }
}
