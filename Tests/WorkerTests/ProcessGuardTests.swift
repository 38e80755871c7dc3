import HTTP
import Testing

@testable import Worker

private func masked(_ argument: String) -> String {
  var bytes = Array(argument.utf8)
  for range in ProcessGuard.passwords(in: bytes) {
    for place in range { bytes[place] = UInt8(ascii: "x") }
  }
  return String(decoding: bytes, as: UTF8.self)
}

@Suite struct ProcessGuardTests {
  @Test(
    "passwords in URLs and connection strings are found, whatever else is there",
    arguments: [
      ("postgres://ann:secret@host/db", "postgres://ann:xxxxxx@host/db"),
      ("postgresql://ann:s:e@c@host:5432/db?x=1", "postgresql://ann:xxxxx@host:5432/db?x=1"),
      ("--database-url=postgres://a:pw@h/d", "--database-url=postgres://a:xx@h/d"),
      ("postgres:///d?user=a&password=pw&host=h", "postgres:///d?user=a&password=xx&host=h"),
      ("host=h password=pw dbname=d", "host=h password=xx dbname=d"),
      ("host=h password = pw", "host=h password = xx"),
      (#"password='it\'s one' host=h"#, "password=xxxxxxxxxxx host=h"),
      (#"password=a\ b host=h"#, "password=xxxx host=h"),
      ("sslpassword=pw", "sslpassword=xx"),
    ])
  func found(argument: String, expected: String) {
    #expect(masked(argument) == expected)
  }

  @Test(
    "what holds no password stays as it is",
    arguments: [
      "", "work", "--once", "postgres://host/db", "postgres://ann@host/db",
      "postgres://ann:@host/db",
      "postgres://host:5432/db@x", "host=h passfile=/p", "password", "password=", "://", "://@",
      "://:@",
    ])
  func nothing(argument: String) {
    #expect(masked(argument) == argument)
  }
}

@Suite struct NetworkSettingsTests {
  private func settings(_ values: [String: String]) throws -> NetworkSettings {
    try NetworkSettings { values[$0] }
  }

  @Test("nothing is set: the system's authorities, no proxy, no exception")
  func defaults() throws {
    let settings = try settings(["MARTLET_PROXY": "", "MARTLET_CA_FILE": ""])
    #expect(settings.transfers.certificateAuthorities == nil)
    #expect(settings.transfers.proxy == nil && settings.ignoredProxy == nil)
    #expect(settings.transfers.allowedNetworks.isEmpty)
  }

  @Test("networks are separated by commas or spaces, and each must be one")
  func networks() throws {
    let some = try settings(["MARTLET_ALLOWED_NETWORKS": "10.1.0.0/16, fd12::/16,127.0.0.1"])
    #expect(some.transfers.allowedNetworks.count == 3)
    for wrong in ["10.1.0.1/16", "everything", "10.0.0.0/8;11.0.0.0/8", "0"] {
      #expect(throws: NetworkSettings.Problem.self) {
        try settings(["MARTLET_ALLOWED_NETWORKS": wrong])
      }
    }
  }

  @Test("only MARTLET_PROXY is followed; that another is not is told")
  func proxies() throws {
    #expect(try settings(["https_proxy": "http://p:1"]).ignoredProxy == "https_proxy")
    let own = try settings(["https_proxy": "http://p:1", "MARTLET_PROXY": "http://q:2"])
    #expect(own.ignoredProxy == nil && own.transfers.proxy == "http://q:2")
  }

  @Test(
    "a proxy that is none is refused, and not quoted",
    arguments: [
      "http://ann:s3cret#x@proxy:3128", "http://ann:s3cret/x@proxy:3128",
      "http://ann:s3cret?x@proxy:3128", "http://ann:s3cret@x@proxy:3128",
      "http://ann:12#s3cret@proxy:3128", "http://ann:12/s3cret@proxy:3128",
      "http://ann:s3cret@proxy:port", "http://ann:s3cret@proxy:65536",
      "http://ann:s3cret@the proxy:3128", "ftp://ann:s3cret@proxy:3128", "http://ann:s3cret@",
    ])
  func noProxy(value: String) throws {
    let problem = #expect(throws: NetworkSettings.Problem.self) {
      try settings(["MARTLET_PROXY": value])
    }
    #expect(problem?.description.hasPrefix("MARTLET_PROXY") == true)
    #expect(problem?.description.contains("s3cret") == false)
  }

  @Test(
    "a proxy may have a user, a port and each scheme that libcurl knows",
    arguments: [
      "proxy", "proxy:3128", "10.1.2.3:3128", "http://proxy:3128/", "https://proxy",
      "http://ann:s%23cret@proxy:3128", "http://[::1]:3128", "socks4://proxy", "socks4a://proxy",
      "socks5://proxy:1080", "socks5h://ann:s3cret@proxy",
    ])
  func proxy(value: String) throws {
    #expect(try settings(["MARTLET_PROXY": value]).transfers.proxy == value)
  }

  @Test(
    "trusted authorities are a file with certificates",
    arguments: ["/", "/dev/null", "/proc/version", "/none"])
  func authorities(file: String) throws {
    #expect(throws: NetworkSettings.Problem.self) { try settings(["MARTLET_CA_FILE": file]) }
  }

  @Test("the memory for answers has bounds", arguments: ["63", "0", "-1", "x", "1048577", "1e9"])
  func memory(value: String) throws {
    #expect(throws: NetworkSettings.Problem.self) {
      try settings(["MARTLET_ANSWER_MEMORY": value])
    }
    #expect(try settings(["MARTLET_ANSWER_MEMORY": "64"]).transfers.answerMemory == 64 << 20)
  }
}
