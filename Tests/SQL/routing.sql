-- Which profile, which models, in which order; time budgets; what comes after a failure; who is told why.
begin;
\ir setup/world.sql
select no_plan();
delete from ai.breaker_settings;

insert into ai.providers (name, dialect, base_url) values ('mtap-third', 'openai', 'http://third.test/v1');
insert into ai.models (provider_id, name, wire_name, context_tokens)
select p.id, 'mtap/' || v.name, v.name, v.context
  from (values ('a', null), ('b', null), ('c', null), ('tiny', 100), ('wide', 1000), ('widest', 4000)) v (name, context) cross join ai.providers p where p.name = 'mtap-third';

-- A profile with a route of these models, by position, replacing what was there.
create function t.route(p_profile text, p_names text[], p_strategy text default 'priority', p_degrade boolean default false, p_tenant uuid default null) returns void language sql as $$
  delete from ai.routes where profile = p_profile and tenant_id is not distinct from p_tenant;
  delete from ai.profiles where name = p_profile and tenant_id is not distinct from p_tenant;
  insert into ai.profiles (tenant_id, name, strategy, degrade) values (p_tenant, p_profile, p_strategy, p_degrade);
  insert into ai.routes (tenant_id, profile, position, model_id) select p_tenant, p_profile, n, t.model('mtap/' || u) from unnest(p_names) with ordinality u (u, n);
$$;
-- The route of a generation, as names.
create function t.routed(p_profile text, p_bytes integer default 40, p_metadata jsonb default null, p_stream boolean default false, p_seed uuid default gen_random_uuid(),
                         p_tenant uuid default t.alpha(), p_kind text default 'chat', p_model text default null) returns text language sql as $$
  select string_agg(replace(m.name, 'mtap/', ''), ' ' order by n)
    from unnest(ai.route_models(p_tenant, p_kind, p_model, p_profile, p_bytes, p_metadata, p_stream, p_seed)) with ordinality u (id, n) join ai.models m on m.id = u.id
$$;

-- 1. The profile of what names none
select is(ai.choose_profile(t.alpha(), 'chat', 10, null), 'medium', 'without rules: the default');
insert into ai.profile_rules (tenant_id, position, kind, min_length, max_length, tier, metadata, profile) values
  (null, 10, 'chat', null, 99, null, null, 'small'), (null, 20, 'chat', 1000, null, null, null, 'large'), (null, 30, 'chat', null, null, 'premium', null, 'large'),
  (null, 40, 'embedding', null, null, null, null, 'mtap-vectors'),
  (t.beta(), 1, 'chat', null, null, null, '{"app": "billing"}', 'mtap-beta'), (t.beta(), 2, 'chat', 50, 60, null, null, 'mtap-exact');
select is(ai.choose_profile(t.alpha(), 'chat', n, null), p, format('%s characters: %s', n, p))
  from (values (0, 'small'), (99, 'small'), (100, 'medium'), (999, 'medium'), (1000, 'large'), (1000000000, 'large')) v (n, p);
select is(ai.choose_profile(t.alpha(), 'embedding', 5, null), 'mtap-vectors', 'rules are for a kind');
update ai.tenants set tier = 'premium' where id = t.alpha();
select is(ai.choose_profile(t.alpha(), 'chat', 500, null), 'large', 'a tenant''s tier');
select is(ai.choose_profile(t.beta(), 'chat', 500, null), 'medium', 'is its own');
select is(ai.choose_profile(t.beta(), 'chat', 500, '{"app": "billing", "page": 3}'), 'mtap-beta', 'metadata that contains what a rule asks for');
select is(ai.choose_profile(t.beta(), 'chat', 500, m), 'medium', format('metadata that does not: %s', m))
  from (values ('{"app": "Billing"}'::jsonb), ('{"app": ["billing"]}'), ('[{"app": "billing"}]'), ('"app"'), ('{}'), (null)) v (m);
select is(ai.choose_profile(t.beta(), 'chat', n, null), p, format('a tenant''s own rules come first: %s characters: %s', n, p))
  from (values (49, 'small'), (50, 'mtap-exact'), (60, 'mtap-exact'), (61, 'small')) v (n, p);
select is(ai.choose_profile(t.alpha(), 'chat', 55, '{"app": "billing"}'), 'small', 'and are nobody else''s');
update ai.profile_rules set enabled = false where profile = 'small';
select is(ai.choose_profile(t.alpha(), 'chat', 5, null), 'large', 'a rule that is switched off does not count');
select throws_ok($$ insert into ai.profile_rules (position, min_length, max_length, profile) values (50, 2, 1, 'x') $$, '23514', null, 'a range that is none');
select throws_ok($$ insert into ai.profile_rules (position, metadata, profile) values (51, '[]', 'x') $$, '23514', null, 'metadata that is no object');
select throws_ok($$ insert into ai.profile_rules (position, profile) values (10, 'x') $$, '23505', null, 'two rules of one position');

