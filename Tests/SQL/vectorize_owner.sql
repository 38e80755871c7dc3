-- ai.vectorize() where Martlet's owner is no superuser and has no rights whatever on the app's table.
begin;
\ir setup/world.sql
select no_plan();

create role mtap_owner login;
create role mtap_shop login;
grant ai_user to mtap_shop;
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'shop');
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_shop', t.alpha(), 'shop');
create schema mtap_shop authorization mtap_shop;
set constraints all immediate;  -- a table with entries for the audit log on their way keeps its owner
do $$
declare
  v_one record;
begin
  for v_one in select format('alter %s %s owner to mtap_owner', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass) as sql
                 from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p')
                union all select format('alter routine %s owner to mtap_owner', oid::regprocedure) from pg_proc where pronamespace = 'ai'::regnamespace
                union all select format('alter view %s owner to mtap_owner', oid::regclass) from pg_class where relnamespace = 'ai'::regnamespace and relkind = 'v'
                union all select 'alter domain ai.embedding owner to mtap_owner' union all select 'alter schema ai owner to mtap_owner' loop
    execute v_one.sql;
  end loop;
end
$$;

set local session authorization mtap_shop;
create table mtap_shop.notes (id integer primary key, owner name, a text);
alter table mtap_shop.notes enable row level security;
create policy own on mtap_shop.notes using (owner = current_user);
insert into mtap_shop.notes values (1, 'mtap_ann', 'one'), (2, 'mtap_abe', 'two');
grant usage on schema mtap_shop to mtap_ann, mtap_owner;
grant select, insert, update, delete on mtap_shop.notes to mtap_ann;
select is(ai.vectorize('mtap_shop.notes', '{a}', 'mtap/embed'), 2::bigint, 'an app vectorizes its table');
set local session authorization mtap_ann;
select lives_ok($$ insert into mtap_shop.notes values (3, 'mtap_ann', 'three'), (4, 'mtap_ann', 'four') $$, 'a customer inserts');
select lives_ok($$ update mtap_shop.notes set a = a || '!', id = id + 10 where id = 3 $$, 'updates');
select lives_ok($$ delete from mtap_shop.notes where id = 4 $$, 'and deletes');
set local session authorization mtap_owner;
select throws_ok($$ select * from mtap_shop.notes $$, '42501', null, 'the owner of Martlet cannot read the table');
select results_eq($$ select split_part(row_key collate "default", '/', 2), content, state from ai.vectorized_rows order by 1 $$,
  $$ values ('1', 'a: one', 'pending'), ('13', 'a: three!', 'pending'), ('2', 'a: two', 'pending') $$, 'but its triggers noted everything');
set local session authorization mtap_worker;
select worker_id as w from ai.worker_register('plain', '1', 4) \gset
create temp table claimed as select c.generation_id, c.attempt, c.request -> 'input' as input from ai.worker_claim(:'w', 10, null) c where c.generation_id is not null;
select is((select sum(jsonb_array_length(input)) from claimed), 3::bigint, 'a worker embeds');
select count(*) as ignored from ai.worker_settle(:'w', (select jsonb_agg(jsonb_build_object('id', generation_id, 'attempt', attempt, 'outcome', 'succeeded', 'sent', true,
  'embeddings', (select jsonb_agg(jsonb_build_array(1, length(v))) from jsonb_array_elements_text(input) v))) from claimed)) \gset
set local session authorization mtap_ann;
select set_eq($$ select key from ai.search_rows('notes', '[1, 6]', 0.5) $$, array['1', '13'], 'the customer finds the own rows');
set local session authorization mtap_owner;
select throws_ok($$ select * from ai.search_rows('notes', '[1, 6]') $$, '42501', null, 'the owner of Martlet, who may not read the table, finds none');
select is((select embedded from ai.vectorize_progress('notes')), 3::bigint, 'but sees the progress');
select throws_ok($$ select ai.revectorize('notes', 'local/hash') $$, '42501', null, 'a rebuild is the app''s, whose table it locks');
set local session authorization mtap_shop;
select is(ai.revectorize('notes', 'local/hash'), 3::bigint, 'who does it');
set local session authorization mtap_worker;
select lives_ok(format('select ai.worker_maintain(%L)', :'w'), 'a worker keeps all in order');
set local session authorization mtap_owner;
select lives_ok($$ select ai.stop_vectorizing('notes') $$, 'the owner of Martlet can end it');
select is(ai.fill_vectorizers(ai.now()), 6, 'and its rows go');
set local session authorization mtap_ann;
select lives_ok($$ insert into mtap_shop.notes values (5, 'mtap_ann', 'five') $$, 'triggers that could not be dropped do nothing');
reset session authorization;
select is((select count(*) from ai.vectorized_rows), 0::bigint, 'at all');

select * from finish();
rollback;
