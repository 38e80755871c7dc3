-- Context sources: rows that join a prompt, read as the caller and as nobody else.
begin;
\ir setup/world.sql
select no_plan();

-- An app's table under row-level security: each member sees its own orders, developers those of the tenant.
create schema shop;
grant usage on schema shop to ai_user;
create table shop.orders (id integer primary key, tenant_id uuid, user_id text, item text);
alter table shop.orders enable row level security;
create policy own on shop.orders using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.may('inference:read'))));
grant select on shop.orders to ai_user;
insert into shop.orders values (1, t.alpha(), 'ann', 'ink'), (2, t.alpha(), 'ann', 'wax'), (3, t.alpha(), 'abe', 'gold of abe'), (4, t.beta(), 'bob', 'lead of bob');
create table shop.secrets (text text);
create sequence shop.numbers;
grant usage on sequence shop.numbers to ai_user;
create table shop.log (line text);
grant select, insert, update, delete on shop.log to ai_user;
insert into shop.log values ('kept');

create function shop.write() returns integer language plpgsql volatile as $$ begin insert into shop.log values ('written'); return 1; end $$;
create function shop.unlock() returns integer language plpgsql volatile as $$ begin perform set_config('transaction_read_only', 'off', true); insert into shop.log values ('x'); return 1; end $$;
create function shop.temporary() returns integer language plpgsql volatile as $$ begin create temp table mtap_x as select 1; return 1; end $$;
create function shop.rolled_back() returns integer language plpgsql volatile as $$ begin raise exception 'try again' using errcode = '40001'; end $$;
create function shop.telling() returns integer language plpgsql volatile as $$ begin raise exception 'the secret is wax' using detail = 'wax', hint = 'wax'; end $$;
grant execute on all functions in schema shop to ai_user;

-- A template of one source, and an ask with it as a login role: SQLSTATE, or ok and the context.
create function t.source(p_name text, p_query text, p_tenant uuid default null, p_rows integer default 20, p_bytes integer default 8000) returns void language sql as $$
  insert into ai.context_sources (tenant_id, name, query, max_rows, max_bytes) values (p_tenant, p_name, p_query, p_rows, p_bytes);
  insert into ai.prompt_templates (tenant_id, name, context_sources) values (p_tenant, p_name, array[p_name]);
$$;
create function t.with(p_role text, p_template text, p_sql text default 'insert into ai.generations (prompt, model, template) values (''x'', ''mtap/one'', %L) returning context') returns text language plpgsql as $$
declare
  v_context jsonb;
  v_as      text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute format(p_sql, p_template) into v_context;
    v_as := coalesce(v_context::text, 'null');
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;

-- 1. As the caller
select t.source('orders', 'select o.id, o.item from shop.orders o order by o.id desc') \g /dev/null
select is(t.with(role, 'orders')::jsonb, expected::jsonb, format('%s gathers what it may see', role))
  from (values ('mtap_ann', '{"orders": [{"id": 2, "item": "wax"}, {"id": 1, "item": "ink"}]}'), ('mtap_abe', '{"orders": [{"id": 3, "item": "gold of abe"}]}'),
               ('mtap_bob', '{"orders": [{"id": 4, "item": "lead of bob"}]}'),
               ('mtap_dev', '{"orders": [{"id": 3, "item": "gold of abe"}, {"id": 2, "item": "wax"}, {"id": 1, "item": "ink"}]}')) v (role, expected);
