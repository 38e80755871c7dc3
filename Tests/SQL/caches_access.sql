-- What each role may see and do with caches: policies, kept answers, invalidating, the report.
begin;
\ir setup/world.sql
\ir setup/caching.sql
select no_plan();

-- Gives the SQLSTATE of a statement run as a role, or its first column.
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
insert into ai.models (provider_id, name, wire_name, kind, dimensions) select provider_id, 'mtap/four', 'four', 'embedding', 4 from ai.models where name = 'mtap/embed';
insert into ai.cache_policies (tenant_id, semantic, vector_model, scope, profile) values (null, true, 'mtap/four', 'tenant', 'mtap-route'), (null, true, 'mtap/four', 'member', null);
create function t.keep_question(p_over jsonb, p_vector text, p_output text) returns uuid language plpgsql as $$
declare
  v_id uuid := t.put(p_over);
begin
  update ai.generations c set embedding = p_vector::ai.embedding, status = 'succeeded', finished_at = ai.now()
    from ai.generations g where g.id = v_id and c.id = g.query_id;
  return t.keep(v_id, p_output);
end
$$;
select t.keep_question('{"prompt": "a", "cache_tags": ["x", "y"]}', '[1,0,0,0]', 'ann''s'), t.keep_question('{"user_id": "abe", "prompt": "b", "cache_tags": ["y"]}', '[1,0.01,0,0]', 'abe''s'),
       t.keep_question('{"model": null, "profile": "mtap-route", "prompt": "c"}', '[1,0.02,0,0]', 'alpha''s'),
       t.keep_question('{"tenant": "beta", "user_id": "bob", "prompt": "a", "cache_tags": ["x", "y"]}', '[1,0,0,0]', 'bob''s'),
       t.keep_question('{"tenant": "beta", "user_id": "shared", "model": null, "profile": "mtap-route", "prompt": "c"}', '[1,0.02,0,0]', 'beta''s')
\g /dev/null
select is((select count(*) from ai.cache_questions), 5::bigint, 'five answers are kept');

-- Tables
select is(t.does(r, format('select count(*) from ai.%I', n)), '42501', format('%s does not read ai.%s', r, n))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_adm', 'mtap_worker', 'mtap_monitor', 'mtap_public']) r, unnest(array['cache_entries', 'cache_questions', 'cache_spaces', 'leaders', 'unshared']) n;
select is(t.does(r, f), '42501', format('%s does not call %s', r, f))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_adm', 'mtap_worker', 'mtap_monitor', 'mtap_public']) r,
       unnest(array['select hit from ai.find_exact(t.alpha(), ''ann'', ''chat'', ''a'', null, ''mtap/one'', null, ''{}'', null, null, null, null)', 'select ai.write_caches(array[t.alpha()], array[ai.uuid_v7()])',
                    'select ai.nearest_question(t.beta(), ai.uuid_v7(), ''[1]''::public.vector, 0.9, false)', 'select ai.elect_leaders(''{}'', ''{}'')', 'select ai.forget_expired_entries(now())',
                    'select ai.resign_leader(t.alpha(), ai.uuid_v7())', 'select ai.find_stale(t.alpha(), ai.uuid_v7(), null)', 'select ai.answering(t.beta(), ''chat'', null, ''small'')']) f;

-- Finding
create function t.finds(p_role text, p_arguments text default '') returns text language sql as $$
  select t.does(p_role, format('select string_agg(output, '','' order by similarity desc) from ai.find_cached_response(''[1,0,0,0]''::public.vector, match_count => 10, vector_model => ''mtap/four''%s)', p_arguments))
