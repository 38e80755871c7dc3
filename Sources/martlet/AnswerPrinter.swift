#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#else
  import Darwin
#endif

/// Prints a stream: text to standard output, what happens beside it to standard error.
struct AnswerPrinter {
  private let showsText: Bool
  private let terminal = TerminalText()
  private var lastIsNewline = true
  private var hasText = false

  init(showsText: Bool) { self.showsText = showsText }

  /// - Throws: `ReaderGone`.
  mutating func show(_ event: StreamEvent) throws {
    switch event.kind {
    case .delta(let text):
      guard showsText, !text.isEmpty else { return }
      try terminal.write(text)
      hasText = true
      lastIsNewline = text.last == "\n"
    case .reset(let reason):
      try endLine()
      writeError("martlet: \(reason): the answer so far is void, it starts again")
    case .retry(let reason):
      try endLine()
      writeError("martlet: \(reason): it is tried again")
    case .running, .end, .unknown: break
    }
  }

  mutating func finish() throws {
    if hasText { try endLine() }
  }

  private mutating func endLine() throws {
    if showsText && !lastIsNewline { try terminal.write("\n") }
    lastIsNewline = true
  }
}

/// Whoever read standard output has gone, as `head` does.
struct ReaderGone: Error {}

/// Writes text of a model to standard output at once. On a terminal without control characters other
/// than line feed and tab: a model must not be able to move the cursor or to type.
struct TerminalText {
  private let isTerminal = isatty(STDOUT_FILENO) == 1

  /// - Throws: `ReaderGone`, where SIGPIPE is ignored.
  func write(_ text: String) throws {
    let shown = isTerminal ? Self.plain(text) : text
    guard fputs(shown, stdout) >= 0, fflush(stdout) == 0 else { throw ReaderGone() }
  }

  /// Without what moves a cursor, changes colours or turns text around.
  static func plain(_ text: String) -> String {
    String(String.UnicodeScalarView(text.unicodeScalars.filter(isPlain)))
  }

  private static func isPlain(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.value {
    case 0x09, 0x0A: true
    case 0x00..<0x20, 0x7F..<0xA0: false
    // Marks that turn the direction of text around them.
    case 0x202A...0x202E, 0x2066...0x2069: false
    default: true
    }
  }
}

/// Makes a write to a closed pipe an error instead of the end of the process.
func ignoreBrokenPipe() { signal(SIGPIPE, SIG_IGN) }

/// All of standard input as UTF-8; what is not is replaced.
func readStandardInput() throws -> String {
  var bytes: [UInt8] = []
  var buffer = [UInt8](repeating: 0, count: 65_536)
  while true {
    let count = read(STDIN_FILENO, &buffer, buffer.count)
    if count == 0 { break }
    if count < 0 {
      if errno == EINTR { continue }
      break
    }
    bytes.append(contentsOf: buffer[..<count])
  }
  return String(decoding: bytes, as: UTF8.self)
}
