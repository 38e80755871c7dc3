/// Classifications, the likeliest label first: `[{"label", "score"}, …]`, that inside of an array of
/// one, or `{"labels": [...], "scores": [...]}` as older zero-shot servers send it. The text of the
/// answer is the first label; the whole list is its message.
struct LabelsAnswer: WholeAnswer {
  static let requestIDHeaders = ["x-request-id"]

  private(set) var isComplete = false
  private(set) var fault: Failure?
  private var result = Reply()

  mutating func head(_ head: ResponseHead) { result.usage = Usage(computeTokens: head) }

  /// Half of a list, and perhaps half of a number: of no use.
  mutating func cut(_ json: JSON) -> String { "" }

  mutating func whole(_ json: JSON) -> String {
    if ProviderError.isError(json) {
      fault = Failure(embedded: ProviderError(json))
      return ""
    }
    guard let labels = Self.labels(in: json), !labels.isEmpty else { return "" }
    var writer = JSONWriter()
    writer.beginArray()
    for (label, score) in labels {
      writer.beginObject()
      writer.member("label", label)
      writer.key("score")
      writer.copy(score)
      writer.endObject()
    }
    writer.endArray()
    result.message = writer.bytes
    result.output = labels[0].label
    result.finishReason = "stop"
    isComplete = true
    return result.output
  }

  func reply() -> Reply { result }

  private static func labels(in json: JSON) -> [(label: String, score: JSON)]? {
    var found: [(label: String, score: JSON)] = []
    if let labels = json["labels"]?.elements, let scores = json["scores"]?.elements {
      guard labels.count == scores.count else { return nil }
      for (label, score) in zip(labels, scores) {
        guard let name = label.string, score.kind == .number else { return nil }
        found.append((name, score))
      }
    } else {
      var list = json
      if let first = json.elements.first, json.elements.count == 1, first.kind == .array {
        list = first
      }
      for element in list.elements {
        guard let name = element["label"]?.string, let score = element["score"],
          score.kind == .number
        else { return nil }
        found.append((name, score))
      }
    }
    guard found.allSatisfy({ $0.score.double != nil }) else { return nil }
    // A sort that keeps the order of equals, which the library's does not promise.
    return found.enumerated().sorted {
      ($1.element.score.double ?? 0, $0.offset) < ($0.element.score.double ?? 0, $1.offset)
    }.map(\.element)
  }
}
