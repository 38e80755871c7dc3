/// The part of reading a response that differs between protocols: what a unit of a successful
/// response means. Status, framing, broken transfers and bodies that are not JSON are
/// `AnswerReader`'s business.
protocol AnswerAssembler: Sendable {
  /// Header names that carry the provider's request id, the best first.
  static var requestIDHeaders: [String] { get }

  /// Whether this protocol sends streams at all.
  static var streams: Bool { get }

  /// How a stream is cut into units where its content type does not tell.
  static var streamFraming: Framing { get }

  /// JSON values and keys that one unit of a response may have. Small ones take far more memory than
  /// their text.
  static var maxValues: Int { get }

  /// Takes status and headers, before anything else: some protocols count tokens there.
  mutating func head(_ head: ResponseHead)

  /// The id of the event that comes next, where it has one.
  mutating func eventID(_ id: String)

  /// Takes an event whose data is text, in a protocol that has such; gives nil if it is JSON.
  mutating func plain(named name: String?, _ data: [UInt8]) -> String?

  /// Takes the JSON of one event or line; gives the text that became visible.
  mutating func event(named name: String?, _ json: JSON) -> String

  /// Takes a unit that is not JSON if it is a marker of the protocol; gives nil if it is not.
  mutating func marker(_ data: [UInt8]) -> String?

  /// Takes a whole body; gives its text. Sets `isComplete` if it is an
  /// answer; sets `fault` or leaves both alone if it is not.
  mutating func whole(_ json: JSON) -> String

  /// Takes as much of a whole body as arrived where it broke off; gives its text.
  mutating func cut(_ json: JSON) -> String

  /// The terminal marker was seen.
  var isComplete: Bool { get }

  /// Anything of the answer itself was seen: text, reasoning or the call of a tool.
  var hasBegun: Bool { get }

  /// The answer is finished, though the terminal marker has not been seen: enough if the response
  /// ends properly here, as it does with servers that leave the marker out.
  var mayEnd: Bool { get }

  /// What arrived is sound and says that the answer is not there yet, or not here: a job that runs. The
  /// response may end here.
  var isPending: Bool { get }

  /// Asked when a response has ended without completing the answer: what is to be sent for the rest of it;
  /// nil: nothing, the call ends here.
  mutating func followUp(_ ended: ResponseEnd) -> FollowUp?

  /// See `ResponseReader.farewell`.
  var farewell: FollowUp? { get }

  /// What an error says, whether it came with a status of its own or inside of an answer.
  func described(_ json: JSON) -> ProviderError

  /// The first error that the provider reported inside of its answer.
  var fault: Failure? { get }

  /// What has arrived.
  func reply() -> Reply
}

extension AnswerAssembler {
  static var streamFraming: Framing { .events }
  static var maxValues: Int { 1 << 20 }
  mutating func head(_ head: ResponseHead) {}
  mutating func marker(_ data: [UInt8]) -> String? { nil }
  mutating func eventID(_ id: String) {}
  mutating func plain(named name: String?, _ data: [UInt8]) -> String? { nil }
  mutating func cut(_ json: JSON) -> String { whole(json) }
  var isPending: Bool { false }
  func described(_ json: JSON) -> ProviderError { ProviderError(json) }
  mutating func followUp(_ ended: ResponseEnd) -> FollowUp? { nil }
  var farewell: FollowUp? { nil }
}

/// How one of several responses ended.
enum ResponseEnd: Sendable {
  /// All of it came, and could be read.
  case complete(wait: Int?)
  /// Its status is not 2xx.
  case refused(status: Int, wait: Int?)
  /// It broke off, or none came.
  case broken(Failure.Signal)
  /// It came, and is not what the protocol says.
  case unreadable

  /// Whether the same may be asked again: nothing was said about what was asked for. The statuses are
  /// those that the official SDKs repeat a GET for. An address that must not be asked stays one.
  var isPassing: Bool {
    switch self {
    case .complete, .broken(.malformed): false
    case .refused(let status, _):
      [408, 409, 425, 429].contains(status) || (500...599).contains(status)
    case .broken, .unreadable: true
    }
  }

  /// What the provider asks to wait, in milliseconds.
  var wait: Int? {
    switch self {
    case .complete(let wait), .refused(_, let wait): wait
    case .broken, .unreadable: nil
    }
  }
}
