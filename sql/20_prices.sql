-- What rates may say, and what a call costs by them. docs/prices.md has the classes.
--
-- Most prices are plain (ai.prices.plain): six classes of tokens of text, which ai.token_cost() with seven arguments works out where it
-- is called. Everything else goes through the one with nine, which gives the same for plain rates and no units.

-- Classes that are counted in tokens, and are rated per million of them. Those with a medium are parts of those without.
create or replace function ai.is_token_class(p_class text) returns boolean
language sql immutable parallel safe security invoker
as $$
  select p_class = any (array['input', 'cache_read', 'cache_write', 'cache_write_1h', 'cache_write_12h', 'output', 'reasoning', 'citations',
    'audio_input', 'audio_cache_read', 'audio_cache_write', 'audio_output', 'image_input', 'image_cache_read', 'image_cache_write', 'image_output',
    'video_input', 'video_cache_read', 'video_cache_write', 'video_output'])
$$;
comment on function ai.is_token_class(text) is 'Whether a class of rates is per million tokens.';

-- Classes that are rated for one. A variant stands behind a colon.
create or replace function ai.is_unit_class(p_class text) returns boolean
language sql immutable parallel safe security invoker
as $$
  select split_part(p_class, ':', 1) = any (array['requests', 'queries', 'images', 'input_images', 'pixels', 'input_pixels', 'seconds', 'input_seconds',
           'characters', 'output_characters', 'pages', 'annotated_pages', 'searches', 'map_searches', 'file_searches', 'code_sessions', 'messages', 'credits'])
     and p_class collate "C" ~ '^[a-z_]+(:[a-z0-9][a-z0-9_.-]{0,39})?$'
$$;
comment on function ai.is_unit_class(text) is 'Whether a class of rates is for one of something: images, seconds:720p.';

-- Raises PT400 unless every member is a class with a number from 0 to p_highest with at most p_scale digits after the point.
create or replace function ai.check_rate_block(p_block jsonb, p_where text, p_highest numeric, p_scale integer) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_class text;
  v_rate  jsonb;
