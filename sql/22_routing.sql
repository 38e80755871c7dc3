-- Which models are asked, in which order: profiles, their rules, and the strategies of routes.

-- A generation's metadata as conditions of rules and routes see them: those of more than 64 KiB as if they were empty. To be asked once for all conditions:
-- it goes through the whole.
create or replace function ai.comparable_metadata(p_metadata jsonb) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select case when octet_length(p_metadata::text) <= 65536 then p_metadata else '{}' end $$;
comment on function ai.comparable_metadata(jsonb) is 'Metadata that conditions are compared with; too large ones are empty.';

-- Whether comparable metadata fit the condition of a rule or a route; null: any do. Asked for each route in every claim, for one tenant's generation while
-- others' wait: so a condition is small (ai.check_condition()), and one that was stored larger fits nothing. Deeper than the stack it would fail the claims of all.
create or replace function ai.fits_condition(p_metadata jsonb, p_condition jsonb) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when p_condition is null then true
              when octet_length(p_condition::text) > 2000 then false
              else p_metadata @> p_condition end
$$;
comment on function ai.fits_condition(jsonb, jsonb) is 'Whether metadata contain what a rule or a route asks for.';

-- Trigger BEFORE INSERT OR UPDATE OF metadata, of rules and routes. Raises PT400 for a condition of more than 2,000 bytes, or of more than 10 elements of
-- arrays: each of them is looked for from one end of an array to the other.
create or replace function ai.check_condition() returns trigger
language plpgsql immutable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if octet_length(new.metadata::text) > 2000 then
    raise exception 'a condition on metadata has at most 2000 bytes' using errcode = 'PT400';
  elsif (select sum(n::integer) from jsonb_path_query(new.metadata, 'strict $.** ? (@.type() == "array").size()') n) > 10 then
    raise exception 'a condition on metadata has at most 10 elements of arrays' using errcode = 'PT400', hint = 'Objects may have more members.';
  end if;
  return new;
end
$$;
comment on function ai.check_condition() is 'Trigger: bounds what a rule or a route asks of metadata.';

-- Profile for a generation that names neither a model nor a profile: of the first fitting row of ai.profile_rules, the
-- tenant's own before the shared ones; else the default. p_length counts characters.
create or replace function ai.choose_profile(p_tenant uuid, p_kind text, p_length bigint, p_metadata jsonb) returns text
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_metadata constant jsonb := ai.comparable_metadata(p_metadata);
  v_profile  text;
begin
  select r.profile into v_profile
    from (select o.* from ai.profile_rules o where o.tenant_id = p_tenant and o.kind = p_kind
          union all select s.* from ai.profile_rules s where s.tenant_id is null and s.kind = p_kind) r
   where r.enabled
     and (r.min_length is null or p_length >= r.min_length)
     and (r.max_length is null or p_length <= r.max_length)
     and ai.fits_condition(v_metadata, r.metadata)
     and (r.tier is null or r.tier = (select t.tier from ai.tenants t where t.id = p_tenant))
   order by r.tenant_id nulls last, r.position limit 1;
  return coalesce(v_profile, (select s.default_profile from ai.settings s));
end
$$;
comment on function ai.choose_profile(uuid, text, bigint, jsonb) is
  'Profile for what names neither model nor profile, by ai.profile_rules; else ai.settings.default_profile.';

-- How long the stages may take. All null but the defaults of the two looks into the database where the profile has no row.
create or replace function ai.time_budget(
  p_tenant uuid, p_kind text, p_profile text,
  out first_token_ms integer, out total_ms integer, out database_ms integer, out cache_ms integer, out degrade boolean)
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select b.first_token_ms, b.total_ms, coalesce(b.database_ms, 300), coalesce(b.cache_ms, 200), coalesce(b.degrade and p_kind = 'chat', false)
    from (values (1)) one
    left join lateral (
      select p.*
        from (select o.* from ai.profiles o where o.tenant_id = p_tenant and o.name = p_profile and o.kind = p_kind
              union all select s.* from ai.profiles s where s.tenant_id is null and s.name = p_profile and s.kind = p_kind) p
       order by p.tenant_id nulls last limit 1) b on true
