-- Each permission alone: a member who has nothing else can do the acts of that permission and none of the others. All of
-- them log in through the widest group, so that nothing but the permission keeps them.
begin;
\ir setup/world.sql
select no_plan();

-- A member, a role and a login for each permission; one with none, one with all of them one by one, and one with *.
create function t.login(p_permission text) returns text language sql as $$ select 'mtap_p_' || translate(p_permission, ':*', '_x') $$;
create table t.actors (name text primary key, permissions text[]);
insert into t.actors select name, array[name] from ai.permissions union all values ('none', '{}'::text[]), ('*', '{*}');
insert into t.actors select 'each', array_agg(name) from ai.permissions;
grant select on t.actors to public;
do $$
declare
  v_one record;
begin
  for v_one in select *, t.login(name) as login, substr(t.login(name), 8) as role from t.actors loop
    execute format('create role %I login', v_one.login);
    execute format('grant ai_admin to %I', v_one.login);
    insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'p-' || v_one.role, v_one.permissions);
    insert into ai.members (tenant_id, user_id, role) values (t.alpha(), v_one.name, 'p-' || v_one.role);
    insert into ai.role_bindings (role_name, tenant_id, user_id) values (v_one.login, t.alpha(), v_one.name);
  end loop;
end
$$;

-- Runs as a login role, gives ok and the count of rows or the SQLSTATE, and undoes it whatever became of it.
create function t.try(p_role text, p_sql text) returns text language plpgsql as $$
declare
  v_rows bigint;
  v_as   text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute p_sql;
    get diagnostics v_rows = row_count;
    raise exception using errcode = 'XX999', message = 'ok ' || v_rows;
  exception when others then
    v_as := case when sqlstate = 'XX999' then sqlerrm else sqlstate end;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;

-- Rows of others in alpha, and of each actor's own what the acts need.
select t.ask('of abe', p_user => 'abe') as abe \gset
select t.worker() as worker \gset
select count(*) from t.claim(:'worker') \g /dev/null
select t.settle(:'worker', :'abe', 1, 'succeeded', '{"output": "x", "usage": {"input": 1, "output": 1}}') \g /dev/null
insert into ai.generations (tenant_id, user_id, prompt, model) select t.alpha(), name, 'own', 'mtap/one' from t.actors;
insert into ai.conversations (tenant_id, user_id, title, last_seq) select t.alpha(), name, 'own', 1 from t.actors union all values (t.alpha(), 'abe', 'of abe', 1);
insert into ai.messages (tenant_id, conversation_id, seq, user_id, role, content, generation_id)
select tenant_id, id, 1, user_id, 'user', 'x', ai.uuid_v7() from ai.conversations;
create schema tools;
create function tools.own(p jsonb) returns jsonb language sql as $$ select p $$;
insert into ai.tools (tenant_id, name, description, function) values (t.alpha(), 'own', 'x', 'tools.own');
insert into ai.tool_calls (tenant_id, generation_id, user_id, step, position, call_id, name) values (t.alpha(), :'abe', 'abe', 1, 1, 'x', 'own');
insert into ai.batches (tenant_id, user_id, name) select t.alpha(), name, 'own' from t.actors union all values (t.alpha(), 'abe', 'of abe');
insert into ai.models (provider_id, name, wire_name, kind, dimensions) select provider_id, 'mtap/tiny', 'tiny', 'embedding', 3 from ai.models where name = 'mtap/embed';
set local session authorization mtap_dev;
select ai.create_collection('docs', 'mtap/tiny') as docs, ai.create_collection('empty', 'mtap/tiny') \gset
select ai.add_document('docs', 'a text about ink') as document \gset
reset session authorization;
select ai.store_chunk_vectors(t.alpha(), 1, array_agg(id), jsonb_agg('[1, 1, 1]'::jsonb)) from ai.chunks \g /dev/null
insert into ai.providers (tenant_id, name, dialect, base_url) values (t.alpha(), 'own', 'openai', 'https://own.test/v1') returning id as provider \gset
insert into ai.models (tenant_id, provider_id, name, wire_name) values (t.alpha(), :provider, 'own/one', 'one') returning id as model \gset
insert into ai.prices (model_id, rates) values (:model, '{"input": 1, "output": 1}');
insert into ai.provider_accounts (provider_id, position, secret) values (:provider, 1, 'OTHER_API_KEY');
insert into ai.provider_batches (tenant_id, provider_id, model_id, kind, wire_name, options, due_at, created_at, give_up_at)
values (t.alpha(), :provider, :model, 'chat', 'one', '{}', now(), now(), now()) returning id as provider_batch \gset
insert into ai.profiles (tenant_id, name) values (t.alpha(), 'own');
insert into ai.routes (tenant_id, profile, model_id) values (t.alpha(), 'own', :model);
insert into ai.profile_rules (tenant_id, position, profile) values (t.alpha(), 1, 'mtap-route');
insert into ai.prompt_templates (tenant_id, name, system, collection) values (t.alpha(), 'own', 'x', 'docs');
insert into ai.context_sources (tenant_id, name, query) values (t.alpha(), 'own', 'select 1');
insert into ai.guardrails (tenant_id, name, scope, detector, action) values (t.alpha(), 'own', 'input', 'empty', 'flag');
insert into ai.cache_policies (tenant_id, profile) values (t.alpha(), 'own');
insert into ai.limits (tenant_id, user_id, metric, period, amount, operator) values (t.alpha(), 'abe', 'requests', 'day', 1000, false);
select ai.add_credit(t.alpha(), 5) \g /dev/null
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'powerless', '{}'), (t.alpha(), 'unused', '{}');
insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'pawn', 'powerless'), (t.alpha(), 'off', 'powerless');
update ai.members set enabled = false where user_id = 'off';
select id as key from ai.create_api_key('of abe', p_tenant_id => t.alpha(), p_user_id => 'abe') \gset
insert into ai.capture_policies (tenant_id, mode) values (t.alpha(), 'off');
insert into ai.artifacts (tenant_id, id, user_id, media_type, bytes, sha256, status) values (t.alpha(), ai.uuid_v7(), 'abe', 'text/plain', 0, sha256(''), 'ready') returning id as file \gset
insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'gone', 'powerless');
select ai.forget_user('gone', t.alpha()) \g /dev/null
set constraints all immediate;
set constraints all deferred;
do $$ begin
  execute (select string_agg(format('create schema %1$I authorization %1$I; create table %1$I.notes (id integer primary key, body text); insert into %1$I.notes values (1, ''x''); alter table %1$I.notes owner to %1$I;', t.login(name)), '') from t.actors);
