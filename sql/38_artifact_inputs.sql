-- Files in messages. A part of a message's content may be
--   {"type": "artifact", "artifact": "<id>"}            a row of ai.artifacts
--   OpenAI's forms of images, audio and files           inline, or the address where it lies
-- At the insert it is checked that the caller may use the files and that they are not too large; at the claim the worker
-- is told what to fetch (`files` of the request), and puts the content in place of the reference.

-- Addresses in messages that no provider fetches itself, so that the worker must: audio and documents; with p_all also images.
create or replace function ai.message_urls(p_messages jsonb, p_all boolean) returns text[]
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select array(
    select distinct u #>> '{}'
      from (select jsonb_path_query(p_messages, '$[*].content[*] ? (@.type == "input_audio").input_audio.data') as u
            union all
            select jsonb_path_query(p_messages, '$[*].content[*] ? (@.type == "file").file.file_data')
            union all
            select jsonb_path_query(p_messages, '$[*].content[*] ? (@.type == "image_url").image_url.url') where p_all) f
     where jsonb_typeof(u) = 'string' and lower(left(u #>> '{}', 8)) ~ '^https?://'
     order by 1)
$$;
comment on function ai.message_urls(jsonb, boolean) is 'Addresses in messages that the worker fetches: of audio and documents, and with p_all of images.';

-- Ids of artifacts in messages, as text; what is no id, too.
create or replace function ai.message_artifacts(p_messages jsonb) returns text[]
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select array(select distinct lower(coalesce(a #>> '{artifact}', '')) from jsonb_path_query(p_messages, '$[*].content[*] ? (@.type == "artifact")') a order by 1)
$$;
comment on function ai.message_artifacts(jsonb) is 'What the parts of type artifact in messages refer to.';

-- Checks the files of a request that is inserted; gives the ids of artifacts among them, which may be none. A user's own files and those that are shared in the tenant may be used. Raises PT400, PT404, PT413.
create or replace function ai.check_files(p_tenant uuid, p_user text, p_messages jsonb) returns uuid[]
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_many   constant integer := 32;
  v_refs   text[] := ai.message_artifacts(p_messages);
  v_urls   text[] := ai.message_urls(p_messages, true);
  v_ids    uuid[];
  v_gone   uuid;
  v_bytes  bigint;
  v_policy record;
begin
  if cardinality(v_refs) + cardinality(v_urls) > c_many then
    raise exception 'the messages have too many files' using errcode = 'PT413', detail = format('At most %s.', c_many);
  end if;
  if exists (select from unnest(v_urls) u where length(u) > 2000 or u !~ '^[!-~]+$') then
    raise exception 'the address of a file has at most 2000 characters, all of them ASCII' using errcode = 'PT400';
  end if;
  if cardinality(v_refs) > 0 then
    if exists (select from unnest(v_refs) r where r !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$') then
      raise exception 'a part of type artifact has no id of an artifact' using errcode = 'PT400', hint = 'For example {"type": "artifact", "artifact": "…"}: select id from ai.artifacts;';
    end if;
    v_ids := v_refs::uuid[];
    select u.id into v_gone from unnest(v_ids) u (id)
     where not exists (select from ai.artifacts a where a.tenant_id = p_tenant and a.id = u.id and a.status = 'ready' and (a.user_id = p_user or a.shared)) limit 1;
    if found then
      raise exception 'there is no artifact %', v_gone using errcode = 'PT404', detail = 'One''s own, and those that are shared in the tenant, may be used.';
    end if;
    select * into v_policy from ai.artifact_policy(p_tenant);
    v_bytes := (select sum(a.bytes) from unnest(v_ids) u (id) join ai.artifacts a on a.tenant_id = p_tenant and a.id = u.id);
    if v_bytes > v_policy.request_bytes then
      raise exception 'the files of the request are too large'
        using errcode = 'PT413', detail = format('%s bytes; the limit is %s.', v_bytes, v_policy.request_bytes), hint = 'ai.artifact_policies.request_bytes';
    end if;
    return v_ids;
  end if;
  return '{}';
end
$$;
comment on function ai.check_files(uuid, text, jsonb) is 'Checks the files in messages; gives the ids of artifacts among them.';

-- What a worker must fetch for a request: by the id of an artifact or by the address. Null: nothing. Whose files may be used is asked again:
-- a conversation's history comes here, too. p_fetches: the provider does not fetch images itself.
create or replace function ai.request_files(p_tenant uuid, p_user text, p_messages jsonb, p_fetches boolean) returns jsonb
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
  select nullif(
    coalesce((select jsonb_object_agg(r.ref, coalesce(
                       (select jsonb_build_object('media_type', a.media_type, 'name', a.name, 'bytes', a.bytes, 'sha256', encode(a.sha256, 'hex'), 'tenant', a.tenant_id,
                                 'object', case when a.object_id is not null then ai.object_place(a.tenant_id, a.object_id) end)
                          from ai.artifacts a
                         where a.tenant_id = p_tenant and a.id::text = r.ref and a.id = any (array(select x.ref::uuid from unnest(ai.message_artifacts(p_messages)) x (ref)
                                                                                                     where x.ref ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'))
                           and a.status = 'ready' and (a.user_id = p_user or a.shared)),
                       '{"gone": true}'))
                from unnest(ai.message_artifacts(p_messages)) r (ref)), '{}')
    || coalesce((select jsonb_object_agg(u.url, jsonb_build_object('url', u.url, 'bytes', (select p.max_bytes from ai.artifact_policy(p_tenant) p)))
                   from unnest(ai.message_urls(p_messages, p_fetches)) u (url)), '{}'),
    '{}')
$$;
comment on function ai.request_files(uuid, text, jsonb, boolean) is 'What a worker fetches before it sends these messages; null: nothing.';

-- What files add to the size of a request, in bytes, each of which bounds a token: references are short, what they stand for is not.
-- No provider bills an image or a second of sound without a limit: 16,384 tokens an image; 16 bytes of sound a token (sound of 4 kbit/s
-- at 32 tokens a second); of anything else all its bytes. What was prepared for the generation goes before p_messages.
create or replace function ai.files_weight(p_tenant uuid, p_id uuid, p_messages jsonb) returns integer
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
  with asked as materialized (select coalesce((select r.messages from ai.prepared r where r.generation_id = p_id), p_messages) as messages)
  select least(1000000000,
    (select coalesce(sum(case split_part(a.media_type, '/', 1) when 'image' then 16384 when 'audio' then a.bytes / 16 + 1024 else a.bytes end), 0)
       from asked m
      cross join lateral unnest(ai.message_artifacts(m.messages)) u (id)
       join ai.artifacts a on a.tenant_id = p_tenant and a.id = case when u.id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then u.id::uuid end)
    + 16384 * (select count(*) from asked m
                cross join lateral jsonb_path_query(m.messages, '$[*].content[*] ? (@.type == "image_url" || @.type == "image" || @.type == "input_image").**
                                                                 ? (@.type() == "string" && @ like_regex "^https?://" flag "i")') u))::integer
$$;
comment on function ai.files_weight(uuid, uuid, jsonb) is 'A bound of the tokens that files add to a request, but for those of which nothing is known (ai.is_boundless()).';

-- Whether a part of messages, images apart, stands for something that lies elsewhere, so that nobody knows how large it is: documents, sound and
-- video by their address, files that the provider keeps. Also in the forms of dialects, which pass as they are.
create or replace function ai.is_boundless(p_messages jsonb) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    p_messages @? '$[*].content[*] ? (@.type() == "object" && !(@.type == "text" || @.type == "artifact" || @.type == "image_url" || @.type == "image" || @.type == "input_image")).**
                   ? (@.type() == "string" && @ like_regex "^[a-z][a-z0-9+.-]*://" flag "i")'
    or p_messages @? '$[*].content[*].** ? (exists (@.file_id) || exists (@.file_uri) || exists (@.fileUri))', false)
$$;
comment on function ai.is_boundless(jsonb) is 'Whether messages refer to content whose size nobody knows.';

-- The most input tokens that each of these generations can be billed for: p_inputs, but where its content has no bound of its own as many as the
-- model reads (context_tokens), else more than any hard limit admits.
create or replace function ai.bound_inputs(p_ids uuid[], p_tenants uuid[], p_models bigint[], p_inputs integer[]) returns integer[]
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
  select array_agg(case when ai.is_boundless(coalesce(r.messages, g.messages))
                        then greatest(u.input, coalesce((select m.context_tokens from ai.models m where m.id = u.model_id), 2147483647)) else u.input end order by u.at)
    from unnest(p_ids, p_tenants, p_models, p_inputs) with ordinality u (id, tenant_id, model_id, input, at)
    join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id
    left join ai.prepared r on r.generation_id = u.id
$$;
comment on function ai.bound_inputs(uuid[], uuid[], bigint[], integer[]) is 'The most input tokens that generations can be billed for, at their places. Internal: ai.lease_generations().';

revoke execute on function ai.files_weight(uuid, uuid, jsonb), ai.is_boundless(jsonb), ai.bound_inputs(uuid[], uuid[], bigint[], integer[]), ai.message_urls(jsonb, boolean), ai.message_artifacts(jsonb), ai.check_files(uuid, text, jsonb),
  ai.request_files(uuid, text, jsonb, boolean) from public;

-- objects
