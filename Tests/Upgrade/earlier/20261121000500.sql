-- sql/ as it was in the version whose last migration is 20261121000500, for the tests of upgrading. Not to be changed.
-- Signatures that earlier versions had and this one has not. Runs before everything else, because `create or replace`
-- can neither rename a parameter nor change a return type. Nothing yet.
-- Time, in one place, so that tests can move it.

-- The start of the caller's statement. A session whose login role is a member of ai_tester, a role that only tests
-- make, may shift it by the setting ai.clock_offset; anybody else's setting is ignored.
create or replace function ai.shifted_now() returns timestamptz
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from pg_roles where rolname = 'ai_tester') and pg_has_role(session_user, 'ai_tester', 'member') then
    return statement_timestamp() + current_setting('ai.clock_offset')::interval;
  end if;
  return statement_timestamp();
end
$$;
comment on function ai.shifted_now() is 'The clock with the offset that a tester may set. Call ai.now().';
revoke execute on function ai.shifted_now() from public;

-- No SET clause, so that it is inlined; a body that is bound where it is made, so that no search_path changes it.
create or replace function ai.now() returns timestamptz
language sql stable parallel safe security invoker
return case when coalesce(current_setting('ai.clock_offset', true), '') = '' then statement_timestamp() else ai.shifted_now() end;
comment on function ai.now() is 'The clock of every state machine: the start of the statement.';
revoke execute on function ai.now() from public;
-- Who asks. A session is a member of a tenant by a binding of the role it logged in with, or, where that role is a
-- registered authenticator, by the JWT claims the gateway verified and set. Anything else is nobody.
--
-- Raises PT401 where claims are there and are wrong: a broken claim must never become an anonymous success.
-- Takes no locks. 5 to 10 µs: call it once a statement, as (select ai.tenant_id()).
create or replace function ai.identity(out tenant_id uuid, out user_id text, out role text, out source text)
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_claims  jsonb;
  v_subject text;
  v_tenant  text;
  v_found   integer;
begin
  select m.tenant_id, m.user_id, m.role, 'binding'
    into tenant_id, user_id, role, source
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

  select m.tenant_id, m.user_id, m.role, 'jwt'
    into tenant_id, user_id, role, source
    from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
   where m.user_id = v_subject and m.enabled and (v_tenant is null or m.tenant_id::text = lower(v_tenant));
end
$$;
comment on function ai.identity() is 'Tenant, user, role in the tenant, and how the session is known; all null for nobody. PT401 for a wrong claim.';

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

revoke execute on function ai.identity(), ai.tenant_id(), ai.user_id(), ai.sees_tenant(), ai.is_tenant_admin(), ai.whoami(),
  ai.keep_roles_apart(), ai.make_lanes() from public;
grant execute on function ai.identity(), ai.tenant_id(), ai.user_id(), ai.sees_tenant(), ai.is_tenant_admin(), ai.whoami()
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
-- Which model answers, and what tokens cost.

-- The model to call: the named one, or the p_target-th of the profile's route; null where there is none.
-- A tenant's own model or route goes before the shared one of the same name. What another tenant owns is never found,
-- whatever refers to it.
create or replace function ai.target_model(p_tenant uuid, p_kind text, p_model text, p_profile text, p_target integer)
returns bigint
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_model is not null then
    return (select m.id
              from ai.models m
              join ai.providers p on p.id = m.provider_id and p.enabled and (p.tenant_id is null or p.tenant_id = p_tenant)
             where p_target = 1 and m.name = p_model and m.kind = p_kind and m.enabled and (m.tenant_id = p_tenant or m.tenant_id is null)
             order by m.tenant_id nulls last limit 1);
  end if;
  return (select m.id
            from ai.routes r
            join ai.models m on m.id = r.model_id and m.enabled and m.kind = p_kind and (m.tenant_id is null or m.tenant_id = p_tenant)
            join ai.providers p on p.id = m.provider_id and p.enabled and (p.tenant_id is null or p.tenant_id = p_tenant)
           where r.profile = p_profile and r.kind = p_kind and r.enabled
             and r.tenant_id is not distinct from
                 (select o.tenant_id from ai.routes o where o.tenant_id = p_tenant and o.profile = p_profile and o.kind = p_kind limit 1)
           order by r.position offset p_target - 1 limit 1);
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
  select case when p_rates is not null then trim_scale(0.000001 * (
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
  v_class text;
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

  if jsonb_typeof(new.rates) <> 'object' then
    raise exception 'rates must be a JSON object' using errcode = 'PT400';
  end if;
  for v_class in select key from jsonb_each(new.rates)
                  where key not in ('input', 'cache_read', 'cache_write', 'cache_write_1h', 'output', 'reasoning')
                     or jsonb_typeof(value) <> 'number' or (value #>> '{}')::numeric < 0 loop
    raise exception 'the rate "%" is not one of a token class, or not a number from 0', v_class
      using errcode = 'PT400', hint = 'Classes: input, cache_read, cache_write, cache_write_1h, output, reasoning; money per million tokens.';
  end loop;
  perform from ai.models where id = new.model_id for no key update;
  if not new.rates ? 'input' or (not new.rates ? 'output' and (select kind from ai.models where id = new.model_id) = 'chat') then
    raise exception 'a price needs rates for input and, unless the model embeds, output' using errcode = 'PT400';
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
create policy visible on ai.providers for select to ai_user using (tenant_id is null or tenant_id = (select ai.tenant_id()));
drop policy if exists visible on ai.models;
create policy visible on ai.models for select to ai_user using (tenant_id is null or tenant_id = (select ai.tenant_id()));
drop policy if exists visible on ai.routes;
create policy visible on ai.routes for select to ai_user using (tenant_id is null or tenant_id = (select ai.tenant_id()));
drop policy if exists visible on ai.prices;
create policy visible on ai.prices for select to ai_user using (exists (select from ai.models m where m.id = model_id));
drop policy if exists visible on ai.retry_rules;
create policy visible on ai.retry_rules for select to ai_user using (true);

-- base_url, headers and the name of the secret are the operator's business.
grant select (id, tenant_id, name, dialect, enabled, created_at) on ai.providers to ai_user;
grant select on ai.models, ai.routes, ai.prices, ai.retry_rules to ai_user;
-- What happens inside the INSERT of a generation: who asks is stamped on, the input is checked, an idempotency key is
-- honoured. A row that an operator restores (one that already has a status other than queued) passes untouched.

-- Raises PT400 for a message list that no provider could take.
create or replace function ai.check_messages(p_messages jsonb) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_message jsonb;
  v_at      bigint;
begin
  if jsonb_typeof(p_messages) <> 'array' or jsonb_array_length(p_messages) = 0 then
    raise exception 'messages must be a JSON array with at least one message'
      using errcode = 'PT400', hint = 'For example [{"role": "user", "content": "Hello"}].';
  end if;
  for v_message, v_at in select value, ordinality from jsonb_array_elements(p_messages) with ordinality loop
    if jsonb_typeof(v_message) <> 'object' then
      raise exception 'message % is not a JSON object', v_at using errcode = 'PT400';
    end if;
    if coalesce(v_message ->> 'role', '') not in ('system', 'developer', 'user', 'assistant', 'tool') then
      raise exception 'message % has no known role', v_at
        using errcode = 'PT400', hint = 'Roles: system, developer, user, assistant, tool.';
    end if;
    if coalesce(jsonb_typeof(v_message -> 'content'), 'null') not in ('string', 'array')
       and not (v_message ->> 'role' = 'assistant' and (v_message ? 'tool_calls' or v_message ? 'refusal')) then
      raise exception 'message % has no content', v_at
        using errcode = 'PT400', detail = 'Content is a string or an array of parts; only an assistant''s message with tool_calls may be without.';
    end if;
  end loop;
end
$$;
comment on function ai.check_messages(jsonb) is 'Raises PT400 unless the messages have OpenAI''s chat form.';

-- Raises PT400 for parameters that would be refused anyway, or that would contradict the columns of the row. What it
-- does not know passes: providers add parameters faster than databases are migrated.
create or replace function ai.check_params(p_params jsonb) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key  text;
  v_type text;
  v_text text;
begin
  if jsonb_typeof(p_params) <> 'object' then
    raise exception 'params must be a JSON object' using errcode = 'PT400';
  end if;
  for v_key, v_type, v_text in select key, jsonb_typeof(value), value #>> '{}' from jsonb_each(p_params) where jsonb_typeof(value) <> 'null' loop
    if v_key in ('model', 'messages', 'stream', 'stream_options', 'input', 'prompt') then
      raise exception 'params must not contain %', v_key
        using errcode = 'PT400', hint = 'It has a column of its own, or is set by the worker.';
    elsif v_key in ('max_tokens', 'max_completion_tokens', 'n', 'dimensions', 'top_logprobs')
          and (v_type <> 'number' or v_text::numeric <> trunc(v_text::numeric) or v_text::numeric not between 0 and 100000000
               or (v_text::numeric = 0 and v_key <> 'top_logprobs')) then
      raise exception 'params.% must be a whole number above 0', v_key using errcode = 'PT400';
    elsif v_key = 'n' and v_text::numeric <> 1 then
      raise exception 'params.n must be 1' using errcode = 'PT400', hint = 'Insert one row for each answer.';
    elsif v_key in ('temperature', 'top_p', 'frequency_penalty', 'presence_penalty') and v_type <> 'number' then
      raise exception 'params.% must be a number', v_key using errcode = 'PT400';
    elsif v_key = 'temperature' and v_text::numeric not between 0 and 2 then
      raise exception 'params.temperature must be from 0 to 2' using errcode = 'PT400';
    elsif v_key = 'tools' and v_type <> 'array' then
      raise exception 'params.tools must be an array' using errcode = 'PT400';
    elsif v_key in ('response_format', 'metadata') and v_type <> 'object' then
      raise exception 'params.% must be an object', v_key using errcode = 'PT400';
    end if;
  end loop;
end
$$;
comment on function ai.check_params(jsonb) is 'Raises PT400 for parameters that contradict the row or have the wrong type; unknown ones pass.';

-- Trigger BEFORE INSERT, each row. Raises PT400 invalid, PT401 nobody, PT403 not allowed, PT404 no such model or
-- profile, PT409 idempotency key reused with other input, PT413 too long. With an idempotency key it takes that key's
-- row lock until the transaction ends, so that of two inserts at once the second waits for the first.
create or replace function ai.admit_generation() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_settings record;
  v_named    boolean;
  v_bytes    bigint;
  v_hash     bytea;
  v_known    record;
begin
  if new.status <> 'queued' then
    return new;  -- a restore: only an owner can have written that column
  end if;

  v_named := new.tenant_id is not null or new.user_id is not null;
  if new.tenant_id is null then
    select i.tenant_id, coalesce(new.user_id, i.user_id) into new.tenant_id, new.user_id from ai.identity() i;
    if new.tenant_id is null then
      raise exception 'this session is nobody: no generation can be asked for'
        using errcode = 'PT401', detail = (select w.why from ai.whoami() w),
              hint = 'insert into ai.role_bindings (role_name, tenant_id, user_id) values (…), or come with the JWT of a member.';
    end if;
  end if;
  if v_named and not exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id
                              where m.tenant_id = new.tenant_id and m.user_id = new.user_id and m.enabled and t.enabled) then
    raise exception 'no such member in this tenant'
      using errcode = 'PT403', hint = 'Who asks on behalf of a member names an enabled row of ai.members by user_id, and tenant_id where it is not the own.';
  end if;

  if new.kind not in ('chat', 'embedding') or new.priority not in ('high', 'normal', 'low') then
    raise exception 'kind is chat or embedding, priority is high, normal or low' using errcode = 'PT400';
  end if;
  select max_input_bytes, default_profile, deadline_ms into v_settings from ai.settings;

  if (new.prompt is null) = (new.messages is null) then
    raise exception 'a generation needs either prompt or messages' using errcode = 'PT400';
  end if;
  v_bytes := octet_length(coalesce(new.prompt, '')) + coalesce(octet_length(new.messages::text), 0)
           + coalesce(octet_length(nullif(new.params, '{}')::text), 0) + coalesce(octet_length(new.metadata::text), 0);
  if v_bytes > v_settings.max_input_bytes then
    raise exception 'the input is too long'
      using errcode = 'PT413', detail = format('%s bytes; the limit is %s.', v_bytes, v_settings.max_input_bytes),
            hint = 'ai.settings.max_input_bytes';
  end if;
  if new.prompt is not null and new.prompt !~ '[^[:space:]]' then
    raise exception 'the prompt is empty' using errcode = 'PT400';
  end if;
  if new.messages is not null then
    if new.kind = 'embedding' then
      raise exception 'an embedding takes a prompt, not messages' using errcode = 'PT400';
    end if;
    perform ai.check_messages(new.messages);
  end if;
  if new.params <> '{}' then
    perform ai.check_params(new.params);
  end if;
  if new.deadline_ms is not null and new.deadline_ms not between 1 and 86400000 then
    raise exception 'deadline_ms must be from 1 to 86400000' using errcode = 'PT400';
  end if;
  if new.run_after > ai.now() + interval '1 year' then
    raise exception 'run_after must be within a year' using errcode = 'PT400';
  end if;
  if new.kind = 'embedding' and new.stream then
    raise exception 'an embedding cannot be streamed' using errcode = 'PT400';
  end if;

  if new.model is not null and new.profile is not null then
    raise exception 'a generation names a model or a profile, not both' using errcode = 'PT400';
  end if;
  if new.model is null and new.profile is null then
    new.profile := v_settings.default_profile;
  end if;
  if ai.target_model(new.tenant_id, new.kind, new.model, new.profile, 1) is null then
    raise exception 'there is no % % for kind %', case when new.model is null then 'profile' else 'model' end, coalesce(new.model, new.profile), new.kind
      using errcode = 'PT404',
            detail = 'It does not exist for this tenant, is not of this kind, or is switched off.',
            hint = case when new.model is null then 'select profile, kind from ai.routes where enabled;' else 'select name, kind from ai.models where enabled;' end;
  end if;

  if new.idempotency_key is not null then
    if length(new.idempotency_key) not between 1 and 255 then
      raise exception 'idempotency_key must have 1 to 255 characters' using errcode = 'PT400';
    end if;
    v_hash := sha256(convert_to(jsonb_build_array(new.user_id, new.kind, new.prompt, new.messages, new.model, new.profile, new.params,
      new.stream, new.priority, extract(epoch from new.run_after), new.deadline_ms, new.metadata)::text, 'UTF8'));
    insert into ai.idempotency_keys (tenant_id, key, generation_id, input_hash)
    values (new.tenant_id, new.idempotency_key, new.id, v_hash)
    on conflict do nothing;
    if not found then
      select k.generation_id, k.input_hash into v_known
        from ai.idempotency_keys k where k.tenant_id = new.tenant_id and k.key = new.idempotency_key;
      if v_known.input_hash is distinct from v_hash then
        raise exception 'this idempotency key was used with other input'
          using errcode = 'PT409', hint = 'A key stands for one question by one user. Take a new key.';
      end if;
      return null;
    end if;
  end if;
  return new;
end
$$;
comment on function ai.admit_generation() is 'Trigger: stamps identity on a generation, checks its input, honours its idempotency key.';

-- The generation that a key of the caller's tenant stands for, if it is the caller's; else null.
create or replace function ai.idempotent_generation(p_key text) returns uuid
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select k.generation_id
    from ai.identity() i
    join ai.idempotency_keys k on k.tenant_id = i.tenant_id and k.key = p_key
    join ai.generations g on g.tenant_id = k.tenant_id and g.id = k.generation_id and g.user_id = i.user_id
$$;
comment on function ai.idempotent_generation(text) is 'Id of the caller''s generation that was inserted with this idempotency key; null: none.';

revoke execute on function ai.check_messages(jsonb), ai.check_params(jsonb), ai.admit_generation(), ai.idempotent_generation(text) from public;
grant execute on function ai.idempotent_generation(text) to ai_user;

-- objects

create or replace trigger admit before insert on ai.generations
  for each row execute function ai.admit_generation();

drop policy if exists visible on ai.generations;
create policy visible on ai.generations for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.sees_tenant())));
drop policy if exists own on ai.generations;
create policy own on ai.generations for insert to ai_user
  with check (tenant_id = (select ai.tenant_id()));

