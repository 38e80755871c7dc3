import CCurl
import Glibc

/// The transfer thread: libcurl's multi handle driven by epoll. Everything here is confined to
/// that thread once `run` has begun.
///
/// libcurl tells which descriptors to watch and when to call it again; in return it touches only
/// the transfers that have something to do. `curl_multi_poll`, the simpler way, looks at every
/// transfer on every turn.
final class TransferLoop {
  private let inbox: Inbox
  private let configuration: TransferPool.Configuration
  private let multi: UnsafeMutableRawPointer
  private let epoll: Int32
  private var active: [TransferID: Exchange] = [:]
  private var idle: [Exchange] = []
  /// Transfers whose sink has its answer; the rest of the response is read and dropped.
  private var draining: [Exchange] = []
  /// When libcurl wants to be called without an event; nil: not at all.
  private var timer: UInt64?
  private var commands: [Inbox.Command] = []
  private var deadlines = Deadlines()
  /// When a transfer may have been silent for too long. libcurl would look at each of them every second.
  private var silences = Deadlines()
  /// All that was ready by then has been handled. Lateness and silence are judged as of then: what came while the
  /// thread did not run counts.
  private var heardUntil: UInt64 = 0
  private var roundBegan: UInt64 = 0
  private var batchesOfRound = 0
  private var waitingRoom = WaitingRoom()
  private var memory: AnswerMemory
  private var sockets = KeptSockets()

  private static let keptExchanges = 512
  private static let batch = 256
  /// How long the rest of a finished stream may take before its connection is given up.
  private static let drainNanoseconds: UInt64 = 250_000_000

  init?(inbox: Inbox, configuration: TransferPool.Configuration) {
    epoll = martlet_epoll_create()
    guard epoll >= 0 else { return nil }
    guard let multi = curl_multi_init() else {
      close(epoll)
      return nil
    }
    self.multi = multi
    self.inbox = inbox
    self.configuration = configuration
    memory = AnswerMemory(limit: configuration.answerMemory)
    martlet_curl_multi_set_long(multi, CURLMOPT_MAXCONNECTS, configuration.keptConnections)
    let ready =
      martlet_curl_multi_set_callbacks(
        multi, socketChanged, timerChanged, Unmanaged.passUnretained(self).toOpaque()) == CURLM_OK
      && martlet_epoll_watch(epoll, inbox.event, true, false, false) == 0
    if !ready { return nil }
  }

  deinit {
    curl_multi_cleanup(multi)
    close(epoll)
  }

  func run() {
    martlet_thread_setup(configuration.name)
    let ready = UnsafeMutableBufferPointer<martlet_readiness>.allocate(capacity: Self.batch)
    defer { ready.deallocate() }
    while obey() {
      runTimer()
      reap()
      endLate()
      endSilent()
      callWaiting()
      if batchesOfRound == 0 { roundBegan = monotonicNanoseconds() }
      let count = martlet_epoll_wait(
        epoll, ready.baseAddress, Int32(Self.batch), millisecondsToWait())
      for index in 0..<max(0, Int(count)) {
        let event = ready[index]
        if event.fd == inbox.event {
          martlet_event_clear(event.fd)
          continue
        }
        var bits: Int32 = 0
        if event.readable { bits |= CURL_CSELECT_IN }
        if event.writable { bits |= CURL_CSELECT_OUT }
        if event.failed { bits |= CURL_CSELECT_ERR }
        var running: Int32 = 0
        curl_multi_socket_action(multi, event.fd, bits, &running)
      }
      noteBatch(of: Int(count))
      reap()
      sweep()
    }
    let stopped = TransferFailure(kind: .cancelled, message: "the transfer pool was stopped")
    for exchange in active.values { end(exchange, failure: stopped) }
    for waiting in waitingRoom.empty() {
      waiting.sink.finished(.notStarted(.cancelled, stopped.message, since: waiting.since))
    }
    idle.removeAll()
  }

  /// Does what other threads ask. False: the thread is to end.
  private func obey() -> Bool {
    let stopped = inbox.take(into: &commands)
    for command in commands {
      switch command {
      case .start(let id, let request, let sink, let time):
        if request.delay > 0 {
          waitingRoom.add(id, request, sink, since: time)
        } else {
          start(id, request, sink, time)
        }
      case .cancel(let id):
        if let waiting = waitingRoom.remove(id) {
          waiting.sink.finished(.notStarted(.cancelled, "cancelled", since: waiting.since))
        }
        guard let exchange = active[id] else { continue }
        end(exchange, failure: TransferFailure(kind: .cancelled, message: "cancelled"))
      }
    }
    commands.removeAll(keepingCapacity: true)
    return !stopped
  }

