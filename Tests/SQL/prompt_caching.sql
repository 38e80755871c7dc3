-- The beginning of a prompt is kept by its provider where a policy says so, and what that saved is told.
begin;
\ir setup/world.sql
select no_plan();
delete from ai.breaker_settings;
select t.worker('one') as w \gset

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

-- Marks: behind the instructions, behind the history, never behind what differs each time
create function t.marked(p_messages jsonb, p_params jsonb default '{}') returns text language sql as $$
  select replace(replace(ai.mark_prompt(jsonb_build_object('messages', p_messages, 'params', p_params), '{"type": "ephemeral"}')::text, '{"type": "ephemeral"}', '*'), ' ', '')
$$;
select is(t.marked(m::jsonb, p::jsonb), replace(e, ' ', ''), why) from (values
  ('[{"role": "user", "content": "q"}]', '{}', '{"params": {}, "messages": [{"role": "user", "content": "q"}]}', 'a single question has nothing to keep'),
  ('[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]', '{}',
   '{"params": {}, "messages": [{"role": "system", "content": [{"text": "s", "type": "text", "cache_control": *}]}, {"role": "user", "content": "q"}]}', 'instructions'),
  ('[{"role": "system", "content": "s"}, {"role": "developer", "content": [{"type": "text", "text": "d"}]}, {"role": "user", "content": "q"}]', '{}',
   '{"params": {}, "messages": [{"role": "system", "content": "s"}, {"role": "developer", "content": [{"text": "d", "type": "text", "cache_control": *}]}, {"role": "user", "content": "q"}]}', 'the last of them'),
  ('[{"role": "user", "content": "q"}]', '{"tools": [{"a": 1}, {"b": 2}]}', '{"params": {"tools": [{"a": 1}, {"b": 2, "cache_control": *}]}, "messages": [{"role": "user", "content": "q"}]}', 'without any, the tools'),
  ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "passages"}, {"role": "user", "content": "q"}]', '{}',
   '{"params": {}, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"text": "b", "type": "text", "cache_control": *}]}, {"role": "user", "content": "passages"}, {"role": "user", "content": "q"}]}', 'the history'),
  ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": []}, {"role": "tool", "tool_call_id": "c", "content": "r"}]', '{}',
   '{"params": {}, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": []}, {"role": "tool", "content": "r", "tool_call_id": "c", "cache_control": *}]}', 'the result of a tool'),
  ('[{"role": "system", "content": "s"}]', '{}', '{"params": {}, "messages": [{"role": "system", "content": [{"text": "s", "type": "text", "cache_control": *}]}]}', 'nothing but instructions'),
  ('[{"role": "system", "content": ""}, {"role": "assistant", "content": [{"type": "image_url"}]}, 7, null, "x", [], {"role": 1}]', '{"tools": 7}',
   '{"params": {"tools": 7}, "messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": [{"type": "image_url"}]}, 7, null, "x", [], {"role": 1}]}', 'what cannot carry a mark stays as it is'),
  ('[]', '{}', '{"params": {}, "messages": []}', 'no message')) v (m, p, e, why);

-- Keys: the same for the same beginning, of a tenant's own
create function t.key(p_tenant uuid, p_messages text, p_params text default '{}') returns text language sql as $$
  select ai.prompt_key(p_tenant, jsonb_build_object('messages', p_messages::jsonb, 'params', p_params::jsonb)) $$;
select is(t.key(t.alpha(), '[{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]', '{"tools": [{"b": 1, "a": 2}]}'),
          t.key(t.alpha(), '[{"content": "s", "role": "system"}, {"role": "user", "content": "two"}]', '{"tools": [{"a": 2, "b": 1}]}'), 'questions do not make a key');
select isnt(t.key(t.alpha(), m), t.key(o, n, p), format('%s and %s have others', m, n))
  from (values ('[{"role": "system", "content": "s"}]', t.alpha(), '[{"role": "system", "content": "t"}]', '{}'), ('[{"role": "system", "content": "s"}]', t.alpha(), '[{"role": "system", "content": "s"}]', '{"tools": []}'),
               ('[{"role": "system", "content": "s"}]', t.beta(), '[{"role": "system", "content": "s"}]', '{}')) v (m, o, n, p);
