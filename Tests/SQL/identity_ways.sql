-- What holds is found by one statement, what does not is looked at step by step, and policies ask by ways of their own:
-- whichever way is gone, the session is the same.
begin;
\ir setup/world.sql
select no_plan();
select random() as seed \gset
\echo # setseed(:seed)
select setseed(:seed) \g /dev/null

select t.ask('of ann') as ann, t.ask('of dev', p_user => 'dev') as dev, t.ask('of bob', p_tenant => t.beta(), p_user => 'bob') as bob \gset
insert into ai.roles (tenant_id, name, permissions) values (t.beta(), 'reader', '{inference:read}'), (null, 'reader', '{inference:execute}');
insert into ai.members (tenant_id, user_id, role, enabled) values (t.alpha(), 'off', 'user', false), (t.beta(), 'reader', 'reader', true), (t.alpha(), 'reader', 'reader', true);

-- What a session gets to know of itself: by ai.identity(), and by what policies ask.
create function t.both_ways(p_role text, p_claims text default '', p_session text default '') returns text language plpgsql as $$
declare
  v_ways text[];
begin
  perform set_config('request.jwt.claims', p_claims, true), set_config('ai.session', p_session, true);
  execute format('set local session authorization %I', p_role);
  if p_role = 'mtap_gateway' then
    execute 'set local role mtap_web';
  end if;
  for n in 1 .. 3 loop
    begin
      v_ways[n] := case n when 1 then (select concat_ws(' ', i.tenant_id, coalesce(i.only_user, case when i.tenant_id is not null then 'all' end)) from ai.identity() i)
                          when 2 then concat_ws(' ', ai.tenant_id(), coalesce(ai.only_user(), case when ai.tenant_id() is not null then 'all' end))
                          else (select concat_ws(' ', i.tenant_id, i.user_id, i.role, i.source, i.permissions, i.api_key_id) from ai.identity() i) end;
    exception when others then
      v_ways[n] := sqlstate || sqlerrm;
    end;
  end loop;
  execute 'reset session authorization';
  perform set_config('ai.session', '', true), set_config('request.jwt.claims', '', true);
  return concat_ws(' | ', v_ways[1], v_ways[3], case when v_ways[1] <> v_ways[2] then v_ways[2] || ' DIFFER' end);
end
$$;

-- 1. Claims. A claim with an escape in it that means nothing keeps a token off the short way.
create function t.made_of(p_sub text, p_tenant text, p_meta text, p_exp text, p_nbf text, p_more text) returns text language sql as $$
  select '{' || concat_ws(', ', '"sub": ' || p_sub, '"tenant_id": ' || p_tenant, '"app_metadata": ' || p_meta, '"exp": ' || p_exp, '"nbf": ' || p_nbf, p_more) || '}'
$$;
create function t.any_of(p_list text[]) returns text language sql volatile as $$ select p_list[1 + floor(random() * cardinality(p_list))::integer] $$;
create table t.tokens as
select t.made_of(
         t.any_of(array['"ann"', '"ann"', '"dev"', '"bob"', '"shared"', '"shared"', '"reader"', '"reader"', '"off"', '"nobody"', '7', 'null', '["ann"]', null]),
         t.any_of(array[null, null, null, format('"%s"', t.alpha()), format('"%s"', t.beta()), format('"%s"', upper(t.beta()::text)), '"alpha"', '""', 'null', '{}', format('"{%s}"', t.alpha()), format('" %s"', t.beta())]),
         t.any_of(array[null, '{}', 'null', '[]', format('{"tenant_id": "%s"}', t.beta()), format('{"tenant_id": "%s"}', t.beta()), format('{"tenant_id": "%s"}', t.alpha()),
                        format('{"tenant_id": "%s", "sub": "bob"}', t.alpha()), format('{"tenant_id": "%s"}', replace(t.beta()::text, '-', '')), '{"tenant_id": null}', '{"tenant_id": ["x"]}']),
         t.any_of(array[null, null, '9999999999', '9999999999', '1', '"x"', 'null', format('%s', extract(epoch from ai.now()) - 29), '1e300', '1e999999']),
         t.any_of(array[null, null, null, '1', '9999999999', 'null', 'true']),
         t.any_of(array[null, null, '"role": "web"', '"exp": 9999999999', '"x": "sub"', '"x": {"sub": "bob"}', '"user_metadata": {"tenant_id": "x"}', '"sub": "ann"', '"x": [' || repeat('[', 998) || repeat(']', 999)])) as token
  from generate_series(1, 800) n;
