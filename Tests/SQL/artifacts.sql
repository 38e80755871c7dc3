-- Files: who sees them, what messages may refer to, what a worker is told, and that nothing is left behind in a store.
begin;
\ir setup/world.sql
select no_plan();
select t.worker() as w \gset
create function t.id(p_role text, p_sql text) returns uuid language plpgsql as $$
declare
  v_id uuid;
begin
  execute format('set local session authorization %I', p_role);
  execute p_sql into v_id;
  execute 'reset session authorization';
  return v_id;
end
$$;
create function t.part(p_artifact text) returns text language sql as $$
  select format('[{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "artifact", "artifact": "%s"}]}]', p_artifact)
$$;
create function t.sends(p_artifact text) returns text language sql as $$
  select format('insert into ai.generations (messages, model) values (%L, ''mtap/one'')', t.part(p_artifact))
$$;

-- Adding, reading, deleting
select t.id('mtap_ann', $$ select ai.add_artifact('\x0102'::bytea, 'Image/PNG; x=y', 'a.png') $$) as file \gset
select results_eq($$ select tenant_id, user_id, name, media_type, bytes, sha256, shared, status, object_id from ai.artifacts $$,
  $$ select t.alpha(), 'ann', 'a.png', 'image/png', 2, sha256('\x0102'), false, 'ready', null::uuid $$, 'a file is the caller''s, with its hash');
