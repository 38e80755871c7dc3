-- The audit log: each change leaves one right entry and no secret, nobody else's is seen, and whatever is done to it is found.
begin;
\ir setup/world.sql
select no_plan();
-- Entries are chained at once, not when the transaction commits, which it never does here.
set constraints all immediate;

create function t.as_tool(p jsonb) returns jsonb language sql as $$ select p $$;

-- 1. Every table is either audited or content and state; a new one must be named as one or the other.
create table t.not_audited (name text);
insert into t.not_audited values
  -- content, and what belongs to it
  ('generations'), ('llm_calls'), ('stream_events'), ('conversations'), ('messages'), ('unrecorded_answers'), ('batches'), ('redactions'), ('idempotency_keys'), ('tool_calls'),
  ('collections'), ('documents'), ('chunks'), ('chunk_vectors'), ('staged_vectors'), ('cache_entries'), ('cache_questions'), ('cache_spaces'), ('sealed_calls'), ('artifacts'), ('artifact_parts'), ('artifact_objects'),
  ('vectorizers'), ('vectorizer_versions'), ('vectorized_rows'), ('row_changes'), ('vectorizer_problems'),
  -- what workers and sessions write while they work
  ('lanes'), ('active_lanes'), ('parked_lanes'), ('queue'), ('delayed'), ('waiting'), ('prepared'), ('policies_in_use'), ('known_ways'), ('policy_changes'), ('workers'), ('leases'), ('cancellations'), ('leaders'), ('unshared'),
  ('counters'), ('counter_entries'), ('provider_batches'), ('batched_requests'), ('unsettled'), ('embedding_jobs'), ('model_stats'), ('breakers'), ('exhausted_accounts'), ('sessions'), ('api_key_uses'),
  ('call_openings'), ('maintenance'), ('forgotten'), ('forgotten_left'),
  -- locks, and records of their own
  ('counter_making'), ('embedding_batching'), ('binding_turns'), ('migrations'), ('audit_log'), ('audit_heads'), ('audit_pending');
select bag_eq($$ select relname::text from pg_class where relnamespace = 'ai'::regnamespace and relkind in ('r', 'p') and not relispartition $$,
  $$ select name from ai.audited_tables() union all select name from t.not_audited $$, 'each table is audited, or named here as content or state');
select is_empty($$ select c.relname, a.name
                     from pg_class c cross join (values ('audited', 29), ('audited_whole', 34)) a (name, type)
                     left join pg_trigger g on g.tgrelid = c.oid and g.tgname = a.name and g.tgtype = a.type and g.tgenabled = 'O'
                    where c.relnamespace = 'ai'::regnamespace and c.relname in (select name from ai.audited_tables()) and g.oid is null $$,
  'each audited table has its triggers, of each row and against truncating');
select is_empty($$ select t.name, a.attname from ai.audited_tables() t join pg_attribute a on a.attrelid = to_regclass('ai.' || t.name) and a.attnum > 0 and a.atttypid = 'bytea'::regtype
                    where not exists (select from pg_trigger g where g.tgrelid = a.attrelid and g.tgname = 'audited' and (string_to_array(encode(g.tgargs, 'escape'), '\000'))[3]::text[] @> array[a.attname::text]) $$,
  'no bytes of an audited table are on the log');

