/// Requests of `POST {base}/chat/completions`.
enum OpenAIChat {
  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    var parts = try RequestParts(call)
    let variant = try OpenAIVariant.of(parts)
    let messages = try parts.messages()
    try parts.refuseSeveralAnswers()
    variant.leaveOutUnsupported(of: &parts)
    let parameters = OpenAIParameters(parts: parts, variant: variant)
    var writer = JSONWriter(reserving: call.request.count + 256)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("messages")
    try OpenAIMessages.write(messages, for: variant, to: &writer)
    parameters.write(to: &writer)
    writer.member("stream", call.stream)
    if call.stream { parameters.writeStreamOptions(to: &writer) }
    writer.endObject()
    return try parts.post(
      path: try variant.path("/chat/completions", parts), auth: variant.auth, ownHeaders: [],
      body: writer.bytes)
  }
}
