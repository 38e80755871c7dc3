import Providers

/// A call of the built-in provider.
struct LocalCall: Sendable {
  var fence: Fence
  var call: Call
  var report: Report
  var capture: Capture?
}

/// Answers the calls of the built-in provider, one after the other, beside the loops that must not
/// wait for it.
struct LocalQueue: Sendable {
  private let claims: AsyncStream<[LocalCall]>
  private let continuation: AsyncStream<[LocalCall]>.Continuation
  /// An answer takes microseconds, and those of a claim are reported together, because a large settle is cheaper than two
  /// small ones; but none waits longer for the others.
  private static let patience = Duration.milliseconds(5)

  init() { (claims, continuation) = AsyncStream.makeStream() }

  /// - Parameter calls: those of one claim.
  func add(_ calls: [LocalCall]) {
    if !calls.isEmpty { continuation.yield(calls) }
  }

  /// Until cancelled.
  func run(_ desk: Desk) async {
    for await calls in claims {
      var answers: [Settlement] = []
      var since = ContinuousClock.now
      for call in calls {
        answers.append(answer(call, desk))
        guard ContinuousClock.now - since > Self.patience else { continue }
        desk.finished(answers)
        answers = []
        since = .now
      }
      desk.finished(answers)
    }
  }

  private func answer(_ local: LocalCall, _ desk: Desk) -> Settlement {
    let fence = local.fence
    if let ending = desk.ending(of: fence) {
      var settlement = Settlement(
        fence: fence, outcome: ending == .cancelled ? .cancelled : .released)
      settlement.sent = false
      return settlement
    }
    let start = ContinuousClock.now
    let outcome = LocalAnswers.answer(local.call)
    var settlement: Settlement
    switch outcome {
    case .success(let reply):
      settlement = Settlement(fence: fence, outcome: .succeeded)
      if local.call.stream { desk.text(reply.output, of: fence) }
      settlement.reply = reply
    case .failure(let failure):
      settlement = Settlement(fence: fence, outcome: .failed)
      settlement.failure = failure
      settlement.reply = failure.partial
      settlement.sent = false
    }
    settlement.latency = (ContinuousClock.now - start) / .milliseconds(1)
    if settlement.reply?.output.isEmpty == false { settlement.firstText = settlement.latency }
    if var capture = local.capture, settlement.failure?.signal != .unsendable {
      // There is no wire between: what it was asked, and its message.
      (settlement.reply?.message ?? []).withUnsafeBytes { capture.received($0) }
      settlement.sealed = capture.seal(status: nil)
    }
    local.report.finished(settlement)
    return settlement
  }
}
