-- The shape of the schema, read from the system catalogs, so that what is added later is held to it too. Who may do what is in setup/rights.sql.
begin;
\ir setup/world.sql
select no_plan();

-- Tables
select ok(c.relrowsecurity, format('row-level security is enabled on ai.%I', c.relname))
  from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') order by c.relname;
select ok(not c.relforcerowsecurity, format('row-level security is not forced on ai.%I: definer functions need the owner''s bypass', c.relname))
  from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') order by c.relname;
select isnt(obj_description(c.oid, 'pg_class'), null, format('ai.%I has a comment', c.relname))
  from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition order by c.relname;
select ok(c.relkind <> 'v' or 'security_invoker=true' = any (c.reloptions), format('the view ai.%I runs with its reader''s rights', c.relname))
  from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('v', 'm') order by c.relname;
select is_empty($$ select relname from pg_class where relnamespace = 'ai'::regnamespace and relkind in ('m', 'f') $$,
  'no materialized view and no foreign table: neither knows row-level security');

-- A policy without a grant, and a grant without a policy
select is_empty($$ select c.relname, a.grantee::regrole, a.privilege_type from pg_class c cross join lateral aclexplode(c.relacl) a
                    where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'v') and a.grantee <> c.relowner and a.privilege_type <> 'SELECT' $$,
  'writing is granted column by column: who may update or delete whole rows may lock the table');
select is_empty($$
  select c.relname from pg_class c
   where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and exists (select from aclexplode(c.relacl) a where a.grantee <> c.relowner)
     and not exists (select from pg_policy p where p.polrelid = c.oid) $$, 'what is granted has a policy');
select is_empty($$ select relname from pg_class where relnamespace = 'ai'::regnamespace and relispartition and relacl is not null
                    and exists (select from aclexplode(relacl) a where a.grantee <> relowner) $$, 'no partition is granted to anybody');
select is_empty($$ select polrelid::regclass, polname from pg_policy p join pg_class c on c.oid = p.polrelid
                    where c.relnamespace = 'ai'::regnamespace and 0 = any (p.polroles) $$, 'no policy is for everybody');
select set_eq($$ select polrelid::regclass::text || ' ' || polname from pg_policy p join pg_class c on c.oid = p.polrelid
                  where c.relnamespace = 'ai'::regnamespace and pg_get_expr(p.polqual, p.polrelid) = 'true' $$,
  array['ai.workers visible', 'ai.breakers monitored', 'ai.model_stats visible'], 'the policies that show everything');
select is_empty($$ select polrelid::regclass, polname from pg_policy p join pg_class c on c.oid = p.polrelid
                    where c.relnamespace = 'ai'::regnamespace
                      and (coalesce(pg_get_expr(p.polqual, p.polrelid), '') || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), ''))
                          ~ 'ai\.(tenant_id|user_id|only_user|may|identity)\(\)'
                      and (coalesce(pg_get_expr(p.polqual, p.polrelid), '') || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), ''))
                          ~ '(?<!SELECT )ai\.(tenant_id|user_id|only_user|may|identity)\(\)' $$,
  'identity is asked once a statement: (select ai.tenant_id()), never once a row');

-- Constraints
select is_empty($$ select conrelid::regclass, conname from pg_constraint c join pg_class r on r.oid = c.conrelid
                    where r.relnamespace = 'ai'::regnamespace and not r.relispartition and c.contype in ('c', 'f', 'p', 'u')
                      and c.conname !~ ('^' || r.relname || '_') $$, 'constraints are named after their table');
select is_empty($$ select conrelid::regclass, conname from pg_constraint c
                    where c.connamespace = 'ai'::regnamespace and c.contype = 'f'
                      and not exists (select from pg_index i where i.indrelid = c.conrelid and i.indpred is null
                                         and (i.indkey::smallint[])[0:cardinality(c.conkey) - 1] @> c.conkey)
                      and c.conname not in ('providers_tenant_fkey', 'models_tenant_fkey', 'routes_tenant_fkey', 'members_tenant_fkey') $$,
  'every foreign key is indexed (those to ai.tenants by the first column of a key)');
select is_empty($$ select c.relname from pg_class c
                    where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
                      and c.relname not in ('active_lanes', 'cancellations', 'routes') $$,
  'every table has a primary key, but the two that must not, and the one whose key has a null for what is shared');
select is_empty($$ select t.tgrelid::regclass, t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
                    where c.relnamespace = 'ai'::regnamespace and not t.tgisinternal and t.tgenabled <> 'O' $$, 'no trigger is switched off');

