/// Times at which transfers are to be looked at, the earliest first: a binary heap. Entries of
/// transfers that have ended stay until they come first.
struct Deadlines {
  struct Entry {
    var time: UInt64
    var id: TransferID
  }

  private var heap: [Entry] = []

  var first: Entry? { heap.first }
  var count: Int { heap.count }

  /// Forgets transfers that have ended before they come first.
  mutating func keep(_ isToKeep: (TransferID) -> Bool) {
    // What is sorted is a heap.
    heap = heap.filter { isToKeep($0.id) }.sorted { $0.time < $1.time }
  }

  mutating func add(_ id: TransferID, at time: UInt64) {
    heap.append(Entry(time: time, id: id))
    var at = heap.count - 1
    while at > 0, heap[at].time < heap[(at - 1) / 2].time {
      heap.swapAt(at, (at - 1) / 2)
      at = (at - 1) / 2
    }
  }

  /// There must be one.
  mutating func removeFirst() {
    heap.swapAt(0, heap.count - 1)
    heap.removeLast()
    var at = 0
    while true {
      var least = at
      for child in [2 * at + 1, 2 * at + 2]
      where child < heap.count && heap[child].time < heap[least].time { least = child }
      if least == at { return }
      heap.swapAt(at, least)
      at = least
    }
  }
}
