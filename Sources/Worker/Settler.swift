import Logging
import Postgres

/// Reports results of a company to the database. One statement at a time; what arrives meanwhile goes with the next.
struct Settler {
  let company: Settlement.Company
  let desk: Desk
  let setup: Setup
  let executor: ThreadExecutor

  private static let settle =
    "select generation_id, attempt, result from ai.worker_settle($1, $2)"
  /// Tries of a batch that failed because of the database's trouble, before it is taken apart: a smaller one may pass.
  private static let tries = 3
  /// Of one statement. More would gain nothing, and `jsonb` has a limit of 256 MiB.
  private static let largestCount = 500
  /// Of the slow ones: each may take half a second, and those behind it wait.
  private static let largestSlowCount = 16
  private static let largestBytes = 8 << 20
  /// For a result that takes by itself longer than a statement of the role may: a minute, for what is paid for is worth it. Nobody's
  /// lock is waited for so long, since with it the time would say nothing of the result.
  private static let patience = """
    select set_config('statement_timeout', greatest(s.setting::integer, 60000)::text, true), set_config('lock_timeout', '3s', true)
      from pg_catalog.pg_settings s where s.name = 'statement_timeout'
    """
  /// How long what the database refused waits before it is tried again.
  private static let refusedPause = Duration.seconds(3)

  /// Until cancelled.
  func run() async {
    let link = Link(setup, desk: desk, purpose: "settle", on: executor)
    // Reports that were refused, apart from the others, which must not wait for them.
    var refused: [Settlement] = []
    var refusedAt: ContinuousClock.Instant?
    while !Task.isCancelled {
      if let again = refusedAt, again <= .now {
        refused = await settle(refused, desk.identity, link)
        refusedAt = refused.isEmpty ? nil : .now + Self.refusedPause
      }
      guard desk.hasResults(for: company) else {
        await desk.wake(of: company).wait(until: refusedAt)
        continue
      }
      let (identity, results) = desk.takeResults(for: company)
      if !results.isEmpty {
        refused += await settle(results, identity, link)
        if !refused.isEmpty && refusedAt == nil { refusedAt = .now + Self.refusedPause }
      }
    }
    await link.close()
  }

  /// Gives what the database refused, in whatever form.
  private func settle(
    _ results: [Settlement], _ identity: Identity, _ link: Link
  ) async -> [Settlement] {
    var bisection = Bisection(
      Bisection.ranges(
        of: results.map(\.size),
        count: company == .all ? Self.largestCount : Self.largestSlowCount,
        bytes: Self.largestBytes))
    var failures = 0
    var wasLate = false
    while desk.identity == identity {
      let batch: [Settlement]
      var isPatient = false
      switch bisection.step {
      case .done: return bisection.left.map { results[$0] }
      case .send(let range): batch = Array(results[range])
      case .sendPatiently(let index):
        batch = [results[index]]
        isPatient = true
      case .sendBare(let index): batch = [results[index].withoutContent(isLate: wasLate)]
      }
      do throws(PostgresError) {
        try await send(batch, identity, link, patiently: isPatient)
        bisection.accepted()
        failures = 0
      } catch {
        if Task.isCancelled { return [] }
        failures += 1
        let isOutside = error.isOutside
        // Sending it again is safe: what was taken already is answered with `stale`.
        if error.kind == .connection || isOutside && failures < Self.tries && !isPatient {
          await link.rest(after: error, "settling")
          continue
        }
        failures = 0
        setup.logger.error(
          "the database refuses results",
          metadata: ["results": "\(batch.count)", "sqlstate": "\(error.sqlState ?? "none")"])
        wasLate = error.sqlState == "57014"
        bisection.refused(whatever: isOutside, wasLate: wasLate)
      }
    }
    return []
  }

  private func send(
    _ batch: [Settlement], _ identity: Identity, _ link: Link, patiently: Bool
  ) async throws(PostgresError) {
    var json = JSONBuffer(reserving: batch.count * 1_024)
    json.beginArray()
    for settlement in batch { settlement.write(to: &json) }
    json.endArray()
    let answers = try await link.query(
      Self.settle, [identity.worker, json.text], under: patiently ? Self.patience : nil)
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
  /// Whether the trouble is the database's own and not what it was given, so that the same statement may well succeed later:
  /// serialization and deadlock (40), space, memory, connections (53), locks and cancelled statements (55P03, 57014), an
  /// operator at work (57P), a lost race for a stream's or a counter's next number (23505; no key is made of what an answer says),
  /// read-only (25006), a schema that is being changed or rights that are missing (42), files that cannot be read or written
  /// (58, or XX where the system's word for it has no code of its own, such as a quota), no partition for a row (23514 that
  /// names no constraint), no room for a notification (54000 at the commit, so without a context).
  var isOutside: Bool {
    switch sqlState {
    case "23505", "25006", "55P03": true
    case "23514": constraint == nil
    case "54000": context == nil
    case let state?: ["40", "42", "53", "57", "58", "XX"].contains { state.hasPrefix($0) }
    case nil: false
    }
  }

  /// Whether one of many rows may be why the server refused a statement for all of them, so that they are to be tried one by one:
  /// not where the same can be expected of each, or is over the next time. Beside what is not outside, what is, mostly, and may be
  /// one row's: a key that is there twice, memory, time, a function that is wrong for some, what has no code of its own.
  /// Whether it was, the database says (`ai.fault_of`).
  var mayConcernOne: Bool {
    guard kind == .server, let sqlState else { return false }
    return !isOutside || ["23505", "53200", "57014"].contains(sqlState)
      || ["42", "XX"].contains { sqlState.hasPrefix($0) }
  }

  /// Whether what was called is not there, or not allowed.
  var isMissing: Bool { sqlState?.hasPrefix("42") ?? false }
}
