-- ai.vectorize(): who may, what is noted, what is found by whom, and what happens to the app's table meanwhile.
begin;
\ir setup/world.sql
select no_plan();

create role mtap_shop login;      -- owns the app's tables; a plain user of alpha
create role mtap_clerk login;     -- writes them, and is nobody to Martlet
grant ai_user to mtap_shop;
insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'shop', 'user'), (t.beta(), 'shop', 'user');
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_shop', t.alpha(), 'shop');
create schema mtap_shop authorization mtap_shop;

-- A vector of three numbers that says what a text is about: sea, fire, bread.
create function t.vector(p_text text) returns jsonb language sql immutable as $$
  select jsonb_build_array((p_text ilike '%sea%')::int + 0.01, (p_text ilike '%fire%')::int + 0.01, (p_text ilike '%bread%')::int + 0.01)
$$;
select t.worker() as w \gset
create table t.w as select :'w'::uuid as id;
-- Claims and answers all there is; gives how many texts.
create function t.embed() returns bigint language plpgsql as $$
declare
  v_one   record;
  v_texts bigint := 0;
begin
  for v_one in select c.* from t.w cross join t.claim(t.w.id, 1000) c loop
    v_texts := v_texts + jsonb_array_length(v_one.request -> 'input');
    perform t.settle((select id from t.w), v_one.id, v_one.attempt, 'succeeded',
      jsonb_build_object('embeddings', (select jsonb_agg(t.vector(v.value) order by v.n) from jsonb_array_elements_text(v_one.request -> 'input') with ordinality v (value, n))));
  end loop;
  return v_texts;
end
$$;
-- What is noted: row, state and text of the newest version of each row.
create function t.noted(p_name text) returns table (key text, state text, content text) language sql as $$
  select * from (
    select distinct on (r.row_key) substr(r.row_key, strpos(r.row_key, '/') + 1), r.state, r.content
      from ai.vectorizers z join ai.vectorizer_versions v on v.vectorizer_id = z.id and v.status = 'current'
      join ai.vectorized_rows r on r.version = v.id and r.row_key like z.id || '/%'
     where z.name = p_name order by r.row_key, r.ref desc) n
   where n.state <> 'gone'
$$;
create function t.rows(p_name text) returns text language sql as $$ select string_agg(key || ' ' || state, ', ' order by key) from t.noted(p_name) $$;
create function t.jobs() returns bigint language sql as $$ select count(*) from ai.embedding_jobs $$;

-- A table with policies: a customer sees the own notes, and public ones.
set local session authorization mtap_shop;
create table mtap_shop.notes (id bigint primary key, owner name, title text, body text, price numeric);
alter table mtap_shop.notes enable row level security;
create policy own on mtap_shop.notes using (owner = current_user or owner is null);
grant usage on schema mtap_shop to mtap_clerk, mtap_ann, mtap_abe, mtap_bob, mtap_stray;
grant select on mtap_shop.notes to mtap_ann, mtap_abe, mtap_bob, mtap_stray;
insert into mtap_shop.notes values
  (1, 'mtap_ann', 'Boats', 'They are on the sea.', 1), (2, 'mtap_abe', 'Ovens', 'They burn with fire.', 2), (3, null, 'Breakfast', 'Bread on the sea.', 3),
  (4, 'mtap_ann', null, '   ', 4), (5, 'mtap_abe', 'Secret of the sea', null, 5);
select is(ai.vectorize('mtap_shop.notes', array['title', 'body'], model => 'mtap/embed'), 4::bigint, 'the owner of a table who is a member has it vectorized; a row without text is left out');
reset session authorization;
select results_eq($$ select * from t.noted('notes') order by 1 $$,
  $$ values ('1', 'pending', E'title: Boats\nbody: They are on the sea.'), ('2', 'pending', E'title: Ovens\nbody: They burn with fire.'),
            ('3', 'pending', E'title: Breakfast\nbody: Bread on the sea.'), ('5', 'pending', 'title: Secret of the sea') $$, 'the text of a row is its columns, each behind its name');
