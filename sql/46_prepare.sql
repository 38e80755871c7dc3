-- What a cache, a template, a collection or a conversation has to say about a generation before it is sent. Only rows that
-- need it come here (ai.queue.prepare). The prompt that is put together is kept in ai.prepared until the generation has
-- ended, so that a retry asks the same.

-- Prepares those of the generations whose p_prepares is true. Gives a row for each that is not simply sent: `ended` (a cache
-- answered, or nothing was left to do), `follows` (leader_id is asked the same at this moment). What comes back to the last
-- resort of a route that degrades is answered from the cache instead, if that has something nearly as good.
-- What is not reached within c_enough is `later`: the slow search of one tenant does not hold up the calls of the others for long.
-- Those that will be refused anyway (cancelled, late, revoked) are passed over: the lease refuses them.
-- Locks: leaders in the order of their keys, then generations in the given order.
create or replace function ai.prepare_generations(p_ids uuid[], p_tenants uuid[], p_targets smallint[], p_prepares boolean[])
returns table (generation_id uuid, outcome text, leader_id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  c_enough  constant interval := '300 ms';
  v_started timestamptz := clock_timestamp();
  v_one     record;
  v_named   text;  -- the constraint that an error names
  v_ended   uuid[] := '{}';
begin
  for v_one in
    select g.tenant_id, g.id, e.leader_id, p.target > 1 and ai.why_degraded(g.tenant_id, g.kind, g.profile, g.route[p.target]) is not null as is_last_resort,
           (select m.context_tokens from ai.models m where m.id = ai.target_model(g.tenant_id, g.kind, g.model, g.profile, 1)) as context_tokens
      from unnest(p_ids, p_tenants, p_targets, p_prepares) with ordinality p (id, tenant_id, target, prepare, n)
      join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id and g.status = 'queued'
      join ai.tenants t on t.id = p.tenant_id and t.enabled
      join ai.members u on u.tenant_id = p.tenant_id and u.user_id = g.user_id and u.enabled
     cross join ai.settings s
      left join (select * from ai.elect_leaders(array(select i from unnest(p_ids, p_prepares) w (i, wanted) where wanted),
                                                array(select o from unnest(p_tenants, p_prepares) w (o, wanted) where wanted)) l offset 0) e on e.generation_id = g.id
     where p.prepare and not exists (select from ai.cancellations c where c.generation_id = p.id)
       and greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' > ai.now()
     order by e.leader_id is not null, p.n
  loop
    generation_id := v_one.id;
    if clock_timestamp() - v_started > c_enough then
      leader_id := null;
      outcome := 'later';
      v_ended := v_ended || v_one.id;
      return next;
      continue;
    end if;
    -- Leaders come first: who would follow one that has just been answered asks for itself.
    leader_id := case when v_one.leader_id = any (v_ended) then null else v_one.leader_id end;
    begin
      outcome := ai.prepare_generation(v_one.tenant_id, v_one.id, leader_id is not null, v_one.is_last_resort, v_one.context_tokens);
    exception when others then
      -- One that cannot be prepared must not keep all others from being claimed. What may be the database's own trouble goes on (ai.worker_claim_one()).
      get stacked diagnostics v_named = constraint_name;
      if ai.fault_of(sqlstate, v_named) <> 'generation' then
        raise;
      end if;
      -- Without its words, which may quote a prompt.
      raise warning 'generation % cannot be prepared: %', v_one.id, sqlstate;
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed', jsonb_build_object('class', 'unprepared', 'code', 'PT500', 'message', 'its prompt could not be put together', 'sqlstate', sqlstate));
      outcome := 'ended';
    end;
    if outcome = 'ended' then
      v_ended := v_ended || v_one.id;
    end if;
    if outcome is not null then
      return next;
    end if;
  end loop;
end
$$;
comment on function ai.prepare_generations(uuid[], uuid[], smallint[], boolean[]) is
  'Asks caches and puts prompts together before a lease; gives those that have ended or follow another.';

-- Prepares those of what a claim took off the queue whose p_prepares is true, and gives what is to be leased, in parallel arrays: what has not ended, with the
-- generation that is asked the same (leaders). What is not reached in time goes back to the queue. Locks as ai.prepare_generations().
create or replace function ai.prepare_taken(
  p_ids uuid[], p_owners uuid[], p_lanes bigint[], p_tries smallint[], p_targets smallint[], p_prepares boolean[],
  out ids uuid[], out owners uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out leaders uuid[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  with prepared as materialized (
    select * from ai.prepare_generations(p_ids, p_owners, p_targets, p_prepares)
  ), picked as materialized (
    select u.*, p.outcome, p.leader_id
      from unnest(p_ids, p_owners, p_lanes, p_tries, p_targets) u (id, owner, lane, tries, target)
      left join prepared p on p.generation_id = u.id
     where p.outcome is distinct from 'ended'
  ), later as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
    select p.lane, p.id, p.owner, p.tries, p.target, true from picked p where p.outcome = 'later'
  )
  select coalesce(array_agg(p.id), '{}'), array_agg(p.owner), array_agg(p.lane), array_agg(p.tries), array_agg(p.target), array_agg(p.leader_id)
    into ids, owners, lanes, tries, targets, leaders
    from picked p
   where p.outcome is distinct from 'later';
end
$$;
comment on function ai.prepare_taken(uuid[], uuid[], bigint[], smallint[], smallint[], boolean[]) is
  'Prepares what a claim took off the queue; gives what is to be leased. Internal: ai.worker_claim(), ai.worker_claim_one().';

-- Prepares one generation: asks the caches, puts its prompt together. Gives `ended`, `follows` (where p_follows: another is
-- asked the same, and the cache had no answer), or null: it is to be sent.
create or replace function ai.prepare_generation(p_tenant uuid, p_id uuid, p_follows boolean, p_is_last_resort boolean, p_context_tokens integer) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_one     record;
  v_hit     record;
  v_prompt  record;
  v_guarded record;
  v_inputs  jsonb;
  v_vector  ai.embedding;
  v_budget  record;
  v_started timestamptz;
begin
  select * into v_one from ai.generations g where g.tenant_id = p_tenant and g.id = p_id;
  if v_one.purpose in ('chunks', 'rows') then
    v_inputs := ai.embedding_inputs(p_tenant, p_id);
    if v_inputs = '[]' then
      perform ai.end_generation(p_tenant, p_id, 'succeeded', null);
      return 'ended';
    end if;
    insert into ai.prepared (generation_id, tenant_id, messages, input_bytes) values (p_id, p_tenant, v_inputs, octet_length(v_inputs::text))
    on conflict on constraint prepared_pkey do update set messages = excluded.messages, input_bytes = excluded.input_bytes;
    return null;
  end if;

  if v_one.cache_key is not null and v_one.cache is distinct from 'refresh' then
    -- Asked again, after the leader's election: who was first may have been answered since the insert.
    select * into v_hit
      from ai.find_exact(p_tenant, v_one.user_id, v_one.kind, v_one.prompt, v_one.messages, v_one.model, v_one.profile, v_one.params,
                         v_one.template, v_one.template_version, v_one.collection, v_one.cache) f;
    if v_hit.hit then
      perform ai.end_from_cache(p_tenant, p_id, 'exact', to_jsonb(v_hit) - 'cache_key');
      return 'ended';
    end if;
  end if;
  if p_follows then
    return 'follows';
  end if;
  if p_is_last_resort and v_one.cache_key is not null then
    select * into v_hit
      from ai.find_stale(p_tenant, p_id, (select g.embedding from ai.generations g where g.tenant_id = p_tenant and g.id = v_one.query_id)) f;
    if v_hit.hit then
      update ai.generations g set degraded = 'no model of the profile answered in time: this is an older or less similar answer'
       where g.tenant_id = p_tenant and g.id = p_id;
      perform ai.end_from_cache(p_tenant, p_id, 'semantic', to_jsonb(v_hit));
      return 'ended';
    end if;
  end if;
  if exists (select from ai.prepared p where p.generation_id = p_id) then
    return null;
  end if;

  v_vector := (select g.embedding from ai.generations g where g.tenant_id = p_tenant and g.id = v_one.query_id);
  select * into v_budget from ai.time_budget(p_tenant, v_one.kind, v_one.profile);
  v_started := clock_timestamp();
  if v_vector is not null and v_one.cache_key is not null then
    select * into v_hit from ai.find_similar(p_tenant, p_id, v_vector) f;
    if v_hit.hit then
      perform ai.end_from_cache(p_tenant, p_id, 'semantic', to_jsonb(v_hit));
      return 'ended';
    end if;
    if v_hit.stage is not null then
      update ai.generations g set stages = coalesce(g.stages, '[]') || v_hit.stage || ai.over_budget('cache', v_started, v_budget.cache_ms) where g.tenant_id = p_tenant and g.id = p_id;
    end if;
  end if;

  if v_one.template is not null or v_one.collection is not null or v_one.conversation_id is not null then
    v_started := clock_timestamp();
    select * into v_prompt from ai.assemble_prompt(p_tenant, p_id, v_vector, p_context_tokens);
    v_prompt.stages := coalesce(v_prompt.stages, '[]') || ai.over_budget('database', v_started, v_budget.database_ms);
    if v_prompt.messages is not null and ai.guards(p_tenant, v_one.kind, 'input') then
      -- What joined the question passes the guardrails, too: a history may hold what was restored in an answer.
      select * into v_guarded from ai.guard_prepared(p_tenant, p_id, v_one.kind, v_prompt.messages);
      v_prompt.messages := v_guarded.messages;
      v_prompt.stages := coalesce(v_prompt.stages, '[]') || coalesce(v_guarded.stages, '[]');
      if v_guarded.rejected is not null then
        perform ai.end_generation(p_tenant, p_id, 'rejected', v_guarded.rejected);
        return 'ended';
      end if;
    end if;
    if v_prompt.messages is not null then
      insert into ai.prepared (generation_id, tenant_id, messages, input_bytes)
      values (p_id, p_tenant, v_prompt.messages, octet_length(v_prompt.messages::text))
      on conflict on constraint prepared_pkey do nothing;
    end if;
    update ai.generations g
       set sources = v_prompt.sources, degraded = v_prompt.degraded, stages = coalesce(g.stages, '[]') || coalesce(v_prompt.stages, '[]')
     where g.tenant_id = p_tenant and g.id = p_id;
  end if;
  return null;
end
$$;
comment on function ai.prepare_generation(uuid, uuid, boolean, boolean, integer) is 'Asks the caches for one generation and puts its prompt together: ended, follows, or null.';

-- A stage entry, in an array, if what began at p_started took longer than its budget; else an empty one. A statement cannot
-- be broken off half-way: what took too long is used, and said.
create or replace function ai.over_budget(p_what text, p_started timestamptz, p_budget_ms integer) returns jsonb
language sql volatile parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when clock_timestamp() - p_started > p_budget_ms * interval '1 ms'
              then jsonb_build_array(ai.stage('budget', 'over', p_what, p_started, jsonb_build_object('budget_ms', p_budget_ms))) else '[]' end
$$;
comment on function ai.over_budget(text, timestamptz, integer) is 'What to note in stages where a look into the database took longer than it should.';

-- Ends a generation with an answer from a cache: p_how is exact, semantic or coalesced, p_hit what the cache gave as JSON
-- (output, output_message, embedding, finish_reason, sources, provider, model_used, saved, stage). It costs nothing and is on
-- the books as a call with what it saved. Locks the generation; does nothing to one that has ended.
create or replace function ai.end_from_cache(p_tenant uuid, p_id uuid, p_how text, p_hit jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seq integer := ai.last_event(p_id) + 1;
  v_row record;
begin
  update ai.generations g
     set status = 'succeeded', cached = true, saved = (p_hit ->> 'saved')::numeric, output = p_hit ->> 'output', output_message = nullif(p_hit -> 'output_message', 'null'),
         embedding = (p_hit ->> 'embedding')::ai.embedding, finish_reason = p_hit ->> 'finish_reason', sources = nullif(p_hit -> 'sources', 'null'),
         provider = p_hit ->> 'provider', model_used = p_hit ->> 'model_used', error = null, input_tokens = 0, cached_tokens = 0, output_tokens = 0,
         cost = coalesce(g.cost, 0), last_seq = v_seq + g.stream::integer, finished_at = ai.now(),
         stages = coalesce(g.stages, '[]') || coalesce(nullif(p_hit -> 'stage', 'null'), '[]'),
         latency_ms = least(greatest(0, extract(epoch from ai.now() - greatest(g.created_at, g.run_after)) * 1000), 2147483647)::integer
   where g.tenant_id = p_tenant and g.id = p_id and g.finished_at is null
  returning g.* into v_row;
  if not found then
    return;
  end if;
  insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, model_used, kind, status, cost, latency_ms, cache, saved)
  values (p_tenant, p_id, 0, ai.now(), v_row.user_id, coalesce(v_row.provider, 'cache'), coalesce(v_row.model, v_row.profile), v_row.model_used, v_row.kind,
          'succeeded', 0, v_row.latency_ms, p_how, v_row.saved);
  if v_row.stream then
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data) values (p_id, v_seq, p_tenant, 0, 'delta', coalesce(v_row.output, ''));
    perform pg_notify(ai.stream_channel(p_tenant, p_id), ai.event_payload(p_id, v_seq, 'delta', jsonb_build_object('text', coalesce(v_row.output, ''))))
      where ai.may_notify();
  end if;
  perform pg_notify(c.channel, ai.event_payload(p_id, v_row.last_seq, 'end', '{"status": "succeeded"}'::jsonb || jsonb_strip_nulls(jsonb_build_object('finish_reason', v_row.finish_reason))))
     from (values (ai.stream_channel(p_tenant, p_id)), (ai.member_channel(p_tenant, v_row.user_id))) c (channel)
    where (select ai.may_notify());
  perform ai.after_ends(array[p_tenant], array[p_id]);
end
$$;
comment on function ai.end_from_cache(uuid, uuid, text, jsonb) is 'Ends a generation with a cached answer, books and announces it.';

revoke execute on function ai.prepare_generations(uuid[], uuid[], smallint[], boolean[]), ai.prepare_taken(uuid[], uuid[], bigint[], smallint[], smallint[], boolean[]),
  ai.prepare_generation(uuid, uuid, boolean, boolean, integer), ai.over_budget(text, timestamptz, integer), ai.end_from_cache(uuid, uuid, text, jsonb) from public;
