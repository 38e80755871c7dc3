-- What is billed beside tokens of text, tiers and service tiers: exact, derivable, and bounded beforehand.
begin;
\ir setup/world.sql
\ir setup/limits.sql
select no_plan();

create function t.price(p_rates jsonb, p_kind text default 'chat', p_most integer default null) returns text language plpgsql as $$
declare
  v_id   bigint;
  v_name text := format('mtap/c%s', (select count(*) from ai.models));
begin
  insert into ai.models (provider_id, name, wire_name, kind, max_output_tokens) select id, v_name, 'w', p_kind, p_most from ai.providers where name = 'mtap-first' returning id into v_id;
  insert into ai.prices (model_id, rates) values (v_id, p_rates);
  return v_name;
end
$$;

-- Rates
select throws_ok(format('select t.price(%L, %L)', rates, kind), 'PT400', null, format('%s: %s', kind, left(rates, 90)))
  from (values
    ('chat', '{"images": -1}'), ('chat', '{"images": "1"}'), ('chat', '{"image": 1}'), ('chat', '{"images:": 1}'), ('chat', '{"images:A": 1}'), ('chat', '{"images:a b": 1}'),
    ('chat', '{"seconds:' || repeat('x', 41) || '": 1}'), ('chat', '{"audio_input": 1}'), ('chat', '{"input": 1, "audio_input": 1}'), ('embedding', '{"audio_input": 1}'),
    ('chat', '{"input": 1, "output": 1, "tiers": {}}'), ('chat', '{"input": 1, "output": 1, "tiers": [1]}'), ('chat', '{"input": 1, "output": 1, "tiers": [{"input": 2}]}'),
    ('chat', '{"input": 1, "output": 1, "tiers": [{"above": 0, "input": 2}]}'), ('chat', '{"input": 1, "output": 1, "tiers": [{"above": 1.5, "input": 2}]}'),
    ('chat', '{"input": 1, "output": 1, "tiers": [{"above": "1", "input": 2}]}'), ('chat', '{"input": 1, "output": 1, "tiers": [{"above": 5}, {"above": 5}]}'),
    ('chat', '{"input": 1, "output": 1, "tiers": [{"above": 9, "input": 2}, {"above": 8, "input": 3}]}'), ('chat', '{"input": 1, "output": 1, "tiers": [{"above": 9, "batch": 2}]}'),
    ('chat', '{"input": 1, "output": 1, "tiers": [{"above": 9, "tiers": []}]}'), ('chat', '{"input": 1, "output": 1, "above": 7}'),
    ('chat', '{"input": 1, "output": 1, "service": []}'), ('chat', '{"input": 1, "output": 1, "service": {"batch": 1}}'), ('chat', '{"input": 1, "output": 1, "service": {"Batch": {}}}'),
    ('chat', '{"input": 1, "output": 1, "service": {"batch": {"input": -1}}}'), ('chat', '{"input": 1, "output": 1, "service": {"batch": {"service": {}}}}'),
    ('chat', '{"input": 1, "output": 1, "service": {"batch": {"tiers": [{"input": 1}]}}}'), ('chat', '{"service": {"batch": {"input": 1, "output": 1}}}'),
    ('chat', '{"input": 1, "output": 1, "most": 1}'), ('chat', '{"input": 1, "output": 1, "most": {"input": 1}}'), ('chat', '{"input": 1, "output": 1, "most": {"seconds": -1}}'),
    ('chat', '{"input": 1, "output": 1, "most": {"seconds:a": 1}}'), ('chat', '{"input": 1, "output": 1, "most": {"seconds": "1"}}'), ('chat', '{"input": 1, "output": 1, "most": {"seconds": 1e13}}'),
    ('chat', '{"input": 1e10, "output": 1}'), ('chat', '{"input": 1e-31, "output": 1}'), ('chat', '{"input": 1e5000, "output": 1}'),
    ('chat', '{"input": 1, "output": 1, "service": {' || (select string_agg(format('"s%s": {}', n), ',') from generate_series(1, 17) n) || '}}'),
    ('chat', '{"input": 1, "output": 1, "tiers": [' || (select string_agg(format('{"above": %s}', n), ',') from generate_series(1, 17) n) || ']}')) v (kind, rates);
