/// Messages of a chat, as a host wants them that speaks like OpenAI.
///
/// They go out as they are, but for the members that Martlet put into answers: an app may hand an
/// `output_message` back, and OpenAI refuses members that it does not know. Hosts without the role
/// `developer` get `system` instead. For models without system messages their text is put before the
/// next text of the user.
struct OpenAIMessages {
  private let variant: OpenAIVariant
  /// System text that waits for the user's next message.
  private var waiting: [String] = []

  static func write(
    _ messages: JSON, for variant: OpenAIVariant, to writer: inout JSONWriter
  ) throws(Failure) {
    let elements = messages.elements
    guard elements.contains(where: { needsChange($0, variant) }) else {
      return writer.splice(messages)
    }
    var messages = OpenAIMessages(variant: variant)
    writer.beginArray()
    for (at, element) in elements.enumerated() {
      try messages.write(element, "messages[\(at)]", to: &writer)
    }
    messages.writeWaiting(to: &writer)
    writer.endArray()
  }

  private init(variant: OpenAIVariant) {
    self.variant = variant
  }

  private static func needsChange(_ message: JSON, _ variant: OpenAIVariant) -> Bool {
    if AssistantMessage.ownMembers.contains(where: { message.member(named: $0) != nil }) {
      return true
    }
    switch message["role"]?.string {
    case "developer": return !variant.hasDeveloperRole || !variant.hasSystemRole
    case "system": return !variant.hasSystemRole
    default: return false
    }
  }

  private mutating func write(
    _ message: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    guard message.kind == .object else { return writer.splice(message) }
    let role = message["role"]?.string
    if !variant.hasSystemRole, role == "system" || role == "developer" {
      waiting.append(try text(of: message, place))
      return
    }
    if role == "assistant" { writeWaiting(to: &writer) }
    let takesWaiting = role == "user" && !waiting.isEmpty
    writer.beginObject()
    for (name, value) in message.members where !AssistantMessage.ownMembers.contains(name) {
      writer.key(name)
      if name == "role", role == "developer", !variant.hasDeveloperRole {
        writer.string("system")
      } else if name == "content", takesWaiting {
        writeContent(value, to: &writer)
      } else {
        writer.splice(value)
      }
    }
    if let member = variant.reasoningMember, message.member(named: member) == nil,
      let reasoning = message["reasoning"], message["tool_calls"] != nil
    {
      writer.key(member)
      writer.splice(reasoning)
    }
    writer.endObject()
  }

  /// The user's content behind what waits.
  private mutating func writeContent(_ content: JSON, to writer: inout JSONWriter) {
    let before = waiting.joined(separator: "\n\n")
    waiting = []
    if let text = content.string { return writer.string(before + "\n\n" + text) }
    writer.beginArray()
    writePart(before, to: &writer)
    for part in content.elements { writer.splice(part) }
    writer.endArray()
  }

  /// What waits, as a message of its own.
  private mutating func writeWaiting(to writer: inout JSONWriter) {
    guard !waiting.isEmpty else { return }
    writer.beginObject()
    writer.member("role", "user")
    writer.member("content", waiting.joined(separator: "\n\n"))
    writer.endObject()
    waiting = []
  }

  private func writePart(_ text: String, to writer: inout JSONWriter) {
    writer.beginObject()
    writer.member("type", "text")
    writer.member("text", text)
    writer.endObject()
  }

  private func text(of message: JSON, _ place: String) throws(Failure) -> String {
    guard let content = message["content"] else { return "" }
    if let text = content.string { return text }
    let texts = content.elements.compactMap { $0.string ?? $0["text"]?.string }
    guard texts.count == content.elements.count else {
      throw Failure(
        .unsendable, message: "\(place) holds more than text, which no system prompt can")
    }
    return texts.joined(separator: "\n\n")
  }
}
