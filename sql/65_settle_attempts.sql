-- The end of any attempt, whatever has to be decided about it: a failure, a text that guardrails hold back, an answer that
-- something follows, a call that is kept. One statement does all of it for a whole batch; the lease row is the fence.

-- Writes the books of the attempts in p_results, and the ends of their generations or their return to the queue, as
-- ai.conclude_attempts() is asked to. Gives, of what was still leased: attempts with what became of them (ended, requeued),
-- lanes of which something was queued, of those that ended and concern others tenants and ids (ai.after_ends()), what was reserved
-- (ai.settle_limits()), what was seen of targets (ai.observe_attempts()), what is kept sealed (ai.keep_sealed()), and artifacts
-- (ai.keep_artifacts()). The leases are locked by the caller. Locks the generations.
create or replace function ai.settle_attempts(
  p_worker uuid, p_results jsonb, p_now timestamptz,
  out ids uuid[], out attempts integer[], out outcomes text[], out lanes bigint[], out ended_tenants uuid[], out ended_ids uuid[],
  out reserved jsonb, out seen jsonb, out kept jsonb, out files jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_column
declare
  c_late     constant jsonb := '{"class": "deadline", "code": "PT504", "hint": "No answer within deadline_ms."}';
  v_settings ai.settings;
  v_key      bytea;
  v_sent     bigint;
begin
  select * into v_settings from ai.settings;
  select k.key into v_key from ai.realtime_key k;

  with results as materialized (
    select distinct on (r.id, r.attempt) r.*, coalesce(r.output, '') as text, coalesce(r.tail, '') as rest
      from jsonb_to_recordset(p_results) r (
        id uuid, attempt integer, outcome text, tail text, output text, message jsonb, embedding jsonb, embeddings jsonb, finish_reason text, usage jsonb,
        model text, service_tier text, request_id text, signal text, http_status integer, error_type text, error_code text,
        error_message text, retry_after_ms bigint, should_retry boolean, sent boolean, ttft_ms numeric, latency_ms numeric, sealed jsonb,
        dropped text[], files uuid[])

  ), attempts as materialized (
    -- Everything that is known of each attempt that is still leased.
    select l.*, o.outcome, r.text, case when l.held then '' else r.rest end as rest, r.message, r.embedding, r.files, r.finish_reason, r.model as model_used, r.service_tier, r.request_id,
           o.signal, r.http_status, r.error_type, r.error_code, coalesce(r.error_message, x.misfit) as error_message, r.retry_after_ms, r.should_retry, r.dropped, t.ttft_ms, t.latency_ms,
           coalesce(m.name, '(removed)') as model, coalesce(m.kind, 'chat') as kind, coalesce(v.name, '(removed)') as provider, f.class, f.action,
           -- Totals include their parts, whatever a provider says: no part is worth less than nothing.
           greatest(coalesce(u.input, case when b.bills <> 'no' then ceil(l.input_bytes / 4.0) end, 0),
                    least(u.cached + u.cache_write + u.cache_write_1h, 2147483647))::integer as input_tokens,
           least(u.cached, 2147483647)::integer as cached_tokens,
           least(u.cache_write, 2147483647 - u.cached)::integer as cache_write_tokens,
           greatest(least(u.cache_write_1h, 2147483647 - u.cached - u.cache_write), 0)::integer as cache_write_1h_tokens,
           greatest(coalesce(u.output, case when b.bills = 'arrived' then ceil(octet_length(r.text) / 4.0) end, 0), u.reasoning)::integer as output_tokens,
           u.reasoning::integer as reasoning_tokens,
           b.bills <> 'no' and (u.input is null or (u.output is null and b.bills = 'arrived' and r.text <> '')) as estimated,
           p.id as price_id, p.rates, p.plain, n.units,
           -- Handed back before anything was sent: no attempt at a provider, so nothing for the books.
           r.outcome = 'released' and r.signal is null and not coalesce(r.sent, false) as unsent, coalesce(r.sent, true) as sent,
           exists (select from ai.cancellations c where c.generation_id = l.generation_id) as cancel_requested,
           -- A call that could not be written was never made.
           case when l.capture is not null and not (r.sealed is null and o.signal is not distinct from 'unsendable') then
             case when exists (select from ai.data_keys k where k.id = (r.sealed ->> 'key')::uuid and k.tenant_id = l.tenant_id and k.destroyed_at is null)
                  then l.capture else 'lost' end end as captured,
           coalesce((select e.seq from ai.stream_events e where e.generation_id = l.generation_id order by e.seq desc limit 1), 0) as last_seq
      from results r
     -- As in ai.settle_answers(), not a join.
     cross join lateral (select o.* from ai.leases o
                          where o.generation_id = r.id and o.attempt = r.attempt and (p_worker is null or o.worker_id = p_worker) offset 0) l
      left join ai.models m on m.id = l.model_id
      left join ai.providers v on v.id = m.provider_id
      -- The vectors of a batch of texts go where they belong at once; an answer that does not fit its question is a failure.
     cross join lateral (select case when r.outcome = 'succeeded' and r.embeddings is not null
                                     then ai.store_embeddings(l.tenant_id, l.generation_id, r.embeddings) end as misfit offset 0) x
     cross join lateral (select case when x.misfit is not null then 'failed' when r.outcome in ('succeeded', 'cancelled', 'released') then r.outcome
                                     else 'failed' end as outcome,
                                case when x.misfit is not null then 'malformed' else r.signal end as signal) o
      -- In a CASE, because a function in FROM is called first and filtered then: most attempts have not failed.
     cross join lateral (select case when o.signal is not null then
                                  (select array[c.class, c.action, c.billed]
                                     from ai.classify_failure(v.dialect, o.signal, r.http_status, r.error_type, r.error_code,
                                                              r.retry_after_ms is not null, l.stream and r.text <> '') c) end as found offset 0) c
     cross join lateral (select c.found[1] as class, c.found[2] as action, c.found[3] as billed) f
     cross join lateral (select ai.token_count(r.usage -> 'input') as input, coalesce(ai.token_count(r.usage -> 'cache_read'), 0) as cached,
                                coalesce(ai.token_count(r.usage -> 'cache_write'), 0) as cache_write,
                                coalesce(ai.token_count(r.usage -> 'cache_write_1h'), 0) as cache_write_1h,
                                ai.token_count(r.usage -> 'output') as output, coalesce(ai.token_count(r.usage -> 'reasoning'), 0) as reasoning offset 0) u
     -- Written as cases, because least() passes over nulls.
     cross join lateral (select case when r.ttft_ms is not null then least(r.ttft_ms, 2147483647) end as ttft_ms,
                                case when r.latency_ms is not null then least(r.latency_ms, 2147483647) end as latency_ms) t
     cross join lateral (select case when o.outcome = 'succeeded' then 'arrived'
                                     when o.outcome = 'cancelled' then case when r.sent then 'arrived' else 'no' end
                                     when not coalesce(r.sent, true) then 'no'
                                     else coalesce(f.billed, 'arrived') end as bills) b
      left join lateral (select p.id, p.rates, p.plain from ai.prices p
                          where p.model_id = l.model_id and p.valid_from <= l.claimed_at and l.claimed_at < p.valid_to limit 1) p on true
      -- What is billed beside tokens of text: of most calls nothing, and then nothing is worked out.
     cross join lateral (select case when p.plain is not false and (r.usage ? 'units') is not true then null
                                     when u.input is null and b.bills <> 'no'
                                     then ai.billed_units(coalesce(r.usage -> 'units', ai.estimated_units(p.rates, l.tenant_id, l.generation_id, l.input_bytes,
                                                                                              coalesce(t.latency_ms / 1000, extract(epoch from p_now - l.claimed_at)))), p.rates, true)
                                     else ai.billed_units(r.usage -> 'units', p.rates, b.bills <> 'no' or u.input is not null) end as units offset 0) n

  ), decided as materialized (
    -- What follows: `end` with a status, or `queue` for the same or the next target after some time.
    select a.*, case when g.rejected is not null then 'rejected' else d.status end as status, d.next_target, d.delay_ms, g.shown_text, g.rejected, g.stages, c.more,
           case when a.plain and a.units is null
                then ai.token_cost(a.rates, a.input_tokens, a.cached_tokens, a.cache_write_tokens, a.cache_write_1h_tokens, a.output_tokens, a.reasoning_tokens)
                else ai.token_cost(a.rates, a.input_tokens, a.cached_tokens, a.cache_write_tokens, a.cache_write_1h_tokens, a.output_tokens, a.reasoning_tokens,
                                   a.units, a.service_tier) end as cost,
           case when coalesce(nullif(a.rest, ''), g.shown_text) <> '' and a.stream then 1 else 0 end as tails,
           -- Whether subscribers have seen text that another attempt would contradict.
           a.stream and d.status is null
             and (a.rest <> '' or exists (select from ai.stream_events e where e.generation_id = a.generation_id and e.type = 'delta'
                                             and e.seq > coalesce((select max(x.seq) from ai.stream_events x
                                                                    where x.generation_id = a.generation_id and x.type = 'reset'), 0))) as shown,
           case when g.rejected is not null then g.rejected when a.outcome <> 'succeeded' then
             jsonb_strip_nulls(jsonb_build_object(
               'class', case when a.outcome in ('cancelled', 'released') then a.outcome else coalesce(a.class, 'unknown') end, 'signal', a.signal,
               'http_status', a.http_status, 'type', a.error_type, 'code', a.error_code, 'message', a.error_message,
               'params', case when a.signal = 'unsendable' then to_jsonb(a.dropped) end, 'provider', a.provider))
             else nullif(c.more -> 'error', 'null') end as error
      from attempts a
     cross join lateral (select v_settings.max_attempts + coalesce(a.step, 0) as most) b
     -- The fence counts what was handed back unsent, too. The books do not: asked where it matters, and the attempt at hand is not on them yet.
     cross join lateral (select case when a.outcome = 'succeeded' or a.attempt < b.most then a.attempt
                                     else (select count(*) + 1 from ai.llm_calls c
                                            where c.tenant_id = a.tenant_id and c.generation_id = a.generation_id and c.attempt > 0
                                              and c.created_at >= (select g.created_at - interval '1 day' from ai.generations g
                                                                    where g.tenant_id = a.tenant_id and g.id = a.generation_id)) end::integer as tries offset 0) n
     cross join lateral ai.after_attempt(a.outcome, a.unsent, a.action, a.should_retry, a.retry_after_ms, n.tries, a.target, a.tenant_id, a.generation_id,
                                         a.cancel_requested, a.deadline_at, p_now, b.most,
                                         v_settings.backoff_base_ms, v_settings.backoff_cap_ms, v_settings.retry_after_cap_ms,
                                         a.route, a.replay, a.class, coalesce(a.error_code, a.error_type)) w
      -- An answer need not be the end: one that does not fit its schema is asked for again, and tools have results.
     cross join lateral (select case when a.step is not null and w.status = 'succeeded' then
                                  (select to_jsonb(o) from ai.go_on(a.tenant_id, a.generation_id, a.attempt, a.lane_id, a.target, a.deadline_at, a.text, a.message, a.finish_reason) o)
                                end as more offset 0) c
     cross join lateral (select case c.more ->> 'action' when 'again' then null when 'wait' then null when 'fail' then 'failed' else w.status end as status,
                                case c.more ->> 'action' when 'again' then a.target else w.next_target end as next_target,
                                case c.more ->> 'action' when 'again' then 0 else w.delay_ms end as delay_ms) d
      -- What was held back passes the guardrails before anybody sees it. shown_text is null where nothing was held.
     cross join lateral (select case when a.held and d.status is not null then
                                  (select jsonb_build_object('text', o.text, 'rejected', o.rejected, 'stages', o.stages)
                                     from ai.guard_output(a.tenant_id, a.generation_id, a.user_id, coalesce(c.more ->> 'bare', a.text)) o) end as held offset 0) h
     cross join lateral (select case when h.held is not null then coalesce(h.held ->> 'text', '') end as shown_text,
                                case when d.status = 'succeeded' then nullif(h.held -> 'rejected', 'null') end as rejected, h.held -> 'stages' as stages) g

  ), books as (
    insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, model_used, kind, status, http_status,
      error_class, error_code, input_tokens, cached_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
      estimated, price_id, cost, ttft_ms, latency_ms, service_tier, request_id, capture, units)
    select d.tenant_id, d.generation_id, d.attempt, d.claimed_at, d.user_id, d.provider, d.model, d.model_used, d.kind,
           case when d.outcome = 'released' or d.signal = 'abandoned' then 'abandoned' else d.outcome end,
           case when d.http_status between 100 and 999 then d.http_status end,
           case when d.outcome <> 'succeeded' then d.error ->> 'class' when d.more ->> 'reason' = 'invalid_output' then 'invalid_output' end, coalesce(d.error_code, d.error_type), d.input_tokens, d.cached_tokens,
           d.cache_write_tokens, d.cache_write_1h_tokens, d.output_tokens, d.reasoning_tokens, d.estimated, d.price_id, d.cost,
           d.ttft_ms::integer, d.latency_ms::integer, d.service_tier, d.request_id, d.captured, d.units
      from decided d where not d.unsent

  ), events as (
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data)
    select d.generation_id, d.last_seq + 1, d.tenant_id, d.attempt, 'delta', coalesce(d.shown_text, d.rest) from decided d where d.tails = 1
    union all
    select d.generation_id, d.last_seq + d.tails + 1, d.tenant_id, d.attempt, case when d.shown then 'reset' else 'retry' end, coalesce(d.more ->> 'reason', d.error ->> 'class')
      from decided d where d.status is null
    returning generation_id, seq, tenant_id, type, data

  ), ended as (
    update ai.generations g
       set status = d.status, output = nullif(coalesce(d.shown_text, d.more ->> 'bare', d.text), ''),
           output_message = case when coalesce(d.shown_text, d.more ->> 'bare') is null then d.message
                                 when d.rejected is null then d.message || jsonb_build_object('content', coalesce(d.shown_text, d.more ->> 'bare')) end,
           embedding = d.embedding::text::ai.embedding, stages = case when jsonb_typeof(d.stages) = 'array' then coalesce(g.stages, '[]') || d.stages else g.stages end,
           artifacts = case when d.status = 'succeeded' then d.files end,
           finish_reason = d.finish_reason,
           -- What an attempt ran into is in the books; a generation that was to be cancelled did not end by it.
           error = case when d.status = 'failed' and d.deadline_at <= p_now then d.error || c_late
                        when d.status = 'cancelled' and d.outcome <> 'cancelled' then
                          jsonb_build_object('class', 'cancelled', 'message', case when d.unsent then 'cancelled before it was sent' else 'cancelled while it ran' end)
                        else d.error end,
           degraded = case when d.status <> 'failed' then g.degraded end, provider = d.provider, model_used = coalesce(d.model_used, d.model),
           input_tokens = d.input_tokens, cached_tokens = d.cached_tokens, output_tokens = d.output_tokens,
           dropped_params = case when d.signal is distinct from 'unsendable' then d.dropped end, cost = case when d.unsent or d.cost is null then g.cost else coalesce(g.cost, 0) + d.cost end,
           last_seq = d.last_seq + d.tails + 1,
           ttft_ms = case when d.ttft_ms is not null then least(greatest(0, extract(epoch from d.claimed_at - d.waiting_since) * 1000 + d.ttft_ms), 2147483647)::integer end,
           latency_ms = least(greatest(0, extract(epoch from p_now - d.waiting_since) * 1000), 2147483647)::integer, finished_at = p_now
      from decided d
     where g.tenant_id = d.tenant_id and g.id = d.generation_id and d.status is not null and g.finished_at is null
    returning g.tenant_id, g.id, g.cache_key is not null or g.purpose is not null or g.conversation_id is not null or g.template is not null or g.collection is not null
                                 or g.stages is not null or d.step is not null as concerns_others

  ), returned as (
    update ai.generations g
       set status = 'queued', error = d.error, last_seq = d.last_seq + d.tails + 1,
           steps = g.steps + case when d.more ->> 'reason' = 'tools' then 1 else 0 end, repairs = g.repairs + case when d.more ->> 'reason' = 'invalid_output' then 1 else 0 end,
           cost = case when d.unsent or d.cost is null then g.cost else coalesce(g.cost, 0) + d.cost end
      from decided d
     where g.tenant_id = d.tenant_id and g.id = d.generation_id and d.status is null and g.finished_at is null

  ), freed as (
    delete from ai.leases l where l.generation_id = any (array(select d.generation_id from decided d))

  ), obeyed as (
    -- As in ai.end_cancelled(): what another locks, it also forgets.
    delete from ai.cancellations c
     where c.ctid = any (array(select o.ctid from ai.cancellations o
                                where o.generation_id = any (array(select d.generation_id from decided d where d.status is not null and d.cancel_requested))
                                  for update skip locked))

  ), delayed as (
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, attempts, target)
    select d.generation_id, p_now + d.delay_ms * interval '1 ms', d.lane_id, d.tenant_id, d.attempt, d.next_target
      from decided d where d.status is null and d.delay_ms > 0

  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
    select d.lane_id, d.generation_id, d.tenant_id, d.attempt, d.next_target, coalesce(d.next_target > d.target and d.route[d.next_target] = ai.extract_model(), false)
      from decided d where d.status is null and d.delay_ms <= 0

  ), news as (
    select e.generation_id, e.seq, e.type, ai.event_data(e.type, e.data) as data, d.tenant_id, d.user_id,
           case when e.type = 'delta' then '{}' else '{"status": "queued"}' end::jsonb as state
      from events e join decided d on d.generation_id = e.generation_id
    union all
    select d.generation_id, d.last_seq + d.tails + 1, 'end', jsonb_strip_nulls(jsonb_build_object('status', d.status, 'finish_reason', d.finish_reason)),
           d.tenant_id, d.user_id, '{}'
      from decided d where d.status is not null
  )
  select (select array_agg(d.generation_id) from decided d) as ids,
         (select array_agg(d.attempt) from decided d) as attempts,
         (select array_agg(case when d.status is null then 'requeued' else 'ended' end) from decided d) as outcomes,
         (select array_agg(distinct d.lane_id) filter (where d.delay_ms <= 0) from decided d where d.status is null) as lanes,
         (select array_agg(e.tenant_id order by e.id) from ended e where e.concerns_others) as ended_tenants,
         (select array_agg(e.id order by e.id) from ended e where e.concerns_others) as ended_ids,
         (select jsonb_agg(jsonb_build_object('generation_id', d.generation_id, 'counters', to_jsonb(d.counters), 'amounts', to_jsonb(d.amounts), 'claimed_at', d.claimed_at,
                                              'tokens', d.input_tokens + d.output_tokens, 'cost', d.cost, 'sent', not d.unsent, 'ended', d.status is not null))
            from decided d where d.counters is not null) as reserved,
         -- No news of the target: what a provider says of a tenant's own key; that it was not done when an app's own short deadline was over,
         -- although it was answering or had hardly had time to; that a tenant's own profile would not wait.
         (select jsonb_agg(jsonb_build_object('generation_id', d.generation_id, 'model_id', d.model_id,
                                              'outcome', case when d.own_key and d.class in ('credentials', 'money_out', 'rate', 'ramp') then 'own key'
                                                              when d.signal = 'timeout' and p_now >= d.deadline_at - interval '1 s' and (d.ttft_ms is not null or d.latency_ms < 10000) then 'own deadline'
                                                              when d.signal = 'slow' and exists (select from ai.generations g
                                                                                                   join ai.profiles o on o.tenant_id = g.tenant_id and o.name = g.profile and o.kind = g.kind
                                                                                                  where g.tenant_id = d.tenant_id and g.id = d.generation_id) then 'own profile'
                                                              else d.outcome end,
                                              'class', case when not d.own_key or d.class <> 'money_out' then d.class end, 'signal', d.signal, 'secret', d.secret,
                                              'ttft_ms', d.ttft_ms, 'latency_ms', d.latency_ms))
            -- What a provider batch brings is news of hours ago.
            from decided d where not d.unsent and not d.batched) as seen,
         (select jsonb_agg(jsonb_build_object('id', d.generation_id, 'attempt', d.attempt, 'tenant_id', d.tenant_id, 'claimed_at', d.claimed_at, 'capture', d.captured))
            from decided d where d.captured <> 'lost' and not d.unsent) as kept,
         (select jsonb_agg(jsonb_build_object('tenant_id', d.tenant_id, 'id', d.generation_id, 'attempt', d.attempt)) from decided d
           where d.files is not null and d.status = 'succeeded') as files,
         (select count(pg_notify(n.channel, n.payload))
            from (select c.channel, c.payload
                    from (select n.*, ai.event_payload(n.generation_id, n.seq, n.type, n.data || n.state) as payload from news n) n
                   cross join lateral (select ai.channel_name(v_key, n.tenant_id, uuid_send(n.generation_id)) as channel, n.payload
                                       union all
                                       select ai.channel_name(v_key, n.tenant_id, convert_to(n.user_id, 'UTF8') || '\x00'), n.payload
                                        where n.type <> 'delta') c
                   where (select ai.may_notify())
                   order by n.generation_id, n.seq) n) as notified
    into ids, attempts, outcomes, lanes, ended_tenants, ended_ids, reserved, seen, kept, files, v_sent;
end
$$;
comment on function ai.settle_attempts(uuid, jsonb, timestamptz) is
  'Books attempts and ends or re-queues their generations, with every decision. Internal: ai.conclude_attempts().';

revoke execute on function ai.settle_attempts(uuid, jsonb, timestamptz) from public;
