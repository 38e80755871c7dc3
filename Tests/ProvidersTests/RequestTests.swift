import Foundation
import Providers
import Testing

@Suite struct RequestTests {
  /// A request that uses all that both dialects can say.
  static let everything = #"""
    {"params": {"stop": "END", "user": "u-1", "tools": [{"type": "function", "function": {"name": "weather", "strict": true, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "description": "Weather \"now\""}}], "top_p": 0.9, "max_tokens": 50, "temperature": 1.5, "tool_choice": {"type": "function", "function": {"name": "weather"}}, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}, "reasoning_effort": "minimal", "parallel_tool_calls": false, "seed": 7},
     "messages": [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]},
      {"role": "user", "content": [{"type": "text", "text": "What is in it? 🐦\n"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}, {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
      {"role": "assistant", "content": null, "tool_calls": [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}}, {"id": "b", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
      {"role": "tool", "tool_call_id": "a", "content": "Rain"}, {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "Sun"}]},
      {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So", "reasoning": "Hmm", "thinking_blocks": [{"type": "thinking", "thinking": "Hmm", "signature": "s"}, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gA"}]}]}
    """#

  @Test func openAIGetsMessagesAsTheyAreAndParametersMerged() throws {
    let call = call(
      stream: true,
      request: #"""
        {"messages": [{"role": "user", "content": "1.10 \u00e4 🐦", "x": 1.10}], "params": {"max_tokens": 5,
        "temperature": 0.20, "model": "evil", "messages": [], "stream": false, "top_p": null,
        "stream_options": {"include_usage": false, "include_obfuscation": false}}}
        """#)
    let request = try dialect(of: call).request(for: call)
    #expect(
      String(decoding: request.body, as: UTF8.self) == #"""
        {"model":"m-1","messages":[{"role": "user", "content": "1.10 \u00e4 🐦", "x": 1.10}],"temperature":0.20,"max_completion_tokens":5,"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}
        """#)
    #expect(request.url == "https://api.openai.com/v1/chat/completions")
    #expect(request.method == "POST")
    #expect(header("authorization", of: request) == ["Bearer sk-secret-1234"])
    #expect(header("content-type", of: request) == ["application/json"])
    #expect(header("accept", of: request) == ["text/event-stream"])
  }

  @Test func optionsFitOlderServers() throws {
    let body = try requestBody(
      call(
        stream: true,
        request:
          #"{"messages":[{"role":"user","content":"x"}],"params":{"max_completion_tokens":5,"max_tokens":6}}"#,
        options: #"{"max_tokens_param":"max_tokens","include_usage":false}"#))
    #expect(body["max_tokens"] as? Int == 5)
    #expect(body["max_completion_tokens"] == nil)
    #expect(body["stream_options"] == nil)
  }

  @Test func anAnswerThatIsHandedBackLosesOurOwnMembers() throws {
    let body = try requestBody(call(request: Self.everything))
    let messages = try #require(body["messages"] as? [NSDictionary])
    #expect(messages.count == 8)
    #expect(messages[7] == (try decode(#"{"role":"assistant","content":"So"}"#)))
  }

  @Test func headersOfTheProviderReplaceOurOwn() throws {
    let call = call(
      baseURL: "http://localhost:8000/v1//", secret: nil,
      headers: ["Content-Type": "application/json; charset=utf-8", "X-Org": "o"])
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == "http://localhost:8000/v1/chat/completions")
    #expect(header("content-type", of: request) == ["application/json; charset=utf-8"])
    #expect(header("x-org", of: request) == ["o"])
    #expect(header("authorization", of: request) == [])
  }

  @Test func theSecretTravelsAsTheProviderWantsIt() throws {
    let azure = call(options: #"{"auth":"api-key"}"#)
    #expect(
      header("api-key", of: try dialect(of: azure).request(for: azure)) == ["sk-secret-1234"])
    let oauth = call("anthropic", options: #"{"auth":"bearer"}"#)
    let request = try dialect(of: oauth).request(for: oauth)
    #expect(header("authorization", of: request) == ["Bearer sk-secret-1234"])
    #expect(header("x-api-key", of: request) == [])
  }

  @Test func embeddingsAskForFloats() throws {
    let call = call(
      kind: .embedding,
      request: #"{"input": "Größe", "params": {"dimensions": 256, "model": "x"}}"#)
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == "https://api.openai.com/v1/embeddings")
    #expect(
      String(decoding: request.body, as: UTF8.self)
        == #"{"model":"m-1","input":"Größe","dimensions":256,"encoding_format":"float"}"#)
    #expect(header("accept", of: request) == ["application/json"])
  }

  @Test func severalTextsGoInOneRequest() throws {
    let two = try requestBody(call(kind: .embedding, request: #"{"input": ["Größe", "b"]}"#))
    #expect(two["input"] as? [String] == ["Größe", "b"])
    for (count, isRefused) in [(2_048, false), (2_049, true)] {
      let texts = [String](repeating: #""x""#, count: count).joined(separator: ",")
      let many = call(kind: .embedding, request: #"{"input":[\#(texts)]}"#)
      #expect((try refusal(many) != nil) == isRefused)
    }
  }

  @Test func anthropicGetsTheSameConversationInItsOwnWords() throws {
    let body = try requestBody(call("anthropic", stream: true, request: Self.everything))
    let expected = try decode(
      #"""
      {"model":"m-1","stream":true,"max_tokens":50,"stop_sequences":["END"],"temperature":1,"top_p":0.9,
       "metadata":{"user_id":"u-1"},
       "output_config":{"effort":"low","format":{"type":"json_schema","schema":{"type":"object"}}},
       "tools":[{"name":"weather","description":"Weather \"now\"","strict":true,
         "input_schema":{"type":"object","properties":{"city":{"type":"string"}}}}],
       "tool_choice":{"type":"tool","name":"weather","disable_parallel_tool_use":true},
       "system":[{"type":"text","text":"Be brief."},
         {"type":"text","text":"Be kind.","cache_control":{"type":"ephemeral"}}],
       "messages":[
        {"role":"user","content":[{"type":"text","text":"What is in it? 🐦\n"},
          {"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}},
          {"type":"image","source":{"type":"url","url":"https://example.org/a.png"}}]},
        {"role":"assistant","content":[
          {"type":"tool_use","id":"a","name":"weather","input":{"city":"Oslo"}},
          {"type":"tool_use","id":"b","name":"weather","input":{}}]},
        {"role":"user","content":[
          {"type":"tool_result","tool_use_id":"a","content":"Rain"},
          {"type":"tool_result","tool_use_id":"b","content":[{"type":"text","text":"Sun"}]}]},
        {"role":"user","content":"And?"},
        {"role":"assistant","content":[{"type":"thinking","thinking":"Hmm","signature":"s"},
          {"type":"text","text":"So"}]}]}
      """#)
    #expect(body == expected)
  }

  @Test(
    arguments: ["anthropic", "gemini", "ollama"],
    [#"{\"a\": 1"#, "[1]", "17", #"\"x\""#, #"say \"hi\""#])
  func whatAModelWroteForArgumentsDoesNotEndTheConversation(
    _ dialect: String, _ arguments: String
  ) throws {
    let call = call(
      dialect,
      request: #"""
        {"messages":[{"role":"user","content":"x"},
          {"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"\#(arguments)"}}]},
          {"role":"tool","tool_call_id":"a","content":"not an object"}]}
        """#)
    let body = try requestBody(call)
    let written = try #require(
      try decode(#"{"text":"\#(arguments)"}"#)["text"] as? String)
    let input: Any?
    switch dialect {
    case "anthropic":
      let messages = try #require(body["messages"] as? [NSDictionary])
      input = (messages[1]["content"] as? [NSDictionary])?.first?["input"]
    case "gemini":
      let contents = try #require(body["contents"] as? [NSDictionary])
      let part = (contents[1]["parts"] as? [NSDictionary])?.first
      input = (part?["functionCall"] as? NSDictionary)?["args"]
    default:
      let messages = try #require(body["messages"] as? [NSDictionary])
      let part = (messages[1]["tool_calls"] as? [NSDictionary])?.first
      input = (part?["function"] as? NSDictionary)?["arguments"]
    }
    #expect(input as? NSDictionary == ["INVALID_JSON": written])
  }

  @Test func anthropicHeadersAndAddress() throws {
    for base in [
      "https://api.anthropic.com", "https://api.anthropic.com/", "https://api.anthropic.com/v1/",
    ] {
      let call = call("anthropic", baseURL: base)
      let request = try dialect(of: call).request(for: call)
      #expect(request.url == "https://api.anthropic.com/v1/messages")
      #expect(header("anthropic-version", of: request) == ["2023-06-01"])
      #expect(header("x-api-key", of: request) == ["sk-secret-1234"])
    }
  }

  @Test func anthropicAlwaysGetsALimit() throws {
    #expect(try requestBody(call("anthropic"))["max_tokens"] as? Int == 4_096)
    let configured = call("anthropic", options: #"{"max_output_tokens":777}"#)
    #expect(try requestBody(configured)["max_tokens"] as? Int == 777)
  }

  @Test func samplingParametersAreGoneFromTheNewerVersion() throws {
    let call = call(
      "anthropic",
      request:
        #"{"messages":[{"role":"user","content":"x"}],"params":{"temperature":0.5,"top_p":0.1,"top_k":3,"thinking":{"type":"adaptive"}}}"#,
      options: #"{"anthropic_version":"2026-10-21"}"#)
    let body = try requestBody(call)
    #expect(body["temperature"] == nil && body["top_p"] == nil && body["top_k"] == nil)
    #expect(body["thinking"] as? NSDictionary == ["type": "adaptive"])
    #expect(
      header("anthropic-version", of: try dialect(of: call).request(for: call)) == ["2026-10-21"])
  }

  @Test(arguments: [
    (#""tool_choice":"required""#, #"{"type":"any"}"#),
    (#""tool_choice":"none""#, #"{"type":"none"}"#),
    (#""parallel_tool_calls":false"#, #"{"type":"auto","disable_parallel_tool_use":true}"#),
    (#""parallel_tool_calls":false,"tool_choice":"none""#, #"{"type":"none"}"#),
    (#""tool_choice":{"type":"tool","name":"f"}"#, #"{"type":"tool","name":"f"}"#),
    (
      #""tool_choice":{"type":"any","disable_parallel_tool_use":true}"#,
      #"{"type":"any","disable_parallel_tool_use":true}"#
    ),
  ]) func toolChoicesAreTranslated(_ params: String, _ expected: String) throws {
    let body = try requestBody(
      call(
        "anthropic",
        request:
          #"{"messages":[{"role":"user","content":"x"}],"params":{"tools":[{"type":"function","function":{"name":"f"}}],\#(params)}}"#
      ))
    #expect(body["tool_choice"] as? NSDictionary == (try decode(expected)))
    #expect(
      (body["tools"] as? [NSDictionary])?.first == [
        "name": "f", "input_schema": ["type": "object"],
      ])
  }

  @Test(arguments: [
    (#""reasoning_effort":"none""#, "thinking", #"{"type":"disabled"}"#),
    (#""reasoning_effort":"high""#, "output_config", #"{"effort":"high"}"#),
    (
      #""reasoning_effort":"high","output_config":{"effort":"max"}"#, "output_config",
      #"{"effort":"max"}"#
    ),
    (
      #""service_tier":"default","stop":["a","b"],"cache_control":{"type":"ephemeral"}"#,
      "cache_control", #"{"type":"ephemeral"}"#
    ),
  ]) func parametersAreTranslated(_ params: String, _ name: String, _ expected: String) throws {
    let body = try requestBody(
      call(
        "anthropic",
        request: #"{"messages":[{"role":"user","content":"x"}],"params":{\#(params)}}"#))
    #expect(body[name] as? NSDictionary == (try decode(expected)))
  }

  @Test(arguments: [
    ("openai", #"{"messages":[],"params":{}}"#), ("openai", #"{"params":{}}"#),
    ("openai", "[]"), ("openai", ""), ("openai", #"{"messages":"x"}"#),
    ("openai", #"{"messages":[{"role":"user","content":"x"}],"params":[]}"#),
    ("openai", #"{"messages":[{"role":"user","content":"x"}],"params":{"n":2}}"#),
    ("anthropic", #"{"messages":[{"role":"system","content":"x"}]}"#),
    ("anthropic", #"{"messages":[{"role":"function","content":"x"}]}"#),
    ("anthropic", #"{"messages":[{"content":"x"}]}"#), ("anthropic", #"{"messages":[17]}"#),
    ("anthropic", #"{"messages":[{"role":"tool","content":"x"}]}"#),
    ("anthropic", #"{"messages":[{"role":"user","content":[{"type":"input_audio"}]}]}"#),
    (
      "anthropic",
      #"{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"f"}}]}]}"#
    ),
    (
      "anthropic",
      #"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png,xx"}}]}]}"#
    ),
    (
      "anthropic",
      #"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///etc"}}]}]}"#
    ),
    ("anthropic", #"{"messages":[{"role":"user","content":"x"}],"params":{"n":3}}"#),
    (
      "anthropic",
      #"{"messages":[{"role":"user","content":"x"}],"params":{"response_format":{"type":"json_schema"}}}"#
    ),
    (
      "anthropic",
      #"{"messages":[{"role":"user","content":"x"}],"params":{"tools":[{"type":"custom","custom":{"name":"c"}}]}}"#
    ),
  ]) func whatCannotBeSaidIsRefusedClearly(_ dialect: String, _ request: String) throws {
    let failure = try #require(try refusal(call(dialect, request: request)))
    #expect(failure.signal == .unsendable)
    #expect(failure.message.count > 10)
  }

  @Test func secretsAndHeadersCannotSmuggleHeaders() throws {
    for secret in ["", "a\r\nx: y", "a\nb", "a\u{0}b"] {
      let failure = try #require(try refusal(call(secret: secret)))
      #expect(failure.signal == .unsendable)
      #expect(secret.isEmpty || !failure.message.contains(secret))
    }
    #expect(try refusal(call(headers: ["x y": "z"])) != nil)
    #expect(try refusal(call(headers: ["x": "a\r\nb"])) != nil)
    #expect(try refusal(call(baseURL: "ftp://x")) != nil)
    #expect(try refusal(call(baseURL: "https://x/ y")) != nil)
    #expect(try refusal(call("anthropic", options: "[]")) != nil)
    #expect(try refusal(call("anthropic", kind: .embedding)) != nil)
    for input in [
      "{}", #"{"input":[]}"#, #"{"input":[[1],[2]]}"#, #"{"input":["a",1]}"#, #"{"input":[1,"a"]}"#,
      #"{"input":{}}"#, #"{"input":["a",null]}"#,
    ] {
      #expect(try refusal(call(kind: .embedding, request: input)) != nil, "\(input)")
    }
    #expect(try refusal(call(kind: .embedding, request: #"{"input":[1,2]}"#)) == nil)
  }

  @Test func unknownDialectsHaveNone() {
    #expect(Dialects.named("grammar") == nil)
    #expect(Dialects.named("local") == nil)
  }

  private func header(_ name: String, of request: ProviderRequest) -> [String] {
    request.headers.filter { $0.name.lowercased() == name }.map(\.value)
  }
}
