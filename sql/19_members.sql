-- Members as their tenant keeps them. They are added and switched off; what deletes one is ai.forget_user(), because the books name them.

-- Trigger BEFORE INSERT OR UPDATE of the role, each row. Raises PT400 for a role that the tenant has not. Shares the role's row, so
-- that it is not dropped meanwhile.
create or replace function ai.check_member() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from ai.roles r
    where r.name = new.role and (r.tenant_id = new.tenant_id or r.tenant_id is null) order by r.tenant_id nulls last limit 1 for key share;
  if not found then
    raise exception 'there is no role %', coalesce(left(new.role, 100), 'null') using errcode = 'PT400', hint = 'select name, permissions from ai.roles;';
  end if;
  return new;
end
$$;
comment on function ai.check_member() is 'Trigger: the role of a member is one of its tenant, or a shared one.';

-- Adds a member to the caller's tenant. Its JWTs must name the tenant (ai.members.added_by_tenant). Raises PT400, PT401, PT403 for a role with more
-- than the caller has, PT409 for who is a member already, also a switched off one, or is still being forgotten.
create or replace function ai.add_member(user_id text, role text default 'user') returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_me record;
begin
  select * into v_me from ai.member_keeper();
  if user_id is null or length(user_id) not between 1 and 200 or user_id ~ '[[:cntrl:]]' then
    raise exception 'a user_id has 1 to 200 characters, none of them a control character' using errcode = 'PT400';
  end if;
  perform ai.check_covers(v_me.permissions, ai.role_permissions(v_me.tenant_id, role), format('the role %s', left(role, 100)));
  insert into ai.members (tenant_id, user_id, role, added_by_tenant) values (v_me.tenant_id, user_id, role, true)
  on conflict on constraint members_pkey do nothing;
  if not found then
    raise exception '% is a member already', user_id using errcode = 'PT409', hint = 'ai.set_member_role(), ai.enable_member().';
  end if;
end
$$;
comment on function ai.add_member(text, text) is 'Adds a member to the own tenant: select ai.add_member(''eve'', ''developer'').';

-- Changes a member of the caller's tenant; null: stays as it is. Raises PT400, PT401, PT403 where the member has more than the caller, or would
-- get more, PT404, PT409 where it is the last who may do everything.
create or replace function ai.change_member(p_user text, p_role text, p_enabled boolean) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me     record;
  v_had    boolean;
  v_member record;
begin
  select * into v_me from ai.member_keeper();
  v_had := ai.has_admin(v_me.tenant_id);
  select m.role into v_member from ai.members m where m.tenant_id = v_me.tenant_id and m.user_id = p_user for no key update;
  if not found then
    raise exception 'there is no member % in this tenant', coalesce(left(p_user, 200), 'null') using errcode = 'PT404', hint = 'select user_id, role from ai.members;';
  end if;
  perform ai.check_covers(v_me.permissions, ai.role_permissions(v_me.tenant_id, v_member.role), format('the member %s', p_user));
  perform ai.check_covers(v_me.permissions, ai.role_permissions(v_me.tenant_id, p_role), format('the role %s', left(p_role, 100)));
  update ai.members m set role = coalesce(p_role, m.role), enabled = coalesce(p_enabled, m.enabled)
   where m.tenant_id = v_me.tenant_id and m.user_id = p_user;
  perform ai.check_admin_left(v_me.tenant_id, v_had);
end
$$;
comment on function ai.change_member(text, text, boolean) is 'Changes role and state of a member of the own tenant. Internal.';

create or replace function ai.set_member_role(user_id text, role text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if set_member_role.role is null then
    raise exception 'a member has a role' using errcode = 'PT400';
  end if;
  perform ai.change_member(set_member_role.user_id, set_member_role.role, null);
end
$$;
comment on function ai.set_member_role(text, text) is 'Gives a member of the own tenant another role, which counts at once.';

create or replace function ai.disable_member(user_id text) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select ai.change_member(disable_member.user_id, null, false) $$;
comment on function ai.disable_member(text) is 'Switches a member of the own tenant off: its sessions are nobody''s from now on, what it queued ends as rejected.';

create or replace function ai.enable_member(user_id text) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select ai.change_member(enable_member.user_id, null, true) $$;
comment on function ai.enable_member(text) is 'Switches a member of the own tenant on again.';

revoke execute on function ai.check_member(), ai.add_member(text, text), ai.change_member(text, text, boolean), ai.set_member_role(text, text),
  ai.disable_member(text), ai.enable_member(text) from public;
grant execute on function ai.add_member(text, text), ai.set_member_role(text, text), ai.disable_member(text), ai.enable_member(text) to ai_user;

-- objects

create or replace trigger check_member before insert or update of tenant_id, role on ai.members
  for each row execute function ai.check_member();

drop policy if exists own on ai.members;
create policy own on ai.members for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.may('member:read') or ai.may('member:write'))));
grant select on ai.members to ai_user;
