import Foundation
import Providers
import Testing

/// Text Generation Inference, Text Embeddings Inference and Hugging Face.
@Suite struct ModelServerTests {
  private func sent(
    _ dialect: String, _ kind: CallKind, _ request: String, stream: Bool = false,
    model: String = "org/m", baseURL: String? = nil, options: String = "{}"
  ) throws -> (body: NSDictionary, request: ProviderRequest) {
    let call = call(
      dialect, kind: kind, model: model, stream: stream, baseURL: baseURL, request: request,
      options: options)
    let request = try ProvidersTests.dialect(of: call).request(for: call)
    return (try decode(request.body), request)
  }

  // MARK: Text generation

  @Test func aCompletionIsSaidInTheServersWords() throws {
    let request = #"""
      {"input": "To be", "params": {"max_tokens": 5, "temperature": 0, "top_p": 1, "stop": ["a", "b"], "seed": 1, "frequency_penalty": 0.5, "presence_penalty": 1,
       "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}, "user": "u", "echo": true, "watermark": true, "n": 1}}
      """#
    let (body, plain) = try sent("tgi", .completion, request)
    let parameters = #"""
      {"details": true, "return_full_text": true, "max_new_tokens": 5, "stop": ["a", "b"], "seed": 1, "frequency_penalty": 0.5, "watermark": true,
       "grammar": {"type": "json", "value": {"type": "object"}}}
      """#
    #expect(body == (try decode(#"{"inputs": "To be", "parameters": \#(parameters)}"#)))
    #expect(plain.url == "http://localhost:3000/generate")
    #expect(plain.dropped.sorted() == ["presence_penalty", "user"])
    let streamed = try sent("tgi", .completion, KindRequest.text, stream: true).request
    #expect(streamed.url == "http://localhost:3000/generate_stream")
    #expect(streamed.headers.first { $0.name == "accept" }?.value == "text/event-stream")
    let (routed, hosted) = try sent("huggingface", .completion, KindRequest.text, stream: true)
    #expect(hosted.url == "https://router.huggingface.co/hf-inference/models/org/m")
    #expect(routed["stream"] as? Bool == true)
  }

  @Test func chatsGoToTheOpenAICounterpart() throws {
    let chat = #"""
      {"messages": [{"role": "user", "content": "x"}], "params": {"seed": 1, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}}}
      """#
    let format = try decode(#"{"type": "json_object", "value": {"a": 1}}"#)
    let (body, request) = try sent("tgi", .chat, chat, stream: true)
    #expect(request.url == "http://localhost:3000/v1/chat/completions")
    #expect(body["response_format"] as? NSDictionary == format)
    #expect(body["seed"] as? Int == 1)
    for base in ["https://router.huggingface.co", "https://router.huggingface.co/v1/"] {
      let (body, request) = try sent("huggingface", .chat, chat, model: "org/m:groq", baseURL: base)
      #expect(request.url == "https://router.huggingface.co/v1/chat/completions")
      #expect(body["model"] as? String == "org/m:groq")
      #expect((body["response_format"] as? NSDictionary)?["type"] as? String == "json_schema")
    }
    let own = try sent("huggingface", .chat, chat, options: #"{"grammar": true}"#).body
    #expect(own["response_format"] as? NSDictionary == format)
    for dialect in ["tgi", "huggingface"] {
      let reading = try read(call(dialect, stream: true), text: Fixture.openAIStream)
      #expect(reading.reply?.usage?.cacheRead == 64)
      #expect(reading.reply?.usage?.reasoning == 40)
      let tools = try read(call(dialect, stream: true), text: Fixture.openAITools)
      #expect(tools.reply?.finishReason == "tool_calls")
    }
  }

  @Test func streamedTokensMakeTheTextAndSpecialOnesDoNot() throws {
    for dialect in ["tgi", "huggingface"] {
      let call = call(dialect, kind: .completion, stream: true, request: KindRequest.text)
      let reading = try read(call, text: Fixture.tgiStream)
      #expect(reading.shown == "Grüße, 🐦")
      #expect(reading.reply?.output == "Grüße, 🐦")
      #expect(reading.reply?.finishReason == "stop")
      #expect(reading.reply?.usage == usage(input: 7, output: 3))
      #expect(reading.wasComplete)
    }
  }

  @Test func aWholeCompletionCountsByItsHeaders() throws {
    let call = call("tgi", kind: .completion, request: KindRequest.text)
    let headers = ["x-prompt-tokens": "7", "x-generated-tokens": "3", "x-request-id": "r-1"]
    let reading = try read(call, headers: headers, text: Fixture.tgiWhole)
    #expect(reading.reply?.output == "Four.")
    #expect(reading.reply?.finishReason == "length")
    #expect(reading.reply?.usage == usage(input: 7, output: 3))
    #expect(reading.reply?.requestID == "r-1")
    #expect(try read(call, text: Fixture.tgiWhole).reply?.usage == nil)
    // What it cost is known before the body is, also where that breaks off.
    let half = try read(
      call, headers: headers, body: Array(Fixture.tgiWhole.utf8.prefix(30)),
      end: .broken(.reset, "gone"))
    #expect(half.failure?.partial?.usage == usage(input: 7, output: 3))
    #expect(
      try read(
        call, headers: ["x-prompt-tokens": "-1", "x-generated-tokens": "3"], text: Fixture.tgiWhole
      )
      .reply?.usage == nil)
    for (name, text) in [("generated_text", "a"), ("summary_text", "b"), ("translation_text", "c")]
    {
      #expect(try read(call, text: #"[{"\#(name)":"\#(text)"}]"#).reply?.output == text)
    }
    #expect(try read(call, text: "[]").failure?.signal == .malformed)
  }

  @Test func anErrorInsideOfAStreamIsOne() throws {
    let call = call("tgi", kind: .completion, stream: true, request: KindRequest.text)
    let event = #"{"error":"Request failed during generation: CUDA","error_type":"generation"}"#
    let first = events(Array(Fixture.tgiStream.utf8))[0]
    let reading = try read(call, units: [first, Unit(event: nil, data: Array(event.utf8))])
    #expect(reading.failure?.signal == .embeddedError)
    #expect(reading.failure?.type == "generation")
    #expect(reading.failure?.partial?.output == "Grüße")
    #expect(reading.failure?.partial?.usage == nil)
  }

  // MARK: Embeddings

  @Test func everyShapeOfFeaturesIsReadByItsNesting() throws {
    typealias Case = (request: String, options: String, body: String, vectors: [[Float]]?)
    let one = KindRequest.text
    let single = #"{"input": ["a"]}"#
    let two = KindRequest.texts
    let cases: [Case] = [
      (one, "{}", "[1,2]", [[1, 2]]), (one, "{}", "[[1,2]]", [[1, 2]]),
      (one, "{}", "[[1,2],[3,4]]", [[2, 3]]), (one, "{}", "[[[1,2],[3,4]]]", [[2, 3]]),
      (one, "{}", "[[[[1,2],[3,4]]]]", [[2, 3]]),
      (one, #"{"pooling":"cls"}"#, "[[[1,2],[3,4]]]", [[1, 2]]),
      (single, "{}", "[1,2]", [[1, 2]]), (single, "{}", "[[1,2]]", [[1, 2]]),
      (single, "{}", "[[[1,2],[3,4],[5,6]]]", [[3, 4]]),
      (two, "{}", "[[1,2],[3,4]]", [[1, 2], [3, 4]]),
      (two, "{}", "[[[1,2]],[[3,4]]]", [[1, 2], [3, 4]]),
      (two, "{}", Fixture.hfTokens, [[3, 4], [2, 2]]),
      (two, "{}", "[[[[1,2],[3,4]]],[[[5,6]]]]", [[2, 3], [5, 6]]),
      // A vector is missing, or there is one too many; sizes differ; what is no vector.
      (two, "{}", "[[1,2]]", nil), (two, "{}", "[[1,2],[3,4],[5,6]]", nil),
      (two, "{}", "[1,2]", nil),
      (two, "{}", "[[1,2],[3]]", nil), (one, "{}", "[[1,2],[3]]", nil),
      (one, "{}", "[[[1],[2]],[[3],[4]]]", nil), (one, "{}", "[]", nil), (one, "{}", "[[]]", nil),
      (one, "{}", "[[1,[2]]]", nil), (one, "{}", "[NaN,1]", nil), (one, "{}", "[1e99]", nil),
      (one, "{}", #"["1"]"#, nil), (one, "{}", "7", nil), (one, "{}", "{}", nil),
    ]
    for dialect in ["tei", "huggingface"] {
      for (request, options, body, vectors) in cases {
        let call = call(dialect, kind: .embedding, request: request, options: options)
        let reading = try read(call, text: body)
        let got = reading.reply.flatMap { $0.embeddings ?? $0.embedding.map { [$0] } }
        #expect(got == vectors, "\(request) \(body)")
        #expect((reading.reply?.embedding != nil) == (vectors != nil && request == one), "\(body)")
        if vectors == nil { #expect(reading.failure?.signal == .malformed, "\(body)") }
      }
    }
  }

  @Test func tokensOfAnEmbeddingAreInAHeader() throws {
    let call = call("tei", kind: .embedding, request: KindRequest.texts)
    let counted = try read(call, headers: ["x-compute-tokens": "12"], text: Fixture.teiVectors)
    #expect(counted.reply?.usage == usage(input: 12, output: 0))
    for value in ["", "many", "-1", "99999999999"] {
      let reading = try read(call, headers: ["x-compute-tokens": value], text: Fixture.teiVectors)
      #expect(reading.reply?.embeddings?.count == 2)
      #expect(reading.reply?.usage == nil)
    }
  }

  @Test func embeddingsAreAskedForInTheServersWords() throws {
    let request =
      #"{"input": ["a"], "params": {"normalize": true, "dimensions": 3, "user": "u", "encoding_format": "base64"}}"#
    let (own, first) = try sent("tei", .embedding, request)
    #expect(own == (try decode(#"{"inputs": ["a"], "normalize": true, "dimensions": 3}"#)))
    #expect(first.url == "http://localhost:8080/embed")
    let (hosted, second) = try sent("huggingface", .embedding, request)
    #expect(hosted == (try decode(#"{"inputs": ["a"], "normalize": true}"#)))
    #expect(
      second.url
        == "https://router.huggingface.co/hf-inference/models/org/m/pipeline/feature-extraction")
    #expect(second.dropped.sorted() == ["dimensions", "user"])
    let dedicated = try sent(
      "huggingface", .embedding, request, baseURL: "https://x.example/",
      options: #"{"dedicated": true}"#)
    #expect(dedicated.request.url == "https://x.example")
  }

  @Test func aModelsNameCannotLeadElsewhere() throws {
    for model in ["../../admin", "a/./b", "a//b", "", "/a"] {
      let call = call("huggingface", kind: .embedding, model: model, request: KindRequest.text)
      #expect(try refusal(call)?.signal == .unsendable, "\(model)")
    }
    let odd = try sent("huggingface", .embedding, KindRequest.text, model: "o/a?b#c%2F d\u{e9}")
    #expect(odd.request.url.contains("/models/o/a%3Fb%23c%252F%20d%C3%A9/pipeline/"))
  }

  // MARK: Classification and rerank

  @Test func classificationsTakeTheModelsLabelsOrTheRequests() throws {
    let (plain, request) = try sent("huggingface", .classification, KindRequest.text)
    #expect(plain == (try decode(#"{"inputs": "To be"}"#)))
    #expect(request.url == "https://router.huggingface.co/hf-inference/models/org/m")
    let labelled =
      #"{"input": "x", "params": {"labels": ["a", "b"], "multi_label": true, "user": "u"}}"#
    #expect(
      try sent("huggingface", .classification, labelled).body
        == (try decode(
          #"{"inputs": "x", "parameters": {"candidate_labels": ["a", "b"], "multi_label": true}}"#))
    )
    #expect(
      try sent("tei", .classification, KindRequest.text).body
        == (try decode(#"{"inputs": "To be"}"#)))
    #expect(
      try refusal(call("tei", kind: .classification, request: labelled))?.signal == .unsendable)
    for labels in ["[]", "[1]", #""a""#] {
      let request = #"{"input": "x", "params": {"labels": \#(labels)}}"#
      #expect(
        try refusal(call("huggingface", kind: .classification, request: request))?.signal
          == .unsendable)
    }
  }

  @Test func labelsComeWithTheLikeliestFirst() throws {
    let call = call("huggingface", kind: .classification, request: KindRequest.text)
    let sorted = #"[{"label":"POSITIVE","score":0.75},{"label":"NEGATIVE","score":0.25}]"#
    for body in [
      Fixture.hfLabels, #"[{"label":"NEGATIVE","score":0.25},{"label":"POSITIVE","score":0.75}]"#,
      #"{"sequence":"x","labels":["NEGATIVE","POSITIVE"],"scores":[0.25,0.75]}"#,
    ] {
      let reading = try read(call, text: body)
      #expect(reading.reply?.message.map { String(decoding: $0, as: UTF8.self) } == sorted)
      #expect(reading.reply?.output == "POSITIVE")
      expectSound(reading)
    }
    for body in [
      "[]", "[[]]", #"[{"label":"a"}]"#, #"[{"score":1}]"#, #"[{"label":"a","score":NaN}]"#,
      #"{"labels":["a"],"scores":[]}"#, #"{"labels":["a"],"scores":["1"]}"#, "7",
    ] {
      #expect(try read(call, text: body).failure?.signal == .malformed, "\(body)")
    }
  }

  @Test func reranksSendTextsAndGiveTheBestFirst() throws {
    let ask = #"""
      {"input": "Who flies?", "params": {"documents": ["stone", {"text": "swift"}, "log"], "top_n": 2, "return_documents": true, "raw_scores": true}}
      """#
    #expect(
      try sent("tei", .rerank, ask).body
        == (try decode(
          #"{"query": "Who flies?", "texts": ["stone", "swift", "log"], "raw_scores": true}"#)))
    let (similarity, request) = try sent("huggingface", .rerank, KindRequest.rerank)
    #expect(
      similarity
        == (try decode(
          #"{"inputs": {"source_sentence": "Who flies?", "sentences": ["stone", "swift", "log"]}}"#))
    )
    #expect(request.url.hasSuffix("/models/org/m/pipeline/sentence-similarity"))
    func ranked(_ dialect: String, _ request: String, _ body: String) throws -> String? {
      let call = call(dialect, kind: .rerank, request: request)
      let reading = try read(call, text: body)
      expectSound(reading)
      return reading.reply?.message.map { String(decoding: $0, as: UTF8.self) }
    }
    let best = #"[{"index":1,"score":0.997},{"index":2,"score":0.5}"#
    #expect(try ranked("tei", ask, Fixture.teiRanks) == best + "]")
    #expect(
      try ranked("huggingface", KindRequest.rerank, "[0.0001,0.997,0.5]")
        == best + #",{"index":0,"score":0.0001}]"#)
    for body in [
      "[]", "[1,2]", "[1,2,3,4]", #"[1,2,"3"]"#, "{}", #"[1,2,{"index":0,"score":1}]"#,
      #"[{"index":0,"score":1},{"index":0,"score":1},{"index":1,"score":1}]"#,
      #"[{"index":0,"score":1},{"index":3,"score":1},{"index":1,"score":1}]"#,
    ] {
      #expect(try ranked("tei", KindRequest.rerank, body) == nil, "\(body)")
    }
    for documents in ["[]", "[1]", #""a""#, #"[{"title": "a"}]"#] {
      for dialect in ["tei", "huggingface"] {
        let request = #"{"input": "x", "params": {"documents": \#(documents)}}"#
        #expect(
          try refusal(call(dialect, kind: .rerank, request: request))?.signal == .unsendable)
      }
    }
  }

  @Test func aColdModelSaysWhenToAskAgain() throws {
    let call = call("huggingface", kind: .embedding, request: KindRequest.text)
    let body = #"{"error":"Model org/m is currently loading","estimated_time":20.5}"#
    let failure = try #require(try read(call, status: 503, text: body).failure)
    #expect(failure.retryAfterMilliseconds == 20_500)
    #expect(failure.signal == .http)
    #expect(try read(call, text: body).failure?.signal == .embeddedError)
  }
}
