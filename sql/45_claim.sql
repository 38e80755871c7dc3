-- From the queue to the worker.
--
-- The cursor is the worker's, opaque to it: for lanes a low mark, the last id taken from each. The mark spares the claim from walking the dead entries of what was claimed before, which an old
-- snapshot keeps (0.3 ms against 5 to 20 ms). Of many lanes only the marks of the last few hundred are kept: when there are
-- enough they become the older ones, and those that were older are forgotten. A mark is a hint, because inserts do not commit in the order of their ids: a
-- null cursor looks at everything, and a worker claims with one before it sleeps, after each wake-up and once a second.
-- After which tenant to go on is no part of it, but a setting of the worker's session: where calls take long every claim has a
-- null cursor, and who comes first would be all who come.

-- Takes up to p_limit rows off the queue (sql/44_picking.sql), prepares them (sql/46_prepare.sql) and leases them to the worker
-- (sql/47_lease.sql): all of them or none. Where that fails, ai.worker_claim_one() finds out whose doing it is. Locks: delayed or queue rows (skipping what others hold), counters, then leases (new), then generations. Raises PT404 for a worker that is not registered or was declared
-- dead, PT400 for a limit out of 1 … 10000 and for a cursor that is none.
--
-- The planner settings: every join here goes from a few keys to an index, whatever the statistics of tables that fill
-- and empty all day say, and in the order in which it is written; planning anew for each batch would cost more than running it.
create or replace function ai.worker_claim(p_worker uuid, p_limit integer, p_cursor text)
returns table (generation_id uuid, attempt integer, kind text, dialect text, base_url text, secret text, headers jsonb, options jsonb,
               model text, stream boolean, request jsonb, timeout_ms integer, cursor text, wait_ms integer, retries integer,
               secret_ref bigint, tenant_only boolean, public_only boolean, seal jsonb)
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
  c_limited constant integer := 32;  -- taken at first from a lane with limits: what does not fit goes back, at a price
  v_limited integer := c_limited;    -- twice as many as long as all of it fits
  c_marks   constant integer := 8192;  -- bytes of marks, those of some 150 lanes
  v_more    boolean := false;
  v_batched boolean := false;  -- some have priority batch
  v_taken   integer;
  v_leased  integer := 0;
  c_first   constant uuid := '00000000-0000-0000-0000-000000000000';
  v_now     timestamptz := ai.now();
  v_after   uuid;
  v_marks   jsonb := '{}';
  v_older   jsonb := '{}';
  v_cursor  jsonb := '{}';
  v_share   integer;
  v_batch   record;
  v_ids     uuid[] := '{}';
  v_owners  uuid[] := '{}';
  v_lanes   bigint[] := '{}';
  v_tries   smallint[] := '{}';
  v_targets smallint[] := '{}';
  v_prepares boolean[] := '{}';
  v_leaders uuid[];
  v_until   timestamptz;
  v_is      record;
  v_stopped bigint[] := '{}';