select matches(t.key(t.alpha(), '[]'), '^[0-9a-f]{32}$', 'a key is 32 digits, also of nothing');

-- The policy
select is(ai.cache_prompt(t.alpha(), 'small', 'm', 'openai', '{"prompt_cache": true}', '{"messages": []}'), '{"messages": []}', 'without a policy nothing is marked');
insert into ai.prompt_cache_policies (tenant_id, position, profile, model, keep, min_input_tokens, enabled) values
  (null, 1, null, null, 'short', 0, true), (t.alpha(), 1, 'small', null, 'off', 0, true), (t.alpha(), 2, null, 'm-long', 'long', 0, true), (t.alpha(), 3, null, null, 'short', 20, true),
  (t.alpha(), 0, null, null, 'long', 0, false);
create function t.cached(p_tenant uuid, p_profile text, p_model text, p_dialect text, p_text text default 'a long enough text for ten tokens', p_params text default '{}') returns text language sql as $$
  select replace(replace(ai.cache_prompt(p_tenant, p_profile, p_model, p_dialect, '{"prompt_cache": true}',
           jsonb_build_object('messages', jsonb_build_array(jsonb_build_object('role', 'system', 'content', p_text)), 'params', p_params::jsonb))::text, ' ', ''),
           t.key(p_tenant, jsonb_build_array(jsonb_build_object('role', 'system', 'content', p_text))::text, p_params), 'KEY') $$;
select matches(t.cached(a, p, m, d, x, j), e, why) from (values
  (t.alpha(), 'small', 'm', 'anthropic', 'a long enough text for ten tokens', '{}', '^[^*]*"params":\{\}[^*]*$', 'a profile that is switched off'),
  (t.alpha(), 'large', 'm', 'anthropic', 'a long enough text for ten tokens', '{}', '"cache_control":\{"type":"ephemeral"\}', 'short'),
  (t.alpha(), 'large', 'm-long', 'anthropic', 'a long enough text for ten tokens', '{}', '"cache_control":\{"ttl":"1h","type":"ephemeral"\}', 'long'),
  (t.alpha(), 'large', 'm', 'openai', 'a long enough text for ten tokens', '{}', '"params":\{"prompt_cache_key":"KEY"\}', 'a key'),
  (t.alpha(), 'large', 'm-long', 'openai_responses', 'a long enough text for ten tokens', '{}', '"params":\{"prompt_cache_key":"KEY","prompt_cache_retention":"24h"\}', 'a key for long'),
  (t.alpha(), 'large', 'm', 'openai', 'a long enough text for ten tokens', '{"prompt_cache_key": "mine"}', '"prompt_cache_key":"mine"', 'an app''s own key stays'),
  (t.beta(), 'small', 'm', 'openai', 'x', '{}', '"prompt_cache_key":"KEY"', 'a tenant without rows of its own has the shared ones')) v (a, p, m, d, x, j, e, why);
select is(t.cached(t.alpha(), 'large', 'm', d, ''), '{"params":{},"messages":[{"role":"system","content":""}]}', format('what is surely too short: %s', d)) from unnest(array['openai', 'anthropic']) d;
select is(ai.cache_prompt(t.alpha(), 'large', 'm', 'anthropic', '{"prompt_cache": true}', r::jsonb), r::jsonb, 'what an app says itself stays')
  from unnest(array['{"messages": [{"role": "system", "content": [{"type": "text", "text": "a long enough text", "cache_control": {"type": "ephemeral"}}]}], "params": {}}',
                    '{"messages": [{"role": "system", "content": "a long enough text"}], "params": {"tools": [{"cache_control": {"type": "ephemeral"}}]}}']) r;
