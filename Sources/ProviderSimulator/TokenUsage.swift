import NIOCore

/// Token counts exactly as they stand on the wire.
///
/// `input` is `prompt_tokens` for OpenAI and `promptTokenCount` for Gemini, which include cached and
/// written tokens, and `input_tokens` for Anthropic, which does not. `output` includes `reasoning`,
/// also for Gemini, where the wire counts candidates and thoughts apart.
package struct TokenUsage: Sendable, Equatable {
  package var input: Int
  package var cached = 0
  package var write5m = 0
  package var write1h = 0
  package var output: Int
  package var reasoning = 0

  package init(input: Int, output: Int) {
    self.input = input
    self.output = output
  }

  mutating func apply(_ override: Directives.UsageOverride) {
    if let value = override.input { input = value }
    if let value = override.cached { cached = value }
    if let value = override.write5m { write5m = value }
    if let value = override.write1h { write1h = value }
    if let value = override.output { output = value }
    if let value = override.reasoning { reasoning = value }
  }
}

/// A provider's protocol.
package enum Wire: String, Sendable, Equatable {
  case openAI = "openai"
  case anthropic
  case gemini
  case ollama
  /// Text Generation Inference.
  case tgi
  /// Text Embeddings Inference.
  case tei
  case huggingFace = "huggingface"
  case replicate
}

/// Everything an answer to a chat request says, apart from its form.
struct Answer: Sendable, Equatable {
  struct ToolCall: Sendable, Equatable {
    /// Eight bytes that make the call's id.
    var id: UInt64
    /// Escaped for JSON.
    var name: [UInt8]
    /// A JSON object, not escaped.
    var arguments: [UInt8]
  }

  /// Numbers the answer and its request; unique within one run and unlikely to repeat in another.
  var id: UInt64
  /// Seconds since 1970.
  var created: Int
  /// Escaped for JSON.
  var model: [UInt8]
  var text: AnswerText
  var toolCalls: [ToolCall] = []
  /// Anthropic's thinking block, Gemini's thought; empty without one.
  var thinking: [UInt8] = []
  /// In the provider's own spelling, escaped.
  var finish: [UInt8]
  var stopSequence: [UInt8]?
  var usage: TokenUsage
  /// Escaped for JSON.
  var serviceTier: [UInt8]
  var choiceCount = 1
  /// Whether a stream ends with the usage chunk that OpenAI sends only when asked.
  var includeUsage = false
  var obfuscates = false
  var host = Host.openAI
  /// The text alone, not a message.
  var isCompletion = false
  /// Whether each token comes with its log probability.
  var logprobs = false
}
