-- Rescue, partitions, orphans, lanes: what keeps the promise that nothing is lost.
begin;
\ir setup/world.sql
select no_plan();
create function t.events(p_id uuid) returns text language sql stable as $$
  select string_agg(seq || ':' || type || case when data = '' then '' else '=' || data end, ' ' order by seq) from ai.stream_events where generation_id = p_id
$$;
-- All ticks, cheap and dear.
create function t.maintain(p_worker uuid) returns jsonb language sql as $$
  update ai.maintenance set partitions_at = '-infinity', orphans_at = '-infinity';
  select ai.worker_maintain(p_worker)
$$;

-- Heartbeat and death
select t.worker('dies') as dead, t.worker('lives') as live \gset
select is(ai.worker_heartbeat(:'dead'), true, 'a worker lives');
select is(ai.worker_heartbeat(gen_random_uuid()), false, 'an unknown one does not');
select is(ai.worker_heartbeat(null), false, 'nor does none');
select t.ask('0123456789', p_stream => true) as shown, t.ask('0123456789') as plain, t.ask('0123456789', p_profile => 'mtap-route') as routed \gset
select count(*) from t.claim(:'dead') \g /dev/null
select count(*) from ai.worker_publish(:'dead', jsonb_build_array(jsonb_build_object('id', :'shown', 'attempt', 1, 'part', 1, 'text', 'Becau'))) \g /dev/null
select count(*) from ai.worker_publish(:'dead', jsonb_build_array(jsonb_build_object('id', :'shown', 'attempt', 1, 'part', 2, 'text', 'se'))) \g /dev/null
select t.pass('14 s');
select is(ai.worker_heartbeat(:'live'), true, 'one worker goes on');
select is((ai.worker_maintain(:'live') ->> 'rescued')::int, 0, 'a silence within the lease is none');
select t.pass('2 s');
select is((ai.worker_maintain(:'live') ->> 'rescued')::int, 3, 'after its lease a silent worker is dead, and what it held is rescued');
select results_eq(format('select ending, ended_at is not null from ai.workers where id = %L', :'dead'), $$ values ('dead', true) $$, 'it is noted');
select is(ai.worker_heartbeat(:'dead'), false, 'should it come back, it is told');
select is(ai.worker_heartbeat(:'live'), true, 'the other lives');
select throws_ok(format('select * from ai.worker_claim(%L, 1, null)', :'dead'), 'PT404', null, 'the dead claim nothing');
select is(t.settle(:'dead', :'plain', 1, 'succeeded', '{"output": "late"}'), 'stale', 'and settle nothing');
select is((select count(*) from ai.worker_publish(:'dead', jsonb_build_array(jsonb_build_object('id', :'shown', 'attempt', 1, 'part', 3, 'text', 'late')))), 1::bigint, 'and publish nothing');
select results_eq(format($$ select attempt::int, status, error_class, input_tokens, output_tokens, estimated, cost, price_id is not null from ai.llm_calls where generation_id = %L $$, :'shown'),
  $$ values (1, 'abandoned', 'abandoned', 3, 2, true, 0.000039, true) $$, 'the call is on the books: twelve bytes in, seven out, an estimate');
select results_eq(format($$ select status, output_tokens, estimated from ai.llm_calls where generation_id = %L $$, :'plain'), $$ values ('abandoned', 0, true) $$, 'of what did not stream the input is known');
select is(t.events(:'shown'), '1:running 2:delta=Becau 3:delta=se 4:reset=abandoned', 'who saw text is told to forget it');
select is(t.events(:'plain'), '1:retry=abandoned', 'who saw none is told of the retry');
select is(t.status(:'shown') || t.place(:'shown'), 'queueddelayed', 'it waits for its next attempt');
select is((t.generation(:'shown')).cost, 0.000039, 'the estimate counts');
select is((ai.worker_maintain(:'live') ->> 'rescued')::int, 0, 'nothing is rescued twice');
select t.pass('2 s');
select ai.worker_heartbeat(:'live') \g /dev/null
select set_eq(format('select id, attempt from t.claim(%L)', :'live'), format('values (%L::uuid, 2), (%L, 2), (%L, 2)', :'shown', :'plain', :'routed'), 'all of it is claimed again');
select is(t.settle(:'dead', :'shown', 2, 'succeeded', '{"output": "x"}'), 'stale', 'the attempt of another is nothing of the dead one''s');
select is(t.settle(:'live', :'shown', 2, 'succeeded', '{"output": "x", "usage": {"input": 3, "output": 1}}'), 'ended', 'the second attempt');
select is((t.generation(:'shown')).cost, (select sum(cost) from ai.llm_calls where generation_id = :'shown'), 'its cost is that of both');

-- A generation whose workers die again and again fails in the end
create function t.die_until_the_end(p_id uuid, p_worker uuid) returns integer language plpgsql as $$
declare
  v_worker uuid := p_worker;
  v_times  integer := 0;
begin
  loop
    perform t.pass('16 s');
    perform ai.worker_maintain(t.worker('watches'));
    v_times := v_times + 1;
    exit when t.status(p_id) = 'failed' or v_times > 20;
    perform t.pass('31 s');
    v_worker := t.worker('mayfly');
    perform t.claim(v_worker);
  end loop;
  return v_times;
