-- One key, one generation.
begin;
\ir setup/world.sql
select no_plan();

-- Asks through ai.generate() and gives the id, or the SQLSTATE.
create function t.generate(p_role text, p_arguments text) returns text language plpgsql as $$
declare
  v_as text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute format('select ai.generate(%s)', p_arguments) into v_as;
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  return coalesce(v_as, 'null');
end
$$;

select t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k' $$) as first \gset
select is(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k' $$), :'first', 'the same question with the same key: the same generation');
select is(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k', kind => 'chat', params => '{}', stream => false, priority => 'normal' $$), :'first', 'defaults that are spelled out are the same');
select is(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k', profile => 'medium' $$), :'first', 'so is the default profile');
select is((select count(*) from ai.generations where idempotency_key = 'k'), 1::bigint, 'one row');
select is((select count(*) from ai.queue where generation_id = :'first'), 1::bigint, 'queued once');
select is(t.generate('mtap_ann', arguments), 'PT409', format('other input: %s', arguments))
  from (values ($$ 'why?', idempotency_key => 'k' $$), ($$ 'Why? ', idempotency_key => 'k' $$), ($$ 'Why?', idempotency_key => 'k', model => 'mtap/one' $$), ($$ 'Why?', idempotency_key => 'k', profile => 'small' $$),
               ($$ 'Why?', idempotency_key => 'k', params => '{"seed": 1}' $$), ($$ 'Why?', idempotency_key => 'k', stream => true $$), ($$ 'Why?', idempotency_key => 'k', priority => 'low' $$),
               ($$ 'Why?', idempotency_key => 'k', deadline_ms => 1000 $$), ($$ 'Why?', idempotency_key => 'k', run_after => '2026-01-01 00:00+00' $$), ($$ 'Why?', idempotency_key => 'k', metadata => '{}' $$),
               ($$ 'Why?', idempotency_key => 'k', kind => 'embedding' $$), ($$ messages => '[{"role": "user", "content": "Why?"}]', idempotency_key => 'k' $$)) v (arguments);
select isnt(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'K' $$), :'first', 'a key in capitals is another');
select isnt(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k ' $$), :'first', 'so is one with a space');
select isnt(t.generate('mtap_ann', $$ 'Why?' $$), :'first', 'without a key every question is a new one');

-- Others
select is(t.generate('mtap_abe', $$ 'Why?', idempotency_key => 'k' $$), 'PT409', 'another user of the tenant does not get ann''s generation');
select ok(t.generate('mtap_bob', $$ 'Why?', idempotency_key => 'k' $$) not in (:'first', 'PT409', 'null'), 'another tenant has keys of its own');
select is(t.generate('mtap_stray', $$ 'Why?', idempotency_key => 'k' $$), 'PT401', 'nobody has none');
set local session authorization mtap_abe;
select is(ai.idempotent_generation('k'), null, 'a key gives another user nothing');
set local session authorization mtap_bob;
select isnt(ai.idempotent_generation('k'), :'first'::uuid, 'nor another tenant''s generation');
set local session authorization mtap_ann;
select is(ai.idempotent_generation('k'), :'first'::uuid, 'its own user the generation');
select is(ai.idempotent_generation('unused'), null, 'an unused key stands for nothing');

-- Raw INSERTs
select is_empty($$ insert into ai.generations (prompt, idempotency_key) values ('Why?', 'k') returning id $$, 'an INSERT with equal input returns no row');
select throws_ok($$ insert into ai.generations (prompt, idempotency_key) values ('Why not?', 'k') returning id $$, 'PT409', null, 'with other input it raises');
select is_empty($$ insert into ai.generations (prompt, idempotency_key) values ('Why?', 'k') on conflict do nothing returning id $$, 'ON CONFLICT DO NOTHING changes nothing of it');
select throws_ok($$ insert into ai.generations (prompt, idempotency_key) values ('Why not?', 'k') on conflict do nothing $$, 'PT409', null, 'nor of the other');
create temporary table made as select 0 as n where false;
with many as (insert into ai.generations (prompt, idempotency_key) values ('twins', 'twins'), ('twins', 'twins'), ('single', 'single'), ('Why?', 'k') returning id)
insert into made select count(*) from many;
select is((select n from made), 2, 'in one statement, too: of twins one, of a known one none');
select throws_ok($$ insert into ai.generations (prompt, idempotency_key) values ('a', 'pair'), ('b', 'pair') $$, 'PT409', null, 'twins that differ are refused');
select is(ai.idempotent_generation('pair'), null, 'both of them');
reset session authorization;

-- What was left out stands for the same question when its default has changed; what was spelled out, too
insert into ai.prompt_templates (tenant_id, name, version, system) values (t.alpha(), 'mtap-idem', 1, 'You answer.');
select t.generate('mtap_ann', $$ 'left out', idempotency_key => 'left out' $$) as omitted, t.generate('mtap_ann', $$ 'spelled out', idempotency_key => 'spelled out', profile => 'medium' $$) as spelled,
       t.generate('mtap_ann', $$ 'by template', idempotency_key => 'by template', template => 'mtap-idem', model => 'mtap/one' $$) as templated \gset
set local session authorization mtap_adm;
select ai.create_collection('mtap-idem', 'mtap/embed', dimensions => 3) \g /dev/null
reset session authorization;
update ai.settings set default_profile = 'small';
insert into ai.prompt_templates (tenant_id, name, version, system, collection) values (t.alpha(), 'mtap-idem', 2, 'You answer.', 'mtap-idem');
select is(t.generate('mtap_ann', $$ 'left out', idempotency_key => 'left out' $$), :'omitted', 'the default profile has changed: the same generation');
select is(t.generate('mtap_ann', $$ 'spelled out', idempotency_key => 'spelled out', profile => 'medium' $$), :'spelled', 'also of what named it');
select is(t.generate('mtap_ann', $$ 'left out', idempotency_key => 'left out', profile => 'small' $$), :'omitted', 'to name the default is to leave it out');
select is(t.generate('mtap_ann', $$ 'left out', idempotency_key => 'left out', profile => 'large' $$), 'PT409', 'to name another is not');
select is(t.generate('mtap_ann', $$ 'by template', idempotency_key => 'by template', template => 'mtap-idem', model => 'mtap/one' $$), :'templated', 'the template has a newer version with a collection: the same');
select is(t.generate('mtap_ann', $$ 'by template', idempotency_key => 'by template', template => 'mtap-idem', model => 'mtap/one', collection => 'mtap-idem' $$), :'templated', 'as where it is named');
delete from ai.prompt_templates where name = 'mtap-idem';
select is(t.generate('mtap_ann', $$ 'by template', idempotency_key => 'by template', template => 'mtap-idem', model => 'mtap/one' $$), :'templated', 'the template is gone: the same');
select is(t.generate('mtap_ann', $$ 'by another', idempotency_key => 'by another', template => 'mtap-idem', model => 'mtap/one' $$), 'PT404', 'of what is new it is missed');
update ai.settings set default_profile = 'medium';

-- Numbers that are equal are the same input, however they are written; also under a key of a version that kept the text as it was
select t.generate('mtap_ann', $$ 'numbers', idempotency_key => 'numbers', params => '{"seed": 1.0, "temperature": 0.50, "stop": ["1.0", "\"2.50"]}', metadata => '[1e2, 100.0]' $$) as numbers \gset
select is(t.generate('mtap_ann', $$ 'numbers', idempotency_key => 'numbers', params => '{"temperature": 0.5, "seed": 1, "stop": ["1.0", "\"2.50"]}', metadata => '[100, 1000e-1]' $$), :'numbers', 'equal numbers');
select is(t.generate('mtap_ann', $$ 'numbers', idempotency_key => 'numbers', params => '{"temperature": 0.5, "seed": 10, "stop": ["1.0", "\"2.50"]}', metadata => '[100, 100]' $$), 'PT409', 'others');
select is(t.generate('mtap_ann', $$ 'numbers', idempotency_key => 'numbers', params => '{"temperature": 0.5, "seed": 1, "stop": ["1", "\"2.50"]}', metadata => '[100, 100]' $$), 'PT409', 'in strings every character counts');
select is(ai.equal_text('{"a": 1.0, "b\\\"1.0": [0.10, -10.010, 100, "x 1.0", "\\", 2.0]}'), '{"a": 1, "b\\\"1.0": [0.1, -10.01, 100, "x 1.0", "\\", 2]}',
          'no zeros are left at the ends of numbers');
select t.generate('mtap_ann', $$ 'earlier', idempotency_key => 'earlier', params => '{"seed": 1.0}' $$) as earlier \gset
update ai.idempotency_keys k set input_hash = sha256(convert_to(jsonb_build_array('ann', 'chat', 'earlier', null, null, null, '{"seed": 1.0}'::jsonb, false, 'normal', null, null, null)::text, 'UTF8'))
 where k.tenant_id = t.alpha() and k.key = 'earlier';
select is(t.generate('mtap_ann', $$ 'earlier', idempotency_key => 'earlier', params => '{"seed": 1.0}' $$), :'earlier', 'a key that an earlier version took stands for its question');

-- A key is remembered whatever becomes of its generation, and forgotten with time
select t.worker() as w \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'first', 1, 'failed', '{"signal": "unsendable"}') \g /dev/null
select is(t.status(:'first'), 'failed', 'the generation has failed');
select is(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k' $$), :'first', 'its key still stands for it');
delete from ai.generations where id = :'first';
select is(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k' $$), 'null', 'a generation that retention dropped is not made again');
select t.settle(:'w', l.generation_id, l.attempt, 'failed', '{"signal": "unsendable"}') from ai.leases l \g /dev/null
select format($$ 'Why then?', idempotency_key => 'later', run_after => %L $$, now() + interval '300 days') as later_asks \gset
select t.generate('mtap_ann', :'later_asks') as later \gset
create function t.pass_and_maintain(p_time interval, p_worker uuid) returns jsonb language sql as $$
  select t.pass(p_time);
  update ai.workers set heartbeat_at = ai.now();
  update ai.maintenance set partitions_at = '-infinity';
  select ai.worker_maintain(p_worker)
$$;
select t.pass_and_maintain('7 days', :'w') \g /dev/null
select isnt(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'k' $$), 'null', 'after a week the key is free again');
select is((select count(*) from ai.idempotency_keys where tenant_id = t.alpha() and key not in ('k', 'later')), 0::bigint, 'the others are forgotten, too');
select is(t.generate('mtap_ann', :'later_asks'), :'later', 'but for that of a generation that still waits');
update ai.generations set status = 'failed', finished_at = ai.now() where id = :'later';
delete from ai.delayed;
select t.pass_and_maintain('6 days', :'w') \g /dev/null
select ok(exists (select from ai.idempotency_keys where key = 'later'), 'it is remembered as long again');
select t.pass_and_maintain('2 days', :'w') \g /dev/null
select is_empty($$ select from ai.idempotency_keys where key = 'later' $$, 'and no longer');

-- A refused INSERT leaves no key behind
select is(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'refused', model => 'no/such' $$), 'PT404', 'a refused question');
select isnt(t.generate('mtap_ann', $$ 'Why?', idempotency_key => 'refused' $$), 'PT409', 'may be mended and asked with the same key');

-- The same moment, said in another time zone, is the same input
set local session authorization mtap_ann;
set local timezone = 'UTC';
select ai.generate('x', run_after => '2020-01-01 00:00+00', idempotency_key => 'zone') as g \gset
set local timezone = 'Asia/Tokyo';
select is(ai.generate('x', run_after => '2020-01-01 00:00+00', idempotency_key => 'zone'), :'g'::uuid, 'a key does not depend on the time zone');
reset session authorization;

select * from finish();
rollback;