-- 2. Each change leaves one entry: in the right chain, with the columns that changed, by whom.
create table t.changes (at serial, sql text, chain uuid, action text, object text, before jsonb, after jsonb);
insert into t.changes (sql, chain, action, object, before, after)
select sql, case chain when 'alpha' then t.alpha() when 'gamma' then '0c000000-0000-7000-8000-000000000001' end, action, object, before::jsonb, after::jsonb
  from (values
  ($$ insert into ai.tenants (id, name) values ('0c000000-0000-7000-8000-000000000001', 'mtap gamma') $$, 'gamma', 'insert', 'tenants', null, '{"name": "mtap gamma", "enabled": true}'),
  ($$ update ai.tenants set enabled = false where name = 'mtap gamma' $$, 'gamma', 'update', 'tenants', '{"enabled": true}', '{"enabled": false}'),
  ($$ insert into ai.members (tenant_id, user_id) values (t.alpha(), 'eve') $$, 'alpha', 'insert', 'members', null, '{"user_id": "eve", "role": "user"}'),
  ($$ update ai.members set role = 'admin' where user_id = 'eve' $$, 'alpha', 'update', 'members', '{"role": "user"}', '{"role": "admin"}'),
  ($$ insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_eve', t.alpha(), 'eve') $$, 'alpha', 'insert', 'role_bindings', null, '{"role_name": "mtap_eve", "user_id": "eve"}'),
  ($$ delete from ai.role_bindings where role_name = 'mtap_eve' $$, 'alpha', 'delete', 'role_bindings', '{"user_id": "eve"}', null),
  ($$ insert into ai.authenticators (role_name) values ('mtap_web') $$, null, 'insert', 'authenticators', null, '{"role_name": "mtap_web"}'),
  ($$ delete from ai.authenticators where role_name = 'mtap_web' $$, null, 'delete', 'authenticators', '{"role_name": "mtap_web"}', null),
  ($$ insert into ai.permissions values ('test:only', 'x') $$, null, 'insert', 'permissions', null, '{"name": "test:only"}'),
  ($$ insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'auditor', '{audit:read}') $$, 'alpha', 'insert', 'roles', null, '{"permissions": ["audit:read"]}'),
  ($$ update ai.roles set permissions = '{*}' where name = 'auditor' $$, 'alpha', 'update', 'roles', '{"permissions": ["audit:read"]}', '{"permissions": ["*"]}'),
  ($$ update ai.roles set permissions = permissions || '{audit:read}' where tenant_id is null and name = 'user' $$, null, 'update', 'roles',
   null, null),
  ($$ update ai.roles set permissions = array_remove(permissions, 'audit:read') where tenant_id is null and name = 'user' $$, null, 'update', 'roles', null, null),
  ($$ insert into ai.api_keys (id, tenant_id, user_id, name, prefix, hash) values ('0d000000-0000-7000-8000-000000000001', t.alpha(), 'eve', 'k', 'mrt_x', sha256('MARKER')) $$,
   'alpha', 'insert', 'api_keys', null, '{"name": "k", "prefix": "mrt_x", "hash": {"omitted": true}}'),
  ($$ update ai.api_keys set revoked_at = 'epoch', hash = sha256('MARKER2') where name = 'k' $$, 'alpha', 'update', 'api_keys', '{"revoked_at": null, "hash": {"omitted": true}}',
   '{"revoked_at": "1970-01-01T00:00:00+00:00", "hash": {"omitted": true}}'),
  ($$ insert into ai.data_keys (id, tenant_id, master_key_id, wrapped) values ('0d000000-0000-7000-8000-000000000002', t.alpha(), 'm1', convert_to(rpad('MARKER', 60), 'UTF8')) $$,
   'alpha', 'insert', 'data_keys', null, '{"master_key_id": "m1", "wrapped": {"omitted": true}}'),
  ($$ insert into ai.secrets (tenant_id, name, version, sealed, data_key_id) values (t.alpha(), 'X_API_KEY', 1, convert_to(rpad('MARKER', 60), 'UTF8'), '0d000000-0000-7000-8000-000000000002') $$,
   'alpha', 'insert', 'secrets', null, '{"name": "X_API_KEY", "sealed": {"omitted": true}}'),
  ($$ update ai.secrets set sealed = null, replaced_at = 'epoch' where name = 'X_API_KEY' $$, 'alpha', 'update', 'secrets', '{"sealed": {"omitted": true}, "replaced_at": null}',
   '{"sealed": null, "replaced_at": "1970-01-01T00:00:00+00:00"}'),
  ($$ insert into ai.capture_policies (tenant_id, mode) values (t.alpha(), 'all') $$, 'alpha', 'insert', 'capture_policies', null, '{"mode": "all"}'),
  ($$ insert into ai.capture_policies (mode) values ('off') $$, null, 'insert', 'capture_policies', null, '{"mode": "off"}'),
  ($$ insert into ai.artifact_policies (tenant_id, max_bytes) values (t.alpha(), 1000) $$, 'alpha', 'insert', 'artifact_policies', null, '{"max_bytes": 1000}'),
  ($$ insert into ai.artifact_stores (name, endpoint, bucket, secret) values ('s', 'https://s3.test', 'files', 'S3_KEY') $$, null, 'insert', 'artifact_stores', null, '{"bucket": "files"}'),
  ($$ insert into ai.guardrails (tenant_id, name, detector, options) values (t.alpha(), 'g', 'terms', '{"terms": ["a"]}') $$, 'alpha', 'insert', 'guardrails', null,
   '{"options": {"terms": ["a"]}}'),
  ($$ update ai.guardrails set options = '{"terms": ["b"]}' where name = 'g' $$, 'alpha', 'update', 'guardrails', '{"options": {"terms": ["a"]}}', '{"options": {"terms": ["b"]}}'),
  ($$ insert into ai.limits (metric, period, amount) values ('requests', 'day', 1) $$, null, 'insert', 'limits', null, '{"amount": 1, "metric": "requests"}'),
  ($$ update ai.limits set amount = 2, soft = true $$, null, 'update', 'limits', '{"amount": 1, "soft": false}', '{"amount": 2, "soft": true}'),
  ($$ delete from ai.limits $$, null, 'delete', 'limits', '{"amount": 2, "soft": true}', null),
  ($$ insert into ai.credits (tenant_id, amount, note) values (t.alpha(), 0.10, 'invoice') $$, 'alpha', 'insert', 'credits', null, '{"amount": 0.10, "note": "invoice"}'),
  ($$ insert into ai.prompt_cache_policies (tenant_id, keep) values (t.alpha(), 'long') $$, 'alpha', 'insert', 'prompt_cache_policies', null, '{"keep": "long"}'),
  ($$ insert into ai.cache_policies (tenant_id) values (t.alpha()) $$, 'alpha', 'insert', 'cache_policies', null, '{"ttl": "1 day"}'),
  ($$ insert into ai.providers (name, dialect, base_url, secret, headers, options) values ('mtap-audited', 'openai', 'https://user:MARKER@audited.test/v1?key=MARKER', 'X_API_KEY', '{"authorization": "MARKER"}',
      '{"nested": [{"my_api_key": "MARKER", "url": "http://u:MARKER@h.test"}], "max_tokens": 3}') $$, null, 'insert', 'providers', null,
   '{"secret": "X_API_KEY", "headers": {"omitted": true}, "base_url": "https://…@audited.test/v1?…", "options": {"nested": [{"my_api_key": {"omitted": true}, "url": "http://…@h.test"}], "max_tokens": 3}}'),
  ($$ update ai.providers set headers = '{"x": "MARKER"}' where name = 'mtap-audited' $$, null, 'update', 'providers', '{"headers": {"omitted": true}}', '{"headers": {"omitted": true}}'),
  ($$ update ai.providers set base_url = 'https://MARKER@elsewhere.test' where name = 'mtap-audited' $$, null, 'update', 'providers', '{"base_url": "https://…@audited.test/v1?…"}',
   '{"base_url": "https://…@elsewhere.test"}'),
  ($$ insert into ai.provider_accounts (provider_id, position, secret) select id, 1, 'Y_API_KEY' from ai.providers where name = 'mtap-audited' $$, null, 'insert', 'provider_accounts', null,
   '{"secret": "Y_API_KEY"}'),
  ($$ delete from ai.provider_accounts $$, null, 'delete', 'provider_accounts', '{"secret": "Y_API_KEY"}', null),
  ($$ insert into ai.providers (tenant_id, name, dialect, base_url) values (t.alpha(), 'mtap-own', 'openai', 'https://own.test') $$, 'alpha', 'insert', 'providers', null, '{"name": "mtap-own"}'),
  ($$ insert into ai.models (tenant_id, provider_id, name, wire_name) select t.alpha(), id, 'mtap/own', 'own' from ai.providers where name = 'mtap-own' $$, 'alpha', 'insert', 'models', null, '{"name": "mtap/own"}'),
  ($$ insert into ai.prices (model_id, rates) select id, '{"input": 1, "output": 1}' from ai.models where name = 'mtap/own' $$, 'alpha', 'insert', 'prices', null, '{"rates": {"input": 1, "output": 1}, "valid_from": "-infinity"}'),
  ($$ insert into ai.prices (model_id, rates) select id, '{"input": 1, "output": 1}' from ai.models where name = 'mtap/unpriced' $$, null, 'insert', 'prices', null, '{"rates": {"input": 1, "output": 1}}'),
  ($$ insert into ai.profiles (tenant_id, name) values (t.alpha(), 'p') $$, 'alpha', 'insert', 'profiles', null, '{"name": "p"}'),
  ($$ insert into ai.profile_rules (tenant_id, position, profile) values (t.alpha(), 1, 'p') $$, 'alpha', 'insert', 'profile_rules', null, '{"position": 1}'),
  ($$ insert into ai.routes (tenant_id, profile, position, model_id) select t.alpha(), 'p', 1, id from ai.models where name = 'mtap/own' $$, 'alpha', 'insert', 'routes', null, '{"profile": "p"}'),
  ($$ update ai.routes set enabled = false where tenant_id = t.alpha() and profile = 'p' $$, 'alpha', 'update', 'routes', '{"enabled": true}', '{"enabled": false}'),
  ($$ update ai.breaker_settings set threshold = 6 where scope = 'model' and class = 'slow' $$, null, 'update', 'breaker_settings', '{"threshold": 5}', '{"threshold": 6}'),
  ($$ update ai.retry_rules set action = 'fail' where signal = 'connect' and action <> 'fail' and id = (select min(id) from ai.retry_rules where signal = 'connect') $$, null, 'update', 'retry_rules',
   (select jsonb_build_object('action', action) from ai.retry_rules where signal = 'connect' order by id limit 1)::text, '{"action": "fail"}'),
  ($$ insert into ai.prompt_templates (tenant_id, name, version, system) values (t.alpha(), 'mtap', 1, repeat('x', 10000)) $$, 'alpha', 'insert', 'prompt_templates', null,
   jsonb_build_object('name', 'mtap', 'system', jsonb_build_object('bytes', 10000, 'sha256', encode(sha256(convert_to(repeat('x', 10000), 'UTF8')), 'hex')))::text),
  ($$ update ai.prompt_templates set enabled = false where name = 'mtap' $$, 'alpha', 'update', 'prompt_templates', '{"enabled": true}', '{"enabled": false}'),
  ($$ insert into ai.context_sources (tenant_id, name, query) values (t.alpha(), 'mtap', 'select 1 as x') $$, 'alpha', 'insert', 'context_sources', null, '{"query": "select 1 as x"}'),
  ($$ insert into ai.tools (tenant_id, name, description, function) values (t.alpha(), 'mtap', 'x', 't.as_tool') $$, 'alpha', 'insert', 'tools', null, '{"function": "t.as_tool"}'),
  ($$ update ai.settings set lease_ms = 20000 $$, null, 'update', 'settings', '{"lease_ms": 15000}', '{"lease_ms": 20000}'),
  ($$ update ai.partitioning set keep = '8 days' where table_name = 'stream_events' $$, null, 'update', 'partitioning', '{"keep": "7 days"}', '{"keep": "8 days"}'),
  ($$ update ai.realtime_key set key = sha256('MARKER') $$, null, 'update', 'realtime_key', '{"key": {"omitted": true}}', '{"key": {"omitted": true}}')) v (sql, chain, action, object, before, after);

