-- What a worker gets, in which order, and what it does not get.
begin;
\ir setup/world.sql
select no_plan();
select t.worker() as w \gset

-- The call and its header
select t.ask('  Why?  ', p_stream => true, p_deadline_ms => 60000) as g \gset
create table t.first as select * from ai.worker_claim(:'w', 10, null);
select is((select count(*) from t.first), 2::bigint, 'a header and a call');
select results_eq('select kind, dialect, base_url, secret, headers, options, model, stream, attempt from t.first where generation_id is not null',
                  $$ values ('chat', 'openai', 'http://first.test/v1', 'FIRST_API_KEY', '{}'::jsonb, '{}'::jsonb, 'one-wire', true, 1) $$, 'the call says whom to ask and how');
select is((select request from t.first where generation_id is not null), '{"messages": [{"role": "user", "content": "  Why?  "}], "params": {}}', 'and what, unchanged');
select ok((select timeout_ms between 59000 and 60000 from t.first where generation_id is not null), 'and for how long');
select ok((select cursor is not null and attempt is null and wait_ms is null and retries = 0 from t.first where generation_id is null), 'the header has a cursor; nothing waits');
select is((t.generation(:'g')).status, 'running', 'it runs');
select is((t.generation(:'g')).attempts, 1::smallint, 'the attempt is counted');
select is((t.generation(:'g')).provider, 'mtap-first', 'the provider is named');
select isnt((t.generation(:'g')).started_at, null, 'when it started');
select is(t.place(:'g'), 'lease', 'it is leased and not queued');
select is((select count(*) from ai.worker_claim(:'w', 10, null)), 1::bigint, 'nothing is claimed twice');
select is((select input_bytes from ai.leases where generation_id = :'g'), 10, 'the bytes of the input: eight of the prompt, two of the params');

-- Options: the model's go over the provider's, max_output_tokens below both
update ai.providers set options = '{"a": 1, "b": 1}', headers = '{"x-y": "z"}' where name = 'mtap-first';
update ai.models set options = '{"b": 2}', max_output_tokens = 99 where name = 'mtap/one';
select t.ask() as g \gset
select is((select options from ai.worker_claim(:'w', 10, null) where generation_id = :'g'), '{"a": 1, "b": 2, "max_output_tokens": 99}', 'options');
update ai.models set options = '{"settles_apart": false}', max_output_tokens = null where name = 'mtap/one';
update ai.providers set options = '{}', headers = '{}' where name = 'mtap-first';
insert into ai.generations (tenant_id, user_id, prompt, model, params) values (t.alpha(), 'ann', 'x', 'mtap/one', '{"response_format": {"type": "json_object"}}') returning id as g \gset
select is((select options from ai.worker_claim(:'w', 10, null) where generation_id = :'g'), '{"settles_apart": true}', 'nobody waits for an answer that is looked at, whatever options say');
insert into ai.guardrails (tenant_id, name, scope, detector, action) values (t.alpha(), 'out', 'output', 'email', 'redact');
select t.ask() as g \gset
select is((select options from ai.worker_claim(:'w', 10, null) where generation_id = :'g'), '{"settles_apart": true}', 'nor for one that guardrails look at');
delete from ai.guardrails;
update ai.models set options = '{}' where name = 'mtap/one';
select t.ask('numbers', p_model => 'mtap/embed', p_kind => 'embedding') as g \gset
select is((select request from ai.worker_claim(:'w', 10, null) where generation_id = :'g'), '{"input": "numbers", "params": {}}', 'an embedding has an input');

-- Bounds
select throws_ok(format('select * from ai.worker_claim(%L, %s, %s)', :'w', n, cursor), state, null, format('limit %s, cursor %s: %s', n, cursor, state))
  from (values ('0', 'null', 'PT400'), ('-1', 'null', 'PT400'), ('10001', 'null', 'PT400'), ('null', 'null', 'PT400'), ('1', '''rubbish''', 'PT400'), ('1', '''[]''', 'PT400'),
               ('1', '''7''', 'PT400'), ('1', '''{"marks": 7}''', 'PT400'), ('1', '''''', 'PT400')) v (n, cursor, state);