select results_eq($$ select distinct tenant_id, user_id, purpose, priority from ai.generations $$, format($$ values (%L::uuid, 'shop', 'rows', 'low') $$, t.alpha()), 'embedded in the name of who asked');
select is(t.jobs(), 1::bigint, 'by one generation');
select is(t.embed(), 4::bigint, 'which is answered');
select is(t.rows('notes'), '1 embedded, 2 embedded, 3 embedded, 5 embedded', 'and done');

-- Search: only what the caller sees in the table
set local session authorization mtap_ann;
select results_eq($$ select key, round(similarity::numeric, 2) from ai.search_rows('notes', '[1, 0, 0]') $$, $$ values ('1', 1.00), ('3', 0.71) $$, 'a customer finds the own rows and the public ones, best first');
select results_eq($$ select n.title from ai.search_rows('notes', '[1, 0, 0]') s join mtap_shop.notes n on n.id = s.key::bigint order by s.similarity desc $$, $$ values ('Boats'), ('Breakfast') $$, 'which join to the table');
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.8) $$, $$ values ('1') $$, 'above a threshold');
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', match_count => 1) $$, $$ values ('1') $$, 'or so many');
select is_empty($$ select key from ai.search_rows('notes', '[-1, -1, -1]', 0.1) $$, 'or nothing');
select is_empty($$ select key from ai.search_rows('notes', '[0, 0, 0]') $$, 'a vector without a direction is near nothing');
select throws_ok($$ select * from ai.search_rows('notes', '[1, 0]') $$, 'PT400', null, 'a vector of another size is refused');
select throws_ok($$ select * from ai.search_rows('nothing', '[1, 0, 0]') $$, 'PT404', null, 'a name that is none');
select throws_ok($$ select * from ai.search_rows(null, '[1, 0, 0]') $$, 'PT404', null, 'or no name');
select throws_ok(format($$ select * from ai.search_rows('notes', %L, %L, %L) $$, v.v, v.t, v.c), 'PT400', null, format('%s %s %s is refused', v.v, v.t, v.c))
  from (values ('[1,0,0]', 0.5, 0), ('[1,0,0]', 0.5, 1001), ('[1,0,0]', null, 5), ('[1,0,0]', 0.5, null), (null, 0.5, 5)) v (v, t, c);
select lives_ok($$ select * from ai.search_rows('notes', '[1, 0, 0]', 0.5, 1000) $$, 'a thousand is allowed');
set local session authorization mtap_abe;
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.5) $$, $$ values ('5'), ('3') $$, 'another customer finds others');
set local session authorization mtap_bob;
select throws_ok($$ select * from ai.search_rows('notes', '[1, 0, 0]') $$, 'PT404', null, 'another tenant has no such vectorizer, though its role sees public rows of the table');
set local session authorization mtap_stray;
select throws_ok($$ select * from ai.search_rows('notes', '[1, 0, 0]') $$, 'PT404', null, 'nor has who is nobody');
set local session authorization mtap_dev;
select throws_ok($$ select * from ai.search_rows('notes', '[1, 0, 0]') $$, '42501', null, 'who may not read the table finds nothing, whatever the role in the tenant');
set local session authorization mtap_shop;
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.5) $$, $$ values ('1'), ('5'), ('3') $$, 'its owner finds all');
reset session authorization;
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.5) $$, $$ values ('1'), ('5'), ('3') $$, 'so does a superuser');
set local session authorization mtap_worker;
select throws_ok($$ select * from ai.search_rows('notes', '[1, 0, 0]') $$, '42501', null, 'a worker may not search');
set local session authorization mtap_public;
select throws_ok($$ select * from ai.search_rows('notes', '[1, 0, 0]') $$, '42501', null, 'nor may everybody');

