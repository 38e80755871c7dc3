/// Requests of `generateContent` and `streamGenerateContent`.
enum GeminiContents {
  static func request(for call: Call) throws(Failure) -> ProviderRequest {
    let (call, path) = try Gemini.address(
      call, call.stream ? "streamGenerateContent?alt=sse" : "generateContent")
    var parts = try RequestParts(call)
    try GeminiParameters.leaveOutUnsayable(of: &parts)
    let conversation = try conversation(parts)
    var writer = JSONWriter(reserving: call.request.count + 512)
    writer.beginObject()
    if !conversation.system.isEmpty {
      writer.key("systemInstruction")
      writer.beginObject()
      writer.key("parts")
      writer.beginArray()
      for part in conversation.system { writer.splice(part) }
      writer.endArray()
      writer.endObject()
    }
    writer.key("contents")
    writer.splice(conversation.contents)
    try GeminiTools(parts).write(to: &writer)
    try GeminiParameters(parts).write(to: &writer)
    writer.endObject()
    return try parts.post(
      path: path, auth: "x-goog-api-key", ownHeaders: [], body: writer.bytes)
  }

  /// The messages; where the request has an input instead, its text is what the user says.
  private static func conversation(_ parts: RequestParts) throws(Failure) -> GeminiConversation {
    let signature = parts.options["missing_thought_signature"]?.string
    guard let input = parts.request["input"], input.kind == .string else {
      return try GeminiConversation(parts.messages(), missingSignature: signature)
    }
    return GeminiConversation(input: input)
  }
}
