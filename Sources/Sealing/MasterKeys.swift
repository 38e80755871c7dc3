/// What is wrong with a text of master keys. Never quotes it.
package struct MasterKeyError: Error, Sendable, Equatable, CustomStringConvertible {
  package var description: String

  init(_ description: String) { self.description = description }
}

/// The master keys: they seal data keys, and are the one thing that the database never has.
///
/// New data keys are sealed with the first one; the others open what is still sealed with them.
package struct MasterKeys: Sendable {
  /// One master key and the name by which the database knows it.
  package struct Key: Sendable {
    package let id: String
    package let bytes: SecretBytes
  }

  /// In the order of the text; at least one.
  package let keys: [Key]
  /// The first.
  package let current: Key

  /// Reads `id:base64` pairs, separated by line breaks or commas. Empty lines, and lines that begin
  /// with `#`, are passed over.
  ///
  /// - Throws: where a pair is none, an id is not 1 to 64 letters, digits, `.`, `_` and `-`, a key is
  ///   not 32 bytes, or an id or a key comes twice; also where there is no pair.
  package init(parsing text: some Collection<UInt8>) throws(MasterKeyError) {
    var keys: [Key] = []
    let breaks: Set<UInt8> = [UInt8(ascii: "\n"), UInt8(ascii: "\r"), UInt8(ascii: ",")]
    for piece in text.split(whereSeparator: breaks.contains) {
      let blanks: Set<UInt8> = [UInt8(ascii: " "), UInt8(ascii: "\t")]
      var line = piece.drop(while: blanks.contains)[...]
      while let last = Array(line.suffix(1)).first, blanks.contains(last) { line = line.dropLast() }
      if line.isEmpty || line.first == UInt8(ascii: "#") { continue }
      keys.append(try Self.key(of: line, number: keys.count + 1, among: keys))
    }
    guard let first = keys.first else { throw MasterKeyError("there is no master key in it") }
    self.keys = keys
    current = first
  }

  private static func key(
    of line: some Collection<UInt8>, number: Int, among known: [Key]
  ) throws(MasterKeyError) -> Key {
    guard let colon = line.firstIndex(of: UInt8(ascii: ":")) else {
      throw MasterKeyError("master key \(number) is not of the form id:base64")
    }
    let name = line[..<colon]
    guard isID(name) else {
      throw MasterKeyError(
        "the id of master key \(number) must be 1 to 64 letters, digits, dots, hyphens and underscores"
      )
    }
    let id = String(decoding: name, as: UTF8.self)
    guard !known.contains(where: { $0.id == id }) else {
      throw MasterKeyError("there are two master keys \(id)")
    }
    guard var bytes = Base64.decode(line[line.index(after: colon)...]) else {
      throw MasterKeyError("master key \(id) is not base64")
    }
    let count = bytes.count
    let secret = SecretBytes(taking: &bytes)
    guard count == Sealing.keyLength else {
      throw MasterKeyError("master key \(id) has \(count) bytes and must have 32")
    }
    guard !known.contains(where: { $0.bytes.isEqual(to: secret) }) else {
      throw MasterKeyError("master key \(id) is the same as another one")
    }
    return Key(id: id, bytes: secret)
  }

  /// nil: it is not among them.
  package subscript(id: String) -> Key? { keys.first { $0.id == id } }

  /// The line for a new key, for `MARTLET_MASTER_KEY_FILE`.
  package static func newLine(id: String) -> String {
    let bytes = randomBytes(Sealing.keyLength)
    return "\(id):" + bytes.withBytes { String(decoding: Base64.encode($0), as: UTF8.self) }
  }

  /// Whether a text may name a master key.
  package static func isID(_ text: some Collection<UInt8>) -> Bool {
    (1...64).contains(text.count)
      && text.allSatisfy {
        switch $0 {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
          UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"),
          UInt8(ascii: "-"):
          true
        default: false
        }
      }
  }
}

extension SecretBytes {
  /// In a time that does not tell where they differ.
  func isEqual(to other: SecretBytes) -> Bool {
    guard count == other.count else { return false }
    return withBytes { mine in
      other.withBytes { zip(mine, $0).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) } == 0 }
    }
  }
}
