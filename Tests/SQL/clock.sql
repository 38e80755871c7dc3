-- Clocks: set forwards, set back, in any time zone, over the ends of months, years and leap days.
begin;
\ir setup/world.sql
select no_plan();
create function t.maintain(p_worker uuid) returns jsonb language sql as $$ select ai.worker_maintain(p_worker) $$;

-- Partitions at the ends of months, years and leap days are those of UTC, whatever the session thinks of time
create function t.bounds(p_table text) returns table (name text, starts timestamptz, ends timestamptz) language sql as $$
  select c.relname::text, b[1]::timestamptz, b[2]::timestamptz
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
   cross join lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*)''\) TO \(''(.*)''\)')) m (b)
   where i.inhparent = format('ai.%I', p_table)::regclass and b is not null
$$;
create function t.wrong_bounds(p_table text) returns setof text language sql set timezone = 'UTC' set datestyle = 'ISO, YMD' as $$
  select name || ': ' || starts || ' to ' || ends from t.bounds(p_table)
   where starts <> (substring(name from '[0-9]+$') || '01')::date::timestamp at time zone 'UTC'
      or ends <> ((substring(name from '[0-9]+$') || '01')::date + interval '1 month') at time zone 'UTC'
$$;
create function t.part_at(p_at timestamptz) returns text language plpgsql as $$
declare
  v_part text;
begin
  insert into ai.llm_calls (tenant_id, generation_id, attempt, user_id, provider, model, kind, status, created_at)
  values (t.alpha(), gen_random_uuid(), 1, 'ann', 'mtap-first', 'mtap/one', 'chat', 'succeeded', p_at) returning tableoid::regclass::text into v_part;
  return v_part;
end
$$;
-- The zones: DST in both halves of the year, minutes beside the hour, the other side of the date line, an abbreviation that is another zone's.
create temporary table sessions as
  select z.zone, (array['SQL, DMY', 'German', 'ISO, MDY', 'Postgres, MDY'])[1 + z.n % 4] as style, z.n
    from unnest(array['Europe/Berlin', 'America/Sao_Paulo', 'Asia/Kathmandu', 'Asia/Kolkata', 'Pacific/Apia', 'America/St_Johns', 'Asia/Jerusalem', 'UTC']) with ordinality z (zone, n);
create function t.make_in(p_zone text, p_style text, p_at timestamptz) returns void language plpgsql as $$
begin
  perform set_config('timezone', p_zone, true), set_config('datestyle', p_style, true);
  perform ai.make_partitions(p_at);
end
$$;
-- In each of them those of another quarter, from its last instant on: eight quarters from 2040, with its leap day.
select t.make_in(s.zone, s.style, timestamptz '2040-01-01 00:00:00+00' + (s.n - 1) * interval '3 months' - interval '1 us') from sessions s order by s.n \g /dev/null
set local timezone = 'UTC';
set local datestyle = 'ISO, MDY';
select is((select count(*) from t.bounds('llm_calls') where starts >= '2040-01-01'), 23::bigint, 'so many months were made');
select is_empty($$ select t.wrong_bounds('llm_calls') $$, 'each of them is a month of UTC');
select is_empty($$ select a.name from t.bounds('llm_calls') a join t.bounds('llm_calls') b on a.name < b.name and a.starts < b.ends and b.starts < a.ends $$, 'none overlap');
select results_eq(
  $$ select t.part_at(at) from unnest(array['2040-02-28 23:59:59.999999+00', '2040-02-29 00:00+00', '2040-02-29 23:59:59.999999+00', '2040-03-01 00:00+00',
                                            '2040-12-31 23:59:59.999999+00', '2041-01-01 00:00+00', '2041-02-28 23:59:59.999999+00', '2041-03-01 00:00+00']::timestamptz[]) with ordinality u (at, n) order by n $$,
  $$ values ('ai.llm_calls_p204002'), ('ai.llm_calls_p204002'), ('ai.llm_calls_p204002'), ('ai.llm_calls_p204003'),
            ('ai.llm_calls_p204012'), ('ai.llm_calls_p204101'), ('ai.llm_calls_p204102'), ('ai.llm_calls_p204103') $$,
  'leap days and turns of the year lie where they belong');
