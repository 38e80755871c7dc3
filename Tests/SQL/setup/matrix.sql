-- For matrix.sql: what setup/rights.sql says, what the catalog says, and the statements that try it.

-- Objects of the schema that can be granted. Types of an extension are named without the schema it happens to be in.
create function t.signature(p_function oid) returns text language sql stable as $$
  select p.proname || '(' || coalesce((select string_agg(regexp_replace(format_type(a.type, null), '^(public|extensions)\.', ''), ', ' order by a.n)
                                         from unnest(p.proargtypes) with ordinality a (type, n)), '') || ')'
    from pg_proc p where p.oid = p_function
$$;
create table t.objects as
select case c.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end as kind, c.relname::text as name, c.oid, c.relowner as owner, c.relacl as acl, false as definer
  from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
union all
select case p.prokind when 'p' then 'procedure' else 'function' end, t.signature(p.oid), p.oid, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)), p.prosecdef
  from pg_proc p where p.pronamespace = 'ai'::regnamespace
union all
select 'type', y.typname, y.oid, y.typowner, coalesce(y.typacl, acldefault('T', y.typowner)), false
  from pg_type y where y.typnamespace = 'ai'::regnamespace and y.typtype in ('d', 'e', 'r')
union all
select 'schema', n.nspname, n.oid, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner)), false from pg_namespace n where n.nspname = 'ai'
union all
select 'role', substr(r.rolname, 4), r.oid, null, null, false from pg_roles r where r.rolname in ('ai_user', 'ai_developer', 'ai_admin', 'ai_worker', 'ai_monitor');
create unique index on t.objects (kind, name);

-- What is granted there, a row a privilege and column. A function has one privilege, which needs no name; nor has a group.
create table t.grants as
with a as (
  select o.kind, o.name, null as col, 0 as attnum, a.* from t.objects o cross join lateral aclexplode(o.acl) a where a.grantee <> o.owner
  union all
  select o.kind, o.name, t.attname, t.attnum, a.* from t.objects o join pg_attribute t on t.attrelid = o.oid and not t.attisdropped cross join lateral aclexplode(t.attacl) a
   where o.kind in ('table', 'view') and a.grantee <> o.owner
)
select a.kind, a.name, a.col, a.attnum, case when a.grantee = 0 then 'public' else regexp_replace(pg_get_userbyid(a.grantee), '^ai_', '') end as role,
       case when a.privilege_type <> 'EXECUTE' then lower(a.privilege_type) end as privilege, a.is_grantable as grantable
  from a
union all
select 'role', o.name, null, 0, regexp_replace(pg_get_userbyid(m.roleid), '^ai_', ''), null, m.admin_option from t.objects o join pg_auth_members m on m.member = o.oid where o.kind = 'role';

-- What the file says, the same way.
create table t.written as
select l.line, m[1] as kind, m[2] as name, regexp_replace(m[3], '\s+definer\s*$', '') as rest, m[3] ~ '\mdefiner\s*$' as definer, btrim(m[4]) as why
  from t.rights_lines l cross join lateral regexp_match(l.line, '^(table|view|sequence|function|procedure|type|schema|role) ([^:]+?): (.*?)(?: -- (.*))?$') m
 where m is not null;
create table t.wanted as
select w.kind, w.name, r.role, r.privilege, r.col, coalesce(t.attnum, 0) as attnum
  from t.written w
  left join t.objects o on (o.kind, o.name) = (w.kind, w.name)
 cross join lateral (
    select role, null as privilege, null as col from regexp_split_to_table(btrim(w.rest), '\s+') role where w.kind in ('function', 'procedure', 'role')
    union all
    select s.m[1], p.m[1], btrim(c) as col
      from regexp_split_to_table(w.rest, ';') part cross join lateral (select regexp_match(part, '^\s*(\w+)\s+(.*)$') as m) s
     cross join lateral regexp_matches(s.m[2], '(\w+)(?:\s*\(([^)]*)\))?', 'g') p (m)
      left join lateral unnest(string_to_array(p.m[2], ',')) c on true
     where w.kind not in ('function', 'procedure', 'role')) r
  left join pg_attribute t on w.kind in ('table', 'view') and t.attrelid = o.oid and t.attname = r.col;

-- Both as lines of one form.
create function t.line(p_kind text, p_name text, p_grants jsonb, p_definer boolean) returns text language sql as $$
  with g as (
    select role, privilege, string_agg(col, ', ' order by attnum, col) as cols, bool_or(col is null) as whole
      from jsonb_to_recordset(p_grants) x (role text, privilege text, col text, attnum integer) group by role, privilege
  ), r as (
    select role, coalesce(array_position('{user,developer,admin,worker,monitor}', role), 9) as rank,
           nullif(string_agg(privilege || coalesce('(' || case when not whole then cols end || ')', ''), ' '
                             order by coalesce(array_position('{select,insert,update,delete}', privilege), 9), privilege), '') as what
      from g group by role
  )
  select p_kind || ' ' || p_name || ': '
      || string_agg(role || coalesce(' ' || what, ''), case when p_kind in ('function', 'procedure', 'role') then ' ' else '; ' end order by rank, role) || case when p_definer then ' definer' else '' end
    from r
