-- Partitions by time: made ahead, dropped when they are older than they are to be kept.

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

-- Makes the partitions that p_now and ai.partitioning ask for, and gives how many. What the default partition holds of
-- their range is moved into them; where there is no default, it is made first. Bounds are in UTC, and are written and read again as
-- texts: in a session's own style a zone has an abbreviation, which means another one elsewhere (IST). Locks: the parent against other schema changes, the default partition alone for a
-- moment. Waits 2 s for a lock at most (55P03): the next tick tries again, and until then rows go to the default.
create or replace function ai.make_partitions(p_now timestamptz default now()) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set lock_timeout = '2s'
as $$
declare
  v_table  record;
  v_from   timestamp;
  v_name   text;
  v_key    text;
  v_bounds text[];
  v_made   integer := 0;
begin
  for v_table in select p.* from ai.partitioning p order by p.table_name loop
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
      if v_table.table_name in ('llm_calls', 'sealed_calls') then
        v_key := 'created_at';
        v_bounds := array[(v_from at time zone 'UTC')::text, ((v_from + v_table.span) at time zone 'UTC')::text];
      else
        v_key := case v_table.table_name when 'generations' then 'id' else 'generation_id' end;
        v_bounds := array[ai.uuid_floor(v_from at time zone 'UTC')::text, ai.uuid_floor((v_from + v_table.span) at time zone 'UTC')::text];
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
comment on function ai.make_partitions(timestamptz) is 'Makes the partitions that are missing, some ahead; gives how many.';

-- Detaches and drops partitions that ended longer ago than ai.partitioning.keep, and gives how many; forgets the runs of tools of that time. A partition's
-- range is read from its name. Locks the parent alone for a moment; waits 2 s at most.
create or replace function ai.drop_old_partitions(p_now timestamptz default now()) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '2s'
as $$
declare
  v_old     record;
  v_dropped integer := 0;
begin
  for v_old in
    select p.table_name, c.relname
      from ai.partitioning p
      join pg_inherits i on i.inhparent = format('ai.%I', p.table_name)::regclass
      join pg_class c on c.oid = i.inhrelid
     where p.keep is not null and c.relname ~ ('^' || p.table_name || '_p[0-9]+$')
       and (rpad(substring(c.relname from '[0-9]+$'), 8, '01')::date + p.span) at time zone 'UTC' <= p_now - p.keep
     order by c.relname
  loop
    execute format('alter table ai.%I detach partition ai.%I', v_old.table_name, v_old.relname);
    execute format('drop table ai.%I', v_old.relname);
    v_dropped := v_dropped + 1;
  end loop;
  -- Runs of tools belong to generations, and are kept as long; some at a time, the rest the next time.
  delete from ai.tool_calls c
   where c.ctid = any (array(
     select o.ctid from ai.tool_calls o join ai.partitioning p on p.table_name = 'generations' and o.created_at <= p_now - p.keep
      where o.settled_at is not null limit 10000 for update of o skip locked));
  return v_dropped;
end
$$;
comment on function ai.drop_old_partitions(timestamptz) is 'Detaches and drops partitions older than their keep; gives how many.';

revoke execute on function ai.uuid_floor(timestamptz), ai.set_up_partition(text, text), ai.make_partitions(timestamptz), ai.drop_old_partitions(timestamptz)
  from public;

-- objects

do $$ begin perform ai.make_partitions(); end $$;
