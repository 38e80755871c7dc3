/// What the simulator needs to know of a rerank or a classification by a server of open models.
struct TextTask {
  /// The text to be classified, or the query.
  var text: String?
  /// The texts to be ranked.
  var texts: [String] = []
  /// The labels of a zero-shot classification.
  var labels: [String] = []

  init(_ body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      try read(key, &scanner)
    }
    try scanner.finish()
  }

  private mutating func read(
    _ key: Range<Int>, _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) {
    switch scanner.text(key) {
    case "query", "source_sentence": text = try scanner.stringIfAny().map { scanner.text($0) }
    case "texts", "sentences": texts = try Self.list(&scanner)
    case "candidate_labels": labels = try Self.list(&scanner)
    case "inputs" where scanner.peek() != UInt8(ascii: "{"):
      text = try scanner.stringIfAny().map { scanner.text($0) }
    case "inputs", "parameters":
      guard scanner.peek() == UInt8(ascii: "{") else { return try scanner.skip() }
      try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
        try read(key, &scanner)
      }
    default: try scanner.skip()
    }
  }

  private static func list(
    _ scanner: inout JSONScanner
  ) throws(JSONScanner.Malformed) -> [String] {
    guard scanner.peek() == UInt8(ascii: "[") else {
      try scanner.skip()
      return []
    }
    var found: [String] = []
    try scanner.array { (scanner) throws(JSONScanner.Malformed) in
      if let text = try scanner.stringIfAny() { found.append(scanner.text(text)) }
    }
    return found
  }

  /// From 0 to 1: higher for texts that share more words.
  static func score(of text: String, for query: String) -> Float {
    let dimensions = 256
    let wanted = EmbeddingVector.make(text: query, dimensions: dimensions)
    let found = EmbeddingVector.make(text: text, dimensions: dimensions)
    let cosine = zip(wanted, found).reduce(Float(0)) { $0 + $1.0 * $1.1 }
    return max(0, min(1, (1 + cosine) / 2))
  }
}
