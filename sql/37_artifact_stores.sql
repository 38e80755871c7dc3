-- What workers do with files: keep those that models make, fetch those that requests need, move large ones into a store,
-- and remove from it what nobody needs any more.
--
-- No object is in a store without a row of ai.artifact_objects, which is committed before the upload begins. Whatever dies when:
--   before the upload, or within it   the row stays `uploading`; when nobody can be writing any more it is doomed
--   between upload and settle         the lease ends otherwise; the staged file is removed, and then as above
--   after the settle                  file and object are ready, in the same transaction as the end of the generation
-- A doomed object is removed by any worker; its row goes when the store has confirmed that. To remove an object twice does no harm.
-- Keys begin with the tenant's id and end with a random UUID: no tenant's file can have another's key, and nobody can guess one.

-- How an object is reached.
create or replace function ai.object_place(p_tenant uuid, p_object uuid) returns jsonb
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('url', s.endpoint || '/' || s.bucket || '/' || o.key, 'region', s.region, 'secret', s.secret,
                            'ref', (ai.secret_ref(null, s.secret, false))[1])
    from ai.artifact_objects o
    join ai.artifact_stores s on s.id = o.store_id
   where o.tenant_id = p_tenant and o.id = p_object
$$;
comment on function ai.object_place(uuid, uuid) is 'Address of an object, and with which secret it is signed.';

-- Registers an object that is about to be uploaded; gives its id, null where there is no current store.
create or replace function ai.begin_object(p_tenant uuid, p_user text, p_artifact uuid) returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into ai.artifact_objects (tenant_id, store_id, artifact_id, user_id, key, state, due_at)
  select p_tenant, s.id, p_artifact, p_user, s.prefix || p_tenant || '/' || p_artifact || '-' || gen_random_uuid(), 'uploading',
         ai.now() + s.upload_ms * interval '1 ms' + interval '1 minute'
    from ai.artifact_stores s where s.is_current
  returning id
$$;
comment on function ai.begin_object(uuid, text, uuid) is 'Registers an object before its upload; null: there is no store.';

