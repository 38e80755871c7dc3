-- Search: by vectors, by words, by both; exactly and by an index; what a filter, a threshold and a limit do; and that
-- no tenant finds anything of another, whatever is asked.
begin;
\ir setup/world.sql
select no_plan();

insert into ai.models (provider_id, name, wire_name, kind, dimensions)
select provider_id, 'mtap/tiny', 'tiny', 'embedding', 3 from ai.models where name = 'mtap/embed';
update ai.members set role = 'admin' where tenant_id = t.beta() and user_id = 'bob';

-- A document of one chunk with this vector
create function t.document(p_tenant uuid, p_collection text, p_content text, p_vector jsonb, p_metadata jsonb default '{}', p_title text default null, p_uri text default null)
returns uuid language plpgsql as $$
declare
  v_id uuid := ai.put_document(p_tenant, case p_tenant when t.alpha() then 'dev' else 'bob' end, p_collection, p_content, p_title, p_uri, p_metadata);
begin
  if p_vector is not null then
    perform ai.store_chunk_vectors(p_tenant, 1, array(select id from ai.chunks where document_id = v_id and not live), jsonb_build_array(p_vector));
  end if;
  return v_id;
end
$$;

set local session authorization mtap_ann;
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]') $$, 'PT404', null, 'where there is no collection nothing is searched');
set local session authorization mtap_dev;
select ai.create_collection('birds', 'mtap/tiny') as birds \gset
set local session authorization mtap_bob;
select ai.create_collection('birds', 'mtap/tiny') as bobs \gset
select ai.create_collection('secrets', 'mtap/tiny') as secrets \gset
reset session authorization;
select t.document(t.alpha(), 'birds', 'Swifts never land.', '[1, 0, 0]', '{"kind": "swift", "year": 2024}', 'Swifts', 'urn:swift') as swift \gset
select t.document(t.alpha(), 'birds', 'Swallows sit on wires.', '[1, 1, 0]', '{"kind": "swallow", "year": 2024}', 'Swallows') as swallow \gset
select t.document(t.alpha(), 'birds', 'Penguins do not fly at all.', '[0, 1, 0]', '{"kind": "penguin"}') as penguin \gset
select t.document(t.alpha(), 'birds', 'Kiwis are seen at night.', '[-1, 0, 0]') as kiwi \gset
select t.document(t.alpha(), 'birds', 'A bird without a direction.', '[0, 0, 0]') as lost \gset
select t.document(t.alpha(), 'birds', 'A swift that waits for its embedding.', null) as waits \gset
select t.document(t.beta(), 'birds', 'Bob''s swifts never land either.', '[1, 0, 0]', '{"kind": "swift", "year": 2024}', 'Bob') as bob \gset
select t.document(t.beta(), 'secrets', 'Swifts are secret.', '[1, 0, 0]') as secret \gset

-- By vector
set local session authorization mtap_ann;
select results_eq($$ select content, round(similarity::numeric, 3) from ai.match_documents('[1, 0, 0]') $$, $$ values ('Swifts never land.', 1.000), ('Swallows sit on wires.', 0.707) $$, 'what is similar enough, best first');
select results_eq($$ select document_id, title, uri, heading, content, metadata, similarity from ai.match_documents('[2, 0, 0]', match_count => 1) $$,
  format($$ values (%L::uuid, 'Swifts', 'urn:swift', null::text, 'Swifts never land.', '{"kind": "swift", "year": 2024}'::jsonb, 1::double precision) $$, :'swift'), 'with all that is known of it');
