-- Collections and documents: who may change them, when what becomes searchable, replacing, deleting, rebuilding.
begin;
\ir setup/world.sql
select no_plan();

insert into ai.models (provider_id, name, wire_name, kind, dimensions)
select provider_id, 'mtap/tiny', 'tiny', 'embedding', 3 from ai.models where name = 'mtap/embed'
union all select provider_id, 'mtap/wide', 'wide', 'embedding', 4 from ai.models where name = 'mtap/embed';

-- What a worker would bring: the vectors of chunks (of those that have none of the version, at most so many), of this size.
create function t.embed(p_collection bigint, p_version bigint default 1, p_size integer default 3, p_limit integer default null, p_tenant uuid default t.alpha()) returns text language sql as $$
  select ai.store_chunk_vectors(p_tenant, p_version, array_agg(c.id order by c.id),
                                jsonb_agg((select jsonb_agg(1 + (c.id * i) % 7) from generate_series(1, p_size) i) order by c.id))
    from (select c.id from ai.chunks c
           where c.tenant_id = p_tenant and c.collection_id = p_collection
             and not exists (select from ai.chunk_vectors v where v.chunk_id = c.id and v.version = p_version)
             and not exists (select from ai.staged_vectors v where v.chunk_id = c.id and v.version = p_version)
           order by c.id limit p_limit) c
$$;
create function t.document(p_id uuid) returns ai.documents language sql as $$ select d from ai.documents d where d.id = p_id $$;
create function t.collection(p_id bigint) returns ai.collections language sql as $$ select c from ai.collections c where c.id = p_id $$;
create function t.found(p_collection text) returns setof text language sql as $$
  select content from ai.retrieve(t.alpha(), 'ann', p_collection, null, '[1, 1, 1]', null, 1000, 'vector') order by content collate "C" $$;
create function t.paragraphs(p_count integer, p_word text default 'word') returns text language sql as $$
  select string_agg(format('# %s %s', p_word, i) || E'\n' || repeat(p_word || ' ', 100), E'\n\n') from generate_series(1, p_count) i $$;
create function t.jobs(p_version bigint) returns bigint language sql as $$ select count(*) from ai.embedding_jobs where version = p_version $$;

-- Who may
set local session authorization mtap_dev;
select ai.create_collection('docs', 'mtap/tiny', target_tokens => 120, overlap_tokens => 0) as docs \gset
select isnt(:'docs'::bigint, null, 'a developer makes a collection');
set local session authorization mtap_adm;
select lives_ok($$ select ai.create_collection('admin''s', 'mtap/tiny') $$, 'an admin, too');
set local session authorization mtap_ann;
select throws_ok($$ select ai.create_collection('mine', 'mtap/tiny') $$, 'PT403', null, 'a user may not');
select throws_ok($$ select ai.add_document('docs', 'text') $$, 'PT403', null, 'nor add a document');
select throws_ok($$ select ai.delete_document(gen_random_uuid()) $$, 'PT403', null, 'nor delete one');
select throws_ok($$ select ai.retry_document(gen_random_uuid()) $$, 'PT403', null, 'nor try one again');
select throws_ok($$ select ai.rebuild_collection('docs') $$, 'PT403', null, 'nor rebuild');
select throws_ok($$ select ai.cancel_rebuild('docs') $$, 'PT403', null, 'nor stop that');
select throws_ok($$ select ai.delete_collection('docs') $$, 'PT403', null, 'nor delete the collection');
select throws_ok(format('insert into ai.%s default values', name), '42501', null, 'nor write to ai.' || name) from unnest(array['collections', 'documents', 'chunks', 'chunk_vectors', 'staged_vectors']) name;
select throws_ok(format('delete from ai.%s', name), '42501', null, 'nor delete from ai.' || name) from unnest(array['collections', 'documents', 'chunks', 'chunk_vectors', 'staged_vectors']) name;
select throws_ok(format('update ai.%s set tenant_id = null', name), '42501', null, 'nor update ai.' || name) from unnest(array['collections', 'documents', 'chunks', 'chunk_vectors']) name;
select throws_ok($$ select * from ai.staged_vectors $$, '42501', null, 'nor read what is on its way');
select throws_ok($$ select ai.put_document(t.beta(), 'bob', 'docs', 'text', null, null, '{}') $$, '42501', null, 'nor name a tenant');
select throws_ok($$ select ai.chunk_texts(t.beta(), '{1}') $$, '42501', null, 'nor be a worker');
set local session authorization mtap_adm;
select throws_ok($$ insert into ai.documents default values $$, '42501', null, 'an admin writes by functions only');
set local session authorization mtap_stray;
select throws_ok($$ select ai.create_collection('mine', 'mtap/tiny') $$, 'PT401', null, 'nobody is nobody');
select throws_ok($$ select ai.add_document('docs', 'text') $$, 'PT401', null, 'here as well');
set local session authorization mtap_worker;
select throws_ok($$ select ai.add_document('docs', 'text') $$, '42501', null, 'a worker adds nothing');
set local session authorization mtap_monitor;
select throws_ok($$ select * from ai.documents $$, '42501', null, 'a monitor reads nothing');

