-- Streams: numbers without a gap, payloads that PostgreSQL takes, channels that nobody guesses.
begin;
\ir setup/world.sql
select no_plan();
select t.worker('one') as w, t.worker('two') as other \gset
create function t.publish(p_worker uuid, p_id uuid, p_attempt integer, p_part integer, p_text text) returns text language sql as $$
  select coalesce((select 'stale' from ai.worker_publish(p_worker, jsonb_build_array(jsonb_build_object('id', p_id, 'attempt', p_attempt, 'part', p_part, 'text', p_text)))), 'taken')
$$;
create function t.events(p_id uuid) returns text language sql stable as $$
  select string_agg(seq || ':' || type || case when data = '' then '' else '=' || data end, ' ' order by seq) from ai.stream_events where generation_id = p_id
$$;
-- What a member reads of a stream.
create function t.reads(p_role text, p_id uuid, p_after integer default 0, p_wait integer default 0) returns table (seq integer, type text, data jsonb) language plpgsql as $$
begin
  execute format('set local session authorization %I', p_role);
  return query select * from ai.read_stream(p_id, p_after, p_wait);
  execute 'reset session authorization';
end
$$;

-- Numbers over a whole life: claim, deltas, a retry after text, a second attempt, a tail, the end
select t.ask(p_profile => 'mtap-route', p_stream => true) as g \gset
select is((select count(*) from t.reads('mtap_ann', :'g')), 0::bigint, 'what is queued has no events');
select count(*) from t.claim(:'w') \g /dev/null
select is(t.publish(:'w', :'g', 1, 1, 'Hel'), 'taken', 'a delta');
select is(t.publish(:'w', :'g', 1, 2, 'lo'), 'taken', 'another');
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "malformed", "output": "Hello!", "tail": "!"}'), 'requeued', 'an attempt that fails after text');
select count(*) from t.claim(:'w') \g /dev/null
select is(t.publish(:'w', :'g', 2, 1, 'Good'), 'taken', 'the second attempt numbers its parts anew');
select is(t.settle(:'w', :'g', 2, 'succeeded', '{"output": "Good day", "tail": " day", "finish_reason": "stop"}'), 'ended', 'the end');
select results_eq(format('select * from t.reads(%L, %L)', 'mtap_ann', :'g'), $$ values
  (1, 'running', '{}'::jsonb), (2, 'delta', '{"text": "Hel"}'), (3, 'delta', '{"text": "lo"}'), (4, 'delta', '{"text": "!"}'), (5, 'reset', '{"reason": "malformed"}'), (6, 'running', '{}'),
  (7, 'delta', '{"text": "Good"}'), (8, 'delta', '{"text": " day"}'), (9, 'end', '{"status": "succeeded", "finish_reason": "stop"}') $$, 'every event once, in order, without a gap');
select is((select string_agg(data ->> 'text', '' order by seq) from t.reads('mtap_ann', :'g', 5) where type = 'delta'), (t.generation(:'g')).output, 'the text after the last reset is the answer');
select results_eq(format('select seq from t.reads(%L, %L, 6)', 'mtap_ann', :'g'), array[7, 8, 9], 'reading on from a number');
select is_empty(format('select * from t.reads(%L, %L, 9)', 'mtap_ann', :'g'), 'nothing after the end');
select is_empty(format('select * from t.reads(%L, %L, 2147483647)', 'mtap_ann', :'g'), 'nor after any number');
select is((select count(*) from t.reads('mtap_ann', :'g', -1)), 9::bigint, 'a negative number is the beginning');
select is((t.generation(:'g')).last_seq, 9, 'the generation knows the last number');

-- Without stream: only its retries and its end
select t.ask() as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select is(t.publish(:'w', :'g', 1, 1, 'unasked'), 'taken', 'a delta of what does not stream is ignored');
select is(t.events(:'g'), null, 'it is not stored');
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"output": "x", "tail": "x"}'), 'ended', 'its end');
select results_eq(format('select seq, type from t.reads(%L, %L)', 'mtap_ann', :'g'), $$ values (1, 'end') $$, 'is its first event');