-- How much a condition may ask: of who writes it, and what is stored already
create function t.deep(p_depth integer) returns jsonb language sql as $$ select (repeat('{"a":', p_depth) || '1' || repeat('}', p_depth))::jsonb $$;
select is(t.as_role('mtap_adm', format(sql, t.alpha(), n, m)), expected, format('%s, condition %s: %s', split_part(sql, ' ', 3), n, expected))
  from (values ('insert into ai.profile_rules (tenant_id, position, profile, metadata) values (%L, %s, ''mtap-bounds'', %L)'),
               ('insert into ai.routes (tenant_id, profile, position, model_id, metadata) select %L, ''mtap-bounds'', %s, id, %L from ai.models where name = ''mtap/one''')) s (sql)
 cross join (values (70, jsonb_build_object('a', repeat('x', 1991)), 'ok 1'), (71, jsonb_build_object('a', repeat('x', 1992)), 'PT400'), (72, t.deep(12000), 'PT400'),
                    (73, '{"b": [1, [2, 3, 4], {"c": [5, 6, 7, 8]}]}', 'ok 1'), (74, '{"b": [1, [2, 3, 4], {"c": [5, 6, 7, 8, 9]}]}', 'PT400')) v (n, m, expected);
select is(ai.fits_condition(ai.comparable_metadata(m), c), expected, what)
  from (values (t.deep(12000), t.deep(12000), false, 'a condition that was stored deeper than the stack'), (t.deep(12000), '{"a": {"a": {}}}', false, 'metadata of more than 64 KiB'),
               (jsonb_build_object('a', repeat('x', 65519), 'b', 1), '{"b": 1}', true, 'metadata of 64 KiB'), (jsonb_build_object('a', repeat('x', 65520), 'b', 1), '{"b": 1}', false, 'one byte more'),
               (null, '{}', true, 'no metadata'), (t.deep(12000), null, true, 'no condition')) v (m, c, expected, what);
delete from ai.routes where profile = 'mtap-bounds';
update ai.tenants set tier = 'standard';
delete from ai.profile_rules;

-- 2. Routes: order, conditions at their edges, switches
select t.route('mtap-r', array['a', 'b', 'c']) \g /dev/null
select is(t.routed('mtap-r'), 'a b c', 'by position');
select is(t.routed('mtap-none'), null, 'a profile that does not exist');
select is(t.routed('mtap-r', p_kind => 'embedding'), null, 'a kind that it is not for');
select is(t.routed(null, p_model => 'mtap/b'), 'b', 'a named model is the only one');
select is(t.routed(null, p_model => 'mtap/none'), null, 'one that does not exist');
select is(ai.route_varies(t.alpha(), 'chat', 'mtap-r'), false, 'such a route is the same for all');
update ai.models set enabled = false where name = 'mtap/a';
select is(t.routed('mtap-r'), 'b c', 'a model that is switched off');
select is(t.routed(null, p_model => 'mtap/a'), null, 'also where it is named');
update ai.providers set enabled = false where name = 'mtap-third';
select is(t.routed('mtap-r'), null, 'a provider that is switched off');
update ai.providers set enabled = true where name = 'mtap-third';
update ai.models set enabled = true where name = 'mtap/a';
update ai.routes set enabled = false where profile = 'mtap-r' and position = 2;
select is(t.routed('mtap-r'), 'a c', 'a route''s row that is switched off');
update ai.routes set enabled = true where profile = 'mtap-r';

create function t.condition(p_position integer, p_min integer default null, p_max integer default null, p_tier text default null, p_metadata jsonb default null, p_stream boolean default null)
returns void language sql as $$
  update ai.routes set min_input_tokens = null, max_input_tokens = null, tier = null, metadata = null, stream = null where profile = 'mtap-r';
  update ai.routes set min_input_tokens = p_min, max_input_tokens = p_max, tier = p_tier, metadata = p_metadata, stream = p_stream where profile = 'mtap-r' and position = p_position
$$;
select t.condition(1, p_min => 10) \g /dev/null
select is(t.routed('mtap-r', bytes), expected, format('at least 10 tokens: %s bytes', bytes))
  from (values (0, 'b c'), (36, 'b c'), (37, 'a b c'), (40, 'a b c'), (2147483647, 'a b c')) v (bytes, expected);