select lives_ok(format('select t.price(%L, %L)', rates, kind), format('%s: %s', kind, rates))
  from (values ('chat', '{"seconds": 0.001}'), ('chat', '{"requests": 0}'), ('image', '{"images": 0.04, "images:hd_1024x1024": 0.08}'), ('transcription', '{"seconds": 0.0001}'),
               ('speech', '{"characters": 0.000015}'), ('rerank', '{"queries": 0.002}'), ('embedding', '{"input_images": 0.0001}'), ('chat', '{"credits": 1, "most": {"credits": 2}}'),
               ('chat', '{"input": 1, "output": 1, "tiers": []}'), ('chat', '{"input": 1, "output": 1, "service": {}}'), ('chat', '{"input": 1, "output": 1, "citations": 2, "most": {"citations": 5000}}')) v (kind, rates);
select is(array(select ai.is_unit_class(c) from unnest(array['images', 'images:a', 'image', 'images:', 'images:a:b', 'input', '']) c), '{t,t,f,f,f,f,f}'::boolean[], 'classes for one');

-- Costs by hand; tokens are input, cache_read, cache_write, cache_write_1h, output, reasoning
create table t.costs (what text, rates jsonb, tokens bigint[], units jsonb, tier text, cost text);
insert into t.costs values
  ('plain rates and no units: the same',      '{"input": 3, "cache_read": 0.3, "cache_write": 3.75, "cache_write_1h": 6, "output": 15, "reasoning": 20}', '{100,10,20,30,50,40}', null, null, '0.001328'),
  ('audio without a rate is text',            '{"input": 3, "output": 15}', '{100,0,0,0,10,0}', '{"audio_input": 60, "audio_output": 5}', null, '0.00045'),
  ('audio with rates',                        '{"input": 1, "audio_input": 10, "output": 2, "audio_output": 20}', '{100,0,0,0,10,0}', '{"audio_input": 60, "audio_output": 5}', null, '0.00075'),
  ('more audio than input is cut down',       '{"input": 1, "audio_input": 10, "output": 2, "audio_output": 20}', '{100,0,0,0,10,0}', '{"audio_input": 600, "audio_output": 50}', null, '0.0012'),
  ('more audio than is left of the caches',   '{"input": 1, "cache_read": 0.5, "audio_input": 10, "output": 2}', '{100,90,0,0,0,0}', '{"audio_input": 60}', null, '0.000145'),
  ('audio read from a cache',                 '{"input": 1, "cache_read": 0.5, "audio_input": 10, "audio_cache_read": 5, "output": 2}', '{100,50,0,0,0,0}', '{"audio_input": 60, "audio_cache_read": 40}', null, '0.000435'),
  ('the same without a rate for it',          '{"input": 1, "cache_read": 0.5, "audio_input": 10, "output": 2}', '{100,50,0,0,0,0}', '{"audio_input": 60, "audio_cache_read": 40}', null, '0.000255'),
  ('and without one for what is cached',      '{"input": 1, "audio_input": 10, "output": 2}', '{100,50,0,0,0,0}', '{"audio_input": 60, "audio_cache_read": 40}', null, '0.00064'),
  ('audio written to a cache',                '{"input": 1, "cache_write": 2, "audio_input": 10, "audio_cache_write": 12, "output": 2}', '{100,0,50,0,0,0}', '{"audio_input": 60, "audio_cache_write": 40}', null, '0.00073'),
  ('three media share what is there',         '{"input": 1, "audio_input": 2, "image_input": 3, "video_input": 4, "output": 0}', '{100,0,0,0,0,0}', '{"audio_input": 50, "image_input": 40, "video_input": 30}', null, '0.00026'),
  ('media of the output beside reasoning',    '{"input": 0, "output": 1, "reasoning": 2, "image_output": 30}', '{0,0,0,0,100,40}', '{"image_output": 90}', null, '0.00188'),
  ('kept for twelve hours',                   '{"input": 1, "cache_write": 2, "cache_write_12h": 4, "output": 0}', '{100,0,10,0,0,0}', '{"cache_write_12h": 40}', null, '0.00023'),
  ('without a rate: as for one hour',         '{"input": 1, "cache_write": 2, "cache_write_1h": 3, "output": 0}', '{100,0,0,0,0,0}', '{"cache_write_12h": 40}', null, '0.00018'),
  ('citations beside the input',              '{"input": 1, "output": 1, "citations": 2}', '{10,0,0,0,10,0}', '{"citations": 1000}', null, '0.00202'),
  ('an image',                                '{"images": 0.04}', '{0,0,0,0,0,0}', '{"images": 3}', null, '0.12'),
  ('an image of a variant',                   '{"images": 0.04, "images:hd": 0.08}', '{0,0,0,0,0,0}', '{"images": 1, "images:hd": 2, "images:other": 1}', null, '0.24'),
  ('a variant without its class',             '{"images:hd": 0.08, "requests": 0}', '{0,0,0,0,0,0}', '{"images": 1, "images:hd": 2}', null, '0.16'),
  ('part of a second',                        '{"seconds": 0.000225}', '{0,0,0,0,0,0}', '{"seconds": 12.345678901}', null, '0.002777777752725'),
  ('a class without a rate costs nothing',    '{"input": 1, "output": 1}', '{1,0,0,0,1,0}', '{"searches": 9, "seconds": 5}', null, '0.000002'),
  ('tokens and searches',                     '{"input": 1, "output": 1, "searches": 0.01}', '{1,0,0,0,1,0}', '{"searches": 9}', null, '0.090002'),
  ('money as the provider says',              '{"credits": 1}', '{5,0,0,0,5,0}', '{"credits": 0.001234567}', null, '0.001234567'),
  ('at a tier''s edge',                       '{"input": 1, "output": 2, "tiers": [{"above": 1000, "input": 10, "output": 20}]}', '{1000,0,0,0,1,0}', null, null, '0.001002'),
  ('above it: all of it',                     '{"input": 1, "output": 2, "tiers": [{"above": 1000, "input": 10, "output": 20}]}', '{1001,0,0,0,1,0}', null, null, '0.01003'),
  ('what a tier does not name stays',         '{"input": 1, "output": 2, "tiers": [{"above": 10, "input": 10}, {"above": 20, "output": 5}]}', '{30,0,0,0,10,0}', null, null, '0.00035'),
  ('the batch',                               '{"input": 1, "cache_read": 0.1, "output": 2, "service": {"batch": {"input": 0.5, "output": 1}}}', '{100,50,0,0,10,0}', null, 'batch', '0.00004'),
  ('its name in capitals',                    '{"input": 1, "output": 2, "service": {"batch": {"input": 0.5, "output": 1}}}', '{100,0,0,0,10,0}', null, 'BATCH', '0.00006'),
  ('a tier that has no rates',                '{"input": 1, "output": 2, "service": {"batch": {"input": 0.5, "output": 1}}}', '{100,0,0,0,10,0}', null, 'default', '0.00012'),
  ('a service above so many tokens: its own', '{"input": 1, "output": 2, "tiers": [{"above": 10, "input": 2}], "service": {"flex": {"input": 0.5, "tiers": [{"above": 10, "input": 0.75}]}}}', '{100,0,0,0,0,0}', null, 'flex', '0.000075'),
  ('the plain one''s, where it has none',     '{"input": 1, "output": 2, "tiers": [{"above": 10, "input": 2}], "service": {"flex": {"input": 0.5}}}', '{100,0,0,0,0,0}', null, 'flex', '0.0002'),
  ('units at another price by service',       '{"images": 0.04, "service": {"batch": {"images": 0.02}}}', '{0,0,0,0,0,0}', '{"images": 3}', 'batch', '0.06'),
  ('units at another price by tier',          '{"seconds": 1, "tiers": [{"above": 5, "seconds": 3}]}', '{6,0,0,0,0,0}', '{"seconds": 0.5}', null, '1.5');
