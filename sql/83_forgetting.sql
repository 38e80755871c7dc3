-- Forgetting a person: ai.forget_user() ends the membership and erases what it gets to; ai.continue_forgetting(), a chore of
-- maintenance, erases the rest, which may be a million generations, some at a time.
--
-- A mark (ai.forgotten) goes through the tenant's tables in the order of their keys: generations, documents, batches, calls, cached
-- answers. None of them needs an index by user for this, which would cost every insert. Marks of one tenant that have come equally
-- far go on together, so that a thousand people cost one walk and not a thousand.
--
-- What was not committed when the mark passed is not missed: the transactions that are open when the mark can first be seen are
-- noted, and once all of them have ended the mark goes around again: from where it is then to the end, and from the beginning to
-- there. What cannot be erased when it is come by, because it runs or is held, is in ai.forgotten_left, and is tried each time.

-- Ends a membership: its sessions, API keys and bindings, and itself. Gives how many keys and bindings those were. Raises PT403 where the member may do
-- what the caller may not, PT409 where nobody would be left who may do everything. Locks: the tenant, the member.
create or replace function ai.end_membership(p_tenant uuid, p_user text, p_permissions text[]) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_had   boolean;
  v_role  text;
  v_keys  bigint;
  v_bound bigint;
begin
  perform from ai.tenants t where t.id = p_tenant for no key update;
  v_had := p_permissions is not null and ai.has_admin(p_tenant);
  select m.role into v_role from ai.members m where m.tenant_id = p_tenant and m.user_id = p_user for update;
  if p_permissions is not null then
    perform ai.check_covers(p_permissions, ai.role_permissions(p_tenant, v_role), format('the member %s', p_user));
  end if;
  update ai.api_keys k set replaces = null
   where k.replaces in (select o.id from ai.api_keys o where o.tenant_id = p_tenant and o.user_id = p_user) and (k.tenant_id, k.user_id) <> (p_tenant, p_user);
  delete from ai.api_keys k where k.tenant_id = p_tenant and k.user_id = p_user;  -- and their sessions
  get diagnostics v_keys = row_count;
  delete from ai.role_bindings b where b.tenant_id = p_tenant and b.user_id = p_user;
  get diagnostics v_bound = row_count;
  delete from ai.members m where m.tenant_id = p_tenant and m.user_id = p_user;
  perform ai.check_admin_left(p_tenant, v_had);
  return v_keys + v_bound;
end
$$;
comment on function ai.end_membership(uuid, text, text[]) is 'Ends a membership with its API keys, sessions and bindings. Internal: ai.forget_user().';

