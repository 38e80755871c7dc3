import Logging
import Postgres

/// Runs the database's upkeep now and then. It may take long, so it has a connection of its own: kept, because a
/// new session plans all of it anew, which takes twenty times as long as running it.
struct Maintenance {
  let desk: Desk
  let setup: Setup

  private static let sql = "select m, m ->> 'claimable' from ai.worker_maintain($1) m"

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "maintain")
    while !Task.isCancelled {
      let identity = desk.identity
      do throws(PostgresError) {
        let done = try await link.query(Self.sql, [identity.worker])
        let counts = done.isEmpty ? nil : done[0, 0]
        setup.logger.debug("maintained", metadata: ["counts": "\(counts ?? "")"])
        // An older schema does not say.
        let isClaimable = done.isEmpty ? nil : done[0, 1]
        if isClaimable != "false" { desk.mayHaveRequeued() }
        try? await Task.sleep(for: identity.maintenance)
      } catch {
        if Task.isCancelled { break }
        await link.rest(after: error, "maintenance")
      }
    }
    await link.close()
  }
}
