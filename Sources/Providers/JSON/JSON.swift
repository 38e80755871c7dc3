/// A value inside a parsed JSON text.
///
/// Written for this module because what providers send is not always what a strict decoder takes:
/// lone surrogates, NUL, invalid UTF-8, `NaN` and duplicate keys (the last one counts, as in
/// PostgreSQL's `jsonb`) must neither fail a chunk nor get through to the database, large requests
/// are spliced without being decoded, and a body that broke off still gives what it held.
///
/// A value is a position in a tape of nodes over the original bytes: parsing a chunk of 250 bytes
/// costs one allocation, and strings are decoded only where they are asked for.
package struct JSON: Sendable {
  package enum Kind: UInt8, Sendable {
    case null, bool, number, string, array, object
  }

  /// One value on the tape. Members of objects are two nodes, the key's and the value's.
  struct Node: Sendable {
    var kind: Kind
    /// Strings only: holds an escape or a control character, so that its bytes are not its text.
    var escaped = false
    /// First byte; of strings the first after the quotation mark.
    var start: Int32
    /// One past the last byte; of strings the closing quotation mark.
    var end: Int32
    /// Index of the node after this value and all it contains.
    var next: Int32
  }

  let bytes: [UInt8]
  let tape: [Node]
  let index: Int

  /// The whole text, or nil if it is not one JSON value.
  package init?(_ bytes: [UInt8]) {
    guard case .whole(let json) = JSON.parse(bytes) else { return nil }
    self = json
  }

  init(bytes: [UInt8], tape: [Node], index: Int) {
    self.bytes = bytes
    self.tape = tape
    self.index = index
  }

  package var kind: Kind { tape[index].kind }

  /// The bytes as they were written; of strings without their quotation marks.
  var raw: ArraySlice<UInt8> {
    let node = tape[index]
    return bytes[Int(node.start)..<Int(node.end)]
  }

  /// The member `key` of an object; nil where there is none, or where it is null.
  package subscript(key: StaticString) -> JSON? {
    let wanted = UnsafeBufferPointer(start: key.utf8Start, count: key.utf8CodeUnitCount)
    return member { node in
      node.escaped
        ? JSON(bytes: bytes, tape: tape, index: 0).text(of: node).utf8.elementsEqual(wanted)
        : Int(node.end - node.start) == wanted.count
          && bytes[Int(node.start)..<Int(node.end)].elementsEqual(wanted)
    }
  }

  /// The member `key` of an object, for keys known only at run time.
  package func member(named key: String) -> JSON? {
    member { text(of: $0) == key }
  }

  private func member(where matches: (Node) -> Bool) -> JSON? {
    guard kind == .object else { return nil }
    var found: Int?
    var at = index + 1
    let end = Int(tape[index].next)
    while at < end {
      if matches(tape[at]) { found = at + 1 }
      at = Int(tape[at + 1].next)
    }
    guard let found, tape[found].kind != .null else { return nil }
    return JSON(bytes: bytes, tape: tape, index: found)
  }

  /// The elements of an array; none of anything else.
  package var elements: [JSON] {
    guard kind == .array else { return [] }
    var elements: [JSON] = []
    var at = index + 1
    let end = Int(tape[index].next)
    while at < end {
      elements.append(JSON(bytes: bytes, tape: tape, index: at))
      at = Int(tape[at].next)
    }
    return elements
  }

  /// The members of an object in their order, repeated keys and nulls included.
  package var members: [(key: String, value: JSON)] {
    guard kind == .object else { return [] }
    var members: [(key: String, value: JSON)] = []
    var at = index + 1
    let end = Int(tape[index].next)
    while at < end {
      members.append((text(of: tape[at]), JSON(bytes: bytes, tape: tape, index: at + 1)))
      at = Int(tape[at + 1].next)
    }
    return members
  }
}
