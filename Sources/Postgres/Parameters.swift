#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Hands parameters to C without copying them: a native Swift string ends with a NUL in memory.
///
/// `body` gets nil in the place of the array where there are no parameters. It is not called where a
/// parameter contains a NUL, which would cut the text short.
/// - Returns: what `body` returned, or the number of the first parameter with a NUL, from 1.
func withCStrings(
  _ strings: [String?], _ body: (UnsafePointer<UnsafePointer<CChar>?>?) -> Int32
) -> ParameterOutcome {
  if strings.isEmpty { return .sent(body(nil)) }
  return withUnsafeTemporaryAllocation(
    of: UnsafePointer<CChar>?.self, capacity: strings.count
  ) { pointers in
    pointers.initialize(repeating: nil)
    return fill(pointers, from: strings, at: 0, body)
  }
}

enum ParameterOutcome: Equatable {
  case sent(Int32)
  case containsNUL(Int)
}

// Recursive, because each pointer lives inside the call that lends it.
private func fill(
  _ pointers: UnsafeMutableBufferPointer<UnsafePointer<CChar>?>, from strings: [String?],
  at index: Int, _ body: (UnsafePointer<UnsafePointer<CChar>?>?) -> Int32
) -> ParameterOutcome {
  var index = index
  while index < strings.count, strings[index] == nil { index += 1 }
  guard index < strings.count, let string = strings[index] else {
    return .sent(body(UnsafePointer(pointers.baseAddress)))
  }
  return string.withCString { pointer in
    guard strlen(pointer) == string.utf8.count else { return .containsNUL(index + 1) }
    pointers[index] = pointer
    return fill(pointers, from: strings, at: index + 1, body)
  }
}