end
$$;
select is(t.die_until_the_end(:'plain', :'live'), 4, 'five attempts (one was made before), five dead workers');
select is((t.generation(:'plain')).error ->> 'class', 'abandoned', 'and why');
select is((select count(*) from ai.llm_calls where generation_id = :'plain' and status = 'abandoned'), 5::bigint, 'each on the books');

-- The last attempt dies half-way: what subscribers saw is kept
update ai.settings set max_attempts = 1;
select t.worker('half-way') as dead \gset
select t.ask(p_stream => true) as g \gset
select count(*) from t.claim(:'dead') \g /dev/null
select count(*) from ai.worker_publish(:'dead', jsonb_build_array(jsonb_build_object('id', :'g', 'attempt', 1, 'part', 1, 'text', 'Becau'))) \g /dev/null
select t.pass('16 s');
select ai.worker_heartbeat(:'live') \g /dev/null
select ai.worker_maintain(:'live') \g /dev/null
select results_eq(format('select status, output, error ->> ''class'' from ai.generations where id = %L', :'g'), $$ values ('failed', 'Becau', 'abandoned') $$, 'it failed with what had arrived');
select is(t.events(:'g'), '1:running 2:delta=Becau', 'and nobody is told to forget it');
update ai.settings set max_attempts = 5;

-- The database was away from everybody, for longer than a lease: who comes back first declares nobody dead before they had the time to say that they live
select t.worker('comes back first') as first, t.worker('comes back, too') as second, t.worker('does not') as third \gset
select t.ask() as held \gset
select count(*) from t.claim(:'first') \g /dev/null
select t.ask() \g /dev/null
select count(*) from t.claim(:'second') \g /dev/null
select t.ask() \g /dev/null
select count(*) from t.claim(:'third') \g /dev/null
select t.pass('1 minute');
select is((ai.worker_maintain(:'first') ->> 'rescued')::int, 0, 'the first one rescues nothing yet');
select is(ai.worker_heartbeat(:'first'), true, 'it is alive itself, because it asked');
select is(ai.worker_heartbeat(:'second'), true, 'and so is who comes after it');
select is((ai.worker_maintain(:'first') ->> 'rescued')::int, 1, 'who still is silent then is dead');
select results_eq(format('select name, ending from ai.workers where id in (%L, %L, %L) order by name', :'first', :'second', :'third'),
  $$ values ('comes back first', null), ('comes back, too', null), ('does not', 'dead') $$, 'and nobody else');
select is(t.settle(:'first', :'held', 1, 'succeeded', '{"output": "kept", "usage": {"input": 3, "output": 1}}'), 'ended', 'an answer that was held meanwhile is not asked for again');
select is(ai.worker_stop(:'first') + ai.worker_stop(:'second'), 1, 'the rest goes back');
delete from ai.delayed; delete from ai.queue;

-- A graceful stop
select t.worker('stops') as w, t.worker('stays') as stays \gset
select t.ask('0123456789') as g, t.ask('0123456789') as g2 \gset
select count(*) from t.claim(:'w', 64) \g /dev/null
select t.ask('0123456789') as others \gset
select count(*) from t.claim(:'stays', 64) \g /dev/null
select is(ai.worker_stop(:'w'), 2, 'a worker that stops gives back what it holds, and counts only that');
select is(ai.worker_stop(:'w'), 0, 'once');
select is(ai.worker_stop(gen_random_uuid()), 0, 'one that is not there holds nothing');
select is(ai.worker_stop(null), 0, 'nor does none');
select is(t.place(:'g'), 'delayed', 'it waits for another worker');
select is(t.place(:'others'), 'lease', 'what others hold they hold');
select results_eq(format('select ending from ai.workers where id = %L', :'w'), array['stopped'], 'it is noted');
select is(ai.worker_heartbeat(:'w'), false, 'a stopped worker is not alive');
insert into ai.generations (tenant_id, user_id, prompt, model) select t.alpha(), 'ann', 'x', 'mtap/one' from generate_series(1, 2500);
select count(*) from t.claim(:'stays', 10000) \g /dev/null
select is(ai.worker_stop(:'stays') >= 2500, true, 'thousands at once');
delete from ai.delayed; delete from ai.queue;

-- A rescue after a month of nobody does not choke
select t.worker('sleeper') as w \gset
select t.ask() as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.pass('60 days');
select t.worker('of today') as w \gset
select lives_ok(format('select ai.worker_maintain(%L)', :'w'), 'a database that slept for two months');
select is(t.status(:'g'), 'failed', 'its deadline is over');
select is((t.generation(:'g')).latency_ms, 2147483647, 'for longer than an integer can say');

-- One at a time: see Tests/Races. Partitions
select t.worker('keeper') as w \gset
create function t.parts(p_table text) returns text[] language sql stable as $$
  select array_agg(inhrelid::regclass::text order by 1) from pg_inherits where inhparent = format('ai.%I', p_table)::regclass
