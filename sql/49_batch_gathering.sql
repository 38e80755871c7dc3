-- From a claim into provider batches: what has priority batch and can go by its provider's batch interface is leased to a provider
-- batch in place of the worker.

-- Leases as ai.lease_generations() does and gives the calls that the worker is to make now; what can go by a provider batch is put
-- into one instead. What cannot, although it has priority batch, is sent singly, and its stages say why. Of what failed once
-- nothing is batched again: one that failed alone in a batch, or whose batch expired, has waited long enough.
-- Locks as ai.lease_generations(), then provider batches that gather, skipping what others hold.
create or replace function ai.lease_to_batches(
  p_worker uuid, p_now timestamptz, p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_leaders uuid[])
returns table (generation_id uuid, attempt smallint, kind text, dialect text, base_url text, secret text, headers jsonb, options jsonb,
               model text, stream boolean, request jsonb, timeout_ms integer, secret_ref bigint, tenant_only boolean, public_only boolean, seal jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_settings ai.settings;
  v_call     record;
  v_of       record;
  v_why      text;
  v_ids      uuid[] := '{}';
  v_requests jsonb[] := '{}';
  v_options  jsonb[] := '{}';
begin
  select * into v_settings from ai.settings;
  for v_call in select * from ai.lease_generations(p_worker, p_now, p_ids, p_tenants, p_lanes, p_tries, p_targets, p_leaders) loop
    select g.priority, g.purpose, g.stages is not null as has_stages, e.tenant_id, e.deadline_at, e.lane_id, m.capabilities -> 'batch' = 'true' as can
      into v_of
      from ai.leases e
      join ai.generations g on g.tenant_id = e.tenant_id and g.id = e.generation_id
      join ai.models m on m.id = e.model_id
     where e.generation_id = v_call.generation_id;
    if v_of.priority is distinct from 'batch' then
      v_why := '';
    elsif v_call.attempt > 1 or v_of.purpose is not null then
      v_why := '';
    elsif v_of.can is not true then
      v_why := 'the model has no batch interface';
    elsif not (v_call.dialect in ('openai', 'anthropic', 'gemini') and v_call.kind = 'chat'
               or v_call.dialect = 'openai' and v_call.kind in ('embedding', 'completion', 'moderation')) then
      v_why := 'its kind has no batch interface at this provider';
    elsif v_call.stream then
      v_why := 'it is streamed';
    elsif v_call.request ? 'files' then
      v_why := 'it has files';
    elsif v_call.seal is not null then
      v_why := 'its tenant keeps calls sealed';
    elsif v_of.deadline_at < p_now + v_settings.provider_batch_window_ms * interval '1 ms' then
      v_why := 'its deadline is nearer than the end of a batch';
    elsif octet_length(v_call.request::text) > v_settings.provider_batch_bytes / 4 then
      v_why := 'it is too large for a batch';
    else
      v_ids := array_append(v_ids, v_call.generation_id);
      v_requests := array_append(v_requests, v_call.request);
      v_options := array_append(v_options, v_call.options);
      continue;
    end if;

    if v_why <> '' then
      update ai.generations g set stages = coalesce(g.stages, '[]') || ai.stage('provider_batch', 'passed', v_why)
       where g.tenant_id = v_of.tenant_id and g.id = v_call.generation_id;
    end if;
    generation_id := v_call.generation_id;
    attempt := v_call.attempt;
    kind := v_call.kind;
    dialect := v_call.dialect;
    base_url := v_call.base_url;
    secret := v_call.secret;
    headers := v_call.headers;
    options := v_call.options;
    model := v_call.model;
    stream := v_call.stream;
    request := v_call.request;
    -- What may wait for days may not hang as long, once it is sent alone.
    timeout_ms := least(v_call.timeout_ms, v_settings.deadline_ms);
    secret_ref := v_call.secret_ref;
    tenant_only := v_call.tenant_only;
    public_only := v_call.public_only;
    seal := v_call.seal;
    return next;
  end loop;
  if cardinality(v_ids) > 0 then
    perform ai.join_batches(v_ids, v_requests, v_options, p_now);
  end if;
end
$$;
comment on function ai.lease_to_batches(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]) is
  'Leases what was taken off the queue, to provider batches where that can be; gives the calls that are to be made at once.';

