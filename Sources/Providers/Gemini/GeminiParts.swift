/// Gathers the parts of one turn.
struct PartWriter {
  /// JSON objects.
  private(set) var parts: [[UInt8]] = []
  /// Nothing but text so far.
  private(set) var areText = true
  /// Goes with the next text.
  var signature: String?

  /// Adds a text, unless it is empty: the API refuses those.
  mutating func add(text: String) {
    guard !text.isEmpty else { return }
    var writer = JSONWriter(reserving: text.utf8.count + 32)
    writer.beginObject()
    writer.member("text", text)
    if let signature { writer.member("thoughtSignature", signature) }
    signature = nil
    writer.endObject()
    parts.append(writer.bytes)
  }

  /// Adds a part of another kind, whose members `write` writes.
  mutating func add<E>(_ write: (inout JSONWriter) throws(E) -> Void) throws(E) {
    var writer = JSONWriter()
    writer.beginObject()
    try write(&writer)
    writer.endObject()
    parts.append(writer.bytes)
    areText = false
  }
}

/// The contents of messages, from OpenAI's parts to Gemini's. Parts that have no `type` are taken for
/// Gemini's own (such as `fileData` or `executableCode`) and pass as they are.
enum GeminiParts {
  static func write(
    _ content: JSON?, _ place: String, to parts: inout PartWriter
  ) throws(Failure) {
    guard let content else { return }
    for part in content.kind == .array ? content.elements : [content] {
      if let text = part.string {
        parts.add(text: text)
        continue
      }
      switch part["type"]?.string {
      case "text", "refusal":
        parts.add(text: part["text"]?.string ?? part["refusal"]?.string ?? "")
      case "image_url":
        guard let url = part["image_url"]?["url"]?.string ?? part["image_url"]?.string else {
          throw Failure(.unsendable, message: "\(place) has an image_url without url")
        }
        try write(url, mediaType: nil, place, to: &parts)
      case "input_audio":
        guard let data = part["input_audio"]?["data"]?.string else {
          throw Failure(.unsendable, message: "\(place) has an input_audio without data")
        }
        let format = part["input_audio"]?["format"]?.string ?? "wav"
        write("inlineData", "audio/\(format)", "data", data, to: &parts)
      case "file":
        let file = part["file"]
        guard let url = file?["file_data"]?.string ?? file?["file_id"]?.string else {
          throw Failure(.unsendable, message: "\(place) has a file without file_data and file_id")
        }
        try write(
          url, mediaType: file?["filename"]?.string.flatMap(MediaTypes.guess), place, to: &parts)
      case nil where part.kind == .object && !part.members.isEmpty:
        parts.add { writer in
          for (name, value) in part.members {
            writer.key(name)
            writer.splice(value)
          }
        }
      case let type:
        throw Failure(
          .unsendable,
          message: "\(place) has a part of type \"\(type ?? "")\", which Gemini's API cannot say")
      }
    }
  }

  /// The text of a tool's result, which holds nothing else.
  static func text(of content: JSON?, _ place: String) throws(Failure) -> String {
    guard let content else { return "" }
    var text = ""
    for part in content.kind == .array ? content.elements : [content] {
      guard let more = part.string ?? part["text"]?.string else {
        throw Failure(.unsendable, message: "\(place) holds more than text, which no result can")
      }
      text += more
    }
    return text
  }

  /// A `data:` URL with base64 goes along; anything else is an address that the provider reads.
  private static func write(
    _ url: String, mediaType: String?, _ place: String, to parts: inout PartWriter
  ) throws(Failure) {
    guard url.utf8.starts(with: "data:".utf8) else {
      guard url.utf8.contains(UInt8(ascii: ":")) else {
        throw Failure(
          .unsendable, message: "\(place) names a file of another provider; send its file_data")
      }
      write("fileData", mediaType ?? MediaTypes.guess(url), "fileUri", url, to: &parts)
      return
    }
    guard let data = DataURL(url) else {
      throw Failure(.unsendable, message: "\(place) has a data: URL that is not base64")
    }
    write("inlineData", String(data.mediaType), "data", String(data.base64), to: &parts)
  }

  private static func write(
    _ name: String, _ mediaType: String?, _ key: String, _ value: String,
    to parts: inout PartWriter
  ) {
    parts.add { writer in
      writer.key(name)
      writer.beginObject()
      if let mediaType { writer.member("mimeType", mediaType) }
      writer.member(key, value)
      writer.endObject()
    }
  }
}

/// Media types by the ends of names, of what models take.
enum MediaTypes {
  private static let known = [
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp",
    "gif": "image/gif", "heic": "image/heic", "heif": "image/heif", "pdf": "application/pdf",
    "txt": "text/plain", "csv": "text/csv", "html": "text/html", "md": "text/markdown",
    "json": "application/json", "mp3": "audio/mp3", "wav": "audio/wav", "flac": "audio/flac",
    "ogg": "audio/ogg", "aac": "audio/aac", "mp4": "video/mp4", "webm": "video/webm",
    "mov": "video/mov",
  ]

  /// The media type of a file's name or URL; nil where its end says nothing.
  static func guess(_ name: String) -> String? {
    let path = name.prefix { $0 != "?" && $0 != "#" }
    guard let dot = path.utf8.lastIndex(of: UInt8(ascii: ".")) else { return nil }
    return known[path[path.utf8.index(after: dot)...].lowercased()]
  }
}
