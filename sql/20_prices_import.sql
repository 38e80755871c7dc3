-- Where providers, models and prices come from: the catalog that ships, and LiteLLM's price map. The operator's alone: both write shared
-- rows, with the caller's own rights, and no app role may call them.

-- The entry of the map that is about a model: the one that its row names, else that of its provider and its name on the wire.
create or replace function ai.find_map_entry(p_map jsonb, p_provider text, p_wire_name text, p_entry text) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  if p_entry is not null then
    return case when jsonb_typeof(p_map -> p_entry) = 'object' then p_entry end;
  end if;
  foreach v_name in array array[p_provider || '/' || p_wire_name, p_wire_name] loop
    -- Some providers are several there: cohere and cohere_chat, openai and text-completion-openai.
    if jsonb_typeof(p_map -> v_name) = 'object'
       and (v_name = p_provider || '/' || p_wire_name or replace(coalesce(p_map -> v_name ->> 'litellm_provider', ''), 'text-completion-', '') in (p_provider, p_provider || '_chat')) then
      return v_name;
    end if;
  end loop;
  return null;
end
$$;
comment on function ai.find_map_entry(jsonb, text, text, text) is 'The key of the entry of a price map that is about a model; null: none.';

-- Takes LiteLLM's price map: a new price version for each shared model whose price is another now, and what is missing of its sizes
-- and capabilities. add: names of providers of which every model of the map is added that is not there yet. models: a LIKE pattern of the names of models.
-- dry_run: nothing is written, the report is the same. Gives a row for each model that was looked at:
--   what            added, or updated, or kept (nothing to do), no entry, other kind (the entry is about another kind of request)
--   price           priced, repriced, same, no price (the entry has none that could be used), later version (one begins after valid_from)
--   not_understood  what the entry says about money that a price here cannot say
-- Raises PT400 for what is no map, PT404 for a provider that there is not.
create or replace function ai.import_prices(
  map jsonb, add text[] default '{}', models text default '%', valid_from timestamptz default ai.now(), dry_run boolean default false)
returns table (model text, entry text, what text, price text, old_rates jsonb, new_rates jsonb, not_understood text[])
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_map    jsonb;  -- its entries, unpacked once
  v_model  record;
  v_said   record;
  v_priced record;
