/// A key that seals values of one tenant, or the operator's; in the database it lies sealed with a
/// master key.
package struct DataKey: Sendable {
  /// UUID in lower case, as in `ai.data_keys`.
  package let id: String
  /// nil: the operator's.
  package let tenant: String?
  package let bytes: SecretBytes

  /// A new one.
  package init(newID id: String, tenant: String?) {
    self.id = id
    self.tenant = tenant
    bytes = randomBytes(Sealing.keyLength)
  }

  /// Opens a wrapped one.
  package init(
    id: String, tenant: String?, wrapped: [UInt8], with master: MasterKeys.Key
  ) throws(SealingError) {
    self.id = id
    self.tenant = tenant
    bytes = try Sealing.open(
      wrapped, with: master.bytes, for: .dataKey(id: id, tenant: tenant))
    guard bytes.count == Sealing.keyLength else { throw .keyLength(bytes.count) }
  }

  /// As it lies in the database.
  package func wrapped(with master: MasterKeys.Key) throws(SealingError) -> [UInt8] {
    try Sealing.seal(bytes, with: master.bytes, for: .dataKey(id: id, tenant: tenant))
  }
}
