-- Search in a collection: by the distance of vectors, by words, by both.
--
-- A small collection is searched exactly: all its vectors by the key (tenant, collection, version). A large one has an
-- index of its own (29_search_indexes.sql), because an index shared by tenants finds other tenants' vectors first and
-- then has too few left. What apps call runs with their rights, so that row-level security holds; it names the tenant all
-- the same, and the same functions serve the pipeline, which runs as the owner.

-- pgvector's functions, bound to it where they are made.
create or replace function ai.vector_size(a vector) returns integer
language sql immutable parallel safe security invoker
return vector_dims(a);
comment on function ai.vector_size(vector) is 'How many dimensions a vector has.';

create or replace function ai.unit_vector(a vector) returns vector
language sql immutable parallel safe security invoker
return l2_normalize(a);
comment on function ai.unit_vector(vector) is 'The vector of length 1 with the same direction, whose components halves can hold.';

create or replace function ai.fits_halves(a vector) returns boolean
language sql immutable parallel safe security invoker
return a::halfvec is not null;
comment on function ai.fits_halves(vector) is 'Raises numeric_value_out_of_range for a component that halves cannot hold, as an index would.';

create or replace function ai.collection_model(p_tenant uuid, p_collection text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select c.model from ai.collections c where c.tenant_id = p_tenant and c.name = p_collection);
end
$$;
comment on function ai.collection_model(uuid, text) is 'The model that embeds a collection, and the questions asked of it; null: there is no such collection.';

create or replace function ai.collection_version(p_tenant uuid, p_collection text) returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select c.version from ai.collections c where c.tenant_id = p_tenant and c.name = p_collection);
end
$$;
comment on function ai.collection_version(uuid, text) is 'Grows with every change of what a search in the collection can find; null: there is no such collection.';

-- The chunks with the nearest vectors, best first; vectors without a direction (all zero) are not found.
--
-- The distance is no condition of the ordered scan, for then an index would be walked to its end when nothing is near
-- enough: callers compare afterwards. A filter selects documents; where it leaves few chunks, or there is no index, these are
-- searched exactly.
create or replace function ai.nearest_chunks(
  p_tenant uuid, p_collection bigint, p_version bigint, p_dimensions integer, p_indexed boolean, p_vector vector, p_count integer, p_filter jsonb)
returns table (chunk_id bigint, document_id uuid, similarity double precision)
language plpgsql stable security invoker rows 10
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
begin
  if p_filter = '{}' then
    if p_indexed then
      return query select * from ai.nearest_by_index(p_tenant, p_collection, p_version, p_dimensions, p_vector, p_count, p_filter);
    else
      return query
        select n.chunk_id, n.document_id, 1 - n.distance
          from (select v.chunk_id, v.document_id, ai.cosine_distance(v.embedding, p_vector) as distance
                  from ai.chunk_vectors v
                 where v.tenant_id = p_tenant and v.collection_id = p_collection and v.version = p_version
                 order by ai.cosine_distance(v.embedding, p_vector)
                 limit p_count) n
         where n.distance <> 'NaN';
    end if;
  elsif p_indexed and (select sum(d.chunks) from ai.documents d
                        where d.tenant_id = p_tenant and d.collection_id = p_collection and d.metadata @> p_filter) > 5000 then
    return query select * from ai.nearest_by_index(p_tenant, p_collection, p_version, p_dimensions, p_vector, p_count, p_filter);
  else
    return query
      with chosen as materialized (
        select d.id from ai.documents d where d.tenant_id = p_tenant and d.collection_id = p_collection and d.metadata @> p_filter
      )
      select n.chunk_id, n.document_id, 1 - n.distance
        from (select v.chunk_id, v.document_id, ai.cosine_distance(v.embedding, p_vector) as distance
                from chosen d
                join ai.chunks c on c.tenant_id = p_tenant and c.document_id = d.id and c.live
                join ai.chunk_vectors v on v.tenant_id = p_tenant and v.collection_id = p_collection and v.version = p_version and v.chunk_id = c.id
               order by ai.cosine_distance(v.embedding, p_vector)
               limit p_count) n
       where n.distance <> 'NaN';
  end if;
