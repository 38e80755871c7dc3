import HTTP
import Logging
import Postgres
import Providers
import Sealing
import Synchronization

/// Does the steps of provider batches that the database gives it, and is silent otherwise: it asks when it is notified
/// or when the database said that there would be something. Everything is apart from the other loops: its connections,
/// its transfers, its threads, so that a large file never delays a call.
final class BatchLoop: Sendable {
  private let desk: Desk
  private let setup: Setup
  private let secrets: Secrets
  private let network: TransferPool.Configuration
  private let wake: Wake
  /// With `once`: whether what is due is done.
  let drain: Drain
  /// Steps under way, by batch.
  private let underWay = Mutex<[String: Int]>([:])

  /// It looks without being told after so many intervals of maintenance: a notification is left out where the server's queue of
  /// them is full.
  private static let patience = 12
  /// Steps at once.
  private static let most = 4
  private static let sql = "select \(BatchStep.columns) from ai.worker_batch_steps($1, $2, $3)"

  init(
    desk: Desk, setup: Setup, secrets: Secrets, network: TransferPool.Configuration
  ) {
    self.desk = desk
    self.setup = setup
    self.secrets = secrets
    wake = Wake()
    drain = Drain(wake)
    var network = network
    network.name = "batches"
    network.keptConnections = 8
    self.network = network
  }

  /// There may be something to do.
  func notified() { wake.signal() }

  var isIdle: Bool { underWay.withLock { $0.isEmpty } }

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "batches")
    let keyring = Keyring(masters: setup.masters, logger: setup.logger)
    await withTaskGroup { group in
      while !Task.isCancelled {
        let deadline = await begin(&group, link, keyring)
        if Task.isCancelled { break }
        let look = ContinuousClock.now + desk.identity.maintenance * Self.patience
        await wake.wait(until: min(deadline ?? look, look))
      }
      group.cancelAll()
    }
    await link.close()
  }

  /// Takes steps as far as there is room; says when to look again.
  private func begin(
    _ group: inout TaskGroup<Void>, _ link: Link, _ keyring: Keyring
  ) async -> ContinuousClock.Instant? {
    let worker = desk.identity.worker
    let round = drain.round
    let known = underWay.withLock(\.self)
    if desk.isStopping { return nil }
    do throws(PostgresError) {
      let rows = try await link.query(
        Self.sql, [worker, String(max(0, Self.most - known.count)), Self.list(known)])
      var opened: [Int: Result<SecretBytes, Failure>] = [:]
      var refs: Set<Int> = []
      for row in 0..<rows.count {
        if let ref = rows.int(row, BatchStep.secretColumn) { refs.insert(ref) }
      }
      if !refs.isEmpty { opened = try await keyring.open(secrets: refs, worker, link) }
      var wait: Int?
      var count = 0
      for row in 0..<rows.count {
        guard let step = BatchStep(rows, row, worker: worker) else {
          wait = rows.int(row, BatchStep.waitColumn)
          continue
        }
        count += 1
        let secret = step.secret(opened, secrets)
        underWay.withLock { $0[step.batch] = step.number }
        group.addTask {
          await BatchWork(
            step: step, secret: secret, network: self.network, desk: self.desk, setup: self.setup
          ).run()
          self.underWay.withLock { steps in
            // The batch may have its next step by now: it is given as soon as this one is reported.
            if steps[step.batch] == step.number { steps[step.batch] = nil }
          }
          self.wake.signal()
          self.desk.workEndedElsewhere()
        }
      }
      let isIdle = known.isEmpty && count == 0
      if isIdle, wait.map({ $0 > 100 }) ?? true, drain.foundNothing(round) {
        desk.workerWake.signal()
      }
      return wait.map { .now + .milliseconds(min($0, 86_400_000)) }
    } catch {
      // The heartbeat will find out whether this worker was declared dead.
      if error.sqlState == "PT404" { desk.pulseWake.signal() }
      if error.isMissing, known.isEmpty, drain.foundNothing(round, because: error) {
        desk.workerWake.signal()
      }
      await link.rest(after: error, "asking after batches")
      return .now
    }
  }

  private static func list(_ steps: [String: Int]) -> String {
    "[" + steps.map { #"["\#($0.key)",\#($0.value)]"# }.joined(separator: ",") + "]"
  }
}