end $$;

-- Acts: who has one of the permissions gets `ok`, everybody else `else`.
create table t.acts (act text primary key, sql text, permissions text[], ok text default 'ok 1', otherwise text default 'PT403');
insert into t.acts (act, sql, permissions, ok, otherwise) values
  -- what others asked
  ('see generations of others', 'select from ai.generations where user_id = ''abe''', '{inference:read}', 'ok 1', 'ok 0'),
  ('see conversations of others', 'select from ai.conversations where user_id = ''abe''', '{inference:read}', 'ok 1', 'ok 0'),
  ('see messages of others', 'select from ai.messages where user_id = ''abe''', '{inference:read}', 'ok 1', 'ok 0'),
  ('see tool calls of others', 'select from ai.tool_calls where user_id = ''abe''', '{inference:read}', 'ok 1', 'ok 0'),
  ('see batches of others', 'select from ai.batches where user_id = ''abe''', '{inference:read}', 'ok 1', 'ok 0'),
  ('see calls of others', 'select from ai.llm_calls where user_id = ''abe''', '{inference:read,usage:read}', 'ok 1', 'ok 0'),
  ('count what others used', 'select from ai.usage_report(p_by => ''user'') where key = ''abe''', '{inference:read,usage:read}', 'ok 1', 'ok 0'),
  ('count what prompt caches saved others', 'select from ai.prompt_cache_report()', '{inference:read,usage:read}', 'ok 1', 'ok 0'),
  ('count what caches saved others', 'select from ai.cache_report()', '{inference:read,usage:read}', 'ok 1', 'ok 0'),
  ('read the streams of others', format('select ai.subscribe(%L), ai.read_stream(%1$L)', :'abe'), '{inference:read}', 'ok 1', 'PT404'),
  ('explain the routes of others', format('select distinct true from ai.explain_route(%L)', :'abe'), '{inference:read}', 'ok 1', 'PT404'),
  ('see files of others', 'select from ai.artifacts where user_id = ''abe''', '{inference:read}', 'ok 1', 'ok 0'),
  ('read files of others', format('select ai.artifact_content(%L), ai.recall_artifact(%1$L)', :'file'), '{inference:read}', 'ok 1', 'PT404'),
  ('see provider batches', 'select id from ai.provider_batches', '{inference:read,usage:read}', 'ok 1', 'ok 0'),
  ('follow batches of others', 'select ai.batch_progress(id) from ai.batches where user_id = ''abe''', '{inference:read}', 'ok 1', 'ok 0'),
  -- what is one's own
  ('see what is its own', 'select from ai.generations where user_id = (select ai.user_id())', null, 'ok 1', ''),
  ('see tools', 'select from ai.tools', null, 'ok 1', ''),
  ('see its own conversation', 'select from ai.conversations c join ai.messages m on m.conversation_id = c.id where c.title = ''own'' and c.user_id = (select ai.user_id())', null, 'ok 1', ''),
  ('see its own batch', 'select from ai.batches where user_id = (select ai.user_id())', null, 'ok 1', ''),
  ('see its own membership', 'select from ai.members where user_id = (select ai.user_id())', null, 'ok 1', ''),
  ('see its tenant', 'select from ai.tenants', null, 'ok 1', ''),
  ('see what can be permitted', 'select from ai.permissions limit 1', null, 'ok 1', ''),
  ('see which tables are vectorized', 'select from ai.vectorizers', null, 'ok 0', ''),
  ('listen to its own', 'select ai.subscribe(), ai.subscribe(id), ai.explain_route(id) from ai.generations where user_id = (select ai.user_id())', null, 'ok 1', ''),
  ('know who it is', 'select from ai.whoami() where tenant_id is not null', null, 'ok 1', ''),
  ('know its limits', 'select from ai.limits_status() where metric = ''credit''', null, 'ok 1', ''),
  -- asking
  ('ask', 'insert into ai.generations (prompt, model) values (''x'', ''mtap/one'')', '{inference:execute}', 'ok 1', 'PT403'),
  ('ask by a call', 'select ai.generate(''x'', model => ''mtap/one''), ai.embed(''x'', model => ''mtap/embed'')', '{inference:execute}', 'ok 1', 'PT403'),
  ('ask by a template', 'insert into ai.generations (prompt, model, template) values (''x'', ''mtap/one'', ''own'')', '{inference:execute}', 'ok 1', 'PT403'),
  ('ask from a collection', 'insert into ai.generations (prompt, model, collection) values (''x'', ''mtap/one'', ''docs'')', '{}', 'ok 1', 'PT403'),
  ('ask for another', format('insert into ai.generations (tenant_id, user_id, prompt, model) values (%L, ''abe'', ''x'', ''mtap/one'')', t.alpha()), '{}', 'ok 1', 'PT403'),
  ('begin a conversation', 'select ai.start_conversation()', '{inference:execute}', 'ok 1', 'PT403'),
  ('converse', 'select ai.chat(id, ''x'', model => ''mtap/one'') from ai.conversations where user_id = (select ai.user_id())', '{inference:execute}', 'ok 1', 'PT403'),
  ('delete its conversation', 'select ai.delete_conversation(id) from ai.conversations where user_id = (select ai.user_id())', '{inference:execute,person:forget}', 'ok 1', 'PT403'),
  ('add a file', 'select ai.add_artifact(''x'', ''text/plain'')', '{inference:execute}', 'ok 1', 'PT403'),
  ('delete a file', 'select ai.delete_artifact(ai.uuid_v7())', '{inference:execute}', 'ok 1', 'PT403'),
  ('cancel', 'select ai.cancel(id) from ai.generations where user_id = (select ai.user_id())', '{inference:execute}', 'ok 1', 'PT403'),
  ('make a batch', 'select ai.create_batch(''x'')', '{inference:execute}', 'ok 1', 'PT403'),
  ('pause a batch', 'select ai.pause_batch(id) from ai.batches where user_id = (select ai.user_id())', '{inference:execute}', 'ok 1', 'PT403'),
  ('resume a batch', 'select ai.resume_batch(id) from ai.batches where user_id = (select ai.user_id())', '{inference:execute}', 'ok 1', 'PT403'),
  ('cancel a batch', 'select ai.cancel_batch(id) from ai.batches where user_id = (select ai.user_id())', '{inference:execute}', 'ok 1', 'PT403'),
  ('cancel a provider batch', format('select ai.cancel_provider_batch(%L)', :'provider_batch'), '{inference:execute}', 'ok 1', 'PT403'),
  ('look into the cache', 'select * from ai.find_cached_response(''[1]'', vector_model => ''mtap/embed'')', '{inference:execute}', 'ok 0', 'PT403'),
  ('have a template''s context read', 'select from ai.context_sources', '{inference:execute,prompt:read,prompt:write}', 'ok 1', 'ok 0'),
  ('vectorize its table', 'select ai.vectorize(''notes'', ''{body}'', ''mtap/embed'')', '{inference:execute}', 'ok 1', 'PT403'),
  -- models
  ('see providers', 'select name from ai.providers where name = ''own''', '{model:read,model:write}', 'ok 1', 'ok 0'),
  ('see models', 'select from ai.models where name in (''own/one'', ''mtap/one'')', '{model:read,model:write}', 'ok 2', 'ok 0'),
  ('see prices', format('select from ai.prices where model_id in (%s, %s)', :model, t.model('mtap/one')), '{model:read,model:write}', 'ok 2', 'ok 0'),
  ('see routes', 'select from ai.routes where profile in (''own'', ''mtap-route'') and position = 1', '{model:read,model:write}', 'ok 2', 'ok 0'),
  ('see profiles', 'select from ai.profiles where name = ''own''', '{model:read,model:write}', 'ok 1', 'ok 0'),
  ('see rules of profiles', 'select from ai.profile_rules', '{model:read,model:write}', 'ok 1', 'ok 0'),
  ('see rules of retries', 'select from ai.retry_rules limit 1', '{model:read,model:write}', 'ok 1', 'ok 0'),
  ('see settings of breakers', 'select from ai.breaker_settings limit 1', '{model:read,model:write}', 'ok 1', 'ok 0'),
  ('estimate', 'select ai.estimate(''x'', model => ''mtap/one'')', '{model:read,model:write}', 'ok 1', 'PT403'),
  ('see how its providers are reached', 'select from ai.own_providers()', '{model:write}', 'ok 1', 'PT403'),
  ('see other keys of its providers', 'select secret from ai.provider_accounts', '{model:write}', 'ok 1', 'ok 0'),
  ('add a provider', 'insert into ai.providers (name, dialect, base_url) values (''new'', ''openai'', ''https://new.test'')', '{model:write}', 'ok 1', '42501'),
  ('change a provider', 'update ai.providers set base_url = ''https://new.test'' where name = ''own''', '{model:write}', 'ok 1', 'ok 0'),
  ('add another key', format('insert into ai.provider_accounts (provider_id, position, secret) values (%s, 2, ''THIRD_API_KEY'')', :provider), '{model:write}', 'ok 1', '42501'),
  ('switch another key off', 'update ai.provider_accounts set enabled = false', '{model:write}', 'ok 1', 'ok 0'),
  ('add a model', format('insert into ai.models (provider_id, name, wire_name) values (%s, ''own/new'', ''x'')', :provider), '{model:write}', 'ok 1', '!PT403|42501'),
  ('change a model', 'update ai.models set enabled = false where name = ''own/one''', '{model:write}', 'ok 1', 'ok 0'),
  ('price a model', format('insert into ai.prices (model_id, valid_from, rates) values (%s, now(), ''{"input": 2, "output": 2}'')', :model), '{model:write}', 'ok 1', '!PT403|42501'),
  ('make a profile', format('insert into ai.profiles (tenant_id, name) values (%L, ''new'')', t.alpha()), '{model:write}', 'ok 1', '42501'),
  ('change a profile', 'update ai.profiles set degrade = true where name = ''own''', '{model:write}', 'ok 1', 'ok 0'),
  ('make a route', format('insert into ai.routes (tenant_id, profile, model_id) values (%L, ''new'', %s)', t.alpha(), :model), '{model:write}', 'ok 1', '42501'),
  ('change a route', 'update ai.routes set enabled = false where profile = ''own''', '{model:write}', 'ok 1', 'ok 0'),
  ('make a rule', format('insert into ai.profile_rules (tenant_id, position, profile) values (%L, 2, ''own'')', t.alpha()), '{model:write}', 'ok 1', '42501'),
  ('change a rule', 'update ai.profile_rules set enabled = false', '{model:write}', 'ok 1', 'ok 0'),
  ('delete a profile', 'select from ai.delete_profile(''own'') d where d = 2', '{model:write}', 'ok 1', 'PT403'),
  -- prompts
  ('see templates', 'select from ai.prompt_templates', '{prompt:read,prompt:write}', 'ok 1', 'ok 0'),
  ('write a template', format('insert into ai.prompt_templates (tenant_id, name, system) values (%L, ''own'', ''y'')', t.alpha()), '{prompt:write}', 'ok 1', '42501'),
  ('write a template with a collection', format('insert into ai.prompt_templates (tenant_id, name, system, collection) values (%L, ''own'', ''y'', ''docs'')', t.alpha()), '{}', 'ok 1', '42501'),
  ('switch a template off', 'update ai.prompt_templates set enabled = false', '{prompt:write}', 'ok 1', 'ok 0'),
  -- policies
  ('see guardrails', 'select from ai.guardrails', '{policy:read,policy:write}', 'ok 1', 'ok 0'),
  ('see cache policies', 'select from ai.cache_policies', '{policy:read,policy:write}', 'ok 1', 'ok 0'),
  ('see limits of others', 'select from ai.limits where user_id = ''abe''', '{policy:read,policy:write,billing:read}', 'ok 1', 'ok 0'),
  ('make a guardrail', format('insert into ai.guardrails (tenant_id, name, scope, detector, action) values (%L, ''new'', ''input'', ''empty'', ''flag'')', t.alpha()), '{policy:write}', 'ok 1', '42501'),
  ('switch a guardrail off', 'update ai.guardrails set enabled = false', '{policy:write}', 'ok 1', 'ok 0'),
  ('make a cache policy', format('insert into ai.cache_policies (tenant_id, profile) values (%L, ''new'')', t.alpha()), '{policy:write}', 'ok 1', '42501'),
  ('make a prompt cache policy', format('insert into ai.prompt_cache_policies (tenant_id, profile) values (%L, ''new'')', t.alpha()), '{policy:write}', 'ok 1', '42501'),
  ('change a cache policy', 'update ai.cache_policies set ttl = ''1 hour''', '{policy:write}', 'ok 1', 'ok 0'),
  ('set a limit', 'insert into ai.limits (metric, period, amount) values (''requests'', ''day'', 5)', '{policy:write}', 'ok 1', '42501'),
  ('change a limit', 'update ai.limits set amount = 5 where user_id = ''abe''', '{policy:write}', 'ok 1', 'ok 0'),
  ('drop cached answers', 'select ai.invalidate_cache(everything => true)', '{policy:write,prompt:write,document:write}', 'ok 1', 'PT403'),
  -- documents
  ('see collections', 'select from ai.collections where name = ''docs''', '{document:read}', 'ok 1', 'ok 0'),
  ('see documents', 'select from ai.documents', '{document:read}', 'ok 1', 'ok 0'),
  ('see chunks', 'select from ai.chunks', '{document:read}', 'ok 1', 'ok 0'),
  ('see vectors', 'select from ai.chunk_vectors', '{document:read}', 'ok 1', 'ok 0'),
  ('see the state of collections', 'select from ai.collection_status(''docs'')', '{document:read}', 'ok 1', 'ok 0'),
  ('search by a vector', 'select from ai.match_documents(''[1,1,1]'', collection => ''docs'')', '{document:read}', 'ok 1', 'PT403'),
  ('search by words', 'select from ai.hybrid_search(''ink'', null, collection => ''docs'')', '{document:read}', 'ok 1', 'PT403'),
  ('find by words', 'select from ai.text_matches(''docs'', ''ink'')', '{document:read}', 'ok 1', 'ok 0'),
  ('measure a search', 'select from ai.recall_check(''docs'', 1, 1)', '{document:read}', 'ok 1', 'PT403'),
  ('make a collection', 'select ai.create_collection(''new'', ''mtap/tiny'')', '{document:write}', 'ok 1', 'PT403'),
  ('delete a collection', 'select ai.delete_collection(''empty'')', '{document:write}', 'ok 1', 'PT403'),
  ('rebuild a collection', 'select ai.rebuild_collection(''docs'')', '{document:write}', 'ok 1', 'PT403'),
  ('stop a rebuild', 'select ai.cancel_rebuild(''docs'')', '{document:write}', 'ok 1', 'PT403'),
  ('add a document', 'select ai.add_document(''docs'', ''another text'')', '{document:write}', 'ok 1', 'PT403'),
  ('delete a document', format('select ai.delete_document(%L)', :'document'), '{document:write}', 'ok 1', 'PT403'),
  ('embed a document again', format('select ai.retry_document(%L)', :'document'), '{document:write}', 'ok 1', 'PT403'),
  -- money
  ('see credits', 'select from ai.credits', '{billing:read}', 'ok 1', 'ok 0'),
  ('see what is left to others', 'select from ai.limits_status() where user_id = ''abe''', '{billing:read}', 'ok 1', 'ok 0'),
  -- members
  ('see members', 'select from ai.members where user_id = ''abe''', '{member:read,member:write}', 'ok 1', 'ok 0'),
  ('see roles', 'select from ai.roles where tenant_id is null', '{member:read,member:write}', 'ok 3', 'ok 0'),
  ('add a member', 'select ai.add_member(''new'', ''powerless'')', '{member:write}', 'ok 1', 'PT403'),
  ('give a role', 'select ai.set_member_role(''pawn'', ''unused'')', '{member:write}', 'ok 1', 'PT403'),
  ('switch a member off', 'select ai.disable_member(''pawn'')', '{member:write}', 'ok 1', 'PT403'),
  ('switch a member on', 'select ai.enable_member(''off'')', '{member:write}', 'ok 1', 'PT403'),
  ('make a role', 'select ai.set_role(''new'', ''{}'')', '{member:write}', 'ok 1', 'PT403'),
  ('drop a role', 'select ai.drop_role(''unused'')', '{member:write}', 'ok 1', 'PT403'),
  -- keys, secrets, sealed calls, the audit log
  ('see keys of others', 'select from ai.api_key_list where user_id = ''abe''', '{key:read}', 'ok 1', 'ok 0'),
  ('make a key', 'select ai.create_api_key(''x'')', '{key:write}', 'ok 1', 'PT403'),
  ('make a key for who may everything', 'select ai.create_api_key(''x'', ''adm'', ''{member:write}'')', '{}', 'ok 1', 'PT403'),
  ('revoke a key of another', format('select ai.revoke_api_key(%L)', :'key'), '{key:write}', 'ok 1', 'PT403'),
  ('see names of secrets', 'select from ai.list_secrets()', '{secret:read}', 'ok 0', 'PT403'),
  ('remove a secret', 'select ai.remove_secret(''NO_SUCH_API_KEY'')', '{secret:write}', 'PT404', 'PT403'),
  ('destroy the tenant''s key', 'select ai.destroy_data_keys()', '{secret:write}', 'ok 1', 'PT403'),
  ('open a sealed call', format('select ai.open_call(%L)', :'abe'), '{call:open}', 'PT404', 'PT403'),
  ('take what was opened', 'select from ai.opened_call(ai.uuid_v7())', '{call:open}', 'PT404', 'PT403'),
  ('see how large files may be', 'select from ai.artifact_policies', '{policy:read,policy:write}', 'ok 1', 'ok 0'),
  ('see which calls are kept', 'select from ai.capture_policies', '{policy:read,policy:write}', 'ok 1', 'ok 0'),
  ('say which calls are kept', 'update ai.capture_policies set mode = ''all''', '{policy:write}', 'ok 1', 'ok 0'),
  ('see the audit log', 'select from ai.audit_log limit 1', '{audit:read}', 'ok 1', 'ok 0'),
  ('see the head of the audit log', 'select ai.audit_head()', '{audit:read}', 'ok 1', 'PT403'),
  ('verify the audit log', 'select from ai.audit_verify() limit 1', '{audit:read}', 'ok 0', 'PT403'),
  -- people
  ('forget a person', 'select count(*) from ai.forget_user(''pawn'')', '{person:forget}', 'ok 1', 'PT403'),
  ('see who was forgotten', 'select from ai.forgotten', '{person:forget}', 'ok 1', 'ok 0'),
  ('delete a conversation of another', format('select ai.delete_conversation(%L)', (select id from ai.conversations where user_id = 'abe')), '{person:forget}', 'ok 1', '!PT403|PT404');

