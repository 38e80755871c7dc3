-- An answer that leaves nothing to decide has a statement of its own (sql/65_settle_answers.sql). It writes exactly what the
-- statement for everything writes: both are given the same results here, and what they leave behind is compared.
begin;
\ir setup/world.sql
select no_plan();
select t.worker('one') as w \gset
insert into ai.models (provider_id, name, wire_name)
select id, 'mtap/priceless', 'p' from ai.providers where name = 'mtap-first';
insert into ai.models (provider_id, name, wire_name, kind)
select id, 'mtap/vectors', 'v', 'embedding' from ai.providers where name = 'mtap-first';
set local timezone = 'UTC';

-- Everything that a settlement can write, but for what the two are compared by: names of rows as they are.
create function t.written(p_ids uuid[]) returns jsonb language sql stable as $$
  select jsonb_build_object(
    'generations', (select jsonb_agg(to_jsonb(g) order by g.id) from ai.generations g where g.id = any (p_ids)),
    'books', (select jsonb_agg(to_jsonb(c) order by c.generation_id, c.attempt) from ai.llm_calls c where c.generation_id = any (p_ids)),
    'events', (select jsonb_agg(to_jsonb(e) - 'created_at' order by e.generation_id, e.seq) from ai.stream_events e where e.generation_id = any (p_ids)),
    'leases', (select count(*) from ai.leases l where l.generation_id = any (p_ids)))
$$;
-- What one of the two leaves behind, and gives; all of it is rolled back.
create function t.by(p_way text, p_worker uuid, p_results jsonb) returns jsonb language plpgsql as $$
declare
  v_ids uuid[] := array(select (r ->> 'id')::uuid from jsonb_array_elements(p_results) r order by 1);
  v_out record;
  v_all jsonb;
begin
  begin
    if p_way = 'answers' then
      select * into v_out from ai.settle_answers(p_worker, p_results, v_ids[1], v_ids[cardinality(v_ids)], ai.now(), true);
    else
      select * into v_out from ai.settle_attempts(p_worker, p_results, ai.now());
    end if;
    v_all := t.written(v_ids) || jsonb_build_object(
      'ids', (select jsonb_agg(i order by i) from unnest(v_out.ids) i), 'reserved', v_out.reserved,
      'ended', (select jsonb_agg(i order by i) from unnest(v_out.ended_ids) i), 'ended of', (select jsonb_agg(i order by i) from unnest(v_out.ended_tenants) i),
      'seen', (select jsonb_agg(jsonb_strip_nulls(s) order by s ->> 'generation_id') from jsonb_array_elements(v_out.seen) s));
    raise exception using errcode = 'MT001';
  exception when sqlstate 'MT001' then
    return jsonb_set(v_all, '{reserved}', coalesce((select jsonb_agg(r - 'generation_id' order by r) from jsonb_array_elements(nullif(v_all -> 'reserved', 'null')) r), 'null'));
  end;
end
$$;

-- Answers of every sort, from a seed that is printed.
select coalesce(nullif(current_setting('martlet.seed', true), ''), (extract(epoch from clock_timestamp())::bigint % 100000)::text) as seed \gset
select diag('martlet.seed=' || :'seed');
select setseed(:'seed'::numeric / 100000);
create function t.some(variadic p_of text[]) returns jsonb language sql volatile as $$ select p_of[1 + floor(random() * cardinality(p_of))::integer]::jsonb $$;
create function t.number() returns jsonb language sql volatile as $$
  select t.some('null', '0', '1', '7', '40', '1234', '2147483647', '2147483648', '99999999999999999999', '-3', '1.9', '"12"', 'true', '{}', 'null')
$$;
create table t.asked as
select t.ask(p_prompt => repeat('x', n % 50 + 1), p_model => (array['mtap/one', 'mtap/priceless', 'mtap/two', 'mtap/one'])[1 + n % 4], p_stream => n % 3 = 0) as id, n
  from generate_series(1, 60) n;
insert into t.asked
select t.ask(p_prompt => 'vector ' || n, p_model => 'mtap/vectors', p_kind => 'embedding'), n from generate_series(61, 66) n;
-- Some fail first, so that there are events, costs and an error from before.
select count(*) from t.claim(:'w', 100) \gset claimed_
select is(:claimed_count, 66, 'all are claimed');
select t.settle(:'w', id, 1, 'failed', '{"signal": "http", "http_status": 503, "usage": {"input": 3, "output": 1}}') from t.asked where n % 5 = 0;
update ai.delayed set due_at = ai.now() - interval '1 s' where generation_id in (select id from t.asked);
select count(*) from t.claim(:'w', 100);

