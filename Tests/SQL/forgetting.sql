-- Forgetting a person: nothing of the content stays anywhere, the books stay whole, and nobody else loses anything.
begin;
\ir setup/world.sql
select no_plan();

-- What becomes of each column that can hold text, a document, bytes or a vector, when a person is forgotten. A new column has to
-- be put here, after a look at whether ai.erase_generations() and the others have to do something about it.
--   gone     the row is deleted, at once or (what runs) when it ends
--   emptied  the row stays, the column does not
--   named    held who it was, and holds a pseudonym, or nothing, now
--   kept     neither content nor a person: names of models and the like, states, what the operator or the tenant wrote
create table t.columns (line text);
copy t.columns from stdin;
api_keys gone user_id name prefix hash permissions
api_keys named created_by
audit_heads kept hash
audit_log kept login user_id source action object key before after prev_hash hash
audit_pending kept login user_id source action object key before after
authenticators kept role_name
batches named user_id
batches emptied name metadata
breaker_settings kept scope class
breakers kept state why
cache_entries gone key user_id kind model profile template collection tags output output_message embedding finish_reason sources provider model_used question
cache_policies kept kind profile model scope vector_model
cache_questions gone signs key
cache_spaces gone user_id kind model profile template collection vector_model
call_openings kept opened_by
capture_policies kept mode
chunk_vectors gone embedding
chunks gone heading content tsv
collections kept name model language next_model
collections emptied next_error
context_sources kept name query description
conversations gone user_id title template model profile collection metadata
counter_entries kept reason
counters named subject
credits kept note
data_keys kept master_key_id wrapped
documents gone title uri content metadata hash status error user_id
embedding_jobs gone source user_id model
exhausted_accounts kept secret
forgotten named user_id pseudonym
forgotten kept open place goal_place erased
forgotten_left gone what id user_id
generations named user_id
generations emptied prompt messages params idempotency_key metadata output output_message embedding finish_reason error collection template cache_tags sources stages degraded context context_sources cache_key
generations kept kind status priority model profile provider model_used cache query_model purpose
guardrails kept name scope detector action kinds options compiled
idempotency_keys gone key input_hash
lanes kept priority
leaders gone cache_key
leases gone user_id secret capture
limits named user_id
limits kept per kind profile model metric period on_limit
llm_calls named user_id
llm_calls emptied request_id
llm_calls kept provider model model_used kind status error_class error_code service_tier cache capture
members gone user_id role
messages gone user_id role content
migrations kept version name checksum door
models kept name wire_name kind capabilities options
partitioning kept table_name
permissions kept name description
prepared gone messages
prices kept rates
profile_rules kept kind tier metadata profile
profiles kept name kind strategy
prompt_templates kept name description system collection search_mode context_sources
provider_accounts kept secret
providers kept name dialect base_url secret headers options
realtime_key kept key
redactions gone placeholder original
retry_rules kept dialect signal code class action billed why
role_bindings gone role_name user_id member_role member_permissions
roles kept name permissions
routes kept profile kind tier metadata
sealed_calls gone mode facts request response
secrets kept name sealed
sessions gone token_hash backend
settings kept default_profile
staged_vectors gone embedding
stream_events gone type data
tenants kept name tier
unshared gone cache_key
vectorized_rows kept row_key state content embedding error
vectorizer_problems kept error
vectorizer_versions kept model status
vectorizers named user_id
vectorizers kept name columns key_columns tenant_column model format
workers kept name version channel ending
\.
select bag_eq($$
  select c.relname || '.' || a.attname
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    join pg_type d on d.oid = a.atttypid
    join pg_type b on b.oid = coalesce(nullif(d.typbasetype, 0), d.oid)
   where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'm') and not c.relispartition
     and coalesce(nullif(b.typelem, 0), b.oid) not in (select o.oid from pg_type o where o.typcategory in ('N', 'B', 'D', 'T')
                                                                                     or o.typname in ('uuid', 'xid8')) or b.typname = 'name' and c.relnamespace = 'ai'::regnamespace $$,
  $$ select w[1] || '.' || c from t.columns l cross join lateral (select string_to_array(l.line, ' ') as w) s cross join lateral unnest(w[3:]) c $$,
  'of each column that can hold content it is said what becomes of it');
select is_empty($$ select line from t.columns where split_part(line, ' ', 2) not in ('gone', 'emptied', 'named', 'kept') $$, 'in these words');