create function t.part_of_id(p_at timestamptz) returns text language plpgsql as $$
declare
  v_part text;
begin
  insert into ai.stream_events (generation_id, seq, tenant_id, attempt, part, type, data) values (ai.uuid_floor(p_at), 1, t.alpha(), 1, 1, 'delta', 'x')
  returning tableoid::regclass::text into v_part;
  return v_part;
end
$$;
select t.make_in('Asia/Kolkata', 'SQL, DMY', '2040-02-29 12:00+00'), t.make_in('America/St_Johns', 'Postgres, MDY', '2044-02-28 12:00+00') \g /dev/null
set local timezone = 'UTC';
set local datestyle = 'ISO, MDY';
select results_eq(
  $$ select t.part_of_id(at) from unnest(array['2040-02-29 00:00+00', '2040-02-29 23:59:59.999+00', '2040-03-01 00:00+00', '2044-02-28 23:59:59.999+00', '2044-02-29 00:00+00']::timestamptz[]) with ordinality u (at, n) order by n $$,
  $$ values ('ai.stream_events_p20400229'), ('ai.stream_events_p20400229'), ('ai.stream_events_p20400301'), ('ai.stream_events_p20440228'), ('ai.stream_events_p20440229') $$,
  'of partitions of a day, too');
-- Retention of a month that ends with a leap day, asked in zones where it still is, or is no longer, that day
update ai.partitioning set keep = '1 day' where table_name = 'llm_calls';
create function t.keeps(p_zone text, p_at timestamptz) returns boolean language plpgsql as $$
begin
  perform set_config('timezone', p_zone, true);
  perform ai.drop_old_partitions(p_at);
  return to_regclass('ai.llm_calls_p204002') is not null;
end
$$;
select is(t.keeps('Pacific/Apia', '2040-03-01 23:59:59.999999+00'), true, 'a microsecond before its keep is over a partition is there, where it is tomorrow');
select is(t.keeps('America/St_Johns', '2040-03-02 00:00:00+00'), false, 'and is not there when it is over, where it is yesterday');
set local timezone = 'UTC';
update ai.partitioning set keep = null where table_name = 'llm_calls';

-- Windows of limits: of UTC in each zone, none missing and none twice over DST, whatever the period
create function t.windows(p_zone text, p_period text, p_from timestamptz, p_hours integer) returns setof text language plpgsql as $$
declare
  v_at  timestamptz := p_from;
  v_end timestamptz;
begin
  perform set_config('timezone', p_zone, true);
  while v_at < p_from + p_hours * interval '1 hour' loop
    v_end := ai.window_end(p_period, v_at);
    if ai.window_start(p_period, v_at) > v_at or v_end <= v_at or ai.window_start(p_period, v_end) <> v_end
       or ai.window_start(p_period, v_end - interval '1 us') <> ai.window_start(p_period, v_at)
       or extract(epoch from v_end - ai.window_start(p_period, v_at)) <> ('{"minute": 60, "hour": 3600, "day": 86400, "week": 604800}'::jsonb ->> p_period)::numeric
       or date_trunc(p_period, v_end at time zone 'UTC') <> v_end at time zone 'UTC' then
      return next format('%s %s: %s', p_zone, p_period, v_at);
    end if;
    v_at := v_at + interval '30 minutes';
  end loop;
  perform set_config('timezone', 'UTC', true);
end
$$;
select is_empty(format('select t.windows(%L, %L, %L, 50)', z.zone, p.period, c.at), format('windows of a %s over %s in %s', p.period, c.at, z.zone))
  from (select distinct zone from sessions) z, unnest(array['minute', 'hour', 'day', 'week', 'month']) p (period),
       unnest(array['2027-03-27 12:00+00', '2027-10-30 12:00+00', '2028-02-28 12:00+00', '2026-12-31 00:00+00']::timestamptz[]) c (at);

