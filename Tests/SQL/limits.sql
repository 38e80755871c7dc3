-- Limits and budgets, function by function: which counters apply, what fits, what waits, what is refused, what is given back.
-- Tests/Races/test_limits.py does it at once and by chance; limits_claims.sql goes through the queue.
begin;
\ir setup/world.sql
\ir setup/limits.sql
select no_plan();

-- Windows are fixed, half open, and in UTC whatever the session's time zone is
set local timezone = 'Australia/Lord_Howe';
select is(ai.window_start(p, at) at time zone 'UTC', s::timestamp, format('%s: begins', p)),
       is(ai.window_end(p, at) at time zone 'UTC', e::timestamp, format('%s: ends', p))
  from (values ('second', '2026-11-21 23:59:59.999Z', '2026-11-21 23:59:59', '2026-11-22'), ('minute', '2026-11-21 23:59:00Z', '2026-11-21 23:59', '2026-11-22'),
               ('hour', '2026-11-21 10:59:59.999999Z', '2026-11-21 10:00', '2026-11-21 11:00'), ('day', '2026-11-22 00:00Z', '2026-11-22', '2026-11-23'),
               ('week', '2026-11-22 23:59Z', '2026-11-16', '2026-11-23'), ('week', '2026-11-23 00:00Z', '2026-11-23', '2026-11-30'),
               ('month', '2026-12-31 23:59:59Z', '2026-12-01', '2027-01-01'), ('month', '2028-02-29 12:00Z', '2028-02-01', '2028-03-01')) v (p, a, s, e)
 cross join lateral (select a::timestamptz as at) x;
select is(ai.window_start(null, now()), '-infinity'::timestamptz, 'without a period all time is one window: it has no beginning'),
       is(ai.window_end(null, now()), 'infinity'::timestamptz, 'and no end');
reset timezone;

-- Which counters apply
select is(ai.limited(t.alpha()), false, 'no limit: not limited');
select is(ai.generation_counters(t.alpha(), 'ann', 'chat', 'mtap/one', null), '{}'::bigint[], 'no limit: no counters');
select t.limit_id('{"tenant_id": null, "metric": "requests", "period": "hour", "amount": 5, "enabled": false}') as off \gset
select is(ai.limited(t.alpha()), false, 'a limit that is off limits nobody');
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 5)) as own \gset
select is(ai.limited(t.alpha()), true, 'a limit of its own'), is(ai.limited(t.beta()), false, 'is not another tenant''s');
select is(ai.generation_counters(t.alpha(), 'ann', 'chat', 'mtap/one', null), null, 'its counter has to be made first');
select is(cardinality(ai.make_counters(t.alpha(), 'ann', 'chat', 'mtap/one', null)), 1, 'it is made');
select is(ai.make_counters(t.alpha(), 'ann', 'chat', 'mtap/one', null), ai.generation_counters(t.alpha(), 'ann', 'chat', 'mtap/one', null), 'once');
select is(ai.generation_counters(t.alpha(), 'abe', 'embedding', null, 'small'), ai.generation_counters(t.alpha(), 'ann', 'chat', 'mtap/one', null), 'per tenant: everybody''s');
update ai.limits set enabled = true where id = :off;
select is(ai.limited(t.beta()), true, 'a limit of every tenant');
select isnt(ai.make_counters(t.alpha(), 'ann', 'chat', 'x', null), ai.make_counters(t.beta(), 'bob', 'chat', 'x', null), 'each tenant has a counter of its own');
select t.limit_id('{"tenant_id": null, "per": "member", "metric": "requests", "period": "hour", "amount": 5}') as member \gset
select ok(ai.make_counters(t.alpha(), 'ann', 'chat', 'x', null) <> ai.make_counters(t.alpha(), 'abe', 'chat', 'x', null), 'per member: each user has one');
select ok((select array_agg(c order by c) = x from unnest(x) c group by x), 'ascending') from (select ai.make_counters(t.alpha(), 'ann', 'chat', 'x', null)) y (x);
select t.clear();
select is(cardinality(ai.make_counters(t.alpha(), u, k, m, p)), n, format('%s, %s, %s, %s: %s', u, k, m, p, n))
  from (select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 1) || f::jsonb)
          from unnest(array['{"user_id": "ann"}', '{"kind": "chat"}', '{"profile": "small"}', '{"model": "mtap/one"}', '{"user_id": "abe", "kind": "chat", "model": "mtap/two"}',
                            '{"tenant_id": null, "model": "mtap/two"}']) f) made (id),
       lateral (values ('ann', 'chat', 'mtap/one', null, 3), ('ann', 'embedding', null, 'small', 2), ('abe', 'chat', 'mtap/two', null, 3), ('abe', 'embedding', 'mtap/none', null, 0),
                       ('dev', 'chat', null, 'large', 1)) v (u, k, m, p, n)
 where made.id = (select max(id) from ai.limits);
