import NIOCore
import Testing

@testable import ProviderSimulator

@Suite("The simulator's books")
struct BooksTests {
  private func entry(_ tag: Int) -> LogEntry {
    var entry = LogEntry()
    entry.tag = "\(tag)"
    return entry
  }

  @Test("numbers have no gaps, and since gives what is newer")
  func numbers() {
    let log = RequestLog(capacity: 10, keepsFileLines: false)
    #expect(log.entries(since: 0).entries.isEmpty)
    for tag in 1...7 { #expect(log.append(entry(tag)).sequence == UInt64(tag)) }
    let (entries, dropped) = log.entries(since: 4)
    #expect(entries.map(\.sequence) == [5, 6, 7])
    #expect(entries.map(\.tag) == ["5", "6", "7"])
    #expect(dropped == 0)
    #expect(log.entries(since: 7).entries.isEmpty)
    #expect(log.entries(since: .max - 1).entries.isEmpty)
  }

  @Test("what does not fit any more is counted, not hidden")
  func dropped() {
    let log = RequestLog(capacity: 10, keepsFileLines: false)
    for tag in 1...25 { log.append(entry(tag)) }
    let (entries, dropped) = log.entries(since: 3)
    #expect(entries.map(\.sequence) == Array(16...25))
    #expect(dropped == 12)
    log.reset()
    #expect(log.last == 0)
    #expect(log.append(entry(1)).sequence == 1)
  }

  @Test("an amendment replaces its entry, and only while it is kept")
  func amendments() {
    let log = RequestLog(capacity: 2, keepsFileLines: true)
    var first = entry(1)
    first.sequence = log.append(first).sequence
    first.isClientGone = true
    log.amend(first)
    #expect(log.entries(since: 0).entries.map(\.isClientGone) == [true])
    for tag in 2...3 { log.append(entry(tag)) }
    first.tag = "late"
    log.amend(first)
    #expect(log.entries(since: 0).entries.map(\.tag) == ["2", "3"])
    let lines = String(buffer: log.takeUnwritten()).split(separator: "\n")
    #expect(lines.count == 4)
    #expect(log.takeUnwritten().readableBytes == 0)
  }

  @Test("occurrences are counted per key and memory stays bounded")
  func occurrences() {
    let counter = OccurrenceCounter(capacity: 4)
    #expect((0..<3).map { _ in counter.countBefore(1) } == [0, 1, 2])
    for key in UInt64(100)..<200 { #expect(counter.countBefore(key) == 0) }
    counter.reset()
    #expect(counter.countBefore(1) == 0)
  }
}