$$;
comment on function ai.time_budget(uuid, text, text) is
  'Time budgets of a profile in milliseconds (first text, whole, database, cache), and whether it degrades.';

-- Whether the route depends on more than tenant, kind and profile, so that each generation needs its own. p_bytes: the
-- longest input in question, which may exceed the context of a model; null: no matter.
create or replace function ai.route_varies(p_tenant uuid, p_kind text, p_profile text, p_bytes integer default null) returns boolean
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((select p.strategy in ('weighted', 'cheapest', 'least_busy')
                     from (select o.* from ai.profiles o where o.tenant_id = p_tenant and o.name = p_profile and o.kind = p_kind
                           union all select s.* from ai.profiles s where s.tenant_id is null and s.name = p_profile and s.kind = p_kind) p
                    order by p.tenant_id nulls last limit 1), false)
      or exists (select from (select o.* from ai.routes o where o.tenant_id = p_tenant and o.profile = p_profile and o.kind = p_kind
                              union all select s.* from ai.routes s where s.tenant_id is null and s.profile = p_profile and s.kind = p_kind) r
                  where r.enabled
                    and (num_nonnulls(r.min_input_tokens, r.max_input_tokens, r.metadata, r.stream) > 0
                         or p_bytes is not null and exists (select from ai.models m where m.id = r.model_id and m.context_tokens < p_bytes / 4.0)));
end
$$;
comment on function ai.route_varies(uuid, text, text, integer) is
  'Whether generations of one tenant, kind and profile may have different routes.';

-- A number above 0 and below 1 that a generation and a model always give again, evenly spread over generations and
-- independent between models.
create or replace function ai.draw(p_seed uuid, p_model bigint) returns double precision
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select (((hashtextextended(coalesce(p_seed::text, ''), p_model) >> 11) & 9007199254740991) + 0.5) / 9007199254740992.0::double precision $$;
comment on function ai.draw(uuid, bigint) is 'Between 0 and 1, the same for the same generation and model.';

-- What the strategy of a profile goes by: the smaller, the earlier.
--   weighted:   an exponential draw divided by the weight; the smallest belongs to each with a probability proportional
--               to its weight, and so does the order of the rest
--   cheapest:   price of the input and of 500 tokens of output; without a price last
--   fastest:    moving average of the time to first text, halved every ten minutes in which nothing was measured, so
--               that a target which was slow once is tried again; what was never measured first
--   least_busy: attempts running now
create or replace function ai.route_rank(p_strategy text, p_model bigint, p_weight integer, p_tokens integer, p_seed uuid) returns double precision
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_output constant bigint := 500;
begin
  case p_strategy
    when 'weighted' then
      return case when p_weight > 0 then -ln(ai.draw(p_seed, p_model)) / p_weight else 'infinity' end;
    when 'cheapest' then
      return coalesce((select ai.usual_cost(p.rates, p_tokens, c_output)::double precision
                         from ai.prices p where p.model_id = p_model and p.valid_from <= ai.now() and ai.now() < p.valid_to limit 1), 'infinity');
    when 'fastest' then
      return coalesce((select s.ttft_ms * power(0.5, least(greatest(extract(epoch from ai.now() - s.updated_at), 0) / 600, 1000))
                         from ai.model_stats s where s.model_id = p_model), 0);
    when 'least_busy' then
      return (select count(*) from ai.leases l where l.model_id = p_model and not l.batched);
    else
      return 0;
  end case;
end
$$;
comment on function ai.route_rank(text, bigint, integer, integer, uuid) is 'What a strategy orders targets by, ascending.';

-- Models in the order in which a generation tries them; null: none. A named model is the only one. Otherwise the
-- enabled targets of the profile's route whose conditions fit and whose context holds the input; where no context does,
-- the largest. Equal ranks go by position, but for least_busy, which spreads them. A profile that degrades ends with
-- local/extract. Runs in every claim.
create or replace function ai.route_models(
  p_tenant uuid, p_kind text, p_model text, p_profile text, p_bytes integer, p_metadata jsonb, p_stream boolean, p_seed uuid)