-- A lease under a clock that goes back: who lives keeps it, who died does not keep it until that time comes again
set local ai.clock_offset = '0';
select t.worker('lives') as live, t.worker('dies') as dead \gset
select t.pass('2 days');
select t.ask(p_deadline_ms => 86400000, p_run_after => ai.now()) as g \gset
select count(*) from t.claim(:'dead') \g /dev/null
select ai.worker_heartbeat(:'live'), ai.worker_heartbeat(:'dead'), t.maintain(:'live') \g /dev/null
select t.pass('-2 days');
select is((t.maintain(:'live') ->> 'rescued')::int, 0, 'the clock is set back by two days: nobody is dead yet');
select is(ai.worker_heartbeat(:'live'), true, 'who lives says so');
select t.pass('16 s');
select ai.worker_heartbeat(:'live') \g /dev/null
select is((t.maintain(:'live') ->> 'rescued')::int, 1, 'who does not is dead after a lease, not after two days');

-- Chores: what was done in the future is done again
select ok(partitions_at <= ai.now() and orphans_at <= ai.now(), 'the notes of maintenance are no longer of the future') from ai.maintenance;
select t.pass('400 days');
select t.maintain(:'live'), ai.worker_heartbeat(:'live'), t.maintain(:'live') \g /dev/null
select t.pass('-400 days');
select ok(t.maintain(:'live') ?& array['partitions_made', 'counters_pruned'], 'after a year ahead and back the chores are done at once');
select ok(not t.maintain(:'live') ?| array['partitions_made', 'orphans'], 'and then as ever');
select t.pass('11 s');
select ok(t.maintain(:'live') ? 'orphans', 'orphans when what began before has ended');
select ok(not t.maintain(:'live') ? 'orphans', 'once');

-- Retries, lanes, breakers
delete from ai.queue; delete from ai.delayed;
select t.pass('3 days');
select t.maintain(:'live'), ai.worker_heartbeat(:'live') \g /dev/null
update ai.settings set max_attempts = 5;
select t.ask(p_deadline_ms => 86400000, p_run_after => ai.now()) as again, t.ask(p_deadline_ms => 86400000, p_run_after => ai.now() + interval '1 hour') as later \gset
select count(*) from t.claim(:'live') \g /dev/null
select t.settle(:'live', :'again', 1, 'failed', '{"signal": "http", "http_status": 503, "sent": true, "retry_after_ms": 5000}') as r \gset
select is(:'r'::text, 'requeued', 'a retry waits');
insert into ai.breakers (provider_id, state, failures, opened_at, probe_at, cooldown_ms, why)
select id, 'open', 5, ai.now(), ai.now() + interval '20 s', 20000, 'transient' from ai.providers where name = 'mtap-second';
insert into ai.exhausted_accounts (provider_id, secret, since, until, cooldown_ms)
select id, 'SECOND_API_KEY', ai.now(), ai.now() + interval '1 minute', 60000 from ai.providers where name = 'mtap-second';
insert into ai.parked_lanes (lane_id, tenant_id, rank, counter_id, until)
select l.id, l.tenant_id, l.rank, c.n, ai.now() + interval '1 minute'
  from (select * from ai.lanes where tenant_id = t.alpha() limit 1) l, (values (77)) c (n);
