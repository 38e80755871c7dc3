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
artifact_objects gone user_id key state
artifact_parts gone content
artifact_stores kept name endpoint region bucket prefix secret
artifacts gone user_id name media_type status sha256
audit_heads kept hash
audit_log kept login user_id source action object key before after prev_hash hash
audit_pending kept login user_id source action object key before after
authenticators kept role_name
batched_requests gone request
batches named user_id
batches emptied name metadata
binding_turns kept scope
breaker_settings kept scope class
breakers kept state why
cache_entries gone key user_id kind model profile template collection tags output output_message embedding finish_reason sources provider model_used question
prompt_cache_policies kept profile model keep
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
documents gone title uri content metadata hash status error user_id live_user_id
embedding_jobs gone source user_id model
exhausted_accounts kept secret
forgotten named user_id pseudonym
forgotten kept open place goal_place erased
forgotten_left gone what id user_id
generations named user_id
generations emptied prompt messages params idempotency_key metadata output output_message embedding finish_reason error collection template cache_tags sources stages degraded dropped_params tools context context_sources cache_key
generations kept kind status priority model profile provider model_used cache query_model purpose
guardrails kept name scope detector action kinds options compiled
idempotency_keys gone key input_hash
known_ways gone user_id
known_ways kept kind model priority
lanes kept priority
leaders gone cache_key
leases gone user_id secret capture
limits named user_id
limits kept per kind profile model metric period on_limit
llm_calls named user_id
llm_calls emptied request_id error_code
llm_calls kept provider model model_used kind status error_class service_tier cache capture units
maintenance kept partition_problems
members gone user_id role
messages gone user_id role content
migrations kept version name checksum door
models kept name wire_name kind capabilities options price_entry
partitioning kept table_name
permissions kept name description
policies_in_use kept name
prepared gone messages
prices kept rates
profile_rules kept kind tier metadata profile
profiles kept name kind strategy
prompt_templates kept name description system collection search_mode context_sources
provider_accounts kept secret
provider_batches kept kind wire_name options state action secret file_id external_id refused_ids output_id errors_id word ending rest error dropped
providers kept name dialect base_url secret headers options price_map
realtime_key kept key
redactions gone placeholder original
retry_rules kept dialect signal code class action billed why
role_bindings gone role_name user_id member_role member_permissions
roles kept name permissions
routes kept profile kind tier metadata
row_changes kept row_key content
sealed_calls gone mode facts request response
secrets kept name sealed
sessions gone token_hash backend
settings kept default_profile
staged_vectors gone embedding
stream_events gone type data
tenants kept name tier
tool_calls gone user_id call_id name arguments status result ticket
tools kept name description parameters function
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
insert into ai.limits (tenant_id, user_id, metric, period, amount, operator) values (t.alpha(), 'p-person', 'tokens', 'month', 100000, false), (t.alpha(), 'p-other', 'tokens', 'month', 100000, false);
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
  v_artifact uuid := ai.uuid_v7();
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
    perform t.plant('tool_calls', m, v_book || who || jsonb_build_object('id', ai.uuid_v7(), 'step', 1, 'position', 1, 'status', 'succeeded', 'attempts', 1));
    perform t.plant('prepared', m, v_book || jsonb_build_object('input_bytes', 1));
    perform t.plant('redactions', m, v_book);
    perform t.plant('embedding_jobs', m, v_book || who || jsonb_build_object('source', 'rows', 'version', 1, 'model', 'mtap/embed', 'refs', jsonb_build_array(v_n), 'taken', true));
    perform t.plant('sealed_calls', m, v_book || jsonb_build_object('attempt', 1, 'mode', 'content', 'data_key_id', gen_random_uuid()));
    perform t.plant('llm_calls', m, v_book || who || jsonb_build_object('attempt', 1, 'provider', 'mtap-first', 'model', 'mtap/one', 'model_used', 'one', 'kind', 'chat', 'status', 'succeeded',
      'error_class', null, 'service_tier', null, 'units', jsonb '{"images": 1}', 'cache', null, 'capture', 'content', 'input_tokens', 7, 'output_tokens', 5, 'cost', 0.1 * v_n, 'created_at', now()));
    perform t.plant('cache_entries', m, v_book || jsonb_build_object('key', '\x' || encode(v_key, 'hex'), 'user_id', case when v_n > 1 then p_user end, 'kind', 'chat',
      'keep_until', ai.now() + interval '1 day'));
    insert into ai.cache_spaces (tenant_id, space, user_id, kind, vector_model, dimensions) values (p_tenant, md5(v_id::text)::uuid, p_user, 'chat', 'local/hash', 2);
    insert into ai.cache_questions (tenant_id, space, expires_at, signs, key) values (p_tenant, md5(v_id::text)::uuid, ai.now(), '01', v_key);
  end loop;
  -- Answers and calls whose generations retention has dropped.
  perform t.plant('cache_entries', m, v_book || who || jsonb_build_object('kind', 'chat', 'keep_until', ai.now() + interval '1 day'));
  perform t.plant('llm_calls', m, v_book || who || jsonb_build_object('generation_id', ai.uuid_floor(ai.now() - interval '1 year' - random() * interval '1 day'), 'attempt', 1, 'provider', 'mtap-first', 'model', 'mtap/one',
    'model_used', 'one', 'kind', 'chat', 'status', 'succeeded', 'error_class', null, 'service_tier', null, 'units', null, 'cache', null, 'capture', null, 'cost', 0.000001,
    'created_at', now()));
  perform t.plant('artifacts', m, who || jsonb_build_object('id', v_artifact, 'media_type', 'text/plain', 'bytes', 8, 'sha256', '\x' || encode(sha256(convert_to(m, 'UTF8')), 'hex'),
    'status', 'ready', 'move_at', null, 'recall_at', null, 'recalled_until', null, 'damaged_at', null, 'expires_at', null));
  perform t.plant('artifact_parts', m, jsonb_build_object('tenant_id', p_tenant, 'artifact_id', v_artifact, 'n', 0));
  perform t.plant('messages', m, who || jsonb_build_object('conversation_id', v_talk, 'seq', 1, 'role', 'user', 'generation_id', v_id));
  insert into ai.unrecorded_answers (tenant_id, conversation_id, generation_id) values (p_tenant, v_talk, v_id);
  perform t.plant('documents', m, who || jsonb_build_object('id', v_document, 'uri', m || md5(p_user), 'collection_id', v_library, 'status', 'ready', 'chunks', 1, 'revision', 1, 'live_revision', 1));
  insert into ai.chunks (tenant_id, collection_id, document_id, revision, position, tokens, live, heading, content, tsv)
  values (p_tenant, v_library, v_document, 1, 1, 1, true, m, m, to_tsvector('simple', m)) returning id into v_chunk;
  insert into ai.chunk_vectors (tenant_id, collection_id, version, chunk_id, document_id, embedding)
  values (p_tenant, v_library, 1, v_chunk, v_document, (case m when 'PERSONAL' then '[0.15625,0.71875]' else '[0.25,0.75]' end)::ai.embedding);
  update ai.collections set chunks = chunks + 1 where tenant_id = p_tenant;
  perform t.plant('api_keys', m, who || jsonb_build_object('id', v_api_key, 'hash', '\x' || encode(sha256(v_api_key::text::bytea), 'hex'), 'permissions', null, 'expires_at', null, 'revoked_at', null,
    'created_by', p_user));
  insert into ai.sessions (token_hash, api_key_id, backend, expires_at) values (sha256(m::bytea || v_api_key::text::bytea), v_api_key, m, ai.now() + interval '1 hour');
  insert into ai.known_ways (version, tenant_id, user_id, kind, model, priority, lane_id, model_id, limited, max_bytes)
  select 1, p_tenant, p_user, 'chat', 'mtap/one', 'normal', l.id, t.model('mtap/one'), false, 1000 from ai.lanes l where l.tenant_id = p_tenant and l.priority = 'normal' and l.batch_id is null;
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
  union all select 'all users', '', row(sum(calls), sum(cost))::text from ai.usage_report('-infinity', 'infinity', 'user')
  union all select 'ledger', e.counter_id::text, e::text from ai.counter_entries e
  union all select 'counters', c.id::text, row(c.limit_id, c.tenant_id)::text from ai.counters c
  union all select 'credits', c.id::text, c::text from ai.credits c