-- Around the function
set local session authorization mtap_abe;
select is_empty($$ select row_key from ai.vectorized_rows $$, 'outside of a search nothing of the embeddings is seen');
select throws_ok($$ select content from ai.vectorized_rows $$, '42501', null, 'texts are not readable at all');
select set_config('ai.searched', (select id from ai.vectorizers where name = 'notes')::text, true) as searched \gset
select set_eq($$ select split_part(row_key, '/', 2) from ai.vectorized_rows $$, array['2', '3', '5'], 'who sets what the search sets sees the own rows, no more');
select is_empty(format($$ select row_key from ai.vectorized_rows where set_config('ai.searched', %L, true) is not null and row_key like '%%/1' $$, v), format('set to %s shows no other row', v))
  from (values ('0'), ('-1'), ('x'), (''), ('99999999999999999999999'), ('1 or true'), (:'searched')) v (v);
select set_config('ai.searched', '', true) as nothing \gset
select is_empty($$ select row_key from ai.vectorized_rows $$, 'an empty setting shows nothing and raises nothing');
-- Functions and types of one's own, in front of everything
reset session authorization;
create schema mtap_evil;
create function mtap_evil.array_agg(text) returns text[] language sql as $$ select array['everything'] $$;
create function mtap_evil.concat(bigint) returns text language sql as $$ select 'everything' $$;
create function mtap_evil.concat(text, text) returns text language sql as $$ select 'everything' $$;
create function mtap_evil.yes(text, text) returns boolean language sql as $$ select true $$;
create operator mtap_evil.= (leftarg = text, rightarg = text, function = mtap_evil.yes);
create domain mtap_evil.text as pg_catalog.int4;
create domain mtap_evil.int8 as pg_catalog.text;
grant usage on schema mtap_evil to mtap_abe;
set local session authorization mtap_abe;
set local search_path = mtap_evil, pg_catalog;
select pg_catalog.string_agg(s.key, ' '::pg_catalog.text) as found from ai.search_rows('notes', '[1, 0, 0]', 0.5) s \gset
select pg_catalog.set_config('ai.searched', :'searched', true) as searched \gset
select pg_catalog.string_agg(r.row_key, ' '::pg_catalog.text) as seen from ai.vectorized_rows r \gset
reset search_path;
select set_config('ai.searched', '', true) as nothing \gset
select is(:'found'::text, '5 3', 'a search_path full of traps finds nothing more');
select is((select string_agg(split_part(v, '/', 2), ' ' order by v) from unnest(string_to_array(:'seen', ' ')) v), '2 3 5', 'and shows nothing more');
-- A column that is hidden must not be learnt from similarities
set local session authorization mtap_shop;
revoke select on mtap_shop.notes from mtap_abe;
grant select (id, title) on mtap_shop.notes to mtap_abe;
set local session authorization mtap_abe;
select throws_ok($$ select * from ai.search_rows('notes', '[1, 0, 0]') $$, '42501', null, 'who may not read all vectorized columns may not search');
set local session authorization mtap_shop;
grant select on mtap_shop.notes to mtap_abe;

