/// OpenAI's Responses API: `POST {base}/responses`. Facts are from the types of the official Python SDK,
/// `openai` 3.52.0.
///
/// With `background` (in `params`, or as an option) the answer is a job at the provider: it is asked for
/// until it is done, a stream of it is taken up where it broke off, and it is cancelled there where
/// nobody waits any more. What is asked for again is one answer, and billed once.
///
/// Options: `auth` as for `openai`; `background`; `poll_ms` (1,000 by default) and `poll_max_ms` (5,000),
/// the pauses between questions.
package enum OpenAIResponses: Dialect {
  package static let name = "openai_responses"

  package static func request(for call: Call) throws(Failure) -> ProviderRequest {
    guard call.kind == .chat else {
      throw Failure(
        .unsendable, message: "the dialect openai_responses has no \(call.kind.rawValue)")
    }
    var parts = try RequestParts(call)
    let messages = try parts.messages()
    try ResponsesParameters.leaveOutUnsayable(of: &parts)
    var writer = JSONWriter(reserving: call.request.count + 512)
    writer.beginObject()
    writer.member("model", call.model)
    writer.key("input")
    try ResponsesInput.write(messages, to: &writer)
    try ResponsesParameters(parts).write(to: &writer)
    writer.member("stream", call.stream)
    writer.endObject()
    return try parts.post(path: "/responses", auth: "bearer", ownHeaders: [], body: writer.bytes)
  }

  package static func reader(for call: Call) -> any ResponseReader {
    AnswerReader(ResponsesAnswer(to: call), for: call)
  }
}
