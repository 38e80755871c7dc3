-- What happens inside the INSERT of a generation: who asks is stamped on, the input is checked, an idempotency key is
-- honoured, guardrails and the exact cache are asked. A row that an operator restores (one that already has a status other than queued) passes untouched.

-- Raises PT400 for a message list that no provider could take.
create or replace function ai.check_messages(p_messages jsonb) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_message jsonb;
  v_at      bigint;
begin
  if jsonb_typeof(p_messages) <> 'array' or jsonb_array_length(p_messages) = 0 then
    raise exception 'messages must be a JSON array with at least one message'
      using errcode = 'PT400', hint = 'For example [{"role": "user", "content": "Hello"}].';
  end if;
  for v_message, v_at in select value, ordinality from jsonb_array_elements(p_messages) with ordinality loop
    if jsonb_typeof(v_message) <> 'object' then
      raise exception 'message % is not a JSON object', v_at using errcode = 'PT400';
    end if;
    if coalesce(v_message ->> 'role', '') not in ('system', 'developer', 'user', 'assistant', 'tool') then
      raise exception 'message % has no known role', v_at
        using errcode = 'PT400', hint = 'Roles: system, developer, user, assistant, tool.';
    end if;
    if coalesce(jsonb_typeof(v_message -> 'content'), 'null') not in ('string', 'array')
       and not (v_message ->> 'role' = 'assistant' and (v_message ? 'tool_calls' or v_message ? 'refusal')) then
      raise exception 'message % has no content', v_at
        using errcode = 'PT400', detail = 'Content is a string or an array of parts; only an assistant''s message with tool_calls may be without.';
    end if;
  end loop;
end
$$;
comment on function ai.check_messages(jsonb) is 'Raises PT400 unless the messages have OpenAI''s chat form.';

-- Raises PT400 for parameters that would be refused anyway, or that would contradict the columns of the row. What it
-- does not know passes: providers add parameters faster than databases are migrated.
create or replace function ai.check_params(p_params jsonb) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key  text;
  v_type text;
  v_text text;
begin
  if jsonb_typeof(p_params) <> 'object' then
    raise exception 'params must be a JSON object' using errcode = 'PT400';
  end if;
  for v_key, v_type, v_text in select key, jsonb_typeof(value), value #>> '{}' from jsonb_each(p_params) where jsonb_typeof(value) <> 'null' loop
    if v_key in ('model', 'messages', 'stream', 'stream_options', 'input', 'prompt') then
      raise exception 'params must not contain %', v_key
        using errcode = 'PT400', hint = 'It has a column of its own, or is set by the worker.';
    elsif v_key in ('max_tokens', 'max_completion_tokens', 'n', 'dimensions', 'top_logprobs', 'top_n')
          and (v_type <> 'number' or v_text::numeric <> trunc(v_text::numeric) or v_text::numeric not between 0 and 100000000
               or (v_text::numeric = 0 and v_key <> 'top_logprobs')) then
      raise exception 'params.% must be a whole number above 0', v_key using errcode = 'PT400';
    elsif v_key in ('n', 'best_of', 'candidate_count', 'candidateCount', 'num_return_sequences') and (v_type <> 'number' or v_text::numeric <> 1) then
      raise exception 'params.% must be 1', v_key using errcode = 'PT400', hint = 'Insert one row for each answer: limits reserve for one.';
    elsif v_key in ('temperature', 'top_p', 'frequency_penalty', 'presence_penalty') and v_type <> 'number' then
      raise exception 'params.% must be a number', v_key using errcode = 'PT400';
    elsif v_key = 'temperature' and v_text::numeric not between 0 and 2 then
      raise exception 'params.temperature must be from 0 to 2' using errcode = 'PT400';
    elsif v_key = 'tools' and v_type <> 'array' then
      raise exception 'params.tools must be an array' using errcode = 'PT400';
    elsif v_key = 'strict' and v_type <> 'boolean' then
      raise exception 'params.strict must be true or false' using errcode = 'PT400';
    elsif v_key = 'metadata' and v_type <> 'object' then
      raise exception 'params.% must be an object', v_key using errcode = 'PT400';
    end if;
  end loop;
end
$$;
comment on function ai.check_params(jsonb) is 'Raises PT400 for parameters that contradict the row or have the wrong type; unknown ones pass.';

