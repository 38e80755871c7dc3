import HTTP
import Providers

/// One attempt under way: takes the response as it arrives, on the transfer thread, straight into
/// the dialect's reader. Where the reader says that the rest of the answer is to be had by another request,
/// that is sent, with what is left of the call's time; all of them are one attempt with one result.
///
/// `@unchecked Sendable`: everything mutable is confined to the transfer thread, from the first call
/// of a `TransferSink` method to the last.
final class Attempt: TransferSink, @unchecked Sendable {
  private let fence: Fence
  private let streams: Bool
  private let desk: Desk
  private let report: Report
  private let onward: Onward?
  private let started = ContinuousClock.now

  private var reader: any ResponseReader
  private var framing = Framing.whole
  private var events = SSEParser()
  private var lines = LineParser()
  private var whole: [UInt8] = []
  /// Of the response that is being received.
  private var status: Int?
  /// Of the last response that came.
  private var lastStatus: Int?
  private var firstText: Double?
  /// Requests so far, and what became of them.
  private var exchanges = 1
  private var wasSent = false
  private var received = 0
  /// What the reader keeps of a stream, roughly.
  private var readBytes = 0
  /// A unit of the stream was too long.
  private var overflow: StreamLimitError?
  private var capture: Capture?
  /// Parameters that the request went without.
  private let dropped: [String]
  private let baggage: Baggage?

  init(
    fence: Fence, streams: Bool, reader: any ResponseReader, desk: Desk, report: Report,
    capture: Capture? = nil, dropped: [String] = [], onward: Onward? = nil,
    baggage: Baggage? = nil
  ) {
    self.fence = fence
    self.streams = streams
    self.reader = reader
    self.desk = desk
    self.report = report
    self.capture = capture
    self.dropped = dropped
    self.onward = onward
    self.baggage = baggage
  }

  func head(status: Int, headers: [String: String]) {
    self.status = status
    lastStatus = status
    framing = reader.head(ResponseHead(status: status, headers: headers))
  }

  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict {
    capture?.received(bytes)
    var text = ""
    do throws(StreamLimitError) {
      switch framing {
      case .events:
        let noteID = { (id: String) in self.reader.eventID(id) }
        try events.feed(bytes, onID: noteID) { name, data in
          text += read(name, data)
          return !reader.isComplete
        }
      case .lines:
        try lines.feed(bytes) { line in
          text += read(nil, line)
          return !reader.isComplete
        }
      case .whole:
        whole.append(contentsOf: bytes)
        return isTold ? .enough : .more
      }
    } catch {
      overflow = error
    }
    show(text)
    return overflow != nil || reader.isComplete ? .enough : .more
  }

  /// Most of a unit without text is framing; what it holds beside (reasoning, arguments) is estimated.
  private func read(_ name: String?, _ data: [UInt8]) -> String {
    let text = reader.receive(event: name, data: data)
    readBytes += text.isEmpty ? data.count / 8 : text.utf8.count
    return text
  }

  /// Of an error the reader takes no more; the rest of a page is of no use.
  private var isTold: Bool {
    !(200...299).contains(status ?? 200) && whole.count >= 65_536
  }

  var heldBytes: Int {
    whole.count + events.heldBytes + lines.heldBytes + readBytes + (capture?.heldBytes ?? 0)
  }

  /// An answer that does not stream has begun with its head, and so has an error. Before that the text
  /// counts, and what comes where there is none yet: reasoning, calls of tools.
  ///
  /// A job that was accepted has not begun to answer by that.
  var hasBegun: Bool {
    if exchanges > 1 { return reader.hasBegun }
    guard let status else { return false }
    if case .whole = framing { return true }
    return !streams || !(200...299).contains(status) || reader.hasBegun
  }

  func finished(_ outcome: TransferOutcome) {
    receiveRest()
    wasSent = wasSent || outcome.requestSent
    received += outcome.bytesReceived
    var end = end(outcome)
    if goesOn(after: outcome, &end) { return }
    var settlement = settlement(outcome, end)
    settlement.httpStatus = lastStatus
    settlement.sent = wasSent
    settlement.firstText = firstText
    settlement.latency =
      exchanges > 1 ? (ContinuousClock.now - started) / .milliseconds(1) : outcome.total
    settlement.dropped = dropped
    if settlement.failure?.signal != .unsendable {
      settlement.sealed = capture?.seal(status: lastStatus)
    }
    capture = nil
    // An answer that came whole shows its first text when it ends.
    if firstText == nil, let reply = settlement.reply, !reply.output.isEmpty {
      settlement.firstText = settlement.latency
    }
    if let farewell = reader.farewell { onward?.say(farewell, desk) }
    baggage?.giveBack()
    if let baggage, settlement.outcome == .succeeded, settlement.reply?.files.isEmpty == false {
      return baggage.keep(settlement, report)
    }
    settlement.reply?.files = []
    report.finished(settlement)
    desk.finished(settlement)
  }