select is(ai.route_varies(t.alpha(), 'chat', 'mtap-r'), true, 'now it depends on the row');
select t.condition(1, p_max => 10) \g /dev/null
select is(t.routed('mtap-r', bytes), expected, format('at most 10 tokens: %s bytes', bytes)) from (values (0, 'a b c'), (40, 'a b c'), (41, 'b c'), (null, 'a b c')) v (bytes, expected);
select t.condition(2, p_stream => true) \g /dev/null
select is(t.routed('mtap-r', p_stream => s), expected, format('streamed only: %s', s)) from (values (true, 'a b c'), (false, 'a c'), (null, 'a c')) v (s, expected);
select t.condition(2, p_metadata => '{"x": {"y": 1}}') \g /dev/null
select is(t.routed('mtap-r', p_metadata => m), expected, format('metadata %s', m))
  from (values ('{"x": {"y": 1, "z": 2}}'::jsonb, 'a b c'), ('{"x": {"y": 2}}', 'a c'), ('{"x": 1}', 'a c'), (null, 'a c'), ('[]', 'a c')) v (m, expected);
select t.condition(3, p_tier => 'premium') \g /dev/null
select is(t.routed('mtap-r'), 'a b', 'a tier that the tenant is not of');
update ai.tenants set tier = 'premium' where id = t.alpha();
select is(t.routed('mtap-r'), 'a b c', 'one that it is of');
select is(t.routed('mtap-r', p_tenant => t.beta()), 'a b', 'and another tenant is not');
select is(ai.route_varies(t.alpha(), 'chat', 'mtap-r'), false, 'a tier is the tenant''s, not the row''s');
update ai.tenants set tier = 'standard';
select t.condition(9) \g /dev/null

-- a tenant's own
select t.route('mtap-r', array['c'], p_tenant => t.beta()) \g /dev/null
select is(t.routed('mtap-r', p_tenant => t.beta()), 'c', 'a tenant with rows of its own uses only those');
select is(t.routed('mtap-r'), 'a b c', 'the others the shared ones');
update ai.routes set enabled = false where tenant_id = t.beta();
select is(t.routed('mtap-r', p_tenant => t.beta()), null, 'also where its own are switched off');
delete from ai.routes where tenant_id = t.beta();
select is(t.routed('mtap-r', p_tenant => t.beta()), 'a b c', 'a profile''s row of its own alone takes nothing away');

-- contexts
select t.route('mtap-r', array['tiny', 'wide', 'a', 'widest']) \g /dev/null
select is(t.routed('mtap-r', bytes), expected, format('contexts of 100, 1000, unknown, 4000; %s bytes', bytes))
  from (values (400, 'tiny wide a widest'), (401, 'wide a widest'), (4000, 'wide a widest'), (4001, 'a widest'), (16001, 'a')) v (bytes, expected);
select t.route('mtap-r', array['tiny', 'widest', 'wide']) \g /dev/null
select is(t.routed('mtap-r', 16001), 'widest', 'where none is large enough: the largest');
select is(ai.route_varies(t.alpha(), 'chat', 'mtap-r'), false, 'a small context alone');
select is(ai.route_varies(t.alpha(), 'chat', 'mtap-r', 400), false, 'does no harm to what fits');
select is(ai.route_varies(t.alpha(), 'chat', 'mtap-r', 401), true, 'but to what does not');

-- 3. Strategies
create function t.varies(p_strategy text) returns boolean language plpgsql as $$
begin
  perform t.route('mtap-r', array['a', 'b', 'c'], p_strategy);
  return ai.route_varies(t.alpha(), 'chat', 'mtap-r');
end
$$;
select is(t.varies(v.strategy), v.varies, format('%s varies: %s', v.strategy, v.varies))
  from (values ('priority', false), ('weighted', true), ('cheapest', true), ('fastest', false), ('least_busy', true)) v (strategy, varies);
select throws_ok($$ insert into ai.profiles (name, strategy) values ('mtap-x', 'best') $$, '23514', null, 'a strategy that is none');

-- weighted: 10,000 generations, first targets by weight 6 : 3 : 1 and none for 0
select t.route('mtap-r', array['a', 'b', 'c', 'wide'], 'weighted') \g /dev/null
update ai.routes set weight = (array[6, 3, 1, 0])[position] where profile = 'mtap-r';
select floor(random() * 2000000000)::integer as seed \gset
select diag('weighted: seed ' || :seed);
create temp table drawn as
  select n, t.routed('mtap-r', p_seed => md5(:'seed' || ':' || n)::uuid) as route from generate_series(1, 10000) n;
-- Chi-square with 2 degrees of freedom: 18.4 is passed once in 10,000 seeds.
select ok(chi < 18.4, format('first targets as their weights: chi-square %s of %s', round(chi::numeric, 2), counts))
  from (select sum((n - e) ^ 2 / e) as chi, string_agg(first || '=' || n, ' ') as counts
          from (select v.first, v.e, (select count(*) from drawn d where d.route like v.first || ' %') as n from (values ('a', 6000), ('b', 3000), ('c', 1000)) v (first, e)) c) x;
