-- migrate:up
-- Every kind of request, not only chats and embeddings; and what an answer may bring beside its text.

do $$
declare
  c_kinds constant text := '(''chat'', ''completion'', ''embedding'', ''classification'', ''rerank'', ''moderation'', ''image'', ''transcription'', ''speech'')';
  v_table text;
begin
  foreach v_table in array array['models', 'routes', 'profiles', 'profile_rules', 'cache_policies', 'limits', 'generations'] loop
    execute format('alter table ai.%I drop constraint %I', v_table, v_table || '_kind');
    execute format('alter table ai.%I add constraint %I check (kind in %s)', v_table, v_table || '_kind', c_kinds);
  end loop;
end
$$;

alter table ai.generations add column dropped_params text[];
comment on column ai.generations.dropped_params is 'Parameters that the model that answered cannot take, and that were left out; null: none.';
alter table ai.llm_calls add column units jsonb;
comment on column ai.llm_calls.units is 'What was billed beside tokens, or is a part of them at another price, such as {"images": 2, "seconds": 12.5}; null: nothing.';