$$;
create table t.before as select * from t.rows();
create table t.books_before as select * from t.books();
select set_eq('select * from t.traces()', array['api_keys', 'artifact_parts', 'artifacts', 'batches', 'cache_entries', 'cache_spaces', 'chunk_vectors', 'chunks', 'conversations', 'counters', 'documents', 'embedding_jobs', 'generations',
  'idempotency_keys', 'known_ways', 'limits', 'llm_calls', 'members', 'messages', 'prepared', 'redactions', 'role_bindings', 'sealed_calls', 'sessions', 'stream_events', 'tool_calls', 'vectorizers'], 'the person is in all of these');

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
select is(t.as_role('mtap_officer', $$ insert into t.said select * from ai.forget_user('p-person') $$), 'ok 10', 'who has the permission may');
select results_eq('select * from t.said', $$ values ('memberships', 1::bigint, null::bigint), ('keys and bindings', 2, null), ('generations', 0, 3), ('calls', 1, null), ('sealed calls', 0, null),
  ('conversations', 1, null), ('artifacts', 1, null), ('documents', 1, null), ('batches', 1, null), ('cached answers', 0, null) $$, 'what it could do at once; what is cached is left to a worker');
select t.worker() as w \gset
select is(ai.continue_forgetting(ai.now()), 1, 'the chore of a worker does the rest');
select is_empty('select * from t.traces()', 'nothing of the person is anywhere');
select is(ai.continue_forgetting(ai.now()), 1, 'in this database there was none but this');
select results_eq($$ select finished_at is not null, pseudonym, stage from ai.forgotten $$, $$ values (true, null::text, 6::smallint) $$,
  'so all is done, and nothing tells any more whom the pseudonym stands for');
