import HTTP
import Providers
import Synchronization

/// One request and its whole answer.
struct BatchExchange: Sendable {
  var status: Int?
  var headers: [String: String] = [:]
  var body: [UInt8] = []
  var outcome: TransferOutcome?

  /// Sends `request` and waits for the end. Cancelling the task aborts the transfer.
  /// - Parameter splitting: name of arrays whose elements are not kept.
  static func run(
    _ request: HTTPRequest, on pool: TransferPool, splitting: String? = nil
  ) async -> BatchExchange {
    let sink = WholeSink(splitting: splitting)
    return await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        sink.begin(continuation)
        sink.started(pool.start(request, sink: sink), on: pool)
      }
    } onCancel: {
      sink.abort(on: pool)
    }
  }

  /// Why there is no answer; nil: there is one.
  var failure: Failure? {
    guard let broken = outcome?.failure else { return nil }
    let signal: Failure.Signal =
      switch broken.kind {
      case .connect, .tls: .connect
      case .timeout, .late: .timeout
      case .truncated: .truncated
      case .tooLarge: .tooLarge
      case .invalidResponse: .malformed
      case .invalidRequest, .forbidden: .unsendable
      case .reset, .other, .cancelled: .reset
      }
    return Failure(signal, message: broken.message)
  }
}

/// `@unchecked Sendable`: what is received is confined to the transfer thread until `finished`; the rest is behind
/// the lock.
private final class WholeSink: TransferSink, @unchecked Sendable {
  private struct State {
    var continuation: CheckedContinuation<BatchExchange, Never>?
    var transfer: TransferID?
    var isAborted = false
  }

  private let state = Mutex(State())
  private var exchange = BatchExchange()
  private var splitter: ArraySplitter?
  private var isTooLong = false

  init(splitting name: String?) { splitter = name.map { ArraySplitter(name: $0) } }

  func begin(_ continuation: CheckedContinuation<BatchExchange, Never>) {
    state.withLock { $0.continuation = continuation }
  }

  func started(_ transfer: TransferID, on pool: TransferPool) {
    let isAborted = state.withLock { state in
      state.transfer = transfer
      return state.isAborted
    }
    if isAborted { pool.cancel(transfer) }
  }

  func abort(on pool: TransferPool) {
    let transfer = state.withLock { state in
      state.isAborted = true
      return state.transfer
    }
    if let transfer { pool.cancel(transfer) }
  }

  func head(status: Int, headers: [String: String]) {
    exchange.status = status
    exchange.headers = headers
  }

  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict {
    guard splitter != nil else {
      exchange.body.append(contentsOf: bytes)
      return .more
    }
    do {
      try splitter?.feed(bytes) { _ in }
      return .more
    } catch {
      isTooLong = true
      return .enough
    }
  }

  var heldBytes: Int { exchange.body.count + (splitter?.heldBytes ?? 0) }
  var hasBegun: Bool { exchange.status != nil }

  func finished(_ outcome: TransferOutcome) {
    exchange.outcome = outcome
    if let splitter { exchange.body = splitter.rest }
    if isTooLong {
      exchange.outcome?.failure = TransferFailure(
        kind: .tooLarge, message: "a part of the answer is too long")
    }
    let continuation = state.withLock { state in
      defer { state.continuation = nil }
      return state.continuation
    }
    continuation?.resume(returning: exchange)
  }
}
