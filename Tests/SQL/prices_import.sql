-- The price map and the catalog: what is taken, what is kept, what is reported, and nothing by whom it does not concern.
begin;
\ir setup/world.sql
select no_plan();

-- Rates of an entry
select is((ai.map_rates(v.entry)).rates, v.rates, v.what)
  from (values
    ('tokens',                               '{"mode": "chat", "input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07, "cache_read_input_token_cost": 7.5e-08}'::jsonb, '{"input": 0.15, "output": 0.6, "cache_read": 0.075}'::jsonb),
    ('nothing',                              '{"mode": "chat"}', '{}'),
    ('tiers and service tiers',              '{"input_cost_per_token": 1e-6, "input_cost_per_token_above_200k_tokens": 2e-6, "input_cost_per_token_batches": 5e-7, "input_cost_per_token_above_200k_tokens_priority": 4e-6}',
      '{"input": 1, "tiers": [{"above": 200000, "input": 2}], "service": {"batch": {"input": 0.5}, "priority": {"tiers": [{"above": 200000, "input": 4}]}}}'),
    ('lifetimes of a cache',                 '{"cache_creation_input_token_cost": 1e-6, "cache_creation_input_token_cost_above_1hr": 2e-6, "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 3e-6, "cache_creation_input_token_cost_above_12hr_flex": 4e-6}',
      '{"cache_write": 1, "cache_write_1h": 2, "tiers": [{"above": 200000, "cache_write_1h": 3}], "service": {"flex": {"cache_write_12h": 4}}}'),
    ('a list of tiers',                      '{"tiered_pricing": [{"range": [0, 256000.0], "input_cost_per_token": 5e-8}, {"range": [256000.0, 1000000.0], "input_cost_per_token": 2.5e-7}]}',
      '{"input": 0.05, "tiers": [{"above": 256000, "input": 0.25}]}'),
    ('a cache hit by its other name',        '{"input_cost_per_token_cache_hit": 1e-8}', '{"cache_read": 0.01}'),
    ('which gives way',                      '{"input_cost_per_token_cache_hit": 1e-8, "cache_read_input_token_cost": 2e-8}', '{"cache_read": 0.02}'),
    ('audio by the second beside tokens',    '{"mode": "audio_transcription", "input_cost_per_token": 2.5e-6, "output_cost_per_token": 1e-5, "input_cost_per_second": 0.0001}', '{"input": 2.5, "output": 10}'),
    ('audio by the second',                  '{"mode": "audio_transcription", "input_cost_per_second": 0.0001, "output_cost_per_second": 0.0001}', '{"seconds": 0.0001}'),
    ('audio by the second, heard',           '{"mode": "audio_transcription", "input_cost_per_second": 0.0001, "output_cost_per_second": 0.0}', '{"seconds": 0.0001}'),
    ('an image by its input',                '{"mode": "image_generation", "input_cost_per_image": 0.04}', '{"images": 0.04}'),
    ('an image by its pixels',               '{"mode": "image_generation", "input_cost_per_pixel": 4e-8, "output_cost_per_pixel": 0.0}', '{"pixels": 0.00000004}'),
    ('sizes of images',                      '{"mode": "image_generation", "output_cost_per_image": 0.08, "output_cost_per_image_2K": 0.12}', '{"images": 0.08, "images:2k": 0.12}'),
    ('searches that all cost the same',      '{"search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_medium": 0.01, "search_context_size_high": 0.01}}', '{"searches": 0.01}'),
    ('searches that do not',                 '{"search_context_cost_per_query": {"search_context_size_low": 0.005, "search_context_size_medium": 0.008, "search_context_size_high": 0.012}}',
      '{"searches": 0.008, "searches:low": 0.005, "searches:high": 0.012}'),
    ('a unit that costs nothing',            '{"input_cost_per_token": 0, "output_cost_per_token": 0.0, "input_cost_per_image": 0, "input_cost_per_request": 0}', '{"input": 0, "output": 0}'),
    ('fast mode',                            '{"input_cost_per_token": 1e-6, "output_cost_per_token": 5e-6, "provider_specific_entry": {"fast": 6.0}}', '{"input": 1, "output": 5, "service": {"fast": {"input": 6, "output": 30}}}'),
    ('what is no number',                    '{"input_cost_per_token": "cheap", "output_cost_per_token": null, "tiered_pricing": 7, "search_context_cost_per_query": [1], "provider_specific_entry": 1, "input_cost_per_image": -1}', '{}')) v (what, entry, rates);
