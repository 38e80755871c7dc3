-- Vectors of chunks: from the jobs that made them to the table that is searched.
--
-- A vector is staged first. ai.finish_collection() then moves what is complete: a document's chunks become live together with
-- their vectors, in place of those of the revision before; the vectors of a rebuild are gathered beside, and searched once all
-- live chunks have theirs. It is called by each settle that brings vectors and waits for nothing: where the collection, a
-- document or the table of vectors is locked (a delete in a long transaction, an index being built), it leaves the rest
-- to ai.finish_collections(), which a worker runs all the time.

-- What is embedded of each chunk: its content under the title and the headings that it is under, so that it says what it
-- is about. Chunks that are gone are left out.
create or replace function ai.chunk_texts(p_tenant uuid, p_refs bigint[])
returns table (ref bigint, content text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
begin
  return query
    select c.id, concat_ws(E'\n\n', nullif(concat_ws(' > ', d.title, nullif(c.heading, d.title)), ''), c.content)
      from unnest(p_refs) r (id)
      join ai.chunks c on c.tenant_id = p_tenant and c.id = r.id
      join ai.documents d on d.tenant_id = c.tenant_id and d.id = c.document_id;
end
$$;
comment on function ai.chunk_texts(uuid, bigint[]) is 'What is to be embedded of each of these chunks; nothing for those that are gone.';

-- Marks what cannot be complete any more: documents that wait for these chunks, or the rebuild. Documents that are locked are
-- being replaced or deleted: they are passed over.
create or replace function ai.chunk_embedding_failed(p_tenant uuid, p_version bigint, p_refs bigint[], p_error jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
begin
  with waiting as materialized (
    select d.id from ai.documents d
     where d.tenant_id = p_tenant
       and d.id in (select c.document_id from ai.chunks c join ai.collections k on k.tenant_id = c.tenant_id and k.id = c.collection_id
                     where c.tenant_id = p_tenant and c.id = any (p_refs) and not c.live and k.embedding_version = p_version)
     order by d.id
       for no key update of d skip locked
  )
  update ai.documents d set status = 'failed', error = p_error, updated_at = ai.now() from waiting w where d.tenant_id = p_tenant and d.id = w.id;
  with rebuilt as materialized (
    select k.id from ai.collections k
     where k.tenant_id = p_tenant and k.next_version = p_version
       and k.id in (select c.collection_id from ai.chunks c where c.tenant_id = p_tenant and c.id = any (p_refs))
     order by k.id
       for no key update of k skip locked
  )
  update ai.collections k set next_error = p_error from rebuilt r where k.tenant_id = p_tenant and k.id = r.id;
end
$$;
comment on function ai.chunk_embedding_failed(uuid, bigint, bigint[], jsonb) is 'Marks documents, or the rebuild, for which these chunks could not be embedded.';

-- Takes the vectors of chunks, an array of arrays in the order of p_refs. Null: taken, or thrown away because nobody waits for
-- them any more. Else why they are none; the documents are marked as failed. Never raises for what a provider sent.
create or replace function ai.store_chunk_vectors(p_tenant uuid, p_version bigint, p_refs bigint[], p_vectors jsonb) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_one record;
  v_why text;
begin
  if jsonb_typeof(p_vectors) is distinct from 'array' or jsonb_array_length(p_vectors) <> cardinality(p_refs) then
    v_why := format('the vectors are not those of %s texts', cardinality(p_refs));
  else
    begin
      with given as materialized (
        select c.collection_id, c.document_id, c.id, v.vector,
               case p_version when k.embedding_version then k.dimensions when k.next_version then k.next_dimensions end as dimensions,
               case when jsonb_typeof(v.vector) = 'array' then jsonb_array_length(v.vector) else 0 end as found
          from unnest(p_refs) with ordinality r (id, n)
          join jsonb_array_elements(p_vectors) with ordinality v (vector, n) on v.n = r.n
          join ai.chunks c on c.tenant_id = p_tenant and c.id = r.id
          join ai.collections k on k.tenant_id = p_tenant and k.id = c.collection_id
      ), staged as (
        insert into ai.staged_vectors (tenant_id, collection_id, document_id, version, chunk_id, embedding)
        select p_tenant, g.collection_id, g.document_id, p_version, g.id, g.vector::text::ai.embedding
          from given g where g.dimensions = g.found and (g.found > 4000 or ai.fits_halves(g.vector::text::ai.embedding))
        on conflict do nothing
      )
      select format('a vector has %s dimensions; the collection has %s', g.found, g.dimensions) into v_why
        from given g where g.dimensions <> g.found limit 1;
    exception when data_exception or program_limit_exceeded then
      v_why := 'a vector is not an array of numbers below 65504';
    end;
  end if;
  if v_why is not null then
    perform ai.chunk_embedding_failed(p_tenant, p_version, p_refs, jsonb_build_object('class', 'malformed', 'message', v_why));
    return v_why;
  end if;
  for v_one in
    select c.collection_id as id, array_agg(distinct c.document_id) as documents
      from ai.chunks c where c.tenant_id = p_tenant and c.id = any (p_refs) group by c.collection_id order by 1
  loop
    perform ai.finish_collection(p_tenant, v_one.id, v_one.documents);
  end loop;
  return null;
end
$$;
comment on function ai.store_chunk_vectors(uuid, bigint, bigint[], jsonb) is 'Takes the vectors of chunks; gives null, or why they are not vectors of these.';

-- Makes searchable what is complete of these documents (null: of all), and changes over to the next version of the embedding
-- if every live chunk has its vector of it. Locks the collection, then the documents (skipping any that is locked), and waits
-- for nothing.
create or replace function ai.finish_collection(p_tenant uuid, p_collection bigint, p_documents uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_is    record;
  v_some  uuid[];
  v_done  uuid[];
  v_count bigint;
begin
  select c.* into v_is from ai.collections c where c.tenant_id = p_tenant and c.id = p_collection for no key update skip locked;
  if not found then
    return;
  end if;
  begin
    lock table ai.chunk_vectors in row exclusive mode nowait;
  exception when lock_not_available then
    return;
  end;
  v_some := p_documents;
  if v_some is null then
    v_some := array(select distinct s.document_id from ai.staged_vectors s where s.tenant_id = p_tenant and s.collection_id = p_collection);
  end if;

  -- The documents whose waiting revision has all its vectors. Locked by one statement and counted by the next, whose snapshot is younger: one that was
  -- replaced in between has other chunks. Vectors of chunks that are gone may be there, too.
  v_done := array(select d.id from ai.documents d
                   where d.tenant_id = p_tenant and d.id = any (v_some) and d.live_revision is distinct from d.revision
                   order by d.id for no key update skip locked);
  with staged as materialized (
    -- Counted by the index alone until there may be enough: this is asked for each 32 chunks of a document that may have many thousands. Then each chunk is
    -- looked up by its key, which no statistics change.
    select d.id, d.status, d.chunks,
           case when n.vectors < d.chunks then n.vectors
                else (select count(*) from ai.staged_vectors s
                       cross join lateral (select o.revision from ai.chunks o where o.tenant_id = p_tenant and o.id = s.chunk_id offset 0) c
                       where s.tenant_id = p_tenant and s.collection_id = p_collection and s.document_id = d.id and s.version = v_is.embedding_version
                         and c.revision = d.revision) end as vectors
      from ai.documents d
     cross join lateral (select count(*) as vectors from ai.staged_vectors s
                          where s.tenant_id = p_tenant and s.collection_id = p_collection and s.document_id = d.id and s.version = v_is.embedding_version) n
     where d.tenant_id = p_tenant and d.id = any (v_done)
  ), begun as (
    update ai.documents d set status = 'embedding' from staged s
     where d.tenant_id = p_tenant and d.id = s.id and s.status = 'pending' and s.vectors between 1 and s.chunks - 1
  )
  select coalesce(array_agg(s.id) filter (where s.vectors > 0 and s.vectors = s.chunks), '{}') into v_done from staged s;
  if cardinality(v_done) > 0 then
    perform ai.remove_chunks(p_tenant, p_collection, array(
      select c.id from ai.documents d join ai.chunks c on c.tenant_id = d.tenant_id and c.document_id = d.id and c.revision < d.revision
       where d.tenant_id = p_tenant and d.id = any (v_done)));
    update ai.chunks c set live = true where c.tenant_id = p_tenant and c.document_id = any (v_done);
    get diagnostics v_count = row_count;
    update ai.documents d set status = 'ready', error = null, live_revision = d.revision, live_user_id = null, updated_at = ai.now()
     where d.tenant_id = p_tenant and d.id = any (v_done);
    update ai.collections c set chunks = c.chunks + v_count, version = c.version + 1 where c.tenant_id = p_tenant and c.id = p_collection;
  end if;

  -- What is staged of live chunks is searched now, or gathered for the next version.
  with moved as (
    delete from ai.staged_vectors s
     where s.tenant_id = p_tenant and s.collection_id = p_collection
       and s.document_id = any (array(select d.id from ai.documents d where d.tenant_id = p_tenant and d.id = any (v_some) and d.live_revision is not null))
       and (select c.live from ai.chunks c where c.tenant_id = p_tenant and c.id = s.chunk_id)
    returning s.*
  ), kept as (
    insert into ai.chunk_vectors (tenant_id, collection_id, version, chunk_id, document_id, embedding)
    select m.tenant_id, m.collection_id, m.version, m.chunk_id, m.document_id, m.embedding
      from moved m where m.version in (v_is.embedding_version, v_is.next_version)
     order by m.chunk_id
    on conflict do nothing
    returning version
  )
  select count(*) filter (where k.version = v_is.next_version) into v_count from kept k;

  if v_is.next_version is null then
    return;
  end if;
  update ai.collections c set next_chunks = c.next_chunks + v_count
   where c.tenant_id = p_tenant and c.id = p_collection
  returning c.next_chunks >= c.chunks into v_is.stale;
  if v_is.stale and not exists (
    select from ai.chunks c
     where c.tenant_id = p_tenant and c.collection_id = p_collection and c.live
       and not exists (select from ai.chunk_vectors v where v.tenant_id = p_tenant and v.collection_id = p_collection and v.version = v_is.next_version and v.chunk_id = c.id))
  then
    update ai.collections c
       set model = c.next_model, dimensions = c.next_dimensions, embedding_version = c.next_version, version = c.version + 1, stale = true,
           indexed_version = case when to_regclass(format('ai.chunk_vectors_c%s_v%s', c.id, c.next_version)) is not null then c.next_version end,
           next_version = null, next_model = null, next_dimensions = null, next_chunks = 0, next_error = null
     where c.tenant_id = p_tenant and c.id = p_collection;
    -- Documents that wait are complete by the new version now, or not yet.
    perform ai.finish_collection(p_tenant, p_collection, null);
  end if;
end
$$;
comment on function ai.finish_collection(uuid, bigint, uuid[]) is 'Makes searchable what is complete in a collection; waits for nothing.';

-- For the tick of a worker: finishes what a lock kept from being finished, throws away what nobody waits for, and removes
-- the vectors of former versions, some thousands at a time. Gives how many collections it looked at.
create or replace function ai.finish_collections(p_now timestamptz default now()) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  c_many  constant integer := 10000;
  v_one   record;
  v_count integer := 0;
  v_gone  bigint;
begin
  for v_one in
    -- The collections with anything staged, one after the other by the key, however much each has.
    with recursive staged as (
      (select s.tenant_id, s.collection_id from ai.staged_vectors s order by s.tenant_id, s.collection_id limit 1)
      union all
      select n.* from staged b
       cross join lateral (select s.tenant_id, s.collection_id from ai.staged_vectors s
                            where (s.tenant_id, s.collection_id) > (b.tenant_id, b.collection_id)
                            order by s.tenant_id, s.collection_id limit 1) n
    )
    select s.tenant_id, s.collection_id as id from staged s
    union select c.tenant_id, c.id from ai.collections c where c.stale or c.next_version is not null
    order by 1, 2
  loop
    v_count := v_count + 1;
    delete from ai.staged_vectors s
     where s.tenant_id = v_one.tenant_id and s.collection_id = v_one.id
       and (not exists (select from ai.chunks c where c.tenant_id = s.tenant_id and c.id = s.chunk_id)
            or not exists (select from ai.collections c where c.tenant_id = s.tenant_id and c.id = s.collection_id and s.version in (c.embedding_version, c.next_version)));
    perform ai.finish_collection(v_one.tenant_id, v_one.id, null);

    perform from ai.collections c where c.tenant_id = v_one.tenant_id and c.id = v_one.id and c.stale for no key update skip locked;
    continue when not found;
    begin
      lock table ai.chunk_vectors in row exclusive mode nowait;
      delete from ai.chunk_vectors v
       where v.ctid = any (array(
         select o.ctid from ai.collections c
           join ai.chunk_vectors o on o.tenant_id = c.tenant_id and o.collection_id = c.id and o.version < c.embedding_version
          where c.tenant_id = v_one.tenant_id and c.id = v_one.id limit c_many));
      get diagnostics v_gone = row_count;
    exception when lock_not_available then
      continue;
    end;
    if v_gone < c_many then
      update ai.collections c set stale = false where c.tenant_id = v_one.tenant_id and c.id = v_one.id;
    end if;
  end loop;
  return v_count;
end
$$;
comment on function ai.finish_collections(timestamptz) is 'Finishes what locks kept from being finished and removes what is of no use; gives how many collections it looked at.';

revoke execute on function ai.chunk_texts(uuid, bigint[]), ai.chunk_embedding_failed(uuid, bigint, bigint[], jsonb),
  ai.store_chunk_vectors(uuid, bigint, bigint[], jsonb), ai.finish_collection(uuid, bigint, uuid[]), ai.finish_collections(timestamptz) from public;
