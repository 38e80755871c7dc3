/// The wire protocols that go over HTTP. The `local` dialect is not among them: `LocalAnswers`
/// answers without a request.
package enum Dialects {
  /// The dialect of `ai.providers.dialect`; nil for a name that this build does not speak.
  package static func named(_ name: String) -> (any Dialect.Type)? {
    switch name {
    case OpenAI.name: OpenAI.self
    case OpenAIResponses.name: OpenAIResponses.self
    case Replicate.name: Replicate.self
    case AnthropicMessages.name: AnthropicMessages.self
    case Ollama.name: Ollama.self
    case TextGeneration.name: TextGeneration.self
    case TextEmbeddings.name: TextEmbeddings.self
    case HuggingFace.name: HuggingFace.self
    case Gemini.name: Gemini.self
    case Custom.name: Custom.self
    default: nil
    }
  }
}
