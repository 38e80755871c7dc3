-- migrate:up
-- Supabase makes its roles authenticated and service_role NOINHERIT: what the groups ai_user and ai_admin may do was not theirs,
-- unless they became the group by SET ROLE, which PostgREST does not. From version 16 on the membership says that it is inherited;
-- before, only the role can.
do $$
declare
  v_role record;
begin
  for v_role in
    select g.member, g.of_group
      from (values ('authenticated', 'ai_user'), ('service_role', 'ai_admin')) g (member, of_group)
      join pg_catalog.pg_roles r on r.rolname = g.member
     where not pg_catalog.pg_has_role(r.oid, g.of_group, 'usage')
  loop
    begin
      if current_setting('server_version_num')::integer >= 160000 then
        execute format('grant %I to %I with inherit true', v_role.of_group, v_role.member);
      else
        execute format('alter role %I inherit', v_role.member);
      end if;
    exception when insufficient_privilege then
      raise warning 'the role % does not inherit what its group % may do', v_role.member, v_role.of_group
        using hint = format('A role that may alter it runs: grant %I to %I with inherit true; or, before PostgreSQL 16: alter role %2$I inherit.', v_role.of_group, v_role.member);
    end;
  end loop;
end
$$;
