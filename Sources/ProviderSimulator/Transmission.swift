import NIOCore

/// Sends one response: a pure state machine that says which bytes go out next, when, and how the
/// connection is left. It holds no more of a long answer than the part that is being written.
struct Transmission {
  /// What becomes of the connection after the last byte.
  enum Ending: Equatable {
    case keepAlive
    case close
    case reset
    case hang
  }

  enum Step: Equatable {
    /// Bytes were appended; ask again.
    case more
    /// Nothing happens before this many nanoseconds after the start of the response.
    case wait(until: Int64)
    case finished(Ending)
  }

  /// Something that goes wrong once `tokens` tokens have left, or where the text ends before that.
  struct StreamFault {
    enum Kind {
      case cut(Directives.CutKind)
      case error(ProviderFailure, requestID: UInt64)
      case malformed
    }

    var kind: Kind
    var tokens: Int
  }

  private enum Body {
    /// `beginning` holds everything.
    case none
    case whole(AnswerText, end: ByteBuffer)
    case stream(EventStream)
  }

  /// Bytes of a long whole answer that one step appends.
  private static let portion = 64 * 1_024

  private var beginning: ByteBuffer
  private var body: Body
  private var textOffset = 0
  /// Bytes of a whole response that may still leave; `nil` means all.
  private var bytesLeft: Int?
  private var fault: StreamFault?
  private let isChunked: Bool
  private var ending: Ending

  private let pace: Pace
  /// Nanoseconds after the start at which the next token is due.
  private var due: Int64
  private var didWait = false
  private var didBegin = false

  private let dripInterval: Int64?
  private var dripping = ByteBuffer()
  private var dripEnding: Ending?
  private var scratch = ByteBuffer()

  /// Answer tokens that have left; only streams count.
  private(set) var emittedTokens = 0
  /// Whether the answer left in full and as intended.
  private(set) var isComplete = false
}

/// When the parts of a response leave, in nanoseconds.
struct Pace: Equatable {
  var latency: Int64 = 0
  var timeToFirstToken: Int64 = 0
  var tokenInterval: Int64 = 0

  init() {}

  init(_ directives: Directives) {
    latency = Int64(directives.latency) * 1_000_000
    timeToFirstToken = Int64(directives.timeToFirstToken) * 1_000_000
    if directives.tokensPerSecond > 0 {
      tokenInterval = Int64(1_000_000_000 / directives.tokensPerSecond)
    }
  }

  /// A whole answer leaves when a stream would have ended.
  func whole(tokens: Int) -> Int64 {
    latency + timeToFirstToken + tokenInterval * Int64(max(0, tokens - 1))
  }
}

// MARK: - Making one

extension Transmission {
  /// Ready bytes that leave at `due`; with `limit`, only that many of them.
  init(bytes: ByteBuffer, due: Int64, limit: Int? = nil, drip: Int64?, ending: Ending) {
    beginning = bytes
    body = .none
    bytesLeft = limit
    isChunked = false
    self.ending = ending
    pace = Pace()
    self.due = due
    dripInterval = drip
  }

  /// A whole answer: `beginning`, `text`, `end`.
  init(
    beginning: ByteBuffer, text: AnswerText, end: ByteBuffer, due: Int64, limit: Int?,
    drip: Int64?, ending: Ending
  ) {
    self.init(bytes: beginning, due: due, limit: limit, drip: drip, ending: ending)
    body = .whole(text, end: end)
  }

  /// A stream of events behind `head`.
  init(
    head: ByteBuffer, stream: EventStream, isChunked: Bool, fault: StreamFault?, pace: Pace,
    drip: Int64?, ending: Ending
  ) {
    beginning = head
    body = .stream(stream)
    self.isChunked = isChunked
    self.fault = fault
    self.ending = ending
    self.pace = pace
    due = pace.latency
    dripInterval = drip
  }
}

// MARK: - Sending

extension Transmission {
  /// Appends what is next to `out`.
  mutating func step(into out: inout ByteBuffer) -> Step {
    guard let dripInterval else { return advance(into: &out) }
    if let byte = dripping.readInteger(as: UInt8.self) {
      out.writeInteger(byte)
      due += dripInterval
      return .wait(until: due)
    }
    if let dripEnding { return .finished(dripEnding) }
    var next = dripping
    next.clear()
    let step = advance(into: &next)
    dripping = next
    switch step {
    case .more: return .more
    case .wait(let until): return .wait(until: until)
    case .finished(let ending):
      dripEnding = ending
      return .more
    }
  }

  private mutating func advance(into out: inout ByteBuffer) -> Step {
    if !didWait {
      didWait = true
      if due > 0 { return .wait(until: due) }
    }
    if !didBegin {
      didBegin = true
      var head = beginning
      beginning = ByteBuffer()
      append(&head, to: &out)
      if bytesLeft == 0 { return .finished(ending) }
      guard case .none = body else { return .more }
      isComplete = bytesLeft == nil
      return .finished(ending)
    }
    switch body {
    case .none: return .finished(ending)
    case .whole(let text, var end): return advanceWhole(text, &end, into: &out)
    case .stream(var stream):
      let step = advanceStream(&stream, into: &out)
      body = .stream(stream)
      return step
    }
  }

