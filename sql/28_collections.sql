-- Collections: making, rebuilding with another model, dropping, and what they are doing.
--
-- Locks, in this order: a document's row, then its collection's. Who adds documents shares the collection's row (for key share);
-- who begins a rebuild takes it alone (for update), so that every chunk is either seen by the rebuild or knows of it; who changes
-- what is searched takes it for no key update. What workers do for a collection never waits for any of these: it skips what
-- is locked, and ai.finish_collections() comes back to it (28_vectors.sql).

-- Raises PT404 with one text for what does not exist and for what is another tenant's.
create or replace function ai.no_collection(p_name text) returns void
language plpgsql immutable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'there is no collection %', coalesce(left(p_name, 100), '(null)') using errcode = 'PT404', hint = 'select name from ai.collections;';
end
$$;
comment on function ai.no_collection(text) is 'Raises PT404.';

-- How many dimensions a model's vectors have. Raises PT404 where the tenant has no such model for embeddings, PT400 where
-- nobody says how many, or two say different things.
create or replace function ai.embedding_dimensions(p_tenant uuid, p_model text, p_dimensions integer) returns integer
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_model bigint := ai.target_model(p_tenant, 'embedding', p_model, null, 1);
  v_known integer := (select m.dimensions from ai.models m where m.id = v_model);
begin
  if v_model is null then
    raise exception 'there is no model % for kind embedding', coalesce(p_model, '(null)')
      using errcode = 'PT404', hint = 'select name from ai.models where kind = ''embedding'' and enabled;';
  elsif v_known <> p_dimensions then
    raise exception 'vectors of % have % dimensions', p_model, v_known using errcode = 'PT400';
  elsif coalesce(v_known, p_dimensions) is null or p_dimensions not between 1 and 16000 then
    raise exception 'how many dimensions do vectors of % have?', p_model
      using errcode = 'PT400', detail = 'From 1 to 16000.', hint = 'Give dimensions, or set ai.models.dimensions.';
  end if;
  return coalesce(v_known, p_dimensions);
end
$$;
comment on function ai.embedding_dimensions(uuid, text, integer) is 'Dimensions of a model''s vectors: what the catalogue says, or what is given where it says nothing.';

-- Makes a collection and gives its id. Raises PT400, PT401, PT403, PT404 (model), PT409 (name).
create or replace function ai.create_collection(
  name text, model text default 'local/hash', dimensions integer default null, target_tokens integer default 300, overlap_tokens integer default 40,
  max_tokens integer default null, language text default 'english')
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me  record;
  v_id  bigint;
  v_max integer := coalesce(max_tokens, greatest(400, least(8000, target_tokens * 4::bigint / 3)));
begin
  select * into v_me from ai.require('document:write');
  if name is null or name !~ '^[^[:space:]]([^[:cntrl:]]{0,98}[^[:space:]])?$' then
    raise exception 'a collection''s name has 1 to 100 characters, none of control, no space at its ends' using errcode = 'PT400';
  end if;
  begin
    perform language::regconfig;
  exception when others then
    raise exception 'there is no text search configuration %', language using errcode = 'PT400', hint = 'select cfgname from pg_ts_config;';
  end;
  perform ai.split_document('', target_tokens, overlap_tokens, v_max);  -- refuses sizes that do not fit each other
  insert into ai.collections (tenant_id, name, model, dimensions, target_tokens, overlap_tokens, max_tokens, language)
  values (v_me.tenant_id, name, model, ai.embedding_dimensions(v_me.tenant_id, model, dimensions), target_tokens, overlap_tokens, v_max, coalesce(language, 'english'))
  on conflict on constraint collections_name_key do nothing
  returning id into v_id;
  if v_id is null then
    raise exception 'there is a collection % already', name using errcode = 'PT409';
  end if;
  return v_id;
end
$$;
comment on function ai.create_collection(text, text, integer, integer, integer, integer, text) is
  'Makes a collection for documents that are embedded with one model; gives its id.';

