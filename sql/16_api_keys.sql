-- API keys: credentials of members for ai.login() and ai.use_session(). A key is shown once, where it is made; kept are its
-- SHA-256 and its visible beginning. It is looked up by that hash through a unique index: how long that takes depends on
-- the hash, which who guesses does not choose.
--
-- Revoking a key waits for nobody who merely uses it: what logs in or out locks rows of ai.sessions and ai.api_key_uses
-- alone, and those are skipped where they are held.

-- 64 hexadecimal digits, 244 bits of them random: gen_random_uuid() draws from the system's strong source.
create or replace function ai.random_secret() returns text
language sql volatile parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '') $$;
comment on function ai.random_secret() is '64 hexadecimal digits that nobody can guess.';

-- Raises PT400 for a list with what is no permission; gives it sorted, without doubles.
create or replace function ai.known_permissions(p_permissions text[]) returns text[]
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  if cardinality(p_permissions) > 100 then
    raise exception 'a key takes at most 100 permissions' using errcode = 'PT400', hint = '* is all of them.';
  end if;
  select coalesce(left(p, 100), 'null') into v_unknown
    from unnest(p_permissions) p where p is null or p <> '*' and not exists (select from ai.permissions k where k.name = p) limit 1;
  if found then
    raise exception 'there is no permission %', v_unknown using errcode = 'PT400', hint = 'select name, description from ai.permissions;';
  end if;
  return case when p_permissions is not null then array(select distinct p from unnest(p_permissions) p order by p) end;
end
$$;
comment on function ai.known_permissions(text[]) is 'A list of permissions, sorted; PT400 for one that there is not.';

-- What a new key may hold: the permissions asked for, or what stands for none. Nobody gives what it has not, neither now nor
-- later: a key without a list grows with its member, so only the member itself makes such a key, or who may do everything. A key for
-- another member acts as that member, and needs what that takes. Raises PT403.
create or replace function ai.grantable(p_held text[], p_key uuid, p_self boolean, p_role_permissions text[], p_permissions text[]) returns text[]
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_given   text[] := ai.permissions_both(p_role_permissions, coalesce(p_permissions, '{*}'));
  v_missing text;
begin
  if '*' = any (p_held) then
    return p_permissions;
  end if;
  if p_self and p_permissions is null then
    -- Of a session whose own key is limited, the new key has the same limits.
    return case when exists (select from ai.api_keys k where k.id = p_key and k.permissions is not null) then p_held end;
  end if;
  select p into v_missing
    from unnest(coalesce(p_permissions, '{}') || v_given
                || case when p_self then '{}' when v_given && '{inference:execute,*}' then '{inference:read,inference:delegate}' else '{inference:read}'::text[] end) p
   where p <> all (p_held) limit 1;
  if found then
    raise exception 'the permission % is needed to make such a key', v_missing
      using errcode = 'PT403', detail = 'A key has no permission that its maker has not. One for another member sees and asks as that member.',
            hint = 'Name fewer permissions. select * from ai.whoami();';
  end if;
  return coalesce(p_permissions, v_given);
end
$$;
comment on function ai.grantable(text[], uuid, boolean, text[], text[]) is 'The permissions that this caller may give to a key of this member; PT403 for more.';

