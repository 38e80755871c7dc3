/// Gemini's batch mode: the requests stand in the creation (`batchGenerateContent`), the results in what is told
/// of the batch once it has ended. It is found again by its display name. Facts are from the converters of the
/// official Python SDK, `google-genai` 3.4.0.
enum GeminiBatches: BatchDialect {
  static let separator = UInt8(ascii: ",")
  static let results = BatchFraming.array("inlinedResponses")
  /// Seconds by which clocks may differ.
  private static let skew = 600

  static func member(_ id: String, _ call: Call) throws(Failure) -> BatchMember {
    let request = try Gemini.request(for: call)
    var writer = JSONWriter(reserving: request.body.count + 96)
    writer.beginObject()
    writer.key("request")
    writer.splice(request.body)
    writer.key("metadata")
    writer.beginObject()
    writer.member("key", id)
    writer.endObject()
    writer.endObject()
    return BatchMember(bytes: writer.bytes, dropped: request.dropped)
  }

  static func request(
    for order: BatchOrder, members: [UInt8], page: String?
  ) throws(Failure) -> ProviderRequest {
    switch order.action {
    case .create:
      let (_, path) = try Gemini.address(order.call, "batchGenerateContent")
      return try send(
        order, path,
        body: Array(
          #"{"batch":{"displayName":"\#(order.name)","inputConfig":{"requests":{"requests":["#.utf8)
          + members + Array("]}}}}".utf8))
    case .find:
      return try send(order, "/batches?pageSize=100" + (page.map { "&pageToken=\($0)" } ?? ""))
    case .poll, .collect: return try send(order, "/\(order.id(order.externalID))")
    case .cancel:
      return try send(order, "/\(order.id(order.externalID)):cancel", method: "POST")
    case .upload, .findFile:
      throw Failure(.unsendable, message: "Gemini's batches are made without a file")
    }
  }

  static func collection(for order: BatchOrder) throws(Failure) -> [ProviderRequest] {
    [try send(order, "/\(order.id(order.externalID))")]
  }

  static func report(on order: BatchOrder, _ json: JSON) -> BatchReport? {
    var report = BatchReport()
    if order.action == .find {
      // Without any batch the list has no members at all.
      for batch in json["operations"]?.elements ?? [] {
        guard let id = batch["name"]?.string else { continue }
        let created = batch["metadata"]?["createTime"]?.string.flatMap(Timestamp.seconds)
        if let created, created < order.since - skew { continue }
        report.found.append(
          .init(
            id: id, name: batch["metadata"]?["displayName"]?.string ?? "", requests: nil,
            created: created))
      }
      // Pages are in no order that is promised: all of them are looked at.
      if let token = json["nextPageToken"]?.string, (try? order.id(token)) != nil {
        report.nextPage = token
      }
      return report
    }
    guard let id = json["name"]?.string else { return nil }
    report.externalID = id
    let state = json["metadata"]?["state"]?.string ?? ""
    report.word = state
    switch state.split(separator: "_").last {
    case "SUCCEEDED": report.ending = .completed
    case "FAILED": report.ending = .failed
    case "CANCELLED": report.ending = .cancelled
    case "EXPIRED": report.ending = .expired
    default: break
    }
    report.hasResults =
      report.ending == .completed || json["response"] != nil
      || json["metadata"]?["output"] != nil
    report.errorCode = json["error"]?["status"]?.string ?? json["error"]?["code"]?.word
    return report
  }

  static func parts(of result: JSON) -> BatchResultParts? {
    guard let id = result["metadata"]?["key"]?.string else { return nil }
    if let response = result["response"] {
      return BatchResultParts(
        id: id, content: .response(status: 200, body: Array(response.raw), requestID: nil))
    }
    guard let error = result["error"] else { return nil }
    var writer = JSONWriter()
    writer.beginObject()
    writer.key("error")
    writer.copy(error)
    writer.endObject()
    return BatchResultParts(
      id: id,
      content: .response(
        status: status(error["code"]?.int ?? 13), body: writer.bytes, requestID: nil))
  }

  /// The HTTP status of a code of google.rpc.Code; what is a status already stays.
  private static func status(_ code: Int) -> Int {
    switch code {
    case 1: 499
    case 3, 9, 11: 400
    case 4: 504
    case 5: 404
    case 6, 10: 409
    case 7: 403
    case 8: 429
    case 12: 501
    case 14: 503
    case 16: 401
    case 400...599: code
    default: 500
    }
  }

  private static func send(
    _ order: BatchOrder, _ path: String, body: [UInt8] = [], method: String? = nil
  ) throws(Failure) -> ProviderRequest {
    var order = order
    (order.call, _) = try Gemini.address(order.call, "")
    return try order.request(path: path, auth: "x-goog-api-key", body: body, method: method)
  }
}
