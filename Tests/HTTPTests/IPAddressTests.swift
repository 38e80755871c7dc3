import Testing

@testable import HTTP

@Suite struct IPAddressTests {
  @Test(
    "of each closed network, the first and the last address are closed and their neighbours are not",
    arguments: [
      (nil, "0.0.0.0", "0.255.255.255", "1.0.0.0"),
      ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
      ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"),
      ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
      ("168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"),
      ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"),
      ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"),
      ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"),
      ("192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"),
      ("192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"),
      ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"),
      ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"),
      ("198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"),
      ("203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"),
      ("223.255.255.255", "224.0.0.0", "255.255.255.255", nil),
      ("2001:200::", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
      ("2001:db7:ffff::", "2001:db8::1", "2001:db8::2", "2001:db9::1"),
      (nil, "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
      (
        "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::",
        "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"
      ),
      (
        "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::",
        "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"
      ),
      (nil, "::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"),
      (
        "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", nil
      ),
    ] as [(String?, String, String, String?)])
  func bounds(before: String?, first: String, last: String, after: String?) throws {
    #expect(try !#require(IPAddress(first)).isPublic)
    #expect(try !#require(IPAddress(last)).isPublic)
    for outside in [before, after].compactMap(\.self) {
      #expect(try #require(IPAddress(outside)).isPublic, "\(outside)")
    }
  }

  @Test(
    "addresses with a meaning of their own are closed",
    arguments: [
      "0.0.0.0", "127.0.0.1", "169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192",
      "255.255.255.255", "239.255.255.250", "::", "::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1",
      "fec0::1", "fc00::1", "fdff::1", "ff02::1", "ff05::2", "100::1", "64:ff9b:1::1", "5f00::1",
      // An IPv4 address inside of another form.
      "::127.0.0.1", "::10.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
      "::ffff:169.254.169.254", "::ffff:0:8.8.8.8", "64:ff9b::127.0.0.1", "64:ff9b::192.168.0.1",
      "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:0a00:0001::1", "2002:0808:0808::1",
      "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ])
  func closed(text: String) throws {
    #expect(try !#require(IPAddress(text)).isPublic)
  }

  @Test(
    "addresses of the public internet are open",
    arguments: [
      "1.1.1.1", "8.8.8.8", "172.64.0.1", "192.0.1.1", "198.252.206.1", "100.0.0.1", "169.1.1.1",
      "2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "::ffff:8.8.8.8",
      "64:ff9b::8.8.8.8",
    ])
  func open(text: String) throws {
    #expect(try #require(IPAddress(text)).isPublic)
  }

  @Test(
    "what is not an address in its usual form is none",
    arguments: [
      "", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1 ",
      "127.0.0.256",
      "fe80::1%lo", "[::1]", "1.2.3.4.5", ":::", "/tmp/socket",
    ])
  func notAddresses(text: String) {
    #expect(IPAddress(text) == nil)
  }

  @Test("addresses have four bytes or sixteen")
  func lengths() {
    for count in 0...20 {
      let address = IPAddress(bytes: [UInt8](repeating: 1, count: count))
      #expect((address != nil) == (count == 4 || count == 16))
    }
  }

  @Test(
    "a network has all addresses between its first and its last",
    arguments: [
      ("10.1.2.0/23", "10.1.2.0", "10.1.3.255", ["10.1.1.255", "10.1.4.0", "::a01:200"]),
      ("127.0.0.1", "127.0.0.1", "127.0.0.1", ["127.0.0.0", "127.0.0.2"]),
      ("127.0.0.1/32", "127.0.0.1", "127.0.0.1", ["127.0.0.0", "127.0.0.2"]),
      ("0.0.0.0/0", "0.0.0.0", "255.255.255.255", ["::"]),
      (
        "fd12:3456::/33", "fd12:3456::", "fd12:3456:7fff:ffff:ffff:ffff:ffff:ffff",
        ["fd12:3455:ffff:ffff:ffff:ffff:ffff:ffff", "fd12:3456:8000::", "18.52.86.0"]
      ),
    ])
  func networks(text: String, first: String, last: String, outside: [String]) throws {
    let network = try #require(IPNetwork(text))
    #expect(try network.contains(#require(IPAddress(first))))
    #expect(try network.contains(#require(IPAddress(last))))
    for address in outside { #expect(try !network.contains(#require(IPAddress(address)))) }
  }

  @Test(
    "what is not a network is none",
    arguments: [
      "", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.1/8", "10/8",
      "10.0.0.0/8/8", "::/129", "fd00::1/8", "localhost", "10.0.0.0/ 8", "10.0.0.0/8 ",
    ])
  func notNetworks(text: String) {
    #expect(IPNetwork(text) == nil)
  }
}

@Suite struct AnswerMemoryTests {
  @Test("one transfer may hold all of the memory, and not a byte more")
  func alone() {
    var memory = AnswerMemory(limit: 100)
    let results = [(0, 99), (99, 100), (100, 101)].map { memory.change(from: $0, to: $1) }
    #expect(results == [true, true, false])
    #expect(memory.used == 101 && memory.holders == 1)
  }

  @Test("when all is taken, whoever holds more than an equal share goes, and nobody else")
  func shares() {
    var memory = AnswerMemory(limit: 100)
    let results = [(0, 90), (0, 10), (10, 11), (11, 50), (50, 51), (90, 91)].map {
      memory.change(from: $0, to: $1)
    }
    #expect(results == [true, true, true, true, false, false])
    // What goes makes room.
    let later = [(91, 0), (51, 100)].map { memory.change(from: $0, to: $1) }
    #expect(later == [true, true])
    #expect(memory.used == 100 && memory.holders == 1)
  }

  @Test("holding less is never refused")
  func less() {
    var memory = AnswerMemory(limit: 10)
    let results = [(0, 20), (20, 15), (15, 15), (15, 0)].map { memory.change(from: $0, to: $1) }
    #expect(results == [false, true, true, true])
    #expect(memory.used == 0 && memory.holders == 0)
  }
}
