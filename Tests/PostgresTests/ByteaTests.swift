import Postgres
import Testing

@Suite(.ownDatabase)
struct ByteaTests {
  let database: TestDatabase

  init() throws { database = try .required() }

  @Test(arguments: ["hex", "escape"])
  func `bytes come back as they went, in whatever form the session has them`(_ form: String)
    async throws
  {
    let connection = try await database.connect()
    try await connection.script("set bytea_output = \(form)")
    let all = [UInt8](0...255)
    for bytes in [[], all, all.reversed(), Array(#"\x"#.utf8), Array(#"\\000\"#.utf8)] {
      let rows = try await connection.query("select $1::bytea", [hexadecimal(bytes)])
      #expect(rows.bytea(0, 0) == bytes)
    }
    #expect(try await connection.query("select null::bytea").bytea(0, 0) == nil)
  }
}
