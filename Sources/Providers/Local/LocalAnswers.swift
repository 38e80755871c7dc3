/// The dialect `local`: two models that are built in and need no network. Both are lexical: they
/// compare letters and words, and know nothing of meaning.
///
/// - `hash` embeds by feature hashing (`FeatureHashing`).
/// - `extract` answers with sentences of the given text (`Extraction`).
///
/// Both count tokens as UTF-8 bytes / 4, rounded up: about right for English, high for none.
package enum LocalAnswers {
  /// The name in `ai.providers.dialect`.
  package static let name = "local"

  /// Answers at once, in time linear in the length of the request. Failures: `unsendable` for a
  /// model, kind or input that cannot be answered.
  package static func answer(_ call: Call) -> Outcome {
    do throws(Failure) {
      switch (call.model, call.kind) {
      case ("hash", .embedding): return .success(try embed(call))
      case ("extract", .chat): return .success(try extract(call))
      default:
        throw Failure(
          .unsendable,
          message: "there is no local model \"\(call.model.prefix(100))\" for the kind "
            + "\(call.kind.rawValue); there are hash for embeddings and extract for chats")
      }
    } catch {
      return .failure(error)
    }
  }

  /// The estimate of tokens in so many bytes of UTF-8.
  static func tokens(_ bytes: Int) -> Int { (bytes + 3) / 4 }

  /// What is asked, without the parameters that the model has no use for.
  private static func parts(
    of call: Call, taking taken: Set<String>
  ) throws(Failure) -> RequestParts {
    var parts = try RequestParts(call)
    parts.leaveOut(
      ParameterVocabulary.chat.union(ParameterVocabulary.embedding).subtracting(taken))
    if parts.isStrict, !parts.dropped.isEmpty { throw Failure(unsupported: parts.dropped) }
    return parts
  }

  private static func embed(_ call: Call) throws(Failure) -> Reply {
    let parts = try parts(of: call, taking: ["dimensions"])
    let (texts, isOne) = try texts(of: parts.request["input"])
    if let wanted = parts.param("dimensions"), wanted.int != FeatureHashing.dimensions {
      throw Failure(
        .unsendable, message: "the local model hash has \(FeatureHashing.dimensions) dimensions")
    }
    var vectors: [[Float]] = []
    var usage = Usage()
    for (index, text) in texts.enumerated() {
      guard let vector = FeatureHashing.vector(of: text) else {
        let which = isOne ? "the text" : "text \(index + 1) of \(texts.count)"
        throw Failure(.unsendable, message: "there is nothing in \(which) that could be embedded")
      }
      vectors.append(vector)
      usage.input += tokens(text.utf8.count)
    }
    var reply = Reply()
    if isOne { reply.embedding = vectors.first } else { reply.embeddings = vectors }
    reply.model = "hash"
    reply.usage = usage
    reply.dropped = parts.dropped
    return reply
  }

  /// The texts of an input; `isOne`: it is one, not in an array.
  private static func texts(of input: JSON?) throws(Failure) -> (texts: [String], isOne: Bool) {
    if let text = input?.string { return ([text], true) }
    let elements = input?.elements ?? []
    let texts = elements.compactMap(\.string)
    guard !texts.isEmpty, texts.count == elements.count else {
      throw Failure(.unsendable, message: "the local model hash embeds a text or several")
    }
    guard texts.count <= OpenAIEmbeddings.maxTexts else {
      throw Failure(
        .unsendable,
        message: "one call embeds at most \(OpenAIEmbeddings.maxTexts) texts, not \(texts.count)")
    }
    return (texts, false)
  }

  private static func extract(_ call: Call) throws(Failure) -> Reply {
    let parts = try parts(of: call, taking: ParameterVocabulary.limits)
    var texts: [Extraction.Message] = []
    var bytes = 0
    for message in try parts.messages().elements {
      let text = text(of: message["content"])
      bytes += text.utf8.count
      texts.append(Extraction.Message(role: message["role"]?.string ?? "user", text: text))
    }
    let limit = parts.param("max_completion_tokens")?.int ?? parts.param("max_tokens")?.int
    let answer = Extraction.answer(to: texts, maxBytes: limit.map { max($0, 1) * 4 })
    var reply = Reply()
    reply.output = answer.text
    var message = AssistantMessage()
    message.content = answer.text
    reply.message = message.json()
    reply.finishReason = answer.isCut ? "length" : "stop"
    reply.model = "extract"
    reply.dropped = parts.dropped
    var usage = Usage()
    usage.input = tokens(bytes)
    usage.output = tokens(answer.text.utf8.count)
    reply.usage = usage
    return reply
  }

  /// Text, or the text parts of an array, a line each.
  private static func text(of content: JSON?) -> String {
    guard let content else { return "" }
    guard content.kind == .array else { return content.string ?? "" }
    return content.elements.compactMap { $0["text"]?.string }.joined(separator: "\n")
  }
}
