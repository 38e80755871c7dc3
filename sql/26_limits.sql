-- Limits: which of them apply to a generation, and the counters that count for them.
--
-- An insert only looks up counters, to find its lane; it locks none and waits for nobody. Counters are made, locked and
-- written by the claim and by what ends an attempt (sql/28_reservations.sql, sql/28_settlements.sql).

-- The window of a period that a moment lies in: half open, in UTC. Without a period all time is one window.
create or replace function ai.window_start(p_period text, p_at timestamptz) returns timestamptz
language sql immutable parallel safe security invoker
as $$ select case when p_period is null then '-infinity' else date_trunc(p_period, p_at at time zone 'UTC') at time zone 'UTC' end $$;
comment on function ai.window_start(text, timestamptz) is 'When the window began that a moment lies in; -infinity without a period.';

create or replace function ai.window_end(p_period text, p_at timestamptz) returns timestamptz
language sql immutable parallel safe security invoker
as $$
  select case when p_period is null then 'infinity'
              else (date_trunc(p_period, p_at at time zone 'UTC')
                    + case p_period when 'second' then interval '1 second' when 'minute' then interval '1 minute' when 'hour' then interval '1 hour'
                                    when 'day' then interval '1 day' when 'week' then interval '7 days' when 'month' then interval '1 month' end)
                   at time zone 'UTC' end
$$;
comment on function ai.window_end(text, timestamptz) is 'When the window ends that a moment lies in; infinity without a period.';

-- Whether any limit concerns a tenant. Two index probes, asked on every insert.
create or replace function ai.limited(p_tenant uuid) returns boolean
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  return exists (select from ai.limits l where l.tenant_id = p_tenant and l.enabled)
      or exists (select from ai.limits l where l.tenant_id is null and l.enabled);
end
$$;
comment on function ai.limited(uuid) is 'Whether an enabled limit concerns this tenant.';

-- Which counters count a generation, by what its row names. Takes no locks. A key that is gone counts as itself.
create or replace function ai.generation_counters(p_tenant uuid, p_user text, p_kind text, p_model text, p_profile text, p_api_key uuid default null) returns bigint[]
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_key     uuid := case when p_api_key is not null then ai.key_origin(p_api_key) end;
  v_ids     bigint[];
  v_missing boolean;
begin
  select array_agg(c.id order by c.id), bool_or(c.id is null)
    into v_ids, v_missing
    from ai.limits l
    left join ai.counters c on c.limit_id = l.id and c.tenant_id = p_tenant
                           and c.subject = case l.per when 'member' then p_user when 'api_key' then v_key::text else '' end
   where (l.tenant_id = p_tenant or l.tenant_id is null) and l.enabled
     and (l.user_id is null or l.user_id = p_user) and (l.kind is null or l.kind = p_kind)
     and (l.profile is null or l.profile = p_profile) and (l.model is null or l.model = p_model)
     and (l.per <> 'api_key' or v_key is not null) and (l.api_key_id is null or l.api_key_id = v_key);
  return case when v_missing then null else coalesce(v_ids, '{}') end;
end
$$;
comment on function ai.generation_counters(uuid, text, text, text, text, uuid) is
  'Ids of the counters of the limits that concern such a generation, ascending; empty: none does; null: one has to be made first.';

create or replace function ai.key_origin(p_api_key uuid) returns uuid
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$ select coalesce((select k.origin_id from ai.api_keys k where k.id = p_api_key), p_api_key) $$;
comment on function ai.key_origin(uuid) is 'The first of the API keys that were rotated into this one.';

