-- Every role × every relation and column × every privilege, every role × every function: read from the catalog, compared with
-- setup/rights.sql, and tried. What is not in that file must be out of reach, so that nothing new can be forgotten.
begin;
\ir setup/world.sql
\ir setup/rights.sql
\ir setup/matrix.sql
select no_plan();
set local lc_messages = 'C';  -- a refusal is known by its words: row-level security refuses with the same SQLSTATE

-- 1. The file and the catalog say the same.
select is_empty($$ select line from t.rights_lines where line !~ '^(--.*|)$'
                    except select line from t.written $$, 'every line of setup/rights.sql is understood');
select is_empty($$ select kind || ' ' || name from t.written group by kind, name having count(*) > 1 $$, 'no object has two lines in setup/rights.sql');
select is_empty($$ select kind || ' ' || name from t.written except select kind || ' ' || name from t.objects $$,
  'setup/rights.sql names nothing that is not there');
select is(coalesce(g.line, o.kind || ' ' || o.name || ': nobody has any right, no line'),
          coalesce(w.canonical, o.kind || ' ' || o.name || ': nobody has any right, no line'),
          format('%s %s is granted as setup/rights.sql has it ("have" is the line as it is granted)', o.kind, o.name))
  from t.objects o
  left join t.granted g on (g.kind, g.name) = (o.kind, o.name)
  left join t.expected w on (w.kind, w.name) = (o.kind, o.name)
 order by o.kind, o.name;
select is_empty($$ select w.kind || ' ' || w.name from t.written w where w.definer and coalesce(w.why, '') = '' $$,
  'each function that runs with its owner''s rights says in setup/rights.sql what keeps its caller to what is the caller''s');
select is_empty($$ select kind, name from t.grants where grantable $$, 'nobody may pass on a right');

-- 2. What is made later is nobody's by itself.
select is_empty($$ select d.defaclrole::regrole, d.defaclobjtype, a.grantee, a.privilege_type
                     from pg_default_acl d cross join lateral aclexplode(d.defaclacl) a
                    where (d.defaclnamespace = 'ai'::regnamespace or d.defaclnamespace = 0 and d.defaclrole = (select nspowner from pg_namespace where nspname = 'ai'))
                      and a.grantee <> d.defaclrole and not (d.defaclobjtype in ('f', 'T') and a.grantee = 0) $$,
  'no default privilege gives away what will be made in the schema');

-- 3. What each role has, whatever the way by which it has it.
select is(coalesce(string_agg(format('%s %s %s%s', c.role, case when c.has then 'has, but should not:' else 'has not, but should:' end, c.privilege, coalesce('(' || c.col || ')', '')), E'\n')
                   filter (where c.has <> c.should), ''),
          '', format('%s roles have on %s %s what their groups have in setup/rights.sql', count(distinct c.role), c.kind, c.name))
  from t.checked c group by c.kind, c.name order by c.kind, c.name;

-- 4. The same, done: as each role, each kind of statement on each relation, a call of each function.
select t.try_all(session, becomes, role) from t.sessions where session is not null \g /dev/null
select is(coalesce(string_agg(format('%s %s: %s, should be %s', r.role, r.statement, r.result, case when r.should then 'allowed' else 'refused' end), E'\n' order by r.role, r.at)
                   filter (where (r.result !~ '^permission denied|^must be owner') <> r.should), ''),
          '', format('%s tries of %s roles on %s %s', count(*), count(distinct r.role), r.kind, r.name))
  from t.tried r group by r.kind, r.name order by r.kind, r.name;
select ok(count(*) > 0 and bool_and(n > 500), 'and each role tried') from (select s.role, count(r.role) as n from t.sessions s left join t.tried r on r.role = s.role where s.session is not null group by 1) n;

select * from finish();
rollback;
