import Postgres

/// Who may do what, and who this session is.
extension Checkup {
  func roles() async -> Finding {
    await check("roles") { () async throws(PostgresError) in
      let rows = try await connection.query(
        """
        select r.name, p.oid is not null, p.oid is not null and pg_has_role(session_user, p.oid, 'member'),
               s.rolsuper, s.rolbypassrls
          from unnest(array['ai_user', 'ai_developer', 'ai_admin', 'ai_worker', 'ai_monitor'])
                 with ordinality r (name, number)
          left join pg_catalog.pg_roles p on p.rolname = r.name
          join pg_catalog.pg_roles s on s.rolname = session_user
         order by r.number
        """)
      let missing = (0..<rows.count).filter { rows.bool($0, 1) != true }.compactMap { rows[$0, 0] }
      guard missing.isEmpty else {
        return Finding(
          "roles", .fail, "missing: \(missing.joined(separator: ", "))",
          hint:
            "Roles belong to the cluster; after a restore into another one: create role … nologin;")
      }
      if rows.bool(0, 3) == true {
        return Finding(
          "roles", .ok, "all there; this role is a superuser, and no app's role should be")
      }
      let own = (0..<rows.count).filter { rows.bool($0, 2) == true }.compactMap { rows[$0, 0] }
      let bypass = rows.bool(0, 4) == true ? "; it bypasses row-level security" : ""
      guard !own.isEmpty else {
        return Finding(
          "roles", .warn, "all there; this role is a member of none" + bypass,
          hint: "grant ai_user to … (apps), grant ai_worker to … (workers)")
      }
      return Finding(
        "roles", .ok, "all there; this role is a member of \(own.joined(separator: ", "))" + bypass)
    }
  }

  /// Row-level security on everything in the schema, nothing for PUBLIC, and definer functions that cannot
  /// be led astray by a search_path.
  func rights() async -> [Finding] {
    let tables = await check("rls") { () async throws(PostgresError) in
      let row = try await connection.query(
        """
        select string_agg(c.relname, ', ' order by c.relname) filter (where not c.relrowsecurity),
               string_agg(c.relname, ', ' order by c.relname) filter (where
                 exists (select from pg_catalog.aclexplode(c.relacl) a where a.grantee = 0)
                 or exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polroles = '{0}')),
               count(*), (select count(*) from pg_catalog.pg_policy p
                            join pg_catalog.pg_class t on t.oid = p.polrelid and t.relnamespace = 'ai'::regnamespace)
          from pg_catalog.pg_class c
         where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p')
        """)
      if let open = row[0, 0] {
        return Finding(
          "rls", .fail, "row-level security is off for \(open)",
          hint: "alter table ai.… enable row level security;")
      }
      if let open = row[0, 1] {
        return Finding(
          "rls", .fail, "grants or policies for everybody (PUBLIC) on \(open)",
          hint: "revoke all on ai.… from public; or restrict the policy to a role")
      }
      return Finding(
        "rls", .ok,
        "on for all \(row.int(0, 2) ?? 0) tables, \(row.int(0, 3) ?? 0) policies, none for PUBLIC")
    }
    let functions = await check("functions") { () async throws(PostgresError) in
      let row = try await connection.query(
        """
        select string_agg(p.proname, ', ' order by p.proname) filter (where not exists (
                 select from unnest(p.proconfig) c where c like 'search\\_path=%')),
               string_agg(p.proname, ', ' order by p.proname) filter (where
                 p.proacl is null or exists (select from pg_catalog.aclexplode(p.proacl) a where a.grantee = 0)),
               count(*)
          from pg_catalog.pg_proc p
         where p.pronamespace = 'ai'::regnamespace and p.prosecdef
        """)
      if let loose = row[0, 0] {
        return Finding(
          "functions", .fail, "security definer without a fixed search_path: \(loose)",
          hint: "martlet migrate restores Martlet's own; alter function … set search_path")
      }
      if let open = row[0, 1] {
        return Finding(
          "functions", .fail, "security definer and executable by everybody (PUBLIC): \(open)",
          hint: "revoke execute on function ai.… from public;")
      }
      return Finding("functions", .ok, "all \(row.int(0, 2) ?? 0) definer functions are closed")
    }
    return [tables, functions]
  }

  func identity() async -> (finding: Finding, isSomebody: Bool) {
    do {
      let row = try await connection.query("select tenant, user_id, role, why from ai.whoami()")
      guard let tenant = row.count == 1 ? row[0, 0] : nil else {
        return (
          Finding(
            "identity", .warn, row.count == 1 ? row[0, 3] ?? "nobody" : "nobody",
            hint: "insert into ai.role_bindings (role_name, tenant_id, user_id) values (…)"), false
        )
      }
      let who = "\(row[0, 1] ?? "") of \(tenant) (\(row[0, 2] ?? "")): \(row[0, 3] ?? "")"
      return (Finding("identity", .ok, who), true)
    } catch {
      return (Finding("identity", error), false)
    }
  }
}
