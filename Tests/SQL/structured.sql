-- Answers that fit a schema: what is asked, what is made of an answer, how often it is asked for again, and typed results.
begin;
\ir setup/world.sql
select no_plan();
delete from ai.breaker_settings;
select t.worker('one') as w \gset
update ai.models set capabilities = '{"structured_output": true}' where name = 'mtap/two';
create function t.format(p_schema jsonb default '{"type": "object", "properties": {"city": {"type": "string"}, "year": {"type": "integer", "minimum": 1}}, "required": ["city"], "additionalProperties": false}')
returns jsonb language sql as $$ select jsonb_build_object('response_format', jsonb_build_object('type', 'json_schema', 'json_schema', jsonb_build_object('name', 'place', 'schema', p_schema))) $$;
create function t.ask_json(p_params jsonb default t.format(), p_model text default 'mtap/one', p_profile text default null, p_stream boolean default false, p_messages jsonb default null, p_deadline_ms integer default null)
returns uuid language sql as $$
  insert into ai.generations (tenant_id, user_id, prompt, messages, model, profile, params, stream, deadline_ms)
  values (t.alpha(), 'ann', case when p_messages is null then 'Where?' end, p_messages, case when p_profile is null then p_model end, p_profile, p_params, p_stream, p_deadline_ms) returning id
$$;
-- Claims the one generation that waits and gives its request.
create function t.request(p_worker uuid) returns jsonb language sql as $$ select c.request from t.claim(p_worker) c $$;
create function t.answer(p_worker uuid, p_id uuid, p_text text, p_more jsonb default '{}') returns text language sql as $$
  select t.settle(p_worker, p_id, (select l.attempt from ai.leases l where l.generation_id = p_id), 'succeeded',
    jsonb_build_object('output', p_text, 'message', jsonb_build_object('role', 'assistant', 'content', p_text), 'finish_reason', 'stop', 'usage', '{"input": 10, "output": 2}'::jsonb) || p_more)
$$;
create function t.events(p_id uuid) returns text language sql stable as $$
  select string_agg(type || case when data = '' then '' else '=' || data end, ' ' order by seq) from ai.stream_events where generation_id = p_id
$$;

-- What may be asked for.
select is(t.as_role('mtap_ann', format('insert into ai.generations (prompt, model, params) values (''x'', ''mtap/one'', %L)', jsonb_build_object('response_format', f))), expected, f::text)
  from (values ('{"type": "text"}'::jsonb, 'ok 1'), ('{"type": "json_object"}', 'ok 1'), (t.format() -> 'response_format', 'ok 1'), ('null', 'ok 1'), ('{}', 'PT400'), ('{"type": "xml"}', 'PT400'), ('{"type": 5}', 'PT400'),
               ('{"type": "json_schema"}', 'PT400'), ('{"type": "json_schema", "json_schema": {"schema": {}}}', 'PT400'), ('{"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}', 'PT400'),
               ('{"type": "json_schema", "json_schema": {"name": "a"}}', 'PT400'), ('{"type": "json_schema", "json_schema": {"name": "a", "schema": true}}', 'PT400'),
               (t.format('{"type": "nothing"}') -> 'response_format', 'PT400'), (t.format('{"$ref": "#/$defs/none"}') -> 'response_format', 'PT400'),
               (t.format('{"pattern": "(a)\\1"}') -> 'response_format', 'PT400')) v (f, expected);
update ai.generations set status = 'cancelled', finished_at = ai.now() where status = 'queued';
delete from ai.queue;

