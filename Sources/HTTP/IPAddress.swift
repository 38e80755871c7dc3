import Glibc

/// An address that a socket may be connected to, and whether it lies in the public internet.
///
/// What is not surely public is not: the tables are those of IANA's special-purpose registries
/// (RFC 6890 and what followed), and of IPv6 only the part that is given out for global unicast.
struct IPAddress: Sendable, Equatable {
  /// 4 or 16, in network order.
  let bytes: [UInt8]

  /// nil: neither 4 nor 16 bytes.
  init?(bytes: some Collection<UInt8>) {
    guard bytes.count == 4 || bytes.count == 16 else { return nil }
    self.bytes = Array(bytes)
  }

  /// As `inet_pton` reads it: no octal, hexadecimal or short forms, no zone.
  init?(_ text: String) {
    var four = in_addr()
    var sixteen = in6_addr()
    if inet_pton(AF_INET, text, &four) == 1 {
      bytes = withUnsafeBytes(of: four) { Array($0) }
    } else if inet_pton(AF_INET6, text, &sixteen) == 1 {
      bytes = withUnsafeBytes(of: sixteen) { Array($0) }
    } else {
      return nil
    }
  }

  /// The IPv4 address that the system or a gateway makes of it; else itself.
  var destination: IPAddress {
    guard Self.translated.contains(where: { $0.contains(self) }) else { return self }
    return IPAddress(bytes: bytes.suffix(4)) ?? self
  }

  var isPublic: Bool {
    let address = destination
    if address.bytes.count == 4 { return !Self.closed4.contains { $0.contains(address) } }
    return Self.globalUnicast.contains(address) && !Self.closed6.contains { $0.contains(address) }
  }

  private static let closed4: [IPNetwork] = [
    // "This network"; Linux takes 0.0.0.0 for the machine itself.
    IPNetwork(v4: [0], 8),
    IPNetwork(v4: [10], 8),
    // Shared by carriers, used within clouds; 100.100.100.200 gives a machine's credentials.
    IPNetwork(v4: [100, 64], 10),
    IPNetwork(v4: [127], 8),
    // Link-local; 169.254.169.254 gives a machine's credentials.
    IPNetwork(v4: [169, 254], 16),
    // A public number that means the host of a machine in one cloud.
    IPNetwork(v4: [168, 63, 129, 16], 32),
    IPNetwork(v4: [172, 16], 12),
    IPNetwork(v4: [192, 0, 0], 24),
    IPNetwork(v4: [192, 0, 2], 24),
    IPNetwork(v4: [192, 88, 99], 24),
    IPNetwork(v4: [192, 168], 16),
    IPNetwork(v4: [198, 18], 15),
    IPNetwork(v4: [198, 51, 100], 24),
    IPNetwork(v4: [203, 0, 113], 24),
    // Multicast, and all that is reserved, broadcast with it.
    IPNetwork(v4: [224], 3),
  ]

  /// 2000::/3. Outside of it are ::, ::1, unique local (fc00::/7), link-local (fe80::/10), site-local
  /// (fec0::/10), multicast (ff00::/8), discard-only (100::/64), and what is not given out.
  private static let globalUnicast = IPNetwork(v6: [0x20], 3)

  private static let closed6: [IPNetwork] = [
    // Protocol assignments: Teredo (2001::/32), benchmarks (2001:2::/48), ORCHID and others.
    IPNetwork(v6: [0x20, 0x01, 0x00], 23),
    // Documentation.
    IPNetwork(v6: [0x20, 0x01, 0x0d, 0xb8], 32),
    IPNetwork(v6: [0x3f, 0xff, 0x00], 20),
    // 6to4, given up by RFC 7526; carries any IPv4 address.
    IPNetwork(v6: [0x20, 0x02], 16),
  ]

  /// IPv4-mapped (::ffff:0:0/96) and the well-known prefix of NAT64 (64:ff9b::/96).
  private static let translated: [IPNetwork] = [
    IPNetwork(v6: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 96),
    IPNetwork(v6: [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0], 96),
  ]
}

/// Addresses whose first `length` bits are those of `start`.
package struct IPNetwork: Sendable, Equatable {
  private let start: [UInt8]
  private let length: Int

  /// The first bytes of the start; the others are zero.
  fileprivate init(v4 start: [UInt8], _ length: Int) {
    self.start = start + [UInt8](repeating: 0, count: 4 - start.count)
    self.length = length
  }

  fileprivate init(v6 start: [UInt8], _ length: Int) {
    self.start = start + [UInt8](repeating: 0, count: 16 - start.count)
    self.length = length
  }

  /// Such as `10.0.0.0/8`, `fd12::/16`, or one address. nil: it is none of these, or bits are set
  /// beyond the length.
  package init?(_ text: String) {
    let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
    guard let first = parts.first, let address = IPAddress(String(first)) else { return nil }
    let all = address.bytes.count * 8
    var length = all
    if parts.count == 2 {
      guard let given = Int(parts[1]), (0...all).contains(given), parts[1].first != "+" else {
        return nil
      }
      length = given
    }
    for bit in length..<all where address.bytes[bit / 8] & 0x80 >> UInt8(bit % 8) != 0 {
      return nil
    }
    start = address.bytes
    self.length = length
  }

  func contains(_ address: IPAddress) -> Bool {
    let bytes = address.bytes
    let whole = length / 8
    guard bytes.count == start.count, bytes.prefix(whole) == start.prefix(whole) else {
      return false
    }
    let rest = length % 8
    return rest == 0 || bytes[whole] >> (8 - rest) == start[whole] >> (8 - rest)
  }
}
