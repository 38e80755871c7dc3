-- The semantic cache: what is similar, within which bounds, and what is never compared.
begin;
\ir setup/world.sql
\ir setup/caching.sql
select no_plan();

insert into ai.cache_policies (tenant_id, semantic, vector_model) values (t.alpha(), true, 'mtap/embed'), (t.beta(), true, 'mtap/embed');
insert into ai.models (provider_id, name, wire_name, kind) select provider_id, 'mtap/embed-2', 'embed-2', 'embedding' from ai.models where name = 'mtap/embed';

-- Puts a question, embeds it as p_vector and keeps p_output as its answer. Gives the generation's id.
create function t.keep_question(p_over jsonb, p_vector text, p_output text, p_more jsonb default '{}') returns uuid language plpgsql as $$
declare
  v_id uuid := t.put(p_over);
begin
  update ai.generations c set embedding = p_vector::ai.embedding, status = 'succeeded', finished_at = ai.now()
    from ai.generations g where g.id = v_id and c.id = g.query_id;
  return t.keep(v_id, p_output, p_more);
end
$$;
-- What a question with this vector is answered from the semantic cache: the output, 'miss', or 'not asked'.
create function t.similar(p_over jsonb, p_vector text) returns text language plpgsql as $$
declare
  v_id  uuid := t.put(p_over);
  v_hit record;
begin
  select * into v_hit from ai.find_similar(t.question_tenant(t.question(p_over)), v_id, p_vector::ai.embedding);
  return case when v_hit.hit then v_hit.output when v_hit.stage is null then 'not asked' else 'miss' end;
end
$$;
-- A vector of the given cosine similarity to [1,0,0,0].
create function t.turned(p_similarity double precision) returns text language sql immutable as $$ select format('[%s,%s,0,0]', p_similarity, sqrt(1 - p_similarity ^ 2)) $$;

select is((t.find('{}')).vector_model, 'mtap/embed', 'after an exact miss the question is to be embedded, with the policy''s model');
select t.put('{}') as asked \gset
select is((t.generation(:'asked')).query_model, 'mtap/embed', 'the generation says so');
select is((select g.kind || '/' || g.purpose || '/' || g.prompt || '/' || g.model from ai.generations g where g.parent_id = :'asked'), 'embedding/query/Why?/mtap/embed', 'and there is one that embeds it');
select is(t.similar('{}', '[1,0,0,0]'), 'miss', 'nothing is kept yet');
select t.keep_question('{}', '[1,0,0,0]', 'Because.', '{"cost": 0.25}') as kept \gset
select is((select count(*) from ai.cache_questions), 1::bigint, 'an answer is kept with its question''s vector');

-- Similar enough
select t.put('{"prompt": "But why?"}') as other \gset
select is(f.output || '/' || f.saved || '/' || f.finish_reason || '/' || (f.stage ->> 'result') || '/' || (f.stage ->> 'similarity') || '/' || (f.stage ->> 'from'),
          'Because./0.25/stop/semantic hit/0.9600/' || :'kept', 'a similar question has its answer') from ai.find_similar(t.alpha(), :'other', t.turned(0.96)::ai.embedding) f;
select is(t.similar('{"prompt": "But why?"}', t.turned(s)), a, format('similarity %s', s))
  from (values (1.0, 'Because.'), (0.95001, 'Because.'), (0.94999, 'miss'), (0.5, 'miss'), (0, 'miss'), (-1, 'miss')) v (s, a);
select is(t.similar('{"prompt": "But why?"}', '[7,0,0,0]'), 'Because.', 'the length of a vector does not matter');
update ai.cache_policies set threshold = 0.5;
select is(t.similar('{"prompt": "But why?"}', t.turned(s)), a, format('threshold 0.5, similarity %s', s)) from (values (0.50001, 'Because.'), (0.49999, 'miss')) v (s, a);
update ai.cache_policies set threshold = 1;
select is(t.similar('{"prompt": "But why?"}', t.turned(s)), a, format('threshold 1, similarity %s', s)) from (values (1, 'Because.'), (0.9999, 'miss')) v (s, a);
update ai.cache_policies set threshold = 0.95;
select t.keep_question('{"prompt": "Why not?"}', t.turned(0.97), 'Why not!') \g /dev/null
select is(t.similar('{"prompt": "And why?"}', t.turned(0.98)), 'Why not!', 'the most similar one wins');
select is(t.similar('{"prompt": "And why?"}', t.turned(0.999)), 'Because.', 'whichever it is');

-- Vectors that are none
select is(t.similar('{"prompt": "But why?"}', '[0,0,0,0]'), 'miss', 'a vector of zeros is like nothing');
select t.keep_question('{"prompt": "zeros"}', '[0,0,0,0]', 'Zeros.') \g /dev/null
select is(t.similar('{"prompt": "But why?"}', '[0,0,0,1]'), 'miss', 'nor is anything like it');
select is(t.similar('{"prompt": "But why?"}', '[1,0,0]'), 'miss', 'a vector of another size is compared with nothing');
select is((select hit from ai.find_similar(t.alpha(), :'other', null)), false, 'no vector, no hit');
select is((select hit from ai.find_similar(t.alpha(), ai.uuid_v7(), '[1,0,0,0]'::ai.embedding)), false, 'no generation, no hit');

