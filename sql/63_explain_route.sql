-- Why a generation was answered by whom.

-- What a route's row says of itself, for people: how the strategy ranks it, and its conditions.
create or replace function ai.describe_target(p_strategy text, p_model bigint, p_route jsonb, p_tokens integer) returns text
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(', ', format('position %s', p_route ->> 'position'),
    case p_strategy
      when 'weighted' then format('weight %s', p_route ->> 'weight')
      when 'cheapest' then coalesce((select format('%s for %s tokens in and 500 out', ai.usual_cost(p.rates, p_tokens, 500), p_tokens)
                                       from ai.prices p where p.model_id = p_model and p.valid_from <= ai.now() and ai.now() < p.valid_to limit 1), 'without a price')
      when 'fastest' then coalesce((select format('%s ms to the first text', round(s.ttft_ms)) from ai.model_stats s where s.model_id = p_model), 'never measured')
      when 'least_busy' then format('%s running now', (select count(*) from ai.leases l where l.model_id = p_model and not l.batched))
    end,
    (select 'for ' || string_agg(format('%s %s', c.key, c.value #>> '{}'), ' and ' order by c.key)
       from jsonb_each(p_route) c
      where c.key in ('min_input_tokens', 'max_input_tokens', 'tier', 'metadata', 'stream') and c.value <> 'null'))
$$;
comment on function ai.describe_target(text, bigint, jsonb, integer) is 'Why a target is where it is in a route, in words.';

-- The route of a generation, target by target, then what its profile names beside (target is null) and why it is left
-- out. Before the first claim: the route that it would have now. Raises PT401, PT404 like ai.subscribe().
create or replace function ai.explain_route(p_generation uuid)
returns table (target integer, model text, provider text, why text, breaker text, tried jsonb, chosen boolean)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_tenant   uuid := ai.check_visible(p_generation);
  v_asked    record;
  v_strategy text;
  v_bytes    integer;
  v_last     record;
begin
  select g.* into v_asked from ai.generations g where g.tenant_id = v_tenant and g.id = p_generation;
  v_bytes := coalesce((select p.input_bytes from ai.prepared p where p.generation_id = p_generation),
                      coalesce(octet_length(v_asked.prompt), octet_length(v_asked.messages::text)) + octet_length(v_asked.params::text));
  if v_asked.route is null and not v_asked.cached and v_asked.finished_at is null then
    v_asked.route := ai.route_models(v_tenant, v_asked.kind, v_asked.model, v_asked.profile, v_bytes, v_asked.metadata, v_asked.stream, p_generation);
  end if;
  select p.strategy into v_strategy
    from ai.profiles p
   where p.name = v_asked.profile and p.kind = v_asked.kind and (p.tenant_id = v_tenant or p.tenant_id is null)
   order by p.tenant_id nulls last limit 1;
  -- What runs, else the last call.
  select c.id, c.name into v_last
    from (select l.model_id as id, null as name, 1 as rank, null::smallint as attempt from ai.leases l where l.generation_id = p_generation
          union all
          select null, c.model, 2, c.attempt from ai.llm_calls c
           where c.tenant_id = v_tenant and c.generation_id = p_generation and c.created_at >= v_asked.created_at - interval '1 day' and c.cache is null) c
   order by c.rank, c.attempt desc limit 1;

  return query
    with named as (
      select distinct on (r.model_id) r.model_id, to_jsonb(r) as row, r.enabled
        from ai.routes r
       where r.profile = v_asked.profile and r.kind = v_asked.kind
         and (r.tenant_id = v_tenant
              or r.tenant_id is null and not exists (select from ai.routes o where o.tenant_id = v_tenant and o.profile = v_asked.profile and o.kind = v_asked.kind))
       order by r.model_id, r.position
    ), listed as (
      select u.n, u.model_id from unnest(v_asked.route) with ordinality u (model_id, n)
      union all
      select null, x.model_id from named x where not x.model_id = any (coalesce(v_asked.route, '{}')) and not v_asked.cached
    )
    select l.n::integer, m.name, v.name,
           case when v_asked.model is not null then 'named by the generation'
                when x.row is null and m.id = ai.extract_model() then 'the last resort of a profile that degrades'
                when x.row is null then 'of the route at the first claim; since removed'
                else ai.describe_target(v_strategy, m.id, x.row, (v_bytes + 3) / 4) end
           || case when l.n is not null then case when not (m.enabled and v.enabled) then '; now switched off' else '' end
                   when not (m.enabled and v.enabled and x.enabled) then '; left out: switched off'
                   when m.context_tokens < (v_bytes + 3) / 4 then format('; left out: its context of %s tokens is too small', m.context_tokens)
                   else '; left out: its conditions do not fit' end,
           coalesce(b.worst, 'closed'), t.calls,
           l.n is not null and coalesce(m.id = v_last.id or m.name = v_last.name, false)
      from listed l
      join ai.models m on m.id = l.model_id and (m.tenant_id is null or m.tenant_id = v_tenant)
      join ai.providers v on v.id = m.provider_id and (v.tenant_id is null or v.tenant_id = v_tenant)
      left join named x on x.model_id = l.model_id
     cross join lateral (
       select string_agg(format('%s: %s', case when b.model_id is null then 'provider' else 'model' end,
                                case b.state when 'open' then format('open after %s failures (%s)', b.failures, b.why)
                                             when 'half_open' then format('half open after %s failures (%s)', b.failures, b.why)
                                             else format('closed, %s failures', b.failures) end), '; ' order by b.id) as worst
         from ai.breakers b where b.model_id = m.id or b.provider_id = v.id) b
     cross join lateral (
       select jsonb_agg(jsonb_strip_nulls(jsonb_build_object('attempt', c.attempt, 'status', c.status, 'class', c.error_class, 'http_status', c.http_status))
                        order by c.attempt) as calls
         from ai.llm_calls c
        where c.tenant_id = v_tenant and c.generation_id = p_generation and c.model = m.name and c.created_at >= v_asked.created_at - interval '1 day'
          and c.cache is null) t
     order by l.n nulls last, (x.row ->> 'position')::integer;
end
$$;
comment on function ai.explain_route(uuid) is
  'Target by target: why it is in the generation''s route, its circuit breaker now, the attempts at it, and whether it was the one. PT404 where the caller may not see the generation.';

revoke execute on function ai.describe_target(text, bigint, jsonb, integer), ai.explain_route(uuid) from public;
grant execute on function ai.explain_route(uuid) to ai_user;
