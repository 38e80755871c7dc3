import Testing

@testable import Migrate

struct SchemaTests {
  @Test(arguments: [
    "2026010100000_short.sql", "20260101000000.sql", "20260101000000_.sql", "20260101000000_a",
    "20260101000000_Upper.sql", "20260101000000_it's.sql", "2026010100000a_x.sql",
    "٢0260101000000_x.sql", "20260101000000_x.sql.sql", "",
  ])
  func `a migration with another name is refused`(_ file: String) {
    #expect(throws: MigrateError.self) { try Migration(file: file, text: "-- migrate:up\n") }
  }

  @Test(arguments: ["", "select 1;", " -- migrate:up\n", "-- migrate:up \n", "\n-- migrate:up"])
  func `a migration that does not begin with its mark is refused`(_ text: String) {
    #expect(throws: MigrateError.self) { try Migration(file: "20260101000000_x.sql", text: text) }
  }

  @Test func `two migrations of one version are refused`() {
    let text = "-- migrate:up\n"
    #expect(throws: MigrateError.self) {
      try Schema(
        migrations: [("20260101000000_a.sql", text), ("20260101000000_b.sql", text)], files: [])
    }
  }

  @Test func `files are sorted whatever order they come in`() throws {
    let text = "-- migrate:up\n"
    let schema = try Schema(
      migrations: [("20260102000000_a.sql", text), ("20260101000000_b.sql", text)],
      files: [("10_b.sql", ""), ("00_a.sql", ""), ("10_a.sql", "")])
    #expect(schema.migrations.map(\.name) == ["b", "a"])
    #expect(schema.files.map(\.file) == ["00_a.sql", "10_a.sql", "10_b.sql"])
  }

  @Test func `a file is split at its mark and nowhere else`() throws {
    let text = "one\n--objects\n-- objects of art\n  -- objects\n-- objects\nfive\nsix"
    let file = try SQLFile(file: "10_x.sql", text: text)
    #expect(file.functions == "one\n--objects\n-- objects of art\n  -- objects")
    #expect(file.objects == "five\nsix")
    #expect(file.objectsLine == 6)
    #expect(try SQLFile(file: "10_x.sql", text: "only").objects.isEmpty)
    #expect(try SQLFile(file: "10_x.sql", text: "-- objects\nall").functions.isEmpty)
    #expect(throws: MigrateError.self) {
      try SQLFile(file: "10_x.sql", text: "-- objects\n-- objects\n")
    }
  }

  @Test func `the checksum of sql is that of sha256sum's lines`() throws {
    let schema = try Schema(migrations: [], files: [("00_a.sql", "abc"), ("10_b.sql", "")])
    let lines = """
      ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  00_a.sql
      e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  10_b.sql

      """
    #expect(schema.filesChecksum == SHA256.hex(lines))
  }

  @Test func `a dollar tag is never one that the text has`() {
    #expect(dollarQuoted("x") == "$martlet$\nx\n$martlet$")
    let nested = dollarQuoted(dollarQuoted("a $martlet1$ b"))
    #expect(nested.hasPrefix("$martlet2$\n"))
  }
}
