-- ai.vectorize() on all kinds of tables, by all kinds of callers, and on tables that change.
begin;
\ir setup/world.sql
select no_plan();

create role mtap_shop login;      -- owns the app's tables; a plain user of alpha
create role mtap_rival login;     -- owns others; a user of alpha too
create role mtap_boss login;      -- owns others; an admin of alpha
grant ai_user to mtap_shop, mtap_rival, mtap_boss;
insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'shop', 'user'), (t.alpha(), 'rival', 'user'), (t.alpha(), 'boss', 'admin'), (t.beta(), 'shop', 'user');
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_shop', t.alpha(), 'shop'), ('mtap_rival', t.alpha(), 'rival'), ('mtap_boss', t.alpha(), 'boss');
create schema mtap_shop;
grant all on schema mtap_shop to mtap_shop, mtap_rival, mtap_boss, mtap_stray, mtap_ann;
grant usage on schema mtap_shop to mtap_bob;
create function t.noted(p_name text) returns table (tenant_id uuid, key text, state text, content text) language sql as $$
  select * from (
    select distinct on (r.row_key) r.tenant_id, substr(r.row_key, strpos(r.row_key, '/') + 1), r.state, r.content
      from ai.vectorizers z join ai.vectorizer_versions v on v.vectorizer_id = z.id and v.status = 'current'
      join ai.vectorized_rows r on r.version = v.id and r.row_key like z.id || '/%'
     where z.name = p_name order by r.row_key, r.ref desc) n
   where n.state <> 'gone'
$$;
create function t.keys(p_name text) returns text language sql as $$ select string_agg(key, ' ' order by key collate "C") from t.noted(p_name) $$;

-- Who may
set local session authorization mtap_shop;
create table mtap_shop.plain (id integer primary key, a text, b text);
grant select, trigger, references, insert, update, delete on mtap_shop.plain to mtap_rival, mtap_ann, mtap_stray;
set local session authorization mtap_rival;
select throws_ok($$ select ai.vectorize('mtap_shop.plain', '{a}') $$, 'PT403', null, 'not who does not own the table, even with all rights on it');
set local session authorization mtap_stray;
create table mtap_shop.strays (id integer primary key, a text);
select throws_ok($$ select ai.vectorize('mtap_shop.strays', '{a}') $$, 'PT401', null, 'not who is nobody');
select throws_ok(format($$ select ai.vectorize('mtap_shop.strays', '{a}', tenant_id => %L, user_id => 'ann') $$, t.alpha()), 'PT401', null, 'nor for somebody else');
set local session authorization mtap_shop;
select throws_ok(format($$ select ai.vectorize('mtap_shop.plain', '{a}', tenant_id => %L, user_id => 'bob') $$, t.beta()), 'PT403', null, 'not for another tenant');
select throws_ok(format($$ select ai.vectorize('mtap_shop.plain', '{a}', tenant_id => %L) $$, t.beta()), 'PT403', null, 'not even where the user is a member too');
select throws_ok($$ select ai.vectorize('mtap_shop.plain', '{a}', tenant_column => 'b') $$, 'PT403', null, 'not for whatever tenant a column says');
select throws_ok($$ select ai.vectorize('mtap_shop.plain', '{a}', user_id => 'ann') $$, 'PT403', null, 'not in the name of another user');
select throws_ok($$ select ai.add_vectorizer('mtap_shop.strays', '{a}', 'local/hash', 'x', 'plain', 100, null, null, null) $$, 'PT403', null, 'nor by the function that notes it');
set local session authorization mtap_boss;
create table mtap_shop.bosses (id integer primary key, a text);
select lives_ok($$ select ai.vectorize('mtap_shop.bosses', '{a}', user_id => 'ann') $$, 'an admin may name another user');
select throws_ok($$ select ai.vectorize('mtap_shop.bosses', '{a}', name => 'x', user_id => 'bob') $$, 'PT403', null, 'of the own tenant');
set local session authorization mtap_worker;
select throws_ok($$ select ai.vectorize('mtap_shop.plain', '{a}') $$, '42501', null, 'a worker may not');
set local session authorization mtap_gateway;
select throws_ok($$ select ai.vectorize('pg_class', '{relname}') $$, '42501', null, 'a gateway may not');
reset session authorization;
select throws_ok($$ select ai.vectorize('mtap_shop.plain', '{a}') $$, 'PT400', null, 'the operator, who is no member');
select throws_ok(format($$ select ai.vectorize('mtap_shop.plain', '{a}', tenant_id => %L) $$, t.alpha()), 'PT400', null, 'and names a user');
select throws_ok($$ select ai.vectorize('mtap_shop.plain', '{a}', user_id => 'ann') $$, 'PT400', null, 'and a tenant');
select throws_ok(format($$ select ai.vectorize('mtap_shop.plain', '{a}', tenant_id => %L, user_id => 'nobody') $$, t.alpha()), 'PT403', null, 'who is a member');
select lives_ok(format($$ select ai.vectorize('mtap_shop.plain', '{a}', tenant_id => %L, user_id => 'ann', name => 'by the operator') $$, t.alpha()), 'then it goes');
select results_eq($$ select tenant_id, user_id from ai.vectorizers where name = 'by the operator' $$, format($$ values (%L::uuid, 'ann') $$, t.alpha()), 'for that member');
select lives_ok($$ select ai.stop_vectorizing('by the operator') $$, 'and can be ended');
-- A role that became another: its rights count
grant mtap_rival to mtap_shop;
set local session authorization mtap_shop;
create table mtap_shop.mine (id integer primary key, a text);
set local role mtap_rival;
select throws_ok($$ select ai.vectorize('mtap_shop.mine', '{a}') $$, 'PT403', null, 'who became another role has that role''s rights');
reset role;
select lives_ok($$ select ai.vectorize('mtap_shop.mine', '{a}') $$, 'not its own');
reset session authorization;
revoke mtap_rival from mtap_shop;

