internal import ArgumentParser
internal import FoundationEssentials
internal import Logging
internal import Migrate
internal import UnixSignals
internal import Worker

#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#else
  import Darwin
#endif

struct WorkCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "work",
    abstract: "Runs a worker: takes generations, calls their providers, reports the answers.",
    discussion: """
      Runs until SIGTERM or SIGINT: then it claims nothing more, lets what is under way finish within \
      the grace time, and hands the rest back. A second signal ends it at once; another worker takes \
      over when its lease has run out.

      Every option can be given by the environment instead: DATABASE_URL, MARTLET_CONCURRENCY, \
      MARTLET_ONCE, MARTLET_NAME, MARTLET_GRACE, MARTLET_LOG_LEVEL, MARTLET_LOG_FORMAT. Secrets of \
      providers are taken from files of their names in MARTLET_SECRETS_DIR, else from environment \
      variables of their names; what lies sealed in the database is opened with the master keys of \
      MARTLET_MASTER_KEY_FILE, or MARTLET_MASTER_KEY. MARTLET_CA_FILE, MARTLET_PROXY, \
      MARTLET_ALLOWED_NETWORKS, MARTLET_ANSWER_MEMORY and MARTLET_FILE_MEMORY say how providers \
      are reached \
      (docs/hardening.md). MARTLET_TOOLS_DATABASE_URL is the login that runs tools, \
      MARTLET_TOOLS_CONCURRENCY how many at once (docs/tools.md).

      Exit codes: 0 done, 1 an error, 2 a wrong call, 130 or 143 ended by a second signal.
      """)

  @Option(
    help: ArgumentHelp(
      "Where the database is. Default: DATABASE_URL, else libpq's environment (PGHOST, …).",
      valueName: "url"))
  var databaseURL: String?

  @Option(help: "Calls under way at once, 1 to 10000. Default: 256.")
  var concurrency: Int?

  @Flag(
    help: """
      End when nothing is queued, no retry waits, no tool is to be run and no step of a provider \
      batch is due.
      """)
  var once = false

  @Option(
    help: "Name of this worker in ai.workers. Default: the host's name and the process number.")
  var name: String?

  @Option(help: "Seconds that calls under way may take after a signal. Default: 25.")
  var grace: Double?

  @Option(help: "trace, debug, info, notice, warning, error or critical. Default: info.")
  var logLevel: String?

  @Option(help: "text or json, to standard error. Default: text.")
  var logFormat: String?

  @Flag(help: "Print what was done as JSON at the end.")
  var json = false

  /// Without what is empty, which means the default.
  private static let environment = ProcessInfo.processInfo.environment.filter { !$0.value.isEmpty }

  func validate() throws { _ = try settings() }

  private struct Settings {
    var concurrency: Int
    var toolConcurrency: Int
    var once: Bool
    var grace: Double
    var level: Logger.Level
    var format: LineLogHandler.Format
    var network: NetworkSettings
  }

  private func settings() throws -> Settings {
    let environment = Self.environment
    let concurrency = try concurrency ?? number("MARTLET_CONCURRENCY") ?? 256
    guard (1...10_000).contains(concurrency) else {
      throw ValidationError("--concurrency: 1 to 10000")
    }
    let toolConcurrency = try number("MARTLET_TOOLS_CONCURRENCY") ?? 8
    guard (1...1_000).contains(toolConcurrency) else {
      throw ValidationError("MARTLET_TOOLS_CONCURRENCY: 1 to 1000")
    }
    let grace = try grace ?? number("MARTLET_GRACE") ?? 25
    guard (0...86_400).contains(grace) else { throw ValidationError("--grace: 0 to 86400 seconds") }
    let level = logLevel ?? environment["MARTLET_LOG_LEVEL"] ?? "info"
    guard let level = Logger.Level(rawValue: level.lowercased()) else {
      throw ValidationError("--log-level: there is no level \"\(level)\"")
    }
    let format = logFormat ?? environment["MARTLET_LOG_FORMAT"] ?? "text"
    guard let format = LineLogHandler.Format(rawValue: format.lowercased()) else {
      throw ValidationError("--log-format: text or json")
    }
    let isOnce = try once || truth("MARTLET_ONCE") ?? false
    let network: NetworkSettings
    do {
      network = try NetworkSettings { environment[$0] }
    } catch {
      throw ValidationError("\(error)")
    }
    return Settings(
      concurrency: concurrency, toolConcurrency: toolConcurrency, once: isOnce, grace: grace,
      level: level, format: format, network: network)
  }

  private func number<Value: LosslessStringConvertible>(_ variable: String) throws -> Value? {
    guard let text = Self.environment[variable] else { return nil }
    guard let value = Value(text) else { throw ValidationError("\(variable) is not a number") }
    return value
  }

  private func truth(_ variable: String) throws -> Bool? {
    switch Self.environment[variable]?.lowercased() {
    case nil: nil
    case "1", "true", "yes": true
    case "0", "false", "no": false
    default: throw ValidationError("\(variable): 1, true or yes, or 0, false or no")
    }
  }

  func run() async throws {
    let settings = try settings()
    let environment = Self.environment
    var logger = Logger(label: "martlet") { _ in
      LineLogHandler(settings.format, level: settings.level)
    }
    logger.logLevel = settings.level
    let masters: MasterKeyring
    do {
      masters = try MasterKeyring(logger: logger) { environment[$0] }
    } catch {
      writeError("martlet: \(error)")
      throw ExitCode(1)
    }
    var configuration = Worker.Configuration(
      secrets: Secrets(directory: environment["MARTLET_SECRETS_DIR"]) { environment[$0] },
      masters: masters, logger: logger)
    configuration.conninfo = databaseURL ?? environment["DATABASE_URL"] ?? ""
    configuration.tools = environment["MARTLET_TOOLS_DATABASE_URL"]
    configuration.toolConcurrency = settings.toolConcurrency
    configuration.name = name ?? environment["MARTLET_NAME"] ?? Self.defaultName
    configuration.version = Version.current
    configuration.concurrency = settings.concurrency
    configuration.once = settings.once
    configuration.network = settings.network
    warn(logger, settings.network)
    configuration.grace = .milliseconds(Int(settings.grace * 1_000))

    allowManyFiles()
    // Signals are caught before anybody can know that the worker runs.
    let signals = await UnixSignalsSequence(trapping: .sigterm, .sigint)
    let worker = Worker(configuration)
    let tally: Tally
    do {
      tally = try await withThrowingTaskGroup { group in
        group.addTask { () -> Tally? in try await worker.work() }
        group.addTask { () -> Tally? in
          await Self.obey(signals, worker)
          return nil
        }
        defer { group.cancelAll() }
        while let ended = try await group.next() {
          if let tally = ended { return tally }
        }
        return Tally()
      }
    } catch let error as WorkerError {
      writeError("martlet: \(error)")
      if let hint = error.hint { writeError("hint: \(hint)") }
      throw ExitCode(1)
    }
    if json { print(try jsonLine(tally)) }
  }

  private func warn(_ logger: Logger, _ network: NetworkSettings) {
    if ProcessGuard.isRoot {
      logger.warning("running as root, which the worker never needs: use an ordinary user")
    }
    if ProcessGuard.hidPasswords {
      logger.warning(
        "a password was on the command line, where others can read it: use DATABASE_URL, or PGPASSFILE"
      )
    }
    if let variable = network.ignoredProxy {
      logger.notice(
        "a proxy of the environment is not followed; MARTLET_PROXY is",
        metadata: ["variable": "\(variable)"])
    }
  }

  /// The first signal begins the end, the second is the end.
  private static func obey(_ signals: UnixSignalsSequence, _ worker: Worker) async {
    var count = 0
    for await signal in signals {
      count += 1
      if count == 1 {
        worker.stop()
      } else {
        _exit(signal == .sigint ? 130 : 143)
      }
    }
  }

  /// Each call under way has a connection. The usual soft limit of 1,024 files is there for programs
  /// that use `select`.
  private func allowManyFiles() {
    #if canImport(Glibc)
      let files = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
    #else
      let files = RLIMIT_NOFILE
    #endif
    var limit = rlimit()
    guard getrlimit(files, &limit) == 0, limit.rlim_cur < limit.rlim_max else { return }
    limit.rlim_cur = limit.rlim_max
    _ = setrlimit(files, &limit)
  }

  private static var defaultName: String {
    "\(ProcessInfo.processInfo.hostName):\(ProcessInfo.processInfo.processIdentifier)"
  }
}