end
$$;
comment on function ai.nearest_chunks(uuid, bigint, bigint, integer, boolean, vector, integer, jsonb) is
  'Chunks with the nearest vectors, exactly or by the collection''s index. Runs with the caller''s rights.';

-- By the index of a collection, which the planner takes only where collection and version are written out, and which it
-- is made to take whatever it believes of the table. The index holds halves: some more than asked for are found by it,
-- and put in order by the whole vectors. It goes on beyond those (relaxed order) where a filter or dead rows leave too few.
create or replace function ai.nearest_by_index(
  p_tenant uuid, p_collection bigint, p_version bigint, p_dimensions integer, p_vector vector, p_count integer, p_filter jsonb)
returns table (chunk_id bigint, document_id uuid, similarity double precision)
language plpgsql stable security invoker rows 10
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_sort = off
as $$
declare
  v_schema text := ai.vector_schema();
  v_ef     text := current_setting('hnsw.ef_search', true);
  v_scan   text := current_setting('hnsw.iterative_scan', true);
begin
  perform set_config('hnsw.ef_search', least(1000, greatest(100, p_count * 2))::text, true),
          set_config('hnsw.iterative_scan', 'relaxed_order', true);
  return query execute format($q$
    select n.chunk_id, n.document_id, 1 - n.distance
      from (select v.chunk_id, v.document_id, ai.cosine_distance(v.embedding, $1) as distance
              from ai.chunk_vectors v
             where v.tenant_id = $2 and v.collection_id = %1$s and v.version = %2$s
               %3$s
             order by ai.cosine_distance(v.embedding::%4$s.halfvec(%5$s), ai.unit_vector($1)::%4$s.halfvec(%5$s))
             limit $3 + 20) n
     where n.distance <> 'NaN'
     order by n.distance limit $3$q$,
    p_collection, p_version,
    case when p_filter <> '{}' then 'and exists (select from ai.documents d where d.tenant_id = $2 and d.id = v.document_id and d.metadata @> $4)' end,
    v_schema, p_dimensions)
    using p_vector, p_tenant, p_count, p_filter;
  perform set_config('hnsw.ef_search', coalesce(v_ef, '40'), true), set_config('hnsw.iterative_scan', coalesce(v_scan, 'off'), true);
end
$$;
comment on function ai.nearest_by_index(uuid, bigint, bigint, integer, vector, integer, jsonb) is 'Chunks with the nearest vectors, by the collection''s index. Runs with the caller''s rights.';

-- Quoted, for format().
create or replace function ai.vector_schema() returns text
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select quote_ident(n.nspname)
            from pg_type d join pg_type b on b.oid = d.typbasetype join pg_namespace n on n.oid = b.typnamespace
           where d.oid = 'ai.embedding'::regtype);
end
$$;
comment on function ai.vector_schema() is 'The schema that pgvector is installed in.';

-- The chunks that have the words of a text, best first: those that have them all, or, where these are too few, any of them.
-- Takes at most 32 different words, the longest, and ranks at most 5000 chunks. A definer, because row-level security
-- lets nobody use an index on words; one of the lexemes names the collection, so that no other's entries are read, and tenant
-- and collection are compared besides. Internal.
create or replace function ai.rank_chunks(p_tenant uuid, p_collection bigint, p_text text, p_count integer, p_filter jsonb)
returns table (chunk_id bigint, rank real)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set client_min_messages = warning
as $$
declare
  v_words text[];
  v_any   tsquery;
  v_words_of tsquery;
  v_ids   bigint[];
  v_ranks real[];
  v_found integer;
