-- Streams: gap-free sequence numbers for each generation, NOTIFY as the fast path, ai.read_stream() as the truth.
--
-- Events are numbered from 1: running, delta, retry, reset (text so far is void, it starts again) and at last end. What
-- is announced is committed: the NOTIFY leaves with the transaction that wrote the event. LISTEN knows no row-level
-- security, so channel names are capabilities: unguessable, and given only to who may see the generation.

-- The one way in which a channel is named, from the key, the tenant and what it is about. Without a SET clause, so that it
-- is inlined where thousands are named a second; granted to nobody.
create or replace function ai.channel_name(p_key bytea, p_tenant uuid, p_about bytea) returns text
language sql immutable parallel safe security invoker
as $$ select 'ai_' || left(encode(sha256(p_key || uuid_send(p_tenant) || p_about), 'hex'), 40) $$;
comment on function ai.channel_name(bytea, uuid, bytea) is 'Name of a channel: 160 bits that nobody knows without the key.';

-- The channel of a generation's stream.
create or replace function ai.stream_channel(p_tenant uuid, p_id uuid) returns name
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$ select ai.channel_name(k.key, p_tenant, uuid_send(p_id))::name from ai.realtime_key k $$;
comment on function ai.stream_channel(uuid, uuid) is 'Channel of a generation''s events. Not for apps: ai.subscribe(id).';

-- The channel of all state changes of a member's generations.
create or replace function ai.member_channel(p_tenant uuid, p_user text) returns name
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select ai.channel_name(k.key, p_tenant, convert_to(p_user, 'UTF8') || '\x00')::name from ai.realtime_key k
$$;
comment on function ai.member_channel(uuid, text) is 'Channel of a member''s state changes. Not for apps: ai.subscribe().';

-- {"id", "seq", "type", …data}. PostgreSQL refuses payloads of 8,000 bytes; one that would come near it goes without
-- its data and says "more": true, so that the subscriber reads the event.
create or replace function ai.event_payload(p_id uuid, p_seq integer, p_type text, p_data jsonb) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_payload text := (jsonb_build_object('id', p_id, 'seq', p_seq, 'type', p_type) || coalesce(p_data, '{}'))::text;
begin
  if octet_length(v_payload) > 7900 then
    return jsonb_build_object('id', p_id, 'seq', p_seq, 'type', p_type, 'more', true)::text;
  end if;
  return v_payload;
end
$$;
comment on function ai.event_payload(uuid, integer, text, jsonb) is 'The NOTIFY payload of an event, below 8,000 bytes.';

-- The payload of an end as ai.event_payload() gives it, at a sixth of the price: every generation has one. Stable, as to_json()
-- is: else it would not be inlined.
create or replace function ai.end_payload(p_id uuid, p_seq integer, p_status text, p_finish_reason text) returns text
language sql stable parallel safe security invoker
as $$
  select '{"id": "' || p_id || '", "seq": ' || p_seq || ', "type": "end", "status": "' || p_status || '"'
           || coalesce(', "finish_reason": ' || to_json(left(p_finish_reason, 200)), '') || '}'
$$;
comment on function ai.end_payload(uuid, integer, text, text) is 'The NOTIFY payload of an end.';

-- The payload of a delta as ai.event_payload() gives it: thousands are published a second. An escaped text has at most six bytes
-- for each of its own. Inlined, too.
create or replace function ai.delta_payload(p_id uuid, p_seq integer, p_text text) returns text
language sql stable parallel safe security invoker
as $$
  select case when octet_length(p_text) <= 1200
              then '{"id": "' || p_id::text || '", "seq": ' || p_seq::text || ', "text": ' || to_json(p_text)::text || ', "type": "delta"}'
              else ai.event_payload(p_id, p_seq, 'delta', jsonb_build_object('text', p_text)) end
$$;
comment on function ai.delta_payload(uuid, integer, text) is 'The NOTIFY payload of a delta, below 8,000 bytes.';

-- The data of an event as read_stream() and NOTIFY show it. Without a SET clause, and stable as what it calls, so that it is inlined
-- where a thousand are read at once; granted to nobody.
create or replace function ai.event_data(p_type text, p_data text) returns jsonb
language sql stable parallel safe security invoker
as $$
  select case p_type when 'delta' then jsonb_build_object('text', p_data)
                     when 'running' then '{}'::jsonb else jsonb_build_object('reason', p_data) end
$$;
comment on function ai.event_data(text, text) is 'A stored event''s data as JSON.';