-- Writes a key and gives it. Raises PT409 where the member has 100 live keys. The lock of the member's row keeps that exact; it is held until the
-- transaction ends, and makes nobody wait but who makes keys for the same member.
create or replace function ai.store_api_key(
  p_tenant uuid, p_user text, p_name text, p_permissions text[], p_expires_at timestamptz, p_replaces uuid, p_by text, out id uuid, out key text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_prefix text := 'mrt_' || left(ai.random_secret(), 10);
begin
  perform from ai.members m where m.tenant_id = p_tenant and m.user_id = p_user for no key update;
  if (select count(*) from ai.api_keys k
       where k.tenant_id = p_tenant and k.user_id = p_user and k.revoked_at is null and (k.expires_at is null or k.expires_at > ai.now())) >= 100 then
    raise exception 'this member has 100 live keys' using errcode = 'PT409', hint = 'Revoke those that are not in use: select * from ai.api_key_list;';
  end if;
  key := v_prefix || '_' || ai.random_secret();
  insert into ai.api_keys as k (tenant_id, user_id, name, prefix, hash, permissions, created_by, created_at, expires_at, replaces)
  values (p_tenant, p_user, p_name, v_prefix, sha256(convert_to(store_api_key.key, 'UTF8')), p_permissions, p_by, ai.now(), p_expires_at, p_replaces)
  returning k.id into id;
  insert into ai.api_key_uses (api_key_id) values (store_api_key.id);
end
$$;
comment on function ai.store_api_key(uuid, text, text, text[], timestamptz, uuid, text) is 'Writes a new API key; gives its id and, this once, the key.';

-- Makes a key for the caller, or for another member. p_permissions null: all that its member may, now and later. The owner of the schema
-- may act for any tenant. In a session of a key that expires, no key outlives that one.
-- Raises PT400, PT401, PT403, PT404 no such member, PT409 too many keys.
create or replace function ai.create_api_key(
  p_name text, p_user_id text default null, p_permissions text[] default null, p_expires_at timestamptz default null, p_tenant_id uuid default null,
  out id uuid, out key text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me    record;
  v_owner boolean := ai.acts_as_owner();
  v_role  text;
  v_until timestamptz;
begin
  select * into v_me from ai.identity();
  if not v_owner then
    perform ai.require('key:write');
    if p_tenant_id <> v_me.tenant_id then
      raise exception 'only the owner of the schema ai names tenants' using errcode = 'PT403', hint = 'Leave p_tenant_id out.';
    end if;
  end if;
  p_tenant_id := coalesce(p_tenant_id, v_me.tenant_id);
  p_user_id := coalesce(p_user_id, case when p_tenant_id = v_me.tenant_id then v_me.user_id end);
  if p_tenant_id is null or p_user_id is null then
    raise exception 'who is no member names p_tenant_id and p_user_id' using errcode = 'PT400';
  elsif p_name is null or length(p_name) not between 1 and 200 or p_name ~ '[[:cntrl:]]' then
    raise exception 'the name of a key has 1 to 200 characters, none of them a control character' using errcode = 'PT400';
  end if;
  p_permissions := ai.known_permissions(p_permissions);

  select m.role into v_role from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
   where m.tenant_id = p_tenant_id and m.user_id = p_user_id and m.enabled;
  if not found then
    raise exception 'there is no such member in this tenant' using errcode = 'PT404', hint = 'select user_id, enabled from ai.members;';
  end if;
  if not v_owner then
    p_permissions := ai.grantable(v_me.permissions, v_me.api_key_id, p_user_id = v_me.user_id, ai.role_permissions(p_tenant_id, v_role), p_permissions);
    select k.expires_at into v_until from ai.api_keys k where k.id = v_me.api_key_id;
    p_expires_at := coalesce(p_expires_at, v_until);
    if p_expires_at > v_until then
      raise exception 'no key outlives the one with which it is made' using errcode = 'PT403', hint = 'Name an earlier p_expires_at, or use a key that does not expire.';
    end if;
  end if;
  if p_expires_at <= ai.now() or p_expires_at = 'infinity' then
    raise exception 'p_expires_at must be a time to come' using errcode = 'PT400', hint = 'null: the key does not expire.';
  end if;
  select s.id, s.key into id, key
    from ai.store_api_key(p_tenant_id, p_user_id, p_name, p_permissions, p_expires_at, null, coalesce(v_me.user_id, session_user)) s;
end
$$;
comment on function ai.create_api_key(text, text, text[], timestamptz, uuid) is
  'Makes an API key and shows it, once: select * from ai.create_api_key(''my app''). PT400, PT401, PT403, PT404, PT409.';

-- The key as it is, for who may change it. Locks its row. Raises PT401, PT403, PT404.
create or replace function ai.managed_api_key(p_id uuid, p_own_suffices boolean)
returns table (id uuid, tenant_id uuid, user_id text, name text, permissions text[], created_at timestamptz, expires_at timestamptz, revoked_at timestamptz)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_me record;
begin
  select * into v_me from ai.identity();
  if not ai.acts_as_owner() then
    if v_me.tenant_id is null
       or not v_me.permissions && '{key:write,*}'
          and not (p_own_suffices and exists (select from ai.api_keys k where k.id = p_id and k.tenant_id = v_me.tenant_id and k.user_id = v_me.user_id)) then
      perform ai.require('key:write');
    end if;
  end if;
  return query
    select k.id, k.tenant_id, k.user_id, k.name, k.permissions, k.created_at, k.expires_at, k.revoked_at
      from ai.api_keys k where k.id = p_id and (k.tenant_id = v_me.tenant_id or ai.acts_as_owner()) for no key update;
  if not found then
    raise exception 'there is no such API key' using errcode = 'PT404', hint = 'select id, name, state from ai.api_key_list;';
  end if;
end
$$;
comment on function ai.managed_api_key(uuid, boolean) is 'An API key that the caller may change, locked; PT401, PT403, PT404.';

-- Makes a key in place of another, with its name, permissions and lifetime. The old one goes on for p_overlap, 0 to 30 days,
-- unless it ends before. Raises PT400, PT401, PT403, PT404, PT409 for one that is not live or was rotated before.
create or replace function ai.rotate_api_key(p_id uuid, p_overlap interval default '1 day', out id uuid, out key text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me      record;
  v_old     record;
  v_role    text;
  v_until   timestamptz;
  v_expires timestamptz;
begin
  if p_overlap is null or p_overlap < interval '0' or p_overlap > interval '30 days' or not ai.runs_forward(p_overlap) then
    raise exception 'p_overlap is from 0 to 30 days' using errcode = 'PT400';
  end if;
  select * into v_me from ai.identity();
  select * into v_old from ai.managed_api_key(p_id, false);
  if v_old.revoked_at is not null or v_old.expires_at <= ai.now() then
    raise exception 'this API key is not live' using errcode = 'PT409', hint = 'Make a new one: ai.create_api_key().';
  elsif exists (select from ai.api_keys k where k.replaces = p_id) then
    raise exception 'this API key was rotated already' using errcode = 'PT409', hint = 'Rotate the one that replaced it.';
  end if;
  v_expires := ai.now() + (v_old.expires_at - v_old.created_at);
  if not ai.acts_as_owner() then
    select m.role into v_role from ai.members m where m.tenant_id = v_old.tenant_id and m.user_id = v_old.user_id;
    if v_old.permissions is distinct from
       ai.grantable(v_me.permissions, v_me.api_key_id, v_old.user_id = v_me.user_id, ai.role_permissions(v_old.tenant_id, v_role), v_old.permissions) then
      raise exception 'this API key may do all that its member may' using errcode = 'PT403', hint = 'Its member rotates it, with a key or login of the same kind, or an admin.';
    end if;
    select k.expires_at into v_until from ai.api_keys k where k.id = v_me.api_key_id;
    v_expires := least(v_expires, v_until);
  end if;
  select s.id, s.key into id, key
    from ai.store_api_key(v_old.tenant_id, v_old.user_id, v_old.name, v_old.permissions, v_expires, p_id, coalesce(v_me.user_id, session_user)) s;
  update ai.api_keys k set expires_at = least(k.expires_at, ai.now() + p_overlap) where k.id = p_id;
end
$$;
comment on function ai.rotate_api_key(uuid, interval) is 'Makes a key in place of another, which goes on for p_overlap; shows the new one, once. PT400, PT401, PT403, PT404, PT409.';

-- Ends a key and its sessions: their next statement is refused (in a transaction with a snapshot of its own, the next
-- transaction). One's own keys may always be revoked. Gives whether it was live. Raises PT401, PT403, PT404.
create or replace function ai.revoke_api_key(p_id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key record;
begin
  select * into v_key from ai.managed_api_key(p_id, true);
  update ai.api_keys k set revoked_at = ai.now() where k.id = p_id and k.revoked_at is null;
  -- The key's end is what counts. A row that somebody holds, who is logging out, is left to ai.forget_sessions().
  delete from ai.sessions s
   where s.token_hash = any (array(select o.token_hash from ai.sessions o where o.api_key_id = p_id for update skip locked));
  return v_key.revoked_at is null and (v_key.expires_at is null or v_key.expires_at > ai.now());
end
$$;
comment on function ai.revoke_api_key(uuid) is 'Ends an API key and all its sessions at once; gives whether it was live. PT401, PT403, PT404.';

revoke execute on function ai.random_secret(), ai.known_permissions(text[]), ai.grantable(text[], uuid, boolean, text[], text[]),
  ai.store_api_key(uuid, text, text, text[], timestamptz, uuid, text), ai.create_api_key(text, text, text[], timestamptz, uuid), ai.managed_api_key(uuid, boolean),
  ai.rotate_api_key(uuid, interval), ai.revoke_api_key(uuid) from public;
grant execute on function ai.create_api_key(text, text, text[], timestamptz, uuid), ai.rotate_api_key(uuid, interval), ai.revoke_api_key(uuid) to ai_user;

-- objects

drop policy if exists visible on ai.api_keys;
create policy visible on ai.api_keys for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.may('key:read'))));
drop policy if exists visible on ai.api_key_uses;
create policy visible on ai.api_key_uses for select to ai_user using (exists (select from ai.api_keys k where k.id = api_key_id));
-- Every column but the hash.
grant select (id, tenant_id, user_id, name, prefix, permissions, created_by, created_at, expires_at, revoked_at, replaces) on ai.api_keys to ai_user;
grant select on ai.api_key_uses to ai_user;

create or replace view ai.api_key_list with (security_invoker = true) as
select k.id, k.user_id, k.name, k.prefix,
       case when k.revoked_at is not null then 'revoked' when k.expires_at <= statement_timestamp() then 'expired' else 'live' end as state,
       k.permissions, k.created_by, k.created_at, k.expires_at, u.last_used_at, k.revoked_at, k.replaces
  from ai.api_keys k
  left join ai.api_key_uses u on u.api_key_id = k.id;
comment on view ai.api_key_list is 'API keys that the caller may see (its own; with key:read the tenant''s), without the keys themselves.';
grant select on ai.api_key_list to ai_user;