select is(ai.token_cost(rates, tokens[1], tokens[2], tokens[3], tokens[4], tokens[5], tokens[6], units, tier), cost::numeric, what) from t.costs;
select is(ai.token_cost(null, 1, 0, 0, 0, 1, 0, '{"images": 1}', 'batch'), null::numeric, 'without a price the cost is unknown');
select is_empty($$
  select from (select jsonb_build_object('input', random() * 10, 'output', random() * 10) || case when random() < 0.5 then jsonb_build_object('cache_read', random()) else '{}' end
                   || case when random() < 0.5 then jsonb_build_object('cache_write', random()) else '{}' end || case when random() < 0.5 then jsonb_build_object('cache_write_1h', random()) else '{}' end
                   || case when random() < 0.5 then jsonb_build_object('reasoning', random()) else '{}' end as r, (random() * 10000)::bigint as a, (random() * 100)::bigint as b, (random() * 100)::bigint as c
                 from generate_series(1, 500)) v
   where ai.token_cost(r, a + b + c, a, b, c, a + b, b) is distinct from ai.token_cost(r, a + b + c, a, b, c, a + b, b, null, null) $$,
  'plain rates give the same by either function');

-- What a provider reports
select is(ai.billed_units(v.reported, v.rates, v.billed), v.units, v.what)
  from (values
    ('nothing',                        null::jsonb, '{"images": 1}'::jsonb, true, null::jsonb),
    ('amounts as numbers and texts',   '{"images": 2, "seconds": "12.5", "audio_input": "7"}', null, true, '{"images": 2, "seconds": 12.5, "audio_input": 7}'),
    ('exponents',                      '{"seconds": "1.5e2", "pages": 1e3}', null, true, '{"seconds": 150, "pages": 1000}'),
    ('nine digits after the point',    '{"seconds": 0.1234567894, "pages": "0.0000000004"}', null, true, '{"seconds": 0.123456789}'),
    ('the most, and more',             '{"seconds": 1000000000000000, "pages": 1000000000000001, "images": "1e99", "pixels": 1e4000}', null, true, '{"seconds": 1000000000000000}'),
    ('what is no amount',              '{"seconds": "x", "pages": null, "images": -1, "pixels": true, "credits": {}, "messages": "NaN", "queries": "", "searches": "1;", "characters": "+1"}', null, true, null),
    ('what is no class',               '{"second": 1, "input": 5, "reasoning": 5, "images:A": 1, "": 1}', null, true, null),
    ('no object',                      '[1]', null, true, null),
    ('a request, where one costs',     null, '{"requests": 0.01}', true, '{"requests": 1}'),
    ('unless it was not billed',       null, '{"requests": 0.01}', false, null),
    ('or the provider counted',        '{"queries": 3}', '{"queries": 0.01}', true, '{"queries": 3}'),
    ('also where only a tier asks',    null, '{"input": 1, "output": 1, "service": {"priority": {"requests": 1}}}', true, '{"requests": 1}')) v (what, reported, rates, billed, units);
