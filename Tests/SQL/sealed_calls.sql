-- Sealed calls: which are to be kept, what a settle keeps and what it says where it cannot, who may set that and who may open.
begin;
\ir setup/world.sql
select no_plan();

create function t.does(p_role text, p_statement text) returns text language plpgsql as $$
declare
  v_result text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute p_statement into v_result;
  exception when others then
    v_result := sqlstate;
  end;
  execute 'reset session authorization';
  return coalesce(v_result, 'null');
end
$$;
create function t.key_of(p_tenant uuid) returns uuid language sql as $$
  select data_key_id from ai.add_data_key(gen_random_uuid(), p_tenant, decode(repeat('ab', 60), 'hex'), 'm1')
$$;
-- Claims one generation of a tenant and gives its seal.
create function t.seal(p_worker uuid, p_tenant uuid default t.alpha(), p_user text default 'ann') returns jsonb language plpgsql as $$
declare
  v_id uuid := t.ask(p_tenant => p_tenant, p_user => p_user);
begin
  return (select jsonb_build_object('id', v_id) || coalesce(c.seal, '{}') from ai.worker_claim(p_worker, 10, null) c where c.generation_id = v_id);
end
$$;
create function t.sealed(p_key uuid, p_request text default 'AAAA') returns jsonb language sql as $$
  select jsonb_build_object('sealed', jsonb_strip_nulls(jsonb_build_object('key', p_key, 'facts', 'AQID', 'request', p_request, 'response', p_request)))
$$;
-- Claims and settles one generation, and gives what the books say of its capture.
create function t.settled(p_worker uuid, p_more jsonb, p_outcome text default 'succeeded', p_tenant uuid default t.alpha(), p_user text default 'ann') returns text language plpgsql as $$
declare
  v_id uuid := (t.seal(p_worker, p_tenant, p_user) ->> 'id')::uuid;
begin
  perform t.settle(p_worker, v_id, 1, p_outcome, p_more);
  return (select c.capture from ai.llm_calls c where c.generation_id = v_id);
end
$$;
select t.worker('sealer') as w \gset

-- Policies
select is(t.seal(:'w') ? 'mode', false, 'without a policy nothing is kept');
insert into ai.capture_policies (mode) values ('off');
select is(t.seal(:'w') ? 'mode', false, 'nor where all of it is off');
insert into ai.capture_policies (tenant_id, mode) values (t.alpha(), 'all');
select is(t.seal(:'w') - 'id', jsonb_build_object('mode', 'content', 'tenant', t.alpha(), 'key', null), 'a tenant''s own policy goes first; it has no key yet');
select is(t.seal(:'w', t.beta(), 'bob') ? 'mode', false, 'others have that of all');
select t.key_of(t.alpha()) as a, t.key_of(t.beta()) as b \gset
select is(t.seal(:'w') ->> 'key', :'a', 'the key that there is');
update ai.capture_policies set mode = 'metadata' where tenant_id is null;
select is(t.seal(:'w', t.beta(), 'bob') - 'id', jsonb_build_object('mode', 'metadata', 'tenant', t.beta(), 'key', :'b'), 'metadata');
update ai.capture_policies set mode = 'off' where tenant_id = t.alpha();
select is(t.seal(:'w') ? 'mode', false, 'a tenant may have it off');

-- Sampling
update ai.capture_policies set mode = 'sampled', percent = 0 where tenant_id = t.alpha();
select is(t.seal(:'w') ? 'mode', false, 'none of a hundred');
update ai.capture_policies set percent = 100 where tenant_id = t.alpha();
select is(t.seal(:'w') ->> 'mode', 'content', 'all of a hundred');
select ok(n between 2700 and 3300, format('%s of 10000 are 30 of a hundred', n)) from (select count(*) as n from generate_series(1, 10000) where ai.is_sampled(ai.uuid_v7(), 30)) c;
select is((select count(*) from (select ai.uuid_v7() as id from generate_series(1, 2000)) g where ai.is_sampled(g.id, 10) and not ai.is_sampled(g.id, 30)), 0::bigint, 'a larger sample holds the smaller one');
select is((select count(*) from generate_series(1, 2000) where not ai.is_sampled(ai.uuid_v7(), 100)), 0::bigint, 'a hundred is everything');
select throws_ok(format('update ai.capture_policies set percent = %s', n), '23514', null, format('no sample of %s', n)) from unnest(array['-1', '101', '''NaN''']) n;
select throws_ok($$ update ai.capture_policies set mode = 'some' $$, '23514', null, 'no other mode');
select throws_ok($$ insert into ai.capture_policies (mode) values ('all') $$, '23505', null, 'one policy for all');
update ai.capture_policies set mode = 'all' where tenant_id = t.alpha();

