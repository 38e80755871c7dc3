import NIOCore

/// Errors of the servers of open models.
extension ProviderFailure {
  /// The usual words for a status: the type where the server has types, and a message.
  static func modelServer(_ wire: Wire, _ status: Int) -> (type: String, message: String) {
    switch wire {
    case .ollama:
      switch status {
      case 401: ("", "unauthorized")
      case 404: ("", "model \"sim\" not found, try pulling it first (simulated)")
      case 503: ("", "server busy, please try again.  maximum pending requests exceeded")
      case 500...: ("", "an error was encountered while running the model (simulated)")
      default: ("", "the request was refused with status \(status) (simulated)")
      }
    case .tgi, .tei:
      switch status {
      case 424:
        (wire == .tgi ? "generation" : "backend", "Request failed during generation (simulated)")
      case 429: ("overloaded", "Model is overloaded")
      case 400 where wire == .tei: ("empty", "the request was refused (simulated)")
      case 503 where wire == .tei: ("unhealthy", "the server is not ready (simulated)")
      case 500...: ("incomplete_generation", "Incomplete generation")
      default: ("validation", "Input validation error (simulated)")
      }
    default:
      switch status {
      case 401: ("", "Invalid username or password.")
      case 402: ("", "You have exceeded your monthly included credits (simulated).")
      case 429: ("", "Rate limit reached. Please log in or use your apiToken (simulated)")
      case 503: ("", "Model sim is currently loading")
      case 500...: ("", "Internal Server Error (simulated)")
      default: ("", "the request was refused with status \(status) (simulated)")
      }
    }
  }

  /// `{"error": "…"}`, with `error_type` or `estimated_time` beside it.
  func writeModelServer(_ wire: Wire, into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"error\":\"")
    buffer.writeBytes(JSONText.escaped(message))
    buffer.writeStaticString("\"")
    if !type.isEmpty {
      buffer.writeStaticString(",\"error_type\":\"")
      buffer.writeBytes(JSONText.escaped(type))
      buffer.writeStaticString("\"")
    }
    // A model that is being loaded says how long that takes, instead of a header.
    if wire == .huggingFace, status == 503, case .seconds(let seconds) = retryAfter {
      buffer.writeString(",\"estimated_time\":\(seconds)")
    }
    buffer.writeStaticString("}")
  }
}
