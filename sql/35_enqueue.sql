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
-- cannot be taken off, so listing is always safe; it is spared where the lane is listed, or parked, and this transaction
-- holds its shared listing lock, so that nobody takes it off before what was queued is visible. Waits for nothing.
create or replace function ai.list_lanes(p_lanes bigint[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_many constant integer := 16;  -- more locks than this in one transaction would crowd the server's lock table
  v_lane bigint;
begin
  if cardinality(p_lanes) > c_many then
    insert into ai.active_lanes (lane_id, tenant_id, rank)
    select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = any (p_lanes) and not exists (select from ai.parked_lanes p where p.lane_id = l.id);
    return;
  end if;
  foreach v_lane in array p_lanes loop
    -- The look is a statement of its own: under READ COMMITTED its snapshot is younger than the lock. Under the stricter
    -- levels the snapshot may be too old to know that a lane was taken off. A lane that is being unparked is in one of the
    -- two tables in every snapshot.
    if current_setting('transaction_isolation') <> 'read committed'
       or not pg_try_advisory_xact_lock_shared(1634300002, v_lane::integer)
       or not exists (select from ai.active_lanes a where a.lane_id = v_lane union all select from ai.parked_lanes p where p.lane_id = v_lane) then
      insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = v_lane;
    end if;
  end loop;
end
$$;
comment on function ai.list_lanes(bigint[]) is 'Makes the claim look at these lanes.';

-- The lane of a generation as far as it exists: with the limits that apply and its batch, else without the limits, else the
-- tenant's own for the priority. Inserts only look: to make a lane here would let one insert wait for another. The claim
-- puts what lies in the wrong lane into the right one.
create or replace function ai.existing_lane(
  p_tenant uuid, p_priority text, p_batch uuid, p_user text, p_kind text, p_model text, p_profile text) returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_counters bigint[] := '{}';
  v_lane     bigint;
begin
  if ai.limited(p_tenant) then
    v_counters := coalesce(ai.generation_counters(p_tenant, p_user, p_kind, p_model, p_profile), '{}');
  end if;
  if p_batch is not null then
    select l.id into v_lane from ai.lanes l
     where l.tenant_id = p_tenant and l.priority = p_priority and l.batch_id = p_batch and l.counters in (v_counters, '{}')
     order by l.counters desc limit 1;
    if found then
      return v_lane;
    end if;
  end if;
  if v_counters <> '{}' then
    select l.id into v_lane from ai.lanes l
     where l.tenant_id = p_tenant and l.priority = p_priority and l.counters = v_counters and l.batch_id is null;
    if found then
      return v_lane;
    end if;
  end if;
  return (select l.id from ai.lanes l where l.tenant_id = p_tenant and l.priority = p_priority and l.counters = '{}' and l.batch_id is null);
end
$$;
comment on function ai.existing_lane(uuid, text, uuid, text, text, text, text) is 'The best lane there is for such a generation; null: not even the tenant''s own.';

-- Trigger AFTER INSERT, each statement: a few statements, however many rows, tenants and lanes.
create or replace function ai.enqueue_generations() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now  timestamptz := ai.now();
  v_done record;
begin
  with groups as materialized (
    select g.*, concat_ws(E'\x01', g.tenant_id, g.priority, g.batch_id, g.user_id, g.kind, 'm' || g.model, 'p' || g.profile) as name,
           ai.existing_lane(g.tenant_id, g.priority, g.batch_id, g.user_id, g.kind, g.model, g.profile) as lane_id
      from (select distinct i.tenant_id, i.priority, i.batch_id, i.user_id, i.kind, i.model, i.profile from inserted i where i.status = 'queued') g
  ), placed as (
    select i.id, i.tenant_id, g.lane_id, i.run_after, i.query_id, i.judge_ids,
           greatest(i.created_at, i.run_after) + coalesce(i.deadline_ms, s.deadline_ms) * interval '1 ms' as deadline_at,
           i.query_id is not null or i.judge_ids is not null as waits,
           i.cache_key is not null or i.template is not null or i.collection is not null or i.conversation_id is not null or i.purpose in ('chunks', 'rows') as prepare
      from inserted i
      join groups g on g.name = concat_ws(E'\x01', i.tenant_id, i.priority, i.batch_id, i.user_id, i.kind, 'm' || i.model, 'p' || i.profile)
     cross join ai.settings s
     where i.status = 'queued' and g.lane_id is not null
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, prepare)
    select p.lane_id, p.id, p.tenant_id, coalesce(p.prepare, false) from placed p where not p.waits and (p.run_after is null or p.run_after <= v_now)
  ), delayed as (
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, prepare)
    select p.id, p.run_after, p.lane_id, p.tenant_id, coalesce(p.prepare, false) from placed p where not p.waits and p.run_after > v_now
  ), waiting as (
    insert into ai.waiting (generation_id, for_id, tenant_id, lane_id, deadline_at)
    select p.id, w.id, p.tenant_id, p.lane_id, p.deadline_at
      from placed p cross join unnest(p.query_id || coalesce(p.judge_ids, '{}')) w (id)
     where p.waits and w.id is not null
  )
  select array_agg(g.lane_id) filter (where g.lane_id is not null) as lanes, bool_or(g.lane_id is null) as homeless,
         exists (select from inserted i where i.query_id is not null or i.judge_ids is not null) as parents,
         exists (select from inserted i where i.cached) as cached
    into v_done from groups g;

  if v_done.cached then
    perform ai.book_hits(array_agg(i.tenant_id), array_agg(i.id)) from inserted i
      where i.cached and i.status = 'succeeded' and i.finished_at = i.created_at and i.created_at = statement_timestamp();
  end if;
  if v_done.lanes is null and v_done.homeless is null then
    return null;
  end if;
  if v_done.homeless then
    -- Lanes are made with their tenant; this mends a tenant whose lanes were lost. What has no lane now is found as an orphan.
    insert into ai.lanes (tenant_id, priority)
    select distinct i.tenant_id, i.priority from inserted i where i.status = 'queued' order by 1, 2
    on conflict do nothing;
    perform ai.requeue_orphans(interval '1 minute');
  end if;
  if v_done.parents then
    perform ai.ask_first(array_agg(i.tenant_id), array_agg(i.id)) from inserted i
      where i.status = 'queued' and (i.query_id is not null or i.judge_ids is not null);
  end if;
  perform ai.list_lanes(v_done.lanes);
  perform ai.wake_workers();
  return null;
