-- What plans tell of other tenants' rows.
begin;
\ir setup/world.sql
select no_plan();

-- Statistics
select is_empty($$
  select c.relname, a.attname
    from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_type t on t.oid = a.atttypid join pg_type b on b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
   where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
     and (b.typcategory in ('S', 'V') or b.typname in ('name', '_text', 'json', 'jsonb', 'bytea', 'vector', 'tsvector'))
     and coalesce(a.attstattarget, -1) <> 0 $$, 'no statistics are kept of any column of texts, words, documents, bytes or vectors');
select is(ai.hide_statistics(), 0, 'to hide them again changes nothing');
alter table ai.generations_default alter column prompt set statistics 100;
select is(ai.hide_statistics(), 1, 'what somebody switched on is switched off');
select is(ai.hide_statistics('ai.llm_calls'), 0, 'of one table only');

select ai.make_partitions(now() + interval '40 months') \g /dev/null
select is_empty($$ select attrelid::regclass, attname from pg_attribute
                    where attrelid in (select inhrelid from pg_inherits where inhparent = 'ai.generations'::regclass) and attname in ('prompt', 'output', 'messages')
                      and coalesce(attstattarget, -1) <> 0 $$, 'partitions that are made later keep none either');

select t.ask('the merger is signed on friday', p_tenant => t.beta(), p_user => 'bob') from generate_series(1, 300) \g /dev/null
insert into ai.collections (tenant_id, name, model, dimensions) values (t.alpha(), 'library', 'local/hash', 2), (t.beta(), 'library', 'local/hash', 2);
insert into ai.documents (tenant_id, collection_id, uri, content, hash, user_id)
select c.tenant_id, c.id, 'urn:' || i, case c.tenant_id when t.beta() then 'of quartz' else 'of gravel' end, '', 'bob' from ai.collections c cross join generate_series(1, 300) i;
insert into ai.chunks (tenant_id, collection_id, document_id, revision, position, tokens, live, content, tsv)
select d.tenant_id, d.collection_id, d.id, 1, 1, 2, true, d.content, to_tsvector('english', d.content) from ai.documents d;
analyze ai.generations, ai.chunks;
select is_empty($$ select s.staattnum from pg_statistic s join pg_attribute a on a.attrelid = s.starelid and a.attnum = s.staattnum
                    where s.starelid in (select inhrelid from pg_inherits where inhparent = 'ai.generations'::regclass union select 'ai.generations'::regclass)
                      and a.attname in ('prompt', 'user_id') $$, 'ANALYZE keeps no copy of a prompt');
select is_empty($$ select from pg_stats where schemaname = 'ai' and tablename = 'chunks' and attname = 'tsv' $$, 'nor of the words of a document');

create function t.plan(p_query text) returns text language plpgsql as $$
declare v_line text; v_all text := '';
begin
  for v_line in execute 'explain ' || p_query loop v_all := v_all || v_line || E'\n'; end loop;
  return v_all;
end $$;
grant execute on function t.plan(text) to public;
set local session authorization mtap_ann;
select is(t.plan($$ select from ai.generations where prompt = 'the merger is signed on friday' $$),
          replace(t.plan($$ select from ai.generations where prompt = 'the merger is signed on sunday' $$), 'sunday', 'friday'), 'EXPLAIN tells nothing of what others asked');
select is(t.plan($$ select from ai.generations where user_id = 'bob' $$), replace(t.plan($$ select from ai.generations where user_id = 'rob' $$), '''rob''', '''bob'''),
          'nor who is frequent among the others');
select is(t.plan($$ select from ai.chunks where tsv @@ 'quartz'::tsquery $$), replace(t.plan($$ select from ai.chunks where tsv @@ 'gneiss'::tsquery $$), 'gneiss', 'quartz'),
          'nor which words stand in their documents');
reset session authorization;

-- Indexes
select is_empty($$
  select i.indexrelid::regclass
    from pg_index i
    join pg_class c on c.oid = i.indrelid and c.relnamespace = 'ai'::regnamespace and not c.relispartition
    join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
    join pg_type b on b.oid = a.atttypid
   where b.typcategory = 'S' and exists (select from pg_attribute n where n.attrelid = c.oid and n.attname = 'tenant_id')
     and has_any_column_privilege('ai_user', c.oid, 'select')
     and not exists (select from pg_attribute k where k.attrelid = c.oid and k.attname = 'tenant_id' and k.attnum = any (i.indkey::smallint[])) $$,
  'an index that leads with a name or a text has the tenant in it');

create function t.removed(p_query text) returns bigint language plpgsql as $$
declare v_plan json; v_sum bigint;
begin
  execute 'explain (analyze, format json) ' || p_query into v_plan;
  select coalesce(sum(n::text::numeric), 0) into v_sum from jsonb_path_query(v_plan::jsonb, '$.**."Rows Removed by Filter"') n;
  return v_sum;
end $$;
grant execute on function t.removed(text) to public;
set local enable_seqscan = off;
set local session authorization mtap_ann;
select is(t.removed($$ select from ai.members where user_id = 'bob' $$), 0::bigint, 'EXPLAIN (ANALYZE) does not tell whether somebody is a member elsewhere');
set local enable_seqscan = on;
select is(t.removed($$ select from ai.tenants where name = 'mtap beta' $$), t.removed($$ select from ai.tenants where name = 'no such' $$),
          'nor whether there is a tenant of a name');
reset session authorization;
select throws_ok($$ insert into ai.tenants (name) values ('mtap beta') $$, '23505', null, 'names of tenants are unique all the same');

select * from finish();
rollback;
