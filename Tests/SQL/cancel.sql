-- Cancelling in every state.
begin;
\ir setup/world.sql
select no_plan();
select t.worker('one') as w, t.worker('two') as other \gset
create function t.cancel(p_id uuid, p_role text default 'mtap_ann') returns text language plpgsql as $$
declare
  v_as text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    v_as := ai.cancel(p_id);
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;

-- Queued
select t.ask(p_priority => 'low') as g \gset
select is(t.cancel(:'g'), 'cancelled', 'queued: it ends at once');
select results_eq(format('select status, error ->> ''class'', finished_at is not null, last_seq, attempts::int, latency_ms >= 0, cost from ai.generations where id = %L', :'g'),
  $$ values ('cancelled', 'cancelled', true, 1, 0, true, null::numeric) $$, 'and says so');
select is(t.place(:'g'), null, 'it is in no queue');
select is((select count(*) from ai.llm_calls where generation_id = :'g'), 0::bigint, 'and on no books');
select is(t.cancel(:'g'), 'cancelled', 'again: the end that it has');
select is((t.generation(:'g')).last_seq, 1, 'with no second event');

-- In another lane than limits say by now
create function t.misplace(p_id uuid) returns void language sql as $$
  update ai.queue set lane_id = (select id from ai.lanes where tenant_id = t.alpha() and priority = 'low' and counters = '{}' and batch_id is null) where generation_id = p_id
$$;
select t.ask() as g \gset
select t.misplace(:'g') \g /dev/null
select is(t.cancel(:'g'), 'cancelled', 'queued elsewhere: it ends at once');
select is(t.place(:'g'), null, 'and is in no queue');

-- Scheduled, and waiting for a retry
select t.ask(p_run_after => ai.now() + interval '1 hour') as g \gset
select is(t.cancel(:'g'), 'cancelled', 'scheduled: it ends at once');
select is(t.place(:'g'), null, 'and waits no more');
select is((t.generation(:'g')).latency_ms, 0, 'no latency is negative');
select t.ask() as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'g', 1, 'failed', '{"signal": "http", "http_status": 503}') \g /dev/null
select is(t.place(:'g'), 'delayed', 'a retry waits');
select is(t.cancel(:'g'), 'cancelled', 'waiting for a retry: it ends at once');
select is((t.generation(:'g')).last_seq, 2, 'numbered after the retry');

-- Running
select t.ask(p_stream => true) as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select is_empty(format('select * from ai.worker_cancellations(%L)', :'w'), 'nothing is to be aborted');
select is(t.cancel(:'g'), 'running', 'running: its worker is told');
select is(t.cancel(:'g', 'mtap_dev'), 'running', 'twice, by a developer');
select is(t.status(:'g'), 'running', 'it runs until the worker says more');
select results_eq(format('select * from ai.worker_cancellations(%L)', :'w'), format('values (%L::uuid, 1)', :'g'), 'the worker is told which, once');
select is_empty(format('select * from ai.worker_cancellations(%L)', :'other'), 'another worker is not');
select is(t.settle(:'w', :'g', 1, 'cancelled', '{"output": "Bec", "tail": "Bec", "usage": {"input": 10, "output": 1}}'), 'ended', 'the worker has aborted it');
select results_eq(format('select status, output, cost from ai.generations where id = %L', :'g'), $$ values ('cancelled', 'Bec', 0.000045) $$, 'it ends with what had arrived, which is billed');
select is((t.call(:'g', 1)).status, 'cancelled', 'and is on the books as cancelled');
select is_empty('select from ai.cancellations', 'nothing is left of the request');
select is(t.cancel(:'g'), 'cancelled', 'again: the end that it has');

select t.ask() as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select is(t.cancel(:'g'), 'running', 'running');
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"output": "Because."}'), 'ended', 'but the answer was there first');
select is(t.status(:'g'), 'succeeded', 'it succeeded');
select is(t.cancel(:'g'), 'succeeded', 'and cancelling says so');
select is_empty('select from ai.cancellations', 'nothing is left of the request');

