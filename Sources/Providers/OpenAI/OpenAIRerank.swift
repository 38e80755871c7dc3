/// Requests of `POST {base}/rerank`, which OpenAI itself does not have: Together, Jina, Cohere
/// (`https://api.cohere.com/v2`) and vLLM share one form. Voyage differs by one name: option
/// `{"rename_params": {"top_n": "top_k"}}`.
enum OpenAIRerank {
  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    var parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    guard let query = parts.request["input"], query.kind == .string else {
      throw Failure(.unsendable, message: "a rerank needs a text to compare with")
    }
    guard count(of: parts) > 0, let documents = parts.param("documents") else {
      throw Failure(.unsendable, message: "a rerank needs documents")
    }
    parts.leaveOut(ParameterVocabulary.chat)
    var writer = JSONWriter(reserving: call.request.count + 128)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("query")
    writer.splice(query)
    writer.key("documents")
    writer.splice(documents)
    OpenAIParameters(parts: parts, variant: variant)
      .write(to: &writer, besides: ["query", "documents"])
    writer.endObject()
    return try parts.post(
      path: try variant.path("/rerank", parts), auth: variant.auth, ownHeaders: [],
      body: writer.bytes)
  }

  /// How many documents a call has.
  static func count(of call: Call) -> Int {
    (try? RequestParts(call)).map(count) ?? 0
  }

  private static func count(of parts: RequestParts) -> Int {
    parts.param("documents")?.elements.count ?? 0
  }
}

/// Answers of the Rerank endpoint: `results[]` (Voyage: `data[]`) of `index` and `relevance_score`. The
/// message is `[{"index", "score"}, …]`, the best first. A result that names no document, or one twice,
/// is not an answer.
struct OpenAIRerankAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id", "request-id", "x-debug-trace-id"]

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()
  private let count: Int

  init(to call: Call) { count = OpenAIRerank.count(of: call) }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    result.model = json["model"]?.string
    result.requestID = json["id"]?.string
    result.usage = Usage(rerank: json)
    guard let found = json["results"] ?? json["data"], found.kind == .array else { return "" }
    guard let ranks = ranks(found.elements) else { return "" }
    result.message = Self.message(ranks)
    result.finishReason = "stop"
    isComplete = true
    return ""
  }

  func reply() -> Reply { result }

  private func ranks(_ results: [JSON]) -> [(index: Int, score: JSON)]? {
    var seen = Set<Int>()
    var ranks: [(index: Int, score: JSON, value: Double)] = []
    for result in results {
      guard let index = result["index"]?.int, 0 <= index, index < count,
        seen.insert(index).inserted, let score = result["relevance_score"] ?? result["score"],
        let value = score.double, value.isFinite
      else { return nil }
      ranks.append((index, score, value))
    }
    // Most hosts sort; where two are equal, the order they gave stays.
    return ranks.enumerated().sorted {
      ($1.element.value, $0.offset) < ($0.element.value, $1.offset)
    }.map { ($0.element.index, $0.element.score) }
  }

  private static func message(_ ranks: [(index: Int, score: JSON)]) -> [UInt8] {
    var writer = JSONWriter(reserving: ranks.count * 40 + 2)
    writer.beginArray()
    for (index, score) in ranks {
      writer.beginObject()
      writer.key("index")
      writer.int(index)
      writer.key("score")
      writer.copy(score)
      writer.endObject()
    }
    writer.endArray()
    return writer.bytes
  }
}

extension Usage {
  /// Tokens from `usage` (Together, Jina, vLLM, Voyage) or from `meta` (Cohere), and Cohere's search units as
  /// `queries`. nil where neither is there.
  fileprivate init?(rerank json: JSON) {
    self.init()
    let usage = json["usage"]
    let billed = json["meta"]?["billed_units"]
    let tokens =
      usage?["prompt_tokens"]?.int ?? usage?["total_tokens"]?.int ?? billed?["input_tokens"]?.int
      ?? json["meta"]?["tokens"]?["input_tokens"]?.int
    if let tokens, Usage.isCount(tokens) { input = tokens }
    let completion = usage?["completion_tokens"]?.int ?? 0
    output = Usage.isCount(completion) ? completion : 0
    add("queries", billed?["search_units"])
    guard tokens.map(Usage.isCount) ?? !units.isEmpty else { return nil }
  }
}
