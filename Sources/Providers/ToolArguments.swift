/// The arguments of a call in a conversation: JSON text in OpenAI's form, an object in others'.
enum ToolArguments {
  /// Writes the object. What is none (a model wrote it, or was cut off while it did) goes as a text in
  /// one: the model is told by the call's result what is wrong with it, and the conversation goes on.
  /// The member's name is the one that Anthropic's documentation has for it.
  static func write(_ arguments: JSON?, to writer: inout JSONWriter) {
    let text = arguments?.string ?? ""
    if let object = JSON(Array(text.utf8)), object.kind == .object { return writer.copy(object) }
    writer.beginObject()
    if !text.allSatisfy(\.isWhitespace) { writer.member("INVALID_JSON", text) }
    writer.endObject()
  }
}
