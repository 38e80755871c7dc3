/// How a host that speaks like OpenAI differs from it: the option `variant` names one, and single
/// options go over what it says. What a host does not take is after the types of its own SDK (groq 1.7.0,
/// together 3.1.1, mistralai 3.7.0) or of its source (vLLM), and otherwise after its documentation.
struct OpenAIVariant: Sendable {
  /// The name under which the bound of an answer's length is sent.
  var limit = "max_completion_tokens"
  /// How the secret travels: `bearer`, or the name of a header.
  var auth = "bearer"
  /// Whether a stream must be asked for its usage; where false, it comes by itself, or the member
  /// `stream_options` would be refused.
  var asksForUsage = true
  /// Whether it knows the role `developer`. Where not, such messages go as `system`.
  var hasDeveloperRole = true
  /// Whether its models take system messages at all. Where not, their text joins the user's.
  var hasSystemRole = true
  /// The member of an assistant's message in which reasoning is wanted back beside calls of tools.
  var reasoningMember: String?
  /// Parameters that it does not take.
  var unsupported: Set<String> = []
  /// Parameters that it has under another name.
  var renamed: [String: String] = [:]
  /// Service tiers that it calls otherwise; nil for those that it has not.
  var tiers: [String: String?] = [:]
  /// Whether `stop` must be an array.
  var wantsStopList = false
  /// Whether `logprobs` is a number, that of the alternatives.
  var countsLogprobs = false
  /// Whether `json_schema` is known to `response_format`.
  var hasSchemas = true
  /// Whether embeddings may be asked for a format.
  var hasEncodingFormat = true
  /// Azure's: the deployment is in the path, and a version in the query.
  var hasDeployments = false

  /// The one that a call's options describe. Throws for a name that is none.
  static func of(_ parts: RequestParts) throws(Failure) -> OpenAIVariant {
    let options = parts.options
    var variant = OpenAIVariant()
    if let name = options["variant"]?.string {
      guard let known = named[name] else {
        throw Failure(
          .unsendable,
          message: "the option variant is none of \(named.keys.sorted().joined(separator: ", "))")
      }
      variant = known
    }
    if let limit = options["max_tokens_param"]?.string { variant.limit = limit }
    if let asks = options["include_usage"]?.bool { variant.asksForUsage = asks }
    if let has = options["developer_role"]?.bool { variant.hasDeveloperRole = has }
    if let has = options["system_role"]?.bool { variant.hasSystemRole = has }
    if let member = options["reasoning_member"]?.string { variant.reasoningMember = member }
    for (name, other) in options["rename_params"]?.members ?? [] {
      variant.renamed[name] = other.string
    }
    if options["api_version"]?.string != nil { variant.hasDeployments = true }
    return variant
  }

  /// Leaves out what the host does not take.
  func leaveOutUnsupported(of parts: inout RequestParts) {
    if !unsupported.isEmpty { parts.leaveOut(unsupported) }
    if let tier = parts.param("service_tier")?.string, case .some(.none) = tiers[tier] {
      parts.leaveOut("service_tier")
    }
    if !hasSchemas, parts.param("response_format")?["type"]?.string == "json_schema" {
      parts.leaveOut("response_format")
    }
  }

  /// Path and query behind the base URL of an endpoint such as `/chat/completions`. Azure has two
  /// forms: a base that ends in `/v1` is like OpenAI's, with `api-version` where the option names one;
  /// any other is followed by the deployment, which is the model's name on the wire.
  func path(_ endpoint: String, _ parts: RequestParts) throws(Failure) -> String {
    guard hasDeployments else { return endpoint }
    var base = Substring(parts.call.baseURL)
    while base.hasSuffix("/") { base.removeLast() }
    let version = parts.options["api_version"]?.string
    let query = version.map { "?api-version=" + Self.encoded($0) } ?? ""
    if base.hasSuffix("/v1") { return endpoint + query }
    guard version != nil else {
      throw Failure(
        .unsendable,
        message:
          "Azure's deployments need the option api_version; a base URL that ends in /v1 does not"
      )
    }
    return "/deployments/" + Self.encoded(parts.call.model) + endpoint + query
  }

