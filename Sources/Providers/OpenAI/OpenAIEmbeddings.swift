/// Requests of `POST {base}/embeddings`.
enum OpenAIEmbeddings {
  private static let own: Set<String> = ["model", "input", "stream", "encoding_format"]

  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let parts = try RequestParts(call)
    guard let input = parts.request["input"] else {
      throw Failure(.unsendable, message: "the request has no input")
    }
    if input.kind == .array, input.elements.first.map({ $0.kind != .number }) ?? true,
      input.elements.count != 1
    {
      throw Failure(.unsendable, message: "an embedding has exactly one input")
    }
    var writer = JSONWriter(reserving: call.request.count + 128)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("input")
    writer.splice(input)
    for (name, value) in parts.params where !own.contains(name) {
      writer.key(name)
      writer.splice(value)
    }
    writer.member("encoding_format", parts.param("encoding_format")?.string ?? "float")
    writer.endObject()
    return try parts.post(path: "/embeddings", auth: "bearer", ownHeaders: [], body: writer.bytes)
  }
}

/// Answers of the Embeddings endpoint: `data[].embedding` as numbers, or as base64 of little-endian
/// 32-bit floats. Of several the one with index 0 counts.
struct OpenAIEmbeddingAnswer: AnswerAssembler {
  static let requestIDHeaders = ["x-request-id", "request-id"]
  static let streams = false

  /// pgvector's limit; a longer vector could not be stored.
  private static let maxDimensions = 16_000

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()

  var mayEnd: Bool { false }

  mutating func event(named name: String?, _ json: JSON) -> String { "" }
  mutating func marker(_ data: [UInt8]) -> String? { nil }

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
    guard let first = data.first(where: { ($0["index"]?.int ?? 0) == 0 }) ?? data.first,
      let vector = first["embedding"].flatMap(Self.vector), (1...Self.maxDimensions) ~= vector.count
    else { return "" }
    result.embedding = vector
    isComplete = true
    return ""
  }

  func reply() -> Reply { result }

  /// nil where any element is not a finite number.
  private static func vector(_ json: JSON) -> [Float]? {
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
