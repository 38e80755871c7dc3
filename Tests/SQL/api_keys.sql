-- API keys: who may make which, what they allow, and their ends.
begin;
\ir setup/world.sql
select no_plan();

-- A role that may make keys and little else, as a tenant could make it.
insert into ai.roles (tenant_id, name, permissions) values
  (t.alpha(), 'keeper', '{inference:execute,inference:read,key:read,key:write,model:read}'), (t.alpha(), 'deputy', '{inference:delegate,inference:execute,inference:read,key:write}'),
  (t.alpha(), 'locksmith', '{key:write}');
insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'kim', 'keeper'), (t.alpha(), 'del', 'deputy'), (t.alpha(), 'loc', 'locksmith'), (t.alpha(), 'low', 'locksmith');
create role mtap_kim login;
create role mtap_del login;
create role mtap_loc login;
grant ai_user to mtap_kim, mtap_del, mtap_loc;
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_kim', t.alpha(), 'kim'), ('mtap_del', t.alpha(), 'del'), ('mtap_loc', t.alpha(), 'loc');

create table t.made (name text primary key, id uuid, key text);
grant select, insert on t.made to public;
-- Makes a key as a login role and keeps it under its name.
create function t.make(p_role text, p_name text, p_arguments text default '') returns text language sql as $$
  select t.as_role(p_role, format('insert into t.made select %L, c.* from ai.create_api_key(%1$L%s) c', p_name, p_arguments))
$$;
create function t.key(p_name text) returns text language sql stable as $$ select key from t.made where name = p_name $$;
create function t.id(p_name text) returns uuid language sql stable as $$ select id from t.made where name = p_name $$;
grant execute on function t.key(text), t.id(text) to public;

-- Runs a statement as the stray login, which is bound to nobody, with a key, and gives what t.as_role() would.
create function t.with_key(p_key text, p_sql text) returns text language plpgsql as $$
declare
  v_rows bigint;
  v_as   text;
begin
  execute 'set local session authorization mtap_stray';
  begin
    perform ai.use_session(p_key);
    execute p_sql;
    get diagnostics v_rows = row_count;
    v_as := 'ok ' || v_rows;
  exception when others then
    v_as := sqlstate;
  end;
  perform set_config('ai.session', '', true);
  execute 'reset session authorization';
  return v_as;
end
$$;
-- Who a key is: user, role and permissions.
create function t.who(p_key text) returns text language plpgsql as $$
declare
  v_who text;
begin
  execute 'set local session authorization mtap_stray';
  begin
    perform ai.use_session(p_key);
    select concat_ws(' ', i.user_id, i.role, i.source, i.permissions) into v_who from ai.identity() i;
  exception when others then
    v_who := sqlstate;
  end;
  perform set_config('ai.session', '', true);
  execute 'reset session authorization';
  return v_who;
end
$$;

