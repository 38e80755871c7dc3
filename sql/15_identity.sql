-- What a role allows: a tenant's own row goes before the shared one of the same name. Without a row it allows nothing.
create or replace function ai.role_permissions(p_tenant uuid, p_role text) returns text[]
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select r.permissions from ai.roles r
   where r.name = p_role and (r.tenant_id = p_tenant or r.tenant_id is null)
   order by r.tenant_id nulls last limit 1
$$;
comment on function ai.role_permissions(uuid, text) is 'Permissions of a role in a tenant; null: there is no such role.';

-- Who asks. A session is a member of a tenant by a binding of the role it logged in with, or, where that role is a
-- registered authenticator, by the JWT claims the gateway verified and set. Anything else is nobody.
--
-- Raises PT401 where claims are there and are wrong: a broken claim must never become an anonymous success.
-- Takes no locks. 5 to 10 µs: call it once a statement, as (select ai.tenant_id()).
create or replace function ai.identity(out tenant_id uuid, out user_id text, out role text, out source text, out permissions text[], out api_key_id uuid)
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_claims  jsonb;
  v_subject text;
  v_tenant  text;
  v_found   integer;
begin
  select m.tenant_id, m.user_id, m.role, 'binding', ai.role_permissions(m.tenant_id, m.role)
    into tenant_id, user_id, role, source, permissions
    from ai.role_bindings b
    join ai.members m on m.tenant_id = b.tenant_id and m.user_id = b.user_id and m.enabled
    join ai.tenants t on t.id = m.tenant_id and t.enabled
   where b.role_name = session_user;
  if found then
    return;
  end if;

  if not exists (select from ai.authenticators a where a.role_name = session_user)
     or coalesce(current_setting('request.jwt.claims', true), '') = '' then
    return;
  end if;

  begin
    v_claims := current_setting('request.jwt.claims', true)::jsonb;
  exception when data_exception or program_limit_exceeded then  -- no JSON, no text, no number, or nested without end
    v_claims := null;
  end;
  if v_claims is null or jsonb_typeof(v_claims) <> 'object' then
    raise exception 'the JWT claims of this session are not a JSON object'
      using errcode = 'PT401', hint = 'The gateway sets request.jwt.claims to the verified payload of the token.';
  end if;

  v_subject := v_claims ->> 'sub';
  if v_subject is null then
    return;  -- a token for nobody in particular, such as PostgREST's anonymous role
  end if;
  if jsonb_typeof(v_claims -> 'sub') <> 'string' then
    raise exception 'the subject of this token is not a string' using errcode = 'PT401';
  end if;

  if coalesce(jsonb_typeof(v_claims -> 'app_metadata'), 'null') not in ('object', 'null') then
    raise exception 'app_metadata of this token is not an object' using errcode = 'PT401';
  end if;
  -- app_metadata is written by the operator; user_metadata, which its user may write, is never looked at.
  v_tenant := coalesce(v_claims #>> '{app_metadata,tenant_id}', v_claims ->> 'tenant_id');

  select count(*) into v_found
    from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
   where m.user_id = v_subject and m.enabled and (v_tenant is null or m.tenant_id::text = lower(v_tenant));
  if v_found = 0 then
    raise exception 'the subject of this token is not a member'
      using errcode = 'PT401',
            detail = case when v_tenant is null then 'No enabled membership for this subject.' else 'No enabled membership for this subject in the tenant that the token names.' end,
            hint = 'An operator adds members in ai.members (tenant_id, user_id).';
  elsif v_found > 1 then
    raise exception 'the token does not say for which tenant its subject speaks'
      using errcode = 'PT401', detail = 'The subject is a member of several tenants.', hint = 'Put tenant_id into app_metadata or into the claims.';
  end if;

  select m.tenant_id, m.user_id, m.role, 'jwt', ai.role_permissions(m.tenant_id, m.role)
    into tenant_id, user_id, role, source, permissions
    from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
   where m.user_id = v_subject and m.enabled and (v_tenant is null or m.tenant_id::text = lower(v_tenant));
end
$$;
comment on function ai.identity() is 'Tenant, user, role and permissions in the tenant, how the session is known, and its API key; all null for nobody. PT401 for a wrong claim or token.';

create or replace function ai.tenant_id() returns uuid
language sql stable parallel safe security invoker
as $$ select (ai.identity()).tenant_id $$;
comment on function ai.tenant_id() is 'The tenant of this session, null for nobody. In a policy: (select ai.tenant_id()).';

create or replace function ai.user_id() returns text
language sql stable parallel safe security invoker
as $$ select (ai.identity()).user_id $$;
comment on function ai.user_id() is 'The user of this session, null for nobody.';

-- Bound to its operators where it is made, because the body of a function without a search_path is read with the
-- caller's: an `=` of one's own in a schema of one's own would make everybody a developer.
create or replace function ai.sees_tenant() returns boolean
language sql stable parallel safe security invoker
return coalesce((ai.identity()).role in ('developer', 'admin'), false);
comment on function ai.sees_tenant() is 'Whether this session sees all of its tenant''s rows and not only its user''s own.';

create or replace function ai.is_tenant_admin() returns boolean
language sql stable parallel safe security invoker
return coalesce((ai.identity()).role = 'admin', false);
comment on function ai.is_tenant_admin() is 'Whether this session is an admin of its tenant.';

create or replace function ai.may(p_permission text) returns boolean
language sql stable parallel safe security invoker
return coalesce((ai.identity()).permissions && array[p_permission, '*'], false);
comment on function ai.may(text) is 'Whether this session has a permission of ai.permissions. In a policy: (select ai.may(''policy:write'')).';

create or replace function ai.whoami()
returns table (tenant_id uuid, tenant text, user_id text, role text, source text, session_role name, why text)
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select i.tenant_id, t.name, i.user_id, i.role, i.source, session_user,
         case i.source
           when 'binding' then format('login role %s is bound in ai.role_bindings', session_user)
           when 'jwt' then format('login role %s is a trusted authenticator and set JWT claims', session_user)
           else format('nobody: login role %s has no binding of an enabled member in ai.role_bindings, %s', session_user,
             case when exists (select from ai.authenticators a where a.role_name = session_user)
                  then 'and its JWT claims name no subject' else 'and is no authenticator, so that JWT claims do not count' end)
         end
    from ai.identity() i
    left join ai.tenants t on t.id = i.tenant_id
$$;
comment on function ai.whoami() is 'What this session is, and why.';

-- A gateway's role must not be a member by itself: its sessions would act as that member whenever claims are missing.
-- Raises PT409. Locks the role's name against another session that registers it the other way at this moment.
create or replace function ai.keep_roles_apart() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock(1634300004, hashtext(new.role_name::text));
  if exists (select from ai.role_bindings b join ai.authenticators a on a.role_name = b.role_name where b.role_name = new.role_name) then
    raise exception 'role % cannot be both bound to a member and an authenticator', new.role_name
      using errcode = 'PT409', hint = 'Use two login roles.';
  end if;
  return null;
end
$$;
comment on function ai.keep_roles_apart() is 'Trigger: no role is both in ai.role_bindings and in ai.authenticators.';

-- A tenant's lanes are made with it, so that inserts only read them: two that made the same lane would wait for each other.
create or replace function ai.make_lanes() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into ai.lanes (tenant_id, priority) select new.id, p from unnest(array['high', 'normal', 'low']) p on conflict do nothing;
  return null;
end
$$;
comment on function ai.make_lanes() is 'Trigger: makes the lanes of a new tenant.';

revoke execute on function ai.identity(), ai.tenant_id(), ai.user_id(), ai.sees_tenant(), ai.is_tenant_admin(), ai.may(text), ai.role_permissions(uuid, text), ai.whoami(),
  ai.keep_roles_apart(), ai.make_lanes() from public;
grant execute on function ai.identity(), ai.tenant_id(), ai.user_id(), ai.sees_tenant(), ai.is_tenant_admin(), ai.may(text), ai.whoami()
  to ai_user, ai_monitor, ai_worker;

-- objects

create or replace trigger keep_roles_apart after insert or update on ai.role_bindings
  for each row execute function ai.keep_roles_apart();
create or replace trigger keep_roles_apart after insert or update on ai.authenticators
  for each row execute function ai.keep_roles_apart();

create or replace trigger make_lanes after insert on ai.tenants
  for each row execute function ai.make_lanes();

drop policy if exists own on ai.tenants;
create policy own on ai.tenants for select to ai_user using (id = (select ai.tenant_id()));
drop policy if exists own on ai.members;
create policy own on ai.members for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.sees_tenant())));
grant select on ai.tenants, ai.members to ai_user;
