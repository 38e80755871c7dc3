/// What the sinks of one pool hold of answers that are not complete, and how much that may be in
/// all: one provider that floods must not take the memory of the others. Confined to the transfer
/// thread.
struct AnswerMemory {
  let limit: Int
  private(set) var used = 0
  private(set) var holders = 0

  init(limit: Int) { self.limit = limit }

  /// A transfer that held `old` bytes holds `new`. False: all of them hold too much, and this one
  /// more than an equal share. There is always one that does, so the sum comes down.
  mutating func change(from old: Int, to new: Int) -> Bool {
    used += new - old
    holders += (new > 0 ? 1 : 0) - (old > 0 ? 1 : 0)
    return new <= old || used <= limit || new <= limit / max(1, holders)
  }
}
