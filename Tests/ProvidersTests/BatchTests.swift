import Testing

@testable import Providers

/// Batch interfaces: what is sent, what is read, and that nothing a provider sends breaks it.
@Suite struct BatchTests {
  private func call(_ dialect: String, _ base: String = "https://api.test/v1") -> Call {
    Call(
      kind: .chat, dialect: dialect, baseURL: base, secret: "sk-test", headers: ["x-team": "a"],
      model: "m+1", stream: false,
      request: Array(
        #"{"messages":[{"role":"user","content":"Hi\n\"you\""}],"params":{"max_tokens":7}}"#.utf8),
      options: Array("{}".utf8))
  }

  private func order(_ action: BatchAction, _ dialect: String) -> BatchOrder {
    var order = BatchOrder(
      action: action, call: call(dialect), name: "0193-name")
    order.externalID = dialect == "gemini" ? "batches/b1" : "b1"
    order.fileID = "file-1"
    order.outputID = "file-2"
    order.errorsID = "file-3"
    order.requests = 2
    order.since = 1_000_000
    return order
  }

  private func dialect(_ name: String) throws -> any BatchDialect.Type {
    try #require(BatchDialects.named(name))
  }

  private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

  // MARK: What is sent

  @Test(arguments: ["openai", "anthropic", "gemini"])
  func everyStepIsARequestWithTheKeyAndTheProvidersHeaders(name: String) throws {
    let dialect = try dialect(name)
    for action in BatchAction.allCases {
      let order = order(action, name)
      if name != "openai", [.upload, .findFile].contains(action) {
        #expect(throws: Failure.self) {
          try dialect.request(for: order, members: Array("x".utf8), page: nil)
        }
        continue
      }
      let request = try dialect.request(for: order, members: Array("{}".utf8), page: "p1")
      #expect(request.url.hasPrefix("https://api.test/v1/"))
      #expect(request.headers.contains { $0.name == "x-team" && $0.value == "a" })
      #expect(request.headers.contains { $0.value.contains("sk-test") })
      #expect(request.method == (request.body.isEmpty && action != .cancel ? "GET" : "POST"))
      #expect(
        request.headers.filter { $0.name.lowercased() == "content-type" }.count
          == (request.body.isEmpty ? 0 : 1))
    }
  }

  @Test(arguments: ["openai", "anthropic", "gemini"])
  func anIDThatIsNoneDoesNotComeIntoAURL(name: String) throws {
    let dialect = try dialect(name)
    for bad in [
      "", "a b", "../x", "a?b", "a#b", "a/../b", "%2e", "é", String(repeating: "a", count: 301),
    ] {
      var order = order(.poll, name)
      order.externalID = bad
      #expect(throws: Failure.self) { try dialect.request(for: order, members: [], page: nil) }
    }
  }

  @Test func membersOfOpenAIAreLines() throws {
    let member = try OpenAIBatches.member("id_1", call("openai"))
    let json = try #require(JSON(member.bytes))
    #expect(!member.bytes.contains(UInt8(ascii: "\n")))
    #expect(json["custom_id"]?.string == "id_1")
    #expect(json["url"]?.string == "/v1/chat/completions")
    #expect(json["body"]?["model"]?.string == "m+1")
    #expect(json["body"]?["stream"]?.bool == false)
    let upload = try OpenAIBatches.request(
      for: order(.upload, "openai"), members: member.bytes, page: nil)
    let body = text(upload.body)
    #expect(body.hasPrefix("--martlet-0193-name\r\n"))
    #expect(body.hasSuffix("\n\r\n--martlet-0193-name--\r\n"))
    #expect(body.contains(text(member.bytes)))
  }

  @Test func theCreationsSayOurName() throws {
    let openAI = try OpenAIBatches.request(for: order(.create, "openai"), members: [], page: nil)
    #expect(JSON(openAI.body)?["metadata"]?["martlet_batch"]?.string == "0193-name")
    let gemini = try GeminiBatches.request(
      for: order(.create, "gemini"),
      members: GeminiBatches.member("id_1", call("gemini")).bytes, page: nil)
    #expect(JSON(gemini.body)?["batch"]?["displayName"]?.string == "0193-name")
    let inside = JSON(gemini.body)?["batch"]?["inputConfig"]?["requests"]?["requests"]
    #expect(inside?.elements.first?["metadata"]?["key"]?.string == "id_1")
    let anthropic = try AnthropicBatches.request(
      for: order(.create, "anthropic"),
      members: AnthropicBatches.member("id_1", call("anthropic")).bytes, page: nil)
    #expect(JSON(anthropic.body)?["requests"]?.elements.first?["custom_id"]?.string == "id_1")
  }

  // MARK: What is read

  @Test func statesOfBatches() throws {
    func read(_ name: String, _ json: String) throws -> BatchReport {
      try dialect(name).read(
        order(.poll, name), status: 200, headers: [:], body: Array(json.utf8)
      ).get()
    }
    for (status, ending) in [
      ("validating", nil), ("in_progress", nil), ("finalizing", nil), ("cancelling", nil),
      ("completed", BatchReport.Ending.completed), ("failed", .failed), ("expired", .expired),
      ("cancelled", .cancelled), ("something_new", nil),
    ] {
      #expect(try read("openai", #"{"id":"b","status":"\#(status)"}"#).ending == ending)
    }
    for (state, ending) in [
      ("BATCH_STATE_PENDING", nil), ("JOB_STATE_RUNNING", nil),
      ("JOB_STATE_SUCCEEDED", BatchReport.Ending.completed), ("BATCH_STATE_FAILED", .failed),
      ("JOB_STATE_PARTIALLY_SUCCEEDED", .completed), ("BATCH_STATE_CANCELLED", .cancelled),
      ("BATCH_STATE_EXPIRED", .expired),
    ] {
      #expect(
        try read("gemini", #"{"name":"batches/b","metadata":{"state":"\#(state)"}}"#).ending
          == ending)
    }
    let counts = #""request_counts":{"expired":1,"succeeded":1}"#
    #expect(try read("anthropic", #"{"id":"b","processing_status":"in_progress"}"#).ending == nil)
    #expect(try read("anthropic", #"{"id":"b","processing_status":"ended"}"#).ending == .completed)
    #expect(
      try read("anthropic", #"{"id":"b","processing_status":"ended",\#(counts)}"#).ending
        == .expired)
    #expect(
      try read(
        "anthropic",
        #"{"id":"b","processing_status":"ended","cancel_initiated_at":"2026-11-21T10:00:00Z"}"#
      ).ending == .cancelled)
  }

  @Test(arguments: ["openai", "anthropic", "gemini"])
  func whatIsNoAnswerIsMalformedAndAnErrorSaysWhatItIs(name: String) throws {
    let dialect = try dialect(name)
    for body in ["", "[]", "{}", "null", "<html>", #"{"id":7}"#, #"{"data":"x"}"#] {
      let result = dialect.read(
        order(.poll, name), status: 200, headers: [:], body: Array(body.utf8))
      guard case .failure(let failure) = result else { throw self.failure("taken: \(body)") }
      #expect(failure.signal == .malformed)
    }
    let result = dialect.read(
      order(.create, name), status: 429, headers: ["retry-after": "3"],
      body: Array(#"{"error":{"message":"no","type":"t","code":"c"}}"#.utf8))
    guard case .failure(let failure) = result else { throw self.failure("a success") }
    #expect(failure.signal == .http)
    #expect(failure.httpStatus == 429)
    #expect(failure.retryAfterMilliseconds == 3_000)
  }

  private func failure(_ words: String) -> Failure { Failure(.malformed, message: words) }

  @Test func listsAreReadAsFarBackAsIsOfUse() throws {
    let page = """
      {"data":[{"id":"b3","created_at":1000500,"metadata":{"martlet_batch":"0193-name"},"request_counts":{"total":2}},
      {"id":"b2","created_at":1000000,"metadata":null},{"id":"b1","created_at":900000}],"has_more":true,"last_id":"b1"}
      """
    let report = try OpenAIBatches.read(
      order(.find, "openai"), status: 200, headers: [:], body: Array(page.utf8)
    ).get()
    #expect(
      report.found == [
        .init(id: "b3", name: "0193-name", requests: 2, created: 1_000_500),
        .init(id: "b2", name: "", requests: nil, created: 1_000_000),
      ])
    #expect(report.nextPage == nil)
    let newer = page.replacing("900000", with: "1000000")
    #expect(
      try OpenAIBatches.read(
        order(.find, "openai"), status: 200, headers: [:], body: Array(newer.utf8)
      ).get().nextPage == "b1")
  }

  private static let results: [(name: String, line: String, kind: String)] = [
    (
      "openai",
      #"{"id":"r","custom_id":"x_1","response":{"status_code":200,"request_id":"req_1","body":{"id":"c","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"yes"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}},"error":null}"#,
      "yes"
    ),
    (
      "openai",
      #"{"custom_id":"x_1","response":{"status_code":400,"body":{"error":{"message":"no","type":"invalid_request_error"}}},"error":null}"#,
      "400"
    ),
    (
      "openai",
      #"{"custom_id":"x_1","response":null,"error":{"code":"batch_expired","message":"m"}}"#,
      "expired"
    ),
    (
      "openai",
      #"{"custom_id":"x_1","response":null,"error":{"code":"batch_cancelled","message":"m"}}"#,
      "cancelled"
    ),
    (
      "openai",
      #"{"custom_id":"x_1","response":null,"error":{"code":"request_timeout","message":"m"}}"#,
      "408"
    ),
    (
      "anthropic",
      #"{"custom_id":"x_1","result":{"type":"succeeded","message":{"id":"m","type":"message","role":"assistant","model":"c","content":[{"type":"text","text":"yes"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":1,"service_tier":"batch"}}}}"#,
      "yes"
    ),
    (
      "anthropic",
      #"{"custom_id":"x_1","result":{"type":"errored","error":{"type":"error","error":{"type":"overloaded_error","message":"m"},"request_id":"req_9"}}}"#,
      "529"
    ),
    ("anthropic", #"{"custom_id":"x_1","result":{"type":"expired"}}"#, "expired"),
    ("anthropic", #"{"custom_id":"x_1","result":{"type":"canceled"}}"#, "cancelled"),
    (
      "gemini",
      #"{"response":{"candidates":[{"content":{"role":"model","parts":[{"text":"yes"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1}},"metadata":{"key":"x_1"}}"#,
      "yes"
    ),
    ("gemini", #"{"error":{"code":8,"message":"quota"},"metadata":{"key":"x_1"}}"#, "429"),
    ("gemini", #"{"error":{"code":13,"message":"m"},"metadata":{"key":"x_1"}}"#, "500"),
  ]

  private func kind(_ answer: BatchAnswer?) -> String? {
    guard let answer, answer.id == "x_1" else { return nil }
    switch answer.content {
    case .expired: return "expired"
    case .cancelled: return "cancelled"
    case .answered(.success(let reply)):
      return reply.usage?.input == 3 && reply.usage?.output == 1 ? reply.output : "no usage"
    case .answered(.failure(let failure)): return failure.httpStatus.map { String($0) } ?? "?"
    }
  }

  @Test func resultsSayWhatBecameOfTheirMember() throws {
    for (name, line, expected) in Self.results {
      let answer = try dialect(name).answer(in: Array(line.utf8), to: call(name))
      #expect(kind(answer) == expected, "\(line)")
    }
  }

  @Test func aResultThatIsCutOrChangedIsNeverAnother() throws {
    for (name, line, expected) in Self.results {
      let bytes = Array(line.utf8)
      for end in 0..<bytes.count {
        #expect(try dialect(name).answer(in: Array(bytes[..<end]), to: call(name)) == nil)
      }
      for at in bytes.indices {
        var changed = bytes
        changed[at] = changed[at] ^ 0x15
        let answer = try dialect(name).answer(in: changed, to: call(name))
        if let answer, case .answered(.success(let reply)) = answer.content {
          // Whatever was changed, it is a whole answer or none.
          #expect(reply.finishReason != nil || expected == "yes")
        }
      }
    }
  }

  // MARK: Parts

  @Test func elementsAreTheSameWhereverTheTextIsCut() throws {
    let text = #"""
      {"a":["inlinedResponses",[1]],"metadata":{"output":{"inlinedResponses":{"inlinedResponses": [ {"x":"]}\"[{"}, {"y":[{"z":1},[]]} ,7, "s]" , {}]}}},"inlinedResponses":3,"k":"inlinedResponses","b":{"inlinedResponses":[]}}
      """#
    let bytes = Array(text.utf8)
    func split(at cuts: [Int]) throws -> (elements: [String], rest: String) {
      var splitter = ArraySplitter(name: "inlinedResponses")
      var elements: [String] = []
      var start = 0
      for cut in cuts + [bytes.count] {
        try Array(bytes[start..<cut]).withUnsafeBytes { piece in
          try splitter.feed(piece) { elements.append(String(decoding: $0, as: UTF8.self)) }
        }
        start = cut
      }
      return (elements, String(decoding: splitter.rest, as: UTF8.self))
    }
    let whole = try split(at: [])
    #expect(whole.elements == [#"{"x":"]}\"[{"}"#, #"{"y":[{"z":1},[]]}"#, "{}"])
    #expect(JSON(Array(whole.rest.utf8))?["k"]?.string == "inlinedResponses")
    for cut in 1..<bytes.count {
      let cut = try split(at: [cut])
      #expect(cut == whole)
    }
    let each = try split(at: Array(1..<bytes.count))
    #expect(each == whole)
  }

  @Test func anElementThatIsTooLongEndsIt() {
    var splitter = ArraySplitter(name: "a", largest: 10)
    #expect(throws: ArraySplitter.TooLong.self) {
      try Array(#"{"a":[{"long":"0123456789"}]}"#.utf8).withUnsafeBytes {
        try splitter.feed($0) { _ in }
      }
    }
  }

  @Test(arguments: [
    ("1970-01-01T00:00:00Z", 0), ("2026-11-21T15:30:00Z", 1_795_275_000),
    ("2026-11-21T16:30:00.123456789+01:00", 1_795_275_000), ("2024-02-29T23:59:60z", 1_709_251_200),
    ("2000-03-01 00:00:00-00:30", 951_870_600),
  ])
  func times(text: String, seconds: Int) {
    #expect(Timestamp.seconds(text) == seconds)
  }

  @Test(arguments: [
    "", "2026-11-21", "2026-11-21T15:30:00", "2026-13-21T15:30:00Z", "2026-11-21T25:30:00Z",
    "2026-11-21T15:30:00Zx", "2026-11-21T15:30:00+1:00", "x026-11-21T15:30:00Z",
  ])
  func whatIsNoTime(text: String) {
    #expect(Timestamp.seconds(text) == nil)
  }
}
