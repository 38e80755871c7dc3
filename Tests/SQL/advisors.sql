-- The rules of Supabase's database advisors (splinter), as they bear on this schema: each under its number and name, asked of the
-- catalog in our words. Exceptions stand in the rule, with the reason. The schema is taken for one that the API exposes.
--
-- Not asked, because there is nothing to ask it of: 0002, 0012, 0021 (an auth schema), 0019 (pgmq), 0025 (storage), 0026 and 0027
-- (pg_graphql), 0005, 0020 and 0031 (what a server did, not what it is).
begin;
\ir setup/world.sql
select plan(19);

create view t.tables as
select c.oid, c.relname as name, c.relkind, c.relispartition, c.relrowsecurity, c.reloptions
  from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f');
create view t.policies as
select p.oid, p.polrelid, c.relname as name, p.polname, p.polcmd, p.polpermissive, p.polroles,
       pg_get_expr(p.polqual, p.polrelid) as qual, pg_get_expr(p.polwithcheck, p.polrelid) as with_check
  from pg_policy p join pg_class c on c.oid = p.polrelid where c.relnamespace = 'ai'::regnamespace;
create view t.indexes as
select i.*, c.relname as name from pg_index i join pg_class c on c.oid = i.indexrelid where c.relnamespace = 'ai'::regnamespace;

-- An expression without its subselects.
create function t.outside_selects(p_text text) returns text language plpgsql as $$
declare
  v_at    integer;
  v_end   integer;
  v_depth integer;
begin
  loop
    v_at := strpos(p_text, '( SELECT ');
    exit when v_at = 0;
    v_end := v_at;
    v_depth := 0;
    loop
      v_depth := v_depth + case substr(p_text, v_end, 1) when '(' then 1 when ')' then -1 else 0 end;
      exit when v_depth = 0;
      v_end := v_end + 1;
    end loop;
    p_text := overlay(p_text placing '' from v_at for v_end - v_at + 1);
  end loop;
  return p_text;
end
$$;

select is_empty($$ select f.conrelid::regclass, f.conname from pg_constraint f
                    where f.connamespace = 'ai'::regnamespace and f.contype = 'f' and f.conparentid = 0
                      and not exists (select from t.indexes i where i.indrelid = f.conrelid and i.indisvalid and i.indpred is null
                                         and (i.indkey::smallint[])[0:cardinality(f.conkey) - 1] @> f.conkey) $$, '0001 unindexed_foreign_keys');
select is_empty($$ select name, polname from t.policies
                    where t.outside_selects(concat(qual, ' ', with_check)) ~ '\m(ai|auth)\.\w+\(|current_setting\(' $$,
  '0003 auth_rls_initplan: what depends on the session alone is asked once a statement');
select is_empty($$ select t.name from t.tables t where t.relkind in ('r', 'p') and not exists (select from t.indexes i where i.indrelid = t.oid and i.indisprimary)
                      -- A list of rows that one statement writes and another empties; a queue of requests; and a key with a null in it for what is shared.
                      and t.name not in ('active_lanes', 'cancellations', 'routes') $$, '0004 no_primary_key');
select is_empty($$ select name, role, command, array_agg(polname)
                     from t.policies cross join unnest(polroles) role
                    cross join unnest(case polcmd when '*' then '{r,a,w,d}'::"char"[] else array[polcmd] end) command
                    where polpermissive group by 1, 2, 3 having count(*) > 1 $$, '0006 multiple_permissive_policies, for one role');
select is_empty($$ select p.name, p.polname from t.policies p join t.tables t on t.oid = p.polrelid where not t.relrowsecurity $$, '0007 policy_exists_rls_disabled');
-- Without a policy nobody sees a row. That is what an internal table is for: it may have no grant either, of the table or of a column.
select is_empty($$ select t.name from t.tables t
                    where t.relrowsecurity and not exists (select from t.policies p where p.polrelid = t.oid)
                      and exists (select from pg_class c left join pg_attribute a on a.attrelid = c.oid
                                   cross join lateral aclexplode(array_cat(c.relacl, a.attacl)) g where c.oid = t.oid and g.grantee <> c.relowner) $$,
  '0008 rls_enabled_no_policy: only where nothing is granted');
