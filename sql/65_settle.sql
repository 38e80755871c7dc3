-- The end of attempts: the books, and the generation's end or its return to the queue, for a whole batch in one transaction with
-- its announcements. Most attempts end with an answer that leaves nothing to decide (sql/65_settle_answers.sql); the others take
-- sql/65_settle_attempts.sql.

-- Concludes attempts. p_results is an array as docs/worker-protocol.md describes it; p_worker null: the lease may be
-- anybody's (rescue). Gives for each element what became of it: `ended`, `requeued`, or `stale` (no such lease: it
-- ended, was rescued or belongs to another worker; nothing was changed).
--
-- Locks: the leases, in the order of generation ids, then the generations, then the counters of their limits, then what the
-- ends concern (sql/66_afterwards.sql). Of two that conclude the same attempt the
-- second finds no lease.
--
-- The planner settings hold for all that is called here: every join goes from a few keys to an index, in the order in which it is
-- written, whatever the statistics of tables that fill and empty all day say.
create or replace function ai.conclude_attempts(p_worker uuid, p_results jsonb)
returns table (generation_id uuid, attempt integer, result text)
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
  v_now      timestamptz := ai.now();
  v_ids      uuid[];
  v_one      record;   -- answers
  v_all      record;   -- answers and what else ended
  v_is_whole boolean;  -- all were answers
begin
  select array_agg(l.generation_id) into v_ids
    from (select l.generation_id
            from ai.leases l
           where l.generation_id = any (array(select (r ->> 'id')::uuid from jsonb_array_elements(p_results) r)) and (p_worker is null or l.worker_id = p_worker)
           order by l.generation_id
             for update) l;
  -- An attempt that is named twice counts once: ai.settle_attempts() sees to that.
  select a.*, array_fill('ended'::text, array[coalesce(cardinality(a.ids), 0)]) as outcomes into v_one
    from ai.settle_answers(p_worker, case when cardinality(v_ids) = jsonb_array_length(p_results) then p_results else '[]' end,
                           v_ids[1], v_ids[cardinality(v_ids)], v_now, ai.answers_are_watched()) a;
  v_is_whole := cardinality(v_one.outcomes) = jsonb_array_length(p_results);
  if v_is_whole then
    select v_one.ids as ids, v_one.attempts as attempts, v_one.outcomes as outcomes, v_one.ended_tenants as ended_tenants, v_one.ended_ids as ended_ids,
           v_one.reserved as reserved, v_one.seen as seen, null::bigint[] as lanes, null::jsonb as kept, null::jsonb as files
      into v_all;
  else
    select v_one.ids || o.ids as ids, v_one.attempts || o.attempts as attempts, v_one.outcomes || o.outcomes as outcomes,
           v_one.ended_tenants || o.ended_tenants as ended_tenants, v_one.ended_ids || o.ended_ids as ended_ids,
           coalesce(v_one.reserved || o.reserved, v_one.reserved, o.reserved) as reserved, coalesce(v_one.seen || o.seen, v_one.seen, o.seen) as seen,
           o.lanes, o.kept, o.files
      into v_all
      from ai.settle_attempts(p_worker, p_results, v_now) o;
  end if;

  if v_all.files is not null then
    perform ai.keep_artifacts(v_all.files);
  end if;
  if v_all.kept is not null then
    perform ai.keep_sealed(v_all.kept, p_results);
  end if;
  if v_all.lanes is not null then
    perform ai.list_lanes(v_all.lanes);
    perform ai.wake_workers();
  end if;
  if v_all.seen is not null then
    perform ai.observe_attempts(v_all.seen);
  end if;
  if v_all.ended_ids is not null then
    perform ai.after_ends(v_all.ended_tenants, v_all.ended_ids);
  end if;
  -- Last, because ai.after_ends() may wait for a claim, which may wait for a counter. Who rescues has much else to do before
  -- it commits, perhaps another batch of this: it holds no counters.
  if v_all.reserved is not null and (case when p_worker is null then ai.settle_later(v_all.reserved) else ai.settle_limits(v_all.reserved) end) then
    perform ai.wake_workers();
  end if;
  if v_is_whole then
    return query select u.id, u.attempt, u.outcome from unnest(v_all.ids, v_all.attempts, v_all.outcomes) u (id, attempt, outcome);
  else
    return query
      select r.id, r.attempt, coalesce(u.outcome, 'stale')
        from jsonb_to_recordset(p_results) r (id uuid, attempt integer)
        left join unnest(v_all.ids, v_all.attempts, v_all.outcomes) u (id, attempt, outcome) on u.id = r.id and u.attempt = r.attempt;
  end if;
end
$$;
comment on function ai.conclude_attempts(uuid, jsonb) is
  'Books attempts and ends or re-queues their generations. Gives ended, requeued or stale for each. Internal: ai.worker_settle(), rescue.';

