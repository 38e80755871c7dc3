-- For the pgTAP files about caches, after world.sql: questions as JSON over a default, answers without a worker.

-- The question that all others differ from, over which p_over is laid.
create function t.question(p_over jsonb) returns jsonb language sql stable as $$
  select '{"tenant": "alpha", "user_id": "ann", "kind": "chat", "prompt": "Why?", "model": "mtap/one", "params": {}}'::jsonb || p_over
$$;
create function t.question_tenant(q jsonb) returns uuid language sql stable as $$ select case q ->> 'tenant' when 'beta' then t.beta() else t.alpha() end $$;

-- What ai.find_exact() says to it, without a generation.
create function t.find(p_over jsonb) returns table (cache_key bytea, vector_model text, hit boolean, output text, stage jsonb) language sql stable as $$
  select f.cache_key, f.vector_model, f.hit, f.output, f.stage
    from t.question(p_over) q
   cross join lateral ai.find_exact(t.question_tenant(q), q ->> 'user_id', q ->> 'kind', q ->> 'prompt', nullif(q -> 'messages', 'null'), q ->> 'model', q ->> 'profile', q -> 'params',
                                    q ->> 'template', (q ->> 'template_version')::integer, q ->> 'collection', q ->> 'cache') f
$$;
create function t.key(p_over jsonb) returns bytea language sql stable as $$ select cache_key from t.find(p_over) $$;

-- Puts it as a generation, and gives the row as the INSERT returns it, or its id.
create function t.asked(p_over jsonb) returns ai.generations language sql as $$
  insert into ai.generations as g (tenant_id, user_id, kind, prompt, messages, model, profile, params, cache, cache_tags, metadata, priority, stream, deadline_ms, idempotency_key, run_after, replay)
  select t.question_tenant(q), q ->> 'user_id', q ->> 'kind', q ->> 'prompt', nullif(q -> 'messages', 'null'), q ->> 'model', q ->> 'profile', q -> 'params', q ->> 'cache',
         (select array_agg(x) from jsonb_array_elements_text(q -> 'cache_tags') x), q -> 'metadata', coalesce(q ->> 'priority', 'normal'), coalesce((q ->> 'stream')::boolean, false),
         (q ->> 'deadline_ms')::integer, q ->> 'idempotency_key', (q ->> 'run_after')::timestamptz, coalesce((q ->> 'replay')::boolean, false)
    from t.question(p_over) q
  returning g
$$;
create function t.put(p_over jsonb) returns uuid language sql as $$ select (t.asked(p_over)).id $$;
create function t.cached(p_over jsonb) returns boolean language sql as $$ select (t.asked(p_over)).cached $$;

-- Ends it with an answer, as if a worker had settled it, and keeps the answer where that is right; p_more goes over the
-- row's columns. Gives the id.
create function t.keep(p_id uuid, p_output text, p_more jsonb default '{}') returns uuid language plpgsql as $$
begin
  update ai.generations g
     set (status, output, output_message, finish_reason, provider, model_used, cost, input_tokens, output_tokens, sources, stages, degraded, cached, conversation_id,
          context, context_sources, embedding, cache_key, cache, cache_tags, prompt, model, user_id, params, finished_at)
       = (select r.status, r.output, r.output_message, r.finish_reason, r.provider, r.model_used, r.cost, r.input_tokens, r.output_tokens, r.sources, r.stages, r.degraded, r.cached,
                 r.conversation_id, r.context, r.context_sources, r.embedding, r.cache_key, r.cache, r.cache_tags, r.prompt, r.model, r.user_id, r.params, ai.now()
            from jsonb_populate_record(g, jsonb_build_object('status', 'succeeded', 'output', p_output, 'finish_reason', 'stop', 'provider', 'mtap-first', 'model_used', 'one-wire-1',
                                                             'cost', 0.01, 'input_tokens', 10, 'output_tokens', 2) || p_more) r)
   where g.id = p_id;
  perform ai.write_caches(array[g.tenant_id], array[g.id]) from ai.generations g where g.id = p_id;
  return p_id;
end
$$;