-- Second after a: of b and c by 3 : 1.
select ok(chi < 15.2, format('second targets as the weights of the rest: chi-square %s', round(chi::numeric, 2)))
  from (select sum((n - e) ^ 2 / e) as chi
          from (select v.p, (select count(*) from drawn where route like 'a %') * v.share as e, (select count(*) from drawn d where d.route like v.p || ' %') as n
                  from (values ('a b', 0.75), ('a c', 0.25)) v (p, share)) c) x;
select is((select count(*) from drawn where route not like '% wide'), 0::bigint, 'weight 0 is the last, always');
select is((select count(*) from drawn d where t.routed('mtap-r', p_seed => md5(:'seed' || ':' || d.n)::uuid) <> d.route), 0::bigint, 'the same generation has the same route again');
update ai.routes set weight = 0 where profile = 'mtap-r';
select is(t.routed('mtap-r'), 'a b c wide', 'all of weight 0: by position');
select is(t.routed('mtap-r', p_seed => null) is not null, true, 'without a seed');
select throws_ok($$ update ai.routes set weight = -1 where profile = 'mtap-r' $$, '23514', null, 'no weight below 0');

-- cheapest: by what this input costs, now
select t.route('mtap-r', array['a', 'b', 'c'], 'cheapest') \g /dev/null
insert into ai.prices (model_id, rates, valid_from) values (t.model('mtap/a'), '{"input": 1, "output": 10}', now() - interval '1 hour'),
  (t.model('mtap/b'), '{"input": 4, "output": 2}', now() - interval '1 hour');
select is(t.routed('mtap-r', bytes), expected, format('cheapest for %s bytes in and 500 tokens out', bytes))
  -- a: tokens + 5000, b: 4 * tokens + 1000: equal at 1333.3
  from (values (0, 'b a c'), (4 * 1333, 'b a c'), (4 * 1334, 'a b c'), (1000000, 'a b c')) v (bytes, expected);
insert into ai.prices (model_id, rates, valid_from) values (t.model('mtap/c'), '{"input": 0, "output": 0}', now() + interval '1 hour');
select is(t.routed('mtap-r', 0), 'b a c', 'a price of tomorrow is none yet');
select t.pass('2 hours');
select is(t.routed('mtap-r', 0), 'c b a', 'until then');

-- fastest: by the moving average, halved every ten minutes
select t.route('mtap-r', array['a', 'b', 'c'], 'fastest') \g /dev/null
create function t.seen(p_model text, p_ttft double precision, p_latency double precision default 1000, p_outcome text default 'succeeded') returns void language sql as $$
  select ai.observe_attempts(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object('generation_id', gen_random_uuid(), 'model_id', t.model('mtap/' || p_model), 'outcome', p_outcome,
    'ttft_ms', p_ttft, 'latency_ms', p_latency))))
$$;
select is(t.routed('mtap-r'), 'a b c', 'nothing measured: by position');
select t.seen('a', 300) \g /dev/null
select is(t.routed('mtap-r'), 'b c a', 'what was never measured comes first');
select t.seen('b', 100), t.seen('c', null, 200) \g /dev/null
select is(t.routed('mtap-r'), 'b c a', 'the fastest first; the whole time where no first text is known');
select t.seen('b', 5000) \g /dev/null
select is((select ttft_ms from ai.model_stats where model_id = t.model('mtap/b')), 100::double precision, 'at most once a second');
select t.pass('1 s');
select t.seen('b', 1100) \g /dev/null
select is((select ttft_ms from ai.model_stats where model_id = t.model('mtap/b')), 300::double precision, 'a fifth of the new, four fifths of the old');
select t.seen('one', 5), t.seen('a', 1, 1, 'failed') \g /dev/null
select is((select count(*) from ai.model_stats where model_id = t.model('mtap/one')), 0::bigint, 'of a model of no fastest profile nothing is kept');
select is((select ttft_ms from ai.model_stats where model_id = t.model('mtap/a')), 300::double precision, 'a failure is no measurement');
update ai.model_stats set ttft_ms = 400, updated_at = ai.now() - interval '20 minutes' where model_id = t.model('mtap/a');
update ai.model_stats set ttft_ms = 150, updated_at = ai.now() where model_id in (t.model('mtap/b'), t.model('mtap/c'));
select is(t.routed('mtap-r'), 'a b c', 'a measurement loses half its weight in ten minutes: the slow one is tried again');
update ai.model_stats set updated_at = ai.now() - interval '100 years';
select is(t.routed('mtap-r'), 'b c a', 'however long ago');

-- least busy: by leases; equal ones are spread
select t.route('mtap-r', array['a', 'b'], 'least_busy') \g /dev/null
select ok(n between 400 and 600, format('two idle models get half each: %s of 1000', n)) from (select count(*) as n from generate_series(1, 1000) where t.routed('mtap-r') = 'a b') x;
select t.worker() as w \gset
select t.ask(p_model => 'mtap/a') as busy \gset
select count(*) from t.claim(:'w') \g /dev/null
select is((select count(distinct t.routed('mtap-r')) from generate_series(1, 50)), 1::bigint, 'one runs on a: all go elsewhere');
select is(t.routed('mtap-r'), 'b a', 'to b');
select t.settle(:'w', :'busy', 1, 'succeeded') \g /dev/null

