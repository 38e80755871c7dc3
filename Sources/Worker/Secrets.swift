import FoundationEssentials
package import Providers

/// Where the values of providers' secrets come from: a file of the secret's name in a directory, or
/// else the environment variable of that name. Values are never logged and never part of an error.
package struct Secrets: Sendable {
  package var directory: String?
  private let environment: @Sendable (String) -> String?

  /// - Parameters:
  ///   - directory: `MARTLET_SECRETS_DIR`; nil: the environment only.
  ///   - environment: looks a variable up.
  package init(directory: String?, environment: @escaping @Sendable (String) -> String?) {
    self.directory = directory
    self.environment = environment
  }

  /// The value of a secret. Names come from a table, so only those are taken that cannot lead to
  /// anything but a provider's key: `^[A-Z][A-Z0-9_]*_(API_KEY|KEY|TOKEN)$`.
  package func value(of name: String) throws(Failure) -> String {
    guard Self.isName(name) else {
      throw Failure(
        .unsendable,
        message: "the provider's secret must be named like OPENAI_API_KEY: "
          + "capitals, digits and underscores, ending in _API_KEY, _KEY or _TOKEN")
    }
    if let directory, let bytes = try? Data(contentsOf: URL(filePath: directory + "/" + name)) {
      var value = String(decoding: bytes, as: UTF8.self)
      if value.hasSuffix("\r\n") || value.hasSuffix("\n") { value.removeLast() }
      if !value.isEmpty { return value }
    }
    if let value = environment(name), !value.isEmpty { return value }
    throw Failure(
      .unsendable,
      message: "the secret \(name) is not set for the worker, neither in its environment nor as a "
        + "file in MARTLET_SECRETS_DIR")
  }

  /// Whether a secret may be called so.
  package static func isName(_ name: String) -> Bool {
    guard let first = name.utf8.first, (0x41...0x5a).contains(first) else { return false }
    let isPlain = name.utf8.allSatisfy {
      (0x41...0x5a).contains($0) || (0x30...0x39).contains($0) || $0 == 0x5f
    }
    // `^[A-Z][A-Z0-9_]*_` asks for at least one character before the ending.
    return isPlain && name.utf8.count <= 100
      && ["_API_KEY", "_KEY", "_TOKEN"].contains { name.hasSuffix($0) && name.count > $0.count }
  }
}
