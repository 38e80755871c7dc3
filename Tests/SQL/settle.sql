-- The end of an attempt: the fence, the books, the generation, and results that no worker should send.
begin;
\ir setup/world.sql
select no_plan();
-- Many failures of one model follow here; circuit breakers have a file of their own.
delete from ai.breaker_settings;
select t.worker('one') as w, t.worker('two') as other \gset
create function t.start(p_worker uuid, p_stream boolean default false, p_model text default 'mtap/one', p_profile text default null, p_prompt text default '0123456789', p_kind text default 'chat')
returns uuid language plpgsql as $$
declare
  v_id uuid := t.ask(p_prompt, p_model, p_profile, p_stream, p_kind => p_kind);
begin
  perform t.claim(p_worker);
  return v_id;
end
$$;
create function t.events(p_id uuid) returns text language sql stable as $$
  select string_agg(seq || ':' || type || case when data = '' then '' else '=' || data end, ' ' order by seq) from ai.stream_events where generation_id = p_id
$$;

-- A success, all of it
select t.start(:'w', true) as g \gset
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"output": "Because.", "tail": "Because.", "message": {"role": "assistant", "content": "Because."}, "finish_reason": "stop", "model": "one-2026",
  "usage": {"input": 20, "cache_read": 5, "output": 7, "reasoning": 3}, "service_tier": "default", "request_id": "req_1", "ttft_ms": 12.6, "latency_ms": 34.4}'), 'ended', 'a success ends');
select results_eq(format($$ select status, output, output_message, finish_reason, error, provider, model_used, input_tokens, cached_tokens, output_tokens, attempts::int, last_seq, cost
                              from ai.generations where id = %L $$, :'g'),
  $$ values ('succeeded', 'Because.', '{"role": "assistant", "content": "Because."}'::jsonb, 'stop', null::jsonb, 'mtap-first', 'one-2026', 20, 5, 7, 1, 3, 0.0001665) $$,
  'the generation has the answer'); -- 15 × 3 + 5 × 0.3 + 4 × 15 + 3 × 20 = 166.5 millionths
select results_eq(format($$ select attempt::int, user_id, provider, model, model_used, kind, status, http_status, error_class, error_code, input_tokens, cached_tokens, cache_write_tokens,
                                   cache_write_1h_tokens, output_tokens, reasoning_tokens, estimated, cost, ttft_ms, latency_ms, service_tier, request_id, price_id is not null
                              from ai.llm_calls where generation_id = %L $$, :'g'),
  $$ values (1, 'ann', 'mtap-first', 'mtap/one', 'one-2026', 'chat', 'succeeded', null::smallint, null, null, 20, 5, 0, 0, 7, 3, false, 0.0001665, 13, 34, 'default', 'req_1', true) $$,
  'the books have the call');
select ok((select finished_at >= started_at and latency_ms >= 0 and ttft_ms >= 13 from ai.generations where id = :'g'), 'times');
select is(t.events(:'g'), '1:running 2:delta=Because.', 'the tail is published');
select is(t.place(:'g'), null, 'nothing is left in the queue');

-- The fence
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "connect"}'), 'stale', 'a second report of the same attempt is stale');
select is(t.status(:'g'), 'succeeded', 'an end is final');
select is((select count(*) from ai.llm_calls where generation_id = :'g'), 1::bigint, 'and is billed once');
select t.start(:'w') as g \gset
select is(t.settle(:'other', :'g', 1, 'succeeded', '{"output": "x"}'), 'stale', 'another worker''s report');
select is(t.settle(:'w', :'g', 0, 'succeeded', '{"output": "x"}'), 'stale', 'the report of an earlier attempt');
select is(t.settle(:'w', :'g', 2, 'succeeded', '{"output": "x"}'), 'stale', 'the report of a later one');
select is(t.settle(:'w', gen_random_uuid(), 1, 'succeeded', '{"output": "x"}'), 'stale', 'the report of nothing');
select is(t.settle(gen_random_uuid(), :'g', 1, 'succeeded', '{"output": "x"}'), 'stale', 'the report of nobody');
select is((select count(*) from ai.llm_calls where generation_id = :'g'), 0::bigint, 'nothing of that is on the books');
select is(t.place(:'g'), 'lease', 'and it still runs');
select results_eq(format($$ select attempt, result from ai.worker_settle(%L, jsonb_build_array(jsonb_build_object('id', %2$L, 'attempt', 2, 'outcome', 'failed'),
                              jsonb_build_object('id', %2$L, 'attempt', 1, 'outcome', 'succeeded', 'output', 'x'))) order by attempt $$, :'w', :'g'),
  $$ values (1, 'ended'), (2, 'stale') $$, 'of two attempts in one batch only the one that is leased counts');
