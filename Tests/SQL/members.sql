-- Members and roles as their tenant keeps them: what is valid, and that nobody gives, takes or changes more than it has.
begin;
\ir setup/world.sql
select no_plan();

-- A manager may manage members and ask, and is no admin.
create role mtap_mia login;
create role mtap_badm login;
grant ai_admin to mtap_mia, mtap_badm;
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'manager', '{member:read,member:write,inference:execute}');
insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'mia', 'manager'), (t.beta(), 'badm', 'admin');
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_mia', t.alpha(), 'mia'), ('mtap_badm', t.beta(), 'badm');
create function t.member(p_user text) returns text language sql stable as $$
  select m.role || case when m.enabled then '' else ' off' end from ai.members m where m.tenant_id = t.alpha() and m.user_id = p_user $$;
create function t.can(p_role text) returns text language sql stable as $$
  select array_to_string(r.permissions, ' ') from ai.roles r where r.tenant_id = t.alpha() and r.name = p_role $$;
-- The shared roles, which a migration made.
select set_eq('select name from ai.roles where tenant_id is null', array['admin', 'developer', 'user'], 'the shared roles');
select is((select permissions from ai.roles where tenant_id is null and name = 'user'), '{inference:execute,model:read,document:read}', 'what a user may');

-- 1. An admin
select is(t.as_role('mtap_adm', $$ select ai.add_member('eve') $$), 'ok 1', 'an admin adds a member');
select is(t.member('eve'), 'user', 'as a user, if nothing is said');
select is((select added_by_tenant from ai.members where tenant_id = t.alpha() and user_id = 'eve'), true, 'it is noted that the tenant did');
select is((select bool_or(added_by_tenant) from ai.members where user_id in ('ann', 'bob', 'mia')), false, 'what the operator adds is not');
select is(t.as_role('mtap_adm', $$ select ai.add_member('eve', 'developer') $$), 'PT409', 'not twice');
select is(t.member('eve'), 'user', 'and it stays what it is');
select is(t.as_role('mtap_adm', $$ select ai.set_member_role('eve', 'developer') $$), 'ok 1', 'another role');
select is(t.member('eve'), 'developer', 'is given');
select is(t.as_role('mtap_adm', $$ select ai.disable_member('eve') $$), 'ok 1', 'an admin switches a member off');
select is(t.member('eve'), 'developer off', 'it is off');
select is(t.as_role('mtap_adm', $$ select ai.disable_member('eve') $$), 'ok 1', 'twice does no harm');
select is(t.as_role('mtap_adm', $$ select ai.enable_member('eve') $$), 'ok 1', 'and on again');
select is(t.member('eve'), 'developer', 'it is on');
select is(t.as_role('mtap_adm', s), e, s || ': ' || e)
  from (values ($$ select ai.add_member(null) $$, 'PT400'), ($$ select ai.add_member('') $$, 'PT400'), ($$ select ai.add_member(repeat('x', 201)) $$, 'PT400'),
               ($$ select ai.add_member(E'a\nb') $$, 'PT400'), ($$ select ai.add_member('zoe', 'no such') $$, 'PT400'), ($$ select ai.add_member('zoe', null) $$, 'PT400'),
               ($$ select ai.set_member_role('zoe', 'user') $$, 'PT404'), ($$ select ai.set_member_role(null, 'user') $$, 'PT404'),
               ($$ select ai.set_member_role('eve', null) $$, 'PT400'), ($$ select ai.set_member_role('eve', 'no such') $$, 'PT400'),
               ($$ select ai.disable_member('bob') $$, 'PT404'), ($$ select ai.enable_member('badm') $$, 'PT404'),
               ($$ select ai.add_member(repeat('x', 200)) $$, 'ok 1')) v (s, e);
select is(t.member('zoe'), null, 'nobody was added');

