import Foundation
import Providers
import Testing

private func replicate(
  _ kind: CallKind = .chat, stream: Bool = false, model: String = "meta/llama",
  request: String = #"{"messages":[{"role":"user","content":"Hi"}],"params":{}}"#,
  options: String = "{}", timeout: Int? = nil
) -> Call {
  var made = call(
    "replicate", kind: kind, model: model, stream: stream, baseURL: "https://api.replicate.com",
    request: request, options: options)
  made.timeout = timeout
  return made
}

private func chat(_ params: String, _ messages: String = #"[{"role":"user","content":"Hi"}]"#)
  -> String
{
  #"{"messages":\#(messages),"params":\#(params)}"#
}

@Suite struct ReplicateTests {
  // MARK: Requests

  @Test(
    "the model's name says where the prediction is made",
    arguments: [
      ("meta/llama", "/v1/models/meta/llama/predictions", nil),
      ("meta/llama-3.1_8b", "/v1/models/meta/llama-3.1_8b/predictions", nil),
      ("me/thing:5c7d5dc6dd8b", "/v1/predictions", "5c7d5dc6dd8b"),
      ("5c7d5dc6dd8b", "/v1/predictions", "5c7d5dc6dd8b"),
      ("deployments/acme/prod", "/v1/deployments/acme/prod/predictions", nil),
    ] as [(String, String, String?)])
  func targets(model: String, path: String, version: String?) throws {
    for base in ["https://api.replicate.com", "https://api.replicate.com/v1/"] {
      var made = replicate(model: model)
      made.baseURL = base
      let request = try dialect(of: made).request(for: made)
      #expect(request.url == "https://api.replicate.com" + path)
      #expect(try decode(request.body)["version"] as? String == version)
    }
  }

  @Test(
    "what is no name is no address",
    arguments: [
      "", "a/b/c", "../x", "a/../b", "a//b", "a/b?c", "a/b#c", "a b/c", "a/b:", ":x",
      "deployments/a/b/c", "a/b/", "deployments/a/b:c",
    ])
  func strangeModels(model: String) throws {
    #expect(try refusal(replicate(model: model))?.signal == .unsendable)
  }

  @Test("a chat is a prompt, with the words that such models have")
  func inputs() throws {
    let call = replicate(
      stream: true,
      request: chat(
        #"{"max_tokens":50,"stop":["a","b"],"temperature":0.5,"top_k":7,"seed":3,"tools":[{}],"logprobs":true}"#,
        #"[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"See"},{"type":"image_url","image_url":{"url":"https://x/y.png"}}]}]"#
      ), options: #"{"input":{"top_k":1,"min_tokens":2},"max_tokens_param":"max_new_tokens"}"#)
    let request = try dialect(of: call).request(for: call)
    let expected = try decode(
      #"""
      {"input":{"prompt":"See","system_prompt":"Be brief.","image":"https://x/y.png","max_new_tokens":50,"stop_sequences":"a,b",
       "temperature":0.5,"top_k":7,"seed":3,"min_tokens":2},"stream":true}
      """#)
    #expect(try decode(request.body) == expected)
    #expect(Set(request.dropped) == ["tools", "logprobs"])
    #expect(!request.headers.contains { $0.name == "prefer" })
    #expect(request.headers.filter { $0.name == "accept" }.map(\.value) == ["application/json"])
  }

  @Test("several turns are a transcript; a model that takes messages gets them")
  func turns() throws {
    let messages =
      #"[{"role":"user","content":"One"},{"role":"assistant","content":"Two"},{"role":"user","content":"Three"}]"#
    let prompt = try requestBody(replicate(request: chat("{}", messages)))["input"] as? NSDictionary
    #expect(
      prompt?["prompt"] as? String == "User: One\n\nAssistant: Two\n\nUser: Three\n\nAssistant:")
    let given = try requestBody(
      replicate(request: chat("{}", messages), options: #"{"messages_param":"messages"}"#))
    #expect(try given == decode(#"{"input":{"messages":\#(messages)}}"#))
  }

  @Test("an image has a prompt and a number; its own parameters pass")
  func images() throws {
    let call = replicate(
      .image,
      request:
        #"{"input":"A swift","params":{"n":2,"aspect_ratio":"1:1","response_format":"url","user":"u"}}"#
    )
    #expect(
      try requestBody(call)
        == decode(#"{"input":{"prompt":"A swift","num_outputs":2,"aspect_ratio":"1:1"}}"#))
    let speech = replicate(
      .speech, request: #"{"input":"Hello","params":{}}"#, options: #"{"prompt_param":"text"}"#)
    #expect(try requestBody(speech) == decode(#"{"input":{"text":"Hello"}}"#))
  }

  @Test("the request waits as long as it may, and Replicate knows when nobody waits any more")
  func waiting() throws {
    func headers(_ call: Call) throws -> [String: String] {
      Dictionary(
        try dialect(of: call).request(for: call).headers.map { ($0.name, $0.value) },
        uniquingKeysWith: { $1 })
    }
    #expect(try headers(replicate())["prefer"] == "wait=60")
    #expect(try headers(replicate(options: #"{"wait_s":5}"#))["prefer"] == "wait=5")
    #expect(try headers(replicate(options: #"{"wait_s":600}"#))["prefer"] == "wait=60")
    #expect(try headers(replicate(options: #"{"wait_s":0}"#))["prefer"] == nil)
    #expect(try headers(replicate())["cancel-after"] == nil)
    #expect(try headers(replicate(timeout: 4_999))["cancel-after"] == nil)
    #expect(try headers(replicate(timeout: 90_500))["cancel-after"] == "90s")
    #expect(try headers(replicate(timeout: 900_000_000))["cancel-after"] == "86400s")
    #expect(try headers(replicate())["authorization"] == "Bearer sk-secret-1234")
  }

  @Test(
    "what cannot be written is refused",
    arguments: [
      (CallKind.chat, #"{"messages":[{"role":"tool","content":"x"}],"params":{}}"#),
      (.chat, #"{"messages":[{"role":"user","content":[{"type":"file"}]}],"params":{}}"#),
      (.chat, #"{"messages":[],"params":{}}"#),
      (.chat, #"{"messages":[{"role":"user","content":"x"}],"params":{"n":2}}"#),
      (.image, #"{"input":["a","b"],"params":{}}"#), (.embedding, #"{"input":"a","params":{}}"#),
      (.rerank, #"{"input":"a","params":{}}"#), (.moderation, #"{"input":"a","params":{}}"#),
    ])
  func unsendable(kind: CallKind, request: String) throws {
    #expect(try refusal(replicate(kind, request: request))?.signal == .unsendable)
  }

  // MARK: Answers

  private func expectWhole(_ reading: Reading, isCounted: Bool = true, _ comment: Comment? = nil)
    throws
  {
    let reply = try #require(reading.reply, comment)
    #expect(reading.shown == "Grüße,\n 🐦!" && reply.output == reading.shown, comment)
    #expect(reply.finishReason == "stop" && reply.requestID == "pr1zd0ab", comment)
    #expect(reply.model == "meta/llama", comment)
    var used = usage(input: 12, output: 4)
    used.units = ["seconds": "1.284541"]
    #expect(reply.usage == (isCounted ? used : nil), comment)
    #expect(try reading.message()["content"] as? String == "Grüße,\n 🐦!", comment)
    expectSound(reading)
  }

  @Test("a prediction that was waited for is done at once")
  func atOnce() throws {
    let dialogue = try Dialogue(replicate(), [.json(Fixture.predictionDone, status: 201)])
    try expectWhole(dialogue.reading)
    #expect(dialogue.asked.isEmpty && dialogue.farewell == nil)
  }

  @Test("one that was not done in time is asked for: at home, whatever address it names")
  func polled() throws {
    let elsewhere = Fixture.predictionStarted.replacingOccurrences(
      of: "api.replicate.com", with: "evil.example")
    let running = Fixture.prediction(#""status":"processing","output":["Grü"],"error":null"#)
    let dialogue = try Dialogue(
      replicate(), [.json(elsewhere, status: 201), .json(running), .json(Fixture.predictionDone)])
    try expectWhole(dialogue.reading)
    #expect(dialogue.paths == Array(repeating: "/v1/predictions/pr1zd0ab", count: 2))
    #expect(dialogue.asked.map(\.delay) == [500, 750])
  }

  @Test("a stream is read where the prediction says, and what it used is asked for at the end")
  func streamed() throws {
    let dialogue = try Dialogue(
      replicate(stream: true),
      [
        .json(Fixture.predictionStarted, status: 201),
        .stream(Array(Fixture.predictionStream.utf8)),
        .json(Fixture.predictionDone),
      ])
    try expectWhole(dialogue.reading)
    #expect(
      dialogue.paths == ["https://stream.replicate.com/v1/files/abc", "/v1/predictions/pr1zd0ab"])
    #expect(dialogue.asked[0].headers.map(\.name) == ["accept", "cache-control"])
    #expect(dialogue.farewell == nil)
  }

  /// What the provider has of the stream after an event.
  private func stream(after id: String?) -> [UInt8] {
    let events = Fixture.predictionStream.components(separatedBy: "\n\n").dropLast(1)
    guard let id, let at = events.firstIndex(where: { $0.contains("id: \(id)\n") }) else {
      return Array(Fixture.predictionStream.utf8)
    }
    return Array(events[(at + 1)...].map { $0 + "\n\n" }.joined().utf8)
  }

  @Test(
    "a stream cut at any byte is taken up again, by a server that knows how and by one that begins anew",
    arguments: [true, false])
  func resumedAnywhere(knows: Bool) throws {
    let body = Array(Fixture.predictionStream.utf8)
    for length in body.indices {
      for end in [TransferEnd.complete, .broken(.truncated, "gone")] {
        var pieces = 0
        let dialogue = try Dialogue(replicate(stream: true)) { next in
          switch next?.target {
          case nil: return .json(Fixture.predictionStarted, status: 201)
          case .path: return .json(Fixture.predictionDone)
          case .url:
            pieces += 1
            if pieces == 1 { return .stream(Array(body[..<length]), end: end) }
            let id = next?.headers.first { $0.name == "last-event-id" }?.value
            return .stream(stream(after: knows ? id : nil))
          }
        }
        try expectWhole(dialogue.reading, "cut at \(length)")
      }
    }
  }

  @Test(
    "a stream that nobody lets us read is asked for as a whole",
    arguments: [
      Answered.json("{}", status: 404), .json("{}", status: 401), .nothing(.malformed),
      .nothing(.reset), .stream([]),
      .json("{}", status: 503), .json("<html>"),
    ])
  func noStream(answer: Answered) throws {
    let dialogue = try Dialogue(replicate(stream: true)) { next in
      switch next?.target {
      case nil: .json(Fixture.predictionStarted, status: 201)
      case .path: .json(Fixture.predictionDone)
      case .url: answer
      }
    }
    try expectWhole(dialogue.reading)
  }

  @Test("a model that does not stream shows what it has at each question")
  func partial() throws {
    func running(_ output: String) -> Answered {
      .json(Fixture.prediction(#""status":"processing","output":\#(output),"error":null"#))
    }
    var shown: [String] = []
    var reader = try dialect(of: replicate(stream: true)).reader(for: replicate(stream: true))
    for answer in [
      running("null"), running(#"["Grü"]"#), running(#"["Grü","ße,\n"]"#),
      .json(Fixture.predictionDone),
    ] {
      _ = reader.head(ResponseHead(status: 200, headers: ["content-type": "application/json"]))
      shown.append(reader.receive(event: nil, data: answer.body))
      _ = reader.followUp(.complete)
    }
    #expect(shown == ["", "Grü", "ße,\n", " 🐦!"])
    #expect(throws: Never.self) { try reader.finish(.complete).get() }
  }

  @Test("an answer that was streamed to its end does not hang on the last question")
  func lastQuestion() throws {
    let dialogue = try Dialogue(
      replicate(stream: true),
      [
        .json(Fixture.predictionStarted, status: 201),
        .stream(Array(Fixture.predictionStream.utf8)),
        .json("{}", status: 404),
      ])
    try expectWhole(dialogue.reading, isCounted: false)
    for trouble in [
      Answered.json("{}", status: 503), .nothing(), .json("<html>"), .json("{\"id\":"),
    ] {
      let endless = try Dialogue(
        replicate(stream: true),
        [
          .json(Fixture.predictionStarted, status: 201),
          .stream(Array(Fixture.predictionStream.utf8)),
          trouble,
        ])
      try expectWhole(endless.reading, isCounted: false)
    }
  }

  @Test(
    "why a prediction ended is the code, and what it used is told",
    arguments: ["failed", "canceled", "aborted"])
  func failed(status: String) throws {
    let over = Fixture.prediction(
      #""status":"\#(status)","output":null,"error":"CUDA out of memory","metrics":{"predict_time":3}"#
    )
    for answers in [[Answered.json(over)], [.json(Fixture.predictionStarted), .json(over)]] {
      let dialogue = try Dialogue(replicate(), answers)
      let failure = try #require(dialogue.reading.failure)
      #expect(failure.signal == .embeddedError && failure.code == status)
      #expect(failure.message == "CUDA out of memory")
      #expect(failure.partial?.usage?.units == ["seconds": "3"])
      #expect(failure.partial?.usage?.countsTokens == false)
      #expect(dialogue.farewell == nil)
    }
  }

  @Test(
    "a stream that says why it ended early is a failure, with what was shown",
    arguments: [
      "event: error\nid: 9:0\ndata: out of memory\n\n",
      "event: done\nid: 9:0\ndata: {\"reason\":\"error\"}\n\n",
    ])
  func failedStream(end: String) throws {
    let over = Fixture.prediction(#""status":"failed","output":["Grü"],"error":"out of memory""#)
    let dialogue = try Dialogue(
      replicate(stream: true),
      [
        .json(Fixture.predictionStarted, status: 201),
        .stream(Array(("event: output\nid: 1:0\ndata: Grü\n\n" + end).utf8)), .json(over),
      ])
    #expect(dialogue.reading.failure?.signal == .embeddedError)
    #expect(dialogue.reading.failure?.partial?.output == "Grü" && dialogue.reading.shown == "Grü")
  }

  @Test("a prediction that is lost is stopped, should it still run")
  func farewells() throws {
    for answers in [
      [Answered.json(Fixture.predictionStarted), .json("{}", status: 404)],
      [.json(Fixture.predictionStarted), .nothing()],
    ] {
      let dialogue = try Dialogue(replicate(), answers)
      #expect(dialogue.reading.failure?.signal != .http)
      #expect(dialogue.farewell?.target == .path("/v1/predictions/pr1zd0ab/cancel"))
      #expect(dialogue.farewell?.method == "POST")
    }
    let none = try Dialogue(replicate(), [.nothing()])
    #expect(none.asked.isEmpty && none.farewell == nil && none.reading.failure?.signal == .reset)
  }

  @Test("a making that broke off after its id is asked for, before that it is not known")
  func cutMaking() throws {
    let body = Array(Fixture.predictionStarted.utf8)
    for length in body.indices {
      let dialogue = try Dialogue(replicate()) { next in
        next == nil
          ? Answered(status: 201, body: Array(body[..<length]), end: .broken(.truncated, "cut"))
          : .json(Fixture.predictionDone)
      }
      if dialogue.asked.isEmpty {
        #expect(dialogue.reading.failure?.signal == .truncated, "at \(length)")
      } else {
        try expectWhole(dialogue.reading, "at \(length)")
      }
    }
  }

  @Test(
    "outputs of many shapes become text",
    arguments: [
      (#""one""#, "one"), (#"["a","b"]"#, "ab"), (#"{"text":"t","x":1}"#, "t"),
      (#"{"transcription":"t"}"#, "t"), (#"{"x":[1,null]}"#, #"{"x":[1,null]}"#), ("null", ""),
      ("7", "7"), (#"["a",1]"#, #"["a",1]"#), ("true", "true"), (#""\u0000""#, "\u{FFFD}"),
    ])
  func shapes(output: String, text: String) throws {
    let body = Fixture.prediction(#""status":"succeeded","output":\#(output),"error":null"#)
    let reading = try read(replicate(), text: body)
    #expect(reading.reply?.output == text && reading.shown == text)
    #expect(reading.reply?.usage == nil)
    expectSound(reading)
  }

  @Test(
    "outputs of many shapes become files",
    arguments: [
      (#""https://replicate.delivery/x/out.png""#, ["image/png"]),
      (#"["https://r.d/a.webp","https://r.d/b.jpg?x"]"#, ["image/webp", "image/jpeg"]),
      (#"{"audio":"https://r.d/a.mp3","text":"not a file"}"#, ["audio/mpeg"]),
      (#""https://r.d/blob""#, ["application/octet-stream"]),
      (#""data:image/gif;base64,R0lG""#, ["image/gif"]),
      (#""file:///etc/passwd""#, []), ("null", []), (#"["https://u@r.d/a.png"]"#, []),
    ])
  func files(output: String, types: [String]) throws {
    let body = Fixture.prediction(
      #""status":"succeeded","output":\#(output),"error":null,"metrics":{"predict_time":1e-2}"#)
    let reading = try read(
      replicate(.image, request: #"{"input":"x","params":{}}"#), text: body)
    let reply = try #require(reading.reply)
    #expect(reply.files.map(\.mediaType) == types)
    #expect(reply.output.isEmpty && reply.message == nil)
    #expect(
      reply.usage?.units["images"] == (types.isEmpty && output == "null" ? "0" : "\(types.count)"))
    #expect(reply.usage?.units["seconds"] == "0.010000" && reply.usage?.countsTokens == true)
  }

  @Test(
    "what is no prediction is malformed",
    arguments: ["[]", "{}", "7", #"{"status":"succeeded"}"#, "<html>"])
  func malformed(body: String) throws {
    #expect(try read(replicate(), text: body).failure?.signal == .malformed)
  }
}
