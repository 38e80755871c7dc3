import Testing

@testable import Worker

@Suite struct FilesTests {
  @Test func whatGoesInWaitsUntilThereIsRoomAndASingleFileAlwaysGetsIt() {
    let memory = FileMemory(limit: 1 << 20)
    #expect(memory.take(2 << 20))
    #expect(memory.isFull)
    #expect(!memory.take(1))
    memory.giveBack(2 << 20)
    #expect(memory.take(1 << 19))
    #expect(memory.take(1 << 19))
    #expect(!memory.take(1))
    #expect(!memory.isFull)
  }

  @Test func whatCameOutIsTakenUpToTwiceTheLimit() {
    let memory = FileMemory(limit: 1 << 20)
    #expect(memory.add(2 << 20))
    #expect(!memory.add(1))
    memory.giveBack(2 << 20)
    #expect(memory.add(5 << 20))
    memory.giveBack(5 << 20)
    #expect(memory.add(1 << 20))
    #expect(!memory.isFull)
    #expect(memory.add(1))
    #expect(memory.isFull)
  }

  @Test(arguments: [
    ("https://A.test/x?y#z", "https://a.test"), ("http://a.test:80/x", "http://a.test"),
    ("https://a.test:443", "https://a.test"), ("https://a.test:8443/", "https://a.test:8443"),
    ("HTTP://[::1]:99/x", "http://[::1]:99"), ("https://a.test\\@b.test/", "https://a.test"),
    ("https://a.test@b.test/", nil), ("ftp://a.test", nil), ("https://", nil), ("a.test", nil),
    ("https:///x", nil),
  ])
  func originsAreSchemeAndAuthority(_ address: String, _ origin: String?) {
    #expect(Download.origin(address) == origin)
  }

  @Test(arguments: [
    ("https://b.test/y", "https://b.test/y"), ("/y", "https://a.test:1/y"),
    ("//b.test/y", "https://b.test/y"), ("y", nil), ("file:///etc/passwd", nil),
    ("gopher://b.test", nil), ("", nil), ("https://u@b.test/", nil),
  ])
  func redirectsLeadToAddressesAndPathsOnly(_ location: String, _ joined: String?) {
    #expect(Download.joined("https://a.test:1/x/z", location) == joined)
  }
}
