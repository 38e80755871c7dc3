import ArgumentParser
import FoundationEssentials
import Sealing

#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#else
  import Darwin
#endif

/// Reads a secret from where it leaves no trace: a file, a pipe, or a terminal that does not echo.
enum SecretInput {
  private static let largest = 16_384

  /// - Throws: where there is nothing, too much, or a control character, which no header may hold.
  static func read(file: String?, prompt: String) throws -> SecretBytes {
    var bytes: [UInt8]
    if let file {
      guard let data = try? Data(contentsOf: URL(filePath: file)) else {
        throw SealedTrouble("the file \(file) cannot be read")
      }
      bytes = Array(data)
    } else if isatty(STDIN_FILENO) == 1 {
      bytes = readHidden(prompt)
    } else {
      bytes = readAll()
    }
    defer { erase(&bytes) }
    if bytes.last == UInt8(ascii: "\n") { bytes.removeLast() }
    if bytes.last == UInt8(ascii: "\r") { bytes.removeLast() }
    guard !bytes.isEmpty else { throw SealedTrouble("the value is empty") }
    guard bytes.count <= largest else {
      throw SealedTrouble("the value has more than \(largest) bytes")
    }
    guard bytes.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else {
      throw SealedTrouble(
        "the value has a space, a line break or another character that is no part of a key")
    }
    return SecretBytes(taking: &bytes)
  }

  private static func readHidden(_ prompt: String) -> [UInt8] {
    var before = termios()
    tcgetattr(STDIN_FILENO, &before)
    var silent = before
    silent.c_lflag &= ~tcflag_t(ECHO)
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent)
    defer {
      tcsetattr(STDIN_FILENO, TCSAFLUSH, &before)
      fputs("\n", stderr)
    }
    fputs(prompt, stderr)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(largest)
    while bytes.count <= largest {
      let character = getchar()
      if character < 0 || character == 0x0a { break }
      bytes.append(UInt8(truncatingIfNeeded: character))
    }
    return bytes
  }

  private static func readAll() -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(largest + 2)
    while bytes.count <= largest + 2 {
      let character = getchar()
      if character < 0 { break }
      bytes.append(UInt8(truncatingIfNeeded: character))
    }
    return bytes
  }
}