-- What a settle keeps
select is(t.settled(:'w', t.sealed(:'a')), 'content', 'what was sealed is kept');
select results_eq($$ select tenant_id, attempt::int, mode, data_key_id, facts, request, response from ai.sealed_calls $$,
                  format($$ values (t.alpha(), 1, 'content', %L::uuid, '\x010203'::bytea, '\x000000'::bytea, '\x000000'::bytea) $$, :'a'), 'as it is');
select is((select count(*) from ai.sealed_calls s join ai.llm_calls c using (tenant_id, generation_id, attempt, created_at)), 1::bigint, 'beside the row of the books');
select is(t.settled(:'w', '{}'), 'lost', 'a worker without a master key');
select is(t.settled(:'w', t.sealed(:'b')), 'lost', 'not under another tenant''s key');
select is(t.settled(:'w', t.sealed(gen_random_uuid())), 'lost', 'nor under one that is not registered');
select is(t.settled(:'w', '{"signal": "http", "http_status": 400}' || t.sealed(:'a'), 'failed'), 'content', 'what failed is kept');
select is(t.settled(:'w', t.sealed(:'a'), 'cancelled'), 'content', 'what was cancelled is kept');
select is(t.settled(:'w', '{"signal": "unsendable", "sent": false}', 'failed'), null, 'what was never sent is not missed');
select is(t.settled(:'w', '{"sent": false}' || t.sealed(:'a'), 'released'), null, 'what was handed back unsent is not on the books');
select is(t.settled(:'w', t.sealed(:'b', null), 'succeeded', t.beta(), 'bob'), 'metadata', 'facts only');
select is((select count(*) from ai.sealed_calls), 4::bigint, 'nothing else was kept');
update ai.capture_policies set mode = 'off' where tenant_id = t.alpha();
select is(t.settled(:'w', t.sealed(:'a')), null, 'what nobody wanted to be kept is not');
update ai.capture_policies set mode = 'all' where tenant_id = t.alpha();
select t.seal(:'w') ->> 'id' as g \gset
update ai.capture_policies set mode = 'off' where tenant_id = t.alpha();
select t.settle(:'w', :'g', 1, 'succeeded', t.sealed(:'a')) \g /dev/null
select is((select capture from ai.llm_calls where generation_id = :'g'), 'content', 'it counts what was said at the claim');
select is(t.settle(:'w', :'g', 1, 'succeeded', t.sealed(:'a')), 'stale', 'a late report');
select is((select count(*) from ai.sealed_calls where generation_id = :'g'), 1::bigint, 'keeps nothing');
update ai.capture_policies set mode = 'all' where tenant_id = t.alpha();

-- Each attempt, and several in one report, one of them twice
select t.seal(:'w') ->> 'id' as g, t.seal(:'w') ->> 'id' as h \gset
select results_eq(format($$ select result from ai.worker_settle(%L, %L) order by 1 $$, :'w',
    (select jsonb_agg(jsonb_build_object('id', v.id, 'attempt', 1, 'outcome', 'succeeded', 'sent', true) || t.sealed(:'a')) from (values (:'g'), (:'h'), (:'g')) v (id))),
  $$ values ('ended'), ('ended'), ('ended') $$, 'several in one report');
select is((select count(*) from ai.sealed_calls where generation_id in (:'g', :'h')), 2::bigint, 'each once');
-- A worker that dies takes what it had in hand with it.
select t.worker('dies') as d \gset
select t.seal(:'d') ->> 'id' as lost \gset
update ai.workers set heartbeat_at = ai.now() - interval '1 hour' where id = :'d';
select ai.rescue_generations(:'d') \g /dev/null
select results_eq(format('select status, capture from ai.llm_calls where generation_id = %L', :'lost'), $$ values ('abandoned', 'lost') $$, 'and the books say so');

