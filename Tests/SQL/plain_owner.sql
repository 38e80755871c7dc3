-- The schema of an ordinary owner: no superuser, nothing that row-level security is bypassed by but owning the tables.
begin;
\ir setup/world.sql
select no_plan();

set constraints all immediate;  -- a table with entries for the audit log on their way keeps its owner
create role mtap_owner login;
do $$
declare
  v_one record;
begin
  for v_one in select format('alter %s %s owner to mtap_owner', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass) as sql
                 from pg_class c where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p')
                union all select format('alter routine %s owner to mtap_owner', oid::regprocedure) from pg_proc where pronamespace = 'ai'::regnamespace
                union all select 'alter domain ai.embedding owner to mtap_owner' union all select 'alter schema ai owner to mtap_owner' loop
    execute v_one.sql;
  end loop;
end
$$;
select is((select count(*) from pg_proc where pronamespace = 'ai'::regnamespace and proowner <> 'mtap_owner'::regrole), 0::bigint, 'everything is the plain owner''s');
select ok(not rolsuper and not rolbypassrls, 'who is no superuser') from pg_roles where rolname = 'mtap_owner';

-- A whole life, each part as who does it
set local session authorization mtap_ann;
select ai.generate('Why?', model => 'mtap/one', stream => true, idempotency_key => 'k') as g, ai.embed('Why?', model => 'mtap/embed') as e, ai.generate('Later', run_after => now() + interval '1 hour') as later \gset
select lives_ok('select ai.subscribe()', 'a member subscribes');
set local session authorization mtap_worker;
select worker_id as w from ai.worker_register('plain', '1', 4) \gset
select is((select count(*) from ai.worker_claim(:'w', 10, null) where generation_id is not null), 2::bigint, 'a worker claims');
select is_empty(format($$ select * from ai.worker_publish(%L, jsonb_build_array(jsonb_build_object('id', %L, 'attempt', 1, 'part', 1, 'text', 'Be'))) $$, :'w', :'g'), 'and publishes');
select results_eq(format($$ select result from ai.worker_settle(%L, jsonb_build_array(jsonb_build_object('id', %L, 'attempt', 1, 'outcome', 'succeeded', 'output', 'Because', 'tail', 'cause', 'sent', true),
                                                                               jsonb_build_object('id', %L, 'attempt', 1, 'outcome', 'succeeded', 'embedding', '[1, 2]'::jsonb, 'sent', true))) $$, :'w', :'g', :'e'),
                  $$ values ('ended'), ('ended') $$, 'and settles');
select is(ai.worker_heartbeat(:'w'), true, 'and lives');
select lives_ok(format('select ai.worker_maintain(%L)', :'w'), 'and maintains');
reset session authorization;
set local session_replication_role = origin;
update ai.maintenance set partitions_at = '-infinity', orphans_at = '-infinity';
set local session authorization mtap_worker;
select is(ai.worker_maintain(:'w') ->> 'partitions_failed', null, 'partitions, too');
select lives_ok($$ select ai.worker_sleep() $$, 'and sleeps');
select lives_ok($$ select ai.worker_wake() $$, 'and wakes');
set local session authorization mtap_ann;
select results_eq(format('select status, output from ai.generations where id = %L', :'g'), $$ values ('succeeded', 'Because') $$, 'the member has the answer');
select is((select count(*) from ai.read_stream(:'g')), 4::bigint, 'and its stream');
select is(ai.cancel(:'later'), 'cancelled', 'and cancels the rest');
select is((select sum(calls) from ai.usage_report()), 2::numeric, 'and the bill');
select is((select count(*) from ai.models where name = 'mtap/one'), 1::bigint, 'and the catalogue');
set local session authorization mtap_bob;
select is((select count(*) from ai.generations), 0::bigint, 'another tenant has nothing of it');
set local session authorization mtap_worker;
select lives_ok(format('select ai.worker_stop(%L)', :'w'), 'the worker stops');
set local session authorization mtap_owner;
select lives_ok($$ select ai.make_partitions('2071-01-01'), ai.drop_old_partitions('2071-01-01'), ai.requeue_orphans('1 year') $$, 'the owner keeps the tables in order by hand');
select is((select count(*) from ai.generations), 3::bigint, 'and sees every row');
select is(ai.tenant_id(), null, 'but is nobody');
select throws_ok($$ insert into ai.generations (prompt) values ('x') $$, 'PT401', null, 'who can ask nothing for himself');
select lives_ok(format($$ insert into ai.generations (tenant_id, user_id, prompt) values (%L, 'ann', 'x') $$, t.alpha()), 'only for a member');
reset session authorization;

select * from finish();
rollback;