create table t.since (chain uuid, seq bigint);
create function t.changed(p_sql text) returns setof ai.audit_log language plpgsql as $$
begin
  delete from t.since;
  insert into t.since select h.chain, h.seq from ai.audit_heads h;
  execute p_sql;
  return query select l.* from ai.audit_log l left join t.since s on s.chain = l.chain where l.seq > coalesce(s.seq, 0) order by l.chain, l.seq;
end
$$;
create table t.seen as select c.at as change, c.sql, l.* from t.changes c, ai.audit_log l where false;
do $$
declare
  v_one record;
begin
  for v_one in select * from t.changes order by at loop
    insert into t.seen select v_one.at, v_one.sql, l.* from t.changed(v_one.sql) l;
  end loop;
end
$$;
select is((select string_agg(concat_ws(' ', s.action, s.object, s.tenant_id), ', ') from t.seen s where s.change = c.at), concat_ws(' ', c.action, c.object, c.chain), format('one entry:%s', c.sql))
  from t.changes c order by c.at;
select is((select s.before from t.seen s where s.change = c.at), c.before, format('before:%s', c.sql)) from t.changes c where c.action = 'update' and c.before is not null order by c.at;
select is((select s.after from t.seen s where s.change = c.at), c.after, format('after:%s', c.sql)) from t.changes c where c.action = 'update' and c.before is not null order by c.at;
select ok((select s.before @> c.before and s.after is null from t.seen s where s.change = c.at), format('what was deleted:%s', c.sql)) from t.changes c where c.action = 'delete' order by c.at;
select ok((select s.after @> c.after and s.before is null from t.seen s where s.change = c.at), format('what was inserted:%s', c.sql)) from t.changes c where c.action = 'insert' order by c.at;
select is_empty($$ select a.name from ai.audited_tables() a where not exists (select from t.seen s where s.object = a.name) $$, 'each audited table was changed here');
select is_empty($$ select * from t.seen where (to_jsonb(seen) - 'sql')::text ~ concat_ws('|', 'MARKER', encode(sha256('MARKER'), 'hex'), encode('MARKER', 'hex')) $$,
  'no key, no hash of one and nothing sealed is on the log');