-- Makes the counters that ai.generation_counters() misses and gives all of them. Locks the one row of ai.counter_making
-- until the transaction ends: claims that make counters follow each other. To be called before ai.reserve_limits() in a
-- transaction, never after it, so that nobody who holds a counter waits here. Raises 40001 where the transaction's
-- snapshot is too old to see what another has made.
create or replace function ai.make_counters(p_tenant uuid, p_user text, p_kind text, p_model text, p_profile text, p_api_key uuid default null) returns bigint[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_key uuid := case when p_api_key is not null then ai.key_origin(p_api_key) end;
  v_ids bigint[];
begin
  perform from ai.counter_making for update;
  for v_try in 1 .. 10 loop  -- a limit may be set between the two statements
    insert into ai.counters (limit_id, tenant_id, subject)
    select l.id, p_tenant, case l.per when 'member' then p_user when 'api_key' then v_key::text else '' end
      from ai.limits l
     where (l.tenant_id = p_tenant or l.tenant_id is null) and l.enabled
       and (l.user_id is null or l.user_id = p_user) and (l.kind is null or l.kind = p_kind)
       and (l.profile is null or l.profile = p_profile) and (l.model is null or l.model = p_model)
       and (l.per <> 'api_key' or v_key is not null) and (l.api_key_id is null or l.api_key_id = v_key)
     order by l.id
    on conflict do nothing;
    v_ids := ai.generation_counters(p_tenant, p_user, p_kind, p_model, p_profile, p_api_key);
    exit when v_ids is not null;
  end loop;
  if v_ids is null then
    raise exception 'counters of limits were made at the same time' using errcode = 'serialization_failure';
  end if;
  return v_ids;
end
$$;
comment on function ai.make_counters(uuid, text, text, text, text, uuid) is 'Makes the counters that such a generation needs; gives their ids, ascending.';

-- The most that so many tokens can cost: each at the dearest rate of its side. Rates as in ai.prices.
create or replace function ai.dearest_cost(p_rates jsonb, p_input bigint, p_output bigint) returns numeric
language sql immutable parallel safe security invoker
as $$
  select case when p_rates is not null then trim_scale(0.000001 * (
      p_input  * coalesce(greatest((p_rates ->> 'input')::numeric, (p_rates ->> 'cache_read')::numeric, (p_rates ->> 'cache_write')::numeric,
                                   (p_rates ->> 'cache_write_1h')::numeric), 0)
    + p_output * coalesce(greatest((p_rates ->> 'output')::numeric, (p_rates ->> 'reasoning')::numeric), 0))) end
$$;
comment on function ai.dearest_cost(jsonb, bigint, bigint) is 'The most that this many tokens can cost by these rates; null without rates.';

-- Says a limit in words, for errors.
create or replace function ai.limit_text(p_metric text, p_period text, p_amount numeric, p_per text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case p_metric when 'concurrency' then format('%s at once', trim_scale(p_amount))
                       when 'credit' then 'prepaid credit'
                       when 'cost' then format('a cost of %s', trim_scale(p_amount))
                       else format('%s %s', trim_scale(p_amount), p_metric) end
      || case p_period when 'hour' then ' an hour' else coalesce(' a ' || p_period, '') end
      || case p_per when 'member' then ' for each member' when 'api_key' then ' for each API key' else '' end
$$;
comment on function ai.limit_text(text, text, numeric, text) is 'A limit in words, such as 20 requests an hour for each member.';

-- Trigger BEFORE INSERT: what an admin of a tenant inserts is the tenant's own. Runs as who inserts, because it is the
-- policies' being active that tells an admin from the operator.
create or replace function ai.own_limit() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if row_security_active('ai.limits') then
    new.tenant_id := coalesce(new.tenant_id, (select ai.tenant_id()));
    new.operator := false;
  end if;
  return new;
end
$$;
comment on function ai.own_limit() is 'Trigger: marks limits that an admin sets as the tenant''s own.';

-- Trigger BEFORE INSERT, after own_limit: a limit of one API key is of a key of its tenant, and is kept by the first of its
-- rotations. Raises PT404 for any other: whether another tenant has such a key is not told.
create or replace function ai.own_limit_key() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_all boolean := ai.acts_for_all();
begin
  select k.tenant_id, coalesce(k.origin_id, k.id) into new.tenant_id, new.api_key_id
    from ai.api_keys k
   where k.id = new.api_key_id and (k.tenant_id = new.tenant_id or new.tenant_id is null and v_all) and (v_all or k.tenant_id = ai.tenant_id());
  if not found then
    raise exception 'there is no such API key in this tenant' using errcode = 'PT404', hint = 'select id, name, state from ai.api_key_list;';
  end if;
  return new;
end
$$;
comment on function ai.own_limit_key() is 'Trigger: a limit of one API key is of a key of its own tenant.';

-- Trigger BEFORE INSERT, after own_limit, of what a tenant sets itself. Raises PT409 beyond 100: claims lock the counters of all of them,
-- for other tenants in the same batch, too. Takes a turn (sql/17_bindings.sql).
create or replace function ai.own_limit_number() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if new.tenant_id is distinct from ai.tenant_id() then
    return new;  -- row-level security refuses it: nothing is said about what another tenant has, and nobody waits
  end if;
  perform ai.take_turn(new.tenant_id);
  if (select count(*) from ai.limits l where l.tenant_id = new.tenant_id and not l.operator) >= 100 then
    raise exception 'a tenant sets at most 100 limits' using errcode = 'PT409', hint = 'The operator may set more.';
  end if;
  return new;
end
$$;
comment on function ai.own_limit_number() is 'Trigger: a tenant sets at most 100 limits itself.';

-- Trigger BEFORE INSERT on ai.api_keys.
create or replace function ai.keep_key_origin() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  new.origin_id := case when new.replaces is not null then ai.key_origin(new.replaces) else new.id end;
  return new;
end
$$;
comment on function ai.keep_key_origin() is 'Trigger: notes which key the first was that was rotated into this one.';

-- Trigger BEFORE UPDATE OR DELETE: what a limit counts does not change under its counters, and the ledger of money is
-- not deleted. Raises PT409.
create or replace function ai.keep_limit() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_forgotten boolean := false;
begin
  if tg_op = 'DELETE' then
    if old.metric in ('cost', 'credit')
       and exists (select from ai.counters c join ai.counter_entries e on e.counter_id = c.id where c.limit_id = old.id) then
      raise exception 'money was counted by this limit'
        using errcode = 'PT409', detail = 'Its entries are a ledger.', hint = 'Set enabled = false.';
    end if;
    return old;
  end if;
  if new.user_id = 'forgotten' and not new.enabled
     and exists (select from ai.forgotten f where f.tenant_id = old.tenant_id and f.user_id = old.user_id and f.finished_at is null) then
    new.user_id := old.user_id;  -- for the comparison: the name of a person who is being forgotten is taken off (ai.erase_names())
    v_forgotten := true;
  end if;
  if (new.id, new.tenant_id, new.per, new.user_id, new.kind, new.profile, new.model, new.metric, new.period, new.operator, new.api_key_id)
     is distinct from (old.id, old.tenant_id, old.per, old.user_id, old.kind, old.profile, old.model, old.metric, old.period, old.operator, old.api_key_id) then
    raise exception 'of a limit only amount, soft, on_limit and enabled change'
      using errcode = 'PT409', detail = 'Its counters would go on with what was counted for something else.',
            hint = 'Insert another one and set enabled = false here.';
  end if;
  if v_forgotten then
    new.user_id := 'forgotten';
  end if;
  return new;
end
$$;
comment on function ai.keep_limit() is 'Trigger: what a limit counts does not change, and money that was counted is kept.';

-- Constraint trigger, at commit: whoever waits for room is looked at again under the new policy. A claim under way may have read the old
-- one, and parks its lane unseen from here: an empty entry in ai.unsettled makes the next claim look at what waits for the counter
-- (ai.unpark_lanes()), and goes when the counter is held. The newest c_counters get one: what waits for another one is looked at within a
-- minute. A limit that is deleted needs none: to delete its counters waits for such claims. Locks parked lanes, skipping what others hold.
create or replace function ai.limits_changed() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_counters constant integer := 1000;
  v_tenant   uuid := case when tg_op = 'DELETE' then old.tenant_id else new.tenant_id end;
  v_limits   bigint[] := '{}';
  v_left     boolean;
  v_unparked integer;
begin
  if tg_table_name = 'credits' then
    v_limits := array(select l.id from ai.limits l where l.tenant_id = v_tenant and l.metric = 'credit');
  elsif tg_op = 'UPDATE' then
    v_limits := array[new.id];
  end if;
  insert into ai.unsettled (counter_id, window_start, delta)
  select c.id, ai.window_start(l.period, ai.now()), 0
    from ai.limits l
    join ai.counters c on c.limit_id = l.id
   where l.id = any (v_limits)
   order by c.id desc
   limit c_counters;
  v_left := found;
  v_unparked := ai.unpark(array(select p.lane_id from ai.parked_lanes p where v_tenant is null or p.tenant_id = v_tenant));
  if v_unparked > 0 or v_left then
    perform ai.wake_workers();
  end if;
  return null;
end
$$;
comment on function ai.limits_changed() is 'Trigger: lanes that wait for room are looked at again.';

revoke execute on function ai.window_start(text, timestamptz), ai.window_end(text, timestamptz), ai.limited(uuid),
  ai.generation_counters(uuid, text, text, text, text, uuid), ai.key_origin(uuid), ai.make_counters(uuid, text, text, text, text, uuid), ai.dearest_cost(jsonb, bigint, bigint),
  ai.limit_text(text, text, numeric, text), ai.own_limit(), ai.own_limit_key(), ai.own_limit_number(), ai.keep_key_origin(), ai.keep_limit(), ai.limits_changed() from public;

-- objects

create or replace trigger own_limit before insert on ai.limits
  for each row execute function ai.own_limit();
create or replace trigger own_limit_key before insert on ai.limits
  for each row when (new.api_key_id is not null) execute function ai.own_limit_key();
create or replace trigger own_limit_number before insert on ai.limits
  for each row when (not new.operator) execute function ai.own_limit_number();
create or replace trigger keep_key_origin before insert on ai.api_keys
  for each row execute function ai.keep_key_origin();
create or replace trigger keep_limit before update or delete on ai.limits
  for each row execute function ai.keep_limit();
drop trigger if exists changed on ai.limits;
create constraint trigger changed after update or delete on ai.limits
  deferrable initially deferred for each row execute function ai.limits_changed();
drop trigger if exists changed on ai.credits;
create constraint trigger changed after insert on ai.credits
  deferrable initially deferred for each row execute function ai.limits_changed();

drop policy if exists visible on ai.limits;
create policy visible on ai.limits for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id()))
         and (user_id is null and api_key_id is null and (select ai.tenant_id()) is not null or user_id = (select ai.user_id())
              or (select ai.may('policy:read') or ai.may('policy:write') or ai.may('billing:read'))));
drop policy if exists own on ai.limits;
create policy own on ai.limits for insert to ai_admin
  with check (tenant_id = (select ai.tenant_for('policy:write')) and not operator and metric <> 'credit');
drop policy if exists own_change on ai.limits;
create policy own_change on ai.limits for update to ai_admin
  using (tenant_id = (select ai.tenant_for('policy:write')) and not operator);
grant select on ai.limits to ai_user;
-- By column, because who may update or delete a whole table may also lock it, and with it everybody's claims. A limit is
-- switched off, not deleted.
grant insert (tenant_id, per, api_key_id, user_id, kind, profile, model, metric, period, amount, soft, on_limit, enabled) on ai.limits to ai_admin;
grant update (amount, soft, on_limit, enabled) on ai.limits to ai_admin;

drop policy if exists visible on ai.credits;
create policy visible on ai.credits for select to ai_user
  using (tenant_id = (select ai.tenant_for('billing:read')));
grant select on ai.credits to ai_user;