select is(ai.continue_forgetting(ai.now()), 0, 'nothing more is to be done');
select is(t.as_role('mtap_officer', $$ insert into t.said select * from ai.forget_user('p-person') $$), 'ok 10', 'asked again,');
select results_eq($$ select what, erased, remaining from t.said offset 10 $$, $$ values ('memberships', 1::bigint, 0::bigint), ('keys and bindings', 2, 0), ('generations', 3, 0), ('calls', 4, 0),
  ('sealed calls', 3, 0), ('conversations', 1, 0), ('artifacts', 1, 0), ('documents', 1, 0), ('batches', 1, 0), ('cached answers', 4, 0) $$, 'it says what was done, and that nothing remains');

-- Books, and others
select is_empty('(select * from t.books() except all select * from t.books_before) union all (select * from t.books_before except all select * from t.books())',
  'the books are what they were, to the last digit: by tenant, call, model, provider, kind, status, day; ledger and counters');
select is((select count(distinct user_id) from ai.llm_calls where tenant_id = t.alpha() and user_id like 'forgotten-%'), 1::bigint, 'one pseudonym stands for the person');
select is((select sum(cost) from ai.llm_calls where tenant_id = t.alpha() and user_id like 'forgotten-%'), 0.600001, 'and has spent what the person had spent');
select is_empty($$ select relation, line from t.before where (line like '%OTHERS%' or line like '%p-other%' or line like '%' || t.beta() || '%') and relation not in ('audit_pending', 'api_keys')
                   except select * from t.rows() $$, 'what is other people''s, here and in the other tenant, is byte for byte what it was');
select results_eq($$ select user_id, created_by from ai.api_keys where tenant_id = t.alpha() $$, $$ values ('p-other', null::text) $$,
  'but that the key that the person made for another says no more who made it');
select is_empty($$ (select relation, line from t.before except select * from t.rows())
                   except select b.relation, b.line from t.before b
                    where b.line like '%PERSONAL%' or b.line like '%' || encode('PERSONAL', 'hex') || '%' or b.line like '%0.15625,0.71875%' or b.line like '%p-person%'
                       or b.line like '%personal%' or b.relation in ('collections', 'cache_questions', 'unrecorded_answers', 'maintenance', 'workers', 'api_keys', 'audit_pending') $$,
  'no row has changed but the person''s');
select is((select count(*) from ai.cache_questions where tenant_id = t.alpha()), 3::bigint, 'of cached questions, the other''s are left');
select is((select count(*) from ai.unrecorded_answers where tenant_id = t.alpha()), 1::bigint, 'likewise of answers under way');
select results_eq($$ select tenant_id, chunks from ai.collections order by 1 $$, $$ values (t.alpha(), 1::bigint), (t.beta(), 1) $$, 'the collection has one chunk less');
select results_eq($$ select user_id, enabled from ai.limits where tenant_id = t.alpha() and metric = 'tokens' order by 1 $$, $$ values ('forgotten', false), ('p-other', true) $$,
  'the limit that named the person is switched off, and names nobody');
