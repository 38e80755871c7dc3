extension Schema {
  /// The script of `create extension martlet`, which is the script of every update too: the door
  /// `extension`.
  ///
  /// The extension owns the functions of sql/ and `ai.migrate()`, and nothing else. Tables that an
  /// extension owns lose their rows in a dump; so `ai.migrate()`, which runs with its caller's rights,
  /// makes tables, triggers, views and policies, and with them the functions of migrations/. The schema
  /// `ai` is made by the control file and belongs to nobody but its owner.
  package func extensionScript() -> String {
    let door = GuardSQL(schema: self, door: .extension)
    let guardBlock = """
      declare
      \(GuardSQL.declarations)
      begin
      \(door.checks)
      -- After drop extension … cascade the tables are there and their triggers are not: the next
      -- ai.migrate() is to make them again.
      if cardinality(v_applied) > 0 then
        delete from ai.migrations where version = 'sql';
      end if;
      end
      """
    return """
      -- Martlet \(Version.current), printed by: martlet schema --extension
      \\echo Use "create extension martlet" to load this file. \\quit

      do \(dollarQuoted(guardBlock));

      -- The functions are granted to these, so they come first. Roles belong to the cluster, and are there
      -- already where a dump is restored into a second database of it.
      do \(dollarQuoted(Self.roles));

      -- The tables that the functions name do not exist yet.
      set local check_function_bodies = off;

      \(functions)

      -- Brings tables, triggers, views and policies up to date: after create extension, and after each
      -- alter extension martlet update. One transaction, and nothing where nothing is to be done.
      -- Raises PT409 where the database's record does not fit, PT403 for anybody but the extension's owner.
      create or replace procedure ai.migrate()
      language plpgsql security invoker
      as \(dollarQuoted(migrateBody(door)));
      comment on procedure ai.migrate() is
        'Makes tables, triggers, views and policies, or brings them up to date. Call it after create and alter extension.';
      revoke execute on procedure ai.migrate() from public;

      """
  }

  private func migrateBody(_ door: GuardSQL) -> String {
    let objects = files.filter { !$0.objects.isEmpty }
      .map { "execute \(dollarQuoted($0.objects));" }.joined(separator: "\n")
    return """
      declare
      \(GuardSQL.declarations)
      v_ran boolean := false;
      v_path text := pg_catalog.current_setting('search_path');
      v_strings text := pg_catalog.current_setting('standard_conforming_strings');
      begin
      perform pg_catalog.set_config('client_min_messages', 'warning', true);
      perform pg_catalog.set_config('standard_conforming_strings', 'on', true);
      -- Definer functions read tables by their owner's rights: functions and tables need one owner.
      if (select e.extowner from pg_catalog.pg_extension e where e.extname = 'martlet')
         is distinct from (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user) then
        raise exception 'ai.migrate() is for the role that owns the extension'
          using errcode = 'PT403',
                detail = 'Owner: ' || (select pg_catalog.pg_get_userbyid(e.extowner) from pg_catalog.pg_extension e where e.extname = 'martlet'),
                hint = 'Set role to the owner, or create the extension as the role that calls ai.migrate().';
      end if;
      \(door.checks)
      if (select c.relowner from pg_catalog.pg_class c where c.oid = pg_catalog.to_regclass('ai.migrations'))
         <> (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user) then
        raise exception 'the tables in ai have another owner than the extension'
          using errcode = 'PT403',
                hint = 'A dump is restored as the role that owned the extension; or alter the owner of the schema and all in it.';
      end if;
      \(door.lockTables)
      v_ran := \(migrations.map { literal($0.version) + " <> all (v_applied)" }.joined(separator: "\n  or ").ifEmpty("false"));
      \(migrations.map { door.apply($0) }.joined(separator: "\n"))
      if v_ran or not exists (
        select from ai.migrations m where m.version = 'sql' and m.checksum = \(literal(filesChecksum))
      ) then
      perform pg_catalog.set_config('search_path', \(SessionSQL.trustedPath), true);
      \(objects)
      execute \(dollarQuoted(SessionSQL.checkFunctions));
      \(door.recordFiles)
      end if;
      perform pg_catalog.set_config('search_path', v_path, true);
      perform pg_catalog.set_config('standard_conforming_strings', v_strings, true);
      end
      """
  }

  private static let roles = """
    declare
      v_role text;
    begin
      foreach v_role in array array['ai_user', 'ai_developer', 'ai_admin', 'ai_worker', 'ai_monitor'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
          begin
            execute pg_catalog.format('create role %I nologin', v_role);
          exception when duplicate_object or unique_violation then
            null;
          end;
        end if;
      end loop;
    end
    """
}

extension String {
  fileprivate func ifEmpty(_ other: String) -> String { isEmpty ? other : self }
}
