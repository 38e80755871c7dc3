import Foundation
import Providers
import Testing

@Suite struct CustomTests {
  private let quill = CustomFixture.quill
  private let heron = CustomFixture.heron

  @Test func aTemplateIsFilledAndWhatIsMissingIsLeftOut() throws {
    let call = call(
      "custom", model: "q-1",
      request: #"""
        {"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"\"Hi\" 🐦"}],
         "params":{"max_tokens":7,"temperature":0.50,"logit_bias":{"1":2},"live":"a b"}}
        """#, options: quill)
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == "https://quill.example/v2/generate")
    #expect(request.method == "POST")
    #expect(request.headers.contains { $0 == ("authorization", "Bearer sk-secret-1234") })
    #expect(request.dropped == ["logit_bias", "live"])
    #expect(
      try decode(request.body)
        == decode(
          #"""
          {"engine":"q-1","system":"Be brief.","turns":[{"role":"user","content":"\"Hi\" 🐦"}],
           "note":"-- q-1: \"Hi\" 🐦 --","settings":{"limit":7,"heat":0.50,"fixed":[1,null]}}
          """#))
    var streamed = call
    streamed.stream = true
    let stream = try dialect(of: call).request(for: streamed)
    #expect(stream.url == "https://quill.example/v2/generate?live=a%20b")
    let body = try decode(stream.body)
    #expect(body["live"] as? Bool == true)
    #expect(body["note"] == nil)
  }

  @Test func allParametersAreSpreadAndAllMessagesAreOneText() throws {
    let call = call(
      "custom",
      request: #"""
        {"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],
         "params":{"top_k":4,"text":"not this"}}
        """#, options: heron)
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == "https://quill.example")
    #expect(request.headers.contains { $0 == ("x-heron-key", "sk-secret-1234") })
    #expect(request.dropped == [])
    #expect(
      try decode(request.body)
        == decode(#"{"text":"user: a\n\nassistant: b\n\nuser: c\n\nassistant:","top_k":4}"#))
  }

  @Test func messagesAreInOpenAIsForm() throws {
    let body = try requestBody(
      call(
        "custom",
        request: #"""
          {"messages":[{"role":"user","content":"a"},
           {"role":"assistant","content":"b","reasoning":"hm","thinking_blocks":[{"type":"thinking"}],"refusal":null}],"params":{}}
          """#, options: quill))
    #expect(
      body["turns"] as? NSArray
        == [
          ["role": "user", "content": "a"],
          ["role": "assistant", "content": "b", "refusal": NSNull()],
        ])
  }

  @Test func strictCallsAreRefusedForWhatTheTemplateDoesNotWrite() throws {
    let request =
      #"{"messages":[{"role":"user","content":"x"}],"params":{"strict":true,"top_p":0.5}}"#
    let failure = try #require(
      try refusal(call("custom", request: request, options: quill)))
    #expect(failure.code == "unsupported_parameter")
  }

  @Test(arguments: ["{}", #"{"custom":{}}"#, #"{"custom":{"chat":1}}"#, #"{"custom":[]}"#])
  func withoutADescriptionNothingIsSent(_ options: String) throws {
    #expect(try refusal(call("custom", options: options))?.signal == .unsendable)
    #expect(try read(call("custom", options: options), text: "{}").failure != nil)
  }

  @Test func picturesCannotBeSaidAsText() throws {
    let request = #"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#
    #expect(
      try refusal(call("custom", request: request, options: quill))?.signal == .unsendable)
  }

  @Test func aStreamOfLinesIsRead() throws {
    let reading = try read(call("custom", stream: true, options: quill), text: CustomFixture.lines)
    let reply = try #require(reading.reply)
    #expect(reading.shown == "Grüße, martlet 🐦!")
    #expect(reading.wasComplete)
    #expect(reply.finishReason == "stop")
    var expected = usage(input: 13, cacheRead: 3, output: 7, reasoning: 2)
    expected.units = ["seconds": "1.25"]
    #expect(reply.usage == expected)
    let calls = try #require(try reading.message()["tool_calls"] as? [NSDictionary])
    #expect((calls[0]["function"] as? NSDictionary)?["arguments"] as? String == #"{"city":1}"#)
  }

  @Test func aWholeAnswerIsRead() throws {
    let reading = try read(call("custom", options: quill), text: CustomFixture.whole)
    #expect(reading.reply?.output == "Four.")
    #expect(reading.reply?.finishReason == "length")
    #expect(reading.reply?.model == "q-1.5")
    #expect(reading.reply?.requestID == "r-1")
    #expect(reading.reply?.usage == usage(input: 10, output: 5))
    #expect(try reading.message()["reasoning"] as? String == "Hm.")
    // Of a provider that was asked for a stream, too.
    let events =
      #"{"custom":{"chat":{"body":{},"text":"a","stream":{"framing":"sse","delta":"d"}}}}"#
    let whole = try read(
      call("custom", stream: true, options: events), headers: ["content-type": "application/json"],
      text: #"{"a":"x"}"#)
    #expect(whole.reply?.output == "x")
  }

  @Test func eventsThatAreTextAreRead() throws {
    let reading = try read(call("custom", stream: true, options: heron), text: CustomFixture.text)
    #expect(reading.reply?.output == #"Hello, wörld 🐦{"not": "parsed"}"#)
  }

  @Test(
    arguments: [
      (#"{"event":"end"}"#, "event: end\ndata: {}", true),
      (#"{"event":"end"}"#, "event: other\ndata: {}", false),
      (#"{"path":"d"}"#, #"data: {"d":1}"#, true), (#"{"path":"d"}"#, #"data: {"d":false}"#, false),
      (#"{"path":"d"}"#, #"data: {"d":null}"#, false),
      (#"{"path":"d","equals":"over"}"#, #"data: {"d":"over"}"#, true),
      (#"{"path":"d","equals":"over"}"#, #"data: {"d":"on"}"#, false),
      (#"{"path":"d","equals":3}"#, #"data: {"d":3}"#, true),
      (#"{"marker":"[DONE]"}"#, "data: [DONE]", true),
    ])
  func theEndIsWhatTheDescriptionSays(_ done: String, _ last: String, _ isEnd: Bool) throws {
    let options =
      #"{"custom":{"chat":{"body":{},"text":"t","stream":{"framing":"sse","delta":"t","done":\#(done)}}}}"#
    let reading = try read(
      call("custom", stream: true, options: options), text: "data: {\"t\":\"a\"}\n\n\(last)\n\n")
    #expect((reading.reply?.output == "a") == isEnd)
    #expect((reading.failure?.signal == .truncated) == !isEnd)
    #expect(reading.wasComplete == isEnd)
  }

  @Test func withoutAMarkerAProperEndIsOne() throws {
    for (finish, body, isEnd) in [
      ("", #"data: {"t":"a"}"#, true), (#","finish":"f""#, #"data: {"t":"a"}"#, false),
      (#","finish":"f""#, #"data: {"t":"a","f":"eos"}"#, true),
    ] {
      let options =
        #"{"custom":{"chat":{"body":{},"text":"t","stream":{"framing":"sse","delta":"t"\#(finish)}}}}"#
      let call = call("custom", stream: true, options: options)
      #expect((try read(call, text: "\(body)\n\n").reply != nil) == isEnd)
      let broken = try read(call, text: "\(body)\n\n", end: .broken(.reset, "gone"))
      #expect(broken.failure?.signal == .reset)
    }
  }

  @Test func errorsAreFoundWithAndWithoutAStatus() throws {
    for status in [200, 418] {
      let reading = try read(
        call("custom", options: quill), status: status,
        text: #"{"problem":{"code":17,"says":"Out of ink: sk-secret-1234"}}"#)
      #expect(reading.failure?.signal == (status == 200 ? .embeddedError : .http))
      #expect(reading.failure?.code == "17")
      #expect(reading.failure?.message == "Out of ink: [secret]")
    }
    for nothing in ["null", "false", "0", #""""#, "[]"] {
      let body = #"{"problem":\#(nothing),"result":{"text":"x"}}"#
      #expect(try read(call("custom", options: quill), text: body).reply?.output == "x")
    }
    let plain = try read(call("custom", options: heron), text: #"{"error":{"message":"no"}}"#)
    #expect(plain.failure?.message == "no")
    #expect(
      try read(call("custom", options: quill), text: #"{"other":1}"#).failure?.signal == .malformed)
  }

  @Test func vectorsLabelsAndRanksAreFound() throws {
    let several = call(
      "custom", kind: .embedding, model: "a/b", request: #"{"input":["a","b"]}"#, options: heron)
    let sent = try dialect(of: several).request(for: several)
    #expect(sent.url == "https://quill.example/a%2Fb/embed")
    #expect(try decode(sent.body) == decode(#"{"texts":["a","b"]}"#))
    let vectors = try read(several, text: #"{"data":[{"v":[1,2]},{"v":[3,4]}],"tokens":5}"#)
    #expect(vectors.reply?.embeddings == [[1, 2], [3, 4]])
    #expect(vectors.reply?.usage?.input == 5)
    #expect(try read(several, text: #"{"data":[{"v":[1,2]}]}"#).failure?.signal == .malformed)
    let one = call("custom", kind: .embedding, request: #"{"input":"a"}"#, options: heron)
    #expect(try decode(dialect(of: one).request(for: one).body) == decode(#"{"texts":["a"]}"#))
    #expect(try read(one, text: #"{"data":[{"v":[1,2]}]}"#).reply?.embedding == [1, 2])

    let labels = call(
      "custom", kind: .classification, request: #"{"input":"x","params":{"labels":["a","b"]}}"#,
      options: heron)
    #expect(
      try decode(dialect(of: labels).request(for: labels).body)
        == decode(#"{"text":"x","among":["a","b"]}"#))
    let found = try read(labels, text: #"{"found":[{"name":"b","p":0.2},{"name":"a","p":0.8}]}"#)
    #expect(
      found.reply?.message.map { String(decoding: $0, as: UTF8.self) }
        == #"[{"label":"a","score":0.8},{"label":"b","score":0.2}]"#)
    let ranks = call(
      "custom", kind: .rerank, request: #"{"input":"q","params":{"documents":["x","y"]}}"#,
      options: heron)
    let ranked = try read(ranks, text: #"{"ranks":[{"at":0,"s":0.1},{"at":1,"s":0.9}]}"#)
    #expect(
      ranked.reply?.message.map { String(decoding: $0, as: UTF8.self) }
        == #"[{"index":1,"score":0.9},{"index":0,"score":0.1}]"#)
  }

  @Test func aJobIsAskedForUntilItIsDone() throws {
    let call = call("custom", kind: .completion, request: #"{"input":"x"}"#, options: heron)
    var reader = try dialect(of: call).reader(for: call)
    func hear(_ text: String, status: Int = 200) throws -> FollowUp? {
      _ = reader.head(ResponseHead(status: status, headers: ["content-type": "application/json"]))
      _ = reader.receive(event: nil, data: Array(text.utf8))
      return reader.followUp(.complete)
    }
    let first = try #require(try hear(#"{"id":"j-1","state":"queued"}"#, status: 201))
    #expect(first.target == .path("/jobs/j-1"))
    #expect(first.method == "GET")
    #expect(first.delay == 10)
    #expect(try hear(#"{"id":"j-1","state":"busy"}"#)?.target == .path("/jobs/j-1"))
    // What says nothing of the job is asked again.
    #expect(try hear("oops", status: 502)?.target == .path("/jobs/j-1"))
    let farewell = try #require(reader.farewell)
    #expect(farewell.target == .path("/jobs/j-1"))
    #expect(farewell.method == "DELETE")
    #expect(try hear(#"{"id":"j-1","state":"ready"}"#)?.target == .path("/jobs/j-1/result"))
    #expect(try hear(#"{"output":["o","k"]}"#) == nil)
    #expect(try reader.finish(.complete).get().output == "ok")
    #expect(reader.farewell == nil)
  }

  @Test func aJobThatFailsSaysWhy() throws {
    let call = call("custom", kind: .completion, request: #"{"input":"x"}"#, options: heron)
    let failed = try read(call, text: #"{"id":"j-1","state":"broken","detail":"no ink"}"#)
    #expect(failed.failure?.signal == .embeddedError)
    #expect(failed.failure?.message == "no ink")
    // An id that would lead elsewhere is none.
    let strange = try read(call, text: #"{"id":"../../admin","state":"queued"}"#)
    #expect(strange.failure != nil)
  }
}