-- The matrix. Null permissions: everybody may. An actor with every permission, and one with *, may do everything.
select is(string_agg(format('%s: %s, should be %s', r.name, r.result, r.expected), E'\n') filter (where r.result <> r.expected and not (r.expected like '!%' and r.result ~ substr(r.expected, 2))), null,
          format('%s: %s', r.act, coalesce(array_to_string(r.permissions, ', '), 'everybody')))
  from (select a.act, a.permissions, p.name,
               case when a.permissions is null or a.permissions && p.permissions or p.name in ('*', 'each') then a.ok else a.otherwise end as expected,
               t.try(t.login(p.name), format('set local search_path = %I, public', t.login(p.name)) || '; ' || a.sql) as result
          from t.acts a cross join t.actors p) r
 group by r.act, r.permissions order by r.act;

-- Nobody, through the widest group
create role mtap_nobody login;
grant ai_admin to mtap_nobody;
select ok(t.try('mtap_nobody', a.sql) ~ '^(ok 0|PT401|PT403|PT404|42501|42P01)$', format('nobody cannot: %s', a.act))
  from t.acts a where a.act not in ('count what others used') order by a.act;

-- A refusal names what is missing
create function t.message(p_role text, p_sql text) returns text language plpgsql as $$
declare
  v_as text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute p_sql;
  exception when others then
    v_as := sqlerrm;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;
