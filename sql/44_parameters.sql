-- What a model cannot do, told to the dialect that writes its call. The dialect leaves out what the model cannot take and says so
-- (ai.generations.dropped_params), or refuses the call where its params say strict.

-- What of a model's capabilities matters for a call, as options of it: `unsupported_params`, those of the options and those that
-- follow from what the model cannot do, and `streaming` and `system_role` where they are false. Never raises, because tenants write capabilities, and
-- one statement makes the calls of all tenants.
create or replace function ai.capability_options(p_capabilities jsonb, p_options jsonb) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when p_capabilities ? 'unsupported_params' or p_capabilities @> any (array['{"tools": false}', '{"parallel_tools": false}', '{"reasoning": false}']::jsonb[])
              then jsonb_build_object('unsupported_params',
                     '[]'::jsonb || coalesce(p_options -> 'unsupported_params', '[]') || coalesce(p_capabilities -> 'unsupported_params', '[]')
                     || case when p_capabilities @> '{"tools": false}' then '["tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"]' else '[]' end::jsonb
                     || case when p_capabilities @> '{"parallel_tools": false}' then '["parallel_tool_calls"]' else '[]' end::jsonb
                     || case when p_capabilities @> '{"reasoning": false}' then '["reasoning_effort", "reasoning", "thinking"]' else '[]' end::jsonb)
              else '{}' end
      || case when p_capabilities @> '{"streaming": false}' then '{"streaming": false}' else '{}' end::jsonb
      || case when p_capabilities @> '{"system_role": false}' then '{"system_role": false}' else '{}' end::jsonb
$$;
comment on function ai.capability_options(jsonb, jsonb) is 'What of a model''s capabilities its dialect must know, as options of the call.';

-- Raises PT400 for parameters without which a request of its kind means nothing, and for a response_format whose answers could not be checked.
create or replace function ai.check_kind_params(p_kind text, p_params jsonb) returns void
language plpgsql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_texts jsonb := case p_kind when 'rerank' then p_params -> 'documents' when 'classification' then nullif(p_params -> 'labels', 'null') end;
  v_name  text := case p_kind when 'rerank' then 'documents' else 'labels' end;
begin
  if v_texts is null then
    if p_kind = 'rerank' then
      raise exception 'a rerank needs params.documents' using errcode = 'PT400', hint = 'insert into ai.generations (kind, prompt, params) values (''rerank'', ''the query'', ''{"documents": ["…", "…"]}'');';
    end if;
  elsif jsonb_typeof(v_texts) <> 'array' or jsonb_array_length(v_texts) not between 1 and 1000
     or exists (select from jsonb_array_elements(v_texts) d where jsonb_typeof(d.value) <> 'string') then
    raise exception 'params.% must be an array of 1 to 1000 texts', v_name using errcode = 'PT400';
  end if;
  if p_kind = 'chat' and jsonb_typeof(p_params -> 'response_format') <> 'null' then
    perform ai.check_response_format(p_params -> 'response_format');
  end if;
end
$$;
comment on function ai.check_kind_params(text, jsonb) is 'Raises PT400 for parameters without which a request of its kind means nothing.';

revoke execute on function ai.capability_options(jsonb, jsonb), ai.check_kind_params(text, jsonb) from public;
