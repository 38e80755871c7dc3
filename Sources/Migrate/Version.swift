/// What this binary is.
package enum Version {
  /// By semantic versioning. The extension has the same one.
  package static let current = "0.1.0"
  /// The number of the worker protocol (docs/worker-protocol.md).
  package static let workerProtocol = 1
}
