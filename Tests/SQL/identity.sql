-- Who a session is: bindings, JWT claims, and everything that must not count.
begin;
\ir setup/world.sql
select no_plan();
select random() as seed \gset


-- Runs as a login role with claims and gives "tenant/user/role/source", nobody, or the SQLSTATE.
create function t.who(p_role text, p_claims text default null, p_set_role text default null) returns text language plpgsql as $$
declare
  v_me record;
  v_as text;
begin
  perform set_config('request.jwt.claims', p_claims, true);
  execute format('set local session authorization %I', p_role);
  begin
    if p_set_role is not null then
      execute format('set local role %I', p_set_role);
    end if;
    select * into v_me from ai.identity();
    v_as := coalesce(case v_me.tenant_id when t.alpha() then 'alpha' when t.beta() then 'beta' else v_me.tenant_id::text end
                     || '/' || v_me.user_id || '/' || v_me.role || '/' || v_me.source, 'nobody');
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  perform set_config('request.jwt.claims', '', true);
  return v_as;
end
$$;
create function t.web(p_claims text) returns text language sql as $$ select t.who('mtap_gateway', p_claims, 'mtap_web') $$;

-- Bindings
select is(t.who('mtap_ann'), 'alpha/ann/user/binding', 'a bound role is its member');
select is(t.who('mtap_dev'), 'alpha/dev/developer/binding', 'a developer');
select is(t.who('mtap_adm'), 'alpha/adm/admin/binding', 'an admin');
select is(t.who('mtap_bob'), 'beta/bob/user/binding', 'a member of another tenant');
select is(t.who('mtap_stray'), 'nobody', 'a role without binding is nobody');
select is(t.who('mtap_worker'), 'nobody', 'a worker is nobody');
select is(t.who('mtap_monitor'), 'nobody', 'a monitor is nobody');
select is(t.who('mtap_ann', '{"sub": "bob"}'), 'alpha/ann/user/binding', 'claims do not change a bound role');
select is(t.who('mtap_ann', 'rubbish'), 'alpha/ann/user/binding', 'claims of a bound role are not even read');
select is(t.who('mtap_stray', '{"sub": "ann"}'), 'nobody', 'claims of a role that is no gateway are worth nothing');
select is(t.who('mtap_stray', 'rubbish'), 'nobody', 'nor do they raise anything there');
grant mtap_bob to mtap_ann;
select is(t.who('mtap_ann', null, 'mtap_bob'), 'alpha/ann/user/binding', 'SET ROLE changes the rights, not who one is');
revoke mtap_bob from mtap_ann;

-- What is switched off
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'ann';
select is(t.who('mtap_ann'), 'nobody', 'a disabled member is nobody');
update ai.members set enabled = true where user_id = 'ann';
update ai.tenants set enabled = false where id = t.alpha();
select is(t.who('mtap_ann'), 'nobody', 'a member of a disabled tenant is nobody');
select is(t.web('{"sub": "ann"}'), 'PT401', 'nor does a token help');
update ai.tenants set enabled = true where id = t.alpha();
update ai.members set role = 'admin' where tenant_id = t.alpha() and user_id = 'ann';
select is(t.who('mtap_ann'), 'alpha/ann/admin/binding', 'a change of role counts at once');
update ai.members set role = 'user' where tenant_id = t.alpha() and user_id = 'ann';

-- Claims of a registered gateway
select is(t.web('{"sub": "ann"}'), 'alpha/ann/user/jwt', 'a subject with one membership');
select is(t.who('mtap_gateway', '{"sub": "ann"}'), '42501', 'a gateway that took no role may call nothing');
select is(t.web('{"sub": "bob", "role": "service_role", "aud": "x", "iat": 1, "permissions": ["*"]}'), 'beta/bob/user/jwt', 'other claims do not count');
select is(t.web('{"sub": "shared"}'), 'PT401', 'a subject of several tenants must name one');
select is(t.web(format('{"sub": "shared", "tenant_id": "%s"}', t.alpha())), 'alpha/shared/user/jwt', 'it does, by a claim');
select is(t.web(format('{"sub": "shared", "app_metadata": {"tenant_id": "%s"}}', t.beta())), 'beta/shared/developer/jwt', 'or by app_metadata');
select is(t.web(format('{"sub": "shared", "tenant_id": "%s", "app_metadata": {"tenant_id": "%s"}}', t.alpha(), t.beta())), 'PT401',
          'two tenants in one token are one too many');
