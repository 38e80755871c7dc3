-- Erasing what else belongs to people who are being forgotten: documents, conversations, batches, cached answers, names.

-- Erases a document, as ai.delete_document() does, or, where somebody else added what is to replace it, the revision of the person that is
-- searched until then; with p_keep only whose it was. False: somebody holds it, its collection or its vectors.
create or replace function ai.erase_document(p_tenant uuid, p_id uuid, p_user text, p_pseudonym text, p_keep boolean) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_is record;
begin
  select d.collection_id, d.user_id = p_user as whole into v_is
    from ai.documents d where d.tenant_id = p_tenant and d.id = p_id and p_user in (d.user_id, d.live_user_id) for update skip locked;
  if not found then
    return not exists (select from ai.documents d where d.tenant_id = p_tenant and d.id = p_id and p_user in (d.user_id, d.live_user_id));
  end if;
  if p_keep then
    update ai.documents d
       set user_id = case d.user_id when p_user then p_pseudonym else d.user_id end, live_user_id = case d.live_user_id when p_user then p_pseudonym else d.live_user_id end
     where d.tenant_id = p_tenant and d.id = p_id;
    return true;
  end if;
  perform from ai.collections c where c.tenant_id = p_tenant and c.id = v_is.collection_id for no key update skip locked;
  if not found then
    return false;
  end if;
  begin
    lock table ai.chunk_vectors in row exclusive mode nowait;
  exception when lock_not_available then
    return false;
  end;
  perform ai.remove_chunks(p_tenant, v_is.collection_id, array(
    select c.id from ai.chunks c where c.tenant_id = p_tenant and c.document_id = p_id and (v_is.whole or c.live)));
  if v_is.whole then
    delete from ai.documents d where d.tenant_id = p_tenant and d.id = p_id;
  else
    update ai.documents d set live_revision = null, live_user_id = null where d.tenant_id = p_tenant and d.id = p_id;
  end if;
  -- What a provider said about a text may quote it.
  update ai.collections c set next_error = c.next_error - 'message' where c.tenant_id = p_tenant and c.id = v_is.collection_id and c.next_error ? 'message';
  perform ai.finish_collection(p_tenant, v_is.collection_id, '{}');
  return true;
end
$$;
comment on function ai.erase_document(uuid, uuid, text, text, boolean) is
  'Erases what somebody who is being forgotten wrote of a document, or only whose it was; false: it is held.';

