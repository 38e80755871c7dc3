-- LiteLLM's public price map (model_prices_and_context_window.json) in the words of ai.prices and ai.models. What it means is in
-- docs/prices.md; an entry's members are named by LiteLLM.

-- The rates of an entry, and the names of what it says about money that these rates cannot say. A map has several measures of the same
-- thing side by side; where tokens have a price, seconds, characters and images of the same are left out, or they would be paid twice.
create or replace function ai.map_rates(p_entry jsonb, out rates jsonb, out not_understood text[])
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_classes constant jsonb := '{
    "input_cost_per_token": "input", "output_cost_per_token": "output", "output_cost_per_reasoning_token": "reasoning", "citation_cost_per_token": "citations",
    "cache_read_input_token_cost": "cache_read", "input_cost_per_token_cache_hit": "cache_read", "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h", "cache_creation_input_token_cost_above_12hr": "cache_write_12h",
    "input_cost_per_audio_token": "audio_input", "cache_read_input_audio_token_cost": "audio_cache_read", "cache_creation_input_audio_token_cost": "audio_cache_write",
    "output_cost_per_audio_token": "audio_output", "input_cost_per_image_token": "image_input", "cache_read_input_image_token_cost": "image_cache_read",
    "output_cost_per_image_token": "image_output", "input_cost_per_video_token": "video_input", "output_cost_per_video_token": "video_output",
    "input_cost_per_request": "requests", "input_cost_per_query": "queries", "input_cost_per_image": "input_images", "output_cost_per_image": "images",
    "input_cost_per_pixel": "input_pixels", "output_cost_per_pixel": "pixels", "input_cost_per_second": "seconds", "output_cost_per_second": "seconds",
    "input_cost_per_audio_per_second": "input_seconds:audio", "input_cost_per_video_per_second": "input_seconds:video", "output_cost_per_video_per_second": "seconds",
    "input_cost_per_character": "characters", "output_cost_per_character": "output_characters", "ocr_cost_per_page": "pages", "annotation_cost_per_page": "annotated_pages",
    "ocr_cost_per_credit": "credits", "google_maps_grounding_cost_per_query": "map_searches", "file_search_cost_per_1k_calls": "file_searches",
    "code_interpreter_cost_per_session": "code_sessions", "input_cost_per_text_message": "messages"}';
  -- The same in another currency, and what is not about a call.
  c_ignored constant text[] := array['input_dbu_cost_per_token', 'output_dbu_cost_per_token', 'explicit_cache_read_input_token_cost'];
  v_image    constant boolean := coalesce(p_entry ->> 'mode', '') in ('image_generation', 'image_edit');
  v_numbers  constant jsonb := coalesce((select jsonb_object_agg(e.key, e.value) from jsonb_each(p_entry) e where jsonb_typeof(e.value) = 'number'), '{}');
  v_in       constant boolean := coalesce((v_numbers ->> 'input_cost_per_token')::numeric, 0) > 0;
  v_out      constant boolean := coalesce((v_numbers ->> 'output_cost_per_token')::numeric, 0) > 0;
  v_services text[] := '{}';
  v_aboves   bigint[] := '{}';
  v_names    text[] := '{}';
  v_amounts  numeric[] := '{}';
  v_strange  text[] := '{}';
  v_key      text;
  v_value    jsonb;
  v_base     text;
  v_service  text;
  v_above    bigint;
  v_class    text;
  v_match    text[];
  v_factor   numeric;