select is((select count(*) from jsonb_object_keys(ai.billed_units((select jsonb_object_agg(format('images:v%s', n), 1) from generate_series(1, 1000) n), null, true))), 40::bigint, 'forty at most');

-- Through the whole path
select t.price('{"input": 1, "audio_input": 10, "output": 2, "requests": 0.001, "searches": 0.01, "tiers": [{"above": 100, "input": 5}], "service": {"batch": {"input": 0.5, "requests": 0}}}') as m \gset
select t.worker() as w, t.ask(p_model => :'m') as g1, t.ask(p_model => :'m') as g2, t.ask(p_model => :'m') as g3, t.ask(p_model => :'m') as g4, t.ask(p_model => 'mtap/unpriced') as g5, t.ask() as g6 \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'g1', 1, 'succeeded', '{"output": "x", "usage": {"input": 50, "output": 3, "units": {"audio_input": "20", "searches": 2, "nonsense": 4}}, "service_tier": "default"}') \g /dev/null
select t.settle(:'w', :'g2', 1, 'succeeded', '{"output": "x", "usage": {"input": 101, "output": 3}, "service_tier": "default"}') \g /dev/null
select t.settle(:'w', :'g3', 1, 'succeeded', '{"output": "x", "usage": {"input": 50, "output": 3}, "service_tier": "batch"}') \g /dev/null
select t.settle(:'w', :'g4', 1, 'failed', '{"signal": "http", "http_status": 400}') \g /dev/null
select t.settle(:'w', :'g5', 1, 'succeeded', '{"output": "x", "usage": {"input": 50, "output": 3, "units": {"seconds": 1}}}') \g /dev/null
select t.settle(:'w', :'g6', 1, 'succeeded', '{"output": "x", "usage": {"input": 50, "output": 3, "units": []}}') \g /dev/null
select is((t.call(:'g1', 1)).cost, 0.021236, 'parts, searches and the request'), is((t.call(:'g1', 1)).units, '{"audio_input": 20, "searches": 2, "requests": 1}'::jsonb, 'and the books know them');
select is((t.generation(:'g1')).cost, 0.021236, 'the generation, too');
select is((t.call(:'g2', 1)).cost, 0.001511, 'above the tier'), is((t.call(:'g3', 1)).cost, 0.000031, 'in a batch'), is((t.call(:'g4', 1)).cost, 0::numeric, 'refused: no request');
select is((t.call(:'g5', 1)).cost, null::numeric, 'without a price'), is((t.call(:'g5', 1)).units, '{"seconds": 1}'::jsonb, 'units are kept all the same'), is((t.call(:'g6', 1)).units, null::jsonb, 'no units, no column');
-- 50 × 3 + 3 × 15
select is((t.call(:'g6', 1)).cost, 0.000195, 'at plain rates');
select is_empty('select from ai.check_costs()', 'every cost is what its version gives');
savepoint changed;
update ai.llm_calls set cost = cost + 0.000000000001 where generation_id = :'g1';
select is((select generation_id from ai.check_costs()), :'g1'::uuid, 'and one that is not is found');
update ai.llm_calls set cost = 1 where generation_id = :'g5';
select is((select count(*) from ai.check_costs()), 2::bigint, 'also where there is no version');
rollback to changed;
set local session authorization mtap_dev;
select is_empty('select from ai.check_costs()', 'who sees calls and prices may look, too');
reset session authorization;

