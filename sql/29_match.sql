-- What apps call to search. Everything runs with the caller's rights: row-level security shows them their tenant's
-- collections, documents, chunks and vectors, and no other's.

-- The collection to search: the named one, or the only one. Raises PT401, PT403, PT404, and PT400 where several could be meant, and
-- for a vector of another size.
create or replace function ai.collection_to_search(
  p_name text, p_vector vector, out tenant_id uuid, out id bigint, out name text, out version bigint, out dimensions integer, out indexed boolean)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_tenant uuid;
  v_count  integer := 1;
begin
  -- Row-level security compares the tenant; who it does not hold for (the owner) compares it here. Asking who the session is takes
  -- more time than the rest of this function, so it is asked once.
  if not row_security_active('ai.collections'::regclass) then
    v_tenant := coalesce(ai.tenant_id(), '00000000-0000-0000-0000-000000000000');
  end if;
  if p_name is not null and v_tenant is null then
    select c.tenant_id, c.id, c.name, c.embedding_version, c.dimensions, c.indexed_version is not distinct from c.embedding_version
      into tenant_id, id, name, version, dimensions, indexed
      from ai.collections c where c.name = p_name;
  else
    select c.tenant_id, c.id, c.name, c.embedding_version, c.dimensions, c.indexed_version is not distinct from c.embedding_version, count(*) over ()
      into tenant_id, id, name, version, dimensions, indexed, v_count
      from ai.collections c where (v_tenant is null or c.tenant_id = v_tenant) and (p_name is null or c.name = p_name) limit 1;
  end if;
  if id is null then
    perform ai.require('document:read');
    perform ai.no_collection(p_name);
  elsif v_count > 1 then
    raise exception 'which collection?' using errcode = 'PT400', hint = 'Name one: collection => ''…''. select name from ai.collections;';
  elsif ai.vector_size(p_vector) <> dimensions then
    raise exception 'the query has % dimensions, the collection has %', ai.vector_size(p_vector), dimensions
      using errcode = 'PT400', hint = 'Embed the query with the model of the collection: select name, model from ai.collections;';
  end if;
end
$$;
comment on function ai.collection_to_search(text, vector) is 'The collection of the own tenant by its name, or the only one.';

-- The passages nearest to a vector, best first, as far as their similarity reaches the threshold (null: all). A filter chooses
-- documents whose metadata contain it. Raises PT400, PT401, PT404.
create or replace function ai.match_documents(
  query_embedding vector, match_threshold double precision default 0.7, match_count integer default 5, collection text default null, filter jsonb default '{}')
