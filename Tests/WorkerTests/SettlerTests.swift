import Postgres
import Testing

@testable import Worker

@Suite struct SettlerTests {
  private func isOutside(
    _ sqlState: String?, _ change: (inout PostgresError) -> Void = { _ in }
  ) -> Bool {
    var error = PostgresError(.server, "no", sqlState: sqlState)
    change(&error)
    return error.isOutside
  }

  @Test(
    "what the database refuses because of its own trouble is not held against an answer",
    arguments: [
      "40001", "40P01", "53000", "53100", "53200", "53300", "53400", "55P03", "57014", "57P01",
      "23505", "25006", "42501", "42P01", "58030", "XX000",
    ])
  func trouble(sqlState: String) {
    #expect(isOutside(sqlState))
  }

  @Test(
    "what it refuses because of what it was given is",
    arguments: ["22P02", "22P05", "22021", "23502", "PT400", nil])
  func content(sqlState: String?) {
    #expect(!isOutside(sqlState))
  }

  @Test("a check names its constraint, a limit of what was given says where it was met")
  func named() {
    #expect(isOutside("23514") && !isOutside("23514") { $0.constraint = "generations_output" })
    #expect(isOutside("54000") && !isOutside("54000") { $0.context = "SQL function" })
  }
}
