-- The exact cache: keys, policies, what is never kept, scopes, time, refreshing, invalidating, who may do what.
begin;
\ir setup/world.sql
\ir setup/caching.sql
select no_plan();

-- No policy, no cache
select is(t.key('{}'), null, 'without a policy nothing has a key');
select is((t.find('{}')).stage, null, 'nor a stage');
select t.keep(t.put('{}'), 'kept?') \g /dev/null
select is((select count(*) from ai.cache_entries), 0::bigint, 'and nothing is kept');

insert into ai.cache_policies (tenant_id) values (t.alpha());
select is(octet_length(t.key('{}')), 32, 'with one there is a key');
select is((t.find('{}')).stage ->> 'result', 'miss', 'and a stage that says miss');
select is((t.find('{}')).vector_model, null, 'no vector is wanted by a policy that is not semantic');
select is(t.key('{"tenant": "beta", "user_id": "bob"}'), null, 'another tenant has no part in it');

-- What shapes the answer changes the key
select is(t.key('{}'), t.key('{}'), 'the same has the same key');
select isnt(t.key(v::jsonb), t.key('{}'), format('another key: %s', v))
  from unnest(array['{"prompt": "why?"}', '{"prompt": "Why? "}', '{"prompt": " Why?"}', '{"prompt": "Why?\n"}', '{"model": "mtap/two"}', '{"model": null, "profile": "mtap-route"}',
    '{"params": {"temperature": 0}}', '{"params": {"seed": 1}}', '{"params": {"max_tokens": 10}}', '{"template": "x"}', '{"template": "x", "template_version": 1}',
    '{"collection": "x"}', '{"user_id": "abe"}', '{"kind": "embedding"}', '{"prompt": null, "messages": [{"role": "user", "content": "Why?"}]}']) v;
select isnt(t.key('{"template": "x", "template_version": 1}'), t.key('{"template": "x", "template_version": 2}'), 'so does a template''s version');
select isnt(t.key('{"prompt": null, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}'),
            t.key('{"prompt": null, "messages": [{"role": "system", "content": "Be long."}, {"role": "user", "content": "Why?"}]}'), 'a system message');
select isnt(t.key('{"prompt": null, "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}'),
            t.key('{"prompt": null, "messages": [{"role": "user", "content": "b"}, {"role": "user", "content": "a"}]}'), 'the order of messages');
select is(t.key('{"params": {"seed": 1, "temperature": 0}}'), t.key('{"params": {"temperature": 0, "seed": 1}}'), 'the order of parameters does not');
-- Values that look alike when they are joined carelessly
select is(count(distinct t.key(v::jsonb)), count(*), 'nothing can be moved from one column into another')
  from unnest(array['{"template": "ab", "collection": "c"}', '{"template": "a", "collection": "bc"}', '{"template": "abc"}', '{"collection": "abc"}',
    '{"template": "a", "template_version": 1}', '{"template": "a1"}', '{"template": "null"}', '{}']) v;
-- What does not shape it does not
select is((t.asked(v::jsonb)).cache_key, t.key('{}'), format('the same key: %s', v))
  from unnest(array['{}', '{"metadata": {"a": 1}}', '{"priority": "low"}', '{"stream": true}', '{"cache_tags": ["a"]}', '{"deadline_ms": 5000}', '{"idempotency_key": "k"}',
    '{"cache": "exact"}', '{"cache": "semantic"}', '{"cache": "refresh"}', '{"run_after": "2020-01-01"}', '{"replay": true}']) v;
-- Unicode
select is(t.key('{"prompt": "caf\u00e9"}'), t.key('{"prompt": "cafe\u0301"}'), 'é and e with an accent are the same text');
select is(t.key('{"prompt": "\u1112\u1161\u11ab"}'), t.key('{"prompt": "\ud55c"}'), 'a Hangul syllable and its letters, too');
select isnt(t.key('{"prompt": "\ufb01ne"}'), t.key('{"prompt": "fine"}'), 'a ligature is not the two letters');
select isnt(t.key('{"prompt": "\u0430"}'), t.key('{"prompt": "a"}'), 'a Cyrillic а is no Latin a');
select isnt(t.key('{"prompt": "a\u200bb"}'), t.key('{"prompt": "ab"}'), 'an invisible space is there');
select is(t.key('{"prompt": null, "messages": [{"role": "user", "content": "caf\u00e9"}]}'), t.key('{"prompt": null, "messages": [{"role": "user", "content": "cafe\u0301"}]}'), 'the same in messages');
select isnt(t.key(jsonb_build_object('prompt', repeat('é', 50001))), t.key(jsonb_build_object('prompt', repeat(E'e\u0301', 50001))), 'beyond 100,000 bytes a text is taken as it is');