select is((ai.map_rates(v.entry)).not_understood, v.strange, v.what)
  from (values
    ('multipliers',                    '{"input_cost_per_token": 1, "regional_processing_uplift_multiplier_eu": 1.1, "provider_specific_entry": {"us": 1.1}}'::jsonb, '{provider_specific_entry.us,regional_processing_uplift_multiplier_eu}'::text[]),
    ('a service tier nobody knows',    '{"input_cost_per_token_lunar": 1}', '{input_cost_per_token_lunar}'),
    ('a class nobody knows',           '{"cost_per_thought": 1, "cost_of_nothing": 0}', '{cost_per_thought}'),
    ('times of day',                   '{"off_peak_pricing": {"input_cost_per_token": 1}}', '{off_peak_pricing}'),
    ('what is not about money',        '{"source": "x", "supports_vision": true, "max_tokens": 7}', null),
    ('what is no number',              '{"input_cost_per_token": "cheap", "output_cost_per_token": -1}', '{input_cost_per_token,output_cost_per_token}')) v (what, entry, strange);

-- What it says of a model
select is(row(k.*)::text, v.said, v.what)
  from (values
    ('a chat',       '{"mode": "chat", "max_input_tokens": 1000, "max_output_tokens": 50, "supports_function_calling": true, "supports_vision": true, "supports_response_schema": true, "litellm_provider": "openai", "input_cost_per_token_batches": 1}'::jsonb,
      '(chat,1000,50,,"{""batch"": true, ""tools"": true, ""vision"": true, ""json_mode"": true, ""structured_output"": true}")'),
    ('a schema as a tool', '{"mode": "chat", "supports_response_schema": true, "litellm_provider": "anthropic", "supports_sampling_params": false, "supports_system_messages": false}',
      '(chat,,,,"{""json_mode"": true, ""system_role"": false, ""unsupported_params"": [""temperature"", ""top_p"", ""top_k""]}")'),
    ('an embedding', '{"mode": "embedding", "max_input_tokens": 8191, "max_output_tokens": 7, "output_vector_size": 1536}', '(embedding,8191,,1536,{})'),
    ('hostile',      '{"mode": "chat", "max_input_tokens": "many", "max_output_tokens": -5, "output_vector_size": 1e99, "supports_vision": "yes"}', '(chat,,,,{})'),
    ('no kind here', '{"mode": "video_generation"}', '(,,,,{})'), ('no mode', '{}', '(,,,,{})')) v (what, entry, said)
 cross join lateral ai.map_model(v.entry) k;

-- The import
insert into ai.providers (name, dialect, base_url, price_map) values ('mtap-maps', 'openai', 'http://maps.test/v1', 'maps'), ('mtap-empty', 'openai', 'http://empty.test/v1', null);
insert into ai.models (provider_id, name, wire_name, kind, context_tokens, capabilities, price_entry)
select p.id, v.name, v.wire_name, v.kind, v.context, v.capabilities, v.entry
  from (values ('mtap-maps', 'mtap-maps/a', 'a', 'chat', 77, '{"vision": false}'::jsonb, null), ('mtap-maps', 'mtap-maps/b', 'b', 'embedding', null, '{}', null),
               ('mtap-maps', 'mtap-maps/named', 'n', 'chat', null, '{}', 'elsewhere'), ('mtap-maps', 'mtap-maps/lost', 'lost', 'chat', null, '{}', 'nowhere'),
               ('mtap-maps', 'mtap-maps/bare', 'bare', 'chat', null, '{}', null), ('mtap-maps', 'mtap-maps/foreign', 'foreign', 'chat', null, '{}', null),
               ('mtap-empty', 'mtap-empty/a', 'a', 'chat', null, '{}', null)) v (provider, name, wire_name, kind, context, capabilities, entry)
  join ai.providers p on p.name = v.provider;
