-- Forgetting, step by step: how a mark goes through the tables (sql/83_forgetting.sql says why so).

-- Transactions that are open in this database, by their virtual ids: also those that have written nothing yet, and prepared ones.
create or replace function ai.open_transactions() returns text[]
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(o.id), '{}')
    from (select l.virtualtransaction as id
            from pg_locks l
            join pg_stat_activity a on a.pid = l.pid
            join pg_database d on d.oid = a.datid and d.datname = current_database()
           where l.locktype = 'virtualxid' and l.virtualxid = l.virtualtransaction and l.pid <> pg_backend_pid()
          union all
          select 'prepared' from pg_prepared_xacts p where p.database = current_database()) o
$$;
comment on function ai.open_transactions() is 'Transactions that are open in this database, but for the caller''s.';

create or replace function ai.added_up(p_sums jsonb, p_more jsonb) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select p_sums || coalesce((select jsonb_object_agg(m.key, m.value::bigint + coalesce((p_sums ->> m.key)::bigint, 0)) from jsonb_each_text(p_more) m), '{}')
$$;
comment on function ai.added_up(jsonb, jsonb) is 'Counts by what, added to others.';

-- Goes one step with people of one tenant who have come equally far, not beyond p_stop, where others are. The caller holds
-- their marks. Locks: as ai.erase_some().
create or replace function ai.forget_step(p_tenant uuid, p_users text[], p_stage smallint, p_place text, p_stop text, p_in_app boolean) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set plan_cache_mode = force_custom_plan
as $$
declare
  c_look constant integer := 4000;  -- so many rows are looked at
  c_most constant integer := 500;   -- and so many erased: one that is queued takes half a millisecond
  v_from uuid;
  v_to   uuid;
  v_seen record;
  v_keys text[];
  v_last text;
  v_one  record;
  v_sums jsonb := '{}';
