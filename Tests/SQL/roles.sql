-- What each kind of session sees, and for whom it may ask. Which statements it may run at all is in matrix.sql.
begin;
\ir setup/world.sql
select no_plan();

-- One generation of each member, one of them running, one answered, so that there is something not to see.
select t.ask('of ann', p_stream => true) as ann, t.ask('of abe', p_user => 'abe') as abe, t.ask('of bob', p_tenant => t.beta(), p_user => 'bob') as bob \gset
select t.worker() as worker \gset
select count(*) from t.claim(:'worker') \g /dev/null
select t.settle(:'worker', :'ann', 1, 'succeeded', '{"output": "secret of ann", "tail": "secret of ann", "usage": {"input": 1, "output": 1}}') \g /dev/null
select t.settle(:'worker', :'bob', 1, 'succeeded', '{"output": "secret of bob", "usage": {"input": 1, "output": 1}}') \g /dev/null

create table t.roles (name text primary key, groups text);
insert into t.roles values ('mtap_ann', 'user'), ('mtap_dev', 'user'), ('mtap_adm', 'admin'), ('mtap_stray', 'user'), ('mtap_worker', 'worker'),
  ('mtap_monitor', 'monitor'), ('mtap_public', 'none'), ('mtap_gateway', 'none');
grant select on t.roles to public;

