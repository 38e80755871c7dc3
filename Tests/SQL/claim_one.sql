-- What one generation raises concerns nobody else: it is found by claiming one by one, and only what raises alone, too, ends.
begin;
\ir setup/world.sql
\ir setup/limits.sql
select no_plan();
set local client_min_messages = error;
select t.worker() as w \gset

-- What is in this table cannot be leased: `state` is raised, naming `named` as the constraint; `times`: only so often.
create table t.poison (id uuid primary key, state text not null, named text, times integer);
create sequence t.raised;
create function t.raise_poison() returns trigger language plpgsql as $$
declare
  v_one t.poison;
begin
  select * into v_one from t.poison p where p.id = new.generation_id;
  if found and (v_one.times is null or nextval('t.raised') <= v_one.times) then
    raise exception 'what % says is quoted here', new.generation_id using errcode = v_one.state, constraint = coalesce(v_one.named, '');
  end if;
  return new;
end
$$;
create trigger poison before insert on ai.leases for each row execute function t.raise_poison();
create function t.poisoned(p_state text default '22001', p_named text default null, p_times integer default null, p_tenant uuid default t.alpha(), p_user text default 'ann')
returns uuid language sql as $$
  with asked as materialized (select t.ask('poison', p_tenant => p_tenant, p_user => p_user) as id)
  insert into t.poison select a.id, p_state, p_named, p_times from asked a returning id
$$;
create function t.claim_one(p_worker uuid, out id uuid, out faulty_id uuid, out faulty_state text, out faulty_ended boolean, out wait_ms integer)
language sql as $$
  select (array_agg(c.generation_id) filter (where c.generation_id is not null))[1], (array_agg(c.faulty_id) filter (where c.faulty_id is not null))[1],
         max(c.faulty_state), bool_or(c.faulty_ended), max(c.wait_ms)
    from ai.worker_claim_one(p_worker) c
$$;
-- Claims one by one until there is nothing left, and says of each what came of it.
create function t.claim_singly(p_worker uuid, p_most integer default 50) returns table (n integer, id uuid, faulty_id uuid, faulty_ended boolean) language plpgsql as $$
declare
  v_one record;
begin
  for v_n in 1 .. p_most loop
    select * into v_one from t.claim_one(p_worker);
    exit when v_one.wait_ms is null;
    n := v_n;
    id := v_one.id;
    faulty_id := v_one.faulty_id;
    faulty_ended := v_one.faulty_ended;
    return next;
  end loop;
end
$$;

-- Nothing there; and one that is well is claimed as ever
select results_eq(format('select * from t.claim_one(%L)', :'w'), 'values (null::uuid, null::uuid, null::text, null::boolean, null::integer)', 'where nothing is queued, only a header that says so');
select t.ask('well', p_stream => true) as g \gset
create table t.one as select * from ai.worker_claim_one(:'w');
select is((select count(*) from t.one), 2::bigint, 'a call and a header');
select results_eq('select generation_id, kind, dialect, base_url, secret, model, stream, attempt, faulty_id from t.one where generation_id is not null',
                  format($$ values (%L::uuid, 'chat', 'openai', 'http://first.test/v1', 'FIRST_API_KEY', 'one-wire', true, 1, null::uuid) $$, :'g'), 'the call that a claim would give');
select results_eq('select wait_ms, cursor, retries, faulty_id, faulty_state, faulty_ended from t.one where generation_id is null',
                  'values (0, null::text, null::integer, null::uuid, null::text, null::boolean)', 'the header says that there was one, and that it is well');
select is(t.place(:'g'), 'lease', 'it is leased'), is(t.status(:'g'), 'running', 'and runs');
select throws_ok('select ai.worker_claim_one(gen_random_uuid())', 'PT404', null, 'an unknown worker');
select throws_ok('select ai.worker_claim_one(null)', 'PT404', null, 'no worker');

-- Several guilty ones of two tenants, at the heads of their lanes and among the others
select t.poisoned() as bad1, t.poisoned('54001') as bad2, t.ask('a1') as a1, t.ask('a2') as a2, t.poisoned('23502', p_tenant => t.beta(), p_user => 'bob') as bad3,
       t.ask('b1', p_tenant => t.beta(), p_user => 'bob') as b1, t.ask('b2', p_tenant => t.beta(), p_user => 'bob') as b2, t.poisoned('P0001') as bad4, t.ask('a3') as a3 \gset
select throws_ok(format('select * from ai.worker_claim(%L, 64, null)', :'w'), null, null, 'a claim takes all or nothing');
select is((select count(*) from ai.queue), 9::bigint, 'and nothing it was');
select set_config('ai.claimed_after', t.alpha()::text, false) \g /dev/null
create table t.singly as select * from t.claim_singly(:'w');
select results_eq('select coalesce(id, faulty_id) from t.singly order by n',
                  array[:'bad3', :'bad1', :'b1', :'bad2', :'b2', :'a1', :'a2', :'bad4', :'a3']::uuid[], 'in the turn of tenants, behind the one that came last');
