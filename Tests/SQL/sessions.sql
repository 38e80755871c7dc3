-- Sessions: what a token makes of a connection, when it does not, and its end.
begin;
\ir setup/world.sql
select no_plan();

create table t.secrets (name text primary key, secret text);
grant select, insert, update on t.secrets to public;
create function t.secret(p_name text) returns text language sql stable as $$ select secret from t.secrets where name = p_name $$;
insert into t.secrets select 'ann''s key', key from ai.create_api_key('a', 'ann', p_tenant_id => t.alpha());
insert into t.secrets select 'adm''s key', key from ai.create_api_key('b', 'adm', p_tenant_id => t.alpha());
insert into t.secrets select 'bob''s key', key from ai.create_api_key('c', 'bob', p_tenant_id => t.beta());
create function t.key_id(p_name text) returns uuid language sql stable as $$ select id from ai.api_keys where hash = sha256(convert_to(t.secret(p_name), 'UTF8')) $$;
-- Each call is as a transaction of its own where its value of ai.session goes: it is cleared behind it.
create function t.who(p_role text, p_set text default null, p_use text default null, p_claims text default null) returns text language plpgsql as $$
declare
  v_who text;
begin
  perform set_config('request.jwt.claims', p_claims, true);
  execute format('set local session authorization %I', p_role);
  if p_role = 'mtap_gateway' then
    execute 'set local role mtap_web';
  end if;
  begin
    if p_set is not null then
      perform set_config('ai.session', p_set, true);
    end if;
    if p_use is not null then
      perform ai.use_session(p_use);
    end if;
    select coalesce(i.user_id || '/' || i.source, 'nobody') into v_who from ai.identity() i;
  exception when others then
    v_who := sqlstate;
  end;
  perform set_config('ai.session', '', true);
  perform set_config('request.jwt.claims', '', true);
  execute 'reset session authorization';
  return v_who;
end
$$;
-- Logs in as the stray login, which is bound to nobody, keeps the token, and leaves the setting clear.
create function t.login(p_name text, p_key text, p_arguments text default '') returns text language plpgsql as $$
declare
  v_token text;
begin
  execute 'set local session authorization mtap_stray';
  begin
    execute format('select ai.login(%L%s)', p_key, p_arguments) into v_token;
    insert into t.secrets values (p_name, v_token) on conflict (name) do update set secret = excluded.secret;
    v_token := 'ok';
  exception when others then
    v_token := sqlstate;
  end;
  perform set_config('ai.session', '', false);
  execute 'reset session authorization';
  return v_token;
end
$$;
-- How an earlier transaction of this connection was stamped.
create function t.stale() returns text language sql stable as $$ select extract(epoch from now() - interval '1 microsecond')::text $$;
create function t.stamp() returns text language sql stable as $$ select extract(epoch from now())::text $$;

-- 1. Login
select is(t.login('ann', t.secret('ann''s key')), 'ok', 'a login that is bound to nobody logs in with a key');
select matches(t.secret('ann'), '^mrs_[0-9a-f]{64}$', 'and gets a token');
select results_eq($$ select token_hash, api_key_id, backend, expires_at - created_at from ai.sessions $$,
                  $$ select sha256(convert_to(t.secret('ann'), 'UTF8')), t.key_id('ann''s key'), null::text, interval '1 hour' $$, 'of which the hash is kept, for an hour');
set local session authorization mtap_stray;
select ai.login(t.secret('adm''s key')) as token \gset
select user_id || '/' || source as who, api_key_id as key_id from ai.identity() \gset
select current_setting('ai.session') as set \gset
select set_config('ai.session', '', true) \g /dev/null
reset session authorization;
select is(:'who'::text, 'adm/session', 'the login counts at once');
select is(:'key_id'::uuid, t.key_id('adm''s key'), 'with the key that it is by');
select is(:'set'::text, :'token' || ':' || t.stamp(), 'as the token, stamped with its transaction');
select is(t.login('x', t.secret('ann''s key'), ', p_life => ' || life), expected, format('a life of %s: %s', life, expected))
  from (values ('''1 minute''', 'ok'), ('''59 seconds''', 'PT400'), ('''1 day''', 'ok'), ('''1 day 1 second''', 'PT400'), ('null', 'PT400'), ('''-1 day''', 'PT400'), ('''100000 months -2999999 days''', 'PT400'), ('''1 month -29 days -23 hours''', 'PT400')) v (life, expected);
