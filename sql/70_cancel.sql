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
       from (values (ai.stream_channel(p_tenant, p_id)), (ai.member_channel(p_tenant, v_user))) c (channel);
  end if;
end
$$;
comment on function ai.end_generation(uuid, uuid, text, jsonb) is 'Ends an unleased generation with a status and an error, and announces it.';

-- Cancels a generation of the caller. What is queued ends at once; what runs is aborted by its worker, which is
-- notified, and ends as cancelled with what had arrived, or as succeeded if the answer was there first. Gives the
-- status at return: cancelled, running (being aborted), or the end that it already had.
-- Raises PT401, PT404. Locks: the queue row or the lease, then the generation.
create or replace function ai.cancel(p_id uuid) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant  uuid := ai.check_visible(p_id);
  v_channel text;
  v_status  text;
  c_error   constant jsonb := '{"class": "cancelled", "message": "cancelled before it was sent"}';
begin
  -- A generation that is on its way from one of these tables to another is in neither for the statement that looks:
  -- so look again until it is found or has ended. Each move needs a worker's statement, so this does not go on.
  for v_try in 1 .. 100 loop
    delete from ai.queue q where q.lane_id = any (array(select l.id from ai.lanes l where l.tenant_id = v_tenant)) and q.generation_id = p_id;
    if found then
      perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
      return 'cancelled';
    end if;
    delete from ai.delayed d where d.generation_id = p_id;
    if found then
      perform ai.end_generation(v_tenant, p_id, 'cancelled', c_error);
      return 'cancelled';
    end if;
    update ai.leases l set cancel_requested_at = coalesce(l.cancel_requested_at, ai.now())
      from ai.workers w where l.generation_id = p_id and w.id = l.worker_id
    returning w.channel into v_channel;
    if found then
      perform pg_notify(v_channel, '');
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

revoke execute on function ai.end_generation(uuid, uuid, text, jsonb), ai.cancel(uuid) from public;
grant execute on function ai.cancel(uuid) to ai_user;
