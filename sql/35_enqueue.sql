-- From the insert to the queue, and the wake-up of workers.
--
-- Advisory locks of this database that Martlet takes (two-key form):
--   1634300001, 0     the wake-up handshake: inserts share it, a worker that goes to sleep takes it alone
--   1634300002, lane  listing of a lane: inserts share it where they can, taking a lane off the list needs it alone
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
  if not pg_try_advisory_xact_lock_shared(1634300001, 0) and ai.may_notify() then
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
    select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = any (p_lanes);
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
  p_tenant uuid, p_priority text, p_batch uuid, p_user text, p_kind text, p_model text, p_profile text, p_api_key uuid) returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_counters bigint[] := '{}';
  v_lane     bigint;
begin
  if exists (select from ai.policies_in_use p where (p.scope = p_tenant or p.scope = '00000000-0000-0000-0000-000000000000') and p.name = 'limits') then
    v_counters := coalesce(ai.generation_counters(p_tenant, p_user, p_kind, p_model, p_profile, p_api_key), '{}');
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
  select l.id into v_lane from ai.lanes l where l.tenant_id = p_tenant and l.priority = p_priority and l.counters = '{}' and l.batch_id is null;
  return v_lane;
end
$$;
comment on function ai.existing_lane(uuid, text, uuid, text, text, text, text, uuid) is 'The best lane there is for such a generation; null: not even the tenant''s own.';

-- Trigger AFTER INSERT, each statement: a few statements, however many rows, tenants and lanes. Raises PT404 where no model
-- answers what was inserted. Nearly every insert is one plain question whose way is known (sql/26_known_ways.sql), or rows that are alike: told from
-- the rest by comparing all with the first.
-- To begin a statement costs as much as to store a row, so for one row there are as few as can be. Planned once: to plan anew for a session's
-- first five inserts would cost as much as the inserts, and end with the same plans.
create or replace function ai.enqueue_generations() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  v_tenant   uuid;
  v_id       uuid;
  v_priority text;
  v_batch    uuid;
  v_user     text;
  v_kind     text;
  v_model    text;
  v_profile  text;
  v_key      uuid;
  v_origin   uuid;
  v_purpose  text;
  v_more     boolean;
  v_plain    boolean;
  v_alike    boolean;
  v_prepare  boolean;
  v_said     boolean;
  v_cached   boolean;
  v_bytes    integer;
  v_most     integer;
  v_limits   boolean;
  v_answered boolean;
  v_lane     bigint;
