-- From what was taken off the queue to leases: which model, what limits allow, and the call that the worker is to make.

-- Leases what may be sent and gives it as ai.worker_claim() does; what may not be sent goes where it belongs: back to the
-- queue with its lane parked (a limit), to ai.delayed (every target's breaker is open), to ai.waiting (p_leaders names the
-- generation that is asked the same), or to its end (rejected, failed). Locks: counters in the order of their ids, leases
-- (new), generations.
create or replace function ai.lease_generations(
  p_worker uuid, p_now timestamptz, p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_leaders uuid[])
returns table (generation_id uuid, attempt smallint, kind text, dialect text, base_url text, secret text, headers jsonb, options jsonb,
               model text, stream boolean, request jsonb, timeout_ms integer)
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
  v_go      record;
  v_refused uuid[];
begin
  -- Which model. Most of a batch asks for the same few: each is looked up once.
  with picked as materialized (
    select * from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_leaders) p (generation_id, tenant_id, lane_id, attempts, target, leader_id)
  ), asked as materialized (
    select p.*, g.user_id, g.kind, g.model, g.profile, g.stream, g.route, g.metadata, g.params, g.batch_id,
           coalesce(r.input_bytes, octet_length(g.prompt), octet_length(g.messages::text)) + octet_length(g.params::text) as input_bytes
      from picked p
      join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.generation_id and g.status = 'queued'
      join ai.tenants t on t.id = p.tenant_id and t.enabled
      join ai.members u on u.tenant_id = p.tenant_id and u.user_id = g.user_id and u.enabled
      left join ai.prepared r on r.generation_id = p.generation_id
     cross join ai.settings s
     where not exists (select from ai.cancellations c where c.generation_id = p.generation_id)
       and greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' > p_now
  ), wanted as materialized (
    select w.*, case when not w.varies then ai.route_models(w.tenant_id, w.kind, w.model, w.profile, w.bytes, null, null, null) end as route
      from (select d.*, d.model is null and ai.route_varies(d.tenant_id, d.kind, d.profile, d.bytes) as varies
              from (select a.tenant_id, a.kind, a.model, a.profile, max(a.input_bytes) as bytes from asked a where a.route is null group by 1, 2, 3, 4) d offset 0) w
  ), routed as materialized (
    select a.*, coalesce(a.route, case when w.varies then ai.route_models(a.tenant_id, a.kind, a.model, a.profile, a.input_bytes, a.metadata, a.stream, a.generation_id)
                                       else w.route end) as path
      from asked a
      left join wanted w on a.route is null and w.tenant_id = a.tenant_id and w.kind = a.kind and w.model is not distinct from a.model
                        and w.profile is not distinct from a.profile
  )
  select array_agg(r.generation_id) as ids, array_agg(r.tenant_id) as tenants, array_agg(r.lane_id) as lanes, array_agg(r.attempts) as tries,
         array_agg(r.target) as targets, array_agg(r.path::text) as routes, array_agg(m.id) as models, array_agg(r.leader_id) as leaders,
         array_agg(r.input_bytes) as inputs,
         array_agg(case when r.kind = 'embedding' then 0
                        else least(coalesce(ai.token_count(r.params -> 'max_completion_tokens'), ai.token_count(r.params -> 'max_tokens'), m.max_output_tokens, s.max_output_tokens),
                                   m.max_output_tokens)::integer end) as outputs,
         null::text[] as counters, null::text[] as amounts, bool_or(not m.enabled or not v.enabled) as disabled
    into v_go
    from routed r
   cross join ai.settings s
    join ai.models m on m.id = r.path[r.target]
    join ai.providers v on v.id = m.provider_id;

  v_refused := array(select i from unnest(p_ids) i where not i = any (coalesce(v_go.ids, '{}')));
  if cardinality(v_refused) > 0 then
    perform ai.end_unclaimable(array_agg(u.id), array_agg(u.tenant_id), p_now)
       from unnest(p_ids, p_tenants) u (id, tenant_id) where u.id = any (v_refused);
  end if;
  if v_go.ids is null then
    return;
  end if;

  -- What is switched off, and breakers: another target, or later.
  if v_go.disabled or ai.choosing_is_needed() then
    select * into v_go from ai.pass_breakers(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.routes, v_go.leaders, v_go.inputs, v_go.outputs, p_now);
    if v_go.ids is null then
      return;
    end if;
  end if;
  -- Limits: what fits now.
  if exists (select from (select distinct t from unnest(v_go.tenants) t) o where ai.limited(o.t)) then
    select * into v_go
      from ai.pass_limits(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.routes, v_go.models, v_go.leaders, v_go.inputs, v_go.outputs);
    if v_go.ids is null then
      return;
    end if;
  end if;
  if exists (select from unnest(v_go.leaders) l where l is not null) then
    perform ai.follow(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.leaders, v_go.counters, v_go.amounts, p_now);
  end if;

  return query
    with ready as materialized (
      select u.generation_id, u.tenant_id, u.lane_id, u.target, u.path::bigint[] as path, u.counters::bigint[] as counters, u.amounts::numeric[] as amounts, u.output_bound,
             u.attempts + 1 as attempt, g.user_id, g.kind, g.profile, g.batch_id, s.deadline_ms as usual_ms, g.stream, g.replay, g.prompt, g.messages, g.params, g.route is null as is_new,
             greatest(g.created_at, g.run_after) as waiting_since,
             greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' as deadline_at,
             r.messages as prepared, coalesce(r.input_bytes, octet_length(g.prompt), octet_length(g.messages::text)) + octet_length(g.params::text) as input_bytes,
             m.id as model_id, m.wire_name, m.max_output_tokens, m.options as model_options, v.id as provider_id, v.name as provider, v.dialect, v.base_url, v.headers,
             v.options as provider_options
        from unnest(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.routes, v_go.models, v_go.leaders, v_go.outputs, v_go.counters, v_go.amounts)
             u (generation_id, tenant_id, lane_id, attempts, target, path, model_id, leader_id, output_bound, counters, amounts)
        join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.generation_id
        join ai.models m on m.id = u.model_id
        join ai.providers v on v.id = m.provider_id
        left join ai.prepared r on r.generation_id = u.generation_id
       cross join ai.settings s
       where u.leader_id is null
    ), rules as materialized (
      select d.*, ai.guards(d.tenant_id, d.kind, 'output') as guarded, b.first_token_ms, b.total_ms, b.degrade
        from (select distinct r.tenant_id, r.kind, r.profile from ready r) d
       cross join lateral ai.time_budget(d.tenant_id, d.kind, d.profile) b
    ), accounts as materialized (
      select d.provider_id, ai.provider_secret(d.provider_id) as secret from (select distinct r.provider_id from ready r) d
    ), final as materialized (
      -- A budget is worth keeping only where another target is left.
      select r.*, case when cardinality(r.path) > r.target then w.first_token_ms end as first_token_ms, a.secret, w.degrade,
             -- What was over before the claim was spent waiting for a worker: the provider gets its time.
             least(r.deadline_at, case when cardinality(r.path) > r.target and r.waiting_since + w.total_ms * interval '1 ms' > p_now
                                       then r.waiting_since + w.total_ms * interval '1 ms' end,
                   -- A batch has weeks; one call of it has not.
                   case when r.batch_id is not null then p_now + r.usual_ms * interval '1 ms' end) as stop_at,
             case when w.guarded or g.stages is not null then ai.holds_output(r.tenant_id, r.generation_id, r.kind) else false end as held
        from ready r
        join rules w on w.tenant_id = r.tenant_id and w.kind = r.kind and w.profile is not distinct from r.profile
        join accounts a on a.provider_id = r.provider_id
        join ai.generations g on g.tenant_id = r.tenant_id and g.id = r.generation_id
    ), leased as (
      insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target, model_id, stream, input_bytes,
                             waiting_since, deadline_at, claimed_at, counters, amounts, held, route, replay, secret)
      select f.generation_id, f.attempt, p_worker, f.tenant_id, f.user_id, f.lane_id, f.target, f.model_id, f.stream, f.input_bytes,
             f.waiting_since, f.deadline_at, p_now, f.counters, f.amounts, f.held, f.path, f.replay, f.secret
        from final f
    ), started as (
      update ai.generations g
         set status = 'running', attempts = f.attempt, started_at = coalesce(g.started_at, p_now), provider = f.provider, route = f.path,
             degraded = case when f.degrade then coalesce(ai.why_degraded(f.tenant_id, f.kind, f.profile, f.model_id), g.degraded) else g.degraded end
        from final f
       where g.tenant_id = f.tenant_id and g.id = f.generation_id
    )
    select f.generation_id, f.attempt::smallint, f.kind, f.dialect, f.base_url, f.secret, f.headers,
           case when f.max_output_tokens is null then '{}' else jsonb_build_object('max_output_tokens', f.max_output_tokens) end
             || case when f.first_token_ms is null then '{}' else jsonb_build_object('first_token_ms', f.first_token_ms) end
             || f.provider_options || f.model_options,
           f.wire_name, f.stream and not f.held,
           case when f.kind = 'embedding' then jsonb_build_object('input', coalesce(f.prepared, to_jsonb(f.prompt)), 'params', f.params)
                else jsonb_build_object(
                  'messages', coalesce(f.prepared, f.messages, jsonb_build_array(jsonb_build_object('role', 'user', 'content', f.prompt))),
                  -- A reservation holds only if the answer cannot be longer than what was reserved.
                  'params', case when f.counters is null or f.params ?| array['max_tokens', 'max_completion_tokens'] then f.params
                                 else f.params || jsonb_build_object('max_tokens', f.output_bound) end) end,
           greatest(1, (extract(epoch from f.stop_at - p_now) * 1000)::integer)
      from final f;
