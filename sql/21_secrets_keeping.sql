-- What the operator does with secrets and their keys (martlet secrets), and what a tenant may do with its own. Values come
-- here sealed: nothing of this can open them. What changes is on the audit log by the tables' triggers.

-- Whom a function about secrets concerns. The operator (owner of the schema) names a tenant, null being its own; a member has
-- its own tenant and needs the permission. Raises PT401, PT403.
create or replace function ai.tenant_of_secrets(p_tenant uuid, p_permission text) returns uuid
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_own uuid;
begin
  if ai.acts_as_owner() then
    return p_tenant;
  end if;
  v_own := ai.tenant_id();
  if v_own is null then
    raise exception 'this session is nobody' using errcode = 'PT401', detail = (select w.why from ai.whoami() w);
  elsif not ai.may(p_permission) or p_tenant <> v_own then
    raise exception 'the permission % is needed, in one''s own tenant', p_permission using errcode = 'PT403', hint = 'select * from ai.whoami();';
  end if;
  return v_own;
end
$$;
comment on function ai.tenant_of_secrets(uuid, text) is 'The tenant whose secrets the caller may handle; PT401, PT403.';

-- Sets a secret, sealed with a data key of the same tenant; gives its version. What it replaces is overwritten. Raises PT409
-- where the key is no longer the current one. Locks the data key against ai.renew_data_key().
create or replace function ai.set_secret(p_tenant uuid, p_name text, p_sealed bytea, p_data_key_id uuid) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_version integer;
begin
  perform from ai.data_keys k where k.id = p_data_key_id and k.tenant_id is not distinct from p_tenant and k.is_current for update;
  if not found then
    raise exception 'this is not the current data key of the tenant' using errcode = 'PT409', hint = 'Seal with the current one.';
  end if;
  select coalesce(max(s.version), 0) + 1 into v_version from ai.secrets s where s.tenant_id is not distinct from p_tenant and s.name = p_name;
  update ai.secrets s set sealed = null, replaced_at = ai.now() where s.tenant_id is not distinct from p_tenant and s.name = p_name and s.replaced_at is null;
  insert into ai.secrets (tenant_id, name, version, sealed, data_key_id, created_at) values (p_tenant, p_name, v_version, p_sealed, p_data_key_id, ai.now());
  return v_version;
end
$$;
comment on function ai.set_secret(uuid, text, bytea, uuid) is 'Sets a sealed secret; gives its version. Operator only: martlet secrets set.';

-- Raises PT401, PT403; PT404 where there is none of that name.
create or replace function ai.remove_secret(p_name text, p_tenant uuid default null) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid := ai.tenant_of_secrets(p_tenant, 'secret:write');
begin
  update ai.secrets s set sealed = null, replaced_at = ai.now() where s.tenant_id is not distinct from v_tenant and s.name = p_name and s.replaced_at is null;
  if not found then
    raise exception 'there is no such secret' using errcode = 'PT404', hint = 'select * from ai.list_secrets();';
  end if;
end
$$;
comment on function ai.remove_secret(text, uuid) is 'Removes a provider key of one''s own tenant; the operator any, without a tenant its own.';

-- Raises PT401, PT403.
create or replace function ai.list_secrets()
returns table (tenant_id uuid, tenant text, name text, version integer, data_key_id uuid, master_key_id text, created_at timestamptz)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_tenant uuid := ai.tenant_of_secrets(null, 'secret:read');
begin
  return query
    select s.tenant_id, t.name, s.name, s.version, s.data_key_id, k.master_key_id, s.created_at
      from ai.secrets s
      join ai.data_keys k on k.id = s.data_key_id
      left join ai.tenants t on t.id = s.tenant_id
     where s.replaced_at is null and (v_tenant is null or s.tenant_id = v_tenant)
     order by t.name nulls first, s.tenant_id, s.name;
end
$$;
comment on function ai.list_secrets() is 'Names and versions of the tenant''s provider keys; the operator sees all.';

