-- Lanes that wait for room in a limit.
--
-- A lane that is listed is on ai.active_lanes or parked, and moves between the two within one statement's transaction, so
-- that whoever looks at both in one snapshot finds it in one. An insert takes a parked lane for listed (ai.list_lanes()).
-- Whoever moves lanes holds counters, or may come to wait for one: so nothing here waits for a row. What another
-- transaction holds is passed over: that one is moving the same lane, or its rolling back leaves the lane parked until
-- its time comes, which is never far (ai.reserve_limits()). So a lane may be on both: claims pass over a listed lane that waits for a
-- limit (sql/44_picking.sql), and look at it when it is unparked.

-- Puts parked lanes back on the list, and gives how many rows that were.
create or replace function ai.unpark(p_lanes bigint[]) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_count integer;
begin
  if coalesce(cardinality(p_lanes), 0) = 0 then
    return 0;
  end if;
  with gone as (
    delete from ai.parked_lanes p
     where p.id = any (array(select o.id from ai.parked_lanes o where o.lane_id = any (p_lanes) order by o.id for update skip locked))
    returning p.lane_id, p.tenant_id, p.rank
  ), listed as (
    insert into ai.active_lanes (lane_id, tenant_id, rank) select distinct g.lane_id, g.tenant_id, g.rank from gone g
  )
  select count(*) into v_count from gone;
  return v_count;
end
$$;
comment on function ai.unpark(bigint[]) is 'Makes the claim look at these lanes again, as far as they are parked; gives how many rows were moved.';

-- Takes lanes off the list until a time, or until a counter frees; the three arrays belong together. Where a lane is parked for the same
-- counter until then or earlier, nothing is added: of a lane that another transaction keeps on the list (an open ai.pause_batch()) each
-- claim would leave one more row. Locks the rows of the list, skipping what others hold.
create or replace function ai.park(p_lanes bigint[], p_counters bigint[], p_until timestamptz[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  delete from ai.active_lanes a
   where a.ctid = any (array(select o.ctid from ai.active_lanes o where o.lane_id = any (p_lanes) for update skip locked));
  insert into ai.parked_lanes (lane_id, tenant_id, rank, counter_id, until)
  select l.id, l.tenant_id, l.rank, u.counter_id, u.until
    from unnest(p_lanes, p_counters, p_until) u (lane_id, counter_id, until)
    join ai.lanes l on l.id = u.lane_id
   where not exists (select from ai.parked_lanes p where p.lane_id = u.lane_id and p.counter_id = u.counter_id and p.until <= u.until);
end
$$;
comment on function ai.park(bigint[], bigint[], timestamptz[]) is 'Takes lanes off the list of the claim until a time, or until a counter frees.';

-- Called by each claim that looks at everything: lanes whose time has come, and those that wait for a counter on which
-- something was settled without holding it (ai.settle_later()). Gives when the next parked lane is due; null: none is parked.
create or replace function ai.unpark_lanes(p_now timestamptz) returns timestamptz
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  perform ai.unpark(array(select p.lane_id from ai.parked_lanes p where p.until <= p_now order by p.until limit 10000));
  perform ai.unpark(array(select p.lane_id from (select distinct u.counter_id from ai.unsettled u) o join ai.parked_lanes p on p.counter_id = o.counter_id));
  return (select p.until from ai.parked_lanes p where p.until > p_now order by p.until limit 1);
end
$$;
comment on function ai.unpark_lanes(timestamptz) is 'Puts lanes whose time has come back on the list; gives when the next one is due.';

revoke execute on function ai.unpark(bigint[]), ai.park(bigint[], bigint[], timestamptz[]), ai.unpark_lanes(timestamptz) from public;
