import FoundationEssentials
import Postgres
import Providers
import Sealing

/// One step of a provider batch, as `ai.worker_batch_steps()` gave it.
struct BatchStep: Sendable {
  static let columns = """
    batch_id, step, action, dialect, base_url, secret, headers, options, model, kind, details, \
    timeout_ms, secret_ref, tenant_only, public_only, wait_ms
    """
  static let secretColumn = 12
  static let waitColumn = 15

  /// Of the worker that took it.
  let worker: String
  let batch: String
  let number: Int
  /// nil: one that this worker does not know.
  let action: BatchAction?
  let dialect: String
  let baseURL: String
  let secretName: String?
  let headers: [UInt8]
  let options: [UInt8]
  let model: String
  let kind: CallKind?
  let details: Details
  let timeout: Int
  let secretRef: Int?
  let tenantOnly: Bool
  let publicOnly: Bool

  struct Details: Decodable, Sendable {
    var externalID: String?
    var fileID: String?
    var outputID: String?
    var errorsID: String?
    var requests: Int?
    var since: Int?

    enum CodingKeys: String, CodingKey {
      case externalID = "external_id"
      case fileID = "file_id"
      case outputID = "output_id"
      case errorsID = "errors_id"
      case requests, since
    }
  }

  /// nil: the row is the header.
  init?(_ rows: QueryResult, _ row: Int, worker: String) {
    guard let batch = rows[row, 0], let number = rows.int(row, 1) else { return nil }
    self.worker = worker
    self.batch = batch
    self.number = number
    action = rows[row, 2].flatMap(BatchAction.init(rawValue:))
    dialect = rows[row, 3] ?? ""
    baseURL = rows[row, 4] ?? ""
    secretName = rows[row, 5]
    headers = rows.bytes(row, 6) ?? Array("{}".utf8)
    options = rows.bytes(row, 7) ?? Array("{}".utf8)
    model = rows[row, 8] ?? ""
    kind = rows[row, 9].flatMap(CallKind.init(rawValue:))
    details =
      (try? JSONDecoder().decode(Details.self, from: Data(rows.bytes(row, 10) ?? []))) ?? Details()
    timeout = max(1, rows.int(row, 11) ?? 60_000)
    secretRef = rows.int(row, Self.secretColumn)
    tenantOnly = rows.bool(row, 13) ?? true
    publicOnly = rows.bool(row, 14) ?? true
  }

  /// The key: what the database has of it, else, of a provider that all tenants share, what this process has.
  func secret(
    _ opened: [Int: Result<SecretBytes, Failure>], _ secrets: Secrets
  ) -> Result<String?, Failure> {
    guard let secretName else { return .success(nil) }
    if let secretRef, let found = opened[secretRef] { return found.map { $0.text } }
    if secretRef != nil || tenantOnly {
      var failure = Failure(.unsendable, message: "the tenant has no secret of that name")
      failure.code = "no_secret"
      return .failure(failure)
    }
    return Result { () throws(Failure) in try secrets.value(of: secretName) }
  }

  /// What a dialect needs to know of it.
  func order(secret: String?) throws(Failure) -> BatchOrder {
    guard let action, let kind else {
      throw Failure(.unsendable, message: "this worker does not know such a step of a batch")
    }
    guard let headers = try? JSONDecoder().decode([String: String].self, from: Data(headers))
    else {
      throw Failure(
        .unsendable, message: "the provider's headers are not an object of strings")
    }
    var order = BatchOrder(
      action: action,
      call: Call(
        kind: kind, dialect: dialect, baseURL: baseURL, secret: secret, headers: headers,
        model: model, stream: false, request: Array("{}".utf8), options: options),
      name: batch)
    order.externalID = details.externalID
    order.fileID = details.fileID
    order.outputID = details.outputID
    order.errorsID = details.errorsID
    order.requests = details.requests ?? 0
    order.since = details.since ?? 0
    return order
  }
}