$$;
select is(t.finds('mtap_ann'), 'ann''s,alpha''s', 'a member finds the own answers and those that the tenant shares');
select is(t.finds('mtap_abe'), 'abe''s,alpha''s', 'another member others');
select is(t.finds('mtap_dev'), 'alpha''s', 'a developer finds no member''s');
select is(t.finds('mtap_adm'), 'alpha''s', 'nor does an admin');
select is(t.finds('mtap_bob'), 'bob''s,beta''s', 'another tenant has its own');
select is(t.finds('mtap_stray'), 'PT401', 'nobody has none');
select is(t.finds('mtap_public'), '42501', 'who is in no group may not ask');
select is(t.finds('mtap_ann', ', profile => ''mtap-route'''), 'alpha''s', 'by profile');
savepoint of_a_collection;
insert into ai.collections (tenant_id, name, model, dimensions) values (t.alpha(), 'papers', 'mtap/four', 4);
update ai.cache_spaces set collection = 'papers', collection_version = ai.collection_version(t.alpha(), 'papers') where tenant_id = t.alpha() and profile = 'mtap-route';
insert into ai.roles (tenant_id, name, permissions) values (t.alpha(), 'asker', '{inference:execute}');
select is(t.finds('mtap_abe'), 'abe''s,alpha''s', 'who reads documents finds what was answered from them');
update ai.members set role = 'asker' where tenant_id = t.alpha() and user_id = 'abe';
select is(t.finds('mtap_abe'), 'abe''s', 'who may only ask does not');
select is(t.finds('mtap_abe', ', collection => ''papers'''), 'null', 'nor by the name of the collection');
insert into ai.prompt_templates (tenant_id, name, system, collection) values (t.alpha(), 'desk', 'x', 'papers');
update ai.cache_spaces set template = 'desk', template_version = (select t.version from ai.resolve_template(t.alpha(), 'desk') t) where tenant_id = t.alpha() and profile = 'mtap-route';
select is(t.finds('mtap_abe'), 'abe''s,alpha''s', 'but where a template names it');
rollback to of_a_collection;
select is(t.finds('mtap_ann', ', model => ''mtap/one'''), 'ann''s', 'by model');
select is(t.finds('mtap_ann', ', model => ''mtap/two'''), 'null', 'of another model there are none');
select is(t.finds('mtap_ann', ', kind => ''embedding'''), 'null', 'nor of another kind');
select is(t.finds('mtap_ann', ', collection => ''docs'''), 'null', 'nor of a collection');
select is(t.finds('mtap_ann', ', template => ''x'''), 'null', 'nor of a template');
select is(t.does('mtap_ann', s), a, s)
  from (values ($$ select output from ai.find_cached_response('[1,0,0,0]'::public.vector, vector_model => 'mtap/four') $$, 'ann''s'),
               ($$ select output from ai.find_cached_response('[1,0.4,0,0]'::public.vector, vector_model => 'mtap/four') $$, 'null'),
               ($$ select output from ai.find_cached_response('[1,0.4,0,0]'::public.vector, 0.9, vector_model => 'mtap/four') $$, 'alpha''s'),
               ($$ select output from ai.find_cached_response('[1,0,0]'::public.vector, vector_model => 'mtap/four') $$, 'null'),
               ($$ select output from ai.find_cached_response('[1,0,0,0]'::public.vector) $$, 'null'),
               ($$ select output from ai.find_cached_response('[0,0,0,0]'::public.vector, 0, vector_model => 'mtap/four') $$, 'null'),
               ($$ select output from ai.find_cached_response('[1,0,0,0]'::public.vector, vector_model => 'no/such') $$, 'PT404'),
               ($$ select output from ai.find_cached_response(null) $$, 'PT400'), ($$ select output from ai.find_cached_response('[1]'::public.vector, 1.01) $$, 'PT400'),
               ($$ select output from ai.find_cached_response('[1]'::public.vector, -0.01) $$, 'PT400'), ($$ select output from ai.find_cached_response('[1]'::public.vector, null) $$, 'PT400'),
               ($$ select output from ai.find_cached_response('[1]'::public.vector, 1, 0) $$, 'PT400'), ($$ select output from ai.find_cached_response('[1]'::public.vector, 1, 101) $$, 'PT400')) v (s, a);
update ai.cache_entries set expires_at = ai.now() where output = 'ann''s';
update ai.cache_questions set expires_at = ai.now() where key = (select key from ai.cache_entries where output = 'ann''s');
select is(t.finds('mtap_ann'), 'alpha''s', 'what has expired is not found');
update ai.cache_entries set expires_at = 'infinity'; update ai.cache_questions set expires_at = 'infinity';
update ai.cache_spaces set collection = 'docs', collection_version = 1 where profile = 'mtap-route' and tenant_id = t.alpha();
select is(t.finds('mtap_ann'), 'ann''s', 'nor answers to a collection that is not what it was');
update ai.cache_spaces set collection = null, collection_version = null, template = 'x', template_version = 1 where profile = 'mtap-route' and tenant_id = t.alpha();
select is(t.finds('mtap_ann'), 'ann''s', 'nor of a template that is not what it was');

