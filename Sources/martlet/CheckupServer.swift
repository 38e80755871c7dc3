import Postgres

/// What the server may have run out of, or been forbidden, while everything in the schema is as it should be.
/// docs/faults.md says what happens then.
extension Checkup {
  /// Each statement gives one row: state, message, hint.
  private func told(_ name: String, _ sql: String) async -> Finding {
    await check(name) { () async throws(PostgresError) in
      let row = try await connection.query(sql)
      guard row.count == 1, let state = row[0, 0].flatMap(Finding.State.init(rawValue:)) else {
        return Finding(name, .warn, "the database did not say")
      }
      return Finding(name, state, row[0, 1] ?? "", hint: row[0, 2])
    }
  }

  /// Whether apps can insert and workers can report. A session that began before a default was changed still may.
  func writable() async -> Finding {
    await told(
      "writable",
      """
      with denied as (
        select r.rolname, s.setdatabase
          from pg_catalog.pg_db_role_setting s
          join pg_catalog.pg_roles r on r.oid = s.setrole and r.rolcanlogin
          join pg_catalog.pg_roles w on w.rolname = 'ai_worker' and pg_catalog.pg_has_role(r.oid, w.oid, 'member')
         where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
           and exists (select from unnest(s.setconfig) c
                        where c like 'default\\_transaction\\_read\\_only=%' and split_part(c, '=', 2)::boolean)
         order by r.rolname limit 1)
      select case when pg_catalog.pg_is_in_recovery() then 'fail' when d.is_on then 'fail'
                  when exists (select from denied) then 'fail' else 'ok' end,
             case when pg_catalog.pg_is_in_recovery() then 'this server is a standby: nothing can be inserted or answered'
                  when d.is_on then 'sessions begin read-only (' || d.source || '): nothing can be inserted or answered'
                  when exists (select from denied)
                    then (select 'sessions of ' || rolname || ' begin read-only: as a worker it answers nothing' from denied)
                  else 'sessions may write' end,
             case when pg_catalog.pg_is_in_recovery()
                    then 'Give DATABASE_URL all hosts and target_session_attrs=read-write; or select pg_promote();'
                  when d.is_on and d.source = 'database'
                    then pg_catalog.format('alter database %I reset default_transaction_read_only;', current_database())
                  when d.is_on and d.source in ('user', 'database user')
                    then pg_catalog.format('alter role %I reset default_transaction_read_only; where it is of this database, in database %I',
                                           session_user, current_database())
                  when d.is_on then 'Take default_transaction_read_only out of the server''s settings, and PGOPTIONS.'
                  when exists (select from denied)
                    then (select pg_catalog.format('alter role %I%s reset default_transaction_read_only;', rolname,
                                                   case when setdatabase <> 0 then pg_catalog.format(' in database %I', current_database()) end)
                            from denied) end
        from (select current_setting('transaction_read_only')::boolean as is_on, s.source
                from pg_catalog.pg_settings s where s.name = 'default_transaction_read_only') d
      """)
  }

  /// From half of the queue on Martlet does not notify. Who holds it back can only be guessed: whether a
  /// session listens is not shown, and of others' sessions only to members of pg_monitor.
  func notifications() async -> Finding {
    await told(
      "notifications",
      """
      select case when u.usage >= 0.5 then 'fail' when u.usage >= 0.1 then 'warn' else 'ok' end,
             round(u.usage::numeric * 100, 1) || ' % of the queue are used' || case
               when u.usage >= 0.5 then ': Martlet notifies no more, workers and subscribers have to look'
               when u.usage >= 0.1 then ': somebody listens and does not read; from half of it on Martlet notifies no more'
               else '' end,
             case when u.usage >= 0.1 then
               'End the session that listens and does not read, or has a transaction open (pg_stat_activity of all databases)'
               || coalesce((select pg_catalog.format('; the oldest transaction is of process %s', a.pid) from pg_catalog.pg_stat_activity a
                             where a.xact_start is not null and a.pid <> pg_catalog.pg_backend_pid()
                             order by a.xact_start limit 1), '') end
        from (select pg_catalog.pg_notification_queue_usage() as usage) u
      """)
  }

  /// A worker needs eight connections, two more as soon as it streams, one more as soon as an answer is settled apart, and up to four more for provider batches.
  func connections() async -> Finding {
    await told(
      "connections",
      """
      with sessions as (
        select a.usesysid, a.datid from pg_catalog.pg_stat_activity a
         where a.datid is not null and coalesce(a.backend_type, 'client backend') = 'client backend'
      ), limits as (
        select 1 as n, 'role ' || r.rolname as whose, r.rolconnlimit as most, (select count(*) from sessions s where s.usesysid = r.oid) as taken,
               pg_catalog.format('alter role %I connection limit …;', r.rolname) as hint
          from pg_catalog.pg_roles r
          join pg_catalog.pg_roles w on w.rolname = 'ai_worker' and pg_catalog.pg_has_role(r.oid, w.oid, 'member')
         where r.rolcanlogin and not r.rolsuper and r.rolconnlimit >= 0
        union all
        select 2, 'the database', d.datconnlimit, (select count(*) from sessions s where s.datid = d.oid),
               pg_catalog.format('alter database %I connection limit …;', d.datname)
          from pg_catalog.pg_database d where d.datname = current_database() and d.datconnlimit >= 0
        union all
        select 3, 'the server', current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
                                - coalesce(current_setting('reserved_connections', true)::integer, 0),
               (select count(*) from sessions), 'Raise max_connections, or put a pooler before the apps.'
      ), judged as (
        select l.*, case when l.most < 8 or l.taken >= l.most then 'fail' when l.most < 11 or l.most - l.taken < 4 then 'warn' else 'ok' end as state from limits l
      )
      select j.state,
             case when j.state = 'ok' then pg_catalog.format('%s has %s of %s left', j.whose, j.most - j.taken, j.most)
                  when j.most < 8 then pg_catalog.format('%s may have %s, and a worker needs 8', j.whose, j.most)
                  when j.taken >= j.most then pg_catalog.format('%s has all of its %s taken: nobody can connect', j.whose, j.most)
                  when j.most < 11 then pg_catalog.format('%s may have %s, and a worker that streams and looks at answers needs 11', j.whose, j.most)
                  else pg_catalog.format('%s has %s of %s left; provider batches take up to 4 more', j.whose, j.most - j.taken, j.most) end,
             case when j.state <> 'ok' then j.hint end
        from judged j
       order by array_position(array['fail', 'warn', 'ok'], j.state), j.most - j.taken, j.n limit 1
      """)
  }
}
