-- What becomes of the members of provider batches.

-- Begins the end of a batch: members without a result go back as p_rest says (release, expired, lost), a thousand at a time.
-- The caller has locked the batch.
create or replace function ai.end_batch(p_batch uuid, p_ending text, p_rest text, p_now timestamptz) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update ai.provider_batches b
     set state = 'ending', action = null, worker_id = null, ending = p_ending, rest = p_rest, due_at = p_now
   where b.id = p_batch and b.state <> 'ended'
$$;
comment on function ai.end_batch(uuid, text, text, timestamptz) is 'Begins the end of a provider batch.';

-- Concludes members of a batch that have no result. p_how:
--   release  never done, as the provider or we ourselves know: back to the queue as if it had not been sent, and not on the books
--   expired  not done, free: an attempt on the books
--   lost     perhaps done: an attempt on the books, unknown, with an estimate
-- What an app has cancelled ends as cancelled, whichever it is. Gives how many. Locks as ai.conclude_attempts().
create or replace function ai.conclude_members(p_batch uuid, p_ids uuid[], p_how text) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_results jsonb;
  v_count   integer;
begin
  select jsonb_agg(jsonb_build_object('id', l.generation_id, 'attempt', l.attempt)
                   || case p_how when 'release' then '{"outcome": "released", "sent": false}'::jsonb
                                 when 'expired' then '{"outcome": "failed", "signal": "expired", "sent": true, "service_tier": "batch", "error_message": "the provider batch expired before it was answered"}'
                                 else '{"outcome": "failed", "signal": "lost", "sent": true, "service_tier": "batch", "error_message": "the provider batch ended without a word of it"}' end)
    into v_results
    from ai.leases l
   where l.generation_id = any (p_ids) and l.batched and l.worker_id = p_batch;
  if v_results is null then
    return 0;
  end if;
  select count(*) into v_count from ai.conclude_attempts(p_batch, v_results) c where c.result <> 'stale';
  delete from ai.batched_requests r where r.batch_id = p_batch and r.generation_id = any (p_ids);
  update ai.provider_batches b
     set expired = b.expired + case p_how when 'expired' then v_count else 0 end,
         missing = b.missing + case p_how when 'lost' then v_count else 0 end,
         cancelled = b.cancelled + case p_how when 'release' then v_count else 0 end
   where b.id = p_batch;
  return v_count;
end
$$;
comment on function ai.conclude_members(uuid, uuid[], text) is 'Concludes members of a provider batch that have no result; gives how many.';

-- Concludes what is left of one batch that is ending, up to 500 members, so that counters of limits are held for a moment only.
-- True: there is more.
create or replace function ai.end_members(p_now timestamptz) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_batch record;
  v_ids   uuid[];
begin
  select b.id, b.rest into v_batch from ai.provider_batches b where b.state = 'ending' and b.due_at <= p_now order by b.due_at limit 1 for update skip locked;
  if not found then
    return false;
  end if;
  v_ids := array(select l.generation_id from ai.leases l where l.batched and l.worker_id = v_batch.id order by 1 limit 500);
  if cardinality(v_ids) > 0 then
    begin
      perform ai.conclude_members(v_batch.id, v_ids, v_batch.rest);
    exception when others then
      -- What is wrong with one batch must not keep the others from their steps. What only says `again` goes on.
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'members of provider batch % cannot be concluded: %', v_batch.id, sqlstate;
      update ai.provider_batches b set due_at = p_now + interval '1 minute', tries = b.tries + 1 where b.id = v_batch.id;
      return false;
    end;
    return true;
  end if;
  delete from ai.batched_requests r where r.batch_id = v_batch.id;
  update ai.provider_batches b set state = 'ended', ended_at = p_now where b.id = v_batch.id;
  return exists (select from ai.provider_batches b where b.state = 'ending' and b.due_at <= p_now);
end
$$;
comment on function ai.end_members(timestamptz) is 'Concludes what is left of a provider batch that is ending; true: there is more.';

-- Two batches whose creation was lost, of one size, may have been taken for each other, where the provider keeps no names of ours.
-- Where the results of one name members of the other, each gets what is its own, and is read anew. True: that was so. The caller
-- has locked the batch; of two that find out at once one is told 40P01 and tries again.
create or replace function ai.swap_batches(p_batch uuid, p_results jsonb) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_other record;
begin
  select o.id, o.external_id, b.external_id as mine into v_other
    from ai.provider_batches b
    join jsonb_to_recordset(p_results) r (id uuid, attempt smallint) on true
   cross join lateral (select o.worker_id from ai.leases o
                        where o.generation_id = r.id and o.attempt = r.attempt and o.batched and o.worker_id <> b.id offset 0) l
    join ai.provider_batches o on o.id = l.worker_id and o.provider_id = b.provider_id and (o.guessed or o.state = 'sending' and o.intent_at is not null)
   where b.id = p_batch
   limit 1 for update of o;
  if not found then
    return false;
  end if;
  update ai.provider_batches b
     set external_id = case when b.id = p_batch then v_other.external_id else v_other.mine end, worker_id = null, due_at = ai.now(),
         state = case when b.id = p_batch and v_other.external_id is null then 'sending' else 'running' end,
         action = case when b.id = p_batch and v_other.external_id is null then 'find' else 'poll' end,
         guessed = b.id = p_batch and v_other.external_id is not null, submitted_at = coalesce(b.submitted_at, ai.now()), strays = 0, malformed = 0
   where b.id in (p_batch, v_other.id);
  return true;
