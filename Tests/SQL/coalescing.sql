-- Of those who ask the same at the same time one asks the provider, and the others get its answer.
begin;
\ir setup/world.sql
\ir setup/caching.sql
select no_plan();

-- ai.elect_leaders(): gives the followers as "follower>leader", by the names that t.names knows.
create table t.names (name text, id uuid);
create function t.name(p_name text, p_over jsonb) returns void language sql as $$ insert into t.names select p_name, t.put(p_over) $$;
create function t.named(p_name text) returns uuid language sql stable as $$ select id from t.names where name = p_name $$;
create function t.elect(variadic p_names text[]) returns text language sql as $$
  select coalesce(string_agg(f.name || '>' || l.name, ' ' order by f.name), '')
    from ai.elect_leaders(array(select t.named(n) from unnest(p_names) n), array(select g.tenant_id from unnest(p_names) with ordinality n (name, at) join ai.generations g on g.id = t.named(n.name) order by n.at)) e
    join t.names f on f.id = e.generation_id join t.names l on l.id = e.leader_id
$$;
create function t.lease(p_name text) returns void language sql as $$
  insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target, model_id, stream, input_bytes, waiting_since, deadline_at, claimed_at)
  select g.id, 1, ai.uuid_v7(), g.tenant_id, g.user_id, 1, 1, t.model('mtap/one'), false, 1, now(), now() + interval '1 hour', now() from ai.generations g where g.id = t.named(p_name)
$$;
-- Who leads: elected and leased.
create function t.leads() returns text language sql stable as $$
  select coalesce(string_agg(n.name, ' ' order by n.name), '')
    from ai.leaders l join ai.leases e on e.generation_id = l.generation_id join t.names n on n.id = l.generation_id
$$;
create function t.end(p_name text) returns void language sql as $$
  delete from ai.leases where generation_id = t.named(p_name);
  select ai.resign_leader(g.tenant_id, g.id) from ai.generations g where g.id = t.named(p_name);
$$;

select t.name('uncached', '{}') \g /dev/null
insert into ai.cache_policies (tenant_id, scope) values (t.alpha(), 'tenant'), (t.beta(), 'tenant');
select t.name(n, o::jsonb) from (values ('a1', '{}'), ('a2', '{}'), ('a3', '{"user_id": "abe"}'), ('a4', '{}'), ('b1', '{"prompt": "b"}'), ('b2', '{"prompt": "b"}'), ('fresh', '{"cache": "refresh"}'),
  ('off', '{"cache": "off"}'), ('beta', '{"tenant": "beta", "user_id": "bob"}'), ('beta2', '{"tenant": "beta", "user_id": "bob"}')) v (n, o)
\g /dev/null

select is(t.elect('uncached'), '', 'what is not cached leads and follows nobody');
select is(t.elect('off', 'fresh'), '', 'nor what is not to be cached, or to be asked anew');
select is((select count(*) from ai.leaders), 0::bigint, 'nobody leads');
select is((select count(*) from ai.elect_leaders('{}', '{}')), 0::bigint, 'of none, none');
select is(t.elect('a2', 'b1', 'a1', 'a3'), 'a2>a1 a3>a1', 'of a batch the first leads, the others follow');
select t.lease('a1'), t.lease('b1') \g /dev/null
select is(t.leads(), 'a1 b1', 'one leader a key');
select is(t.elect('a4', 'b2', 'beta', 'fresh'), 'a4>a1 b2>b1', 'later ones follow, but another tenant''s');
select t.lease('beta') \g /dev/null
select is(t.elect('beta2'), 'beta2>beta', 'which have a leader of their own');
select is(t.elect('a1'), '', 'a leader stays it');
select is(t.elect('a1', 'a2'), 'a2>a1', 'whoever comes with it');
select is((select count(*) from ai.elect_leaders(array[t.named('a4')], array[t.beta()])), 0::bigint, 'a generation is its tenant''s');

-- The end of a lead
select ai.resign_leader(t.alpha(), t.named('a2')), ai.resign_leader(t.beta(), t.named('a1')), ai.resign_leader(t.alpha(), t.named('uncached')), ai.resign_leader(t.alpha(), ai.uuid_v7()) \g /dev/null
select is(t.elect('a4', 'b2', 'beta2'), 'a4>a1 b2>b1 beta2>beta', 'who does not lead does not resign');
select t.end('a1') \g /dev/null
select is(t.elect('a3', 'a4'), 'a4>a3', 'when the leader has gone back to the queue, the first that is sent next leads');
select t.lease('a3') \g /dev/null
select is(t.elect('a1'), 'a1>a3', 'and when it comes again, it follows');
update ai.generations set status = 'failed', finished_at = now() where id = t.named('a3');
select t.end('a3') \g /dev/null
select is(t.elect('a1', 'a4'), 'a4>a1', 'after a failure another leads');
select t.lease('a1') \g /dev/null
select t.keep(t.named('a1'), 'Kept.') \g /dev/null
select t.end('a1') \g /dev/null
select is(t.elect('a2', 'a4'), 'a4>a2', 'after an answer that was kept, too, if there is still somebody to ask');
select is(t.elect('a4'), '', 'one that was elected and never leased leads nobody');
select t.lease('a4') \g /dev/null
select is(t.elect('a2'), 'a2>a4', 'the one that was does');
delete from ai.leases where generation_id = t.named('b1');
select is(t.elect('b2', 'a2', 'beta2'), 'a2>a4 beta2>beta', 'only what runs no more is replaced');

