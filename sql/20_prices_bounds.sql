-- The most that a call can cost, for reservations; and what it is taken to have used where nobody can say any more.

-- How much of each class for one a call may use at the most, by what the request says; of what it cannot say by the price's "most".
-- A class that has no bound is there with null. p_seconds: how long the call may take.
--   queries     of a reranker: a hundred documents a query, of which long ones are cut (500 tokens are at least 500 bytes)
--   seconds     machine time ends with the call; what is heard or spoken does not
--   searches …  nobody asked for: none; else what the request's tools allow
create or replace function ai.unit_bounds(p_rates jsonb, p_kind text, p_params jsonb, p_input bigint, p_seconds numeric) returns jsonb
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bounds jsonb := '{}';
  v_class  text;
  v_bound  numeric;
  v_size   text[];
begin
  foreach v_class in array ai.rate_classes(p_rates) loop
    continue when ai.is_token_class(v_class) and v_class <> 'citations';
    v_bound := (p_rates -> 'most' ->> v_class)::numeric;
    if v_bound is null then
      case
        when v_class = 'requests' then
          v_bound := 1;
        when v_class = 'queries' then
          v_bound := case when p_kind = 'rerank' and jsonb_typeof(p_params -> 'documents') = 'array'
                          then ceil((jsonb_array_length(p_params -> 'documents') + p_input / 500.0) / 100.0) else 1 end;
        when v_class = 'images' then
          v_bound := coalesce(ai.token_count(p_params -> 'n'), 1);
        when v_class = 'pixels' then
          v_size := regexp_match(p_params ->> 'size', '^([1-9][0-9]{0,4})x([1-9][0-9]{0,4})$');
          v_bound := v_size[1]::numeric * v_size[2]::numeric * coalesce(ai.token_count(p_params -> 'n'), 1);
        when v_class = 'characters' then
          v_bound := p_input;
        when v_class = 'seconds' and p_kind not in ('transcription', 'speech') then
          v_bound := p_seconds;
        when v_class in ('searches', 'map_searches', 'file_searches', 'code_sessions') then
          v_bound := ai.tool_bound(p_params);
        else
          v_bound := null;
      end case;
    end if;
    v_bounds := v_bounds || jsonb_build_object(v_class, v_bound);
  end loop;
  return v_bounds;
end
$$;
comment on function ai.unit_bounds(jsonb, text, jsonb, bigint, numeric) is 'The most of each class for one that a call may use; null where nothing bounds it.';

-- How often the provider's own tools may be used in one call: the request's max_tool_calls, else the sum of its tools' max_uses; none
-- without such a tool; null: as often as the model likes.
create or replace function ai.tool_bound(p_params jsonb) returns numeric
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_free boolean := p_params ? 'web_search_options';  -- a tool whose uses nothing bounds
  v_uses bigint := 0;
  v_some boolean := v_free;
  v_tool jsonb;
begin
  if jsonb_typeof(p_params -> 'tools') = 'array' then
    for v_tool in select value from jsonb_array_elements(p_params -> 'tools') loop
      continue when v_tool ->> 'type' in ('function', 'custom') or v_tool ? 'input_schema';
      v_some := true;
      v_free := v_free or ai.token_count(v_tool -> 'max_uses') is null;
      v_uses := v_uses + coalesce(ai.token_count(v_tool -> 'max_uses'), 0);
    end loop;
  end if;
  return case when not v_some then 0 else coalesce(ai.token_count(p_params -> 'max_tool_calls'), case when not v_free then v_uses end) end;
end
$$;
comment on function ai.tool_bound(jsonb) is 'How often a request lets the provider use its own tools; null: without bound.';

-- The most that a call can cost by rates that are not plain: at the dearest rate of each side over all tiers that so many input tokens
-- may reach and all service tiers that the provider may answer with, which is a named one or the usual. Null without rates, and
-- where a class has no bound: of an answer that is no text the model's max_output_tokens, of units what ai.unit_bounds() says.
create or replace function ai.most_cost(p_rates jsonb, p_kind text, p_params jsonb, p_input bigint, p_output bigint, p_seconds numeric) returns numeric
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bounds  jsonb := ai.unit_bounds(p_rates, p_kind, p_params, p_input, p_seconds);
  v_named   text := case when p_params ->> 'service_tier' <> 'auto' and not p_params ? 'speed' then lower(p_params ->> 'service_tier' collate "C") end;
  v_service text;
  v_top     numeric;
  v_rates   jsonb;
  v_most    numeric;
