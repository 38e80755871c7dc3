internal import CLibpq

/// The rows that a statement gave, still in libpq's memory: a cell is copied when it is asked for.
///
/// Values are in PostgreSQL's text form. Rows and columns count from 0; an index out of range is a
/// programming error and traps, as with an array.
package struct QueryResult: Sendable {
  private final class Storage: Sendable {
    let handle: ResultHandle
    init(_ handle: consuming ResultHandle) { self.handle = handle }
  }

  private let storage: Storage
  /// The number of rows.
  package let count: Int
  /// The number of columns; 0 where the statement gives no rows by nature.
  package let columnCount: Int

  init(_ handle: consuming ResultHandle) {
    count = Int(PQntuples(handle.pointer))
    columnCount = Int(PQnfields(handle.pointer))
    storage = Storage(handle)
  }

  package var isEmpty: Bool { count == 0 }

  /// Rows that the statement inserted, changed, deleted or gave; 0 for other statements.
  package var affectedRows: Int {
    guard let text = PQcmdTuples(storage.handle.pointer) else { return 0 }
    return Int(String(cString: text)) ?? 0
  }

  /// A column's number by its exact name; the first one where several have it.
  package func column(named name: String) -> Int? {
    for column in 0..<columnCount {
      guard let found = PQfname(storage.handle.pointer, Int32(column)) else { continue }
      if name == String(cString: found) { return column }
    }
    return nil
  }

  /// The names of all columns, in order.
  package var columnNames: [String] {
    (0..<columnCount).map { column in
      PQfname(storage.handle.pointer, Int32(column)).map { String(cString: $0) } ?? ""
    }
  }

  /// A cell's bytes without a copy, nil for SQL NULL. They are valid inside `body` only.
  package func withBytes<Value, Failure>(
    _ row: Int, _ column: Int,
    _ body: (UnsafeBufferPointer<UInt8>?) throws(Failure) -> Value
  ) throws(Failure) -> Value {
    precondition(0 <= row && row < count, "row \(row) of \(count)")
    precondition(0 <= column && column < columnCount, "column \(column) of \(columnCount)")
    defer { withExtendedLifetime(storage) {} }
    let pointer = storage.handle.pointer
    if PQgetisnull(pointer, Int32(row), Int32(column)) == 1 { return try body(nil) }
    let length = Int(PQgetlength(pointer, Int32(row), Int32(column)))
    let value = UnsafeRawPointer(PQgetvalue(pointer, Int32(row), Int32(column)))
    return try body(
      UnsafeBufferPointer(start: value?.assumingMemoryBound(to: UInt8.self), count: length))
  }

  /// A cell as text, nil for SQL NULL.
  package subscript(row: Int, column: Int) -> String? {
    withBytes(row, column) { bytes in bytes.map { String(decoding: $0, as: UTF8.self) } }
  }

  /// A cell's bytes, nil for SQL NULL. JSON goes to a parser in this form without a String between.
  package func bytes(_ row: Int, _ column: Int) -> [UInt8]? {
    withBytes(row, column) { bytes in bytes.map { Array($0) } }
  }

  /// A cell as a number; nil for SQL NULL and for what is not an integer of Int's range.
  package func int(_ row: Int, _ column: Int) -> Int? {
    withBytes(row, column) { bytes in
      bytes.flatMap { Int(Substring(decoding: $0, as: UTF8.self)) }
    }
  }

  /// A cell as a truth value; nil for SQL NULL and for what is not a boolean.
  package func bool(_ row: Int, _ column: Int) -> Bool? {
    withBytes(row, column) { bytes in
      guard let bytes, bytes.count == 1 else { return nil }
      switch bytes[0] {
      case UInt8(ascii: "t"): return true
      case UInt8(ascii: "f"): return false
      default: return nil
      }
    }
  }
}
