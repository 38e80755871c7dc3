-- Conversations: what is said, in which order, by whom, and what of it joins the next prompt.
begin;
\ir setup/world.sql
select no_plan();

create function t.said(p_conversation uuid) returns text language sql stable as $$
  select string_agg(format('%s %s: %s', m.seq, m.role, m.content), ' | ' order by m.seq) from ai.messages m where m.conversation_id = p_conversation
$$;
-- What is sent for a generation, roles and texts.
create function t.sent(p_id uuid) returns text language sql stable as $$
  select string_agg(format('%s: %s', m.value ->> 'role', m.value ->> 'content'), ' | ' order by m.ordinality)
    from ai.assemble_prompt((t.generation(p_id)).tenant_id, p_id, null, null) a cross join lateral jsonb_array_elements(a.messages) with ordinality m
$$;
create function t.answer(p_worker uuid, p_id uuid, p_output text default 'An answer.') returns text language sql as $$
  select t.settle(p_worker, p_id, (t.generation(p_id)).attempts, 'succeeded', jsonb_build_object('output', p_output, 'usage', '{"input": 1, "output": 1}'::jsonb))
$$;
select t.worker() as worker \gset

-- 1. Said, answered, said again
set local session authorization mtap_ann;
select ai.start_conversation('Birds', model => 'mtap/one', metadata => '{"a": 1}') as talk \gset
select ai.chat(:'talk', 'What is a martlet?') as one \gset
select count(*) as own from ai.messages \gset
reset session authorization;
select is(:'own'::text, '1', 'the text is a message');
select is(t.said(:'talk'), '1 user: What is a martlet?', 'of the user, with number 1');
select is((t.generation(:'one')).conversation_id, :'talk'::uuid, 'and a generation of the conversation');
select is((t.generation(:'one')).model, 'mtap/one', 'asked with its model');
select is(t.sent(:'one'), null, 'the first question is sent as it is');
select is((select messages from (select c.request -> 'messages' as messages from t.claim(:'worker') c) c), '[{"role": "user", "content": "What is a martlet?"}]', 'to the provider');
select t.answer(:'worker', :'one', 'A bird without feet.') \g /dev/null
select is(t.said(:'talk'), '1 user: What is a martlet? | 2 assistant: A bird without feet.', 'the answer follows');
select ai.record_answer(t.alpha(), :'one') \g /dev/null
select is(t.said(:'talk'), '1 user: What is a martlet? | 2 assistant: A bird without feet.', 'once, however often it is recorded');
set local session authorization mtap_ann;
select ai.chat(:'talk', 'Why?') as two \gset
reset session authorization;
select is(t.sent(:'two'), 'user: What is a martlet? | assistant: A bird without feet. | user: Why?', 'what was said before goes along');
select is((select c.request -> 'messages' -> 2 ->> 'content' from t.claim(:'worker') c), 'Why?', 'to the provider too');
-- A failure leaves the question; the next one takes it along.
select t.settle(:'worker', :'two', 1, 'failed', '{"signal": "http", "http_status": 400}') \g /dev/null
select is(t.status(:'two'), 'failed', 'a generation that failed');
set local session authorization mtap_ann;
select ai.chat(:'talk', 'Again: why?') as three \gset
select ai.chat(:'talk', 'And the swift?') as four \gset
reset session authorization;
select is(t.said(:'talk'), '1 user: What is a martlet? | 2 assistant: A bird without feet. | 3 user: Why? | 4 user: Again: why? | 5 user: And the swift?', 'leaves its question');
select is(t.sent(:'three'), 'user: What is a martlet? | assistant: A bird without feet. | user: Why? | user: Again: why?', 'which the next one takes along');
select is(t.sent(:'four'), 'user: What is a martlet? | assistant: A bird without feet. | user: Why? | user: Again: why? | user: And the swift?', 'as does one that is asked before an answer is there');
select count(*) from t.claim(:'worker') \g /dev/null
select t.answer(:'worker', :'four', 'Four.') \g /dev/null
select t.answer(:'worker', :'three', 'Three.') \g /dev/null
select is(t.said(:'talk') like '%| 6 assistant: Four. | 7 assistant: Three.', true, 'answers are numbered as they come');
select is(t.sent(:'three') like '%Four%', false, 'what came after a question does not join its prompt');
select is((select last_seq from ai.conversations where id = :'talk'), 7, 'the conversation knows its last number');
set local session authorization mtap_ann;
select ai.chat(:'talk', 'Stop.') as five \gset
select ai.cancel(:'five') \g /dev/null
reset session authorization;
select is(t.status(:'five'), 'cancelled', 'a cancelled one');
select is(t.said(:'talk') like '%| 8 user: Stop.', true, 'leaves its question too');