-- What a model or a profile stands for
select t.key('{"model": null, "profile": "mtap-route"}') as before, t.key('{}') as named \gset
update ai.models set enabled = false where name = 'mtap/two';
select is(t.key('{"model": null, "profile": "mtap-route"}'), :'before', 'switching a target off does not change what a profile stands for');
update ai.models set enabled = true where name = 'mtap/two';
update ai.routes set model_id = t.model('mtap/unpriced') where profile = 'mtap-route' and position = 2;
select isnt(t.key('{"model": null, "profile": "mtap-route"}'), :'before', 'another target does');
update ai.routes set model_id = t.model('mtap/two') where profile = 'mtap-route' and position = 2;
insert into ai.routes (tenant_id, profile, kind, position, model_id) values (t.alpha(), 'mtap-route', 'chat', 1, t.model('mtap/two'));
select isnt(t.key('{"model": null, "profile": "mtap-route"}'), :'before', 'so does a route of the tenant''s own');
delete from ai.routes where tenant_id = t.alpha();
update ai.models set wire_name = 'one-wire-2' where name = 'mtap/one';
select isnt(t.key('{"model": null, "profile": "mtap-route"}'), :'before', 'so does another wire name');
select isnt(t.key('{}'), :'named', 'also of a named model');
update ai.models set wire_name = 'one-wire' where name = 'mtap/one';
update ai.providers set base_url = 'http://elsewhere.test/v1' where name = 'mtap-first';
select isnt(t.key('{}'), :'named', 'and another address of its provider');
update ai.providers set base_url = 'http://first.test/v1' where name = 'mtap-first';
select is(t.key('{}'), :'named', 'back as it was, the old answers are there again');

-- What may be let out
insert into ai.guardrails (tenant_id, name, scope, detector, action) values (t.alpha(), 'mtap input', 'input', 'email', 'flag');
select is(t.key('{}'), :'named', 'a rule for inputs changes nothing');
insert into ai.guardrails (tenant_id, name, scope, detector, action) values (t.beta(), 'mtap beta', 'output', 'email', 'redact');
select is(t.key('{}'), :'named', 'nor does another tenant''s for outputs');
insert into ai.guardrails (tenant_id, name, scope, detector, action) values (t.alpha(), 'mtap output', 'output', 'email', 'flag');
select isnt(t.key('{}'), :'named', 'after a new rule for outputs nothing is given that was kept before');
select t.key('{}') as flagging \gset
update ai.guardrails set action = 'redact' where name = 'mtap output';
select isnt(t.key('{}'), :'flagging', 'nor after it has changed');
delete from ai.guardrails where name like 'mtap %';
select is(t.key('{}'), :'named', 'without it the old answers are there again');

-- Keys of random questions are the same exactly where the questions are
select coalesce(nullif(current_setting('mtap.seed', true), '')::double precision, random()) as seed \gset
select diag(format('seed of the random questions: %s (psql: set mtap.seed)', :'seed'));
select setseed(:'seed') \g /dev/null
create temporary table drawn as
  select q, t.key(q) as key
    from (select jsonb_build_object('user_id', (array['ann', 'abe'])[1 + (random() + 0 * i)::integer], 'prompt', (array['a', 'b', '1', 'ann'])[ceil(random() * 4)::integer],
                   'model', (array['mtap/one', 'mtap/two'])[1 + random()::integer], 'params', (array['{}', '{"n": 1}', '{"seed": 1}', '{"seed": "1"}']::jsonb[])[ceil(random() * 4)::integer],
                   'template', (array[null, 'a', 'b'])[ceil(random() * 3)::integer], 'template_version', (array[null, 1, 2])[ceil(random() * 3)::integer],
                   'collection', (array[null, 'a', 'b'])[ceil(random() * 3)::integer]) as q
            from generate_series(1, 1500) i) d;
select is((select count(distinct key) from drawn), (select count(distinct q) from drawn), 'as many keys as questions');
select is((select count(distinct (key, q)) from drawn), (select count(distinct q) from drawn), 'and each question one');

-- An answer is kept and given inside the INSERT
select t.keep(t.put('{"cache_tags": ["a", "b"]}'), 'Because.', '{"cost": 0.25, "sources": [{"id": 1}]}') as kept \gset
select t.put('{"stream": true}') as again \gset
select is(g.status || '/' || g.output || '/' || g.finish_reason || '/' || g.cost || '/' || g.saved || '/' || g.provider || '/' || g.model_used, 'succeeded/Because./stop/0/0.25/mtap-first/one-wire-1', 'the same question has its answer in the INSERT')
  from t.generation(:'again') g;
