import Providers

/// A whole response as it was recorded, for tests that cut, split and damage it.
struct Recording: Sendable {
  var dialect: String
  var kind = CallKind.chat
  /// The request that is answered; nil: a chat, or a text of another kind.
  var request: String?
  var stream: Bool
  var body: String
  /// The event that makes it whole.
  var terminal: String
  /// The event after which a proper end of the response is enough, where the protocol allows it.
  var mayEnd: String?
  /// Whether every unit says which model answers.
  var namesModel = true
  /// Of the provider's row.
  var options = "{}"

  var call: Call {
    let text = kind == .chat ? nil : KindRequest.text
    guard let request = request ?? text else {
      return ProvidersTests.call(dialect, kind: kind, stream: stream, options: options)
    }
    return ProvidersTests.call(
      dialect, kind: kind, stream: stream, request: request, options: options)
  }

  /// The body as the transport would cut it.
  var units: [Unit] {
    let bytes = Array(body.utf8)
    guard stream else { return [Unit(event: nil, data: bytes)] }
    let isOfLines = streamType(dialect) != "text/event-stream" || options.contains("ndjson")
    return isOfLines ? lines(bytes) : events(bytes)
  }

  static let all =
    plain + hosts + [
      Recording(
        dialect: "openai_responses", stream: true, body: Fixture.responsesStream,
        terminal: #""total_tokens":168}}}"#),
      Recording(
        dialect: "openai_responses", stream: false, body: Fixture.responsesDone + "\n",
        terminal: "}\n"),
      Recording(
        dialect: "replicate", stream: false, body: Fixture.predictionDone + "\n", terminal: "}\n"),
    ]

  private static let plain = [
    Recording(
      dialect: "openai", stream: true, body: Fixture.openAIStream, terminal: "data: [DONE]",
      mayEnd: #""finish_reason":"stop"}],"usage":null}"#),
    Recording(
      dialect: "openai", stream: true, body: Fixture.openAITools, terminal: "data: [DONE]",
      mayEnd: #""finish_reason":"tool_calls"}]}"#),
    Recording(
      dialect: "anthropic", stream: true, body: Fixture.anthropicStream,
      terminal: #"data: {"type":"message_stop"}"#),
    Recording(dialect: "openai", stream: false, body: Fixture.openAIWhole, terminal: "}\n"),
    Recording(dialect: "anthropic", stream: false, body: Fixture.anthropicWhole, terminal: "}\n"),
    Recording(
      dialect: "gemini", stream: true, body: Fixture.geminiStream,
      terminal: Fixture.geminiLastChunk, mayEnd: Fixture.geminiLastChunk),
    Recording(dialect: "gemini", stream: false, body: Fixture.geminiWhole, terminal: "}\n"),
    Recording(
      dialect: "gemini", kind: .embedding, request: KindRequest.texts, stream: false,
      body: Fixture.geminiVectors, terminal: "}\n"),
    Recording(
      dialect: "custom", stream: true, body: CustomFixture.lines, terminal: #""end":true,"#,
      namesModel: false, options: CustomFixture.quill),
    Recording(
      dialect: "custom", stream: true, body: CustomFixture.events, terminal: "data: [OVER]",
      options: CustomFixture.egret),
    Recording(
      dialect: "custom", stream: false, body: CustomFixture.whole, terminal: "}\n",
      options: CustomFixture.quill),
    Recording(
      dialect: "custom", kind: .embedding, request: KindRequest.texts, stream: false,
      body: #"{"data":[{"v":[1,2]},{"v":[3,4e-2]}],"tokens":5}"#, terminal: "}\n",
      options: CustomFixture.heron),
    Recording(
      dialect: "ollama", stream: true, body: Fixture.ollamaStream,
      terminal: #""eval_duration":4709213000}"#),
    Recording(
      dialect: "ollama", stream: true, body: Fixture.ollamaTools, terminal: #""eval_count":15}"#),
    Recording(
      dialect: "ollama", kind: .completion, stream: true, body: Fixture.ollamaGenerate,
      terminal: #""eval_count":2}"#),
    Recording(dialect: "ollama", stream: false, body: Fixture.ollamaWhole, terminal: "}\n"),
    Recording(
      dialect: "ollama", kind: .embedding, request: KindRequest.texts, stream: false,
      body: Fixture.ollamaVectors, terminal: "}\n"),
    Recording(
      dialect: "tgi", kind: .completion, stream: true, body: Fixture.tgiStream,
      terminal: #""seed":42}}"#, namesModel: false),
    Recording(
      dialect: "tgi", kind: .completion, stream: false, body: Fixture.tgiWhole, terminal: "}\n"),
    Recording(
      dialect: "tei", kind: .embedding, request: KindRequest.texts, stream: false,
      body: Fixture.teiVectors, terminal: "]\n"),
    Recording(
      dialect: "tei", kind: .rerank, request: KindRequest.rerank, stream: false,
      body: Fixture.teiRanks, terminal: "]\n"),
    Recording(
      dialect: "huggingface", kind: .embedding, request: KindRequest.texts, stream: false,
      body: Fixture.hfTokens, terminal: "]\n"),
    Recording(
      dialect: "huggingface", kind: .classification, stream: false, body: Fixture.hfLabels,
      terminal: "]\n"),
    Recording(
      dialect: "huggingface", kind: .completion, stream: true, body: Fixture.tgiStream,
      terminal: #""seed":42}}"#, namesModel: false),
  ]
}
