-- Circuit breakers: each transition, the probe, who waits for it; accounts without money; all of it through the pipeline.
begin;
\ir setup/world.sql
select no_plan();

insert into ai.models (provider_id, name, wire_name) select p.id, 'mtap/' || v, v from unnest(array['a', 'b', 'c']) v cross join ai.providers p where p.name = 'mtap-' || case when v = 'c' then 'second' else 'first' end;
insert into ai.routes (profile, position, model_id) select 'mtap-abc', n, t.model('mtap/' || u) from unnest(array['a', 'b', 'c']) with ordinality u (u, n);
select id as first from ai.providers where name = 'mtap-first' \gset
update ai.breaker_settings set threshold = 3, cooldown_ms = 2000, cap_ms = 15000 where scope = 'model' and class = 'transient';
update ai.breaker_settings set threshold = 100 where scope = 'provider' and class = 'transient';

-- What a settle reports: 'a transient a ok b rate …' in order; a class, or ok, cancelled, released.
create function t.report(p_what text, p_ids uuid[] default null, p_latency integer default 0) returns void language sql as $$
  select ai.observe_attempts((
    select jsonb_agg(jsonb_build_object('generation_id', coalesce(p_ids[n], gen_random_uuid()), 'model_id', t.model('mtap/' || w[n * 2 - 1]),
                                        'outcome', case w[n * 2] when 'ok' then 'succeeded' when 'cancelled' then 'cancelled' when 'released' then 'released' else 'failed' end,
                                        'class', case when w[n * 2] not in ('ok', 'cancelled', 'released') then w[n * 2] end, 'ttft_ms', p_latency, 'latency_ms', p_latency) order by n)
      from (select regexp_split_to_array(p_what, ' ') as w) x cross join generate_series(1, cardinality(w) / 2) n))
$$;
-- The breaker of a model, or (p_model null) of the provider mtap-first.
create function t.breaker(p_model text) returns text language sql as $$
  select coalesce((select concat_ws(' ', b.state, b.failures, case when b.state = 'open' then 'for ' || round(extract(epoch from b.probe_at - ai.now()) * 1000) end)
                     from ai.breakers b
                    where b.model_id = t.model('mtap/' || p_model) or b.provider_id = (select id from ai.providers where name = 'mtap-first') and p_model is null), 'healthy')
$$;
-- Chooses for generations of one route, all at its first target: the names of the targets, wait with the milliseconds, or none.
create function t.choose(p_names text, p_ids uuid[], p_target integer default 1, p_tokens integer default 10, p_leaders uuid[] default null) returns text language sql as $$
  select string_agg(coalesce(replace(m.name, 'mtap/', ''), 'wait ' || round(extract(epoch from c.until - ai.now()) * 1000), 'none'), ', ' order by array_position(p_ids, c.generation_id))
    from ai.choose_targets(p_ids, array_fill((select array_agg(t.model('mtap/' || n) order by o) from regexp_split_to_table(p_names, ' ') with ordinality u (n, o))::text, array[cardinality(p_ids)]),
                           array_fill(p_target::smallint, array[cardinality(p_ids)]), p_leaders, array_fill(p_tokens, array[cardinality(p_ids)])) c
    left join ai.models m on m.id = c.model_id
$$;
create function t.some(p_count integer) returns uuid[] language sql volatile as $$ select array_agg(gen_random_uuid()) from generate_series(1, p_count) $$;
-- Time stands still but for t.pass(): everything below happens at one moment, so that what is left can be told exactly.
create or replace function ai.now() returns timestamptz language sql stable parallel safe
return timestamptz '2030-01-01 00:00:00+00' + coalesce(nullif(current_setting('ai.clock_offset', true), ''), '0')::interval;

-- 1. The state machine by itself
select is(n::text, e, format('%s with %s failures, cooldown %s: %s: %s', s, f, c, ev, e))
  from (values
    ('closed', 0, 0, 'failed', 1, '(closed,1,0)'), ('closed', 1, 0, 'failed', 1, '(closed,2,0)'), ('closed', 2, 0, 'failed', 1, '(open,3,100)'), ('closed', 0, 0, 'failed', 7, '(open,7,100)'),
    ('closed', 2147483647, 0, 'failed', 1, '(open,2147483647,100)'), ('closed', 2, 0, 'succeeded', 0, '(closed,0,0)'), ('closed', 2, 0, 'let_through', 0, '(closed,2,0)'),
    ('closed', 2, 0, 'probe_failed', 0, '(closed,2,0)'), ('closed', 2, 0, 'probe_void', 0, '(closed,2,0)'),
    ('open', 3, 100, 'failed', 5, '(open,3,100)'), ('open', 3, 100, 'succeeded', 0, '(open,3,100)'), ('open', 3, 100, 'let_through', 0, '(half_open,3,100)'),
    ('open', 3, 100, 'probe_failed', 0, '(open,3,100)'), ('open', 3, 100, 'probe_succeeded', 0, '(closed,0,0)'),
    ('half_open', 3, 100, 'failed', 5, '(half_open,3,100)'), ('half_open', 3, 100, 'succeeded', 0, '(half_open,3,100)'), ('half_open', 3, 100, 'probe_succeeded', 0, '(closed,0,0)'),
    ('half_open', 3, 100, 'probe_failed', 0, '(open,4,200)'), ('half_open', 3, 400, 'probe_failed', 0, '(open,4,800)'), ('half_open', 3, 600, 'probe_failed', 0, '(open,4,1000)'),
    ('half_open', 3, 1000, 'probe_failed', 0, '(open,4,1000)'), ('half_open', 3, 86400000, 'probe_failed', 0, '(open,4,1000)'),
    ('half_open', 3, 100, 'probe_void', 0, '(open,3,100)'), ('half_open', 3, 100, 'let_through', 0, '(half_open,3,100)')) v (s, f, c, ev, k, e)
 cross join lateral ai.next_breaker(s, f, c, ev, k, 3, 100, 1000) n;

