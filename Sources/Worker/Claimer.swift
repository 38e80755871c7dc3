import Logging
import Postgres

/// Claims while there is room, and starts what it got.
struct Claimer {
  let desk: Desk
  let dispatcher: Dispatcher
  let setup: Setup
  let executor: ThreadExecutor

  private static let sql =
    "select \(Dispatcher.columns) from ai.worker_claim($1, $2, $3)"

  /// Until cancelled or stopped.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "claim", on: executor)
    let keyring = Keyring(masters: setup.masters, logger: setup.logger)
    var cursor: String?
    var reconcileAt = ContinuousClock.now + desk.identity.maintenance
    // How often to look for leases that nobody here knows of. Twice after a claim that failed: it may commit after the first look.
    var looks = 0
    while !Task.isCancelled {
      switch desk.nextClaim() {
      case .finished:
        if desk.isStopping { return await link.close() }
        await desk.claimerWake.wait()
      case .wait(let until):
        if desk.isStopping { return await link.close() }
        await desk.claimerWake.wait(until: until)
      case .claim(let limit, let reason):
        let identity = desk.identity
        let worker = identity.worker
        do throws(PostgresError) {
          if looks > 0, reconcileAt <= .now {
            try await handBackUnknown(worker, link)
            reconcileAt = .now + identity.maintenance
            looks -= 1
          }
          let rows = try await link.query(
            Self.sql, [worker, String(limit), reason == nil ? cursor : nil])
          let keys: OpenedKeys
          do throws(PostgresError) {
            keys = try await keyring.open(rows, worker, link)
          } catch {
            // What was claimed is handed back.
            reconcileAt = .now
            throw error
          }
          let started = dispatcher.start(rows, keys)
          cursor = started.cursor
          if started.count > 0 { looks = max(looks, 1) }
          desk.claimed(started.count, header: started.header)
        } catch {
          looks = 2
          // A claim whose answer was lost may have leased generations that nobody knows of.
          if error.kind == .connection { reconcileAt = .now }
          // The heartbeat will find out whether this worker was declared dead.
          if error.sqlState == "PT404" { desk.pulseWake.signal() }
          desk.claimFailed(retryAt: .now)
          await link.rest(after: error, "a claim")
        }
      }
    }
    await link.close()
  }

  /// Gives back what is leased to this worker although it never heard of it. Between two claims of
  /// the only loop that claims, so nothing can be on its way here.
  private func handBackUnknown(_ worker: String, _ link: Link) async throws(PostgresError) {
    let known = desk.fences
    let leases = try await link.query(
      "select generation_id, attempt from ai.worker_leases($1)", [worker])
    for row in 0..<leases.count {
      let attempt = leases.int(row, 1) ?? 0
      let fence = leases.withBytes(row, 0) { bytes in
        bytes.flatMap { Fence(uuid: $0, attempt: attempt) }
      }
      guard let fence, !known.contains(fence), !desk.holds(fence) else { continue }
      desk.handBack(fence)
      setup.logger.notice(
        "handed back a generation of a claim that was lost", metadata: ["generation": "\(fence)"])
    }
  }
}
