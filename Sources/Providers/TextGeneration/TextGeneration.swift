/// Text Generation Inference's own API: `POST {base}/generate` and `/generate_stream` for completions,
/// and for chats its `/v1/chat/completions`, which is OpenAI's. Facts are from the types of
/// `huggingface_hub` 2.4.0 and from TGI's router (`router/src/server.rs`).
///
/// Options: `auth`, and those of the dialect `openai` for chats. One server has one model; the model's
/// name is sent with chats only.
package enum TextGeneration: Dialect {
  package static let name = "tgi"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    switch call.kind {
    case .chat:
      return try GrammarFormat.chat(chat(call))
    case .completion:
      var params = ParameterTranslation(try RequestParts(call))
      let body = try TextGenerationParameters.body(&params)
      return try params.parts.post(
        path: call.stream ? "/generate_stream" : "/generate", body: body)
    default:
      throw Failure(.unsendable, message: "the dialect tgi has no \(call.kind.rawValue)")
    }
  }

  package static func reader(for call: Call) -> any ResponseReader {
    switch call.kind {
    case .chat: OpenAI.reader(for: chat(call))
    default: AnswerReader(TextGenerationAnswer(), for: call)
    }
  }

  /// The same call, said to TGI's counterpart of OpenAI's API.
  private static func chat(_ call: Call) -> Call {
    var call = call
    while call.baseURL.hasSuffix("/") { call.baseURL.removeLast() }
    if !call.baseURL.hasSuffix("/v1") { call.baseURL += "/v1" }
    return call
  }
}