$$;
select ai.make_partitions(now()) \g /dev/null
select is(ai.make_partitions(now()), 0, 'what is there is not made again');
select is(ai.make_partitions('2031-05-15 12:00+00'), 12, 'three of each table: this one and two ahead');
select ok(t.parts('generations') @> array['ai.generations_p203105', 'ai.generations_p203106', 'ai.generations_p203107'], 'months of generations');
select ok(t.parts('llm_calls') @> array['ai.llm_calls_p203105', 'ai.llm_calls_p203106', 'ai.llm_calls_p203107'], 'months of calls');
select ok(t.parts('stream_events') @> array['ai.stream_events_p20310515', 'ai.stream_events_p20310516', 'ai.stream_events_p20310517'], 'days of events');
select ok(t.parts('sealed_calls') @> array['ai.sealed_calls_p20310515', 'ai.sealed_calls_p20310516', 'ai.sealed_calls_p20310517'], 'days of sealed calls');
select is_empty($$ select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where inhparent in ('ai.generations'::regclass, 'ai.llm_calls'::regclass, 'ai.stream_events'::regclass, 'ai.sealed_calls'::regclass) and not c.relrowsecurity $$,
                'each has row-level security');
select is_empty($$ select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where inhparent = 'ai.generations'::regclass and not array['fillfactor=66', 'autovacuum_vacuum_scale_factor=0.1'] <@ coalesce(c.reloptions, '{}') $$,
                'each of generations has room for HOT updates, and is vacuumed before its garbage is a fifth of it');
select is_empty($$ select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where not exists (select from pg_index x where x.indrelid = c.oid and x.indisprimary)
                    and inhparent in ('ai.generations'::regclass, 'ai.llm_calls'::regclass, 'ai.stream_events'::regclass, 'ai.sealed_calls'::regclass) $$, 'each has its primary key');
create function t.row_of(p_at timestamptz) returns text language plpgsql as $$
declare
  v_id uuid := (left(ai.uuid_floor(p_at)::text, 24) || right(gen_random_uuid()::text, 12))::uuid;
begin
  insert into ai.generations (tenant_id, id, user_id, prompt, status, created_at) values (t.alpha(), v_id, 'ann', 'of ' || p_at, 'succeeded', p_at);
  insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, kind, status) values (t.alpha(), v_id, 1, p_at, 'ann', 'p', 'm', 'chat', 'succeeded');
  insert into ai.stream_events (tenant_id, generation_id, seq, attempt, type, data) values (t.alpha(), v_id, 1, 1, 'running', '');
  return (select tableoid::regclass from ai.generations where id = v_id) || ' ' || (select tableoid::regclass from ai.llm_calls where generation_id = v_id)
         || ' ' || (select tableoid::regclass from ai.stream_events where generation_id = v_id);
end
$$;
select is(t.row_of(at::timestamptz), places, format('what is of %s lies in %s', at, places))
  from (values ('2031-05-31 23:59:59.999+00', 'ai.generations_p203105 ai.llm_calls_p203105 ai.stream_events_default'), ('2031-06-01 00:00:00+00', 'ai.generations_p203106 ai.llm_calls_p203106 ai.stream_events_default'),
               ('2031-05-16 00:00:00+00', 'ai.generations_p203105 ai.llm_calls_p203105 ai.stream_events_p20310516'), ('2031-05-15 23:59:59.999+00', 'ai.generations_p203105 ai.llm_calls_p203105 ai.stream_events_p20310515'),
               ('2045-01-01 00:00:00+00', 'ai.generations_default ai.llm_calls_default ai.stream_events_default'), ('1999-01-01 00:00:00+00', 'ai.generations_default ai.llm_calls_default ai.stream_events_default'),
               ('2045-02-01 00:00:00+00', 'ai.generations_default ai.llm_calls_default ai.stream_events_default'), ('2044-12-31 23:59:59.999+00', 'ai.generations_default ai.llm_calls_default ai.stream_events_default')) v (at, places);
select is(ai.make_partitions('2045-01-01 00:00+00'), 12, 'partitions over rows of the default one');
select results_eq($$ select tableoid::regclass::text from ai.generations where prompt ~ '^of (2045|2044|1999)' order by id $$,
  array['ai.generations_default', 'ai.generations_default', 'ai.generations_p204501', 'ai.generations_p204502'], 'take what is theirs, and nothing else');
select results_eq($$ select tableoid::regclass::text from ai.llm_calls where created_at < '2000-01-01' or created_at >= '2044-01-01' order by created_at $$,
  array['ai.llm_calls_default', 'ai.llm_calls_default', 'ai.llm_calls_p204501', 'ai.llm_calls_p204502'], 'of the books, too');