-- What is refused
set local session authorization mtap_shop;
create view mtap_shop.view as select * from mtap_shop.plain;
create materialized view mtap_shop.matview as select * from mtap_shop.plain;
create temp table temporary (id integer primary key, a text);
create table mtap_shop.keyless (id integer, a text);
create table mtap_shop.unique_only (id integer not null unique, a text);
create table mtap_shop.floats (id double precision primary key, a text);
create table mtap_shop.arrays (id integer[] primary key, a text);
create table mtap_shop.spans (id interval, n integer, a text, primary key (n, id));
create sequence mtap_shop.sequence;
select throws_ok(format($$ select ai.vectorize(%L, '{a}') $$, r), 'PT400', null, format('not %s', r))
  from unnest(array['mtap_shop.view', 'mtap_shop.matview', 'pg_temp.temporary', 'mtap_shop.keyless', 'mtap_shop.unique_only', 'mtap_shop.floats', 'mtap_shop.arrays', 'mtap_shop.spans', 'mtap_shop.sequence', 'mtap_shop.plain_pkey']) r;
reset session authorization;
select throws_ok(format($$ select ai.vectorize(%L, '{prompt}', tenant_id => %L, user_id => 'ann') $$, r, t.alpha()), 'PT400', null, format('not %s', r))
  from unnest(array['ai.generations', 'ai.tenants', 'pg_catalog.pg_class', 'pg_catalog.pg_authid', 'information_schema.sql_features']) r;
set local session authorization mtap_shop;
select throws_ok($$ select ai.vectorize('mtap_shop.none', '{a}') $$, '42P01', null, 'not what does not exist');
select throws_ok($$ select ai.vectorize(4000000000::oid::regclass, '{a}') $$, 'PT404', null, 'by number neither');
select throws_ok($$ select ai.vectorize(null, '{a}') $$, 'PT404', null, 'nor null');
select throws_ok(format($$ select ai.vectorize('mtap_shop.plain', %L) $$, c), code, null, format('not the columns %s', c))
  from (values ('{}', 'PT400'), (null, 'PT400'), ('{a,a}', 'PT400'), ('{a,NULL}', 'PT400'), ('{{a},{b}}', 'PT400'), ('{c}', 'PT404'), ('{ctid}', 'PT404'), ('{xmin}', 'PT404'), ('{"a, b"}', 'PT404'), ('{"a) from pg_authid--"}', 'PT404'), ('{A}', 'PT404'), ('{""}', 'PT404')) v (c, code);
