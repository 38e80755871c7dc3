-- Guardrails: rules about what goes in and what comes out. The rows are ai.guardrails, what finds is in the files before.

-- Whether there is a rule at all: asked at every insert and claim, so one index probe for the tenant's and one for the shared.
create or replace function ai.guards(p_tenant uuid, p_kind text, p_scope text) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  return exists (select from ai.guardrails g where g.tenant_id = p_tenant and g.enabled and g.scope in (p_scope, 'both') and p_kind = any (g.kinds))
      or exists (select from ai.guardrails g where g.tenant_id is null and g.enabled and g.scope in (p_scope, 'both') and p_kind = any (g.kinds));
end
$$;
comment on function ai.guards(uuid, text, text) is 'Whether any rule applies to inputs or outputs of a kind in a tenant.';

-- The error of a generation that a rule refuses. It names the rule and never the text.
create or replace function ai.guardrail_error(p_rule text, p_detector text, p_scope text, p_more text default null) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('class', 'guardrail', 'code', case p_detector when 'length' then 'PT413' else 'PT422' end,
    'message', format('the %s was refused by the guardrail %s', p_scope, p_rule) || coalesce(': ' || p_more, ''),
    'rule', p_rule, 'hint', case
      when p_scope = 'output' then 'The answer held what this tenant does not let out. Ask differently.'
      when p_detector = 'empty' then 'There is no character that can be seen.'
      when p_detector = 'length' then 'Shorten the text, or put it into a collection.'
      when p_detector = 'injection' then 'The text reads like orders to the model over the head of whoever set it up.'
      when p_detector = 'moderation' then 'The model that judges inputs refused it.'
      when p_detector in ('terms', 'pattern') then 'Leave out what this tenant does not let in.'
      else 'Leave out personal data and secrets.' end)
$$;
comment on function ai.guardrail_error(text, text, text, text) is 'The error of a generation that a rule refuses.';

create or replace function ai.private_use_error() returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select '{"class": "guardrail", "code": "PT422", "message": "the input has too many characters of private use", "hint": "Leave out U+E000 to U+E03B."}'::jsonb
$$;
comment on function ai.private_use_error() is 'The error of a text that leaves no character to mark things with.';

