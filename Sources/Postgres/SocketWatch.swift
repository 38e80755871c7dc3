internal import Dispatch

/// Calls a handler while a connection's socket is readable, until this object goes away.
///
/// The source keeps the connection until dispatch has let the socket go: libpq must not close a
/// descriptor that is still watched, since its number may be another file's by then.
final class SocketWatch: @unchecked Sendable {
  // Unchecked: `cancel()` is all that is ever called, and it may be called from any thread.
  private let source: any DispatchSourceRead

  init(
    _ connection: SharedConnection, on queue: DispatchQueue,
    readable: @escaping @Sendable () -> Void
  ) {
    source = DispatchSource.makeReadSource(fileDescriptor: connection.socket, queue: queue)
    source.setEventHandler(handler: readable)
    source.setCancelHandler { withExtendedLifetime(connection) {} }
    source.activate()
  }

  deinit { source.cancel() }
}
