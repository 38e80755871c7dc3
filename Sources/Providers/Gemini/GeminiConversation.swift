/// Messages in OpenAI's chat form, said in Gemini's: system and developer messages leave the
/// conversation for `systemInstruction`, the assistant is the `model`, calls of tools become
/// `functionCall` parts, and their results `functionResponse` parts of the user's next turn.
struct GeminiConversation {
  /// Parts.
  private(set) var system: [[UInt8]] = []
  /// The array of contents.
  private(set) var contents: [UInt8] = []

  private let missingSignature: String?
  /// Names of the functions that were called, by the ids of the calls: an answer must name both.
  private var names: [String: String] = [:]

  /// A single turn of the user.
  init(input: JSON) {
    missingSignature = nil
    var writer = JSONWriter(reserving: input.raw.count + 64)
    writer.beginArray()
    writer.beginObject()
    writer.member("role", "user")
    writer.key("parts")
    writer.beginArray()
    writer.beginObject()
    writer.key("text")
    writer.splice(input)
    writer.endObject()
    writer.endArray()
    writer.endObject()
    writer.endArray()
    contents = writer.bytes
  }

  init(_ given: JSON, missingSignature: String?) throws(Failure) {
    self.missingSignature = missingSignature
    var writer = JSONWriter(reserving: given.raw.count + 256)
    var count = 0
    writer.beginArray()
    let elements = given.elements
    var at = 0
    while at < elements.count {
      let message = elements[at]
      let place = "messages[\(at)]"
      at += 1
      var parts = PartWriter()
      switch message["role"]?.string {
      case "system", "developer":
        try GeminiParts.write(message["content"], place, to: &parts)
        guard parts.areText else {
          throw Failure(
            .unsendable, message: "\(place) holds more than text, which no system prompt can")
        }
        system += parts.parts
        continue
      case "user":
        try GeminiParts.write(message["content"], place, to: &parts)
        Self.write("user", parts, to: &writer)
      case "assistant":
        try readAssistant(message, place, to: &parts)
        Self.write("model", parts, to: &writer)
      case "tool":
        // The results of parallel calls belong into one turn.
        try readResult(message, place, to: &parts)
        while at < elements.count, elements[at]["role"]?.string == "tool" {
          try readResult(elements[at], "messages[\(at)]", to: &parts)
          at += 1
        }
        Self.write("user", parts, to: &writer)
      case let role:
        throw Failure(
          .unsendable,
          message:
            "\(place) has \(role.map { "the role \"\($0)\"" } ?? "no role"), which Gemini's API "
            + "cannot say")
      }
      count += 1
    }
    writer.endArray()
    guard count > 0 else {
      throw Failure(.unsendable, message: "Gemini's API needs a message beside the system prompt")
    }
    contents = writer.bytes
  }

  /// The API refuses a turn without parts, so an empty one says an empty text.
  private static func write(_ role: String, _ parts: PartWriter, to writer: inout JSONWriter) {
    writer.beginObject()
    writer.member("role", role)
    writer.key("parts")
    writer.beginArray()
    for part in parts.parts { writer.splice(part) }
    if parts.parts.isEmpty {
      writer.beginObject()
      writer.member("text", "")
      writer.endObject()
    }
    writer.endArray()
    writer.endObject()
  }

  private mutating func readAssistant(
    _ message: JSON, _ place: String, to parts: inout PartWriter
  ) throws(Failure) {
    if message["function_call"] != nil {
      throw Failure(.unsendable, message: "\(place).function_call is out of date: use tool_calls")
    }
    let signatures = ThoughtSignatures(message["thought_signatures"])
    parts.signature = signatures.text
    try GeminiParts.write(message["content"], place, to: &parts)
    parts.signature = nil
    if let refusal = message["refusal"]?.string { parts.add(text: refusal) }
    for (number, call) in (message["tool_calls"]?.elements ?? []).enumerated() {
      let place = "\(place).tool_calls[\(number)]"
      guard let function = call["function"], let name = function["name"]?.string else {
        throw Failure(.unsendable, message: "\(place) is not the call of a function with a name")
      }
      let id = call["id"]?.string
      if let id { names[id] = name }
      parts.add { writer in
        writer.key("functionCall")
        writer.beginObject()
        if let id, !Self.isOwn(id) { writer.member("id", id) }
        writer.member("name", name)
        writer.key("args")
        ToolArguments.write(function["arguments"], to: &writer)
        writer.endObject()
        // Of parallel calls the API signs the first only.
        let signature = signatures.calls[number] ?? (number == 0 ? missingSignature : nil)
        if let signature { writer.member("thoughtSignature", signature) }
      }
    }
  }

  private func readResult(
    _ message: JSON, _ place: String, to parts: inout PartWriter
  ) throws(Failure) {
    guard let id = message["tool_call_id"]?.string else {
      throw Failure(.unsendable, message: "\(place) has no tool_call_id")
    }
    guard let name = message["name"]?.string ?? names[id] else {
      throw Failure(
        .unsendable, message: "\(place) answers a call that no message before it has made")
    }
    let content = try GeminiParts.text(of: message["content"], place)
    parts.add { writer in
      writer.key("functionResponse")
      writer.beginObject()
      if !Self.isOwn(id) { writer.member("id", id) }
      writer.member("name", name)
      writer.key("response")
      if let object = JSON(Array(content.utf8)), object.kind == .object {
        writer.copy(object)
      } else {
        writer.beginObject()
        writer.member("output", content)
        writer.endObject()
      }
      writer.endObject()
    }
  }

  /// Whether an id is one of those that Martlet gives to calls that have none: they mean nothing to
  /// the API, and repeat from turn to turn.
  private static func isOwn(_ id: String) -> Bool {
    id.hasPrefix("call_") && (6...8) ~= id.utf8.count && id.dropFirst(5).allSatisfy(\.isNumber)
  }
}

/// What Gemini wants back unchanged with the parts of its earlier answers: the member
/// `thought_signatures` of a message, `[{"signature": …}, {"tool_call": 0, "signature": …}]`.
struct ThoughtSignatures: Sendable {
  var text: String?
  var calls: [Int: String] = [:]

  init() {}

  init(_ json: JSON?) {
    for element in json?.elements ?? [] {
      guard let signature = element["signature"]?.string else { continue }
      if let call = element["tool_call"]?.int { calls[call] = signature } else { text = signature }
    }
  }

  /// JSON objects.
  var elements: [[UInt8]] {
    var all: [(Int?, String)] = calls.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    if let text { all.insert((nil, text), at: 0) }
    return all.map { call, signature in
      var writer = JSONWriter(reserving: signature.utf8.count + 32)
      writer.beginObject()
      if let call {
        writer.key("tool_call")
        writer.int(call)
      }
      writer.member("signature", signature)
      writer.endObject()
      return writer.bytes
    }
  }
}