-- 2. Counting
select is(ai.choosing_is_needed(), false, 'all is healthy');
select t.report('a ok b ok a cancelled b released a permanent a context') \g /dev/null
select is((select count(*) from ai.breakers), 0::bigint, 'and nothing is written');
select t.report('a transient a transient') \g /dev/null
select is(t.breaker('a'), 'closed 2', 'two failures of three');
select is(t.breaker(null), 'closed 2', 'they count for the provider too');
select is(ai.choosing_is_needed(), false, 'nothing is open yet');
select t.report('b ok') \g /dev/null
select is(t.breaker(null), 'healthy', 'a success of another model is one of the provider');
select is(t.breaker('a'), 'closed 2', 'but not of the model');
select t.report('a permanent') \g /dev/null
select is(t.breaker('a'), 'healthy', 'a refusal is an answer');
select t.report('a transient a transient a ok') \g /dev/null
select is(t.breaker('a'), 'healthy', 'a success after two failures');
select t.report('a transient a ok a transient a transient') \g /dev/null
select is(t.breaker('a'), 'closed 2', 'two after a success');
select t.report('a cancelled a released a unsendable a abandoned') \g /dev/null
select is(t.breaker('a'), 'closed 2', 'what says nothing of the target');
select t.report('a ok a transient') \g /dev/null
select is(t.breaker('a'), 'closed 1', 'a success, and one more');
select t.report('a transient') \g /dev/null
select is(t.breaker('a'), 'closed 2', 'two');
select t.report('a transient') \g /dev/null
select is(t.breaker('a'), 'open 3 for 2000', 'the third opens it');
select is((select why from ai.breakers where model_id = t.model('mtap/a')), 'transient', 'and is why');
select is(ai.choosing_is_needed(), true, 'now targets are chosen');
select t.report('a transient a ok a malformed') \g /dev/null
select is(t.breaker('a'), 'open 3 for 2000', 'what was on its way says nothing new');
delete from ai.breakers;
select t.report('a rate a rate a transient') \g /dev/null
select is(t.breaker('a'), 'open 3 for 2000', 'the class with the lowest threshold decides');
delete from ai.breakers;
select t.report('a transient a transient a rate') \g /dev/null
select is(t.breaker('a'), 'open 3 for 2000', 'wherever it stands');
delete from ai.breakers;
select t.report('a rate a rate a rate a rate a rate a rate a rate a rate a rate') \g /dev/null
select is(t.breaker('a'), 'closed 9', 'nine of ten');
select t.report('a something-new') \g /dev/null
select is(t.breaker('a'), 'closed 9', 'a class without a row does not count');
delete from ai.breakers;
select t.report('a unreachable b unreachable a unreachable b unreachable a unreachable') \g /dev/null
select is(t.breaker(null), 'open 5 for 2000', 'unreachable is the provider');
select is(t.breaker('a'), 'healthy', 'not the model');
select is(t.choose('a b c', t.some(1)), 'c', 'both its models are passed over');
delete from ai.breakers;
select lives_ok($$ select ai.observe_attempts('[]'), ai.observe_attempts(null), ai.observe_attempts('[{"outcome": "failed"}]'),
  ai.observe_attempts('[{"outcome": "failed", "class": "transient", "model_id": 999999999, "generation_id": null}]') $$, 'reports of nothing');
select is((select count(*) from ai.breakers), 0::bigint, 'say nothing');

