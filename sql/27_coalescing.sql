-- Of those who ask the same at the same time one asks the provider, and the others wait for its answer.
--
-- A row of ai.leaders says who was elected for a key; it leads as long as it is leased. So whatever ends a lease ends the
-- lead, without a word and without touching this table, which claims lock: what settles must not wait for claims.
-- What a leader's end must wait for is a claim that is about to follow it, or it would answer all but the newest followers.
-- That claim holds a share lock on the leader's lease, which is the first thing that a settle locks.

-- Of these generations, which are about to be sent, gives those that are to follow another, with its id. The others may be
-- sent: they lead, are not cached, refresh, or ask what each has to ask for itself at present.
-- Locks: leaders in the order of (tenant_id, cache_key), then leases of leaders in the order of generation ids, for share.
-- Waits for claims that ask the same and for settles that end a leader; neither waits for this one then.
create or replace function ai.elect_leaders(p_ids uuid[], p_tenants uuid[]) returns table (generation_id uuid, leader_id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_now   timestamptz := ai.now();
  v_ask   record;
  v_led   uuid[];
  v_alive uuid[];
begin
  select array_agg(g.id order by g.tenant_id, g.cache_key, g.id) as ids, array_agg(g.tenant_id order by g.tenant_id, g.cache_key, g.id) as tenants,
         array_agg(g.cache_key order by g.tenant_id, g.cache_key, g.id) as keys
    into v_ask
    from unnest(p_ids, p_tenants) w (id, tenant_id)
    join ai.generations g on g.tenant_id = w.tenant_id and g.id = w.id
   -- Nobody waits for what may take a day.
   where g.cache_key is not null and g.cache is distinct from 'refresh' and g.priority <> 'batch'
     and not exists (select from ai.unshared u where u.tenant_id = g.tenant_id and u.cache_key = g.cache_key and u.until > v_now);
  if v_ask.ids is null then
    return;
  end if;

  insert into ai.leaders (tenant_id, cache_key, generation_id, elected_at)
  select a.tenant_id, a.cache_key, a.id, v_now
    from (select distinct on (u.tenant_id, u.cache_key) u.*
            from unnest(v_ask.ids, v_ask.tenants, v_ask.keys) u (id, tenant_id, cache_key) order by u.tenant_id, u.cache_key, u.id) a
   order by a.tenant_id, a.cache_key
  on conflict on constraint leaders_pkey do nothing;

  v_led := array(
    select l.generation_id
      from (select distinct u.tenant_id, u.cache_key from unnest(v_ask.tenants, v_ask.keys) u (tenant_id, cache_key)) k
      join ai.leaders l on l.tenant_id = k.tenant_id and l.cache_key = k.cache_key
     order by l.tenant_id, l.cache_key
       for update of l);
  v_alive := array(
    select e.generation_id from ai.leases e where e.generation_id = any (v_led) order by e.generation_id for share) || v_ask.ids;
  if not v_led <@ v_alive then
    update ai.leaders l
       set generation_id = a.id, elected_at = v_now
      from (select distinct on (u.tenant_id, u.cache_key) u.*
              from unnest(v_ask.ids, v_ask.tenants, v_ask.keys) u (id, tenant_id, cache_key) order by u.tenant_id, u.cache_key, u.id) a
     where l.tenant_id = a.tenant_id and l.cache_key = a.cache_key and l.generation_id <> all (v_alive);
  end if;

  return query
    select u.id, l.generation_id
      from unnest(v_ask.ids, v_ask.tenants, v_ask.keys) u (id, tenant_id, cache_key)
      join ai.leaders l on l.tenant_id = u.tenant_id and l.cache_key = u.cache_key
     where l.generation_id <> u.id;
end
$$;
comment on function ai.elect_leaders(uuid[], uuid[]) is 'Gives those of the generations that are to wait for another''s answer, and for whose.';

-- A generation has ended or goes back to the queue. Call it after ai.write_caches(). An answer that was not kept will likely
-- not be kept the next time either (it is cut short, calls a tool, was redacted): for a minute everybody asks for
-- themselves, instead of one after the other. Waits for nobody.
create or replace function ai.resign_leader(p_tenant uuid, p_id uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  c_apart constant interval := interval '1 minute';
begin
  insert into ai.unshared (tenant_id, cache_key, generation_id, until)
  select g.tenant_id, g.cache_key, g.id, ai.now() + c_apart
    from ai.generations g
    join ai.leaders l on l.tenant_id = g.tenant_id and l.cache_key = g.cache_key and l.generation_id = g.id
   where g.tenant_id = p_tenant and g.id = p_id and g.status = 'succeeded'
     and not exists (select from ai.cache_entries e where e.tenant_id = g.tenant_id and e.key = g.cache_key and e.expires_at > ai.now())
  on conflict do nothing;
end
$$;
comment on function ai.resign_leader(uuid, uuid) is 'After an answer of a leader that is not kept, everybody asks for themselves for a while.';

revoke execute on function ai.elect_leaders(uuid[], uuid[]), ai.resign_leader(uuid, uuid) from public;
