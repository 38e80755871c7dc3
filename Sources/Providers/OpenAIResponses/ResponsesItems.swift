/// The items of a response beside its text: calls of tools, reasoning, images.
struct ResponsesItems: Sendable {
  private(set) var calls: [ToolCall] = []
  private(set) var reasoning = ""
  /// Reasoning that the provider can read again: JSON objects.
  private(set) var reasoningItems: [[UInt8]] = []
  private(set) var files: [ProducedFile] = []

  /// Where each call lies, by its place in the output.
  private var positions: [Int: Int] = [:]
  private var texts: [Int: TextJoiner] = [:]
  private var reasoningText = TextJoiner()

  var hasBegun: Bool { !calls.isEmpty || !reasoning.isEmpty }

  /// Takes an event that is not about text.
  mutating func read(_ type: String, _ json: JSON) {
    let index = json["output_index"]?.int ?? 0
    switch type {
    case "response.output_item.added", "response.output_item.done":
      if let item = json["item"] { read(item, at: index, isDone: type.hasSuffix("done")) }
    case "response.function_call_arguments.delta", "response.custom_tool_call_input.delta":
      guard let at = positions[index], let delta = json["delta"] else { return }
      calls[at].arguments += texts[index, default: TextJoiner()].text(of: delta)
    case "response.function_call_arguments.done":
      guard let at = positions[index], let all = json["arguments"]?.string else { return }
      calls[at].arguments = all
    case "response.custom_tool_call_input.done":
      guard let at = positions[index], let all = json["input"]?.string else { return }
      calls[at].arguments = all
    case "response.reasoning_text.delta", "response.reasoning_summary_text.delta":
      if let delta = json["delta"] { reasoning += reasoningText.text(of: delta) }
    default: break
    }
  }

  /// Takes the items of a whole response in the place of what was streamed of them.
  mutating func readWhole(_ output: JSON?) {
    guard let items = output?.elements, !items.isEmpty else { return }
    let streamedReasoning = reasoning + reasoningText.end()
    self = ResponsesItems()
    for (index, item) in items.enumerated() { read(item, at: index, isDone: true) }
    if reasoning.isEmpty { reasoning = streamedReasoning }
  }

  private mutating func read(_ item: JSON, at index: Int, isDone: Bool) {
    switch item["type"]?.string {
    case "function_call": readCall(item, "arguments", at: index)
    case "custom_tool_call":
      readCall(item, "input", at: index)
      if let at = positions[index] { calls[at].type = "custom" }
    case "reasoning" where isDone:
      if item["encrypted_content"]?.string?.isEmpty == false {
        var writer = JSONWriter()
        writer.copy(item)
        reasoningItems.append(writer.bytes)
      }
      if reasoning.isEmpty {
        let parts = (item["summary"]?.elements ?? []) + (item["content"]?.elements ?? [])
        reasoning = parts.compactMap { $0["text"]?.string }.joined(separator: "\n\n")
      }
    case "image_generation_call" where isDone:
      guard let image = item["result"]?.string.flatMap(Base64.bytes), !image.isEmpty else { return }
      let format = item["output_format"]?.string ?? "png"
      let type = format.utf8.allSatisfy { (0x61...0x7A).contains($0) } ? format : "png"
      files.append(
        ProducedFile(
          mediaType: "image/\(type == "svg" ? "svg+xml" : type)", content: .bytes(image)))
    default: break
    }
  }

  private mutating func readCall(_ item: JSON, _ arguments: StaticString, at index: Int) {
    let at: Int
    if let known = positions[index] {
      at = known
    } else {
      calls.append(ToolCall())
      at = calls.count - 1
      positions[index] = at
    }
    if let id = item["call_id"]?.string ?? item["id"]?.string { calls[at].id = id }
    if let name = item["name"]?.string { calls[at].name = name }
    if let text = item[arguments]?.string, !text.isEmpty { calls[at].arguments = text }
  }

  /// The text of a response's messages: all of it, what was said, and what was said to refuse.
  static func text(of items: [JSON]) -> (all: String, content: String, refusal: String) {
    var text = (all: "", content: "", refusal: "")
    for item in items where item["type"]?.string == "message" {
      for part in item["content"]?.elements ?? [] {
        switch part["type"]?.string {
        case "output_text", "text":
          let said = part["text"]?.string ?? ""
          text.all += said
          text.content += said
        case "refusal":
          let said = part["refusal"]?.string ?? ""
          text.all += said
          text.refusal += said
        default: break
        }
      }
    }
    return text
  }
}

extension Usage {
  /// `usage` of a response: cached and written tokens are inside of the input, reasoning is inside of
  /// the output. nil where a total is missing, since a wrong bill is worse than an estimate.
  init?(openAIResponses json: JSON) {
    self.init()
    guard let input = json["input_tokens"]?.int, let output = json["output_tokens"]?.int,
      Self.isCount(input), Self.isCount(output)
    else { return nil }
    self.input = input
    self.output = output
    let details = json["input_tokens_details"]
    cacheRead = min(max(details?["cached_tokens"]?.int ?? 0, 0), input)
    let written = min(max(details?["cache_write_tokens"]?.int ?? 0, 0), input - cacheRead)
    let long = details?["cache_write_tokens_details"]?["ttl_12h_tokens"]?.int ?? 0
    let longer = min(max(long, 0), written)
    cacheWrite = written - longer
    if longer > 0 { units["cache_write_12h"] = String(longer) }
    let thought = json["output_tokens_details"]?["reasoning_tokens"]?.int ?? 0
    reasoning = min(max(thought, 0), output)
  }
}
