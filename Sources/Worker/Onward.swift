import HTTP
import Providers

/// What sends requests: the pool, or a test's stand-in.
protocol Transport: Sendable {
  @discardableResult
  func start(_ request: HTTPRequest, sink: any TransferSink) -> TransferID
  func cancel(_ id: TransferID)
}

extension TransferPool: Transport {}

/// How an attempt sends what follows its first request.
struct Onward: Sendable {
  /// Requests of one attempt. A day of polling every five seconds stays below it.
  static let mostExchanges = 20_000
  /// Bytes of the bodies of all responses to one attempt.
  static let mostBytes = 256 << 20
  /// Follow-ups that need not wait; later ones wait for `shortestPause` at least, whatever a provider says.
  private static let promptExchanges = 8
  private static let shortestPause = 100

  let transport: any Transport
  /// As the dialect wrote it, without its body.
  let first: ProviderRequest
  /// The base URL of the provider's row.
  let base: String
  /// The limits of the first request; its method, address, headers and body do not count.
  let limits: HTTPRequest

  /// Whether the call's time is not over.
  ///
  /// - Parameter elapsed: milliseconds since the attempt began.
  func hasTime(after elapsed: Int) -> Bool {
    limits.totalTimeout <= 0 || elapsed < limits.totalTimeout
  }

  /// The next request of an attempt.
  ///
  /// - Parameters:
  ///   - exchange: its number; the first request has 1.
  ///   - elapsed: milliseconds since the attempt began.
  ///   - received: bytes of bodies so far.
  /// - Returns: nil where its address must not be called.
  func request(
    _ next: FollowUp, exchange: Int, elapsed: Int, received: Int
  ) -> HTTPRequest? {
    guard var request = plain(next) else { return nil }
    request.stallTimeout = limits.stallTimeout
    request.maxHeldBytes = limits.maxHeldBytes
    request.maxResponseBytes = max(0, min(limits.maxResponseBytes, Self.mostBytes - received))
    let pause = exchange > Self.promptExchanges ? Self.shortestPause : 0
    request.delay = max(next.delay, pause)
    if limits.totalTimeout > 0 {
      let left = max(1, limits.totalTimeout - elapsed)
      request.totalTimeout = left
      // A pause beyond the end would miss an answer that is there in time.
      if request.delay >= left, left > 2_000 { request.delay = left - 1_000 }
    } else {
      request.totalTimeout = 0
    }
    if limits.firstAnswerTimeout > 0 {
      request.firstAnswerTimeout = max(1, limits.firstAnswerTimeout - elapsed)
    }
    return request
  }

  /// Sends a farewell and forgets about it. The worker waits for it a moment before it ends.
  func say(_ farewell: FollowUp, _ desk: Desk) {
    guard var request = plain(farewell) else { return }
    request.totalTimeout = 10_000
    request.maxResponseBytes = 1 << 20
    desk.farewellBegins()
    transport.start(request, sink: Farewell(desk))
  }

  /// The request with its address and headers. To another server than the provider's own nothing goes but
  /// what anybody may know, and only to a public address: where it leads, the provider said, not the operator.
  private func plain(_ next: FollowUp) -> HTTPRequest? {
    guard let (request, isElsewhere) = next.request(after: first, base: base) else { return nil }
    var plain = HTTPRequest(
      method: request.method, url: request.url, headers: request.headers, body: request.body)
    plain.connectTimeout = limits.connectTimeout
    plain.publicOnly = limits.publicOnly || isElsewhere
    return plain
  }
}

/// Nobody waits for what is said to a farewell.
private final class Farewell: TransferSink {
  private let desk: Desk
  let hasBegun = true

  init(_ desk: Desk) { self.desk = desk }

  func head(status: Int, headers: [String: String]) {}
  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict { .more }
  func finished(_ outcome: TransferOutcome) { desk.farewellEnded() }
}
