-- Batches: many generations that are looked at, paused, resumed and cancelled as one. A batch has lanes of its own, so that
-- it is stopped by parking a few lanes and not by touching its rows.

-- For admission. Raises PT404 unless the batch is the tenant's, and the member's own or one that the session may add to; PT409
-- where it was cancelled. Locks nothing: what was inserted while the batch was being cancelled is found by
-- ai.sweep_cancelled_batches(), and never claimed.
create or replace function ai.check_batch(p_tenant uuid, p_user text, p_batch uuid) returns void
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch record;
begin
  select b.user_id, b.cancelled_at into v_batch from ai.batches b where b.tenant_id = p_tenant and b.id = p_batch;
  if not found or (v_batch.user_id <> p_user and not ai.may('inference:read')) then
    raise exception 'there is no batch %', p_batch using errcode = 'PT404', hint = 'select ai.create_batch(''…'');';
  elsif v_batch.cancelled_at is not null then
    raise exception 'this batch was cancelled' using errcode = 'PT409', hint = 'select ai.create_batch(''…'');';
  end if;
end
$$;
comment on function ai.check_batch(uuid, text, uuid) is 'Raises PT404 or PT409 unless this member may add to this batch.';

-- Gives the caller's tenant. Raises PT401 for nobody, PT403 where the caller lacks a permission that is asked for, PT404 unless the batch is the
-- caller's own or the caller has inference:read.
create or replace function ai.check_batch_visible(p_batch uuid, p_permission text default null) returns uuid
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
begin
  select * into v_me from ai.identity();
  if v_me.tenant_id is null then
    raise exception 'this session is nobody' using errcode = 'PT401', detail = (select w.why from ai.whoami() w);
  elsif (p_permission is null or v_me.permissions && array[p_permission, '*']) is not true then
    raise exception 'the permission % is needed', p_permission using errcode = 'PT403', hint = 'select * from ai.whoami();';
  end if;
  if not exists (select from ai.batches b
                  where b.tenant_id = v_me.tenant_id and b.id = p_batch and (b.user_id = v_me.user_id or v_me.permissions && array['inference:read', '*'])) then
    raise exception 'there is no batch % that this session may see', p_batch using errcode = 'PT404', hint = 'select id, name from ai.batches;';
  end if;
  return v_me.tenant_id;
end
$$;
comment on function ai.check_batch_visible(uuid, text) is 'Gives the caller''s tenant; PT404 unless the caller may see this batch.';

-- For the claim: the lanes of which nothing may be taken, although they may be listed: by an insert that was under way while
-- the batch was stopped. Looks into indexes that hold nothing but stopped batches; where there are more of those than a claim should
-- go through, which is what somebody made who means harm, goes through the listed lanes instead. What is left of those that were
-- cancelled longer ago than a transaction may be open was swept.
create or replace function ai.stopped_lanes() returns bigint[]
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  c_many    constant integer := 300;
  v_batches uuid[] := array(select b.id from ai.batches b where b.paused_at is not null limit c_many + 1)
                   || array(select b.id from ai.batches b where b.cancelled_at > ai.now() - interval '2 days' limit c_many + 1);
begin
  if v_batches = '{}' then
    return '{}';
  elsif cardinality(v_batches) <= c_many then
    return array(select l.id from ai.lanes l where l.batch_id = any (v_batches));
  end if;
  return array(select l.id
                 from (select distinct a.lane_id from ai.active_lanes a) a
                 join ai.lanes l on l.id = a.lane_id and l.batch_id is not null
                 join ai.batches b on b.tenant_id = l.tenant_id and b.id = l.batch_id and (b.paused_at is not null or b.cancelled_at > ai.now() - interval '2 days'));
end
$$;
comment on function ai.stopped_lanes() is 'Lanes of batches that are paused or cancelled, all of them or at least those that are listed: nothing of them is to be claimed.';

-- Makes a batch and its lanes, so that inserts only look them up. Paused, if wanted: then it can be filled and estimated
-- before anything is sent. Raises PT400, PT401, PT403.
create or replace function ai.create_batch(name text, metadata jsonb default null, paused boolean default false) returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
  v_id uuid := ai.uuid_v7();