-- Without a report: estimated from the request
select t.price('{"seconds": 0.01, "requests": 1, "searches": 5, "most": {"searches": 3}}') as m, t.price('{"images": 0.04}', 'image') as i \gset
select t.ask(p_model => :'m') as g1, t.ask(p_model => :'i', p_kind => 'image') as g2, t.ask(p_model => :'m') as g3 \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.settle(:'w', :'g1', 1, 'failed', '{"signal": "timeout", "latency_ms": 2500, "sent": true}') \g /dev/null
select t.settle(:'w', :'g2', 1, 'succeeded', '{"output": "x"}') \g /dev/null
select t.settle(:'w', :'g3', 1, 'released', '{"sent": false}') \g /dev/null
select is((t.call(:'g1', 1)).units, '{"seconds": 2.5, "requests": 1}'::jsonb, 'as long as it took'), is((t.call(:'g1', 1)).cost, 1.025, 'is what it cost'), ok((t.call(:'g1', 1)).estimated, 'by estimate');
select is((t.call(:'g2', 1)).units, '{"images": 1}'::jsonb, 'an image that nobody counted'), ok((t.call(:'g2', 1)).estimated, 'by estimate');
select is((t.call(:'g3', 1)).cost, null::numeric, 'never sent: not on the books');
select t.ask(p_model => :'m') as g \gset
select count(*) from t.claim(:'w') \g /dev/null
select t.pass('20 seconds');
select ai.worker_stop(:'w') \g /dev/null
select is((t.call(:'g', 1)).units - 'seconds', '{"requests": 1}'::jsonb, 'abandoned: a request'), cmp_ok(((t.call(:'g', 1)).units ->> 'seconds')::numeric, '>=', 20::numeric, 'and all the time since');
select is_empty('select from ai.check_costs()', 'estimates can be derived, too');
select t.price('{"seconds": 0.0001, "most": {"seconds": 600}}', 'transcription') as h \gset
select t.ask(p_model => :'h', p_kind => 'transcription') as g \gset
select is(ai.estimated_units('{"seconds": 0.0001, "most": {"seconds": 600}}', t.alpha(), :'g', input, 2), jsonb_build_object('seconds', seconds), format('sound of %s bytes that took 2 s to hear', input * 16))
  from (values (500, 2), (1000, 2), (1500, 3), (300000, 600), (400000, 600)) v (input, seconds);
