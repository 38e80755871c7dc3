/// Parameters on their way into a protocol that does not have all of OpenAI's: what has been written
/// is taken, and what nobody took passes as it is, unless it is a word of OpenAI's, which the provider
/// would not understand.
struct ParameterTranslation {
  private let parts: RequestParts
  private var taken: Set<String> = []
  private var dropped: [String] = []

  init(_ parts: RequestParts) {
    self.parts = parts
  }

  var options: JSON { parts.options }

  /// The parameter, which counts as said.
  mutating func take(_ name: String) -> JSON? {
    taken.insert(name)
    return parts.param(name)
  }

  /// Notes that a parameter was left out, if the request has it.
  mutating func drop(_ name: String) {
    guard parts.param(name) != nil, !dropped.contains(name) else { return }
    taken.insert(name)
    dropped.append(name)
  }

  /// The limit of output tokens, by either name.
  mutating func takeOutputLimit() -> JSON? {
    let older = take("max_tokens")
    return take("max_completion_tokens") ?? older
  }

  /// Stop sequences as an array; nil where there are none.
  mutating func takeStops() -> [JSON]? {
    guard let stop = take("stop") else { return nil }
    return stop.kind == .array ? stop.elements : [stop]
  }

  /// Refuses what would change what an answer is: several of them, sound, functions of the old form.
  mutating func refuseOtherAnswers() throws(Failure) {
    if let n = take("n"), n.int != 1 {
      throw Failure(.unsendable, message: "n must be 1: a generation has one answer")
    }
    if take("functions") != nil || take("function_call") != nil {
      throw Failure(.unsendable, message: "functions and function_call are out of date: use tools")
    }
    let modalities = take("modalities")?.elements ?? []
    if take("audio") != nil || modalities.contains(where: { $0.string != "text" }) {
      throw Failure(.unsendable, message: "this provider answers with text only")
    }
  }

  /// What nobody took and OpenAI does not have: the provider's own parameters. What is left of
  /// OpenAI's is noted as left out.
  mutating func takeRest() -> [(key: String, value: JSON)] {
    var rest: [(key: String, value: JSON)] = []
    for (name, value) in parts.params where !taken.contains(name) {
      if Self.ownMembers.contains(name) { continue }
      if Self.openAI.contains(name) {
        drop(name)
      } else {
        rest.removeAll { $0.key == name }
        rest.append((name, value))
      }
    }
    return rest
  }

  /// The names of what was left out, in the order of the request.
  consuming func finish() throws(Failure) -> [String] {
    dropped
  }

  /// Written by the dialects themselves, or meant for Martlet; an encoding changes nothing but bytes.
  private static let ownMembers: Set<String> = [
    "model", "messages", "input", "inputs", "prompt", "stream", "stream_options",
    "encoding_format", "strict",
  ]

  /// OpenAI's parameters, of chats, completions and embeddings.
  private static let openAI: Set<String> = [
    "audio", "best_of", "dimensions", "echo", "frequency_penalty", "function_call", "functions",
    "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "metadata", "modalities",
    "moderation", "n", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "response_format",
    "safety_identifier", "seed", "service_tier", "stop", "store", "suffix", "temperature",
    "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
  ]
}
