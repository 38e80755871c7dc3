-- What the planner may know of content: nothing.
--
-- Comparing texts is leakproof, so PostgreSQL lets everybody's plans use the statistics of the whole table for it, also under row-level
-- security; those of words in a tsvector it uses without asking. EXPLAIN would tell an app which texts, words and users are frequent in other
-- tenants, letter by letter; and copies of prompts would stay in pg_statistic after they were erased. Plans do not need these statistics: what
-- must be fast goes by keys, and a search for words by its index, whichever words they are.

-- Lets ANALYZE pass over every column of texts, words, documents, bytes or vectors of a table, or of all tables of the schema, and forgets what it
-- knew of them. Gives how many columns that changed. Locks the tables against other changes of the schema, not against reading and writing.
create or replace function ai.hide_statistics(p_table regclass default null) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_column record;
  v_count  integer := 0;
begin
  for v_column in
    select c.oid, c.relname, a.attname, a.attnum
      from pg_class c
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and coalesce(a.attstattarget, -1) <> 0
      join pg_type t on t.oid = a.atttypid
      join pg_type b on b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
     where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and c.oid = coalesce(p_table, c.oid)
       and b.typname in ('text', 'name', '_text', 'json', 'jsonb', 'bytea', 'varbit', 'vector', 'tsvector')
     order by c.relname, a.attnum
  loop
    -- Only this table: a partition has its own turn.
    execute format('alter table only ai.%I alter column %I set statistics 0', v_column.relname, v_column.attname);
    if to_regprocedure('pg_catalog.pg_clear_attribute_stats(text, text, text, boolean)') is not null then
      execute format('select pg_clear_attribute_stats(''ai'', %L, %L, i) from unnest(array[true, false]) i', v_column.relname, v_column.attname);
    elsif (select rolsuper from pg_roles where rolname = current_user) then
      delete from pg_statistic s where s.starelid = v_column.oid and s.staattnum = v_column.attnum;
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function ai.hide_statistics(regclass) is 'Keeps content out of the planner''s statistics; gives how many columns that changed.';
revoke execute on function ai.hide_statistics(regclass) from public;

-- objects

-- Before 85_partitions.sql makes the first partitions, which take care of themselves.
do $$ begin perform ai.hide_statistics(); end $$;
