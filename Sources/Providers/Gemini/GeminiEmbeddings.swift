/// Requests of `embedContent` for one text and `batchEmbedContents` for several.
///
/// Parameters: `dimensions` is `outputDimensionality`; `task_type` (such as `RETRIEVAL_DOCUMENT`) and
/// `title` are Gemini's own.
enum GeminiEmbeddings {
  /// The API's limit of a batch.
  static let maxTexts = 100

  private static let known = [
    "dimensions": "outputDimensionality", "output_dimensionality": "outputDimensionality",
    "outputDimensionality": "outputDimensionality", "task_type": "taskType",
    "taskType": "taskType", "title": "title",
  ]

  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    guard let input = try RequestParts(call).request["input"] else {
      throw Failure(.unsendable, message: "the request has no input")
    }
    let isBatch = input.kind == .array
    let texts = isBatch ? input.elements : [input]
    guard !texts.isEmpty, texts.allSatisfy({ $0.kind == .string }) else {
      throw Failure(.unsendable, message: "an embedding needs a text or several")
    }
    guard texts.count <= maxTexts else {
      throw Failure(
        .unsendable,
        message: "one call of Gemini's API embeds at most \(maxTexts) texts, not \(texts.count)")
    }
    let (call, path) = try Gemini.address(call, isBatch ? "batchEmbedContents" : "embedContent")
    var parts = try RequestParts(call)
    parts.leaveOut(Set(parts.params.map(\.key)).subtracting(known.keys))
    var writer = JSONWriter(reserving: call.request.count + texts.count * 96 + 128)
    if isBatch {
      writer.beginObject()
      writer.key("requests")
      writer.beginArray()
    }
    for text in texts { write(text, parts, to: &writer) }
    if isBatch {
      writer.endArray()
      writer.endObject()
    }
    return try parts.post(
      path: path, auth: "x-goog-api-key", ownHeaders: [], body: writer.bytes)
  }

  private static func write(_ text: JSON, _ parts: RequestParts, to writer: inout JSONWriter) {
    writer.beginObject()
    writer.member("model", Gemini.resource(parts.call.model))
    writer.key("content")
    writer.beginObject()
    writer.key("parts")
    writer.beginArray()
    writer.beginObject()
    writer.key("text")
    writer.splice(text)
    writer.endObject()
    writer.endArray()
    writer.endObject()
    var written: Set<String> = []
    for (name, value) in parts.params {
      guard let name = known[name], written.insert(name).inserted else { continue }
      writer.key(name)
      writer.splice(value)
    }
    writer.endObject()
  }
}

/// `{"embedding": {"values"}}` of one text, `{"embeddings": [{"values"}]}` of several, in the order of
/// the request.
struct GeminiEmbeddingAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id"]
  static let maxValues = OpenAIEmbeddingAnswer.maxValues

  /// pgvector's limit; a longer vector could not be stored.
  private static let maxDimensions = 16_000

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()
  /// How many texts were sent; nil: one, not in an array.
  private let count: Int?

  init(to call: Call) {
    let input = JSON(call.request)?["input"]
    count = input?.kind == .array ? input?.elements.count : nil
  }

  /// Half of a list, and perhaps half of a number: of no use.
  mutating func cut(_ json: JSON) -> String { "" }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    var usage = GeminiUsage()
    if let reported = json["usageMetadata"] { usage.read(reported) }
    result.usage = usage.total(isFinished: true)
    let given = json["embeddings"]?.elements ?? json["embedding"].map { [$0] } ?? []
    let vectors = given.compactMap(Self.vector)
    guard vectors.count == given.count, vectors.count == count ?? 1,
      vectors.allSatisfy({ $0.count == vectors[0].count })
    else { return "" }
    if count == nil { result.embedding = vectors[0] } else { result.embeddings = vectors }
    isComplete = true
    return ""
  }

  func reply() -> Reply { result }

  private static func vector(_ json: JSON) -> [Float]? {
    guard let values = json["values"]?.floats, (1...maxDimensions) ~= values.count,
      values.allSatisfy(\.isFinite)
    else { return nil }
    return values
  }
}