-- 2. Roles of one's own
select is(t.as_role('mtap_adm', $$ select ai.set_role('auditor', '{usage:read,audit:read,usage:read}') $$), 'ok 1', 'an admin makes a role');
select is(t.can('auditor'), 'audit:read usage:read', 'each permission once');
select is(t.as_role('mtap_adm', $$ select ai.set_role('auditor', '{audit:read}') $$), 'ok 1', 'and changes it');
select is(t.can('auditor'), 'audit:read', 'it is changed');
select is(t.as_role('mtap_adm', $$ select ai.set_member_role('eve', 'auditor') $$), 'ok 1', 'it is given');
select is(t.as_role('mtap_badm', $$ select ai.set_role('auditor', '{usage:read}') $$), 'ok 1', 'another tenant may call another one so');
select is(t.can('auditor'), 'audit:read', 'which is no other');
select is(t.as_role('mtap_badm', $$ select from ai.roles where permissions = '{audit:read}' $$), 'ok 0', 'and is not seen there');
select is(t.as_role('mtap_badm', $$ select ai.add_member('x', 'manager') $$), 'PT400', 'nor given there');
select is(t.as_role('mtap_adm', s), e, s || ': ' || e)
  from (values ($$ select ai.set_role('x', '{no:such}') $$, 'PT400'), ($$ select ai.set_role('x', '{"model:read "}') $$, 'PT400'), ($$ select ai.set_role('x', '{null}') $$, 'PT400'),
               ($$ select ai.set_role('x', null) $$, 'PT400'), ($$ select ai.set_role(null, '{}') $$, 'PT400'), ($$ select ai.set_role('', '{}') $$, 'PT400'),
               ($$ select ai.set_role('Admin', '{}') $$, 'PT400'), ($$ select ai.set_role('a b', '{}') $$, 'PT400'), ($$ select ai.set_role(E'admin\n', '{}') $$, 'PT400'),
               ($$ select ai.set_role(repeat('x', 64), '{}') $$, 'PT400'), ($$ select ai.set_role('x', '{{audit:read},{usage:read}}') $$, 'PT400'),
               ($$ select ai.set_role('x', array_fill('audit:read'::text, '{201}')) $$, 'PT400'),
               ($$ select ai.drop_role('no such') $$, 'PT404'), ($$ select ai.drop_role('admin') $$, 'PT404'), ($$ select ai.drop_role(null) $$, 'PT404'),
               ($$ select ai.drop_role('auditor') $$, 'PT409'),
               ($$ select ai.set_role('everything', '{*}') $$, 'ok 1'), ($$ select ai.set_role('nothing', '{}') $$, 'ok 1'),
               ($$ select ai.set_role(repeat('x', 63), '{}') $$, 'ok 1')) v (s, e);
select is(t.as_role('mtap_adm', $$ select ai.set_member_role('eve', 'user') $$), 'ok 1', 'who has it gets another');
select is(t.as_role('mtap_adm', $$ select ai.drop_role('auditor') $$), 'ok 1', 'then it is dropped');
select is(t.can('auditor'), null, 'it is gone');
select is((select count(*) from ai.roles where tenant_id = t.beta() and name = 'auditor'), 1::bigint, 'another tenant''s is not');

-- 3. Nobody gives, takes or changes more than it has.
select is(t.as_role('mtap_mia', s), e, 'a manager: ' || s || ': ' || e)
  from (values ($$ select ai.add_member('kim', 'admin') $$, 'PT403'), ($$ select ai.add_member('kim', 'everything') $$, 'PT403'), ($$ select ai.add_member('kim', 'developer') $$, 'PT403'),
               ($$ select ai.add_member('kim', 'user') $$, 'PT403'), ($$ select ai.add_member('kim', 'nothing') $$, 'ok 1'), ($$ select ai.add_member('joe', 'manager') $$, 'ok 1'),
               ($$ select ai.set_member_role('mia', 'admin') $$, 'PT403'), ($$ select ai.set_member_role('kim', 'developer') $$, 'PT403'), ($$ select ai.set_member_role('kim', 'manager') $$, 'ok 1'),
               ($$ select ai.set_member_role('adm', 'nothing') $$, 'PT403'), ($$ select ai.disable_member('adm') $$, 'PT403'), ($$ select ai.enable_member('adm') $$, 'PT403'),
               ($$ select ai.disable_member('dev') $$, 'PT403'), ($$ select ai.disable_member('joe') $$, 'ok 1'), ($$ select ai.set_member_role('ann', 'nothing') $$, 'PT403'),
               ($$ select ai.set_role('new', '{*}') $$, 'PT403'), ($$ select ai.set_role('new', '{usage:read}') $$, 'PT403'), ($$ select ai.set_role('new', '{member:write}') $$, 'ok 1'),
               ($$ select ai.set_role('manager', '{*}') $$, 'PT403'), ($$ select ai.set_role('manager', '{member:read,member:write,inference:execute,billing:read}') $$, 'PT403'),
               ($$ select ai.set_role('everything', '{}') $$, 'PT403'), ($$ select ai.drop_role('everything') $$, 'PT403'),
               ($$ select ai.set_role('admin', '{}') $$, 'PT403'), ($$ select ai.set_role('admin', '{member:write}') $$, 'PT403'), ($$ select ai.set_role('developer', '{}') $$, 'PT403'),
               ($$ select ai.set_role('user', '{inference:execute}') $$, 'PT403')) v (s, e);
