-- What a worker does beside: rescue, orphans, partitions (sql/85_partitions.sql). One worker at a time; the others skip it.

-- Queues generations that no trigger saw: rows that came by replication or with triggers off; those that are to run later
-- are delayed. Looks at what was inserted within p_since: who restores older ones calls this with a longer time. Gives how
-- many. Locks what it queues.
create or replace function ai.requeue_orphans(p_since interval default '1 day') returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_ids   uuid[];
  v_lanes bigint[];
begin
  -- In one snapshot every generation that has not ended is in exactly one of these tables. EXCEPT reads each of them once,
  -- whatever the planner believes: beside a million queued rows that is a fraction of what looking each of them up takes.
  v_ids := array(
    select * from (
      select g.id
        from ai.tenants t
        join ai.generations g on g.tenant_id = t.id and g.id >= ai.uuid_floor(ai.now() - p_since) and g.status in ('queued', 'running')
      except select q.generation_id from ai.queue q
      except select d.generation_id from ai.delayed d
      except select w.generation_id from ai.waiting w
      except select l.generation_id from ai.leases l) o (id)
     order by o.id limit 10000);
  if cardinality(v_ids) = 0 then
    return 0;
  end if;

  with orphans as materialized (
    select g.tenant_id, g.id, g.priority, g.status
      from ai.tenants t
      join ai.generations g on g.tenant_id = t.id and g.id = any (v_ids) and g.status in ('queued', 'running')
     order by g.id
       for update of g skip locked
  ), lanes as (
    insert into ai.lanes (tenant_id, priority) select distinct tenant_id, priority from orphans on conflict do nothing
  ), reset as (
    update ai.generations g set status = 'queued' from orphans o where g.tenant_id = o.tenant_id and g.id = o.id and o.status = 'running'
  )
  select coalesce(array_agg(o.id), '{}') into v_ids from orphans o;
  with found as materialized (
    select l.id as lane_id, g.id, g.tenant_id, g.attempts, g.run_after
      from ai.tenants t
      join ai.generations g on g.tenant_id = t.id and g.id = any (v_ids)
      join ai.lanes l on l.tenant_id = g.tenant_id and l.priority = g.priority and l.counters = '{}' and l.batch_id is null
  ), later as (
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, attempts, prepare)
    select f.id, f.run_after, f.lane_id, f.tenant_id, f.attempts, true from found f where f.run_after > ai.now()
    on conflict do nothing
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, prepare)
    select f.lane_id, f.id, f.tenant_id, f.attempts, true from found f where f.run_after > ai.now() is not true
    on conflict do nothing
    returning lane_id
  )
  select array_agg(distinct q.lane_id) into v_lanes from queued q;
  perform ai.list_lanes(coalesce(v_lanes, '{}'));
  perform ai.wake_workers();
  return cardinality(v_ids);
end
$$;
comment on function ai.requeue_orphans(interval) is 'Queues generations that are queued or running but in no queue; gives how many.';