-- 3. Choosing
select t.some(5) as ids \gset
select t.report('a transient a transient a transient') \g /dev/null
select is(t.choose('a b c', :'ids'), 'b, b, b, b, b', 'an open target is passed over');
select is(t.choose('b a c', :'ids'), 'b, b, b, b, b', 'one behind is not in the way');
select is(t.choose('a b c', :'ids', 2), 'b, b, b, b, b', 'nor one that is behind them');
select is(t.choose('a', :'ids'), 'wait 2000, wait 2000, wait 2000, wait 2000, wait 2000', 'without another target: until the probe');
select is(t.choose('a', :'ids', 2), 'none, none, none, none, none', 'beyond the end there is nothing');
select is((select stage - 'ms' from ai.choose_targets((:'ids'::uuid[])[1:1], array[format('{%s,%s}', t.model('mtap/a'), t.model('mtap/b'))], array[1]::smallint[], null, array[1])),
          '{"stage": "route", "result": "next", "why": "circuit open, or switched off", "passed": ["mtap/a"]}'::jsonb, 'it says what it passed over');
select is((select stage from ai.choose_targets((:'ids'::uuid[])[1:1], array[format('{%s}', t.model('mtap/b'))], array[1]::smallint[], null, array[1])), null, 'and nothing where it did not');
select t.report('b transient b transient b transient') \g /dev/null
select t.pass('500 ms');
select t.report('c transient c transient c transient') \g /dev/null
select is(t.choose('a b c', (:'ids'::uuid[])[1:2]), 'wait 1500, wait 1500', 'all open: until the earliest probe');
update ai.models set enabled = false where name in ('mtap/a', 'mtap/b');
select is(t.choose('a b c', (:'ids'::uuid[])[1:1]), 'wait 2000', 'what is switched off is not waited for');
select is(t.choose('a b', (:'ids'::uuid[])[1:1]), 'none', 'nothing but what is switched off: nothing');
update ai.models set enabled = true where name in ('mtap/a', 'mtap/b');
select is((select count(*) from ai.choose_targets(array[gen_random_uuid(), gen_random_uuid()], array['{}', null], array[1, 1]::smallint[], null, array[1, 1]) where model_id is null and until is null), 2::bigint, 'no route');
delete from ai.breakers;
-- contexts
update ai.models set context_tokens = 100 where name = 'mtap/b';
select t.report('a transient a transient a transient') \g /dev/null
select is(t.choose('a b c', (:'ids'::uuid[])[1:1], p_tokens => n), e, format('%s tokens, 100 in b: %s', n, e)) from (values (100, 'b'), (101, 'c')) v (n, e);
select is(t.choose('a b', (:'ids'::uuid[])[1:1], p_tokens => 101), 'b', 'too small is better than nothing');
update ai.models set context_tokens = null where name = 'mtap/b';
delete from ai.breakers;

-- 4. The probe
select t.report('a transient a transient a transient') \g /dev/null
select t.pass('1.999 s');
select is(t.choose('a', (:'ids'::uuid[])[1:1]), 'wait 1', 'a moment before: not yet');
select t.pass('0.001 s');
select is(t.choose('a b', :'ids'), 'a, b, b, b, b', 'exactly one is let through, the others pass over');
select is(t.breaker('a'), 'half_open 3', 'half open');
select is(t.choose('a b', (:'ids'::uuid[])[2:5]), 'b, b, b, b', 'until it has an end');
select is(t.choose('a', (:'ids'::uuid[])[2:2]), 'wait 1000', 'who has nothing else looks again in a second');
select t.report('a ok a transient', p_latency => 5000) \g /dev/null
select is(t.breaker('a'), 'half_open 3', 'the end of another that began before is no answer');
select t.report('a transient', (:'ids'::uuid[])[1:1]) \g /dev/null
select is(t.breaker('a'), 'open 4 for 4000', 'it failed: twice as long');
select t.pass('4 s');
select is(t.choose('a', (:'ids'::uuid[])[2:3]), 'a, wait 1000', 'the next');
select t.report('a transient', (:'ids'::uuid[])[2:2]) \g /dev/null
select is(t.breaker('a'), 'open 5 for 8000', 'twice that');
select t.pass('8 s');
select is(t.choose('a', (:'ids'::uuid[])[3:4]), 'a, wait 1000', 'and the next');
select t.report('a transient', (:'ids'::uuid[])[3:3]) \g /dev/null
select is(t.breaker('a'), 'open 6 for 15000', 'up to the cap');
select t.pass('15 s');
select is(t.choose('a', (:'ids'::uuid[])[4:5]), 'a, wait 1000', 'one more');
select t.report('a ok', (:'ids'::uuid[])[4:4]) \g /dev/null
select is(t.breaker('a'), 'healthy', 'it answered: closed');
select is(t.choose('a', :'ids'), 'a, a, a, a, a', 'for all');
select is(ai.choosing_is_needed(), false, 'and nothing is chosen any more');

select t.report('a transient a transient a transient b transient b transient b transient') \g /dev/null
select t.pass('2 s');
select is(t.choose('a b c', (:'ids'::uuid[])[1:3]), 'a, b, c', 'two breakers are due: each has a probe of its own, the rest goes past both');
delete from ai.breakers;

