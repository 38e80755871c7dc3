import FoundationEssentials
import HTTP
import Logging
import Postgres
import Providers
import Sealing

/// Turns the rows of a claim into transfers.
struct Dispatcher {
  /// The columns of a claim, in this order.
  static let columns = """
    generation_id, attempt, kind, dialect, base_url, secret, headers, options, model, stream, \
    request, timeout_ms, cursor, wait_ms, retries, secret_ref, tenant_only, public_only, seal
    """

  private let desk: Desk
  private let pool: TransferPool
  private let secrets: Secrets
  private let logger: Logger
  private let local: LocalQueue
  private let porter: Porter?

  /// Silence after which a provider is given up: of a stream, and of one that does not stream, which is
  /// silent until it answers. Generations of batches have weeks; no call of theirs shall hang as long.
  private static let stallMilliseconds = (stream: 60_000, whole: 600_000)
  /// Bytes of a chat's answer. On its way into the database there are several copies of it.
  private static let longestAnswer = 16 << 20
  /// A day; no whole time is longer.
  private static let longest = 86_400_000

  init(
    desk: Desk, pool: TransferPool, secrets: Secrets, logger: Logger, local: LocalQueue,
    porter: Porter? = nil
  ) {
    self.desk = desk
    self.pool = pool
    self.secrets = secrets
    self.logger = logger
    self.local = local
    self.porter = porter
  }

  /// Starts every call of a claim; gives how many there were, and the header.
  func start(
    _ rows: QueryResult, _ keys: OpenedKeys
  ) -> (count: Int, header: ClaimMachine.Header, cursor: String?) {
    var header = ClaimMachine.Header()
    var cursor: String?
    var memory = Memory(keys: keys)
    var fences: [(row: Int, fence: Fence)] = []
    for row in 0..<rows.count {
      let attempt = rows.int(row, 1) ?? 0
      let fence = rows.withBytes(row, 0) { bytes in
        bytes.flatMap { Fence(uuid: $0, attempt: attempt) }
      }
      if let fence {
        fences.append((row, fence))
      } else {
        cursor = rows[row, 12]
        header = ClaimMachine.Header(
          waitMilliseconds: rows.int(row, 13), retries: rows.int(row, 14))
      }
    }
    if desk.isStopping {
      // Claimed while the worker was told to stop: another begins it at once.
      for (_, fence) in fences { desk.handBack(fence) }
      return (0, header, cursor)
    }
    for (row, fence) in fences {
      do throws(Failure) {
        try start(fence, rows, row, &memory)
      } catch {
        refuse(fence, error)
      }
    }
    local.add(memory.local)
    return (fences.count, header, cursor)
  }

  /// Reports a call that cannot be made.
  private func refuse(_ fence: Fence, _ failure: Failure) {
    var settlement = Settlement(fence: fence, outcome: .failed)
    settlement.failure = failure
    settlement.sent = false
    desk.begin(fence, streams: false)
    desk.finished(settlement)
    logger.info(
      "a call could not be made",
      metadata: ["generation": "\(fence)", "reason": "\(failure.signal.rawValue)"])
  }

  /// What calls of one claim have in common, looked up once, and those of the built-in provider.
  private struct Memory {
    let keys: OpenedKeys
    var local: [LocalCall] = []
    var headers: (json: [UInt8], value: [String: String])?
    var secrets: [String: Result<String, Failure>] = [:]
  }