select is(t.login('x', t.secret('ann''s key'), ', p_for_connection => null'), 'PT400', 'for this connection or not');
select is(t.login('x', t.secret('ann')), 'PT401', 'a token does not prolong itself');
select is(t.login('x', key), 'PT401', format('no login with %s', coalesce(left(key, 20), 'null'))) from (values (null), (''), ('mrt_'), (repeat('k', 1000000))) v (key);
select is(t.as_role(role, 'select ai.login(''x'')'), expected, format('%s may %s', role, case when expected = 'PT401' then 'try' else 'not even try' end))
  from (values ('mtap_ann', 'PT401'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_monitor', '42501'), ('mtap_public', '42501'), ('mtap_gateway', '42501')) v (role, expected);
update ai.api_keys set expires_at = ai.now() + interval '10 minutes' where id = t.key_id('bob''s key');
select is(t.login('bob', t.secret('bob''s key')), 'ok', 'with a key that ends in ten minutes');
select results_eq($$ select s.expires_at = k.expires_at from ai.sessions s join ai.api_keys k on k.id = s.api_key_id where k.id = t.key_id('bob''s key') $$, array[true], 'a session ends with its key');
create function t.read_only(p_sql text) returns text language plpgsql as $$
begin
  perform set_config('transaction_read_only', 'on', true);
  execute p_sql;
  raise exception 'taken back' using errcode = 'ZZ000';
exception when others then
  return sqlstate;
end
$$;
select is(t.read_only(format('select ai.login(%L)', t.secret('ann''s key'))), 'PT400', 'no session begins in a read-only transaction');
select is(t.read_only(format('select ai.use_session(%L)', t.secret(name))), 'ZZ000', format('but one is used there: %s', name)) from (values ('ann'), ('ann''s key')) v (name);

-- 2. A session goes before everything else
select is(t.who(role, p_use => t.secret(secret), p_claims => claims), expected, format('%s with %s: %s', role, secret, expected))
  from (values ('mtap_stray', 'ann', null, 'ann/session'), ('mtap_bob', 'ann', null, 'ann/session'), ('mtap_gateway', 'ann', '{"sub": "bob"}', 'ann/session'), ('mtap_gateway', 'ann', null, 'ann/session'),
               ('mtap_gateway', 'ann', 'rubbish', 'ann/session'), ('mtap_stray', 'ann''s key', null, 'ann/session'), ('mtap_gateway', 'adm''s key', '{"sub": "ann"}', 'adm/session'), ('mtap_dev', 'bob', null, 'bob/session')) v (role, secret, claims, expected);

-- 3. Values of ai.session that anybody may set. Without the secret nothing is gained; a wrong secret never falls through; what is for another transaction is as if it were not there.
select is(t.who(role, p_set => value, p_claims => claims), expected, format('%s, %s: %s', role, what, expected))
  from (values
    ('a token without stamp', t.secret('ann'), 'PT401', 'PT401', 'PT401'), ('a key without stamp', t.secret('ann''s key'), 'PT401', 'PT401', 'PT401'),
    ('a token with this transaction''s stamp', t.secret('ann') || ':' || t.stamp(), 'ann/session', 'ann/session', 'ann/session'),
    ('a token with another transaction''s', t.secret('ann') || ':' || t.stale(), 'nobody', 'bob/binding', 'adm/jwt'),
    ('a key with another transaction''s', t.secret('ann''s key') || ':' || t.stale(), 'nobody', 'bob/binding', 'adm/jwt'),
    ('a token with no time as stamp', t.secret('ann') || ':', 'nobody', 'bob/binding', 'adm/jwt'), ('with a blank', t.secret('ann') || ': ' || t.stamp(), 'nobody', 'bob/binding', 'adm/jwt'),
    ('with two stamps', t.secret('ann') || ':' || t.stamp() || ':' || t.stamp(), 'nobody', 'bob/binding', 'adm/jwt'),
    ('a stamp without a token', ':' || t.stamp(), 'PT401', 'PT401', 'PT401'), ('a stamp alone', t.stamp(), 'PT401', 'PT401', 'PT401'),
    ('an unknown token, stamped', 'mrs_' || repeat('0', 64) || ':' || t.stamp(), 'PT401', 'PT401', 'PT401'), ('an unknown key, stamped', 'mrt_x_y:' || t.stamp(), 'PT401', 'PT401', 'PT401'),
    ('a user''s name', 'ann', 'PT401', 'PT401', 'PT401'), ('a tenant''s id', t.alpha()::text, 'PT401', 'PT401', 'PT401'), ('JSON', '{"sub": "ann"}', 'nobody', 'bob/binding', 'adm/jwt'),
    ('the hash of a token', encode(sha256(convert_to(t.secret('ann'), 'UTF8')), 'hex') || ':' || t.stamp(), 'PT401', 'PT401', 'PT401'),
    ('the id of a key', t.key_id('ann''s key') || ':' || t.stamp(), 'PT401', 'PT401', 'PT401'), ('a blank', ' ', 'PT401', 'PT401', 'PT401'),
    ('a long one', repeat('x', 1000000), 'PT401', 'PT401', 'PT401'), ('a long one, stamped', repeat('x', 1000000) || ':' || t.stamp(), 'PT401', 'PT401', 'PT401'),
    ('a pattern', 'mrs\_%:' || t.stamp(), 'PT401', 'PT401', 'PT401'), ('a token and more', t.secret('ann') || 'x:' || t.stamp(), 'PT401', 'PT401', 'PT401'),
    ('an empty one', '', 'nobody', 'bob/binding', 'adm/jwt')) v (what, value, stray, bob, gateway)
 cross join lateral (values ('mtap_stray', stray, null), ('mtap_bob', bob, null), ('mtap_gateway', gateway, '{"sub": "adm"}')) r (role, expected, claims);
select set_config('ai.session', 'mrs_' || repeat('0', 64), true) \g /dev/null
select is(t.as_role('mtap_stray', sql), 'PT401', format('a wrong token is no anonymous success: %s', sql))
  from (values ('select from ai.generations'), ('insert into ai.generations (prompt) values (''x'')'), ('select ai.subscribe()'), ('select * from ai.whoami()'), ('select from ai.api_key_list'),
               ('select ai.create_api_key(''x'')')) v (sql);
select set_config('ai.session', '', true) \g /dev/null
select is(t.as_role('mtap_stray', 'select ai.use_session(null)'), 'PT401', 'null is no token');
select set_config('ai.session', t.secret('ann') || ':' || t.stale(), true) \g /dev/null
set local session authorization mtap_bob;
select user_id as inert_user, source as inert_source, why ~ 'bound' and why ~ 'another transaction' as inert_why, permissions is not null as inert_permissions, coalesce(api_key, '') as inert_key from ai.whoami() \gset
select set_config('ai.session', '', true) \g /dev/null
reset session authorization;
select is(array[:'inert_user', :'inert_source', :'inert_why', :'inert_permissions', :'inert_key'], array['bob', 'binding', 't', 't', ''], 'whoami tells of an inert value');

-- 4. whoami
create function t.whoami(p_set text) returns text language plpgsql as $$
declare
  v_me record;
begin
  execute 'set local session authorization mtap_stray';
  begin
    perform set_config('ai.session', p_set, true);
    select * into v_me from ai.whoami();
    v_me.why := concat_ws(' | ', v_me.tenant, v_me.user_id, v_me.role, v_me.source, v_me.why, v_me.permissions, v_me.api_key, extract(epoch from v_me.session_expires_at - now()) between 1 and 4000);
  exception when others then
    perform set_config('ai.session', '', true);
    execute 'reset session authorization';
    return sqlstate;
  end;
  perform set_config('ai.session', '', true);
  execute 'reset session authorization';
  return v_me.why;
end
$$;
select t.login('adm', t.secret('adm''s key')) \g /dev/null
select is(t.whoami(t.secret('adm') || ':' || t.stamp()),
          format('mtap alpha | adm | admin | session | the API key %s, by its session''s token for this transaction | {*} | %1$s | t', left(t.secret('adm''s key'), 14)), 'whoami of a token');
select is(t.whoami(t.secret('adm''s key') || ':' || t.stamp()),
          format('mtap alpha | adm | admin | session | the API key %s, set for this transaction | {*} | %1$s', left(t.secret('adm''s key'), 14)), 'whoami of a key that does not expire');
select is(t.whoami('wrong'), 'PT401', 'whoami of a wrong one');

-- 5. A connection's own token
select is(t.login('here', t.secret('adm''s key'), ', p_for_connection => true'), 'ok', 'a login for this connection');
select is((select s.backend from ai.sessions s where s.token_hash = sha256(convert_to(t.secret('here'), 'UTF8'))), ai.this_backend(), 'is noted as its');
select is(t.who('mtap_stray', p_set => t.secret('here')), 'adm/session', 'its token counts without a stamp');
select is(t.who('mtap_stray', p_use => t.secret('here')), 'adm/session', 'and with');
select matches(t.whoami(t.secret('here')), 'by ai.login\(\) for this connection', 'whoami says so');
update ai.sessions set backend = '1 1' where token_hash = sha256(convert_to(t.secret('here'), 'UTF8'));
select is(t.who('mtap_stray', p_set => t.secret('here')), 'PT401', 'on another connection it does not count without a stamp');
select is(t.who('mtap_stray', p_use => t.secret('here')), 'adm/session', 'but with one, as any');
set local session authorization mtap_stray;
select ai.login(t.secret('adm''s key'), true) as token \gset
select current_setting('ai.session') as set \gset
select user_id || '/' || source as who from ai.identity() \gset
select ai.logout() as ended \gset
select current_setting('ai.session') as after \gset
select coalesce(user_id, 'nobody') as then from ai.identity() \gset
select ai.logout() as again \gset
reset session authorization;
select is(array[:'set', :'who', :'ended', :'after', :'then', :'again'], array[:'token', 'adm/session', 't', '', 'nobody', 'f'], 'login for the connection, and logout');
select is(t.who('mtap_stray', p_use => :'token'), 'PT401', 'a token that logged out is dead');

-- 6. Logging out of others
select is(t.as_role('mtap_bob', format('select ai.logout(%L)', value)), 'ok 1', format('logout of %s raises nothing', coalesce(left(value, 10), 'null')))
  from (values (null), (''), ('wrong'), (t.secret('ann''s key')), (repeat('x', 100000)), (encode(sha256(convert_to(t.secret('ann'), 'UTF8')), 'hex'))) v (value);
select is(t.who('mtap_stray', p_use => t.secret('ann')), 'ann/session', 'and ends nobody''s session');
select is(t.who('mtap_stray', p_use => t.secret('ann''s key')), 'ann/session', 'least of all a key');
select is(ai.logout(t.secret('ann')), true, 'with the token it does');
select is(t.who('mtap_stray', p_use => t.secret('ann')), 'PT401', 'at once');

-- 7. The ends of a session: what it stands on
select is(t.login('ann', t.secret('ann''s key')), 'ok', 'ann again');
select is(t.who('mtap_stray', p_use => t.secret('ann')), 'ann/session', 'she is there');
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'ann';
select is(t.who('mtap_stray', p_use => t.secret(name)), 'PT401', format('a disabled member''s %s', name)) from (values ('ann'), ('ann''s key')) v (name);
select is(t.who('mtap_bob', p_set => t.secret('ann') || ':' || t.stamp()), 'PT401', 'is not the binding''s member either');
update ai.members set enabled = true where tenant_id = t.alpha() and user_id = 'ann';
update ai.tenants set enabled = false where id = t.alpha();
select is(t.who('mtap_stray', p_use => t.secret('ann')), 'PT401', 'nor in a disabled tenant');
update ai.tenants set enabled = true where id = t.alpha();
select is(t.who('mtap_stray', p_use => t.secret('ann')), 'ann/session', 'enabled again, it goes on');
update ai.members set role = 'developer' where tenant_id = t.alpha() and user_id = 'ann';
set local session authorization mtap_stray;
select ai.use_session(t.secret('ann')) \g /dev/null
select role as became from ai.identity() \gset
select set_config('ai.session', '', true) \g /dev/null
reset session authorization;
select is(:'became'::text, 'developer', 'a change of role counts at once');
update ai.sessions set expires_at = ai.now() where token_hash = sha256(convert_to(t.secret('ann'), 'UTF8'));
select is(t.who('mtap_stray', p_use => t.secret('ann')), 'PT401', 'an expired token');
select is(t.login('ann', t.secret('ann''s key')), 'ok', 'ann again');
select is(t.login('ann, too', t.secret('ann''s key')), 'ok', 'twice');
select ai.revoke_api_key(t.key_id('ann''s key')) \g /dev/null
select is(t.who('mtap_stray', p_set => t.secret(name) || ':' || t.stamp()), 'PT401', format('revoked with the key: %s', name)) from (values ('ann'), ('ann, too'), ('ann''s key')) v (name);
select is((select count(*) from ai.sessions s where s.api_key_id = t.key_id('ann''s key')), 0::bigint, 'nothing is left of them');

-- 8. A session that ends itself is written down as itself
select is(t.login('self', t.secret('adm''s key')), 'ok', 'adm logs in');
set local session authorization mtap_stray;
select ai.use_session(t.secret('self')) \g /dev/null
select ai.revoke_api_key(t.key_id) as self_revoked from (select k.id as key_id from ai.api_key_list k where k.prefix = left(t.secret('adm''s key'), 14)) t \gset
select set_config('ai.session', '', true) \g /dev/null
reset session authorization;
select is(:'self_revoked'::text, 't', 'a session revokes its own key');
select is(t.who('mtap_stray', p_use => t.secret('self')), 'PT401', 'and is over');
select is((select a.user_id from ai.audit_pending a where a.object = 'api_keys' and a.action = 'update' order by a.id desc limit 1), 'adm', 'the audit log says who it was');

-- 9. PostgREST: the header
insert into t.secrets select 'dev''s key', key from ai.create_api_key('d', 'dev', p_tenant_id => t.alpha());
create function t.request(p_headers text, p_claims text default null) returns text language plpgsql as $$
declare
  v_who text;
begin
  perform set_config('request.headers', p_headers, true), set_config('request.jwt.claims', p_claims, true);
  execute 'set local session authorization mtap_gateway';
  execute 'set local role mtap_web';
  begin
    perform ai.pre_request();
    select coalesce(i.user_id || '/' || i.source, 'nobody') into v_who from ai.identity() i;
  exception when others then
    v_who := sqlstate;
  end;
  perform set_config('ai.session', '', true), set_config('request.jwt.claims', '', true), set_config('request.headers', '', true);
  execute 'reset session authorization';
  return v_who;
end
$$;
select t.login('dev', t.secret('dev''s key')) \g /dev/null
select is(t.request(headers, claims), expected, format('a request with %s: %s', what, expected))
  from (values ('a key', json_build_object('accept', '*/*', 'x-api-key', t.secret('dev''s key'))::text, null, 'dev/session'), ('a token', json_build_object('x-api-key', t.secret('dev'))::text, null, 'dev/session'),
               ('a key and a JWT', json_build_object('x-api-key', t.secret('dev''s key'))::text, '{"sub": "ann"}', 'dev/session'), ('a JWT', '{"accept": "*/*"}', '{"sub": "ann"}', 'ann/jwt'), ('neither', '{}', null, 'nobody'),
               ('no headers at all', '', null, 'nobody'), ('an empty key', '{"x-api-key": ""}', '{"sub": "ann"}', 'PT401'), ('a wrong key', '{"x-api-key": "mrt_x"}', '{"sub": "ann"}', 'PT401'),
               ('a null', '{"x-api-key": null}', '{"sub": "ann"}', 'PT401'), ('no JSON', 'rubbish', null, 'PT401'), ('a list', '["x-api-key"]', null, 'PT401'), ('another header', '{"x-api-keys": "x"}', null, 'nobody')) v (what, headers, claims, expected);

-- 10. What is over is deleted
delete from ai.sessions;
insert into ai.sessions (token_hash, api_key_id, expires_at)
select sha256(n::text::bytea), t.key_id('dev''s key'), now() + (n - 10000) * interval '1 second' from generate_series(1, 10050) n;
select is(ai.forget_sessions(now()), 10000, 'what has expired is forgotten');
select is((select count(*) from ai.sessions), 50::bigint, 'what has not, is not');
select is(ai.forget_sessions(now() + interval '1 hour'), 50, 'until it has');

select * from finish();
rollback;
