/// Messages in OpenAI's chat form, said in Ollama's: one text a message with its images as base64
/// beside it, the arguments of tools as objects, the results of tools by the name of the tool.
enum OllamaMessages {
  /// Writes the member `messages`.
  static func write(_ given: JSON, to writer: inout JSONWriter) throws(Failure) {
    var tools: [String: String] = [:]
    writer.key("messages")
    writer.beginArray()
    for (number, message) in given.elements.enumerated() {
      let place = "messages[\(number)]"
      writer.beginObject()
      switch message["role"]?.string {
      case "system", "developer":
        writer.member("role", "system")
        try writeContent(message["content"], place, to: &writer)
      case "user":
        writer.member("role", "user")
        try writeContent(message["content"], place, to: &writer)
      case "assistant":
        writer.member("role", "assistant")
        try writeAssistant(message, place, &tools, to: &writer)
      case "tool":
        writer.member("role", "tool")
        try writeContent(message["content"], place, to: &writer)
        guard let id = message["tool_call_id"]?.string else {
          throw Failure(.unsendable, message: "\(place) has no tool_call_id")
        }
        if let name = tools[id] { writer.member("tool_name", name) }
        writer.member("tool_call_id", id)
      case let role:
        throw Failure(
          .unsendable,
          message: "\(place) has \(role.map { "the role \"\($0)\"" } ?? "no role"), which Ollama "
            + "does not know")
      }
      writer.endObject()
    }
    writer.endArray()
  }

  private static func writeAssistant(
    _ message: JSON, _ place: String, _ tools: inout [String: String], to writer: inout JSONWriter
  ) throws(Failure) {
    if message["function_call"] != nil {
      throw Failure(.unsendable, message: "\(place).function_call is out of date: use tool_calls")
    }
    let refusal = message["refusal"].flatMap { $0.kind == .string ? $0 : nil }
    try writeContent(message["content"] ?? refusal, place, to: &writer)
    if let reasoning = message["reasoning"]?.string, !reasoning.isEmpty {
      writer.member("thinking", reasoning)
    }
    guard let calls = message["tool_calls"]?.elements, !calls.isEmpty else { return }
    writer.key("tool_calls")
    writer.beginArray()
    for (number, call) in calls.enumerated() {
      guard let name = call["function"]?["name"]?.string else {
        throw Failure(
          .unsendable, message: "\(place).tool_calls[\(number)] is not the call of a function")
      }
      writer.beginObject()
      if let id = call["id"]?.string {
        tools[id] = name
        writer.member("id", id)
      }
      writer.key("function")
      writer.beginObject()
      writer.member("name", name)
      writer.key("arguments")
      ToolArguments.write(call["function"]?["arguments"], to: &writer)
      writer.endObject()
      writer.endObject()
    }
    writer.endArray()
  }

  /// Writes `content` and, where there are any, `images`.
  private static func writeContent(
    _ content: JSON?, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let content, content.kind == .array else {
      return writer.member("content", content?.string ?? "")
    }
    var texts: [String] = []
    var images: [Substring] = []
    for part in content.elements {
      switch part["type"]?.string {
      case "text", "refusal":
        texts.append(part["text"]?.string ?? part["refusal"]?.string ?? "")
      case "image_url":
        let url = part["image_url"]?["url"]?.string ?? part["image_url"]?.string
        guard let data = url.flatMap(DataURL.init) else {
          throw Failure(
            .unsendable,
            message: "\(place) has an image that is not a data: URL with base64, and Ollama "
              + "fetches none")
        }
        images.append(data.base64)
      case let type:
        guard let text = part.string else {
          throw Failure(
            .unsendable,
            message: "\(place) has a part of type \"\(type ?? "")\", which Ollama does not know")
        }
        texts.append(text)
      }
    }
    writer.member("content", texts.joined(separator: "\n"))
    guard !images.isEmpty else { return }
    writer.key("images")
    writer.beginArray()
    for image in images { writer.string(String(image)) }
    writer.endArray()
  }
}