-- Erases conversations with their messages, some at a time; gives how many. What others hold is left.
create or replace function ai.erase_conversations(p_tenant uuid, p_user text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_many constant integer := 100;
  v_ids  uuid[];
begin
  v_ids := array(
    select c.id
      from ai.forgotten f
      join ai.conversations c on c.tenant_id = f.tenant_id and c.user_id = f.user_id
     where f.tenant_id = p_tenant and f.user_id = p_user and f.finished_at is null
     order by c.id limit c_many
       for update of c skip locked);
  delete from ai.conversations c where c.tenant_id = p_tenant and c.id = any (v_ids);
  delete from ai.unrecorded_answers u
   where u.id = any (array(select o.id from ai.unrecorded_answers o where o.tenant_id = p_tenant and o.conversation_id = any (v_ids) for update skip locked));
  return cardinality(v_ids);
end
$$;
comment on function ai.erase_conversations(uuid, text) is 'Deletes conversations of somebody who is being forgotten, some at a time; gives how many.';

-- Takes the name of somebody who is being forgotten off counters of limits per member, but for limits of the operator that name the person. Gives whether nothing is
-- left. Locks them, skipping what others hold.
create or replace function ai.erase_counters(p_tenant uuid, p_user text, p_pseudonym text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_ids  bigint[];
  v_free bigint[];
begin
  v_ids := array(
    select c.id from ai.limits l join ai.counters c on c.limit_id = l.id and c.tenant_id = p_tenant and c.subject = p_user
     where l.per = 'member' and (l.tenant_id = p_tenant or l.tenant_id is null) and not (l.operator and l.user_id is not null));
  v_free := array(select c.id from ai.counters c where c.id = any (v_ids) order by c.id for update skip locked);
  -- Only where there is one: an update makes all known ways void, of no row as well, and this is called again and again.
  if v_free <> '{}' then
    update ai.counters c set subject = p_pseudonym where c.id = any (v_free);
  end if;
  return v_ids <@ v_free;
end
$$;
comment on function ai.erase_counters(uuid, text, text) is 'Takes the name of somebody who is being forgotten off counters; gives whether nothing is left.';

-- Takes the name of somebody who is being forgotten off what stays: the tenant's limits (switched off; to whoever comes under the name later
-- they do not apply), counters, vectorizers, keys that the person made for others. Not by the pseudonym where the change is audited: the log would
-- say for ever who it was. The operator's limits stay as they are, name and counter: forgetting is asked by the tenant, who may not lift them. Gives whether
-- nothing is left. Locks these rows, skipping what others hold: counters only outside of apps' transactions, because settles wait for them.
create or replace function ai.erase_names(p_tenant uuid, p_user text, p_pseudonym text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_ids bigint[];
begin
  -- Only where there is one, as in ai.erase_counters().
  v_ids := array(select o.id from ai.limits o where o.tenant_id = p_tenant and o.user_id = p_user and not o.operator for update skip locked);
  if v_ids <> '{}' then
    update ai.limits l set user_id = 'forgotten', enabled = false where l.id = any (v_ids);
  end if;
  update ai.vectorizers z set user_id = p_pseudonym
   where z.id = any (array(select o.id from ai.vectorizers o where o.tenant_id = p_tenant and o.user_id = p_user for update skip locked));
  update ai.api_keys k set created_by = null
   where k.id = any (array(select o.id from ai.api_keys o where o.tenant_id = p_tenant and o.created_by = p_user for update skip locked));
  delete from ai.cache_spaces s
   where s.ctid = any (array(select o.ctid from ai.cache_spaces o
                              where o.tenant_id = p_tenant and o.user_id = p_user
                                and not exists (select from ai.cache_questions q where q.tenant_id = o.tenant_id and q.space = o.space) for update skip locked));
  delete from ai.known_ways w
   where w.id = any (array(select o.id from ai.known_ways o where o.tenant_id = p_tenant and o.user_id = p_user for update skip locked));
  return ai.erase_counters(p_tenant, p_user, p_pseudonym)
     and not exists (select from ai.limits l where l.tenant_id = p_tenant and l.user_id = p_user and not l.operator)
     and not exists (select from ai.vectorizers z where z.tenant_id = p_tenant and z.user_id = p_user)
     and not exists (select from ai.api_keys k where k.tenant_id = p_tenant and k.created_by = p_user)
     and not exists (select from ai.cache_spaces s where s.tenant_id = p_tenant and s.user_id = p_user)
     and not exists (select from ai.known_ways w where w.tenant_id = p_tenant and w.user_id = p_user);
end
$$;
comment on function ai.erase_names(uuid, text, text) is 'Takes the name of somebody who is being forgotten off what stays; gives whether nothing is left.';

-- Erases rows of these people, by their keys: p_stage says which table (ai.forget_step()). What cannot be erased now is noted in
-- ai.forgotten_left, and taken off it once it is. Gives how many of what, by user.
create or replace function ai.erase_some(p_tenant uuid, p_users text[], p_stage smallint, p_keys text[], p_in_app boolean)
returns table (user_id text, what text, erased bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_what text := (array['generation', 'document', 'batch', null, 'cached answer'])[p_stage + 1];
  v_left text[] := '{}';
  v_keys uuid[];
  v_ids  uuid[];
  v_one  record;
begin
  if coalesce(cardinality(p_keys), 0) = 0 then
    return;
  end if;
  if p_stage < 4 then
    v_keys := p_keys;  -- once, and not for each row
  end if;
  if p_stage = 0 then
    v_ids := array(
      select g.id
        from unnest(array_fill(p_tenant, array[cardinality(v_keys)]), v_keys) u (tenant_id, id)
        join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.user_id = any (p_users)
       where (select f.pseudonym from ai.forgotten f where f.tenant_id = g.tenant_id and f.user_id = g.user_id) is not null);
    perform ai.stop_generations(p_tenant, array(
      select g.id from unnest(array_fill(p_tenant, array[cardinality(v_ids)]), v_ids) u (tenant_id, id) join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.finished_at is null), p_in_app);
    return query select e.user_id, e.what, e.erased from ai.erase_generations(p_tenant, v_ids, p_in_app) e;
    v_left := array(
      select g.id::text from unnest(array_fill(p_tenant, array[cardinality(v_ids)]), v_ids) u (tenant_id, id) join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.user_id = any (p_users));
  elsif p_stage = 1 then
    for v_one in
      select d.id, f.user_id, f.pseudonym, f.keep_documents
        from ai.documents d
        join ai.forgotten f on f.tenant_id = d.tenant_id and f.user_id in (d.user_id, d.live_user_id)
       where d.tenant_id = p_tenant and d.id = any (v_keys) and f.user_id = any (p_users)
       order by d.id
    loop
      if ai.erase_document(p_tenant, v_one.id, v_one.user_id, v_one.pseudonym, v_one.keep_documents) then
        return query select v_one.user_id, 'documents', 1::bigint;
      else
        v_left := v_left || v_one.id::text;
      end if;
    end loop;
  elsif p_stage = 2 then
    return query
      with held as materialized (
        select b.id, b.user_id, f.pseudonym
          from ai.batches b
          join ai.forgotten f on f.tenant_id = b.tenant_id and f.user_id = b.user_id
         where b.tenant_id = p_tenant and b.id = any (v_keys) and b.user_id = any (p_users)
         order by b.id
           for no key update of b skip locked
      ), wiped as (
        update ai.batches b set user_id = h.pseudonym, name = 'forgotten', metadata = null from held h where b.tenant_id = p_tenant and b.id = h.id
      )
      select h.user_id, 'batches', count(*) from held h group by 1;
    v_left := array(
      select b.id::text
        from ai.batches b
        join ai.forgotten f on f.tenant_id = b.tenant_id and f.user_id = b.user_id
       where b.tenant_id = p_tenant and b.id = any (v_keys) and b.user_id = any (p_users));
  elsif p_stage = 3 then
    -- Most went with their generations; these are of generations that retention has dropped.
    return query
      with calls as (
        update ai.llm_calls c set user_id = (select f.pseudonym from ai.forgotten f where f.tenant_id = c.tenant_id and f.user_id = c.user_id), request_id = null, error_code = null
          from unnest(array_fill(p_tenant, array[cardinality(v_keys)]), v_keys) u (tenant_id, id)
         where c.tenant_id = u.tenant_id and c.generation_id = u.id and c.user_id = any (p_users)
           and (select f.pseudonym from ai.forgotten f where f.tenant_id = c.tenant_id and f.user_id = c.user_id) is not null
           and (select g.id from ai.generations g where g.tenant_id = c.tenant_id and g.id = c.generation_id) is null
        returning c.user_id
      )
      select f.user_id, 'calls', count(*) from calls c join ai.forgotten f on f.tenant_id = p_tenant and f.pseudonym = c.user_id group by 1;
  else
    -- Most went with their generations; so with these.
    return query
      with held as materialized (
        select e.key, e.user_id
          from ai.cache_entries e
          join ai.forgotten f on f.tenant_id = e.tenant_id and f.user_id = e.user_id
         where e.tenant_id = p_tenant and e.key = any (array(select decode(k, 'hex') from unnest(p_keys) k)) and e.user_id = any (p_users)
         order by e.key
           for update of e skip locked
      ), gone as (
        delete from ai.cache_entries e using held h where e.tenant_id = p_tenant and e.key = h.key
      )
      select h.user_id, 'cached answers', count(*) from held h group by 1;
    v_left := array(
      select encode(e.key, 'hex')
        from ai.cache_entries e
        join ai.forgotten f on f.tenant_id = e.tenant_id and f.user_id = e.user_id
       where e.tenant_id = p_tenant and e.key = any (array(select decode(k, 'hex') from unnest(p_keys) k)) and e.user_id = any (p_users));
  end if;

  delete from ai.forgotten_left l where l.tenant_id = p_tenant and l.what = v_what and l.id = any (p_keys) and l.user_id = any (p_users) and l.id <> all (v_left);
  insert into ai.forgotten_left (tenant_id, what, id, user_id)
  select p_tenant, v_what, k, u
    from unnest(v_left) k
   cross join lateral unnest(
     case v_what when 'generation' then array(select g.user_id from ai.generations g where g.tenant_id = p_tenant and g.id = k::uuid)
                 when 'document' then (select array[d.user_id, d.live_user_id] from ai.documents d where d.tenant_id = p_tenant and d.id = k::uuid)
                 when 'batch' then array(select b.user_id from ai.batches b where b.tenant_id = p_tenant and b.id = k::uuid)
                 else array(select e.user_id from ai.cache_entries e where e.tenant_id = p_tenant and e.key = decode(k, 'hex')) end) u
   where u = any (p_users)
  on conflict do nothing;
end
$$;
comment on function ai.erase_some(uuid, text[], smallint, text[], boolean) is 'Erases rows of people who are being forgotten, by their keys; gives how many of what, by user.';

revoke execute on function ai.erase_document(uuid, uuid, text, text, boolean), ai.erase_conversations(uuid, text), ai.erase_counters(uuid, text, text),
  ai.erase_names(uuid, text, text), ai.erase_some(uuid, text[], smallint, text[], boolean) from public;
