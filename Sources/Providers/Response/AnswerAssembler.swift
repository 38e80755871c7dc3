/// The part of reading a response that differs between protocols: what a unit of a successful
/// response means. Status, framing, broken transfers and bodies that are not JSON are
/// `AnswerReader`'s business.
protocol AnswerAssembler: Sendable {
  /// Header names that carry the provider's request id, the best first.
  static var requestIDHeaders: [String] { get }

  /// Whether this protocol sends streams at all.
  static var streams: Bool { get }

  /// JSON values and keys that one unit of a response may have. Small ones take far more memory than
  /// their text.
  static var maxValues: Int { get }

  /// Takes the JSON of one event; gives the text that became visible.
  mutating func event(named name: String?, _ json: JSON) -> String

  /// Takes a unit that is not JSON if it is a marker of the protocol; gives nil if it is not.
  mutating func marker(_ data: [UInt8]) -> String?

  /// Takes a whole body, or as much of one as arrived; gives its text. Sets `isComplete` if it is an
  /// answer; sets `fault` or leaves both alone if it is not.
  mutating func whole(_ json: JSON) -> String

  /// The terminal marker was seen.
  var isComplete: Bool { get }

  /// Anything of the answer itself was seen: text, reasoning or the call of a tool.
  var hasBegun: Bool { get }

  /// The answer is finished, though the terminal marker has not been seen: enough if the response
  /// ends properly here, as it does with servers that leave the marker out.
  var mayEnd: Bool { get }

  /// The first error that the provider reported inside of its answer.
  var fault: Failure? { get }

  /// What has arrived.
  func reply() -> Reply
}

extension AnswerAssembler {
  static var maxValues: Int { 1 << 20 }
}
