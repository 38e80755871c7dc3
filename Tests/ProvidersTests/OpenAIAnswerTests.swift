import Foundation
import Providers
import Testing

@Suite struct OpenAIAnswerTests {
  @Test func aStreamGivesTextUsageModelAndTier() throws {
    let reading = try read(
      call(stream: true), headers: ["x-request-id": "req-7"], text: Fixture.openAIStream)
    let reply = try #require(reading.reply)
    #expect(reading.shown == "Grüße, martlet 🐦!")
    #expect(reply.output == reading.shown)
    #expect(reply.finishReason == "stop")
    #expect(
      reply.usage
        == usage(input: 120, cacheRead: 64, cacheWrite: 32, output: 48, reasoning: 40))
    #expect(reply.model == "gpt-5-2026")
    #expect(reply.serviceTier == "default")
    #expect(reply.requestID == "req-7")
    #expect(reading.wasComplete)
    #expect(
      try reading.message() == decode(#"{"role":"assistant","content":"Grüße, martlet 🐦!"}"#))
  }

  @Test func parallelToolCallsComeBackWhole() throws {
    let reading = try read(call(stream: true), text: Fixture.openAITools)
    #expect(reading.reply?.finishReason == "tool_calls")
    #expect(reading.reply?.output == "")
    let expected = try decode(
      #"""
      {"role":"assistant","content":null,"tool_calls":[
        {"id":"call_a","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}},
        {"id":"call_b","type":"function","function":{"name":"time","arguments":"{}"}}]}
      """#)
    #expect(try reading.message() == expected)
  }

  @Test func aWholeAnswerIsRead() throws {
    let reading = try read(call(), text: Fixture.openAIWhole)
    #expect(reading.reply?.output == "Four.")
    #expect(reading.reply?.usage == usage(input: 9, output: 3))
    #expect(reading.reply?.serviceTier == "flex")
    #expect(reading.reply?.requestID == "chatcmpl-9")
  }

  @Test func aServerThatCannotStreamMayAnswerWhole() throws {
    let reading = try read(
      call(stream: true), headers: ["content-type": "application/json; charset=utf-8"],
      text: Fixture.openAIWhole)
    #expect(reading.reply?.output == "Four.")
    #expect(reading.shown == "Four.")
  }

  @Test func aServerThatStreamsUnaskedIsRead() throws {
    let reading = try read(
      call(stream: false), headers: ["content-type": "text/event-stream"],
      text: Fixture.openAIStream)
    #expect(reading.reply?.output == "Grüße, martlet 🐦!")
  }

  @Test func surrogateHalvesInConsecutiveDeltasAreJoined() throws {
    let reading = try read(
      call(stream: true),
      text: """
        data: {"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}

        data: {"choices":[{"index":0,"delta":{"content":""}}]}

        data: {"choices":[{"index":0,"delta":{"content":"\\udc26b"}}]}

        data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}

        data: {"choices":[{"index":0,"delta":{"content":"c\\udc26\\u0000"}}]}

        data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"},"finish_reason":"stop"}]}

        data: [DONE]


        """)
    #expect(reading.reply?.output == "a🐦b\u{FFFD}c\u{FFFD}\u{FFFD}\u{FFFD}")
    expectSound(reading)
  }

  @Test func invalidUTF8IsReplacedAndTheRestKept() throws {
    let before = Array(#"{"choices":[{"index":0,"delta":{"content":"a"#.utf8)
    let after = Array(#"b"},"finish_reason":"stop"}]}"#.utf8)
    let reading = try read(
      call(stream: true),
      units: [
        Unit(data: before + [0xC3, 0x28, 0xFF, 0x00, 0x0A] + after),
        Unit(data: Array("[DONE]".utf8)),
      ])
    #expect(reading.reply?.output == "a\u{FFFD}(\u{FFFD}\u{FFFD}\nb")
    expectSound(reading)
  }

  @Test func nullsStringNumbersDuplicatesAndUnknownFieldsAreHarmless() throws {
    let reading = try read(
      call(stream: true),
      text: """
        data: {"choices":null,"usage":null,"model":null,"error":null,"x_groq":null,"new":[{"a":NaN}]}

        data: {"choices":[{"index":"0","delta":{"content":null,"tool_calls":null,"refusal":null},"finish_reason":null}]}

        data: {"choices":[{"index":1,"delta":{"content":"other choice"}},{"index":0,"delta":{"content":[{"type":"text","text":"in "},{"type":"text","text":"parts"},null,3]}}]}

        data: {"choices":[{"delta":null,"finish_reason":"length","finish_reason":"stop"}],"usage":{"prompt_tokens":"7","completion_tokens":5.0,"total_tokens":null,"prompt_tokens_details":null}}

        data: [DONE]


        """)
    #expect(reading.reply?.output == "in parts")
    #expect(reading.reply?.finishReason == "stop")
    #expect(reading.reply?.usage == usage(input: 7, output: 5))
  }

  @Test func refusalsAreShownAndReasoningIsNot() throws {
    let reading = try read(
      call(stream: true),
      text: """
        data: {"choices":[{"index":0,"delta":{"reasoning_content":"think "}}]}

        data: {"choices":[{"index":0,"delta":{"reasoning":"more","refusal":"I "}}]}

        data: {"choices":[{"index":0,"delta":{"refusal":"won't."},"finish_reason":"stop"}]}

        data: [DONE]


        """)
    #expect(reading.reply?.output == "I won't.")
    #expect(
      try reading.message()
        == decode(
          #"{"role":"assistant","content":null,"refusal":"I won't.","reasoning":"think more"}"#))
  }

  @Test(arguments: [
    (
      #""usage":{"prompt_tokens":10,"completion_tokens":4,"prompt_cache_hit_tokens":6,"prompt_cache_miss_tokens":4}"#,
      usage(input: 10, cacheRead: 6, output: 4)
    ),
    (
      #""x_groq":{"id":"q","usage":{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14}}"#,
      usage(input: 10, output: 4)
    ),
    (#""usage":{"prompt_tokens":10,"total_tokens":14}"#, usage(input: 10, output: 4)),
    (
      #""usage":{"prompt_tokens":10,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":99,"cache_write_tokens":99},"completion_tokens_details":{"reasoning_tokens":99}}"#,
      usage(input: 10, cacheRead: 10, output: 4, reasoning: 4)
    ),
    // xAI counts reasoning beside the completion, which only the total tells.
    (
      #""usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}"#,
      usage(input: 32, output: 103, reasoning: 94)
    ),
    (
      #""usage":{"prompt_tokens":32,"completion_tokens":103,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}"#,
      usage(input: 32, output: 103, reasoning: 94)
    ),
    (
      #""usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":50,"completion_tokens_details":{"reasoning_tokens":94}}"#,
      usage(input: 32, output: 9, reasoning: 9)
    ),
    (
      #""usage":{"prompt_tokens":1,"completion_tokens":2147483647,"total_tokens":2147483649,"completion_tokens_details":{"reasoning_tokens":1}}"#,
      nil
    ),
    (#""usage":{}"#, nil),
    (#""usage":{"prompt_tokens":10}"#, nil),
    (#""usage":{"prompt_tokens":-1,"completion_tokens":2}"#, nil),
    (#""usage":{"prompt_tokens":3000000000,"completion_tokens":2}"#, nil),
    (#""usage":{"prompt_tokens":1e300,"completion_tokens":2}"#, nil),
  ]) func usageOfManyKinds(_ json: String, _ expected: Usage?) throws {
    let reading = try read(
      call(stream: true),
      text:
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\(json)}\n\n"
        + "data: [DONE]\n\n")
    #expect(try #require(reading.reply).usage == expected)
  }

  @Test func whatIsBilledBesideTextIsReportedByClass() throws {
    let reading = try read(
      call(),
      text: #"""
        {"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":20,
         "prompt_tokens_details":{"cached_tokens":10,"audio_tokens":60,"image_tokens":40},
         "completion_tokens_details":{"audio_tokens":15,"reasoning_tokens":0},"citation_tokens":7,"num_search_queries":0}}
        """#)
    #expect(
      reading.reply?.usage?.units == [
        "audio_input": "60", "image_input": "40", "audio_output": "15", "citations": "7",
      ])
  }

  @Test(arguments: [
    ("length", "length"), ("content_filter", "content_filter"), ("function_call", "tool_calls"),
    ("eos", "stop"), ("max_tokens", "length"), ("something_new", "stop"),
  ]) func finishReasonsAreInOneVocabulary(_ theirs: String, _ ours: String) throws {
    let reading = try read(
      call(), text: #"{"choices":[{"message":{"content":"x"},"finish_reason":"\#(theirs)"}]}"#)
    #expect(reading.reply?.finishReason == ours)
  }

  @Test(arguments: ["stop", "eos", "length", "content_filter"])
  func aForcedCallStopsAndIsACall(_ theirs: String) throws {
    let calls = #""tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]"#
    let whole = try read(
      call(), text: #"{"choices":[{"message":{\#(calls)},"finish_reason":"\#(theirs)"}]}"#)
    let streamed = try read(
      call(stream: true),
      text: """
        data: {"choices":[{"delta":{\(calls)}}]}

        data: {"choices":[{"delta":{},"finish_reason":"\(theirs)"}]}

        data: [DONE]


        """)
    let expected = ["stop", "eos"].contains(theirs) ? "tool_calls" : theirs
    #expect(whole.reply?.finishReason == expected)
    #expect(streamed.reply?.finishReason == expected)
  }

  @Test func theEndWithoutDoneIsEnoughOnlyAfterAFinishReason() throws {
    let finished =
      "data: {\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\n"
    let open = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n"
    #expect(try read(call(stream: true), text: finished).reply?.output == "x")
    let cut = try read(call(stream: true), text: open)
    #expect(cut.failure?.signal == .truncated)
    #expect(cut.failure?.partial?.output == "x")
    let broken = try read(call(stream: true), text: finished, end: .broken(.reset, "reset by peer"))
    #expect(broken.failure?.signal == .reset)
  }

  @Test func doneIsTheEndOfAnAnswerAndNotOne() throws {
    for before in ["", #"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}"#] {
      let reading = try read(call(stream: true), text: before + "\n\ndata: [DONE]\n\n")
      #expect(reading.failure?.signal == .truncated)
    }
    let silent = try read(
      call(stream: true),
      text: "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\ndata: [DONE]\n\n")
    #expect(silent.reply?.output == "")
  }

  @Test func fragmentsOfToolCallsFromSloppyServersAreSorted() throws {
    let reading = try read(
      call(stream: true),
      text: """
        data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\\"x\\""}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":":1}"}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"b","function":{"name":"g","arguments":{"y":2}}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"h","arguments":"{}"},"id":"c"}, 7, null]},"finish_reason":"tool_calls"}]}

        data: [DONE]


        """)
    let calls = try #require(try reading.message()["tool_calls"] as? [NSDictionary])
    #expect(calls.map { $0["id"] as? String } == ["a", "b", "c"])
    let arguments = calls.map { ($0["function"] as? NSDictionary)?["arguments"] as? String }
    #expect(arguments == [#"{"x":1}"#, #"{"y":2}"#, "{}"])
  }

  @Test(arguments: [#""index":0,"id":"","#, #""index":0,"#, ""])
  func parallelCallsThatShareAnIndexAndHaveNoIdsStayApart(_ slot: String) throws {
    let reading = try read(
      call(stream: true),
      text: """
        data: {"choices":[{"delta":{"tool_calls":[{\(slot)"function":{"name":"f","arguments":"{}"}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{\(slot)"function":{"name":"g","arguments":"{\\"q\\":1}"}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{\(slot)"function":{"name":"g","arguments":"{\\"q\\":2}"}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{\(slot)"function":{"name":"g","arguments":""}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{\(slot)"function":{"name":"h","arguments":"{\\"r\\""}}]}}]}

        data: {"choices":[{"delta":{"tool_calls":[{\(slot)"function":{"name":"h","arguments":":3}"}}]},"finish_reason":"stop"}]}

        data: [DONE]


        """)
    let calls = try #require(try reading.message()["tool_calls"] as? [NSDictionary])
    let functions = calls.compactMap { $0["function"] as? NSDictionary }
    #expect(functions.map { $0["name"] as? String } == ["f", "g", "g", "h"])
    #expect(
      functions.map { $0["arguments"] as? String }
        == ["{}", #"{"q":1}"#, #"{"q":2}"#, #"{"r":3}"#])
  }

  @Test func embeddingsAreReadFromNumbersAndFromBase64() throws {
    let embedding = call(kind: .embedding, request: #"{"input":"x"}"#)
    let numbers = try read(
      embedding,
      text: #"""
        {"object":"list","data":[{"index":1,"embedding":[9]},{"index":0,"embedding":[0.5,-1,1e-3]}],
         "model":"e","usage":{"prompt_tokens":4,"total_tokens":4}}
        """#)
    #expect(numbers.reply?.embedding == [0.5, -1, 0.001])
    #expect(numbers.reply?.usage == usage(input: 4, output: 0))
    #expect(numbers.reply?.message == nil)
    let floats: [Float] = [0.5, -1, 3.25]
    let bytes = floats.flatMap { value in (0..<4).map { UInt8(value.bitPattern >> (8 * $0) & 255) }
    }
    let base64 = Data(bytes).base64EncodedString()
    let encoded = try read(embedding, text: #"{"data":[{"embedding":"\#(base64)"}]}"#)
    #expect(encoded.reply?.embedding == floats)
    #expect(encoded.reply?.usage == nil)
  }

  @Test func vectorsOfSeveralTextsComeInTheirOrder() throws {
    let three = call(kind: .embedding, request: #"{"input":["x","y","z"]}"#)
    let bytes = [Float(7), 8].flatMap { value in
      (0..<4).map { UInt8(value.bitPattern >> (8 * $0) & 255) }
    }
    let base64 = Data(bytes).base64EncodedString()
    let reading = try read(
      three,
      text: #"""
        {"data":[{"index":2,"embedding":[5,6]},{"index":0,"embedding":[1,2]},
                 {"index":1,"embedding":"\#(base64)"}],"usage":{"prompt_tokens":9}}
        """#)
    #expect(reading.reply?.embeddings == [[1, 2], [7, 8], [5, 6]])
    #expect(reading.reply?.embedding == nil)
    #expect(reading.reply?.usage == usage(input: 9, output: 0))

    let one = call(kind: .embedding, request: #"{"input":["x"]}"#)
    for body in [#"{"data":[{"embedding":[1]}]}"#, #"{"data":[{"index":0,"embedding":[1]}]}"#] {
      #expect(try read(one, text: body).reply?.embeddings == [[1]])
    }
    // The tokens of one text.
    let tokens = call(kind: .embedding, request: #"{"input":[1,2]}"#)
    #expect(try read(tokens, text: #"{"data":[{"embedding":[1]}]}"#).reply?.embedding == [1])
  }

  @Test(arguments: [
    #"[]"#, #"[{"index":0,"embedding":[1]}]"#,
    #"[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]"#,
    #"[{"index":0,"embedding":[1]},{"index":2,"embedding":[1]}]"#,
    #"[{"index":-1,"embedding":[1]},{"index":0,"embedding":[1]}]"#,
    #"[{"embedding":[1]},{"embedding":[1]}]"#, #"[{"index":0,"embedding":[1]},{"embedding":[1]}]"#,
    #"[{"index":0,"embedding":[1]},{"index":1,"embedding":[1,2]}]"#,
    #"[{"index":0,"embedding":[1]},{"index":1,"embedding":[]}]"#,
    #"[{"index":0,"embedding":[1]},{"index":1,"embedding":[1]},{"index":2,"embedding":[1]}]"#,
    #"[{"index":0,"embedding":[1]},{"index":1,"embedding":null}]"#, #"[1,2]"#, #"{}"#,
  ]) func aVectorTooManyTooFewOrTwiceIsMalformed(_ data: String) throws {
    let two = call(kind: .embedding, request: #"{"input":["x","y"]}"#)
    let reading = try read(two, text: #"{"data":\#(data)}"#)
    #expect(reading.failure?.signal == .malformed)
    #expect(reading.failure?.partial?.embeddings == nil)
  }

  @Test func anAnswerHasBegunWithItsFirstTokenOfWhateverKind() throws {
    let beginnings: [(dialect: String, silent: [String], first: String)] = [
      (
        "openai", [#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#],
        #"{"choices":[{"delta":{"content":"x"}}]}"#
      ),
      ("openai", [], #"{"choices":[{"delta":{"reasoning_content":"x"}}]}"#),
      ("openai", [], #"{"choices":[{"delta":{"refusal":"x"}}]}"#),
      (
        "openai", [],
        #"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f"}}]}}]}"#
      ),
      (
        "anthropic",
        [
          #"{"type":"message_start","message":{"content":[],"usage":{"input_tokens":1}}}"#,
          #"{"type":"ping"}"#,
          #"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        ],
        #"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}"#
      ),
      (
        "anthropic",
        [
          #"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#
        ],
        #"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"x"}}"#
      ),
      (
        "anthropic", [],
        #"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"a","name":"f"}}"#
      ),
    ]
    for beginning in beginnings {
      let streamed = call(beginning.dialect, stream: true)
      var reader = try dialect(of: streamed).reader(for: streamed)
      _ = reader.head(
        ResponseHead(status: 200, headers: ["content-type": "text/event-stream"]))
      for event in beginning.silent {
        _ = reader.receive(event: nil, data: Array(event.utf8))
        #expect(!reader.hasBegun, "\(event)")
      }
      _ = reader.receive(event: nil, data: Array(beginning.first.utf8))
      #expect(reader.hasBegun, "\(beginning.first)")
    }
  }

  @Test(arguments: [
    #"{"data":[]}"#, #"{"data":[{"embedding":[]}]}"#, #"{"data":[{"embedding":[1,null]}]}"#,
    #"{"data":[{"embedding":[1e999]}]}"#, #"{"data":[{"embedding":"AAA"}]}"#,
    #"{"data":[{"embedding":"AADAfw=="}]}"#, #"{"data":[{"embedding":"*"}]}"#, #"{}"#, #"[1,2]"#,
  ]) func vectorsThatAreNoneAreMalformed(_ body: String) throws {
    let reading = try read(call(kind: .embedding), text: body)
    #expect(reading.failure?.signal == .malformed)
  }
}
