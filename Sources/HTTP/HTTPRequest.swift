/// What a request to an S3-compatible store is signed with.
package struct S3Signature: Sendable {
  /// Access key id, a colon, secret access key.
  package var credentials: String
  /// Such as `eu-central-1`.
  package var region: String

  package init(credentials: String, region: String) {
    self.credentials = credentials
    self.region = region
  }
}

/// One HTTP request with the limits it runs under.
package struct HTTPRequest: Sendable {
  /// An HTTP token, upper case by convention.
  package var method: String
  /// Absolute, `http` or `https`.
  package var url: String
  /// Sent in this order. A name or value with a control character makes the request invalid:
  /// nothing is sent then.
  package var headers: [(name: String, value: String)]
  package var body: [UInt8]

  /// Time to wait before anything is done, in milliseconds; nothing but memory is held meanwhile. It counts
  /// against `firstAnswerTimeout` and `totalTimeout`.
  package var delay = 0
  /// From the start of the name lookup to the end of the TLS handshake, in milliseconds.
  package var connectTimeout = 5_000
  /// The longest pause without a byte in either direction, in milliseconds; 0: none. It also counts while waiting
  /// for the first byte. A pause of this thread is none: what came meanwhile is read first.
  package var stallTimeout = 60_000
  /// From `start` until the sink's `hasBegun`, in milliseconds; 0: no limit.
  package var firstAnswerTimeout = 0
  /// The whole transfer, in milliseconds; 0: no limit.
  package var totalTimeout = 600_000
  /// Largest body in bytes.
  package var maxResponseBytes = 64 << 20
  /// What the sink may hold of the answer, in bytes.
  package var maxHeldBytes = 64 << 20
  /// Largest head in bytes: status line and headers, 1xx heads and trailers included.
  package var maxHeaderBytes = 256 << 10
  /// Most fields of one head.
  package var maxHeaderFields = 512
  /// Connects to addresses of the public internet only, without a proxy; for addresses that a tenant
  /// wrote. What counts is the address that is connected to, whatever name or spelling leads there,
  /// at the time of the connection and again when a kept connection is used. Where it is not public
  /// the failure is `forbidden`, and nothing was sent.
  package var publicOnly = false

  /// Signed by libcurl as AWS Signature Version 4 for S3; the header `x-amz-content-sha256` must be among
  /// `headers`, and no header may be without a value.
  package var signature: S3Signature?

  package init(
    method: String = "POST", url: String, headers: [(name: String, value: String)] = [],
    body: [UInt8] = []
  ) {
    self.method = method
    self.url = url
    self.headers = headers
    self.body = body
  }

  /// Says what makes the request unsendable, without quoting a header's value; nil: nothing.
  /// This is the defence against header injection and against addresses that are no addresses.
  var problem: String? {
    guard !method.isEmpty, method.utf8.allSatisfy(Self.isToken) else {
      return "the method is not an HTTP token"
    }
    let lower = url.prefix(8).lowercased()
    guard lower.hasPrefix("http://") || lower.hasPrefix("https://") else {
      return "the address is neither http nor https"
    }
    guard url.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7f }) else {
      return "the address contains a space or a control character"
    }
    for header in headers {
      guard !header.name.isEmpty, header.name.utf8.allSatisfy(Self.isToken) else {
        return "a header's name is not an HTTP token"
      }
      guard header.value.utf8.allSatisfy({ ($0 >= 0x20 && $0 != 0x7f) || $0 == 0x09 }) else {
        return "the value of header \(header.name) contains a control character"
      }
    }
    return nil
  }

  /// RFC 9110 §5.6.2.
  private static func isToken(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "a")...UInt8(ascii: "z"):
      true
    case UInt8(ascii: "!"), UInt8(ascii: "#"), UInt8(ascii: "$"), UInt8(ascii: "%"),
      UInt8(ascii: "&"), UInt8(ascii: "'"), UInt8(ascii: "*"), UInt8(ascii: "+"),
      UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "^"), UInt8(ascii: "_"),
      UInt8(ascii: "`"), UInt8(ascii: "|"), UInt8(ascii: "~"):
      true
    default:
      false
    }
  }
}
