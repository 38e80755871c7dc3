/// What the doors `bundle` and `extension` check in PL/pgSQL before they touch anything: the same
/// refusals as `Plan`, in the same words.
struct GuardSQL {
  let schema: Schema
  let door: Door

  /// Declarations for `checks`.
  static let declarations = """
    v_martlet record;
    v_applied text[] := '{}';
    """

  /// Statements of a PL/pgSQL block. Afterwards `v_applied` has the versions that are applied, and
  /// the transaction has the lock that all doors take.
  var checks: String {
    """
    perform pg_catalog.pg_advisory_xact_lock(\(SessionSQL.lockKey));
    \(extensionCheck)\(ownerCheck)if pg_catalog.to_regclass('ai.migrations') is not null then
      \(raise(
        "select m.door from ai.migrations m where m.door <> \(literal(door.rawValue)) limit 1",
        Refusal.otherDoor("%"), "v_martlet.door", "A database has one door: upgrade with the one it has."))
      \(raise(
        "select m.version from ai.migrations m where m.version <> 'sql' and m.version <> all (\(versions)) order by 1 limit 1",
        Refusal.newer("%"), "v_martlet.version", Refusal.newerHint))
      \(raise(
        """
        select k.version || '_' || k.name || '.sql' as file
              from (values \(known)) k (version, name, checksum)
              join ai.migrations m on m.version = k.version and m.checksum <> k.checksum order by 1 limit 1
        """,
        Refusal.changed("%"), "v_martlet.file", Refusal.changedHint))
      \(raise(
        """
        select v.version, (select max(m.version) from ai.migrations m where m.version <> 'sql') as latest
              from unnest(\(versions)) v (version)
             where v.version < (select max(m.version) from ai.migrations m where m.version <> 'sql')
               and not exists (select from ai.migrations m where m.version = v.version) order by 1 limit 1
        """,
        Refusal.outOfOrder("%", "%"), "v_martlet.version, v_martlet.latest", Refusal.outOfOrderHint))
      select coalesce(array_agg(m.version), '{}') into v_applied from ai.migrations m;
    \(foreignCheck)end if;
    """
  }

  /// Applies a migration that is not applied yet, inside a block after `checks`.
  func apply(_ migration: Migration) -> String {
    """
    if \(literal(migration.version)) <> all (v_applied) then
      perform pg_catalog.set_config('search_path', \(SessionSQL.trustedPath), true);
      execute \(dollarQuoted(migration.body));
      insert into ai.migrations (version, name, checksum, door)
      values (\(literal(migration.version)), \(literal(migration.name)), \(literal(migration.checksum)), \(literal(door.rawValue)));
    end if;
    """
  }

  /// Takes the tables of a schema that may be in use, inside a block after `checks`; not where nothing will be done.
  var lockTables: String {
    // The bundle applies sql/ in any case.
    let isCurrent =
      door == .bundle
      ? "false"
      : "exists (select from ai.migrations m where m.version = 'sql' and m.checksum = \(literal(schema.filesChecksum)))"
    return """
      if cardinality(v_applied) > 0 then
        if not \(isCurrent) then
          perform pg_catalog.set_config('search_path', \(SessionSQL.trustedPath), true);
          \(TableLocks.block);
        end if;
      end if;
      """
  }

  /// Records that sql/ is applied.
  var recordFiles: String {
    """
    insert into ai.migrations (version, name, checksum, door)
    values ('sql', 'sql', \(literal(schema.filesChecksum)), \(literal(door.rawValue)))
    on conflict (version) do update
      set checksum = excluded.checksum, door = excluded.door, applied_at = pg_catalog.now();
    """
  }

  private var versions: String {
    "array[" + schema.migrations.map { literal($0.version) }.joined(separator: ", ") + "]::text[]"
  }

  private var known: String {
    let rows = schema.migrations.map {
      "(\(literal($0.version)), \(literal($0.name)), \(literal($0.checksum)))"
    }
    // A list of no values is not SQL.
    return rows.isEmpty ? "(null::text, null::text, null::text)" : rows.joined(separator: ", ")
  }

  private var extensionCheck: String {
    guard door != .extension else { return "" }
    return """
      if exists (select from pg_catalog.pg_extension where extname = 'martlet') then
        raise exception '%', \(literal(Refusal.otherDoor(Door.extension.rawValue)))
          using errcode = 'PT409', hint = \(literal("Upgrade with: \(Door.extension.upgrade)."));
      end if;

      """
  }

  private var ownerCheck: String {
    """
    if exists (select from pg_catalog.pg_namespace n
                 left join pg_catalog.pg_class t on t.relnamespace = n.oid and t.relname = 'migrations'
                where n.nspname = 'ai'
                  and n.nspowner <> coalesce(t.relowner, (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user))) then
      raise exception \(literal(Refusal.foreignOwner)) using errcode = 'PT409', hint = \(literal(Refusal.foreignOwnerHint));
    end if;

    """
  }

  private var foreignCheck: String {
    // The extension's functions live in the schema before its tables do.
    guard door != .extension else { return "" }
    return """
      elsif exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'ai')
         or exists (select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname = 'ai') then
        raise exception \(literal(Refusal.foreignSchema)) using errcode = 'PT409', hint = \(literal(Refusal.foreignSchemaHint));

      """
  }

  private func raise(
    _ query: String, _ message: String, _ arguments: String, _ hint: String
  ) -> String {
    """
    \(query) into v_martlet;
      if found then
        raise exception \(literal(message)), \(arguments) using errcode = 'PT409', hint = \(literal(hint));
      end if;
    """
  }
}
