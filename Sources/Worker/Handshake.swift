import Logging
import Postgres

/// Holds the handshake lock while the worker sleeps, on a connection that does nothing else: taking
/// the lock waits for every insert in flight.
struct Handshake {
  private enum Answer {
    case granted
    /// Inserts are in flight.
    case pending
    /// Another worker has it.
    case held
  }

  let desk: Desk
  let setup: Setup
  let executor: ThreadExecutor

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "handshake", on: executor)
    var holds = false
    while !Task.isCancelled {
      do throws(PostgresError) {
        switch desk.lockStep() {
        case .sleep:
          let answer = try await sleep(link)
          holds = answer == .granted
          if holds {
            // A lock goes with its connection: from then on inserts are silent.
            let wake = desk.handshakeWake
            try await link.open().whenLost { wake.signal() }
            desk.lockGranted()
          } else {
            desk.lockNotGranted(isHeld: answer == .held)
          }
        case .wake:
          _ = try await link.query("select ai.worker_wake()", [])
          holds = false
          desk.lockGone()
        case nil:
          await desk.handshakeWake.wait()
          // Whatever woke it may be the loss of the connection.
          if holds, !desk.wantsLockStep, !Task.isCancelled {
            _ = try await link.query("select 1", [])
          }
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

  /// Takes the lock, or does not in this try. The database bounds the wait, so that a worker that stops
  /// is not held up: a request to cancel that comes just before the statement has no effect.
  private func sleep(_ link: Link) async throws(PostgresError) -> Answer {
    let connection = try await link.open()
    let outcome: Result<Answer, PostgresError> = await withTaskCancellationHandler {
      do throws(PostgresError) {
        let granted = try await link.query("select ai.worker_sleep()", [])
        return .success(granted.bool(0, 0).map { $0 ? .granted : .pending } ?? .held)
      } catch {
        return .failure(error)
      }
    } onCancel: {
      connection.cancel()
    }
    // Cancelled: the connection is as good as before.
    if case .failure(let error) = outcome, error.sqlState == "57014" { return .pending }
    return try outcome.get()
  }
}
