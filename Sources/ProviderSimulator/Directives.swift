/// What one request is to be answered with: speed, shape of the answer, usage and fault.
///
/// A value is built in three layers, each overriding single fields of the one before: the server's
/// defaults, the directives after the `+` of the model name, the `x-simulate` header.
/// The syntax is described in `docs/simulator.md`.
package struct Directives: Sendable, Equatable {
  /// How a response ends early once some tokens have left.
  package enum CutKind: String, Sendable, Equatable {
    /// The connection stays open and silent.
    case hang
    /// TCP RST.
    case reset
    /// FIN in the middle of the HTTP message.
    case truncate
    /// The HTTP message ends properly, the stream inside lacks its terminal event.
    case end
  }

  /// An early end: what happens, and after how many answer tokens.
  package struct Cut: Sendable, Equatable {
    package var kind: CutKind
    package var tokens: Int
  }

  /// The `retry-after` header of an error.
  package enum RetryAfter: Sendable, Equatable {
    case none
    case seconds(Double)
    /// An HTTP date two seconds from now.
    case date
  }

  /// Token counts that replace the simulator's own, literally as they shall stand on the wire.
  package struct UsageOverride: Sendable, Equatable {
    package var input: Int?
    package var cached: Int?
    package var write5m: Int?
    package var write1h: Int?
    package var output: Int?
    package var reasoning: Int?
  }

  /// Milliseconds before the first byte.
  package var latency = 0
  /// Milliseconds from the head of the response to its first token; added to `latency` when the
  /// answer is not streamed.
  package var timeToFirstToken = 0
  /// Tokens per second; `0` means as fast as the client reads.
  package var tokensPerSecond = 0.0
  /// Length of the answer in tokens; the text is cut or filled up to it.
  package var tokenCount: Int?
  /// Text of the answer, already escaped as the inside of a JSON string.
  package var answer: [UInt8]?
  /// Length of the answer in bytes (filler text).
  package var bigBytes: Int?
  package var usage = UsageOverride()
  /// Stop reason in either provider's spelling.
  package var finish: String?
  /// Model name reported in the answer; the requested name up to its `+` otherwise.
  package var reportedModel: String?
  package var serviceTier: String?
  /// Tools to call; `*` stands for the first tool of the request. Empty: no call.
  package var tools: [String] = []
  /// Arguments of each tool call: a JSON object.
  package var toolArguments: String?
  package var loneSurrogate = false
  package var nulCharacter = false
  /// Dimensions of embeddings where the request names none.
  package var dimensions: Int?
  /// Categories that a moderation finds to apply.
  package var flags: [String] = []
  /// Free text copied to the log.
  package var tag: String?
  /// Milliseconds between single bytes of the response.
  package var dripInterval: Int?

  package var status: Int?
  package var errorCode: String?
  package var errorType: String?
  package var errorMessage: String?
  package var retryAfter: RetryAfter?
  package var retryAfterMilliseconds: Int?
  package var shouldRetry: Bool?
  /// Answers with this request's body that fail before the first success; `nil` means all.
  package var times: Int?
  /// Percentage of requests that fail; `nil` means all.
  package var chance: Int?

  /// What becomes of a batch.
  package var batch: BatchDirectives?
  /// Only this step of a batch interface or of a job fails; nil: whatever is asked, of jobs their making.
  package var at: String?
  /// The fault comes after the work was done: only the answer is lost.
  package var isLate = false

  /// Questions for a job that are answered with "not yet"; `nil` means none.
  package var polls: Int?
  package var hang = false
  package var reset = false
  package var cut: Cut?
  package var malformed = false
  package var html = false
  package var empty = false
  /// Answer tokens before an error inside a 200 response.
  package var embeddedErrorAfter: Int?

  package init() {}

  /// Whether anything here makes a request fail.
  package var hasFault: Bool {
    status != nil || hang || reset || cut != nil || malformed || html || empty
      || embeddedErrorAfter != nil
  }

  /// Removes the fault, so that the request succeeds.
  package mutating func clearFault() {
    status = nil
    hang = false
    reset = false
    cut = nil
    malformed = false
    html = false
    empty = false
    embeddedErrorAfter = nil
  }

  /// The directive that decides, for the log; `nil` without a fault.
  package var faultName: String? {
    if hang { return "hang" }
    if reset { return "reset" }
    if html { return "html" }
    if empty { return "empty" }
    if status != nil { return "status" }
    if embeddedErrorAfter != nil { return "embedded_error" }
    if malformed { return "malformed" }
    return cut.map { "\($0.kind.rawValue)_after" }
  }
}

extension Directives {
  /// The answer as plain text; setting it escapes it.
  package var answerText: String {
    get {
      (answer ?? []).withUnsafeBytes { JSONText.unescaped($0) }
    }
    set { answer = JSONText.escaped(newValue) }
  }
}
