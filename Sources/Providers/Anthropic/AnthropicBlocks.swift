/// Puts the blocks of a message together from their starts and deltas.
struct AnthropicBlocks: Sendable {
  private enum Kind: Sendable { case text, thinking, redacted, tool, other }

  private struct Block: Sendable {
    var kind: Kind
    /// Text, thinking, redacted data, or the JSON text of a tool's input as far as streamed.
    var body = ""
    var joiner = TextJoiner()
    /// Tools: id and name, and the input where it came whole with the start.
    var id = ""
    var name = ""
    var input = ""
    var signature = ""
  }

  private var blocks: [Block] = []
  private var positions: [Int: Int] = [:]

  /// Whether a block has anything in it; that of a tool has its name from the start.
  var haveBegun: Bool {
    blocks.contains { !$0.body.isEmpty || $0.kind == .tool || $0.kind == .other }
  }

  /// Begins a block; gives the text that it starts with.
  mutating func begin(_ json: JSON, at index: Int?) -> String {
    var block = Block(kind: .other)
    var first: JSON?
    switch json["type"]?.string {
    case "text":
      block.kind = .text
      first = json["text"]
    case "thinking":
      block.kind = .thinking
      first = json["thinking"]
      block.signature = json["signature"]?.string ?? ""
    case "redacted_thinking":
      block.kind = .redacted
      first = json["data"]
    case "tool_use":
      block.kind = .tool
      block.id = json["id"]?.string ?? ""
      block.name = json["name"]?.string ?? ""
      if let input = json["input"] {
        var writer = JSONWriter()
        writer.copy(input)
        block.input = String(decoding: writer.bytes, as: UTF8.self)
      }
    default: break
    }
    if let first { block.body = block.joiner.text(of: first) }
    blocks.append(block)
    positions[index ?? blocks.count - 1] = blocks.count - 1
    return block.kind == .text ? block.body : ""
  }

  /// Adds a delta; gives the text that became visible. A delta without a block begins one.
  mutating func add(_ delta: JSON, at index: Int?) -> String {
    switch delta["type"]?.string {
    case "text_delta":
      return append(delta["text"], to: .text, at: index)
    case "input_json_delta":
      _ = append(delta["partial_json"], to: .tool, at: index)
    case "thinking_delta":
      _ = append(delta["thinking"], to: .thinking, at: index)
    case "signature_delta":
      if let position = position(of: .thinking, at: index) {
        blocks[position].signature += delta["signature"]?.string ?? ""
      }
    default: break
    }
    return ""
  }

  /// Ends a block; gives the text that was still owed.
  mutating func end(at index: Int?) -> String {
    guard let position = index.flatMap({ positions[$0] }) ?? blocks.indices.last else { return "" }
    return end(position)
  }

  mutating func endAll() -> String {
    var text = ""
    for position in blocks.indices { text += end(position) }
    return text
  }

  /// The message without what stands outside of its blocks.
  func message() -> AssistantMessage {
    var message = AssistantMessage()
    for block in blocks {
      switch block.kind {
      case .text:
        message.content += block.body
      case .thinking:
        message.reasoning += block.body
        message.thinkingBlocks.append(thinking(block, behind: message))
      case .redacted:
        message.thinkingBlocks.append(thinking(block, behind: message))
      case .tool:
        let input = block.body.isEmpty ? block.input : block.body
        message.toolCalls.append(ToolCall(id: block.id, name: block.name, arguments: input))
      case .other: break
      }
    }
    return message
  }

  private mutating func end(_ position: Int) -> String {
    let owed = blocks[position].joiner.end()
    blocks[position].body += owed
    return blocks[position].kind == .text ? owed : ""
  }

  private mutating func append(_ json: JSON?, to kind: Kind, at index: Int?) -> String {
    guard let json, let position = position(of: kind, at: index) else { return "" }
    let text = blocks[position].joiner.text(of: json)
    blocks[position].body += text
    return text
  }

  /// The block of a delta; nil for deltas of blocks that are passed over (such as the input of a tool
  /// that runs at the provider).
  private mutating func position(of kind: Kind, at index: Int?) -> Int? {
    if let known = index.flatMap({ positions[$0] }) ?? (index == nil ? blocks.indices.last : nil) {
      return blocks[known].kind == kind ? known : nil
    }
    guard kind != .tool else { return nil }
    blocks.append(Block(kind: kind))
    positions[index ?? blocks.count - 1] = blocks.count - 1
    return blocks.count - 1
  }

  /// A block that came behind text or calls says behind how many of their characters and how many of them.
  private func thinking(_ block: Block, behind message: AssistantMessage) -> [UInt8] {
    var writer = JSONWriter(reserving: block.body.utf8.count + 64)
    writer.beginObject()
    if block.kind == .redacted {
      writer.member("type", "redacted_thinking")
      writer.member("data", block.body)
    } else {
      writer.member("type", "thinking")
      writer.member("thinking", block.body)
      writer.member("signature", block.signature)
    }
    if !message.content.isEmpty || !message.toolCalls.isEmpty {
      writer.key("after")
      writer.beginObject()
      writer.key("characters")
      writer.int(message.content.unicodeScalars.count)
      writer.key("tool_calls")
      writer.int(message.toolCalls.count)
      writer.endObject()
    }
    writer.endObject()
    return writer.bytes
  }
}
