import Testing

@testable import HTTP

private struct Event: Equatable {
  var name: String?
  var data: String
  init(_ name: String?, _ data: String) {
    self.name = name
    self.data = data
  }
}

private func events(_ pieces: [[UInt8]], limit: Int = 1 << 20) throws -> [Event] {
  var parser = SSEParser(limit: limit)
  var events: [Event] = []
  for piece in pieces {
    try piece.withUnsafeBytes { bytes in
      try parser.feed(bytes) { name, data in
        events.append(Event(name, String(decoding: data, as: UTF8.self)))
        return true
      }
    }
  }
  return events
}

private func lines(_ pieces: [[UInt8]], limit: Int = 1 << 20) throws -> [String] {
  var parser = LineParser(limit: limit)
  var lines: [[UInt8]] = []
  for piece in pieces {
    try piece.withUnsafeBytes { bytes in
      try parser.feed(bytes) { line in
        lines.append(line)
        return true
      }
    }
  }
  if let last = try parser.finish() { lines.append(last) }
  return lines.map { String(decoding: $0, as: UTF8.self) }
}

@Suite struct SSEParserTests {
  static let cases: [(String, [(String?, String)])] = [
    ("data: a\n\ndata: b\n\n", [(nil, "a"), (nil, "b")]),
    ("data: a\r\n\r\ndata: b\r\n\r\n", [(nil, "a"), (nil, "b")]),
    ("data: a\r\rdata: b\r\r", [(nil, "a"), (nil, "b")]),
    ("data: a\r\n\ndata: b\n\r\n", [(nil, "a"), (nil, "b")]),
    ("event: ping\ndata: {}\n\n", [("ping", "{}")]),
    ("event:x\ndata:a\n\nevent:x\ndata:b\n\ndata:c\n\n", [("x", "a"), ("x", "b"), (nil, "c")]),
    ("data: one\ndata: two\ndata:\n\n", [(nil, "one\ntwo\n")]),
    ("data\n\n", [(nil, "")]),
    ("data:\n\n", [(nil, "")]),
    ("data:  two spaces\n\n", [(nil, " two spaces")]),
    (": comment\n:\n\n: more\ndata: a\n: within\n\n", [(nil, "a")]),
    ("event: lonely\n\ndata: a\n\n", [(nil, "a")]),
    ("event:\ndata: a\n\n", [(nil, "a")]),
    ("id: 7\nretry: 10\nunknown: x\ndata: a\n\n", [(nil, "a")]),
    ("\u{feff}data: a\n\n\u{feff}data: not at the start\n\n", [(nil, "a")]),
    ("\u{feff}\ndata: a\n\n", [(nil, "a")]),
    ("\n\n\ndata: a\n\n\n\n", [(nil, "a")]),
    ("data: incomplete\n", []),
    ("data: incomplete", []),
    ("datax: no\n\n data: no\n\nDATA: no\n\n", []),
    ("data: a:b: c\n\n", [(nil, "a:b: c")]),
    ("data: \u{1f426} ä\u{0301} 東\n\n", [(nil, "\u{1f426} ä\u{0301} 東")]),
    ("data: nul \u{0}\n\n", [(nil, "nul \u{0}")]),
  ]

  @Test("events are cut as the standard says, wherever the stream is split", arguments: cases)
  func cutting(input: String, expected: [(String?, String)]) throws {
    let bytes = Array(input.utf8)
    let wanted = expected.map { Event($0.0, $0.1) }
    #expect(try events([bytes]) == wanted)
    #expect(try events(bytes.map { [$0] }) == wanted, "byte by byte")
    for first in 0...bytes.count {
      for second in first...bytes.count {
        let pieces = [bytes[..<first], bytes[first..<second], bytes[second...]].map(Array.init)
        #expect(try events(pieces) == wanted, "split at \(first) and \(second)")
      }
    }
  }

  @Test("a random mix of line ends, split at random, reads like the whole")
  func property() throws {
    let seed = UInt64.random(in: 0 ... .max)
    var random = Seeded(seed)
    let parts = [
      "data: ", "data:", "event: e", "\n", "\r", "\r\n", ":", "x", "ä", " ", "\n\n", "id: 3",
    ]
    for _ in 0..<3_000 {
      let input = (0..<Int.random(in: 1...30, using: &random)).map { _ in
        parts.randomElement(using: &random)!
      }
      let bytes = Array(input.joined().utf8)
      var pieces: [[UInt8]] = []
      var rest = bytes[...]
      while !rest.isEmpty {
        let count = Int.random(in: 0...min(5, rest.count), using: &random)
        pieces.append(Array(rest.prefix(count)))
        rest = rest.dropFirst(count)
      }
      #expect(try events(pieces) == events([bytes]), "seed \(seed), input \(input)")
    }
  }

  @Test("a line, and an event of many lines, may not grow beyond the limit")
  func limits() throws {
    #expect(throws: StreamLimitError.self) {
      try events([Array("data: 0123456789".utf8)], limit: 15)
    }
    #expect(throws: StreamLimitError.self) {
      try events((0..<4).map { _ in Array("data: 0123\n".utf8) }, limit: 15)
    }
    #expect(throws: StreamLimitError.self) {
      try events(Array(repeating: [0x78], count: 20), limit: 15)
    }
    // Comments and finished events do not add up.
    let many = Array(repeating: Array(": 0123\ndata: 0123\n\n".utf8), count: 100)
    #expect(try events(many, limit: 15).count == 100)
  }

  @Test("a consumer that has enough is not given the rest")
  func stopping() throws {
    var parser = SSEParser()
    var seen = 0
    try Array("data: 1\n\ndata: 2\n\ndata: 3\n\n".utf8).withUnsafeBytes { bytes in
      try parser.feed(bytes) { _, _ in
        seen += 1
        return seen < 2
      }
    }
    #expect(seen == 2)
  }
}

@Suite struct LineParserTests {
  static let cases: [(String, [String])] = [
    ("{\"a\":1}\n{\"b\":2}\n", ["{\"a\":1}", "{\"b\":2}"]),
    ("a\r\nb\r\n", ["a", "b"]),
    ("a\n\n\r\nb", ["a", "b"]),
    ("a\rb\n", ["a\rb"]),
    ("a\r\r\n", ["a\r"]),
    ("\u{feff}a\n\u{feff}b\n", ["a", "\u{feff}b"]),
    ("", []),
    ("\n", []),
    ("ä\u{1f426}\n東", ["ä\u{1f426}", "東"]),
  ]

  @Test("lines are cut alike, wherever the stream is split", arguments: cases)
  func cutting(input: String, expected: [String]) throws {
    let bytes = Array(input.utf8)
    #expect(try lines([bytes]) == expected)
    #expect(try lines(bytes.map { [$0] }) == expected)
    for first in 0...bytes.count {
      #expect(try lines([Array(bytes[..<first]), Array(bytes[first...])]) == expected)
    }
  }

  @Test("a line may not grow beyond the limit, and one that just fits is given")
  func limits() throws {
    #expect(try lines([Array("12345\r\n".utf8)], limit: 5) == ["12345"])
    #expect(throws: StreamLimitError.self) { try lines([Array("123456\n".utf8)], limit: 5) }
    #expect(throws: StreamLimitError.self) {
      try lines(Array(repeating: [0x78], count: 30), limit: 5)
    }
  }
}

/// SplitMix64: the same numbers for the same seed.
struct Seeded: RandomNumberGenerator {
  private var state: UInt64
  init(_ seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }
}
