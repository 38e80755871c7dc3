/// Puts tool calls together from their fragments.
///
/// OpenAI's fragments name their call by `index` and carry `id` and name only in the first one.
/// Compatible servers also leave the index out, use one index for several calls (Gemini's also
/// without ids, each call whole), or repeat id and name in every fragment.
struct OpenAIToolCalls: Sendable {
  private(set) var calls: [ToolCall] = []
  private var positions: [Int: Int] = [:]
  private var texts: [TextJoiner] = []
  /// Positions of calls whose first fragment had all of their arguments.
  private var whole: Set<Int> = []

  /// `position` is the place in a whole message, where calls are complete and need no index.
  mutating func read(_ json: JSON, at position: Int?) {
    guard json.kind == .object else { return }
    let at = slot(for: json, at: position)
    if let id = json["id"]?.string, !id.isEmpty { calls[at].id = id }
    let custom = json["custom"]
    if custom != nil || json["type"]?.string == "custom" { calls[at].type = "custom" }
    let body = custom ?? json["function"]
    if calls[at].name.isEmpty, let name = body?["name"]?.string { calls[at].name = name }
    if let arguments = body?["arguments"] ?? body?["input"] { append(arguments, to: at) }
  }

  /// `function_call`, the predecessor of `tool_calls`: one call, without id.
  mutating func readLegacy(_ json: JSON) {
    let at = positions[-1] ?? begin(-1)
    if calls[at].name.isEmpty, let name = json["name"]?.string { calls[at].name = name }
    if let arguments = json["arguments"] { append(arguments, to: at) }
  }

  private mutating func slot(for json: JSON, at position: Int?) -> Int {
    if let position { return begin(position) }
    let id = json["id"]?.string ?? ""
    guard let index = json["index"]?.int else {
      guard let last = calls.indices.last else { return begin(0) }
      let isAnother = (!id.isEmpty && id != calls[last].id) || follows(json, last)
      return isAnother ? begin(calls.count) : last
    }
    guard let known = positions[index] else { return begin(index) }
    let isNamed = !(json["function"]?["name"]?.string ?? "").isEmpty
    let isAnother = !id.isEmpty && isNamed && !calls[known].id.isEmpty && calls[known].id != id
    return isAnother || follows(json, known) ? begin(index) : known
  }

  /// Whether a fragment begins the call after one that was whole: it has a name, and more than a
  /// repetition of that call's.
  private func follows(_ json: JSON, _ known: Int) -> Bool {
    guard whole.contains(known), let name = json["function"]?["name"]?.string, !name.isEmpty else {
      return false
    }
    if let id = json["id"]?.string, !id.isEmpty, id == calls[known].id { return false }
    let hasArguments = json["function"]?["arguments"].map { $0.string != "" } ?? false
    return name != calls[known].name || hasArguments
  }

  private mutating func begin(_ index: Int) -> Int {
    calls.append(ToolCall())
    texts.append(TextJoiner())
    positions[index] = calls.count - 1
    return calls.count - 1
  }

  /// Arguments are JSON in a string; some servers send the object itself.
  private mutating func append(_ arguments: JSON, to at: Int) {
    let isFirst = calls[at].arguments.isEmpty
    defer {
      if isFirst,
        case .whole(let json) = JSON.parse(Array(calls[at].arguments.utf8), limit: 1 << 16),
        json.kind == .object
      {
        whole.insert(at)
      }
    }
    if arguments.kind == .string {
      calls[at].arguments += texts[at].text(of: arguments)
    } else if arguments.kind == .object || arguments.kind == .array {
      var writer = JSONWriter()
      writer.copy(arguments)
      calls[at].arguments += String(decoding: writer.bytes, as: UTF8.self)
    }
  }
}