-- Changes
grant select, insert, update, delete, truncate on mtap_shop.notes to mtap_clerk;
create policy clerk on mtap_shop.notes to mtap_clerk using (true);
set local session authorization mtap_clerk;
insert into mtap_shop.notes values (6, 'mtap_ann', 'Fire and sea', null, 0), (7, 'mtap_ann', 'Bread', null, 0);
reset session authorization;
select is(t.rows('notes'), '1 embedded, 2 embedded, 3 embedded, 5 embedded, 6 pending, 7 pending', 'who writes need have no rights in Martlet');
select is(t.jobs(), 1::bigint, 'one statement, one generation');
select is(t.embed(), 2::bigint, 'two texts');
select count(*) as generations from ai.generations \gset
set local session authorization mtap_clerk;
update mtap_shop.notes set price = price + 1, owner = owner;
update mtap_shop.notes set title = title || '';
update mtap_shop.notes set title = 'x' where false;
delete from mtap_shop.notes where false;
insert into mtap_shop.notes select * from mtap_shop.notes where false;
insert into mtap_shop.notes values (8, null, null, E' \t\n', 0);
reset session authorization;
select is((select count(*) from ai.generations)::text, :'generations', 'what leaves the text as it is asks for nothing');
select is(t.rows('notes'), '1 embedded, 2 embedded, 3 embedded, 5 embedded, 6 embedded, 7 embedded', 'and changes nothing');
set local session authorization mtap_clerk;
update mtap_shop.notes set body = case id when 1 then 'They are made of bread.' end where id in (1, 3, 8);
reset session authorization;
select is(t.rows('notes'), '1 pending, 2 embedded, 3 pending, 5 embedded, 6 embedded, 7 embedded', 'changed texts wait');
set local session authorization mtap_ann;
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.9) $$, $$ values ('1') $$, 'until then a row is found by its former text');
reset session authorization;
select is(t.embed(), 2::bigint, 'they come');
set local session authorization mtap_ann;
select is_empty($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.9) $$, 'and it is not any more');
select results_eq($$ select key from ai.search_rows('notes', '[0, 0, 1]', 0.9) $$, $$ values ('1'), ('7') $$, 'but by its new one');
set local session authorization mtap_clerk;
update mtap_shop.notes set title = null, body = null where id = 1;
delete from mtap_shop.notes where id = 2;
update mtap_shop.notes set id = 70 where id = 7;
reset session authorization;
select is(t.rows('notes'), '3 embedded, 5 embedded, 6 embedded, 70 pending', 'a text taken away, a row deleted, a key changed');
select is((select count(*) from ai.vectorized_rows where row_key ~ '/[127]$'), 0::bigint, 'no copy is left of what is gone');
set local session authorization mtap_clerk;
insert into mtap_shop.notes values (3, null, 'Fire', null, 0), (9, null, 'Sea', null, 0) on conflict (id) do update set title = excluded.title;
merge into mtap_shop.notes n using (values (5, 'Bread'), (10, 'Fire')) v (id, title) on n.id = v.id when matched then update set title = v.title when not matched then insert (id, title) values (v.id, v.title);
reset session authorization;
select is(t.rows('notes'), '10 pending, 3 pending, 5 pending, 6 embedded, 70 pending, 9 pending', 'upserts and merges');
set local session authorization mtap_clerk;
update mtap_shop.notes set title = 'Sea 1' where id = 9;
update mtap_shop.notes set title = 'Sea 2' where id = 9;
reset session authorization;
select is((select count(*) from ai.vectorized_rows where row_key ~ '/9$'), 3::bigint, 'three texts of a row, one after the other');
select is(t.embed(), 5::bigint, 'only the last is embedded');
select is((select string_agg(content, ', ') from ai.vectorized_rows where row_key ~ '/9$'), 'title: Sea 2', 'and the others are gone');
set local session authorization mtap_clerk;
-- Keys that change places, in a transaction that is rolled back, and everything at once
savepoint s;
insert into mtap_shop.notes values (11, null, 'Gone', null, 0);
delete from mtap_shop.notes;
rollback to savepoint s;
reset session authorization;
select is(t.rows('notes'), '10 embedded, 3 embedded, 5 embedded, 6 embedded, 70 embedded, 9 embedded', 'what is rolled back was not');
set local session authorization mtap_clerk;
truncate mtap_shop.notes;
reset session authorization;
select is(t.rows('notes'), null, 'truncate forgets everything');
set local session authorization mtap_clerk;
insert into mtap_shop.notes (id, title) select i, 'Sea ' || i from generate_series(1, 1000) i;
reset session authorization;
select is((select count(*) from ai.embedding_jobs), 32::bigint, 'a thousand rows of one statement are 32 generations');
select is((select count(*) from t.noted('notes')), 1000::bigint, 'all noted');
set local session authorization mtap_clerk;
update mtap_shop.notes set id = id + 1000 where id = 500;
delete from mtap_shop.notes where id > 2;
reset session authorization;
select is(t.embed(), 2::bigint, 'what is deleted before it is embedded costs nothing');
select is((select count(*) from ai.generations where purpose = 'rows' and status not in ('succeeded')), 0::bigint, 'its generations end');
set local session authorization mtap_shop;
alter table mtap_shop.notes drop constraint notes_pkey, add primary key (id) deferrable;
set local session authorization mtap_clerk;
set constraints all deferred;
update mtap_shop.notes set id = 3 - id;
set constraints all immediate;
reset session authorization;
select is((select string_agg(key || ' ' || state || ' ' || content, ', ' order by key) from t.noted('notes')), '1 pending title: Sea 2, 2 pending title: Sea 1', 'keys that change places');
select t.embed() as ignored \gset

