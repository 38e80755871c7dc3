import Foundation
import Providers
import Testing

@Suite struct GeminiRequestTests {
  @Test func everythingIsSaidInGeminisWords() throws {
    let call = call("gemini", stream: true, request: RequestTests.everything)
    let request = try dialect(of: call).request(for: call)
    #expect(
      request.url
        == "https://generativelanguage.googleapis.com/v1beta/models/m-1:streamGenerateContent?alt=sse"
    )
    #expect(request.headers.contains { $0 == ("x-goog-api-key", "sk-secret-1234") })
    #expect(request.dropped.sorted() == ["parallel_tool_calls", "user"])
    let expected = try decode(
      #"""
      {"systemInstruction":{"parts":[{"text":"Be brief."},{"text":"Be kind."}]},
       "contents":[
        {"role":"user","parts":[{"text":"What is in it? 🐦\n"},
          {"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}},
          {"fileData":{"mimeType":"image/png","fileUri":"https://example.org/a.png"}}]},
        {"role":"model","parts":[{"functionCall":{"id":"a","name":"weather","args":{"city":"Oslo"}}},
          {"functionCall":{"id":"b","name":"weather","args":{}}}]},
        {"role":"user","parts":[
          {"functionResponse":{"id":"a","name":"weather","response":{"output":"Rain"}}},
          {"functionResponse":{"id":"b","name":"weather","response":{"output":"Sun"}}}]},
        {"role":"user","parts":[{"text":"And?"}]},
        {"role":"model","parts":[{"text":"So"}]}],
       "tools":[{"functionDeclarations":[{"name":"weather","description":"Weather \"now\"",
         "parametersJsonSchema":{"type":"object","properties":{"city":{"type":"string"}}}}]}],
       "toolConfig":{"functionCallingConfig":{"mode":"ANY","allowedFunctionNames":["weather"]}},
       "generationConfig":{"temperature":1.5,"topP":0.9,"seed":7,"maxOutputTokens":50,
         "stopSequences":["END"],"responseMimeType":"application/json",
         "responseJsonSchema":{"type":"object"},"thinkingConfig":{"thinkingLevel":"MINIMAL"}}}
      """#)
    #expect(try decode(request.body) == expected)
  }

  @Test func anAnswerThatIsHandedBackCarriesItsSignatures() throws {
    let reading = try read(call("gemini", stream: true), text: Fixture.geminiStream)
    let message = String(decoding: try #require(reading.reply?.message), as: UTF8.self)
    let body = try requestBody(
      call(
        "gemini",
        request:
          #"{"messages":[{"role":"user","content":"x"},\#(message),{"role":"tool","tool_call_id":"fc-1","content":"{\"sky\":\"blue\"}"},{"role":"tool","tool_call_id":"call_1","content":"noon"}]}"#
      ))
    let contents = try #require(body["contents"] as? [NSDictionary])
    #expect(
      contents[1]
        == (try decode(
          #"""
          {"role":"model","parts":[{"text":"Grüße, martlet 🐦!","thoughtSignature":"U2lnMg=="},
           {"functionCall":{"id":"fc-1","name":"weather","args":{"city":"Oslo","days":[1,2]}},"thoughtSignature":"U2lnMQ=="},
           {"functionCall":{"name":"now","args":{}}}]}
          """#)))
    #expect(
      contents[2]
        == (try decode(
          #"""
          {"role":"user","parts":[
           {"functionResponse":{"id":"fc-1","name":"weather","response":{"sky":"blue"}}},
           {"functionResponse":{"name":"now","response":{"output":"noon"}}}]}
          """#)))
    // Nobody else knows them.
    let others = try requestBody(
      call(request: #"{"messages":[{"role":"user","content":"x"},\#(message)]}"#))
    let sent = try #require((others["messages"] as? [NSDictionary])?[1])
    #expect(Set(sent.allKeys.compactMap { $0 as? String }) == ["role", "content", "tool_calls"])
  }

  @Test func callsOfOtherModelsGetTheSignatureThatTheOptionsName() throws {
    let body = try requestBody(
      call(
        "gemini",
        request: #"""
          {"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":[
            {"id":"a","function":{"name":"f","arguments":"{}"}},{"id":"b","function":{"name":"g","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"a","content":""},{"role":"tool","tool_call_id":"b","content":""}]}
          """#, options: #"{"missing_thought_signature":"skip_thought_signature_validator"}"#))
    let contents = try #require(body["contents"] as? [NSDictionary])
    let parts = try #require(contents[1]["parts"] as? [NSDictionary])
    #expect(parts[0]["thoughtSignature"] as? String == "skip_thought_signature_validator")
    #expect(parts[1]["thoughtSignature"] == nil)
  }

  @Test func geminisOwnWordsPass() throws {
    let body = try requestBody(
      call(
        "gemini",
        request: #"""
          {"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"AAAA","format":"mp3"}},
            {"type":"file","file":{"file_data":"data:application/pdf;base64,JVBE","filename":"a.pdf"}},
            {"type":"file","file":{"file_id":"https://generativelanguage.googleapis.com/v1beta/files/x"}},
            {"fileData":{"fileUri":"gs://b/v.mp4","mimeType":"video/mp4"}}]}],
           "params":{"tools":[{"googleSearch":{}}],"safety_settings":[{"category":"C","threshold":"T"}],
            "cachedContent":"cachedContents/1","service_tier":"flex","top_k":40,"media_resolution":"LOW",
            "generation_config":{"top_k":1,"candidateCount":1},"reasoning_effort":"low",
            "thinking_config":{"include_thoughts":true},"top_logprobs":3,"logprobs":true}}
          """#, options: #"{"thinking_budgets":{"low":1024}}"#))
    #expect(
      body
        == (try decode(
          #"""
          {"contents":[{"role":"user","parts":[{"inlineData":{"mimeType":"audio/mp3","data":"AAAA"}},
            {"inlineData":{"mimeType":"application/pdf","data":"JVBE"}},
            {"fileData":{"fileUri":"https://generativelanguage.googleapis.com/v1beta/files/x"}},
            {"fileData":{"fileUri":"gs://b/v.mp4","mimeType":"video/mp4"}}]}],
           "tools":[{"googleSearch":{}}],"safetySettings":[{"category":"C","threshold":"T"}],
           "cachedContent":"cachedContents/1","serviceTier":"flex",
           "generationConfig":{"topK":40,"responseLogprobs":true,"logprobs":3,"mediaResolution":"LOW",
            "thinkingConfig":{"includeThoughts":true,"thinkingBudget":1024},"candidateCount":1}}
          """#)))
  }

  @Test(
    arguments: [
      (#"{"messages":[{"role":"system","content":"x"}]}"#, "a message beside"),
      (#"{"messages":[{"role":"critic","content":"x"}]}"#, "critic"),
      (#"{"messages":[{"role":"tool","tool_call_id":"a","content":"x"}]}"#, "no message before"),
      (#"{"messages":[{"role":"user","content":"x"}],"params":{"n":2}}"#, "n must be 1"),
      (
        #"{"messages":[{"role":"user","content":"x"}],"params":{"n":1,"candidate_count":8}}"#,
        "candidateCount must be 1"
      ),
      (
        #"{"messages":[{"role":"user","content":"x"}],"params":{"candidateCount":8}}"#,
        "candidateCount must be 1"
      ),
      (
        #"{"messages":[{"role":"user","content":"x"}],"params":{"candidateCount":1,"generation_config":{"candidate_count":8}}}"#,
        "candidateCount must be 1"
      ),
      (
        #"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png,x"}}]}]}"#,
        "base64"
      ),
      (#"{"messages":[{"role":"user","content":[{"type":"video_url"}]}]}"#, "video_url"),
      (
        #"{"messages":[{"role":"user","content":"x"}],"params":{"tools":[{"type":"custom","custom":{"name":"x"}}]}}"#,
        "tools[0]"
      ),
    ])
  func whatCannotBeSaidIsRefused(_ request: String, _ words: String) throws {
    let failure = try #require(try refusal(call("gemini", request: request)))
    #expect(failure.signal == .unsendable)
    #expect(failure.message.contains(words), "\(failure.message)")
  }

  @Test func whatHasNoWordIsDroppedAndNamedOrRefused() throws {
    let params =
      #""response_format":{"type":"grammar"},"reasoning_effort":"huge","service_tier":"gold","logit_bias":{"1":2},"logprobs":false,"functions":[],"stream_options":{}"#
    let request = #"{"messages":[{"role":"user","content":"x"}],"params":{\#(params)}}"#
    let sent = try dialect(of: call("gemini")).request(for: call("gemini", request: request))
    #expect(
      sent.dropped.sorted()
        == ["functions", "logit_bias", "reasoning_effort", "response_format", "service_tier"])
    #expect(try decode(sent.body).allKeys as? [String] == ["contents"])
    let strict = request.replacing(#""params":{"#, with: #""params":{"strict":true,"#)
    let failure = try #require(try refusal(call("gemini", request: strict)))
    #expect(failure.code == "unsupported_parameter")
  }

  @Test(
    arguments: [
      ("https://g.example", "m-1", "https://g.example/v1/models/m-1:generateContent"),
      ("https://g.example/", "m-1", "https://g.example/v1/models/m-1:generateContent"),
      (
        "https://g.example/v1beta", "tunedModels/x",
        "https://g.example/v1beta/tunedModels/x:generateContent"
      ),
      (
        "https://g.example/v1/projects/p/locations/l/publishers/google", "m",
        "https://g.example/v1/projects/p/locations/l/publishers/google/models/m:generateContent"
      ),
      ("http://h:1", "s+a=1;b?#%", "http://h:1/v1/models/s+a=1%3Bb%3F%23%25:generateContent"),
    ])
  func theModelStandsInThePath(_ base: String, _ model: String, _ url: String) throws {
    let call = call("gemini", model: model, baseURL: base)
    #expect(try dialect(of: call).request(for: call).url == url)
  }

  @Test(arguments: ["../x", "a//b", "./x", "x/.."])
  func aNameThatWouldClimbIsRefused(_ model: String) throws {
    #expect(try refusal(call("gemini", model: model))?.signal == .unsendable)
  }

  @Test func embeddingsAreOneOrABatch() throws {
    let one = call(
      "gemini", kind: .embedding,
      request:
        #"{"input":"Größe","params":{"dimensions":256,"task_type":"RETRIEVAL_QUERY","user":"u"}}"#)
    let request = try dialect(of: one).request(for: one)
    #expect(request.url.hasSuffix("/models/m-1:embedContent"))
    #expect(request.dropped == ["user"])
    #expect(
      try decode(request.body)
        == decode(
          #"{"model":"models/m-1","content":{"parts":[{"text":"Größe"}]},"outputDimensionality":256,"taskType":"RETRIEVAL_QUERY"}"#
        ))
    let several = call("gemini", kind: .embedding, request: #"{"input":["a","b"]}"#)
    let batch = try dialect(of: several).request(for: several)
    #expect(batch.url.hasSuffix("/models/m-1:batchEmbedContents"))
    #expect(
      try decode(batch.body)
        == decode(
          #"{"requests":[{"model":"models/m-1","content":{"parts":[{"text":"a"}]}},{"model":"models/m-1","content":{"parts":[{"text":"b"}]}}]}"#
        ))
    for (count, isSent) in [(100, true), (101, false)] {
      let texts = [String](repeating: #""x""#, count: count).joined(separator: ",")
      let call = call("gemini", kind: .embedding, request: #"{"input":[\#(texts)]}"#)
      #expect((try refusal(call) == nil) == isSent)
    }
  }

  @Test func picturesAndSpeechAreModalities() throws {
    let image = try requestBody(call("gemini", kind: .image, request: #"{"input":"a bird"}"#))
    #expect(
      image
        == (try decode(
          #"{"contents":[{"role":"user","parts":[{"text":"a bird"}]}],"generationConfig":{"responseModalities":["TEXT","IMAGE"]}}"#
        )))
    let speech = try requestBody(
      call("gemini", kind: .speech, request: #"{"input":"Hi","params":{"voice":"Kore"}}"#))
    #expect(
      speech["generationConfig"] as? NSDictionary
        == (try decode(
          #"{"responseModalities":["AUDIO"],"speechConfig":{"voiceConfig":{"prebuiltVoiceConfig":{"voiceName":"Kore"}}}}"#
        )))
  }
}
