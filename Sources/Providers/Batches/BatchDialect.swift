/// A provider's batch interface: how requests are gathered into one, how it is found again, how its results
/// are read. Pure, as a `Dialect` is, whose requests and answers it wraps.
package protocol BatchDialect: Sendable {
  /// What stands between two members.
  static var separator: UInt8 { get }

  /// How a body is cut into results.
  static var results: BatchFraming { get }

  /// The member `id` of a batch, asking what `call` asks.
  static func member(_ id: String, _ call: Call) throws(Failure) -> BatchMember

  /// The request of a step that is not `collect`.
  /// - Parameters:
  ///   - members: of an upload, or of a creation where there is no upload, joined by the separator.
  ///   - page: where a list goes on.
  static func request(
    for order: BatchOrder, members: [UInt8], page: String?
  ) throws(Failure) -> ProviderRequest

  /// The requests that give the results, in their order.
  static func collection(for order: BatchOrder) throws(Failure) -> [ProviderRequest]

  /// What a successful answer says; nil where it is not what the protocol says.
  static func report(on order: BatchOrder, _ json: JSON) -> BatchReport?

  /// What one result says; nil where it is not one.
  static func parts(of result: JSON) -> BatchResultParts?
}

/// One request among many, as the batch interface takes it.
package struct BatchMember: Sendable {
  package var bytes: [UInt8]
  /// Parameters that were left out.
  package var dropped: [String]
}

/// How a body is cut into results.
package enum BatchFraming: Sendable, Equatable {
  /// One a line.
  case lines
  /// One an element of the arrays of this name.
  case array(String)
}

/// One result, before the dialect reads the answer inside.
package struct BatchResultParts {
  enum Content {
    /// As if this had come over HTTP.
    case response(status: Int, body: [UInt8], requestID: String?)
    case expired
    case cancelled
  }

  var id: String
  var content: Content
}

extension BatchDialect {
  /// Reads one result. nil where it is none, or has no name.
  /// - Parameter call: what all members of the batch have in common.
  package static func answer(in unit: [UInt8], to call: Call) -> BatchAnswer? {
    guard let json = JSON(unit), let parts = parts(of: json) else { return nil }
    switch parts.content {
    case .expired: return BatchAnswer(id: parts.id, content: .expired)
    case .cancelled: return BatchAnswer(id: parts.id, content: .cancelled)
    case .response(let status, let body, let requestID):
      guard let dialect = Dialects.named(call.dialect) else { return nil }
      var call = call
      call.stream = false
      var headers: [String: String] = [:]
      headers["x-request-id"] = requestID
      var reader = dialect.reader(for: call)
      _ = reader.head(ResponseHead(status: status, headers: headers))
      _ = reader.receive(event: nil, data: body)
      return BatchAnswer(id: parts.id, content: .answered(reader.finish(.complete)))
    }
  }

  /// Reads the answer to a step.
  package static func read(
    _ order: BatchOrder, status: Int, headers: [String: String], body: [UInt8]
  ) -> Result<BatchReport, Failure> {
    guard (200...299).contains(status) else {
      guard let dialect = Dialects.named(order.call.dialect) else {
        return .failure(Failure(.http, message: "HTTP \(status)"))
      }
      var reader = dialect.reader(for: order.call)
      _ = reader.head(ResponseHead(status: status, headers: headers))
      _ = reader.receive(event: nil, data: body)
      switch reader.finish(.complete) {
      case .failure(let failure): return .failure(failure)
      case .success: return .failure(Failure(.http, message: "HTTP \(status)"))
      }
    }
    if order.action == .cancel { return .success(BatchReport()) }
    guard let json = JSON(body), json.kind == .object, var report = report(on: order, json) else {
      return .failure(
        Failure(.malformed, message: "the provider's answer about a batch is not what it should be")
      )
    }
    report.word = FailureText.name(report.word, secrets: order.call.secrets)
    report.errorCode = FailureText.name(report.errorCode, secrets: order.call.secrets)
    return .success(report)
  }
}

/// The batch interfaces that this build knows.
package enum BatchDialects {
  /// The batch interface of a dialect; nil: it has none.
  package static func named(_ name: String) -> (any BatchDialect.Type)? {
    switch name {
    case OpenAI.name: OpenAIBatches.self
    case AnthropicMessages.name: AnthropicBatches.self
    case Gemini.name: GeminiBatches.self
    default: nil
    }
  }
}