select results_eq('select faulty_id from t.singly where faulty_ended order by 1', array[:'bad1', :'bad2', :'bad3', :'bad4']::uuid[], 'those that raise alone, too, end');
select is((select count(*) from unnest(array[:'a1', :'a2', :'a3', :'b1', :'b2']::uuid[]) u (id) where t.status(u.id) = 'running' and t.place(u.id) = 'lease'), 5::bigint, 'the others run');
select is((t.generation(u.id)).error - 'hint', jsonb_build_object('class', 'unprepared', 'code', 'PT500', 'message', 'its call could not be prepared', 'sqlstate', u.state),
          'what it ends with: ' || u.state) from (values (:'bad1'::uuid, '22001'), (:'bad2', '54001'), (:'bad3', '23502'), (:'bad4', 'P0001')) u (id, state);
select results_eq(format('select g.status, g.attempts, g.finished_at is not null, t.place(g.id) from ai.generations g where g.id = %L', :'bad1'),
                  $$ values ('failed', 0::smallint, true, null::text) $$, 'failed, without an attempt, and nowhere any more');
select is((select count(*) from ai.llm_calls), 0::bigint, 'no call is on the books for it');
select is((select count(*) from t.claim(:'w')), 0::bigint, 'nothing is left for a claim');

-- Raised once only: it may have been anything
select t.poisoned(p_times => 1) as once \gset
select setval('t.raised', 1, false) \g /dev/null
select results_eq(format('select id, faulty_id from t.claim_one(%L)', :'w'), format('values (%L::uuid, null::uuid)', :'once'), 'what does not raise again is leased');
select is((select count(*) from ai.leases where generation_id = :'once'), 1::bigint, 'once');

-- What nobody is to blame for is raised, and has changed nothing
select t.poisoned('40001') as g \gset
create function t.blamed(p_worker uuid, p_id uuid, p_state text, p_named text default null) returns text language plpgsql as $$
declare
  v_one record;
begin
  update t.poison set state = p_state, named = p_named where id = p_id;
  delete from ai.delayed where generation_id = p_id;
  delete from ai.queue where generation_id = p_id;
  insert into ai.queue (lane_id, generation_id, tenant_id) select l.id, p_id, t.alpha() from ai.lanes l where l.tenant_id = t.alpha() and l.priority = 'normal' and l.counters = '{}' and l.batch_id is null;
  select * into v_one from t.claim_one(p_worker);
  return concat_ws(' ', v_one.faulty_state, case v_one.faulty_ended when true then 'ended' when false then 'aside' end, t.place(p_id), t.status(p_id));
exception when query_canceled or others then
  return sqlstate;