-- What a collection may be
set local session authorization mtap_dev;
select throws_ok($$ select ai.create_collection('docs', 'mtap/tiny') $$, 'PT409', null, 'a name is used once');
select throws_ok($$ select ai.create_collection('x', 'no/such') $$, 'PT404', null, 'a model that is none');
select throws_ok($$ select ai.create_collection('x', 'mtap/one') $$, 'PT404', null, 'a model that does not embed');
select throws_ok($$ select ai.create_collection('x', null) $$, 'PT404', null, 'no model');
select throws_ok($$ select ai.create_collection('x', 'mtap/embed') $$, 'PT400', null, 'a model of unknown size');
select throws_ok($$ select ai.create_collection('x', 'mtap/tiny', 4) $$, 'PT400', null, 'of another size');
select throws_ok(format($$ select ai.create_collection('x', 'mtap/embed', %s) $$, n), 'PT400', null, 'of size ' || n) from unnest(array[0, -1, 16001]) n;
select lives_ok($$ select ai.create_collection('of 16000', 'mtap/embed', 16000) $$, 'of 16000');
select throws_ok(format('select ai.create_collection(%L, %L)', name, 'mtap/tiny'), 'PT400', null, 'the name ' || coalesce(quote_literal(left(replace(name, E'\n', ' '), 20)), 'null')) from unnest(array[null, '', ' x', 'x ', E'a\nb', repeat('x', 101)]) name;
select lives_ok(format('select ai.create_collection(%L, %L)', repeat('x', 100), 'mtap/tiny'), 'a name of 100 letters');
select throws_ok($$ select ai.create_collection('x', 'mtap/tiny', language => 'klingon') $$, 'PT400', null, 'an unknown language');
select throws_ok($$ select ai.create_collection('x', 'mtap/tiny', language => 'english; drop table ai.chunks') $$, 'PT400', null, 'and none that is SQL');
select lives_ok($$ select ai.create_collection('deutsch', 'mtap/tiny', language => 'german') $$, 'a known one');
select throws_ok(format($$ select ai.create_collection('x', 'mtap/tiny', %s) $$, sizes), 'PT400', null, 'sizes of chunks that do not fit each other: ' || sizes)
  from unnest(array['target_tokens => 10', 'target_tokens => 2147483647', 'overlap_tokens => 2147483647', 'max_tokens => 2147483647', 'target_tokens => -2147483648']) sizes;

-- A document's life
select throws_ok($$ select ai.add_document('no such', 'text') $$, 'PT404', null, 'no such collection');
select throws_ok($$ select ai.add_document(null, 'text') $$, 'PT404', null, 'no collection');
select throws_ok($$ select ai.add_document('docs', null) $$, 'PT400', null, 'no content');
select throws_ok(format('select ai.add_document(%L, %L)', 'docs', E' \n\t\r'), 'PT400', null, 'an empty one');
select throws_ok($$ select ai.add_document('docs', 'text', metadata => '[]') $$, 'PT400', null, 'metadata that are no object');
select throws_ok($$ select ai.add_document('docs', 'text', metadata => null) $$, 'PT400', null, 'none');
select throws_ok($$ select ai.add_document('docs', 'text', uri => '') $$, 'PT400', null, 'an empty uri');
select throws_ok($$ select ai.add_document('docs', 'text', uri => repeat('x', 2001)) $$, 'PT400', null, 'a uri of 2001 bytes');
select throws_ok($$ select ai.add_document('docs', 'text', title => repeat('é', 1001)) $$, 'PT400', null, 'a title of 2002 bytes');
select throws_ok($$ select ai.add_document('docs', 'text', metadata => jsonb_build_object('x', repeat('x', 65536))) $$, 'PT413', null, 'long metadata');
select lives_ok($$ select ai.add_document('admin''s', 'text', repeat('é', 1000), repeat('x', 2000), jsonb_build_object('x', repeat('x', 65536 - 9))) $$, 'all of them at their limits');

