import CCurl

#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#endif

/// Keeps what the process knows to itself.
package enum ProcessGuard {
  /// No core dumps; nobody but root reads the process's memory or environment, or traces it; no
  /// password in the list of processes. To be called before anything secret is read. Where the system
  /// refuses, nothing changes.
  package static func close() {
    _ = martlet_process_close()
    _ = hidPasswords
  }

  package static var isRoot: Bool { geteuid() == 0 }

  /// Overwrites passwords among the arguments, where everybody on the machine can read them. They
  /// could for a moment; true where there was one.
  package static let hidPasswords: Bool = {
    // Swift's copy of them is made before they change.
    let count = CommandLine.arguments.count
    var found = false
    for index in 1..<max(1, count) {
      guard let memory = martlet_process_argument(Int32(index)) else { continue }
      let bytes = UnsafeMutableBufferPointer(start: memory, count: strlen(memory))
      for range in passwords(in: bytes.map { UInt8(bitPattern: $0) }) {
        found = true
        for place in range { bytes[place] = CChar(bitPattern: UInt8(ascii: "x")) }
      }
    }
    return found
  }()

  /// Where passwords stand in an argument: after the user of a URL, and after `password=` in a URL or
  /// a connection string.
  static func passwords(in argument: [UInt8]) -> [Range<Int>] {
    var found: [Range<Int>] = []
    if let scheme = find("://", in: argument, from: 0) {
      let start = scheme + 3
      let authority = argument[start...].prefix { !"/?#".utf8.contains($0) }
      if let at = authority.lastIndex(of: UInt8(ascii: "@")),
        let colon = authority.firstIndex(of: UInt8(ascii: ":")), colon + 1 < at
      {
        found.append(colon + 1..<at)
      }
    }
    var from = 0
    while let name = find("password", in: argument, from: from) {
      from = name + 8
      var start = from
      while start < argument.count, argument[start] == 0x20 { start += 1 }
      guard start < argument.count, argument[start] == UInt8(ascii: "=") else { continue }
      start += 1
      while start < argument.count, argument[start] == 0x20 { start += 1 }
      let end = endOfValue(argument, start)
      if end > start { found.append(start..<end) }
      from = end
    }
    return found
  }

  /// libpq's quotes: 'it\'s one value'.
  private static func endOfValue(_ argument: [UInt8], _ start: Int) -> Int {
    var at = start
    let isQuoted = at < argument.count && argument[at] == UInt8(ascii: "'")
    if isQuoted { at += 1 }
    while at < argument.count {
      switch argument[at] {
      case UInt8(ascii: "\\"): at += 1
      case UInt8(ascii: "'") where isQuoted: return at + 1
      case 0x20 where !isQuoted, UInt8(ascii: "&") where !isQuoted: return at
      default: break
      }
      at += 1
    }
    return argument.count
  }

  private static func find(_ words: StaticString, in text: [UInt8], from: Int) -> Int? {
    let words = Array(UnsafeBufferPointer(start: words.utf8Start, count: words.utf8CodeUnitCount))
    guard text.count >= from + words.count else { return nil }
    return (from...(text.count - words.count)).first {
      text[$0..<($0 + words.count)].elementsEqual(words)
    }
  }
}
