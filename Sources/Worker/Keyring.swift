import FoundationEssentials
import Logging
import Postgres
import Providers
import Sealing

/// What the calls of one claim need to know that lies sealed in the database.
struct OpenedKeys {
  /// By `secret_ref`.
  var secrets: [Int: Result<SecretBytes, Failure>] = [:]
  /// How each call is to be kept, by the text of its `seal`. A call whose key cannot be had is not among
  /// them, and is made without being kept.
  var capture: [[UInt8]: CaptureOrder] = [:]
}

/// How a call is to be kept.
struct CaptureOrder: Sendable {
  let key: DataKey
  let tenant: String
  /// Request and response; else only what is known of them.
  let withContent: Bool
}

/// Opens the secrets and data keys that claims name, and keeps them while they are in use. Confined to
/// the loop that claims.
final class Keyring {
  private let masters: MasterKeyring
  private let logger: Logger
  private var secrets = BoundedCache<Int, SecretBytes>(limit: 1_024, keep: .seconds(600))
  private var dataKeys = BoundedCache<String, DataKey>(limit: 1_024, keep: .seconds(600))
  private var sweptAt = ContinuousClock.now
  private var hasWarned = false

  private static let ask = """
    select ref, tenant_id, name, sealed, value, data_key_id, wrapped, master_key_id \
    from ai.worker_secret($1, $2)
    """
  private static let askKeys = """
    select data_key_id, tenant_id, wrapped, master_key_id from ai.worker_data_keys($1, $2)
    """
  private static let addKey = """
    select data_key_id, tenant_id, wrapped, master_key_id \
    from ai.worker_add_data_key($1, $2, $3, $4, $5)
    """

  init(masters: MasterKeyring, logger: Logger) {
    self.masters = masters
    self.logger = logger
  }

  /// Opens what the rows of a claim name; one statement for all secrets that are new. Costs nothing
  /// where they name none.
  func open(_ rows: QueryResult, _ worker: String, _ link: Link) async throws(PostgresError)
    -> OpenedKeys
  {
    var refs: Set<Int> = []
    var orders: Set<[UInt8]> = []
    for row in 0..<rows.count {
      if let ref = rows.int(row, 15) { refs.insert(ref) }
      if let order = rows.bytes(row, 18) { orders.insert(order) }
    }
    let now = ContinuousClock.now
    if now - sweptAt > .seconds(60) {
      secrets.sweep(at: now)
      dataKeys.sweep(at: now)
      sweptAt = now
    }
    var opened = OpenedKeys()
    if !refs.isEmpty { opened.secrets = try await open(secrets: refs, worker, link) }
    if !orders.isEmpty { opened.capture = try await open(orders, worker, link) }
    return opened
  }

  // MARK: Secrets

  /// One secret by its reference, for what is not part of a claim; nil: it was removed.
  func secret(
    _ ref: Int, _ worker: String, _ link: Link
  ) async throws(PostgresError) -> Result<SecretBytes, Failure>? {
    try await open(secrets: [ref], worker, link)[ref]
  }

  /// Opens secrets by their references.
  func open(
    secrets refs: Set<Int>, _ worker: String, _ link: Link
  ) async throws(PostgresError) -> [Int: Result<SecretBytes, Failure>] {
    var found: [Int: Result<SecretBytes, Failure>] = [:]
    var missing: [Int] = []
    let now = ContinuousClock.now
    for ref in refs {
      if let value = secrets.value(ref, at: now) {
        found[ref] = .success(value)
      } else {
        missing.append(ref)
      }
    }
    guard !missing.isEmpty else { return found }
    // All at once; where the database cannot give all, each by itself: one that a vault cannot open is
    // of no concern to others.
    var groups = [missing]
    while let group = groups.popLast() {
      let list = "{" + group.map { String($0) }.joined(separator: ",") + "}"
      do throws(PostgresError) {
        let rows = try await link.query(Self.ask, [worker, list])
        for row in 0..<rows.count {
          guard let ref = rows.int(row, 0) else { continue }
          let value = Result { () throws(Failure) in try secret(rows, row) }
          if case .success(let value) = value { secrets.insert(value, for: ref, at: now) }
          found[ref] = value
        }
      } catch {
        let state = error.sqlState ?? ""
        guard error.kind == .server, !error.isOutside, state != "PT404" else { throw error }
        if group.count == 1 {
          found[group[0]] = .failure(
            Self.failure("sealed_secret", "the database cannot open the secret: \(state)"))
        } else {
          groups = group.map { [$0] }
        }
      }
    }
    return found
  }

