-- What may be asked: every refusal with its SQLSTATE, at the limit and one beyond.
begin;
\ir setup/world.sql
select no_plan();

-- Inserts as ann; gives ok or the SQLSTATE.
create function t.try(p_columns text, p_role text default 'mtap_ann') returns text language plpgsql as $$
declare
  v_as text := 'nothing';
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute format('insert into ai.generations (%s) values (%s) returning ''ok''', (string_to_array(p_columns, ' = '))[1], (string_to_array(p_columns, ' = '))[2]) into v_as;
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;
-- The same with a prompt and a model that are fine, and one more column.
create function t.try_with(p_column text, p_value text) returns text language sql as $$ select t.try(format('prompt, model, %s = ''x'', ''mtap/one'', %s', p_column, p_value)) $$;
create function t.try_messages(p_messages text) returns text language sql as $$ select t.try(format('messages, model = %L, ''mtap/one''', p_messages)) $$;

-- Prompt or messages
select is(t.try(columns), expected, format('%s: %s', columns, expected))
  from (values
    ('model = ''mtap/one''', 'PT400'), ('prompt, model = null, ''mtap/one''', 'PT400'), ('prompt, model = '''', ''mtap/one''', 'PT400'), ('prompt, model = E''  \t\n '', ''mtap/one''', 'PT400'),
    ('prompt, messages, model = ''x'', ''[{"role": "user", "content": "x"}]'', ''mtap/one''', 'PT400'), ('prompt, model = ''x'', ''mtap/one''', 'ok'),
    ('prompt, model = '' x '', ''mtap/one''', 'ok'), ('prompt, model = ''😀'', ''mtap/one''', 'ok'), ('prompt = ''x''', 'ok'),
    ('prompt, model, profile = ''x'', ''mtap/one'', ''medium''', 'PT400'), ('prompt, profile = ''x'', ''mtap-route''', 'ok'), ('prompt, profile = ''x'', ''no-such''', 'PT404'),
    ('prompt, model = ''x'', ''no/such''', 'PT404'), ('prompt, model = ''x'', ''''', 'PT404'), ('prompt, model = ''x'', ''MTAP/ONE''', 'PT404'), ('prompt, model = ''x'', ''mtap/embed''', 'PT404'),
    ('prompt, model, kind = ''x'', ''mtap/embed'', ''embedding''', 'ok'), ('prompt, model, kind = ''x'', ''mtap/one'', ''embedding''', 'PT404'),
    ('prompt, kind = ''x'', ''embedding''', 'ok'), ('messages, model, kind = ''[{"role": "user", "content": "x"}]'', ''mtap/embed'', ''embedding''', 'PT400'),
    ('prompt, model, kind, stream = ''x'', ''mtap/embed'', ''embedding'', true', 'PT400'), ('prompt, kind = ''x'', ''poem''', 'PT400')) v (columns, expected);

-- Messages
select is(t.try_messages(messages), expected, format('messages %s: %s', left(messages, 90), expected))
  from (values
    ('[]', 'PT400'), ('{}', 'PT400'), ('"x"', 'PT400'), ('7', 'PT400'), ('null', 'PT400'), ('true', 'PT400'), ('[1]', 'PT400'), ('["x"]', 'PT400'), ('[null]', 'PT400'), ('[[]]', 'PT400'), ('[{}]', 'PT400'),
    ('[{"role": "user"}]', 'PT400'), ('[{"content": "x"}]', 'PT400'), ('[{"role": "user", "content": null}]', 'PT400'), ('[{"role": "user", "content": 7}]', 'PT400'),
    ('[{"role": "user", "content": {}}]', 'PT400'), ('[{"role": "USER", "content": "x"}]', 'PT400'), ('[{"role": "robot", "content": "x"}]', 'PT400'), ('[{"role": null, "content": "x"}]', 'PT400'),
    ('[{"role": ["user"], "content": "x"}]', 'PT400'), ('[{"role": "user", "content": "x"}]', 'ok'), ('[{"role": "user", "content": ""}]', 'ok'),
    ('[{"role": "user", "content": [{"type": "text", "text": "x"}]}]', 'ok'), ('[{"role": "system", "content": "x"}, {"role": "developer", "content": "x"}, {"role": "user", "content": "x"}]', 'ok'),
    ('[{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "x", "tool_call_id": "1"}]', 'ok'),
    ('[{"role": "assistant", "content": null, "tool_calls": [{}]}]', 'ok'), ('[{"role": "assistant", "refusal": "no"}]', 'ok'), ('[{"role": "assistant"}]', 'PT400'), ('[{"role": "tool", "tool_calls": []}]', 'PT400'),
    ('[{"role": "user", "content": "x"}, {"role": "user"}]', 'PT400'), ('[{"role": "user", "content": "x", "name": "y", "new": 1}]', 'ok')) v (messages, expected);

