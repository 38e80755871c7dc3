internal import CLibpq

/// The owner of a `PGconn`: closes it when it goes away.
struct ConnectionHandle: ~Copyable, @unchecked Sendable {
  let pointer: OpaquePointer

  deinit { PQfinish(pointer) }
}

/// A connection with several owners, closed when the last one lets go.
final class SharedConnection: Sendable {
  private let handle: ConnectionHandle
  var pointer: OpaquePointer { handle.pointer }
  var socket: Int32 { PQsocket(handle.pointer) }

  init(_ handle: consuming ConnectionHandle) { self.handle = handle }
}

/// The owner of a `PGresult`, which nobody changes after libpq has returned it.
struct ResultHandle: ~Copyable, @unchecked Sendable {
  let pointer: OpaquePointer

  deinit { PQclear(pointer) }
}

/// The owner of a `PGcancel`, which is immutable and may be used from any thread.
///
/// A class: a cancellation on one thread keeps it alive while another closes the connection.
final class CancelHandle: @unchecked Sendable {
  private let pointer: OpaquePointer

  init?(_ connection: OpaquePointer) {
    guard let pointer = PQgetCancel(connection) else { return nil }
    self.pointer = pointer
  }

  deinit { PQfreeCancel(pointer) }

  /// Asks the server to cancel what the connection is doing. Blocks for a connection of its own.
  /// - Returns: whether the request left; not whether it had an effect.
  func send() -> Bool {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { buffer in
      PQcancel(pointer, buffer.baseAddress, Int32(buffer.count)) == 1
    }
  }
}
