import CCurl
import Glibc
import Synchronization

/// Runs any number of HTTP transfers on one thread of its own, with one pool of kept connections.
///
/// A request is never sent twice: where a kept connection dies after any part of the request left,
/// the transfer fails (`reset`) and the caller decides. Redirects are not followed. Certificates
/// are verified, from TLS 1.2 on. Nothing is decompressed, no cookie kept, no `.netrc` read, and no
/// proxy taken from the environment.
package final class TransferPool: Sendable {
  package struct Configuration: Sendable {
    /// Name of the thread; the system shows 15 bytes of it.
    package var name = "transfers"
    /// Idle connections kept for further requests.
    package var keptConnections = 512
    /// Seconds after which an idle connection is not used again.
    package var keptConnectionAge = 90
    /// File with certificates of trusted authorities (PEM), in place of the system's; nil: those.
    package var certificateAuthorities: String?
    /// Networks that count as public for requests that are for public addresses only.
    package var allowedNetworks: [IPNetwork] = []
    /// URL of a proxy for all requests but those for public addresses only; nil: none.
    package var proxy: String?
    /// Bytes that the sinks of all transfers may hold together. Beyond that a transfer whose sink
    /// holds more than an equal share fails (`tooLarge`).
    package var answerMemory = 1 << 30
    /// Entries `host:port:address[,address]` that answer for the resolver; for tests.
    package var resolved: [String] = []

    package init() {}
  }

  /// The system could not give what a pool needs.
  package struct StartError: Error, CustomStringConvertible {
    package var description: String
  }

  private let inbox: Inbox
  private let thread: Mutex<pthread_t?>

  package init(_ configuration: Configuration = Configuration()) throws(StartError) {
    guard Self.curlIsReady else { throw StartError(description: "libcurl could not be started") }
    if let file = configuration.certificateAuthorities, access(file, R_OK) != 0 {
      throw StartError(description: "the file of certificate authorities cannot be read: \(file)")
    }
    guard let inbox = Inbox() else {
      throw StartError(description: "no event descriptor: errno \(errno)")
    }
    guard let loop = TransferLoop(inbox: inbox, configuration: configuration) else {
      throw StartError(description: "no epoll descriptor or libcurl handle: errno \(errno)")
    }
    self.inbox = inbox
    // The new thread takes the only reference; from here on the loop is its own.
    let context = Unmanaged.passRetained(loop)
    var thread = pthread_t()
    let code = pthread_create(&thread, nil, runTransferLoop, context.toOpaque())
    guard code == 0 else {
      context.release()
      throw StartError(description: "no thread: error \(code)")
    }
    self.thread = Mutex(thread)
  }

  deinit { stop() }

  /// Begins a transfer, after its `delay`. Never blocks; may be called from a sink. After `stop` the sink is told
  /// `cancelled` before this returns.
  @discardableResult
  package func start(_ request: HTTPRequest, sink: any TransferSink) -> TransferID {
    let (id, accepted) = inbox.start(request, sink: sink)
    if !accepted {
      sink.finished(
        TransferOutcome(
          failure: TransferFailure(kind: .cancelled, message: "the transfer pool is stopped"),
          requestSent: false, firstByte: nil, total: 0, bytesReceived: 0, bytesSent: 0,
          reusedConnection: false))
    }
    return id
  }

  /// Aborts a transfer: its connection is closed, its sink told `cancelled`, both on the pool's
  /// thread and at once. Nothing happens where it has ended already.
  package func cancel(_ id: TransferID) {
    inbox.cancel(id)
  }

  /// Aborts everything and waits until the thread has ended. Not to be called from a sink.
  package func stop() {
    inbox.stop()
    let running = thread.withLock { thread in
      defer { thread = nil }
      return thread
    }
    if let running { pthread_join(running, nil) }
  }

  private static let curlIsReady = martlet_curl_start() == CURLE_OK
}

/// Entry of the pool's thread.
private func runTransferLoop(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  if let context {
    Unmanaged<TransferLoop>.fromOpaque(context).takeRetainedValue().run()
  }
  return nil
}