select is(t.web(format('{"sub": "shared", "tenant_id": "%s", "app_metadata": {"tenant_id": "%s"}}', t.beta(), upper(t.beta()::text))), 'beta/shared/developer/jwt',
          'the same twice is not');
select is(t.web(format('{"sub": "shared", "user_metadata": {"tenant_id": "%s"}}', t.beta())), 'PT401', 'user_metadata, which a user may write, is not looked at');
select is(t.web(format('{"sub": "shared", "tenant_id": "%s", "user_metadata": {"tenant_id": "%s", "role": "admin"}}', t.alpha(), t.beta())), 'alpha/shared/user/jwt',
          'not even beside a claim');
select is(t.web(format('{"sub": "ann", "tenant_id": "%s"}', t.beta())), 'PT401', 'a tenant of which the subject is no member');
select is(t.web(format('{"sub": "ann", "tenant_id": "%s"}', gen_random_uuid())), 'PT401', 'a tenant that is none');
select is(t.web('{"sub": "ann", "tenant_id": "mtap alpha"}'), 'PT401', 'a tenant''s name is not its id');
select is(t.web(format('{"sub": "ann", "tenant_id": "%s"}', upper(t.alpha()::text))), 'alpha/ann/user/jwt', 'ids in capitals are the same');
select is(t.web(format('{"sub": "ann", "tenant_id": ["%s"]}', t.alpha())), 'PT401', 'a list of tenants is not one');
select is(t.web('{"sub": "ann", "tenant_id": ""}'), 'PT401', 'an empty tenant is wrong, not absent');
select is(t.web('{"sub": "ann", "tenant_id": null, "app_metadata": null}'), 'alpha/ann/user/jwt', 'a null tenant is absent');
select is(t.web('{"sub": "ann", "app_metadata": "x"}'), 'PT401', 'an app_metadata that is no object');
select is(t.web('{"sub": "unknown"}'), 'PT401', 'an unknown subject');
select is(t.web('{"sub": ""}'), 'PT401', 'an empty subject is wrong, not absent');
select is(t.web('{"sub": " ann"}'), 'PT401', 'subjects are not trimmed');
select is(t.web('{"sub": "ANN"}'), 'PT401', 'nor folded');
select is(t.web('{"sub": "ann'' or true --"}'), 'PT401', 'nor executed');
insert into ai.members (tenant_id, user_id, role) values (t.beta(), '7', 'admin'), (t.beta(), '{"a": 1}', 'admin'), (t.beta(), 'true', 'admin');
select is(t.web('{"sub": "7"}'), 'beta/7/admin/jwt', 'a subject is a string');
select is(t.web('{"sub": 7}'), 'PT401', 'a number is none');
select is(t.web('{"sub": true}'), 'PT401', 'nor is a truth value');
select is(t.web('{"sub": {"a": 1}}'), 'PT401', 'nor an object');
select is(t.web('{"sub": ["ann"]}'), 'PT401', 'nor a list');
select is(t.web('{"sub": null}'), 'nobody', 'a null subject is a token for nobody in particular');
select is(t.web('{"role": "anon"}'), 'nobody', 'so is none');
select is(t.web('{}'), 'nobody', 'and an empty token');
select is(t.web(''), 'nobody', 'no claims, no member');
select is(t.web(null), 'nobody', 'nor an unset setting');
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'shared';
select is(t.web('{"sub": "shared"}'), 'beta/shared/developer/jwt', 'a disabled membership does not count among several');
select is(t.web(format('{"sub": "shared", "tenant_id": "%s"}', t.alpha())), 'PT401', 'nor when it is named');

-- Claims that are not claims
select is(t.web(claims), 'PT401', format('claims are refused: %s', left(claims, 40)))
  from (values ('rubbish'), ('[]'), ('["ann"]'), ('"ann"'), ('7'), ('null'), ('true'), ('{"sub": "ann"'), ('{"sub": "ann"} {}'), ('{sub: ann}'), ('{''sub'': ''ann''}'),
               ('{"sub": "\u0000"}'), ('{"sub": "\ud83d"}'), (' '), ('{"n": 1e200000}'), (repeat('[', 100000))) v (claims);