-- Ends that no worker brought have a number, too
select t.ask(p_stream => true) as g \gset
set local session authorization mtap_ann;
select ai.cancel(:'g') \g /dev/null
reset session authorization;
select results_eq(format('select * from t.reads(%L, %L)', 'mtap_ann', :'g'), $$ values (1, 'end', '{"error": {"class": "cancelled", "message": "cancelled before it was sent"}, "status": "cancelled"}'::jsonb) $$,
                  'a cancelled one');

-- The fence of deltas
select t.ask(p_stream => true) as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select is(t.publish(:'other', :'g', 1, 1, 'x'), 'stale', 'a delta of another worker');
select is(t.publish(:'w', :'g', 2, 1, 'x'), 'stale', 'of another attempt');
select is(t.publish(:'w', gen_random_uuid(), 1, 1, 'x'), 'stale', 'of nothing');
select is(t.publish(:'w', :'g', 1, 1, ''), 'taken', 'an empty delta');
select is(t.publish(:'w', :'g', 1, 1, null), 'taken', 'a delta without text');
select is(t.events(:'g'), '1:running', 'none of them is stored');
select is(t.publish(:'w', :'g', 1, 1, 'once'), 'taken', 'a delta');
select is(t.publish(:'w', :'g', 1, 1, 'once'), 'taken', 'and the same again, because its worker did not hear that it was taken');
select is(t.publish(:'w', :'g', 1, 2, 'twice'), 'taken', 'the next');
select is(t.publish(:'w', :'g', 1, 1, 'once'), 'taken', 'and an old one');
select is(t.events(:'g'), '1:running 2:delta=once 3:delta=twice', 'each is there once');
select throws_ok(format('select * from ai.worker_publish(%s, %s)', w, d), 'PT400', null, format('worker %s, deltas %s', w, d))
  from (values ('null', '''[]'''), (quote_literal(:'w'), 'null'), (quote_literal(:'w'), '''{}'''), (quote_literal(:'w'), '''"x"''')) v (w, d);
select is_empty(format('select * from ai.worker_publish(%L, ''[]'')', :'w'), 'no deltas at all');
-- many generations in one call
select t.ask(p_stream => true) as a, t.ask(p_stream => true) as b \gset
select count(*) from t.claim(:'w') \g /dev/null
select results_eq(format($$ select generation_id from ai.worker_publish(%L, jsonb_build_array(jsonb_build_object('id', %L, 'attempt', 1, 'part', 1, 'text', 'a'),
  jsonb_build_object('id', %L, 'attempt', 9, 'part', 1, 'text', 'stale'), jsonb_build_object('id', %L, 'attempt', 1, 'part', 1, 'text', 'b'))) $$, :'w', :'a', :'g', :'b'),
  array[:'g'::uuid], 'of a batch the stale ones are named');
select is(t.events(:'a') || ' ' || t.events(:'b'), '1:running 2:delta=a 1:running 2:delta=b', 'and the others taken');

-- A long stream is read by the thousand
select t.ask(p_stream => true) as g \gset
select count(*) from t.claim(:'w') \g /dev/null
do $$ begin
  for v_part in 1 .. 2500 loop
    perform t.publish((select worker_id from ai.leases order by claimed_at desc limit 1), (select generation_id from ai.leases order by generation_id desc limit 1), 1, v_part, v_part || ' ');
  end loop;
