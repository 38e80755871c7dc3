-- From the insert to the queue, and the wake-up of workers.
--
-- Advisory locks of this database that Martlet takes (two-key form):
--   1634300001, 0     the wake-up handshake: inserts share it, a worker that goes to sleep takes it alone
--   1634300002, lane  listing of a lane: inserts share it, taking a lane off the list needs it alone
--   1634300003, 0     maintenance: one worker at a time
--
-- The handshake. NOTIFY in every insert would cost four fifths of the throughput, because a committing NOTIFY holds a
-- cluster-wide lock through its flush. So an insert notifies only if it cannot share the handshake lock, which means
-- that a worker sleeps or is about to. A worker that found nothing takes the lock alone (ai.worker_sleep()), which
-- waits for all inserts in flight; then it looks once more, and only then sleeps. Whoever shared the lock has committed
-- by then and is seen; whoever comes later must notify. It holds at every isolation level, because it compares no
-- snapshots.

-- Wakes sleeping workers when this transaction commits. At most one notification a transaction.
create or replace function ai.wake_workers() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not pg_try_advisory_xact_lock_shared(1634300001, 0) then
    perform pg_notify('ai_work', '');
  end if;
end
$$;
comment on function ai.wake_workers() is 'Notifies ai_work at commit if a worker may be asleep; else holds the shared handshake lock to the end of the transaction.';

-- Puts lanes on the list that the claim goes through. Holds their shared listing locks to the end of the transaction,
-- so that nobody takes them off before what was queued is visible.
create or replace function ai.list_lanes(p_lanes bigint[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock_shared(1634300002, l.id::integer) from (select unnest(p_lanes) as id order by 1) l;
  -- A statement of its own: under READ COMMITTED its snapshot is younger than the locks. Under the stricter levels the
  -- snapshot may be too old to know that a lane was taken off, so it is listed again; twice does no harm.
  insert into ai.active_lanes (lane_id, tenant_id, rank)
  select l.id, l.tenant_id, l.rank
    from ai.lanes l
   where l.id = any (p_lanes)
     and (current_setting('transaction_isolation') <> 'read committed'
          or not exists (select from ai.active_lanes a where a.lane_id = l.id));
end
$$;
comment on function ai.list_lanes(bigint[]) is 'Makes the claim look at these lanes.';

-- Trigger AFTER INSERT, each statement: one pass over what was inserted, however many rows.
create or replace function ai.enqueue_generations() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lanes   bigint[];
  v_missing boolean;
  v_later   boolean;
begin
  select array_agg(distinct l.id) filter (where l.id is not null), bool_or(l.id is null), bool_or(i.later)
    into v_lanes, v_missing, v_later
    from (select tenant_id, priority, bool_or(run_after > ai.now()) as later from inserted where status = 'queued' group by 1, 2) i
    left join ai.lanes l on l.tenant_id = i.tenant_id and l.priority = i.priority;
  if v_missing is null then
    return null;
  end if;
  if v_missing then
    insert into ai.lanes (tenant_id, priority)
    select distinct tenant_id, priority from inserted where status = 'queued' order by 1, 2
    on conflict do nothing;
    select array_agg(l.id) into v_lanes
      from ai.lanes l join (select distinct tenant_id, priority from inserted where status = 'queued') i
        on l.tenant_id = i.tenant_id and l.priority = i.priority;
  end if;

  perform ai.list_lanes(v_lanes);
  insert into ai.queue (lane_id, generation_id, tenant_id)
  select l.id, i.id, i.tenant_id
    from inserted i
    join ai.lanes l on l.id = any (v_lanes) and l.tenant_id = i.tenant_id and l.priority = i.priority
   where i.status = 'queued' and (i.run_after is null or i.run_after <= ai.now());
  if v_later then
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id)
    select i.id, i.run_after, l.id, i.tenant_id
      from inserted i
      join ai.lanes l on l.id = any (v_lanes) and l.tenant_id = i.tenant_id and l.priority = i.priority
     where i.status = 'queued' and i.run_after > ai.now();
  end if;
  perform ai.wake_workers();
  return null;
end
$$;
comment on function ai.enqueue_generations() is 'Trigger: queues what was inserted, or delays it to its run_after, and wakes sleeping workers.';

revoke execute on function ai.wake_workers(), ai.list_lanes(bigint[]), ai.enqueue_generations() from public;

-- objects

create or replace trigger enqueue after insert on ai.generations
  referencing new table as inserted
  for each statement execute function ai.enqueue_generations();