select throws_ok(format($$ select ai.vectorize('mtap_shop.plain', %L) $$, (select array_agg('c' || i) from generate_series(1, 33) i)), 'PT400', null, 'not 33 columns');
select throws_ok(format($$ select ai.vectorize('mtap_shop.plain', '{a}', %s) $$, a), code, null, format('not with %s', a))
  from (values ('model => ''none''', 'PT404'), ('model => ''mtap/one''', 'PT404'), ('model => null', 'PT404'), ('format => ''xml''', 'PT400'), ('format => null', 'PT400'), ('max_characters => 0', 'PT400'),
               ('max_characters => 32001', 'PT400'), ('max_characters => null', 'PT400'), ('name => ''''', 'PT400'), ('name => repeat(''n'', 201)', 'PT400')) v (a, code);
select lives_ok(format($$ select ai.vectorize('mtap_shop.plain', '{a}', name => repeat('n', 200), max_characters => %s) $$, n), format('with %s characters', n)) from (values (1)) v (n);
select lives_ok($$ select ai.vectorize('mtap_shop.plain', '{a}', name => 'most', max_characters => 32000) $$, 'with 32,000 characters');
select throws_ok($$ select ai.vectorize('mtap_shop.plain', '{a}', name => 'most') $$, 'PT409', null, 'a name is given once');
select lives_ok($$ select ai.vectorize('mtap_shop.plain', '{a,b}') $$, 'a table may have several vectorizers');
insert into mtap_shop.plain values (1, 'é€𝄞ß', 'b');
reset session authorization;
select is((select content from t.noted(repeat('n', 200))), 'a', 'a text is cut at so many characters');
select is((select content from t.noted('most')), 'a: é€𝄞ß', 'or is whole');
select is((select content from t.noted('plain')), E'a: é€𝄞ß\nb: b', 'each vectorizer notes for itself');
set local session authorization mtap_shop;
select lives_ok($$ select ai.stop_vectorizing('most'), ai.stop_vectorizing(repeat('n', 200)) $$, 'ending some of them');
update mtap_shop.plain set b = 'c';
reset session authorization;
select is((select count(*) from pg_trigger where tgrelid = 'mtap_shop.plain'::regclass and tgname like 'martlet%'), 4::bigint, 'takes their triggers');
select is((select content from t.noted('plain')), E'a: é€𝄞ß\nb: c', 'not the other''s');
select isnt((select count(*) from ai.vectorized_rows r where r.content like 'a%'), (select count(*) from t.noted('plain')), 'their rows are there');
select ai.fill_vectorizers(ai.now()) as ignored \gset
select is((select count(*) from ai.vectorized_rows r where split_part(r.row_key, '/', 1)::bigint not in (select id from ai.vectorizers)), 0::bigint, 'until the upkeep');
-- Kinds of keys; what they look like is the same in every session
set local session authorization mtap_shop;
create type mtap_shop.mood as enum ('good', 'bad "one"');
create domain mtap_shop.code as text check (value <> 'x');
create table mtap_shop.k_text (id text primary key, a text);
create table mtap_shop.k_uuid (id uuid primary key, a text);
create table mtap_shop.k_enum (id mtap_shop.mood primary key, a text);
create table mtap_shop.k_domain (id mtap_shop.code primary key, a text);
create table mtap_shop.k_date (id date primary key, a text);
create table mtap_shop.k_time (id timestamptz primary key, a text);
create table mtap_shop.k_stamp (id timestamp primary key, a text);
create table mtap_shop.k_bytes (id bytea primary key, a text);
create table mtap_shop.k_number (id numeric primary key, a text);
create table mtap_shop.k_flag (id boolean primary key, a text);
create table mtap_shop.k_char (id char(4) primary key, a text);
create table mtap_shop.k_address (id inet primary key, a text);
create table mtap_shop.k_both ("Weird ""key" text, n timestamptz, a text, primary key (n, "Weird ""key"));
insert into mtap_shop.k_text values ('a/b "c"', 'x'), ('', 'x'), (E'new\nline', 'x');
insert into mtap_shop.k_uuid values ('0a000000-0000-7000-8000-00000000000A', 'x');
insert into mtap_shop.k_enum values ('bad "one"', 'x');
insert into mtap_shop.k_domain values ('y', 'x');
insert into mtap_shop.k_date values ('2026-02-01', 'x'), ('infinity', 'x');
insert into mtap_shop.k_time values ('2026-02-01 12:00:00.5+00', 'x');
insert into mtap_shop.k_stamp values ('2026-02-01 12:00', 'x');
insert into mtap_shop.k_bytes values ('\x00ff', 'x');
insert into mtap_shop.k_number values (1.50, 'x');
insert into mtap_shop.k_flag values (true, 'x');
insert into mtap_shop.k_char values ('ab', 'x');
insert into mtap_shop.k_address values ('10.0.0.1', 'x');
insert into mtap_shop.k_both values ('a "b', '2026-02-01 12:00:00+00', 'x');
set local datestyle = 'German, DMY';
set local timezone = 'Asia/Kolkata';
set local bytea_output = 'escape';
select lives_ok(format($$ select ai.vectorize('mtap_shop.%s', '{a}') $$, relname), format('vectorizes %s', relname)) from (select relname from pg_class where relname like 'k\_%' and relkind = 'r' order by 1 offset 0) k;
reset session authorization;
select is(t.keys(v.name), v.keys, format('keys of %s', v.name))
  from (values ('k_text', E' a/b "c" new\nline'), ('k_uuid', '0a000000-0000-7000-8000-00000000000a'), ('k_enum', 'bad "one"'), ('k_domain', 'y'), ('k_date', '2026-02-01 infinity'),
               ('k_time', '2026-02-01T12:00:00.5'), ('k_stamp', '2026-02-01T12:00:00'), ('k_bytes', '00ff'), ('k_number', '1.50'), ('k_flag', 't'), ('k_char', 'ab  '), ('k_address', '10.0.0.1'),
               ('k_both', '["2026-02-01T12:00:00", "a \"b"]')) v (name, keys);
update ai.vectorized_rows set state = 'embedded', embedding = '[1,1]';
set local session authorization mtap_shop;
select isnt_empty(format($$ select key from ai.search_rows(%L, '[1, 1]', 0.9) $$, relname), format('%s is found by its key in a session with other settings', relname)) from (select relname from pg_class where relname like 'k\_%' and relkind = 'r' order by 1 offset 0) k;
-- As in docs/vectorize.md
select results_eq(format('select count(*) from ai.search_rows(%L, %L, 0.9) s join mtap_shop.%I p on %s', name, '[1, 1]', name, condition), format('select count(*) from mtap_shop.%I', name), format('%s joins on %s', name, condition))
  from (values ('k_text', 'p.id = s.key::text'), ('k_uuid', 'p.id = s.key::uuid'), ('k_enum', 'p.id = s.key::mtap_shop.mood'), ('k_domain', 'p.id = s.key::mtap_shop.code'), ('k_date', 'p.id = s.key::date'),
               ('k_time', 'p.id = s.key::timestamp at time zone ''UTC'''), ('k_stamp', 'p.id = s.key::timestamp'), ('k_bytes', 'p.id = decode(s.key, ''hex'')'), ('k_number', 'p.id = s.key::numeric'),
               ('k_flag', 'p.id = s.key::boolean'), ('k_char', 'p.id = s.key::char(4)'), ('k_address', 'p.id = s.key::inet'),
               ('k_both', 'p.n = (s.key::jsonb ->> 0)::timestamp at time zone ''UTC'' and p."Weird ""key" = s.key::jsonb ->> 1')) v (name, condition);
