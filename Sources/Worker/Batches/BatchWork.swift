import HTTP
import Logging
import Postgres
import Providers

/// Does one step of a provider batch: the request, what it answered, and the report. The database has taken note of the
/// step before, and finds out by itself what became of it where this ends without a report.
struct BatchWork: Sendable {
  let step: BatchStep
  let secret: Result<String?, Failure>
  let network: TransferPool.Configuration
  let desk: Desk
  let setup: Setup

  /// Why a step ends without its result.
  private enum Stop: Error {
    case failed(Failure)
    /// Somebody else's by now, or the worker ends, or the database is away. Whoever takes the batch next looks.
    case over
  }

  private static let reportSQL = "select ai.worker_batch_report($1, $2, $3, $4)"
  private static let resultsSQL = "select ai.worker_batch_results($1, $2, $3, $4)"
  private static let membersSQL = """
    select generation_id, attempt, request from ai.worker_batch_requests($1, $2, $3, $4, $5)
    """
  /// Requests that are read at once.
  private static let page = 200
  /// Pages of a list.
  private static let mostPages = 50
  /// Bytes of what is told of a batch. Results are read as a stream; each has a limit of its own.
  private static let largestAnswer = 8 << 20
  private static let tries = 5
  private static let stallMilliseconds = 300_000

  func run() async {
    let link = Link(setup, desk: desk, purpose: "batch step")
    do throws(Stop) {
      let report: [UInt8]
      do throws(Stop) {
        report = try await work(link)
      } catch {
        guard case .failed(let failure) = error, !Task.isCancelled else { throw .over }
        log(failure)
        report = Self.report(failure)
      }
      _ = try await query(Self.reportSQL, [String(decoding: report, as: UTF8.self)], link)
      setup.logger.debug("a step of a provider batch was done", metadata: metadata)
    } catch {
      setup.logger.notice("a step of a provider batch was left", metadata: metadata)
    }
    await link.close()
  }

  private func work(_ link: Link) async throws(Stop) -> [UInt8] {
    let order: BatchOrder
    let pool: TransferPool
    guard let dialect = BatchDialects.named(step.dialect) else {
      throw .failed(
        Failure(
          .unsendable,
          message: "this worker has no batches in the dialect \(step.dialect.prefix(50))"))
    }
    do throws(Failure) {
      order = try step.order(secret: secret.get())
    } catch {
      throw .failed(error)
    }
    do {
      pool = try TransferPool(network)
    } catch {
      throw .failed(Failure(.connect, message: error.description))
    }
    defer { pool.stop() }
    switch order.action {
    case .upload: return try await send(order, dialect, pool, link)
    case .create where order.fileID == nil: return try await send(order, dialect, pool, link)
    case .create, .poll, .cancel:
      return Self.report(try await ask(order, dialect, pool))
    case .find, .findFile: return try await look(order, dialect, pool)
    case .collect:
      try await collect(order, dialect, pool, link)
      return Self.report(BatchReport())
    }
  }

  // MARK: One request

  private func ask(
    _ order: BatchOrder, _ dialect: any BatchDialect.Type, _ pool: TransferPool,
    members: [UInt8] = [], page: String? = nil
  ) async throws(Stop) -> BatchReport {
    do throws(Failure) {
      let request = http(try dialect.request(for: order, members: members, page: page))
      var splitting: String?
      if order.action == .poll, case .array(let name) = dialect.results { splitting = name }
      let exchange = await BatchExchange.run(request, on: pool, splitting: splitting)
      return try Self.read(exchange, order, dialect).get()
    } catch {
      throw .failed(error)
    }
  }

  private static func read(
    _ exchange: BatchExchange, _ order: BatchOrder, _ dialect: any BatchDialect.Type
  ) -> Result<BatchReport, Failure> {
    if var failure = exchange.failure {
      failure.httpStatus = exchange.status
      // Nothing is certain of a request of which any part may have left.
      if exchange.outcome?.requestSent == true, failure.signal == .unsendable {
        failure.signal = .reset
      }
      return .failure(failure)
    }
    return dialect.read(
      order, status: exchange.status ?? 0, headers: exchange.headers, body: exchange.body)
  }

  private func http(_ written: ProviderRequest) -> HTTPRequest {
    var request = HTTPRequest(
      method: written.method, url: written.url, headers: written.headers, body: written.body)
    request.totalTimeout = step.timeout
    request.stallTimeout = min(step.timeout, Self.stallMilliseconds)
    request.publicOnly = step.publicOnly
    if step.action == .poll {
      // Results may stand in it; they are passed over.
      request.maxResponseBytes = 4 << 30
    } else if step.action != .collect {
      request.maxResponseBytes = Self.largestAnswer
    } else {
      request.maxResponseBytes = 64 << 30
    }
    return request
  }

  // MARK: Sending

