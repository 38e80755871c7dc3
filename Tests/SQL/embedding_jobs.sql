-- Embeddings in batches of 32: what is asked, what is sent, what comes back, and what becomes of it.
begin;
\ir setup/world.sql
select no_plan();

-- Rows to embed, of a vectorizer that nobody made by hand: the jobs know rows by number only.
create table t.things (id bigint primary key, body text);
insert into ai.vectorizers (id, tenant_id, user_id, name, table_name, table_id, columns, attnums, key_columns, key_attnums, model, format, max_characters)
overriding system value
values (900, t.alpha(), 'ann', 'things', 't.things', 't.things'::regclass, '{body}', '{2}', '{id}', '{1}', 'mtap/embed', 'plain', 100);
insert into ai.vectorizer_versions (id, vectorizer_id, model, status) overriding system value values (9000, 900, 'mtap/embed', 'current'), (9001, 900, 'mtap/embed', 'building');

create function t.note(p_from integer, p_to integer, p_version bigint default 9000, p_suffix text default '') returns bigint[] language sql as $$
  with n as (
    insert into ai.vectorized_rows (version, tenant_id, row_key, state, content, noted_at)
    select p_version, t.alpha(), '900/' || i, 'pending', 'text ' || i || p_suffix, ai.now() from generate_series(p_from, p_to) i
    returning ref)
  select array_agg(ref order by ref) from n
$$;
create function t.queue(p_refs bigint[], p_version bigint default 9000) returns uuid language sql as $$
  select ai.queue_embeddings(t.alpha(), 'ann', 'mtap/embed', 'rows', p_refs, p_version);
  select j.generation_id from ai.embedding_jobs j where j.refs @> p_refs[1:1] order by j.generation_id desc limit 1
$$;
create function t.states(p_refs bigint[]) returns text language sql as $$
  select string_agg(coalesce(r.state, 'none'), ' ' order by u.n) from unnest(p_refs) with ordinality u (ref, n) left join ai.vectorized_rows r on r.ref = u.ref
$$;
-- A vector of four numbers for each text.
create function t.vectors(p_texts jsonb) returns jsonb language sql as $$
  select jsonb_agg(jsonb_build_array(length(v.value), ascii(v.value), 1, v.n) order by v.n) from jsonb_array_elements_text(p_texts) with ordinality v (value, n)
$$;

select t.worker() as w \gset

-- How refs are cut
select is(ai.queue_embeddings(t.alpha(), 'ann', 'mtap/embed', 'rows', (select array_agg(i) from generate_series(1, n) i), 9000), expected, format('%s refs are %s generations', n, expected))
  from (values (1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3), (3200, 100)) v (n, expected);
select is(ai.queue_embeddings(t.alpha(), 'ann', 'mtap/embed', 'rows', '{}', 9000), 0, 'no refs are no generation');
select is(max(cardinality(refs)), 32, 'none has more than 32') from ai.embedding_jobs;
select is_empty($$ select * from ai.embedding_jobs j where not exists (select from ai.generations g where g.tenant_id = j.tenant_id and g.id = j.generation_id) $$, 'each job has its generation');
select results_eq($$ select distinct kind, purpose, priority, status, user_id, model, prompt is null, messages is null, deadline_ms from ai.generations $$,
  $$ values ('embedding', 'rows', 'low', 'queued', 'ann', 'mtap/embed', true, true, 86400000) $$, 'which is an ordinary one, of low priority, with a day''s time');
delete from ai.embedding_jobs;
select is((select count(*) from t.claim(:'w', 1000)), 0::bigint, 'a generation without a job is not sent');
select is((select string_agg(distinct status, ' ') from ai.generations), 'succeeded', 'and ends at once');
select is((select count(*) from ai.llm_calls), 0::bigint, 'without a call');
select throws_ok($$ select ai.queue_embeddings(t.alpha(), 'nobody', 'mtap/embed', 'rows', '{1}', 9000) $$, 'PT403', null, 'nobody who is no member can be asked for');
select throws_ok($$ select ai.queue_embeddings(t.beta(), 'ann', 'mtap/embed', 'rows', '{1}', 9000) $$, 'PT403', null, 'nor a member of another tenant');