-- A worker's report; see docs/worker-protocol.md. Raises PT400 unless p_results is an array.
create or replace function ai.worker_settle(p_worker uuid, p_results jsonb)
returns table (generation_id uuid, attempt integer, result text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_worker is null or jsonb_typeof(p_results) is distinct from 'array' then
    raise exception 'ai.worker_settle() takes a worker and a JSON array of results' using errcode = 'PT400';
  end if;
  return query select c.generation_id, c.attempt, c.result from ai.conclude_attempts(p_worker, p_results) c;
end
$$;
comment on function ai.worker_settle(uuid, jsonb) is 'Takes the results of attempts; gives ended, requeued or stale for each.';

-- The text of a running generation that subscribers have been shown and that no reset has voided.
create or replace function ai.shown_text(p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(string_agg(e.data, '' order by e.seq), '')
    from ai.stream_events e
   where e.generation_id = p_id and e.type = 'delta'
     and e.seq > coalesce((select max(r.seq) from ai.stream_events r where r.generation_id = p_id and r.type = 'reset'), 0)
$$;
comment on function ai.shown_text(uuid) is 'What subscribers have seen of the current attempt.';

-- Concludes what dead workers held as abandoned, with what was shown of it; gives how many. Locks like ai.conclude_attempts().
create or replace function ai.conclude_abandoned(p_ids uuid[]) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_results jsonb;
begin
  select coalesce(jsonb_agg(jsonb_build_object('id', l.generation_id, 'attempt', l.attempt, 'outcome', 'failed', 'signal', 'abandoned', 'sent', true,
                                               'output', ai.shown_text(l.generation_id), 'error_message', 'the worker died or was cut off from the database')), '[]')
    into v_results
    from unnest(p_ids) u (id)
    join ai.leases l on l.generation_id = u.id;
  return (select count(*) from ai.conclude_attempts(null, v_results) c where c.result <> 'stale');
end
$$;
comment on function ai.conclude_abandoned(uuid[]) is 'Books what dead workers held as abandoned, and re-queues or ends it; gives how many.';

-- Declares workers dead that were silent for longer than their lease, and concludes what they held as abandoned, with
-- an estimate of its cost; also what a worker leased while it was being declared dead. Of one worker, or (null) of all. One that cannot be
-- concluded is passed over, with a warning. At most 1,000 a call; gives how many. Locks the workers, then like ai.conclude_attempts().
create or replace function ai.rescue_generations(p_worker uuid) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids   uuid[];
  v_id    uuid;
  v_named text;  -- the constraint that an error names
  v_count integer := 0;
begin
  update ai.workers w set ended_at = ai.now(), ending = 'dead'
    from ai.settings s
   where w.ended_at is null and w.heartbeat_at < ai.now() - s.lease_ms * interval '1 ms';

  v_ids := array(select l.generation_id from ai.leases l join ai.workers w on w.id = l.worker_id and w.ended_at is not null
                  where p_worker is null or l.worker_id = p_worker limit 1000);
  if v_ids = '{}' then
    return 0;
  end if;
  begin
    return ai.conclude_abandoned(v_ids);
  exception when others then
    -- What is wrong with one must not keep all others with a dead worker.
    get stacked diagnostics v_named = constraint_name;
    if ai.fault_of(sqlstate, v_named) = 'database' then
      raise;
    end if;
  end;
  foreach v_id in array v_ids loop
    begin
      v_count := v_count + ai.conclude_abandoned(array[v_id]);
    exception when others then
      get stacked diagnostics v_named = constraint_name;
      if ai.fault_of(sqlstate, v_named) = 'database' then
        raise;
      end if;
      raise warning 'generation % cannot be taken back from a dead worker: %', v_id, sqlstate;
    end;
  end loop;
  return v_count;
end
$$;
comment on function ai.rescue_generations(uuid) is 'Takes back what dead workers held, books it as abandoned, and re-queues or ends it; gives how many.';

-- The end of a worker's life; what it still holds goes back, as ai.rescue_generations() does it, and is counted.
create or replace function ai.worker_stop(p_worker uuid) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_all integer := 0;
  v_now integer;
begin
  update ai.workers w set ended_at = ai.now(), ending = 'stopped' where w.id = p_worker and w.ended_at is null;
  loop
    v_now := ai.rescue_generations(coalesce(p_worker, '00000000-0000-0000-0000-000000000000'));
    exit when v_now = 0;
    v_all := v_all + v_now;
  end loop;
  return v_all;
end
$$;
comment on function ai.worker_stop(uuid) is 'Unregisters a worker; gives how many generations were taken back.';

revoke execute on function ai.conclude_attempts(uuid, jsonb), ai.worker_settle(uuid, jsonb), ai.shown_text(uuid), ai.conclude_abandoned(uuid[]),
  ai.rescue_generations(uuid), ai.worker_stop(uuid) from public;
grant execute on function ai.worker_settle(uuid, jsonb), ai.worker_stop(uuid) to ai_worker;
