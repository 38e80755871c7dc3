-- From what was taken off the queue to leases: which model, what limits allow, and the call that the worker is to make.

-- Leases what may be sent and gives it as ai.worker_claim() does; what may not be sent goes where it belongs: back to the
-- queue with its lane parked (a limit), to ai.delayed (every target's breaker is open), to ai.waiting (p_leaders names the
-- generation that is asked the same), or to its end (rejected, failed). Locks: counters in the order of their ids, leases
-- (new), generations.
create or replace function ai.lease_generations(
  p_worker uuid, p_now timestamptz, p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_leaders uuid[])
returns table (generation_id uuid, attempt smallint, kind text, dialect text, base_url text, secret text, headers jsonb, options jsonb,
               model text, stream boolean, request jsonb, timeout_ms integer, secret_ref bigint, tenant_only boolean, public_only boolean, seal jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set join_collapse_limit = 1
as $$
#variable_conflict use_column
declare
  v_ids     uuid[] := array(select i from unnest(p_ids) i order by i);
  v_first   uuid := v_ids[1];
  v_last    uuid := v_ids[cardinality(v_ids)];
  v_go      record;
  v_fits    record;
  v_refused uuid[];
  v_streamed boolean;
  v_made    uuid[];   -- by Martlet itself
  v_profiled boolean;  -- some name a profile
  v_version bigint;    -- under which the way of some is to be noted; null: of none
  v_probes  jsonb;     -- what is to be the first to try a model after its failures
  v_placed  boolean;   -- all lie in the lane of their way
  v_limited boolean;   -- limits may concern some
  v_filed   boolean;   -- some may have files
  v_settings record;
  v_any     record;   -- what there is at all
  -- What few have, as JSON by a key: the name of a secret's version by tenant and model, how calls are kept by tenant, what guardrails and
  -- time budgets say by tenant, kind and profile. Null, mostly, and then no part of the statement below.
  v_keys    jsonb;
  v_kept    jsonb;
  v_rules   jsonb;
begin
  select o.private_providers, o.deadline_ms, o.max_output_tokens into v_settings from ai.settings o;

  -- Which model. Most of a batch asks for the same few: each is looked up once.
  with now_is as materialized (
    select sum(c.changes)::bigint as version from ai.policy_changes c
  ), asked as materialized (
    -- Looks in the place of joins, and columns by name: each column costs its place in every node above it, and for each partition.
    select p.*, g.user_id, g.kind, g.model, g.profile, g.stream, g.route, g.metadata, g.params, g.is_made, g.is_plain, g.may_have_files,
           (select array[k.lane_id, k.model_id, k.limited::integer]
              from ai.known_ways k
             where k.tenant_id = p.tenant_id and k.model = g.model and k.user_id = any (array['', g.user_id]) and k.version = (select n.version from now_is n)
               and k.kind = g.kind and k.priority = g.priority and (k.user_id = '' or k.api_key_id is not distinct from g.api_key_id)
             limit 1) as way,
           coalesce((select r.input_bytes from ai.prepared r where r.generation_id = p.generation_id), octet_length(g.prompt), octet_length(g.messages::text))
             + octet_length(g.params::text)
             + case when g.params ? 'response_format' then 300 else 0 end
             + case when g.may_have_files then ai.files_weight(p.tenant_id, p.generation_id, g.messages) else 0 end as input_bytes
      from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_leaders) p (generation_id, tenant_id, lane_id, attempts, target, leader_id)
      cross join lateral (
        select o.user_id, o.api_key_id, o.kind, o.model, o.profile, o.priority, o.stream, o.route, o.metadata, o.params, o.prompt, o.messages,
               o.input_artifacts is not null or o.conversation_id is not null as may_have_files, greatest(o.created_at, o.run_after) + coalesce(o.deadline_ms, v_settings.deadline_ms) * interval '1 ms' as deadline_at,
               o.purpose is not null as is_made, o.model is not null and o.route is null and o.batch_id is null as is_plain
          from ai.generations o
         where o.tenant_id = p.tenant_id and o.id = p.generation_id and o.id >= v_first and o.id <= v_last and o.status = 'queued' offset 0) g
     where g.deadline_at > p_now and (select t.enabled from ai.tenants t where t.id = p.tenant_id)
       and (select u.enabled from ai.members u where u.tenant_id = p.tenant_id and u.user_id = g.user_id)
       and exists (select from ai.cancellations c where c.generation_id = p.generation_id) is not true
  ), wanted as materialized (
    select w.*, case when not w.varies then ai.route_models(w.tenant_id, w.kind, w.model, w.profile, w.bytes, null, null, null) end as route
      from (select d.*, d.model is null and ai.route_varies(d.tenant_id, d.kind, d.profile, d.bytes) as varies
              from (select a.tenant_id, a.kind, a.model, a.profile, max(a.input_bytes) as bytes
                      from asked a where a.route is null and a.way is null group by 1, 2, 3, 4) d offset 0) w
  ), routed as materialized (
    select a.generation_id, a.tenant_id, a.lane_id, a.attempts, a.target, a.leader_id, a.kind, a.profile, a.stream, a.params, a.is_made, a.is_plain, a.may_have_files, a.way, a.input_bytes,
           coalesce(a.route, case when a.way is not null then array[a.way[2]]
                                  when w.varies then ai.route_models(a.tenant_id, a.kind, a.model, a.profile, a.input_bytes, a.metadata, a.stream, a.generation_id)
                                  else w.route end) as path
      from asked a
      left join wanted w on a.route is null and a.way is null and w.tenant_id = a.tenant_id and w.kind = a.kind and w.model is not distinct from a.model
                        and w.profile is not distinct from a.profile
  )
  select array_agg(r.generation_id) as ids, array_agg(r.tenant_id) as tenants, array_agg(r.lane_id) as lanes, array_agg(r.attempts) as tries,
         array_agg(r.target) as targets, array_agg(r.path::text) as routes, array_agg((r.m).id) as models, array_agg(r.leader_id) as leaders,
         array_agg(r.input_bytes) as inputs,
         array_agg(case when r.kind in ('image', 'transcription', 'speech') then coalesce((r.m).max_output_tokens, 0)
                        when r.kind not in ('chat', 'completion') then 0
                        else least(coalesce(ai.token_count(r.params -> 'max_completion_tokens'), ai.token_count(r.params -> 'max_tokens'), (r.m).max_output_tokens,
                                            v_settings.max_output_tokens), (r.m).max_output_tokens)::integer end) as outputs,
         null::text[] as counters, null::text[] as amounts,
         bool_or(not (r.m).enabled or not (select v.enabled from ai.providers v where v.id = (r.m).provider_id)) as disabled,
         coalesce(array_agg(r.generation_id) filter (where r.is_made), '{}') as made, bool_or(r.profile is not null) as profiled,
         bool_or(r.stream) as streamed, bool_and(r.way is not null and r.way[1] = r.lane_id) as placed,
         bool_or(r.way[3] = 1) as limited, bool_or(r.may_have_files) as filed, bool_or(r.way is null and r.is_plain and r.attempts = 0) as new, (select n.version from now_is n) as version
    into v_go
    from (select o.*, (select m from ai.models m where m.id = o.path[o.target]) as m from routed o offset 0) r
   where (r.m).id is not null;

  if cardinality(v_go.ids) is distinct from cardinality(p_ids) then
    v_refused := array(select i from unnest(p_ids) i where not i = any (coalesce(v_go.ids, '{}')));
    perform ai.end_unclaimable(array_agg(u.id), array_agg(u.tenant_id), p_now)
       from unnest(p_ids, p_tenants) u (id, tenant_id) where u.id = any (v_refused);
  end if;
  if v_go.ids is null then
    return;
  end if;
  v_made := v_go.made;
  v_profiled := v_go.profiled;
  v_streamed := v_go.streamed;
  v_placed := v_go.placed;
  v_limited := v_go.limited;
  v_filed := v_go.filed;
  v_version := case when v_go.new then v_go.version end;

  -- What is switched off, and breakers: another target, or later.
  if v_go.disabled or ai.choosing_is_needed() then
    v_go := ai.pass_breakers(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.routes, v_go.leaders, v_go.inputs, v_go.outputs, p_now);
    if v_go.ids is null then
      return;
    end if;
    v_probes := v_go.probes;
  end if;
  -- Limits: what fits now.
  if not v_placed then
    v_limited := exists (select from (select distinct t from unnest(v_go.tenants) t offset 0) o where ai.limited(o.t));
  end if;
  if v_limited and not v_placed then
    v_go := ai.keep_to_lanes(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.routes, v_go.models, v_go.leaders, v_go.inputs, v_go.outputs, v_first, v_last);
  end if;
  if v_limited and v_go.ids is not null then
    v_fits := ai.reserve_limits(v_go.ids, v_go.tenants, v_go.lanes, v_go.models,
                                case when v_filed then ai.bound_inputs(v_go.ids, v_go.tenants, v_go.models, v_go.inputs) else v_go.inputs end,
                                v_go.outputs, v_go.tries, v_made, v_go.leaders);
    if 'go' = all (v_fits.verdicts) then
      v_go.counters := v_fits.counters;
      v_go.amounts := v_fits.amounts;
    else
      v_go := ai.pass_limits(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.routes, v_go.models, v_go.leaders, v_go.inputs, v_go.outputs,
                             v_fits.verdicts, v_fits.counters, v_fits.amounts, v_fits.errors);
    end if;
  end if;
  if v_probes is not null then
    perform ai.confirm_probes(v_probes, v_go.ids, v_go.tenants, p_ids, p_lanes, p_now);
  end if;
  if v_go.ids is null then
    return;
  end if;
  if v_version is not null then
    perform ai.note_ways(v_version, v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.models, v_first, v_last);
  end if;
  if p_leaders is not null then
    if exists (select from unnest(v_go.leaders) l where l is not null) then
      perform ai.follow(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.leaders, v_go.counters, v_go.amounts, p_now);
    end if;
  end if;

  -- Whether secrets are to be looked for, calls to be kept, answers to be guarded: what nobody uses costs no tenant anything.
  select exists (select from ai.secrets) or ai.has_vault() as secrets, exists (select from ai.capture_policies p where p.mode <> 'off') as captures,
         exists (select from ai.prompt_cache_policies) as caches, exists (select from ai.guardrails g where g.enabled) as guards,
         exists (select from ai.provider_accounts) as accounts
    into v_any;
  if v_any.secrets then
    select jsonb_object_agg(k.tenant_id || ' ' || k.model_id, jsonb_build_object('ref', k.found[1], 'own', k.provider_tenant is null and k.found[2] = 1))
      into v_keys
      from (select d.*, ai.secret_ref(case when d.provider_tenant is null or d.provider_tenant = d.tenant_id then d.tenant_id end,
                                      ai.provider_secret(d.provider_id), d.provider_tenant is not null) as found
              from (select distinct u.tenant_id, u.model_id, m.provider_id, v.tenant_id as provider_tenant
                      from unnest(v_go.tenants, v_go.models) u (tenant_id, model_id)
                      join ai.models m on m.id = u.model_id
                      join ai.providers v on v.id = m.provider_id) d) k
     where k.found is not null;
  end if;
  if v_any.captures then
    select jsonb_object_agg(d.tenant_id, jsonb_build_object('mode', p.mode, 'percent', p.percent,
                                                            'key', (select k.id from ai.data_keys k where k.tenant_id = d.tenant_id and k.is_current)))
      into v_kept
      from (select distinct u.tenant_id from unnest(v_go.tenants) u (tenant_id)) d
     cross join lateral ai.capture_policy(d.tenant_id) p
     where p.mode <> 'off';
  end if;
  if v_any.guards or v_profiled then
    select jsonb_object_agg(jsonb_build_array(d.tenant_id, d.kind, d.profile)::text,
                            jsonb_build_object('guarded', v_any.guards and ai.guards(d.tenant_id, d.kind, 'output'), 'first_token_ms', b.first_token_ms, 'total_ms', b.total_ms, 'degrade', b.degrade))
      into v_rules
      from (select distinct u.tenant_id, g.kind, g.profile
              from unnest(v_go.tenants, v_go.ids) u (tenant_id, generation_id)
             cross join lateral (select o.kind, o.profile from ai.generations o
                                  where o.tenant_id = u.tenant_id and o.id = u.generation_id and o.id >= v_first and o.id <= v_last offset 0) g) d
     cross join lateral ai.time_budget(d.tenant_id, d.kind, d.profile) b;
  end if;

  return query
    with calls as materialized (
      select u.generation_id, u.attempts + 1 as attempt, u.tenant_id, g.user_id, u.lane_id, u.target, u.model_id, g.stream, u.input_bytes,
             g.waiting_since, w.deadline_at, u.counters::bigint[] as counters, u.amounts::numeric[] as amounts, w.path, g.replay, g.kind, g.profile, g.step,
             case when (w.rule ->> 'guarded')::boolean or g.has_stages then ai.holds_output(u.tenant_id, u.generation_id, g.kind) else false end as held,
             (w.rule ->> 'degrade')::boolean as degrade,
             -- A budget is worth keeping only where another target is left. What was over before the claim was spent waiting for a worker: the
             -- provider gets its time.
             case when cardinality(w.path) > u.target then (w.rule ->> 'first_token_ms')::integer end as first_token_ms,
             least(w.deadline_at,
                   case when cardinality(w.path) > u.target and g.waiting_since + w.total > p_now then g.waiting_since + w.total end,
                   -- A batch has weeks; one call of it has not.
                   case when g.is_of_batch then p_now + v_settings.deadline_ms * interval '1 ms' end) as stop_at,
             w.key, w.kept ->> 'key' as key_id,
             case w.kept ->> 'mode' when 'all' then 'content' when 'metadata' then 'metadata'
                                    when 'sampled' then case when ai.is_sampled(u.generation_id, (w.kept ->> 'percent')::numeric) then 'content' end end as capture,
             case when g.kind = 'chat'
                  then jsonb_build_object('messages', coalesce(r.messages, g.messages, jsonb_build_array(jsonb_build_object('role', 'user', 'content', g.prompt))))
                  else jsonb_build_object('input', coalesce(r.messages, g.messages, to_jsonb(g.prompt))) end
               || jsonb_build_object(
                    -- A reservation holds only if the answer cannot be longer than what was reserved, whatever the app says, null included.
                    'params', case when g.kind not in ('chat', 'completion') or u.counters is null then g.params
                                   when g.params ? 'max_completion_tokens' then g.params - 'max_tokens' || jsonb_build_object('max_completion_tokens', u.output_bound)
                                   else g.params || jsonb_build_object('max_tokens', u.output_bound) end) as request,
             g.params ? 'response_format' as has_format,
             case when g.has_files or g.is_of_conversation and r.messages is not null then coalesce(r.messages, g.messages) end as with_files,
             g.is_filling, m.name as model, m.wire_name, m.capabilities, v.options || m.options as options, m.max_output_tokens, v.tenant_id as provider_tenant, v.name as provider, v.dialect,
             v.base_url, v.headers, case when v_any.accounts then ai.provider_secret(v.id) else v.secret end as secret
        from unnest(v_go.ids, v_go.tenants, v_go.lanes, v_go.tries, v_go.targets, v_go.routes, v_go.models, v_go.leaders, v_go.inputs, v_go.outputs, v_go.counters, v_go.amounts)
             u (generation_id, tenant_id, lane_id, attempts, target, path, model_id, leader_id, input_bytes, output_bound, counters, amounts)
        left join lateral (select o.messages from ai.prepared o where o.generation_id = u.generation_id offset 0) r on true
       cross join lateral (
         select o.user_id, o.kind, o.profile, o.stream, o.replay, o.prompt, o.messages, greatest(o.created_at, o.run_after) as waiting_since, o.deadline_ms,
                case when o.steps > 0 then ai.later_params(o.params, o.tools) else o.params end as params,
                o.input_artifacts is not null as has_files, o.conversation_id is not null as is_of_conversation, o.batch_id is not null as is_of_batch,
                o.stages is not null as has_stages, o.purpose in ('chunks', 'rows') as is_filling, case when o.params ? 'response_format' or o.tools is not null then o.steps + o.repairs end as step
           from ai.generations o
          where o.tenant_id = u.tenant_id and o.id = u.generation_id and o.id >= v_first and o.id <= v_last offset 0) g
        join ai.models m on m.id = u.model_id
        join ai.providers v on v.id = m.provider_id
       cross join lateral (
         select x.*, (x.rule ->> 'total_ms')::integer * interval '1 ms' as total, g.waiting_since + coalesce(g.deadline_ms, v_settings.deadline_ms) * interval '1 ms' as deadline_at
           from (select u.path::bigint[] as path, case when v_keys is not null then v_keys -> (u.tenant_id || ' ' || u.model_id) end as key,
                        case when v_kept is not null then v_kept -> u.tenant_id::text end as kept,
                        case when v_rules is not null then v_rules -> jsonb_build_array(u.tenant_id, g.kind, g.profile)::text end as rule offset 0) x) w
       where u.leader_id is null
    ), leased as (
      insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target, model_id, stream, input_bytes,
                             waiting_since, deadline_at, claimed_at, counters, amounts, held, route, replay, secret, capture, own_key, step)
      select c.generation_id, c.attempt, p_worker, c.tenant_id, c.user_id, c.lane_id, c.target, c.model_id, c.stream, c.input_bytes,
             c.waiting_since, c.deadline_at, p_now, c.counters, c.amounts, c.held, c.path, c.replay, c.secret, c.capture, coalesce((c.key ->> 'own')::boolean, false), c.step
        from calls c
    ), started as (
      update ai.generations g
         set status = 'running', attempts = c.attempt, started_at = coalesce(g.started_at, p_now), provider = c.provider, route = c.path,
             degraded = case when c.degrade then coalesce(ai.why_degraded(c.tenant_id, c.kind, c.profile, c.model_id), g.degraded) else g.degraded end
        from calls c
       where g.tenant_id = c.tenant_id and g.id = c.generation_id
    )
    select c.generation_id, c.attempt::smallint, c.kind, c.dialect, c.base_url, c.secret, c.headers,
           -- What providers and models say themselves comes after what is derived here, and what they cannot do last.
           case when coalesce(c.max_output_tokens, c.first_token_ms) is null then c.options
                else jsonb_strip_nulls(jsonb_build_object('max_output_tokens', c.max_output_tokens, 'first_token_ms', c.first_token_ms)) || c.options end
             || case when c.capabilities = '{}' then '{}' else ai.capability_options(c.capabilities, c.options) end
             -- Answers that take long to settle: the plain ones of others do not wait for them.
             || case when c.held or c.step is not null or c.is_filling then '{"settles_apart": true}'::jsonb else '{}' end,
           c.wire_name, c.stream and not c.held,
           case when v_any.caches or c.has_format or c.with_files is not null
                then ai.complete_request(c.request, c.tenant_id, c.user_id, c.kind, c.profile, c.model, c.dialect, c.capabilities, c.options, v_any.caches, c.with_files)
                else c.request end,
           least(greatest(1, extract(epoch from c.stop_at - p_now) * 1000), 2147483647)::integer,
           (c.key ->> 'ref')::bigint, c.provider_tenant is not null, c.provider_tenant is not null and not v_settings.private_providers,
           case when c.capture is not null then jsonb_build_object('mode', c.capture, 'tenant', c.tenant_id, 'key', c.key_id::uuid) end
      from calls c;
  if v_streamed then
    perform ai.announce_start(p_ids);
  end if;
end
$$;
comment on function ai.lease_generations(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]) is
  'Leases what breakers and limits let through and gives the calls; the rest is queued, delayed, made to wait or ended.';

revoke execute on function ai.lease_generations(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]) from public;