select bag_eq($$ select sql from t.seen where key is null or key = '{}' $$, array[]::text[], 'each entry names its row');
select results_eq($$ select key from t.seen where object = 'routes' limit 1 $$, format($$ values (jsonb_build_object('tenant_id', %L, 'profile', 'p', 'kind', 'chat', 'position', 1)) $$, t.alpha()),
  'by the columns that make it unique');
select is((select count(*) from t.changed($$ update ai.settings set lease_ms = lease_ms $$)), 0::bigint, 'what changes nothing leaves nothing');
select is((select count(*) from t.changed($$ update ai.role_bindings set member_role = member_role, member_enabled = not member_enabled $$)), 0::bigint, 'copies that are kept by triggers leave nothing');
select results_eq($$ select action, tenant_id from t.changed($q$ insert into ai.prices (model_id, rates, valid_from) select id, '{"input": 2, "output": 1}', now() from ai.models where name = 'mtap/own' $q$) order by seq $$,
  format($$ values ('update', %1$L::uuid), ('insert', %1$L) $$, t.alpha()), 'a new price is told, and the end of the one before');
select results_eq($$ select tenant_id, action from t.changed($q$ update ai.models set tenant_id = t.beta() where name = 'mtap/own' $q$) $$,
  format($$ values (%L::uuid, 'update'), (%L, 'update') $$, t.alpha(), t.beta()), 'what moves from one tenant to another is told to both');