-- The text that is embedded, searched for and judged: the prompt, or the last message of the user (of its parts those that
-- are text). Null where there is none. At most 8,000 characters, about what embedding models take.
create or replace function ai.question_text(p_prompt text, p_messages jsonb) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select left(coalesce(p_prompt, (
    select case jsonb_typeof(m.value -> 'content')
             when 'string' then m.value ->> 'content'
             when 'array' then (select string_agg(c.value ->> 'text', E'\n' order by c.ordinality)
                                  from jsonb_array_elements(m.value -> 'content') with ordinality c where c.value ->> 'type' = 'text') end
      from jsonb_array_elements(p_messages) with ordinality m
     where m.value ->> 'role' = 'user'
     order by m.ordinality desc limit 1)), 8000)
$$;
comment on function ai.question_text(text, jsonb) is 'The question in a generation''s input, at most 8,000 characters; null: none.';

-- Raises PT400 and PT413 for input that contradicts itself or is too long. One call for everything that needs no table.
create or replace function ai.check_input(
  p_kind text, p_prompt text, p_messages jsonb, p_model text, p_profile text, p_params jsonb, p_stream boolean, p_priority text, p_run_after timestamptz,
  p_deadline_ms integer, p_metadata jsonb, p_cache text, p_cache_tags text[], p_max_bytes integer) returns void
language plpgsql stable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_deep constant jsonpath := 'strict $.**{900}';  -- workers and providers read 1,000 levels, some of which are the request's own
  v_bytes bigint;
begin
  if coalesce(p_kind, '') not in ('chat', 'embedding', 'completion', 'classification', 'rerank', 'moderation', 'image', 'transcription', 'speech')
     or coalesce(p_priority, '') not in ('high', 'normal', 'low', 'batch') then
    raise exception 'kind or priority is none'
      using errcode = 'PT400', detail = 'Kinds: chat, completion, embedding, classification, rerank, moderation, image, transcription, speech. Priorities: high, normal, low, batch.';
  end if;
  if (p_prompt is null) = (p_messages is null) then
    raise exception 'a generation needs either prompt or messages' using errcode = 'PT400';
  end if;
  v_bytes := octet_length(coalesce(p_prompt, '')) + coalesce(octet_length(p_messages::text), 0)
           + coalesce(octet_length(nullif(p_params, '{}')::text), 0) + coalesce(octet_length(p_metadata::text), 0);
  if v_bytes > p_max_bytes then
    raise exception 'the input is too long'
      using errcode = 'PT413', detail = format('%s bytes; the limit is %s.', v_bytes, p_max_bytes),
            hint = 'ai.settings.max_input_bytes';
  end if;
  if p_messages @? c_deep or p_params @? c_deep or p_metadata @? c_deep then
    raise exception '% goes too deep', case when p_messages @? c_deep then 'messages' when p_params @? c_deep then 'params' else 'metadata' end
      using errcode = 'PT400', detail = 'It has more than 900 levels of arrays and objects.', hint = 'What lies deeper can be given as text, in a string.';
  end if;
  if p_prompt is not null and p_prompt !~ '[^[:space:]]' then
    raise exception 'the prompt is empty' using errcode = 'PT400';
  end if;
  if p_messages is not null then
    if p_kind in ('embedding', 'completion', 'classification', 'rerank', 'speech') then
      raise exception 'the kind % takes a prompt, not messages', p_kind using errcode = 'PT400';
    end if;
    perform ai.check_messages(p_messages);
  end if;
  if p_params <> '{}' then
    perform ai.check_params(p_params);
  end if;
  if p_kind in ('rerank', 'classification') or p_kind = 'chat' and p_params ? 'response_format' then
    perform ai.check_kind_params(p_kind, p_params);
  end if;
  if p_deadline_ms is not null and p_deadline_ms not between 1 and (case p_priority when 'batch' then 2073600000 else 86400000 end) then
    raise exception 'deadline_ms must be from 1 to 86400000' using errcode = 'PT400', detail = 'Up to 2073600000 with priority batch.';
  end if;
  if p_stream and p_priority = 'batch' then
    raise exception 'what has priority batch is not streamed' using errcode = 'PT400', hint = 'It is answered within a day: priority low is answered at once.';
  end if;
  if p_run_after > ai.now() + interval '1 year' then
    raise exception 'run_after must be within a year' using errcode = 'PT400';
  end if;
  if p_stream and p_kind not in ('chat', 'completion') then
    raise exception 'only a chat or a completion can be streamed, not the kind %', p_kind using errcode = 'PT400';
  end if;
  if p_model is not null and p_profile is not null then
    raise exception 'a generation names a model or a profile, not both' using errcode = 'PT400';
  end if;
  if p_cache not in ('off', 'exact', 'semantic', 'refresh') then
    raise exception 'cache is off, exact, semantic or refresh' using errcode = 'PT400';
  end if;
  if cardinality(p_cache_tags) > 20 or exists (select from unnest(p_cache_tags) t where t is null or length(t) not between 1 and 100) then
    raise exception 'cache_tags takes at most 20 tags of 1 to 100 characters' using errcode = 'PT400';
  end if;