insert into t.tokens
select t.made_of(t.any_of(array['"dev"', '"bob"', '"shared"', '"reader"', '"nobody"']), null, format('{"tenant_id": "%s"}', t.any_of(array[t.alpha(), t.beta()]::text[])),
                 t.any_of(array['9999999999', '1']), t.any_of(array[null, '1']), '"role": "web"')
  from generate_series(1, 300) n;
insert into t.tokens values ('rubbish'), ('{"sub": "ann"'), ('["ann"]'), ('""'), ('{"sub": "ann"}x'), ('{}'), ('null'),
  (format('{"sub": "reader", "tenant_id": "%s", "x": "%s"}', t.beta(), repeat('x', 990))), (format('{"sub": "reader", "tenant_id": "%s", "x": "%s"}', t.beta(), repeat('x', 9000))),
  (format('{"sub": "reader", "tenant_id": "%s", "x": %s1%s}', t.beta(), repeat('[', 999), repeat(']', 999))), (format('{"sub": "reader", "tenant_id": "%s", "x": %s1%s}', t.beta(), repeat('[', 1000), repeat(']', 1000)));
create table t.both as
select k.token, t.both_ways('mtap_gateway', k.token) as short, t.both_ways('mtap_gateway', regexp_replace(k.token, '\}$', ', "y": "\\u0061"}')) as long
  from t.tokens k where k.token ~ '^\{.*".*\}$';
select is((select count(*) from t.both where short like '%DIFFER'), 0::bigint, 'the policies'' way is that of ai.identity(): ' || coalesce((select token || ' ' || short from t.both where short like '%DIFFER' limit 1), 'always'));
select is((select count(*) from t.both where short <> long), 0::bigint,
  'the short way is the long one: ' || coalesce((select format('%s %s %s', token, short, long) from t.both where short <> long limit 1), 'always'));
select cmp_ok((select count(*) from t.both where short !~ '^PT|^ ' and short <> ''), '>', 50::bigint, 'of the tokens many are somebody''s');
select cmp_ok((select count(*) from t.both where short ~ '^PT401'), '>', 200::bigint, 'and many are refused');
select ok(t.both_ways('mtap_gateway', k.token) !~ 'DIFFER$', 'both ways are the same for ' || left(k.token, 60)) from t.tokens k where k.token !~ '^\{.*".*\}$' or length(k.token) > 900 order by length(k.token) limit 12;
select ok(t.both_ways(r, k.token) !~ 'DIFFER$|jwt', format('claims are worth nothing to %s', r)) from unnest(array['mtap_ann', 'mtap_stray', 'mtap_dev']) r, (select token from t.tokens limit 1) k;
select matches(t.both_ways('mtap_gateway', format('{"sub": "reader", "tenant_id": "%s"}', t.beta())), ' all \|', 'a role of the tenant''s own goes before the shared one of its name');
select matches(t.both_ways('mtap_gateway', format('{"sub": "reader", "tenant_id": "%s"}', t.alpha())), ' reader \|', 'which counts elsewhere');

-- 2. Sessions
create table t.keys as
select v.name, k.id, k.key from (values ('all', 'dev', null::text[]), ('limited', 'dev', '{inference:execute}'), ('reads', 'dev', '{inference:read}'), ('nothing', 'dev', '{}'),
    ('ann', 'ann', null), ('revoked', 'ann', null), ('old', 'ann', null)) v (name, user_id, permissions)
  cross join lateral ai.create_api_key(v.name, v.user_id, v.permissions, p_tenant_id => t.alpha()) k;
create function t.token_of(p_name text, p_connection boolean default false) returns text language plpgsql as $$
declare
  v_token text;
begin
  v_token := ai.login((select key from t.keys where name = p_name), p_connection);
  perform set_config('ai.session', '', false);
  return v_token;
