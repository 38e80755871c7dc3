-- The decision after an attempt.

-- Keys of a provider, best first: its own secret, then ai.provider_accounts by position; those without money last, the
-- one that may have some soonest first. As it was at p_at.
create or replace function ai.provider_secrets(p_provider bigint, p_at timestamptz)
returns table (secret text, exhausted boolean)
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.secret, e.until is not null
    from (select 0 as position, p.secret from ai.providers p where p.id = p_provider and p.secret is not null
          union all
          select a.position, a.secret from ai.provider_accounts a where a.provider_id = p_provider and a.enabled) s
    left join ai.exhausted_accounts e on e.provider_id = p_provider and e.secret = s.secret and e.since <= p_at and p_at < e.until
   order by e.until nulls first, s.position
$$;
comment on function ai.provider_secrets(bigint, timestamptz) is 'Names of a provider''s keys in the order in which they are taken, and whether their account has no money.';

-- For the claim. Costs one look into an empty index where a provider has one key.
create or replace function ai.provider_secret(p_provider bigint) returns text
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from ai.provider_accounts a where a.provider_id = p_provider) then
    return (select p.secret from ai.providers p where p.id = p_provider);
  end if;
  return (select s.secret from ai.provider_secrets(p_provider, ai.now()) s limit 1);
end
$$;
comment on function ai.provider_secret(bigint) is 'Name of the key with which a provider is called now; null: none.';

-- The next target of a route behind p_target that is switched on; null: none. p_larger: of those whose context is larger
-- than that of the target at hand, as far as both are known.
create or replace function ai.target_after(p_route bigint[], p_target integer, p_larger boolean) returns smallint
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select min(n)::smallint
    from generate_series(p_target + 1, cardinality(p_route)) n
    join ai.models m on m.id = p_route[n] and m.enabled
    join ai.providers v on v.id = m.provider_id and v.enabled
   where not p_larger
      or not coalesce(m.context_tokens <= (select h.context_tokens from ai.models h where h.id = p_route[p_target]), false)
         and m.id <> p_route[p_target]
$$;
comment on function ai.target_after(bigint[], integer, boolean) is 'Number of the next usable target of a route; null: none.';