-- Text that is none is refused by PostgreSQL itself
select is(t.try_messages('[{"role": "user", "content": "\u0000"}]'), '22P05', 'NUL in messages');
select is(t.try_messages('[{"role": "user", "content": "\ud83d"}]'), '22P02', 'half an emoji in messages');
select is(t.try_messages('[{"role": "user", "content": "\ude00\ud83d"}]'), '22P02', 'an emoji the wrong way round');
select is(t.try_messages('[{"role": "user", "content": "\ud83d\ude00"}]'), 'ok', 'a whole one');
select is(t.try('prompt = E''a\x00b'''), '22021', 'NUL in a prompt');
select is(t.try('prompt = convert_from(''\xff'', ''UTF8'')'), '22021', 'bytes that are no UTF-8');
select is(t.try('messages = ''[{"role": '''), '22P02', 'JSON that is none');

-- Size: at the limit and one byte beyond, in bytes and not in characters
reset session authorization;
update ai.settings set max_input_bytes = 100;
select is(t.try(format('prompt, model = %L, ''mtap/one''', prompt)), expected, format('%s characters, %s bytes: %s', length(prompt), octet_length(prompt), expected))
  from (values (repeat('x', 100), 'ok'), (repeat('x', 101), 'PT413'), (repeat('ü', 50), 'ok'), (repeat('ü', 51), 'PT413'), (repeat('😀', 25), 'ok'), (repeat('😀', 26), 'PT413')) v (prompt, expected);
select is(t.try(format('prompt, params, model = ''x'', %L, ''mtap/one''', jsonb_build_object('user', repeat('x', n)))), expected, format('params of %s bytes: %s', n + 12, expected))
  from (values (87, 'ok'), (88, 'PT413')) v (n, expected);
select is(t.try_messages(jsonb_build_array(jsonb_build_object('role', 'user', 'content', repeat('x', n)))::text), expected, format('messages of %s bytes: %s', n + 33, expected))
  from (values (67, 'ok'), (68, 'PT413')) v (n, expected);
select is(t.try(format('prompt, model, metadata = ''x'', ''mtap/one'', %L', jsonb_build_object('user', repeat('x', n)))), expected, format('metadata of %s bytes: %s', n + 12, expected))
  from (values (87, 'ok'), (88, 'PT413')) v (n, expected);
update ai.settings set max_input_bytes = 4194304;
select is(t.try(format('prompt, model = repeat(''x'', %s), ''mtap/one''', n)), expected, format('a prompt of %s bytes: %s', n, expected)) from (values (4194304, 'ok'), (4194305, 'PT413'), (20000000, 'PT413')) v (n, expected);

-- Depth: what no worker could read
create function t.nested(p_levels integer) returns jsonb language sql as $$ select (repeat('[', p_levels) || repeat(']', p_levels))::jsonb $$;
select is(t.try_with('params', quote_literal(jsonb_build_object('x', t.nested(n)))), expected, format('params of %s levels', n + 1)) from (values (899, 'ok'), (900, 'PT400'), (1500, 'PT400')) v (n, expected);
select is(t.try_with('params', quote_literal(jsonb_build_object(key, value))), 'PT400', format('params.%s', key))
  from (values ('tools', t.nested(1000)), ('response_format', jsonb_build_object('type', 'json_schema', 'json_schema', t.nested(1000)))) v (key, value);
