/// Hugging Face's inference, by its router or by an endpoint of one's own. Chats are OpenAI's protocol;
/// everything else is a task of the model: embeddings (feature extraction), completions (text
/// generation), classifications (by the model's labels, or by `params.labels` in zero-shot) and reranks
/// (sentence similarity). Facts are from the types of `huggingface_hub` 2.4.0.
///
/// Options: `dedicated` (true: the base URL is an endpoint with one model, and tasks are sent to the base
/// itself; otherwise to `{base}/hf-inference/models/{model}`), `pooling` (`mean`, the default, or
/// `cls`: how vectors of tokens become one of the text), `grammar` (true: `response_format` is said as
/// a grammar, as servers that run Text Generation Inference want it), `auth`, and those of the dialect
/// `openai` for chats.
package enum HuggingFace: Dialect {
  package static let name = "huggingface"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    var params = ParameterTranslation(try RequestParts(call))
    let body: [UInt8]
    var pipeline = ""
    switch call.kind {
    case .chat:
      let isGrammar = params.options["grammar"]?.bool == true
      return try isGrammar ? GrammarFormat.chat(chat(call)) : OpenAI.request(for: chat(call))
    case .completion:
      body = try TextGenerationParameters.body(&params, flag: call.stream)
    case .embedding:
      pipeline = "/pipeline/feature-extraction"
      body = try HuggingFaceTasks.features(&params)
    case .classification:
      body = try HuggingFaceTasks.classification(&params)
    case .rerank:
      pipeline = "/pipeline/sentence-similarity"
      body = try HuggingFaceTasks.similarity(&params)
    default:
      throw Failure(.unsendable, message: "the dialect huggingface has no \(call.kind.rawValue)")
    }
    if params.options["dedicated"]?.bool == true {
      return try params.parts.post(path: "", body: body)
    }
    let path = "/hf-inference/models/" + (try pathOfModel(call.model)) + pipeline
    return try params.parts.post(base: base(call), path: path, body: body)
  }

  package static func reader(for call: Call) -> any ResponseReader {
    switch call.kind {
    case .chat: OpenAI.reader(for: chat(call))
    case .embedding: AnswerReader(EmbeddingsAnswer(to: call), for: call)
    case .classification: AnswerReader(LabelsAnswer(), for: call)
    case .rerank: AnswerReader(RanksAnswer(to: call), for: call)
    default: AnswerReader(TextGenerationAnswer(), for: call)
    }
  }

  /// The base without the `/v1` that clients of OpenAI's protocol want.
  private static func base(_ call: Call) -> Substring {
    var base = Substring(call.baseURL)
    while base.hasSuffix("/") { base.removeLast() }
    return base.hasSuffix("/v1") ? base.dropLast(3) : base
  }

  private static func chat(_ call: Call) -> Call {
    var call = call
    call.baseURL = base(call) + "/v1"
    return call
  }

  /// `owner/name` as a path: nothing in it may lead anywhere else.
  private static func pathOfModel(_ name: String) throws(Failure) -> String {
    let parts = name.split(separator: "/", omittingEmptySubsequences: false)
    guard !parts.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." }) else {
      throw Failure(.unsendable, message: "the model's name is not one of Hugging Face's")
    }
    return parts.map { part in
      part.utf8.reduce(into: "") { path, byte in
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A, 0x2D, 0x2E, 0x5F, 0x7E:
          path.unicodeScalars.append(Unicode.Scalar(byte))
        default:
          path += byte < 16 ? "%0" : "%"
          path += String(byte, radix: 16, uppercase: true)
        }
      }
    }.joined(separator: "/")
  }
}