select results_eq($$ select id from ai.match_documents('[1, 0, 0]', 0.99) $$, $$ select id from ai.chunks where content = 'Swifts never land.' $$, 'the id is that of the chunk');
select results_eq($$ select content from ai.match_documents('[1, 0, 0]', 1) $$, $$ values ('Swifts never land.') $$, 'the threshold is reached by what is as similar as that');
select is((select count(*) from ai.match_documents('[1, 0, 0]', 1.0001)), 0::bigint, 'not by what is less');
select is((select count(*) from ai.match_documents('[1, 0, 0]', null)), 4::bigint, 'no threshold: all that have a direction');
select is((select count(*) from ai.match_documents('[1, 0, 0]', -1)), 4::bigint, 'as with -1');
select is((select count(*) from ai.match_documents('[0, 0, 0]', null)), 0::bigint, 'a query without a direction is near to nothing');
select is((select count(*) from ai.match_documents('[1, 0, 0]', 'NaN')), 0::bigint, 'a threshold that is no number is reached by nothing');
select is((select count(*) from ai.match_documents('[1, 0, 0]', null, 2)), 2::bigint, 'no more than asked for');
select lives_ok($$ select * from ai.match_documents('[1, 0, 0]', match_count => 1000) $$, 'up to 1000');
select throws_ok(format('select * from ai.match_documents(%L, match_count => %s)', '[1, 0, 0]', n), 'PT400', null, 'but not ' || n) from unnest(array['0', '-1', '1001', 'null']) n;
select throws_ok($$ select * from ai.match_documents(null) $$, 'PT400', null, 'no query');
select throws_ok($$ select * from ai.match_documents('[1, 0]') $$, 'PT400', null, 'one of too few dimensions');
select throws_ok($$ select * from ai.match_documents('[1, 0, 0, 0]', collection => 'birds') $$, 'PT400', null, 'one of too many');
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]', filter => '[]') $$, 'PT400', null, 'a filter that is no object');
select results_eq($$ select content from ai.match_documents('[1, 0, 0]', null, filter => '{"year": 2024}') $$, $$ values ('Swifts never land.'), ('Swallows sit on wires.') $$, 'a filter');
select results_eq($$ select content from ai.match_documents('[1, 0, 0]', 0.7, filter => '{"kind": "swallow"}') $$, $$ values ('Swallows sit on wires.') $$, 'goes before the limit');
select is((select count(*) from ai.match_documents('[1, 0, 0]', null, filter => '{"kind": "dodo"}')), 0::bigint, 'and may leave nothing');
select is((select count(*) from ai.match_documents('[1, 0, 0]', null, filter => null)), 4::bigint, 'no filter');

