-- Which model answers, and what tokens cost.

-- The model to call: the named one, or the p_target-th of the profile's route without regard to conditions and
-- strategy (ai.route_models() has those); null where there is none. A tenant's own model or route goes before the shared
-- one of the same name. What another tenant owns is never found, whatever refers to it. Own and shared rows are looked
-- up apart, because a comparison that also matches null finds nothing by an index, and in statements of their own, because
-- every insert asks, and what is not needed need not be prepared.
create or replace function ai.target_model(p_tenant uuid, p_kind text, p_model text, p_profile text, p_target integer)
returns bigint
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  v_found bigint;
begin
  if p_model is not null then
    if p_target <> 1 then
      return null;
    end if;
    select m.id into v_found
      from ai.models m
      join ai.providers p on p.id = m.provider_id and p.enabled and (p.tenant_id is null or p.tenant_id = p_tenant)
     where m.tenant_id = p_tenant and m.name = p_model and m.kind = p_kind and m.enabled;
    if not found then
      select m.id into v_found
        from ai.models m
        join ai.providers p on p.id = m.provider_id and p.enabled and (p.tenant_id is null or p.tenant_id = p_tenant)
       where m.tenant_id is null and m.name = p_model and m.kind = p_kind and m.enabled;
    end if;
    return v_found;
  end if;
  if exists (select from ai.routes o where o.tenant_id = p_tenant and o.profile = p_profile and o.kind = p_kind) then
    select m.id into v_found
      from ai.routes r
      join ai.models m on m.id = r.model_id and m.enabled and m.kind = p_kind and (m.tenant_id is null or m.tenant_id = p_tenant)
      join ai.providers p on p.id = m.provider_id and p.enabled and (p.tenant_id is null or p.tenant_id = p_tenant)
     where r.tenant_id = p_tenant and r.profile = p_profile and r.kind = p_kind and r.enabled
     order by r.position offset p_target - 1 limit 1;
  else
    select m.id into v_found
      from ai.routes r
      join ai.models m on m.id = r.model_id and m.enabled and m.kind = p_kind and (m.tenant_id is null or m.tenant_id = p_tenant)
      join ai.providers p on p.id = m.provider_id and p.enabled and (p.tenant_id is null or p.tenant_id = p_tenant)
     where r.tenant_id is null and r.profile = p_profile and r.kind = p_kind and r.enabled
     order by r.position offset p_target - 1 limit 1;
  end if;
  return v_found;
end
$$;
comment on function ai.target_model(uuid, text, text, text, integer) is
  'Id of the model that answers: by name, or the n-th target (from 1) of a profile''s route. Null: none.';
revoke execute on function ai.target_model(uuid, text, text, text, integer) from public;

-- Tokens are given as totals that include their parts. Money is never rounded: the factor is a multiplication by
-- 0.000001, because a division of numeric chooses a scale and may lose digits.
--   uncached input = input - cached - cache_write - cache_write_1h
--   a rate that is missing is that of: cached, cache_write -> input; cache_write_1h -> cache_write; reasoning -> output
create or replace function ai.token_cost(
  p_rates jsonb, p_input bigint, p_cached bigint, p_cache_write bigint, p_cache_write_1h bigint, p_output bigint, p_reasoning bigint)
returns numeric
language sql immutable parallel safe security invoker
as $$
  select case when p_rates is null then null
    when p_cached = 0 and p_cache_write = 0 and p_cache_write_1h = 0 and p_reasoning = 0 then  -- as below, without what is nothing
      trim_scale(0.000001 * (p_input * coalesce((p_rates ->> 'input')::numeric, 0) + p_output * coalesce((p_rates ->> 'output')::numeric, 0)))
    else trim_scale(0.000001 * (
      (p_input - p_cached - p_cache_write - p_cache_write_1h) * coalesce((p_rates ->> 'input')::numeric, 0)
    + p_cached         * coalesce((p_rates ->> 'cache_read')::numeric, (p_rates ->> 'input')::numeric, 0)
    + p_cache_write    * coalesce((p_rates ->> 'cache_write')::numeric, (p_rates ->> 'input')::numeric, 0)
    + p_cache_write_1h * coalesce((p_rates ->> 'cache_write_1h')::numeric, (p_rates ->> 'cache_write')::numeric, (p_rates ->> 'input')::numeric, 0)
    + (p_output - p_reasoning) * coalesce((p_rates ->> 'output')::numeric, 0)
    + p_reasoning      * coalesce((p_rates ->> 'reasoning')::numeric, (p_rates ->> 'output')::numeric, 0))) end
$$;
comment on function ai.token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint) is
  'What tokens cost by the rates of one price version (per million tokens), exact; null without rates. Totals include their parts.';
