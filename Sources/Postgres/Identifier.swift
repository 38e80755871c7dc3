/// A name in double quotes, for the statements that take no parameters (LISTEN, CREATE DATABASE).
///
/// - Throws: `.input` for a NUL character and for more than 63 bytes, which the server would cut off
///   without a word: a LISTEN would then wait on another channel than the one that is notified.
package func quotedIdentifier(_ name: String) throws(PostgresError) -> String {
  guard !name.utf8.contains(0) else {
    throw PostgresError(.input, "a name contains a NUL character")
  }
  guard !name.isEmpty, name.utf8.count <= 63 else {
    throw PostgresError(.input, "a name has 1 to 63 bytes, not \(name.utf8.count)")
  }
  return "\"" + name.replacing("\"", with: "\"\"") + "\""
}
