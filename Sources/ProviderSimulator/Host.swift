import NIOHTTP1

/// A host that speaks like OpenAI with deviations of its own. The first part of the path names it, before
/// the path as that host has it: `/groq/openai/v1/chat/completions`.
package enum Host: String, Sendable, Equatable, CaseIterable {
  case openAI = "openai"
  case azure, cohere, deepseek, groq, mistral, openrouter, together, vllm

  /// The host and the path as OpenAI has it; `nil` for paths without a host.
  static func find(_ path: Substring) -> (host: Host, path: String)? {
    let rest = path.dropFirst()
    guard path.first == "/", let slash = rest.firstIndex(of: "/"),
      let host = Host(rawValue: String(rest[..<slash])), host != .openAI
    else { return nil }
    let own = rest[slash...]
    switch host {
    case .azure:
      if let deployment = own.afterPrefix("/openai/deployments/"),
        let end = deployment.firstIndex(of: "/")
      {
        return (host, "/v1" + deployment[end...])
      }
      return own.afterPrefix("/openai/v1").map { (host, "/v1" + $0) }
    case .cohere: return own.afterPrefix("/v2").map { (host, "/v1" + $0) }
    // Its documentation has the base without a version, and takes one with.
    case .deepseek: return (host, "/v1" + (own.afterPrefix("/v1") ?? own))
    case .groq: return own.afterPrefix("/openai/v1").map { (host, "/v1" + $0) }
    case .openrouter: return own.afterPrefix("/api/v1").map { (host, "/v1" + $0) }
    case .mistral, .together, .vllm: return own.afterPrefix("/v1").map { (host, "/v1" + $0) }
    case .openAI: return nil
    }
  }

  /// Whether requests come without a key.
  var isOpen: Bool { self == .vllm }

  /// The header that carries the key instead of `authorization`.
  var keyHeader: String? { self == .azure ? "api-key" : nil }

  /// The member that carries reasoning; `nil` where it stays with the host.
  var reasoningMember: StaticString? {
    switch self {
    case .deepseek: "reasoning_content"
    case .groq, .openrouter, .together, .vllm: "reasoning"
    case .openAI, .azure, .cohere, .mistral: nil
    }
  }

  /// Whether a stream ends with usage without being asked for it: in its last choice.
  var alwaysReportsUsage: Bool {
    switch self {
    case .groq, .mistral, .openrouter, .together: true
    default: false
    }
  }

  /// Members of a request's body that it refuses; `nil`: it takes any.
  var knownMembers: Set<String>? {
    switch self {
    case .mistral:
      [
        "model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop", "random_seed",
        "metadata", "response_format", "tools", "tool_choice", "presence_penalty",
        "frequency_penalty", "n", "prediction", "parallel_tool_calls", "reasoning_effort",
        "prompt_mode", "prompt_cache_key", "service_tier", "safe_prompt", "guardrails",
        "min_tokens",
        "repetition_penalty", "top_k", "logprobs", "top_logprobs", "input", "output_dimension",
        "output_dtype", "encoding_format",
      ]
    default: nil
    }
  }

  /// Members that it knows and does not support.
  var refusedMembers: Set<String> {
    self == .groq ? ["logprobs", "top_logprobs", "logit_bias"] : []
  }

  /// Roles of messages that it refuses.
  var refusesDeveloper: Bool {
    switch self {
    case .openAI, .azure, .openrouter: false
    default: true
    }
  }
}

extension Substring {
  fileprivate func afterPrefix(_ prefix: String) -> Substring? {
    hasPrefix(prefix) ? dropFirst(prefix.count) : nil
  }
}

extension Responder {
  /// Throws the host's own error for members of the body that it does not take.
  func checkMembers(
    _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) {
    let host = context.host
    guard host.knownMembers != nil || !host.refusedMembers.isEmpty else { return }
    let names = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try BodyMembers(bytes).names
    }
    if let known = host.knownMembers, let name = names.first(where: { !known.contains($0) }) {
      throw ProviderFailure(
        .openAI, status: 422, message: "Extra inputs are not permitted", param: name)
    }
    if let name = names.first(where: host.refusedMembers.contains) {
      throw ProviderFailure(
        .openAI, status: 400, message: "property '\(name)' is not supported by this model",
        param: name)
    }
  }
}

/// Names of the members of a body.
struct BodyMembers {
  var names: [String] = []

  init(_ body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    var scanner = JSONScanner(body)
    var names: [String] = []
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      names.append(scanner.text(key))
      try scanner.skip()
    }
    self.names = names
  }
}