-- Never between those who do not share, nor between what is answered differently
select is(t.similar(v::jsonb, '[1,0,0,0]'), 'miss', format('not for %s', v))
  from unnest(array['{"user_id": "abe", "prompt": "x"}', '{"tenant": "beta", "user_id": "bob", "prompt": "x"}', '{"model": "mtap/two", "prompt": "x"}', '{"model": null, "profile": "mtap-route", "prompt": "x"}',
    '{"params": {"temperature": 1}, "prompt": "x"}', '{"prompt": null, "messages": [{"role": "user", "content": "x"}]}',
    '{"prompt": null, "messages": [{"role": "system", "content": "Lie."}, {"role": "user", "content": "x"}]}']) v;
select is((select hit from ai.find_similar(t.beta(), :'other', '[1,0,0,0]'::ai.embedding)), false, 'a generation is its tenant''s');
update ai.cache_policies set scope = 'tenant';
select t.keep_question('{}', '[1,0,0,0]', 'For all.') \g /dev/null
select is(t.similar('{"user_id": "abe", "prompt": "x"}', '[1,0,0,0]'), 'For all.', 'what the tenant''s members share is found by all of them');
select is(t.similar('{"tenant": "beta", "user_id": "bob", "prompt": "x"}', '[1,0,0,0]'), 'miss', 'and by no other tenant');
update ai.cache_policies set scope = 'member';
select is(t.similar('{"user_id": "abe", "prompt": "x"}', '[1,0,0,0]'), 'miss', 'back to members it is found by none');

-- Messages around the question
select t.keep_question('{"prompt": null, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}', '[1,0,0,0]', 'Brief.') \g /dev/null
select is(t.similar(v::jsonb, '[1,0,0,0]'), a, v)
  from (values ('{"prompt": null, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "But why?"}]}', 'Brief.'),
               ('{"prompt": null, "messages": [{"role": "system", "content": "Be brief!"}, {"role": "user", "content": "But why?"}]}', 'miss'),
               ('{"prompt": null, "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "But why?"}]}', 'miss'),
               ('{"prompt": null, "messages": [{"role": "user", "content": "But why?"}, {"role": "system", "content": "Be brief."}]}', 'miss'),
               ('{"prompt": null, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "But why?", "name": "ann"}]}', 'miss')) v (v, a);
-- Only single questions
select is((t.find(v::jsonb)).vector_model, null, format('no vector for %s', left(v, 100)))
  from unnest(array['{"prompt": null, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}',
    '{"prompt": null, "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
    '{"prompt": null, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "http://a.test/a.png"}}]}]}',
    '{"prompt": null, "messages": [{"role": "assistant", "content": "a"}]}', '{"prompt": null, "messages": [{"role": "system", "content": "a"}]}',
    '{"kind": "embedding", "model": "mtap/embed"}', '{"cache": "exact"}', '{"cache": "off"}']) v;
select is((t.find(jsonb_build_object('prompt', repeat('x', 8001)))).vector_model, null, 'nor for more than 8,000 characters, of which only the beginning would be embedded');
select is((t.find(jsonb_build_object('prompt', repeat('x', 8000)))).vector_model, 'mtap/embed', 'but for 8,000');
select is((t.find('{"cache": "refresh"}')).vector_model, 'mtap/embed', 'what refreshes is embedded, so that its answer is found again');
select is(t.similar('{"cache": "refresh", "prompt": "fresh"}', '[1,0,0,0]'), 'not asked', 'but is answered anew');
select is(t.similar('{"cache": "exact", "prompt": "exact"}', '[1,0,0,0]'), 'not asked', 'exact is not answered by meaning');

-- Numbers
select t.keep_question('{"prompt": "What was earned in 2023?"}', '[0,1,0,0]', 'Much.') \g /dev/null
select is(t.similar(jsonb_build_object('prompt', p), '[0,1,0,0]'), a, p)
  from (values ('What did we earn in 2023?', 'Much.'), ('What was earned in 2024?', 'miss'), ('What was earned?', 'miss'), ('What was earned in 2023 and 2024?', 'miss'), (U&'What was earned in 2023 and \0662\0660?', 'miss'), (U&'What was earned in 2023\00B2?', 'miss'),
               ('2023: what was earned?', 'Much.'), ('What was earned in 20 23?', 'miss')) v (p, a);
select t.keep_question('{"prompt": "Is 3 more than 5?"}', '[0,1,0,0]', 'No.') \g /dev/null
select is(t.similar('{"prompt": "Is 5 more than 3?"}', '[0,1,0,0]'), 'miss', 'their order counts');
select is(t.similar('{"prompt": "3 is more than 5, right?"}', '[0,1,0,0]'), 'No.', 'the words around them do not');

