-- What happens inside the INSERT of a generation: who asks is stamped on, the input is checked, an idempotency key is
-- honoured. A row that an operator restores (one that already has a status other than queued) passes untouched.

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
    elsif v_key in ('max_tokens', 'max_completion_tokens', 'n', 'dimensions', 'top_logprobs')
          and (v_type <> 'number' or v_text::numeric <> trunc(v_text::numeric) or v_text::numeric not between 0 and 100000000
               or (v_text::numeric = 0 and v_key <> 'top_logprobs')) then
      raise exception 'params.% must be a whole number above 0', v_key using errcode = 'PT400';
    elsif v_key = 'n' and v_text::numeric <> 1 then
      raise exception 'params.n must be 1' using errcode = 'PT400', hint = 'Insert one row for each answer.';
    elsif v_key in ('temperature', 'top_p', 'frequency_penalty', 'presence_penalty') and v_type <> 'number' then
      raise exception 'params.% must be a number', v_key using errcode = 'PT400';
    elsif v_key = 'temperature' and v_text::numeric not between 0 and 2 then
      raise exception 'params.temperature must be from 0 to 2' using errcode = 'PT400';
    elsif v_key = 'tools' and v_type <> 'array' then
      raise exception 'params.tools must be an array' using errcode = 'PT400';
    elsif v_key in ('response_format', 'metadata') and v_type <> 'object' then
      raise exception 'params.% must be an object', v_key using errcode = 'PT400';
    end if;
  end loop;
end
$$;
comment on function ai.check_params(jsonb) is 'Raises PT400 for parameters that contradict the row or have the wrong type; unknown ones pass.';

-- Trigger BEFORE INSERT, each row. Raises PT400 invalid, PT401 nobody, PT403 not allowed, PT404 no such model or
-- profile, PT409 idempotency key reused with other input, PT413 too long. With an idempotency key it takes that key's
-- row lock until the transaction ends, so that of two inserts at once the second waits for the first.
create or replace function ai.admit_generation() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_settings record;
  v_named    boolean;
  v_bytes    bigint;
  v_hash     bytea;
  v_known    record;
