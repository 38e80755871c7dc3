/// Anthropic's Messages API: `POST {base}/v1/messages`. Facts are from the types of the official
/// Python SDK, `anthropic` 2.11.0.
///
/// Options: `anthropic_version` (`2023-06-01` by default; from `2026-10-21` on the sampling parameters
/// are gone from the API and are dropped), `max_output_tokens` (sent where the app sets no limit,
/// since the API demands one; 4,096 by default), `auth` (`x-api-key` by default; `bearer` for OAuth
/// tokens and gateways).
package enum AnthropicMessages: Dialect {
  package static let name = "anthropic"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    guard call.kind == .chat else {
      throw Failure(.unsendable, message: "Anthropic's API has no embeddings")
    }
    var parts = try RequestParts(call)
    let version = parts.options["anthropic_version"]?.string ?? "2023-06-01"
    try AnthropicParameters.leaveOutUnsayable(of: &parts, version: version)
    let conversation = try AnthropicConversation(parts.messages())
    var writer = JSONWriter(reserving: call.request.count + 512)
    writer.beginObject()
    writer.member("model", call.model)
    if !conversation.system.isEmpty {
      writer.key("system")
      writer.beginArray()
      for block in conversation.system { writer.splice(block) }
      writer.endArray()
    }
    writer.key("messages")
    writer.splice(conversation.messages)
    try AnthropicParameters(parts).write(to: &writer)
    writer.member("stream", call.stream)
    writer.endObject()
    // A base that already ends in the API's version is what other clients want configured.
    var base = Substring(call.baseURL)
    while base.hasSuffix("/") { base.removeLast() }
    return try parts.post(
      path: base.hasSuffix("/v1") ? "/messages" : "/v1/messages", auth: "x-api-key",
      ownHeaders: [("anthropic-version", version)], body: writer.bytes)
  }

  package static func reader(for call: Call) -> any ResponseReader {
    AnswerReader(AnthropicAnswer(), for: call)
  }
}