select is(t.try_with('metadata', quote_literal(t.nested(n))), expected, format('metadata of %s levels', n)) from (values (900, 'ok'), (901, 'PT400')) v (n, expected);
select is(t.try_messages(jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'x', 'y', t.nested(n)))::text), expected, format('messages of %s levels', n + 2))
  from (values (898, 'ok'), (899, 'PT400')) v (n, expected);
set local session authorization mtap_ann;
select throws_ok(format($$ insert into ai.generations (prompt, model, params) values ('x', 'mtap/one', %L) $$, jsonb_build_object('x', t.nested(1000))), 'PT400', 'params goes too deep', 'and is told why');
reset session authorization;

-- Params
select is(t.try_with('params', quote_literal(params)), expected, format('params %s: %s', params, expected))
  from (values
    ('[]', 'PT400'), ('7', 'PT400'), ('"x"', 'PT400'), ('null', 'PT400'), ('{}', 'ok'), ('{"temperature": 0}', 'ok'), ('{"temperature": 2}', 'ok'), ('{"temperature": 2.0001}', 'PT400'), ('{"temperature": -0.1}', 'PT400'),
    ('{"temperature": "1"}', 'PT400'), ('{"temperature": null}', 'ok'), ('{"top_p": "1"}', 'PT400'), ('{"max_tokens": 1}', 'ok'), ('{"max_tokens": 0}', 'PT400'), ('{"max_tokens": -1}', 'PT400'), ('{"max_tokens": 1.5}', 'PT400'),
    ('{"max_tokens": 1.0}', 'ok'), ('{"max_tokens": "1"}', 'PT400'), ('{"max_tokens": 100000000}', 'ok'), ('{"max_tokens": 100000001}', 'PT400'), ('{"max_tokens": true}', 'PT400'), ('{"max_tokens": []}', 'PT400'),
    ('{"max_completion_tokens": 0}', 'PT400'), ('{"n": 1}', 'ok'), ('{"n": 1.0}', 'ok'), ('{"n": 2}', 'PT400'), ('{"n": null}', 'ok'),
    ('{"best_of": 1}', 'ok'), ('{"n": 1, "best_of": 20}', 'PT400'), ('{"best_of": "20"}', 'PT400'), ('{"candidate_count": 8}', 'PT400'), ('{"candidateCount": 8}', 'PT400'), ('{"num_return_sequences": 2}', 'PT400'),
    ('{"top_logprobs": 0}', 'ok'), ('{"top_logprobs": -1}', 'PT400'), ('{"tools": {}}', 'PT400'), ('{"tools": []}', 'ok'),
    ('{"response_format": "json"}', 'PT400'), ('{"response_format": {"type": "json_object"}}', 'ok'), ('{"model": "x"}', 'PT400'), ('{"messages": []}', 'PT400'), ('{"stream": true}', 'PT400'), ('{"stream_options": {}}', 'PT400'),
    ('{"input": "x"}', 'PT400'), ('{"prompt": "x"}', 'PT400'), ('{"stream": null}', 'ok'), ('{"something_new": {"a": [1]}}', 'ok'), ('{"stop": "x", "seed": 7, "user": "u"}', 'ok')) v (params, expected);

-- The other columns
select is(t.try_with(name, value), expected, format('%s %s: %s', name, value, expected))
  from (values
    ('deadline_ms', '1', 'ok'), ('deadline_ms', '0', 'PT400'), ('deadline_ms', '-1', 'PT400'), ('deadline_ms', '86400000', 'ok'), ('deadline_ms', '86400001', 'PT400'), ('deadline_ms', 'null', 'ok'),
    ('run_after', 'now() + interval ''364 days''', 'ok'), ('run_after', 'now() + interval ''367 days''', 'PT400'), ('run_after', '''infinity''', 'PT400'), ('run_after', '''-infinity''', 'ok'),
    ('run_after', '''1970-01-01''', 'ok'), ('run_after', 'null', 'ok'), ('priority', '''high''', 'ok'), ('priority', '''urgent''', 'PT400'), 
    ('metadata', '''{"a": 1}''', 'ok'), ('metadata', '''[]''', 'ok'), ('idempotency_key', '''''', 'PT400'), ('idempotency_key', 'repeat(''x'', 255)', 'ok'), ('idempotency_key', 'repeat(''x'', 256)', 'PT400'),
    ('idempotency_key', 'repeat(''ü'', 255)', 'ok')) v (name, value, expected);