set constraints all immediate;
select is_empty($$ select from ai.audit_log where (key::text || coalesce(before::text, '') || coalesce(after::text, '')) ~ 'forgotten-[0-9a-f]' $$, 'the audit log does not say whom the pseudonym stands for');
select set_eq($$ select object, action from ai.audit_log where key ->> 'user_id' = 'p-person' and tenant_id = t.alpha() and user_id = 'officer' $$,
  $$ values ('person', 'forget'), ('members', 'delete') $$, 'but who had the person forgotten');
set constraints all deferred;
select throws_ok($$ update ai.limits set user_id = 'forgotten', enabled = false where user_id = 'p-other' $$, 'PT409', null, 'other limits keep their names');

-- What may be read about it
select is(t.as_role('mtap_officer', $$ select user_id, asked_at, erased, finished_at from ai.forgotten $$), 'ok 1', 'who may forget sees who was forgotten');
select is(t.as_role('mtap_adm', $$ select user_id from ai.forgotten $$), 'ok 1', 'so does an admin');
select is(t.as_role('mtap_ann', $$ select user_id from ai.forgotten $$), 'ok 0', 'a user does not');
select is(t.as_role('mtap_bob', $$ select user_id from ai.forgotten $$), 'ok 0', 'nor does another tenant');
select is(t.as_role('mtap_adm', $$ select pseudonym from ai.forgotten $$), '42501', 'nobody reads the pseudonym');

-- Gone is gone
select is(t.as_role('mtap_person', $$ insert into ai.generations (prompt, model) values ('Am I?', 'mtap/one') $$), 'PT401', 'who was forgotten is nobody');
select throws_ok($$ select t.ask(p_user => 'p-person') $$, 'PT403', null, 'and nobody asks in that name');