begin
  select * into v_me from ai.require('inference:execute');
  if create_batch.name is null or length(create_batch.name) not between 1 and 200 then
    raise exception 'the name of a batch must have 1 to 200 characters' using errcode = 'PT400';
  end if;
  if octet_length(create_batch.metadata::text) > 65536 then
    raise exception 'the metadata of a batch may have 65536 bytes' using errcode = 'PT400';
  end if;
  insert into ai.batches (tenant_id, id, user_id, name, metadata, created_at, paused_at)
  values (v_me.tenant_id, v_id, v_me.user_id, create_batch.name, create_batch.metadata, ai.now(), case when create_batch.paused then ai.now() end);
  insert into ai.lanes (tenant_id, priority, batch_id)
  select v_me.tenant_id, p, v_id from unnest(array['high', 'normal', 'low', 'batch']) p;
  if create_batch.paused then
    perform ai.park_batch(v_id);
  end if;
  return v_id;
end
$$;
comment on function ai.create_batch(text, jsonb, boolean) is 'Makes a batch and gives its id, for ai.generations.batch_id.';

-- Takes a batch's lanes off the list of the claim and parks them for good, under the counter 0, which no limit has: until a
-- time that never comes, but not infinity, from which PostgreSQL 16 cannot subtract.
-- A lane that an insert lists again is passed over by the claim: ai.stopped_lanes(). Locks the lanes' rows in the list.
create or replace function ai.park_batch(p_batch uuid) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  with lanes as materialized (
    select l.id, l.tenant_id, l.rank from ai.lanes l where l.batch_id = p_batch
  ), unlisted as (
    delete from ai.active_lanes a using lanes l where a.lane_id = l.id
  )
  insert into ai.parked_lanes (lane_id, tenant_id, rank, counter_id, until)
  select l.id, l.tenant_id, l.rank, 0, '9999-12-31 UTC' from lanes l
   where not exists (select from ai.parked_lanes p where p.lane_id = l.id and p.counter_id = 0)
$$;
comment on function ai.park_batch(uuid) is 'Takes the lanes of a batch off the list that the claim goes through.';