-- By words
select results_eq($$ select content, similarity from ai.hybrid_search('swifts', null) $$, $$ values ('Swifts never land.', null::double precision) $$, 'words are found by their stems, without a vector');
select results_eq($$ select content from ai.hybrid_search('Which swift never sits on a wire?', null) $$, $$ values ('Swifts never land.'), ('Swallows sit on wires.') $$, 'where nothing has all of them, any');
select is((select count(*) from ai.hybrid_search('the of a', null)), 0::bigint, 'words that say nothing find nothing');
select is((select count(*) from ai.hybrid_search('', null)), 0::bigint, 'nor does no word');
select lives_ok(format('select * from ai.hybrid_search(%L, null)', text), 'words as they come: ' || left(text, 30))
  from unnest(array['a & b | !c', '''', '\', ''':*', 'swift:*A', '<->', '((((', '"swift', '-swift', E'a\tb\\''c', repeat('swift ', 200000), repeat('x', 1000000), '''; drop table ai.chunks; --', '日本語', ' ' || :birds, '''birds'' | ''swift''']) text;
select is((select count(*) from ai.hybrid_search(repeat('word ', 100) || string_agg('w' || i, ' '), null)), 0::bigint, 'many words') from generate_series(1, 5000) i;

-- By both
select results_eq($$ select content from ai.hybrid_search('penguins', '[1, 0, 0]', 4) $$, $$ values ('Penguins do not fly at all.'), ('Swifts never land.'), ('Swallows sit on wires.'), ('Kiwis are seen at night.') $$, 'what has the word and is near');
select results_eq($$ select content, round(score::numeric, 6), round(similarity::numeric, 3) from ai.hybrid_search('penguins', '[1, 0, 0]', 2, rrf_k => 1) $$,
  $$ values ('Penguins do not fly at all.', round(1/2.0 + 1/4.0, 6), 0.000), ('Swifts never land.', round(1/2.0, 6), 1.000) $$, 'each list adds weight / (k + rank)');
select results_eq($$ select content from ai.hybrid_search('penguins', '[1, 0, 0]', 1, full_text_weight => 0) $$, $$ values ('Swifts never land.') $$, 'a weight of 0 switches a list off');
select throws_ok(format('select from ai.hybrid_search(''penguins'', ''[1, 0, 0]'', %s)', w), 'PT400', null, w)
  from unnest(array['full_text_weight => 5e-324', 'semantic_weight => 1e-7', 'full_text_weight => -1', 'semantic_weight => ''NaN''', 'full_text_weight => 1e7',
                    'full_text_weight => 0, semantic_weight => 0', 'full_text_weight => null']) w;
select throws_ok(format('select from ai.text_matches(''birds'', ''swallows'', %s)', n), 'PT400', 'match_count must be above 0', 'matches: ' || n) from unnest(array['-1', '0', 'null']) n;
select results_eq($$ select content from ai.hybrid_search('penguins', '[1, 0, 0]', 5, semantic_weight => 0) $$, $$ values ('Penguins do not fly at all.') $$, 'either');
select results_eq($$ select content from ai.hybrid_search('swifts swallows', '[1, 0, 0]', filter => '{"kind": "swallow"}') $$, $$ values ('Swallows sit on wires.') $$, 'a filter holds for both');
select results_eq($$ select content from ai.hybrid_search(null, '[1, 0, 0]', 1) $$, $$ values ('Swifts never land.') $$, 'a vector alone');
select throws_ok($$ select * from ai.hybrid_search(null, null) $$, 'PT400', null, 'nothing at all');
select throws_ok($$ select * from ai.hybrid_search('x', '[1, 0]') $$, 'PT400', null, 'a vector of another size');
select throws_ok(format('select * from ai.hybrid_search(%L, null, %s)', 'x', args), 'PT400', null, args)
  from unnest(array['0', '1001', 'null', '5, -1', '5, 0, 0', '5, 1, -1', '5, null', '5, ''NaN''', '5, ''infinity''', '5, 1e308, 1e308', '5, 1, 1, 0', '5, 1, 1, 10001', '5, 1, 1, null', '5, filter => ''[]''']) args;
select lives_ok(format('select * from ai.hybrid_search(%L, null, %s)', 'x', args), args) from unnest(array['1', '1000', '5, 1, 1, 1', '5, 1, 1, 10000', '5, 0.001, 0', '5, 1e6, 1e6']) args;

-- Which collection
reset session authorization;
set local session authorization mtap_dev;
select ai.create_collection('fish', 'mtap/tiny') as fish \gset
set local session authorization mtap_ann;
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]') $$, 'PT400', null, 'of several collections one must be named');
select is((select count(*) from ai.match_documents('[1, 0, 0]', null, collection => 'birds')), 4::bigint, 'the named one is searched');
select is((select count(*) from ai.match_documents('[1, 0, 0]', null, collection => 'fish')), 0::bigint, 'no other');
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]', collection => 'no such') $$, 'PT404', 'there is no collection no such', 'one that there is not');
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]', collection => 'secrets') $$, 'PT404', 'there is no collection secrets', 'is as one of another tenant');
select throws_ok($$ select * from ai.match_documents('[1, 0, 0, 0, 0]', collection => 'secrets') $$, 'PT404', null, 'whatever the vector');
select throws_ok($$ select * from ai.hybrid_search('swift', null, collection => 'secrets') $$, 'PT404', null, 'by words as well');
select is((select count(*) from ai.text_matches('secrets', 'swifts')), 0::bigint, 'or by words alone');
select throws_ok($$ select * from ai.recall_check('secrets') $$, 'PT404', null, 'nor is it measured');

-- Tenants never meet
set local session authorization mtap_bob;
select results_eq($$ select content from ai.match_documents('[1, 0, 0]', null, 100, 'birds') $$, $$ values ('Bob''s swifts never land either.') $$, 'a collection of the same name is another');
select results_eq($$ select content from ai.hybrid_search('swifts land wires fly', '[1, 0, 0]', 100, collection => 'birds') $$, $$ values ('Bob''s swifts never land either.') $$, 'by words, too');
select is((select count(*) from ai.match_documents('[1, 0, 0]', null, 100, 'birds', '{"kind": "swallow"}')), 0::bigint, 'a filter finds nothing beyond it');
select is_empty(format($$ select * from ai.nearest_chunks(%L, %s, 1, 3, false, '[1, 0, 0]', 100, '{}') $$, t.alpha(), :birds), 'row-level security holds for who names a tenant and a collection');
select is_empty(format($$ select * from ai.nearest_by_index(%L, %s, 1, 3, '[1, 0, 0]', 100, '{}') $$, t.alpha(), :birds), 'and for who names an index');
select is_empty(format($$ select * from ai.nearest_chunks(%L, %s, 1, 3, false, '[1, 0, 0]', 100, '{"year": 2024}') $$, t.alpha(), :birds), 'with a filter');
select is_empty(format($$ select * from ai.fuse_chunks(%L, %s, 1, 3, false, '[1, 0, 0]', null, 100, 1, 1, 50, null, '{}') $$, t.alpha(), :birds), 'or both');
select is_empty(format($$ select f.similarity from ai.fuse_chunks(%L, %s, 1, 3, false, '[1, 0, 0]', array(select generate_series(1, 100000)), 100, 1, 1, 50, null, '{}') f where f.similarity is not null $$, t.alpha(), :birds),
  'ids that are guessed say nothing');
select throws_ok(format($$ select * from ai.rank_chunks(%L, %s, 'swift', 10, '{}') $$, t.alpha(), :birds), '42501', null, 'what goes around it is not his to call');
select throws_ok(format($$ select * from ai.retrieve(%L, 'ann', 'birds', 'swift', null, null, 10, 'text') $$, t.alpha()), '42501', null, 'nor what the pipeline uses');
select is((select count(*) from ai.text_matches('birds', 'swallows wires')), 0::bigint, 'words find his own');
set local session authorization mtap_stray;
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]') $$, 'PT401', null, 'nobody searches nothing');
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]', collection => 'birds') $$, 'PT401', null, 'named or not');
select throws_ok($$ select * from ai.hybrid_search('swift', null, collection => 'birds') $$, 'PT401', null, 'nor by words');
select is((select count(*) from ai.text_matches('birds', 'swift')), 0::bigint, 'which find nothing');
set local session authorization mtap_worker;
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]') $$, '42501', null, 'a worker does not search');
set local session authorization mtap_public;
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]') $$, '42501', null, 'nor does anybody else');
reset session authorization;
select throws_ok($$ select * from ai.match_documents('[1, 0, 0]', collection => 'birds') $$, 'PT401', null, 'the owner sees all rows, and is nobody all the same');
insert into ai.role_bindings (role_name, tenant_id, user_id) values (session_user, t.beta(), 'bob');
select results_eq($$ select content from ai.match_documents('[1, 0, 0]', null, 100, 'birds') $$, $$ values ('Bob''s swifts never land either.') $$, 'an owner who is a member finds what is the tenant''s');
select results_eq($$ select content from ai.hybrid_search('swifts wires', '[1, 0, 0]', 100, collection => 'birds') $$, $$ values ('Bob''s swifts never land either.') $$, 'by words, too');
delete from ai.role_bindings where role_name = session_user;

