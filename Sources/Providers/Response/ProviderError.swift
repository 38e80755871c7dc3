/// What a provider says about an error, in any of the shapes that are in use:
///
/// - `{"error": {"message", "type", "code", "param"}}`: OpenAI and compatible; the code is a string,
///   null or (vLLM, Gemini, OpenRouter) a number
/// - `{"type": "error", "error": {"type", "message", "details": {"error_code"}}, "request_id"}`: Anthropic
/// - `{"object": "error", "message", "type", "code"}`: older vLLM
/// - `{"error": "text"}` or `{"error": ["text"]}` with `error_type`, `estimated_time`: Hugging Face, Ollama
/// - `{"message"}`, `{"detail"}`, `{"title", "detail"}`, `{"errors": [{"message"}]}`: gateways
/// - any of these inside an array of one
struct ProviderError {
  var type: String?
  var code: String?
  var message: String?
  var requestID: String?
  /// From Hugging Face's `estimated_time`, which it gives in seconds while it loads a model.
  var retryAfterMilliseconds: Int?

  init(_ json: JSON) {
    var body = json
    while body.kind == .array, let first = body.elements.first { body = first }
    requestID = body["request_id"]?.string
    guard let error = body["error"] ?? body["errors"], error.kind != .bool else {
      read(body)
      return
    }
    switch error.kind {
    case .object:
      read(error)
    case .array:
      let first = error.elements.first
      if first?.kind == .object, let first { read(first) } else { message = first?.string }
    default:
      message = error.word
      type = body["error_type"]?.string
      code = body["code"]?.word
    }
    retryAfterMilliseconds = body["estimated_time"]?.double.map { RetryAfter.clamp($0 * 1_000) }
  }

  private mutating func read(_ object: JSON) {
    message =
      object["message"]?.string ?? object["msg"]?.string ?? object["detail"]?.string
      ?? object["detail"]?.elements.first?["msg"]?.string ?? object["title"]?.string
    type = object["type"]?.string ?? object["status"]?.string
    code = object["details"]?["error_code"]?.word ?? object["code"]?.word
  }

  /// Whether a JSON text inside a successful answer is an error instead.
  static func isError(_ json: JSON) -> Bool {
    if let error = json["error"] {
      switch error.kind {
      case .object: return true
      case .string: return !(error.string ?? "").isEmpty
      case .array: return !error.elements.isEmpty
      default: break
      }
    }
    return json["object"]?.string == "error" || json["type"]?.string == "error"
  }
}
