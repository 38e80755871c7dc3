/// Ollama's own API: `POST {base}/api/chat`, `/api/generate` and `/api/embed`. Streams are lines of
/// JSON. Facts are from the types of the official Python SDK, `ollama` 0.6.3, and from Ollama's
/// `api/types.go`.
///
/// Options: `options` (an object of Ollama's own model options, such as `{"num_ctx": 8192}`; a
/// request's parameters go over it), `keep_alive` (how long the model stays loaded, such as `"10m"`;
/// Ollama's default of five minutes otherwise), `auth`.
package enum Ollama: Dialect {
  package static let name = "ollama"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let parts = try RequestParts(call)
    var translation = ParameterTranslation(parts)
    var writer = JSONWriter(reserving: call.request.count + 256)
    writer.beginObject()
    writer.member("model", call.model)
    let path: String
    switch call.kind {
    case .chat:
      path = "/api/chat"
      try OllamaMessages.write(parts.messages(), to: &writer)
      try OllamaParameters.writeChat(&translation, to: &writer)
    case .completion:
      path = "/api/generate"
      writer.member("prompt", try parts.text())
      try OllamaParameters.writeCompletion(&translation, to: &writer)
    case .embedding:
      path = "/api/embed"
      writer.key("input")
      writer.splice(try parts.texts())
      try OllamaParameters.writeEmbedding(&translation, to: &writer)
    default:
      throw Failure(.unsendable, message: "the dialect ollama has no \(call.kind.rawValue)")
    }
    if call.kind != .embedding { writer.member("stream", call.stream) }
    writer.endObject()
    return try translation.parts.post(
      path: parts.path(path, after: "/api"), streamType: "application/x-ndjson", body: writer.bytes)
  }

  package static func reader(for call: Call) -> any ResponseReader {
    switch call.kind {
    case .embedding: AnswerReader(EmbeddingsAnswer(to: call), for: call)
    default: AnswerReader(OllamaAnswer(), for: call)
    }
  }
}