-- Invalidating
select is(t.does(r, $$ select ai.invalidate_cache(everything => true) $$), a, format('%s invalidates: %s', r, a))
  from (values ('mtap_ann', 'PT403'), ('mtap_abe', 'PT403'), ('mtap_bob', 'PT403'), ('mtap_stray', 'PT401'), ('mtap_public', '42501'), ('mtap_worker', '42501'), ('mtap_monitor', '42501')) v (r, a);
select is((select count(*) from ai.cache_entries), 5::bigint, 'nothing is gone');
select is(t.does('mtap_dev', $$ select ai.invalidate_cache() $$), 'PT400', 'without criteria nothing is invalidated');
select is(t.does('mtap_dev', $$ select ai.invalidate_cache(everything => false) $$), 'PT400', 'nor with a no');
select is(t.does('mtap_dev', $$ select ai.invalidate_cache(everything => null) $$), 'PT400', 'nor with a null');

-- One of each kind; only the first fulfils the criterion
create function t.two(p_first jsonb, p_second jsonb) returns void language plpgsql as $$
declare
  v_one jsonb;
begin
  delete from ai.cache_entries where tenant_id = t.alpha();
  foreach v_one in array array[p_first, p_second] loop
    insert into ai.cache_entries
    select (jsonb_populate_record(null::ai.cache_entries, jsonb_build_object('tenant_id', t.alpha(), 'key', '\x' || replace(ai.uuid_v7()::text, '-', ''), 'generation_id', ai.uuid_v7(), 'kind', 'chat',
            'created_at', ai.now(), 'expires_at', ai.now() + interval '1 day', 'keep_until', ai.now() + interval '1 day') || v_one)).*;
  end loop;
end
$$;
create function t.invalidates(p_criteria text, p_first jsonb, p_second jsonb) returns text language plpgsql as $$
declare
  v_count text;
begin
  perform t.two(p_first || '{"output": "first"}', p_second || '{"output": "second"}');
  v_count := t.does('mtap_dev', format('select ai.invalidate_cache(%s)', p_criteria));
  return v_count || ': ' || (select string_agg(output, ',' order by output) from ai.cache_entries where tenant_id = t.alpha());
end
$$;
select is(t.invalidates(c, f::jsonb, s::jsonb), '1: second', format('invalidated by %s', c))
  from (values ($$ tag => 'a' $$, '{"tags": ["b", "a"]}', '{"tags": ["b"]}'), ($$ tag => 'a' $$, '{"tags": ["a"]}', '{"tags": null}'), ($$ 'a' $$, '{"tags": ["a"]}', '{"tags": ["A"]}'),
               ($$ collection => 'docs' $$, '{"collection": "docs"}', '{"collection": "doc"}'), ($$ template => 'x' $$, '{"template": "x"}', '{}'),
               ($$ template => 'x', template_version => 1 $$, '{"template": "x", "template_version": 1}', '{"template": "x", "template_version": 2}'),
               ($$ model => 'm' $$, '{"model": "m"}', '{"model": "n"}'), ($$ model => 'm' $$, '{"model": null, "model_used": "m"}', '{"model": null, "model_used": null}'),
               ($$ profile => 'p' $$, '{"profile": "p"}', '{}'), ($$ user_id => 'ann' $$, '{"user_id": "ann"}', '{"user_id": null}'),
               ($$ older_than => '1 hour' $$, '{"created_at": "2020-01-01"}', '{}'), ($$ tag => 'a', profile => 'p' $$, '{"tags": ["a"], "profile": "p"}', '{"tags": ["a"]}')) v (c, f, s);