select results_eq($$ select count(*), count(distinct key), max(seq) - min(seq) from t.changed($q$ insert into ai.limits (tenant_id, metric, period, amount) select t.alpha(), 'requests', 'day', n from generate_series(1, 50) n $q$) $$,
  $$ values (50::bigint, 50::bigint, 49::bigint) $$, 'a statement that inserts fifty rows leaves fifty entries');
set local client_min_messages = warning;  -- of what it would cascade to
select throws_ok(format('truncate ai.%I cascade', name), 'PT409', null, format('ai.%I is not truncated', name)) from ai.audited_tables() order by name;
select results_eq($$ select action, object, key, before, after from t.changed($q$ select ai.audit(t.alpha(), 'open', 'sealed_calls', '{"generation_id": 1}', null, null) $q$) $$,
  $$ values ('open', 'sealed_calls', '{"generation_id": 1}'::jsonb, null::jsonb, null::jsonb) $$, 'an act that changes no row');

-- 3. Who did it.
create function t.changed_by(p_role text, p_sql text) returns setof ai.audit_log language plpgsql as $$
begin
  return query select * from t.changed(format('select t.as_role(%L, %L)', p_role, p_sql));
end
$$;
select results_eq($$ select login, user_tenant_id, user_id, source, tenant_id from t.changed_by('mtap_adm', 'update ai.limits set amount = 100 where amount = 50') $$,
  $$ select 'x', null::uuid, 'x', 'x', null::uuid where false $$, 'what the operator set is not changed by an admin, and leaves nothing');
select results_eq($$ select login, user_tenant_id, user_id, source, api_key_id, tenant_id, after ->> 'metric' from t.changed_by('mtap_adm', $q$ insert into ai.limits (metric, period, amount) values ('requests', 'day', 5) $q$) $$,
  format($$ values ('mtap_adm', %1$L::uuid, 'adm', 'binding', null::uuid, %1$L::uuid, 'requests') $$, t.alpha()), 'a member is named');
select results_eq(format($$ select login, user_id, user_tenant_id, tenant_id from t.changed(%L) $$, 'update ai.limits set amount = 6 where not operator'),
  format($$ values (%L, null::text, null::uuid, %L::uuid) $$, session_user, t.alpha()), 'an operator is named by its login role');