-- What is sent, in which order
select t.note(1, 40) as refs \gset
select t.queue(:'refs') as g \gset
select set_eq(format($$ select jsonb_array_length(request -> 'input') from t.claim(%L) $$, :'w'), array[32, 8], 'a call has an array of at most 32 texts');
select is((select jsonb_agg(v.value order by v.n) from ai.embedding_inputs(t.alpha(), j.generation_id) x cross join jsonb_array_elements(x) with ordinality v (value, n)),
          (select jsonb_agg(r.content order by u.n) from unnest(j.refs) with ordinality u (ref, n) join ai.vectorized_rows r on r.ref = u.ref), 'in the order of its refs')
  from ai.embedding_jobs j;
select is(count(*), 2::bigint, 'nothing is remembered where all was sent') from ai.embedding_jobs where sent is null;
select is(t.settle(:'w', j.generation_id, 1, 'succeeded', jsonb_build_object('embeddings', t.vectors(ai.embedding_inputs(j.tenant_id, j.generation_id)), 'usage', '{"input": 100}'::jsonb)), 'ended', 'an answer is settled')
  from ai.embedding_jobs j;
select is(t.states(:'refs'), repeat('embedded ', 39) || 'embedded', 'every row has its vector');
select is((select count(*) from ai.vectorized_rows r where r.ref = any (:'refs') and r.embedding::text not like format('[%s,%s,1,%%', length(r.content), ascii(r.content))), 0::bigint, 'which is the one of its text');
select is((select count(*) from ai.embedding_jobs), 0::bigint, 'the jobs are done');
select is((select dimensions from ai.vectorizer_versions where id = 9000), 4, 'the size of the vectors is known now');
select results_eq($$ select count(*), sum(input_tokens), sum(cost) from ai.llm_calls $$, $$ values (2::bigint, 200::bigint, 0.000004) $$, 'the calls are on the books');
select is((select count(*) from ai.generations where embedding is not null), 0::bigint, 'a generation keeps no copy of one of them');

-- What is gone, or has a newer text, is not sent
select t.note(101, 105) as refs \gset
select t.queue(:'refs') as g \gset
delete from ai.vectorized_rows where ref = (:'refs'::bigint[])[2];
select t.note(104, 104, 9000, ' newer') as newer \gset
select is(ai.embedding_inputs(t.alpha(), :'g'), '["text 101", "text 103", "text 105"]', 'a row that is gone and one with a newer text are left out');
select is((select sent from ai.embedding_jobs where generation_id = :'g'), (:'refs'::bigint[])[1:1] || (:'refs'::bigint[])[3:3] || (:'refs'::bigint[])[5:5], 'what was sent is remembered');
select is(ai.store_embeddings(t.alpha(), :'g', '[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]'), null, 'as many vectors as were sent are stored');
select is((select string_agg(row_key || embedding::text, ' ' order by ref) from ai.vectorized_rows where ref = any (:'refs') and state = 'embedded'),
          '900/101[1,0,0,0] 900/103[0,1,0,0] 900/105[0,0,1,0]', 'each with its own text');
select is((select status from ai.generations where id = :'g'), 'queued', '(simulated: it has not ended)');
select ai.end_embedding_job(t.alpha(), :'g', 'succeeded');
select is(t.states(:'refs'), 'embedded none embedded none embedded', 'the older text goes with its job');
select is(t.states(:'newer'), 'pending', 'the newer one waits for its own');
select is(ai.embedding_inputs(t.alpha(), :'g'), '[]', 'a job that has ended has no texts');
select is(ai.store_embeddings(t.alpha(), :'g', '[[9, 9, 9, 9]]'), null, 'and what comes late for it is thrown away');
select lives_ok(format($$ select ai.end_embedding_job(%L, %L, 'failed') $$, t.alpha(), :'g'), 'ending it twice does nothing');
select is(t.states(:'refs'), 'embedded none embedded none embedded', 'nothing at all');
select is(ai.embedding_inputs(t.beta(), :'g'), '[]', 'another tenant''s id finds nothing');

-- What changes between the sending and the answer
select t.note(201, 203) as refs \gset
select t.queue(:'refs') as g \gset
select is(ai.embedding_inputs(t.alpha(), :'g'), '["text 201", "text 202", "text 203"]', 'three are sent');
delete from ai.vectorized_rows where ref = (:'refs'::bigint[])[1];
select t.note(202, 202, 9000, ' newer') as newer \gset
select is(ai.store_embeddings(t.alpha(), :'g', '[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]'), null, 'three come back');
select is((select string_agg(row_key || state || coalesce(embedding::text, ''), ' ' order by ref) from ai.vectorized_rows where row_key in ('900/201', '900/202', '900/203')),
          '900/202embedded[0,1,0,0] 900/203embedded[0,0,1,0] 900/202pending', 'one that was deleted stays so; an older text answers until the newer is embedded');