begin
  if jsonb_typeof(p_block) is distinct from 'object' then
    raise exception '% must be a JSON object', p_where using errcode = 'PT400';
  end if;
  for v_class, v_rate in select key, value from jsonb_each(p_block) loop
    if not (ai.is_token_class(v_class) or ai.is_unit_class(v_class)) or jsonb_typeof(v_rate) <> 'number' or (v_rate #>> '{}')::numeric < 0 then
      raise exception 'the rate "%" in % is not one of a class, or not a number from 0', left(v_class, 60), p_where
        using errcode = 'PT400', hint = 'Classes: input, cache_read, cache_write, output, …, per million tokens; images, seconds, requests, … for one. docs/prices.md';
    elsif (v_rate #>> '{}')::numeric > p_highest or scale(trim_scale((v_rate #>> '{}')::numeric)) > p_scale then
      raise exception 'a rate is at most %, with % digits after the point', p_highest, p_scale using errcode = 'PT400';
    end if;
  end loop;
end
$$;
comment on function ai.check_rate_block(jsonb, text, numeric, integer) is 'Raises PT400 unless these are rates by class.';

-- Raises PT400 unless these are tiers: rates with ascending "above", which is in tokens of input.
create or replace function ai.check_tiers(p_tiers jsonb, p_where text, p_highest numeric, p_scale integer) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tier  jsonb;
  v_above numeric;
  v_last  numeric := 0;
begin
  if jsonb_typeof(p_tiers) <> 'array' or jsonb_array_length(p_tiers) > 16 then
    raise exception '% are an array of at most 16 objects', p_where using errcode = 'PT400';
  end if;
  for v_tier in select value from jsonb_array_elements(p_tiers) loop
    v_above := case when jsonb_typeof(v_tier) = 'object' and jsonb_typeof(v_tier -> 'above') = 'number' then (v_tier ->> 'above')::numeric end;
    if v_above is null or v_above <> trunc(v_above) or v_above <= v_last or v_above > 1000000000 then
      raise exception 'a tier in % needs "above", a number of tokens that is more than the tier before has', p_where using errcode = 'PT400';
    end if;
    perform ai.check_rate_block(v_tier - 'above', p_where, p_highest, p_scale);
    v_last := v_above;
  end loop;
end
$$;
comment on function ai.check_tiers(jsonb, text, numeric, integer) is 'Raises PT400 unless these are tiers of rates.';

-- Raises PT400 unless these are the rates of a price of a model of this kind; kind null: whatever the kind.
create or replace function ai.check_rates(p_rates jsonb, p_kind text, p_highest numeric default 1000000000, p_scale integer default 30) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_plain jsonb;
  v_name  text;
  v_value jsonb;
begin
  if p_rates is null or jsonb_typeof(p_rates) <> 'object' or octet_length(p_rates::text) > 32768 then
    raise exception 'rates must be a JSON object of at most 32768 bytes' using errcode = 'PT400';
  end if;
  v_plain := p_rates - array['tiers', 'service', 'most'];
  perform ai.check_rate_block(v_plain, 'rates', p_highest, p_scale);
  if p_rates ? 'tiers' then
    perform ai.check_tiers(p_rates -> 'tiers', 'tiers', p_highest, p_scale);
  end if;
  if p_rates ? 'service' then
    if jsonb_typeof(p_rates -> 'service') <> 'object' or (select count(*) from jsonb_object_keys(p_rates -> 'service')) > 16 then
      raise exception 'service is an object of at most 16 service tiers' using errcode = 'PT400';
    end if;
    for v_name, v_value in select key, value from jsonb_each(p_rates -> 'service') loop
      if v_name collate "C" !~ '^[a-z][a-z0-9_-]{0,39}$' then
        raise exception 'a service tier has a name in small letters' using errcode = 'PT400';
      end if;
      perform ai.check_rate_block(case when jsonb_typeof(v_value) = 'object' then v_value - 'tiers' end, 'service', p_highest, p_scale);
      if v_value ? 'tiers' then
        perform ai.check_tiers(v_value -> 'tiers', 'tiers of a service', p_highest, p_scale);
      end if;
    end loop;
  end if;
  if p_rates ? 'most' then
    if jsonb_typeof(p_rates -> 'most') <> 'object' then
      raise exception 'most is an object of the most of a class that one call may use' using errcode = 'PT400';
    end if;
    for v_name, v_value in select key, value from jsonb_each(p_rates -> 'most') loop
      if not (v_name = 'citations' or ai.is_unit_class(v_name)) or strpos(v_name, ':') > 0 or jsonb_typeof(v_value) <> 'number'
         or (v_value #>> '{}')::numeric not between 0 and 1000000000000 or scale((v_value #>> '{}')::numeric) > 9 then
        raise exception 'most."%" is not a class for one, or no number from 0', left(v_name, 60) using errcode = 'PT400';
      end if;
    end loop;
  end if;
  if p_kind is not null and not exists (select from jsonb_object_keys(v_plain) k where ai.is_unit_class(k) or p_kind in ('image', 'transcription', 'speech'))
     and not (v_plain ? 'input' and (v_plain ? 'output' or p_kind not in ('chat', 'completion'))) then
    raise exception 'a price needs rates for input and, unless the model only reads, output; or of a class for one' using errcode = 'PT400';
  end if;
end
$$;
comment on function ai.check_rates(jsonb, text, numeric, integer) is 'Raises PT400 unless these are the rates of a price.';

-- The rates by which a call with so many input tokens and this service tier is billed, each class at most once: plain, then of the
-- service tier, then of the tiers that the input is above, then of the service tier's tiers; a later one goes over an earlier one.
create or replace function ai.effective_rates(p_rates jsonb, p_input numeric, p_service text) returns jsonb
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_service jsonb := p_rates -> 'service' -> lower(p_service collate "C");
  v_rates   jsonb := p_rates;
  v_tier    jsonb;
begin
  if v_service is not null then
    v_rates := v_rates || v_service;
  end if;
  if p_rates ? 'tiers' or v_service ? 'tiers' then
    for v_tier in
      select t.value
        from (select 1 as part, e.* from jsonb_array_elements(p_rates -> 'tiers') with ordinality e
              union all
              select 2, e.* from jsonb_array_elements(v_service -> 'tiers') with ordinality e) t
       where (t.value ->> 'above')::numeric < p_input
       order by t.part, t.ordinality
    loop
      v_rates := v_rates || v_tier;
    end loop;
  end if;
  return v_rates - array['tiers', 'service', 'most', 'above'];
end
$$;
comment on function ai.effective_rates(jsonb, numeric, text) is 'The rates that apply to a call with so many input tokens and such a service tier.';

-- All classes that rates know anywhere, variants under the name of their class.
create or replace function ai.rate_classes(p_rates jsonb) returns text[]
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  with blocks as (
    select p_rates as block
    union all select s.value from jsonb_each(p_rates -> 'service') s
  )
  select array(
    select distinct split_part(k, ':', 1)
      from (select b.block from blocks b
            union all select t.value from blocks b cross join lateral jsonb_array_elements(b.block -> 'tiers') t) o
     cross join lateral jsonb_object_keys(o.block) k
     where k not in ('tiers', 'service', 'most', 'above')
     order by 1)
$$;
comment on function ai.rate_classes(jsonb) is 'The classes that these rates know, in whatever tier; variants count as their class.';

-- What a provider reported beside the totals, as the books keep it: amounts of known classes, above 0 and to 10^15, to nine digits after
-- the point; and what SQL counts itself where a rate asks for it. Whatever else was sent is left out. Null: nothing.
create or replace function ai.billed_units(p_reported jsonb, p_rates jsonb, p_billed boolean) returns jsonb
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_units jsonb;
begin
  if jsonb_typeof(p_reported) = 'object' then
    select jsonb_object_agg(u.key, u.amount) into v_units
      from (select r.key, trim_scale(round(a.amount, 9)) as amount
              from jsonb_each(p_reported) r
             cross join lateral (select case when jsonb_typeof(r.value) = 'number'
                                               or r.value #>> '{}' collate "C" ~ '^[0-9]{1,15}([.][0-9]{1,40})?([eE][-+]?[0-9]{1,2})?$'
                                             then (r.value #>> '{}')::numeric end as amount) a
             where a.amount > 0 and a.amount <= 1000000000000000
               and (ai.is_unit_class(r.key) or ai.is_token_class(r.key) and r.key not in ('input', 'cache_read', 'cache_write', 'cache_write_1h', 'output', 'reasoning'))
             order by r.key limit 40) u
     where u.amount > 0;
  end if;
  if p_billed and p_rates is not null then
    v_units := coalesce((select jsonb_object_agg(c, 1) from unnest(ai.rate_classes(p_rates)) c where c in ('requests', 'queries')), '{}') || coalesce(v_units, '{}');
  end if;
  return nullif(v_units, '{}');
end
$$;
comment on function ai.billed_units(jsonb, jsonb, boolean) is 'Units of a call as the books keep them, from what was reported and what SQL counts; null: none.';

-- What a call costs by one price version, exact; null without rates. Totals include their parts; parts that are more than what is left
-- of their total are cut down to it, so that no provider's figures make anything worth less than nothing. Money is never rounded.
--   uncached text = input - caches - media; what a class without a rate costs: docs/prices.md
create or replace function ai.token_cost(
  p_rates jsonb, p_input bigint, p_cached bigint, p_cache_write bigint, p_cache_write_1h bigint, p_output bigint, p_reasoning bigint, p_units jsonb, p_service_tier text)
returns numeric
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_rates   jsonb;
  v_medium  text;
  v_class   text;
  v_in      numeric;
  v_out     numeric;
  v_cached  numeric := p_cached;         -- what is left of each total for text
  v_written numeric := p_cache_write;
  v_fresh   numeric := p_input - p_cached - p_cache_write - p_cache_write_1h;
  v_said    numeric := p_output - p_reasoning;
  v_whole   numeric;
  v_part    numeric;
  v_rest    numeric;
  v_amount  numeric;
  v_cost    numeric := 0;
begin
  if p_rates is null then
    return null;
  end if;
  v_rates := ai.effective_rates(p_rates, p_input, p_service_tier);
  v_in := coalesce((v_rates ->> 'input')::numeric, 0);
  v_out := coalesce((v_rates ->> 'output')::numeric, 0);

  if p_units is not null then
    v_part := least(coalesce((p_units ->> 'cache_write_12h')::numeric, 0), v_fresh);
    if v_part > 0 then
      v_cost := v_part * coalesce((v_rates ->> 'cache_write_12h')::numeric, (v_rates ->> 'cache_write_1h')::numeric, (v_rates ->> 'cache_write')::numeric, v_in);
      v_fresh := v_fresh - v_part;
    end if;
    foreach v_medium in array array['audio', 'image', 'video'] loop
      v_whole := (p_units ->> (v_medium || '_input'))::numeric;
      if v_whole > 0 then
        v_rest := coalesce((v_rates ->> (v_medium || '_input'))::numeric, v_in);
        v_part := least(coalesce((p_units ->> (v_medium || '_cache_read'))::numeric, 0), v_whole, v_cached);
        if v_part > 0 then
          v_cost := v_cost + v_part * coalesce((v_rates ->> (v_medium || '_cache_read'))::numeric, (v_rates ->> 'cache_read')::numeric, v_rest);
          v_cached := v_cached - v_part;
          v_whole := v_whole - v_part;
        end if;
        v_part := least(coalesce((p_units ->> (v_medium || '_cache_write'))::numeric, 0), v_whole, v_written);
        if v_part > 0 then
          v_cost := v_cost + v_part * coalesce((v_rates ->> (v_medium || '_cache_write'))::numeric, (v_rates ->> 'cache_write')::numeric, v_rest);
          v_written := v_written - v_part;
          v_whole := v_whole - v_part;
        end if;
        v_part := least(v_whole, v_fresh);
        v_cost := v_cost + v_part * v_rest;
        v_fresh := v_fresh - v_part;
      end if;
      v_part := least(coalesce((p_units ->> (v_medium || '_output'))::numeric, 0), v_said);
      if v_part > 0 then
        v_cost := v_cost + v_part * coalesce((v_rates ->> (v_medium || '_output'))::numeric, v_out);
        v_said := v_said - v_part;
      end if;
    end loop;
    v_cost := v_cost + coalesce((p_units ->> 'citations')::numeric * (v_rates ->> 'citations')::numeric, 0);
  end if;

  v_cost := 0.000001 * (v_cost
    + v_fresh   * v_in
    + v_cached  * coalesce((v_rates ->> 'cache_read')::numeric, v_in)
    + v_written * coalesce((v_rates ->> 'cache_write')::numeric, v_in)
    + p_cache_write_1h * coalesce((v_rates ->> 'cache_write_1h')::numeric, (v_rates ->> 'cache_write')::numeric, v_in)
    + v_said    * v_out
    + p_reasoning * coalesce((v_rates ->> 'reasoning')::numeric, v_out));

  if p_units is not null then
    for v_class, v_amount in select u.key, (u.value #>> '{}')::numeric from jsonb_each(p_units) u where not ai.is_token_class(u.key) loop
      v_cost := v_cost + coalesce(v_amount * coalesce((v_rates ->> v_class)::numeric, (v_rates ->> split_part(v_class, ':', 1))::numeric), 0);
    end loop;
  end if;
  return trim_scale(v_cost);
end
$$;
comment on function ai.token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint, jsonb, text) is
  'What a call costs by one price version, exact: tokens, units and service tier as the books keep them; null without rates.';

-- What a usual call costs, to compare models by: so many tokens, and of whatever is rated for one, one; of what is counted finely a thousand.
create or replace function ai.usual_cost(p_rates jsonb, p_input bigint, p_output bigint) returns numeric
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  return ai.token_cost(p_rates, p_input, 0, 0, 0, p_output, 0,
                       '{"requests": 1, "queries": 1, "images": 1, "pixels": 1048576, "seconds": 10, "characters": 1000, "output_characters": 1000, "pages": 1, "messages": 1}', null);
end
$$;
comment on function ai.usual_cost(jsonb, bigint, bigint) is 'What a usual call with so many tokens costs, to compare models by; null without rates.';

-- Calls whose cost in the books is not what their price version, tokens, units and service tier give: none, whatever happened since.
-- Runs with the caller's rights: calls and prices that are not visible are not looked at.
create or replace function ai.check_costs(p_from timestamptz default '-infinity', p_to timestamptz default 'infinity')
returns table (tenant_id uuid, generation_id uuid, attempt smallint, created_at timestamptz, cost numeric, derived numeric)
language sql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
  select c.tenant_id, c.generation_id, c.attempt, c.created_at, c.cost, d.cost
    from ai.llm_calls c
    left join ai.prices p on p.id = c.price_id
   cross join lateral (select ai.token_cost(p.rates, c.input_tokens, c.cached_tokens, c.cache_write_tokens, c.cache_write_1h_tokens, c.output_tokens,
                                            c.reasoning_tokens, c.units, c.service_tier) as cost) d
   where c.created_at >= p_from and c.created_at < p_to and c.cache is null
     and (c.price_id is null or p.id is not null) and c.cost is distinct from d.cost
$$;
comment on function ai.check_costs(timestamptz, timestamptz) is 'Calls whose cost is not what their price gives: none.';

revoke execute on function ai.is_token_class(text), ai.is_unit_class(text), ai.check_rate_block(jsonb, text, numeric, integer),
  ai.check_tiers(jsonb, text, numeric, integer), ai.check_rates(jsonb, text, numeric, integer), ai.effective_rates(jsonb, numeric, text), ai.rate_classes(jsonb),
  ai.billed_units(jsonb, jsonb, boolean), ai.token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint, jsonb, text),
  ai.usual_cost(jsonb, bigint, bigint), ai.check_costs(timestamptz, timestamptz) from public;
grant execute on function ai.token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint, jsonb, text), ai.check_costs(timestamptz, timestamptz),
  ai.is_token_class(text), ai.effective_rates(jsonb, numeric, text) to ai_user;
grant execute on function ai.token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint, jsonb, text), ai.is_token_class(text), ai.effective_rates(jsonb, numeric, text) to ai_monitor;
-- For the trigger ai.own_price(), which runs as who writes.
grant execute on function ai.check_rates(jsonb, text, numeric, integer), ai.check_rate_block(jsonb, text, numeric, integer), ai.check_tiers(jsonb, text, numeric, integer),
  ai.is_unit_class(text) to ai_admin;
