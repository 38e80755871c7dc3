/// Requests of `POST {base}/completions`, where a text is continued. What comes back is read as a chat
/// is (`OpenAIChatAnswer`): the two differ in where a choice has its text.
enum OpenAICompletions {
  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    var parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    guard let prompt = parts.request["input"], prompt.kind == .string else {
      throw Failure(.unsendable, message: "a completion needs a text")
    }
    try parts.refuseSeveralAnswers()
    variant.leaveOutUnsupported(of: &parts)
    let parameters = OpenAIParameters(
      parts: parts, variant: variant.withLimit("max_tokens", unless: parts.options))
    var writer = JSONWriter(reserving: call.request.count + 256)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("prompt")
    writer.splice(prompt)
    parameters.write(to: &writer)
    writer.member("stream", call.stream)
    if call.stream { parameters.writeStreamOptions(to: &writer) }
    writer.endObject()
    return try parts.post(
      path: try variant.path("/completions", parts), auth: variant.auth, ownHeaders: [],
      body: writer.bytes)
  }
}

extension OpenAIVariant {
  /// Completions, older than the newer name, know only this one; an option that names another counts.
  fileprivate func withLimit(_ name: String, unless options: JSON) -> OpenAIVariant {
    guard options["max_tokens_param"]?.string == nil else { return self }
    var variant = self
    variant.limit = name
    return variant
  }
}
