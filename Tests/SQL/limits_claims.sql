-- Limits through the queue: inserted, claimed, settled, cancelled, rescued, as apps and workers do.
begin;
\ir setup/world.sql
\ir setup/limits.sql
select no_plan();
-- Five minutes into an hour: a window ends when this test lets time pass, and not because of when it runs.
select t.pass(date_trunc('hour', now()) + interval '65 minutes' - now()) \g /dev/null
select t.worker() as w \gset
-- run_after is by the clock that tests move.
create function t.ask_many(p_count integer) returns void language sql as $$
  insert into ai.generations (tenant_id, user_id, prompt, model, run_after, deadline_ms)
  select t.alpha(), 'ann', 'x', 'mtap/one', ai.now(), 86400000 from generate_series(1, p_count)
$$;
create function t.claimed(p_worker uuid, p_limit integer default 64) returns integer language sql as $$ select count(*)::integer from t.claim(p_worker, p_limit) $$;
-- Until nothing more is claimed: the first claim moves what lies in a lane without its limits.
create function t.claim_all(p_worker uuid) returns integer language plpgsql as $$
declare
  v_all integer := 0;
  v_now integer;
begin
  for i in 1 .. 5 loop
    v_now := t.claimed(p_worker);
    v_all := v_all + v_now;
  end loop;
  return v_all;
end
$$;
create function t.settle_run(p_worker uuid, p_outcome text default 'succeeded', p_more jsonb default '{}') returns bigint language sql as $$
  select count(*) from ai.worker_settle(p_worker, coalesce((select jsonb_agg(jsonb_build_object('id', l.generation_id, 'attempt', l.attempt, 'outcome', p_outcome, 'sent', true) || p_more)
                                                     from ai.leases l where l.worker_id = p_worker), '[]'))
$$;
create function t.statuses() returns text language sql as $$
  select string_agg(status || ' ' || n, ', ' order by status) from (select status, count(*) as n from ai.generations group by 1) g
$$;
-- What is reserved is what the leases say, counter by counter, for whatever is given back at the end.
create view t.leaks as
  select c.id, l.metric, b.balance, r.amount
    from ai.counters c
    join ai.limits l on l.id = c.limit_id and l.metric = 'concurrency'
    join lateral (select e.balance from ai.counter_entries e where e.counter_id = c.id order by e.window_start desc, e.seq desc limit 1) b on true
    left join lateral (select sum(u.amount) as amount from ai.leases x cross join unnest(x.counters, x.amounts) u (counter_id, amount) where u.counter_id = c.id) r on true
   where b.balance + coalesce((select sum(u.delta) from ai.unsettled u where u.counter_id = c.id), 0) <> coalesce(r.amount, 0);

-- An insert never fails for a limit; what exceeds it ends as rejected, with the reason
select t.limit_id('{"tenant_id": null, "per": "member", "metric": "requests", "period": "hour", "amount": 2, "on_limit": "reject"}') as l \gset
select lives_ok($$ select t.ask_many(5) $$, 'five are inserted');
select is(t.claim_all(:'w'), 2, 'two are claimed'), is(t.statuses(), 'rejected 3, running 2', 'three are rejected');
select is((select count(*) from ai.generations where error ->> 'code' = 'PT429' and (error ->> 'retry_after')::integer between 1 and 3600 and finished_at is not null), 3::bigint, 'with PT429 and when to come again');
select is((select count(*) from ai.llm_calls), 0::bigint, 'no provider was called for them');
select t.ask(p_user => 'abe') \g /dev/null
select is(t.claim_all(:'w'), 1, 'another member is not concerned');
select is(t.settle_run(:'w'), 3::bigint, 'settled'), is(t.used(:l), 3::numeric, 'three requests');
-- retries count once
select t.pass('1 hour');
select t.ask() as g \gset
select is(t.claim_all(:'w'), 1, 'claimed'), is(t.settle_run(:'w', 'failed', '{"signal": "connect"}'), 1::bigint, 'failed');
select t.pass('1 minute');
select is(t.claimed(:'w'), 1, 'retried'), is(t.used(:l), 1::numeric, 'one request'), is(t.settle_run(:'w'), 1::bigint, 'settled'), is(t.used(:l), 1::numeric, 'still one');
delete from ai.generations;
select t.clear();

