-- Limits per API key: each key has a counter, a rotation does not lift its limit, and what is asked with no key is not concerned.
begin;
\ir setup/world.sql
\ir setup/limits.sql
select no_plan();

create function t.new_key(p_user text, p_tenant uuid default t.alpha()) returns uuid language sql as $$
  select k.id from ai.create_api_key(p_user || '''s', p_user, null, null, p_tenant) k
$$;
select t.new_key('ann') as one, t.new_key('ann') as two, t.new_key('abe') as abe, t.new_key('bob', t.beta()) as bob \gset
select id as one_b from ai.rotate_api_key(:'one') \gset
select id as one_c from ai.rotate_api_key(:'one_b') \gset
create function t.of(p_key uuid, p_user text default 'ann') returns bigint[] language sql as $$ select ai.make_counters(t.alpha(), p_user, 'chat', 'mtap/one', null, p_key) $$;

-- Which counters apply
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'per', 'api_key', 'metric', 'requests', 'period', 'hour', 'amount', 2)) as each \gset
select is(t.of(null), '{}'::bigint[], 'what is asked with no key is not concerned');
select is(ai.generation_counters(t.alpha(), 'ann', 'chat', 'mtap/one', null, :'one'), null, 'the counter of a key has to be made first');
select is(cardinality(t.of(:'one')), 1, 'it is made');
select isnt(t.of(:'one'), t.of(:'two'), 'each key has one');
select is(t.of(:'one_b'), t.of(:'one'), 'what a key was rotated into counts with it'), is(t.of(:'one_c'), t.of(:'one'), 'and so on');
select is((select subject from ai.counters where id = (t.of(:'one_c'))[1]), :'one', 'by the first of them');
select is(t.of(:'one', 'abe'), t.of(:'one'), 'whoever asks with it');
select is(cardinality(t.of(gen_random_uuid())), 1, 'a key that is gone counts as itself');
insert into ai.limits (tenant_id, api_key_id, metric, period, amount) values (t.alpha(), :'one_b', 'tokens', 'hour', 100) returning id as of_one \gset
select is((select api_key_id from ai.limits where id = :of_one), :'one'::uuid, 'a limit of one key is kept by the first of its rotations');
select is(cardinality(t.of(k)), n, format('%s: %s', what, n))
  from (values ('the key', :'one'::uuid, 2), ('what it was rotated into', :'one_b', 2), ('and that', :'one_c', 2), ('another', :'two', 1), ('none', null, 0)) v (what, k, n);
insert into ai.limits (api_key_id, metric, period, amount) values (:'bob', 'tokens', 'hour', 100) returning id as bobs \gset
select is((select tenant_id from ai.limits where id = :bobs), t.beta(), 'the operator names the key, and it is its tenant''s');
select throws_ok(format('insert into ai.limits (tenant_id, api_key_id, metric, period, amount) values (%L, %L, ''requests'', ''hour'', 1)', t.alpha(), k), 'PT404', null, 'no limit of a key of another tenant, or of none')
  from (values (:'bob'::uuid), (gen_random_uuid())) v (k);
select throws_ok(format('update ai.limits set api_key_id = %L where id = %s', v, :of_one), 'PT409', null, 'the key of a limit does not change') from (values (:'two'::uuid), (null)) k (v);
select throws_ok(format('insert into ai.limits (tenant_id, metric, amount, %s', v), '23514', null, 'credit is of the tenant')
  from (values (format('api_key_id) values (%L, ''credit'', 0, %L)', t.alpha(), :'one')), (format('per) values (%L, ''credit'', 0, ''api_key'')', t.alpha()))) k (v);
select is(ai.limit_text('requests', 'hour', 2, 'api_key'), '2 requests an hour for each API key', 'in words');
delete from ai.limits where id in (:of_one, :bobs);

-- Asked in a session of the key: stamped, put into its lane, and held to its limit.
create table t.keys (name text, secret text);
create function t.ask_with(p_secret text, p_count integer default 1) returns text language plpgsql as $$
declare
  v_as text;
begin
  set local session authorization mtap_stray;
  begin
    perform ai.use_session(p_secret);
    insert into ai.generations (prompt, model) select 'Why?', 'mtap/one' from generate_series(1, p_count);
    v_as := 'ok';
  exception when others then
    v_as := sqlstate;
  end;
  perform set_config('ai.session', '', true);
  reset session authorization;
  return v_as;
end
$$;
select k.id as first, k.key as first_key from ai.create_api_key('first', 'ann', null, null, t.alpha()) k \gset
select k.id as second, k.key as second_key from ai.create_api_key('second', 'ann', null, null, t.alpha()) k \gset
update ai.limits set on_limit = 'reject' where id = :each;
select is(t.ask_with(:'first_key', 3), 'ok', 'three with the one key, of two an hour'), is(t.ask_with(:'second_key'), 'ok', 'one with another');
select t.ask() as none \gset
select is((select array_agg(distinct api_key_id order by api_key_id) from ai.generations where api_key_id is not null), (select array_agg(k order by k) from unnest(array[:'first', :'second']::uuid[]) k), 'they are stamped');
select t.worker() as worker \gset
select is((select count(*) from (select t.claim(:'worker') union all select t.claim(:'worker') union all select t.claim(:'worker')) c), 4::bigint, 'two of the first, one of the second, one without');
select results_eq($$ select api_key_id, status, count(*) from ai.generations group by 1, 2 order by 3 desc, 2 desc, 1 $$,
  format($$ select * from (values (%L::uuid, 'running', 2::bigint), (%1$L, 'rejected', 1), (%L, 'running', 1), (null, 'running', 1)) v (k, s, n) order by 3 desc, 2 desc, 1 $$, :'first', :'second'),
  'the third of the first key is rejected');
select is((select error ->> 'limit' from ai.generations where status = 'rejected'), '2 requests an hour for each API key', 'and says why');
select id as rotated, key as rotated_key from ai.rotate_api_key(:'first') \gset
select is(t.ask_with(:'rotated_key'), 'ok', 'with the key in its place');
select count(*) from (select t.claim(:'worker') union all select t.claim(:'worker')) c \g /dev/null
select is((select status from ai.generations where api_key_id = :'rotated'), 'rejected', 'the limit is still reached');

-- Who sees what is left
create function t.status_with(p_secret text) returns setof text language plpgsql as $$
begin
  set local session authorization mtap_stray;
  perform ai.use_session(p_secret);
  return query select concat_ws(' ', s.per, s.api_key_id, s.used + s.reserved, s.remaining) from ai.limits_status() s;
  perform set_config('ai.session', '', true);
  reset session authorization;
end
$$;
select results_eq(format('select t.status_with(%L)', secret), format('values (%L)', format('api_key %s %s', key, counts)), 'a session of a key sees that key''s: ' || what)
  from (values ('the first', :'first_key', :'first'::uuid, '2 0'), ('what it was rotated into', :'rotated_key', :'first', '2 0'), ('the second', :'second_key', :'second', '1 1')) v (what, secret, key, counts);
set local session authorization mtap_ann;
select is_empty('select * from ai.limits_status()', 'their member without a key sees none');
set local session authorization mtap_dev;
select set_eq('select api_key_id from ai.limits_status()', array[:'first', :'second']::uuid[], 'who has billing:read sees those that counted');
set local session authorization mtap_bob;
select is_empty('select * from ai.limits_status()', 'another tenant none');
reset session authorization;

-- Who sets them
set local session authorization mtap_adm;
select lives_ok(format('insert into ai.limits (api_key_id, metric, period, amount) values (%L, ''cost'', ''day'', 1)', :'second'), 'an admin limits a key of the tenant');
select lives_ok('insert into ai.limits (per, metric, amount) values (''api_key'', ''concurrency'', 1)', 'or each key');
select throws_ok(format('insert into ai.limits (%s metric, period, amount) values (%s ''cost'', ''day'', 1)', c, v), 'PT404', null, 'but none of another tenant''s, naming that tenant or not')
  from (values ('api_key_id,', format('%L,', :'bob')), ('tenant_id, api_key_id,', format('%L, %L,', t.beta(), :'bob')), ('tenant_id, api_key_id,', format('%L, gen_random_uuid(),', t.beta()))) k (c, v);
set local session authorization mtap_abe;
select is((select count(*) from ai.limits where api_key_id is not null), 0::bigint, 'other members do not see limits of a key');
reset session authorization;
select is(row (tenant_id, operator), row (t.alpha(), false), 'it is the tenant''s own') from ai.limits where metric = 'cost';

select * from finish();
rollback;
