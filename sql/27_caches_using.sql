-- Caches as apps and developers use them.

-- Kept answers to questions that are similar to a vector, best first: of the caller's own cache and of those that the tenant's
-- members share, of nobody else's. The vector must be made by vector_model (null: the embedding model that the caches use by
-- default). Answers to a collection that has changed since, or an old version of a template, are passed over.
-- Raises PT401 for nobody, PT403, PT400 for a wrong threshold or count, PT404 for a model that does not exist.
create or replace function ai.find_cached_response(
  query_vec vector, similarity_threshold double precision default 0.95, match_count integer default 1, kind text default 'chat', model text default null,
  profile text default null, collection text default null, template text default null, vector_model text default null)
returns table (output text, output_message jsonb, similarity double precision, sources jsonb, provider text, model_used text, saved numeric,
               generation_id uuid, created_at timestamptz, expires_at timestamptz)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_caller record;
  v_reads  boolean;
  v_model  text;
begin
  select * into v_caller from ai.require('inference:execute');
  v_reads := v_caller.permissions && '{document:read,*}';
  if query_vec is null or similarity_threshold is null or similarity_threshold not between 0 and 1 or match_count is null or match_count not between 1 and 100 then
    raise exception 'find_cached_response() takes a vector, a threshold from 0 to 1 and a count from 1 to 100' using errcode = 'PT400';
  end if;
  v_model := ai.question_model(v_caller.tenant_id, find_cached_response.collection, find_cached_response.vector_model);
  if v_model is null then
    raise exception 'there is no embedding model %', coalesce(find_cached_response.vector_model, 'of the default profile')
      using errcode = 'PT404', hint = 'select name from ai.models where kind = ''embedding'' and enabled;';
  end if;
  return query
    select e.output, e.output_message, n.similarity, e.sources, e.provider, e.model_used, e.cost, e.generation_id, e.created_at, e.expires_at
      from ai.cache_spaces s
     cross join lateral ai.nearest_question(s.tenant_id, s.space, query_vec, similarity_threshold, false, match_count) n
      join ai.cache_entries e on e.tenant_id = s.tenant_id and e.key = n.key and e.expires_at > ai.now()
     where s.tenant_id = v_caller.tenant_id and (s.user_id is null or s.user_id = v_caller.user_id)
       and s.vector_model = v_model and s.dimensions = cardinality(query_vec::real[])
       and s.kind = find_cached_response.kind
       and (find_cached_response.model is null or s.model = find_cached_response.model)
       and (find_cached_response.profile is null or s.profile = find_cached_response.profile)
       and (find_cached_response.collection is null or s.collection = find_cached_response.collection)
       and (find_cached_response.template is null or s.template = find_cached_response.template)
       and (s.collection is null or s.collection_version is not distinct from ai.collection_version(s.tenant_id, s.collection))
       and (s.template is null or s.template_version is not distinct from (select t.version from ai.resolve_template(s.tenant_id, s.template) t where t.found))
       -- As in asking: who may not read documents is answered from the collection that a template names, and from no other.
       and (v_reads or s.collection is null or s.collection = (select t.collection from ai.resolve_template(s.tenant_id, s.template) t where t.found))
     order by n.similarity desc, e.created_at desc
     limit match_count;
end
$$;
comment on function ai.find_cached_response(vector, double precision, integer, text, text, text, text, text, text) is
  'Cached answers to similar questions, as far as the caller may have them; best first.';

-- Drops kept answers of the caller's tenant, whoever's they are: those that fulfil all the criteria that are given. Gives how
-- many. Answers that are being made at this moment are kept when they come, unless what was invalidated (a collection, a
-- template, a route) has another version by then.
-- Raises PT401 for nobody, PT403 without a permission to write policies, prompts or documents, PT400 without criteria. Locks the entries in the
-- order of their keys.
create or replace function ai.invalidate_cache(
  tag text default null, collection text default null, template text default null, template_version integer default null, older_than interval default null,
  model text default null, profile text default null, user_id text default null, everything boolean default false)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  -- Whoever changes what answers are made of may drop those that were made before.
  v_tenant uuid := (select r.tenant_id from ai.require('policy:write', 'prompt:write', 'document:write') r);
  v_count  bigint;
begin
  if everything is not true and coalesce(invalidate_cache.tag, invalidate_cache.collection, invalidate_cache.template, invalidate_cache.model,
       invalidate_cache.profile, invalidate_cache.user_id, invalidate_cache.template_version::text, invalidate_cache.older_than::text) is null then
    raise exception 'nothing says what is to be invalidated'
      using errcode = 'PT400', hint = 'Name a tag, collection, template, template_version, older_than, model, profile or user_id, or say everything => true.';
  end if;
  with chosen as materialized (
    select e.key
      from ai.cache_entries e
     where e.tenant_id = v_tenant
       and (invalidate_cache.tag is null or e.tags @> array[invalidate_cache.tag])
       and (invalidate_cache.collection is null or e.collection = invalidate_cache.collection)
       and (invalidate_cache.template is null or e.template = invalidate_cache.template)
       and (invalidate_cache.template_version is null or e.template_version = invalidate_cache.template_version)
       and (invalidate_cache.older_than is null or e.created_at < ai.now() - invalidate_cache.older_than)
       and (invalidate_cache.model is null or invalidate_cache.model in (e.model, e.model_used))
       and (invalidate_cache.profile is null or e.profile = invalidate_cache.profile)
       and (invalidate_cache.user_id is null or e.user_id = invalidate_cache.user_id)
     order by e.key
       for update
  )
  delete from ai.cache_entries e using chosen c where e.tenant_id = v_tenant and e.key = c.key;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.invalidate_cache(text, text, text, integer, interval, text, text, text, boolean) is
  'Drops cached answers of the caller''s tenant that fulfil all given criteria; gives how many.';

-- What caches saved: a row for each way of answering (exact, semantic, coalesced, and provider for what was asked), from the
-- books of p_from until before p_to. Runs with the caller's rights: members see their own, who has usage:read (or inference:read) the tenant's.
create or replace function ai.cache_report(p_from timestamptz default date_trunc('month', now()), p_to timestamptz default 'infinity')
returns table (answered_by text, answers bigint, share numeric, saved numeric, cost numeric, unpriced bigint)
language sql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(c.cache, 'provider'), count(*), round(count(*) / sum(count(*)) over (), 4), coalesce(sum(c.saved), 0), coalesce(sum(c.cost), 0),
         count(*) filter (where c.cache is not null and c.saved is null or c.cache is null and c.cost is null)
    from ai.llm_calls c
   where c.created_at >= p_from and c.created_at < p_to and c.status = 'succeeded'
   group by 1 order by 1
$$;
comment on function ai.cache_report(timestamptz, timestamptz) is 'How many answers came from caches, and what they saved.';

revoke execute on function ai.find_cached_response(vector, double precision, integer, text, text, text, text, text, text),
  ai.invalidate_cache(text, text, text, integer, interval, text, text, text, boolean), ai.cache_report(timestamptz, timestamptz) from public;
grant execute on function ai.find_cached_response(vector, double precision, integer, text, text, text, text, text, text),
  ai.invalidate_cache(text, text, text, integer, interval, text, text, text, boolean), ai.cache_report(timestamptz, timestamptz) to ai_user;