-- How it is said: in words, in words and json mode, or as it is.
select t.ask_json() as g \gset
select t.request(:'w') as r \gset
select is(:'r'::jsonb -> 'params', '{}', 'a model that knows no schemas does not get one as a parameter');
select ok(:'r'::jsonb #>> '{messages,0,role}' = 'system' and :'r'::jsonb #>> '{messages,0,content}' like '%JSON Schema:%"city"%' and :'r'::jsonb #>> '{messages,1,content}' = 'Where?', 'but in words before the question');
select ok((select l.input_bytes >= octet_length(:'r') - 100 from ai.leases l where l.generation_id = :'g'), 'which are reserved for');
select is(t.answer(:'w', :'g', '{"city": "Oslo"}'), 'ended', 'an answer that fits ends it');
select is((t.generation(:'g')).output, '{"city": "Oslo"}', 'with that answer');
select t.ask_json(p_model => 'mtap/two') as g \gset
select t.request(:'w') as r \gset
select ok(:'r'::jsonb -> 'params' = t.format() and jsonb_array_length(:'r'::jsonb -> 'messages') = 1, 'a model that knows schemas gets the parameter');
select is(t.answer(:'w', :'g', '{"city": "Oslo"}'), 'ended', 'its answer is checked all the same');
update ai.models set capabilities = '{"json_mode": true}' where name = 'mtap/one';
select t.ask_json(p_messages => '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]') as g \gset
select t.request(:'w') as r \gset
select is(:'r'::jsonb #> '{params,response_format}', '{"type": "json_object"}', 'a model that writes JSON is asked to');
select ok(:'r'::jsonb #>> '{messages,0,content}' like 'Be brief.%JSON Schema%' and jsonb_array_length(:'r'::jsonb -> 'messages') = 2, 'what the app instructs stands first');
select t.answer(:'w', :'g', '{"city": "Oslo"}') \gset
update ai.models set capabilities = '{"json_mode": false}' where name = 'mtap/one';
select t.ask_json('{"response_format": {"type": "json_object"}}') as g \gset
select t.request(:'w') as r \gset
select ok(:'r'::jsonb -> 'params' = '{}' and :'r'::jsonb #>> '{messages,0,content}' like '%JSON object%', 'a model without json mode is asked for an object in words');
select is(t.answer(:'w', :'g', '[1]'), 'requeued', 'where any object will do, an array will not');
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '{"a": 1}'), 'ended', 'an object will');
-- What is said in words by capabilities of the model and its protocol: o the parameter as it is, j json_object, w words
select is(case when r -> 'params' ? 'response_format' then case when r #> '{params,response_format}' = f then 'o' else 'j' end else '' end || case when jsonb_array_length(r -> 'messages') = 2 then 'w' else '' end,
          expected, format('%s, %s: %s', dialect, capabilities, f ->> 'type'))
  from (values ('openai', '{}'::jsonb, 'o', 'w'), ('openai', '{"json_mode": true}', 'o', 'jw'), ('openai', '{"json_mode": false}', 'w', 'w'), ('openai', '{"structured_output": true}', 'o', 'o'),
               ('openai', '{"structured_output": true, "json_mode": false}', 'w', 'o'), ('anthropic', '{}', 'w', 'w'), ('anthropic', '{"structured_output": true, "json_mode": true}', 'w', 'o'),
               ('anthropic', '{"structured_output": false, "json_mode": true}', 'w', 'w')) v (dialect, capabilities, of_object, of_schema)
 cross join lateral (values ('{"type": "json_object"}'::jsonb, of_object), (t.format() -> 'response_format', of_schema)) k (f, expected)
 cross join lateral ai.complete_request(jsonb_build_object('messages', '[{"role": "user", "content": "Where?"}]'::jsonb, 'params', jsonb_build_object('response_format', f)),
                                        t.alpha(), 'ann', 'chat', null, 'm', dialect, capabilities, '{}', false, null) r;
update ai.models set capabilities = '{}' where name = 'mtap/one';

-- Repairs: each a call on the books, with what was wrong.
select t.ask_json() as g \gset
select t.request(:'w') as r \gset
select is(t.answer(:'w', :'g', '{"town": "Oslo"}'), 'requeued', 'an answer that does not fit is asked for again');
select is((t.generation(:'g')).status, 'queued', 'the generation goes on');
select t.request(:'w') as r \gset
select is((select string_agg(m ->> 'role', ' ' order by n) from jsonb_array_elements(:'r'::jsonb -> 'messages') with ordinality e (m, n)), 'system user assistant user', 'the same conversation goes on');
select is(:'r'::jsonb #>> '{messages,2,content}', '{"town": "Oslo"}', 'with the answer');
select ok(:'r'::jsonb #>> '{messages,3,content}' like '%lacks city%/town: nothing is allowed here%', 'and its errors');
select is(t.answer(:'w', :'g', E'```json\n{"city": "Oslo", "year": 0}\n```'), 'requeued', 'a second time');
select t.request(:'w') as r \gset
select is(jsonb_array_length(:'r'::jsonb -> 'messages'), 6, 'all of it is told');
select is(t.answer(:'w', :'g', E' ```json\n{"city": "Oslo", "year": 1}\n```\n'), 'ended', 'a code fence does no harm');
select results_eq(format('select status, output, output_message ->> ''content'', repairs::int, steps::int, attempts::int, error, cost from ai.generations where id = %L', :'g'),
  $$ values ('succeeded', '{"city": "Oslo", "year": 1}', '{"city": "Oslo", "year": 1}', 2, 0, 3, null::jsonb, 0.00018) $$, 'the answer is bare JSON; its cost is that of all calls');
select results_eq(format('select attempt::int, status, error_class, input_tokens from ai.llm_calls where generation_id = %L order by attempt', :'g'),
  $$ values (1, 'succeeded', 'invalid_output', 10), (2, 'succeeded', 'invalid_output', 10), (3, 'succeeded', null, 10) $$, 'each is on the books');
select is_empty(format('select from ai.prepared where generation_id = %L', :'g'), 'what was said is forgotten with the end');
select t.ask_json() as g \gset
select is((select string_agg(a, ' ') from (select t.request(:'w') as r, n from generate_series(1, 1) n) o cross join lateral (select t.answer(:'w', :'g', 'no') as a) x), 'requeued', 'one');
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'no'), 'requeued', 'two');
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'no'), 'ended', 'three answers that are none end it');
select results_eq(format('select status, output, error ->> ''class'', error ->> ''code'', error #>> ''{errors,0,message}'', repairs::int from ai.generations where id = %L', :'g'),
  $$ values ('failed', 'no', 'invalid_output', 'PT422', 'this is not JSON', 2) $$, 'it has failed, and says why');