end
$$;
comment on function ai.lease_generations(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]) is
  'Leases what breakers and limits let through and gives the calls; the rest is queued, delayed, made to wait or ended.';

-- Lets generations that have a leader wait for it. One whose leader is not sent after all, because a limit or a breaker holds
-- it, is queued again, and gives back what it had reserved.
create or replace function ai.follow(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_leaders uuid[], p_counters text[], p_amounts text[], p_now timestamptz)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
  v_back record;
begin
  with followers as materialized (
    select u.*, u.leader in (select o.id from unnest(p_ids, p_leaders) o (id, leader) where o.leader is null union all
                             select l.generation_id from ai.leases l where l.generation_id = any (p_leaders)) as is_led
      from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_leaders, p_counters, p_amounts) u (id, tenant, lane, tries, target, leader, counters, amounts)
     where u.leader is not null
  ), waiting as (
    insert into ai.waiting (generation_id, for_id, tenant_id, lane_id, attempts, target, deadline_at, counters, amounts, claimed_at)
    select f.id, f.leader, f.tenant, f.lane, f.tries, f.target,
           greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms', f.counters::bigint[], f.amounts::numeric[], p_now
      from followers f
      join ai.generations g on g.tenant_id = f.tenant and g.id = f.id
     cross join ai.settings s
     where f.is_led
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
    select f.lane, f.id, f.tenant, f.tries, f.target, true from followers f where not f.is_led
  )
  select array_agg(distinct f.lane) as lanes,
         jsonb_agg(jsonb_build_object('generation_id', f.id, 'counters', to_jsonb(f.counters::bigint[]), 'amounts', to_jsonb(f.amounts::numeric[]), 'claimed_at', p_now,
                                      'tokens', 0, 'cost', 0, 'sent', false, 'ended', true)) filter (where f.counters is not null) as reserved
    into v_back
    from followers f where not f.is_led;
  if v_back.reserved is not null then
    perform ai.settle_later(v_back.reserved);
  end if;
  if v_back.lanes is not null then
    perform ai.list_lanes(v_back.lanes);
  end if;