insert into ai.role_bindings (role_name, tenant_id, user_id) values (session_user, t.beta(), 'bob');
select results_eq(format($$ select login, user_id, user_tenant_id, tenant_id from t.changed(%L) $$, 'update ai.limits set amount = 7 where not operator'),
  format($$ values (%L, null::text, null::uuid, %L::uuid) $$, session_user, t.alpha()), 'a member of beta is not told in the chain of alpha');
select results_eq(format($$ select login, user_id, user_tenant_id, tenant_id from t.changed(%L) $$, 'update ai.settings set lease_ms = 21000'),
  format($$ values (%L, 'bob', %L::uuid, null::uuid) $$, session_user, t.beta()), 'but in the operator''s');
delete from ai.role_bindings where role_name = session_user;

-- 4. Who reads it: a tenant's own chain, with the permission; nobody else, and nobody writes.
insert into ai.members (tenant_id, user_id, role) values (t.beta(), 'bea', 'admin');
create role mtap_bea login;
grant ai_admin to mtap_bea;
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_bea', t.beta(), 'bea');
select is(t.as_role(role, sql), expected, format('%s: %s: %s', role, sql, expected))
  from (values ('mtap_adm', 'ok ' || (select count(*) from ai.audit_log where tenant_id = t.alpha())), ('mtap_bea', 'ok ' || (select count(*) from ai.audit_log where tenant_id = t.beta())),
               ('mtap_dev', 'ok 0'), ('mtap_ann', 'ok 0'), ('mtap_bob', 'ok 0'), ('mtap_stray', 'ok 0'), ('mtap_worker', '42501'), ('mtap_monitor', '42501'), ('mtap_public', '42501')) v (role, expected)
 cross join (values ('select from ai.audit_log')) s (sql);
select is(t.as_role(role, sql), expected, format('%s: %s: %s', role, sql, expected))
  from (values ('mtap_adm', 'ok 0', 'ok 1'), ('mtap_bea', 'ok 0', 'ok 1'), ('mtap_dev', 'PT403', 'PT403'), ('mtap_ann', 'PT403', 'PT403'), ('mtap_stray', 'PT401', 'PT401'),
               ('mtap_worker', '42501', '42501'), ('mtap_monitor', '42501', '42501'), ('mtap_public', '42501', '42501')) v (role, verify, head)
 cross join lateral (values ('select * from ai.audit_verify()', v.verify), ('select * from ai.audit_head()', v.head)) s (sql, expected);
select is(t.as_role('mtap_adm', format(sql, t.beta())), 'PT403', sql)
  from (values ('select * from ai.audit_verify(%L)'), ('select * from ai.audit_head(%L)')) v (sql);
select is(t.as_role('mtap_adm', 'select * from ai.audit_verify(''00000000-0000-0000-0000-000000000000'')'), 'PT403', 'the operator''s chain is the operator''s');
select is(t.as_role('mtap_adm', sql), '42501', sql)
  from (values ('delete from ai.audit_log'), ('update ai.audit_log set action = ''x'''), ('insert into ai.audit_log (seq) values (1)'), ('truncate ai.audit_log'), ('update ai.audit_heads set seq = 0'),
               ('select from ai.audit_pending'), ('insert into ai.audit_pending (action) values (1)'), ('select ai.audit(null, ''x'', ''y'', null, null, null)'), ('select ai.append_pending(true)')) v (sql);
select throws_ok(sql, 'PT403', null, 'the owner, too: ' || sql)
  from (values ('delete from ai.audit_log'), ('update ai.audit_log set action = ''x'''), ('insert into ai.audit_log (seq) values (1)'), ('truncate ai.audit_log'), ('update ai.audit_heads set seq = 0'),
               ('delete from ai.audit_heads'), ('truncate ai.audit_heads'), ('insert into ai.audit_heads (seq) values (0)'), ('truncate ai.audit_pending')) v (sql);

-- 5. Whatever is done to it is found.
create table t.anchor as select tenant_id, seq, hash, chain from ai.audit_head();
select is_empty('select * from ai.audit_verify()', 'all is well');
select is_empty(format('select * from ai.audit_verify(%L, %s, %L)', chain, seq, hash), 'with every anchor') from t.anchor;
create function t.found(p_sql text, p_verify text default 'ai.audit_verify()') returns text language plpgsql as $$
declare
  v_found text;
