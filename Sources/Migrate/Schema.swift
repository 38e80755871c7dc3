internal import CSchema

/// All SQL of one version of Martlet: the history, and the present.
package struct Schema: Sendable, Equatable {
  /// Sorted by version.
  package let migrations: [Migration]
  /// Sorted by name.
  package let files: [SQLFile]
  /// SHA-256 of sql/ as a whole, hexadecimal: of the lines that `sha256sum *.sql` prints in that
  /// folder.
  package let filesChecksum: String

  /// - Throws: `.invalidFile`, also for two migrations of one version.
  package init(
    migrations: [(file: String, text: String)], files: [(file: String, text: String)]
  ) throws(MigrateError) {
    var history: [Migration] = []
    for (file, text) in migrations { history.append(try Migration(file: file, text: text)) }
    history.sort { $0.version < $1.version }
    for (one, next) in zip(history, history.dropFirst()) where one.version == next.version {
      throw .invalidFile(next.file, "it has the version of \(one.file)")
    }
    var present: [SQLFile] = []
    for (file, text) in files { present.append(try SQLFile(file: file, text: text)) }
    present.sort { Array($0.file.utf8).lexicographicallyPrecedes(Array($1.file.utf8)) }
    self.migrations = history
    self.files = present
    filesChecksum = SHA256.hex(
      present.map { "\(SHA256.hex($0.text))  \($0.file)\n" }.joined())
  }

  /// What was embedded when the binary was built.
  /// - Throws: `.invalidFile`, which the tests rule out.
  package static func embedded() throws(MigrateError) -> Schema {
    try Schema(migrations: list(martlet_migrations()), files: list(martlet_sql()))
  }

  /// The catalog of providers and models that ships, as JSON: what `ai.load_catalog()` takes.
  package static func catalog() -> String {
    list(martlet_catalog()).first { $0.file == "catalog.json" }?.text ?? "{}"
  }

  private static func list(
    _ first: UnsafePointer<martlet_sql_file>?
  ) -> [(file: String, text: String)] {
    var found: [(file: String, text: String)] = []
    guard var entry = first else { return found }
    while let name = entry.pointee.name {
      let bytes = UnsafeBufferPointer(start: entry.pointee.bytes, count: entry.pointee.length)
      found.append((String(cString: name), String(decoding: bytes, as: UTF8.self)))
      entry += 1
    }
    return found
  }
}