end
$$;
comment on function ai.follow(uuid[], uuid[], bigint[], smallint[], smallint[], uuid[], text[], text[], timestamptz) is
  'Lets generations wait for the one that is asked the same; queues those whose leader is held up.';

-- Where breakers are open: chooses each generation's target, delays what has none at present, ends what has none at all.
create or replace function ai.pass_breakers(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_routes text[], p_leaders uuid[], p_inputs integer[], p_outputs integer[],
  p_now timestamptz, out ids uuid[], out tenants uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out routes text[], out models bigint[],
  out leaders uuid[], out inputs integer[], out outputs integer[], out counters text[], out amounts text[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_chosen record;
  v_rest   record;
  v_one    record;
begin
  select array_agg(c.generation_id) as ids, array_agg(c.target) as targets, array_agg(c.model_id) as models, array_agg(c.until) as untils,
         array_agg(c.stage) as stages, bool_or(c.stage is not null and c.model_id is not null) as told
    into v_chosen
    from ai.choose_targets(p_ids, p_routes, p_targets, p_inputs) c;

  -- During an outage these are many, again and again: one statement for all.
  with unanswered as materialized (
    select u.*, g.cache_key is not null as cached, coalesce(c.until < greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms', false) as later,
           c.until
      from unnest(v_chosen.ids, v_chosen.models, v_chosen.untils) c (id, model_id, until)
      join unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets) u (id, tenant_id, lane_id, attempts, target) on u.id = c.id
      join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id
     cross join ai.settings s
     where c.model_id is null
  ), delayed as (
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, attempts, target, prepare)
    select w.id, greatest(w.until, p_now + interval '1 ms'), w.lane_id, w.tenant_id, w.attempts, w.target, w.cached from unanswered w where w.later
  )
  select array_agg(w.id order by w.id) filter (where not w.later or w.cached) as ids, array_agg(w.tenant_id order by w.id) filter (where not w.later or w.cached) as tenants,
         array_agg(w.later order by w.id) filter (where not w.later or w.cached) as laters,
         array_agg(w.until is not null order by w.id) filter (where not w.later or w.cached) as untils
    into v_rest
    from unanswered w;
  for v_one in select * from unnest(v_rest.ids, v_rest.tenants, v_rest.laters, v_rest.untils) r (id, tenant_id, later, ever) loop
    if v_one.later then
      perform ai.stop_leading(v_one.tenant_id, v_one.id);
    elsif not v_one.ever then
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed',
        '{"class": "no_model", "code": "PT404", "message": "the model, or every target of the profile, was removed or switched off"}');
    else
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed',
        '{"class": "unavailable", "code": "PT503", "message": "no provider of the route is available", "hint": "select * from ai.explain_route(…);"}');
    end if;
  end loop;

  if v_chosen.told then
    update ai.generations g set stages = coalesce(g.stages, '[]') || c.stage
      from unnest(v_chosen.ids, v_chosen.models, v_chosen.stages) c (id, model_id, stage)
      join unnest(p_ids, p_tenants) u (id, tenant_id) on u.id = c.id
     where c.model_id is not null and c.stage is not null and g.tenant_id = u.tenant_id and g.id = u.id;
  end if;
  select array_agg(u.id), array_agg(u.tenant_id), array_agg(u.lane_id), array_agg(u.attempts), array_agg(c.target), array_agg(u.route), array_agg(c.model_id),
         array_agg(u.leader_id), array_agg(u.input), array_agg(u.output)
    into ids, tenants, lanes, tries, targets, routes, models, leaders, inputs, outputs
    from unnest(v_chosen.ids, v_chosen.targets, v_chosen.models) c (id, target, model_id)
    join unnest(p_ids, p_tenants, p_lanes, p_tries, p_routes, p_leaders, p_inputs, p_outputs) u (id, tenant_id, lane_id, attempts, route, leader_id, input, output) on u.id = c.id
   where c.model_id is not null;
