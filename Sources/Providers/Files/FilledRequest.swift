/// Puts files into the messages that refer to them, in OpenAI's forms, which the dialects translate.
package enum FilledRequest {
  /// The request without `files`, with the contents in place of references. `contents` are by
  /// `RequestFile.key`; a reference that is not among them stays as it is.
  package static func fill(
    _ request: [UInt8], with contents: [String: FileContent]
  ) throws(Failure) -> [UInt8] {
    guard let json = JSON(request), json.kind == .object else {
      throw Failure(.unsendable, message: "the request is not a JSON object")
    }
    let size = contents.values.reduce(request.count) { $0 + $1.bytes.count / 3 * 4 }
    var writer = JSONWriter(reserving: size + 4_096)
    writer.beginObject()
    for (name, value) in json.members where name != "files" {
      writer.key(name)
      if ["messages", "input"].contains(name), value.kind == .array {
        writer.beginArray()
        for message in value.elements { write(message, contents, to: &writer) }
        writer.endArray()
      } else {
        writer.splice(value)
      }
    }
    writer.endObject()
    return writer.bytes
  }

  private static func write(
    _ message: JSON, _ contents: [String: FileContent], to writer: inout JSONWriter
  ) {
    guard message.kind == .object else { return writer.splice(message) }
    writer.beginObject()
    for (name, value) in message.members {
      writer.key(name)
      if name == "content", value.kind == .array {
        writer.beginArray()
        for part in value.elements {
          if !fill(part, contents, &writer) { writer.splice(part) }
        }
        writer.endArray()
      } else {
        writer.splice(value)
      }
    }
    writer.endObject()
  }

  /// False: the part refers to none of the files.
  private static func fill(
    _ part: JSON, _ contents: [String: FileContent], _ writer: inout JSONWriter
  ) -> Bool {
    func content(_ reference: String?) -> FileContent? { reference.flatMap { contents[$0] } }
    switch part["type"]?.string {
    case "artifact":
      guard let file = content(part["artifact"]?.string?.lowercased()) else { return false }
      write(file, cacheControl: part["cache_control"], to: &writer)
    case "image_url":
      guard let file = content(part["image_url"]?["url"]?.string) else { return false }
      write(part, member: "image_url", field: "url", asURL: true, file, to: &writer)
    case "input_audio":
      guard let file = content(part["input_audio"]?["data"]?.string) else { return false }
      write(part, member: "input_audio", field: "data", asURL: false, file, to: &writer)
    case "file":
      guard let file = content(part["file"]?["file_data"]?.string) else { return false }
      write(part, member: "file", field: "file_data", asURL: true, file, to: &writer)
    default:
      return false
    }
    return true
  }

  /// A part of OpenAI's form whose address is replaced by the content.
  private static func write(
    _ part: JSON, member: String, field: String, asURL: Bool, _ file: FileContent,
    to writer: inout JSONWriter
  ) {
    writer.beginObject()
    for (name, value) in part.members {
      writer.key(name)
      guard name == member else {
        writer.splice(value)
        continue
      }
      writer.beginObject()
      for (inner, value) in value.members {
        writer.key(inner)
        if inner == field {
          writer.string(asURL ? dataURL(file) : "", base64: file.bytes)
        } else {
          writer.splice(value)
        }
      }
      if !asURL, value["format"] == nil { writer.member("format", audioFormat(file.mediaType)) }
      writer.endObject()
    }
    writer.endObject()
  }

  /// The form that a file of this type has in a message.
  private static func write(
    _ file: FileContent, cacheControl: JSON?, to writer: inout JSONWriter
  ) {
    writer.beginObject()
    switch file.mediaType.prefix(while: { $0 != "/" }) {
    case "image":
      writer.member("type", "image_url")
      writer.key("image_url")
      writer.beginObject()
      writer.key("url")
      writer.string(dataURL(file), base64: file.bytes)
      writer.endObject()
    case "audio":
      writer.member("type", "input_audio")
      writer.key("input_audio")
      writer.beginObject()
      writer.key("data")
      writer.string("", base64: file.bytes)
      writer.member("format", audioFormat(file.mediaType))
      writer.endObject()
    case "text":
      writer.member("type", "text")
      writer.member("text", String(decoding: file.bytes, as: UTF8.self))
    default:
      writer.member("type", "file")
      writer.key("file")
      writer.beginObject()
      writer.member("filename", file.name ?? "file.\(subtype(file.mediaType))")
      writer.key("file_data")
      writer.string(dataURL(file), base64: file.bytes)
      writer.endObject()
    }
    if let cacheControl {
      writer.key("cache_control")
      writer.splice(cacheControl)
    }
    writer.endObject()
  }

  private static func dataURL(_ file: FileContent) -> String { "data:\(file.mediaType);base64," }

  private static func subtype(_ mediaType: String) -> Substring {
    let subtype = mediaType.drop { $0 != "/" }.dropFirst()
    return subtype.hasPrefix("x-") ? subtype.dropFirst(2) : subtype
  }

  /// OpenAI knows `wav` and `mp3`; others by the name of their type.
  private static func audioFormat(_ mediaType: String) -> String {
    switch subtype(mediaType) {
    case "wav", "wave", "vnd.wave": "wav"
    case "mpeg", "mp3": "mp3"
    case let other: String(other)
    }
  }
}
