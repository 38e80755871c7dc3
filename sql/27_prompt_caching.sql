-- Prompt caches of providers: the beginning of a prompt that was sent before costs a tenth, or half, where the provider has kept
-- it. ai.prompt_cache_policies says for which chats; what is said to whom is here: marks for Anthropic, a key for OpenAI. Models
-- are those with the capability prompt_cache.
--
-- A cache finds a prompt by how it begins. ai.assemble_prompt() therefore puts what stays first (system prompt, history) and what
-- changes last (passages, rows, the question), and jsonb writes equal tools and parameters equally.

-- A message with a mark on its last text, or on the result of a tool; null where nothing can carry one.
create or replace function ai.mark_message(p_message jsonb, p_mark jsonb) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case
    when jsonb_typeof(p_message) <> 'object' then null
    when p_message ->> 'role' = 'tool' then p_message || jsonb_build_object('cache_control', p_mark)
    when jsonb_typeof(p_message -> 'content') = 'string' and p_message ->> 'content' <> ''
      then jsonb_set(p_message, '{content}', jsonb_build_array(jsonb_build_object('type', 'text', 'text', p_message -> 'content', 'cache_control', p_mark)))
    when jsonb_typeof(p_message -> 'content') = 'array' and p_message #> '{content,-1}' @> '{"type": "text"}' and p_message #>> '{content,-1,text}' <> ''
      then jsonb_set(p_message, '{content,-1,cache_control}', p_mark)
    end
$$;
comment on function ai.mark_message(jsonb, jsonb) is 'A message with a cache mark at its end; null where nothing can carry one.';

-- Marks for Anthropic: behind the instructions that come first (or, without any, behind the tools, which stand before them), and behind
-- the history, which is what the next turn repeats. The passages and the question after it differ each time.
create or replace function ai.mark_prompt(p_request jsonb, p_mark jsonb) returns jsonb
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_messages jsonb := p_request -> 'messages';
  v_tools    jsonb := p_request #> '{params,tools}';
  v_first    integer;  -- of the messages that are no instructions
  v_at       integer;
  v_marked   jsonb;
begin
  select coalesce(min(m.ordinality) - 1, jsonb_array_length(v_messages))::integer into v_first
    from jsonb_array_elements(v_messages) with ordinality m where coalesce(m.value ->> 'role', '') not in ('system', 'developer');
  if v_first > 0 then
    v_marked := ai.mark_message(v_messages -> (v_first - 1), p_mark);
    if v_marked is not null then
      v_messages := jsonb_set(v_messages, array[(v_first - 1)::text], v_marked);
    end if;
  elsif jsonb_typeof(v_tools) = 'array' and jsonb_typeof(v_tools -> -1) = 'object' then
    p_request := jsonb_set(p_request, '{params,tools,-1,cache_control}', p_mark);
  end if;
  select max(m.ordinality)::integer - 1 into v_at
    from jsonb_array_elements(v_messages) with ordinality m where m.value ->> 'role' in ('assistant', 'tool') and m.ordinality > v_first;
  if v_at is not null then
    v_marked := ai.mark_message(v_messages -> v_at, p_mark);
    if v_marked is not null then
      v_messages := jsonb_set(v_messages, array[v_at::text], v_marked);
    end if;
  end if;
  return jsonb_set(p_request, '{messages}', v_messages);
end
$$;
comment on function ai.mark_prompt(jsonb, jsonb) is 'A request with Anthropic''s cache marks behind its instructions and behind its history.';

-- The key by which OpenAI finds who sent such a beginning before. Of a tenant's own: what was cached for one is not found, and so not
-- felt, by another.
create or replace function ai.prompt_key(p_tenant uuid, p_request jsonb) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select left(encode(sha256(convert_to(jsonb_build_array(p_tenant, p_request #> '{params,tools}',
           (select jsonb_agg(m.value order by m.ordinality) from jsonb_array_elements(p_request -> 'messages') with ordinality m
             where m.value ->> 'role' in ('system', 'developer')))::text, 'UTF8')), 'hex'), 32)
$$;
comment on function ai.prompt_key(uuid, jsonb) is 'Key of a prompt''s beginning: the tenant, its tools and instructions.';

-- A request of a chat as the policy wants it sent. What an app says itself about caching stays as it is. Never raises, because one
-- statement makes the calls of all tenants.
create or replace function ai.cache_prompt(p_tenant uuid, p_profile text, p_model text, p_dialect text, p_capabilities jsonb, p_request jsonb) returns jsonb
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_keep  text;
  v_least integer;