-- Answers that are not kept: one after the other would be slow
delete from ai.leaders;
delete from ai.leases;
select is(t.elect('b1', 'b2'), 'b2>b1', 'b1 leads');
select t.lease('b1') \g /dev/null
select t.keep(t.named('b1'), 'Cut off', '{"finish_reason": "length"}') \g /dev/null
select t.end('b1') \g /dev/null
select t.name('b3', '{"prompt": "b"}') \g /dev/null
select is(t.elect('b2', 'b3'), '', 'after an answer that must not be shared nobody follows: each asks for itself');
select ai.resign_leader(t.alpha(), t.named('b1')) \g /dev/null
select is(t.elect('b2', 'b3'), '', 'whatever is said of its end again');
select t.pass('59 seconds');
select is(t.elect('b2', 'b3'), '', 'for a minute');
select t.pass('1 second');
select is(t.elect('b2', 'b3'), 'b3>b2', 'then they wait for each other again');

-- Forgetting
delete from ai.unshared;
insert into ai.unshared (tenant_id, cache_key, generation_id, until) values (t.alpha(), '\x01', ai.uuid_v7(), '2100-01-01 00:00+00');
select ai.forget_expired_entries('2099-12-31 23:59:59+00') \g /dev/null
select is((select count(*) from ai.unshared), 1::bigint, 'that each asks for itself is remembered as long');
select ai.forget_expired_entries('2100-01-01 00:00+00') \g /dev/null
select is((select count(*) from ai.unshared), 0::bigint, 'and no longer');
delete from ai.leaders;
insert into ai.leaders (tenant_id, cache_key, generation_id, elected_at)
values (t.alpha(), '\x01', t.named('a1'), '2100-01-01 00:00+00'), (t.alpha(), '\x02', t.named('a2'), '2100-01-01 00:00+00'), (t.alpha(), '\x03', t.named('a3'), '2100-01-01 00:00:01+00');
select t.lease('a2') \g /dev/null
select ai.forget_expired_entries('2100-01-01 00:00:59+00') \g /dev/null
select is((select count(*) from ai.leaders), 3::bigint, 'leaders are forgotten a minute after their election');
select ai.forget_expired_entries('2100-01-01 00:01+00') \g /dev/null
select is((select string_agg(n.name, ' ' order by n.name) from ai.leaders l join t.names n on n.id = l.generation_id), 'a2 a3', 'if they run no more');
delete from ai.leaders;
delete from ai.leases;
delete from ai.queue;

-- From the insert to the books, with a worker
delete from ai.cache_entries;
delete from ai.active_lanes;
select t.worker() as w \gset
select t.put('{"prompt": "crowd"}') as g1, t.put('{"prompt": "crowd", "stream": true}') as g2, t.put('{"prompt": "crowd", "user_id": "abe"}') as g3 \gset
create temporary table sent as select * from t.claim(:'w');
select is((select count(*) from sent), 1::bigint, 'of three that ask the same one is sent');
select is((select array_agg(generation_id order by generation_id) from ai.waiting where for_id = :'g1'), array[:'g2', :'g3']::uuid[], 'the others wait for it');
select t.put('{"prompt": "crowd"}') as g4 \gset
select is((select count(*) from t.claim(:'w')), 0::bigint, 'and so does who comes later');
select t.settle(:'w', :'g1', 1, 'succeeded', '{"output": "Shared.", "finish_reason": "stop", "usage": {"input": 1000000, "output": 1000000}}') \g /dev/null
select is((select array_agg(g.status || '/' || g.output || '/' || g.cached || '/' || g.cost || '/' || coalesce(g.saved::text, '-') order by g.id) from ai.generations g where g.id in (:'g1', :'g2', :'g3', :'g4')),
          array['succeeded/Shared./false/18/-', 'succeeded/Shared./true/0/18', 'succeeded/Shared./true/0/18', 'succeeded/Shared./true/0/18'], 'all have its answer, one has paid for it');
select is((select array_agg(coalesce(c.cache, 'provider') || '/' || c.cost order by c.generation_id) from ai.llm_calls c where c.generation_id in (:'g1', :'g2', :'g3', :'g4')),
          array['provider/18', 'coalesced/0', 'coalesced/0', 'coalesced/0'], 'as the books say');
select is((select string_agg(e.type || ':' || e.data, ',' order by e.seq) from ai.stream_events e where e.generation_id = :'g2' and e.type = 'delta'), 'delta:Shared.', 'who asked for a stream gets the text as one');
select is((t.asked('{"prompt": "crowd"}')).output, 'Shared.', 'who comes now is answered in the INSERT');
select is((select count(*) from ai.waiting), 0::bigint, 'nobody waits');
select is((select count(*) from ai.leases), 0::bigint, 'nothing runs');