-- A probe that says nothing: the next is let through at once.
create function t.half_open() returns uuid language plpgsql as $$
declare v_id uuid := gen_random_uuid();
begin
  delete from ai.breakers;
  perform t.report('a transient a transient a transient');
  perform t.pass('2 s');
  perform t.choose('a', array[v_id]);
  return v_id;
end
$$;
create function t.after(p_class text) returns text language plpgsql as $$
declare v_id uuid := t.half_open();
begin
  perform t.report('a ' || p_class, array[v_id]);
  return t.breaker('a');
end
$$;
select is(t.after(c), e, format('a probe that ends as %s: %s', c, e))
  from (values ('cancelled', 'open 3 for 0'), ('released', 'open 3 for 0'), ('abandoned', 'open 3 for 0'), ('unsendable', 'open 3 for 0'), ('permanent', 'healthy'), ('context', 'healthy'),
               ('ok', 'healthy'), ('credentials', 'open 4 for 30000'), ('rate', 'open 4 for 4000'), ('something-new', 'open 3 for 0')) v (c, e);
-- One that is nowhere leased: a limit kept it in the queue, or its claim was undone.
select t.half_open() as probe \gset
select t.pass('0.999 s');
select is(t.choose('a', t.some(1)), 'wait 1000', 'a moment is given to lease it');
select t.pass('0.001 s');
select is(t.choose('a', t.some(2)), 'a, wait 1000', 'then another is the probe');
select t.report('a transient', array[:'probe'::uuid]) \g /dev/null
select is(t.breaker('a'), 'half_open 3', 'and the first is no more');
-- One that runs for too long is given up; if it answers after all, that counts.
insert into ai.workers (id, name, version, protocol, channel, started_at, heartbeat_at) values ('00000000-0000-7000-8000-00000000000a', 'x', '0', 1, 'x', ai.now(), ai.now());
create function t.lease(p_id uuid, p_model text) returns void language sql as $$
  insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target, model_id, stream, input_bytes, waiting_since, deadline_at, claimed_at)
  values (p_id, 1, '00000000-0000-7000-8000-00000000000a', t.alpha(), 'ann', 1, 1, t.model('mtap/' || p_model), false, 1, ai.now(), ai.now() + interval '1 hour', ai.now())
$$;
select t.half_open() as probe \gset
select t.lease(:'probe', 'a') \g /dev/null
select t.pass('59.999 s');
select is(t.choose('a', t.some(1)), 'wait 1000', 'a probe that runs is waited for');
select t.pass('0.001 s');
select t.some(1) as second \gset
select is(t.choose('a', :'second'), 'a', 'for a minute, then another is sent');
select t.pass('5 s');
select t.report('a ok', array[:'probe'::uuid], 65000) \g /dev/null
select is(t.breaker('a'), 'healthy', 'the first one answers: closed');
-- A lease of the probe on another model is not the probe.
select t.half_open() as probe \gset
select t.lease(:'probe', 'b') \g /dev/null
select t.pass('1 s');
select is(t.choose('a', t.some(1)), 'a', 'a probe that runs elsewhere is none');
delete from ai.leases;
delete from ai.breakers;

-- What follows another, which is asked the same, is not sent.
select t.report('a transient a transient a transient') \g /dev/null
select t.pass('2 s');
select is(t.choose('a b', (:'ids'::uuid[])[1:3], p_leaders => array[:'probe'::uuid, null, null]), 'b, a, b', 'a follower is no probe, the next one is');
delete from ai.breakers;

-- Provider and model both open: one generation is the probe of both.
update ai.breaker_settings set threshold = 6 where scope = 'provider' and class = 'transient';
select t.report('a transient a transient a transient b transient b transient b transient') \g /dev/null
select is(array[t.breaker('a'), t.breaker('b'), t.breaker(null)], array['open 3 for 2000', 'open 3 for 2000', 'open 6 for 2000'], 'two models and their provider are open');
select t.pass('2 s');
select is(t.choose('a b c', (:'ids'::uuid[])[1:4]), 'a, c, c, c', 'one probe for the provider, whatever its models');
select is(array[t.breaker('a'), t.breaker('b'), t.breaker(null)], array['half_open 3', 'open 3 for 0', 'half_open 6'], 'it is the probe of both its breakers');
select t.report('a ok', (:'ids'::uuid[])[1:1]) \g /dev/null
select is(array[t.breaker('a'), t.breaker('b'), t.breaker(null)], array['healthy', 'open 3 for 0', 'healthy'], 'it closes both');
select is(t.choose('a b c', (:'ids'::uuid[])[1:2]), 'a, a', 'the first target is there again');
select is(t.choose('b a c', (:'ids'::uuid[])[1:3]), 'b, a, a', 'and the second model is probed where it comes first');
delete from ai.breakers;

