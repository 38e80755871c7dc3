-- The semantic cache: answers to questions that mean nearly the same.
--
-- Questions are compared within a space: all that shapes the answer but the question is the same, and so are the numbers
-- in the question, because a year or an amount changes the answer and hardly the vector. A search reads one bit a
-- dimension of every question in the space (12 ms for 100,000), and compares the vectors of the best few hundred. That is
-- exact for spaces up to that size; beyond, a question may rarely be overlooked, which costs a call, but never found
-- wrongly.

-- pgvector's operators, bound where they are made and inlined: see 12_vectors.sql.
create or replace function ai.signs(p_vector vector) returns bit
language sql immutable parallel safe security invoker
return binary_quantize(p_vector);
comment on function ai.signs(vector) is 'One bit a dimension: whether it is above zero.';

create or replace function ai.differing_signs(a bit, b bit) returns double precision
language sql immutable parallel safe security invoker
return a <~> b;
comment on function ai.differing_signs(bit, bit) is 'How many bits of two strings of the same length differ.';

-- The one question that a generation asks: its prompt, or the only message besides those of the system where it is the
-- user's and plain text. Null: there are more, pictures, or it is longer than what is embedded of it (8,000 characters).
create or replace function ai.single_question(p_prompt text, p_messages jsonb) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_others jsonb;
  v_text   text := p_prompt;
begin
  if p_prompt is null then
    v_others := jsonb_path_query_array(p_messages, '$[*] ? (!(@.role == "system" || @.role == "developer"))');
    if jsonb_array_length(v_others) = 1 and v_others #>> '{0,role}' = 'user' and jsonb_typeof(v_others #> '{0,content}') = 'string' then
      v_text := v_others #>> '{0,content}';
    end if;
  end if;
  return case when length(v_text) <= 8000 then v_text end;
end
$$;
comment on function ai.single_question(text, jsonb) is 'The question of a generation that asks exactly one; else null.';

