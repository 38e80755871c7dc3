/// Messages in OpenAI's chat form, said in Anthropic's: system and developer messages leave the
/// conversation for `system`, tool calls become `tool_use` blocks, results of tools become
/// `tool_result` blocks of the user's next turn.
struct AnthropicConversation {
  /// Text blocks.
  private(set) var system: [[UInt8]] = []
  /// The array of messages.
  private(set) var messages: [UInt8] = []

  init(_ given: JSON) throws(Failure) {
    var writer = JSONWriter(reserving: given.raw.count + 256)
    var count = 0
    writer.beginArray()
    let elements = given.elements
    var at = 0
    while at < elements.count {
      let message = elements[at]
      let place = "messages[\(at)]"
      at += 1
      switch message["role"]?.string {
      case "system", "developer":
        try readSystem(message, place)
        continue
      case "user":
        writer.beginObject()
        writer.member("role", "user")
        try AnthropicContent.write(message, place, to: &writer)
        writer.endObject()
      case "assistant":
        writer.beginObject()
        writer.member("role", "assistant")
        try AnthropicContent.writeAssistant(message, place, to: &writer)
        writer.endObject()
      case "tool":
        // The results of parallel calls belong into one turn.
        writer.beginObject()
        writer.member("role", "user")
        writer.key("content")
        writer.beginArray()
        try AnthropicContent.writeToolResult(message, place, to: &writer)
        while at < elements.count, elements[at]["role"]?.string == "tool" {
          try AnthropicContent.writeToolResult(elements[at], "messages[\(at)]", to: &writer)
          at += 1
        }
        writer.endArray()
        writer.endObject()
      case let role:
        throw Failure(
          .unsendable,
          message:
            "\(place) has \(role.map { "the role \"\($0)\"" } ?? "no role"), which Anthropic's "
            + "API cannot say")
      }
      count += 1
    }
    writer.endArray()
    guard count > 0 else {
      throw Failure(
        .unsendable, message: "Anthropic's API needs a message beside the system prompt")
    }
    messages = writer.bytes
  }

  private mutating func readSystem(_ message: JSON, _ place: String) throws(Failure) {
    guard let content = message["content"] else { return }
    let parts = content.kind == .array ? content.elements : [content]
    for part in parts {
      guard let text = part.string ?? part["text"]?.string else {
        throw Failure(
          .unsendable, message: "\(place) holds more than text, which no system prompt can")
      }
      guard !text.isEmpty else { continue }
      var writer = JSONWriter(reserving: text.utf8.count + 32)
      AnthropicContent.writeText(text, cacheControl: part["cache_control"], to: &writer)
      system.append(writer.bytes)
    }
  }
}
