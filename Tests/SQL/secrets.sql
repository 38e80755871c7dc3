-- Sealed keys: which secret a call uses, what a worker is given, what the operator and tenants may do. Values are made up:
-- that they open is tested with the real program.
begin;
\ir setup/world.sql
select no_plan();

-- A stand-in for what was sealed: nonce, text, tag.
create function t.sealed(p_text text) returns bytea language sql as $$ select '\x000000000000000000000000'::bytea || convert_to(p_text, 'UTF8') || '\x00000000000000000000000000000000'::bytea $$;
create function t.wrapped(p_text text) returns bytea language sql as $$ select t.sealed(rpad(p_text, 32, '.')) $$;
create function t.key_of(p_tenant uuid) returns uuid language sql as $$
  select data_key_id from ai.add_data_key(gen_random_uuid(), p_tenant, t.wrapped('key'), 'm1')
$$;
create function t.set(p_tenant uuid, p_name text, p_value text) returns integer language sql as $$ select ai.set_secret(p_tenant, p_name, t.sealed(p_value), t.key_of(p_tenant)) $$;
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
-- What a claim says of the key of a call of each tenant.
create function t.claimed(p_worker uuid, p_model text) returns table (tenant text, ref bigint, tenant_only boolean, public_only boolean) language plpgsql as $$
declare
  v_ann uuid := t.ask(p_model => p_model);
  v_bob uuid := t.ask(p_model => p_model, p_tenant => t.beta(), p_user => 'bob');
begin
  return query select case c.generation_id when v_ann then 'alpha' else 'beta' end, c.secret_ref, c.tenant_only, c.public_only
                 from ai.worker_claim(p_worker, 10, null) c where c.generation_id is not null order by 1;
end
$$;
select t.worker('keys') as w \gset

-- Whose key
select results_eq(format($$ select * from t.claimed(%L, 'mtap/one') $$, :'w'), $$ values ('alpha', null::bigint, false, false), ('beta', null, false, false) $$,
                  'nothing sealed: the worker looks into its environment');
select t.set(null, 'FIRST_API_KEY', 'operator') \g /dev/null
select id as o from ai.secrets \gset
select results_eq(format($$ select * from t.claimed(%L, 'mtap/one') $$, :'w'), format($$ values ('alpha', %1$s::bigint, false, false), ('beta', %1$s, false, false) $$, :o), 'the operator''s, for all');
select t.set(t.alpha(), 'FIRST_API_KEY', 'alpha') \g /dev/null
select id as a from ai.secrets where tenant_id = t.alpha() \gset
select results_eq(format($$ select * from t.claimed(%L, 'mtap/one') $$, :'w'), format($$ values ('alpha', %s::bigint, false, false), ('beta', %s, false, false) $$, :a, :o), 'a tenant''s own goes first');
select is((select count(*) from ai.leases where own_key and tenant_id = t.alpha()), 1::bigint, 'and the lease knows that it is the tenant''s own');
select is((select count(*) from ai.leases where own_key and tenant_id = t.beta()), 0::bigint, 'nobody else''s is');
select results_eq(format($$ select * from t.claimed(%L, 'mtap/two') $$, :'w'), $$ values ('alpha', null::bigint, false, false), ('beta', null, false, false) $$, 'another name is another secret');
select is(t.set(t.alpha(), 'FIRST_API_KEY', 'newer'), 2, 'a second version');
select is((select count(*) from ai.secrets where sealed is null and replaced_at is not null), 1::bigint, 'the first is overwritten');
select is((select sealed from ai.worker_secret(:'w', array[:a])), t.sealed('newer'), 'who was given the reference of the old one gets the one in its place');
select isnt((select ref from t.claimed(:'w', 'mtap/one') where tenant = 'alpha'), :a::bigint, 'the next claim has another reference');

-- A tenant's own provider
insert into ai.providers (tenant_id, name, dialect, base_url, secret) values (t.alpha(), 'mtap-own', 'openai', 'https://own.test/v1', 'FIRST_API_KEY'), (t.alpha(), 'mtap-bare', 'openai', 'https://own.test/v1', 'SECOND_API_KEY'),
  (t.alpha(), 'mtap-open', 'openai', 'https://own.test/v1', null);
