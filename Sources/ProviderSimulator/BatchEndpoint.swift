import NIOHTTP1

/// A request to a batch interface.
struct BatchEndpoint: Equatable {
  /// Whose interface.
  enum Family: Equatable {
    case openAI
    case anthropic
    case gemini
  }

  /// What is asked; the names are those of the directive `at`.
  enum Step: String {
    case upload
    case files
    case content
    case create
    case list
    case poll
    case cancel
    case results
  }

  var family: Family
  var step: Step
  /// Of the batch or file; of a creation at Gemini the model.
  var id = ""
  var path: String

  /// nil: the request is for something else.
  init?(_ method: HTTPMethod, _ path: Substring) {
    self.path = String(path)
    let parts = path.split(separator: "/", omittingEmptySubsequences: true).map(String.init)
    if method == .POST, parts.count >= 3, parts[0] == "v1beta",
      let last = parts.last, last.hasSuffix(":batchGenerateContent")
    {
      family = .gemini
      step = .create
      id = String(last.dropLast(":batchGenerateContent".count))
      return
    }
    switch (method, parts.first, parts.dropFirst().first) {
    case (_, "v1beta", "batches"): family = .gemini
    case (_, "v1", "messages") where parts.count > 2 && parts[2] == "batches": family = .anthropic
    case (_, "v1", "files"), (_, "v1", "batches"): family = .openAI
    default: return nil
    }
    let rest = Array(parts.dropFirst(family == .anthropic ? 3 : 2))
    let isFiles = parts[1] == "files"
    switch (method, rest.count) {
    case (.POST, 0): step = isFiles ? .upload : .create
    case (.GET, 0): step = isFiles ? .files : .list
    case (.POST, 1) where family == .gemini && rest[0].hasSuffix(":cancel"):
      step = .cancel
      id = String(rest[0].dropLast(":cancel".count))
    case (.GET, 1) where !isFiles:
      step = .poll
      id = rest[0]
    case (.POST, 2) where rest[1] == "cancel" && !isFiles:
      step = .cancel
      id = rest[0]
    case (.GET, 2) where rest[1] == "content" && isFiles:
      step = .content
      id = rest[0]
    case (.GET, 2) where rest[1] == "results" && family == .anthropic:
      step = .results
      id = rest[0]
    default: return nil
    }
    if family == .gemini, step == .create { return nil }
  }

  var wire: Wire {
    switch family {
    case .openAI: .openAI
    case .anthropic: .anthropic
    case .gemini: .gemini
    }
  }
}