select t.queue(:'newer') as g2 \gset
select is(ai.store_embeddings(t.alpha(), :'g2', '[[5, 5, 5, 5]]'), null, 'then the newer comes');
select is((select string_agg(embedding::text, ' ') from ai.vectorized_rows where row_key = '900/202'), '[5,5,5,5]', 'and takes its place');
-- The older answer comes last: two workers
delete from ai.embedding_jobs;
select t.note(301, 301) as old \gset
select t.queue(:'old') as g1 \gset
select is(ai.embedding_inputs(t.alpha(), :'g1'), '["text 301"]', 'an old text is with one worker');
select t.note(301, 301, 9000, ' newer') as new \gset
select t.queue(:'new') as g2 \gset
select is(ai.store_embeddings(t.alpha(), :'g2', '[[5, 5, 5, 5]]'), null, 'the newer is answered first');
select is(ai.store_embeddings(t.alpha(), :'g1', '[[1, 1, 1, 1]]'), null, 'the old one last');
select is((select string_agg(embedding::text, ' ') from ai.vectorized_rows where row_key = '900/301'), '[5,5,5,5]', 'and does not overwrite it');

-- Odd answers: none raises, none is stored
select t.note(401, 402) as refs \gset
select t.queue(:'refs') as g \gset
select isnt(ai.store_embeddings(t.alpha(), :'g', v.answer::jsonb), null, format('not two vectors: %s', left(coalesce(v.answer, 'null'), 60)))
  from (values (null), ('null'), ('"x"'), ('{}'), ('3'), ('[]'), ('[[1, 2, 3, 4]]'), ('[[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]'), ('[1, 2]'), ('[[1, 2, 3, 4], null]'), ('[[1, 2, 3, 4], {}]'),
               ('[[1, 2, 3, 4], []]'), ('[[], []]'), ('[[1, 2, 3, 4], [1, 2, 3, "4"]]'), ('[[1, 2, 3, 4], [1, 2, 3, "NaN"]]'), ('[[1, 2, 3, 4], [1, 2, 3, null]]'), ('[[1, 2, 3, 4], [1, 2, [3], 4]]'),
               ('[[1, 2, 3, 4], [1, 2, 3, 1e400]]'), ('[[1, 2, 3, 4], [1, 2, 3]]'), ('[[1, 2, 3], [1, 2, 3]]'), ('[[1, 2, 3, 4], [true, false, 1, 2]]'),
               ((select jsonb_build_array(a, a)::text from (select jsonb_agg(1) as a from generate_series(1, 16001)) x))) v (answer);
select is(t.states(:'refs'), 'pending pending', 'nothing was stored');
select is(ai.store_embeddings(t.alpha(), :'g', '[[1e-60, 0, -1.5e3, 4], [0, 0, 0, 0]]'), null, 'small numbers and zeros are numbers');
-- The first answer of a version fixes the size, unless the model says it
select t.note(411, 412, 9001) as refs \gset
select t.queue((:'refs'::bigint[])[1:1], 9001) as g1 \gset
select t.queue((:'refs'::bigint[])[2:2], 9001) as g2 \gset
update ai.models set dimensions = 3 where name = 'mtap/embed';
select matches(ai.store_embeddings(t.alpha(), :'g1', '[[1, 2, 3, 4]]'), 'size 4, not 3', 'a model that names its size gives no other');
update ai.models set dimensions = null where name = 'mtap/embed';
select is(ai.store_embeddings(t.alpha(), :'g1', '[[1, 2]]'), null, 'a model that does not gives any');
select matches(ai.store_embeddings(t.alpha(), :'g2', '[[1, 2, 3]]'), 'size 3, not 2', 'but always the same');