select t.start(:'w') as g \gset
select results_eq(format($$ select result from ai.worker_settle(%L, jsonb_build_array(jsonb_build_object('id', %2$L, 'attempt', 1, 'outcome', 'succeeded', 'output', 'x'),
                              jsonb_build_object('id', %2$L, 'attempt', 1, 'outcome', 'succeeded', 'output', 'x'))) $$, :'w', :'g'),
  $$ values ('ended'), ('ended') $$, 'the same attempt twice in one batch is one');
select is((select count(*) from ai.llm_calls where generation_id = :'g'), 1::bigint, 'one call on the books');
select is_empty(format('select * from ai.worker_settle(%L, ''[]'')', :'w'), 'an empty batch');
select throws_ok(format('select * from ai.worker_settle(%s, %s)', w, r), 'PT400', null, format('worker %s, results %s', w, r))
  from (values ('null', '''[]'''), (quote_literal(:'w'), 'null'), (quote_literal(:'w'), '''{}'''), (quote_literal(:'w'), '''7'''), (quote_literal(:'w'), '''null''')) v (w, r);

-- A batch of everything at once
select t.start(:'w') as g1, t.start(:'w') as g2, t.start(:'w', p_profile => 'mtap-route') as g3, t.start(:'w') as g4 \gset
select results_eq(format($$ select case generation_id when %2$L then 1 when %3$L then 2 when %4$L then 3 when %5$L then 4 else 5 end as n, result
    from ai.worker_settle(%1$L, jsonb_build_array(
      jsonb_build_object('id', %5$L, 'attempt', 1, 'outcome', 'released'), jsonb_build_object('id', %2$L, 'attempt', 1, 'outcome', 'succeeded', 'output', 'x', 'sent', true),
      jsonb_build_object('id', gen_random_uuid(), 'attempt', 1, 'outcome', 'succeeded'), jsonb_build_object('id', %4$L, 'attempt', 1, 'outcome', 'failed', 'signal', 'http', 'http_status', 401, 'sent', true),
      jsonb_build_object('id', %3$L, 'attempt', 1, 'outcome', 'cancelled', 'sent', false))) order by n $$, :'w', :'g1', :'g2', :'g3', :'g4'),
  $$ values (1, 'ended'), (2, 'ended'), (3, 'requeued'), (4, 'requeued'), (5, 'stale') $$, 'each element of a batch gets its own answer');
select is(t.place(:'g3'), 'queue', 'the failed one is queued for its next target');
select is((select target from ai.queue where generation_id = :'g3'), 2::smallint, 'which is the second');
select is(t.place(:'g4'), 'queue', 'the released one is queued');
select is((select count(*) from ai.llm_calls where generation_id = :'g4'), 0::bigint, 'and is not on the books: nothing was sent');
select is((t.call(:'g2', 1)).status, 'cancelled', 'the cancelled one is, with nothing billed');
select is((t.call(:'g2', 1)).cost, 0::numeric, 'because nothing was sent');

-- Fallback along the route, to its end
select results_eq(format('select model, attempt from t.claim(%L) where id = %L', :'w', :'g3'), $$ values ('two-wire', 2) $$, 'the second target is called');
select is((t.generation(:'g3')).provider, 'mtap-second', 'and named while it runs');
select is(t.settle(:'w', :'g3', 2, 'failed', '{"signal": "http", "http_status": 404, "error_message": "no such model"}'), 'ended', 'the last target fails');
select results_eq(format($$ select status, error ->> 'class', error ->> 'provider', error ->> 'message', (error ->> 'http_status')::int, attempts::int from ai.generations where id = %L $$, :'g3'),
  $$ values ('failed', 'permanent', 'mtap-second', 'no such model', 404, 2) $$, 'the generation says what ended it');