-- Progress
set local session authorization mtap_shop;
select results_eq($$ select vectorizer, table_name, model, status, total, embedded, pending, failed, eta, last_error, problem from ai.vectorize_progress('notes') $$,
  $$ values ('notes', 'mtap_shop.notes', 'mtap/embed', 'current', 2::bigint, 2::bigint, 0::bigint, 0::bigint, interval '0', null::jsonb, null::jsonb) $$, 'progress: all is done');
insert into mtap_shop.notes (id, title) select i, 'Fire ' || i from generate_series(11, 14) i;
select results_eq($$ select total, embedded, pending, failed, eta from ai.vectorize_progress() $$, $$ values (6::bigint, 2::bigint, 4::bigint, 0::bigint, interval '2 minutes') $$, 'progress: two a minute, four to go');
set local session authorization mtap_ann;
select is_empty($$ select * from ai.vectorize_progress() $$, 'others do not see it');
set local session authorization mtap_dev;
select is((select count(*) from ai.vectorize_progress()), 1::bigint, 'but those who see the tenant');
set local session authorization mtap_bob;
select is_empty($$ select * from ai.vectorize_progress() $$, 'not those of another');
reset session authorization;
select is((select count(*) from ai.vectorize_progress('notes')), 1::bigint, 'and the operator');