begin
  <<placing>>
  begin
    -- One plain question like others before, no longer than may be: its way is known.
    insert into ai.queue (lane_id, generation_id, tenant_id)
    select w.lane_id, i.id, i.tenant_id
      from inserted i
     cross join lateral (
       select k.lane_id
         from ai.known_ways k
        where k.tenant_id = i.tenant_id and k.model = i.model and k.user_id = any (array['', i.user_id])
          and k.version = (select sum(c.changes)::bigint from ai.policy_changes c) and k.kind = i.kind and k.priority = i.priority
          and (k.user_id = '' or k.api_key_id is not distinct from i.api_key_id) and (octet_length(i.prompt) > k.max_bytes) is not true
        limit 1) w
     where i.status = 'queued' and num_nonnulls(i.purpose, i.batch_id, i.run_after, i.query_id, i.judge_ids, i.cache_key, i.template, i.collection,
                                                i.conversation_id, i.stages) = 0
       and not exists (select from inserted offset 1)
    returning lane_id into v_lane;
    exit placing when found;

    select i.tenant_id, i.id, i.priority, i.user_id, i.kind, i.model, i.profile, i.api_key_id, octet_length(i.prompt),
           i.status = 'queued' and num_nonnulls(i.purpose, i.batch_id, i.run_after, i.query_id, i.judge_ids, i.cache_key, i.template, i.collection,
                                                i.conversation_id, i.stages) = 0,
           exists (select from inserted offset 1),
           (select case when s.accepting then s.max_input_bytes else -1 end from ai.settings s),
           exists (select from ai.policies_in_use p where p.name = 'limits' and (p.scope = i.tenant_id or p.scope = '00000000-0000-0000-0000-000000000000'))
      into v_tenant, v_id, v_priority, v_user, v_kind, v_model, v_profile, v_key, v_bytes, v_plain, v_more, v_most, v_limits
      from inserted i limit 1;
    if not found then
      return null;
    end if;
    if v_more and v_plain then
      select bool_and(i.tenant_id = v_tenant and i.user_id = v_user and i.kind = v_kind and i.priority = v_priority and i.status = 'queued'
                      and i.model is not distinct from v_model and i.profile is not distinct from v_profile and i.api_key_id is not distinct from v_key
                      and num_nonnulls(i.purpose, i.batch_id, i.run_after, i.query_id, i.judge_ids, i.cache_key, i.template, i.collection,
                                       i.conversation_id, i.stages) = 0),
             max(octet_length(i.prompt))
        into v_plain, v_bytes
        from inserted i;
    end if;
    v_alike := v_plain;
    v_prepare := false;
    if not v_plain then
      select i.batch_id, i.purpose into v_batch, v_purpose from inserted i where i.id = v_id;
      select bool_and(i.tenant_id = v_tenant and i.status = 'queued' and i.priority = v_priority and i.user_id = v_user and i.kind = v_kind
                      and i.batch_id is not distinct from v_batch and i.model is not distinct from v_model and i.profile is not distinct from v_profile
                      and i.api_key_id is not distinct from v_key and i.purpose is not distinct from v_purpose
                      and num_nonnulls(i.run_after, i.query_id, i.judge_ids) = 0
                      and (i.parent_id is null or (select o.batch_id is null from ai.generations o where o.tenant_id = i.tenant_id and o.id = i.parent_id))),
             bool_or(num_nonnulls(i.cache_key, i.template, i.collection, i.conversation_id) > 0 or (i.purpose in ('chunks', 'rows')) is true),
             bool_or(i.conversation_id is not null and i.purpose is null),
             bool_or(i.cached),
             max(octet_length(i.prompt)) filter (where i.status = 'queued' and num_nonnulls(i.purpose, i.stages) = 0)
        into v_alike, v_prepare, v_said, v_cached, v_bytes
        from inserted i;
    end if;
    if v_bytes > v_most then  -- what is more than a prompt was refused before it was inserted
      if v_most < 0 then
        raise exception 'no generations are taken at present' using errcode = 'PT503', hint = 'ai.settings.accepting';
      end if;
      raise exception 'the input is too long'
        using errcode = 'PT413', detail = format('%s bytes; the limit is %s.', v_bytes, v_most), hint = 'ai.settings.max_input_bytes';
    end if;

    if v_said then
      perform ai.append_question(c.tenant_id, c.conversation_id, c.user_id, c.id, c.prompt, c.messages)
         from (select i.* from inserted i where i.conversation_id is not null and i.status = 'queued' and i.purpose is null
                order by i.tenant_id, i.conversation_id, i.id) c;
    end if;
    if v_alike then
      -- The lane, and whether the named model answers. The lane is that of ai.existing_lane(), which is asked where this finds none; the
      -- counters are those of ai.generation_counters(), not called, since a call costs an insert more than anything else here.
      if v_batch is null then
        v_origin := case when v_key is not null then ai.key_origin(v_key) end;
        select l.id,
               exists (select from ai.models m join ai.providers p on p.id = m.provider_id
                        where m.kind = v_kind and m.enabled and p.enabled and (p.tenant_id is null or p.tenant_id = v_tenant)
                          and (m.tenant_id = v_tenant and m.name = v_model or m.tenant_id is null and m.name = v_model))
          into v_lane, v_answered
          from ai.lanes l
         where l.tenant_id = v_tenant and l.priority = v_priority and l.batch_id is null
           and l.counters = case when not v_limits then '{}' else array(
             select (select c.id from ai.counters c
                      where c.limit_id = x.id and c.tenant_id = v_tenant
                        and c.subject = case x.per when 'member' then v_user when 'api_key' then v_origin::text else '' end)
               from ai.limits x
              where (x.tenant_id = v_tenant or x.tenant_id is null) and x.enabled
                and (x.user_id is null or x.user_id = v_user) and (x.kind is null or x.kind = v_kind)
                and (x.profile is null or x.profile = v_profile) and (x.model is null or x.model = v_model)
                and (x.per <> 'api_key' or v_origin is not null) and (x.api_key_id is null or x.api_key_id = v_origin)
              order by 1) end;
      end if;
      if v_answered is not true and v_purpose is null then  -- a profile; what ai.check_target() finds, or raises
        perform ai.check_target(v_tenant, v_kind, v_model, v_profile);
      end if;
      if v_lane is null then
        v_lane := ai.existing_lane(v_tenant, v_priority, v_batch, v_user, v_kind, v_model, v_profile, v_key);
      end if;
      if v_lane is not null then
        if v_more then
          insert into ai.queue (lane_id, generation_id, tenant_id, prepare) select v_lane, i.id, i.tenant_id, v_prepare from inserted i;
        else
          insert into ai.queue (lane_id, generation_id, tenant_id, prepare) values (v_lane, v_id, v_tenant, v_prepare);
        end if;
        exit placing;
      end if;
    end if;

    if v_cached then
      -- What the exact cache answered inside this insert (a restored row is older): calls that cost nothing and saved what the
      -- answer once cost, and the text as an event where the row asked for a stream. Nothing is announced: who asked has the
      -- answer in its hands.
      insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, model_used, kind, status, cost, latency_ms, cache, saved)
      select i.tenant_id, i.id, 0, i.created_at, i.user_id, i.provider, coalesce(i.model, i.profile), i.model_used, i.kind, 'succeeded', 0, i.latency_ms, 'exact', i.saved
        from inserted i
       where i.cached and i.status = 'succeeded' and i.finished_at = i.created_at and i.created_at = statement_timestamp();
      insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data)
      select i.id, 1, i.tenant_id, 0, 'delta', coalesce(i.output, '')
        from inserted i
       where i.stream and i.cached and i.status = 'succeeded' and i.finished_at = i.created_at and i.created_at = statement_timestamp();
    end if;
    if exists (select from inserted i where i.status = 'queued') then
      perform ai.check_target(d.tenant_id, d.kind, d.model, d.profile)
         from (select distinct i.tenant_id, i.kind, i.model, i.profile from inserted i where i.status = 'queued' and i.purpose is null) d;
      perform ai.enqueue_mixed(array_agg(i.tenant_id), array_agg(i.id), ai.now()) from inserted i where i.status = 'queued';
    end if;
    return null;
  end placing;

  -- What ai.list_lanes() and ai.wake_workers() would find, which is nearly always that nothing is to be done.
  <<listing>>
  begin
    if current_setting('transaction_isolation') = 'read committed' and pg_try_advisory_xact_lock_shared(1634300002, v_lane::integer) then
      perform from ai.active_lanes a where a.lane_id = v_lane limit 1;
      exit listing when found;
    end if;
    perform ai.list_lanes(array[v_lane]);
  end listing;
  if not pg_try_advisory_xact_lock_shared(1634300001, 0) then
    perform ai.wake_workers();
  end if;
  return null;