select t.clear();

-- What is no limit
select throws_ok(format('select t.limit_id(%L)', jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 1) || wrong::jsonb), '23514', null, wrong)
  from unnest(array['{"amount": -1}', '{"amount": 1e31}', '{"amount": 0.000000000000000000001}', '{"amount": "NaN"}', '{"amount": "Infinity"}', '{"period": null}', '{"period": "year"}', '{"period": "1 hour"}', '{"metric": "words"}',
                    '{"metric": "concurrency"}', '{"metric": "credit"}', '{"metric": "credit", "period": null, "user_id": "ann"}', '{"metric": "credit", "period": null, "per": "member"}',
                    '{"per": "api"}', '{"on_limit": "raise"}', '{"kind": "song"}', '{"model": "a", "profile": "b"}']) wrong;

-- Requests: below, at and above the limit; 0; huge; a fraction
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 3, 'on_limit', 'reject')) as l \gset
select is(t.verdicts(2), 'go go', 'two of three'), is(t.verdicts(2), 'go reject', 'the third; the fourth is refused'), is(t.verdicts(1), 'reject', 'and the fifth');
select is(t.used(:l), 3::numeric, 'three are counted');
select is(e ->> 'class', 'limit', 'class'), is(e ->> 'code', 'PT429', 'code'), is(e ->> 'limit', '3 requests an hour', 'which limit'),
       ok((e ->> 'retry_after')::integer between 1 and 3600, 'when to come again, in seconds'), is((e ->> 'limit_id')::bigint, :l::bigint, 'its id'), ok(e ? 'message' and e ? 'hint', 'message, hint')
  from (select t.last_error()) x (e);
select is((select string_agg(v.verdict, ' ') from t.reserve(array[false, true, false], 'ann') v), 'go reject go', 'a retry is no request: it goes, also at the limit');
select t.pass('1 hour');
select is(t.verdicts(4), 'go go go reject', 'the next window begins at 0');
update ai.limits set amount = 1 where id = :l;
select is(t.verdicts(1), 'reject', 'lowered below what is used: refused'), is(t.used(:l), 3::numeric, 'what was used stays');
select is(t.verdicts(2, first => false), 'go go', 'what needs nothing of it goes all the same');
update ai.limits set amount = 4 where id = :l;
select is(t.verdicts(2), 'go reject', 'raised: one more');
update ai.limits set amount = 4.9 where id = :l;
select is(t.verdicts(1), 'reject', 'a fraction admits nobody');
update ai.limits set amount = 0, on_limit = 'wait' where id = :l;
select is(t.verdicts(1), 'reject', '0 can never admit one: refused, though the limit would wait');
select is(t.last_error() -> 'retry_after', null, 'and waiting does not help');
update ai.limits set amount = 1e30 where id = :l;
select is(t.verdicts(3), 'go go go', 'huge');
update ai.limits set enabled = false where id = :l;
select is(t.verdicts(1), 'go', 'switched off: nothing is held');
select t.clear();
-- the edge of a window, to the microsecond
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'minute', 'amount', 1, 'on_limit', 'reject')) as l \gset
-- (in one statement, for which time stands still)
select t.pass(ai.window_end('minute', ai.now()) - ai.now() - interval '1 microsecond'),
       is(t.verdicts(2), 'go reject', 'the last microsecond of a window'), is((t.last_error() ->> 'retry_after')::integer, 1, 'come again in a second, not in none'),
       t.pass('1 microsecond'), is(t.verdicts(2), 'go reject', 'the first of the next');