insert into ai.prices (model_id, rates) select t.model('mtap-maps/a'), '{"input": 9, "output": 9, "searches": 1, "most": {"searches": 4}}';
\set map '{"maps/a": {"mode": "chat", "litellm_provider": "maps", "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "max_input_tokens": 1000, "max_output_tokens": 50, "supports_vision": true, "supports_function_calling": true, "search_context_cost_per_query": {"search_context_size_medium": 0.01}, "off_peak_pricing": {}}, "maps/b": {"mode": "chat", "litellm_provider": "maps", "input_cost_per_token": 1e-6}, "elsewhere": {"mode": "chat", "litellm_provider": "other", "input_cost_per_token": 3e-6, "output_cost_per_token": 0}, "bare": {"mode": "responses", "litellm_provider": "maps", "input_cost_per_token": 4e-6, "output_cost_per_token": 4e-6}, "foreign": {"mode": "chat", "litellm_provider": "others", "input_cost_per_token": 1, "output_cost_per_token": 1}, "maps/new": {"mode": "chat", "litellm_provider": "maps", "input_cost_per_token": 5e-6, "output_cost_per_token": 5e-6}, "newer": {"mode": "embedding", "litellm_provider": "maps", "input_cost_per_token": 6e-6, "output_vector_size": 64}, "maps/film": {"mode": "video_generation", "litellm_provider": "maps", "output_cost_per_second": 1}, "maps/*": {"mode": "chat", "litellm_provider": "maps"}, "maps/poor": {"mode": "chat", "litellm_provider": "maps", "input_cost_per_token": 1e-6}, "fallback": {"rules": []}, "junk": 7, "maps/junk": [1]}'
create function t.report(p_sql text) returns setof text language plpgsql as $$
begin
  return query execute format('select concat_ws('' '', model, coalesce(entry, ''-''), what, price, new_rates ->> ''input'', not_understood::text) from %s order by 1', p_sql);
end
$$;
savepoint untouched;
create table t.tried as select * from t.report(format('ai.import_prices(%L, add => ''{mtap-maps}'', models => ''mtap-maps/%%'', dry_run => true)', :'map'));
select is((select count(*) from ai.models where provider_id = (select id from ai.providers where name = 'mtap-maps')), 6::bigint, 'a dry run adds nothing');
select is((select count(*) from ai.prices where model_id = t.model('mtap-maps/a')), 1::bigint, 'and prices nothing');
create table t.done as select * from t.report(format('ai.import_prices(%L, add => ''{mtap-maps}'', models => ''mtap-maps/%%'')', :'map'));
select set_eq('table t.tried', 'table t.done', 'a dry run says what comes of it');
select set_eq('table t.done', array[
  'mtap-maps/a maps/a updated repriced 1 {off_peak_pricing}', 'mtap-maps/b maps/b other kind', 'mtap-maps/named elsewhere kept priced 3', 'mtap-maps/lost - no entry',
  'mtap-maps/bare bare kept priced 4', 'mtap-maps/foreign - no entry', 'mtap-maps/new maps/new added priced 5', 'mtap-maps/newer newer added priced 6', 'mtap-maps/poor maps/poor added no price 1'], 'what becomes of each');
select is(array(select row(m.kind, m.context_tokens, m.max_output_tokens, m.dimensions, m.capabilities)::text from ai.models m where m.name in ('mtap-maps/a', 'mtap-maps/newer') order by m.name),
          array['(chat,77,50,,"{""tools"": true, ""vision"": false}")', '(embedding,,,64,{})'], 'what the operator said of a model stays, what was missing is there');
select results_eq($$ select rates, valid_from = '-infinity', valid_to = 'infinity' from ai.prices where model_id = t.model('mtap-maps/a') order by valid_from $$,
                  $$ values ('{"input": 9, "output": 9, "searches": 1, "most": {"searches": 4}}'::jsonb, true, false), ('{"input": 1, "output": 2, "searches": 0.01, "most": {"searches": 4}}', false, true) $$,
                  'a new version; the operator''s bound stays');
