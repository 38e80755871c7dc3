-- Keeping answers, and letting go of them.

-- Keeps the answers of generations that have ended. Never kept are answers that failed, were cut short or refused, asked
-- for a tool, are degraded, came from a cache themselves, or were changed or doubted by a guardrail; nor what depends on
-- more than the key tells: a conversation's history, rows of context sources. What a collection, route or policy has become
-- since the insert leads to another key, and is not kept either.
-- Locks the spaces, then the entries, in the order of their keys, so that two calls do not wait for each other in a circle.
create or replace function ai.write_caches(p_tenants uuid[], p_ids uuid[]) returns integer
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
  v_now   timestamptz := ai.now();
  v_count integer;
begin
  with kept as materialized (
    select distinct on (g.tenant_id, g.cache_key)
           g.*, t.base, t.ttl, t.stale_for, t.member, t.collection_version, q.embedding as question, q.model as vector_model, q.question_model
      from unnest(p_tenants, p_ids) w (tenant_id, id)
      join ai.generations g on g.tenant_id = w.tenant_id and g.id = w.id
     cross join lateral ai.cache_terms(g.tenant_id, g.user_id, g.kind, g.prompt, g.messages, g.model, g.profile, g.params, g.template, g.template_version,
                                       g.collection, g.cache) t
      left join lateral (
        select q.embedding, q.model, ai.question_model(g.tenant_id, g.collection, t.vector_model) as question_model
          from ai.generations q
         where t.semantic and q.tenant_id = g.tenant_id and q.id = g.query_id and q.status = 'succeeded'
           and ai.single_question(g.prompt, g.messages) is not null) q on q.model = q.question_model
     where g.cache_key is not null and g.status = 'succeeded' and not g.cached and g.degraded is null
       and g.conversation_id is null and g.context is null and g.context_sources is null
       and case g.kind when 'embedding' then g.embedding is not null
                else g.output is not null and g.finish_reason = 'stop' end
       and not coalesce(g.output_message ?| array['tool_calls', 'function_call', 'refusal', 'native_finish_reason'], false)
       and not coalesce(g.stages @? '$[*] ? (@.stage == "guardrails" && @.result != "passed")', false)
       and t.fits and t.cache_key = g.cache_key
     order by g.tenant_id, g.cache_key, g.cache is not distinct from 'refresh' desc, g.id desc
  ), questions as materialized (
    select k.tenant_id, k.cache_key, ai.signs(k.question) as signs, v_now + k.ttl as expires_at, length(ai.signs(k.question)) as dimensions,
           ai.cache_space(k.base, k.prompt, k.messages, ai.answering(k.tenant_id, 'embedding', k.vector_model, null), length(ai.signs(k.question))) as space,
           k.member, k.kind, k.model, k.profile, k.template, k.template_version, k.collection, k.collection_version, k.vector_model
      from kept k where k.question is not null
  ), spaces as (
    insert into ai.cache_spaces (tenant_id, space, user_id, kind, model, profile, template, template_version, collection, collection_version, vector_model, dimensions)
    select distinct on (q.tenant_id, q.space)
           q.tenant_id, q.space, q.member, q.kind, q.model, q.profile, q.template, q.template_version, q.collection, q.collection_version, q.vector_model, q.dimensions
      from questions q order by q.tenant_id, q.space
    on conflict on constraint cache_spaces_pkey do nothing
    returning 1
  ), written as (
    insert into ai.cache_entries as e (tenant_id, key, user_id, generation_id, kind, model, profile, template, template_version, collection, tags, output,
      output_message, embedding, finish_reason, sources, provider, model_used, input_tokens, output_tokens, cost, question, created_at, expires_at, keep_until)
    select k.tenant_id, k.cache_key, k.member, k.id, k.kind, k.model, k.profile, k.template, k.template_version, k.collection, k.cache_tags, k.output,
           k.output_message, k.embedding, k.finish_reason, k.sources, k.provider, k.model_used, k.input_tokens, k.output_tokens, k.cost, k.question, v_now,
           v_now + k.ttl, v_now + k.ttl + k.stale_for
      from kept k
     where (select count(*) from spaces) >= 0  -- the spaces first
     order by k.tenant_id, k.cache_key
    on conflict on constraint cache_entries_pkey do update
      set generation_id = excluded.generation_id, tags = excluded.tags, output = excluded.output, output_message = excluded.output_message,
          embedding = excluded.embedding, finish_reason = excluded.finish_reason, sources = excluded.sources, provider = excluded.provider,
          model_used = excluded.model_used, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, cost = excluded.cost,
          question = excluded.question, created_at = excluded.created_at, expires_at = excluded.expires_at, keep_until = excluded.keep_until
    returning e.tenant_id, e.key
  ), asked as (
    insert into ai.cache_questions (tenant_id, key, space, expires_at, signs)
    select w.tenant_id, w.key, q.space, q.expires_at, q.signs
      from written w
      join questions q on q.tenant_id = w.tenant_id and q.cache_key = w.key
     order by w.tenant_id, w.key
    on conflict on constraint cache_questions_pkey do update set space = excluded.space, expires_at = excluded.expires_at, signs = excluded.signs
  ), unasked as (
    -- The answer was replaced by one whose question was not embedded.
    delete from ai.cache_questions o
     using written w
     where o.tenant_id = w.tenant_id and o.key = w.key
       and not exists (select from questions q where q.tenant_id = w.tenant_id and q.cache_key = w.key)
  )
  select count(*) into v_count from written;
  return v_count;
end
$$;
comment on function ai.write_caches(uuid[], uuid[]) is 'Keeps the answers of these generations where policy and answer allow it; gives how many.';

-- Deletes what was kept until p_now, and what went with it: at most 10,000 of each a call; gives how many answers. Passes
-- over what others hold.
create or replace function ai.forget_expired_entries(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_count integer;
begin
  delete from ai.unshared u where u.ctid = any (array(
    select o.ctid from ai.unshared o where o.until <= p_now order by o.until limit 10000 for update skip locked));
  -- Leaders that have ended some time ago: an election that is just looking at one would find no leader for its key.
  delete from ai.leaders l where l.ctid = any (array(
    select o.ctid from ai.leaders o
     where o.elected_at <= p_now - interval '1 minute' and not exists (select from ai.leases e where e.generation_id = o.generation_id)
     order by o.elected_at limit 10000 for update skip locked));
  delete from ai.cache_entries e where e.ctid = any (array(
    select o.ctid from ai.cache_entries o where o.keep_until <= p_now order by o.keep_until limit 10000 for update skip locked));
  get diagnostics v_count = row_count;
  if v_count > 0 then
    delete from ai.cache_spaces s where s.ctid = any (array(
      select o.ctid from ai.cache_spaces o
       where not exists (select from ai.cache_questions q where q.tenant_id = o.tenant_id and q.space = o.space) limit 10000 for update skip locked));
  end if;
  return v_count;
end
$$;
comment on function ai.forget_expired_entries(timestamptz) is 'Deletes cached answers that are no longer kept; gives how many.';

revoke execute on function ai.write_caches(uuid[], uuid[]), ai.forget_expired_entries(timestamptz) from public;