-- 2. What the conversation asks for, and what is asked instead
insert into ai.prompt_templates (name, system, history_messages) values ('talker', 'Talk.', 2), ('forgetful', 'Forget.', 0);
set local session authorization mtap_ann;
select ai.start_conversation(template => 'talker', profile => 'mtap-route') as second \gset
select ai.chat(:'second', 'a') as a, ai.chat(:'second', 'b', model => 'mtap/two', stream => true, params => '{"temperature": 0}', priority => 'high', deadline_ms => 5000, metadata => '{"m": 1}') as b,
       ai.chat(:'second', 'c', template => 'forgetful') as c, ai.chat(:'second', 'd') as d \gset
reset session authorization;
select is((select (profile, model, template)::text from ai.generations where id = :'a'), '(mtap-route,,talker)', 'profile and template are the conversation''s');
select is((select (profile, model, stream, params, priority, deadline_ms, metadata)::text from ai.generations where id = :'b'), '(,mtap/two,t,"{""temperature"": 0}",high,5000,"{""m"": 1}")', 'what is given counts');
select is(t.sent(:'c'), 'system: Forget. | user: c', 'a template that wants no history');
select is(t.sent(:'d'), 'system: Talk. | user: b | user: c | user: d', 'a template that wants two messages');
select is(t.as_role('mtap_ann', $$ select ai.start_conversation(model => 'mtap/one', profile => 'mtap-route') $$), 'PT400', 'a model or a profile');
select is(t.as_role('mtap_ann', $$ select ai.start_conversation(title => '') $$), 'PT400', 'a title is not empty');
select is(t.as_role('mtap_ann', $$ select ai.start_conversation(title => repeat('x', 500)) $$), 'ok 1', 'up to 500 characters');
select is(t.as_role('mtap_ann', $$ select ai.start_conversation(title => repeat('x', 501)) $$), 'PT400', 'and no more');
select is(t.as_role('mtap_ann', $$ select ai.start_conversation(metadata => to_jsonb(repeat('x', 100000))) $$), 'PT413', 'nor more than 100,000 bytes in all');
select is(t.as_role('mtap_ann', format('select ai.chat(%L, %L)', :'second', text)), expected, format('text %L: %s', text, expected))
  from (values ('', 'PT400'), (' ', 'PT400'), (null, 'PT400'), ('x', 'ok 1')) v (text, expected);
select is(t.as_role('mtap_ann', format('select ai.chat(%L, ''x'', template => ''none'')', :'second')), 'PT404', 'a template that is not there');

-- 3. Others
select is(t.as_role(role, format('select ai.chat(%L, ''x'')', :'talk')), expected, format('%s chats in ann''s conversation: %s', role, expected))
  from (values ('mtap_abe', 'PT404'), ('mtap_dev', 'PT404'), ('mtap_adm', 'PT404'), ('mtap_bob', 'PT404'), ('mtap_stray', 'PT404'), ('mtap_worker', '42501'), ('mtap_public', '42501')) v (role, expected);
