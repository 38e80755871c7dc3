/// Statements that the command and the generated SQL share.
enum SessionSQL {
  /// The key of the advisory lock that all doors take: the bytes of "martlet" as a number.
  static let lockKey = 0x6d_6172_746c_6574

  /// A role may have time limits that suit a web request; a migration takes the time it takes.
  /// `lock_timeout` stays as it is: an operator who sets one wants it. In the files' strings a backslash is
  /// a character like others.
  static let prepare = """
    set standard_conforming_strings = on;
    set statement_timeout = 0;
    set idle_in_transaction_session_timeout = 0;
    set client_min_messages = warning;
    """

  /// The search_path under which everything is applied, once there is pgvector: bodies that are bound where they are made
  /// must not take an operator or a function that somebody else put into a schema of the session's own path.
  static let trustedPath = """
    coalesce((select 'pg_catalog, ' || pg_catalog.quote_ident(n.nspname) || ', pg_temp'
                from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
               where e.extname = 'vector'), pg_catalog.current_setting('search_path'))
    """

  /// Sets `trustedPath` for the rest of a transaction.
  static let trustPath = "select pg_catalog.set_config('search_path', \(trustedPath), true)"

  /// Parses the bodies of all functions in the schema, which `check_function_bodies = off` put off.
  /// Fails with SQLSTATE of what is wrong in one, and its name before the message: what PostgreSQL says has none.
  static let checkFunctions = """
    do $$
    declare
      v_function record;
    begin
      set local check_function_bodies = on;
      for v_function in
        select p.oid, l.lanname from pg_catalog.pg_proc p
          join pg_catalog.pg_language l on l.oid = p.prolang
         where p.pronamespace = 'ai'::pg_catalog.regnamespace and l.lanname in ('sql', 'plpgsql')
         order by p.oid
      loop
        if v_function.lanname = 'sql' then
          perform pg_catalog.fmgr_sql_validator(v_function.oid);
        else
          perform pg_catalog.plpgsql_validator(v_function.oid);
        end if;
      end loop;
    exception when others then
      raise exception using errcode = sqlstate, message = v_function.oid::pg_catalog.regprocedure || ': ' || sqlerrm;
    end
    $$;
    """
}