select is(ai.estimated_units('{"seconds": 0.0001}', t.alpha(), :'g', 400000, 2), '{"seconds": 800}', 'without a bound of the price');

-- Bounds
select is(ai.unit_bounds(v.rates, v.kind, v.params, 1000, 30), v.bounds, v.what)
  from (values
    ('a request and machine time',          '{"requests": 1, "seconds": 1}'::jsonb, 'chat', '{}'::jsonb, '{"requests": 1, "seconds": 30}'::jsonb),
    ('what is heard has no bound',          '{"seconds": 1}', 'transcription', '{}', '{"seconds": null}'),
    ('but by the price',                    '{"seconds": 1, "most": {"seconds": 600}}', 'transcription', '{}', '{"seconds": 600}'),
    ('images',                              '{"images": 1, "images:hd": 2}', 'image', '{"n": 4}', '{"images": 4}'),
    ('pixels',                              '{"pixels": 1}', 'image', '{"size": "1024x512"}', '{"pixels": 524288}'),
    ('pixels of a size that is none',       '{"pixels": 1}', 'image', '{"size": "auto"}', '{"pixels": null}'),
    ('characters',                          '{"characters": 1}', 'speech', '{}', '{"characters": 1000}'),
    ('nobody asked to search',              '{"input": 1, "output": 1, "searches": 1}', 'chat', '{"tools": [{"type": "function", "function": {"name": "f"}}]}', '{"searches": 0}'),
    ('a search without an end',             '{"input": 1, "output": 1, "searches": 1}', 'chat', '{"tools": [{"type": "web_search"}]}', '{"searches": null}'),
    ('max_uses',                            '{"input": 1, "output": 1, "searches": 1}', 'chat', '{"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]}', '{"searches": 5}'),
    ('max_tool_calls',                      '{"input": 1, "output": 1, "searches:high": 1}', 'chat', '{"tools": [{"type": "web_search"}], "max_tool_calls": 2}', '{"searches": 2}'),
    ('web_search_options',                  '{"input": 1, "output": 1, "searches": 1}', 'chat', '{"web_search_options": {}}', '{"searches": null}'),
    ('the price''s bound goes before',      '{"input": 1, "output": 1, "searches": 1, "most": {"searches": 7}}', 'chat', '{"web_search_options": {}}', '{"searches": 7}'),
    ('hostile tools',                       '{"input": 1, "output": 1, "searches": 1}', 'chat', '{"tools": {"a": 1}}', '{"searches": 0}'),
    ('more hostile tools',                  '{"input": 1, "output": 1, "searches": 1}', 'chat', '{"tools": [1, null, "x", {"max_uses": "5"}]}', '{"searches": null}'),
    ('documents',                           '{"queries": 1}', 'rerank', '{"documents": ["a", "b"]}', '{"queries": 1}'),
    ('many documents',                      '{"queries": 1}', 'rerank', jsonb_build_object('documents', (select jsonb_agg('x'::text) from generate_series(1, 250))), '{"queries": 3}'),
    ('a class that only a tier has',        '{"input": 1, "output": 1, "tiers": [{"above": 5, "credits": 1}]}', 'chat', '{}', '{"credits": null}')) v (what, rates, kind, params, bounds);