-- Wait: nothing is lost, nothing is looked at until there is room, and the worker knows when
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 2)) as l \gset
select t.ask_many(5);
select is(t.claim_all(:'w'), 2, 'two of five'), is(t.statuses(), 'queued 3, running 2', 'three wait'), is(t.lane_place('ann'), 'parked', 'parked');
select ok(wait_ms between 1 and 60000, 'when to look again') from ai.worker_claim(:'w', 10, null) where generation_id is null;
select is(t.settle_run(:'w'), 2::bigint, 'settled'), is(t.claimed(:'w'), 0, 'no room before the hour is over');
select t.pass('1 hour');
select is(t.claim_all(:'w'), 2, 'two more'), is(t.settle_run(:'w'), 2::bigint, 'settled');
select t.pass('1 hour');
select is(t.claim_all(:'w'), 1, 'the last'), is(t.settle_run(:'w'), 1::bigint, 'settled'), is(t.statuses(), 'succeeded 5', 'all are answered');
-- whoever waits is cancelled, or ends at its deadline when a claim takes it
select t.ask_many(2);
select t.ask('late', p_deadline_ms => 60000) as late, t.ask('cancelled') as cancelled \gset
select is(t.claim_all(:'w'), 1, 'one of four');
set local session authorization mtap_ann;
select is(ai.cancel(:'cancelled'), 'cancelled', 'what waits for room is cancelled');
reset session authorization;
select t.pass('61 seconds');
select is(t.claimed(:'w'), 0, 'a claim a minute later');
select is(t.status(:'late'), 'failed', 'ends it, if it comes to it');
select t.pass('1 day');
select is(t.claim_all(:'w'), 0, 'later than every deadline'), is((t.generation(:'late')).error ->> 'code', 'PT504', 'nothing changed that'), is(t.statuses(), 'cancelled 1, failed 2, running 1, succeeded 5', 'as has the head');
select is(t.settle_run(:'w'), 1::bigint, 'settled');
select (t.generation(:'late')).error as error \gset late_
delete from ai.generations;
select t.clear();

-- Upkeep ends what is late in a parked lane: behind all that a claim takes of it, and what came when it was parked
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'month', 'amount', 1)) as l \gset
select t.ask_many(41);
select t.ask('behind', p_deadline_ms => 50000) as behind \gset
select is(t.claim_all(:'w'), 1, 'one of 42');
select t.ask('came', p_deadline_ms => 1000) as came \gset
select is(ai.worker_maintain(:'w') -> 'queued_overdue', '0', 'nothing is late');
select t.pass('2 s');
select is(t.claimed(:'w'), 0, 'no claim comes to it');
select is(t.status(:'came'), 'queued', 'so it waits');
select is(ai.worker_maintain(:'w') -> 'queued_overdue', '1', 'upkeep does');
select is((t.generation(:'came')).error, :'late_error'::jsonb, 'and says what a claim would have said');
select is_empty(format('select from ai.queue where generation_id = %L', :'came'), 'it is off the queue'), is(t.lane_place('ann'), 'parked', 'its lane stays parked');
select t.pass('49 s');
select is(ai.worker_maintain(:'w') -> 'queued_overdue', '1', 'the one behind the others');
select is((t.generation(:'behind')).error ->> 'code', 'PT504', 'has ended, too'), is((select count(*) from ai.queue), 40::bigint, 'the others wait');
select is(ai.worker_maintain(:'w') -> 'queued_overdue', '0', 'once');
delete from ai.queue;
delete from ai.leases;
delete from ai.generations;
select t.clear();