-- Applies a tenant's rules, and those of all tenants, to one text. p_asked: the part of it that may not give orders, for
-- injection and emptiness (null: not to be checked). p_separator stands between the parts of p_text, and is in none.
-- p_taken: placeholders that must not be given out. p_placeholders and p_originals: those given out before, for equal values
-- again. p_redacting: nothing but what redacts, for what joins the text later. An output, for whose end others wait, is refused where the rules
-- would have more than ten million characters to go through, or take too long.
create or replace function ai.apply_guardrails(
  p_tenant uuid, p_kind text, p_scope text, p_text text, p_asked text, p_separator text, p_taken text[], p_placeholders text[], p_originals text[], p_redacting boolean,
  out text text, out rejected jsonb, out stages jsonb, out placeholders text[], out originals text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  c_most    constant bigint := 10000000;  -- characters, once for each rule: 6 to 80 ns each
  v_began   timestamptz := clock_timestamp();
  v_length  bigint := case p_scope when 'output' then length(p_text) end;
  v_started timestamptz;
  v_rule    record;
  v_pattern text;
  v_mask    text;
  v_taken   text[];
  v_done    record;
  v_found   integer;
  v_excess  boolean;
  v_most    integer;
  v_why     text;
  v_rules   integer := 0;
  v_mine    text[] := '{}';
begin
  text := p_text;
  stages := '[]';
  placeholders := p_placeholders;
  originals := p_originals;
  for v_rule in
    select g.name, g.detector, g.action, g.restore, g.options, g.compiled
      from ai.guardrails g
     where (g.tenant_id = p_tenant or g.tenant_id is null) and g.enabled and g.scope in (p_scope, 'both') and p_kind = any (g.kinds) and g.detector <> 'moderation'
       and (g.action = 'redact' or not p_redacting)
     order by g.position, g.tenant_id nulls first, g.id
  loop
    v_started := clock_timestamp();
    v_rules := v_rules + 1;
    v_found := 0;
    v_excess := false;
    v_why := case when v_rules * v_length > c_most then format('more than %s characters in all, once for each rule', c_most)
                  when p_scope = 'output' and clock_timestamp() >= v_began + ai.judging_time() then 'the rules take too long' end;
    if v_why is not null then
      stages := stages || ai.stage('guardrails', 'rejected', v_rule.name, v_began, jsonb_build_object('detector', v_rule.detector, 'scope', p_scope));
      text := null;
      rejected := ai.guardrail_error(v_rule.name, v_rule.detector, p_scope, v_why);
      exit;
    end if;
    case v_rule.detector
      when 'empty' then
        v_found := case when p_asked is not null and ai.is_blank(p_asked) then 1 else 0 end;
      when 'length' then
        v_most := coalesce((v_rule.options ->> 'max_characters')::integer, 10000);
        v_found := length(case when p_separator is null then text else replace(text, p_separator, '') end);
        if v_found > v_most then
          v_why := format('%s characters, the limit is %s', v_found, v_most);
          v_found := 1;
        else
          v_found := 0;
        end if;
      when 'injection' then
        v_found := case when p_asked is not null and ai.injection_in(p_asked) is not null then 1 else 0 end;
      else
        v_pattern := coalesce(v_rule.compiled, ai.detector_pattern(v_rule.detector));
        if v_rule.action = 'redact' then
          if text collate "C" ~ v_pattern then
            if v_mask is null then
              v_mask := ai.unused_character(text || coalesce(p_separator, ''));
              v_taken := ai.placeholders_in(text);
            end if;
            v_excess := v_mask is null or v_taken is null;
            if not v_excess then
              v_done := ai.redact(v_rule.detector, v_pattern, text, v_mask, v_taken || p_taken, placeholders, originals);
              v_found := v_done.hits;
              v_excess := v_done.excess;
              text := v_done.text;
              if v_rule.restore then
                v_mine := v_mine || v_done.placeholders[cardinality(placeholders) + 1 :];
              end if;
              placeholders := v_done.placeholders;
              originals := v_done.originals;
            end if;
          end if;
        else
          v_done := ai.find_in(v_rule.detector, v_pattern, text);
          v_excess := v_done.excess;
          v_found := cardinality(array_remove(v_done.confirmed, null));
        end if;
        if v_excess then
          v_why := format('more than %s places', ai.most_found());
        end if;
    end case;
    continue when v_found = 0 and not v_excess;

    stages := stages || ai.stage('guardrails',
      case when v_rule.action = 'flag' then 'flagged' when v_rule.action = 'redact' and not v_excess then 'redacted' else 'rejected' end,
      v_rule.name, v_started, jsonb_build_object('detector', v_rule.detector, 'found', case when not v_excess then v_found end, 'scope', nullif(p_scope, 'input')));
    if v_rule.action = 'reject' or v_excess and v_rule.action = 'redact' then
      text := null;
      rejected := ai.guardrail_error(v_rule.name, v_rule.detector, p_scope, v_why);
      exit;
    end if;
  end loop;
  if stages = '[]' and v_rules > 0 then
    stages := stages || ai.stage('guardrails', 'passed', null, v_began, jsonb_build_object('rules', v_rules, 'scope', nullif(p_scope, 'input')));
  end if;
  -- What may be put back.
  select coalesce(array_agg(k.placeholder), '{}'), coalesce(array_agg(k.original), '{}') into placeholders, originals
    from unnest(placeholders, originals) k (placeholder, original) where k.placeholder = any (v_mine);
end
$$;
comment on function ai.apply_guardrails(uuid, text, text, text, text, text, text[], text[], text[], boolean) is
  'A text after the rules that apply to it, or why it is refused, with the placeholders that may be restored.';

-- The texts of OpenAI messages, in order: strings, and the text of parts. asked: what users and tools say, which is not to
-- give orders.
create or replace function ai.message_texts(p_messages jsonb) returns table (message bigint, part bigint, text text, asked boolean)
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select m.n, t.n, t.text, m.value ->> 'role' in ('user', 'tool')
    from jsonb_array_elements(p_messages) with ordinality m (value, n)
   cross join lateral (
     select 1::bigint, m.value ->> 'content' where jsonb_typeof(m.value -> 'content') = 'string'
     union all
     select p.n, p.value ->> 'text'
       from jsonb_array_elements(case when jsonb_typeof(m.value -> 'content') = 'array' then m.value -> 'content' end) with ordinality p (value, n)
      where jsonb_typeof(p.value -> 'text') = 'string') t (n, text)
   order by m.n, t.n
$$;
comment on function ai.message_texts(jsonb) is 'The texts of OpenAI messages, in order.';

-- Messages with other texts, which are as many as ai.message_texts() gives, in its order.
create or replace function ai.with_texts(p_messages jsonb, p_texts text[]) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  with elements as materialized (
    select m.n, m.value, m.value -> 'content' as content from jsonb_array_elements(p_messages) with ordinality m (value, n)
  ), texts as materialized (
    select t.message, t.part, u.text
      from (select o.message, o.part, row_number() over (order by o.message, o.part) as n from ai.message_texts(p_messages) o) t
      join unnest(p_texts) with ordinality u (text, n) on u.n = t.n
  ), parts as (
    select e.n, jsonb_agg(case when t.text is null then p.value else p.value || jsonb_build_object('text', t.text) end order by p.n) as content
      from elements e
     cross join lateral jsonb_array_elements(e.content) with ordinality p (value, n)
      left join texts t on t.message = e.n and t.part = p.n
     where jsonb_typeof(e.content) = 'array'
     group by e.n
  )
  select jsonb_agg(case when p.content is not null then e.value || jsonb_build_object('content', p.content)
                        when jsonb_typeof(e.content) = 'string' then e.value || jsonb_build_object('content', t.text)
                        else e.value end order by e.n)
    from elements e
    left join parts p on p.n = e.n
    left join texts t on t.message = e.n and t.part = 1 and jsonb_typeof(e.content) = 'string'
$$;
comment on function ai.with_texts(jsonb, text[]) is 'Messages with their texts replaced.';

-- Called by the insert of a generation. All texts are looked at as one, because each search has a price of its own and a
-- megabyte may be a hundred thousand messages. Writes ai.redactions, for this generation alone.
create or replace function ai.guard_input(
  p_tenant uuid, p_id uuid, p_user text, p_kind text, p_prompt text, p_messages jsonb, out prompt text, out messages jsonb, out rejected jsonb, out stages jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_variable
declare
  v_text   text := p_prompt;
  v_asked  text := p_prompt;
  v_mark   text;
  v_texts  text[];
  v_result record;
begin
  prompt := p_prompt;
  messages := p_messages;
  if messages is not null then
    select array_agg(t.text), string_agg(t.text, E'\n') filter (where t.asked) into v_texts, v_asked from ai.message_texts(messages) t;
    v_mark := ai.unused_character(array_to_string(coalesce(v_texts, '{}'), ''));
    if v_mark is null then
      rejected := ai.private_use_error();
      stages := jsonb_build_array(ai.stage('guardrails', 'rejected', 'characters of private use'));
      return;
    end if;
    v_text := coalesce(array_to_string(v_texts, v_mark), '');
    -- A picture alone is not nothing.
    if v_asked is null or ai.is_blank(v_asked) then
      v_asked := case when not messages @? '$[*] ? (@.role == "user" || @.role == "tool").content[*] ? (@.type() == "object" && @.type != "text")' then '' end;
    end if;
  end if;
  v_result := ai.apply_guardrails(p_tenant, p_kind, 'input', v_text, v_asked, v_mark, '{}', '{}', '{}', false);
  rejected := v_result.rejected;
  stages := v_result.stages;
  if rejected is not null or v_result.text = v_text then
    return;
  end if;
  if messages is null then
    prompt := v_result.text;
  else
    messages := ai.with_texts(messages, string_to_array(v_result.text, v_mark));
  end if;
  -- A vector has nothing that could be restored.
  if p_kind = 'chat' and cardinality(v_result.placeholders) > 0 then
    insert into ai.redactions (tenant_id, generation_id, placeholder, original)
    select p_tenant, p_id, k.placeholder, k.original from unnest(v_result.placeholders, v_result.originals) k (placeholder, original);
  end if;
end
$$;
comment on function ai.guard_input(uuid, uuid, text, text, text, jsonb) is
  'The input of a generation after the rules: redacted, or why it is refused, and what to note in its stages.';

-- What joins a prompt after it was inserted (history, passages, rows of an app) is redacted by the same rules, into the same
-- placeholders: otherwise the next turn of a conversation would send what was restored in the last answer. For the whole
-- prompt as it is to be sent; nothing is rejected for what it says. Writes ai.redactions, for this generation alone.
create or replace function ai.guard_prepared(p_tenant uuid, p_id uuid, p_kind text, p_messages jsonb, out messages jsonb, out rejected jsonb, out stages jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_texts        text[] := array(select t.text from ai.message_texts(p_messages) t);
  v_mark         text := ai.unused_character(array_to_string(v_texts, ''));
  v_text         text := array_to_string(v_texts, v_mark);
  v_placeholders text[];
  v_originals    text[];
  v_result       record;
begin
  messages := p_messages;
  stages := '[]';
  if v_mark is null then
    rejected := ai.private_use_error();
    return;
  end if;
  select coalesce(array_agg(r.placeholder), '{}'), coalesce(array_agg(r.original), '{}') into v_placeholders, v_originals
    from ai.redactions r where r.tenant_id = p_tenant and r.generation_id = p_id;
  v_result := ai.apply_guardrails(p_tenant, p_kind, 'input', v_text, null, v_mark, '{}', v_placeholders, v_originals, true);
  rejected := v_result.rejected;
  if rejected is not null or v_result.text = v_text then
    stages := case when rejected is null then '[]' else v_result.stages end;
    return;
  end if;
  stages := v_result.stages;
  messages := ai.with_texts(p_messages, string_to_array(v_result.text, v_mark));
  if p_kind = 'chat' then
    insert into ai.redactions (tenant_id, generation_id, placeholder, original)
    select p_tenant, p_id, k.placeholder, k.original from unnest(v_result.placeholders, v_result.originals) k (placeholder, original)
    on conflict do nothing;
  end if;
end
$$;
comment on function ai.guard_prepared(uuid, uuid, text, jsonb) is
  'A prompt with what joined it after its insert, redacted by the rules; rejected: there is more to redact than can be.';

revoke execute on function ai.guards(uuid, text, text), ai.guardrail_error(text, text, text, text), ai.private_use_error(), ai.apply_guardrails(uuid, text, text, text, text, text, text[], text[], text[], boolean),
  ai.message_texts(jsonb), ai.with_texts(jsonb, text[]), ai.guard_input(uuid, uuid, text, text, text, jsonb), ai.guard_prepared(uuid, uuid, text, jsonb) from public;