-- The name is nobody's until all is erased: whoever has it would read what is left, and be answered from the cache.
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-twice'), (t.alpha(), 'p-renamed');
select t.ask('PERSONAL old', p_user => 'p-twice') as old \gset
select count(*) from t.claim(:'w') \g /dev/null
select count(*) from t.claim(:'w') \g /dev/null
select is((select remaining from ai.forget_user('p-twice', t.alpha()) where what = 'generations'), 1::bigint, 'one runs');
select is(t.as_role('mtap_adm', $$ select ai.add_member('p-twice') $$), 'PT409', 'an admin adds nobody under the name meanwhile');
select throws_ok($$ insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-twice') $$, 'PT409', 'p-twice is still being forgotten', 'nor does the operator');
select throws_ok($$ update ai.members set user_id = 'p-twice' where tenant_id = t.alpha() and user_id = 'p-renamed' $$, 'PT409', null, 'or give it to somebody else');
select lives_ok($$ insert into ai.members (tenant_id, user_id) values (t.beta(), 'p-twice') $$, 'in another tenant it is another''s');
select t.settle(:'w', :'old', 1, 'succeeded', '{"output": "PERSONAL answer", "message": {"role": "assistant", "content": "PERSONAL answer"}}') \g /dev/null
select is(ai.worker_maintain(:'w') -> 'forgetting', '1', 'maintenance runs the chore');
select ai.worker_maintain(:'w'), ai.worker_maintain(:'w') \g /dev/null
select results_eq(format('select user_id ~ %L, status, prompt, output from ai.generations where id = %L', '^forgotten-', :'old'),
  $$ values (true, 'succeeded', null::text, null::text) $$, 'the answer that came late is erased');
select ok((select finished_at is not null from ai.forgotten where user_id = 'p-twice'), 'all is done');
select is(t.as_role('mtap_adm', $$ select ai.add_member('p-twice') $$), 'ok 1', 'then the name is free');
select t.ask('new', p_user => 'p-twice') as new \gset
select is(t.status(:'new'), 'queued', 'the new person may ask');
select is((select erased from ai.forget_user('p-twice', t.alpha()) where what = 'memberships'), 1::bigint, 'and may be forgotten, too');
select ai.worker_maintain(:'w'), ai.worker_maintain(:'w'), ai.worker_maintain(:'w') \g /dev/null
delete from ai.members where tenant_id = t.beta() and user_id = 'p-twice';
select is_empty($$ select r.relation from t.rows() r where r.line like '%p-twice%' and r.relation not in ('forgotten', 'audit_log', 'audit_pending') $$, 'wholly');

-- Whoever has the name next: nothing that the other used up counts, no limit of the tenant's applies, nothing is paid for in the name, nobody made a key. What the
-- operator limits by name stays limited, however often the tenant forgets.
insert into ai.limits (tenant_id, user_id, metric, period, amount, on_limit, operator) values (t.alpha(), 'p-anew', 'requests', 'day', 1, 'reject', false);
insert into ai.limits (tenant_id, per, metric, period, amount, on_limit) values (t.alpha(), 'member', 'requests', 'day', 2, 'reject') returning id as each \gset
insert into ai.limits (tenant_id, user_id, per, metric, period, amount, on_limit) values (t.alpha(), 'p-anew', 'member', 'requests', 'day', 3, 'reject') returning id as operators \gset
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-anew');
create function t.asks_anew() returns text language plpgsql as $$
declare
  v_id uuid := t.ask(p_user => 'p-anew');
begin
  for i in 1 .. 3 loop perform t.claim((select id from ai.workers where ended_at is null limit 1), 64); end loop;
  return t.status(v_id);
end
$$;
create function t.answer_all() returns void language sql as $$
  select t.settle((select id from ai.workers where ended_at is null limit 1), l.generation_id, 1, 'succeeded', '{"output": "x"}') from ai.leases l where l.user_id = 'p-anew'
$$;
update ai.api_keys set created_by = 'p-anew' where tenant_id = t.alpha() and user_id = 'p-other';
update ai.vectorizers set user_id = 'p-anew' where tenant_id = t.alpha() and user_id = 'p-other';
select is(t.asks_anew(), 'running', 'a first question runs');
select is(t.asks_anew(), 'rejected', 'of a second one no more');
select t.answer_all() \g /dev/null
select count(*) from ai.forget_user('p-anew', t.alpha()) \g /dev/null
select ai.continue_forgetting(ai.now()), ai.continue_forgetting(ai.now()) \g /dev/null
select ok((select finished_at is not null from ai.forgotten where user_id = 'p-anew'), 'a name on a limit of the operator does not keep it from being done');
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-anew');
select results_eq($$ select user_id, enabled, operator from ai.limits where tenant_id = t.alpha() and metric = 'requests' and period = 'day' and (per = 'tenant' or user_id is not null) order by id $$,
  $$ values ('forgotten', false, false), ('p-anew', true, true) $$, 'the tenant''s limit is switched off without the name, the operator''s stays');
select is_empty($$ select from ai.vectorizers where user_id = 'p-anew' union all select from ai.api_keys where created_by = 'p-anew' $$, 'nothing is asked for in the name');
select results_eq(format('select limit_id from ai.counters where subject = %L', 'p-anew'), format('select %s::bigint', :operators), 'and nothing has counted under it but by the operator''s limit');
select is(t.asks_anew() || t.asks_anew(), 'runningrunning', 'the new one may ask as often as the operator''s limit still allows,');
select is(t.asks_anew(), 'rejected', 'and no more');
select t.answer_all() \g /dev/null
select results_eq(format($$ select c.subject = 'p-anew', max(e.balance) from ai.counters c join ai.counter_entries e on e.counter_id = c.id where c.limit_id = %s group by c.id order by c.id $$, :each),
  $$ values (false, 1::numeric), (true, 2) $$, 'each has a counter');
delete from ai.limits where metric = 'requests' and period = 'day';

-- What a person wrote is erased, too, where it is searched only until what somebody else put in its place is ready.
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-yin'), (t.alpha(), 'p-yang');
create function t.written(p_user text, p_content text) returns uuid language sql as $$
  select ai.put_document(t.alpha(), p_user, 'library', p_content, null, 'urn:page', '{}')
$$;
create function t.embedded() returns text language sql as $$
  select ai.store_chunk_vectors(t.alpha(), 1, array_agg(c.id order by c.id), jsonb_agg('[0.5, 0.5]'::jsonb)) from ai.chunks c where c.tenant_id = t.alpha() and not c.live
$$;
create function t.searched() returns setof text language sql as $$ select c.content from ai.chunks c join ai.chunk_vectors v on v.tenant_id = c.tenant_id and v.chunk_id = c.id where c.live and c.content like 'page%' $$;
create function t.forgotten(variadic p_users text[]) returns boolean language plpgsql as $$
begin
  perform from unnest(p_users) u cross join lateral ai.forget_user(u, t.alpha());
  for i in 1 .. 3 loop perform ai.continue_forgetting(ai.now()); end loop;
  return (select bool_and(f.finished_at is not null) from ai.forgotten f where f.user_id = any (p_users));
end
$$;
select t.written('p-yin', 'page of yin') as page, t.embedded() \gset
select t.written('p-yang', 'page of yang, first'), t.written('p-yang', 'page of yang') \g /dev/null
select set_eq('select t.searched()', array['page of yin'], 'what the first wrote is searched until the other''s is ready');
select ok(t.forgotten('p-yin'), 'forgotten');
select is_empty('select t.searched()', 'it is searched no more');
select is_empty($$ select r.relation from t.rows() r where (r.line like '%of yin%' or r.line like '%p-yin%') and r.relation not in ('forgotten', 'audit_log', 'audit_pending') $$, 'or anywhere');
select results_eq(format('select user_id, content, status, live_revision from ai.documents where id = %L', :'page'), $$ values ('p-yang', 'page of yang', 'pending', null::integer) $$, 'the other''s waits as before');
select t.embedded() \g /dev/null
select set_eq('select t.searched()', array['page of yang'], 'and is searched once it is ready');
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-yin');
select t.written('p-yin', 'page of yin again'), t.embedded() \g /dev/null
select is((select live_user_id from ai.documents where id = :'page'), null, 'what is searched then is the last one''s');
select ok(t.forgotten('p-yang'), 'who wrote what is searched no more');
select set_eq('select t.searched()', array['page of yin again'], 'takes nothing along');
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-yang');
select t.written('p-yang', 'page of yang again') \g /dev/null
select ok(t.forgotten('p-yin', 'p-yang'), 'both at once');
select is_empty($$ select r.relation from t.rows() r where r.line ~ 'p-ya?i?n' and r.relation not in ('forgotten', 'audit_log', 'audit_pending') union all select r.relation from t.rows() r where r.line like '%page of%' $$, 'leave nothing');
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-yin');
select t.written('p-yin', 'page of yin'), t.embedded(), t.written('p-other', 'page of another') \g /dev/null
select count(*) from ai.forget_user('p-yin', t.alpha(), p_keep_documents => true) \g /dev/null
select set_eq('select t.searched()', array['page of yin'], 'where documents stay, it stays,');
select results_eq($$ select user_id, live_user_id ~ '^forgotten-' from ai.documents where uri = 'urn:page' $$, $$ values ('p-other', true) $$, 'without the name');
delete from ai.documents where uri = 'urn:page';
select ai.continue_forgetting(ai.now()), ai.continue_forgetting(ai.now()) \g /dev/null

-- Documents that stay
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-keeper');
select t.live(t.alpha(), 'p-keeper') \g /dev/null
select count(*) from ai.forget_user('p-keeper', t.alpha(), p_keep_documents => true) \g /dev/null
select ai.worker_maintain(:'w'), ai.worker_maintain(:'w') \g /dev/null
select is((select count(*) from ai.documents where user_id like 'forgotten-%' and tenant_id = t.alpha()), 1::bigint, 'documents stay where that is wished, without a name');
select is_empty($$ select r.relation from t.rows() r where r.line like '%p-keeper%' and r.relation not in ('forgotten', 'audit_log', 'audit_pending') $$, 'and nothing else does');

-- In every state at once: queued, delayed, in a paused batch, waiting for a vector and for whom the same is asked, running
delete from ai.limits where metric <> 'cost';
insert into ai.limits (tenant_id, per, metric, amount) values (t.alpha(), 'member', 'concurrency', 10);
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'p-busy');
insert into ai.batches (tenant_id, user_id, name, paused_at) values (t.alpha(), 'p-busy', 'PERSONAL batch', now()) returning id as batch \gset
insert into ai.lanes (tenant_id, priority, batch_id) values (t.alpha(), 'normal', :'batch');
insert into ai.generations (tenant_id, user_id, prompt, model, batch_id, cache) values (t.alpha(), 'p-busy', 'PERSONAL in a batch', 'mtap/one', :'batch', 'off') returning id as batched \gset
select ai.park_batch(:'batch') \g /dev/null
select t.ask('PERSONAL later', p_user => 'p-busy', p_run_after => ai.now() + interval '300 days') as later \gset
insert into ai.cache_policies (tenant_id, exact, semantic, scope, vector_model) values (t.alpha(), true, true, 'tenant', 'mtap/embed');
insert into ai.generations (tenant_id, user_id, prompt, model, cache) values (t.alpha(), 'p-busy', 'PERSONAL shared question', 'mtap/one', 'exact') returning id as leader \gset
insert into ai.generations (tenant_id, user_id, prompt, model, cache) values (t.alpha(), 'p-other', 'PERSONAL shared question', 'mtap/one', 'exact') returning id as follower \gset
insert into ai.generations (tenant_id, user_id, prompt, model, cache) values (t.alpha(), 'p-busy', 'PERSONAL shared question', 'mtap/one', 'exact') returning id as own_follower \gset
create function t.claim_all() returns bigint language sql as $$ select sum(n) from (select (select count(*) from t.claim((select id from ai.workers limit 1), 64) where i > 0) as n from generate_series(1, 6) i) o $$;
select t.claim_all() \g /dev/null
-- The vectors of the questions come; then the leader is sent, and the others wait for it.
select t.settle(:'w', l.generation_id, 1, 'succeeded', '{"embedding": [0.6, 0.8]}') from ai.leases l join ai.generations g on g.id = l.generation_id and g.purpose = 'query' \g /dev/null
select t.claim_all() \g /dev/null
insert into ai.generations (tenant_id, user_id, prompt, model, cache) values (t.alpha(), 'p-busy', 'PERSONAL new question', 'mtap/one', 'semantic') returning id as waits \gset
select results_eq(format($$ select t.place(%L), t.place(%L), t.place(%L), t.place(%L), (select count(*) from ai.waiting w where w.generation_id in (%L, %L)), (select count(*) from ai.waiting w where w.generation_id = %L) $$,
                         :'batched', :'later', :'leader', :'follower', :'follower', :'own_follower', :'waits'),
  $$ values ('queue', 'delayed', 'lease', null::text, 2::bigint, 1::bigint) $$, 'they are where they should be');
