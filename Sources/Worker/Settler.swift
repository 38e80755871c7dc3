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
  /// Of one statement. More would gain nothing, and `jsonb` has a limit of 256 MiB.
  private static let largestCount = 500
  private static let largestBytes = 8 << 20
  /// How long what the database refused waits before it is tried again.
  private static let refusedPause = Duration.seconds(10)

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "settle")
    // Reports that were refused, apart from the others, which must not wait for them.
    var refused: [Settlement] = []
    var refusedAt: ContinuousClock.Instant?
    while !Task.isCancelled {
      if let again = refusedAt, again <= .now {
        refused = await settle(refused, desk.identity, link)
        refusedAt = refused.isEmpty ? nil : .now + Self.refusedPause
      }
      let due = [desk.settlingIsDue(), refusedAt].compactMap(\.self).min()
      guard let due, due <= .now else {
        await desk.settlerWake.wait(until: due)
        continue
      }
      let (identity, deltas, results) = desk.takeForSettling()
      let sizes = deltas.map(\.text.utf8.count)
      for range in Bisection.ranges(
        of: sizes, count: Self.largestCount, bytes: Self.largestBytes)
      {
        await publish(Array(deltas[range]), identity, link)
      }
      if !results.isEmpty {
        refused += await settle(results, identity, link)
        if !refused.isEmpty && refusedAt == nil { refusedAt = .now + Self.refusedPause }
      }
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

  /// Gives what the database refused, in whatever form.
  private func settle(
    _ results: [Settlement], _ identity: Identity, _ link: Link
  ) async -> [Settlement] {
    var bisection = Bisection(
      Bisection.ranges(
        of: results.map(\.size), count: Self.largestCount, bytes: Self.largestBytes))
    var failures = 0
    while desk.identity == identity {
      let batch: [Settlement]
      switch bisection.step {
      case .done: return bisection.left.map { results[$0] }
      case .send(let range): batch = Array(results[range])
      case .sendBare(let index): batch = [results[index].withoutContent]
      }
      do throws(PostgresError) {
        try await send(batch, identity, link)
        bisection.accepted()
        failures = 0
      } catch {
        if Task.isCancelled { return [] }
        failures += 1
        // Sending it again is safe: what was taken already is answered with `stale`.
        if error.kind == .connection || error.isPassing && failures < Self.tries {
          await link.rest(after: error, "settling")
          continue
        }
        failures = 0
        setup.logger.error(
          "the database refuses results",
          metadata: ["results": "\(batch.count)", "sqlstate": "\(error.sqlState ?? "none")"])
        bisection.refused()
      }
    }
    return []
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
