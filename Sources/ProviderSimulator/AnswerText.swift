package import NIOCore

/// The text of an answer as the inside of a JSON string, of any length in bounded memory: a
/// prefix, then filler that is never stored.
///
/// A token is a word with the space before it, at most 24 bytes; it is what one streamed delta
/// carries and what output tokens count.
package struct AnswerText: Sendable, Equatable {
  static let filler = Array("The martlet is drawn without feet because it never lands. ".utf8)
  static let longestToken = 24
  /// Bytes of one delta, and their count as tokens, where the length was given in bytes.
  static let bulkDelta = 4_096
  static let bulkTokenBytes = 4

  /// Already escaped bytes.
  private let prefix: [UInt8]
  private let fillerLength: Int
  /// Length given in bytes: large deltas, a token for every four bytes.
  private let isBulk: Bool

  /// Bytes of the escaped text.
  package var count: Int { prefix.count + fillerLength }

  /// A text that is already escaped.
  package init(escaped: [UInt8]) {
    prefix = escaped
    fillerLength = 0
    isBulk = false
  }

  /// `bytes` bytes of filler after `escaped`, which is cut if it is longer.
  package init(escaped: [UInt8] = [], bytes: Int) {
    var end = 0
    while end < escaped.count {
      let next = JSONText.unitEnd(in: escaped, from: end)
      if next > bytes { break }
      end = next
    }
    prefix = Array(escaped[..<end])
    fillerLength = bytes - end
    isBulk = true
  }

  /// The text cut or filled up to exactly `tokens` tokens.
  package init(escaped: [UInt8], tokens: Int) {
    isBulk = false
    var escaped = escaped
    while escaped.last == 0x20 { escaped.removeLast() }
    let whole = AnswerText(escaped: escaped)
    var end = 0
    var left = tokens
    while left > 0, end < escaped.count {
      end = whole.tokenEnd(from: end)
      left -= 1
    }
    guard left > 0 else {
      prefix = Array(escaped[..<end])
      fillerLength = 0
      return
    }
    // Filler must begin a token of its own.
    prefix = escaped.isEmpty ? [] : escaped + [0x20]
    fillerLength = Self.fillerLength(tokens: left)
  }

  /// The same text, cut after `tokens` tokens.
  package func cut(toTokens tokens: Int) -> AnswerText {
    let end = offset(ofToken: tokens)
    return AnswerText(prefix: Array(prefix.prefix(end)), filler: max(0, end - prefix.count), isBulk)
  }

  /// Where the token with this number begins; the end of the text where there is none.
  package func offset(ofToken number: Int) -> Int {
    var end = 0
    if isBulk {
      let wanted = min(count, number * Self.bulkTokenBytes)
      while end < wanted {
        end = end < prefix.count ? JSONText.unitEnd(in: prefix, from: end) : wanted
      }
      return end
    }
    var left = number
    while left > 0, end < count {
      end = tokenEnd(from: end)
      left -= 1
    }
    return end
  }

  private init(prefix: [UInt8], filler: Int, _ isBulk: Bool) {
    self.prefix = prefix
    self.fillerLength = filler
    self.isBulk = isBulk
  }

  /// Tokens of the whole text.
  package var tokenCount: Int {
    if isBulk { return (count + Self.bulkTokenBytes - 1) / Self.bulkTokenBytes }
    var end = 0
    var tokens = 0
    while end < count {
      end = tokenEnd(from: end)
      tokens += 1
    }
    return tokens
  }

  /// Tokens that the bytes of one delta count as.
  func tokens(in range: Range<Int>) -> Int {
    isBulk ? (range.count + Self.bulkTokenBytes - 1) / Self.bulkTokenBytes : 1
  }

  /// Where the delta that begins at `offset` ends.
  func deltaEnd(from offset: Int) -> Int {
    isBulk ? bulkEnd(from: offset) : tokenEnd(from: offset)
  }

  private func bulkEnd(from offset: Int) -> Int {
    var end = min(offset + Self.bulkDelta, count)
    if end <= prefix.count, offset < prefix.count {
      end = offset
      while end < prefix.count, end - offset < Self.bulkDelta {
        end = JSONText.unitEnd(in: prefix, from: end)
      }
    }
    return end
  }

  private func tokenEnd(from offset: Int) -> Int {
    var end = offset
    var sawText = false
    while end < count, end - offset < Self.longestToken {
      let byte = byte(at: end)
      if Self.isSpace(byte) {
        if sawText { break }
        end += 1
      } else {
        sawText = true
        end = end < prefix.count ? JSONText.unitEnd(in: prefix, from: end) : end + 1
      }
    }
    return end
  }

  private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 }

  private func byte(at index: Int) -> UInt8 {
    index < prefix.count
      ? prefix[index] : Self.filler[(index - prefix.count) % Self.filler.count]
  }

  /// Bytes of filler that hold exactly `tokens` words.
  private static func fillerLength(tokens: Int) -> Int {
    let words = filler.split(separator: 0x20)
    let whole = tokens / words.count * filler.count
    let rest = words.prefix(tokens % words.count).reduce(0) { $0 + $1.count + 1 }
    return max(0, whole + rest - 1)
  }

  /// Appends the bytes of `range` to `buffer`.
  package func write(_ range: Range<Int>, to buffer: inout ByteBuffer) {
    let inPrefix = range.clamped(to: 0..<prefix.count)
    if !inPrefix.isEmpty { buffer.writeBytes(prefix[inPrefix]) }
    var at = max(range.lowerBound, prefix.count)
    while at < range.upperBound {
      let start = (at - prefix.count) % Self.filler.count
      let length = min(Self.filler.count - start, range.upperBound - at)
      buffer.writeBytes(Self.filler[start..<(start + length)])
      at += length
    }
  }
}
