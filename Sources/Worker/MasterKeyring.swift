package import Logging
package import Sealing
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The master keys of this process, from `MARTLET_MASTER_KEY_FILE` or `MARTLET_MASTER_KEY`.
///
/// The file is read again when a key is missed, so that a new one reaches workers that run.
package final class MasterKeyring: Sendable {
  private struct State {
    var keys: MasterKeys?
    /// When the log last heard of trouble.
    var warnedAt: ContinuousClock.Instant?
  }

  private let file: String?
  private let logger: Logger?
  private let state: Mutex<State>

  /// Between two lines of the log about the same trouble.
  private static let pause = Duration.seconds(60)
  private static let largestFile = 1 << 20

  /// - Parameters:
  ///   - logger: hears of a file that has become unreadable, or that everybody may read.
  ///   - environment: looks a variable up.
  /// - Throws: where both variables are set, or the keys cannot be read.
  package init(
    logger: Logger? = nil, environment: (String) -> String?
  ) throws(MasterKeyTrouble) {
    let file = environment("MARTLET_MASTER_KEY_FILE").flatMap { $0.isEmpty ? nil : $0 }
    let text = environment("MARTLET_MASTER_KEY").flatMap { $0.isEmpty ? nil : $0 }
    if file != nil && text != nil {
      throw MasterKeyTrouble("MARTLET_MASTER_KEY and MARTLET_MASTER_KEY_FILE exclude each other")
    }
    self.file = file
    self.logger = logger
    var keys: MasterKeys?
    if let file { keys = try Self.read(file, logger) }
    if let text {
      do { keys = try MasterKeys(parsing: Array(text.utf8)) } catch {
        throw MasterKeyTrouble("MARTLET_MASTER_KEY: \(error)")
      }
    }
    state = Mutex(State(keys: keys))
  }

  /// Whether there is any key.
  package var isEmpty: Bool { state.withLock { $0.keys == nil } }

  /// The ids of all keys, the current one first.
  package var ids: [String] { state.withLock { ($0.keys?.keys ?? []).map(\.id) } }

  /// A key; nil where it is not there, also not after another look into the file.
  package func key(_ id: String) -> MasterKeys.Key? {
    if let key = state.withLock({ $0.keys?[id] }) { return key }
    readAgain()
    return state.withLock { $0.keys?[id] }
  }

  /// The key for what is sealed now: the first of the file as it is now.
  package func current() -> MasterKeys.Key? {
    readAgain()
    return state.withLock { $0.keys?.current }
  }

  /// A file that is broken, or half written, changes nothing.
  private func readAgain() {
    guard let file else { return }
    do {
      let keys = try Self.read(file, nil)
      state.withLock { $0.keys = keys }
    } catch {
      let isNews = state.withLock { state in
        if let warnedAt = state.warnedAt, ContinuousClock.now - warnedAt < Self.pause {
          return false
        }
        state.warnedAt = .now
        return true
      }
      guard isNews else { return }
      logger?.warning("the master keys cannot be read again", metadata: ["error": "\(error)"])
    }
  }

  private static func read(_ file: String, _ logger: Logger?) throws(MasterKeyTrouble) -> MasterKeys
  {
    let handle = open(file, O_RDONLY | O_CLOEXEC)
    guard handle >= 0 else {
      throw MasterKeyTrouble(
        "the master key file \(file) cannot be read: \(String(cString: strerror(errno)))")
    }
    defer { close(handle) }
    var status = stat()
    guard fstat(handle, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
      throw MasterKeyTrouble("the master key file \(file) is not a file")
    }
    guard status.st_mode & 0o022 == 0 else {
      throw MasterKeyTrouble(
        "the master key file \(file) may be changed by others than its owner: chmod go-w")
    }
    if status.st_mode & 0o004 != 0 {
      logger?.warning(
        "everybody on this machine may read the master key file", metadata: ["file": "\(file)"])
    }
    guard status.st_size <= largestFile else {
      throw MasterKeyTrouble("the master key file \(file) is too large to be one")
    }
    var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
    defer { erase(&bytes) }
    let length = pread(handle, &bytes, bytes.count, 0)
    guard length >= 0 else { throw MasterKeyTrouble("the master key file \(file) cannot be read") }
    do {
      return try MasterKeys(parsing: bytes[..<length])
    } catch {
      throw MasterKeyTrouble("the master key file \(file): \(error)")
    }
  }
}

/// Why there are no master keys. Never quotes them.
package struct MasterKeyTrouble: Error, Sendable, CustomStringConvertible {
  package let description: String

  init(_ description: String) { self.description = description }
}
