-- The frame of the pipeline: what waits for what, what a cache answers, who follows whom, and that nothing is left behind.
begin;
\ir setup/world.sql
select no_plan();

delete from ai.breaker_settings;
insert into ai.cache_policies (tenant_id, kind, exact, semantic, scope, vector_model) values (t.alpha(), 'chat', true, true, 'member', 'mtap/embed');
insert into ai.prices (model_id, rates, valid_from) select id, '{"input": 1, "output": 2}', now() - interval '1 day' from ai.models where name = 'mtap/unpriced';

create function t.claim_one(p_worker uuid) returns uuid language sql as $$ select id from t.claim(p_worker, 1) $$;
-- Claims and settles what is queued, one after the other, until nothing is: chats with an answer, embeddings with a vector.
create function t.work(p_worker uuid, p_answer text default 'Because.', p_vector text default '[1, 0, 0]', p_outcome text default 'succeeded') returns integer
language plpgsql as $$
declare
  v_one   record;
  v_count integer := 0;
begin
  for v_round in 1 .. 20 loop
    for v_one in select c.id, c.attempt, g.kind from t.claim(p_worker) c join ai.generations g on g.id = c.id loop
      perform t.settle(p_worker, v_one.id, v_one.attempt, p_outcome,
        case when p_outcome <> 'succeeded' then '{"signal": "http", "http_status": 400}'
             when v_one.kind = 'embedding' then jsonb_build_object('embedding', p_vector::jsonb, 'usage', '{"input": 5, "output": 0}'::jsonb)
             else jsonb_build_object('output', p_answer, 'message', jsonb_build_object('role', 'assistant', 'content', p_answer), 'finish_reason', 'stop',
                                     'usage', '{"input": 10, "output": 4}'::jsonb) end);
      v_count := v_count + 1;
    end loop;
    exit when not found;
  end loop;
  return v_count;
end
$$;
-- What belongs to a generation and must be gone once everything has ended.
create function t.leftovers() returns text language sql as $$
  select coalesce(string_agg(place || ' ' || n, ', '), 'nothing') from (
    select 'queue' as place, count(*) as n from ai.queue union all select 'delayed', count(*) from ai.delayed union all select 'leases', count(*) from ai.leases
    union all select 'waiting', count(*) from ai.waiting union all select 'prepared', count(*) from ai.prepared
    union all select 'cancellations', count(*) from ai.cancellations) p where n > 0
$$;
select t.worker() as w, t.worker('second') as w2 \gset

-- A question whose vector is wanted waits for it.
select t.ask('Why is the sky blue?') as q \gset
select is(t.place(:'q'), null, 'a generation that waits is in no queue');
select is((select count(*) from ai.waiting where generation_id = :'q'), 1::bigint, 'it waits for one other');
select is((c.kind, c.purpose, c.user_id, c.prompt, c.model, c.status)::text, '(embedding,query,ann,"Why is the sky blue?",mtap/embed,queued)', 'which embeds its question, for the same member')
  from ai.generations c where c.parent_id = :'q';
select is((select c.id from ai.generations c where c.parent_id = :'q'), (t.generation(:'q')).query_id, 'and is known by query_id');
select is((select count(*) from ai.requeue_orphans('1 day') o where o > 0), 0::bigint, 'what waits is no orphan');
select is(t.work(:'w'), 2, 'the vector, then the answer');
select is((t.status(:'q'), (t.generation(:'q')).output)::text, '(succeeded,Because.)', 'it is answered');
select is(t.leftovers(), 'nothing', 'and nothing is left of it');
select is((select count(*) from ai.llm_calls c join ai.generations g on g.id = c.generation_id where g.id = :'q' or g.parent_id = :'q'), 2::bigint, 'both calls are on the books');

-- The exact cache answers in the insert.
select t.ask('Why is the sky blue?') as hit \gset
select is((g.status, g.cached, g.output, g.cost, g.saved, g.attempts, g.last_seq)::text, format('(succeeded,t,Because.,0,%s,0,1)', (t.generation(:'q')).cost), 'the same question, in the insert') from ai.generations g where g.id = :'hit';
select is((c.attempt, c.status, c.cost, c.cache, c.saved)::text, format('(0,succeeded,0,exact,%s)', (t.generation(:'q')).cost), 'booked as a call that cost nothing') from ai.llm_calls c where c.generation_id = :'hit';
select is(t.leftovers(), 'nothing', 'no worker is needed');
select t.ask('Why is the sky blue?', p_stream => true) as streamed \gset
set local session authorization mtap_ann;
select results_eq(format('select seq, type, data ->> %L from ai.read_stream(%L)', 'text', :'streamed'), $$ values (1, 'delta', 'Because.'), (2, 'end', null) $$, 'a stream has its text and its end');
reset session authorization;
select t.ask('Why is the sky blue?', p_user => 'abe') as abe, t.ask('Why is the sky blue?', p_tenant => t.beta(), p_user => 'bob') as bob,
       t.ask('Why is the sky blue?', p_run_after => now() + interval '1 hour') as later \gset