end
$$;
comment on function ai.enqueue_generations() is
  'Trigger: queues what was inserted, delays it to its run_after or lets it wait for what it needs first, books what a cache answered, and wakes sleeping workers.';

-- Inserts the generations that others wait for: the embedding of a question, the verdicts of moderating models. They are
-- ordinary generations, claimed, retried, limited and booked like any other; parent_id says for whom.
create or replace function ai.ask_first(p_tenants uuid[], p_ids uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into ai.generations (id, tenant_id, user_id, kind, prompt, messages, model, profile, priority, run_after, deadline_ms, parent_id, purpose, metadata)
  select g.query_id, g.tenant_id, g.user_id, 'embedding', ai.question_text(g.prompt, g.messages), null, g.query_model, null,
         g.priority, g.run_after, g.deadline_ms, g.id, 'query', null
    from unnest(p_tenants, p_ids) p (tenant_id, id)
    join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id
   where g.query_id is not null
  union all
  select g.judge_ids[m.n], g.tenant_id, g.user_id, 'chat', null, ai.moderation_messages(m.guardrail_id, g.prompt, g.messages), m.model,
         case when m.model is null then m.profile end, g.priority, g.run_after, g.deadline_ms, g.id, 'moderation', jsonb_build_object('guardrail', m.guardrail_id)
    from unnest(p_tenants, p_ids) p (tenant_id, id)
    join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id
   cross join lateral (select row_number() over () as n, o.* from ai.moderators(g.tenant_id, g.kind) o) m
   where m.n <= cardinality(g.judge_ids);
end
$$;
comment on function ai.ask_first(uuid[], uuid[]) is 'Inserts the embeddings and verdicts that these generations wait for.';

-- Books what the exact cache answered inside the insert: a call that cost nothing and saved what the answer once cost; and
-- the text as an event where the row asked for a stream. Nothing is announced: who asked has the answer in its hands.
create or replace function ai.book_hits(p_tenants uuid[], p_ids uuid[]) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  with hits as materialized (
    select g.* from unnest(p_tenants, p_ids) p (tenant_id, id) join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id
  ), streamed as (
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data)
    select h.id, 1, h.tenant_id, 0, 'delta', coalesce(h.output, '') from hits h where h.stream
  )
  insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, model_used, kind, status, cost, latency_ms, cache, saved)
  select h.tenant_id, h.id, 0, h.created_at, h.user_id, h.provider, coalesce(h.model, h.profile), h.model_used, h.kind, 'succeeded', 0, h.latency_ms, 'exact', h.saved
    from hits h
$$;
comment on function ai.book_hits(uuid[], uuid[]) is 'Writes the calls of generations that the exact cache answered.';

revoke execute on function ai.wake_workers(), ai.list_lanes(bigint[]), ai.existing_lane(uuid, text, uuid, text, text, text, text),
  ai.enqueue_generations(), ai.ask_first(uuid[], uuid[]), ai.book_hits(uuid[], uuid[]) from public;

-- objects

create or replace trigger enqueue after insert on ai.generations
  referencing new table as inserted
  for each statement execute function ai.enqueue_generations();
