import CCurl
import Glibc
import Synchronization

/// Runs any number of HTTP transfers on one thread of its own, with one pool of kept connections.
///
/// A request is never sent twice: where a kept connection dies after any part of the request left,
/// the transfer fails (`reset`) and the caller decides. Redirects are not followed. Certificates
/// are verified.
package final class TransferPool: Sendable {
  package struct Configuration: Sendable {
    /// Name of the thread; the system shows 15 bytes of it.
    package var name = "transfers"
    /// Idle connections kept for further requests.
    package var keptConnections = 512
    /// Seconds after which an idle connection is not used again.
    package var keptConnectionAge = 90
    /// File with certificates of trusted authorities (PEM); nil: the system's.
    package var certificateAuthorities: String?

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

  /// Begins a transfer. Never blocks; may be called from a sink. After `stop` the sink is told
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