select is(t.status(:'abe'), 'queued', 'another member is asked for itself');
select is(t.status(:'bob'), 'queued', 'another tenant, too');
select is(t.status(:'later'), 'queued', 'who asks for later is not answered now');
set local session authorization mtap_ann;
select is(ai.cancel(:'later'), 'cancelled', 'it is cancelled');
reset session authorization;
select t.ask('What of tomorrow?', p_run_after => now() + interval '1 hour') as tomorrow \gset
select is(t.place((t.generation(:'tomorrow')).query_id), 'delayed', 'the vector of a later question is made later');
set local session authorization mtap_ann;
select is(ai.cancel(:'tomorrow'), 'cancelled', 'it is cancelled');
reset session authorization;
select is(t.status((t.generation(:'tomorrow')).query_id), 'cancelled', 'and with it what was asked for it alone');
select t.work(:'w') \g /dev/null
insert into ai.generations (tenant_id, user_id, status, prompt, model, cached, finished_at, created_at) values (t.alpha(), 'ann', 'succeeded', 'restored', 'mtap/one', true, now() - interval '1 day', now() - interval '1 day') returning id as restored \gset
select is((select count(*) from ai.llm_calls where generation_id = :'restored'), 0::bigint, 'a restored hit is not booked again');

-- The semantic cache answers after the vector.
select t.ask('Why, then, is the sky blue?') as near \gset
select is(t.work(:'w', p_answer => 'Nobody should be asked this.'), 1, 'only the vector is asked for');
select is((g.status, g.cached, g.output)::text, '(succeeded,t,Because.)', 'the rest is in the cache') from ai.generations g where g.id = :'near';
select is((select string_agg(cache, ',') from ai.llm_calls where generation_id = :'near'), 'semantic', 'as a semantic hit');
select is((select count(*) from jsonb_array_elements((t.generation(:'near')).stages) s where s ->> 'stage' = 'cache'), 2::bigint, 'the stages say that both caches were asked');
select t.ask('How deep is the sea?') as far \gset
select is(t.work(:'w', p_answer => 'Deep.', p_vector => '[0, 1, 0]'), 2, 'what is far is asked for');
select is((t.generation(:'far')).output, 'Deep.', 'and answered by the model');

-- Without a vector it goes on.
select t.ask('What if the embedding fails?') as blind \gset
select ai.worker_claim(:'w', 10, null) \g /dev/null
select t.settle(:'w', (t.generation(:'blind')).query_id, 1, 'failed', '{"signal": "http", "http_status": 400}') \g /dev/null
select is(t.place(:'blind'), 'queue', 'a parent goes on although its child failed');
select is(t.work(:'w'), 1, 'and is asked without its vector');
select is(t.status(:'blind'), 'succeeded', 'and answered');