-- The model that embeds questions: the collection's where there is one, because its search needs that vector anyway; else the
-- policy's; else the first of the embedding profile. Null: there is none that can be called, so no semantic cache.
create or replace function ai.question_model(p_tenant uuid, p_collection text, p_named text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := p_named;
begin
  if p_collection is not null then
    v_name := coalesce(ai.collection_model(p_tenant, p_collection), v_name);
  end if;
  return (select m.name from ai.models m
           where m.id = ai.target_model(p_tenant, 'embedding', v_name, case when v_name is null then ai.choose_profile(p_tenant, 'embedding', 0, null) end, 1));
end
$$;
comment on function ai.question_model(uuid, text, text) is 'Name of the model that embeds questions for the semantic cache; null: none.';

-- The space of a question: the terms' base, the messages around it, its numbers, and the model and size of its vector.
create or replace function ai.cache_space(p_base bytea, p_prompt text, p_messages jsonb, p_answering text, p_dimensions integer) returns uuid
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_around jsonb;
begin
  if p_prompt is null then
    -- The place of the question among the messages counts, and nothing is dropped but its text.
    select jsonb_agg(case when m.value ->> 'role' = 'user' then m.value - 'content' else m.value end order by m.ordinality) into v_around
      from jsonb_array_elements(p_messages) with ordinality m;
  end if;
  return encode(substring(sha256(p_base || ai.normal_form(jsonb_build_array(
           v_around, p_answering, p_dimensions,
           (select array_agg(n.found[1] order by n.ordinality)
              -- Digits of other scripts, raised, lowered, encircled and full-width ones are digits, too.
              from regexp_matches(ai.single_question(p_prompt, p_messages),
                     '[0-9\u00b2\u00b3\u00b9\u0660-\u0669\u06f0-\u06f9\u0966-\u096f\u09e6-\u09ef\u0e50-\u0e59\u2070-\u2089\u2460-\u2473\uff10-\uff19]+', 'g') with ordinality n (found, ordinality)))::text))
         from 1 for 16), 'hex')::uuid;
end
$$;
comment on function ai.cache_space(bytea, text, jsonb, text, integer) is 'Hash of all that shapes an answer but its question: where it is compared with others.';

-- The most similar question of a space, with the similarity; none below p_similarity. p_stale: also what has expired.
-- Reads, in the worst case, every row of the space in ai.cache_questions.
create or replace function ai.nearest_question(
  p_tenant uuid, p_space uuid, p_vector vector, p_similarity double precision, p_stale boolean, p_count integer default 1)
returns table (key bytea, similarity double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_mergejoin = off
set enable_hashjoin = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
#variable_conflict use_column
declare
  v_now   timestamptz := ai.now();
  v_signs bit varying := ai.signs(p_vector);
  -- Of vectors with a similarity of 0.95 about every tenth sign differs, of unrelated ones every second. What is clearly
  -- unrelated need not be sorted, which is a third of the time.
  v_cut   double precision := length(v_signs) * case when p_similarity >= 0.7 then 0.4 else 1 end;
begin
  -- A similarity that is no number (a vector of zeros) is above every number to PostgreSQL: hence the upper bound.
  return query
    select n.key, s.similarity
      from (select q.key
              from ai.cache_questions q
             where q.tenant_id = p_tenant and q.space = p_space and (p_stale or q.expires_at > v_now)
               and ai.differing_signs(q.signs, v_signs) <= v_cut
             order by ai.differing_signs(q.signs, v_signs)
             limit 256 + p_count) n
     -- OFFSET, so that the vectors of these are compared and not first those of all entries.
     cross join lateral (select e.question, e.created_at from ai.cache_entries e where e.tenant_id = p_tenant and e.key = n.key offset 0) e
     cross join lateral (select 1 - ai.cosine_distance(e.question, p_vector) as similarity) s
     where s.similarity >= p_similarity and s.similarity <= 1.001
     order by s.similarity desc, e.created_at desc
     limit p_count;
end
$$;
comment on function ai.nearest_question(uuid, uuid, vector, double precision, boolean, integer) is 'The kept questions of a space that are most similar to a vector, best first.';

-- What ai.find_similar() and ai.find_stale() have in common. p_similarity null: the policy's threshold.
create or replace function ai.similar_answer(
  p_tenant uuid, p_id uuid, p_vector vector, p_similarity double precision, p_stale boolean,
  out tried boolean, out key bytea, out similarity double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_one   record;
  v_terms record;
  v_model text;
begin
  tried := false;
  select g.* into v_one from ai.generations g where g.tenant_id = p_tenant and g.id = p_id;
  if not found or v_one.cache_key is null or v_one.cache = 'refresh' then
    return;
  end if;
  select * into v_terms
    from ai.cache_terms(v_one.tenant_id, v_one.user_id, v_one.kind, v_one.prompt, v_one.messages, v_one.model, v_one.profile, v_one.params, v_one.template,
                        v_one.template_version, v_one.collection, v_one.cache);
  if not v_terms.fits then
    return;
  end if;
  if p_stale then
    -- The same question, answered too long ago.
    select e.key, 1 into key, similarity from ai.cache_entries e where e.tenant_id = p_tenant and e.key = v_terms.cache_key and e.output is not null;
    if found then
      return;
    end if;
  end if;
  if p_vector is null or not v_terms.semantic or ai.single_question(v_one.prompt, v_one.messages) is null then
    return;
  end if;
  v_model := ai.question_model(p_tenant, v_one.collection, v_terms.vector_model);
  if v_model is null or v_one.query_model is distinct from v_model then
    return;  -- the policy has changed since the question was embedded
  end if;
  tried := true;
  select n.key, n.similarity into key, similarity
    from ai.nearest_question(p_tenant,
           ai.cache_space(v_terms.base, v_one.prompt, v_one.messages, ai.answering(p_tenant, 'embedding', v_model, null), cardinality(p_vector::real[])),
           p_vector, coalesce(p_similarity, v_terms.threshold), p_stale) n;
end
$$;
comment on function ai.similar_answer(uuid, uuid, vector, double precision, boolean) is 'Key of the kept answer whose question is most similar to a generation''s.';

-- The semantic cache, asked at the claim with the vector of the question. Reads only. hit false and stage null: it was not asked.
create or replace function ai.find_similar(
  p_tenant uuid, p_id uuid, p_vector vector,
  out hit boolean, out output text, out output_message jsonb, out finish_reason text, out sources jsonb, out provider text, out model_used text,
  out input_tokens integer, out output_tokens integer, out saved numeric, out stage jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_started timestamptz := clock_timestamp();
  v_found   record;
begin
  hit := false;
  select * into v_found from ai.similar_answer(p_tenant, p_id, p_vector, null, false);
  if v_found.key is null then
    if v_found.tried then
      stage := ai.stage('cache', 'semantic miss', null, v_started);
    end if;
    return;
  end if;
  select true, e.output, e.output_message, e.finish_reason, e.sources, e.provider, e.model_used, e.input_tokens, e.output_tokens, e.cost,
         ai.stage('cache', 'semantic hit', null, v_started, ai.hit_origin(e.generation_id, e.created_at, v_found.similarity))
    into hit, output, output_message, finish_reason, sources, provider, model_used, input_tokens, output_tokens, saved, stage
    from ai.cache_entries e where e.tenant_id = p_tenant and e.key = v_found.key and e.expires_at > ai.now();
  hit := coalesce(hit, false);
end
$$;
comment on function ai.find_similar(uuid, uuid, vector) is 'Looks a generation''s question up in the semantic cache.';

-- For want of anything better: the answer to the same question although it has expired (as long as the policy's stale_for
-- keeps it), else to the most similar question from p_similarity on. Reads only. The caller marks what it answers as degraded.
create or replace function ai.find_stale(
  p_tenant uuid, p_id uuid, p_vector vector, p_similarity double precision default 0.8,
  out hit boolean, out output text, out output_message jsonb, out finish_reason text, out sources jsonb, out provider text, out model_used text,
  out input_tokens integer, out output_tokens integer, out saved numeric, out stage jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_started timestamptz := clock_timestamp();
  v_found   record;
begin
  hit := false;
  select * into v_found from ai.similar_answer(p_tenant, p_id, p_vector, p_similarity, true);
  if v_found.key is null then
    return;
  end if;
  select true, e.output, e.output_message, e.finish_reason, e.sources, e.provider, e.model_used, e.input_tokens, e.output_tokens, e.cost,
         ai.stage('cache', 'stale hit', case when e.expires_at <= ai.now() then 'expired' else 'less similar than the threshold' end, v_started,
                  ai.hit_origin(e.generation_id, e.created_at, v_found.similarity))
    into hit, output, output_message, finish_reason, sources, provider, model_used, input_tokens, output_tokens, saved, stage
    from ai.cache_entries e where e.tenant_id = p_tenant and e.key = v_found.key;
  hit := coalesce(hit, false);
end
$$;
comment on function ai.find_stale(uuid, uuid, vector, double precision) is 'A kept answer that is expired or less similar, for when nothing better is to be had.';

revoke execute on function ai.signs(vector), ai.differing_signs(bit, bit), ai.single_question(text, jsonb), ai.question_model(uuid, text, text),
  ai.cache_space(bytea, text, jsonb, text, integer), ai.nearest_question(uuid, uuid, vector, double precision, boolean, integer),
  ai.similar_answer(uuid, uuid, vector, double precision, boolean), ai.find_similar(uuid, uuid, vector),
  ai.find_stale(uuid, uuid, vector, double precision) from public;