  private func secret(_ rows: QueryResult, _ row: Int) throws(Failure) -> SecretBytes {
    let name = rows[row, 2] ?? ""
    if var value = rows.bytes(row, 4) { return SecretBytes(taking: &value) }
    guard let sealed = rows.bytea(row, 3) else {
      throw Self.failure("sealed_secret", "the secret \(name) has no value")
    }
    let key = try dataKey(rows, row, columns: (id: 5, tenant: 1, wrapped: 6, master: 7), of: name)
    do {
      return try Sealing.open(
        sealed, with: key.bytes, for: .secret(tenant: rows[row, 1], name: name))
    } catch {
      throw Self.failure("sealed_secret", "the secret \(name) does not open with its key")
    }
  }

  private static func failure(_ code: String, _ message: String) -> Failure {
    var failure = Failure(.unsendable, message: message)
    failure.code = code
    return failure
  }

  // MARK: Data keys

  /// - Parameter name: of what is to be opened, for people.
  private func dataKey(
    _ rows: QueryResult, _ row: Int, columns: (id: Int, tenant: Int, wrapped: Int, master: Int),
    of name: String
  ) throws(Failure) -> DataKey {
    let id = rows[row, columns.id] ?? ""
    if let known = dataKeys.value(id, at: .now) { return known }
    guard let wrapped = rows.bytea(row, columns.wrapped), let masterID = rows[row, columns.master]
    else {
      throw Self.failure("sealed_secret", "the data key of \(name) was destroyed")
    }
    guard let master = masters.key(masterID) else {
      throw Self.failure(
        "no_master_key",
        masters.isEmpty
          ? "\(name) is sealed, and this worker has no master key: MARTLET_MASTER_KEY_FILE"
          : "\(name) is sealed under the master key \(masterID), which this worker does not have")
    }
    do {
      let key = try DataKey(
        id: id, tenant: rows[row, columns.tenant], wrapped: wrapped, with: master)
      dataKeys.insert(key, for: id, at: .now)
      return key
    } catch {
      throw Self.failure(
        "sealed_secret", "the data key of \(name) does not open with the master key \(masterID)")
    }
  }

  // MARK: Capture

  private struct Seal: Decodable {
    let mode: String
    let tenant: String
    let key: String?
  }

  private func open(
    _ orders: Set<[UInt8]>, _ worker: String, _ link: Link
  ) async throws(PostgresError) -> [[UInt8]: CaptureOrder] {
    var seals: [[UInt8]: Seal] = [:]
    for order in orders {
      seals[order] = try? JSONDecoder().decode(Seal.self, from: Data(order))
    }
    try await fetch(
      seals.values.compactMap(\.key).filter { dataKeys.value($0, at: .now) == nil }, worker, link)
    var found: [[UInt8]: CaptureOrder] = [:]
    var made: [String: DataKey] = [:]
    for (order, seal) in seals {
      var key = seal.key.flatMap { dataKeys.value($0, at: .now) } ?? made[seal.tenant]
      if key == nil && seal.key == nil {
        key = try await newKey(of: seal.tenant, worker, link)
        made[seal.tenant] = key
      }
      guard let key, key.tenant == seal.tenant else { continue }
      found[order] = CaptureOrder(
        key: key, tenant: seal.tenant, withContent: seal.mode == "content")
    }
    return found
  }

  private func fetch(
    _ ids: [String], _ worker: String, _ link: Link
  ) async throws(PostgresError) {
    guard !ids.isEmpty else { return }
    let list = "{" + ids.joined(separator: ",") + "}"
    let rows = try await link.query(Self.askKeys, [worker, list])
    for row in 0..<rows.count {
      do {
        _ = try dataKey(
          rows, row, columns: (id: 0, tenant: 1, wrapped: 2, master: 3), of: "a tenant's key")
      } catch {
        warn(error.message)
      }
    }
  }

  /// The first key of a tenant: of several workers that make one the first counts.
  private func newKey(
    of tenant: String, _ worker: String, _ link: Link
  ) async throws(PostgresError) -> DataKey? {
    guard let master = masters.current() else {
      warn("there is no master key: MARTLET_MASTER_KEY_FILE")
      return nil
    }
    let key = DataKey(newID: UUID().uuidString.lowercased(), tenant: tenant)
    guard let wrapped = try? key.wrapped(with: master) else { return nil }
    let rows = try await link.query(
      Self.addKey, [worker, key.id, tenant, hexadecimal(wrapped), master.id])
    guard rows.count == 1 else { return nil }
    do {
      return try dataKey(
        rows, 0, columns: (id: 0, tenant: 1, wrapped: 2, master: 3), of: "a tenant's key")
    } catch {
      warn(error.message)
      return nil
    }
  }

  /// Once: every call that is not kept says so in ai.llm_calls.
  private func warn(_ reason: String) {
    guard !hasWarned else { return }
    hasWarned = true
    logger.warning(
      "calls that are to be kept sealed are made without it: llm_calls.capture is lost",
      metadata: ["reason": "\(reason)"])
  }
}