select ok(string_agg(p, ' ') is not null and bool_or(strpos(t.message(t.login('none'), 'set local search_path = ' || t.login('none') || ', public; ' || a.sql), p) > 0), format('the refusal names the permission: %s', a.act))
  from t.acts a cross join unnest(case when a.act = 'ask for another' then array['inference:execute'] else a.permissions end) p where a.otherwise = 'PT403' and a.act not in ('converse') group by a.act order by a.act;

-- Nothing is forgotten: every table that app roles read, every function that they call, every permission.
select is_empty($$
  select distinct c.relname from pg_class c
    left join pg_attribute t on t.attrelid = c.oid cross join lateral aclexplode(coalesce(t.attacl, c.relacl)) a
   where c.relnamespace = 'ai'::regnamespace and a.grantee in ('ai_user'::regrole, 'ai_developer'::regrole, 'ai_admin'::regrole)
     and not exists (select from t.acts s where s.sql ~ ('ai\.' || c.relname || '\M'))
     and c.relname not in ('breakers', 'vectorized_rows')  -- shown with their models; shown with the rows of the app's table
     and c.relname not in ('api_keys', 'api_key_uses', 'audit_heads')  -- by api_key_list; by audit_head()
$$, 'every table that app roles read is in the matrix');
select is_empty($$
  select distinct p.proname from pg_proc p
   where p.pronamespace = 'ai'::regnamespace and has_function_privilege('ai_admin', p.oid, 'execute') and not exists (select from t.acts s where s.sql ~ ('ai\.' || p.proname || '\('))
     and p.proname not in (
       -- who one is, and how one comes to be it
       'identity', 'only_user', 'may', 'tenant_id', 'tenant_for', 'require', 'login', 'logout', 'use_session', 'pre_request', 'acting_role', 'acts_as_owner',
       -- reckoning, and parts of what is in the matrix, which run with the caller's rights or tell only of the caller
       'ask', 'uuid_v7', 'token_cost', 'check_costs', 'check_rate_block', 'check_rates', 'check_tiers', 'effective_rates', 'is_status', 'is_token_class', 'is_unit_class', 'cosine_distance', 'unit_vector', 'vector_size', 'vector_schema', 'nearest_chunks', 'nearest_by_index', 'fuse_chunks', 'collection_to_search', 'no_collection',
       'idempotent_generation', 'check_own_headers', 'check_own_options', 'private_providers', 'audit_hash', 'audit_chains', 'audited_tables', 'rotate_api_key',
       -- values in, values out
       'check_custom', 'check_custom_counts', 'check_custom_course', 'check_members', 'check_paths', 'check_request_template', 'is_json_path', 'template_error',
       'check_json_schema', 'json_fits', 'json_schema_errors', 'parse_json', 'output_as',
       -- by a ticket, which only workers give: Tests/SQL/tools.sql
       'begin_tool', 'finish_tool', 'run_tool',
       -- for the owner of a vectorized table: the last tests of this file, and Tests/SQL/vectorize_tables.sql
       'add_vectorizer', 'find_vectorizer', 'managed_vectorizer', 'manages', 'note_all_read', 'note_changes', 'note_rows', 'places_query', 'read_rows', 'refresh_vectorizer', 'remove_vectorizer',
       'revectorize', 'rows_query', 'search_rows', 'start_building', 'stop_vectorizing', 'vectorize_progress', 'vectorize_retry', 'visible_places') $$, 'every function that app roles call is in the matrix, or is known to need no permission');
