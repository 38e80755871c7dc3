-- Of those who ask the same at the same time one asks the provider, and the others wait for its answer.
--
-- A row of ai.leaders is made in the transaction that leases its generation and goes with the lease, so a leader without a
-- lease is none. Lock order: leaders by (tenant_id, cache_key).

-- Of these generations, which are about to be sent, gives those that are to follow another, with its id. The others may be
-- sent: they lead, are not cached, or refresh. Waits for transactions that are electing or resigning the same leader.
create or replace function ai.elect_leaders(p_ids uuid[], p_tenants uuid[]) returns table (generation_id uuid, leader_id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now  timestamptz := ai.now();
  v_ask  record;
  v_free boolean;
begin
  select array_agg(g.id order by g.tenant_id, g.cache_key, g.id) as ids, array_agg(g.tenant_id order by g.tenant_id, g.cache_key, g.id) as tenants,
         array_agg(g.cache_key order by g.tenant_id, g.cache_key, g.id) as keys
    into v_ask
    from unnest(p_ids, p_tenants) w (id, tenant_id)
    join ai.generations g on g.tenant_id = w.tenant_id and g.id = w.id
   where g.cache_key is not null and g.cache is distinct from 'refresh';
  if v_ask.ids is null then
    return;
  end if;

  insert into ai.leaders (tenant_id, cache_key, generation_id)
  select a.tenant_id, a.cache_key, a.id
    from (select distinct on (u.tenant_id, u.cache_key) u.*
            from unnest(v_ask.ids, v_ask.tenants, v_ask.keys) u (id, tenant_id, cache_key) order by u.tenant_id, u.cache_key, u.id) a
   order by a.tenant_id, a.cache_key
  on conflict on constraint leaders_pkey do nothing;

  -- A leader that runs no more, because its end went unnoticed, or a time apart that is over. Looked for only here, under
  -- a snapshot that has seen the end of every election that was waited for.
  select exists (
    select from unnest(v_ask.tenants, v_ask.keys) u (tenant_id, cache_key)
      join ai.leaders l on l.tenant_id = u.tenant_id and l.cache_key = u.cache_key
     where case when l.generation_id is null then l.apart_until <= v_now
                else l.generation_id <> all (v_ask.ids) and not exists (select from ai.leases e where e.generation_id = l.generation_id) end) into v_free;
  if v_free then
    -- Only rows that nobody's end will touch: a settle that waited for one of them might hold what this claim needs next.
    perform from unnest(v_ask.tenants, v_ask.keys) u (tenant_id, cache_key)
      join ai.leaders l on l.tenant_id = u.tenant_id and l.cache_key = u.cache_key
      where case when l.generation_id is null then l.apart_until <= v_now
                 else l.generation_id <> all (v_ask.ids) and not exists (select from ai.leases e where e.generation_id = l.generation_id) end
      order by l.tenant_id, l.cache_key
        for update of l;
    update ai.leaders l
       set generation_id = a.id, apart_until = null
      from (select distinct on (u.tenant_id, u.cache_key) u.*
              from unnest(v_ask.ids, v_ask.tenants, v_ask.keys) u (id, tenant_id, cache_key) order by u.tenant_id, u.cache_key, u.id) a
     where l.tenant_id = a.tenant_id and l.cache_key = a.cache_key
       and case when l.generation_id is null then l.apart_until <= v_now
                else l.generation_id <> all (v_ask.ids) and not exists (select from ai.leases e where e.generation_id = l.generation_id) end;
  end if;

  -- Locked until who follows is in ai.waiting and committed: a leader that ends meanwhile waits, and then sees its followers.
  -- One that has ended since is passed over; who would have followed it is sent.
  return query
    select u.id, l.generation_id
      from unnest(v_ask.ids, v_ask.tenants, v_ask.keys) u (id, tenant_id, cache_key)
      join ai.leaders l on l.tenant_id = u.tenant_id and l.cache_key = u.cache_key
     where l.generation_id <> u.id
     order by l.tenant_id, l.cache_key
       for share of l;
end
$$;
comment on function ai.elect_leaders(uuid[], uuid[]) is 'Gives those of the generations that are to wait for another''s answer, and for whose.';

-- A leader has ended, or goes back to the queue. Call it after ai.write_cache(). Does nothing to a generation that leads
-- nobody. An answer that was not kept will likely not be kept the next time either (it is cut short, calls a tool, was
-- redacted): for a minute everybody asks for themselves, instead of one after the other.
create or replace function ai.resign_leader(p_tenant uuid, p_id uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  c_apart constant interval := interval '1 minute';
  v_one   record;
begin
  select g.cache_key, g.status into v_one from ai.generations g where g.tenant_id = p_tenant and g.id = p_id;
  if v_one.cache_key is null then
    return;
  end if;
  if v_one.status = 'succeeded' and not exists (select from ai.cache_entries e where e.tenant_id = p_tenant and e.key = v_one.cache_key and e.expires_at > ai.now()) then
    update ai.leaders l set generation_id = null, apart_until = ai.now() + c_apart
     where l.tenant_id = p_tenant and l.cache_key = v_one.cache_key and l.generation_id = p_id;
  else
    delete from ai.leaders l where l.tenant_id = p_tenant and l.cache_key = v_one.cache_key and l.generation_id = p_id;
  end if;
end
$$;
comment on function ai.resign_leader(uuid, uuid) is 'Ends a generation''s lead; after an answer that is not kept, everybody asks for themselves for a while.';

revoke execute on function ai.elect_leaders(uuid[], uuid[]), ai.resign_leader(uuid, uuid) from public;
