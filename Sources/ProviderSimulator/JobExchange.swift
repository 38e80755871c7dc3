import NIOCore
import NIOHTTP1

extension Responder {
  /// `POST /v1/responses`: whole, streamed, or a job.
  func responses(
    _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let chat = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try ChatRequest(bytes)
    }
    guard let model = chat.model, !model.isEmpty else { throw missing("model", .openAI) }
    guard chat.hasMessages else { throw missing("input", .openAI) }
    context.entry.isStream = chat.stream
    let (directives, name) = try directives(&context, request, model: model)
    let (own, later) = split(directives)
    context.entry.fault = own.faultName
    if let exchange = faultyExchange(context, own, isStream: chat.stream) { return exchange }
    let answer = compose(chat, request, context, directives, model: name)
    if chat.isBackground {
      jobs.add(answer.id, JobStore.Job(answer: answer, directives: later, created: answer.created))
    }
    var exchange: Exchange
    if chat.stream {
      let events = ResponsesWire.events(answer, isBackground: chat.isBackground)
      exchange = stream(context, own, EventStream(prepared: events, of: answer, .responses))
    } else {
      let status = chat.isBackground ? "queued" : ResponsesWire.status(answer)
      exchange = whole(
        context, own, answer,
        ResponsesWire.response(answer, status: status, isBackground: chat.isBackground))
    }
    exchange.entry?.status = 200
    // A job is billed whether anybody asks for it or not.
    exchange.usage = answer.usage
    exchange.reportsUsage = chat.stream || !chat.isBackground
    return exchange
  }

  /// A question for a job of the Responses API.
  func response(
    _ id: UInt64, _ question: JobQuestion, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    guard let job = ask(id, question) else {
      throw ProviderFailure(
        .openAI, status: 404, message: "Response with id '\(ResponsesWire.hex(id))' not found.")
    }
    let (context, faults) = faults(context, id, job, question)
    if let exchange = faultyExchange(context, faults, isStream: isStream(question)) {
      return exchange
    }
    if case .stream(let after) = question {
      let events = ResponsesWire.events(job.answer, isBackground: true).dropFirst(after + 1)
      return stream(
        context, faults, EventStream(prepared: Array(events), of: job.answer, .responses))
    }
    let status =
      job.isCancelled
      ? "cancelled" : job.isDone ? ResponsesWire.status(job.answer) : "in_progress"
    return whole(
      context, faults, job.answer,
      ResponsesWire.response(job.answer, status: status, isBackground: true))
  }

  /// `POST /v1/predictions` and its relatives.
  func predictions(
    _ model: String?, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    var chat = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try ChatRequest(bytes)
    }
    chat.model = model ?? chat.model
    guard let model = chat.model, !model.isEmpty else { throw missing("version", .replicate) }
    guard chat.hasMessages else { throw missing("input", .replicate) }
    let (directives, name) = try directives(&context, request, model: model)
    let (own, later) = split(directives)
    context.entry.fault = own.faultName
    if let exchange = faultyExchange(context, own, isStream: false) { return exchange }
    let answer = compose(chat, request, context, directives, model: name)
    var job = JobStore.Job(answer: answer, directives: later, created: answer.created)
    let waits = request.head.headers.first(name: "prefer")?.hasPrefix("wait") == true
    let isDone = waits && !chat.stream && (later.polls ?? 0) == 0
    if isDone { job.questions = 1 }
    jobs.add(answer.id, job)
    var exchange = whole(
      context, own, answer,
      prediction(job, isDone ? "succeeded" : "starting", request, streams: chat.stream), status: 201
    )
    exchange.usage = answer.usage
    exchange.reportsUsage = isDone
    return exchange
  }

  /// A question for a prediction.
  func prediction(
    _ id: UInt64, _ question: JobQuestion, _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    guard let job = ask(id, question) else {
      throw ProviderFailure(
        .replicate, status: 404, message: "The requested resource could not be found.")
    }
    let (context, faults) = faults(context, id, job, question)
    if let exchange = faultyExchange(context, faults, isStream: isStream(question)) {
      return exchange
    }
    if case .stream(let after) = question {
      let events = ReplicateWire.events(job.answer).dropFirst(after + 1)
      return stream(
        context, faults, EventStream(prepared: Array(events), of: job.answer, .replicate))
    }
    let failed = job.directives.finish == "failed"
    let status =
      job.isCancelled
      ? "canceled" : !job.isDone ? "processing" : failed ? "failed" : "succeeded"
    return whole(context, faults, job.answer, prediction(job, status, request, streams: false))
  }

  private func prediction(
    _ job: JobStore.Job, _ status: String, _ request: IncomingRequest, streams: Bool
  ) -> String {
    let host = request.head.headers.first(name: "host") ?? "127.0.0.1"
    return ReplicateWire.prediction(
      job, status: status, base: "http://\(host)", streams: streams,
      now: WallClock.rfc3339(job.created))
  }

  private func isStream(_ question: JobQuestion) -> Bool {
    if case .stream = question { true } else { false }
  }

  private func ask(_ id: UInt64, _ question: JobQuestion) -> JobStore.Job? {
    jobs.change(id) { job in
      switch question {
      case .state: job.questions += 1
      case .stream: job.streams += 1
      case .cancel: job.isCancelled = true
      }
    }
  }

  /// What happens to the first request, and what to questions: `at` says where a fault is.
  private func split(_ directives: Directives) -> (own: Directives, later: Directives) {
    var (own, later) = (directives, directives)
    if directives.at == nil { later.clearFault() } else { own.clearFault() }
    return (own, later)
  }

  /// The faults of a question, `times` counted for each job.
  private func faults(
    _ context: Context, _ id: UInt64, _ job: JobStore.Job, _ question: JobQuestion
  ) -> (Context, Directives) {
    var context = context
    var faults = job.directives
    let place: JobPlace
    let before: Int
    switch question {
    case .state: (place, before) = (.poll, job.questions - 1)
    case .stream: (place, before) = (.stream, job.streams - 1)
    case .cancel: (place, before) = (.cancel, 0)
    }
    context.entry.isStream = isStream(question)
    if faults.at != place.rawValue || before >= faults.times ?? .max { faults.clearFault() }
    context.entry.fault = faults.faultName
    context.entry.tag = faults.tag
    context.entry.model = String(decoding: job.answer.model, as: UTF8.self)
    return (context, faults)
  }

  private func whole(
    _ context: Context, _ directives: Directives, _ answer: Answer, _ text: String,
    status: Int = 200
  ) -> Exchange {
    var body = ByteBuffer(string: text)
    if directives.malformed { body = Self.halved(body) }
    return bytes(context, body, status: status, directives: directives)
  }

  private func stream(
    _ context: Context, _ directives: Directives, _ stream: EventStream
  ) -> Exchange {
    var context = context
    if !context.allowsChunks { context.keepAlive = false }
    var buffer = ByteBuffer()
    head(
      context, 200, "text/event-stream; charset=utf-8",
      context.allowsChunks ? .chunked : .untilClose
    ).write(into: &buffer)
    context.entry.status = 200
    return Exchange(
      transmission: Transmission(
        head: buffer, stream: stream, isChunked: context.allowsChunks,
        fault: streamFault(context, directives), pace: Pace(directives), drip: directives.drip,
        ending: ending(context)),
      entry: context.entry)
  }
}
