-- Indexes of large collections: one HNSW index a collection and version of its vectors, on halves.
--
-- CREATE INDEX lets nobody write to the table while it builds, and CONCURRENTLY cannot be had in a function. So: nothing that
-- must not wait writes to ai.chunk_vectors directly (vectors are staged, 28_vectors.sql; only ai.delete_document() and
-- ai.delete_collection() wait), an index is made as soon as a collection has outgrown exact search, while it is small, and
-- grows with it; and what is made beside the tick of a worker is bounded. A collection that was filled by a restore is
-- larger than that bound: call ai.make_search_indexes(max_size => null), or run what ai.search_index_statement() gives.

-- For psql: create index concurrently …
create or replace function ai.search_index_statement(p_collection bigint, p_version bigint, p_dimensions integer, p_concurrently boolean default true) returns text
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  return format('create index %1$sif not exists chunk_vectors_c%2$s_v%3$s on ai.chunk_vectors using hnsw ((embedding::%4$s.halfvec(%5$s)) %4$s.halfvec_cosine_ops) where collection_id = %2$s and version = %3$s',
                case when p_concurrently then 'concurrently ' else '' end, p_collection, p_version, ai.vector_schema(), p_dimensions);
end
$$;
comment on function ai.search_index_statement(bigint, bigint, integer, boolean) is 'The statement that makes the index of a collection.';

-- Drops the indexes of versions and collections that are gone, makes one that is missing for a collection that has outgrown exact
-- search (the largest first; nothing beyond max_size, chunks times dimensions; null: whatever its size), and lets searches use
-- those that are complete. Gives how many were made, dropped or taken into use. Locks ai.chunk_vectors against writes while it builds, and
-- all of it for a moment to drop; waits 200 ms for that at most, and leaves what it cannot have to the next time.
create or replace function ai.make_search_indexes(p_now timestamptz default now(), max_size bigint default 8000000) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
as $$
declare
  v_settings record;
  v_one      record;
  v_count    integer := 0;
  v_indexes  integer;
begin
  select s.exact_search_size, s.max_search_indexes into v_settings from ai.settings s;
  for v_one in
    select i.relname, x.indisvalid, k.tenant_id, k.id, k.embedding_version, k.indexed_version, p.version
      from pg_index x
      join pg_class i on i.oid = x.indexrelid
     cross join lateral regexp_match(i.relname, '^chunk_vectors_c([0-9]{1,18})_v([0-9]{1,18})$') m (parts)
     cross join lateral (select m.parts[1]::bigint as collection_id, m.parts[2]::bigint as version) p
      left join ai.collections k on k.id = p.collection_id and p.version in (k.embedding_version, k.next_version)
     where x.indrelid = 'ai.chunk_vectors'::regclass and m.parts is not null
  loop
    if v_one.id is null then
      begin
        execute format('drop index ai.%I', v_one.relname);
        v_count := v_count + 1;
      exception when lock_not_available or undefined_object then
        null;
      end;
    elsif v_one.indisvalid and v_one.version = v_one.embedding_version and v_one.indexed_version is distinct from v_one.version then
      -- Made by hand, or while the version was being built.
      perform from ai.collections c where c.tenant_id = v_one.tenant_id and c.id = v_one.id for no key update skip locked;
      if found then
        update ai.collections c set indexed_version = v_one.version where c.tenant_id = v_one.tenant_id and c.id = v_one.id;
        v_count := v_count + 1;
      end if;
    end if;
  end loop;

  select count(*) into v_indexes from pg_index x join pg_class i on i.oid = x.indexrelid
   where x.indrelid = 'ai.chunk_vectors'::regclass and i.relname ~ '^chunk_vectors_c[0-9]+_v[0-9]+$';
  if v_indexes >= v_settings.max_search_indexes then
    return v_count;
  end if;
  for v_one in
    select c.tenant_id, c.id, v.version, v.dimensions, c.embedding_version
      from ai.collections c
     cross join lateral (values (c.embedding_version, c.dimensions, c.chunks), (c.next_version, c.next_dimensions, c.next_chunks)) v (version, dimensions, chunks)
     where v.version is not null and v.dimensions <= 4000
       and v.chunks * v.dimensions > v_settings.exact_search_size and (max_size is null or v.chunks * v.dimensions <= max_size)
       and to_regclass(format('ai.chunk_vectors_c%s_v%s', c.id, v.version)) is null
     order by v.chunks * v.dimensions desc limit 1
  loop
    perform from ai.collections c where c.tenant_id = v_one.tenant_id and c.id = v_one.id for no key update skip locked;
    continue when not found;
    begin
      execute format('%s', ai.search_index_statement(v_one.id, v_one.version, v_one.dimensions, false));
      if v_one.version = v_one.embedding_version then
        update ai.collections c set indexed_version = v_one.version where c.tenant_id = v_one.tenant_id and c.id = v_one.id;
      end if;
      v_count := v_count + 1;
    exception when lock_not_available then
      null;
    end;
  end loop;
  return v_count;
end
$$;
comment on function ai.make_search_indexes(timestamptz, bigint) is
  'Makes the index of a collection that has outgrown exact search, and drops those that are of no use; gives how many it changed.';

revoke execute on function ai.search_index_statement(bigint, bigint, integer, boolean), ai.make_search_indexes(timestamptz, bigint) from public;