-- Time
select is(t.web(format('{"sub": "ann", %s}', claim)), expected, format('%s: %s', what, expected))
  from (select extract(epoch from ai.now()) as now) n
 cross join lateral (values
    ('an hour to live', format('"exp": %s', now + 3600), 'alpha/ann/user/jwt'), ('ended 29 seconds ago', format('"exp": %s', now - 29), 'alpha/ann/user/jwt'),
    ('ended 30 seconds ago', format('"exp": %s', now - 30), 'PT401'), ('ended in 1970', '"exp": 1', 'PT401'), ('ended before', '"exp": -1e300', 'PT401'),
    ('never ends', '"exp": 1e300', 'alpha/ann/user/jwt'), ('no end', '"exp": null', 'alpha/ann/user/jwt'), ('an end in words', '"exp": "never"', 'PT401'),
    ('a number in quotes', format('"exp": "%s"', now + 3600), 'PT401'), ('a list of ends', '"exp": [9999999999]', 'PT401'), ('an end that is true', '"exp": true', 'PT401'),
    ('begins in 29 seconds', format('"nbf": %s', now + 29), 'alpha/ann/user/jwt'), ('begins in 31 seconds', format('"nbf": %s', now + 31), 'PT401'),
    ('begins some day', '"nbf": "soon"', 'PT401')) v (what, claim, expected);
select is(t.web('{"exp": 1}'), 'PT401', 'a token without a subject ends, too');

-- What a token says must not depend on who reads it
select is(t.web(claims), expected, format('said twice, %s: %s', what, expected))
  from (values ('the subject', '{"sub": "bob", "sub": "ann"}', 'PT401'), ('the subject, spelled otherwise', '{"sub": "bob", "s\u0075b": "ann"}', 'PT401'),
               ('the end', '{"sub": "ann", "exp": 1, "exp": 9999999999}', 'PT401'),
               ('the beginning', '{"sub": "ann", "nbf": 9999999999, "nbf": 1}', 'PT401'),
               ('the tenant', format('{"sub": "shared", "tenant_id": "%s", "tenant_id": "%s"}', t.alpha(), t.beta()), 'PT401'),
               ('app_metadata', format('{"sub": "shared", "app_metadata": {}, "app_metadata": {"tenant_id": "%s"}}', t.beta()), 'PT401'),
               ('the tenant within app_metadata', format('{"sub": "shared", "app_metadata": {"tenant_id": "%s", "tenant_id": "%s"}}', t.alpha(), t.beta()), 'PT401'),
               ('something that does not count', '{"sub": "ann", "x": {"sub": "bob"}, "y": "\"sub\""}', 'alpha/ann/user/jwt')) v (what, claims, expected);
select is(t.web(format('{"sub": "%s"}', repeat('a', n))), 'PT401', format('a subject of %s characters', n)) from (values (200), (201), (60000)) v (n);
insert into ai.members (tenant_id, user_id) values (t.beta(), repeat('a', 200));
select is(t.web(format('{"sub": "%s"}', repeat('a', 200))), 'beta/' || repeat('a', 200) || '/user/jwt', 'a subject may be as long as a user_id');
select is(t.web(format('{"sub": "ann", "x": "%s"}', repeat('a', n))), expected, format('%s characters beside: %s', n, expected))
  from (values (65000, 'alpha/ann/user/jwt'), (65536, 'PT401')) v (n, expected);
select is(t.web(format('{"sub": "ann", "x": %s1%s}', repeat('[', n), repeat(']', n))), expected, format('%s lists in each other: %s', n, expected))
  from (values (999, 'alpha/ann/user/jwt'), (1000, 'PT401')) v (n, expected);

-- A membership that a tenant gave to somebody's name does not change what that one's token means
insert into ai.members (tenant_id, user_id, role, added_by_tenant) values (t.beta(), 'ann', 'user', true), (t.beta(), 'guest', 'user', true);
select is(t.web('{"sub": "ann"}'), 'alpha/ann/user/jwt', 'a name that another tenant added is still who it was');
select is(t.web('{"sub": "guest"}'), 'PT401', 'and nobody by that alone');
select is(t.web(format('{"sub": "guest", "tenant_id": "%s"}', t.beta())), 'beta/guest/user/jwt', 'but where the token names the tenant');

-- No claim shows in an error
create function t.web_error(p_claims text) returns text language plpgsql as $$
declare
  v_message text; v_detail text; v_hint text; v_context text;
begin
  perform set_config('request.jwt.claims', p_claims, true);
  execute 'set local session authorization mtap_gateway';
  execute 'set local role mtap_web';
  begin
    perform ai.identity();
  exception when others then
    get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint, v_context = pg_exception_context;
  end;
  execute 'reset session authorization';
  return v_message || v_detail || v_hint || v_context;
