/// Parameters in OpenAI's vocabulary, said in Anthropic's.
///
/// What shapes an answer in a way that Anthropic's API does not have (`n`, `logprobs`, audio,
/// `json_object`, …) is refused. Hints and bookkeeping without a counterpart are left out, as
/// Anthropic's own OpenAI-compatible endpoint does. What OpenAI does not have (`thinking`, `top_k`,
/// `cache_control`, …) passes as it is.
struct AnthropicParameters {
  private let parts: RequestParts
  private let version: String

  init(_ parts: RequestParts, version: String) {
    self.parts = parts
    self.version = version
  }

  /// OpenAI's parameters that are translated below, or mean nothing here.
  private static let known: Set<String> = [
    "model", "messages", "system", "stream", "stream_options", "max_tokens",
    "max_completion_tokens",
    "n", "logprobs", "top_logprobs", "modalities", "audio", "functions", "function_call",
    "web_search_options", "response_format", "reasoning_effort", "output_config", "stop",
    "stop_sequences", "temperature", "top_p", "top_k", "tools", "tool_choice",
    "parallel_tool_calls", "user", "safety_identifier", "metadata", "service_tier", "thinking",
    // Without counterpart.
    "frequency_penalty", "presence_penalty", "logit_bias", "seed", "store", "verbosity",
    "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "moderation",
  ]

  /// Writes members into the open object.
  func write(to writer: inout JSONWriter) throws(Failure) {
    try refuseUnsayable()
    writer.key("max_tokens")
    if let limit = parts.param("max_completion_tokens") ?? parts.param("max_tokens") {
      writer.splice(limit)
    } else {
      writer.int(parts.options["max_output_tokens"]?.int ?? 4_096)
    }
    if let stop = parts.param("stop") ?? parts.param("stop_sequences") {
      writer.key("stop_sequences")
      if stop.kind == .string {
        writer.beginArray()
        writer.splice(stop)
        writer.endArray()
      } else {
        writer.splice(stop)
      }
    }
    writeSampling(to: &writer)
    try AnthropicTools(parts).write(to: &writer)
    try writeOutput(to: &writer)
    writeIdentity(to: &writer)
    for (name, value) in parts.params where !Self.known.contains(name) {
      writer.key(name)
      writer.splice(value)
    }
  }

  private func refuseUnsayable() throws(Failure) {
    func refuse(_ what: String) -> Failure {
      Failure(.unsendable, message: "Anthropic's API has no \(what)")
    }
    if let n = parts.param("n"), n.int != 1 {
      throw Failure(.unsendable, message: "n must be 1: a generation has one answer")
    }
    if parts.param("logprobs")?.bool == true || parts.param("top_logprobs") != nil {
      throw refuse("log probabilities (logprobs)")
    }
    if parts.param("audio") != nil
      || parts.param("modalities")?.elements.contains(where: { $0.string != "text" }) ?? false
    {
      throw refuse("modality but text")
    }
    if parts.param("functions") != nil || parts.param("function_call") != nil {
      throw refuse("functions parameter; use tools")
    }
    if parts.param("web_search_options") != nil {
      throw refuse("web_search_options; use its web search tool")
    }
  }

  /// Temperatures reach to 1 here and to 2 in OpenAI's API; beyond 1 they count as 1.
  private func writeSampling(to writer: inout JSONWriter) {
    guard version < "2026-10-21" else { return }
    if let temperature = parts.param("temperature") {
      writer.key("temperature")
      if let value = temperature.double, value > 1 {
        writer.int(1)
      } else {
        writer.splice(temperature)
      }
    }
    for name in ["top_p", "top_k"] {
      guard let value = parts.param(name) else { continue }
      writer.key(name)
      writer.splice(value)
    }
  }

  /// `output_config` and `thinking`: what the app gave in Anthropic's own words comes first.
  private func writeOutput(to writer: inout JSONWriter) throws(Failure) {
    let given = parts.param("output_config")
    var effort = parts.param("reasoning_effort")?.string
    if let thinking = parts.param("thinking") {
      writer.key("thinking")
      writer.splice(thinking)
    } else if effort == "none" {
      writer.key("thinking")
      writer.beginObject()
      writer.member("type", "disabled")
      writer.endObject()
    }
    if effort == "none" || given?["effort"] != nil { effort = nil }
    let schema = given?["format"] == nil ? try self.schema() : nil
    guard given != nil || effort != nil || schema != nil else { return }
    writer.key("output_config")
    writer.beginObject()
    for (name, value) in given?.members ?? [] where value.kind != .null {
      writer.key(name)
      writer.splice(value)
    }
    if let effort { writer.member("effort", effort == "minimal" ? "low" : effort) }
    if let schema {
      writer.key("format")
      writer.beginObject()
      writer.member("type", "json_schema")
      writer.key("schema")
      writer.splice(schema)
      writer.endObject()
    }
    writer.endObject()
  }

  private func schema() throws(Failure) -> JSON? {
    guard let format = parts.param("response_format") else { return nil }
    switch format["type"]?.string {
    case "text":
      return nil
    case "json_schema":
      guard let schema = format["json_schema"]?["schema"] else {
        throw Failure(.unsendable, message: "response_format.json_schema has no schema")
      }
      return schema
    default:
      throw Failure(
        .unsendable,
        message: "Anthropic's API knows no response_format but text and json_schema")
    }
  }

  private func writeIdentity(to writer: inout JSONWriter) {
    let user =
      parts.param("user")?.string ?? parts.param("safety_identifier")?.string
      ?? parts.param("metadata")?["user_id"]?.string
    if let user {
      writer.key("metadata")
      writer.beginObject()
      writer.member("user_id", user)
      writer.endObject()
    }
    switch parts.param("service_tier")?.string {
    case "auto", "priority", "fast": writer.member("service_tier", "auto")
    case "default", "standard_only": writer.member("service_tier", "standard_only")
    default: break
    }
  }
}