select is((select count(*) from ai.generations where prompt ~ '^of '), 8::bigint, 'no row was lost');
set local timezone = 'Pacific/Auckland';
select is(ai.make_partitions('2045-01-01 00:00+00'), 0, 'in any time zone the same partitions');
select is(ai.make_partitions('2051-01-01 00:00+00'), 12, 'also when they are made there');
set local timezone = 'UTC';
select is(t.row_of('2051-01-01 00:00+00'), 'ai.generations_p205101 ai.llm_calls_p205101 ai.stream_events_p20510101', 'with the bounds of UTC');
update ai.partitioning set span = '1 day' where table_name = 'llm_calls';
select is((select count(*) from generate_series(1, 2) n where ai.make_partitions('2061-03-30 00:00+00') > 0), 1::bigint, 'another span');
select ok(t.parts('llm_calls') @> array['ai.llm_calls_p20610330', 'ai.llm_calls_p20610331', 'ai.llm_calls_p20610401'], 'makes days');
update ai.partitioning set span = '1 month' where table_name = 'llm_calls';
select throws_ok($$ update ai.partitioning set span = '1 week' $$, '23514', null, 'no other spans');

-- A span that is changed over partitions that are there: these stay, and the next ones begin where they end
select ai.make_partitions('2001-11-15 12:00+00') \g /dev/null
update ai.partitioning set span = '1 day', keep = '1 month' where table_name = 'generations';
select is(ai.make_partitions('2001-11-15 12:00+00'), 0, 'months are cut into no days');
select ai.make_partitions('2002-01-31 12:00+00') \g /dev/null
select set_eq($$ select p from unnest(t.parts('generations')) p where p ~ '_p200[12]' $$, array['ai.generations_p200111', 'ai.generations_p200112', 'ai.generations_p200201', 'ai.generations_p20020201', 'ai.generations_p20020202'],
  'days follow them');
update ai.partitioning set span = '1 month' where table_name = 'generations';
select ai.make_partitions('2002-02-02 12:00+00') \g /dev/null
select results_eq($$ select split_part(t.row_of(at::timestamptz), ' ', 1) from unnest(array['2002-01-31 23:59:59.999+00', '2002-02-01 00:00+00', '2002-02-02 23:59:59.999+00', '2002-02-03 00:00+00', '2002-03-01 00:00+00']) with ordinality u (at, n) order by n $$,
  array['ai.generations_p200201', 'ai.generations_p20020201', 'ai.generations_p20020202', 'ai.generations_p200202', 'ai.generations_p200203'], 'and what the days leave of a month follows those');
update ai.partitioning set span = '1 day' where table_name = 'generations';
select ai.drop_old_partitions('2001-12-31 23:59+00', 'generations') \g /dev/null
select ok('ai.generations_p200111' = any (t.parts('generations')), 'a month is kept from its end on, whatever the span is now');
select is(ai.drop_old_partitions('2002-01-01 00:00+00', 'generations'), 1, 'and no longer');
update ai.partitioning set span = '1 month', keep = null where table_name = 'generations';

-- Retention
select count(*) as old from unnest(t.parts('stream_events') || t.parts('sealed_calls')) p
 where p ~ '_p[0-9]+$' and (p ~ 'stream' and p < 'ai.stream_events_p20310515' or p ~ 'sealed' and p < 'ai.sealed_calls_p20310422') \gset
select is(ai.drop_old_partitions('2031-05-22 23:59:59+00'), :old, 'what ended more than its keep ago is dropped, nothing of what is kept for ever');
select ok('ai.stream_events_p20310515' = any (t.parts('stream_events')), 'a partition is kept until its end is its keep ago');
select is(ai.drop_old_partitions('2031-05-23 00:00:00+00'), 1, 'a second later it is dropped');
select ok(not 'ai.stream_events_p20310515' = any (t.parts('stream_events')), 'gone');
select is(to_regclass('ai.stream_events_p20310515'), null, 'altogether');
select is((select count(*) from ai.generations where prompt ~ '^of 2031'), 4::bigint, 'generations are kept for ever');
update ai.partitioning set keep = '1 month' where table_name = 'generations';
select is(ai.drop_old_partitions('2031-06-30 00:00+00') > 0, true, 'until the operator says otherwise');
select is((select count(*) from ai.generations where prompt ~ '^of 2031-05'), 3::bigint, 'a month that ended less than a month ago is kept');
select is(ai.drop_old_partitions('2031-07-02 00:00+00'), 1, 'then dropped');
select is((select count(*) from ai.generations where prompt ~ '^of 2031-05'), 0::bigint, 'with its rows');
select is((select count(*) from ai.llm_calls where created_at >= '2031-05-01' and created_at < '2031-06-01'), 3::bigint, 'the books are not');
select ok('ai.generations_default' = any (t.parts('generations')), 'the default partition is never dropped');

-- What has not ended keeps its partition, wherever it waits; then an answer has its time
delete from ai.queue; delete from ai.delayed; delete from ai.leases;
update ai.generations set status = 'failed', finished_at = now() where status in ('queued', 'running');
insert into ai.generations (tenant_id, id, user_id, prompt, model, run_after) values (t.alpha(), ai.uuid_floor('2031-06-10'), 'ann', 'not yet', 'mtap/one', ai.now() + interval '1 hour')
returning id as g \gset
insert into ai.tool_calls (tenant_id, generation_id, user_id, step, position, call_id, name, status, created_at, finished_at, settled_at)
values (t.alpha(), :'g', 'ann', 1, 1, 'x', 'x', 'succeeded', '2031-06-10', '2031-06-10', '2031-06-10');
-- Where it is, with whether a month after the end of its partition that is still there, and what its tool has said.
create function t.kept(p_id uuid) returns text language plpgsql as $$
begin
  perform ai.drop_old_partitions('2031-08-02 00:00+00'), ai.drop_old_rows('2031-08-02 00:00+00');
  return concat_ws(' ', coalesce(t.place(p_id), t.status(p_id)), case when to_regclass('ai.generations_p203106') is not null then 'kept' end, (select 'with tools' from ai.tool_calls c where c.generation_id = p_id));
