/// An HTTP request, ready to be sent.
package struct ProviderRequest: Sendable {
  package var method = "POST"
  package var url: String
  package var headers: [(name: String, value: String)]
  package var body: [UInt8]
  /// Names of parameters that the model cannot take, or this protocol cannot say, and that were left out
  /// (`RequestParts.leaveOut`).
  package var dropped: [String] = []

  package init(url: String, headers: [(name: String, value: String)], body: [UInt8]) {
    self.url = url
    self.headers = headers
    self.body = body
  }
}

/// Status and headers of a response. Header names are lower case; of repeated ones the last counts.
package struct ResponseHead: Sendable {
  package var status: Int
  package var headers: [String: String]

  package init(status: Int, headers: [String: String]) {
    self.status = status
    self.headers = headers
  }
}

/// How a body is cut into the units that `ResponseReader.receive` takes.
package enum Framing: Sendable {
  /// Server-sent events: one unit an event.
  case events
  /// Newline-delimited JSON: one unit a line.
  case lines
  /// The body as one unit, when it is complete (or as far as it came).
  case whole
}

/// How the transfer ended, as far as the transport can tell.
package enum TransferEnd: Sendable {
  /// The response was complete by the rules of HTTP.
  case complete
  /// It was not: one of `connect`, `timeout`, `slow`, `reset`, `truncated`, `tooLarge`, with words for
  /// people.
  case broken(Failure.Signal, String)
}

/// Reads the response to a call, or the responses of a call that takes several requests. A pure state
/// machine: no I/O, no clock but the one given for HTTP dates. Calls come in the order `head`, `receive`*,
/// `followUp`; where that gives a request they begin anew with its response, else `finish` is the last.
/// `head` and `receive` are missing where no response came.
package protocol ResponseReader: Sendable {
  /// Takes status and headers; gives the framing of the body.
  mutating func head(_ head: ResponseHead) -> Framing

  /// Takes one unit: the SSE event's name (nil where it had none) and data, a line, or the whole body.
  /// Gives the text that became visible by it, "" where none did. Never fails: what cannot be
  /// understood is kept for `finish` to report.
  mutating func receive(event: String?, data: [UInt8]) -> String

  /// The id of the event that comes next, where it has one.
  mutating func eventID(_ id: String)

  /// True once the protocol's own terminal marker was seen: the transfer may be ended early.
  var isComplete: Bool { get }

  /// True once anything of the answer itself was received: text, reasoning or the call of a tool.
  var hasBegun: Bool { get }

  /// Asked when a response has ended: what is to be sent for the rest of the answer; nil: nothing. Not
  /// asked where the call is over anyway (cancelled, out of time, too large).
  mutating func followUp(_ end: TransferEnd) -> FollowUp?

  /// Gives the result.
  mutating func finish(_ end: TransferEnd) -> Outcome

  /// What tells the provider that nobody waits for the answer any more, where the call ends before it;
  /// nil: nothing runs there, or nothing can stop it. Asked after `finish`.
  var farewell: FollowUp? { get }
}

extension ResponseReader {
  package mutating func eventID(_ id: String) {}
  package mutating func followUp(_ end: TransferEnd) -> FollowUp? { nil }
  package var farewell: FollowUp? { nil }
}

/// A wire protocol: how a call is written, how its answer is read.
package protocol Dialect: Sendable {
  /// The name in `ai.providers.dialect`.
  static var name: String { get }

  /// Gives the request for `call`; throws a `Failure` with signal `unsendable` where the call
  /// cannot be said in this protocol.
  static func request(for call: Call) throws(Failure) -> ProviderRequest

  /// A fresh reader for the response to `call`.
  static func reader(for call: Call) -> any ResponseReader
}
