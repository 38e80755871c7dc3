/// OpenAI's Batch API: a file of requests is uploaded (`purpose=batch`), a batch is made of it, its answers
/// and errors are two more files. It is found again by its metadata, the file by its name. Facts are from the
/// types of the official Python SDK, `openai` 3.52.0; lists are taken to begin with the newest.
enum OpenAIBatches: BatchDialect {
  static let separator = UInt8(ascii: "\n")
  static let results = BatchFraming.lines
  /// The member of the metadata that holds our name.
  static let metadataKey = "martlet_batch"
  /// Seconds by which clocks may differ.
  private static let skew = 600

  static func member(_ id: String, _ call: Call) throws(Failure) -> BatchMember {
    let endpoint = try endpoint(call.kind)
    let request = try OpenAI.request(for: call)
    var writer = JSONWriter(reserving: request.body.count + 128)
    writer.beginObject()
    writer.member("custom_id", id)
    writer.member("method", "POST")
    writer.member("url", endpoint)
    writer.key("body")
    writer.splice(request.body)
    writer.endObject()
    return BatchMember(bytes: writer.bytes, dropped: request.dropped)
  }

  static func request(
    for order: BatchOrder, members: [UInt8], page: String?
  ) throws(Failure) -> ProviderRequest {
    switch order.action {
    case .upload: return try upload(order, members)
    case .findFile:
      return try order.request(
        path: "/files?purpose=batch&order=desc&limit=100" + after(page), auth: "bearer")
    case .create:
      var writer = JSONWriter()
      writer.beginObject()
      writer.member("input_file_id", order.fileID ?? "")
      writer.member("endpoint", try endpoint(order.call.kind))
      writer.member("completion_window", "24h")
      writer.key("metadata")
      writer.beginObject()
      writer.member(metadataKey, order.name)
      writer.endObject()
      writer.endObject()
      return try order.request(path: "/batches", auth: "bearer", body: writer.bytes)
    case .find:
      return try order.request(path: "/batches?limit=100" + after(page), auth: "bearer")
    case .poll, .collect:
      return try order.request(path: "/batches/\(order.id(order.externalID))", auth: "bearer")
    case .cancel:
      return try order.request(
        path: "/batches/\(order.id(order.externalID))/cancel", auth: "bearer", method: "POST")
    }
  }

  static func collection(for order: BatchOrder) throws(Failure) -> [ProviderRequest] {
    var requests: [ProviderRequest] = []
    for file in [order.outputID, order.errorsID] where file != nil {
      requests.append(
        try order.request(path: "/files/\(order.id(file))/content", auth: "bearer"))
    }
    return requests
  }

  static func report(on order: BatchOrder, _ json: JSON) -> BatchReport? {
    var report = BatchReport()
    switch order.action {
    case .upload:
      report.fileID = json["id"]?.string
      return report.fileID == nil ? nil : report
    case .findFile:
      guard let data = json["data"], data.kind == .array else { return nil }
      report.fileID =
        data.elements.first { $0["filename"]?.string == fileName(order) }?["id"]?.string
      if report.fileID == nil { report.nextPage = nextPage(json, data.elements, order) }
      return report
    case .find:
      guard let data = json["data"], data.kind == .array else { return nil }
      for batch in data.elements {
        guard let id = batch["id"]?.string, let created = batch["created_at"]?.int,
          created >= order.since - skew
        else { continue }
        report.found.append(
          .init(
            id: id, name: batch["metadata"]?.member(named: metadataKey)?.string ?? "",
            requests: batch["request_counts"]?["total"]?.int, created: created))
      }
      report.nextPage = nextPage(json, data.elements, order)
      return report
    case .create, .poll, .cancel, .collect:
      guard let id = json["id"]?.string, let status = json["status"]?.string else { return nil }
      report.externalID = id
      report.word = status
      switch status {
      case "completed": report.ending = .completed
      case "failed": report.ending = .failed
      case "expired": report.ending = .expired
      case "cancelled": report.ending = .cancelled
      default: break
      }
      report.outputID = json["output_file_id"]?.string
      report.errorsID = json["error_file_id"]?.string
      report.hasResults = report.outputID != nil || report.errorsID != nil
      report.errorCode = json["errors"]?["data"]?.elements.first?["code"]?.string
      return report
    }
  }

  static func parts(of result: JSON) -> BatchResultParts? {
    guard let id = result["custom_id"]?.string else { return nil }
    if let response = result["response"], let body = response["body"] {
      return BatchResultParts(
        id: id,
        content: .response(
          status: response["status_code"]?.int ?? 200, body: Array(body.raw),
          requestID: response["request_id"]?.string))
    }
    guard let error = result["error"] else { return nil }
    switch error["code"]?.string {
    case "batch_expired": return BatchResultParts(id: id, content: .expired)
    case "batch_cancelled": return BatchResultParts(id: id, content: .cancelled)
    case let code:
      var writer = JSONWriter()
      writer.beginObject()
      writer.key("error")
      writer.copy(error)
      writer.endObject()
      return BatchResultParts(
        id: id,
        content: .response(
          status: code == "request_timeout" ? 408 : 500, body: writer.bytes, requestID: nil))
    }
  }

  private static func fileName(_ order: BatchOrder) -> String { "martlet-\(order.name).jsonl" }

  private static func after(_ page: String?) -> String { page.map { "&after=\($0)" } ?? "" }

  /// The next page begins behind the last element, unless that is older than what is looked for.
  private static func nextPage(_ json: JSON, _ elements: [JSON], _ order: BatchOrder) -> String? {
    guard json["has_more"]?.bool == true, let last = elements.last,
      (last["created_at"]?.int ?? .max) >= order.since - skew,
      let id = last["id"]?.string, (try? order.id(id)) != nil
    else { return nil }
    return id
  }

  /// As the interface names it: whatever the base URL, it begins with `/v1`.
  private static func endpoint(_ kind: CallKind) throws(Failure) -> String {
    switch kind {
    case .chat: "/v1/chat/completions"
    case .embedding: "/v1/embeddings"
    case .completion: "/v1/completions"
    case .moderation: "/v1/moderations"
    default: throw Failure(.unsendable, message: "OpenAI's batches have no \(kind.rawValue)")
    }
  }

  /// A form of two fields (RFC 7578). Lines of JSON hold no line break but those between them, so that the
  /// boundary cannot occur in them.
  private static func upload(
    _ order: BatchOrder, _ members: [UInt8]
  ) throws(Failure) -> ProviderRequest {
    let boundary = "martlet-\(order.name)"
    var body: [UInt8] = []
    body.reserveCapacity(members.count + 512)
    body += Array(
      """
      --\(boundary)\r
      content-disposition: form-data; name="purpose"\r
      \r
      batch\r
      --\(boundary)\r
      content-disposition: form-data; name="file"; filename="\(fileName(order))"\r
      content-type: application/jsonl\r
      \r

      """.utf8)
    body += members
    body += Array("\n\r\n--\(boundary)--\r\n".utf8)
    return try order.request(
      path: "/files", auth: "bearer", body: body,
      type: "multipart/form-data; boundary=\(boundary)")
  }
}
