-- The most that a call can cost, for reservations; and what it is taken to have used where nobody can say any more.

-- How much of a class for one a call may use at the most, by what the request says; of what it cannot say by the price's "most". Null:
-- nothing bounds it. p_seconds: how long the call may take.
--   queries     of a reranker: a hundred documents a query, of which long ones are cut (500 tokens are at least 500 bytes)
--   seconds     machine time ends with the call; what is heard or spoken does not
--   searches …  nobody asked for: none; else what the request's tools allow
create or replace function ai.unit_bound(p_class text, p_most jsonb, p_kind text, p_params jsonb, p_input bigint, p_seconds numeric) returns numeric
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_size text[];
begin
  if p_most ? p_class then
    return (p_most ->> p_class)::numeric;
  end if;
  case p_class
    when 'requests' then
      return 1;
    when 'queries' then
      return case when p_kind = 'rerank' and jsonb_typeof(p_params -> 'documents') = 'array'
                  then ceil((jsonb_array_length(p_params -> 'documents') + p_input / 500.0) / 100.0) else 1 end;
    when 'images' then
      return coalesce(ai.token_count(p_params -> 'n'), 1);
    when 'pixels' then
      v_size := regexp_match(p_params ->> 'size', '^([1-9][0-9]{0,4})x([1-9][0-9]{0,4})$');
      return v_size[1]::numeric * v_size[2]::numeric * coalesce(ai.token_count(p_params -> 'n'), 1);
    when 'characters' then
      return p_input;
    when 'seconds' then
      return case when p_kind not in ('transcription', 'speech') then p_seconds end;
    when 'searches', 'map_searches', 'file_searches', 'code_sessions' then
      return ai.tool_bound(p_params);
    else
      return null;
  end case;
end
$$;
comment on function ai.unit_bound(text, jsonb, text, jsonb, bigint, numeric) is 'The most of a class for one that a call may use; null where nothing bounds it.';

-- The same of every class for one, and of citations, that the rates know.
create or replace function ai.unit_bounds(p_rates jsonb, p_kind text, p_params jsonb, p_input bigint, p_seconds numeric) returns jsonb
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bounds jsonb := '{}';
  v_class  text;
begin
  foreach v_class in array ai.rate_classes(p_rates) loop
    if not ai.is_token_class(v_class) or v_class = 'citations' then
      v_bounds := v_bounds || jsonb_build_object(v_class, ai.unit_bound(v_class, p_rates -> 'most', p_kind, p_params, p_input, p_seconds));
    end if;
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

-- The most that a call can cost by rates that are not plain: at the dearest rate of each side that any block names which may apply, plain,
-- of the tiers that so many input tokens may reach, and of all service tiers that the provider may answer with, which is a named one or the usual.
-- Null without rates, and where nothing bounds what may be used: of an answer that is no text the model's max_output_tokens, of units
-- ai.unit_bound(). One pass over the rates: claims that hold counters wait for it.
create or replace function ai.most_cost(p_rates jsonb, p_kind text, p_params jsonb, p_input bigint, p_output bigint, p_seconds numeric) returns numeric
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_named text := case when p_params ->> 'service_tier' <> 'auto' and not p_params ? 'speed' then lower(p_params ->> 'service_tier' collate "C") end;
  v_class text;
  v_rate  numeric;
  v_bound numeric;
  v_in    numeric := 0;
  v_out   numeric := 0;
  v_units numeric := 0;
begin
  if p_rates is null then
    return null;
  end if;
  for v_class, v_rate in
    select split_part(r.key, ':', 1), max(r.value::numeric)
      from (select p_rates as block
            union all
            select s.value from jsonb_each(p_rates -> 'service') s where v_named is null or s.key = v_named
            union all
            select t.value from jsonb_array_elements(p_rates -> 'tiers') t where (t.value ->> 'above')::numeric < p_input
            union all
            select t.value from jsonb_each(p_rates -> 'service') s cross join lateral jsonb_array_elements(s.value -> 'tiers') t
             where (v_named is null or s.key = v_named) and (t.value ->> 'above')::numeric < p_input) b
     cross join lateral jsonb_each(b.block) r
     where r.key not in ('tiers', 'service', 'most', 'above')
     group by 1
  loop
    if v_class = 'reasoning' or right(v_class, 6) = 'output' then
      v_out := greatest(v_out, v_rate);
    elsif v_class <> 'citations' and ai.is_token_class(v_class) then
      v_in := greatest(v_in, v_rate);
    elsif v_rate > 0 then
      v_bound := ai.unit_bound(v_class, p_rates -> 'most', p_kind, p_params, p_input, p_seconds);
      if v_bound is null then
        return null;
      end if;
      v_units := v_units + v_bound * v_rate * case when v_class = 'citations' then 0.000001 else 1 end;
    end if;
  end loop;
  if v_out > 0 and p_output = 0 and p_kind in ('image', 'transcription', 'speech') then
    return null;
  end if;
  return trim_scale(0.000001 * (p_input * v_in + p_output * v_out) + v_units);
end
$$;
comment on function ai.most_cost(jsonb, text, jsonb, bigint, bigint, numeric) is
  'The most that a call can cost by rates with units, tiers or service tiers; null without rates or where nothing bounds it.';

-- The same for a generation that is about to be sent. Its time is what is left until its deadline, and some for the provider to notice.
create or replace function ai.most_call_cost(p_rates jsonb, p_tenant uuid, p_id uuid, p_input bigint, p_output bigint, p_now timestamptz) returns numeric
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set jit = off
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
-- took; what nothing bounds is left out. Sound that is heard takes longer than hearing it: as long as its size says at 64 kbit/s (p_input
-- counts a byte for 16 of it), within the price's "most".
create or replace function ai.estimated_units(p_rates jsonb, p_tenant uuid, p_id uuid, p_input bigint, p_seconds numeric) returns jsonb
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  return (select nullif(jsonb_strip_nulls(ai.unit_bounds(p_rates - 'most', g.kind, g.params, p_input, p_seconds)
                                          || case when g.kind in ('transcription', 'speech') and 'seconds' = any (ai.rate_classes(p_rates))
                                                  then jsonb_build_object('seconds', least(greatest(p_seconds, case when g.kind = 'transcription' then round(p_input * 16 / 8000.0, 3) end),
                                                                                           (p_rates #>> '{most,seconds}')::numeric)) else '{}' end)
                        - array['searches', 'map_searches', 'file_searches', 'code_sessions'], '{}')
            from ai.generations g
           where g.tenant_id = p_tenant and g.id = p_id);
end
$$;
comment on function ai.estimated_units(jsonb, uuid, uuid, bigint, numeric) is 'Units of a call that nobody reported, estimated; null: none.';

revoke execute on function ai.unit_bound(text, jsonb, text, jsonb, bigint, numeric), ai.unit_bounds(jsonb, text, jsonb, bigint, numeric), ai.tool_bound(jsonb), ai.most_cost(jsonb, text, jsonb, bigint, bigint, numeric),
  ai.most_call_cost(jsonb, uuid, uuid, bigint, bigint, timestamptz), ai.estimated_units(jsonb, uuid, uuid, bigint, numeric) from public;
