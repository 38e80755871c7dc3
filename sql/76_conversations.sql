-- Conversations. A generation that names one appends its prompt to it when it is inserted, and its answer when it has
-- succeeded; ai.chat() is that INSERT with what the conversation asks for.
--
-- Numbers are given under the lock of the conversation's row, so that they have no gaps: two transactions that chat in the
-- same conversation follow one another, and the second waits until the first has ended. A worker waits for nobody: an answer
-- that finds its conversation locked is put down in ai.unrecorded_answers and appended by whoever comes next.

-- Starts a conversation of the caller and gives its id. Raises PT401 for nobody, PT403, PT400 for a model together with a profile.
-- Whether model, template and collection exist is seen when something is asked.
create or replace function ai.start_conversation(
  title text default null, template text default null, model text default null, profile text default null, collection text default null,
  metadata jsonb default null)
returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_who record;
  v_id  uuid;
begin
  select * into v_who from ai.require('inference:execute');
  if model is not null and profile is not null then
    raise exception 'a conversation names a model or a profile, not both' using errcode = 'PT400';
  end if;
  if length(title) not between 1 and 500 then
    raise exception 'a title has 1 to 500 characters' using errcode = 'PT400';
  end if;
  if octet_length(concat(template, model, profile, collection, metadata)) > 100000 then
    raise exception 'the conversation is too long' using errcode = 'PT413', detail = 'Its columns take 100000 bytes together.';
  end if;
  insert into ai.conversations as c (tenant_id, user_id, title, template, model, profile, collection, metadata)
  values (v_who.tenant_id, v_who.user_id, title, template, model, profile, collection, metadata)
  returning c.id into v_id;
  return v_id;
end
$$;
comment on function ai.start_conversation(text, text, text, text, text, jsonb) is 'Starts a conversation and gives its id. Its generations are asked with the given template, model or profile, and collection.';

-- Says something in a conversation of the caller's own, and gives the id of the generation that answers. Names that are given
-- count instead of the conversation's. Raises PT404 for a conversation that is not the caller's, and what the INSERT raises.
create or replace function ai.chat(
  conversation uuid, text text, stream boolean default false, params jsonb default '{}', model text default null, profile text default null,
  template text default null, collection text default null, priority text default 'normal', deadline_ms integer default null,
  idempotency_key text default null, metadata jsonb default null)
returns uuid
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_with record;
  v_id   uuid;
begin
  select c.model, c.profile, c.template, c.collection into v_with from ai.conversations c where c.tenant_id = (select ai.tenant_id()) and c.id = conversation;
  if not found then
    raise exception 'there is no conversation %', conversation using errcode = 'PT404', hint = 'select ai.start_conversation();';
  end if;
  insert into ai.generations as g (prompt, conversation_id, model, profile, template, collection, stream, params, priority, deadline_ms, idempotency_key, metadata)
  values (text, conversation, case when profile is null then coalesce(model, v_with.model) else model end,
          case when model is null then coalesce(profile, v_with.profile) else profile end,
          coalesce(template, v_with.template), coalesce(collection, v_with.collection), stream, params, priority, deadline_ms, idempotency_key, metadata)
  returning g.id into v_id;
  return coalesce(v_id, ai.idempotent_generation(idempotency_key));
end
$$;
comment on function ai.chat(uuid, text, boolean, jsonb, text, text, text, text, text, integer, text, jsonb) is
  'Says something in a conversation; gives the id of the generation that answers with what was said before in mind.';

