-- Caches from the insert to the books, by way of claims and settles.
begin;
\ir setup/world.sql
\ir setup/caching.sql
select no_plan();

insert into ai.cache_policies (tenant_id, semantic, vector_model, scope) values (t.alpha(), true, 'mtap/embed', 'tenant');
select t.worker() as w \gset
-- Claims and settles all there is, until nothing comes any more: embeddings as p_vector, chats as p_output. Gives how many
-- chats were sent.
create function t.work(p_worker uuid, p_output text, p_vector text default '[1,0,0]') returns integer language plpgsql as $$
declare
  v_one  record;
  v_sent integer := 0;
  v_any  boolean;
begin
  for v_round in 1 .. 20 loop
    v_any := false;
    for v_one in select c.*, g.kind from t.claim(p_worker) c join ai.generations g on g.id = c.id order by c.id loop
      v_any := true;
      v_sent := v_sent + (v_one.kind = 'chat')::integer;
      perform t.settle(p_worker, v_one.id, v_one.attempt, 'succeeded', case v_one.kind when 'chat' then jsonb_build_object('output', p_output, 'finish_reason', 'stop')
                else jsonb_build_object('embedding', p_vector::jsonb) end || '{"usage": {"input": 1000000, "output": 100000}}');
    end loop;
    exit when not v_any and not exists (select from ai.queue);
  end loop;
  return v_sent;
end
$$;

select t.put('{"prompt": "Where do martlets land?"}') as a \gset
select is(t.work(:'w', 'Nowhere.'), 1, 'the first question is sent');
select is((t.generation(:'a')).output, 'Nowhere.', 'and answered');
select is((select array_agg(s ->> 'result') from jsonb_array_elements((t.generation(:'a')).stages) s where s ->> 'stage' = 'cache'), array['miss', 'semantic miss'], 'the stages say that both caches were asked');
select is((select count(*) from ai.cache_questions), 1::bigint, 'it is kept with its vector');
select t.put('{"prompt": "Where does a martlet land?", "user_id": "abe"}') as b \gset
select is(t.work(:'w', 'Not this.', '[1,0.01,0]'), 0, 'nearly the same question is not');
select is(g.status || '/' || g.output || '/' || g.cached || '/' || g.cost || '/' || g.saved, 'succeeded/Nowhere./true/0/4.5', 'it has the answer of the first') from t.generation(:'b') g;
select is((select s ->> 'result' from jsonb_array_elements((t.generation(:'b')).stages) s where s ? 'similarity'), 'semantic hit', 'by its meaning');
select is((select c.cache || '/' || c.cost || '/' || c.saved from ai.llm_calls c where c.generation_id = :'b'), 'semantic/0/4.5', 'as the books say');
select is((select count(*) from ai.cache_entries), 1::bigint, 'what came from the cache is not kept again');
select t.put('{"prompt": "What does a martlet eat?"}') as c \gset
select is(t.work(:'w', 'Air.', '[0,1,0]'), 1, 'another question is sent');

-- Many who ask nearly the same at the same time, of whom the leader is answered by the semantic cache
create temporary table crowd as select i, t.put('{"prompt": "Do martlets ever land?"}') as id from generate_series(1, 5) i;
select is(t.work(:'w', 'Not this.', '[1,0.02,0]'), 0, 'a crowd is answered without a call');
select is((select string_agg(distinct concat_ws('/', g.status, g.output), ',') from crowd join ai.generations g using (id)), 'succeeded/Nowhere.', 'all of them');
select is((select count(*) from ai.waiting), 0::bigint, 'nobody waits for what has ended');
create temporary table others as select i, t.put('{"prompt": "Why have they no feet?"}') as id from generate_series(1, 5) i;
select is(t.work(:'w', 'Heraldry.', '[0,0,1]'), 1, 'of another crowd one is sent');
select is((select string_agg(distinct concat_ws('/', g.status, g.output), ',') from others join ai.generations g using (id)), 'succeeded/Heraldry.', 'and all are answered');
select is((select count(*) from ai.waiting), 0::bigint, 'nobody waits');

-- The question cannot be embedded
select t.put('{"prompt": "unembeddable"}') as u \gset
select t.settle(:'w', c.id, c.attempt, 'failed', '{"signal": "http", "http_status": 400}') from t.claim(:'w') c
\g /dev/null
select is(t.work(:'w', 'Anyway.'), 1, 'it is sent all the same');
select is((t.generation(:'u')).output, 'Anyway.', 'and answered');
select is(t.cached('{"prompt": "unembeddable"}'), true, 'and kept for the exact cache');

-- A hit consumes no limit and needs no worker
select is(t.cached('{"prompt": "Where do martlets land?", "stream": true}'), true, 'the same question again is answered in the INSERT');
select is((select count(*) from ai.queue), 0::bigint, 'nothing is queued');
select ai.worker_stop(:'w') \g /dev/null
select is(t.cached('{"prompt": "Where do martlets land?"}'), true, 'with no worker at all');

-- Templates and collections take part by their versions, which the insert finds
select is((select sum(c.saved) from ai.llm_calls c where c.tenant_id = t.alpha() and c.cache is not null), (select sum(g.saved) from ai.generations g where g.tenant_id = t.alpha() and g.cached), 'what the books say was saved is what the rows say');

select * from finish();
rollback;
