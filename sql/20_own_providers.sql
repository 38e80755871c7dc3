-- Providers, models and prices of a tenant's own.
--
-- Rows are written by plain INSERT and UPDATE under row-level security; the triggers refuse what would let a tenant use more
-- than its own: a model on a provider that is not the tenant's would be paid with somebody else's key, and what is
-- written here joins the claims of all tenants, which must not fail on it. They run as who writes, because it is the
-- policies' being active that tells a tenant from the operator, who is not held to any of this.

-- Whether tenants may set providers at private addresses and without TLS. For the trigger.
create or replace function ai.private_providers() returns boolean
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$ select s.private_providers from ai.settings s $$;
comment on function ai.private_providers() is 'ai.settings.private_providers.';

-- Raises PT400 for headers that a tenant may not set: keys travel as secrets, and what frames a request is the worker's.
create or replace function ai.check_own_headers(p_headers jsonb) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_reserved constant text[] := array['authorization', 'x-api-key', 'api-key', 'host', 'content-length', 'content-type', 'content-encoding', 'transfer-encoding',
    'accept-encoding', 'connection', 'keep-alive', 'te', 'trailer', 'upgrade', 'expect', 'cookie', 'forwarded', 'via'];
  v_name  text;
  v_value jsonb;
  v_seen  text[] := '{}';
