-- Reserving: what a generation may need at the most is set aside when it is claimed.
--
-- Exact, and without deadlocks: one statement locks the rows of all counters that are concerned, in the order of their
-- ids; the next one, whose snapshot is younger than the locks, reads what was used and computes the room. A transaction
-- does this once. Should a session run at another isolation level than READ COMMITTED, then the key of
-- ai.counter_entries refuses (23505) what an old snapshot would have admitted beyond the limit.

-- Reserves for generations that are about to be sent, in the order given, each on the counters of its lane: a request
-- (p_first: retries are none), tokens, the dearest cost by the price that is valid now, and one that runs at once. What
-- follows another's answer needs only its request. Gives for each:
--   go      with its counters and what is reserved on each of them
--   wait    something waits for room. Its lane is parked, and what lies behind it in the lane waits too
--   reject  with the error: the limit says so, it is more than the limit ever admits, or a budget applies and the model
--           has no price
-- Whoever is refused by one limit has used no room of another. Soft limits count and refuse nothing.
-- Parked is until the window ends or the counter frees, at the longest for c_look: by then deadlines may have passed, and
-- a policy may have changed unseen. Locks: the counters, in the order of their ids, until the transaction ends.
create or replace function ai.reserve_limits(
  p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_models bigint[], p_input_tokens integer[], p_output_tokens integer[], p_first boolean[], p_follows boolean[])
returns table (generation_id uuid, verdict text, counters bigint[], amounts numeric[], error jsonb)
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
  v_known    bigint[];
  v_state    record;
  v_room     numeric[];
  v_taken    numeric[];
  v_row      record;
  v_pos      integer;
  v_need     numeric;
  v_needs    numeric[];
  v_until    timestamptz;
  v_worst    integer;
  v_parked   bigint[] := '{}';
  v_blocking bigint[] := '{}';
  v_untils   timestamptz[] := '{}';
