import NIOCore
import NIOHTTP1
import NIOPosix
import Synchronization

/// How a simulator is started.
package struct SimulatorConfiguration: Sendable {
  /// Address to listen on.
  package var host = "127.0.0.1"
  /// Port to listen on; `0` lets the system choose.
  package var port = 0
  /// Event loops.
  package var threads = 1
  /// What requests are answered with where they say nothing else.
  package var defaults = Directives()
  /// File that gets one line of JSON for every request; appended to.
  package var logFile: String?
  /// Requests that `/__log` remembers.
  package var rememberedRequests = 200_000

  package init() {}
}

/// A server that speaks like OpenAI and Anthropic, for demos, tests and benchmarks.
package final class Simulator: Sendable {
  /// The port that is listened on.
  package let port: Int
  /// What was answered so far.
  package let log: RequestLog
  private let group: MultiThreadedEventLoopGroup
  private let channel: any Channel
  private let file: LogFile?

  private init(
    port: Int, log: RequestLog, group: MultiThreadedEventLoopGroup, channel: any Channel,
    file: LogFile?
  ) {
    self.port = port
    self.log = log
    self.group = group
    self.channel = channel
    self.file = file
  }

  /// Starts to listen. Throws if the port is taken or the log file cannot be opened.
  package static func start(_ configuration: SimulatorConfiguration) async throws -> Simulator {
    let log = RequestLog(
      capacity: configuration.rememberedRequests, keepsFileLines: configuration.logFile != nil)
    let file = try configuration.logFile.map { try LogFile(path: $0, log: log) }
    let responder = Responder(defaults: configuration.defaults, log: log)
    let group = MultiThreadedEventLoopGroup(numberOfThreads: max(1, configuration.threads))
    do {
      let channel = try await bootstrap(group, responder, file)
        .bind(host: configuration.host, port: configuration.port).get()
      if let file {
        _ = group.next().scheduleRepeatedTask(
          initialDelay: .milliseconds(100), delay: .milliseconds(100)
        ) { _ in file.flush() }
      }
      return Simulator(
        port: channel.localAddress?.port ?? configuration.port, log: log, group: group,
        channel: channel, file: file)
    } catch {
      try? await group.shutdownGracefully()
      throw error
    }
  }

  private static func bootstrap(
    _ group: MultiThreadedEventLoopGroup, _ responder: Responder, _ file: LogFile?
  ) -> ServerBootstrap {
    let connections = Atomic64()
    return ServerBootstrap(group: group)
      .serverChannelOption(.backlog, value: 4_096)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
      .serverChannelOption(.maxMessagesPerRead, value: 64)
      .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandlers([
            ByteToMessageHandler(HTTPRequestDecoder(leftOverBytesStrategy: .dropBytes)),
            ConnectionHandler(
              responder: responder, connection: connections.next(),
              flushLog: { file?.flush() }),
          ])
        }
      }
  }

  /// Closes every connection, writes the rest of the log and releases the threads.
  package func stop() async throws {
    try? await channel.close()
    try await group.shutdownGracefully()
    file?.close()
  }
}

/// A counter that closures can share.
private final class Atomic64: Sendable {
  private let value = Atomic<UInt64>(0)

  func next() -> UInt64 { value.wrappingAdd(1, ordering: .relaxed).newValue }
}
