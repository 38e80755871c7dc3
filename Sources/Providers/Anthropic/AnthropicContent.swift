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

  /// Writes the member `content` of an assistant's message: thinking first, then what was said, then the
  /// calls; thinking that came behind some of these, behind as much of them, since Anthropic demands it back
  /// in its place. What another API sealed of its reasoning stays away.
  static func writeAssistant(
    _ message: JSON, _ place: String, to writer: inout JSONWriter
  ) throws(Failure) {
    if message["function_call"] != nil {
      throw Failure(.unsendable, message: "\(place).function_call is out of date: use tool_calls")
    }
    writer.key("content")
    writer.beginArray()
    let text = message["content"]?.string?.unicodeScalars
    var said = 0
    let calls = message["tool_calls"]?.elements ?? []
    var called = 0
    for block in message["thinking_blocks"]?.elements ?? []
    where block["type"]?.string != "reasoning" {
      if let after = block["after"] {
        if let text, let end = after["characters"]?.int, end > said {
          let piece = String(String.UnicodeScalarView(text.dropFirst(said).prefix(end - said)))
          // The API refuses text of nothing but space; so it stays with what follows.
          if piece.contains(where: { !$0.isWhitespace }) {
            writeText(piece, cacheControl: nil, to: &writer)
            said = end
          }
        }
        let end = min(after["tool_calls"]?.int ?? 0, calls.count)
        while called < end {
          try writeToolUse(calls[called], "\(place).tool_calls[\(called)]", to: &writer)
          called += 1
        }
      }
      writeThinking(block, to: &writer)
    }
    if let text, said > 0 {
      let rest = String(String.UnicodeScalarView(text.dropFirst(said)))
      if rest.contains(where: { !$0.isWhitespace }) {
        writeText(rest, cacheControl: nil, to: &writer)
      }
    } else if let content = message["content"] {
      let parts = content.kind == .array ? content.elements : [content]
      try writeParts(parts, place, to: &writer)
    }
    if let refusal = message["refusal"]?.string, !refusal.isEmpty {
      writeText(refusal, cacheControl: nil, to: &writer)
    }
    while called < calls.count {
      try writeToolUse(calls[called], "\(place).tool_calls[\(called)]", to: &writer)
      called += 1
    }
    writer.endArray()
  }

  /// A block as it came.
  private static func writeThinking(_ block: JSON, to writer: inout JSONWriter) {
    guard block["after"] != nil else { return writer.splice(block) }
    writer.beginObject()
    for (name, value) in block.members where name != "after" {
      writer.key(name)
      writer.splice(value)
    }
    writer.endObject()
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
