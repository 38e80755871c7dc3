import NIOCore
import NIOHTTP1

extension Responder {
  /// Answers a request to a batch interface; nil: it is none.
  func batchExchange(_ request: IncomingRequest, _ path: Substring) -> Exchange? {
    guard let endpoint = BatchEndpoint(request.head.method, path) else { return nil }
    let milliseconds = WallClock.milliseconds()
    var context = Context(
      wire: endpoint.wire, endpoint: .batch(endpoint), requestID: nextID(),
      now: now(milliseconds: milliseconds), keepAlive: request.head.isKeepAlive,
      allowsChunks: request.head.version != .http1_0, entry: LogEntry())
    context.entry.time = milliseconds
    context.entry.endpoint = endpoint.path
    context.entry.wire = endpoint.wire
    context.entry.requestID = context.requestID
    context.entry.connection = request.connection
    context.entry.bodyBytes = request.body.readableBytes
    var hash = Hash64()
    request.body.withUnsafeReadableBytes { hash.combine($0) }
    context.entry.bodyHash = hash.value
    if request.isTooLarge { return refuse(context, 413, "The request is larger than 16 MiB.") }
    if let refusal = refusal(context, request) { return refusal }
    do throws(ProviderFailure) {
      let (directives, _) = try directives(&context, request, model: "")
      if !directives.isLate,
        let exchange = faultyExchange(context, directives, isStream: false)
      {
        return exchange
      }
      let body = try work(endpoint, request, context, directives)
      if directives.isLate, let exchange = faultyExchange(context, directives, isStream: false) {
        return exchange
      }
      var buffer = ByteBuffer(bytes: body)
      if directives.malformed { buffer = Self.halved(buffer) }
      return bytes(context, buffer, directives: directives)
    } catch {
      return fail(context, error)
    }
  }

  private func work(
    _ endpoint: BatchEndpoint, _ request: IncomingRequest, _ context: Context,
    _ directives: Directives
  ) throws(ProviderFailure) -> [UInt8] {
    let time = context.entry.time
    switch endpoint.step {
    case .upload: return try upload(request, context)
    case .files:
      let files = batches.files.map { Self.json(of: $0) }
      return BatchWire.list(files, hasMore: false)
    case .content:
      if let file = batches.file(endpoint.id) { return file.bytes }
      let name = endpoint.id.split(separator: "-").first.map(String.init) ?? ""
      guard let job = batches.job(name), let lines = BatchWire.file(endpoint.id, of: job) else {
        throw gone(endpoint)
      }
      return lines
    case .create:
      let job = try create(endpoint, request, context, directives)
      return BatchWire.job(job, at: time)
    case .list:
      return list(endpoint, request, at: time)
    case .poll:
      return BatchWire.job(try settled(endpoint, request, at: time), at: time)
    case .cancel:
      let before = try settled(endpoint, request, at: time)
      guard before.end == nil else {
        throw ProviderFailure(endpoint.wire, status: 409, message: "The batch has ended.")
      }
      let job = batches.update(endpoint.id) { $0.cancelled = time } ?? before
      return endpoint.family == .gemini ? Array("{}".utf8) : BatchWire.job(job, at: time)
    case .results:
      let job = try settled(endpoint, request, at: time)
      guard job.end != nil else { throw gone(endpoint) }
      return BatchWire.lines(job.results, job.family)
    }
  }

  private func gone(_ endpoint: BatchEndpoint) -> ProviderFailure {
    ProviderFailure(endpoint.wire, status: 404, message: "No such batch or file.")
  }

  // MARK: Making one