-- A limit that is set while things wait in a lane without it concerns them
select t.ask_many(5);
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 2)) as l \gset
select is(t.claim_all(:'w'), 2, 'two at once, though they were queued before'), is_empty('select from t.leaks', 'no leak');
select t.ask_many(5);
select is(t.claim_all(:'w'), 0, 'no more');
update ai.limits set amount = 4 where id = :l;
set constraints all immediate;
select is(t.claim_all(:'w'), 2, 'raised to four');
set constraints all deferred;
select is(t.settle_run(:'w', 'failed', '{"signal": "http", "http_status": 400}'), 4::bigint, 'they fail'), is_empty('select from t.leaks', 'no leak'), is(t.claim_all(:'w'), 4, 'four more');
-- handed back unsent, rescued from a dead worker, cancelled while running
select is(t.settle_run(:'w', 'released', '{"sent": false}'), 4::bigint, 'handed back'), is_empty('select from t.leaks', 'no leak'), is(t.used(:l), 0::numeric, 'nothing runs'), is(t.claim_all(:'w'), 4, 'claimed again');
select ai.worker_stop(:'w') \g /dev/null
select t.worker('second') as w \gset
select is_empty('select from t.leaks', 'a worker that stopped leaves no leak');
select t.pass('1 hour');
delete from ai.queue where generation_id in (select id from ai.generations);
delete from ai.delayed;
delete from ai.generations;
select t.clear();
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'concurrency', 'amount', 1)) as l \gset
select t.ask('one') as one, t.ask('two') as two \gset
select is(t.claim_all(:'w'), 1, 'one');
set local session authorization mtap_ann;
select is(ai.cancel(:'one'), 'running', 'cancelled while it runs');
reset session authorization;
select is(t.settle(:'w', :'one', 1, 'cancelled'), 'ended', 'its worker says so'), is_empty('select from t.leaks', 'no leak'), is(t.claim_all(:'w'), 1, 'the other has room'), is(t.settle_run(:'w'), 1::bigint, 'settled');
delete from ai.generations;
select t.clear();

-- Money: the dearest is reserved, what it cost is booked, and the ledger is the sum of the calls, to the last digit
delete from ai.llm_calls;
update ai.settings set max_output_tokens = 1000;
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'month', 'amount', 0.05, 'on_limit', 'reject')) as l,
       t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'credit', 'amount', 100)) as c \gset
