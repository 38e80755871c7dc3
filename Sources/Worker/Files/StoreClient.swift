import HTTP
import Providers
import Sealing

/// Puts, gets and removes objects of an S3-compatible store.
struct StoreClient: Sendable {
  /// Why it did not work; never with a key or a body.
  struct Problem: Error {
    var message: String
    /// The store has no such object.
    var isMissing = false
    /// The same may work a moment later.
    var isPassing = false
  }

  let pool: TransferPool

  func put(
    _ bytes: [UInt8], to object: StoredObject, credentials: String, within milliseconds: Int
  ) async throws(Problem) {
    _ = try await send("PUT", object, credentials, bytes, milliseconds)
  }

  /// - Parameter bytes: the size that the object must have.
  func get(
    _ object: StoredObject, bytes: Int, credentials: String, within milliseconds: Int
  ) async throws(Problem) -> [UInt8] {
    try await send("GET", object, credentials, [], milliseconds, limit: bytes).body
  }

  /// Without an error also where there is no such object.
  func remove(
    _ object: StoredObject, credentials: String, within milliseconds: Int
  ) async throws(Problem) {
    do throws(Problem) {
      _ = try await send("DELETE", object, credentials, [], milliseconds)
    } catch {
      guard error.isMissing else { throw error }
    }
  }

  private func send(
    _ method: String, _ object: StoredObject, _ credentials: String, _ body: [UInt8],
    _ milliseconds: Int, limit: Int = 0
  ) async throws(Problem) -> WholeResponse {
    var request = HTTPRequest(
      method: method, url: object.url,
      headers: [
        ("content-type", "application/octet-stream"), ("x-amz-content-sha256", hexDigest(body)),
      ],
      body: body)
    request.signature = S3Signature(credentials: credentials, region: object.region)
    request.totalTimeout = max(1, milliseconds)
    // An error tells itself in some hundred bytes.
    request.maxResponseBytes = max(limit, 65_536)
    request.maxHeldBytes = request.maxResponseBytes
    switch await pool.exchange(request) {
    case .failure(let failure):
      throw Problem(
        message: "the store cannot be reached (\(failure.kind.rawValue))",
        isPassing: ![.invalidRequest, .tooLarge, .cancelled].contains(failure.kind))
    case .success(let response) where (200...299).contains(response.status):
      return response
    case .success(let response):
      // <Error><Code>NoSuchBucket</Code>…: of a bucket that is gone nothing is known.
      let isObject = !String(decoding: response.body.prefix(2_000), as: UTF8.self)
        .contains("NoSuchBucket")
      throw Problem(
        message: "the store answered HTTP \(response.status)",
        isMissing: response.status == 404 && isObject,
        isPassing: response.status >= 500 || response.status == 429)
    }
  }
}

/// SHA-256 as 64 hexadecimal digits.
func hexDigest(_ bytes: [UInt8]) -> String {
  var digest = Digest()
  bytes.withUnsafeBytes { digest.update($0) }
  return digest.hex
}
