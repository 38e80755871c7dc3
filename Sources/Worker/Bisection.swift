/// Finds the elements of a batch that the database refuses, by halving. Pure.
///
/// One refused element fails a whole statement. The others must not suffer for it, and it must not
/// be sent for ever.
struct Bisection: Sendable {
  enum Step: Sendable, Equatable {
    /// Send these as they are.
    case send(Range<Int>)
    /// Send this one by itself, with more time than statements have.
    case sendPatiently(Int)
    /// Send this one without its content.
    case sendBare(Int)
    case done
  }

  /// Elements left, one after the other, after which the trouble is not with
  /// the elements.
  static let patience = 3

  private var open: [Range<Int>]
  private var late: Int?
  private var bare: Int?
  private var refusals = 0
  /// Elements that are refused even without content, or were not tried any more: for another time.
  private(set) var left: [Int] = []

  /// Begins with these ranges, each a statement.
  init(_ ranges: [Range<Int>]) { open = ranges.filter { !$0.isEmpty }.reversed() }

  var step: Step {
    if let bare { return .sendBare(bare) }
    if let late { return .sendPatiently(late) }
    return open.last.map { .send($0) } ?? .done
  }

  /// The database took what `step` said.
  mutating func accepted() {
    refusals = 0
    if bare != nil {
      bare = nil
    } else if late != nil {
      late = nil
    } else {
      _ = open.popLast()
    }
  }

  /// The database refused what `step` said.
  ///
  /// - Parameters:
  ///   - whatever: it would have refused anything else as well. Then an element is not to go without its content, which
  ///     might pass, and the content would be lost.
  ///   - wasLate: because it took too long. Then an element has more time by itself; what is too much for that, too, is its content.
  mutating func refused(whatever: Bool = false, wasLate: Bool = false) {
    if let index = bare {
      bare = nil
      return leave(index)
    }
    if let index = late {
      late = nil
      if whatever && !wasLate { return leave(index) }
      bare = index
      return
    }
    guard let range = open.popLast() else { return }
    if range.count == 1 {
      if wasLate {
        late = range.lowerBound
        return
      }
      if whatever { return leave(range.lowerBound) }
      bare = range.lowerBound
      return
    }
    let middle = range.lowerBound + range.count / 2
    open.append(middle..<range.upperBound)
    open.append(range.lowerBound..<middle)
  }

  private mutating func leave(_ index: Int) {
    left.append(index)
    refusals += 1
    guard refusals >= Self.patience else { return }
    for range in open.reversed() { left.append(contentsOf: range) }
    open = []
  }

  /// Cuts `sizes` into ranges of at most `count` elements and, unless a single one is larger,
  /// `bytes` in sum.
  static func ranges(of sizes: [Int], count: Int, bytes: Int) -> [Range<Int>] {
    var ranges: [Range<Int>] = []
    var start = 0
    var sum = 0
    for (index, size) in sizes.enumerated() {
      if index > start, index - start >= count || sum + size > bytes {
        ranges.append(start..<index)
        start = index
        sum = 0
      }
      sum += size
    }
    if start < sizes.count { ranges.append(start..<sizes.count) }
    return ranges
  }
}