select is(t.as_role(role, format('insert into ai.generations (prompt, model, conversation_id) values (''x'', ''mtap/one'', %L)', :'talk')), expected, format('%s names it: %s', role, expected))
  from (values ('mtap_abe', 'PT404'), ('mtap_dev', 'PT404'), ('mtap_bob', 'PT404'), ('mtap_stray', 'PT401')) v (role, expected);
select is(t.as_role('mtap_ann', 'insert into ai.generations (prompt, model, conversation_id) values (''x'', ''mtap/one'', gen_random_uuid())'), 'PT404', 'a conversation that is not there');
select is(t.as_role(role, format('select from ai.messages where conversation_id = %L', :'talk')), expected, format('%s reads it: %s', role, expected))
  from (values ('mtap_ann', 'ok 8'), ('mtap_abe', 'ok 0'), ('mtap_dev', 'ok 8'), ('mtap_adm', 'ok 8'), ('mtap_bob', 'ok 0'), ('mtap_stray', 'ok 0'), ('mtap_worker', '42501'),
               ('mtap_monitor', '42501'), ('mtap_public', '42501')) v (role, expected);
select is(t.as_role(role, format('select from ai.conversations where id = %L', :'talk')), expected, format('%s sees it: %s', role, expected))
  from (values ('mtap_ann', 'ok 1'), ('mtap_abe', 'ok 0'), ('mtap_dev', 'ok 1'), ('mtap_bob', 'ok 0'), ('mtap_stray', 'ok 0')) v (role, expected);
select is(t.as_role('mtap_stray', 'select ai.start_conversation()'), 'PT401', 'nobody starts none');
select is(t.as_role('mtap_ann', sql), '42501', format('not by hand: %s', sql))
  from (values (format('insert into ai.messages (tenant_id, conversation_id, seq, user_id, role, content, generation_id) values (%L, %L, 99, ''ann'', ''assistant'', ''forged'', %L)', t.alpha(), :'talk', :'one')),
               ('update ai.messages set content = ''x'''), ('delete from ai.messages'), ('update ai.conversations set user_id = ''abe'''), ('delete from ai.conversations'),
               (format('select from ai.conversations where id = %L for update', :'talk')), (format('select ai.record_answer(ai.tenant_id(), %L)', :'one')),
               (format('select ai.append_message(ai.tenant_id(), %L, ''ann'', ''assistant'', ''forged'', gen_random_uuid())', :'talk')), ('select from ai.unrecorded_answers')) v (sql);
-- The same id in another tenant is another conversation.
insert into ai.conversations (tenant_id, id, user_id, model) values (t.beta(), :'talk', 'bob', 'mtap/one');
set local session authorization mtap_bob;
select ai.chat(:'talk', 'Of beta.') as beta \gset
reset session authorization;
select is(t.sent(:'beta'), null, 'an id of both tenants carries nothing over');
select is((select string_agg(content, ',') from ai.messages where conversation_id = :'talk' and tenant_id = t.beta()), 'Of beta.', 'each says its own');
select is((select count(*) from ai.messages where conversation_id = :'talk' and tenant_id = t.alpha()), 8::bigint, 'nothing was added to the other');
delete from ai.conversations where tenant_id = t.beta();
-- An admin who asks for ann asks in ann's conversation.
select is(t.as_role('mtap_adm', format('insert into ai.generations (tenant_id, user_id, prompt, model, conversation_id) values (%L, %L, ''For her.'', ''mtap/one'', %L)', t.alpha(), member, :'talk')), expected,
          format('an admin asks for %s in ann''s conversation: %s', member, expected))
  from (values ('ann', 'ok 1'), ('abe', 'PT404')) v (member, expected);
select is((select user_id from ai.messages where content = 'For her.'), 'ann', 'the message is ann''s');

