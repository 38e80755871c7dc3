-- What a batch will cost, before; and how far it has come and what it has cost, while it runs.

-- What ai.estimate() needs to know of a route, looked up once for each size of text: the first target with its rates and the
-- usual length of its answers, and for the dearest case the dearest rates and the longest answer of each target.
--   {"model", "rates", "input", "output", "usual", "most", "targets": [{"rates", "input", "output", "most"}]}
-- rates are null where two numbers say the same.
-- Raises PT401, PT403, PT404.
create or replace function ai.estimate_basis(p_kind text, p_model text, p_profile text, p_bytes integer) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_calls  constant integer := 1000;
  v_tenant uuid := (select r.tenant_id from ai.require('model:read', 'model:write') r);
  v_route  bigint[];
  v_basis  jsonb;
begin
  v_route := ai.route_models(v_tenant, p_kind, p_model, p_profile, p_bytes, null, false, null);
  if coalesce(cardinality(v_route), 0) = 0 then
    raise exception 'there is no % % for kind %', case when p_model is null then 'profile' else 'model' end, coalesce(p_model, p_profile), p_kind
      using errcode = 'PT404', detail = 'It does not exist for this tenant, is not of this kind, or is switched off.',
            hint = case when p_model is null then 'select profile, kind from ai.routes where enabled;' else 'select name, kind from ai.models where enabled;' end;
  end if;
  -- Ids of generations are time-ordered: the last calls of a tenant are the end of its part of the key.
  with targets as materialized (
    select u.at, m.name, p.rates, p.plain, case when p_kind in ('chat', 'completion') then coalesce(m.max_output_tokens, s.max_output_tokens)
                                                 when p_kind in ('image', 'transcription', 'speech') then coalesce(m.max_output_tokens, 0) else 0 end as most
      from unnest(v_route) with ordinality u (id, at)
      join ai.models m on m.id = u.id
     cross join ai.settings s
      left join lateral (select o.rates, o.plain from ai.prices o where o.model_id = m.id and o.valid_from <= ai.now() and ai.now() < o.valid_to limit 1) p on true
  )
  select jsonb_build_object(
           'model', f.name, 'rates', case when not f.plain then f.rates end, 'input', (f.rates ->> 'input')::numeric, 'output', coalesce((f.rates ->> 'output')::numeric, 0), 'most', f.most,
           'usual', (select avg(c.output_tokens) from (select c.* from ai.llm_calls c where c.tenant_id = v_tenant order by c.generation_id desc limit c_calls) c
                      where c.model = f.name and c.status = 'succeeded' and c.cache is null),
           'targets', (select jsonb_agg(jsonb_build_object(
                                'rates', case when not t.plain then t.rates end,
                                'input', greatest((t.rates ->> 'input')::numeric, (t.rates ->> 'cache_write')::numeric, (t.rates ->> 'cache_write_1h')::numeric),
                                'output', greatest((t.rates ->> 'output')::numeric, (t.rates ->> 'reasoning')::numeric, 0), 'most', t.most)) from targets t))
    into v_basis from targets f where f.at = 1;
  return v_basis;
end
$$;
comment on function ai.estimate_basis(text, text, text, integer) is 'Rates and lengths by which ai.estimate() reckons.';

-- What a generation would cost, by four bytes a token of input and the usual length of the model's last answers to the tenant
-- (without any, or where max_tokens is less: the most that it may write). cost_max is the dearest target of the route with
-- every byte a token and the longest answer, and a minute where machine time is billed. Money is null where a model has no price, or one that does not bound a call. Nothing is counted that joins the
-- prompt later: passages, templates, history.
--
-- Fast over many rows, because what it looks up is kept until the statement ends, in a setting that is this session's own
-- and tells it only what it could ask anyway. That is why it is not for parallel plans, in which no setting may change.
-- Raises PT400, PT401, PT403, PT404.
create or replace function ai.estimate(
  prompt text default null, messages jsonb default null, model text default null, profile text default null, params jsonb default '{}',
  kind text default 'chat', out input_tokens bigint, out output_tokens bigint, out cost numeric, out cost_max numeric, out target text)
language plpgsql stable parallel unsafe security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_bytes  bigint := octet_length(coalesce(prompt, messages::text)) + case when params <> '{}' then octet_length(params::text) else 0 end;
  v_now    text := extract(epoch from statement_timestamp())::text || ' ';
  v_all    text := current_setting('ai.estimates', true);  -- v_now and what is kept
  v_kept   jsonb := '{}';
  v_key    text;
  v_basis  jsonb;
  v_asked  bigint;
  v_target jsonb;
  v_most   numeric;
  c_seconds constant numeric := 60;  -- of machine time, where that is billed
