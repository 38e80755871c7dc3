-- What holds back a generation that was taken off the queue: a leader that is asked the same, breakers, limits, a lane that is
-- not its own. ai.lease_generations() passes what it has as parallel arrays and gets back what may go on.

-- Lets generations that have a leader wait for it. One whose leader is not sent after all, because a limit or a breaker holds
-- it, is queued again, and gives back what it had reserved.
create or replace function ai.follow(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_leaders uuid[], p_counters text[], p_amounts text[], p_now timestamptz)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
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

-- Where breakers are open: chooses each generation's target, delays what has none at present, ends what has none at all. probes are the
-- stages of those that are to be the first after failures, by id, for ai.confirm_probes(); null: there are none.
create or replace function ai.pass_breakers(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_routes text[], p_leaders uuid[], p_inputs integer[], p_outputs integer[],
  p_now timestamptz, out ids uuid[], out tenants uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out routes text[], out models bigint[],
  out leaders uuid[], out inputs integer[], out outputs integer[], out counters text[], out amounts text[], out probes jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_chosen record;
  v_rest   record;
  v_one    record;
begin
  select array_agg(c.generation_id) as ids, array_agg(c.target) as targets, array_agg(c.model_id) as models, array_agg(c.until) as untils,
         array_agg(c.stage) as stages, bool_or(c.stage is not null and c.model_id is not null) as told,
         jsonb_object_agg(c.generation_id, c.stage) filter (where c.stage ->> 'result' = 'probe') as probes
    into v_chosen
    from ai.choose_targets(p_ids, p_routes, p_targets, p_leaders, p_inputs) c;
  probes := v_chosen.probes;

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
     where c.model_id is not null and c.stage ->> 'result' <> 'probe' and g.tenant_id = u.tenant_id and g.id = u.id;
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

-- Puts what lies in the wrong lane into the right one, and gives the rest. p_first and p_last: the least and the greatest of the ids, or less and more.
create or replace function ai.keep_to_lanes(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_routes text[], p_models bigint[], p_leaders uuid[], p_inputs integer[],
  p_outputs integer[], p_first uuid, p_last uuid, out ids uuid[], out tenants uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out routes text[],
  out models bigint[], out leaders uuid[], out inputs integer[], out outputs integer[], out counters text[], out amounts text[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_moved uuid[] := ai.move_to_lanes(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_first, p_last);
begin
  select array_agg(p_ids[n]), array_agg(p_tenants[n]), array_agg(p_lanes[n]), array_agg(p_tries[n]), array_agg(p_targets[n]), array_agg(p_routes[n]),
         array_agg(p_models[n]), array_agg(p_leaders[n]), array_agg(p_inputs[n]), array_agg(p_outputs[n])
    into ids, tenants, lanes, tries, targets, routes, models, leaders, inputs, outputs
    from (select u.n from unnest(p_ids) with ordinality u (id, n) where u.id <> all (v_moved) order by u.n) o;
end
$$;
comment on function ai.keep_to_lanes(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[], uuid, uuid) is
  'Moves what lies in the wrong lane; gives what lies in the right one.';

-- Sends back what has to wait by its verdict (ai.reserve_limits()), ends what is refused, and gives what may go.
create or replace function ai.pass_limits(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_routes text[], p_models bigint[], p_leaders uuid[], p_inputs integer[],
  p_outputs integer[], p_verdicts text[], p_counters text[], p_amounts text[], p_errors jsonb[],
  out ids uuid[], out tenants uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out routes text[],
  out models bigint[], out leaders uuid[], out inputs integer[], out outputs integer[], out counters text[], out amounts text[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_rest record;
  v_one  record;
begin
  with held as materialized (
    select u.*, g.cache_key is not null as cached
      from (select o.* from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_verdicts, p_errors) o (id, tenant_id, lane_id, attempts, target, verdict, error)
             where o.verdict <> 'go') u
      join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id
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

  select array_agg(u.id), array_agg(u.tenant), array_agg(u.lane), array_agg(u.try), array_agg(u.target), array_agg(u.route),
         array_agg(u.model), array_agg(u.leader), array_agg(u.input), array_agg(u.output), array_agg(u.counters), array_agg(u.amounts)
    into ids, tenants, lanes, tries, targets, routes, models, leaders, inputs, outputs, counters, amounts
    from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_routes, p_models, p_leaders, p_inputs, p_outputs, p_counters, p_amounts, p_verdicts)
         u (id, tenant, lane, try, target, route, model, leader, input, output, counters, amounts, verdict)
   where u.verdict = 'go';
end
$$;
comment on function ai.pass_limits(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[], text[], text[], text[], jsonb[]) is
  'What limits let through; the rest waits or is rejected.';

-- Moves generations of limited tenants that lie in another lane than their limits and batch say (because of a new limit, or a
-- member's first question) into the right one, making it. Gives the moved. p_first and p_last: the least and the greatest of the ids, or less and more.
create or replace function ai.move_to_lanes(p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_first uuid, p_last uuid) returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_moved record;
  v_lanes bigint[];
begin
  with asked as materialized (
    select u.id, u.tenant_id, u.attempts, u.target, u.lane_id, g.user_id, g.kind, g.model, g.profile, g.api_key_id, g.priority, g.batch_id
      from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets) u (id, tenant_id, lane_id, attempts, target)
     cross join lateral (select o.user_id, o.kind, o.model, o.profile, o.api_key_id, o.priority,
                                coalesce(o.batch_id, (select r.batch_id from ai.generations r where r.tenant_id = o.tenant_id and r.id = o.parent_id)) as batch_id
                           from ai.generations o
                          where o.tenant_id = u.tenant_id and o.id = u.id and o.id >= p_first and o.id <= p_last offset 0) g
  ), counted as materialized (
    -- Once for each kind of question, not for each generation.
    select d.*, coalesce(ai.generation_counters(d.tenant_id, d.user_id, d.kind, d.model, d.profile, d.api_key_id),
                         ai.make_counters(d.tenant_id, d.user_id, d.kind, d.model, d.profile, d.api_key_id)) as counters
      from (select distinct a.tenant_id, a.user_id, a.kind, a.model, a.profile, a.api_key_id from asked a) d
     where d.tenant_id = any (array(select o.tenant_id from (select distinct a.tenant_id from asked a offset 0) o where ai.limited(o.tenant_id)))
  ), misplaced as materialized (
    select a.id, a.tenant_id, a.attempts, a.target, a.priority, a.batch_id, c.counters
      from asked a
      join ai.lanes l on l.id = a.lane_id
      join counted c on c.tenant_id = a.tenant_id and c.user_id = a.user_id and c.kind = a.kind and c.model is not distinct from a.model
                    and c.profile is not distinct from a.profile and c.api_key_id is not distinct from a.api_key_id
     where l.counters <> c.counters or l.batch_id is distinct from a.batch_id
  )
  select array_agg(m.id) as ids, array_agg(m.tenant_id) as tenants, array_agg(m.attempts) as tries, array_agg(m.target) as targets, array_agg(m.priority) as priorities,
         array_agg(m.batch_id) as batches, array_agg(m.counters::text) as counters
    into v_moved
    from misplaced m;
  if v_moved.ids is null then
    return '{}';
  end if;
  -- By the counters found above: limits may have changed since.
  insert into ai.lanes (tenant_id, priority, counters, batch_id)
  select distinct u.tenant_id, u.priority, u.counters::bigint[], u.batch_id
    from unnest(v_moved.tenants, v_moved.priorities, v_moved.batches, v_moved.counters) u (tenant_id, priority, batch_id, counters)
   order by 1, 2, 3, 4
  on conflict do nothing;
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
comment on function ai.move_to_lanes(uuid[], uuid[], bigint[], smallint[], smallint[], uuid, uuid) is 'Moves what lies in the wrong lane into the right one; gives the moved.';

revoke execute on function
  ai.follow(uuid[], uuid[], bigint[], smallint[], smallint[], uuid[], text[], text[], timestamptz),
  ai.pass_breakers(uuid[], uuid[], bigint[], smallint[], smallint[], text[], uuid[], integer[], integer[], timestamptz),
  ai.keep_to_lanes(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[], uuid, uuid),
  ai.pass_limits(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[], text[], text[], text[], jsonb[]),
  ai.move_to_lanes(uuid[], uuid[], bigint[], smallint[], smallint[], uuid, uuid) from public;
