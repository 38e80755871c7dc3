-- Tools: who may define and call them, the loop with its books, and runs that try to do harm. Real workers: Tests/Structured.
begin;
\ir setup/world.sql
select no_plan();
delete from ai.breaker_settings;
select t.worker('one') as w, t.worker('two') as other \gset
create role mtap_tools login;
grant ai_user to mtap_tools;

create schema app;
grant usage on schema app to mtap_tools;
create table app.orders (id integer, tenant_id uuid, user_id text, what text);
alter table app.orders enable row level security;
create policy own on app.orders using (tenant_id = (select ai.tenant_id()) and user_id = (select ai.user_id()));
grant select, insert on app.orders to mtap_tools;
insert into app.orders values (1, t.alpha(), 'ann', 'a lamp'), (2, t.alpha(), 'abe', 'a desk'), (3, t.beta(), 'bob', 'a bed');
create function app.find_order(p jsonb) returns jsonb language sql stable set search_path = app as $$ select jsonb_agg(o.what order by o.id) from orders o where p ->> 'id' is null or o.id = (p ->> 'id')::integer $$;
create function app.who(p jsonb) returns jsonb language sql stable as $$ select jsonb_build_object('session', session_user, 'user', ai.user_id(), 'tenant', ai.tenant_id(), 'source', (ai.identity()).source, 'path', current_setting('search_path')) $$;
create function app.try(p jsonb) returns text language plpgsql as $$ begin execute p ->> 'sql'; return 'done'; end $$;
create function app.many(p jsonb) returns setof jsonb language sql as $$ select p $$;
create function app.two(p jsonb, q jsonb) returns jsonb language sql as $$ select p $$;
create procedure app.proc(p jsonb) language sql as $$ select p $$;
create function app.closed(p jsonb) returns text language sql as $$ select 'no' $$;
revoke execute on function app.closed(jsonb) from public;

-- Who defines tools, and which.
select throws_ok(format('insert into ai.tools (name, description, function, parameters) values (%L, %L, %L, %L)', name, description, f, parameters), state, null, what)
  from (values ('find order', 'x', 'app.find_order', '{"type": "object"}', '23514', 'a name has no spaces'), ('a', '', 'app.find_order', '{"type": "object"}', '23514', 'a description is needed'),
               ('a', 'x', 'app.nowhere', '{"type": "object"}', 'PT404', 'a function that is not there'), ('a', 'x', 'find_order', '{"type": "object"}', 'PT404', 'a function without its schema'),
               ('a', 'x', 'app.many', '{"type": "object"}', 'PT404', 'a function that returns a set'), ('a', 'x', 'app.two', '{"type": "object"}', 'PT404', 'a function of two arguments'),
               ('a', 'x', 'app.proc', '{"type": "object"}', 'PT404', 'a procedure'), ('a', 'x', 'ai.check_json_schema', '{"type": "object"}', 'PT404', 'a function of Martlet'),
               ('a', 'x', 'pg_catalog.jsonb_typeof', '{"type": "object"}', 'PT404', 'a function of PostgreSQL'), ('a', 'x', 'app.find_order', '{"type": "string"}', 'PT400', 'arguments that are no object'),
               ('a', 'x', 'app.find_order', '{"type": "object", "properties": 1}', 'PT400', 'arguments without a schema'), ('a', 'x', 'app.who(jsonb); drop table x; --', '{"type": "object"}', 'PT404', 'what is no name')) v (name, description, f, parameters, state, what);
insert into ai.tools (name, description, function, parameters) values
  ('find_order', 'Finds orders.', 'app.find_order', '{"type": "object", "properties": {"id": {"type": "integer"}}, "additionalProperties": false}'), ('who', 'Says who.', 'app.who', '{"type": "object"}'),
  ('try', 'Runs.', 'app.try', '{"type": "object"}'), ('closed', 'Is closed.', 'app.closed', '{"type": "object"}');
insert into ai.tools (tenant_id, name, description, function) values (t.beta(), 'betas', 'Is beta''s.', 'app.who');
insert into ai.tools (name, description, function, enabled) values ('off', 'Is off.', 'app.who', false);
select is(t.as_role(r, $$ insert into ai.tools (name, description, function) values ('mine', 'x', 'app.who') $$), '42501', r || ' defines no tools') from unnest(array['mtap_ann', 'mtap_dev', 'mtap_adm', 'mtap_worker', 'mtap_tools']) r;
select is(t.as_role(r, $$ update ai.tools set function = 'app.try' $$), '42501', r || ' changes none') from unnest(array['mtap_ann', 'mtap_adm', 'mtap_worker', 'mtap_tools']) r;
select is(t.as_role(r, 'select from ai.tools'), n, r || ' sees those of its tenant') from (values ('mtap_ann', 'ok 5'), ('mtap_bob', 'ok 6'), ('mtap_stray', 'ok 0'), ('mtap_tools', 'ok 0'), ('mtap_worker', '42501')) v (r, n);