  private func upload(
    _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> [UInt8] {
    guard let form = BatchForm(request), form.purpose == "batch" else {
      throw ProviderFailure(
        .openAI, status: 400, message: "A form with purpose=batch and a file is needed.")
    }
    return Self.json(of: batches.add(file: form.name, form.content, at: context.entry.time))
  }

  private static func json(of file: BatchStore.File) -> [UInt8] {
    Array(
      """
      {"id":"\(file.id)","object":"file","bytes":\(file.bytes.count),"created_at":\(file.created),\
      "filename":"\(String(decoding: JSONText.escaped(file.name), as: UTF8.self))",\
      "purpose":"batch","status":"processed"}
      """.utf8)
  }

  private func create(
    _ endpoint: BatchEndpoint, _ request: IncomingRequest, _ context: Context,
    _ directives: Directives
  ) throws(ProviderFailure) -> BatchStore.Job {
    let body = Array(request.body.readableBytesView)
    var job = BatchStore.Job(
      id: "", family: endpoint.family, label: [], members: [], created: context.entry.time,
      directives: directives.batch ?? BatchDirectives())
    switch endpoint.family {
    case .openAI:
      guard let fields = RawJSON(body), let input = fields.text("input_file_id"),
        let path = fields.text("endpoint")
      else { throw missing("input_file_id", .openAI) }
      guard let file = batches.file(input) else { throw gone(endpoint) }
      job.label = fields.raw("metadata") ?? Array("null".utf8)
      job.endpoint = path
      job.inputFile = input
      for line in file.bytes.split(separator: UInt8(ascii: "\n")) {
        guard let fields = RawJSON(Array(line)), let id = fields.text("custom_id"),
          let url = fields.text("url"), let body = fields.raw("body"), url == path
        else {
          job.directives.end = .failed
          break
        }
        job.members.append(.init(id: id, path: url, body: body))
      }
    case .anthropic:
      guard let fields = RawJSON(body), let requests = fields.elements("requests") else {
        throw missing("requests", .anthropic)
      }
      for element in requests {
        guard let fields = RawJSON(element), let id = fields.text("custom_id"),
          let params = fields.raw("params"), id.utf8.count <= 64
        else { throw missing("custom_id", .anthropic) }
        job.members.append(.init(id: id, path: "/v1/messages", body: params))
      }
    case .gemini:
      guard let batch = RawJSON(body)?.object("batch"),
        let requests = batch.object("inputConfig")?.object("requests")?.elements("requests")
      else { throw missing("batch", .gemini) }
      job.label = Array((batch.text("displayName") ?? "").utf8)
      job.endpoint = "models/\(endpoint.id)"
      for element in requests {
        guard let fields = RawJSON(element), let inside = fields.raw("request"),
          let id = fields.object("metadata")?.text("key")
        else { throw missing("requests", .gemini) }
        job.members.append(
          .init(id: id, path: "/v1beta/models/\(endpoint.id):generateContent", body: inside))
      }
    }
    return batches.add(job)
  }

  // MARK: Its end

  /// Batches of a page: `limit` and the cursor of the family are honoured.
  private func list(
    _ endpoint: BatchEndpoint, _ request: IncomingRequest, at time: Int
  ) -> [UInt8] {
    var jobs = batches.jobs(endpoint.family)
    let query = request.head.uri.split(separator: "?", maxSplits: 1).dropFirst().first ?? ""
    var limit = 100
    for pair in query.split(separator: "&") {
      let parts = pair.split(separator: "=", maxSplits: 1)
      guard parts.count == 2 else { continue }
      switch parts[0] {
      case "limit", "pageSize": limit = max(1, Int(parts[1]) ?? limit)
      case "after", "after_id", "pageToken":
        if let at = jobs.firstIndex(where: { $0.id == parts[1] }) { jobs.removeFirst(at + 1) }
      default: break
      }
    }
    let hasMore = jobs.count > limit
    let page = jobs.prefix(limit).map { job in
      BatchWire.job(ended(job, request, at: time), at: time, withResults: false)
    }
    if endpoint.family == .gemini {
      return BatchWire.operations(page, next: hasMore ? jobs[limit - 1].id : nil)
    }
    return BatchWire.list(page, hasMore: hasMore, last: jobs.prefix(limit).last?.id)
  }

  private func settled(
    _ endpoint: BatchEndpoint, _ request: IncomingRequest, at time: Int
  ) throws(ProviderFailure) -> BatchStore.Job {
    guard let job = batches.job(endpoint.id), job.family == endpoint.family else {
      throw gone(endpoint)
    }
    return ended(job, request, at: time)
  }

  /// A batch whose time has come is answered when somebody looks at it.
  private func ended(
    _ job: BatchStore.Job, _ request: IncomingRequest, at time: Int
  ) -> BatchStore.Job {
    let directives = job.directives
    let isDue = time >= job.created + directives.milliseconds
    guard job.end == nil, isDue || job.cancelled != nil else { return job }
    let end = job.cancelled != nil && !isDue ? .cancelled : directives.end
    var isFirst = false
    let ended = batches.update(job.id) { job in
      isFirst = job.end == nil
      if isFirst { job.end = end }
    }
    guard isFirst else { return ended ?? job }
    var results: [BatchStore.Result] = []
    let answered =
      end == .failed
      ? 0 : end == .completed ? job.members.count : min(directives.done, job.members.count)
    for member in job.members.prefix(answered) { results.append(execute(member, request)) }
    if end == .expired || end == .cancelled {
      for member in job.members.dropFirst(answered) {
        results.append(.init(id: member.id, content: end == .expired ? .expired : .cancelled))
      }
    }
    results.removeLast(min(directives.lost, results.count))
    if directives.repeats { results += results }
    for number in 0..<directives.strays {
      results.append(
        .init(
          id: "stray-\(number)",
          content: .response(
            status: 400, requestID: 1,
            body: Array(#"{"error":{"message":"stray","type":"invalid_request_error"}}"#.utf8))))
    }
    if directives.reverses { results.reverse() }
    return batches.update(job.id) { $0.results = results } ?? job
  }

  /// Answers a member as if it had come over HTTP by itself, and writes it into the books.
  private func execute(
    _ member: BatchStore.Member, _ request: IncomingRequest
  ) -> BatchStore.Result {
    var head = HTTPRequestHead(version: .http1_1, method: .POST, uri: member.path)
    head.headers = request.head.headers
    head.headers.remove(name: "x-simulate")
    var exchange = answer(
      IncomingRequest(
        head: head, body: ByteBuffer(bytes: member.body), connection: request.connection))
    var out = ByteBuffer()
    sending: while true {
      switch exchange.transmission.step(into: &out) {
      case .more, .wait: continue
      case .finished: break sending
      }
    }
    let bytes = Array(out.readableBytesView)
    let body = Self.body(of: bytes)
    if var entry = exchange.entry {
      entry.usage = exchange.usage
      entry.bytesSent = bytes.count
      entry.isComplete = entry.status < 400 && entry.fault == nil
      entry.isUsageReported = entry.isComplete
      entry.tag = entry.tag ?? "batch"
      log.append(entry)
      return .init(
        id: member.id,
        content: .response(
          status: entry.status == 0 ? 500 : entry.status, requestID: entry.requestID, body: body))
    }
    return .init(id: member.id, content: .response(status: 500, requestID: 0, body: body))
  }

  /// What follows the head of a whole response.
  private static func body(of response: [UInt8]) -> [UInt8] {
    let end = Array("\r\n\r\n".utf8)
    guard response.count >= end.count else { return Array("{}".utf8) }
    for at in 0...(response.count - end.count) where response[at] == end[0] {
      if Array(response[at..<(at + end.count)]) == end {
        let body = Array(response[(at + end.count)...])
        return body.isEmpty ? Array("{}".utf8) : body
      }
    }
    return Array("{}".utf8)
  }
}
