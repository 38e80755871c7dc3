-- Rules as rows: who may write them, and what is wrong with them.

-- Trigger BEFORE INSERT OR UPDATE, each row. Raises PT400 for a rule that could not do what it says, PT409 beyond 100 that a tenant has
-- switched on itself (all are applied to each answer, while those of other tenants wait), and keeps the regular expression of terms and
-- patterns beside it. Takes a turn (sql/17_bindings.sql) where a tenant switches one on.
create or replace function ai.check_guardrail() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_allowed text[] := case new.detector when 'length' then '{max_characters}' when 'terms' then '{terms}' when 'pattern' then '{pattern,ignore_case}'
                                        when 'moderation' then '{model,profile,instructions,on_failure}' else '{}' end::text[];
  v_key     text;
begin
  if new.tenant_id is distinct from ai.tenant_id() and not ai.acts_for_all() then
    return new;  -- row-level security refuses it: nothing is said about what another tenant has
  end if;
  if new.detector is null or new.detector not in ('empty', 'length', 'injection', 'email', 'phone', 'card', 'iban', 'ip', 'ssn', 'secret', 'terms', 'pattern', 'moderation') then
    raise exception 'there is no detector %', coalesce(new.detector, 'null')
      using errcode = 'PT400', hint = 'empty, length, injection, email, phone, card, iban, ip, ssn, secret, terms, pattern, moderation.';
  elsif new.scope is null or new.scope not in ('input', 'output', 'both') or new.action is null or new.action not in ('reject', 'redact', 'flag') then
    raise exception 'scope is input, output or both, action is reject, redact or flag' using errcode = 'PT400';
  elsif new.name is null or length(new.name) not between 1 and 100 or new.name ~ '[[:cntrl:]]' then
    raise exception 'a guardrail has a name of 1 to 100 characters' using errcode = 'PT400', hint = 'It is shown to who is rejected.';
  elsif new.kinds is null or not new.kinds <@ '{chat,embedding}' or cardinality(new.kinds) = 0 then
    raise exception 'kinds are chat and embedding' using errcode = 'PT400';
  elsif new.action = 'redact' and new.detector in ('empty', 'length', 'injection', 'moderation') then
    raise exception 'a guardrail on % cannot redact', new.detector using errcode = 'PT400', hint = 'There is no part of the text to replace: reject, or flag.';
  elsif new.restore and (new.action <> 'redact' or new.scope = 'output') then
    raise exception 'only what was redacted in an input can be restored' using errcode = 'PT400', hint = 'restore goes with action redact and scope input or both.';
  elsif new.detector = 'moderation' and new.scope <> 'input' then
    raise exception 'a moderating model judges inputs' using errcode = 'PT400', hint = 'scope input.';
  elsif jsonb_typeof(new.options) is distinct from 'object' then
    raise exception 'options must be a JSON object' using errcode = 'PT400';
  end if;
  select k into v_key from jsonb_object_keys(new.options) k where k <> all (v_allowed) limit 1;
  if found then
    raise exception 'a guardrail on % has no option %', new.detector, v_key
      using errcode = 'PT400', hint = case when v_allowed = '{}' then 'It has none.' else 'It has ' || array_to_string(v_allowed, ', ') || '.' end;
  end if;

  new.compiled := null;
  if new.detector = 'length' and new.options ? 'max_characters' then
    if jsonb_typeof(new.options -> 'max_characters') <> 'number' or (new.options ->> 'max_characters')::numeric not between 1 and 100000000
       or (new.options ->> 'max_characters')::numeric % 1 <> 0 then
      raise exception 'max_characters is a whole number from 1 to 100000000' using errcode = 'PT400';
    end if;
    new.options := new.options || jsonb_build_object('max_characters', (new.options ->> 'max_characters')::numeric::integer);
  elsif new.detector = 'terms' then
    if jsonb_typeof(new.options -> 'terms') is distinct from 'array' or jsonb_array_length(new.options -> 'terms') not between 1 and 100
       or (select sum(length(t.term)) from jsonb_array_elements_text(case when jsonb_typeof(new.options -> 'terms') = 'array' then new.options -> 'terms' end) t (term)) > 2000
       or exists (select from jsonb_array_elements(new.options -> 'terms') t (term) where jsonb_typeof(term) <> 'string' or length(term #>> '{}') > 100 or ai.is_blank(term #>> '{}')) then
      raise exception 'terms are 1 to 100 texts of at most 100 characters, 2000 in all' using errcode = 'PT400', hint = '{"terms": ["first", "the second"]}. For more make further guardrails.';
    end if;
    new.compiled := ai.terms_expression(array(select jsonb_array_elements_text(new.options -> 'terms')));
  elsif new.detector = 'pattern' then
    if jsonb_typeof(new.options -> 'pattern') is distinct from 'string' or coalesce(jsonb_typeof(new.options -> 'ignore_case'), 'boolean') <> 'boolean' then
      raise exception 'a guardrail on a pattern has the options pattern, a text, and ignore_case, true or false' using errcode = 'PT400';
    end if;
    new.compiled := ai.pattern_expression(new.options ->> 'pattern', coalesce((new.options ->> 'ignore_case')::boolean, false));
    begin
      perform '' collate "C" ~ new.compiled;
    exception when invalid_regular_expression then
      raise exception 'the pattern is no regular expression' using errcode = 'PT400', detail = sqlerrm;
    end;
  elsif new.detector = 'moderation' then
    if (jsonb_typeof(new.options -> 'model') is not distinct from 'string') = (jsonb_typeof(new.options -> 'profile') is not distinct from 'string')
       or new.options ? 'instructions' and (jsonb_typeof(new.options -> 'instructions') <> 'string' or length(new.options ->> 'instructions') not between 1 and 10000)
       or coalesce(new.options ->> 'on_failure', 'allow') not in ('allow', 'reject') then
      raise exception 'moderation names a model or a profile, may have instructions, and on_failure allow or reject'
        using errcode = 'PT400', hint = '{"model": "…", "on_failure": "reject"}';
    elsif ai.target_model(new.tenant_id, 'chat', new.options ->> 'model', new.options ->> 'profile', 1) is null then
      raise exception 'there is no % % for moderation', case when new.options ? 'model' then 'model' else 'profile' end, coalesce(new.options ->> 'model', new.options ->> 'profile')
        using errcode = 'PT400', hint = 'It must answer chats, and be the tenant''s or, for a rule of all tenants, shared.';
    end if;
  end if;

  if new.enabled and (tg_op = 'INSERT' or not old.enabled) and not ai.acts_for_all() then
    perform ai.take_turn(new.tenant_id);
    if (select count(*) from ai.guardrails g where g.tenant_id = new.tenant_id and g.enabled) >= 100 then
      raise exception 'a tenant has at most 100 guardrails of its own switched on'
        using errcode = 'PT409', hint = 'Switch one off (enabled = false), or put terms of two into one. The operator may add more.';
    end if;
  end if;
  return new;
end
$$;
comment on function ai.check_guardrail() is 'Trigger: refuses a rule that could not do what it says.';
revoke execute on function ai.check_guardrail() from public;

-- objects

create or replace trigger check_guardrail before insert or update on ai.guardrails
  for each row execute function ai.check_guardrail();

-- Expressions that an earlier version made.
update ai.guardrails g set compiled = n.compiled
  from (select o.id, ai.terms_expression(array(select jsonb_array_elements_text(o.options -> 'terms'))) as compiled from ai.guardrails o where o.detector = 'terms') n
 where g.id = n.id and g.compiled <> n.compiled;

-- What applies to the tenant is seen by who may read policies, what is its own is written by who may write them.
drop policy if exists visible on ai.guardrails;
create policy visible on ai.guardrails for select to ai_user
  using ((tenant_id = (select ai.tenant_id()) or tenant_id is null) and (select ai.may('policy:read') or ai.may('policy:write')));
drop policy if exists own on ai.guardrails;
create policy own on ai.guardrails for all to ai_admin
  using (tenant_id = (select ai.tenant_for('policy:write')))
  with check (tenant_id = (select ai.tenant_for('policy:write')));

grant select on ai.guardrails to ai_user;
-- By column, because who may update or delete a whole table may also lock it, and with it everybody's inserts. A rule is
-- switched off, not deleted.
grant insert (tenant_id, name, scope, detector, action, restore, kinds, options, position, enabled),
      update (name, scope, detector, action, restore, kinds, options, position, enabled) on ai.guardrails to ai_admin;
