/// Embeddings as bare arrays, in any of the shapes that are in use, told apart by their nesting:
///
/// - `[f, …]`: one text
/// - `[[f, …], …]`: a vector for each text; where one text was sent and several vectors came, they are
///   those of its tokens
/// - `[[[f, …], …], …]` and deeper: the tokens of each text, perhaps in arrays of one
/// - any of these as `embeddings` or `embedding` of an object (Ollama)
///
/// Vectors of tokens are pooled into one: their mean, or the first by the option `pooling` = `cls`.
struct EmbeddingsAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id"]
  static let maxValues = OpenAIEmbeddingAnswer.maxValues

  /// pgvector's limit; a longer vector could not be stored.
  private static let maxDimensions = 16_000

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()
  /// How many texts were sent; nil: one, not in an array.
  private let count: Int?
  private let takesFirst: Bool

  init(to call: Call) {
    count = OpenAIEmbeddings.count(of: call)
    takesFirst = JSON(call.options)?["pooling"]?.string == "cls"
  }

  mutating func head(_ head: ResponseHead) { result.usage = Usage(computeTokens: head) }

  /// Half of a list, and perhaps half of a number: of no use.
  mutating func cut(_ json: JSON) -> String { "" }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    if let tokens = json["prompt_eval_count"]?.int, Usage.isCount(tokens) {
      var counted = Usage()
      counted.input = tokens
      result.usage = counted
    }
    result.model = json["model"]?.string
    let vectors = vectors(in: json["embeddings"] ?? json["embedding"] ?? json)
    guard let vectors, vectors.allSatisfy({ $0.count == vectors[0].count }) else { return "" }
    isComplete = true
    if count == nil { result.embedding = vectors[0] } else { result.embeddings = vectors }
    return ""
  }

  func reply() -> Reply { result }

  /// A vector for each text; nil where there is not exactly one.
  private func vectors(in json: JSON) -> [[Float]]? {
    let wanted = count ?? 1
    let elements = json.elements
    guard let first = elements.first, wanted > 0 else { return nil }
    if first.kind != .array || (wanted == 1 && elements.count > 1) {
      guard wanted == 1 else { return nil }
      return vector(of: json).map { [$0] }
    }
    guard elements.count == wanted else { return nil }
    var vectors: [[Float]] = []
    for element in elements {
      guard let vector = vector(of: element) else { return nil }
      vectors.append(vector)
    }
    return vectors
  }

  /// The vector of one text, pooled where it has one for each token. Recursion is bounded by the
  /// parser's limit.
  private func vector(of json: JSON) -> [Float]? {
    let elements = json.elements
    guard let first = elements.first else { return nil }
    if first.kind != .array {
      guard let vector = json.floats, (1...Self.maxDimensions) ~= vector.count,
        vector.allSatisfy(\.isFinite)
      else { return nil }
      return vector
    }
    if elements.count == 1 { return vector(of: first) }
    return pooled(elements)
  }

  private func pooled(_ tokens: [JSON]) -> [Float]? {
    var sums: [Double] = []
    for (number, token) in tokens.enumerated() {
      guard let vector = token.floats, (1...Self.maxDimensions) ~= vector.count,
        vector.allSatisfy(\.isFinite), number == 0 || vector.count == sums.count
      else { return nil }
      if number == 0 {
        sums = vector.map(Double.init)
      } else if !takesFirst {
        for at in sums.indices { sums[at] += Double(vector[at]) }
      }
    }
    let count = takesFirst ? 1 : Double(tokens.count)
    return sums.map { Float($0 / count) }
  }
}

extension Usage {
  /// Tokens as Text Embeddings Inference counts them: in `x-compute-tokens` (its `ResponseMetadata`),
  /// beside a body that has no room for them.
  init?(computeTokens head: ResponseHead) {
    guard let tokens = head.headers["x-compute-tokens"].flatMap({ Int($0) }), Usage.isCount(tokens)
    else { return nil }
    self.init()
    input = tokens
  }
}
