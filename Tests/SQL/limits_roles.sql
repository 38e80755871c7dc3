-- Who may set limits, who sees what is left, and what nobody but the operator may do.
begin;
\ir setup/world.sql
\ir setup/limits.sql
select no_plan();
create role mtap_badm login;
grant ai_admin to mtap_badm;
insert into ai.members (tenant_id, user_id, role) values (t.beta(), 'badm', 'admin');
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_badm', t.beta(), 'badm');

insert into ai.limits (tenant_id, metric, period, amount) values (null, 'requests', 'hour', 100), (t.alpha(), 'requests', 'day', 50), (t.beta(), 'tokens', 'day', 5);
select is((select bool_and(operator) from ai.limits), true, 'what the owner inserts is the operator''s');

-- An admin sets limits of the own tenant
set local session authorization mtap_adm;
select lives_ok($$ insert into ai.limits (metric, period, amount, user_id) values ('requests', 'hour', 10, 'ann') $$, 'an admin sets a limit');
select is((select row (tenant_id = ai.tenant_id(), operator)::text from ai.limits where user_id = 'ann'), '(t,f)', 'it is the tenant''s own');
select lives_ok($$ insert into ai.limits (tenant_id, per, metric, amount) values (ai.tenant_id(), 'member', 'concurrency', 2) $$, 'naming the tenant, too');
select lives_ok($$ update ai.limits set amount = 3, soft = false, on_limit = 'reject', enabled = true where metric = 'concurrency' $$, 'and changes it');
select is((select amount from ai.limits where metric = 'concurrency'), 3::numeric, 'it is changed');
select throws_ok(s, state, null, s)
  from (values ($$ insert into ai.limits (tenant_id, metric, period, amount) values ('0b000000-0000-7000-8000-000000000001', 'requests', 'hour', 1) $$, '42501'),
               ($$ insert into ai.limits (metric, amount) values ('credit', 1000) $$, '42501'),
               ($$ insert into ai.limits (operator, metric, period, amount) values (true, 'requests', 'hour', 1) $$, '42501'),
               ($$ insert into ai.limits (id, metric, period, amount) values (1, 'requests', 'hour', 1) $$, '42501'),
               ($$ update ai.limits set operator = true $$, '42501'), ($$ update ai.limits set tenant_id = null $$, '42501'), ($$ update ai.limits set metric = 'tokens' $$, '42501'),
               ($$ insert into ai.credits (tenant_id, amount) values (ai.tenant_id(), 5) $$, '42501'), ($$ select ai.add_credit(ai.tenant_id(), 5) $$, '42501'),
               ($$ select * from ai.counters $$, '42501'), ($$ select * from ai.counter_entries $$, '42501'), ($$ select * from ai.parked_lanes $$, '42501'),
               ($$ update ai.counter_making set only_row = true $$, '42501'), ($$ select ai.settle_limits('[]') $$, '42501'), ($$ select ai.unpark('{1}') $$, '42501'),
               ($$ select ai.make_counters(ai.tenant_id(), 'x', 'chat', null, null) $$, '42501')) v (s, state);
create temp table changed as with c as (update ai.limits set amount = 1e9 where operator returning id) select count(*) as n from c;
select is((select n from changed), 0::bigint, 'the operator''s limits are out of reach');
drop table changed;
select throws_ok($$ delete from ai.limits where operator $$, '42501', null, 'nor are they deleted');
select throws_ok($$ lock table ai.limits in access exclusive mode $$, '42501', null, 'an admin cannot lock the limits of all');
select is((select count(*) from ai.limits), 4::bigint, 'an admin sees what concerns the tenant: two of the operator''s, two of its own');
select throws_ok($$ delete from ai.limits where metric = 'concurrency' $$, '42501', null, 'what is its own is not deleted');
select lives_ok($$ update ai.limits set enabled = false where metric = 'concurrency' $$, 'but switched off');
reset session authorization;
select is((select count(*) from ai.limits where amount = 1e9), 0::bigint, 'nothing was raised');
delete from ai.limits where metric = 'concurrency' and tenant_id = t.alpha();

-- Neither users nor developers set limits
set local session authorization mtap_dev;
select throws_ok($$ insert into ai.limits (metric, period, amount) values ('requests', 'hour', 10) $$, '42501', null, 'a developer');
select throws_ok($$ delete from ai.limits $$, '42501', null, 'a developer deletes none');
set local session authorization mtap_ann;
select throws_ok($$ insert into ai.limits (metric, period, amount) values ('requests', 'hour', 10) $$, '42501', null, 'a user');
select throws_ok($$ update ai.limits set amount = 9 $$, '42501', null, 'a user changes none');
select is((select count(*) from ai.limits), 3::bigint, 'ann sees those that concern her');
set local session authorization mtap_abe;
select is((select count(*) from ai.limits), 2::bigint, 'abe does not see ann''s');
set local session authorization mtap_stray;
select is((select count(*) from ai.limits_status()), 0::bigint, 'nobody has no status');
select is((select count(*) from ai.credits), 0::bigint, 'and no credit');
set local session authorization mtap_monitor;
select throws_ok('select * from ai.limits', '42501', null, 'a monitor reads no limits');
set local session authorization mtap_worker;
select throws_ok('select * from ai.limits', '42501', null, 'a worker reads no limits');
set local session authorization mtap_badm;
select is((select count(*) from ai.limits), 2::bigint, 'another tenant''s admin sees its own and the shared one');
reset session authorization;
delete from ai.limits where tenant_id = t.beta();
-- so many and no more
set local session authorization mtap_adm;
select lives_ok($$ insert into ai.limits (metric, amount, enabled) select 'concurrency', n, false from generate_series(1, 99) n $$, 'an admin sets a hundred limits');
select throws_ok($$ insert into ai.limits (metric, amount) values ('concurrency', 1) $$, 'PT409', null, 'one more is too many');
reset session authorization;
select lives_ok(format('insert into ai.limits (tenant_id, metric, amount, enabled) values (%L, ''concurrency'', 1, false)', t.alpha()), 'the operator may go on');
delete from ai.limits where metric = 'concurrency';
-- an admin without the role in the tenant: the grant alone is nothing
update ai.members set role = 'developer' where user_id = 'adm';
set local session authorization mtap_adm;
select throws_ok($$ insert into ai.limits (metric, period, amount) values ('requests', 'hour', 10) $$, '42501', null, 'the database role without the tenant''s');
reset session authorization;
update ai.members set role = 'admin' where user_id = 'adm';

