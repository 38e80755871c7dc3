-- Provider keys, sealed. The database keeps what only a worker can open: a value is sealed with a data key of its tenant,
-- the data key with a master key that the database never sees. What is decided here is which key a call may use:
--   a tenant's own provider  the tenant's own secret of that name, or none: a tenant chooses where its provider is, and must
--                            never make the operator's key go there
--   a shared provider        the tenant's own secret of that name, else the operator's
-- each of them looked for in ai.secrets, then in Supabase Vault where there is one; the operator's last in the worker's
-- environment and files.

-- Whether names are to be looked for in a vault. Its view runs functions with the rights of the owner of this schema, so only
-- one that belongs to that owner or to a superuser counts.
create or replace function ai.has_vault() returns boolean
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regnamespace('vault') is null then
    return false;
  end if;
  return exists (
    select from pg_class c
      join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'vault'
      join pg_roles o on o.oid = c.relowner
     where c.relname = 'decrypted_secrets'
       and (o.rolsuper or o.oid = (select a.nspowner from pg_namespace a where a.nspname = 'ai'))
       and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'));
end
$$;
comment on function ai.has_vault() is 'Whether Supabase Vault is there, can be read by the owner of this schema, and can be trusted.';

-- Entries of the vault: those named in p_names, or those of p_refs that are keys of providers. A reference is negative, and
-- another one once the entry was changed. Values only where asked for: opening costs.
create or replace function ai.vault_entries(p_names text[], p_refs bigint[], p_values boolean)
returns table (ref bigint, name text, value text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_ref constant text := '-1 - (hashtextextended(concat(v.id, '' '', extract(epoch from v.updated_at)), 0) & 9223372036854775806)';
begin
  if not ai.has_vault() then
    return;
  end if;
  if p_refs is null then
    return query execute format('select %s, v.name::text, %s from vault.decrypted_secrets v where v.name = any ($1)', c_ref,
                                case when p_values then 'v.decrypted_secret::text' else 'null::text' end) using p_names;
  else
    -- Nothing else that lies in the vault is given to a worker.
    return query execute format(
      'select %1$s, v.name::text, v.decrypted_secret::text from vault.decrypted_secrets v
        where %1$s = any ($1)
          and (v.name ~ ''^martlet/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[A-Z][A-Z0-9_]*_(API_KEY|KEY|TOKEN)$''
               or v.name in (select p.secret from ai.providers p union select a.secret from ai.provider_accounts a))', c_ref) using p_refs;
  end if;
end
$$;
comment on function ai.vault_entries(text[], bigint[], boolean) is 'What the vault has of these names, or under these references.';

-- Which secret a call of a tenant uses: {its reference, 1 where it is the tenant's own}; null: none is in the database. Of a
-- tenant's own provider (p_tenant_only) the operator's are not looked at. p_tenant null: a provider of another tenant. p_name
-- null: the provider needs none.
create or replace function ai.secret_ref(p_tenant uuid, p_name text, p_tenant_only boolean) returns bigint[]
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_vault boolean := ai.has_vault();
  v_ref   bigint;
begin
  if p_name is null then
    return null;
  end if;
  if p_tenant is not null then
    select s.id into v_ref from ai.secrets s where s.tenant_id = p_tenant and s.name = p_name and s.replaced_at is null;
    if v_ref is null and v_vault then
      select v.ref into v_ref from ai.vault_entries(array['martlet/' || p_tenant || '/' || p_name], null, false) v limit 1;
    end if;
    if v_ref is not null then
      return array[v_ref, 1];
    end if;
  end if;
  if p_tenant_only then
    return null;
  end if;
  select s.id into v_ref from ai.secrets s where s.tenant_id is null and s.name = p_name and s.replaced_at is null;
  if v_ref is null and v_vault then
    select v.ref into v_ref from ai.vault_entries(array[p_name], null, false) v limit 1;
  end if;
  return case when v_ref is not null then array[v_ref, 0] end;
end
$$;
comment on function ai.secret_ref(uuid, text, boolean) is 'Which secret a call uses, and whether it is the tenant''s own; null: none that is in the database.';

-- What is behind the references of a claim, for a worker that has not opened them yet. Of a secret that was replaced since,
-- the one in its place. Raises PT404 for a worker that is not registered or was declared dead.
create or replace function ai.worker_secret(p_worker uuid, p_refs bigint[])
returns table (ref bigint, tenant_id uuid, name text, sealed bytea, value text, data_key_id uuid, wrapped bytea, master_key_id text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  perform ai.check_worker(p_worker);
  return query
    select o.id, s.tenant_id, s.name, s.sealed, null::text, k.id, k.wrapped, k.master_key_id
      from ai.secrets o
      join ai.secrets s on s.name = o.name and s.tenant_id is not distinct from o.tenant_id and s.replaced_at is null
      join ai.data_keys k on k.id = s.data_key_id and k.destroyed_at is null
     where o.id = any (p_refs);
  if exists (select from unnest(p_refs) r where r < 0) then
    return query
      select v.ref, case when v.name like 'martlet/%' then split_part(v.name, '/', 2)::uuid end,
             case when v.name like 'martlet/%' then split_part(v.name, '/', 3) else v.name end, null::bytea, v.value, null::uuid, null::bytea, null::text
        from ai.vault_entries(null, p_refs, true) v;
  end if;
end
$$;
comment on function ai.worker_secret(uuid, bigint[]) is 'The secrets behind the references of a claim, still sealed, with their sealed data keys; values of a vault as they are.';

-- Data keys by their ids, for a worker that is to seal with them.
create or replace function ai.worker_data_keys(p_worker uuid, p_keys uuid[])
returns table (data_key_id uuid, tenant_id uuid, wrapped bytea, master_key_id text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
  perform ai.check_worker(p_worker);
  return query select k.id, k.tenant_id, k.wrapped, k.master_key_id from ai.data_keys k where k.id = any (p_keys) and k.destroyed_at is null;
end
$$;
comment on function ai.worker_data_keys(uuid, uuid[]) is 'Data keys, sealed with a master key; destroyed ones are left out.';

-- Registers a data key that a worker has made for a tenant that has none. Gives the tenant's current one, which another worker
-- may have been first to make.
create or replace function ai.worker_add_data_key(p_worker uuid, p_key uuid, p_tenant uuid, p_wrapped bytea, p_master_key_id text)
returns table (data_key_id uuid, tenant_id uuid, wrapped bytea, master_key_id text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform ai.check_worker(p_worker);
  if p_tenant is null then
    raise exception 'a worker makes keys of tenants only' using errcode = 'PT400';
  end if;
  return query select a.data_key_id, a.tenant_id, a.wrapped, a.master_key_id from ai.add_data_key(p_key, p_tenant, p_wrapped, p_master_key_id) a;
end
$$;
comment on function ai.worker_add_data_key(uuid, uuid, uuid, bytea, text) is 'Registers a tenant''s first data key; gives the one that counts.';

-- Makes a data key current where there is none, and gives the current one.
create or replace function ai.add_data_key(p_key uuid, p_tenant uuid, p_wrapped bytea, p_master_key_id text)
returns table (data_key_id uuid, tenant_id uuid, wrapped bytea, master_key_id text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  insert into ai.data_keys (id, tenant_id, wrapped, master_key_id) values (p_key, p_tenant, p_wrapped, p_master_key_id)
  on conflict (tenant_id) where is_current do nothing;
  return query select k.id, k.tenant_id, k.wrapped, k.master_key_id from ai.data_keys k where k.tenant_id is not distinct from p_tenant and k.is_current;
end
$$;
comment on function ai.add_data_key(uuid, uuid, bytea, text) is 'Registers a data key where there is no current one; gives the current one. Operator only.';

-- Raises PT404.
create or replace function ai.check_worker(p_worker uuid) returns void
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from ai.workers w where w.id = p_worker and w.ended_at is null) then
    raise exception 'this worker is not registered, or was declared dead' using errcode = 'PT404', hint = 'ai.worker_register()';
  end if;
end
$$;
comment on function ai.check_worker(uuid) is 'Raises PT404 for a worker that is not registered or was declared dead.';

revoke execute on function ai.has_vault(), ai.vault_entries(text[], bigint[], boolean), ai.secret_ref(uuid, text, boolean), ai.worker_secret(uuid, bigint[]),
  ai.worker_data_keys(uuid, uuid[]), ai.worker_add_data_key(uuid, uuid, uuid, bytea, text), ai.add_data_key(uuid, uuid, bytea, text), ai.check_worker(uuid) from public;
grant execute on function ai.worker_secret(uuid, bigint[]), ai.worker_data_keys(uuid, uuid[]), ai.worker_add_data_key(uuid, uuid, uuid, bytea, text) to ai_worker;

-- objects
