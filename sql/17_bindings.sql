-- Bindings of login roles carry a copy of what their member is and may do, and whether a plain prompt of theirs is to be looked
-- at any further, because that is asked for several times a statement, or for each row. The copies are right at every commit, at
-- every isolation level: whoever changes a binding, or what is copied into one, first takes a turn by updating the tenant's row of
-- ai.binding_turns, which the others wait for. Who looks after that sees what they committed, or, with a snapshot of the whole
-- transaction, fails (40001).
--
-- Locks, until the transaction ends, after the row that was changed: the row for the shared roles (shared, or, by who changes a shared
-- role, alone), then the tenant's. Changes of members' role or state, of roles, of the tenant's state and of bindings go one after
-- the other within a tenant: what one tenant leaves open holds up no other, only the operator who changes a shared role.

-- p_tenant null: a shared role changes.
create or replace function ai.take_turn(p_tenant uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_tenant is null then
    update ai.binding_turns t set turn = t.turn + 1 where t.scope = 'roles';
  else
    perform from ai.binding_turns t where t.scope = 'roles' for share;
    insert into ai.binding_turns as t (scope) values (p_tenant::text) on conflict (scope) do update set turn = t.turn + 1;
  end if;
end
$$;
comment on function ai.take_turn(uuid) is 'Makes who changes bindings of a tenant, or what they copy, wait for each other.';

-- For what all tenants share. Changed at READ COMMITTED: with an older snapshot bindings that were made meanwhile would be missed. Raises PT400.
create or replace function ai.take_turn_of_all() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'this needs isolation level READ COMMITTED' using errcode = 'PT400', detail = 'Who was bound since the transaction began would be missed.';
  end if;
  perform ai.take_turn(null);
end
$$;
comment on function ai.take_turn_of_all() is 'Makes a change of what all tenants share wait for all who change bindings.';

-- p_permissions and p_enabled are those of a member of p_tenant. Limits are no matter: they are looked at after the insert.
create or replace function ai.asks_plainly(p_tenant uuid, p_permissions text[], p_enabled boolean) returns boolean
language sql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select p_enabled and p_permissions && '{inference:execute,*}'
         and not exists (select from ai.policies_in_use p
                          where p.name <> 'limits' and (p.scope = p_tenant or p.scope = '00000000-0000-0000-0000-000000000000'))
$$;
comment on function ai.asks_plainly(uuid, text[], boolean) is 'Whether such a member may ask, and no guardrail, cache or rule concerns the tenant.';

-- Trigger BEFORE INSERT OR UPDATE, each row of ai.role_bindings: whatever is written, the copy is the truth.
create or replace function ai.copy_member() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform ai.take_turn(new.tenant_id);
  select m.role, coalesce(ai.role_permissions(m.tenant_id, m.role), '{}'), m.enabled and t.enabled
    into new.member_role, new.member_permissions, new.member_enabled
    from ai.members m join ai.tenants t on t.id = m.tenant_id
   where m.tenant_id = new.tenant_id and m.user_id = new.user_id;
  new.member_enabled := coalesce(new.member_enabled, false);  -- no such member: the foreign key says so
  new.asks_plainly := ai.asks_plainly(new.tenant_id, new.member_permissions, new.member_enabled);
  return new;
end
$$;
comment on function ai.copy_member() is 'Trigger: copies a member''s role, permissions and state into its binding, and how it asks.';

-- Triggers AFTER, of what is copied: they touch the bindings, which copy again.
create or replace function ai.copy_members() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select n.tenant_id, n.user_id, n.role, n.enabled from changed n except all select o.tenant_id, o.user_id, o.role, o.enabled from was o) then
    perform ai.take_turn(d.tenant_id) from (select distinct n.tenant_id from changed n order by 1) d;
    update ai.role_bindings b set member_enabled = b.member_enabled from changed n where b.tenant_id = n.tenant_id and b.user_id = n.user_id;
  end if;
  return null;
end
$$;
comment on function ai.copy_members() is 'Trigger: members were changed.';

