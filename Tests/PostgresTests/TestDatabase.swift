import Postgres
import Testing

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// A database of a suite's or a test's own, on the server that `make test` names.
struct TestDatabase: Sendable {
  /// The database of the suite or test that runs now: `@Suite(.ownDatabase)`, `@Test(.ownDatabase)`.
  @TaskLocal static var current: TestDatabase?

  let name: String

  var url: String {
    get throws { try TestDatabase.url(of: name) }
  }

  static func required() throws -> TestDatabase {
    try #require(TestDatabase.current, "the test lacks the trait .ownDatabase")
  }

  func connect(_ applicationName: String = "test") async throws -> Connection {
    try await Connection.open(try url, applicationName: applicationName)
  }

  /// A session of the server's administrator, on the database that tests do not change.
  static func administrator() async throws -> Connection {
    try await Connection.open(try serverURL(), applicationName: "test administrator")
  }

  static func create() async throws -> TestDatabase {
    let database = TestDatabase(
      name: "martlet_test_swift_\(getpid())_\(String(UInt64.random(in: 0 ... .max), radix: 36))")
    let administrator = try await administrator()
    try await administrator.script(
      "create database \(try quotedIdentifier(database.name)) template template0")
    await administrator.close()
    return database
  }

  func drop() async throws {
    let administrator = try await TestDatabase.administrator()
    try await administrator.script(
      "drop database if exists \(try quotedIdentifier(name)) with (force)")
    await administrator.close()
  }

  static func serverURL() throws -> String {
    guard let url = getenv("MARTLET_TEST_DATABASE_URL") else { throw MissingServer() }
    return String(cString: url)
  }

  /// The server's URL with another database in it.
  static func url(of database: String) throws -> String {
    let url = try serverURL()
    guard let scheme = url.range(of: "://") else { return url + " dbname=" + database }
    let question = url.firstIndex(of: "?") ?? url.endIndex
    let slash = url[scheme.upperBound..<question].firstIndex(of: "/") ?? question
    return url[..<slash] + "/" + database + url[question...]
  }

  struct MissingServer: Error, CustomStringConvertible {
    let description = "MARTLET_TEST_DATABASE_URL is not set: run them through make test"
  }
}

/// Makes the database before and drops it afterwards.
struct OwnDatabase: SuiteTrait, TestTrait, TestScoping {
  func provideScope(
    for test: Test, testCase: Test.Case?,
    performing body: @concurrent @Sendable () async throws -> Void
  ) async throws {
    let database = try await TestDatabase.create()
    do {
      try await TestDatabase.$current.withValue(database) { try await body() }
    } catch {
      try? await database.drop()
      throw error
    }
    try await database.drop()
  }
}

extension Trait where Self == OwnDatabase {
  static var ownDatabase: OwnDatabase { OwnDatabase() }
}

/// Asks until the answer is true, for at most half a minute: what is waited for happens in another process.
func eventually(
  _ what: String, _ condition: () async throws -> Bool
) async throws {
  for _ in 0..<3_000 {
    if try await condition() { return }
    try await Task.sleep(for: .milliseconds(10))
  }
  Issue.record("never happened: \(what)")
}

extension String {
  fileprivate func range(of other: String) -> Range<String.Index>? {
    ranges(of: other).first
  }
}
