import Synchronization

/// What files take of the worker's memory on their way into requests and out of answers.
///
/// What goes in waits until there is room. What came out is there already and has been paid for: beyond the
/// limit the worker claims nothing more, and beyond twice the limit a file is not taken.
package final class FileMemory: Sendable {
  private let limit: Int
  private let used = Atomic(0)

  /// - Parameter limit: bytes; 512 MiB by default.
  package init(limit: Int = 512 << 20) { self.limit = max(1 << 20, limit) }

  var isFull: Bool { used.load(ordering: .relaxed) > limit }

  /// Takes `count` bytes if there is room for them, or nothing else is there.
  func take(_ count: Int) -> Bool {
    var before = used.load(ordering: .relaxed)
    while before == 0 || before + count <= limit {
      let (exchanged, original) = used.compareExchange(
        expected: before, desired: before + count, ordering: .relaxed)
      if exchanged { return true }
      before = original
    }
    return false
  }

  /// Counts what is there already. False: not even that much more may be; nothing was counted.
  func add(_ count: Int) -> Bool {
    let after = used.wrappingAdd(count, ordering: .relaxed).newValue
    if after <= limit * 2 || after == count { return true }
    giveBack(count)
    return false
  }

  func giveBack(_ count: Int) { used.wrappingSubtract(count, ordering: .relaxed) }
}