select is(t.try('prompt, model = ''x'', ''mtap/one''', 'mtap_stray'), 'PT401', 'nobody asks for nothing');

-- What the insert fills in
set local session authorization mtap_ann;
insert into ai.generations (prompt) values ('defaults') returning id as g \gset
reset session authorization;
select results_eq(format($$ select kind, status, priority, stream, profile, model, params, attempts::int, last_seq, cost, finished_at from ai.generations where id = %L $$, :'g'),
  $$ values ('chat', 'queued', 'normal', false, 'medium', null::text, '{}'::jsonb, 0, 0, null::numeric, null::timestamptz) $$, 'the defaults of a row');
-- Null is what the column has where it is left out: for every column that must have something.
set local session authorization mtap_ann;
insert into ai.generations (prompt, kind, params, stream, priority, replay) values ('defaults', null, null, null, null, null) returning id as n \gset
insert into ai.generations (prompt, model) values ('a plain one', 'mtap/one') returning id as p \gset
insert into ai.generations (prompt, model, stream, replay) values ('a plain one', 'mtap/one', null, null) returning id as q \gset
select ai.generate('defaults', params => null, stream => null, priority => null, kind => null, replay => null) as f \gset
select ai.generate('defaults', params => null, stream => null, idempotency_key => 'null') as k \gset
select is(ai.generate('defaults', idempotency_key => 'null'), :'k', 'so a key stands for the question either way');
select lives_ok($$ select ai.embed('x', params => null) $$, 'ai.embed() takes it, too');
reset session authorization;
create function t.row(p_id uuid) returns jsonb language sql as $$
  select to_jsonb(g) - '{id,created_at,idempotency_key}'::text[] from ai.generations g where g.id = p_id
$$;
select is(t.row(id), t.row(:'g'), 'null is the default: ' || how) from (values (:'n'::uuid, 'in an insert'), (:'f', 'in ai.generate()'), (:'k', 'with an idempotency key')) v (id, how);
select is(t.row(:'q'), t.row(:'p'), 'null is the default: in a plain insert');
select set_eq($$
  select attname::text from pg_attribute where attrelid = 'ai.generations'::regclass and attnotnull and has_column_privilege('ai_user', attrelid, attnum, 'insert') $$,
  array['kind', 'params', 'stream', 'priority', 'replay'], 'which are all that an app may write and must not be null');
