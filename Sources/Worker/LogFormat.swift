import FoundationEssentials
package import Logging

#if canImport(Glibc)
  @preconcurrency import Glibc
#elseif canImport(Musl)
  @preconcurrency import Musl
#endif

/// Writes log lines to standard error, as text or as one JSON object a line. Whatever a value holds,
/// a line stays one.
package struct LineLogHandler: LogHandler {
  package enum Format: String, Sendable, CaseIterable {
    case text
    case json
  }

  package var logLevel: Logger.Level
  package var metadata: Logger.Metadata = [:]
  package var metadataProvider: Logger.MetadataProvider?
  private let format: Format

  package init(_ format: Format, level: Logger.Level) {
    self.format = format
    logLevel = level
  }

  package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  package func log(event: LogEvent) {
    let all = event.metadata.map { metadata.merging($0) { $1 } } ?? metadata
    let pairs = all.sorted { $0.key < $1.key }.map { ($0.key, "\($0.value)") }
    write(Self.line(format, level: event.level, message: "\(event.message)", pairs, at: .now))
  }

  static func line(
    _ format: Format, level: Logger.Level, message: String, _ pairs: [(String, String)],
    at time: Date
  ) -> String {
    let stamp = time.formatted(.iso8601.year().month().day().time(includingFractionalSeconds: true))
    switch format {
    case .text:
      let words = pairs.map { "\(LogText.bare($0))=\(word($1))" }
      return "\(stamp)Z \(level) \(([LogText.bare(message)] + words).joined(separator: " "))\n"
    case .json:
      let own = [("time", stamp + "Z"), ("level", level.rawValue), ("message", message)]
      let members = (own + pairs).map { "\(LogText.quoted($0)):\(LogText.quoted($1))" }
      return "{\(members.joined(separator: ","))}\n"
    }
  }

  /// A value in one word where it is one, in quotes where it is not.
  private static func word(_ value: String) -> String {
    LogText.isWord(value) ? value : LogText.quoted(value)
  }

  /// One write a line, so that lines of threads do not mix.
  private func write(_ line: String) { fputs(line, stderr) }
}
