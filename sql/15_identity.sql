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

-- The member that JWT claims speak for, in a session of a registered authenticator; all null where there are none, or for
-- nobody in particular. Raises PT401, as ai.claimed_member().
--
-- A read through PostgREST asks this twice, so the token that nearly all are (short, every claim of its type, naming its
-- tenant, of an enabled member) is read by one statement. It gives a row only where the steps below it come to the same;
-- whatever it does not take, they look at one by one. It has no variables: with one it may be planned each time.
create or replace function ai.claims_identity(out tenant_id uuid, out user_id text, out role text, out allowed text[])
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_claims text;
begin
  if current_setting('server_version_num')::integer >= 160000 then  -- pg_input_is_valid()
    select m.tenant_id, m.user_id, m.role into tenant_id, user_id, role
      from (select c.j ->> 'sub' as sub, case when pg_input_is_valid(c.named, 'uuid') then c.named::uuid end as tenant, c.named
              from (select c.j, coalesce(c.j #>> '{app_metadata,tenant_id}', c.j ->> 'tenant_id') as named
                      from (select case when pg_input_is_valid(c.claims, 'jsonb') then c.claims::jsonb end as j
                              from (select current_setting('request.jwt.claims', true) as claims offset 0) c
                             where (octet_length(c.claims) <= 1000 or octet_length(c.claims) <= 8000 and length(c.claims) - length(translate(c.claims, '[{', '')) <= 1000)
                               and strpos(c.claims, chr(92) || 'u') = 0
                               and not (c.claims like '%"sub"%"sub"%' or c.claims like '%"app_metadata"%"app_metadata"%' or c.claims like '%"tenant_id"%"tenant_id"%'
                                        or c.claims like '%"exp"%"exp"%' or c.claims like '%"nbf"%"nbf"%')
                            offset 0) c
                     where jsonb_typeof(c.j) = 'object' and jsonb_typeof(c.j -> 'sub') = 'string' and length(c.j ->> 'sub') <= 200
                       and coalesce(jsonb_typeof(c.j -> 'app_metadata'), 'object') = 'object'
                       and case jsonb_typeof(c.j -> 'exp') when 'number' then (c.j ->> 'exp')::numeric > extract(epoch from ai.now()) - 30 else c.j -> 'exp' is null end
                       and case jsonb_typeof(c.j -> 'nbf') when 'number' then (c.j ->> 'nbf')::numeric <= extract(epoch from ai.now()) + 30 else c.j -> 'nbf' is null end
                    offset 0) c
            offset 0) c
      join ai.members m on m.tenant_id = c.tenant and m.user_id = c.sub and m.enabled
      join ai.tenants t on t.id = m.tenant_id and t.enabled
     where c.tenant::text = lower(c.named) and exists (select from ai.authenticators a where a.role_name = session_user);
    if found then
      return;
    end if;
  end if;

  v_claims := current_setting('request.jwt.claims', true);
  if coalesce(v_claims, '') = '' then
    return;
  end if;
  if not exists (select from ai.authenticators a where a.role_name = session_user) then
    return;
  end if;
  select c.tenant_id, c.user_id into tenant_id, user_id from ai.claimed_member(v_claims) c;
  if user_id is null then
    return;
  end if;
  select m.role into role
    from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
   where m.tenant_id = claims_identity.tenant_id and m.user_id = claims_identity.user_id and m.enabled;
  if not found then
    raise exception 'the subject of this token is not a member'
      using errcode = 'PT401', detail = 'No enabled membership for this subject in the tenant that the token names, or, if it names none, in one that an operator chose.',
            hint = 'An operator adds members in ai.members (tenant_id, user_id); who was added by ai.add_member() comes with a token that names the tenant.';
  end if;
end
$$;
comment on function ai.claims_identity() is 'The member of the JWT claims of a registered authenticator''s session, which are not limited (allowed is null); all null for none. PT401 for wrong claims.';

-- The member of the setting ai.session; all null where there is none or it is inert. As above: what holds is found by one
-- statement, and whatever that does not find is looked at step by step, which raises PT401 for what is wrong.
create or replace function ai.session_identity(out tenant_id uuid, out user_id text, out role text, out api_key_id uuid, out allowed text[])
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_session text;
begin
  select m.tenant_id, m.user_id, m.role, k.id, k.permissions into tenant_id, user_id, role, api_key_id, allowed
    from ai.api_keys k
    join ai.members m on m.tenant_id = k.tenant_id and m.user_id = k.user_id and m.enabled
    join ai.tenants t on t.id = m.tenant_id and t.enabled
   where k.id = (select case when left(v.session, 4) = 'mrs_' then
                               (select s.api_key_id from ai.sessions s
                                 where s.token_hash = v.hash and s.expires_at > ai.now() and (v.stamp <> '' or s.backend = ai.this_backend()))
                             when left(v.session, 4) <> 'mrc_' and v.stamp <> '' then (select o.id from ai.api_keys o where o.hash = v.hash) end
                   from (select current_setting('ai.session', true) as session,
                                substr(current_setting('ai.session', true), nullif(strpos(current_setting('ai.session', true), ':'), 0) + 1) as stamp,
                                sha256(convert_to(left(split_part(current_setting('ai.session', true), ':', 1), 200), 'UTF8')) as hash
                         offset 0) v
                  where coalesce(v.stamp = ai.transaction_stamp(), true))
     and k.revoked_at is null and (k.expires_at is null or k.expires_at > ai.now());
  if found then
    return;
  end if;

  v_session := current_setting('ai.session', true);
  if coalesce(v_session, '') = '' then
    return;
  end if;
  select s.tenant_id, s.user_id, s.api_key_id, s.permissions into tenant_id, user_id, api_key_id, allowed from ai.session_key(v_session) s;
  if user_id is null then
    return;
  end if;
  select m.role into role
    from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
   where m.tenant_id = session_identity.tenant_id and m.user_id = session_identity.user_id and m.enabled;
  if not found then
    perform ai.refuse_session();
  end if;
end
$$;
comment on function ai.session_identity() is
  'The member of the setting ai.session, its API key, and to which permissions that is limited; all null for none. PT401 for a wrong one.';

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
set jit = off
as $$
declare
  v_limit text[];
begin
  if coalesce(current_setting('ai.session', true), '') <> '' then
    select s.tenant_id, s.user_id, s.role, 'session', s.api_key_id, s.allowed
      into tenant_id, user_id, role, source, api_key_id, v_limit from ai.session_identity() s where s.user_id is not null;
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
    select c.tenant_id, c.user_id, c.role, 'jwt' into tenant_id, user_id, role, source from ai.claims_identity() c where c.user_id is not null;
    if not found then
      return;
    end if;
  end if;

  permissions := coalesce((select r.permissions from ai.roles r where r.tenant_id = identity.tenant_id and r.name = identity.role),
                          (select r.permissions from ai.roles r where r.tenant_id is null and r.name = identity.role), '{}');
  if v_limit is not null then
    permissions := ai.permissions_both(permissions, v_limit);
  end if;
  only_user := case when permissions && '{inference:read,*}' then null else user_id end;
end
$$;
comment on function ai.identity() is
  'Tenant, user, role and permissions in the tenant, how the session is known, its API key, and the user to whose rows it is kept; all null for nobody. PT401 for a wrong claim or token.';

-- Policies ask this and ai.only_user() once a statement. Of a bound login they answer by the same probe as ai.identity(), and are
-- spared the rest of it; of any other, this spares looking up what its role allows.
create or replace function ai.tenant_id() returns uuid
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid;
begin
  if coalesce(current_setting('ai.session', true), '') <> '' then
    v_tenant := (ai.session_identity()).tenant_id;
    if v_tenant is not null then
      return v_tenant;
    end if;
  end if;
  select b.tenant_id into v_tenant from ai.role_bindings b where b.role_name = session_user and b.member_enabled;
  if found then
    return v_tenant;
  end if;
  return (ai.claims_identity()).tenant_id;
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
  v_user        text;
  v_who         record;
  v_permissions text[];
begin
  if coalesce(current_setting('ai.session', true), '') = '' then
    select case when b.member_permissions && '{inference:read,*}' then null else b.user_id end into v_user
      from ai.role_bindings b where b.role_name = session_user and b.member_enabled;
    if found then
      return v_user;
    end if;
    v_who := ai.claims_identity();
    if v_who.user_id is null then
      return null;
    end if;
  else
    v_who := ai.session_identity();
    if v_who.user_id is null then  -- of another transaction, and inert
      return (ai.identity()).only_user;
    end if;
  end if;
  v_permissions := coalesce((select r.permissions from ai.roles r where r.tenant_id = v_who.tenant_id and r.name = v_who.role),
                            (select r.permissions from ai.roles r where r.tenant_id is null and r.name = v_who.role), '{}');
  if v_who.allowed is not null then
    v_permissions := ai.permissions_both(v_permissions, v_who.allowed);
  end if;
  return case when v_permissions && '{inference:read,*}' then null else v_who.user_id end;
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

revoke execute on function ai.claims_identity(), ai.session_identity(), ai.identity(), ai.tenant_id(), ai.user_id(), ai.only_user(), ai.may(text),
  ai.role_permissions(uuid, text), ai.permissions_both(text[], text[]), ai.make_lanes() from public;
grant execute on function ai.identity(), ai.tenant_id(), ai.user_id(), ai.only_user(), ai.may(text) to ai_user, ai_monitor, ai_worker;

-- objects

create or replace trigger make_lanes after insert on ai.tenants
  for each row execute function ai.make_lanes();

drop policy if exists own on ai.tenants;
create policy own on ai.tenants for select to ai_user using (id = (select ai.tenant_id()));
grant select on ai.tenants to ai_user;