-- 4. Rows inserted by hand are said as well, as guardrails leave them, and once with an idempotency key.
set local session authorization mtap_ann;
select ai.start_conversation(model => 'mtap/one') as third \gset
insert into ai.generations (messages, model, conversation_id) values
  ('[{"role": "user", "content": "old"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "here"}]}]', 'mtap/one', :'third')
returning id as parts \gset
insert into ai.generations (prompt, model, conversation_id) select 'row ' || g, 'mtap/one', :'third' from generate_series(1, 3) g;
select ai.chat(:'third', 'once', idempotency_key => 'mtap-k') as k1, ai.chat(:'third', 'once', idempotency_key => 'mtap-k') as k2 \gset
reset session authorization;
select is(t.said(:'third'), E'1 user: look\nhere | 2 user: row 1 | 3 user: row 2 | 4 user: row 3 | 5 user: once', 'messages by their last text, rows in order, a key once');
select is(:'k1'::text, :'k2'::text, 'the same generation');
select is(t.as_role('mtap_ann', format('select ai.chat(%L, ''other'', idempotency_key => ''mtap-k'')', :'third')), 'PT409', 'a key with other text');
select is((select count(*) from ai.messages where conversation_id = :'third'), 5::bigint, 'says nothing');
select is(t.as_role('mtap_ann', format('insert into ai.generations (prompt, model, kind, conversation_id) values (''x'', ''mtap/embed'', ''embedding'', %L)', :'third')), 'PT400', 'an embedding is no conversation');
-- What a guardrail refused is not said; what is refused later does not join a prompt. (Some rule has to be there for them to be asked.)
insert into ai.guardrails (name, scope, detector, action) values ('mtap any', 'input', 'empty', 'flag');
create or replace function ai.guards(p_tenant uuid, p_kind text, p_scope text) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$ select p_scope = 'input' $$;
create or replace function ai.guard_input(
  p_tenant uuid, p_id uuid, p_user text, p_kind text, p_prompt text, p_messages jsonb, out prompt text, out messages jsonb, out rejected jsonb, out stages jsonb)
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select replace(p_prompt, 'card 4111', 'card [CARD]'), p_messages, case when p_prompt like '%bad%' then '{"class": "guardrail", "code": "PT422"}'::jsonb end, '[]'::jsonb
$$;
set local session authorization mtap_ann;
select ai.start_conversation(model => 'mtap/one') as guarded \gset
select ai.chat(:'guarded', 'my card 4111') as g1, ai.chat(:'guarded', 'bad words') as g2, ai.chat(:'guarded', 'judged later') as g3, ai.chat(:'guarded', 'fine') as g4 \gset
reset session authorization;
select is(t.status(:'g2'), 'rejected', 'refused in the insert');
select is(t.said(:'guarded'), '1 user: my card [CARD] | 2 user: judged later | 3 user: fine', 'what was refused is not said, what was redacted is said so');
select ai.end_generation(t.alpha(), :'g3', 'rejected', '{"class": "guardrail"}') \g /dev/null
select is(t.sent(:'g4'), 'user: my card [CARD] | user: fine', 'what was refused later joins no prompt');
create or replace function ai.guards(p_tenant uuid, p_kind text, p_scope text) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$ select false $$;

-- 5. An answer without text is a message without text, and is not sent again.
set local session authorization mtap_ann;
select ai.start_conversation(model => 'mtap/one') as fourth \gset
select ai.chat(:'fourth', 'call a tool') as tool \gset
reset session authorization;
select count(*) from t.claim(:'worker', 1000) \g /dev/null
select t.settle(:'worker', :'tool', 1, 'succeeded', '{"output_message": {"role": "assistant", "tool_calls": []}, "usage": {"input": 1, "output": 1}}') \g /dev/null
set local session authorization mtap_ann;
select ai.chat(:'fourth', 'and?') as after_tool \gset
reset session authorization;
select is(t.said(:'fourth'), '1 user: call a tool | 2 assistant:  | 3 user: and?', 'an answer without text has its number');
select is(t.sent(:'after_tool'), 'user: call a tool | user: and?', 'and is not sent');

