-- What row-level security costs is mostly how often a statement asks who it is: counted here, timed by Tests/Benchmarks/rls_cost.py.
begin;
\ir setup/world.sql
select no_plan();

select t.ask(n || ' of ' || u, p_user => u) from unnest(array['ann', 'abe']) u, generate_series(1, 30) n \g /dev/null
set local track_functions = 'all';

-- How often a statement looks up who it is, run as a login role that is bound: ai.tenant_id() and ai.only_user() then do it themselves.
create function t.lookups() returns bigint language sql as $$
  select sum(coalesce(pg_stat_get_xact_function_calls(f), 0))::bigint
    from unnest(array['ai.identity()', 'ai.tenant_id()', 'ai.only_user()']::regprocedure[]) f
$$;
create function t.identity_calls(p_role text, p_sql text) returns bigint language plpgsql as $$
declare
  v_before bigint := t.lookups();
  v_result text := t.as_role(p_role, p_sql);
begin
  if v_result !~ '^ok' then
    raise exception '%: %', p_sql, v_result;
  end if;
  return t.lookups() - v_before;
end
$$;

-- The policy of an INSERT asks once; the trigger that admits looks the binding up itself for each row: a row's trigger remembers nothing
-- that its caller could not forge.
select is(t.identity_calls(v.role, v.statement), v.calls::bigint, format('%s asks %s times who it is: %s', v.role, v.calls, v.statement))
  from (values
    ('mtap_ann', 'select * from ai.generations order by id desc limit 20', 2),
    ('mtap_ann', format('select * from ai.generations where tenant_id = %L and user_id = ''ann'' order by id desc limit 20', t.alpha()), 2),
    ('mtap_ann', format('select * from ai.generations where id = %L', (select id from ai.generations where user_id = 'ann' limit 1)), 2),
    ('mtap_ann', 'select count(*) from ai.generations', 2),
    ('mtap_dev', 'select count(*) from ai.generations', 2),
    ('mtap_ann', 'select * from ai.llm_calls', 1),
    ('mtap_ann', 'insert into ai.generations (prompt, model) values (''x'', ''mtap/one'')', 1),
    ('mtap_ann', 'insert into ai.generations (prompt, model) select ''x'' || n, ''mtap/one'' from generate_series(1, 100) n', 1)) v (role, statement, calls);

-- A worker is a login in a group: what it may do it does as their owner, and nobody asks who it is.
select t.worker() as worker \gset
select is(t.identity_calls('mtap_worker', format('select * from ai.worker_claim(%L, 10, null)', :'worker')), 0::bigint, 'a claim asks nobody');
select is(t.identity_calls('mtap_worker', format('select * from ai.worker_settle(%L, (select jsonb_agg(jsonb_build_object(''id'', %L::uuid, ''attempt'', 1, ''outcome'', ''succeeded'', ''output'', ''x'', ''sent'', true))))', :'worker',
                                                (select generation_id from ai.leases limit 1))), 0::bigint, 'nor does settling');

select * from finish();
rollback;