-- Cancelling, in each place.
select t.ask('To be cancelled while it waits') as c1 \gset
set local session authorization mtap_ann;
select is(ai.cancel(:'c1'), 'cancelled', 'what waits is cancelled at once');
reset session authorization;
select is((t.status(:'c1'), (select count(*) from ai.waiting))::text, '(cancelled,0)', 'and waits no longer');
select t.work(:'w') \g /dev/null
select is(t.status(:'c1'), 'cancelled', 'the end of its child changes nothing');
select is(t.leftovers(), 'nothing', 'nothing is left');
select t.ask('To be cancelled after its vector') as c2 \gset
select ai.worker_claim(:'w', 10, null) \g /dev/null
select t.settle(:'w', (t.generation(:'c2')).query_id, 1, 'succeeded', '{"embedding": [0, 0, 1]}') \g /dev/null
set local session authorization mtap_ann;
select is(ai.cancel(:'c2'), 'cancelled', 'queued again: cancelled at once');
reset session authorization;
select is(t.leftovers(), 'nothing', 'nothing is left of it');
select t.ask('To be cancelled while its vector is being made') as c3 \gset
select ai.worker_claim(:'w', 10, null) \g /dev/null
set local session authorization mtap_ann;
select is(ai.cancel(:'c3'), 'cancelled', 'its vector is being made: cancelled at once');
reset session authorization;
select results_eq(format('select generation_id from ai.worker_cancellations(%L)', :'w'), array[(t.generation(:'c3')).query_id], 'and the worker is told to abort what nobody waits for any more');
select t.settle(:'w', (t.generation(:'c3')).query_id, 1, 'cancelled') \g /dev/null
select is((t.status((t.generation(:'c3')).query_id), t.leftovers())::text, '(cancelled,nothing)', 'which ends, and nothing is left');
select t.ask('To be cancelled while the vector of its question is failing') as c4 \gset
select ai.worker_claim(:'w', 10, null) \g /dev/null
set local session authorization mtap_ann;
select ai.cancel(:'c4') \g /dev/null
reset session authorization;
select t.settle(:'w', (t.generation(:'c4')).query_id, 1, 'failed', '{"signal": "http", "http_status": 503}') \g /dev/null
select is((t.status((t.generation(:'c4')).query_id), t.leftovers())::text, '(cancelled,nothing)', 'and is not tried again where it fails');

-- The deadline of what waits.
select t.ask('Too late', p_deadline_ms => 1000) as late \gset
select t.pass('2 seconds');
select ok((ai.worker_maintain(:'w') ->> 'overdue')::int = 1, 'what waited too long is ended');
select is((t.status(:'late'), (t.generation(:'late')).error ->> 'code')::text, '(failed,PT504)', 'as failed, with the reason');
select t.work(:'w') \g /dev/null
select is(t.leftovers(), 'nothing', 'nothing is left of it either');

-- A worker dies with the child, and with the parent.
select t.ask('Whose worker dies') as orphaned \gset
select t.claim_one(:'w') \g /dev/null
select ai.worker_stop(:'w') \g /dev/null
select t.pass('1 minute');
select ai.worker_heartbeat(:'w2') \g /dev/null
select is(t.work(:'w2', p_vector => '[0.5, 0.5, 0.7]'), 2, 'another worker does both');
select is(t.status(:'orphaned'), 'succeeded', 'and it is answered');
select t.worker() as w \gset

-- Followers: the same question asked many times at once is asked of the provider once.
select t.ask('Asked by many', p_model => 'mtap/two') as lead, t.ask('Asked by many', p_model => 'mtap/two') as f1, t.ask('Asked by many', p_model => 'mtap/two', p_stream => true) as f2 \gset
select ai.worker_claim(:'w', 10, null) \g /dev/null
select t.settle(:'w', g.query_id, 1, 'succeeded', '{"embedding": [0.1, 0.9, 0.4]}') from ai.generations g where g.id in (:'lead', :'f1', :'f2') \g /dev/null
select is((select count(*) from t.claim(:'w')), 1::bigint, 'one of three is sent');
select generation_id as running from ai.leases \gset
select is((select count(*) from ai.waiting where for_id = :'running'), 2::bigint, 'the others wait for it');
select t.settle(:'w', :'running', 1, 'succeeded', '{"output": "Once.", "message": {"role": "assistant", "content": "Once."}, "finish_reason": "stop", "usage": {"input": 10, "output": 2}}') \g /dev/null
select results_eq(format('select status, output, cached from ai.generations where id in (%L, %L, %L) order by cached', :'lead', :'f1', :'f2'),
  $$ values ('succeeded', 'Once.', false), ('succeeded', 'Once.', true), ('succeeded', 'Once.', true) $$, 'all are answered, one of them by the provider');
select is((select string_agg(cache, ',' order by cache) from ai.llm_calls where generation_id in (:'lead', :'f1', :'f2') and cache is not null), 'coalesced,coalesced', 'the others on the books as coalesced');
select is(t.leftovers(), 'nothing', 'nothing is left');