end
$$;
select ok(t.web_error(claims) !~ 'planted', format('the error tells nothing of %s', left(claims, 60)))
  from (values ('{"sub": "planted"}'), ('{"sub": "ann", "tenant_id": "planted"}'), ('{"sub": "ann", "exp": "planted"}'), ('planted'), ('{"sub": "planted'),
               ('{"sub": ["planted"]}'), ('{"sub": "ann", "app_metadata": "planted"}'), ('{"sub": "planted", "sub": "planted"}')) v (claims);
select ok(t.web_error(format('{"sub": "ann", "x": "%s"}', repeat('planted', 10000))) ~ 'longer than 65536 characters', 'claims that are too long are told so');

create function t.web_sum(p_claims text) returns text language plpgsql as $$
declare
  v_sum text;
begin
  perform set_config('request.jwt.claims', p_claims, true);
  execute 'set local session authorization mtap_gateway';
  execute 'set local role mtap_web';
  begin
    select concat_ws(' ', count(*), (select ai.user_id())) into v_sum from t.parallel p where p.n > 0 and (select ai.user_id()) is distinct from 'x';
  exception when others then
    v_sum := sqlstate;
  end;
  execute 'reset session authorization';
  return v_sum;
end
$$;
-- The same without pg_input_is_valid(), as on PostgreSQL 15
select is(ai.looks_like_json(json), true, format('JSON: %s', left(json, 40)))
  from (values ('{}'), ('[]'), ('{"sub": "ann"}'), (E' \t\n\r{ "a" : [ 1 , -0.5e-10, true,false , null, "x", {} , [ ] ] , "b":{"c":{"d":[[["e"]]]}}} '), ('"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00é😀"'), ('0'), ('-1'), ('1e5'),
               ('1E+5'), ('null'), ('{"v": "s", "s": ["v"]}'), ('{"a": 1, "a": 2}'), (repeat('[', 500) || repeat(']', 500)), ('"' || repeat('x', 60000) || '"')) v (json);