create function t.results(p_from integer, p_to integer) returns jsonb language sql volatile as $$
  select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
    'id', l.generation_id, 'attempt', l.attempt, 'outcome', 'succeeded', 'sent', true,
    'output', t.some('null', '""', '"Because."', '"Because it is \u00e4 \u20ac \"quoted\" \\ text"', to_jsonb(repeat('long ', 300))::text),
    'tail', t.some('null', '""', '"cause."'), 'message', t.some('null', '{"role": "assistant", "content": "Because."}'),
    'embedding', case when a.n > 60 then '[0.5, -1, 2.25]'::jsonb end,
    'finish_reason', t.some('null', '"stop"', '"length"', '"q\"uote"'), 'model', t.some('null', '"one-2026"'), 'service_tier', t.some('null', '"default"'),
    'request_id', t.some('null', '"req_1"'), 'http_status', t.some('null', '200', '99', '1000', '201'), 'dropped', t.some('null', '["seed", "n"]'),
    'ttft_ms', t.some('null', '12.6', '0', '99999999999'), 'latency_ms', t.some('null', '34.4', '0', '99999999999')))
    || jsonb_strip_nulls(jsonb_build_object('usage', case when random() < 0.8 then jsonb_build_object('input', t.number(), 'output', t.number(), 'cache_read', t.number(),
         'cache_write', t.number(), 'cache_write_1h', t.number(), 'reasoning', t.number()) end)))
    from ai.leases l join t.asked a on a.id = l.generation_id where a.n between p_from and p_to
$$;
select is(t.by('answers', :'w', r.results), t.by('attempts', :'w', r.results), 'both write and give the same, round ' || n)
  from (select n, t.results(1, 66) as results from generate_series(1, 8) n offset 0) r;
select t.results(1, 66) as results \gset
select isnt(t.by('answers', :'w', :'results') -> 'books', 'null', 'the books are written');
select is(jsonb_array_length(t.by('answers', :'w', :'results') -> 'ids'), (select count(*)::integer from ai.leases l join t.asked a on a.id = l.generation_id), 'every answer is taken');
select is((t.by('answers', null, :'results') -> 'books'), (t.by('attempts', null, :'results') -> 'books'), 'also where the lease may be anybody''s');
select is(t.by('answers', t.worker('two'), :'results') -> 'ids', 'null', 'and nothing of another worker''s');

-- What leaves something to decide is passed over.
select r as one from jsonb_array_elements(:'results') r join t.asked a on a.id = (r ->> 'id')::uuid and a.n = 4 \gset
select is(t.by('answers', :'w', jsonb_build_array(:'one'::jsonb || more::jsonb)) -> 'ids', 'null', 'passed over: ' || more)
  from (values ('{"outcome": "failed", "signal": "connect"}'), ('{"outcome": "cancelled"}'), ('{"outcome": "released"}'), ('{"outcome": null}'), ('{"outcome": "superb"}'),
               ('{"signal": "cut"}'), ('{"error_code": "x"}'), ('{"error_type": "x"}'), ('{"embeddings": []}'), ('{"sealed": {}}'), ('{"files": []}'),
               ('{"usage": {"input": 1, "units": {"images": 1}}}'), ('{"attempt": 7}')) v (more);
create function t.with_lease(p_change text, p_worker uuid, p_one jsonb) returns jsonb language plpgsql as $$
declare
  v_all jsonb;
begin
  execute replace(p_change, '$id', quote_literal(p_one ->> 'id'));
  v_all := t.by('answers', p_worker, jsonb_build_array(p_one));
  raise exception using errcode = 'MT002', message = coalesce(v_all ->> 'ids', 'none');
exception when sqlstate 'MT002' then
  return to_jsonb(sqlerrm);
end
$$;
select is(t.with_lease('select 1', :'w', :'one') ->> 0, format('["%s"]', :'one'::jsonb ->> 'id'), 'the same, unchanged, is taken');
select is(t.with_lease(change, :'w', :'one') ->> 0, 'none', 'passed over: ' || change)
  from (values ('update ai.leases set held = true where generation_id = $id'), ('update ai.leases set step = 0 where generation_id = $id'),
               ('update ai.leases set capture = ''metadata'' where generation_id = $id'), ('update ai.leases set batched = true where generation_id = $id'),
               ('insert into ai.cancellations (generation_id, tenant_id) select $id, t.alpha()'), ('set local session_replication_role = replica; update ai.prices set rates = rates || ''{"images": 1}''')) v (change);

-- Both in one batch, with what is stale: each has its own answer, in one call.
select is((select string_agg(s.result, ' ' order by s.result) from ai.worker_settle(:'w',
  :'results'::jsonb || jsonb_build_array(jsonb_build_object('id', gen_random_uuid(), 'attempt', 1, 'outcome', 'succeeded'))) s),
  (select string_agg('ended', ' ') || ' stale' from jsonb_array_elements(:'results')), 'a batch with a stale one');

select * from finish();
rollback;
