import Foundation
import Providers
import Testing

/// Completions, moderations and reranking in the openai dialect.
@Suite struct OpenAIKindTests {
  @Test("a completion continues a text")
  func completionRequest() throws {
    let call = call(
      kind: .completion, stream: true,
      request: #"{"input":"To be,","params":{"max_completion_tokens":5,"logprobs":2,"echo":true}}"#)
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == "https://api.openai.com/v1/completions")
    #expect(
      String(decoding: request.body, as: UTF8.self)
        == #"{"model":"m-1","prompt":"To be,","logprobs":2,"echo":true,"max_tokens":5,"stream":true,"stream_options":{"include_usage":true}}"#
    )
    #expect(request.headers.contains { $0.name == "accept" && $0.value == "text/event-stream" })
  }

  @Test("a completion's text, log probabilities and usage, streamed")
  func completionStream() throws {
    let call = call(kind: .completion, stream: true, request: KindRequest.text)
    let reading = try read(call, text: Fixture.openAICompletion)
    let reply = try #require(reading.reply)
    #expect(reply.output == " and fliegt über")
    #expect(reply.finishReason == "length")
    #expect(reply.usage == usage(input: 3, output: 4))
    let logprobs = try #require(try reading.message()["logprobs"] as? NSDictionary)
    #expect(logprobs["tokens"] as? [String] == [" and", " fliegt", " über"])
    #expect(logprobs["text_offset"] as? [Int] == [0, 4, 11])
  }

  @Test("a completion's text, whole, also where a host sends a message instead")
  func completionWhole() throws {
    let call = call(kind: .completion, request: KindRequest.text)
    for body in [
      #"{"choices":[{"text":"or not","index":0,"finish_reason":"stop"}]}"#,
      #"{"choices":[{"message":{"content":"or not"},"index":0,"finish_reason":"stop"}]}"#,
    ] {
      let reading = try read(call, text: body)
      #expect(reading.reply?.output == "or not")
      #expect(reading.reply?.finishReason == "stop")
    }
    #expect(try read(call, text: #"{"choices":[{"index":0}]}"#).failure?.signal == .malformed)
    // A chat is not answered with a text beside its message.
    let chat = try read(
      ProvidersTests.call(), text: #"{"choices":[{"text":"x","index":0,"finish_reason":"stop"}]}"#)
    #expect(chat.failure?.signal == .malformed)
  }

  @Test(
    "what is judged: one text, or parts",
    arguments: [
      (#"{"input":"Größe"}"#, #"{"model":"m-1","input":"Größe"}"#),
      (
        #"{"input":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"text","text":"b"}]}]}"#,
        #"{"model":"m-1","input":"a\nb"}"#
      ),
      (
        #"{"input":[{"role":"user","content":"a"},{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}]}"#,
        #"{"model":"m-1","input":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}"#
      ),
    ])
  func moderationRequest(_ request: String, _ body: String) throws {
    let call = call(kind: .moderation, request: request)
    let written = try dialect(of: call).request(for: call)
    #expect(written.url == "https://api.openai.com/v1/moderations")
    #expect(String(decoding: written.body, as: UTF8.self) == body)
  }

  @Test("a verdict is the one result, and the names of what applies")
  func moderation() throws {
    let call = call(kind: .moderation, request: KindRequest.text)
    let reading = try read(call, text: Fixture.moderation)
    let reply = try #require(reading.reply)
    #expect(reply.output == "violence,self-harm")
    #expect(reply.usage == nil)
    let verdict = try reading.message()
    #expect(verdict["flagged"] as? Bool == true)
    #expect((verdict["category_scores"] as? [String: Double])?["violence"] == 0.93)
    let mistral = try read(
      call,
      text:
        #"{"id":"x","model":"m","results":[{"categories":{"pii":false,"law":false},"category_scores":{"pii":0.1}}]}"#
    )
    #expect(mistral.reply?.output == "")
    #expect(try mistral.message()["flagged"] as? Bool == false)
  }

  @Test(
    "what is no verdict",
    arguments: [
      "{}", #"{"results":[]}"#, #"{"results":[7]}"#, #"{"results":[{"score":1}]}"#,
      #"{"results":"x"}"#,
    ])
  func noVerdict(_ body: String) throws {
    let call = call(kind: .moderation, request: KindRequest.text)
    #expect(try read(call, text: body).failure?.signal == .malformed)
  }

  @Test("documents are sent with the query")
  func rerankRequest() throws {
    let call = call(
      kind: .rerank, baseURL: "https://api.cohere.com/v2",
      request:
        #"{"input":"q","params":{"documents":["a","b"],"top_n":1,"return_documents":false,"temperature":1}}"#,
      options: #"{"rename_params":{"top_n":"top_k"}}"#)
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == "https://api.cohere.com/v2/rerank")
    #expect(
      String(decoding: request.body, as: UTF8.self)
        == #"{"model":"m-1","query":"q","documents":["a","b"],"top_k":1,"return_documents":false}"#)
    #expect(request.dropped == ["temperature"])
  }

  @Test("ranks come best first, equal ones as they came")
  func ranks() throws {
    let call = call(kind: .rerank, request: KindRequest.rerank)
    let reply = try #require(try read(call, text: Fixture.ranks).reply)
    #expect(
      String(decoding: try #require(reply.message), as: UTF8.self)
        == #"[{"index":1,"score":0.98},{"index":2,"score":0.12},{"index":0,"score":0.120}]"#)
    #expect(reply.usage == usage(input: 31, output: 0))
    #expect(reply.output.isEmpty)
  }

  @Test("Cohere counts search units, Voyage calls them data")
  func otherRanks() throws {
    let call = call(kind: .rerank, request: KindRequest.rerank)
    let cohere = try read(
      call,
      text:
        #"{"id":"c","results":[{"index":0,"relevance_score":0.5}],"meta":{"api_version":{"version":"2"},"billed_units":{"search_units":1}}}"#
    )
    #expect(cohere.reply?.usage?.units == ["queries": "1"])
    #expect(cohere.reply?.usage?.input == 0)
    let voyage = try read(
      call,
      text:
        #"{"object":"list","data":[{"index":2,"relevance_score":0.5}],"model":"r","usage":{"total_tokens":26}}"#
    )
    #expect(voyage.reply?.usage?.input == 26)
  }

  @Test(
    "what is no ranking of the documents that were sent",
    arguments: [
      "{}", #"{"results":{}}"#, #"{"results":[{"index":3,"relevance_score":1}]}"#,
      #"{"results":[{"index":-1,"relevance_score":1}]}"#, #"{"results":[{"relevance_score":1}]}"#,
      #"{"results":[{"index":0}]}"#, #"{"results":[{"index":0,"relevance_score":"NaN"}]}"#,
      #"{"results":[{"index":0,"relevance_score":1},{"index":0,"relevance_score":2}]}"#,
    ])
  func noRanking(_ body: String) throws {
    let call = call(kind: .rerank, request: KindRequest.rerank)
    #expect(try read(call, text: body).failure?.signal == .malformed)
  }

  @Test(
    "what these kinds cannot be asked",
    arguments: [
      (CallKind.completion, "{}"), (.completion, #"{"input":["a","b"]}"#),
      (.completion, #"{"input":"a","params":{"n":2}}"#),
      (.completion, #"{"input":"a","params":{"best_of":2}}"#),
      (.completion, #"{"input":"a","params":{"n":1,"best_of":2}}"#), (.moderation, "{}"),
      (.moderation, #"{"input":[]}"#),
      (.moderation, #"{"input":[{"role":"user","content":[{"type":"input_audio"}]}]}"#),
      (.rerank, #"{"input":"a","params":{}}"#),
      (.rerank, #"{"input":"a","params":{"documents":[]}}"#),
      (.rerank, #"{"input":["a"],"params":{"documents":["b"]}}"#),
    ])
  func refusals(_ kind: CallKind, _ request: String) throws {
    #expect(try refusal(call(kind: kind, request: request))?.signal == .unsendable)
  }
}
