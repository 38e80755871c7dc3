-- Search in a vectorized table: only what the caller sees there.
--
-- The embeddings are Martlet's, the policies the app's, and neither may read the other with its own rights. So the policy on the
-- embeddings calls a function that runs with the reader's rights: it asks the app's table, under its policies, for the
-- keys the reader sees. Which table is said by a setting; without it nothing is seen. That key and vectorizer are one text is
-- what keeps a reader from naming one table to the one and another to the other.

-- SQL that gives the keys as an array, and demands the right to read the vectorized columns too, so that nobody learns from a
-- similarity what is in a column that is hidden. Null where the caller's tenant has no such vectorizer, and while a column that was embedded is gone.
-- Means the same under any search_path.
create or replace function ai.places_query(p_vectorizer bigint) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select format('select pg_catalog.array_agg(%s) from %s t where true%s', e.row_key, z.table_name,
                  (select string_agg(format(' or t.%I is null', c), '') from unnest(n.columns) c))
      from ai.vectorizers z
      join pg_class c on c.oid = z.table_name
     cross join ai.row_expressions(z.id) e
     cross join lateral (select ai.column_names(z.table_name, z.table_id, z.columns, z.attnums) as columns) n
     where z.id = p_vectorizer and array_position(n.columns, null) is null and (z.tenant_id = (select ai.tenant_id()) or (z.tenant_id is null and (select ai.tenant_id()) is not null) or ai.acts_as_owner()));
end
$$;
comment on function ai.places_query(bigint) is 'SELECT of the keys of a vectorized table, to be run by who searches. Internal: ai.visible_places().';

-- No search_path of its own, because it is under the reader's that the app's policies are used to run; so everything in it is
-- qualified, and it has no operators.
create or replace function ai.visible_places() returns text[]
language plpgsql stable security invoker
as $$
declare
  v_query  pg_catalog.text := ai.places_query(pg_catalog.substring(pg_catalog.current_setting('ai.searched', true), '^[0-9]{1,18}$')::pg_catalog.int8);
  v_places pg_catalog.text[];
begin
  if v_query is not null then
    execute v_query into v_places;
  end if;
  return v_places;
end
$$;
comment on function ai.visible_places() is 'Keys of the rows that the reader sees in the table that ai.search_rows() searches.';

-- The vectorizer that a search by the caller means: one for all tenants, else the own tenant's, which any member may make. A search runs the table's
-- policies with the rights of who searches: nobody is to put a table of theirs in the place of the operator's. Raises PT404; PT409 while a column that was embedded is gone,
-- because its embeddings tell what was in it, and nobody can be asked any more who was allowed to read it.
create or replace function ai.find_vectorizer(p_name text, out id bigint, out version bigint, out model text, out dimensions integer)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_is_cut boolean;
begin
  select z.id, v.id, v.model, v.dimensions, array_position(ai.column_names(z.table_name, z.table_id, z.columns, z.attnums), null) is not null
    into find_vectorizer.id, find_vectorizer.version, find_vectorizer.model, find_vectorizer.dimensions, v_is_cut
    from ai.vectorizers z
    join ai.vectorizer_versions v on v.vectorizer_id = z.id and v.status = 'current'
    join pg_class c on c.oid = z.table_name
   where z.name = p_name and (z.tenant_id = (select ai.tenant_id()) or (z.tenant_id is null and (select ai.tenant_id()) is not null) or ai.acts_as_owner())
   order by z.tenant_id is null desc, z.tenant_id is not distinct from (select ai.tenant_id()) desc, z.id limit 1;
  if not found then
    raise exception 'there is no vectorizer %', p_name using errcode = 'PT404', hint = 'select name, table_name from ai.vectorizers;';
  elsif v_is_cut then
    raise exception 'a column that % embedded is gone', p_name
      using errcode = 'PT409', detail = 'Its embeddings tell what was in the column.', hint = 'The owner of the table has them made anew: ai.refresh_vectorizer().';
  end if;