  private func start(
    _ fence: Fence, _ rows: QueryResult, _ row: Int, _ memory: inout Memory
  ) throws(Failure) {
    guard let kind = rows[row, 2].flatMap(CallKind.init(rawValue:)) else {
      throw Failure(.unsendable, message: "this worker does not know the kind of the call")
    }
    let dialectName = rows[row, 3] ?? ""
    let options = rows.bytes(row, 7) ?? Array("{}".utf8)
    let timeout = max(1, rows.int(row, 11) ?? 600_000)
    let streams = rows.bool(row, 9) ?? false
    let wishes = wishes(options)
    let call = Call(
      kind: kind, dialect: dialectName, baseURL: rows[row, 4] ?? "",
      secret: try secret(rows, row, &memory),
      headers: try headers(rows.bytes(row, 6), &memory),
      model: rows[row, 8] ?? "",
      // Of a model that cannot stream the answer is shown when it is there.
      stream: streams && wishes?.streaming ?? true,
      request: rows.bytes(row, 10) ?? [],
      options: options,
      timeout: timeout)

    let order = rows.bytes(row, 18).flatMap { memory.keys.capture[$0] }

    if dialectName == LocalAnswers.name {
      desk.begin(fence, streams: streams, settledWith: company(wishes))
      let capture = order.map { Capture($0, fence: fence, request: call.request, secrets: []) }
      memory.local.append(
        LocalCall(
          fence: fence, call: call, report: report(fence, "local", call), capture: capture))
      return
    }
    guard let dialect = Dialects.named(dialectName) else {
      throw Failure(
        .unsendable, message: "this worker does not speak the dialect \(dialectName.prefix(50))")
    }
    let ready = Ready(
      fence: fence, call: call, dialect: dialect, streams: streams,
      deadline: .now + .milliseconds(timeout), wishes: wishes,
      publicOnly: rows.bool(row, 17) ?? true, order: order)
    let files = try RequestFile.wanted(by: call.request)
    guard !files.isEmpty, let porter else { return try send(ready) }
    desk.begin(fence, streams: streams, settledWith: company(wishes))
    porter.fetch(
      Porter.Fetch(fence: fence, files: files, deadline: ready.deadline) { contents, memory in
        self.send(ready, with: contents, memory)
      })
  }

  /// A call of which everything is known but the files in its messages.
  private struct Ready: Sendable {
    let fence: Fence
    var call: Call
    let dialect: any Dialect.Type
    let streams: Bool
    let deadline: ContinuousClock.Instant
    let wishes: Wishes?
    let publicOnly: Bool
    let order: CaptureOrder?
  }

  /// Sends a call whose files were fetched.
  private func send(
    _ ready: Ready, with contents: Result<[String: FileContent], Failure>, _ memory: Int
  ) {
    let fence = ready.fence
    do throws(Failure) {
      if let ending = desk.ending(of: fence) {
        var settlement = Settlement(
          fence: fence, outcome: ending == .cancelled ? .cancelled : .released)
        settlement.sent = false
        desk.files.giveBack(memory)
        return desk.finished(settlement)
      }
      var ready = ready
      ready.call.timeout = max(1, Int((ready.deadline - .now) / .milliseconds(1)))
      ready.call.request = try FilledRequest.fill(ready.call.request, with: contents.get())
      try send(ready, memory)
    } catch {
      desk.files.giveBack(memory)
      refuse(fence, error)
    }
  }

  /// - Parameter memory: bytes that were taken for the call's files, given back at its end.
  private func send(_ ready: Ready, _ memory: Int = 0) throws(Failure) {
    let (fence, call, wishes) = (ready.fence, ready.call, ready.wishes)
    let written = try ready.dialect.request(for: call)
    var request = HTTPRequest(
      method: written.method, url: written.url, headers: written.headers, body: written.body)
    request.totalTimeout = max(1, Int((ready.deadline - .now) / .milliseconds(1)))
    request.stallTimeout =
      wishes?.stall
      ?? (call.stream ? Self.stallMilliseconds.stream : Self.stallMilliseconds.whole)
    request.firstAnswerTimeout = wishes?.firstToken ?? 0
    if call.kind == .chat || call.kind == .completion { request.maxHeldBytes = Self.longestAnswer }
    request.publicOnly = ready.publicOnly
    let attempt = Attempt(
      fence: fence, streams: ready.streams, reader: ready.dialect.reader(for: call), desk: desk,
      report: report(fence, host(of: written.url), call),
      capture: ready.order.map {
        Capture($0, fence: fence, request: written.body, secrets: call.secrets)
      },
      dropped: written.dropped, onward: onward(written, request, call),
      baggage: porter.map {
        Baggage(
          porter: $0, provider: call.baseURL, publicOnly: ready.publicOnly,
          deadline: ready.deadline, memory: memory)
      })
    desk.begin(fence, streams: ready.streams, settledWith: company(wishes))
    let transfer = pool.start(request, sink: attempt)
    if desk.started(fence, transfer) { pool.cancel(transfer) }
  }