-- 6. Answers that were put down, because their conversation was held (that they are: Tests/Races).
insert into ai.unrecorded_answers (tenant_id, conversation_id, generation_id) values (t.alpha(), :'fourth', :'one'), (t.alpha(), :'fourth', :'tool'), (t.alpha(), gen_random_uuid(), :'tool');
select is(ai.record_unrecorded(), 2, 'are appended by maintenance');
select is(ai.record_unrecorded(), 0, 'once');
select is_empty('select from ai.unrecorded_answers', 'nothing is left, not of conversations that are gone either');
select is((select count(*) from ai.messages where conversation_id = :'fourth'), 3::bigint, 'what was there already is not said again');
insert into ai.unrecorded_answers (tenant_id, conversation_id, generation_id) values (t.alpha(), :'guarded', :'g1');
update ai.generations set status = 'succeeded', output = 'late', finished_at = now() where id = :'g1';
set local session authorization mtap_ann;
select ai.chat(:'guarded', 'next') as g5 \gset
reset session authorization;
select is(t.said(:'guarded'), '1 user: my card [CARD] | 2 user: judged later | 3 user: fine | 4 assistant: late | 5 user: next', 'or by the next who says something, before it');
select is(t.sent(:'g5'), 'user: my card [CARD] | user: fine | assistant: late | user: next', 'so that it goes along');

-- 7. The end of a conversation
select is(t.as_role(role, format('select ai.delete_conversation(%L)', :'fourth')), expected, format('%s deletes ann''s conversation: %s', role, expected))
  from (values ('mtap_abe', 'PT404'), ('mtap_dev', 'PT404'), ('mtap_bob', 'PT404'), ('mtap_stray', 'PT401'), ('mtap_worker', '42501'), ('mtap_ann', 'ok 1')) v (role, expected);
select is_empty(format('select from ai.messages where conversation_id = %L', :'fourth'), 'its messages are gone');
select isnt((t.generation(:'tool')).id, null, 'its generations are not');
select is(t.as_role('mtap_ann', format('select ai.delete_conversation(%L)', :'fourth')), 'PT404', 'it is gone');
select is(t.as_role('mtap_adm', format('select ai.delete_conversation(%L)', :'third')), 'ok 1', 'an admin deletes any of the tenant');
select is(t.as_role('mtap_bob', format('select ai.delete_conversation(%L)', :'talk')), 'PT404', 'not of another');
-- One that is deleted while a generation runs.
set local session authorization mtap_ann;
select ai.start_conversation(model => 'mtap/one') as fifth \gset
select ai.chat(:'fifth', 'soon gone') as orphan, ai.chat(:'fifth', 'gone before its claim') as waiting \gset
reset session authorization;
select count(*) from t.claim(:'worker', 1) \g /dev/null
set local session authorization mtap_ann;
select ai.delete_conversation(:'fifth') \g /dev/null
reset session authorization;
select count(*) from t.claim(:'worker', 1000) \g /dev/null
select t.answer(:'worker', :'orphan', 'to nobody') as settled, t.answer(:'worker', :'waiting', 'to nobody') as settled2 \gset
select is(t.status(:'orphan') || t.status(:'waiting'), 'succeededsucceeded', 'a generation whose conversation is gone is answered');
select is_empty(format('select from ai.messages where conversation_id = %L', :'fifth'), 'and said nowhere');
select is_empty('select from ai.unrecorded_answers', 'nor kept for later');

-- 8. A restore says nothing twice.
insert into ai.generations (tenant_id, user_id, prompt, model, status, conversation_id, finished_at, output) values (t.alpha(), 'ann', 'restored', 'mtap/one', 'succeeded', :'talk', now(), 'x');
select is(t.said(:'talk') like '%restored%', false, 'what is restored brings its messages along');

select * from finish();
rollback;
