-- Asking for a permission: in policies ai.may() and ai.tenant_for(), in functions ai.require().

-- In policies of rows that always belong to a tenant: `tenant_id = (select ai.tenant_for('policy:write'))` asks once a
-- statement who the session is, and compares with null, which nothing equals, where the permission is missing.
create or replace function ai.tenant_for(variadic p_permissions text[]) returns uuid
language plpgsql stable parallel restricted security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
begin
  select i.tenant_id, i.permissions into v_me from ai.identity() i;
  if v_me.permissions && p_permissions or '*' = any (v_me.permissions) then
    return v_me.tenant_id;
  end if;
  return null;
end
$$;
comment on function ai.tenant_for(text[]) is
  'The tenant of this session if it has one of these permissions, else null. In a policy: (select ai.tenant_for(''document:read'')).';

-- Raises PT401 for nobody, PT403 where the session has none of the permissions.
create or replace function ai.require(variadic p_permissions text[], out tenant_id uuid, out user_id text, out permissions text[])
language plpgsql stable parallel restricted security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  select i.tenant_id, i.user_id, i.permissions into tenant_id, user_id, permissions from ai.identity() i;
  if tenant_id is null then
    raise exception 'this session is nobody' using errcode = 'PT401', detail = (select w.why from ai.whoami() w), hint = 'select * from ai.whoami();';
  elsif (permissions && p_permissions or '*' = any (permissions)) is not true then
    raise exception 'the permission % is needed', array_to_string(p_permissions, ' or ')
      using errcode = 'PT403', hint = 'A role of this tenant that has it: select name, permissions from ai.roles;';
  end if;
end
$$;
comment on function ai.require(text[]) is 'Who the session is, if it has one of these permissions; else PT401 or PT403.';

-- Whether who has the one set of permissions may give away the other.
create or replace function ai.covers(p_held text[], p_given text[]) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select coalesce('*' = any (p_held) or p_given <@ p_held, false) $$;
comment on function ai.covers(text[], text[]) is 'Whether a set of permissions holds every one of another.';

revoke execute on function ai.tenant_for(text[]), ai.require(text[]), ai.covers(text[], text[]) from public;
grant execute on function ai.tenant_for(text[]), ai.require(text[]) to ai_user;

-- objects

-- As ai.identity(), which they ask.
do $$
begin
  if current_setting('server_version_num')::integer < 160000 then
    alter function ai.tenant_for(text[]) parallel unsafe;
    alter function ai.require(text[]) parallel unsafe;
  end if;
end
$$;

drop policy if exists visible on ai.permissions;
create policy visible on ai.permissions for select to ai_user using ((select ai.tenant_id()) is not null);
grant select on ai.permissions to ai_user;
