import HTTP
package import Logging
import Postgres
import ServiceLifecycle
import Synchronization

/// Takes generations from the database, calls their providers, and reports what they answered.
///
/// `docs/worker-protocol.md` is the contract with the database. Each loop has its own connection; what
/// they share lies on the `Desk`, where pure state machines decide.
package final class Worker: Service {
  package struct Configuration: Sendable {
    /// libpq's connection string.
    package var conninfo = ""
    /// Shown in `ai.workers`.
    package var name = "worker"
    package var version = "0"
    /// Calls that may be under way at once.
    package var concurrency = 256
    /// End when there is nothing left to do.
    package var once = false
    /// How long calls under way may go on after a stop.
    package var grace = Duration.seconds(25)
    package var network = NetworkSettings()
    package var secrets: Secrets
    /// For what lies sealed in the database.
    package var masters: MasterKeyring
    /// libpq's connection string of the login that runs tools; nil: this worker runs none.
    package var tools: String?
    /// Runs of tools that may be under way at once.
    package var toolConcurrency = 8
    package var logger: Logger

    package init(secrets: Secrets, masters: MasterKeyring, logger: Logger) {
      self.secrets = secrets
      self.masters = masters
      self.logger = logger
    }
  }

  /// The protocol of docs/worker-protocol.md that this worker speaks.
  package static let protocolNumber = 4
  /// How long the database may take for the last reports.
  private static let lastReports = Duration.seconds(5)
  /// Tries to reach the database at the start, with `once`; without it there is no end of trying.
  private static let onceTries = 5

  private let configuration: Configuration
  private let isToStop = Atomic(false)
  private let stopping = Wake()

  package init(_ configuration: Configuration) { self.configuration = configuration }

  /// Begins the graceful end of `run()`: no more claims; what is under way may finish within the
  /// grace time, and is handed back after it.
  package func stop() {
    isToStop.store(true, ordering: .relaxed)
    stopping.signal()
  }

  package func run() async throws { _ = try await work() }

  /// Works until stopped, or, with `once`, until there is nothing left; tells what it did.
  package func work() async throws -> Tally {
    try await withGracefulShutdownHandler {
      try await live()
    } onGracefulShutdown: {
      self.stop()
    }
  }

  private func live() async throws -> Tally {
    var logger = configuration.logger
    let setup = Setup(
      conninfo: configuration.conninfo, name: configuration.name, version: configuration.version,
      masters: configuration.masters, logger: logger)
    guard let identity = try await register(setup) else { return Tally() }
    logger[metadataKey: "worker"] = "\(identity.worker)"
    let desk = Desk(
      identity: identity, concurrency: configuration.concurrency, once: configuration.once,
      files: FileMemory(limit: configuration.network.fileMemory))
    var pools = configuration.network.transfers
    pools.keptConnections = max(64, configuration.concurrency * 2)
    let pool = try TransferPool(pools)
    logger.info(
      "working", metadata: ["concurrency": "\(configuration.concurrency)"])

    let batches = BatchLoop(
      desk: desk, setup: setup, secrets: configuration.secrets, network: pools)
    let tools = configuration.tools.map {
      ToolRunner(
        desk: desk, setup: setup, conninfo: $0, concurrency: configuration.toolConcurrency)
    }
    let drains = [batches.drain, tools?.drain].compactMap(\.self)
    let threads = try LoopThreads()
    await withTaskGroup { loops in
      start(&loops, desk, pool, setup, batches, tools, threads)
      await untilStop(desk, drains)
      await finish(desk, pool, batches, logger)
      loops.cancelAll()
    }
    threads.stop()
    await say(setup, farewellOf: desk.identity)
    let patience = ContinuousClock.now + Self.lastReports
    while desk.hasFarewells, .now < patience, !Task.isCancelled {
      await desk.workerWake.wait(until: patience)
    }
    pool.stop()

    let tally = desk.tally
    logger.info(
      "stopped",
      metadata: [
        "claimed": "\(tally.claimed)", "succeeded": "\(tally.succeeded)",
        "failed": "\(tally.failed)", "cancelled": "\(tally.cancelled)",
        "released": "\(tally.released)", "stale": "\(tally.stale)",
        "safety_poll_found": "\(tally.safetyPollFound)",
      ])
    let unlooked = desk.isOnceDone ? drains.lazy.compactMap(\.refusal).first : nil
    if let refusal = desk.refusal ?? unlooked { throw WorkerError(refusal) }
    return tally
  }

  private func start(
    _ loops: inout TaskGroup<Void>, _ desk: Desk, _ pool: TransferPool, _ setup: Setup,
    _ batches: BatchLoop, _ tools: ToolRunner?, _ threads: LoopThreads
  ) {
    let local = LocalQueue()
    let porter = Porter(desk: desk, pool: pool, secrets: configuration.secrets, setup: setup)
    let ear = Ear(desk: desk, setup: setup, batches: batches, on: threads.claim)
    let dispatcher = Dispatcher(
      desk: desk, pool: pool, secrets: configuration.secrets, logger: setup.logger, local: local,
      porter: porter)
    let claimer = Claimer(
      desk: desk, dispatcher: dispatcher, setup: setup, executor: threads.claim)
    loops.addTask(executorPreference: threads.claim) { await claimer.run() }
    loops.addTask(executorPreference: threads.claim) { await ear.run() }
    let settling = [(Settlement.Company.all, threads.settle), (.slow, threads.slowSettle)]
    for (company, thread) in settling {
      let settler = Settler(company: company, desk: desk, setup: setup, executor: thread)
      loops.addTask(executorPreference: thread) { await settler.run() }
    }
    for (lane, thread) in [(Gathering.Lane.first, threads.firstTexts), (.later, threads.texts)] {
      let publisher = Publisher(lane: lane, desk: desk, pool: pool, setup: setup, executor: thread)
      loops.addTask(executorPreference: thread) { await publisher.run() }
    }
    let pulse = Pulse(desk: desk, pool: pool, setup: setup, executor: threads.pulse, ear: ear)
    loops.addTask(executorPreference: threads.pulse) { await pulse.run() }
    loops.addTask { await Maintenance(desk: desk, setup: setup).run() }
    loops.addTask { await local.run(desk) }
    loops.addTask { await porter.run() }
    if let tools { loops.addTask { await tools.run() } }
    loops.addTask { await batches.run() }
    if !configuration.once {
      let handshake = Handshake(desk: desk, setup: setup, executor: threads.handshake)
      loops.addTask(executorPreference: threads.handshake) { await handshake.run() }
    }
    // The first of them ends the worker's life.
    loops.addTask {
      while !Task.isCancelled, !self.isToStop.load(ordering: .relaxed) {
        await self.stopping.wait()
      }
      desk.stopClaiming()
    }
  }

  /// nil: stopped before the database could be reached.
  private func register(_ setup: Setup) async throws -> Identity? {
    var backoff = Backoff()
    var tries = 0
    while !Task.isCancelled, !isToStop.load(ordering: .relaxed) {
      do throws(PostgresError) {
        let connection = try await Connection.ofWorker(
          setup.conninfo, applicationName: "martlet register")
        let identity = try await Identity.register(
          on: connection, name: setup.name, version: setup.version)
        await connection.close()
        return identity
      } catch {
        tries += 1
        let mayPass = error.kind == .connection || error.isOutside && !error.isMissing
        guard mayPass, !configuration.once || tries < Self.onceTries else {
          throw WorkerError(error)
        }
        let delay = backoff.next()
        let what = error.kind == .connection ? "cannot be reached" : "takes no worker"
        setup.logger.warning(
          "the database \(what), trying again", metadata: ["error": "\(error)"])
        await stopping.wait(until: .now + delay)
      }
    }
    return nil
  }

  /// With `once` until claims find nothing, nor anybody who may put something back into the queue.
  private func untilStop(_ desk: Desk, _ drains: [Drain]) async {
    while !Task.isCancelled, !desk.isStopping {
      if let round = desk.roundOutOfWork {
        // All are asked, also where the first has not answered yet.
        let answers = drains.map { $0.isOver(round) }
        if !answers.contains(false), desk.endOnce(round) { return }
      }
      await desk.workerWake.wait()
    }
  }

  /// Lets what is under way end, within the grace time; then hands it back.
  private func finish(
    _ desk: Desk, _ pool: TransferPool, _ batches: BatchLoop, _ logger: Logger
  ) async {
    if desk.isOnceDone || desk.refusal != nil { return }
    desk.stopClaiming()
    let under = desk.transferring
    if !desk.isIdle { logger.info("stopping", metadata: ["under_way": "\(under)"]) }
    await wait(until: .now + configuration.grace) { desk.isIdle && batches.isIdle }
    for transfer in desk.endAll(.released) { pool.cancel(transfer) }
    await wait(until: .now + Self.lastReports) { desk.isIdle }

    func wait(until deadline: ContinuousClock.Instant, _ isOver: () -> Bool) async {
      while !isOver(), .now < deadline, !Task.isCancelled {
        await desk.workerWake.wait(until: deadline)
      }
    }
  }

  /// The last call: the database takes back whatever this worker still holds.
  private func say(_ setup: Setup, farewellOf identity: Identity) async {
    do throws(PostgresError) {
      let connection = try await Connection.ofWorker(
        setup.conninfo, applicationName: "martlet stop")
      try await connection.query("select ai.worker_stop($1)", [identity.worker])
      await connection.close()
    } catch {
      setup.logger.warning(
        "the database could not be told that this worker stops; its lease will run out",
        metadata: ["error": "\(error)"])
    }
  }
}