end
$$;
comment on function ai.enqueue_generations() is
  'Trigger: queues what was inserted, delays it to its run_after or lets it wait for what it needs first, books what a cache answered, and wakes sleeping workers.';

-- Raises PT404 unless some model answers for this name or profile.
create or replace function ai.check_target(p_tenant uuid, p_kind text, p_model text, p_profile text) returns void
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if ai.target_model(p_tenant, p_kind, p_model, p_profile, 1) is null then
    raise exception 'there is no % % for kind %', case when p_model is null then 'profile' else 'model' end, coalesce(p_model, p_profile), p_kind
      using errcode = 'PT404',
            detail = 'It does not exist for this tenant, is not of this kind, or is switched off.',
            hint = case when p_model is null then 'select profile, kind from ai.routes where enabled;' else 'select name, kind from ai.models where enabled;' end;
  end if;
end
$$;
comment on function ai.check_target(uuid, text, text, text) is 'Raises PT404 unless a model answers.';

-- Queues, delays or lets wait what was inserted by one statement and is not alike. Planned by how much it is.
create or replace function ai.enqueue_mixed(p_tenants uuid[], p_ids uuid[], p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = auto
set standard_conforming_strings = on
set jit = off
set enable_seqscan = off
as $$
declare
  v_done record;
begin
  with inserted as materialized (
    select g.id, g.tenant_id, g.priority, b.batch_id, g.user_id, g.kind, g.model, g.profile, g.api_key_id, g.run_after, g.query_id, g.judge_ids, g.deadline_ms,
           g.created_at,
           concat_ws(E'\x01', g.tenant_id, g.priority, b.batch_id, g.user_id, g.kind, 'm' || g.model, 'p' || g.profile, 'k' || g.api_key_id) as alike,
           coalesce(g.cache_key is not null or g.template is not null or g.collection is not null or g.conversation_id is not null or g.purpose in ('chunks', 'rows'), false) as prepare
      from unnest(p_tenants, p_ids) p (tenant_id, id)
      join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id
     -- What is asked first for a row of a batch is not of the batch, but is stopped with it.
     cross join lateral (select coalesce(g.batch_id, (select o.batch_id from ai.generations o where o.tenant_id = g.tenant_id and o.id = g.parent_id)) as batch_id) b
  ), groups as materialized (
    select d.alike, ai.existing_lane(d.tenant_id, d.priority, d.batch_id, d.user_id, d.kind, d.model, d.profile, d.api_key_id) as lane_id
      from (select distinct i.alike, i.tenant_id, i.priority, i.batch_id, i.user_id, i.kind, i.model, i.profile, i.api_key_id from inserted i) d
  ), placed as (
    select i.*, g.lane_id, i.query_id is not null or i.judge_ids is not null as waits,
           greatest(i.created_at, i.run_after) + coalesce(i.deadline_ms, s.deadline_ms) * interval '1 ms' as deadline_at
      from inserted i
      join groups g on g.alike = i.alike and g.lane_id is not null
     cross join ai.settings s
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, prepare)
    select p.lane_id, p.id, p.tenant_id, p.prepare from placed p where not p.waits and (p.run_after is null or p.run_after <= p_now)
  ), delayed as (
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, prepare)
    select p.id, p.run_after, p.lane_id, p.tenant_id, p.prepare from placed p where not p.waits and p.run_after > p_now
  ), waiting as (
    insert into ai.waiting (generation_id, for_id, tenant_id, lane_id, deadline_at)
    select p.id, w.id, p.tenant_id, p.lane_id, p.deadline_at
      from placed p cross join unnest(p.query_id || coalesce(p.judge_ids, '{}')) w (id)
     where p.waits and w.id is not null
  )
  select (select array_agg(distinct g.lane_id) from groups g where g.lane_id is not null) as lanes,
         exists (select from groups g where g.lane_id is null) as homeless,
         (select array_agg(i.tenant_id) from inserted i where i.query_id is not null or i.judge_ids is not null) as parent_tenants,
         (select array_agg(i.id) from inserted i where i.query_id is not null or i.judge_ids is not null) as parents
    into v_done;
  if v_done.homeless then
    -- Lanes are made with their tenant; this mends a tenant whose lanes were lost. What has none now is found as an orphan.
    insert into ai.lanes (tenant_id, priority)
    select distinct g.tenant_id, g.priority from unnest(p_tenants, p_ids) p (tenant_id, id) join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id
     order by 1, 2
    on conflict do nothing;
    perform ai.requeue_orphans(interval '1 minute');
  end if;
  if v_done.parents is not null then
    perform ai.ask_first(v_done.parent_tenants, v_done.parents);
  end if;
  perform ai.list_lanes(coalesce(v_done.lanes, '{}'));
  perform ai.wake_workers();