-- 5. Money: the next account, then the breaker
insert into ai.provider_accounts (provider_id, position, secret) values (:first, 1, 'SECOND_ACCOUNT_KEY'), (:first, 2, 'THIRD_ACCOUNT_KEY'), (:first, 3, 'UNUSED_KEY');
update ai.provider_accounts set enabled = false where secret = 'UNUSED_KEY';
select is(ai.provider_secret(:first), 'FIRST_API_KEY', 'the provider''s own key first');
create function t.broke(p_secret text) returns void language sql as $$
  select ai.observe_attempts(jsonb_build_array(jsonb_build_object('generation_id', gen_random_uuid(), 'model_id', t.model('mtap/a'), 'outcome', 'failed', 'class', 'money_out', 'secret', p_secret)))
$$;
select t.broke('FIRST_API_KEY'), t.broke('FIRST_API_KEY') \g /dev/null
select is(ai.provider_secret(:first), 'SECOND_ACCOUNT_KEY', 'its money is out: the next account');
select is(t.breaker(null), 'healthy', 'no breaker opens for it');
select t.broke('SECOND_ACCOUNT_KEY') \g /dev/null
select is(ai.provider_secret(:first), 'THIRD_ACCOUNT_KEY', 'and the one after');
select t.pass('1 s');
select t.broke(null) \g /dev/null
select is(t.breaker(null), 'open 1 for 60000', 'the last one is empty: the provider''s breaker, at once');
select is(ai.provider_secret(:first), 'FIRST_API_KEY', 'the probe will use the one that has waited longest');
select is(t.choose('a c', t.some(2)), 'c, c', 'until then others are asked');
select t.pass('60 s');
select t.some(1) as probe \gset
select is(t.choose('a', :'probe'), 'a', 'after a minute a probe');
select t.report('a money_out', :'probe') \g /dev/null
select is((select count(*) from ai.exhausted_accounts where until > ai.now() and secret in ('FIRST_API_KEY')), 1::bigint, 'still empty');
select is((select cooldown_ms from ai.exhausted_accounts where secret = 'FIRST_API_KEY'), 120000, 'for twice as long');
select is(t.breaker(null), 'open 1 for 0', 'but another account''s minute is over: tried at once');
select t.some(1) as probe \gset
select is(t.choose('a', :'probe'), 'a', 'by another probe');
select is(ai.provider_secret(:first), 'SECOND_ACCOUNT_KEY', 'with that account');
select t.report('a ok', :'probe') \g /dev/null
select is(array[t.breaker(null), ai.provider_secret(:first)], array['healthy', 'SECOND_ACCOUNT_KEY'], 'which has been filled');
delete from ai.exhausted_accounts;
select is(ai.provider_secret(:first), 'FIRST_API_KEY', 'an operator who has paid deletes the row');
-- what after_attempt makes of it
select t.ask(p_model => 'mtap/a') as m \gset
create function t.money(p_id uuid, p_attempt integer default 1) returns text language sql as $$
  select coalesce(d.status, d.next_target || ' after ' || d.delay_ms)
    from ai.after_attempt('failed', false, 'next', null, null, p_attempt, 1, t.alpha(), p_id, false, ai.now() + interval '1 hour', ai.now(), 5, 500, 30000, 120000,
                          array[t.model('mtap/a'), t.model('mtap/c')], false, 'money_out', null) d
$$;
select t.lease(:'m', 'a') \g /dev/null
update ai.leases set secret = 'FIRST_API_KEY';
select is(t.money(:'m'), '1 after 0', 'another account: the same target again at once');
select is(t.money(:'m', 5), 'failed', 'while attempts last');
select t.broke('FIRST_API_KEY'), t.broke('SECOND_ACCOUNT_KEY') \g /dev/null
select is(t.money(:'m'), '1 after 0', 'the third account');
update ai.leases set secret = 'THIRD_ACCOUNT_KEY';
select is(t.money(:'m'), '2 after 0', 'that is the one it used: the next target');
update ai.leases set secret = null;
select is(t.money(:'m'), '2 after 0', 'a lease that does not say is taken to have used the first that had money');
update ai.provider_accounts set enabled = false;
select is(t.money(:'m'), '2 after 0', 'no other account: the next target');
delete from ai.provider_accounts;
select is(t.money(:'m'), '2 after 0', 'none at all');
select t.broke(null) \g /dev/null
select is(t.breaker(null), 'open 1 for 60000', 'a provider with one account');
delete from ai.leases;
delete from ai.exhausted_accounts;
delete from ai.breakers;
select is(ai.provider_secret((select id from ai.providers where name = 'local')), null, 'a provider without a key');
delete from ai.queue;

-- 6. Through the pipeline
select t.worker() as w, t.worker('other') as v \gset
update ai.workers set heartbeat_at = ai.now();
create function t.ask_at(p_profile text, p_model text default null, p_deadline_ms integer default 600000) returns uuid language sql as $$
  select t.ask(p_profile => p_profile, p_model => p_model, p_deadline_ms => p_deadline_ms, p_run_after => ai.now())
