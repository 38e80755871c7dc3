/// Requests of `POST {base}/chat/completions`.
enum OpenAIChat {
  /// Parameters that the dialect sets itself.
  private static let own: Set<String> = [
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens",
  ]

  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let parts = try RequestParts(call)
    let messages = try parts.messages()
    if let n = parts.param("n"), n.int != 1 {
      throw Failure(.unsendable, message: "n must be 1: a generation has one answer")
    }
    var writer = JSONWriter(reserving: call.request.count + 256)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("messages")
    write(messages, to: &writer)
    for (name, value) in parts.params where !own.contains(name) {
      writer.key(name)
      writer.splice(value)
    }
    if let limit = parts.param("max_completion_tokens") ?? parts.param("max_tokens") {
      writer.key(parts.options["max_tokens_param"]?.string ?? "max_completion_tokens")
      writer.splice(limit)
    }
    writer.member("stream", call.stream)
    if call.stream { writeStreamOptions(parts, to: &writer) }
    writer.endObject()
    return try parts.post(
      path: "/chat/completions", auth: "bearer", ownHeaders: [], body: writer.bytes)
  }

  /// Without `include_usage` no stream says what it cost.
  private static func writeStreamOptions(_ parts: RequestParts, to writer: inout JSONWriter) {
    let includeUsage = parts.options["include_usage"]?.bool ?? true
    let given = parts.param("stream_options")?.members.filter { $0.key != "include_usage" } ?? []
    guard includeUsage || !given.isEmpty else { return }
    writer.key("stream_options")
    writer.beginObject()
    if includeUsage { writer.member("include_usage", true) }
    for (name, value) in given {
      writer.key(name)
      writer.splice(value)
    }
    writer.endObject()
  }

  /// Messages go out as they are, but for the members that Martlet put into answers: an app may hand
  /// an `output_message` back, and OpenAI refuses members that it does not know.
  private static func write(_ messages: JSON, to writer: inout JSONWriter) {
    let elements = messages.elements
    guard
      elements.contains(where: {
        $0["reasoning"] ?? $0["thinking_blocks"] ?? $0["thought_signatures"]
          ?? $0["native_finish_reason"] != nil
      })
    else { return writer.splice(messages) }
    writer.beginArray()
    for message in elements {
      guard message.kind == .object else {
        writer.splice(message)
        continue
      }
      writer.beginObject()
      for (name, value) in message.members where !AssistantMessage.ownMembers.contains(name) {
        writer.key(name)
        writer.splice(value)
      }
      writer.endObject()
    }
    writer.endArray()
  }
}