-- What is left
select t.clear();
select t.limit_id('{"tenant_id": null, "metric": "requests", "period": "hour", "amount": 5}') as r, t.limit_id('{"tenant_id": null, "per": "member", "metric": "tokens", "period": "day", "amount": 100}') as k,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'month', 'amount', 0.5, 'soft', true)) as c,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'user_id', 'abe', 'metric', 'concurrency', 'amount', 1)) as n \gset
select ai.add_credit(t.alpha(), 2.50, 'December') \g /dev/null
select t.verdicts(1, tokens => 60) \g /dev/null
insert into ai.workers (id, name, version, protocol, channel, started_at, heartbeat_at) values (gen_random_uuid(), 'w', '0', 1, 'c', now(), now());
insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target, model_id, stream, input_bytes, waiting_since, deadline_at, claimed_at, counters, amounts)
select r.id, 1, w.id, t.alpha(), 'ann', 1, 1, 1, false, 1, now(), now(), r.claimed_at, r.counters, r.amounts from t.running r cross join ai.workers w;
set local session authorization mtap_ann;
select results_eq($$ select metric, user_id, amount, used, reserved, remaining, soft, exceeded from ai.limits_status() $$,
  $$ values ('requests', null, 5::numeric, 1::numeric, 0::numeric, 4::numeric, false, false), ('tokens', 'ann', 100, 0, 60, 40, false, false),
            ('cost', null, 0.5, 0, 0.00036, 0.49964, true, false), ('credit', null, 2.5, 0, 0.00036, 2.49964, false, false) $$, 'what is left for ann: not abe''s');
select ok((select bool_and(resets_at > now() and resets_at <= now() + interval '1 day') from ai.limits_status() where metric in ('requests', 'tokens')), 'and when it begins anew');
select is((select count(*) from ai.limits_status() where resets_at is null), 1::bigint, 'credit does not');
reset session authorization;
select t.verdicts(1, "user" => 'abe', tokens => 90000) \g /dev/null
select t.verdicts(1, "user" => 'abe', tokens => 80) \g /dev/null
delete from ai.leases;
select t.settle_all(cost => 0.3, tokens => 70) \g /dev/null
set local session authorization mtap_dev;
select results_eq($$ select metric, user_id, used, reserved, remaining, exceeded from ai.limits_status() $$,
  $$ values ('requests', null, 2::numeric, 0::numeric, 3::numeric, false), ('tokens', 'abe', 70, 0, 30, false), ('tokens', 'ann', 70, 0, 30, false), ('tokens', 'dev', 0, 0, 100, false),
            ('cost', null, 0.6, 0, 0, true), ('concurrency', 'abe', 0, 0, 1, false), ('credit', null, 0.6, 0, 1.9, false) $$, 'a developer sees everybody of the tenant');
set local session authorization mtap_abe;
select is((select string_agg(metric || coalesce(user_id, ''), ' ') from ai.limits_status()), 'requests tokensabe cost concurrencyabe credit', 'abe sees abe''s');
set local session authorization mtap_bob;
select results_eq($$ select metric, user_id, used, remaining from ai.limits_status() $$, $$ values ('requests', null, 0::numeric, 5::numeric), ('tokens', 'bob', 0, 100) $$,
  'another tenant has used nothing');
select is((select count(*) from ai.credits), 0::bigint, 'and sees no credit');
set local session authorization mtap_adm;
select is((select sum(amount) from ai.credits), 2.5, 'an admin sees the top-ups');
reset session authorization;
grant ai_tester to mtap_ann;
select t.pass('2 months');
set local session authorization mtap_ann;
select is((select string_agg(metric || ' ' || used, ', ') from ai.limits_status()), 'requests 0, tokens 0, cost 0, credit 0.6', 'later windows are empty; credit is as it was');
reset session authorization;

-- How many a tenant sets itself
set local session authorization mtap_adm;
select lives_ok($$ insert into ai.limits (metric, period, amount) select 'requests', 'day', n from generate_series(1, 99 - (select count(*) from ai.limits where not operator)) n $$,
  '99 limits of its own beside the operator''s');
select lives_ok($$ insert into ai.limits (metric, period, amount) values ('requests', 'day', 100) $$, 'the hundredth');
select throws_ok($$ insert into ai.limits (metric, period, amount) values ('requests', 'day', 101) $$, 'PT409', 'a tenant sets at most 100 limits', 'one more');
set local session authorization mtap_badm;
select lives_ok($$ insert into ai.limits (metric, period, amount) values ('requests', 'day', 100) $$, 'another tenant''s do not count');
select throws_ok($$ insert into ai.limits (tenant_id, metric, period, amount) values ('0a000000-0000-7000-8000-000000000001', 'requests', 'day', 100) $$, '42501', null, 'nor is told that they are too many');
reset session authorization;
select lives_ok($$ insert into ai.limits (tenant_id, metric, period, amount) values (t.alpha(), 'requests', 'day', 101) $$, 'the operator sets more');

select * from finish();
rollback;