end
$$;
comment on function ai.pass_breakers(uuid[], uuid[], bigint[], smallint[], smallint[], text[], uuid[], integer[], integer[], timestamptz) is
  'Targets whose breakers are closed; what has none is delayed or ended.';

-- Where limits apply: puts what lies in the wrong lane into the right one, reserves what fits, sends back what has to wait, ends
-- what is refused.
create or replace function ai.pass_limits(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_routes text[], p_models bigint[], p_leaders uuid[], p_inputs integer[],
  p_outputs integer[], out ids uuid[], out tenants uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out routes text[], out models bigint[],
  out leaders uuid[], out inputs integer[], out outputs integer[], out counters text[], out amounts text[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_moved   uuid[] := ai.move_to_lanes(p_ids, p_tenants, p_lanes, p_tries, p_targets);
  v_verdict record;
  v_rest    record;
  v_one     record;
begin
  select array_agg(r.generation_id) as ids, array_agg(r.verdict) as verdicts, array_agg(r.counters::text) as counters, array_agg(r.amounts::text) as amounts,
         array_agg(r.error) as errors
    into v_verdict
    from (select array_agg(o.id) as ids, array_agg(o.tenant) as tenants, array_agg(o.lane) as lanes, array_agg(o.model) as models, array_agg(o.input) as inputs,
                 array_agg(o.output) as outputs, array_agg(o.is_first) as firsts, array_agg(o.leader is not null) as follows
            from (select u.*, u.tries = 0 and g.purpose is null as is_first  -- what Martlet asks for another is no request of the member's
                    from unnest(p_ids, p_tenants, p_lanes, p_models, p_inputs, p_outputs, p_tries, p_leaders) with ordinality
                         u (id, tenant, lane, model, input, output, tries, leader, n)
                    join ai.generations g on g.tenant_id = u.tenant and g.id = u.id
                   where not u.id = any (v_moved)
                   order by u.n) o) w
   cross join lateral ai.reserve_limits(w.ids, w.tenants, w.lanes, w.models, w.inputs, w.outputs, w.firsts, w.follows) r;

  with held as materialized (
    select u.*, v.verdict, v.error, g.cache_key is not null as cached
      from unnest(v_verdict.ids, v_verdict.verdicts, v_verdict.errors) v (id, verdict, error)
      join unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets) u (id, tenant_id, lane_id, attempts, target) on u.id = v.id
      join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id
     where v.verdict <> 'go'
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
    select h.lane_id, h.id, h.tenant_id, h.attempts, h.target, h.cached from held h where h.verdict = 'wait'
  )
  select array_agg(h.id order by h.id) filter (where h.verdict <> 'wait' or h.cached) as ids, array_agg(h.tenant_id order by h.id) filter (where h.verdict <> 'wait' or h.cached) as tenants,
         array_agg(h.verdict order by h.id) filter (where h.verdict <> 'wait' or h.cached) as verdicts, array_agg(h.error order by h.id) filter (where h.verdict <> 'wait' or h.cached) as errors
    into v_rest
    from held h;
  for v_one in select * from unnest(v_rest.ids, v_rest.tenants, v_rest.verdicts, v_rest.errors) r (id, tenant_id, verdict, error) loop
    if v_one.verdict = 'wait' then
      perform ai.stop_leading(v_one.tenant_id, v_one.id);
    else
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'rejected', v_one.error);
    end if;
  end loop;

  select array_agg(u.id), array_agg(u.tenant_id), array_agg(u.lane_id), array_agg(u.attempts), array_agg(u.target), array_agg(u.route), array_agg(u.model),
         array_agg(u.leader_id), array_agg(u.input), array_agg(u.output), array_agg(v.counters), array_agg(v.amounts)
    into ids, tenants, lanes, tries, targets, routes, models, leaders, inputs, outputs, counters, amounts
    from unnest(v_verdict.ids, v_verdict.verdicts, v_verdict.counters, v_verdict.amounts) v (id, verdict, counters, amounts)
    join unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_routes, p_models, p_leaders, p_inputs, p_outputs)
         u (id, tenant_id, lane_id, attempts, target, route, model, leader_id, input, output) on u.id = v.id
   where v.verdict = 'go';
