import NIOCore

/// An error as one of the providers reports it.
struct ProviderFailure: Error, Equatable {
  var status: Int
  var type: String
  var code: String?
  var message: String
  var param: String?
  var retryAfter = Directives.RetryAfter.none
  var retryAfterMilliseconds: Int?
  var shouldRetry: Bool?
  /// Whose form an OpenAI-like error has.
  var host = Host.openAI

  /// A refusal of the simulator itself: the request is wrong.
  init(_ wire: Wire, status: Int, message: String, param: String? = nil, code: String? = nil) {
    self.init(wire, status: status, code: code)
    self.code = code
    self.message = message
    self.param = param
  }

  /// The provider's usual error for a status.
  init(_ wire: Wire, status: Int) {
    self.init(wire, status: status, code: nil)
  }

  /// The provider's usual error for a status, with the fields that directives name replaced.
  init(_ wire: Wire, status: Int, directives: Directives) {
    self.init(wire, status: status, code: directives.errorCode)
    if let type = directives.errorType { self.type = type }
    if let message = directives.errorMessage { self.message = message }
    if let retryAfter = directives.retryAfter { self.retryAfter = retryAfter }
    retryAfterMilliseconds = directives.retryAfterMilliseconds
    shouldRetry = directives.shouldRetry
  }

  private init(_ wire: Wire, status: Int, code: String?) {
    self.status = status
    switch wire {
    case .openAI:
      (type, self.code, message) = Self.openAI(status, code: code)
      if status == 429, !Self.isMoneyOut(self.code) { retryAfter = .seconds(1) }
    case .anthropic:
      (type, message) = Self.anthropic(status, code: code)
      self.code = code
      if status == 429, !Self.isMoneyOut(code) { retryAfter = .seconds(1) }
    case .gemini:
      (type, message) = Self.gemini(status)
      self.code = code
      if status == 429, code?.contains("PerDay") != true { retryAfter = .seconds(1) }
    case .ollama, .tgi, .tei, .huggingFace:
      (type, message) = Self.modelServer(wire, status)
      self.code = code
      if status == 503, wire == .huggingFace { retryAfter = .seconds(1) }
    case .replicate:
      (type, message) = ("", "The request failed with status \(status) (simulated).")
      self.code = code
      if status == 429 { retryAfter = .seconds(1) }
    }
  }

  /// 429s that waiting does not mend; providers send them without `retry-after`.
  private static func isMoneyOut(_ code: String?) -> Bool {
    switch code {
    case "insufficient_quota", "credit_balance_exhausted", "enforced_spend_limit_reached",
      "contract_spend_limit_reached":
      true
    default: false
    }
  }

  private static func openAI(_ status: Int, code: String?) -> (String, String?, String) {
    switch (status, code) {
    case (_, "insufficient_quota"), (_, "credit_balance_exhausted"):
      ("insufficient_quota", code, "You exceeded your current quota (simulated).")
    case (429, "slow_down"):
      ("rate_limit_error", code, "Slow down: requests grew too fast (simulated).")
    case (400, "context_length_exceeded"):
      (
        "invalid_request_error", code,
        "This model's maximum context length was exceeded (simulated)."
      )
    case (401, _):
      (
        "invalid_request_error", code ?? "invalid_api_key",
        "Incorrect API key provided (simulated)."
      )
    case (404, _):
      ("invalid_request_error", code ?? "model_not_found", "The model does not exist (simulated).")
    case (429, _):
      ("requests", code ?? "rate_limit_exceeded", "Rate limit reached for requests (simulated).")
    case (503, _):
      ("server_error", code ?? "server_is_overloaded", "The server is overloaded (simulated).")
    case (500..., _):
      ("server_error", code, "The server had an error while processing the request (simulated).")
    default:
      ("invalid_request_error", code, "The request was refused with status \(status) (simulated).")
    }
  }

  private static func anthropic(_ status: Int, code: String?) -> (String, String) {
    switch status {
    case 400, 405, 422: ("invalid_request_error", "The request is invalid (simulated).")
    case 401: ("authentication_error", "invalid x-api-key")
    case 402: ("billing_error", "Your credit balance is too low (simulated).")
    case 403: ("permission_error", "Your API key may not use this resource (simulated).")
    case 404: ("not_found_error", "The resource was not found (simulated).")
    case 408, 504: ("timeout_error", "Request timeout (simulated).")
    case 413: ("request_too_large", "Request exceeds the maximum size (simulated).")
    case 429 where isMoneyOut(code): ("rate_limit_error", "A spend limit was reached (simulated).")
    case 429: ("rate_limit_error", "This request would exceed your rate limit (simulated).")
    case 529: ("overloaded_error", "Overloaded")
    case 500...: ("api_error", "Internal server error")
    default: ("invalid_request_error", "The request was refused with status \(status) (simulated).")
    }
  }

  /// The names of google.rpc.Code.
  private static func gemini(_ status: Int) -> (String, String) {
    switch status {
    case 401: ("UNAUTHENTICATED", "Request had invalid authentication credentials (simulated).")
    case 403: ("PERMISSION_DENIED", "The caller does not have permission (simulated).")
    case 404: ("NOT_FOUND", "The model is not found for this API version (simulated).")
    case 408, 504: ("DEADLINE_EXCEEDED", "The deadline expired (simulated).")
    case 409: ("ABORTED", "The operation was aborted (simulated).")
    case 429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota (simulated).")
    case 499: ("CANCELLED", "The operation was cancelled (simulated).")
    case 501: ("UNIMPLEMENTED", "The operation is not implemented (simulated).")
    case 503, 529: ("UNAVAILABLE", "The model is overloaded. Please try again later. (simulated)")
    case 500...: ("INTERNAL", "An internal error has occurred (simulated).")
    default: ("INVALID_ARGUMENT", "The request was refused with status \(status) (simulated).")
    }
  }