  /// Sends the reader's next request, if there is one and time for it. `end`: becomes why there is none,
  /// where its address is refused.
  private func goesOn(after outcome: TransferOutcome, _ end: inout TransferEnd) -> Bool {
    guard let onward, overflow == nil, !Self.isOver(outcome.failure, isFirst: exchanges == 1)
    else { return false }
    let elapsed = Int((ContinuousClock.now - started) / .milliseconds(1))
    guard onward.hasTime(after: elapsed) else { return false }
    while exchanges < Onward.mostExchanges, let next = reader.followUp(end) {
      exchanges += 1
      guard
        let request = onward.request(
          next, exchange: exchanges, elapsed: elapsed, received: received)
      else {
        end = .broken(.malformed, "the provider named an address that is not to be asked")
        continue
      }
      status = nil
      framing = .whole
      events = SSEParser()
      lines = LineParser()
      whole = []
      capture?.goesOn(superseding: next.supersedes)
      let transfer = onward.transport.start(request, sink: self)
      if desk.started(fence, transfer) { onward.transport.cancel(transfer) }
      return true
    }
    return false
  }

  /// What nothing that is sent after it would change.
  private static func isOver(_ failure: TransferFailure?, isFirst: Bool) -> Bool {
    switch failure?.kind {
    case .cancelled, .late, .tooLarge: true
    case .invalidRequest, .forbidden: isFirst
    default: false
    }
  }

  private func show(_ text: String) {
    guard !text.isEmpty else { return }
    if firstText == nil {
      firstText = (ContinuousClock.now - started) / .milliseconds(1)
    }
    if streams { desk.text(text, of: fence) }
  }

  /// What has no end of its own in the body: the whole, or a last line.
  private func receiveRest() {
    switch framing {
    case .whole:
      guard !whole.isEmpty else { return }
      show(reader.receive(event: nil, data: whole))
      whole = []
    case .lines:
      guard !reader.isComplete, overflow == nil else { return }
      do throws(StreamLimitError) {
        if let line = try lines.finish() { show(reader.receive(event: nil, data: line)) }
      } catch {
        overflow = error
      }
    case .events:
      // An event without its blank line is incomplete, says the standard.
      return
    }
  }

  private func settlement(_ outcome: TransferOutcome, _ end: TransferEnd) -> Settlement {
    if outcome.failure?.kind == .cancelled {
      // Without a reason of ours the pool was stopped: the worker ends.
      return aborted(desk.ending(of: fence) ?? .released)
    }
    if exchanges == 1, let failure = outcome.failure,
      [.invalidRequest, .forbidden].contains(failure.kind)
    {
      var settlement = Settlement(fence: fence, outcome: .failed)
      settlement.failure = Failure(.unsendable, message: failure.message)
      if failure.kind == .forbidden { settlement.failure?.code = "private_address" }
      return settlement
    }
    switch reader.finish(end) {
    case .success(let reply):
      var settlement = Settlement(fence: fence, outcome: .succeeded)
      settlement.reply = reply
      let vectors = [reply.embedding ?? []] + (reply.embeddings ?? [])
      if vectors.contains(where: { $0.contains { !$0.isFinite } }) {
        settlement.outcome = .failed
        settlement.reply?.embedding = nil
        settlement.reply?.embeddings = nil
        settlement.failure = Failure(.malformed, message: "the embedding has numbers that are none")
      }
      return settlement
    case .failure(let failure):
      var settlement = Settlement(fence: fence, outcome: .failed)
      settlement.failure = failure
      settlement.reply = failure.partial
      return settlement
    }
  }

  private func end(_ outcome: TransferOutcome) -> TransferEnd {
    if let overflow { return .broken(.tooLarge, overflow.description) }
    guard let failure = outcome.failure else { return .complete }
    let signal: Failure.Signal =
      switch failure.kind {
      // The provider was reached before, and may be at work.
      case .connect, .tls: exchanges > 1 ? .reset : .connect
      case .timeout: .timeout
      case .late: .slow
      case .truncated: .truncated
      case .tooLarge: .tooLarge
      case .invalidResponse, .invalidRequest, .forbidden: .malformed
      case .reset, .other, .cancelled: .reset
      }
    return .broken(signal, failure.message)
  }

  /// Cancelled by an app, or handed back because the worker stops. What was sent is told with a
  /// signal, so that SQL can book it; what was not goes back as if it had never been claimed.
  private func aborted(_ ending: Roster.Ending) -> Settlement {
    let isCancelled = ending == .cancelled
    var settlement = Settlement(fence: fence, outcome: isCancelled ? .cancelled : .released)
    let words = isCancelled ? "cancelled" : "the worker stopped before the answer was complete"
    var failure: Failure
    switch reader.finish(.broken(.reset, words)) {
    case .success(let reply):
      // All of it had come; only the connection was still open. A cancelled one is paid for, too.
      settlement.reply = reply
      if !isCancelled { settlement.outcome = .succeeded }
      return settlement
    case .failure(let reason):
      failure = reason
    }
    settlement.reply = failure.partial
    if !isCancelled, wasSent || received > 0 {
      failure.partial = nil
      settlement.failure = failure
    }
    return settlement
  }
}