end
$$;
select is(t.kept(:'g'), 'delayed kept with tools', 'what is to run later');
select t.pass('61 minutes');
select ai.queue_what_is_due(ai.now()) \g /dev/null
select is(t.kept(:'g'), 'queue kept with tools', 'what is queued');
insert into ai.waiting (generation_id, for_id, tenant_id, lane_id, deadline_at) select q.generation_id, ai.uuid_v7(), q.tenant_id, q.lane_id, 'infinity' from ai.queue q where q.generation_id = :'g';
delete from ai.queue;
select is(t.kept(:'g'), 'queued kept with tools', 'what waits for another');
insert into ai.queue (lane_id, generation_id, tenant_id) select w.lane_id, w.generation_id, w.tenant_id from ai.waiting w where w.generation_id = :'g';
delete from ai.waiting;
select ai.list_lanes(array_agg(q.lane_id)) from ai.queue q \g /dev/null
select t.worker('late') as late \gset
select count(*) from t.claim(:'late') \g /dev/null
select is(t.kept(:'g'), 'lease kept with tools', 'what runs');
select t.settle(:'late', :'g', 1, 'succeeded', '{"output": "x"}') \g /dev/null
update ai.llm_calls set created_at = '2031-07-20' where generation_id = :'g';
select is(t.kept(:'g'), 'succeeded kept', 'what was answered a moment ago');
select is(ai.drop_old_partitions('2031-08-20 00:00+00'), 1, 'until the answer is as old');
select is((select count(*) from ai.generations where id = :'g'), 0::bigint, 'then it is gone');

-- So do its events, which are numbered by what is there
select ai.make_partitions('2031-06-11 00:00+00', 'stream_events') \g /dev/null
insert into ai.generations (tenant_id, id, user_id, prompt, model, stream, run_after) values (t.alpha(), ai.uuid_floor('2031-06-11'), 'ann', 'a stream', 'mtap/one', true, ai.now()) returning id as g \gset
select count(*) from t.claim(:'late') \g /dev/null
select count(*) from ai.worker_publish(:'late', jsonb_build_array(jsonb_build_object('id', :'g', 'attempt', 1, 'part', 1, 'text', 'Becau'))) \g /dev/null
select ai.drop_old_partitions('2031-08-02 00:00+00', 'stream_events') \g /dev/null
select count(*) from ai.worker_publish(:'late', jsonb_build_array(jsonb_build_object('id', :'g', 'attempt', 1, 'part', 2, 'text', 'se'))) \g /dev/null
select is(t.events(:'g'), '1:running 2:delta=Becau 3:delta=se', 'a stream that runs loses none');
select t.settle(:'late', :'g', 1, 'succeeded', '{"output": "Because"}') \g /dev/null
update ai.llm_calls set created_at = '2031-07-20' where generation_id = :'g';
select ai.drop_old_partitions('2031-07-26 00:00+00', 'stream_events') \g /dev/null
select is(t.events(:'g'), '1:running 2:delta=Becau 3:delta=se', 'nor one that ended a moment ago');
select ai.drop_old_partitions('2031-07-28 00:00+00', 'stream_events') \g /dev/null
select is(t.events(:'g'), null, 'until its keep is over');
delete from ai.generations where id = :'g';

-- What lies in a default partition, which nobody drops
create function t.in_defaults() returns text language sql as $$
  select concat_ws(' ', (select 'row' from ai.generations_default g where g.prompt = 'of 1999-01-01 00:00:00+00'), (select count(*) from ai.stream_events_default e where e.generation_id < ai.uuid_floor('2000-01-01')),
                   (select 'call' from ai.llm_calls_default c where c.created_at = '1999-01-01 00:00+00'))
$$;
insert into ai.stream_events (tenant_id, generation_id, seq, attempt, type, data) select g.tenant_id, g.id, n, 1, 'delta', 'x' from ai.generations g cross join generate_series(2, 11000) n where g.prompt = 'of 1999-01-01 00:00:00+00';
select is(ai.drop_old_rows('2031-01-08 00:00+00'), 0, 'what has not ended is not over, however long ago it was asked for');
update ai.generations set finished_at = '2031-01-01 00:00+00' where prompt = 'of 1999-01-01 00:00:00+00';
select is(ai.drop_old_rows('2031-01-07 23:59+00'), 0, 'a stream is kept from the end on');
select is(t.in_defaults(), 'row 11000 call', 'wholly');
select is(ai.drop_old_rows('2031-01-08 00:00+00'), 10000, 'and then goes, some rows at a time,');
select is(ai.drop_old_rows('2031-01-08 00:00+00'), 1000, 'until none is left');
select is(t.in_defaults(), 'row 0 call', 'what is kept for ever stays');
update ai.partitioning set keep = '1 month' where table_name in ('generations', 'llm_calls');
select is(ai.drop_old_rows('2031-01-31 23:59+00'), 1, 'calls by their own time,');
select is(t.in_defaults(), 'row 0', 'generations from their end on');
select is(ai.drop_old_rows('2031-02-01 00:00+00'), 1, 'are kept');
select is(t.in_defaults(), '0', 'and no longer');
update ai.partitioning set keep = null where table_name in ('generations', 'llm_calls');

