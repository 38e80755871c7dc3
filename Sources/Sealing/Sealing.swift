internal import Crypto
internal import FoundationEssentials

/// Why something does not open. Never says what it is.
package enum SealingError: Error, Sendable, CustomStringConvertible {
  /// Too short to be sealed.
  case malformed
  /// Another key, another row, or changed bytes: which of them cannot be told.
  case notAuthentic
  /// A key is 32 bytes.
  case keyLength(Int)

  package var description: String {
    switch self {
    case .malformed: "this is too short to be a sealed value"
    case .notAuthentic:
      "the sealed value does not open: it was sealed with another key or for another row, or was changed"
    case .keyLength(let count): "a key has 32 bytes, not \(count)"
    }
  }
}

/// AES-256-GCM with a random nonce of 96 bits. A sealed value is nonce | ciphertext | tag (16 bytes).
package enum Sealing {
  /// By which a value grows: the nonce and the tag.
  package static let overhead = 28
  /// Bytes of every key.
  package static let keyLength = 32

  /// Seals `plain` for one place.
  package static func seal(
    _ plain: [UInt8], with key: SecretBytes, for context: SealedContext
  ) throws(SealingError) -> [UInt8] {
    try seal(plain, with: key, nonce: nil, authenticating: context.bytes)
  }

  /// Seals `plain` for one place.
  package static func seal(
    _ plain: SecretBytes, with key: SecretBytes, for context: SealedContext
  ) throws(SealingError) -> [UInt8] {
    try plain.withBytes { bytes throws(SealingError) in
      try seal(bytes, with: key, nonce: nil, authenticating: context.bytes)
    }
  }

  /// Opens what `seal` gave for the same place.
  package static func open(
    _ sealed: [UInt8], with key: SecretBytes, for context: SealedContext
  ) throws(SealingError) -> SecretBytes {
    try open(sealed, with: key, authenticating: context.bytes)
  }

  /// - Parameter nonce: for tests with known answers; nil: a random one.
  static func seal(
    _ plain: some DataProtocol, with key: SecretBytes, nonce: [UInt8]?,
    authenticating data: [UInt8]
  ) throws(SealingError) -> [UInt8] {
    let key = try symmetric(key)
    do {
      let nonce = try nonce.map { try AES.GCM.Nonce(data: $0) } ?? AES.GCM.Nonce()
      let box = try AES.GCM.seal(plain, using: key, nonce: nonce, authenticating: data)
      var sealed: [UInt8] = []
      sealed.reserveCapacity(plain.count + overhead)
      sealed.append(contentsOf: box.nonce)
      sealed.append(contentsOf: box.ciphertext)
      sealed.append(contentsOf: box.tag)
      return sealed
    } catch {
      throw .malformed
    }
  }

  static func open(
    _ sealed: [UInt8], with key: SecretBytes, authenticating data: [UInt8]
  ) throws(SealingError) -> SecretBytes {
    let key = try symmetric(key)
    guard sealed.count >= overhead else { throw .malformed }
    do {
      let box = try AES.GCM.SealedBox(combined: sealed)
      var plain = try AES.GCM.open(box, using: key, authenticating: data)
      let secret = plain.withUnsafeBytes { SecretBytes(copying: $0) }
      plain.resetBytes(in: plain.startIndex..<plain.endIndex)
      return secret
    } catch {
      throw .notAuthentic
    }
  }

  /// CryptoKit's own keys are overwritten when they go, too.
  private static func symmetric(_ key: SecretBytes) throws(SealingError) -> SymmetricKey {
    guard key.count == keyLength else { throw .keyLength(key.count) }
    return key.withBytes { SymmetricKey(data: $0) }
  }
}

/// SHA-256 of what comes in pieces.
package struct Digest: Sendable {
  private var hash = SHA256()

  package init() {}

  /// Takes the next piece.
  package mutating func update(_ bytes: UnsafeRawBufferPointer) {
    hash.update(bufferPointer: bytes)
  }

  /// 64 hexadecimal digits of everything taken.
  package var hex: String {
    let digits = Array("0123456789abcdef".utf8)
    var text: [UInt8] = []
    for byte in hash.finalize() {
      text.append(digits[Int(byte >> 4)])
      text.append(digits[Int(byte & 15)])
    }
    return String(decoding: text, as: UTF8.self)
  }
}

/// Random bytes from the system, for keys.
package func randomBytes(_ count: Int) -> SecretBytes {
  var generator = SystemRandomNumberGenerator()
  var bytes = [UInt8](repeating: 0, count: count)
  for index in bytes.indices { bytes[index] = UInt8.random(in: 0...255, using: &generator) }
  return SecretBytes(taking: &bytes)
}