  private func send(
    _ order: BatchOrder, _ dialect: any BatchDialect.Type, _ pool: TransferPool, _ link: Link
  ) async throws(Stop) -> [UInt8] {
    var members: [UInt8] = []
    var dropped = JSONBuffer()
    var hasDropped = false
    dropped.beginObject()
    var refused: [Settlement] = []
    var after: String?
    repeat {
      let rows = try await query(Self.membersSQL, [after, String(Self.page)], link)
      if rows.isEmpty { break }
      for row in 0..<rows.count {
        let attempt = rows.int(row, 1) ?? 0
        let fence = rows.withBytes(row, 0) { bytes in
          bytes.flatMap { Fence(uuid: $0, attempt: attempt) }
        }
        guard let fence else { continue }
        var call = order.call
        call.request = rows.bytes(row, 2) ?? []
        do throws(Failure) {
          let member = try dialect.member(fence.member, call)
          if !members.isEmpty { members.append(dialect.separator) }
          members += member.bytes
          if !member.dropped.isEmpty {
            hasDropped = true
            dropped.member(text: fence.description, list: member.dropped)
          }
        } catch {
          var settlement = Settlement(fence: fence, outcome: .failed)
          settlement.failure = error
          settlement.sent = false
          refused.append(settlement)
        }
      }
      after = rows[rows.count - 1, 0]
    } while after != nil
    dropped.endObject()
    if !refused.isEmpty { try await settle(refused, link) }
    guard !members.isEmpty else {
      throw .failed(Failure(.unsendable, message: "the batch has no members that can be sent"))
    }
    var report = Self.fields(try await ask(order, dialect, pool, members: members))
    if hasDropped { report.member("dropped", json: dropped.bytes) }
    report.endObject()
    return report.bytes
  }

  // MARK: Looking

  private func look(
    _ order: BatchOrder, _ dialect: any BatchDialect.Type, _ pool: TransferPool
  ) async throws(Stop) -> [UInt8] {
    var whole = BatchReport()
    var page: String?
    for _ in 0..<Self.mostPages {
      let part = try await ask(order, dialect, pool, page: page)
      whole.found += part.found
      whole.fileID = part.fileID ?? whole.fileID
      page = part.nextPage
      if page == nil || whole.fileID != nil { break }
    }
    var report = Self.fields(whole)
    report.member("complete", page == nil)
    report.endObject()
    return report.bytes
  }

  // MARK: Results

  private func collect(
    _ order: BatchOrder, _ dialect: any BatchDialect.Type, _ pool: TransferPool, _ link: Link
  ) async throws(Stop) {
    let requests: [ProviderRequest]
    do throws(Failure) {
      requests = try dialect.collection(for: order)
    } catch {
      throw .failed(error)
    }
    for request in requests {
      let pipe = ResultPipe(dialect, order.call)
      let transfer = pool.start(http(request), sink: pipe)
      do throws(Stop) {
        while let portion = await withTaskCancellationHandler(
          operation: { await pipe.next() }, onCancel: { pool.cancel(transfer) })
        {
          try await settle(portion, link)
          pipe.acknowledge()
        }
      } catch {
        pipe.abandon()
        pool.cancel(transfer)
        throw error
      }
      if Task.isCancelled { throw .over }
      let exchange = pipe.exchange
      if let failure = exchange.failure { throw .failed(failure) }
      if !(200...299).contains(exchange.status ?? 0) {
        var asked = order
        asked.action = .poll
        if case .failure(let failure) = Self.read(exchange, asked, dialect) {
          throw .failed(failure)
        }
      }
    }
  }

  private func settle(_ portion: ResultPipe.Portion, _ link: Link) async throws(Stop) {
    var json = JSONBuffer(reserving: portion.bytes + 256)
    json.beginArray()
    for answer in portion.answers { Self.write(answer.fence, answer.content, to: &json) }
    for _ in 0..<portion.malformed {
      json.beginObject()
      json.member("outcome", "malformed")
      json.endObject()
    }
    json.endArray()
    if try await tell(json.text, link) { return }
    // The database cannot take one of them: each for itself, and that one without its content.
    for answer in portion.answers {
      var one = JSONBuffer()
      one.beginArray()
      Self.write(answer.fence, answer.content, to: &one)
      one.endArray()
      if try await tell(one.text, link) { continue }
      guard case .answered(let outcome) = answer.content else { continue }
      try await settle(
        [Self.settlement(answer.fence, outcome).withoutContent()], link)
    }
  }

  private func settle(_ settlements: [Settlement], _ link: Link) async throws(Stop) {
    var json = JSONBuffer()
    json.beginArray()
    for settlement in settlements { settlement.write(to: &json) }
    json.endArray()
    if try await !tell(json.text, link) { throw .over }
  }

  private static func write(
    _ fence: Fence, _ content: BatchAnswer.Content, to json: inout JSONBuffer
  ) {
    switch content {
    case .answered(let outcome): settlement(fence, outcome).write(to: &json)
    case .expired: bare(fence, "expired", to: &json)
    case .cancelled: bare(fence, "cancelled", to: &json)
    }
  }

