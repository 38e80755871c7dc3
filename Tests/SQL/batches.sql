-- Batches: made, filled, paused, resumed, cancelled, counted; and what something would cost.
begin;
\ir setup/world.sql
select no_plan();
select t.worker('one') as w \gset
grant ai_tester to mtap_ann;  -- so that time passes for her too

-- Runs a statement that gives one value as a login role; gives the value, or the SQLSTATE of what it raised.
create function t.value_as(p_role text, p_sql text) returns text language plpgsql as $$
declare
  v_value text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute p_sql into v_value;
  exception when others then
    v_value := sqlstate;
  end;
  execute 'reset session authorization';
  return v_value;
end
$$;
create function t.batch(p_role text default 'mtap_ann', p_name text default 'b', p_paused boolean default false) returns uuid language sql as $$
  select t.value_as(p_role, format('select ai.create_batch(%L, paused => %L)', p_name, p_paused))::uuid
$$;
-- Fills a batch with p_count rows as a login role; gives how many, or the SQLSTATE.
create function t.fill(p_batch uuid, p_count integer default 3, p_role text default 'mtap_ann', p_priority text default 'normal', p_run_after timestamptz default null)
returns text language sql as $$
  select t.value_as(p_role, format(
    'with i as (insert into ai.generations (prompt, model, batch_id, priority, run_after) select ''row '' || n, ''mtap/one'', %L, %L, %L from generate_series(1, %s) n returning 1)
     select count(*) from i', p_batch, p_priority, p_run_after, p_count))
$$;
create function t.progress(p_batch uuid) returns setof record language plpgsql as $$
begin
  set local session authorization mtap_ann;
  return query select p.state, p.total, p.queued, p.running, p.succeeded, p.failed, p.cancelled, p.rejected from ai.batch_progress(p_batch) p;
  reset session authorization;
end
$$;
create function t.counts(p_batch uuid) returns text language sql as $$
  select concat_ws(' ', p.state, p.total, p.queued, p.running, p.succeeded, p.failed, p.cancelled, p.rejected)
    from t.progress(p_batch) p (state text, total bigint, queued bigint, running bigint, succeeded bigint, failed bigint, cancelled bigint, rejected bigint)
$$;

-- Making one
select t.batch() as b \gset
select results_eq(format('select tenant_id, user_id, name, paused_at is null, cancelled_at is null from ai.batches where id = %L', :'b'),
  $$ values (t.alpha(), 'ann', 'b', true, true) $$, 'a batch is its maker''s');
select results_eq(format('select priority, counters from ai.lanes where batch_id = %L order by 1', :'b'),
  $$ values ('batch', '{}'::bigint[]), ('high', '{}'), ('low', '{}'), ('normal', '{}') $$, 'it has a lane for each priority from the start');
select is(t.value_as('mtap_ann', format('select length(ai.create_batch(%s)::text)', n.text)), n.wanted, n.why)
  from (values ($$'x'$$, '36', 'a name of one character'), ($$repeat('x', 200)$$, '36', 'of 200'), ($$repeat('x', 201)$$, 'PT400', 'of 201'),
               ($$''$$, 'PT400', 'none'), ('null', 'PT400', 'null'),
               ($$'x', to_jsonb(repeat('x', 65534))$$, '36', 'metadata of 65,536 bytes'), ($$'x', to_jsonb(repeat('x', 65535))$$, 'PT400', 'of one more')) n (text, wanted, why);
select is(t.value_as(r.role, $$select length(ai.create_batch('x')::text)$$), r.wanted, format('%s makes a batch: %s', r.role, r.wanted))
  from (values ('mtap_ann', '36'), ('mtap_dev', '36'), ('mtap_adm', '36'), ('mtap_bob', '36'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'),
               ('mtap_monitor', '42501'), ('mtap_public', '42501')) r (role, wanted);
select is(t.counts(:'b'), 'empty 0 0 0 0 0 0 0', 'an empty batch');

-- Who may see it, and do something with it
select is(t.value_as(r.role, format('select count(*) from ai.batches where id = %L', :'b')), r.wanted, format('%s sees it: %s', r.role, r.wanted))
  from (values ('mtap_ann', '1'), ('mtap_abe', '0'), ('mtap_dev', '1'), ('mtap_adm', '1'), ('mtap_bob', '0'), ('mtap_stray', '0'), ('mtap_worker', '42501'),
               ('mtap_monitor', '42501'), ('mtap_public', '42501')) r (role, wanted);
select is(t.value_as(r.role, format(f.call, :'b')), case when r.wanted = 'ok' then f.gives else r.wanted end, format('%s: %s', r.role, f.call))
  from (values ('select ai.pause_batch(%L)', ''), ('select ai.resume_batch(%L)', ''), ('select state from ai.batch_progress(%L)', 'empty'),
               ('select total from ai.batch_progress(%L)', '0')) f (call, gives)
 cross join (values ('mtap_abe', 'PT404'), ('mtap_bob', 'PT404'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_monitor', '42501'),
                    ('mtap_public', '42501'), ('mtap_dev', 'ok'), ('mtap_adm', 'ok'), ('mtap_ann', 'ok')) r (role, wanted);
select is(t.value_as(r.role, format('select cancelled from ai.cancel_batch(%L)', :'b')), r.wanted, format('%s cancels it: %s', r.role, r.wanted))
  from (values ('mtap_abe', 'PT404'), ('mtap_bob', 'PT404'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_public', '42501')) r (role, wanted);
select is(t.value_as('mtap_ann', format(f.call, f.id)), 'PT404', format(f.call, 'no batch'))
  from (values ('select ai.pause_batch(%L)', ai.uuid_v7()), ('select ai.resume_batch(%L)', ai.uuid_v7()), ('select ai.cancel_batch(%L)', ai.uuid_v7()),
               ('select ai.batch_progress(%L)', ai.uuid_v7()), ('select ai.cancel_batch(%L)', null)) f (call, id);
select is(t.value_as(r, format(s, :'b')), '42501', format('%s: %s', r, s))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_adm']) r,
       unnest(array['update ai.batches set paused_at = null', 'delete from ai.batches', 'insert into ai.batches (tenant_id, user_id, name) values (null, null, null)',
                    'truncate ai.batches', 'select ai.stopped_lanes()', 'select ai.park_batch(%L)', 'select ai.check_batch(null, null, %L)',
                    'select ai.check_batch_visible(%L)', 'select ai.end_queued_of_batch(null, %L, true)', 'select ai.sweep_cancelled_batches()',
                    'select ai.estimate_basis(null, null, null, null)']) s;

-- Filling it
select is(t.fill(:'b', 3), '3', 'its maker adds to it');
select is(t.fill(:'b', 1, 'mtap_abe'), 'PT404', 'another user does not');
select is(t.fill(:'b', 1, 'mtap_bob'), 'PT404', 'nor another tenant');
select is(t.fill(ai.uuid_v7(), 1), 'PT404', 'there is no such batch');
select is(t.fill(:'b', 1, 'mtap_dev'), '1', 'a developer of the tenant does');
select is(t.value_as('mtap_adm', format($$with i as (insert into ai.generations (user_id, prompt, model, batch_id) values ('abe', 'x', 'mtap/one', %L) returning user_id) select * from i$$, :'b')),
  'abe', 'and an admin on behalf of another member');
select is(t.counts(:'b'), 'running 5 5 0 0 0 0 0', 'the batch counts all of its rows, whoever inserted them');
select is((select count(distinct q.lane_id) from ai.queue q join ai.lanes l on l.id = q.lane_id where l.batch_id = :'b'), 1::bigint, 'they are in its lane');
select is((select count(*) from ai.generations where batch_id = :'b' and deadline_ms = 2147483647), 5::bigint, 'they have 24 days');
insert into ai.generations (tenant_id, user_id, prompt, model, batch_id, deadline_ms, run_after)
values (t.alpha(), 'ann', 'x', 'mtap/one', :'b', 1, ai.now() + interval '1 day') returning id as short \gset
select is((t.generation(:'short')).deadline_ms, 1, 'but for one that names its own');
select is((t.generation(t.ask(p_run_after => ai.now() + interval '1 day'))).deadline_ms, null, 'others have what the settings say');
delete from ai.delayed;
delete from ai.generations where run_after > ai.now();
select is(t.fill(:'b', 1, p_priority => 'high'), '1', 'one of another priority');
select is((select count(distinct q.lane_id) from ai.queue q join ai.lanes l on l.id = q.lane_id where l.batch_id = :'b'), 2::bigint, 'is in another lane of it');
select is((select count(*) from ai.lanes where batch_id = :'b'), 4::bigint, 'no lane was made by an insert');

-- Progress, cost, rate, ETA. One succeeds for 0.00018, one fails for good.
select count(*) from t.claim(:'w', 3) \g /dev/null
select is(t.counts(:'b'), 'running 6 3 3 0 0 0 0', 'three run');
select t.pass('10 s');
select t.settle(:'w', l.generation_id, 1, case l.n when 1 then 'succeeded' else 'failed' end,
  case l.n when 1 then '{"output": "yes", "usage": {"input": 10, "output": 10}}' else '{"signal": "http", "http_status": 400}' end::jsonb)
  from (select row_number() over (order by generation_id) as n, generation_id from ai.leases) l where l.n < 3 \g /dev/null
select is(t.counts(:'b'), 'running 6 3 1 1 1 0 0', 'one succeeded, one failed');
set local session authorization mtap_ann;
select results_eq(format('select done, cost, expected_cost, rate > 0.03 and rate <= 0.2, eta between ''20 s'' and ''2 minutes'' from ai.batch_progress(%L)', :'b'),
  $$ values (2 / 6::float8, 0.00018::numeric, 0.0009::numeric, true, true) $$, 'two of six in ten seconds; the four others are expected to cost as much each');
reset session authorization;
select t.pass('61 s');
set local session authorization mtap_ann;
select results_eq(format('select rate, eta from ai.batch_progress(%L)', :'b'), $$ values (0::float8, null::interval) $$, 'nothing in the last minute: no rate, and no telling');
reset session authorization;

-- Pausing
select is(t.value_as('mtap_ann', format('select ai.pause_batch(%L)', :'b')), '', 'paused');
select is(t.value_as('mtap_dev', format('select ai.pause_batch(%L)', :'b')), '', 'twice');
select is((select count(*) from ai.parked_lanes p join ai.lanes l on l.id = p.lane_id where l.batch_id = :'b'), 4::bigint, 'each lane is parked once');
select is(cardinality(ai.stopped_lanes()), 4, 'the claim is told so');
select is(t.counts(:'b'), 'paused 6 3 1 1 1 0 0', 'progress says so');
select t.ask('beside') as beside \gset
select t.fill(:'b', 2) \g /dev/null
select is(t.fill(:'b', 1, p_run_after => ai.now() + interval '1 minute'), '1', 'what is for later is taken too');
select results_eq(format('select id from t.claim(%L)', :'w'), format('values (%L::uuid)', :'beside'), 'what is not of the batch is claimed, nothing of it');
select t.pass('2 minutes');
select is_empty(format('select id from t.claim(%L)', :'w'), 'nor what has become due');
select t.settle(:'w', l.generation_id, 1, 'succeeded', '{"usage": {"input": 10, "output": 10}}') from ai.leases l \g /dev/null
select is(t.counts(:'b'), 'paused 9 6 0 2 1 0 0', 'what ran went on to its end');
set local session authorization mtap_ann;
select is((select eta from ai.batch_progress(:'b')), null, 'a paused batch has no ETA');
reset session authorization;
select is(t.value_as('mtap_ann', format('select ai.resume_batch(%L)', :'b')), '', 'resumed');
select is(ai.stopped_lanes(), '{}', 'the claim is told so');
select is((select count(*) from t.claim(:'w', 4)), 4::bigint, 'it goes on');
select is(t.value_as('mtap_ann', format('select ai.resume_batch(%L)', :'b')), '', 'resumed twice');
select is((select count(*) from ai.active_lanes a join ai.lanes l on l.id = a.lane_id where l.batch_id = :'b'), 4::bigint, 'which lists nothing twice');

-- Paused from the start
select t.batch(p_paused => true) as p \gset
select is(t.fill(:'p', 2), '2', 'a batch that is made paused is filled');
select is(t.counts(:'p'), 'paused 2 2 0 0 0 0 0', 'and waits');

-- Cancelling. Of :b two are queued and four run; another retry waits for its time, another is for later.
select t.settle(:'w', l.generation_id, 1, 'failed', '{"signal": "http", "http_status": 503}') from ai.leases l limit 1 \g /dev/null
select t.fill(:'b', 1, p_run_after => ai.now() + interval '1 hour') \g /dev/null
select is(t.counts(:'b'), 'running 10 4 3 2 1 0 0', 'before');
select generation_id as retried from ai.delayed where attempts = 1 \gset
select is(t.value_as('mtap_ann', format('select cancelled || '' '' || running from ai.cancel_batch(%L)', :'b')), '4 3', 'what is queued, delayed or for later ends, what runs is being aborted');
select is(t.counts(:'b'), 'cancelled 10 0 3 2 1 4 0', 'progress says so');
select is((select count(*) from ai.worker_cancellations(:'w')), 3::bigint, 'the worker is told which');
select results_eq($$ select distinct error ->> 'class', finished_at is not null, coalesce(cost, 0) from ai.generations where status = 'cancelled' $$, $$ values ('cancelled', true, 0::numeric) $$,
  'cancelled with a reason, and for nothing');
select is((t.generation(:'retried')).last_seq, 2, 'numbered after the retry');
select is((select count(*) from ai.queue q join ai.lanes l on l.id = q.lane_id where l.batch_id = :'b') + (select count(*) from ai.delayed), 0::bigint, 'nothing of it waits anywhere');
select is(t.fill(:'b', 1), 'PT409', 'nothing can be added');
select is(t.value_as('mtap_ann', format('select ai.pause_batch(%L)', :'b')), 'PT409', 'nor can it be paused');
select is(t.value_as('mtap_ann', format('select ai.resume_batch(%L)', :'b')), 'PT409', 'or resumed');
select is(t.value_as('mtap_ann', format('select cancelled || '' '' || running from ai.cancel_batch(%L)', :'b')), '0 3', 'again: three are still being aborted');
select t.settle(:'w', l.generation_id, l.attempt, 'cancelled') from ai.leases l \g /dev/null
select is(t.counts(:'b'), 'cancelled 10 0 0 2 1 7 0', 'all have ended');
set local session authorization mtap_ann;
select results_eq(format('select done, eta, cost = expected_cost from ai.batch_progress(%L)', :'b'), $$ values (1::float8, interval '0', true) $$, 'it is done, and costs no more');
reset session authorization;
select is(t.counts(:'p'), 'paused 2 2 0 0 0 0 0', 'the other batch is as it was');

-- What an insert brought that was under way while the batch was cancelled: not claimed, and swept.
select id as straggler from ai.generations where batch_id = :'b' and status = 'cancelled' order by id limit 1 \gset
update ai.generations set status = 'queued', error = null, finished_at = null where id = :'straggler';
insert into ai.queue (lane_id, generation_id, tenant_id) select l.id, :'straggler', l.tenant_id from ai.lanes l where l.batch_id = :'b' and l.priority = 'normal';
select is_empty(format('select id from t.claim(%L)', :'w'), 'a straggler is not claimed');
select is(ai.sweep_cancelled_batches(), 1::bigint, 'it is swept');
select is(t.status(:'straggler'), 'cancelled', 'and has ended');
select is(ai.sweep_cancelled_batches(), 0::bigint, 'once');
select t.pass('3 days');
select ai.sweep_cancelled_batches() \g /dev/null
select is((select count(*) from ai.parked_lanes p join ai.lanes l on l.id = p.lane_id where l.batch_id = :'b'), 0::bigint, 'after days its lanes are forgotten');
select is((select count(*) from ai.parked_lanes p join ai.lanes l on l.id = p.lane_id where l.batch_id = :'p'), 4::bigint, 'those of a paused batch are not');
select is(t.value_as('mtap_ann', format('select cancelled from ai.cancel_batch(%L)', :'p')), '2', 'a paused batch is cancelled');

-- What is asked first for its rows (here the vector for the semantic cache) is stopped with it, and is none of its rows
insert into ai.cache_policies (tenant_id, semantic, vector_model) values (t.alpha(), true, 'mtap/embed');
-- The queued and leased that were made for rows of the batch.
create function t.made_for(p_batch uuid) returns text language sql stable as $$
  select string_agg(t.place(c.id), ' ' order by c.id) from ai.generations g join ai.generations c on c.parent_id = g.id where g.batch_id = p_batch
$$;
select t.batch(p_paused => true) as v \gset
select is(t.fill(:'v', 2), '2', 'rows that wait for their vectors');
select is_empty(format('select id from t.claim(%L)', :'w'), 'of a paused batch no vector is asked for');
select is(t.counts(:'v'), 'paused 2 2 0 0 0 0 0', 'nor is it a row of it');
insert into ai.limits (tenant_id, metric, period, amount, on_limit) values (t.alpha(), 'requests', 'month', 1000, 'wait');
select t.value_as('mtap_ann', format('select ai.resume_batch(%L)', :'v')) \g /dev/null
select is_empty(format('select id from t.claim(%L)', :'w'), 'resumed, they are taken to the lane of the limit');
select is((select count(*) from t.claim(:'w', 1)), 1::bigint, 'from which one is asked for');
select is(t.value_as('mtap_ann', format('select ai.pause_batch(%L)', :'v')), '', 'paused again');
select is_empty(format('select id from t.claim(%L)', :'w'), 'the other is not');
select is(t.made_for(:'v'), 'lease queue', 'it waits');
select is(t.value_as('mtap_ann', format('select cancelled || '' '' || running from ai.cancel_batch(%L)', :'v')), '2 0', 'both rows are cancelled');
select is((select count(*) from ai.worker_cancellations(:'w')), 1::bigint, 'the vector that is being made is aborted');
select t.settle(:'w', l.generation_id, l.attempt, 'cancelled') from ai.leases l \g /dev/null
select is(t.made_for(:'v'), null, 'and nothing is left');
select is((select count(*) from ai.waiting), 0::bigint, 'nothing waits');
delete from ai.limits where tenant_id = t.alpha();
-- Two that were under way: one has its vector still to be made, of the other nobody knows what became of it
select t.batch() as v \gset
select t.fill(:'v', 2) \g /dev/null
delete from ai.queue q using ai.generations g where g.id = (select query_id from ai.generations where batch_id = :'v' order by id limit 1) and q.generation_id = g.id;
update ai.batches set cancelled_at = ai.now() where id = :'v';
select is_empty(format('select id from t.claim(%L)', :'w'), 'of a cancelled batch no vector is asked for either');
select is(ai.sweep_cancelled_batches(), 2::bigint, 'rows that wait for theirs are swept');
select is(t.counts(:'v'), 'cancelled 2 0 0 0 0 2 0', 'and have ended');
select is(ai.sweep_cancelled_batches(), 0::bigint, 'once');
delete from ai.cache_policies where tenant_id = t.alpha();

-- Many: nobody is notified of each, all end.
select t.batch() as m \gset
select is(t.fill(:'m', 1001), '1001', 'more than a thousand');
select is(t.value_as('mtap_ann', format('select cancelled from ai.cancel_batch(%L)', :'m')), '1001', 'are cancelled at once');
select is(t.counts(:'m'), 'cancelled 1001 0 0 0 0 1001 0', 'all of them');

-- Time goes on while a batch is paused: upkeep ends what is late in it
create function t.fill_until(p_batch uuid, p_count integer, p_deadline_ms integer) returns bigint language sql as $$
  with i as (insert into ai.generations (tenant_id, user_id, prompt, model, batch_id, run_after, deadline_ms)
             select t.alpha(), 'ann', 'x', 'mtap/one', p_batch, ai.now(), p_deadline_ms from generate_series(1, p_count) n returning 1) select count(*) from i
$$;
create function t.end_overdue() returns integer language sql as $$ select ai.end_queued_overdue(ai.now()) $$;
select t.batch(p_paused => true) as d, t.batch() as e \gset
select t.fill_until(:'d', 2, 86400000), t.fill_until(:'d', 3, 1000) \g /dev/null
select is(t.end_overdue(), 0, 'nothing is late');
select t.pass('2 s') \g /dev/null
select is(t.end_overdue(), 3, 'what is late in a paused batch ends');
select is(t.counts(:'d'), 'paused 5 2 0 0 3 0 0', 'and nothing else of it');
select is((select array_agg(distinct g.error ->> 'code') from ai.generations g where g.batch_id = :'d' and g.status = 'failed'), array['PT504'], 'as a claim would have ended it');
select t.value_as('mtap_ann', format('select ai.pause_batch(%L)', :'e')) \g /dev/null
delete from ai.parked_lanes p using ai.lanes l where l.id = p.lane_id and l.batch_id = :'e';
insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.batch_id = :'e';
select t.fill_until(:'e', 1000, 86400000), t.fill_until(:'e', 1, 1000) \g /dev/null
select t.pass('2 s') \g /dev/null
select is(t.end_overdue(), 1, 'a lane of a paused batch that an insert has listed is looked at as a whole, too');
select ai.park_batch(:'e') \g /dev/null
-- a bounded number a call; the next goes on from there
select is(t.fill_until(:'d', 1001, 1000), 1001::bigint, 'more than a thousand');
select t.pass('2 s') \g /dev/null
select is(t.end_overdue(), 1000, 'a thousand');
select is(t.end_overdue(), 1, 'and the rest');
select is(t.end_overdue(), 0, 'no more');
select is(t.fill_until(:'d', 10000, 86400000) + t.fill_until(:'e', 1, 1000), 10001::bigint, 'one behind ten thousand');
select t.pass('2 s') \g /dev/null
select is(t.end_overdue(), 0, 'is not read by the first call');
select isnt(current_setting('ai.overdue_after'), '', 'which remembers its place');
select is(t.end_overdue(), 1, 'but by the second');
select is(current_setting('ai.overdue_after'), '', 'that comes to the end');
select t.fill_until(:'d', 1, 1000) \g /dev/null
select t.pass('2 s') \g /dev/null
select set_config('ai.overdue_after', 'no place', true) \g /dev/null
select is(t.end_overdue(), 0, 'who has no place begins at the first lane');
select is(t.end_overdue(), 1, 'and goes on from there');
select set_config('ai.overdue_after', '9999999999999999999:' || ai.uuid_v7(), true) \g /dev/null
select is(t.end_overdue(), 0, 'also with a lane that is no bigint');
select set_config('ai.overdue_after', '999999999999999999:' || ai.uuid_v7(), true) \g /dev/null
select is(t.end_overdue(), 0, 'behind the last lane there is nothing');
select is(current_setting('ai.overdue_after'), '', 'and it begins at the first again');
select t.value_as('mtap_ann', format('select ai.cancel_batch(%L)', b)) from unnest(array[:'d', :'e']::uuid[]) b \g /dev/null
select is(t.end_overdue(), 0, 'of a cancelled one nothing is left');

-- Estimates: 4 bytes a token; mtap/one costs 3 and 15 a million.
create function t.estimate(p_call text, p_role text default 'mtap_ann') returns text language sql as $$
  select t.value_as(p_role, format('select concat_ws('' '', input_tokens, output_tokens, cost, cost_max, target) from ai.estimate(%s)', p_call))
$$;
select is(t.estimate($$'12345678', model => 'mtap/one', params => '{"max_tokens": 100}'$$), '7 10 0.000171 0.002162 mtap/one', 'what the last calls answered, but for what the params add');
select is(t.estimate($$'12345678', model => 'mtap/two', params => '{"max_tokens": 100}'$$), '7 100 0.001521 0.002162 mtap/two', 'a model that never answered: as much as it may');
select is(t.estimate($$'1234', model => 'mtap/two'$$), '1 4096 0.061443 0.081944 mtap/two', 'or as the settings say');
select is(t.estimate($$'12345', model => 'mtap/embed', kind => 'embedding'$$), '2 0 0.00000004 0.0000001 mtap/embed', 'an embedding answers nothing');
select is(t.estimate($$'1234', profile => 'mtap-route', params => '{"max_tokens": 5}'$$), '6 5 0.000093 0.000226 mtap/one', 'a profile: its first target, at most its dearest');
select is(t.estimate($$'1234', model => 'mtap/unpriced'$$), '1 4096 mtap/unpriced', 'without a price: no cost');
select is(t.estimate($$messages => '[{"role": "user", "content": "Hi"}]', model => 'mtap/one'$$), '9 10 0.000177 0.08213 mtap/one', 'messages count as their text');
select is(t.estimate($$'', model => 'mtap/one'$$), '0 10 0.00015 0.08192 mtap/one', 'an empty text');
select is(t.estimate(c.call), c.wanted, c.call)
  from (values ($$null$$, 'PT400'), ($$'x', messages => '[]'$$, 'PT400'), ($$'x', model => 'a', profile => 'b'$$, 'PT400'), ($$'x', kind => 'x'$$, 'PT400'),
               ($$'x', kind => null$$, 'PT400'), ($$'x', model => 'no/such'$$, 'PT404'), ($$'x', profile => 'no-such'$$, 'PT404'),
               ($$'x', model => 'mtap/embed'$$, 'PT404')) c (call, wanted);
select is(t.estimate($$'x', model => 'mtap/one'$$, r.role), r.wanted, format('%s estimates: %s', r.role, r.wanted))
  from (values ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_public', '42501'), ('mtap_bob', '1 4096 0.061443 0.081926 mtap/one')) r (role, wanted);
select is(t.value_as('mtap_ann', $$select trim_scale(sum((ai.estimate(repeat('1234', n), model => 'mtap/one')).cost)) from generate_series(1, 1000) n$$), '1.6515', 'over many rows');
set local session authorization mtap_ann;
set local ai.estimates = '1.000000 {"chat 0 mmtap/one": {"input": 0, "output": 0}}';
select is((select cost from ai.estimate('1234', model => 'mtap/one')), 0.000153, 'what the session claims to know is of another statement');
set local ai.estimates = '{';
select is((select cost from ai.estimate('1234', model => 'mtap/one')), 0.000153, 'nor is anything read that was not written here');
set local debug_parallel_query = on;
select is((select cost from ai.estimate('1234', model => 'mtap/one')), 0.000153, 'also where plans are parallel');
reset debug_parallel_query;
reset session authorization;

-- Before anything has ended the expectation is the estimate of what waits.
select t.batch() as e \gset
select t.fill(:'e', 2) \g /dev/null
select is(t.value_as('mtap_ann', format('select expected_cost from ai.batch_progress(%L)', :'e')), '0.000312', 'two of 5 bytes');
insert into ai.generations (tenant_id, user_id, prompt, model, batch_id) values (t.alpha(), 'ann', 'x', 'mtap/unpriced', :'e');
select is(t.value_as('mtap_ann', format('select expected_cost > 0 from ai.batch_progress(%L)', :'e')), 'true', 'what has no price does not spoil it');
select t.batch() as n \gset
insert into ai.generations (tenant_id, user_id, prompt, model, batch_id) values (t.alpha(), 'ann', 'x', 'mtap/unpriced', :'n');
select is(t.value_as('mtap_ann', format('select expected_cost from ai.batch_progress(%L)', :'n')), null, 'nothing but what has no price: unknown');

select * from finish();
rollback;
