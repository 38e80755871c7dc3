import Dispatch
import Glibc
import Synchronization

@testable import HTTP

/// A server for tests: blocking sockets, one thread a connection, a closure that plays the script.
final class TestServer: Sendable {
  let port: Int
  private let listener: Int32
  private let script: @Sendable (TestConnection) -> Void
  private let accepted = Atomic<Int>(0)

  var connections: Int { accepted.load(ordering: .relaxed) }
  var url: String { "http://127.0.0.1:\(port)" }

  init(_ script: @escaping @Sendable (TestConnection) -> Void) {
    self.script = script
    (listener, port) = boundToLoopback()
    precondition(listen(listener, 4096) == 0, "listen: \(errno)")
    TestServer.thread { [self] in
      while true {
        let fd = accept(listener, nil, nil)
        if fd < 0 {
          // Closed by nobody else, so that its number is not another server's while it is accepted from.
          Glibc.close(listener)
          return
        }
        var on: Int32 = 1
        setsockopt(
          fd, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
        let number = self.accepted.add(1, ordering: .relaxed).newValue
        TestServer.thread {
          let connection = TestConnection(fd: fd, number: number)
          script(connection)
          connection.close()
        }
      }
    }
  }

  /// Ends the accepting.
  func stop() { shutdown(listener, Int32(SHUT_RDWR)) }

  static func thread(_ body: @escaping @Sendable () -> Void) {
    var attributes = pthread_attr_t()
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, 128 << 10)
    pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
    var id = pthread_t()
    let box = Unmanaged.passRetained(ThreadBody(body))
    let code = pthread_create(&id, &attributes, runThreadBody, box.toOpaque())
    precondition(code == 0, "thread: \(code)")
  }
}

private final class ThreadBody: Sendable {
  let run: @Sendable () -> Void
  init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}

private func runThreadBody(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  Unmanaged<ThreadBody>.fromOpaque(context!).takeRetainedValue().run()
  return nil
}

/// One accepted connection, as the script sees it.
final class TestConnection: @unchecked Sendable {
  let fd: Int32
  /// 1 for the first connection of the server.
  let number: Int
  private var buffer: [UInt8] = []
  private var isClosed = false

  init(fd: Int32, number: Int) {
    self.fd = fd
    self.number = number
  }

  struct Request {
    var head: String
    var body: [UInt8]
    var lines: [Substring] { head.split(separator: "\r\n") }
  }

  /// Reads one request with its body; nil where the other side closed.
  func request() -> Request? {
    while true {
      if let end = headEnd() {
        let head = String(decoding: buffer[..<end], as: UTF8.self)
        var length = 0
        for line in head.split(separator: "\r\n")
        where line.lowercased().hasPrefix("content-length:") {
          length = Int(line.split(separator: ":")[1].drop { $0 == " " })!
        }
        while buffer.count < end + 4 + length { if !fill() { return nil } }
        let body = Array(buffer[(end + 4)..<(end + 4 + length)])
        buffer.removeFirst(end + 4 + length)
        return Request(head: head, body: body)
      }
      if !fill() { return nil }
    }
  }

  private func headEnd() -> Int? {
    guard buffer.count >= 4 else { return nil }
    return (0...(buffer.count - 4)).first {
      buffer[$0] == 13 && buffer[$0 + 1] == 10 && buffer[$0 + 2] == 13 && buffer[$0 + 3] == 10
    }
  }

  private func fill() -> Bool {
    var chunk = [UInt8](repeating: 0, count: 65_536)
    let count = recv(fd, &chunk, chunk.count, 0)
    if count <= 0 { return false }
    buffer.append(contentsOf: chunk[..<count])
    return true
  }

  @discardableResult
  func send(_ text: String) -> Bool { send(Array(text.utf8)) }