-- 1. Who may make a key
select is(t.make(role, 'by ' || role), expected, format('%s makes a key: %s', role, expected))
  from (values ('mtap_ann', 'PT403'), ('mtap_dev', 'PT403'), ('mtap_adm', 'ok 1'), ('mtap_kim', 'ok 1'), ('mtap_loc', 'ok 1'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'),
               ('mtap_monitor', '42501'), ('mtap_public', '42501'), ('mtap_gateway', '42501')) v (role, expected);
select matches(t.key('by mtap_adm'), '^mrt_[0-9a-f]{10}_[0-9a-f]{64}$', 'a key has a visible and a secret part');
select is((select k.hash from ai.api_keys k where k.id = t.id('by mtap_adm')), sha256(convert_to(t.key('by mtap_adm'), 'UTF8')), 'its hash is kept');
select is((select k.prefix from ai.api_keys k where k.id = t.id('by mtap_adm')), left(t.key('by mtap_adm'), 14), 'and its visible part');
select is_empty(format($$ select * from ai.api_keys k where k::text like %L $$, '%' || right(t.key('by mtap_adm'), 40) || '%'), 'and nothing else of it');
select is((select count(distinct key) from t.made), (select count(*) from t.made), 'each is another one');
select results_eq($$ select user_id, created_by, permissions from ai.api_keys where name = 'by mtap_adm' $$, $$ values ('adm', 'adm', null::text[]) $$, 'without more said it is one''s own, for all that one may');

-- 2. For whom, and what it may do: nobody gives what it has not
select is(t.make(role, format('%s for %s: %s', role, coalesce(member, 'itself'), coalesce(permissions, 'all')),
                 concat(', p_user_id => ' || quote_literal(member), ', p_permissions => ' || quote_literal(permissions))), expected,
          format('%s makes a key for %s with %s: %s', role, coalesce(member, 'itself'), coalesce(permissions, 'all'), expected))
  from (values ('mtap_adm', 'ann', null, 'ok 1'), ('mtap_adm', 'ann', '{inference:execute}', 'ok 1'), ('mtap_adm', null, '{*}', 'ok 1'), ('mtap_adm', 'dev', '{}', 'ok 1'),
               ('mtap_adm', 'bob', null, 'PT404'), ('mtap_adm', 'nobody', null, 'PT404'), ('mtap_adm', '', null, 'PT404'),
               ('mtap_kim', null, '{inference:execute}', 'ok 1'), ('mtap_kim', null, '{policy:write}', 'PT403'), ('mtap_kim', null, '{*}', 'PT403'),
               ('mtap_kim', null, '{inference:execute,policy:write}', 'PT403'),
               ('mtap_kim', 'adm', null, 'PT403'), ('mtap_kim', 'adm', '{*}', 'PT403'), ('mtap_kim', 'adm', '{policy:write}', 'PT403'), ('mtap_kim', 'adm', '{inference:delegate}', 'PT403'),
               ('mtap_kim', 'adm', '{key:write}', 'ok 1'), ('mtap_kim', 'adm', '{inference:execute}', 'PT403'), ('mtap_kim', 'ann', null, 'PT403'), ('mtap_kim', 'low', null, 'ok 1'),
               ('mtap_del', 'ann', '{inference:execute}', 'ok 1'), ('mtap_del', 'ann', null, 'PT403'), ('mtap_del', 'adm', '{inference:execute}', 'ok 1'),
               ('mtap_loc', 'low', null, 'PT403'), ('mtap_loc', 'low', '{}', 'PT403'), ('mtap_loc', null, '{inference:read}', 'PT403'), ('mtap_loc', null, '{}', 'ok 1')) v (role, member, permissions, expected);
select results_eq($$ select permissions from ai.api_keys where name = 'mtap_kim for low: all' $$, $$ values ('{key:write}'::text[]) $$,
                  'a key made for another member does not grow with that member');
update ai.members set role = 'admin' where tenant_id = t.alpha() and user_id = 'low';
select is(t.who(t.key('mtap_kim for low: all')), 'low admin session {key:write}', 'not even when it becomes an admin');
select is(t.make('mtap_adm', 'x', format(', p_tenant_id => %L', t.beta())), 'PT403', 'only the owner names another tenant');
select is(t.make('mtap_adm', 'own tenant', format(', p_tenant_id => %L', t.alpha())), 'ok 1', 'one''s own is no other');

-- 3. Input
select is(t.make('mtap_adm', name, replace(more, 'ai_now()', 'statement_timestamp()')), expected, format('%s %s: %s', left(quote_literal(name), 20), more, expected))
  from (values ('', '', 'PT400'), (repeat('n', 200), '', 'ok 1'), (repeat('n', 201), '', 'PT400'), (E'two\nlines', '', 'PT400'),
               ('p1', ', p_permissions => ''{inference:exec}''', 'PT400'), ('p2', ', p_permissions => ''{null}''', 'PT400'), ('p3', ', p_permissions => ''{""}''', 'PT400'),
               ('p4', format(', p_permissions => %L', array_fill('model:read'::text, array[100])), 'ok 1'), ('p5', format(', p_permissions => %L', array_fill('model:read'::text, array[101])), 'PT400'),
               ('e1', ', p_expires_at => ai_now()', 'PT400'), ('e2', ', p_expires_at => ai_now() - interval ''1 day''', 'PT400'), ('e3', ', p_expires_at => ''infinity''', 'PT400'),
               ('e4', ', p_expires_at => ''-infinity''', 'PT400'), ('e5', ', p_expires_at => ai_now() + interval ''1 second''', 'ok 1')) v (name, more, expected);
select is(t.as_role('mtap_adm', 'select ai.create_api_key(null)'), 'PT400', 'a key has a name');
select results_eq($$ select permissions from ai.api_keys where name = 'p4' $$, $$ values ('{model:read}'::text[]) $$, 'what is named twice counts once');

-- 4. What a key may: what both its member and it may
select is(t.who(t.key(name)), expected, format('%s: %s', name, expected))
  from (values ('by mtap_adm', 'adm admin session {*}'), ('mtap_adm for itself: {*}', 'adm admin session {*}'), ('mtap_adm for dev: {}', 'dev developer session {}'),
               ('mtap_adm for ann: {inference:execute}', 'ann user session {inference:execute}'), ('mtap_kim for itself: {inference:execute}', 'kim keeper session {inference:execute}'),
               ('mtap_kim for adm: {key:write}', 'adm admin session {key:write}')) v (name, expected);
select is(t.make('mtap_adm', 'more than ann', ', p_user_id => ''ann'', p_permissions => ''{inference:execute,policy:write}'''), 'ok 1', 'a key may name more than its member has');
select is(t.who(t.key('more than ann')), 'ann user session {inference:execute}', 'and has no more than the member');
update ai.members set role = 'developer' where tenant_id = t.alpha() and user_id = 'adm';
select is(t.who(t.key('mtap_adm for itself: {*}')), 'adm developer session ' || (select permissions::text from ai.roles where name = 'developer' and tenant_id is null), 'a key shrinks with its member');
update ai.members set role = 'admin' where tenant_id = t.alpha() and user_id = 'adm';
select is(t.with_key(t.key('by mtap_adm'), 'insert into ai.generations (prompt, model) values (''by key'', ''mtap/one'')'), 'ok 1', 'who comes with a key asks');
select results_eq($$ select user_id, api_key_id from ai.generations where prompt = 'by key' $$, $$ select 'adm', t.id('by mtap_adm') $$, 'and the generation says with which key');
select is(t.with_key(t.key('mtap_adm for dev: {}'), 'insert into ai.generations (prompt, model) values (''x'', ''mtap/one'')'), 'PT403', 'a key without the permission does not ask');
select t.ask('of dev', p_user => 'dev') as own \gset
select is(t.with_key(t.key('mtap_adm for dev: {}'), 'select from ai.generations'), 'ok 1', 'but reads what is its member''s own, and no more');
select is(t.with_key(t.key('by mtap_adm'), 'select from ai.generations'), 'ok 2', 'one with inference:read reads all of the tenant');
select is(t.with_key(t.key('by mtap_adm'), format('select from ai.generations where tenant_id = %L', t.beta())), 'ok 0', 'and nothing of another');

-- 5. No key makes more of itself
select is(t.with_key(t.key('mtap_kim for itself: {inference:execute}'), 'select ai.create_api_key(''x'')'), 'PT403', 'a key without key:write makes none');
select is(t.make('mtap_kim', 'writes', ', p_permissions => ''{key:write,inference:execute}'''), 'ok 1', 'one with it');
select is(t.with_key(t.key('writes'), 'insert into t.made select ''child'', c.* from ai.create_api_key(''child'') c'), 'ok 1', 'makes one');
select is(t.who(t.key('child')), 'kim keeper session {inference:execute,key:write}', 'with its own limits');
select is(t.with_key(t.key('writes'), 'select ai.create_api_key(''x'', p_permissions => ''{inference:read}'')'), 'PT403', 'not with more');
select is(t.with_key(t.key('writes'), 'select ai.create_api_key(''x'', p_user_id => ''low'')'), 'PT403', 'nor for others');
select is(t.with_key(t.key('mtap_kim for adm: {key:write}'), format('select ai.rotate_api_key(%L)', t.id('by mtap_adm'))), 'PT403', 'nor takes it one over by rotating it');
select is(t.make('mtap_kim', 'short', ', p_expires_at => statement_timestamp() + interval ''1 hour'''), 'ok 1', 'a key that expires');
select is(t.with_key(t.key('short'), 'insert into t.made select ''of short'', c.* from ai.create_api_key(''of short'') c'), 'ok 1', 'makes keys');
select is((select expires_at from ai.api_keys where name = 'of short'), (select expires_at from ai.api_keys where name = 'short'), 'that expire with it');
select is(t.with_key(t.key('short'), 'select ai.create_api_key(''x'', p_expires_at => statement_timestamp() + interval ''2 hours'')'), 'PT403', 'never later');
select is(t.with_key(t.key('short'), format('insert into t.made select ''short, again'', c.* from ai.rotate_api_key(%L, ''0'') c', t.id('short'))), 'ok 1', 'it rotates itself');
select is((select expires_at from ai.api_keys where id = t.id('short, again')), (select expires_at from ai.api_keys where name = 'of short'), 'and lives no longer for that');

-- 6. The operator
select lives_ok(format($$ insert into t.made select 'bobs', c.* from ai.create_api_key('bobs', 'bob', p_tenant_id => %L) c $$, t.beta()), 'the owner makes keys for any tenant');
select throws_ok($$ select ai.create_api_key('x') $$, 'PT400', null, 'naming it');
select throws_ok(format($$ select ai.create_api_key('x', p_tenant_id => %L) $$, t.beta()), 'PT400', null, 'and the member');
select is(t.who(t.key('bobs')), 'bob user session ' || (select permissions::text from ai.roles where name = 'user' and tenant_id is null), 'the key is bob''s');
select is(t.as_role('mtap_adm', format(call, t.id('bobs'))), 'PT404', format('an admin of another tenant: %s', call))
  from (values ('select ai.revoke_api_key(%L)'), ('select ai.rotate_api_key(%L)')) v (call);

-- 7. Wrong keys: one error, whatever is wrong
create function t.refusal(p_key text) returns text language plpgsql as $$
declare
  v_message text; v_detail text; v_hint text; v_context text;
begin
  execute 'set local session authorization mtap_stray';
  begin
    perform ai.login(p_key);
  exception when others then
    get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
    v_message := sqlstate || v_message || v_detail || v_hint;
  end;
  perform set_config('ai.session', '', true);
  execute 'reset session authorization';
  return coalesce(v_message, 'none');
end
$$;
select is(t.make('mtap_adm', name, ', p_user_id => ''abe'''), 'ok 1', name) from (values ('revoked'), ('expired'), ('disabled')) v (name);
select ai.revoke_api_key(t.id('revoked')) \g /dev/null
update ai.api_keys set expires_at = ai.now() where id = t.id('expired');
select alike(t.refusal('mrt_0123456789_' || repeat('0', 64)), 'PT401%', 'an unknown key is PT401');
select is(t.refusal(key), t.refusal('mrt_0123456789_' || repeat('0', 64)), format('%s: the same', what))
  from (values ('revoked', t.key('revoked')), ('expired', t.key('expired')), ('null', null), ('empty', ''), ('a blank', ' '), ('cut off', left(t.key('by mtap_adm'), -1)),
               ('with more behind', t.key('by mtap_adm') || '0'), ('in capitals', upper(t.key('by mtap_adm'))), ('a prefix', left(t.key('by mtap_adm'), 14)), ('a hash', encode(sha256(t.key('by mtap_adm')::bytea), 'hex')),
               ('long', repeat('x', 10000000)), ('a pattern', '%'), ('another pattern', left(t.key('by mtap_adm'), -1) || '_'), ('two lines', t.key('by mtap_adm') || E'\n'),
               ('with a stamp', t.key('by mtap_adm') || ':1'), ('no text', chr(1) || chr(65533))) v (what, key);
select isnt(t.refusal(t.key('disabled')), t.refusal(null), 'a right one is taken');
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'abe';
select is(t.refusal(t.key('disabled')), t.refusal(null), 'the key of a disabled member is dead');
select is(t.as_role('mtap_adm', 'select ai.create_api_key(''x'', ''abe'')'), 'PT404', 'and no new one is made');
update ai.members set enabled = true where tenant_id = t.alpha() and user_id = 'abe';
update ai.tenants set enabled = false where id = t.alpha();
select is(t.refusal(t.key('disabled')), t.refusal(null), 'in a disabled tenant, too');
update ai.tenants set enabled = true where id = t.alpha();
select isnt(t.refusal(t.key('disabled')), t.refusal(null), 'enabled again, it is taken again');
select matches(t.refusal(null), 'PT401this API key', 'the text');

-- 8. Rotation
select is(t.as_role('mtap_adm', format('insert into t.made select ''second'', c.* from ai.rotate_api_key(%L) c', t.id('mtap_adm for ann: all'))), 'ok 1', 'an admin rotates a key');
select results_eq($$ select k.user_id, k.name, k.permissions, k.replaces, o.expires_at - k.created_at = interval '1 day' from ai.api_keys k join ai.api_keys o on o.id = k.replaces where k.id = t.id('second') $$,
  $$ select 'ann', 'mtap_adm for ann: all', null::text[], t.id('mtap_adm for ann: all'), true $$, 'the new one is like the old, which ends in a day');
select is(left(t.who(t.key(name)), 8), 'ann user', format('%s goes', name)) from (values ('second'), ('mtap_adm for ann: all')) v (name);
select is(t.as_role('mtap_adm', format('select ai.rotate_api_key(%L)', t.id('mtap_adm for ann: all'))), 'PT409', 'a key is rotated once');
select t.pass('23 hours 59 minutes') \g /dev/null
select is(left(t.who(t.key('mtap_adm for ann: all')), 8), 'ann user', 'within the overlap the old one goes on');
grant ai_tester to mtap_stray;
select t.pass('1 minute') \g /dev/null
select is(t.who(t.key('mtap_adm for ann: all')), 'PT401', 'then it has ended');
select is(left(t.who(t.key('second')), 8), 'ann user', 'the new one has not');
revoke ai_tester from mtap_stray;
set local ai.clock_offset = '';
select is(t.as_role('mtap_adm', format('select ai.rotate_api_key(%L, %s)', t.id('second'), overlap)), expected, format('an overlap of %s: %s', overlap, expected))
  from (values ('null', 'PT400'), ('''-1 second''', 'PT400'), ('''30 days 1 second''', 'PT400'), ('''100000 months -2999990 days''', 'PT400'), ('''infinity''', case when current_setting('server_version_num')::int >= 170000 then 'PT400' else '22007' end)) v (overlap, expected);
select is(t.as_role('mtap_adm', format('insert into t.made select ''third'', c.* from ai.rotate_api_key(%L, ''30 days'') c', t.id('second'))), 'ok 1', 'an overlap of 30 days');
select is(t.as_role('mtap_adm', format('insert into t.made select ''fourth'', c.* from ai.rotate_api_key(%L, ''0'') c', t.id('third'))), 'ok 1', 'an overlap of nothing');
select is(t.who(t.key('third')), 'PT401', 'ends the old one at once');
select is(left(t.who(t.key('fourth')), 8), 'ann user', 'the new one goes');
select is(t.as_role('mtap_adm', format('select ai.rotate_api_key(%L)', t.id(name))), 'PT409', format('no new one for a dead one: %s', name)) from (values ('third'), ('revoked'), ('expired')) v (name);
select is(t.as_role('mtap_adm', 'select ai.rotate_api_key(gen_random_uuid())'), 'PT404', 'nor for none');
select is(t.as_role(role, format('select ai.rotate_api_key(%L)', t.id('fourth'))), expected, format('%s rotates it: %s', role, expected))
  from (values ('mtap_ann', 'PT403'), ('mtap_kim', 'PT403'), ('mtap_dev', 'PT403'), ('mtap_bob', 'PT403'), ('mtap_stray', 'PT401')) v (role, expected);
select is(t.make('mtap_adm', 'ends soon', ', p_expires_at => statement_timestamp() + interval ''1 hour'''), 'ok 1', 'a key that lives an hour');
select is(t.as_role('mtap_adm', format('insert into t.made select ''ends, too'', c.* from ai.rotate_api_key(%L, ''1 day'') c', t.id('ends soon'))), 'ok 1', 'rotated');
select results_eq($$ select o.expires_at <= ai.now() + interval '1 hour', n.expires_at - n.created_at <= interval '1 hour' from ai.api_keys o, ai.api_keys n where o.id = t.id('ends soon') and n.id = t.id('ends, too') $$,
                  $$ values (true, true) $$, 'the old one does not live longer for it, and the new one has the old one''s lifetime');

-- 9. Revoking
select is(t.as_role('mtap_ann', format('select ai.revoke_api_key(%L)', t.id(name))), expected, format('ann revokes %s: %s', name, expected))
  from (values ('fourth', 'ok 1'), ('by mtap_adm', 'PT403'), ('bobs', 'PT403')) v (name, expected);
select is(t.who(t.key('fourth')), 'PT401', 'one''s own key may be revoked without a permission');
select is(t.as_role('mtap_ann', format('select ai.revoke_api_key(%L)', t.id('fourth'))), 'ok 1', 'also twice');
select is(ai.revoke_api_key(t.id('fourth')), false, 'which says that it was over');
select is(ai.revoke_api_key(t.id('bobs')), true, 'the owner revokes any');
select throws_ok($$ select ai.revoke_api_key(gen_random_uuid()) $$, 'PT404', null, 'that there is');
select throws_ok($$ select ai.revoke_api_key(null) $$, 'PT404', null, 'null is none');

-- 10. Who sees what
select is(t.as_role(role, 'select from ai.api_key_list'), 'ok ' || (select count(*) from ai.api_keys k where case who when 'all' then k.tenant_id = t.alpha() else k.tenant_id = t.alpha() and k.user_id = who end),
          format('%s sees keys: %s', role, who))
  from (values ('mtap_adm', 'all'), ('mtap_kim', 'all'), ('mtap_ann', 'ann'), ('mtap_dev', 'dev'), ('mtap_del', 'del')) v (role, who);
select is(t.as_role('mtap_bob', 'select from ai.api_key_list'), 'ok 1', 'bob sees bob''s');
select is(t.as_role('mtap_stray', 'select from ai.api_key_list'), 'ok 0', 'nobody sees none');
select is(t.as_role('mtap_adm', sql), '42501', format('refused: %s', sql))
  from (values ('select hash from ai.api_keys'), ('select * from ai.api_keys'), ('select k from ai.api_keys k'), ('select count(hash) from ai.api_keys'), ('select from ai.api_keys order by hash'),
               ('select from ai.api_keys where hash is not null'), ('select from ai.sessions'), ('update ai.api_keys set revoked_at = null'), ('delete from ai.api_keys'),
               ('insert into ai.api_keys (tenant_id) values (null)'), ('update ai.api_key_uses set last_used_at = null')) v (sql);
select is_empty($$ select from information_schema.columns where table_schema = 'ai' and table_name = 'api_key_list' and column_name = 'hash' $$, 'the list has no hash');
select results_eq($$ select name, state from ai.api_key_list where id in (t.id('revoked'), t.id('expired'), t.id('by mtap_adm')) order by name $$,
                  $$ values ('by mtap_adm', 'live'), ('expired', 'expired'), ('revoked', 'revoked') $$, 'the list says what lives');

-- 11. A hundred live keys of a member
insert into ai.api_keys (tenant_id, user_id, name, prefix, hash, revoked_at, expires_at)
select t.beta(), 'shared', 'n' || n, 'p', sha256(n::text::bytea), case when n > 99 then now() end, case when n > 120 then now() end from generate_series(1, 140) n;
select lives_ok(format($$ insert into t.made select 'hundredth', c.* from ai.create_api_key('x', 'shared', p_tenant_id => %L) c $$, t.beta()), 'the hundredth live key');
select throws_ok(format($$ select ai.create_api_key('x', 'shared', p_tenant_id => %L) $$, t.beta()), 'PT409', null, 'is the last');
select throws_ok(format($$ select ai.rotate_api_key(%L) $$, t.id('hundredth')), 'PT409', null, 'also for rotating');
select ai.revoke_api_key(id) from ai.api_keys where tenant_id = t.beta() and name = 'n1' \g /dev/null
select lives_ok(format($$ select ai.create_api_key('x', 'shared', p_tenant_id => %L) $$, t.beta()), 'one revoked makes room for one');

-- 12. Last used: at most once a minute
create function t.used(p_name text) returns timestamptz language sql stable as $$ select last_used_at from ai.api_key_uses where api_key_id = t.id(p_name) $$;
select is(t.make('mtap_adm', 'used'), 'ok 1', 'a key');
select is(t.used('used'), null, 'was never used');
select t.who(t.key('used')) \g /dev/null
select isnt(t.used('used'), null, 'then it was');
select xmin as first from ai.api_key_uses where api_key_id = t.id('used') \gset
update ai.api_key_uses set last_used_at = now() - interval '30 seconds' where api_key_id = t.id('used');
select t.used('used') as before \gset
select t.who(t.key('used')) \g /dev/null
select is(t.used('used'), :'before', 'within the minute nothing is written');
update ai.api_key_uses set last_used_at = now() - interval '61 seconds' where api_key_id = t.id('used');
select t.who(t.key('used')) \g /dev/null
select ok(t.used('used') > now() - interval '1 second', 'after it, it is');

select * from finish();
rollback;
