/// The contents of messages, from OpenAI's parts to Anthropic's blocks. Parts that already are
/// Anthropic's (such as `document` or `search_result`) pass as they are, and so does `cache_control`.
enum AnthropicContent {
  /// Writes the member `content` of a user's message.
  static func write(
    _ message: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    writer.key("content")
    guard let content = message["content"], content.kind == .array else {
      return writer.string(message["content"]?.string ?? "")
    }
    writer.beginArray()
    try writeParts(content.elements, place, to: &writer)
    writer.endArray()
  }

  /// Writes the member `content` of an assistant's message: thinking first, as Anthropic demands,
  /// then what was said, then the calls. What another API sealed of its reasoning stays away.
  static func writeAssistant(
    _ message: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    if message["function_call"] != nil {
      throw Failure(.unsendable, message: "\(place).function_call is out of date: use tool_calls")
    }
    writer.key("content")
    writer.beginArray()
    for block in message["thinking_blocks"]?.elements ?? []
    where block["type"]?.string != "reasoning" { writer.splice(block) }
    if let content = message["content"] {
      let parts = content.kind == .array ? content.elements : [content]
      try writeParts(parts, place, to: &writer)
    }
    if let refusal = message["refusal"]?.string, !refusal.isEmpty {
      writeText(refusal, cacheControl: nil, to: &writer)
    }
    for (number, call) in (message["tool_calls"]?.elements ?? []).enumerated() {
      try writeToolUse(call, "\(place).tool_calls[\(number)]", to: &writer)
    }
    writer.endArray()
  }

  static func writeToolResult(
    _ message: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let id = message["tool_call_id"]?.string else {
      throw Failure(.unsendable, message: "\(place) has no tool_call_id")
    }
    writer.beginObject()
    writer.member("type", "tool_result")
    writer.member("tool_use_id", id)
    try write(message, place, to: &writer)
    if let cacheControl = message["cache_control"] {
      writer.key("cache_control")
      writer.splice(cacheControl)
    }
    writer.endObject()
  }

  static func writeText(_ text: String, cacheControl: JSON?, to writer: inout JSONWriter) {
    writer.beginObject()
    writer.member("type", "text")
    writer.member("text", text)
    if let cacheControl {
      writer.key("cache_control")
      writer.splice(cacheControl)
    }
    writer.endObject()
  }

  private static func writeParts(
    _ parts: [JSON], _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    for part in parts {
      if let text = part.string {
        // The API refuses empty text blocks.
        if !text.isEmpty { writeText(text, cacheControl: nil, to: &writer) }
        continue
      }
      switch part["type"]?.string {
      case "text", "refusal":
        let text = part["text"]?.string ?? part["refusal"]?.string ?? ""
        if !text.isEmpty { writeText(text, cacheControl: part["cache_control"], to: &writer) }
      case "image_url":
        try writeImage(part, place, to: &writer)
      case "file":
        try writeFile(part, place, to: &writer)
      case "input_audio", nil:
        throw Failure(
          .unsendable,
          message:
            "\(place) has a part of type \"\(part["type"]?.string ?? "")\", which Anthropic's "
            + "API cannot say")
      default:
        writer.splice(part)
      }
    }
  }

  private static func writeImage(
    _ part: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let url = part["image_url"]?["url"]?.string ?? part["image_url"]?.string else {
      throw Failure(.unsendable, message: "\(place) has an image_url without url")
    }
    try writeBlock("image", part, url, title: nil, place, to: &writer)
  }

  private static func writeFile(
    _ part: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let data = part["file"]?["file_data"]?.string else {
      throw Failure(
        .unsendable, message: "\(place) names a file of another provider; send its file_data")
    }
    let title = part["file"]?["filename"]?.string
    try writeBlock("document", part, data, title: title, place, to: &writer)
  }

  /// An image or document from a `data:` URL with base64, or from a URL that the provider fetches.
  private static func writeBlock(
    _ type: String, _ part: JSON, _ url: String, title: String?, _ place: String,
    to writer: inout JSONWriter
  ) throws(Failure) {
    writer.beginObject()
    writer.member("type", type)
    if let title { writer.member("title", title) }
    writer.key("source")
    writer.beginObject()
    if url.utf8.starts(with: "data:".utf8) {
      guard let comma = url.utf8.firstIndex(of: UInt8(ascii: ",")),
        case let media = url[..<comma].dropFirst(5), media.lowercased().hasSuffix(";base64"),
        let end = media.utf8.firstIndex(of: UInt8(ascii: ";"))
      else {
        throw Failure(.unsendable, message: "\(place) has a data: URL that is not base64")
      }
      writer.member("type", "base64")
      writer.member("media_type", String(media[..<end]))
      writer.member("data", String(url[url.utf8.index(after: comma)...]))
    } else if url.prefix(8).lowercased().hasPrefix("http") {
      writer.member("type", "url")
      writer.member("url", url)
    } else {
      throw Failure(.unsendable, message: "\(place) has a URL that is neither data: nor http(s):")
    }
    writer.endObject()
    if let cacheControl = part["cache_control"] {
      writer.key("cache_control")
      writer.splice(cacheControl)
    }
    writer.endObject()
  }

  private static func writeToolUse(
    _ call: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let function = call["function"], let name = function["name"]?.string,
      let id = call["id"]?.string
    else {
      throw Failure(.unsendable, message: "\(place) is not the call of a function with id and name")
    }
    writer.beginObject()
    writer.member("type", "tool_use")
    writer.member("id", id)
    writer.member("name", name)
    writer.key("input")
    ToolArguments.write(function["arguments"], to: &writer)
    writer.endObject()
  }
}
