-- Documents: adding, replacing, deleting. What is added is searched once its whole revision is embedded (28_vectors.sql).

-- Asks for the vectors of chunks.
create or replace function ai.queue_chunks(p_tenant uuid, p_user text, p_model text, p_refs bigint[], p_version bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if cardinality(p_refs) > 0 then
    perform ai.queue_embeddings(p_tenant, p_user, p_model, 'chunks', p_refs, p_version);
  end if;
end
$$;
comment on function ai.queue_chunks(uuid, text, text, bigint[], bigint) is 'Asks for the vectors of chunks.';

-- ai.add_document() for a given member. Raises PT400, PT404, PT413. Locks the document's row, so that two that add the same
-- uri follow each other, and shares the collection's (for key share).
create or replace function ai.put_document(p_tenant uuid, p_user text, p_collection text, p_content text, p_title text, p_uri text, p_metadata jsonb)
returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set client_min_messages = warning
as $$
declare
  v_is    record;
  v_old   ai.documents;
  v_max   integer := (select s.max_document_bytes from ai.settings s);
  v_title text := nullif(btrim(p_title), '');
  v_hash  bytea;
  v_id    uuid;
  v_refs  bigint[];
begin
  -- Before the collection's, as everywhere: else it would wait for a delete that waits for a rebuild that waits for this.
  if p_uri is not null then
    perform from ai.documents d
      where d.tenant_id = p_tenant and d.uri = p_uri
        and d.collection_id = (select c.id from ai.collections c where c.tenant_id = p_tenant and c.name = p_collection) for update;
  end if;
  select c.id, c.model, c.embedding_version, c.next_model, c.next_version, c.target_tokens, c.overlap_tokens, c.max_tokens, c.language
    into v_is from ai.collections c where c.tenant_id = p_tenant and c.name = p_collection for key share;
  if not found then
    perform ai.no_collection(p_collection);
  end if;
  if p_content is null or p_content !~ '[^[:space:]]' then
    raise exception 'the document is empty' using errcode = 'PT400';
  elsif octet_length(p_content) > v_max then
    raise exception 'the document is too long'
      using errcode = 'PT413', detail = format('%s bytes; the limit is %s.', octet_length(p_content), v_max), hint = 'ai.settings.max_document_bytes';
  elsif octet_length(v_title) > 2000 or octet_length(p_uri) not between 1 and 2000 then
    raise exception 'title and uri have at most 2000 bytes, a uri at least 1' using errcode = 'PT400';
  elsif p_metadata is null or jsonb_typeof(p_metadata) <> 'object' then
    raise exception 'metadata must be a JSON object' using errcode = 'PT400';
  elsif octet_length(p_metadata::text) > 65536 then
    raise exception 'the metadata is too long' using errcode = 'PT413', detail = 'The limit is 65536 bytes.';
  end if;
  v_hash := sha256(convert_to(jsonb_build_array(v_title, p_content)::text, 'UTF8'));

  for v_try in 1 .. 5 loop
    insert into ai.documents (tenant_id, collection_id, title, uri, content, metadata, hash, user_id)
    values (p_tenant, v_is.id, v_title, p_uri, p_content, p_metadata, v_hash, p_user)
    on conflict do nothing
    returning id into v_id;
    exit when v_id is not null;
    -- Two statements, so that each uses its index.
    if p_uri is not null then
      select d.* into v_old from ai.documents d where d.tenant_id = p_tenant and d.collection_id = v_is.id and d.uri = p_uri for update;
    else
      select d.* into v_old from ai.documents d where d.tenant_id = p_tenant and d.collection_id = v_is.id and d.uri is null and d.hash = v_hash for update;
    end if;
    exit when found;  -- else it has just been deleted
  end loop;

  if v_id is null and v_old.hash = v_hash then
    if v_old.metadata <> p_metadata then
      update ai.documents d set metadata = p_metadata, updated_at = ai.now() where d.tenant_id = p_tenant and d.id = v_old.id;
      update ai.collections c set version = c.version + 1 where c.tenant_id = p_tenant and c.id = v_is.id;
    end if;
    if v_old.status = 'failed' then
      perform ai.ask_again(p_tenant, p_user, v_old.id);
    end if;
    return v_old.id;
  elsif v_id is null then
    v_id := v_old.id;
    -- What was given last and is not searched yet will never be.
    with gone as (
      delete from ai.chunks c where c.tenant_id = p_tenant and c.document_id = v_id and c.revision > coalesce(v_old.live_revision, 0) returning c.id
    )
    delete from ai.staged_vectors s using gone g where s.tenant_id = p_tenant and s.collection_id = v_is.id and s.document_id = v_id and s.chunk_id = g.id;
    update ai.documents d
       set title = v_title, content = p_content, metadata = p_metadata, hash = v_hash, status = 'pending', error = null, revision = d.revision + 1,
           user_id = p_user, live_user_id = case when d.live_revision = d.revision then d.user_id else d.live_user_id end, updated_at = ai.now()
     where d.tenant_id = p_tenant and d.id = v_id;
  end if;

  with made as (
    insert into ai.chunks (tenant_id, collection_id, document_id, revision, position, tokens, heading, content, tsv)
    select p_tenant, v_is.id, v_id, coalesce(v_old.revision, 0) + 1, s.n, s.tokens, s.heading, s.content,
           array_to_tsvector(array[' ' || v_is.id])
           || setweight(to_tsvector(v_is.language::regconfig, concat_ws(E'\n', v_title, s.heading)), 'A')
           || to_tsvector(v_is.language::regconfig, s.content)
      from ai.split_document(p_content, v_is.target_tokens, v_is.overlap_tokens, v_is.max_tokens) s
    returning id
  )
  select array_agg(m.id order by m.id) into v_refs from made m;
  update ai.documents d set chunks = cardinality(v_refs) where d.tenant_id = p_tenant and d.id = v_id;
  perform ai.queue_chunks(p_tenant, p_user, v_is.model, v_refs, v_is.embedding_version);
  if v_is.next_version is not null then
    perform ai.queue_chunks(p_tenant, p_user, v_is.next_model, v_refs, v_is.next_version);
  end if;
  return v_id;
end
$$;
comment on function ai.put_document(uuid, text, text, text, text, text, jsonb) is 'ai.add_document() for a given member; for the owner.';

-- Splits a document, asks for its vectors and gives its id. What is in the collection already under the same uri with the
-- same title and content (or, without a uri, with the same title and content at all) is left as it is, but for its metadata; other content under
-- a known uri replaces the document, which is searched as it was until the new one is complete. Raises PT400,
-- PT401, PT403, PT404, PT413.
create or replace function ai.add_document(collection text, content text, title text default null, uri text default null, metadata jsonb default '{}')
returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
begin
  select * into v_me from ai.require('document:write');
  return ai.put_document(v_me.tenant_id, v_me.user_id, collection, content, title, uri, metadata);
end
$$;
comment on function ai.add_document(text, text, text, text, jsonb) is
  'Adds a document to a collection, or replaces the one of the same uri; gives its id. It is searched when its status is ready.';

-- Takes chunks out of a collection whose row the caller has locked, with their vectors. Gives how many were live.
create or replace function ai.remove_chunks(p_tenant uuid, p_collection bigint, p_ids bigint[]) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_is   record;
  v_next bigint;
  v_live bigint;
begin
  select c.embedding_version, c.next_version into v_is from ai.collections c where c.tenant_id = p_tenant and c.id = p_collection;
  delete from ai.chunk_vectors v where v.tenant_id = p_tenant and v.collection_id = p_collection and v.version = v_is.embedding_version and v.chunk_id = any (p_ids);
  delete from ai.chunk_vectors v where v.tenant_id = p_tenant and v.collection_id = p_collection and v.version = v_is.next_version and v.chunk_id = any (p_ids);
  get diagnostics v_next = row_count;
  with gone as (delete from ai.chunks c where c.tenant_id = p_tenant and c.id = any (p_ids) returning c.id, c.document_id, c.live)
     , unstaged as (delete from ai.staged_vectors s using gone g where s.tenant_id = p_tenant and s.collection_id = p_collection and s.document_id = g.document_id and s.chunk_id = g.id)
  select count(*) filter (where g.live) into v_live from gone g;
  update ai.collections c
     set chunks = c.chunks - v_live, next_chunks = c.next_chunks - v_next, version = c.version + (v_live > 0)::integer
   where c.tenant_id = p_tenant and c.id = p_collection;
  return v_live;
end
$$;
comment on function ai.remove_chunks(uuid, bigint, bigint[]) is 'Removes chunks of a collection and their vectors; gives how many of them were searched.';

-- Gives whether there was such a document in the own tenant. Waits for the document, its collection, and for an index on
-- vectors that is being built. Raises PT401, PT403.
create or replace function ai.delete_document(id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me         record;
  v_collection bigint;
begin
  select * into v_me from ai.require('document:write');
  select d.collection_id into v_collection from ai.documents d where d.tenant_id = v_me.tenant_id and d.id = delete_document.id for update;
  if not found then
    return false;
  end if;
  perform from ai.collections c where c.tenant_id = v_me.tenant_id and c.id = v_collection for no key update;
  perform ai.remove_chunks(v_me.tenant_id, v_collection, array(
    select c.id from ai.chunks c where c.tenant_id = v_me.tenant_id and c.document_id = delete_document.id));
  delete from ai.documents d where d.tenant_id = v_me.tenant_id and d.id = delete_document.id;
  perform ai.finish_collection(v_me.tenant_id, v_collection, '{}');  -- it may have been what a rebuild waited for
  return true;
end
$$;
comment on function ai.delete_document(uuid) is 'Deletes a document; no search finds it from then on. Gives whether there was one.';

-- Asks for the vectors that a document lacks. Its row is locked by the caller.
create or replace function ai.ask_again(p_tenant uuid, p_user text, p_document uuid) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_is   record;
  v_one  record;
  v_refs bigint[];
  v_sum  bigint := 0;
begin
  select d.revision, d.collection_id, c.model, c.embedding_version, c.next_model, c.next_version
    into v_is
    from ai.documents d join ai.collections c on c.tenant_id = d.tenant_id and c.id = d.collection_id
   where d.tenant_id = p_tenant and d.id = p_document;
  for v_one in select * from (values (v_is.model, v_is.embedding_version), (v_is.next_model, v_is.next_version)) v (model, version) where v.version is not null loop
    v_refs := array(
      select c.id from ai.chunks c
       where c.tenant_id = p_tenant and c.document_id = p_document and c.revision = v_is.revision
         and not exists (select from ai.chunk_vectors v where v.tenant_id = p_tenant and v.collection_id = v_is.collection_id and v.version = v_one.version and v.chunk_id = c.id)
         and not exists (select from ai.staged_vectors s where s.tenant_id = p_tenant and s.collection_id = v_is.collection_id and s.document_id = p_document
                            and s.version = v_one.version and s.chunk_id = c.id)
       order by c.id);
    perform ai.queue_chunks(p_tenant, p_user, v_one.model, v_refs, v_one.version);
    v_sum := v_sum + cardinality(v_refs);
  end loop;
  update ai.documents d set status = 'pending', error = null where d.tenant_id = p_tenant and d.id = p_document and d.status = 'failed';
  return v_sum;
end
$$;
comment on function ai.ask_again(uuid, text, uuid) is 'Asks for the vectors that a document lacks; gives how many.';

-- Raises PT401, PT403, PT404.
create or replace function ai.retry_document(id uuid) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
begin
  select * into v_me from ai.require('document:write');
  perform from ai.documents d where d.tenant_id = v_me.tenant_id and d.id = retry_document.id for update;
  if not found then
    raise exception 'there is no such document' using errcode = 'PT404';
  end if;
  return ai.ask_again(v_me.tenant_id, v_me.user_id, retry_document.id);
end
$$;
comment on function ai.retry_document(uuid) is 'Asks again for the vectors of a document whose embedding failed; gives how many.';

revoke execute on function ai.queue_chunks(uuid, text, text, bigint[], bigint), ai.put_document(uuid, text, text, text, text, text, jsonb),
  ai.add_document(text, text, text, text, jsonb), ai.remove_chunks(uuid, bigint, bigint[]), ai.delete_document(uuid), ai.ask_again(uuid, text, uuid),
  ai.retry_document(uuid) from public;
grant execute on function ai.add_document(text, text, text, text, jsonb), ai.delete_document(uuid), ai.retry_document(uuid) to ai_user;