begin
  if p_limit is null or p_limit not between 1 and 10000 then
    raise exception 'a claim takes 1 to 10000 generations' using errcode = 'PT400';
  end if;
  if p_cursor is not null then
    begin
      v_cursor := p_cursor;
      v_marks := coalesce(v_cursor -> 'marks', '{}');
      v_older := coalesce(v_cursor -> 'older', '{}');
      v_limited := least(greatest(coalesce((v_cursor ->> 'limited')::integer, c_limited), c_limited), 10000);
    exception when data_exception then
      v_cursor := null;
    end;
    if jsonb_typeof(v_cursor) is distinct from 'object' or jsonb_typeof(v_marks) <> 'object' or jsonb_typeof(v_older) <> 'object' then
      raise exception 'this is not a cursor' using errcode = 'PT400', hint = 'Null, or what the claim before gave.';
    end if;
  end if;
  -- What there mostly is not, asked at once: each by itself would be a call.
  select exists (select from ai.workers w where w.id = p_worker and w.ended_at is null) as registered,
         exists (select from ai.batches b where b.paused_at is not null) or exists (select from ai.batches b where b.cancelled_at > v_now - interval '2 days') as stopped,
         p_cursor is null and exists (select from ai.delayed d where d.due_at <= v_now) as due,
         p_cursor is null and exists (select from ai.cancellations) as cancelled,
         p_cursor is null and exists (select from ai.parked_lanes) as parked,
         (select case when count(*) = 1 then min(a.lane_id) end from (select o.lane_id from ai.active_lanes o limit 2) a) as only_lane
    into v_is;
  if not v_is.registered then
    raise exception 'this worker is not registered, or was declared dead' using errcode = 'PT404', hint = 'ai.worker_register()';
  end if;
  if v_is.stopped then
    v_stopped := ai.stopped_lanes();
  end if;
  if v_is.due then
    perform ai.queue_what_is_due(v_now);
  end if;
  if v_is.cancelled then
    perform ai.end_cancelled();
  end if;
  if v_is.parked then
    v_until := ai.unpark_lanes(v_now);
  end if;

  if v_is.due or v_is.cancelled or v_is.parked or v_is.stopped then
    v_is.only_lane := null;  -- there may be others by now
  end if;
  if v_is.only_lane is null then
    v_after := ai.claimed_after();
    -- Of more tenants than p_limit each gets one.
    with recursive tenants as (
      (select a.tenant_id from ai.active_lanes a order by a.tenant_id limit 1)
      union all
      select n.tenant_id
        from tenants t
       cross join lateral (select a.tenant_id from ai.active_lanes a where a.tenant_id > t.tenant_id order by a.tenant_id limit 1) n
    )
    select greatest(1, p_limit / greatest(1, count(*))) into v_share from (select from tenants limit p_limit) t;
  end if;
  loop
    if v_is.only_lane is not null then
      v_batch := ai.pick_from_lane(v_is.only_lane, p_limit, v_limited, v_marks, v_older);
    else
      v_batch := ai.pick_in_turn(v_after, p_limit - cardinality(v_ids), v_share, v_limited, v_marks, v_older, v_stopped);
    end if;
    exit when v_batch.taken = 0;
    v_ids := v_ids || v_batch.ids;
    v_owners := v_owners || v_batch.owners;
    v_lanes := v_lanes || v_batch.lanes;
    v_tries := v_tries || v_batch.tries;
    v_targets := v_targets || v_batch.targets;
    v_prepares := v_prepares || v_batch.prepares;
    v_after := v_batch.last_tenant;
    v_batched := v_batched or v_batch.batched;
    v_marks := v_marks || v_batch.marks;
    v_more := v_more or v_batch.more;
    -- Room is left although a tenant had its full share: go on with what the others did not want.
    exit when v_is.only_lane is not null or cardinality(v_ids) >= p_limit or v_batch.taken < v_share;
    v_share := p_limit;
  end loop;
  if v_is.only_lane is null and v_after <> c_first then
    perform set_config('ai.claimed_after', v_after::text, false);
  end if;

  v_taken := cardinality(v_ids);
  if v_taken > 0 then
    if true = any (v_prepares) then
      select p.ids, p.owners, p.lanes, p.tries, p.targets, p.leaders into v_ids, v_owners, v_lanes, v_tries, v_targets, v_leaders
        from ai.prepare_taken(v_ids, v_owners, v_lanes, v_tries, v_targets, v_prepares) p;
    end if;
    if v_batched then
      return query
        select l.generation_id, l.attempt::integer, l.kind, l.dialect, l.base_url, l.secret, l.headers, l.options, l.model, l.stream, l.request,
               l.timeout_ms, null::text, null::integer, null::integer, l.secret_ref, l.tenant_only, l.public_only, l.seal
          from ai.lease_to_batches(p_worker, v_now, v_ids, v_owners, v_lanes, v_tries, v_targets, v_leaders) l;
    else
      return query
        select l.generation_id, l.attempt::integer, l.kind, l.dialect, l.base_url, l.secret, l.headers, l.options, l.model, l.stream, l.request,
               l.timeout_ms, null::text, null::integer, null::integer, l.secret_ref, l.tenant_only, l.public_only, l.seal
          from ai.lease_generations(p_worker, v_now, v_ids, v_owners, v_lanes, v_tries, v_targets, v_leaders) l;
    end if;
    get diagnostics v_leased = row_count;
  end if;

  -- The header, last, because what was just claimed may have gone back to wait for its time.
  if octet_length(v_marks::text) > c_marks then
    v_older := v_marks;
    v_marks := '{}';
  end if;
  -- Counters are locked until the commit: small batches of a tenant with limits would wait for each other's.
  v_limited := case when v_leased < v_taken then c_limited when v_more then least(v_limited * 2, 1024) else v_limited end;
  cursor := jsonb_build_object('marks', v_marks, 'older', v_older, 'limited', v_limited)::text;
  -- What was taken and not leased has ended, waits, or was moved to another lane, where it may lie before the mark. Of a lane with limits
  -- only some were taken: the rest lies behind the mark.
  wait_ms := case when v_leased < v_taken then 1 when v_more then 0 end;
  if p_cursor is null then
    -- Both by an index: there may be millions of rows that wait for tomorrow. Who waits for more than 24 days looks again before.
    select least(v_until, (select d.due_at from ai.delayed d order by d.due_at limit 1), (select p.until from ai.parked_lanes p order by p.until limit 1)),
           (select count(*) from (select from ai.delayed d where d.attempts > 0 limit 10000) r)
      into v_until, retries;
    if wait_ms is null and v_until is not null then
      wait_ms := least(greatest(extract(epoch from v_until - v_now) * 1000, 1), 2147483647)::integer;
    end if;
  end if;
  return next;