revoke execute on function ai.token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint) from public;
grant execute on function ai.token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint) to ai_user, ai_monitor;

-- Keeps the versions of a price without overlap, and the past as it was: a new version ends the one before it, at its
-- own beginning; nothing else of a version is ever changed, and what was billed by it stays within its validity, so that
-- every past cost can be derived again. Raises PT400, PT409. Locks the model's row, so that two new versions of one
-- model follow each other.
create or replace function ai.version_price() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text;
begin
  if tg_op = 'TRUNCATE' then
    raise exception 'price versions are not truncated' using errcode = 'PT409', detail = 'What was billed by them could not be derived again.';
  elsif tg_op = 'DELETE' then
    if exists (select from ai.llm_calls c where c.price_id = old.id and c.created_at >= old.valid_from and c.created_at < old.valid_to) then
      raise exception 'calls were billed by this price version' using errcode = 'PT409', hint = 'Set its valid_to, or insert the one that follows it.';
    end if;
    return old;
  end if;

  if tg_op = 'UPDATE' then
    if (new.id, new.rates, new.model_id, new.valid_from) is distinct from (old.id, old.rates, old.model_id, old.valid_from) then
      raise exception 'a price version is not changed, it is replaced'
        using errcode = 'PT409', hint = 'Insert a new row with its valid_from; this one ends there by itself.';
    end if;
    if exists (select from ai.prices p where p.model_id = new.model_id and p.valid_from > new.valid_from and p.valid_from < new.valid_to) then
      raise exception 'the price version that follows begins before' using errcode = 'PT409';
    end if;
    if exists (select from ai.llm_calls c where c.created_at >= new.valid_to and c.price_id = new.id) then
      raise exception 'calls of that time were billed already, by the price version that would end'
        using errcode = 'PT409', detail = 'The past stays as it was billed.', hint = 'A new version begins now or later.';
    end if;
    return new;
  end if;

  select m.kind into v_kind from ai.models m where m.id = new.model_id for no key update;
  if new.rates is not null then
    perform ai.check_rates(new.rates, v_kind);
  end if;
  if exists (select from ai.prices p where p.model_id = new.model_id and p.valid_from > new.valid_from) then
    raise exception 'a later price version exists already'
      using errcode = 'PT409', detail = 'Versions are added at the end: the past stays as it was billed.';
  end if;
  update ai.prices p set valid_to = new.valid_from
   where p.model_id = new.model_id and p.valid_from < new.valid_from and p.valid_to > new.valid_from;
  return new;
end
$$;
comment on function ai.version_price() is 'Trigger: a new price version ends the one before; what was billed by is not changed.';
revoke execute on function ai.version_price() from public;

-- objects

create or replace trigger version_price before insert or update or delete on ai.prices
  for each row execute function ai.version_price();
create or replace trigger keep_prices before truncate on ai.prices
  for each statement execute function ai.version_price();

drop policy if exists visible on ai.providers;
create policy visible on ai.providers for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('model:read') or ai.may('model:write')));
drop policy if exists visible on ai.models;
create policy visible on ai.models for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('model:read') or ai.may('model:write')));
drop policy if exists visible on ai.routes;
create policy visible on ai.routes for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('model:read') or ai.may('model:write')));
-- Which models its profiles use is a tenant's own business; which shared models there are is the operator's.
drop policy if exists administered on ai.routes;
create policy administered on ai.routes to ai_admin
  using (tenant_id = (select ai.tenant_for('model:write')))
  with check (tenant_id = (select ai.tenant_for('model:write')) and exists (select from ai.models m where m.id = model_id));
drop policy if exists visible on ai.prices;
create policy visible on ai.prices for select to ai_user using (exists (select from ai.models m where m.id = model_id));
drop policy if exists visible on ai.retry_rules;
create policy visible on ai.retry_rules for select to ai_user using ((select ai.may('model:read') or ai.may('model:write')));

-- base_url, headers and the name of the secret of a shared provider are the operator's business; of its own a tenant reads them by ai.own_providers().
grant select (id, tenant_id, name, dialect, enabled, created_at) on ai.providers to ai_user;
grant select on ai.models, ai.routes, ai.prices, ai.retry_rules to ai_user;
-- By column, because who may update or delete a whole table may also lock it, and with it everybody's claims. Rows are
-- deleted by ai.delete_profile().
grant insert (tenant_id, profile, kind, position, model_id, enabled, weight, min_input_tokens, max_input_tokens, tier, metadata, stream),
      update (position, model_id, enabled, weight, min_input_tokens, max_input_tokens, tier, metadata, stream) on ai.routes to ai_admin;
