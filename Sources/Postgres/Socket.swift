#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Breaks a socket without closing it: the descriptor stays its owner's.
func shutdownSocket(_ descriptor: Int32) {
  _ = shutdown(descriptor, Int32(SHUT_RDWR))
}