select is_empty($$ select i.indrelid::regclass, array_agg(i.name) from t.indexes i
                    group by i.indrelid, i.indkey::text, i.indclass::text, i.indoption::text, i.indcollation::text, pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)
                   having count(*) > 1 $$, '0009 duplicate_index');
select is_empty($$ select name from t.tables where relkind = 'v' and not coalesce(reloptions @> '{security_invoker=true}', false) $$, '0010 security_definer_view');
-- Those that have none run with their caller's rights (catalog.sql has the list, and why).
select is_empty($$ select oid::regprocedure from pg_proc where pronamespace = 'ai'::regnamespace
                      and not exists (select from unnest(proconfig) s where s like 'search_path=%') and (prosecdef or prorettype = 'trigger'::regtype) $$,
  '0011 function_search_path_mutable: no definer, and no trigger');
select is_empty($$ select name from t.tables where relkind in ('r', 'p') and not relrowsecurity $$, '0013 rls_disabled_in_public');
-- pgvector is put where the first writable schema of who installs Martlet is: on Supabase that is chosen before (extensions).
select is_empty($$ select e.extname from pg_extension e where e.extnamespace in ('public'::regnamespace, 'ai'::regnamespace) and e.extname <> 'vector' $$, '0014 extension_in_public, but pgvector where nobody chose another schema');
select is_empty($$ select name, polname from t.policies where concat(qual, with_check) ~* 'user_metadata|raw_user_meta_data'
                   union all select oid::regprocedure::text, '' from pg_proc where pronamespace = 'ai'::regnamespace and prosrc ~* '(''|")(raw_)?user_meta_?data(''|")' $$,
  '0015 rls_references_user_metadata, nor does a function');
select is_empty($$ select name from t.tables where relkind = 'm' $$, '0016 materialized_view_in_api');
select is_empty($$ select name from t.tables where relkind = 'f' $$, '0017 foreign_table_in_api');
-- pg_upgrade keeps regclass alone of them.
select is_empty($$ select t.name, a.attname from t.tables t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
                    where a.atttypid in ('regcollation'::regtype, 'regconfig'::regtype, 'regdictionary'::regtype, 'regnamespace'::regtype, 'regoper'::regtype,
                                         'regoperator'::regtype, 'regproc'::regtype, 'regprocedure'::regtype) $$, '0018 unsupported_reg_types');
select is_empty($$ select t.name, a.attname from t.tables t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
                    where a.attname ~* '(^|_)(secret|password|token|key|hash|sealed|ciphertext|wrapped)$'
                      and exists (select from (values ('ai_admin'), ('ai_worker'), ('ai_monitor')) r (role) where has_column_privilege(r.role, t.oid, a.attnum, 'select'))
                      -- The audit log's chain is there to be verified, a document's hash is of what its reader reads, an account's secret is the
                      -- name of one, and keys are those of rows.
                      and (t.name, a.attname) not in (('audit_heads', 'hash'), ('audit_log', 'hash'), ('audit_log', 'prev_hash'), ('audit_log', 'key'), ('documents', 'hash'),
                                                      ('provider_accounts', 'secret'), ('generations', 'cache_key'), ('generations', 'idempotency_key'), ('vectorized_rows', 'row_key')) $$, '0023 sensitive_columns_exposed');
-- What is the same for every tenant, and what only ai_monitor sees; nothing is written under such a policy.
select is_empty($$ select name, polname from t.policies
                    where (regexp_replace(qual, '[() ]', '', 'g') in ('true', '1=1') or regexp_replace(with_check, '[() ]', '', 'g') in ('true', '1=1'))
                      and not (polcmd = 'r' and (polroles = array['ai_monitor'::regrole::oid] or name in ('retry_rules', 'breaker_settings'))) $$, '0024 rls_policy_always_true');
-- Supabase's anon is in no group. Which of them authenticated, a member of ai_user, may call is in setup/rights.sql, each with what
-- keeps its caller to what is the caller's.
select is_empty($$ select oid::regprocedure from pg_proc where pronamespace = 'ai'::regnamespace and prosecdef and has_function_privilege('mtap_public', oid, 'execute') $$,
  '0028, 0029 security_definer_function_executable: not without a group');
select is_empty($$ select name from t.indexes where not indisvalid $$, '0030 invalid_index');

select * from finish();
rollback;
