-- What workers do for provider batches, one step at a time. A step is taken in a transaction of its own before anything is sent
-- (the intent), and reported in another. Between the two a worker may die at any moment, so what it may have done is found
-- again at the provider, by the name that the batch has there, before anything is done twice:
--
--   upload    a file with the requests (OpenAI)          lost: find_file, then upload again; a file costs nothing
--   create    the batch                                  lost: find; created again only when it is certain that it is not there
--   poll, cancel, collect, find, find_file               may be done any number of times
--
--   gathering ──time, or full──▶ sending: (upload →) create ──▶ running: poll … collect ──▶ ending: what is left ──▶ ended
--                                   │    refused: members go on singly, as if never sent          expired, lost, cancelled
--
-- A result counts once, because what it ends is the member's lease. A batch that is not there any more, or is silent about a
-- member, has perhaps answered it: such members are booked as unknown, with an estimate, and counted in missing.
--
-- Locks: the provider batch, then as ai.conclude_attempts(). Claims skip provider batches that are locked.

-- Milliseconds until a running batch is asked after again: a tenth of its age, between the setting and twenty times that.
create or replace function ai.batch_poll_ms(p_age interval, p_poll_ms integer) returns bigint
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select least(greatest(extract(epoch from p_age) * 100, p_poll_ms), p_poll_ms * 20::bigint)::bigint $$;
comment on function ai.batch_poll_ms(interval, integer) is 'How long to wait before a provider is asked again after a batch of this age.';

