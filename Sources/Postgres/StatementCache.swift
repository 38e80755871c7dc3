/// The statements that a session has prepared.
///
/// A statement's name is made of its text. Behind a pooler in transaction mode, sessions of the server
/// are shared: a name that another client has prepared must mean the same statement there.
struct StatementCache {
  private var names: [String: String] = [:]
  private let limit: Int

  /// - Parameter limit: how many statements a session keeps; above it all are forgotten at once.
  init(limit: Int = 256) { self.limit = limit }

  var isFull: Bool { names.count >= limit }

  /// The name under which a text is prepared.
  subscript(sql: String) -> String? { names[sql] }

  mutating func remember(_ sql: String) { names[sql] = StatementCache.name(of: sql) }

  mutating func removeAll() { names.removeAll(keepingCapacity: true) }

  /// `martlet_`, the text's hash (FNV-1a, 64 bits) and its length.
  static func name(of sql: String) -> String {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in sql.utf8 { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01b3 }
    return "martlet_\(String(hash, radix: 16))_\(sql.utf8.count)"
  }
}
