import HTTP
import Providers

/// Fetches files from addresses that a tenant or a provider wrote.
///
/// Only from the public internet: whoever writes an address must not reach what the worker reaches. The one
/// exception is a provider that hands out its own files: what has the origin of the provider's base URL may be
/// where the provider itself may be. The rule holds for each redirect. No key goes along.
struct Download: Sendable {
  struct Problem: Error {
    var message: String
    var isForbidden = false
  }

  let pool: TransferPool
  /// Bytes that a file may have.
  var limit = 64 << 20

  private static let mostRedirects = 3

  /// - Parameters:
  ///   - provider: base URL of the provider whose answer names the address; nil: a tenant wrote it.
  ///   - publicOnly: whether that provider itself must be in the public internet.
  func file(
    at address: String, provider: String?, publicOnly: Bool, within milliseconds: Int
  ) async throws(Problem) -> FileContent {
    let deadline = ContinuousClock.now + .milliseconds(max(1, milliseconds))
    var address = address
    for _ in 0...Self.mostRedirects {
      var request = HTTPRequest(method: "GET", url: address, headers: [("accept", "*/*")])
      let isProviders =
        provider.flatMap(Self.origin) != nil
        && provider.flatMap(Self.origin) == Self.origin(address)
      request.publicOnly = isProviders ? publicOnly : true
      request.totalTimeout = max(1, Int((deadline - .now) / .milliseconds(1)))
      request.maxResponseBytes = limit
      request.maxHeldBytes = limit
      switch await pool.exchange(request) {
      case .failure(let failure) where failure.kind == .forbidden:
        throw Problem(
          message: "the address of a file does not lead to the public internet", isForbidden: true)
      case .failure(let failure) where failure.kind == .tooLarge:
        throw Problem(message: "a file exceeds \(limit) bytes", isForbidden: true)
      case .failure(let failure):
        throw Problem(message: "a file could not be fetched (\(failure.kind.rawValue))")
      case .success(let response) where [301, 302, 303, 307, 308].contains(response.status):
        guard let next = response.headers["location"].flatMap({ Self.joined(address, $0) }) else {
          throw Problem(message: "a file's address leads nowhere")
        }
        address = next
      case .success(let response) where response.status == 200:
        let said = (response.headers["content-type"] ?? "").lowercased().prefix { $0 != ";" }
        let type = said.contains("/") ? String(said) : "application/octet-stream"
        return FileContent(mediaType: type, bytes: response.body)
      case .success(let response):
        throw Problem(message: "the address of a file answered HTTP \(response.status)")
      }
    }
    throw Problem(message: "a file's address leads from one to another")
  }

  /// Scheme and authority in small letters; nil for anything but http and https, and where there is a user name, which
  /// could look like a host.
  static func origin(_ address: String) -> String? {
    let lower = address.lowercased()
    guard let scheme = ["https://", "http://"].first(where: { lower.hasPrefix($0) }) else {
      return nil
    }
    let authority = lower.dropFirst(scheme.count).prefix { !"/?#\\".contains($0) }
    guard !authority.isEmpty, !authority.contains("@") else { return nil }
    let usual = scheme == "https://" ? ":443" : ":80"
    return scheme + (authority.hasSuffix(usual) ? authority.dropLast(usual.count) : authority)
  }

  /// Where a redirect leads: an address, or a path on the same host.
  static func joined(_ address: String, _ location: String) -> String? {
    if origin(location) != nil { return location }
    guard location.hasPrefix("/"), let origin = origin(address) else { return nil }
    return location.hasPrefix("//")
      ? String(origin.prefix { $0 != "/" }) + location : origin + location
  }
}
