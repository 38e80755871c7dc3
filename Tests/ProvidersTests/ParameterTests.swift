import Foundation
import Providers
import Testing

/// What a model cannot take is dropped and named, or refused where the call is strict.
@Suite struct ParameterTests {
  private func chat(_ params: String) -> String {
    #"{"messages":[{"role":"user","content":"x"}],"params":{\#(params)}}"#
  }

  private func dropped(_ call: Call) throws -> [String] {
    try dialect(of: call).request(for: call).dropped
  }

  @Test("what a model's options call unsupported is left out of the request and named")
  func unsupported() throws {
    let call = call(
      request: chat(#""seed":1,"temperature":0.5,"top_k":3"#),
      options: #"{"unsupported_params":["seed","top_k","logprobs",7]}"#)
    let body = try requestBody(call)
    #expect(body["seed"] == nil && body["top_k"] == nil)
    #expect(body["temperature"] as? Double == 0.5)
    #expect(try dropped(call) == ["seed", "top_k"])
  }

  @Test(
    "a strict call that would have to be changed is refused with all the names",
    arguments: [
      (#""strict":true,"seed":1,"top_k":3"#, "{}"),
      (#""seed":1,"top_k":3"#, #","strict":true"#),
    ])
  func strict(_ params: String, _ options: String) throws {
    let extra = options == "{}" ? "" : options
    let failure = try #require(
      try refusal(
        call(
          request: chat(params),
          options: #"{"unsupported_params":["seed","top_k"]\#(extra)}"#)))
    #expect(failure.signal == .unsendable)
    #expect(failure.code == "unsupported_parameter")
    #expect(failure.parameters == ["seed", "top_k"])
    #expect(failure.message.contains("seed, top_k"))
  }

  @Test("strict never reaches a provider, and false overrules the option")
  func strictIsOurs() throws {
    let call = call(
      request: chat(#""strict":false,"seed":1"#),
      options: #"{"strict":true,"unsupported_params":["seed"]}"#)
    #expect(try requestBody(call)["strict"] == nil)
    #expect(try dropped(call) == ["seed"])
    let taken = Self.strictlyTaken(chat(#""strict":true,"seed":1"#))
    #expect(try requestBody(taken)["seed"] as? Int == 1)
    #expect(try requestBody(taken)["strict"] == nil)
    #expect(try dropped(taken) == [])
  }

  private static func strictlyTaken(_ request: String) -> Call { call(request: request) }

  @Test("the bound of an answer is never left out: budgets rest on it")
  func limits() throws {
    for name in ["max_tokens", "max_completion_tokens"] {
      let call = call(
        request: chat(#""\#(name)":9"#),
        options: #"{"unsupported_params":["max_tokens","max_completion_tokens"]}"#)
      #expect(try requestBody(call)["max_completion_tokens"] as? Int == 9)
      #expect(try dropped(call) == [])
    }
  }

  @Test("what asks for nothing goes without a word, also from a strict call")
  func nothing() throws {
    let call = call(
      "anthropic",
      request: chat(
        #""strict":true,"n":1,"logprobs":false,"frequency_penalty":0,"presence_penalty":0.0,"logit_bias":{},"store":false,"modalities":["text"],"response_format":{"type":"text"},"seed":null,"metadata":{}"#
      ))
    #expect(try dropped(call) == [])
    let body = try requestBody(call)
    #expect(Set(body.allKeys as? [String] ?? []) == ["model", "messages", "max_tokens", "stream"])
  }

  @Test(
    "Anthropic's API has no word for these",
    arguments: [
      (#""seed":7"#, ["seed"]),
      (#""logprobs":true,"top_logprobs":3"#, ["logprobs", "top_logprobs"]),
      (
        #""frequency_penalty":0.1,"presence_penalty":-1"#,
        ["frequency_penalty", "presence_penalty"]
      ),
      (#""logit_bias":{"1":2}"#, ["logit_bias"]), (#""store":true"#, ["store"]),
      (#""audio":{"voice":"x"},"modalities":["text","audio"]"#, ["audio", "modalities"]),
      (#""response_format":{"type":"json_object"}"#, ["response_format"]),
      (#""functions":[{"name":"f"}],"function_call":"auto""#, ["functions", "function_call"]),
      (#""web_search_options":{}"#, ["web_search_options"]), (#""verbosity":"low""#, ["verbosity"]),
      (#""prompt_cache_key":"k""#, ["prompt_cache_key"]), (#""system":"s""#, ["system"]),
      (#""service_tier":"flex""#, ["service_tier"]),
      (#""metadata":{"a":"b"}"#, ["metadata"]), (#""metadata":{"user_id":"b"}"#, []),
      (#""service_tier":"default""#, []), (#""top_k":5"#, []), (#""user":"u""#, []),
      (#""reasoning_effort":"low""#, []), (#""stop":["a"]"#, []),
    ])
  func anthropic(_ params: String, _ names: [String]) throws {
    let call = call("anthropic", request: chat(params))
    #expect(try dropped(call) == names)
    let body = try requestBody(call)
    for name in names where name != "metadata" { #expect(body[name] == nil) }
    let strict = Self.strictlyAnthropic(chat(params + #","strict":true"#))
    #expect(try refusal(strict)?.parameters ?? [] == names)
  }

  private static func strictlyAnthropic(_ request: String) -> Call {
    call("anthropic", request: request)
  }

  @Test("sampling parameters are named where the newer version has none")
  func newerVersion() throws {
    let call = call(
      "anthropic", request: chat(#""temperature":0.5,"top_p":0.1,"top_k":3"#),
      options: #"{"anthropic_version":"2026-10-21"}"#)
    #expect(try dropped(call) == ["temperature", "top_p", "top_k"])
  }

  @Test("the built-in provider says what it has no use for")
  func local() throws {
    func answer(_ params: String) -> Outcome {
      LocalAnswers.answer(call("local", model: "extract", request: chat(params)))
    }
    #expect(try answer(#""temperature":0.5,"max_tokens":9,"n":1"#).get().dropped == ["temperature"])
    #expect(try answer(#""strict":true,"max_tokens":9"#).get().dropped == [])
    guard case .failure(let failure) = answer(#""strict":true,"seed":1,"tools":[{}]"#) else {
      Issue.record("a strict call was answered")
      return
    }
    #expect(failure.parameters == ["seed", "tools"])
  }
}