select version as before from ai.collection_status('docs') \gset
select ai.add_document('docs', t.paragraphs(70), 'Words', 'urn:words', '{"of": "alpha"}') as d \gset
select results_eq(format('select status, chunks, live_revision, title, uri, metadata from ai.documents where id = %L', :'d'),
  $$ values ('pending', 70, null::integer, 'Words', 'urn:words', '{"of": "alpha"}'::jsonb) $$, 'it waits for its embeddings');
select results_eq(format('select count(*), count(distinct position), bool_or(live), min(heading), max(tokens) <= 160 from ai.chunks where document_id = %L', :'d'), $$ values (70::bigint, 70::bigint, false, 'word 1', true) $$, 'as 70 chunks');
reset session authorization;
select is((select count(*) from ai.embedding_jobs where version = 1 and refs <@ array(select id from ai.chunks where document_id = :'d')), 3::bigint, 'which are asked for in 3 calls of at most 32');
select results_eq($$ select distinct kind, model, purpose, user_id, tenant_id from ai.generations where purpose = 'chunks' and id in (select generation_id from ai.embedding_jobs) and user_id = 'dev' $$,
  $$ values ('embedding', 'mtap/tiny', 'chunks', 'dev', t.alpha()) $$, 'by who added it');
select results_eq(format($$ select content from ai.chunk_texts(%L, array(select id from ai.chunks where document_id = %L and position = 2)) $$, t.alpha(), :'d'),
  $$ values (E'Words > word 2\n\n# word 2\n' || rtrim(repeat('word ', 100))) $$, 'what is embedded says where it stands');
select is_empty(format($$ select * from ai.chunk_texts(%L, array(select id from ai.chunks where document_id = %L)) $$, t.beta(), :'d'), 'another tenant''s chunks have no text');
select is(t.embed(:docs, p_limit => 69), null, 'vectors come');
select results_eq(format('select (t.document(%L)).status, (t.collection(%s)).chunks', :'d', :docs), $$ values ('embedding', 0::bigint) $$, 'not all of them yet');
select is_empty($$ select t.found('docs') $$, 'so that it is not found');
select is_empty($$ select * from ai.retrieve(t.alpha(), 'ann', 'docs', 'word', null, null, 5, 'text') $$, 'nor by its words');
select is((select version from ai.collection_status('docs')), null, 'nobody sees no collection') from (select set_config('role', 'mtap_stray', true)) r;
reset role;
select is(t.embed(:docs), null, 'the last one comes');
select results_eq(format('select (t.document(%L)).status, (t.collection(%s)).chunks', :'d', :docs), $$ values ('ready', 70::bigint) $$, 'it is ready');
select is((select count(*) from t.found('docs')), 70::bigint, 'and found');
select is((t.collection(:docs)).version, :before + 1, 'the collection has another version');
select is_empty($$ select * from ai.staged_vectors $$, 'nothing is on its way any more');
select lives_ok(format($$ select ai.store_chunk_vectors(t.alpha(), 1, array(select id from ai.chunks where document_id = %L order by id), (select jsonb_agg('[9, 9, 9]'::jsonb) from generate_series(1, 70))) $$, :'d'), 'what comes twice');
select is((select count(*) from ai.chunk_vectors where embedding = '[9, 9, 9]'), 0::bigint, 'changes nothing');