returns table (id bigint, document_id uuid, title text, uri text, heading text, content text, metadata jsonb, similarity double precision)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_is record;
begin
  if query_embedding is null then
    raise exception 'there is no query' using errcode = 'PT400', hint = 'ai.embed() makes a vector of a text; ai.hybrid_search() also searches by words.';
  elsif match_count is null or match_count not between 1 and 1000 then
    raise exception 'match_count is from 1 to 1000' using errcode = 'PT400';
  elsif jsonb_typeof(filter) <> 'object' then
    raise exception 'a filter is a JSON object' using errcode = 'PT400';
  end if;
  if collection is not null and row_security_active('ai.collections'::regclass) then
    -- The usual case of ai.collection_to_search(), without the call.
    select c.tenant_id, c.id, c.embedding_version as version, c.dimensions, c.indexed_version is not distinct from c.embedding_version as indexed
      into v_is from ai.collections c where c.name = match_documents.collection;
    if not found or v_is.dimensions <> ai.vector_size(query_embedding) then
      perform ai.collection_to_search(collection, query_embedding);
    end if;
  else
    select * into v_is from ai.collection_to_search(collection, query_embedding);
  end if;
  if not v_is.indexed and coalesce(filter, '{}') = '{}' then
    -- The most usual search, in one statement: calling ai.nearest_chunks() would add a tenth to its time.
    return query
      select c.id, c.document_id, d.title, d.uri, c.heading, c.content, d.metadata, 1 - n.distance
        from (select v.chunk_id, ai.cosine_distance(v.embedding, query_embedding) as distance
                from ai.chunk_vectors v
               where v.tenant_id = v_is.tenant_id and v.collection_id = v_is.id and v.version = v_is.version
               order by ai.cosine_distance(v.embedding, query_embedding)
               limit match_count) n
        join ai.chunks c on c.tenant_id = v_is.tenant_id and c.id = n.chunk_id and c.live
        join ai.documents d on d.tenant_id = v_is.tenant_id and d.id = c.document_id
       where n.distance <> 'NaN' and (match_threshold is null or 1 - n.distance >= match_threshold)
       order by n.distance, c.id;
    return;
  end if;
  return query
    select c.id, c.document_id, d.title, d.uri, c.heading, c.content, d.metadata, n.similarity
      from ai.nearest_chunks(v_is.tenant_id, v_is.id, v_is.version, v_is.dimensions, v_is.indexed, query_embedding, match_count, coalesce(filter, '{}')) n
      join ai.chunks c on c.tenant_id = v_is.tenant_id and c.id = n.chunk_id and c.live
      join ai.documents d on d.tenant_id = v_is.tenant_id and d.id = c.document_id
     where match_threshold is null or n.similarity >= match_threshold
     order by n.similarity desc, c.id;
end
$$;
comment on function ai.match_documents(vector, double precision, integer, text, jsonb) is
  'The passages of a collection nearest to a vector, with similarity (cosine, at most 1) from the threshold on, best first.';

-- The passages nearest to a vector and those that have the words of a text, in one order (reciprocal rank fusion: each list adds its
-- weight / (rrf_k + rank)). Either may be null: then only the other counts. Raises PT400, PT401, PT404.
create or replace function ai.hybrid_search(
  query_text text, query_embedding vector, match_count integer default 5, full_text_weight double precision default 1,
  semantic_weight double precision default 1, rrf_k integer default 50, collection text default null, filter jsonb default '{}')
returns table (id bigint, document_id uuid, title text, uri text, heading text, content text, metadata jsonb, similarity double precision, score double precision)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
  v_is    record;
  v_words bigint[];
begin
  if query_embedding is null and query_text is null then
    raise exception 'there is no query' using errcode = 'PT400', detail = 'Both query_text and query_embedding are null.';
  elsif match_count is null or match_count not between 1 and 1000 then
    raise exception 'match_count is from 1 to 1000' using errcode = 'PT400';
  elsif coalesce((full_text_weight = 0 or full_text_weight between 1e-6 and 1e6) and (semantic_weight = 0 or semantic_weight between 1e-6 and 1e6)
                 and full_text_weight + semantic_weight > 0 and rrf_k between 1 and 10000, false) is false then
    raise exception 'a weight is 0 or from 0.000001 to 1000000 and not both are 0, rrf_k is from 1 to 10000' using errcode = 'PT400';
  elsif jsonb_typeof(filter) <> 'object' then
    raise exception 'a filter is a JSON object' using errcode = 'PT400';
  end if;
  select * into v_is from ai.collection_to_search(collection, query_embedding);
  if query_text is not null and full_text_weight > 0 then
    v_words := array(select t.id from ai.text_matches(v_is.name, query_text, least(1000, greatest(20, match_count * 2)), filter) t order by t.rank desc, t.id);
  end if;
  return query
    select c.id, c.document_id, d.title, d.uri, c.heading, c.content, d.metadata, f.similarity, f.score
      from ai.fuse_chunks(v_is.tenant_id, v_is.id, v_is.version, v_is.dimensions, v_is.indexed, query_embedding, v_words, match_count,
                          full_text_weight, semantic_weight, rrf_k, null, coalesce(filter, '{}')) f
      join ai.chunks c on c.tenant_id = v_is.tenant_id and c.id = f.chunk_id and c.live
      join ai.documents d on d.tenant_id = v_is.tenant_id and d.id = c.document_id
     order by f.score desc, c.id;