-- Drops a collection with all that is in it. Locks its documents, then itself. Its index is dropped by the next
-- ai.make_search_indexes(). Raises PT401, PT403, PT404.
create or replace function ai.delete_collection(collection text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me record;
  v_id bigint;
begin
  select * into v_me from ai.require('document:write');
  select c.id into v_id from ai.collections c where c.tenant_id = v_me.tenant_id and c.name = collection;
  perform from ai.documents d where d.tenant_id = v_me.tenant_id and d.collection_id = v_id order by d.id for update;
  perform from ai.collections c where c.tenant_id = v_me.tenant_id and c.id = v_id for update;
  if not found then
    perform ai.no_collection(collection);
  end if;
  delete from ai.staged_vectors s where s.tenant_id = v_me.tenant_id and s.collection_id = v_id;
  delete from ai.chunk_vectors v where v.tenant_id = v_me.tenant_id and v.collection_id = v_id;
  delete from ai.collections c where c.tenant_id = v_me.tenant_id and c.id = v_id;
end
$$;
comment on function ai.delete_collection(text) is 'Drops a collection and its documents.';

-- Embeds a collection anew, with its model (null) or another, beside the vectors that are searched; when every chunk has its
-- vector, searches change over in one transaction. Called again for the model that is being built it asks only for what is
-- missing; for another it begins anew. Gives how many chunks are to be embedded. Raises PT400, PT401, PT403, PT404. Waits for
-- transactions that are adding documents.
create or replace function ai.rebuild_collection(collection text, model text default null, dimensions integer default null) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me   record;
  v_is   record;
  v_refs bigint[];
begin
  select * into v_me from ai.require('document:write');
  select * into v_is from ai.collections c where c.tenant_id = v_me.tenant_id and c.name = collection for update;
  if not found then
    perform ai.no_collection(collection);
  end if;
  model := coalesce(model, v_is.next_model, v_is.model);
  if v_is.next_model is distinct from model or dimensions <> v_is.next_dimensions then
    dimensions := ai.embedding_dimensions(v_me.tenant_id, model, coalesce(dimensions, case when model = v_is.model then v_is.dimensions end));
    perform ai.drop_next_version(v_me.tenant_id, v_is.id);
    v_is.next_version := v_is.last_version + 1;
  end if;
  update ai.collections c
     set next_version = v_is.next_version, next_model = model, next_dimensions = coalesce(dimensions, c.next_dimensions), next_error = null,
         last_version = v_is.next_version
   where c.tenant_id = v_me.tenant_id and c.id = v_is.id;

  v_refs := array(
    select c.id from ai.chunks c
     where c.tenant_id = v_me.tenant_id and c.collection_id = v_is.id
       and not exists (select from ai.chunk_vectors v where v.tenant_id = c.tenant_id and v.collection_id = c.collection_id and v.version = v_is.next_version and v.chunk_id = c.id)
       and not exists (select from ai.staged_vectors s where s.tenant_id = c.tenant_id and s.collection_id = c.collection_id and s.document_id = c.document_id
                          and s.version = v_is.next_version and s.chunk_id = c.id)
     order by c.id);
  perform ai.queue_chunks(v_me.tenant_id, v_me.user_id, model, v_refs, v_is.next_version);
  perform ai.finish_collection(v_me.tenant_id, v_is.id, null);  -- it may be empty
  return cardinality(v_refs);
end
$$;
comment on function ai.rebuild_collection(text, text, integer) is
  'Embeds a collection anew beside what is searched and changes over when complete; gives how many chunks are to be embedded.';

-- Forgets the version that is being built. The collection's row is locked by the caller.
create or replace function ai.drop_next_version(p_tenant uuid, p_collection bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version bigint;
begin
  select c.next_version into v_version from ai.collections c where c.tenant_id = p_tenant and c.id = p_collection;
  if v_version is not null then
    delete from ai.chunk_vectors v where v.tenant_id = p_tenant and v.collection_id = p_collection and v.version = v_version;
    delete from ai.staged_vectors s where s.tenant_id = p_tenant and s.collection_id = p_collection and s.version = v_version;
    update ai.collections c set next_version = null, next_model = null, next_dimensions = null, next_chunks = 0, next_error = null
     where c.tenant_id = p_tenant and c.id = p_collection;
  end if;
end
$$;
comment on function ai.drop_next_version(uuid, bigint) is 'Forgets the version of a collection''s vectors that is being built.';

-- Raises PT401, PT403, PT404. What is queued for it is still embedded, and thrown away.
create or replace function ai.cancel_rebuild(collection text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me record;
  v_is record;
begin
  select * into v_me from ai.require('document:write');
  select * into v_is from ai.collections c where c.tenant_id = v_me.tenant_id and c.name = collection for no key update;
  if not found then
    perform ai.no_collection(collection);
  end if;
  perform ai.drop_next_version(v_me.tenant_id, v_is.id);
  return v_is.next_version is not null;
end
$$;
comment on function ai.cancel_rebuild(text) is 'Stops a rebuild; what is searched stays as it is. Gives whether there was one.';

-- Runs with the caller's rights: the collections of the own tenant.
create or replace function ai.collection_status(collection text default null)
returns table (name text, model text, version bigint, documents bigint, ready bigint, waiting bigint, failed bigint, chunks bigint, search text,
               next_model text, next_done bigint, next_total bigint, next_error jsonb)
language sql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
  select c.name, c.model, c.version, count(d.id), count(d.id) filter (where d.status = 'ready'),
         count(d.id) filter (where d.status in ('pending', 'embedding')), count(d.id) filter (where d.status = 'failed'),
         c.chunks, case when c.indexed_version = c.embedding_version then 'index' else 'exact' end,
         c.next_model, case when c.next_version is not null then c.next_chunks end, case when c.next_version is not null then c.chunks end, c.next_error
    from ai.collections c
    left join ai.documents d on d.tenant_id = c.tenant_id and d.collection_id = c.id
   where collection is null or c.name = collection
   group by c.tenant_id, c.id
   order by c.name
$$;
comment on function ai.collection_status(text) is
  'How far the documents of each collection (or of one) are, how it is searched, and how far a rebuild is (next_…).';

revoke execute on function ai.no_collection(text), ai.embedding_dimensions(uuid, text, integer),
  ai.create_collection(text, text, integer, integer, integer, integer, text), ai.delete_collection(text), ai.rebuild_collection(text, text, integer),
  ai.drop_next_version(uuid, bigint), ai.cancel_rebuild(text), ai.collection_status(text) from public;
grant execute on function ai.create_collection(text, text, integer, integer, integer, integer, text), ai.delete_collection(text),
  ai.rebuild_collection(text, text, integer), ai.cancel_rebuild(text), ai.collection_status(text), ai.no_collection(text) to ai_user;

-- objects

drop policy if exists visible on ai.collections;
create policy visible on ai.collections for select to ai_user using (tenant_id = (select ai.tenant_for('document:read')));
drop policy if exists visible on ai.documents;
create policy visible on ai.documents for select to ai_user using (tenant_id = (select ai.tenant_for('document:read')));
drop policy if exists visible on ai.chunks;
create policy visible on ai.chunks for select to ai_user using (tenant_id = (select ai.tenant_for('document:read')));
drop policy if exists visible on ai.chunk_vectors;
create policy visible on ai.chunk_vectors for select to ai_user using (tenant_id = (select ai.tenant_for('document:read')));

grant select on ai.collections, ai.documents, ai.chunks, ai.chunk_vectors to ai_user;