begin
  select array_agg('''' || replace(replace(w.lexeme, '\', '\\'), '''', '''''') || '''')
    into v_words
    from (select l.lexeme
            from ai.collections c
           cross join unnest(tsvector_to_array(to_tsvector(c.language::regconfig, left(p_text, 4000)))) l (lexeme)
           where c.tenant_id = p_tenant and c.id = p_collection
           order by length(l.lexeme) desc, l.lexeme limit 32) w;
  if v_words is null then
    return;
  end if;
  v_any := array_to_string(v_words, ' | ')::tsquery;
  foreach v_words_of in array array[array_to_string(v_words, ' & ')::tsquery, v_any] loop
    with found as materialized (
      select c.tenant_id, c.collection_id, c.document_id, c.id, c.tsv
        from ai.chunks c
       where c.live and c.tsv @@ (quote_literal(' ' || p_collection)::tsquery && v_words_of)
       limit 5000
    ), ranked as (
      select f.id, ts_rank(f.tsv, v_any, 1) as r
        from found f
       where f.tenant_id = p_tenant and f.collection_id = p_collection
         and (p_filter = '{}' or exists (select from ai.documents d where d.tenant_id = f.tenant_id and d.id = f.document_id and d.metadata @> p_filter))
       order by r desc, f.id
       limit p_count
    )
    select array_agg(k.id order by k.r desc, k.id), array_agg(k.r order by k.r desc, k.id), count(*) into v_ids, v_ranks, v_found from ranked k;
    exit when v_found >= p_count;
  end loop;
  return query select * from unnest(v_ids, v_ranks);
end
$$;
comment on function ai.rank_chunks(uuid, bigint, text, integer, jsonb) is 'Chunks of a collection that have the words of a text, best first. Internal.';

-- The same for apps, in the caller's own tenant: the ids of chunks, which they then read under row-level security; at most 1000.
-- Raises PT400, PT401, PT403.
create or replace function ai.text_matches(collection text, query_text text, match_count integer default 10, filter jsonb default '{}')
returns table (id bigint, rank real)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_tenant uuid := ai.tenant_for('document:read');
begin
  if match_count is null or match_count < 1 then
    raise exception 'match_count must be above 0' using errcode = 'PT400';
  end if;
  return query
    select r.chunk_id, r.rank
      from ai.collections c
     cross join lateral ai.rank_chunks(v_tenant, c.id, query_text, least(match_count, 1000), coalesce(filter, '{}')) r
     where c.tenant_id = v_tenant and c.name = collection;
end
$$;
comment on function ai.text_matches(text, text, integer, jsonb) is 'Ids of chunks of a collection of the own tenant that have the words of a text, best first.';

-- Puts what is near and what has the words (p_words, best first) in one order: each list gives weight / (k + rank), the sums
-- are compared (reciprocal rank fusion). p_threshold holds for what is only near, not for what has the words.
create or replace function ai.fuse_chunks(
  p_tenant uuid, p_collection bigint, p_version bigint, p_dimensions integer, p_indexed boolean, p_vector vector, p_words bigint[], p_count integer,
  p_word_weight double precision, p_near_weight double precision, p_k integer, p_threshold double precision, p_filter jsonb)
returns table (chunk_id bigint, similarity double precision, score double precision)
language plpgsql stable security invoker rows 10
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  return query
    with near as (
      select n.chunk_id as id, n.similarity as alike, row_number() over (order by n.similarity desc, n.chunk_id) as place
        from ai.nearest_chunks(p_tenant, p_collection, p_version, p_dimensions, p_indexed, p_vector, least(1000, greatest(20, p_count * 2)), p_filter) n
       where p_vector is not null and p_near_weight > 0 and (p_threshold is null or n.similarity >= p_threshold)
    ), fused as (
      select coalesce(w.id, n.id) as id, n.alike,
             coalesce(p_word_weight / (p_k + w.place), 0) + coalesce(p_near_weight / (p_k + n.place), 0) as points
        from unnest(p_words) with ordinality w (id, place)
        full join near n on n.id = w.id
       order by points desc, id
       limit p_count
    )
    select f.id,
           coalesce(f.alike, (select nullif(1 - ai.cosine_distance(v.embedding, p_vector), 'NaN')
                                from ai.chunk_vectors v
                               where v.tenant_id = p_tenant and v.collection_id = p_collection and v.version = p_version and v.chunk_id = f.id)),
           f.points
      from fused f order by f.points desc, f.id;
end
$$;
comment on function ai.fuse_chunks(uuid, bigint, bigint, integer, boolean, vector, bigint[], integer, double precision, double precision, integer, double precision, jsonb) is
  'Reciprocal rank fusion of what is near and what has the words. Runs with the caller''s rights.';

-- For the pipeline: passages for a prompt, best first. Modes: vector, text, hybrid. Without a vector, or with one of another
-- size (the collection changed its model since the question was embedded), by words only. Never raises for what is asked; an
-- unknown collection has no passages.
create or replace function ai.retrieve(p_tenant uuid, p_user text, p_collection text, p_query text, p_vector vector, p_threshold double precision, p_count integer, p_mode text)
returns table (chunk_id bigint, document_id uuid, title text, uri text, heading text, content text, tokens integer, similarity double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_is    record;
  v_count integer := greatest(0, least(coalesce(p_count, 5), 1000));
  v_words bigint[];
begin
  select c.id, c.embedding_version, c.dimensions, c.indexed_version is not distinct from c.embedding_version as indexed
    into v_is from ai.collections c where c.tenant_id = p_tenant and c.name = p_collection;
  if not found then
    return;
  end if;
  if p_vector is not null and ai.vector_size(p_vector) <> v_is.dimensions then
    p_vector := null;
  end if;
  if p_query is not null and (p_vector is null or p_mode is distinct from 'vector') then
    v_words := array(select r.chunk_id from ai.rank_chunks(p_tenant, v_is.id, p_query, greatest(20, v_count * 2), '{}') r order by r.rank desc, r.chunk_id);
  end if;
  return query
    select c.id, c.document_id, d.title, d.uri, c.heading, c.content, c.tokens, f.similarity
      from ai.fuse_chunks(p_tenant, v_is.id, v_is.embedding_version, v_is.dimensions, v_is.indexed, p_vector, v_words, v_count, 1,
                          case when p_mode = 'text' then 0 else 1 end, 50, p_threshold, '{}') f
      join ai.chunks c on c.tenant_id = p_tenant and c.id = f.chunk_id and c.live
      join ai.documents d on d.tenant_id = p_tenant and d.id = c.document_id
     order by f.score desc, c.id;
end
$$;
comment on function ai.retrieve(uuid, text, text, text, vector, double precision, integer, text) is
  'Passages of a collection for a prompt, best first. Similarity is null where the question has no vector.';

revoke execute on function ai.vector_size(vector), ai.unit_vector(vector), ai.fits_halves(vector), ai.collection_model(uuid, text), ai.collection_version(uuid, text),
  ai.nearest_chunks(uuid, bigint, bigint, integer, boolean, vector, integer, jsonb),
  ai.nearest_by_index(uuid, bigint, bigint, integer, vector, integer, jsonb), ai.vector_schema(),
  ai.rank_chunks(uuid, bigint, text, integer, jsonb), ai.text_matches(text, text, integer, jsonb),
  ai.fuse_chunks(uuid, bigint, bigint, integer, boolean, vector, bigint[], integer, double precision, double precision, integer, double precision, jsonb),
  ai.retrieve(uuid, text, text, text, vector, double precision, integer, text) from public;
grant execute on function ai.nearest_chunks(uuid, bigint, bigint, integer, boolean, vector, integer, jsonb),
  ai.nearest_by_index(uuid, bigint, bigint, integer, vector, integer, jsonb), ai.vector_schema(), ai.text_matches(text, text, integer, jsonb),
  ai.fuse_chunks(uuid, bigint, bigint, integer, boolean, vector, bigint[], integer, double precision, double precision, integer, double precision, jsonb),
  ai.vector_size(vector), ai.unit_vector(vector), ai.cosine_distance(vector, vector), ai.cosine_distance(halfvec, halfvec) to ai_user;
