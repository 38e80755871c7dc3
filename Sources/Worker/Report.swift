import Logging
import Providers

/// What is logged of an attempt: numbers and names, never a prompt, an answer, a key, or a message
/// of a provider, which may quote any of them. Of the types and codes of its errors the readers of
/// answers let only names through.
struct Report: Sendable {
  let logger: Logger
  let fence: Fence
  /// Host of the provider, or `local`.
  let provider: String
  let model: String

  func finished(_ settlement: Settlement) {
    let level: Logger.Level = settlement.outcome == .failed ? .info : .debug
    guard logger.logLevel <= level else { return }
    var metadata: Logger.Metadata = [
      "generation": "\(fence)", "attempt": "\(fence.attempt)", "provider": "\(provider)",
      "model": "\(model)", "outcome": "\(settlement.outcome.rawValue)",
      "ms": "\(Int(settlement.latency))",
    ]
    if let failure = settlement.failure {
      metadata["signal"] = "\(failure.signal.rawValue)"
      if let status = failure.httpStatus { metadata["http_status"] = "\(status)" }
      if let type = failure.type { metadata["error_type"] = "\(type)" }
      if let code = failure.code { metadata["error_code"] = "\(code)" }
    }
    logger.log(level: level, "attempt ended", metadata: metadata)
  }
}
