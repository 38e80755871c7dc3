-- What claims note of questions, and what inserts and claims do with it: whatever is noted, the same comes out as without it.
begin;
\ir setup/world.sql
\ir setup/limits.sql
select no_plan();
select t.worker() as w \gset
-- A question as most are: by a login that is bound, and nothing but a model and a prompt. Gives the SQLSTATE, or ok.
create function t.plainly(p_role text, p_model text default 'mtap/one', p_prompt text default 'Why?') returns text language sql as $$
  select t.as_role(p_role, format('insert into ai.generations (model, prompt) values (%L, %L)', p_model, p_prompt))
$$;
create function t.claims(p_worker uuid) returns text language sql as $$ select string_agg(c.model, ' ' order by c.id) from t.claim(p_worker) c $$;
create function t.end_all(p_worker uuid) returns bigint language sql as $$
  select count(*) from ai.worker_settle(p_worker, coalesce((select jsonb_agg(jsonb_build_object('id', l.generation_id, 'attempt', l.attempt, 'outcome', 'succeeded', 'sent', true))
                                                            from ai.leases l where l.worker_id = p_worker), '[]'))
$$;
create function t.version() returns bigint language sql as $$ select sum(c.changes)::bigint from ai.policy_changes c $$;
create view t.known as
  select w.user_id, w.model, w.priority, l.counters <> '{}' as limited, w.limited as noted_so, m.name as answers
    from ai.known_ways w join ai.lanes l on l.id = w.lane_id join ai.models m on m.id = w.model_id
   where w.version = t.version();
create function t.queued_in() returns bigint[] language sql as $$ select array_agg(distinct l.counters)::text::bigint[] from ai.queue q join ai.lanes l on l.id = q.lane_id $$;
-- Which lanes questions lie in says who queued them: known ones need no look at limits, models and providers.
create function t.looked() returns bigint language sql as $$ select count(*) from ai.known_ways $$;

-- Noted by the first claim, used by what follows
select is(t.plainly('mtap_ann'), 'ok 1', 'nobody knows the way of a first question');
select is(t.looked(), 0::bigint, 'an insert notes nothing');
select is(t.claims(:'w'), 'one-wire', 'claimed');
select results_eq('table t.known', $$ values ('', 'mtap/one', 'normal', false, false, 'mtap/one') $$, 'its way is noted, for every member, as nothing tells them apart');
select is(t.plainly('mtap_abe'), 'ok 1', 'another member'), is(t.plainly('mtap_ann'), 'ok 1', 'and the same');
select is(t.claims(:'w'), 'one-wire one-wire', 'are claimed'), is(t.looked(), 1::bigint, 'and nothing is noted again');
select is(t.plainly('mtap_bob'), 'ok 1', 'of another tenant'), is(t.claims(:'w'), 'one-wire', 'is claimed'), is(t.looked(), 2::bigint, 'and noted by itself');
select is((select count(distinct tenant_id) from ai.known_ways), 2::bigint, 'with its tenant');
select is(t.plainly('mtap_ann', 'mtap/two'), 'ok 1', 'another model'), is(t.claims(:'w'), 'two-wire', 'is claimed');
select lives_ok($$ select t.as_role('mtap_ann', 'insert into ai.generations (model, prompt, priority) values (''mtap/one'', ''x'', ''high'')') $$, 'another priority');
select is(t.claims(:'w'), 'one-wire', 'is claimed'), bag_eq($$ select model, priority from t.known k $$,
  $$ values ('mtap/one', 'normal'), ('mtap/one', 'normal'), ('mtap/two', 'normal'), ('mtap/one', 'high') $$, 'each noted by itself');
select is(t.end_all(:'w'), 6::bigint, 'all are answered');