select matches(ai.cache_prompt(t.alpha(), 'large', 'm', 'anthropic', '{"prompt_cache": true}', '{"messages": [{"role": "system", "content": "a text that says \"cache_control\": {} and no more"}], "params": {}}')::text, '"type": "ephemeral"', 'but a text that only speaks of it does not count');
select is(ai.cache_prompt(t.beta(), 'large', 'm', 'openai', c::jsonb, '{"messages": []}'), '{"messages": []}', format('a model with capabilities %s', c))
  from unnest(array['{}', '{"prompt_cache": false}', '{"prompt_cache": "true"}', '[]', 'null', '"prompt_cache"']) c;
select lives_ok(format('select ai.cache_prompt(t.beta(), ''p'', ''m'', %L, ''{"prompt_cache": true}'', %L)', d, r), format('%s takes %s', d, r))
  from unnest(array['openai', 'anthropic']) d
 cross join unnest(array['{}', '[]', 'null', '{"messages": null}', '{"messages": {}}', '{"messages": [null, 1, "x", [], {}]}', '{"messages": [{"role": {}, "content": {}}], "params": null}', '{"messages": [{"role": "system", "content": []}], "params": {"tools": [1]}}']) r;

-- The claim carries it, and pays nothing where there is none
delete from ai.prompt_cache_policies;
update ai.models set capabilities = '{"prompt_cache": true}' where name = 'mtap/one';
select t.ask() as g \gset
select ok(not (select request #> '{params}' ? 'prompt_cache_key' from ai.worker_claim(:'w', 1, null) where generation_id = :'g'), 'without a policy the request is as it was');
insert into ai.prompt_cache_policies (keep, min_input_tokens) values ('short', 0);
select t.ask() as g \gset
select matches((select request #>> '{params,prompt_cache_key}' from ai.worker_claim(:'w', 1, null) where generation_id = :'g'), '^[0-9a-f]{32}$', 'with one it has its key');

-- What was saved: 1000 input tokens, 800 of them read from a cache, 100 written to one
insert into ai.prices (model_id, valid_from, rates) select id, ai.now(), '{"input": 10, "cache_read": 1, "cache_write": 12.5, "output": 50}' from ai.models where name = 'mtap/one';
select t.ask() as g \gset
select t.claim(:'w') \gset
select is(t.settle(:'w', :'g', 1, 'succeeded', '{"output": "x", "usage": {"input": 1000, "cache_read": 800, "cache_write": 100, "output": 10}}'), 'ended', 'a call with a prompt that was known');
select is(t.does('mtap_dev', $$ select concat_ws('|', calls, hits, cached_tokens, written_tokens, share, trim_scale(cost), trim_scale(saved)) from ai.prompt_cache_report() where model = 'mtap/one' and cached_tokens > 0 $$),
          '1|1|800|100|0.8000|0.00355|0.00695', 'is reported with what it saved');
select is(t.does('mtap_bob', $$ select count(*) from ai.prompt_cache_report() $$), '0', 'another tenant sees nothing of it');
select is(t.does('mtap_public', $$ select count(*) from ai.prompt_cache_report() $$), '42501', 'nobody may ask');

-- Whose policies they are
select is(t.does('mtap_adm', format('insert into ai.prompt_cache_policies (tenant_id, profile) values (%L, ''own'') returning profile', t.alpha())), 'own', 'an admin writes those of the tenant');
select is(t.does('mtap_adm', format('insert into ai.prompt_cache_policies (tenant_id) values (%L)', t.beta())), '42501', 'not another''s');
select is(t.does('mtap_adm', 'insert into ai.prompt_cache_policies (tenant_id) values (null)'), '42501', 'and not the shared ones');
select is(t.does('mtap_dev', format('insert into ai.prompt_cache_policies (tenant_id) values (%L)', t.alpha())), '42501', 'a developer writes none');
select is(t.does('mtap_bob', $$ select count(*) from ai.prompt_cache_policies where tenant_id is not null $$), '0', 'and others do not see them');
select throws_ok(format('insert into ai.prompt_cache_policies (keep, min_input_tokens) values (%L, %s)', k, n), '23514', null, format('keep %s from %s', k, n))
  from (values ('forever', 0), ('short', -1), ('', 0), ('long', 100000001)) v (k, n);

select * from finish();
rollback;