select is_empty($$
  select p.name from ai.permissions p where not exists (select from t.acts a where p.name = any (a.permissions))
     and p.name <> 'inference:delegate' $$, 'every permission is in the matrix, but the one below');
select is(t.try('mtap_p_inference_delegate', a.sql), 'PT403', 'who may only ask for others asks for nobody') from t.acts a where a.act = 'ask for another';
update ai.roles set permissions = '{inference:execute,inference:delegate}' where name = 'p-inference_delegate';
select is(t.try('mtap_p_inference_delegate', a.sql), 'ok 1', 'with both it does') from t.acts a where a.act = 'ask for another';
update ai.roles set permissions = permissions || '{document:read}'::text[] where name in ('p-inference_execute', 'p-prompt_write');
select is(t.try('mtap_p_inference_execute', a.sql), 'ok 1', 'who may ask and read documents asks from a collection') from t.acts a where a.act = 'ask from a collection';
select is(t.try('mtap_p_prompt_write', a.sql), 'ok 1', 'who may write prompts and read documents writes a template with a collection') from t.acts a where a.act = 'write a template with a collection';

-- The shared roles: what users, developers and admins could always do they can
select is(t.try(r, a.sql), case when may then a.ok else a.otherwise end, format('%s: %s', r, a.act))
  from (values ('mtap_ann', 'ask', true), ('mtap_ann', 'see generations of others', false), ('mtap_ann', 'search by a vector', true), ('mtap_ann', 'add a document', false),
               ('mtap_ann', 'see models', true), ('mtap_ann', 'see guardrails', false), ('mtap_ann', 'see members', false), ('mtap_ann', 'add a member', false),
               ('mtap_dev', 'see generations of others', true), ('mtap_dev', 'add a document', true), ('mtap_dev', 'write a template', true), ('mtap_dev', 'see credits', true),
               ('mtap_dev', 'drop cached answers', true), ('mtap_dev', 'see guardrails', true), ('mtap_dev', 'see members', true), ('mtap_dev', 'add a member', false),
               ('mtap_adm', 'ask for another', true), ('mtap_adm', 'add a provider', true), ('mtap_adm', 'set a limit', true), ('mtap_adm', 'add a member', true)) v (r, act, may)
  join t.acts a using (act);

