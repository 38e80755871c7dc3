internal import FoundationEssentials

#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#else
  import Darwin
#endif

/// Writes a line to standard error. What a provider or a tenant said may be part of it, and must not
/// move the cursor.
func writeError(_ line: String) { fputs(TerminalText.plain(line) + "\n", stderr) }

/// JSON with sorted keys, in one line, as every command's `--json` prints it.
func jsonLine(_ value: some Encodable) throws -> String {
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
  return String(decoding: try encoder.encode(value), as: UTF8.self)
}

/// One line on a terminal that overwrites itself; silent where standard error is none.
struct ProgressLine {
  private let isShown = isatty(STDERR_FILENO) == 1

  func show(_ text: String) {
    if isShown { fputs("\r\u{1B}[K" + text, stderr) }
  }

  func clear() {
    if isShown { fputs("\r\u{1B}[K", stderr) }
  }
}