select is((select ai.refresh_vectorizer(relname)), 0::bigint, format('%s has nothing new', relname)) from (select relname from pg_class where relname like 'k\_%' and relkind = 'r' order by 1 offset 0) k;
set local timezone = 'America/New_York';
update mtap_shop.k_time set a = 'y';
update mtap_shop.k_both set a = 'y';
reset datestyle;
reset timezone;
reset bytea_output;
reset session authorization;
select is(t.keys('k_time') || t.keys('k_both'), '2026-02-01T12:00:00.5["2026-02-01T12:00:00", "a \"b"]', 'a key is the same from another time zone');

-- Kinds of values, the same in every session
set local session authorization mtap_shop;
create type mtap_shop.pair as (x integer, y timestamptz);
create table mtap_shop.values (id integer primary key, i integer, f double precision, d date, z timestamptz, j jsonb, b bytea, l text[], p mtap_shop.pair, m mtap_shop.mood, s interval, "Ünï ""Q"" \" text, g integer generated always as (2) stored);
select lives_ok($$ select ai.vectorize('mtap_shop.values', array['i', 'f', 'd', 'z', 'j', 'b', 'l', 'p', 'm', 's', 'Ünï "Q" \', 'g']) $$, 'all kinds of columns');
set local datestyle = 'SQL, DMY';
set local timezone = 'Asia/Kolkata';
set local intervalstyle = 'iso_8601';
set local extra_float_digits = -15;
insert into mtap_shop.values values (1, 7, 0.1, '2026-02-01', '2026-02-01 12:00+00', '{"a": [1, "x"]}', '\x00ff', '{a,"b c"}', row(1, '2026-02-01 12:00+00'), 'bad "one"', '1 day 2 hours', 'quote '' here');
reset session authorization;
select is((select content from t.noted('values')), E'i: 7\nf: 0.1\nd: 2026-02-01\nz: 2026-02-01 12:00:00+00\nj: {"a": [1, "x"]}\nb: \\x00ff\nl: {a,"b c"}\np: (1,"2026-02-01 12:00:00+00")\nm: bad "one"\ns: 1 day 02:00:00\nÜnï "Q" \\: quote '' here\ng: 2', 'as text');
reset datestyle;
reset timezone;
reset intervalstyle;
reset extra_float_digits;
select count(*) as rows from ai.vectorized_rows \gset
update mtap_shop.values set i = i, z = z, p = p;
select is((select count(*) from ai.vectorized_rows)::text, :'rows', 'which is the same from other settings');
set local session authorization mtap_shop;
select is(ai.refresh_vectorizer('values'), 0::bigint, 'and when it is read again');
create table mtap_shop.unlabelled (id integer primary key, a text, b text);
select lives_ok($$ select ai.vectorize('mtap_shop.unlabelled', '{b,a}', format => 'plain') $$, 'without labels');
insert into mtap_shop.unlabelled values (1, '1', '2'), (2, null, '2'), (3, '', ''), (4, 'x', '  ');
reset session authorization;
select results_eq($$ select key, content from t.noted('unlabelled') order by 1 $$, $$ values ('1', E'2\n1'), ('2', '2'), ('4', 'x') $$, 'values one a line, in the given order, empty ones left out');

-- Partitioned tables
set local session authorization mtap_shop;
create table mtap_shop.parts (id integer, day date, a text, primary key (day, id)) partition by range (day);
create table mtap_shop.parts_1 partition of mtap_shop.parts for values from ('2026-01-01') to ('2026-02-01');
create table mtap_shop.parts_2 partition of mtap_shop.parts default;
insert into mtap_shop.parts values (1, '2026-01-01', 'a');
select is(ai.vectorize('mtap_shop.parts', '{a}'), 1::bigint, 'a partitioned table');
select throws_ok($$ select ai.vectorize('mtap_shop.parts_1', '{a}') $$, 'PT400', null, 'not a partition of it');
insert into mtap_shop.parts values (2, '2026-03-01', 'b');
update mtap_shop.parts set day = '2026-04-01' where id = 1;
reset session authorization;
select is(t.keys('parts'), '["2026-03-01", "2"] ["2026-04-01", "1"]', 'rows of all partitions, also when they move');
insert into mtap_shop.parts_2 values (3, '2026-05-01', 'c');
select is(t.keys('parts'), '["2026-03-01", "2"] ["2026-04-01", "1"]', 'what goes straight into a partition is not seen');
set local session authorization mtap_shop;
select is(ai.refresh_vectorizer('parts'), 1::bigint, 'but found by a refresh');

-- Evil names
create table mtap_shop."t""; drop table x; --%I $1 'q' \" ("i'd" integer primary key, "c"", pg_sleep(9) --" text, "%s $1 $sql$" text);
insert into mtap_shop."t""; drop table x; --%I $1 'q' \" values (1, 'x', 'y');
select is(ai.vectorize(format('mtap_shop.%I', E't"; drop table x; --%I $1 \'q\' \\')::regclass, array['c", pg_sleep(9) --', '%s $1 $sql$'], name => E'n\'"; --%I'), 1::bigint, 'names that are code');
update mtap_shop."t""; drop table x; --%I $1 'q' \" set "%s $1 $sql$" = 'z';
reset session authorization;
select is((select content from t.noted(E'n\'"; --%I')), E'c", pg_sleep(9) --: x\n%s $1 $sql$: z', 'are names');
update ai.vectorized_rows set state = 'embedded', embedding = '[1,1]' where content like 'c"%';
set local session authorization mtap_shop;
select results_eq($$ select key from ai.search_rows(E'n\'"; --%I', '[1, 1]') $$, $$ values ('1') $$, 'in a search too');
select lives_ok($$ select ai.revectorize(E'n\'"; --%I', 'mtap/embed') $$, 'in a rebuild');
select lives_ok($$ select ai.stop_vectorizing(E'n\'"; --%I') $$, 'and at the end');

-- Hostile owners: nothing of theirs runs as the owner of Martlet
create table mtap_shop.witness (who name, whence text);
grant insert on mtap_shop.witness to public;
create type mtap_shop.trap as (x integer);
create function mtap_shop.spring(v mtap_shop.trap) returns text language plpgsql as $$ begin insert into mtap_shop.witness values (current_user, 'cast to text'); return 'x'; end $$;
create function mtap_shop.spring_json(v mtap_shop.trap) returns json language plpgsql as $$ begin insert into mtap_shop.witness values (current_user, 'cast to json'); return '1'; end $$;
create cast (mtap_shop.trap as text) with function mtap_shop.spring(mtap_shop.trap) as assignment;
create cast (mtap_shop.trap as json) with function mtap_shop.spring_json(mtap_shop.trap) as assignment;
create function mtap_shop.compare(a mtap_shop.trap, b mtap_shop.trap) returns boolean language plpgsql as $$ begin insert into mtap_shop.witness values (current_user, 'operator'); return true; end $$;
create operator mtap_shop.= (leftarg = mtap_shop.trap, rightarg = mtap_shop.trap, function = mtap_shop.compare);
create function mtap_shop.policy() returns boolean language plpgsql as $$ begin insert into mtap_shop.witness values (current_user, 'policy'); return true; end $$;
create table mtap_shop.trapped (id integer primary key, a mtap_shop.trap, t text);
alter table mtap_shop.trapped enable row level security;
create policy trapped on mtap_shop.trapped using (mtap_shop.policy());
select lives_ok($$ select ai.vectorize('mtap_shop.trapped', '{a,t}') $$, 'a table full of traps');
insert into mtap_shop.trapped values (1, row(1), 'a'), (2, row(2), 'b');
update mtap_shop.trapped set t = 'c', a = row(3);
delete from mtap_shop.trapped where id = 2;
select lives_ok($$ select ai.refresh_vectorizer('trapped'), ai.revectorize('trapped', 'mtap/embed') $$, 'is read and rebuilt');
reset session authorization;
update ai.vectorized_rows set state = 'embedded', embedding = '[1,1]' where content like 'a: (3)%';
select ai.fill_vectorizers(ai.now()) as ignored \gset
select is((select content from t.noted('trapped')), E'a: (3)\nt: c', 'as text by its type''s own output');
select is_empty($$ select * from mtap_shop.witness where who <> 'mtap_shop' $$, 'nobody walks into one');
grant select on mtap_shop.trapped to mtap_ann;
set local session authorization mtap_ann;
select is((select count(*) from ai.search_rows('trapped', '[1, 1]')), 1::bigint, 'who searches runs the policies');
reset session authorization;
select set_eq($$ select who::text, whence from mtap_shop.witness $$, $$ values ('mtap_ann', 'policy') $$, 'as who searches, like every reader of the table');
-- The trigger function, on tables of others
set local session authorization mtap_rival;
create table mtap_shop.foreign (id integer primary key, a text, b text);
create table mtap_shop.ids as select z.id, z.name from ai.vectorizers z;
select format('create trigger x after insert on mtap_shop.foreign referencing new table as inserted for each statement execute function ai.note_changes(%L)', (select id from mtap_shop.ids where name = 'plain')) as make \gset
:make;
insert into mtap_shop.foreign values (666, 'planted', 'planted');
reset session authorization;
select is(t.keys('plain'), '1', 'a trigger of one''s own on a table of one''s own plants nothing with another''s vectorizer');
set local session authorization mtap_rival;
select throws_ok(format($$ select ai.%s $$, f), 'PT403', null, format('nor does %s', f))
  from (select id from mtap_shop.ids where name = 'plain') p,
       lateral (values (format('note_rows(%s, array[''%s/666''], array[''planted''], array[''%s''::uuid])', p.id, p.id, t.alpha())), (format('note_all_read(%s, ''{}'')', p.id)), (format('rows_query(%s)', p.id)),
                       (format('start_building(%s, ''mtap/embed'')', p.id)), (format('remove_vectorizer(%s)', p.id)), (format('read_rows(%s, true)', p.id)),
                       ('stop_vectorizing(''plain'')'), ('vectorize_retry(''plain'')'), ('refresh_vectorizer(''plain'')'), ('revectorize(''plain'', ''mtap/embed'')')) v (f);
set local session authorization mtap_shop;
select is(ai.note_rows((select id from ai.vectorizers where name = 'plain'), array['666/1', 'x'], array['planted', 'planted'], array[t.alpha(), t.alpha()]), 0::bigint, 'an owner notes rows of the own vectorizer only');
select is(ai.note_rows((select id from ai.vectorizers where name = 'plain'), (select array[id || '/7'] from ai.vectorizers where name = 'plain'), array['planted'], array[t.beta()]), 0::bigint, 'and of the own tenant');
set local session authorization mtap_bob;
select throws_ok($$ select ai.stop_vectorizing('plain') $$, 'PT404', null, 'another tenant does not know it');
select is_empty($$ select * from ai.vectorizers $$, 'nor sees any');
set local session authorization mtap_ann;
select isnt_empty($$ select * from ai.vectorizers $$, 'a member sees what is vectorized');
select throws_ok(format('select * from ai.%I', r), '42501', null, format('but not ai.%s', r)) from unnest(array['vectorizer_versions', 'vectorizer_problems', 'vectorized_rows', 'row_changes', 'embedding_jobs']) r;
select throws_ok($$ delete from ai.vectorizers $$, '42501', null, 'and changes nothing');
reset session authorization;

-- Row-level security that would hide rows from the reading
set local session authorization mtap_shop;
create table mtap_shop.forced (id integer primary key, a text);
alter table mtap_shop.forced enable row level security;
alter table mtap_shop.forced force row level security;
select throws_ok($$ select ai.vectorize('mtap_shop.forced', '{a}') $$, 'PT403', null, 'a table whose policies hold its owner');
alter table mtap_shop.forced no force row level security;
select lives_ok($$ select ai.vectorize('mtap_shop.forced', '{a}') $$, 'else it can');

-- A table of many tenants
reset session authorization;
create table mtap_shop.many (id integer primary key, tenant uuid, a text);
alter table mtap_shop.many enable row level security;
create policy own on mtap_shop.many using (tenant = ai.tenant_id());
grant select, insert, update on mtap_shop.many to mtap_ann, mtap_bob, mtap_shop;
insert into mtap_shop.many values (1, t.alpha(), 'a'), (2, t.beta(), 'b'), (3, null, 'c');
select throws_ok($$ select ai.vectorize('mtap_shop.many', '{a}', tenant_column => 'a', user_id => 'shop') $$, 'PT400', null, 'a tenant column is a uuid');
select throws_ok($$ select ai.vectorize('mtap_shop.many', '{a}', tenant_column => 'x', user_id => 'shop') $$, 'PT404', null, 'that exists');
select throws_ok($$ select ai.vectorize('mtap_shop.many', '{a}', tenant_column => 'tenant') $$, 'PT400', null, 'with a user');
select throws_ok(format($$ select ai.vectorize('mtap_shop.many', '{a}', tenant_column => 'tenant', user_id => 'shop', tenant_id => %L) $$, t.alpha()), 'PT400', null, 'and no tenant beside it');
select is(ai.vectorize('mtap_shop.many', '{a}', tenant_column => 'tenant', user_id => 'shop'), 2::bigint, 'then each row is its tenant''s');
select results_eq($$ select tenant_id, key, state from t.noted('many') order by key $$, format($$ values (%L::uuid, '1', 'pending'), (%L::uuid, '2', 'pending') $$, t.alpha(), t.beta()), 'and pays for itself');
select set_eq($$ select g.tenant_id, g.user_id from ai.embedding_jobs j join ai.generations g on g.id = j.generation_id where j.version = (select max(id) from ai.vectorizer_versions) $$,
  format($$ values (%L::uuid, 'shop'), (%L::uuid, 'shop') $$, t.alpha(), t.beta()), 'in the name of that user of each');
set local session authorization mtap_bob;
insert into mtap_shop.many values (4, t.beta(), 'd');
reset session authorization;
insert into ai.tenants (id, name) values ('0c000000-0000-7000-8000-000000000001', 'mtap gamma');
select lives_ok($$ insert into mtap_shop.many values (5, '0c000000-0000-7000-8000-000000000001', 'e'), (6, '0c000000-0000-7000-8000-00000000dead', 'f'), (7, t.alpha(), 'g') $$, 'a tenant without that user, and one that is none, fail no write');
select results_eq($$ select key, state from t.noted('many') order by key $$, $$ values ('1', 'pending'), ('2', 'pending'), ('4', 'pending'), ('5', 'failed'), ('6', 'failed'), ('7', 'pending') $$, 'their rows have failed, no others');
update ai.vectorized_rows set state = 'embedded', embedding = '[1,1]' where state = 'pending' and tenant_id in (t.alpha(), t.beta());
set local session authorization mtap_bob;
select results_eq($$ select key from ai.search_rows('many', '[1, 1]') $$, $$ values ('2'), ('4') $$, 'a tenant finds its rows');
set local session authorization mtap_ann;
select results_eq($$ select key from ai.search_rows('many', '[1, 1]') $$, $$ values ('1'), ('7') $$, 'another its own');
select throws_ok($$ select ai.stop_vectorizing('many') $$, 'PT403', null, 'and ends nothing');
reset session authorization;
update mtap_shop.many set tenant = t.beta() where id = 1;
select results_eq($$ select tenant_id, state from t.noted('many') where key = '1' $$, format($$ values (%L::uuid, 'pending') $$, t.beta()), 'a row that changes its tenant is embedded anew');
select is((select count(*) from ai.vectorized_rows r join ai.vectorizers z on r.row_key = z.id || '/1' where z.name = 'many'), 1::bigint, 'and leaves nothing behind');
update mtap_shop.many set tenant = null where id = 1;
select is((select count(*) from t.noted('many') where key = '1'), 0::bigint, 'without a tenant it is nobody''s');

-- What all tenants share is embedded by the shared model; none takes its name, or holds up its rebuild
insert into ai.providers (tenant_id, name, dialect, base_url) values (t.alpha(), 'mtap-alphas', 'openai', 'http://alpha.test') returning id as p \gset
insert into ai.models (tenant_id, provider_id, name, wire_name, kind, dimensions) values (t.alpha(), :p, 'mtap/embed', 'other', 'embedding', 3) returning id as own \gset
create table mtap_shop.shared (id integer primary key, tenant uuid, a text);
insert into mtap_shop.shared values (1, t.alpha(), 'one'), (2, t.beta(), 'two');
select ai.vectorize('mtap_shop.shared', '{a}', 'mtap/embed', tenant_column => 'tenant', user_id => 'shop') as ignored \gset
select set_eq($$ select g.tenant_id, g.route from ai.generations g join ai.embedding_jobs j on j.generation_id = g.id join ai.vectorizer_versions v on v.id = j.version
                   join ai.vectorizers z on z.id = v.vectorizer_id and z.name = 'shared' $$,
              $$ select t, array[ai.target_model(null, 'embedding', 'mtap/embed', null, 1)] from unnest(array[t.alpha(), t.beta()]) t $$, 'by the shared model, for alpha as well, which has its own');
select is(ai.store_embeddings(j.tenant_id, j.generation_id, '[[1, 2, 3, 4]]'), null, 'the size is the shared model''s')
  from ai.embedding_jobs j join ai.vectorizer_versions v on v.id = j.version join ai.vectorizers z on z.id = v.vectorizer_id and z.name = 'shared';
set local session authorization mtap_rival;
create table mtap_shop.rivals_shared (id integer primary key, a text);
select throws_ok($$ select ai.vectorize('mtap_shop.rivals_shared', '{a}', name => 'shared') $$, 'PT409', null, 'a member does not take the name of what all tenants share');
select lives_ok($$ select ai.vectorize('mtap_shop.rivals_shared', '{a}', name => 'of the rival') $$, 'but another');
reset session authorization;
update ai.vectorizers set name = 'shared' where name = 'of the rival';
select id as shared_id from ai.vectorizers where name = 'shared' and tenant_id is null \gset
set local session authorization mtap_rival;
select is((ai.find_vectorizer('shared')).id, :shared_id::bigint, 'where one was there before, the shared one is searched');
reset session authorization;
update ai.vectorizers set name = 'of the rival' where name = 'shared' and tenant_id is not null;
update ai.members set enabled = false where user_id = 'shop' and tenant_id = t.alpha();
select ai.revectorize('shared', 'local/hash') as ignored \gset
select results_eq($$ select r.tenant_id = t.alpha(), r.state, r.error ->> 'class' from ai.vectorized_rows r join ai.vectorizer_versions v on v.id = r.version and v.status = 'building' order by 1 desc $$,
                  $$ values (true, 'failed', 'revoked'), (false, 'pending', null) $$, 'alpha has switched off the member in whose name the rows are embedded');
select ai.fill_vectorizers(ai.now()) as ignored \gset
select is((select model from ai.vectorizers where name = 'shared'), 'mtap/embed', 'a rebuild waits for what is pending');
update ai.vectorized_rows r set state = 'embedded', embedding = '[1,1]' from ai.vectorizer_versions v where v.id = r.version and v.status = 'building' and r.state = 'pending';
select ai.fill_vectorizers(ai.now()) as ignored \gset
select is((select model from ai.vectorizers where name = 'shared'), 'local/hash', 'and not for alpha''s member');
update ai.members set enabled = true where user_id = 'shop' and tenant_id = t.alpha();
select ai.stop_vectorizing('shared') as ignored \gset
delete from ai.models where id = :own;
delete from ai.providers where id = :p;
-- Columns of different collations
create table mtap_shop.collated (id integer primary key, a text collate "C", b text collate "POSIX");
select is(ai.vectorize('mtap_shop.collated', '{a,b}', tenant_id => t.alpha(), user_id => 'shop'), 0::bigint, 'columns of two collations');
insert into mtap_shop.collated values (1, 'a', 'b');
update mtap_shop.collated set a = 'A';
select is((select content from t.noted('collated')), E'a: A\nb: b', 'are embedded together');

-- Tables that change
set local session authorization mtap_shop;
create table mtap_shop.before (id integer primary key, a text, b text, c text);
insert into mtap_shop.before values (1, 'a', 'b', 'c');
select ai.vectorize('mtap_shop.before', '{a,b}', name => 'changing') as ignored \gset
alter table mtap_shop.before rename to after;
alter table mtap_shop.after rename column b to bee;
alter table mtap_shop.after rename column id to number;
alter table mtap_shop.after rename column c to b;
insert into mtap_shop.after values (2, 'a', 'b', 'c');
reset session authorization;
select results_eq($$ select key, content from t.noted('changing') order by 1 $$, $$ values ('1', E'a: a\nb: b'), ('2', E'a: a\nbee: b') $$, 'a renamed table, and renamed columns');
select ai.fill_vectorizers(ai.now()) as ignored \gset
select results_eq($$ select table_name::text, columns, key_columns from ai.vectorizers where name = 'changing' $$, $$ values ('mtap_shop.after', '{a,bee}'::text[], '{number}'::text[]) $$, 'are followed');
update ai.vectorizers set table_id = 0, attnums = '{7,8}', key_attnums = '{9}' where name = 'changing';
insert into mtap_shop.after values (3, 'a', 'b', 'c');
select is((select content from t.noted('changing') where key = '3'), E'a: a\nbee: b', 'after a restore columns are found by name');
select ai.fill_vectorizers(ai.now()) as ignored \gset
select results_eq($$ select table_id, attnums, key_attnums from ai.vectorizers where name = 'changing' $$, $$ values ('mtap_shop.after'::regclass::oid, '{2,3}'::smallint[], '{1}'::smallint[]) $$, 'and by number again');
set local session authorization mtap_shop;
alter table mtap_shop.after drop column bee;
insert into mtap_shop.after values (4, 'a', 'c');
reset session authorization;
select is((select content from t.noted('changing') where key = '4'), 'a: a', 'a dropped column is left out');
update ai.vectorized_rows set state = 'embedded', embedding = '[1,1]' where content like 'a: a%';
set local session authorization mtap_shop;
select throws_ok($$ select * from ai.search_rows('changing', '[1, 1]') $$, 'PT409', null, 'what was embedded with it is not searched');
select set_config('ai.searched', (select id from ai.vectorizers where name = 'changing')::text, true) as ignored \gset
select is((select count(*) from ai.vectorized_rows), 0::bigint, 'nor read past the search');
select is(ai.refresh_vectorizer('changing'), 3::bigint, 'its owner has the texts with it made anew');
select is((select count(*) from ai.search_rows('changing', '[1, 1]')), 1::bigint, 'then search goes on, without what was embedded with it');
reset session authorization;
update ai.vectorized_rows set state = 'embedded', embedding = '[1,1]' where content like 'a: a%';
select is((select count(*) from t.noted('changing') where content ~ 'bee|b: '), 0::bigint, 'nothing is left of it');
select is((select columns from ai.vectorizers where name = 'changing'), '{a}', 'the column is not noted any more');
set local session authorization mtap_shop;
select is((select count(*) from ai.search_rows('changing', '[1, 1]')), 4::bigint, 'all are found again');
alter table mtap_shop.after drop column a;
select lives_ok($$ insert into mtap_shop.after values (5, 'c') $$, 'no column left: writes go on');
alter table mtap_shop.after drop column number;
select lives_ok($$ insert into mtap_shop.after values ('c') $$, 'no key left: writes go on');
reset session authorization;
select is((select problem - 'at' from ai.vectorize_progress('changing')), '{"class": "missed", "code": "PT409", "message": "the table that is vectorized, or its key, is gone"}', 'and the problem shows');
set local session authorization mtap_shop;
select throws_ok($$ select * from ai.search_rows('changing', '[1, 1]') $$, 'PT409', null, 'a search says so');
drop table mtap_shop.after;
select throws_ok($$ select * from ai.search_rows('changing', '[1, 1]') $$, 'PT404', null, 'a dropped table is not searched');
select is((select problem ->> 'class' from ai.vectorize_progress('changing')), 'no_table', 'progress says why');
reset session authorization;
select ai.fill_vectorizers(ai.now()) as ignored \gset
select is((select count(*) from ai.vectorizers where name = 'changing'), 0::bigint, 'the upkeep ends it');
select is((select count(*) from ai.vectorized_rows r where split_part(r.row_key, '/', 1)::bigint not in (select id from ai.vectorizers)), 0::bigint, 'with all its rows');
-- What no trigger sees
set local session authorization mtap_shop;
create table mtap_shop.retyped (id integer primary key, a text);
create table mtap_shop.halves (id integer primary key, a text) partition by range (id);
create table mtap_shop.half_1 partition of mtap_shop.halves for values from (0) to (10);
create table mtap_shop.half_2 partition of mtap_shop.halves for values from (10) to (20);
insert into mtap_shop.retyped values (1, 'x'), (2, 'y');
insert into mtap_shop.halves values (1, 'x'), (11, 'y');
select ai.vectorize('mtap_shop.retyped', '{a}'), ai.vectorize('mtap_shop.halves', '{a}') \g /dev/null
alter table mtap_shop.retyped alter id type bigint;
select is((select problem from ai.vectorize_progress('retyped')), null, 'a key of larger whole numbers: they are written as before');
alter table mtap_shop.retyped rename id to code;
alter table mtap_shop.retyped alter code type text using 'k' || code;
select is((select problem from ai.vectorize_progress('retyped')),
  '{"class": "key_type", "message": "the type of the key column code was changed from integer to text", "hint": "select ai.refresh_vectorizer(…);"}',
  'a key of another type is a problem, also of a renamed column');
alter table mtap_shop.halves detach partition mtap_shop.half_2;
select is(ai.refresh_vectorizer('retyped'), 2::bigint, 'all rows are read again');
select is((select problem from ai.vectorize_progress('retyped')), null, 'and it is none any more');
select is(ai.refresh_vectorizer('halves'), 0::bigint, 'a partition detached: nothing is new');
reset session authorization;
select is(t.keys('retyped') || ' ' || t.keys('halves'), 'k1 k2 1', 'and what is gone is forgotten');

set local session authorization mtap_shop;
create table mtap_shop.dropped (id integer primary key, a text);
select ai.vectorize('mtap_shop.dropped', '{a}') as ignored \gset
drop table mtap_shop.dropped;
select lives_ok($$ select ai.stop_vectorizing('dropped') $$, 'what is dropped can be ended at once');
reset session authorization;

select * from finish();
rollback;
