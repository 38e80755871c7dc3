/// Documents by their relevance, the most relevant first: `[{"index", "score"}, …]`, or the bare
/// scores in the documents' order, as sentence similarity gives them. The list, cut to `top_n`, is
/// the message of the answer, which has no text.
struct RanksAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id"]

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()
  /// How many documents were sent.
  private let count: Int
  /// How many are wanted.
  private let most: Int

  init(to call: Call) {
    let params = JSON(call.request)?["params"]
    count = params?["documents"]?.elements.count ?? 0
    most = max(params?["top_n"]?.int ?? count, 0)
  }

  mutating func head(_ head: ResponseHead) { result.usage = Usage(computeTokens: head) }

  /// Half of a list, and perhaps half of a number: of no use.
  mutating func cut(_ json: JSON) -> String { "" }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    guard let ranks = ranks(in: json) else { return "" }
    var writer = JSONWriter()
    writer.beginArray()
    for (index, score) in ranks.prefix(most) {
      writer.beginObject()
      writer.key("index")
      writer.int(index)
      writer.key("score")
      writer.copy(score)
      writer.endObject()
    }
    writer.endArray()
    result.message = writer.bytes
    result.finishReason = "stop"
    isComplete = true
    return ""
  }

  func reply() -> Reply { result }

  /// nil unless every document has a score, and only one.
  private func ranks(in json: JSON) -> [(index: Int, score: JSON)]? {
    let elements = json.elements
    guard json.kind == .array, count > 0, elements.count == count else { return nil }
    var seen = [Bool](repeating: false, count: count)
    var ranks: [(index: Int, score: JSON)] = []
    for (position, element) in elements.enumerated() {
      let isBare = element.kind == .number
      guard let index = isBare ? position : element["index"]?.int, seen.indices ~= index,
        !seen[index], let score = isBare ? element : element["score"], score.kind == .number,
        score.double != nil
      else { return nil }
      seen[index] = true
      ranks.append((index, score))
    }
    return ranks.sorted {
      ($1.score.double ?? 0, $0.index) < ($0.score.double ?? 0, $1.index)
    }
  }
}