-- The same again
set local session authorization mtap_dev;
select is(ai.add_document('docs', t.paragraphs(70), 'Words', 'urn:words', '{"of": "alpha"}'), :'d'::uuid, 'the same content under the same uri is the same document');
select results_eq(format('select revision, status from ai.documents where id = %L', :'d'), $$ values (1, 'ready') $$, 'nothing happens');
select is(ai.add_document('docs', t.paragraphs(70), 'Words', 'urn:words', '{"of": "beta"}'), :'d'::uuid, 'other metadata');
select results_eq(format('select revision, status, metadata from ai.documents where id = %L', :'d'), $$ values (1, 'ready', '{"of": "beta"}'::jsonb) $$, 'are changed in place');
select is((select version from ai.collection_status('docs')), :before + 2, 'which is another version of the collection');
select ai.add_document('docs', 'No address.') as anon \gset
select is(ai.add_document('docs', 'No address.'), :'anon'::uuid, 'without a uri the content identifies it');
select isnt(ai.add_document('docs', 'No address.', 'A title'), :'anon'::uuid, 'with its title');
select isnt(ai.add_document('docs', 'No address.', uri => 'urn:1'), :'anon'::uuid, 'a uri makes it another');
reset session authorization;
select is(t.embed(:docs), null, 'these are embedded, too');

-- Replacing
set local session authorization mtap_dev;
select is(ai.add_document('docs', t.paragraphs(2, 'new'), 'Words', 'urn:words'), :'d'::uuid, 'other content replaces the document');
select is(ai.add_document('docs', t.paragraphs(3, 'newer'), 'Words', 'urn:words'), :'d'::uuid, 'and again before it was embedded');
select results_eq(format('select status, revision, live_revision, chunks from ai.documents where id = %L', :'d'), $$ values ('pending', 3, 1, 3) $$, 'it waits');
reset session authorization;
select results_eq(format('select revision, count(*), bool_and(live) from ai.chunks where document_id = %L group by 1 order by 1', :'d'), $$ values (1, 70::bigint, true), (3, 3::bigint, false) $$,
  'what was never searched is gone, what is searched stays');
select is((select count(*) from t.found('docs')), 73::bigint, 'and is found');
select t.embed(:docs, p_limit => 2) \gset ignored_
select is((select count(*) from t.found('docs') f where f like '%newer%'), 0::bigint, 'until the last vector has come');
select t.embed(:docs) \gset ignored_
select results_eq($$ select count(*) filter (where f like '%newer%'), count(*) filter (where f like '%word%') from t.found('docs') f $$, $$ values (3::bigint, 0::bigint) $$, 'then the new one is found, and nothing of the old');
select results_eq(format('select status, revision, live_revision from ai.documents where id = %L', :'d'), $$ values ('ready', 3, 3) $$, 'it is ready');
select is((t.collection(:docs)).chunks, (select count(*) from ai.chunks where collection_id = :docs and live), 'the collection counts right');
select is((t.collection(:docs)).chunks, (select count(*) from ai.chunk_vectors where collection_id = :docs), 'and has as many vectors');

-- What fails
set local session authorization mtap_dev;
select ai.add_document('docs', t.paragraphs(2, 'bad'), null, 'urn:words') as same \gset
reset session authorization;
select ai.chunk_embedding_failed(t.alpha(), 1, array(select id from ai.chunks where document_id = :'d' and not live), '{"class": "permanent"}') \gset ignored_
select results_eq(format('select status, error, live_revision from ai.documents where id = %L', :'d'), $$ values ('failed', '{"class": "permanent"}'::jsonb, 3) $$, 'a document whose embedding failed says so');
select is((select count(*) from t.found('docs') f where f like '%newer%'), 3::bigint, 'what it was to replace is still found');
select count(*) as jobs from ai.embedding_jobs \gset
set local session authorization mtap_dev;
select is(ai.retry_document(:'d'), 2::bigint, 'it is tried again');
select is((select status from ai.documents where id = :'d'), 'pending', 'and waits');
select throws_ok($$ select ai.retry_document(gen_random_uuid()) $$, 'PT404', null, 'there is no other');
reset session authorization;
select is((select count(*) from ai.embedding_jobs), :jobs + 1::bigint, 'its chunks are asked for');
select matches(t.embed(:docs, p_size => 4), 'dimensions', 'vectors of another size are refused with the reason');
select results_eq(format($$ select status, error ->> 'class' from ai.documents where id = %L $$, :'d'), $$ values ('failed', 'malformed') $$, 'and the document has failed');
set local session authorization mtap_dev;
select is(ai.add_document('docs', t.paragraphs(2, 'bad'), null, 'urn:words'), :'d'::uuid, 'to add it again is to try again');
reset session authorization;
select is((t.document(:'d')).status, 'pending', 'it waits');
create function t.refuses(p_vectors jsonb) returns text language sql as $$
  select ai.store_chunk_vectors(t.alpha(), 1, array(select id from ai.chunks where not live and collection_id = (select id from ai.collections where name = 'docs') order by id), p_vectors) $$;