select is(ai.looks_like_json(json), false, format('no JSON: %s', left(json, 40)))
  from (values (''), (' '), ('rubbish'), ('{'), ('}'), ('[1'), ('1]'), ('{"a"}'), ('{"a":}'), ('{"a":1,}'), ('[1,]'), ('[,1]'), ('[1 2]'), ('{"a":1 "b":2}'), ('{a:1}'), ('{''a'':1}'), ('{1:1}'), ('{"a":1}}'), ('{"a":1}{'), ('{} {}'),
               ('01'), ('1.'), ('.5'), ('+1'), ('1e'), ('--1'), ('1e1000'), ('0x1'), ('NaN'), ('truefalse'), ('true1'), ('1"a"'), ('"a"1'), ('"a""b"'), ('v'), ('s'), ('[v]'), ('{s:v}'), ('"a'), ('a"'), ('"\x"'), ('"\u12"'), ('"\u0000"'),
               ('"\ud83d"'), ('"\ude00\ud83d"'), ('"\ud83dx"'), (E'"\n"'), (E'{"a":1}\f'), (E'\u00a0{}'), ('True'), ('nul'), ('[1;2]'), ('\'), ('"\"'), (repeat('[', 500) || repeat(']', 499))) v (json);
-- Random pieces of JSON, put together anyhow: where the server can tell, both agree.
create function t.agree(p_text text) returns boolean language plpgsql as $$
begin
  return current_setting('server_version_num')::integer < 160000 or pg_input_is_valid(p_text, 'jsonb') = ai.looks_like_json(p_text);
end
$$;
select setseed(:seed) \g /dev/null
select is_empty($$
  select json from (
    select n, string_agg((array['{', '}', '[', ']', ',', ':', '"a"', '1', ' ', 'true', '"', '{"a":1}', '[]', '-', '"\\u0041"', E'\x01', 's'])[1 + floor(random() * 17)::int], '' order by random()) as json
      from generate_series(1, 20000) n cross join generate_series(1, 1 + n % 7) m group by n) r
   where not t.agree(json) $$, format('random texts, seed %s', :seed));

-- Claims in a parallel plan
create table t.parallel as select n from generate_series(1, 10000) n;
grant select on t.parallel to public;
set local parallel_setup_cost = 0;
set local parallel_tuple_cost = 0;
set local min_parallel_table_scan_size = 0;
select is(t.web_sum(claims), expected, format('in a parallel plan: %s', left(claims, 40)))
  from (values ('{"sub": "ann"}', '10000 ann'), ('{"sub": "unknown"}', 'PT401'), ('rubbish', 'PT401'), ('{}', '10000')) v (claims, expected);

-- A wrong claim is never an anonymous success
create function t.web_does(p_claims text, p_sql text) returns text language plpgsql as $$
declare
  v_as text;
begin
  perform set_config('request.jwt.claims', p_claims, true);
  execute 'set local session authorization mtap_gateway';
  execute 'set local role mtap_web';
  begin
    execute p_sql;
    v_as := 'ok';
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;
select is(t.web_does('{"sub": "unknown"}', sql), 'PT401', format('with a wrong claim: %s', sql))
  from (values ('select count(*) from ai.generations'), ('select ai.tenant_id()'), ('select * from ai.usage_report()'), ('select ai.subscribe()'),
               ('insert into ai.generations (prompt) values (''x'')'), ('select * from ai.whoami()')) v (sql);
select is(t.web_does('{"role": "anon"}', sql), expected, format('without a subject: %s', sql))
  from (values ('select count(*) from ai.generations', 'ok'), ('insert into ai.generations (prompt) values (''x'')', 'PT401'), ('select ai.subscribe()', 'PT401')) v (sql, expected);
select is(t.web_does('{"sub": "ann"}', 'insert into ai.generations (prompt, model) values (''by token'', ''mtap/one'')'), 'ok', 'a member asks by token');
select results_eq($$ select user_id from ai.generations where prompt = 'by token' $$, array['ann'], 'and is stamped');

-- A role is bound or a gateway, never both
select throws_ok($$ insert into ai.authenticators (role_name) values ('mtap_ann') $$, 'PT409', null, 'a bound role cannot be made a gateway');
select throws_ok(format($$ insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_gateway', %L, 'ann') $$, t.alpha()), 'PT409', null,
                 'a gateway cannot be bound');
select throws_ok($$ update ai.role_bindings set role_name = 'mtap_gateway' where role_name = 'mtap_ann' $$, 'PT409', null, 'not by an update either');

-- Permissions, by role and by what a tenant made of it
create function t.rights(p_role text) returns text language plpgsql as $$
declare
  v_me record;
begin
  execute format('set local session authorization %I', p_role);
  select * into v_me from ai.identity();
  execute 'reset session authorization';
  return concat_ws(' ', v_me.permissions, v_me.only_user);
end
$$;
select is(t.rights('mtap_adm'), '{*}', 'an admin may everything, and sees all');
select is(t.rights('mtap_dev'), (select permissions::text from ai.roles where name = 'developer' and tenant_id is null), 'a developer what the shared role says, and sees all');
select is(t.rights('mtap_ann'), (select permissions::text || ' ann' from ai.roles where name = 'user' and tenant_id is null), 'a user likewise, and sees its own');
select is(t.rights('mtap_stray'), '', 'nobody may nothing');
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'user', '{inference:read}'), (t.beta(), 'developer', '{*}');
select is(t.rights('mtap_ann'), '{inference:read}', 'a tenant''s own role goes before the shared one, at once');
select isnt(t.rights('mtap_dev'), '{*}', 'another tenant''s does not');

-- What a binding copies is the truth, whatever is written
create function t.copies() returns text language sql stable as $$
  select string_agg(concat_ws(' ', b.role_name, b.member_role, b.member_permissions, b.member_enabled), ', ' order by b.role_name) from ai.role_bindings b where b.role_name in ('mtap_ann', 'mtap_bob')
$$;
delete from ai.roles where tenant_id is not null;
update ai.roles set permissions = '{inference:execute}' where name = 'user';
select is(t.copies(), 'mtap_ann user {inference:execute} t, mtap_bob user {inference:execute} t', 'of the shared role');
update ai.role_bindings set member_role = 'admin', member_permissions = '{*}', member_enabled = false where role_name = 'mtap_ann';
select is(t.copies(), 'mtap_ann user {inference:execute} t, mtap_bob user {inference:execute} t', 'what is written into the copy is not kept');
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'user', '{inference:read}');
select is(t.copies(), 'mtap_ann user {inference:read} t, mtap_bob user {inference:execute} t', 'a role of a tenant''s own');
update ai.roles set name = 'other' where tenant_id is not null and name = 'user';
select is(t.copies(), 'mtap_ann user {inference:execute} t, mtap_bob user {inference:execute} t', 'by another name it is no longer');
update ai.roles set permissions = '{}' where name = 'user';
select is(t.copies(), 'mtap_ann user {} t, mtap_bob user {} t', 'a shared role for all');
update ai.members set enabled = user_id <> 'bob', role = case when user_id = 'ann' and tenant_id = t.alpha() then 'other' else role end;
select is(t.copies(), 'mtap_ann other {inference:read} t, mtap_bob user {} f', 'several members in one statement');
update ai.tenants set enabled = not enabled;
select is(t.copies(), 'mtap_ann other {inference:read} f, mtap_bob user {} f', 'tenants');
select sum(turn) as before from ai.binding_turns \gset
update ai.members set enabled = enabled, added_by_tenant = not added_by_tenant;
insert into ai.members (tenant_id, user_id) values (t.alpha(), 'new');
select is((select sum(turn) from ai.binding_turns), :before::numeric, 'what changes nothing of this takes no turn');
set local session_replication_role = replica;
update ai.role_bindings set member_role = 'admin', member_permissions = '{*}', member_enabled = true where role_name = 'mtap_bob';
set local session_replication_role = origin;
select is(ai.refresh_bindings(), 1, 'what got past the triggers is put right');
select is(t.copies(), 'mtap_ann other {inference:read} f, mtap_bob user {} f', 'by the operator''s function');
select is(ai.refresh_bindings(), 0, 'once');

-- Who asks plainly: a copy, too
create function t.plainly() returns text language sql stable as $$
  select string_agg(concat_ws(' ', b.role_name, b.asks_plainly), ', ' order by b.role_name) from ai.role_bindings b where b.role_name in ('mtap_ann', 'mtap_bob')
$$;
update ai.tenants set enabled = true;
update ai.members set enabled = true, role = 'user';
select is(t.plainly(), 'mtap_ann f, mtap_bob f', 'not who may not ask');
update ai.roles set permissions = '{inference:execute}' where name = 'user';
select is(t.plainly(), 'mtap_ann t, mtap_bob t', 'who may, in tenants without policies');
update ai.roles set permissions = '{*}' where name = 'user';
select is(t.plainly(), 'mtap_ann t, mtap_bob t', 'or may everything');
update ai.members set enabled = user_id <> 'ann';
select is(t.plainly(), 'mtap_ann f, mtap_bob t', 'nobody who is switched off');
update ai.members set enabled = true;
select sum(turn) as before from ai.binding_turns \gset
insert into ai.limits (tenant_id, metric, period, amount) values (t.alpha(), 'requests', 'day', 5), (null, 'requests', 'day', 5);
select is(t.plainly(), 'mtap_ann t, mtap_bob t', 'limits are no matter');
select is((select sum(turn) from ai.binding_turns), :before::numeric, 'and take no turn');
insert into ai.guardrails (tenant_id, name, scope, detector, action) values (t.alpha(), 'first', 'input', 'email', 'flag');
select is(t.plainly(), 'mtap_ann f, mtap_bob t', 'not where a guardrail is, from its insert on');
select sum(turn) as before from ai.binding_turns \gset
insert into ai.guardrails (tenant_id, name, scope, detector, action) values (t.alpha(), 'second', 'input', 'email', 'flag');
select is((select sum(turn) from ai.binding_turns), :before::numeric, 'a second one takes no turn');
update ai.role_bindings set asks_plainly = true;
select is(t.plainly(), 'mtap_ann f, mtap_bob t', 'what is written into the copy is not kept');
insert into ai.cache_policies (tenant_id) values (t.beta());
select is(t.plainly(), 'mtap_ann f, mtap_bob f', 'nor where a cache is');
delete from ai.guardrails;
delete from ai.cache_policies;
select is(t.plainly(), 'mtap_ann f, mtap_bob f', 'a name too many stays');
select is(ai.refresh_policies(), 2, 'until all is noted anew: limits, of alpha and of all');
select is(t.plainly(), 'mtap_ann t, mtap_bob t', 'with the copies');
insert into ai.profile_rules (position, profile) values (1, 'small');
select is(t.plainly(), 'mtap_ann f, mtap_bob f', 'a rule for all');
delete from ai.profile_rules;
select is(ai.refresh_policies(), 2, 'gone');
set local session_replication_role = replica;
update ai.role_bindings set asks_plainly = false where role_name = 'mtap_bob';
set local session_replication_role = origin;
select is(ai.refresh_bindings(), 1, 'what got past the triggers is put right');
select is(t.plainly(), 'mtap_ann t, mtap_bob t', 'here, too');

-- whoami
select results_eq($$ select user_id, source, why is not null from ai.whoami() $$, $$ values (null::text, null::text, true) $$, 'whoami says why one is nobody');

select * from finish();
rollback;