select is((select count(*) from ai.llm_calls where generation_id = :'g'), 3::bigint, 'three calls are on the books');
update ai.settings set max_repairs = 0;
select t.ask_json() as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'no'), 'ended', 'no repairs');
select is(t.status(:'g'), 'failed', 'without repairs the first is the last');
update ai.settings set max_repairs = 2;

-- What asking again would not mend.
create function t.end_of(p_worker uuid, p_text text, p_more jsonb) returns text language plpgsql as $$
declare
  v_id uuid := t.ask_json();
begin
  perform t.request(p_worker);
  perform t.answer(p_worker, v_id, p_text, p_more);
  return t.status(v_id);
end
$$;
select is(t.end_of(:'w', text, more), expected, name)
  from (values ('{"city": "Os', '{"finish_reason": "length"}'::jsonb, 'failed', 'an answer cut off is not asked for again'),
               ('', '{"message": {"role": "assistant", "content": null, "refusal": "No."}}', 'failed', 'nor one that was refused'),
               ('{"city": "Oslo"}', '{"finish_reason": "content_filter"}', 'failed', 'nor one that was filtered'),
               ('{"city": "Oslo"}', '{"finish_reason": "length"}', 'succeeded', 'a whole one counts'),
               ('', '{"message": {"role": "assistant", "content": null, "tool_calls": [{"id": "a"}]}, "finish_reason": "tool_calls"}', 'succeeded', 'a call of the app''s own tool is an answer')) v (text, more, expected, name);

-- Hostile answers: none raises, none passes.
create function t.hostile(p_worker uuid, p_text text) returns text language plpgsql as $$
declare
  v_id uuid := t.ask_json();
begin
  perform t.request(p_worker);
  return t.answer(p_worker, v_id, p_text);
end
$$;
select is(t.hostile(:'w', text), 'requeued', 'hostile: ' || left(text, 20)) from unnest(array[repeat('[', 100000), '{"city": "\u0000"}', '{"city": "\ud800"}', '', '``````', '```', 'null', '1e999999', repeat('{"city":', 20000), '[1' || repeat(',1e131000', 10000) || ']',
  (select '{"city": "x", ' || string_agg(format('"k%s": 1', n), ', ') || '}' from generate_series(1, 3000) n)]) text;
select is(t.end_of(:'w', repeat(' ', n) || '{"city": "Oslo"}', '{}'), expected, n + 16 || ' bytes: ' || expected) from (values (999984, 'succeeded'), (999985, 'failed')) v (n, expected);
savepoint no_time;
create or replace function ai.judging_time() returns interval language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ select interval '0' $$;
select t.ask_json() as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '{"city": "Oslo"}'), 'requeued', 'an answer that takes too long does not fit');
select ok((select p.messages ->> -1 like '%this takes too long to be checked%' from ai.prepared p where p.generation_id = :'g'), 'which is said to who gave it');
rollback to no_time;
select ok((select max(p.input_bytes) < 700000 from ai.prepared p), 'a long answer is told again once') ;
update ai.generations set status = 'cancelled', finished_at = ai.now() where status = 'queued';
delete from ai.queue;

