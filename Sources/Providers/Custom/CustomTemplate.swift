/// Fills the template of a request. A text that is nothing but `${name}` becomes that value, of whatever
/// kind; where there is none, the member or element that holds it is left out. Within a longer text a value
/// stands as text. The member `...` of an object stands for all members of its value.
///
/// Names: `model`, `input` (as given; of a chat the last text of the user), `inputs` (always an array),
/// `system` (the texts of system and developer messages), `messages` (of a chat, in OpenAI's form, with
/// system messages), `conversation` (those without), `prompt` (of a chat, all of it as one text), `params`
/// (all parameters), `params.NAME`, `max_tokens` (by either of OpenAI's names), `stream`.
struct CustomTemplate {
  private let parts: RequestParts
  private let messages: JSON?

  init(_ parts: RequestParts) throws(Failure) {
    self.parts = parts
    guard parts.call.kind == .chat else {
      messages = nil
      return
    }
    // What Martlet adds to answers is not in OpenAI's form.
    var writer = JSONWriter()
    try OpenAIMessages.write(parts.messages(), for: OpenAIVariant(), to: &writer)
    messages = JSON(writer.bytes)
  }

  /// Names of the parameters that templates write.
  static func named(in templates: [JSON], _ parts: RequestParts) -> Set<String> {
    var names: Set<String> = []
    func look(_ json: JSON) {
      switch json.kind {
      case .string:
        for name in Self.names(in: json.string ?? "") {
          if name == "params" { names.formUnion(parts.params.map(\.key)) }
          if name == "max_tokens" { names.formUnion(["max_tokens", "max_completion_tokens"]) }
          if name.hasPrefix("params.") { names.insert(String(name.dropFirst(7))) }
        }
      case .array: for element in json.elements { look(element) }
      case .object: for (_, value) in json.members { look(value) }
      default: break
      }
    }
    for template in templates { look(template) }
    return names
  }

  /// Writes a template; the members of `over` take the place of its own.
  func write(_ template: JSON, over: JSON?, to writer: inout JSONWriter) throws(Failure) {
    guard template.kind == .object else {
      try write(template, to: &writer)
      return
    }
    let replaced = Set((over?.members ?? []).map(\.key))
    writer.beginObject()
    try writeMembers(template.members.filter { !replaced.contains($0.key) }, to: &writer)
    try writeMembers(over?.members ?? [], to: &writer)
    writer.endObject()
  }

  /// A path with its values, each as one part of it.
  func path(_ template: String) throws(Failure) -> String {
    try text(of: template) { value in
      value.utf8.map { byte -> String in
        switch byte {
        case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: String(UnicodeScalar(byte))
        case _ where "-._~".utf8.contains(byte): String(UnicodeScalar(byte))
        default: (byte < 16 ? "%0" : "%") + String(byte, radix: 16, uppercase: true)
        }
      }.joined()
    }
  }

  private func write(_ json: JSON, to writer: inout JSONWriter) throws(Failure) {
    switch json.kind {
    case .object:
      writer.beginObject()
      try writeMembers(json.members, to: &writer)
      writer.endObject()
    case .array:
      writer.beginArray()
      for element in json.elements where try !isMissing(element) {
        try write(element, to: &writer)
      }
      writer.endArray()
    case .string:
      let text = json.string ?? ""
      if let name = Self.only(text) {
        if let value = try value(name) { writer.splice(value) } else { writer.null() }
      } else {
        writer.string(try self.text(of: text) { $0 })
      }
    default: writer.splice(json)
    }
  }

  private func writeMembers(
    _ members: [(key: String, value: JSON)], to writer: inout JSONWriter
  ) throws(Failure) {
    let own = Set(members.map(\.key))
    for (name, value) in members where try !isMissing(value) {
      guard name == "...", let variable = value.string.flatMap(Self.only) else {
        writer.key(name)
        try write(value, to: &writer)
        continue
      }
      let spread = try self.value(variable).flatMap { JSON($0) }
      for (name, value) in spread?.members ?? [] where !own.contains(name) {
        writer.key(name)
        writer.splice(value)
      }
    }
  }

  private func isMissing(_ json: JSON) throws(Failure) -> Bool {
    guard let name = json.string.flatMap(Self.only) else { return false }
    return try value(name) == nil
  }

  /// The name of a text that is nothing but `${name}`.
  private static func only(_ text: String) -> String? {
    guard text.hasPrefix("${"), text.hasSuffix("}"), names(in: text).count == 1,
      let name = names(in: text).first, text.utf8.count == name.utf8.count + 3
    else { return nil }
    return name
  }

