/// The quoted data of a prompt: passages that were retrieved and rows of the caller's, each between
/// a tag and the same tag with a slash, on lines of their own (`sql/33_prompts.sql` writes them).
///
///     <passage1_3fa94c01b2d7>
///     Title › Heading
///     Text …
///     </passage1_3fa94c01b2d7>
///
/// The key at the tag's end occurs nowhere else in the data, so that no text can close its fence.
enum Fences {
  struct Block {
    /// Number of a passage; nil for rows.
    var passage: Int?
    var text: String
  }

  /// The blocks of a message that consists of them; empty for any other message.
  static func blocks(in message: String) -> [Block] {
    guard message.hasPrefix("<passage") || message.hasPrefix("<rows") else { return [] }
    var blocks: [Block] = []
    // What closes the open block; nil: none is open.
    var end: String?
    var passage: Int?
    var lines: [Substring] = []
    for line in message.split(separator: "\n", omittingEmptySubsequences: false) {
      if let tag = end {
        guard line == tag else {
          lines.append(line)
          continue
        }
        blocks.append(Block(passage: passage, text: lines.joined(separator: "\n")))
        lines = []
        end = nil
      } else if let kind = kind(of: line) {
        end = "</" + line.dropFirst()
        passage = if case .passage(let number) = kind { number } else { nil }
      }
    }
    // A fence that does not close is none.
    return end == nil ? blocks : []
  }

  private enum Kind {
    case passage(Int)
    case rows
  }

  /// What a line opens, if it is a tag: `<passage1_3fa94c01b2d7>`, `<rows1_3fa94c01b2d7>`.
  private static func kind(of line: Substring) -> Kind? {
    guard line.first == "<", line.last == ">" else { return nil }
    let parts = line.dropFirst().dropLast().split(separator: "_", omittingEmptySubsequences: false)
    guard parts.count == 2, parts[1].utf8.count >= 8, parts[1].allSatisfy(\.isHexDigit) else {
      return nil
    }
    if parts[0].hasPrefix("rows") { return Int(parts[0].dropFirst(4)).map { _ in .rows } }
    guard parts[0].hasPrefix("passage") else { return nil }
    return Int(parts[0].dropFirst(7)).map { .passage($0) }
  }
}
