/// What a provider says about an error, in any of the shapes that are in use:
///
/// - `{"error": {"message", "type", "code", "param"}}`: OpenAI and compatible; the code is a string,
///   null or (vLLM, Gemini, OpenRouter) a number
/// - `{"type": "error", "error": {"type", "message", "details": {"error_code"}}, "request_id"}`: Anthropic
/// - `{"object": "error", "message", "type", "code"}`: older vLLM
/// - `{"error": "text"}` or `{"error": ["text"]}` with `error_type`, `estimated_time`: Hugging Face, Ollama
/// - `{"object": "error", "message": {"detail": [{"loc", "msg"}]}}` or `{"detail": [{"loc", "msg"}]}`: Mistral, FastAPI
/// - `{"message"}`, `{"detail"}`, `{"title", "detail"}`, `{"errors": [{"message"}]}`: gateways
/// - `{"error": {"code": 429, "message", "status", "details": [{"@type", …}]}}`: Gemini; details name the
///   reason (`ErrorInfo`), the quota (`QuotaFailure`) and when to come back (`RetryInfo`)
/// - any of these inside an array of one
struct ProviderError {
  var type: String?
  var code: String?
  /// The HTTP status that the error names as its code: that of the response, or, in a 200, what would
  /// have been.
  var status: Int?
  var message: String?
  var requestID: String?
  /// From Hugging Face's `estimated_time`, which it gives in seconds while it loads a model, or
  /// Google's `RetryInfo`.
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
    if let seconds = body["estimated_time"]?.double {
      retryAfterMilliseconds = RetryAfter.clamp(seconds * 1_000)
    }
  }

  private mutating func read(_ object: JSON) {
    message =
      object["message"]?.string ?? object["msg"]?.string ?? object["detail"]?.string
      ?? Self.detail(object["detail"] ?? object["message"]?["detail"] ?? object["message"])
      ?? object["title"]?.string
    type = object["type"]?.string ?? object["status"]?.string
    code = object["details"]?["error_code"]?.word ?? object["code"]?.word
    status = Self.status(object["code"])
    for detail in object["details"]?.elements ?? [] { readDetail(detail) }
    if let message, Self.tooLong.contains(where: message.contains) {
      code = "context_length_exceeded"
    }
  }

  /// The HTTP status that a code is; nil: it is another word or number.
  static func status(_ code: JSON?) -> Int? {
    code?.int.flatMap { (400...599).contains($0) ? $0 : nil }
  }

  /// How those say that the input is too long for the model who have no code for it.
  private static let tooLong = [
    // Gemini: "The input token count (…) exceeds the maximum number of tokens allowed (…)."
    "exceeds the maximum number of tokens",
    // Anthropic: "prompt is too long: 208310 tokens > 200000 maximum", and "input length and `max_tokens`
    // exceed context limit: …"
    "prompt is too long: ", "exceed context limit: ",
    // vLLM, and others after what OpenAI says: "This model's maximum context length is 8192 tokens. …"
    "maximum context length is ",
  ]

  /// The messages of google.rpc: a reason or a quota says more than the number of the status.
  private mutating func readDetail(_ detail: JSON) {
    let type = detail["@type"]?.string ?? ""
    if type.hasSuffix("google.rpc.ErrorInfo"), let reason = detail["reason"]?.string {
      code = reason
    } else if type.hasSuffix("google.rpc.QuotaFailure"),
      let quota = detail["violations"]?.elements.first?["quotaId"]?.string
    {
      code = quota
    } else if type.hasSuffix("google.rpc.RetryInfo"),
      let delay = detail["retryDelay"]?.string, delay.hasSuffix("s"),
      let seconds = Double(delay.dropLast()), seconds.isFinite
    {
      retryAfterMilliseconds = RetryAfter.clamp(seconds * 1_000)
    }
  }

  /// What a list of faults says of the first, with the place it was found at.
  private static func detail(_ json: JSON?) -> String? {
    guard let first = json?.elements.first, let words = first["msg"]?.string else { return nil }
    let place = (first["loc"]?.elements ?? []).compactMap(\.word).joined(separator: ".")
    return place.isEmpty ? words : "\(place): \(words)"
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
    return json["object"]?.string?.lowercased() == "error" || json["type"]?.string == "error"
  }
}
