import HTTP
import Logging
import Postgres
import Providers
import Sealing

// Out of answers. SQL says where each file goes, and has a row of it before anything is written; the
// settle makes them all visible at once, or the database removes them later.

extension Carrier {
  /// A file with its place.
  private struct Placed {
    var tenant: String
    var artifact: String
    var place: String
    var object: StoredObject?
    /// When no upload may be under way any more.
    var uploadUntil: ContinuousClock.Instant
  }

  private enum KeepError: Error {
    /// The attempt is not this worker's any more: the settle will say so.
    case stale
    case failed(Failure)
  }

  func keep(_ keep: Porter.Keep) async {
    var keep = keep
    do throws(KeepError) {
      let files = try await gathered(&keep)
      keep.settlement.reply?.files = []
      keep.settlement.artifacts = try await stored(files, keep)
      porter.finish(keep, nil)
    } catch {
      switch error {
      case .stale: porter.finish(keep, nil)
      case .failed(let failure): porter.finish(keep, failure)
      }
    }
  }

  // MARK: What the provider made

  /// The files as bytes: fetched from where the provider keeps them, if need be.
  private func gathered(_ keep: inout Porter.Keep) async throws(KeepError) -> [FileContent] {
    var files: [FileContent] = []
    for file in keep.settlement.reply?.files ?? [] {
      switch file.content {
      case .bytes(let bytes):
        files.append(FileContent(mediaType: file.mediaType, bytes: bytes))
      case .url(let url) where url.hasPrefix("data:"):
        guard let content = Self.content(ofDataURL: url) else {
          throw .failed(malformed("the provider's answer has a file that is none"))
        }
        files.append(content)
      case .url(let url):
        var content = try await download(url, keep)
        if !content.mediaType.contains("/") || content.mediaType == "application/octet-stream" {
          content.mediaType = file.mediaType
        }
        guard porter.desk.files.add(content.bytes.count) else {
          throw .failed(
            Porter.failure("artifact_memory", "the worker has no memory left for files"))
        }
        keep.memory += content.bytes.count
        files.append(content)
      }
    }
    return files
  }

  private func download(_ url: String, _ keep: Porter.Keep) async throws(KeepError) -> FileContent {
    var tries = 0
    while true {
      do throws(Download.Problem) {
        return try await Download(pool: porter.pool).file(
          at: url, provider: keep.provider, publicOnly: keep.publicOnly,
          within: Int((keep.deadline - .now) / .milliseconds(1)))
      } catch {
        tries += 1
        guard !error.isForbidden, keep.deadline > .now, tries < 3, !Task.isCancelled else {
          var failure = malformed(error.message)
          failure.code = error.isForbidden ? "private_address" : "file_unreachable"
          throw .failed(failure)
        }
        try? await Task.sleep(for: .milliseconds(250 << tries))
      }
    }
  }

  private static func content(ofDataURL url: String) -> FileContent? {
    guard let comma = url.firstIndex(of: ","), url[..<comma].hasSuffix(";base64"),
      let bytes = Base64.decode(url[url.index(after: comma)...].utf8)
    else { return nil }
    return FileContent(
      mediaType: String(url[..<comma].dropFirst(5).prefix { $0 != ";" }), bytes: bytes)
  }

  private func malformed(_ message: String) -> Failure {
    var failure = Failure(.malformed, message: message)
    failure.code = "file_malformed"
    return failure
  }

  // MARK: Where it goes

  /// Ids of the files, all of which are stored.
  private func stored(
    _ files: [FileContent], _ keep: Porter.Keep
  ) async throws(KeepError) -> [String] {
    let description = Self.description(of: files)
    var avoidStore = false
    while true {
      let placed = try await place(files.count, description, avoidStore, keep)
      do throws(StoreClient.Problem) {
        for (file, place) in zip(files, placed) where place.place == "store" {
          try await upload(file.bytes, place)
        }
      } catch {
        logger.warning("a file could not be uploaded", metadata: ["reason": "\(error.message)"])
        // Once more without the store: what is paid for is not given up while the database can take it.
        if avoidStore { throw .failed(Porter.failure("artifact_store", error.message)) }
        avoidStore = true
        continue
      }
      for (file, place) in zip(files, placed) where place.place == "database" {
        try await put(file.bytes, place)
      }
      return placed.map(\.artifact)
    }
  }