-- Planted: the insert goes by what is noted, for one plain question and for nothing else
update ai.known_ways set lane_id = (select id from ai.lanes where tenant_id = t.alpha() and priority = 'low' and batch_id is null) where tenant_id = t.alpha() and model = 'mtap/one' and priority = 'normal';
create function t.goes(p_sql text, p_priority text) returns text language plpgsql as $$
declare v_as text := t.as_role('mtap_ann', p_sql); v_found text;
begin
  select string_agg(distinct l.priority, ' ') into v_found from ai.queue q join ai.lanes l on l.id = q.lane_id;
  delete from ai.queue;
  delete from ai.delayed;
  delete from ai.generations where status = 'queued';
  return is(v_as || ' ' || coalesce(v_found, 'nowhere'), p_priority, p_sql);
end $$;
select t.goes($$ insert into ai.generations (model, prompt) values ('mtap/one', 'x') $$, 'ok 1 low');
select t.goes($$ insert into ai.generations (model, messages) values ('mtap/one', '[{"role": "user", "content": "x"}]') $$, 'ok 1 low');
select t.goes($$ insert into ai.generations (model, prompt) values ('mtap/one', 'x'), ('mtap/one', 'y') $$, 'ok 2 normal');
select t.goes($$ insert into ai.generations (profile, prompt) values ('mtap-route', 'x') $$, 'ok 1 normal');
select t.goes($$ insert into ai.generations (model, prompt, run_after) values ('mtap/one', 'x', now() + interval '1 hour') $$, 'ok 1 nowhere');
select t.goes($$ insert into ai.generations (model, prompt, priority) values ('mtap/one', 'x', 'high') $$, 'ok 1 high');
select t.goes(format('insert into ai.generations (model, prompt) values (''mtap/one'', %L)', repeat('x', s.max_input_bytes)), 'ok 1 low') from ai.settings s;
select t.goes(format('insert into ai.generations (model, prompt) values (''mtap/one'', %L)', repeat('x', s.max_input_bytes + 1)), 'PT413 nowhere') from ai.settings s;
-- A claim puts right what lies in the wrong lane only where limits make lanes; an insert that is misled costs its turn, and nothing else.
select is(t.plainly('mtap_ann'), 'ok 1', 'misled'), is(t.claims(:'w'), 'one-wire', 'and answered'), is(t.end_all(:'w'), 1::bigint, 'as it should be');
delete from ai.known_ways;

-- Void at the next change, in the transaction itself at once
select is(t.plainly('mtap_ann'), 'ok 1', 'noted anew'), is(t.claims(:'w'), 'one-wire', 'claimed');
select is((select count(*) from t.known), 1::bigint, 'known');
create function t.voids(p_sql text, p_voids boolean) returns text language plpgsql as $$
declare
  v_version bigint := t.version();
begin
  execute p_sql;
  return is(t.version() > v_version, p_voids, case when p_voids then 'void: ' else 'valid: ' end || p_sql);
end $$;
select t.voids(sql, voids) from (values
  ($$ update ai.models set enabled = false where name = 'mtap/two' $$, true), ($$ update ai.models set enabled = true where name = 'mtap/two' $$, true),
  ($$ update ai.models set context_tokens = 1000 where name = 'mtap/two' $$, false), ($$ update ai.models set name = 'mtap/zwei' where name = 'mtap/two' $$, true),
  ($$ update ai.models set name = 'mtap/two' where name = 'mtap/zwei' $$, true),
  ($$ insert into ai.models (provider_id, name, wire_name, kind) select id, 'mtap/new', 'new', 'chat' from ai.providers where name = 'mtap-first' $$, true),
  ($$ delete from ai.models where name = 'mtap/new' $$, true),
  ($$ update ai.providers set enabled = false where name = 'mtap-second' $$, true), ($$ update ai.providers set base_url = 'http://third.test' where name = 'mtap-second' $$, false),
  ($$ update ai.providers set enabled = true where name = 'mtap-second' $$, true),
  ($$ insert into ai.limits (tenant_id, metric, period, amount) values (t.alpha(), 'requests', 'hour', 100) $$, true), ($$ update ai.limits set amount = 50 $$, false),
  ($$ update ai.limits set enabled = false $$, true), ($$ delete from ai.limits $$, true),
  ($$ update ai.settings set max_input_bytes = 1000 $$, true), ($$ update ai.settings set accepting = false $$, true), ($$ update ai.settings set accepting = true $$, true),
  ($$ select ai.add_up_changes() $$, false)) v (sql, voids);