select is(t.invalidates($$ everything => true $$, '{}', '{}'), null, 'everything is everything');
select is(t.invalidates($$ tag => 'none' $$, '{"tags": ["a"]}', '{}'), '0: first,second', 'or nothing');
select is(t.does('mtap_adm', $$ select ai.invalidate_cache(everything => true) $$), '2', 'an admin may as well');
select is((select array_agg(output order by output) from ai.cache_entries), array['beta''s', 'bob''s'], 'another tenant''s answers stay');
select is((select count(*) from ai.cache_questions where tenant_id = t.alpha()), 0::bigint, 'what finds them by meaning goes with them');
update ai.cache_entries set keep_until = '-infinity';
select is(ai.forget_expired_entries(ai.now()), 2, 'what is expired goes');
select is((select count(*) from ai.cache_spaces), 0::bigint, 'and so do empty spaces');

-- Policies
delete from ai.cache_policies;
insert into ai.cache_policies (tenant_id, profile) values (null, 'shared'), (t.alpha(), 'alpha'), (t.beta(), 'beta');
create function t.sees(p_role text) returns text language sql as $$ select t.does(p_role, 'select string_agg(profile, '','' order by profile) from ai.cache_policies') $$;
select is(t.sees(r), a, format('%s sees %s', r, a))
  from (values ('mtap_ann', 'null'), ('mtap_dev', 'alpha,shared'), ('mtap_adm', 'alpha,shared'), ('mtap_bob', 'null'), ('mtap_stray', 'null'), ('mtap_public', '42501'), ('mtap_worker', '42501')) v (r, a);
select is(t.does(r, s), '42501', format('%s: %s', r, s))
  from unnest(array['mtap_ann', 'mtap_dev', 'mtap_bob', 'mtap_stray', 'mtap_worker']) r,
       unnest(array['insert into ai.cache_policies (tenant_id) values (t.alpha())', 'update ai.cache_policies set ttl = ''1 hour''', 'delete from ai.cache_policies']) s;
select is(t.does('mtap_adm', 'insert into ai.cache_policies (tenant_id, profile) values (t.alpha(), ''new'') returning profile'), 'new', 'an admin makes rows of the own tenant');
select is(t.does('mtap_adm', s), '42501', format('an admin not: %s', s))
  from unnest(array['insert into ai.cache_policies (tenant_id) values (t.beta())', 'insert into ai.cache_policies (tenant_id) values (null)', 'update ai.cache_policies set tenant_id = t.beta()',
                    'insert into ai.cache_policies (tenant_id, id) values (t.alpha(), 1)']) s;
select is(t.does('mtap_adm', 'with u as (update ai.cache_policies set ttl = ''1 hour'' returning profile) select string_agg(profile, '','' order by profile) from u'), 'alpha,new', 'and changes those alone');
select is(t.does('mtap_adm', 'delete from ai.cache_policies'), '42501', 'none is deleted');
select is(t.does('mtap_adm', 'lock table ai.cache_policies in access exclusive mode'), '42501', 'and the table cannot be locked');

-- The report
delete from ai.llm_calls;
insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, kind, status, cost, cache, saved)
select t.alpha(), ai.uuid_v7(), 0, now(), u, 'p', 'm', 'chat', s, c, k, v
  from (values ('ann', 'succeeded', 0, 'exact', 0.10), ('ann', 'succeeded', 0, 'exact', 0.0000001), ('ann', 'succeeded', 0, 'semantic', null), ('ann', 'succeeded', 0.5, null, null), ('ann', 'failed', 9, null, null),
               ('abe', 'succeeded', 0, 'coalesced', 0.7)) v (u, s, c, k, v);
select is(t.does('mtap_ann', $$ select string_agg(concat_ws('|', answered_by, answers, share, saved, cost, unpriced), ' ' order by answered_by) from ai.cache_report() $$),
          'exact|2|0.5000|0.1000001|0|0 provider|1|0.2500|0|0.5|0 semantic|1|0.2500|0|0|1', 'what caches saved a member');
select is(t.does('mtap_dev', $$ select string_agg(concat_ws('|', answered_by, answers), ' ' order by answered_by) from ai.cache_report() $$), 'coalesced|1 exact|2 provider|1 semantic|1', 'the tenant');
select is(t.does('mtap_bob', $$ select count(*) from ai.cache_report() $$), '0', 'another tenant');
select is(t.does('mtap_dev', $$ select count(*) from ai.cache_report('2020-01-01', '2020-02-01') $$), '0', 'at another time');
select is(t.does('mtap_public', $$ select count(*) from ai.cache_report() $$), '42501', 'nobody');

select * from finish();
rollback;