begin
  set local session_replication_role = replica;
  execute p_sql;
  set local session_replication_role = origin;
  execute format('select string_agg(concat_ws('' '', case tenant_id when t.alpha() then ''alpha'' when t.beta() then ''beta'' else ''operator'' end, seq, problem), '', '' order by tenant_id, seq, problem) from %s', p_verify) into v_found;
  raise exception 'undone' using detail = coalesce(v_found, '');
exception when raise_exception then
  get stacked diagnostics v_found = pg_exception_detail;
  return v_found;
end
$$;
select is(t.found(format('update ai.audit_log set %I = %s where chain = t.alpha() and seq = 5', attname, other)), 'alpha 5 changed' || rest, format('a changed %s is found', attname))
  from pg_attribute
 cross join lateral (select case attname when 'prev_hash' then ', alpha 5 unlinked' when 'hash' then ', alpha 6 unlinked' else '' end,
                            case atttypid::regtype::text when 'text' then format('coalesce(%I || ''x'', ''x'')', attname) when 'uuid' then 'gen_random_uuid()'
                              when 'jsonb' then format('coalesce(%I || ''{"x": 1}'', ''{}'')', attname)
                              when 'timestamp with time zone' then 'at + interval ''1 us''' when 'bytea' then format('set_byte(%1$I, 31, get_byte(%1$I, 31) # 1)', attname) end) v (rest, other)
 where attrelid = 'ai.audit_log'::regclass and attnum > 0 and attname not in ('tenant_id', 'seq', 'chain') order by attnum;
select is(t.found('update ai.audit_log set key = null where chain = t.alpha() and seq = 5'), 'alpha 5 changed', 'what is taken out is found');
select is(t.found('update ai.audit_log set user_id = source, source = user_id where chain = t.alpha() and seq = (select max(seq) from ai.audit_log where chain = t.alpha() and user_id is not null)') ~ '^alpha \d+ changed$', true,
  'values in each other''s place are found');
