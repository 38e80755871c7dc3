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

  @Test(
    "what may be one row's doing is looked for one by one",
    arguments: [
      "22001", "54001", "54000", "23502", "23505", "P0001", "PT422", "0A000", "42883", "42501",
      "53200", "57014", "XX000", "XX001",
    ])
  func ofOne(sqlState: String) {
    var error = PostgresError(.server, "no", sqlState: sqlState)
    error.context = "PL/pgSQL function"
    #expect(error.mayConcernOne)
  }

  @Test(
    "what the database fares with as badly for each, or not at all the next time, is not",
    arguments: [
      "40001", "40P01", "25006", "55P03", "53100", "53300", "57P01", "57P03", "58030", "23514",
      "54000",
    ])
  func ofAll(sqlState: String) {
    #expect(!PostgresError(.server, "no", sqlState: sqlState).mayConcernOne)
    #expect(!PostgresError(.connection, "gone", sqlState: "57P01").mayConcernOne)
    #expect(!PostgresError(.connection, "gone").mayConcernOne)
    #expect(!PostgresError(.input, "a NUL").mayConcernOne)
  }

  @Test("a check names its constraint, a limit of what was given says where it was met")
  func named() {
    #expect(isOutside("23514") && !isOutside("23514") { $0.constraint = "generations_output" })
    #expect(isOutside("54000") && !isOutside("54000") { $0.context = "SQL function" })
  }
}