end
$$;
comment on function ai.check_input(text, text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, jsonb, text, text[], integer) is
  'Raises PT400 or PT413 for input that contradicts itself or is too long.';

-- What a new generation becomes, a row of ai.generations: who asks is stamped on, and so on through all that may concern it. Null: it is not inserted, for its idempotency key
-- stands for another. Raises PT400 invalid, PT401 nobody, PT403 not allowed, PT404 no such model, profile,
-- template, collection, conversation or batch, PT409 idempotency key reused with other input, PT413 too long, PT503 switched off. What a guardrail
-- refuses and what a cache answers is inserted with its end. With an idempotency key it takes that key's
-- row lock until the transaction ends, so that of two inserts at once the second waits for the first.
create or replace function ai.admit_question(p_question record) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  new        record := p_question;
  c_hint constant text := 'Who asks on behalf of a member names an enabled row of ai.members by user_id, and tenant_id where it is not the own.';
  c_batch_ms constant integer := 259200000;  -- a provider batch takes up to a day, and what is left of one is tried again after it
  v_settings record;
  v_me       record;
  v_named    boolean;
  v_bound    boolean := false;
  v_given    jsonb;  -- with an idempotency key: as the app gave it
  v_template record;
  v_collection text;  -- of the template
  v_guarded  record;
  v_hit      record;
  v_stages   jsonb := '[]';
  v_cacheable boolean := true;