insert into ai.models (tenant_id, provider_id, name, wire_name) select t.alpha(), id, 'own/' || name, 'm' from ai.providers where tenant_id = t.alpha();
select t.set(null, 'SECOND_API_KEY', 'operator') \g /dev/null
create function t.own(p_worker uuid, p_model text) returns table (secret text, found boolean, tenant_only boolean, public_only boolean) language plpgsql as $$
declare
  v_id uuid := t.ask(p_model => p_model);
begin
  return query select c.secret, c.secret_ref is not null, c.tenant_only, c.public_only from ai.worker_claim(p_worker, 10, null) c where c.generation_id = v_id;
end
$$;
select results_eq(format($$ select * from t.own(%L, 'own/mtap-own') $$, :'w'), $$ values ('FIRST_API_KEY', true, true, true) $$, 'its own provider with its own secret');
select results_eq(format($$ select * from t.own(%L, 'own/mtap-bare') $$, :'w'), $$ values ('SECOND_API_KEY', false, true, true) $$, 'and without one: none, though the operator has it');
select results_eq(format($$ select * from t.own(%L, 'own/mtap-open') $$, :'w'), $$ values (null::text, false, true, true) $$, 'and one that needs none');
select is((select bool_or(own_key) from ai.leases l join ai.models m on m.id = l.model_id where m.tenant_id = t.alpha()), false, 'what is wrong with the key of an own provider is wrong with that provider');
update ai.settings set private_providers = true;
select results_eq(format($$ select * from t.own(%L, 'own/mtap-own') $$, :'w'), $$ values ('FIRST_API_KEY', true, true, false) $$, 'private addresses where the operator allows them');
update ai.settings set private_providers = false;
select is(ai.secret_ref(null, 'FIRST_API_KEY', true), null, 'the provider of another tenant gets no key');
select is(ai.secret_ref(t.beta(), 'FIRST_API_KEY', true), null, 'nor does a tenant without one');
select is(ai.secret_ref(t.beta(), 'FIRST_API_KEY', false), array[:o, 0]::bigint[], 'but at a shared provider the operator''s');

-- Several accounts of a provider are several names
insert into ai.provider_accounts (provider_id, position, secret) select id, 1, 'MORE_API_KEY' from ai.providers where name = 'mtap-first';
select t.set(t.beta(), 'MORE_API_KEY', 'beta, second account') \g /dev/null
insert into ai.exhausted_accounts (provider_id, secret, since, until, cooldown_ms) select id, 'FIRST_API_KEY', ai.now() - interval '1 s', ai.now() + interval '1 hour', 1000 from ai.providers where name = 'mtap-first';
select is((select ref from t.claimed(:'w', 'mtap/one') where tenant = 'beta'), (select id from ai.secrets where name = 'MORE_API_KEY'), 'the other account by its name');
delete from ai.exhausted_accounts;
delete from ai.provider_accounts;

-- What is wrong with a tenant's own key
select t.ask() as g \gset
select count(*) from ai.worker_claim(:'w', 10, null) \g /dev/null
select t.settle(:'w', :'g', 1, 'failed', '{"signal": "http", "http_status": 402, "error_code": "insufficient_quota"}') \g /dev/null
select is((select count(*) from ai.exhausted_accounts), 0::bigint, 'without money: no other tenant''s account');
select t.ask(p_tenant => t.beta(), p_user => 'bob') as g \gset
select count(*) from ai.worker_claim(:'w', 10, null) \g /dev/null
select t.settle(:'w', :'g', 1, 'failed', '{"signal": "http", "http_status": 402, "error_code": "insufficient_quota"}') \g /dev/null
select is((select count(*) from ai.exhausted_accounts), 1::bigint, 'of the operator''s it is');
delete from ai.exhausted_accounts;