select is(t.as_role('mtap_ann', format('select ai.artifact_content(%L)', :'file')), 'ok 1', 'who added it reads it');
select is(t.as_role('mtap_dev', format('select ai.artifact_content(%L)', :'file')), 'ok 1', 'so does who sees what every member asked');
select is(t.as_role(r, format('select ai.artifact_content(%L)', :'file')), e, format('%s does not', r)) from (values ('mtap_bob', 'PT404'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501')) v (r, e);
select is(t.as_role('mtap_bob', format('select ai.recall_artifact(%L)', :'file')), 'PT404', 'nor is it fetched back for another tenant');
select is(t.as_role('mtap_bob', format('select ai.delete_artifact(%L)', :'file')), 'ok 1', 'who is of another tenant');
select is((select count(*) from ai.artifacts), 1::bigint, 'deletes nothing');
select is(t.as_role('mtap_dev', format('select ai.delete_artifact(%L)', :'file')), 'ok 1', 'who only sees it');
select is((select count(*) from ai.artifacts), 1::bigint, 'deletes nothing either');
select throws_ok(format('set local session authorization mtap_ann; %s', q), e, null, format('refused: %s', q))
  from (values ('select ai.add_artifact(null, ''image/png'')', 'PT400'), ('select ai.add_artifact(''x'', ''image'')', 'PT400'), ('select ai.add_artifact(''x'', null)', 'PT400'),
               ('select ai.add_artifact(''x'', ''image/png'', '''')', 'PT400'), ('select ai.add_artifact(''x'', ''image/png'', E''a\nb'')', 'PT400'),
               ('select ai.add_artifact(''x'', ''image/png'', keep => ''0'')', 'PT400'), ('select ai.add_artifact(''x'', ''image/png'', keep => ''178000000 years'')', 'PT400'), ('insert into ai.artifacts default values', '42501'),
               ('select content from ai.artifact_parts', '42501'), ('select key from ai.artifact_objects', '42501'), ('select endpoint from ai.artifact_stores', '42501'),
               ('select object_id from ai.artifacts', '42501')) v (q, e);
reset session authorization;
update ai.artifact_policies set max_bytes = 5000000;
select is(t.as_role('mtap_ann', 'select ai.add_artifact(convert_to(repeat(''x'', 5000000), ''UTF8''), ''text/plain'')'), 'ok 1', 'a file of the largest size');
select is(t.as_role('mtap_ann', 'select ai.add_artifact(convert_to(repeat(''x'', 5000001), ''UTF8''), ''text/plain'')'), 'PT413', 'one byte more');
select results_eq($$ select n::integer, octet_length(content) from ai.artifact_parts where artifact_id = (select id from ai.artifacts where bytes = 5000000) order by n $$,
  $$ values (0, 2097152), (1, 2097152), (2, 805696) $$, 'lies in parts of 2 MiB');
delete from ai.artifacts where bytes = 5000000;
insert into ai.artifact_policies (tenant_id, max_bytes, keep) values (t.beta(), 1, '1 hour');
select is(t.as_role('mtap_bob', $$ select ai.add_artifact('xx', 'text/plain') $$), 'PT413', 'a tenant''s own policy goes before the shared one');
select t.id('mtap_bob', $$ select ai.add_artifact('x', 'text/plain', keep => '1 day', shared => true) $$) as theirs \gset
select is((select expires_at - created_at from ai.artifacts where id = :'theirs'), interval '1 hour', 'and keeps no file longer than it says');

-- Messages
select is(t.as_role('mtap_ann', t.sends(:'file')), 'ok 1', 'one''s own file goes into a message');
select is(t.as_role('mtap_ann', t.sends(upper(:'file'))), 'ok 1', 'its id in capitals');
select is(t.as_role('mtap_ann', t.sends(:'theirs')), 'PT404', 'a shared file of another tenant does not exist');
select is(t.as_role('mtap_ann', t.sends(gen_random_uuid()::text)), 'PT404', 'by the same answer as one that is none');
select is(t.as_role('mtap_ann', t.sends(x)), 'PT400', format('no id: %s', left(x, 20))) from unnest(array['', 'x', '../etc', repeat('a', 36)]) x;
select t.id('mtap_adm', $$ select ai.add_artifact('adm', 'text/plain') $$) as admins \gset
select is(t.as_role('mtap_ann', t.sends(:'admins')), 'PT404', 'nor does another member''s');
select is(t.as_role('mtap_dev', t.sends(:'file')), 'PT404', 'which is not one''s own to send, although one sees it');
update ai.artifacts set shared = true where id = :'admins';
select is(t.as_role('mtap_ann', t.sends(:'admins')), 'ok 1', 'unless it is shared');
select results_eq($$ select distinct input_artifacts from ai.generations where input_artifacts is not null order by 1 $$,
  format('values (array[%L::uuid]), (array[%L::uuid])', least(:'file', :'admins'), greatest(:'file', :'admins')), 'the row says which');
select is(t.as_role('mtap_ann', format('insert into ai.generations (messages, model) values (%L, ''mtap/one'')',
  jsonb_build_array(jsonb_build_object('role', 'user', 'content', (select jsonb_agg(jsonb_build_object('type', 'image_url', 'image_url', jsonb_build_object('url', 'https://a.test/' || n)))
                                                                         from generate_series(1, k) n))))), e, format('%s addresses', k))
  from (values (32, 'ok 1'), (33, 'PT413')) v (k, e);
update ai.artifact_policies set request_bytes = 4 where tenant_id is null;
select is(t.as_role('mtap_ann', format('insert into ai.generations (messages, model) values (%L, ''mtap/one'')',
  jsonb_build_array(jsonb_build_object('role', 'user', 'content', jsonb_build_array(jsonb_build_object('type', 'artifact', 'artifact', :'file'),
                                                                                    jsonb_build_object('type', 'artifact', 'artifact', :'admins')))))), 'PT413', 'together they are too large');
delete from ai.artifact_policies where tenant_id is null;
insert into ai.artifact_policies default values;

-- What a worker is told
select (request -> 'files' -> :'file')::text as told from ai.worker_claim(:'w', 100, null) where request -> 'files' ? :'file' limit 1 \gset
select ok(:'told'::jsonb @> jsonb_build_object('bytes', 2, 'media_type', 'image/png', 'sha256', encode(sha256('\x0102'), 'hex')), 'the claim names what is to be fetched, with its hash');
select is(ai.request_files(t.alpha(), 'ann', t.part(:'theirs')::jsonb, true), format('{"%s": {"gone": true}}', :'theirs')::jsonb, 'another tenant''s file is gone, however it came into the messages');
select is(ai.request_files(t.alpha(), 'abe', t.part(:'file')::jsonb, true), format('{"%s": {"gone": true}}', :'file')::jsonb, 'so is another member''s');
select is(ai.request_files(t.alpha(), 'ann', '[{"role": "user", "content": "x"}]', true), null, 'nothing for messages without files');
select is(ai.message_urls('[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://i.test"}}, {"type": "input_audio", "input_audio": {"data": "HTTP://a.test"}},
                             {"type": "file", "file": {"file_data": "data:x"}}, {"type": "input_audio", "input_audio": {"data": "aGk="}}]}]', a), e, format('addresses that a worker fetches: %s', a))
  from (values (false, array['HTTP://a.test']), (true, array['HTTP://a.test', 'https://i.test'])) v (a, e);
select is((select count(*) from ai.worker_part(:'w', t.alpha(), :'file', 0) where content = '\x0102'), 1::bigint, 'a part of it');
select is_empty(format('select from ai.worker_part(%L, %L, %L, 0)', :'w', t.beta(), :'file'), 'not under another tenant');
select throws_ok(format('select from ai.worker_part(%L, %L, %L, 0)', gen_random_uuid(), t.alpha(), :'file'), 'PT404', null, 'nor for who is no worker');

-- What models make
insert into ai.artifact_stores (name, endpoint, bucket, prefix, secret) values ('s3', 'https://s3.test', 'files', 'a/', 'S3_KEY');
select generation_id as g, attempt as n from ai.leases where tenant_id = t.alpha() order by 1 limit 1 \gset
create function t.place(p_generation uuid, p_attempt integer, p_bytes integer, p_avoid boolean) returns table (place text, artifact_id uuid, object jsonb) language sql as $$
  select p.place, p.artifact_id, p.object
    from ai.worker_place_files((select id from ai.workers), p_generation, p_attempt,
           jsonb_build_array(jsonb_build_object('media_type', 'image/png', 'bytes', p_bytes, 'sha256', encode(sha256('x'), 'hex'))), p_avoid) p
$$;
select is((select place from t.place(:'g', :n, b, a)), e, format('%s bytes, %s', b, a))
  from (values (1048576, false, 'database'), (1048577, false, 'store'), (1048577, true, 'database'), (33554432, true, 'database'), (33554433, true, 'too_large')) v (b, a, e);
update ai.artifact_policies set max_bytes = 67108864;
select is((select place from t.place(:'g', :n, b, a)), e, format('%s bytes where more is allowed, %s', b, a))
  from (values (33554433, true, 'too_large'), (67108864, false, 'store')) v (b, a, e);
select is_empty(format('select from t.place(%L, %s, 1, false)', :'g', :n + 1), 'nothing for another attempt');
select artifact_id as made, object ->> 'url' as url from t.place(:'g', :n, 2000000, false) \gset
select ok(:'url' ~ ('^https://s3\.test/files/a/' || t.alpha() || '/' || :'made' || '-[0-9a-f-]{36}$'), 'a key begins with the tenant and cannot be guessed');
select is((select count(*) from ai.artifacts where status = 'staged'), 1::bigint, 'asked again it begins anew');
select is((select count(*) from ai.artifact_objects where state = 'uploading'), 3::bigint, 'and forgets no upload');
select is(t.as_role('mtap_ann', format('select from ai.artifacts where id = %L', :'made')), 'ok 0', 'what is staged nobody sees');
select is(t.as_role('mtap_ann', format('select ai.artifact_content(%L)', :'made')), 'PT404', 'nor reads');
select is(ai.worker_put_part(:'w', t.alpha(), :'made', 0, 'x'), true, 'the worker that has leased the attempt writes it');
select is(ai.worker_put_part(:'w', t.beta(), :'made', 0, 'x'), false, 'not under another tenant');
select is(ai.worker_put_part(:'w', t.alpha(), :'file', 0, 'x'), false, 'and no file that is finished');
select throws_ok($$ insert into ai.artifact_objects (tenant_id, store_id, artifact_id, user_id, key, state, due_at) select t.beta(), store_id, artifact_id, user_id, key || 'x', state, due_at from ai.artifact_objects limit 1 $$,
  '23514', null, 'no object has another tenant''s key');
select ai.sweep_artifacts(ai.now() + interval '1 day') \g /dev/null
select is((select status from ai.artifacts where id = :'made'), 'staged', 'what is leased is not swept away, however long it takes');
select is((select state from ai.artifact_objects where artifact_id = :'made'), 'uploading', 'nor its object');
select is((select count(*) from ai.artifact_objects where state = 'doomed'), 2::bigint, 'but those of before, once nobody can be writing them');
select is((select result from ai.worker_settle(:'w', jsonb_build_array(jsonb_build_object('id', :'g', 'attempt', :n, 'outcome', 'succeeded', 'output', '', 'files', jsonb_build_array(:'made'),
  'usage', '{"input": 1, "output": 1}'::jsonb)))), 'ended', 'the settle');
select results_eq(format($$ select g.artifacts, a.status, o.state from ai.generations g join ai.artifacts a on a.generation_id = g.id join ai.artifact_objects o on o.id = a.object_id where g.id = %L $$, :'g'),
  format($$ values (array[%L::uuid], 'ready', 'stored') $$, :'made'), 'makes file and object ready with the end of the generation');
select is(t.as_role('mtap_ann', format('select ai.artifact_content(%L) is null, ai.recall_artifact(%1$L)', :'made')), 'ok 1', 'it lies in the store, and is asked for');
select results_eq(format('select job, id, bytes, object ->> ''url'' from ai.worker_artifact_jobs(%L, 10) where job = ''recall''', :'w'), format('values (''recall'', %L::uuid, 2000000, %L)', :'made', :'url'), 'a worker is told to fetch it back');
select is_empty(format('select from ai.worker_artifact_jobs(%L, 10) where job = ''recall''', :'w'), 'one worker');
select is(ai.worker_put_part(:'w', t.alpha(), :'made', 0, 'back'), true, 'it puts the parts');
select is(ai.worker_artifact_done(:'w', 'recall', t.alpha(), :'made'), true, 'and says when all are there');
select is(t.as_role('mtap_ann', format('select from (select ai.artifact_content(%L) as c) x where c = ''back''', :'made')), 'ok 1', 'then they are read');
select ai.sweep_artifacts(ai.now() + interval '61 minutes') \g /dev/null
select is((select count(*) from ai.artifact_parts where artifact_id = :'made'), 0::bigint, 'for an hour');

-- An attempt that ends otherwise
select generation_id as g2, attempt as n2 from ai.leases where tenant_id = t.alpha() order by 1 limit 1 \gset
select artifact_id as lost from t.place(:'g2', :n2, 2000000, false) \gset
select result from ai.worker_settle(:'w', jsonb_build_array(jsonb_build_object('id', :'g2', 'attempt', :n2, 'outcome', 'failed', 'signal', 'malformed'))) \g /dev/null
select ai.sweep_artifacts(ai.now()) \g /dev/null
select is((select count(*) from ai.artifacts where id = :'lost'), 0::bigint, 'leaves no file');
select is((select state from ai.artifact_objects where artifact_id = :'lost'), 'uploading', 'its object may still be on its way');
select ai.sweep_artifacts(ai.now() + interval '301 seconds') \g /dev/null
select is((select state from ai.artifact_objects where artifact_id = :'lost'), 'uploading', 'as long as an upload may take, and a minute');
select ai.sweep_artifacts(ai.now() + interval '361 seconds') \g /dev/null
select is((select state from ai.artifact_objects where artifact_id = :'lost'), 'doomed', 'and is removed then');

-- Removal
update ai.artifact_objects set due_at = ai.now() where state = 'doomed';
create table t.jobs as select * from ai.worker_artifact_jobs(:'w', 100) where job = 'delete';
select is((select count(*) from t.jobs), 3::bigint, 'what is doomed is given to a worker');
select is_empty(format('select from ai.worker_artifact_jobs(%L, 100) where job = ''delete''', :'w'), 'once, until some time has passed');
select is((select count(*) from ai.artifact_objects where state = 'doomed' and due_at between ai.now() + interval '50 seconds' and ai.now() + interval '1 minute'), 3::bigint, 'a minute, then longer');
select is(bool_and(ai.worker_artifact_done(:'w', 'delete', tenant_id, id)), true, 'it says that the object is gone') from t.jobs;
select is((select count(*) from ai.artifact_objects where state <> 'stored'), 0::bigint, 'and nothing tells of it any more');
select is(ai.worker_artifact_done(:'w', 'delete', t.alpha(), (select object_id from ai.artifacts where id = :'made')), false, 'an object that is needed cannot be said to be gone');

-- Forgetting: not finished before the store has confirmed
select ai.forget_user('ann', t.alpha()) \g /dev/null
select is((select count(*) from ai.artifacts where user_id = 'ann'), 0::bigint, 'files go at once');
select ai.continue_forgetting(ai.now()), ai.continue_forgetting(ai.now()), ai.continue_forgetting(ai.now()) \g /dev/null
select is((select finished_at from ai.forgotten where user_id = 'ann'), null, 'a person is not forgotten while a store may still have something');
select is((select remaining from ai.forget_user('ann', t.alpha()) where what = 'artifacts'), 1::bigint, 'and one is told so');
select ai.worker_artifact_done(:'w', 'delete', tenant_id, id) from ai.worker_artifact_jobs(:'w', 10) where job = 'delete' \g /dev/null
select t.as_role('mtap_worker', format('select ai.worker_stop(%L)', :'w')) \g /dev/null
-- Each call does as much as it has time for.
select ai.continue_forgetting(ai.now()) from generate_series(1, 20) \g /dev/null
select isnt((select finished_at from ai.forgotten where user_id = 'ann'), null, 'once it has confirmed that all is gone, so is the person');

select * from finish();
rollback;