begin
  if jsonb_typeof(import_prices.map) is distinct from 'object' or valid_from is null or not isfinite(valid_from) then
    raise exception 'ai.import_prices() takes the price map, a JSON object, and when it is valid from' using errcode = 'PT400';
  elsif exists (select from unnest(add) a where not exists (select from ai.providers p where p.tenant_id is null and p.name = a)) then
    raise exception 'there is no shared provider of this name' using errcode = 'PT404', hint = 'Insert it first, with its price_map where LiteLLM calls it otherwise.';
  end if;
  v_map := coalesce((select jsonb_object_agg(e.key, e.value) from jsonb_each(import_prices.map) e where jsonb_typeof(e.value) = 'object'), '{}');
  for v_model in
    select m.id, m.name, m.kind, m.provider_id, m.wire_name, ai.find_map_entry(v_map, coalesce(p.price_map, p.name), m.wire_name, m.price_entry) as entry
      from ai.models m join ai.providers p on p.id = m.provider_id
     where m.tenant_id is null and p.tenant_id is null and p.dialect <> 'local' and m.name like import_prices.models
    union all
    select null, n.name, null, n.provider_id, n.wire_name, n.entry
      from (select p.id as provider_id, e.key as entry, w.wire_name, p.name || '/' || w.wire_name as name, coalesce(p.price_map, p.name) as price_map
              from jsonb_each(v_map) e
              join ai.providers p on p.tenant_id is null and p.name = any (import_prices.add)
                                 and replace(e.value ->> 'litellm_provider', 'text-completion-', '')
                                     in (coalesce(p.price_map, p.name), coalesce(p.price_map, p.name) || '_chat')
             cross join lateral (select case when left(e.key, length(coalesce(p.price_map, p.name)) + 1) = coalesce(p.price_map, p.name) || '/'
                                             then substr(e.key, length(coalesce(p.price_map, p.name)) + 2) else e.key end as wire_name) w) n
     where n.name like import_prices.models and length(n.name) <= 200 and n.wire_name <> '' and strpos(n.entry, '*') = 0
       and (ai.map_model(v_map -> n.entry)).kind is not null
       and ai.find_map_entry(v_map, n.price_map, n.wire_name, null) = n.entry
       and not exists (select from ai.models m where m.tenant_id is null and (m.name = n.name or m.provider_id = n.provider_id and m.wire_name = n.wire_name))
     order by 2
  loop
    model := v_model.name;
    entry := v_model.entry;
    what := case when v_model.id is null then 'added' else 'kept' end;
    price := null;
    old_rates := (select p.rates from ai.prices p where p.model_id = v_model.id and p.valid_from <= import_prices.valid_from and import_prices.valid_from < p.valid_to);
    new_rates := null;
    not_understood := null;
    if entry is null then
      what := 'no entry';
      return next;
      continue;
    end if;
    select * into v_said from ai.map_model(v_map -> entry);
    if v_model.id is not null and v_said.kind is distinct from v_model.kind then
      what := 'other kind';
      return next;
      continue;
    end if;
    select * into v_priced from ai.map_rates(v_map -> entry);
    not_understood := v_priced.not_understood;
    new_rates := v_priced.rates;

    if v_model.id is null and not dry_run then
      insert into ai.models (provider_id, name, wire_name, kind, context_tokens, max_output_tokens, dimensions, capabilities)
      values (v_model.provider_id, v_model.name, v_model.wire_name, v_said.kind, v_said.context_tokens, v_said.max_output_tokens, v_said.dimensions, v_said.capabilities)
      returning id into v_model.id;
    elsif v_model.id is not null
          and exists (select from ai.models m where m.id = v_model.id
                       and (m.context_tokens is null and v_said.context_tokens is not null or m.max_output_tokens is null and v_said.max_output_tokens is not null
                            or v_said.capabilities || m.capabilities <> m.capabilities)) then
      what := 'updated';
      if not dry_run then
        update ai.models m
           set context_tokens = coalesce(m.context_tokens, v_said.context_tokens), max_output_tokens = coalesce(m.max_output_tokens, v_said.max_output_tokens),
               capabilities = v_said.capabilities || m.capabilities
         where m.id = v_model.id;
      end if;
    end if;
    if v_model.id is not null then
      price := ai.put_price(v_model.id, new_rates, valid_from, dry_run);
    else
      begin
        perform ai.check_rates(new_rates, v_said.kind);
        price := 'priced';
      exception when sqlstate 'PT400' then
        price := 'no price';
      end;
    end if;
    return next;
  end loop;
end
$$;
comment on function ai.import_prices(jsonb, text[], text, timestamptz, boolean) is
  'Takes prices, sizes and capabilities from LiteLLM''s price map; gives what became of each model.';

-- Loads the catalog that ships (catalog/catalog.json): shared providers and models that are not there yet, what is missing of the options
-- of providers of the same dialect and of the sizes and capabilities of models that are, and a new price version where a price is another.
-- providers: names of providers. What the operator changed about a provider stays. Gives a row for each provider and model:
--   what   added, updated, kept
--   price  priced, repriced, same, later version; null: the catalog has none
-- Raises PT400 for what is no catalog, PT404 for a provider that it does not have.
create or replace function ai.load_catalog(
  catalog jsonb, providers text[] default null, valid_from timestamptz default ai.now(), dry_run boolean default false)
returns table (name text, what text, price text)
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_wrong constant jsonpath := '$.providers[*] ? (!(@.type() == "object" && @.name.type() == "string" && @.dialect.type() == "string")'
                               ' || exists(@.models) && @.models.type() != "array" || exists(@.models[*] ? (!(@.type() == "object" && @.name.type() == "string"))))';
  v_provider record;
  v_model    record;
  v_known    record;
  v_id       bigint;
  v_owner    bigint;