-- 1. Tables: what select gives as each role. x: refused (42501); else the number of rows seen.
create table t.sees (relation text, ann text, dev text, adm text, stray text, worker text, monitor text, public text, gateway text);
insert into t.sees values
  ('ai.generations',      1, 2, 2, 0, 'x', 'x', 'x', 'x'),
  ('ai.llm_calls',        1, 1, 1, 0, 'x', 'x', 'x', 'x'),
  ('ai.tenants',          1, 1, 1, 0, 'x', 'x', 'x', 'x'),
  ('ai.members',          1, 5, 5, 0, 'x', 'x', 'x', 'x'),
  ('ai.retry_rules',      44, 44, 44, 0, 'x', 'x', 'x', 'x'),
  ('ai.api_keys',         0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.api_key_uses',     0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.api_key_list',     0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.audit_log',        0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.audit_heads',      0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.batches',          0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.provider_batches', 0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.guardrails',       0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.limits',           0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.credits',          0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.artifacts',        0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.artifact_policies', 0, 1, 1, 0, 'x', 'x', 'x', 'x'),
  ('ai.cache_policies',   0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.prompt_cache_policies', 0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.capture_policies', 0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.collections',      0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.documents',        0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.chunks',           0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.chunk_vectors',    0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.forgotten',        0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.vectorizers',      0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.vectorized_rows',  0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.profile_rules',    0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.profiles',         3, 3, 3, 0, 'x', 'x', 'x', 'x'),
  ('ai.permissions',      23, 23, 23, 0, 'x', 'x', 'x', 'x'),
  ('ai.roles',            0, 3, 3, 0, 'x', 'x', 'x', 'x'),
  ('ai.provider_accounts', 'x', 'x', 0, 'x', 'x', 'x', 'x', 'x'),
  ('ai.breaker_settings', 13, 13, 13, 0, 'x', 'x', 'x', 'x'),
  ('ai.breakers',         0, 0, 0, 0, 'x', 0, 'x', 'x'),
  ('ai.model_stats',      'x', 'x', 'x', 'x', 'x', 0, 'x', 'x'),
  ('ai.prompt_templates', 0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.context_sources',  0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.conversations',    0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.tools',            0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.tool_calls',       0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.messages',         0, 0, 0, 0, 'x', 'x', 'x', 'x'),
  ('ai.workers',          'x', 'x', 'x', 'x', 'x', 1, 'x', 'x');
insert into t.sees
select format('ai.%I', relname), 'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x'
  from pg_class where relnamespace = 'ai'::regnamespace and relkind in ('r', 'p', 'v', 'm')
   and format('ai.%I', relname) not in (select relation from t.sees)
   and relname not in ('models', 'prices', 'routes', 'providers');
update t.sees set (ann, dev, adm) = (select c, c, c from (select count(*)::text as c from ai.retry_rules) n) where relation = 'ai.retry_rules';
update t.sees set (ann, dev, adm) = (select c, c, c from (select count(*)::text as c from ai.permissions) n) where relation = 'ai.permissions';

select is(t.as_role(r.role, format('select from %s', s.relation)), case when r.expected = 'x' then '42501' else 'ok ' || r.expected end,
          format('%s selects from %s: %s', r.role, s.relation, case when r.expected = 'x' then 'refused' else r.expected || ' rows' end))
  from t.sees s
 cross join lateral (values ('mtap_ann', s.ann), ('mtap_dev', s.dev), ('mtap_adm', s.adm), ('mtap_stray', s.stray), ('mtap_worker', s.worker),
                            ('mtap_monitor', s.monitor), ('mtap_public', s.public), ('mtap_gateway', s.gateway)) r (role, expected)
 order by s.relation, r.role;

-- 2. Columns of ai.generations: what the app may set.
create table t.insertable (name text primary key, value text);
insert into t.insertable values ('kind', '''chat'''), ('prompt', '''x'''), ('messages', 'null'), ('model', '''mtap/one'''), ('profile', 'null'), ('params', '''{}'''),
  ('stream', 'true'), ('priority', '''high'''), ('run_after', 'null'), ('deadline_ms', '5'), ('idempotency_key', '''k'''), ('metadata', '''{}'''),
  ('collection', 'null'), ('template', 'null'), ('cache', '''off'''), ('cache_tags', '''{a}'''), ('conversation_id', 'null'), ('batch_id', 'null'), ('replay', 'true');
select is(t.as_role('mtap_ann', format('insert into ai.generations (%s) values (%s)', string_agg(quote_ident(name), ', '), string_agg(value, ', '))), 'ok 1',
          'a user may insert every column of the list at once') from t.insertable;

-- 3. Who asks, for whom.
select is(t.as_role(role, 'insert into ai.generations (prompt, model) values (''x'', ''mtap/one'')'), expected, format('%s asks: %s', role, expected))
  from (values ('mtap_ann', 'ok 1'), ('mtap_dev', 'ok 1'), ('mtap_adm', 'ok 1'), ('mtap_bob', 'ok 1'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'),
               ('mtap_monitor', '42501'), ('mtap_public', '42501'), ('mtap_gateway', '42501')) v (role, expected);
select is(t.as_role('mtap_adm', format('insert into ai.generations (prompt, model, tenant_id, user_id) values (''x'', ''mtap/one'', %L, %L)', tenant, member)), expected,
          format('an admin of alpha asks for %s of %s: %s', member, tenant, expected))
  from (values (t.alpha(), 'abe', 'ok 1'), (t.alpha(), 'nobody', 'PT403'), (t.beta(), 'bob', 'PT403'), (t.beta(), 'nobody-there', 'PT403'), (gen_random_uuid(), 'abe', 'PT403')) v (tenant, member, expected);

-- 4. What is inserted is stamped with the asker and nothing else.
set local session authorization mtap_abe;
insert into ai.generations (prompt, model) values ('whose?', 'mtap/one') returning id as stamped \gset
reset session authorization;
select is((t.generation(:'stamped')).tenant_id, t.alpha(), 'the tenant is stamped');
select is((t.generation(:'stamped')).user_id, 'abe', 'the user is stamped');

-- 5. Rows of others, by their key.
select is(t.as_role(role, format('select from ai.generations where id = %L', id)), expected, format('%s reads %s: %s', role, what, expected))
  from (values ('mtap_ann', 'its own', :'ann'::uuid, 'ok 1'), ('mtap_ann', 'abe''s', :'abe', 'ok 0'), ('mtap_ann', 'bob''s', :'bob', 'ok 0'),
               ('mtap_dev', 'ann''s', :'ann', 'ok 1'), ('mtap_dev', 'bob''s', :'bob', 'ok 0'), ('mtap_adm', 'bob''s', :'bob', 'ok 0'),
               ('mtap_bob', 'ann''s', :'ann', 'ok 0'), ('mtap_bob', 'its own', :'bob', 'ok 1')) v (role, what, id, expected);
select is(t.as_role(role, format('select from ai.llm_calls where generation_id = %L', id)), expected, format('%s reads the books of %s: %s', role, what, expected))
  from (values ('mtap_ann', 'its own', :'ann'::uuid, 'ok 1'), ('mtap_abe', 'ann''s', :'ann', 'ok 0'), ('mtap_bob', 'ann''s', :'ann', 'ok 0'),
               ('mtap_dev', 'ann''s', :'ann', 'ok 1'), ('mtap_dev', 'bob''s', :'bob', 'ok 0')) v (role, what, id, expected);
select is(t.as_role(role, format(call, id)), expected, format('%s calls %s of %s: %s', role, call, what, expected))
  from (values ('mtap_ann', 'its own', :'ann'::uuid, 'ok 1'), ('mtap_abe', 'ann''s', :'ann', 'PT404'), ('mtap_bob', 'ann''s', :'ann', 'PT404'),
               ('mtap_dev', 'ann''s', :'ann', 'ok 1'), ('mtap_adm', 'bob''s', :'bob', 'PT404'), ('mtap_stray', 'ann''s', :'ann', 'PT401'),
               ('mtap_worker', 'ann''s', :'ann', '42501'), ('mtap_monitor', 'ann''s', :'ann', '42501'), ('mtap_public', 'ann''s', :'ann', '42501')) v (role, what, id, expected)
 cross join (values ('select ai.subscribe(%L)'), ('select ai.cancel(%L)')) c (call);
select is(t.as_role('mtap_ann', format('select * from ai.read_stream(%L)', :'ann')), 'ok 3', 'its own stream: running, delta, end');
select is(t.as_role('mtap_dev', format('select * from ai.read_stream(%L)', :'ann')), 'ok 3', 'a developer reads the streams of the tenant');
select is(t.as_role(role, format('select * from ai.read_stream(%L)', :'ann')), expected, format('%s reads the stream of ann: %s', role, expected))
  from (values ('mtap_abe', 'PT404'), ('mtap_bob', 'PT404'), ('mtap_stray', 'PT401'), ('mtap_public', '42501')) v (role, expected);
select is(t.as_role('mtap_bob', format('select ai.subscribe(%L)', gen_random_uuid())), 'PT404', 'what does not exist looks like what is not one''s own');

-- 6. A cancel that was refused changed nothing.
select is(t.status(:'abe'), 'running', 'refused cancels changed nothing');
select is_empty('select from ai.cancellations', 'nothing was asked to be aborted');

-- 7. The catalogue: what is shared and one's own, never another tenant's, and nothing of how a provider is reached.
insert into ai.providers (tenant_id, name, dialect, base_url) values (t.beta(), 'mtap-first', 'openai', 'http://beta.test');
insert into ai.models (tenant_id, provider_id, name, wire_name)
select t.beta(), p.id, 'mtap/betas', 'b' from ai.providers p where p.tenant_id = t.beta();
insert into ai.prices (model_id, rates) select id, '{"input": 1, "output": 1}' from ai.models where name = 'mtap/betas';
insert into ai.routes (tenant_id, profile, model_id) select t.beta(), 'mtap-beta', id from ai.models where name = 'mtap/betas';
select is(t.as_role('mtap_ann', sql), 'ok 0', format('ann sees nothing of beta: %s', sql))
  from (values ('select name from ai.providers where tenant_id is not null'), ('select name from ai.models where tenant_id is not null'),
               ('select from ai.routes where tenant_id is not null'), (format('select from ai.prices where model_id = %s', (select id from ai.models where name = 'mtap/betas')))) v (sql);
select is(t.as_role('mtap_bob', sql), 'ok 1', format('bob sees what is beta''s: %s', sql))
  from (values ('select name from ai.providers where tenant_id is not null'), ('select name from ai.models where tenant_id is not null'),
               ('select from ai.routes where tenant_id is not null'), (format('select from ai.prices where model_id = %s', (select id from ai.models where name = 'mtap/betas')))) v (sql);
select is(t.as_role('mtap_ann', 'insert into ai.generations (prompt, model) values (''x'', ''mtap/betas'')'), 'PT404', 'another tenant''s model does not exist');
select is(t.as_role('mtap_bob', 'insert into ai.generations (prompt, model) values (''x'', ''mtap/betas'')'), 'ok 1', 'one''s own model does');
select is(t.as_role(r.name, format('select %I from ai.providers', c.name)), '42501', format('%s may not read ai.providers.%s', r.name, c.name))
  from t.roles r cross join (values ('base_url'), ('secret'), ('headers'), ('options')) c (name);

-- 8. No setting makes a session somebody else.
select is(t.as_role('mtap_stray', format('select set_config(''request.jwt.claims'', %L, true), id from ai.generations', '{"sub": "ann", "tenant_id": "' || t.alpha() || '"}')), 'ok 0',
          'claims in a session that is no gateway''s show nothing');
create schema mtap_trap authorization mtap_ann;
grant usage, create on schema mtap_trap to mtap_ann;
set local session authorization mtap_ann;
create function mtap_trap.yes(text, text) returns boolean language sql immutable as 'select true';
create operator mtap_trap.= (leftarg = text, rightarg = text, function = mtap_trap.yes);
set local search_path = mtap_trap, pg_catalog, public, tap;
select pg_catalog.count(*) as others from ai.generations where pg_catalog.textne(user_id, 'ann') \gset
select ai.may('inference:read') as sees, ai.may('policy:write') as admin \gset
set local search_path = public, tap;
reset session authorization;
select is(:others::bigint, 0::bigint, 'an operator of one''s own in the search path shows no rows of others');
select is(:'sees'::text, 'f', 'an operator of one''s own makes nobody a developer');
select is(:'admin'::text, 'f', 'an operator of one''s own makes nobody an admin');

select * from finish();
rollback;
