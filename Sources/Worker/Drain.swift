import Postgres
import Synchronization

/// Whether a loop beside the claims has anything left to do, for `once`. What it does may put generations back into the
/// queue, and claims may give it something to do: so it is asked each time that claims found nothing, and answers for that time.
///
/// Where the database refuses to tell for good, there is nothing to wait for either, and the worker ends with that.
final class Drain: Sendable {
  private struct State {
    var asked = 0
    var over = 0
    var refusal: PostgresError?
  }

  private let state = Mutex(State())
  private let wake: Wake

  /// - Parameter wake: the loop's.
  init(_ wake: Wake) { self.wake = wake }

  /// Whether the loop has found nothing to do since this round was asked after; asks it where it has not.
  ///
  /// - Parameter round: from 1.
  func isOver(_ round: Int) -> Bool {
    let (isOver, isNew) = state.withLock { state in
      defer { state.asked = round }
      return (state.over == round, state.asked != round)
    }
    if isNew { wake.signal() }
    return isOver
  }

  /// To be read before the loop looks, and given to `foundNothing`.
  var round: Int { state.withLock { $0.asked } }

  /// Why the last look that ended a round found nothing.
  var refusal: PostgresError? { state.withLock { $0.refusal } }

  /// A look that began in this round has found nothing to do, and nothing is under way. True: somebody waits for that.
  ///
  /// - Parameter refusal: why; nil: there is nothing to do.
  func foundNothing(_ round: Int, because refusal: PostgresError? = nil) -> Bool {
    state.withLock { state in
      state.refusal = refusal
      defer { state.over = round }
      return state.over != round
    }
  }
}