begin
  v_known := array(select k.id from ai.counters k
                    where k.id = any (array(select c from ai.lanes l cross join lateral unnest(l.counters) c where l.id = any (p_lanes)))
                    order by k.id for update);
  if exists (select from ai.unsettled u where u.counter_id = any (v_known)) then
    perform ai.write_settlements(v_known, null, null);
  end if;
  select array_agg(s.id) as ids, array_agg(s.metric) as metrics, array_agg(s.money) as money,
         array_agg(s.period) as periods, array_agg(s.amount) as amounts, array_agg(s.per) as pers,
         array_agg(s.limit_id) as limits, array_agg(s.hard) as hard, array_agg(s.rejects) as rejects,
         array_agg(s.start) as starts, array_agg(s.until) as untils, array_agg(s.seq) as seqs,
         array_agg(s.balance) as balances, bool_or(s.money) as any_money
    into v_state
    from (select c.id, l.metric, l.metric in ('cost', 'credit') as money, l.period, l.per, l.id as limit_id, l.enabled and not l.soft as hard,
                 l.on_limit = 'reject' as rejects, w.start, ai.window_end(l.period, v_now) as until, coalesce(e.seq, 0) as seq,
                 coalesce(e.balance, 0) as balance,
                 l.amount + case when l.metric = 'credit' then coalesce((select sum(t.amount) from ai.credits t where t.tenant_id = c.tenant_id), 0) else 0 end as amount
            from ai.counters c
            join ai.limits l on l.id = c.limit_id
           cross join lateral (select ai.window_start(l.period, v_now) as start) w
            left join lateral (select e.seq, e.balance from ai.counter_entries e
                                where e.counter_id = c.id and e.window_start = w.start order by e.seq desc limit 1) e on true
           where c.id = any (v_known)
           order by c.id) s;
  if v_state.ids is null then
    return query select i, 'go', null::bigint[], null::numeric[], null::jsonb from unnest(p_ids) with ordinality u (i, at) order by at;
    return;
  end if;
  v_room := array(select a - b from unnest(v_state.amounts, v_state.balances) with ordinality u (a, b, at) order by at);
  v_taken := array_fill(0::numeric, array[cardinality(v_state.ids)]);

  for v_row in
    with lanes as materialized (
      select l.id, array_agg(w.pos order by w.pos) as positions, array_agg(c order by c) as counters
        from ai.lanes l
       cross join lateral unnest(l.counters) c
       cross join lateral (select width_bucket(c, v_state.ids) as pos) w  -- its place in the ordered array, by bisection
       where l.id = any (p_lanes) and v_state.ids[w.pos] = c
       group by l.id
    ), prices as materialized (
      -- What is no text has no max_tokens that would hold it: ai.most_cost() asks for a bound.
      select m.id, p.rates, p.plain and o.kind not in ('image', 'transcription', 'speech') as plain
        from (select distinct unnest(p_models) as id) m
        join ai.models o on o.id = m.id
        left join lateral (select p.rates, p.plain from ai.prices p where p.model_id = m.id and p.valid_from <= v_now and v_now < p.valid_to limit 1) p on true
       where v_state.any_money
    )
    select u.id, u.lane_id, l.positions, l.counters, u.follows, u.first::integer as requests, u.input + u.output as tokens,
           case when not v_state.any_money then null when p.plain is not false then ai.dearest_cost(p.rates, u.input, u.output)
                else ai.most_call_cost(p.rates, u.tenant_id, u.id, u.input, u.output, v_now) end as cost
      from unnest(p_ids, p_tenants, p_lanes, p_models, p_input_tokens::bigint[], p_output_tokens::bigint[], p_first, p_follows)
           with ordinality u (id, tenant_id, lane_id, model_id, input, output, first, follows, at)
      left join lanes l on l.id = u.lane_id
      left join prices p on p.id = u.model_id
     order by u.at
  loop
    generation_id := v_row.id;
    counters := null;
    amounts := null;
    error := null;
    verdict := 'go';
    if v_row.lane_id = any (v_parked) then
      verdict := 'wait';
      return next;
      continue;
    end if;

    v_needs := '{}';
    v_worst := null;
    v_until := null;
    foreach v_pos in array coalesce(v_row.positions, '{}') loop
      v_need := case v_state.metrics[v_pos] when 'requests' then v_row.requests when 'tokens' then v_row.tokens when 'concurrency' then 1 else v_row.cost end;
      if v_row.follows and v_state.metrics[v_pos] <> 'requests' then
        v_need := 0;
      end if;
      v_needs := v_needs || coalesce(v_need, 0);
      continue when not v_state.hard[v_pos] or v_need = 0 or v_need <= v_room[v_pos];

      if v_need is null or v_state.rejects[v_pos] or (v_need > v_state.amounts[v_pos] and v_state.metrics[v_pos] <> 'credit') then
        verdict := 'reject';
        error := ai.limit_error(v_state.limits[v_pos], v_state.metrics[v_pos], v_state.periods[v_pos], v_state.amounts[v_pos], v_state.pers[v_pos],
                                v_need, v_state.untils[v_pos], v_now);
        exit;
      end if;
      -- Of several, the one that takes longest to have room.
      if v_worst is null or v_state.untils[v_pos] > v_until then
        verdict := 'wait';
        v_worst := v_pos;
        v_until := v_state.untils[v_pos];
      end if;
    end loop;

    if verdict = 'go' then
      counters := v_row.counters;
      amounts := v_needs;
      for v_at in 1 .. cardinality(v_needs) loop
        v_pos := v_row.positions[v_at];
        v_taken[v_pos] := v_taken[v_pos] + v_needs[v_at];
        v_room[v_pos] := v_room[v_pos] - v_needs[v_at];
      end loop;
    elsif verdict = 'wait' then
      v_parked := v_parked || v_row.lane_id;
      v_blocking := v_blocking || v_state.ids[v_worst];
      v_untils := v_untils || least(v_until, v_now + case v_state.metrics[v_worst] when 'concurrency' then c_soon else c_look end);
    end if;
    return next;
  end loop;

  insert into ai.counter_entries (counter_id, window_start, seq, delta, balance, money, at, reason)
  select u.id, u.start, u.seq + 1, u.taken, u.balance + u.taken, u.money, v_now, 'reserve'
    from unnest(v_state.ids, v_state.starts, v_state.seqs, v_taken, v_state.balances, v_state.money) u (id, start, seq, taken, balance, money)
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
comment on function ai.reserve_limits(uuid[], uuid[], bigint[], bigint[], integer[], integer[], boolean[], boolean[]) is
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

revoke execute on function ai.reserve_limits(uuid[], uuid[], bigint[], bigint[], integer[], integer[], boolean[], boolean[]),
  ai.limit_error(bigint, text, text, numeric, text, numeric, timestamptz, timestamptz) from public;