grant select on ai.generations to ai_user;
grant insert (kind, prompt, messages, model, profile, params, stream, priority, run_after, deadline_ms, idempotency_key, metadata)
  on ai.generations to ai_user;
-- Someone who acts for others names them; row-level security still holds an admin to the own tenant.
grant insert (tenant_id, user_id) on ai.generations to ai_admin;
-- From the insert to the queue, and the wake-up of workers.
--
-- Advisory locks of this database that Martlet takes (two-key form):
--   1634300001, 0     the wake-up handshake: inserts share it, a worker that goes to sleep takes it alone
--   1634300002, lane  listing of a lane: inserts share it where they can, taking a lane off the list needs it alone
--   1634300004, role  a role is being bound or made an authenticator (ai.keep_roles_apart())
-- Anybody who can connect can take them too: so nothing may wait for one of them but a worker that goes to sleep, and
-- whoever is refused one does the slower thing that is right without it.
--
-- The handshake. NOTIFY in every insert would cost four fifths of the throughput, because a committing NOTIFY holds a
-- cluster-wide lock through its flush. So an insert notifies only if it cannot share the handshake lock, which means
-- that a worker sleeps or is about to. A worker that found nothing takes the lock alone (ai.worker_sleep()), which
-- waits for all inserts in flight; then it looks once more, and only then sleeps. Whoever shared the lock has committed
-- by then and is seen; whoever comes later must notify. It holds at every isolation level, because it compares no
-- snapshots.

-- Wakes sleeping workers when this transaction commits. At most one notification a transaction.
create or replace function ai.wake_workers() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not pg_try_advisory_xact_lock_shared(1634300001, 0) then
    perform pg_notify('ai_work', '');
  end if;
end
$$;
comment on function ai.wake_workers() is 'Notifies ai_work at commit if a worker may be asleep; else holds the shared handshake lock to the end of the transaction.';

