package import NIOCore
import Synchronization

/// What the simulator did with one request.
package struct LogEntry: Sendable {
  /// Position in the log, from 1, without gaps; assigned when the request is over.
  package var sequence: UInt64 = 0
  /// Milliseconds since 1970 at which the request had arrived in full.
  package var time = 0
  package var endpoint = ""
  package var wire = Wire.openAI
  /// Model name as requested, directives included.
  package var model = ""
  package var requestID: UInt64 = 0
  package var bodyBytes = 0
  /// `Hash64` of the request's body.
  package var bodyHash: UInt64 = 0
  package var isStream = false
  /// `0` where no status line left.
  package var status = 0
  package var usage: TokenUsage?
  /// Whether the usage left in full, so that the client can know it.
  package var isUsageReported = false
  package var bytesSent = 0
  /// Whether a faultless answer left in full.
  package var isComplete = false
  /// Whether the client closed the connection before the response had left.
  package var isClientGone = false
  package var fault: String?
  package var tag: String?
  package var connection: UInt64 = 0
  package var durationMicroseconds = 0

  /// Appends the entry as one line of JSON.
  package func write(into buffer: inout ByteBuffer) {
    buffer.writeStaticString("{\"seq\":")
    buffer.writeDecimal(Int(sequence))
    buffer.writeStaticString(",\"time_ms\":")
    buffer.writeDecimal(time)
    Self.write("endpoint", endpoint, into: &buffer)
    Self.write("provider", wire.rawValue, into: &buffer)
    Self.write("model", model, into: &buffer)
    buffer.writeStaticString(",\"request_id\":\"req_")
    buffer.writeHex(requestID)
    buffer.writeStaticString("\",\"body_bytes\":")
    buffer.writeDecimal(bodyBytes)
    buffer.writeStaticString(",\"body_hash\":\"")
    buffer.writeHex(bodyHash)
    buffer.writeStaticString("\",\"stream\":")
    Self.write(isStream, into: &buffer)
    buffer.writeStaticString(",\"status\":")
    buffer.writeDecimal(status)
    writeUsage(into: &buffer)
    buffer.writeStaticString(",\"usage_reported\":")
    Self.write(isUsageReported, into: &buffer)
    buffer.writeStaticString(",\"bytes_sent\":")
    buffer.writeDecimal(bytesSent)
    buffer.writeStaticString(",\"complete\":")
    Self.write(isComplete, into: &buffer)
    buffer.writeStaticString(",\"client_gone\":")
    Self.write(isClientGone, into: &buffer)
    Self.write("fault", fault, into: &buffer)
    Self.write("tag", tag, into: &buffer)
    buffer.writeStaticString(",\"connection\":")
    buffer.writeDecimal(Int(connection))
    buffer.writeStaticString(",\"duration_us\":")
    buffer.writeDecimal(durationMicroseconds)
    buffer.writeStaticString("}\n")
  }

  private func writeUsage(into buffer: inout ByteBuffer) {
    guard let usage else {
      buffer.writeStaticString(",\"usage\":null")
      return
    }
    buffer.writeStaticString(",\"usage\":{\"input\":")
    buffer.writeDecimal(usage.input)
    buffer.writeStaticString(",\"cached\":")
    buffer.writeDecimal(usage.cached)
    buffer.writeStaticString(",\"write5m\":")
    buffer.writeDecimal(usage.write5m)
    buffer.writeStaticString(",\"write1h\":")
    buffer.writeDecimal(usage.write1h)
    buffer.writeStaticString(",\"output\":")
    buffer.writeDecimal(usage.output)
    buffer.writeStaticString(",\"reasoning\":")
    buffer.writeDecimal(usage.reasoning)
    buffer.writeStaticString("}")
  }

  private static func write(_ name: StaticString, _ text: String?, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(",\"")
    buffer.writeStaticString(name)
    guard let text else {
      buffer.writeStaticString("\":null")
      return
    }
    buffer.writeStaticString("\":\"")
    buffer.writeBytes(JSONText.escaped(text))
    buffer.writeStaticString("\"")
  }

  private static func write(_ flag: Bool, into buffer: inout ByteBuffer) {
    buffer.writeStaticString(flag ? "true" : "false")
  }
}

/// The newest entries in memory, all of them in a file where one is given.
package final class RequestLog: Sendable {
  private struct State {
    var ring: [LogEntry] = []
    var next: UInt64 = 1
    var unwritten = ByteBuffer()
  }

  private let state = Mutex(State())
  private let capacity: Int
  private let keepsFileLines: Bool
  /// Unwritten bytes that make `append` ask for a flush.
  private static let flushSize = 64 * 1_024

  /// Keeps `capacity` entries. With `keepsFileLines`, lines gather until `takeUnwritten`.
  package init(capacity: Int, keepsFileLines: Bool) {
    self.capacity = max(1, capacity)
    self.keepsFileLines = keepsFileLines
  }

  /// Adds an entry and returns its sequence number, and whether unwritten lines should be flushed.
  @discardableResult
  package func append(_ entry: LogEntry) -> (sequence: UInt64, wantsFlush: Bool) {
    state.withLock { state in
      var entry = entry
      entry.sequence = state.next
      state.next += 1
      if state.ring.count < capacity {
        state.ring.append(entry)
      } else {
        state.ring[Int((entry.sequence - 1) % UInt64(capacity))] = entry
      }
      if keepsFileLines { entry.write(into: &state.unwritten) }
      return (entry.sequence, state.unwritten.readableBytes > Self.flushSize)
    }
  }

  /// Replaces an entry whose last bytes did not reach the client after all. In the file, a second
  /// line with the same number replaces the first.
  package func amend(_ entry: LogEntry) {
    state.withLock { state in
      let index = Int((entry.sequence - 1) % UInt64(capacity))
      guard state.ring.indices.contains(index), state.ring[index].sequence == entry.sequence else {
        return
      }
      state.ring[index] = entry
      if keepsFileLines { entry.write(into: &state.unwritten) }
    }
  }

  /// Lines for the file that nobody has taken yet.
  package func takeUnwritten() -> ByteBuffer {
    state.withLock { state in
      let lines = state.unwritten
      state.unwritten = ByteBuffer()
      return lines
    }
  }

  /// The number of the newest entry, `0` without one.
  package var last: UInt64 { state.withLock { $0.next - 1 } }

  /// Entries with a number above `since`, oldest first, and how many of them are no longer kept.
  package func entries(since: UInt64) -> (entries: [LogEntry], dropped: UInt64) {
    state.withLock { state in
      let oldest = state.next - UInt64(state.ring.count)
      let first = max(since + 1, oldest)
      guard first < state.next else { return ([], 0) }
      let entries = (first..<state.next).map { state.ring[Int(($0 - 1) % UInt64(capacity))] }
      return (entries, first - (since + 1))
    }
  }

  /// Forgets everything and numbers from 1 again.
  package func reset() {
    state.withLock { state in
      state.ring = []
      state.next = 1
    }
  }
}