-- Who asks for which.
select is(t.as_role(r, format('insert into ai.generations (prompt, model, tools, max_steps, params, kind) values (''x'', ''mtap/one'', %L, %s, %L, %L)', tools, coalesce(steps, 'null'), params, kind)), state, what)
  from (values ('mtap_ann', '{find_order,who}', null, '{}', 'chat', 'ok 1', 'a member asks with tools'), ('mtap_ann', '{betas}', null, '{}', 'chat', 'PT404', 'not with those of another tenant'),
               ('mtap_bob', '{betas}', null, '{}', 'chat', 'ok 1', 'which has them'), ('mtap_ann', '{off}', null, '{}', 'chat', 'PT404', 'nor with one that is off'), ('mtap_ann', '{none}', null, '{}', 'chat', 'PT404', 'nor with none'),
               ('mtap_ann', '{}', null, '{}', 'chat', 'PT400', 'an empty list is none'), ('mtap_ann', '{who,who}', null, '{}', 'chat', 'PT400', 'each once'), ('mtap_ann', '{who,NULL}', null, '{}', 'chat', 'PT400', 'no nulls'),
               ('mtap_ann', '{who}', '0', '{}', 'chat', 'PT400', 'at least one step'), ('mtap_ann', '{who}', '100', '{}', 'chat', 'ok 1', 'a hundred steps'), ('mtap_ann', '{who}', '101', '{}', 'chat', 'PT400', 'no more'),
               ('mtap_ann', '{who}', null, '{"tools": [{"type": "function", "function": {"name": "who"}}]}', 'chat', 'PT400', 'not two of one name'),
               ('mtap_ann', '{who}', null, '{"tools": [{"type": "custom", "custom": {"name": "who"}}]}', 'chat', 'PT400', 'in no form'), ('mtap_ann', '{who}', null, '{"tools": [{"type": "function", "name": "who"}]}', 'chat', 'PT400', 'nor in this'),
               ('mtap_ann', '{who}', null, '{}', 'completion', 'PT400', 'only a chat'), ('mtap_stray', '{who}', null, '{}', 'chat', 'PT401', 'nobody')) v (r, tools, steps, params, kind, state, what);
update ai.generations set status = 'cancelled', finished_at = ai.now() where status = 'queued';
delete from ai.queue;

create function t.ask_tools(p_tools text[] default '{find_order,who,try,closed}', p_steps integer default null, p_params jsonb default '{}', p_user text default 'ann', p_stream boolean default false, p_model text default 'mtap/one')
returns uuid language sql as $$
  insert into ai.generations (tenant_id, user_id, prompt, model, tools, max_steps, params, stream)
  values (t.alpha(), p_user, 'Where is my order?', p_model, p_tools, p_steps, p_params, p_stream) returning id
$$;
create function t.request(p_worker uuid) returns jsonb language sql as $$ select c.request from t.claim(p_worker) c $$;
create function t.called(p_calls jsonb) returns jsonb language sql as $$
  select jsonb_build_object('message', jsonb_build_object('role', 'assistant', 'content', null, 'tool_calls',
           (select jsonb_agg(jsonb_build_object('id', coalesce(c ->> 'id', 'c' || n), 'type', 'function', 'function', jsonb_build_object('name', c ->> 'name', 'arguments', coalesce(c ->> 'text', (c -> 'arguments')::text, '{}'))) order by n)
              from jsonb_array_elements(p_calls) with ordinality e (c, n))), 'finish_reason', 'tool_calls', 'usage', '{"input": 10, "output": 2}'::jsonb)
$$;
create function t.answer(p_worker uuid, p_id uuid, p_text text, p_more jsonb default '{}') returns text language sql as $$
  select t.settle(p_worker, p_id, (select l.attempt from ai.leases l where l.generation_id = p_id), 'succeeded',
    jsonb_build_object('output', p_text, 'message', jsonb_build_object('role', 'assistant', 'content', p_text), 'finish_reason', 'stop', 'usage', '{"input": 10, "output": 2}'::jsonb) || p_more)
$$;
-- Runs a claimed call as the worker does: another login, a transaction with the ticket; then reports. Gives what was raised.
create function t.run(p_worker uuid, p_call uuid, p_ticket text, p_role text default 'mtap_tools') returns text language plpgsql as $$
declare
  v_state   text;
  v_message text;
begin
  begin
    execute format('set local session authorization %I', p_role);
    perform ai.use_session(p_ticket);
    perform ai.run_tool();
    execute 'set constraints all immediate';
    v_state := 'ok';
  exception when others then
    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
  end;
  reset session authorization;
  perform set_config('ai.session', '', true);
  perform ai.worker_tools_done(p_worker, jsonb_build_array(jsonb_strip_nulls(jsonb_build_object('id', p_call, 'sqlstate', nullif(v_state, 'ok'), 'message', v_message))));
  return v_state;
end
$$;
create function t.run_all(p_worker uuid) returns text language sql as $$
  select string_agg(t.run(p_worker, c.call_id, c.ticket), ' ') from ai.worker_tools(p_worker, 100) c