-- 4. Degrading, budgets
select t.route('mtap-r', array['a', 'b'], p_degrade => true) \g /dev/null
select is(t.routed('mtap-r'), 'a b local/extract', 'a profile that degrades ends with local/extract');
update ai.models set enabled = false where name in ('mtap/a', 'mtap/b');
select is(t.routed('mtap-r'), 'local/extract', 'also where all else is switched off');
update ai.models set enabled = true where name in ('mtap/a', 'mtap/b');
update ai.models set enabled = false where name = 'local/extract';
select is(t.routed('mtap-r'), 'a b', 'if it is not switched off itself');
update ai.models set enabled = true where name = 'local/extract';
insert into ai.routes (profile, position, model_id) values ('mtap-r', 3, t.model('local/extract'));
select is(t.routed('mtap-r'), 'a b local/extract', 'and once only');
select is(ai.why_degraded(t.alpha(), 'chat', 'mtap-r', t.model('local/extract')), null, 'what a route names itself is no degradation');
delete from ai.routes where profile = 'mtap-r' and position = 3;
select isnt(ai.why_degraded(t.alpha(), 'chat', 'mtap-r', t.model('local/extract')), null, 'what stands in is, and says why');
select is(ai.why_degraded(t.alpha(), 'chat', 'mtap-r', t.model('mtap/a')), null, 'another model is none');
select is(ai.why_degraded(t.alpha(), 'chat', null, t.model('local/extract')), null, 'nor is a named one');
insert into ai.profiles (name, kind, degrade) values ('mtap-e', 'embedding', true);
insert into ai.routes (profile, kind, model_id) values ('mtap-e', 'embedding', t.model('mtap/embed'));
select is(t.routed('mtap-e', p_kind => 'embedding'), 'embed', 'an embedding does not degrade');

select is(ai.time_budget(t.alpha(), 'chat', 'mtap-none')::text, '(,,300,200,f)', 'without a row: the defaults of the database');
select is(ai.time_budget(t.alpha(), 'chat', null)::text, '(,,300,200,f)', 'a named model too');
select is((ai.time_budget(t.alpha(), 'chat', 'small')).first_token_ms, 1500, 'small is the fast one');
select is((ai.time_budget(t.alpha(), 'chat', 'medium')).first_token_ms, null, 'medium is not');
insert into ai.profiles (tenant_id, name, first_token_ms, total_ms, database_ms, cache_ms, degrade) values (t.beta(), 'small', 800, 9000, 50, 20, true);
select is(ai.time_budget(t.beta(), 'chat', 'small')::text, '(800,9000,50,20,t)', 'a tenant''s own row goes before');
select is(ai.time_budget(t.alpha(), 'chat', 'small')::text, '(1500,,300,200,f)', 'and is nobody else''s');
select throws_ok($$ insert into ai.profiles (name, first_token_ms) values ('mtap-y', 0) $$, '23514', null, 'a budget of nothing');
select throws_ok($$ insert into ai.profiles (name) values ('small') $$, '23505', null, 'a profile twice');

-- 5. What comes after a failure
select t.route('mtap-r', array['tiny', 'wide', 'a', 'widest']) \g /dev/null
select t.ask(p_profile => 'mtap-r') as g, ai.route_models(t.alpha(), 'chat', null, 'mtap-r', 4, null, false, null) as path \gset
create function t.next(p_id uuid, p_route bigint[], p_target integer, p_action text, p_class text, p_code text default null, p_replay boolean default false, p_attempt integer default 1,
                       p_retry_after bigint default null, p_at interval default '0') returns text language sql as $$
  select coalesce(d.status, d.next_target || case when d.delay_ms = 0 then '' else ' later' end)
    from ai.generations g
   cross join lateral (select greatest(g.created_at, g.run_after) as since) s
   cross join lateral ai.after_attempt('failed', false, p_action, null, p_retry_after, p_attempt, p_target, t.alpha(), p_id, false, s.since + interval '1 hour', s.since + p_at,
                                       5, 500, 30000, 120000, p_route, p_replay, p_class, p_code) d
   where g.tenant_id = t.alpha() and g.id = p_id