  private static func names(in text: String) -> [String] {
    pieces(of: text).compactMap { $0.isName ? String($0.text) : nil }
  }

  /// A text in pieces: what stands between `${` and `}`, and what around.
  private static func pieces(of text: String) -> [(text: Substring, isName: Bool)] {
    var pieces: [(text: Substring, isName: Bool)] = []
    var rest = text[...]
    while let start = rest.utf8.indices.first(where: { rest[$0...].utf8.starts(with: "${".utf8) }),
      let end = rest[start...].utf8.firstIndex(of: UInt8(ascii: "}"))
    {
      pieces.append((rest[..<start], false))
      pieces.append((rest[rest.utf8.index(start, offsetBy: 2)..<end], true))
      rest = rest[rest.utf8.index(after: end)...]
    }
    return pieces + [(rest, false)]
  }

  private func text(
    of template: String, _ written: (String) -> String
  ) throws(Failure) -> String {
    var out = ""
    for piece in Self.pieces(of: template) {
      guard piece.isName else {
        out += piece.text
        continue
      }
      guard let bytes = try value(String(piece.text)) else { continue }
      let value = JSON(bytes)
      out += written(value?.string ?? String(decoding: bytes, as: UTF8.self))
    }
    return out
  }

  /// JSON; nil where there is no such value.
  private func value(_ name: String) throws(Failure) -> [UInt8]? {
    switch name {
    case "model": return Self.json { $0.string(parts.call.model) }
    case "stream": return Self.json { $0.bool(parts.call.stream) }
    case "params":
      return Self.json { writer in
        writer.beginObject()
        for (name, value) in parts.params {
          writer.key(name)
          writer.splice(value)
        }
        writer.endObject()
      }
    case "max_tokens":
      let limit = parts.param("max_completion_tokens") ?? parts.param("max_tokens")
      return limit.map { value in Self.json { $0.splice(value) } }
    case "messages": return messages.map { all in Self.json { $0.splice(all) } }
    default: break
    }
    if name.hasPrefix("params.") {
      let value = parts.param(String(name.dropFirst(7)))
      return value.map { value in Self.json { $0.splice(value) } }
    }
    return try spoken(name)
  }

  private func spoken(_ name: String) throws(Failure) -> [UInt8]? {
    guard let messages else {
      guard name == "input" || name == "inputs" || name == "prompt",
        let input = parts.request["input"]
      else { return nil }
      return Self.json { writer in
        let wraps = name == "inputs" && input.kind != .array
        if wraps { writer.beginArray() }
        writer.splice(input)
        if wraps { writer.endArray() }
      }
    }
    let all = messages.elements
    let rest = all.filter { !Self.isOfSystem($0) }
    switch name {
    case "input", "inputs":
      guard let last = rest.last(where: { $0["role"]?.string == "user" }) else { return nil }
      let text = try Self.text(of: last)
      return Self.json { writer in
        if name == "inputs" { writer.beginArray() }
        writer.string(text)
        if name == "inputs" { writer.endArray() }
      }
    case "system":
      var texts: [String] = []
      for message in all where Self.isOfSystem(message) { texts.append(try Self.text(of: message)) }
      return texts.isEmpty ? nil : Self.json { $0.string(texts.joined(separator: "\n\n")) }
    case "conversation":
      return Self.json { writer in
        writer.beginArray()
        for message in rest { writer.splice(message) }
        writer.endArray()
      }
    case "prompt":
      if all.count == 1 { return Self.json { $0.string((try? Self.text(of: all[0])) ?? "") } }
      var lines: [String] = []
      for message in all {
        lines.append("\(message["role"]?.string ?? "user"): \(try Self.text(of: message))")
      }
      return Self.json { $0.string((lines + ["assistant:"]).joined(separator: "\n\n")) }
    default: return nil
    }
  }

  private static func isOfSystem(_ message: JSON) -> Bool {
    ["system", "developer"].contains(message["role"]?.string)
  }

  private static func text(of message: JSON) throws(Failure) -> String {
    guard let content = message["content"] else { return "" }
    var text = ""
    for part in content.kind == .array ? content.elements : [content] {
      guard let more = part.string ?? part["text"]?.string else {
        throw Failure(
          .unsendable, message: "a message holds more than text, which this provider cannot take")
      }
      text += more
    }
    return text
  }

  private static func json(_ write: (inout JSONWriter) -> Void) -> [UInt8] {
    var writer = JSONWriter()
    write(&writer)
    return writer.bytes
  }
}
