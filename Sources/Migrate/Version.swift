/// What this binary is.
package enum Version {
  /// By semantic versioning. The extension has the same one.
  package static let current = "0.1.0"
}
