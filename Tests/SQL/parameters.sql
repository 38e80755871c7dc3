-- What a model cannot take: told to the dialect, dropped or refused, and on the row.
begin;
\ir setup/world.sql
select no_plan();
delete from ai.breaker_settings;
select t.worker('one') as w \gset

-- What of the capabilities is told
select is(ai.capability_options(c, o), e, format('%s with %s', c, o))
  from (values ('{"tools": true, "vision": false}'::jsonb, '{}'::jsonb, '{}'::jsonb),
               ('{"unsupported_params": ["seed"]}', '{}', '{"unsupported_params": ["seed"]}'),
               ('{"unsupported_params": ["seed"]}', '{"unsupported_params": ["user"]}', '{"unsupported_params": ["user", "seed"]}'),
               ('{"tools": false}', '{}', '{"unsupported_params": ["tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"]}'),
               ('{"parallel_tools": false, "reasoning": false}', '{}', '{"unsupported_params": ["parallel_tool_calls", "reasoning_effort", "reasoning", "thinking"]}'),
               ('{"streaming": false}', '{}', '{"streaming": false}'), ('{"streaming": true, "system_role": false}', '{}', '{"system_role": false}'),
               ('{"streaming": "no"}', '{}', '{}'), ('[]', '{}', '{}'), ('"tools"', '{}', '{}'), ('null', '{}', '{}')) v (c, o, e);
-- Written by tenants, in one statement with everybody's calls.
select lives_ok(format('select ai.capability_options(%L, %L)', c, o), format('whatever is written: %s, %s', c, o))
  from (values ('{"unsupported_params": 7}'), ('{"unsupported_params": {"a": 1}}'), ('{"unsupported_params": null}'), ('["unsupported_params"]'), ('"unsupported_params"')) v (c)
 cross join (values ('{"unsupported_params": 7}'), ('{"unsupported_params": {"a": 1}}'), ('{"unsupported_params": "x"}'), ('[]'), ('{}')) w (o);

-- What a model may be said not to take
select throws_ok(format('update ai.models set capabilities = %L where name = ''mtap/one''', c), '23514', null, format('capabilities %s', c))
  from (values ('{"unsupported_params": "seed"}'), ('{"unsupported_params": null}'), ('{"unsupported_params": {}}'), ('{"unsupported_params": ["seed", 1]}'),
               ('{"unsupported_params": ["max_tokens"]}'), ('{"unsupported_params": ["seed", "max_completion_tokens"]}')) v (c);
select lives_ok($$ update ai.models set capabilities = '{"unsupported_params": []}' where name = 'mtap/one' $$, 'an empty list');

-- The claim tells it
update ai.models set capabilities = '{"unsupported_params": ["seed"], "streaming": false}' where name = 'mtap/one';
update ai.providers set options = '{"unsupported_params": ["user"]}' where name = 'mtap-first';
select t.ask(p_stream => true) as g \gset
select results_eq(format('select options, stream from ai.worker_claim(%L, 1, null) where generation_id is not null', :'w'),
  $$ values ('{"unsupported_params": ["user", "seed"], "streaming": false}'::jsonb, true) $$, 'the call has it among its options, and is shown as a stream');

-- Dropped: the row says which
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"output": "x", "dropped": ["seed", "user"]}'), 'ended', 'an answer without them');
select is((t.generation(:'g')).dropped_params, array['seed', 'user'], 'is named on the row');
select t.ask() as g \gset
select t.claim(:'w') \gset
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"output": "x"}'), 'ended', 'an answer to all of it');
select is((t.generation(:'g')).dropped_params, null, 'has none');
select is((t.generation(:'g')).error, null, 'and no error');

-- Refused: the next target of the route, or the end that says for what
select t.ask(p_profile => 'mtap-route') as g \gset
select t.claim(:'w') \gset
select is(t.settle(:'w', :'g', 1, 'failed', '{"signal": "unsendable", "error_code": "unsupported_parameter", "dropped": ["seed"], "sent": false}'), 'requeued', 'another target may take it');
select results_eq(format('select model from t.claim(%L)', :'w'), $$ values ('two-wire') $$, 'the second is asked');
select is(t.settle(:'w', :'g', 2, 'failed', '{"signal": "unsendable", "error_code": "unsupported_parameter", "error_message": "no", "dropped": ["seed", "top_k"], "sent": false}'), 'ended',
          'the last one refuses, too');
select results_eq(format($$ select status, error ->> 'class', error ->> 'code', error -> 'params', dropped_params, cost from ai.generations where id = %L $$, :'g'),
  $$ values ('failed', 'unsendable', 'unsupported_parameter', '["seed", "top_k"]'::jsonb, null::text[], 0::numeric) $$, 'the row says for which, and nothing was billed');

-- In the insert
select throws_ok(format($$ insert into ai.generations (tenant_id, user_id, kind, prompt, params) values (t.alpha(), 'ann', %L, 'x', %L) $$, k, p), 'PT400', null, format('%s with %s', k, p))
  from (values ('chat', '{"strict": 1}'), ('chat', '{"strict": "true"}'), ('rerank', '{}'), ('rerank', '{"documents": []}'), ('rerank', '{"documents": "x"}'), ('rerank', '{"documents": [1]}'),
               ('rerank', '{"documents": null}'), ('rerank', '{"documents": ["a"], "top_n": 0}'), ('rerank', '{"documents": ["a", null]}'),
               ('classification', '{"labels": []}'), ('classification', '{"labels": ["a", 1]}'), ('classification', '{"labels": "a"}')) v (k, p);
select throws_ok($$ insert into ai.generations (tenant_id, user_id, kind, prompt, params)
                    select t.alpha(), 'ann', 'rerank', 'x', jsonb_build_object('documents', array_agg('d'::text)) from generate_series(1, 1001) $$, 'PT400', null, '1001 documents');
select lives_ok($$ select ai.check_kind_params('rerank', jsonb_build_object('documents', array_agg('d'::text))) from generate_series(1, 1000) $$, '1000 documents');
select lives_ok(format('select ai.check_kind_params(%L, %L)', k, p), format('%s with %s', k, p))
  from (values ('rerank', '{"documents": [""], "top_n": 1}'), ('classification', '{}'), ('classification', '{"labels": null}'), ('classification', '{"labels": ["a"]}')) v (k, p);

select * from finish();
rollback;
