-- Taking rows off the queue. Fair between tenants: a round gives each tenant that has something queued the same
-- share, the next round begins behind the tenant that came last. Within a tenant: higher priority first, then the order
-- of insertion. Both functions give parallel arrays of the rows, whether lanes of priority batch are among theirs, how many there are, whose the last is, the new marks
-- of their lanes, and whether some lane gave as many as p_limited;
-- they pass over lanes that wait for a limit, also where those are listed (sql/28_parking.sql), look from the marks of lanes on (sql/45_claim.sql), take at most p_limited from a lane with limits, and lock what they take, skipping what others hold.
-- Their planner settings are those of ai.worker_claim().

-- At most p_most, of the lane that is the only one listed, whose turn it always is.
create or replace function ai.pick_from_lane(
  p_lane bigint, p_most integer, p_limited integer, p_marks jsonb, p_older jsonb,
  out ids uuid[], out owners uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out prepares boolean[], out batched boolean,
  out taken integer, out last_tenant uuid, out marks jsonb, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_first  constant uuid := '00000000-0000-0000-0000-000000000000';
  v_mark   uuid := coalesce(p_marks ->> p_lane::text, p_older ->> p_lane::text, c_first::text);
  v_places tid[];
begin
  select array_agg(q.place), array_agg(q.generation_id), array_agg(q.tenant_id), array_agg(l.id), array_agg(q.attempts), array_agg(q.target), array_agg(q.prepare),
         bool_or(l.priority = 'batch'), count(*), (array_agg(q.tenant_id))[1]
    into v_places, ids, owners, lanes, tries, targets, prepares, batched, taken, last_tenant
    from ai.lanes l
   cross join lateral (
     select o.ctid as place, o.generation_id, o.tenant_id, o.attempts, o.target, o.prepare
       from ai.queue o
      where o.lane_id = l.id and o.generation_id > v_mark
      order by o.generation_id
      limit case when l.counters <> '{}' then least(p_most, p_limited) else p_most end
        for update skip locked) q
   where l.id = p_lane
     and (l.counters = '{}' or not exists (select from ai.parked_lanes k where k.lane_id = l.id and k.counter_id <> 0));
  -- By place: a delete by key would walk the same dead entries again.
  if taken > 0 then
    delete from ai.queue o where o.ctid = any (v_places);
    marks := jsonb_build_object(p_lane, ids[taken]);
    more := taken = p_limited;
  end if;
end
$$;
comment on function ai.pick_from_lane(bigint, integer, integer, jsonb, jsonb) is 'Takes rows of one lane off the queue. Internal: ai.worker_claim().';

-- At most p_most, p_share of each tenant, beginning behind p_after; none from p_stopped.
create or replace function ai.pick_in_turn(
  p_after uuid, p_most integer, p_share integer, p_limited integer, p_marks jsonb, p_older jsonb, p_stopped bigint[],
  out ids uuid[], out owners uuid[], out lanes bigint[], out tries smallint[], out targets smallint[], out prepares boolean[], out batched boolean,
  out taken integer, out last_tenant uuid, out marks jsonb, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_first  constant uuid := '00000000-0000-0000-0000-000000000000';
  v_places tid[];
begin
  with recursive tenants (tenant_id, is_round) as (
    -- From one tenant to the next in the index, beginning behind p_after, round to it, and no further than there is room.
    (select n.*
       from ((select a.tenant_id, false from ai.active_lanes a where a.tenant_id > p_after order by a.tenant_id limit 1)
             union all
             (select a.tenant_id, true from ai.active_lanes a where a.tenant_id <= p_after order by a.tenant_id limit 1)) n
      limit 1)
    union all
    select n.*
      from tenants t
     cross join lateral (
       select m.*
         from ((select a.tenant_id, t.is_round from ai.active_lanes a
                 where a.tenant_id > t.tenant_id and (not t.is_round or a.tenant_id <= p_after) order by a.tenant_id limit 1)
               union all
               (select a.tenant_id, true from ai.active_lanes a where not t.is_round and a.tenant_id <= p_after order by a.tenant_id limit 1)) m
        limit 1) n
  ), picked as materialized (
    select q.*
      from tenants t
     cross join lateral (
       select p.*
         from (select l.*, coalesce(p_marks ->> l.lane_id::text, p_older ->> l.lane_id::text, c_first::text)::uuid as mark,
                      case when c.counters <> '{}' then least(p_share, p_limited) else p_share end as most, c.priority = 'batch' as of_batch
                 from (select distinct a.rank, a.lane_id from ai.active_lanes a where a.tenant_id = t.tenant_id and a.lane_id <> all (p_stopped)) l
                 left join ai.lanes c on c.id = l.lane_id
                where coalesce(c.counters, '{}') = '{}' or not exists (select from ai.parked_lanes k where k.lane_id = l.lane_id and k.counter_id <> 0)
                -- Lanes of one rank take turns by chance: of many members of a tenant none is always last.
                order by l.rank, random()) u
        cross join lateral (
          select q.ctid as place, q.lane_id, q.generation_id, q.tenant_id, q.attempts, q.target, q.prepare, u.of_batch
            from ai.queue q
           where q.lane_id = u.lane_id and q.generation_id > u.mark
           order by q.generation_id
           limit u.most
             for update skip locked) p
        limit p_share) q
     limit p_most
  )
  select array_agg(p.place), array_agg(p.generation_id), array_agg(p.tenant_id), array_agg(p.lane_id), array_agg(p.attempts), array_agg(p.target), array_agg(p.prepare),
         bool_or(p.of_batch), count(*), (array_agg(p.tenant_id))[count(*)]
    into v_places, ids, owners, lanes, tries, targets, prepares, batched, taken, last_tenant
    from picked p;
  if taken > 0 then
    delete from ai.queue q where q.ctid = any (v_places);
    select jsonb_object_agg(u.lane_id::text, u.mark), bool_or(u.taken = p_limited) into marks, more
      from (select t.lane_id, max(t.id::text) as mark, count(*) as taken from unnest(lanes, ids) t (lane_id, id) group by t.lane_id) u;
  end if;
end
$$;
comment on function ai.pick_in_turn(uuid, integer, integer, integer, jsonb, jsonb, bigint[]) is 'Takes rows of all tenants in turn off the queue. Internal: ai.worker_claim().';

revoke execute on function ai.pick_from_lane(bigint, integer, integer, jsonb, jsonb), ai.pick_in_turn(uuid, integer, integer, integer, jsonb, jsonb, bigint[]) from public;
