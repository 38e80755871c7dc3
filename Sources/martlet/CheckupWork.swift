import Postgres
import Worker

/// Whether questions are answered, and at what price.
extension Checkup {
  func workers(_ life: WorkerLife?) -> Finding {
    guard let life else {
      return Finding(
        "worker", .warn, "this role may not look at ai.workers",
        hint: "grant ai_monitor to this role, or connect as the owner.")
    }
    let age =
      life.age.map { "last heartbeat \($0) ms ago" }
      ?? "none was ever heard of, or all have stopped"
    guard life.alive > 0 else {
      return Finding(
        "worker", .fail, "no worker is alive; \(age)", hint: "martlet work --database-url …")
    }
    return Finding(
      "worker", .ok, "\(life.alive) alive, version \(life.versions.joined(separator: ", ")), \(age)"
    )
  }

  /// What upkeep could not do for the partitions of each table, the last time that it tried.
  func partitions() async -> [Finding] {
    let rows: QueryResult
    do {
      rows = try await connection.query(
        """
        select p.key, p.value ->> 'since', p.value ->> 'message', p.value ->> 'table', p.value ->> 'code' in ('55P03', '40P01')
          from ai.maintenance m cross join jsonb_each(m.partition_problems) p order by p.key
        """)
    } catch {
      return [Finding("partitions", error)]
    }
    guard !rows.isEmpty else {
      return [Finding("partitions", .ok, "made and dropped in time, as far as upkeep has tried")]
    }
    return (0..<rows.count).map { row in
      let message = "\(rows[row, 0] ?? "") fails since \(rows[row, 1] ?? ""): \(rows[row, 2] ?? "")"
      let table = rows[row, 3] ?? ""
      guard rows.bool(row, 4) == true else {
        return Finding(
          "partitions", .fail, message,
          hint: """
            Mend what the message names, such as a partition that is in the way: \\d+ ai.\(table). Upkeep tries again each \
            minute; until then rows go to ai.\(table)_default, and what is old stays.
            """)
      }
      return Finding(
        "partitions", .warn, message,
        hint: """
          End the transaction that holds the lock: select pid, xact_start, query from pg_stat_activity where pid in \
          (select pid from pg_locks where relation::regclass::text like 'ai.\(table)%');
          """)
    }
  }

  /// The keys that the worker will need, as far as this process has them or the database has them sealed.
  func secrets() async -> [Finding] {
    let rows: QueryResult
    let sealed: Set<String>
    do {
      rows = try await connection.query(
        """
        select distinct p.name, p.secret, t.name from ai.providers p
          join ai.models m on m.provider_id = p.id and m.enabled
          left join ai.tenants t on t.id = p.tenant_id
         where p.enabled and p.secret is not null order by 1, 2
        """)
      // Of the operator's by name; of a tenant's by tenant and name.
      let names = try await connection.query(
        "select s.name, t.name from ai.secrets s left join ai.tenants t on t.id = s.tenant_id where s.replaced_at is null"
      )
      sealed = Set((0..<names.count).map { "\(names[$0, 1] ?? "")/\(names[$0, 0] ?? "")" })
    } catch {
      return [Finding("secrets", error)]
    }
    if rows.isEmpty { return [Finding("secrets", .ok, "no model in use needs one")] }
    let environment = environment
    let store = Secrets(directory: environment["MARTLET_SECRETS_DIR"]) { environment[$0] }
    return (0..<rows.count).map { row in
      let name = rows[row, 1] ?? ""
      let provider = rows[row, 0] ?? ""
      let tenant = rows[row, 2]
      if sealed.contains("\(tenant ?? "")/\(name)") {
        return Finding("secrets", .ok, "\(name) for provider \(provider), sealed")
      }
      if let tenant {
        return Finding(
          "secrets", .warn, "tenant \(tenant) has no \(name), which its provider \(provider) needs",
          hint: "martlet secrets set \(name) --tenant … (or it is in a vault)")
      }
      guard (try? store.value(of: name)) != nil else {
        return Finding(
          "secrets", .warn, "this process does not have \(name), which provider \(provider) needs",
          hint:
            "What counts is the worker: set \(name) in its environment, or as a file in MARTLET_SECRETS_DIR."
        )
      }
      return Finding("secrets", .ok, "\(name) for provider \(provider)")
    }
  }