select is((select count(*) from ai.policy_changes), 1::bigint, 'all is one row'), lives_ok('select ai.add_up_changes()', 'to which nothing is added'),
       is((select count(*) from ai.policy_changes), 1::bigint, 'and which stays');
update ai.settings set accepting = false;
select is(t.plainly('mtap_ann'), 'PT503', 'nothing is taken at present');
update ai.settings set accepting = true, max_input_bytes = 4194304;
select is(ai.forget_ways(ai.now()), 1, 'what is void is deleted');
select is(t.plainly('mtap_ann'), 'ok 1', 'asked again'), is(t.claims(:'w'), 'one-wire', 'and claimed'), is(ai.forget_ways(ai.now()), 0, 'what is valid stays');
select ok(ai.refresh_policies() is not null, 'what triggers did not see is looked at by every migration');
select is((select count(*) from t.known), 0::bigint, 'and voids all');
select is(t.looked(), 0::bigint, 'and forgets it');
select is(t.plainly('mtap_ann'), 'ok 1', 'asked'), is(t.claims(:'w'), 'one-wire', 'claimed'), is(ai.forget_ways(ai.now() + interval '23 hours'), 0, 'kept for a day'),
       is(ai.forget_ways(ai.now() + interval '25 hours'), 1, 'and no longer');
select is(t.end_all(:'w'), 3::bigint, 'answered');

select is(t.plainly('mtap_ann'), 'ok 1', 'asked'), is(t.claims(:'w'), 'one-wire', 'claimed'), is(t.looked(), 1::bigint, 'noted');
update ai.models set enabled = false where name = 'mtap/one';
select is(t.plainly('mtap_ann'), 'PT404', 'a model that is off answers nobody, in this transaction either');
update ai.models set enabled = true where name = 'mtap/one';
select is(t.end_all(:'w'), 1::bigint, 'answered');

-- Limits: a way knows its lane; that of a member where limits tell members apart
select t.limit_id('{"tenant_id": null, "per": "member", "metric": "requests", "period": "hour", "amount": 3, "on_limit": "reject"}') as l \gset
select is(t.plainly('mtap_ann'), 'ok 1', 'ann asks, with a new limit'), is(t.claims(:'w'), null, 'is put into her lane'), is(t.claims(:'w'), 'one-wire', 'and claimed from it');
select is(t.plainly('mtap_abe'), 'ok 1', 'abe asks'), is(t.claims(:'w'), null, 'is put into his'), is(t.claims(:'w'), 'one-wire', 'and claimed');
select results_eq('select * from t.known order by 1', $$ values ('abe', 'mtap/one', 'normal', true, true, 'mtap/one'), ('ann', 'mtap/one', 'normal', true, true, 'mtap/one') $$, 'each has a way');
select is((select count(distinct w.lane_id) from ai.known_ways w where w.version = t.version()), 2::bigint, 'to a lane of the own');
select is(t.plainly('mtap_ann'), 'ok 1', 'ann again'), is(t.claims(:'w'), 'one-wire', 'is claimed at once'), is(t.used(:l), 3::numeric, 'all is counted');
select is(t.plainly('mtap_ann'), 'ok 1', 'the third'), is(t.plainly('mtap_ann'), 'ok 1', 'and one too many'), is(t.claims(:'w'), 'one-wire', 'of which one is sent');
select is((select count(*) from ai.generations where status = 'rejected'), 1::bigint, 'and one refused');
select is(t.end_all(:'w'), 4::bigint, 'answered');
update ai.limits set enabled = false;
select is(t.plainly('mtap_ann'), 'ok 1', 'without the limit'), is(t.claims(:'w'), 'one-wire', 'it is claimed');
select results_eq('table t.known', $$ values ('', 'mtap/one', 'normal', false, false, 'mtap/one') $$, 'from the lane of all');

