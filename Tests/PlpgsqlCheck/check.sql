-- Has every PL/pgSQL function of the schema checked by plpgsql_check. Gives what it found and was not accepted below.
\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
create extension plpgsql_check;

-- What is found and may stay: functions and messages as patterns, and why.
create temp table accepted (function text, message text, why text);
insert into accepted values
  ('%', 'target type is different type than source type', 'a literal as a default (''{}''), or a count that is given as integer'),
  ('%', 'routine is marked as %, should be %', 'functions with dynamic statements, which write, or that only raise'),
  ('%', 'cannot determinate a result of dynamic SQL', 'an app''s table is named by the row of its vectorizer'),
  ('ai.parse_object(%', 'function pg_input_is_valid(%) does not exist', 'from version 16 on, and called from there on'),
  ('ai.claims_identity(%', 'function pg_input_is_valid(%) does not exist', 'from version 16 on, and called from there on'),
  ('ai.read_rows(%', 'record "v_row" is not assigned yet', 'it is, by that dynamic SQL'),
  ('%', 'OUT variable "%" is maybe unmodified', 'the columns of a table that is returned by return query execute'),
  ('%', 'unmodified OUT variable "%"', 'the columns that a row of that kind has no value for'),
  ('ai.admit_question(%', 'record "new" is not assigned yet', 'it is given; that it is right, the trigger made of it below shows'),
  ('ai.enqueue_generations(%', 'unreachable code', 'it is reached by leaving the block before it'),
  ('ai.run_tool(%', 'text type variable is not sanitized', 'a function''s name as PostgreSQL itself writes it, from ai.begin_tool()'),
  ('%', 'unused parameter "p_now"', 'chores are called alike'),
  ('%', 'unused parameter "p_user"', 'signatures that are called from several places'),
  ('%', 'never read variable "v_sent"', 'a select that is run for what it sends'),
  ('ai.store_embeddings(%', 'never read variable "v_vectors"', 'a select that is run for what it refuses');

-- A record that is given is indeterminate here. As the function of a trigger its text has a row of the table.
do $$
begin
  execute (select format('create function ai.admit_question_as_trigger() returns trigger language plpgsql volatile set search_path = pg_catalog, pg_temp as %L',
                         regexp_replace(p.prosrc, 'new +record := p_question;', ''))
             from pg_proc p where p.oid = 'ai.admit_question(record)'::regprocedure);
end
$$;
create trigger admit_question before insert on ai.generations for each row execute function ai.admit_question_as_trigger();

create temp table found as
select p.oid::regprocedure::text as function, c.level, c.lineno, c.statement, c.message, c.detail, c.context
  from pg_proc p
  join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
  left join lateral (select t.tgrelid, t.tgoldtable, t.tgnewtable from pg_trigger t where t.tgfoid = p.oid and not t.tgisinternal
                      order by t.tgrelid limit 1) t on true
 cross join lateral plpgsql_check_function_tb(p.oid, coalesce(t.tgrelid, 0), oldtable => t.tgoldtable, newtable => t.tgnewtable,
   other_warnings => true, extra_warnings => true, performance_warnings => true, security_warnings => true) c
 -- A trigger function can be checked on the table of a trigger only; those for the tables of apps have none here.
 where p.pronamespace = 'ai'::regnamespace and (p.prorettype <> 'trigger'::regtype or t.tgrelid is not null);

select format('%s, line %s, %s: %s: %s%s', f.function, coalesce(f.lineno::text, '?'), coalesce(f.statement, 'header'), f.level, f.message, ' (' || f.detail || ')')
  from found f where not exists (select from accepted a where f.function like a.function and f.message like a.message) order by 1;
select format('accepted but not found: %s: %s', a.function, a.message)
  from accepted a where not exists (select from found f where f.function like a.function and f.message like a.message) order by 1;
select 'no function was checked' where (select count(*) from pg_proc p join pg_language l on l.oid = p.prolang where p.pronamespace = 'ai'::regnamespace and l.lanname = 'plpgsql') < 100;
select format('%s has not what %s has', r.member, r.of_group) from (values ('authenticated', 'ai_user'), ('service_role', 'ai_admin')) r (member, of_group)
 where not pg_has_role(r.member, r.of_group, 'usage');
