import Postgres
import Testing

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

@Suite(.ownDatabase)
struct OpeningTests {
  let database: TestDatabase

  init() throws { database = try .required() }

  @Test func `the application's name is shown unless the connection string has one`() async throws {
    let one = try await database.connect("shown")
    #expect(try await one.query("show application_name")[0, 0] == "shown")
    let url = try database.url
    let other = try await Connection.open(
      url + (url.contains("?") ? "&" : "?") + "application_name=theirs", applicationName: "shown")
    #expect(try await other.query("show application_name")[0, 0] == "theirs")
  }

  @Test func `the encoding is UTF-8 whatever the connection string says`() async throws {
    let url = try database.url
    let connection = try await Connection.open(
      url + (url.contains("?") ? "&" : "?") + "client_encoding=LATIN1", applicationName: "test")
    #expect(try await connection.query("show client_encoding")[0, 0] == "UTF8")
  }

  @Test(arguments: [
    "postgresql://user:hunter2@[::1/db", "host=127.0.0.1 password='hunter2",
    "postgresql://user:hunter2%zz@127.0.0.1/db", "postgresql://user:pass@hunter2@127.0.0.1/db",
    "host=127.0.0.1 hunter2", "postgresql://127.0.0.1/db?hunter2=1",
    "postgresql://h/d?host=hunter2@x",
    "postgresql://user:hunter2@127.0.0.1:1/db", "host=127.0.0.1 port=1 password=hunter2\0",
    "postgresql://user:hunter2@hunter2.invalid/db",
  ])
  func `a connection string that leads nowhere never shows its password`(_ conninfo: String)
    async throws
  {
    let error = try #require(
      await #expect(throws: PostgresError.self) {
        try await Connection.open(conninfo, applicationName: "test")
      })
    #expect(error.kind == .connection)
    #expect(!"\(error) \(error.message)".contains("hunter2"))
  }

  @Test func `a database that does not exist is a connection error with the server's reason`()
    async throws
  {
    let error = await #expect(throws: PostgresError.self) {
      try await Connection.open(
        try TestDatabase.url(of: "martlet_test_not_there"), applicationName: "test")
    }
    #expect(error?.kind == .connection)
    #expect(error?.message.contains("martlet_test_not_there") == true)
  }

  @Test func `a server that accepts and never speaks is given up`() async throws {
    let silent = try SilentServer()
    let error = await #expect(throws: PostgresError.self) {
      try await Connection.open(
        "host=127.0.0.1 port=\(silent.port) user=x connect_timeout=2", applicationName: "test")
    }
    #expect(error?.kind == .connection)
    let listener = await #expect(throws: PostgresError.self) {
      try await Listener.open(
        "host=127.0.0.1 port=\(silent.port) user=x connect_timeout=2", applicationName: "test")
    }
    #expect(listener?.kind == .connection)
  }
}

/// Accepts connections in the kernel's backlog, and nobody ever answers them.
private struct SilentServer: ~Copyable {
  let port: UInt16
  private let descriptor: Int32

  init() throws {
    #if canImport(Glibc)
      descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    #else
      descriptor = socket(AF_INET, SOCK_STREAM, 0)
    #endif
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let descriptor = descriptor
    let status = withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
        bind(descriptor, generic, size) + listen(descriptor, 8)
          + getsockname(descriptor, generic, &size)
      }
    }
    try #require(status == 0)
    port = UInt16(bigEndian: address.sin_port)
  }

  deinit { close(descriptor) }
}