-- The leader fails
select t.put('{"prompt": "fails"}') as f1, t.put('{"prompt": "fails"}') as f2, t.put('{"prompt": "fails"}') as f3 \gset
select is((select array_agg(id) from t.claim(:'w')), array[:'f1'::uuid], 'one is sent');
select t.settle(:'w', :'f1', 1, 'failed', '{"signal": "http", "http_status": 400}') \g /dev/null
select is(t.status(:'f1'), 'failed', 'it fails');
select is((select array_agg(id) from t.claim(:'w')), array[:'f2'::uuid], 'another takes its place');
select is((select array_agg(generation_id) from ai.waiting), array[:'f3'::uuid], 'the rest waits for that one');
select t.settle(:'w', :'f2', 1, 'succeeded', '{"output": "At last.", "finish_reason": "stop"}') \g /dev/null
select is((t.generation(:'f3')).output, 'At last.', 'and gets its answer');
-- It is cancelled
select t.put('{"prompt": "cancelled"}') as c1, t.put('{"prompt": "cancelled"}') as c2, t.put('{"prompt": "cancelled"}') as c3 \gset
select count(*) from t.claim(:'w') \g /dev/null
set local session authorization mtap_ann;
select is(ai.cancel(:'c2'), 'cancelled', 'a follower is cancelled at once');
select is(ai.cancel(:'c1'), 'running', 'the leader when its worker has aborted it');
reset session authorization;
select is(t.status(:'c3'), 'queued', 'which nobody else notices');
select t.settle(:'w', :'c1', 1, 'cancelled') \g /dev/null
select is((select array_agg(id) from t.claim(:'w')), array[:'c3'::uuid], 'the next one leads');
select t.settle(:'w', :'c3', 1, 'succeeded', '{"output": "Alone.", "finish_reason": "stop"}') \g /dev/null
-- Its answer must not be shared
select t.put('{"prompt": "long"}') as l1, t.put('{"prompt": "long"}') as l2, t.put('{"prompt": "long"}') as l3 \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'l1', 1, 'succeeded', '{"output": "Cut", "finish_reason": "length"}') \g /dev/null
select is((select array_agg(id order by id) from t.claim(:'w')), array[:'l2', :'l3']::uuid[], 'after an answer that was cut short the others ask for themselves, all at once');
select is((select count(*) from ai.cache_entries where output = 'Cut'), 0::bigint, 'and it is not kept');
-- It goes back to the queue
select t.put('{"prompt": "again"}') as r1, t.put('{"prompt": "again"}') as r2 \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'r1', 1, 'failed', '{"signal": "http", "http_status": 503}') \g /dev/null
select is(t.place(:'r1'), 'delayed', 'a leader that is to be tried again later');
select is((select count(*) from t.claim(:'w')), 0::bigint, 'keeps its followers: a provider that is overloaded is not asked by each of them in turn');
select t.put('{"prompt": "again"}') as r3 \gset
select is((select array_agg(id) from t.claim(:'w')), array[:'r3'::uuid], 'but who comes meanwhile does not wait for it');
select t.settle(:'w', :'r3', 1, 'succeeded', '{"output": "Done.", "finish_reason": "stop"}') \g /dev/null
select t.pass('1 minute');
update ai.workers set heartbeat_at = ai.now();
select t.settle(:'w', id, attempt, 'succeeded', '{"output": "Late.", "finish_reason": "stop"}') from t.claim(:'w')
\g /dev/null
select is((t.generation(:'r1')).output || (t.generation(:'r2')).output, 'Late.Late.', 'its retry answers who has waited for it');
select is((select count(*) from ai.waiting), 0::bigint, 'nobody waits');
-- Its worker dies
select t.put('{"prompt": "dies"}') as d1, t.put('{"prompt": "dies"}') as d2 \gset
select t.worker('mortal') as m \gset
select count(*) from t.claim(:'m') \g /dev/null
select t.pass('1 minute');
update ai.workers set heartbeat_at = ai.now() where id = :'w';
select ai.worker_maintain(:'w') \g /dev/null
select t.pass('1 minute');
update ai.workers set heartbeat_at = ai.now() where id = :'w';
select t.settle(:'w', id, attempt, 'succeeded', '{"output": "Survived.", "finish_reason": "stop"}') from t.claim(:'w')
\g /dev/null
select is((t.generation(:'d1')).output || (t.generation(:'d2')).output, 'Survived.Survived.', 'a leader whose worker died is asked again, and answers for all');
-- Refreshing is asked whatever runs
select t.put('{"prompt": "r"}') as x1, t.put('{"prompt": "r", "cache": "refresh"}') as x2, t.put('{"prompt": "r", "cache": "off"}') as x3, t.put('{"prompt": "r"}') as x4 \gset
select is((select array_agg(id order by id) from t.claim(:'w')), array[:'x1', :'x2', :'x3']::uuid[], 'what refreshes or is not to be cached waits for nobody');

select * from finish();
rollback;