  private static func description(of files: [FileContent]) -> String {
    var json = JSONBuffer(reserving: files.count * 256)
    json.beginArray()
    for file in files {
      json.beginObject()
      json.member("media_type", String(file.mediaType.prefix(200)))
      json.member("bytes", file.bytes.count)
      json.member("sha256", hexDigest(file.bytes))
      json.endObject()
    }
    json.endArray()
    return json.text
  }

  private func place(
    _ count: Int, _ description: String, _ avoidStore: Bool, _ keep: Porter.Keep
  ) async throws(KeepError) -> [Placed] {
    let fence = keep.settlement.fence
    let asked = ContinuousClock.now
    let rows = try await asking(keep) { () throws(PostgresError) in
      try await self.link.query(
        """
        select n, tenant_id, artifact_id, place, object, upload_ms \
        from ai.worker_place_files($1, $2, $3, $4, $5)
        """,
        [
          self.worker, fence.description, String(fence.attempt), description,
          avoidStore ? "true" : "false",
        ])
    }
    guard rows.count == count else { throw .stale }
    var placed: [Placed] = []
    for row in 0..<rows.count {
      let place = rows[row, 3] ?? ""
      guard place != "too_large" else {
        throw .failed(Porter.failure("artifact_too_large", "a file is larger than allowed"))
      }
      placed.append(
        Placed(
          tenant: rows[row, 1] ?? "", artifact: rows[row, 2] ?? "", place: place,
          object: rows.bytes(row, 4).flatMap { StoredObject($0) },
          // From when SQL was asked, not from when it answered: it counts from in between.
          uploadUntil: asked + .milliseconds(rows.int(row, 5) ?? 60_000)))
    }
    return placed
  }

  private func upload(_ bytes: [UInt8], _ place: Placed) async throws(StoreClient.Problem) {
    guard let object = place.object else {
      throw StoreClient.Problem(message: "the database names no object")
    }
    try await upload(bytes, to: object, until: place.uploadUntil)
  }

  private func put(_ bytes: [UInt8], _ place: Placed) async throws(KeepError) {
    var n = 0
    for start in stride(from: 0, to: bytes.count, by: Self.partBytes) {
      let part = Array(bytes[start..<min(bytes.count, start + Self.partBytes)])
      let rows = try await asking(nil) { () throws(PostgresError) in
        try await self.put(part, n, tenant: place.tenant, artifact: place.artifact)
      }
      guard rows.bool(0, 0) == true else { throw .stale }
      n += 1
    }
  }

  /// Asks until the database answers; what it refuses twice more, for no trouble of its own, is given up.
  private func asking(
    _ keep: Porter.Keep?, _ query: () async throws(PostgresError) -> QueryResult
  ) async throws(KeepError) -> QueryResult {
    let identity = porter.desk.identity
    var refusals = 0
    while porter.desk.identity == identity, !Task.isCancelled {
      do throws(PostgresError) {
        return try await query()
      } catch {
        if error.kind != .connection && !error.isOutside { refusals += 1 }
        guard refusals < 3 else {
          logger.error(
            "the database refuses a file", metadata: ["sqlstate": "\(error.sqlState ?? "none")"])
          throw .failed(Porter.failure("artifact_database", "the database did not take a file"))
        }
        await link.rest(after: error, "keeping a file")
      }
    }
    throw .stale
  }
}

// MARK: - What keeping and moving have in common

extension Carrier {
  func put(
    _ part: [UInt8], _ n: Int, tenant: String, artifact: String
  ) async throws(PostgresError) -> QueryResult {
    try await link.query(
      "select ai.worker_put_part($1, $2, $3, $4, $5)",
      [worker, tenant, artifact, String(n), hexadecimal(part)])
  }

  /// With some tries, none of them later than `deadline`.
  func upload(
    _ bytes: [UInt8], to object: StoredObject, until deadline: ContinuousClock.Instant
  ) async throws(StoreClient.Problem) {
    var tries = 0
    while true {
      do throws(StoreClient.Problem) {
        let key = try await credentials(for: object)
        return try await store.put(
          bytes, to: object, credentials: key, within: Int((deadline - .now) / .milliseconds(1)))
      } catch {
        tries += 1
        guard error.isPassing, deadline > .now, tries < 3, !Task.isCancelled else { throw error }
        try? await Task.sleep(for: .milliseconds(250 << tries))
      }
    }
  }
}