select t.clear();

-- Wait: the lane is parked, what lies behind waits too, other lanes go on
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'tokens', 'period', 'hour', 'amount', 100)) as l \gset
select is(t.verdicts(1, tokens => 60), 'go', '60 of 100');
select is((select string_agg(r.verdict, ' ') from t.reserve(array[true, true], 'ann', array[60, 10]) r), 'wait wait', '60 more wait, and 10 that would fit behind them');
select is(t.lane_place('ann'), 'parked', 'the lane is off the list');
select is((select least(until, ai.window_end('hour', ai.now())) from ai.parked_lanes), (select until from ai.parked_lanes), 'until the window ends at the latest');
select ok((select until <= ai.now() + interval '1 minute' from ai.parked_lanes), 'and not for longer than a minute, whatever happens');
select is(ai.unpark_lanes(ai.now()), (select until from ai.parked_lanes), 'when the next one is due'), is(t.lane_place('ann'), 'parked', 'it is not yet');
select is(ai.unpark_lanes((select until from ai.parked_lanes)), null, 'then nothing is left'), is(t.lane_place('ann'), 'active', 'it is on the list again');
select is(t.verdicts(1, tokens => 60), 'wait', 'it waits again'), is(t.lane_place('ann'), 'parked', 'parked again');
select is(t.verdicts(1, tokens => 101), 'reject', 'what can never fit is refused'), is(t.lane_place('ann'), 'parked', 'and parks nothing');
select is(t.verdicts(1, tokens => 40), 'go', '40 fit to the token');
select is(t.verdicts(1, tokens => 0), 'go', 'and 0 always do');
-- settling frees room, and unparks
select is(t.settle_all(tokens => 20), true, 'settled by less: workers have to be woken'), is(t.lane_place('ann'), 'active', 'the lane is on the list'), is(t.used(:l), 60::numeric, 'what was really used: three times 20');
select is(t.verdicts(1, tokens => 40), 'go', '40 fit'), is(t.settle_all(tokens => 60), false, 'an overrun is booked, and frees nothing'), is(t.used(:l), 120::numeric, '120 of 100');
select is(t.verdicts(1, tokens => 1), 'wait', 'one token waits'), is(t.verdicts(1, tokens => 0), 'go', 'none goes');
select t.clear();

-- Concurrency
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 2)) as l \gset
select is(t.verdicts(3), 'go go wait', 'two at once'), is(t.lane_place('ann'), 'parked', 'the lane is parked');
select is(t.verdicts(1, first => false), 'wait', 'a retry runs, too');
select is(t.settle_one(), true, 'one ends'), is(t.lane_place('ann'), 'active', 'unparked'), is(t.verdicts(2), 'go wait', 'one more');
select is(t.settle_all(), true, 'all end'), is(t.used(:l), 0::numeric, 'none runs');
update ai.limits set on_limit = 'reject' where id = :l;
select is(t.verdicts(3), 'go go reject', 'or reject'), is((t.last_error() ->> 'retry_after')::integer, 1, 'come again soon'), is(t.last_error() ->> 'limit', '2 at once', 'in words');
select t.clear();

-- Cost: the dearest rate of each side, times the bounds
select is(ai.dearest_cost('{"input": 3, "cache_read": 0.3, "cache_write": 3.75, "cache_write_1h": 6, "output": 15, "reasoning": 20}', 1000000, 1000000), 26::numeric, 'dearest: 6 and 20'),
       is(ai.dearest_cost('{"input": 0.15, "output": 0.6}', 1000, 100), 0.00021::numeric, 'dearest: what there is'), is(ai.dearest_cost('{"input": 0}', 10, 10), 0::numeric, 'nothing'),
       is(ai.dearest_cost(null, 10, 10), null, 'no price: unknown'), is(ai.dearest_cost('{"input": 1000000, "output": 1000000}', 2147483647, 2147483647), 4294967294::numeric, 'huge');
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'month', 'amount', 1, 'on_limit', 'reject')) as l \gset
select is(t.verdicts(2, tokens => 100000), 'go reject', '100,000 tokens at 6 each million in, none out: 0.6; another 0.6 is above 1');
select is(e ->> 'class', 'budget', 'class'), is(e ->> 'code', 'PT402', 'code'), is((e ->> 'needed')::numeric, 0.6, 'what it would take'), is(e ->> 'limit', 'a cost of 1 a month', 'the budget')
  from (select t.last_error()) x (e);
