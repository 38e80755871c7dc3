-- JWT claims, as a gateway sets them: read with suspicion, because a broken claim must never become an anonymous success.

-- Whether a text is JSON that jsonb takes, for PostgreSQL 15, which has no pg_input_is_valid(): there only a cast in a
-- subtransaction would tell, and no parallel plan takes that. Strings become the character 1, what else is a value the character 2, neither of
-- which JSON may have; then objects and lists that hold nothing but these become 2, from the innermost on, until one is left.
create or replace function ai.looks_like_json(p_text text) returns boolean
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_text text := regexp_replace(p_text, '\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}', 'x', 'g');
  v_last text;
begin
  if p_text ~ '[\x01\x02]' then
    return false;
  end if;
  v_text := regexp_replace(v_text, '"([^"\\\x01-\x1f]|\\["\\/bfnrt]|\\u(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4})*"', chr(1), 'g');
  v_text := regexp_replace(v_text, 'true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?', chr(2), 'g');
  while v_text is distinct from v_last loop
    v_last := v_text;
    v_text := regexp_replace(v_text,
      '\{[ \t\n\r]*(\x01[ \t\n\r]*:[ \t\n\r]*[\x01\x02][ \t\n\r]*(,[ \t\n\r]*\x01[ \t\n\r]*:[ \t\n\r]*[\x01\x02][ \t\n\r]*)*)?\}'
      '|\[[ \t\n\r]*([\x01\x02][ \t\n\r]*(,[ \t\n\r]*[\x01\x02][ \t\n\r]*)*)?\]', chr(2), 'g');
  end loop;
  return v_text ~ '^[ \t\n\r]*[\x01\x02][ \t\n\r]*$';
end
$$;
comment on function ai.looks_like_json(text) is 'Whether jsonb takes a text, without trying it.';

-- Text from outside as a JSON object; null where it is none. Bounded before it is parsed, in length and in brackets: the
-- parser recurses.
create or replace function ai.parse_object(p_text text) returns jsonb
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_object jsonb;
begin
  if length(p_text) > 65536 or length(p_text) - length(translate(p_text, '[{', '')) > 1000 then
    return null;
  elsif current_setting('server_version_num')::integer >= 160000 then
    if not pg_input_is_valid(p_text, 'jsonb') then
      return null;
    end if;
  elsif not ai.looks_like_json(p_text) then
    return null;
  end if;
  v_object := p_text::jsonb;
  return case when jsonb_typeof(v_object) = 'object' then v_object end;
end
$$;
comment on function ai.parse_object(text) is 'A JSON object of at most 65,536 characters and 1,000 brackets; null: the text is none.';

-- Raises PT401 where a claim of time is no number, or does not hold now. 30 seconds are allowed for clocks that differ, as
-- PostgREST does.
create or replace function ai.check_times(p_claims jsonb) returns void
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now numeric := extract(epoch from ai.now());
begin
  if coalesce(jsonb_typeof(p_claims -> 'exp'), 'null') not in ('number', 'null') or coalesce(jsonb_typeof(p_claims -> 'nbf'), 'null') not in ('number', 'null') then
    raise exception 'a time in this token is not a number' using errcode = 'PT401', hint = 'exp and nbf are seconds since 1970.';
  elsif (p_claims ->> 'exp')::numeric <= v_now - 30 then
    raise exception 'this token has expired' using errcode = 'PT401', hint = 'Get a new one, or look at the clocks of the gateway and of this server.';
  elsif (p_claims ->> 'nbf')::numeric > v_now + 30 then
    raise exception 'this token does not count yet' using errcode = 'PT401', hint = 'Look at the clocks of its issuer and of this server.';
  end if;
end
$$;
comment on function ai.check_times(jsonb) is 'Raises PT401 for claims that have expired or do not count yet.';

-- The tenant that claims name; null: none. app_metadata is written by the operator; user_metadata, which its user may
-- write, is never looked at. Raises PT401 for what is no id, and for two that differ.
create or replace function ai.claimed_tenant(p_claims jsonb) returns uuid
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_plain text := p_claims ->> 'tenant_id';
  v_named text;
