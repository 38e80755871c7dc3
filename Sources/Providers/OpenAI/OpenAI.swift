/// OpenAI's API and everything that speaks like it: Chat Completions, Completions, Embeddings,
/// Moderations, and Rerank as its compatible hosts have it, by the kind of the call. Facts are from the
/// types of the official Python SDK, `openai` 3.52.0.
///
/// Options: `variant` (a host's deviations, `OpenAIVariant`), `auth` (how the secret travels; `bearer` by
/// default), `api_version` (Azure's), `max_tokens_param` (the name under which the output limit is sent),
/// `include_usage` (false where a server rejects `stream_options`), `developer_role`, `reasoning_member`,
/// `rename_params` (`{"seed": "random_seed"}`).
package enum OpenAI: Dialect {
  package static let name = "openai"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    switch call.kind {
    case .chat: try OpenAIChat.request(for: call)
    case .completion: try OpenAICompletions.request(for: call)
    case .moderation: try OpenAIModeration.request(for: call)
    case .rerank: try OpenAIRerank.request(for: call)
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
    case .moderation: AnswerReader(OpenAIModerationAnswer(), for: call)
    case .rerank: AnswerReader(OpenAIRerankAnswer(to: call), for: call)
    default: AnswerReader(OpenAIChatAnswer(to: call), for: call)
    }
  }
}