select t.pass('-3 days');
select t.maintain(:'live') \g /dev/null
select is((select due_at <= ai.now() from ai.delayed where generation_id = :'again') is not false, true, 'a retry does not wait for three days');
select is((select due_at > ai.now() + interval '3 days' from ai.delayed where generation_id = :'later'), true, 'what an app wants to run then runs then');
select is((select bool_and(probe_at <= ai.now() + interval '20 s' and opened_at <= ai.now()) from ai.breakers where state <> 'closed'), true, 'a breaker is tried again after its time');
select is((select until <= ai.now() + interval '1 minute' from ai.exhausted_accounts), true, 'and an empty account');
select is_empty('select from ai.parked_lanes', 'a lane is looked at again');
select ai.worker_heartbeat(:'live') \g /dev/null
select is((select count(*) from t.claim(:'live') where id = :'again'), 1::bigint, 'the retry is made');
-- An answer that was on its way to the books when the clock was set
select t.ask(p_deadline_ms => 86400000, p_run_after => ai.now()) as slow \gset
select count(*) from t.claim(:'live') \g /dev/null
select t.pass('3 hours');
select is(t.settle(:'live', :'slow', 1, 'failed', '{"signal": "http", "http_status": 503, "sent": true, "retry_after_ms": 5000}'), 'requeued', 'a report of before');
select t.pass('-3 hours');
select t.maintain(:'live') \g /dev/null
select is((select due_at <= ai.now() from ai.delayed where generation_id = :'slow') is not false, true, 'is found, too');
select t.pass('5 s');
select ai.worker_heartbeat(:'live') \g /dev/null
select is((select count(*) from t.claim(:'live') where id = :'slow'), 1::bigint, 'and tried again');
select is(t.settle(:'live', :'again', 2, 'succeeded', '{"output": "x", "ttft_ms": 3, "latency_ms": 5, "usage": {"input": 3, "output": 1}}'), 'ended', 'and ends');
select ok((t.generation(:'again')).latency_ms >= 0, 'no time is less than nothing');

-- A limit counts by the window that the clock is in: back in an old window, what was admitted there counts still
delete from ai.queue; delete from ai.delayed; delete from ai.parked_lanes; delete from ai.breakers; delete from ai.exhausted_accounts;
set local ai.clock_offset = '0';
select set_config('ai.clock_offset', (timestamptz '2040-06-15 12:00:30+00' - statement_timestamp())::text, true) \g /dev/null
insert into ai.limits (tenant_id, metric, period, amount) values (t.alpha(), 'requests', 'hour', 3);
-- The first look at a limit makes its counter; the next one counts.
create function t.admitted(p_worker uuid) returns bigint language plpgsql as $$
declare
  v_all bigint;
begin
  perform ai.worker_heartbeat(p_worker), t.ask(p_deadline_ms => 86400000, p_run_after => ai.now()) from generate_series(1, 5);
  select count(*) into v_all from t.claim(p_worker);
  return v_all + (select count(*) from t.claim(p_worker));
end
$$;
select is(t.admitted(:'live'), 3::bigint, 'of the hour three');
select t.pass('2 hours');
select is(t.admitted(:'live'), 3::bigint, 'two hours ahead three');
select t.maintain(:'live') \g /dev/null
select t.pass('-2 hours');
select t.maintain(:'live') \g /dev/null
select is(t.admitted(:'live'), 0::bigint, 'back in the old hour none');
select t.pass('1 hour');
select t.maintain(:'live') \g /dev/null
select is(t.admitted(:'live'), 3::bigint, 'in the hour between three');
select t.pass('1 hour');
select is(t.admitted(:'live'), 0::bigint, 'in the hour that was full none again');

-- What was asked before a long step back is claimed and settled all the same
delete from ai.limits;
select t.ask(p_stream => true) as g \gset
select t.pass('-40 days');
select ai.worker_heartbeat(:'live') \g /dev/null
select is((select max(timeout_ms) from t.claim(:'live') where id = :'g'), 2147483647, 'forty days back: its deadline is as far away as a number goes');
select is(t.settle(:'live', :'g', 1, 'succeeded', '{"output": "x", "tail": "x", "ttft_ms": 1, "latency_ms": 2}'), 'ended', 'it ends');
select results_eq(format('select ttft_ms, latency_ms from ai.generations where id = %L', :'g'), 'values (0, 0)', 'after no time that is known');

select * from finish();
rollback;
