import Foundation
import Testing

@testable import Migrate

/// The SQL of this repository: that the binary has it all, and that it keeps the rules which the three
/// doors rely on.
struct EmbeddedTests {
  private static let repository = URL(filePath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  private func folder(_ name: String) throws -> [String: String] {
    let url = Self.repository.appending(path: name)
    var texts: [String: String] = [:]
    for file in try FileManager.default.contentsOfDirectory(atPath: url.path)
    where file.hasSuffix(".sql") {
      texts[file] = try String(contentsOf: url.appending(path: file), encoding: .utf8)
    }
    return texts
  }

  @Test func `the binary has every migration, as it is`() throws {
    let embedded = try Schema.embedded().migrations
    #expect(!embedded.isEmpty)
    let pairs = embedded.map { ($0.file, $0.text) }
    #expect(
      Dictionary(pairs, uniquingKeysWith: { $1 }) == (try folder("migrations")),
      "run scripts/embed-list")
  }

  @Test func `the binary has every file of sql, as it is`() throws {
    let embedded = try Schema.embedded().files
    #expect(!embedded.isEmpty)
    let pairs = embedded.map { ($0.file, $0.text) }
    #expect(
      Dictionary(pairs, uniquingKeysWith: { $1 }) == (try folder("sql")), "run scripts/embed-list")
  }

  @Test func `the binary has the catalog, as it is`() throws {
    let url = Self.repository.appending(path: "catalog/catalog.json")
    #expect(Schema.catalog() == (try String(contentsOf: url, encoding: .utf8)))
  }

  @Test func `the drops run first`() throws {
    #expect(try Schema.embedded().files.first?.file == "00_drops.sql")
  }

  @Test func `no file has what a migration tool would take for its own`() throws {
    let schema = try Schema.embedded()
    let texts =
      schema.migrations.map { ($0.file, $0.body) } + schema.files.map { ($0.file, $0.text) }
    for (file, text) in texts {
      #expect(!text.contains("${"), "\(file): Flyway replaces ${…}")
      #expect(
        !text.contains("@ext"), "\(file): extension scripts replace @extschema@ and @extowner@")
      #expect(!text.contains("MODULE_PATHNAME"), "\(file)")
      #expect(!text.contains("migrate:down"), "\(file): dbmate would cut here")
      #expect(!text.contains("\r"), "\(file): line ends are LF")
      for line in text.split(separator: "\n") {
        #expect(!line.hasPrefix("\\"), "\(file): a psql command")
        #expect(!line.hasPrefix("-- migrate:"), "\(file): dbmate would cut here")
      }
    }
  }

  @Test func `above the line stand functions only, which an extension may own`() throws {
    for file in try Schema.embedded().files {
      for line in Self.statements(file.functions) {
        // A block that drops what has another shape now, and only then.
        let isDrop = file.file == "00_drops.sql" && line.hasPrefix("do ")
        let isAllowed = isDrop || line.wholeMatch(of: Self.allowedAbove) != nil
        #expect(isAllowed, "\(file.file): \(line.prefix(80))")
      }
      for line in Self.statements(file.objects) {
        #expect(line.wholeMatch(of: Self.allowedAbove) == nil, "\(file.file): \(line.prefix(80))")
      }
    }
  }

  nonisolated(unsafe) private static let allowedAbove =
    /(create or replace|comment on|drop|revoke execute on|grant execute on|alter) (function|procedure|routine)s?\b.*/
    .ignoresCase().dotMatchesNewlines()

  /// The statements' beginnings: good enough for text without comments in odd places.
  private static func statements(_ text: String) -> [Substring] {
    var bare = text.replacing(/(\$[a-z_0-9]*\$)(.|\n)*?\1/, with: "''")
    bare = bare.replacing(/'(''|[^'])*'/, with: "''")
    bare = bare.replacing(/--[^\n]*/, with: "")
    return bare.split(separator: ";").map { $0.drop { $0.isWhitespace } }.filter { !$0.isEmpty }
  }

  @Test(.ownDatabase) func `the whole of it can be applied, and then there is nothing to do`()
    async throws
  {
    let database = try TestDatabase.required()
    let schema = try Schema.embedded()
    let plan = try await Fixture.migrate(database, schema)
    #expect(plan.pending == schema.migrations)
    #expect(plan.appliesFiles)
    #expect(try await Fixture.migrate(database, schema).isCurrent)
  }
}