-- Puts lanes on the list that the claim goes through. Twice on the list does no harm, and a row that is not yet committed
-- cannot be taken off, so listing is always safe; it is spared where the lane is listed and this transaction holds its
-- shared listing lock, so that nobody takes it off before what was queued is visible. Waits for nothing.
create or replace function ai.list_lanes(p_lanes bigint[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_many constant integer := 16;  -- more locks than this in one transaction would crowd the server's lock table
  v_lane bigint;
begin
  if cardinality(p_lanes) > c_many then
    insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = any (p_lanes);
    return;
  end if;
  foreach v_lane in array p_lanes loop
    -- The look is a statement of its own: under READ COMMITTED its snapshot is younger than the lock. Under the stricter
    -- levels the snapshot may be too old to know that a lane was taken off.
    if current_setting('transaction_isolation') <> 'read committed'
       or not pg_try_advisory_xact_lock_shared(1634300002, v_lane::integer)
       or not exists (select from ai.active_lanes a where a.lane_id = v_lane) then
      insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.id = v_lane;
    end if;
  end loop;
end
$$;
comment on function ai.list_lanes(bigint[]) is 'Makes the claim look at these lanes.';

-- Trigger AFTER INSERT, each statement: a few statements, however many rows, tenants and lanes.
create or replace function ai.enqueue_generations() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := ai.now();
  v_lanes   bigint[];
  v_missing boolean;
  v_timed   boolean;
begin
  select array_agg(l.id) filter (where l.id is not null), bool_or(l.id is null), bool_or(i.timed)
    into v_lanes, v_missing, v_timed
    from (select tenant_id, priority, count(run_after) > 0 as timed from inserted where status = 'queued' group by 1, 2) i
    left join ai.lanes l on l.tenant_id = i.tenant_id and l.priority = i.priority;
  if v_missing is null then
    return null;
  end if;
  if v_missing then
    -- Lanes are made with their tenant; this mends a tenant whose lanes were lost.
    insert into ai.lanes (tenant_id, priority)
    select distinct tenant_id, priority from inserted where status = 'queued' order by 1, 2
    on conflict do nothing;
    select array_agg(l.id) into v_lanes
      from ai.lanes l
      join (select distinct tenant_id, priority from inserted where status = 'queued') i on l.tenant_id = i.tenant_id and l.priority = i.priority;
  end if;

  perform ai.list_lanes(v_lanes);
  insert into ai.queue (lane_id, generation_id, tenant_id)
  select l.id, i.id, i.tenant_id
    from inserted i
    join ai.lanes l on l.tenant_id = i.tenant_id and l.priority = i.priority
   where i.status = 'queued' and (i.run_after is null or i.run_after <= v_now);
  if v_timed then
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id)
    select i.id, i.run_after, l.id, i.tenant_id
      from inserted i
      join ai.lanes l on l.tenant_id = i.tenant_id and l.priority = i.priority
     where i.status = 'queued' and i.run_after > v_now;
  end if;
  perform ai.wake_workers();
  return null;
end
$$;
comment on function ai.enqueue_generations() is 'Trigger: queues what was inserted, or delays it to its run_after, and wakes sleeping workers.';

revoke execute on function ai.wake_workers(), ai.list_lanes(bigint[]), ai.enqueue_generations() from public;

-- objects

create or replace trigger enqueue after insert on ai.generations
  referencing new table as inserted
  for each statement execute function ai.enqueue_generations();
-- A worker's life: it registers, says that it lives, sleeps and wakes, stops. docs/worker-protocol.md is the contract.

-- Registers a worker. Raises PT409 where worker and schema do not speak the same protocol.
create or replace function ai.worker_register(p_name text, p_version text, p_protocol integer)
returns table (worker_id uuid, channel text, heartbeat_ms integer, maintain_ms integer, publish_ms integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_protocol constant integer := 2;
  v_id       uuid := ai.uuid_v7();
begin
  if p_protocol is distinct from c_protocol then
    raise exception 'worker and schema do not speak the same protocol'
      using errcode = 'PT409',
            detail = format('The worker (version %s) speaks protocol %s, the schema speaks %s.', p_version, p_protocol, c_protocol),
            hint = case when p_protocol < c_protocol then 'Upgrade the worker.' else 'Upgrade the schema: martlet migrate' end;
  end if;
  insert into ai.workers (id, name, version, protocol, channel, started_at, heartbeat_at)
  values (v_id, p_name, p_version, p_protocol, 'ai_worker_' || replace(v_id::text, '-', ''), ai.now(), ai.now());
  return query
    select v_id, 'ai_worker_' || replace(v_id::text, '-', ''), s.heartbeat_ms, s.maintain_ms, s.publish_ms from ai.settings s;
end
$$;
comment on function ai.worker_register(text, text, integer) is 'Makes a worker known. Gives its id, the channel of its cancellations, and its rhythms.';

-- Updates one row. False: another worker declared this one dead; it must abort everything and register again.
create or replace function ai.worker_heartbeat(p_worker uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update ai.workers w set heartbeat_at = ai.now() where w.id = p_worker and w.ended_at is null;
  return found;
end
$$;
comment on function ai.worker_heartbeat(uuid) is 'Says that a worker lives; false if it was declared dead meanwhile.';

-- Waits until no insert is in flight, then holds the handshake lock on this session until ai.worker_wake(). True: held.
-- False: not granted within 2 s, because an inserting transaction is open or another worker holds it; ask again. The time
-- is caught here, so that waiting leaves no errors in the server's log. Blocks: on a connection of its own.
create or replace function ai.worker_sleep() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
begin
  perform pg_advisory_lock(1634300001, 0);
  return true;
exception when lock_not_available then
  return false;
end
$$;
comment on function ai.worker_sleep() is 'Takes the handshake lock: from then on every insert notifies ai_work. False where it was not granted within 2 s.';

create or replace function ai.worker_wake() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_unlock(1634300001, 0);
end
$$;
comment on function ai.worker_wake() is 'Lets the handshake lock go: inserts stop notifying.';

-- What ai.cancel() asks this worker to abort.
create or replace function ai.worker_cancellations(p_worker uuid)
returns table (generation_id uuid, attempt integer)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select distinct l.generation_id, l.attempt::integer
    from ai.cancellations c
    join ai.leases l on l.generation_id = c.generation_id and l.worker_id = p_worker
$$;
comment on function ai.worker_cancellations(uuid) is 'Attempts of this worker that an app has cancelled.';

-- Everything the worker holds. A claim whose answer was lost with its connection may have leased generations that the
-- worker never heard of; its heartbeat would keep them for ever. It compares, and hands back what it does not know.
create or replace function ai.worker_leases(p_worker uuid)
returns table (generation_id uuid, attempt integer)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select l.generation_id, l.attempt::integer from ai.leases l where l.worker_id = p_worker
$$;
comment on function ai.worker_leases(uuid) is 'Attempts that are leased to this worker.';

revoke execute on function ai.worker_register(text, text, integer), ai.worker_heartbeat(uuid), ai.worker_sleep(), ai.worker_wake(),
  ai.worker_cancellations(uuid), ai.worker_leases(uuid) from public;
grant execute on function ai.worker_register(text, text, integer), ai.worker_heartbeat(uuid), ai.worker_sleep(), ai.worker_wake(),
  ai.worker_cancellations(uuid), ai.worker_leases(uuid) to ai_worker;

-- objects

grant select on ai.workers to ai_monitor;
drop policy if exists visible on ai.workers;
create policy visible on ai.workers for select to ai_monitor using (true);
-- From the queue to the worker. Fair between tenants: a round gives each tenant that has something queued the same
-- share, the next round begins behind the tenant that came last. Within a tenant: higher priority first, then the order
-- of insertion.
--
-- The cursor is the worker's, opaque to it: after which tenant to go on, and for each lane a low mark, the last id
-- taken from it. The mark spares the claim from walking the dead entries of what was claimed before, which an old
-- snapshot keeps (0.3 ms against 5 to 20 ms). It is a hint, because inserts do not commit in the order of their ids: a
-- null cursor looks at everything, and a worker claims with one before it sleeps, after each wake-up and once a second.

-- Takes up to p_limit rows off the queue and leases them to the worker. Locks: delayed or queue rows (skipping what
-- others hold), then leases (new), then generations. Raises PT404 for a worker that is not registered or was declared
-- dead, PT400 for a limit out of 1 … 10000 and for a cursor that is none.
--
-- The planner settings: every join here goes from a few keys to an index, whatever the statistics of tables that fill
-- and empty all day say, and in the order in which it is written; planning anew for each batch would cost more than running it.
create or replace function ai.worker_claim(p_worker uuid, p_limit integer, p_cursor text)
returns table (generation_id uuid, attempt integer, kind text, dialect text, base_url text, secret text, headers jsonb, options jsonb,
               model text, stream boolean, request jsonb, timeout_ms integer, cursor text, wait_ms integer, retries integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set join_collapse_limit = 1
as $$
#variable_conflict use_column
declare
  c_first   constant uuid := '00000000-0000-0000-0000-000000000000';
  v_now     timestamptz := ai.now();
  v_after   uuid := c_first;
  v_marks   jsonb := '{}';
  v_cursor  jsonb := '{}';
  v_tenants integer;
  v_share   integer;
  v_batch   record;
  v_ids     uuid[] := '{}';
  v_owners  uuid[] := '{}';
  v_lanes   bigint[] := '{}';
  v_tries   smallint[] := '{}';
  v_targets smallint[] := '{}';
  v_ready   integer;
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception 'a claim takes 1 to 10000 generations' using errcode = 'PT400';
  end if;
  if p_cursor is not null then
    begin
      v_cursor := p_cursor;
      v_after := coalesce((v_cursor ->> 'after')::uuid, c_first);
      v_marks := coalesce(v_cursor -> 'marks', '{}');
    exception when data_exception then
      v_cursor := null;
    end;
    if jsonb_typeof(v_cursor) is distinct from 'object' or jsonb_typeof(v_marks) <> 'object' then
      raise exception 'this is not a cursor' using errcode = 'PT400', hint = 'Null, or what the claim before gave.';
    end if;
  end if;
  if not exists (select from ai.workers w where w.id = p_worker and w.ended_at is null) then
    raise exception 'this worker is not registered, or was declared dead' using errcode = 'PT404', hint = 'ai.worker_register()';
  end if;

  if p_cursor is null then
    perform ai.queue_what_is_due(v_now);
    perform ai.end_cancelled();
    -- Both by an index: there may be millions of rows that wait for tomorrow. Who waits for more than 24 days looks again before.
    select least(greatest(extract(epoch from d.due_at - v_now) * 1000, 1), 2147483647)::integer
      into wait_ms from ai.delayed d order by d.due_at limit 1;
    select count(*) into retries from (select from ai.delayed d where d.attempts > 0 limit 10000) r;
  end if;

  select count(distinct a.tenant_id) into v_tenants from ai.active_lanes a;
  v_share := greatest(1, p_limit / greatest(1, v_tenants));
  loop
    with lanes as (
      select distinct a.tenant_id, a.rank, a.lane_id, coalesce((v_marks ->> a.lane_id::text)::uuid, c_first) as mark from ai.active_lanes a
    ), tenants as (
      select l.tenant_id, array_agg(l.lane_id order by l.rank) as lane_ids, array_agg(l.mark order by l.rank) as marks
        from lanes l group by l.tenant_id
       order by l.tenant_id <= v_after, l.tenant_id
    ), picked as materialized (
      select q.*
        from tenants t
       cross join lateral (
         select p.*
           from unnest(t.lane_ids, t.marks) with ordinality u (lane_id, mark, at)
          cross join lateral (
            select q.ctid as place, q.lane_id, q.generation_id, q.tenant_id, q.attempts, q.target
              from ai.queue q
             where q.lane_id = u.lane_id and q.generation_id > u.mark
             order by q.generation_id
             limit v_share
               for update skip locked) p
          limit v_share) q
       limit p_limit - cardinality(v_ids)
    )
    select array_agg(p.place) as places, array_agg(p.generation_id) as ids, array_agg(p.tenant_id) as owners, array_agg(p.lane_id) as lanes,
           array_agg(p.attempts) as tries, array_agg(p.target) as targets, count(*) as taken, count(distinct p.tenant_id) as tenants,
           (array_agg(p.tenant_id))[count(*)] as last_tenant
      into v_batch from picked p;
    exit when v_batch.taken = 0;

    -- By place: a delete by key would walk the same dead entries again.
    delete from ai.queue q where q.ctid = any (v_batch.places);
    v_ids := v_ids || v_batch.ids;
    v_owners := v_owners || v_batch.owners;
    v_lanes := v_lanes || v_batch.lanes;
    v_tries := v_tries || v_batch.tries;
    v_targets := v_targets || v_batch.targets;
    v_after := v_batch.last_tenant;
    v_marks := v_marks || (
      select jsonb_object_agg(u.lane_id::text, u.mark)
        from (select t.lane_id, max(t.id::text) as mark from unnest(v_batch.lanes, v_batch.ids) t (lane_id, id) group by t.lane_id) u);
    -- Room is left although a tenant had its full share: go on with what the others did not want.
    exit when cardinality(v_ids) >= p_limit or v_batch.taken < v_share;
    v_share := p_limit;
  end loop;

  cursor := jsonb_build_object('after', v_after, 'marks', v_marks)::text;
  return next;
  if cardinality(v_ids) = 0 then
    return;
  end if;

  return query
    with picked as materialized (
      select * from unnest(v_ids, v_owners, v_lanes, v_tries, v_targets) p (generation_id, tenant_id, lane_id, attempts, target)
    ), asked as materialized (
      select p.*, g.user_id, g.kind, g.model, g.profile, g.stream, g.prompt, g.messages, g.params,
             greatest(g.created_at, g.run_after) as waiting_since,
             greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' as deadline_at
        from picked p
        join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.generation_id and g.status = 'queued'
        join ai.tenants t on t.id = p.tenant_id and t.enabled
        join ai.members u on u.tenant_id = p.tenant_id and u.user_id = g.user_id and u.enabled
       cross join ai.settings s
       where not exists (select from ai.cancellations c where c.generation_id = p.generation_id)
    ), targets as materialized (
      -- Most of a batch asks for the same few models: each is looked up once.
      select w.*, ai.target_model(w.tenant_id, w.kind, w.model, w.profile, w.target) as model_id
        from (select distinct a.tenant_id, a.kind, a.model, a.profile, a.target from asked a) w
    ), ready as materialized (
      select a.*, a.attempts + 1 as attempt, m.id as model_id, m.wire_name, v.name as provider, v.dialect, v.base_url, v.secret, v.headers,
             case when m.max_output_tokens is null then v.options || m.options
                  else jsonb_build_object('max_output_tokens', m.max_output_tokens) || v.options || m.options end as options
        from asked a
        join targets t on t.tenant_id = a.tenant_id and t.kind = a.kind and t.model is not distinct from a.model
                      and t.profile is not distinct from a.profile and t.target = a.target
        join ai.models m on m.id = t.model_id
        join ai.providers v on v.id = m.provider_id
       where a.deadline_at > v_now
    ), leased as (
      insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target, model_id, stream, input_bytes,
                             waiting_since, deadline_at, claimed_at)
      select r.generation_id, r.attempt, p_worker, r.tenant_id, r.user_id, r.lane_id, r.target, r.model_id, r.stream,
             coalesce(octet_length(r.prompt), octet_length(r.messages::text)) + octet_length(r.params::text), r.waiting_since, r.deadline_at, v_now
        from ready r
    ), started as (
      update ai.generations g
         set status = 'running', attempts = r.attempt, started_at = coalesce(g.started_at, v_now), provider = r.provider
        from ready r
       where g.tenant_id = r.tenant_id and g.id = r.generation_id
    )
    select r.generation_id, r.attempt, r.kind, r.dialect, r.base_url, r.secret, r.headers, r.options, r.wire_name, r.stream,
           case when r.kind = 'embedding' then jsonb_build_object('input', r.prompt, 'params', r.params)
                else jsonb_build_object(
                  'messages', coalesce(r.messages, jsonb_build_array(jsonb_build_object('role', 'user', 'content', r.prompt))),
                  'params', r.params) end,
           greatest(1, (extract(epoch from r.deadline_at - v_now) * 1000)::integer), null::text, null::integer, null::integer
      from ready r;
  get diagnostics v_ready = row_count;

  perform ai.announce_start(v_ids);
  if v_ready < cardinality(v_ids) then
    perform ai.end_unclaimable(v_ids, v_owners, v_now);
  end if;
end
$$;
comment on function ai.worker_claim(uuid, integer, text) is
  'Leases up to p_limit queued generations to a worker. The first row is a header with the next cursor; see docs/worker-protocol.md.';

-- Moves to the queue what was delayed until p_now, at most 10,000 a call. Locks those rows, skipping what others hold.
create or replace function ai.queue_what_is_due(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_due bigint[];
begin
  with due as (
    delete from ai.delayed d
     where d.generation_id = any (array(
             select generation_id from ai.delayed where due_at <= p_now order by due_at, generation_id limit 10000 for update skip locked))
    returning d.lane_id, d.generation_id, d.tenant_id, d.attempts, d.target
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target)
    select lane_id, generation_id, tenant_id, attempts, target from due
  )
  select array_agg(lane_id) into v_due from due;
  if v_due is null then
    return 0;
  end if;
  perform ai.list_lanes(array(select distinct unnest(v_due)));
  return cardinality(v_due);
end
$$;
comment on function ai.queue_what_is_due(timestamptz) is 'Moves what has become due from ai.delayed to ai.queue; gives how many.';

-- Ends what was taken off the queue but cannot be called: it was cancelled, its time is over, its member was revoked, its
-- model is gone.
create or replace function ai.end_unclaimable(p_ids uuid[], p_tenants uuid[], p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one record;
begin
  for v_one in
    select g.tenant_id, g.id,
           greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' <= p_now as late,
           exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
                    where m.tenant_id = g.tenant_id and m.user_id = g.user_id and m.enabled) as known,
           exists (select from ai.cancellations c where c.generation_id = p.id) as cancelled
      from unnest(p_ids, p_tenants) p (id, tenant_id)
      join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id and g.status = 'queued'
     cross join ai.settings s
     where not exists (select from ai.leases l where l.generation_id = p.id)
     order by g.id
  loop
    if v_one.cancelled then
      delete from ai.cancellations c where c.generation_id = v_one.id;
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'cancelled', '{"class": "cancelled", "message": "cancelled between two attempts"}');
    elsif not v_one.known then
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'rejected',
        '{"class": "revoked", "code": "PT403", "message": "the member who asked is no longer enabled"}');
    elsif v_one.late then
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed',
        '{"class": "deadline", "code": "PT504", "message": "no answer within deadline_ms", "hint": "Is a worker running? martlet doctor"}');
    else
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed',
        '{"class": "no_model", "code": "PT404", "message": "the model, or every target of the profile, was removed or switched off"}');
    end if;
  end loop;