select is(t.settle_all(cost => 0.123456789), false, 'settled'), is(t.used(:l), 0.123456789, 'to the last digit');
select is(t.verdicts(1, tokens => 100000), 'go', 'now it fits'), is(t.settle_all(cost => null), false, 'an unknown cost is none'), is(t.used(:l), 0.123456789, 'as before');
select is(t.verdicts(1, model => 'mtap/unpriced'), 'reject', 'a model without a price under a budget: refused'), is(t.last_error() ->> 'code', 'PT402', 'PT402');
select is(t.verdicts(1, tokens => 200000), 'reject', 'more than the whole budget'), is(t.last_error() -> 'retry_after', null, 'will not fit next month either');
select throws_ok(format('delete from ai.limits where id = %s', :l), 'PT409', null, 'money that was counted is not deleted');
select throws_ok(format('update ai.limits set %s where id = %s', s, :l), 'PT409', null, s)
  from unnest(array['metric = ''tokens''', 'period = ''day''', 'per = ''member''', 'user_id = ''x''', 'kind = ''chat''', 'model = ''x''', 'profile = ''x''', 'tenant_id = null',
                    'operator = false', 'id = 0']) s;
select t.clear();

-- Soft: counts, holds nothing
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'day', 'amount', 1, 'soft', true)) as l \gset
select is(t.verdicts(3, tokens => 100000), 'go go go', 'beyond a soft budget'), is(t.used(:l), 1.8, 'it counts'), is(t.verdicts(1, model => 'mtap/unpriced'), 'go', 'also without a price');
select t.clear();

-- Credit
select throws_ok(format('select ai.add_credit(%L, %s)', t.alpha(), a), 'PT400', null, format('credit of %s', a)) from unnest(array['0', 'null', '1e31', '1e-21', '''NaN''', '''Infinity''', '''-Infinity''']) a;
select throws_ok('select ai.add_credit(gen_random_uuid(), 1)', 'PT404', null, 'credit for nobody');
select is(ai.add_credit(t.alpha(), 1.5, 'first'), 1.5, 'topped up');
select is((select row (metric, amount, on_limit, operator)::text from ai.limits where tenant_id = t.alpha()), '(credit,0,reject,t)', 'a limit is made with it');
select id as l from ai.limits where metric = 'credit' \gset
select is(t.verdicts(3, tokens => 100000), 'go go reject', '0.6 + 0.6 of 1.5'), is(t.last_error() ->> 'code', 'PT402', 'PT402'), is(t.last_error() -> 'retry_after', null, 'time brings no money');
select is(t.settle_all(cost => 0.7), false, 'settled at 1.4 in all'), is(t.used(:l), 1.4, 'used'), is(t.verdicts(1, tokens => 100000), 'reject', 'none left');
update ai.limits set on_limit = 'wait' where id = :l;
select is(t.verdicts(1, tokens => 100000), 'wait', 'or it waits, for money'), is(t.lane_place('ann'), 'parked', 'parked');
select is(ai.add_credit(t.alpha(), 0.5), 2.0, 'topped up again');
set constraints all immediate;
select is(t.lane_place('ann'), 'active', 'what waited is looked at'), is(t.verdicts(1, tokens => 100000), 'go', 'and goes');
set constraints all deferred;
select is(ai.add_credit(t.alpha(), -2), 0::numeric, 'taken back'), is(t.verdicts(1, tokens => 1), 'wait', 'below 0: waits');
select t.pass('400 days');
select is(t.verdicts(1, tokens => 1), 'wait', 'credit knows no window');
select t.clear();
select ai.add_credit(t.beta(), 1) \g /dev/null
select is((select count(*) from ai.limits where metric = 'credit'), 1::bigint, 'one limit for beta');
select is(t.verdicts(1), 'go', 'alpha has no credit limit');
select t.clear();

