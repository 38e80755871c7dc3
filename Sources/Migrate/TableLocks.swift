/// Takes every table of the schema before an upgrade touches one.
///
/// Policies, triggers and columns lock their tables, one after the other; apps and workers lock the same ones in
/// orders of their own. Whoever waits for a lock while it holds others may close a circle, and the server would end
/// one of those in it: an app would see 40P01 because somebody upgraded. So all locks are taken first, when nothing is
/// done yet, and an attempt takes some milliseconds, at most half of `deadlock_timeout`: it lets go of everything before
/// anybody else in a circle could be ended, and apps hardly notice it. The table that it failed on comes first in the next
/// one, where it is waited for while nothing else is held.
enum TableLocks {
  /// A PL/pgSQL block. Without a `lock_timeout` of the operator's it goes on until it has them all.
  /// Raises 55P03 after that time.
  static let block = """
    declare
      -- Milliseconds.
      c_patience constant integer := extract(epoch from pg_catalog.current_setting('deadlock_timeout')::interval) * 500;
      c_asked    constant text := pg_catalog.current_setting('lock_timeout');
      c_limit    constant integer := extract(epoch from c_asked::interval) * 1000;
      c_began    constant timestamptz := pg_catalog.clock_timestamp();
      v_first    text[] := '{}';
      v_tables   text[];
      v_table    text;
      v_from     timestamptz;
      v_left     integer;
      v_tries    integer := 0;
    begin
      loop
        v_tries := v_tries + 1;
        v_tables := array(
          select c.relname::text from pg_catalog.pg_class c
           where c.relnamespace = pg_catalog.to_regnamespace('ai') and c.relkind in ('r', 'p') and not c.relispartition
             and pg_catalog.pg_has_role(c.relowner, 'usage')
           order by pg_catalog.array_position(v_first, c.relname::text) nulls last, c.relname);
        v_from := pg_catalog.clock_timestamp();
        begin
          foreach v_table in array v_tables loop
            v_left := least(c_patience, 20 + 5 * v_tries) - extract(epoch from pg_catalog.clock_timestamp() - v_from) * 1000;
            -- Now and then longer for the first: a vacuum makes room for who has waited for deadlock_timeout.
            if v_table = v_tables[1] and v_tries % 8 = 0 then
              v_left := c_patience * 3;
            elsif v_left <= 0 then
              raise lock_not_available;
            end if;
            perform pg_catalog.set_config('lock_timeout', v_left::text, true);
            execute pg_catalog.format('lock table ai.%I in access exclusive mode', v_table);
          end loop;
          perform pg_catalog.set_config('lock_timeout', c_asked, true);
          exit;
        exception when lock_not_available or deadlock_detected then
          -- What was taken is free again.
          v_first := v_table || array_remove(v_first, v_table);
        end;
        if c_limit > 0 and pg_catalog.clock_timestamp() > c_began + c_limit * interval '1 ms' then
          raise exception 'the tables of Martlet are in use'
            using errcode = '55P03', detail = pg_catalog.format('Waited for ai.%I.', v_table),
                  hint = 'A transaction is open that has used it: see pg_stat_activity. Or allow more time: lock_timeout.';
        end if;
        perform pg_catalog.pg_sleep(0.01 + 0.04 * random());
      end loop;
    end
    """
}