-- Through the queue: failures, retries, ends
delete from ai.embedding_jobs;
select t.pass('1 hour');
select count(*) from t.claim(:'w', 1000) \gset ignored_
select t.note(501, 503) as refs \gset
select t.queue(:'refs') as g \gset
select is((select count(*) from t.claim(:'w')), 1::bigint, 'claimed');
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"embeddings": [[1, 2, 3, 4]]}'), 'ended', 'an answer that does not fit ends it');
select is(t.status(:'g'), 'failed', 'as failed');
select is(t.states(:'refs'), 'failed failed failed', 'its rows too');
select is((select distinct r.error from ai.vectorized_rows r where r.ref = any (:'refs')), (t.generation(:'g')).error, 'with the reason');
select is((select status from ai.llm_calls where generation_id = :'g'), 'failed', 'the call is on the books');
select is((select count(*) from ai.embedding_jobs), 0::bigint, 'and the job is over');

select t.note(511, 513) as refs \gset
select t.queue(:'refs') as g \gset
select is((select count(*) from t.claim(:'w')), 1::bigint, 'claimed');
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "http", "http_status": 503, "error_message": "overloaded"}'), 'requeued', 'a passing failure is tried again');
select is(t.states(:'refs'), 'pending pending pending', 'the rows wait');
delete from ai.vectorized_rows where ref = (:'refs'::bigint[])[2];
select t.pass('5 minutes');
select t.vectors(request -> 'input') as vectors from t.claim(:'w') \gset
select is(t.settle(:'w', :'g', 2, 'succeeded', jsonb_build_object('embeddings', :'vectors'::jsonb)), 'ended', 'the next attempt is answered');
select is((select string_agg(row_key || state || case when embedding::text like format('[%s,%s,1,%%', length(content), ascii(content)) then ' by its text' end, ', ' order by ref)
             from ai.vectorized_rows where ref = any (:'refs')),
          '900/511embedded by its text, 900/513embedded by its text', 'and each row that is left has the vector of its text');
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"embeddings": [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]}'), 'stale', 'a late report of the first attempt');
select is((select count(*) from ai.vectorized_rows where ref = any (:'refs') and embedding::text = '[0,0,0,1]'), 0::bigint, 'changes nothing');

select t.note(521, 522) as refs \gset
select t.queue(:'refs') as g \gset
select is((select count(*) from t.claim(:'w')), 1::bigint, 'claimed');
delete from ai.vectorized_rows where ref = any (:'refs');
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"embeddings": [[1, 2, 3, 4], [5, 6, 7, 8]]}'), 'ended', 'vectors of rows that are all gone are thrown away');
select is(t.status(:'g'), 'succeeded', 'without harm');

select t.note(531, 532) as refs \gset
select t.queue(:'refs') as g \gset
set local session authorization mtap_dev;
select is(ai.cancel(:'g'), 'cancelled', 'someone who sees the tenant may cancel it');
reset session authorization;
select is(t.states(:'refs'), 'failed failed', 'then its rows have failed');
select is((select distinct error ->> 'class' from ai.vectorized_rows where ref = any (:'refs')), 'cancelled', 'and say why');

select t.note(541, 541) as refs \gset
select t.queue(:'refs') as g \gset
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'ann';
select is((select count(*) from t.claim(:'w')), 0::bigint, 'who is no member any more gets nothing');
select is(t.status(:'g') || ' ' || t.states(:'refs'), 'rejected failed', 'the generation is rejected, its rows have failed');
update ai.members set enabled = true where tenant_id = t.alpha() and user_id = 'ann';

