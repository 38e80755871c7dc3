import Foundation
import Providers
import Testing

@Suite struct OllamaTests {
  private func body(
    _ kind: CallKind = .chat, stream: Bool = false, _ request: String, options: String = "{}"
  ) throws -> (NSDictionary, ProviderRequest) {
    let call = call("ollama", kind: kind, stream: stream, request: request, options: options)
    let sent = try dialect(of: call).request(for: call)
    return (try decode(sent.body), sent)
  }

  @Test func aChatBecomesMessagesAndOptions() throws {
    let (body, sent) = try self.body(
      stream: true,
      #"""
      {"messages": [{"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aWNvbg=="}}]},
        {"role": "assistant", "content": null, "reasoning": "Hmm", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "see", "arguments": "{\"at\": 1.50}"}}, {"id": "b", "type": "function", "function": {"name": "go", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "b", "content": "Sun"}, {"role": "tool", "tool_call_id": "z", "content": [{"type": "text", "text": "Rain"}]}],
       "params": {"max_tokens": 5, "max_completion_tokens": 7, "temperature": 0.20, "stop": "END", "seed": 7, "top_k": 3, "user": "u", "tool_choice": "auto",
        "tools": [{"type": "function", "function": {"name": "see"}}], "reasoning_effort": "minimal", "logprobs": true, "think_budget": 9,
        "options": {"temperature": 9, "num_ctx": 128}, "model": "evil", "stream": false, "stream_options": {}}}
      """#,
      options:
        #"{"options": {"num_ctx": 64, "num_gpu": 1, "num_predict": 99}, "keep_alive": "10m"}"#)
    #expect(
      body
        == (try decode(
          #"""
          {"model": "m-1", "stream": true, "messages": [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What?", "images": ["aWNvbg=="]},
            {"role": "assistant", "content": "", "thinking": "Hmm", "tool_calls": [{"id": "a", "function": {"name": "see", "arguments": {"at": 1.50}}}, {"id": "b", "function": {"name": "go", "arguments": {}}}]},
            {"role": "tool", "content": "Sun", "tool_name": "go", "tool_call_id": "b"}, {"role": "tool", "content": "Rain", "tool_call_id": "z"}],
           "tools": [{"type": "function", "function": {"name": "see"}}], "think": "low", "logprobs": true, "keep_alive": "10m", "think_budget": 9,
           "options": {"num_predict": 7, "temperature": 0.20, "stop": ["END"], "seed": 7, "top_k": 3, "num_ctx": 128, "num_gpu": 1}}
          """#)))
    #expect(sent.url == "http://localhost:11434/api/chat")
    #expect(sent.dropped == ["user"])
    #expect(sent.headers.first { $0.name == "accept" }?.value == "application/x-ndjson")
  }

  @Test func formatsAndToolChoicesAreSaidAsFarAsTheyCan() throws {
    let message = #""messages": [{"role": "user", "content": "x"}]"#
    func said(_ params: String) throws -> (NSDictionary, [String]) {
      let (body, sent) = try self.body(.chat, "{\(message), \"params\": \(params)}")
      return (body, sent.dropped)
    }
    let schema = try said(
      #"{"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}}"#
    )
    #expect(schema.0["format"] as? NSDictionary == ["type": "object"])
    #expect(
      try said(#"{"response_format": {"type": "json_object"}}"#).0["format"] as? String == "json")
    #expect(try said(#"{"response_format": {"type": "text"}}"#).0["format"] == nil)
    #expect(try said(#"{"reasoning_effort": "none"}"#).0["think"] as? Bool == false)
    #expect(try said(#"{"reasoning_effort": "xhigh"}"#).0["think"] as? String == "high")
    #expect(try said(#"{"reasoning_effort": "low", "think": true}"#).0["think"] as? Bool == true)
    let tools = #""tools": [{"type": "function", "function": {"name": "f"}}]"#
    #expect(try said("{\(tools), \"tool_choice\": \"none\"}").0["tools"] == nil)
    let forced = try said(
      "{\(tools), \"tool_choice\": \"required\", \"parallel_tool_calls\": false}")
    #expect(forced.0["tools"] != nil)
    #expect(forced.1 == ["tool_choice", "parallel_tool_calls"])
    let unsaid = try said(
      #"{"functions": [], "audio": {}, "response_format": {"type": "xml"}, "n": 1}"#)
    #expect(unsaid.1.sorted() == ["audio", "functions", "response_format"])
    for params in [
      #"{"n": 2}"#, #"{"best_of": 2}"#, #"{"user": "u", "strict": true}"#,
      #"{"response_format": {"type": "json_schema"}, "strict": true}"#,
    ] {
      let call = call("ollama", request: "{\(message), \"params\": \(params)}")
      #expect(try refusal(call)?.signal == .unsendable, "\(params)")
    }
  }

  @Test(arguments: [
    #"[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]"#,
    #"[{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]"#,
    #"[{"role": "critic", "content": "x"}]"#, #"[{"content": "x"}]"#, "[7]", "[]",
    #"[{"role": "tool", "content": "x"}]"#,
    #"[{"role": "assistant", "function_call": {}}]"#,
    #"[{"role": "assistant", "tool_calls": [{"id": "a"}]}]"#,
  ])
  func whatOllamaCannotSayIsNotSent(_ messages: String) throws {
    let call = call("ollama", request: #"{"messages": \#(messages), "params": {}}"#)
    #expect(try refusal(call)?.signal == .unsendable)
  }

  @Test func completionsAndEmbeddingsHaveTheirOwnAddress() throws {
    let (completion, first) = try self.body(
      .completion, #"{"input": "def f(", "params": {"suffix": ")", "max_tokens": 3, "raw": true}}"#)
    #expect(
      completion
        == (try decode(
          #"{"model": "m-1", "prompt": "def f(", "suffix": ")", "raw": true, "stream": false, "options": {"num_predict": 3}}"#
        )))
    #expect(first.url == "http://localhost:11434/api/generate")
    let (embedding, second) = try self.body(
      .embedding,
      #"{"input": ["a", "b"], "params": {"dimensions": 2, "encoding_format": "float", "user": "u"}}"#
    )
    #expect(
      embedding == (try decode(#"{"model": "m-1", "input": ["a", "b"], "dimensions": 2}"#)))
    #expect(second.url == "http://localhost:11434/api/embed")
    #expect(second.dropped == ["user"])
    let based = call(
      "ollama", kind: .completion, baseURL: "https://ollama.com/api/", request: KindRequest.text)
    #expect(try dialect(of: based).request(for: based).url == "https://ollama.com/api/generate")
    for (kind, request) in [
      (CallKind.rerank, KindRequest.rerank), (.completion, #"{"input": ""}"#),
      (.completion, #"{"input": ["a"]}"#), (.embedding, #"{"input": []}"#),
      (.embedding, #"{"input": [1, 2]}"#), (.embedding, #"{"params": {}}"#),
    ] {
      #expect(
        try refusal(call("ollama", kind: kind, request: request))?.signal == .unsendable,
        "\(request)")
    }
  }

  @Test func aStreamGivesTextThoughtsAndCounts() throws {
    let reading = try read(call("ollama", stream: true), text: Fixture.ollamaStream)
    let reply = try #require(reading.reply)
    #expect(reading.shown == "Grüße, martlet 🐦!")
    #expect(reading.wasComplete)
    #expect(reply.finishReason == "stop")
    #expect(reply.usage == usage(input: 26, output: 48))
    #expect(reply.model == "qwen3:8b")
    #expect(try reading.message()["reasoning"] as? String == "Hmm, a bird.")
  }

  @Test func toolCallsOfSeveralLinesAreCallsOfOpenAIsForm() throws {
    let reading = try read(call("ollama", stream: true), text: Fixture.ollamaTools)
    #expect(reading.reply?.finishReason == "tool_calls")
    #expect(
      try reading.message()
        == (try decode(
          #"""
          {"role": "assistant", "content": null, "tool_calls": [{"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Oslo\",\"days\":[1,2]}"}},
           {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}}]}
          """#)))
  }

  @Test func aWholeAnswerAndACompletionAreRead() throws {
    let whole = try read(call("ollama"), text: Fixture.ollamaWhole)
    #expect(whole.reply?.output == "Four.")
    #expect(whole.reply?.usage == usage(input: 9, output: 3))
    #expect(try whole.message()["reasoning"] as? String == "2 + 2")
    let completion = try read(
      call("ollama", kind: .completion, stream: true, request: KindRequest.text),
      text: Fixture.ollamaGenerate)
    #expect(completion.reply?.output == "The end")
    #expect(completion.reply?.finishReason == "length")
    // Where streaming was asked for, but the answer came whole.
    let unexpected = try read(
      call("ollama", stream: true), headers: ["content-type": "application/json; charset=utf-8"],
      text: Fixture.ollamaWhole)
    #expect(unexpected.reply?.output == "Four.")
  }

  @Test func countsThatAreMissingAreLeftToTheBooks() throws {
    func counted(_ counts: String) throws -> Usage? {
      try read(
        call("ollama"), text: #"{"message":{"content":"x"},"done":true\#(counts)}"#
      ).reply?.usage
    }
    #expect(try counted("") == nil)
    #expect(try counted(#","eval_count":3"#) == nil)
    #expect(try counted(#","prompt_eval_count":3"#) == nil)
    #expect(try counted(#","prompt_eval_count":-1,"eval_count":3"#) == nil)
    #expect(try counted(#","prompt_eval_count":99999999999,"eval_count":3"#) == nil)
    #expect(try counted(#","prompt_eval_count":2,"eval_count":3"#) == usage(input: 2, output: 3))
    let loaded = try read(
      call("ollama"),
      text: #"{"message":{"content":""},"done":true,"done_reason":"load","prompt_eval_count":0}"#)
    #expect(loaded.reply?.usage == usage(input: 0, output: 0))
    #expect(try loaded.message()["native_finish_reason"] as? String == "load")
  }

  @Test func anErrorOnALineEndsTheStream() throws {
    let line = #"{"error":"an error was encountered while running the model: unexpected EOF"}"#
    for count in 0...3 {
      let units = Array(lines(Array(Fixture.ollamaStream.utf8))[..<count])
      let reading = try read(
        call("ollama", stream: true), units: units + [Unit(event: nil, data: Array(line.utf8))])
      #expect(reading.wasComplete)
      #expect(reading.failure?.signal == .embeddedError)
      #expect(reading.failure?.message.hasPrefix("an error was encountered") == true)
      #expect((reading.failure?.partial?.output ?? "") == reading.shown)
    }
  }

  @Test func vectorsComeInTheOrderOfTheTexts() throws {
    let call = call("ollama", kind: .embedding, request: KindRequest.texts)
    let reply = try #require(try read(call, text: Fixture.ollamaVectors).reply)
    #expect(reply.embeddings == [[0.25, -0.5, 0.001], [1, 0, 0.5]])
    #expect(reply.usage == usage(input: 8, output: 0))
    let one = ProvidersTests.call("ollama", kind: .embedding, request: KindRequest.text)
    #expect(try read(one, text: #"{"embeddings":[[1,2]]}"#).reply?.embedding == [1, 2])
    #expect(try read(one, text: #"{"embedding":[1,2]}"#).reply?.embedding == [1, 2])
  }
}