-- A policy of the operator's own holds in every search, because apps search with their own rights.
create policy only_recent on ai.documents as restrictive for select to ai_user using (coalesce(metadata ->> 'kind', '') <> 'swift');
set local session authorization mtap_ann;
select results_eq($$ select content from ai.match_documents('[1, 0, 0]', 0.7, collection => 'birds') $$, $$ values ('Swallows sit on wires.') $$, 'a document that a policy hides is not found');
select is((select count(*) from ai.hybrid_search('swifts', null, collection => 'birds')), 0::bigint, 'nor by its words');
reset session authorization;
drop policy only_recent on ai.documents;

-- For the pipeline
select results_eq($$ select content, round(similarity::numeric, 3) from ai.retrieve(t.alpha(), 'ann', 'birds', 'Do swifts land?', '[1, 0, 0]', 0.7, 5, 'vector') $$,
  $$ values ('Swifts never land.', 1.000), ('Swallows sit on wires.', 0.707) $$, 'passages by vector');
select results_eq($$ select content, round(similarity::numeric, 3) from ai.retrieve(t.alpha(), 'ann', 'birds', 'Do penguins fly?', '[1, 0, 0]', 0.9, 5, 'hybrid') $$,
  $$ values ('Swifts never land.', 1.000), ('Penguins do not fly at all.', 0.000) $$, 'by both: the threshold does not hold for what has the words');
select results_eq($$ select content, similarity is null from ai.retrieve(t.alpha(), 'ann', 'birds', 'Do penguins fly?', '[1, 0, 0]', 0.9, 5, 'text') $$, $$ values ('Penguins do not fly at all.', false) $$, 'by words');
select results_eq($$ select content, similarity from ai.retrieve(t.alpha(), 'ann', 'birds', 'Do penguins fly?', null, 0.9, 5, 'vector') $$, $$ values ('Penguins do not fly at all.', null::double precision) $$, 'by words where there is no vector');
select results_eq($$ select content from ai.retrieve(t.alpha(), 'ann', 'birds', 'Do penguins fly?', '[1, 2]', 0.9, 5, 'vector') $$, $$ values ('Penguins do not fly at all.') $$, 'or one of another size');
select results_eq($$ select tokens, heading, title, uri from ai.retrieve(t.alpha(), 'ann', 'birds', null, '[1, 0, 0]', 1, 5, 'vector') $$, $$ values (5, null::text, 'Swifts', 'urn:swift') $$, 'with what a prompt needs');
select is((select count(*) from ai.retrieve(t.alpha(), 'ann', 'secrets', 'swifts', '[1, 0, 0]', null, 5, 'hybrid')), 0::bigint, 'another tenant''s collection has no passages');
select is((select count(*) from ai.retrieve(t.alpha(), 'ann', null, null, null, null, null, null)), 0::bigint, 'nothing asked, nothing found');
select is((select count(*) from ai.retrieve(t.alpha(), 'ann', 'birds', 'swifts', '[1, 0, 0]', null, n, 'hybrid')), 0::bigint, 'no passages: ' || n) from unnest(array[0, -5]) n;
select is((select count(*) from ai.retrieve(t.alpha(), 'ann', 'birds', 'swifts', '[1, 0, 0]', null, null, 'hybrid')), 4::bigint, '5 where nobody says how many');