  private static func bare(_ fence: Fence, _ outcome: String, to json: inout JSONBuffer) {
    json.beginObject()
    json.member("id", uuidOf: fence)
    json.member("attempt", fence.attempt)
    json.member("outcome", outcome)
    json.endObject()
  }

  private static func settlement(_ fence: Fence, _ outcome: Outcome) -> Settlement {
    var settlement: Settlement
    switch outcome {
    case .success(let reply):
      settlement = Settlement(fence: fence, outcome: .succeeded)
      settlement.reply = reply
      settlement.httpStatus = 200
      let vectors = [reply.embedding ?? []] + (reply.embeddings ?? [])
      if vectors.contains(where: { $0.contains { !$0.isFinite } }) {
        settlement.outcome = .failed
        settlement.reply?.embedding = nil
        settlement.reply?.embeddings = nil
        settlement.failure = Failure(.malformed, message: "the embedding has numbers that are none")
      }
    case .failure(let failure):
      settlement = Settlement(fence: fence, outcome: .failed)
      settlement.failure = failure
      settlement.reply = failure.partial
      // A batch is no line that could be busy: when it may be tried again is ours to say.
      settlement.failure?.retryAfterMilliseconds = nil
    }
    return settlement
  }

  // MARK: The database

  /// False: the database refuses what it was told.
  private func tell(_ results: String, _ link: Link) async throws(Stop) -> Bool {
    guard let answer = try await attempt(Self.resultsSQL, [results], link) else { return false }
    guard !answer.isEmpty, answer[0, 0] == "taken" else { throw .over }
    return true
  }

  private func query(
    _ sql: String, _ parameters: [String?], _ link: Link
  ) async throws(Stop) -> QueryResult {
    guard let rows = try await attempt(sql, parameters, link) else { throw .over }
    return rows
  }

  /// Runs a statement about this step; nil: the database refuses it. What may pass is tried again: all of them may be
  /// run twice.
  private func attempt(
    _ sql: String, _ parameters: [String?], _ link: Link
  ) async throws(Stop) -> QueryResult? {
    for _ in 0..<Self.tries {
      do throws(PostgresError) {
        return try await link.query(
          sql, [step.worker, step.batch, String(step.number)] + parameters)
      } catch {
        guard error.kind == .connection || error.isOutside else {
          setup.logger.error(
            "the database refuses what is told of a provider batch",
            metadata: metadata.merging(["sqlstate": "\(error.sqlState ?? "none")"]) { $1 })
          return nil
        }
        if Task.isCancelled { throw .over }
        await link.rest(after: error, "a step of a provider batch")
      }
    }
    throw .over
  }

  // MARK: Words

  private static func fields(_ report: BatchReport) -> JSONBuffer {
    var json = JSONBuffer()
    json.beginObject()
    json.member("outcome", "done")
    json.member("file_id", report.fileID)
    json.member("external_id", report.externalID)
    json.member("status", report.ending == nil ? "running" : "ended")
    json.member("ending", report.ending?.rawValue)
    json.member("word", report.word)
    json.member("output_id", report.outputID)
    json.member("errors_id", report.errorsID)
    json.member("has_results", report.hasResults)
    json.member("error_code", report.errorCode)
    if !report.found.isEmpty {
      json.key("found")
      json.beginArray()
      for found in report.found {
        json.beginObject()
        json.member("id", found.id)
        json.member("name", found.name)
        json.member("requests", found.requests)
        json.member("created", found.created)
        json.endObject()
      }
      json.endArray()
    }
    return json
  }

  private static func report(_ report: BatchReport) -> [UInt8] {
    var json = fields(report)
    json.endObject()
    return json.bytes
  }

  private static func report(_ failure: Failure) -> [UInt8] {
    var json = JSONBuffer()
    json.beginObject()
    json.member("outcome", "failed")
    json.member("signal", failure.signal.rawValue)
    json.member("http_status", failure.httpStatus)
    json.member("error_type", failure.type)
    json.member("error_code", failure.code)
    json.member("retry_after_ms", failure.retryAfterMilliseconds)
    json.endObject()
    return json.bytes
  }

  private var metadata: Logger.Metadata {
    [
      "provider_batch": "\(step.batch)", "step": "\(step.number)",
      "action": "\(step.action?.rawValue ?? "unknown")",
    ]
  }

  private func log(_ failure: Failure) {
    var metadata = metadata
    metadata["signal"] = "\(failure.signal.rawValue)"
    if let status = failure.httpStatus { metadata["http_status"] = "\(status)" }
    if let type = failure.type { metadata["error_type"] = "\(type)" }
    if let code = failure.code { metadata["error_code"] = "\(code)" }
    setup.logger.info("a step of a provider batch failed", metadata: metadata)
  }
}
