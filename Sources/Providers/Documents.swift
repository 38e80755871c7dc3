/// The documents of a rerank: `params.documents`, texts or objects with a `text`.
enum Documents {
  /// Writes them as an array of texts.
  static func write(
    _ documents: JSON?, to writer: inout JSONWriter
  ) throws(Failure) {
    guard let elements = documents?.elements, !elements.isEmpty else {
      throw Failure(.unsendable, message: "a rerank needs params.documents, an array of texts")
    }
    writer.beginArray()
    for (number, element) in elements.enumerated() {
      guard let text = element.kind == .string ? element : element["text"], text.kind == .string
      else {
        throw Failure(.unsendable, message: "params.documents[\(number)] is not a text")
      }
      writer.splice(text)
    }
    writer.endArray()
  }
}
