import Synchronization

/// Whether a loop beside the claims has anything left to do, for `once`. What it does may put generations back into the
/// queue, and claims may give it something to do: so it is asked each time that claims found nothing, and answers for that time.
final class Drain: Sendable {
  private let rounds = Mutex((asked: 0, over: 0))
  private let wake: Wake

  /// - Parameter wake: the loop's.
  init(_ wake: Wake) { self.wake = wake }

  /// Whether the loop has found nothing to do since this round was asked after; asks it where it has not.
  ///
  /// - Parameter round: from 1.
  func isOver(_ round: Int) -> Bool {
    let (isOver, isNew) = rounds.withLock { rounds in
      defer { rounds.asked = round }
      return (rounds.over == round, rounds.asked != round)
    }
    if isNew { wake.signal() }
    return isOver
  }

  /// To be read before the loop looks, and given to `foundNothing`.
  var round: Int { rounds.withLock { $0.asked } }

  /// A look that began in this round has found nothing to do, and nothing is under way. True: somebody waits for that.
  func foundNothing(_ round: Int) -> Bool {
    rounds.withLock { rounds in
      defer { rounds.over = round }
      return rounds.over != round
    }
  }
}