$$;
update ai.generations set created_at = '2029-01-01' where created_at > '2029-01-01';
select t.ask_at(null, 'mtap/a') as g1, t.ask_at(null, 'mtap/a') as g2, t.ask_at(null, 'mtap/a') as g3, t.ask_at(null, 'mtap/b') as other \gset
select is((select count(*) from t.claim(:'w')), 4::bigint, 'four are sent');
select t.settle(:'w', g, 1, 'failed', '{"signal": "http", "http_status": 503}') from unnest(array[:'g1', :'g2', :'g3']::uuid[]) g \g /dev/null
select is(t.breaker('a'), 'open 3 for 2000', 'three fail: open');
select t.ask_at(null, 'mtap/a') as g4, t.ask_at('mtap-abc') as routed, t.ask_at(null, 'mtap/a', 1999) as hasty \gset
select results_eq(format('select id, model from t.claim(%L)', :'w'), format($$ values (%L::uuid, 'b') $$, :'routed'), 'what has another target goes there');
select is(t.place(:'g4'), 'delayed', 'what has none waits');
select results_eq(format('select status, error ->> %L, error ->> %L from ai.generations where id = %L', 'class', 'code', :'hasty'), $$ values ('failed', 'unavailable', 'PT503') $$,
                  'or, if its deadline is before, fails at once and says so');
select is((select due_at - ai.now() from ai.delayed where generation_id = :'g4'), interval '2 s', 'until the probe');
select t.pass('2 s');
update ai.workers set heartbeat_at = ai.now();
select is((select count(*) from t.claim(:'w')), 1::bigint, 'then one of the four is sent');
select is((select count(*) from ai.delayed), 3::bigint, 'three wait');
select probe_id as probe from ai.breakers where model_id = t.model('mtap/a') \gset
select is(t.place(:'probe'), 'lease', 'the probe runs');
-- its worker dies: nobody else is let through before it is rescued, somebody is afterwards
select t.pass('14 s');
update ai.workers set heartbeat_at = ai.now() where id = :'v';
select is((select count(*) from t.claim(:'v')), 0::bigint, 'while it may still be running, the others wait');
select t.pass('1.001 s');
update ai.workers set heartbeat_at = ai.now() where id = :'v';
select count(*) from ai.worker_maintain(:'v') \g /dev/null
select is(t.breaker('a'), 'open 3 for 0', 'its worker was declared dead: the probe says nothing');
select is((select count(*) from t.claim(:'v')), 1::bigint, 'the next one is let through');
select probe_id as probe, probe_id <> :'probe' as another from ai.breakers where model_id = t.model('mtap/a') \gset
select is(t.settle(:'v', :'probe', (select attempt::integer from ai.leases where generation_id = :'probe'), 'succeeded', '{"output": "x", "latency_ms": 10}'), 'ended', 'it answers');
select is(t.breaker('a'), 'healthy', 'closed');
select t.pass('1 s');
update ai.workers set heartbeat_at = ai.now() where id = :'v';
select ok((select count(*) from t.claim(:'v')) >= 2, 'within a second those that waited are sent');

-- Money out, through the pipeline: the next key at once
insert into ai.provider_accounts (provider_id, position, secret) values (:first, 1, 'SECOND_ACCOUNT_KEY');
select t.ask_at(null, 'mtap/b') as poor \gset
select is((select secret from ai.worker_claim(:'v', 64, null) where generation_id = :'poor'), 'FIRST_API_KEY', 'the first key');
select is(t.settle(:'v', :'poor', 1, 'failed', '{"signal": "http", "http_status": 402}'), 'requeued', 'has no money');
select is((select secret from ai.worker_claim(:'v', 64, null) where generation_id = :'poor'), 'SECOND_ACCOUNT_KEY', 'the second, at once');
select is(t.settle(:'v', :'poor', 2, 'failed', '{"signal": "http", "http_status": 402}'), 'ended', 'neither: the end');
select is(t.breaker(null), 'open 1 for 60000', 'and the breaker of the provider');

-- Everything is down: each gets an answer within its deadline, and none hangs
delete from ai.queue; delete from ai.delayed; delete from ai.leases; delete from ai.breakers;
insert into ai.breakers (model_id, state, failures, opened_at, probe_at, cooldown_ms, why)
select t.model('mtap/' || m), 'open', 3, ai.now(), ai.now() + interval '15 s', 15000, 'transient' from unnest(array['a', 'b', 'c']) m;
create temp table doomed as select t.ask_at('mtap-abc', p_deadline_ms => n * 1000) as id from generate_series(1, 40) n;
create function t.down(p_worker uuid) returns text language plpgsql as $$
declare v_rounds integer := 0;
begin
  while exists (select from ai.generations g join doomed d on d.id = g.id where g.finished_at is null) and v_rounds < 200 loop
    v_rounds := v_rounds + 1;
    update ai.workers set heartbeat_at = ai.now() where id = p_worker;
    perform t.settle(p_worker, c.id, c.attempt, 'failed', '{"signal": "http", "http_status": 503}') from t.claim(p_worker) c;
    perform t.pass('500 ms');
  end loop;
  return (select string_agg(distinct g.status, ' ') || case when v_rounds < 200 then ' in time' else ' too late' end from ai.generations g join doomed d on d.id = g.id);