begin
  if p_rates is null or exists (select from jsonb_each(v_bounds) b where jsonb_typeof(b.value) = 'null') then
    return null;
  end if;
  for v_service in
    select null union all select s from jsonb_object_keys(coalesce(p_rates -> 'service', '{}')) s where v_named is null or s = v_named
  loop
    for v_top in
      select p_input
      union
      select (t.value ->> 'above')::numeric
        from (select * from jsonb_array_elements(p_rates -> 'tiers') union all select * from jsonb_array_elements(p_rates -> 'service' -> v_service -> 'tiers')) t
       where (t.value ->> 'above')::numeric < p_input
    loop
      v_rates := ai.effective_rates(p_rates, v_top, v_service);
      v_most := greatest(v_most, (
        select 0.000001 * (v_top    * coalesce(max(r.rate) filter (where r.class not in ('reasoning', 'citations') and r.class not like '%output'), 0)
                         + p_output * coalesce(max(r.rate) filter (where r.class = 'reasoning' or r.class like '%output'), 0))
          from (select key as class, (value #>> '{}')::numeric as rate from jsonb_each(v_rates) where ai.is_token_class(key)) r)
        + coalesce((
        select sum((b.value #>> '{}')::numeric * case when b.key = 'citations' then 0.000001 else 1 end
                   * (select max((r.value #>> '{}')::numeric) from jsonb_each(v_rates) r where split_part(r.key, ':', 1) = b.key))
          from jsonb_each(v_bounds) b), 0));
      -- What is no text is not held by max_tokens; its model has to say how long an answer may be.
      if p_output = 0 and p_kind in ('image', 'transcription', 'speech')
         and exists (select from jsonb_each(v_rates) r where (r.key = 'reasoning' or r.key like '%output') and (r.value #>> '{}')::numeric > 0) then
        return null;
      end if;
    end loop;
  end loop;
  return trim_scale(v_most);
end
$$;
comment on function ai.most_cost(jsonb, text, jsonb, bigint, bigint, numeric) is
  'The most that a call can cost by rates with units, tiers or service tiers; null without rates or where nothing bounds it.';

-- The same for a generation that is about to be sent. Its time is what is left until its deadline, and some for the provider to notice.
create or replace function ai.most_call_cost(p_rates jsonb, p_tenant uuid, p_id uuid, p_input bigint, p_output bigint, p_now timestamptz) returns numeric
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
  c_grace constant numeric := 60;
begin
  return (select ai.most_cost(p_rates, g.kind, g.params, p_input, p_output,
                              greatest(coalesce(g.deadline_ms, s.deadline_ms) / 1000.0 - extract(epoch from p_now - greatest(g.created_at, g.run_after)), 1) + c_grace)
            from ai.generations g cross join ai.settings s
           where g.tenant_id = p_tenant and g.id = p_id);
end
$$;
comment on function ai.most_call_cost(jsonb, uuid, uuid, bigint, bigint, timestamptz) is 'The most that a generation''s next call can cost by these rates; null: unknown.';

-- The units of a call that ended without a report, for the estimate in the books: as bounded by the request, seconds as long as it
-- took; what nothing bounds is left out.
create or replace function ai.estimated_units(p_rates jsonb, p_tenant uuid, p_id uuid, p_input bigint, p_seconds numeric) returns jsonb
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
  return (select nullif(jsonb_strip_nulls(ai.unit_bounds(p_rates - 'most', g.kind, g.params, p_input, p_seconds))
                        - array['searches', 'map_searches', 'file_searches', 'code_sessions'], '{}')
            from ai.generations g
           where g.tenant_id = p_tenant and g.id = p_id);
end
$$;
comment on function ai.estimated_units(jsonb, uuid, uuid, bigint, numeric) is 'Units of a call that nobody reported, estimated; null: none.';

revoke execute on function ai.unit_bounds(jsonb, text, jsonb, bigint, numeric), ai.tool_bound(jsonb), ai.most_cost(jsonb, text, jsonb, bigint, bigint, numeric),
  ai.most_call_cost(jsonb, uuid, uuid, bigint, bigint, timestamptz), ai.estimated_units(jsonb, uuid, uuid, bigint, numeric) from public;
