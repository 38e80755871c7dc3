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
  private static let single = """
    select \(Dispatcher.columns), faulty_id, faulty_state, faulty_ended \
    from ai.worker_claim_one($1)
    """

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
          var trouble = error
          var goesOn = false
          if error.mayConcernOne {
            do throws(PostgresError) {
              goesOn = try await claimSingly(upTo: limit, worker, keyring, link)
            } catch {
              // What was claimed, and could not be opened, is handed back.
              reconcileAt = .now
              // An older schema cannot do it. Else it is the same trouble.
              if error.kind == .connection { trouble = error }
            }
          }
          desk.claimFailed(retryAt: .now)
          if !goesOn { await link.rest(after: trouble, "a claim") }
        }
      }
    }
    await link.close()
  }

  /// Claims one by one what could not be claimed together, so that who is served does not depend on a generation of
  /// somebody else's. The database takes what cannot be claimed alone, too, out of the way.
  ///
  /// - Returns: whether something came of it, so that claims may go on at once.
  private func claimSingly(
    upTo limit: Int, _ worker: String, _ keyring: Keyring, _ link: Link
  ) async throws(PostgresError) -> Bool {
    var goesOn = false
    for _ in 0..<limit where !desk.isStopping {
      let rows = try await link.query(Self.single, [worker])
      let keys = try await keyring.open(rows, worker, link)
      let started = dispatcher.start(rows, keys)
      if started.count > 0 {
        desk.count { $0.claimed += started.count }
        goesOn = true
      }
      guard started.header.waitMilliseconds != nil else { break }
      guard let row = (0..<rows.count).last, let faulty = rows[row, 19] else { continue }
      let hasEnded = rows.bool(row, 21) ?? false
      setup.logger.error(
        hasEnded
          ? "a generation cannot be claimed, and has ended"
          : "a generation cannot be claimed, and waits",
        metadata: ["generation": "\(faulty)", "sqlstate": "\(rows[row, 20] ?? "none")"])
      // Of what waits it is not known whether it was to blame: then the others may fare as badly.
      guard hasEnded else { return false }
      goesOn = true
    }
    return goesOn
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