end
$$;
select is(t.down(:'v'), 'failed in time', 'all providers unavailable is an answer');
select is((select count(*) from ai.generations g join doomed d on d.id = g.id where error ->> 'class' is null), 0::bigint, 'with a reason each');
select ok((select count(*) from ai.llm_calls c join doomed d on d.id = c.generation_id) <= 40, 'and few calls: only the probes were sent');

-- A probe that is not sent after all leaves its place to the next: by a limit
delete from ai.queue; delete from ai.delayed; delete from ai.leases; delete from ai.breakers;
create function t.open(p_for interval) returns void language sql as $$
  insert into ai.breakers (model_id, state, failures, opened_at, probe_at, cooldown_ms, why) select t.model('mtap/a'), 'open', 3, ai.now(), ai.now() + p_for, 2000, 'transient'
$$;
create function t.probed(p_id uuid) returns bigint language sql as $$
  select count(*) from jsonb_array_elements((t.generation(p_id)).stages) s where s ->> 'result' = 'probe'
$$;
select t.open('0') \g /dev/null
insert into ai.limits (tenant_id, metric, period, amount, on_limit) values (t.alpha(), 'requests', 'month', 0, 'reject');
select t.ask(p_model => 'mtap/a', p_deadline_ms => 600000) as refused \gset
select t.ask(p_model => 'mtap/a', p_deadline_ms => 600000) as refused_too \gset
select t.ask(p_model => 'mtap/a', p_deadline_ms => 600000, p_tenant => t.beta(), p_user => 'bob') as allowed \gset
select set_config('ai.claimed_after', '00000000-0000-0000-0000-000000000000', true) \g /dev/null
update ai.workers set heartbeat_at = ai.now();
select is((select count(*) from t.claim(:'v')), 0::bigint, 'the first lies in another lane than its limit says, and is sent there');
select is(t.breaker('a'), 'open 3 for 0', 'the probe is still to be sent');
select is((select due_at from ai.delayed where generation_id = :'allowed'), ai.now(), 'by who else came with it, at once');
select is((select count(*) from t.claim(:'v')), 0::bigint, 'the first is over its limit');
select is(t.status(:'refused'), 'rejected', 'and refused');
select is(t.breaker('a'), 'open 3 for 0', 'the probe is still to be sent');
select results_eq(format('select id from t.claim(%L)', :'v'), array[:'allowed'::uuid], 'another tenant''s is');
select is(t.breaker('a'), 'half_open 3', 'as the probe');
select results_eq(format('select t.probed(id) from unnest(array[%L, %L]::uuid[]) id', :'refused', :'allowed'), array[0::bigint, 1], 'which is said of nothing else');
select is(t.settle(:'v', :'allowed', 1, 'succeeded', '{"output": "x", "latency_ms": 10}'), 'ended', 'it answers');
select is(t.breaker('a'), 'healthy', 'closed');
delete from ai.limits; delete from ai.queue; delete from ai.delayed;
-- and because it follows another
insert into ai.cache_policies (tenant_id, scope) values (t.alpha(), 'tenant');
select t.open('2 s') \g /dev/null
select t.ask_at('mtap-abc') as leader \gset
select results_eq(format('select id, model from t.claim(%L)', :'v'), format($$ values (%L::uuid, 'b') $$, :'leader'), 'one is asked, at another target');
select t.pass('2 s');
select t.ask_at('mtap-abc') as follower \gset
select is((select count(*) from t.claim(:'v')), 0::bigint, 'who asks the same is not sent');
select is((select count(*) from ai.waiting where generation_id = :'follower' and for_id = :'leader'), 1::bigint, 'but waits for its answer');
select is(t.breaker('a'), 'open 3 for 0', 'and is not taken for the probe');
select t.ask('Why not?', p_model => 'mtap/a', p_deadline_ms => 600000) as allowed \gset
select results_eq(format('select id from t.claim(%L)', :'v'), array[:'allowed'::uuid], 'who asks something else is');
delete from ai.cache_policies; delete from ai.waiting; delete from ai.leaders;

-- 7. Any order of events: a seed gives 3,000 of them, and the rules hold after each
delete from ai.breakers; delete from ai.leases;
select floor(random() * 2000000000)::integer as seed \gset
select diag('state machine: seed ' || :seed);
create function t.wander(p_seed integer, p_steps integer) returns text language plpgsql as $$
declare
  v_was    record;
  v_is     record;
  v_probes uuid[] := '{}';  -- let through and without an end
  v_ids    uuid[];
  v_class  text;
  v_run    integer := 0;    -- failures since the last success, while closed
  v_step   text;
  v_chosen text;
  v_seen   text[] := '{}';
  v_r      double precision;
