import HTTP
import Postgres

/// Says texts of streams to the database, those of one lane. One statement at a time; what arrives meanwhile goes with the next.
struct Publisher {
  let lane: Gathering.Lane
  let desk: Desk
  let pool: TransferPool
  let setup: Setup
  let executor: ThreadExecutor

  private static let publish = "select generation_id, attempt from ai.worker_publish($1, $2)"
  /// Of one statement, while which no later text of its streams goes out.
  private static let largestCount = 500
  private static let largestBytes = 8 << 20

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "publish", on: executor)
    let wake = desk.wake(of: lane)
    while !Task.isCancelled {
      if !link.isOpen, desk.hasStreams { await getReady(link) }
      let due = desk.publishingIsDue(lane)
      guard let due, due <= .now else {
        await wake.wait(until: due)
        continue
      }
      let (identity, deltas) = desk.takeTexts(lane)
      let sizes = deltas.map(\.text.utf8.count)
      for range in Bisection.ranges(
        of: sizes, count: Self.largestCount, bytes: Self.largestBytes)
      {
        await publish(Array(deltas[range]), identity, link)
      }
      desk.finished(lane)
    }
    await link.close()
  }

  /// Connects, and lets the session plan what it will be asked for, while the provider is still thinking. Without a stream
  /// there is no connection.
  private func getReady(_ link: Link) async {
    do throws(PostgresError) {
      try await link.query(Self.publish, [desk.identity.worker, "[]"])
    } catch {
      await link.rest(after: error, "getting ready to publish")
    }
  }

  private func publish(_ deltas: [Gathering.Delta], _ identity: Identity, _ link: Link) async {
    var json = JSONBuffer(reserving: deltas.count * 256)
    json.beginArray()
    for delta in deltas { delta.write(to: &json) }
    json.endArray()
    let text = json.text
    var fate = Fate.notTaken
    while !Task.isCancelled, desk.identity == identity {
      var isSent = false
      do throws(PostgresError) {
        _ = try await link.open()
        isSent = true
        let stale = try await link.query(Self.publish, [identity.worker, text])
        desk.count {
          $0.publishStatements += 1
          $0.deltas += deltas.count - stale.count
        }
        desk.published(deltas)
        return abort(stale)
      } catch {
        fate.failed(isSent: isSent, connectionIsLost: error.kind == .connection)
        // What was taken, perhaps, goes again as it was: its numbers keep it from being shown twice.
        if fate == .notTaken {
          // It goes with what arrived meanwhile.
          desk.giveBack(deltas)
          return await link.rest(after: error, "publishing")
        }
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
}

/// What is known of a statement that has no answer.
enum Fate: Sendable {
  case notTaken
  /// It was sent, and the connection was lost. What is refused later says nothing of what was sent before.
  case unknown

  /// A try to have it taken failed.
  mutating func failed(isSent: Bool, connectionIsLost: Bool) {
    if isSent, connectionIsLost { self = .unknown }
  }
}
