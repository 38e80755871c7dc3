-- Answers that fit a schema: what params.response_format may be, how it is said to a model that does not know it, and what is made of an answer.

-- Raises PT400 for a response_format that is none, or whose schema is none. One that a dialect understands beside these passes.
create or replace function ai.check_response_format(p_format jsonb) returns void
language plpgsql immutable parallel unsafe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_typeof(p_format) is distinct from 'object' or jsonb_typeof(p_format -> 'type') is distinct from 'string' then
    raise exception 'params.response_format must be an object with a type' using errcode = 'PT400', hint = '{"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}';
  elsif p_format ->> 'type' = 'json_schema' then
    if jsonb_typeof(p_format -> 'json_schema') is distinct from 'object' or jsonb_typeof(p_format #> '{json_schema,schema}') is distinct from 'object'
       or coalesce(p_format #>> '{json_schema,name}', '') !~ '^[a-zA-Z0-9_-]{1,64}$' then
      raise exception 'params.response_format.json_schema needs a name and a schema'
        using errcode = 'PT400', detail = 'The name has 1 to 64 letters, digits, _ and -; the schema is an object.';
    end if;
    perform ai.check_json_schema(p_format #> '{json_schema,schema}');
  elsif p_format ->> 'type' not in ('text', 'json_object') then
    raise exception 'params.response_format.type is text, json_object or json_schema' using errcode = 'PT400';
  end if;
end
$$;
comment on function ai.check_response_format(jsonb) is 'Raises PT400 unless this is a response_format whose answers can be checked.';

-- The schema that an answer has to fit; null: any text will do.
create or replace function ai.answer_schema(p_params jsonb) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case p_params #>> '{response_format,type}' when 'json_schema' then p_params #> '{response_format,json_schema,schema}'
                                                    when 'json_object' then '{"type": "object"}' end
$$;
comment on function ai.answer_schema(jsonb) is 'The JSON Schema that an answer has to fit; null: none.';

-- A call as the model at hand understands its response_format. A model with the capability structured_output gets a schema as it is. Another one is told
-- in words, at the end of its instructions, and where it has json_mode, that it is to write JSON. json_object is older than schemas and understood
-- nearly everywhere: without json_mode it is said in words.
create or replace function ai.format_request(p_request jsonb, p_capabilities jsonb) returns jsonb
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_schema jsonb := ai.answer_schema(p_request -> 'params');
  v_words  text;
begin
  if v_schema is null
     or (case p_request #>> '{params,response_format,type}' when 'json_object' then p_capabilities @> '{"json_mode": false}' is not true
                                                            else p_capabilities @> '{"structured_output": true}' end) then
    return p_request;
  elsif p_request #>> '{params,response_format,type}' = 'json_object' then
    v_words := 'Answer with one JSON object and with nothing else: no explanation, no code fence.';
  else
    v_words := E'Answer with one JSON value and with nothing else: no explanation, no code fence. It must be valid under this JSON Schema:\n' || v_schema::text;
  end if;
  return jsonb_build_object(
    'params', p_request -> 'params' #- '{response_format}'
              || case when p_capabilities @> '{"json_mode": true}' then '{"response_format": {"type": "json_object"}}'::jsonb else '{}' end,
    'messages', case when p_request #>> '{messages,0,role}' in ('system', 'developer') and jsonb_typeof(p_request #> '{messages,0,content}') = 'string'
                     then jsonb_set(p_request -> 'messages', '{0,content}', to_jsonb((p_request #>> '{messages,0,content}') || E'\n\n' || v_words))
                     else jsonb_build_array(jsonb_build_object('role', 'system', 'content', v_words)) || (p_request -> 'messages') end);
end
$$;
comment on function ai.format_request(jsonb, jsonb) is 'A call as a model with these capabilities understands its response_format.';

-- Text as JSON, without what models like to put around it: white space and one code fence. Both null: it is none. Whatever cannot be kept
-- as jsonb is none: nesting beyond the stack, the character NUL.
create or replace function ai.parse_json(p_text text, out value jsonb, out bare text)
language plpgsql immutable parallel unsafe security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
begin
  bare := btrim(p_text, E' \t\r\n');
  if left(bare, 3) = '```' and right(bare, 3) = '```' and length(bare) > 6 then
    bare := btrim(regexp_replace(left(bare, length(bare) - 3), '^```[A-Za-z0-9]*', ''), E' \t\r\n');
  end if;
  value := bare;
exception when others then
  if ai.says_again(sqlstate) then
    raise;
  end if;
  value := null;
  bare := null;
end
$$;
comment on function ai.parse_json(text) is 'A text as JSON, without a code fence around it; null: it is none.';

-- What is said to a model whose answer did not fit, in at most twenty errors.
create or replace function ai.repair_words(p_errors jsonb) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select E'This answer does not fit:\n' || string_agg('- ' || left(concat_ws(': ', nullif(e.value ->> 'at', ''), e.value ->> 'message'), 500), E'\n' order by e.n)
         || E'\nAnswer again with the whole JSON value, corrected, and with nothing else.'
    from jsonb_array_elements(p_errors) with ordinality e (value, n) where e.n <= 20
$$;
comment on function ai.repair_words(jsonb) is 'What is said to a model whose answer did not fit its schema.';

-- What an answer is worth under its schema. value, bare: the answer, and as text; errors null: it fits. repairable: asking again may help.
create or replace function ai.judge_answer(p_params jsonb, p_text text, p_message jsonb, p_finish_reason text,
  out bare text, out errors jsonb, out repairable boolean)
language plpgsql stable parallel unsafe security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_steps constant integer := 20000;
  c_bytes constant integer := 1000000;
  v_value jsonb;
begin
  repairable := true;
  if coalesce(p_message ->> 'refusal', '') <> '' or p_finish_reason = 'content_filter' then
    repairable := false;
    errors := '[{"at": "", "message": "the model refused to answer"}]';
    return;
  end if;
  if octet_length(p_text) > c_bytes then
    repairable := false;
    errors := '[{"at": "", "message": "the answer is too long to be checked"}]';
    return;
  end if;
  select j.value, j.bare into v_value, bare from ai.parse_json(p_text) j;
  if bare is null then
    repairable := p_finish_reason is distinct from 'length';
    errors := case when repairable then '[{"at": "", "message": "this is not JSON"}]' else '[{"at": "", "message": "the answer was cut off by max_tokens"}]' end;
    return;
  end if;
  select jsonb_agg(jsonb_build_object('at', left(e.instance_path, 200), 'rule', left(e.schema_path, 200), 'message', e.message))
    into errors
    from (select * from ai.json_errors_until(ai.answer_schema(p_params), v_value, false, '{}', c_steps, clock_timestamp() + ai.judging_time()) s limit 20) e;
end
$$;
comment on function ai.judge_answer(jsonb, text, jsonb, text) is 'Whether an answer fits its schema: its JSON, or the errors.';

-- What follows an answer of a generation that may go on. action: `end`; `again` (the same model is asked); `wait` (for tools, then again); `fail`. Writes the
-- messages of the next call, as ai.prepared has them. Called within the statement that concludes the attempt: it must not touch
-- ai.generations, which that statement updates. Raises nothing but what says `again`.
create or replace function ai.go_on(
  p_tenant uuid, p_id uuid, p_attempt smallint, p_lane bigint, p_target smallint, p_deadline_at timestamptz, p_text text, p_message jsonb, p_finish_reason text,
  out action text, out reason text, out bare text, out error jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_one     record;
  v_verdict record;
begin
  action := 'end';
  select g.params, g.tools, g.repairs, s.max_repairs into v_one
    from ai.generations g cross join ai.settings s where g.tenant_id = p_tenant and g.id = p_id;
  if v_one.tools is not null and p_message ? 'tool_calls' and p_finish_reason in ('length', 'content_filter') then
    -- Which of the calls are whole nobody knows: one whose arguments are still to come may look like one without any.
    action := 'fail';
    reason := 'invalid_output';
    error := jsonb_build_object('class', 'invalid_output', 'code', 'PT422', 'message',
                                case p_finish_reason when 'length' then 'the answer was cut off while it called tools' else 'the model refused to answer' end);
    return;
  elsif v_one.tools is not null and p_message ? 'tool_calls' then
    select t.action, t.error into action, error from ai.call_tools(p_tenant, p_id, p_attempt, p_lane, p_target, p_deadline_at, p_message) t;
    reason := case when action in ('again', 'wait') then 'tools' end;
    return;
  elsif ai.answer_schema(v_one.params) is null or p_message ? 'tool_calls' then
    return;
  end if;
  select * into v_verdict from ai.judge_answer(v_one.params, p_text, p_message, p_finish_reason);
  if v_verdict.errors is null then
    bare := v_verdict.bare;
    return;
  end if;
  reason := 'invalid_output';
  if v_verdict.repairable and v_one.repairs < v_one.max_repairs then
    action := 'again';
    perform ai.add_messages(p_tenant, p_id, jsonb_build_array(jsonb_build_object('role', 'assistant', 'content', coalesce(nullif(p_text, ''), '-')),
                                                              jsonb_build_object('role', 'user', 'content', ai.repair_words(v_verdict.errors))));
  else
    action := 'fail';
    error := jsonb_build_object('class', 'invalid_output', 'code', 'PT422', 'message', 'the answer does not fit its schema', 'errors', v_verdict.errors);
  end if;
exception when others then
  -- One answer must not keep those that are settled with it from their end.
  if ai.says_again(sqlstate) then
    raise;
  end if;
  action := 'fail';
  error := jsonb_build_object('class', 'unprepared', 'code', 'PT500', 'message', 'what follows this answer could not be done', 'sqlstate', sqlstate);
end
$$;
comment on function ai.go_on(uuid, uuid, smallint, bigint, smallint, timestamptz, text, jsonb, text) is 'What follows an answer of a generation that may take several calls.';

-- Adds messages to what the next call of a generation says. Locks its row of ai.prepared.
create or replace function ai.add_messages(p_tenant uuid, p_id uuid, p_messages jsonb) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into ai.prepared as p (generation_id, tenant_id, messages, input_bytes)
  select g.id, g.tenant_id, m.messages, octet_length(m.messages::text)
    from ai.generations g
   cross join lateral (select coalesce(g.messages, jsonb_build_array(jsonb_build_object('role', 'user', 'content', g.prompt))) || p_messages as messages) m
   where g.tenant_id = p_tenant and g.id = p_id
  on conflict on constraint prepared_pkey do update
    set messages = p.messages || p_messages, input_bytes = octet_length((p.messages || p_messages)::text)
$$;
comment on function ai.add_messages(uuid, uuid, jsonb) is 'Adds messages to what the next call of a generation says.';

-- The answer of a generation as a value of a type: ai.output_as(id, null::my_type) for a composite type, whose columns take the members of
-- the object by their names, else whatever the JSON value can be cast to. Null where it has not succeeded. Raises PT404 where the caller does not see
-- the generation, PT422 where the answer is no JSON, and what a cast raises.
create or replace function ai.output_as(p_id uuid, p_type anyelement) returns anyelement
language plpgsql stable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one   record;
  v_value jsonb;
begin
  select g.status, g.output into v_one from ai.generations g where g.id = p_id;
  if not found then
    raise exception 'there is no generation % that this session may see', p_id using errcode = 'PT404';
  elsif v_one.status <> 'succeeded' or v_one.output is null then
    return null;
  end if;
  v_value := (ai.parse_json(v_one.output)).value;
  if v_value is null then
    raise exception 'the answer is not JSON' using errcode = 'PT422', hint = 'params.response_format asks for JSON.';
  end if;
  execute format('select %s from jsonb_to_record($1) r (value %s)',
                 case when (select t.typtype = 'c' from pg_type t where t.oid = pg_typeof(p_type)::oid) then '(r.value).*' else 'r.value' end, format_type(pg_typeof(p_type)::oid, null))
    into p_type using jsonb_build_object('value', v_value);
  return p_type;
end
$$;
comment on function ai.output_as(uuid, anyelement) is 'The answer of a generation as a value of a type: ai.output_as(id, null::my_type). PT404, PT422.';

revoke execute on function ai.check_response_format(jsonb), ai.answer_schema(jsonb), ai.format_request(jsonb, jsonb), ai.parse_json(text), ai.repair_words(jsonb),
  ai.judge_answer(jsonb, text, jsonb, text), ai.go_on(uuid, uuid, smallint, bigint, smallint, timestamptz, text, jsonb, text), ai.add_messages(uuid, uuid, jsonb), ai.output_as(uuid, anyelement) from public;
grant execute on function ai.parse_json(text), ai.output_as(uuid, anyelement) to ai_user;
