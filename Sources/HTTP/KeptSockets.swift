/// The addresses of a connection, which tell it from every other that is open.
struct ConnectionEnds: Hashable {
  let remote: String
  let remotePort: Int32
  let local: String
  let localPort: Int32
}

/// The sockets of kept connections. Before a request is sent libcurl says between which ends, but not
/// on which socket; that it says once a transfer has ended.
struct KeptSockets {
  private var sockets: [ConnectionEnds: Int32] = [:]
  /// Of connections that are closed nothing is heard.
  private static let most = 1 << 16

  /// Of a connection that is open. nil: it is not known.
  subscript(ends: ConnectionEnds) -> Int32? { sockets[ends] }

  mutating func keep(_ socket: Int32, of ends: ConnectionEnds) {
    if sockets.count >= Self.most { sockets.removeAll(keepingCapacity: true) }
    sockets[ends] = socket
  }
}