  @discardableResult
  func send(_ bytes: [UInt8]) -> Bool {
    var sent = 0
    while sent < bytes.count {
      let count = bytes.withUnsafeBytes {
        Glibc.send(fd, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
      }
      if count <= 0 { return false }
      sent += count
    }
    return true
  }

  func respond(_ body: String, status: String = "200 OK", headers: [String] = []) {
    let lines = (["HTTP/1.1 \(status)", "Content-Length: \(body.utf8.count)"] + headers)
    send(lines.joined(separator: "\r\n") + "\r\n\r\n" + body)
  }

  /// Until all that was sent lies in the other side's socket: its kernel has acknowledged it. That `send` returned does not
  /// say so on a busy machine.
  func waitUntilDelivered() {
    var unacknowledged: Int32 = 0
    while ioctl(fd, UInt(TIOCOUTQ), &unacknowledged) == 0, unacknowledged > 0 { usleep(1_000) }
  }

  /// Waits until the other side closes; true if it did.
  func waitForClose() -> Bool {
    while fill() {}
    return true
  }

  /// Closes with a reset instead of an orderly end.
  func reset() {
    var linger = Glibc.linger(l_onoff: 1, l_linger: 0)
    setsockopt(
      fd, SOL_SOCKET, SO_LINGER, &linger, socklen_t(MemoryLayout<Glibc.linger>.size))
    close()
  }

  func close() {
    if isClosed { return }
    isClosed = true
    Glibc.close(fd)
  }
}

/// Keeps what a transfer gave, and lets a test wait for its end.
final class Recorder: TransferSink {
  struct State {
    var heads: [(status: Int, headers: [String: String])] = []
    var body: [UInt8] = []
    var outcomes: [TransferOutcome] = []
    var waiters: [CheckedContinuation<Void, Never>] = []
    var bodyWaiters: [(Int, CheckedContinuation<Void, Never>)] = []
  }
  private let state = Mutex(State())
  private let enoughAt: [UInt8]?
  private let begunAt: Int

  /// `enoughAt`: text after which the sink has enough; `begunAt`: bytes of the body from which on it
  /// counts as begun.
  init(enoughAt: String? = nil, begunAt: Int = 1) {
    self.enoughAt = enoughAt.map { Array($0.utf8) }
    self.begunAt = begunAt
  }

  var hasBegun: Bool { bodyCount >= begunAt }

  func head(status: Int, headers: [String: String]) {
    state.withLock { $0.heads.append((status, headers)) }
  }

  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict {
    let (waiters, verdict) = state.withLock { state in
      state.body.append(contentsOf: bytes)
      let count = state.body.count
      let ready = state.bodyWaiters.filter { $0.0 <= count }.map(\.1)
      state.bodyWaiters.removeAll { $0.0 <= count }
      let isEnough = enoughAt.map { state.body.suffix($0.count) == $0[...] } ?? false
      return (ready, isEnough ? BodyVerdict.enough : .more)
    }
    for waiter in waiters { waiter.resume() }
    return verdict
  }

  func finished(_ outcome: TransferOutcome) {
    let waiters = state.withLock { state in
      state.outcomes.append(outcome)
      defer {
        state.waiters = []
        state.bodyWaiters = []
      }
      return state.waiters + state.bodyWaiters.map(\.1)
    }
    for waiter in waiters { waiter.resume() }
  }

  /// The first outcome, once there is one.
  func outcome() async -> TransferOutcome {
    await withCheckedContinuation { continuation in
      let done = state.withLock { state in
        if !state.outcomes.isEmpty { return true }
        state.waiters.append(continuation)
        return false
      }
      if done { continuation.resume() }
    }
    return state.withLock { $0.outcomes[0] }
  }

  /// Returns when so many bytes of the body are there, or the transfer has ended.
  func bytes(_ count: Int) async {
    await withCheckedContinuation { continuation in
      let done = state.withLock { state in
        if state.body.count >= count || !state.outcomes.isEmpty { return true }
        state.bodyWaiters.append((count, continuation))
        return false
      }
      if done { continuation.resume() }
    }
  }

  var text: String { state.withLock { String(decoding: $0.body, as: UTF8.self) } }
  var bodyCount: Int { state.withLock { $0.body.count } }
  var heads: [(status: Int, headers: [String: String])] { state.withLock { $0.heads } }
  var outcomeCount: Int { state.withLock { $0.outcomes.count } }
}

/// A one-shot signal from a server's thread to a test.
final class Latch: Sendable {
  private struct State {
    var isOpen = false
    var waiters: [CheckedContinuation<Void, Never>] = []
  }
  private let state = Mutex(State())

  func open() {
    let waiters = state.withLock { state in
      state.isOpen = true
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.resume() }
  }

  func wait() async {
    await withCheckedContinuation { continuation in
      let isOpen = state.withLock { state in
        if !state.isOpen { state.waiters.append(continuation) }
        return state.isOpen
      }
      if isOpen { continuation.resume() }
    }
  }
}

/// Holds up the thread of the transfers from the first piece of a body until a signal.
final class PausingSink: TransferSink {
  let ends = DispatchSemaphore(value: 0)
  private let begins: DispatchSemaphore
  private let hasPaused = Atomic<Bool>(false)

  init(begins: DispatchSemaphore) { self.begins = begins }

  var hasBegun: Bool { true }

  func head(status: Int, headers: [String: String]) {}

  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict {
    if !hasPaused.exchange(true, ordering: .relaxed) {
      begins.signal()
      ends.wait()
    }
    return .more
  }

  func finished(_ outcome: TransferOutcome) {}
}