  /// Ends a round once all that was ready at its beginning has been handled: with a batch that is not full, or,
  /// as epoll goes round robin through what is ready (epoll_wait(2)), after one for every so many transfers.
  private func noteBatch(of count: Int) {
    batchesOfRound += 1
    guard count < Self.batch || batchesOfRound > active.count / Self.batch else { return }
    heardUntil = roundBegan
    batchesOfRound = 0
  }

  /// `asked`: when it was asked for; `now`: from when its times count, where it had to wait.
  private func start(
    _ id: TransferID, _ request: HTTPRequest, _ sink: any TransferSink, _ asked: UInt64,
    at now: UInt64? = nil
  ) {
    let time = now ?? asked
    guard let exchange = idle.popLast() ?? Exchange() else {
      sink.finished(.notStarted(.other, "no libcurl handle", since: asked))
      return
    }
    if let problem = exchange.prepare(request, id: id, sink: sink, at: asked, configuration) {
      exchange.recycle()
      idle.append(exchange)
      sink.finished(.notStarted(.invalidRequest, problem, since: asked))
      return
    }
    exchange.onEarlyEnd = { [unowned self] exchange in self.drain(exchange) }
    exchange.onHeld = { [unowned self] old, new in self.memory.change(from: old, to: new) }
    exchange.socketOf = { [unowned self] ends in self.sockets[ends] }
    active[id] = exchange
    if exchange.patience > 0 {
      forgetEnded(in: &deadlines)
      deadlines.add(id, at: time &+ UInt64(exchange.patience) &* 1_000_000)
    }
    if exchange.stall > 0 {
      exchange.lastSign = monotonicNanoseconds()
      forgetEnded(in: &silences)
      silences.add(id, at: exchange.silentUntil)
    }
    give(exchange)
  }

  /// Gives a transfer to libcurl.
  private func give(_ exchange: Exchange) {
    let code = curl_multi_add_handle(multi, exchange.easy)
    if code != CURLM_OK {
      end(
        exchange, failure: TransferFailure(kind: .other, message: "libcurl error \(code.rawValue)"))
    }
  }

  /// Begins the transfers whose time has come, and ends those that waited for too long.
  private func callWaiting() {
    while let (id, waiting, verdict) = waitingRoom.next(at: monotonicNanoseconds()) {
      switch verdict {
      case .begin(let request):
        start(id, request, waiting.sink, waiting.since, at: monotonicNanoseconds())
      case .tooLate(let kind, let words):
        waiting.sink.finished(.notStarted(kind, words, since: waiting.since))
      }
    }
  }

  private func runTimer() {
    guard let due = timer, due <= monotonicNanoseconds() else { return }
    timer = nil
    var running: Int32 = 0
    curl_multi_socket_action(multi, CURL_SOCKET_TIMEOUT, 0, &running)
  }

  /// Ends what libcurl has finished.
  private func reap() {
    var easy: UnsafeMutableRawPointer?
    var result = CURLE_OK
    while martlet_curl_multi_next_done(multi, &easy, &result) {
      guard let easy, let context = martlet_curl_get_private(easy) else { continue }
      let exchange = Unmanaged<Exchange>.fromOpaque(context).takeUnretainedValue()
      if exchange.needsFreshConnection {
        curl_multi_remove_handle(multi, easy)
        exchange.takeFreshConnection()
        give(exchange)
      } else {
        end(exchange, failure: exchange.failure(of: result))
      }
    }
  }

  /// Takes a transfer out of libcurl, tells its sink and keeps the handle for another.
  private func end(_ exchange: Exchange, failure: TransferFailure?) {
    active[exchange.id] = nil
    let sink = exchange.sink
    let outcome = exchange.outcome(failure)
    if failure == nil, let ends = exchange.ends, let socket = exchange.socket {
      sockets.keep(socket, of: ends)
    }
    curl_multi_remove_handle(multi, exchange.easy)
    if exchange.isDraining { draining.removeAll { $0 === exchange } }
    exchange.recycle()
    if idle.count < Self.keptExchanges { idle.append(exchange) }
    sink?.finished(outcome)
  }

  /// Called inside libcurl's write callback, where the handle must not be removed.
  private func drain(_ exchange: Exchange) {
    exchange.drainUntil = monotonicNanoseconds() + Self.drainNanoseconds
    draining.append(exchange)
    let sink = exchange.sink
    exchange.sink = nil
    exchange.letGo()
    sink?.finished(exchange.outcome(nil))
  }

