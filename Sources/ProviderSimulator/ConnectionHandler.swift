import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// Serves one connection: gathers requests, answers them one after the other in the order of their
/// arrival, and notices when the client leaves.
final class ConnectionHandler: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = ByteBuffer

  /// Largest body of a request.
  static let largestBody = 16 << 20
  /// Requests, and bytes of their bodies, that may wait behind the one being answered before
  /// reading stops.
  static let mostWaiting = 32
  static let mostWaitingBytes = 4 << 20
  /// Bytes gathered before they are handed to the channel.
  private static let writeSize = 32 * 1_024
  /// How long an RST waits for bytes already sent to be read.
  private static let resetGrace = TimeAmount.milliseconds(20)
  /// How long a body that is too large may go on.
  private static let drainTime = TimeAmount.seconds(10)

  private struct Active {
    var exchange: Exchange
    var start: NIODeadline
    var isHanging = false
  }

  private let responder: Responder
  private let connection: UInt64
  private let flushLog: @Sendable () -> Void
  private var head: HTTPRequestHead?
  private var body = ByteBuffer()
  private var isTooLarge = false
  private var waiting: CircularBuffer<IncomingRequest> = []
  private var active: Active?
  private var isClosing = false
  private var timer: Scheduled<Void>?
  private var isReading = false
  private var isPaused = false
  private var needsFlush = false

  init(responder: Responder, connection: UInt64, flushLog: @escaping @Sendable () -> Void) {
    self.responder = responder
    self.connection = connection
    self.flushLog = flushLog
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    isReading = true
    switch unwrapInboundIn(data) {
    case .head(let head):
      self.head = head
      body = ByteBuffer()
      isTooLarge = false
      let length = head.headers.first(name: "content-length").flatMap(Int.init) ?? 0
      if length > Self.largestBody {
        refuseBody(context)
      } else if head.headers.first(name: "expect")?.lowercased() == "100-continue" {
        // Between requests only: bytes of an earlier response must not be interrupted.
        if active == nil { write("HTTP/1.1 100 Continue\r\n\r\n", context) }
      }
    case .body(var part):
      if isTooLarge { return }
      if body.readableBytes + part.readableBytes > Self.largestBody {
        refuseBody(context)
      } else if body.readableBytes == 0 {
        body = part
      } else {
        body.writeBuffer(&part)
      }
    case .end:
      guard let head else { return }
      self.head = nil
      if isClosing, isTooLarge { context.close(promise: nil) }
      if isTooLarge || isClosing { return }
      let request = IncomingRequest(head: head, body: body, connection: connection)
      body = ByteBuffer()
      accept(request, context)
    }
  }

  func channelReadComplete(context: ChannelHandlerContext) {
    isReading = false
    flush(context)
  }

  /// Answers 413 at once, so that the client need not send the rest, then reads what still comes
  /// for a while: closing on unread bytes would destroy the answer.
  private func refuseBody(_ context: ChannelHandlerContext) {
    guard let head else { return }
    isTooLarge = true
    body = ByteBuffer()
    accept(
      IncomingRequest(head: head, body: body, isTooLarge: true, connection: connection), context)
  }

  private func accept(_ request: IncomingRequest, _ context: ChannelHandlerContext) {
    guard active == nil else {
      waiting.append(request)
      let bytes = waiting.reduce(0) { $0 + $1.body.readableBytes }
      if waiting.count >= Self.mostWaiting || bytes >= Self.mostWaitingBytes {
        isPaused = true
        setReading(false, context)
      }
      return
    }
    begin(request, context)
  }

  private func setReading(_ isOn: Bool, _ context: ChannelHandlerContext) {
    context.channel.setOption(.autoRead, value: isOn).whenFailure { _ in }
  }

  private func begin(_ request: IncomingRequest, _ context: ChannelHandlerContext) {
    activate(request)
    send(context)
  }
}

// MARK: - Sending

extension ConnectionHandler {
  /// Sends as much of the current response as is due and as the client takes.
  private func send(_ context: ChannelHandlerContext) {
    var out = ByteBuffer()
    while active != nil, timer == nil, active?.isHanging == false {
      guard context.channel.isWritable else { break }
      switch active?.exchange.transmission.step(into: &out) {
      case .more:
        if out.readableBytes >= Self.writeSize { write(&out, context) }
      case .wait(let until):
        write(&out, context)
        wait(until: until, context)
      case .finished(let ending): finish(ending, &out, context)
      case nil: break
      }
    }
    write(&out, context)
    if !isReading { flush(context) }
  }

  private func write(_ out: inout ByteBuffer, _ context: ChannelHandlerContext) {
    guard out.readableBytes > 0 else { return }
    active?.exchange.entry?.bytesSent += out.readableBytes
    context.write(wrapOutboundOut(out), promise: nil)
    needsFlush = true
    out = ByteBuffer()
  }

  private func write(_ text: StaticString, _ context: ChannelHandlerContext) {
    var buffer = ByteBuffer()
    buffer.writeStaticString(text)
    context.write(wrapOutboundOut(buffer), promise: nil)
    needsFlush = true
  }

  private func flush(_ context: ChannelHandlerContext) {
    guard needsFlush else { return }
    needsFlush = false
    context.flush()
  }

  private func wait(until nanoseconds: Int64, _ context: ChannelHandlerContext) {
    guard let start = active?.start else { return }
    let deadline = start + .nanoseconds(nanoseconds)
    if deadline <= .now() { return }
    timer = schedule(at: deadline, context) { handler, context in
      handler.timer = nil
      handler.send(context)
    }
  }