$$;
create table t.granted as
select g.kind, g.name, t.line(g.kind, g.name, jsonb_agg(to_jsonb(g)), o.definer) as line
  from t.grants g join t.objects o on (o.kind, o.name) = (g.kind, g.name) group by g.kind, g.name, o.definer;
create table t.expected as
select w.kind, w.name, t.line(w.kind, w.name, jsonb_agg(to_jsonb(w)), f.definer) as canonical
  from t.wanted w join t.written f on (f.kind, f.name) = (w.kind, w.name) group by w.kind, w.name, f.definer;

-- Of each role the groups it is in, directly; and who tries: which role logs in, and what it becomes by SET ROLE.
create table t.sessions (role text primary key, session name, becomes name, groups text[]);
insert into t.sessions values
  ('public', null, null, '{}'),
  ('ai_user', null, null, '{user}'), ('ai_developer', null, null, '{developer}'), ('ai_admin', null, null, '{admin}'), ('ai_worker', null, null, '{worker}'), ('ai_monitor', null, null, '{monitor}'),
  ('mtap_ann', 'mtap_ann', null, '{user}'), ('mtap_stray', 'mtap_stray', null, '{user}'), ('mtap_dev', 'mtap_dev', null, '{developer}'), ('mtap_adm', 'mtap_adm', null, '{admin}'),
  ('mtap_worker', 'mtap_worker', null, '{worker}'), ('mtap_monitor', 'mtap_monitor', null, '{monitor}'),
  ('mtap_public', 'mtap_public', null, '{}'), ('mtap_gateway', 'mtap_gateway', null, '{}'), ('mtap_web', 'mtap_gateway', 'mtap_web', '{user}');
-- Those of Supabase, where they are.
insert into t.sessions
select v.role, v.session, v.becomes, v.groups::text[]
  from (values ('authenticator', 'authenticator', null, '{}'), ('anon', 'authenticator', 'anon', '{}'), ('authenticated', 'authenticator', 'authenticated', '{user}'),
               ('service_role', 'authenticator', 'service_role', '{admin}')) v (role, session, becomes, groups)
  join pg_roles r on r.rolname = v.role join pg_roles l on l.rolname = v.session;
create table t.held as
with recursive has (role, held) as (
  select role, unnest(array_append(groups, 'public')) from t.sessions
  union
  select h.role, w.role from has h join t.wanted w on w.kind = 'role' and w.name = h.held
)
select h.role, w.kind, w.name, coalesce(w.privilege, 'execute') as privilege, bool_or(w.col is null) as whole, array_remove(array_agg(w.col), null) as cols
  from has h join t.wanted w on w.role = h.held and w.kind <> 'role' group by 1, 2, 3, 4;
create function t.holds(p_held t.held, p_col text) returns boolean language sql immutable as $$ select coalesce(p_held.whole or p_col = any (p_held.cols), false) $$;

-- Each role, object and privilege: whether it has it, and whether it should.
create table t.checked as
select a.role, a.kind, a.name, a.privilege, a.col, a.has, t.holds(h, a.col) as should
  from (
    select s.role, o.kind, o.name, p.privilege, null as col, has_table_privilege(s.role, o.oid, p.privilege) as has
      from t.sessions s cross join t.objects o cross join unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p (privilege) where o.kind in ('table', 'view')
    union all
    select s.role, o.kind, o.name, p.privilege, c.attname, has_column_privilege(s.role, o.oid, c.attnum, p.privilege)
      from t.sessions s cross join t.objects o cross join unnest(array['select', 'insert', 'update', 'references']) p (privilege)
      join pg_attribute c on c.attrelid = o.oid and c.attnum > 0 and not c.attisdropped where o.kind in ('table', 'view')
    union all
    select s.role, o.kind, o.name, p.privilege, null, has_sequence_privilege(s.role, o.oid, p.privilege)
      from t.sessions s cross join t.objects o cross join unnest(array['usage', 'select', 'update']) p (privilege) where o.kind = 'sequence'
    union all
    select s.role, o.kind, o.name, 'execute', null, has_function_privilege(s.role, o.oid, 'execute')
      from t.sessions s cross join t.objects o where o.kind in ('function', 'procedure')
    union all
    select s.role, o.kind, o.name, 'usage', null, has_type_privilege(s.role, o.oid, 'usage') from t.sessions s cross join t.objects o where o.kind = 'type'
    union all
    select s.role, o.kind, o.name, p.privilege, null, has_schema_privilege(s.role, o.oid, p.privilege)
      from t.sessions s cross join t.objects o cross join unnest(array['usage', 'create']) p (privilege) where o.kind = 'schema'
  ) a
  left join t.held h using (role, kind, name, privilege);

