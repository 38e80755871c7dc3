/// Reads a response of any JSON protocol, with `Assembler` for what is its own.
struct AnswerReader<Assembler: AnswerAssembler>: ResponseReader {
  private var assembler: Assembler
  private let streaming: Bool
  /// What nobody may be told of the call.
  private let secrets: [String]
  private let now: @Sendable () -> Int

  private var head: ResponseHead?
  private var framing = Framing.whole
  private var sawUnit = false
  /// Of the present response.
  private var sawBody = false
  private var errorBody: [UInt8] = []
  /// The first unit of a successful response that could not be read.
  private var malformed: [UInt8]?
  /// Whether something followed it, so that it was not just cut off.
  private var malformedWasLast = false
  /// The whole body ended before its JSON did.
  private var cut = false
  /// What is read answers a further request of the call.
  private var isFollowing = false
  private var firstRequestID: String?

  /// `now` gives seconds since 1970; asked only for a Retry-After date without a Date beside it.
  init(_ assembler: Assembler, for call: Call, now: @escaping @Sendable () -> Int = HTTPDate.now) {
    self.assembler = assembler
    streaming = call.stream && Assembler.streams
    secrets = call.secrets
    self.now = now
  }

  var isComplete: Bool { !isWhole && (assembler.isComplete || assembler.fault != nil) }

  private var isWhole: Bool {
    if case .whole = framing { true } else { false }
  }

  var hasBegun: Bool { assembler.hasBegun }

  /// The content type decides, since servers that cannot stream answer a streamed call with JSON;
  /// where it says nothing, what was asked for does.
  mutating func head(_ head: ResponseHead) -> Framing {
    self.head = head
    let type = (head.headers["content-type"] ?? "").lowercased()
    assembler.head(head)
    if !(200...299).contains(head.status) || !Assembler.streams {
      framing = .whole
    } else if type.hasPrefix("text/event-stream") {
      framing = .events
    } else if ["application/x-ndjson", "application/ndjson", "application/jsonl"]
      .contains(where: type.hasPrefix)
    {
      framing = .lines
    } else if type.contains("/json") || type.contains("+json") || type.hasPrefix("text/html") {
      framing = .whole
    } else {
      framing = streaming ? Assembler.streamFraming : .whole
    }
    return framing
  }

  mutating func eventID(_ id: String) { assembler.eventID(id) }

  mutating func receive(event: String?, data: [UInt8]) -> String {
    guard let head else { return "" }
    guard (200...299).contains(head.status) else {
      // Enough for any error object; the rest of a page is of no use.
      errorBody.append(contentsOf: data.prefix(max(0, 65_536 - errorBody.count)))
      return ""
    }
    guard !assembler.isComplete, assembler.fault == nil else { return "" }
    sawBody = true
    if case .events = framing, let text = assembler.plain(named: event, data) {
      sawUnit = true
      return text
    }
    guard !isBlank(data) else { return "" }
    sawUnit = true
    if !isWhole {
      malformedWasLast = false
      if let text = assembler.marker(data) { return text }
      guard case .whole(let json) = JSON.parse(data, limit: Assembler.maxValues),
        json.kind == .object
      else {
        if malformed == nil { malformed = data }
        malformedWasLast = true
        return ""
      }
      return assembler.event(named: event, json)
    }
    switch JSON.parse(data, limit: Assembler.maxValues) {
    case .whole(let json):
      let text = assembler.whole(json)
      if !assembler.isComplete && assembler.fault == nil && !assembler.isPending {
        malformed = data
      }
      return text
    case .cut(let json):
      cut = true
      return json.map { assembler.cut($0) } ?? ""
    case .invalid:
      malformed = data
      return ""
    }
  }

  mutating func followUp(_ end: TransferEnd) -> FollowUp? {
    guard !assembler.isComplete, assembler.fault == nil else { return nil }
    guard let next = assembler.followUp(ended(end)) else {
      // An answer that is complete without what was asked for last.
      if assembler.isComplete { (malformed, cut) = (nil, false) }
      return nil
    }
    firstRequestID = firstRequestID ?? requestID
    isFollowing = true
    head = nil
    errorBody = []
    sawBody = false
    // What was cut off comes again, and so does a body; a hole in a stream stays one.
    if case .whole = framing { malformed = nil }
    if malformedWasLast { malformed = nil }
    malformedWasLast = false
    framing = .whole
    cut = false
    return next
  }

  var farewell: FollowUp? {
    assembler.isComplete || assembler.fault != nil ? nil : assembler.farewell
  }

  private func ended(_ end: TransferEnd) -> ResponseEnd {
    guard let head else {
      guard case .broken(let signal, _) = end else { return .broken(.empty) }
      return .broken(signal)
    }
    guard (200...299).contains(head.status) else {
      return .refused(status: head.status, wait: httpFailure(head).retryAfterMilliseconds)
    }
    if case .broken(let signal, _) = end { return .broken(signal) }
    if malformed != nil || cut { return .unreadable }
    if case .whole = framing, !sawBody { return .unreadable }
    // What OpenAI's SDK asks before it polls.
    let hint = head.headers["openai-poll-after-ms"].flatMap(Double.init).map(RetryAfter.clamp)
    return .complete(wait: RetryAfter.milliseconds(head.headers, now: now) ?? hint)
  }