select ok(:'g'::text ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$', 'its id is a UUID of version 7');
select is(t.place(:'g'), 'queue', 'it is queued');
select ok(abs(extract(epoch from clock_timestamp()) * 1000 - ('x' || left(replace(:'g', '-', ''), 12))::bit(48)::bigint) < 600000, 'which begins with the time');
select is((select count(distinct ai.uuid_v7()) from generate_series(1, 10000)), 10000::bigint, 'ten thousand of them differ');
select is_empty($$ select a from (select ai.uuid_v7() as a, lag(clock_timestamp()) over () from generate_series(1, 1000)) s where a is null $$, 'none is null');
select ok((select bool_and(later > earlier) from (select ai.uuid_v7() as earlier, pg_sleep(0.001), ai.uuid_v7() as later from generate_series(1, 20)) s), 'a later one is greater');

-- Many rows in one statement, all or nothing
set local session authorization mtap_ann;
select lives_ok($$ insert into ai.generations (prompt, model, priority) select 'many', 'mtap/one', (array['high', 'normal', 'low'])[1 + n % 3] from generate_series(1, 300) n $$, 'three hundred rows of three priorities');
select throws_ok($$ insert into ai.generations (prompt, model) select case n when 77 then '' else 'broken' end, 'mtap/one' from generate_series(1, 100) n $$, 'PT400', null, 'one bad row of a hundred');
select lives_ok($$ insert into ai.generations (prompt, model) select 'none', 'mtap/one' where false $$, 'no rows at all');
select lives_ok($$ insert into ai.generations (prompt, model) values ('conflict', 'mtap/one') on conflict do nothing $$, 'with ON CONFLICT DO NOTHING');
reset session authorization;
select is((select count(*) from ai.generations where prompt = 'broken'), 0::bigint, 'leave nothing');
select results_eq($$ select l.priority, count(*) from ai.generations g join ai.queue q on q.generation_id = g.id join ai.lanes l on l.id = q.lane_id where g.prompt = 'many' group by 1 order by 1 $$,
                  $$ values ('high', 100::bigint), ('low', 100), ('normal', 100) $$, 'each row is in the lane of its priority');
select is((select count(*) from ai.queue q where not exists (select from ai.active_lanes a where a.lane_id = q.lane_id)), 0::bigint, 'every lane with rows is listed');
select is((select count(*) from ai.generations where prompt = 'conflict'), 1::bigint, 'the row is there');

-- Rows that an operator restores pass as they are, rows that he inserts for somebody are checked
insert into ai.generations (tenant_id, user_id, status, prompt, created_at, finished_at, cost) values (t.alpha(), 'long gone', 'succeeded', '', now() - interval '1 year', now(), 1.5) returning id as old \gset
select is((t.generation(:'old')).user_id, 'long gone', 'a restored row keeps its user');
select is(t.place(:'old'), null, 'and is not queued');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt) values (t.alpha(), 'long gone', 'x') $$, 'PT403', null, 'a new one needs a member');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt) values (t.alpha(), null, 'x') $$, 'PT403', null, 'a tenant without a user is no member');
update ai.members set enabled = false where user_id = 'abe';
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt) values (t.alpha(), 'abe', 'x') $$, 'PT403', null, 'nor is one who is switched off');
select throws_ok($$ insert into ai.generations (prompt) values ('x') $$, 'PT401', null, 'an operator is nobody himself');

-- Errors say what to do, and hold nothing of the prompt
create function t.complaint(p_sql text) returns text language plpgsql as $$
declare
  v_message text; v_detail text; v_hint text; v_context text;
begin
  execute p_sql;
  return 'ok';
exception when others then
  get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
  return concat_ws(' | ', v_message, v_detail, v_hint);
end
$$;
set local session authorization mtap_ann;
select t.complaint(format('insert into ai.generations (prompt, messages, model) values (%L, %L, ''mtap/one'')', 'SECRETPROMPT', '[{"role": "user", "content": "SECRETPROMPT"}]')) as a,
       t.complaint(format('insert into ai.generations (messages) values (%L)', '[{"role": "SECRETPROMPT", "content": 7}]')) as b,
       t.complaint(format('insert into ai.generations (prompt, params) values (%L, %L)', 'SECRETPROMPT', '{"max_tokens": "SECRETPROMPT"}')) as c \gset
reset session authorization;
select unalike(:'a' || :'b' || :'c', '%SECRETPROMPT%', 'no error repeats the input');

-- An admin who names a user asks for that user of the own tenant
set local session authorization mtap_adm;
insert into ai.generations (prompt, user_id) values ('x', 'shared') returning user_id as u \gset
select is(:'u'::text, 'shared', 'a user_id that an admin names is not replaced by the admin''s own');
select throws_ok($$ insert into ai.generations (prompt, user_id) values ('x', 'no such') $$, 'PT403', null, 'nor is one who is no member');
reset session authorization;

-- One statement over more lanes than a transaction could lock
with tenant as (insert into ai.tenants (name) select 'mtap-many-' || n from generate_series(1, 2000) n returning id),
     member as (insert into ai.members (tenant_id, user_id) select id, 'u' from tenant returning tenant_id, user_id)
select count(*) from member \g /dev/null
insert into ai.generations (tenant_id, user_id, prompt) select tenant_id, user_id, 'x' from ai.members where user_id = 'u' \g /dev/null
select is((select count(distinct a.tenant_id) from ai.active_lanes a join ai.members m on m.tenant_id = a.tenant_id and m.user_id = 'u'), 2000::bigint,
          'a statement over 2,000 tenants lists the lanes of all of them');
select cmp_ok((select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid() and classid = 1634300002), '<', 100::bigint,
              'without a lock for each');

select * from finish();
rollback;