$$;
select is(t.next(:'g', :'path', 1, 'next', 'permanent'), '2', 'next: the next of the route');
select is(t.next(:'g', :'path', 1, 'next', 'context'), '2', 'too long for 100: 1000');
select is(t.next(:'g', :'path', 2, 'next', 'context'), '3', 'too long for 1000: the unknown one');
select is(t.next(:'g', :'path', 3, 'next', 'context'), '4', 'too long for the unknown one: what follows');
select is(t.next(:'g', :'path', 4, 'next', 'context'), 'failed', 'too long for the last');
select is(t.next(:'g', array[t.model('mtap/widest'), t.model('mtap/wide'), t.model('mtap/tiny')], 1, 'next', 'context'), 'failed', 'too long for the largest: smaller ones are not asked');
select is(t.next(:'g', array[t.model('mtap/wide'), t.model('mtap/tiny'), t.model('mtap/widest')], 1, 'next', 'context'), '3', 'they are passed over');
select is(t.next(:'g', array[t.model('mtap/wide'), t.model('mtap/tiny'), t.model('mtap/widest')], 1, 'next', 'permanent', 'context_length_exceeded'), '3', 'also where only the code says it');
update ai.models set context_tokens = 1000 where name = 'mtap/tiny';
select is(t.next(:'g', array[t.model('mtap/wide'), t.model('mtap/tiny'), t.model('mtap/widest')], 1, 'next', 'context'), '3', 'so are those of the same size');
update ai.models set context_tokens = 100 where name = 'mtap/tiny';
select is(t.next(:'g', array[t.model('mtap/wide'), t.model('mtap/wide'), t.model('mtap/widest')], 1, 'next', 'context'), '3', 'the same again is not larger');
update ai.models set enabled = false where name = 'mtap/wide';
select is(t.next(:'g', :'path', 1, 'next', 'permanent'), '3', 'the kill switch holds for a route that was fixed before');
select is(t.next(:'g', :'path', 2, 'retry', 'transient'), '3', 'and for a target that would be tried again');
update ai.models set enabled = true where name = 'mtap/wide';
select is(t.next(:'g', :'path', 1, 'fail', 'partial'), 'failed', 'after visible text: the end');
select is(t.next(:'g', :'path', 1, 'fail', 'partial', p_replay => true), '1 later', 'unless the row allows it to begin again');
select is(t.next(:'g', :'path', 1, 'fail', 'too_large', p_replay => true), 'failed', 'which allows nothing else');
select is(t.next(:'g', :'path', 1, 'next', 'slow'), '2', 'no first token in time: the next target');
select is(t.next(:'g', :'path', 4, 'next', 'slow'), 'failed', 'and there is none');
select is(t.next(:'g', '{}', 1, 'next', 'slow'), 'failed', 'an empty route');
select is(t.next(:'g', null, 1, 'next', 'permanent'), '2', 'without a route on the lease: that of the profile');
-- Used up at one target: the next one.
select is(t.next(:'g', :'path', 1, 'retry', 'transient'), '1 later', 'the first failure at a target is retried there');
insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, kind, status, error_class)
values (t.alpha(), :'g', 1, now(), 'ann', 'mtap-third', 'mtap/tiny', 'chat', 'failed', 'transient');
select is(t.next(:'g', :'path', 1, 'retry', 'transient', p_attempt => 2), '2', 'the second goes to the next target');
select is(t.next(:'g', :'path', 2, 'retry', 'transient', p_attempt => 2), '2 later', 'whose own are counted from the start');
select is(t.next(:'g', (:'path'::bigint[])[1:1], 1, 'retry', 'transient', p_attempt => 2), '1 later', 'a last target is tried as long as attempts last');
select is(t.next(:'g', (:'path'::bigint[])[1:1], 1, 'retry', 'transient', p_attempt => 5), 'failed', 'that is, five');
select is(t.next(:'g', :'path', 1, 'retry', 'abandoned', p_attempt => 2), '1 later', 'a worker''s death is not the target''s fault');
update ai.settings set attempts_per_target = 3;
select is(t.next(:'g', :'path', 1, 'retry', 'transient', p_attempt => 2), '1 later', 'ai.settings.attempts_per_target');
update ai.settings set attempts_per_target = 2;
-- The whole time
update ai.profiles set total_ms = 10000 where name = 'mtap-r';
select t.ask(p_profile => 'mtap-r') as g2 \gset
select is(t.next(:'g2', :'path', 4, 'retry', 'rate', p_retry_after => 9999), '4 later', 'a wait within total_ms');
select is(t.next(:'g2', :'path', 3, 'retry', 'rate', p_retry_after => 10000), '4', 'one beyond it is not waited');
select is(t.next(:'g2', :'path', 4, 'retry', 'rate', p_retry_after => 10000), 'failed', 'not even at the last');
select is(t.next(:'g2', :'path', 1, 'next', 'transient', p_at => '9.999 s'), '2', 'a moment before the end of its time');
select is(t.next(:'g2', :'path', 1, 'next', 'transient', p_at => '10 s'), 'failed', 'at its end nothing more is tried');
update ai.profiles set degrade = true where name = 'mtap-r';
select is(t.next(:'g2', :'path'::bigint[] || t.model('local/extract'), 1, a, c, p_at => '10 s'), '5', format('but local/extract, where it degrades: %s', a)) from (values ('next', 'slow'), ('retry', 'transient')) v (a, c);
select is(t.next(:'g2', :'path'::bigint[] || t.model('local/extract'), 5, 'next', 'transient', p_at => '10 s'), 'failed', 'once');
select is(t.next(:'g2', :'path'::bigint[] || t.model('local/extract'), 1, 'fail', 'partial', p_at => '10 s'), 'failed', 'and never after visible text');

