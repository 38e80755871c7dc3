import Glibc

/// A port of the loopback address that refuses every connection, and that no other process gets until this is
/// closed: it is bound, and nobody listens. The port of a server that has ended is anybody's.
final class RefusingPort: Sendable {
  let number: Int
  private let descriptor: Int32

  init() { (descriptor, number) = boundToLoopback() }

  func close() { Glibc.close(descriptor) }
}

/// A TCP socket bound to a port of 127.0.0.1 that the system chose, and the port.
func boundToLoopback() -> (descriptor: Int32, port: Int) {
  let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
  var address = sockaddr_in()
  address.sin_family = sa_family_t(AF_INET)
  address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
  var length = socklen_t(MemoryLayout<sockaddr_in>.size)
  let code = withUnsafeMutablePointer(to: &address) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
      let code = bind(descriptor, pointer, length)
      getsockname(descriptor, pointer, &length)
      return code
    }
  }
  precondition(code == 0, "bind: \(errno)")
  return (descriptor, Int(UInt16(bigEndian: address.sin_port)))
}
