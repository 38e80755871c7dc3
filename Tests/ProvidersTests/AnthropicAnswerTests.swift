import Foundation
import Providers
import Testing

@Suite struct AnthropicAnswerTests {
  @Test func aStreamGivesTextToolsThinkingAndUsage() throws {
    let reading = try read(
      call("anthropic", stream: true), headers: ["request-id": "req_1", "x-request-id": "proxy"],
      text: Fixture.anthropicStream)
    let reply = try #require(reading.reply)
    #expect(reading.shown == "Hello, wörld 🐦")
    #expect(reply.finishReason == "tool_calls")
    #expect(
      reply.usage
        == usage(
          input: 1_325, cacheRead: 1_000, cacheWrite: 100, cacheWrite1h: 200, output: 89,
          reasoning: 30))
    #expect(reply.model == "claude-x")
    #expect(reply.serviceTier == "standard")
    #expect(reply.requestID == "req_1")
    let expected = try decode(
      #"""
      {"role":"assistant","content":"Hello, wörld 🐦","reasoning":"Hmm.",
       "thinking_blocks":[{"type":"thinking","thinking":"Hmm.","signature":"EqQBCg=="}],
       "tool_calls":[
        {"id":"toolu_1","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Oslo\"}"}},
        {"id":"toolu_2","type":"function","function":{"name":"now","arguments":"{}"}}]}
      """#)
    #expect(try reading.message() == expected)
    expectSound(reading)
  }

  @Test func aWholeAnswerIsRead() throws {
    let reading = try read(call("anthropic"), text: Fixture.anthropicWhole)
    #expect(reading.reply?.output == "Four.")
    #expect(reading.reply?.finishReason == "stop")
    #expect(reading.reply?.usage == usage(input: 9, output: 3))
    #expect(reading.reply?.serviceTier == "priority")
    let calls = try #require(try reading.message()["tool_calls"] as? [NSDictionary])
    #expect(
      (calls[0]["function"] as? NSDictionary)?["arguments"] as? String == #"{"a":2,"b":[2,null]}"#)
  }

  @Test(
    arguments: [
      ("end_turn", "stop", nil), ("max_tokens", "length", nil), ("stop_sequence", "stop", nil),
      ("tool_use", "tool_calls", nil), ("refusal", "content_filter", nil),
      ("model_context_window_exceeded", "length", "model_context_window_exceeded"),
      ("pause_turn", "length", "pause_turn"), ("new_reason", "stop", "new_reason"),
    ] as [(String, String, String?)])
  func finishReasonsAreInOneVocabulary(_ theirs: String, _ ours: String, _ native: String?) throws {
    let reading = try read(
      call("anthropic"),
      text: #"{"type":"message","content":[{"type":"text","text":"x"}],"stop_reason":"\#(theirs)"}"#
    )
    #expect(reading.reply?.finishReason == ours)
    #expect(try reading.message()["native_finish_reason"] as? String == native)
  }

  @Test func aRefusalKeepsItsExplanation() throws {
    let reading = try read(
      call("anthropic", stream: true),
      text: """
        data: {"type":"message_start","message":{"model":"c","usage":{"input_tokens":1,"output_tokens":1}}}

        data: {"type":"message_delta","delta":{"stop_reason":"refusal","stop_details":{"type":"refusal","category":"x","explanation":"Not this."}},"usage":{"output_tokens":2}}

        data: {"type":"message_stop"}