select is((select valid_from from ai.prices where model_id = t.model('mtap-maps/new')), '-infinity'::timestamptz, 'a first price holds from ever');
select is((select count(*) from t.report(format('ai.import_prices(%L, add => ''{mtap-maps}'', models => ''mtap-maps/%%'')', :'map')) r where r ~ ' (added|updated|priced|repriced)'), 0::bigint, 'again: nothing to do');
insert into ai.prices (model_id, rates, valid_from) values (t.model('mtap-maps/a'), '{"input": 1, "output": 1}', now() + interval '1 month');
select is((select r from t.report(format('ai.import_prices(jsonb_set(%L, ''{maps/a,input_cost_per_token}'', ''7e-6''), models => ''mtap-maps/a'')', :'map')) r), 'mtap-maps/a maps/a kept later version 7 {off_peak_pricing}',
          'a price that is to come is not passed over');
rollback to untouched;
select is((select count(*) from t.report(format('ai.import_prices(%L, models => ''mtap-maps/a'')', :'map'))), 1::bigint, 'only some');
select is((select count(*) from t.report(format('ai.import_prices(%L)', '{}')) r where r !~ 'no entry'), 0::bigint, 'an empty map has no entries');
select is_empty($$ select from ai.import_prices('{}') where model like 'local/%' $$, 'the local provider needs none');
select throws_ok(format('select ai.import_prices(%s)', args), state, null, format('import_prices(%s)', args))
  from (values ('null', 'PT400'), ($$'[]'$$, 'PT400'), ($$'7'$$, 'PT400'), ($$'{}', add => '{nobody}'$$, 'PT404'), ($$'{}', valid_from => null$$, 'PT400'), ($$'{}', valid_from => 'infinity'$$, 'PT400')) v (args, state);
-- A tenant's own models are its own business
insert into ai.providers (tenant_id, name, dialect, base_url, price_map) values (t.alpha(), 'maps', 'openai', 'https://own.test', null);
insert into ai.models (tenant_id, provider_id, name, wire_name) select t.alpha(), id, 'maps/a', 'a' from ai.providers where tenant_id = t.alpha() and name = 'maps';
select is_empty(format('select from ai.import_prices(%L) where model = ''maps/a''', :'map'), 'not looked at');
select throws_ok(format('select ai.import_prices(%L, add => ''{maps}'')', :'map'), 'PT404', null, 'nor added to');

-- The catalog
\set catalog '{"providers": [{"name": "mtap-cat", "dialect": "openai", "base_url": "https://cat.test/v1", "secret": "CAT_API_KEY", "price_map": "cat", "options": {"x": 1}, "models": [{"name": "big", "context_tokens": 100, "max_output_tokens": 10, "capabilities": {"tools": true}, "rates": {"input": 1, "output": 2}}, {"name": "vec", "wire_name": "vec-wire", "kind": "embedding", "dimensions": 64, "rates": {"input": 0.1}}, {"name": "free"}]}, {"name": "mtap-dog", "dialect": "anthropic", "base_url": "https://dog.test"}]}'
create function t.loaded(p_sql text) returns text language plpgsql as $$
declare
  v_all text;
begin
  execute format('select string_agg(concat_ws('' '', name, what, price), '', '') from %s', p_sql) into v_all;
  return v_all;