returns bigint[]
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tokens  integer := (coalesce(p_bytes, 0)::bigint + 3) / 4;
  v_metadata jsonb;
  v_profile record;
  v_fitting bigint[];
  v_weights integer[];
  v_all_fit boolean;
  v_last    bigint;
begin
  if p_model is not null then
    v_last := ai.target_model(p_tenant, p_kind, p_model, null, 1);
    return case when v_last is not null then array[v_last] end;
  end if;

  v_metadata := ai.comparable_metadata(p_metadata);
  select p.strategy, p.degrade into v_profile
    from (select o.* from ai.profiles o where o.tenant_id = p_tenant and o.name = p_profile and o.kind = p_kind
          union all select s.* from ai.profiles s where s.tenant_id is null and s.name = p_profile and s.kind = p_kind) p
   order by p.tenant_id nulls last limit 1;

  select array_agg(m.id order by r.position), array_agg(r.weight order by r.position),
         bool_and(m.context_tokens is null or m.context_tokens >= v_tokens)
    into v_fitting, v_weights, v_all_fit
    from (select o.* from ai.routes o where o.tenant_id = p_tenant and o.profile = p_profile and o.kind = p_kind
          union all
          select s.* from ai.routes s where s.tenant_id is null and s.profile = p_profile and s.kind = p_kind
             and not exists (select from ai.routes o where o.tenant_id = p_tenant and o.profile = p_profile and o.kind = p_kind)) r
    join ai.models m on m.id = r.model_id and m.enabled and m.kind = p_kind and (m.tenant_id is null or m.tenant_id = p_tenant)
    join ai.providers v on v.id = m.provider_id and v.enabled and (v.tenant_id is null or v.tenant_id = p_tenant)
   where r.enabled
     and (r.min_input_tokens is null or v_tokens >= r.min_input_tokens)
     and (r.max_input_tokens is null or v_tokens <= r.max_input_tokens)
     and (r.stream is null or r.stream = coalesce(p_stream, false))
     and ai.fits_condition(v_metadata, r.metadata)
     and (r.tier is null or r.tier = (select t.tier from ai.tenants t where t.id = p_tenant));
  if not v_all_fit then
    -- Those that hold it, or else the largest.
    select array_agg(u.id order by u.n), array_agg(u.weight order by u.n) into v_fitting, v_weights
      from (select u.*, rank() over (order by m.context_tokens is null or m.context_tokens >= v_tokens desc,
                                              case when m.context_tokens < v_tokens then -m.context_tokens end, case when m.context_tokens < v_tokens then u.n end) as place
              from unnest(v_fitting, v_weights) with ordinality u (id, weight, n) join ai.models m on m.id = u.id) u
     where u.place = 1;
  end if;
  if v_profile.strategy <> 'priority' then
    v_fitting := array(select u.id
                         from unnest(v_fitting, v_weights) with ordinality u (id, weight, n)
                        order by ai.route_rank(v_profile.strategy, u.id, u.weight, v_tokens, p_seed),
                                 case when v_profile.strategy = 'least_busy' then ai.draw(p_seed, u.id) end, u.n);
    v_fitting := nullif(v_fitting, '{}');
  end if;

  if v_profile.degrade and p_kind = 'chat' then
    v_last := ai.extract_model();
    if v_last is not null and not v_last = any (coalesce(v_fitting, '{}')) then
      v_fitting := v_fitting || v_last;
    end if;
  end if;
  return v_fitting;
end
$$;
comment on function ai.route_models(uuid, text, text, text, integer, jsonb, boolean, uuid) is
  'Ids of the models that a generation tries, in order; null: none. p_seed: its id.';

create or replace function ai.extract_model() returns bigint
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select m.id from ai.models m join ai.providers p on p.id = m.provider_id and p.enabled
   where m.tenant_id is null and m.name = 'local/extract' and m.kind = 'chat' and m.enabled
$$;
comment on function ai.extract_model() is 'Id of local/extract, the last resort; null where it is switched off.';