begin
  if p_stage < 4 then
    v_from := coalesce(nullif(p_place, ''), '00000000-0000-0000-0000-000000000000');
    v_to := coalesce(p_stop, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
  end if;
  if p_stage = 0 then
    select array_agg(l.id order by l.id) filter (where l.user_id = any (p_users))::text[] as hits, (array_agg(l.id order by l.id desc))[1]::text as last, count(*) as n into v_seen
      from (select g.id, g.user_id from ai.generations g where g.tenant_id = p_tenant and g.id > v_from and g.id <= v_to order by g.id limit c_look) l;
  elsif p_stage = 1 then
    select array_agg(l.id order by l.id) filter (where array[l.user_id, l.live_user_id] && p_users)::text[] as hits, (array_agg(l.id order by l.id desc))[1]::text as last, count(*) as n into v_seen
      from (select d.id, d.user_id, d.live_user_id from ai.documents d where d.tenant_id = p_tenant and d.id > v_from and d.id <= v_to order by d.id limit c_look) l;
  elsif p_stage = 2 then
    select array_agg(l.id order by l.id) filter (where l.user_id = any (p_users))::text[] as hits, (array_agg(l.id order by l.id desc))[1]::text as last, count(*) as n into v_seen
      from (select b.id, b.user_id from ai.batches b where b.tenant_id = p_tenant and b.id > v_from and b.id <= v_to order by b.id limit c_look) l;
  elsif p_stage = 3 then
    select array_agg(distinct l.id) filter (where l.user_id = any (p_users))::text[] as hits, (array_agg(l.id order by l.id desc))[1]::text as last, count(*) as n into v_seen
      from (select c.generation_id as id, c.user_id from ai.llm_calls c
             where c.tenant_id = p_tenant and c.generation_id > v_from and c.generation_id <= v_to order by c.generation_id limit c_look) l;
  else
    select array_agg(encode(l.key, 'hex') order by l.key) filter (where l.user_id = any (p_users)) as hits, encode((array_agg(l.key order by l.key desc))[1], 'hex') as last,
           count(*) as n into v_seen
      from (select e.key, e.user_id from ai.cache_entries e
             where e.tenant_id = p_tenant and e.key > decode(p_place, 'hex') and (p_stop is null or e.key <= decode(p_stop, 'hex')) order by e.key limit c_look) l;
  end if;
  v_keys := coalesce(v_seen.hits, '{}');
  v_last := case when v_seen.n = c_look then v_seen.last else p_stop end;
  if p_stage = 3 and v_seen.n = c_look then
    v_keys := v_keys || v_last;  -- of which only some calls may have been looked at
  elsif p_stage <> 3 and cardinality(v_keys) > c_most then
    v_keys := v_keys[1:c_most];
    v_last := v_keys[c_most];
  end if;

  for v_one in select * from ai.erase_some(p_tenant, p_users, p_stage, v_keys, p_in_app) loop
    v_sums := v_sums || jsonb_build_object(v_one.user_id, ai.added_up(coalesce(v_sums -> v_one.user_id, '{}'), jsonb_build_object(v_one.what, v_one.erased)));
  end loop;
  update ai.forgotten f
     set stage = case when v_last is null then p_stage + 1 else p_stage end, place = coalesce(v_last, ''), erased = ai.added_up(f.erased, v_sums -> f.user_id)
   where f.tenant_id = p_tenant and f.user_id = any (p_users);
end
$$;
comment on function ai.forget_step(uuid, text[], smallint, text, text, boolean) is 'Erases the next rows of people who are being forgotten and have come equally far.';

-- Tries again what was left of one person, and erases conversations and files. The caller holds the mark.
create or replace function ai.forget_left(p_tenant uuid, p_user text, p_in_app boolean) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_one  record;
  v_sums jsonb := jsonb_build_object('conversations', ai.erase_conversations(p_tenant, p_user), 'artifacts', ai.erase_artifacts(p_tenant, p_user));
begin
  for v_one in
    select e.what, sum(e.erased) as erased
      from (select (case l.what when 'generation' then 0 when 'document' then 1 when 'batch' then 2 else 4 end)::smallint as stage, array_agg(l.id order by l.id) as keys
              from (select o.what, o.id from ai.forgotten_left o where o.tenant_id = p_tenant and o.user_id = p_user order by o.what, o.id limit 500) l
             group by 1) w
     cross join lateral ai.erase_some(p_tenant, array[p_user], w.stage, w.keys, p_in_app) e
     group by 1
  loop
    v_sums := v_sums || jsonb_build_object(v_one.what, v_one.erased);
  end loop;
  update ai.forgotten f set erased = ai.added_up(f.erased, v_sums) where f.tenant_id = p_tenant and f.user_id = p_user;
end
$$;
comment on function ai.forget_left(uuid, text, boolean) is 'Tries again to erase what ran or was held, and erases conversations.';

-- Moves a mark on where it has come to an end: notes the open transactions, goes around again once they have ended, finishes when it has
-- been around and nothing is left. Then nothing says any more whom the pseudonym stands for. The caller holds the mark.
create or replace function ai.forget_on(p_tenant uuid, p_user text, p_now timestamptz) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_end    constant smallint := 5;
  c_around constant smallint := 6;
  v_mark   record;
  v_open   text[];
  v_named  boolean;
begin
  select * into v_mark from ai.forgotten f where f.tenant_id = p_tenant and f.user_id = p_user;
  if v_mark.goal_stage is null then
    v_open := ai.open_transactions();
    v_mark.open := coalesce(v_mark.open, v_open);
    -- One of them may have been prepared since: nobody can say which it was.
    if cardinality(v_mark.open) = 0 or not (v_mark.open && v_open or 'prepared' = any (v_open)) then
      v_mark.goal_stage := v_mark.stage;
      v_mark.goal_place := v_mark.place;
    end if;
  end if;
  v_named := case when v_mark.stage >= c_end then not ai.erase_names(p_tenant, p_user, v_mark.pseudonym) end;
  if v_mark.goal_stage is not null and v_mark.stage = c_end and not v_mark.around then
    v_mark.around := true;
    v_mark.stage := 0;
    v_mark.place := '';
  end if;
  if v_mark.around and (v_mark.stage, v_mark.place) >= (v_mark.goal_stage, v_mark.goal_place) then
    v_mark.stage := c_around;
  end if;
  if v_mark.stage = c_around and v_named is false
     and not exists (select from ai.forgotten_left l where l.tenant_id = p_tenant and l.user_id = p_user)
     and not exists (select from ai.conversations c where c.tenant_id = p_tenant and c.user_id = p_user)
     and not ai.has_artifacts(p_tenant, p_user) then
    v_mark.finished_at := p_now;
    v_mark.pseudonym := null;
  end if;
  update ai.forgotten f
     set open = v_mark.open, stage = v_mark.stage, place = v_mark.place, goal_stage = v_mark.goal_stage, goal_place = v_mark.goal_place, around = v_mark.around,
         finished_at = v_mark.finished_at, pseudonym = v_mark.pseudonym, worked_at = clock_timestamp()
   where f.tenant_id = p_tenant and f.user_id = p_user;
end
$$;
comment on function ai.forget_on(uuid, text, timestamptz) is 'Moves the mark of a person who is being forgotten on, and finishes it.';

-- The chore of a worker, in a transaction of its own: erases for about half a second, and what it does not get to the next time. Gives how many people
-- it worked on. Passes over marks that others hold, and waits for nobody.
create or replace function ai.continue_forgetting(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_enough  constant interval := '500 ms';
  v_started constant timestamptz := clock_timestamp();
  v_until   timestamptz;
  v_marks   record;
  v_tenant  record;
  v_group   record;
  v_user    text;
  v_count   integer := 0;
begin
  delete from ai.forgotten f
   where f.ctid = any (array(select o.ctid from ai.forgotten o where o.finished_at < p_now - interval '30 days' limit 1000 for update skip locked));
  select array_agg(f.tenant_id) as tenants, array_agg(f.user_id) as users, count(distinct f.tenant_id) as n into v_marks
    from (select o.tenant_id, o.user_id, o.worked_at from ai.forgotten o where o.finished_at is null order by o.worked_at limit 1000 for update skip locked) f;
  for v_tenant in
    select m.tenant_id, array_agg(m.user_id order by m.at) as users, row_number() over (order by min(m.at)) as n
      from unnest(v_marks.tenants, v_marks.users) with ordinality m (tenant_id, user_id, at) group by m.tenant_id order by min(m.at)
  loop
    exit when clock_timestamp() > v_started + c_enough;
    v_until := v_started + c_enough * v_tenant.n / v_marks.n;
    begin
      foreach v_user in array v_tenant.users loop
        perform ai.forget_left(v_tenant.tenant_id, v_user, false);
        exit when clock_timestamp() > v_until;
      end loop;
      loop
        select f.stage, f.place, array_agg(f.user_id) as users, lead(f.place) over w as next_place, lead(f.stage) over w as next_stage into v_group
          from ai.forgotten f where f.tenant_id = v_tenant.tenant_id and f.user_id = any (v_tenant.users) and f.stage < 5
         group by f.stage, f.place window w as (order by f.stage, f.place) order by f.stage, f.place limit 1;
        exit when not found;
        perform ai.forget_step(v_tenant.tenant_id, v_group.users, v_group.stage, v_group.place, case when v_group.next_stage = v_group.stage then v_group.next_place end, false);
        exit when clock_timestamp() > v_until;
      end loop;
      -- At least one, so that all get their turn.
      foreach v_user in array v_tenant.users loop
        perform ai.forget_on(v_tenant.tenant_id, v_user, p_now);
        v_count := v_count + 1;
        exit when clock_timestamp() > v_until + c_enough / 5;
      end loop;
    exception when others then
      -- What is wrong with one tenant must not keep the people of all others from being forgotten.
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'people of tenant % cannot be forgotten at present: %', v_tenant.tenant_id, sqlstate;
      update ai.forgotten f set worked_at = clock_timestamp() where f.tenant_id = v_tenant.tenant_id and f.user_id = any (v_tenant.users);
    end;
  end loop;
  return v_count;
end
$$;
comment on function ai.continue_forgetting(timestamptz) is 'Goes on erasing for people who are being forgotten, for about half a second; gives how many they are.';

revoke execute on function ai.open_transactions(), ai.added_up(jsonb, jsonb), ai.forget_step(uuid, text[], smallint, text, text, boolean),
  ai.forget_left(uuid, text, boolean), ai.forget_on(uuid, text, timestamptz), ai.continue_forgetting(timestamptz) from public;
