-- What the end of a generation means for others: the cache, those that waited for it, its conversation, its documents.

-- Called once with all that ended in a transaction and may concern others. Locks, after the ended generations themselves: what
-- their parents wait for and then the parents, in the order of their ids, then the rest of each end in turn. Does nothing to what has not ended.
create or replace function ai.after_ends(p_tenants uuid[], p_ids uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one record;
begin
  for v_one in
    select g.tenant_id, g.parent_id, g.id, g.purpose, g.status, g.output, g.metadata
      from unnest(p_tenants, p_ids) u (tenant_id, id)
      join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.finished_at is not null and g.purpose in ('query', 'moderation')
     order by g.parent_id, g.id
  loop
    perform ai.continue_parent(v_one.tenant_id, v_one.parent_id, v_one.id, v_one.purpose, v_one.status, v_one.output, (v_one.metadata ->> 'guardrail')::bigint);
  end loop;

  perform ai.forget_redactions(p_tenants, p_ids);
  begin
    perform ai.write_caches(p_tenants, p_ids);
  exception when others then
    -- An answer that cannot be kept is an answer all the same; and what one tenant cannot keep, others can.
    if ai.says_again(sqlstate) then
      raise;
    end if;
    for v_one in select u.tenant_id, array_agg(u.tenant_id) as tenants, array_agg(u.id) as ids from unnest(p_tenants, p_ids) u (tenant_id, id) group by u.tenant_id order by u.tenant_id loop
      begin
        perform ai.write_caches(v_one.tenants, v_one.ids);
      exception when others then
        if ai.says_again(sqlstate) then
          raise;
        end if;
        raise warning 'answers of tenant % could not be kept: %', v_one.tenant_id, sqlstate;
      end;
    end loop;
  end;

  for v_one in
    select g.tenant_id, g.id, g.purpose, g.status, g.cache_key
      from unnest(p_tenants, p_ids) u (tenant_id, id)
      join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.finished_at is not null
     order by g.id
  loop
    delete from ai.prepared p where p.generation_id = v_one.id;
    if v_one.purpose in ('chunks', 'rows') then
      begin
        perform ai.end_embedding_job(v_one.tenant_id, v_one.id, v_one.status);
      exception when others then
        -- The books are not to be lost for a document. What only says `again` goes on.
        if ai.says_again(sqlstate) then
          raise;
        end if;
        raise warning 'what follows the end of generation % failed: %', v_one.id, sqlstate;
      end;
    end if;
    if v_one.cache_key is not null then
      perform ai.stop_leading(v_one.tenant_id, v_one.id);
    end if;
  end loop;

  -- Last, because an app that chats holds its conversation while it may cancel a generation of the passes before.
  for v_one in
    select g.tenant_id, g.id
      from unnest(p_tenants, p_ids) u (tenant_id, id)
      join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.conversation_id is not null and g.status = 'succeeded'
     order by g.id
  loop
    perform ai.record_answer(v_one.tenant_id, v_one.id);
  end loop;
end
$$;
comment on function ai.after_ends(uuid[], uuid[]) is 'Does what the ends of these generations mean for the cache, their parents, followers, conversations and documents.';

-- A child has ended: its parent goes on once all its children have, or is rejected by a verdict. Without the vector of its
-- question a parent goes on too: it is searched for by its words, and marked. Locks all that the parent waits for, so that of
-- two children that end at once the second sees that the first is gone; then, as ai.cancel() does, the parent.
create or replace function ai.continue_parent(
  p_tenant uuid, p_parent uuid, p_child uuid, p_purpose text, p_status text, p_output text, p_guardrail bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_verdict record;
  v_place   record;
begin
  perform from ai.waiting w where w.generation_id = p_parent order by w.for_id for update;
  delete from ai.waiting w where w.generation_id = p_parent and w.for_id = p_child returning w.* into v_place;
  if not found then
    return;  -- it was cancelled or rejected meanwhile
  end if;
  if p_purpose = 'moderation' then
    select * into v_verdict from ai.judge(p_guardrail, p_status, p_output);
    if v_verdict.stage is not null then
      update ai.generations g set stages = coalesce(g.stages, '[]') || v_verdict.stage where g.tenant_id = p_tenant and g.id = p_parent;
    end if;
    if v_verdict.rejected is not null then
      delete from ai.waiting w where w.generation_id = p_parent;
      perform ai.end_generation(p_tenant, p_parent, 'rejected', v_verdict.rejected);
      return;
    end if;
  end if;
  if exists (select from ai.waiting w where w.generation_id = p_parent) then
    return;
  end if;
  insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
  values (v_place.lane_id, p_parent, p_tenant, v_place.attempts, v_place.target, true);
  perform ai.list_lanes(array[v_place.lane_id]);
  perform ai.wake_workers();
end
$$;
comment on function ai.continue_parent(uuid, uuid, uuid, text, text, text, bigint) is 'Queues or rejects a generation of which a child has ended.';

-- Those that were asked the same while this one ran: answered if the answer is in the cache now, else queued again, where the
-- first to be claimed leads the others. The leader has resigned before, which waits for claims that are about to follow it.
create or replace function ai.release_followers(p_tenant uuid, p_leader uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one   record;
  v_hit   record;
  v_lanes bigint[] := '{}';
begin
  for v_one in
    with followers as (
      delete from ai.waiting w where w.for_id = p_leader returning w.*
    )
    select f.*, g.user_id, g.kind, g.prompt, g.messages, g.model, g.profile, g.params, g.template, g.template_version, g.collection, g.cache
      from followers f
      join ai.generations g on g.tenant_id = f.tenant_id and g.id = f.generation_id and g.finished_at is null
     where f.tenant_id = p_tenant
     order by f.generation_id
  loop
    select * into v_hit
      from ai.find_exact(v_one.tenant_id, v_one.user_id, v_one.kind, v_one.prompt, v_one.messages, v_one.model, v_one.profile, v_one.params, v_one.template,
                         v_one.template_version, v_one.collection, v_one.cache) f;
    if v_one.counters is not null then
      -- Answered: its request counts, nothing else. Asked again: it reserves anew. Later, because this may be the transaction of
      -- an app that cancels, which must not hold counters.
      perform ai.settle_later(jsonb_build_array(jsonb_build_object('generation_id', v_one.generation_id, 'counters', to_jsonb(v_one.counters), 'amounts', to_jsonb(v_one.amounts),
        'claimed_at', v_one.claimed_at, 'tokens', 0, 'cost', 0, 'sent', coalesce(v_hit.hit, false), 'ended', true)));
    end if;
    if v_hit.hit then
      perform ai.end_from_cache(v_one.tenant_id, v_one.generation_id, 'coalesced',
        (to_jsonb(v_hit) - 'cache_key') || jsonb_build_object('stage', ai.stage('cache', 'coalesced', 'the same was being asked', null, jsonb_build_object('with', p_leader))));
    else
      insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
      values (v_one.lane_id, v_one.generation_id, v_one.tenant_id, v_one.attempts, v_one.target, true);
      v_lanes := v_lanes || v_one.lane_id;
    end if;
  end loop;
  if v_lanes <> '{}' then
    perform ai.list_lanes(array(select distinct l from unnest(v_lanes) l));
    perform ai.wake_workers();
  end if;
end
$$;
comment on function ai.release_followers(uuid, uuid) is 'Answers or queues those that waited for the same answer.';

-- A leader has ended or goes back to wait: nobody waits for one that waits itself.
create or replace function ai.stop_leading(p_tenant uuid, p_id uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform ai.resign_leader(p_tenant, p_id);
  perform ai.release_followers(p_tenant, p_id);
end
$$;
comment on function ai.stop_leading(uuid, uuid) is 'Ends the lead of a generation and answers or queues its followers.';

-- Takes a generation out of ai.waiting, gives back what it had reserved, and cancels what was asked for it alone, as ai.cancel() does: what is
-- queued ends at once, what runs is aborted by its worker. False: it did not wait.
create or replace function ai.stop_waiting(p_tenant uuid, p_id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one   record;
  v_found boolean := false;
begin
  for v_one in delete from ai.waiting w where w.generation_id = p_id and w.tenant_id = p_tenant returning w.* loop
    v_found := true;
    if v_one.counters is not null and ai.settle_later(jsonb_build_array(jsonb_build_object('generation_id', p_id, 'counters', to_jsonb(v_one.counters),
         'amounts', to_jsonb(v_one.amounts), 'claimed_at', v_one.claimed_at, 'tokens', 0, 'cost', 0, 'sent', false, 'ended', true))) then
      perform ai.wake_workers();
    end if;
    if exists (select from ai.generations g where g.tenant_id = p_tenant and g.id = v_one.for_id and g.parent_id = p_id and g.finished_at is null) then
      delete from ai.delayed d where d.generation_id = any (array(select o.generation_id from ai.delayed o where o.generation_id = v_one.for_id for update skip locked));
      if found or ai.unqueue(p_tenant, v_one.for_id) then
        perform ai.end_generation(p_tenant, v_one.for_id, 'cancelled', '{"class": "cancelled", "message": "nobody waits for it any more"}');
      else
        -- What a claim is taking at this moment is as good as running: its worker hears of it with its heartbeat.
        insert into ai.cancellations (generation_id, tenant_id, requested_at) values (v_one.for_id, p_tenant, ai.now());
        perform pg_notify(coalesce(w.channel, 'ai_batches'), '')
           from ai.leases l left join ai.workers w on w.id = l.worker_id
          where l.generation_id = v_one.for_id and (select ai.may_notify());
      end if;
    end if;
  end loop;
  return v_found;
end
$$;
comment on function ai.stop_waiting(uuid, uuid) is 'Takes a generation out of ai.waiting; false: it was not there.';

-- Ends generations that wait for another, in the order given, as late. Gives how many.
create or replace function ai.end_waiting(p_tenants uuid[], p_ids uuid[]) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one   record;
  v_count integer := 0;
begin
  for v_one in select u.* from unnest(p_tenants, p_ids) with ordinality u (tenant_id, id, n) order by u.n loop
    if ai.stop_waiting(v_one.tenant_id, v_one.id) then
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed',
        '{"class": "deadline", "code": "PT504", "message": "what it waited for did not come within deadline_ms"}');
      v_count := v_count + 1;
    end if;
  end loop;
  return v_count;
end
$$;
comment on function ai.end_waiting(uuid[], uuid[]) is 'Ends generations that waited for another for too long; gives how many.';

-- Ends what has waited for another until its deadline. Gives how many; at most 1,000 a call.
create or replace function ai.end_overdue(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_all   record;
  v_count integer := 0;
begin
  select array_agg(w.tenant_id) as tenants, array_agg(w.generation_id) as ids into v_all
    from (select distinct o.tenant_id, o.generation_id from ai.waiting o where o.deadline_at <= p_now order by o.generation_id limit 1000) w;
  begin
    return ai.end_waiting(v_all.tenants, v_all.ids);
  exception when others then
    -- What is wrong with one must not keep the rest of maintenance from being done. What only says `again` goes on.
    if ai.says_again(sqlstate) then
      raise;
    end if;
  end;
  for v_at in 1 .. cardinality(v_all.ids) loop
    begin
      v_count := v_count + ai.end_waiting(array[v_all.tenants[v_at]], array[v_all.ids[v_at]]);
    exception when others then
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'generation % cannot be ended: %', v_all.ids[v_at], sqlstate;
    end;
  end loop;
  return v_count;
end
$$;
comment on function ai.end_overdue(timestamptz) is 'Ends generations that waited for another beyond their deadline; gives how many.';

-- Takes rows off their lanes of the queue and ends them (ai.end_unclaimable()). Gives how many. Locks them, skipping what others hold, then their generations.
create or replace function ai.end_queued(p_lanes bigint[], p_ids uuid[], p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_ids    uuid[];
  v_owners uuid[];
begin
  with gone as (
    delete from ai.queue q
     where q.ctid = any (array(select o.ctid from unnest(p_lanes, p_ids) u (lane_id, generation_id)
                                 join ai.queue o on o.lane_id = u.lane_id and o.generation_id = u.generation_id
                                order by o.generation_id for update of o skip locked))
    returning q.generation_id, q.tenant_id
  )
  select array_agg(g.generation_id), array_agg(g.tenant_id) into v_ids, v_owners from gone g;
  if v_ids is null then
    return 0;
  end if;
  perform ai.end_unclaimable(v_ids, v_owners, p_now);
  return cardinality(v_ids);
end
$$;
comment on function ai.end_queued(bigint[], uuid[], timestamptz) is 'Ends what is queued; gives how many.';

-- Ends, as a claim would (ai.end_unclaimable()), what is queued beyond its deadline where claims do not come for long: in lanes that are
-- parked for a limit, and in those of paused batches. Gives how many. A call reads at most c_rows of these rows in the order of their key,
-- and ends at most c_ends. The next one goes on behind them, and behind the last lane at the first again: the place is kept in the session
-- (ai.overdue_after), because upkeep is always done on the same connection; who has none begins at the first lane.
-- To the other lanes claims come, but for long none while all workers are full. What has waited longest there is mostly what is late: of c_rows in all each
-- lane has its share, from its first row on and at most c_heads, and what lies behind is left to claims. Of more lanes than c_lanes chance takes some.
-- Locks: the queue rows that it ends, skipping what others hold, then their generations.
create or replace function ai.end_queued_overdue(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set join_collapse_limit = 1
as $$
declare
  c_rows  constant integer := 10000;
  c_ends  constant integer := 1000;
  c_lanes constant integer := 1000;
  c_heads constant integer := 1000;
  c_first constant uuid := '00000000-0000-0000-0000-000000000000';
  c_last  constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  v_place text := coalesce(current_setting('ai.overdue_after', true), '');
  v_lane  bigint := 0;
  v_after uuid := c_first;
  v_lanes bigint[];
  v_next  text := '';
  v_late  bigint[];  -- lanes of what is late
  v_ids   uuid[];
  v_one   record;
  v_count integer := 0;
begin
  if v_place ~ '^[0-9]{1,18}:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    v_lane := split_part(v_place, ':', 1);
    v_after := split_part(v_place, ':', 2);
  end if;
  v_lanes := array((select distinct p.lane_id from ai.parked_lanes p where p.lane_id >= v_lane order by p.lane_id limit c_rows)
                   union
                   -- Those of paused batches are parked, too, but where an insert has listed them again.
                   (select a.lane_id from ai.active_lanes a
                      join ai.lanes l on l.id = a.lane_id and l.batch_id is not null
                      join ai.batches b on b.tenant_id = l.tenant_id and b.id = l.batch_id and b.paused_at is not null
                     where a.lane_id >= v_lane and exists (select from ai.batches o where o.paused_at is not null)
                     order by a.lane_id limit c_rows)
                   order by 1 limit c_rows);
  if v_lanes <> '{}' or exists (select from ai.active_lanes) then
    with looked as materialized (
      select l.id as lane_id, q.generation_id, q.tenant_id
        from unnest(v_lanes) l (id)
       cross join lateral (select o.generation_id, o.tenant_id from ai.queue o
                            where o.lane_id = l.id and o.generation_id > case when l.id = v_lane then v_after else c_first end
                            order by o.generation_id limit c_rows) q
       limit c_rows
    ), heads as materialized (
      select l.lane_id, q.generation_id, q.tenant_id
        from (select a.lane_id, least(c_heads, c_rows / count(*) over ()) as share
                from (select a.lane_id from (select distinct o.lane_id from ai.active_lanes o) a order by random() limit c_lanes) a) l
       cross join lateral (select o.generation_id, o.tenant_id from ai.queue o where o.lane_id = l.lane_id order by o.generation_id limit l.share) q
    ), late as materialized (
      select k.lane_id, k.generation_id, k.in_turn, row_number() over (partition by k.in_turn order by k.lane_id, k.generation_id) as n
        from (select o.*, true as in_turn from looked o union all select o.*, false from heads o) k
       cross join lateral (select from ai.settings s
                             join ai.generations g on g.tenant_id = k.tenant_id and g.id = k.generation_id and g.status = 'queued'
                            where greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' <= p_now offset 0) g
    )
    select l.lanes, l.ids,
           case when l.last is not null then l.last
                when r.n = c_rows then (select k.lane_id || ':' || k.generation_id from looked k order by k.lane_id desc, k.generation_id desc limit 1)
                when cardinality(v_lanes) = c_rows then v_lanes[c_rows] || ':' || c_last
                else '' end
      into v_late, v_ids, v_next
      from (select count(*) as n from looked) r
     cross join (select array_agg(t.lane_id order by t.n) as lanes, array_agg(t.generation_id order by t.n) as ids,
                        max(t.lane_id || ':' || t.generation_id) filter (where t.in_turn and t.n = c_ends) as last
                   from late t where t.n <= c_ends) l;
  end if;
  if v_next <> v_place then
    perform set_config('ai.overdue_after', v_next, false);
  end if;
  if v_ids is null then
    return 0;
  end if;

  begin
    return ai.end_queued(v_late, v_ids, p_now);
  exception when others then
    -- What is wrong with one must not keep the others from their end. What only says `again` goes on.
    if ai.says_again(sqlstate) then
      raise;
    end if;
  end;
  for v_one in select u.lane_id, u.id from unnest(v_late, v_ids) u (lane_id, id) order by u.id loop
    begin
      v_count := v_count + ai.end_queued(array[v_one.lane_id], array[v_one.id], p_now);
    exception when others then
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'generation % cannot be ended: %', v_one.id, sqlstate;
    end;
  end loop;
  return v_count;
end
$$;
comment on function ai.end_queued_overdue(timestamptz) is 'Ends what is queued beyond its deadline in parked lanes, paused batches and the heads of the others; gives how many.';

revoke execute on function ai.after_ends(uuid[], uuid[]), ai.continue_parent(uuid, uuid, uuid, text, text, text, bigint), ai.release_followers(uuid, uuid),
  ai.stop_leading(uuid, uuid), ai.stop_waiting(uuid, uuid), ai.end_waiting(uuid[], uuid[]), ai.end_overdue(timestamptz),
  ai.end_queued(bigint[], uuid[], timestamptz), ai.end_queued_overdue(timestamptz) from public;