-- 1,000 tokens out at 20 each million are 0.02
select t.ask_many(4);
select is(t.claim_all(:'w'), 2, 'two times 0.02 and some'), is(t.statuses(), 'rejected 2, running 2', 'a third would exceed 0.05');
select is((select array_agg(distinct error ->> 'code') from ai.generations where status = 'rejected'), array['PT402'], 'with PT402');
select is((select array_agg(distinct (request #>> '{params,max_tokens}')::integer) from ai.worker_claim(:'w', 1, null) where generation_id is not null), null, 'nothing more');
select is(t.settle_run(:'w', 'succeeded', '{"output": "y", "usage": {"input": 7, "output": 3}}'), 2::bigint, 'settled');
select is(t.used(:l), (select sum(cost) from ai.llm_calls), 'used is what the calls cost'), is(t.used(:c), (select sum(cost) from ai.llm_calls), 'credit, too');
select is((select sum(delta) from ai.counter_entries e join ai.counters k on k.id = e.counter_id where k.limit_id = :l), (select sum(cost) from ai.llm_calls), 'and so is the ledger');
-- an overrun: the provider bills more than max_tokens
select t.ask() \g /dev/null
select is(t.claim_all(:'w'), 1, 'one'), is(t.settle_run(:'w', 'succeeded', '{"output": "y", "usage": {"input": 7, "output": 10000}}'), 1::bigint, 'ten times what was allowed');
select is(t.used(:l), (select sum(cost) from ai.llm_calls), 'is booked'), is(t.claim_all(:'w'), 0, 'and nothing more goes');
select t.ask() \g /dev/null
select is(t.claim_all(:'w'), 0, 'the budget is spent');
select is((select count(*) from ai.generations where status = 'rejected'), 3::bigint, 'rejected');
select is((select count(*) from ai.generations where cost > 0), 3::bigint, 'three cost something');
delete from ai.generations;
select t.clear();
-- What was reserved is what is sent, whatever the app says
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'tokens', 'period', 'month', 'amount', 1e9, 'on_limit', 'reject')) as l \gset
update ai.models set max_output_tokens = 400 where name = 'mtap/one';
create function t.sent(p_worker uuid, p_params jsonb) returns jsonb language plpgsql as $$
declare
  v_id   uuid;
  v_sent jsonb;
begin
  insert into ai.generations (tenant_id, user_id, prompt, model, params, run_after) values (t.alpha(), 'ann', 'x', 'mtap/one', p_params, ai.now()) returning id into v_id;
  while v_sent is null and exists (select from ai.queue q where q.generation_id = v_id) loop
    select c.request -> 'params' into v_sent from ai.worker_claim(p_worker, 64, null) c where c.generation_id = v_id;
  end loop;
  return v_sent || jsonb_build_object('reserved', (select l.amounts[1] - octet_length('x') - octet_length(p_params::text) from ai.leases l where l.generation_id = v_id));
end
$$;
select is(t.sent(:'w', params::jsonb), sent::jsonb, params)
  from (values ('{}', '{"max_tokens": 400, "reserved": 400}'), ('{"max_tokens": 50}', '{"max_tokens": 50, "reserved": 50}'), ('{"max_tokens": 400}', '{"max_tokens": 400, "reserved": 400}'),
               ('{"max_tokens": 401}', '{"max_tokens": 400, "reserved": 400}'), ('{"max_completion_tokens": 99999}', '{"max_completion_tokens": 400, "reserved": 400}'),
               ('{"max_tokens": null}', '{"max_tokens": 400, "reserved": 400}'), ('{"max_completion_tokens": null}', '{"max_completion_tokens": 400, "reserved": 400}'),
               ('{"max_completion_tokens": null, "max_tokens": 50}', '{"max_completion_tokens": 50, "reserved": 50}'),
               ('{"max_completion_tokens": 60, "max_tokens": 50}', '{"max_completion_tokens": 60, "reserved": 60}')) v (params, sent);
update ai.models set max_output_tokens = null where name = 'mtap/one';
select is(t.settle_run(:'w') > 0, true, 'settled');
delete from ai.generations;
select t.clear();

-- What content adds that lies elsewhere: an image so many tokens, what has no bound as much as the model reads
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'tokens', 'period', 'month', 'amount', 300000, 'on_limit', 'reject')) as l \gset
update ai.models set context_tokens = 200000, max_output_tokens = 1 where name = 'mtap/one';
update ai.models set context_tokens = null where name = 'mtap/two';
create function t.part(p_worker uuid, p_part text, p_model text default 'mtap/one') returns text language plpgsql as $$
declare
  v_id       uuid;
  v_messages jsonb := jsonb_build_array(jsonb_build_object('role', 'user', 'content', jsonb_build_array(jsonb_build_object('type', 'text', 'text', 'see https://x.test'), p_part::jsonb)));
  v_is       text;
begin
  insert into ai.generations (tenant_id, user_id, messages, model, run_after) values (t.alpha(), 'ann', v_messages, p_model, ai.now()) returning id into v_id;
  perform t.claim_all(p_worker);
  v_is := (select l.amounts[1] - octet_length(v_messages::text) - octet_length('{}') - 1 from ai.leases l where l.generation_id = v_id);
  perform t.settle_run(p_worker);
  return coalesce(v_is, (select g.status from ai.generations g where g.id = v_id));
