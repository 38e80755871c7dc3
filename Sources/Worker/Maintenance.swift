import Logging
import Postgres

/// Runs the database's upkeep now and then. It may take long, so it has a connection of its own, and
/// only while it runs.
struct Maintenance {
  let desk: Desk
  let setup: Setup

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "maintain")
    while !Task.isCancelled {
      let identity = desk.identity
      do throws(PostgresError) {
        let counts = try await link.query("select ai.worker_maintain($1)", [identity.worker])
        await link.close()
        if let counts = counts.isEmpty ? nil : counts[0, 0] {
          setup.logger.debug("maintained", metadata: ["counts": "\(counts)"])
        }
        // It may have put generations of dead workers back.
        desk.mayHaveRequeued()
        try? await Task.sleep(for: identity.maintenance)
      } catch {
        if Task.isCancelled { return }
        await link.rest(after: error, "maintenance")
      }
    }
  }
}
