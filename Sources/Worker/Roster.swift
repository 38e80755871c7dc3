import HTTP

/// The attempts that this worker holds, from the claim to the database's receipt. Pure.
struct Roster: Sendable {
  /// Why an attempt is to end before its time.
  enum Ending: Sendable, Equatable {
    /// An app cancelled it.
    case cancelled
    /// The worker stops.
    case released
    /// It is no longer this worker's: nothing is reported.
    case dropped
  }

  private struct Entry {
    var transfer: TransferID?
    var ending: Ending?
    var isFinished = false
    let company: Settlement.Company
  }

  private var entries: [Fence: Entry] = [:]
  /// Attempts whose answer is awaited.
  private(set) var transferring = 0
  /// Attempts whose result the database has not taken yet.
  private(set) var unsettled = 0

  var isEmpty: Bool { entries.isEmpty }

  var fences: Set<Fence> { Set(entries.keys) }

  func holds(_ fence: Fence) -> Bool { entries[fence] != nil }

  mutating func begin(_ fence: Fence, settledWith company: Settlement.Company = .all) {
    guard entries[fence] == nil else { return }
    entries[fence] = Entry(company: company)
    transferring += 1
  }

  /// The transfer has its name. True where it is to be aborted at once. An answer may begin the attempt's next transfer
  /// before whoever started the first has come to name it: that one is over.
  mutating func started(_ fence: Fence, _ transfer: TransferID) -> Bool {
    guard let entry = entries[fence], !entry.isFinished else { return false }
    if let known = entry.transfer, known > transfer { return false }
    entries[fence]?.transfer = transfer
    return entry.ending != nil
  }

  /// Ends an attempt early; gives the transfer to abort. The first reason stays, but for `dropped`.
  mutating func end(_ fence: Fence, _ ending: Ending) -> TransferID? {
    guard let entry = entries[fence], !entry.isFinished else { return nil }
    if entry.ending == nil || ending == .dropped { entries[fence]?.ending = ending }
    return entry.transfer
  }

  mutating func endAll(_ ending: Ending) -> [TransferID] {
    let running = entries.filter { !$0.value.isFinished }.map(\.key)
    return running.compactMap { end($0, ending) }
  }

  func ending(of fence: Fence) -> Ending? { entries[fence]?.ending }

  /// With which answers an attempt's is settled.
  func company(of fence: Fence) -> Settlement.Company { entries[fence]?.company ?? .all }

  /// The answer is there. False where nothing is to be reported: it was dropped.
  mutating func finished(_ fence: Fence) -> Bool {
    guard let entry = entries[fence], !entry.isFinished else { return false }
    transferring -= 1
    if entry.ending == .dropped {
      entries[fence] = nil
      return false
    }
    entries[fence]?.isFinished = true
    unsettled += 1
    return true
  }

  /// The database has taken the result.
  mutating func settled(_ fence: Fence) {
    guard let entry = entries[fence], entry.isFinished else { return }
    entries[fence] = nil
    unsettled -= 1
  }

  /// Forgets results that will never be reported.
  mutating func dropFinished() {
    let finished = entries.filter(\.value.isFinished).map(\.key)
    for fence in finished { settled(fence) }
  }
}