begin
  v_named := new.tenant_id is not null or new.user_id is not null;
  if new.purpose is null then
    -- Of a bound login the same probe as in ai.identity(), without the rest of it: this is asked for every row.
    if coalesce(current_setting('ai.session', true), '') = '' then
      select b.tenant_id, b.user_id, b.member_permissions as permissions, null::uuid as api_key_id into v_me
        from ai.role_bindings b where b.role_name = session_user and b.member_enabled;
      v_bound := found;
    end if;
    if not v_bound then
      select i.tenant_id, i.user_id, i.permissions, i.api_key_id into v_me from ai.identity() i;
    end if;
    -- Whose tenant this is comes first: what is raised further down tells of its rows, and row-level security refuses only after this trigger.
    if v_me.tenant_id is null and (not v_named or not ai.acts_for_all()) then
      raise exception 'this session is nobody: no generation can be asked for'
        using errcode = 'PT401', detail = (select w.why from ai.whoami() w),
              hint = 'insert into ai.role_bindings (role_name, tenant_id, user_id) values (…), or come with an API key or the JWT of a member.';
    end if;
    if (new.tenant_id <> v_me.tenant_id) is true and not ai.acts_for_all() then  -- `null and` would ask who acts of every row
      raise exception 'no such member in this tenant' using errcode = 'PT403', hint = c_hint;
    end if;
    if v_me.tenant_id is not null then
      if (v_me.permissions && array['inference:execute', '*']) is not true then
        raise exception 'the permission inference:execute is needed to ask' using errcode = 'PT403', hint = 'select * from ai.whoami();';
      end if;
      if new.user_id <> v_me.user_id and (v_me.permissions && array['inference:delegate', '*']) is not true then
        raise exception 'the permission inference:delegate is needed to ask on behalf of another member' using errcode = 'PT403', hint = 'select * from ai.whoami();';
      end if;
      new.tenant_id := coalesce(new.tenant_id, v_me.tenant_id);
      new.user_id := coalesce(new.user_id, v_me.user_id);
      new.api_key_id := v_me.api_key_id;
    end if;
  end if;
  if v_named then  -- by itself, because a condition with a query in it is a query, also where nothing was named
    if not exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id
                    where m.tenant_id = new.tenant_id and m.user_id = new.user_id and m.enabled and t.enabled) then
      raise exception 'no such member in this tenant' using errcode = 'PT403', hint = c_hint;
    end if;
  end if;
  if new.purpose is not null then  -- made by Martlet itself, for a generation or a document that has passed all this
    new.deadline_ms := coalesce(new.deadline_ms, case when new.priority = 'batch' and new.batch_id is null then c_batch_ms end);
    return new;
  end if;
  -- Which of the stages below there may be for this tenant.
  select s.max_input_bytes, s.accepting, s.default_profile,
         array(select p.name from ai.policies_in_use p where p.scope = new.tenant_id or p.scope = '00000000-0000-0000-0000-000000000000') as policies
    into v_settings
    from ai.settings s;
  if not v_settings.accepting then
    raise exception 'no generations are taken at present' using errcode = 'PT503', hint = 'ai.settings.accepting';
  end if;
  if new.idempotency_key is not null then
    v_given := jsonb_build_array(new.user_id, new.kind, new.prompt, new.messages, new.model, new.profile, new.params, new.stream, new.priority,
                                 extract(epoch from new.run_after), new.deadline_ms, new.metadata)
      || case when coalesce(new.collection, new.template, new.cache, new.conversation_id::text, new.batch_id::text) is null and not new.replay then '[]'
              else jsonb_build_array(new.collection, new.template, new.cache, new.conversation_id, new.batch_id, new.replay) end
      || case when new.tools is null then '[]' else jsonb_build_array(new.tools, new.max_steps) end;
    if ai.key_stands_for(new.tenant_id, new.idempotency_key, array[v_given]) then
      return null;
    end if;
  end if;

  -- Most inserts are a prompt and little else, in which there is nothing to find fault with.
  if (new.kind = 'chat' and ascii(new.prompt) between 33 and 126 and octet_length(new.prompt) <= v_settings.max_input_bytes
      and new.params = '{}' and new.priority in ('high', 'normal', 'low') and (new.model is null or new.profile is null) and new.messages is null
      and new.run_after is null and new.deadline_ms is null and new.metadata is null and new.cache is null and new.cache_tags is null) is not true then
    perform ai.check_input(new.kind, new.prompt, new.messages, new.model, new.profile, new.params, new.stream, new.priority, new.run_after,
                           new.deadline_ms, new.metadata, new.cache, new.cache_tags, v_settings.max_input_bytes);
    if new.messages @? '$[*].content[*] ? (@.type() == "object" && !(@.type == "text"))' then
      new.input_artifacts := ai.check_files(new.tenant_id, new.user_id, new.messages);
    end if;
    v_cacheable := new.kind not in ('image', 'speech');  -- their answers are files
  end if;
  if new.template is not null or new.collection is not null or new.conversation_id is not null or new.batch_id is not null then
    if new.kind <> 'chat' and (new.template is not null or new.collection is not null or new.conversation_id is not null) then
      raise exception 'only a chat takes a template, a collection or a conversation' using errcode = 'PT400';
    end if;
    -- Not for the template's own, which comes below: a template may answer those who cannot read the documents themselves.
    if new.collection is not null and v_me.tenant_id is not null and (v_me.permissions && array['document:read', '*']) is not true then
      raise exception 'the permission document:read is needed to ask from a collection' using errcode = 'PT403', hint = 'select * from ai.whoami();';
    end if;
    if new.template is not null then
      select * into v_template from ai.resolve_template(new.tenant_id, new.template);
      if v_template.found is not true then
        raise exception 'there is no prompt template %', new.template using errcode = 'PT404', hint = 'select name, version from ai.prompt_templates;';
      end if;
      new.template_version := v_template.version;
      v_collection := v_template.collection;
      new.collection := coalesce(new.collection, v_collection);
      new.context_sources := nullif(v_template.context_sources, '{}');
      v_cacheable := v_template.cacheable;
    end if;
    if new.collection is not null then
      new.query_model := ai.collection_model(new.tenant_id, new.collection);
      if new.query_model is null then
        raise exception 'there is no collection %', new.collection using errcode = 'PT404', hint = 'select name from ai.collections;';
      end if;
    end if;
    if new.conversation_id is not null then
      if not exists (select from ai.conversations c where c.tenant_id = new.tenant_id and c.id = new.conversation_id and c.user_id = new.user_id) then
        raise exception 'there is no conversation %', new.conversation_id using errcode = 'PT404', hint = 'select ai.start_conversation();';
      end if;
      v_cacheable := false;
    end if;
    if new.batch_id is not null then
      perform ai.check_batch(new.tenant_id, new.user_id, new.batch_id);
    end if;
  end if;

  if new.model is null and new.profile is null then
    new.profile := case when 'profile_rules' = any (v_settings.policies)
                        then ai.choose_profile(new.tenant_id, new.kind, length(ai.question_text(new.prompt, new.messages)), new.metadata)
                        else v_settings.default_profile end;
  end if;
  if new.idempotency_key is not null and not ai.take_key(new.tenant_id, new.idempotency_key, new.id, v_given, v_collection) then
    return null;
  end if;

  if new.tools is not null then
    new.params := ai.admit_tools(new.tenant_id, new.kind, new.tools, new.max_steps, new.params);
    v_cacheable := false;
  end if;

  if 'guardrails' = any (v_settings.policies) and ai.guards(new.tenant_id, new.kind, 'input') then
    select * into v_guarded from ai.guard_input(new.tenant_id, new.id, new.user_id, new.kind, new.prompt, new.messages);
    v_stages := v_stages || coalesce(v_guarded.stages, '[]');
    if v_guarded.rejected is not null then
      new.status := 'rejected';
      new.error := v_guarded.rejected;
      new.stages := v_stages;
      new.last_seq := 1;
      new.latency_ms := 0;
      new.finished_at := new.created_at;
      return new;
    end if;
    new.prompt := v_guarded.prompt;
    new.messages := v_guarded.messages;
    new.judge_ids := nullif(array(select ai.uuid_v7() from ai.moderators(new.tenant_id, new.kind)), '{}');
    -- An answer to a text that a guardrail changed or doubted is nobody else's answer.
    v_cacheable := v_cacheable and not v_stages @? '$[*] ? (@.stage == "guardrails" && @.result != "passed")';
  end if;

  if 'cache_policies' = any (v_settings.policies) and v_cacheable and new.context_sources is null and new.cache is distinct from 'off' then
    select * into v_hit
      from ai.find_exact(new.tenant_id, new.user_id, new.kind, new.prompt, new.messages, new.model, new.profile, new.params, new.template,
                         new.template_version, new.collection, new.cache);
    new.cache_key := v_hit.cache_key;
    if v_hit.stage is not null then
      v_stages := v_stages || v_hit.stage;
    end if;
    if v_hit.hit and new.judge_ids is null and (new.run_after is null or new.run_after <= ai.now()) then
      new.status := 'succeeded';
      new.cached := true;
      new.saved := v_hit.saved;
      new.output := v_hit.output;
      new.output_message := v_hit.output_message;
      new.embedding := v_hit.embedding::ai.embedding;
      new.finish_reason := v_hit.finish_reason;
      new.sources := v_hit.sources;
      new.provider := v_hit.provider;
      new.model_used := v_hit.model_used;
      new.input_tokens := 0;
      new.cached_tokens := 0;
      new.output_tokens := 0;
      new.cost := 0;
      new.last_seq := case when new.stream then 2 else 1 end;
      new.latency_ms := (extract(epoch from clock_timestamp() - new.created_at) * 1000)::integer;
      new.finished_at := new.created_at;
      new.stages := v_stages;
      return new;
    end if;
    new.query_model := coalesce(new.query_model, v_hit.vector_model);
  end if;

  -- That there is a model at all is checked once for the statement (ai.enqueue_generations()).
  if new.query_model is not null and ai.question_text(new.prompt, new.messages) ~ '[^[:space:]]'
     and ai.target_model(new.tenant_id, 'embedding', new.query_model, null, 1) is not null then
    new.query_id := ai.uuid_v7();
  end if;
  new.stages := nullif(v_stages, '[]');
  if new.deadline_ms is null then  -- not before the idempotency key has read what the app gave
    new.deadline_ms := case when new.batch_id is not null then 2147483647 when new.priority = 'batch' then c_batch_ms end;  -- 24 days
  end if;
  return new;