select lives_ok(format('select * from ai.worker_claim(%L, 10000, null)', :'w'), 'limit 10000');
select lives_ok(format('select * from ai.worker_claim(%L, 1, %L)', :'w', '{}'), 'an empty cursor is a cursor');
select throws_ok($$ select * from ai.worker_claim(gen_random_uuid(), 1, null) $$, 'PT404', null, 'an unknown worker');
select throws_ok($$ select * from ai.worker_claim(null, 1, null) $$, 'PT404', null, 'no worker');
select t.worker('gone') as gone \gset
select ai.worker_stop(:'gone') \g /dev/null
select throws_ok(format('select * from ai.worker_claim(%L, 1, null)', :'gone'), 'PT404', null, 'a worker that stopped');

-- Order: priorities within a tenant, then the order of insertion
select t.ask('low', p_priority => 'low') as low, t.ask('normal 1') as n1, t.ask('normal 2') as n2, t.ask('high', p_priority => 'high') as high \gset
select results_eq(format('select id from t.claim(%L, 10)', :'w'), array[:'high', :'n1', :'n2', :'low']::uuid[], 'high, normal in order, low');
select t.ask('low', p_priority => 'low') as low, t.ask('normal 1') as n1, t.ask('high', p_priority => 'high') as high \gset
select results_eq(format('select id from t.claim(%L, 1)', :'w'), array[:'high']::uuid[], 'one at a time: high');
select results_eq(format('select id from t.claim(%L, 1)', :'w'), array[:'n1']::uuid[], 'then normal');
select results_eq(format('select id from t.claim(%L, 1)', :'w'), array[:'low']::uuid[], 'then low');

-- Fairness: 10,000 rows of one tenant do not delay the row of another
insert into ai.generations (tenant_id, user_id, prompt, model) select t.alpha(), 'ann', 'much', 'mtap/one' from generate_series(1, 10000);
select t.ask(p_tenant => t.beta(), p_user => 'bob') as lone \gset
create table t.next as select * from t.claim(:'w', 64);
select is((select count(*) from t.next where id = :'lone'), 1::bigint, 'the lone row of another tenant is in the very next claim');
select is((select count(*) from t.next), 64::bigint, 'which is full all the same');
-- with a cursor, too, and again and again
create table t.cursor (value text);
insert into t.cursor values (null);
create function t.claim_on(p_worker uuid, p_limit integer) returns setof uuid language plpgsql as $$
declare
  v_row record;
begin
  for v_row in select * from ai.worker_claim(p_worker, p_limit, (select value from t.cursor)) loop
    if v_row.generation_id is null then
      update t.cursor set value = v_row.cursor;
    else
      return next v_row.generation_id;
    end if;
  end loop;
end
$$;
select count(*) from t.claim_on(:'w', 64) \g /dev/null
select is((select count(*) from t.claim_on(:'w', 64 + n * 0) c where c = id), 1::bigint, format('the lone row, by cursor (%s)', n))
  from (select n, t.ask(p_tenant => t.beta(), p_user => 'bob') as id from generate_series(1, 3) n) l;
select count(*) as beta from (select t.ask(p_tenant => t.beta(), p_user => 'bob') from generate_series(1, 100)) a \gset
create table t.shares as select (t.generation(c)).tenant_id as tenant from t.claim_on(:'w', 64) c;
select is((select count(*) from t.shares where tenant = t.beta()), 32::bigint, 'two tenants with much share a claim evenly');
select is((select array_agg((t.generation(c)).tenant_id) from t.claim_on(:'w', 1) c) <> (select array_agg((t.generation(c)).tenant_id) from t.claim_on(:'w', 1) c), true,
          'one at a time they alternate');
