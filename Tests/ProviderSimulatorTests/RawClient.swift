import Dispatch
import Glibc
import ProviderSimulator

/// A TCP client that shows what really arrives: bytes, and how the connection ends.
///
/// Reading blocks, on a thread of Dispatch rather than one that Swift's tasks share.
final class RawClient: Sendable {
  enum Ending: Equatable {
    case fin
    case reset
    /// Enough was read; the connection is open.
    case open
    /// Nothing came for 30 seconds.
    case silent
  }

  private let descriptor: Int32

  init(port: Int) {
    descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = in_port_t(UInt16(port)).bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    precondition(connected == 0, "connect: \(errno)")
  }

  func close() { Glibc.close(descriptor) }

  func send(_ bytes: [UInt8]) {
    var sent = 0
    while sent < bytes.count {
      let count = bytes[sent...].withUnsafeBytes {
        Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      // The other side may well have closed: what it said before is still to be read.
      if count <= 0 { return }
      sent += count
    }
  }

  func send(_ text: String) { send(Array(text.utf8)) }

  /// Reads until the connection ends or `enough` is true of everything read by this call.
  func read(
    until enough: @escaping @Sendable ([UInt8]) -> Bool = { _ in false }
  ) async -> (bytes: [UInt8], ending: Ending) {
    await withCheckedContinuation { continuation in
      DispatchQueue.global().async { [descriptor] in
        var all: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
          var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
          // What was read is looked at only when nothing more waits: looking costs more.
          if !all.isEmpty, poll(&poller, 1, 0) == 0, enough(all) {
            return continuation.resume(returning: (all, .open))
          }
          if poll(&poller, 1, 30_000) <= 0 { return continuation.resume(returning: (all, .silent)) }
          let count = recv(descriptor, &buffer, buffer.count, 0)
          if count == 0 { return continuation.resume(returning: (all, .fin)) }
          if count < 0 { return continuation.resume(returning: (all, .reset)) }
          all += buffer[..<count]
        }
      }
    }
  }
}

/// A response as read from the wire.
struct RawResponse {
  var status = 0
  var headers: [String: String] = [:]
  /// With chunks joined.
  var body = ""
  /// Whether the message ended as HTTP wants it.
  var isWhole = false
  var ending = RawClient.Ending.open
  var rawBytes = 0

  /// Takes a response apart; `nil` while its head is incomplete.
  init?(_ bytes: [UInt8]) {
    guard let headEnd = Self.find("\r\n\r\n", in: bytes[...]) else { return nil }
    rawBytes = bytes.count
    let lines = String(decoding: bytes[..<headEnd], as: UTF8.self).split(separator: "\r\n")
    status = Int(lines[0].split(separator: " ")[1]) ?? 0
    for line in lines.dropFirst() {
      let parts = line.split(separator: ":", maxSplits: 1)
      headers[parts[0].lowercased()] = String(parts[1].drop { $0 == " " })
    }
    let rest = bytes[(headEnd + 4)...]
    if let length = headers["content-length"].flatMap(Int.init) {
      body = String(decoding: rest.prefix(length), as: UTF8.self)
      isWhole = rest.count >= length
    } else if headers["transfer-encoding"] == "chunked" {
      readChunks(rest)
    } else {
      body = String(decoding: rest, as: UTF8.self)
    }
  }

  private mutating func readChunks(_ bytes: ArraySlice<UInt8>) {
    var rest = bytes
    var joined: [UInt8] = []
    defer { body = String(decoding: joined, as: UTF8.self) }
    while let lineEnd = Self.find("\r\n", in: rest) {
      let digits = String(decoding: rest[..<lineEnd], as: UTF8.self)
      guard let length = Int(digits, radix: 16) else { return }
      rest = rest[(lineEnd + 2)...]
      if length == 0 {
        isWhole = rest.elementsEqual("\r\n".utf8)
        return
      }
      joined += rest.prefix(length)
      guard rest.count >= length + 2 else { return }
      rest = rest.dropFirst(length + 2)
    }
  }

  private static func find(_ text: String, in bytes: ArraySlice<UInt8>) -> Int? {
    let wanted = Array(text.utf8)
    return bytes.withUnsafeBytes { here in
      guard let base = here.baseAddress else { return nil }
      var at = 0
      // memchr skips quickly what a debug build compares slowly.
      while at + wanted.count <= here.count,
        let found = memchr(base + at, Int32(wanted[0]), here.count - at)
      {
        at = UnsafeRawPointer(found) - base
        if at + wanted.count <= here.count, here[at..<(at + wanted.count)].elementsEqual(wanted) {
          return bytes.startIndex + at
        }
        at += 1
      }
      return nil
    }
  }
}

extension Simulator {
  /// Sends one request on a connection of its own and reads until the message or the connection
  /// ends.
  func ask(
    _ method: String = "POST", _ path: String, headers: [String] = [], body: String = ""
  ) async -> RawResponse? {
    let client = RawClient(port: port)
    defer { client.close() }
    client.send(Self.request(method, path, headers: headers, body: body))
    let (bytes, ending) = await client.read { RawResponse($0)?.isWhole == true }
    var response = RawResponse(bytes)
    response?.ending = ending
    return response
  }

  static func request(
    _ method: String = "POST", _ path: String, headers: [String] = [], body: String = ""
  ) -> String {
    """
    \(method) \(path) HTTP/1.1\r
    host: localhost\r
    \(headers.map { $0 + "\r\n" }.joined())content-length: \(body.utf8.count)\r
    \r
    \(body)
    """
  }

  /// A chat request of either provider, with directives.
  func chat(
    _ wire: Wire, _ directives: String = "", stream: Bool = false, extra: String = ""
  ) async -> RawResponse? {
    await ask(
      "POST", wire == .openAI ? "/v1/chat/completions" : "/v1/messages",
      headers: Self.credentials(wire) + ["x-simulate: \(directives)"],
      body: Self.body(stream: stream, extra: extra))
  }

  static func credentials(_ wire: Wire) -> [String] {
    wire == .openAI
      ? ["authorization: Bearer k"] : ["x-api-key: k", "anthropic-version: 2023-06-01"]
  }

  static func body(stream: Bool = false, extra: String = "") -> String {
    #"{"model":"sim-small","max_tokens":1000,"stream":\#(stream),\#(extra)"#
      + #""messages":[{"role":"user","content":"Why does the martlet never land?"}]}"#
  }
}
