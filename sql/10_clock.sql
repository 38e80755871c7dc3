-- Time, in one place, so that tests can move it.

-- The start of the caller's statement. A session whose login role is a member of ai_tester, a role that only tests
-- make, may shift it by the setting ai.clock_offset; anybody else's setting is ignored.
create or replace function ai.shifted_now() returns timestamptz
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from pg_roles where rolname = 'ai_tester') and pg_has_role(session_user, 'ai_tester', 'member') then
    return statement_timestamp() + current_setting('ai.clock_offset')::interval;
  end if;
  return statement_timestamp();
end
$$;
comment on function ai.shifted_now() is 'The clock with the offset that a tester may set. Call ai.now().';
revoke execute on function ai.shifted_now() from public;

-- No SET clause, so that it is inlined; a body that is bound where it is made, so that no search_path changes it.
create or replace function ai.now() returns timestamptz
language sql stable parallel safe security invoker
return case when coalesce(current_setting('ai.clock_offset', true), '') = '' then statement_timestamp() else ai.shifted_now() end;
comment on function ai.now() is 'The clock of every state machine: the start of the statement.';
revoke execute on function ai.now() from public;

-- What is decided about an answer is decided in the transaction that settles it with others', who wait: so long for its schema, and so long
-- for its guardrails. Counts bound both; this bounds what they have not foreseen.
create or replace function ai.judging_time() returns interval
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select interval '0.5 s' $$;
comment on function ai.judging_time() is 'How long one answer is held against its schema, or against guardrails, before that is given up.';
revoke execute on function ai.judging_time() from public;

-- Spans compare by months of 30 days and days of 24 hours, and are added by the calendar: '-1 year 366 days' is above 0, and goes back.
create or replace function ai.runs_forward(p_span interval) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select least(extract(year from p_span), extract(month from p_span), extract(day from p_span), extract(hour from p_span), extract(minute from p_span), extract(second from p_span)) >= 0
$$;
comment on function ai.runs_forward(interval) is 'Whether no part of a span points backwards.';
revoke execute on function ai.runs_forward(interval) from public;
