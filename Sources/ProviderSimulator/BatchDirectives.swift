/// What becomes of a batch: `batch=ms:500,end:expired,done:2,…`.
package struct BatchDirectives: Sendable, Equatable {
  package enum End: String, Sendable {
    case completed
    case failed
    case expired
    case cancelled
  }

  /// Milliseconds from its creation to its end.
  package var milliseconds = 0
  package var end = End.completed
  /// Members that are answered before it expires or is cancelled.
  package var done = 0
  /// Results that are left out, from the end.
  package var lost = 0
  /// Results of nothing that was asked.
  package var strays = 0
  /// Every result comes twice.
  package var repeats = false
  /// Results come in reverse order.
  package var reverses = false
  /// Once created it is not known any more.
  package var isGone = false
  /// Code of the error of one that failed.
  package var code = "invalid_json_line"

  init() {}

  /// - Parameter text: `key:value` or `key`, separated by commas.
  init(_ text: String) throws(DirectiveError) {
    for part in text.split(separator: ",") {
      let pair = part.split(separator: ":", maxSplits: 1)
      let value = pair.count > 1 ? String(pair[1]) : ""
      func number() throws(DirectiveError) -> Int {
        guard let number = Int(value), (0...1_000_000_000).contains(number) else {
          throw DirectiveError(description: "batch: \(part) needs a whole number")
        }
        return number
      }
      switch pair[0] {
      case "ms": milliseconds = try number()
      case "end":
        guard let end = End(rawValue: value) else {
          throw DirectiveError(description: "batch: '\(value)' is no end")
        }
        self.end = end
      case "done": done = try number()
      case "lose": lost = try number()
      case "stray": strays = try number()
      case "repeat": repeats = true
      case "reverse": reverses = true
      case "gone": isGone = true
      case "code": code = value
      default: throw DirectiveError(description: "batch: unknown '\(pair[0])'")
      }
    }
  }
}