-- What is wrong with partitions keeps nothing from being rescued
create function t.partition_problems() returns text language sql as $$
  select string_agg(format('%s: %s %s since %s', p.key, p.value ->> 'table', p.value ->> 'code', left(p.value ->> 'since', 10)), ', ' order by p.key)
    from ai.maintenance m cross join jsonb_each(m.partition_problems) p
$$;
select format('create table ai.generations_mine partition of ai.generations for values from (%L) to (%L)', ai.uuid_floor('2033-08-15'), ai.uuid_floor('2033-09-15')) \gexec
select t.worker('dies, too') as dead \gset
select t.ask() as g \gset
select count(*) from t.claim(:'dead') \g /dev/null
select t.pass('16 s');
update ai.maintenance set partitions_at = '-infinity';
set local client_min_messages = error;
select set_config('ai.clock_offset', (timestamptz '2033-08-01' - now())::text, true) \g /dev/null
select ai.worker_heartbeat(:'w') \g /dev/null
select ai.worker_maintain(:'w') as done \gset
reset client_min_messages;
select ok((:'done'::jsonb ->> 'rescued')::int >= 1, 'rescued all the same');
select is(:'done'::jsonb ->> 'partitions_failed', '42P17', 'and what is wrong is said');
select is(t.partition_problems(), 'ai.make_partitions() of ai.generations: generations 42P17 since 2033-08-01', 'and kept');
select t.pass('1 day');
set local client_min_messages = error;
select ai.tend_partitions(ai.now()) \g /dev/null
reset client_min_messages;
select is(t.partition_problems(), 'ai.make_partitions() of ai.generations: generations 42P17 since 2033-08-01', 'with the time when it began');
select ok(t.parts('llm_calls') @> array['ai.llm_calls_p203308'] and t.parts('stream_events') @> array['ai.stream_events_p20330801'], 'the other tables have theirs');
select is(t.parts('stream_events') @> array['ai.stream_events_p20310516'], false, 'and lose those that are old');
drop table ai.generations_mine;
select ai.tend_partitions(ai.now()) \g /dev/null
select is(t.partition_problems(), null, 'until it is over');
select set_config('ai.clock_offset', '0', true) \g /dev/null

-- All workers are full, and no claim comes: upkeep ends what is late at the heads of the lanes
delete from ai.queue; delete from ai.active_lanes;
create function t.ask_many(p_count integer, p_tenant uuid default t.alpha(), p_user text default 'ann') returns bigint language sql as $$
  select count(t.ask('in time', p_tenant => p_tenant, p_user => p_user)) from generate_series(1, p_count)
$$;
select t.ask('late', p_deadline_ms => 60000) as first \gset
select is(t.ask_many(1000) + t.ask_many(10, t.beta(), 'bob'), 1010::bigint, 'a thousand of one tenant, and a few of another''s');
select t.ask('late', p_deadline_ms => 60000) as last, t.ask('late', p_tenant => t.beta(), p_user => 'bob', p_deadline_ms => 60000) as of_another \gset
select is(ai.end_queued_overdue(ai.now()), 0, 'nothing is late');
select t.pass('61 s');
select is(ai.end_queued_overdue(ai.now()), 2, 'of each lane the first thousand are looked at');
select results_eq(format('select id, error ->> ''code'' from ai.generations where status = ''failed'' and id in (%L, %L, %L) order by id', :'first', :'last', :'of_another'),
  format('values (%L::uuid, ''PT504''), (%L, ''PT504'')', :'first', :'of_another'), 'those end as a claim would end them');
select is(t.place(:'last'), 'queue', 'what lies behind is left to claims');
delete from ai.queue where generation_id in (select g.id from ai.generations g where g.prompt = 'in time' and g.tenant_id = t.alpha() order by g.id limit 1);
select is(ai.end_queued_overdue(ai.now()), 1, 'until it is among them');
delete from ai.queue;
select t.ask_many(1001), t.ask_many(1, t.beta(), 'bob') \g /dev/null
select t.pass('11 minutes');
select is((select array_agg(ai.end_queued_overdue(ai.now())) from generate_series(1, 3)), array[1000, 2, 0], 'a thousand at once');
select set_config('ai.clock_offset', '0', true) \g /dev/null