end
$$;
comment on function ai.find_vectorizer(text) is 'The vectorizer that a name means for the caller. Internal: ai.search_rows().';

-- The rows nearest to a vector, best first: primary key as text and cosine similarity, of those rows that the caller sees in the
-- table. Exact: it looks at every visible row. A row whose text has changed is found by its former text until the new one is
-- embedded. Raises PT400 for a vector of another size, PT404, and 42501 where the caller may not read the table.
--
-- No search_path of its own, as above.
create or replace function ai.search_rows(name text, query_embedding vector, match_threshold double precision default 0, match_count integer default 10)
returns table (key text, similarity double precision)
language plpgsql stable security invoker
as $$
#variable_conflict use_column
declare
  v_is record;
begin
  if query_embedding is null or match_threshold is null or match_count is null or match_count operator(pg_catalog.<) 1 or match_count operator(pg_catalog.>) 1000 then
    raise exception 'a search takes a vector, a threshold and a count from 1 to 1000' using errcode = 'PT400';
  end if;
  select f.id, f.version, f.model, f.dimensions into v_is from ai.find_vectorizer(search_rows.name) f;
  if ai.vector_size(query_embedding) operator(pg_catalog.<>) v_is.dimensions then
    raise exception 'this vector does not fit the embeddings of %', search_rows.name
      using errcode = 'PT400', detail = pg_catalog.format('Theirs have %s dimensions, and are made by %s.', v_is.dimensions, v_is.model);
  end if;
  perform pg_catalog.set_config('ai.searched', v_is.id::pg_catalog.text, true);
  return query execute pg_catalog.format(
    'select m.key, m.similarity
       from (select distinct on (n.row_key) pg_catalog.substr(n.row_key, $5) as key, 1 operator(pg_catalog.-) n.distance as similarity
               from (select r.row_key, r.ref, ai.cosine_distance(r.embedding, $1) as distance
                       from ai.vectorized_rows r
                      where r.version operator(pg_catalog.=) $2 and r.state operator(pg_catalog.=) ''embedded'' %s
                      order by distance limit $4) n
              where n.distance operator(pg_catalog.<=) (1 operator(pg_catalog.-) $3)
              order by n.row_key, n.ref desc) m
      order by m.similarity desc, m.key',
    -- Whom no policy holds still sees only what is in the table.
    case when pg_catalog.row_security_active('ai.vectorized_rows') then '' else 'and r.row_key operator(pg_catalog.=) any ((select ai.visible_places())::pg_catalog.text[])' end)
  using query_embedding, v_is.version, match_threshold, match_count, pg_catalog.length(v_is.id::pg_catalog.text) operator(pg_catalog.+) 2;
  perform pg_catalog.set_config('ai.searched', '', true);
end
$$;
comment on function ai.search_rows(text, vector, double precision, integer) is
  'Rows of a vectorized table nearest to a vector, of those the caller sees: select * from ai.search_rows(''products'', (select embedding from …)).';

revoke execute on function ai.places_query(bigint), ai.visible_places(), ai.find_vectorizer(text), ai.search_rows(text, vector, double precision, integer) from public;
grant execute on function ai.places_query(bigint), ai.visible_places(), ai.find_vectorizer(text), ai.search_rows(text, vector, double precision, integer) to ai_user;
-- Inlined where the caller searches with the own rights.
grant execute on function ai.cosine_distance(vector, vector), ai.vector_size(vector) to ai_user;

-- objects

drop policy if exists searched on ai.vectorized_rows;
create policy searched on ai.vectorized_rows for select to ai_user
  using (tenant_id = (select ai.tenant_for('document:read')) and row_key = any ((select ai.visible_places())::text[]));
grant select (ref, version, tenant_id, row_key, state, embedding) on ai.vectorized_rows to ai_user;