end
$$;
comment on function ai.enqueue_mixed(uuid[], uuid[], timestamptz) is 'Queues, delays or lets wait generations of any kind.';

-- Inserts the generations that others wait for: the embedding of a question, the verdicts of moderating models. They are
-- ordinary generations, claimed, retried, limited and booked like any other; parent_id says for whom, in whose batch's lane they are.
-- A rule of all tenants is judged by the shared model, or by nobody: never by a tenant's own of that name.
create or replace function ai.ask_first(p_tenants uuid[], p_ids uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into ai.generations (id, tenant_id, user_id, kind, prompt, messages, model, profile, route, priority, run_after, deadline_ms, api_key_id, parent_id, purpose, metadata)
  select g.query_id, g.tenant_id, g.user_id, 'embedding', ai.question_text(g.prompt, g.messages), null, g.query_model, null, null,
         g.priority, g.run_after, g.deadline_ms, g.api_key_id, g.id, 'query', null
    from unnest(p_tenants, p_ids) p (tenant_id, id)
    join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id
   where g.query_id is not null
  union all
  select g.judge_ids[m.n], g.tenant_id, g.user_id, 'chat', null, ai.moderation_messages(m.guardrail_id, g.prompt, g.messages), m.model,
         case when m.model is null then m.profile end,
         case when (select r.tenant_id is null from ai.guardrails r where r.id = m.guardrail_id)
              then coalesce(ai.route_models(null, 'chat', m.model, m.profile, octet_length(coalesce(g.prompt, g.messages::text)), null, false, g.judge_ids[m.n]), '{}') end,
         g.priority, g.run_after, g.deadline_ms, g.api_key_id, g.id, 'moderation', jsonb_build_object('guardrail', m.guardrail_id)
    from unnest(p_tenants, p_ids) p (tenant_id, id)
    join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id
   cross join lateral (select row_number() over () as n, o.* from ai.moderators(g.tenant_id, g.kind) o) m
   where m.n <= cardinality(g.judge_ids);
end
$$;
comment on function ai.ask_first(uuid[], uuid[]) is 'Inserts the embeddings and verdicts that these generations wait for.';

revoke execute on function ai.wake_workers(), ai.list_lanes(bigint[]), ai.existing_lane(uuid, text, uuid, text, text, text, text, uuid),
  ai.enqueue_generations(), ai.check_target(uuid, text, text, text), ai.enqueue_mixed(uuid[], uuid[], timestamptz), ai.ask_first(uuid[], uuid[]) from public;

-- objects

create or replace trigger enqueue after insert on ai.generations
  referencing new table as inserted
  for each statement execute function ai.enqueue_generations();