-- Several limits: whoever is refused by one has used no room of another
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 10, 'on_limit', 'reject')) as r,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'tokens', 'period', 'minute', 'amount', 100)) as k \gset
select t.limit_id('{"tenant_id": null, "per": "member", "metric": "requests", "period": "hour", "amount": 2, "on_limit": "reject"}') as m \gset
select is(t.verdicts(3, tokens => 10), 'go go reject', 'the member''s two'), is(t.verdicts(3, tokens => 10, "user" => 'abe'), 'go go reject', 'another member''s two');
select is(t.used(:r), 4::numeric, 'requests of those that went'), is(t.used(:k), 40::numeric, 'and their tokens');
select is(t.verdicts(1, tokens => 61, "user" => 'dev'), 'wait', 'no tokens: waits'), is(t.used(:r), 4::numeric, 'its request is not used'), is(t.lane_place('dev'), 'parked', 'its lane is parked'),
       is(t.lane_place('abe'), 'active', 'no other is');
select is(t.verdicts(1, tokens => 61, "user" => 'ann'), 'reject', 'of a limit that rejects and one that waits the one that rejects has its way');
select is((select array_agg(cardinality(l.counters) order by l.id) from ai.lanes l where l.counters <> '{}'), array[3, 3, 3], 'lanes are by what counts');
-- the sum of reservations is the sum over what runs
select is((select array_agg(c.counter_id || ': ' || c.amount order by c.counter_id) from (select counter_id, sum(amount) as amount from t.running, unnest(counters, amounts) u (counter_id, amount) group by 1) c),
          (select array_agg(e.counter_id || ': ' || e.balance order by e.counter_id) from (select distinct on (counter_id) counter_id, balance from ai.counter_entries order by counter_id, seq desc) e),
          'what is reserved is what the leases say');
-- a batch of many lanes, tenants and models in one call
select is(t.settle_all(), true, 'settled, and the one that waited is looked at'), is(t.used(:k), 0::numeric, 'nothing leaks'), is(t.used(:r), 4::numeric, 'what was sent is a request');
select t.clear();

-- Requests are given back where nothing was sent and nothing will be
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 1)) as l \gset
select is(t.verdicts(2), 'go wait', 'one of one'), is(t.settle_all(sent => false, ended => false), false, 'handed back unsent: it will be tried again'), is(t.used(:l), 1::numeric, 'and has been counted');
select is(t.verdicts(1, first => false), 'go', 'its next attempt is not counted'), is(t.settle_all(sent => true, ended => true), false, 'sent'), is(t.used(:l), 1::numeric, 'once');
select t.pass('1 hour');
select is(t.verdicts(2), 'go wait', 'one of one'), is(t.settle_all(sent => false, ended => true), true, 'cancelled before it was sent'), is(t.used(:l), 0::numeric, 'is no request'),
       is(t.lane_place('ann'), 'active', 'there is room for another');
-- settled in the window of the claim, however late
select is(t.verdicts(1), 'go', 'claimed in this hour'), t.pass('1 hour'), is(t.verdicts(1), 'go', 'another in the next'), is(t.settle_all(sent => false, ended => true), false, 'both given back');
select is((select array_agg(balance order by window_start) from (select distinct on (window_start) window_start, balance from ai.counter_entries order by window_start, seq desc) e), array[1, 0, 0]::numeric[], 'each in its own');
select t.clear();

-- Settled without holding the counter: the next claim, settlement or maintenance writes it down
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 2)) as l,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'day', 'amount', 5)) as c \gset
select is(t.verdicts(3, tokens => 1000), 'go go wait', 'two run'), is(t.settle_one(later => true), true, 'one ends: workers have to be woken'), is(t.used(:l), 2::numeric, 'the ledger does not know yet'),
       is(t.lane_place('ann'), 'parked', 'nor does the lane');
select ok(ai.unpark_lanes(ai.now()) is null, 'a claim of everything'), is(t.lane_place('ann'), 'active', 'looks at it'), is(t.verdicts(2), 'go wait', 'and there is room for one');
select is(t.settle_all(later => true, cost => 1), true, 'all end'), is(t.verdicts(3), 'go go wait', 'room for two'), is(t.settle_one(later => true, cost => 1), true, 'one ends later'),
       is(t.settle_all(cost => 1), true, 'the rest at once'), is(t.used(:l), 0::numeric, 'nothing runs'), is(t.used(:c), 4::numeric, 'and all is on the books');
