import Foundation
import Providers
import Testing

/// A call, with everything that most tests do not care about filled in.
func call(
  _ dialect: String = "openai", kind: CallKind = .chat, model: String = "m-1", stream: Bool = false,
  baseURL: String? = nil, secret: String? = "sk-secret-1234", headers: [String: String] = [:],
  request: String = #"{"messages":[{"role":"user","content":"Hi"}],"params":{}}"#,
  options: String = "{}"
) -> Call {
  let bases = [
    "openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com/v1beta",
    "ollama": "http://localhost:11434", "tgi": "http://localhost:3000",
    "openai_responses": "https://api.openai.com/v1", "replicate": "https://api.replicate.com/v1",
    "custom": "https://quill.example",
    "tei": "http://localhost:8080", "huggingface": "https://router.huggingface.co",
  ]
  return Call(
    kind: kind, dialect: dialect, baseURL: baseURL ?? bases[dialect] ?? "", secret: secret,
    headers: headers, model: model, stream: stream, request: Array(request.utf8),
    options: Array(options.utf8))
}

func dialect(of call: Call) throws -> any Dialect.Type {
  try #require(Dialects.named(call.dialect))
}

/// The body of the request, decoded by Foundation.
func requestBody(_ call: Call) throws -> NSDictionary {
  let request = try dialect(of: call).request(for: call)
  return try decode(request.body)
}

func refusal(_ call: Call) throws -> Failure? {
  do {
    _ = try dialect(of: call).request(for: call)
    return nil
  } catch let failure as Failure {
    return failure
  }
}

func decode(_ bytes: [UInt8]) throws -> NSDictionary {
  try #require(JSONSerialization.jsonObject(with: Data(bytes)) as? NSDictionary)
}

func decode(_ text: String) throws -> NSDictionary { try decode(Array(text.utf8)) }

/// What a response came to: its outcome, and the text that was shown on the way.
struct Reading {
  var outcome: Outcome
  var shown: String
  var wasComplete: Bool

