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

-- Checks the files of a request that is inserted; gives the ids of artifacts, {} where there are only addresses, null where there is
-- nothing for a worker to fetch. A user's own files and those that are shared in the tenant may be used. Raises PT400, PT404, PT413.
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
  return case when cardinality(v_urls) > 0 then '{}'::uuid[] end;
end
$$;
comment on function ai.check_files(uuid, text, jsonb) is 'Checks the files in messages; gives the ids of artifacts among them, null where a worker has nothing to fetch.';

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
-- at 32 tokens a second); of anything else all its bytes.
create or replace function ai.files_weight(p_tenant uuid, p_ids uuid[]) returns integer
language sql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
  select coalesce(sum(case split_part(a.media_type, '/', 1) when 'image' then 16384 when 'audio' then a.bytes / 16 + 1024 else a.bytes end), 0)::integer
    from unnest(p_ids) u (id)
    join ai.artifacts a on a.tenant_id = p_tenant and a.id = u.id
$$;
comment on function ai.files_weight(uuid, uuid[]) is 'A bound of the tokens that files add to a request.';

revoke execute on function ai.files_weight(uuid, uuid[]), ai.message_urls(jsonb, boolean), ai.message_artifacts(jsonb), ai.check_files(uuid, text, jsonb),
  ai.request_files(uuid, text, jsonb, boolean) from public;

-- objects