begin
  perform setseed(p_seed / 2000000001.0);
  for v_n in 1 .. p_steps loop
    select coalesce(max(b.state), 'closed') as state, coalesce(max(b.failures), 0) as failures, max(b.cooldown_ms) as cooldown, max(b.probe_at) as probe_at into v_was from ai.breakers b where b.model_id is not null;
    v_r := random();
    if v_r < 0.35 then
      v_class := (array['transient', 'transient', 'transient', 'ok', 'released'])[1 + floor(random() * 5)];
      v_step := 'other ' || v_class;
      perform t.report('a ' || v_class, p_latency => 100000000);
      v_run := case when v_was.state <> 'closed' then v_run when v_class = 'transient' then v_run + 1 when v_class = 'ok' then 0 else v_run end;
    elsif v_r < 0.65 then
      v_step := 'choose';
      v_ids := t.some(1 + floor(random() * 4)::integer);
      v_chosen := t.choose('a', v_ids);
      if v_was.state = 'closed' and v_chosen like '%wait%' then
        return format('step %s: closed, and something waits', v_n);
      elsif v_was.state <> 'closed' then
        if array_length(regexp_split_to_array(v_chosen, 'a(?!i)'), 1) > 2 then
          return format('step %s: two let through: %s', v_n, v_chosen);
        elsif v_chosen ~ 'a(?!i)' then
          if v_was.state = 'open' and v_was.probe_at > ai.now() then return format('step %s: let through before its time', v_n); end if;
          if v_was.state = 'half_open' and v_probes <> '{}' then return format('step %s: a second probe beside the first', v_n); end if;
          select b.probe_id into v_is from ai.breakers b where b.model_id is not null;
          v_probes := array[v_is.probe_id];
          perform t.lease(v_is.probe_id, 'a');
        elsif v_was.state = 'open' and v_was.probe_at <= ai.now() or v_was.state = 'half_open' and v_probes = '{}' then
          return format('step %s: nobody let through although it is due: %s', v_n, v_chosen);
        end if;
      end if;
    elsif v_r < 0.85 and v_probes <> '{}' then
      v_class := (array['transient', 'transient', 'ok', 'abandoned', 'cancelled'])[1 + floor(random() * 5)];
      v_step := 'probe ' || v_class;
      delete from ai.leases where generation_id = any (v_probes);
      perform t.report('a ' || v_class, v_probes);
      v_probes := '{}';
      select coalesce(max(b.state), 'closed') as state, max(b.cooldown_ms) as cooldown into v_is from ai.breakers b where b.model_id is not null;
      if (v_is.state <> case when v_class = 'ok' then 'closed' else 'open' end) then return format('step %s: %s gives %s', v_n, v_step, v_is.state); end if;
      if v_class = 'transient' and v_is.cooldown <> least(15000, v_was.cooldown * 2) then return format('step %s: cooldown %s after %s', v_n, v_is.cooldown, v_was.cooldown); end if;
      if v_class in ('abandoned', 'cancelled') and v_is.cooldown <> v_was.cooldown then return format('step %s: a void probe changes the cooldown', v_n); end if;
      if v_class = 'ok' then v_run := 0; end if;
    else
      v_step := 'time';
      perform t.pass(random() * interval '6 s');
    end if;
    select coalesce(max(b.state), 'closed') as state, coalesce(max(b.failures), 0) as failures, count(*) as rows into v_is from ai.breakers b where b.model_id is not null;
    if (v_was.state = 'closed' and v_is.state <> case when v_run >= 3 then 'open' else 'closed' end) then return format('step %s: %s with %s failures gives %s', v_n, v_step, v_run, v_is.state); end if;
    if v_was.state = 'closed' and v_is.state = 'closed' and v_is.failures <> v_run then return format('step %s: %s: %s failures counted of %s', v_n, v_step, v_is.failures, v_run); end if;
    if v_is.state = 'closed' and v_run = 0 and v_is.rows > 0 then return format('step %s: a row of what is healthy', v_n); end if;
    if v_step like 'other%' and v_was.state <> 'closed' and v_is.state <> v_was.state then return format('step %s: %s moves %s', v_n, v_step, v_was.state); end if;
    if v_was.state <> v_is.state then v_seen := v_seen || (v_was.state || '>' || v_is.state); end if;
  end loop;
  return (select string_agg(distinct s, ' ' order by s) from unnest(v_seen) s);
end
$$;
update ai.breaker_settings set threshold = 100000 where scope = 'provider';
select is(t.wander(:seed, 3000), 'closed>open half_open>closed half_open>open open>half_open', 'each transition was met, none that must not be');

select * from finish();
rollback;