end
$$;
comment on function ai.admit_question(record) is
  'Stamps identity on a generation, checks its input, honours its idempotency key, applies guardrails, answers from the exact cache.';

-- Raises 23514, as a constraint would, for a word of a generation that is none. A constraint would cost every claim and every end as well.
create or replace function ai.check_words(p_kind text, p_status text, p_priority text, p_cache text, p_purpose text) returns void
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if ai.is_generation(p_kind, p_status, p_priority, p_cache, p_purpose) is not true then
    raise exception 'kind, status, priority, cache or purpose is none'
      using errcode = 'check_violation', schema = 'ai', table = 'generations',
            detail = concat_ws(', ', p_kind, p_status, p_priority, p_cache, p_purpose);
  end if;
end
$$;
comment on function ai.check_words(text, text, text, text, text) is 'Raises 23514 unless kind, status, priority, cache and purpose of a generation are some that there are.';

-- Trigger AFTER UPDATE of words that nobody but an owner ever changes.
create or replace function ai.keep_words() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform ai.check_words(new.kind, new.status, new.priority, new.cache, new.purpose);
  return null;
end
$$;
comment on function ai.keep_words() is 'Trigger: a changed kind, priority, cache or purpose is one that there is.';

-- Trigger BEFORE INSERT, each row: raises what ai.admit_question() does. Short, because each session reads all of it before its first insert.
create or replace function ai.admit_generation() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Nearly every insert is by a login that is bound to a member, and is a prompt for a named model and nothing else: then there is
  -- nothing to find fault with, and one look tells who asks and that no guardrail, cache or rule concerns the tenant. What ai.settings
  -- says to it is asked once a statement (ai.enqueue_generations()).
  if num_nonnulls(new.tenant_id, new.user_id, new.purpose, new.messages, new.profile, new.run_after, new.deadline_ms, new.metadata, new.idempotency_key, new.template,
                  new.collection, new.conversation_id, new.batch_id, new.cache, new.cache_tags, new.tools, new.api_key_id) = 0
     and ascii(new.prompt) between 33 and 126 and octet_length(new.prompt) <= 65536 and new.model is not null
     and new.status = 'queued' and new.kind = 'chat' and new.params = '{}' and new.priority in ('high', 'normal', 'low')
     and new.stream is not null and new.replay is not null
     and coalesce(current_setting('ai.session', true), '') = '' then
    select b.tenant_id, b.user_id into new.tenant_id, new.user_id from ai.role_bindings b where b.role_name = session_user and b.asks_plainly;
    if found then
      return new;
    end if;
  end if;

  if new.status <> 'queued' or new.purpose is not null then  -- of the rest ai.admit_question() says more
    perform ai.check_words(new.kind, new.status, new.priority, new.cache, new.purpose);
  end if;
  if new.status <> 'queued' then
    return new;  -- a restore: only an owner can have written that column
  end if;
  -- Clients that write every column write null where they mean nothing: what the column has where it is left out.
  if num_nulls(new.kind, new.params, new.stream, new.priority, new.replay) > 0 then
    new.kind := coalesce(new.kind, 'chat');
    new.params := coalesce(new.params, '{}');
    new.stream := coalesce(new.stream, false);
    new.priority := coalesce(new.priority, 'normal');
    new.replay := coalesce(new.replay, false);
  end if;
  return ai.admit_question(new);
