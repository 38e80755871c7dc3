-- Prices as versions, and what tokens cost by them, to the last digit.
begin;
\ir setup/world.sql
select no_plan();

create function t.model_with(p_name text, p_kind text default 'chat') returns bigint language sql as $$
  insert into ai.models (provider_id, name, wire_name, kind) select id, p_name, 'w', p_kind from ai.providers where name = 'mtap-first' returning id
$$;
select t.model_with('mtap/versions') as m, t.model_with('mtap/vectors', 'embedding') as v \gset

-- Rates
select throws_ok(format('insert into ai.prices (model_id, rates) values (%s, %L)', :m, rates), state, null, format('rates %s: %s', rates, state))
  from (values ('{"input": 1}', 'PT400'), ('{"output": 1}', 'PT400'), ('{}', 'PT400'), ('{"input": 1, "output": -1}', 'PT400'),
               ('{"input": -0.000001, "output": 1}', 'PT400'), ('{"input": "1", "output": 1}', 'PT400'), ('{"input": null, "output": 1}', 'PT400'),
               ('{"input": 1, "output": 1, "cached": 1}', 'PT400'), ('{"input": 1, "output": 1, "cache_read": {}}', 'PT400'), ('{"Input": 1, "output": 1}', 'PT400'),
               ('[1, 2]', 'PT400'), ('7', 'PT400'), ('"x"', 'PT400'), ('null', 'PT400')) v (rates, state);
select throws_ok(format('insert into ai.prices (model_id, rates) values (%s, null)', :m), '23502', null, 'no rates');
select throws_ok(format('insert into ai.prices (model_id, rates) values (-1, %L)', '{"input": 1, "output": 1}'), '23503', null, 'a price of no model');
select throws_ok(format('insert into ai.prices (model_id, rates) values (%s, %L)', :v, '{"output": 1}'), 'PT400', null, 'an embedding needs a rate for input');
select lives_ok(format('insert into ai.prices (model_id, rates) values (%s, %L)', :v, '{"input": 0.02}'), 'and no other');
select lives_ok(format('insert into ai.prices (model_id, rates) values (%s, %L)', :v + 0, '{"input": 0, "output": 0}') || ' on conflict do nothing', 'free is a price');

-- Versions follow one another
insert into ai.prices (model_id, rates) values (:m, '{"input": 1, "output": 1}');
insert into ai.prices (model_id, rates, valid_from) values (:m, '{"input": 2, "output": 2}', now() + interval '1 day');
insert into ai.prices (model_id, rates, valid_from) values (:m, '{"input": 3, "output": 3}', now() + interval '2 days');
select results_eq(format($$ select (rates ->> 'input')::int, valid_from = '-infinity', valid_to = lead(valid_from, 1, 'infinity') over (order by valid_from)
                              from ai.prices where model_id = %s order by valid_from $$, :m),
                  $$ values (1, true, true), (2, false, true), (3, false, true) $$, 'each version ends where the next begins, the last never');
select is_empty($$ select from ai.prices a join ai.prices b on b.model_id = a.model_id and b.id <> a.id and a.valid_from < b.valid_to and b.valid_from < a.valid_to $$,
                'no two versions of one model overlap');
select throws_ok(format($$ insert into ai.prices (model_id, rates, valid_from) values (%s, '{"input": 9, "output": 9}', now() + interval '1 hour') $$, :m), 'PT409', null,
                 'a version between two others');
select throws_ok(format($$ insert into ai.prices (model_id, rates, valid_from) values (%s, '{"input": 9, "output": 9}', now() + interval '2 days') $$, :m), '23505', null,
                 'a version that begins with another');
select throws_ok(format($$ insert into ai.prices (model_id, rates, valid_from, valid_to) values (%s, '{"input": 9, "output": 9}', now() + interval '9 days', now() + interval '8 days') $$, :m),
                 '23514', null, 'a version that ends before it begins');

-- No version is changed
select throws_ok(format('update ai.prices set %s where model_id = %s and valid_from = ''-infinity''', change, :m), 'PT409', null, format('no change: %s', change))
  from (values ($$rates = '{"input": 9, "output": 1}'$$), ($$rates = '{"input": 1, "output": 1, "reasoning": 1}'$$),
               ($$valid_from = now() - interval '1 year'$$), (format('model_id = %s', :v)), ($$valid_to = 'infinity'$$), ($$valid_to = now() + interval '3 days'$$)) v (change);
select lives_ok(format($$ update ai.prices set valid_to = now() + interval '12 hours' where model_id = %s and valid_from = '-infinity' $$, :m),
                'a version by which nothing was billed then may end earlier');