select results_eq(format('select attempt::int, provider, status, error_class, http_status::int from ai.llm_calls where generation_id = %L order by 1', :'g3'),
  $$ values (1, 'mtap-first', 'failed', 'credentials', 401), (2, 'mtap-second', 'failed', 'permanent', 404) $$, 'and the books each attempt');

-- A retry waits, comes back, and succeeds; costs add up
select t.start(:'w') as g \gset
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "http", "http_status": 529, "retry_after_ms": 5000, "usage": {"input": 1000, "output": 0}}'), 'requeued', 'overloaded: requeued');
select is(t.place(:'g'), 'delayed', 'it waits');
select ok((select due_at - ai.now() between interval '4900 ms' and interval '5 s' from ai.delayed where generation_id = :'g'), 'as long as the provider asked');
select is((t.generation(:'g')).status, 'queued', 'its status is queued again');
select is((t.generation(:'g')).error ->> 'class', 'transient', 'with what delayed it');
select is((t.generation(:'g')).finished_at, null, 'it has not ended');
select results_eq(format('select wait_ms <= 5000, retries from ai.worker_claim(%L, 1, null) where generation_id is null', :'w'), $$ values (true, 1) $$, 'the header counts the retry');
select is(t.events(:'g'), '1:retry=transient', 'and its stream says retry');
select t.pass('6 s');
update ai.workers set heartbeat_at = ai.now();
select results_eq(format('select id, attempt from t.claim(%L)', :'w'), format('values (%L::uuid, 2)', :'g'), 'the second attempt');
select is(t.settle(:'w', :'g', 2, 'succeeded', '{"output": "x", "usage": {"input": 1000, "output": 100}}'), 'ended', 'succeeds');
select is((t.generation(:'g')).cost, 0.003 + 0.0045, 'costs of all attempts add up');
select is((t.generation(:'g')).error, null, 'nothing is left of the error');
select is((t.generation(:'g')).input_tokens, 1000, 'tokens are those of the last attempt');
select is((select sum(cost) from ai.llm_calls where generation_id = :'g'), (t.generation(:'g')).cost, 'as the books say');

select results_eq(format('select ttft_ms, latency_ms from ai.llm_calls where generation_id = %L', :'g'), $$ values (null::integer, null::integer), (null, null) $$, 'a time that was not reported is null');
select is((t.generation(:'g')).ttft_ms, null, 'in the generation, too');

-- Attempts end
select t.start(:'w') as g \gset
create function t.fail_until_the_end(p_worker uuid, p_id uuid) returns integer language plpgsql as $$
declare
  v_attempt integer := 1;
begin
  while t.settle(p_worker, p_id, v_attempt, 'failed', '{"signal": "connect", "sent": false}') = 'requeued' loop
    perform t.pass('31 s');
    update ai.workers set heartbeat_at = ai.now();
    v_attempt := v_attempt + 1;
    if (select count(*) from t.claim(p_worker) where id = p_id and attempt = v_attempt) <> 1 then
      return -v_attempt;
    end if;
  end loop;
  return v_attempt;
end
$$;
select is(t.fail_until_the_end(:'w', :'g'), 5, 'five attempts, then it has failed');
select is(t.status(:'g'), 'failed', 'for good');
select is((select count(*) from ai.llm_calls where generation_id = :'g'), 5::bigint, 'five on the books');
select is((t.generation(:'g')).cost, 0::numeric, 'that cost nothing: nothing was sent');
select is((select count(*) from ai.llm_calls where generation_id = :'g' and estimated), 0::bigint, 'nothing of which is an estimate');

-- What is estimated: where a provider reported nothing, and only what it may have billed
create function t.books(p_id uuid) returns text language sql stable as $$
  select string_agg(format('%s in %s out %s%s', status, input_tokens, output_tokens, case when estimated then ' estimated' end), '; ' order by attempt) from ai.llm_calls where generation_id = p_id
