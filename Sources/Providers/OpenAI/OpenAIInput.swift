/// What the input of an image or a transcription says: a text, or messages with files.
struct OpenAIInput {
  /// The texts of the last message of the user, in lines.
  var text = ""
  var files: [InlineFile] = []

  init(_ parts: RequestParts) throws(Failure) {
    guard let input = parts.request["input"] else {
      throw Failure(.unsendable, message: "the request has no input")
    }
    if let text = input.string {
      self.text = text
      return
    }
    guard let message = input.elements.last(where: { $0["role"]?.string == "user" }) else {
      throw Failure(.unsendable, message: "the request has no message of a user")
    }
    guard let content = message["content"], content.kind == .array else {
      text = message["content"]?.string ?? ""
      return
    }
    var texts: [String] = []
    for part in content.elements {
      if part["type"]?.string == "text" {
        texts.append(part["text"]?.string ?? "")
      } else if let file = InlineFile(part) {
        files.append(file)
      } else {
        throw Failure(.unsendable, message: "the request has a file that is not inline")
      }
    }
    text = texts.joined(separator: "\n")
  }
}