-- The past stays as it was billed
select t.model_with('mtap/billed') as b \gset
insert into ai.prices (model_id, rates) values (:b, '{"input": 1, "output": 1}');
select t.worker() as w, t.ask(p_model => 'mtap/billed') as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'g', 1, 'succeeded', '{"output": "x", "usage": {"input": 10, "output": 10}}') \g /dev/null
select throws_ok(format($$ insert into ai.prices (model_id, rates, valid_from) values (%s, '{"input": 9, "output": 9}', now() - interval '1 day') $$, :b), 'PT409', null,
                 'a version that would begin before what was billed by the one it ends');
select throws_ok(format($$ update ai.prices set valid_to = now() - interval '1 day' where model_id = %s $$, :b), 'PT409', null, 'a version that was billed by cannot end before');
select throws_ok(format($$ delete from ai.prices where model_id = %s $$, :b), 'PT409', null, 'nor be deleted');
select lives_ok(format($$ insert into ai.prices (model_id, rates, valid_from) values (%s, '{"input": 2, "output": 2}', now() + interval '1 hour') $$, :b), 'a version to come does no harm');
select lives_ok(format($$ delete from ai.prices where model_id = %s and valid_from > now() $$, :b), 'one by which nothing was billed may go');
select is((select p.id from ai.prices p where p.model_id = :b), (t.call(:'g', 1)).price_id, 'the books name the version');
select is((select ai.token_cost(p.rates, 10, 0, 0, 0, 10, 0) from ai.prices p where p.id = (t.call(:'g', 1)).price_id), (t.call(:'g', 1)).cost,
          'and the cost can be derived from it again');

-- Which version: the one that was valid when the attempt was claimed, whenever it is settled
select t.ask(p_model => 'mtap/versions') as early \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.pass('25 hours');
select t.ask(p_model => 'mtap/versions') as late \gset
update ai.workers set heartbeat_at = ai.now();
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'early', 1, 'succeeded', '{"output": "x", "usage": {"input": 1000000, "output": 0}}') \g /dev/null
select t.settle(:'w', :'late', 1, 'succeeded', '{"output": "x", "usage": {"input": 1000000, "output": 0}}') \g /dev/null
select is((t.call(:'early', 1)).cost, 1::numeric, 'claimed before the new version: the old price');
select is((t.call(:'late', 1)).cost, 2::numeric, 'claimed after it: the new one');

-- Costs by hand
create table t.costs (what text, rates jsonb, input bigint, cached bigint, write bigint, write_1h bigint, output bigint, reasoning bigint, cost text);
insert into t.costs values
  ('nothing',                        '{"input": 3, "output": 15}', 0, 0, 0, 0, 0, 0, '0'),
  ('one token of input',             '{"input": 3, "output": 15}', 1, 0, 0, 0, 0, 0, '0.000003'),
  ('one token of output',            '{"input": 3, "output": 15}', 0, 0, 0, 0, 1, 0, '0.000015'),
  ('a fraction of a cent',           '{"input": 0.15, "output": 0.6}', 1234, 0, 0, 0, 567, 0, '0.0005253'),
  ('cached without a rate',          '{"input": 3, "output": 15}', 100, 40, 0, 0, 0, 0, '0.0003'),
  ('cached with a rate',             '{"input": 3, "cache_read": 0.3, "output": 15}', 100, 40, 0, 0, 0, 0, '0.000192'),
  ('a cached rate of nothing',       '{"input": 3, "cache_read": 0, "output": 15}', 100, 40, 0, 0, 0, 0, '0.00018'),
  ('written without a rate',         '{"input": 3, "output": 15}', 100, 0, 40, 0, 0, 0, '0.0003'),
  ('written with a rate',            '{"input": 3, "cache_write": 3.75, "output": 15}', 100, 0, 40, 0, 0, 0, '0.00033'),
  ('written for 1h, no rate at all', '{"input": 3, "output": 15}', 100, 0, 0, 40, 0, 0, '0.0003'),
  ('written for 1h, the 5m rate',    '{"input": 3, "cache_write": 3.75, "output": 15}', 100, 0, 0, 40, 0, 0, '0.00033'),
  ('written for 1h, its own rate',   '{"input": 3, "cache_write": 3.75, "cache_write_1h": 6, "output": 15}', 100, 0, 0, 40, 0, 0, '0.00042'),
  ('all input classes',              '{"input": 3, "cache_read": 0.3, "cache_write": 3.75, "cache_write_1h": 6, "output": 15}', 100, 10, 20, 30, 0, 0, '0.000378'),
  ('nothing uncached',               '{"input": 3, "cache_read": 0.3, "cache_write": 3.75, "cache_write_1h": 6, "output": 15}', 60, 10, 20, 30, 0, 0, '0.000258'),
  ('reasoning without a rate',       '{"input": 3, "output": 15}', 0, 0, 0, 0, 100, 60, '0.0015'),
  ('reasoning with a rate',          '{"input": 3, "output": 15, "reasoning": 20}', 0, 0, 0, 0, 100, 60, '0.0018'),
  ('reasoning and nothing said',     '{"input": 3, "output": 15, "reasoning": 20}', 0, 0, 0, 0, 60, 60, '0.0012'),
  ('a rate of 0.000000075',          '{"input": 0.000000075, "output": 0.000000075}', 1, 0, 0, 0, 0, 0, '0.000000000000075'),
  ('that, seven million times',      '{"input": 0.000000075, "output": 0}', 7000001, 0, 0, 0, 0, 0, '0.000000525000075'),
  ('fifteen digits after the point', '{"input": 0.123456789012345, "output": 0.987654321098765}', 3, 0, 0, 0, 7, 0, '0.00000728395061472839'),
  ('a rate that no binary number is', '{"input": 0.1, "output": 0.2}', 3, 0, 0, 0, 3, 0, '0.0000009'),
  ('two thousand million tokens',    '{"input": 75.123456789, "output": 150.000000001}', 2147483647, 0, 0, 0, 2147483647, 0, '483448.942012636113130'),
  ('a rate in exponents',            '{"input": 1.5e-7, "output": 2E1}', 2, 0, 0, 0, 1, 0, '0.0000200000003');