$$;
create function t.booked(p_worker uuid, p_outcome text, p_result jsonb) returns text language plpgsql as $$
declare
  v_id uuid := t.start(p_worker);
begin
  perform t.settle(p_worker, v_id, 1, p_outcome, p_result);
  return t.books(v_id);
end
$$;
select is(t.booked(:'w', outcome, result::jsonb), expected, format('%s %s: %s', outcome, result, expected))
  from (values -- the input is 12 bytes: ten of the prompt and two of {}
    ('succeeded', '{"output": "12345"}',                                                        'succeeded in 3 out 2 estimated'),
    ('succeeded', '{"output": "12345", "usage": {"input": 9, "output": 8}}',                    'succeeded in 9 out 8'),
    ('succeeded', '{"output": "12345", "usage": {"input": 9}}',                                 'succeeded in 9 out 2 estimated'),
    ('succeeded', '{"output": "12345", "usage": {"output": 8}}',                                'succeeded in 3 out 8 estimated'),
    ('succeeded', '{"output": "12345", "usage": {}}',                                           'succeeded in 3 out 2 estimated'),
    ('succeeded', '{"output": "12345", "usage": null}',                                         'succeeded in 3 out 2 estimated'),
    ('succeeded', '{"output": "ü😀", "usage": {"input": 1}}',                                   'succeeded in 1 out 2 estimated'),
    ('succeeded', '{"usage": {"input": 9}}',                                                    'succeeded in 9 out 0'),
    ('failed',    '{"signal": "http", "http_status": 500}',                                     'failed in 3 out 0 estimated'),
    ('failed',    '{"signal": "http", "http_status": 429}',                                     'failed in 0 out 0'),
    ('failed',    '{"signal": "http", "http_status": 429, "usage": {"input": 4, "output": 0}}', 'failed in 4 out 0'),
    ('failed',    '{"signal": "connect", "sent": false}',                                       'failed in 0 out 0'),
    ('failed',    '{"signal": "timeout"}',                                                      'failed in 3 out 0 estimated'),
    ('failed',    '{"signal": "timeout", "sent": false}',                                       'failed in 0 out 0'),
    ('failed',    '{"signal": "reset", "output": "12345"}',                                     'failed in 3 out 2 estimated'),
    ('failed',    '{"signal": "malformed"}',                                                    'failed in 3 out 0 estimated'),
    ('failed',    '{"signal": "unsendable"}',                                                   'failed in 0 out 0'),
    ('cancelled', '{"output": "12345"}',                                                        'cancelled in 3 out 2 estimated'),
    ('cancelled', '{"output": "12345", "usage": {"input": 9, "output": 1}}',                    'cancelled in 9 out 1'),
    ('cancelled', '{"sent": false}',                                                            'cancelled in 0 out 0'),
    ('released',  '{"output": "12345"}',                                                        'abandoned in 3 out 2 estimated'),
    ('released',  '{"signal": "reset"}',                                                        'abandoned in 3 out 0 estimated'),
    ('released',  '{"sent": false}',                                                            null)) v (outcome, result, expected);
delete from ai.queue; delete from ai.delayed;

-- Handed back half-way: again from the start, whatever was shown
select t.start(:'w', true) as g \gset
select count(*) from ai.worker_publish(:'w', jsonb_build_array(jsonb_build_object('id', :'g', 'attempt', 1, 'part', 1, 'text', 'Bec'))) \g /dev/null
select is(t.settle(:'w', :'g', 1, 'released', '{"signal": "reset", "output": "Beca", "tail": "a"}'), 'requeued', 'a graceful stop loses nothing');
select is(t.events(:'g'), '1:running 2:delta=Bec 3:delta=a 4:reset=released', 'subscribers are told to forget');
select results_eq(format('select id, attempt from t.claim(%L)', :'w'), format('values (%L::uuid, 2)', :'g'), 'and it begins again');
select is(t.settle(:'w', :'g', 2, 'succeeded', '{"output": "Because", "tail": "Because"}'), 'ended', 'the second attempt');
select is(t.events(:'g'), '1:running 2:delta=Bec 3:delta=a 4:reset=released 5:running 6:delta=Because', 'is numbered on');
select is((t.generation(:'g')).last_seq, 7, 'up to its end');