-- Time, refreshing, models
select t.pass('23 hours');
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'Because.', 'within its time');
select t.pass('1 hour');
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'miss', 'after its time no more');
select is((select f.output || '/' || (f.stage ->> 'why') || '/' || (f.stage ->> 'result') from ai.find_stale(t.alpha(), :'other', '[1,0,0,0]'::ai.embedding) f), 'Because./expired/stale hit', 'unless nothing better is to be had');
select is((select f.hit from ai.find_stale(t.alpha(), :'other', '[0.79,-0.6131,0,0]'::ai.embedding) f), false, 'and it is similar at least by 0.8');
select is((select f.hit from ai.find_stale(t.alpha(), :'other', '[0.7,-0.7141,0,0]'::ai.embedding, 0.6) f), true, 'or by what is asked for');
select t.keep_question('{}', '[1,0,0,0]', 'Again.') \g /dev/null
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'Again.', 'a new answer is found by meaning, too');
select is((select f.stage ->> 'why' from ai.find_stale(t.alpha(), :'other', '[0.9,-0.4359,0,0]'::ai.embedding) f), 'less similar than the threshold', 'and, for want of better, by less than the threshold');
select is((select f.hit from ai.find_stale(t.beta(), :'other', '[1,0,0,0]'::ai.embedding) f), false, 'by its tenant alone');
select t.keep_question('{"cache": "refresh"}', '[1,0,0,0]', 'Fresh.') \g /dev/null
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'Fresh.', 'refreshing replaces it');
update ai.cache_policies set vector_model = 'mtap/embed-2' where tenant_id = t.alpha();
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'miss', 'vectors of another model are not compared');
select is((select hit from ai.find_similar(t.alpha(), :'other', '[1,0,0,0]'::ai.embedding)), false, 'nor is a question that was embedded before the model changed');
update ai.cache_policies set vector_model = 'no/such' where tenant_id = t.alpha();
select is((t.find('{"prompt": "x"}')).vector_model, null, 'without such a model there is no semantic cache');
select is((t.asked('{"prompt": "x"}')).status, 'queued', 'and nobody is refused for that');
update ai.cache_policies set vector_model = null where tenant_id = t.alpha();
select is((t.find('{"prompt": "x"}')).vector_model, 'local/hash', 'no model named: the default profile''s');
update ai.cache_policies set vector_model = 'mtap/embed' where tenant_id = t.alpha();
update ai.models set wire_name = 'embed-new' where name = 'mtap/embed';
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'miss', 'nor those of what the model was before');
update ai.models set wire_name = 'embed' where name = 'mtap/embed';
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'Fresh.', 'back as it was');

-- An answer without a vector
select t.keep(t.put('{"prompt": "unembedded"}'), 'Kept.') \g /dev/null
select is(t.cached('{"prompt": "unembedded"}'), true, 'an answer whose question could not be embedded is kept');
select is((select count(*) from ai.cache_questions q join ai.cache_entries e using (tenant_id, key) where e.output = 'Kept.'), 0::bigint, 'for the exact cache alone');
select t.keep(t.put('{"cache": "refresh"}'), 'Unembedded.') \g /dev/null
select is(t.similar('{"prompt": "But why?"}', '[1,0,0,0]'), 'miss', 'an answer that replaces another does not keep its vector');

-- Poison
select t.keep_question('{"prompt": "poison"}', '[0,0,1,0]', 'Poison.', v::jsonb)
  from unnest(array['{"status": "failed"}', '{"finish_reason": "length"}', '{"degraded": "x"}', '{"cached": true}', '{"stages": [{"stage": "guardrails", "result": "redacted"}]}']) v
\g /dev/null
select is(t.similar('{"prompt": "x"}', '[0,0,1,0]'), 'miss', 'what is not kept is not found by meaning');

-- Of many, the right one: against a search that compares all
select coalesce(nullif(current_setting('mtap.seed', true), '')::double precision, random()) as seed \gset
select diag(format('seed of the random vectors: %s (psql: set mtap.seed)', :'seed'));
select setseed(:'seed') \g /dev/null
create temporary table points as
  select i, array_agg(random() - 0.5 + 0 * i + 2 * ((i % 40 + d) % 7 = 0)::integer order by d)::real[]::ai.embedding as v
    from generate_series(1, 600) i, generate_series(1, 64) d group by i;
select t.keep_question(jsonb_build_object('prompt', 'point ' || translate(i::text, '0123456789', 'abcdefghij')), v::text, i::text) from points
\g /dev/null
create temporary table probes as
  select i, (select array_agg(x + 0.25 * (random() - 0.5) order by n) from unnest(v::real[]) with ordinality u (x, n))::real[]::ai.embedding as v from points order by random() limit 100;
create temporary table found as
  select p.i, t.similar('{"prompt": "probe"}', p.v::text) as answer,
         (select o.i::text from points o where 1 - ai.cosine_distance(o.v, p.v) >= 0.95 order by ai.cosine_distance(o.v, p.v) limit 1) as nearest
    from probes p;
select cmp_ok((select count(*) from found where nearest is not null), '>', 50::bigint, 'most probes have a neighbour');
select is_empty($$ select * from found where answer is distinct from coalesce(nearest, 'miss') $$, 'each gets the answer of its nearest neighbour');

select * from finish();
rollback;
