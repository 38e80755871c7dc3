-- The report over the books, and whose it is.
begin;
\ir setup/world.sql
select no_plan();

insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, kind, status, input_tokens, cached_tokens, output_tokens, estimated, cost)
select tenant, gen_random_uuid(), 1, at::timestamptz, member, provider, model, kind, status, input, cached, output, estimated, cost
  from (values
    (t.alpha(), '2026-01-31 23:59:59.999+00', 'ann', 'p1', 'm1', 'chat',      'succeeded', 10, 5, 1, false, 0.1),
    (t.alpha(), '2026-02-01 00:00:00+00',     'ann', 'p1', 'm1', 'chat',      'failed',    20, 0, 2, true,  0.02),
    (t.alpha(), '2026-02-01 12:00:00+00',     'ann', 'p2', 'm2', 'chat',      'succeeded', 30, 0, 3, false, 0.003),
    (t.alpha(), '2026-02-02 00:00:00+00',     'abe', 'p1', 'm1', 'embedding', 'cancelled', 40, 0, 4, false, 0.0000000000000000004),
    (t.alpha(), '2026-02-02 23:00:00+00',     'abe', 'p3', 'm3', 'chat',      'abandoned', 50, 0, 5, true,  null),
    (t.beta(),  '2026-02-01 00:00:00+00',     'bob', 'p1', 'm1', 'chat',      'succeeded', 9999, 0, 9999, false, 9999)) v (tenant, at, member, provider, model, kind, status, input, cached, output, estimated, cost);

set local session authorization mtap_dev;
select results_eq($$ select * from ai.usage_report('2026-01-01', '2027-01-01', 'model') $$, $$ values
  ('m1', 3::bigint, 1::bigint, 70::bigint, 5::bigint, 7::bigint, 0.1200000000000000004, 0.02, 0::bigint), ('m2', 1, 1, 30, 0, 3, 0.003, 0, 0), ('m3', 1, 0, 50, 0, 5, 0, 0, 1) $$, 'by model');
select results_eq(format($$ select key, calls from ai.usage_report('2026-01-01', '2027-01-01', %L) $$, p_by), expected, format('by %s', p_by))
  from (values ('provider', $$ values ('p1', 3::bigint), ('p2', 1), ('p3', 1) $$), ('user', $$ values ('abe', 2::bigint), ('ann', 3) $$), ('kind', $$ values ('chat', 4::bigint), ('embedding', 1) $$),
               ('status', $$ values ('abandoned', 1::bigint), ('cancelled', 1), ('failed', 1), ('succeeded', 2) $$),
               ('day', $$ values ('2026-01-31', 1::bigint), ('2026-02-01', 2), ('2026-02-02', 2) $$)) v (p_by, expected);
select results_eq($$ select key, calls from ai.usage_report('2026-02-01 00:00+00', '2026-02-02 00:00+00', 'day') $$, $$ values ('2026-02-01', 2::bigint) $$, 'from inclusive, to exclusive');
select is_empty($$ select * from ai.usage_report('2026-03-01', '2026-02-01') $$, 'a range that ends before it begins is empty');
select is((select sum(cost) from ai.usage_report('-infinity', 'infinity', p_by)), 0.1230000000000000004, format('the sum by %s, to the last digit', p_by))
  from unnest(array['provider', 'model', 'user', 'kind', 'status', 'day']) p_by;
set local timezone = 'Pacific/Auckland';
select results_eq($$ select key, calls from ai.usage_report('2026-01-01', '2027-01-01', 'day') $$, $$ values ('2026-01-31', 1::bigint), ('2026-02-01', 2), ('2026-02-02', 2) $$, 'days are UTC wherever one asks');
set local timezone = 'UTC';
select throws_ok(format($$ select * from ai.usage_report('2026-01-01', '2027-01-01', %s) $$, p_by), 'PT400', null, format('by %s', p_by)) from (values ('''tenant'''), (''''''), ('null'), ('''MODEL''')) v (p_by);
set local session authorization mtap_ann;
select is((select sum(calls) from ai.usage_report('2026-01-01', '2027-01-01', 'user')), 3::numeric, 'a user sees the own calls');
select is((select sum(cost) from ai.usage_report('2026-01-01', '2027-01-01')), 0.123, 'and the own cost');
set local session authorization mtap_bob;
select is((select sum(cost) from ai.usage_report('2026-01-01', '2027-01-01')), 9999::numeric, 'another tenant its own');
set local session authorization mtap_stray;
select is_empty($$ select * from ai.usage_report('-infinity') $$, 'nobody sees nothing');
set local session authorization mtap_monitor;
select throws_ok($$ select * from ai.usage_report() $$, '42501', null, 'a monitor may not ask');
select results_eq($$ select tenant, calls, succeeded, input_tokens, cost, unpriced from ai.tenant_totals('2026-01-01', '2027-01-01') $$, $$ values
  ('mtap alpha', 5::bigint, 2::bigint, 150::bigint, 0.1230000000000000004, 1::bigint), ('mtap beta', 1, 1, 9999, 9999, 0) $$, 'but what each tenant used in all');
select results_eq($$ select tenant, calls from ai.tenant_totals('2026-02-02', '2026-02-03') $$, $$ values ('mtap alpha', 2::bigint) $$, 'at a time');
set local session authorization mtap_adm;
select throws_ok($$ select * from ai.tenant_totals() $$, '42501', null, 'no tenant sees that');
reset session authorization;

-- Rows of any time have a place
select is((select count(*) from ai.llm_calls where created_at < '2026-02-01' or created_at >= '2026-02-01'), 6::bigint, 'every row is somewhere');

select * from finish();
rollback;
