import NIOCore

/// What the simulator needs to know of a moderation request.
struct ModerationRequest {
  var model: String?
  var hasInput = false
  /// Results that are wanted: one a text, one for parts together.
  var count = 1

  init(_ body: UnsafeRawBufferPointer) throws(JSONScanner.Malformed) {
    var scanner = JSONScanner(body)
    try scanner.object { (scanner, key) throws(JSONScanner.Malformed) in
      switch scanner.text(key) {
      case "model": model = try scanner.stringIfAny().map { scanner.text($0) }
      case "input":
        hasInput = true
        guard scanner.peek() == UInt8(ascii: "[") else { return try scanner.skip() }
        var texts = 0
        try scanner.array { (scanner) throws(JSONScanner.Malformed) in
          if scanner.peek() == UInt8(ascii: "\"") { texts += 1 }
          try scanner.skip()
        }
        count = max(1, texts)
      default: try scanner.skip()
      }
    }
    try scanner.finish()
  }
}

extension Responder {
  /// OpenAI's categories.
  static let moderationCategories = [
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual",
    "sexual/minors", "violence", "violence/graphic",
  ]

  /// Moderations: the categories of the directive `flag` apply, by default none.
  func moderations(
    _ request: IncomingRequest, _ context: Context
  ) throws(ProviderFailure) -> Exchange {
    var context = context
    let asked = try parse(request, context) { bytes throws(JSONScanner.Malformed) in
      try ModerationRequest(bytes)
    }
    let model = asked.model ?? "omni-moderation-latest"
    guard asked.hasInput else { throw missing("input", context.wire) }
    let (directives, name) = try directives(&context, request, model: model)
    if let exchange = faultyExchange(context, directives, isStream: false) { return exchange }
    var body = ByteBuffer()
    body.writeStaticString("{\"id\":\"modr-")
    body.writeHex(context.requestID)
    body.writeStaticString("\",\"model\":\"")
    body.writeBytes(JSONText.escaped(directives.reportedModel ?? String(name)))
    body.writeStaticString("\",\"results\":[")
    for number in 0..<asked.count {
      if number > 0 { body.writeStaticString(",") }
      write(verdict: directives.flags, context.host, into: &body)
    }
    body.writeStaticString("]}")
    if directives.malformed { body = Self.halved(body) }
    return bytes(context, body, directives: directives)
  }

  private func write(verdict flags: [String], _ host: Host, into body: inout ByteBuffer) {
    body.writeStaticString("{")
    // Mistral leaves it to the caller.
    if host != .mistral {
      body.writeStaticString(flags.isEmpty ? "\"flagged\":false," : "\"flagged\":true,")
    }
    func members(_ name: StaticString, _ value: (String) -> StaticString) {
      body.writeStaticString("\"")
      body.writeStaticString(name)
      body.writeStaticString("\":{")
      for (number, category) in Self.moderationCategories.enumerated() {
        if number > 0 { body.writeStaticString(",") }
        body.writeStaticString("\"")
        body.writeString(category)
        body.writeStaticString("\":")
        body.writeStaticString(value(category))
      }
      body.writeStaticString("}")
    }
    members("categories") { flags.contains($0) ? "true" : "false" }
    body.writeStaticString(",")
    members("category_scores") { flags.contains($0) ? "0.98" : "0.00012" }
    if host == .openAI {
      body.writeStaticString(",")
      members("category_applied_input_types") { _ in "[\"text\"]" }
    }
    body.writeStaticString("}")
  }
}