-- Two people of one tenant, and one of another. What is theirs says so.
create role mtap_person login;
create role mtap_officer login;
grant ai_user to mtap_person, mtap_officer;
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'officer', array['person:forget', 'inference:execute', 'document:read', 'model:read']);
insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'p-person', 'user'), (t.alpha(), 'p-other', 'user'), (t.alpha(), 'officer', 'officer'), (t.beta(), 'p-person', 'user');
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_person', t.alpha(), 'p-person'), ('mtap_officer', t.alpha(), 'officer');
create function t.marker(p_user text, p_tenant uuid) returns text language sql as $$
  select case when p_user = 'p-person' and p_tenant = t.alpha() then 'PERSONAL' else 'OTHERS' end
$$;

-- A row of a table in which every column that may hold content holds the marker, but for those that are given.
create function t.plant(p_table text, p_marker text, p_fixed jsonb) returns void language plpgsql as $$
declare
  v_row jsonb;
begin
  select jsonb_object_agg(a.attname, case
           when b.typname in ('text', 'name') then to_jsonb(p_marker || ' ' || a.attname)
           when b.typname = '_text' then jsonb_build_array(p_marker || ' ' || a.attname)
           when b.typname = 'jsonb' then jsonb_build_object('said', p_marker || ' ' || a.attname)
           when b.typname = 'bytea' then to_jsonb('\x' || encode(sha256(gen_random_uuid()::text::bytea) || convert_to(p_marker, 'UTF8'), 'hex'))
           when b.typname = 'vector' then to_jsonb(case p_marker when 'PERSONAL' then '[0.15625,0.71875]' else '[0.25,0.75]' end)
           when b.typname = 'timestamptz' then to_jsonb(ai.now()) end)
    into v_row
    from pg_attribute a join pg_type d on d.oid = a.atttypid join pg_type b on b.oid = coalesce(nullif(d.typbasetype, 0), d.oid)
   where a.attrelid = format('ai.%I', p_table)::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity = ''
     and b.typname in ('text', 'name', '_text', 'jsonb', 'bytea', 'vector', 'timestamptz');
  v_row := v_row || p_fixed;
  execute format('insert into ai.%I (%s) select %s from jsonb_populate_record(null::ai.%I, $1)', p_table,
                 (select string_agg(quote_ident(k), ', ') from jsonb_object_keys(v_row) k), (select string_agg(quote_ident(k), ', ') from jsonb_object_keys(v_row) k), p_table) using v_row;
end
$$;

-- Everything that a person can leave behind.
insert into ai.collections (tenant_id, name, model, dimensions) values (t.alpha(), 'library', 'local/hash', 2), (t.beta(), 'library', 'local/hash', 2);
insert into ai.limits (tenant_id, per, metric, period, amount) values (t.alpha(), 'member', 'cost', 'month', 1000), (t.alpha(), 'member', 'requests', 'month', 100000);
insert into ai.limits (tenant_id, user_id, metric, period, amount) values (t.alpha(), 'p-person', 'tokens', 'month', 100000), (t.alpha(), 'p-other', 'tokens', 'month', 100000);
create function t.live(p_tenant uuid, p_user text) returns void language plpgsql as $$
declare
  m          constant text := t.marker(p_user, p_tenant);
  who        constant jsonb := jsonb_build_object('tenant_id', p_tenant, 'user_id', p_user);
  v_book     jsonb;
  v_id       uuid;
  v_key      bytea;
  v_talk     uuid := ai.uuid_v7();
  v_batch    uuid := ai.uuid_v7();
  v_document uuid := ai.uuid_v7();
  v_api_key  uuid := ai.uuid_v7();
  v_chunk    bigint;
  v_library  bigint := (select id from ai.collections where tenant_id = p_tenant);
