/// Messages of a chat as items of a response's input. Parts that already are the Responses API's
/// (`input_text`, `input_image`, …) pass as they are.
enum ResponsesInput {
  static func write(_ messages: JSON, to writer: inout JSONWriter) throws(Failure) {
    var customCalls: Set<String> = []
    writer.beginArray()
    for (number, message) in messages.elements.enumerated() {
      let place = "messages[\(number)]"
      switch message["role"]?.string {
      case "assistant":
        try writeAssistant(message, place, &customCalls, to: &writer)
      case "tool":
        try writeToolResult(message, place, customCalls, to: &writer)
      case let role? where ["system", "developer", "user"].contains(role):
        writer.beginObject()
        writer.member("type", "message")
        writer.member("role", role)
        try writeContent(message["content"], "content", place, to: &writer)
        writer.endObject()
      case let role:
        throw Failure(
          .unsendable, message: "\(place) has the role \"\((role ?? "").prefix(50))\"")
      }
    }
    writer.endArray()
  }

  /// Reasoning that can be handed back, what was said, then the calls: the order in which it came.
  private static func writeAssistant(
    _ message: JSON, _ place: String, _ customCalls: inout Set<String>, to writer: inout JSONWriter
  ) throws(Failure) {
    for block in message["thinking_blocks"]?.elements ?? []
    where block["type"]?.string == "reasoning" { writer.splice(block) }
    let text = said(message)
    if !text.isEmpty {
      writer.beginObject()
      writer.member("type", "message")
      writer.member("role", "assistant")
      writer.member("content", text)
      writer.endObject()
    }
    for (position, call) in (message["tool_calls"]?.elements ?? []).enumerated() {
      let custom = call["custom"]
      guard let id = call["id"]?.string, let body = custom ?? call["function"],
        let name = body["name"]?.string
      else {
        throw Failure(
          .unsendable, message: "\(place).tool_calls[\(position)] has no id or no name")
      }
      if custom != nil { customCalls.insert(id) }
      writer.beginObject()
      writer.member("type", custom == nil ? "function_call" : "custom_tool_call")
      writer.member("call_id", id)
      writer.member("name", name)
      if custom == nil {
        writer.member("arguments", body["arguments"]?.string ?? "{}")
      } else {
        writer.member("input", body["input"]?.string ?? "")
      }
      writer.endObject()
    }
  }

  private static func said(_ message: JSON) -> String {
    var text = ""
    if let content = message["content"] {
      if content.kind == .array {
        for part in content.elements {
          text += part["text"]?.string ?? part["refusal"]?.string ?? part.string ?? ""
        }
      } else {
        text = content.string ?? ""
      }
    }
    return text + (message["refusal"]?.string ?? "")
  }

  private static func writeToolResult(
    _ message: JSON, _ place: String, _ customCalls: Set<String>, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let id = message["tool_call_id"]?.string else {
      throw Failure(.unsendable, message: "\(place) has no tool_call_id")
    }
    writer.beginObject()
    writer.member(
      "type", customCalls.contains(id) ? "custom_tool_call_output" : "function_call_output")
    writer.member("call_id", id)
    try writeContent(message["content"], "output", place, to: &writer)
    writer.endObject()
  }

  private static func writeContent(
    _ content: JSON?, _ key: String, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    writer.key(key)
    guard let content, content.kind == .array else { return writer.string(content?.string ?? "") }
    writer.beginArray()
    for part in content.elements { try writePart(part, place, to: &writer) }
    writer.endArray()
  }

  private static func writePart(
    _ part: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    if let text = part.string {
      writer.beginObject()
      writer.member("type", "input_text")
      writer.member("text", text)
      return writer.endObject()
    }
    guard part.kind == .object else {
      throw Failure(.unsendable, message: "\(place) has a part that is neither text nor an object")
    }
    switch part["type"]?.string {
    case "text", "refusal":
      writer.beginObject()
      writer.member("type", "input_text")
      writer.member("text", part["text"]?.string ?? part["refusal"]?.string ?? "")
      writer.endObject()
    case "image_url":
      guard let url = part["image_url"]?["url"]?.string ?? part["image_url"]?.string else {
        throw Failure(.unsendable, message: "\(place) has an image_url without url")
      }
      writer.beginObject()
      writer.member("type", "input_image")
      writer.member("detail", part["image_url"]?["detail"]?.string ?? "auto")
      writer.member("image_url", url)
      writer.endObject()
    case "file":
      writer.beginObject()
      writer.member("type", "input_file")
      for (name, value) in part["file"]?.members ?? [] where value.kind != .null {
        writer.key(name)
        writer.splice(value)
      }
      writer.endObject()
    case "input_audio", "input_text", "input_image", "input_file":
      writer.splice(part)
    case let type:
      throw Failure(
        .unsendable,
        message:
          "\(place) has a part of type \"\((type ?? "").prefix(50))\", which the Responses API "
          + "cannot say")
    }
  }
}
