-- From the insert to the queue, and the wake-up of workers.
--
-- Advisory locks of this database that Martlet takes (two-key form):
--   1634300001, 0     the wake-up handshake: inserts share it, a worker that goes to sleep takes it alone
--   1634300002, lane  listing of a lane: inserts share it where they can, taking a lane off the list needs it alone
--   1634300004, role  a role is being bound or made an authenticator (ai.keep_roles_apart())
-- Anybody who can connect can take them too: so nothing may wait for one of them but a worker that goes to sleep, and
-- whoever is refused one does the slower thing that is right without it.
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

-- Puts lanes on the list that the claim goes through. Twice on the list does no harm, and a row that is not yet committed
-- cannot be taken off, so listing is always safe; it is spared where the lane is listed and this transaction holds its
-- shared listing lock, so that nobody takes it off before what was queued is visible. Waits for nothing.
create or replace function ai.list_lanes(p_lanes bigint[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_many constant integer := 16;  -- more locks than this in one transaction would crowd the server's lock table
  v_lane bigint;
begin
  if cardinality(p_lanes) > c_many then
    insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = any (p_lanes);
    return;
  end if;
  foreach v_lane in array p_lanes loop
    -- The look is a statement of its own: under READ COMMITTED its snapshot is younger than the lock. Under the stricter
    -- levels the snapshot may be too old to know that a lane was taken off.
    if current_setting('transaction_isolation') <> 'read committed'
       or not pg_try_advisory_xact_lock_shared(1634300002, v_lane::integer)
       or not exists (select from ai.active_lanes a where a.lane_id = v_lane) then
      insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = v_lane;
    end if;
  end loop;
end
$$;
comment on function ai.list_lanes(bigint[]) is 'Makes the claim look at these lanes.';

-- Trigger AFTER INSERT, each statement: a few statements, however many rows, tenants and lanes.
create or replace function ai.enqueue_generations() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := ai.now();
  v_lanes   bigint[];
  v_missing boolean;
  v_timed   boolean;
begin
  select array_agg(l.id) filter (where l.id is not null), bool_or(l.id is null), bool_or(i.timed)
    into v_lanes, v_missing, v_timed
    from (select tenant_id, priority, count(run_after) > 0 as timed from inserted where status = 'queued' group by 1, 2) i
    left join ai.lanes l on l.tenant_id = i.tenant_id and l.priority = i.priority;
  if v_missing is null then
    return null;
  end if;
  if v_missing then
    -- Lanes are made with their tenant; this mends a tenant whose lanes were lost.
    insert into ai.lanes (tenant_id, priority)
    select distinct tenant_id, priority from inserted where status = 'queued' order by 1, 2
    on conflict do nothing;
    select array_agg(l.id) into v_lanes
      from ai.lanes l
      join (select distinct tenant_id, priority from inserted where status = 'queued') i on l.tenant_id = i.tenant_id and l.priority = i.priority;
  end if;

  perform ai.list_lanes(v_lanes);
  insert into ai.queue (lane_id, generation_id, tenant_id)
  select l.id, i.id, i.tenant_id
    from inserted i
    join ai.lanes l on l.tenant_id = i.tenant_id and l.priority = i.priority
   where i.status = 'queued' and (i.run_after is null or i.run_after <= v_now);
  if v_timed then
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id)
    select i.id, i.run_after, l.id, i.tenant_id
      from inserted i
      join ai.lanes l on l.tenant_id = i.tenant_id and l.priority = i.priority
     where i.status = 'queued' and i.run_after > v_now;
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