-- Replaced and deleted documents
select t.document(t.alpha(), 'birds', 'Swifts sleep in the air.', '[0, 0, 1]', '{"kind": "swift"}', 'Swifts', 'urn:swift') as replaced \gset
select is(:'replaced'::uuid, :'swift'::uuid, 'a document is replaced');
set local session authorization mtap_ann;
select is((select count(*) from ai.match_documents('[1, 0, 0]', 0.9, collection => 'birds')), 0::bigint, 'its old vector is not found');
select is((select count(*) from ai.hybrid_search('land', null, collection => 'birds')), 0::bigint, 'nor its old words');
select results_eq($$ select content from ai.match_documents('[0, 0, 1]', 0.9, collection => 'birds') $$, $$ values ('Swifts sleep in the air.') $$, 'but the new one');
select results_eq($$ select content from ai.hybrid_search('sleeping', null, collection => 'birds') $$, $$ values ('Swifts sleep in the air.') $$, 'by its words');
set local session authorization mtap_dev;
select is(ai.delete_document(:'swift'), true, 'a document is deleted');
select is((select count(*) from ai.match_documents('[0, 0, 1]', 0.9, collection => 'birds')) + (select count(*) from ai.hybrid_search('sleeping', null, collection => 'birds')), 0::bigint, 'and is not found');
reset session authorization;

-- Large collections
create function t.scans(p_index text) returns bigint language sql as $$ select coalesce(pg_stat_get_xact_numscans(to_regclass(p_index)), 0) $$;
select ai.put_document(t.alpha(), 'dev', 'fish', string_agg(format(E'# Fish %s\n', i) || repeat('fish ', 100), E'\n\n'), null, 'urn:fish', '{"sea": true}') as fishes from generate_series(1, 400) i \gset
select ai.store_chunk_vectors(t.alpha(), 1, array_agg(id order by id), jsonb_agg(jsonb_build_array(cos(id), sin(id), 0.1) order by id)) from ai.chunks where document_id = :'fishes' \gset ignored_
select chunks * 3 as size from ai.collections where id = :fish \gset
update ai.settings set exact_search_size = :size;
select is(ai.make_search_indexes(), 0, 'a collection of just the size has no index');
update ai.settings set exact_search_size = :size - 1;
select is(ai.make_search_indexes(max_size => :size - 1), 0, 'a larger one has none where it takes too long to build');
update ai.settings set max_search_indexes = 0;
select is(ai.make_search_indexes(), 0, 'nor where there are enough');
update ai.settings set max_search_indexes = 1;
select is(ai.make_search_indexes(), 1, 'else it gets one');
select is(ai.make_search_indexes(), 0, 'once');
select has_index('ai', 'chunk_vectors', format('chunk_vectors_c%s_v1', :fish), 'of its own');
set local session authorization mtap_ann;
select is((select search from ai.collection_status('fish')), 'index', 'which searches use');
select is((select search from ai.collection_status('birds')), 'exact', 'those of small ones do not');
reset session authorization;
select t.scans(format('ai.chunk_vectors_c%s_v1', :fish)) as scans \gset
set local session authorization mtap_ann;
select results_eq($$ select round(similarity::numeric, 4) from ai.match_documents('[1, 1, 0.1]', 0.9, 10, 'fish') $$,
                  $$ select round((1 - ai.cosine_distance(embedding, '[1, 1, 0.1]'))::numeric, 4) from ai.chunk_vectors where collection_id = (select id from ai.collections where name = 'fish') order by 1 desc limit 10 $$,
  'it finds what an exact search finds');