-- Why the answer of a target is less than what was asked for: local/extract stands in for models that the profile's own
-- route names. Null where it is not less.
create or replace function ai.why_degraded(p_tenant uuid, p_kind text, p_profile text, p_model bigint) returns text
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'no model of the profile answered in time: these are the passages that were found'
   where p_profile is not null and p_model = ai.extract_model()
     and (select b.degrade from ai.time_budget(p_tenant, p_kind, p_profile) b)
     and not exists (select from ai.routes r where r.profile = p_profile and r.kind = p_kind and r.model_id = p_model and r.enabled
                        and (r.tenant_id = p_tenant or r.tenant_id is null
                             and not exists (select from ai.routes o where o.tenant_id = p_tenant and o.profile = p_profile and o.kind = p_kind)))
$$;
comment on function ai.why_degraded(uuid, text, text, bigint) is 'What ai.generations.degraded says when this model answers; null: nothing.';

-- A tenant goes back to what is shared: deletes its own rows of a profile in ai.profiles and ai.routes, and its rules that
-- lead there. Gives how many rows. Raises PT401, PT403.
create or replace function ai.delete_profile(p_profile text, p_kind text default 'chat') returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me      record;
  v_deleted integer;
begin
  select * into v_me from ai.require('model:write');
  with routes as (
    delete from ai.routes r where r.tenant_id = v_me.tenant_id and r.profile = p_profile and r.kind = p_kind returning 1
  ), rules as (
    delete from ai.profile_rules r where r.tenant_id = v_me.tenant_id and r.profile = p_profile and r.kind = p_kind returning 1
  ), profiles as (
    delete from ai.profiles p where p.tenant_id = v_me.tenant_id and p.name = p_profile and p.kind = p_kind returning 1
  )
  select (select count(*) from routes) + (select count(*) from rules) + (select count(*) from profiles) into v_deleted;
  return v_deleted;
end
$$;
comment on function ai.delete_profile(text, text) is 'Deletes the tenant''s own rows of a profile, its routes and rules; gives how many.';

revoke execute on function ai.comparable_metadata(jsonb), ai.fits_condition(jsonb, jsonb), ai.check_condition(), ai.delete_profile(text, text), ai.choose_profile(uuid, text, bigint, jsonb), ai.time_budget(uuid, text, text),
  ai.route_varies(uuid, text, text, integer), ai.draw(uuid, bigint), ai.route_rank(text, bigint, integer, integer, uuid),
  ai.route_models(uuid, text, text, text, integer, jsonb, boolean, uuid), ai.extract_model(), ai.why_degraded(uuid, text, text, bigint) from public;
grant execute on function ai.delete_profile(text, text) to ai_admin;

-- objects

create or replace trigger check_condition before insert or update of metadata on ai.routes
  for each row when (new.metadata is not null) execute function ai.check_condition();
create or replace trigger check_condition before insert or update of metadata on ai.profile_rules
  for each row when (new.metadata is not null) execute function ai.check_condition();

drop policy if exists visible on ai.profiles;
create policy visible on ai.profiles for select to ai_user using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('model:read') or ai.may('model:write')));
drop policy if exists administered on ai.profiles;
create policy administered on ai.profiles to ai_admin
  using (tenant_id = (select ai.tenant_for('model:write')))
  with check (tenant_id = (select ai.tenant_for('model:write')));
drop policy if exists visible on ai.profile_rules;
create policy visible on ai.profile_rules for select to ai_user using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('model:read') or ai.may('model:write')));
drop policy if exists administered on ai.profile_rules;
create policy administered on ai.profile_rules to ai_admin
  using (tenant_id = (select ai.tenant_for('model:write')))
  with check (tenant_id = (select ai.tenant_for('model:write')));
drop policy if exists visible on ai.model_stats;
create policy visible on ai.model_stats for select to ai_monitor using (true);

grant select on ai.profiles, ai.profile_rules to ai_user;
grant insert (tenant_id, name, kind, strategy, degrade, first_token_ms, total_ms, database_ms, cache_ms),
      update (strategy, degrade, first_token_ms, total_ms, database_ms, cache_ms) on ai.profiles to ai_admin;
grant insert (tenant_id, position, kind, min_length, max_length, tier, metadata, profile, enabled),
      update (position, min_length, max_length, tier, metadata, profile, enabled) on ai.profile_rules to ai_admin;
grant select on ai.model_stats to ai_monitor;