-- A break after text that nobody was shown: tried again
select t.start(:'w') as g \gset
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "truncated", "output": "Beca"}'), 'requeued', 'what was not streamed was not seen');
delete from ai.delayed;

-- A break after text that was shown: failed, with what had arrived
select t.start(:'w', true) as g \gset
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "truncated", "output": "Bec", "tail": "Bec"}'), 'ended', 'a stream that broke off after text');
select results_eq(format($$ select status, output, error ->> 'class', finish_reason from ai.generations where id = %L $$, :'g'), $$ values ('failed', 'Bec', 'partial', null::text) $$, 'keeps what had arrived');

-- Out of time
select t.start(:'w') as g \gset
update ai.leases set deadline_at = ai.now() where generation_id = :'g';
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "timeout", "error_message": "too slow"}'), 'ended', 'no retry after the deadline');
select results_eq(format($$ select error ->> 'class', error ->> 'code', error ->> 'signal', (select error_class from ai.llm_calls where generation_id = g.id) from ai.generations g where id = %L $$, :'g'),
  $$ values ('deadline', 'PT504', 'timeout', 'unknown') $$, 'the generation says that its time is over, the books what happened');

-- Embeddings
select t.start(:'w', p_model => 'mtap/embed', p_kind => 'embedding') as g \gset
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"embedding": [0.25, -1, 1e-3], "usage": {"input": 1000000}}'), 'ended', 'an embedding');
select is((t.generation(:'g')).embedding::text, '[0.25,-1,0.001]', 'its vector');
select is((t.generation(:'g')).cost, 0.02, 'its cost');
select is((t.generation(:'g')).output, null, 'no text');
select is((t.call(:'g', 1)).kind, 'embedding', 'its kind on the books');
select results_eq(format($$ select c.ttft_ms, g.ttft_ms, c.latency_ms from ai.llm_calls c join ai.generations g on g.id = c.generation_id where g.id = %L $$, :'g'),
  $$ values (null::int, null::int, null::int) $$, 'no time where none was reported');

-- Poison: what no worker should send harms no more than itself
create function t.poisoned(p_worker uuid, p_result jsonb) returns text language plpgsql as $$
declare
  v_id uuid := t.start(p_worker);
  v_as text;
begin
  v_as := t.settle(p_worker, v_id, 1, coalesce(p_result ->> 'outcome', 'succeeded'), p_result);
  return v_as || ' ' || t.status(v_id) || ' ' || coalesce(t.books(v_id), 'unbooked');
exception when others then
  return sqlstate;
end
$$;
select is(t.poisoned(:'w', result::jsonb), expected, format('%s: %s', result, expected))
  from (values
    ('{"usage": {"input": 1.9, "output": 2.0}}',                                'ended succeeded succeeded in 1 out 2'),
    ('{"usage": {"input": -5, "output": -1}}',                                  'ended succeeded succeeded in 0 out 0'),
    ('{"usage": {"input": 99999999999, "output": 1e30}}',                       'ended succeeded succeeded in 2147483647 out 2147483647'),
    ('{"usage": {"input": "12", "output": true}, "output": "1234"}',            'ended succeeded succeeded in 3 out 1 estimated'),
    ('{"usage": {"input": [], "output": {}}, "output": "1234"}',                'ended succeeded succeeded in 3 out 1 estimated'),
    ('{"usage": [1, 2], "output": "1234"}',                                     'ended succeeded succeeded in 3 out 1 estimated'),
    ('{"usage": "free", "output": "1234"}',                                     'ended succeeded succeeded in 3 out 1 estimated'),
    ('{"usage": {"input": 5, "cache_read": 9, "output": 1, "reasoning": 4}}',   'ended succeeded succeeded in 9 out 4'),
    ('{"usage": {"input": 5, "cache_read": 3000000000, "cache_write": 3000000000, "cache_write_1h": 3000000000, "output": 1}}',
                                                                                'ended succeeded succeeded in 2147483647 out 1'),
    ('{"outcome": "failed", "signal": "http", "http_status": 99999}',           'ended failed failed in 0 out 0'),
    ('{"outcome": "failed", "signal": "http", "http_status": -1}',              'ended failed failed in 0 out 0'),
    ('{"outcome": "failed", "signal": "sunspots"}',                             'ended failed failed in 3 out 0 estimated'),
    ('{"outcome": "failed"}',                                                   'ended failed failed in 3 out 0 estimated'),
    ('{"outcome": "triumphant", "output": "1234"}',                             'ended failed failed in 3 out 1 estimated'),
    ('{"ttft_ms": 1e12, "latency_ms": 1e12, "usage": {"input": 1, "output": 1}}', 'ended succeeded succeeded in 1 out 1'),
    ('{"output": "", "tail": "", "message": null, "usage": {"input": 1, "output": 0}}', 'ended succeeded succeeded in 1 out 0'),
    ('{"surprise": {"a": [1]}, "usage": {"input": 1, "output": 1, "audio": 7}}', 'ended succeeded succeeded in 1 out 1')) v (result, expected);