-- A leader that fails promotes a follower.
select t.ask('Asked by many, in vain', p_model => 'mtap/two') as l1, t.ask('Asked by many, in vain', p_model => 'mtap/two') as l2, t.ask('Asked by many, in vain', p_model => 'mtap/two') as l3 \gset
select ai.worker_claim(:'w', 10, null) \g /dev/null
select t.settle(:'w', g.query_id, 1, 'succeeded', '{"embedding": [0.9, -0.9, 0.4]}') from ai.generations g where g.id in (:'l1', :'l2', :'l3') \g /dev/null
select is((select count(*) from t.claim(:'w')), 1::bigint, 'one of three is sent');
select generation_id as running from ai.leases \gset
select t.settle(:'w', :'running', 1, 'failed', '{"signal": "http", "http_status": 400}') \g /dev/null
select is(t.status(:'running'), 'failed', 'it fails');
select is((select count(*) from ai.queue), 2::bigint, 'and the others are queued again');
select is((select count(*) from t.claim(:'w')), 1::bigint, 'of whom one leads');
select generation_id as second from ai.leases \gset
set local session authorization mtap_ann;
select is(ai.cancel(:'second'), 'running', 'that one is cancelled');
reset session authorization;
select t.settle(:'w', :'second', 1, 'cancelled', '{"sent": true}') \g /dev/null
select is(t.work(:'w', p_answer => 'At last.'), 1, 'the last one is asked');
select is((select string_agg(status, ',' order by status) from ai.generations where id in (:'l1', :'l2', :'l3')), 'cancelled,failed,succeeded', 'each has its own end');
select is(t.leftovers(), 'nothing', 'nothing is left');

-- A follower is cancelled; the leader's worker dies.
select t.ask('Asked by two', p_model => 'mtap/two') as l1, t.ask('Asked by two', p_model => 'mtap/two') as l2 \gset
select ai.worker_claim(:'w', 10, null) \g /dev/null
select t.settle(:'w', g.query_id, 1, 'succeeded', '{"embedding": [-0.9, -0.1, 0.4]}') from ai.generations g where g.id in (:'l1', :'l2') \g /dev/null
select ai.worker_claim(:'w', 10, null) \g /dev/null
select generation_id as follower from ai.waiting \gset
set local session authorization mtap_ann;
select is(ai.cancel(:'follower'), 'cancelled', 'a follower is cancelled at once');
reset session authorization;
select ai.worker_stop(:'w') \g /dev/null
select t.pass('1 minute');
select ai.worker_heartbeat(:'w2') \g /dev/null
select is(t.work(:'w2', p_answer => 'Late.'), 1, 'the leader is asked again by another worker');
select is(t.leftovers(), 'nothing', 'nothing is left');

-- What was restored in an answer does not leave with the next turn of the conversation.
insert into ai.guardrails (tenant_id, name, scope, detector, action, restore) values (t.alpha(), 'mtap mail', 'input', 'email', 'redact', true);
select t.worker() as w \gset
set local session authorization mtap_ann;
select ai.start_conversation(model => 'mtap/one') as talk \gset
select ai.chat(:'talk', 'Write to ann@example.com, please.') as turn1 \gset
reset session authorization;
select ok(request::text not like '%ann@example.com%', 'the address is not sent') from t.claim(:'w') where id = :'turn1';
select t.settle(:'w', :'turn1', 1, 'succeeded', '{"output": "Written to [EMAIL_1].", "message": {"role": "assistant", "content": "Written to [EMAIL_1]."}, "finish_reason": "stop", "usage": {"input": 5, "output": 5}}') \g /dev/null
select is((t.generation(:'turn1')).output, 'Written to ann@example.com.', 'it is restored in the answer');
set local session authorization mtap_ann;
select ai.chat(:'talk', 'And again.') as turn2 \gset
reset session authorization;
select ok(request::text not like '%ann@example.com%', 'nor is it sent with the history') from t.claim(:'w') where id = :'turn2';
select t.settle(:'w', :'turn2', 1, 'succeeded', '{"output": "Done.", "finish_reason": "stop", "usage": {"input": 5, "output": 5}}') \g /dev/null
select is((select count(*) from ai.redactions), 0::bigint, 'and forgotten');
select is(t.leftovers(), 'nothing', 'nothing is left');
delete from ai.guardrails;

-- The kill switch.
update ai.settings set accepting = false;
select throws_ok($$ select t.ask('Is anybody there?') $$, 'PT503', null, 'switched off: refused');
update ai.settings set accepting = true;
select lives_ok($$ select t.ask('Is anybody there now?') $$, 'switched on: taken');
select t.worker() as w \gset
select t.work(:'w') \g /dev/null

