-- The usual end of an attempt: an answer that needs no decision. Nothing is left to decide where the provider answered and
-- the generation ends with that: no guardrail holds the text back, nothing follows it, no call is kept, the price is one of
-- tokens of text, and nobody has cancelled it. Everything else is sql/65_settle_attempts.sql, which would write exactly the
-- same for an answer (Tests/SQL/settle_answers.sql compares the two); this one costs a third of it.

-- Writes the books and the ends of those of p_results that are such answers, as ai.conclude_attempts() is asked to, which has
-- locked the leases and seen to it that no attempt is named twice; passes over all others. p_first and p_last are the least and
-- the greatest of the ids: so that only partitions between them are opened. Gives the attempts that ended; of those that concern
-- others (ai.after_ends()) tenants and ids; what was reserved on counters (ai.settle_limits()); and where p_watched, what was
-- seen of targets (ai.observe_attempts()). Locks the generations that end.
create or replace function ai.settle_answers(
  p_worker uuid, p_results jsonb, p_first uuid, p_last uuid, p_now timestamptz, p_watched boolean,
  out ids uuid[], out attempts integer[], out ended_tenants uuid[], out ended_ids uuid[], out reserved jsonb, out seen jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_column
declare
  c_most  constant integer := 2147483647;
  v_key   bytea;
  v_sent  bigint;
begin
  select k.key into v_key from ai.realtime_key k;

  with results as materialized (
    select r.*
      from jsonb_to_recordset(p_results) r (
        id uuid, attempt integer, outcome text, tail text, output text, message jsonb, embedding jsonb, finish_reason text, usage jsonb,
        model text, service_tier text, request_id text, http_status integer, ttft_ms numeric, latency_ms numeric, dropped text[],
        signal text, error_type text, error_code text, embeddings jsonb, sealed jsonb, files jsonb)
     where r.outcome = 'succeeded' and coalesce(r.signal, r.error_type, r.error_code) is null
       and coalesce(r.embeddings, r.sealed, r.files, r.usage -> 'units') is null

  ), answers as materialized (
    -- Each level ends with `offset 0`, without which it is worked out anew wherever it is used. Levels, and looks in the place of joins, because
    -- each column costs its place in each node above it.
    select n.*, ai.token_cost((n.price).rates, n.input_tokens, n.cached_tokens, n.cache_write_tokens, n.cache_write_1h_tokens, n.output_tokens, n.reasoning_tokens) as cost
      from (
        -- Totals include their parts, whatever a provider says.
        select u.generation_id, u.attempt, u.tenant_id, u.user_id, u.model_id, u.claimed_at, u.counters, u.amounts, u.secret, u.text, u.tail, u.message, u.embedding,
               u.finish_reason, u.model_used, u.service_tier, u.request_id, u.http_status, u.dropped, u.ttft_ms, u.latency_ms, u.waiting_since, u.names, u.price, u.shown_seq,
               greatest(coalesce(u.input, ceil(u.input_bytes / 4.0)), least(u.cached + u.cache_write + u.cache_write_1h, c_most))::integer as input_tokens,
               u.cached::integer as cached_tokens, least(u.cache_write, c_most - u.cached)::integer as cache_write_tokens,
               greatest(least(u.cache_write_1h, c_most - u.cached - u.cache_write), 0)::integer as cache_write_1h_tokens,
               greatest(coalesce(u.output, ceil(octet_length(u.text) / 4.0)), u.reasoning)::integer as output_tokens,
               u.reasoning::integer as reasoning_tokens, u.input is null or u.output is null and u.text <> '' as estimated
          from (
            select l.generation_id, l.attempt, l.tenant_id, l.user_id, l.model_id, l.claimed_at, l.waiting_since, l.counters, l.amounts, l.secret, l.input_bytes,
                   coalesce(r.output, '') as text, case when l.stream then coalesce(r.tail, '') else '' end as tail, r.message, r.embedding, r.finish_reason,
                   r.model as model_used, r.service_tier, r.request_id, r.http_status, r.dropped,
                   -- Written as cases, because least() passes over nulls.
                   case when r.ttft_ms is not null then least(r.ttft_ms, c_most) end as ttft_ms, case when r.latency_ms is not null then least(r.latency_ms, c_most) end as latency_ms,
                   ai.token_count(r.usage -> 'input') as input, coalesce(ai.token_count(r.usage -> 'cache_read'), 0) as cached,
                   coalesce(ai.token_count(r.usage -> 'cache_write'), 0) as cache_write, coalesce(ai.token_count(r.usage -> 'cache_write_1h'), 0) as cache_write_1h,
                   ai.token_count(r.usage -> 'output') as output, coalesce(ai.token_count(r.usage -> 'reasoning'), 0) as reasoning,
                   (select array[m.name, m.kind, v.name] from ai.models m join ai.providers v on v.id = m.provider_id where m.id = l.model_id) as names,
                   (select p from ai.prices p where p.model_id = l.model_id and p.valid_from <= l.claimed_at and l.claimed_at < p.valid_to limit 1) as price,
                   -- What was never shown has no events, unless an attempt before this one failed.
                   case when l.stream or l.attempt > 1
                        then coalesce((select e.seq from ai.stream_events e
                                        where e.generation_id = l.generation_id and e.generation_id >= p_first and e.generation_id <= p_last order by e.seq desc limit 1), 0) else 0 end as shown_seq
              from results r
             -- Not a join, for which a plan by statistics of an empty moment goes through all leases for each result.
             cross join lateral (
               select o.generation_id, o.attempt, o.tenant_id, o.user_id, o.model_id, o.claimed_at, o.waiting_since, o.counters, o.amounts, o.secret, o.input_bytes, o.stream
                 from ai.leases o
                where o.generation_id = r.id and o.attempt = r.attempt and (p_worker is null or o.worker_id = p_worker)
                  and not o.held and not o.batched and o.step is null and o.capture is null offset 0) l
             where exists (select from ai.cancellations c where c.generation_id = l.generation_id) is not true
            offset 0) u
         where (u.price).plain is not false and u.names is not null
        offset 0) n

  ), books as (
    insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, model_used, kind, status, http_status,
      input_tokens, cached_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
      estimated, price_id, cost, ttft_ms, latency_ms, service_tier, request_id)
    select a.tenant_id, a.generation_id, a.attempt, a.claimed_at, a.user_id, a.names[3], a.names[1], a.model_used, a.names[2], 'succeeded',
           case when a.http_status between 100 and 999 then a.http_status end, a.input_tokens, a.cached_tokens, a.cache_write_tokens,
           a.cache_write_1h_tokens, a.output_tokens, a.reasoning_tokens, a.estimated, (a.price).id, a.cost, a.ttft_ms::integer, a.latency_ms::integer,
           a.service_tier, a.request_id
      from answers a

  ), tails as (
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data)
    select a.generation_id, a.shown_seq + 1, a.tenant_id, a.attempt, 'delta', a.tail from answers a where a.tail <> ''

  ), ended as (
    update ai.generations g
       set status = 'succeeded', output = nullif(a.text, ''), output_message = a.message, embedding = a.embedding::text::ai.embedding, artifacts = null,
           finish_reason = a.finish_reason, error = null, provider = a.names[3], model_used = coalesce(a.model_used, a.names[1]),
           input_tokens = a.input_tokens, cached_tokens = a.cached_tokens, output_tokens = a.output_tokens, dropped_params = a.dropped,
           cost = case when a.cost is null then g.cost else coalesce(g.cost, 0) + a.cost end,
           last_seq = a.shown_seq + case when a.tail <> '' then 2 else 1 end,
           ttft_ms = case when a.ttft_ms is not null then least(greatest(0, extract(epoch from a.claimed_at - a.waiting_since) * 1000 + a.ttft_ms), c_most)::integer end,
           latency_ms = least(greatest(0, extract(epoch from p_now - a.waiting_since) * 1000), c_most)::integer, finished_at = p_now
      from answers a
     where g.tenant_id = a.tenant_id and g.id = a.generation_id and g.finished_at is null
    returning g.tenant_id, g.id, g.cache_key is not null or g.purpose is not null or g.conversation_id is not null or g.template is not null
                                 or g.collection is not null or g.stages is not null as concerns_others

  ), freed as (
    delete from ai.leases l where l.generation_id = any (array(select a.generation_id from answers a))

  )
  select array_agg(a.generation_id), array_agg(a.attempt),
         (select array_agg(e.tenant_id order by e.id) from ended e where e.concerns_others),
         (select array_agg(e.id order by e.id) from ended e where e.concerns_others),
         -- Of one counter and one claim together: a batch is claimed by a few, from a few lanes.
         (select jsonb_agg(jsonb_build_object('counters', jsonb_build_array(r.counter_id), 'amounts', jsonb_build_array(r.amount), 'claimed_at', r.claimed_at,
                                              'tokens', r.tokens, 'cost', r.cost, 'sent', true, 'ended', true))
            from (select u.counter_id, u.claimed_at, sum(u.amount) as amount, sum(u.tokens) as tokens, sum(u.cost) as cost
                    from (select unnest(o.counters) as counter_id, unnest(o.amounts) as amount, o.claimed_at, o.input_tokens::bigint + o.output_tokens as tokens, o.cost
                            from answers o) u
                   group by u.counter_id, u.claimed_at) r),
         case when p_watched then jsonb_agg(jsonb_build_object('generation_id', a.generation_id, 'model_id', a.model_id, 'outcome', 'succeeded', 'secret', a.secret,
                                                                'ttft_ms', a.ttft_ms, 'latency_ms', a.latency_ms)) end,
         (select count(case when n.tail <> '' then pg_notify(n.channel, ai.event_payload(n.generation_id, n.shown_seq + 1, 'delta', ai.event_data('delta', n.tail))) end)
                 + count(pg_notify(n.channel, n.payload)) + count(pg_notify(n.member_channel, n.payload))
            from (select a.generation_id, a.shown_seq, a.tail, ai.channel_name(v_key, a.tenant_id, uuid_send(a.generation_id)) as channel,
                         ai.channel_name(v_key, a.tenant_id, convert_to(a.user_id, 'UTF8') || '\x00') as member_channel,
                         ai.end_payload(a.generation_id, a.shown_seq + case when a.tail <> '' then 2 else 1 end, 'succeeded', a.finish_reason) as payload
                    from answers a offset 0) n
           where (select ai.may_notify()))
    into ids, attempts, ended_tenants, ended_ids, reserved, seen, v_sent
    from answers a;
end
$$;
comment on function ai.settle_answers(uuid, jsonb, uuid, uuid, timestamptz, boolean) is
  'Books the answers among these results that leave nothing to decide, and ends their generations. Internal: ai.conclude_attempts().';

revoke execute on function ai.settle_answers(uuid, jsonb, uuid, uuid, timestamptz, boolean) from public;
