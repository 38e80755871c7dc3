-- Sessions by API key. The setting ai.session holds a secret (the token of ai.login(), or a key) and, behind a colon, the stamp of
-- the transaction that it is for. What was set for another transaction is inert, so that a value that stays behind on
-- a pooled connection makes nobody the one who left it. Without a stamp only a token counts that was made for this very connection.
--
-- Anybody may set ai.session; a stamp alone is worth nothing. A secret that is wrong raises PT401.

-- This transaction, as a stamp. Two transactions of one connection begin at different times, unless they came in one message.
-- No SET clause, so that it is inlined; a body that is bound where it is made, as of ai.now().
create or replace function ai.transaction_stamp() returns text
language sql stable parallel safe security invoker
return extract(epoch from transaction_timestamp())::text;
comment on function ai.transaction_stamp() is 'Names this transaction within its connection.';

-- This connection: its process, of this run of the server. A number may come again while a token lives: only who has the token
-- could profit, and has the session anyway.
create or replace function ai.this_backend() returns text
language sql stable parallel restricted security invoker
set search_path = pg_catalog, pg_temp
as $$ select pg_backend_pid() || ' ' || extract(epoch from pg_postmaster_start_time()) $$;
comment on function ai.this_backend() is 'Names this connection.';

-- One text for whatever is wrong: unknown, expired, revoked, switched off, made for another connection.
create or replace function ai.refuse_session() returns void
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'this API key or session token is not valid'
    using errcode = 'PT401', detail = 'It is unknown, has expired, was revoked, or was set without ai.use_session().',
          hint = 'select ai.use_session(…) at the begin of each transaction; a new token is given by ai.login(…).';
end
$$;
comment on function ai.refuse_session() is 'Raises PT401 for a session that does not hold.';

-- The key behind a secret; all null where there is none that holds. The same few index probes whatever is wrong with it.
create or replace function ai.secret_key(
  p_secret text, p_backend text, out api_key_id uuid, out tenant_id uuid, out user_id text, out permissions text[], out expires_at timestamptz)
language plpgsql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set jit = off
set enable_seqscan = off
as $$
declare
  v_hash bytea := sha256(convert_to(left(p_secret, 200), 'UTF8'));
  v_now  timestamptz := ai.now();
begin
  if p_secret like 'mrs\_%' then
    select k.id, k.tenant_id, k.user_id, k.permissions, s.expires_at into api_key_id, tenant_id, user_id, permissions, expires_at
      from ai.sessions s
      join ai.api_keys k on k.id = s.api_key_id
     where s.token_hash = v_hash and s.expires_at > v_now and (p_backend is null or s.backend = p_backend)
       and k.revoked_at is null and (k.expires_at is null or k.expires_at > v_now);
  elsif p_secret like 'mrc\_%' then
    -- The ticket of a tool's run: the member, as limited as the key that asked was, until the call has ended (sql/68_tool_runs.sql).
    select c.api_key_id, c.tenant_id, c.user_id, k.permissions into api_key_id, tenant_id, user_id, permissions
      from ai.tool_calls c
      left join ai.api_keys k on k.id = c.api_key_id
     where c.ticket = v_hash and c.status = 'running' and p_backend is null
       and (c.api_key_id is null or k.id is not null and k.revoked_at is null and (k.expires_at is null or k.expires_at > v_now));
  else
    select k.id, k.tenant_id, k.user_id, k.permissions, k.expires_at into api_key_id, tenant_id, user_id, permissions, expires_at
      from ai.api_keys k
     where k.hash = v_hash and p_backend is null and k.revoked_at is null and (k.expires_at is null or k.expires_at > v_now);
  end if;
end
$$;
comment on function ai.secret_key(text, text) is 'The live API key that a token or key stands for; p_backend null: whatever connection it was made for.';

-- The same for a value of ai.session: all null where it is inert. Raises PT401.
create or replace function ai.session_key(
  p_value text, out api_key_id uuid, out tenant_id uuid, out user_id text, out permissions text[], out expires_at timestamptz)
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_at integer := strpos(p_value, ':');
begin
  if v_at > 0 and substr(p_value, v_at + 1) <> ai.transaction_stamp() then
    return;
  end if;
  select s.api_key_id, s.tenant_id, s.user_id, s.permissions, s.expires_at into api_key_id, tenant_id, user_id, permissions, expires_at
    from ai.secret_key(case when v_at > 0 then left(p_value, v_at - 1) else p_value end, case when v_at = 0 then ai.this_backend() end) s;
  if user_id is null then
    perform ai.refuse_session();
  end if;
end
$$;
comment on function ai.session_key(text) is 'The API key of a value of the setting ai.session; all null for an inert one, PT401 for a wrong one.';