select is_empty('select from ai.llm_calls where cost < 0', 'nothing on the books is worth less than nothing');
select is((t.generation((select generation_id from ai.llm_calls where status = 'failed' and error_class = 'unknown' limit 1))).error ->> 'class', 'unknown', 'what nobody knows is unknown');

-- Five attempts are five that were sent, however often the generation was handed back before
select t.start(:'w') as g \gset
-- Settles what is leased and claims again when its time comes; gives how often until it has ended, at most 10 times.
create function t.settle_again(p_worker uuid, p_id uuid, p_outcome text, p_more jsonb) returns integer language plpgsql as $$
declare
  v_times integer := 0;
begin
  while v_times < 10 and t.status(p_id) = 'running' loop
    perform t.settle(p_worker, p_id, (select l.attempt from ai.leases l where l.generation_id = p_id), p_outcome, p_more);
    perform t.pass('31 s');
    perform ai.worker_heartbeat(p_worker);
    perform t.claim(p_worker);
    v_times := v_times + 1;
  end loop;
  return v_times;
end
$$;
select is(t.settle_again(:'w', :'g', 'released', '{"sent": false}'), 10, 'handed back unsent it begins again');
select is((select attempt from ai.leases where generation_id = :'g'), 11::smallint, 'with another number');
select is(t.settle_again(:'w', :'g', 'failed', '{"signal": "http", "http_status": 503}'), 5, 'and has its five attempts');
select results_eq(format('select attempt from ai.llm_calls where generation_id = %L order by 1', :'g'), array[11, 12, 13, 14, 15]::smallint[], 'on the books');
select is((t.generation(:'g')).error ->> 'class', 'transient', 'and fails as the last of them');
select t.start(:'w') as g \gset
select t.settle_again(:'w', :'g', 'released', '{"sent": false}') \g /dev/null
select is(t.settle_again(:'w', :'g', 'released', '{"sent": true}'), 5, 'also where it is handed back half sent');

-- A model that was removed while its call ran: the end is kept all the same
insert into ai.models (provider_id, name, wire_name) select id, 'mtap/short-lived', 'x' from ai.providers where name = 'mtap-first';
select t.start(:'w', p_model => 'mtap/short-lived') as g \gset
delete from ai.models where name = 'mtap/short-lived';
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"output": "x"}'), 'ended', 'its model is gone, the answer is not');
select is((t.generation(:'g')).output, 'x', 'it is there');
select is((t.call(:'g', 1)).model, '(removed)', 'and on the books');

-- The sums meet
select is((select sum(cost) from ai.llm_calls), (select sum(cost) from ai.generations), 'books and generations agree to the last digit');

-- Ends are final, even for what has a lease by mistake
select t.start(:'w') as g \gset
update ai.generations set finished_at = now(), status = 'cancelled', output = 'kept' where id = :'g';
select t.settle(:'w', :'g', 1, 'succeeded', '{"output": "late"}') \g /dev/null
select is((t.generation(:'g')).output, 'kept', 'what has ended is not written again');
select is(t.place(:'g'), null, 'and its lease is gone');

select * from finish();
rollback;