begin
  if p_headers is null or jsonb_typeof(p_headers) <> 'object' or octet_length(p_headers::text) > 8192 then
    raise exception 'headers are a JSON object of at most 8192 bytes' using errcode = 'PT400';
  end if;
  for v_name, v_value in select key, value from jsonb_each(p_headers) loop
    if v_name !~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$' then
      raise exception 'the name of a header has 1 to 64 letters, digits, - and _' using errcode = 'PT400';
    elsif lower(v_name) = any (c_reserved) or lower(v_name) ~ '^(proxy-|sec-|x-forwarded-)' then
      raise exception 'the header % cannot be set', v_name
        using errcode = 'PT400', hint = 'A key is named in secret; how a request is framed and whom it reaches is not a header''s business.';
    elsif lower(v_name) = any (v_seen) then
      raise exception 'the header % is there twice', v_name using errcode = 'PT400';
    elsif jsonb_typeof(v_value) <> 'string' or length(v_value #>> '{}') > 1000 or v_value #>> '{}' collate "C" ~ '[^ -~]' then
      raise exception 'the value of the header % is not a text of at most 1000 printable ASCII characters', v_name using errcode = 'PT400';
    end if;
    v_seen := v_seen || lower(v_name);
  end loop;
  if cardinality(v_seen) > 20 then
    raise exception 'a provider has at most 20 headers' using errcode = 'PT400';
  end if;
end
$$;
comment on function ai.check_own_headers(jsonb) is 'Raises PT400 for headers that a tenant may not set on its provider.';

-- Options go to the dialect, some of them into headers and addresses.
create or replace function ai.check_own_options(p_options jsonb, p_what text) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
begin
  if p_options is null or jsonb_typeof(p_options) <> 'object' or octet_length(p_options::text) > 8192 then
    raise exception '% are a JSON object of at most 8192 bytes', p_what using errcode = 'PT400';
  elsif strpos(p_options::text, '\') > 0 then
    raise exception '% have no backslash, quotation mark or control character', p_what using errcode = 'PT400';
  elsif p_options ? 'auth' and coalesce(p_options ->> 'auth', '') !~ '^[a-z][a-z0-9-]{0,63}$' then
    raise exception 'the option auth is bearer or the name of a header in small letters' using errcode = 'PT400';
  elsif lower(p_options ->> 'auth') in ('host', 'content-length', 'content-type', 'transfer-encoding', 'connection', 'expect', 'upgrade', 'te', 'trailer') then
    raise exception 'a key cannot travel in the header %', p_options ->> 'auth' using errcode = 'PT400';
  end if;
end
$$;
comment on function ai.check_own_options(jsonb, text) is 'Raises PT400 for options that a tenant may not set.';

-- Trigger BEFORE INSERT OR UPDATE, each row. Raises PT400, and PT409 beyond 100 providers of a tenant.
create or replace function ai.own_provider() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
begin
  if not row_security_active('ai.providers') then
    return new;
  end if;
  if tg_op = 'INSERT' then
    new.tenant_id := coalesce(new.tenant_id, (select ai.tenant_id()));
    if (select count(*) from ai.providers p where p.tenant_id = new.tenant_id) >= 100 then
      raise exception 'a tenant has at most 100 providers of its own' using errcode = 'PT409', hint = 'Change one that is switched off.';
    end if;
  end if;
  if new.dialect = 'local' then
    raise exception 'the dialect local is the worker itself, and has no providers of a tenant'
      using errcode = 'PT400', hint = 'Use the shared models local/extract and local/hash.';
  elsif length(new.base_url) > 500 or new.base_url !~ '^https?://[A-Za-z0-9._\[\]:-]+(/[A-Za-z0-9._~/%:@!$&''()*+,;=-]*)?$' then
    raise exception 'base_url is https://, a host and perhaps a port and a path, at most 500 characters'
      using errcode = 'PT400', detail = 'It has no user, password, query or fragment.', hint = 'A key is named in secret.';
  elsif new.base_url !~ '^https://' and not ai.private_providers() then
    raise exception 'base_url must begin with https://' using errcode = 'PT400', hint = 'The operator may allow others: ai.settings.private_providers.';
  end if;
  perform ai.check_own_headers(new.headers);
  perform ai.check_own_options(new.options, 'options');
  return new;
end
$$;
comment on function ai.own_provider() is 'Trigger: what tenants write into ai.providers is their own, and harmless to others.';

-- Trigger BEFORE INSERT OR UPDATE, each row. Raises PT400; PT403 for a provider that is not the tenant's own, with one text for what is
-- shared, another tenant's, or nobody's; PT409 beyond 1000 models of a tenant.
create or replace function ai.own_model() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if not row_security_active('ai.models') then
    return new;
  end if;
  if tg_op = 'INSERT' then
    new.tenant_id := coalesce(new.tenant_id, (select ai.tenant_id()));
    if (select count(*) from ai.models m where m.tenant_id = new.tenant_id) >= 1000 then
      raise exception 'a tenant has at most 1000 models of its own' using errcode = 'PT409', hint = 'Change one that is switched off.';
    end if;
  end if;
  if not exists (select from ai.providers p where p.id = new.provider_id and p.tenant_id = new.tenant_id and p.tenant_id = (select ai.tenant_id())) then
    raise exception 'a model of a tenant is one of its own providers'''
      using errcode = 'PT403',
            detail = 'With a shared provider it would be paid with the operator''s key.', hint = 'select id, name from ai.providers where tenant_id = ai.tenant_id();';
  elsif concat(new.name, new.wire_name) ~ '[[:cntrl:]]' then
    raise exception 'the names of a model have no control characters' using errcode = 'PT400';
  elsif new.context_tokens > 100000000 or new.max_output_tokens > 100000000 then
    raise exception 'context_tokens and max_output_tokens are at most 100000000' using errcode = 'PT400';
  end if;
  perform ai.check_own_options(new.options, 'options');
  perform ai.check_own_options(new.capabilities, 'capabilities');
  return new;
end
$$;
comment on function ai.own_model() is 'Trigger: what tenants write into ai.models hangs on their own providers.';

-- Trigger BEFORE INSERT, each row; before version_price, which locks the model. Raises PT400, PT403, and PT409 beyond 1000
-- versions of one model. Rates are bounded, because sums of costs are numeric of every tenant.
create or replace function ai.own_price() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if not row_security_active('ai.prices') then
    return new;
  end if;
  if not exists (select from ai.models m where m.id = new.model_id and m.tenant_id = (select ai.tenant_id())) then
    raise exception 'a tenant prices its own models' using errcode = 'PT403', hint = 'select id, name from ai.models where tenant_id = ai.tenant_id();';
  elsif (select count(*) from ai.prices p where p.model_id = new.model_id) >= 1000 then
    raise exception 'a model has at most 1000 price versions' using errcode = 'PT409';
  end if;
  perform ai.check_rates(new.rates, null, 1000000, 12);
  return new;
end
$$;
comment on function ai.own_price() is 'Trigger: tenants price their own models, within bounds.';

-- How the caller's own providers are reached, which is hidden of shared ones. Raises PT401, PT403.
create or replace function ai.own_providers()
returns table (id bigint, name text, dialect text, base_url text, secret text, headers jsonb, options jsonb, enabled boolean, created_at timestamptz)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_me record;
begin
  select * into v_me from ai.require('model:write');
  return query
    select p.id, p.name, p.dialect, p.base_url, p.secret, p.headers, p.options, p.enabled, p.created_at
      from ai.providers p where p.tenant_id = v_me.tenant_id order by p.name;
end
$$;
comment on function ai.own_providers() is 'The tenant''s own providers with address, headers, options and the name of the secret; for who may change them.';

revoke execute on function ai.private_providers(), ai.check_own_headers(jsonb), ai.check_own_options(jsonb, text), ai.own_provider(), ai.own_model(),
  ai.own_price(), ai.own_providers() from public;
grant execute on function ai.own_providers() to ai_user;
-- For the triggers, which run as who writes.
grant execute on function ai.private_providers(), ai.check_own_headers(jsonb), ai.check_own_options(jsonb, text) to ai_admin;

-- objects

create or replace trigger own_provider before insert or update on ai.providers
  for each row execute function ai.own_provider();
create or replace trigger own_model before insert or update on ai.models
  for each row execute function ai.own_model();
create or replace trigger own_price before insert on ai.prices
  for each row execute function ai.own_price();

drop policy if exists own_insert on ai.providers;
create policy own_insert on ai.providers for insert to ai_admin with check (tenant_id = (select ai.tenant_for('model:write')));
drop policy if exists own_update on ai.providers;
create policy own_update on ai.providers for update to ai_admin using (tenant_id = (select ai.tenant_for('model:write')));
drop policy if exists own_insert on ai.models;
create policy own_insert on ai.models for insert to ai_admin with check (tenant_id = (select ai.tenant_for('model:write')));
drop policy if exists own_update on ai.models;
create policy own_update on ai.models for update to ai_admin using (tenant_id = (select ai.tenant_for('model:write')));
drop policy if exists own_insert on ai.prices;
create policy own_insert on ai.prices for insert to ai_admin
  with check (exists (select from ai.models m where m.id = model_id and m.tenant_id = (select ai.tenant_for('model:write'))));
drop policy if exists visible on ai.provider_accounts;
create policy visible on ai.provider_accounts for select to ai_admin
  using (exists (select from ai.providers p where p.id = provider_id and p.tenant_id = (select ai.tenant_for('model:write'))));
drop policy if exists own_insert on ai.provider_accounts;
create policy own_insert on ai.provider_accounts for insert to ai_admin
  with check (exists (select from ai.providers p where p.id = provider_id and p.tenant_id = (select ai.tenant_for('model:write'))));
drop policy if exists own_update on ai.provider_accounts;
create policy own_update on ai.provider_accounts for update to ai_admin
  using (exists (select from ai.providers p where p.id = provider_id and p.tenant_id = (select ai.tenant_for('model:write'))));

-- By column, because who may update or delete a whole table may also lock it. What is not wanted any more is switched off.
grant insert (tenant_id, name, dialect, base_url, secret, headers, options, enabled),
      update (base_url, secret, headers, options, enabled) on ai.providers to ai_admin;
grant insert (tenant_id, provider_id, name, wire_name, kind, context_tokens, max_output_tokens, dimensions, capabilities, options, enabled),
      update (wire_name, context_tokens, max_output_tokens, capabilities, options, enabled) on ai.models to ai_admin;
grant insert (model_id, valid_from, rates) on ai.prices to ai_admin;
grant select (provider_id, position, secret, enabled), insert (provider_id, position, secret, enabled), update (enabled) on ai.provider_accounts to ai_admin;