begin
  for v_key, v_value in
    select e.key, e.value from jsonb_each(p_entry) e
    union all  -- tiers given as a list; the lowest is the plain price
    select t.key || case when (p.value -> 'range' ->> 0)::numeric > 0 then format('_above_%s_tokens', (p.value -> 'range' ->> 0)::numeric::bigint) else '' end, t.value
      from jsonb_array_elements(case when jsonb_typeof(p_entry -> 'tiered_pricing') = 'array' then p_entry -> 'tiered_pricing' else '[]' end) p
     cross join lateral jsonb_each(case when jsonb_typeof(p.value -> 'range' -> 0) = 'number' then p.value - 'range' else '{}' end) t
  loop
    continue when v_key !~ '(cost|pricing|multiplier|dbu|provider_specific_entry)' or v_key = any (c_ignored) or jsonb_typeof(v_value) = 'null';
    v_base := v_key;
    v_service := '';
    v_above := 0;
    v_match := regexp_match(v_base, '^(.*)_(batches|flex|priority|ultrafast|balanced)$');
    if v_match is not null then
      v_base := v_match[1];
      v_service := case v_match[2] when 'batches' then 'batch' else v_match[2] end;
    end if;
    v_match := regexp_match(v_base, '^(.*)_above_([0-9]{1,9})(k?)_tokens$');
    if v_match is not null then
      v_base := v_match[1];
      v_above := v_match[2]::bigint * case v_match[3] when 'k' then 1000 else 1 end;
    end if;
    v_class := c_classes ->> v_base;
    v_match := regexp_match(v_base, '^output_cost_per_(second|image)_([0-9][0-9A-Za-z.]{0,9})$');
    if v_match is not null then
      v_class := case v_match[1] when 'second' then 'seconds:' else 'images:' end || lower(v_match[2] collate "C");
    end if;

    if v_key = 'search_context_cost_per_query' and jsonb_typeof(v_value) = 'object' then
      select v_services || array_agg(''::text), v_aboves || array_agg(0::bigint), v_names || array_agg(s.class), v_amounts || array_agg(s.rate)
        into v_services, v_aboves, v_names, v_amounts
        from (select case when c.name = 'medium' then 'searches' else 'searches:' || c.name end as class,
                     case when jsonb_typeof(v_value -> ('search_context_size_' || c.name)) = 'number' then (v_value ->> ('search_context_size_' || c.name))::numeric end as rate
                from unnest(array['low', 'medium', 'high']) c (name)) s
       where s.rate is not null and (s.class = 'searches' or v_value -> ('search_context_size_' || split_part(s.class, ':', 2)) is distinct from v_value -> 'search_context_size_medium');
      continue;
    elsif v_key = 'provider_specific_entry' and jsonb_typeof(v_value) = 'object' then
      v_factor := case when jsonb_typeof(v_value -> 'fast') = 'number' then (v_value ->> 'fast')::numeric end;
      v_strange := v_strange || array(select v_key || '.' || k from jsonb_object_keys(v_value) k where k <> 'bedrock_invocation_schema' and (k <> 'fast' or v_factor is null));
      continue;
    elsif v_key = 'tiered_pricing' then
      if exists (select from jsonb_array_elements(case when jsonb_typeof(v_value) = 'array' then v_value else '[0]' end) t
                  where jsonb_typeof(t.value -> 'range' -> 0) is distinct from 'number') then
        v_strange := v_strange || v_key;
      end if;
      continue;
    end if;

    case v_class
      when 'input_images' then
        if v_image and not p_entry ? 'output_cost_per_image' and not v_in then
          v_class := 'images';
        end if;
      when 'input_pixels' then
        if v_image and coalesce((v_numbers ->> 'output_cost_per_pixel')::numeric, 0) = 0 then
          v_class := 'pixels';
        end if;
      else
    end case;
    continue when v_base = 'input_cost_per_token_cache_hit' and p_entry ? 'cache_read_input_token_cost'
      or v_base = 'output_cost_per_pixel' and v_value = '0'
      or v_class like 'seconds%' and (v_in or v_out)
      or v_base = 'input_cost_per_second' and (p_entry ? 'cost_per_second' or coalesce((v_numbers ->> 'output_cost_per_second')::numeric, 0) > 0)
      or v_base = 'output_cost_per_second' and v_value = '0' and p_entry ? 'input_cost_per_second'
      or v_class = 'characters' and v_in or v_class = 'output_characters' and v_out
      or v_class like 'images%' and (v_out or coalesce((v_numbers ->> 'output_cost_per_image_token')::numeric, 0) > 0)
      or v_class in ('input_images', 'input_pixels') and (v_in and p_entry ->> 'mode' is distinct from 'embedding' or coalesce((v_numbers ->> 'input_cost_per_image_token')::numeric, 0) > 0)
      or v_class = 'input_seconds:audio' and coalesce((v_numbers ->> 'input_cost_per_audio_token')::numeric, 0) > 0
      or v_class = 'input_seconds:video' and coalesce((v_numbers ->> 'input_cost_per_video_token')::numeric, 0) > 0;

    if v_class is null or jsonb_typeof(v_value) <> 'number' or left(v_value #>> '{}', 1) = '-' then
      if v_value <> '0' then
        v_strange := v_strange || v_key;
      end if;
      continue;
    end if;
    v_services := v_services || v_service;
    v_aboves := v_aboves || v_above;
    v_names := v_names || v_class;
    v_amounts := v_amounts || trim_scale(v_value::numeric * case when ai.is_token_class(v_class) then 1000000 when v_class = 'file_searches' then 0.001 else 1 end);
  end loop;

  -- One rate a class and block; a class for one that costs nothing anywhere needs no rate, and no bound. What comes from
  -- tiered_pricing gives way to what the entry says outright.
  with said as materialized (
    select distinct on (s.service, s.above, s.class) s.*
      from (select u.*, max(u.rate) over (partition by split_part(u.class, ':', 1)) as highest
              from unnest(v_services, v_aboves, v_names, v_amounts) with ordinality u (service, above, class, rate, at)) s
     where s.highest > 0 or ai.is_token_class(s.class)
     order by s.service, s.above, s.class, s.at
  ), every as materialized (
    select service, above, class, rate from said
    union all  -- Anthropic's fast mode is a multiple of everything
    select 'fast', above, class, trim_scale(rate * v_factor) from said where v_factor is not null and service = '' and ai.is_token_class(class)
    union all  -- and its batches cost half of everything, also of what the map does not name
    select 'batch', s.above, s.class, trim_scale(s.rate * 0.5)
      from said s
     where p_entry ->> 'litellm_provider' = 'anthropic' and s.service = '' and s.class = 'cache_write_1h'
       and exists (select from said b where b.service = 'batch')
       and not exists (select from said b where b.service = 'batch' and b.above = s.above and b.class = s.class)
  ), blocks as (
    select e.service, e.above, jsonb_object_agg(e.class, e.rate) as block from every e group by 1, 2
  ), tiered as (
    select b.service, coalesce((select p.block from blocks p where p.service = b.service and p.above = 0), '{}')
           || case when count(*) filter (where b.above > 0) > 0
                   then jsonb_build_object('tiers', jsonb_agg(b.block || jsonb_build_object('above', b.above) order by b.above) filter (where b.above > 0)) else '{}' end as block
      from blocks b group by b.service
  )
  select coalesce((select t.block from tiered t where t.service = ''), '{}')
         || coalesce((select jsonb_build_object('service', jsonb_object_agg(t.service, t.block)) from tiered t where t.service <> '' having count(*) > 0), '{}'),
         (select array_agg(distinct s order by s) from unnest(v_strange) s)
    into rates, not_understood;
end
$$;
comment on function ai.map_rates(jsonb) is 'The rates of an entry of LiteLLM''s price map, and what it says about money that they cannot say.';

-- What an entry says of its model: kind (null: none that is known here), sizes, capabilities.
create or replace function ai.map_model(p_entry jsonb, out kind text, out context_tokens integer, out max_output_tokens integer, out dimensions integer, out capabilities jsonb)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key   text;
  v_name  text;
begin
  kind := case p_entry ->> 'mode' when 'chat' then 'chat' when 'responses' then 'chat' when 'completion' then 'completion' when 'embedding' then 'embedding'
                                  when 'rerank' then 'rerank' when 'moderation' then 'moderation' when 'image_generation' then 'image' when 'image_edit' then 'image'
                                  when 'audio_transcription' then 'transcription' when 'audio_speech' then 'speech' end;
  context_tokens := nullif(ai.token_count(coalesce(p_entry -> 'max_input_tokens', p_entry -> 'max_tokens')), 0);
  max_output_tokens := case when kind not in ('embedding', 'rerank', 'moderation') then nullif(ai.token_count(p_entry -> 'max_output_tokens'), 0) end;
  dimensions := case when kind = 'embedding' and ai.token_count(p_entry -> 'output_vector_size') between 1 and 16000 then ai.token_count(p_entry -> 'output_vector_size') end;
  capabilities := '{}';
  for v_key, v_name in
    values ('supports_function_calling', 'tools'), ('supports_parallel_function_calling', 'parallel_tools'), ('supports_response_schema', 'json_mode'),
           ('supports_vision', 'vision'), ('supports_audio_input', 'audio_input'), ('supports_pdf_input', 'file_input'), ('supports_reasoning', 'reasoning'),
           ('supports_prompt_caching', 'prompt_cache'), ('supports_native_structured_output', 'structured_output')
  loop
    if p_entry -> v_key = 'true' then
      capabilities := capabilities || jsonb_build_object(v_name, true);
    end if;
  end loop;
  -- Where the map has no word of its own for what is native, a schema is; Anthropic's older models take one as a tool only.
  if p_entry -> 'supports_response_schema' = 'true' and p_entry ->> 'litellm_provider' !~ '(anthropic|bedrock)' then
    capabilities := capabilities || '{"structured_output": true}';
  end if;
  if p_entry -> 'supports_system_messages' = 'false' then
    capabilities := capabilities || '{"system_role": false}';
  end if;
  if p_entry -> 'supports_sampling_params' = 'false' then
    capabilities := capabilities || '{"unsupported_params": ["temperature", "top_p", "top_k"]}';
  end if;
  if exists (select from jsonb_object_keys(p_entry) k where right(k, 8) = '_batches') then
    capabilities := capabilities || '{"batch": true}';
  end if;
end
$$;
comment on function ai.map_model(jsonb) is 'What an entry of LiteLLM''s price map says of its model.';

-- Puts a price in force, if it is another than the one that is. A bound that the operator set (most) is kept where the new one has
-- none. Gives what became of it: priced, repriced, same, no price (these are no rates of such a model), later version (one begins after p_from).
create or replace function ai.put_price(p_model bigint, p_rates jsonb, p_from timestamptz, p_dry boolean default false) returns text
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old   jsonb;
  v_some  boolean;
  v_rates jsonb := p_rates;
begin
  select p.rates into v_old from ai.prices p where p.model_id = p_model and p.valid_from <= p_from and p_from < p.valid_to;
  v_some := exists (select from ai.prices p where p.model_id = p_model);
  if v_old ? 'most' and not v_rates ? 'most' then
    v_rates := v_rates || jsonb_build_object('most', v_old -> 'most');
  end if;
  if v_old = v_rates then
    return 'same';
  elsif exists (select from ai.prices p where p.model_id = p_model and p.valid_from >= p_from) then
    return 'later version';
  end if;
  begin
    perform ai.check_rates(v_rates, (select m.kind from ai.models m where m.id = p_model));
  exception when sqlstate 'PT400' then
    return 'no price';
  end;
  if not p_dry then
    insert into ai.prices (model_id, rates, valid_from) values (p_model, v_rates, case when v_some then p_from else '-infinity' end);
  end if;
  return case when v_old is null then 'priced' else 'repriced' end;
end
$$;
comment on function ai.put_price(bigint, jsonb, timestamptz, boolean) is 'Puts a price in force where it is another; gives priced, repriced, same, no price or later version.';

revoke execute on function ai.map_rates(jsonb), ai.map_model(jsonb), ai.put_price(bigint, jsonb, timestamptz, boolean) from public;
