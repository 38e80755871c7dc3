-- Who a session is. Everything else asks here.

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

-- What remains of a member's permissions where a key is limited to some.
create or replace function ai.permissions_both(p_one text[], p_other text[]) returns text[]
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_one is null or p_other is null then
    return '{}';
  elsif '*' = any (p_one) then
    return p_other;
  elsif '*' = any (p_other) or p_one <@ p_other then
    return p_one;
  end if;
  return array(select p from unnest(p_one) p where p = any (p_other));
end
$$;
comment on function ai.permissions_both(text[], text[]) is 'The permissions that both sets have; * is all.';

-- Who asks. A session is a member of a tenant, in this order: by the session token or API key that was set for this
-- transaction or connection (ai.use_session(), ai.login()); by JWT claims, where the role that logged in is a registered
-- authenticator; by a binding of that role. An authenticator is never bound, so the binding, which is the cheapest to
-- look up, is looked up before the claims. Anything else is nobody.
--
-- only_user: the user to whose rows it is kept, null where it has inference:read.
-- Raises PT401 for a token or claims that are there and are wrong: they must never become somebody else, or an anonymous
-- success. Takes no locks. Parallel restricted, because a connection's own token is known by its process.
create or replace function ai.identity(
  out tenant_id uuid, out user_id text, out role text, out source text, out permissions text[], out api_key_id uuid, out only_user text)
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
  v_session text := current_setting('ai.session', true);
  v_claims  text;
  v_limit   text[];
begin
  if v_session <> '' then
    select s.tenant_id, s.user_id, s.api_key_id, s.permissions into tenant_id, user_id, api_key_id, v_limit from ai.session_key(v_session) s;
    if user_id is not null then
      source := 'session';
    end if;
  end if;

  if source is null then
    -- One index probe: sql/17_bindings.sql keeps these copies.
    select b.tenant_id, b.user_id, b.member_role, 'binding', b.member_permissions,
           case when b.member_permissions && '{inference:read,*}' then null else b.user_id end
      into tenant_id, user_id, role, source, permissions, only_user
      from ai.role_bindings b where b.role_name = session_user and b.member_enabled;
    if found then
      return;
    end if;

    v_claims := current_setting('request.jwt.claims', true);
    if coalesce(v_claims, '') = '' then
      return;
    end if;
    if not exists (select from ai.authenticators a where a.role_name = session_user) then  -- by itself: with a variable it would be planned each time
      return;
    end if;
    select c.tenant_id, c.user_id into tenant_id, user_id from ai.claimed_member(v_claims) c;
    if user_id is null then
      return;
    end if;
    source := 'jwt';
  end if;

  select m.role, coalesce((select r.permissions from ai.roles r where r.tenant_id = m.tenant_id and r.name = m.role),
                          (select r.permissions from ai.roles r where r.tenant_id is null and r.name = m.role), '{}')
    into role, permissions
    from ai.members m
    join ai.tenants t on t.id = m.tenant_id and t.enabled
   where m.tenant_id = identity.tenant_id and m.user_id = identity.user_id and m.enabled;
  if not found then
    if source = 'session' then
      perform ai.refuse_session();
    end if;
    raise exception 'the subject of this token is not a member'
      using errcode = 'PT401', detail = 'No enabled membership for this subject in the tenant that the token names, or, if it names none, in one that an operator chose.',
            hint = 'An operator adds members in ai.members (tenant_id, user_id); who was added by ai.add_member() comes with a token that names the tenant.';
  end if;
  if v_limit is not null then
    permissions := ai.permissions_both(permissions, v_limit);
  end if;
  only_user := case when permissions && '{inference:read,*}' then null else user_id end;
end
$$;
comment on function ai.identity() is
  'Tenant, user, role and permissions in the tenant, how the session is known, its API key, and the user to whose rows it is kept; all null for nobody. PT401 for a wrong claim or token.';

-- Policies ask this and ai.only_user() once a statement. Of a bound login they answer by the same probe as ai.identity(), and are
-- spared the rest of it.
create or replace function ai.tenant_id() returns uuid
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid;
begin
  if coalesce(current_setting('ai.session', true), '') = '' then
    select b.tenant_id into v_tenant from ai.role_bindings b where b.role_name = session_user and b.member_enabled;
    if found then
      return v_tenant;
    end if;
  end if;
  return (select i.tenant_id from ai.identity() i);
end
$$;
comment on function ai.tenant_id() is 'The tenant of this session, null for nobody. In a policy: (select ai.tenant_id()).';

create or replace function ai.user_id() returns text
language sql stable parallel restricted security invoker
as $$ select (ai.identity()).user_id $$;
comment on function ai.user_id() is 'The user of this session, null for nobody.';

-- For policies of rows of which a member sees its own and who has inference:read sees all: one call in place of two.
create or replace function ai.only_user() returns text
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_user text;
begin
  if coalesce(current_setting('ai.session', true), '') = '' then
    select case when b.member_permissions && '{inference:read,*}' then null else b.user_id end into v_user
      from ai.role_bindings b where b.role_name = session_user and b.member_enabled;
    if found then
      return v_user;
    end if;
  end if;
  return (select i.only_user from ai.identity() i);
end
$$;
comment on function ai.only_user() is
  'The user to whose rows this session is kept; null: it has inference:read, or is nobody. In a policy: tenant_id = (select ai.tenant_id()) and user_id = coalesce((select ai.only_user()), user_id).';

-- Bound to its operators where it is made, because the body of a function without a search_path is read with the
-- caller's: an `&&` of one's own in a schema of one's own would make everybody an admin.
create or replace function ai.may(p_permission text) returns boolean
language sql stable parallel restricted security invoker
return coalesce((ai.identity()).permissions && array[p_permission, '*'], false);
comment on function ai.may(text) is 'Whether this session has a permission of ai.permissions. In a policy: (select ai.may(''policy:write'')).';

-- A tenant's lanes are made with it, so that inserts only read them: two that made the same lane would wait for each other.
create or replace function ai.make_lanes() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into ai.lanes (tenant_id, priority) select new.id, p from unnest(array['high', 'normal', 'low', 'batch']) p on conflict do nothing;
  return null;
end
$$;
comment on function ai.make_lanes() is 'Trigger: makes the lanes of a new tenant.';

revoke execute on function ai.identity(), ai.tenant_id(), ai.user_id(), ai.only_user(), ai.may(text),
  ai.role_permissions(uuid, text), ai.permissions_both(text[], text[]), ai.make_lanes() from public;
grant execute on function ai.identity(), ai.tenant_id(), ai.user_id(), ai.only_user(), ai.may(text) to ai_user, ai_monitor, ai_worker;

-- objects

create or replace trigger make_lanes after insert on ai.tenants
  for each row execute function ai.make_lanes();

drop policy if exists own on ai.tenants;
create policy own on ai.tenants for select to ai_user using (id = (select ai.tenant_id()));
grant select on ai.tenants to ai_user;
