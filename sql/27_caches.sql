-- Caches: what a kept answer is found by, and the exact cache, which answers inside the INSERT.
--
-- A key is the hash of all that shapes the answer: tenant, the member unless the policy's scope is the tenant, kind, model
-- or profile and what these stand for at present, parameters, template and collection with their versions, the rules for
-- outputs, and the question or messages. Metadata, priority, stream, deadlines and tags are not in it. Texts that Unicode calls the same
-- (normal form C) have the same key.

-- What answers for a model or a profile: models and where they are called, as text for the hash, so that a changed route,
-- wire name or option does not give answers of what was there before. Switching a target off and on changes nothing: in an
-- outage the cache is wanted most.
create or replace function ai.answering(p_tenant uuid, p_kind text, p_model text, p_profile text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_model is not null then  -- found as ai.target_model() finds it
    return (select jsonb_build_array(m.id, m.wire_name, m.options, v.id, v.base_url, v.options)::text
              from ai.models m
              join ai.providers v on v.id = m.provider_id and v.enabled and (v.tenant_id is null or v.tenant_id = p_tenant)
             where m.name = p_model and m.kind = p_kind and m.enabled and (m.tenant_id = p_tenant or m.tenant_id is null)
             order by m.tenant_id nulls last limit 1);
  end if;
  return (select string_agg(jsonb_build_array(m.id, m.wire_name, m.options, v.id, v.base_url, v.options)::text, ',' order by r.position, m.id)
            from ai.routes r
            join ai.models m on m.id = r.model_id
            join ai.providers v on v.id = m.provider_id
           where r.profile = p_profile and r.kind = p_kind
             and r.tenant_id is not distinct from
                 (select o.tenant_id from ai.routes o where o.tenant_id = p_tenant and o.profile = p_profile and o.kind = p_kind limit 1));
end
$$;
comment on function ai.answering(uuid, text, text, text) is 'What a model or profile stands for at present, as text to be hashed.';

-- In Unicode's normal form C. Plain ASCII, nearly everything, is told by its length; what is longer than 100,000 bytes is
-- left as it is, because normalising takes a second for some megabytes. Databases in another encoding have no normal forms.
create or replace function ai.normal_form(p_text text) returns bytea
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if octet_length(p_text) <= 100000 and octet_length(p_text) > length(p_text) and getdatabaseencoding() = 'UTF8' then
    return convert_to(normalize(p_text, nfc), 'UTF8');
  end if;
  return convert_to(p_text, 'UTF8');
end
$$;
comment on function ai.normal_form(text) is 'A text''s bytes in UTF-8 and normal form C.';

-- The policy that fits and the key it leads to. fits false: no policy fits, or the row wants none; nothing is cached. A row
-- may ask for less than its policy gives (off, exact), never for more. base is the hash of all but the question.
-- Callers set how it is planned: a SET clause costs as much as an index probe.
create or replace function ai.cache_terms(
  p_tenant uuid, p_user text, p_kind text, p_prompt text, p_messages jsonb, p_model text, p_profile text, p_params jsonb, p_template text,
  p_template_version integer, p_collection text, p_cache text,
  out fits boolean, out cache_key bytea, out base bytea, out semantic boolean, out threshold double precision, out ttl interval, out stale_for interval,
  out member text, out vector_model text, out collection_version bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_policy record;
  v_guards text;
begin
  fits := false;
  if p_cache = 'off' then
    return;
  end if;
  -- Two probes of an index for who has no policy: the tenant's rows, then the shared ones.
  select * into v_policy from (
    (select p.exact, p.semantic, p.threshold, p.ttl, p.stale_for, p.scope, p.vector_model
       from ai.cache_policies p
      where p.tenant_id = p_tenant and p.enabled and (p.kind is null or p.kind = p_kind) and (p.profile is null or p.profile = p_profile)
        and (p.model is null or p.model = p_model)
      order by p.position, p.id limit 1)
    union all
    (select p.exact, p.semantic, p.threshold, p.ttl, p.stale_for, p.scope, p.vector_model
       from ai.cache_policies p
      where p.tenant_id is null and p.enabled and (p.kind is null or p.kind = p_kind) and (p.profile is null or p.profile = p_profile)
        and (p.model is null or p.model = p_model)
      order by p.position, p.id limit 1)) p
  limit 1;
  if v_policy.exact is not true then
    return;
  end if;
  fits := true;
  semantic := v_policy.semantic and p_kind = 'chat' and p_cache is distinct from 'exact';
  threshold := v_policy.threshold;
  ttl := v_policy.ttl;
  stale_for := v_policy.stale_for;
  member := case v_policy.scope when 'member' then p_user end;
  vector_model := v_policy.vector_model;
  if p_collection is not null then
    collection_version := ai.collection_version(p_tenant, p_collection);
  end if;
  -- What was let out under other rules must not get past those of today.
  if ai.guards(p_tenant, p_kind, 'output') then
    v_guards := (select string_agg(jsonb_build_array(g.id, g.scope, g.detector, g.action, g.options)::text, ',' order by g.id)
                   from ai.guardrails g
                  where (g.tenant_id = p_tenant or g.tenant_id is null) and g.enabled and g.scope in ('output', 'both') and p_kind = any (g.kinds));
  end if;
  base := sha256(convert_to(jsonb_build_array(1, p_tenant, member, p_kind, p_model, p_profile, ai.answering(p_tenant, p_kind, p_model, p_profile), p_params,
                                              p_template, p_template_version, p_collection, collection_version, v_guards)::text, 'UTF8'));
  cache_key := sha256(base || case when p_prompt is not null then '\x01'::bytea || ai.normal_form(p_prompt) else '\x02'::bytea || ai.normal_form(p_messages::text) end);
end
$$;
comment on function ai.cache_terms(uuid, text, text, text, jsonb, text, text, jsonb, text, integer, text, text) is
  'The caching policy that fits a generation, and its key; fits false: it is not cached.';

-- The exact cache. cache_key null: what is asked is not cached. vector_model: after a miss a semantic lookup is wanted, and the
-- question has to be embedded with this model. stage says what happened; null where no policy fits. Reads only.
create or replace function ai.find_exact(
  p_tenant uuid, p_user text, p_kind text, p_prompt text, p_messages jsonb, p_model text, p_profile text, p_params jsonb, p_template text,
  p_template_version integer, p_collection text, p_cache text,
  out cache_key bytea, out vector_model text, out hit boolean, out output text, out output_message jsonb, out embedding text, out finish_reason text, out sources jsonb,
  out provider text, out model_used text, out input_tokens integer, out output_tokens integer, out saved numeric, out stage jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  v_started timestamptz := clock_timestamp();
  v_terms   record;
begin
  hit := false;
  if not exists (select from ai.cache_policies p where p.tenant_id = p_tenant) and not exists (select from ai.cache_policies p where p.tenant_id is null) then
    return;  -- most tenants cost no more than this
  end if;
  select * into v_terms
    from ai.cache_terms(p_tenant, p_user, p_kind, p_prompt, p_messages, p_model, p_profile, p_params, p_template, p_template_version, p_collection, p_cache);
  if not v_terms.fits then
    return;
  end if;
  cache_key := v_terms.cache_key;
  if p_cache is distinct from 'refresh' then
    select true, e.output, e.output_message, e.embedding::text, e.finish_reason, e.sources, e.provider, e.model_used, e.input_tokens, e.output_tokens, e.cost,
           ai.stage('cache', 'exact hit', null, v_started, ai.hit_origin(e.generation_id, e.created_at, null))
      into hit, output, output_message, embedding, finish_reason, sources, provider, model_used, input_tokens, output_tokens, saved, stage
      from ai.cache_entries e
     where e.tenant_id = p_tenant and e.key = v_terms.cache_key and e.expires_at > ai.now();
    if hit then
      return;
    end if;
    hit := false;
  end if;
  if v_terms.semantic and ai.single_question(p_prompt, p_messages) is not null then
    vector_model := ai.question_model(p_tenant, p_collection, v_terms.vector_model);
  end if;
  stage := ai.stage('cache', case p_cache when 'refresh' then 'refresh' else 'miss' end, null, v_started);
end
$$;
comment on function ai.find_exact(uuid, text, text, text, jsonb, text, text, jsonb, text, integer, text, text) is
  'Looks a question up in the exact cache; gives its key, and the model that embeds it where the semantic cache comes next.';

-- What a hit's stage says of where the answer comes from.
create or replace function ai.hit_origin(p_generation uuid, p_created_at timestamptz, p_similarity double precision) returns jsonb
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_strip_nulls(jsonb_build_object('from', p_generation, 'age_s', round(extract(epoch from ai.now() - p_created_at)),
                                              'similarity', round(p_similarity::numeric, 4)));
end
$$;
comment on function ai.hit_origin(uuid, timestamptz, double precision) is 'Which generation a cached answer comes from, how old it is and how similar its question.';

revoke execute on function ai.answering(uuid, text, text, text), ai.normal_form(text),
  ai.cache_terms(uuid, text, text, text, jsonb, text, text, jsonb, text, integer, text, text),
  ai.find_exact(uuid, text, text, text, jsonb, text, text, jsonb, text, integer, text, text),
  ai.hit_origin(uuid, timestamptz, double precision) from public;

-- objects

drop policy if exists visible on ai.cache_policies;
create policy visible on ai.cache_policies for select to ai_user using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('policy:read') or ai.may('policy:write')));
drop policy if exists own on ai.cache_policies;
create policy own on ai.cache_policies for all to ai_admin
  using (tenant_id = (select ai.tenant_for('policy:write')))
  with check (tenant_id = (select ai.tenant_for('policy:write')));
grant select on ai.cache_policies to ai_user;
-- By column, because who may update or delete a whole table may also lock it, and with it everybody's inserts. A policy is
-- switched off, not deleted.
grant insert (tenant_id, position, kind, profile, model, exact, semantic, threshold, ttl, stale_for, scope, vector_model, enabled),
  update (position, kind, profile, model, exact, semantic, threshold, ttl, stale_for, scope, vector_model, enabled)
  on ai.cache_policies to ai_admin;