end
$$;
select is(t.loaded(format('ai.load_catalog(%L, dry_run => true)', :'catalog')), 'mtap-cat added, mtap-cat/big added priced, mtap-cat/vec added priced, mtap-cat/free added, mtap-dog added', 'a dry run');
select is((select count(*) from ai.providers where name like 'mtap-cat%'), 0::bigint, 'writes nothing');
select is(t.loaded(format('ai.load_catalog(%L, ''{mtap-cat}'')', :'catalog')), 'mtap-cat added, mtap-cat/big added priced, mtap-cat/vec added priced, mtap-cat/free added', 'one provider of it');
select is(t.loaded(format('ai.load_catalog(%L)', :'catalog')), 'mtap-cat kept, mtap-cat/big kept same, mtap-cat/vec kept same, mtap-cat/free kept, mtap-dog added', 'then all');
select is((select row(m.wire_name, m.kind, m.dimensions)::text from ai.models m where m.name = 'mtap-cat/vec'), '(vec-wire,embedding,64)', 'a model as the catalog says');
update ai.providers set base_url = 'https://proxy.test/v1' where name = 'mtap-cat';
update ai.models set capabilities = '{"vision": true}', max_output_tokens = 5 where name = 'mtap-cat/big';
select is(t.loaded(format('ai.load_catalog(jsonb_set(%L, ''{providers,0,models,0,rates,input}'', ''3''))', :'catalog')),
          'mtap-cat kept, mtap-cat/big updated repriced, mtap-cat/vec kept same, mtap-cat/free kept, mtap-dog kept', 'a newer catalog');
select is((select base_url from ai.providers where name = 'mtap-cat'), 'https://proxy.test/v1', 'what the operator changed stays');
select is(t.loaded(format('ai.load_catalog(jsonb_set(%L, ''{providers,0,options}'', ''{"x": 2, "variant": "groq"}''), ''{mtap-cat}'', dry_run => true)', :'catalog')),
          'mtap-cat updated, mtap-cat/big kept repriced, mtap-cat/vec kept same, mtap-cat/free kept', 'a dry run of what is missing');
select is((select options from ai.providers where name = 'mtap-cat'), '{"x": 1}', 'writes nothing');
select t.loaded(format('ai.load_catalog(jsonb_set(%L, ''{providers,0,options}'', ''{"x": 2, "variant": "groq"}''), ''{mtap-cat}'')', :'catalog')) \g /dev/null
select is((select options from ai.providers where name = 'mtap-cat'), '{"x": 1, "variant": "groq"}', 'options that are missing are added, others stay');
update ai.providers set dialect = 'ollama', options = '{}' where name = 'mtap-cat';
select is(split_part(t.loaded(format('ai.load_catalog(%L)', :'catalog')), ',', 1), 'mtap-cat kept', 'not to a provider of another dialect');
update ai.providers set dialect = 'openai' where name = 'mtap-cat';
select is((select row(m.capabilities, m.max_output_tokens)::text from ai.models m where m.name = 'mtap-cat/big'), '("{""tools"": true, ""vision"": true}",5)', 'here, too');
select throws_ok(format('select ai.load_catalog(%s)', args), state, null, format('load_catalog(%s)', args))
  from (values ('null', 'PT400'), ($$'[]'$$, 'PT400'), ($$'{}'$$, 'PT400'), ($$'{"providers": []}', '{nobody}'$$, 'PT404'), ($$'{"providers": []}', null, null$$, 'PT400'),
               ($$'{"providers": [{"name": "X", "dialect": "openai"}]}'$$, '23514'), ($$'{"providers": [5]}'$$, 'PT400'), ($$'{"providers": [{"name": "mtap-x"}]}'$$, 'PT400'),
               ($$'{"providers": [{"name": 5, "dialect": "openai"}]}'$$, 'PT400'), ($$'{"providers": [{"name": "mtap-x", "dialect": null}]}'$$, 'PT400'),
               ($$'{"providers": [{"name": "mtap-x", "dialect": "openai", "models": {"name": "a"}}]}'$$, 'PT400'), ($$'{"providers": [{"name": "mtap-x", "dialect": "openai", "models": ["a"]}]}'$$, 'PT400'),
               ($$'{"providers": [{"name": "mtap-x", "dialect": "openai", "models": [{"kind": "chat"}]}]}'$$, 'PT400')) v (args, state);

select is(t.as_role(r, s), '42501', format('%s: %s', r, left(s, 30)))
  from (values ('mtap_ann'), ('mtap_adm'), ('mtap_worker'), ('mtap_monitor')) u (r)
 cross join (values ($$select ai.import_prices('{}')$$), ($$select ai.load_catalog('{"providers": []}')$$)) v (s);

select * from finish();
rollback;