begin
  if new.status <> 'queued' then
    return new;  -- a restore: only an owner can have written that column
  end if;

  v_named := new.tenant_id is not null or new.user_id is not null;
  if new.tenant_id is null then
    select i.tenant_id, coalesce(new.user_id, i.user_id) into new.tenant_id, new.user_id from ai.identity() i;
    if new.tenant_id is null then
      raise exception 'this session is nobody: no generation can be asked for'
        using errcode = 'PT401', detail = (select w.why from ai.whoami() w),
              hint = 'insert into ai.role_bindings (role_name, tenant_id, user_id) values (…), or come with the JWT of a member.';
    end if;
  end if;
  if v_named and not exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id
                              where m.tenant_id = new.tenant_id and m.user_id = new.user_id and m.enabled and t.enabled) then
    raise exception 'no such member in this tenant'
      using errcode = 'PT403', hint = 'Who asks on behalf of a member names an enabled row of ai.members by user_id, and tenant_id where it is not the own.';
  end if;

  if new.kind not in ('chat', 'embedding') or new.priority not in ('high', 'normal', 'low') then
    raise exception 'kind is chat or embedding, priority is high, normal or low' using errcode = 'PT400';
  end if;
  select max_input_bytes, default_profile, deadline_ms into v_settings from ai.settings;

  if (new.prompt is null) = (new.messages is null) then
    raise exception 'a generation needs either prompt or messages' using errcode = 'PT400';
  end if;
  v_bytes := octet_length(coalesce(new.prompt, '')) + coalesce(octet_length(new.messages::text), 0)
           + coalesce(octet_length(nullif(new.params, '{}')::text), 0) + coalesce(octet_length(new.metadata::text), 0);
  if v_bytes > v_settings.max_input_bytes then
    raise exception 'the input is too long'
      using errcode = 'PT413', detail = format('%s bytes; the limit is %s.', v_bytes, v_settings.max_input_bytes),
            hint = 'ai.settings.max_input_bytes';
  end if;
  if new.prompt is not null and new.prompt !~ '[^[:space:]]' then
    raise exception 'the prompt is empty' using errcode = 'PT400';
  end if;
  if new.messages is not null then
    if new.kind = 'embedding' then
      raise exception 'an embedding takes a prompt, not messages' using errcode = 'PT400';
    end if;
    perform ai.check_messages(new.messages);
  end if;
  if new.params <> '{}' then
    perform ai.check_params(new.params);
  end if;
  if new.deadline_ms is not null and new.deadline_ms not between 1 and 86400000 then
    raise exception 'deadline_ms must be from 1 to 86400000' using errcode = 'PT400';
  end if;
  if new.run_after > ai.now() + interval '1 year' then
    raise exception 'run_after must be within a year' using errcode = 'PT400';
  end if;
  if new.kind = 'embedding' and new.stream then
    raise exception 'an embedding cannot be streamed' using errcode = 'PT400';
  end if;

  if new.model is not null and new.profile is not null then
    raise exception 'a generation names a model or a profile, not both' using errcode = 'PT400';
  end if;
  if new.model is null and new.profile is null then
    new.profile := v_settings.default_profile;
  end if;
  if ai.target_model(new.tenant_id, new.kind, new.model, new.profile, 1) is null then
    raise exception 'there is no % % for kind %', case when new.model is null then 'profile' else 'model' end, coalesce(new.model, new.profile), new.kind
      using errcode = 'PT404',
            detail = 'It does not exist for this tenant, is not of this kind, or is switched off.',
            hint = case when new.model is null then 'select profile, kind from ai.routes where enabled;' else 'select name, kind from ai.models where enabled;' end;
  end if;

  if new.idempotency_key is not null then
    if length(new.idempotency_key) not between 1 and 255 then
      raise exception 'idempotency_key must have 1 to 255 characters' using errcode = 'PT400';
    end if;
    v_hash := sha256(convert_to(jsonb_build_array(new.user_id, new.kind, new.prompt, new.messages, new.model, new.profile, new.params,
      new.stream, new.priority, extract(epoch from new.run_after), new.deadline_ms, new.metadata)::text, 'UTF8'));
    insert into ai.idempotency_keys (tenant_id, key, generation_id, input_hash)
    values (new.tenant_id, new.idempotency_key, new.id, v_hash)
    on conflict do nothing;
    if not found then
      select k.generation_id, k.input_hash into v_known
        from ai.idempotency_keys k where k.tenant_id = new.tenant_id and k.key = new.idempotency_key;
      if v_known.input_hash is distinct from v_hash then
        raise exception 'this idempotency key was used with other input'
          using errcode = 'PT409', hint = 'A key stands for one question by one user. Take a new key.';
      end if;
      return null;
    end if;
  end if;
  return new;
end
$$;
comment on function ai.admit_generation() is 'Trigger: stamps identity on a generation, checks its input, honours its idempotency key.';

-- The generation that a key of the caller's tenant stands for, if it is the caller's; else null.
create or replace function ai.idempotent_generation(p_key text) returns uuid
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select k.generation_id
    from ai.identity() i
    join ai.idempotency_keys k on k.tenant_id = i.tenant_id and k.key = p_key
    join ai.generations g on g.tenant_id = k.tenant_id and g.id = k.generation_id and g.user_id = i.user_id
$$;
comment on function ai.idempotent_generation(text) is 'Id of the caller''s generation that was inserted with this idempotency key; null: none.';

revoke execute on function ai.check_messages(jsonb), ai.check_params(jsonb), ai.admit_generation(), ai.idempotent_generation(text) from public;
grant execute on function ai.idempotent_generation(text) to ai_user;

-- objects

create or replace trigger admit before insert on ai.generations
  for each row execute function ai.admit_generation();

drop policy if exists visible on ai.generations;
create policy visible on ai.generations for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.sees_tenant())));
drop policy if exists own on ai.generations;
create policy own on ai.generations for insert to ai_user
  with check (tenant_id = (select ai.tenant_id()));

grant select on ai.generations to ai_user;
grant insert (kind, prompt, messages, model, profile, params, stream, priority, run_after, deadline_ms, idempotency_key, metadata)
  on ai.generations to ai_user;
-- Someone who acts for others names them; row-level security still holds an admin to the own tenant.
grant insert (tenant_id, user_id) on ai.generations to ai_admin;
