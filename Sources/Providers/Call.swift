/// What an app may ask of a model. The raw values are those of `ai.generations.kind`.
package enum CallKind: String, Sendable, CaseIterable {
  case chat
  case completion
  case embedding
  case classification
  case rerank
  case moderation
  case image
  case transcription
  case speech
}

/// One attempt at one provider, as `ai.worker_claim()` hands it out: everything a dialect needs to
/// write the request, and nothing it would have to decide.
package struct Call: Sendable {
  package var kind: CallKind
  /// Name of the wire protocol: `openai`, `anthropic` or `local`.
  package var dialect: String
  /// Scheme, authority and path prefix without a trailing slash, such as `https://api.openai.com/v1`.
  package var baseURL: String
  /// The value of the provider's secret; nil where the provider needs none.
  package var secret: String?
  /// Headers of the provider's row, sent as they are, after the dialect's own.
  package var headers: [String: String]
  /// The model's name on the wire.
  package var model: String
  /// Whether the answer is to be streamed. Always false but for chats and completions.
  package var stream: Bool
  /// `{"messages": [...], "params": {...}}` for a chat (OpenAI's chat form), or
  /// `{"input": "...", "params": {...}}` for every other kind. The input of an embedding may also be
  /// an array of up to 2,048 texts; that of a moderation, an image or a transcription may be messages
  /// in OpenAI's chat form. UTF-8 JSON, as PostgreSQL printed it.
  package var request: [UInt8]
  /// Options of the provider merged with those of the model, such as
  /// `{"anthropic_version": "2023-06-01"}`. UTF-8 JSON object.
  package var options: [UInt8]
  /// What is left of the call's whole time, in milliseconds; nil: not known.
  package var timeout: Int?

  package init(
    kind: CallKind, dialect: String, baseURL: String, secret: String?, headers: [String: String],
    model: String, stream: Bool, request: [UInt8], options: [UInt8], timeout: Int? = nil
  ) {
    self.kind = kind
    self.dialect = dialect
    self.baseURL = baseURL
    self.secret = secret
    self.headers = headers
    self.model = model
    self.stream = stream
    self.request = request
    self.options = options
    self.timeout = timeout
  }
}

extension Call {
  /// Parts of the names of headers that authenticate.
  private static let secretWords = [
    "auth", "cookie", "credential", "key", "password", "secret", "token",
  ]

  /// What nobody may be told, should the provider quote it: the secret, and the values of headers that
  /// are named as if they held one, whole and without a scheme (`Bearer …`).
  package var secrets: [String] {
    var secrets = secret.map { [$0] } ?? []
    for (name, value) in headers {
      let name = name.lowercased()
      guard Self.secretWords.contains(where: name.contains) else { continue }
      secrets.append(value)
      if let space = value.firstIndex(of: " ") {
        secrets.append(String(value[value.index(after: space)...]))
      }
    }
    // Short ones would be found everywhere.
    return secrets.filter { $0.utf8.count >= 4 }
  }
}