-- A stream begins again.
select t.ask_json(p_stream => true) as g \gset
select t.request(:'w') \gset ignored_
select count(*) from ai.worker_publish(:'w', jsonb_build_array(jsonb_build_object('id', :'g', 'attempt', 1, 'part', 1, 'text', 'no'))) \gset ignored_
select is(t.answer(:'w', :'g', 'no, sorry', '{"tail": ", sorry"}'), 'requeued', 'a stream is asked for again, too');
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '{"city": "Oslo"}', '{"tail": "{\"city\": \"Oslo\"}"}'), 'ended', 'and ends');
select is(t.events(:'g'), 'running delta=no delta=, sorry reset=invalid_output running delta={"city": "Oslo"}', 'subscribers are told that it begins again');

-- Failures between: the conversation goes on at the next target; attempts for repairs are not counted as failures.
update ai.settings set max_attempts = 2;
select t.ask_json(p_profile => 'mtap-route') as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'no'), 'requeued', 'a repair');
select t.request(:'w') \gset ignored_
select is(t.settle(:'w', :'g', 2, 'failed', '{"signal": "http", "http_status": 401}'), 'requeued', 'a failure of the repair goes to the next target');
select t.request(:'w') as r \gset
select ok(:'r'::jsonb -> 'params' = t.format() and jsonb_array_length(:'r'::jsonb -> 'messages') = 3, 'which gets the whole conversation, in its own way');
select is(t.answer(:'w', :'g', '{"city": "Oslo"}'), 'ended', 'and answers');
update ai.settings set max_attempts = 5;
-- Cancelled or late between two calls.
select t.ask_json() as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'no'), 'requeued', 'between two calls');
select is(t.as_role('mtap_ann', format('select ai.cancel(%L)', :'g')), 'ok 1', 'its member cancels it');
select is(coalesce((select count(*) from t.claim(:'w') c), 0), 0::bigint, 'a cancelled one is not asked again');
select is(t.status(:'g'), 'cancelled', 'it is cancelled');
select t.ask_json(p_deadline_ms => 60000) as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'no'), 'requeued', 'in time');
select t.pass('2 minutes') \gset ignored_
select is((select count(*) from t.claim(:'w') c), 0::bigint, 'a late one is not asked again');
select is((t.generation(:'g')).error ->> 'class', 'deadline', 'it is late');

-- Typed results.
create type public.place as (city text, year integer, tags text[], at date);
create domain public.small as integer check (value < 10);
create function t.done(p_text text) returns uuid language sql as $$
  insert into ai.generations (tenant_id, user_id, prompt, status, output, finished_at) values (t.alpha(), 'ann', 'x', 'succeeded', p_text, ai.now()) returning id
$$;
create function t.typed(p_text text, p_type anyelement) returns anyelement language plpgsql as $$
declare
  v_id uuid := t.done(p_text);
begin
  return ai.output_as(v_id, p_type);
end
$$;
select results_eq(format('select city, year, tags, at from t.typed(%L, null::public.place)', '{"city": "Oslo", "tags": ["a", "b"], "at": "2026-01-02", "more": 1}'),
  $$ values ('Oslo', null::integer, '{a,b}'::text[], '2026-01-02'::date) $$, 'an object as a composite type');
select is(t.typed(('[1, 2]'), null::integer[]), '{1,2}', 'an array as an array');
select is(t.typed(('7'), null::public.small), 7::public.small, 'a number as a domain');
select throws_ok(format('select t.typed(%L, null::public.small)', '70'), '23514', null, 'whose check holds');
select is(t.typed((E'```json\n{"a": 1}\n```'), null::jsonb), '{"a": 1}', 'or as JSON, without its fence');
select is(t.typed(('"2026-01-02"'), null::date), '2026-01-02', 'a text as a date');
select throws_ok(format('select t.typed(%L, null::date)', '"no date"'), '22007', null, 'or not');
select throws_ok(format('select t.typed(%L, null::jsonb)', 'not JSON'), 'PT422', null, 'what is no JSON');
select throws_ok($$ select ai.output_as(gen_random_uuid(), null::jsonb) $$, 'PT404', null, 'what is not there');
select is(ai.output_as((select id from ai.generations where status = 'cancelled' limit 1), null::jsonb), null, 'what has no answer gives none');
select t.done('{"city": "Oslo"}') as g \gset
select is(t.as_role('mtap_ann', format('select ai.output_as(%L, null::jsonb)', :'g')), 'ok 1', 'a member reads its own');
select is(t.as_role(r, format('select ai.output_as(%L, null::jsonb)', :'g')), 'PT404', r || ' does not') from unnest(array['mtap_abe', 'mtap_bob', 'mtap_stray']) r;

select * from finish();
rollback;