-- Opening
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'opener', '{call:open}');
update ai.members set role = 'opener' where tenant_id = t.alpha() and user_id = 'abe';
select is(t.does(role, format('select ai.open_call(%L) is not null', :'g')), expected, format('%s opens: %s', role, expected))
  from (values ('mtap_adm', 'true'), ('mtap_abe', 'true'), ('mtap_dev', 'PT403'), ('mtap_ann', 'PT403'), ('mtap_bob', 'PT403'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_monitor', '42501')) v (role, expected);
select ok(ai.open_call(:'g') is not null, 'the owner opens any');
update ai.members set role = 'admin' where tenant_id = t.beta() and user_id = 'bob';
select is(t.does('mtap_bob', format('select ai.open_call(%L)', :'g')), 'PT404', 'another tenant''s admin: it does not exist');
select is(t.does('mtap_adm', format('select ai.open_call(%L, 2)', :'g')), 'PT404', 'no such attempt');
select is(t.does('mtap_adm', 'select ai.open_call(gen_random_uuid())'), 'PT404', 'no such generation');
select is(t.does('mtap_adm', 'select ai.open_call(null)'), 'PT404', 'none');
select is((select count(*) from ai.call_openings), 3::bigint, 'each opening is noted');
select is(t.does('mtap_adm', format('select count(*) from ai.opened_call(%L)', id)), case opened_by when 'mtap_adm' then 'PT409' else 'PT404' end, format('what %s opened, before it is committed', opened_by)) from ai.call_openings;
-- As if it had been committed before.
update ai.call_openings set xact = '3';
select is(t.does('mtap_adm', format('select count(*) from ai.opened_call(%L)', id)), case opened_by when 'mtap_adm' then '1' else 'PT404' end, format('what %s opened, after that', opened_by)) from ai.call_openings;
-- A gateway's login comes with whoever it serves.
create function t.still_opens() returns text language sql as $$
  select t.does('mtap_abe', format('select count(*) from ai.opened_call(%L)', id)) from ai.call_openings where opened_by = 'mtap_abe'
$$;
select is(t.still_opens(), '1', 'a role that may open');
update ai.members set role = 'user' where tenant_id = t.alpha() and user_id = 'abe';
select is(t.still_opens(), 'PT403', 'the same login, which may no more');
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'abe';
select is(t.still_opens(), 'PT401', 'the same login, as nobody');
update ai.role_bindings set tenant_id = t.beta(), user_id = 'bob' where role_name = 'mtap_abe';
select is(t.still_opens(), 'PT404', 'the same login, as an admin of another tenant');
update ai.call_openings set created_at = created_at - interval '61 s';
select is(t.does('mtap_adm', format('select count(*) from ai.opened_call(%L)', id)), 'PT404', 'a minute later it is over') from ai.call_openings where opened_by = 'mtap_adm';
update ai.call_openings set created_at = created_at - interval '1 hour';
select ai.open_call(:'g') as o \gset
select is((select count(*) from ai.call_openings), 1::bigint, 'old ones are forgotten');
update ai.call_openings set xact = '3';
select isnt((select wrapped from ai.opened_call(:'o')), null, 'with its key');
select ai.destroy_data_keys(t.alpha()) \g /dev/null
select results_eq(format('select wrapped, master_key_id, request from ai.opened_call(%L)', :'o'), $$ values (null::bytea, null::text, '\x000000'::bytea) $$, 'of a destroyed key nothing but what it sealed');
select is(t.settled(:'w', t.sealed(:'a')), 'lost', 'nothing more is kept under it');
select is(t.seal(:'w') -> 'key', 'null'::jsonb, 'a new one is asked for');

-- Who sets policies
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'reads-policies', '{policy:read}');
update ai.members set role = 'reads-policies' where tenant_id = t.alpha() and user_id = 'ann';
update ai.members set role = 'user' where tenant_id = t.beta() and user_id = 'bob';
select is(t.does(role, 'select count(*) from ai.capture_policies'), expected, format('%s sees %s policies', role, expected))
  from (values ('mtap_adm', '2'), ('mtap_ann', '2'), ('mtap_dev', '2'), ('mtap_bob', '0'), ('mtap_stray', '0'), ('mtap_worker', '42501'), ('mtap_monitor', '42501')) v (role, expected);
select is(t.does(role, $$ with done as (update ai.capture_policies set mode = 'metadata' returning 1) select count(*) from done $$), expected, format('%s changes: %s', role, expected))
  from (values ('mtap_adm', '1'), ('mtap_ann', '42501'), ('mtap_dev', '42501'), ('mtap_bob', '42501'), ('mtap_stray', '42501'), ('mtap_worker', '42501')) v (role, expected);
select is((select mode from ai.capture_policies where tenant_id is null), 'metadata', 'that of all as before');
select is(t.does('mtap_adm', format('insert into ai.capture_policies (tenant_id, mode) values (%L, ''all'') returning id', t.beta())), '42501', 'not for another tenant');
delete from ai.capture_policies where tenant_id = t.alpha();
select is(t.does('mtap_adm', $$ insert into ai.capture_policies (mode) values ('all') returning tenant_id $$), t.alpha()::text, 'an admin''s is the tenant''s own');
select is(t.does('mtap_adm', 'delete from ai.capture_policies'), '42501', 'switched off, not deleted');
select is(t.does('mtap_adm', 'update ai.capture_policies set tenant_id = null'), '42501', 'not made everybody''s');
select * from finish();
rollback;