end $$;
select t.settle(:'w', :'g', 1, 'succeeded', '{"output": "much"}') \g /dev/null
create table t.pages as
with recursive page (n, last, seqs) as (
  select 1, max(seq), array_agg(seq order by seq) from t.reads('mtap_ann', :'g')
  union all
  select p.n + 1, r.last, r.seqs from page p cross join lateral (select max(seq) as last, array_agg(seq order by seq) as seqs from t.reads('mtap_ann', :'g', p.last)) r
   where p.last is not null and p.n < 10
) select * from page;
select is((select array_agg(cardinality(seqs) order by n) from t.pages where seqs is not null), array[1000, 1000, 502], 'pages of a thousand');
select is((select array_agg(s order by n, s) from t.pages cross join lateral unnest(seqs) s), array(select generate_series(1, 2502)), 'every event on one page');
select is((select type from t.reads('mtap_ann', :'g', 2501)), 'end', 'the end is the last');
select is((select count(*) from t.reads('mtap_ann', :'g', 1501) where type = 'end'), 0::bigint, 'a full page before it does not bring it along');
select is((select count(*) from t.reads('mtap_ann', :'g', 1502) where type = 'end'), 1::bigint, 'the page with room for it does');

-- Waiting
select throws_ok(format('select * from ai.read_stream(%L, %s, %s)', :'g', a, w), 'PT401', null, 'nobody waits for nothing') from (values (0, 0)) v (a, w);
set local session authorization mtap_ann;
select throws_ok(format('select * from ai.read_stream(%L, %s, %s)', :'g', a, w), 'PT400', null, format('after %s, wait %s', a, w))
  from (values ('0', '-1'), ('0', '30001'), ('0', 'null'), ('null', '0')) v (a, w);
reset session authorization;
select is((select count(*) from t.reads('mtap_ann', :'g', 2500, 30000)), 2::bigint, 'what is there is given at once');
select t.ask(p_stream => true) as g \gset
select is((select count(*) from t.reads('mtap_ann', :'g', 0, 50)), 0::bigint, 'what does not come is not waited for without end');

-- Payloads: any text, below 8,000 bytes, whole or marked
select round(random()::numeric, 6) as seed \gset
select diag('setseed(' || :seed || ')');
select setseed(:seed) \g /dev/null
create table t.texts as
select n, string_agg(case floor(random() * 8)::int
                       when 0 then chr(32 + floor(random() * 95)::int)
                       when 1 then chr(1 + floor(random() * 31)::int)          -- control characters: six bytes each in JSON
                       when 2 then '"' when 3 then '\'
                       when 4 then chr(128512 + floor(random() * 79)::int)     -- emoji: four bytes
                       when 5 then chr(19968 + floor(random() * 20000)::int)   -- Han: three
                       when 6 then chr(8192 + floor(random() * 48)::int)       -- invisible ones, separators, directions
                       else chr(127 + floor(random() * 1000)::int) end, '' order by i) as text
  from (select n, floor(random() ^ 2 * 5000)::int as size from generate_series(1, 600) n) s cross join lateral generate_series(1, s.size) i group by n;
create table t.payloads as select x.n, x.text, ai.event_payload('0a000000-0000-7000-8000-000000000001', 2147483647, 'delta', jsonb_build_object('text', x.text)) as payload from t.texts x;
select ok((select count(*) from t.payloads where payload::jsonb ? 'more') between 50 and 550, 'texts of both kinds: such as fit and such as do not');
select is_empty('select n from t.payloads where octet_length(payload) >= 8000', 'every payload is below 8,000 bytes');
select is_empty($$ select n from t.payloads where not payload::jsonb ? 'more' and payload::jsonb ->> 'text' is distinct from text $$, 'a text that fits arrives as it was');
select is_empty($$ select n from t.payloads where payload::jsonb ? 'more' and (payload::jsonb ? 'text' or not payload::jsonb ?& array['id', 'seq', 'type']) $$,
                'one that does not is announced without, to be read');