-- What a worker is given
select is((select count(*) from ai.worker_secret(:'w', array[:o, :a, 999999])), 2::bigint, 'several at once; what is not there is left out');
select throws_ok($$ select * from ai.worker_secret(gen_random_uuid(), '{1}') $$, 'PT404', null, 'an unknown worker gets nothing');
select throws_ok($$ select * from ai.worker_data_keys(gen_random_uuid(), '{}') $$, 'PT404', null, 'no data keys');
select throws_ok($$ select * from ai.worker_add_data_key(gen_random_uuid(), gen_random_uuid(), t.alpha(), t.wrapped(''), 'm') $$, 'PT404', null, 'and adds none');
select throws_ok(format($$ select * from ai.worker_add_data_key(%L, gen_random_uuid(), null, t.wrapped(''), 'm') $$, :'w'), 'PT400', null, 'a worker makes no key of the operator''s');
insert into ai.tenants (id, name) values ('0c000000-0000-7000-8000-000000000001', 'mtap gamma');
select is((select data_key_id from ai.worker_add_data_key(:'w', '0d000000-0000-7000-8000-000000000001', '0c000000-0000-7000-8000-000000000001', t.wrapped('one'), 'm1')),
          '0d000000-0000-7000-8000-000000000001'::uuid, 'the first key of a tenant');
select results_eq(format($$ select data_key_id, wrapped from ai.worker_add_data_key(%L, gen_random_uuid(), '0c000000-0000-7000-8000-000000000001', t.wrapped('two'), 'm1') $$, :'w'),
                  $$ select '0d000000-0000-7000-8000-000000000001'::uuid, t.wrapped('one') $$, 'who comes second gets the first');
select is((select count(*) from ai.worker_data_keys(:'w', array(select id from ai.data_keys))), (select count(*) from ai.data_keys), 'data keys by id');

-- Setting, renewing
select throws_ok($$ select ai.set_secret(t.alpha(), 'X_KEY', t.sealed('v'), t.key_of(t.beta())) $$, 'PT409', null, 'not with the key of another tenant');
select throws_ok($$ select ai.set_secret(null, 'X_KEY', t.sealed('v'), t.key_of(t.beta())) $$, 'PT409', null, 'nor the operator''s');
select throws_ok(format($$ select ai.set_secret(t.alpha(), %L, t.sealed('v'), t.key_of(t.alpha())) $$, name), '23514', null, format('no secret is called "%s"', name))
  from (values ('path'), ('x_KEY'), ('KEY'), ('../X_KEY'), (E'X_KEY\n'), ('X KEY'), (rpad('A', 97, 'A') || '_KEY'), ('')) v (name);
select throws_ok($$ select ai.set_secret(t.alpha(), 'X_KEY', '\x00', t.key_of(t.alpha())) $$, '23514', null, 'what is too short to be sealed is not');
select throws_ok($$ insert into ai.data_keys (id, wrapped, master_key_id) values (gen_random_uuid(), 'short', 'm') $$, '23514', null, 'a data key has one length');
select throws_ok($$ insert into ai.data_keys (id, tenant_id, wrapped, master_key_id) values (gen_random_uuid(), t.alpha(), t.wrapped(''), 'm') $$, '23505', null, 'and there is one current one');
select is(ai.rewrap_data_keys(jsonb_build_array(
            jsonb_build_object('id', t.key_of(t.alpha()), 'was', 'm1', 'wrapped', encode(t.wrapped('alpha2'), 'base64'), 'master_key_id', 'm2'),
            jsonb_build_object('id', t.key_of(t.beta()), 'was', 'm0', 'wrapped', encode(t.wrapped('beta2'), 'base64'), 'master_key_id', 'm2'))), 1, 'a key that was under another one meanwhile stays');
select results_eq($$ select tenant_id, master_key_id from ai.data_keys where is_current and tenant_id in (t.alpha(), t.beta()) order by 1 $$, $$ values (t.alpha(), 'm2'), (t.beta(), 'm1') $$, 'one is under the new one');
select throws_ok(format($$ select ai.renew_data_key(%L, gen_random_uuid(), t.wrapped('n'), 'm2', '[]') $$, t.key_of(t.alpha())), 'PT409', null, 'a key is not renewed without its secrets');
select t.key_of(t.alpha()) as old \gset
select lives_ok(format($$ select ai.renew_data_key(%L, '0e000000-0000-7000-8000-000000000001', t.wrapped('n'), 'm2', %L) $$, :'old',
                       (select jsonb_agg(jsonb_build_object('id', id, 'sealed', encode(t.sealed('again'), 'base64'))) from ai.secrets where tenant_id = t.alpha() and replaced_at is null)), 'with them it is');
