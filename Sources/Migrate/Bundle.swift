extension Schema {
  /// One SQL file that brings a database up to date, for migration tools and psql: the door `bundle`.
  ///
  /// It can be applied again: what is applied already is left out, and sql/ replaces itself. It begins
  /// with `-- migrate:up` for dbmate, has no psql commands, and no transaction of its own, because the
  /// tools bring theirs.
  package func bundle() -> String {
    let guardSQL = GuardSQL(schema: self, door: .bundle)
    let history = """
      declare
      \(GuardSQL.declarations)
      begin
      \(guardSQL.checks)
      \(guardSQL.lockTables)
      \(migrations.map { guardSQL.apply($0) }.joined(separator: "\n"))
      end
      """
    return """
      -- migrate:up
      -- Martlet \(Version.current): the schema in one file, printed by: martlet schema
      --
      -- Apply it with a migration tool (dbmate, Supabase, sqitch, Flyway), or with
      --   psql -X -1 -v ON_ERROR_STOP=1 -f FILE
      -- in one transaction. A later version's file is applied over it in the same way; applying one
      -- twice does no harm. The role that applies it owns the schema and needs CREATE on the database,
      -- the right to create extension vector where that is missing, and CREATEROLE where the group
      -- roles ai_user, ai_developer, ai_admin, ai_worker and ai_monitor are.

      set client_min_messages = warning;
      set standard_conforming_strings = on;
      do $$ begin
        perform pg_catalog.set_config('martlet.search_path', pg_catalog.current_setting('search_path'), false);
      end $$;

      -- The history.
      do \(dollarQuoted(history));

      -- What is replaceable: functions first, then what is made on tables. Functions name one another
      -- in any order and are checked at the end.
      set check_function_bodies = off;
      do $$ begin
        perform pg_catalog.set_config('search_path', \(SessionSQL.trustedPath), false);
      end $$;

      \(functions)

      \(objects)

      reset check_function_bodies;
      reset client_min_messages;

      \(SessionSQL.checkFunctions)

      \(guardSQL.recordFiles)

      -- As the tool had it.
      do $$ begin
        perform pg_catalog.set_config('search_path', pg_catalog.current_setting('martlet.search_path'), false);
      end $$;
      reset standard_conforming_strings;

      """
  }

  /// The upper parts of sql/, each under its name.
  var functions: String {
    files.filter { !$0.functions.isEmpty }
      .map { "-- sql/\($0.file)\n\($0.functions)" }.joined(separator: "\n")
  }

  /// The lower parts.
  private var objects: String {
    files.filter { !$0.objects.isEmpty }
      .map { "-- sql/\($0.file), objects\n\($0.objects)" }.joined(separator: "\n")
  }
}
