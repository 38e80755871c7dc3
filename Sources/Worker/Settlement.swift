import Providers

/// What is reported of one attempt.
struct Settlement: Sendable {
  /// Which answers an answer is settled with, in one transaction.
  enum Company: Sendable, CaseIterable {
    case all
    /// Those that the database has to look at, which may take it long: nobody else waits for them.
    case slow
  }

  enum Outcome: String, Sendable {
    case succeeded
    case failed
    case cancelled
    case released
  }

  var fence: Fence
  var outcome: Outcome
  var company = Company.all
  /// Text that was not published.
  var tail = ""
  /// The answer, or as much as came.
  var reply: Reply?
  var failure: Failure?
  /// nil where no head came.
  var httpStatus: Int?
  /// Whether the whole request left.
  var sent = true
  /// From the start of the transfer, in milliseconds.
  var firstText: Double?
  var latency = 0.0
  /// Ids of the files that the model made, once they are stored; until then they lie in `reply`.
  var artifacts: [String] = []
  /// What is kept of the call.
  var sealed: SealedCall?
  /// Names of parameters that were left out, or for which a strict call was not sent.
  var dropped: [String] = []

  init(fence: Fence, outcome: Outcome) {
    self.fence = fence
    self.outcome = outcome
  }

  /// Bytes of the report, roughly.
  var size: Int {
    let numbers = (reply?.embeddings ?? []).reduce(reply?.embedding?.count ?? 0) { $0 + $1.count }
    let texts = tail.utf8.count + (reply?.output.utf8.count ?? 0)
    return 512 + texts + (reply?.message?.count ?? 0) + numbers * 12 + (sealed?.size ?? 0)
  }

  /// The report in place of one that the database cannot take, or not in time.
  func withoutContent(isLate: Bool = false) -> Settlement {
    var settlement = Settlement(fence: fence, outcome: .failed)
    let trouble = isLate ? "takes too long to store" : "cannot store"
    settlement.failure = Failure(
      .malformed, message: "the database \(trouble) what the provider answered")
    settlement.httpStatus = httpStatus
    settlement.reply = Reply()
    settlement.reply?.usage = reply?.usage
    settlement.sent = sent
    settlement.firstText = firstText
    settlement.latency = latency
    settlement.dropped = dropped
    return settlement
  }
}