end
$$;
comment on function ai.worker_claim(uuid, integer, text) is
  'Leases up to p_limit queued generations to a worker. The last row is a header with the next cursor; see docs/worker-protocol.md.';

-- Behind which tenant the next claim of this session begins its round.
create or replace function ai.claimed_after() returns uuid
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(substring(current_setting('ai.claimed_after', true) from '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')::uuid,
                  '00000000-0000-0000-0000-000000000000')
$$;
comment on function ai.claimed_after() is 'The tenant whose turn it was last in this session. Internal: claims.';

-- Moves to the queue what was delayed until p_now, at most 10,000 a call. Locks those rows, skipping what others hold.
create or replace function ai.queue_what_is_due(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_due bigint[];
begin
  with due as (
    delete from ai.delayed d
     where d.generation_id = any (array(
             select generation_id from ai.delayed where due_at <= p_now order by due_at, generation_id limit 10000 for update skip locked))
    returning d.lane_id, d.generation_id, d.tenant_id, d.attempts, d.target, d.prepare
  ), queued as (
    insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target, prepare)
    select lane_id, generation_id, tenant_id, attempts, target, prepare from due
  )
  select array_agg(lane_id) into v_due from due;
  if v_due is null then
    return 0;
  end if;
  perform ai.list_lanes(array(select distinct unnest(v_due)));
  return cardinality(v_due);
end
$$;
comment on function ai.queue_what_is_due(timestamptz) is 'Moves what has become due from ai.delayed to ai.queue; gives how many.';

-- Ends what was taken off the queue but cannot be called: it was cancelled, its time is over, its member was revoked, its
-- model is gone.
create or replace function ai.end_unclaimable(p_ids uuid[], p_tenants uuid[], p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one record;
begin
  for v_one in
    select g.tenant_id, g.id,
           greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' <= p_now as late,
           exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
                    where m.tenant_id = g.tenant_id and m.user_id = g.user_id and m.enabled) as known,
           exists (select from ai.cancellations c where c.generation_id = p.id) as cancelled
      from unnest(p_ids, p_tenants) p (id, tenant_id)
      join ai.generations g on g.tenant_id = p.tenant_id and g.id = p.id and g.status = 'queued'
     cross join ai.settings s
     where not exists (select from ai.leases l where l.generation_id = p.id)
     order by g.id
  loop
    if v_one.cancelled then
      perform ai.forget_cancellations(v_one.id);
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'cancelled', '{"class": "cancelled", "message": "cancelled between two attempts"}');
    elsif not v_one.known then
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'rejected',
        '{"class": "revoked", "code": "PT403", "message": "the member who asked is no longer enabled"}');
    elsif v_one.late then
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed',
        '{"class": "deadline", "code": "PT504", "message": "no answer within deadline_ms", "hint": "Is a worker running? martlet doctor"}');
    else
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'failed',
        '{"class": "no_model", "code": "PT404", "message": "the model, or every target of the profile, was removed or switched off"}');
    end if;
  end loop;
end
$$;
comment on function ai.end_unclaimable(uuid[], uuid[], timestamptz) is 'Ends generations that were claimed but cannot be called, with the reason.';

revoke execute on function ai.worker_claim(uuid, integer, text), ai.queue_what_is_due(timestamptz), ai.claimed_after(),
  ai.end_unclaimable(uuid[], uuid[], timestamptz) from public;
grant execute on function ai.worker_claim(uuid, integer, text) to ai_worker;