end
$$;
comment on function ai.admit_generation() is 'Trigger: admits a generation, or raises why not.';

revoke execute on function ai.check_messages(jsonb), ai.check_params(jsonb), ai.question_text(text, jsonb),
  ai.check_input(text, text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, jsonb, text, text[], integer),
  ai.admit_question(record), ai.check_words(text, text, text, text, text), ai.keep_words(), ai.admit_generation() from public;

-- objects

create or replace trigger admit before insert on ai.generations
  for each row execute function ai.admit_generation();
create or replace trigger keep_words after update of kind, priority, cache, purpose on ai.generations
  for each row execute function ai.keep_words();

drop policy if exists visible on ai.generations;
-- "is not false": ai.only_user() is null for who sees all; planned for less than coalesce(…, user_id), which means the same.
create policy visible on ai.generations for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.only_user())) is not false);
drop policy if exists own on ai.generations;
create policy own on ai.generations for insert to ai_user
  with check (tenant_id = (select ai.tenant_id()));

grant select on ai.generations to ai_user;
grant insert (kind, prompt, messages, model, profile, params, stream, priority, run_after, deadline_ms, idempotency_key, metadata,
              collection, template, cache, cache_tags, conversation_id, batch_id, replay, tools, max_steps)
  on ai.generations to ai_user;
-- Someone who acts for others names them; row-level security still holds an admin to the own tenant.
grant insert (tenant_id, user_id) on ai.generations to ai_admin;
