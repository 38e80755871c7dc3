/// OpenAI's API and everything that speaks like it: Chat Completions and Embeddings, by the kind
/// of the call. Facts are from the types of the official Python SDK, `openai` 3.52.0.
///
/// Options: `auth` (how the secret travels; `bearer` by default), `max_tokens_param` (the name under
/// which the output limit is sent; `max_completion_tokens` by default, `max_tokens` for servers
/// that know only the older one), `include_usage` (false where a server rejects `stream_options`).
package enum OpenAI: Dialect {
  package static let name = "openai"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    switch call.kind {
    case .chat: try OpenAIChat.request(for: call)
    case .embedding: try OpenAIEmbeddings.request(for: call)
    case .image: try OpenAIImages.request(for: call)
    case .transcription: try OpenAITranscriptions.request(for: call)
    case .speech: try OpenAISpeech.request(for: call)
    default: throw Failure(.unsendable, message: "the dialect openai has no \(call.kind.rawValue)")
    }
  }

  package static func reader(for call: Call) -> any ResponseReader {
    switch call.kind {
    case .embedding: AnswerReader(OpenAIEmbeddingAnswer(to: call), for: call)
    case .image: AnswerReader(OpenAIImageAnswer(), for: call)
    case .transcription: OpenAITranscriptionReader(for: call)
    case .speech: OpenAISpeechReader(for: call)
    default: AnswerReader(OpenAIChatAnswer(), for: call)
    }
  }
}