begin
  if (prompt is null) = (messages is null) then
    raise exception 'an estimate needs either prompt or messages' using errcode = 'PT400';
  elsif model is not null and profile is not null then
    raise exception 'an estimate names a model or a profile, not both' using errcode = 'PT400';
  elsif kind is null or kind not in ('chat', 'embedding', 'completion', 'classification', 'rerank', 'moderation', 'image', 'transcription', 'speech') then
    raise exception 'there is no kind %', kind using errcode = 'PT400';
  end if;
  -- The route may depend on the size: one look for each power of two.
  v_key := concat_ws(' ', kind, length((v_bytes / 8)::bit(32)::text) - length(ltrim((v_bytes / 8)::bit(32)::text, '0')), 'm' || model, 'p' || profile);
  if v_all ^@ v_now then  -- else it is of another statement, or was never written here
    v_kept := substr(v_all, length(v_now) + 1);
  end if;
  v_basis := v_kept -> v_key;
  if v_basis is null then
    v_basis := ai.estimate_basis(kind, model,
                                 case when model is null then coalesce(profile, ai.choose_profile(ai.tenant_id(), kind, v_bytes, null)) end, v_bytes::integer);
    perform set_config('ai.estimates', v_now || (v_kept || jsonb_build_object(v_key, v_basis))::text, true);
  end if;

  v_asked := coalesce(ai.token_count(params -> 'max_completion_tokens'), ai.token_count(params -> 'max_tokens'));
  target := v_basis ->> 'model';
  input_tokens := (v_bytes + 3) / 4;
  output_tokens := ceil(least((v_basis ->> 'usual')::numeric, (v_basis ->> 'most')::numeric, v_asked));
  cost := case when jsonb_typeof(v_basis -> 'rates') = 'object'
    then ai.token_cost(v_basis -> 'rates', input_tokens, 0, 0, 0, coalesce(output_tokens, 0), 0,
                       jsonb_strip_nulls(ai.unit_bounds(v_basis -> 'rates', kind, params, v_bytes, c_seconds)), params ->> 'service_tier')
    else trim_scale(0.000001 * (input_tokens * (v_basis ->> 'input')::numeric + output_tokens * (v_basis ->> 'output')::numeric)) end;
  for v_target in select value from jsonb_array_elements(v_basis -> 'targets') loop
    if jsonb_typeof(v_target -> 'rates') = 'object' then
      v_most := ai.most_cost(v_target -> 'rates', kind, params, v_bytes, least((v_target ->> 'most')::bigint, v_asked), c_seconds);
      if v_most is null then
        cost_max := null;
        return;
      end if;
      cost_max := greatest(cost_max, v_most);
      continue;
    elsif jsonb_typeof(v_target -> 'input') = 'null' then
      cost_max := null;
      return;
    end if;
    cost_max := greatest(cost_max, trim_scale(0.000001 * (v_bytes * (v_target ->> 'input')::numeric
                                                 + least((v_target ->> 'most')::numeric, v_asked) * (v_target ->> 'output')::numeric)));
  end loop;
end
$$;
comment on function ai.estimate(text, jsonb, text, text, jsonb, text) is
  'What a generation would cost: select sum((ai.estimate(prompt => body, profile => ''small'')).cost) from a_table.';

-- How far a batch has come. expected_cost: what was spent, and for what has not ended the mean of what has (before anything
-- has: the estimate of the first hundred, for who may see prices). rate: ends a second within the last minute. eta: null while nothing ends. Counts
-- the batch's rows each time: a million take about a second. Raises PT401, PT404.
create or replace function ai.batch_progress(batch uuid)
returns table (state text, total bigint, queued bigint, running bigint, succeeded bigint, failed bigint, cancelled bigint, rejected bigint,
               done double precision, cost numeric, expected_cost numeric, rate double precision, eta interval)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid := ai.check_batch_visible(batch);
  v_now    timestamptz := ai.now();
begin
  return query
    with counts as materialized (
      select count(*) as n, count(*) filter (where g.status = 'queued') as q, count(*) filter (where g.status = 'running') as r,
             count(*) filter (where g.status = 'succeeded') as s, count(*) filter (where g.status = 'failed') as f,
             count(*) filter (where g.status = 'cancelled') as c, count(*) filter (where g.status = 'rejected') as j,
             sum(g.cost) as cost, avg(g.cost) filter (where g.status = 'succeeded') as mean,
             count(*) filter (where g.finished_at > v_now - interval '1 minute' and g.started_at is not null) as recent,
             least(greatest(extract(epoch from v_now - min(g.started_at))::double precision, 1), 60) as seconds
        from ai.generations g
       where g.tenant_id = v_tenant and g.batch_id = batch
    ), sampled as materialized (
      select avg((ai.estimate(prompt => g.prompt, messages => g.messages, model => g.model, profile => g.profile, params => g.params, kind => g.kind)).cost) as mean
        from (select o.* from ai.generations o where o.tenant_id = v_tenant and o.batch_id = batch and o.status = 'queued' limit 100) g
       where (select k.mean is null and k.q > 0 from counts k) and (select ai.may('model:read') or ai.may('model:write'))
         and ai.target_model(v_tenant, g.kind, g.model, g.profile, 1) is not null
    )
    select case when b.cancelled_at is not null then 'cancelled' when k.n > 0 and k.q + k.r = 0 then 'done' when b.paused_at is not null then 'paused'
                when k.n = 0 then 'empty' else 'running' end,
           k.n, k.q, k.r, k.s, k.f, k.c, k.j, (k.n - k.q - k.r) / nullif(k.n, 0)::double precision, trim_scale(coalesce(k.cost, 0)),
           trim_scale(coalesce(k.cost, 0) + case when k.q + k.r > 0 then (k.q + k.r) * round(coalesce(k.mean, m.mean), 12) else 0 end), coalesce(k.recent / k.seconds, 0),
           case when k.q + k.r = 0 then interval '0'
                when b.paused_at is null and b.cancelled_at is null and k.recent > 0 then round((k.q + k.r) * k.seconds / k.recent) * interval '1 second' end
      from counts k
     cross join sampled m
      join ai.batches b on b.tenant_id = v_tenant and b.id = batch;
end
$$;
comment on function ai.batch_progress(uuid) is 'How far a batch has come, what it has cost, what it will, and when it will be done.';

revoke execute on function ai.estimate_basis(text, text, text, integer), ai.estimate(text, jsonb, text, text, jsonb, text), ai.batch_progress(uuid) from public;
grant execute on function ai.estimate(text, jsonb, text, text, jsonb, text), ai.batch_progress(uuid) to ai_user;

-- objects