select t.source('me', 'select ai.user_id() as who, ai.tenant_id() as tenant, session_user as login, current_user as role') \g /dev/null
select is(t.with('mtap_ann', 'me')::jsonb -> 'me' -> 0, jsonb_build_object('who', 'ann', 'tenant', t.alpha(), 'login', 'mtap_ann', 'role', 'mtap_ann'), 'the query runs as who asks');
set local session authorization mtap_gateway;
set local role mtap_web;
select set_config('request.jwt.claims', format('{"sub": "ann", "tenant_id": "%s"}', t.alpha()), true) \g /dev/null
insert into ai.generations (prompt, model, template) values ('x', 'mtap/one', 'me') returning context as gathered \gset
reset role;
reset session authorization;
select is(:'gathered'::jsonb #>> '{me,0,who}', 'ann', 'also behind a gateway');
select is(:'gathered'::jsonb #>> '{me,0,role}', 'mtap_web', 'with the rights of the role it has become');
select is(t.with('mtap_ann', 'none'), 'PT404', 'a template that is not there');
select is(t.with('mtap_stray', 'orders'), 'PT401', 'nobody gathers nothing');

-- 2. Nobody else
select is(t.with('mtap_adm', 'orders', format('insert into ai.generations (tenant_id, user_id, prompt, model, template) values (%L, ''ann'', ''x'', ''mtap/one'', %%L) returning context', t.alpha())), 'PT403',
          'an admin who asks for another would give that member the admin''s rows');
select throws_ok(format($$ insert into ai.generations (tenant_id, user_id, prompt, model, template) values (%L, 'ann', 'x', 'mtap/one', 'orders') $$, t.alpha()), 'PT403', null,
                 'an owner who asks for a member would give it everybody''s rows');
create function shop.ask(p_template text) returns jsonb language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  insert into ai.generations (prompt, model, template) values ('x', 'mtap/one', p_template) returning context
$$;
grant execute on function shop.ask(text) to ai_user;
select is(t.with('mtap_ann', 'orders', 'select shop.ask(%L)'), 'PT403', 'inside a definer function the rights would be its owner''s');
create function shop.ask_invoker(p_template text) returns jsonb language sql volatile security invoker set search_path = pg_catalog, pg_temp as $$
  insert into ai.generations (prompt, model, template) values ('x', 'mtap/one', p_template) returning context
$$;
grant execute on function shop.ask_invoker(text) to ai_user;
select is(t.with('mtap_ann', 'orders', 'select shop.ask_invoker(%L)')::jsonb #>> '{orders,0,item}', 'wax', 'inside an invoker function they are the caller''s');
select is(t.with('mtap_ann', 'orders', 'select to_jsonb(ai.generate(''x'', model => ''mtap/one'')) where %L <> ''''') ~ '^"[0-9a-f-]{36}"$', true, 'without a template nothing is gathered');
select is(t.with('mtap_ann', 'orders', 'insert into ai.generations (prompt, model, context) values (''x'', %L, ''{}'') returning context'), '42501', 'an app cannot bring context along');
select is(t.with('mtap_ann', 'orders', 'insert into ai.generations (prompt, model, context_sources) values (''x'', ''mtap/one'', array[%L]) returning context'), '42501', 'nor name sources itself');

-- 3. Tenants
select t.source('betas', 'select 1 as one', t.beta()) \g /dev/null
select is(t.with('mtap_bob', 'betas'), '{"betas": [{"one": 1}]}', 'a tenant''s own source');
insert into ai.prompt_templates (tenant_id, name, context_sources) values (t.alpha(), 'thief', '{betas}');
select is(t.with('mtap_ann', 'thief'), 'PT404', 'another tenant''s source does not exist');
insert into ai.context_sources (tenant_id, name, query) values (t.alpha(), 'orders', 'select ''own'' as whose');
select is(t.with('mtap_ann', 'orders'), '{"orders": [{"whose": "own"}]}', 'one''s own source goes before the shared one');
select is(t.with('mtap_bob', 'orders')::jsonb #>> '{orders,0,item}', 'lead of bob', 'for the others it stays');
delete from ai.context_sources where tenant_id = t.alpha();

-- 4. Who defines
select is(t.with(role, 'x', 'with w as (insert into ai.context_sources (tenant_id, name, query) values (ai.tenant_id(), %L, ''select 1'') returning 1) select to_jsonb(1) from w'), '42501', format('%s defines no source', role))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_adm', 'mtap_stray', 'mtap_worker', 'mtap_monitor']) role;
select is(t.with('mtap_adm', 'x', 'with w as (update ai.context_sources set query = %L returning 1) select to_jsonb(1) from w'), '42501', 'nor changes one');
select is(t.with(role, 'x', 'select to_jsonb(count(*)) from ai.context_sources where %L <> '''''), expected, format('%s sees %s', role, expected))
  from (values ('mtap_ann', '2'), ('mtap_bob', '3'), ('mtap_stray', '0'), ('mtap_worker', '42501'), ('mtap_monitor', '42501')) v (role, expected);
select throws_ok(sql, '23514', null, sql)
  from (values ($$ insert into ai.context_sources (name, query) values ('Bad Name', 'select 1') $$), ($$ insert into ai.context_sources (name, query) values ('x>', 'select 1') $$),
               ($$ insert into ai.context_sources (name, query, max_rows) values ('x', 'select 1', 0) $$),
               ($$ insert into ai.context_sources (name, query, max_rows) values ('x', 'select 1', 1001) $$), ($$ insert into ai.context_sources (name, query, max_bytes) values ('x', 'select 1', 1) $$)) v (sql);

-- 5. One SELECT that writes nothing. What is another thing is refused where it is written.
select throws_ok(format('insert into ai.context_sources (name, query) values (''refused'', %L)', query), 'PT400', null, 'refused: ' || query)
  from unnest(array['select 1; select 2', 'select 1 as a;', 'table shop.log; ', 'delete from shop.log returning *', 'selec 1', 'commit', 'set role postgres', '-- nothing', ' ', '',
                    'with d as (delete from shop.log returning *) select * from d', 'select 1) q; delete from shop.log; select 1 from (select 1', 'select * from shop.log for update']) query;
select throws_ok($$ insert into ai.context_sources (name, query) values ('refused', 'select 1 as a;') $$, 'PT400', 'the query of the context source refused is refused: syntax error at or near ";"',
                 'with the words of the parser');
select throws_ok($$ update ai.context_sources set query = query || ';' where name = 'orders' $$, 'PT400', null, 'or changed');
select lives_ok($$ update ai.context_sources set description = 'Orders.' where name = 'orders' $$, 'what is not changed is not looked at');
select lives_ok($$ insert into ai.context_sources (name, query) values ('later', 'select * from shop.later') $$, 'a table may come later than the query');
select results_eq('select line from shop.log', array['kept'], 'nothing was run');
-- And once more where it is read, for what came before that trigger, or around it.
alter table ai.context_sources disable trigger check_query;
select t.source('q' || row_number() over (), query) from (values
  ('select shop.write()'), ('select shop.unlock()'), ('select shop.temporary()'), ('select nextval(''shop.numbers'')'),
  ('with d as (delete from shop.log returning *) select * from d'), ('delete from shop.log returning *'),
  ('select 1) q; delete from shop.log; select 1 from (select 1'), ('select 1; select 2'), ('select 1;'), ('commit'), ('set role postgres'),
  ('select * from shop.log for update'), ('selec 1'), ('select * from shop.none'), ('select 1/0'), ('select * from orders'), ('select shop.telling()'), ('table shop.log; '), ('-- nothing'),
  ('select pg_advisory_unlock_all() from shop.write()')) v (query) \g /dev/null
alter table ai.context_sources enable trigger check_query;
select is(t.with('mtap_ann', 'q' || n), 'PT500', format('refused: %s', (select query from ai.context_sources where name = 'q' || n))) from generate_series(1, 20) n;
select results_eq('select line from shop.log', array['kept'], 'nothing was written');
select is((select last_value::text || is_called from shop.numbers), '1false', 'no number was taken');
select t.source('secret', 'select * from shop.secrets') \g /dev/null
select is(t.with('mtap_ann', 'secret'), 'PT403', 'what the caller may not read is told apart');
select t.source('retry', 'select shop.rolled_back()') \g /dev/null
select is(t.with('mtap_ann', 'retry'), '40001', 'what a retry mends keeps its SQLSTATE');
select t.source('comment', 'select 1 as one -- and a remark') \g /dev/null
select is(t.with('mtap_ann', 'comment'), '{"comment": [{"one": 1}]}', 'a remark at the end swallows nothing');
select t.source('cte', 'with o as (select 1 as a) select * from o union all select 2 order by a desc') \g /dev/null
select is(t.with('mtap_ann', 'cte'), '{"cte": [{"a": 2}, {"a": 1}]}', 'a query may have parts, and its order is kept');
select t.source('duplicate', 'select 1 as a, 2 as a') \g /dev/null
select is(t.with('mtap_ann', 'duplicate'), '{"duplicate": [{"a": 2}]}', 'columns of one name: the last');
select t.source('scalar', 'select o.item from shop.orders o where o.id = 1') \g /dev/null
select t.source('nothing', 'select 1 as a where false') \g /dev/null
select is(t.with('mtap_ann', 'nothing'), '{"nothing": []}', 'no rows are an empty list');
-- After it the transaction writes as before.
set local session authorization mtap_ann;
insert into ai.generations (prompt, model, template) values ('x', 'mtap/one', 'orders'), ('y', 'mtap/one', 'orders');
savepoint s;
insert into ai.generations (prompt, model, template) values ('x', 'mtap/one', 'orders');
insert into shop.log values ('after');
rollback to s;
insert into shop.log values ('after');
select current_setting('transaction_read_only') as read_only \gset
reset session authorization;
select is(:'read_only'::text, 'off', 'the transaction is read-only no longer than the query runs');
-- The error names the source and nothing of its text or of what it read.
create function t.said(p_role text, p_template text) returns text language plpgsql as $$
declare
  v_message text;
  v_detail  text;
  v_hint    text;
  v_context text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    insert into ai.generations (prompt, model, template) values ('x', 'mtap/one', p_template);
  exception when others then
    get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint, v_context = pg_exception_context;
  end;
  execute 'reset session authorization';
  return concat_ws('|', v_message, v_detail, v_hint, v_context);
end
$$;
select alike(t.said('mtap_ann', 'q17'), 'the context source q17 cannot be read|SQLSTATE P0001.|%', 'the message names the source');
select unalike(t.said('mtap_ann', 'q17'), '%wax%', 'and tells nothing of what the query raised');
select unalike(t.said('mtap_ann', 'q14'), '%shop%', 'nor of its text');

-- 6. Limits
select t.source('many', 'select g from generate_series(1, 100) g', null, 3) \g /dev/null
select is(t.with('mtap_ann', 'many'), '{"many": [{"g": 1}, {"g": 2}, {"g": 3}]}', 'max_rows');
-- {"g": "xxxx"} are 13 bytes, and 2 between rows.
select t.source('bytes' || bytes, 'select repeat(''x'', 4) as g from generate_series(1, 10)', null, 20, bytes) from unnest(array[14, 15, 29, 30, 31, 149, 150]) bytes \g /dev/null
select is(jsonb_array_length(t.with('mtap_ann', 'bytes' || bytes)::jsonb -> ('bytes' || bytes)), rows, format('max_bytes %s: %s rows of 15', bytes, rows))
  from (values (14, 0), (15, 1), (29, 1), (30, 2), (31, 2), (149, 9), (150, 10)) v (bytes, rows);
insert into ai.prompt_templates (name, context_sources) values ('two', '{scalar,nothing,scalar}');
select is(t.with('mtap_ann', 'two'), '{"scalar": [{"item": "ink"}], "nothing": []}', 'several sources');

-- 7. Each row of a statement reads for itself.
set local session authorization mtap_ann;
with asked as (insert into ai.generations (prompt, model, template) select 'row ' || g, 'mtap/one', 'orders' from generate_series(1, 5) g returning context)
select count(*) filter (where jsonb_array_length(context -> 'orders') = 2) as gathered from asked \gset
reset session authorization;
select is(:'gathered'::text, '5', 'insert … select');
-- A restore brings its own.
insert into ai.generations (tenant_id, user_id, prompt, model, status, context_sources, context, finished_at) values (t.alpha(), 'ann', 'x', 'mtap/one', 'succeeded', '{none}', '{"a": 1}', now())
returning context as restored \gset
select is(:'restored'::text, '{"a": 1}', 'what is restored is not gathered again');
insert into ai.generations (tenant_id, user_id, prompt, model, template, context) values (t.alpha(), 'ann', 'x', 'mtap/one', 'orders', '{"a": 2}') returning context as restored \gset
select is(:'restored'::text, '{"a": 2}', 'nor is what still waits');

-- 8. Into the prompt
select id from ai.generations where context ? 'scalar' and user_id = 'ann' limit 1 \gset
select matches((select a.messages::text from ai.assemble_prompt(t.alpha(), :'id', null, null) a), '<rows1_[0-9a-f]{12}>\\nscalar\\n\{\\"item\\": \\"ink\\"\}\\n</rows1_', 'rows join the prompt');

select * from finish();
rollback;
