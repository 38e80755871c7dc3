/// What an attempt has to do with files: memory that was taken for what went into its request, and who
/// keeps what comes out of the answer.
struct Baggage: Sendable {
  let porter: Porter
  /// Base URL of the provider.
  let provider: String
  let publicOnly: Bool
  let deadline: ContinuousClock.Instant
  /// Bytes.
  var memory = 0

  /// The request is not needed any more.
  func giveBack() {
    guard memory > 0 else { return }
    porter.desk.giveBack(files: memory)
  }

  func keep(_ settlement: Settlement, _ report: Report) {
    porter.keep(
      Porter.Keep(
        settlement: settlement, report: report, provider: provider, publicOnly: publicOnly,
        deadline: deadline))
  }
}