begin
  if coalesce(jsonb_typeof(p_claims -> 'app_metadata'), 'null') not in ('object', 'null') then
    raise exception 'app_metadata of this token is not an object' using errcode = 'PT401';
  end if;
  v_named := p_claims #>> '{app_metadata,tenant_id}';
  if lower(v_named) <> lower(v_plain) then
    raise exception 'this token names two tenants' using errcode = 'PT401', detail = 'tenant_id and app_metadata.tenant_id differ.';
  end if;
  v_named := coalesce(v_named, v_plain);
  if v_named !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    raise exception 'the tenant of this token is not an id' using errcode = 'PT401', hint = 'tenant_id is the id of a row of ai.tenants, not its name.';
  end if;
  return v_named::uuid;
end
$$;
comment on function ai.claimed_tenant(jsonb) is 'Id of the tenant that a token names, null for none; PT401 for what is no id.';

-- Whose token it is: the tenant and the user, who need not be a member; all null for a token of nobody in particular, such as
-- PostgREST's anonymous role. A token that names no tenant is for the one membership that an operator made: a
-- tenant that adds the same name must not change what it means. Raises PT401, never with a value of the claims in it.
create or replace function ai.claimed_member(p_claims text, out tenant_id uuid, out user_id text)
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set jit = off
set enable_seqscan = off
as $$
declare
  v_claims jsonb := ai.parse_object(p_claims);
  v_count  bigint;
begin
  if v_claims is null then
    raise exception 'the JWT claims of this session are not a JSON object'
      using errcode = 'PT401', detail = 'Or they are longer than 65536 characters, or have more than 1000 brackets.',
            hint = 'The gateway sets request.jwt.claims to the verified payload of the token.';
  end if;
  -- The last of two keys of one name wins here, the first may have elsewhere: what a token says must not depend on who reads it.
  if p_claims like '%\\u%' or p_claims like '%"sub"%"sub"%' or p_claims like '%"tenant_id"%"tenant_id"%' or p_claims like '%"app_metadata"%"app_metadata"%'
     or p_claims like '%"exp"%"exp"%' or p_claims like '%"nbf"%"nbf"%' then
    if (select count(*) <> count(distinct k) from json_object_keys(p_claims::json) k)
       or (select count(*) <> count(distinct k)
             from json_object_keys(case when jsonb_typeof(v_claims -> 'app_metadata') = 'object' then p_claims::json -> 'app_metadata' else '{}' end) k) then
      raise exception 'this token says something twice' using errcode = 'PT401', detail = 'Two claims have the same name.';
    end if;
  end if;
  perform ai.check_times(v_claims);

  user_id := v_claims ->> 'sub';
  if user_id is null then
    return;
  end if;
  if jsonb_typeof(v_claims -> 'sub') <> 'string' then
    raise exception 'the subject of this token is not a string' using errcode = 'PT401';
  elsif length(user_id) > 200 then
    raise exception 'the subject of this token is too long' using errcode = 'PT401', detail = 'A user_id has at most 200 characters.';
  end if;
  tenant_id := ai.claimed_tenant(v_claims);
  if tenant_id is null then
    select count(*), (array_agg(m.tenant_id))[1] into v_count, tenant_id
      from ai.members m join ai.tenants t on t.id = m.tenant_id and t.enabled
     where m.user_id = claimed_member.user_id and m.enabled and not m.added_by_tenant;
    if v_count > 1 then
      raise exception 'the token does not say for which tenant its subject speaks'
        using errcode = 'PT401', detail = 'The subject is a member of several tenants.', hint = 'Put tenant_id into app_metadata or into the claims.';
    end if;
  end if;
end
$$;
comment on function ai.claimed_member(text) is 'Tenant and user of JWT claims; PT401 for wrong ones.';

revoke execute on function ai.looks_like_json(text), ai.parse_object(text), ai.check_times(jsonb), ai.claimed_tenant(jsonb), ai.claimed_member(text) from public;

-- objects
