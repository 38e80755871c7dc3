import Foundation
import Providers
import Testing

@Suite struct GeminiAnswerTests {
  private static let usageOfTheStream: Usage = {
    var expected = usage(input: 130, cacheRead: 64, output: 48, reasoning: 40)
    expected.units = ["audio_input": "20", "audio_cache_read": "4"]
    return expected
  }()

  @Test func aStreamGivesTextToolsThoughtsAndUsage() throws {
    let reading = try read(call("gemini", stream: true), text: Fixture.geminiStream)
    let reply = try #require(reading.reply)
    #expect(reading.shown == "Grüße, martlet 🐦!")
    #expect(reply.finishReason == "tool_calls")
    #expect(reply.usage == Self.usageOfTheStream)
    #expect(reply.model == "gemini-3-pro")
    #expect(reply.serviceTier == "standard")
    #expect(reply.requestID == "r-1")
    let expected = try decode(
      #"""
      {"role":"assistant","content":"Grüße, martlet 🐦!","reasoning":"Hmm.",
       "thought_signatures":[{"signature":"U2lnMg=="},{"tool_call":0,"signature":"U2lnMQ=="}],
       "tool_calls":[
        {"id":"fc-1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Oslo\",\"days\":[1,2]}"}},
        {"id":"call_1","type":"function","function":{"name":"now","arguments":"{}"}}]}
      """#)
    #expect(try reading.message() == expected)
    expectSound(reading)
  }

  @Test func aWholeAnswerIsRead() throws {
    let reading = try read(call("gemini"), text: Fixture.geminiWhole)
    #expect(reading.reply?.output == "Four.")
    #expect(reading.reply?.finishReason == "stop")
    #expect(reading.reply?.usage == usage(input: 9, output: 3))
    #expect(reading.reply?.serviceTier == "flex")
  }

  @Test func aStreamThatComesAsOneArrayIsRead() throws {
    let chunks = events(Array(Fixture.geminiStream.utf8)).map {
      String(decoding: $0.data, as: UTF8.self)
    }
    let reading = try read(
      call("gemini", stream: true), headers: ["content-type": "application/json"],
      text: "[\(chunks.joined(separator: "\n,\r\n"))]")
    #expect(reading.reply?.output == "Grüße, martlet 🐦!")
    #expect(reading.reply?.usage == Self.usageOfTheStream)
  }

  @Test(
    arguments: [
      ("STOP", "stop", nil), ("MAX_TOKENS", "length", nil),
      ("SAFETY", "content_filter", "SAFETY"), ("RECITATION", "content_filter", "RECITATION"),
      ("PROHIBITED_CONTENT", "content_filter", "PROHIBITED_CONTENT"),
      ("CONTINUATION", "length", "CONTINUATION"), ("OTHER", "stop", "OTHER"),
      ("NEW_REASON", "stop", "NEW_REASON"),
    ] as [(String, String, String?)])
  func finishReasonsAreInOneVocabulary(_ theirs: String, _ ours: String, _ native: String?) throws {
    let reading = try read(
      call("gemini"),
      text: #"{"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"\#(theirs)"}]}"#)
    #expect(reading.reply?.finishReason == ours)
    #expect(try reading.message()["native_finish_reason"] as? String == native)
  }

  @Test(arguments: [true, false])
  func aBlockedPromptIsAFailureWithItsUsage(_ stream: Bool) throws {
    let body =
      #"{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":7,"totalTokenCount":7},"modelVersion":"m"}"#
    let reading = try read(
      call("gemini", stream: stream), text: stream ? "data: \(body)\r\n\r\n" : body)
    let failure = try #require(reading.failure)
    #expect(failure.signal == .embeddedError)
    #expect(failure.type == "prompt_blocked")
    #expect(failure.code == "SAFETY")
    #expect(failure.partial?.usage == usage(input: 7, output: 0))
  }

  @Test(arguments: [
    "MALFORMED_FUNCTION_CALL", "MISSING_THOUGHT_SIGNATURE", "UNEXPECTED_TOOL_CALL", "OTHER",
  ])
  func whatIsNoAnswerIsAFailure(_ reason: String) throws {
    let reading = try read(
      call("gemini"),
      text:
        #"{"candidates":[{"finishReason":"\#(reason)","finishMessage":"Malformed: print()"}],"usageMetadata":{"promptTokenCount":7,"thoughtsTokenCount":5}}"#
    )
    #expect(reading.failure?.type == "no_answer")
    #expect(reading.failure?.code == reason)
    #expect(reading.failure?.message == "Malformed: print()")
    #expect(reading.failure?.partial?.usage == usage(input: 7, output: 5, reasoning: 5))
  }

  @Test func anErrorInsideOfAStreamIsOne() throws {
    let reading = try read(
      call("gemini", stream: true),
      text: """
        data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":7}}

        data: {"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}


        """)
    #expect(reading.failure?.signal == .embeddedError)
    #expect(reading.failure?.type == "UNAVAILABLE")
    #expect(reading.failure?.code == "503")
    #expect(reading.failure?.partial?.output == "a")
    #expect(reading.failure?.partial?.usage == usage(input: 7, output: nil))
  }

  @Test func theEndWithoutAReasonIsNoSuccess() throws {
    let reading = try read(
      call("gemini", stream: true),
      text: """
        data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":7}}


        """)
    #expect(reading.failure?.signal == .truncated)
    #expect(reading.failure?.partial?.usage == usage(input: 7, output: nil))
  }

  @Test func aCountOfABrokenStreamIsKeptWithItsThoughts() throws {
    let reading = try read(
      call("gemini", stream: true),
      text: """
        data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":1,"thoughtsTokenCount":900}}


        """, end: .broken(.reset, "gone"))
    #expect(reading.failure?.signal == .reset)
    #expect(reading.failure?.partial?.usage == usage(input: 7, output: 901, reasoning: 900))
  }

  @Test func anEarlyReasonDoesNotEndTheStream() throws {
    let reading = try read(
      call("gemini", stream: true),
      text: """
        data: {"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}

        data: {"candidates":[{"content":{"parts":[{"text":"b"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":2}}


        """)
    #expect(reading.reply?.output == "ab")
    #expect(reading.reply?.usage == usage(input: 7, output: 2))
  }

  @Test func otherCandidatesArePassedOver() throws {
    let reading = try read(
      call("gemini"),
      text:
        #"{"candidates":[{"index":1,"content":{"parts":[{"text":"no"}]}},{"index":0,"content":{"parts":[{"text":"yes"},{"executableCode":{"code":"x"}}]},"finishReason":"STOP","groundingMetadata":{"webSearchQueries":["a","b"]}}],"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":1}}"#
    )
    #expect(reading.reply?.output == "yes")
    #expect(reading.reply?.usage?.units == ["searches": "2"])
  }

  @Test func picturesAreFiles() throws {
    let reading = try read(
      call("gemini", kind: .image, request: #"{"input":"a bird"}"#),
      text:
        #"{"candidates":[{"content":{"parts":[{"text":"Here."},{"inlineData":{"mimeType":"image/png","data":"iVBO-w=="}}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1290,"candidatesTokensDetails":[{"modality":"IMAGE","tokenCount":1290}]}}"#
    )
    let reply = try #require(reading.reply)
    #expect(
      reply.files == [
        ProducedFile(mediaType: "image/png", content: .bytes([0x89, 0x50, 0x4E, 0xFB]))
      ])
    #expect(reply.output == "Here.")
    #expect(reply.usage?.units == ["image_output": "1290", "images": "1"])
    let none = try read(
      call("gemini", kind: .image, request: #"{"input":"a bird"}"#), text: Fixture.geminiWhole)
    #expect(none.failure?.type == "no_answer")
  }

  @Test func vectorsComeInTheOrderOfTheTexts() throws {
    let several = call("gemini", kind: .embedding, request: #"{"input":["a","b"]}"#)
    let reading = try read(
      several,
      text:
        #"{"embeddings":[{"values":[1,2]},{"values":[3,4]}],"usageMetadata":{"promptTokenCount":5}}"#
    )
    #expect(reading.reply?.embeddings == [[1, 2], [3, 4]])
    #expect(reading.reply?.usage == usage(input: 5, output: 0))
    let one = call("gemini", kind: .embedding, request: #"{"input":"a"}"#)
    #expect(try read(one, text: #"{"embedding":{"values":[1,2]}}"#).reply?.embedding == [1, 2])
    #expect(try read(one, text: #"{"embedding":{"values":[1,2]}}"#).reply?.usage == nil)
    for wrong in [
      #"{"embeddings":[{"values":[1,2]}]}"#, #"{"embeddings":[{"values":[1]},{"values":[3,4]}]}"#,
      #"{"embeddings":[{"values":[1,2]},{"values":[]}]}"#, #"{"embeddings":[{"values":[1]},{}]}"#,
      #"{"embeddings":[{"values":[1]},{"values":["x"]}]}"#, "{}",
    ] {
      #expect(try read(several, text: wrong).failure?.signal == .malformed, "\(wrong)")
    }
  }

  @Test func whenToComeBackIsInTheBody() throws {
    let reading = try read(
      call("gemini"), status: 429,
      text:
        #"{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"34.5s"}]}}"#
    )
    #expect(reading.failure?.retryAfterMilliseconds == 34_500)
  }
}