-- Where the files that a model made for an attempt are to go, once the worker has them; p_files is an array of {"media_type", "bytes", "sha256"}
-- in the model's order. Called again (the answer was lost, or the store cannot be reached: p_avoid_store) it begins anew. No row: the attempt is
-- no longer this worker's. place: database (the worker puts the parts), store (it uploads to url), too_large.
create or replace function ai.worker_place_files(p_worker uuid, p_generation uuid, p_attempt integer, p_files jsonb, p_avoid_store boolean)
returns table (n integer, tenant_id uuid, artifact_id uuid, place text, object jsonb, upload_ms integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  c_in_database constant integer := 33554432;
  v_lease  record;
  v_policy record;
  v_store  record;
  v_one    record;
  v_id     uuid;
  v_object uuid;
begin
  if jsonb_typeof(p_files) is distinct from 'array' or p_avoid_store is null then
    raise exception 'files are an array' using errcode = 'PT400';
  end if;
  select l.tenant_id, l.user_id into v_lease from ai.leases l where l.generation_id = p_generation and l.attempt = p_attempt and l.worker_id = p_worker;
  if not found then
    return;
  end if;
  delete from ai.artifacts a where a.tenant_id = v_lease.tenant_id and a.generation_id = p_generation and a.attempt = p_attempt and a.status = 'staged';
  select * into v_policy from ai.artifact_policy(v_lease.tenant_id);
  select s.id, s.upload_ms into v_store from ai.artifact_stores s where s.is_current;
  for v_one in select f.value ->> 'media_type' as media_type, (f.value ->> 'bytes')::bigint as bytes, decode(f.value ->> 'sha256', 'hex') as sha256, f.ordinality - 1 as n
                 from jsonb_array_elements(p_files) with ordinality f loop
    n := v_one.n;
    tenant_id := v_lease.tenant_id;
    v_id := ai.uuid_v7();
    v_object := null;
    place := case when v_one.bytes > v_policy.max_bytes then 'too_large'
                  when v_one.bytes > v_policy.database_bytes and v_store.id is not null and not p_avoid_store then 'store'
                  when v_one.bytes > c_in_database then 'too_large'
                  else 'database' end;
    if place <> 'too_large' then
      v_object := case when place = 'store' then ai.begin_object(v_lease.tenant_id, v_lease.user_id, v_id) end;
      insert into ai.artifacts (tenant_id, id, user_id, media_type, bytes, sha256, status, generation_id, attempt, position, object_id, move_at, created_at, expires_at)
      values (v_lease.tenant_id, v_id, v_lease.user_id, ai.media_type(v_one.media_type), v_one.bytes, v_one.sha256, 'staged', p_generation, p_attempt, v_one.n, v_object,
              case when p_avoid_store and v_store.id is not null and v_one.bytes > v_policy.database_bytes then ai.now() + interval '5 minutes' end, ai.now(), ai.now() + v_policy.keep);
    end if;
    artifact_id := case when place <> 'too_large' then v_id end;
    object := case when v_object is not null then ai.object_place(v_lease.tenant_id, v_object) end;
    upload_ms := v_store.upload_ms;
    return next;
  end loop;
end
$$;
comment on function ai.worker_place_files(uuid, uuid, integer, jsonb, boolean) is 'Registers the files of an attempt and says where they are to go.';

-- Takes one part of a file: of an attempt that is leased to this worker, or of a file that is fetched back. False: it is neither.
create or replace function ai.worker_put_part(p_worker uuid, p_tenant uuid, p_artifact uuid, p_n integer, p_content bytea) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  perform ai.check_worker(p_worker);
  perform from ai.artifacts a
    where a.tenant_id = p_tenant and a.id = p_artifact
      and (a.recall_at is not null
           or a.status = 'staged' and exists (select from ai.leases l where l.generation_id = a.generation_id and l.attempt = a.attempt and l.worker_id = p_worker))
      for key share skip locked;
  if not found then
    return false;
  end if;
  insert into ai.artifact_parts (tenant_id, artifact_id, n, content) values (p_tenant, p_artifact, p_n, p_content)
  on conflict on constraint artifact_parts_pkey do update set content = excluded.content;
  return true;
end
$$;
comment on function ai.worker_put_part(uuid, uuid, uuid, integer, bytea) is 'Stores one part of a file; false: nobody waits for it any more.';

-- One part of a file that lies in the database, or, where it has been moved since, its object. No row: it is gone.
create or replace function ai.worker_part(p_worker uuid, p_tenant uuid, p_artifact uuid, p_n integer) returns table (content bytea, object jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  perform ai.check_worker(p_worker);
  return query
    select (select p.content from ai.artifact_parts p where p.tenant_id = a.tenant_id and p.artifact_id = a.id and p.n = p_n),
           case when a.object_id is not null then ai.object_place(a.tenant_id, a.object_id) end
      from ai.artifacts a where a.tenant_id = p_tenant and a.id = p_artifact;
end
$$;
comment on function ai.worker_part(uuid, uuid, uuid, integer) is 'One part of a file in the database, or where the file was moved to.';

-- Makes the files of attempts that succeeded visible, with their objects. p_kept: [{"tenant_id", "id", "attempt"}].
create or replace function ai.keep_artifacts(p_kept jsonb) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
  with kept as materialized (
    update ai.artifacts a set status = 'ready'
      from jsonb_to_recordset(p_kept) k (tenant_id uuid, id uuid, attempt smallint)
     where a.tenant_id = k.tenant_id and a.generation_id = k.id and a.attempt = k.attempt and a.status = 'staged'
    returning a.tenant_id, a.object_id
  )
  update ai.artifact_objects o set state = 'stored' from kept k where o.tenant_id = k.tenant_id and o.id = k.object_id and o.state = 'uploading'
$$;
comment on function ai.keep_artifacts(jsonb) is 'Makes the files of attempts that succeeded ready. Internal: ai.conclude_attempts().';

-- Chore of maintenance: removes files whose time is over, files of attempts that ended otherwise, and copies that were fetched back; dooms
-- objects that nobody can be writing any more and that belong to no file. Gives how many. Locks them, skipping what others hold.
create or replace function ai.sweep_artifacts(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_count integer;
  v_more  integer;
begin
  delete from ai.artifacts a
   where a.ctid = any (array(select o.ctid from ai.artifacts o where o.expires_at <= p_now and o.status = 'ready' order by o.expires_at limit 1000 for update skip locked));
  get diagnostics v_count = row_count;
  delete from ai.artifacts a
   where a.ctid = any (array(select o.ctid from ai.artifacts o
                              where o.status = 'staged' and not exists (select from ai.leases l where l.generation_id = o.generation_id and l.attempt = o.attempt)
                              order by o.created_at limit 1000 for update skip locked));
  get diagnostics v_more = row_count;
  v_count := v_count + v_more;
  update ai.artifact_objects o set state = 'doomed', due_at = p_now
   where o.ctid = any (array(select u.ctid from ai.artifact_objects u
                              where u.state = 'uploading' and u.due_at <= p_now
                                and not exists (select from ai.artifacts a where a.tenant_id = u.tenant_id and a.id = u.artifact_id and a.object_id = u.id)
                              order by u.due_at limit 1000 for update skip locked));
  get diagnostics v_more = row_count;
  v_count := v_count + v_more;
  with over as materialized (
    select a.tenant_id, a.id from ai.artifacts a where a.recalled_until <= p_now order by a.recalled_until limit 100 for update skip locked
  ), gone as (
    delete from ai.artifact_parts p using over o where p.tenant_id = o.tenant_id and p.artifact_id = o.id
  )
  update ai.artifacts a set recalled_until = null, recall_at = null from over o where a.tenant_id = o.tenant_id and a.id = o.id;
  get diagnostics v_more = row_count;
  return v_count + v_more;
end
$$;
comment on function ai.sweep_artifacts(timestamptz) is 'Removes files whose time is over or that no attempt needs; gives how many.';

-- What is to be done with stores; each given to one worker at a time, and again after a while unless ai.worker_artifact_done() comes before. At most p_limit of a kind.
--   delete  remove the object at object.url       move    upload the parts of the file to object.url (id: of the object)
--   recall  fetch object.url back into parts
create or replace function ai.worker_artifact_jobs(p_worker uuid, p_limit integer)
returns table (job text, tenant_id uuid, id uuid, artifact_id uuid, bytes integer, sha256 text, object jsonb, upload_ms integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_now   timestamptz := ai.now();
  v_begun record;
begin
  perform ai.check_worker(p_worker);
  return query
    with due as (
      update ai.artifact_objects o set due_at = v_now + interval '1 minute' * 2 ^ least(o.tries, 6), tries = least(o.tries, 1000) + 1
       where o.ctid = any (array(select d.ctid from ai.artifact_objects d where d.state = 'doomed' and d.due_at <= v_now order by d.due_at limit p_limit for update skip locked))
      returning o.tenant_id, o.id, o.artifact_id
    )
    select 'delete', d.tenant_id, d.id, d.artifact_id, null::integer, null::text, ai.object_place(d.tenant_id, d.id), 30000 from due d;
  return query
    with due as (
      update ai.artifacts a set recall_at = v_now + interval '1 minute'
       where a.ctid = any (array(select d.ctid from ai.artifacts d where d.recall_at <= v_now and d.object_id is not null and d.recalled_until is null
                                  order by d.recall_at limit p_limit for update skip locked))
      returning a.tenant_id, a.id, a.bytes, a.sha256, a.object_id
    )
    select 'recall', d.tenant_id, d.id, d.id, d.bytes, encode(d.sha256, 'hex'), ai.object_place(d.tenant_id, d.object_id), 300000 from due d;
  if exists (select from ai.artifacts a where a.move_at <= v_now) then
    update ai.artifacts a set move_at = null
     where a.ctid = any (array(select o.ctid from ai.artifacts o
                                where o.move_at <= v_now and (o.object_id is not null or not exists (select from ai.artifact_stores s where s.is_current))
                                  for update skip locked));
    with due as (
        update ai.artifacts a set move_at = v_now + interval '10 minutes'
         where a.ctid = any (array(select d.ctid from ai.artifacts d where d.move_at <= v_now and d.status = 'ready' and d.object_id is null
                                    order by d.move_at limit p_limit for update skip locked))
        returning a.tenant_id, a.id, a.bytes, a.sha256, a.user_id
      )
      select array_agg(d.tenant_id) as tenants, array_agg(d.id) as ids, array_agg(ai.begin_object(d.tenant_id, d.user_id, d.id)) as objects into v_begun from due d;
    -- A statement of its own, which sees the objects.
    return query
      select 'move', u.tenant, u.object, a.id, a.bytes, encode(a.sha256, 'hex'), ai.object_place(u.tenant, u.object), s.upload_ms
        from unnest(v_begun.tenants, v_begun.ids, v_begun.objects) u (tenant, id, object)
        join ai.artifacts a on a.tenant_id = u.tenant and a.id = u.id
        join ai.artifact_objects o on o.tenant_id = u.tenant and o.id = u.object
        join ai.artifact_stores s on s.id = o.store_id;
  end if;
end
$$;
comment on function ai.worker_artifact_jobs(uuid, integer) is 'Objects to remove, files to fetch back and files to move into a store.';

-- A job of ai.worker_artifact_jobs() is done (delete, move, recall), or what was to be fetched is not there or not what it was (damaged). p_id: as the
-- job gave it. False: what it was for is gone meanwhile; an object that was uploaded for it is removed later.
create or replace function ai.worker_artifact_done(p_worker uuid, p_job text, p_tenant uuid, p_id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_artifact uuid;
begin
  perform ai.check_worker(p_worker);
  if p_job = 'delete' then
    delete from ai.artifact_objects o where o.tenant_id = p_tenant and o.id = p_id and o.state = 'doomed';
  elsif p_job = 'move' then
    select o.artifact_id into v_artifact from ai.artifact_objects o where o.tenant_id = p_tenant and o.id = p_id and o.state = 'uploading' for update;
    perform from ai.artifacts a
      where a.tenant_id = p_tenant and a.id = v_artifact and a.object_id is null and a.status = 'ready'
        for no key update skip locked;
    if not found then
      return false;
    end if;
    update ai.artifacts a set object_id = p_id, move_at = null where a.tenant_id = p_tenant and a.id = v_artifact;
    update ai.artifact_objects o set state = 'stored' where o.tenant_id = p_tenant and o.id = p_id;
    delete from ai.artifact_parts p where p.tenant_id = p_tenant and p.artifact_id = v_artifact;
    return true;
  elsif p_job = 'recall' then
    update ai.artifacts a set recalled_until = ai.now() + interval '1 hour', recall_at = null where a.tenant_id = p_tenant and a.id = p_id and a.recall_at is not null;
  elsif p_job = 'damaged' then
    update ai.artifacts a set damaged_at = ai.now(), recall_at = null where a.tenant_id = p_tenant and a.id = p_id and a.object_id is not null;
  else
    raise exception 'there is no such job' using errcode = 'PT400';
  end if;
  return found;
end
$$;
comment on function ai.worker_artifact_done(uuid, text, uuid, uuid) is 'A job with a store is done; false: nobody needs it any more.';

revoke execute on function ai.object_place(uuid, uuid), ai.begin_object(uuid, text, uuid), ai.worker_place_files(uuid, uuid, integer, jsonb, boolean),
  ai.worker_put_part(uuid, uuid, uuid, integer, bytea), ai.worker_part(uuid, uuid, uuid, integer), ai.keep_artifacts(jsonb), ai.sweep_artifacts(timestamptz),
  ai.worker_artifact_jobs(uuid, integer), ai.worker_artifact_done(uuid, text, uuid, uuid) from public;
grant execute on function ai.worker_place_files(uuid, uuid, integer, jsonb, boolean), ai.worker_put_part(uuid, uuid, uuid, integer, bytea),
  ai.worker_part(uuid, uuid, uuid, integer), ai.worker_artifact_jobs(uuid, integer), ai.worker_artifact_done(uuid, text, uuid, uuid) to ai_worker;

-- objects