select is(ai.token_cost(rates, input, cached, write, write_1h, output, reasoning), cost::numeric, what) from t.costs;
select is(ai.token_cost(null, 1, 0, 0, 0, 1, 0), null::numeric, 'without a price the cost is unknown, not nothing');

-- The same through the whole path, against numbers worked out by hand; the sums must meet.
select t.model_with('mtap/awkward') as a \gset
insert into ai.prices (model_id, rates) values (:a, '{"input": 0.000000075, "cache_read": 0.0000000123456789, "cache_write": 0.333333333333333, "cache_write_1h": 0.666666666666667,
                                                      "output": 0.1, "reasoning": 0.07}');
select t.ask(p_model => 'mtap/awkward') as g1, t.ask(p_model => 'mtap/awkward') as g2, t.ask(p_model => 'mtap/awkward') as g3, t.ask(p_model => 'mtap/unpriced') as g4 \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'g1', 1, 'succeeded', '{"output": "x", "usage": {"input": 100, "cache_read": 10, "cache_write": 20, "cache_write_1h": 30, "output": 50, "reasoning": 40}}') \g /dev/null
select t.settle(:'w', :'g2', 1, 'succeeded', '{"output": "x", "usage": {"input": 1, "output": 1}}') \g /dev/null
select t.settle(:'w', :'g3', 1, 'failed', '{"signal": "http", "http_status": 400, "usage": {"input": 3, "output": 0}}') \g /dev/null
select t.settle(:'w', :'g4', 1, 'succeeded', '{"output": "x", "usage": {"input": 1000, "output": 1000}}') \g /dev/null
-- 40 × 0.000000075 + 10 × 0.0000000123456789 + 20 × 0.333333333333333 + 30 × 0.666666666666667 + 10 × 0.1 + 40 × 0.07
-- = 0.000003 + 0.000000123456789 + 6.66666666666666 + 20.00000000000001 + 1 + 2.8 = 30.466669790123459 millionths
select is((t.call(:'g1', 1)).cost, 0.000030466669790123459, 'all classes with awkward rates');
select is((t.generation(:'g1')).cost, 0.000030466669790123459, 'the same in the generation');
select is((t.call(:'g2', 1)).cost, 0.000000100000075, 'one token each');
select is((t.call(:'g3', 1)).cost, 0.000000000000225, 'a failure with usage is billed');
select is((t.call(:'g4', 1)).cost, null::numeric, 'a model without a price: the cost is unknown');
select is((t.call(:'g4', 1)).price_id, null::bigint, 'and no version is named');
select is((t.generation(:'g4')).cost, null::numeric, 'unknown in the generation, too');
select row(c.input_tokens, c.cached_tokens, c.cache_write_tokens, c.cache_write_1h_tokens, c.output_tokens, c.reasoning_tokens, c.estimated)::text as books from t.call(:'g1', 1) c \gset
select is(:'books'::text, '(100,10,20,30,50,40,f)', 'the books hold the tokens of each class');
select is((select sum(cost) from ai.llm_calls), (select sum(cost) from ai.generations), 'the books and the generations agree');
set local session authorization mtap_dev;
select is((select sum(cost) from ai.usage_report('-infinity')), (select sum(cost) from ai.llm_calls), 'the report and the books agree');
reset session authorization;

select throws_ok('truncate ai.prices cascade', 'PT409', null, 'price versions are not truncated');

select * from finish();
rollback;