-- Failures: no write of the app fails for them
select t.embed() as ignored \gset
update ai.models set enabled = false where name = 'mtap/embed';
set local session authorization mtap_clerk;
select lives_ok($$ insert into mtap_shop.notes (id, title) values (21, 'Sea'), (22, 'Fire') $$, 'without its model, rows are written all the same');
set local session authorization mtap_shop;
select results_eq($$ select failed, pending, last_error ->> 'code' from ai.vectorize_progress() $$, $$ values (2::bigint, 0::bigint, 'PT404') $$, 'and have failed');
select is(ai.vectorize_retry('notes'), 2::bigint, 'asking again');
select results_eq($$ select failed, pending, last_error ->> 'code' from ai.vectorize_progress() $$, $$ values (2::bigint, 0::bigint, 'PT404') $$, 'does not help while it is off');
reset session authorization;
update ai.models set enabled = true where name = 'mtap/embed';
set local session authorization mtap_shop;
select is(ai.vectorize_retry('notes'), 2::bigint, 'asking again when it is on');
reset session authorization;
select is(t.embed(), 2::bigint, 'does');
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'shop';
set local session authorization mtap_clerk;
select lives_ok($$ insert into mtap_shop.notes (id, title) values (23, 'Sea') $$, 'nor does a write fail for a member who was revoked');
reset session authorization;
select is((select last_error ->> 'class' from ai.vectorize_progress('notes')), 'revoked', 'which is told');
update ai.members set enabled = true where tenant_id = t.alpha() and user_id = 'shop';
update ai.settings set accepting = false;
set local session authorization mtap_clerk;
select lives_ok($$ insert into mtap_shop.notes (id, title) values (24, 'Sea') $$, 'nor while Martlet takes nothing');
reset session authorization;
update ai.settings set accepting = true;
savepoint s;
alter function ai.queue_embeddings(uuid, text, text, text, bigint[], bigint) rename to lost;
set local session authorization mtap_clerk;
select lives_ok($$ insert into mtap_shop.notes (id, title) values (25, 'Sea') $$, 'nor for anything unforeseen');
reset session authorization;
select is((select state from t.noted('notes') where key = '25'), 'failed', 'the row is noted as failed');
select is((select error from ai.vectorized_rows where row_key like '%/25'), '{"class": "not_queued", "code": "42883"}', 'with the code, and nothing of its text');
alter function ai.lost(uuid, text, text, text, bigint[], bigint) rename to queue_embeddings;
alter table ai.vectorized_rows add constraint vectorized_rows_broken check (content <> 'title: Unspeakable') not valid;
set local session authorization mtap_clerk;
select lives_ok($$ insert into mtap_shop.notes (id, title) values (26, 'Unspeakable') $$, 'not even if nothing can be noted');
select lives_ok($$ update mtap_shop.notes set title = 'Unspeakable 2' where id = 26 $$, 'what comes later is noted');
reset session authorization;
alter table ai.vectorized_rows drop constraint vectorized_rows_broken;
select is((select problem - 'at' from ai.vectorize_progress('notes')), '{"class": "missed", "code": "23514"}', 'then progress tells that something was missed');
set local session authorization mtap_shop;
select is(ai.refresh_vectorizer('notes'), 0::bigint, 'a refresh looks at all rows: here nothing is new');
select is((select problem from ai.vectorize_progress('notes')), null, 'and no problem is left');
reset session authorization;
alter table mtap_shop.notes disable trigger user;
update mtap_shop.notes set title = 'Bread' where id = 21;
insert into mtap_shop.notes (id, title) values (27, 'Bread');
delete from mtap_shop.notes where id = 22;
alter table mtap_shop.notes enable trigger user;
set local session authorization mtap_shop;
select is(ai.refresh_vectorizer('notes'), 2::bigint, 'with the triggers off nothing was noted, until a refresh');
reset session authorization;
select results_eq($$ select key, content from t.noted('notes') where key in ('21', '22', '27') order by 1 $$, $$ values ('21', 'title: Bread'), ('27', 'title: Bread') $$, 'which finds new, changed and deleted rows');
rollback to savepoint s;
set local session authorization mtap_shop;
select is(ai.vectorize_retry('notes'), 1::bigint, 'who was revoked is back');
reset session authorization;
select is(t.embed(), 2::bigint, 'everything is done');
select results_eq($$ select embedded, failed from ai.vectorize_progress('notes') $$, $$ values (10::bigint, 0::bigint) $$, 'really');
select is(ai.fill_vectorizers(ai.now()), 0, 'and there is nothing to keep in order');

-- What nobody was asked for is asked for by the upkeep; what is gone is removed
update ai.vectorized_rows set state = 'pending', embedding = null where row_key like '%/21' or row_key like '%/22';
select is(ai.fill_vectorizers(ai.now()), 2, 'rows that wait without a job are queued');
select is(ai.fill_vectorizers(ai.now()), 0, 'once');
select is(t.embed(), 2::bigint, 'and embedded');
insert into ai.vectorized_rows (version, tenant_id, row_key, state, noted_at)
select version, tenant_id, row_key, 'gone', ai.now() from ai.vectorized_rows where row_key like '%/21';
select is((select count(*) from t.noted('notes') where key = '21'), 0::bigint, 'a row noted as gone under a conflict');
select is(ai.fill_vectorizers(ai.now()), 2, 'is removed with what is older');
select is((select count(*) from ai.vectorized_rows where row_key like '%/21'), 0::bigint, 'altogether');
insert into ai.vectorized_rows (version, tenant_id, row_key, state, content, embedding, noted_at, older_left)
select version, tenant_id, row_key, 'embedded', 'newer', '[1,1,1]', ai.now(), true from ai.vectorized_rows where row_key like '%/22';
select is(ai.fill_vectorizers(ai.now()), 1, 'of two embedded texts of a row');
select is((select string_agg(content, ' ') from ai.vectorized_rows where row_key like '%/22'), 'newer', 'the older is removed');
set local session authorization mtap_clerk;
delete from mtap_shop.notes;
insert into mtap_shop.notes (id, title) values (1, 'Sea'), (2, 'Fire'), (3, 'Bread');
reset session authorization;
select is(t.embed(), 3::bigint, 'three rows');