-- A model of the tenant's own comes before the shared one of its name, as soon as it is there
select is(t.plainly('mtap_ann'), 'ok 1', 'asked of the shared model'), is(t.claims(:'w'), 'one-wire', 'who answers');
insert into ai.models (tenant_id, provider_id, name, wire_name, kind)
select t.alpha(), id, 'mtap/one', 'own-wire', 'chat' from ai.providers where name = 'mtap-first';
select is(t.plainly('mtap_ann'), 'ok 1', 'asked of the own'), is(t.claims(:'w'), 'own-wire', 'which answers');
select is(t.plainly('mtap_ann'), 'ok 1', 'and again'), is(t.claims(:'w'), 'own-wire', 'from what is known');

-- Without any version, as after a restore of some tables, nothing is known, and all goes on
delete from ai.policy_changes;
select is(t.plainly('mtap_ann'), 'ok 1', 'asked'), is(t.claims(:'w'), 'own-wire', 'and claimed');
select ok(ai.forget_ways(ai.now()) > 0, 'what was noted is void');
insert into ai.policy_changes default values;

-- What the operator takes away under known ways is made anew
select is(t.plainly('mtap_ann'), 'ok 1', 'asked'), is(t.claims(:'w'), 'own-wire', 'claimed');
select is((select count(*) from t.known), 1::bigint, 'known');
select t.voids(sql, true) from (values ('delete from ai.counters'), ('delete from ai.lanes where batch_id is null and tenant_id = t.alpha()'), ('update ai.settings set accepting = true')) v (sql);
select is(t.plainly('mtap_ann'), 'ok 1', 'without a lane'), is(t.claims(:'w'), 'own-wire', 'it is claimed all the same');

-- A batch beside plain questions: what is known is not noted again
select t.as_role('mtap_ann', 'insert into ai.generations (model, prompt) values (''mtap/one'', ''x'')') \g /dev/null
select is(t.claims(:'w'), 'own-wire', 'known');
insert into ai.batches (tenant_id, id, user_id, name) values (t.alpha(), '0c000000-0000-7000-8000-000000000001', 'ann', 'b');
insert into ai.lanes (tenant_id, priority, batch_id) values (t.alpha(), 'low', '0c000000-0000-7000-8000-000000000001');
select t.looked() as noted \gset
insert into ai.generations (tenant_id, user_id, model, prompt, priority, batch_id)
select t.alpha(), 'ann', 'mtap/one', 'x', 'low', '0c000000-0000-7000-8000-000000000001' from generate_series(1, 3);
select is(t.plainly('mtap_ann'), 'ok 1', 'beside a batch'), is(t.claims(:'w'), 'own-wire own-wire own-wire own-wire', 'all are claimed');
select is(t.looked(), :noted::bigint, 'and nothing is noted twice, nor for a batch');

-- Words that nobody changes but an owner
select throws_ok(format('update ai.generations set %I = %L', c, 'x'), '23514', null, c || ' is one that there is') from unnest(array['kind', 'priority', 'cache', 'purpose', 'status']) c;
select throws_ok(format($$ insert into ai.generations (tenant_id, user_id, prompt, model, status, %I) values (t.alpha(), 'ann', 'x', 'mtap/one', 'failed', 'x') $$, c), '23514', null, c || ' of a row that is restored')
  from unnest(array['kind', 'priority', 'cache', 'purpose']) c;

-- Nobody but definer functions
select is(t.as_role(r, 'select from ai.known_ways'), '42501', r || ' does not read ways') from unnest(array['mtap_ann', 'mtap_adm', 'mtap_worker', 'mtap_monitor']) r;
select is(t.as_role(r, 'insert into ai.policy_changes default values'), '42501', r || ' changes no version') from unnest(array['mtap_ann', 'mtap_adm', 'mtap_worker']) r;

select * from finish();
rollback;
