import Foundation
import Testing

@testable import Sealing

private func bytes(_ hex: String) -> [UInt8] {
  let digits = Array(hex.utf8)
  return stride(from: 0, to: digits.count, by: 2).map {
    UInt8(String(decoding: digits[$0...($0 + 1)], as: UTF8.self), radix: 16) ?? 0
  }
}

private func text(_ secret: SecretBytes) -> [UInt8] { secret.withBytes { Array($0) } }

private let place = SealedContext.secret(tenant: "t", name: "A_KEY")

@Suite struct SealingTests {
  /// Test cases 13 to 16 of McGrew and Viega's "The Galois/Counter Mode of Operation", which NIST's
  /// SP 800-38D refers to.
  @Test(
    "known answers",
    arguments: [
      (
        key: String(repeating: "0", count: 64), nonce: String(repeating: "0", count: 24), data: "",
        plain: "", sealed: "530f8afbc74536b9a963b4f1c4cb738b"
      ),
      (
        key: String(repeating: "0", count: 64), nonce: String(repeating: "0", count: 24), data: "",
        plain: String(repeating: "0", count: 32),
        sealed: "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
      ),
      (
        key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        nonce: "cafebabefacedbaddecaf888", data: "",
        plain: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
          + "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
        sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
          + "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
          + "b094dac5d93471bdec1a502270e3cc6c"
      ),
      (
        key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        nonce: "cafebabefacedbaddecaf888", data: "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        plain: "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
          + "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
          + "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
          + "76fc6ece0f4e1768cddf8853bb2d551b"
      ),
    ])
  func knownAnswers(
    vector: (key: String, nonce: String, data: String, plain: String, sealed: String)
  ) throws {
    let key = SecretBytes(copying: bytes(vector.key))
    let sealed = try Sealing.seal(
      bytes(vector.plain), with: key, nonce: bytes(vector.nonce),
      authenticating: bytes(vector.data))
    #expect(sealed == bytes(vector.nonce + vector.sealed))
    let opened = try Sealing.open(sealed, with: key, authenticating: bytes(vector.data))
    #expect(text(opened) == bytes(vector.plain))
  }

  @Test("what is sealed twice differs, and opens twice")
  func nonces() throws {
    let key = randomBytes(32)
    let values = try (0..<200).map { _ in try Sealing.seal([1, 2, 3], with: key, for: place) }
    #expect(Set(values.map { Array($0.prefix(12)) }).count == 200)
    for value in values {
      #expect(value.count == 3 + Sealing.overhead)
      #expect(try text(Sealing.open(value, with: key, for: place)) == [1, 2, 3])
    }
  }