end
$$;
comment on function ai.swap_batches(uuid, jsonb) is 'Gives two provider batches that were taken for each other what is their own.';

-- Results of a batch that is being collected, in any order and pieces, each as in ai.worker_settle(); also
--   {"id", "attempt", "outcome": "expired"}     the provider did not come to it
--   {"id", "attempt", "outcome": "cancelled"}   it was not done because the batch was cancelled
--   {"outcome": "malformed"}                    a line that cannot be read, or has no id of ours
-- Members that could not be sent at all are told in the same way while the batch is being uploaded or created. Gives `taken`, or
-- `stale`: the step is not this worker's any more; go no further. A result counts once: its member's lease goes with it.
-- Raises PT400 unless p_results is an array.
create or replace function ai.worker_batch_results(p_worker uuid, p_batch uuid, p_step integer, p_results jsonb) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_batch   record;
  v_results jsonb;
  v_malformed integer;
  v_seen    record;
begin
  if jsonb_typeof(p_results) is distinct from 'array' then
    raise exception 'ai.worker_batch_results() takes a JSON array of results' using errcode = 'PT400';
  end if;
  select b.tenant_id, b.model_id, b.guessed, b.dropped into v_batch
    from ai.provider_batches b where b.id = p_batch and b.worker_id = p_worker and b.step = p_step for update;
  if not found then
    return 'stale';
  end if;

  select jsonb_agg(case r.value ->> 'outcome'
                     when 'expired' then '{"signal": "expired", "sent": true, "service_tier": "batch", "error_message": "the provider batch expired before it was answered"}'::jsonb
                                         || jsonb_build_object('id', r.value -> 'id', 'attempt', r.value -> 'attempt', 'outcome', 'failed')
                     when 'cancelled' then jsonb_build_object('id', r.value -> 'id', 'attempt', r.value -> 'attempt', 'outcome', 'released', 'sent', false)
                     else r.value || '{"service_tier": "batch"}'
                          || case when v_batch.dropped ? (r.value ->> 'id') then jsonb_build_object('dropped', v_batch.dropped -> (r.value ->> 'id')) else '{}' end end) filter (where r.value ->> 'outcome' is distinct from 'malformed'),
         count(*) filter (where r.value ->> 'outcome' = 'malformed')
    into v_results, v_malformed
    from jsonb_array_elements(p_results) r;

  if v_batch.guessed and ai.swap_batches(p_batch, v_results) then
    return 'stale';
  end if;

  with said as materialized (
    select distinct on (o.id, o.attempt) o.id, o.attempt, o.outcome, o.signal
      from jsonb_to_recordset(v_results) o (id uuid, attempt integer, outcome text, signal text)
  ), concluded as materialized (
    select c.generation_id, c.attempt, c.result, count(*) as times from ai.conclude_attempts(p_batch, coalesce(v_results, '[]')) c group by 1, 2, 3
  ), counted as (
    select c.times, c.result <> 'stale' as counts, s.outcome, s.signal = 'expired' as expired,
           c.result = 'stale' and exists (select from ai.generations g
                                           where g.tenant_id = v_batch.tenant_id and g.id = c.generation_id and g.provider_batch_id = p_batch) as known
      from concluded c
      left join said s on s.id = c.generation_id and s.attempt = c.attempt
  )
  select count(*) filter (where counts and outcome = 'succeeded') as succeeded,
         count(*) filter (where counts and outcome not in ('succeeded', 'released') and expired is not true) as failed,
         count(*) filter (where counts and expired) as expired, count(*) filter (where counts and outcome = 'released') as cancelled,
         coalesce(sum(case when counts then times - 1 when known then times end), 0) as repeated,
         coalesce(sum(times) filter (where not counts and not known), 0) as strays
    into v_seen
    from counted;
  delete from ai.batched_requests q
   using jsonb_to_recordset(coalesce(v_results, '[]')) r (id uuid)
   where q.batch_id = p_batch and q.generation_id = r.id
     and not exists (select from ai.leases l where l.generation_id = r.id and l.worker_id = p_batch);
  update ai.provider_batches b
     set succeeded = b.succeeded + v_seen.succeeded, failed = b.failed + v_seen.failed, expired = b.expired + v_seen.expired,
         cancelled = b.cancelled + v_seen.cancelled, repeated = b.repeated + v_seen.repeated,
         strays = b.strays + v_seen.strays, malformed = b.malformed + v_malformed,
         guessed = b.guessed and v_seen.succeeded + v_seen.failed + v_seen.expired + v_seen.cancelled = 0
   where b.id = p_batch;
  return 'taken';
end
$$;
comment on function ai.worker_batch_results(uuid, uuid, integer, jsonb) is 'Takes results of a provider batch; gives taken or stale.';

revoke execute on function ai.swap_batches(uuid, jsonb), ai.end_batch(uuid, text, text, timestamptz), ai.conclude_members(uuid, uuid[], text), ai.end_members(timestamptz),
  ai.worker_batch_results(uuid, uuid, integer, jsonb) from public;
grant execute on function ai.worker_batch_results(uuid, uuid, integer, jsonb) to ai_worker;
