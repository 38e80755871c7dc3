-- Providers whose protocol nothing but data describes: dialect custom, option custom (docs/custom-providers.md). What the
-- worker could not understand is refused here, where somebody reads the error.

-- Whether a text is a path into a JSON text: names behind dots, positions in brackets, [*] for every element.
create or replace function ai.is_json_path(p_path jsonb) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select jsonb_typeof(p_path) = 'string' and length(p_path #>> '{}') <= 200
     and p_path #>> '{}' ~ '^(\$|[A-Za-z_][A-Za-z0-9_-]*|\[(\*|-?[0-9]{1,4})\])(\.[A-Za-z_][A-Za-z0-9_-]*|\[(\*|-?[0-9]{1,4})\])*$'
$$;
comment on function ai.is_json_path(jsonb) is 'Whether a value is a path such as choices[0].text or data[*].values.';

-- What is wrong with a template: the first name of a placeholder (a dollar sign, then the name in braces) that no request has. Null: nothing.
create or replace function ai.template_error(p_template jsonb) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select m.found[1] from regexp_matches(p_template::text, '\$\{([^}]*)\}', 'g') m (found)
   where m.found[1] !~ '^(model|input|inputs|system|messages|conversation|prompt|params|max_tokens|stream|params\.[A-Za-z_][A-Za-z0-9_-]{0,62})$'
   limit 1
$$;
comment on function ai.template_error(jsonb) is 'The first name of a template that no request has; null: none.';

-- Raises PT400 for an object with a member that it has no use for.
create or replace function ai.check_members(p_object jsonb, p_known text[], p_where text) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  if p_object is null or jsonb_typeof(p_object) <> 'object' then
    raise exception '% is not a JSON object', p_where using errcode = 'PT400';
  end if;
  select key into v_name from jsonb_each(p_object) where key <> all (p_known) order by key limit 1;
  if found then
    raise exception '% has no use for "%"', p_where, left(v_name, 100) using errcode = 'PT400', hint = concat('It knows: ', array_to_string(p_known, ', '), '.');
  end if;
end
$$;
comment on function ai.check_members(jsonb, text[], text) is 'Raises PT400 for an object with a member that it has no use for.';

-- Raises PT400 for members that are no paths.
create or replace function ai.check_paths(p_object jsonb, p_names text[], p_where text) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  select key into v_name from jsonb_each(p_object) where (p_names is null or key = any (p_names)) and not ai.is_json_path(value) order by key limit 1;
  if found then
    raise exception '%.% is not a path', p_where, left(v_name, 100)
      using errcode = 'PT400', hint = 'A path is names behind dots and positions in brackets, such as choices[0].text or data[*].values; $ is the whole.';
  end if;
end
$$;
comment on function ai.check_paths(jsonb, text[], text) is 'Raises PT400 for members that are no paths.';

-- Raises PT400 for a template or a path of a request that cannot be filled.
create or replace function ai.check_request_template(p_part jsonb, p_where text) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_name text := coalesce(ai.template_error(p_part -> 'body'), ai.template_error(p_part -> 'path'));
begin
  if v_name is not null then
    raise exception '% names "%", which no request has', p_where, left(v_name, 100)
      using errcode = 'PT400', hint = 'Names are model, input, inputs, system, messages, conversation, prompt, params, params.NAME, max_tokens and stream.';
  elsif p_part ? 'path' and (jsonb_typeof(p_part -> 'path') <> 'string' or p_part ->> 'path' !~ '^(/[A-Za-z0-9._~/%:@!$&''()*+,;={}?-]*)?$') then
    raise exception '%.path begins with / and has no spaces', p_where using errcode = 'PT400';
  end if;
end
$$;
comment on function ai.check_request_template(jsonb, text) is 'Raises PT400 for the template of a request that cannot be filled.';

-- Raises PT400 for counts that are not described as they are read.
create or replace function ai.check_custom_counts(p_part jsonb, p_where text) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_counts constant text[] := array['input', 'output', 'cache_read', 'cache_write', 'cache_write_1h', 'reasoning'];
begin
  if p_part ? 'usage' then
    perform ai.check_members(p_part -> 'usage', c_counts || array['beside'], concat(p_where, '.usage'));
    perform ai.check_paths(p_part -> 'usage', c_counts, concat(p_where, '.usage'));
    if p_part -> 'usage' ? 'beside' and not p_part -> 'usage' -> 'beside' <@ '["cache_read", "cache_write", "cache_write_1h", "reasoning"]' then
      raise exception '%.usage.beside names parts that are counted beside input and output: cache_read, cache_write, cache_write_1h, reasoning', p_where
        using errcode = 'PT400';
    end if;
  end if;
  if p_part ? 'units' then
    perform ai.check_members(p_part -> 'units', array(select jsonb_object_keys(case jsonb_typeof(p_part -> 'units') when 'object' then p_part -> 'units' else '{}' end)), concat(p_where, '.units'));
    perform ai.check_paths(p_part -> 'units', null, concat(p_where, '.units'));
  end if;
end
$$;
comment on function ai.check_custom_counts(jsonb, text) is 'Raises PT400 for usage and units that are not described as they are read.';

-- Raises PT400 for a description of streams or jobs that does not say how they end.
create or replace function ai.check_custom_course(p_spec jsonb, p_where text) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_paths constant text[] := array['delta', 'finish', 'model', 'service_tier', 'request_id', 'reasoning', 'tool_calls'];
  v_stream jsonb := p_spec -> 'stream';
  v_poll   jsonb := p_spec -> 'poll';
  v_name   text;
begin
  if v_stream is not null then
    perform ai.check_members(v_stream, c_paths || array['path', 'body', 'framing', 'done', 'usage', 'units'], concat(p_where, '.stream'));
    perform ai.check_paths(v_stream, c_paths, concat(p_where, '.stream'));
    perform ai.check_request_template(v_stream, concat(p_where, '.stream'));
    perform ai.check_custom_counts(v_stream, concat(p_where, '.stream'));
    if coalesce(v_stream ->> 'framing', '') not in ('sse', 'ndjson') then
      raise exception '%.stream.framing is sse or ndjson', p_where using errcode = 'PT400';
    elsif not v_stream ? 'delta' then
      raise exception '%.stream has no delta: where does a piece of the text stand?', p_where using errcode = 'PT400';
    end if;
    if v_stream ? 'done' then
      perform ai.check_members(v_stream -> 'done', array['marker', 'event', 'path', 'equals'], concat(p_where, '.stream.done'));
      perform ai.check_paths(v_stream -> 'done', array['path'], concat(p_where, '.stream.done'));
      if not v_stream -> 'done' ?| array['marker', 'event', 'path'] then
        raise exception '%.stream.done is {"marker": "[DONE]"}, {"event": "end"} or {"path": "done"}', p_where using errcode = 'PT400';
      end if;
    end if;
  end if;
  if v_poll is not null then
    perform ai.check_members(v_poll, array['url', 'path', 'id', 'status', 'done', 'failed', 'result_url', 'result_path', 'cancel_url', 'cancel_path', 'cancel_method'],
                             concat(p_where, '.poll'));
    perform ai.check_paths(v_poll, array['url', 'id', 'status', 'result_url', 'cancel_url'], concat(p_where, '.poll'));
    if not v_poll ?& array['status', 'done'] or jsonb_typeof(v_poll -> 'done') <> 'array' or coalesce(jsonb_typeof(v_poll -> 'failed'), 'array') <> 'array' then
      raise exception '%.poll says where the status stands, and in done and failed (arrays) which words end a job', p_where using errcode = 'PT400';
    elsif not v_poll ?| array['url', 'path'] then
      raise exception '%.poll has neither url nor path: where is the job asked for?', p_where using errcode = 'PT400';
    elsif coalesce(v_poll ->> 'cancel_method', 'POST') not in ('POST', 'PUT', 'DELETE') then
      raise exception '%.poll.cancel_method is POST, PUT or DELETE', p_where using errcode = 'PT400';
    end if;
    foreach v_name in array array['path', 'result_path', 'cancel_path'] loop
      if v_poll ? v_name and (not v_poll ? 'id' or coalesce(v_poll ->> v_name, '') !~ '^/[A-Za-z0-9._~/-]*\$\{id\}[A-Za-z0-9._~/?=&-]*$') then
        raise exception '%.poll.% begins with / and holds %{id}, which poll.id finds', p_where, v_name, '$' using errcode = 'PT400';
      end if;
    end loop;
  end if;
end
$$;
comment on function ai.check_custom_course(jsonb, text) is 'Raises PT400 for a description of streams or jobs that does not say how they end.';

-- Raises PT400 for a description that the worker could not follow.
create or replace function ai.check_custom(p_custom jsonb) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_kinds constant text[] := array['chat', 'completion', 'embedding', 'classification', 'rerank'];
  c_paths constant text[] := array['text', 'finish', 'error', 'error_message', 'error_type', 'error_code', 'model', 'service_tier', 'request_id', 'reasoning',
    'tool_calls', 'vectors', 'results', 'label', 'index', 'score'];
  v_kind  text;
  v_spec  jsonb;
  v_where text;
  v_need  text;
begin
  perform ai.check_members(p_custom, c_kinds, 'options.custom');
  if p_custom = '{}' then
    raise exception 'options.custom describes nothing' using errcode = 'PT400', hint = 'docs/custom-providers.md has an example.';
  end if;
  for v_kind, v_spec in select key, value from jsonb_each(p_custom) order by key loop
    v_where := concat('options.custom.', v_kind);
    perform ai.check_members(v_spec, c_paths || array['path', 'method', 'body', 'finish_reasons', 'usage', 'units', 'stream', 'poll'], v_where);
    perform ai.check_paths(v_spec, c_paths, v_where);
    perform ai.check_request_template(v_spec, v_where);
    perform ai.check_custom_counts(v_spec, v_where);
    perform ai.check_custom_course(v_spec, v_where);
    v_need := case v_kind when 'embedding' then 'vectors' when 'classification' then 'results' when 'rerank' then 'results' else 'text' end;
    if jsonb_typeof(v_spec -> 'body') is distinct from 'object' then
      raise exception '%.body is not a JSON object: what is sent?', v_where using errcode = 'PT400';
    elsif not v_spec ? v_need then
      raise exception '% has no %: where does the answer stand?', v_where, v_need using errcode = 'PT400';
    elsif coalesce(v_spec ->> 'method', 'POST') not in ('POST', 'PUT', 'GET') then
      raise exception '%.method is POST, PUT or GET', v_where using errcode = 'PT400';
    elsif v_spec ? 'finish_reasons' and (jsonb_typeof(v_spec -> 'finish_reasons') <> 'object'
          or exists (select from jsonb_each(v_spec -> 'finish_reasons') r where r.value not in ('"stop"', '"length"', '"tool_calls"', '"content_filter"'))) then
      raise exception '%.finish_reasons maps words of the provider to stop, length, tool_calls or content_filter', v_where using errcode = 'PT400';
    end if;
  end loop;
end
$$;
comment on function ai.check_custom(jsonb) is 'Raises PT400 for a description of a protocol (option custom) that the worker could not follow.';

-- Trigger BEFORE INSERT OR UPDATE, each row. Raises PT400.
create or replace function ai.custom_provider() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if new.options ? 'custom' then
    perform ai.check_custom(new.options -> 'custom');
  end if;
  return new;
end
$$;
comment on function ai.custom_provider() is 'Trigger: a protocol that is described by data is described so that it can be followed.';

revoke execute on function ai.is_json_path(jsonb), ai.template_error(jsonb), ai.check_members(jsonb, text[], text), ai.check_paths(jsonb, text[], text),
  ai.check_request_template(jsonb, text), ai.check_custom_counts(jsonb, text), ai.check_custom_course(jsonb, text), ai.check_custom(jsonb), ai.custom_provider() from public;
grant execute on function ai.is_json_path(jsonb), ai.template_error(jsonb), ai.check_members(jsonb, text[], text), ai.check_paths(jsonb, text[], text),
  ai.check_request_template(jsonb, text), ai.check_custom_counts(jsonb, text), ai.check_custom_course(jsonb, text), ai.check_custom(jsonb) to ai_admin;

-- objects

create or replace trigger custom_provider before insert or update of dialect, options on ai.providers
  for each row when (new.options ? 'custom') execute function ai.custom_provider();
create or replace trigger custom_model before insert or update of options on ai.models
  for each row when (new.options ? 'custom') execute function ai.custom_provider();