-- Functions
create view t.functions as
select p.oid, p.oid::regprocedure::text as signature, p.proname, p.prosecdef, p.proconfig, p.provolatile, p.proparallel, p.proacl, p.proowner, p.prosrc, p.prosqlbody, l.lanname,
       pg_get_functiondef(p.oid) as definition
  from pg_proc p join pg_language l on l.oid = p.prolang where p.pronamespace = 'ai'::regnamespace;
select isnt(obj_description(oid, 'pg_proc'), null, format('%s has a comment', signature)) from t.functions order by 1;
select ok(proconfig @> array['search_path=pg_catalog, pg_temp'], format('%s is a definer with a fixed search_path', signature))
  from t.functions where prosecdef order by signature;
select is_empty($$ select signature from t.functions where proacl is null or exists (select from aclexplode(proacl) a where a.grantee = 0) $$,
  'no function may be called by everybody');
-- Without a search_path of its own a body is read with its caller's. These are inlined on purpose, or commit, or
-- run an app's policies, which may depend on the reader's search_path (they qualify everything).
select set_eq($$ select proname::text from t.functions where not exists (select from unnest(proconfig) s where s like 'search_path=%') $$,
  array['now', 'audit_hash', 'user_id', 'may', 'token_cost', 'is_generation', 'is_status', 'is_token_class', 'is_unit_class', 'token_count', 'channel_name', 'delta_payload', 'end_payload', 'event_data', 'may_notify', 'uuid_v7', 'ask', 'visible_places', 'search_rows', 'window_start', 'window_end', 'dearest_cost', 'signs', 'differing_signs', 'cosine_distance', 'vector_size',
        'unit_vector', 'fits_halves', 'settlements', 'transaction_stamp'],
  'the functions without a search_path of their own');
-- Up to PostgreSQL 17 a plan that is told to avoid what it cannot avoid costs ten billion, and from a hundred thousand on plans are compiled:
-- with LLVM, as most packages come, a claim then takes seconds.
select is_empty($$ select signature from t.functions where proconfig::text ~ '\menable_' and not coalesce(proconfig @> array['jit=off'], false) $$,
  'what steers the planner does not have its plans compiled');
-- A function that is marked safer than what it calls fails where a plan happens to be parallel. Calls are read from the texts without
-- their comments and strings: hints name functions, too.
select is_empty($$
  with read as materialized (
    select f.signature, f.proname, f.proparallel, regexp_replace(f.definition, '--[^\n]*|''[^'']*''', '', 'g') as body from t.functions f
  )
  select r.signature, c.signature from read r join read c on c.proname <> r.proname and r.body ~ ('\mai\.' || c.proname || '\(')
   where array_position('{s,r,u}', r.proparallel::text) < array_position('{s,r,u}', c.proparallel::text) $$,
  'nothing is held to be safer in a parallel plan than what it calls');
select is_empty($$ select signature from t.functions where prosrc ~ '\mset_config\(' and proparallel <> 'u' $$, 'what changes a setting is not for parallel plans');
select set_eq($$ select proname::text from t.functions where proname in ('may', 'uuid_v7') and prosqlbody is not null $$,
  array['may', 'uuid_v7'], 'those of them that an app role calls and that use operators are bound to their operators');
select is_empty($$ select signature from t.functions where prosrc ~ '\\' and prosqlbody is null and proname <> 'ask'
                      and not coalesce(proconfig @> array['standard_conforming_strings=on'], false) $$,
  'a body with a backslash is read the same in every session, whatever its standard_conforming_strings');
select is_empty($$ select signature from t.functions where definition ~* '\mleakproof\M' and definition !~* 'not leakproof' $$, 'nothing is marked leakproof');
select is_empty($$ select signature from t.functions where prosecdef and definition ~ '\mexecute\s+(''|v_|p_)' $$, 'no definer function executes a string that is not format()');
select is_empty($$ select signature from t.functions where prosrc ~ '\m(inserted|new|old)\M' and prosrc ~* 'returns trigger' $$, 'no trigger function is callable as another');

-- Roles
select ok(not rolcanlogin and not rolsuper and not rolbypassrls and not rolcreaterole and not rolcreatedb, format('%s is a plain group role', rolname))
  from pg_roles where rolname in ('ai_user', 'ai_developer', 'ai_admin', 'ai_worker', 'ai_monitor') order by rolname;

select * from finish();
rollback;