-- What is tried: statements, and what allows each: a privilege on the columns, on any of them (*), or on the whole (null).
-- DEFAULT is a value for every kind of column. A call gets its arguments from a row, or a strict function would not be called
-- at all; EXPLAIN asks for the rights as the call does, and calls nothing.
create schema mtap_open;
grant usage, create on schema mtap_open to public;
create function mtap_open.nothing() returns trigger language plpgsql as 'begin return null; end';
create table t.statements (kind text, name text, statement text, privileges text[], cols text[], at serial);
insert into t.statements (kind, name, statement, privileges, cols)
select o.kind, o.name, format(s.statement, o.name), s.privileges, s.cols
  from t.objects o
 cross join lateral (select array_agg(a.attname::text) as every from pg_attribute a where a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped) c
 cross join lateral (values
    ('table view',  'select from ai.%I limit 0', array['select'], array['*']),
    ('table view',  'select * from ai.%I limit 0', array['select'], c.every),
    ('table',       'insert into ai.%I default values', array['insert'], array['*']),
    ('table',       'delete from ai.%I', array['delete'], null),
    ('table',       'truncate ai.%I', array['truncate'], null),
    ('table',       'lock table ai.%I in share mode', array['update', 'delete', 'truncate'], null),
    ('table',       'create trigger mtap after insert on ai.%I for each statement execute function mtap_open.nothing()', array['trigger'], null),
    ('table',       'alter table ai.%I disable row level security', array['none'], null),
    ('table',       'drop table ai.%I', array['none'], null),
    ('view',        'drop view ai.%I', array['none'], null),
    ('sequence',    'select from ai.%I', array['select'], null),
    ('sequence',    $$select nextval('ai.%I')$$, array['usage', 'update'], null),
    ('sequence',    $$select setval('ai.%I', 1)$$, array['update'], null),
    ('schema',      'create table %I.mtap ()', array['create'], null)) s (kinds, statement, privileges, cols)
 where o.kind = any (string_to_array(s.kinds, ' '));
insert into t.statements (kind, name, statement, privileges, cols)
select o.kind, o.name, format(s.statement, o.name, a.attname), array[s.privilege], array[a.attname]
  from t.objects o join pg_attribute a on a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped
 cross join (values ('insert', 'insert into ai.%I (%I) values (default)'), ('update', 'update ai.%I set %I = default')) s (privilege, statement)
 where o.kind = 'table' and (a.attnum = 1 or exists (select from t.wanted w where (w.kind, w.name, w.privilege) = (o.kind, o.name, s.privilege)));
insert into t.statements (kind, name, statement, privileges, cols)
select o.kind, o.name, format('create table mtap_open.referrer (%s, foreign key (%s) references ai.%I)', string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', '),
                              string_agg(quote_ident(a.attname), ', ' order by k.n), o.name), array['references'], array_agg(a.attname)
  from t.objects o join pg_constraint c on c.conrelid = o.oid and c.contype = 'p' cross join lateral unnest(c.conkey) with ordinality k (attnum, n)
  join pg_attribute a on a.attrelid = o.oid and a.attnum = k.attnum group by o.kind, o.name;
insert into t.statements (kind, name, privileges, statement)
select o.kind, o.name, array['execute'],
       case when o.kind = 'procedure' then format('call ai.%I(%s)', p.proname, (select string_agg('null', ', ') from unnest(p.proargtypes)))
            else format('explain select ai.%I(%s) from (select %s offset 0) a', p.proname,
                        (select string_agg(case when p.provariadic <> 0 and n = p.pronargs then 'variadic ' else '' end || 'a.c' || n, ', ' order by n) from generate_series(1, p.pronargs) n),
                        (select string_agg(format('null::%s as c%s', format_type(x.type, null), x.n), ', ') from unnest(p.proargtypes) with ordinality x (type, n))) end
  from t.objects o join pg_proc p on p.oid = o.oid where o.kind in ('function', 'procedure');

create function t.may_run(p_role text) returns table (kind text, name text, statement text, statement_may boolean, at integer) language sql as $$
  select s.kind, s.name, s.statement,
         coalesce(bool_or(h.whole or s.cols <@ h.cols or h.role is not null and s.cols = '{*}'), false), s.at
    from t.statements s
    left join t.held h on (h.role, h.kind, h.name) = (p_role, s.kind, s.name) and h.privilege = any (s.privileges)
   group by s.kind, s.name, s.statement, s.at
$$;

-- Tries them all as a role and notes what came of it; nothing remains.
create table t.tried (role text, kind text, name text, statement text, should boolean, result text, at integer);
create function t.try_all(p_session name, p_becomes name, p_role text) returns void language plpgsql as $$
declare
  v_statements text[] := array(select statement from t.statements order by at);
  v_results    text[] := '{}';
  v_statement  text;
begin
  execute format('set local session authorization %I', p_session);
  if p_becomes is not null then
    execute format('set local role %I', p_becomes);
  end if;
  foreach v_statement in array v_statements loop
    begin
      execute v_statement;
      raise exception using errcode = 'MTAP1', message = 'done';
    exception when others then
      v_results := v_results || sqlerrm;
    end;
  end loop;
  reset role;
  reset session authorization;
  insert into t.tried
  select p_role, s.kind, s.name, s.statement, s.statement_may, r.result, s.at
    from unnest(v_results) with ordinality r (result, n)
    join (select m.*, row_number() over (order by at) as n from t.may_run(p_role) m) s using (n);
end
$$;