-- Another model beside it
insert into ai.models (provider_id, name, wire_name, kind) select id, 'mtap/other', 'other', 'embedding' from ai.providers where name = 'mtap-first';
set local session authorization mtap_ann;
select throws_ok($$ select ai.revectorize('notes', 'mtap/other') $$, 'PT403', null, 'only the owner rebuilds');
set local session authorization mtap_shop;
select throws_ok($$ select ai.revectorize('notes', 'mtap/one') $$, 'PT404', null, 'with an embedding model');
select throws_ok($$ select ai.revectorize('notes', null) $$, 'PT404', null, 'not with none');
select throws_ok($$ select ai.revectorize('nothing', 'mtap/other') $$, 'PT404', null, 'what there is');
select is(ai.revectorize('notes', 'mtap/other'), 3::bigint, 'all rows are embedded again');
select results_eq($$ select model, status, total, embedded, pending from ai.vectorize_progress('notes') $$,
  $$ values ('mtap/embed', 'current', 3::bigint, 3::bigint, 0::bigint), ('mtap/other', 'building', 3::bigint, 0::bigint, 3::bigint) $$, 'beside the present ones');
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.5) $$, $$ values ('1') $$, 'which are searched meanwhile');
update mtap_shop.notes set title = 'Sea and bread' where id = 3;
insert into mtap_shop.notes (id, title) values (4, 'Sea');
delete from mtap_shop.notes where id = 2;
select results_eq($$ select model, total, embedded, pending from ai.vectorize_progress('notes') $$,
  $$ values ('mtap/embed', 3::bigint, 1::bigint, 2::bigint), ('mtap/other', 3::bigint, 0::bigint, 3::bigint) $$, 'changes go to both');
reset session authorization;
select is(ai.fill_vectorizers(ai.now()), 0, 'what is not complete');
select is((select model from ai.vectorizers where name = 'notes'), 'mtap/embed', 'does not take its place');
select is(t.embed(), 2::bigint + 3, 'each is embedded by both');
set local session authorization mtap_shop;
select results_eq($$ select model, embedded from ai.vectorize_progress('notes') $$, $$ values ('mtap/embed', 3::bigint), ('mtap/other', 3::bigint) $$, 'both are complete');
reset session authorization;
select is(ai.fill_vectorizers(ai.now()), 3, 'the new one takes the place, the old ones are removed');
select is((select model from ai.vectorizers where name = 'notes'), 'mtap/other', 'the vectorizer says which model');
set local session authorization mtap_shop;
select results_eq($$ select key from ai.search_rows('notes', '[1, 0, 0]', 0.5) $$, $$ values ('1'), ('4'), ('3') $$, 'the search finds by the new one');
select results_eq($$ select model, status from ai.vectorize_progress('notes') $$, $$ values ('mtap/other', 'current') $$, 'one is left');
-- A transaction that knew only of the old version noted rows for it, and what it changed for the others
reset session authorization;
create table t.strays as select v.id as version, z.id from ai.vectorizers z join ai.vectorizer_versions v on v.vectorizer_id = z.id and v.status = 'retired' where z.name = 'notes';
insert into ai.vectorized_rows (version, tenant_id, row_key, state, content, noted_at)
select version, t.alpha(), id || '/1', 'pending', 'title: Fire, at last', ai.now() from t.strays;
insert into ai.row_changes (vectorizer_id, versions, refs, tenant_id, row_key, content, noted_at)
select id, array[version], coalesce(r, array[nextval('ai.vectorized_rows_ref_seq'), nextval('ai.vectorized_rows_ref_seq')]), t.alpha(), id || '/' || k, c, ai.now()
  from t.strays, (values ('1', 'title: Fire, at last', null::bigint[]), ('2', 'title: Two', null), ('4', null, null), ('3', 'title: older than what is there', '{0,-1}')) v (k, c, r);
