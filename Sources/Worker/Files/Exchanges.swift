import HTTP
import Synchronization

/// A response that came whole.
struct WholeResponse: Sendable {
  var status: Int
  /// By lower-case name.
  var headers: [String: String]
  var body: [UInt8]
}

extension TransferPool {
  /// One transfer, whose body is gathered. Cancelling the task aborts it.
  func exchange(_ request: HTTPRequest) async -> Result<WholeResponse, TransferFailure> {
    let gathered = GatheredResponse()
    return await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        gathered.continuation = continuation
        gathered.started(start(request, sink: gathered), on: self)
      }
    } onCancel: {
      gathered.cancel(on: self)
    }
  }
}

/// `@unchecked Sendable`: what is not behind the lock is set before the transfer starts, or confined to
/// the transfer thread.
private final class GatheredResponse: TransferSink, @unchecked Sendable {
  private struct State {
    var transfer: TransferID?
    var isCancelled = false
  }

  var continuation: CheckedContinuation<Result<WholeResponse, TransferFailure>, Never>?
  private let state = Mutex(State())
  private var response = WholeResponse(status: 0, headers: [:], body: [])

  func started(_ transfer: TransferID, on pool: TransferPool) {
    let isCancelled = state.withLock { state in
      state.transfer = transfer
      return state.isCancelled
    }
    if isCancelled { pool.cancel(transfer) }
  }

  func cancel(on pool: TransferPool) {
    let transfer = state.withLock { state in
      state.isCancelled = true
      return state.transfer
    }
    if let transfer { pool.cancel(transfer) }
  }

  func head(status: Int, headers: [String: String]) {
    response.status = status
    response.headers = headers
    if let length = headers["content-length"].flatMap({ Int($0) }), length <= 64 << 20 {
      response.body.reserveCapacity(length)
    }
  }

  func body(_ bytes: UnsafeRawBufferPointer) -> BodyVerdict {
    response.body.append(contentsOf: bytes)
    return .more
  }

  var heldBytes: Int { response.body.count }
  var hasBegun: Bool { response.status != 0 }

  func finished(_ outcome: TransferOutcome) {
    let continuation = continuation
    self.continuation = nil
    if let failure = outcome.failure {
      continuation?.resume(returning: .failure(failure))
    } else {
      continuation?.resume(returning: .success(response))
    }
  }
}
