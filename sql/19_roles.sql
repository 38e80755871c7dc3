-- Roles: what is a valid one, and how a tenant makes its own.
--
-- Nobody gives what it has not. An actor without * touches no role and no member that has a permission which the actor lacks,
-- whether to widen or to narrow it: else the one who may manage members could take admins their rights.
--
-- Locks, in this order: the tenant's row (against other changes of its members and roles by members), the member's, the role's. Who gives a member
-- a role shares the role's row (for key share), so that it cannot be dropped meanwhile.

-- Trigger BEFORE INSERT OR UPDATE OR DELETE, each row. Raises PT400 for a permission that does not exist, PT409 for another
-- name, tenant or end of a role that members have.
create or replace function ai.check_role() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_wrong text;
begin
  if tg_op <> 'DELETE' then
    if new.permissions is null or array_ndims(new.permissions) > 1 or cardinality(new.permissions) > 200 then
      raise exception 'permissions are a list of at most 200' using errcode = 'PT400';
    end if;
    select coalesce(p, 'null') into v_wrong from unnest(new.permissions) p
     where p is null or p <> '*' and not exists (select from ai.permissions k where k.name = p) limit 1;
    if found then
      raise exception 'there is no permission %', left(v_wrong, 100) using errcode = 'PT400', hint = 'select name, description from ai.permissions;';
    end if;
    new.permissions := array(select distinct p from unnest(new.permissions) p order by p);
  end if;
  if tg_op = 'DELETE' or tg_op = 'UPDATE' and (new.tenant_id, new.name) is distinct from (old.tenant_id, old.name) then
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
      raise exception 'this needs isolation level READ COMMITTED' using errcode = 'PT400', detail = 'A member that was given the role meanwhile would not be seen.';
    end if;
    if exists (select from ai.members m
                where m.role = old.name and (old.tenant_id is null or m.tenant_id = old.tenant_id)
                  and not exists (select from ai.roles r where r.name = old.name and r.id <> old.id and (r.tenant_id is null or r.tenant_id = m.tenant_id))) then
      raise exception 'members have the role %', old.name using errcode = 'PT409', hint = 'Give them another one before: ai.set_member_role().';
    end if;
  end if;
  return case when tg_op = 'DELETE' then old else new end;
end
$$;
comment on function ai.check_role() is 'Trigger: permissions of a role exist; a role that members have keeps its name.';

