internal import ArgumentParser
internal import Migrate
internal import Worker

struct VersionCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "version", abstract: "Prints the version, and what it fits.")

  @Flag(help: "Print JSON.")
  var json = false

  private struct Report: Encodable {
    let version: String
    /// Of the worker: docs/worker-protocol.md.
    let workerProtocol: Int
    /// The newest migration that this binary has.
    let schema: String?

    enum CodingKeys: String, CodingKey {
      case version
      case workerProtocol = "protocol"
      case schema
    }
  }

  func run() async throws {
    let report = Report(
      version: Version.current, workerProtocol: Worker.protocolNumber,
      schema: try Schema.embedded().migrations.last?.version)
    if json {
      print(try jsonLine(report))
    } else {
      print(
        "martlet \(report.version), worker protocol \(report.workerProtocol), "
          + "schema \(report.schema ?? "none")")
    }
  }
}