end
$$;
comment on function ai.end_unclaimable(uuid[], uuid[], timestamptz) is 'Ends generations that were claimed but cannot be called, with the reason.';

revoke execute on function ai.worker_claim(uuid, integer, text), ai.queue_what_is_due(timestamptz),
  ai.end_unclaimable(uuid[], uuid[], timestamptz) from public;
grant execute on function ai.worker_claim(uuid, integer, text) to ai_worker;
-- Streams: gap-free sequence numbers for each generation, NOTIFY as the fast path, ai.read_stream() as the truth.
--
-- Events are numbered from 1: running, delta, retry, reset (text so far is void, it starts again) and at last end. What
-- is announced is committed: the NOTIFY leaves with the transaction that wrote the event. LISTEN knows no row-level
-- security, so channel names are capabilities: unguessable, and given only to who may see the generation.

-- The one way in which a channel is named, from the key, the tenant and what it is about. Without a SET clause, so that it
-- is inlined where thousands are named a second; granted to nobody.
create or replace function ai.channel_name(p_key bytea, p_tenant uuid, p_about bytea) returns text
language sql immutable parallel safe security invoker
as $$ select 'ai_' || left(encode(sha256(p_key || uuid_send(p_tenant) || p_about), 'hex'), 40) $$;
comment on function ai.channel_name(bytea, uuid, bytea) is 'Name of a channel: 160 bits that nobody knows without the key.';

-- The channel of a generation's stream.
create or replace function ai.stream_channel(p_tenant uuid, p_id uuid) returns name
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$ select ai.channel_name(k.key, p_tenant, uuid_send(p_id))::name from ai.realtime_key k $$;
comment on function ai.stream_channel(uuid, uuid) is 'Channel of a generation''s events. Not for apps: ai.subscribe(id).';

-- The channel of all state changes of a member's generations.
create or replace function ai.member_channel(p_tenant uuid, p_user text) returns name
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select ai.channel_name(k.key, p_tenant, convert_to(p_user, 'UTF8') || '\x00')::name from ai.realtime_key k
$$;
comment on function ai.member_channel(uuid, text) is 'Channel of a member''s state changes. Not for apps: ai.subscribe().';

-- {"id", "seq", "type", …data}. PostgreSQL refuses payloads of 8,000 bytes; one that would come near it goes without
-- its data and says "more": true, so that the subscriber reads the event.
create or replace function ai.event_payload(p_id uuid, p_seq integer, p_type text, p_data jsonb) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload text := (jsonb_build_object('id', p_id, 'seq', p_seq, 'type', p_type) || coalesce(p_data, '{}'))::text;
begin
  if octet_length(v_payload) > 7900 then
    return jsonb_build_object('id', p_id, 'seq', p_seq, 'type', p_type, 'more', true)::text;
  end if;
  return v_payload;
end
$$;
comment on function ai.event_payload(uuid, integer, text, jsonb) is 'The NOTIFY payload of an event, below 8,000 bytes.';

-- The data of an event as read_stream() and NOTIFY show it.
create or replace function ai.event_data(p_type text, p_data text) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case p_type when 'delta' then jsonb_build_object('text', p_data)
                     when 'running' then '{}'::jsonb else jsonb_build_object('reason', p_data) end
$$;
comment on function ai.event_data(text, text) is 'A stored event''s data as JSON.';

-- After a claim: writes and announces `running` for those of the generations that stream.
create or replace function ai.announce_start(p_ids uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_sent bigint;
begin
  if not exists (select from ai.leases l where l.generation_id = any (p_ids) and l.stream) then
    return;
  end if;
  with events as (
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data)
    select l.generation_id, ai.last_event(l.generation_id) + 1, l.tenant_id, l.attempt, 'running', ''
      from ai.leases l where l.generation_id = any (p_ids) and l.stream
    returning generation_id, seq, tenant_id
  )
  select count(pg_notify(c.channel, ai.event_payload(e.generation_id, e.seq, 'running', '{"status": "running"}'))) into v_sent
    from events e
    join ai.leases l on l.generation_id = e.generation_id
   cross join lateral (values (ai.stream_channel(e.tenant_id, e.generation_id)), (ai.member_channel(e.tenant_id, l.user_id))) c (channel);
end
$$;
comment on function ai.announce_start(uuid[]) is 'Writes and announces the event `running` of generations that stream.';

-- The number of a generation's last stored event, 0 for none. Two writers that compute the same number collide on the
-- primary key, and one of them fails whole: that is what keeps a late worker from writing into a stream.
create or replace function ai.last_event(p_id uuid) returns integer
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$ select coalesce((select e.seq from ai.stream_events e where e.generation_id = p_id order by e.seq desc limit 1), 0) $$;
comment on function ai.last_event(uuid) is 'Sequence number of a generation''s last stored event; 0: none.';

-- The channel of the state changes (running of streamed ones, retry, reset, end) of all of the caller's own generations.
-- Raises PT401 for nobody.
create or replace function ai.subscribe() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
begin
  select * into v_me from ai.identity();
  if v_me.tenant_id is null then
    raise exception 'this session is nobody: it has nothing to subscribe to' using errcode = 'PT401', detail = (select w.why from ai.whoami() w);
  end if;
  return ai.member_channel(v_me.tenant_id, v_me.user_id);
end
$$;
comment on function ai.subscribe() is 'The channel to LISTEN to for the state changes of all the caller''s generations.';

-- Raises PT401, PT404 unless the caller sees the generation: its own, or any of the tenant for developers and admins.
create or replace function ai.check_visible(p_id uuid) returns uuid
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
begin
  select * into v_me from ai.identity();
  if v_me.tenant_id is null then
    raise exception 'this session is nobody' using errcode = 'PT401', detail = (select w.why from ai.whoami() w);
  end if;
  if not exists (select from ai.generations g
                  where g.tenant_id = v_me.tenant_id and g.id = p_id and (g.user_id = v_me.user_id or v_me.role in ('developer', 'admin'))) then
    raise exception 'there is no generation % that this session may see', p_id using errcode = 'PT404';
  end if;
  return v_me.tenant_id;
end
$$;
comment on function ai.check_visible(uuid) is 'Gives the caller''s tenant; PT404 unless the caller may see this generation.';