-- Takes empty lanes off the list, and what is listed more than once off it but once. To take a lane off needs its listing
-- lock alone, so that no insert in flight can have counted on the lane being listed; a lane whose lock is not free is left
-- for the next time. At most 1,000 a call, because each lock has its place in the server's lock table until the transaction ends.
-- Called by one at a time (ai.worker_maintain()), so that of twins one stays.
create or replace function ai.unlist_empty_lanes(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_most  constant integer := 1000;
  v_lane  bigint;
  v_count integer := 0;
begin
  -- An app that stops a batch holds rows of this list while its transaction is open: they are left to the next tick.
  delete from ai.active_lanes a
   where a.ctid = any (array(select o.ctid from ai.active_lanes o
                              where o.ctid = any (array(select d.ctid from (select ctid, row_number() over (partition by lane_id order by ctid) as n from ai.active_lanes) d
                                                         where d.n > 1 limit 100000))
                                for update skip locked));
  for v_lane in
    -- By the key of each lane, whatever statistics say of a queue that fills and empties: with `offset 0` it is no join.
    select distinct a.lane_id from ai.active_lanes a where not exists (select from ai.queue q where q.lane_id = a.lane_id offset 0) order by 1
  loop
    continue when not pg_try_advisory_xact_lock(1634300002, v_lane::integer);
    -- A statement of its own, with a snapshot younger than the lock.
    delete from ai.active_lanes a
     where a.ctid = any (array(select o.ctid from ai.active_lanes o where o.lane_id = v_lane for update skip locked))
       and not exists (select from ai.queue q where q.lane_id = v_lane);
    v_count := v_count + 1;
    exit when v_count = c_most;
  end loop;
  return v_count;
end
$$;
comment on function ai.unlist_empty_lanes(timestamptz) is 'Takes lanes without anything queued off the list that the claim goes through; gives how many.';

-- One chore of maintenance: a function ai.p_function(timestamptz) that gives a count. Whatever goes wrong in it is a warning, and
-- must not keep generations from being rescued. Gives {p_name: count}, or {p_name: "SQLSTATE"}.
create or replace function ai.do_chore(p_name text, p_function text, p_now timestamptz) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  execute format('select ai.%I($1)', p_function) into v_count using p_now;
  return jsonb_build_object(p_name, v_count);
exception when others then
  raise warning 'ai.%(): %', p_function, sqlerrm;
  return jsonb_build_object(p_name, sqlstate);
end
$$;
comment on function ai.do_chore(text, text, timestamptz) is 'Runs one chore of maintenance; an error becomes a warning.';

-- The tick of a worker. Gives counts: {"rescued", "due", "overdue", "queued_overdue", "filled", "forgetting", "artifacts_swept", "unlisted"}, about once a minute {"rows_dropped", "partitions_made",
-- "partitions_dropped", "keys_forgotten", "entries_forgotten", "counters_pruned", "indexes_made", "sessions_forgotten", "audit_appended", "batches_tidied", "ways_forgotten"} (or "partitions_blocked", "partitions_failed"), once an hour {"orphans"}; or
-- {"skipped": true} where another worker is at it. "claimable" says whether a claim may find something because of it: it is for the worker, the rest for people.
create or replace function ai.worker_maintain(p_worker uuid) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now           timestamptz := ai.now();
  v_partitions_at timestamptz;
  v_orphans_at    timestamptz;
  v_back          boolean;
  v_unparks       boolean;
  v_done          jsonb;
begin
  -- A row, not an advisory lock, which anybody could take and keep.
  select m.partitions_at, m.orphans_at into v_partitions_at, v_orphans_at from ai.maintenance m for update skip locked;
  if not found then
    return '{"skipped": true, "claimable": false}';
  end if;
  -- The clock was set back: what waits for the time that it showed would wait until it comes again. For ten seconds more, because what began
  -- before ends after. A dead worker's last sign of life counts from now on, too; who lives gives another one.
  if v_partitions_at > v_now and isfinite(v_partitions_at) then
    v_partitions_at := '-infinity';
    v_orphans_at := 'infinity';
    update ai.maintenance set orphans_at = 'infinity';
  end if;
  if v_orphans_at > v_now then
    perform ai.clock_went_back(v_now);
    if v_partitions_at between '1970-01-01' and v_now - interval '10 s' then
      v_orphans_at := '-infinity';
    end if;
  end if;
  update ai.workers w set heartbeat_at = v_now where w.ended_at is null and w.heartbeat_at > v_now + interval '1 s';
  -- Who asks lives. If it was silent for longer than a lease, the database was away, or read-only, or full, and perhaps for all: the others
  -- are given until the next tick to say that they live, too, so that answers which they hold are not asked for again. Its row is locked
  -- in that case only: its heartbeat would wait for the end of this.
  update ai.workers w set heartbeat_at = v_now
    from ai.settings s
   where w.id = p_worker and w.ended_at is null and w.heartbeat_at < v_now - s.lease_ms * interval '1 ms';
  v_back := found;
  v_done := jsonb_build_object('rescued', case when v_back then 0 else ai.rescue_generations(null) end, 'due', ai.queue_what_is_due(v_now), 'overdue', ai.end_overdue(v_now));
  perform ai.end_cancelled();
  -- Before lanes are unparked: what they hold beyond its deadline may lie far behind what the next claim takes.
  v_done := v_done || ai.do_chore('queued_overdue', 'end_queued_overdue', v_now);
  v_unparks := exists (select from ai.parked_lanes p where p.until <= v_now) or exists (select from ai.unsettled) and exists (select from ai.parked_lanes);
  perform ai.unpark_lanes(v_now);
  v_done := v_done || ai.do_chore('filled', 'fill_vectorizers', v_now);
  v_done := v_done || ai.do_chore('collections_finished', 'finish_collections', v_now);
  perform ai.sweep_cancelled_batches(), ai.record_unrecorded(), ai.add_up_changes();
  v_done := v_done || ai.do_chore('forgetting', 'continue_forgetting', v_now);
  v_done := v_done || ai.do_chore('artifacts_swept', 'sweep_artifacts', v_now);

  if v_partitions_at < v_now - interval '1 minute' then
    -- Rows first: partitions are locked until this transaction ends.
    v_done := v_done || ai.do_chore('rows_dropped', 'drop_old_rows', v_now) || ai.tend_partitions(v_now);
    v_done := v_done || ai.do_chore('keys_forgotten', 'forget_idempotency_keys', v_now);
    delete from ai.workers w
     where w.ended_at < v_now - interval '1 day' and not exists (select from ai.leases l where l.worker_id = w.id);
    v_done := v_done || ai.do_chore('entries_forgotten', 'forget_expired_entries', v_now) || ai.do_chore('counters_pruned', 'prune_counters', v_now)
                     || ai.do_chore('indexes_made', 'make_search_indexes', v_now) || ai.do_chore('sessions_forgotten', 'forget_sessions', v_now) || ai.do_chore('audit_appended', 'append_left', v_now)
                     || ai.do_chore('batches_tidied', 'tidy_provider_batches', v_now) || ai.do_chore('ways_forgotten', 'forget_ways', v_now);
    perform ai.sweep_redactions();
    update ai.maintenance set partitions_at = v_now;
  end if;
  if v_orphans_at < v_now - interval '1 hour' then
    v_done := v_done || jsonb_build_object('orphans', ai.requeue_orphans());
    update ai.maintenance set orphans_at = v_now;
  end if;
  -- Last, because it holds listing locks, for which inserts wait, until this transaction ends.
  return v_done || ai.do_chore('unlisted', 'unlist_empty_lanes', v_now) || jsonb_build_object(
    'claimable', v_unparks or exists (select from jsonb_each(v_done) d
                                       where d.key in ('rescued', 'due', 'filled', 'orphans') and d.value > '0'));
end
$$;
comment on function ai.worker_maintain(uuid) is 'Rescues, keeps the queue, partitions and keys in order; gives counts of what it did.';

revoke execute on function ai.requeue_orphans(interval), ai.unlist_empty_lanes(timestamptz), ai.do_chore(text, text, timestamptz), ai.worker_maintain(uuid) from public;
grant execute on function ai.worker_maintain(uuid) to ai_worker;
