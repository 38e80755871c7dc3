/// One file of migrations/: a step of the schema's history, applied once and never changed.
package struct Migration: Sendable, Equatable {
  /// Fourteen digits, `YYYYMMDDHHMMSS`: order and identity.
  package let version: String
  /// What the file's name says after the version.
  package let name: String
  package let text: String
  /// SHA-256 of the text, hexadecimal.
  package let checksum: String

  /// The file's name.
  package var file: String { "\(version)_\(name).sql" }
  /// The text without its first line: dbmate would take a second `-- migrate:up` in the bundle amiss.
  var body: String { String(text.drop { $0 != "\n" }.dropFirst()) }

  /// - Parameters:
  ///   - file: `YYYYMMDDHHMMSS_name.sql`, the name of lower-case letters, digits and underscores.
  ///   - text: SQL whose first line is `-- migrate:up`, which is how dbmate knows the file too.
  /// - Throws: `.invalidFile`.
  package init(file: String, text: String) throws(MigrateError) {
    let stem = file.hasSuffix(".sql") ? file.dropLast(4) : ""
    let parts = stem.split(separator: "_", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, parts[0].utf8.count == 14, parts[0].utf8.allSatisfy(isDigit),
      !parts[1].isEmpty, parts[1].utf8.allSatisfy(isNameCharacter)
    else {
      throw .invalidFile(file, "a migration's name is YYYYMMDDHHMMSS_lower_case_words.sql")
    }
    let first = text.prefix { $0 != "\n" }
    guard first == "-- migrate:up" else {
      throw .invalidFile(file, "a migration's first line is -- migrate:up")
    }
    version = String(parts[0])
    name = String(parts[1])
    self.text = text
    checksum = SHA256.hex(text)
  }
}

/// One file of sql/: what is replaceable of the schema, as it is now.
package struct SQLFile: Sendable, Equatable {
  package let file: String
  package let text: String
  /// What stands above the line `-- objects`: functions, procedures, their comments and grants.
  package let functions: String
  /// What stands below it: triggers, views, policies and grants, which need the tables. May be empty.
  package let objects: String
  /// The line of the file at which `objects` begins, from 1.
  package let objectsLine: Int

  /// - Parameter file: `NN_subject.sql`.
  /// - Throws: `.invalidFile` where the name is none, or the line `-- objects` stands there twice.
  package init(file: String, text: String) throws(MigrateError) {
    guard file.hasSuffix(".sql"), file.utf8.count > 4,
      file.utf8.dropLast(4).allSatisfy(isNameCharacter)
    else {
      throw .invalidFile(file, "a name in sql/ is NN_subject.sql")
    }
    self.file = file
    self.text = text
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    let marks = lines.indices.filter { lines[$0] == "-- objects" }
    guard marks.count <= 1 else {
      throw .invalidFile(file, "the line -- objects stands there more than once")
    }
    let mark = marks.first ?? lines.count
    functions = lines[..<mark].joined(separator: "\n")
    objects = lines[mark...].dropFirst().joined(separator: "\n")
    objectsLine = mark + 2
  }
}

private func isDigit(_ byte: UInt8) -> Bool { byte >= 0x30 && byte <= 0x39 }

private func isNameCharacter(_ byte: UInt8) -> Bool {
  isDigit(byte) || byte == UInt8(ascii: "_")
    || (byte >= UInt8(ascii: "a") && byte <= UInt8(ascii: "z"))
}
