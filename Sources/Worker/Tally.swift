/// What a worker did, for its last log line and `--json`.
package struct Tally: Sendable, Equatable, Encodable {
  package var claims = 0
  package var claimed = 0
  package var succeeded = 0
  package var failed = 0
  package var cancelled = 0
  package var released = 0
  /// Of those that ended: tried again later, by whomever.
  package var requeued = 0
  /// Reports about attempts that were no longer this worker's.
  package var stale = 0
  package var settleStatements = 0
  package var publishStatements = 0
  package var deltas = 0
  package var reconnects = 0
  package var registrations = 0
  package var wakeUps = 0
  /// Generations that only the safety poll found: lost wake-ups. Should be 0.
  package var safetyPollFound = 0

  package init() {}

  enum CodingKeys: String, CodingKey {
    case claims, claimed, succeeded, failed, cancelled, released, requeued, stale, deltas
    case reconnects, registrations
    case settleStatements = "settle_statements"
    case publishStatements = "publish_statements"
    case wakeUps = "wake_ups"
    case safetyPollFound = "safety_poll_found"
  }
}
