/// Requests of `POST {base}/embeddings`. The input is one text, the tokens of one, or up to 2,048 texts.
enum OpenAIEmbeddings {
  /// OpenAI's limit.
  static let maxTexts = 2_048

  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    var parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    guard let input = parts.request["input"] else {
      throw Failure(.unsendable, message: "the request has no input")
    }
    if let problem = problem(with: input) { throw Failure(.unsendable, message: problem) }
    var writer = JSONWriter(reserving: call.request.count + 128)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("input")
    writer.splice(input)
    variant.leaveOutUnsupported(of: &parts)
    OpenAIParameters(parts: parts, variant: variant)
      .write(to: &writer, besides: ["encoding_format"])
    if variant.hasEncodingFormat {
      writer.member("encoding_format", parts.param("encoding_format")?.string ?? "float")
    }
    writer.endObject()
    return try parts.post(
      path: try variant.path("/embeddings", parts), auth: variant.auth, ownHeaders: [],
      body: writer.bytes)
  }

  /// How many texts a call gives; nil: one, not in an array.
  static func count(of call: Call) -> Int? {
    guard let input = JSON(call.request)?["input"], input.kind == .array else { return nil }
    let elements = input.elements
    return elements.first?.kind == .string ? elements.count : nil
  }

  private static func problem(with input: JSON) -> String? {
    if input.kind == .string { return nil }
    guard input.kind == .array, let first = input.elements.first else {
      return "an embedding needs a text or several"
    }
    let elements = input.elements
    // The tokens of one text.
    if first.kind == .number, elements.allSatisfy({ $0.kind == .number }) { return nil }
    guard elements.allSatisfy({ $0.kind == .string }) else {
      return "the texts of an embedding must all be strings"
    }
    guard elements.count <= maxTexts else {
      return "one call embeds at most \(maxTexts) texts, not \(elements.count)"
    }
    return nil
  }
}

/// Answers of the Embeddings endpoint: `data[].embedding` as numbers, or as base64 of little-endian
/// 32-bit floats. For one text the element with index 0 counts; for several there must be one of each
/// index, and all must have the same size.
struct OpenAIEmbeddingAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id", "request-id"]
  /// The numbers of 2,048 vectors of 3,072 dimensions, and something to spare.
  static let maxValues = 8 << 20

  /// pgvector's limit; a longer vector could not be stored.
  private static let maxDimensions = 16_000

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()
  /// How many texts were sent; nil: one, not in an array.
  private let count: Int?

  init(to call: Call) { count = OpenAIEmbeddings.count(of: call) }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    result.model = json["model"]?.string
    result.requestID = json["id"]?.string
    if let usage = json["usage"],
      let tokens = usage["prompt_tokens"]?.int ?? usage["total_tokens"]?.int,
      Usage.isCount(tokens)
    {
      var counted = Usage()
      counted.input = tokens
      result.usage = counted
    }
    let data = json["data"]?.elements ?? []
    if let count {
      result.embeddings = Self.vectors(in: data, count)
      isComplete = result.embeddings != nil
    } else if let first = data.first(where: { ($0["index"]?.int ?? 0) == 0 }) ?? data.first {
      result.embedding = Self.vector(of: first)
      isComplete = result.embedding != nil
    }
    return ""
  }

  /// The vectors by their index; nil unless there is exactly one for each text.
  private static func vectors(in data: [JSON], _ count: Int) -> [[Float]]? {
    guard data.count == count else { return nil }
    var vectors = [[Float]](repeating: [], count: count)
    for element in data {
      // Only where there is nothing to mix up may the index be left out.
      guard let index = element["index"]?.int ?? (count == 1 ? 0 : nil),
        vectors.indices ~= index, vectors[index].isEmpty, let vector = vector(of: element)
      else { return nil }
      vectors[index] = vector
    }
    guard vectors.allSatisfy({ $0.count == vectors[0].count }) else { return nil }
    return vectors
  }

  private static func vector(of element: JSON) -> [Float]? {
    guard let vector = element["embedding"].flatMap(numbers), (1...maxDimensions) ~= vector.count
    else { return nil }
    return vector
  }

  func reply() -> Reply { result }

  /// nil where any element is not a finite number.
  private static func numbers(_ json: JSON) -> [Float]? {
    let vector: [Float]?
    switch json.kind {
    case .array: vector = json.floats
    case .string: vector = json.string.flatMap(Base64.bytes).flatMap(littleEndian)
    default: return nil
    }
    guard let vector, vector.allSatisfy(\.isFinite) else { return nil }
    return vector
  }

  private static func littleEndian(_ bytes: [UInt8]) -> [Float]? {
    guard bytes.count % 4 == 0 else { return nil }
    return stride(from: 0, to: bytes.count, by: 4).map { at in
      let bits = (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[at + $1]) << (8 * UInt32($1)) }
      return Float(bitPattern: bits)
    }
  }
}