        """)
    #expect(reading.reply?.finishReason == "content_filter")
    #expect(
      try reading.message()
        == decode(#"{"role":"assistant","content":null,"refusal":"Not this."}"#))
  }

  @Test func thinkingGoesBackInThePlaceWhereItCame() throws {
    let blocks = #"""
      [{"type":"thinking","thinking":"1","signature":"a"},{"type":"text","text":"Grüße 🐦\n"},
       {"type":"redacted_thinking","data":"b"},{"type":"tool_use","id":"t1","name":"f","input":{}},
       {"type":"thinking","thinking":"2","signature":"c"},{"type":"text","text":"and."},
       {"type":"tool_use","id":"t2","name":"g","input":{"n":1}}]
      """#
    let reading = try read(
      call("anthropic"), text: #"{"type":"message","content":\#(blocks),"stop_reason":"tool_use"}"#)
    let message = try #require(reading.reply?.message)
    #expect(reading.reply?.output == "Grüße 🐦\nand.")
    #expect(
      try reading.message()["thinking_blocks"] as? NSArray
        == decode(
          #"""
          {"x":[{"type":"thinking","thinking":"1","signature":"a"},
            {"type":"redacted_thinking","data":"b","after":{"characters":8,"tool_calls":0}},
            {"type":"thinking","thinking":"2","signature":"c","after":{"characters":8,"tool_calls":1}}]}
          """#)["x"] as? NSArray)
    let body = try requestBody(
      call(
        "anthropic",
        request:
          #"{"messages":[{"role":"user","content":"x"},\#(String(decoding: message, as: UTF8.self))]}"#
      ))
    let messages = try #require(body["messages"] as? [NSDictionary])
    #expect(
      messages[1]["content"] as? NSArray == (try decode(#"{"x":\#(blocks)}"#)["x"] as? NSArray))
  }

  @Test(arguments: [
    // Less was left than was said.
    (
      #""content":"a""#, #"{"characters":5,"tool_calls":3}"#,
      #"[{"type":"text","text":"a"},{"type":"thinking","thinking":"1","signature":"s"}]"#
    ),
    // What is nothing but space stays with what follows.
    (
      #""content":"\n b""#, #"{"characters":1,"tool_calls":0}"#,
      #"[{"type":"thinking","thinking":"1","signature":"s"},{"type":"text","text":"\n b"}]"#
    ),
    (
      #""content":[{"type":"text","text":"a"}]"#, #"{"characters":1,"tool_calls":0}"#,
      #"[{"type":"thinking","thinking":"1","signature":"s"},{"type":"text","text":"a"}]"#
    ),
    (
      #""content":"a""#, #"{"characters":-1,"tool_calls":-1}"#,
      #"[{"type":"thinking","thinking":"1","signature":"s"},{"type":"text","text":"a"}]"#
    ),
  ])
  func aMessageThatWasChangedGoesBackWithItsThinking(
    _ content: String, _ after: String, _ expected: String
  ) throws {
    let block = #"{"type":"thinking","thinking":"1","signature":"s","after":\#(after)}"#
    let body = try requestBody(
      call(
        "anthropic",
        request: #"""
          {"messages":[{"role":"user","content":"x"},
            {"role":"assistant",\#(content),"thinking_blocks":[\#(block)]}]}
          """#))
    let messages = try #require(body["messages"] as? [NSDictionary])
    #expect(
      messages[1]["content"] as? NSArray == (try decode(#"{"x":\#(expected)}"#)["x"] as? NSArray))
  }

  @Test func unknownEventsBlocksAndDeltasArePassedOver() throws {
    let reading = try read(
      call("anthropic", stream: true),
      text: """
        event: comet
        data: {"type":"comet","index":0,"tail":{"long":true}}

        data: {"type":"content_block_start","index":0,"content_block":{"type":"server_tool_use","id":"s","name":"web_search","input":{}}}

        data: {"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\\"q\\":1}"}}

        data: {"type":"content_block_delta","index":0,"delta":{"type":"hologram_delta","hologram":"x"}}

        data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":"a"}}

        data: {"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{}}}

        data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"b\\ud83d"}}

        data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"\\udc26"}}

        data: {"type":"content_block_delta","delta":null}

        data: {"type":"message_delta","delta":null,"usage":null}

        data: {"type":"message_stop"}


        """)
    #expect(reading.reply?.output == "ab🐦")
    #expect(try reading.message()["tool_calls"] == nil)
    #expect(reading.reply?.usage == nil)
    expectSound(reading)
  }

  @Test func aGuessedOutputCountIsNotBilledAsTheRealOne() throws {
    let reading = try read(
      call("anthropic", stream: true),
      text: """
        data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1}}}

        data: {"type":"message_stop"}


        """)
    #expect(try #require(reading.reply).usage == usage(input: 5, output: nil))
  }

  @Test func laterUsageReplacesEarlierAndNullKeepsIt() throws {
    let reading = try read(
      call("anthropic", stream: true),
      text: """
        data: {"type":"message_start","message":{"usage":{"input_tokens":5,"cache_read_input_tokens":7,"output_tokens":1}}}

        data: {"type":"message_delta","delta":{},"usage":{"input_tokens":6,"cache_read_input_tokens":null,"output_tokens":10}}

        data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":12}}

        data: {"type":"message_stop"}


        """)
    #expect(reading.reply?.usage == usage(input: 13, cacheRead: 7, output: 12))
  }

  @Test func theEndWithoutMessageStopIsNeverSuccess() throws {
    let text = Fixture.anthropicStream.replacing(
      "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", with: "")
    let reading = try read(call("anthropic", stream: true), text: text)
    #expect(reading.failure?.signal == .truncated)
    #expect(reading.failure?.partial?.output == "Hello, wörld 🐦")
    #expect(reading.failure?.partial?.usage?.input == 1_325)
    #expect(reading.failure?.partial?.model == "claude-x")
  }

  @Test(arguments: [
    (#""service_tier":"standard","speed":"fast""#, "fast"),
    (#""service_tier":"standard","speed":"standard""#, "standard"),
    (#""service_tier":"batch","speed":"fast""#, "batch"), (#""speed":"fast""#, "fast"),
  ]) func searchesAndFastModeArePricedApart(_ tier: String, _ told: String) throws {
    let reading = try read(
      call("anthropic", stream: true),
      text: #"""
        event: message_start
        data: {"type":"message_start","message":{"usage":{"input_tokens":5,"output_tokens":1,\#(tier)}}}

        event: message_delta
        data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":12,"server_tool_use":{"web_search_requests":3,"web_fetch_requests":0}}}

        event: message_stop
        data: {"type":"message_stop"}


        """#)
    #expect(reading.reply?.serviceTier == told)
    #expect(reading.reply?.usage?.units == ["searches": "3"])
  }
}