-- Erases a person's content in the own tenant, for who has the permission person:forget; the owner of the schema names any tenant. Not to be undone. The membership
-- ends at once, what is queued is cancelled, what runs is aborted; erases for up to two seconds, and workers go on with the rest. Called
-- again it goes on itself, and says how far it is: erased so far; remaining is what is known to be left (it runs, or somebody holds it), null
-- where that is not known yet, and 0 once all is gone. Who is no member may be forgotten, too: former ones have content.
-- Raises PT400, PT401, PT403, PT404 (tenant), PT409 (the last who may do everything). Locks: the tenant, the mark (waits for who forgets the same
-- person), the member, then as ai.forget_step().
create or replace function ai.forget_user(p_user_id text, p_tenant_id uuid default null, p_keep_documents boolean default false)
returns table (what text, erased bigint, remaining bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_enough    constant interval := '2 seconds';
  c_in_app    constant smallint := 4;  -- cached answers are left to the chore: settles wait for them
  v_started   constant timestamptz := clock_timestamp();
  v_tenant    uuid := p_tenant_id;
  v_may       text[];  -- null: the owner of the schema
  v_me        record;
  v_is_member boolean;
  v_mark      record;
begin
  if p_user_id is null or length(p_user_id) not between 1 and 200 or p_keep_documents is null then
    raise exception 'a user_id has 1 to 200 characters' using errcode = 'PT400';
  elsif current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'this needs isolation level READ COMMITTED' using errcode = 'PT400', detail = 'What others wrote since the transaction began would be missed.';
  end if;
  if p_tenant_id is null or not ai.acts_as_owner() then
    select * into v_me from ai.require('person:forget');
    if p_tenant_id <> v_me.tenant_id then
      raise exception 'only the owner of the schema ai names another tenant' using errcode = 'PT403';
    end if;
    v_tenant := v_me.tenant_id;
    v_may := v_me.permissions;
  end if;
  perform from ai.tenants t where t.id = v_tenant for no key update;
  if not found then
    raise exception 'there is no such tenant' using errcode = 'PT404';
  end if;

  insert into ai.forgotten (tenant_id, user_id, pseudonym, keep_documents, asked_at, worked_at)
  values (v_tenant, p_user_id, 'forgotten-' || replace(gen_random_uuid()::text, '-', ''), p_keep_documents, ai.now(), clock_timestamp())
  on conflict on constraint forgotten_pkey do nothing;
  select f.* into v_mark from ai.forgotten f where f.tenant_id = v_tenant and f.user_id = p_user_id for update;
  v_is_member := exists (select from ai.members m where m.tenant_id = v_tenant and m.user_id = p_user_id);
  if v_is_member then
    -- From the beginning, also for who was forgotten before and came back.
    update ai.forgotten f
       set pseudonym = coalesce(f.pseudonym, 'forgotten-' || replace(gen_random_uuid()::text, '-', '')), keep_documents = p_keep_documents,
           open = null, stage = 0, place = '', goal_stage = null, goal_place = null, around = false,
           erased = ai.added_up(case when f.finished_at is null then f.erased else '{}' end,
                                jsonb_build_object('memberships', 1, 'keys and bindings', ai.end_membership(v_tenant, p_user_id, v_may))),
           asked_at = ai.now(), finished_at = null
     where f.tenant_id = v_tenant and f.user_id = p_user_id;
  end if;
  if v_is_member or v_mark.erased = '{}' and v_mark.finished_at is null and v_mark.asked_at = ai.now() then
    perform ai.audit(v_tenant, 'forget', 'person', jsonb_build_object('user_id', p_user_id), null, jsonb_build_object('keep_documents', p_keep_documents));
  end if;

  if v_is_member or v_mark.finished_at is null then
    perform ai.forget_left(v_tenant, p_user_id, true);
    loop
      select f.* into v_mark from ai.forgotten f where f.tenant_id = v_tenant and f.user_id = p_user_id;
      exit when v_mark.stage >= c_in_app or clock_timestamp() > v_started + c_enough;
      perform ai.forget_step(v_tenant, array[p_user_id], v_mark.stage, v_mark.place, null, true);
    end loop;
  end if;

  return query
    select w.what, coalesce((v_mark.erased ->> w.what)::bigint, 0),
           case when v_mark.finished_at is not null then 0
                else nullif((select count(*) from ai.forgotten_left l where l.tenant_id = v_tenant and l.user_id = p_user_id and l.what || 's' = w.what)
                            + (select count(*) from ai.conversations c
                                where w.what = 'conversations' and c.tenant_id = v_tenant and c.user_id = p_user_id)
                            + (select count(*) from ai.artifacts a
                                where w.what = 'artifacts' and a.tenant_id = v_tenant and a.user_id = p_user_id)
                            + (select count(*) from ai.artifact_objects o
                                where w.what = 'artifacts' and o.tenant_id = v_tenant and o.user_id = p_user_id
                                  and not exists (select from ai.artifacts a where a.tenant_id = o.tenant_id and a.id = o.artifact_id)), 0) end
      from unnest(array['memberships', 'keys and bindings', 'generations', 'calls', 'sealed calls', 'conversations', 'artifacts', 'documents', 'batches', 'cached answers'])
           with ordinality w (what, n)
     order by w.n;
end
$$;
comment on function ai.forget_user(text, uuid, boolean) is
  'Erases a person''s content and ends the membership; what is not done at once, workers go on with. Gives how many of what were erased, and what is known to be left (null: not known yet, 0: nothing).';

-- Trigger AFTER INSERT OR UPDATE of the key, each row: nobody becomes a member under the name of somebody who is being forgotten. What that person
-- left is found by the name until it is erased: policies, caches and files would give it to whoever has the name. Raises PT409. Locks: the tenant, shared.
create or replace function ai.refuse_forgotten() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Whoever is just being forgotten holds the tenant's row: so the mark is seen here, or the member there.
  perform from ai.tenants t where t.id = new.tenant_id for share;
  if exists (select from ai.forgotten f where f.tenant_id = new.tenant_id and f.user_id = new.user_id and f.finished_at is null) then
    raise exception '% is still being forgotten', new.user_id
      using errcode = 'PT409', detail = 'Not all that the person left is erased yet, and it goes by the name.',
            hint = 'Add the member once ai.forgotten.finished_at is set, or under another name.';
  end if;
  return null;
end
$$;
comment on function ai.refuse_forgotten() is 'Trigger: a name is free again once its former owner is forgotten.';

revoke execute on function ai.end_membership(uuid, text, text[]), ai.forget_user(text, uuid, boolean), ai.refuse_forgotten() from public;
grant execute on function ai.forget_user(text, uuid, boolean) to ai_user;

-- objects

create or replace trigger refuse_forgotten after insert or update of tenant_id, user_id on ai.members
  for each row execute function ai.refuse_forgotten();

drop policy if exists visible on ai.forgotten;
create policy visible on ai.forgotten for select to ai_user using (tenant_id = (select ai.tenant_for('person:forget')));
grant select (tenant_id, user_id, keep_documents, asked_at, erased, finished_at) on ai.forgotten to ai_user;
