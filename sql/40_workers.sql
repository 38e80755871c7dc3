-- A worker's life: it registers, says that it lives, sleeps and wakes, stops. docs/worker-protocol.md is the contract.

create or replace function ai.worker_protocol() returns integer
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select 4 $$;
comment on function ai.worker_protocol() is 'The number of the worker protocol that this schema speaks; docs/worker-protocol.md.';

-- Registers a worker. Raises PT409 where worker and schema do not speak the same protocol.
create or replace function ai.worker_register(p_name text, p_version text, p_protocol integer)
returns table (worker_id uuid, channel text, heartbeat_ms integer, maintain_ms integer, publish_ms integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_protocol constant integer := ai.worker_protocol();
  v_id       uuid := ai.uuid_v7();
begin
  if p_protocol is distinct from c_protocol then
    raise exception 'worker and schema do not speak the same protocol'
      using errcode = 'PT409',
            detail = format('The worker (version %s) speaks protocol %s, the schema speaks %s.', p_version, p_protocol, c_protocol),
            hint = case when p_protocol < c_protocol then 'Upgrade the worker.' else 'Upgrade the schema: martlet migrate' end;
  end if;
  insert into ai.workers (id, name, version, protocol, channel, started_at, heartbeat_at)
  values (v_id, p_name, p_version, p_protocol, 'ai_worker_' || replace(v_id::text, '-', ''), ai.now(), ai.now());
  return query
    select v_id, 'ai_worker_' || replace(v_id::text, '-', ''), s.heartbeat_ms, s.maintain_ms, s.publish_ms from ai.settings s;
end
$$;
comment on function ai.worker_register(text, text, integer) is 'Makes a worker known. Gives its id, the channel of its cancellations, and its rhythms.';

-- Updates one row. False: another worker declared this one dead; it must abort everything and register again.
create or replace function ai.worker_heartbeat(p_worker uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update ai.workers w set heartbeat_at = ai.now() where w.id = p_worker and w.ended_at is null;
  return found;
end
$$;
comment on function ai.worker_heartbeat(uuid) is 'Says that a worker lives; false if it was declared dead meanwhile.';

-- Waits until no insert is in flight, then holds the handshake lock on this session until ai.worker_wake(). True: held.
-- Null: not granted within 2 s, because another worker has it, and every insert notifies. False: nor that, because an inserting transaction
-- is open. Ask again in both cases. The time is caught here, so that waiting leaves no errors in the server's log. Blocks: on a connection of its own.
create or replace function ai.worker_sleep() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
  perform pg_advisory_lock(1634300001, 0);
  return true;
exception when lock_not_available then
  -- Anybody may have taken it; only workers look at once when they are notified.
  return case when not exists (select from pg_locks l
                                join pg_stat_activity a on a.pid = l.pid
                               where l.locktype = 'advisory' and l.classid = 1634300001 and l.objid = 0 and l.objsubid = 2 and l.granted
                                 and l.mode = 'ExclusiveLock' and l.database = (select d.oid from pg_database d where d.datname = current_database())
                                 and pg_has_role(a.usesysid, 'ai_worker', 'member'))
              then false end;
end
$$;
comment on function ai.worker_sleep() is 'Takes the handshake lock: from then on every insert notifies ai_work. Not granted within 2 s: null where another worker has it, else false.';

create or replace function ai.worker_wake() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_unlock(1634300001, 0);
end
$$;
comment on function ai.worker_wake() is 'Lets the handshake lock go: inserts stop notifying.';

-- What ai.cancel() asks this worker to abort.
create or replace function ai.worker_cancellations(p_worker uuid)
returns table (generation_id uuid, attempt integer)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select distinct l.generation_id, l.attempt::integer
    from ai.cancellations c
   cross join lateral (select o.generation_id, o.attempt from ai.leases o where o.generation_id = c.generation_id and o.worker_id = p_worker offset 0) l
$$;
comment on function ai.worker_cancellations(uuid) is 'Attempts of this worker that an app has cancelled.';

-- Everything the worker holds. A claim whose answer was lost with its connection may have leased generations that the
-- worker never heard of; its heartbeat would keep them for ever. It compares, and hands back what it does not know.
create or replace function ai.worker_leases(p_worker uuid)
returns table (generation_id uuid, attempt integer)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select l.generation_id, l.attempt::integer from ai.leases l where l.worker_id = p_worker
$$;
comment on function ai.worker_leases(uuid) is 'Attempts that are leased to this worker.';

revoke execute on function ai.worker_protocol(), ai.worker_register(text, text, integer), ai.worker_heartbeat(uuid), ai.worker_sleep(), ai.worker_wake(),
  ai.worker_cancellations(uuid), ai.worker_leases(uuid) from public;
grant execute on function ai.worker_register(text, text, integer), ai.worker_heartbeat(uuid), ai.worker_sleep(), ai.worker_wake(),
  ai.worker_cancellations(uuid), ai.worker_leases(uuid) to ai_worker;

-- objects

-- Whoever upgrades has held every table: nobody could say that he lives. And what workers of another protocol hold is for
-- others: their next heartbeat finds out, and no claim or report of theirs is taken.
update ai.workers w set heartbeat_at = clock_timestamp() where w.ended_at is null and w.protocol = ai.worker_protocol();
update ai.workers w set ended_at = clock_timestamp(), ending = 'dead' where w.ended_at is null and w.protocol <> ai.worker_protocol();

grant select on ai.workers to ai_monitor;
drop policy if exists visible on ai.workers;
create policy visible on ai.workers for select to ai_monitor using (true);
