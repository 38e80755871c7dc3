import Foundation
import Providers
import Testing

private func responses(
  stream: Bool = false, _ params: String = "{}", options: String = "{}",
  messages: String = #"[{"role":"user","content":"Hi"}]"#
) -> Call {
  call(
    "openai_responses", stream: stream, baseURL: "https://api.openai.com/v1",
    request: #"{"messages":\#(messages),"params":\#(params)}"#, options: options)
}

private let background = #"{"background":true}"#

@Suite struct ResponsesTests {
  // MARK: Requests

  @Test("messages become items, with calls, their results, and reasoning that can be read again")
  func items() throws {
    let messages = #"""
      [{"role":"system","content":"Be brief."},
       {"role":"user","content":[{"type":"text","text":"See"},{"type":"image_url","image_url":{"url":"https://x/y.png","detail":"low"}},
        {"type":"file","file":{"filename":"a.pdf","file_data":"data:application/pdf;base64,AA=="}},
        {"type":"input_audio","input_audio":{"data":"AA==","format":"wav"}}]},
       {"role":"assistant","content":[{"type":"text","text":"I "},{"type":"text","text":"look."}],"refusal":null,"reasoning":"hm",
        "thinking_blocks":[{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gA"},{"type":"thinking","thinking":"x"}],
        "tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"c2","type":"custom","custom":{"name":"g","input":"go"}}]},
       {"role":"tool","tool_call_id":"c1","content":"one"},
       {"role":"tool","tool_call_id":"c2","content":[{"type":"text","text":"two"}]}]
      """#
    let body = try requestBody(responses(messages: messages))
    let expected = try decode(
      #"""
      {"input":[{"type":"message","role":"system","content":"Be brief."},
       {"type":"message","role":"user","content":[{"type":"input_text","text":"See"},{"type":"input_image","detail":"low","image_url":"https://x/y.png"},
        {"type":"input_file","filename":"a.pdf","file_data":"data:application/pdf;base64,AA=="},
        {"type":"input_audio","input_audio":{"data":"AA==","format":"wav"}}]},
       {"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gA"},
       {"type":"message","role":"assistant","content":"I look."},
       {"type":"function_call","call_id":"c1","name":"f","arguments":"{\"a\":1}"},
       {"type":"custom_tool_call","call_id":"c2","name":"g","input":"go"},
       {"type":"function_call_output","call_id":"c1","output":"one"},
       {"type":"custom_tool_call_output","call_id":"c2","output":[{"type":"input_text","text":"two"}]}],
       "model":"m-1","stream":false,"store":false}
      """#)
    #expect(body == expected)
  }

  @Test("parameters are said in the words of this API")
  func parameters() throws {
    let call = responses(
      stream: true,
      #"""
      {"max_completion_tokens":99,"reasoning_effort":"high","reasoning":{"summary":"auto"},"verbosity":"low","temperature":0.5,
       "logprobs":true,"top_logprobs":2,"include":["reasoning.encrypted_content"],"store":true,"truncation":"auto",
       "response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"object"}}},
       "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}},{"type":"function","function":{"name":"g","strict":true}},
        {"type":"custom","custom":{"name":"h","format":{"type":"grammar","grammar":{"syntax":"lark","definition":"x"}}}},{"type":"web_search"}],
       "tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false,
       "stream_options":{"include_usage":true,"include_obfuscation":false}}
      """#)
    let expected = try decode(
      #"""
      {"model":"m-1","input":[{"type":"message","role":"user","content":"Hi"}],"stream":true,"store":true,"max_output_tokens":99,
       "include":["reasoning.encrypted_content","message.output_text.logprobs"],"top_logprobs":2,"temperature":0.5,"truncation":"auto",
       "reasoning":{"summary":"auto","effort":"high"},
       "text":{"verbosity":"low","format":{"type":"json_schema","name":"n","strict":true,"schema":{"type":"object"}}},
       "tools":[{"type":"function","name":"f","parameters":{"type":"object"},"strict":false},{"type":"function","name":"g","strict":true,"parameters":null},
        {"type":"custom","name":"h","format":{"type":"grammar","syntax":"lark","definition":"x"}},{"type":"web_search"}],
       "tool_choice":{"type":"function","name":"f"},"parallel_tool_calls":false,"stream_options":{"include_obfuscation":false}}
      """#)
    #expect(try requestBody(call) == expected)
    let request = try dialect(of: call).request(for: call)
    #expect(request.url == "https://api.openai.com/v1/responses" && request.dropped.isEmpty)
    #expect(request.headers.contains { $0 == ("accept", "text/event-stream") })
  }

  @Test("a choice among tools lies flat, too")
  func allowed() throws {
    let body = try requestBody(
      responses(
        #"{"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"f"}}]}}}"#
      ))
    let expected = try decode(
      #"{"type":"allowed_tools","mode":"required","tools":[{"type":"function","name":"f"}]}"#)
    #expect(body["tool_choice"] as? NSDictionary == expected)
  }

  @Test("what the API cannot say, and what would come from elsewhere, is left out and named")
  func dropped() throws {
    let given = #"""
      {"seed":1,"stop":["x"],"frequency_penalty":0.5,"logit_bias":{"1":1},"previous_response_id":"resp_9","conversation":"c","max_output_tokens":9}
      """#
    let call = responses(given)
    #expect(try requestBody(call).allKeys.count == 4)
    #expect(
      try Set(dialect(of: call).request(for: call).dropped) == [
        "seed", "stop", "frequency_penalty", "logit_bias", "previous_response_id", "conversation",
        "max_output_tokens",
      ])
    #expect(try refusal(responses(#"{"seed":1,"strict":true}"#))?.code == "unsupported_parameter")
    #expect(try refusal(responses(#"{"n":2}"#))?.signal == .unsendable)
  }

  @Test("a job is kept there, whoever asks for it", arguments: [true, false])
  func backgrounds(byOption: Bool) throws {
    let call = byOption ? responses(options: background) : responses(background)
    let body = try requestBody(call)
    #expect(body["background"] as? Bool == true && body["store"] as? Bool == true)
    let off = try requestBody(responses(#"{"background":false}"#, options: background))
    #expect(off["background"] == nil && off["store"] as? Bool == false)
  }

  @Test(
    "what cannot be written is refused",
    arguments: [
      #"[{"role":"robot","content":"x"}]"#, #"[{"content":"x"}]"#, "[]",
      #"[{"role":"user","content":[{"type":"video"}]}]"#, #"[{"role":"user","content":[7]}]"#,
      #"[{"role":"tool","content":"x"}]"#, #"[{"role":"user","content":[{"type":"image_url"}]}]"#,
      #"[{"role":"assistant","tool_calls":[{"id":"x"}]}]"#,
    ])
  func unsendable(messages: String) throws {
    #expect(try refusal(responses(messages: messages))?.signal == .unsendable)
  }

  @Test("there are only chats")
  func kinds() throws {
    for kind in CallKind.allCases where kind != .chat {
      var other = responses()
      other.kind = kind
      #expect(try refusal(other)?.signal == .unsendable)
    }
  }

  // MARK: Answers

  private func expectWhole(_ reading: Reading, _ comment: Comment? = nil) throws {
    let reply = try #require(reading.reply, comment)
    #expect(reading.shown == "Grüße, 🐦!" && reply.output == reading.shown, comment)
    #expect(reply.finishReason == "tool_calls" && reply.model == "gpt-5-2026", comment)
    #expect(reply.serviceTier == "priority" && reply.requestID != nil, comment)
    var used = usage(input: 120, cacheRead: 64, cacheWrite: 20, output: 48, reasoning: 40)
    used.units = ["searches": "2", "cache_write_12h": "12"]
    #expect(reply.usage == used, comment)
    let message = try reading.message()
    let expected = try decode(
      #"""
      {"role":"assistant","content":"Grüße, 🐦!","reasoning":"Birds.",
       "thinking_blocks":[{"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"Birds."}],"encrypted_content":"gAAA"}],
       "tool_calls":[{"id":"call_a","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}]}
      """#)
    #expect(message == expected, comment)
    expectSound(reading)
  }

  @Test("an answer is the same streamed and whole")
  func sameAnswer() throws {
    try expectWhole(read(responses(stream: true), text: Fixture.responsesStream))
    try expectWhole(read(responses(), text: Fixture.responsesDone))
    try expectWhole(
      read(
        responses(stream: true), headers: ["content-type": "application/json"],
        text: Fixture.responsesDone))
  }

  @Test(
    "why it is incomplete is the finish reason",
    arguments: [
      ("max_output_tokens", "length"), ("content_filter", "content_filter"), ("steered", "stop"),
    ])
  func incomplete(reason: String, finish: String) throws {
    let reading = try read(
      responses(),
      text:
        #"{"id":"r","object":"response","status":"incomplete","incomplete_details":{"reason":"\#(reason)"},"output":[{"type":"message","content":[{"type":"output_text","text":"Hal"}]}],"usage":{"input_tokens":1,"output_tokens":2}}"#
    )
    #expect(reading.reply?.finishReason == finish && reading.reply?.output == "Hal")
  }

  @Test("a refusal is shown, and is a refusal")
  func refusals() throws {
    let stream = """
      data: {"type":"response.refusal.delta","sequence_number":1,"output_index":0,"content_index":0,"delta":"I "}

      data: {"type":"response.refusal.delta","sequence_number":2,"output_index":0,"content_index":0,"delta":"won't."}

      data: {"type":"response.refusal.done","sequence_number":3,"output_index":0,"content_index":0,"refusal":"I won't."}

      data: {"type":"response.completed","sequence_number":4,"response":{"id":"r","object":"response","status":"completed","output":[{"type":"message","content":[{"type":"refusal","refusal":"I won't."}]}]}}


      """
    let reading = try read(responses(stream: true), text: stream)
    #expect(reading.shown == "I won't." && reading.reply?.finishReason == "stop")
    #expect(try reading.message()["refusal"] as? String == "I won't.")
    #expect(try reading.message()["content"] is NSNull)
    expectSound(reading)
  }

  @Test("servers that send no deltas are read, too")
  func noDeltas() throws {
    let done =
      #"data: {"type":"response.output_text.done","output_index":0,"content_index":0,"text":"All."}"#
    let end =
      #"data: {"type":"response.completed","response":{"id":"r","status":"completed","output":[{"type":"message","content":[{"type":"output_text","text":"All."}]}]}}"#
    #expect(try read(responses(stream: true), text: "\(done)\n\n\(end)\n\n").shown == "All.")
    #expect(try read(responses(stream: true), text: "\(end)\n\n").shown == "All.")
  }

  @Test(
    "errors inside of an answer are failures with the provider's code",
    arguments: [
      (
        #"{"type":"error","sequence_number":3,"code":"rate_limit_exceeded","message":"slow","param":null}"#,
        "rate_limit_exceeded"
      ),
      (
        #"{"type":"response.failed","sequence_number":3,"response":{"id":"r","object":"response","status":"failed","error":{"code":"server_error","message":"oops"},"usage":{"input_tokens":5,"output_tokens":1}}}"#,
        "server_error"
      ),
      (#"{"type":"response.failed","response":{"id":"r","status":"cancelled"}}"#, "cancelled"),
      (#"{"error":{"message":"gateway","type":"x","code":"bad_gateway"}}"#, "bad_gateway"),
    ])
  func errors(event: String, code: String) throws {
    let text = #"data: {"type":"response.output_text.delta","sequence_number":0,"delta":"Ha"}"#
    let reading = try read(responses(stream: true), text: "\(text)\n\ndata: \(event)\n\n")
    #expect(reading.failure?.signal == .embeddedError && reading.failure?.code == code)
    #expect(reading.failure?.partial?.output == "Ha" && reading.wasComplete)
    let whole = try read(responses(), text: event)
    #expect(
      whole.failure?.signal == (event.contains("response.failed") ? .malformed : .embeddedError))
  }

  @Test("a whole that failed says what it used")
  func failed() throws {
    let reading = try read(
      responses(),
      text:
        #"{"id":"r","object":"response","status":"failed","error":{"code":"server_error","message":"oops"},"usage":{"input_tokens":5,"output_tokens":1}}"#
    )
    #expect(reading.failure?.code == "server_error" && reading.failure?.message == "oops")
    #expect(reading.failure?.partial?.usage == usage(input: 5, output: 1))
  }

  // MARK: Jobs

  @Test("a job is asked for until it is done, at growing pauses, and used only once")
  func polled() throws {
    let running = Fixture.responsesQueued.replacingOccurrences(of: "queued", with: "in_progress")
    let dialogue = try Dialogue(
      responses(background),
      [
        .json(Fixture.responsesQueued), .json(running), .json(running),
        .json(Fixture.responsesDone),
      ])
    try expectWhole(dialogue.reading)
    #expect(dialogue.paths == Array(repeating: "/responses/resp_1", count: 3))
    #expect(dialogue.asked.map(\.delay) == [1_000, 1_500, 2_250])
    #expect(dialogue.asked.allSatisfy { $0.method == "GET" && $0.body.isEmpty && $0.supersedes })
    #expect(dialogue.farewell == nil)
  }

  @Test("what the app wants in the answer is asked for again")
  func included() throws {
    let dialogue = try Dialogue(
      responses(#"{"background":true,"logprobs":true,"include":["a.b","x&y=z"]}"#),
      [.json(Fixture.responsesQueued), .json(Fixture.responsesDone)])
    #expect(
      dialogue.paths == [
        "/responses/resp_1?include%5B%5D=a.b&include%5B%5D=message.output_text.logprobs"
      ])
  }

  @Test(
    "troubles on the way say nothing of the job",
    arguments: [
      Answered.json("{}", status: 503), .json("{}", status: 500), .json("<html>", status: 502),
      .json("slow down", status: 429, headers: ["retry-after": "3"]), .nothing(),
      .nothing(.timeout),
      .json(""), .json("<html>"), .json("{\"id\":"), .json("{}"), .json("[]"),
      Answered(
        body: Array("{\"id\":\"resp_1\",\"status\":\"comp".utf8), end: .broken(.truncated, "cut")),
    ])
  func troubles(trouble: Answered) throws {
    let dialogue = try Dialogue(
      responses(background),
      [.json(Fixture.responsesQueued), trouble, trouble, .json(Fixture.responsesDone)])
    try expectWhole(dialogue.reading)
    if trouble.status == 429 { #expect(dialogue.asked[1].delay == 3_000) }
    // And they end.
    let endless = try Dialogue(responses(background), [.json(Fixture.responsesQueued), trouble])
    let failure = try #require(endless.reading.failure)
    #expect(endless.asked.count == 1 + PollPauses.patience)
    #expect(![Failure.Signal.connect, .http, .unsendable].contains(failure.signal))
    #expect(endless.farewell?.target == .path("/responses/resp_1/cancel"))
    #expect(endless.farewell?.method == "POST")
  }

  @Test("a job that is refused is lost, not unmade", arguments: [401, 403, 404])
  func lost(status: Int) throws {
    let dialogue = try Dialogue(
      responses(background),
      [
        .json(Fixture.responsesQueued),
        .json(#"{"error":{"message":"no","code":"c"}}"#, status: status),
      ])
    let failure = try #require(dialogue.reading.failure)
    #expect(failure.signal == .truncated && failure.httpStatus == status && failure.code == "c")
    #expect(dialogue.asked.count == 1 && dialogue.farewell != nil)
  }

  @Test("a request that is refused makes no job", arguments: [400, 401, 429, 500, 503])
  func refused(status: Int) throws {
    let dialogue = try Dialogue(responses(background), [.json("{}", status: status)])
    #expect(dialogue.reading.failure?.signal == .http && dialogue.asked.isEmpty)
    #expect(dialogue.farewell == nil)
  }

  @Test("without background nothing is asked for again, and nothing needs to be stopped")
  func foreground() throws {
    let head = Array(Fixture.responsesStream.utf8.prefix(1_500))
    let dialogue = try Dialogue(
      responses(stream: true), [.stream(head, end: .broken(.reset, "gone"))])
    #expect(dialogue.reading.failure?.signal == .reset)
    #expect(dialogue.asked.isEmpty && dialogue.farewell == nil)
  }

  @Test(
    "ids that are no ids lead nowhere",
    arguments: ["../x", "a/b", "", "a?b", "..", String(repeating: "x", count: 300)])
  func strangeIDs(id: String) throws {
    let queued = Fixture.responsesQueued.replacingOccurrences(of: "resp_1", with: id)
    let dialogue = try Dialogue(responses(background), [.json(queued)])
    #expect(dialogue.asked.isEmpty && dialogue.farewell == nil)
    #expect(dialogue.reading.failure != nil)
  }

  /// What the provider has of the stream after an event.
  private func stream(after number: Int) -> [UInt8] {
    let events = Fixture.responsesStream.components(separatedBy: "\n\n").dropLast(1)
    return Array(events.dropFirst(number + 1).map { $0 + "\n\n" }.joined().utf8)
  }

  @Test("a stream of a job that is cut at any byte, and given again, reads as the whole does")
  func resumedAnywhere() throws {
    let body = Array(Fixture.responsesStream.utf8)
    // Before the first event is whole nothing is known of a job.
    let first = try #require(Fixture.responsesStream.range(of: "\n\n"))
    let from = Fixture.responsesStream.utf8.distance(
      from: Fixture.responsesStream.startIndex, to: first.upperBound)
    for length in from..<body.count {
      for end in [TransferEnd.broken(.reset, "gone"), .complete].prefix(length % 3 == 0 ? 2 : 1) {
        let dialogue = try Dialogue(responses(stream: true, background)) { next in
          guard let next else { return .stream(Array(body[..<length]), end: end) }
          guard case .path(let path) = next.target,
            let number = path.split(separator: "=").last.flatMap({ Int($0) })
          else { return .nothing() }
          #expect(path.hasPrefix("/responses/resp_1?stream=true&starting_after="))
          return .stream(stream(after: number))
        }
        try expectWhole(dialogue.reading, "cut at \(length)")
      }
    }
  }

  @Test("what a stream repeats is not shown twice")
  func repeated() throws {
    let body = Array(Fixture.responsesStream.utf8)
    for length in stride(from: 500, to: body.count, by: 97) {
      let dialogue = try Dialogue(
        responses(stream: true, background),
        [.stream(Array(body[..<length]), end: .broken(.reset, "gone")), .stream(body)])
      try expectWhole(dialogue.reading, "cut at \(length)")
    }
  }

  @Test(
    "a stream that is not given again is asked for whole, and goes on from what was shown",
    arguments: [400, 404])
  func fallBack(status: Int) throws {
    let body = Array(Fixture.responsesStream.utf8)
    for length in stride(from: 500, to: body.count, by: 97) {
      let dialogue = try Dialogue(
        responses(stream: true, background),
        [
          .stream(Array(body[..<length]), end: .broken(.reset, "gone")),
          .json("{}", status: status),
          .json(Fixture.responsesQueued), .json(Fixture.responsesDone),
        ])
      try expectWhole(dialogue.reading, "cut at \(length)")
      #expect(dialogue.paths.last == "/responses/resp_1")
    }
  }

  @Test("a stream that gives nothing more is asked for whole, too")
  func silent() throws {
    let head = Array(Fixture.responsesStream.utf8.prefix(2_600))
    let dialogue = try Dialogue(responses(stream: true, background)) { next in
      guard case .path(let path) = next?.target else {
        return .stream(head, end: .broken(.truncated, "cut"))
      }
      return path.contains("stream=true") ? .stream([]) : .json(Fixture.responsesDone)
    }
    try expectWhole(dialogue.reading)
    #expect(dialogue.asked.count == PollPauses.patience + 1)
  }

  @Test("a whole that contradicts what was shown is refused")
  func contradiction() throws {
    let head = Array(Fixture.responsesStream.utf8.prefix(2_600))
    let other = Fixture.responsesDone.replacingOccurrences(of: "Grüße", with: "Servus")
    let dialogue = try Dialogue(
      responses(stream: true, background),
      [.stream(head, end: .broken(.reset, "gone")), .json("{}", status: 404), .json(other)])
    #expect(dialogue.reading.failure?.signal == .malformed)
    #expect(dialogue.reading.failure?.partial?.output == dialogue.reading.shown)
  }
}