$$;
-- One generation from the first call to the result of one tool: what the model is told.
create function t.told(p_worker uuid, p_name text, p_arguments jsonb, p_user text default 'ann') returns text language plpgsql as $$
declare
  v_id  uuid := t.ask_tools(p_user => p_user);
  v_run text;
begin
  perform t.request(p_worker);
  perform t.answer(p_worker, v_id, '', t.called(jsonb_build_array(jsonb_build_object('name', p_name, 'arguments', p_arguments))));
  v_run := t.run_all(p_worker);
  if v_run = '40001' then
    perform t.run_all(p_worker);
  end if;
  return (select m.value ->> 'content' from t.request(p_worker) r cross join lateral jsonb_array_elements(r -> 'messages') m where m.value ->> 'role' = 'tool');
end
$$;

-- The loop.
select t.ask_tools('{find_order}') as g \gset
select t.request(:'w') as r \gset
select is(:'r'::jsonb #>> '{params,tools,0,function,name}', 'find_order', 'the model is told of the tool');
select is(t.answer(:'w', :'g', '', t.called('[{"name": "find_order", "arguments": {"id": 1}}, {"name": "find_order", "arguments": {}}]')), 'requeued', 'it calls it twice');
select results_eq(format('select status, steps::int from ai.generations where id = %L', :'g'), $$ values ('queued', 1) $$, 'the generation waits');
select is((select count(*) from t.claim(:'w')), 0::bigint, 'it is not claimed meanwhile');
select is((select count(*) from ai.worker_tools(:'other', 1)), 1::bigint, 'a worker claims one run');
select is(t.run_all(:'w'), 'ok', 'another the other');
select is((select count(*) from t.claim(:'w')), 0::bigint, 'the generation waits for both');
select is(t.as_role('mtap_worker', format('select * from ai.worker_tools(%L, 10)', :'w')), 'ok 0', 'what another worker runs is not given twice');
update ai.workers set ended_at = ai.now(), ending = 'dead' where id = :'other';
select is(t.run_all(:'w'), 'ok', 'what a dead worker had is taken over');
select t.request(:'w') as r \gset
select is(:'r'::jsonb -> 'messages', '[{"role": "user", "content": "Where is my order?"},
  {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find_order", "arguments": "{\"id\": 1}"}}, {"id": "c2", "type": "function", "function": {"name": "find_order", "arguments": "{}"}}]},
  {"role": "tool", "tool_call_id": "c1", "content": "[\"a lamp\"]"}, {"role": "tool", "tool_call_id": "c2", "content": "[\"a lamp\"]"}]', 'the results go to the model in its order, and are the member''s rows alone');
select is(t.answer(:'w', :'g', 'It is a lamp.'), 'ended', 'it answers');
select results_eq(format('select status, output, steps::int, attempts::int, cost from ai.generations where id = %L', :'g'), $$ values ('succeeded', 'It is a lamp.', 1, 2, 0.00012) $$, 'the generation has the answer and the cost of both calls');
select results_eq(format('select attempt::int, status, error_class from ai.llm_calls where generation_id = %L order by attempt', :'g'), $$ values (1, 'succeeded', null), (2, 'succeeded', null) $$, 'both are on the books');
select results_eq(format('select name, status, arguments, result, step::int, attempts::int, ticket is null, settled_at is not null from ai.tool_calls where generation_id = %L order by position', :'g'),
  $$ values ('find_order', 'succeeded', '{"id": 1}'::jsonb, '["a lamp"]', 1, 2, true, true), ('find_order', 'succeeded', '{}', '["a lamp"]', 1, 1, true, true) $$, 'so are the runs');
select is_empty(format('select from ai.waiting where generation_id = %L union all select from ai.prepared where generation_id = %1$L', :'g'), 'nothing is left');
select is(t.as_role(r, format('select status, result from ai.tool_calls where generation_id = %L', :'g')), n, r || ' sees of the runs what it sees of generations')
  from (values ('mtap_ann', 'ok 2'), ('mtap_abe', 'ok 0'), ('mtap_dev', 'ok 2'), ('mtap_bob', 'ok 0'), ('mtap_stray', 'ok 0'), ('mtap_worker', '42501')) v (r, n);
select is(t.as_role('mtap_adm', 'select ticket from ai.tool_calls'), '42501', 'nobody sees tickets');

