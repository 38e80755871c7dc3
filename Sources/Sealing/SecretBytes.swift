#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Bytes that are overwritten before their memory is given back: keys, and what was sealed with them.
///
/// `@unchecked Sendable`: nothing changes after `init`.
package final class SecretBytes: @unchecked Sendable {
  private let storage: UnsafeMutableRawBufferPointer

  /// Takes a copy; `source` stays as it is.
  package init(copying source: UnsafeRawBufferPointer) {
    storage = .allocate(byteCount: source.count, alignment: 16)
    storage.copyMemory(from: source)
  }

  /// Takes a copy and overwrites `source`.
  package convenience init(taking source: inout [UInt8]) {
    self.init(copying: source)
    erase(&source)
  }

  /// Takes a copy; `source` stays as it is.
  package init(copying source: [UInt8]) {
    storage = .allocate(byteCount: source.count, alignment: 16)
    storage.copyBytes(from: source)
  }

  deinit {
    overwrite(storage)
    storage.deallocate()
  }

  /// The number of bytes.
  package var count: Int { storage.count }

  /// Lends the bytes. They are valid inside `body` only.
  package func withBytes<Value, Failure>(
    _ body: (UnsafeRawBufferPointer) throws(Failure) -> Value
  ) throws(Failure) -> Value {
    defer { withExtendedLifetime(self) {} }
    return try body(UnsafeRawBufferPointer(storage))
  }

  /// The bytes as text, for a consumer that needs a string. Nobody overwrites that string.
  package var text: String { withBytes { String(decoding: $0, as: UTF8.self) } }
}

/// Overwrites `bytes` with zeros, in a way that no optimization leaves out.
package func erase(_ bytes: inout [UInt8]) {
  bytes.withUnsafeMutableBytes { overwrite($0) }
}

func overwrite(_ bytes: UnsafeMutableRawBufferPointer) {
  guard let start = bytes.baseAddress, !bytes.isEmpty else { return }
  #if canImport(Darwin)
    _ = memset_s(start, bytes.count, 0, bytes.count)
  #else
    explicit_bzero(start, bytes.count)
  #endif
}