  /// Quotas and reasons are details; when to come back is one, too.
  private func writeGeminiDetails(into buffer: inout ByteBuffer) {
    var details: [String] = []
    let prefix = "{\"@type\":\"type.googleapis.com/google.rpc."
    if let code {
      let escaped = String(decoding: JSONText.escaped(code), as: UTF8.self)
      details.append(
        code.contains("Per")
          ? "\(prefix)QuotaFailure\",\"violations\":[{\"quotaId\":\"\(escaped)\"}]}"
          : "\(prefix)ErrorInfo\",\"reason\":\"\(escaped)\",\"domain\":\"googleapis.com\"}")
    }
    if case .seconds(let seconds) = retryAfter {
      let text = Int(exactly: seconds).map(String.init) ?? "\(seconds)"
      details.append("\(prefix)RetryInfo\",\"retryDelay\":\"\(text)s\"}")
    }
    guard !details.isEmpty else { return }
    buffer.writeString(",\"details\":[\(details.joined(separator: ","))]")
  }

  /// Writes the error's body.
  func write(_ wire: Wire, requestID: UInt64, into buffer: inout ByteBuffer) {
    switch wire {
    case .openAI: writeOpenAI(into: &buffer)
    case .anthropic:
      buffer.writeStaticString("{\"type\":\"error\",\"error\":{\"type\":")
      Self.write(type, into: &buffer)
      buffer.writeStaticString(",\"message\":")
      Self.write(message, into: &buffer)
      if let code {
        buffer.writeStaticString(",\"details\":{\"error_code\":")
        Self.write(code, into: &buffer)
        buffer.writeStaticString("}")
      }
      buffer.writeStaticString("},\"request_id\":\"req_")
      buffer.writeHex(requestID)
      buffer.writeStaticString("\"}")
    case .gemini:
      buffer.writeStaticString("{\"error\":{\"code\":")
      buffer.writeDecimal(status)
      buffer.writeStaticString(",\"message\":")
      Self.write(message, into: &buffer)
      buffer.writeStaticString(",\"status\":")
      Self.write(type, into: &buffer)
      writeGeminiDetails(into: &buffer)
      buffer.writeStaticString("}}")
    case .ollama, .tgi, .tei, .huggingFace: writeModelServer(wire, into: &buffer)
    case .replicate:
      buffer.writeStaticString("{\"title\":\"Simulated failure\",\"status\":")
      buffer.writeDecimal(status)
      buffer.writeStaticString(",\"detail\":")
      Self.write(message, into: &buffer)
      buffer.writeStaticString("}")
    }
  }

  /// Writes the data of the event that reports it inside a stream.
  func writeEvent(_ wire: Wire, requestID: UInt64, into buffer: inout ByteBuffer) {
    switch host {
    case .groq where wire == .openAI:
      buffer.writeStaticString(
        """
        {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"sim","choices":[],"x_groq":{"error":
        """)
      Self.write(message, into: &buffer)
      buffer.writeStaticString("}}")
    case .openrouter where wire == .openAI:
      buffer.writeStaticString(
        """
        {"id":"gen-0","object":"chat.completion.chunk","created":1,"model":"sim","provider":"Simulator","error":{"code":
        """)
      buffer.writeDecimal(status)
      buffer.writeStaticString(",\"message\":")
      Self.write(message, into: &buffer)
      buffer.writeStaticString(
        "},\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}]}")
    default:
      write(wire, requestID: requestID, into: &buffer)
    }
  }

  /// Most hosts have OpenAI's object. vLLM and OpenRouter have the status as a number in `code`; Mistral
  /// has no object around it, and lists what is wrong with a body.
  private func writeOpenAI(into buffer: inout ByteBuffer) {
    switch host {
    case .mistral:
      buffer.writeStaticString("{\"object\":\"error\",\"message\":")
      if status == 422, let param {
        buffer.writeStaticString("{\"detail\":[{\"type\":\"extra_forbidden\",\"loc\":[\"body\",")
        Self.write(param, into: &buffer)
        buffer.writeStaticString("],\"msg\":")
        Self.write(message, into: &buffer)
        buffer.writeStaticString("}]}")
      } else {
        Self.write(message, into: &buffer)
      }
    case .cohere:
      buffer.writeStaticString("{\"message\":")
      Self.write(message, into: &buffer)
      buffer.writeStaticString("}")
      return
    default:
      buffer.writeStaticString("{\"error\":{\"message\":")
      Self.write(message, into: &buffer)
    }
    buffer.writeStaticString(",\"type\":")
    Self.write(type, into: &buffer)
    buffer.writeStaticString(",\"param\":")
    Self.write(param, into: &buffer)
    buffer.writeStaticString(",\"code\":")
    if host == .vllm || host == .openrouter {
      buffer.writeDecimal(status)
    } else {
      Self.write(code, into: &buffer)
    }
    buffer.writeStaticString(host == .mistral ? "}" : "}}")
  }

  private static func write(_ text: String?, into buffer: inout ByteBuffer) {
    guard let text else {
      buffer.writeStaticString("null")
      return
    }
    buffer.writeStaticString("\"")
    buffer.writeBytes(JSONText.escaped(text))
    buffer.writeStaticString("\"")
  }
}