  mutating func finish(_ end: TransferEnd) -> Outcome {
    // What was still asked for is not needed for an answer.
    if isFollowing, assembler.isComplete, !cut, malformed == nil { return .success(finished()) }
    guard let head else {
      guard case .broken(let signal, let words) = end else {
        return .failure(failure(.empty, "the connection closed without a response"))
      }
      return .failure(failure(signal, words))
    }
    if var fault = assembler.fault {
      // In the place of the answer an error means what its status means. Behind a part of one it does
      // not, nor where an answer is only fetched: that was begun, and may be paid for.
      if fault.httpStatus != nil, !isFollowing, !assembler.hasBegun {
        fault.signal = .http
      } else {
        fault.httpStatus = nil
      }
      return .failure(described(fault))
    }
    guard (200...299).contains(head.status) else { return .failure(httpFailure(head)) }
    guard let (signal, words) = obstacle(end, head.status) else { return .success(finished()) }
    return .failure(failure(signal, words))
  }

  /// What stands between a 2xx response and success; nil where nothing does.
  private func obstacle(_ end: TransferEnd, _ status: Int) -> (Failure.Signal, String)? {
    // A unit that cannot be read is a hole in the answer, unless it is just where the answer was cut.
    let hole = malformedWasLast && !assembler.isComplete ? nil : malformed
    let words = hole.map { "the provider answered with " + FailureText.describe($0) }
    if assembler.isComplete && !cut { return words.map { (.malformed, $0) } }
    // A transfer that broke explains a body that cannot be read better than the body does.
    if case .broken(let signal, let words) = end { return (signal, words) }
    if let words { return (.malformed, words) }
    // The transport has all that was sent, so nothing was lost on the way.
    if cut { return (.malformed, "the provider answered with JSON that ends in the middle") }
    if !sawUnit { return (.empty, "the provider answered \(status) without a body") }
    if assembler.mayEnd && malformed == nil { return nil }
    return (.truncated, "the answer ended before it was complete")
  }

  private func finished() -> Reply {
    var reply = assembler.reply()
    reply.requestID = requestID ?? reply.requestID
    reply.model = FailureText.name(reply.model, limit: 200, secrets: secrets)
    reply.serviceTier = FailureText.name(reply.serviceTier, secrets: secrets)
    return reply
  }

  private var requestID: String? {
    if firstRequestID != nil { return firstRequestID }
    for name in Assembler.requestIDHeaders {
      if let value = head?.headers[name], !value.isEmpty {
        return FailureText.clean(value, limit: 200, secrets: secrets)
      }
    }
    return nil
  }

  private func failure(_ signal: Failure.Signal, _ words: String) -> Failure {
    described(Failure(signal, message: words))
  }

  /// Completes a failure with what head and arrived answer tell.
  private func described(_ failure: Failure) -> Failure {
    var failure = failure
    failure.message = FailureText.clean(failure.message, secrets: secrets)
    failure.type = FailureText.name(failure.type, secrets: secrets)
    failure.code = FailureText.name(failure.code, secrets: secrets)
    guard let head else { return withPartial(failure) }
    failure.httpStatus = failure.httpStatus ?? head.status
    failure.requestID = requestID ?? failure.requestID
    failure.retryAfterMilliseconds =
      RetryAfter.milliseconds(head.headers, now: now) ?? failure.retryAfterMilliseconds
    switch head.headers["x-should-retry"]?.lowercased() {
    case "true": failure.shouldRetry = true
    case "false": failure.shouldRetry = false
    default: break
    }
    return withPartial(failure)
  }

  private func withPartial(_ failure: Failure) -> Failure {
    var failure = failure
    if sawUnit {
      let partial = finished()
      failure.requestID = failure.requestID ?? partial.requestID
      failure.partial = partial
    }
    return failure
  }

  private func httpFailure(_ head: ResponseHead) -> Failure {
    // That a job cannot be asked for says nothing of the job, which may have been done and paid for.
    var failure = Failure(isFollowing ? .truncated : .http, message: "")
    var said: ProviderError?
    switch JSON.parse(errorBody) {
    case .whole(let json), .cut(.some(let json)): said = assembler.described(json)
    case .cut(nil), .invalid: break
    }
    failure.type = said?.type
    failure.code = said?.code
    failure.requestID = said?.requestID
    failure.retryAfterMilliseconds = said?.retryAfterMilliseconds
    if let message = said?.message, !message.isEmpty {
      failure.message = message
    } else if said != nil {
      failure.message = "HTTP \(head.status): \(String(decoding: errorBody, as: UTF8.self))"
    } else {
      failure.message = "HTTP \(head.status) with \(FailureText.describe(errorBody))"
    }
    if isFollowing { failure.message = "the answer could not be fetched: \(failure.message)" }
    return described(failure)
  }

  private func isBlank(_ data: [UInt8]) -> Bool {
    data.allSatisfy { $0 == 0x20 || (0x09...0x0D).contains($0) }
  }
}

extension Failure {
  /// An error object inside an answer that began as a success, with the status that it names.
  init(embedded error: ProviderError) {
    self.init(
      .embeddedError, message: error.message ?? "the provider reported an error in its answer")
    type = error.type
    code = error.code
    httpStatus = error.status
    requestID = error.requestID
    retryAfterMilliseconds = error.retryAfterMilliseconds
  }
}