-- 6. Through the whole pipeline: a fallback, the last resort, and why
select t.route('mtap-r', array['a', 'b'], p_degrade => true) \g /dev/null
delete from ai.queue;
select t.ask('What is a martlet?', p_profile => 'mtap-r') as x \gset
select results_eq(format('select id, model from t.claim(%L)', :'w'), format('values (%L::uuid, %L)', :'x', 'a'), 'the first target');
select is((select route from ai.generations where id = :'x'), array[t.model('mtap/a'), t.model('mtap/b'), t.model('local/extract')], 'the route is on the generation');
select is(t.settle(:'w', :'x', 1, 'failed', '{"signal": "slow"}'), 'requeued', 'it was too slow');
select results_eq(format('select id, model from t.claim(%L)', :'w'), format('values (%L::uuid, %L)', :'x', 'b'), 'the second, at once');
set local session authorization mtap_ann;
select results_eq(format('select target, model, provider, why, breaker, tried ->> 0 is not null, chosen from ai.explain_route(%L)', :'x'), $$ values
  (1, 'mtap/a', 'mtap-third', 'position 1', 'closed', true, false), (2, 'mtap/b', 'mtap-third', 'position 2', 'closed', false, true),
  (3, 'local/extract', 'local', 'the last resort of a profile that degrades', 'closed', false, false) $$, 'who is asked now, who was before, who would be next');
reset session authorization;
select is(t.settle(:'w', :'x', 2, 'failed', '{"signal": "http", "http_status": 400}'), 'requeued', 'it refuses');
select results_eq(format('select id, model from t.claim(%L)', :'w'), format('values (%L::uuid, %L)', :'x', 'extract'), 'the last resort');
select is(t.settle(:'w', :'x', 3, 'succeeded', '{"output": "a bird"}'), 'ended', 'answers');
select isnt((t.generation(:'x')).degraded, null, 'and it is marked as degraded');
set local session authorization mtap_ann;
select results_eq(format('select model, tried, chosen from ai.explain_route(%L)', :'x'), $$ values
  ('mtap/a', '[{"attempt": 1, "status": "failed", "class": "slow"}]'::jsonb, false), ('mtap/b', '[{"attempt": 2, "status": "failed", "class": "permanent", "http_status": 400}]', false),
  ('local/extract', '[{"attempt": 3, "status": "succeeded"}]', true) $$, 'the whole story');
reset session authorization;
-- what is left out says why, before any claim
select t.route('mtap-r', array['a', 'b', 'c', 'tiny', 'wide'], 'weighted') \g /dev/null
update ai.routes set enabled = false where profile = 'mtap-r' and position = 2;
update ai.routes set stream = true, weight = 7 where profile = 'mtap-r' and position = 3;
update ai.routes set weight = 0, tier = 'standard' where profile = 'mtap-r' and position = 5;
select t.ask(repeat('x', 500), p_profile => 'mtap-r') as y \gset
set local session authorization mtap_ann;
select results_eq(format('select target, model, why, chosen from ai.explain_route(%L)', :'y'), $$ values
  (1, 'mtap/a', 'position 1, weight 1', false), (2, 'mtap/wide', 'position 5, weight 0, for tier standard', false), (null, 'mtap/b', 'position 2, weight 1; left out: switched off', false),
  (null, 'mtap/c', 'position 3, weight 7, for stream true; left out: its conditions do not fit', false),
  (null, 'mtap/tiny', 'position 4, weight 1; left out: its context of 100 tokens is too small', false) $$, 'what it would be, and what is left out');
reset session authorization;
create function t.explained(p_role text, p_id uuid) returns text language plpgsql as $$
declare v_is text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    select count(*)::text into v_is from ai.explain_route(p_id);
  exception when others then v_is := sqlstate;
  end;
  reset session authorization;
  return v_is;
