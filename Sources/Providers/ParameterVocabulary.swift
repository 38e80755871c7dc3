/// The names that `params` has for what an app may ask of a model: OpenAI's, after the types of the
/// official Python SDK, `openai` 3.52.0. A dialect that is not OpenAI's translates some, leaves the
/// others out, and takes any other name for a word of its own protocol.
enum ParameterVocabulary {
  /// Of a chat, but for those that have a column of their own or are the worker's.
  static let chat: Set<String> = [
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n",
    "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "response_format",
    "safety_identifier", "seed", "service_tier", "stop", "store", "temperature", "tool_choice",
    "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
  ]

  /// Of a completion, beside those of a chat.
  static let completion: Set<String> = ["best_of", "echo", "suffix"]

  /// Of an embedding.
  static let embedding: Set<String> = ["dimensions", "encoding_format", "user"]

  /// The bound of an answer's length, which budgets rest on: never left out for a model.
  static let limits: Set<String> = ["max_completion_tokens", "max_tokens"]

  /// Set by the worker, or by a column of the row; whoever puts them into `params` is not obeyed.
  static let workersOwn: Set<String> = ["model", "messages", "input", "prompt", "stream"]

  /// Whether a value asks for what is the case without it, so that leaving it out changes nothing.
  static func asksForNothing(_ name: String, _ value: JSON) -> Bool {
    if workersOwn.contains(name) { return true }
    switch name {
    case "frequency_penalty", "presence_penalty":
      return value.double == 0
    case "logprobs", "store", "echo":
      return value.bool == false
    case "logit_bias", "metadata":
      return value.kind == .object && value.members.isEmpty
    case "tools":
      return value.kind == .array && value.elements.isEmpty
    case "n", "best_of":
      return value.int == 1
    case "modalities":
      return value.kind == .array && value.elements.allSatisfy { $0.string == "text" }
    case "response_format":
      return value["type"]?.string == "text"
    case "service_tier":
      return value.string == "auto"
    default:
      return false
    }
  }
}