select isnt(t.refuses(v::jsonb), null, 'refused: ' || v)
  from unnest(array['{}', '[]', '[[1, 2, 3]]', '[[1, 2, 3], [1, 2]]', '[[1, 2, 3], null]', '[[1, 2, 3], "[1, 2, 3]"]', '[[1, 2, 3], [1, 2, null]]', '[[1, 2, 3], [1, 2, "x"]]', '[[1, 2, 3], [1, 2, 1e300]]', '[[1, 2, 3], [1, 2, 70000]]',
                    '[[1, 2, 3], [1, 2, [3]]]', 'null']) v;
select isnt(t.refuses(null), null, 'refused: nothing');
select is((t.document(:'d')).live_revision, 3, 'none of these made anything searchable');
select is(t.refuses('[[1, 2, 3], [0, 0, 0]]'), null, 'a vector without direction is taken');
select is((t.document(:'d')).status, 'ready', 'and the document complete');
select is(ai.store_chunk_vectors(t.alpha(), 1, '{999999999}', '[[1, 2, 3]]'), null, 'vectors of chunks that are gone are thrown away');
select is(ai.store_chunk_vectors(t.beta(), 1, array(select id from ai.chunks where document_id = :'d' order by id), '[[7, 7, 7], [7, 7, 7]]'), null, 'as are those for another tenant''s');
select is((select count(*) from ai.chunk_vectors where embedding = '[7, 7, 7]') + (select count(*) from ai.staged_vectors), 0::bigint, 'nothing is left of them');

-- Deleting
set local session authorization mtap_bob;
select is_empty($$ select * from ai.collections union all select * from ai.collections $$, 'another tenant sees no collection');
reset session authorization;
update ai.members set role = 'admin' where tenant_id = t.beta() and user_id = 'bob';
set local session authorization mtap_bob;
select is(ai.delete_document(:'d'), false, 'whose documents another tenant''s admin does not delete');
select throws_ok(format('select ai.retry_document(%L)', :'d'), 'PT404', null, 'nor try again');
select throws_ok($$ select ai.add_document('docs', 'text') $$, 'PT404', 'there is no collection docs', 'its collection is not there for him');
select throws_ok($$ select ai.add_document('nocs', 'text') $$, 'PT404', 'there is no collection nocs', 'as any that does not exist');
select throws_ok($$ select ai.rebuild_collection('docs') $$, 'PT404', null, 'to be rebuilt');
select throws_ok($$ select ai.delete_collection('docs') $$, 'PT404', null, 'or to be deleted');
select lives_ok($$ select ai.create_collection('docs', 'mtap/tiny') $$, 'he may use the name for his own');
select lives_ok($$ select ai.add_document('docs', 'Bob''s.', uri => 'urn:words') $$, 'and the uri');
select results_eq($$ select name, documents, waiting from ai.collection_status() $$, $$ values ('docs', 1::bigint, 1::bigint) $$, 'which is all that he sees');
select is_empty(format('select * from ai.%s where tenant_id <> %L', name, t.beta()), 'nothing of alpha in ai.' || name) from unnest(array['collections', 'documents', 'chunks', 'chunk_vectors']) name;
set local session authorization mtap_dev;
select is((select documents from ai.collection_status('docs')), 4::bigint, 'nor is Bob''s there for alpha');
select version as before, chunks as had from ai.collection_status('docs') \gset
select is(ai.delete_document(:'d'), true, 'a developer deletes a document');
select is(ai.delete_document(:'d'), false, 'once');
select results_eq($$ select version, chunks, documents from ai.collection_status('docs') $$, format('values (%s::bigint, %s::bigint, 3::bigint)', :before + 1, :had - 2), 'the collection knows');
reset session authorization;
select is_empty(format('select id from ai.chunks where document_id = %L union all select chunk_id from ai.chunk_vectors where document_id = %L', :'d', :'d'), 'nothing is left of it');
select is((select count(*) from t.found('docs') f where f like '%bad%'), 0::bigint, 'it is not found');
set local session authorization mtap_dev;
select ai.add_document('docs', 'Never embedded.', uri => 'urn:never') as never \gset
select is(ai.delete_document(:'never'), true, 'one that waits is deleted as well');
reset session authorization;

