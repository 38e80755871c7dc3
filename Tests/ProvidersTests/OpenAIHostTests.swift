import Foundation
import Providers
import Testing

/// Hosts that speak like OpenAI: what they are sent, and how they answer.
@Suite struct OpenAIHostTests {
  private func chat(_ params: String) -> String {
    #"{"messages":[{"role":"user","content":"x"}],"params":{\#(params)}}"#
  }

  private func options(_ variant: String, _ more: String = "") -> String {
    #"{"variant":"\#(variant)"\#(more)}"#
  }

  private static let everyParameter = #"""
    "audio":{"voice":"a"},"frequency_penalty":0.1,"logit_bias":{"1":1},"logprobs":true,"max_tokens":9,"metadata":{"a":"b"},
    "modalities":["text","audio"],"parallel_tool_calls":false,"prediction":{"type":"content","content":"x"},
    "presence_penalty":0.1,"prompt_cache_key":"k","reasoning_effort":"low","response_format":{"type":"json_object"},
    "safety_identifier":"s","seed":1,"service_tier":"default","stop":"END","store":true,"temperature":0.5,
    "tool_choice":"auto","tools":[{"type":"function","function":{"name":"f"}}],"top_logprobs":3,"top_p":0.9,
    "user":"u","verbosity":"low","web_search_options":{},"top_k":7
    """#

  @Test(
    "each host gets what it takes and nothing else",
    arguments: [
      (
        "openai", ["max_completion_tokens", "seed", "user", "stream_options", "store", "verbosity"]
      ),
      ("azure", ["max_completion_tokens", "seed", "user", "stream_options", "store", "verbosity"]),
      ("openrouter", ["max_tokens", "seed", "user", "stream_options", "store", "verbosity"]),
      ("vllm", ["max_tokens", "seed", "user", "stream_options", "logit_bias", "logprobs"]),
      ("groq", ["max_completion_tokens", "seed", "user", "stream_options"]),
      ("together", ["max_tokens", "seed", "stream_options", "logit_bias", "logprobs"]),
      ("deepseek", ["max_tokens", "stream_options", "logprobs", "top_logprobs"]),
      ("mistral", ["max_tokens", "random_seed", "metadata", "prediction", "prompt_cache_key"]),
    ])
  func parameters(_ variant: String, _ expected: [String]) throws {
    let call = call(
      stream: true, request: chat(Self.everyParameter),
      options: options(variant, #","api_version":"1""#))
    let body = try requestBody(call)
    let names = Set(body.allKeys as? [String] ?? [])
    let common = [
      "model", "messages", "stream", "temperature", "top_p", "tools", "tool_choice",
      "reasoning_effort", "response_format", "top_k", "stop",
    ]
    #expect(Set(common + expected).subtracting(names) == [])
    let dropped = try dialect(of: call).request(for: call).dropped
    // Everything that was given is sent, under its own or another name, or is named as dropped.
    let given = try decode("{\(Self.everyParameter)}")
    for name in given.allKeys as? [String] ?? [] {
      let other = [
        "max_tokens": body["max_tokens"] == nil ? "max_completion_tokens" : "max_tokens",
        "seed": variant == "mistral" ? "random_seed" : "seed",
      ][name]
      let isSent = body[other ?? name] != nil
      let joined = variant == "together" && name == "top_logprobs"
      #expect(isSent != dropped.contains(name) || joined, "\(variant): \(name)")
    }
    if ["openai", "azure", "openrouter"].contains(variant) { #expect(dropped == []) }
  }

  @Test("a host's own words for the same")
  func words() throws {
    let together = try requestBody(
      call(
        request: chat(#""stop":"END","logprobs":true,"top_logprobs":5"#),
        options: options("together")))
    #expect(together["stop"] as? [String] == ["END"])
    #expect(together["logprobs"] as? Int == 5)
    #expect(together["top_logprobs"] == nil)
    let groq = try requestBody(
      call(request: chat(#""service_tier":"priority""#), options: options("groq")))
    #expect(groq["service_tier"] as? String == "performance")
    let scale = call(request: chat(#""service_tier":"scale""#), options: options("groq"))
    #expect(try requestBody(scale)["service_tier"] == nil)
    #expect(try dialect(of: scale).request(for: scale).dropped == ["service_tier"])
    let own = try requestBody(
      call(request: chat(#""service_tier":"on_demand""#), options: options("groq")))
    #expect(own["service_tier"] as? String == "on_demand")
    let both = try requestBody(
      call(request: chat(#""seed":1,"random_seed":2"#), options: options("mistral")))
    #expect(both["random_seed"] as? Int == 2)
    let schema = call(
      request: chat(
        #""response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{}}}"#),
      options: options("deepseek"))
    #expect(try dialect(of: schema).request(for: schema).dropped == ["response_format"])
  }

  @Test("options go over what the variant says, and rename anything")
  func overrides() throws {
    let body = try requestBody(
      call(
        stream: true, request: chat(#""max_tokens":5,"seed":3"#),
        options: options(
          "mistral",
          #","max_tokens_param":"limit","include_usage":true,"rename_params":{"seed":"dice"}"#)))
    #expect(body["limit"] as? Int == 5)
    #expect(body["dice"] as? Int == 3)
    #expect(body["stream_options"] != nil)
  }

  @Test("a variant that is none is refused with those there are")
  func unknown() throws {
    let failure = try #require(try refusal(call(options: options("gork"))))
    #expect(failure.signal == .unsendable)
    #expect(failure.message.contains("azure, deepseek, groq, mistral, openai"))
  }

  @Test(
    "Azure's addresses",
    arguments: [
      (
        "https://r.openai.azure.com/openai", #","api_version":"2026-10-01""#, "gpt 5/ä",
        "https://r.openai.azure.com/openai/deployments/gpt%205%2F%C3%A4/chat/completions?api-version=2026-10-01"
      ),
      (
        "https://r.openai.azure.com/openai/v1/", "", "gpt-5",
        "https://r.openai.azure.com/openai/v1/chat/completions"
      ),
      (
        "https://r.openai.azure.com/openai/v1", #","api_version":"pre&view""#, "gpt-5",
        "https://r.openai.azure.com/openai/v1/chat/completions?api-version=pre%26view"
      ),
    ])
  func azure(_ base: String, _ more: String, _ model: String, _ url: String) throws {
    let call = call(model: model, baseURL: base, options: options("azure", more))
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == url)
    #expect(request.headers.contains { $0.name == "api-key" && $0.value == "sk-secret-1234" })
    #expect(!request.headers.contains { $0.name.lowercased() == "authorization" })
  }

  @Test("Azure's deployments need a version, and an Entra token may take the key's place")
  func azureNeeds() throws {
    let base = "https://r.openai.azure.com/openai"
    let failure = try #require(try refusal(call(baseURL: base, options: options("azure"))))
    #expect(failure.message.contains("api_version"))
    let entra = call(
      baseURL: base + "/v1", options: options("azure", #","auth":"bearer""#))
    let request = try dialect(of: entra).request(for: entra)
    #expect(request.headers.contains { $0.name == "authorization" })
  }

  @Test("developers speak as the system where a host does not know them")
  func developers() throws {
    let request = #"""
      {"messages":[{"role":"developer","content":"Be kind.","name":"d"},{"role":"user","content":"x"}]}
      """#
    for variant in ["groq", "vllm", "together", "mistral", "deepseek"] {
      let body = try requestBody(call(request: request, options: options(variant)))
      let messages = try #require(body["messages"] as? [NSDictionary])
      #expect(messages[0] == ["role": "system", "content": "Be kind.", "name": "d"])
    }
    let openAI = try requestBody(call(request: request))
    #expect((openAI["messages"] as? [NSDictionary])?[0]["role"] as? String == "developer")
  }

  @Test("for a model without system messages their text goes before the user's next")
  func systemless() throws {
    let request = #"""
      {"messages":[{"role":"system","content":"A"},{"role":"developer","content":[{"type":"text","text":"B"}]},
       {"role":"user","content":"x"},{"role":"assistant","content":"y"},{"role":"system","content":"C"},
       {"role":"user","content":[{"type":"text","text":"z"}]},{"role":"system","content":"D"}]}
      """#
    let body = try requestBody(call(request: request, options: #"{"system_role":false}"#))
    let expected = try decode(
      #"""
      {"m":[{"role":"user","content":"A\n\nB\n\nx"},{"role":"assistant","content":"y"},
       {"role":"user","content":[{"type":"text","text":"C"},{"type":"text","text":"z"}]},
       {"role":"user","content":"D"}]}
      """#)
    #expect(body["messages"] as? NSArray == expected["m"] as? NSArray)
    let picture =
      #"{"messages":[{"role":"system","content":[{"type":"image_url","image_url":{"url":"x"}}]},{"role":"user","content":"x"}]}"#
    #expect(
      try refusal(call(request: picture, options: #"{"system_role":false}"#))?.signal == .unsendable
    )
  }

  @Test("reasoning goes back beside calls of tools where the host wants it, and nowhere else")
  func reasoningGoesBack() throws {
    let request = #"""
      {"messages":[{"role":"user","content":"x"},
       {"role":"assistant","content":null,"reasoning":"Hm","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}]},
       {"role":"tool","tool_call_id":"a","content":"1"},{"role":"assistant","content":"y","reasoning":"So","logprobs":{"content":[]}}]}
      """#
    let deepSeek = try requestBody(call(request: request, options: options("deepseek")))
    let messages = try #require(deepSeek["messages"] as? [NSDictionary])
    #expect(messages[1]["reasoning_content"] as? String == "Hm")
    #expect(messages[1]["reasoning"] == nil)
    #expect(messages[3] == ["role": "assistant", "content": "y"])
    let openAI = try requestBody(call(request: request))
    let plain = try #require(openAI["messages"] as? [NSDictionary])
    #expect(plain[1]["reasoning"] == nil && plain[1]["reasoning_content"] == nil)
  }

  @Test("Groq's usage is in x_groq, and its reasoning beside the text")
  func groqStream() throws {
    let reading = try read(call(stream: true), text: Fixture.groqStream)
    let reply = try #require(reading.reply)
    #expect(reply.output == "Vögel 🐦")
    #expect(reply.usage == usage(input: 90, cacheRead: 64, output: 21, reasoning: 12))
    #expect(try reading.message()["reasoning"] as? String == "Hm. ")
    #expect(reply.serviceTier == "on_demand")
  }

  @Test("OpenRouter's comments are passed over, and its own cost is a unit")
  func openRouterStream() throws {
    let reply = try #require(
      try read(call(stream: true), text: Fixture.openRouterStream).reply)
    #expect(reply.output == "Hello")
    #expect(reply.usage?.units == ["credits": "0.0000185"])
    #expect(reply.usage?.input == 12)
  }

  @Test("an error in the middle of OpenRouter's stream has a number for a code")
  func openRouterError() throws {
    let text = """
      data: {"id":"gen-1","model":"x/y","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}

      data: {"id":"gen-1","model":"x/y","error":{"code":502,"message":"Provider disconnected"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}


      """
    let failure = try #require(try read(call(stream: true), text: text).failure)
    #expect(failure.signal == .embeddedError)
    #expect(failure.code == "502")
    #expect(failure.message == "Provider disconnected")
    #expect(failure.partial?.output == "Hel")
  }

  @Test("DeepSeek's cache hits, reasoning and log probabilities")
  func deepSeekStream() throws {
    let reading = try read(call(stream: true), text: Fixture.deepSeekStream)
    let reply = try #require(reading.reply)
    #expect(reply.usage == usage(input: 30, cacheRead: 20, output: 9, reasoning: 5))
    #expect(reply.finishReason == "length")
    let message = try reading.message()
    #expect(message["reasoning"] as? String == "Nun ja")
    let content = (message["logprobs"] as? NSDictionary)?["content"] as? [NSDictionary]
    #expect(content?.map { $0["token"] as? String } == ["Vier", "."])
    #expect(content?.map { $0["logprob"] as? Double } == [-0.1, -0.2])
  }

  @Test("Mistral's reasoning comes as parts, and its faults as lists")
  func mistral() throws {
    let text = #"""
      {"id":"m","model":"magistral","choices":[{"index":0,"message":{"role":"assistant","content":[
       {"type":"thinking","thinking":[{"type":"text","text":"Hm"},{"type":"text","text":"m"}],"closed":true},{"type":"text","text":"Four."}]},
       "finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_audio_seconds":4,"service_tier":"standard"}}
      """#
    let reading = try read(call(), text: text)
    let reply = try #require(reading.reply)
    #expect(reply.output == "Four.")
    #expect(try reading.message()["reasoning"] as? String == "Hmm")
    #expect(reply.serviceTier == "standard")
    #expect(reply.usage?.units == ["input_seconds": "4"])
    let refusal = try read(
      call(), status: 422,
      text:
        #"{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs are not permitted"}]},"type":"invalid_request_error","param":null,"code":null}"#
    )
    #expect(refusal.failure?.message == "body.seed: Extra inputs are not permitted")
    #expect(refusal.failure?.type == "invalid_request_error")
  }

  @Test("vLLM's errors have a number for a code, and its usage may come with every chunk")
  func vLLM() throws {
    let refused = try read(
      call(), status: 400,
      text:
        #"{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}"#)
    #expect(refused.failure?.code == "400")
    let text = """
      data: {"id":"v","model":"q","choices":[{"index":0,"delta":{"role":"assistant","content":"a"}}],"usage":{"prompt_tokens":5,"total_tokens":6,"completion_tokens":1}}

      data: {"id":"v","model":"q","choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}

      data: [DONE]


      """
    let reply = try #require(try read(call(stream: true), text: text).reply)
    #expect(reply.usage == usage(input: 5, output: 2))
  }

  @Test("Azure's filter speaks first, without a choice and a model")
  func azureStream() throws {
    let text = """
      data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{}}]}

      data: {"choices":[{"content_filter_results":{},"delta":{"content":"Hi","role":"assistant"},"finish_reason":null,"index":0,"logprobs":null}],"created":1,"id":"chatcmpl-a","model":"gpt-5","object":"chat.completion.chunk"}

      data: {"choices":[{"content_filter_results":{},"delta":{},"finish_reason":"stop","index":0}],"created":1,"id":"chatcmpl-a","model":"gpt-5"}

      data: [DONE]


      """
    let reply = try #require(try read(call(stream: true), text: text).reply)
    #expect(reply.output == "Hi")
    #expect(reply.model == "gpt-5")
  }

  @Test("parts of a usage that have another price are units")
  func units() throws {
    let text = #"""
      {"id":"u","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}],
       "usage":{"prompt_tokens":100,"completion_tokens":50,"total_tokens":150,"num_search_queries":2,"citation_tokens":7,
        "prompt_tokens_details":{"cached_tokens":10,"audio_tokens":40,"image_tokens":20,"cached_tokens_details":{"audio_tokens":5}},
        "completion_tokens_details":{"reasoning_tokens":3,"audio_tokens":9},"cost":"free"}}
      """#
    let reply = try #require(try read(call(), text: text).reply)
    #expect(
      reply.usage?.units == [
        "audio_input": "40", "image_input": "20", "audio_cache_read": "5", "audio_output": "9",
        "searches": "2", "citations": "7",
      ])
  }
}
