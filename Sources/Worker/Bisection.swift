/// Finds the elements of a batch that the database refuses, by halving. Pure.
///
/// One refused element fails a whole statement. The others must not suffer for it, and it must not
/// be sent for ever.
struct Bisection: Sendable {
  enum Step: Sendable, Equatable {
    /// Send these as they are.
    case send(Range<Int>)
    /// Send this one without its content.
    case sendBare(Int)
    case done
  }

  private var open: [Range<Int>]
  private var bare: Int?

  init(count: Int) { open = count > 0 ? [0..<count] : [] }

  var step: Step {
    if let bare { return .sendBare(bare) }
    return open.last.map { .send($0) } ?? .done
  }

  /// The database took what `step` said.
  mutating func accepted() {
    if bare != nil { bare = nil } else { _ = open.popLast() }
  }

  /// The database refused what `step` said. False where nothing is left to try: even a bare element
  /// was refused, so the trouble is not with its content.
  mutating func refused() -> Bool {
    if bare != nil { return false }
    guard let range = open.popLast() else { return false }
    if range.count == 1 {
      bare = range.lowerBound
      return true
    }
    let middle = range.lowerBound + range.count / 2
    open.append(middle..<range.upperBound)
    open.append(range.lowerBound..<middle)
    return true
  }

  /// What has not been taken, for another time.
  var left: [Range<Int>] {
    (bare.map { [$0..<($0 + 1)] } ?? []) + open.reversed()
  }
}