-- Jobs with room take over others, so that rows that were inserted one by one are embedded by 32
select count(*) as ignored from t.claim(:'w', 1000) \gset
delete from ai.embedding_jobs;
select t.note(601, 700) as refs \gset
select count(t.queue(array[r])) as jobs from unnest(:'refs'::bigint[]) r \gset
select is((select count(*) from ai.embedding_jobs), 100::bigint, 'a hundred jobs of one text');
create temp table made as select generation_id from ai.embedding_jobs;
create temp table calls as select * from t.claim(:'w', 1000);
select is((select string_agg(jsonb_array_length(request -> 'input')::text, ' ' order by jsonb_array_length(request -> 'input') desc) from calls), '32 32 32 4', 'are four calls');
select is((select count(*) from ai.embedding_jobs), 4::bigint, 'by four jobs');
select is((select string_agg(status || ' ' || n, ', ' order by status) from (select g.status, count(*) as n from made m join ai.generations g on g.id = m.generation_id group by 1) s), 'running 4, succeeded 96', 'the other generations end without a call');
select set_eq(format($$ select t.settle(%L, id, attempt, 'succeeded', jsonb_build_object('embeddings', t.vectors(request -> 'input'))) from calls $$, :'w'), array['ended'], 'they are answered');
select is((select count(*) from ai.vectorized_rows where ref = any (:'refs') and state = 'embedded' and embedding::text like format('[%s,%s,1,%%', length(content), ascii(content))), 100::bigint, 'each row has the vector of its text');
drop table calls, made;
select t.note(701, 720) as a \gset
select t.note(721, 740) as b \gset
select t.note(741, 745) as c \gset
select t.note(746, 777) as d \gset
select t.note(778, 778, 9001) as e \gset
select t.queue(:'a') as ga, t.queue(:'b') as gb, t.queue(:'c') as gc, t.queue(:'d') as gd, t.queue(:'e', 9001) as ge \gset
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'zoe');
select ai.queue_embeddings(t.alpha(), 'zoe', 'mtap/embed', 'rows', array[1], 9000), ai.queue_embeddings(t.alpha(), 'ann', 'local/hash', 'rows', array[2], 9000), ai.queue_embeddings(t.alpha(), 'ann', 'mtap/embed', 'chunks', array[3], 9000) \gset ignored_
select is(jsonb_array_length(ai.embedding_inputs(t.alpha(), :'ga')), 20, 'of what does not fit as a whole nothing is taken, nor what comes after it');
select is(jsonb_array_length(ai.embedding_inputs(t.alpha(), :'gc')), 25, 'what fits is');
select is(ai.embedding_inputs(t.alpha(), :'gb'), '[]', 'whole');
select is(jsonb_array_length(ai.embedding_inputs(t.alpha(), :'gd')), 32, 'a full job takes none');
select is((select count(*) from ai.embedding_jobs where generation_id not in (:'ga', :'gb', :'gc', :'gd')), 4::bigint, 'nor is what is another version''s, model''s, user''s or kind''s taken');
select is(jsonb_array_length(ai.embedding_inputs(t.alpha(), :'ga')), 20, 'what is claimed again keeps what it has');
select ai.end_embedding_job(t.alpha(), :'gc', 'failed') as ignored \gset
select is(t.states((:'b'::bigint[])[1:2] || (:'c'::bigint[])[1:2]), 'failed failed failed failed', 'what was taken over fails with it');
delete from ai.embedding_jobs;

select t.note(551, 551) as refs \gset
select t.queue(:'refs') as g \gset
select t.pass('25 hours');
select is((select count(*) from t.claim(:'w')), 0::bigint, 'after a day it is too late');
select is(t.status(:'g') || ' ' || t.states(:'refs'), 'failed failed', 'and failed');

-- A model's context cuts texts; three characters a token
select t.note(561, 561) as refs \gset
select t.queue(:'refs') as g \gset
update ai.models set context_tokens = 2 where name = 'mtap/embed';
select is(ai.embedding_inputs(t.alpha(), :'g'), '["text 5"]', 'a text is cut to what the model takes');
update ai.models set context_tokens = null where name = 'mtap/embed';
select is(ai.embedding_inputs(t.alpha(), :'g'), '["text 561"]', 'where it says how much that is');

-- What is over is not embedded
update ai.vectorizer_versions set status = 'retired', retired_at = ai.now() where id = 9000;
select is(ai.embedding_inputs(t.alpha(), :'g'), '[]', 'a version that was replaced');
update ai.vectorizer_versions set status = 'current' where id = 9000;
delete from ai.vectorizers where id = 900;
select is(ai.embedding_inputs(t.alpha(), :'g'), '[]', 'or stopped');

-- Nobody but Martlet's own functions
select throws_ok(format($$ select ai.%s $$, f), '42501', null, format('a member may not call ai.%s', f))
  from (select set_config('session_authorization', 'mtap_adm', true)) s,
       (values ('queue_embeddings(null, null, null, null, null, null)'), ('embedding_inputs(null, null)'), ('store_embeddings(null, null, null)'), ('store_row_vectors(null, null, null)'), ('end_embedding_job(null, null, null)')) v (f);
select throws_ok('table ai.embedding_jobs', '42501', null, 'nor read the jobs');
reset session authorization;

select * from finish();
rollback;