select is(ai.most_cost(v.rates, v.kind, v.params, 1000, 100, 30), v.cost, v.what)
  from (values
    ('the dearest of each side',                 '{"input": 1, "audio_input": 10, "cache_read": 0.1, "output": 2, "audio_output": 20}'::jsonb, 'chat', '{}'::jsonb, 0.012),
    ('a tier in reach',                          '{"input": 1, "output": 2, "tiers": [{"above": 999, "input": 3}]}', 'chat', '{}', 0.0032),
    ('one out of reach',                         '{"input": 1, "output": 2, "tiers": [{"above": 1000, "input": 3}]}', 'chat', '{}', 0.0012),
    ('a tier that makes it cheaper',             '{"input": 5, "output": 2, "tiers": [{"above": 900, "input": 1}]}', 'chat', '{}', 0.0052),
    ('any service tier',                         '{"input": 1, "output": 2, "service": {"flex": {"input": 0.5}, "priority": {"input": 2, "output": 4}}}', 'chat', '{}', 0.0024),
    ('auto is any',                              '{"input": 1, "output": 2, "service": {"priority": {"input": 2, "output": 4}}}', 'chat', '{"service_tier": "auto"}', 0.0024),
    ('a named one',                              '{"input": 1, "output": 2, "service": {"priority": {"input": 2, "output": 4}}}', 'chat', '{"service_tier": "default"}', 0.0012),
    ('a cheaper one may be answered at the usual', '{"input": 1, "output": 2, "service": {"flex": {"input": 0.5}, "priority": {"input": 2, "output": 4}}}', 'chat', '{"service_tier": "flex"}', 0.0012),
    ('the dearest variant',                      '{"images": 1, "images:hd": 2}', 'image', '{"n": 2}', 4),
    ('a unit by service',                        '{"requests": 1, "service": {"priority": {"requests": 3}}}', 'chat', '{}', 3),
    ('citations are tokens',                     '{"input": 1, "output": 2, "citations": 2, "most": {"citations": 1000}}', 'chat', '{}', 0.0032),
    ('no bound, no most',                        '{"input": 1, "output": 2, "citations": 2}', 'chat', '{}', null),
    ('no price',                                 null, 'chat', '{}', null)) v (what, rates, kind, params, cost);
select is(ai.most_cost('{"input": 5, "output": 40}', 'image', '{}', 1000, 0, 30), null::numeric, 'images by tokens whose model does not say how many');
select is(ai.most_cost('{"input": 5, "output": 40}', 'image', '{}', 1000, 6000, 30), 0.245, 'and one that does');

-- No call costs more than was reserved for it, whatever it used within the bounds.
create function t.some_rates(p_classes text[]) returns jsonb language sql as $$
  select coalesce(jsonb_object_agg(c, round((random() * 20)::numeric, 6)) filter (where random() < 0.5), '{}') from unnest(p_classes) c
$$;
create function t.a_draw() returns table (rates jsonb, cost numeric, most numeric) language plpgsql as $$
declare
  c_tokens constant text[] := '{cache_read,cache_write,cache_write_1h,cache_write_12h,reasoning,audio_input,audio_cache_read,audio_cache_write,audio_output,image_input,image_cache_read,image_output,video_input,video_output}';
  c_units  constant text[] := '{requests,seconds,images,searches,characters,images:hd}';
  v_params jsonb := (array['{"n": 3}', '{"n": 3, "service_tier": "flex"}', '{"n": 3, "service_tier": "default"}']::jsonb[])[1 + floor(random() * 3)];
  v_input  bigint := floor(random() * 5000);
  v_output bigint := floor(random() * 500);
  v_in     bigint;
  v_p      bigint[];
  v_units  jsonb;
  v_tier   text;
