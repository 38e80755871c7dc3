-- Reserving: what a generation may need at the most is set aside when it is claimed.
--
-- Exact, and without deadlocks: one statement locks the rows of all counters that are concerned, in the order of their
-- ids; the next one, whose snapshot is younger than the locks, reads what was used and computes the room. A transaction
-- does this once. Should a session run at another isolation level than READ COMMITTED, then the key of
-- ai.counter_entries refuses (23505) what an old snapshot would have admitted beyond the limit.

-- Reserves for generations that are about to be sent, in the order given, each on the counters of its lane: a request
-- (once: not for retries, nor for p_made, which Martlet asks itself), tokens, the dearest cost by the price that is valid now, and one that runs at once. What
-- follows another's answer (p_leaders) needs only its request. Gives for each, at its place:
--   go      with its counters and what is reserved on each of them, as texts of arrays
--   wait    something waits for room. Its lane is parked, and what lies behind it in the lane waits too
--   reject  with the error: the limit says so, it is more than the limit ever admits, or a budget applies and the model
--           has no price
-- Whoever is refused by one limit has used no room of another. Soft limits count and refuse nothing.
-- Parked is until the window ends or the counter frees, at the longest for c_look: by then deadlines may have passed, and
-- a policy may have changed unseen. Locks: the counters, in the order of their ids, until the transaction ends.
create or replace function ai.reserve_limits(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_models bigint[], p_inputs integer[], p_outputs integer[], p_tries smallint[], p_made uuid[], p_leaders uuid[],
  out verdicts text[], out counters text[], out amounts text[], out errors jsonb[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  c_look     constant interval := '1 minute';
  c_soon     constant interval := '5 seconds';  -- where nothing but a settlement makes room, and one may have been missed
  v_now      timestamptz := ai.now();
  v_lanes    record;
  v_known    bigint[];
  v_state    record;
  v_room     numeric[];
  v_taken    numeric[];
  v_costs    numeric[];
  v_lane     bigint;    -- the one of the generation before
  v_counter  bigint;
  v_counters bigint[];  -- the lane's
  v_places   integer[];  -- theirs in v_state
  v_text     text;
  v_pos      integer;
  v_verdict  text;
  v_need     numeric;
  v_needs    numeric[];
  v_end      timestamptz;  -- of a window
  v_until    timestamptz;
  v_worst    integer;
  v_parked   bigint[] := '{}';
  v_blocking bigint[] := '{}';
  v_untils   timestamptz[] := '{}';
begin
  select array_agg(l.id) as ids, array_agg(l.counters::text) as counters into v_lanes
    from (select l.id, l.counters from ai.lanes l where l.id = any (p_lanes) and l.counters <> '{}' order by l.id) l;
  v_known := array(select k.id from ai.counters k
                    where k.id = any (array(select unnest(l::bigint[]) from unnest(v_lanes.counters) l)) order by k.id for update);
  loop
    select array_agg(s.id) as ids, array_agg(s.metric) as metrics, array_agg(s.mode) as modes, array_agg(s.period) as periods, array_agg(s.start) as starts,
           array_agg(s.amount) as amounts, array_agg(s.seq) as seqs, array_agg(s.balance) as balances, array_agg(s.amount - s.balance) as rooms, bool_or(s.metric in ('cost', 'credit')) as any_money,
           exists (select from ai.unsettled u where u.counter_id = any (v_known)) as unsettled
      into v_state
      from (select c.id, l.metric, case when l.enabled and not l.soft then l.on_limit else 'count' end as mode, l.period, w.start,
                   coalesce(e.seq, 0) as seq, coalesce(e.balance, 0) as balance,
                   l.amount + case when l.metric = 'credit' then coalesce((select sum(t.amount) from ai.credits t where t.tenant_id = c.tenant_id), 0) else 0 end as amount
              from ai.counters c
              join ai.limits l on l.id = c.limit_id
             cross join lateral (select ai.window_start(l.period, v_now) as start) w
              left join lateral (select e.seq, e.balance from ai.counter_entries e
                                  where e.counter_id = c.id and e.window_start = w.start order by e.seq desc limit 1) e on true
             where c.id = any (v_known)
             order by c.id) s;
    exit when not v_state.unsettled;
    perform ai.write_settlements(v_known, null, null);
  end loop;
  verdicts := array_fill('go'::text, array[cardinality(p_ids)]);
  if v_state.ids is null then
    return;
  end if;
  counters := array_fill(null::text, array[cardinality(p_ids)]);
  amounts := counters;
  errors := array_fill(null::jsonb, array[cardinality(p_ids)]);
  v_room := v_state.rooms;
  v_taken := array_fill(0::numeric, array[cardinality(v_state.ids)]);
  if v_state.any_money then
    with prices as materialized (
      -- What is no text has no max_tokens that would hold it: ai.most_cost() asks for a bound.
      select m.id, p.rates, p.plain and o.kind not in ('image', 'transcription', 'speech') as plain
        from (select distinct unnest(p_models) as id) m
        join ai.models o on o.id = m.id
        left join lateral (select p.rates, p.plain from ai.prices p where p.model_id = m.id and p.valid_from <= v_now and v_now < p.valid_to limit 1) p on true
    )
    select array_agg(case when p.plain is not false then ai.dearest_cost(p.rates, u.input, u.output)
                          else ai.most_call_cost(p.rates, u.tenant_id, u.id, u.input, u.output, v_now) end order by u.at)
      into v_costs
      from unnest(p_ids, p_tenants, p_models, p_inputs::bigint[], p_outputs::bigint[]) with ordinality u (id, tenant_id, model_id, input, output, at)
      left join prices p on p.id = u.model_id;
  end if;

  for v_at in 1 .. cardinality(p_ids) loop
    if p_lanes[v_at] is distinct from v_lane then
      v_lane := p_lanes[v_at];
      v_pos := width_bucket(v_lane, v_lanes.ids);  -- its place in the ordered array, by bisection
      v_counters := '{}';
      v_places := '{}';
      if v_lanes.ids[v_pos] = v_lane then
        foreach v_counter in array v_lanes.counters[v_pos]::bigint[] loop
          v_pos := width_bucket(v_counter, v_state.ids);
          if v_state.ids[v_pos] = v_counter then  -- else it is gone
            v_counters := array_append(v_counters, v_counter);
            v_places := array_append(v_places, v_pos);
          end if;
        end loop;
      end if;
      v_text := v_counters::text;
    end if;
    if v_lane = any (v_parked) then
      verdicts[v_at] := 'wait';
      continue;
    end if;

    v_verdict := 'go';
    v_needs := '{}';
    v_worst := null;
    v_until := null;
    foreach v_pos in array v_places loop
      v_need := case v_state.metrics[v_pos] when 'requests' then case when p_tries[v_at] = 0 and p_ids[v_at] <> all (p_made) then 1 else 0 end
                                            when 'tokens' then p_inputs[v_at]::bigint + p_outputs[v_at]
                                            when 'concurrency' then 1
                                            else v_costs[v_at] end;
      if p_leaders[v_at] is not null and v_state.metrics[v_pos] <> 'requests' then
        v_need := 0;
      end if;
      v_needs := array_append(v_needs, coalesce(v_need, 0));
      continue when v_need <= v_room[v_pos] or v_state.modes[v_pos] = 'count' or v_need = 0;

      v_end := ai.window_end(v_state.periods[v_pos], v_now);
      if v_need is null or v_state.modes[v_pos] = 'reject' or (v_need > v_state.amounts[v_pos] and v_state.metrics[v_pos] <> 'credit') then
        v_verdict := 'reject';
        errors[v_at] := (select ai.limit_error(l.id, l.metric, l.period, v_state.amounts[v_pos], l.per, v_need, v_end, v_now)
                           from ai.counters c join ai.limits l on l.id = c.limit_id where c.id = v_state.ids[v_pos]);
        exit;
      end if;
      -- Of several, the one that takes longest to have room.
      if v_worst is null or v_end > v_until then
        v_verdict := 'wait';
        v_worst := v_pos;
        v_until := v_end;
      end if;
    end loop;

    verdicts[v_at] := v_verdict;
    if v_verdict = 'go' and v_places <> '{}' then
      counters[v_at] := v_text;
      amounts[v_at] := v_needs::text;
      for v_nth in 1 .. cardinality(v_needs) loop
        v_pos := v_places[v_nth];
        v_taken[v_pos] := v_taken[v_pos] + v_needs[v_nth];
        v_room[v_pos] := v_room[v_pos] - v_needs[v_nth];
      end loop;
    elsif v_verdict = 'wait' then
      v_parked := v_parked || v_lane;
      v_blocking := v_blocking || v_state.ids[v_worst];
      v_untils := v_untils || least(v_until, v_now + case v_state.metrics[v_worst] when 'concurrency' then c_soon else c_look end);
    end if;
  end loop;

  insert into ai.counter_entries (counter_id, window_start, seq, delta, balance, money, at, reason)
  select u.id, u.start, u.seq + 1, u.taken, u.balance + u.taken, u.metric in ('cost', 'credit'), v_now, 'reserve'
    from unnest(v_state.ids, v_state.starts, v_state.seqs, v_taken, v_state.balances, v_state.metrics) u (id, start, seq, taken, balance, metric)
   where u.taken <> 0;

  if v_parked <> '{}' then
    -- Not beyond the deadlines of what waits, so that each ends in time.
    perform ai.park(array_agg(w.lane_id), array_agg(w.counter_id), array_agg(w.until))
       from (select k.lane_id, k.counter_id, least(k.until, min(greatest(g.created_at, g.run_after)
                                                               + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms')) as until
               from unnest(v_parked, v_blocking, v_untils) k (lane_id, counter_id, until)
              cross join ai.settings s
               join unnest(p_ids, p_tenants, p_lanes) u (id, tenant_id, lane_id) on u.lane_id = k.lane_id
               left join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id
              group by k.lane_id, k.counter_id, k.until) w;
  end if;
end
$$;
comment on function ai.reserve_limits(uuid[], uuid[], bigint[], bigint[], integer[], integer[], smallint[], uuid[], uuid[]) is
  'Reserves on the counters of lanes: go with what is reserved, wait with the lane parked, or reject with the error.';

-- What a generation ends with that a limit refuses: PT429, for money PT402. retry_after is in seconds, and missing where
-- waiting does not help.
create or replace function ai.limit_error(
  p_limit bigint, p_metric text, p_period text, p_amount numeric, p_per text, p_need numeric, p_until timestamptz, p_now timestamptz) returns jsonb
language sql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'class', case when p_metric in ('cost', 'credit') then 'budget' else 'limit' end,
    'code', case when p_metric in ('cost', 'credit') then 'PT402' else 'PT429' end,
    'message', case when p_need is null then 'a budget applies, and the model has no price, or one that does not bound this call'
                    when p_metric = 'credit' then 'the prepaid credit does not suffice'
                    when p_need > p_amount then format('the limit of %s can never admit this', t.words)
                    else format('the limit of %s is reached', t.words) end,
    'limit', t.words, 'limit_id', p_limit,
    'needed', case when p_metric in ('tokens', 'cost', 'credit') then p_need end,
    'retry_after', case when p_need <= p_amount and p_metric <> 'credit'
                        then case when isfinite(p_until) then greatest(ceil(extract(epoch from p_until - p_now)), 1) else 1 end end,
    'hint', case when p_need is null then 'insert into ai.prices (model_id, rates) values (…); where a request does not say how much of a class it may use, rates.most has to.'
                 when p_metric = 'credit' then 'select ai.add_credit(tenant, amount)'
                 when p_need > p_amount and p_metric in ('tokens', 'cost') then 'A shorter input, or a smaller params.max_tokens, needs less.'
                 else 'select * from ai.limits_status();' end))
    from (select ai.limit_text(p_metric, p_period, p_amount, p_per) as words) t
$$;
comment on function ai.limit_error(bigint, text, text, numeric, text, numeric, timestamptz, timestamptz) is 'The error of a generation that a limit refuses.';

revoke execute on function ai.reserve_limits(uuid[], uuid[], bigint[], bigint[], integer[], integer[], smallint[], uuid[], uuid[]),
  ai.limit_error(bigint, text, text, numeric, text, numeric, timestamptz, timestamptz) from public;