select is(t.verdicts(1), 'go', 'one more'), is(t.settle_all(later => true, cost => 1), true, 'the last'), is(ai.prune_counters(ai.now()), 0, 'maintenance'), is(t.used(:c), 5::numeric, 'writes it down');
select is_empty('select from ai.unsettled', 'nothing is left over');
select is(t.settle_all(later => true), false, 'nothing to settle: nobody to wake');
select t.clear();

-- What follows another's answer needs a request and nothing else
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 2, 'on_limit', 'reject')) as r,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'hour', 'amount', 0)) as c,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 0)) as n \gset
select is(t.verdicts(3, follows => true, tokens => 1000), 'go go reject', 'followers'), is(t.used(:c), 0::numeric, 'cost nothing'), is(t.used(:n), 0::numeric, 'do not run');
select t.clear();

-- Policy changes while something waits
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'month', 'amount', 1)) as l \gset
select is(t.verdicts(2), 'go wait', 'waits'), is(t.lane_place('ann'), 'parked', 'parked');
update ai.limits set amount = 2 where id = :l;
set constraints all immediate;
select is(t.lane_place('ann'), 'active', 'raised: it is looked at'), is(t.verdicts(2), 'go wait', 'one more went');
update ai.limits set enabled = false where id = :l;
select is_empty('select from ai.parked_lanes', 'switched off: it is looked at'), is(t.verdicts(1), 'go', 'and goes');
update ai.limits set enabled = true where id = :l;
select is(t.verdicts(1), 'wait', 'on again');
delete from ai.limits where id = :l;
select is_empty('select from ai.parked_lanes', 'deleted: it is looked at'), is(t.verdicts(1), 'go', 'and goes');
select is(t.settle_all(), false, 'what was reserved on counters that are gone is passed over');
select t.limit_id('{"tenant_id": null, "metric": "requests", "period": "month", "amount": 1}') as l \gset
select is(t.verdicts(2), 'go wait', 'a limit of all tenants'), is(t.lane_place('ann'), 'parked', 'parked');
update ai.limits set on_limit = 'reject' where id = :l;
select is(t.lane_place('ann'), 'active', 'its change is every tenant''s'), is(t.verdicts(1), 'reject', 'rejects now');
set constraints all deferred;
select t.clear();
-- parked twice, listed twice: no harm
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'month', 'amount', 1)) as l \gset
select is(t.verdicts(2), 'go wait', 'waits'), is(t.verdicts(1), 'wait', 'and another claim finds the same');
select is((select count(*) from ai.parked_lanes), 1::bigint, 'that leaves one row');
update ai.parked_lanes set until = until + interval '1 minute';
select is(t.verdicts(1), 'wait', 'one that looks again earlier');
select is((select count(*) from ai.parked_lanes), 2::bigint, 'leaves another one');
select is(ai.unpark(array(select lane_id from ai.parked_lanes)), 2, 'both go');
select is((select count(*) from ai.active_lanes a join ai.lanes l on l.id = a.lane_id where l.counters <> '{}'), 1::bigint, 'one listing');
-- listed and parked: no claim takes anything of it before it is unparked
select is(t.verdicts(1), 'wait', 'it waits');
select t.ask() \g /dev/null
insert into ai.active_lanes (lane_id, tenant_id, rank) select p.lane_id, p.tenant_id, p.rank from ai.parked_lanes p;
select is(t.lane_place('ann'), 'active+parked', 'listed and parked');
update ai.queue set lane_id = (select lane_id from ai.parked_lanes);
select (select count(*) from ai.queue) as queued, (select p.lane_id from ai.parked_lanes p) as lane \gset
select is((ai.pick_from_lane(:lane, 10, 32, '{}', '{}')).taken, 0, 'nothing is taken where it is the only one'),
       is((ai.pick_in_turn('00000000-0000-0000-0000-000000000000', 10, 10, 32, '{}', '{}', '{}')).taken, 0, 'nor in turn');
