-- Circuit breakers. A row of ai.breakers is a state machine; a provider or model without one is healthy.
--
--   closed     failures are counted; so many without a success between them (ai.breaker_settings) open it
--   open       nothing is sent until probe_at; then the claim lets one generation through: half_open
--   half_open  all else waits for what becomes of the probe. It answers: closed. It fails: open for twice as long, up to a
--              cap. Neither (held back by a limit, cancelled, handed back, its worker died): the next generation becomes the probe
--
-- Attempts that began before it opened are still out when it does: their failures say nothing new and are not counted.
--
-- Locks: claims take what they probe with `skip locked` and wait for nobody. Of those that settle only one counts the
-- failures of a closed breaker at a time; they take breakers in the order provider before model, then by id, after
-- ai.exhausted_accounts, before ai.model_stats. A settle never waits for a claim: it waits for closed ones only, and
-- claims only lock those that are not.

-- The state machine. p_event: failed (p_count times since the last success), succeeded, let_through, probe_failed,
-- probe_succeeded, probe_void.
create or replace function ai.next_breaker(
  p_state text, p_failures integer, p_cooldown_ms integer, p_event text, p_count integer, p_threshold integer, p_base_ms integer, p_cap_ms integer,
  out state text, out failures integer, out cooldown_ms integer)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  state := p_state;
  failures := p_failures;
  cooldown_ms := p_cooldown_ms;
  if p_event = 'probe_succeeded' or p_event = 'succeeded' and p_state = 'closed' then
    state := 'closed';
    failures := 0;
    cooldown_ms := 0;
  elsif p_event = 'failed' and p_state = 'closed' then
    failures := least(p_failures::bigint + p_count, 2147483647);
    if failures >= p_threshold then
      state := 'open';
      cooldown_ms := p_base_ms;
    end if;
  elsif p_event = 'let_through' and p_state in ('open', 'half_open') then
    state := 'half_open';
  elsif p_event = 'probe_failed' and p_state = 'half_open' then
    state := 'open';
    failures := least(p_failures::bigint + 1, 2147483647);
    cooldown_ms := greatest(least(p_cooldown_ms::bigint * 2, p_cap_ms), p_base_ms);
  elsif p_event = 'probe_void' and p_state = 'half_open' then
    state := 'open';
  end if;
end
$$;
comment on function ai.next_breaker(text, integer, integer, text, integer, integer, integer, integer) is 'What becomes of a circuit breaker by an event. Pure.';

create or replace function ai.choosing_is_needed() returns boolean
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from ai.breakers b where b.state <> 'closed');
end
$$;
comment on function ai.choosing_is_needed() is 'Whether any circuit breaker is not closed, so that targets must be chosen by ai.choose_targets().';

-- Breakers that are not closed and whose next probe may be sent: the cooldown is over, or the probe has come to nothing.
-- It has where no lease of it is left (its worker was rescued while others held the breaker), but a claim leases what
-- it lets through a moment later; or where it has run for longer than settings.probe_ms.
create or replace function ai.due_breakers(p_ids bigint[], p_now timestamptz) returns bigint[]
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(b.id order by b.id)
    from ai.breakers b
   where b.id = any (p_ids)
     and (b.state = 'open' and b.probe_at <= p_now
          or b.state = 'half_open'
             and (b.probed_at <= p_now - (select s.probe_ms from ai.settings s) * interval '1 ms'
                  or b.probed_at <= p_now - interval '1 s'
                     and not exists (select from ai.leases l join ai.models m on m.id = l.model_id
                                      where l.generation_id = b.probe_id and (m.id = b.model_id or m.provider_id = b.provider_id))))
$$;
comment on function ai.due_breakers(bigint[], timestamptz) is 'Those of the breakers whose next probe may be sent; null: none.';

