import HTTP
import Logging
import Postgres
import Providers
import Sealing

/// One of the porter's carriers: has a connection of its own, and does one thing after the other.
final class Carrier {
  let porter: Porter
  let link: Link
  let keyring: Keyring
  let store: StoreClient

  /// Of a file in the database; docs/worker-protocol.md.
  static let partBytes = 2 << 20

  init(_ porter: Porter, purpose: String) {
    self.porter = porter
    link = Link(porter.setup, desk: porter.desk, purpose: purpose)
    keyring = Keyring(masters: porter.setup.masters, logger: porter.setup.logger)
    store = StoreClient(pool: porter.pool)
  }

  func close() async { await link.close() }

  var worker: String { porter.desk.identity.worker }
  var logger: Logger { porter.setup.logger }

  /// What a store is addressed with; throws why there is none.
  func credentials(
    for object: StoredObject
  ) async throws(StoreClient.Problem) -> String {
    var sealed: Result<SecretBytes, Failure>?
    if let ref = object.secretRef {
      do throws(PostgresError) {
        sealed = try await keyring.secret(ref, worker, link)
      } catch {
        throw StoreClient.Problem(
          message: "the database cannot be asked for the secret of the store", isPassing: true)
      }
    }
    do throws(Failure) {
      if let sealed { return try sealed.get().text }
      return try porter.secrets.value(of: object.secret)
    } catch {
      throw StoreClient.Problem(message: error.message)
    }
  }
}

// MARK: - Into requests

extension Carrier {
  private static let tries = 3
  /// A file, its text in the request, the request's body, libcurl's copy of that, and what is made on the way.
  private static let copies = 6

  func fetch(_ fetch: Porter.Fetch) async {
    let bytes = fetch.files.reduce(0) { $0 + $1.bytes } * Self.copies
    while !porter.desk.files.take(bytes) {
      guard isWanted(fetch), !Task.isCancelled else {
        return fetch.then(.failure(Self.timeout), 0)
      }
      try? await Task.sleep(for: .milliseconds(50))
    }
    var contents: [String: FileContent] = [:]
    for file in fetch.files {
      guard isWanted(fetch) else { return give(.failure(Self.timeout)) }
      do throws(Failure) {
        contents[file.key] = try await content(of: file, until: fetch.deadline)
      } catch {
        return give(.failure(error))
      }
    }
    give(.success(contents))

    func give(_ result: Result<[String: FileContent], Failure>) {
      if case .success = result { return fetch.then(result, bytes) }
      porter.desk.files.giveBack(bytes)
      fetch.then(result, 0)
    }
  }

  private func isWanted(_ fetch: Porter.Fetch) -> Bool {
    fetch.deadline > .now && porter.desk.holds(fetch.fence)
      && porter.desk.ending(of: fetch.fence) == nil
  }

  private static let timeout = Failure(
    .connect, message: "the files of the request were not fetched in time")

  private func content(
    of file: RequestFile, until deadline: ContinuousClock.Instant
  ) async throws(Failure) -> FileContent {
    func left() -> Int { max(1, Int((deadline - .now) / .milliseconds(1))) }
    switch file.source {
    case .gone:
      throw unsendable("artifact_gone", "there is no artifact \(file.key) any more")
    case .url(let address):
      do throws(Download.Problem) {
        return try await Download(pool: porter.pool, limit: max(1, file.bytes)).file(
          at: address, provider: nil, publicOnly: true, within: left())
      } catch {
        throw unsendable(error.isForbidden ? "private_address" : "file_unreachable", error.message)
      }
    case .object(let object):
      return try await checked(file, of: object, until: deadline)
    case .parts:
      switch try await parts(of: file, until: deadline) {
      case .bytes(let bytes): return try checked(file, bytes)
      case .moved(let object): return try await checked(file, of: object, until: deadline)
      case .gone: throw unsendable("artifact_gone", "there is no artifact \(file.key) any more")
      }
    }
  }

  private func parts(
    of file: RequestFile, until deadline: ContinuousClock.Instant
  ) async throws(Failure) -> Parts {
    var failures = 0
    while true {
      do throws(PostgresError) {
        return try await parts(of: file)
      } catch {
        failures += 1
        guard deadline > .now, error.kind == .connection || failures < Self.tries,
          !Task.isCancelled
        else {
          throw Failure(.connect, message: "the database did not give a file")
        }
        await link.rest(after: error, "fetching a file")
      }
    }
  }

  private enum Parts {
    case bytes([UInt8])
    case moved(StoredObject)
    case gone
  }

  private func parts(of file: RequestFile) async throws(PostgresError) -> Parts {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(file.bytes)
    var n = 0
    while bytes.count < file.bytes {
      let rows = try await link.query(
        "select content, object from ai.worker_part($1, $2, $3, $4)",
        [worker, file.tenant, file.key, String(n)])
      guard rows.count == 1 else { return .gone }
      if let part = rows.bytea(0, 0) {
        bytes += part
      } else if let object = rows.bytes(0, 1).flatMap({ StoredObject($0) }) {
        return .moved(object)
      } else {
        return .gone
      }
      n += 1
    }
    return .bytes(bytes)
  }

  private func checked(
    _ file: RequestFile, of object: StoredObject, until deadline: ContinuousClock.Instant
  ) async throws(Failure) -> FileContent {
    let bytes: [UInt8]
    do throws(StoreClient.Problem) {
      bytes = try await get(object, bytes: file.bytes, until: deadline)
    } catch {
      throw unsendable(error.isMissing ? "artifact_damaged" : "artifact_store", error.message)
    }
    return try checked(file, bytes)
  }

  /// What comes back must be what was stored.
  private func checked(_ file: RequestFile, _ bytes: [UInt8]) throws(Failure) -> FileContent {
    guard hexDigest(bytes) == file.sha256 else {
      throw unsendable(
        "artifact_damaged", "the content of artifact \(file.key) is not what was stored")
    }
    return FileContent(mediaType: file.mediaType, name: file.name, bytes: bytes)
  }

  /// With some tries.
  func get(
    _ object: StoredObject, bytes: Int, until deadline: ContinuousClock.Instant
  ) async throws(StoreClient.Problem) -> [UInt8] {
    var tries = 0
    while true {
      do throws(StoreClient.Problem) {
        let key = try await credentials(for: object)
        return try await store.get(
          object, bytes: bytes, credentials: key, within: Int((deadline - .now) / .milliseconds(1)))
      } catch {
        tries += 1
        guard error.isPassing, deadline > .now, tries < Self.tries, !Task.isCancelled else {
          throw error
        }
        try? await Task.sleep(for: .milliseconds(250 << tries))
      }
    }
  }

  private func unsendable(_ code: String, _ message: String) -> Failure {
    var failure = Failure(.unsendable, message: message)
    failure.code = code
    return failure
  }
}