end
$$;
select is(t.part(:'w', part), expected, part)
  from (values ('{"type": "text", "text": "https://x.test/y.pdf"}', '0'), ('{"type": "image_url", "image_url": {"url": "https://x.test/y.png"}}', '16384'),
               ('{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}', '0'), ('{"type": "input_image", "image_url": "HTTP://x.test/y.png"}', '16384'),
               ('{"type": "image", "source": {"type": "url", "url": "https://x.test/y.png"}}', '16384'),
               ('{"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}', '0')) v (part, expected);
select is(t.part(:'w', part)::integer between 199000 and 200000, true, part)
  from (values ('{"type": "file", "file": {"file_data": "https://x.test/y.pdf"}}'), ('{"type": "input_audio", "input_audio": {"data": "https://x.test/y.wav"}}'),
               ('{"type": "document", "source": {"type": "url", "url": "https://x.test/y.pdf"}}'), ('{"fileData": {"fileUri": "gs://x/y.pdf"}}'), ('{"type": "file", "file": {"file_id": "file-1"}}')) v (part);
select is(t.part(:'w', '{"type": "video_url", "video_url": {"url": "https://x.test/y.mp4"}}', 'mtap/two'), 'rejected', 'where nobody knows what the model reads, a hard limit refuses it');
update ai.models set context_tokens = null, max_output_tokens = null where name = 'mtap/one';
delete from ai.generations;
select t.clear();

-- Of a lane with limits little is taken at first; the header says to go on with the cursor
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'requests', 'period', 'hour', 'amount', 100)) as l \gset
select t.ask() \g /dev/null
select is(t.claim_all(:'w'), 1, 'the lane is made');
select t.ask_many(110);
create temp table part as select * from ai.worker_claim(:'w', 64, null);
select is((select count(*) from part where generation_id is not null), 32::bigint, 'a part'), is((select wait_ms from part where generation_id is null), 0, 'and the rest at once');
create temp table rest as select * from ai.worker_claim(:'w', 64, (select cursor from part where generation_id is null));
select is((select count(*) from rest where generation_id is not null), 64::bigint, 'with the cursor, twice as many'), is((select wait_ms from rest where generation_id is null), 0, 'and so on');
create temp table last as select * from ai.worker_claim(:'w', 64, (select cursor from rest where generation_id is null));
select is((select count(*) from last where generation_id is not null), 3::bigint, 'to the limit'), is((select wait_ms from last where generation_id is null), 1, 'what did not fit is looked for everywhere');
select is(t.settle_run(:'w'), 100::bigint, 'settled');
delete from ai.generations;
select t.clear();

-- A claim looks once for the counters of each member, not once for each pair of what it took
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'per', 'member', 'metric', 'requests', 'period', 'hour', 'amount', 100)) \g /dev/null
insert into ai.members (tenant_id, user_id, role) select t.alpha(), 'crowd ' || n, 'user' from generate_series(1, 12) n;
create function t.ask_crowd() returns void language sql as $$
  insert into ai.generations (tenant_id, user_id, prompt, model, run_after)
  select t.alpha(), 'crowd ' || n, 'x', 'mtap/one', ai.now() from generate_series(1, 12) n
$$;
create function t.counter_looks() returns bigint language sql as $$
  select coalesce(sum(f.calls), 0)::bigint from pg_stat_xact_user_functions f where f.schemaname = 'ai' and f.funcname = 'generation_counters'
$$;
select t.ask_crowd();
select is(t.claim_all(:'w'), 12, 'their lanes are made'), is(t.settle_run(:'w'), 12::bigint, 'settled');
select t.ask_crowd();
set local track_functions = 'all';
select t.counter_looks() as before \gset
select is(t.claimed(:'w'), 12, 'a claim of twelve members'), is(t.counter_looks() - :before, 0::bigint, 'does not look where their ways are known');
select is(t.settle_run(:'w'), 12::bigint, 'settled');
insert into ai.policy_changes default values;
select t.ask_crowd();
select t.counter_looks() as before \gset
select is(t.claimed(:'w'), 12, 'a claim of them after a change'), is(t.counter_looks() - :before, 12::bigint, 'looks twelve times');
set local track_functions = 'none';

select * from finish();
rollback;
