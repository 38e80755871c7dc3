/// Parameters in OpenAI's vocabulary, said in Anthropic's. Those without a counterpart are left out
/// and named as dropped. What OpenAI does not have (`thinking`, `top_k`, `cache_control`, …) passes as
/// it is.
struct AnthropicParameters {
  private let parts: RequestParts

  /// `parts` are without what cannot be said.
  init(_ parts: RequestParts) {
    self.parts = parts
  }

  /// OpenAI's parameters that are translated below.
  private static let translated: Set<String> = [
    "max_tokens", "max_completion_tokens", "n", "response_format", "reasoning_effort", "stop",
    "temperature", "top_p", "tools", "tool_choice", "parallel_tool_calls", "user",
    "safety_identifier", "metadata", "service_tier",
  ]

  /// Anthropic's own that are written below, not as they are.
  private static let own: Set<String> = [
    "stop_sequences", "output_config", "thinking", "top_k",
  ]

  private static let known = ParameterVocabulary.chat.union(own).union(["stream_options"])
    .union(ParameterVocabulary.workersOwn)

  /// Tiers that Anthropic has a word for.
  private static let tiers = ["auto", "priority", "fast", "default", "standard_only"]

  /// Leaves out what the API has no word for. Throws for what would change what is asked:
  /// more than one answer.
  static func leaveOutUnsayable(of parts: inout RequestParts, version: String) throws(Failure) {
    try parts.refuseSeveralAnswers()
    parts.leaveOut(ParameterVocabulary.chat.subtracting(translated))
    // What the system says has its place among the messages.
    parts.leaveOut("system")
    if version >= "2026-10-21" { parts.leaveOut(["temperature", "top_p", "top_k"]) }
    if let format = parts.param("response_format"), format["type"]?.string != "json_schema" {
      parts.leaveOut("response_format")
    }
    if let tier = parts.param("service_tier"), !tiers.contains(tier.string ?? "") {
      parts.leaveOut("service_tier")
    }
    if let metadata = parts.param("metadata"), metadata["user_id"]?.string == nil {
      parts.leaveOut("metadata")
    }
  }

  /// Writes members into the open object.
  func write(to writer: inout JSONWriter) throws(Failure) {
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

  /// Temperatures reach to 1 here and to 2 in OpenAI's API; beyond 1 they count as 1.
  private func writeSampling(to writer: inout JSONWriter) {
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
    guard let schema = format["json_schema"]?["schema"] else {
      throw Failure(.unsendable, message: "response_format.json_schema has no schema")
    }
    return schema
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