-- A rebuild beside what is searched
select (t.collection(:docs)).version as before, (t.collection(:docs)).chunks as had \gset
set local session authorization mtap_dev;
select throws_ok($$ select ai.rebuild_collection('docs', 'no/such') $$, 'PT404', null, 'a rebuild needs a model');
select throws_ok($$ select ai.rebuild_collection('docs', 'mtap/embed') $$, 'PT400', null, 'of known size');
select ai.add_document('docs', t.paragraphs(2, 'waiting'), uri => 'urn:waiting') as w \gset
select is(ai.rebuild_collection('docs', 'mtap/wide'), :had + 2::bigint, 'all chunks are embedded anew, those that wait for their first vectors, too');
select results_eq($$ select model, next_model, next_done, next_total from ai.collection_status('docs') $$, format($$ values ('mtap/tiny', 'mtap/wide', 0::bigint, %s::bigint) $$, :had), 'what is searched is as it was');
select ai.add_document('docs', t.paragraphs(3, 'meanwhile'), uri => 'urn:meanwhile') as m \gset
reset session authorization;
select is(t.jobs(2), 2::bigint, 'what is added meanwhile is embedded twice');
select is(t.embed(:docs, 2, 4, 1), null, 'the first new vector comes');
set local session authorization mtap_ann;
select results_eq($$ select version, next_done from ai.collection_status('docs') $$, format('values (%s::bigint, 1::bigint)', :before), 'members see the progress');
reset session authorization;
select is(t.embed(:docs), null, 'what waits for the old ones has them');
select is((t.document(:'m')).status, 'ready', 'and is ready');
select is((t.collection(:docs)).next_chunks, 1::bigint, 'the new ones are counted apart');
select is(t.embed(:docs, 2, 4, 4), null, 'more new ones come');
select (t.collection(:docs)).chunks - (t.collection(:docs)).next_chunks as missing \gset
select cmp_ok(:missing, '>', 1, 'some are missing');
select is((select count(*) from t.found('docs')), (t.collection(:docs)).chunks, 'a search still asks with vectors of the old size');
select is(t.embed(:docs, 2, 3, 1), 'a vector has 3 dimensions; the collection has 4', 'of the old size is no new one');
select is((t.collection(:docs)).next_error ->> 'class', 'malformed', 'which the rebuild remembers');
set local session authorization mtap_dev;
select is(ai.rebuild_collection('docs', 'mtap/wide'), :missing::bigint, 'asked for again, only what is missing is embedded');
select is((select next_error from ai.collection_status('docs')), null, 'and the error is forgotten');
reset session authorization;
select is(t.embed(:docs, 2, 4, :missing - 1), null, 'all but one');
select is((t.collection(:docs)).model, 'mtap/tiny', 'are not enough');
set local session authorization mtap_dev;
select is(ai.delete_document((select document_id from ai.chunks c where not exists (select from ai.chunk_vectors v where v.chunk_id = c.id and v.version = 2) and exists (select from ai.collections where id = c.collection_id and name = 'docs'))), true, 'the last one is deleted');
select results_eq($$ select model, next_model, documents = ready from ai.collection_status('docs') $$, $$ values ('mtap/wide', null::text, true) $$, 'which completes the rebuild');
reset session authorization;
select cmp_ok((t.collection(:docs)).version, '>', :before::bigint, 'another version');
select is(ai.collection_model(t.alpha(), 'docs'), 'mtap/wide', 'questions are embedded with the new model');
select is((select count(*) from ai.retrieve(t.alpha(), 'ann', 'docs', null, '[1, 1, 1, 1]', null, 100, 'vector')), (t.collection(:docs)).chunks, 'and find everything');
select is_empty($$ select t.found('docs') $$, 'one of the old size finds nothing near, and does not fail');
select isnt((select count(*) from ai.chunk_vectors where collection_id = :docs and version = 1), 0::bigint, 'the old vectors are still there');
select is(ai.store_chunk_vectors(t.alpha(), 1, array(select id from ai.chunks where collection_id = :docs order by id limit 1), '[[1, 2, 3]]'), null, 'more of them are thrown away');
select cmp_ok(ai.finish_collections(), '>=', 1, 'the tick removes them');
select results_eq(format('select version, count(*) = (t.collection(%1$s)).chunks from ai.chunk_vectors where collection_id = %1$s group by 1', :docs), 'values (2::bigint, true)', 'all of them');
select is((t.collection(:docs)).stale, false, 'and is done');
set local session authorization mtap_dev;
select cmp_ok(ai.rebuild_collection('docs', 'mtap/tiny'), '>', 0::bigint, 'another rebuild');
select is(ai.cancel_rebuild('docs'), true, 'is stopped');
select is(ai.cancel_rebuild('docs'), false, 'once');
reset session authorization;
select is(t.embed(:docs, 3), null, 'what it would have brought');
select is((select count(*) from ai.chunk_vectors where version = 3) + (select count(*) from ai.staged_vectors), 0::bigint, 'is thrown away');
set local session authorization mtap_dev;
select ai.create_collection('empty', 'mtap/tiny') \gset ignored_
select is(ai.rebuild_collection('empty', 'mtap/wide'), 0::bigint, 'an empty collection is rebuilt');
select is((select model from ai.collection_status('empty')), 'mtap/wide', 'at once');
select ai.add_document('empty', 'One.', uri => 'urn:one') as one \gset
select is(ai.rebuild_collection('empty'), 1::bigint, 'with a document that waits it changes over at once as well');
reset session authorization;
select is(t.embed((select id from ai.collections where name = 'empty'), 3, 4), null, 'and the document is ready by the new version');
select is((t.document(:'one')).status, 'ready', 'alone');

