import FoundationEssentials
package import HTTP

/// How the worker reaches providers, as its environment says.
package struct NetworkSettings: Sendable {
  package var transfers = TransferPool.Configuration()
  /// Bytes that files may take on their way into requests and out of answers.
  package var fileMemory = 512 << 20
  /// Variables for proxies that other programs follow and this one does not, where one is set.
  package var ignoredProxy: String?

  package struct Problem: Error, CustomStringConvertible {
    package var description: String
  }

  package init() {}

  /// - Parameter environment: looks a variable up.
  package init(_ environment: (String) -> String?) throws(Problem) {
    func value(_ name: String) -> String? {
      environment(name).flatMap { $0.isEmpty ? nil : $0 }
    }
    transfers.certificateAuthorities = value("MARTLET_CA_FILE")
    if let file = transfers.certificateAuthorities {
      guard let content = try? Data(contentsOf: URL(filePath: file)) else {
        throw Problem(description: "MARTLET_CA_FILE: \(file) cannot be read")
      }
      guard String(decoding: content, as: UTF8.self).contains("CERTIFICATE-----") else {
        throw Problem(description: "MARTLET_CA_FILE: there is no certificate (PEM) in \(file)")
      }
    }
    transfers.proxy = value("MARTLET_PROXY")
    if let proxy = transfers.proxy {
      // Not quoted: there may be a password in it.
      guard ProxyURL.isValid(proxy) else {
        throw Problem(
          description: "MARTLET_PROXY is not a URL such as http://user:password@proxy:3128, "
            + "special characters of user and password percent-encoded")
      }
    } else {
      let usual = ["https_proxy", "HTTPS_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
      ignoredProxy = usual.first { value($0) != nil }
    }
    if let text = value("MARTLET_ALLOWED_NETWORKS") {
      for part in text.split(whereSeparator: { $0 == "," || $0 == " " }) {
        guard let network = IPNetwork(String(part)) else {
          throw Problem(
            description: "MARTLET_ALLOWED_NETWORKS: \(part) is not a network such as 10.1.0.0/16")
        }
        transfers.allowedNetworks.append(network)
      }
    }
    if let text = value("MARTLET_ANSWER_MEMORY") {
      guard let megabytes = Int(text), (64...1 << 20).contains(megabytes) else {
        throw Problem(description: "MARTLET_ANSWER_MEMORY: 64 to 1048576, in MiB")
      }
      transfers.answerMemory = megabytes << 20
    }
    if let text = value("MARTLET_FILE_MEMORY") {
      guard let megabytes = Int(text), (64...1 << 20).contains(megabytes) else {
        throw Problem(description: "MARTLET_FILE_MEMORY: 64 to 1048576, in MiB")
      }
      fileMemory = megabytes << 20
    }
  }
}
