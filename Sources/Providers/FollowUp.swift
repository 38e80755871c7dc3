/// A further request within one call: what the last response did not hold is to be had by it. A job is
/// asked how far it is, a stream is opened that the provider named, or taken up where it broke off.
///
/// It has no place for a secret. `request(after:base:)` gives it the headers of the first request where it
/// goes to the same server, and nothing of them where it does not.
package struct FollowUp: Sendable {
  package enum Target: Sendable, Equatable {
    /// Behind the base URL of the provider's row; begins with `/`.
    case path(String)
    /// Whole, as the provider wrote it.
    case url(String)
  }

  package var method = "GET"
  package var target: Target
  /// The dialect's own, such as `accept`; they replace those of the first request.
  package var headers: [(name: String, value: String)] = []
  package var body: [UInt8] = []
  /// Milliseconds to wait before it is sent.
  package var delay = 0
  /// What comes now takes the place of the last response, which said nothing but "not yet".
  package var supersedes = false

  package init(_ target: Target) { self.target = target }
}

extension FollowUp {
  /// Headers of a first request that are about that request.
  private static let ofOneRequest: Set<String> = [
    "accept", "content-type", "content-length", "prefer", "cancel-after",
  ]

  /// The request as it is sent; `isElsewhere`: to another server than the provider's own. nil: an address
  /// that is none, or one without TLS where the provider has it.
  ///
  /// - Parameters:
  ///   - first: the call's first request, as the dialect wrote it.
  ///   - base: the base URL of the provider's row.
  package func request(
    after first: ProviderRequest, base: String
  ) -> (request: ProviderRequest, isElsewhere: Bool)? {
    let url: String
    let isElsewhere: Bool
    switch target {
    case .path(let path):
      guard path.utf8.first == UInt8(ascii: "/"), Origin.isSafe(path) else { return nil }
      var trimmed = Substring(base)
      while trimmed.hasSuffix("/") { trimmed.removeLast() }
      url = trimmed + path
      isElsewhere = false
    case .url(let whole):
      guard let origin = Origin(whole) else { return nil }
      let home = Origin(base)
      isElsewhere = origin != home
      if isElsewhere, !origin.isSecure, home?.isSecure != false { return nil }
      url = whole
    }
    var request = ProviderRequest(url: url, headers: headers, body: body)
    request.method = method
    if !isElsewhere {
      let own = Set(headers.map { $0.name.lowercased() }).union(Self.ofOneRequest)
      request.headers += first.headers.filter { !own.contains($0.name.lowercased()) }
    }
    return (request, isElsewhere)
  }
}

/// Scheme, host and port of a URL. Takes only what all parsers of URLs read alike: what one takes for a
/// host and another for a user's name would carry a key to a stranger.
package struct Origin: Sendable, Equatable {
  package let isSecure: Bool
  /// Lower case; with brackets around an IPv6 address.
  package let host: String
  package let port: Int

  package init?(_ url: String) {
    guard url.utf8.count <= 8_192, Self.isSafe(url) else { return nil }
    let rest: Substring
    if url.lowercased().hasPrefix("https://") {
      isSecure = true
      rest = url.dropFirst(8)
    } else if url.lowercased().hasPrefix("http://") {
      isSecure = false
      rest = url.dropFirst(7)
    } else {
      return nil
    }
    let authority = rest.prefix { $0 != "/" && $0 != "?" && $0 != "#" }.lowercased()
    var name = authority[...]
    var digits: Substring?
    if authority.hasPrefix("["), let end = authority.firstIndex(of: "]") {
      let after = authority.index(after: end)
      name = authority[..<after]
      let tail = authority[after...]
      if !tail.isEmpty {
        guard tail.first == ":" else { return nil }
        digits = tail.dropFirst()
      }
      guard name.dropFirst().dropLast().utf8.allSatisfy(Self.isOfAddress) else { return nil }
    } else {
      if let colon = authority.firstIndex(of: ":") {
        name = authority[..<colon]
        digits = authority[authority.index(after: colon)...]
      }
      guard !name.isEmpty, name.utf8.allSatisfy(Self.isOfName) else { return nil }
    }
    host = String(name)
    guard let digits else {
      port = isSecure ? 443 : 80
      return
    }
    guard (1...5).contains(digits.utf8.count),
      digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let number = Int(digits),
      (1...65_535).contains(number)
    else { return nil }
    port = number
  }

  /// Visible ASCII but for what some parsers read as a slash.
  static func isSafe(_ text: String) -> Bool {
    text.utf8.allSatisfy { (0x21...0x7E).contains($0) && $0 != UInt8(ascii: "\\") }
  }

  private static func isOfName(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x61...0x7A, UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"): true
    default: false
    }
  }

  private static func isOfAddress(_ byte: UInt8) -> Bool {
    switch byte {
    case 0x30...0x39, 0x61...0x66, UInt8(ascii: ":"), UInt8(ascii: "."): true
    default: false
    }
  }
}

/// How often a job is asked for. The option `poll_ms` is the first pause (`normal` by default),
/// `poll_max_ms` the longest (5,000); each is half as long again as the one before. Both in milliseconds.
package struct PollPauses: Sendable, Equatable {
  /// Answers in a row that say nothing of the job, before it is given up.
  package static let patience = 8

  private var pause: Int
  private let longest: Int
  private var troubles = 0

  package init(options: JSON?, normal: Int) {
    pause = min(max(options?["poll_ms"]?.int ?? normal, 10), 3_600_000)
    longest = min(max(options?["poll_max_ms"]?.int ?? 5_000, pause), 3_600_000)
  }

  /// Before the job is asked for again, which was not done yet. `hint`: what the provider asks for.
  package mutating func next(hint: Int? = nil) -> Int {
    troubles = 0
    defer { pause = min(pause + pause / 2, longest) }
    return max(pause, hint ?? 0)
  }

  /// Something of the answer came.
  package mutating func goesOn() { troubles = 0 }

  /// Before it is asked for again, where nothing could be learnt of it; nil: no more.
  package mutating func afterTrouble(hint: Int? = nil) -> Int? {
    troubles += 1
    guard troubles <= Self.patience else { return nil }
    return max(min(500 << (troubles - 1), 30_000), hint ?? 0)
  }
}