end
$$;
select is(t.blamed(:'w', :'g', state), state, state || ' is the database''s') from unnest(array['40001', '40P01', '53100', '53300', '57P01', '57014', '25006', '55P03', '58030', '23514', '08006']) state;
select is((select status from ai.generations where id = :'g'), 'queued', 'it is queued as before');
select is(t.blamed(:'w', :'g', state), state || ' aside delayed queued', state || ' may be anybody''s: it waits') from unnest(array['XX000', 'XX001', '42883', '42501', '42P01', '23505', '53200']) state;
select results_eq(format('select d.due_at - ai.now() between ''59 seconds'' and ''1 minute'', d.attempts, d.target, d.lane_id = (select id from ai.lanes where tenant_id = t.alpha() and priority = ''normal'' and counters = ''{}'' and batch_id is null)
                            from ai.delayed d where d.generation_id = %L', :'g'), 'values (true, 0::smallint, 1::smallint, true)', 'for a minute, and comes back to its place');
update ai.generations set deadline_ms = extract(epoch from ai.now() - created_at) * 1000 + 20000 where id = :'g';
select is(t.blamed(:'w', :'g', 'XX000'), 'XX000 aside delayed queued', 'where its deadline is nearer');
select ok((select due_at - ai.now() between '19 seconds' and '20 seconds' from ai.delayed where generation_id = :'g'), 'it waits until then');
update ai.generations set deadline_ms = null where id = :'g';
update t.poison set times = 0 where id = :'g';
select t.pass('61 seconds');
select is((select count(*) from t.claim(:'w') where id = :'g'), 1::bigint, 'then it is claimed, if all is well');
select t.poisoned() as g \gset
select is(t.blamed(:'w', :'g', '23514', 'a_check'), '23514 ended failed', 'a check that has a name is not a missing partition');

-- Its end raises, too
create function t.raise_at_the_end() returns trigger language plpgsql as $$ begin raise exception 'no end' using errcode = '54001'; end $$;
create trigger endless before update on ai.generations for each row when (new.status = 'failed') execute function t.raise_at_the_end();
select t.poisoned() as g, t.ask('well') as well \gset
select results_eq(format('select id, faulty_id, faulty_ended from t.claim_singly(%L)', :'w'), format('values (null::uuid, %L::uuid, false), (%L::uuid, null::uuid, null::boolean)', :'g', :'well'),
                  'what cannot even be ended waits, and the next one is leased');
select is(t.place(:'g'), 'delayed', 'it waits for its time');
drop trigger endless on ai.generations;
delete from ai.delayed;
delete from ai.generations where id = :'g';

-- One that is not ready within statement_timeout, which it had for itself
create function t.never() returns trigger language plpgsql as $$ begin loop perform pg_sleep(1); end loop; end $$;
create trigger never before insert on ai.leases for each row execute function t.never();
select t.ask('slow') as g \gset
set local statement_timeout = '300ms';
create table t.slow as select * from t.claim_one(:'w');
set local statement_timeout = 0;
drop trigger never on ai.leases;
select results_eq('select id, faulty_id, faulty_state, faulty_ended, wait_ms from t.slow', format($$ values (null::uuid, %L::uuid, '57014', false, 0) $$, :'g'), 'what takes too long waits');
select is(t.place(:'g'), 'delayed', 'and is not ended for it'), is(t.status(:'g'), 'queued', 'nor leased');
delete from ai.delayed;
delete from ai.generations where id = :'g';

-- Before it is leased: the election of who asks for all that ask the same
insert into ai.cache_policies (tenant_id, exact) values (t.alpha(), true);
create function t.no_election() returns trigger language plpgsql as $$ begin raise exception 'no election' using errcode = '22003'; end $$;
create trigger no_election before insert on ai.leaders for each row execute function t.no_election();
insert into ai.generations (tenant_id, user_id, prompt, model, cache) values (t.alpha(), 'ann', 'the same', 'mtap/one', 'exact') returning id as g \gset
select throws_ok(format('select * from ai.worker_claim(%L, 64, null)', :'w'), '22003', null, 'a claim that elects fails');
select is((select faulty_id from t.claim_one(:'w')), :'g', 'whose election it was is found');
select is(t.status(:'g'), 'failed', 'and ends');
drop trigger no_election on ai.leaders;
delete from ai.cache_policies;

-- While it is prepared, too, nothing ends for trouble of the database
create or replace function ai.embedding_inputs(p_tenant uuid, p_id uuid) returns jsonb language plpgsql as $$
begin
  raise exception 'no texts' using errcode = current_setting('t.state');
end
$$;
create function t.prepared_with(p_worker uuid, p_state text) returns text language plpgsql as $$
declare
  v_id uuid := t.ask('texts');
begin
  perform set_config('t.state', p_state, true);
  update ai.generations set purpose = 'rows' where id = v_id;
  update ai.queue set prepare = true where generation_id = v_id;
  perform from t.claim(p_worker);
  return t.status(v_id);
exception when others then
  return sqlstate;
end
$$;
select is(t.prepared_with(:'w', state), state, state || ' goes on') from unnest(array['53100', '25006', '42883', 'XX000']) state;
select is(t.prepared_with(:'w', state), 'failed', state || ' ends it') from unnest(array['22001', '54001', 'PT400']) state;

-- What was reserved is given back; the limit counts what was leased alone
select t.limit_id('{"tenant_id": null, "per": "member", "metric": "requests", "period": "hour", "amount": 2, "on_limit": "reject"}') as l \gset
select t.poisoned() as bad, t.ask('well') as well \gset
select count(*) from t.claim_singly(:'w') \g /dev/null
select is(t.used(:l), 1::numeric, 'only what was leased counts'), is(t.place(:'well'), 'lease', 'and that is leased'), is(t.status(:'bad'), 'failed', 'the other one ended');
select is((select count(*) from ai.unsettled), 0::bigint, 'nothing is left to be settled');
select t.clear();

-- Nothing of a batch that is paused
insert into ai.batches (tenant_id, id, user_id, name, created_at, paused_at) values (t.alpha(), '0d000000-0000-7000-8000-000000000001', 'ann', 'paused', ai.now(), ai.now());
insert into ai.lanes (tenant_id, priority, batch_id) values (t.alpha(), 'normal', '0d000000-0000-7000-8000-000000000001') returning id as lane \gset
insert into ai.generations (tenant_id, user_id, prompt, model, batch_id) values (t.alpha(), 'ann', 'later', 'mtap/one', '0d000000-0000-7000-8000-000000000001');
select is((select count(*) from t.claim_singly(:'w')), 0::bigint, 'what is paused is not taken');

-- What can go by a provider batch does
update ai.models set capabilities = '{"batch": true}' where name = 'mtap/one';
select t.ask('in a batch', p_priority => 'batch', p_deadline_ms => 2000000000) as g \gset
select results_eq(format('select id, faulty_id, wait_ms from t.claim_one(%L)', :'w'), 'values (null::uuid, null::uuid, 0)', 'one that goes by a provider batch is no call');
select is((select count(*) from ai.batched_requests where generation_id = :'g'), 1::bigint, 'it is in one');
update ai.models set capabilities = '{}' where name = 'mtap/one';

-- Who may
select is(t.as_role(r, format('select * from ai.worker_claim_one(%L)', :'w')), case r when 'mtap_worker' then 'ok 1' else '42501' end, r || ': only workers')
  from unnest(array['mtap_worker', 'mtap_ann', 'mtap_dev', 'mtap_adm', 'mtap_monitor', 'mtap_public']) r;

select * from finish();
rollback;