select ok((t.generation(:'again')).cached, 'and says that it was cached');
select is((t.generation(:'again')).sources, '[{"id": 1}]'::jsonb, 'with its sources');
select is((t.generation(:'again')).stages @? '$[*] ? (@.stage == "cache" && @.result == "exact hit")', true, 'the stage says exact hit');
select is((t.generation(:'again')).stages #>> '{-1,from}', :'kept', 'and from where');
select is(t.place(:'again'), null, 'nothing is queued');
select is((select status || '/' || cache || '/' || cost || '/' || saved from ai.llm_calls where generation_id = :'again'), 'succeeded/exact/0/0.25', 'and the books have what it saved');

-- Who shares it: nobody, by default
select is(t.cached('{"user_id": "abe"}'), false, 'another member asks for himself');
select is(t.cached('{"user_id": "adm"}'), false, 'so does the admin');
select is(t.cached('{"user_id": "shared"}'), false, 'and everybody else');
update ai.cache_policies set scope = 'tenant';
select is(t.cached('{}'), false, 'what one member was answered is not shared afterwards');
select t.keep(t.put('{}'), 'For all.') \g /dev/null
select is(t.cached('{"user_id": "abe"}'), true, 'what is kept for the tenant is everybody''s');
insert into ai.cache_policies (tenant_id, scope) values (t.beta(), 'tenant');
select is(t.cached('{"tenant": "beta", "user_id": "bob"}'), false, 'but no other tenant''s');
select is(t.cached('{"tenant": "beta", "user_id": "shared"}'), false, 'not even for a user of the same name');
update ai.cache_policies set scope = 'member';
select is(t.cached('{}'), true, 'back to members, each has again what was theirs');
select is(t.cached('{"user_id": "abe"}'), false, 'and nothing of the tenant''s');
delete from ai.cache_policies;
delete from ai.cache_entries;
insert into ai.cache_policies (scope, ttl) values ('tenant', '1 hour');
select t.keep(t.put('{}'), 'Shared policy.') \g /dev/null
select is(t.cached('{"user_id": "abe"}'), true, 'a shared policy counts for every tenant');
select is(t.cached('{"tenant": "beta", "user_id": "bob"}'), false, 'each with a cache of its own');
select t.keep(t.put('{"tenant": "beta", "user_id": "bob"}'), 'Beta''s.') \g /dev/null
select is((select count(distinct key) from ai.cache_entries), 2::bigint, 'under keys that are never the same');

-- Which policy
delete from ai.cache_entries;
insert into ai.cache_policies (tenant_id, exact, position) values (t.alpha(), false, 1);
select is(t.key('{}'), null, 'the tenant''s own row goes before the shared ones: it switches off');
insert into ai.cache_policies (tenant_id, model, position) values (t.alpha(), 'mtap/one', 0);
select isnt(t.key('{}'), null, 'the first fitting row counts');
select is(t.key('{"model": "mtap/two"}'), null, 'what it does not fit goes on to the next');
update ai.cache_policies set enabled = false where tenant_id = t.alpha();
select isnt(t.key('{"model": "mtap/two"}'), null, 'disabled rows do not count, the shared one does');
update ai.cache_policies set kind = 'embedding' where tenant_id is null;
select is(t.key('{}'), null, 'a row for embeddings does not fit a chat');
select isnt(t.key('{"kind": "embedding", "model": "mtap/embed"}'), null, 'but an embedding');
update ai.cache_policies set kind = null, profile = 'mtap-route' where tenant_id is null;
select is(t.key('{}'), null, 'a row for a profile does not fit what names a model');
select isnt(t.key('{"model": null, "profile": "mtap-route"}'), null, 'but what names the profile');
update ai.cache_policies set profile = null where tenant_id is null;
delete from ai.cache_policies where tenant_id is not null;
select throws_ok(format('insert into ai.cache_policies (%s) values (%s)', c, v), '23514', null, format('refused: %s = %s', c, v))
  from (values ('threshold', '0'), ('threshold', '1.01'), ('threshold', '''nan'''), ('ttl', '''0'''), ('ttl', '''-1 s'''), ('stale_for', '''-1 s'''), ('ttl', '''-100000 years 36000001 days'''), ('ttl', '''1 month -1 day'''), ('ttl', '''10 years 1 day'''),
               ('stale_for', '''-1 year 366 days'''), ('stale_for', '''1 day -1 second'''), ('scope', '''world'''), ('kind', '''chats'''), ('exact, semantic', 'false, true')) v (c, v);

-- What the row wants
select t.keep(t.put('{}'), 'One.') \g /dev/null
select is(t.cached('{"cache": "off"}'), false, 'off: not from the cache');
select is((t.asked('{"cache": "off"}')).cache_key, null, 'nor into it');
select is(t.cached('{"cache": "exact"}'), true, 'exact: from it');
select is(t.cached('{"cache": "semantic"}'), true, 'semantic: an exact one is as good');
select t.put('{"cache": "refresh"}') as fresh \gset
select is((t.generation(:'fresh')).status, 'queued', 'refresh: asked anew');
select is((t.generation(:'fresh')).stages #>> '{0,result}', 'refresh', 'and says so');
select t.keep(:'fresh', 'Two.') \g /dev/null
select is((t.asked('{}')).output, 'Two.', 'its answer takes the place of the old one');
select is((select count(*) from ai.cache_entries), 1::bigint, 'there is one entry');
update ai.cache_policies set exact = false;
select is((t.find('{"cache": "semantic"}')).cache_key, null, 'a row cannot switch on what no policy allows');
select is((t.find('{"cache": "refresh"}')).cache_key, null, 'nor write what none allows');
update ai.cache_policies set exact = true;
select is(t.cached('{"run_after": "2090-01-01"}'::jsonb || jsonb_build_object('run_after', ai.now() + interval '1 hour')), false, 'what is to run later is not answered now');

-- What is never kept
update ai.cache_policies set scope = 'member';
delete from ai.cache_entries;
select t.keep(t.put('{}'), 'Poison.', v::jsonb)
  from unnest(array['{"status": "failed"}', '{"status": "cancelled"}', '{"status": "rejected"}', '{"status": "running"}', '{"status": "queued"}',
    '{"finish_reason": "length"}', '{"finish_reason": "content_filter"}', '{"finish_reason": "tool_calls"}', '{"finish_reason": null}',
    '{"output": null}', '{"cached": true}', '{"degraded": "extract"}', '{"context": [{"id": 1}]}', '{"context_sources": ["orders"]}',
    '{"conversation_id": "0a000000-0000-7000-8000-0000000000aa"}',
    '{"output_message": {"role": "assistant", "tool_calls": []}}', '{"output_message": {"role": "assistant", "refusal": "No."}}',
    '{"output_message": {"role": "assistant", "native_finish_reason": "pause_turn"}}',
    '{"stages": [{"stage": "guardrails", "result": "redacted"}]}', '{"stages": [{"stage": "guardrails", "result": "flagged"}]}', '{"stages": [{"stage": "guardrails", "result": "rejected"}]}',
    '{"stages": [{"stage": "guardrails", "result": "passed"}, {"stage": "cache", "result": "miss"}, {"stage": "guardrails", "result": "redacted"}]}',
    '{"cache_key": null}', '{"cache": "off"}', '{"prompt": "another"}', '{"model": "mtap/two"}', '{"user_id": "abe"}', '{"params": {"seed": 7}}', '{"cache_key": "\\x00"}']) v
\g /dev/null
select is((select array_agg(generation_id) from ai.cache_entries), null, 'none of these is kept');
select t.keep(t.put('{}'), 'Good.', '{"stages": [{"stage": "guardrails", "result": "passed"}, {"stage": "cache", "result": "miss"}], "output_message": {"role": "assistant", "content": "Good."}}') \g /dev/null
select is((select count(*) from ai.cache_entries), 1::bigint, 'but a good one that passed its guardrails');
select t.keep(t.put('{"kind": "embedding", "model": "mtap/embed", "prompt": "x"}'), null, '{"embedding": "[1,2,3]", "finish_reason": null}') \g /dev/null
select is((t.asked('{"kind": "embedding", "model": "mtap/embed", "prompt": "x"}')).embedding::text, '[1,2,3]', 'an embedding is kept, too');
select t.keep(t.put('{"kind": "embedding", "model": "mtap/embed", "prompt": "y"}'), null, '{"embedding": null}') \g /dev/null
select is(t.cached('{"kind": "embedding", "model": "mtap/embed", "prompt": "y"}'), false, 'unless there is no vector');
-- What has changed since the question was put
select t.put('{"prompt": "on its way"}') as late \gset
update ai.models set wire_name = 'one-wire-2' where name = 'mtap/one';
select t.keep(:'late', 'Of the old model.') \g /dev/null
select is((select count(*) from ai.cache_entries where generation_id = :'late'), 0::bigint, 'an answer of what the model was before is not kept');
update ai.models set wire_name = 'one-wire' where name = 'mtap/one';
select t.put('{"prompt": "on its way"}') as late \gset
update ai.cache_policies set exact = false;
select t.keep(:'late', 'Unwanted.') \g /dev/null
update ai.cache_policies set exact = true;
select is((select count(*) from ai.cache_entries where generation_id = :'late'), 0::bigint, 'nor one whose policy was taken away');
-- Two of one key in one call
select t.put('{"prompt": "twins"}') as one, t.put('{"prompt": "twins"}') as two \gset
update ai.generations set status = 'succeeded', output = id::text, finish_reason = 'stop', provider = 'mtap-first' where id in (:'one', :'two');
select is(ai.write_caches(array[t.alpha(), t.alpha()], array[:'one'::uuid, :'two'::uuid]), 1, 'two answers to one question are one entry');
select is((t.asked('{"prompt": "twins"}')).output, greatest(:'one', :'two'), 'the younger');
select is(ai.write_caches('{}', '{}'), 0, 'nothing to keep');
select is(ai.write_caches(array[t.beta()], array[:'one'::uuid]), 0, 'a generation is its tenant''s');

-- Time
delete from ai.cache_entries;
delete from ai.cache_policies;
insert into ai.cache_policies (tenant_id, ttl, stale_for) values (t.alpha(), '10 minutes', '5 minutes');
select t.keep(t.put('{}'), 'For a while.') \g /dev/null
select is((select expires_at - created_at from ai.cache_entries), interval '10 minutes', 'kept for its time to live');
-- The clock stands still within a statement.
create function t.cached_until(p_left interval) returns boolean language plpgsql as $$
begin
  update ai.cache_entries set expires_at = ai.now() + p_left;
  return t.cached('{}');
end
$$;
select is(t.cached_until('1 microsecond'), true, 'a microsecond before its end it is given');
select is(t.cached_until('0'), false, 'at its end no more');
select is(t.cached_until('-1 microsecond'), false, 'nor after it');
update ai.cache_entries set expires_at = ai.now() + interval '10 minutes', keep_until = ai.now() + interval '15 minutes';
select t.pass('599 seconds');
select is(t.cached('{}'), true, 'after 9:59 minutes');
select t.pass('2 seconds');
select is(t.cached('{}'), false, 'after 10:01 minutes');
select is(ai.forget_expired_entries(ai.now()), 0, 'it stays for a while, for when nothing better is to be had');
select t.put('{}') as asked \gset
select is((select hit from ai.find_stale(t.alpha(), :'asked', null)), true, 'as it is here');
select is((select output from ai.find_stale(t.alpha(), :'asked', null)), 'For a while.', 'with its old answer');
select is((select stage ->> 'why' from ai.find_stale(t.alpha(), :'asked', null)), 'expired', 'which says so');
select is((select hit from ai.find_stale(t.beta(), :'asked', null)), false, 'for nobody else');
select t.pass('5 minutes');
select is(ai.forget_expired_entries(ai.now()), 1, 'then it is forgotten');
select is((select hit from ai.find_stale(t.alpha(), :'asked', null)), false, 'for ever');
select t.keep(t.put('{}'), 'New.') \g /dev/null
select is(t.cached('{}'), true, 'a new answer takes its place');
select t.pass('11 minutes');
select t.keep(t.put('{}'), 'Newer.') \g /dev/null
select is((t.asked('{}')).output, 'Newer.', 'also where the old one is still there');

-- Many at once
delete from ai.cache_entries;
insert into ai.cache_entries (tenant_id, key, generation_id, kind, created_at, expires_at, keep_until)
select t.alpha(), sha256(i::text::bytea), ai.uuid_v7(), 'chat', ai.now(), ai.now(), '2100-01-01 00:00+00' from generate_series(1, 10001) i;
select is(ai.forget_expired_entries('2099-12-31 23:59:59.999999+00'), 0, 'a microsecond before nothing is forgotten');
select is(ai.forget_expired_entries('2100-01-01 00:00+00'), 10000, 'at most 10,000 a call');
select is(ai.forget_expired_entries('2100-01-01 00:00+00'), 1, 'the rest with the next');
select is(ai.forget_expired_entries('2100-01-01 00:00+00'), 0, 'then nothing');

select * from finish();
rollback;