  @Test("every bit counts: of the nonce, the text and the tag")
  func tampering() throws {
    let key = randomBytes(32)
    let sealed = try Sealing.seal(Array("a value".utf8), with: key, for: place)
    for index in sealed.indices {
      for bit in 0..<8 {
        var changed = sealed
        changed[index] ^= 1 << bit
        #expect(throws: SealingError.self) { try Sealing.open(changed, with: key, for: place) }
      }
    }
    for length in 0..<sealed.count {
      #expect(throws: SealingError.self) {
        try Sealing.open(Array(sealed.prefix(length)), with: key, for: place)
      }
    }
    #expect(throws: SealingError.self) { try Sealing.open(sealed + [0], with: key, for: place) }
  }

  @Test("another key does not open it, and a key of another length is none")
  func keys() throws {
    let key = randomBytes(32)
    let sealed = try Sealing.seal([1], with: key, for: place)
    for bit in 0..<256 {
      var other = text(key)
      other[bit / 8] ^= 1 << (bit % 8)
      #expect(throws: SealingError.self) {
        try Sealing.open(sealed, with: SecretBytes(copying: other), for: place)
      }
    }
    for length in [0, 16, 24, 31, 33] {
      #expect(throws: SealingError.self) {
        try Sealing.seal([1], with: randomBytes(length), for: place)
      }
    }
  }

  @Test("a value opens in its own place only")
  func places() throws {
    let key = randomBytes(32)
    var all: [SealedContext] = []
    for tenant in ["a", "b"] {
      all += [.dataKey(id: "k", tenant: tenant), .dataKey(id: tenant, tenant: "k")]
      all += ["A_KEY", "B_KEY"].map { .secret(tenant: tenant, name: $0) }
      for generation in ["g", "h"] {
        for attempt in [1, 2, 11] {
          all += SealedContext.Part.allCases.map {
            .call(tenant: tenant, generation: generation, attempt: attempt, part: $0)
          }
        }
      }
    }
    // Nobody is not an empty name, and fields do not run into each other.
    all += [.secret(tenant: nil, name: "A_KEY"), .secret(tenant: "", name: "A_KEY")]
    all += [.secret(tenant: "x", name: "yz"), .secret(tenant: "xy", name: "z")]
    all += [.dataKey(id: "k", tenant: nil)]
    #expect(Set(all.map(\.bytes)).count == all.count)
    for (index, context) in all.enumerated() {
      let sealed = try Sealing.seal([7], with: key, for: context)
      for (other, elsewhere) in all.enumerated() {
        let opened = try? Sealing.open(sealed, with: key, for: elsewhere)
        #expect((opened != nil) == (index == other))
      }
    }
  }

  @Test("values of any size, also none")
  func sizes() throws {
    let key = randomBytes(32)
    for size in [0, 1, 15, 16, 17, 1_000, 1 << 20] {
      let plain = text(randomBytes(size))
      let sealed = try Sealing.seal(plain, with: key, for: place)
      #expect(sealed.count == size + Sealing.overhead)
      #expect(try text(Sealing.open(sealed, with: key, for: place)) == plain)
    }
  }

  @Test("a data key opens with its master key, its id and its tenant only")
  func dataKeys() throws {
    let masters = try MasterKeys(
      parsing: "\(MasterKeys.newLine(id: "a"))\n\(MasterKeys.newLine(id: "b"))".utf8)
    let key = DataKey(newID: "id", tenant: "t")
    let wrapped = try key.wrapped(with: masters.current)
    #expect(wrapped.count == 60, "as the check in ai.data_keys says")
    let opened = try DataKey(id: "id", tenant: "t", wrapped: wrapped, with: masters.current)
    #expect(opened.bytes.isEqual(to: key.bytes))
    for (id, tenant, master) in [("di", "t", 0), ("id", nil, 0), ("id", "u", 0), ("id", "t", 1)] {
      #expect(throws: SealingError.self) {
        try DataKey(id: id, tenant: tenant, wrapped: wrapped, with: masters.keys[master])
      }
    }
  }

  @Test("the digest of pieces is that of the whole")
  func digests() {
    var empty = Digest()
    #expect(empty.hex == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    for piece in ["a", "", "bc"] { Array(piece.utf8).withUnsafeBytes { empty.update($0) } }
    #expect(empty.hex == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
  }

  @Test("errors say nothing of values")
  func errors() {
    for error in [SealingError.malformed, .notAuthentic, .keyLength(3)] {
      #expect(!error.description.isEmpty)
    }
  }
}

@Suite struct SecretBytesTests {
  @Test("what was taken is overwritten where it came from, and before it is let go")
  func erasing() {
    var source: [UInt8] = [1, 2, 3, 4]
    let secret = SecretBytes(taking: &source)
    #expect(source == [0, 0, 0, 0])
    #expect(text(secret) == [1, 2, 3, 4])
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 8, alignment: 1)
    defer { memory.deallocate() }
    memory.copyBytes(from: [9, 9, 9, 9, 9, 9, 9, 9])
    overwrite(memory)
    #expect(memory.allSatisfy { $0 == 0 })
    overwrite(UnsafeMutableRawBufferPointer(start: nil, count: 0))
  }

  @Test("equal is equal")
  func equality() {
    let one = SecretBytes(copying: [1, 2])
    #expect(one.isEqual(to: SecretBytes(copying: [1, 2])))
    #expect(!one.isEqual(to: SecretBytes(copying: [1, 3])))
    #expect(!one.isEqual(to: SecretBytes(copying: [1, 2, 3])))
    #expect(SecretBytes(copying: []).text.isEmpty)
  }
}