select is(current_setting('hnsw.ef_search'), '40', 'and leaves the session''s settings as they were');
select is((select count(*) from ai.match_documents('[1, 1, 0.1]', null, 300, 'fish')), 300::bigint, 'as many as asked for');
select is((select count(*) from ai.match_documents('[1, 1, 0.1]', null, 1000, 'fish')), (select chunks from ai.collection_status('fish')), 'or all');
select is((select count(*) from ai.match_documents('[1, 1, 0.1]', 0.999999, 10, 'fish')) < 10, true, 'the threshold holds');
select is((select count(*) from ai.match_documents('[0, 0, 0]', null, 10, 'fish')), 0::bigint, 'no direction, nothing found');
select is((select count(*) from ai.match_documents('[1e6, 1e6, 1e5]', 0.99, 10, 'fish')), 10::bigint, 'a vector longer than halves can be has a direction, too');
select is((select count(*) from ai.match_documents('[1, 1, 0.1]', null, 10, 'fish', '{"sea": true}')), 10::bigint, 'a filter that all pass');
select is((select count(*) from ai.match_documents('[1, 1, 0.1]', null, 10, 'fish', '{"sea": false}')), 0::bigint, 'or none');
select results_eq($$ select search, asked, recall from ai.recall_check('fish', 30) $$, $$ values ('index', 30, 1::double precision) $$, 'its recall is measured');
select results_eq($$ select search, recall from ai.recall_check('birds') $$, $$ values ('exact', 1::double precision) $$, 'that of an exact search is 1');
select throws_ok(format('select * from ai.recall_check(%L, %s)', 'fish', args), 'PT400', null, 'samples and k: ' || args) from unnest(array['0', '1001', 'null', '20, 0', '20, 101', '20, null']) args;
select lives_ok($$ select ai.recall_check('fish', 1000, 1), ai.recall_check('fish', 1, 100) $$, 'at their limits');
reset session authorization;
select cmp_ok(t.scans(format('ai.chunk_vectors_c%s_v1', :fish)), '>=', (:scans + 40)::bigint, 'all by the index');
set local session authorization mtap_bob;
select is_empty(format($$ select * from ai.nearest_by_index(%L, %s, 1, 3, '[1, 0, 0]', 100, '{}') $$, t.alpha(), :fish), 'which shows nothing to another tenant');
set local session authorization mtap_dev;
select lives_ok($$ select ai.rebuild_collection('fish', 'mtap/tiny') $$, 'a rebuild');
reset session authorization;
select ai.store_chunk_vectors(t.alpha(), 2, array_agg(id order by id), jsonb_agg(jsonb_build_array(cos(id), sin(id), 0.1) order by id)) from (select id from ai.chunks where document_id = :'fishes' order by id limit 399) c \gset ignored_
update ai.settings set exact_search_size = 100, max_search_indexes = 2;
select is(ai.make_search_indexes(), 1, 'has its own index before it is searched');
select ai.store_chunk_vectors(t.alpha(), 2, array_agg(id order by id), jsonb_agg(jsonb_build_array(cos(id), sin(id), 0.1) order by id)) from ai.chunks where document_id = :'fishes' \gset ignored_
select results_eq($$ select embedding_version, indexed_version from ai.collections where name = 'fish' $$, $$ values (2::bigint, 2::bigint) $$, 'so that there is no moment without');
select is(ai.make_search_indexes(), 1, 'the old one is dropped');
select hasnt_index('ai', 'chunk_vectors', format('chunk_vectors_c%s_v1', :fish), 'and gone');
select is(ai.finish_collections() > 0, true, 'its vectors go');
set local session authorization mtap_dev;
select results_eq($$ select search, recall from ai.recall_check('fish') $$, $$ values ('index', 1::double precision) $$, 'the new one is searched');
select lives_ok($$ select ai.delete_collection('fish') $$, 'a collection is deleted');
reset session authorization;
select is(ai.make_search_indexes(), 1, 'with its index');
select is_empty($$ select relname from pg_class where relname like 'chunk\_vectors\_c%' $$, 'nothing is left');
select lives_ok(ai.search_index_statement(:birds, 1, 3, false), 'an operator makes one by hand');
select is(ai.make_search_indexes(), 1, 'it is taken into use');
select is((select indexed_version from ai.collections where id = :birds), 1::bigint, 'whatever the size');
select matches(ai.search_index_statement(:birds, 1, 3), '^create index concurrently ', 'concurrently, where it is not in a transaction');

select * from finish();
rollback;