-- As whom.
select is(t.told(:'w', 'who', '{}') , format('{"path": "pg_catalog, pg_temp", "user": "ann", "source": "session", "tenant": "%s", "session": "mtap_tools"}', t.alpha()), 'a run is the member''s, with the login of tools');
select is(t.told(:'w', 'find_order', '{}', 'abe'), '["a desk"]', 'another member''s sees its own');
select is(t.told(:'w', 'try', jsonb_build_object('sql', sql)), told, what)
  from (values
    ('insert into app.orders select 9, ai.tenant_id(), ai.user_id(), ''x''', 'done', 'it writes as the member'),
    ('insert into app.orders select 9, ai.tenant_id(), ''abe'', ''x''', '{"error": "the tool may not do this"}', 'and not as another'),
    ('set role ai_worker', '{"error": "the tool may not do this"}', 'nor by setting it'),
    ('select * from ai.worker_claim(gen_random_uuid(), 1, null)', '{"error": "the tool may not do this"}', 'it is no worker'),
    ('select * from ai.worker_tools(gen_random_uuid(), 1)', '{"error": "the tool may not do this"}', 'and gets no tickets'),
    ('select * from ai.tool_calls', '{"error": "the tool may not do this"}', 'it does not read them'),
    ('update ai.tools set function = ''app.who''', '{"error": "the tool may not do this"}', 'it changes no tools'),
    ('set local request.jwt.claims = ''{"sub": "abe"}''; set local ai.session = ''''; select 1 / (case when ai.user_id() is null then 1 else 0 end); select ai.finish_tool(''1'')', '{"error": "this session has no ticket for a tool"}', 'without its ticket it is nobody, and claims make it no one else'),
    ('set local ai.session = ''mrs_x''; select ai.user_id()', '{"error": "this API key or session token is not valid"}', 'a wrong token is refused'),
    ('select ai.login(split_part(current_setting(''ai.session''), '':'', 1))', '{"error": "this API key or session token is not valid"}', 'its ticket begins no session'),
    ('insert into ai.generations (prompt, model, tools) values (''x'', ''mtap/one'', ''{who}'')', '{"error": "what a tool asks for cannot call tools"}', 'it begins no loop of its own'),
    ('commit', '{"error": "the tool failed"}', 'it does not commit'),
    ('do $d$ begin commit; end $d$', '{"error": "the tool failed"}', 'nor from inside'),
    ('do $d$ begin raise exception ''no such order''; end $d$', '{"error": "no such order"}', 'what it raises is told'),
    ('select 1 / 0', '{"error": "the tool failed"}', 'what goes wrong is not'),
    ('select ai.finish_tool(''"forged"'')', '{"error": "this API key or session token is not valid"}', 'who gives its result itself does not give another'),
    ('select pg_read_file(''/etc/passwd'')', '{"error": "the tool may not do this"}', 'it reads no files'),
    ('do $d$ begin raise exception ''again'' using errcode = ''40001''; end $d$', null, 'what says again is run again')) v (sql, told, what);
update ai.generations set status = 'cancelled', finished_at = ai.now() where status in ('queued', 'running');
delete from ai.queue; delete from ai.leases; delete from ai.waiting;
select is_empty($$ select from app.orders where id = 9 and user_id <> 'ann' $$, 'nothing was written as another');
select is(t.told(:'w', name, arguments), told, what)
  from (values ('closed', '{}'::jsonb, '{"error": "the tool may not do this"}', 'what the login may not run'), ('find_order', '{"id": "x"}', '{"error": "the arguments do not fit: /id: is string, not integer"}', 'arguments that do not fit reach no function'),
               ('find_order', '{"id": 1, "or": 2}', '{"error": "the arguments do not fit: /or: nothing is allowed here"}', 'nor do more'), ('no_tool', '{}', '{"error": "there is no such tool"}', 'what the model made up'),
               ('betas', '{}', '{"error": "there is no such tool"}', 'what was not offered')) v (name, arguments, told, what);
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '', t.called('[{"name": "who", "text": "{not JSON"}]')), 'requeued', 'arguments that are no JSON');
select is((select result from ai.tool_calls where generation_id = :'g'), '{"error": "the arguments are not JSON"}', 'are said to be none, without a run');
select t.answer(:'w', :'g', 'x') from t.request(:'w') \gset ignored_

-- What goes back to the provider.
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '', '{"message": {"role": "assistant", "content": null, "reasoning": "Hm.", "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
  "thought_signatures": [{"tool_call": 0, "signature": "t"}], "tool_calls": [{"id": "a", "type": "function", "function": {"name": "none", "arguments": "{}"}}],
  "logprobs": {"content": []}, "native_finish_reason": "x"}}'), 'requeued', 'a message says more than its calls');
select is(t.request(:'w') #> '{messages,1}', '{"role": "assistant", "content": null, "reasoning": "Hm.", "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
  "thought_signatures": [{"tool_call": 0, "signature": "t"}], "tool_calls": [{"id": "a", "type": "function", "function": {"name": "none", "arguments": "{}"}}]}', 'what the provider wants again goes back to it');
select t.answer(:'w', :'g', 'x') \gset ignored_
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"id": "call_0", "name": "none"}, {"id": "call_1", "name": "none"}]')) \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"id": "call_0", "name": "none"}]')) from t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"id": "x", "name": "none"}, {"id": "x", "name": "none"}, {"id": "", "name": "none"}]')) from t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"id": "y", "name": "none"}]')) from t.request(:'w') \gset ignored_
select t.request(:'w') as r \gset
select is(jsonb_path_query_array(:'r', '$.messages[*].tool_calls[*].id'), '["call_0", "call_1", "call_3", "call_4", "call_5", "call_6", "y"]', 'no two calls have one id');
select is(jsonb_path_query_array(:'r', '$.messages[*].tool_call_id'), jsonb_path_query_array(:'r', '$.messages[*].tool_calls[*].id'), 'results have those of their calls');
select t.answer(:'w', :'g', 'x') \gset ignored_

-- Answers that are no finished ones.
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '', t.called('[{"name": "who"}]') || '{"finish_reason": "length"}'), 'ended', 'an answer that was cut off while it called is the end');
select results_eq(format($$ select status, error ->> 'class', error ->> 'message', finish_reason, cost from ai.generations where id = %L $$, :'g'),
  $$ values ('failed', 'invalid_output', 'the answer was cut off while it called tools', 'length', 0.00006) $$, 'a generation whose answer was cut off has failed');
select is_empty(format('select from ai.tool_calls where generation_id = %L', :'g'), 'and has run nothing');
select is((select error_class from ai.llm_calls where generation_id = :'g'), 'invalid_output', 'which the books say');
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]') || '{"finish_reason": "content_filter"}') \gset ignored_
select is((select error ->> 'message' from ai.generations where id = :'g'), 'the model refused to answer', 'nor does one that was refused run anything');

-- What was forced once is not forced again.
create function t.later(p_choice jsonb, p_tools jsonb) returns jsonb language sql as $$
  select ai.later_params(jsonb_build_object('seed', 1, 'tool_choice', p_choice, 'tools', p_tools || '[{"type": "function", "function": {"name": "who"}}]'), '{who}') -> 'tool_choice'
$$;
select is(t.later(choice, '[]'), later, what)
  from (values ('"auto"'::jsonb, '"auto"'::jsonb, 'what may be'), ('"none"', '"none"', 'or may not be called'), ('null', 'null', 'or is not said stays'), ('{"type": "auto"}', '{"type": "auto"}', 'also as an object'),
               ('"required"', null, 'who had to call one may answer'), ('"any"', null, 'in other words'), ('{"type": "any"}', null, 'Anthropic''s'),
               ('{"type": "function", "function": {"name": "who"}}', null, 'who had to call this one, too'), ('{"type": "function", "name": "who"}', null, 'or flat'), ('{"type": "tool", "name": "who"}', null, 'or Anthropic''s'),
               ('{"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}', '{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}', 'who had to call one of some may'),
               ('{"type": "allowed_tools", "mode": "required", "tools": []}', '{"type": "allowed_tools", "mode": "auto", "tools": []}', 'or flat'),
               ('{"type": "allowed_tools", "mode": "auto", "tools": []}', '{"type": "allowed_tools", "mode": "auto", "tools": []}', 'and who might still may')) v (choice, later, what);
select is(t.later('"required"', app), '"required"', what)
  from (values ('[{"type": "function", "function": {"name": "mine"}}]'::jsonb, 'a tool of the app''s ends what is required'), ('[{"type": "custom", "custom": {"name": "mine"}}]', 'a custom one'), ('[{"type": "function", "name": "mine"}]', 'a flat one'),
               ('[{"functionDeclarations": [{"name": "mine"}]}]', 'Gemini''s')) v (app, what);
select is(t.later('{"type": "function", "function": {"name": "who"}}', '[{"type": "custom", "custom": {"name": "mine"}}]'), null, 'but not one of the database''s');
select is(ai.later_params('{"tool_choice": "required"}', '{who}'), '{}', 'without tools in params');
-- In Gemini's own words.
select is(ai.later_params(params, '{who}'), later, what)
  from (values ('{"toolConfig": {"functionCallingConfig": {"mode": "ANY"}, "retrievalConfig": {}}}'::jsonb, '{"toolConfig": {"retrievalConfig": {}}}'::jsonb, 'who had to call one may answer'),
               ('{"tool_config": {"functionCallingConfig": {"mode": "any", "allowedFunctionNames": ["who"]}}}', '{"tool_config": {}}', 'or this one'),
               ('{"tool_choice": "required", "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}', '{"toolConfig": {}}', 'in both words'),
               ('{"toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}}', '{"toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}}', 'who may still may'),
               ('{"tools": [{"functionDeclarations": [{"name": "mine"}]}], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}',
                '{"tools": [{"functionDeclarations": [{"name": "mine"}]}], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}', 'a tool of the app''s ends what is required'),
               ('{"tools": [{"functionDeclarations": [{"name": "mine"}]}], "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["who"]}}}',
                '{"tools": [{"functionDeclarations": [{"name": "mine"}]}], "toolConfig": {}}', 'where it may be called'),
               ('{"toolConfig": ["ANY"], "tool_config": 1}', '{"toolConfig": ["ANY"], "tool_config": 1}', 'and what is none stays')) v (params, later, what);
select t.ask_tools('{who}', p_params => '{"tool_choice": "required", "max_tokens": 9}') as g \gset
select t.request(:'w') as r \gset
select is(:'r'::jsonb #>> '{params,tool_choice}', 'required', 'the first call is forced');
select t.answer(:'w', :'g', '', t.called('[{"name": "none"}]')) \gset ignored_
select t.request(:'w') as r \gset
select is((:'r'::jsonb -> 'params') - 'tools', '{"max_tokens": 9}', 'the second is not');
select t.answer(:'w', :'g', 'x') \gset ignored_
savepoint shared_bytes;
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called(jsonb_build_array(jsonb_build_object('name', 'who', 'text', '{}' || repeat(' ', 499998)), jsonb_build_object('name', 'who', 'text', '{}' || repeat(' ', 499999))))) \gset ignored_
select results_eq(format('select status, result from ai.tool_calls where generation_id = %L order by position', :'g'), $$ values ('queued', null), ('failed', '{"error": "the arguments are too long"}') $$,
  'the calls of an answer share a million bytes');
rollback to shared_bytes;

-- The calls of one answer share its steps.
savepoint shared_steps;
update ai.tools set parameters = '{"type": "object", "properties": {"n": {"items": {"type": "integer"}}}}' where name = 'who';
create function t.many(p_calls integer) returns jsonb language sql as $$
  select t.called((select jsonb_agg(jsonb_build_object('name', 'who', 'arguments', jsonb_build_object('n', (select jsonb_agg(i) from generate_series(1, 700) i)))) from generate_series(1, p_calls)))
$$;
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.many(1)) \gset ignored_
select is((select array_agg(distinct status) from ai.tool_calls where generation_id = :'g'), '{queued}', 'one call of seven hundred numbers fits');
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.many(32)) \gset ignored_
select results_eq(format($$ select count(*), min(status), bool_and(result ~ 'too many steps') from ai.tool_calls where generation_id = %L $$, :'g'), $$ values (32::bigint, 'failed', true) $$, 'thirty-two at once take too many steps');
rollback to shared_steps;

-- Tickets.
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]')) \gset ignored_
select call_id as c, ticket as k from ai.worker_tools(:'w', 1) \gset
select is((select ticket = sha256(convert_to(:'k', 'UTF8')) from ai.tool_calls where id = :'c'), true, 'of a ticket the hash is kept');
create function t.with_ticket(p_role text, p_ticket text, p_sql text) returns text language plpgsql as $$
declare
  v_is text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    perform ai.use_session(p_ticket);
    execute p_sql;
    v_is := 'ok';
  exception when others then
    v_is := sqlstate;
  end;
  reset session authorization;
  perform set_config('ai.session', '', true);
  return v_is;
end
$$;
create role mtap_owner_login login superuser;
create role mtap_auth login;
grant ai_user to mtap_auth;
insert into ai.authenticators (role_name) values ('mtap_auth');
select is(t.with_ticket(r, :'k', 'select ai.run_tool()'), 'PT403', r || ' runs no tools, even with a ticket') from unnest(array['mtap_ann', 'mtap_auth', 'mtap_owner_login']) r;
grant ai_user to mtap_worker;
select is(t.with_ticket('mtap_worker', :'k', 'select ai.run_tool()'), 'PT403', 'a worker''s login does not, either');
revoke ai_user from mtap_worker;
select is(t.with_ticket('mtap_tools', 'mrc_' || repeat('0', 64), 'select ai.run_tool()'), 'PT401', 'another ticket is none');
select is(t.with_ticket('mtap_tools', :'k', 'set local ai.session = ''' || :'k' || '''; select ai.user_id()'), 'PT401', 'a ticket is for a transaction, not for a connection');
update ai.members set enabled = false where user_id = 'ann' and tenant_id = t.alpha();
select is(t.with_ticket('mtap_tools', :'k', 'select ai.run_tool()'), 'PT401', 'a member who was switched off has no runs');
update ai.members set enabled = true where user_id = 'ann' and tenant_id = t.alpha();
update ai.tools set enabled = false where name = 'who';
select is(t.with_ticket('mtap_tools', :'k', 'select ai.run_tool()'), 'PT404', 'a tool that was switched off is not run');
update ai.tools set enabled = true where name = 'who';
select is(t.run(:'w', :'c', :'k'), 'ok', 'with the ticket it is run');
select is(t.with_ticket('mtap_tools', :'k', 'select ai.run_tool()'), 'PT401', 'once');
select is((select count(*) from t.claim(:'w')), 1::bigint, 'the generation goes on');
select t.answer(:'w', :'g', 'x') \gset ignored_

-- The ticket of what a limited key asked is as limited as the key, and ends with it.
insert into ai.api_keys (tenant_id, user_id, name, prefix, hash, permissions) values (t.alpha(), 'ann', 'limited', 'mtap', sha256('limited'), '{inference:execute}') returning id as key \gset
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]')) \gset ignored_
update ai.tool_calls set api_key_id = :'key' where generation_id = :'g';
select call_id as c, ticket as k from ai.worker_tools(:'w', 1) \gset
select is((select permissions from ai.secret_key(:'k', null)), '{inference:execute}', 'a run may do what its key may');
delete from ai.api_keys where id = :'key';
select is(t.with_ticket('mtap_tools', :'k', 'select ai.run_tool()'), 'PT401', 'and nothing where the key is gone');
select ai.worker_tools_done(:'w', jsonb_build_array(jsonb_build_object('id', :'c', 'sqlstate', 'PT401'))) \gset ignored_
select is((select count(*) from t.claim(:'w')), 1::bigint, 'the generation goes on without');
select t.answer(:'w', :'g', 'x') \gset ignored_

-- A run that commits is told although its worker dies before it says so.
select t.worker('three') as third \gset
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]')) \gset ignored_
select call_id as c, ticket as k from ai.worker_tools(:'third', 1) \gset
select is(t.with_ticket('mtap_tools', :'k', 'select ai.run_tool()'), 'ok', 'a run commits');
select is((select count(*) from ai.worker_tools(:'w', 1)), 0::bigint, 'while its worker lives nobody else sees to it');
update ai.workers set ended_at = ai.now(), ending = 'dead' where id = :'third';
select is((select count(*) from ai.worker_tools(:'w', 1)), 0::bigint, 'then another settles it');
select is((select count(*) from t.claim(:'w')), 1::bigint, 'without a second run');
select ai.worker_tools_done(:'third', jsonb_build_array(jsonb_build_object('id', :'c', 'sqlstate', '57014'))) \gset ignored_
select is((select status from ai.tool_calls where id = :'c'), 'succeeded', 'what the dead one says counts no more');
select t.answer(:'w', :'g', 'x') \gset ignored_

-- Bounds: runs that kill their worker, steps, calls at once, results.
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]')) \gset ignored_
create function t.lose(p_worker uuid, p_times integer) returns bigint language plpgsql as $$
declare
  v_lost bigint := 0;
  v_call uuid;
begin
  for i in 1 .. p_times loop
    select c.call_id into v_call from ai.worker_tools(p_worker, 1) c;
    v_lost := v_lost + (v_call is not null)::integer;
    perform ai.worker_tools_done(p_worker, jsonb_build_array(jsonb_build_object('id', v_call)));
  end loop;
  return v_lost;
end
$$;
select is(t.lose(:'w', 5), 3::bigint, 'a run of which nobody knows is tried three times');
select is((select result from ai.tool_calls where generation_id = :'g'), '{"error": "the tool failed"}', 'and no more');
select t.answer(:'w', :'g', 'x') from t.request(:'w') \gset ignored_
select t.ask_tools(p_steps => 1) as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '', t.called('[{"name": "none"}]')), 'requeued', 'one step');
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '', t.called('[{"name": "none"}]')), 'ended', 'is the last');
select is((select status || ' ' || (error ->> 'class') from ai.generations where id = :'g'), 'failed steps', 'where one is allowed');
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '', t.called((select jsonb_agg('{"name": "who"}'::jsonb) from generate_series(1, 33)))), 'ended', '33 calls at once are too many');
select is((select count(*) from ai.tool_calls where generation_id = :'g'), 0::bigint, 'none of them is run');
select is(t.told(:'w', 'try', '{"sql": "select ai.finish_tool(to_jsonb(repeat(''x'', 100001)))"}'), '{"error": "the result of the tool has more than 100000 bytes"}', 'a result is bounded');
select is(t.told(:'w', 'try', '{"sql": "select ai.finish_tool(to_jsonb(repeat(''x'', 100000))); set local ai.session = ''''"}'), '{"error": "this session has no ticket for a tool"}', 'who throws its ticket away has no result');

