/// A file that lies in a message, decoded: for endpoints that take the bytes themselves.
struct InlineFile {
  var mediaType: String
  var name: String
  var bytes: [UInt8]

  /// nil: the part is none, or refers to a file instead of holding it.
  init?(_ part: JSON) {
    switch part["type"]?.string {
    case "image_url":
      self.init(dataURL: part["image_url"]?["url"]?.string, name: "image")
    case "file":
      self.init(dataURL: part["file"]?["file_data"]?.string, name: "file")
      if let given = part["file"]?["filename"]?.string { name = given }
    case "input_audio":
      guard let bytes = part["input_audio"]?["data"]?.string.flatMap(Base64.bytes) else {
        return nil
      }
      let format = part["input_audio"]?["format"]?.string ?? "wav"
      self.init(
        mediaType: format == "mp3" ? "audio/mpeg" : "audio/\(format)", name: "audio.\(format)",
        bytes: bytes)
    default:
      return nil
    }
  }

  private init(mediaType: String, name: String, bytes: [UInt8]) {
    self.mediaType = mediaType
    self.name = name
    self.bytes = bytes
  }

  private init?(dataURL: String?, name: String) {
    guard let dataURL, dataURL.hasPrefix("data:"), let comma = dataURL.firstIndex(of: ","),
      dataURL[..<comma].hasSuffix(";base64"),
      let bytes = Base64.bytes(String(dataURL[dataURL.index(after: comma)...]))
    else { return nil }
    let type = dataURL[..<comma].dropFirst(5).prefix { $0 != ";" }
    self.init(
      mediaType: String(type), name: "\(name).\(Self.ending(of: type))", bytes: bytes)
  }

  /// Providers tell formats by the ending of the file's name.
  private static func ending(of type: Substring) -> Substring {
    switch type {
    case "audio/mpeg": "mp3"
    case "audio/mp4", "audio/x-m4a": "m4a"
    case "image/jpeg": "jpg"
    default:
      type.drop { $0 != "/" }.dropFirst().split(separator: "-").last ?? "bin"
    }
  }
}

/// The type of an image by its first bytes; nil for what is none of the known ones.
func imageType(of bytes: [UInt8]) -> String? {
  func begins(_ text: [UInt8], at start: Int = 0) -> Bool {
    bytes.dropFirst(start).starts(with: text)
  }
  if begins([0x89, 0x50, 0x4E, 0x47]) { return "image/png" }
  if begins([0xFF, 0xD8, 0xFF]) { return "image/jpeg" }
  if begins(Array("GIF8".utf8)) { return "image/gif" }
  if begins(Array("RIFF".utf8)), begins(Array("WEBP".utf8), at: 8) { return "image/webp" }
  if begins(Array("<svg".utf8)) { return "image/svg+xml" }
  return nil
}
