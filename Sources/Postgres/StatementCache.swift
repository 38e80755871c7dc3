/// Names of the statements that a session has prepared, by their text.
struct StatementCache {
  private var names: [String: String] = [:]
  private var made = 0
  private let limit: Int

  /// - Parameter limit: how many statements a session keeps; above it all are forgotten at once.
  init(limit: Int = 256) { self.limit = limit }

  var isFull: Bool { names.count >= limit }

  subscript(sql: String) -> String? {
    get { names[sql] }
    set { names[sql] = newValue }
  }

  /// A name that this session has not used before.
  mutating func nextName() -> String {
    made += 1
    return "martlet_\(made)"
  }

  mutating func removeAll() { names.removeAll(keepingCapacity: true) }
}