-- Nothing more of the batch is claimed; what runs goes on. Doing it twice does no harm. Raises PT401, PT403, PT404; PT409 where the
-- batch was cancelled. Locks the batch.
create or replace function ai.pause_batch(batch uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid := ai.check_batch_visible(batch, 'inference:execute');
begin
  update ai.batches b set paused_at = coalesce(b.paused_at, ai.now()) where b.tenant_id = v_tenant and b.id = batch and b.cancelled_at is null;
  if not found then
    raise exception 'this batch was cancelled' using errcode = 'PT409';
  end if;
  perform ai.park_batch(batch);
end
$$;
comment on function ai.pause_batch(uuid) is 'Pauses a batch: nothing more of it begins.';

-- Raises PT401, PT403, PT404; PT409 where the batch was cancelled. Locks the batch. Of one that is not paused nothing is parked, and
-- nothing is to be listed. Else all its lanes are, empty or not: an insert in flight counts on its lane being parked, and thus listed by this.
-- Lanes that wait for a limit go on waiting for it: claims pass over them until they are unparked.
create or replace function ai.resume_batch(batch uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid := ai.check_batch_visible(batch, 'inference:execute');
  v_batch  record;
begin
  select b.paused_at, b.cancelled_at into v_batch from ai.batches b where b.tenant_id = v_tenant and b.id = batch for no key update;
  if v_batch.cancelled_at is not null then
    raise exception 'this batch was cancelled' using errcode = 'PT409';
  elsif v_batch.paused_at is null then
    return;
  end if;
  update ai.batches b set paused_at = null where b.tenant_id = v_tenant and b.id = batch;
  delete from ai.parked_lanes p using ai.lanes l where l.batch_id = batch and p.lane_id = l.id and p.counter_id = 0;
  insert into ai.active_lanes (lane_id, tenant_id, rank) select l.id, l.tenant_id, l.rank from ai.lanes l where l.batch_id = batch;
  perform ai.wake_workers();
end
$$;
comment on function ai.resume_batch(uuid) is 'Lets a paused batch go on.';

-- Ends a batch: what is queued, delayed or waits ends as cancelled at once, what runs is aborted by its worker, nothing can be
-- added. Gives how many ended and how many are being aborted. Calling it again does no harm. Raises PT401, PT403, PT404. Locks the
-- batch, then queue, delayed and waiting rows, then the generations. A hundred thousand take some seconds: all in one transaction.
create or replace function ai.cancel_batch(batch uuid, out cancelled bigint, out running bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid := ai.check_batch_visible(batch, 'inference:execute');
  v_more   bigint;
begin
  update ai.batches b set cancelled_at = coalesce(b.cancelled_at, ai.now()), paused_at = null where b.tenant_id = v_tenant and b.id = batch;
  perform ai.park_batch(batch);
  cancelled := ai.end_queued_of_batch(v_tenant, batch, true);
  -- A statement of its own: what a claim was just taking, and the one before waited for, is leased by now. What is asked first for a row of the batch
  -- is in its lanes, too: it was stopped with the row.
  with leased as materialized (
    select l.generation_id, l.tenant_id, coalesce(w.channel, 'ai_batches') as channel
      from ai.lanes n
      join ai.leases l on l.lane_id = n.id
      join ai.generations g on g.tenant_id = l.tenant_id and g.id = l.generation_id and g.batch_id = batch
      left join ai.workers w on w.id = l.worker_id
     where n.batch_id = batch
  ), asked as (
    insert into ai.cancellations (generation_id, tenant_id, requested_at) select l.generation_id, l.tenant_id, ai.now() from leased l
  ), told as materialized (
    select pg_notify(c.channel, '') from (select distinct l.channel from leased l) c where (select ai.may_notify())
  )
  select count(*) into running from leased cross join (select count(*) from told) t;
  -- Again, for what failed in between and was to be tried again, and for what a claim took and put back because of a limit. The
  -- batch's lanes are parked, so that this comes to an end. What fails from here on ends as cancelled.
  for v_round in 1 .. 100 loop
    v_more := ai.end_queued_of_batch(v_tenant, batch, true);
    exit when v_more = 0;
    cancelled := cancelled + v_more;
  end loop;
end
$$;
comment on function ai.cancel_batch(uuid) is 'Cancels a batch: ends what is queued, aborts what runs. Gives how many of each.';

-- Ends whatever of a batch is in no worker's hands, and gives how many. Subscribers of a few, and of streams, are notified;
-- whoever waits for one of many others finds its end by reading. Locks the rows in which they wait, then the generations.
-- p_wait: waits for claims that are taking some of them, which never wait for this; only for a caller that has locked the
-- batch, so that no two wait for each other. Else it skips what others hold.
create or replace function ai.end_queued_of_batch(p_tenant uuid, p_batch uuid, p_wait boolean) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  c_few    constant integer := 1000;
  v_lanes  bigint[] := array(select l.id from ai.lanes l where l.batch_id = p_batch);
  v_ended  record;
  v_one    record;
  v_others bigint := 0;
begin
  with queued as (
    delete from ai.queue q
     where q.ctid = any (case when p_wait then array(select o.ctid from ai.queue o where o.lane_id = any (v_lanes) for update)
                              else array(select o.ctid from ai.queue o where o.lane_id = any (v_lanes) for update skip locked) end)
    returning q.tenant_id, q.generation_id
  ), delayed as (
    delete from ai.delayed d
     where d.ctid = any (case when p_wait then array(select o.ctid from ai.delayed o where o.lane_id = any (v_lanes) for update)
                              else array(select o.ctid from ai.delayed o where o.lane_id = any (v_lanes) for update skip locked) end)
    returning d.tenant_id, d.generation_id
  ), ended as (
    update ai.generations g
       set status = 'cancelled', error = '{"class": "cancelled", "message": "its batch was cancelled before it was sent"}',
           last_seq = greatest(g.last_seq, case when g.started_at is not null then ai.last_event(g.id) else 0 end) + 1, finished_at = ai.now(),
           latency_ms = least(greatest(0, extract(epoch from ai.now() - greatest(g.created_at, g.run_after)) * 1000), 2147483647)::integer
      -- By the rows' own tenant: with that of the argument a planner without statistics would begin at the generations.
      from (select q.tenant_id, q.generation_id from queued q union all select d.tenant_id, d.generation_id from delayed d) t
     where g.tenant_id = t.tenant_id and g.id = t.generation_id and g.finished_at is null
    returning g.id, g.user_id, g.last_seq, g.stream, g.batch_id is not null as counts,
              -- A row for which something is asked first is ended below, whatever becomes of that.
              g.batch_id is not null
                and (g.started_at is not null or exists (select from ai.prepared p where p.generation_id = g.id)
                     or exists (select from ai.leaders e where e.tenant_id = g.tenant_id and e.cache_key = g.cache_key and e.generation_id = g.id)) as begun
  ), counted as materialized (
    select e.*, count(*) over () as n from ended e
  ), told as materialized (
    select pg_notify(c.channel, ai.event_payload(e.id, e.last_seq, 'end', '{"status": "cancelled"}'))
      from counted e cross join lateral (values (ai.stream_channel(p_tenant, e.id)), (ai.member_channel(p_tenant, e.user_id))) c (channel)
     where (e.stream or e.n <= c_few) and (select ai.may_notify())
  )
  select count(*) filter (where c.counts) as n, array_agg(c.id) filter (where c.begun) as begun, (select count(*) from told) as told into v_ended from counted c;
  if v_ended.begun is not null then
    perform ai.after_ends(array_fill(p_tenant, array[cardinality(v_ended.begun)]), v_ended.begun);
  end if;

  -- What waits for another one has reservations and followers of its own: one at a time.
  for v_one in select distinct w.generation_id from ai.waiting w where w.tenant_id = p_tenant and w.lane_id = any (v_lanes) order by 1 loop
    perform from ai.generations g where g.tenant_id = p_tenant and g.id = v_one.generation_id for no key update skip locked;
    if found and ai.stop_waiting(p_tenant, v_one.generation_id) then
      perform ai.end_generation(p_tenant, v_one.generation_id, 'cancelled', '{"class": "cancelled", "message": "its batch was cancelled before it was sent"}');
      v_others := v_others + 1;
    end if;
  end loop;
  return v_ended.n + v_others;
end
$$;
comment on function ai.end_queued_of_batch(uuid, uuid, boolean) is 'Ends what is queued, delayed or waiting of a cancelled batch; gives how many.';

-- For upkeep: ends what got into the queue of a cancelled batch after it was cancelled, or waits for what is asked first, by an
-- insert that was under way or a retry. The claim never takes it. No transaction is open for two days; after that the batch's
-- lanes are forgotten. Gives how many it ended.
create or replace function ai.sweep_cancelled_batches() returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_batch record;
  v_count bigint := 0;
begin
  for v_batch in
    select b.tenant_id, b.id
      from ai.batches b
     where b.cancelled_at > ai.now() - interval '2 days'
       and exists (select from ai.lanes l
                    where l.batch_id = b.id
                      and (exists (select from ai.queue q where q.lane_id = l.id offset 0) or l.id = any (array(select distinct w.lane_id from ai.waiting w))))
     order by 1, 2
  loop
    begin
      v_count := v_count + ai.end_queued_of_batch(v_batch.tenant_id, v_batch.id, false);
    exception when others then
      -- What is wrong with one must not keep the rest of maintenance from being done. What only says `again` goes on.
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'batch % cannot be ended: %', v_batch.id, sqlstate;
    end;
  end loop;
  delete from ai.parked_lanes p
   using ai.lanes l join ai.batches b on b.tenant_id = l.tenant_id and b.id = l.batch_id
   where p.counter_id = 0 and l.id = p.lane_id and b.cancelled_at <= ai.now() - interval '2 days';
  return v_count;
end
$$;
comment on function ai.sweep_cancelled_batches() is 'Ends what was queued into batches after they were cancelled; gives how many.';

revoke execute on function ai.check_batch(uuid, text, uuid), ai.check_batch_visible(uuid, text), ai.stopped_lanes(), ai.create_batch(text, jsonb, boolean),
  ai.park_batch(uuid), ai.pause_batch(uuid), ai.resume_batch(uuid), ai.cancel_batch(uuid), ai.end_queued_of_batch(uuid, uuid, boolean),
  ai.sweep_cancelled_batches() from public;
grant execute on function ai.create_batch(text, jsonb, boolean), ai.pause_batch(uuid), ai.resume_batch(uuid), ai.cancel_batch(uuid) to ai_user;

-- objects

drop policy if exists visible on ai.batches;
create policy visible on ai.batches for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and user_id = coalesce((select ai.only_user()), user_id));
grant select on ai.batches to ai_user;
