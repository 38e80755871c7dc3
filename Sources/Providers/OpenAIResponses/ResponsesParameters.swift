/// Parameters of a chat in the words of the Responses API. What OpenAI has only there (`reasoning`, `text`,
/// `truncation`, `max_tool_calls`, …) passes as it is.
struct ResponsesParameters {
  private let parts: RequestParts

  /// `parts` are without what cannot be said.
  init(_ parts: RequestParts) { self.parts = parts }

  /// Without a counterpart in the Responses API.
  private static let unsayable: Set<String> = [
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "modalities", "n",
    "prediction", "presence_penalty", "seed", "stop", "web_search_options",
  ]

  /// What would put into the input what the request does not hold: neither can a budget know its
  /// length, nor can be told whose it is.
  private static let elsewhere: Set<String> = ["conversation", "previous_response_id"]

  /// Written below, not as they are.
  private static let translated: Set<String> = [
    "background", "include", "logprobs", "max_completion_tokens", "max_tokens", "reasoning",
    "reasoning_effort", "response_format", "store", "stream_options", "text", "tool_choice",
    "tools",
    "verbosity",
  ]

  static func leaveOutUnsayable(of parts: inout RequestParts) throws(Failure) {
    try parts.refuseSeveralAnswers()
    parts.leaveOut(unsayable.union(elsewhere).union(ParameterVocabulary.workersOwn))
    // The bound that budgets rest on has another name.
    parts.leaveOut("max_output_tokens")
  }

  /// Whether the answer is to be a job at the provider.
  static func isBackground(_ params: JSON?, _ options: JSON?) -> Bool {
    params?["background"]?.bool ?? options?["background"]?.bool ?? false
  }

  /// What more than usual is to be in the answer, as JSON strings.
  static func included(_ params: JSON?) -> [String] {
    var names = params?["include"]?.elements.compactMap(\.string) ?? []
    let logprobs = "message.output_text.logprobs"
    if params?["logprobs"]?.bool == true, !names.contains(logprobs) { names.append(logprobs) }
    return names
  }

  /// Writes members into the open object.
  func write(to writer: inout JSONWriter) throws(Failure) {
    let params = parts.request["params"]
    let isBackground = Self.isBackground(params, parts.options)
    if isBackground { writer.member("background", true) }
    // As a chat is not kept there unless it is asked for. A job must be.
    writer.member("store", isBackground || parts.param("store")?.bool == true)
    if let limit = parts.param("max_completion_tokens") ?? parts.param("max_tokens") {
      writer.key("max_output_tokens")
      writer.splice(limit)
    }
    let included =
      parts.param("include") ?? parts.param("logprobs") != nil ? Self.included(params) : []
    if !included.isEmpty {
      writer.key("include")
      writer.beginArray()
      for name in included { writer.string(name) }
      writer.endArray()
    }
    writeMerged("reasoning", ["effort": parts.param("reasoning_effort")], to: &writer)
    try writeText(to: &writer)
    try writeTools(to: &writer)
    if parts.call.stream, let given = parts.param("stream_options")?.members {
      let known = given.filter { $0.key != "include_usage" }
      if !known.isEmpty {
        writer.key("stream_options")
        writer.beginObject()
        for (name, value) in known {
          writer.key(name)
          writer.splice(value)
        }
        writer.endObject()
      }
    }
    for (name, value) in parts.params where !Self.translated.contains(name) {
      writer.key(name)
      writer.splice(value)
    }
  }

  /// An object parameter of the API, with members that have a name of their own in chats.
  private func writeMerged(
    _ name: String, _ additions: [String: JSON?], to writer: inout JSONWriter
  ) {
    let given = parts.param(name)?.members.filter { $0.value.kind != .null } ?? []
    let names = Set(given.map(\.key))
    let added = additions.compactMap { key, value in value.map { (key: key, value: $0) } }
      .filter { !names.contains($0.key) }
    guard !given.isEmpty || !added.isEmpty else { return }
    writer.key(name)
    writer.beginObject()
    for (key, value) in given + added {
      writer.key(key)
      writer.splice(value)
    }
    writer.endObject()
  }

  /// `text`: the form of the answer, and how much of it. A schema is flatter here than in chats.
  private func writeText(to writer: inout JSONWriter) throws(Failure) {
    let format = parts.param("response_format")
    if format != nil, parts.param("text")?["format"] != nil {
      throw Failure(.unsendable, message: "response_format and text.format are one too many")
    }
    let given = parts.param("text")?.members.filter { $0.value.kind != .null } ?? []
    let verbosity = given.contains { $0.key == "verbosity" } ? nil : parts.param("verbosity")
    guard format != nil || verbosity != nil || !given.isEmpty else { return }
    writer.key("text")
    writer.beginObject()
    for (key, value) in given {
      writer.key(key)
      writer.splice(value)
    }
    if let verbosity {
      writer.key("verbosity")
      writer.splice(verbosity)
    }
    if let format {
      writer.key("format")
      if let schema = format["json_schema"] {
        guard schema["name"]?.string != nil, schema["schema"] != nil else {
          throw Failure(.unsendable, message: "response_format.json_schema needs name and schema")
        }
        writer.beginObject()
        writer.member("type", "json_schema")
        for (key, value) in schema.members where value.kind != .null {
          writer.key(key)
          writer.splice(value)
        }
        writer.endObject()
      } else {
        writer.splice(format)
      }
    }
    writer.endObject()
  }

  private func writeTools(to writer: inout JSONWriter) throws(Failure) {
    if let tools = parts.param("tools")?.elements, !tools.isEmpty {
      writer.key("tools")
      writer.beginArray()
      for tool in tools { Self.writeFlat(tool, isDefinition: true, to: &writer) }
      writer.endArray()
    }
    guard let choice = parts.param("tool_choice") else { return }
    writer.key("tool_choice")
    guard let allowed = choice["allowed_tools"] else { return Self.writeFlat(choice, to: &writer) }
    writer.beginObject()
    writer.member("type", "allowed_tools")
    writer.member("mode", allowed["mode"]?.string ?? "auto")
    writer.key("tools")
    writer.beginArray()
    for tool in allowed["tools"]?.elements ?? [] { Self.writeFlat(tool, to: &writer) }
    writer.endArray()
    writer.endObject()
  }

  /// What is nested in `function` or `custom` in chats lies flat here. Unlike there, a schema of which
  /// nothing is said would be taken for strict.
  private static func writeFlat(
    _ tool: JSON, isDefinition: Bool = false, to writer: inout JSONWriter
  ) {
    let type = tool["type"]?.string ?? "function"
    guard let body = tool["function"] ?? tool["custom"], body.kind == .object else {
      return writer.splice(tool)
    }
    writer.beginObject()
    writer.member("type", type)
    for (key, value) in body.members where value.kind != .null {
      writer.key(key)
      if key == "format", let grammar = value["grammar"] {
        writer.beginObject()
        writer.member("type", "grammar")
        for (name, part) in grammar.members {
          writer.key(name)
          writer.splice(part)
        }
        writer.endObject()
      } else {
        writer.splice(value)
      }
    }
    if type == "function", isDefinition {
      if body["parameters"] == nil {
        writer.key("parameters")
        writer.null()
      }
      if body["strict"] == nil { writer.member("strict", false) }
    }
    writer.endObject()
  }
}