-- Orphans: rows that no trigger saw
delete from ai.queue; delete from ai.delayed; delete from ai.leases;
update ai.generations set status = 'failed', finished_at = now() where status in ('queued', 'running');
select t.worker('finder') as w \gset
create temporary table replicated (id uuid default ai.uuid_v7(), what text);
insert into replicated (what) values ('queued'), ('running'), ('later'), ('succeeded'), ('low');
set local session_replication_role = replica;
insert into ai.generations (tenant_id, id, user_id, prompt, model, status, attempts, run_after, priority, finished_at)
select t.alpha(), id, 'ann', what, 'mtap/one', case when what in ('running', 'succeeded') then what else 'queued' end, case what when 'running' then 2 else 0 end,
       case what when 'later' then now() + interval '1 hour' end, case what when 'low' then 'low' else 'normal' end, case what when 'succeeded' then now() end from replicated;
set local session_replication_role = origin;
select is((select count(*) from ai.queue), 0::bigint, 'no trigger saw them');
select t.maintain(:'w') as done \gset
select is((:'done'::jsonb ->> 'orphans')::int, 4, 'the sweep does: all that has not ended');
select is(:'done'::jsonb ->> 'claimable', 'true', 'and a worker is told to look');
select results_eq($$ select what, t.place(id), t.status(id) from replicated order by what $$,
  $$ values ('later', 'delayed', 'queued'), ('low', 'queue', 'queued'), ('queued', 'queue', 'queued'), ('running', 'queue', 'queued'), ('succeeded', null, 'succeeded') $$, 'each is where it belongs');
select is((t.maintain(:'w') ->> 'orphans')::int, 0, 'once');
select results_eq(format('select request #>> ''{messages,0,content}'', attempt from t.claim(%L) order by 1', :'w'), $$ values ('low', 1), ('queued', 1), ('running', 3) $$, 'and is claimed, with its attempts counted on');
select is((t.maintain(:'w') ->> 'orphans')::int, 0, 'what is leased is no orphan');
select t.settle(:'w', c.generation_id, c.attempt, 'succeeded', '{"output": "x"}') from ai.leases c \g /dev/null

-- Lanes
select is((select count(*) from ai.active_lanes a where exists (select from ai.queue q where q.lane_id = a.lane_id)), 0::bigint, 'nothing is queued');
select ai.worker_maintain(:'w') \g /dev/null
select is((select count(*) from ai.active_lanes), 0::bigint, 'empty lanes are taken off the list');
select t.ask() as g \gset
select is((select count(*) from ai.active_lanes), 1::bigint, 'an insert lists its lane again');
select is((ai.worker_maintain(:'w') ->> 'unlisted')::int, 0, 'a lane with something queued stays');
insert into ai.active_lanes select a.* from ai.active_lanes a cross join generate_series(1, 50);
select results_eq(format('select id from t.claim(%L)', :'w'), array[:'g'::uuid], 'a lane that is listed many times is claimed from once');
select t.ask() as g \gset
select ai.worker_maintain(:'w') \g /dev/null
select is((select count(*) from ai.active_lanes), 1::bigint, 'and soon listed once');
select results_eq(format('select id from t.claim(%L)', :'w'), array[:'g'::uuid], 'with what is queued in it');
select t.ask(p_run_after => ai.now() + interval '1 minute') as g \gset
select ai.worker_maintain(:'w') \g /dev/null
select t.pass('2 minutes');
select ai.worker_heartbeat(:'w') \g /dev/null
select results_eq(format('select id from t.claim(%L)', :'w'), array[:'g'::uuid], 'what becomes due in a lane that is not listed lists it');
select ai.worker_maintain(:'w') \g /dev/null
insert into ai.active_lanes (lane_id, tenant_id, rank) select 1000000 + n, t.alpha(), 2 from generate_series(1, 1500) n;
select is((ai.worker_maintain(:'w') ->> 'unlisted')::int, 1000, 'of many empty lanes a thousand at a time: each takes a place in the lock table');
select is((ai.worker_maintain(:'w') ->> 'unlisted')::int, 500, 'the rest the next time');
select is((select count(*) from ai.active_lanes), 0::bigint, 'and none is left');
-- What goes wrong with the list, out of memory for locks or whatever it is, does not keep anything from its rescue
create function t.refuse() returns trigger language plpgsql as $$ begin raise exception 'refused' using errcode = '53200'; end $$;
create trigger refuse before delete on ai.active_lanes for each statement execute function t.refuse();
select t.worker('dies with a list in disorder') as dead \gset
select t.ask() as g \gset
select count(*) from t.claim(:'dead') \g /dev/null
select t.pass('16 s');
select ai.worker_heartbeat(:'w') \g /dev/null
set local client_min_messages = error;
select results_eq(format('select d ->> ''rescued'', d ->> ''unlisted'' from ai.worker_maintain(%L) d', :'w'), $$ values ('1', '53200') $$, 'a list that cannot be put in order costs nobody the rescue');
reset client_min_messages;
drop trigger refuse on ai.active_lanes;
select is(t.place(:'g'), 'delayed', 'it waits for its next attempt');
delete from ai.delayed; delete from ai.queue;

-- Old workers are forgotten, such as hold something are not
select t.worker('old') as old \gset
select ai.worker_stop(:'old') \g /dev/null
select t.pass('25 hours');
select t.maintain(:'w') \g /dev/null
select is((select count(*) from ai.workers where id = :'old'), 0::bigint, 'a worker that ended a day ago is forgotten');