-- For changes of members and roles by a member of the tenant: who it is. Locks the tenant's row until the transaction ends,
-- so that what one change has made sure of no other undoes. Raises PT400, PT401, PT403.
create or replace function ai.member_keeper(out tenant_id uuid, out user_id text, out permissions text[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  select r.tenant_id, r.user_id, r.permissions into member_keeper.tenant_id, member_keeper.user_id, member_keeper.permissions from ai.require('member:write') r;
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'this needs isolation level READ COMMITTED' using errcode = 'PT400', detail = 'What others changed since the transaction began would be missed.';
  end if;
  perform from ai.tenants t where t.id = member_keeper.tenant_id for no key update;
end
$$;
comment on function ai.member_keeper() is 'Tenant, user and permissions of this session, if it may change members and roles; holds the tenant''s row.';

-- Raises PT403 unless the actor has every permission of a role, * included.
create or replace function ai.check_covers(p_held text[], p_given text[], p_what text) returns void
language plpgsql immutable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if not ai.covers(p_held, coalesce(p_given, '{}')) then
    raise exception '% has permissions that this session has not', p_what
      using errcode = 'PT403', detail = 'Missing: ' || array_to_string(array(select p from unnest(p_given) p where p <> all (p_held)), ', ') || '.',
            hint = 'Nobody gives, takes or changes more than it has itself.';
  end if;
end
$$;
comment on function ai.check_covers(text[], text[], text) is 'Raises PT403 unless the one set of permissions holds the other.';

-- Whether somebody in the tenant may do everything.
create or replace function ai.has_admin(p_tenant uuid) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from ai.roles r
      join ai.members m on m.tenant_id = p_tenant and m.role = r.name and m.enabled
     where '*' = any (r.permissions)
       and (r.tenant_id = p_tenant or r.tenant_id is null and not exists (select from ai.roles o where o.tenant_id = p_tenant and o.name = r.name)))
$$;
comment on function ai.has_admin(uuid) is 'Whether an enabled member of the tenant has a role with *.';

-- A tenant that has somebody who may do everything does not lose the last one by what its members do; the operator is free to.
create or replace function ai.check_admin_left(p_tenant uuid, p_had boolean) returns void
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_had and not ai.has_admin(p_tenant) then
    raise exception 'nobody would be left who may do everything in this tenant'
      using errcode = 'PT409', hint = 'Give another member the role admin before.';
  end if;
end
$$;
comment on function ai.check_admin_left(uuid, boolean) is 'Raises PT409 where a tenant that had an admin has none.';

-- Makes a role of the caller's tenant, or changes it. A name that is shared gets another meaning in this tenant, at once for
-- all members that have it. Raises PT400, PT401, PT403, PT409.
create or replace function ai.set_role(name text, permissions text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me  record;
  v_had boolean;
begin
  select * into v_me from ai.member_keeper();
  v_had := ai.has_admin(v_me.tenant_id);
  if name is null or name !~ '^[a-z][a-z0-9_-]{0,62}$' then
    raise exception 'the name of a role has small letters, digits, _ and -, begins with a letter and has at most 63 characters' using errcode = 'PT400';
  elsif permissions is null then
    raise exception 'permissions are a list' using errcode = 'PT400', hint = 'select name, description from ai.permissions;';
  end if;
  perform from ai.roles r where r.tenant_id = v_me.tenant_id and r.name = set_role.name for no key update;
  if not found and (select count(*) from ai.roles r where r.tenant_id = v_me.tenant_id) >= 100 then
    raise exception 'a tenant has at most 100 roles of its own' using errcode = 'PT409';
  end if;
  perform ai.check_covers(v_me.permissions, ai.role_permissions(v_me.tenant_id, name), format('the role %s', name));
  perform ai.check_covers(v_me.permissions, permissions, 'what the role would be');
  insert into ai.roles as r (tenant_id, name, permissions) values (v_me.tenant_id, name, permissions)
  on conflict on constraint roles_key do update set permissions = excluded.permissions;
  perform ai.check_admin_left(v_me.tenant_id, v_had);
end
$$;
comment on function ai.set_role(text, text[]) is 'Makes or changes a role of the own tenant: select ai.set_role(''auditor'', array[''audit:read'', ''usage:read'']).';

-- Raises PT400, PT401, PT403, PT404, and PT409 where members have it and no shared role has its name.
create or replace function ai.drop_role(name text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me   record;
  v_had  boolean;
  v_role record;
begin
  select * into v_me from ai.member_keeper();
  v_had := ai.has_admin(v_me.tenant_id);
  select r.id, r.permissions into v_role from ai.roles r where r.tenant_id = v_me.tenant_id and r.name = drop_role.name for update;
  if not found then
    raise exception 'this tenant has no role % of its own', left(name, 100)
      using errcode = 'PT404', hint = 'select name, permissions from ai.roles where tenant_id is not null;';
  end if;
  perform ai.check_covers(v_me.permissions, v_role.permissions, format('the role %s', name));
  -- Its members go back to the shared role of this name.
  perform ai.check_covers(v_me.permissions, (select r.permissions from ai.roles r where r.tenant_id is null and r.name = drop_role.name),
                          format('the shared role %s', name));
  delete from ai.roles r where r.id = v_role.id;
  perform ai.check_admin_left(v_me.tenant_id, v_had);
end
$$;
comment on function ai.drop_role(text) is 'Drops a role of the own tenant that no member has, or that hides a shared one.';

revoke execute on function ai.check_role(), ai.member_keeper(), ai.check_covers(text[], text[], text), ai.has_admin(uuid), ai.check_admin_left(uuid, boolean),
  ai.set_role(text, text[]), ai.drop_role(text) from public;
grant execute on function ai.set_role(text, text[]), ai.drop_role(text) to ai_user;

-- objects

create or replace trigger check_role before insert or update or delete on ai.roles
  for each row execute function ai.check_role();

drop policy if exists visible on ai.roles;
create policy visible on ai.roles for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('member:read') or ai.may('member:write')));
grant select on ai.roles to ai_user;
