-- Partitions by time: made ahead, dropped when they are older than they are to be kept. What lies in a default partition goes by rows.

-- The smallest version 7 UUID of a moment: a bound for partitions by id.
create or replace function ai.uuid_floor(p_at timestamptz) returns uuid
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select (lpad(to_hex((extract(epoch from p_at) * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid $$;
comment on function ai.uuid_floor(timestamptz) is 'The smallest version 7 UUID of that millisecond.';

-- What every partition of p_table has, the default one too, however it was made: room and tidying for what changes in place, and no door of
-- its own past the policies of its parent. Locks p_partition, which the caller has just made.
create or replace function ai.set_up_partition(p_table text, p_partition text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_table = 'generations' then
    execute format('alter table ai.%I set (fillfactor = 66, autovacuum_vacuum_scale_factor = 0.1)', p_partition);
  end if;
  execute format('alter table ai.%I enable row level security', p_partition);
  perform ai.hide_statistics(format('ai.%I', p_partition)::regclass);
end
$$;
comment on function ai.set_up_partition(text, text) is 'Gives a new partition the storage settings, row-level security and hidden statistics of all.';

-- The time that a partition is for, in UTC, read from its name, which says whether it is of a day or of a month, whatever ai.partitioning.span
-- has become; null: it has another name. What is for a month may begin later in it (ai.make_partitions()).
create or replace function ai.partition_time(p_table text, p_partition text) returns tsrange
language sql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select tsrange(d.first, d.first + case length(n.digits) when 8 then interval '1 day' else interval '1 month' end)
    from (select substring(p_partition from '^' || p_table || '_p([0-9]{6}|[0-9]{8})$') as digits) n
   cross join lateral (select rpad(n.digits, 8, '01')::date::timestamp as first) d
   where n.digits is not null
$$;
comment on function ai.partition_time(text, text) is 'The time that a partition is for, in UTC, by its name; null: it has another name.';

-- Makes the partitions of a table (null: of all) that p_now and ai.partitioning ask for, and gives how many. What the default partition holds of
-- their range is moved into them; where there is no default, it is made first. After the span was changed, the partitions that are there stay, and the
-- first of the new span begins where the last of them ends. Bounds are in UTC, and are written and read again as
-- texts: in a session's own style a zone has an abbreviation, which means another one elsewhere (IST). Locks: the parent against other schema changes, the default partition alone for a
-- moment. Waits 2 s for a lock at most (55P03): the next tick tries again, and until then rows go to the default.
create or replace function ai.make_partitions(p_now timestamptz default now(), p_table text default null) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set lock_timeout = '2s'
as $$
declare
  v_table  record;
  v_from   timestamp;
  v_to     timestamp;
  v_name   text;
  v_key    text;
  v_bounds text[];
  v_made   integer := 0;
begin
  for v_table in select p.* from ai.partitioning p where p_table is null or p.table_name = p_table order by p.table_name loop
    -- Somebody dropped it: without it a row that has no partition yet fails, and whatever was to be done with it.
    if to_regclass(format('ai.%I', v_table.table_name || '_default')) is null then
      execute format('create table ai.%I partition of ai.%I default', v_table.table_name || '_default', v_table.table_name);
      perform ai.set_up_partition(v_table.table_name, v_table.table_name || '_default');
      v_made := v_made + 1;
    end if;
    for v_step in 0 .. v_table.ahead loop
      v_from := date_trunc(case when v_table.span = interval '1 day' then 'day' else 'month' end, p_now at time zone 'UTC') + v_step * v_table.span;
      v_name := v_table.table_name || to_char(v_from, case when v_table.span = interval '1 day' then '_pYYYYMMDD' else '_pYYYYMM' end);
      continue when to_regclass(format('ai.%I', v_name)) is not null;
      v_to := v_from + v_table.span;
      v_from := greatest(v_from, (
        select max(upper(ai.partition_time(v_table.table_name, c.relname)))
          from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = format('ai.%I', v_table.table_name)::regclass and ai.partition_time(v_table.table_name, c.relname) && tsrange(v_from, v_to)));
      continue when v_from >= v_to;
      if v_table.table_name in ('llm_calls', 'sealed_calls') then
        v_key := 'created_at';
        v_bounds := array[(v_from at time zone 'UTC')::text, (v_to at time zone 'UTC')::text];
      else
        v_key := case v_table.table_name when 'generations' then 'id' else 'generation_id' end;
        v_bounds := array[ai.uuid_floor(v_from at time zone 'UTC')::text, ai.uuid_floor(v_to at time zone 'UTC')::text];
      end if;
      execute format('create table ai.%I (like ai.%I including defaults including constraints including storage)', v_name, v_table.table_name);
      perform ai.set_up_partition(v_table.table_name, v_name);
      execute format('lock table ai.%I in access exclusive mode', v_table.table_name || '_default');
      execute format('with moved as (delete from ai.%1$I where %2$I >= %4$L and %2$I < %5$L returning *) insert into ai.%3$I select * from moved',
                     v_table.table_name || '_default', v_key, v_name, v_bounds[1], v_bounds[2]);
      execute format('alter table ai.%I attach partition ai.%I for values from (%L) to (%L)', v_table.table_name, v_name, v_bounds[1], v_bounds[2]);
      v_made := v_made + 1;
    end loop;
  end loop;
  return v_made;
end
$$;
comment on function ai.make_partitions(timestamptz, text) is 'Makes the partitions that are missing, some ahead; gives how many.';

-- Whether a generation with an id in this range has not ended: then it is in one of these tables. Looks into each lane of the queue that has
-- something once, by its key, as a million that wait may lie in a few of them.
create or replace function ai.has_unended(p_from uuid, p_to uuid) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
begin
  return exists (select from ai.leases l where l.generation_id >= p_from and l.generation_id < p_to)
      or exists (select from ai.delayed d where d.generation_id >= p_from and d.generation_id < p_to)
      or exists (select from ai.waiting w where w.generation_id >= p_from and w.generation_id < p_to)
      or exists (
        with recursive lanes as (
          (select q.lane_id from ai.queue q order by q.lane_id limit 1)
          union all
          select n.lane_id from lanes l cross join lateral (select q.lane_id from ai.queue q where q.lane_id > l.lane_id order by q.lane_id limit 1) n
        )
        select from lanes l cross join lateral (select from ai.queue q where q.lane_id = l.lane_id and q.generation_id >= p_from and q.generation_id < p_to limit 1) o);
end
$$;
comment on function ai.has_unended(uuid, uuid) is 'Whether a generation with an id from the first on, and before the second, has not ended.';

-- Detaches and drops partitions of a table (null: of all) that ended longer ago than ai.partitioning.keep, and gives how many. Generations that have not ended,
-- as they were to run later or their batch is paused, keep theirs and those of their streams: until they have, and until their last call is as old. Locks the
-- parent alone for a moment; waits 2 s at most.
create or replace function ai.drop_old_partitions(p_now timestamptz default now(), p_table text default null) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s'
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_old     record;
  v_from    uuid;
  v_to      uuid;
  v_dropped integer := 0;
begin
  for v_old in
    select p.table_name, p_now - p.keep as since, c.relname, t.during
      from ai.partitioning p
      join pg_inherits i on i.inhparent = format('ai.%I', p.table_name)::regclass
      join pg_class c on c.oid = i.inhrelid
     cross join lateral (select ai.partition_time(p.table_name, c.relname) as during) t
     where (p_table is null or p.table_name = p_table) and p.keep is not null and upper(t.during) at time zone 'UTC' <= p_now - p.keep
     order by c.relname
  loop
    if v_old.table_name in ('generations', 'stream_events') then
      v_from := ai.uuid_floor(lower(v_old.during) at time zone 'UTC');
      v_to := ai.uuid_floor(upper(v_old.during) at time zone 'UTC');
      continue when ai.has_unended(v_from, v_to)
                 or exists (select from ai.tenants t
                              join ai.llm_calls c on c.tenant_id = t.id and c.generation_id >= v_from and c.generation_id < v_to and c.created_at > v_old.since);
    end if;
    if v_old.table_name = 'generations' then
      -- Once more with the lock: a transaction as long as that may just have committed. It has no events yet.
      lock table only ai.generations in access exclusive mode;
      continue when ai.has_unended(v_from, v_to);
    end if;
    execute format('alter table ai.%I detach partition ai.%I', v_old.table_name, v_old.relname);
    execute format('drop table ai.%I', v_old.relname);
    v_dropped := v_dropped + 1;
  end loop;
  return v_dropped;
end
$$;
comment on function ai.drop_old_partitions(timestamptz, text) is 'Detaches and drops partitions older than their keep; gives how many.';

-- Deletes from default partitions what is older than ai.partitioning.keep, since nobody drops those, and the runs of tools of generations of that time. Gives how many rows;
-- of each table some at a time, the rest the next time. An id says when a generation was asked for and not when it ran: it is kept, and so is its stream, until it has been over as
-- long. Locks what it deletes, skipping what others hold.
create or replace function ai.drop_old_rows(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  c_many constant integer := 10000;
  v_old   record;
  v_count integer;
  v_all   integer := 0;
begin
  for v_old in
    select p.table_name, p_now - p.keep as since, ai.uuid_floor(p_now - p.keep) as before from ai.partitioning p where p.keep is not null order by p.table_name
  loop
    if v_old.table_name = 'generations' then
      delete from ai.generations_default g
       where g.ctid = any (array(
         select o.ctid from ai.tenants t join ai.generations_default o on o.tenant_id = t.id and o.id < v_old.before and o.finished_at <= v_old.since
          limit c_many for update of o skip locked));
      get diagnostics v_count = row_count;
      v_all := v_all + v_count;
      delete from ai.tool_calls c
       where c.ctid = any (array(
         select o.ctid from ai.tool_calls o
          where o.created_at <= v_old.since and o.settled_at is not null
            and (select g.finished_at is null from ai.generations g where g.tenant_id = o.tenant_id and g.id = o.generation_id) is not true
          limit c_many for update of o skip locked));
    elsif v_old.table_name = 'stream_events' then
      with recursive streams as (
        (select e.generation_id, e.tenant_id from ai.stream_events_default e where e.generation_id < v_old.before order by e.generation_id limit 1)
        union all
        select n.*
          from streams s
         cross join lateral (select e.generation_id, e.tenant_id from ai.stream_events_default e
                              where e.generation_id > s.generation_id and e.generation_id < v_old.before order by e.generation_id limit 1) n
      ), ended as materialized (
        select s.generation_id from streams s
         where (select g.finished_at is not null and g.finished_at <= v_old.since from ai.generations g where g.tenant_id = s.tenant_id and g.id = s.generation_id) is not false
         limit c_many
      )
      delete from ai.stream_events_default e
       where e.ctid = any (array(select o.ctid from ended n join ai.stream_events_default o on o.generation_id = n.generation_id limit c_many for update of o skip locked));
    else
      execute format('delete from ai.%1$I c where c.ctid = any (array(select o.ctid from ai.%1$I o where o.created_at <= $1 limit $2 for update skip locked))',
                     v_old.table_name || '_default') using v_old.since, c_many;
    end if;
    get diagnostics v_count = row_count;
    v_all := v_all + v_count;
  end loop;
  return v_all;
end
$$;
comment on function ai.drop_old_rows(timestamptz) is 'Deletes from default partitions what is older than its keep, and old runs of tools; gives how many rows.';

-- Makes and drops partitions, for maintenance. Gives {"partitions_made", "partitions_dropped"}; what is wrong with one table holds up no other: it is a warning, and
-- "partitions_failed" has the last SQLSTATE. Who holds a lock is waited for once: then the rest is left to the next tick, and there is "partitions_blocked".
-- Either stays in ai.maintenance.partition_problems until the same chore succeeds.
create or replace function ai.tend_partitions(p_now timestamptz) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one      record;
  v_count    integer;
  v_done     jsonb := '{"partitions_made": 0, "partitions_dropped": 0}';
  v_problems jsonb := (select m.partition_problems from ai.maintenance m);
begin
  for v_one in
    select p.table_name, c.done, c.chore, format('ai.%s() of ai.%s', c.chore, p.table_name) as what
      from ai.partitioning p
     cross join (values (1, 'partitions_made', 'make_partitions'), (2, 'partitions_dropped', 'drop_old_partitions')) c (n, done, chore)
     order by c.n, p.table_name
  loop
    begin
      execute format('select ai.%I($1, $2)', v_one.chore) into v_count using p_now, v_one.table_name;
      v_done := ai.added_up(v_done, jsonb_build_object(v_one.done, v_count));
      v_problems := v_problems - v_one.what;
    exception when others then
      v_problems := v_problems || jsonb_build_object(v_one.what, jsonb_build_object(
        'table', v_one.table_name, 'code', sqlstate, 'message', sqlerrm, 'since', coalesce(v_problems #> array[v_one.what, 'since'], to_jsonb(p_now))));
      if sqlstate in ('55P03', '40P01') then
        v_done := v_done || '{"partitions_blocked": true}';
        exit;
      end if;
      -- Rows go to the default meanwhile.
      v_done := v_done || jsonb_build_object('partitions_failed', sqlstate);
      raise warning '%: %', v_one.what, sqlerrm;
    end;
  end loop;
  update ai.maintenance m set partition_problems = v_problems where m.partition_problems <> v_problems;
  return v_done;
end
$$;
comment on function ai.tend_partitions(timestamptz) is 'Makes and drops partitions, each table for itself; gives counts, and what kept it from it.';

revoke execute on function ai.uuid_floor(timestamptz), ai.set_up_partition(text, text), ai.partition_time(text, text), ai.make_partitions(timestamptz, text),
  ai.has_unended(uuid, uuid), ai.drop_old_partitions(timestamptz, text), ai.drop_old_rows(timestamptz), ai.tend_partitions(timestamptz) from public;

-- objects

do $$ begin perform ai.make_partitions(); end $$;