begin
  if not p_capabilities @> '{"prompt_cache": true}' or jsonb_typeof(p_request -> 'messages') is distinct from 'array' then
    return p_request;
  end if;
  select p.keep, p.min_input_tokens into v_keep, v_least from (
    (select p.keep, p.min_input_tokens from ai.prompt_cache_policies p
      where p.tenant_id = p_tenant and p.enabled and (p.profile is null or p.profile = p_profile) and (p.model is null or p.model = p_model)
      order by p.position, p.id limit 1)
    union all
    (select p.keep, p.min_input_tokens from ai.prompt_cache_policies p
      where p.tenant_id is null and p.enabled and (p.profile is null or p.profile = p_profile) and (p.model is null or p.model = p_model)
      order by p.position, p.id limit 1)) p
  limit 1;
  if coalesce(v_keep, 'off') = 'off' or octet_length(p_request::text) / 4 < v_least then
    return p_request;
  end if;
  if p_dialect = 'anthropic' then
    -- Written by jsonb: within a text the quotation marks would be escaped.
    if strpos(p_request::text, '"cache_control": ') > 0 then
      return p_request;
    end if;
    return ai.mark_prompt(p_request, case v_keep when 'long' then '{"type": "ephemeral", "ttl": "1h"}' else '{"type": "ephemeral"}' end::jsonb);
  end if;
  return jsonb_set(p_request, '{params}',
    case v_keep when 'long' then '{"prompt_cache_retention": "24h"}' else '{}' end::jsonb
      || jsonb_build_object('prompt_cache_key', ai.prompt_key(p_tenant, p_request)) || coalesce(p_request -> 'params', '{}'));
end
$$;
comment on function ai.cache_prompt(uuid, text, text, text, jsonb, jsonb) is 'A request of a chat, with what has its beginning kept by the provider, as ai.prompt_cache_policies says.';

-- What prompt caches saved: by model, from the books of p_from until before p_to. saved is what the same tokens would have cost uncached,
-- less what they cost: negative where more was paid for keeping than was won by it. Runs with the caller's rights: members see their own
-- calls, who has usage:read (or inference:read) the tenant's.
create or replace function ai.prompt_cache_report(p_from timestamptz default date_trunc('month', now()), p_to timestamptz default 'infinity')
returns table (model text, calls bigint, hits bigint, input_tokens bigint, cached_tokens bigint, written_tokens bigint, share numeric, cost numeric, saved numeric, unpriced bigint)
language sql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
  select c.model, count(*), count(*) filter (where c.cached_tokens > 0), sum(c.input_tokens), sum(c.cached_tokens), sum(c.cache_write_tokens + c.cache_write_1h_tokens),
         round(sum(c.cached_tokens)::numeric / nullif(sum(c.input_tokens), 0), 4), coalesce(sum(c.cost), 0),
         coalesce(sum(case when c.cached_tokens + c.cache_write_tokens + c.cache_write_1h_tokens > 0
                           then ai.token_cost(p.rates, c.input_tokens, 0, 0, 0, c.output_tokens, c.reasoning_tokens,
                                  c.units - array['cache_write_12h', 'audio_cache_read', 'image_cache_read', 'video_cache_read', 'audio_cache_write', 'image_cache_write', 'video_cache_write'],
                                  c.service_tier) - c.cost end), 0),
         count(*) filter (where c.cost is null)
    from ai.llm_calls c
    left join ai.prices p on p.id = c.price_id
   where c.created_at >= p_from and c.created_at < p_to and c.kind = 'chat' and c.cache is null and c.input_tokens > 0
   group by 1 order by 1
$$;
comment on function ai.prompt_cache_report(timestamptz, timestamptz) is 'What the prompt caches of providers saved, by model.';

revoke execute on function ai.mark_message(jsonb, jsonb), ai.mark_prompt(jsonb, jsonb), ai.prompt_key(uuid, jsonb), ai.cache_prompt(uuid, text, text, text, jsonb, jsonb),
  ai.prompt_cache_report(timestamptz, timestamptz) from public;
grant execute on function ai.prompt_cache_report(timestamptz, timestamptz) to ai_user;

-- objects

drop policy if exists visible on ai.prompt_cache_policies;
create policy visible on ai.prompt_cache_policies for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('policy:read') or ai.may('policy:write')));
drop policy if exists own on ai.prompt_cache_policies;
create policy own on ai.prompt_cache_policies for all to ai_admin
  using (tenant_id = (select ai.tenant_for('policy:write')))
  with check (tenant_id = (select ai.tenant_for('policy:write')));
grant select on ai.prompt_cache_policies to ai_user;
-- By column, because who may update or delete a whole table may also lock it, and with it everybody's claims. A policy is switched
-- off, not deleted.
grant insert (tenant_id, position, profile, model, keep, min_input_tokens, enabled), update (position, profile, model, keep, min_input_tokens, enabled)
  on ai.prompt_cache_policies to ai_admin;
