-- Protocols that data describes: what cannot be followed is refused where it is written.
begin;
\ir setup/world.sql
select no_plan();

select ok(ai.is_json_path(to_jsonb(p)), format('%s is a path', p))
  from unnest(array['a', '$', '$.a', 'a.b-c.d_1', 'a[0]', 'a[-1].b', 'a[*].b[*]', '[0]', '[*].x', '$[0].y']) p;
select ok(not ai.is_json_path(p), format('%s is no path', p))
  from unnest(array['""', '"."', '"a."', '"a..b"', '"a[b]"', '"a["', '"a b"', '"a\n.b"', '"0a"', '1', 'null', '"a[12345]"', '[]', '{}']::jsonb[] || to_jsonb(repeat('a', 201))) p;

create function t.described(p_change jsonb, p_kind text default 'chat') returns jsonb language sql immutable as $$
  select jsonb_build_object(p_kind, jsonb_strip_nulls('{"body": {"q": "${input}"}, "text": "a", "vectors": "v", "results": "r"}' || p_change))
$$;
select lives_ok(format('select ai.check_custom(%L)', t.described(c::jsonb)), c) from unnest(array[
  '{}', '{"path": "/v1/${model}/go?x=${params.x}", "method": "PUT"}', '{"body": {"a": ["${prompt}", {"b": "-- ${system} --"}], "...": "${params}"}}',
  '{"usage": {"input": "u.in", "reasoning": "u.r", "beside": ["reasoning"]}, "units": {"seconds": "t"}}', '{"finish_reasons": {"eos": "stop"}}',
  '{"stream": {"framing": "sse", "delta": "d", "done": {"marker": "[DONE]"}}}', '{"stream": {"framing": "ndjson", "delta": "$", "done": {"path": "e", "equals": true}}}',
  '{"poll": {"url": "urls.get", "status": "status", "done": ["ok"], "cancel_url": "urls.cancel"}}',
  '{"poll": {"path": "/jobs/${id}", "id": "id", "status": "s", "done": ["ok"], "failed": ["no"], "result_path": "/jobs/${id}/result", "cancel_path": "/jobs/${id}", "cancel_method": "DELETE"}}']) c;
select throws_ok(format('select ai.check_custom(%L)', t.described(c::jsonb)), 'PT400', null, c) from unnest(array[
  '{"body": null}', '{"body": []}', '{"body": "x"}', '{"text": null}', '{"text": "a b"}', '{"txet": "a"}', '{"body": {"q": "${secret}"}}', '{"body": {"q": ["x ${params.} y"]}}',
  '{"path": "go"}', '{"path": "/a b"}', '{"path": 1}', '{"path": "/${id}"}', '{"path": "/a#b"}', '{"method": "TRACE"}', '{"usage": []}', '{"usage": {"tokens": "a"}}', '{"usage": {"input": "a b"}}',
  '{"usage": {"input": "a", "beside": ["input"]}}', '{"units": {"seconds": 1}}', '{"units": []}', '{"finish_reasons": {"eos": "end"}}', '{"finish_reasons": []}',
  '{"stream": {}}', '{"stream": true}', '{"stream": {"framing": "xml", "delta": "d"}}', '{"stream": {"framing": "sse"}}', '{"stream": {"framing": "sse", "delta": "d", "done": {}}}',
  '{"stream": {"framing": "sse", "delta": "d", "done": "x"}}', '{"stream": {"framing": "sse", "delta": "d", "done": {"path": "a b"}}}', '{"stream": {"framing": "sse", "delta": "d", "body": {"x": "${y}"}}}',
  '{"poll": {}}', '{"poll": {"url": "u", "status": "s"}}', '{"poll": {"url": "u", "status": "s", "done": "ok"}}', '{"poll": {"status": "s", "done": ["ok"]}}',
  '{"poll": {"path": "/jobs", "id": "id", "status": "s", "done": ["ok"]}}', '{"poll": {"path": "/jobs/${id}", "status": "s", "done": ["ok"]}}',
  '{"poll": {"path": "https://elsewhere/${id}", "id": "id", "status": "s", "done": ["ok"]}}', '{"poll": {"url": "u", "status": "s", "done": ["ok"], "cancel_method": "GET"}}']) c;
select throws_ok(format('select ai.check_custom(%L)', c), 'PT400', null, c) from unnest(array['{}', '[]', 'null', '1', '{"image": {}}', '{"chat": []}', '{"chat": {}}']) c;
select lives_ok(format('select ai.check_custom(%L)', t.described('{}', k)), format('a %s can be described', k)) from unnest(array['completion', 'embedding', 'rerank', 'classification']) k;
select throws_ok(format('select ai.check_custom(%L)', t.described('{"vectors": null, "results": null}', k)), 'PT400', null, format('a %s needs its answer', k)) from unnest(array['embedding', 'rerank', 'classification']) k;

-- Where it is written: providers and models, the operator's and a tenant's
select throws_ok($$ insert into ai.providers (name, dialect, base_url, options) values ('quill', 'custom', 'https://quill.example', '{"custom": {"chat": {}}}') $$, 'PT400', null, 'a provider that cannot be followed is refused');
select lives_ok($$ insert into ai.providers (name, dialect, base_url, options) values ('quill', 'custom', 'https://quill.example', jsonb_build_object('custom', t.described('{}'))) $$, 'one that can is taken');
select throws_ok($$ update ai.providers set options = '{"custom": {"chat": {"body": {}}}}' where name = 'quill' $$, 'PT400', null, 'and not changed into one that cannot');
select throws_ok($$ insert into ai.models (provider_id, name, wire_name, options) select id, 'quill/q', 'q', '{"custom": 1}' from ai.providers where name = 'quill' $$, 'PT400', null, 'nor by a model');

select * from finish();
rollback;