begin
  rates := jsonb_build_object('input', round((random() * 9)::numeric, 4), 'output', round((random() * 9)::numeric, 4), 'most', '{"searches": 4}'::jsonb) || t.some_rates(c_tokens || c_units)
    || jsonb_build_object('tiers', jsonb_build_array(t.some_rates(c_tokens || c_units || '{input,output}'::text[]) || '{"above": 1000}', t.some_rates(c_tokens || c_units || '{input,output}'::text[]) || '{"above": 3000}'),
                          'service', jsonb_build_object('flex', t.some_rates(c_tokens || '{input,output}'::text[]),
                                                        'priority', t.some_rates(c_tokens || c_units || '{input}'::text[]) || jsonb_build_object('tiers', jsonb_build_array(t.some_rates(c_tokens) || '{"above": 2000}'))));
  most := ai.most_cost(rates, 'chat', v_params, v_input, v_output, 9);
  v_in := floor(random() * (v_input + 1));
  v_p := array[floor(random() * (v_in + 1) / 3), floor(random() * (v_in + 1) / 3), floor(random() * (v_in + 1) / 3)];
  v_units := jsonb_build_object('audio_input', floor(random() * 3000), 'audio_cache_read', floor(random() * 3000), 'audio_cache_write', floor(random() * 900), 'image_input', floor(random() * 3000),
                                'video_input', floor(random() * 900), 'cache_write_12h', floor(random() * 900), 'audio_output', floor(random() * 300), 'image_output', floor(random() * 300),
                                'requests', 1, 'seconds', round((random() * 9)::numeric, 9), 'searches', floor(random() * 5), 'characters', floor(random() * (v_input + 1)),
                                'images', 1, 'images:hd', 2);
  v_tier := case v_params ->> 'service_tier' when 'flex' then (array['flex', 'default', null])[1 + floor(random() * 3)] when 'default' then 'default'
                                             else (array['flex', 'priority', 'default', null])[1 + floor(random() * 4)] end;
  v_output := floor(random() * (v_output + 1));
  cost := ai.token_cost(rates, v_in, v_p[1], v_p[2], v_p[3], v_output, floor(random() * (v_output + 1))::bigint, v_units, v_tier);
  return next;
end
$$;
select is_empty('select d.rates::text, d.cost, d.most from generate_series(1, 500) cross join lateral (select * from t.a_draw() where generate_series is not null) d where d.cost > d.most or d.cost < 0 or d.most is null',
                'five hundred calls, none dearer than its reservation');

-- Budgets
create function t.claim_all(p_worker uuid) returns bigint language plpgsql as $$
declare
  v_all bigint := 0;
begin
  for i in 1 .. 5 loop  -- the first claim moves what lies in a lane without its limits
    v_all := v_all + (select count(*) from t.claim(p_worker));
  end loop;
  return v_all;
end
$$;
create function t.settle_run(p_worker uuid, p_outcome text, p_more jsonb) returns bigint language sql as $$
  select count(*) from ai.worker_settle(p_worker, (select jsonb_agg(jsonb_build_object('id', l.generation_id, 'attempt', l.attempt, 'outcome', p_outcome, 'sent', true) || p_more)
                                                     from ai.leases l where l.worker_id = p_worker))
$$;
select t.worker('third') as w \gset
update ai.settings set max_output_tokens = 1000;
delete from ai.queue;
delete from ai.delayed;
delete from ai.generations;
select t.price('{"requests": 0.01, "input": 0, "output": 0, "service": {"priority": {"requests": 0.02}}}') as m, t.price('{"seconds": 0.001}', 'transcription') as heard,
       t.price('{"input": 0, "output": 40}', 'image') as unbounded, t.price('{"input": 0, "output": 40}', 'image', 500) as bounded \gset
select t.limit_id(jsonb_build_object('tenant_id', t.alpha(), 'metric', 'cost', 'period', 'month', 'amount', 0.05, 'on_limit', 'reject')) as l \gset
select t.ask(p_model => :'m') from generate_series(1, 3) \g /dev/null
select is(t.claim_all(:'w'), 2::bigint, 'two times the dearest service tier');
select t.settle_run(:'w', 'succeeded', '{"output": "y", "usage": {"input": 7, "output": 3}, "service_tier": "default"}') \g /dev/null
select is(t.used(:l), 0.02, 'one costs less'), is(t.used(:l), (select sum(c.cost) from ai.llm_calls c join ai.generations g on g.id = c.generation_id), 'as the books say');
select t.ask(p_model => :'heard', p_kind => 'transcription') as g1, t.ask(p_model => :'unbounded', p_kind => 'image') as g2, t.ask(p_model => :'bounded', p_kind => 'image') as g3 \gset
select is(t.claim_all(:'w'), 1::bigint, 'what nothing bounds is not sent');
select is(array[t.status(:'g1'), t.status(:'g2'), t.status(:'g3')], '{rejected,rejected,running}'::text[], 'but rejected');
select is((t.generation(:'g1')).error ->> 'code', 'PT402', 'with PT402');
select is(t.used(:l), 0.04, 'an image of 500 tokens is reserved');

select * from finish();
rollback;
