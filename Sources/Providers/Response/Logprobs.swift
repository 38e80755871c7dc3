/// Log probabilities as they come, chunk for chunk: an object whose arrays are joined by their name
/// (OpenAI's `content` and `refusal`, the older `tokens`, `token_logprobs`, …).
struct Logprobs: Sendable {
  private var arrays: [(name: String, elements: [[UInt8]])] = []

  var isEmpty: Bool { arrays.isEmpty }

  mutating func add(_ json: JSON) {
    for (name, value) in json.members where value.kind == .array {
      let at = arrays.firstIndex { $0.name == name } ?? arrays.count
      if at == arrays.count { arrays.append((name, [])) }
      for element in value.elements {
        var writer = JSONWriter(reserving: 64)
        writer.copy(element)
        arrays[at].elements.append(writer.bytes)
      }
    }
  }

  func write(to writer: inout JSONWriter) {
    writer.beginObject()
    for (name, elements) in arrays {
      writer.key(name)
      writer.beginArray()
      for element in elements { writer.splice(element) }
      writer.endArray()
    }
    writer.endObject()
  }
}
