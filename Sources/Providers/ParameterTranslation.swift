/// Parameters on their way into a protocol that does not have all of OpenAI's: what has been written
/// is taken, and what nobody took passes as it is, unless it is a word of OpenAI's, which the provider
/// would not understand: that is left out.
struct ParameterTranslation {
  /// Knows what was left out: the request is posted by it.
  private(set) var parts: RequestParts
  private var taken: Set<String> = []

  init(_ parts: RequestParts) {
    self.parts = parts
  }

  var options: JSON { parts.options }

  /// The parameter, which counts as said; nil where it was not given.
  mutating func take(_ name: String) -> JSON? {
    taken.insert(name)
    return parts.param(name)
  }

  /// Leaves a parameter out.
  mutating func drop(_ name: String) { parts.leaveOut(name) }

  /// The limit of output tokens, by either name.
  mutating func takeOutputLimit() -> JSON? {
    let older = take("max_tokens")
    return take("max_completion_tokens") ?? older
  }

  /// Stop sequences as an array; nil where there are none.
  mutating func takeStops() -> [JSON]? {
    guard let stop = take("stop") else { return nil }
    return stop.kind == .array ? stop.elements : [stop]
  }

  /// Refuses more than one answer; one need not be said.
  mutating func refuseSeveralAnswers() throws(Failure) {
    try parts.refuseSeveralAnswers()
    taken.formUnion(["n", "best_of"])
  }

  /// What nobody took and OpenAI does not have: the provider's own parameters. What is left of
  /// OpenAI's is left out.
  mutating func takeRest() -> [(key: String, value: JSON)] {
    let open = parts.params.filter { !taken.contains($0.key) && !Self.ownMembers.contains($0.key) }
    parts.leaveOut(Set(open.map(\.key)).intersection(Self.openAI))
    return open.filter { !Self.openAI.contains($0.key) }
  }

  /// Written by the dialects themselves; an encoding of numbers changes nothing but bytes.
  private static let ownMembers = ParameterVocabulary.workersOwn.union(
    ["inputs", "stream_options", "encoding_format"])

  private static let openAI = ParameterVocabulary.chat.union(ParameterVocabulary.completion)
    .union(ParameterVocabulary.embedding)
}
