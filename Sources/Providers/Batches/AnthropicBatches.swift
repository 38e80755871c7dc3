/// Anthropic's Message Batches: the requests are the body of the creation. The provider keeps no name of ours:
/// a batch whose creation was lost is found again by its size and time, and what its results say is what
/// counts. Facts are from the types of the official Python SDK, `anthropic` 2.11.0.
enum AnthropicBatches: BatchDialect {
  static let separator = UInt8(ascii: ",")
  static let results = BatchFraming.lines
  /// Seconds by which clocks may differ.
  private static let skew = 600

  static func member(_ id: String, _ call: Call) throws(Failure) -> BatchMember {
    let request = try AnthropicMessages.request(for: call)
    var writer = JSONWriter(reserving: request.body.count + 96)
    writer.beginObject()
    writer.member("custom_id", id)
    writer.key("params")
    writer.splice(request.body)
    writer.endObject()
    return BatchMember(bytes: writer.bytes, dropped: request.dropped)
  }

  static func request(
    for order: BatchOrder, members: [UInt8], page: String?
  ) throws(Failure) -> ProviderRequest {
    switch order.action {
    case .create:
      return try send(order, "", body: Array(#"{"requests":["#.utf8) + members + Array("]}".utf8))
    case .find: return try send(order, "?limit=100" + (page.map { "&after_id=\($0)" } ?? ""))
    case .poll, .collect: return try send(order, "/\(order.id(order.externalID))")
    case .cancel:
      return try send(order, "/\(order.id(order.externalID))/cancel", method: "POST")
    case .upload, .findFile:
      throw Failure(.unsendable, message: "Anthropic's batches have no files")
    }
  }

  static func collection(for order: BatchOrder) throws(Failure) -> [ProviderRequest] {
    // Not the address that the answer names: our key goes nowhere else.
    [try send(order, "/\(order.id(order.externalID))/results")]
  }

  static func report(on order: BatchOrder, _ json: JSON) -> BatchReport? {
    var report = BatchReport()
    if order.action == .find {
      guard let data = json["data"], data.kind == .array else { return nil }
      for batch in data.elements {
        guard let id = batch["id"]?.string, let created = created(batch),
          created >= order.since - skew
        else { continue }
        report.found.append(
          .init(id: id, name: nil, requests: count(batch["request_counts"]), created: created))
      }
      if json["has_more"]?.bool == true, let last = data.elements.last,
        created(last).map({ $0 >= order.since - skew }) ?? true,
        let id = last["id"]?.string, (try? order.id(id)) != nil
      {
        report.nextPage = id
      }
      return report
    }
    guard let id = json["id"]?.string, let status = json["processing_status"]?.string else {
      return nil
    }
    report.externalID = id
    report.word = status
    if status == "ended" {
      report.hasResults = true
      let counts = json["request_counts"]
      if json["cancel_initiated_at"] != nil {
        report.ending = .cancelled
      } else if let expired = counts?["expired"]?.int, expired > 0 {
        report.ending = .expired
      } else {
        report.ending = .completed
      }
    }
    return report
  }

  static func parts(of result: JSON) -> BatchResultParts? {
    guard let id = result["custom_id"]?.string, let inside = result["result"] else { return nil }
    switch inside["type"]?.string {
    case "succeeded":
      guard let message = inside["message"] else { return nil }
      return BatchResultParts(
        id: id, content: .response(status: 200, body: Array(message.raw), requestID: nil))
    case "errored":
      guard let error = inside["error"] else { return nil }
      let type = (error["error"] ?? error)["type"]?.string
      return BatchResultParts(
        id: id,
        content: .response(
          status: status(type), body: Array(error.raw), requestID: error["request_id"]?.string))
    case "canceled": return BatchResultParts(id: id, content: .cancelled)
    case "expired": return BatchResultParts(id: id, content: .expired)
    default: return nil
    }
  }

  /// The status with which this error would have come over HTTP.
  private static func status(_ type: String?) -> Int {
    switch type {
    case "invalid_request_error": 400
    case "authentication_error": 401
    case "billing_error": 402
    case "permission_error": 403
    case "not_found_error": 404
    case "request_too_large": 413
    case "rate_limit_error": 429
    case "timeout_error": 504
    case "overloaded_error": 529
    default: 500
    }
  }

  private static func count(_ counts: JSON?) -> Int? {
    guard let counts else { return nil }
    let names = ["processing", "succeeded", "errored", "canceled", "expired"]
    return names.reduce(0) { $0 + max(0, min(counts.member(named: $1)?.int ?? 0, 1 << 40)) }
  }

  private static func created(_ batch: JSON) -> Int? {
    batch["created_at"]?.string.flatMap(Timestamp.seconds)
  }

  private static func send(
    _ order: BatchOrder, _ path: String, body: [UInt8] = [], method: String? = nil
  ) throws(Failure) -> ProviderRequest {
    var base = Substring(order.call.baseURL)
    while base.hasSuffix("/") { base.removeLast() }
    let version =
      JSON(order.call.options)?["anthropic_version"]?.string ?? AnthropicBatches.version
    return try order.request(
      path: (base.hasSuffix("/v1") ? "" : "/v1") + "/messages/batches" + path, auth: "x-api-key",
      ownHeaders: [("anthropic-version", version)], body: body, method: method)
  }

  /// As `AnthropicMessages` has it.
  private static let version = "2023-06-01"
}