-- The owner of a vectorized table, as its permissions change
create function t.with_only(p_permission text, p_sql text) returns text language plpgsql as $$
begin
  update ai.roles set permissions = array[p_permission] where tenant_id = t.alpha() and name = 'p-inference_execute';
  return t.try('mtap_p_inference_execute', 'set local search_path = mtap_p_inference_execute, public; ' || p_sql);
end
$$;
set local session authorization mtap_p_inference_execute;
set local search_path = mtap_p_inference_execute, public;
select ai.vectorize('notes', '{body}', 'mtap/tiny') \g /dev/null
reset session authorization;
set local search_path = public, tap;
update ai.vectorized_rows set state = 'failed';
select is(t.with_only(p, s), case when p = any (needs) then ok else otherwise end, format('with %s: %s', p, s))
  from (values ('select ai.vectorize_retry(''notes'')', '{inference:execute}'::text[], 'ok 1', 'PT403'), ('select ai.revectorize(''notes'', ''mtap/embed'')', '{inference:execute}', 'ok 1', 'PT403'),
               ('insert into notes values (2, ''y'')', '{inference:execute,document:read,usage:read}', 'ok 1', ''),
               ('alter table notes disable trigger user; insert into notes values (2, ''y''); select ai.refresh_vectorizer(''notes'')', '{inference:execute}', 'ok 1', 'PT403'),
               ('select from ai.vectorize_progress()', '{inference:execute,document:read,usage:read}', 'ok 1', ''), ('select ai.stop_vectorizing(''notes'')', '{inference:execute,document:read,usage:read}', 'ok 1', '')) v (s, needs, ok, otherwise)
 cross join unnest(array['inference:execute', 'document:read', 'usage:read']) p;
update ai.vectorized_rows set state = 'embedded', embedding = '[1,1,1]', content = null;
update ai.vectorizer_versions set dimensions = 3;
select is(t.with_only(p, 'select from ai.search_rows(''notes'', ''[1,1,1]'')'), e, format('searching one''s table with %s: %s', p, e))
  from (values ('document:read', 'ok 1'), ('usage:read', 'ok 0')) v (p, e);

select * from finish();
rollback;