select is(t.can('admin'), null, 'admins have lost nothing');
select is(t.can('manager'), 'inference:execute member:read member:write', 'the manager has got nothing');
select is(t.as_role('mtap_mia', $$ select ai.set_role('manager', '{member:read,member:write}') $$), 'ok 1', 'it may give up something');
select is(t.as_role('mtap_mia', $$ select ai.set_role('manager', '{member:read,member:write,inference:execute}') $$), 'PT403', 'and cannot take it back');
select is(t.as_role('mtap_adm', $$ select ai.set_role('manager', '{member:read,member:write,inference:execute}') $$), 'ok 1', 'an admin gives it back');
-- by shadowing: a role that hides a shared one is dropped only by who has the shared one's permissions
select is(t.as_role('mtap_adm', $$ select ai.set_role('developer', '{inference:execute}') $$), 'ok 1', 'an admin narrows the developers');
select is(t.as_role('mtap_dev', $$ select from ai.prompt_templates $$), 'ok 0', 'it counts at once');
select is((select ai.role_permissions(t.alpha(), 'developer')), '{inference:execute}', 'for this tenant');
select is((select ai.role_permissions(t.beta(), 'developer') @> '{prompt:write}'), true, 'and no other');
select is(t.as_role('mtap_mia', $$ select ai.add_member('dee', 'developer') $$), 'ok 1', 'who has what is left may give it');
select is(t.as_role('mtap_mia', $$ select ai.drop_role('developer') $$), 'PT403', 'but not bring the wider one back');
select is(t.as_role('mtap_adm', $$ select ai.drop_role('developer') $$), 'ok 1', 'an admin does, also where members have it');
select is((select ai.role_permissions(t.alpha(), 'developer') @> '{prompt:write}'), true, 'it is the shared one again');
-- without the permission, or nobody
select is(t.as_role(r, s), e, format('%s: %s: %s', r, s, e))
  from (values ('mtap_ann', 'PT403'), ('mtap_dev', 'PT403'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_monitor', '42501'), ('mtap_public', '42501')) r (r, e)
 cross join (values ($$ select ai.add_member('z') $$), ($$ select ai.set_member_role('ann', 'admin') $$), ($$ select ai.disable_member('adm') $$), ($$ select ai.enable_member('adm') $$),
                    ($$ select ai.set_role('z', '{}') $$), ($$ select ai.set_role('user', '{*}') $$), ($$ select ai.drop_role('manager') $$)) s (s);
select is(t.as_role('mtap_adm', s), '42501', 'no statement goes past the functions: ' || s)
  from (values ($$ insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'z', 'admin') $$), ($$ update ai.members set role = 'admin' $$), ($$ delete from ai.members $$),
               ($$ insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'z', '{*}') $$), ($$ update ai.roles set permissions = '{*}' $$), ($$ delete from ai.roles $$),
               ($$ insert into ai.permissions values ('a:b', 'c') $$), ($$ select ai.change_member('ann', 'admin', true) $$), ($$ select ai.member_keeper() $$)) v (s);

-- 4. Somebody is left who may do everything.
select is(t.as_role('mtap_adm', s), 'PT409', 'the last admin: ' || s)
  from (values ($$ select ai.disable_member('adm') $$), ($$ select ai.set_member_role('adm', 'developer') $$), ($$ select ai.set_role('admin', '{member:write}') $$)) v (s);
