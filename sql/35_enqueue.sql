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
declare
  v_lane bigint;
begin
  foreach v_lane in array p_lanes loop
    perform pg_advisory_xact_lock_shared(1634300002, v_lane::integer);
    -- A statement of its own: under READ COMMITTED its snapshot is younger than the lock. Under the stricter levels the
    -- snapshot may be too old to know that a lane was taken off, so it is listed again; twice does no harm.
    if current_setting('transaction_isolation') <> 'read committed'
       or not exists (select from ai.active_lanes a where a.lane_id = v_lane) then
      insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = v_lane;
    end if;
  end loop;
end
$$;
comment on function ai.list_lanes(bigint[]) is 'Makes the claim look at these lanes.';

-- Trigger AFTER INSERT, each statement: one pass for each lane, however many rows.
create or replace function ai.enqueue_generations() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := ai.now();
  v_group record;
  v_lane  bigint;
begin
  for v_group in
    select i.tenant_id, i.priority, count(i.run_after) > 0 as timed from inserted i where i.status = 'queued' group by 1, 2 order by 1, 2
  loop
    select l.id into v_lane from ai.lanes l where l.tenant_id = v_group.tenant_id and l.priority = v_group.priority;
    if v_lane is null then
      insert into ai.lanes (tenant_id, priority) values (v_group.tenant_id, v_group.priority) on conflict do nothing;
      select l.id into v_lane from ai.lanes l where l.tenant_id = v_group.tenant_id and l.priority = v_group.priority;
    end if;
    perform ai.list_lanes(array[v_lane]);
    insert into ai.queue (lane_id, generation_id, tenant_id)
    select v_lane, i.id, i.tenant_id
      from inserted i
     where i.status = 'queued' and i.tenant_id = v_group.tenant_id and i.priority = v_group.priority
       and (i.run_after is null or i.run_after <= v_now);
    if v_group.timed then
      insert into ai.delayed (generation_id, due_at, lane_id, tenant_id)
      select i.id, i.run_after, v_lane, i.tenant_id
        from inserted i
       where i.status = 'queued' and i.tenant_id = v_group.tenant_id and i.priority = v_group.priority and i.run_after > v_now;
    end if;
  end loop;
  if found then
    perform ai.wake_workers();
  end if;
  return null;
end
$$;
comment on function ai.enqueue_generations() is 'Trigger: queues what was inserted, or delays it to its run_after, and wakes sleeping workers.';

revoke execute on function ai.wake_workers(), ai.list_lanes(bigint[]), ai.enqueue_generations() from public;

-- objects

create or replace trigger enqueue after insert on ai.generations
  referencing new table as inserted
  for each statement execute function ai.enqueue_generations();