  /// Whether this process could open what is sealed; nothing where nothing is.
  func masterKeys() async -> [Finding] {
    let rows: QueryResult
    do {
      rows = try await connection.query(
        """
        select master_key_id, count(*) from ai.data_keys where destroyed_at is null group by 1 order by 1
        """)
    } catch {
      return [Finding("master keys", error)]
    }
    guard !rows.isEmpty else { return [] }
    let masters: MasterKeyring
    do {
      let environment = environment
      masters = try MasterKeyring { environment[$0] }
    } catch {
      return [Finding("master keys", .fail, error.description)]
    }
    let known = masters.ids
    return (0..<rows.count).map { row in
      let id = rows[row, 0] ?? ""
      let count = rows[row, 1] ?? ""
      guard let place = known.firstIndex(of: id) else {
        return Finding(
          "master keys", .warn,
          "\(count) data keys are under \(id), which this process does not have",
          hint: "What counts is the worker: MARTLET_MASTER_KEY_FILE.")
      }
      if place > 0 {
        return Finding(
          "master keys", .warn, "\(count) data keys are under \(id), which is not the current one",
          hint: "martlet secrets rotate")
      }
      return Finding("master keys", .ok, "\(count) data keys are under \(id)")
    }
  }

  func prices() async -> Finding {
    await check("prices") { () async throws(PostgresError) in
      let row = try await connection.query(
        """
        select count(*), string_agg(m.name, ', ' order by m.name) filter (where not exists (
                 select from ai.prices x where x.model_id = m.id and x.valid_from <= now() and now() < x.valid_to))
          from ai.models m join ai.providers p on p.id = m.provider_id and p.enabled
         where m.enabled
        """)
      if let without = row[0, 1] {
        return Finding(
          "prices", .warn, "no price, so no cost in the books: \(without)",
          hint:
            "insert into ai.prices (model_id, rates) values (…, '{\"input\": …, \"output\": …}')")
      }
      return Finding("prices", .ok, "all \(row.int(0, 0) ?? 0) models in use have one")
    }
  }

  /// Asks local/extract, which needs no provider: insert, wake-up, claim, settle and read all have to work.
  func roundTrip(isSomebody: Bool, _ life: WorkerLife?) async -> Finding {
    guard isSomebody else {
      return Finding("round trip", .warn, "not tried: this session is nobody")
    }
    if let life, life.alive == 0 {
      return Finding("round trip", .warn, "not tried: no worker is alive")
    }
    return await check("round trip") { () async throws(PostgresError) in
      let clock = ContinuousClock()
      let start = clock.now
      let asked = try await connection.query(
        """
        select ai.generate(
          messages => '[{"role": "system", "content": "A martlet never lands."},
                        {"role": "user", "content": "Does a martlet ever land?"}]',
          model => 'local/extract', deadline_ms => 10000, metadata => '{"by": "martlet doctor"}')
        """)
      let id = asked[0, 0]
      for _ in 0..<12 {
        let events = try await connection.query(
          "select data from ai.read_stream($1, 0, 1000) where type = 'end'", [id])
        if !events.isEmpty { break }
      }
      let row = try await connection.query(
        """
        select status, coalesce(error ->> 'message', output), finished_at is not null
          from ai.generations where id = $1
        """, [id])
      let time = (clock.now - start).formatted
      guard row.count == 1, row.bool(0, 2) == true else {
        try await connection.query("select ai.cancel($1)", [id])
        return Finding(
          "round trip", .fail, "no answer within \(time)",
          hint: "Is a worker running, and does it see this database? Its log says more.")
      }
      guard row[0, 0] == "succeeded" else {
        return Finding("round trip", .fail, "\(row[0, 0] ?? ""): \(row[0, 1] ?? "")")
      }
      return Finding("round trip", .ok, "local/extract answered after \(time)")
    }
  }
}

extension Duration {
  /// Whole milliseconds, for people.
  fileprivate var formatted: String {
    let parts = components
    return "\(parts.seconds * 1_000 + parts.attoseconds / 1_000_000_000_000_000) ms"
  }
}