end
$$;
select is(t.explained(r, :'x'), e, format('%s asks why: %s', r, e)) from (values ('mtap_ann', '6'), ('mtap_abe', 'PT404'), ('mtap_dev', '6'), ('mtap_adm', '6'), ('mtap_bob', 'PT404'),
  ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_monitor', '42501'), ('mtap_public', '42501')) v (r, e);
select is(t.explained('mtap_ann', null), 'PT404', 'of nothing');
select is(t.explained('mtap_ann', gen_random_uuid()), 'PT404', 'of what does not exist');

-- 7. Who writes: a tenant's admins their own rows, nobody else any
create function t.rows_as(p_role text, p_sql text) returns text language sql as $$ select replace(t.as_role(p_role, p_sql), 'ok ', '') $$;
insert into ai.providers (tenant_id, name, dialect) values (t.beta(), 'mtap-own', 'openai') returning id as own \gset
insert into ai.models (tenant_id, provider_id, name, wire_name) values (t.beta(), :own, 'mtap/own', 'x') returning id as betas \gset
select is(t.rows_as('mtap_adm', sql), expected, format('an admin of alpha: %s: %s', replace(sql, t.alpha()::text, 'alpha'), expected))
  from (values
    (format($$insert into ai.profiles (tenant_id, name, strategy) values (%L, 'mtap-z', 'weighted')$$, t.alpha()), '1'),
    (format($$insert into ai.profiles (tenant_id, name) values (%L, 'mtap-z')$$, t.beta()), '42501'),
    ($$insert into ai.profiles (name) values ('mtap-z')$$, '42501'),
    (format($$insert into ai.profile_rules (tenant_id, position, profile) values (%L, 1, 'mtap-z')$$, t.alpha()), '1'),
    ($$insert into ai.profile_rules (position, profile) values (1, 'mtap-z')$$, '42501'),
    (format($$insert into ai.routes (tenant_id, profile, model_id) select %L, 'mtap-z', id from ai.models where name = 'mtap/a'$$, t.alpha()), '1'),
    ($$insert into ai.routes (profile, model_id) select 'mtap-z', id from ai.models where name = 'mtap/a'$$, '42501'),
    (format($$insert into ai.routes (tenant_id, profile, position, model_id) values (%L, 'mtap-z', 2, %s)$$, t.alpha(), :betas), '42501'),
    (format($$insert into ai.routes (tenant_id, profile, position, model_id) values (%L, 'mtap-z', 2, 999999999)$$, t.alpha()), '42501'),
    ($$update ai.routes set weight = 5 where profile in ('mtap-z', 'mtap-r')$$, '1'),
    ($$update ai.profiles set strategy = 'priority'$$, '1'),
    ($$update ai.profiles set tenant_id = null where name = 'mtap-z'$$, '42501'),
    ($$update ai.profile_rules set enabled = false$$, '1'),
    ($$delete from ai.routes$$, '42501'),
    ($$lock table ai.routes in share mode$$, '42501'),
    ($$lock table ai.profiles in access exclusive mode$$, '42501'),
    ($$lock table ai.profile_rules in row exclusive mode$$, '42501'),
    ($$select from ai.delete_profile('mtap-r') d where d > 0$$, '0'),
    ($$select from ai.delete_profile('mtap-z') d where d = 3$$, '1'),
    ($$select from ai.routes where tenant_id is not null$$, '0'),
    ($$update ai.breakers set state = 'open'$$, '42501'),
    ($$insert into ai.provider_accounts values (1, 1, 'STOLEN_API_KEY')$$, '42501'),
    ($$select provider_id from ai.provider_accounts$$, '0'),
    ($$select probe_id from ai.breakers$$, '42501'),
    ($$select from ai.model_stats$$, '42501')) v (sql, expected);
select is(t.rows_as(r, sql), '42501', format('%s: %s', r, sql))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_bob', 'mtap_stray', 'mtap_worker', 'mtap_monitor', 'mtap_public']) r
 cross join (values (format($$insert into ai.profiles (tenant_id, name) values (%L, 'mtap-q')$$, t.alpha())), (format($$insert into ai.routes (tenant_id, profile, model_id) values (%L, 'q', 1)$$, t.alpha())),
                    ($$delete from ai.profile_rules$$), ($$delete from ai.breakers$$), ($$select ai.delete_profile('mtap-r')$$), ($$update ai.profiles set name = 'x'$$)) v (sql);
insert into ai.members (tenant_id, user_id, role) values (t.beta(), 'nina', 'user');
create role mtap_nina login; grant ai_admin to mtap_nina; insert into ai.role_bindings (role_name, tenant_id, user_id) values ('mtap_nina', t.beta(), 'nina');
select is(t.rows_as('mtap_nina', $$select ai.delete_profile('mtap-r')$$), 'PT403', 'the group of admins alone makes no admin');
select is(t.rows_as('mtap_nina', format($$insert into ai.profiles (tenant_id, name) values (%L, 'mtap-n')$$, t.beta())), '42501', 'neither for a profile');
select is(t.rows_as('mtap_ann', format($$select from ai.profiles where tenant_id = %L$$, t.beta())), '0', 'another tenant''s profiles are not seen');
select is(t.rows_as('mtap_bob', $$select from ai.profiles where name = 'small'$$), '2', 'the own and the shared ones are');

select * from finish();
rollback;