end
$$;
comment on function ai.hybrid_search(text, vector, integer, double precision, double precision, integer, text, jsonb) is
  'The passages of a collection that are near to a vector or have the words of a text, best first by both.';

-- Measures the search of a collection against the exact one, on vectors of the collection itself: what share of the k nearest
-- others is found, and how long both take on average. Raises PT400, PT401, PT404.
create or replace function ai.recall_check(collection text default null, samples integer default 20, k integer default 10)
returns table (search text, chunks bigint, asked integer, recall double precision, search_ms double precision, exact_ms double precision)
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_is    record;
  v_one   record;
  v_exact double precision[];
  v_found double precision[];
  v_start timestamptz;
  v_hits  bigint := 0;
  v_all   bigint := 0;
begin
  if samples not between 1 and 1000 or k not between 1 and 100 or samples is null or k is null then
    raise exception 'samples are from 1 to 1000, k is from 1 to 100' using errcode = 'PT400';
  end if;
  select * into v_is from ai.collection_to_search(collection, null);
  search := case when v_is.indexed then 'index' else 'exact' end;
  select count(*) into chunks from ai.chunk_vectors v where v.tenant_id = v_is.tenant_id and v.collection_id = v_is.id and v.version = v_is.version;
  asked := 0;
  search_ms := 0;
  exact_ms := 0;
  for v_one in
    select v.chunk_id, v.embedding
      from (select s.chunk_id from ai.chunk_vectors s where s.tenant_id = v_is.tenant_id and s.collection_id = v_is.id and s.version = v_is.version
             order by random() limit samples) r
      join ai.chunk_vectors v on v.tenant_id = v_is.tenant_id and v.collection_id = v_is.id and v.version = v_is.version and v.chunk_id = r.chunk_id
  loop
    v_start := clock_timestamp();
    v_found := array(select n.similarity from ai.nearest_chunks(v_is.tenant_id, v_is.id, v_is.version, v_is.dimensions, v_is.indexed, v_one.embedding, k + 1, '{}') n
                      where n.chunk_id <> v_one.chunk_id order by n.similarity desc limit k);
    search_ms := search_ms + extract(epoch from clock_timestamp() - v_start) * 1000;
    v_start := clock_timestamp();
    v_exact := array(select n.similarity from ai.nearest_chunks(v_is.tenant_id, v_is.id, v_is.version, v_is.dimensions, false, v_one.embedding, k + 1, '{}') n
                      where n.chunk_id <> v_one.chunk_id order by n.similarity desc limit k);
    exact_ms := exact_ms + extract(epoch from clock_timestamp() - v_start) * 1000;
    asked := asked + 1;
    v_all := v_all + cardinality(v_exact);
    -- By similarity, not by id: of two that are equally near either is right.
    v_hits := v_hits + (select count(*) from unnest(v_found) f (s) where f.s >= v_exact[cardinality(v_exact)]);
  end loop;
  recall := v_hits::double precision / nullif(v_all, 0);
  search_ms := search_ms / nullif(asked, 0);
  exact_ms := exact_ms / nullif(asked, 0);
  return next;
end
$$;
comment on function ai.recall_check(text, integer, integer) is
  'What share of the k nearest passages the search of a collection finds, measured on samples of it, and how long it takes beside an exact search.';

revoke execute on function ai.collection_to_search(text, vector), ai.match_documents(vector, double precision, integer, text, jsonb),
  ai.hybrid_search(text, vector, integer, double precision, double precision, integer, text, jsonb), ai.recall_check(text, integer, integer) from public;
grant execute on function ai.collection_to_search(text, vector), ai.match_documents(vector, double precision, integer, text, jsonb),
  ai.hybrid_search(text, vector, integer, double precision, double precision, integer, text, jsonb), ai.recall_check(text, integer, integer) to ai_user;
