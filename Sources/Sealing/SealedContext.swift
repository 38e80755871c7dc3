/// What a sealed value is and to which row it belongs. It is authenticated with the value: moved to
/// another row, tenant, name or column, a value does not open any more.
package enum SealedContext: Sendable, Equatable {
  /// Which part of a call.
  package enum Part: String, Sendable, CaseIterable {
    /// Sizes, hashes and the like, as JSON.
    case facts
    /// The request's body.
    case request
    /// The response's body.
    case response
  }

  /// A data key, sealed with a master key. `tenant` nil: the operator's.
  case dataKey(id: String, tenant: String?)
  /// The value of a secret. `tenant` nil: the operator's.
  case secret(tenant: String?, name: String)
  /// A part of one attempt of a generation.
  case call(tenant: String, generation: String, attempt: Int, part: Part)

  /// The additional authenticated data: each field with its length before it, so that no two contexts
  /// give the same bytes. UUIDs count as PostgreSQL prints them; upper case is made lower.
  package var bytes: [UInt8] {
    let fields: [String?] =
      switch self {
      case .dataKey(let id, let tenant):
        ["martlet data key 1", id.lowercased(), tenant?.lowercased()]
      case .secret(let tenant, let name):
        ["martlet secret 1", tenant?.lowercased(), name]
      case .call(let tenant, let generation, let attempt, let part):
        [
          "martlet call 1", tenant.lowercased(), generation.lowercased(), String(attempt),
          part.rawValue,
        ]
      }
    var bytes: [UInt8] = []
    for field in fields {
      // Nothing is not the same as an empty text.
      guard let field else {
        bytes.append(contentsOf: [0xff, 0xff, 0xff, 0xff])
        continue
      }
      let length = UInt32(clamping: field.utf8.count)
      for shift in [UInt32(24), 16, 8, 0] { bytes.append(UInt8(length >> shift & 0xff)) }
      bytes.append(contentsOf: field.utf8)
    }
    return bytes
  }
}
