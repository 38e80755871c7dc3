import NIOCore
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// The log file could not be opened or written.
package struct LogFileError: Error, CustomStringConvertible {
  package var path: String
  package var code: Int32

  package var description: String { "\(path): \(String(cString: strerror(code)))" }
}

/// Appends the lines of a `RequestLog` to a file, many at once.
final class LogFile: Sendable {
  private let path: String
  private let log: RequestLog
  /// `-1` once closed or after a failed write.
  private let descriptor: Mutex<Int32>

  init(path: String, log: RequestLog) throws(LogFileError) {
    self.path = path
    self.log = log
    let opened = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
    if opened < 0 { throw LogFileError(path: path, code: errno) }
    descriptor = Mutex(opened)
  }

  /// Writes all lines that wait. After a failure it says so once on standard error and stops.
  func flush() {
    descriptor.withLock { descriptor in
      var lines = log.takeUnwritten()
      while descriptor >= 0, lines.readableBytes > 0 {
        let written = lines.withUnsafeReadableBytes { bytes in
          write(descriptor, bytes.baseAddress, bytes.count)
        }
        if written >= 0 {
          lines.moveReaderIndex(forwardBy: written)
        } else if errno != EINTR {
          let error = LogFileError(path: path, code: errno)
          let message = "simulator: log stopped: \(error)\n"
          _ = message.withCString { write(2, $0, strlen($0)) }
          _ = Self.close(descriptor)
          descriptor = -1
        }
      }
    }
  }

  /// Writes what waits and closes the file.
  func close() {
    flush()
    descriptor.withLock { descriptor in
      if descriptor >= 0 { _ = Self.close(descriptor) }
      descriptor = -1
    }
  }

  private static func close(_ descriptor: Int32) -> Int32 {
    #if canImport(Glibc)
      Glibc.close(descriptor)
    #elseif canImport(Musl)
      Musl.close(descriptor)
    #else
      Darwin.close(descriptor)
    #endif
  }
}