select l.metric, c.id as counter from ai.counters c join ai.limits l on l.id = c.limit_id where c.subject = 'p-busy' and l.metric = 'concurrency' \gset
select is((select balance from ai.counter_entries where counter_id = :counter order by seq desc limit 1) > 0, true, 'something is reserved');
select ok((select remaining >= 3 from ai.forget_user('p-busy', t.alpha()) where what = 'generations'), 'an app leaves to a worker what a worker might wait for');
select results_eq(format($$ select t.status(%L), t.status(%L), t.status(%L) $$, :'batched', :'later', :'leader'), $$ values ('cancelled', 'cancelled', 'running') $$, 'what is queued or delayed ends at once');
select ai.continue_forgetting(ai.now()), ai.continue_forgetting(ai.now()) \g /dev/null
select results_eq(format($$ select t.status(%L), t.status(%L), t.status(%L), t.status(%L) $$, :'waits', :'own_follower', :'follower', :'leader'),
  $$ values ('cancelled', 'cancelled', 'queued', 'running') $$, 'what waits, too; another member''s question stays');
select results_eq(format('select generation_id from ai.worker_cancellations(%L)', :'w'), format('select %L::uuid', :'leader'), 'the worker is told to abort what runs');
select ok((select finished_at is null from ai.forgotten where user_id = 'p-busy'), 'as long as it runs, it is not done');
select t.settle(:'w', :'leader', 1, 'succeeded', '{"output": "PERSONAL answer", "finish_reason": "stop", "usage": {"input": 10, "output": 2}}') \g /dev/null
select is((select count(*) from ai.cache_entries where output = 'PERSONAL answer'), 1::bigint, 'it answers all the same, and the answer is kept');
select ai.worker_maintain(:'w'), ai.worker_maintain(:'w') \g /dev/null
select is_empty($$ select from ai.cache_entries where output = 'PERSONAL answer' $$, 'but not for long');
select set_eq($$ select distinct r.relation from t.rows() r where (r.line like '%PERSONAL%' or r.line like '%p-busy%') and r.relation not in ('forgotten', 'audit_log', 'audit_pending') and r.line not like '%p-other%' $$,
  array[]::text[], 'nothing of it is left');
