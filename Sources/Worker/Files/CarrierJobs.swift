import Logging
import Postgres
import Providers

// Between the database and stores: moves large files that apps added, fetches back what an app wants to read,
// removes what nobody needs. SQL says what; each job may be given again, and does no harm twice.

extension Carrier {
  private static let jobs = """
    select job, tenant_id, id, artifact_id, bytes, sha256, object, upload_ms \
    from ai.worker_artifact_jobs($1, $2)
    """
  private static let many = 20
  /// Where nothing is found, the next look comes later, up to this many times the database's rhythm.
  private static let longestPause = 8

  private struct Job {
    var job: String
    var tenant: String
    var id: String
    var artifact: String
    var bytes: Int
    var sha256: String
    var object: StoredObject?
    var until: ContinuousClock.Instant
  }

  /// Until cancelled.
  func runJobs() async {
    var pause = 1
    while !Task.isCancelled {
      var found = 0
      do throws(PostgresError) {
        let asked = ContinuousClock.now
        let rows = try await link.query(Self.jobs, [worker, String(Self.many)])
        found = rows.count
        for row in 0..<rows.count where !Task.isCancelled {
          await run(
            Job(
              job: rows[row, 0] ?? "", tenant: rows[row, 1] ?? "", id: rows[row, 2] ?? "",
              artifact: rows[row, 3] ?? "", bytes: rows.int(row, 4) ?? 0,
              sha256: rows[row, 5] ?? "", object: rows.bytes(row, 6).flatMap { StoredObject($0) },
              until: asked + .milliseconds(rows.int(row, 7) ?? 30_000)))
        }
      } catch {
        if Task.isCancelled { break }
        // Somebody else has its name: the heartbeat will see to that.
        if error.sqlState == "PT404" { porter.desk.pulseWake.signal() }
        await link.rest(after: error, "looking for jobs with files")
      }
      pause = found > 0 ? 1 : min(pause * 2, Self.longestPause)
      if found < Self.many {
        let deadline = ContinuousClock.now + porter.desk.identity.maintenance * pause
        await porter.desk.jobsWake.wait(until: deadline)
        // A notification: there will be more of them.
        if .now < deadline { pause = 1 }
      }
    }
    await close()
  }

  private func run(_ job: Job) async {
    guard let object = job.object else { return }
    do throws(StoreClient.Problem) {
      switch job.job {
      case "delete":
        let key = try await credentials(for: object)
        try await store.remove(
          object, credentials: key, within: Int((job.until - .now) / .milliseconds(1)))
        await done("delete", job)
      case "move": try await move(job, to: object)
      case "recall": try await recall(job, from: object)
      default: return
      }
    } catch {
      if job.job == "recall", error.isMissing { await done("damaged", job) }
      logger.warning(
        "a job with a store failed, it will be tried again",
        metadata: ["job": "\(job.job)", "reason": "\(error.message)"])
    }
  }

  private func move(_ job: Job, to object: StoredObject) async throws(StoreClient.Problem) {
    guard porter.desk.files.take(job.bytes * 3) else { return }
    defer { porter.desk.giveBack(files: job.bytes * 3) }
    guard let bytes = await parts(of: job) else { return }
    guard hexDigest(bytes) == job.sha256 else { return await done("damaged", job) }
    try await upload(bytes, to: object, until: job.until)
    await done("move", job)
  }

  private func parts(of job: Job) async -> [UInt8]? {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(job.bytes)
    var n = 0
    while bytes.count < job.bytes {
      do throws(PostgresError) {
        let rows = try await link.query(
          "select content, object from ai.worker_part($1, $2, $3, $4)",
          [worker, job.tenant, job.artifact, String(n)])
        guard rows.count == 1, let part = rows.bytea(0, 0) else { return nil }
        bytes += part
        n += 1
      } catch {
        await link.rest(after: error, "moving a file")
        return nil
      }
    }
    return bytes
  }

  private func recall(_ job: Job, from object: StoredObject) async throws(StoreClient.Problem) {
    guard porter.desk.files.take(job.bytes * 3) else { return }
    defer { porter.desk.giveBack(files: job.bytes * 3) }
    let bytes: [UInt8] = try await get(object, bytes: job.bytes, until: job.until)
    guard bytes.count == job.bytes, hexDigest(bytes) == job.sha256 else {
      logger.error(
        "a file in the store is not what was stored", metadata: ["artifact": "\(job.artifact)"])
      return await done("damaged", job)
    }
    var n = 0
    for start in stride(from: 0, to: bytes.count, by: Self.partBytes) {
      do throws(PostgresError) {
        let rows = try await put(
          Array(bytes[start..<min(bytes.count, start + Self.partBytes)]), n, tenant: job.tenant,
          artifact: job.artifact)
        guard rows.bool(0, 0) == true else { return }
        n += 1
      } catch {
        return await link.rest(after: error, "fetching a file back")
      }
    }
    await done("recall", job)
  }

  private func done(_ what: String, _ job: Job) async {
    do throws(PostgresError) {
      try await link.query(
        "select ai.worker_artifact_done($1, $2, $3, $4)",
        [worker, what, job.tenant, what == "damaged" ? job.artifact : job.id])
    } catch {
      // It will be given again.
      await link.rest(after: error, "reporting a job with a file")
    }
  }
}
