import Providers
import Sealing

/// What is kept of a call, sealed.
struct SealedCall: Sendable, Equatable {
  /// Id of the data key.
  let key: String
  let facts: [UInt8]
  let request: [UInt8]?
  let response: [UInt8]?

  /// Bytes of it in a report.
  var size: Int { (facts.count + (request?.count ?? 0) + (response?.count ?? 0)) * 4 / 3 }
}

/// Gathers what is to be kept of one call, and seals it at the end. Headers are never part of it, and
/// where a body quotes what authenticates at the provider the quotation is taken out.
struct Capture: Sendable {
  /// Of each body as much is kept; of the rest the size and the hash.
  static let largestBody = 1 << 20

  private let order: CaptureOrder
  private let fence: Fence
  /// Of eight bytes and more: short ones would be found everywhere.
  private let secrets: [[UInt8]]
  private let request: [UInt8]
  private var response: [UInt8] = []
  private var responseBytes = 0
  private var digest = Digest()
  private var exchanges = 1
  /// What had been received when the present response began.
  private var mark: Mark?

  private struct Mark: Sendable {
    var kept: Int
    var bytes: Int
    var digest: Digest
  }

  /// - Parameters:
  ///   - request: the body, as it is sent.
  ///   - secrets: what authenticates at the provider; of two that begin alike the longer one first.
  init(_ order: CaptureOrder, fence: Fence, request: [UInt8], secrets: [String]) {
    self.order = order
    self.fence = fence
    self.request = request
    self.secrets = secrets.map { Array($0.utf8) }.filter { $0.count >= 8 }
  }

  /// Memory that it holds for the response.
  var heldBytes: Int { response.count }

  /// Takes a piece of the response's body.
  mutating func received(_ bytes: UnsafeRawBufferPointer) {
    responseBytes += bytes.count
    digest.update(bytes)
    guard order.withContent else { return }
    // A little more than is kept, so that a key on the border is found.
    let room = Self.largestBody + (secrets.lazy.map(\.count).max() ?? 0) - response.count
    if room > 0 { response.append(contentsOf: bytes.prefix(room)) }
  }

  /// Another response begins, of the same call.
  ///
  /// - Parameter superseding: it takes the place of the last one, which only said "not yet". The first stays.
  mutating func goesOn(superseding: Bool) {
    exchanges += 1
    if superseding, let mark {
      response.removeLast(response.count - mark.kept)
      responseBytes = mark.bytes
      digest = mark.digest
    }
    mark = Mark(kept: response.count, bytes: responseBytes, digest: digest)
  }

  /// nil: it could not be sealed.
  func seal(status: Int?) -> SealedCall? {
    let facts = Array(factsJSON(status).utf8)
    func sealed(_ plain: [UInt8], _ part: SealedContext.Part) throws(SealingError) -> [UInt8] {
      try Sealing.seal(
        plain, with: order.key.bytes,
        for: .call(
          tenant: order.tenant, generation: fence.description, attempt: fence.attempt, part: part))
    }
    do throws(SealingError) {
      return SealedCall(
        key: order.key.id, facts: try sealed(facts, .facts),
        request: order.withContent ? try sealed(kept(request), .request) : nil,
        response: order.withContent ? try sealed(kept(response), .response) : nil)
    } catch {
      return nil
    }
  }

  private func factsJSON(_ status: Int?) -> String {
    var whole = Digest()
    request.withUnsafeBytes { whole.update($0) }
    var json = JSONBuffer(reserving: 512)
    json.beginObject()
    json.member("http_status", status)
    json.member("request_bytes", request.count)
    json.member("request_sha256", whole.hex)
    json.member("response_bytes", responseBytes)
    json.member("response_sha256", digest.hex)
    if exchanges > 1 { json.member("exchanges", exchanges) }
    if order.withContent {
      json.member("request_truncated", request.count > Self.largestBody)
      json.member("response_truncated", responseBytes > Self.largestBody)
    }
    json.endObject()
    return json.text
  }

  private func kept(_ body: [UInt8]) -> [UInt8] {
    let end = min(body.count, Self.largestBody)
    var kept: [UInt8] = []
    var start = 0
    var index = 0
    while index < end {
      let byte = body[index]
      guard let secret = secrets.first(where: { $0[0] == byte && body[index...].starts(with: $0) })
      else {
        index += 1
        continue
      }
      kept.append(contentsOf: body[start..<index])
      kept.append(contentsOf: Array("[key]".utf8))
      index += secret.count
      start = index
    }
    // Nothing from behind the border comes in for what was taken out.
    kept.append(contentsOf: body[start..<max(start, end)])
    return kept
  }
}