select is(ai.apply_row_changes(1, null), 1, 'as many at once as are asked for');
select is(ai.fill_vectorizers(ai.now()), 3 + 1 + 2 + 3, 'the others are noted, the old version loses its row, what is gone goes, what is new is asked for');
select is(t.rows('notes'), '1 pending, 2 pending, 3 embedded', 'newer than what was there, unless something newer is there');
select is((select count(*) from ai.vectorized_rows r join t.strays s on s.version = r.version), 0::bigint, 'nothing is left of the old version');
select is((select count(*) from ai.row_changes), 0::bigint, 'and no change to note');
delete from ai.vectorized_rows where row_key like '%/2';
select is(t.embed(), 1::bigint, 'and embedded');
select is((select count(*) from ai.vectorized_rows), 2::bigint, 'one text is left of each');
-- One that truncated the table, with something new behind it, and something older that is not noted yet
insert into ai.row_changes (vectorizer_id, versions, refs, tenant_id, row_key, content, noted_at)
select id, '{}', array[nextval('ai.vectorized_rows_ref_seq'), nextval('ai.vectorized_rows_ref_seq')], t.alpha(), id || '/8', 'title: Eight', ai.now() from t.strays;
insert into ai.row_changes (vectorizer_id, versions, refs, noted_at) select id, '{}', array[nextval('ai.vectorized_rows_ref_seq')], ai.now() from t.strays;
insert into ai.vectorized_rows (version, tenant_id, row_key, state, content, noted_at)
select v.id, t.alpha(), s.id || '/9', 'pending', 'title: Nine', ai.now() from t.strays s join ai.vectorizer_versions v on v.vectorizer_id = s.id and v.status = 'current';
savepoint truncated;
select is(ai.apply_row_changes(1, null), 2, 'what is older is noted first');
select is((select count(*) from ai.row_changes), 1::bigint, 'as long as rows are left');
select is(ai.apply_row_changes(null, null), 2, 'the rest goes');
select is(t.rows('notes'), '9 pending', 'what is newer stays');
select is((select count(*) from ai.row_changes), 0::bigint, 'and no change to note');
rollback to truncated;
delete from ai.row_changes;
delete from ai.vectorized_rows where row_key like '%/9';
insert into ai.row_changes (vectorizer_id, versions, refs, tenant_id, row_key, content, noted_at) select -1, '{}', '{-3,-2}', t.alpha(), '-1/1', 'of a vectorizer that was stopped', ai.now();
select is(ai.apply_row_changes(null, null), 1, 'what nobody wants any more');
select is(t.rows('notes'), '1 embedded, 3 embedded', 'is noted nowhere');
-- A rebuild that fails, is tried again, is given up
set local session authorization mtap_shop;
select is(ai.revectorize('notes', 'mtap/embed'), 2::bigint, 'back again');
reset session authorization;
select c.id as g, c.attempt as a from t.claim(:'w') c \gset
select t.settle(:'w', :'g', :a, 'failed', '{"signal": "http", "http_status": 400}') as ignored \gset
select is(ai.fill_vectorizers(ai.now()), 0, 'with failed rows');
select is((select string_agg(model || ' ' || status || ' ' || embedded || ' ' || failed, ', ') from ai.vectorize_progress('notes')), 'mtap/other current 2 0, mtap/embed building 0 2', 'it is not complete');
set local session authorization mtap_shop;
select is(ai.vectorize_retry('notes'), 2::bigint, 'they can be asked for again');
select is(ai.revectorize('notes', 'mtap/other'), 0::bigint, 'naming the present model gives up the other');
reset session authorization;
select is(t.embed(), 0::bigint, 'which is not embedded any more');
select is(ai.fill_vectorizers(ai.now()), 2, 'and removed');
select is((select string_agg(model || ' ' || status, ', ') from ai.vectorize_progress('notes')), 'mtap/other current', 'one is left');

select t.pass('25 hours');
select is(ai.fill_vectorizers(ai.now()), 0, 'after a day');
select is((select count(*) from ai.vectorizer_versions v join t.strays s on s.version = v.id), 0::bigint, 'old versions are forgotten');

select * from finish();
rollback;
