/// Text Embeddings Inference's own API: `POST {base}/embed`, `/rerank` and `/predict`. Facts are from
/// its router's types (`router/src/http/types.rs`, `ResponseMetadata`). Bodies are bare arrays; the
/// count of tokens is in the header `x-compute-tokens`.
///
/// Option: `auth`. One server has one model and does one of the three; the model's name is not sent.
package enum TextEmbeddings: Dialect {
  package static let name = "tei"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let parts = try RequestParts(call)
    var params = ParameterTranslation(parts)
    var writer = JSONWriter(reserving: call.request.count + 128)
    writer.beginObject()
    let path: String
    switch call.kind {
    case .embedding:
      path = "/embed"
      writer.key("inputs")
      writer.splice(try parts.texts())
      write("dimensions", params.take("dimensions"), to: &writer)
    case .rerank:
      path = "/rerank"
      writer.member("query", try parts.text())
      writer.key("texts")
      try Documents.write(params.take("documents"), to: &writer)
      // Who asked has the texts, and `top_n` is ours to cut.
      _ = (params.take("top_n"), params.take("return_documents"), params.take("return_text"))
    case .classification:
      path = "/predict"
      guard params.take("labels") == nil else {
        throw Failure(
          .unsendable,
          message: "Text Embeddings Inference has the labels of its model, and takes none")
      }
      writer.member("inputs", try parts.text())
    default:
      throw Failure(.unsendable, message: "the dialect tei has no \(call.kind.rawValue)")
    }
    for (name, value) in params.takeRest() { write(name, value, to: &writer) }
    writer.endObject()
    return try params.parts.post(path: path, body: writer.bytes)
  }

  package static func reader(for call: Call) -> any ResponseReader {
    switch call.kind {
    case .classification: AnswerReader(LabelsAnswer(), for: call)
    case .rerank: AnswerReader(RanksAnswer(to: call), for: call)
    default: AnswerReader(EmbeddingsAnswer(to: call), for: call)
    }
  }

  private static func write(_ name: String, _ value: JSON?, to writer: inout JSONWriter) {
    guard let value else { return }
    writer.key(name)
    writer.splice(value)
  }
}
