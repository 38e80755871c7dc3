-- What few requests need before they are sent: the form of the answer as the model can be asked for it, marks for the provider's prompt cache, references to
-- files that the worker fetches. p_caches: whether there is any policy of prompt caches; p_with_files: messages that may refer to files, null: none.
create or replace function ai.complete_request(
  p_request jsonb, p_tenant uuid, p_user text, p_kind text, p_profile text, p_model text, p_dialect text, p_capabilities jsonb, p_options jsonb, p_caches boolean,
  p_with_files jsonb) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_files jsonb;
begin
  if p_kind in ('chat', 'completion') and p_request -> 'params' ? 'response_format' then
    -- Anthropic's protocol has schemas, and nothing for JSON without one.
    p_request := ai.format_request(p_request, p_capabilities || case when p_dialect = 'anthropic' then '{"json_mode": false}'::jsonb else '{}' end);
  end if;
  if p_caches and p_kind = 'chat' and p_dialect in ('openai', 'openai_responses', 'anthropic') then
    p_request := ai.cache_prompt(p_tenant, p_profile, p_model, p_dialect, p_capabilities, p_request);
  end if;
  if p_with_files is not null then
    -- A chat's provider fetches what it can by itself.
    v_files := ai.request_files(p_tenant, p_user, p_with_files, p_kind <> 'chat' or coalesce((p_options -> 'fetch_urls')::text = 'true', p_dialect in ('ollama', 'gemini')));
    if v_files is not null then
      p_request := p_request || jsonb_build_object('files', v_files);
    end if;
  end if;
  return p_request;
end
$$;
comment on function ai.complete_request(jsonb, uuid, text, text, text, text, text, jsonb, jsonb, boolean, jsonb) is
  'A request with its response format, cache marks and files as its model takes them. Internal: ai.lease_generations().';

revoke execute on function ai.complete_request(jsonb, uuid, text, text, text, text, text, jsonb, jsonb, boolean, jsonb) from public;