  private mutating func append(_ bytes: inout ByteBuffer, to out: inout ByteBuffer) {
    guard let left = bytesLeft else {
      out.writeBuffer(&bytes)
      return
    }
    guard var part = bytes.readSlice(length: min(left, bytes.readableBytes)) else { return }
    bytesLeft = left - part.readableBytes
    out.writeBuffer(&part)
  }

  private mutating func advanceWhole(
    _ text: AnswerText, _ end: inout ByteBuffer, into out: inout ByteBuffer
  ) -> Step {
    if textOffset < text.count {
      var upTo = min(textOffset + Self.portion, text.count)
      if let left = bytesLeft {
        upTo = min(upTo, textOffset + left)
        bytesLeft = left - (upTo - textOffset)
      }
      text.write(textOffset..<upTo, to: &out)
      textOffset = upTo
      if bytesLeft == 0 { return .finished(ending) }
      if textOffset < text.count { return .more }
    }
    append(&end, to: &out)
    isComplete = bytesLeft == nil
    return .finished(ending)
  }

  private mutating func advanceStream(
    _ stream: inout EventStream, into out: inout ByteBuffer
  ) -> Step {
    if let fault, emittedTokens >= fault.tokens {
      return apply(fault, stream.wire, stream.form, into: &out)
    }
    scratch.clear()
    switch stream.next(into: &scratch) {
    case .opening:
      writeScratch(to: &out)
      // The first token is due relative to the opening, later ones relative to each other.
      if emittedTokens == 0, due < pace.latency + pace.timeToFirstToken {
        due = pace.latency + pace.timeToFirstToken
        return .wait(until: due)
      }
      return .more
    case .tokens(let count):
      writeScratch(to: &out)
      emittedTokens += count
      if pace.tokenInterval > 0 {
        due += pace.tokenInterval * Int64(count)
        return .wait(until: due)
      }
      return .more
    case .closing:
      // The text ended before the fault was due: it happens here, instead of this event.
      if let fault { return apply(fault, stream.wire, stream.form, replaying: true, into: &out) }
      writeScratch(to: &out)
      return .more
    case .end:
      isComplete = true
      if isChunked { out.writeStaticString("0\r\n\r\n") }
      return .finished(ending)
    }
  }

  private mutating func apply(
    _ fault: StreamFault, _ wire: Wire, _ form: EventStream.Form?, replaying: Bool = false,
    into out: inout ByteBuffer
  ) -> Step {
    self.fault = nil
    switch fault.kind {
    case .cut(.hang): return .finished(.hang)
    case .cut(.reset): return .finished(.reset)
    case .cut(.truncate): return .finished(.close)
    case .cut(.end): break
    case .error(let failure, let requestID):
      scratch.clear()
      switch form {
      case .responses: scratch.writeString(ResponsesWire.error(failure))
      case .replicate: scratch.writeString(ReplicateWire.error(failure))
      case nil:
        scratch.writeStaticString(Self.errorPrefix(wire))
        failure.writeEvent(wire, requestID: requestID, into: &scratch)
        scratch.writeStaticString(wire == .ollama ? "\n" : "\n\n")
      }
      writeScratch(to: &out)
    case .malformed:
      var event = ByteBuffer()
      event.writeStaticString(Self.brokenEvent(wire))
      if replaying { event.writeBuffer(&scratch) }
      scratch = event
      writeScratch(to: &out)
      return .more
    }
    if isChunked { out.writeStaticString("0\r\n\r\n") }
    return .finished(ending)
  }

  private static func errorPrefix(_ wire: Wire) -> StaticString {
    switch wire {
    case .anthropic: "event: error\ndata: "
    case .ollama: ""
    default: "data: "
    }
  }

  private static func brokenEvent(_ wire: Wire) -> StaticString {
    switch wire {
    case .openAI:
      "data: {\"id\":\"chatcmpl-\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"ind\n\n"
    case .anthropic:
      "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"del\n\n"
    case .gemini: "data: {\"candidates\":[{\"content\":{\"par\r\n\r\n"
    case .ollama: OllamaWire.brokenLine
    case .tgi, .tei, .huggingFace: TextGenerationWire.brokenEvent
    case .replicate: "eve\n\n"
    }
  }

  /// Each write is a chunk of its own, as the events of real servers are.
  private mutating func writeScratch(to out: inout ByteBuffer) {
    if scratch.readableBytes == 0 { return }
    if isChunked {
      out.writeChunkLength(scratch.readableBytes)
      out.writeStaticString("\r\n")
    }
    out.writeBuffer(&scratch)
    if isChunked { out.writeStaticString("\r\n") }
  }
}