  private func schedule(
    at deadline: NIODeadline, _ context: ChannelHandlerContext,
    _ body: @escaping (ConnectionHandler, ChannelHandlerContext) -> Void
  ) -> Scheduled<Void> {
    // `assumeIsolated` lets the closure hold the handler: it runs on this connection's thread.
    context.eventLoop.assumeIsolated().scheduleTask(deadline: deadline) { body(self, context) }
  }

  private func finish(
    _ ending: Transmission.Ending, _ out: inout ByteBuffer, _ context: ChannelHandlerContext
  ) {
    if ending == .hang {
      write(&out, context)
      active?.isHanging = true
      return
    }
    // Counted before they leave: whoever has read the last byte must find the entry in the log.
    active?.exchange.entry?.bytesSent += out.readableBytes
    let entry = record(clientGone: false)
    if out.readableBytes > 0 {
      let last = out
      out = ByteBuffer()
      if let entry, last.readableBytes + Int(entry.bytesSent) > Self.writeSize {
        amendOnFailure(entry, last, context)
      } else {
        context.write(wrapOutboundOut(last), promise: nil)
      }
      needsFlush = true
    }
    switch ending {
    case .keepAlive: next(context)
    case .close, .hang: close(context)
    case .reset: reset(context, sentNothing: (entry?.bytesSent ?? 0) == 0)
    }
  }

  /// A long response may still be queued when the client leaves; then the log says so after all.
  private func amendOnFailure(
    _ entry: LogEntry, _ last: ByteBuffer, _ context: ChannelHandlerContext
  ) {
    let promise = context.eventLoop.makePromise(of: Void.self)
    let log = responder.log
    promise.futureResult.whenFailure { _ in
      var entry = entry
      entry.isClientGone = true
      entry.isComplete = false
      entry.isUsageReported = false
      log.amend(entry)
    }
    context.write(wrapOutboundOut(last), promise: promise)
  }

  private func next(_ context: ChannelHandlerContext) {
    guard let request = waiting.popFirst() else { return }
    if isPaused, waiting.isEmpty {
      isPaused = false
      setReading(true, context)
    }
    // From `send`'s loop, which goes on with the new response: no recursion over a long queue.
    activate(request)
  }

  private func close(_ context: ChannelHandlerContext) {
    isClosing = true
    waiting.removeAll()
    flushNow(context)
    // The rest of a body that is too large is still to come: closing on it would send an RST.
    guard isTooLarge, head != nil else { return context.close(promise: nil) }
    timer = schedule(at: .now() + Self.drainTime, context) { _, context in
      context.close(promise: nil)
    }
  }

  private func flushNow(_ context: ChannelHandlerContext) {
    needsFlush = false
    context.flush()
  }

  private func reset(_ context: ChannelHandlerContext, sentNothing: Bool) {
    isClosing = true
    waiting.removeAll()
    flushNow(context)
    let grace = sentNothing ? TimeAmount.zero : Self.resetGrace
    timer = schedule(at: .now() + grace, context) { _, context in
      // Lingering for no time makes the kernel send RST instead of FIN.
      if let provider = context.channel as? any SocketOptionProvider {
        provider.setSoLinger(linger(l_onoff: 1, l_linger: 0)).whenFailure { _ in }
      }
      context.close(promise: nil)
    }
  }
}

// MARK: - Books

extension ConnectionHandler {
  private func activate(_ request: IncomingRequest) {
    let exchange = responder.answer(request)
    if exchange.entry != nil { responder.inFlight.wrappingAdd(1, ordering: .relaxed) }
    active = Active(exchange: exchange, start: .now())
  }

  /// Ends the current exchange and writes its entry.
  private func record(clientGone: Bool) -> LogEntry? {
    guard let active else { return nil }
    self.active = nil
    guard var entry = active.exchange.entry else { return nil }
    responder.inFlight.wrappingSubtract(1, ordering: .relaxed)
    let transmission = active.exchange.transmission
    entry.isClientGone = clientGone
    entry.isComplete =
      transmission.isComplete && !clientGone && entry.status < 400 && entry.fault == nil
    if entry.bytesSent == 0 { entry.status = 0 }
    if var usage = active.exchange.usage {
      entry.isUsageReported = entry.isComplete && active.exchange.reportsUsage
      if !transmission.isComplete, entry.isStream {
        // What a provider would bill of an answer that it stopped writing.
        usage.output = min(usage.output, transmission.emittedTokens + usage.reasoning)
      }
      entry.usage = usage
    }
    entry.durationMicroseconds = Int((NIODeadline.now() - active.start).nanoseconds / 1_000)
    let (sequence, wantsFlush) = responder.log.append(entry)
    entry.sequence = sequence
    if wantsFlush { flushLog() }
    return entry
  }

  func channelWritabilityChanged(context: ChannelHandlerContext) {
    if context.channel.isWritable { send(context) }
    context.fireChannelWritabilityChanged()
  }

  func channelInactive(context: ChannelHandlerContext) {
    timer?.cancel()
    timer = nil
    waiting.removeAll()
    _ = record(clientGone: true)
    context.fireChannelInactive()
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    if error is HTTPParserError, active == nil, !isClosing {
      write(
        """
        HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 12\r
        connection: close\r\n\r\nBad Request\n
        """, context)
    }
    isClosing = true
    flushNow(context)
    context.close(promise: nil)
  }
}
