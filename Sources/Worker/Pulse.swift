import HTTP
import Logging
import Postgres

/// Says that the worker lives, finds out whether it does, and asks what was cancelled.
struct Pulse {
  let desk: Desk
  let pool: TransferPool
  let setup: Setup
  let executor: ThreadExecutor
  let ear: Ear

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "pulse", on: executor)
    var lastBeat = ContinuousClock.Instant.now
    while !Task.isCancelled {
      let identity = desk.identity
      await desk.pulseWake.wait(until: lastBeat + identity.heartbeat)
      if Task.isCancelled { break }
      do throws(PostgresError) {
        if !desk.isIdle { try await abortCancelled(identity, link) }
        let alive = try await link.query("select ai.worker_heartbeat($1)", [identity.worker])
        lastBeat = .now
        if alive.isEmpty || alive.bool(0, 0) != true { try await register(link) }
      } catch {
        if Task.isCancelled { break }
        if error.sqlState == "PT409" {
          for transfer in desk.refused(error) { pool.cancel(transfer) }
          break
        }
        await link.rest(after: error, "the heartbeat")
        // Whatever was to be asked is still to be asked.
        desk.pulseWake.signal()
      }
    }
    await link.close()
  }

  private func abortCancelled(_ identity: Identity, _ link: Link) async throws(PostgresError) {
    let rows = try await link.query(
      "select generation_id, attempt from ai.worker_cancellations($1)", [identity.worker])
    for row in 0..<rows.count {
      let attempt = rows.int(row, 1) ?? 0
      let fence = rows.withBytes(row, 0) { bytes in
        bytes.flatMap { Fence(uuid: $0, attempt: attempt) }
      }
      guard let fence, let transfer = desk.end(fence, .cancelled) else { continue }
      pool.cancel(transfer)
    }
  }

  /// Another worker declared this one dead and rescued what it held: abort it all, begin anew.
  private func register(_ link: Link) async throws(PostgresError) {
    let identity = try await Identity.register(
      on: link.open(), name: setup.name, version: setup.version)
    let transfers = desk.reborn(as: identity)
    for transfer in transfers { pool.cancel(transfer) }
    desk.count { $0.registrations += 1 }
    setup.logger.warning(
      "this worker was declared dead and registered again",
      metadata: ["worker": "\(identity.worker)", "aborted": "\(transfers.count)"])
    await ear.listenAnew()
  }
}
