-- Providers, models and prices of a tenant's own: what may be written, by whom, and that nothing reaches beyond the tenant.
begin;
\ir setup/world.sql
select no_plan();

create role mtap_badm login;
grant ai_admin to mtap_badm;
insert into ai.members (tenant_id, user_id, role) values (t.beta(), 'badm', 'admin');
insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_badm', t.beta(), 'badm');
-- Runs one value as a role; or gives the SQLSTATE.
create function t.value(p_role text, p_sql text) returns text language plpgsql as $$
declare
  v_as text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute p_sql into v_as;
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;
select is((select private_providers from ai.settings), false, 'private addresses are refused unless the operator allows them');

-- 1. A whole one
select is(t.as_role('mtap_adm', $$ insert into ai.providers (name, dialect, base_url, secret, headers, options)
  values ('own', 'openai', 'https://llm.alpha.example/v1', 'ALPHA_API_KEY', '{"x-team": "a b"}', '{"auth": "x-key"}') $$), 'ok 1', 'an admin adds a provider');
select id as own from ai.providers where tenant_id = t.alpha() and name = 'own' \gset
select is((select count(*) from ai.providers where tenant_id is null and name = 'own'), 0::bigint, 'the tenant''s, without having said so');
select is(t.as_role('mtap_adm', format($$ insert into ai.providers (tenant_id, name, dialect, base_url) values (%L, 'mtap-first', 'openai', 'https://x.example') $$, t.alpha())), 'ok 1', 'or saying so; a shared one may have the same name');
select is(t.as_role('mtap_adm', format($$ insert into ai.models (provider_id, name, wire_name, max_output_tokens) values (%s, 'own/one', 'one', 1000) $$, :own)), 'ok 1', 'and a model');
select id as model, tenant_id = t.alpha() as owned from ai.models where name = 'own/one' \gset
select is(:'owned'::text, 't', 'the tenant''s');
select is(t.as_role('mtap_adm', format($$ insert into ai.prices (model_id, rates) values (%s, '{"input": 1, "output": 2.5}') $$, :model)), 'ok 1', 'and its price');
select is(t.as_role('mtap_adm', format($$ insert into ai.prices (model_id, valid_from, rates) values (%s, now() + interval '1 day', '{"input": 2, "output": 3}') $$, :model)), 'ok 1', 'and its next');
select is((select string_agg(valid_to::text, ' ' order by valid_from) from ai.prices where model_id = :model), (now() + interval '1 day') || ' infinity', 'which ends the first');
select is(t.as_role('mtap_adm', format($$ insert into ai.prices (model_id, rates) values (%s, '{"input": 9, "output": 9}') $$, :model)), 'PT409', 'versions stay versions');
select is(t.as_role('mtap_adm', format($$ insert into ai.provider_accounts (provider_id, position, secret) values (%s, 1, 'ALPHA_2_API_KEY') $$, :own)), 'ok 1', 'and another key');
select is(t.as_role('mtap_adm', format($$ insert into ai.routes (tenant_id, profile, model_id) values (%L, 'mine', %s) $$, t.alpha(), :model)), 'ok 1', 'and a route to it');
select is(t.as_role('mtap_ann', $$ insert into ai.generations (prompt, model) values ('x', 'own/one') $$), 'ok 1', 'members ask it');
select is(t.as_role('mtap_ann', $$ insert into ai.generations (prompt, profile) values ('x', 'mine') $$), 'ok 1', 'by the profile, too');
select is(t.as_role('mtap_bob', $$ insert into ai.generations (prompt, model) values ('x', 'own/one') $$), 'PT404', 'nobody else''s');
select t.worker() as worker \gset
insert into ai.generations (tenant_id, user_id, prompt, model) values (t.alpha(), 'ann', 'x', 'mtap/one');
select is((select string_agg(concat_ws(' ', model, base_url, tenant_only, public_only), ', ' order by model) from ai.worker_claim(:'worker', 64, null) where generation_id is not null),
          'one https://llm.alpha.example/v1 t t, one https://llm.alpha.example/v1 t t, one-wire http://first.test/v1 f f', 'a worker is given it, and told that it is a tenant''s');