select is(t.found('update ai.audit_log set login = login || action, action = '''' where chain = t.alpha() and seq = 5'), 'alpha 5 changed', 'and one that ate the next');
select is(t.found('delete from ai.audit_log where chain = t.alpha() and seq in (4, 5)'), 'alpha 4 missing', 'entries removed from the middle');
select is(t.found('delete from ai.audit_log where chain = t.alpha() and seq < 3'), 'alpha 1 missing', 'from the beginning');
select is(t.found('delete from ai.audit_log where chain = t.alpha() and seq >= (select seq from ai.audit_heads where chain = t.alpha())'),
  format('alpha %s cut', (select seq from ai.audit_heads where chain = t.alpha())), 'from the end');
select is(t.found('delete from ai.audit_log where chain = t.alpha()'), 'alpha 1 cut', 'all of them');
select is(t.found('update ai.audit_log set seq = 1000000 - seq where chain = t.alpha() and seq in (4, 5); update ai.audit_log set seq = 1000000 - seq + case when seq = 999995 then -1 else 1 end where chain = t.alpha() and seq > 999990'),
  'alpha 4 changed, alpha 4 unlinked, alpha 5 changed, alpha 5 unlinked, alpha 6 unlinked', 'two in each other''s place');
select is(t.found('update ai.audit_log set tenant_id = t.alpha(), seq = (select seq + 1 from ai.audit_heads where chain = t.alpha()) where chain = t.beta() and seq = 2; update ai.audit_heads h set seq = l.seq, hash = l.hash from ai.audit_log l where h.chain = t.alpha() and l.chain = h.chain and l.seq = h.seq + 1'),
  format('alpha %1$s changed, alpha %1$s unlinked, beta 2 missing', (select seq + 1 from ai.audit_heads where chain = t.alpha())), 'one of another tenant''s');
select is(t.found('insert into ai.audit_log (tenant_id, seq, at, login, action, object, prev_hash, hash) select h.tenant_id, h.seq + 1, now(), ''forged'', ''x'', ''y'', h.hash,
   ai.audit_hash(h.hash, h.tenant_id, h.seq + 1, now(), ''forged'', null, null, null, null, ''x'', ''y'', null, null, null) from ai.audit_heads h where h.chain = t.alpha()'),
  format('alpha %s ahead', (select seq + 1 from ai.audit_heads where chain = t.alpha())), 'a forged one at the end, with the right hash');
select is(t.found('update ai.audit_heads set hash = sha256(''x'') where chain = t.alpha()'), format('alpha %s ahead', (select seq from ai.audit_heads where chain = t.alpha())), 'a changed head');
select is(t.found('delete from ai.audit_heads where chain = t.alpha()'), 'alpha 1 headless', 'a removed head');
select is(t.found($$ update ai.audit_log l set action = 'y' where chain = t.alpha() and seq = 5;
                     update ai.audit_log set hash = ai.audit_hash(prev_hash, tenant_id, seq, at, login, user_tenant_id, user_id, source, api_key_id, action, object, key, before, after) where chain = t.alpha() and seq = 5 $$),
  'alpha 6 unlinked', 'a changed entry with its hash made anew');

-- Everything made anew, head included: sound in itself, and found by who kept a head.
create function t.rewrite() returns void language plpgsql as $$
declare
  v_row  record;
  v_prev bytea := decode(repeat('00', 32), 'hex');
begin
  for v_row in select * from ai.audit_log where chain = t.alpha() order by seq loop
    update ai.audit_log set prev_hash = v_prev, hash = ai.audit_hash(v_prev, tenant_id, seq, at, login, user_tenant_id, user_id, source, api_key_id, action, object, key, before, after)
     where chain = t.alpha() and seq = v_row.seq returning hash into v_prev;
  end loop;
  update ai.audit_heads h set seq = (select max(seq) from ai.audit_log l where l.chain = h.chain), hash = v_prev where chain = t.alpha();
end
$$;
select is(t.found($$ update ai.audit_log set login = 'nobody' where chain = t.alpha() and seq = 5; select t.rewrite() $$), '', 'a chain made anew is sound in itself');
select is(t.found($$ update ai.audit_log set login = 'nobody' where chain = t.alpha() and seq = 5; select t.rewrite() $$, format('ai.audit_verify(t.alpha(), %s, %L)', seq, hash)),
  format('alpha %s rewritten', seq), 'but not what somebody knew of it') from t.anchor where tenant_id = t.alpha();
select is(t.found($$ delete from ai.audit_log where chain = t.alpha() and seq > 10; select t.rewrite() $$, format('ai.audit_verify(t.alpha(), %s, %L)', seq, hash)),
  format('alpha %s rewritten', seq), 'an end cut off with the head made to fit') from t.anchor where tenant_id = t.alpha();
select is(t.found($$ delete from ai.audit_log where chain = t.alpha(); delete from ai.audit_heads where chain = t.alpha() $$, format('ai.audit_verify(t.alpha(), %s, %L)', seq, hash)),
  format('alpha %s rewritten', seq), 'a chain that is gone') from t.anchor where tenant_id = t.alpha();
select is(t.found('alter table ai.limits disable trigger audited'), 'operator unwatched', 'a trigger that is switched off');
select is(t.found('drop trigger audited_whole on ai.secrets'), 'operator unwatched', 'or missing');
select throws_ok(format('select * from ai.audit_verify(%s)', args), 'PT400', null, args) from (values ('null, 1, ''x'''), ('t.alpha(), 1, null'), ('t.alpha(), null, ''x''')) v (args);
select is_empty('select * from ai.audit_verify()', 'all was undone');

-- 6. The formula, by its description.
select is(hash, sha256(prev_hash || convert_to('[' || array_to_string(array(select coalesce(to_json(f)::text, 'null') from unnest(array[tenant_id::text, seq::text,
            to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), login, user_tenant_id::text, user_id, source, api_key_id::text, action, object, key::text, before::text, after::text])
            with ordinality u (f, i) order by i), ',') || ']', 'UTF8')), 'the hash of an entry is what the documentation says')
  from ai.audit_log where chain = t.alpha() order by seq desc limit 1;

-- 7. What had to be left is taken along by maintenance; nothing else is pending.
select is((select count(*) from ai.audit_pending), 0::bigint, 'nothing is pending');
set constraints all deferred;
update ai.settings set lease_ms = 22000;
update ai.tenants set enabled = true where name = 'mtap gamma';
select is((select count(*) from ai.audit_pending), 2::bigint, 'until the transaction commits, its entries are pending');
select is(ai.append_left(now()), 2, 'maintenance puts what is pending into the chains');
select is(ai.append_left(now()), 0, 'once');
select is_empty('select * from ai.audit_verify()', 'and all is well');

select * from finish();
rollback;