select is((select sealed from ai.secrets where tenant_id = t.alpha() and replaced_at is null), t.sealed('again'), 'they are sealed anew');
select throws_ok(format($$ select ai.renew_data_key(%L, gen_random_uuid(), t.wrapped('n'), 'm2', '[]') $$, :'old'), 'PT409', null, 'not twice');
select is((select count(*) from ai.data_keys where tenant_id = t.alpha()), 2::bigint, 'the old key stays for what was sealed with it');

-- Who may
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'keys-read', '{secret:read}'), (t.alpha(), 'keys-write', '{secret:write}');
select is(t.does(r.role, s.statement), r.expected, format('%s: %s', r.role, s.statement))
  from (values ('names', 'select string_agg(coalesce(tenant, ''all'') || '' '' || name, '', '') from ai.list_secrets()')) s (what, statement)
 cross join (values ('mtap_adm', 'mtap alpha FIRST_API_KEY'), ('mtap_dev', 'PT403'), ('mtap_ann', 'PT403'), ('mtap_bob', 'PT403'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_monitor', '42501')) r (role, expected);
select is(t.does(role, format('select count(*) from ai.%I', relation)), '42501', format('%s reads no row of ai.%s', role, relation))
  from unnest(array['mtap_adm', 'mtap_dev', 'mtap_ann', 'mtap_worker', 'mtap_monitor', 'mtap_stray']) role,
       unnest(array['data_keys', 'secrets', 'sealed_calls', 'call_openings']) relation;
select is(t.does(role, statement), '42501', format('%s: %s', role, statement))
  from unnest(array['mtap_adm', 'mtap_worker', 'mtap_monitor', 'mtap_ann']) role,
       unnest(array['select ai.set_secret(null, ''A_KEY'', ''\x00'', gen_random_uuid())', 'select ai.rewrap_data_keys(''[]'')', 'select ai.add_data_key(gen_random_uuid(), null, ''\x'', ''m'')',
                    'select ai.renew_data_key(gen_random_uuid(), gen_random_uuid(), ''\x'', ''m'', ''[]'')', 'select ai.secret_ref(null, ''A_KEY'', false)', 'select ai.vault_entries(''{}'', null, true)']) statement;
select is(t.does(role, 'select count(*) from ai.worker_secret(''' || :'w' || ''', ''{1}'')'), '42501', format('%s is no worker', role)) from unnest(array['mtap_adm', 'mtap_dev', 'mtap_ann', 'mtap_monitor']) role;
update ai.members set role = 'keys-read' where tenant_id = t.alpha() and user_id = 'ann';
update ai.members set role = 'keys-write' where tenant_id = t.alpha() and user_id = 'abe';
select is(t.does('mtap_ann', 'select count(*) from ai.list_secrets()'), '1', 'who has secret:read sees the names');
select is(t.does('mtap_ann', 'select ai.remove_secret(''FIRST_API_KEY'')'), 'PT403', 'and removes none');
select is(t.does('mtap_abe', 'select count(*) from ai.list_secrets()'), 'PT403', 'who has secret:write need not see them');
select is(t.does('mtap_abe', 'select ai.remove_secret(''FIRST_API_KEY'', t.beta())'), 'PT403', 'of another tenant none is removed');
select is(t.does('mtap_abe', 'select ai.remove_secret(''MORE_API_KEY'')'), 'PT404', 'nor by a name that only another has');
select is(t.does('mtap_abe', 'select ai.remove_secret(''FIRST_API_KEY'')'), '', 'of the own one it is');
select is((select count(*) from ai.secrets where tenant_id = t.alpha() and sealed is not null), 0::bigint, 'nothing of it is left');
select is((select count(*) from ai.secrets where tenant_id is null and sealed is not null), 2::bigint, 'the operator''s stay');
select is(t.does('mtap_ann', 'select ai.destroy_data_keys()'), 'PT403', 'who may not write destroys no key');
select is(t.does('mtap_abe', 'select ai.destroy_data_keys(t.beta())'), 'PT403', 'nobody that of another tenant');
select is(t.does('mtap_stray', 'select ai.destroy_data_keys()'), 'PT401', 'nobody is nobody');
select throws_ok($$ select ai.destroy_data_keys() $$, 'PT400', null, 'the operator says whose');
select is(t.does('mtap_abe', 'select ai.destroy_data_keys()'), '2', 'the own ones are destroyed, old ones, too');
select is((select count(*) from ai.data_keys where tenant_id = t.alpha() and (wrapped is not null or is_current or destroyed_at is null)), 0::bigint, 'nothing of them is left');
select is((select count(*) from ai.data_keys where tenant_id = t.beta() and wrapped is not null), 1::bigint, 'those of others are');
select is(ai.destroy_data_keys(t.beta()), 1, 'the operator destroys anybody''s');
select is((select count(*) from ai.secrets where tenant_id = t.beta() and sealed is not null), 0::bigint, 'secrets go with their key');
select is((select count(*) from ai.worker_data_keys(:'w', array(select id from ai.data_keys where destroyed_at is not null))), 0::bigint, 'a worker is given no destroyed key');
select isnt(t.key_of(t.alpha()), :'old'::uuid, 'there is a new one at the next need');

-- A vault
select is(ai.has_vault(), false, 'there is none');
create schema vault;
create table vault.kept (id uuid default gen_random_uuid(), name text, value text, updated_at timestamptz default now());
create view vault.decrypted_secrets as select id, name, value as decrypted_secret, updated_at from vault.kept;
insert into vault.kept (name, value) values ('VAULT_API_KEY', 'v-operator'), ('martlet/' || t.alpha() || '/VAULT_API_KEY', 'v-alpha'), ('LONELY_API_KEY', 'of no provider'), ('FIRST_API_KEY', 'behind what is sealed'),
  ('martlet/' || t.alpha() || '/../VAULT_API_KEY', 'odd');
select is(ai.has_vault(), true, 'now there is');
update ai.providers set secret = 'VAULT_API_KEY' where name = 'mtap-second';
select ai.secret_ref(t.alpha(), 'VAULT_API_KEY', true) as va, ai.secret_ref(t.beta(), 'VAULT_API_KEY', false) as vb \gset
select results_eq(format($$ select tenant_id, name, value, sealed from ai.worker_secret(%L, array[(%L::bigint[])[1], (%L::bigint[])[1]]) order by value $$, :'w', :'va', :'vb'),
                  $$ values (t.alpha(), 'VAULT_API_KEY', 'v-alpha', null::bytea), (null, 'VAULT_API_KEY', 'v-operator', null) $$, 'of a tenant and of the operator');
select is(ai.secret_ref(t.beta(), 'VAULT_API_KEY', true), null, 'a tenant''s own provider finds nothing of others there');
select is((ai.secret_ref(t.beta(), 'FIRST_API_KEY', false))[1], :o::bigint, 'what is sealed here goes before');
select is((select count(*) from ai.worker_secret(:'w', array[(ai.secret_ref(t.beta(), 'LONELY_API_KEY', false))[1]])), 0::bigint, 'a worker is given nothing that no provider needs');
update vault.kept set value = 'changed', updated_at = now() + interval '1 s' where name = 'VAULT_API_KEY';
select isnt((ai.secret_ref(t.beta(), 'VAULT_API_KEY', false))[1], (:'vb'::bigint[])[1], 'what was changed has another reference');
create role mtap_squatter;
grant all on schema vault to mtap_squatter;
alter view vault.decrypted_secrets owner to mtap_squatter;
select is(ai.has_vault(), false, 'a view that somebody else has made is no vault');

-- On the audit log, without values
select is((select count(*) from ai.audit_pending a where a::text ~ 'again|newer|operator''|v-alpha') + (select count(*) from ai.audit_log a where a::text ~ 'newer|v-alpha'), 0::bigint, 'the audit log has no value');
select * from finish();
rollback;
