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
  v_sealed  boolean;
  v_capture boolean;
  v_private boolean;
  v_caches  boolean;
  -- Secrets by tenant and provider, and how calls are kept by tenant.
  v_key_tenants   uuid[];
  v_key_providers bigint[];
  v_key_refs      bigint[];
  v_key_owns      boolean[];
  v_kept_tenants  uuid[];
  v_kept_modes    text[];
  v_kept_percents numeric[];
  v_kept_keys     uuid[];
begin
  -- Which model. Most of a batch asks for the same few: each is looked up once.
  with picked as materialized (
    select * from unnest(p_ids, p_tenants, p_lanes, p_tries, p_targets, p_leaders) p (generation_id, tenant_id, lane_id, attempts, target, leader_id)
  ), asked as materialized (
    select p.*, g.user_id, g.kind, g.model, g.profile, g.stream, g.route, g.metadata, g.params,
           coalesce(r.input_bytes, octet_length(g.prompt), octet_length(g.messages::text)) + octet_length(g.params::text)
             + case when g.params ? 'response_format' then 300 else 0 end
             + case when g.input_artifacts is not null then ai.files_weight(p.tenant_id, g.input_artifacts) else 0 end as input_bytes
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
         array_agg(case when r.kind in ('image', 'transcription', 'speech') then coalesce(m.max_output_tokens, 0)
                        when r.kind not in ('chat', 'completion') then 0
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

  -- Whether secrets are to be looked for, and calls to be kept: mostly neither, and then nothing is paid for them.
  select exists (select from ai.secrets) or ai.has_vault(), exists (select from ai.capture_policies p where p.mode <> 'off'), s.private_providers,
         exists (select from ai.prompt_cache_policies)
    into v_sealed, v_capture, v_private, v_caches
    from ai.settings s;
  if v_sealed then
    select array_agg(k.tenant_id), array_agg(k.provider_id), array_agg(k.found[1]), array_agg(k.provider_tenant is null and k.found[2] = 1)
      into v_key_tenants, v_key_providers, v_key_refs, v_key_owns
      from (select d.*, ai.secret_ref(case when d.provider_tenant is null or d.provider_tenant = d.tenant_id then d.tenant_id end,
                                      ai.provider_secret(d.provider_id), d.provider_tenant is not null) as found
              from (select distinct u.tenant_id, m.provider_id, v.tenant_id as provider_tenant
                      from unnest(v_go.tenants, v_go.models) u (tenant_id, model_id)
                      join ai.models m on m.id = u.model_id
                      join ai.providers v on v.id = m.provider_id) d) k
     where k.found is not null;
  end if;
  if v_capture then
    select array_agg(d.tenant_id), array_agg(p.mode), array_agg(p.percent), array_agg((select k.id from ai.data_keys k where k.tenant_id = d.tenant_id and k.is_current))
      into v_kept_tenants, v_kept_modes, v_kept_percents, v_kept_keys
      from (select distinct u.tenant_id from unnest(v_go.tenants) u (tenant_id)) d
     cross join lateral ai.capture_policy(d.tenant_id) p
     where p.mode <> 'off';
  end if;

  return query
    with ready as materialized (
      select u.generation_id, u.tenant_id, u.lane_id, u.target, u.path::bigint[] as path, u.counters::bigint[] as counters, u.amounts::numeric[] as amounts, u.output_bound,
             u.attempts + 1 as attempt, g.user_id, g.kind, g.profile, g.batch_id, s.deadline_ms as usual_ms, g.stream, g.replay, g.prompt, g.messages, g.params,
             greatest(g.created_at, g.run_after) as waiting_since,
             greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' as deadline_at,
             r.messages as prepared, coalesce(r.input_bytes, octet_length(g.prompt), octet_length(g.messages::text)) + octet_length(g.params::text)
             + case when g.params ? 'response_format' then 300 else 0 end
             + case when g.input_artifacts is not null then ai.files_weight(u.tenant_id, g.input_artifacts) else 0 end as input_bytes,
             g.input_artifacts is not null or g.conversation_id is not null and r.messages is not null as has_files,
             m.id as model_id, m.name as model_name, m.wire_name, m.max_output_tokens, m.options as model_options, m.capabilities, v.id as provider_id, v.tenant_id as provider_tenant, v.name as provider, v.dialect, v.base_url, v.headers,
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
             case when w.guarded or g.stages is not null then ai.holds_output(r.tenant_id, r.generation_id, r.kind) else false end as held,
             k.ref as secret_ref, k.own as own_key, c.key_id, case when g.params ? 'response_format' or g.tools is not null then g.steps + g.repairs end as step,
             case c.mode when 'all' then 'content' when 'metadata' then 'metadata'
                         when 'sampled' then case when ai.is_sampled(r.generation_id, c.percent) then 'content' end end as capture
        from ready r
        join rules w on w.tenant_id = r.tenant_id and w.kind = r.kind and w.profile is not distinct from r.profile
        join accounts a on a.provider_id = r.provider_id
        left join unnest(v_key_tenants, v_key_providers, v_key_refs, v_key_owns) k (tenant_id, provider_id, ref, own) on k.tenant_id = r.tenant_id and k.provider_id = r.provider_id
        left join unnest(v_kept_tenants, v_kept_modes, v_kept_percents, v_kept_keys) c (tenant_id, mode, percent, key_id) on c.tenant_id = r.tenant_id
        join ai.generations g on g.tenant_id = r.tenant_id and g.id = r.generation_id
    ), leased as (
      insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target, model_id, stream, input_bytes,
                             waiting_since, deadline_at, claimed_at, counters, amounts, held, route, replay, secret, capture, own_key, step)
      select f.generation_id, f.attempt, p_worker, f.tenant_id, f.user_id, f.lane_id, f.target, f.model_id, f.stream, f.input_bytes,
             f.waiting_since, f.deadline_at, p_now, f.counters, f.amounts, f.held, f.path, f.replay, f.secret, f.capture, coalesce(f.own_key, false), f.step
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
             || f.provider_options || f.model_options
             || case when f.capabilities = '{}' then '{}' else ai.capability_options(f.capabilities, f.provider_options || f.model_options) end,
           f.wire_name, f.stream and not f.held,
           case when v_caches and f.kind = 'chat' and f.dialect in ('openai', 'openai_responses', 'anthropic')
                then ai.cache_prompt(f.tenant_id, f.profile, f.model_name, f.dialect, f.capabilities, w.request) else w.request end
             || case when f.has_files then
                  (select case when o.files is not null then jsonb_build_object('files', o.files) else '{}' end
                     from ai.request_files(f.tenant_id, f.user_id, coalesce(f.prepared, f.messages),
                                           f.kind <> 'chat' or coalesce(((f.provider_options || f.model_options) -> 'fetch_urls')::text = 'true', f.dialect in ('ollama', 'gemini'))) o (files))
                else '{}' end,
           greatest(1, (extract(epoch from f.stop_at - p_now) * 1000)::integer),
           f.secret_ref, f.provider_tenant is not null, f.provider_tenant is not null and not v_private,
           case when f.capture is not null then jsonb_build_object('mode', f.capture, 'tenant', f.tenant_id, 'key', f.key_id) end
      from final f
     cross join lateral (
       select case when f.kind = 'chat'
                then jsonb_build_object('messages', coalesce(f.prepared, f.messages, jsonb_build_array(jsonb_build_object('role', 'user', 'content', f.prompt))))
                else jsonb_build_object('input', coalesce(f.prepared, f.messages, to_jsonb(f.prompt))) end
             || jsonb_build_object(
                  -- A reservation holds only if the answer cannot be longer than what was reserved.
                  'params', case when f.kind not in ('chat', 'completion') or f.counters is null or f.params ?| array['max_tokens', 'max_completion_tokens'] then f.params
                                 else f.params || jsonb_build_object('max_tokens', f.output_bound) end) as request) q
     cross join lateral (select case when f.params ? 'response_format' and f.kind in ('chat', 'completion') then ai.format_request(q.request, f.capabilities) else q.request end as request) w;
end
$$;
comment on function ai.lease_generations(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]) is
  'Leases what breakers and limits let through and gives the calls; the rest is queued, delayed, made to wait or ended.';

revoke execute on function ai.lease_generations(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]) from public;