  /// Aborts transfers whose answer has not begun in time.
  private func endLate() {
    while let first = deadlines.first, first.time <= heardUntil {
      deadlines.removeFirst()
      guard let exchange = active[first.id], let sink = exchange.sink, !sink.hasBegun else {
        continue
      }
      let words = "nothing of the answer came within \(exchange.patience) ms"
      end(exchange, failure: TransferFailure(kind: .late, message: words))
    }
  }

  /// Aborts transfers of which nothing was heard for their time. A body that is being sent counts as a sign.
  private func endSilent() {
    while let first = silences.first, first.time <= heardUntil {
      silences.removeFirst()
      guard let exchange = active[first.id], exchange.sink != nil else { continue }
      exchange.noteUpload(at: heardUntil)
      if exchange.silentUntil <= heardUntil {
        let words = "nothing came for \(exchange.stall) ms"
        end(exchange, failure: TransferFailure(kind: .timeout, message: words))
      } else {
        silences.add(first.id, at: exchange.silentUntil)
      }
    }
  }

  /// Entries of ended transfers are no more than those of others, and a few.
  private func forgetEnded(in list: inout Deadlines) {
    guard list.count > 2 * active.count + 1_024 else { return }
    list.keep { active[$0] != nil }
  }

  private func sweep() {
    guard !draining.isEmpty else { return }
    let now = monotonicNanoseconds()
    for exchange in draining where exchange.drainUntil <= now { end(exchange, failure: nil) }
  }

  private func millisecondsToWait() -> Int32 {
    // What has ended meanwhile must not wake the thread.
    while let first = deadlines.first, active[first.id] == nil { deadlines.removeFirst() }
    while let first = silences.first, active[first.id] == nil { silences.removeFirst() }
    var due = timer
    if let first = silences.first { due = min(due ?? .max, first.time) }
    if let first = deadlines.first { due = min(due ?? .max, first.time) }
    if let first = waitingRoom.due { due = min(due ?? .max, first) }
    for exchange in draining { due = min(due ?? .max, exchange.drainUntil) }
    guard let due else { return -1 }
    let now = monotonicNanoseconds()
    guard due > now else { return 0 }
    return Int32(clamping: (due - now + 999_999) / 1_000_000)
  }

  fileprivate func watch(_ socket: Int32, _ what: Int32, known: Bool) {
    if what == CURL_POLL_REMOVE {
      _ = martlet_epoll_forget(epoll, socket)
    } else {
      _ = martlet_epoll_watch(
        epoll, socket, what & CURL_POLL_IN != 0, what & CURL_POLL_OUT != 0, known)
    }
  }

  /// Marks a descriptor as one that epoll knows, until libcurl drops it.
  fileprivate func remember(_ socket: Int32) {
    curl_multi_assign(multi, socket, Unmanaged.passUnretained(self).toOpaque())
  }

  fileprivate func callAgain(in milliseconds: Int) {
    timer =
      milliseconds < 0 ? nil : monotonicNanoseconds() + UInt64(milliseconds) &* 1_000_000
  }
}

/// libcurl asks to watch, or to forget, a descriptor.
private func socketChanged(
  _: UnsafeMutableRawPointer?, socket: curl_socket_t, what: Int32,
  context: UnsafeMutableRawPointer?, known: UnsafeMutableRawPointer?
) -> Int32 {
  guard let context else { return 0 }
  let loop = Unmanaged<TransferLoop>.fromOpaque(context).takeUnretainedValue()
  loop.watch(socket, what, known: known != nil)
  if known == nil, what != CURL_POLL_REMOVE { loop.remember(socket) }
  return 0
}

/// libcurl asks to be called after a time, or no more (-1).
private func timerChanged(
  _: UnsafeMutableRawPointer?, milliseconds: Int, context: UnsafeMutableRawPointer?
) -> Int32 {
  guard let context else { return 0 }
  Unmanaged<TransferLoop>.fromOpaque(context).takeUnretainedValue().callAgain(in: milliseconds)
  return 0
}

extension TransferOutcome {
  fileprivate static func notStarted(
    _ kind: TransferFailure.Kind, _ message: String, since start: UInt64
  ) -> TransferOutcome {
    TransferOutcome(
      failure: TransferFailure(kind: kind, message: message), requestSent: false, firstByte: nil,
      total: Double(monotonicNanoseconds() - start) / 1e6, bytesReceived: 0, bytesSent: 0,
      reusedConnection: false)
  }
}