-- After a claim: writes and announces `running` for those of the generations that stream.
create or replace function ai.announce_start(p_ids uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_key  bytea := (select k.key from ai.realtime_key k);
  v_sent bigint;
begin
  with events as (
    insert into ai.stream_events (generation_id, seq, tenant_id, attempt, type, data)
    select l.generation_id, coalesce((select e.seq from ai.stream_events e where e.generation_id = l.generation_id order by e.seq desc limit 1), 0) + 1,
           l.tenant_id, l.attempt, 'running', ''
      from ai.leases l where l.generation_id = any (p_ids) and l.stream
    returning generation_id, seq, tenant_id
  )
  select count(pg_notify(ai.channel_name(v_key, n.tenant_id, uuid_send(n.generation_id)), n.payload))
         + count(pg_notify(ai.channel_name(v_key, n.tenant_id, convert_to(n.user_id, 'UTF8') || '\x00'), n.payload)) into v_sent
    from (select e.generation_id, e.tenant_id, (select l.user_id from ai.leases l where l.generation_id = e.generation_id) as user_id,
                 '{"id": "' || e.generation_id || '", "seq": ' || e.seq || ', "type": "running", "status": "running"}' as payload
            from events e offset 0) n
   where (select ai.may_notify());
end
$$;
comment on function ai.announce_start(uuid[]) is 'Writes and announces the event `running` of generations that stream.';

-- The number of a generation's last stored event, 0 for none. Two writers that compute the same number collide on the
-- primary key, and one of them fails whole: that is what keeps a late worker from writing into a stream.
create or replace function ai.last_event(p_id uuid) returns integer
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$ select coalesce((select e.seq from ai.stream_events e where e.generation_id = p_id order by e.seq desc limit 1), 0) $$;
comment on function ai.last_event(uuid) is 'Sequence number of a generation''s last stored event; 0: none.';

-- The channel of the state changes (running of streamed ones, retry, reset, end) of all of the caller's own generations.
-- Raises PT401 for nobody.
create or replace function ai.subscribe() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_me record;
begin
  select * into v_me from ai.identity();
  if v_me.tenant_id is null then
    raise exception 'this session is nobody: it has nothing to subscribe to' using errcode = 'PT401', detail = (select w.why from ai.whoami() w);
  end if;
  return ai.member_channel(v_me.tenant_id, v_me.user_id);
end
$$;
comment on function ai.subscribe() is 'The channel to LISTEN to for the state changes of all the caller''s generations.';

-- Raises PT401, PT403 where the caller lacks a permission that is asked for, PT404 unless it sees the generation: its own, or, with inference:read,
-- any of the tenant. Volatile, so that it sees a row that the very statement inserts: insert … returning ai.subscribe(id).
create or replace function ai.check_visible(p_id uuid, p_permission text default null) returns uuid
language plpgsql volatile security definer
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
  if not exists (select from ai.generations g
                  where g.tenant_id = v_me.tenant_id and g.id = p_id and (g.user_id = v_me.user_id or v_me.permissions && array['inference:read', '*'])) then
    raise exception 'there is no generation % that this session may see', p_id using errcode = 'PT404';
  end if;
  return v_me.tenant_id;
end
$$;
comment on function ai.check_visible(uuid, text) is 'Gives the caller''s tenant; PT404 unless the caller may see this generation.';

-- The channel on which a generation's events are announced. LISTEN first, then read: ai.read_stream(id) gives what came
-- before. Raises PT401 for nobody, PT404 for a generation that the caller does not see, or null.
create or replace function ai.subscribe(p_id uuid) returns text
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select ai.stream_channel(ai.check_visible(p_id), p_id) $$;
comment on function ai.subscribe(uuid) is 'The channel to LISTEN to for a generation''s events. PT404 where the caller may not see it.';

-- The events after p_after_seq, in order, at most 1,000; the last is `end` once the generation has ended. With
-- p_wait_ms (0 to 30000) it waits that long for the first of them, for callers that cannot LISTEN; it holds no lock
-- but a snapshot while it waits. In a transaction above READ COMMITTED it waits in vain: what comes meanwhile is seen by the next one. Events
-- are kept as long as ai.partitioning says; the end is kept with the generation.
create or replace function ai.read_stream(p_id uuid, p_after_seq integer default 0, p_wait_ms integer default 0)
returns table (seq integer, type text, data jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_tenant uuid := ai.check_visible(p_id);
  v_until  timestamptz := clock_timestamp() + p_wait_ms * interval '1 ms';
  v_pause  double precision := 0.002;
begin
  if p_after_seq is null or p_wait_ms is null or p_wait_ms not between 0 and 30000 then
    raise exception 'p_after_seq must be a number, and p_wait_ms one from 0 to 30000' using errcode = 'PT400';
  end if;
  loop
    return query
      with stored as (
        select e.seq, e.type, ai.event_data(e.type, e.data) as data
          from ai.stream_events e
         where e.generation_id = p_id and e.tenant_id = v_tenant and e.seq > p_after_seq
         order by e.seq limit 1000
      )
      select s.seq, s.type, s.data from stored s
      union all
      select g.last_seq, 'end', jsonb_strip_nulls(jsonb_build_object('status', g.status, 'finish_reason', g.finish_reason, 'error', g.error))
        from ai.generations g
       where g.tenant_id = v_tenant and g.id = p_id and g.finished_at is not null and g.last_seq > p_after_seq
         and (select count(*) from stored) < 1000
      order by 1;
    exit when found or clock_timestamp() >= v_until;
    perform pg_sleep(v_pause);
    v_pause := least(v_pause * 1.5, 0.05);
  end loop;
end
$$;
comment on function ai.read_stream(uuid, integer, integer) is
  'Events of a generation after p_after_seq, in order, at most 1,000; waits up to p_wait_ms for the first. PT400, PT401; PT404 where the caller may not see it.';

-- Adds deltas to streams and announces them. [{"id", "attempt", "part", "text"}], one element a generation; a part that
-- is there already, because the worker did not learn that it was taken, is left out; without a number none is. Gives the attempts that are no
-- longer this worker's, which were ignored. One statement; no lock but the new rows. Raises PT400 for no array; 23505 where another writer took the
-- same number: nothing was written, send it again.
create or replace function ai.worker_publish(p_worker uuid, p_deltas jsonb)
returns table (generation_id uuid, attempt integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set plan_cache_mode = force_generic_plan
set join_collapse_limit = 1
as $$
#variable_conflict use_column
declare
  v_key bytea := (select k.key from ai.realtime_key k);
begin
  if p_worker is null or jsonb_typeof(p_deltas) is distinct from 'array' then
    raise exception 'ai.worker_publish() takes a worker and a JSON array of deltas' using errcode = 'PT400';
  end if;
  return query
    with deltas as materialized (
      -- Each by the key of its lease: a join would look at all leases of the worker for each of its deltas.
      select d.id, d.attempt, d.part, d.text, l.tenant_id, l.stream
        from jsonb_to_recordset(p_deltas) d (id uuid, attempt integer, part integer, text text)
        left join lateral (select l.attempt, l.worker_id, l.tenant_id, l.stream from ai.leases l where l.generation_id = d.id offset 0) l
               on l.attempt = d.attempt and l.worker_id = p_worker
    ), events as (
      insert into ai.stream_events (generation_id, seq, tenant_id, attempt, part, type, data)
      select d.id, coalesce(e.seq, 0) + 1, d.tenant_id, d.attempt, coalesce(d.part, 0), 'delta', d.text
        from deltas d
        left join lateral (select e.seq, e.attempt, e.part from ai.stream_events e where e.generation_id = d.id
                            order by e.seq desc limit 1) e on true
       where d.stream and d.text <> '' and (d.part is null or e.attempt is distinct from d.attempt or e.part < d.part)
      returning generation_id, seq, tenant_id, data
    ), sent as (
      select count(pg_notify(ai.channel_name(v_key, e.tenant_id, uuid_send(e.generation_id)), ai.delta_payload(e.generation_id, e.seq, e.data)))
        from events e where (select ai.may_notify())
    )
    select d.id, d.attempt from sent, deltas d where d.tenant_id is null;
end
$$;
comment on function ai.worker_publish(uuid, jsonb) is
  'Stores and announces text of running attempts of this worker; gives the attempts that are no longer its.';

revoke execute on function ai.channel_name(bytea, uuid, bytea), ai.stream_channel(uuid, uuid), ai.member_channel(uuid, text), ai.event_payload(uuid, integer, text, jsonb),
  ai.event_data(text, text), ai.end_payload(uuid, integer, text, text), ai.delta_payload(uuid, integer, text), ai.announce_start(uuid[]), ai.last_event(uuid), ai.subscribe(), ai.subscribe(uuid), ai.check_visible(uuid, text),
  ai.read_stream(uuid, integer, integer), ai.worker_publish(uuid, jsonb) from public;
grant execute on function ai.subscribe(), ai.subscribe(uuid), ai.read_stream(uuid, integer, integer) to ai_user;
grant execute on function ai.worker_publish(uuid, jsonb) to ai_worker;