-- Appends the answers of a conversation that could not be appended when they came. The caller holds the conversation's lock.
create or replace function ai.append_unrecorded(p_tenant uuid, p_conversation uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one record;
begin
  for v_one in
    with taken as (
      delete from ai.unrecorded_answers u where u.tenant_id = p_tenant and u.conversation_id = p_conversation returning u.generation_id
    )
    select distinct t.generation_id, g.user_id, g.output
      from taken t join ai.generations g on g.tenant_id = p_tenant and g.id = t.generation_id
     order by t.generation_id
  loop
    perform ai.append_message(p_tenant, p_conversation, v_one.user_id, 'assistant', coalesce(v_one.output, ''), v_one.generation_id);
  end loop;
end
$$;
comment on function ai.append_unrecorded(uuid, uuid) is 'Appends what ai.unrecorded_answers holds for a conversation.';

-- Gives a message the next number. The caller holds the conversation's lock, so that this statement's snapshot knows of
-- every message. Does nothing where the conversation is somebody else's, or has the message.
create or replace function ai.append_message(p_tenant uuid, p_conversation uuid, p_user text, p_role text, p_content text, p_generation uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_seq integer;
begin
  update ai.conversations c set last_seq = c.last_seq + 1
   where c.tenant_id = p_tenant and c.id = p_conversation and c.user_id = p_user
     and not exists (select from ai.messages m where m.tenant_id = p_tenant and m.generation_id = p_generation and m.role = p_role)
  returning c.last_seq into v_seq;
  if found then
    insert into ai.messages (tenant_id, conversation_id, seq, user_id, role, content, generation_id, created_at)
    values (p_tenant, p_conversation, v_seq, p_user, p_role, p_content, p_generation, ai.now());
  end if;
end
$$;
comment on function ai.append_message(uuid, uuid, text, text, text, uuid) is 'Appends a message to a conversation whose lock is held.';

-- For each new generation that names a conversation: appends the text as guardrails left it. What they refused is
-- not said in the conversation. Waits for whoever holds the conversation.
create or replace function ai.append_question(p_tenant uuid, p_conversation uuid, p_user text, p_id uuid, p_prompt text, p_messages jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_text text := p_prompt;
begin
  if v_text is null then
    select case jsonb_typeof(m.value -> 'content')
             when 'string' then m.value ->> 'content'
             when 'array' then (select string_agg(c.value ->> 'text', E'\n' order by c.ordinality)
                                  from jsonb_array_elements(m.value -> 'content') with ordinality c where c.value ->> 'type' = 'text') end
      into v_text
      from jsonb_array_elements(p_messages) with ordinality m
     where m.value ->> 'role' = 'user' order by m.ordinality desc limit 1;
  end if;
  perform from ai.conversations c where c.tenant_id = p_tenant and c.id = p_conversation for no key update;
  perform ai.append_unrecorded(p_tenant, p_conversation);
  perform ai.append_message(p_tenant, p_conversation, p_user, 'user', coalesce(v_text, ''), p_id);
end
$$;
comment on function ai.append_question(uuid, uuid, text, uuid, text, jsonb) is 'Appends the text of a new generation to its conversation.';

-- Called after a generation has succeeded. Waits for nobody; twice does no harm.
create or replace function ai.record_answer(p_tenant uuid, p_id uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one record;
begin
  select g.conversation_id, g.user_id, g.output into v_one
    from ai.generations g where g.tenant_id = p_tenant and g.id = p_id and g.status = 'succeeded' and g.conversation_id is not null;
  if not found then
    return;
  end if;
  perform from ai.conversations c where c.tenant_id = p_tenant and c.id = v_one.conversation_id for no key update skip locked;
  if found then
    perform ai.append_unrecorded(p_tenant, v_one.conversation_id);
    perform ai.append_message(p_tenant, v_one.conversation_id, v_one.user_id, 'assistant', coalesce(v_one.output, ''), p_id);
  elsif exists (select from ai.conversations c where c.tenant_id = p_tenant and c.id = v_one.conversation_id) then
    insert into ai.unrecorded_answers (tenant_id, conversation_id, generation_id) values (p_tenant, v_one.conversation_id, p_id);
  end if;
end
$$;
comment on function ai.record_answer(uuid, uuid) is 'Appends the answer of a generation to its conversation.';

-- For ai.worker_maintain(): appends the answers that were put down, but for those whose conversation is still held. Gives how
-- many conversations it looked after. Waits for nobody.
create or replace function ai.record_unrecorded() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_one  record;
  v_done integer := 0;
begin
  if not exists (select from ai.unrecorded_answers) then
    return 0;
  end if;
  for v_one in select distinct u.tenant_id, u.conversation_id from (select * from ai.unrecorded_answers order by id limit 1000) u loop
    begin
      perform from ai.conversations c where c.tenant_id = v_one.tenant_id and c.id = v_one.conversation_id for no key update skip locked;
      if found or not exists (select from ai.conversations c where c.tenant_id = v_one.tenant_id and c.id = v_one.conversation_id) then
        perform ai.append_unrecorded(v_one.tenant_id, v_one.conversation_id);
        v_done := v_done + 1;
      end if;
    exception when others then
      -- What is wrong with one must not keep the rest of maintenance from being done. What only says `again` goes on.
      if ai.says_again(sqlstate) then
        raise;
      end if;
      raise warning 'answers of conversation % cannot be recorded: %', v_one.conversation_id, sqlstate;
    end;
  end loop;
  return v_done;
end
$$;
comment on function ai.record_unrecorded() is 'Appends answers that came while their conversation was held; gives of how many conversations.';

-- Deletes a conversation of the caller's own, or with person:forget any of the tenant, with its messages. The generations stay: they are
-- the books. Raises PT401, PT403, PT404. Waits for whoever holds the conversation.
create or replace function ai.delete_conversation(conversation uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_who record;
begin
  select * into v_who from ai.require('inference:execute', 'person:forget');
  delete from ai.conversations c
   where c.tenant_id = v_who.tenant_id and c.id = conversation and (c.user_id = v_who.user_id or v_who.permissions && array['person:forget', '*']);
  if not found then
    raise exception 'there is no conversation %', conversation using errcode = 'PT404';
  end if;
  delete from ai.unrecorded_answers u where u.tenant_id = v_who.tenant_id and u.conversation_id = conversation;
end
$$;
comment on function ai.delete_conversation(uuid) is 'Deletes a conversation and its messages; its generations stay.';

revoke execute on function
  ai.start_conversation(text, text, text, text, text, jsonb),
  ai.chat(uuid, text, boolean, jsonb, text, text, text, text, text, integer, text, jsonb),
  ai.append_unrecorded(uuid, uuid), ai.append_message(uuid, uuid, text, text, text, uuid), ai.append_question(uuid, uuid, text, uuid, text, jsonb),
  ai.record_answer(uuid, uuid), ai.record_unrecorded(), ai.delete_conversation(uuid) from public;
grant execute on function
  ai.start_conversation(text, text, text, text, text, jsonb),
  ai.chat(uuid, text, boolean, jsonb, text, text, text, text, text, integer, text, jsonb),
  ai.delete_conversation(uuid) to ai_user;

-- objects

drop policy if exists visible on ai.conversations;
create policy visible on ai.conversations for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and user_id = coalesce((select ai.only_user()), user_id));
drop policy if exists visible on ai.messages;
create policy visible on ai.messages for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and user_id = coalesce((select ai.only_user()), user_id));
grant select on ai.conversations, ai.messages to ai_user;