-- The target that each generation is to use now, while some breaker is not closed: the first of its route from p_targets
-- on that is switched on and healthy and holds p_input_tokens (or, where none of the healthy does, the first of them). Of
-- a breaker that is due, exactly one generation becomes the probe, until ai.confirm_probes(): none that has a leader, which
-- would never be sent. Gives for each generation a row:
--   model_id, target   to be called now
--   until              nothing can be called before: look again then; target is the old one
--   neither            nothing is left to call: the end
-- stage tells what was passed over, null where nothing was. Locks breakers that are due, skipping what others hold.
create or replace function ai.choose_targets(p_ids uuid[], p_routes text[], p_targets smallint[], p_leaders uuid[], p_input_tokens integer[])
returns table (generation_id uuid, target smallint, model_id bigint, until timestamptz, stage jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_again   constant interval := '1 s';
  v_now     timestamptz := ai.now();
  v_started timestamptz := clock_timestamp();
  v_models  bigint[];
  v_names   text[];
  v_context integer[];
  v_barring text[];      -- of each model: '{…}' ids of its breakers that are not closed
  v_at      timestamptz[];
  v_due     bigint[];
  v_probers uuid[] := '{}';
  v_probing smallint[] := '{}';
  v_probe   record;
  v_got     bigint[];
begin
  select array_agg(h.id), array_agg(h.name), array_agg(h.context_tokens), array_agg(h.barring), array_agg(h.at), array_agg(h.due)
    into v_models, v_names, v_context, v_barring, v_at, v_due
    from (select m.id, m.name, m.context_tokens, array_agg(b.id) filter (where b.id is not null)::text as barring,
                 max(case when b.state = 'open' and b.probe_at > v_now then b.probe_at when b.id is not null then v_now + c_again end) as at,
                 null::bigint as due
            from (select distinct unnest(r.route::bigint[]) as id from unnest(p_routes) r (route)) w
            join ai.models m on m.id = w.id and m.enabled
            join ai.providers v on v.id = m.provider_id and v.enabled
            left join ai.breakers b on b.state <> 'closed' and (b.model_id = m.id or b.provider_id = v.id)
           group by m.id, m.name, m.context_tokens) h;

  -- Probes: as long as there is a model of which every breaker is due, the first generation that would have come by it.
  v_due := ai.due_breakers(array(select distinct unnest(u.barring::bigint[]) from unnest(v_barring) u (barring)), v_now);
  while v_due is not null loop
    select s.id, s.at, h.barring::bigint[] as barring into v_probe
      from unnest(p_ids, p_routes, p_targets, p_leaders) with ordinality u (id, route, target, leader, ord)
     cross join lateral (select u.id, n as at, (u.route::bigint[])[n] as model, u.ord
                           from generate_series(u.target, cardinality(u.route::bigint[])) n) s
      join unnest(v_models, v_barring) h (model, barring) on h.model = s.model and h.barring::bigint[] <@ v_due
     where u.leader is null and not s.id = any (v_probers)
       and not exists (select from generate_series(u.target, s.at - 1) e
                         join unnest(v_models, v_barring) f (model, barring) on f.model = (u.route::bigint[])[e] and f.barring is null)
     order by s.ord, s.at limit 1;
    exit when not found;
    -- Locked first, looked at then: what another claim has let through meanwhile is seen.
    v_got := array(select b.id from ai.breakers b where b.id = any (v_probe.barring) order by b.id for update skip locked);
    if cardinality(v_got) = cardinality(v_probe.barring) and ai.due_breakers(v_got, v_now) @> v_got then
      update ai.breakers b
         set state = (ai.next_breaker(b.state, b.failures, b.cooldown_ms, 'let_through', null, null, null, null)).state,
             probe_id = v_probe.id, probed_at = v_now
       where b.id = any (v_got);
      v_probers := v_probers || v_probe.id;
      v_probing := v_probing || v_probe.at::smallint;
    end if;
    v_due := nullif(array(select d from unnest(v_due) d where not d = any (v_probe.barring)), '{}');
  end loop;

  return query
    with asked as (
      select u.id, u.route::bigint[] as route, u.target, u.tokens, u.ord, v_probing[array_position(v_probers, u.id)] as probing
        from unnest(p_ids, p_routes, p_targets, p_input_tokens) with ordinality u (id, route, target, tokens, ord)
    ), steps as (
      select a.id, a.ord, a.target, coalesce(a.probing, f.fitting, f.healthy) as chosen, a.probing is not null as probes, a.route, f.soonest
        from asked a
       cross join lateral (
         select min(n) filter (where h.barring is null and (h.context is null or h.context >= coalesce(a.tokens, 0))) as fitting,
                min(n) filter (where h.barring is null) as healthy, min(h.at) as soonest
           from generate_series(a.target, cardinality(a.route)) n
           join unnest(v_models, v_context, v_barring, v_at) h (model, context, barring, at) on h.model = a.route[n]) f
    )
    select s.id, coalesce(s.chosen, s.target)::smallint, s.route[s.chosen], case when s.chosen is null then s.soonest end,
           case when s.probes or s.chosen is distinct from s.target then
             ai.stage('route', case when s.probes then 'probe' when s.chosen is not null then 'next' when s.soonest is not null then 'waits' else 'unavailable' end,
                      case when s.probes then 'the first to try it after its failures' else 'circuit open, or switched off' end, v_started,
                      jsonb_build_object('passed', (select jsonb_agg(v_names[array_position(v_models, s.route[n])] order by n)
                                                      from generate_series(s.target, coalesce(s.chosen - 1, cardinality(s.route))) n
                                                     where s.route[n] = any (v_models)))) end
      from steps s order by s.ord;
end
$$;
comment on function ai.choose_targets(uuid[], text[], smallint[], uuid[], integer[]) is
  'Which target each generation uses now, passing over open circuit breakers; a due one lets one generation through.';

-- Of the probes that a claim has chosen (p_probes: their stages by id), writes down those that are sent: p_ids. The others are held back, by a limit or
-- because they lie in the wrong lane: their breakers are due at once. Lest whoever asks the most takes them again, one generation of each other lane
-- of the claim (p_claimed, p_lanes) that waits for its time may be claimed at once, too. Locks breakers, skipping what others hold, and the claim's own rows.
create or replace function ai.confirm_probes(p_probes jsonb, p_ids uuid[], p_tenants uuid[], p_claimed uuid[], p_lanes bigint[], p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lost uuid[] := array(select p::uuid from jsonb_object_keys(p_probes) p where p::uuid = any (p_ids) is not true);
begin
  update ai.generations g set stages = coalesce(g.stages, '[]') || (p_probes -> u.id::text)
    from unnest(p_ids, p_tenants) u (id, tenant_id)
   where p_probes ? u.id::text and g.tenant_id = u.tenant_id and g.id = u.id;
  if v_lost = '{}' then
    return;
  end if;
  update ai.breakers b
     set state = (ai.next_breaker(b.state, b.failures, b.cooldown_ms, 'probe_void', null, null, null, null)).state, probe_at = p_now, probe_id = null
   where b.id = any (array(select o.id from ai.breakers o where o.state = 'half_open' and o.probe_id = any (v_lost) order by o.id for update skip locked));
  update ai.delayed d set due_at = p_now
   where d.generation_id = any (array(select distinct on (u.lane_id) u.id
                                        from unnest(p_claimed, p_lanes) with ordinality u (id, lane_id, ord)
                                        join ai.delayed o on o.generation_id = u.id
                                       where u.lane_id not in (select l.lane_id from unnest(p_claimed, p_lanes) l (id, lane_id) where l.id = any (v_lost))
                                       order by u.lane_id, u.ord));
end
$$;
comment on function ai.confirm_probes(jsonb, uuid[], uuid[], uuid[], bigint[], timestamptz) is
  'Keeps the probes that are sent; frees the breakers of the others for the next claim.';

-- Takes note of accounts without money. Of a key that is known to be empty nothing new is learned until it is tried again.
create or replace function ai.exhaust_accounts(p_seen jsonb, p_now timestamptz) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into ai.exhausted_accounts as e (provider_id, secret, since, until, cooldown_ms)
  select distinct m.provider_id, k.secret, p_now, p_now + c.cooldown_ms * interval '1 ms', c.cooldown_ms
    from jsonb_to_recordset(p_seen) s (model_id bigint, class text, secret text)
    join ai.models m on m.id = s.model_id
    join ai.breaker_settings c on c.scope = 'provider' and c.class = 'money_out'
   cross join lateral (select coalesce(s.secret, ai.provider_secret(m.provider_id)) as secret) k
   where s.class = 'money_out' and k.secret is not null
   order by 1, 2
  on conflict (provider_id, secret) do update
    set since = excluded.since,
        cooldown_ms = (select least(e.cooldown_ms::bigint * 2, c.cap_ms) from ai.breaker_settings c where c.scope = 'provider' and c.class = 'money_out'),
        until = excluded.since + interval '1 ms'
                * (select least(e.cooldown_ms::bigint * 2, c.cap_ms) from ai.breaker_settings c where c.scope = 'provider' and c.class = 'money_out')
  where e.until <= excluded.since
$$;
comment on function ai.exhaust_accounts(jsonb, timestamptz) is 'Marks keys whose account had no money.';

-- What a batch of attempts says about the targets: [{"generation_id", "model_id", "outcome", "class", "secret",
-- "ttft_ms", "latency_ms"}], in the order in which they ended. Writes nothing while all is healthy and no profile goes by
-- speed. Called once a settle.
create or replace function ai.observe_attempts(p_seen jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_seen @> '[{"class": "money_out"}]' then
    perform ai.exhaust_accounts(p_seen, ai.now());
  end if;
  if p_seen @> '[{"outcome": "failed"}]' or exists (select from ai.breakers) then
    perform ai.move_breakers(p_seen, ai.now());
  end if;
  if exists (select from ai.profiles p where p.strategy = 'fastest') then
    perform ai.learn_speed(p_seen, ai.now());
  end if;
end
$$;
comment on function ai.observe_attempts(jsonb) is 'Moves circuit breakers, marks accounts without money and keeps the speed of models, by what became of a batch of attempts.';

-- Whether ai.observe_attempts() has a use for answers: mostly nothing is open, and nobody asks which model is the fastest.
create or replace function ai.answers_are_watched() returns boolean
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from ai.breakers) or exists (select from ai.profiles p where p.strategy = 'fastest');
end
$$;
comment on function ai.answers_are_watched() is 'Whether a breaker moves, or the speed of a model is kept.';

-- A refusal of the request is an answer: the target is alive. Money out counts once no account is left.
create or replace function ai.move_breakers(p_seen jsonb, p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one     record;
  v_breaker record;
  v_next    record;
  v_event   text;
begin
  for v_one in
    with seen as materialized (
      select s.ord, (s.one ->> 'generation_id')::uuid as id, m.id as model_id, m.provider_id, s.one ->> 'outcome' as outcome, s.one ->> 'class' as class,
             p_now - (s.one ->> 'latency_ms')::double precision * interval '1 ms' as began
        from jsonb_array_elements(p_seen) with ordinality s (one, ord)
        join ai.models m on m.id = (s.one ->> 'model_id')::bigint
    ), events as materialized (
      select k.scope, k.key, s.ord, s.id, s.began, s.class, c.threshold, c.cooldown_ms, c.cap_ms,
             case when s.outcome = 'succeeded' or s.outcome = 'failed' and s.class in ('permanent', 'context', 'too_large') then 'succeeded'
                  when s.outcome = 'failed' and c.class is not null
                       and not (s.class = 'money_out' and exists (select from ai.provider_secrets(s.provider_id, p_now) p where not p.exhausted)) then 'failed'
                  else 'void' end as event
        from seen s
       cross join lateral (values ('provider', s.provider_id), ('model', s.model_id)) k (scope, key)
        left join ai.breaker_settings c on c.scope = k.scope and c.class = s.class
    ), latest as (
      select e.*, coalesce(max(e.ord) filter (where e.event = 'succeeded') over (partition by e.scope, e.key), 0) as success from events e
    )
    select l.scope, l.key, bool_or(l.event = 'succeeded') as succeeded, count(*) filter (where l.event = 'failed' and l.ord > l.success)::integer as failed,
           -- The class that opens it first decides for how long.
           (array_agg(l.class order by l.threshold, l.cooldown_ms desc) filter (where l.event = 'failed' and l.ord > l.success))[1] as class,
           max(l.began) filter (where l.event = 'succeeded') as began,
           array_agg(l.id) as ids, array_agg(l.event) as events, array_agg(l.class) as classes
      from latest l
     group by l.scope, l.key
    having bool_or(l.event = 'failed')
        or exists (select from ai.breakers b where case l.scope when 'model' then b.model_id else b.provider_id end = l.key)
     order by l.scope desc, l.key
  loop
    if v_one.failed > 0 and v_one.scope = 'model' then
      insert into ai.breakers (model_id) values (v_one.key) on conflict (model_id) do nothing;
    elsif v_one.failed > 0 then
      insert into ai.breakers (provider_id) values (v_one.key) on conflict (provider_id) do nothing;
    end if;
    select b.* into v_breaker from ai.breakers b where case v_one.scope when 'model' then b.model_id else b.provider_id end = v_one.key;
    continue when not found;

    if v_breaker.state <> 'closed' then
      v_event := case when v_breaker.state = 'half_open' and v_breaker.probe_id = any (v_one.ids)
                      then 'probe_' || v_one.events[array_position(v_one.ids, v_breaker.probe_id)]
                      -- An earlier probe that was given up, because it took so long, and did answer.
                      when v_one.succeeded and v_one.began > v_breaker.opened_at then 'probe_succeeded' end;
      continue when v_event is null;
      select b.* into v_breaker from ai.breakers b where b.id = v_breaker.id and b.state <> 'closed' for update skip locked;
      continue when not found;
    elsif v_one.failed > 0 then
      select b.* into v_breaker from ai.breakers b where b.id = v_breaker.id for update;
      -- Deleted meanwhile by a success, or opened by others.
      continue when not found or v_breaker.state <> 'closed';
      v_event := 'failed';
    else
      continue when not v_one.succeeded;
      select b.* into v_breaker from ai.breakers b where b.id = v_breaker.id and b.state = 'closed' for update skip locked;
      continue when not found;
      v_event := 'succeeded';
    end if;

    select n.*, c.cooldown_ms as base_ms into v_next
      from (values (case when v_event = 'probe_failed' then v_one.classes[array_position(v_one.ids, v_breaker.probe_id)] else v_one.class end)) w (class)
      left join ai.breaker_settings c on c.scope = v_one.scope and c.class = w.class
     cross join lateral ai.next_breaker(v_breaker.state, case when v_event = 'failed' and v_one.succeeded then 0 else v_breaker.failures end,
                                        v_breaker.cooldown_ms, v_event, v_one.failed, c.threshold, c.cooldown_ms, c.cap_ms) n;
    if v_next.state = 'closed' and v_next.failures = 0 then
      delete from ai.breakers b where b.id = v_breaker.id;
      if v_one.scope = 'provider' then
        -- The key that has answered has money.
        delete from ai.exhausted_accounts e where e.provider_id = v_one.key and e.secret = ai.provider_secret(v_one.key);
      end if;
    else
      update ai.breakers b
         set state = v_next.state, failures = v_next.failures, cooldown_ms = v_next.cooldown_ms,
             opened_at = case when v_next.state = 'open' then coalesce(b.opened_at, p_now) else b.opened_at end,
             probe_at = case when v_event = 'probe_void' then p_now when v_next.state = 'open' then p_now + v_next.cooldown_ms * interval '1 ms' end,
             why = case when v_event = 'probe_failed' then v_one.classes[array_position(v_one.ids, b.probe_id)]
                        when v_event = 'failed' then v_one.class else b.why end,
             probe_id = case when v_event like 'probe%' then null else b.probe_id end
       where b.id = v_breaker.id;
    end if;
  end loop;
end
$$;
comment on function ai.move_breakers(jsonb, timestamptz) is 'Moves circuit breakers by what became of a batch of attempts.';

-- Moving averages that weigh each of a batch's answers with a fifth, at most once a second for each model.
create or replace function ai.learn_speed(p_seen jsonb, p_now timestamptz) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into ai.model_stats as a (model_id, ttft_ms, latency_ms, updated_at)
  select s.model_id, avg(coalesce(s.ttft_ms, s.latency_ms)), avg(s.latency_ms), p_now
    from jsonb_to_recordset(p_seen) s (model_id bigint, outcome text, ttft_ms double precision, latency_ms double precision)
    join ai.models m on m.id = s.model_id
   where s.outcome = 'succeeded' and s.latency_ms is not null
     and exists (select from ai.routes r
                   join ai.profiles p on p.name = r.profile and p.kind = r.kind and p.strategy = 'fastest' and (p.tenant_id is null or p.tenant_id = r.tenant_id or r.tenant_id is null)
                  where r.model_id = s.model_id)
     and not exists (select from ai.model_stats o where o.model_id = s.model_id and o.updated_at > p_now - interval '1 s')
   group by s.model_id
   order by s.model_id
  on conflict (model_id) do update
    set ttft_ms = a.ttft_ms + (excluded.ttft_ms - a.ttft_ms) * 0.2, latency_ms = a.latency_ms + (excluded.latency_ms - a.latency_ms) * 0.2,
        updated_at = excluded.updated_at
  where a.updated_at <= excluded.updated_at - interval '1 s'
$$;
comment on function ai.learn_speed(jsonb, timestamptz) is 'Keeps how fast the models of fastest profiles answer.';

revoke execute on function ai.next_breaker(text, integer, integer, text, integer, integer, integer, integer), ai.due_breakers(bigint[], timestamptz),
  ai.choose_targets(uuid[], text[], smallint[], uuid[], integer[]), ai.confirm_probes(jsonb, uuid[], uuid[], uuid[], bigint[], timestamptz), ai.choosing_is_needed(), ai.exhaust_accounts(jsonb, timestamptz),
  ai.observe_attempts(jsonb), ai.answers_are_watched(), ai.move_breakers(jsonb, timestamptz), ai.learn_speed(jsonb, timestamptz) from public;

-- objects

drop policy if exists visible on ai.breakers;
create policy visible on ai.breakers for select to ai_user
  using (exists (select from ai.models m where m.id = model_id) or exists (select from ai.providers p where p.id = provider_id));
drop policy if exists monitored on ai.breakers;
create policy monitored on ai.breakers for select to ai_monitor using (true);
drop policy if exists visible on ai.breaker_settings;
create policy visible on ai.breaker_settings for select to ai_user using ((select ai.may('model:read') or ai.may('model:write')));

-- Which generation is the probe may be another tenant's.
grant select (id, provider_id, model_id, state, failures, opened_at, probe_at, cooldown_ms, why) on ai.breakers to ai_user, ai_monitor;
grant select on ai.breaker_settings to ai_user;