-- The channel on which a generation's events are announced. LISTEN first, then read: ai.read_stream(id) gives what came
-- before. Raises PT401 for nobody, PT404 for a generation that the caller does not see, or null.
create or replace function ai.subscribe(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select ai.stream_channel(ai.check_visible(p_id), p_id) $$;
comment on function ai.subscribe(uuid) is 'The channel to LISTEN to for a generation''s events. PT404 where the caller may not see it.';

-- The events after p_after_seq, in order, at most 1,000; the last is `end` once the generation has ended. With
-- p_wait_ms (0 to 30000) it waits that long for the first of them, for callers that cannot LISTEN; it holds no lock
-- but a snapshot while it waits. Events are kept as long as ai.partitioning says; the end is kept with the generation.
create or replace function ai.read_stream(p_id uuid, p_after_seq integer default 0, p_wait_ms integer default 0)
returns table (seq integer, type text, data jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_tenant uuid := ai.check_visible(p_id);
  v_until  timestamptz := clock_timestamp() + p_wait_ms * interval '1 ms';
  v_pause  double precision := 0.002;
begin
  if p_after_seq is null or p_wait_ms is null or p_wait_ms not between 0 and 30000 then
    raise exception 'p_after_seq must be a number, and p_wait_ms one from 0 to 30000' using errcode = 'PT400';
  end if;
  loop
    return query
      with stored as (
        select e.seq, e.type, ai.event_data(e.type, e.data) as data
          from ai.stream_events e
         where e.generation_id = p_id and e.tenant_id = v_tenant and e.seq > p_after_seq
         order by e.seq limit 1000
      )
      select s.seq, s.type, s.data from stored s
      union all
      select g.last_seq, 'end', jsonb_strip_nulls(jsonb_build_object('status', g.status, 'finish_reason', g.finish_reason, 'error', g.error))
        from ai.generations g
       where g.tenant_id = v_tenant and g.id = p_id and g.finished_at is not null and g.last_seq > p_after_seq
         and (select count(*) from stored) < 1000
      order by 1;
    exit when found or clock_timestamp() >= v_until;
    perform pg_sleep(v_pause);
    v_pause := least(v_pause * 1.5, 0.05);
  end loop;
end
$$;
comment on function ai.read_stream(uuid, integer, integer) is
  'Events of a generation after p_after_seq, in order, at most 1,000; waits up to p_wait_ms for the first. PT400, PT401; PT404 where the caller may not see it.';

-- Adds deltas to streams and announces them. [{"id", "attempt", "part", "text"}], one element a generation; a part that
-- is there already, because the worker did not learn that it was taken, is left out; without a number none is. Gives the attempts that are no
-- longer this worker's, which were ignored. One statement; no lock but the new rows. Raises PT400 for no array; 23505 where another writer took the
-- same number: nothing was written, send it again.
create or replace function ai.worker_publish(p_worker uuid, p_deltas jsonb)
returns table (generation_id uuid, attempt integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set join_collapse_limit = 1
as $$
#variable_conflict use_column
declare
  v_key  bytea := (select k.key from ai.realtime_key k);
  v_sent bigint;
begin
  if p_worker is null or jsonb_typeof(p_deltas) is distinct from 'array' then
    raise exception 'ai.worker_publish() takes a worker and a JSON array of deltas' using errcode = 'PT400';
  end if;
  with deltas as materialized (
    select d.id, d.attempt, d.part, d.text
      from jsonb_to_recordset(p_deltas) d (id uuid, attempt integer, part integer, text text) where d.text <> ''
  ), events as (
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, part, type, data)
    select l.generation_id, coalesce(e.seq, 0) + 1, l.tenant_id, l.attempt, coalesce(d.part, 0), 'delta', d.text
      from deltas d
      join ai.leases l on l.generation_id = d.id and l.attempt = d.attempt and l.worker_id = p_worker
      left join lateral (select e.seq, e.attempt, e.part from ai.stream_events e where e.generation_id = l.generation_id
                          order by e.seq desc limit 1) e on true
     where l.stream and (d.part is null or e.attempt is distinct from l.attempt or e.part < d.part)
    returning generation_id, seq, tenant_id, data
  )
  select count(pg_notify(ai.channel_name(v_key, e.tenant_id, uuid_send(e.generation_id)),
                         ai.event_payload(e.generation_id, e.seq, 'delta', jsonb_build_object('text', e.data)))) into v_sent
    from events e;
  return query
    select d.id, d.attempt
      from jsonb_to_recordset(p_deltas) d (id uuid, attempt integer)
     where not exists (select from ai.leases l where l.generation_id = d.id and l.attempt = d.attempt and l.worker_id = p_worker);
end
$$;
comment on function ai.worker_publish(uuid, jsonb) is
  'Stores and announces text of running attempts of this worker; gives the attempts that are no longer its.';

revoke execute on function ai.channel_name(bytea, uuid, bytea), ai.stream_channel(uuid, uuid), ai.member_channel(uuid, text), ai.event_payload(uuid, integer, text, jsonb),
  ai.event_data(text, text), ai.announce_start(uuid[]), ai.last_event(uuid), ai.subscribe(), ai.subscribe(uuid), ai.check_visible(uuid),
  ai.read_stream(uuid, integer, integer), ai.worker_publish(uuid, jsonb) from public;
grant execute on function ai.subscribe(), ai.subscribe(uuid), ai.read_stream(uuid, integer, integer) to ai_user;
grant execute on function ai.worker_publish(uuid, jsonb) to ai_worker;
-- What a failure means, and how long to wait.

-- The rule of ai.retry_rules that fits best. A rule for the x00 of a class fits every status of it (RFC 9110, section
-- 15); among fitting rules the one that says more wins: dialect, then code, then status, then the rest.
create or replace function ai.classify_failure(
  p_dialect text, p_signal text, p_http_status integer, p_type text, p_code text, p_retry_after boolean, p_visible boolean,
  out class text, out action text, out billed text)
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select r.class, r.action, r.billed
    from ai.retry_rules r
   where r.signal = p_signal
     and (r.dialect is null or r.dialect = p_dialect)
     and (r.http_status is null or r.http_status = p_http_status or r.http_status = p_http_status / 100 * 100)
     and (r.code is null or p_code like r.code or p_type like r.code)
     and (r.retry_after is null or r.retry_after = p_retry_after)
     and (r.visible is null or r.visible = p_visible)
   order by r.dialect is not null desc, r.code is not null desc, (r.http_status = p_http_status) is true desc,
            r.http_status is not null desc, r.retry_after is not null desc,
            r.visible is not null desc, r.id
   limit 1
$$;
comment on function ai.classify_failure(text, text, integer, text, text, boolean, boolean) is
  'Class of a failure, what follows (retry, next, fail) and what was probably billed (no, input, arrived), from ai.retry_rules.';

-- Exponential backoff with equal jitter: half of min(cap, base * 2^(attempt - 1)), and a random part of the other half.
create or replace function ai.backoff_ms(p_attempt integer, p_base_ms integer, p_cap_ms integer) returns integer
language sql volatile parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select (least(p_cap_ms::numeric, p_base_ms * power(2::numeric, least(p_attempt, 31) - 1)) * (0.5 + 0.5 * random())::numeric)::integer
$$;
comment on function ai.backoff_ms(integer, integer, integer) is 'Milliseconds before attempt p_attempt + 1.';

-- Tokens as a provider may report them: anything that is no number is unknown, none is below zero or above an integer.
create or replace function ai.token_count(p_reported jsonb) returns bigint
language sql immutable parallel safe security invoker
as $$
  select case when jsonb_typeof(p_reported) = 'number' then least(greatest(trunc((p_reported #>> '{}')::numeric), 0), 2147483647)::bigint end
$$;
comment on function ai.token_count(jsonb) is 'A reported number of tokens, from 0 to 2147483647; null for what is no number.';

revoke execute on function ai.token_count(jsonb) from public;
revoke execute on function ai.classify_failure(text, text, integer, text, text, boolean, boolean), ai.backoff_ms(integer, integer, integer) from public;
-- The end of an attempt: the books, and the generation's end or its return to the queue. One statement does all of it
-- for a whole batch, in one transaction with its announcements; the lease row is the fence.

-- Concludes attempts. p_results is an array as docs/worker-protocol.md describes it; p_worker null: the lease may be
-- anybody's (rescue). Gives for each element what became of it: `ended`, `requeued`, or `stale` (no such lease: it
-- ended, was rescued or belongs to another worker; nothing was changed).
--
-- Locks: the leases, in the order of generation ids, then the generations. Of two that conclude the same attempt the
-- second finds no lease.
create or replace function ai.conclude_attempts(p_worker uuid, p_results jsonb)
returns table (generation_id uuid, attempt integer, result text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set join_collapse_limit = 1
as $$
#variable_conflict use_column
declare
  c_late     constant jsonb := '{"class": "deadline", "code": "PT504", "hint": "No answer within deadline_ms."}';
  v_now      timestamptz := ai.now();
  v_settings ai.settings;
  v_key      bytea;
  v_done     record;
begin
  select * into v_settings from ai.settings;
  select k.key into v_key from ai.realtime_key k;

  with results as materialized (
    select distinct on (r.id, r.attempt) r.*, coalesce(r.output, '') as text, coalesce(r.tail, '') as rest
      from jsonb_to_recordset(p_results) r (
        id uuid, attempt integer, outcome text, tail text, output text, message jsonb, embedding jsonb, finish_reason text, usage jsonb,
        model text, service_tier text, request_id text, signal text, http_status integer, error_type text, error_code text,
        error_message text, retry_after_ms bigint, should_retry boolean, sent boolean, ttft_ms numeric, latency_ms numeric)

  ), leases as materialized (
    select l.*
      from ai.leases l
     where l.generation_id = any (array(select id from results)) and (p_worker is null or l.worker_id = p_worker)
     order by l.generation_id
       for update

  ), attempts as materialized (
    -- Everything that is known of each attempt that is still leased.
    select l.*, case when r.outcome in ('succeeded', 'cancelled', 'released') then r.outcome else 'failed' end as outcome, r.text, r.rest, r.message, r.embedding, r.finish_reason, r.model as model_used, r.service_tier, r.request_id,
           r.signal, r.http_status, r.error_type, r.error_code, r.error_message, r.retry_after_ms, r.should_retry, t.ttft_ms, t.latency_ms,
           coalesce(m.name, '(removed)') as model, coalesce(m.kind, 'chat') as kind, coalesce(v.name, '(removed)') as provider, f.class, f.action,
           -- Totals include their parts, whatever a provider says: no part is worth less than nothing.
           greatest(coalesce(u.input, case when b.bills <> 'no' then ceil(l.input_bytes / 4.0) end, 0),
                    least(u.cached + u.cache_write + u.cache_write_1h, 2147483647))::integer as input_tokens,
           least(u.cached, 2147483647)::integer as cached_tokens,
           least(u.cache_write, 2147483647 - u.cached)::integer as cache_write_tokens,
           greatest(least(u.cache_write_1h, 2147483647 - u.cached - u.cache_write), 0)::integer as cache_write_1h_tokens,
           greatest(coalesce(u.output, case when b.bills = 'arrived' then ceil(octet_length(r.text) / 4.0) end, 0), u.reasoning)::integer as output_tokens,
           u.reasoning::integer as reasoning_tokens,
           b.bills <> 'no' and (u.input is null or (u.output is null and b.bills = 'arrived' and r.text <> '')) as estimated,
           p.id as price_id, p.rates,
           -- Handed back before anything was sent: no attempt at a provider, so nothing for the books.
           r.outcome = 'released' and r.signal is null and not coalesce(r.sent, false) as unsent,
           exists (select from ai.cancellations c where c.generation_id = l.generation_id) as cancel_requested,
           coalesce((select e.seq from ai.stream_events e where e.generation_id = l.generation_id order by e.seq desc limit 1), 0) as last_seq
      from leases l
      join results r on r.id = l.generation_id and r.attempt = l.attempt
      left join ai.models m on m.id = l.model_id
      left join ai.providers v on v.id = m.provider_id
      -- In a CASE, because a function in FROM is called first and filtered then: most attempts have not failed.
     cross join lateral (select case when r.signal is not null then
                                  (select array[c.class, c.action, c.billed]
                                     from ai.classify_failure(v.dialect, r.signal, r.http_status, r.error_type, r.error_code,
                                                              r.retry_after_ms is not null, l.stream and r.text <> '') c) end as found offset 0) c
     cross join lateral (select c.found[1] as class, c.found[2] as action, c.found[3] as billed) f
     cross join lateral (select ai.token_count(r.usage -> 'input') as input, coalesce(ai.token_count(r.usage -> 'cache_read'), 0) as cached,
                                coalesce(ai.token_count(r.usage -> 'cache_write'), 0) as cache_write,
                                coalesce(ai.token_count(r.usage -> 'cache_write_1h'), 0) as cache_write_1h,
                                ai.token_count(r.usage -> 'output') as output, coalesce(ai.token_count(r.usage -> 'reasoning'), 0) as reasoning) u
     -- Written as cases, because least() passes over nulls.
     cross join lateral (select case when r.ttft_ms is not null then least(r.ttft_ms, 2147483647) end as ttft_ms,
                                case when r.latency_ms is not null then least(r.latency_ms, 2147483647) end as latency_ms) t
     cross join lateral (select case when r.outcome = 'succeeded' then 'arrived'
                                     when r.outcome = 'cancelled' then case when r.sent then 'arrived' else 'no' end
                                     when not coalesce(r.sent, true) then 'no'
                                     else coalesce(f.billed, 'arrived') end as bills) b
      left join lateral (select p.id, p.rates from ai.prices p
                          where p.model_id = l.model_id and p.valid_from <= l.claimed_at and l.claimed_at < p.valid_to limit 1) p on true

  ), decided as materialized (
    -- What follows: `end` with a status, or `queue` for the same or the next target after some time.
    select a.*, d.status, d.next_target, d.delay_ms,
           ai.token_cost(a.rates, a.input_tokens, a.cached_tokens, a.cache_write_tokens, a.cache_write_1h_tokens, a.output_tokens, a.reasoning_tokens) as cost,
           case when a.rest <> '' and a.stream then 1 else 0 end as tails,
           -- Whether subscribers have seen text that another attempt would contradict.
           a.stream and d.status is null
             and (a.rest <> '' or exists (select from ai.stream_events e where e.generation_id = a.generation_id and e.type = 'delta'
                                             and e.seq > coalesce((select max(x.seq) from ai.stream_events x
                                                                    where x.generation_id = a.generation_id and x.type = 'reset'), 0))) as shown,
           case when a.outcome <> 'succeeded' then
             jsonb_strip_nulls(jsonb_build_object(
               'class', case when a.outcome in ('cancelled', 'released') then a.outcome else coalesce(a.class, 'unknown') end, 'signal', a.signal,
               'http_status', a.http_status, 'type', a.error_type, 'code', a.error_code, 'message', a.error_message,
               'provider', a.provider)) end as error
      from attempts a
     cross join lateral ai.after_attempt(a.outcome, a.unsent, a.action, a.should_retry, a.retry_after_ms, a.attempt, a.target, a.tenant_id, a.generation_id,
                                         a.cancel_requested, a.deadline_at, v_now, v_settings.max_attempts,
                                         v_settings.backoff_base_ms, v_settings.backoff_cap_ms, v_settings.retry_after_cap_ms) d

  ), books as (
    insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, model_used, kind, status, http_status,
      error_class, error_code, input_tokens, cached_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
      estimated, price_id, cost, ttft_ms, latency_ms, service_tier, request_id)
    select d.tenant_id, d.generation_id, d.attempt, d.claimed_at, d.user_id, d.provider, d.model, d.model_used, d.kind,
           case when d.outcome = 'released' or d.signal = 'abandoned' then 'abandoned' else d.outcome end,
           case when d.http_status between 100 and 999 then d.http_status end,
           case when d.outcome <> 'succeeded' then d.error ->> 'class' end, coalesce(d.error_code, d.error_type), d.input_tokens, d.cached_tokens,
           d.cache_write_tokens, d.cache_write_1h_tokens, d.output_tokens, d.reasoning_tokens, d.estimated, d.price_id, d.cost,
           d.ttft_ms::integer, d.latency_ms::integer, d.service_tier, d.request_id
      from decided d where not d.unsent

  ), events as (
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data)
    select d.generation_id, d.last_seq + 1, d.tenant_id, d.attempt, 'delta', d.rest from decided d where d.tails = 1
    union all
    select d.generation_id, d.last_seq + d.tails + 1, d.tenant_id, d.attempt, case when d.shown then 'reset' else 'retry' end, d.error ->> 'class'
      from decided d where d.status is null
    returning generation_id, seq, tenant_id, type, data

  ), ended as (
    update ai.generations g
       set status = d.status, output = nullif(d.text, ''), output_message = d.message, embedding = d.embedding::text::ai.embedding,
           finish_reason = d.finish_reason, error = case when d.status = 'failed' and d.deadline_at <= v_now then d.error || c_late else d.error end,
           provider = d.provider, model_used = coalesce(d.model_used, d.model),
           input_tokens = d.input_tokens, cached_tokens = d.cached_tokens, output_tokens = d.output_tokens,
           cost = case when d.unsent or d.cost is null then g.cost else coalesce(g.cost, 0) + d.cost end,
           last_seq = d.last_seq + d.tails + 1,
           ttft_ms = case when d.ttft_ms is not null then least(extract(epoch from d.claimed_at - d.waiting_since) * 1000 + d.ttft_ms, 2147483647)::integer end,
           latency_ms = least(greatest(0, extract(epoch from v_now - d.waiting_since) * 1000), 2147483647)::integer, finished_at = v_now
      from decided d
     where g.tenant_id = d.tenant_id and g.id = d.generation_id and d.status is not null and g.finished_at is null

  ), returned as (
    update ai.generations g
       set status = 'queued', error = d.error, last_seq = d.last_seq + d.tails + 1,
           cost = case when d.unsent or d.cost is null then g.cost else coalesce(g.cost, 0) + d.cost end
      from decided d
     where g.tenant_id = d.tenant_id and g.id = d.generation_id and d.status is null and g.finished_at is null

  ), freed as (
    delete from ai.leases l using decided d where l.generation_id = d.generation_id

  ), obeyed as (
    delete from ai.cancellations c using decided d where c.generation_id = d.generation_id and d.status is not null and d.cancel_requested

  ), delayed as (
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, attempts, target)
    select d.generation_id, v_now + d.delay_ms * interval '1 ms', d.lane_id, d.tenant_id, d.attempt, d.next_target
      from decided d where d.status is null and d.delay_ms > 0

  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target)
    select d.lane_id, d.generation_id, d.tenant_id, d.attempt, d.next_target from decided d where d.status is null and d.delay_ms <= 0

  ), news as (
    select e.generation_id, e.seq, e.type, ai.event_data(e.type, e.data) as data, d.tenant_id, d.user_id,
           case when e.type = 'delta' then '{}' else '{"status": "queued"}' end::jsonb as state
      from events e join decided d on d.generation_id = e.generation_id
    union all
    select d.generation_id, d.last_seq + d.tails + 1, 'end', jsonb_strip_nulls(jsonb_build_object('status', d.status, 'finish_reason', d.finish_reason)),
           d.tenant_id, d.user_id, '{}'
      from decided d where d.status is not null
  )
  select (select array_agg(d.generation_id) from decided d) as ids,
         (select array_agg(d.attempt) from decided d) as attempts,
         (select array_agg(case when d.status is null then 'requeued' else 'ended' end) from decided d) as outcomes,
         (select array_agg(distinct d.lane_id) filter (where d.delay_ms <= 0) from decided d where d.status is null) as lanes,
         (select count(pg_notify(n.channel, n.payload))
            from (select c.channel, c.payload
                    from (select n.*, ai.event_payload(n.generation_id, n.seq, n.type, n.data || n.state) as payload from news n) n
                   cross join lateral (select ai.channel_name(v_key, n.tenant_id, uuid_send(n.generation_id)) as channel, n.payload
                                       union all
                                       select ai.channel_name(v_key, n.tenant_id, convert_to(n.user_id, 'UTF8') || '\x00'), n.payload
                                        where n.type <> 'delta') c
                   order by n.generation_id, n.seq) n) as notified
    into v_done;

  if v_done.lanes is not null then
    perform ai.list_lanes(v_done.lanes);
    perform ai.wake_workers();
  end if;
  return query
    select r.id, r.attempt, coalesce(d.outcome, 'stale')
      from jsonb_to_recordset(p_results) r (id uuid, attempt integer)
      left join unnest(v_done.ids, v_done.attempts, v_done.outcomes) d (id, attempt, outcome) on d.id = r.id and d.attempt = r.attempt;
end
$$;
comment on function ai.conclude_attempts(uuid, jsonb) is
  'Books attempts and ends or re-queues their generations. Gives ended, requeued or stale for each. Internal: ai.worker_settle(), rescue.';

-- What follows an attempt: a final status, or (status null) another try at next_target after delay_ms.
--   succeeded, cancelled: the end. released: the queue, at once; what was sent counts as an attempt. A failure follows
--   its rule:
--   retry: the same target after the provider's Retry-After or the backoff, if attempts allow it; a wait of more than
--          retry_after_cap_ms or beyond the deadline is not waited, that is `next`
--   next:  the next target of the route at once; failed where there is none
--   fail:  failed
-- The provider's x-should-retry turns retry into next and next into retry; it never overrules fail.
create or replace function ai.after_attempt(
  p_outcome text, p_unsent boolean, p_action text, p_should_retry boolean, p_retry_after_ms bigint, p_attempt integer, p_target integer, p_tenant uuid, p_id uuid,
  p_cancelled boolean, p_deadline_at timestamptz, p_now timestamptz, p_max_attempts integer, p_base_ms integer, p_cap_ms integer,
  p_retry_after_cap_ms integer, out status text, out next_target smallint, out delay_ms bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_action text := p_action;
begin
  if p_outcome = 'succeeded' then
    status := 'succeeded';
    return;
  elsif p_outcome = 'cancelled' or p_cancelled then
    status := 'cancelled';
    return;
  elsif p_outcome = 'released' then
    -- A worker that stops is not the generation's fault, nor is text that was shown a reason not to begin again, as it
    -- does after a crash.
    next_target := p_target;
    delay_ms := 0;
    if not p_unsent and p_attempt >= p_max_attempts then
      status := 'failed';
    end if;
    return;
  end if;

  if p_should_retry and v_action = 'next' then
    v_action := 'retry';
  elsif not p_should_retry and v_action = 'retry' then
    v_action := 'next';
  end if;
  if v_action = 'retry' then
    delay_ms := case when p_retry_after_ms > 0 then p_retry_after_ms else ai.backoff_ms(p_attempt, p_base_ms, p_cap_ms) end;
    next_target := p_target;
    if p_retry_after_ms > p_retry_after_cap_ms or delay_ms >= extract(epoch from p_deadline_at - p_now) * 1000 then
      v_action := 'next';
    end if;
  end if;
  if v_action = 'next' then
    delay_ms := 0;
    select p_target + 1 into next_target
      from ai.generations g
     where g.tenant_id = p_tenant and g.id = p_id and ai.target_model(p_tenant, g.kind, g.model, g.profile, p_target + 1) is not null;
  end if;
  if v_action is distinct from 'retry' and v_action is distinct from 'next' or next_target is null
     or p_attempt >= p_max_attempts or p_now >= p_deadline_at then
    status := 'failed';
  end if;
end
$$;
comment on function ai.after_attempt(text, boolean, text, boolean, bigint, integer, integer, uuid, uuid, boolean, timestamptz, timestamptz, integer, integer, integer, integer) is
  'The decision after an attempt: a final status, or another target and a delay.';

-- A worker's report; see docs/worker-protocol.md. Raises PT400 unless p_results is an array.
create or replace function ai.worker_settle(p_worker uuid, p_results jsonb)
returns table (generation_id uuid, attempt integer, result text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_worker is null or jsonb_typeof(p_results) is distinct from 'array' then
    raise exception 'ai.worker_settle() takes a worker and a JSON array of results' using errcode = 'PT400';
  end if;
  return query select c.generation_id, c.attempt, c.result from ai.conclude_attempts(p_worker, p_results) c;
end
$$;
comment on function ai.worker_settle(uuid, jsonb) is 'Takes the results of attempts; gives ended, requeued or stale for each.';

-- The text of a running generation that subscribers have been shown and that no reset has voided.
create or replace function ai.shown_text(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(string_agg(e.data, '' order by e.seq), '')
    from ai.stream_events e
   where e.generation_id = p_id and e.type = 'delta'
     and e.seq > coalesce((select max(r.seq) from ai.stream_events r where r.generation_id = p_id and r.type = 'reset'), 0)
$$;
comment on function ai.shown_text(uuid) is 'What subscribers have seen of the current attempt.';

-- Declares workers dead that were silent for longer than their lease, and concludes what they held as abandoned, with
-- an estimate of its cost; also what a worker leased while it was being declared dead. Of one worker, or (null) of all.
-- At most 1,000 a call; gives how many. Locks the workers, then like ai.conclude_attempts().
create or replace function ai.rescue_generations(p_worker uuid) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_results jsonb;
begin
  update ai.workers w set ended_at = ai.now(), ending = 'dead'
    from ai.settings s
   where w.ended_at is null and w.heartbeat_at < ai.now() - s.lease_ms * interval '1 ms';

  select jsonb_agg(jsonb_build_object('id', l.generation_id, 'attempt', l.attempt, 'outcome', 'failed', 'signal', 'abandoned', 'sent', true,
                                      'output', ai.shown_text(l.generation_id), 'error_message', 'the worker died or was cut off from the database'))
    into v_results
    from (select l.* from ai.leases l join ai.workers w on w.id = l.worker_id and w.ended_at is not null
           where p_worker is null or l.worker_id = p_worker limit 1000) l;
  if v_results is null then
    return 0;
  end if;
  return (select count(*) from ai.conclude_attempts(null, v_results) c where c.result <> 'stale');
end
$$;
comment on function ai.rescue_generations(uuid) is 'Takes back what dead workers held, books it as abandoned, and re-queues or ends it; gives how many.';

-- The end of a worker's life; what it still holds goes back, as ai.rescue_generations() does it, and is counted.
create or replace function ai.worker_stop(p_worker uuid) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_all integer := 0;
  v_now integer;
begin
  update ai.workers w set ended_at = ai.now(), ending = 'stopped' where w.id = p_worker and w.ended_at is null;
  loop
    v_now := ai.rescue_generations(coalesce(p_worker, '00000000-0000-0000-0000-000000000000'));
    exit when v_now = 0;
    v_all := v_all + v_now;
  end loop;
  return v_all;
end
$$;
comment on function ai.worker_stop(uuid) is 'Unregisters a worker; gives how many generations were taken back.';

revoke execute on function ai.conclude_attempts(uuid, jsonb), ai.worker_settle(uuid, jsonb), ai.shown_text(uuid), ai.rescue_generations(uuid), ai.worker_stop(uuid),
  ai.after_attempt(text, boolean, text, boolean, bigint, integer, integer, uuid, uuid, boolean, timestamptz, timestamptz, integer, integer, integer, integer) from public;
grant execute on function ai.worker_settle(uuid, jsonb), ai.worker_stop(uuid) to ai_worker;
-- Ends that no attempt brings: cancelling, and what cannot be called.

-- Ends a generation that nobody has leased, and announces it. Locks the generation. Does nothing to one that has ended.
create or replace function ai.end_generation(p_tenant uuid, p_id uuid, p_status text, p_error jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seq  integer := ai.last_event(p_id) + 1;
  v_user text;
begin
  update ai.generations g
     set status = p_status, error = p_error, last_seq = v_seq, finished_at = ai.now(),
         latency_ms = least(greatest(0, extract(epoch from ai.now() - greatest(g.created_at, g.run_after)) * 1000), 2147483647)::integer
   where g.tenant_id = p_tenant and g.id = p_id and g.finished_at is null
  returning g.user_id into v_user;
  if found then
    perform pg_notify(c.channel, ai.event_payload(p_id, v_seq, 'end', jsonb_build_object('status', p_status)))
       from (values (ai.stream_channel(p_tenant, p_id)), (ai.member_channel(p_tenant, v_user))) c (channel);
  end if;
end
$$;
comment on function ai.end_generation(uuid, uuid, text, jsonb) is 'Ends an unleased generation with a status and an error, and announces it.';

-- Cancels a generation of the caller. What is queued ends at once; what runs is aborted by its worker, which is
-- notified, and ends as cancelled with what had arrived, or as succeeded if the answer was there first. Gives the
-- status at return: cancelled, running (being aborted), or the end that it already had.
-- Raises PT401, PT404. Locks: the queue row, then the generation; of what runs nothing, because the app's transaction may
-- stay open for long. So an attempt that fails at this very moment may go back to the queue unawares: from there
-- ai.worker_claim() takes it as cancelled.
create or replace function ai.cancel(p_id uuid) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant  uuid := ai.check_visible(p_id);
  v_channel text;
  v_status  text;
  c_error   constant jsonb := '{"class": "cancelled", "message": "cancelled before it was sent"}';
begin
  -- A generation that is on its way from one of these tables to another is in neither for the statement that looks:
  -- so look again until it is found or has ended. Each move needs a worker's statement, so this does not go on.
  for v_try in 1 .. 100 loop
    delete from ai.queue q where q.lane_id = any (array(select l.id from ai.lanes l where l.tenant_id = v_tenant)) and q.generation_id = p_id;
    if found then
      perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
      return 'cancelled';
    end if;
    delete from ai.delayed d where d.generation_id = p_id;
    if found then
      perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
      return 'cancelled';
    end if;
    select w.channel into v_channel from ai.leases l join ai.workers w on w.id = l.worker_id where l.generation_id = p_id;
    if found then
      insert into ai.cancellations (generation_id, tenant_id, requested_at) values (p_id, v_tenant, ai.now());
      perform pg_notify(v_channel, '');
      return 'running';
    end if;
    select g.status into v_status from ai.generations g where g.tenant_id = v_tenant and g.id = p_id and g.finished_at is not null;
    if found then
      return v_status;
    end if;
  end loop;
  -- Not in the queue at all: an orphan, as ai.requeue_orphans() would find it.
  perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
  return 'cancelled';
end
$$;
comment on function ai.cancel(uuid) is 'Cancels a generation; gives its status at return. PT404 where the caller may not see it.';

-- Ends what was asked to be cancelled while its attempt was failing, and forgets requests of what has ended. Gives how
-- many it ended. Locks the requests and the queue or delayed rows, skipping what others hold.
create or replace function ai.end_cancelled() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one   record;
  v_count integer := 0;
begin
  for v_one in
    select distinct on (r.generation_id) r.generation_id, r.tenant_id
      from (select c.generation_id, c.tenant_id from ai.cancellations c
             where not exists (select from ai.leases l where l.generation_id = c.generation_id)
             limit 1000 for update skip locked) r
     order by r.generation_id
  loop
    delete from ai.queue q
     where q.ctid = any (array(select o.ctid from ai.queue o
                                where o.lane_id = any (array(select n.id from ai.lanes n where n.tenant_id = v_one.tenant_id))
                                  and o.generation_id = v_one.generation_id
                                  for update skip locked));
    if not found then
      delete from ai.delayed d
       where d.generation_id = any (array(select o.generation_id from ai.delayed o where o.generation_id = v_one.generation_id for update skip locked));
    end if;
    if found then
      perform ai.end_generation(v_one.tenant_id, v_one.generation_id, 'cancelled', '{"class": "cancelled", "message": "cancelled between two attempts"}');
      v_count := v_count + 1;
    elsif exists (select from ai.generations g where g.tenant_id = v_one.tenant_id and g.id = v_one.generation_id and g.finished_at is null) then
      continue;  -- on its way from one table to another, or held by somebody: the next call finds it
    end if;
    delete from ai.cancellations c where c.generation_id = v_one.generation_id;
  end loop;
  return v_count;
end
$$;
comment on function ai.end_cancelled() is 'Ends generations that were cancelled between two attempts; gives how many.';

revoke execute on function ai.end_generation(uuid, uuid, text, jsonb), ai.cancel(uuid), ai.end_cancelled() from public;
grant execute on function ai.cancel(uuid) to ai_user;
-- Asking by a function call, and at a psql prompt. Everything here is the caller's own INSERT, under its own rights.

-- Inserts a generation and gives its id. With an idempotency key that was used before with the same input, the id of
-- that generation. Raises what the INSERT raises. The parameters' names are the columns'.
create or replace function ai.generate(
  prompt text default null, messages jsonb default null, model text default null, profile text default null, params jsonb default '{}',
  stream boolean default false, priority text default 'normal', run_after timestamptz default null, deadline_ms integer default null,
  idempotency_key text default null, metadata jsonb default null, kind text default 'chat')
returns uuid
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_id uuid;
begin
  insert into ai.generations as g (prompt, messages, model, profile, params, stream, priority, run_after, deadline_ms, idempotency_key, metadata, kind)
  values (prompt, messages, model, profile, params, stream, priority, run_after, deadline_ms, idempotency_key, metadata, kind)
  returning g.id into v_id;
  return coalesce(v_id, ai.idempotent_generation(idempotency_key));
end
$$;
comment on function ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text) is
  'Asks for a generation and gives its id; the same id for the same idempotency key.';

-- Asks for the embedding of a text; the vector comes back in ai.generations.embedding.
create or replace function ai.embed(
  input text, model text default null, profile text default null, params jsonb default '{}', idempotency_key text default null, metadata jsonb default null)
returns uuid
language sql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
  select ai.generate(prompt => input, model => model, profile => profile, params => params, idempotency_key => idempotency_key,
                     metadata => metadata, kind => 'embedding')
$$;
comment on function ai.embed(text, text, text, jsonb, text, jsonb) is 'Asks for the embedding of a text and gives the generation''s id.';

-- For people in psql: call ai.ask('…', null). Inserts, commits, waits for the end (polling from 2 to 50 ms, with a
-- commit each round, so that it holds no snapshot), and gives the answer. It must run in autocommit, outside of a
-- transaction block; it has no SET clause, because a procedure with one cannot commit.
-- Raises PT400 inside a transaction block, what the INSERT raises, PT502 for a failed generation, PT403 for a rejected
-- one, PT409 for a cancelled one, PT504 when timeout_ms is over (the generation goes on).
create or replace procedure ai.ask(
  question text, inout answer text default null, model text default null, profile text default null, timeout_ms integer default 120000)
language plpgsql security invoker
as $$
declare
  v_id    uuid;
  v_end   record;
  v_until timestamptz := pg_catalog.clock_timestamp() + timeout_ms * interval '1 ms';
  v_pause double precision := 0.002;
  v_stack text;
begin
  get diagnostics v_stack = pg_context;
  if pg_catalog.now() <> pg_catalog.statement_timestamp() and v_stack !~ E'\n' then
    raise exception 'ai.ask() cannot run inside a transaction block'
      using errcode = 'PT400', detail = 'It commits the question, so that a worker can see it, and then waits for the answer.',
            hint = 'Call it in autocommit, or use ai.generate() and read ai.generations later.';
  end if;
  if timeout_ms is null or timeout_ms not between 1 and 86400000 then
    raise exception 'timeout_ms must be from 1 to 86400000' using errcode = 'PT400';
  end if;
  v_id := ai.generate(prompt => question, model => model, profile => profile);
  commit;
  loop
    select g.status, g.output, g.error, g.finished_at into v_end from ai.generations g where g.id = v_id;
    exit when v_end.finished_at is not null;
    if pg_catalog.clock_timestamp() >= v_until then
      raise exception 'no answer within % ms', timeout_ms
        using errcode = 'PT504', detail = pg_catalog.format('Generation %s is still %s, and goes on.', v_id, v_end.status),
              hint = 'Is a worker running? martlet doctor';
    end if;
    commit;
    perform pg_catalog.pg_sleep(v_pause);
    v_pause := least(v_pause * 1.5, 0.05);
  end loop;
  if v_end.status <> 'succeeded' then
    raise exception 'the generation ended as %: %', v_end.status, coalesce(v_end.error ->> 'message', v_end.error ->> 'class')
      using errcode = case v_end.status when 'rejected' then 'PT403' when 'cancelled' then 'PT409' else 'PT502' end,
            detail = coalesce(v_end.error::text, ''), hint = pg_catalog.format('select * from ai.llm_calls where generation_id = %L;', v_id);
  end if;
  answer := v_end.output;
end
$$;
comment on procedure ai.ask(text, text, text, text, integer) is 'Asks, waits and gives the answer to a prompt: call ai.ask(''…'', null).';

revoke execute on function
  ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text),
  ai.embed(text, text, text, jsonb, text, jsonb) from public;
revoke execute on procedure ai.ask(text, text, text, text, integer) from public;
grant execute on function
  ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text),
  ai.embed(text, text, text, jsonb, text, jsonb) to ai_user;
grant execute on procedure ai.ask(text, text, text, text, integer) to ai_user;
-- What was used and what it cost.

-- A report over the calls that began from p_from until before p_to, grouped by provider, model, user, kind, status or
-- day. Runs with the caller's rights: users see their own calls, developers and admins those of the tenant. The sum of
-- its cost is the sum of ai.llm_calls.cost, to the last digit. Raises PT400 for another grouping.
create or replace function ai.usage_report(
  p_from timestamptz default date_trunc('month', now()), p_to timestamptz default 'infinity', p_by text default 'model')
returns table (key text, calls bigint, succeeded bigint, input_tokens bigint, cached_tokens bigint, output_tokens bigint,
               cost numeric, estimated_cost numeric, unpriced bigint)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_by is null or p_by not in ('provider', 'model', 'user', 'kind', 'status', 'day') then
    raise exception 'a usage report is grouped by provider, model, user, kind, status or day' using errcode = 'PT400';
  end if;
  return query
    select case p_by when 'provider' then c.provider when 'model' then c.model when 'user' then c.user_id when 'kind' then c.kind
                     when 'status' then c.status else to_char(c.created_at at time zone 'UTC', 'YYYY-MM-DD') end,
           count(*), count(*) filter (where c.status = 'succeeded'), sum(c.input_tokens), sum(c.cached_tokens), sum(c.output_tokens),
           coalesce(sum(c.cost), 0), coalesce(sum(c.cost) filter (where c.estimated), 0), count(*) filter (where c.cost is null)
      from ai.llm_calls c
     where c.created_at >= p_from and c.created_at < p_to
     group by 1 order by 1;
end
$$;
comment on function ai.usage_report(timestamptz, timestamptz, text) is 'Calls, tokens and cost by provider, model, user, kind, status or day (UTC).';
revoke execute on function ai.usage_report(timestamptz, timestamptz, text) from public;
grant execute on function ai.usage_report(timestamptz, timestamptz, text) to ai_user;

-- objects

drop policy if exists visible on ai.llm_calls;
create policy visible on ai.llm_calls for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.sees_tenant())));
grant select on ai.llm_calls to ai_user;
-- What a worker does beside: rescue, partitions, retention, orphans. One worker at a time; the others skip it.