-- 2. Seen by whom
select is(t.value('mtap_adm', $$ select concat_ws('|', base_url, secret, headers, options) from ai.own_providers() where name = 'own' $$),
          'https://llm.alpha.example/v1|ALPHA_API_KEY|{"x-team": "a b"}|{"auth": "x-key"}', 'an admin sees how its own is reached');
select is(t.value('mtap_adm', $$ select string_agg(name, ' ' order by name) from ai.own_providers() $$), 'mtap-first own', 'and of its own alone');
select is(t.value(r, $$ select count(*) from ai.own_providers() $$), e, format('%s sees how own providers are reached: %s', r, e))
  from (values ('mtap_ann', 'PT403'), ('mtap_dev', 'PT403'), ('mtap_badm', '0'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_public', '42501')) v (r, e);
select is(t.as_role(r, format('select %I from ai.providers', c)), '42501', format('%s reads no %s from the table', r, c))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_adm']) r, unnest(array['base_url', 'secret', 'headers', 'options']) c;
select is(t.value('mtap_badm', s), '0', 'another tenant sees nothing: ' || s)
  from (values ('select count(name) from ai.providers where tenant_id is not null'), ('select count(*) from ai.models where tenant_id is not null'), (format('select count(*) from ai.prices where model_id = %s', :model)),
               ('select count(secret) from ai.provider_accounts')) v (s);
-- Neither by guessing what is in a column that is hidden, nor by giving it back
select is(t.as_role('mtap_adm', s), '42501', s)
  from (values ('select from ai.providers where base_url like ''https%'''), ('update ai.providers set enabled = enabled returning secret'),
               ('update ai.providers set base_url = base_url || ''/x'''), ('update ai.providers set enabled = true where secret is not null'),
               ('select from ai.providers order by headers'), ('select p from ai.providers p')) v (s);

-- 3. Only one's own
select is(t.as_role('mtap_adm', s), e, s || ': ' || e)
  from (values
    ('update ai.providers set enabled = false where tenant_id is null', 'ok 0'), ('update ai.providers set base_url = ''https://evil.example''', 'ok 2'),
    ('update ai.models set enabled = false where tenant_id is null', 'ok 0'), ('update ai.provider_accounts set enabled = false', 'ok 1'),
    (format('insert into ai.providers (tenant_id, name, dialect, base_url) values (%L, ''x'', ''openai'', ''https://x.example'')', t.beta()), '42501'),
    (format('insert into ai.models (tenant_id, provider_id, name, wire_name) values (%L, %s, ''x'', ''x'')', t.beta(), :own), 'PT403'),
    (format('insert into ai.models (provider_id, name, wire_name) values (%s, ''x'', ''x'')', (select id from ai.providers where name = 'mtap-first' and tenant_id is null)), 'PT403'),
    ('insert into ai.models (provider_id, name, wire_name) values (-1, ''x'', ''x'')', 'PT403'), ('insert into ai.models (provider_id, name, wire_name) values (null, ''x'', ''x'')', 'PT403'),
    (format('insert into ai.prices (model_id, rates) values (%s, ''{"input": 0, "output": 0}'')', t.model('mtap/one')), 'PT403'),
    ('insert into ai.prices (model_id, rates) values (-1, ''{"input": 0, "output": 0}'')', 'PT403'), ('insert into ai.prices (model_id, rates) values (null, ''{"input": 0, "output": 0}'')', 'PT403'),
    (format('insert into ai.provider_accounts (provider_id, position, secret) values (%s, 5, ''X_API_KEY'')', (select id from ai.providers where name = 'mtap-first' and tenant_id is null)), '42501'),
    ('update ai.providers set tenant_id = null', '42501'), ('update ai.providers set name = ''x''', '42501'), ('update ai.models set provider_id = 1', '42501'), ('update ai.models set name = ''x''', '42501'),
    ('update ai.prices set valid_to = now()', '42501'), ('update ai.prices set rates = ''{}''', '42501'), ('delete from ai.providers', '42501'), ('delete from ai.models', '42501'), ('delete from ai.prices', '42501'),
    ('delete from ai.provider_accounts', '42501'), ('lock table ai.providers in share mode', '42501'), ('insert into ai.providers (id, name, dialect) values (1, ''x'', ''openai'')', '42501'),
    ('insert into ai.providers (name, dialect, base_url) values (''own'', ''openai'', ''https://x.example'')', '23505')) v (s, e);
select is((select count(*) from ai.providers where tenant_id is null and (not enabled or base_url like '%evil%')), 0::bigint, 'shared ones are as they were');
insert into ai.providers (tenant_id, name, dialect, base_url) values (t.beta(), 'betas', 'openai', 'https://b.example') returning id as betas \gset
insert into ai.models (tenant_id, provider_id, name, wire_name) values (t.beta(), :betas, 'betas/one', 'x') returning id as betas_model \gset
select is(t.as_role('mtap_adm', format(s, n)), e, format(s, n) || ': ' || e)
  from (values ('insert into ai.models (provider_id, name, wire_name) values (%s, ''x'', ''x'')', :betas, 'PT403'), ('insert into ai.prices (model_id, rates) values (%s, ''{"input": 0, "output": 0}'')', :betas_model, 'PT403'),
               ('insert into ai.provider_accounts (provider_id, position, secret) values (%s, 1, ''X_API_KEY'')', :betas, '42501'), ('update ai.providers set enabled = false where id = %s', :betas, 'ok 0'),
               ('update ai.models set enabled = false where id = %s', :betas_model, 'ok 0')) v (s, n, e);
select is(t.as_role(r, s), '42501', format('%s: %s', r, s))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_stray', 'mtap_worker', 'mtap_monitor', 'mtap_public']) r,
       unnest(array['insert into ai.providers (name, dialect, base_url) values (''x'', ''openai'', ''https://x.example'')', format('insert into ai.models (provider_id, name, wire_name) values (%s, ''x'', ''x'')', :own),
                    'update ai.providers set enabled = false', 'update ai.models set enabled = false', format('insert into ai.prices (model_id, rates) values (%s, ''{}'')', :model), 'select secret from ai.provider_accounts']) s;

-- 4. What a provider may be
create function t.provider(p_column text, p_value text, p_tenant text default 'mtap_adm') returns text language plpgsql as $$
declare
  v_as text;
begin
  begin
    v_as := t.as_role(p_tenant, format('insert into ai.providers (name, dialect, base_url, headers, options, secret) values (''try'', %s, %s, %s, %s, %s)',
      case p_column when 'dialect' then p_value else '''openai''' end, case p_column when 'base_url' then p_value else '''https://x.example''' end,
      case p_column when 'headers' then p_value else '''{}''' end, case p_column when 'options' then p_value else '''{}''' end, case p_column when 'secret' then p_value else 'null' end));
    raise exception using errcode = 'XX999';
  exception when sqlstate 'XX999' then
    null;
  end;
  return v_as;
end
$$;
select is(t.provider('base_url', quote_nullable(v)), e, format('base_url %s: %s', left(v, 60), e))
  from (values ('https://x.example', 'ok 1'), ('https://x.example:8443/v1/a-b_c~d', 'ok 1'), ('https://[2001:db8::1]:443/v1', 'ok 1'), ('https://x.example/' || repeat('a', 482), 'ok 1'),
               ('https://x.example/' || repeat('a', 483), 'PT400'), ('http://x.example', 'PT400'), ('http://127.0.0.1:8080', 'PT400'), ('HTTPS://x.example', 'PT400'), ('ftp://x.example', 'PT400'),
               ('file:///etc/passwd', 'PT400'), ('', 'PT400'), ('https://', 'PT400'), ('https://user:pass@x.example', 'PT400'), ('https://user@x.example', 'PT400'), ('https://x.example?a=b', 'PT400'),
               ('https://x.example/a?b', 'PT400'), ('https://x.example/#f', 'PT400'), (E'https://x.example\r\nHost: y', 'PT400'), (E'https://x.example/\n', 'PT400'), ('https://x.example/a b', 'PT400'),
               ('https://x.example\@y', 'PT400'), ('https://x.example/', '23514'), ('https://' || chr(0x430) || '.example', 'PT400'), (null, '23502')) v (v, e);
select is(t.provider('dialect', quote_nullable(v)), e, format('dialect %s: %s', v, e)) from (values ('anthropic', 'ok 1'), ('local', 'PT400'), ('', '23514'), (null, '23502')) v (v, e);
select is(t.provider('secret', quote_nullable(v)), e, format('secret %s: %s', v, e)) from (values ('MY_API_KEY', 'ok 1'), ('PATH', '23514'), ('../x_KEY', '23514')) v (v, e);
select is(t.provider('headers', quote_nullable(v)), e, format('headers %s: %s', left(v, 60), e))
  from (values ('{"X-Team": "a", "anthropic-beta": "b=c;d"}', 'ok 1'), ('{"x": ""}', 'ok 1'), (format('{"x": "%s"}', repeat('a', 1000)), 'ok 1'), (format('{"x": "%s"}', repeat('a', 1001)), 'PT400'),
               ('{"x": "a\r\nHost: y"}', 'PT400'), ('{"x": "a\nb"}', 'PT400'), ('{"x": "a\tb"}', 'PT400'), ('{"x": "\u007f"}', 'PT400'), ('{"x": "ü"}', 'PT400'), ('{"x": 1}', 'PT400'), ('{"x": null}', 'PT400'),
               ('{"x": ["a"]}', 'PT400'), ('{"x y": "a"}', 'PT400'), ('{"": "a"}', 'PT400'), ('{"x:": "a"}', 'PT400'), ('{"x\n": "a"}', 'PT400'), (format('{"%s": "a"}', repeat('x', 65)), 'PT400'),
               ('{"authorization": "Bearer x"}', 'PT400'), ('{"Authorization": "x"}', 'PT400'), ('{"X-API-Key": "x"}', 'PT400'), ('{"api-key": "x"}', 'PT400'), ('{"HOST": "x"}', 'PT400'), ('{"Content-Length": "1"}', 'PT400'),
               ('{"transfer-encoding": "chunked"}', 'PT400'), ('{"content-type": "x"}', 'PT400'), ('{"connection": "x"}', 'PT400'), ('{"Proxy-Authorization": "x"}', 'PT400'), ('{"x-forwarded-for": "x"}', 'PT400'),
               ('{"cookie": "x"}', 'PT400'), ('{"x-a": "1", "X-A": "2"}', 'PT400'), ('[]', 'PT400'), ('"x"', 'PT400'), (null, 'PT400'),
               ((select jsonb_object_agg('x' || n, 'v')::text from generate_series(1, 20) n), 'ok 1'), ((select jsonb_object_agg('x' || n, 'v')::text from generate_series(1, 21) n), 'PT400'),
               ((select jsonb_object_agg('x' || n, repeat('v', 1000))::text from generate_series(1, 9) n), 'PT400')) v (v, e);
select is(t.provider('options', quote_nullable(v)), e, format('options %s: %s', left(v, 60), e))
  from (values ('{"anthropic_version": "2023-06-01"}', 'ok 1'), ('{"auth": "bearer"}', 'ok 1'), ('{"include_usage": false}', 'ok 1'), ('{"anthropic_version": "x\r\nHost: y"}', 'PT400'), ('{"a": ["b\u0001"]}', 'PT400'),
               ('{"auth": "x\n"}', 'PT400'), ('{"auth": "host"}', 'PT400'), ('{"auth": "Host"}', 'PT400'), ('{"auth": 1}', 'PT400'), ('{"auth": null}', 'PT400'), ('{"auth": "content-length"}', 'PT400'), ('[]', 'PT400'), (null, 'PT400'),
               (format('{"a": "%s"}', repeat('a', 8200)), 'PT400')) v (v, e);
update ai.settings set private_providers = true;
select is(t.provider('base_url', '''http://10.0.0.7:8080/v1'''), 'ok 1', 'where the operator allows it, plain http');
select is(t.provider('base_url', '''ftp://10.0.0.7'''), 'PT400', 'and nothing else');
update ai.settings set private_providers = false;
-- the same holds for a change
select is(t.as_role('mtap_adm', format('update ai.providers set %s where name = ''own''', s)), e, s || ': ' || e)
  from (values ('base_url = ''http://x.example''', 'PT400'), ('base_url = ''https://y.example/v2''', 'ok 1'), ('headers = ''{"host": "x"}''', 'PT400'), ('options = ''{"auth": "te"}''', 'PT400'), ('secret = null, enabled = false', 'ok 1'),
               ('enabled = true', 'ok 1')) v (s, e);
select is(t.as_role('mtap_adm', format(s, :own)), e, s || ': ' || e)
  from (values ('insert into ai.models (provider_id, name, wire_name) values (%s, E''a\nb'', ''x'')', 'PT400'), ('insert into ai.models (provider_id, name, wire_name) values (%s, ''x'', E''a\x01'')', 'PT400'),
               ('insert into ai.models (provider_id, name, wire_name, max_output_tokens) values (%s, ''x'', ''x'', 100000001)', 'PT400'), ('insert into ai.models (provider_id, name, wire_name, options) values (%s, ''x'', ''x'', ''[]'')', 'PT400'),
               ('insert into ai.models (provider_id, name, wire_name, options) values (%s, ''x'', ''x'', ''{"a": "\\n"}'')', 'PT400'), ('insert into ai.models (provider_id, name, wire_name, capabilities) values (%s, ''x'', ''x'', null)', 'PT400'),
               ('insert into ai.models (provider_id, name, wire_name, kind) values (%s, ''x'', ''x'', ''magic'')', '23514'), ('update ai.models set options = ''{"auth": "host"}'' where provider_id = %s', 'PT400'),
               ('update ai.models set context_tokens = 8000, wire_name = ''two'' where provider_id = %s', 'ok 1')) v (s, e);
select is(t.as_role('mtap_adm', format('insert into ai.prices (model_id, valid_from, rates) values (%s, now() + interval ''2 days'', %L)', :model, r)), e, format('rates %s: %s', left(r, 60), e))
  from (values ('{"input": 1000001, "output": 1}', 'PT400'), ('{"input": 1e100000, "output": 1}', 'PT400'), ('{"input": 0.0000000000001, "output": 1}', 'PT400'), ('{"input": -1, "output": 1}', 'PT400'), ('{"input": 1}', 'PT400'),
               ('{"input": "1", "output": 1}', 'PT400'), ('[]', 'PT400'), ('{"input": 1000000, "output": 0.000000000001}', 'ok 1')) v (r, e);

-- 5. So many and no more
set local session authorization mtap_badm;
select lives_ok($$ insert into ai.providers (name, dialect, base_url) select 'p' || n, 'openai', 'https://x.example' from generate_series(1, 99) n $$, 'a tenant has a hundred providers');
select throws_ok($$ insert into ai.providers (name, dialect, base_url) values ('more', 'openai', 'https://x.example') $$, 'PT409', null, 'and no more');
select lives_ok(format($$ insert into ai.models (provider_id, name, wire_name) select %s, 'm' || n, 'x' from generate_series(1, 999) n $$, :betas), 'a thousand models');
select throws_ok(format($$ insert into ai.models (provider_id, name, wire_name) values (%s, 'more', 'x') $$, :betas), 'PT409', null, 'and no more');
reset session authorization;

select * from finish();
rollback;
