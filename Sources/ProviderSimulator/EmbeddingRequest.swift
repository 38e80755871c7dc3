/// What the simulator needs to know of an embeddings request.
struct EmbeddingRequest {
  /// Inputs a request may carry; OpenAI allows 2,048.
  static let mostInputs = 2_048

  var model: String?
  var dimensions: Int?
  var base64 = false
  /// `encoding_format` was neither `float` nor `base64`.
  var unknownFormat = false
  var hasInput = false
  /// The input is an array.
  var isList = false
  /// One entry an input: its text, or its token numbers written out.
  var inputs: [String] = []
  var tokenCount = 0

  init() {}

  /// Reads a request.
  init(_ body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      switch scanner.text(key) {
      case "model": model = try scanner.stringIfAny().map { scanner.text($0) }
      case "dimensions": dimensions = try scanner.integer()
      case "encoding_format":
        let format = try scanner.stringIfAny().map { scanner.text($0) }
        base64 = format == "base64"
        unknownFormat = format.map { $0 != "base64" && $0 != "float" } ?? false
      case "input", "inputs": try readInput(&scanner)
      default: try scanner.skip()
      }
    }
    try scanner.finish()
  }

  private mutating func readInput(_ scanner: inout JSONScanner) throws(JSONScanner.Malformed) {
    switch scanner.peek() {
    case UInt8(ascii: "\""): try readText(&scanner)
    case UInt8(ascii: "["):
      isList = true
      // An array holds texts, token lists, or is itself one token list.
      var tokens: [Int] = []
      try scanner.array { (scanner) throws(JSONScanner.Malformed) in
        switch scanner.peek() {
        case UInt8(ascii: "\""): try readText(&scanner)
        case UInt8(ascii: "["):
          var inner: [Int] = []
          try scanner.array { (scanner) throws(JSONScanner.Malformed) in
            if let token = try scanner.integer() { inner.append(token) }
          }
          add(tokens: inner)
        default: if let token = try scanner.integer() { tokens.append(token) }
        }
      }
      if !tokens.isEmpty { add(tokens: tokens) }
    default: try scanner.skip()
    }
  }

  private mutating func readText(_ scanner: inout JSONScanner) throws(JSONScanner.Malformed) {
    let range = try scanner.string()
    hasInput = true
    guard inputs.count <= Self.mostInputs else { return }
    inputs.append(scanner.text(range))
    tokenCount += TokenEstimate.tokens(bytes: range.count)
  }

  private mutating func add(tokens: [Int]) {
    hasInput = true
    guard inputs.count <= Self.mostInputs else { return }
    inputs.append(tokens.map(String.init).joined(separator: " "))
    tokenCount += tokens.count
  }
}

/// The simulator's stand-in for a tokenizer.
enum TokenEstimate {
  /// One token for every four bytes begun, at least one.
  static func tokens(bytes: Int) -> Int { max(1, (bytes + 3) / 4) }
}