  /// Everything but the unreserved characters of RFC 3986 in percent encoding.
  private static func encoded(_ text: String) -> String {
    var result = ""
    for byte in text.utf8 {
      switch byte {
      case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, 0x2D, 0x2E, 0x5F, 0x7E:
        result.unicodeScalars.append(Unicode.Scalar(byte))
      default:
        result += "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
      }
    }
    return result
  }

  /// Those that `variant` may name.
  static let named: [String: OpenAIVariant] = [
    "openai": OpenAIVariant(), "azure": azure, "deepseek": deepSeek, "groq": groq,
    "mistral": mistral, "openrouter": openRouter, "together": together, "vllm": vLLM,
  ]

  private static func allBut(_ taken: Set<String>) -> Set<String> {
    ParameterVocabulary.chat.union(ParameterVocabulary.completion).subtracting(taken)
      .subtracting(ParameterVocabulary.limits).subtracting(["n"])
  }

  private static var azure: OpenAIVariant {
    var variant = OpenAIVariant()
    variant.auth = "api-key"
    variant.hasDeployments = true
    return variant
  }

  private static var deepSeek: OpenAIVariant {
    var variant = OpenAIVariant()
    variant.limit = "max_tokens"
    variant.hasDeveloperRole = false
    variant.hasSchemas = false
    variant.reasoningMember = "reasoning_content"
    variant.unsupported = allBut([
      "frequency_penalty", "logprobs", "presence_penalty", "reasoning_effort", "response_format",
      "stop", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "echo", "suffix",
    ])
    return variant
  }

  private static var groq: OpenAIVariant {
    var variant = OpenAIVariant()
    variant.hasDeveloperRole = false
    variant.tiers = ["default": "on_demand", "priority": "performance", "scale": nil as String?]
    variant.unsupported = allBut([
      "function_call", "functions", "parallel_tool_calls", "reasoning_effort", "response_format",
      "seed", "service_tier", "stop", "temperature", "tool_choice", "tools", "top_p", "user",
    ])
    return variant
  }

  private static var mistral: OpenAIVariant {
    var variant = OpenAIVariant()
    variant.limit = "max_tokens"
    variant.asksForUsage = false
    variant.hasDeveloperRole = false
    variant.renamed = ["seed": "random_seed", "dimensions": "output_dimension"]
    variant.tiers = [
      "default": "standard_only", "flex": nil as String?, "priority": nil as String?,
      "scale": nil as String?,
    ]
    variant.unsupported = allBut([
      "frequency_penalty", "logprobs", "metadata", "parallel_tool_calls", "prediction",
      "presence_penalty", "prompt_cache_key", "reasoning_effort", "response_format", "seed",
      "service_tier", "stop", "suffix", "temperature", "tool_choice", "tools", "top_logprobs",
      "top_p",
    ])
    return variant
  }

  private static var openRouter: OpenAIVariant {
    var variant = OpenAIVariant()
    variant.limit = "max_tokens"
    variant.reasoningMember = "reasoning"
    return variant
  }

  private static var together: OpenAIVariant {
    var variant = OpenAIVariant()
    variant.limit = "max_tokens"
    variant.hasDeveloperRole = false
    variant.wantsStopList = true
    variant.countsLogprobs = true
    variant.hasEncodingFormat = false
    variant.unsupported = allBut([
      "echo", "frequency_penalty", "function_call", "logit_bias", "logprobs", "presence_penalty",
      "reasoning_effort", "response_format", "seed", "stop", "temperature", "tool_choice", "tools",
      "top_logprobs", "top_p",
    ])
    return variant
  }

  /// It ignores what it does not know; that is named all the same.
  private static var vLLM: OpenAIVariant {
    var variant = OpenAIVariant()
    variant.limit = "max_tokens"
    variant.hasDeveloperRole = false
    variant.unsupported = allBut([
      "echo", "frequency_penalty", "logit_bias", "logprobs", "parallel_tool_calls",
      "presence_penalty", "reasoning_effort", "response_format", "seed", "stop", "suffix",
      "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
    ])
    return variant
  }
}
