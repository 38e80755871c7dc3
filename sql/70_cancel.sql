-- Ends that no attempt brings: cancelling, and what cannot be called.

-- Ends a generation that nobody has leased, and announces it. Locks the generation. Does nothing to one that has ended.
create or replace function ai.end_generation(p_tenant uuid, p_id uuid, p_status text, p_error jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seq  integer := ai.last_event(p_id) + 1;
  v_user text;
begin
  update ai.generations g
     set status = p_status, error = p_error, last_seq = v_seq, finished_at = ai.now(),
         latency_ms = least(greatest(0, extract(epoch from ai.now() - greatest(g.created_at, g.run_after)) * 1000), 2147483647)::integer
   where g.tenant_id = p_tenant and g.id = p_id and g.finished_at is null
  returning g.user_id into v_user;
  if found then
    perform pg_notify(c.channel, ai.event_payload(p_id, v_seq, 'end', jsonb_build_object('status', p_status)))
       from (values (ai.stream_channel(p_tenant, p_id)), (ai.member_channel(p_tenant, v_user))) c (channel)
      where (select ai.may_notify());
    perform ai.after_ends(array[p_tenant], array[p_id]);
  end if;
end
$$;
comment on function ai.end_generation(uuid, uuid, text, jsonb) is 'Ends an unleased generation with a status and an error, and announces it.';

-- The lane in which a generation lies if it is queued, as far as limits have not changed meanwhile: of all that its tenant ever had, batches' and
-- members', the one to look into first.
create or replace function ai.lane_of(p_tenant uuid, p_id uuid) returns bigint
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select ai.existing_lane(g.tenant_id, g.priority,
                          coalesce(g.batch_id, (select o.batch_id from ai.generations o where o.tenant_id = g.tenant_id and o.id = g.parent_id)),
                          g.user_id, g.kind, g.model, g.profile, g.api_key_id)
    from ai.generations g
   where g.tenant_id = p_tenant and g.id = p_id
$$;
comment on function ai.lane_of(uuid, uuid) is 'The lane in which a generation most likely lies; null: there is none.';

-- Cancels a generation of the caller. What is queued ends at once; what runs is aborted by its worker, which is
-- notified, and ends as cancelled with what had arrived, or as succeeded if the answer was there first. Gives the
-- status at return: cancelled, running (being aborted), or the end that it already had.
-- Raises PT401, PT403, PT404. Locks: the queue, delayed or waiting row, then the generation; of what runs nothing, because the app's transaction may
-- stay open for long. So an attempt that fails at this very moment may go back to the queue unawares: from there
-- ai.worker_claim() takes it as cancelled.
create or replace function ai.cancel(p_id uuid) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant  uuid := ai.check_visible(p_id, 'inference:execute');
  v_channel text;
  v_status  text;
  c_error   constant jsonb := '{"class": "cancelled", "message": "cancelled before it was sent"}';
begin
  -- A generation that is on its way from one of these tables to another is in neither for the statement that looks:
  -- so look again until it is found or has ended. Each move needs a worker's statement, so this does not go on.
  for v_try in 1 .. 100 loop
    delete from ai.queue q
     where q.lane_id = any (case v_try when 1 then array[ai.lane_of(v_tenant, p_id)] else array(select l.id from ai.lanes l where l.tenant_id = v_tenant) end)
       and q.generation_id = p_id;
    if found then
      perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
      return 'cancelled';
    end if;
    delete from ai.delayed d where d.generation_id = p_id;
    if found then
      perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
      return 'cancelled';
    end if;
    if ai.stop_waiting(v_tenant, p_id) then
      perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
      return 'cancelled';
    end if;
    select coalesce(w.channel, 'ai_batches') into v_channel from ai.leases l left join ai.workers w on w.id = l.worker_id where l.generation_id = p_id;
    if found then
      insert into ai.cancellations (generation_id, tenant_id, requested_at) values (p_id, v_tenant, ai.now());
      perform pg_notify(v_channel, '') where ai.may_notify();
      return 'running';
    end if;
    select g.status into v_status from ai.generations g where g.tenant_id = v_tenant and g.id = p_id and g.finished_at is not null;
    if found then
      return v_status;
    end if;
  end loop;
  -- Not in the queue at all: an orphan, as ai.requeue_orphans() would find it.
  perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
  return 'cancelled';
end
$$;
comment on function ai.cancel(uuid) is 'Cancels a generation; gives its status at return. PT404 where the caller may not see it.';

-- Forgets the requests to cancel a generation. Of several requests two sessions may have locked some each, so it waits for
-- none: what another holds, it forgets itself, or the next ai.end_cancelled() does.
create or replace function ai.forget_cancellations(p_id uuid) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  delete from ai.cancellations c
   where c.ctid = any (array(select o.ctid from ai.cancellations o where o.generation_id = p_id for update skip locked))
$$;
comment on function ai.forget_cancellations(uuid) is 'Forgets the requests to cancel a generation, but for those that somebody holds.';

-- Takes a generation off the queue, unless somebody holds its row; false: it was not there.
create or replace function ai.unqueue(p_tenant uuid, p_id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  for v_look in 1 .. 2 loop
    delete from ai.queue q
     where q.ctid = any (array(
       select o.ctid from ai.queue o
        where o.lane_id = any (case v_look when 1 then array[ai.lane_of(p_tenant, p_id)] else array(select l.id from ai.lanes l where l.tenant_id = p_tenant) end)
          and o.generation_id = p_id
          for update skip locked));
    if found then
      return true;
    end if;
  end loop;
  return false;
end
$$;
comment on function ai.unqueue(uuid, uuid) is 'Takes a generation off the queue; false: it was not there, or is held.';

-- Ends generations that were asked to be cancelled, in the order given, where they are queued or delayed, and forgets the requests of those that have ended.
-- Gives how many it ended. Locks the queue or delayed rows, skipping what others hold.
create or replace function ai.end_requested(p_tenants uuid[], p_ids uuid[]) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one   record;
  v_count integer := 0;
begin
  for v_one in select u.* from unnest(p_tenants, p_ids) with ordinality u (tenant_id, id, n) order by u.n loop
    delete from ai.delayed d
     where d.generation_id = any (array(select o.generation_id from ai.delayed o where o.generation_id = v_one.id for update skip locked));
    if found or ai.unqueue(v_one.tenant_id, v_one.id) then
      perform ai.end_generation(v_one.tenant_id, v_one.id, 'cancelled', '{"class": "cancelled", "message": "cancelled between two attempts"}');
      v_count := v_count + 1;
    elsif exists (select from ai.generations g where g.tenant_id = v_one.tenant_id and g.id = v_one.id and g.finished_at is null) then
      continue;  -- on its way from one table to another, or held by somebody: the next call finds it
    end if;
    perform ai.forget_cancellations(v_one.id);
  end loop;
  return v_count;
end
$$;
comment on function ai.end_requested(uuid[], uuid[]) is 'Ends what is to be cancelled and does not run; gives how many.';

-- Ends what was asked to be cancelled while its attempt was failing, at most 100 a call, because claims call it; and forgets requests of what has
-- ended, which may be as many as an app asks for at the last moment. Gives how many it ended. Locks the requests and the queue or delayed rows, skipping
-- what others hold.
create or replace function ai.end_cancelled() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_all   record;
  v_count integer := 0;
begin
  delete from ai.cancellations c
   where c.ctid = any (array(
     select o.ctid from ai.cancellations o
      where not exists (select from ai.leases l where l.generation_id = o.generation_id offset 0)  -- by its key, no join
        and not exists (select from ai.generations g where g.tenant_id = o.tenant_id and g.id = o.generation_id and g.finished_at is null offset 0)
      limit 10000 for update skip locked));
  select array_agg(r.tenant_id) as tenants, array_agg(r.generation_id) as ids into v_all
    from (select distinct on (c.generation_id) c.generation_id, c.tenant_id
            from (select o.generation_id, o.tenant_id from ai.cancellations o
                   where not exists (select from ai.leases l where l.generation_id = o.generation_id offset 0)
                   limit 100 for update skip locked) c
           order by c.generation_id) r;
  begin
    return ai.end_requested(v_all.tenants, v_all.ids);
  exception when others then
    -- What is wrong with one must not keep the others from their end, nor any worker from its claim. What only says `again` goes on.
    if ai.says_again(sqlstate) then
      raise;
    end if;
  end;
  for v_at in 1 .. cardinality(v_all.ids) loop
    begin
      v_count := v_count + ai.end_requested(array[v_all.tenants[v_at]], array[v_all.ids[v_at]]);
    exception when others then
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'generation % cannot be cancelled: %', v_all.ids[v_at], sqlstate;
    end;
  end loop;
  return v_count;
end
$$;
comment on function ai.end_cancelled() is 'Ends generations that were cancelled between two attempts; gives how many.';

revoke execute on function ai.end_generation(uuid, uuid, text, jsonb), ai.cancel(uuid), ai.lane_of(uuid, uuid), ai.forget_cancellations(uuid),
  ai.unqueue(uuid, uuid), ai.end_requested(uuid[], uuid[]), ai.end_cancelled() from public;
grant execute on function ai.cancel(uuid) to ai_user;
