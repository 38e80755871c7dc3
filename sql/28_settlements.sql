-- Settling: what an attempt really used takes the place of what was reserved for it (sql/28_reservations.sql).

-- What ended attempts change on their counters: what was really used in the place of what was reserved, in the window of the
-- claim. p_done is an array of
--   {"counters", "amounts", "claimed_at": of the lease, "tokens": input and output together, "cost", "sent", "ended"}
-- tokens and cost null: none; what exceeds the reservation is booked too. The one that ran is given back, and the request
-- where nothing was sent and nothing will be: not sent and ended. (A request that is handed back unsent and tried again has
-- been counted once, and is not counted again.) Counters that are gone are passed over. Without a search_path of its own, so
-- that it is inlined: as a call it would be planned anew for each settle.
create or replace function ai.settlements(p_done jsonb)
returns table (counter_id bigint, window_start timestamptz, delta numeric)
language sql stable security invoker
as $$
  select c.id, w.start, sum(case l.metric when 'requests' then case when d.sent is not true and d.ended is true then - u.amount else 0 end
                                          when 'concurrency' then - u.amount
                                          when 'tokens' then coalesce(d.tokens, 0) - u.amount
                                          else coalesce(d.cost, 0) - u.amount end)
    from jsonb_to_recordset(p_done) d (counters bigint[], amounts numeric[], claimed_at timestamptz, tokens numeric, cost numeric, sent boolean, ended boolean)
   cross join lateral unnest(d.counters, d.amounts) u (counter_id, amount)
    join ai.counters c on c.id = u.counter_id
    join ai.limits l on l.id = c.limit_id
   cross join lateral (select ai.window_start(l.period, d.claimed_at) as start) w
   group by c.id, w.start
$$;
comment on function ai.settlements(jsonb) is 'What ended attempts change on their counters.';

-- Writes into the ledger what changed, once for a counter and a window, and what others had left in ai.unsettled; the caller holds these counters. Gives those
-- of them on which there is more room now.
create or replace function ai.write_settlements(p_counters bigint[], p_starts timestamptz[], p_deltas numeric[]) returns bigint[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  if exists (select from ai.unsettled o where o.counter_id = any (p_counters)) then
    with late as (
      delete from ai.unsettled o where o.counter_id = any (p_counters) returning o.counter_id, o.window_start, o.delta
    )
    select array_agg(s.counter_id), array_agg(s.window_start), array_agg(s.delta) into p_counters, p_starts, p_deltas
      from (select u.counter_id, u.window_start, sum(u.delta) as delta
              from (select * from unnest(p_counters, p_starts, p_deltas) n (counter_id, window_start, delta) where n.delta <> 0
                    union all
                    select * from late) u
             group by u.counter_id, u.window_start) s;
  end if;
  insert into ai.counter_entries (counter_id, window_start, seq, delta, balance, money, at, reason)
  select c.id, w.window_start, coalesce(e.seq, 0) + 1, w.delta, coalesce(e.balance, 0) + w.delta, l.metric in ('cost', 'credit'), ai.now(), 'settle'
    from unnest(p_counters, p_starts, p_deltas) w (counter_id, window_start, delta)
    join ai.counters c on c.id = w.counter_id
    join ai.limits l on l.id = c.limit_id
    left join lateral (select e.seq, e.balance from ai.counter_entries e
                        where e.counter_id = c.id and e.window_start = w.window_start order by e.seq desc limit 1) e on true
   where w.delta <> 0;
  return array(select w.counter_id from unnest(p_counters, p_deltas) w (counter_id, delta) where w.delta < 0);
end
$$;
comment on function ai.write_settlements(bigint[], timestamptz[], numeric[]) is 'Writes settlements on counters that the caller has locked; gives those that have more room.';

-- Settles a batch of ended attempts (ai.settlements()), once in a transaction that ends soon. True: lanes that waited for
-- room are on the list again, and workers have to be woken. Locks: the counters in the order of their ids, then parked
-- lanes, skipping what others hold.
create or replace function ai.settle_limits(p_done jsonb) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_done  record;
  v_freed bigint[];
begin
  select array_agg(s.counter_id) as counters, array_agg(s.window_start) as starts, array_agg(s.delta) as deltas into v_done
    from ai.settlements(p_done) s where s.delta <> 0;  -- a request that was sent stays one: nothing to hold its counter for
  if v_done.counters is null then
    return false;
  end if;
  perform from ai.counters c where c.id = any (v_done.counters) order by c.id for update;
  v_freed := ai.write_settlements(v_done.counters, v_done.starts, v_done.deltas);
  if not exists (select from ai.parked_lanes p where p.counter_id = any (v_freed)) then
    return false;
  end if;
  return ai.unpark(array(select distinct p.lane_id from ai.parked_lanes p where p.counter_id = any (v_freed))) > 0;
end
$$;
comment on function ai.settle_limits(jsonb) is
  'Replaces reservations of ended attempts by what was used, and unparks what waited for it; true: lanes were unparked.';

-- Settles as ai.settle_limits() does, but locks nothing: in the transaction of an app, in one that settled or reserved
-- already, and in one that has much to do. The ledger has it with the next claim or settlement on the counter, or by
-- ai.prune_counters(); what waits for room is looked at by the next claim of everything. True: workers have to be woken.
create or replace function ai.settle_later(p_done jsonb) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  insert into ai.unsettled (counter_id, window_start, delta)
  select s.counter_id, s.window_start, s.delta from ai.settlements(p_done) s where s.delta <> 0;
  return found;
end
$$;
comment on function ai.settle_later(jsonb) is 'Leaves the settlement of ended attempts to whoever holds their counters next; true: workers have to be woken.';

-- Writes what was left unsettled where no claim came, and forgets entries of counters that are not money: all but the last of a chain an hour after they were written, and the
-- last when its window has been over for an hour and nothing that was claimed in it runs. At most 100,000 a call; gives how
-- many. Waits for nothing.
create or replace function ai.prune_counters(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_before timestamptz := least(p_now - interval '1 hour', (select min(l.claimed_at) from ai.leases l), (select min(w.claimed_at) from ai.waiting w));
  v_count  integer;
  v_late   bigint[];
begin
  select array_agg(k.id) into v_late
    from (select c.id from ai.counters c where c.id in (select u.counter_id from ai.unsettled u) order by c.id for update skip locked) k;
  perform ai.write_settlements(v_late, null, null);
  delete from ai.unsettled u where not exists (select from ai.counters c where c.id = u.counter_id);

  delete from ai.counter_entries e
   where e.ctid = any (array(
     select o.ctid
       from ai.counter_entries o
      where not o.money and o.at < p_now - interval '1 hour'
        and (exists (select from ai.counter_entries n where n.counter_id = o.counter_id and n.window_start = o.window_start and n.seq > o.seq)
             or not exists (select from ai.counters c where c.id = o.counter_id)
             or exists (select from ai.counters c join ai.limits l on l.id = c.limit_id
                         where c.id = o.counter_id and ai.window_end(l.period, o.window_start) <= v_before))
      limit 100000));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.prune_counters(timestamptz) is 'Deletes entries of counters that nothing depends on any more, money excepted; gives how many.';

revoke execute on function ai.settlements(jsonb), ai.write_settlements(bigint[], timestamptz[], numeric[]), ai.settle_limits(jsonb),
  ai.settle_later(jsonb), ai.prune_counters(timestamptz) from public;
