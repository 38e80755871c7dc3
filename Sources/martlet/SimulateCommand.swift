import ArgumentParser
import ProviderSimulator
import UnixSignals

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// `martlet simulate`: a local server that answers like OpenAI and Anthropic.
struct SimulateCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "simulate",
    abstract: "Run a fake provider that speaks OpenAI's and Anthropic's protocols.",
    discussion: """
      Prints `listening on http://HOST:PORT` when it is ready and runs until SIGTERM or SIGINT. \
      Requests choose their own answer, speed and faults by directives after a `+` in the model \
      name (`sim-small+status=529;times=1`) or in the header `x-simulate`; docs/simulator.md lists \
      them.
      """)

  @Option(help: "Port to listen on; 0 lets the system choose.")
  var port = 0

  @Option(help: "Address to listen on.")
  var host = "127.0.0.1"

  @Option(help: "Milliseconds before each response.")
  var latencyMs = 0

  @Option(help: "Speed of answers in tokens per second; 0 is as fast as possible.")
  var tokensPerSecond = 0.0

  @Option(help: "Text of every answer; without it, sentences of the request are repeated.")
  var answer: String?

  @Option(help: "Directives for every request, such as 'usage=cached:200;ttft=50'.")
  var directives = ""

  @Option(help: "File that gets one line of JSON for every request; appended to.")
  var log: String?

  @Option(help: "Threads that serve connections.")
  var threads = 1

  @Option(help: "File that gets the port, in one write, once the server is ready.")
  var portFile: String?

  func validate() throws {
    guard (0...65_535).contains(port) else { throw ValidationError("--port: 0 to 65535") }
    guard (1...64).contains(threads) else { throw ValidationError("--threads: 1 to 64") }
    guard (0...3_600_000).contains(latencyMs) else {
      throw ValidationError("--latency-ms: 0 to 3600000")
    }
    guard (0...1_000_000).contains(tokensPerSecond) else {
      throw ValidationError("--tokens-per-second: 0 to 1000000")
    }
    _ = try defaults()
  }

  private func defaults() throws -> Directives {
    var defaults = Directives()
    defaults.latency = latencyMs
    defaults.tokensPerSecond = tokensPerSecond
    if let answer { defaults.answerText = answer }
    do throws(DirectiveError) {
      try defaults.apply(directives)
    } catch {
      throw ValidationError("--directives: \(error)")
    }
    return defaults
  }

  func run() async throws {
    var configuration = SimulatorConfiguration()
    configuration.host = host
    configuration.port = port
    configuration.threads = threads
    configuration.defaults = try defaults()
    configuration.logFile = log
    Self.allowManyConnections()
    // Signals are caught before anybody can know that the server runs.
    let signals = await UnixSignalsSequence(trapping: .sigterm, .sigint)
    let simulator = try await Simulator.start(configuration)
    do {
      try announce(simulator.port)
    } catch {
      try await simulator.stop()
      throw error
    }
    for await _ in signals { break }
    try await simulator.stop()
  }

  /// Raises the soft limit of open files, often 1,024, to what the system allows: every
  /// connection is one. Where that fails the server still runs, with fewer connections.
  private static func allowManyConnections() {
    #if canImport(Glibc)
      let files = __rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue))
    #else
      let files = RLIMIT_NOFILE
    #endif
    var limit = rlimit()
    guard getrlimit(files, &limit) == 0 else { return }
    limit.rlim_cur = min(limit.rlim_max, 65_536)
    _ = setrlimit(files, &limit)
  }

  private func announce(_ port: Int) throws {
    if let portFile {
      // Renamed into place, so that a reader never sees half a number.
      let unfinished = "\(portFile).\(getpid())"
      guard let file = fopen(unfinished, "w") else { throw PortFileError(path: portFile) }
      let isWritten = fputs("\(port)\n", file) >= 0
      guard fclose(file) == 0, isWritten, rename(unfinished, portFile) == 0 else {
        throw PortFileError(path: portFile)
      }
    }
    let shownHost = host.contains(":") ? "[\(host)]" : host
    let line = "listening on http://\(shownHost):\(port)\n"
    _ = line.withCString { write(1, $0, strlen($0)) }
  }
}

/// The port file could not be written.
private struct PortFileError: Error, CustomStringConvertible {
  var path: String
  var code = errno

  var description: String { "\(path): \(String(cString: strerror(code)))" }
}
