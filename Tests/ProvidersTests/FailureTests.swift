import Foundation
import Providers
import Testing

@Suite struct FailureTests {
  /// An error response and what must be understood of it.
  struct Said: Sendable {
    var status: Int
    var body: String
    var type: String?
    var code: String?
    var message: String
  }

  static let matrix: [Said] = [
    Said(
      status: 429,
      body:
        #"{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#,
      type: "requests", code: "rate_limit_exceeded", message: "Rate limit reached"),
    Said(
      status: 429,
      body:
        #"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
      type: "insufficient_quota", code: "insufficient_quota",
      message: "You exceeded your current quota"),
    Said(
      status: 401,
      body:
        #"{"error":{"message":"Incorrect API key provided: sk-secret-1234.","type":"invalid_request_error","code":"invalid_api_key"}}"#,
      type: "invalid_request_error", code: "invalid_api_key",
      message: "Incorrect API key provided: [secret]."),
    Said(
      status: 503,
      body: #"{"error":{"message":"Overloaded","type":"server_error","code":null}}"#,
      type: "server_error", code: nil, message: "Overloaded"),
    // vLLM: a code that is the status; and its older flat form.
    Said(
      status: 400,
      body:
        #"{"error":{"message":"context length","type":"BadRequestError","param":null,"code":400}}"#,
      type: "BadRequestError", code: "400", message: "context length"),
    Said(
      status: 404,
      body:
        #"{"object":"error","message":"no such model","type":"NotFoundError","param":null,"code":404}"#,
      type: "NotFoundError", code: "404", message: "no such model"),
    // Anthropic.
    Said(
      status: 529,
      body:
        #"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_x"}"#,
      type: "overloaded_error", code: nil, message: "Overloaded"),
    Said(
      status: 429,
      body:
        #"{"type":"error","error":{"type":"rate_limit_error","message":"Spend limit","details":{"error_code":"enforced_spend_limit_reached"}},"request_id":"req_x"}"#,
      type: "rate_limit_error", code: "enforced_spend_limit_reached", message: "Spend limit"),
    Said(
      status: 402,
      body:
        #"{"type":"error","error":{"type":"billing_error","message":"No credit","details":null}}"#,
      type: "billing_error", code: nil, message: "No credit"),
    // Hugging Face, TGI, Ollama, gateways.
    Said(
      status: 503, body: #"{"error":"Model x is currently loading","estimated_time":20.5}"#,
      type: nil, code: nil, message: "Model x is currently loading"),
    Said(
      status: 429, body: #"{"error":"Overloaded","error_type":"overloaded"}"#, type: "overloaded",
      code: nil, message: "Overloaded"),
    Said(status: 400, body: #"{"error":["bad","worse"]}"#, type: nil, code: nil, message: "bad"),
    Said(
      status: 422, body: #"{"detail":[{"loc":["body"],"msg":"field required","type":"missing"}]}"#,
      type: nil, code: nil, message: "body: field required"),
    Said(
      status: 429,
      body:
        #"[{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED","details":[]}}]"#,
      type: "RESOURCE_EXHAUSTED", code: "429", message: "Quota"),
    Said(
      status: 400,
      body:
        #"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}"#,
      type: "INVALID_ARGUMENT", code: "API_KEY_INVALID", message: "API key not valid."),
    Said(
      status: 429,
      body:
        #"{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerDay"}]}]}}"#,
      type: "RESOURCE_EXHAUSTED", code: "GenerateRequestsPerDay", message: "Quota"),
    Said(
      status: 400,
      body:
        #"{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens allowed (8).","status":"INVALID_ARGUMENT"}}"#,
      type: "INVALID_ARGUMENT", code: "context_length_exceeded",
      message: "The input token count (9) exceeds the maximum number of tokens allowed (8)."),
    Said(
      status: 400,
      body:
        #"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 208310 tokens > 200000 maximum"}}"#,
      type: "invalid_request_error", code: "context_length_exceeded",
      message: "prompt is too long: 208310 tokens > 200000 maximum"),
    Said(
      status: 400,
      body:
        #"{"type":"error","error":{"type":"invalid_request_error","message":"input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length or `max_tokens` and try again"}}"#,
      type: "invalid_request_error", code: "context_length_exceeded",
      message:
        "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length or `max_tokens` and try again"
    ),
    Said(
      status: 400,
      body:
        #"{"object":"error","message":"This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.","type":"BadRequestError","param":null,"code":400}"#,
      type: "BadRequestError", code: "context_length_exceeded",
      message:
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens."),
    Said(status: 500, body: #"{"message":"upstream"}"#, type: nil, code: nil, message: "upstream"),
    Said(
      status: 502,
      body: "<!DOCTYPE html>\n<html><head><TITLE>502\n Bad Gateway</TITLE></head></html>",
      type: nil, code: nil, message: "HTTP 502 with an HTML page: 502 Bad Gateway"),
    Said(
      status: 503, body: "<html><body></body></html>", type: nil, code: nil,
      message: "HTTP 503 with an HTML page"),
    Said(status: 500, body: "", type: nil, code: nil, message: "HTTP 500 with an empty body"),
    Said(
      status: 500, body: "no healthy upstream", type: nil, code: nil,
      message: "HTTP 500 with text that is not JSON: no healthy upstream"),
    Said(status: 418, body: "{}", type: nil, code: nil, message: "HTTP 418: {}"),
    Said(
      status: 500, body: #"{"error":{"message":null,"type":null}}"#, type: nil, code: nil,
      message: #"HTTP 500: {"error":{"message":null,"type":null}}"#),
    // Cut off in the middle: what had arrived still tells.
    Said(
      status: 500, body: #"{"error":{"type":"server_error","message":"The serv"#,
      type: "server_error", code: nil, message: "The serv"),
  ]

  @Test(arguments: matrix, ["openai", "anthropic", "ollama", "tgi", "tei", "huggingface"])
  func everyErrorShapeIsUnderstood(_ said: Said, _ dialect: String) throws {
    for stream in [false, true] {
      let reading = try read(call(dialect, stream: stream), status: said.status, text: said.body)
      let failure = try #require(reading.failure)
      #expect(failure.signal == .http)
      #expect(failure.httpStatus == said.status)
      #expect(failure.type == said.type)
      #expect(failure.code == said.code)
      #expect(failure.message == said.message)
      #expect(failure.partial == nil)
      expectSound(reading)
    }
  }

  @Test func errorsHoldWhatTheirHeadersSay() throws {
    let failure = try #require(
      try read(
        call("anthropic"), status: 429,
        headers: [
          "retry-after": "7", "x-should-retry": "false", "request-id": "req_h",
        ],
        text:
          #"{"type":"error","error":{"type":"rate_limit_error","message":"slow"},"request_id":"req_b"}"#
      ).failure)
    #expect(failure.retryAfterMilliseconds == 7_000)
    #expect(failure.shouldRetry == false)
    #expect(failure.requestID == "req_h")
    let other = try #require(
      try read(
        call("anthropic"), status: 500, headers: ["x-should-retry": "true"],
        text: #"{"type":"error","error":{"type":"api_error","message":"x"},"request_id":"req_b"}"#
      ).failure)
    #expect(other.shouldRetry == true)
    #expect(other.requestID == "req_b")
    let loading = try read(
      call(), status: 503, text: #"{"error":"loading","estimated_time":20.5}"#)
    #expect(loading.failure?.retryAfterMilliseconds == 20_500)
  }

  @Test func messagesAreCutAndCleaned() throws {
    let long = String(repeating: "ä🐦", count: 5_000)
    let reading = try read(
      call(), status: 400,
      text:
        #"{"error":{"message":"\u0000sk-secret-1234 SK-SECRET-1234 \#(long)","type":"\#(long)"}}"#)
    let failure = try #require(reading.failure)
    #expect(failure.message.hasPrefix("\u{FFFD}[secret] [secret] ä🐦"))
    #expect(failure.message.unicodeScalars.count == 1_000)
    #expect(failure.type == nil)
  }

  @Test(arguments: [
    "rate_limit_exceeded", "RESOURCE_EXHAUSTED", "1300", "content-filter", "model.not.found",
    "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "com.amazon.coral.service#Throttling",
  ])
  func aCodeIsAName(_ name: String) throws {
    let failure = try refused(typed: name)
    #expect(failure.type == name && failure.code == name)
  }

  /// What a provider writes instead may be the prompt, and codes are logged.
  @Test(arguments: [
    "Why are its feet never drawn?", "Bad Request", "two\\nlines", "größe", "ann@example.com, ann",
    "",
    String(repeating: "a", count: 101), "bad_key_sk-secret-1234", "bad_key_SK-SECRET-1234",
  ])
  func whatIsNoNameIsNoCode(_ text: String) throws {
    let failure = try refused(typed: text)
    #expect(failure.type == nil && failure.code == nil)
    #expect(failure.message == "no" && failure.httpStatus == 400)
  }

  private func refused(typed name: String) throws -> Failure {
    let reading = try read(
      call(), status: 400,
      text: #"{"error":{"message":"no","type":"\#(name)","code":"\#(name)"}}"#)
    return try #require(reading.failure)
  }

  @Test(arguments: ["gpt-5-2026", "@cf/meta/llama-3:8b", "ft:gpt-5:acme::x1", "Why no feet?"])
  func aModelAndATierAreNames(_ name: String) throws {
    let reading = try read(
      call(),
      text:
        #"{"model":"\#(name)","service_tier":"\#(name)","choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}"#
    )
    let expected = name.contains(" ") ? nil : name
    #expect(reading.reply?.model == expected && reading.reply?.serviceTier == expected)
  }

  @Test(arguments: [
    ("Authorization", "Bearer tok-5678"), ("authorization", "Basic dG9rOjU2Nzg="),
    ("X-Api-Key", "tok-5678"), ("helicone-auth", "Bearer tok-5678"), ("cookie", "tok=5678"),
    ("x-gateway-token", "tok-5678"),
  ])
  func keysInHeadersAreNotQuoted(_ name: String, _ value: String) throws {
    let key = value.split(separator: " ").last ?? ""
    let reading = try read(
      call(secret: nil, headers: [name: value, "x-region": "north"]), status: 401,
      text:
        #"{"error":{"message":"in the north \#(value), that is \#(key), is not known","code":"\#(key)"}}"#
    )
    #expect(
      reading.failure?.message == "in the north [secret], that is [secret], is not known")
    #expect(reading.failure?.code != String(key))
  }

  @Test func anErrorInsideAStreamIsAFailureThatKeepsTheText() throws {
    let openAI = try read(
      call(stream: true), headers: ["x-request-id": "r"],
      text: """
        data: {"model":"m","choices":[{"delta":{"content":"Hal"}}]}

        data: {"error":{"message":"The server had an error","type":"server_error","code":"x"}}

        data: {"choices":[{"delta":{"content":"f"},"finish_reason":"stop"}]}

        data: [DONE]


        """)
    #expect(openAI.failure?.signal == .embeddedError)
    #expect(openAI.failure?.httpStatus == 200)
    #expect(openAI.failure?.type == "server_error")
    #expect(openAI.failure?.code == "x")
    #expect(openAI.failure?.requestID == "r")
    #expect(openAI.failure?.partial?.output == "Hal")
    #expect(openAI.failure?.partial?.model == "m")
    #expect(openAI.wasComplete)

    let named = try read(
      call(stream: true), text: "event: error\ndata: {\"message\":\"gone\",\"code\":500}\n\n")
    #expect(named.failure?.signal == .http)
    #expect(named.failure?.httpStatus == 500)
    #expect(named.failure?.message == "gone")
    let groq = try read(
      call(stream: true),
      text: #"data: {"choices":[],"x_groq":{"id":"r","error":"overloaded"}}"# + "\n\n")
    #expect(groq.failure?.signal == .embeddedError)
    #expect(groq.failure?.message == "overloaded")
    let stopped = try read(
      call(stream: true),
      text: #"data: {"choices":[{"delta":{"content":"x"},"finish_reason":"error"}]}"# + "\n\n")
    #expect(stopped.failure?.signal == .embeddedError)

    let anthropic = try read(
      call("anthropic", stream: true),
      text: """
        event: message_start
        data: {"type":"message_start","message":{"model":"c","usage":{"input_tokens":3,"output_tokens":1}}}

        event: content_block_delta
        data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hal"}}

        event: error
        data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}


        """)
    #expect(anthropic.failure?.signal == .embeddedError)
    #expect(anthropic.failure?.type == "overloaded_error")
    #expect(anthropic.failure?.partial?.output == "Hal")
    // The output count of message_start is a guess: the books had better estimate.
    #expect(anthropic.failure?.partial?.usage == usage(input: 3, output: nil))
  }

  /// OpenRouter, vLLM and Gemini say in a 200 what would be its status, as a number.
  @Test(arguments: [
    (400, true), (402, true), (429, true), (599, true), (200, false), (1_004, false),
  ])
  func anErrorInThePlaceOfAnAnswerHasTheStatusThatItNames(_ code: Int, _ isStatus: Bool) throws {
    for error in [
      #"{"error":{"message":"m","code":\#(code)}}"#,
      #"{"error":{"message":"m","code":"\#(code)"}}"#,
      #"{"object":"error","message":"m","type":"BadRequestError","code":\#(code)}"#,
    ] {
      for stream in [false, true] {
        let failure = try #require(
          try read(call(stream: stream), text: stream ? "data: \(error)\n\n" : error).failure)
        #expect(failure.signal == (isStatus ? .http : .embeddedError))
        #expect(failure.httpStatus == (isStatus ? code : 200))
        #expect(failure.code == "\(code)")
      }
    }
    let gemini = try #require(
      try read(
        call("gemini"),
        text: #"{"error":{"message":"m","code":\#(code),"status":"RESOURCE_EXHAUSTED"}}"#
      ).failure)
    #expect(gemini.signal == (isStatus ? .http : .embeddedError))
  }

  /// OpenRouter does, of a provider behind it.
  @Test(arguments: [false, true], [false, true])
  func anErrorInsideOfTheChoiceIsAFailure(_ stream: Bool, _ hasBegun: Bool) throws {
    let text = hasBegun ? "Hal" : ""
    let choice = { (message: String) in
      #"{"index":0,"\#(message)":{"role":"assistant","content":"\#(text)"},"finish_reason":"error","error":{"code":429,"message":"Slow down"}}"#
    }
    let usage = #""usage":{"prompt_tokens":9,"completion_tokens":3}"#
    let body =
      stream
      ? "data: {\"choices\":[\(choice("delta"))],\(usage)}\n\ndata: [DONE]\n\n"
      : "{\"choices\":[\(choice("message"))],\(usage)}"
    let failure = try #require(try read(call(stream: stream), text: body).failure)
    #expect(failure.signal == (hasBegun ? .embeddedError : .http))
    #expect(failure.httpStatus == (hasBegun ? 200 : 429))
    #expect(failure.code == "429")
    #expect(failure.message == "Slow down")
    #expect(failure.partial?.output == text)
    #expect(failure.partial?.usage == ProvidersTests.usage(input: 9, output: 3))
  }

  @Test func aChoiceWithNothingButAnErrorIsAFailure() throws {
    let reading = try read(
      call(), text: #"{"choices":[{"index":0,"error":{"code":"server_error","message":"gone"}}]}"#)
    #expect(reading.failure?.signal == .embeddedError)
    #expect(reading.failure?.code == "server_error")
    let fine = try read(
      call(),
      text:
        #"{"choices":[{"message":{"role":"assistant","content":"x"},"error":null,"finish_reason":"stop"}]}"#
    )
    #expect(fine.reply?.output == "x")
  }

  @Test func anErrorBehindAPartOfAnAnswerIsInsideOfIt() throws {
    for begun in [#""content":"Hal""#, #""reasoning":"Hm""#] {
      let failure = try #require(
        try read(
          call(stream: true),
          text: """
            data: {"choices":[{"delta":{\(begun)}}]}

            data: {"error":{"message":"gone","code":502}}


            """
        ).failure)
      #expect(failure.signal == .embeddedError)
      #expect(failure.httpStatus == 200)
    }
  }

  @Test(arguments: ["openai", "anthropic"])
  func anErrorInsideAWholeAnswerIsAFailure(_ dialect: String) throws {
    let reading = try read(
      call(dialect), text: #"{"type":"error","error":{"type":"api_error","message":"oops"}}"#)
    #expect(reading.failure?.signal == .embeddedError)
    #expect(reading.failure?.message == "oops")
  }

  @Test(arguments: ["openai", "anthropic"], [false, true])
  func bodiesThatAreNotTheProtocolsAreMalformed(_ dialect: String, _ stream: Bool) throws {
    for body in [
      "<html><title>Sign in</title></html>", "OK", #"{"status":"fine"}"#, "[1,2]", "\"text\"", "17",
      #"{"choices":[]}"#, #"{"choices":[{"message":"x"}]}"#, "{\"a\" \"b\"}", "}", "[1 2]",
    ] {
      let type = body.hasPrefix("<") ? "text/html" : "application/json"
      let reading = try read(
        call(dialect, stream: stream), headers: ["content-type": type], text: body)
      #expect(reading.failure?.signal == .malformed, "\(body)")
      #expect(reading.failure?.httpStatus == 200)
      expectSound(reading)
    }
    let page = try read(
      call(dialect), headers: ["content-type": "text/html"],
      text: "<html><title>Sign in</title></html>")
    #expect(page.failure?.message == "the provider answered with an HTML page: Sign in")
    let other = try read(call(dialect), text: #"{"status":"fine"}"#)
    #expect(
      other.failure?.message
        == #"the provider answered with JSON that is not what the protocol says: {"status":"fine"}"#
    )
  }

  @Test(arguments: ["openai", "anthropic"], [false, true])
  func nothingIsEmpty(_ dialect: String, _ stream: Bool) throws {
    for body in ["", " \n"] {
      let reading = try read(call(dialect, stream: stream), text: body)
      #expect(reading.failure?.signal == .empty)
      #expect(reading.failure?.httpStatus == 200)
    }
    #expect(
      try read(call(dialect, stream: stream), status: 204, text: "").failure?.signal == .empty)
  }

  @Test func aHoleInAStreamIsMalformedThoughItsEndArrived() throws {
    let reading = try read(
      call(stream: true),
      text: """
        data: {"choices":[{"delta":{"content":"a"}}]}

        data: {"choices":[{"delta":{"content":

        data: {"choices":[{"delta":{"content":"c"},"finish_reason":"stop"}]}

        data: [DONE]


        """)
    #expect(reading.failure?.signal == .malformed)
    #expect(reading.failure?.partial?.output == "ac")
  }

  @Test(arguments: Failure.Signal.allCases)
  func whatTheTransportSawIsReported(_ signal: Failure.Signal) throws {
    for dialect in ["openai", "anthropic"] {
      var reader = try #require(Dialects.named(dialect)).reader(for: call(dialect, stream: true))
      let outcome = reader.finish(.broken(signal, "as it was"))
      guard case .failure(let failure) = outcome else {
        Issue.record("success without a response")
        continue
      }
      #expect(failure.signal == signal)
      #expect(failure.message == "as it was")
      #expect(failure.httpStatus == nil)
      #expect(failure.partial == nil)
    }
  }

  @Test func aStatusSaysMoreThanATransferThatBrokeAfterIt() throws {
    let reading = try read(
      call(), status: 429, text: #"{"error":{"message":"slow do"#, end: .broken(.truncated, "cut"))
    #expect(reading.failure?.signal == .http)
    #expect(reading.failure?.httpStatus == 429)
  }

  @Test func unitsBeforeTheHeadAndAfterTheEndAreHarmless() throws {
    var reader = try #require(Dialects.named("openai")).reader(for: call(stream: true))
    #expect(reader.receive(event: nil, data: Array("x".utf8)) == "")
    _ = reader.head(ResponseHead(status: 200, headers: [:]))
    for unit in events(Array(Fixture.openAIStream.utf8)) + events(Array(Fixture.openAITools.utf8)) {
      _ = reader.receive(event: unit.event, data: unit.data)
    }
    guard case .success(let reply) = reader.finish(.broken(.reset, "late")) else {
      Issue.record("the end had been seen")
      return
    }
    #expect(reply.output == "Grüße, martlet 🐦!")
    #expect(reply.finishReason == "stop")
  }
}
