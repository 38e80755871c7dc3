/// Parameters, said as a host wants them that speaks like OpenAI.
struct OpenAIParameters {
  let parts: RequestParts
  let variant: OpenAIVariant

  /// Those that a dialect writes itself, or that are the worker's.
  static let own: Set<String> = ParameterVocabulary.workersOwn.union(ParameterVocabulary.limits)
    .union(["stream_options"])

  /// Writes members into the open object: all that is left but `own` and `besides`, then the bound of
  /// the answer's length.
  func write(to writer: inout JSONWriter, besides: Set<String> = []) {
    for (name, value) in parts.params where !Self.own.contains(name) && !besides.contains(name) {
      write(name, value, to: &writer)
    }
    if let limit = parts.param("max_completion_tokens") ?? parts.param("max_tokens") {
      writer.key(variant.limit)
      writer.splice(limit)
    }
  }

  /// Asks a stream for its usage: without that most hosts do not say what it cost.
  func writeStreamOptions(to writer: inout JSONWriter) {
    let given = parts.param("stream_options")?.members.filter { $0.key != "include_usage" } ?? []
    guard variant.asksForUsage || !given.isEmpty else { return }
    writer.key("stream_options")
    writer.beginObject()
    if variant.asksForUsage { writer.member("include_usage", true) }
    for (name, value) in given {
      writer.key(name)
      writer.splice(value)
    }
    writer.endObject()
  }

  private func write(_ name: String, _ value: JSON, to writer: inout JSONWriter) {
    let other = variant.renamed[name]
    // What the app gave under the host's own name comes first.
    if let other, parts.param(other) != nil { return }
    if variant.countsLogprobs, name == "logprobs" || name == "top_logprobs" {
      return writeLogprobCount(name, value, to: &writer)
    }
    writer.key(other ?? name)
    if name == "stop", variant.wantsStopList, value.kind == .string {
      writer.beginArray()
      writer.splice(value)
      writer.endArray()
    } else if name == "service_tier", let tier = value.string, let word = variant.tiers[tier] ?? nil
    {
      writer.string(word)
    } else {
      writer.splice(value)
    }
  }

  /// One number in place of OpenAI's two parameters.
  private func writeLogprobCount(_ name: String, _ value: JSON, to writer: inout JSONWriter) {
    guard name == "logprobs" else { return }
    if value.kind == .number {
      writer.key(name)
      writer.splice(value)
    } else if value.bool == true {
      writer.key(name)
      writer.int(max(1, parts.param("top_logprobs")?.int ?? 1))
    }
  }
}