-- Puts leased generations into provider batches that gather, of their tenant and model, and makes new ones where there is none or
-- it is full. A full one is sent without waiting any longer.
create or replace function ai.join_batches(p_ids uuid[], p_requests jsonb[], p_options jsonb[], p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  -- Gemini takes requests of 20 MB; a batch is one of them.
  c_inline  constant bigint := 12582912;
  v_settings ai.settings;
  v_one     record;
  v_batch   record;
  v_count   integer;
  v_bytes   bigint;
  v_limit   bigint;
  v_until   timestamptz;
  v_members uuid[] := '{}';
  v_news    boolean := false;
begin
  select * into v_settings from ai.settings;
  for v_one in
    select u.n, u.id, e.tenant_id, e.model_id, e.deadline_at, m.provider_id, m.wire_name, m.kind, v.dialect, u.options, octet_length(u.request::text) as bytes,
           coalesce(lead(octet_length(u.request::text)) over w, octet_length(u.request::text)) as next_bytes,
           lead(e.tenant_id) over w is distinct from e.tenant_id or lead(e.model_id) over w is distinct from e.model_id as is_last
      from unnest(p_ids, p_requests, p_options) with ordinality u (id, request, options, n)
     cross join lateral (select l.tenant_id, l.model_id, l.deadline_at from ai.leases l where l.generation_id = u.id offset 0) e
      join ai.models m on m.id = e.model_id
      join ai.providers v on v.id = m.provider_id
    window w as (order by e.tenant_id, e.model_id, u.n)
     order by e.tenant_id, e.model_id, u.n
  loop
    if v_members = '{}' then
      v_limit := case when v_one.dialect = 'gemini' then least(v_settings.provider_batch_bytes, c_inline) else v_settings.provider_batch_bytes end;
      select b.id, b.requests, b.bytes, b.give_up_at into v_batch
        from ai.provider_batches b
       where b.tenant_id = v_one.tenant_id and b.model_id = v_one.model_id and b.state = 'gathering'
         and b.requests < v_settings.provider_batch_requests and b.bytes + v_one.bytes <= v_limit
       limit 1 for update skip locked;
      if not found then
        insert into ai.provider_batches (tenant_id, provider_id, model_id, kind, wire_name, options, due_at, created_at, give_up_at)
        values (v_one.tenant_id, v_one.provider_id, v_one.model_id, v_one.kind, v_one.wire_name, v_one.options - 'first_token_ms',
                p_now + v_settings.provider_batch_gather_ms * interval '1 ms', p_now, v_one.deadline_at)
        returning id, requests, bytes, give_up_at into v_batch;
        v_news := true;
      end if;
      v_count := v_batch.requests;
      v_bytes := v_batch.bytes;
      v_until := v_batch.give_up_at;
    end if;
    v_members := v_members || v_one.id;
    v_count := v_count + 1;
    v_bytes := v_bytes + v_one.bytes;
    v_until := least(v_until, v_one.deadline_at);
    if v_one.is_last or v_count >= v_settings.provider_batch_requests or v_bytes + v_one.next_bytes > v_limit then
      update ai.leases e set worker_id = v_batch.id, batched = true where e.generation_id = any (v_members);
      update ai.generations g set provider_batch_id = v_batch.id
        from unnest(v_members) m (id) where g.tenant_id = v_one.tenant_id and g.id = m.id;
      insert into ai.batched_requests (batch_id, generation_id, tenant_id, attempt, request)
      select v_batch.id, u.id, e.tenant_id, e.attempt, u.request
        from unnest(p_ids, p_requests) u (id, request)
       cross join lateral (select l.tenant_id, l.attempt from ai.leases l where l.generation_id = u.id offset 0) e
       where u.id = any (v_members);
      update ai.provider_batches b
         set requests = v_count, bytes = v_bytes, give_up_at = v_until,
             due_at = case when v_count >= v_settings.provider_batch_requests or v_bytes + v_one.next_bytes > v_limit then least(b.due_at, p_now) else b.due_at end
       where b.id = v_batch.id;
      v_news := v_news or v_count >= v_settings.provider_batch_requests or v_bytes + v_one.next_bytes > v_limit;
      v_members := '{}';
    end if;
  end loop;
  if v_news and ai.may_notify() then
    perform pg_notify('ai_batches', '');
  end if;
end
$$;
comment on function ai.join_batches(uuid[], jsonb[], jsonb[], timestamptz) is 'Puts leased generations into provider batches that gather, making them where needed.';

revoke execute on function ai.lease_to_batches(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]),
  ai.join_batches(uuid[], jsonb[], jsonb[], timestamptz) from public;