/// The threads of the loops that talk to the database all the time. Each is used by its loop alone,
/// between the statements too: what wakes the loop wakes one thread.
private struct LoopThreads {
  let claim: ThreadExecutor
  let settle: ThreadExecutor
  let slowSettle: ThreadExecutor
  let firstTexts: ThreadExecutor
  let texts: ThreadExecutor
  let pulse: ThreadExecutor
  let handshake: ThreadExecutor

  init() throws(PostgresError) {
    claim = try ThreadExecutor()
    settle = try ThreadExecutor()
    slowSettle = try ThreadExecutor()
    firstTexts = try ThreadExecutor()
    texts = try ThreadExecutor()
    pulse = try ThreadExecutor()
    handshake = try ThreadExecutor()
  }

  /// To be called when the loops have ended.
  func stop() {
    for thread in [claim, settle, slowSettle, firstTexts, texts, pulse, handshake] { thread.stop() }
  }
}

/// Why a worker could not begin.
package struct WorkerError: Error, CustomStringConvertible, Sendable {
  package var message: String
  package var hint: String?

  init(_ error: PostgresError) {
    message = error.description
    hint = error.hint
    switch error.sqlState {
    case "3F000", "42883", "42P01":
      message = "this database has no Martlet schema"
      hint = "martlet migrate"
    case "42501":
      hint = "The role must be a member of ai_worker."
    default: break
    }
  }

  package var description: String { message }
}
