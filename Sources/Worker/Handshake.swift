import Logging
import Postgres

/// Holds the handshake lock while the worker sleeps, on a connection that does nothing else: taking
/// the lock waits for every insert in flight.
struct Handshake {
  let desk: Desk
  let setup: Setup

  /// Well below the interval of the safety poll.
  private static let checkInterval = Duration.milliseconds(300)

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "handshake")
    var holds = false
    while !Task.isCancelled {
      do throws(PostgresError) {
        switch desk.lockStep() {
        case .sleep:
          holds = try await sleep(link)
          if holds { desk.lockGranted() } else { desk.lockNotGranted() }
        case .wake:
          _ = try await link.query("select ai.worker_wake()", [])
          holds = false
          desk.lockGone()
        case nil:
          // A lock goes with its connection, and nobody says so: from then on inserts are silent.
          await desk.handshakeWake.wait(until: holds ? .now + Self.checkInterval : nil)
          if holds && !Task.isCancelled { _ = try await link.query("select 1", []) }
        }
      } catch {
        holds = false
        // Whatever the server thinks of it: a new session holds nothing.
        await link.close()
        desk.lockGone()
        if !Task.isCancelled { await link.rest(after: error, "the handshake") }
      }
    }
    await link.close()
  }

  /// Takes the lock. False: not in this try. The database bounds the wait, so that a worker that stops
  /// is not held up: a request to cancel that comes just before the statement has no effect.
  private func sleep(_ link: Link) async throws(PostgresError) -> Bool {
    let connection = try await link.open()
    let outcome: Result<Bool, PostgresError> = await withTaskCancellationHandler {
      do throws(PostgresError) {
        let granted = try await link.query("select ai.worker_sleep()", [])
        return .success(granted.bool(0, 0) ?? false)
      } catch {
        return .failure(error)
      }
    } onCancel: {
      connection.cancel()
    }
    // Cancelled: the connection is as good as before.
    if case .failure(let error) = outcome, error.sqlState == "57014" { return false }
    return try outcome.get()
  }
}