-- What follows an attempt: a final status, or (status null) another try at next_target after delay_ms.
--   succeeded, cancelled: the end. released: the queue, at once; what was sent counts as an attempt. A failure follows
--   its rule:
--   retry: the same target after the provider's Retry-After or the backoff. Where there is a next target, that one after
--          settings.attempts_per_target failures here, and instead of a wait of more than retry_after_cap_ms or beyond the
--          deadline or the profile's total_ms
--   next:  the next target of the route at once; failed where there is none
--   fail:  failed
-- The provider's x-should-retry turns retry into next and next into retry; it never overrules fail. Beside the rules:
--   money_out: the same target again at once, where the provider has an account with money left
--   context:   the next target has a larger context
--   partial:   retry, where the generation says that what was shown may be voided (p_replay)
--   After the profile's total_ms only local/extract is tried, where the profile degrades.
create or replace function ai.after_attempt(
  p_outcome text, p_unsent boolean, p_action text, p_should_retry boolean, p_retry_after_ms bigint, p_attempt integer, p_target integer, p_tenant uuid, p_id uuid,
  p_cancelled boolean, p_deadline_at timestamptz, p_now timestamptz, p_max_attempts integer, p_base_ms integer, p_cap_ms integer,
  p_retry_after_cap_ms integer, p_route bigint[] default null, p_replay boolean default false, p_class text default null, p_code text default null,
  out status text, out next_target smallint, out delay_ms bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_action  text := p_action;
  v_larger  boolean := coalesce(p_class = 'context' or p_code in ('context_length_exceeded', 'exceed_context_size_error'), false);
  v_route   bigint[] := p_route;
  v_asked   record;
  v_budget  record;
  v_left    numeric;
  v_over    boolean := false;
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
  if p_attempt >= p_max_attempts or p_now >= p_deadline_at then
    status := 'failed';
    return;
  end if;

  select g.kind, g.model, g.profile, greatest(g.created_at, g.run_after) as since, g.created_at, g.stream, g.metadata into v_asked
    from ai.generations g where g.tenant_id = p_tenant and g.id = p_id;
  if v_route is null then
    -- Claimed by a version that kept no route.
    v_route := ai.route_models(p_tenant, v_asked.kind, v_asked.model, v_asked.profile, 0, v_asked.metadata, v_asked.stream, p_id);
  end if;
  v_left := extract(epoch from p_deadline_at - p_now) * 1000;
  if v_asked.profile is not null then
    select * into v_budget from ai.time_budget(p_tenant, v_asked.kind, v_asked.profile);
    v_over := coalesce(p_now >= v_asked.since + v_budget.total_ms * interval '1 ms', false);
    v_left := least(v_left, extract(epoch from v_asked.since + v_budget.total_ms * interval '1 ms' - p_now) * 1000);
  end if;

  if p_class = 'money_out' and ai.has_other_account(v_route[p_target], p_id, p_now) then
    v_action := 'again';
  elsif p_class = 'partial' and p_replay then
    v_action := 'retry';
  elsif p_should_retry and v_action = 'next' then
    v_action := 'retry';
  elsif not p_should_retry and v_action = 'retry' then
    v_action := 'next';
  end if;
  if v_over then
    -- Time is up: what is left is the last resort, and what is not to be repeated is not repeated there either.
    v_action := case when v_action in ('retry', 'next', 'again') and v_budget.degrade then 'last' else 'fail' end;
  end if;

  if v_action in ('retry', 'again') and not exists (select from ai.models m join ai.providers v on v.id = m.provider_id and v.enabled
                                                     where m.id = v_route[p_target] and m.enabled) then
    v_action := 'next';  -- switched off meanwhile
  end if;
  if v_action = 'retry' then
    delay_ms := case when p_retry_after_ms > 0 then p_retry_after_ms else ai.backoff_ms(p_attempt, p_base_ms, p_cap_ms) end;
    next_target := p_target;
    if p_retry_after_ms > p_retry_after_cap_ms or delay_ms >= v_left then
      v_action := 'next';
    elsif cardinality(v_route) > p_target and p_class is distinct from 'abandoned' and ai.target_after(v_route, p_target, false) is not null
          -- The attempt at hand is not on the books yet.
          and (select count(*) + 1 from ai.llm_calls c
                where c.tenant_id = p_tenant and c.generation_id = p_id and c.created_at >= v_asked.created_at - interval '1 day'
                  and c.status = 'failed' and c.model = (select m.name from ai.models m where m.id = v_route[p_target]))
              >= (select s.attempts_per_target from ai.settings s) then
      v_action := 'next';
    end if;
  end if;
  if v_action = 'again' then
    next_target := p_target;
    delay_ms := 0;
  elsif v_action = 'next' then
    next_target := ai.target_after(v_route, p_target, v_larger);
    delay_ms := 0;
  elsif v_action = 'last' then
    select n::smallint into next_target
      from generate_series(p_target + 1, cardinality(v_route)) n where v_route[n] = ai.extract_model() order by n desc limit 1;
    delay_ms := 0;
  elsif v_action is distinct from 'retry' then
    next_target := null;
  end if;
  if next_target is null then
    status := 'failed';
  end if;
end
$$;
comment on function ai.after_attempt(text, boolean, text, boolean, bigint, integer, integer, uuid, uuid, boolean, timestamptz, timestamptz, integer, integer, integer, integer,
  bigint[], boolean, text, text) is 'The decision after an attempt: a final status, or another target and a delay.';

-- Whether a model can be called with another key than the one that has just turned out to have no money: that of the
-- running attempt's lease.
create or replace function ai.has_other_account(p_model bigint, p_id uuid, p_now timestamptz) returns boolean
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from ai.models m
      join ai.provider_accounts a on a.provider_id = m.provider_id
      left join ai.leases l on l.generation_id = p_id
      -- A tenant's own key is not marked as empty, so it would be taken again.
     cross join lateral ai.provider_secrets(m.provider_id, p_now) s
     where m.id = p_model and not s.exhausted and l.own_key is not true
       and s.secret <> coalesce(l.secret, (select u.secret from ai.provider_secrets(m.provider_id, coalesce(l.claimed_at, p_now)) u limit 1)))
$$;
comment on function ai.has_other_account(bigint, uuid, timestamptz) is 'Whether the provider has another account with money than the one the running attempt used.';

revoke execute on function ai.provider_secrets(bigint, timestamptz), ai.provider_secret(bigint),
  ai.target_after(bigint[], integer, boolean), ai.has_other_account(bigint, uuid, timestamptz),
  ai.after_attempt(text, boolean, text, boolean, bigint, integer, integer, uuid, uuid, boolean, timestamptz, timestamptz, integer, integer, integer, integer,
    bigint[], boolean, text, text) from public;