  var reply: Reply? { try? outcome.get() }
  var failure: Failure? {
    if case .failure(let failure) = outcome { failure } else { nil }
  }
  func message() throws -> NSDictionary {
    let reply = try #require(reply ?? failure?.partial)
    return try decode(try #require(reply.message))
  }
}

/// One unit as the transport would hand it over.
struct Unit {
  var event: String?
  var data: [UInt8]
}

/// A simple framer of server-sent events. `unfinished`: also gives the event that the end cut off.
func events(_ body: [UInt8], unfinished: Bool = false) -> [Unit] {
  var units: [Unit] = []
  var event: String?
  var data: [UInt8]?
  func flush() {
    if let data { units.append(Unit(event: event, data: data)) }
    (event, data) = (nil, nil)
  }
  let lines = body.split(separator: 0x0A, omittingEmptySubsequences: false)
  for (number, line) in lines.enumerated() {
    // The last piece has no line feed after it.
    if number == lines.count - 1 && !unfinished { break }
    let text = line.last == 0x0D ? line.dropLast() : line
    if text.isEmpty {
      if number < lines.count - 1 { flush() }
    } else if text.starts(with: "data:".utf8) {
      var value = text.dropFirst(5)
      if value.first == 0x20 { value = value.dropFirst() }
      data = data.map { $0 + [0x0A] + value } ?? Array(value)
    } else if text.starts(with: "event: ".utf8) {
      event = String(decoding: text.dropFirst(7), as: UTF8.self)
    }
  }
  if unfinished { flush() }
  return units
}

/// A simple framer of lines. What stands after the last line feed is a line, too: the transport hands
/// it over where the body ends.
func lines(_ body: [UInt8]) -> [Unit] {
  body.split(separator: 0x0A).map { Unit(event: nil, data: Array($0)) }
}

/// The content type of a dialect's streams.
func streamType(_ dialect: String) -> String {
  dialect == "ollama" ? "application/x-ndjson" : "text/event-stream"
}

/// Reads a response. `end` stands for what the transport says at the end of the body.
func read(
  _ call: Call, status: Int = 200, headers: [String: String] = [:], units: [Unit]? = nil,
  body: [UInt8] = [], end: TransferEnd = .complete, unfinished: Bool = false
) throws -> Reading {
  var reader = try dialect(of: call).reader(for: call)
  var headers = headers
  let type = call.stream && status < 300 ? streamType(call.dialect) : "application/json"
  headers["content-type"] = headers["content-type"] ?? type
  let framing = reader.head(ResponseHead(status: status, headers: headers))
  var units = units
  if units == nil {
    switch framing {
    case .events: units = events(body, unfinished: unfinished)
    case .whole: units = [Unit(event: nil, data: body)]
    case .lines: units = lines(body)
    }
  }
  var shown = ""
  for unit in units ?? [] {
    shown += reader.receive(event: unit.event, data: unit.data)
  }
  let wasComplete = reader.isComplete
  return Reading(outcome: reader.finish(end), shown: shown, wasComplete: wasComplete)
}

func read(
  _ call: Call, status: Int = 200, headers: [String: String] = [:], text: String,
  end: TransferEnd = .complete
) throws -> Reading {
  try read(call, status: status, headers: headers, body: Array(text.utf8), end: end)
}

func usage(
  input: Int, cacheRead: Int = 0, cacheWrite: Int = 0, cacheWrite1h: Int = 0, output: Int?,
  reasoning: Int = 0
) -> Usage {
  var usage = Usage()
  usage.input = input
  usage.cacheRead = cacheRead
  usage.cacheWrite = cacheWrite
  usage.cacheWrite1h = cacheWrite1h
  usage.output = output
  usage.reasoning = reasoning
  return usage
}

/// Checks what must hold for whatever a provider sends.
func expectSound(_ reading: Reading, _ comment: @autoclosure () -> String = "") {
  let reply = reading.reply ?? reading.failure?.partial
  if let reply {
    #expect(reply.output == reading.shown, "output is what was shown. \(comment())")
    if let message = reply.message {
      #expect(
        isStorable(message), "message: \(String(decoding: message, as: UTF8.self)) \(comment())")
    }
    #expect(!reply.output.unicodeScalars.contains("\0"))
    if let usage = reply.usage {
      #expect(
        usage.cacheRead + usage.cacheWrite + usage.cacheWrite1h <= usage.input, "\(comment())")
      #expect(usage.reasoning <= usage.output ?? 0, "\(comment())")
      #expect(
        [usage.cacheRead, usage.cacheWrite, usage.cacheWrite1h, usage.reasoning].allSatisfy {
          $0 >= 0
        })
    }
  }
  if let failure = reading.failure {
    #expect(failure.message.unicodeScalars.count <= 1_000)
    #expect(!failure.message.isEmpty)
    #expect(!failure.message.contains("sk-secret-1234"))
  }
}

/// Valid UTF-8, valid JSON by Foundation, and no escape of NUL or of a surrogate: what `jsonb` takes.
func isStorable(_ json: [UInt8]) -> Bool {
  guard String(validating: json, as: UTF8.self) != nil,
    (try? JSONSerialization.jsonObject(with: Data(json))) != nil
  else { return false }
  var at = 0
  while at < json.count {
    guard json[at] == UInt8(ascii: "\\"), at + 1 < json.count else {
      if json[at] == 0 { return false }
      at += 1
      continue
    }
    if json[at + 1] == UInt8(ascii: "u") {
      let digits = String(decoding: json[(at + 2)..<(at + 6)], as: UTF8.self).lowercased()
      if digits == "0000" || digits.hasPrefix("d8") || digits.hasPrefix("d9") { return false }
      if ["da", "db", "dc", "dd", "de", "df"].contains(where: digits.hasPrefix) { return false }
    }
    at += 2
  }
  return true
}

/// SplitMix64: reproducible from its seed, which the tests print.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }
}