end
$$;
comment on function ai.pass_limits(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[]) is
  'Reserves on the limits that apply; what does not fit waits or is rejected.';

-- Moves generations of limited tenants that lie in another lane than their limits and batch say (because of a new limit, or a
-- member's first question) into the right one, making it. Gives the moved.
create or replace function ai.move_to_lanes(p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[]) returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_moved record;
  v_lanes bigint[];
begin
  with misplaced as materialized (
    select u.id, u.tenant_id, u.attempts, u.target, g.priority, g.batch_id, w.counters
      from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets) u (id, tenant_id, lane_id, attempts, target)
      join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id
      join ai.lanes l on l.id = u.lane_id
      join (select d.*, coalesce(ai.generation_counters(d.tenant_id, d.user_id, d.kind, d.model, d.profile),
                                 ai.make_counters(d.tenant_id, d.user_id, d.kind, d.model, d.profile)) as counters
              from (select distinct g.tenant_id, g.user_id, g.kind, g.model, g.profile
                      from unnest(p_ids, p_tenants) u (id, tenant_id) join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id
                     where ai.limited(u.tenant_id)) d offset 0) w
        on w.tenant_id = g.tenant_id and w.user_id = g.user_id and w.kind = g.kind and w.model is not distinct from g.model
       and w.profile is not distinct from g.profile
     where l.counters <> w.counters or l.batch_id is distinct from g.batch_id
  ), made as (
    insert into ai.lanes (tenant_id, priority, counters, batch_id)
    select distinct m.tenant_id, m.priority, m.counters, m.batch_id from misplaced m order by 1, 2, 3, 4
    on conflict do nothing
  )
  select array_agg(m.id) as ids, array_agg(m.tenant_id) as tenants, array_agg(m.attempts) as tries, array_agg(m.target) as targets, array_agg(m.priority) as priorities,
         array_agg(m.batch_id) as batches, array_agg(m.counters::text) as counters
    into v_moved
    from misplaced m;
  if v_moved.ids is null then
    return '{}';
  end if;
  -- The lanes of the statement before, by the counters found there: limits may have changed since.
  with queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
    select l.id, u.id, u.tenant_id, u.attempts, u.target, true
      from unnest(v_moved.ids, v_moved.tenants, v_moved.tries, v_moved.targets, v_moved.priorities, v_moved.batches, v_moved.counters)
           u (id, tenant_id, attempts, target, priority, batch_id, counters)
      join ai.lanes l on l.tenant_id = u.tenant_id and l.priority = u.priority and l.counters = u.counters::bigint[] and l.batch_id is not distinct from u.batch_id
    returning lane_id
  )
  select array_agg(distinct q.lane_id) into v_lanes from queued q;
  perform ai.list_lanes(v_lanes);
  perform ai.wake_workers();
  return v_moved.ids;
end
$$;
comment on function ai.move_to_lanes(uuid[], uuid[], bigint[], smallint[], smallint[]) is 'Moves what lies in the wrong lane into the right one; gives the moved.';

revoke execute on function ai.lease_generations(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]),
  ai.follow(uuid[], uuid[], bigint[], smallint[], smallint[], uuid[], text[], text[], timestamptz),
  ai.pass_breakers(uuid[], uuid[], bigint[], smallint[], smallint[], text[], uuid[], integer[], integer[], timestamptz),
  ai.pass_limits(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[]),
  ai.move_to_lanes(uuid[], uuid[], bigint[], smallint[], smallint[]) from public;