-- What locks kept from being finished
insert into ai.staged_vectors (tenant_id, collection_id, document_id, version, chunk_id, embedding)
select tenant_id, collection_id, document_id, 2, 999999999, '[1, 2, 3, 4]' from ai.chunks where collection_id = :docs limit 1;
set local session authorization mtap_dev;
select ai.add_document('docs', 'Left behind.', uri => 'urn:left') as left \gset
reset session authorization;
insert into ai.staged_vectors (tenant_id, collection_id, document_id, version, chunk_id, embedding)
select tenant_id, collection_id, document_id, 2, id, '[1, 2, 3, 4]' from ai.chunks where document_id = :'left';
select is((t.document(:'left')).status, 'pending', 'vectors that were stored while the collection was locked');
select cmp_ok(ai.finish_collections(), '>=', 1, 'are seen to by the tick');
select is((t.document(:'left')).status, 'ready', 'which makes the document ready');
select is_empty($$ select * from ai.staged_vectors $$, 'and throws away what belongs to nothing');

-- The size of a document, at its limit and beyond
update ai.settings set max_document_bytes = 100;
set local session authorization mtap_dev;
select lives_ok($$ select ai.add_document('docs', repeat('é', 50)) $$, 'a document of exactly the limit');
select throws_ok($$ select ai.add_document('docs', repeat('é', 50) || 'x') $$, 'PT413', null, 'one of a byte more');

-- The end of a collection
select lives_ok($$ select ai.delete_collection('docs') $$, 'a collection is deleted');
select throws_ok($$ select ai.delete_collection('docs') $$, 'PT404', null, 'once');
reset session authorization;
select is((select count(*) from ai.documents where collection_id = :docs) + (select count(*) from ai.chunks where collection_id = :docs) + (select count(*) from ai.chunk_vectors where collection_id = :docs), 0::bigint, 'with everything in it');
select is((select count(*) from ai.collections where name = 'docs'), 1::bigint, 'and nothing of another tenant');
select is(ai.collection_version(t.alpha(), 'docs'), null, 'it has no version any more');
select is(ai.collection_model(t.alpha(), 'docs'), null, 'nor a model');
set local session authorization mtap_dev;
select ai.create_collection('docs', 'mtap/tiny') \gset ignored_
select cmp_ok((select version from ai.collection_status('docs')), '>', :before::bigint, 'one made anew under its name has a version that the first one never had');
reset session authorization;

select * from finish();
rollback;