select results_eq(format('select output, cached from ai.generations where id = %L', :'follower'), $$ values ('PERSONAL answer', true) $$, 'who had asked the same has got the answer, and keeps it');
select ok((select finished_at is not null from ai.forgotten where user_id = 'p-busy'), 'all is done');
select is((select e.balance from ai.counter_entries e where e.counter_id = :counter order by e.seq desc limit 1), 0::numeric, 'what was reserved is given back');
select ok((select subject ~ '^forgotten-' from ai.counters where id = :counter), 'on a counter without a name');

-- Many people at once share the walk; more rows than are looked at in one step
insert into ai.members (tenant_id, user_id) select t.beta(), 'p-many-' || i from generate_series(1, 20) i;
insert into ai.generations (tenant_id, id, user_id, status, prompt, cost, created_at, finished_at)
select t.beta(), ('01000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, case when i % 4 = 0 then 'p-many-' || 1 + i / 4 % 20 else 'bob' end, 'succeeded', 'PERSONAL', 0.01, now(), now()
  from generate_series(1, 9000) i;
insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, kind, status, cost)
select g.tenant_id, g.id, n, now(), g.user_id, 'mtap-first', 'mtap/one', 'chat', 'succeeded', 0.01 from ai.generations g cross join generate_series(1, 2) n where g.tenant_id = t.beta() and g.id < '01000000-0000-7000-8001-000000000000';
delete from ai.generations where tenant_id = t.beta() and id < '01000000-0000-7000-8000-000000000100';
create table t.sums as select sum(cost) as calls from ai.llm_calls where tenant_id = t.beta();
select count(*) from generate_series(1, 20) i cross join lateral ai.forget_user('p-many-' || i, t.beta()) \g /dev/null
select set_eq($$ select stage from ai.forgotten where tenant_id = t.beta() $$, array[4::smallint], 'each call went through all that an app may');
select is_empty($$ select from ai.generations where user_id like 'p-many-%' union all select from ai.llm_calls where user_id like 'p-many-%' $$, 'of so few nothing is left to a worker');
select is((select sum((erased ->> 'calls')::bigint) from ai.forgotten where tenant_id = t.beta()), 4500::numeric, 'their calls are counted once, also those of generations that are gone');
select is((select sum((erased ->> 'generations')::bigint) from ai.forgotten where tenant_id = t.beta()), (select 2250 - count(*)::numeric from generate_series(1, 255) i where i % 4 = 0), 'and their generations');
-- As if somebody had brought them back, and they had come differently far
insert into ai.generations (tenant_id, id, user_id, status, prompt, cost, created_at, finished_at)
select t.beta(), ('02000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'p-many-' || 1 + i % 20, 'succeeded', 'PERSONAL', 0.01, now(), now() from generate_series(1, 9000) i;
update ai.forgotten set stage = 0, place = '02000000-0000-7000-8000-000000000000' where tenant_id = t.beta();
update ai.forgotten set place = '02000000-0000-7000-8000-000000000400' where user_id = 'p-many-7';
select ai.forget_step(t.beta(), array(select user_id from ai.forgotten where tenant_id = t.beta() and user_id <> 'p-many-7'), 0::smallint, '02000000-0000-7000-8000-000000000000',
  '02000000-0000-7000-8000-000000000100', false) \g /dev/null
select results_eq($$ select place::text collate "default", count(*) from ai.forgotten where tenant_id = t.beta() group by 1 order by 1 $$,
  $$ values ('02000000-0000-7000-8000-000000000100', 19::bigint), ('02000000-0000-7000-8000-000000000400', 1) $$, 'a step ends where others are');
do $$ begin for i in 1 .. 100 loop perform ai.continue_forgetting(ai.now()); exit when not exists (select from ai.forgotten where finished_at is null); end loop; end $$;
select is_empty($$ select from ai.forgotten where finished_at is null $$, 'all of them are done');
select is_empty($$ select from ai.generations where user_id like 'p-many-%' $$, 'and nothing is left of any');
select is((select count(*) from ai.generations where user_id = 'bob' and prompt = 'PERSONAL'), (select count(*) from generate_series(256, 9000) i where i % 4 <> 0), 'nor anything of bob''s lost');
select is((select sum(cost) from ai.llm_calls where tenant_id = t.beta()), (select calls from t.sums), 'the books of the tenant are what they were');
select t.pass('31 days') \g /dev/null
select ai.continue_forgetting(ai.now()) \g /dev/null
select is_empty('select from ai.forgotten', 'after a month nothing tells that they were forgotten but the audit log');

select * from finish();
rollback;