-- The first thing to do for a batch of this dialect, and after its creation was lost.
create or replace function ai.first_batch_action(p_dialect text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select case when p_dialect in ('openai') then 'upload' else 'create' end $$;
comment on function ai.first_batch_action(text) is 'upload where the requests go into a file, else create.';

-- Takes back steps whose worker is gone, or does not know of them although they are its own (the answer that gave them was lost
-- with its connection). p_known: [[batch, step], …]. Gives how many.
create or replace function ai.lose_batch_steps(p_worker uuid, p_known jsonb, p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  update ai.provider_batches b
     set worker_id = null, action = case b.action when 'upload' then 'find_file' when 'create' then 'find' else b.action end, due_at = p_now
   where b.id = any (array(
           select o.id from ai.provider_batches o
            where o.worker_id is not null and o.state <> 'ended'
              and (not exists (select from ai.workers w where w.id = o.worker_id and w.ended_at is null)
                   or o.worker_id = p_worker and not p_known @> jsonb_build_array(jsonb_build_array(o.id, o.step)))
              for update skip locked));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.lose_batch_steps(uuid, jsonb, timestamptz) is 'Takes back steps of provider batches that nobody does any more.';

-- Ends the gathering of batches whose time has come or that are full. What was asked by who has been switched off since, or whose
-- tenant has, goes back to the queue, where the next claim ends it. A batch that has lost all its members ends.
create or replace function ai.close_batches(p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_one   record;
  v_ids   uuid[];
  v_count integer;
begin
  for v_one in
    select b.id, v.dialect from ai.provider_batches b left join ai.providers v on v.id = b.provider_id
     where b.state = 'gathering' and b.due_at <= p_now order by b.due_at limit 100 for update of b skip locked
  loop
    for v_round in 1 .. 50 loop
      v_ids := array(select l.generation_id from ai.leases l where l.batched and l.worker_id = v_one.id
                        and not exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
                                         where m.tenant_id = l.tenant_id and m.user_id = l.user_id and m.enabled) order by 1 limit 1000);
      exit when v_ids = '{}';
      perform ai.conclude_members(v_one.id, v_ids, 'release');
    end loop;
    update ai.provider_batches b
       set state = 'sending', action = ai.first_batch_action(v_one.dialect), closed_at = p_now, due_at = p_now,
           requests = (select count(*) from ai.leases l where l.batched and l.worker_id = b.id)
     where b.id = v_one.id
    returning b.requests into v_count;
    if v_count = 0 then
      perform ai.end_batch(v_one.id, 'cancelled', 'release', p_now);
    end if;
  end loop;
end
$$;
comment on function ai.close_batches(timestamptz) is 'Lets provider batches that have gathered be sent.';

-- What apps have cancelled: members that were not sent yet end at once; a batch of which all members are cancelled is cancelled at
-- the provider. (Of others the provider cancels none alone: they end with the batch.)
create or replace function ai.obey_batch_cancellations(p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_one record;
  v_ids uuid[];
begin
  if not exists (select from ai.cancellations) then
    return;
  end if;
  for v_one in
    select b.id, b.state, b.action, b.worker_id, b.intent_at
      from ai.provider_batches b
     where b.id = any (array(select distinct l.worker_id from ai.cancellations c
                           cross join lateral (select o.worker_id from ai.leases o where o.generation_id = c.generation_id and o.batched offset 0) l))
       and b.cancel_at is null and b.state in ('gathering', 'sending', 'running')
     order by b.id for update skip locked
  loop
    begin
      if v_one.state = 'gathering' then
        for v_round in 1 .. 50 loop
          v_ids := array(select l.generation_id from ai.leases l where l.batched and l.worker_id = v_one.id
                            and exists (select from ai.cancellations c where c.generation_id = l.generation_id) order by 1 limit 1000);
          exit when v_ids = '{}';
          perform ai.conclude_members(v_one.id, v_ids, 'release');
        end loop;
      elsif not exists (select from ai.leases l where l.batched and l.worker_id = v_one.id
                          and not exists (select from ai.cancellations c where c.generation_id = l.generation_id)) then
        if v_one.intent_at is null and v_one.worker_id is null then
          -- It never was at the provider.
          perform ai.end_batch(v_one.id, 'cancelled', 'release', p_now);
        else
          update ai.provider_batches b
             set cancel_at = p_now, action = case when b.worker_id is null and b.state = 'running' and not b.guessed then 'cancel' else b.action end,
                 due_at = case when b.worker_id is null and b.state = 'running' then p_now else b.due_at end
           where b.id = v_one.id;
        end if;
      end if;
    exception when others then
      -- What is wrong with one batch must not keep the others from their steps. What only says `again` goes on.
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'members of provider batch % cannot be cancelled: %', v_one.id, sqlstate;
    end;
  end loop;
end
$$;
comment on function ai.obey_batch_cancellations(timestamptz) is 'Does what cancelling generations means for the provider batches that they are in.';

-- Batches that nobody waits for any longer. What certainly is not at the provider goes back as never sent; what runs is
-- cancelled first, and has an hour for that.
create or replace function ai.give_up_batches(p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_one record;
begin
  for v_one in
    select b.id, b.state, b.action, b.cancel_at, b.guessed, b.intent_at
      from ai.provider_batches b
     where b.state in ('sending', 'running') and b.worker_id is null and b.give_up_at <= p_now
     order by b.id limit 100 for update skip locked
  loop
    if v_one.state = 'sending' and v_one.action in ('upload', 'find_file', 'create') then
      perform ai.end_batch(v_one.id, 'refused', 'release', p_now);
    elsif v_one.state = 'running' and v_one.cancel_at is null and not v_one.guessed then
      update ai.provider_batches b set cancel_at = p_now, action = 'cancel', due_at = p_now, give_up_at = p_now + interval '1 hour' where b.id = v_one.id;
    else
      perform ai.end_batch(v_one.id, 'lost', 'lost', p_now);
    end if;
  end loop;
end
$$;
comment on function ai.give_up_batches(timestamptz) is 'Ends the waiting for provider batches whose time is over.';

-- Gives a worker up to p_limit steps to do, then a header (batch_id null) with wait_ms: until there may be another one although
-- nobody notifies ai_batches; null: nothing is known. p_known: the steps that the worker is doing, [[batch, step], …].
-- Raises PT404 for a worker that is not registered or was declared dead, PT400 for other arguments than these.
create or replace function ai.worker_batch_steps(p_worker uuid, p_limit integer, p_known jsonb default '[]')
returns table (batch_id uuid, step integer, action text, dialect text, base_url text, secret text, headers jsonb, options jsonb, model text, kind text,
               details jsonb, timeout_ms integer, secret_ref bigint, tenant_only boolean, public_only boolean, wait_ms bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_now    timestamptz := ai.now();
  v_until  timestamptz;
  v_more   boolean;
  v_others boolean;
begin
  if p_limit is null or p_limit not between 0 and 100 or jsonb_typeof(p_known) is distinct from 'array' then
    raise exception 'ai.worker_batch_steps() takes a worker, 0 to 100 steps and the steps that it is doing' using errcode = 'PT400';
  end if;
  perform ai.check_worker(p_worker);
  if not exists (select from ai.provider_batches b where b.state <> 'ended') then
    return next;
    return;
  end if;
  perform ai.lose_batch_steps(p_worker, p_known, v_now);
  perform ai.obey_batch_cancellations(v_now);
  perform ai.close_batches(v_now);
  perform ai.give_up_batches(v_now);
  v_more := ai.end_members(v_now);

  return query
    with taken as (
      update ai.provider_batches b
         set worker_id = p_worker, step = b.step + 1, step_at = v_now,
             intent_at = case when b.action = 'create' then v_now else b.intent_at end,
             secret = coalesce(b.secret, ai.provider_secret(b.provider_id))
       where b.id = any (array(select o.id from ai.provider_batches o
                                where o.state in ('sending', 'running') and o.worker_id is null and o.due_at <= v_now
                                order by o.due_at limit p_limit for update skip locked))
      returning b.*
    )
    select t.id, t.step, t.action, coalesce(v.dialect, ''), coalesce(v.base_url, ''), t.secret, coalesce(v.headers, '{}'), t.options, t.wire_name, t.kind,
           jsonb_build_object('external_id', t.external_id, 'file_id', t.file_id, 'output_id', t.output_id, 'errors_id', t.errors_id,
                              'requests', t.requests, 'since', floor(extract(epoch from t.closed_at))),
           case t.action when 'upload' then 300000 when 'create' then 300000 when 'collect' then 3600000 else 60000 end,
           k.found[1], v.tenant_id is not null, v.tenant_id is not null and not s.private_providers, null::bigint
      from taken t
     cross join ai.settings s
      left join ai.providers v on v.id = t.provider_id
     cross join lateral (select ai.secret_ref(case when v.tenant_id is null or v.tenant_id = t.tenant_id then t.tenant_id end, t.secret, v.tenant_id is not null) as found
                          offset 0) k;

  select min(b.due_at) filter (where b.worker_id is null), coalesce(bool_or(b.worker_id is not null and b.worker_id <> p_worker), false)
    into v_until, v_others
    from ai.provider_batches b where b.state <> 'ended';
  batch_id := null;
  wait_ms := case when v_more then 1
                  else least(case when v_until is not null then greatest(ceil(extract(epoch from v_until - v_now) * 1000), 50)::bigint end,
                             -- Whose worker may be dead by then.
                             case when v_others then (select s.lease_ms from ai.settings s) end) end;
  return next;
end
$$;
comment on function ai.worker_batch_steps(uuid, integer, jsonb) is
  'Steps of provider batches for a worker to do, with a header that says when to ask again; see docs/worker-protocol.md.';

-- The requests of a batch that is being uploaded or created, in pages: up to p_limit of those behind p_after. None where the step
-- is not this worker's any more. What was cancelled meanwhile is left out.
create or replace function ai.worker_batch_requests(p_worker uuid, p_batch uuid, p_step integer, p_after uuid, p_limit integer)
returns table (generation_id uuid, attempt integer, request jsonb)
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
  select r.generation_id, r.attempt::integer, r.request
    from ai.provider_batches b
    join ai.batched_requests r on r.batch_id = b.id and (p_after is null or r.generation_id > p_after)
   where b.id = p_batch and b.worker_id = p_worker and b.step = p_step
     and exists (select from ai.leases l where l.generation_id = r.generation_id and l.worker_id = b.id and l.attempt = r.attempt)
   order by r.generation_id
   limit least(greatest(p_limit, 1), 1000)
$$;
comment on function ai.worker_batch_requests(uuid, uuid, integer, uuid, integer) is 'The requests of a provider batch that a worker is sending, in pages.';

revoke execute on function ai.batch_poll_ms(interval, integer), ai.first_batch_action(text), ai.lose_batch_steps(uuid, jsonb, timestamptz),
  ai.close_batches(timestamptz), ai.obey_batch_cancellations(timestamptz), ai.give_up_batches(timestamptz),
  ai.worker_batch_steps(uuid, integer, jsonb), ai.worker_batch_requests(uuid, uuid, integer, uuid, integer) from public;
grant execute on function ai.worker_batch_steps(uuid, integer, jsonb), ai.worker_batch_requests(uuid, uuid, integer, uuid, integer) to ai_worker;