-- and where every claim looks at everything, as where calls take longer than the time between two sweeps
create table t.alone (n integer, tenant uuid);
do $$
begin
  for v_n in 1 .. 6 loop
    insert into t.alone select v_n, (t.generation(c.id)).tenant_id from t.claim((select id from ai.workers where ended_at is null limit 1), 1) c;
  end loop;
end
$$;
select is((select count(*) from t.alone o join t.alone n on n.n = o.n + 1 and n.tenant = o.tenant), 0::bigint, 'one at a time they alternate without a cursor, too');
select is((select count(*) from t.alone), 6::bigint, 'each gets one');
set local ai.claimed_after = 'rubbish';
select is((select count(*) from t.claim(:'w', 1)), 1::bigint, 'whatever the session says of the round');
select is((select count(distinct c) from generate_series(1, 3) n cross join lateral t.claim_on(:'w', 1000 + n * 0) c), 3000::bigint, 'no row twice over several claims');
delete from ai.queue;

-- Many tenants and a small claim: each gets its turn
insert into ai.tenants (id, name) select ('0c000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'mtap ' || n from generate_series(1, 40) n;
insert into ai.members (tenant_id, user_id) select id, 'one' from ai.tenants where name ~ '^mtap [0-9]';
insert into ai.generations (tenant_id, user_id, prompt, model)
select m.tenant_id, 'one', 'x', 'mtap/one' from ai.members m cross join generate_series(1, 5) where m.user_id = 'one';
update t.cursor set value = null;
create table t.turns as select n, (t.generation(c)).tenant_id as tenant from generate_series(1, 20) n cross join lateral t.claim_on(:'w', 10 + n * 0) c;
select is((select count(distinct tenant) from t.turns where n <= 4), 40::bigint, 'forty tenants, ten a claim: all have had their turn after four claims');
select is((select min(c) || '…' || max(c) from (select count(*) as c from t.turns group by tenant) s), '5…5', 'and each has all of its own after twenty');

-- A thousand tenants: each once, and the cursor does not grow with them
delete from ai.queue;
insert into ai.tenants (id, name) select ('0d000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'mtap many ' || n from generate_series(1, 1000) n;
insert into ai.members (tenant_id, user_id) select id, 'one' from ai.tenants where name like 'mtap many %';
insert into ai.generations (tenant_id, user_id, prompt, model)
select m.tenant_id, 'one', 'x', 'mtap/one' from ai.members m join ai.tenants n on n.id = m.tenant_id and n.name like 'mtap many %' cross join generate_series(1, 2) where m.user_id = 'one';
update t.cursor set value = null;
create table t.many (n integer, tenant uuid, bytes integer);
insert into t.many
select n, (t.generation(c)).tenant_id, 0 from generate_series(1, 10) n cross join lateral t.claim_on(:'w', 100 + n * 0) c;
select is((select count(distinct tenant) from t.many), 1000::bigint, 'a thousand tenants, a hundred a claim: each has had its turn after ten claims');
insert into t.many
select n, (t.generation(c)).tenant_id, octet_length((select value from t.cursor)) from generate_series(11, 20) n cross join lateral t.claim_on(:'w', 100 + n * 0) c;
select is((select min(c) || '…' || max(c) from (select count(*) as c from t.many group by tenant) s), '2…2', 'and each has all of its own after twenty');
select cmp_ok((select max(bytes) from t.many), '<', 32000, 'the cursor keeps the marks of some lanes only');
select is(octet_length((select value from t.cursor)) > 1000, true, 'of some it does');

-- The cursor is a hint: what was committed behind its mark is found by a claim without one
select t.ask('early') as early, t.ask('late') as late \gset
delete from ai.queue where generation_id = :'early';
select array_agg(c) from t.claim_on(:'w', 10) c \g /dev/null
insert into ai.queue (lane_id, generation_id, tenant_id) select l.id, :'early', t.alpha() from ai.lanes l where l.tenant_id = t.alpha() and l.priority = 'normal';
select is((select count(*) from t.claim_on(:'w', 10)), 0::bigint, 'behind the mark: not with the cursor');
select results_eq(format('select id from t.claim(%L)', :'w'), array[:'early']::uuid[], 'but without one');

-- Later
select t.ask('later', p_run_after => ai.now() + interval '1 hour') as later \gset
select is(t.place(:'later'), 'delayed', 'what is to run later waits apart');
select is((select wait_ms between 3599000 and 3600000 from ai.worker_claim(:'w', 1, null) where generation_id is null), true, 'the header says how long');
select is((select retries from ai.worker_claim(:'w', 1, null) where generation_id is null), 0, 'and that it is no retry');
select is((select wait_ms from ai.worker_claim(:'w', 1, '{}') where generation_id is null), null::integer, 'but not to a claim with a cursor');
select t.pass('59 minutes');
update ai.workers set heartbeat_at = ai.now();
select is((select count(*) from t.claim(:'w')), 0::bigint, 'not before its time');
select t.pass('2 minutes');
select is((select count(*) from t.claim(:'w', 64, '{}')), 0::bigint, 'a claim with a cursor does not look');
select results_eq(format('select id from t.claim(%L)', :'w'), array[:'later']::uuid[], 'when its time has come it is claimed');
select ok((select deadline_at - waiting_since = interval '10 minutes' and waiting_since > ai.now() - interval '2 minutes' from ai.leases where generation_id = :'later'),
          'its deadline counts from run_after');

-- A generation of the far future stops nobody
select t.ask('next year', p_run_after => ai.now() + interval '300 days') as far, t.ask('now') as now \gset
select results_eq(format('select id from t.claim(%L)', :'w'), array[:'now']::uuid[], 'beside one that is due in 300 days');
select is((select wait_ms from ai.worker_claim(:'w', 1, null) where generation_id is null), 2147483647, 'and the header waits as long as an integer can say');
delete from ai.delayed;

-- Ten thousand at once become due in one claim
insert into ai.generations (tenant_id, user_id, prompt, model, run_after) select t.alpha(), 'ann', 'soon', 'mtap/one', ai.now() + interval '1 s' from generate_series(1, 10001);
select t.pass('2 s');
select is((select count(*) from t.claim(:'w', 64)), 64::bigint, 'what is due by thousands is claimed by the batch');
select is((select count(*) from ai.delayed), 1::bigint, 'ten thousand a call become due');
select is((select wait_ms from ai.worker_claim(:'w', 1, null) where generation_id is null), null::integer, 'the rest with the next');
delete from ai.queue;

-- What cannot be called ends with the reason
select t.ask('late', p_deadline_ms => 1000) as late, t.ask('in time', p_deadline_ms => 10000) as fine, t.ask('month', p_deadline_ms => 1000) as month \gset
delete from ai.queue where generation_id = :'month';
select t.pass('2 s');
select results_eq(format('select id from t.claim(%L)', :'w'), array[:'fine']::uuid[], 'one whose time is over is not called');
select results_eq(format($$ select status, error ->> 'class', error ->> 'code', finished_at is not null, last_seq, latency_ms between 2000 and 600000, attempts::int from ai.generations where id = %L $$, :'late'),
                  $$ values ('failed', 'deadline', 'PT504', true, 1, true, 0) $$, 'it failed and says so');
select is((select count(*) from ai.llm_calls where generation_id = :'late'), 0::bigint, 'no call, no row on the books');
select is(t.place(:'late'), null, 'it is queued no more');
-- even when nobody looked for it for longer than an integer counts in milliseconds
insert into ai.queue (lane_id, generation_id, tenant_id) select l.id, :'month', t.alpha() from ai.lanes l where l.tenant_id = t.alpha() and l.priority = 'normal';
select t.pass('30 days');
update ai.workers set heartbeat_at = ai.now();
select lives_ok(format('select * from ai.worker_claim(%L, 64, null)', :'w'), 'a database that slept for a month does not choke');
select is(t.status(:'month'), 'failed', 'and ends what it missed');

select t.ask('x', p_user => 'abe') as abe, t.ask('x', p_tenant => t.beta(), p_user => 'bob') as bob, t.ask('x', p_model => 'mtap/two') as two, t.ask('x') as ok,
       t.ask('x', p_profile => 'mtap-route') as routed \gset
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'abe';
update ai.tenants set enabled = false where id = t.beta();
update ai.models set enabled = false where name = 'mtap/two';
select set_eq(format('select id from t.claim(%L)', :'w'), array[:'ok', :'routed']::uuid[], 'what was revoked or removed is not called, the rest of the batch is');
select results_eq(format($$ select status, error ->> 'class', error ->> 'code' from ai.generations where id = any (%L) order by array_position(%1$L, id) $$, array[:'abe', :'bob', :'two']::uuid[]),
                  $$ values ('rejected', 'revoked', 'PT403'), ('rejected', 'revoked', 'PT403'), ('failed', 'no_model', 'PT404') $$, 'each says why');
update ai.members set enabled = true;
update ai.tenants set enabled = true;
update ai.models set enabled = true where name = 'mtap/two';

-- Which model: one's own goes before the shared one; another tenant's is never found, whatever refers to it
select ai.target_model(t.alpha(), 'chat', 'mtap/one', null, 1) as shared \gset
insert into ai.providers (tenant_id, name, dialect, base_url) values (t.beta(), 'mtap-beta', 'openai', 'http://beta.test') returning id as p \gset
insert into ai.models (tenant_id, provider_id, name, wire_name) values (t.beta(), :p, 'mtap/one', 'betas-one') returning id as own \gset
select is(ai.target_model(t.alpha(), 'chat', 'mtap/one', null, 1), :shared::bigint, 'alpha has the shared model');
select is(ai.target_model(t.beta(), 'chat', 'mtap/one', null, 1), :own::bigint, 'beta its own of the same name');
select is(ai.target_model(t.beta(), 'chat', 'mtap/one', null, 2), null::bigint, 'a named model has no second target');
select is(ai.target_model(t.alpha(), 'embedding', 'mtap/one', null, 1), null::bigint, 'a model of another kind is none');
insert into ai.routes (profile, model_id) values ('mtap-leak', :own);
select is(ai.target_model(t.alpha(), 'chat', null, 'mtap-leak', 1), null::bigint, 'a shared route that leads to beta''s model leads alpha nowhere');
select is(ai.target_model(t.beta(), 'chat', null, 'mtap-leak', 1), :own::bigint, 'but beta to it');
insert into ai.models (provider_id, name, wire_name) values (:p, 'mtap/borrowed', 'x');
select is(ai.target_model(t.alpha(), 'chat', 'mtap/borrowed', null, 1), null::bigint, 'a shared model at beta''s provider would use beta''s key');
insert into ai.routes (tenant_id, profile, model_id) values (t.beta(), 'mtap-route', :own);
select is(ai.target_model(t.beta(), 'chat', null, 'mtap-route', 2), null::bigint, 'a tenant with a route of its own uses only that');
select is(ai.target_model(t.alpha(), 'chat', null, 'mtap-route', 2), t.model('mtap/two'), 'the others the shared one');
update ai.providers set enabled = false where name = 'mtap-first';
select is(ai.target_model(t.alpha(), 'chat', null, 'mtap-route', 1), t.model('mtap/two'), 'targets that are switched off are passed over');

-- Registering
select throws_ok($$ select * from ai.worker_register('x', '1', 5) $$, 'PT409', null, 'a worker of another protocol');
select throws_ok($$ select * from ai.worker_register('x', '1', 3) $$, 'PT409', null, 'an older one');
select throws_ok($$ select * from ai.worker_register('x', '1', null) $$, 'PT409', null, 'one that does not say');
select results_eq($$ select channel ~ '^ai_worker_[0-9a-f]{32}$', heartbeat_ms, maintain_ms, publish_ms from ai.worker_register('x', '1', 4) $$,
                  $$ select true, heartbeat_ms, maintain_ms, publish_ms from ai.settings $$, 'a channel and the rhythms');

select * from finish();
rollback;