-- Notes that a key was used: at most once a minute, not in a read-only transaction, and never by waiting.
create or replace function ai.note_key_use(p_key uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  if current_setting('transaction_read_only') = 'off' then
    update ai.api_key_uses u set last_used_at = ai.now()
     where u.ctid = any (array(
       select o.ctid from ai.api_key_uses o
        where o.api_key_id = p_key and (o.last_used_at is null or o.last_used_at <= ai.now() - interval '1 minute')
          for update skip locked));
  end if;
end
$$;
comment on function ai.note_key_use(uuid) is 'Notes that an API key was used, at most once a minute.';

-- The live key of an enabled member behind a secret, or PT401 with one text whatever is wrong.
create or replace function ai.authenticate(p_secret text, p_backend text default null)
returns table (api_key_id uuid, expires_at timestamptz)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    select s.api_key_id, s.expires_at
      from ai.secret_key(p_secret, p_backend) s
      join ai.members m on m.tenant_id = s.tenant_id and m.user_id = s.user_id and m.enabled
      join ai.tenants t on t.id = m.tenant_id and t.enabled;
  if not found then
    perform ai.refuse_session();
  end if;
end
$$;
comment on function ai.authenticate(text, text) is 'The live API key behind a token or key; PT401 where there is none.';

-- Begins a session with an API key: gives its token, which counts for this transaction at once and for others by
-- ai.use_session(). It lives for p_life, one minute to one day, but no longer than the key. With p_for_connection it counts on
-- this connection until ai.logout(): for psql, never through a pooler, where others come to the same connection.
-- Raises PT400, PT401. Any login role in ai_user may call it, also one that is nobody.
create or replace function ai.login(p_api_key text, p_for_connection boolean default false, p_life interval default '1 hour') returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_key   record;
  v_token text;
begin
  if p_life is null or p_life < interval '1 minute' or p_life > interval '1 day' or not ai.runs_forward(p_life) or p_for_connection is null then
    raise exception 'p_life is from 1 minute to 1 day' using errcode = 'PT400';
  elsif current_setting('transaction_read_only') = 'on' then
    raise exception 'a session cannot begin in a read-only transaction' using errcode = 'PT400', hint = 'select ai.use_session(…) takes the API key itself.';
  elsif p_api_key is null or p_api_key ~ '^mr[sc]_' then
    perform ai.refuse_session();  -- a token does not prolong itself
  end if;
  select * into v_key from ai.authenticate(p_api_key);
  perform ai.note_key_use(v_key.api_key_id);
  v_token := 'mrs_' || ai.random_secret();
  insert into ai.sessions (token_hash, api_key_id, backend, created_at, expires_at)
  values (sha256(convert_to(v_token, 'UTF8')), v_key.api_key_id, case when p_for_connection then ai.this_backend() end, ai.now(),
          least(ai.now() + p_life, v_key.expires_at));
  if p_for_connection then
    perform set_config('ai.session', v_token, false);
  else
    perform set_config('ai.session', v_token || ':' || ai.transaction_stamp(), true);
  end if;
  return v_token;
end
$$;
comment on function ai.login(text, boolean, interval) is 'Begins a session with an API key and gives its token. PT400, PT401.';

-- Makes the rest of this transaction that of a session's member: by the token of ai.login(), or by an API key, which needs no
-- session. Raises PT401.
create or replace function ai.use_session(p_token text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_key record;
begin
  if p_token is null then
    perform ai.refuse_session();
  end if;
  select * into v_key from ai.authenticate(p_token);
  if p_token not like 'mrs\_%' then
    perform ai.note_key_use(v_key.api_key_id);
  end if;
  perform set_config('ai.session', p_token || ':' || ai.transaction_stamp(), true);
end
$$;
comment on function ai.use_session(text) is 'Makes this transaction that of a session token''s or an API key''s member. PT401.';

-- Ends a session: that of this transaction or connection, or that of a token. The setting is cleared, so that from now on
-- the session is again what it was without. Gives whether a session ended. Raises nothing for a token that is none.
create or replace function ai.logout(p_token text default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_set text := split_part(coalesce(current_setting('ai.session', true), ''), ':', 1);
begin
  if p_token is null or p_token = v_set then
    p_token := v_set;
    perform set_config('ai.session', '', false);
  end if;
  delete from ai.sessions s where s.token_hash = sha256(convert_to(left(p_token, 200), 'UTF8'));
  return found;
end
$$;
comment on function ai.logout(text) is 'Ends the present session, or that of a token; gives whether there was one.';

-- For PostgREST, as db-pre-request: an API key or a session token in the header X-API-Key makes the request its member's. Without
-- that header it does nothing, and JWT claims count. Raises PT401.
create or replace function ai.pre_request() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_text    text := current_setting('request.headers', true);
  v_headers jsonb;
begin
  if coalesce(v_text, '') = '' then
    return;
  end if;
  v_headers := ai.parse_object(v_text);
  if v_headers is null then
    raise exception 'request.headers is not a JSON object' using errcode = 'PT401', hint = 'PostgREST sets it.';
  elsif v_headers ? 'x-api-key' then
    perform ai.use_session(v_headers ->> 'x-api-key');
  end if;
end
$$;
comment on function ai.pre_request() is 'For PostgREST''s db-pre-request: takes an API key from the header X-API-Key. PT401.';

-- Deletes sessions that are over, at most 10,000 at once, and gives how many. Skips what somebody holds.
create or replace function ai.forget_sessions(p_now timestamptz default now()) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_count integer;
begin
  delete from ai.sessions s
   where s.token_hash = any (array(select o.token_hash from ai.sessions o where o.expires_at <= p_now limit 10000 for update skip locked));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.forget_sessions(timestamptz) is 'Deletes expired sessions; gives how many.';

-- Who did something, for the audit log: as ai.identity(), but where that raises PT401, because the very statement ended what
-- the session stands on (its key, its member, its tenant), who it was. Nothing may be allowed by this.
create or replace function ai.actor(out tenant_id uuid, out user_id text, out source text, out api_key_id uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_secret text := split_part(coalesce(current_setting('ai.session', true), ''), ':', 1);
begin
  select i.tenant_id, i.user_id, i.source, i.api_key_id into tenant_id, user_id, source, api_key_id from ai.identity() i;
exception when sqlstate 'PT401' then
  if v_secret <> '' then
    select k.tenant_id, k.user_id, 'session', k.id into tenant_id, user_id, source, api_key_id
      from ai.api_keys k
     where k.hash = sha256(convert_to(v_secret, 'UTF8'))
        or k.id = (select s.api_key_id from ai.sessions s where s.token_hash = sha256(convert_to(v_secret, 'UTF8')));
  else
    select m.tenant_id, m.user_id, 'jwt' into tenant_id, user_id, source
      from ai.claimed_member(current_setting('request.jwt.claims', true)) m;
  end if;
end
$$;
comment on function ai.actor() is 'Who acts, also where what that stands on has just been ended; for the audit log alone.';

-- Raises PT401 for a wrong token or claim, as everything does that asks who the session is.
create or replace function ai.whoami()
returns table (tenant_id uuid, tenant text, user_id text, role text, source text, session_role name, why text,
               permissions text[], api_key text, session_expires_at timestamptz)
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
#variable_conflict use_column
declare
  v_set   text := coalesce(current_setting('ai.session', true), '');
  v_inert text := '';
begin
  if v_set <> '' and (select s.user_id is null from ai.session_key(v_set) s) then
    v_inert := '; a session that was set for another transaction of this connection does not count';
  end if;
  return query
    select i.tenant_id, t.name, i.user_id, i.role, i.source, session_user,
           case i.source
             when 'session' then case when v_set like 'mrc\_%' then 'the run of a tool' else format('the API key %s%s', k.prefix,
               case when strpos(v_set, ':') = 0 then ', by ai.login() for this connection' when v_set like 'mrs\_%' then ', by its session''s token for this transaction'
                    else ', set for this transaction' end) end
             when 'binding' then format('login role %s is bound in ai.role_bindings', session_user)
             when 'jwt' then format('login role %s is a trusted authenticator and set JWT claims', session_user)
             else format('nobody: login role %s has no binding of an enabled member in ai.role_bindings, %s', session_user,
               case when exists (select from ai.authenticators a where a.role_name = session_user)
                    then 'and its JWT claims name no subject' else 'and is no authenticator, so that JWT claims do not count' end)
           end || v_inert,
           i.permissions, k.prefix, case when i.source = 'session' then s.expires_at end
      from ai.identity() i
      left join ai.tenants t on t.id = i.tenant_id
      left join ai.api_keys k on k.id = i.api_key_id
      left join ai.session_key(case when i.source = 'session' then v_set else ':' end) s on true;
end
$$;
comment on function ai.whoami() is 'What this session is, and why.';

revoke execute on function ai.transaction_stamp(), ai.this_backend(), ai.refuse_session(), ai.secret_key(text, text), ai.session_key(text), ai.note_key_use(uuid),
  ai.authenticate(text, text), ai.login(text, boolean, interval), ai.use_session(text), ai.logout(text), ai.pre_request(), ai.forget_sessions(timestamptz),
  ai.actor(), ai.whoami() from public;
grant execute on function ai.login(text, boolean, interval), ai.use_session(text), ai.logout(text), ai.pre_request() to ai_user;
grant execute on function ai.whoami() to ai_user, ai_monitor, ai_worker;

-- objects