update ai.parked_lanes set counter_id = 0;
select is((ai.pick_from_lane(:lane, 10, 32, '{}', '{}')).taken, :queued, 'what is not parked for a limit is taken');
delete from ai.generations;
select t.clear();
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'month', 'amount', 1)) as l \gset
select is(t.verdicts(2), 'go wait', 'waits');
select is(ai.unpark(array(select lane_id from ai.parked_lanes)), 1, 'is looked at');
-- until a deadline at the latest
select t.ask('late', p_deadline_ms => 5000) as g \gset
select is((select r.verdict from t.reserve(array[true], 'ann', ids => array[:'g']::uuid[]) r), 'wait', 'its deadline is in five seconds');
select is((select max(until) from ai.parked_lanes), (select greatest(created_at, run_after) + interval '5 s' from ai.generations where id = :'g'), 'it is looked at then');
select t.clear();

-- Pruning: money is kept, of the rest the last of each chain as long as its window counts
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 10)) as r,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'hour', 'amount', 10)) as c,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 10)) as n \gset
select t.pass(ai.window_start('hour', ai.now()) + interval '61 minutes' - ai.now());
select is(t.verdicts(1, tokens => 1000), 'go', 'one'), is(t.verdicts(1, tokens => 1000), 'go', 'two'), is(ai.prune_counters(ai.now()), 0, 'nothing is old');
select is((select count(*) from ai.counter_entries), 6::bigint, 'three chains of two');
select is(ai.prune_counters(ai.now() + interval '61 minutes'), 2, 'the ends of chains stay');
select ok((select count(*) from ai.counter_entries where money) = 2, 'money stays');
select is(ai.prune_counters(ai.now() + interval '10 days'), 1, 'windows that are over go');
select is(t.used(:n), 2::numeric, 'what runs is known'), is(t.used(:c), 0.012, 'and the money'), is(t.used(:r), 0::numeric, 'and nothing else');
select is(t.settle_all(cost => 1), false, 'settled after that'), is(t.used(:n), 0::numeric, 'nothing runs'), is(t.used(:c), 2::numeric, 'what it cost');

-- An insert finds its lane by itself, the same that ai.existing_lane() finds, whichever limits concern it
select t.clear();
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 100) || f::jsonb)
  from unnest(array['{}', '{"user_id": "ann"}', '{"kind": "chat", "model": "mtap/one"}', '{"profile": "small"}', '{"tenant_id": null, "per": "member"}', '{"enabled": false}']) f;
insert into ai.lanes (tenant_id, priority, counters)
select t.alpha(), 'high', ai.make_counters(t.alpha(), u, 'chat', m, p)
  from (values ('ann', 'mtap/one', null), ('abe', 'mtap/one', null), ('ann', null, 'small')) v (u, m, p);
insert into ai.generations (tenant_id, user_id, prompt, model, profile, priority)
select t.alpha(), u, 'Which lane?', m, p, 'high' from (values ('ann', 'mtap/one', null)) v (u, m, p);
insert into ai.generations (tenant_id, user_id, prompt, model, priority) values (t.alpha(), 'abe', 'Which lane?', 'mtap/one', 'high'), (t.alpha(), 'abe', 'And which?', 'mtap/one', 'high');
insert into ai.generations (tenant_id, user_id, prompt, profile, priority) values (t.alpha(), 'ann', 'Which lane?', 'small', 'high');
insert into ai.generations (tenant_id, user_id, prompt, model, priority) values (t.alpha(), 'dev', 'Which lane?', 'mtap/one', 'high');
select is(q.lane_id, ai.existing_lane(g.tenant_id, g.priority, g.batch_id, g.user_id, g.kind, g.model, g.profile, g.api_key_id), format('%s, %s: the same lane', g.user_id, coalesce(g.model, g.profile))),
       is(l.counters, coalesce(ai.generation_counters(g.tenant_id, g.user_id, g.kind, g.model, g.profile), '{}'), 'that of its counters; before they are made, the tenant''s own')
  from ai.generations g join ai.queue q on q.generation_id = g.id join ai.lanes l on l.id = q.lane_id
 where g.prompt in ('Which lane?', 'And which?') order by g.id;

select * from finish();
rollback;