-- Input that does not fit.
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, cache) values (t.alpha(), 'ann', 'x', 'sometimes') $$, 'PT400', null, 'no such cache');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, cache_tags) values (t.alpha(), 'ann', 'x', array(select 'tag' || n from generate_series(1, 21) n)) $$, 'PT400', null, '21 tags');
select lives_ok($$ insert into ai.generations (tenant_id, user_id, prompt, cache_tags, model) values (t.alpha(), 'ann', 'twenty tags', array(select 'tag' || n from generate_series(1, 20) n), 'mtap/one') $$, '20 tags');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, cache_tags) values (t.alpha(), 'ann', 'x', '{""}') $$, 'PT400', null, 'an empty tag');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, collection) values (t.alpha(), 'ann', 'x', 'nowhere') $$, 'PT404', null, 'no such collection');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, template) values (t.alpha(), 'ann', 'x', 'nothing') $$, 'PT404', null, 'no such template');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, conversation_id) values (t.alpha(), 'ann', 'x', gen_random_uuid()) $$, 'PT404', null, 'no such conversation');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, batch_id) values (t.alpha(), 'ann', 'x', gen_random_uuid()) $$, 'PT404', null, 'no such batch');
select throws_ok($$ insert into ai.generations (tenant_id, user_id, prompt, kind, collection) values (t.alpha(), 'ann', 'x', 'embedding', 'any') $$, 'PT400', null, 'an embedding has no collection');
select t.work(:'w') \g /dev/null

-- Slow searches: a claim prepares for 300 ms and leaves the rest to the next. What took longer than its budget says so.
savepoint slow;
create or replace function ai.assemble_prompt(p_tenant uuid, p_id uuid, p_vector vector, p_context_tokens integer, out messages jsonb, out sources jsonb, out stages jsonb, out degraded text)
language plpgsql volatile as $$ begin perform pg_sleep(0.4); messages := '[{"role": "user", "content": "slow"}]'; end $$;
insert into ai.prompt_templates (tenant_id, name, version, system) values (t.alpha(), 'mtap-slow', 1, 'You answer.');
insert into ai.generations (tenant_id, user_id, prompt, model, template, cache) select t.alpha(), 'ann', 'slow ' || n, 'mtap/one', 'mtap-slow', 'off' from generate_series(1, 3) n;
select is((select count(*) from t.claim(:'w')), 1::bigint, 'one of three slow ones is prepared and sent');
select is((select count(*) from ai.queue), 2::bigint, 'the others stay queued');
select ok(g.stages @> '[{"stage": "budget", "result": "over", "why": "database", "budget_ms": 300}]', 'and it says that it took too long') from ai.generations g where g.status = 'running';
select is((select count(*) from t.claim(:'w')), 1::bigint, 'the next claim takes the next');
rollback to slow;

-- One that cannot be prepared, whatever the reason, does not keep the others from being claimed; an answer that cannot be kept is an answer.
insert into ai.prompt_templates (tenant_id, name, version, system) values (t.alpha(), 'mtap-broken', 1, 'You answer.');
create or replace function ai.assemble_prompt(p_tenant uuid, p_id uuid, p_vector vector, p_context_tokens integer, out messages jsonb, out sources jsonb, out stages jsonb, out degraded text)
language plpgsql stable as $$ begin messages := (1 / 0)::text::jsonb; end $$;
create or replace function ai.write_caches(p_tenants uuid[], p_ids uuid[]) returns integer language plpgsql as $$ begin return 1 / 0; end $$;
insert into ai.generations (tenant_id, user_id, prompt, model, template, cache) values (t.alpha(), 'ann', 'poison', 'mtap/one', 'mtap-broken', 'off') returning id as poison \gset
select t.ask('An innocent question') as innocent \gset
set local client_min_messages = error;
select t.work(:'w', p_vector => '[0.3, -0.2, 0.9]') \g /dev/null
reset client_min_messages;
select is((t.status(:'poison'), (t.generation(:'poison')).error ->> 'sqlstate')::text, '(failed,22012)', 'what cannot be prepared fails, with its SQLSTATE');
select is(t.status(:'innocent'), 'succeeded', 'the other is answered, although its answer cannot be kept');
select is(t.leftovers(), 'nothing', 'nothing is left');

-- The books: what was asked, whatever became of it, is there once, and the sums agree.
select is((select count(*) from ai.generations where finished_at is null), 0::bigint, 'everything has ended');
select is_empty($$ select g.id from ai.generations g left join ai.llm_calls c on c.generation_id = g.id group by g.tenant_id, g.id, g.cost having g.cost is distinct from sum(c.cost) $$,
  'every generation costs what its calls cost');

select * from finish();
rollback;
