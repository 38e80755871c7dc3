import Logging
import Postgres
import Synchronization

/// Listens for wake-ups and for cancellations, on a connection of its own, read by the thread that
/// claims: no other has to be woken between a notification and the claim.
final class Ear: Sendable {
  private let desk: Desk
  private let setup: Setup
  private let batches: BatchLoop
  private let executor: ThreadExecutor
  private let listener = Mutex<Listener?>(nil)

  init(desk: Desk, setup: Setup, batches: BatchLoop, on executor: ThreadExecutor) {
    self.executor = executor
    self.desk = desk
    self.setup = setup
    self.batches = batches
  }

  /// Until cancelled.
  func run() async {
    var backoff = Backoff()
    while !Task.isCancelled {
      let channel = desk.identity.channel
      do {
        let opened = try await Listener.open(
          setup.conninfo, channels: ["ai_work", "ai_batches", channel],
          applicationName: "martlet listen", on: executor
        ) { self.hear($0, channel) }
        listener.withLock { $0 = opened }
        backoff.reset()
        // What was notified before is lost: look for work, and for cancellations.
        desk.listening(true)
        batches.notified()
        // A new identity may have come while this listened to the channel of the old one.
        if desk.identity.channel == channel, !Task.isCancelled {
          for try await _ in opened.notifications {}
        }
        desk.listening(false)
        await opened.close()
      } catch {
        desk.listening(false)
        if Task.isCancelled { return }
        let delay = backoff.next()
        desk.lostConnection()
        setup.logger.warning(
          "listening failed, trying again",
          metadata: ["error": "\(error)", "retry_ms": "\(Int(delay / .milliseconds(1)))"])
        try? await Task.sleep(for: delay)
      }
    }
  }

  /// Ends the connection, so that the next one listens to the channel of the new identity.
  func listenAnew() async {
    let current = listener.withLock { $0 }
    await current?.close()
  }

  /// All that arrived together before anything that it wakes: many inserts are one look.
  private func hear(_ notification: Notification, _ channel: String) {
    if notification.channel == channel {
      desk.pulseWake.signal()
      desk.jobsWake.signal()
    } else if notification.channel == "ai_batches" {
      batches.notified()
    } else {
      desk.notified()
    }
  }
}
