import HTTP
import Logging
import Postgres

/// Says to the database what gathered: texts, then results. One statement at a time; what arrives
/// meanwhile goes with the next.
struct Settler {
  let desk: Desk
  let pool: TransferPool
  let setup: Setup

  private static let publish =
    "select generation_id, attempt from ai.worker_publish($1, $2)"
  private static let settle =
    "select generation_id, attempt, result from ai.worker_settle($1, $2)"
  /// Tries of a batch that failed for a passing reason, before it is taken apart.
  private static let tries = 3

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "settle")
    while !Task.isCancelled {
      guard let due = desk.settlingIsDue() else {
        await desk.settlerWake.wait()
        continue
      }
      if due > .now {
        await desk.settlerWake.wait(until: due)
        continue
      }
      let (identity, deltas, results) = desk.takeForSettling()
      if !deltas.isEmpty { await publish(deltas, identity, link) }
      if !results.isEmpty { await settle(results, identity, link) }
    }
    await link.close()
  }

  // MARK: Texts

  private func publish(_ deltas: [Gathering.Delta], _ identity: Identity, _ link: Link) async {
    var json = JSONBuffer(reserving: deltas.count * 256)
    json.beginArray()
    for delta in deltas { delta.write(to: &json) }
    json.endArray()
    let text = json.text
    while !Task.isCancelled, desk.identity == identity {
      do throws(PostgresError) {
        let stale = try await link.query(Self.publish, [identity.worker, text])
        desk.count {
          $0.publishStatements += 1
          $0.deltas += deltas.count - stale.count
        }
        return abort(stale)
      } catch {
        if error.kind != .connection {
          // Nothing of it was taken: it goes again with what arrived meanwhile.
          desk.giveBack(deltas)
          return await link.rest(after: error, "publishing")
        }
        // Unknown whether it was taken. The same again, under the same numbers.
        await link.rest(after: error, "publishing")
      }
    }
  }

  /// Ends attempts that belong to somebody else by now.
  private func abort(_ rows: QueryResult) {
    for row in 0..<rows.count {
      let attempt = rows.int(row, 1) ?? 0
      let fence = rows.withBytes(row, 0) { bytes in
        bytes.flatMap { Fence(uuid: $0, attempt: attempt) }
      }
      guard let fence else { continue }
      desk.count { $0.stale += 1 }
      if let transfer = desk.end(fence, .dropped) { pool.cancel(transfer) }
    }
  }

  // MARK: Results

  private func settle(_ results: [Settlement], _ identity: Identity, _ link: Link) async {
    var bisection = Bisection(count: results.count)
    var failures = 0
    while desk.identity == identity {
      let batch: [Settlement]
      switch bisection.step {
      case .done: return
      case .send(let range): batch = Array(results[range])
      case .sendBare(let index): batch = [results[index].withoutContent]
      }
      do throws(PostgresError) {
        try await send(batch, identity, link)
        bisection.accepted()
        failures = 0
      } catch {
        if Task.isCancelled { return }
        if error.kind == .connection {
          // Sending it again is safe: what was taken already is answered with `stale`.
          await link.rest(after: error, "settling")
          continue
        }
        failures += 1
        if error.isPassing && failures < Self.tries {
          await link.rest(after: error, "settling")
          continue
        }
        failures = 0
        setup.logger.error(
          "the database refuses results",
          metadata: ["results": "\(batch.count)", "sqlstate": "\(error.sqlState ?? "none")"])
        if !bisection.refused() {
          // Not even an empty report is taken, so the reports are not to blame.
          desk.giveBack(bisection.left.flatMap { results[$0] })
          return await link.rest(after: error, "settling")
        }
      }
    }
  }

  private func send(
    _ batch: [Settlement], _ identity: Identity, _ link: Link
  ) async throws(PostgresError) {
    var json = JSONBuffer(reserving: batch.count * 1_024)
    json.beginArray()
    for settlement in batch { settlement.write(to: &json) }
    json.endArray()
    let answers = try await link.query(Self.settle, [identity.worker, json.text])
    var requeued = 0
    var stale = 0
    for row in 0..<answers.count {
      answers.withBytes(row, 2) { bytes in
        switch bytes?.first {
        case UInt8(ascii: "r"): requeued += 1
        case UInt8(ascii: "s"): stale += 1
        default: break
        }
      }
    }
    desk.settled(batch, requeued: requeued, stale: stale)
  }
}

extension PostgresError {
  /// Whether the same statement may well succeed a moment later: serialization and deadlock (40), a
  /// lost race for a stream's next number (23505), resources (53), locks and cancelled statements
  /// (55P03, 57014), an operator at work (57P).
  var isPassing: Bool {
    guard let sqlState else { return false }
    return sqlState.hasPrefix("40") || sqlState.hasPrefix("53") || sqlState.hasPrefix("57")
      || sqlState == "23505" || sqlState == "55P03"
  }
}
