-- Files that apps add, read and delete. Where a file lies (in the database, in parts; or as an object in a store) is not
-- theirs to know: what lies in a store is fetched back by a worker when somebody asks for it (ai.recall_artifact()).

-- The policy of a tenant: its own row, else the one that all share.
create or replace function ai.artifact_policy(p_tenant uuid, out max_bytes integer, out database_bytes integer, out request_bytes integer, out keep interval)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.max_bytes, p.database_bytes, p.request_bytes, p.keep
    from ai.artifact_policies p where p.tenant_id = p_tenant or p.tenant_id is null
   order by p.tenant_id is null limit 1
$$;
comment on function ai.artifact_policy(uuid) is 'How large a tenant''s files may be, where they go and how long they stay.';

-- A media type as the table takes it: without parameters, in small letters; what is none becomes application/octet-stream.
create or replace function ai.media_type(p_text text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when t ~ '^[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}$' then t else 'application/octet-stream' end
    from (select lower(btrim(split_part(left(coalesce(p_text, ''), 300), ';', 1)))) o (t)
$$;
comment on function ai.media_type(text) is 'A media type without parameters; application/octet-stream for what is none.';

-- Puts content into parts. The artifact's row is there, or comes with the same transaction.
create or replace function ai.store_parts(p_tenant uuid, p_artifact uuid, p_content bytea) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into ai.artifact_parts (tenant_id, artifact_id, n, content)
  select p_tenant, p_artifact, n, substr(p_content, n * 2097152 + 1, 2097152)
    from generate_series(0, (octet_length(p_content) - 1) / 2097152) n
   where octet_length(p_content) > 0
$$;
comment on function ai.store_parts(uuid, uuid, bytea) is 'Stores a file''s content in the database.';

-- Adds a file of the caller's. Beyond database_bytes of the policy a worker moves it into the store later, where there is one.
-- Raises PT400, PT401, PT403, PT413.
create or replace function ai.add_artifact(content bytea, media_type text, name text default null, shared boolean default false, keep interval default null)
returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me     record;
  v_policy record;
  v_id     uuid := ai.uuid_v7();
  v_now    timestamptz := ai.now();
begin
  select * into v_me from ai.require('inference:execute');
  select * into v_policy from ai.artifact_policy(v_me.tenant_id);
  if content is null or shared is null then
    raise exception 'an artifact needs content' using errcode = 'PT400';
  elsif octet_length(content) > v_policy.max_bytes then
    raise exception 'the file is too large'
      using errcode = 'PT413', detail = format('%s bytes; the limit is %s.', octet_length(content), v_policy.max_bytes), hint = 'ai.artifact_policies.max_bytes';
  elsif media_type is null or split_part(lower(media_type), ';', 1) <> ai.media_type(media_type) then
    raise exception 'this is not a media type' using errcode = 'PT400', hint = 'Such as image/png, audio/wav, application/pdf.';
  elsif octet_length(name) not between 1 and 255 or name ~ '[[:cntrl:]]' then
    raise exception 'the name of a file has 1 to 255 bytes and no control characters' using errcode = 'PT400';
  elsif keep <= interval '0' or keep > interval '1000 years' then
    raise exception 'keep must be above 0, and at most 1000 years' using errcode = 'PT400';
  end if;
  insert into ai.artifacts (tenant_id, id, user_id, name, media_type, bytes, sha256, shared, status, move_at, created_at, expires_at)
  values (v_me.tenant_id, v_id, v_me.user_id, name, ai.media_type(media_type), octet_length(content), sha256(content), shared, 'ready',
          case when octet_length(content) > v_policy.database_bytes and exists (select from ai.artifact_stores s where s.is_current) then v_now end,
          v_now, least(v_now + keep, v_now + v_policy.keep));
  perform ai.store_parts(v_me.tenant_id, v_id, content);
  return v_id;
end
$$;
comment on function ai.add_artifact(bytea, text, text, boolean, interval) is
  'Adds a file; gives its id, for messages: {"type": "artifact", "artifact": "…"}. select ai.add_artifact(pg_read_binary_file(…), ''image/png'');';

-- The row of a file that the session may see, else PT404.
create or replace function ai.visible_artifact(
  p_id uuid, out tenant_id uuid, out object_id uuid, out recalled_until timestamptz, out damaged_at timestamptz)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_me record;
begin
  select i.tenant_id, i.only_user into v_me from ai.identity() i;
  if v_me.tenant_id is null then
    raise exception 'this session is nobody' using errcode = 'PT401', hint = 'select * from ai.whoami();';
  end if;
  select a.tenant_id, a.object_id, a.recalled_until, a.damaged_at
    into visible_artifact.tenant_id, visible_artifact.object_id, visible_artifact.recalled_until, visible_artifact.damaged_at
    from ai.artifacts a
   where a.tenant_id = v_me.tenant_id and a.id = p_id and a.status = 'ready' and (a.shared or a.user_id = coalesce(v_me.only_user, a.user_id));
  if not found then
    raise exception 'there is no artifact %', p_id using errcode = 'PT404', hint = 'select id, name, media_type, bytes from ai.artifacts;';
  end if;
end
$$;
comment on function ai.visible_artifact(uuid) is 'The row of a file that this session may see; else PT404. Internal.';

-- The content of a file, or one part of it (2 MiB each, from 0). null: it lies in a store, and has not been fetched back
-- (ai.recall_artifact()); or there is no such part. Raises PT401, PT404, PT410 where the store has lost it.
create or replace function ai.artifact_content(id uuid, part integer default null) returns bytea
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_file record;
begin
  select * into v_file from ai.visible_artifact(artifact_content.id);
  if v_file.object_id is not null and v_file.recalled_until is null then
    if v_file.damaged_at is not null then
      raise exception 'the content of this artifact is lost'
        using errcode = 'PT410', detail = 'The store did not have it, or had something else under its key.';
    end if;
    return null;
  elsif part is not null then
    return (select p.content from ai.artifact_parts p where p.tenant_id = v_file.tenant_id and p.artifact_id = artifact_content.id and p.n = part);
  end if;
  return coalesce((select string_agg(p.content, '' order by p.n) from ai.artifact_parts p where p.tenant_id = v_file.tenant_id and p.artifact_id = artifact_content.id), '');
end
$$;
comment on function ai.artifact_content(uuid, integer) is 'The content of a file, or one part of 2 MiB; null: a worker must fetch it first, ai.recall_artifact().';

-- Asks a worker to fetch a file back from the store, for an hour; false until its content can be read. Raises PT401, PT404, PT410.
create or replace function ai.recall_artifact(id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_file record;
begin
  select * into v_file from ai.visible_artifact(recall_artifact.id);
  if v_file.object_id is null or v_file.recalled_until > ai.now() + interval '10 minutes' then
    return true;
  elsif v_file.damaged_at > ai.now() - interval '1 minute' then
    raise exception 'the content of this artifact is lost'
      using errcode = 'PT410', detail = 'The store did not have it, or had something else under its key.';
  end if;
  update ai.artifacts a set recall_at = ai.now(), damaged_at = null
   where a.tenant_id = v_file.tenant_id and a.id = recall_artifact.id and a.recall_at is null;
  perform pg_notify(w.channel, '') from ai.workers w where w.ended_at is null and (select ai.may_notify());
  return v_file.recalled_until is not null;
end
$$;
comment on function ai.recall_artifact(uuid) is 'Has a worker fetch a file back from the store; true once ai.artifact_content() gives it.';

-- Raises PT401, PT403.
create or replace function ai.delete_artifact(id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_me record;
begin
  select * into v_me from ai.require('inference:execute');
  delete from ai.artifacts a
   where a.tenant_id = v_me.tenant_id and a.id = delete_artifact.id and a.status = 'ready' and (a.user_id = v_me.user_id or '*' = any (v_me.permissions));
  return found;
end
$$;
comment on function ai.delete_artifact(uuid) is 'Deletes a file, also from the store; one''s own, or any of the tenant for who may do everything. Gives whether there was one.';

-- Trigger AFTER DELETE, each row: whoever deletes a file, its object goes, too. What may still be uploading goes when nobody can be
-- writing it any more (ai.sweep_artifacts()).
create or replace function ai.doom_objects() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update ai.artifact_objects o set state = 'doomed', due_at = ai.now()
   where o.tenant_id = old.tenant_id and o.artifact_id = old.id and o.state = 'stored';
  return null;
end
$$;
comment on function ai.doom_objects() is 'Trigger: the object of a deleted file is to be removed from its store.';

-- Deletes files of somebody who is being forgotten, some at a time; gives how many. What others hold is left.
create or replace function ai.erase_artifacts(p_tenant uuid, p_user text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_ids uuid[];
begin
  v_ids := array(
    select a.id
      from ai.forgotten f
      join ai.artifacts a on a.tenant_id = f.tenant_id and a.user_id = f.user_id and a.status = 'ready'
     where f.tenant_id = p_tenant and f.user_id = p_user and f.finished_at is null
     order by a.id limit 500
       for update of a skip locked);
  delete from ai.artifacts a where a.tenant_id = p_tenant and a.id = any (v_ids);
  return cardinality(v_ids);
end
$$;
comment on function ai.erase_artifacts(uuid, text) is 'Deletes files of somebody who is being forgotten, some at a time; gives how many.';

-- Whether anything of a person's files is left, in the database or in a store.
create or replace function ai.has_artifacts(p_tenant uuid, p_user text) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
  select exists (select from ai.artifacts a where a.tenant_id = p_tenant and a.user_id = p_user)
      or exists (select from ai.artifact_objects o where o.tenant_id = p_tenant and o.user_id = p_user)
$$;
comment on function ai.has_artifacts(uuid, text) is 'Whether files of a person are left, also in a store.';

revoke execute on function ai.artifact_policy(uuid), ai.media_type(text), ai.store_parts(uuid, uuid, bytea), ai.add_artifact(bytea, text, text, boolean, interval),
  ai.visible_artifact(uuid), ai.artifact_content(uuid, integer), ai.recall_artifact(uuid), ai.delete_artifact(uuid), ai.doom_objects(),
  ai.erase_artifacts(uuid, text), ai.has_artifacts(uuid, text) from public;
grant execute on function ai.add_artifact(bytea, text, text, boolean, interval), ai.artifact_content(uuid, integer), ai.recall_artifact(uuid), ai.delete_artifact(uuid) to ai_user;

-- objects

create or replace trigger doom_objects after delete on ai.artifacts
  for each row execute function ai.doom_objects();

drop policy if exists visible on ai.artifacts;
create policy visible on ai.artifacts for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and status = 'ready' and (shared or user_id = coalesce((select ai.only_user()), user_id)));
grant select (tenant_id, id, user_id, name, media_type, bytes, sha256, shared, generation_id, position, created_at, expires_at) on ai.artifacts to ai_user;

drop policy if exists visible on ai.artifact_policies;
create policy visible on ai.artifact_policies for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('policy:read') or ai.may('policy:write')));
grant select on ai.artifact_policies to ai_user;