  private func onward(_ written: ProviderRequest, _ limits: HTTPRequest, _ call: Call) -> Onward {
    var (first, limits) = (written, limits)
    first.body = []
    limits.body = []
    limits.headers = []
    return Onward(transport: pool, first: first, base: call.baseURL, limits: limits)
  }

  private func report(_ fence: Fence, _ provider: String, _ call: Call) -> Report {
    Report(logger: logger, fence: fence, provider: provider, model: call.model)
  }

  /// Which key: what SQL found in the database; else, for a provider that all tenants share, what this
  /// process has. A tenant says where its own provider is, so nothing of the operator's ever goes there.
  private func secret(
    _ rows: QueryResult, _ row: Int, _ memory: inout Memory
  ) throws(Failure) -> String? {
    guard let name = rows[row, 5] else { return nil }
    if let ref = rows.int(row, 15), let found = memory.keys.secrets[ref] {
      return try found.get().text
    }
    if rows.int(row, 15) != nil || rows.bool(row, 16) != false {
      var failure = Failure(
        .unsendable,
        message: "the tenant has no secret \(name) of its own, or it was removed just now")
      failure.code = "no_secret"
      throw failure
    }
    if let known = memory.secrets[name] { return try known.get() }
    let value = Result { () throws(Failure) in try secrets.value(of: name) }
    memory.secrets[name] = value
    return try value.get()
  }

  private func headers(
    _ json: [UInt8]?, _ memory: inout Memory
  ) throws(Failure) -> [String: String] {
    guard let json, json.count > 2 else { return [:] }
    if let known = memory.headers, known.json == json { return known.value }
    guard let value = try? JSONDecoder().decode([String: String].self, from: Data(json)) else {
      throw Failure(
        .unsendable, message: "the provider's headers are not an object of strings")
    }
    memory.headers = (json, value)
    return value
  }

  /// What the worker itself obeys among the options of a call: times in milliseconds, where 0 or less
  /// is none, whether the model can stream, and whether others wait while the answer is settled.
  private struct Wishes: Decodable {
    var stall: Int?
    var firstToken: Int?
    var streaming: Bool?
    var settlesApart: Bool?
    enum CodingKeys: String, CodingKey {
      case stall = "stall_ms"
      case firstToken = "first_token_ms"
      case streaming
      case settlesApart = "settles_apart"
    }
  }

  private func company(_ wishes: Wishes?) -> Settlement.Company {
    wishes?.settlesApart == true ? .slow : .all
  }

  /// nil where there are none, as in most calls.
  private func wishes(_ options: [UInt8]) -> Wishes? {
    guard options.count > 12, Self.mayHoldWishes(options) else { return nil }
    guard var wishes = try? JSONDecoder().decode(Wishes.self, from: Data(options)) else {
      return nil
    }
    wishes.stall = wishes.stall.map { min(max(0, $0), Self.longest) }
    wishes.firstToken = wishes.firstToken.map { min(max(0, $0), Self.longest) }
    return wishes
  }

  /// Whether something in quotes ends with `_ms`, `streaming` or `_apart`.
  private static func mayHoldWishes(_ options: [UInt8]) -> Bool {
    options.indices.contains { index in
      guard options[index] == UInt8(ascii: "\"") else { return false }
      let before = options[..<index]
      return before.suffix(3).elementsEqual("_ms".utf8)
        || before.suffix(9).elementsEqual("streaming".utf8)
        || before.suffix(6).elementsEqual("_apart".utf8)
    }
  }

  /// For the log: without a path or a query, which might hold a key.
  private func host(of url: String) -> String {
    let rest = url.split(separator: "/", maxSplits: 2, omittingEmptySubsequences: true)
    guard rest.count > 1 else { return "" }
    let authority = rest[1].split(separator: "/").first ?? ""
    return String((authority.split(separator: "@").last ?? "").prefix(100))
  }
}