-- Puts data keys under another master key: [{"id", "was", "wrapped" (base64), "master_key_id"}]. One that changed meanwhile
-- stays as it is. Gives how many were changed.
create or replace function ai.rewrap_data_keys(p_keys jsonb) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  update ai.data_keys k set wrapped = decode(r.wrapped, 'base64'), master_key_id = r.master_key_id
    from jsonb_to_recordset(p_keys) r (id uuid, was text, wrapped text, master_key_id text)
   where k.id = r.id and k.master_key_id = r.was and k.destroyed_at is null;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.rewrap_data_keys(jsonb) is 'Puts data keys under another master key; gives how many. Operator only: martlet secrets rotate.';

-- Gives a tenant (null: the operator) another data key, and its secrets anew under it: [{"id", "sealed" (base64)}], all that
-- there are. The old key stays for the calls that were sealed with it. Raises PT409 where something changed meanwhile.
create or replace function ai.renew_data_key(p_old uuid, p_new uuid, p_wrapped bytea, p_master_key_id text, p_secrets jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid;
  v_left   integer;
begin
  update ai.data_keys k set is_current = false where k.id = p_old and k.is_current returning k.tenant_id into v_tenant;
  if not found then
    raise exception 'the data key is no longer the current one' using errcode = 'PT409', hint = 'Begin again.';
  end if;
  insert into ai.data_keys (id, tenant_id, wrapped, master_key_id) values (p_new, v_tenant, p_wrapped, p_master_key_id);
  update ai.secrets s set sealed = decode(r.sealed, 'base64'), data_key_id = p_new
    from jsonb_to_recordset(p_secrets) r (id bigint, sealed text)
   where s.id = r.id and s.tenant_id is not distinct from v_tenant and s.replaced_at is null;
  select count(*) into v_left from ai.secrets s where s.tenant_id is not distinct from v_tenant and s.replaced_at is null and s.data_key_id <> p_new;
  if v_left > 0 then
    raise exception 'secrets were set meanwhile' using errcode = 'PT409', hint = 'Begin again.';
  end if;
end
$$;
comment on function ai.renew_data_key(uuid, uuid, bytea, text, jsonb) is 'Gives a tenant another data key and its secrets anew under it. Operator only: martlet secrets rotate.';

-- Makes everything that is sealed for a tenant unreadable, its secrets and its calls, by destroying the keys: in this
-- database; a backup from before, with the master key, still opens. Gives how many keys there were. Raises PT401, PT403,
-- and PT400 for an operator that names no tenant.
create or replace function ai.destroy_data_keys(p_tenant uuid default null) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid := ai.tenant_of_secrets(p_tenant, 'secret:write');
  v_count  integer;
begin
  if v_tenant is null then
    raise exception 'whose keys?' using errcode = 'PT400', hint = 'select ai.destroy_data_keys(id) from ai.tenants where name = …';
  end if;
  update ai.data_keys k set wrapped = null, master_key_id = null, is_current = false, destroyed_at = ai.now()
   where k.tenant_id = v_tenant and k.destroyed_at is null;
  get diagnostics v_count = row_count;
  update ai.secrets s set sealed = null, replaced_at = ai.now() where s.tenant_id = v_tenant and s.replaced_at is null;
  return v_count;
end
$$;
comment on function ai.destroy_data_keys(uuid) is 'Makes a tenant''s secrets and sealed calls unreadable for ever; gives how many keys were destroyed.';

revoke execute on function ai.tenant_of_secrets(uuid, text), ai.set_secret(uuid, text, bytea, uuid), ai.remove_secret(text, uuid), ai.list_secrets(),
  ai.rewrap_data_keys(jsonb), ai.renew_data_key(uuid, uuid, bytea, text, jsonb), ai.destroy_data_keys(uuid) from public;
grant execute on function ai.remove_secret(text, uuid), ai.list_secrets(), ai.destroy_data_keys(uuid) to ai_user;

-- objects