select t.ask(p_profile => 'mtap-route') as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select is(t.cancel(:'g'), 'running', 'running');
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "http", "http_status": 500}'), 'ended', 'a failure that would be retried');
select is(t.status(:'g'), 'cancelled', 'is not: it was to be cancelled');
select is((t.generation(:'g')).error, '{"class": "cancelled", "message": "cancelled while it ran"}', 'and says so');
select results_eq(format('select status, error_class from ai.llm_calls where generation_id = %L', :'g'), $$ values ('failed', 'transient') $$, 'the books say what happened to the call');
select t.ask() as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.cancel(:'g') \g /dev/null
select is(t.settle(:'w', :'g', 1, 'released', '{"sent": false}'), 'ended', 'what is handed back');
select is(t.status(:'g'), 'cancelled', 'is not queued again');
select is((t.generation(:'g')).error, '{"class": "cancelled", "message": "cancelled before it was sent"}', 'and says so');

-- The request came while the attempt was going back to the queue: the settle did not see it
select t.ask() as queued, t.ask() as delayed, t.ask() as ended, t.ask() as running \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'queued', 1, 'released', '{"sent": false}'), t.settle(:'w', :'delayed', 1, 'failed', '{"signal": "http", "http_status": 503}'), t.settle(:'w', :'ended', 1, 'succeeded', '{"output": "x"}') \g /dev/null
insert into ai.cancellations (generation_id, tenant_id) select unnest(array[:'queued', :'delayed', :'ended', :'running']::uuid[]), t.alpha();
insert into ai.cancellations (generation_id, tenant_id) values (:'delayed', t.alpha());
select is((select count(*) from t.claim(:'w', 64, '{}')), 0::bigint, 'a claim with a cursor takes it off the queue');
select is(t.status(:'queued'), 'cancelled', 'and ends it');
select is((select count(*) from t.claim(:'w')), 0::bigint, 'a claim without one looks at what waits, too');
select is(t.status(:'delayed'), 'cancelled', 'and ends it');
select is(t.place(:'delayed'), null, 'wherever it was');
select is(t.status(:'ended'), 'succeeded', 'what has ended stays as it is');
select is(t.status(:'running'), 'running', 'what runs runs on');
select results_eq('select generation_id from ai.cancellations', array[:'running'::uuid], 'only the request for what runs is kept');
select t.settle(:'w', :'running', 1, 'cancelled') \g /dev/null

-- A worker that died is not waited for
select t.ask() as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select is(t.cancel(:'g'), 'running', 'running');
select t.pass('16 s');
-- It was silent itself, so all have until the next time.
select ai.worker_maintain(:'other') \g /dev/null
select t.pass('2 s');
select ai.worker_maintain(:'other') \g /dev/null
select is(t.status(:'g'), 'cancelled', 'the rescue ends it');
select is((t.generation(:'g')).error ->> 'class', 'cancelled', 'says why');
select results_eq(format('select status, error_class from ai.llm_calls where generation_id = %L', :'g'), $$ values ('abandoned', 'abandoned') $$, 'and books the call as abandoned');

-- Rejected, failed, and what is in no queue at all
select t.worker('three') as w \gset
select t.ask(p_user => 'abe') as g \gset
update ai.members set enabled = false where user_id = 'abe';
select count(*) from t.claim(:'w') \g /dev/null
select is(t.cancel(:'g', 'mtap_dev'), 'rejected', 'rejected: that is its end');
select t.ask() as g \gset
delete from ai.queue where generation_id = :'g';
select is(t.cancel(:'g'), 'cancelled', 'an orphan can be cancelled');
select is(t.status(:'g'), 'cancelled', 'and is');

-- Whose
select t.ask() as g \gset
select is(t.cancel(:'g', role), expected, format('%s cancels what is ann''s: %s', role, expected))
  from (values ('mtap_bob', 'PT404'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_adm', 'cancelled')) v (role, expected);
select is(t.cancel(gen_random_uuid()), 'PT404', 'what is not there');
select is(t.cancel(null), 'PT404', 'nothing');

select * from finish();
rollback;