begin
  perform t.plant('batches', m, who || jsonb_build_object('id', v_batch, 'paused_at', null, 'cancelled_at', null));
  perform t.plant('conversations', m, who || jsonb_build_object('id', v_talk, 'model', null, 'last_seq', 1));
  for v_n in 1 .. 3 loop
    v_id := ai.uuid_v7();
    v_key := sha256(convert_to(v_id::text, 'UTF8'));
    v_book := jsonb_build_object('tenant_id', p_tenant, 'generation_id', v_id);
    perform t.plant('generations', m, who || jsonb_build_object('id', v_id, 'kind', 'chat', 'status', (array['succeeded', 'failed', 'rejected'])[v_n], 'priority', 'normal', 'cache', 'exact',
      'model', 'mtap/one', 'profile', null, 'provider', 'mtap-first', 'model_used', 'one', 'query_model', null, 'purpose', null, 'cost', 0.1 * v_n, 'conversation_id', v_talk,
      'batch_id', v_batch, 'api_key_id', v_api_key, 'cache_key', '\x' || encode(v_key, 'hex'), 'input_tokens', 7, 'output_tokens', 5, 'attempts', 1,
      'params', jsonb_build_object('tools', jsonb_build_array(m)), 'run_after', null));
    perform t.plant('idempotency_keys', m, v_book || jsonb_build_object('key', m || ' idempotency_key'))
      where not exists (select from ai.idempotency_keys k where k.tenant_id = p_tenant and k.key = m || ' idempotency_key');
    perform t.plant('stream_events', m, v_book || jsonb_build_object('seq', 1, 'attempt', 1, 'type', 'delta'));
    perform t.plant('prepared', m, v_book || jsonb_build_object('input_bytes', 1));
    perform t.plant('redactions', m, v_book);
    perform t.plant('embedding_jobs', m, v_book || who || jsonb_build_object('source', 'rows', 'version', 1, 'model', 'mtap/embed', 'refs', jsonb_build_array(v_n), 'taken', true));
    perform t.plant('sealed_calls', m, v_book || jsonb_build_object('attempt', 1, 'mode', 'content', 'data_key_id', gen_random_uuid()));
    perform t.plant('llm_calls', m, v_book || who || jsonb_build_object('attempt', 1, 'provider', 'mtap-first', 'model', 'mtap/one', 'model_used', 'one', 'kind', 'chat', 'status', 'succeeded',
      'error_class', null, 'error_code', null, 'service_tier', null, 'cache', null, 'capture', 'content', 'input_tokens', 7, 'output_tokens', 5, 'cost', 0.1 * v_n, 'created_at', now()));
    perform t.plant('cache_entries', m, v_book || jsonb_build_object('key', '\x' || encode(v_key, 'hex'), 'user_id', case when v_n > 1 then p_user end, 'kind', 'chat',
      'keep_until', ai.now() + interval '1 day'));
    insert into ai.cache_spaces (tenant_id, space, user_id, kind, vector_model, dimensions) values (p_tenant, md5(v_id::text)::uuid, p_user, 'chat', 'local/hash', 2);
    insert into ai.cache_questions (tenant_id, space, expires_at, signs, key) values (p_tenant, md5(v_id::text)::uuid, ai.now(), '01', v_key);
  end loop;
  -- Answers and calls whose generations retention has dropped.
  perform t.plant('cache_entries', m, v_book || who || jsonb_build_object('kind', 'chat', 'keep_until', ai.now() + interval '1 day'));
  perform t.plant('llm_calls', m, v_book || who || jsonb_build_object('generation_id', ai.uuid_floor(ai.now() - interval '1 year' - random() * interval '1 day'), 'attempt', 1, 'provider', 'mtap-first', 'model', 'mtap/one',
    'model_used', 'one', 'kind', 'chat', 'status', 'succeeded', 'error_class', null, 'error_code', null, 'service_tier', null, 'cache', null, 'capture', null, 'cost', 0.000001,
    'created_at', now()));
  perform t.plant('messages', m, who || jsonb_build_object('conversation_id', v_talk, 'seq', 1, 'role', 'user', 'generation_id', v_id));
  insert into ai.unrecorded_answers (tenant_id, conversation_id, generation_id) values (p_tenant, v_talk, v_id);
  perform t.plant('documents', m, who || jsonb_build_object('id', v_document, 'collection_id', v_library, 'status', 'ready', 'chunks', 1, 'revision', 1, 'live_revision', 1));
  insert into ai.chunks (tenant_id, collection_id, document_id, revision, position, tokens, live, heading, content, tsv)
  values (p_tenant, v_library, v_document, 1, 1, 1, true, m, m, to_tsvector('simple', m)) returning id into v_chunk;
  insert into ai.chunk_vectors (tenant_id, collection_id, version, chunk_id, document_id, embedding)
  values (p_tenant, v_library, 1, v_chunk, v_document, (case m when 'PERSONAL' then '[0.15625,0.71875]' else '[0.25,0.75]' end)::ai.embedding);
  update ai.collections set chunks = chunks + 1 where tenant_id = p_tenant;
  perform t.plant('api_keys', m, who || jsonb_build_object('id', v_api_key, 'hash', '\x' || encode(sha256(v_api_key::text::bytea), 'hex'), 'permissions', null, 'expires_at', null, 'revoked_at', null,
    'created_by', p_user));
  insert into ai.sessions (token_hash, api_key_id, backend, expires_at) values (sha256(m::bytea || v_api_key::text::bytea), v_api_key, m, ai.now() + interval '1 hour');
  insert into ai.counters (limit_id, tenant_id, subject) select id, p_tenant, p_user from ai.limits where per = 'member' and tenant_id = p_tenant;
  insert into ai.counter_entries (counter_id, window_start, seq, delta, balance, money, at, reason)
  select c.id, ai.window_start('month', ai.now()), 1, 0.600001, 0.600001, l.metric = 'cost', ai.now(), 'settle'
    from ai.counters c join ai.limits l on l.id = c.limit_id where c.subject = p_user and c.tenant_id = p_tenant;
  insert into ai.vectorizers (tenant_id, user_id, name, table_name, table_id, columns, attnums, key_columns, key_attnums, model, format, max_characters)
  values (p_tenant, p_user, 'rows ' || md5(m || v_id), 'pg_class', 0, '{}', '{}', '{}', '{}', 'local/hash', 'plain', 100);
