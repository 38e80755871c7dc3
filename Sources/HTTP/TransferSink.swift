/// Takes what a transfer receives. Every call happens on the pool's thread, in the order `head`,
/// `body`*, `finished`; `finished` comes exactly once and alone where no response came. A sink must
/// not block: all transfers of the pool wait for it.
package protocol TransferSink: AnyObject, Sendable {
  /// The final head (1xx heads are not reported). Names are lower case; of repeated ones the last counts.
  func head(status: Int, headers: [String: String])

  /// A piece of the body, valid during the call only.
  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict

  /// Bytes of the answer that the sink keeps; counted against the pool's `answerMemory`.
  var heldBytes: Int { get }

  /// Asked once, when the request's `firstAnswerTimeout` is over: whether what was waited for has come.
  /// Where it has not, the transfer is aborted and its failure is `late`.
  var hasBegun: Bool { get }

  func finished(_ outcome: TransferOutcome)
}

extension TransferSink {
  package var heldBytes: Int { 0 }
}

/// What a sink says to a piece of the body.
package enum BodyVerdict: Sendable {
  case more
  /// The answer is complete by its own protocol: `finished` comes at once, as a success. The pool
  /// reads on for a moment, so that the connection can be used again.
  case enough
}

/// Names a transfer of one pool; never used twice. What was started later is greater.
package struct TransferID: Sendable, Hashable, Comparable {
  let number: UInt64

  /// A pool makes its own; this is for what stands in for one.
  package init(number: UInt64) { self.number = number }

  package static func < (left: TransferID, right: TransferID) -> Bool { left.number < right.number }
}

/// How a transfer ended.
package struct TransferOutcome: Sendable {
  /// nil: the response is complete, whatever its status.
  package var failure: TransferFailure?
  /// Whether the whole request was handed to the network, or may have been. False does not say that
  /// nothing was.
  package var requestSent: Bool
  /// From `start` to the first byte of the body, in milliseconds; nil where none came.
  package var firstByte: Double?
  /// From `start` to the end, in milliseconds.
  package var total: Double
  /// Bytes of the body.
  package var bytesReceived: Int
  /// Bytes of the request's body that left, as far as known.
  package var bytesSent: Int
  /// Whether the connection had served an earlier transfer.
  package var reusedConnection: Bool

  package init(
    failure: TransferFailure?, requestSent: Bool, firstByte: Double?, total: Double,
    bytesReceived: Int, bytesSent: Int, reusedConnection: Bool
  ) {
    self.failure = failure
    self.requestSent = requestSent
    self.firstByte = firstByte
    self.total = total
    self.bytesReceived = bytesReceived
    self.bytesSent = bytesSent
    self.reusedConnection = reusedConnection
  }
}

/// Why a transfer gave no complete response.
package struct TransferFailure: Sendable, Error, CustomStringConvertible {
  package enum Kind: String, Sendable, CaseIterable {
    /// No byte of the request left: the name was not found, the connection refused.
    case connect
    /// Connecting, a pause, or the whole transfer took too long.
    case timeout
    /// The sink was still waiting at the end of `firstAnswerTimeout`.
    case late
    /// The connection broke, or closed before a response came.
    case reset
    /// The response began and ended too early.
    case truncated
    /// The head or body exceeded its limit, or all answers together theirs.
    case tooLarge
    /// The TLS handshake failed. No byte of the request left.
    case tls
    /// `cancel` or `stop`.
    case cancelled
    /// The request cannot be sent as it is.
    case invalidRequest
    /// The request is for public addresses only, and its address is not. No byte of it left.
    case forbidden
    /// What came is not HTTP, or is compressed, which was not asked for.
    case invalidResponse
    case other
  }
  package var kind: Kind
  /// For people. Contains host names and numbers, never a header's value or a body.
  package var message: String

  package init(kind: Kind, message: String) {
    self.kind = kind
    self.message = message
  }

  package var description: String { message }
}