select is(t.as_role('mtap_adm', $$ select ai.set_member_role('adm', 'everything') $$), 'ok 1', 'another role with everything is as good');
select is(t.as_role('mtap_adm', $$ select ai.set_role('everything', '{member:write}') $$), 'PT409', 'until it is narrowed');
select is(t.as_role('mtap_adm', $$ select ai.add_member('ada', 'admin') $$), 'ok 1', 'there is a second admin');
select is(t.as_role('mtap_adm', $$ select ai.disable_member('ada') $$), 'ok 1', 'who is switched off');
select is(t.as_role('mtap_adm', $$ select ai.disable_member('adm') $$), 'PT409', 'and then is none');
select is(t.as_role('mtap_adm', $$ select ai.enable_member('ada') $$), 'ok 1', 'on again');
select is(t.as_role('mtap_adm', $$ select ai.disable_member('adm') $$), 'ok 1', 'an admin may go where another is left');
select is(t.as_role('mtap_adm', $$ select ai.enable_member('adm') $$), 'PT401', 'it is nobody now');
update ai.members set enabled = true, role = 'admin' where tenant_id = t.alpha() and user_id = 'adm';
update ai.members set enabled = false where tenant_id = t.alpha() and user_id = 'ada';
select is(t.as_role('mtap_mia', $$ select ai.disable_member('joe') $$), 'ok 1', 'others are not concerned');
update ai.members set role = 'manager' where tenant_id = t.alpha() and user_id = 'adm';
select is(t.as_role('mtap_mia', $$ select ai.disable_member('kim') $$), 'ok 1', 'nor is a tenant that has no admin');
update ai.members set role = 'admin' where tenant_id = t.alpha() and user_id = 'adm';

-- 5. The operator, by plain statements
select throws_ok(s, e, null, s)
  from (values ($$ insert into ai.members (tenant_id, user_id, role) values (t.alpha(), 'z', 'no such') $$, 'PT400'), ($$ update ai.members set role = 'no such' where user_id = 'ann' $$, 'PT400'),
               ($$ update ai.members set role = 'auditor' where user_id = 'ann' $$, 'PT400'), ($$ update ai.members set role = null where user_id = 'ann' $$, 'PT400'),
               ($$ insert into ai.roles (name, permissions) values ('z', '{no:such}') $$, 'PT400'), ($$ update ai.roles set permissions = '{}' || array['no:such'] where name = 'user' $$, 'PT400'),
               ($$ delete from ai.roles where name = 'user' $$, 'PT409'), ($$ delete from ai.roles where name = 'manager' $$, 'PT409'), ($$ update ai.roles set name = 'boss' where name = 'manager' $$, 'PT409'),
               ($$ update ai.roles set name = 'boss' where name = 'admin' and tenant_id is null $$, 'PT409'), ($$ update ai.roles set tenant_id = t.beta() where name = 'manager' $$, 'PT409'),
               ($$ insert into ai.roles (name, permissions) values ('Z', '{}') $$, '23514'), ($$ insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'manager', '{}') $$, '23505')) v (s, e);
select lives_ok(s, s)
  from (values ($$ insert into ai.roles (name, permissions) values ('guest', '{}') $$), ($$ update ai.roles set name = 'visitor' where name = 'guest' $$), ($$ delete from ai.roles where name = 'visitor' $$),
               ($$ insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'user', '{}') $$), ($$ delete from ai.roles where tenant_id = t.alpha() and name = 'user' $$)) v (s);
insert into ai.roles (tenant_id, name, permissions) select t.beta(), 'r' || n, '{}' from generate_series(1, 99) n;
select is(t.as_role('mtap_badm', $$ select ai.set_role('one_more', '{}') $$), 'PT409', 'a tenant has at most a hundred roles');
select is(t.as_role('mtap_badm', $$ select ai.set_role('r1', '{usage:read}') $$), 'ok 1', 'which it may change');

-- 6. Claims: whom a tenant added is that member only where the token says so.
create function t.web(p_claims text) returns text language plpgsql as $$
declare
  v_as text;
begin
  perform set_config('request.jwt.claims', p_claims, true);
  set local session authorization mtap_gateway;
  begin
    set local role mtap_web;
    select case i.tenant_id when t.alpha() then 'alpha' when t.beta() then 'beta' else 'nobody' end into v_as from ai.identity() i;
  exception when others then
    v_as := sqlstate;
  end;
  reset session authorization;
  perform set_config('request.jwt.claims', '', true);
  return v_as;
end
$$;
select is(t.as_role('mtap_badm', $$ select ai.add_member('ann') $$), 'ok 1', 'a tenant may add whom it likes');
select is(t.web('{"sub": "ann"}'), 'alpha', 'whose tokens mean what they meant');
select is(t.web(format('{"sub": "ann", "tenant_id": "%s"}', t.beta())), 'beta', 'unless they name the tenant');
select is(t.as_role('mtap_badm', $$ select ai.add_member('stranger') $$), 'ok 1', 'also who is no member anywhere');
select is(t.web('{"sub": "stranger"}'), 'PT401', 'whose tokens are nobody''s still');

select * from finish();
rollback;