-- The counts
select t.worker('last') as w \gset
select ok(t.maintain(:'w') ?& array['rescued', 'due', 'unlisted', 'rows_dropped', 'partitions_made', 'partitions_dropped', 'keys_forgotten', 'orphans'], 'a dear tick counts everything');
select ok(ai.worker_maintain(:'w') ?& array['rescued', 'due', 'unlisted'], 'a cheap one what it did');
select ok(not ai.worker_maintain(:'w') ?| array['partitions_made', 'orphans'], 'and nothing else');

-- Whether to claim again
delete from ai.queue; delete from ai.delayed;
update ai.generations set status = 'failed', finished_at = now() where status in ('queued', 'running');
select is(t.maintain(:'w') ->> 'claimable', 'false', 'where nothing is to be done, nothing is to be claimed');
select t.ask(p_run_after => ai.now() + interval '1 minute') as g \gset
select is(ai.worker_maintain(:'w') ->> 'claimable', 'false', 'what is not yet due is not');
select t.pass('2 minutes');
select ai.worker_heartbeat(:'w') \g /dev/null
select is(ai.worker_maintain(:'w') ->> 'claimable', 'true', 'what became due is');
select is(ai.worker_maintain(:'w') ->> 'claimable', 'false', 'that is said once');
select ai.park(array[q.lane_id], array[0], array[ai.now() + interval '1 minute']) from ai.queue q where q.generation_id = :'g' \g /dev/null
select is(ai.worker_maintain(:'w') ->> 'claimable', 'false', 'a lane that is parked is not');
select t.pass('2 minutes');
select ai.worker_heartbeat(:'w') \g /dev/null
select is(ai.worker_maintain(:'w') ->> 'claimable', 'true', 'one whose time has come is');
select count(*) from t.claim(:'w') \g /dev/null
select t.pass('16 s');
select t.worker('another') as other \gset
select is(t.maintain(:'other') ->> 'claimable', 'true', 'and so is what was rescued');

-- One that cannot be taken back, cancelled or ended keeps nobody else from it
set local client_min_messages = error;
create function t.no_end() returns trigger language plpgsql as $$ begin raise exception 'no end' using errcode = '54001'; end $$;
create trigger no_end before update on ai.generations for each row when (new.prompt = 'endless' and new.status <> 'running') execute function t.no_end();
select t.worker('dead') as dead, t.ask('endless') as bad, t.ask('well') as good \gset
select count(*) from t.claim(:'dead') \g /dev/null
select t.pass('16 s');
select t.worker('live') as live \gset
select is(ai.worker_maintain(:'live') ->> 'rescued', '1', 'what a dead worker held is taken back, but for one');
select is(t.place(:'bad'), 'lease', 'that stays where it is');
select is(t.place(:'good'), 'delayed', 'and the other is tried again');
delete from ai.leases where generation_id = :'bad';
delete from ai.delayed;
select t.ask('endless') as bad, t.ask('well') as good \gset
insert into ai.cancellations (generation_id, tenant_id, requested_at) select g, t.alpha(), ai.now() from unnest(array[:'bad', :'good']::uuid[]) g;
select is(ai.end_cancelled(), 1, 'what was cancelled between two attempts ends, but for one');
select is(t.place(:'bad'), 'queue', 'that stays where it is');
select is(t.status(:'good'), 'cancelled', 'and the other is cancelled');
delete from ai.cancellations;
delete from ai.queue;
select t.ask('endless', p_deadline_ms => 1000) as bad, t.ask('well', p_deadline_ms => 1000) as good \gset
select ai.park(array[q.lane_id], array[0], array[ai.now() + interval '1 hour']) from ai.queue q where q.generation_id = :'good' \g /dev/null
select t.pass('2 s');
select is(ai.worker_maintain(:'live') ->> 'queued_overdue', '1', 'what is late in a lane that is parked ends, but for one');
select is(t.place(:'bad'), 'queue', 'that stays where it is');
select is(t.status(:'good'), 'failed', 'and the other ends');
delete from ai.queue;
select t.ask('endless') as bad, t.ask('well') as good \gset
delete from ai.queue;
insert into ai.waiting (generation_id, for_id, tenant_id, lane_id, deadline_at)
select g, ai.uuid_v7(), t.alpha(), (select min(l.id) from ai.lanes l where l.tenant_id = t.alpha()), ai.now() - interval '1 second' from unnest(array[:'bad', :'good']::uuid[]) g;
select is(ai.worker_maintain(:'live') ->> 'overdue', '1', 'what waited for another beyond its deadline ends, but for one');
select is((select count(*) from ai.waiting where generation_id = :'bad'), 1::bigint, 'that stays where it is');
select is(t.status(:'good'), 'failed', 'and the other ends');

-- The row that all of this reads
select throws_ok('delete from ai.settings', 'PT409', 'ai.settings keeps its row', 'the settings are not deleted');
select throws_ok('truncate ai.settings', 'PT409', 'ai.settings keeps its row', 'nor truncated');
select lives_ok('update ai.settings set deadline_ms = default', 'but set to what they were');

select * from finish();
rollback;