-- The app's own tools.
select t.ask_tools('{who}', p_params => '{"tools": [{"type": "function", "function": {"name": "mine", "parameters": {"type": "object"}}}]}') as g \gset
select t.request(:'w') as r \gset
select is((select string_agg(x #>> '{function,name}', ' ') from jsonb_array_elements(:'r'::jsonb #> '{params,tools}') x), 'mine who', 'the model is told of both');
select is(t.answer(:'w', :'g', '', t.called('[{"name": "who"}, {"name": "mine"}]')), 'ended', 'where the app''s own is called, the app goes on');
select results_eq(format('select status, finish_reason, jsonb_array_length(output_message -> ''tool_calls'') from ai.generations where id = %L', :'g'), $$ values ('succeeded', 'tool_calls', 2) $$, 'with all that was called');
create function t.own(p_worker uuid, p_tool jsonb, p_call jsonb, out g uuid, out settled text) language plpgsql as $$
begin
  g := t.ask_tools('{who}', p_params => jsonb_build_object('tools', jsonb_build_array(p_tool)));
  perform t.request(p_worker);
  settled := t.answer(p_worker, g, '', jsonb_build_object('message', jsonb_build_object('role', 'assistant', 'content', null, 'tool_calls', jsonb_build_array(p_call))));
end
$$;
select is((t.own(:'w', tool, call)).settled, 'ended', what)
  from (values ('{"type": "custom", "custom": {"name": "mine"}}'::jsonb, '{"id": "a", "type": "custom", "custom": {"name": "mine", "input": "x"}}'::jsonb, 'also where it is a custom one'),
               ('{"type": "function", "name": "mine"}', '{"id": "a", "type": "function", "function": {"name": "mine", "arguments": "{}"}}', 'or was given flat'),
               ('{"functionDeclarations": [{"name": "mine"}]}', '{"id": "a", "type": "function", "function": {"name": "mine", "arguments": "{}"}}', 'or in Gemini''s words')) v (tool, call, what);
select g from t.own(:'w', '{"type": "custom", "custom": {"name": "mine"}}', '{"id": "a", "type": "custom", "custom": {"name": "other", "input": "x"}}') \gset
select is(t.request(:'w') #> '{messages,1,tool_calls}', '[{"id": "a", "type": "custom", "custom": {"name": "other", "input": "x"}}]', 'a custom call goes back as one');
select is((select name || ' ' || result from ai.tool_calls where generation_id = :'g'), 'other {"error": "there is no such tool"}', 'where there is none of its name');
select t.answer(:'w', :'g', 'x') \gset ignored_

-- Streams, schemas, cancelling, deadlines.
select t.ask_tools(p_stream => true, p_params => '{"response_format": {"type": "json_object"}}') as g \gset
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'Let me see.', t.called('[{"name": "who"}]') || '{"tail": "Let me see."}'), 'requeued', 'a stream calls a tool');
select is(t.run_all(:'w'), 'ok', 'which is run');
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', 'no JSON', '{"tail": "no JSON"}'), 'requeued', 'then its answer does not fit');
select t.request(:'w') \gset ignored_
select is(t.answer(:'w', :'g', '{}', '{"tail": "{}"}'), 'ended', 'then it does');
select is((select string_agg(type || case when data = '' then '' else '=' || data end, ' ' order by seq) from ai.stream_events where generation_id = :'g'),
          'running delta=Let me see. reset=tools running delta=no JSON reset=invalid_output running delta={}', 'subscribers see each begin');
select results_eq(format('select steps::int, repairs::int, attempts::int, output from ai.generations where id = %L', :'g'), $$ values (1, 1, 3, '{}') $$, 'each is counted');
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]')) \gset ignored_
select is(t.as_role('mtap_ann', format('select ai.cancel(%L)', :'g')), 'ok 1', 'what waits for a tool can be cancelled');
select is(t.status(:'g'), 'cancelled', 'and is');
select is((select count(*) from ai.worker_tools(:'w', 10)), 0::bigint, 'its tool is not run');
select is((select status from ai.tool_calls where generation_id = :'g'), 'cancelled', 'but cancelled');
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]')) \gset ignored_
select call_id as c, ticket as k from ai.worker_tools(:'w', 1) \gset
select is(t.as_role('mtap_ann', format('select ai.cancel(%L)', :'g')), 'ok 1', 'cancelled while it runs');
select is(t.run(:'w', :'c', :'k'), 'ok', 'the run may end');
select is(t.status(:'g'), 'cancelled', 'the generation stays cancelled');
select is((select count(*) from t.claim(:'w')), 0::bigint, 'and is not asked');
-- What one generation cannot be told keeps the results of all others from nobody.
set local client_min_messages = error;
select t.ask_tools('{who}') as bad, t.ask_tools('{who}') as good \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.answer(:'w', g, '', t.called('[{"name": "who", "arguments": {}}]')) from unnest(array[:'bad', :'good']::uuid[]) g \g /dev/null
create function t.too_long() returns trigger language plpgsql as $$ begin raise exception 'what it would be told' using errcode = '54000'; end $$;
create trigger too_long before update on ai.prepared for each row when (new.generation_id = :'bad') execute function t.too_long();
select ai.worker_tools_done(:'w', jsonb_agg(jsonb_build_object('id', c.call_id, 'sqlstate', 'P0001', 'message', 'no'))) from ai.worker_tools(:'w', 10) c \g /dev/null
select is(t.place(:'good'), 'queue', 'the other goes on');
select is((t.generation(:'bad')).error, '{"class": "unprepared", "code": "PT500", "message": "what follows its tools could not be done", "sqlstate": "54000"}', 'that one ends');
select is_empty(format('select from ai.waiting where generation_id = %L union all select from ai.tool_calls where generation_id = %1$L and settled_at is null', :'bad'), 'and waits for nothing');
drop trigger too_long on ai.prepared;
-- Nobody runs it.
select t.ask_tools() as g \gset
select t.request(:'w') \gset ignored_
select t.answer(:'w', :'g', '', t.called('[{"name": "who"}]')) \gset ignored_
select t.pass('1 day') \gset ignored_
select ai.end_overdue(ai.now()) \gset ignored_
select is((select error ->> 'class' from ai.generations where id = :'g'), 'deadline', 'nobody runs it: its time ends');
-- Who forgets a person forgets what tools did.
select ok((select count(*) > 0 from ai.tool_calls where user_id = 'ann' and tenant_id = t.alpha()), 'runs of a person');

select * from finish();
rollback;
