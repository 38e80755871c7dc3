/// Tokens of one call, as totals that include their parts, whatever the provider's own convention:
/// `cacheRead + cacheWrite + cacheWrite1h ≤ input`, `reasoning ≤ output`.
package struct Usage: Sendable, Equatable {
  /// All input tokens: uncached, read from a prompt cache and written to one.
  package var input = 0
  package var cacheRead = 0
  /// Written to a prompt cache at the provider's default lifetime.
  package var cacheWrite = 0
  /// Written to a prompt cache with the one-hour lifetime (Anthropic's `ephemeral_1h`).
  package var cacheWrite1h = 0
  /// All output tokens, reasoning included. nil: not counted yet, in a stream that broke off; the
  /// books then estimate them from the text that arrived.
  package var output: Int? = 0
  package var reasoning = 0
  /// False: the provider counted no tokens, only `units`; the books then estimate the tokens.
  package var countsTokens = true
  /// What is billed beside tokens, or is a part of them that has another price: amounts as decimal
  /// text by the names that `ai.prices.rates` uses, such as `images`, `seconds` or `audio_input`.
  package var units: [String: String] = [:]

  package init() {}
}

/// A file that a model made.
package struct ProducedFile: Sendable, Equatable {
  package enum Content: Sendable, Equatable {
    case bytes([UInt8])
    /// Where the provider keeps it, usually not for long.
    case url(String)
  }
  /// Such as `image/png`; `application/octet-stream` where nothing is known.
  package var mediaType: String
  package var content: Content

  package init(mediaType: String, content: Content) {
    self.mediaType = mediaType
    self.content = content
  }
}

/// A whole answer.
package struct Reply: Sendable {
  /// The text; empty where the model only called tools.
  package var output = ""
  /// The assistant message in OpenAI's form (`role`, `content`, `tool_calls`, …) as UTF-8 JSON; of a
  /// classification, a rerank or a moderation its result; nil for embeddings.
  package var message: [UInt8]?
  /// The vector of an embedding of one text.
  package var embedding: [Float]?
  /// The vectors of an embedding of several texts, in their order.
  package var embeddings: [[Float]]?
  /// Images or speech, in the provider's order.
  package var files: [ProducedFile] = []
  /// OpenAI's vocabulary: `stop`, `length`, `tool_calls`, `content_filter`; nil for embeddings.
  package var finishReason: String?
  /// nil where the provider reported none; the books then carry an estimate, marked as one.
  package var usage: Usage?
  /// The model's name as the provider returned it; nil, as of `serviceTier`, where that looks like none.
  package var model: String?
  package var serviceTier: String?
  package var requestID: String?
  /// Parameters that were left out by an answer without a request, the built-in provider's; of all
  /// others `ProviderRequest.dropped` has them.
  package var dropped: [String] = []

  package init() {}
}

/// Why a call gave no whole answer. It is a description, never a decision: what follows from it is
/// a row of `ai.retry_rules`.
package struct Failure: Sendable, Error {
  /// What was seen. The raw values are those of `ai.retry_rules.signal`.
  package enum Signal: String, Sendable, CaseIterable {
    /// Nothing reached the provider: DNS, connection refused, TLS.
    case connect
    /// The provider answered with an HTTP status that is not 2xx, or with an error that names such a
    /// status in the place of an answer.
    case http
    /// An error object inside a 2xx answer or stream.
    case embeddedError = "embedded_error"
    /// The stream ended before its terminal marker, or the connection before the body's end.
    case truncated
    /// A 2xx body that is not what the protocol says (malformed JSON, also where it is just too
    /// short; an HTML page).
    case malformed
    /// A 2xx answer without a body.
    case empty
    /// Time ran out: no connection progress, a stall, or the call's whole time.
    case timeout
    /// Nothing of the answer came within the time for its first token; the call was given up.
    case slow
    /// The connection broke.
    case reset
    /// The answer exceeded the size limit.
    case tooLarge = "too_large"
    /// The call cannot be written in this dialect, or its secret is missing.
    case unsendable
  }
  package var signal: Signal
  package var httpStatus: Int?
  /// The provider's own words for it: OpenAI `error.type`/`error.code`, Anthropic `error.type`/`details.error_code`.
  /// nil, too, where what it gave does not look like a name.
  package var type: String?
  package var code: String?
  /// For people. At most 1,000 characters, without secrets; may quote the provider.
  package var message: String
  /// From `retry-after-ms`, `retry-after` (seconds or HTTP date), in that order of precedence.
  package var retryAfterMilliseconds: Int?
  /// The provider's `x-should-retry`, where sent.
  package var shouldRetry: Bool?
  package var requestID: String?
  /// What arrived before it failed: text, usage, model as far as known.
  package var partial: Reply?
  /// The parameters for which a strict call was not sent; the code is `unsupported_parameter` then.
  package var parameters: [String] = []

  package init(_ signal: Signal, message: String) {
    self.signal = signal
    self.message = message
  }

  /// A strict call that would have to be sent without some of its parameters.
  package init(unsupported parameters: [String]) {
    let names = parameters.prefix(20).map { $0.prefix(100) }.joined(separator: ", ")
    self.init(.unsendable, message: "the model does not take \(names), and the call is strict")
    code = "unsupported_parameter"
    self.parameters = parameters
  }
}

package typealias Outcome = Result<Reply, Failure>