begin
  if jsonb_typeof(catalog) is distinct from 'object' or jsonb_typeof(catalog -> 'providers') is distinct from 'array' or valid_from is null or not isfinite(valid_from)
     or catalog @? c_wrong then
    raise exception 'this is no catalog'
      using errcode = 'PT400', detail = 'A catalog has providers, a provider has a name and a dialect, and each of its models a name.', hint = 'catalog/catalog.json, or: martlet catalog show';
  elsif exists (select from unnest(load_catalog.providers) o where not exists (select from jsonb_array_elements(catalog -> 'providers') p where p.value ->> 'name' = o)) then
    raise exception 'the catalog has no such provider' using errcode = 'PT404', hint = 'martlet catalog list';
  end if;
  for v_provider in
    select p.* from jsonb_to_recordset(catalog -> 'providers')
      p (name text, dialect text, base_url text, secret text, headers jsonb, options jsonb, price_map text, models jsonb)
     where load_catalog.providers is null or p.name = any (load_catalog.providers)
  loop
    name := v_provider.name;
    price := null;
    select p.id, p.dialect = v_provider.dialect and coalesce(v_provider.options, '{}') || p.options <> p.options as lacks into v_known
      from ai.providers p where p.tenant_id is null and p.name = v_provider.name;
    v_owner := v_known.id;
    what := case when v_owner is null then 'added' when v_known.lacks then 'updated' else 'kept' end;
    if v_known.lacks and not dry_run then
      update ai.providers p set options = v_provider.options || p.options where p.id = v_owner;
    elsif v_owner is null and not dry_run then
      insert into ai.providers (name, dialect, base_url, secret, headers, options, price_map)
      values (v_provider.name, v_provider.dialect, coalesce(v_provider.base_url, ''), v_provider.secret, coalesce(v_provider.headers, '{}'), coalesce(v_provider.options, '{}'), v_provider.price_map)
      returning id into v_owner;
    end if;
    return next;

    for v_model in
      select m.* from jsonb_to_recordset(coalesce(v_provider.models, '[]'))
        m (name text, wire_name text, kind text, context_tokens integer, max_output_tokens integer, dimensions integer, capabilities jsonb, options jsonb, price_entry text, rates jsonb)
    loop
      name := v_provider.name || '/' || v_model.name;
      what := 'kept';
      price := null;
      select m.* into v_known from ai.models m where m.tenant_id is null and m.name = v_provider.name || '/' || v_model.name;
      v_id := v_known.id;
      if v_id is null then
        what := 'added';
        if not dry_run then
          insert into ai.models (provider_id, name, wire_name, kind, context_tokens, max_output_tokens, dimensions, capabilities, options, price_entry)
          values (v_owner, v_provider.name || '/' || v_model.name, coalesce(v_model.wire_name, v_model.name), coalesce(v_model.kind, 'chat'), v_model.context_tokens, v_model.max_output_tokens,
                  v_model.dimensions, coalesce(v_model.capabilities, '{}'), coalesce(v_model.options, '{}'), v_model.price_entry)
          returning id into v_id;
        end if;
      elsif (v_known.context_tokens is null and v_model.context_tokens is not null) or (v_known.max_output_tokens is null and v_model.max_output_tokens is not null)
            or coalesce(v_model.capabilities, '{}') || v_known.capabilities <> v_known.capabilities then
        what := 'updated';
        if not dry_run then
          update ai.models m
             set context_tokens = coalesce(m.context_tokens, v_model.context_tokens), max_output_tokens = coalesce(m.max_output_tokens, v_model.max_output_tokens),
                 capabilities = coalesce(v_model.capabilities, '{}') || m.capabilities
           where m.id = v_id;
        end if;
      end if;
      if v_model.rates is not null then
        price := case when v_id is not null then ai.put_price(v_id, v_model.rates, valid_from, dry_run) else 'priced' end;
      end if;
      return next;
    end loop;
  end loop;
end
$$;
comment on function ai.load_catalog(jsonb, text[], timestamptz, boolean) is 'Loads providers, models and prices of a catalog; gives what became of each.';

revoke execute on function ai.find_map_entry(jsonb, text, text, text), ai.import_prices(jsonb, text[], text, timestamptz, boolean),
  ai.load_catalog(jsonb, text[], timestamptz, boolean) from public;