end
$$;
select t.token_of('all') as token, t.token_of('limited') as limited, t.token_of('ann', true) as connected, t.token_of('revoked') as revoked, t.token_of('old') as old \gset
update ai.api_keys set revoked_at = now() where name = 'revoked';
update ai.api_keys set expires_at = now() - interval '1 second' where name = 'old';
select extract(epoch from now()) as stamp \gset
create table t.settings (what text, setting text, expected text);
insert into t.settings
select 'the key ' || name, key || ':' || :'stamp', case when name in ('revoked', 'old') then '^PT401' when name in ('limited', 'nothing') then ' dev \| .* session' when name = 'ann' then ' ann \| .* session' else ' all \| .* session' end from t.keys
union all values
  ('a token', :'token' || ':' || :'stamp', ' all \| .* session'), ('a token of a limited key', :'limited' || ':' || :'stamp', ' dev \| .* session'),
  ('a token for the connection', :'connected', ' ann \| .* session'), ('the same, stamped', :'connected' || ':' || :'stamp', ' ann \| .* session'),
  ('a token of another transaction', :'token' || ':1', 'OTHER'), ('a token with half a stamp', :'token' || ':', 'OTHER'), ('two stamps', :'token' || ':' || :'stamp' || ':' || :'stamp', 'OTHER'),
  ('a token for no connection', :'token', '^PT401'), ('a key without a stamp', (select key from t.keys where name = 'all'), '^PT401'), ('a token of a revoked key', :'revoked' || ':' || :'stamp', '^PT401'),
  ('a token of a key that ended', :'old' || ':' || :'stamp', '^PT401'), ('only a stamp', ':' || :'stamp', '^PT401'), ('rubbish', 'rubbish', '^PT401'), ('a wrong token', 'mrs_x:' || :'stamp', '^PT401'),
  ('a wrong ticket', 'mrc_x:' || :'stamp', '^PT401'), ('a token and more', :'token' || 'x:' || :'stamp', '^PT401'), ('a hash', encode(sha256(convert_to(:'token', 'UTF8')), 'hex') || ':' || :'stamp', '^PT401');
select matches(w.way, replace(s.expected, 'OTHER', o.other) || '(?!.*DIFFER)', format('%s, as %s', s.what, o.role))
  from t.settings s
 cross join (values ('mtap_stray', '', '^$|^ \| $'), ('mtap_bob', '', ' bob \| .* binding'), ('mtap_gateway', format('{"sub": "reader", "tenant_id": "%s"}', t.beta()), ' all \| .* jwt')) o (role, claims, other)
 cross join lateral t.both_ways(o.role, o.claims, s.setting) w (way);

-- 3. How much is looked up for a row by its id. Each call is a few look-ups; what is counted can not become more unseen.
set local track_functions = 'all';
create function t.calls(p_role text, p_id uuid, p_claims text, p_session text) returns text language plpgsql as $$
declare
  v_names text[] := array['tenant_id', 'only_user', 'identity', 'claims_identity', 'session_identity', 'claimed_member', 'parse_object', 'session_key', 'secret_key', 'permissions_both'];
  v_before bigint[] := array(select coalesce(pg_stat_get_xact_function_calls(p.oid), 0) from unnest(v_names) with ordinality n (name, k)
                               join pg_proc p on p.proname = n.name and p.pronamespace = 'ai'::regnamespace order by n.k);
begin
  perform set_config('request.jwt.claims', p_claims, true), set_config('ai.session', p_session, true);
  execute format('set local session authorization %I', p_role);
  if p_role = 'mtap_gateway' then
    execute 'set local role mtap_web';
  end if;
  perform from ai.generations where id = p_id;
  if not found then
    raise exception 'it does not see the row';
  end if;
  execute 'reset session authorization';
  perform set_config('ai.session', '', true), set_config('request.jwt.claims', '', true);
  return (select string_agg(format('%s %s', n.name, pg_stat_get_xact_function_calls(p.oid) - v_before[n.k]), ', ' order by n.k)
            from unnest(v_names) with ordinality n (name, k) join pg_proc p on p.proname = n.name and p.pronamespace = 'ai'::regnamespace
           where pg_stat_get_xact_function_calls(p.oid) - v_before[n.k] > 0);
end
$$;
select is(t.calls('mtap_ann', :'ann', '', ''), 'tenant_id 1, only_user 1', 'a bound login looks itself up twice');
select is(t.calls('mtap_stray', :'dev', '', :'token' || ':' || :'stamp'), 'tenant_id 1, only_user 1, session_identity 2', 'a session token is looked up twice');
select is(t.calls('mtap_gateway', :'bob', format('{"sub": "reader", "tenant_id": "%s"}', t.beta()), ''),
          case when current_setting('server_version_num')::integer >= 160000 then 'tenant_id 1, only_user 1, claims_identity 2'
               else 'tenant_id 1, only_user 1, claims_identity 2, claimed_member 2, parse_object 2' end, 'claims are read twice');

select * from finish();
rollback;