-- The smallest version 7 UUID of a moment: a bound for partitions by id.
create or replace function ai.uuid_floor(p_at timestamptz) returns uuid
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select (lpad(to_hex((extract(epoch from p_at) * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid $$;
comment on function ai.uuid_floor(timestamptz) is 'The smallest version 7 UUID of that millisecond.';

-- Makes the partitions that p_now and ai.partitioning ask for, and gives how many. What the default partition holds of
-- their range is moved into them. Locks: the parent against other schema changes, the default partition alone for a
-- moment. Waits 2 s for a lock at most (55P03): the next tick tries again, and until then rows go to the default.
create or replace function ai.make_partitions(p_now timestamptz default now()) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_table  record;
  v_from   timestamp;
  v_name   text;
  v_key    text;
  v_bounds text[];
  v_made   integer := 0;
begin
  for v_table in select p.* from ai.partitioning p order by p.table_name loop
    for v_step in 0 .. v_table.ahead loop
      v_from := date_trunc(case when v_table.span = interval '1 day' then 'day' else 'month' end, p_now at time zone 'UTC') + v_step * v_table.span;
      v_name := v_table.table_name || to_char(v_from, case when v_table.span = interval '1 day' then '_pYYYYMMDD' else '_pYYYYMM' end);
      continue when to_regclass(format('ai.%I', v_name)) is not null;
      if v_table.table_name = 'llm_calls' then
        v_key := 'created_at';
        v_bounds := array[(v_from at time zone 'UTC')::text, ((v_from + v_table.span) at time zone 'UTC')::text];
      else
        v_key := case v_table.table_name when 'generations' then 'id' else 'generation_id' end;
        v_bounds := array[ai.uuid_floor(v_from at time zone 'UTC')::text, ai.uuid_floor((v_from + v_table.span) at time zone 'UTC')::text];
      end if;
      execute format('create table ai.%I (like ai.%I including defaults including constraints including storage)%s', v_name, v_table.table_name,
                     case when v_table.table_name = 'generations' then ' with (fillfactor = 50)' end);
      execute format('alter table ai.%I enable row level security', v_name);
      execute format('lock table ai.%I in access exclusive mode', v_table.table_name || '_default');
      execute format('with moved as (delete from ai.%1$I where %2$I >= %4$L and %2$I < %5$L returning *) insert into ai.%3$I select * from moved',
                     v_table.table_name || '_default', v_key, v_name, v_bounds[1], v_bounds[2]);
      execute format('alter table ai.%I attach partition ai.%I for values from (%L) to (%L)', v_table.table_name, v_name, v_bounds[1], v_bounds[2]);
      v_made := v_made + 1;
    end loop;
  end loop;
  return v_made;
end
$$;
comment on function ai.make_partitions(timestamptz) is 'Makes the partitions that are missing, some ahead; gives how many.';

-- Detaches and drops partitions that ended longer ago than ai.partitioning.keep, and gives how many. A partition's
-- range is read from its name. Locks the parent alone for a moment; waits 2 s at most.
create or replace function ai.drop_old_partitions(p_now timestamptz default now()) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $$
declare
  v_old     record;
  v_dropped integer := 0;
begin
  for v_old in
    select p.table_name, c.relname
      from ai.partitioning p
      join pg_inherits i on i.inhparent = format('ai.%I', p.table_name)::regclass
      join pg_class c on c.oid = i.inhrelid
     where p.keep is not null and c.relname ~ ('^' || p.table_name || '_p[0-9]+$')
       and (rpad(substring(c.relname from '[0-9]+$'), 8, '01')::date + p.span) at time zone 'UTC' <= p_now - p.keep
     order by c.relname
  loop
    execute format('alter table ai.%I detach partition ai.%I', v_old.table_name, v_old.relname);
    execute format('drop table ai.%I', v_old.relname);
    v_dropped := v_dropped + 1;
  end loop;
  return v_dropped;
end
$$;
comment on function ai.drop_old_partitions(timestamptz) is 'Detaches and drops partitions older than their keep; gives how many.';

-- Queues generations that no trigger saw: rows that came by replication or with triggers off; those that are to run later
-- are delayed. Looks at what was inserted within p_since: who restores older ones calls this with a longer time. Gives how
-- many. Locks what it queues.
create or replace function ai.requeue_orphans(p_since interval default '1 day') returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
  v_ids   uuid[];
  v_lanes bigint[];
begin
  -- In one snapshot every generation that has not ended is in exactly one of these tables. EXCEPT reads each of them once,
  -- whatever the planner believes: beside a million queued rows that is a fraction of what looking each of them up takes.
  v_ids := array(
    select * from (
      select g.id
        from ai.tenants t
        join ai.generations g on g.tenant_id = t.id and g.id >= ai.uuid_floor(ai.now() - p_since) and g.status in ('queued', 'running')
      except select q.generation_id from ai.queue q
      except select d.generation_id from ai.delayed d
      except select l.generation_id from ai.leases l) o (id)
     order by o.id limit 10000);
  if cardinality(v_ids) = 0 then
    return 0;
  end if;

  with orphans as materialized (
    select g.tenant_id, g.id, g.priority, g.status
      from ai.tenants t
      join ai.generations g on g.tenant_id = t.id and g.id = any (v_ids) and g.status in ('queued', 'running')
     order by g.id
       for update of g skip locked
  ), lanes as (
    insert into ai.lanes (tenant_id, priority) select distinct tenant_id, priority from orphans on conflict do nothing
  ), reset as (
    update ai.generations g set status = 'queued' from orphans o where g.tenant_id = o.tenant_id and g.id = o.id and o.status = 'running'
  )
  select coalesce(array_agg(o.id), '{}') into v_ids from orphans o;
  with found as materialized (
    select l.id as lane_id, g.id, g.tenant_id, g.attempts, g.run_after
      from ai.tenants t
      join ai.generations g on g.tenant_id = t.id and g.id = any (v_ids)
      join ai.lanes l on l.tenant_id = g.tenant_id and l.priority = g.priority
  ), later as (
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, attempts)
    select f.id, f.run_after, f.lane_id, f.tenant_id, f.attempts from found f where f.run_after > ai.now()
    on conflict do nothing
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts)
    select f.lane_id, f.id, f.tenant_id, f.attempts from found f where f.run_after > ai.now() is not true
    on conflict do nothing
    returning lane_id
  )
  select array_agg(distinct q.lane_id) into v_lanes from queued q;
  perform ai.list_lanes(coalesce(v_lanes, '{}'));
  perform ai.wake_workers();
  return cardinality(v_ids);
end
$$;
comment on function ai.requeue_orphans(interval) is 'Queues generations that are queued or running but in no queue; gives how many.';

-- Takes empty lanes off the list, and what is listed more than once off it but once. To take a lane off needs its listing
-- lock alone, so that no insert in flight can have counted on the lane being listed; a lane whose lock is not free is left
-- for the next time. Called by one at a time (ai.worker_maintain()), so that of twins one stays.
create or replace function ai.unlist_empty_lanes() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
  v_lane  bigint;
  v_count integer := 0;
begin
  delete from ai.active_lanes a
   where a.ctid = any (array(select d.ctid from (select ctid, row_number() over (partition by lane_id order by ctid) as n from ai.active_lanes) d
                              where d.n > 1 limit 100000));
  for v_lane in
    select distinct a.lane_id from ai.active_lanes a where not exists (select from ai.queue q where q.lane_id = a.lane_id) order by 1
  loop
    continue when not pg_try_advisory_xact_lock(1634300002, v_lane::integer);
    -- A statement of its own, with a snapshot younger than the lock.
    delete from ai.active_lanes a where a.lane_id = v_lane and not exists (select from ai.queue q where q.lane_id = v_lane);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function ai.unlist_empty_lanes() is 'Takes lanes without anything queued off the list that the claim goes through.';

-- The tick of a worker. Gives counts: {"rescued", "due", "unlisted"}, about once a minute {"partitions_made",
-- "partitions_dropped", "keys_forgotten"} (or "partitions_blocked", "partitions_failed"), once an hour {"orphans"}; or
-- {"skipped": true} where another worker is at it.
create or replace function ai.worker_maintain(p_worker uuid) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := ai.now();
  v_state ai.maintenance;
  v_done  jsonb;
  v_count integer;
begin
  -- A row, not an advisory lock, which anybody could take and keep.
  select * into v_state from ai.maintenance for update skip locked;
  if not found then
    return '{"skipped": true}';
  end if;
  v_done := jsonb_build_object('rescued', ai.rescue_generations(null), 'due', ai.queue_what_is_due(v_now));
  perform ai.end_cancelled();

  if v_state.partitions_at < v_now - interval '1 minute' then
    begin
      v_done := v_done || jsonb_build_object('partitions_made', ai.make_partitions(v_now), 'partitions_dropped', ai.drop_old_partitions(v_now));
    exception
      when lock_not_available or deadlock_detected then
        v_done := v_done || '{"partitions_blocked": true}';
      -- Whatever is wrong with partitions, it must not keep generations from being rescued; rows go to the default meanwhile.
      when others then
        v_done := v_done || jsonb_build_object('partitions_failed', sqlstate);
        raise warning 'partitions cannot be made or dropped: %', sqlerrm;
    end;
    delete from ai.idempotency_keys k
     using ai.settings s
     where k.created_at < v_now - s.idempotency_days * interval '1 day';
    get diagnostics v_count = row_count;
    v_done := v_done || jsonb_build_object('keys_forgotten', v_count);
    delete from ai.workers w
     where w.ended_at < v_now - interval '1 day' and not exists (select from ai.leases l where l.worker_id = w.id);
    update ai.maintenance set partitions_at = v_now;
  end if;
  if v_state.orphans_at < v_now - interval '1 hour' then
    v_done := v_done || jsonb_build_object('orphans', ai.requeue_orphans());
    update ai.maintenance set orphans_at = v_now;
  end if;
  -- Last, because it holds listing locks, for which inserts wait, until this transaction ends.
  return v_done || jsonb_build_object('unlisted', ai.unlist_empty_lanes());
end
$$;
comment on function ai.worker_maintain(uuid) is 'Rescues, keeps the queue, partitions and keys in order; gives counts of what it did.';

revoke execute on function ai.uuid_floor(timestamptz), ai.make_partitions(timestamptz), ai.drop_old_partitions(timestamptz),
  ai.requeue_orphans(interval), ai.unlist_empty_lanes(), ai.worker_maintain(uuid) from public;
grant execute on function ai.worker_maintain(uuid) to ai_worker;

-- objects

do $$ begin perform ai.make_partitions(); end $$;