end
$$;
select t.live(t.alpha(), 'p-person'), t.live(t.alpha(), 'p-other'), t.live(t.beta(), 'p-person') \g /dev/null
-- A key that the person made for somebody else, and one that somebody made for the person.
update ai.api_keys set created_by = 'p-person' where tenant_id = t.alpha() and user_id = 'p-other';

-- Every row of every table, as text.
create function t.rows() returns table (relation text, line text) language plpgsql as $$
declare
  v_relation text;
begin
  for v_relation in select c.relname from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind = 'r' order by 1 loop
    return query execute format('select %L::text, r::text from ai.%I r', v_relation, v_relation);
  end loop;
end
$$;
-- Where something of the person is: the name (in the other tenant it is somebody else's), content, also as bytes, and the vector.
-- The audit log and the list of the forgotten say whom they are about.
create function t.traces() returns setof text language sql as $$
  select distinct regexp_replace(r.relation, '_(p[0-9]+|default)$', '') from t.rows() r
   where r.relation not in ('audit_log', 'audit_pending', 'forgotten') and (r.line like '%PERSONAL%' or r.line like '%' || encode('PERSONAL', 'hex') || '%' or r.line like '%0.15625,0.71875%' or r.line like '%personal%'
      or r.line like '%p-person%' and r.line not like '%' || t.beta() || '%')
$$;
create function t.books() returns table (what text, key text, figures text) language sql as $$
  select 'tenant', tenant_id::text, row(count(*), sum(cost), sum(saved), sum(input_tokens), sum(output_tokens), sum(cached_tokens), min(created_at), max(created_at))::text from ai.llm_calls group by 2
  union all select 'generations', tenant_id::text, row(count(*), sum(cost), sum(saved), sum(input_tokens), sum(output_tokens))::text from ai.generations group by 2
  union all select 'of each', c.tenant_id || ' ' || c.generation_id, row(c.attempt, c.created_at, c.provider, c.model, c.model_used, c.kind, c.status, c.cost, c.input_tokens, c.output_tokens)::text from ai.llm_calls c
  union all select b, u.key, u::text from unnest(array['model', 'provider', 'kind', 'status', 'day']) b cross join lateral ai.usage_report('-infinity', 'infinity', b) u
  union all select 'all users', '', row(sum(calls), sum(cost), count(*))::text from ai.usage_report('-infinity', 'infinity', 'user')
  union all select 'ledger', e.counter_id::text, e::text from ai.counter_entries e
  union all select 'counters', c.id::text, row(c.limit_id, c.tenant_id)::text from ai.counters c
  union all select 'credits', c.id::text, c::text from ai.credits c
$$;
create table t.before as select * from t.rows();
create table t.books_before as select * from t.books();
select set_eq('select * from t.traces()', array['api_keys', 'batches', 'cache_entries', 'cache_spaces', 'chunk_vectors', 'chunks', 'conversations', 'counters', 'documents', 'embedding_jobs', 'generations',
  'idempotency_keys', 'limits', 'llm_calls', 'members', 'messages', 'prepared', 'redactions', 'role_bindings', 'sealed_calls', 'sessions', 'stream_events', 'vectorizers'], 'the person is in all of these');

-- Who may
select is(t.as_role('mtap_ann', $$ select ai.forget_user('p-person') $$), 'PT403', 'a user may not forget anybody');
select is(t.as_role('mtap_person', $$ select ai.forget_user('p-person') $$), 'PT403', 'not even itself');
select is(t.as_role('mtap_dev', $$ select ai.forget_user('p-person') $$), 'PT403', 'nor may a developer');
select is(t.as_role('mtap_stray', $$ select ai.forget_user('p-person') $$), 'PT401', 'nor nobody');
select is(t.as_role('mtap_worker', $$ select ai.forget_user('p-person') $$), '42501', 'nor a worker');
select is(t.as_role('mtap_monitor', $$ select ai.forget_user('p-person') $$), '42501', 'nor a monitor');
select is(t.as_role('mtap_adm', format('select ai.forget_user(%L, %L)', 'p-person', t.beta())), 'PT403', 'an admin not in another tenant');
select is(t.as_role('mtap_adm', format('select ai.forget_user(%L, %L)', 'p-person', gen_random_uuid())), 'PT403', 'nor in one that does not exist, by the same answer');
select is(t.as_role('mtap_officer', $$ select ai.forget_user('adm') $$), 'PT403', 'who may forget may not end who may do more');
select is(t.as_role('mtap_adm', $$ select ai.forget_user('adm') $$), 'PT409', 'the last who may do everything does not go by itself');
select is(t.as_role('mtap_adm', $$ select ai.forget_user(null) $$), 'PT400', 'somebody has to be named');
select is(t.as_role('mtap_adm', $$ select ai.forget_user('') $$), 'PT400', 'really');
select is(t.as_role('mtap_adm', $$ select ai.forget_user(repeat('x', 201)) $$), 'PT400', 'by what can be a name');
select throws_ok($$ select ai.forget_user('p-person') $$, 'PT401', null, 'the owner of the schema names the tenant');
select throws_ok(format('select ai.forget_user(%L, %L)', 'p-person', gen_random_uuid()), 'PT404', null, 'one that exists');
select throws_ok($$ select ai.forget_user('p-person', t.alpha(), null) $$, 'PT400', null, 'and says whether documents stay');
select is(t.as_role('mtap_adm', $$ select ai.continue_forgetting(now()) $$), '42501', 'nobody but a worker''s maintenance does the rest');
select is_empty('select from ai.forgotten', 'none of these left a mark');
select is_empty('(select relation, line from t.before except select * from t.rows()) union all (select * from t.rows() except select * from t.before)', 'or changed anything');

-- Forgotten
create table t.said (what text, erased bigint, remaining bigint);
grant all on t.said to public;
grant select on t.said to public;
select is(t.as_role('mtap_officer', $$ insert into t.said select * from ai.forget_user('p-person') $$), 'ok 9', 'who has the permission may');
select results_eq('select * from t.said', $$ values ('memberships', 1::bigint, null::bigint), ('keys and bindings', 2, null), ('generations', 0, 3), ('calls', 1, null), ('sealed calls', 0, null),
  ('conversations', 1, null), ('documents', 1, null), ('batches', 1, null), ('cached answers', 0, null) $$, 'what it could do at once; what is cached is left to a worker');
select t.worker() as w \gset
select is(ai.worker_maintain(:'w') -> 'forgetting', '1', 'the next maintenance does the rest');
select is_empty('select * from t.traces()', 'nothing of the person is anywhere');
select is(ai.worker_maintain(:'w') -> 'forgetting', '1', 'in this database there was none but this');
select results_eq($$ select finished_at is not null, pseudonym, stage from ai.forgotten $$, $$ values (true, null::text, 6::smallint) $$,
  'so all is done, and nothing tells any more whom the pseudonym stands for');
select is(ai.worker_maintain(:'w') -> 'forgetting', '0', 'nothing more is to be done');
select * from finish();
rollback;