select is_empty($$ select n from t.payloads where payload::jsonb ? 'more' and octet_length(jsonb_build_object('text', text)::text) < 7700 $$, 'and only such as would not fit');
select lives_ok('select pg_notify(''mtap'', payload) from t.payloads', 'PostgreSQL takes all of them');
-- at the border, byte by byte
select is_empty($$ select n from generate_series(7700, 8100) n where octet_length(ai.event_payload(gen_random_uuid(), 1, 'delta', jsonb_build_object('text', repeat('x', n)))) > 7999 $$,
                'no length slips through');
-- through the whole path
select count(*) from t.claim(:'w') \g /dev/null
select t.publish(:'w', :'g', 1, n::integer, text) from (select row_number() over (order by n) as n, text from t.texts where length(text) > 0 limit 100) x \g /dev/null
select is((select string_agg(data ->> 'text', '' order by seq) from t.reads('mtap_ann', :'g') where type = 'delta'),
          (select string_agg(text, '' order by n) from (select n, text from t.texts where length(text) > 0 order by n limit 100) x), 'what was published is what is read');
select is(t.settle(:'w', :'g', 1, 'succeeded', jsonb_build_object('output', 'x', 'tail', repeat(E'\x01😀"', 100000), 'finish_reason', repeat('long', 5000))), 'ended', 'a tail and a finish_reason of any length');

-- Channels
select throws_ok('select ai.subscribe(null)', 'PT401', null, 'nobody has a channel');
create function t.channel(p_role text, p_id uuid default null) returns text language plpgsql as $$
declare
  v_channel text;
begin
  execute format('set local session authorization %I', p_role);
  v_channel := case when p_id is null then ai.subscribe() else ai.subscribe(p_id) end;
  execute 'reset session authorization';
  return v_channel;
end
$$;
select t.ask() as g1, t.ask() as g2, t.ask(p_user => 'abe') as g3, t.ask(p_tenant => t.beta(), p_user => 'bob') as g4 \gset
insert into ai.members (tenant_id, user_id) values (t.beta(), 'ann');
create role mtap_ann_of_beta login in role ai_user;
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_ann_of_beta', t.beta(), 'ann');
select is((select count(distinct c) from unnest(array[t.channel('mtap_ann', :'g1'), t.channel('mtap_ann', :'g2'), t.channel('mtap_abe', :'g3'), t.channel('mtap_bob', :'g4'), t.channel('mtap_ann'),
  t.channel('mtap_abe'), t.channel('mtap_bob'), t.channel('mtap_ann_of_beta')]) c), 8::bigint, 'each generation, user and tenant has a channel of its own');
select is(t.channel('mtap_dev', :'g1'), t.channel('mtap_ann', :'g1'), 'all who may see a generation have the same');
select is(t.channel('mtap_ann', :'g1'), t.channel('mtap_ann', :'g1'), 'a channel does not change');
set local session authorization mtap_ann;
insert into ai.generations (prompt, model) values ('Who listens?', 'mtap/one') returning id as g, ai.subscribe(id) as channel \gset
select is(ai.subscribe(:'g'), :'channel', 'an insert may return the channel of its row');
reset session authorization;
select ok(t.channel('mtap_ann', :'g1') ~ '^ai_[0-9a-f]{40}$', 'a name with 160 bits nobody knows');
select isnt(t.channel('mtap_ann', :'g1'), 'ai_' || left(encode(sha256(uuid_send(t.alpha()) || uuid_send(:'g1')), 'hex'), 40), 'that do not follow from what one knows');
select t.channel('mtap_ann', :'g1') as before, t.channel('mtap_ann') as mine \gset
update ai.realtime_key set key = sha256(key);
select isnt(t.channel('mtap_ann', :'g1'), :'before', 'another key, another channel');
select isnt(t.channel('mtap_ann'), :'mine', 'for members, too');
select is(octet_length((select key from ai.realtime_key)), 32, 'a key of 256 bits');
select lives_ok(format('listen %I', t.channel('mtap_ann')), 'the name is one that LISTEN takes');

select * from finish();
rollback;