create or replace function ai.copy_tenant() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform ai.take_turn(new.id);
  update ai.role_bindings b set member_enabled = b.member_enabled where b.tenant_id = new.id;
  return null;
end
$$;
comment on function ai.copy_tenant() is 'Trigger: a tenant was switched on or off.';

-- Raises PT400 for a shared role at another isolation level than READ COMMITTED.
create or replace function ai.copy_role() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op <> 'INSERT' and old.tenant_id is null or tg_op <> 'DELETE' and new.tenant_id is null then
    perform ai.take_turn_of_all();
  end if;
  perform ai.take_turn(d.tenant_id)
     from (select distinct u.tenant_id
             from (select case when tg_op <> 'INSERT' then old.tenant_id end as tenant_id union all select case when tg_op <> 'DELETE' then new.tenant_id end) u
            where u.tenant_id is not null order by 1) d;
  update ai.role_bindings b set member_enabled = b.member_enabled
   where case when tg_op <> 'INSERT' then b.member_role = old.name and (old.tenant_id is null or b.tenant_id = old.tenant_id) else false end
      or case when tg_op <> 'DELETE' then b.member_role = new.name and (new.tenant_id is null or b.tenant_id = new.tenant_id) else false end;
  return null;
end
$$;
comment on function ai.copy_role() is 'Trigger: a role was made, changed or dropped.';

-- What changes where triggers do not fire (a restore of some rows, session_replication_role) is put right by this, and by
-- every `martlet migrate` (ai.refresh_policies()). Gives how many copies were wrong.
create or replace function ai.refresh_bindings() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  perform ai.take_turn(null);
  update ai.role_bindings b set member_enabled = b.member_enabled
    from (select m.tenant_id, m.user_id, m.role, coalesce(ai.role_permissions(m.tenant_id, m.role), '{}') as permissions, m.enabled and t.enabled as enabled
            from ai.members m join ai.tenants t on t.id = m.tenant_id) m
   where m.tenant_id = b.tenant_id and m.user_id = b.user_id
     and (b.member_role, b.member_permissions, b.member_enabled, b.asks_plainly)
         is distinct from (m.role, m.permissions, m.enabled, ai.asks_plainly(m.tenant_id, m.permissions, m.enabled));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.refresh_bindings() is 'Copies members into their bindings where that differs; gives how many. For the operator.';

-- A gateway's role must not be a member by itself: its sessions would act as that member whenever claims are missing.
-- Raises PT409. Takes a turn, so that no other session registers the role the other way at this moment.
create or replace function ai.keep_roles_apart() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update ai.binding_turns t set turn = t.turn + 1 where t.scope = 'logins';
  if exists (select from ai.role_bindings b join ai.authenticators a on a.role_name = b.role_name where b.role_name = new.role_name) then
    raise exception 'role % cannot be both bound to a member and an authenticator', new.role_name
      using errcode = 'PT409', hint = 'Use two login roles.';
  end if;
  return null;
end
$$;
comment on function ai.keep_roles_apart() is 'Trigger: no role is both in ai.role_bindings and in ai.authenticators.';

revoke execute on function ai.take_turn(uuid), ai.take_turn_of_all(), ai.asks_plainly(uuid, text[], boolean), ai.copy_member(), ai.copy_members(), ai.copy_tenant(), ai.copy_role(), ai.refresh_bindings(), ai.keep_roles_apart()
  from public;

-- objects

create or replace trigger copy_member before insert or update on ai.role_bindings
  for each row execute function ai.copy_member();
create or replace trigger copy_members after update on ai.members
  referencing old table as was new table as changed for each statement execute function ai.copy_members();
create or replace trigger copy_tenant after update of enabled on ai.tenants
  for each row when (old.enabled is distinct from new.enabled) execute function ai.copy_tenant();
create or replace trigger copy_role after insert or update or delete on ai.roles
  for each row execute function ai.copy_role();

create or replace trigger keep_roles_apart after insert or update of role_name on ai.role_bindings
  for each row execute function ai.keep_roles_apart();
create or replace trigger keep_roles_apart after insert or update on ai.authenticators
  for each row execute function ai.keep_roles_apart();
