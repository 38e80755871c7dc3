-- One idempotency key of a tenant, one question: a question that was admitted before is not admitted again, whatever has become
-- since of the defaults, the template or the batch that it came with.

-- The text of a JSON value, the same for all that are equal: to jsonb 1 and 1.0 are, though it writes either as it was given.
create or replace function ai.equal_text(p_json jsonb) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select case when g.written ~ '\.[0-9]*0(?![0-9])'
              -- A string is taken whole, so that nothing in it counts for a number.
              then regexp_replace(g.written, '("(?:[^"\\]|\\.)*")|(\.[0-9]*[1-9])0+(?![0-9])|\.0+(?![0-9])', '\1\2', 'g')
              else g.written end
    from (select p_json::text as written) g
$$;
comment on function ai.equal_text(jsonb) is 'Text of a JSON value without the zeros at the ends of its numbers: the same for equal values.';

-- Whether the key stands for one of these questions, as the app gave them (ai.admit_question()): their hashes are kept with keys;
-- of those from before ai.equal_text(), of the text as it was.
create or replace function ai.key_stands_for(p_tenant uuid, p_key text, p_questions jsonb[]) returns boolean
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from ai.idempotency_keys k
                  where k.tenant_id = p_tenant and k.key = p_key and k.input_hash = any (array(select sha256(convert_to(w.written, 'UTF8'))
                                                                                                 from unnest(p_questions) q cross join lateral (values (q::text), (ai.equal_text(q))) w (written))))
$$;
comment on function ai.key_stands_for(uuid, text, jsonb[]) is 'Whether an idempotency key was used with one of these questions (ai.admit_question()).';

-- Takes a key for a generation: true. False: it stands for this question already, with its profile or its template's collection left out or spelled out.
-- p_collection: what the template of the question gives where none is named. Locks the key until the transaction ends: of two that take it at once the second
-- waits for the first. Raises PT400 for a key of the wrong length, PT409 where it was used with other input.
create or replace function ai.take_key(p_tenant uuid, p_key text, p_id uuid, p_question jsonb, p_collection text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_same    jsonb[] := array[p_question];
  v_profile text;
begin
  if length(p_key) not between 1 and 255 then
    raise exception 'idempotency_key must have 1 to 255 characters' using errcode = 'PT400';
  end if;
  insert into ai.idempotency_keys (tenant_id, key, generation_id, input_hash)
  values (p_tenant, p_key, p_id, sha256(convert_to(ai.equal_text(p_question), 'UTF8')))
  on conflict do nothing;
  if found then
    return true;
  end if;
  if p_question ->> 4 is null then
    v_profile := ai.choose_profile(p_tenant, p_question ->> 1, length(ai.question_text(p_question ->> 2, nullif(p_question -> 3, 'null'))), nullif(p_question -> 11, 'null'));
    if coalesce(p_question ->> 5, v_profile) = v_profile then
      v_same := array[jsonb_set(p_question, '{5}', 'null'), jsonb_set(p_question, '{5}', to_jsonb(v_profile))];
    end if;
  end if;
  if p_question ->> 13 is not null and coalesce(p_question ->> 12, p_collection) = p_collection then
    v_same := array(select jsonb_set(q, '{12}', 'null') from unnest(v_same) q) || array(select jsonb_set(q, '{12}', to_jsonb(p_collection)) from unnest(v_same) q);
  end if;
  if not ai.key_stands_for(p_tenant, p_key, v_same || p_question) then
    raise exception 'this idempotency key was used with other input'
      using errcode = 'PT409', hint = 'A key stands for one question by one user. Take a new key.';
  end if;
  return false;
end
$$;
comment on function ai.take_key(uuid, text, uuid, jsonb, text) is 'Takes an idempotency key for a generation; false: it stands for this question already.';

-- The generation that a key of the caller's tenant stands for, if it is the caller's; else null.
create or replace function ai.idempotent_generation(p_key text) returns uuid
language sql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
as $$
  select k.generation_id
    from ai.identity() i
    join ai.idempotency_keys k on k.tenant_id = i.tenant_id and k.key = p_key
    join ai.generations g on g.tenant_id = k.tenant_id and g.id = k.generation_id and g.user_id = i.user_id
$$;
comment on function ai.idempotent_generation(text) is 'Id of the caller''s generation that was inserted with this idempotency key; null: none.';

-- For upkeep: forgets keys that are as old as ai.settings.idempotency_days says, but those of generations that have not ended: they are remembered
-- for as long again, so that not all of them are looked at each time. At most 100,000 a call, passing over what others hold: an app that forgets a person may
-- keep its transaction open. Gives how many it forgot.
create or replace function ai.forget_idempotency_keys(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_count integer;
begin
  with old as materialized (
    select o.ctid as place, (select g.finished_at is null from ai.generations g where g.tenant_id = o.tenant_id and g.id = o.generation_id) is true as waits
      from ai.settings s
      join ai.idempotency_keys o on o.created_at < p_now - s.idempotency_days * interval '1 day'
     limit 100000 for update of o skip locked
  ), remembered as (
    update ai.idempotency_keys k set created_at = p_now where k.ctid = any (array(select o.place from old o where o.waits))
  )
  delete from ai.idempotency_keys k where k.ctid = any (array(select o.place from old o where not o.waits));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.forget_idempotency_keys(timestamptz) is 'Forgets old idempotency keys of generations that have ended; gives how many.';

revoke execute on function ai.equal_text(jsonb), ai.key_stands_for(uuid, text, jsonb[]), ai.take_key(uuid, text, uuid, jsonb, text), ai.idempotent_generation(text),
  ai.forget_idempotency_keys(timestamptz) from public;
grant execute on function ai.idempotent_generation(text) to ai_user;
