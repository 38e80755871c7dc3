-- What a failure means, and how long to wait.

-- The rule of ai.retry_rules that fits best. A rule for the x00 of a class fits every status of it (RFC 9110, section
-- 15); among fitting rules the one that says more wins: dialect, then code, then status, then the rest.
create or replace function ai.classify_failure(
  p_dialect text, p_signal text, p_http_status integer, p_type text, p_code text, p_retry_after boolean, p_visible boolean,
  out class text, out action text, out billed text)
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select r.class, r.action, r.billed
    from ai.retry_rules r
   where r.signal = p_signal
     and (r.dialect is null or r.dialect = p_dialect)
     and (r.http_status is null or r.http_status = p_http_status or r.http_status = p_http_status / 100 * 100)
     and (r.code is null or p_code like r.code or p_type like r.code)
     and (r.retry_after is null or r.retry_after = p_retry_after)
     and (r.visible is null or r.visible = p_visible)
   order by r.dialect is not null desc, r.code is not null desc, (r.http_status = p_http_status) is true desc,
            r.http_status is not null desc, r.retry_after is not null desc,
            r.visible is not null desc, r.id
   limit 1
$$;
comment on function ai.classify_failure(text, text, integer, text, text, boolean, boolean) is
  'Class of a failure, what follows (retry, next, fail) and what was probably billed (no, input, arrived), from ai.retry_rules.';

-- Exponential backoff with equal jitter: half of min(cap, base * 2^(attempt - 1)), and a random part of the other half.
create or replace function ai.backoff_ms(p_attempt integer, p_base_ms integer, p_cap_ms integer) returns integer
language sql volatile parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select (least(p_cap_ms::numeric, p_base_ms * power(2::numeric, least(p_attempt, 31) - 1)) * (0.5 + 0.5 * random())::numeric)::integer
$$;
comment on function ai.backoff_ms(integer, integer, integer) is 'Milliseconds before attempt p_attempt + 1.';

-- Tokens as a provider may report them: anything that is no number is unknown, none is below zero or above an integer.
create or replace function ai.token_count(p_reported jsonb) returns bigint
language sql immutable parallel safe security invoker
as $$
  select case when jsonb_typeof(p_reported) = 'number' then least(greatest(trunc(p_reported::numeric), 0), 2147483647)::bigint end
$$;
comment on function ai.token_count(jsonb) is 'A reported number of tokens, from 0 to 2147483647; null for what is no number.';

-- Whether an error of the database only says that it is to be tried again, or stopped: deadlock, serialization, a lock that was
-- not granted, a cancelled statement, a shutdown. Who goes on after whatever else went wrong lets these through.
create or replace function ai.says_again(p_sqlstate text) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select p_sqlstate in ('40P01', '40001', '55P03', '57014', '57P01') $$;
comment on function ai.says_again(text) is 'Whether an SQLSTATE says to try again or to stop, and nothing about what was done.';

-- Whose doing an error is that was raised while one generation was worked on, by its SQLSTATE and the constraint that it names: `database`, whose own trouble it
-- is (PostgresError.isOutside in the worker), and may be over the next time; `generation`, which will raise it again; or `unclear`: what is usually the database's,
-- and is of one row now and then (a race that is lost, or a row that is there twice; memory; a schema that is being changed, or rights that are missing, or a function
-- that is wrong for some; what has no code of its own, such as a text that is too long, or a page that is damaged).
create or replace function ai.fault_of(p_sqlstate text, p_constraint text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when p_sqlstate in ('23505', '53200') or left(p_sqlstate, 2) in ('42', 'XX') then 'unclear'
              when left(p_sqlstate, 2) in ('08', '25', '28', '40', '53', '57', '58') or p_sqlstate in ('55P03', '55006')
                   or p_sqlstate = '23514' and coalesce(p_constraint, '') = '' then 'database'  -- no partition for a row
              else 'generation' end
$$;
comment on function ai.fault_of(text, text) is 'Whose doing an error is: database, generation, or unclear.';

revoke execute on function ai.token_count(jsonb), ai.says_again(text), ai.fault_of(text, text) from public;
revoke execute on function ai.classify_failure(text, text, integer, text, text, boolean, boolean), ai.backoff_ms(integer, integer, integer) from public;
