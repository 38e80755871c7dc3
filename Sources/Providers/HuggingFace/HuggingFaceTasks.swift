/// Bodies of Hugging Face's tasks.
enum HuggingFaceTasks {
  /// Feature extraction, whose parameters stand beside the input.
  static func features(
    _ params: inout ParameterTranslation
  ) throws(Failure) -> [UInt8] {
    var writer = JSONWriter(reserving: params.parts.call.request.count + 64)
    writer.beginObject()
    writer.key("inputs")
    writer.splice(try params.parts.texts())
    for (name, value) in params.takeRest() {
      writer.key(name)
      writer.splice(value)
    }
    writer.endObject()
    return writer.bytes
  }

  /// By the labels of the model, or in zero-shot by `params.labels`.
  static func classification(
    _ params: inout ParameterTranslation
  ) throws(Failure) -> [UInt8] {
    var writer = JSONWriter(reserving: params.parts.call.request.count + 64)
    writer.beginObject()
    writer.member("inputs", try params.parts.text())
    let labels = params.take("labels") ?? params.take("candidate_labels")
    _ = params.take("candidate_labels")
    if let labels {
      guard !labels.elements.isEmpty, labels.elements.allSatisfy({ $0.kind == .string }) else {
        throw Failure(.unsendable, message: "params.labels is an array of at least one text")
      }
    }
    let rest = params.takeRest()
    if labels != nil || !rest.isEmpty {
      writer.key("parameters")
      writer.beginObject()
      if let labels {
        writer.key("candidate_labels")
        writer.splice(labels)
      }
      for (name, value) in rest {
        writer.key(name)
        writer.splice(value)
      }
      writer.endObject()
    }
    writer.endObject()
    return writer.bytes
  }

  /// Sentence similarity: the query against each document.
  static func similarity(
    _ params: inout ParameterTranslation
  ) throws(Failure) -> [UInt8] {
    var writer = JSONWriter(reserving: params.parts.call.request.count + 64)
    writer.beginObject()
    writer.key("inputs")
    writer.beginObject()
    writer.member("source_sentence", try params.parts.text())
    writer.key("sentences")
    try Documents.write(params.take("documents"), to: &writer)
    writer.endObject()
    // Who asked has the documents, and `top_n` is ours to cut.
    _ = (params.take("top_n"), params.take("return_documents"))
    let rest = params.takeRest()
    if !rest.isEmpty {
      writer.key("parameters")
      writer.beginObject()
      for (name, value) in rest {
        writer.key(name)
        writer.splice(value)
      }
      writer.endObject()
    }
    writer.endObject()
    return writer.bytes
  }
}
