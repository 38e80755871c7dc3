-- One run of a tool. A worker claims the call on its own connection and gets a ticket; then, on another connection, whose login role has no rights
-- but those of an app, it begins a transaction, becomes the member by ai.use_session(ticket), and calls ai.run_tool(). The result is written in the
-- transaction of what the tool did: both are there, or neither. docs/tools.md has the reasons.

-- Claims calls for a worker that can run tools: tenants take turns. Calls of dead workers are taken over; those that nobody waits for any more are
-- cancelled. Ends what a dead worker had run but not reported. Locks the calls, skipping what others hold. Raises PT404 for a worker that is none, PT400.
create or replace function ai.worker_tools(p_worker uuid, p_limit integer)
returns table (call_id uuid, ticket text, timeout_ms integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  c_attempts constant integer := 3;
  v_one   record;
begin
  if p_limit is null or p_limit not between 1 and 1000 then
    raise exception 'a claim takes 1 to 1000 calls of tools' using errcode = 'PT400';
  elsif not exists (select from ai.workers w where w.id = p_worker and w.ended_at is null) then
    raise exception 'this worker is not registered, or was declared dead' using errcode = 'PT404', hint = 'ai.worker_register()';
  elsif not exists (select from ai.tool_calls c where c.settled_at is null) then
    return;
  end if;
  for v_one in
    with open as materialized (
      select o.*
        from (select distinct c.tenant_id from ai.tool_calls c where c.settled_at is null) t
       cross join lateral (
         select c.tenant_id, c.id, row_number() over (order by c.id) as turn
           from ai.tool_calls c
          where c.tenant_id = t.tenant_id and c.settled_at is null
            and (c.status = 'queued' or not exists (select from ai.workers w where w.id = c.worker_id and w.ended_at is null))
          order by c.id limit p_limit) o
       order by o.turn, o.id limit p_limit
    )
    select c.*, coalesce(t.timeout_ms, 5000) as allowed_ms, exists (select from ai.waiting w where w.generation_id = c.generation_id and w.for_id = c.id) as is_wanted
      from open o
      join ai.tool_calls c on c.tenant_id = o.tenant_id and c.id = o.id
      left join ai.tools t on t.id = c.tool_id
     order by o.turn, o.id
       for update of c skip locked
  loop
    if not v_one.is_wanted then
      update ai.tool_calls c set status = case when c.status in ('succeeded', 'failed') then c.status else 'cancelled' end, ticket = null,
             finished_at = coalesce(c.finished_at, ai.now()), settled_at = ai.now()
       where c.tenant_id = v_one.tenant_id and c.id = v_one.id;
    elsif v_one.status in ('succeeded', 'failed') then
      perform ai.settle_tools(array[v_one.tenant_id], array[v_one.id]);
    elsif v_one.attempts >= c_attempts then
      perform ai.fail_tool(v_one.tenant_id, v_one.id, 'the tool failed');
      perform ai.settle_tools(array[v_one.tenant_id], array[v_one.id]);
    else
      call_id := v_one.id;
      timeout_ms := v_one.allowed_ms;
      ticket := 'mrc_' || ai.random_secret();
      update ai.tool_calls c
         set status = 'running', attempts = c.attempts + 1, worker_id = p_worker, ticket = sha256(convert_to(worker_tools.ticket, 'UTF8')), started_at = ai.now()
       where c.tenant_id = v_one.tenant_id and c.id = v_one.id;
      return next;
    end if;
  end loop;
end
$$;
comment on function ai.worker_tools(uuid, integer) is 'Claims calls of tools for a worker, with a ticket for each.';

create or replace function ai.fail_tool(p_tenant uuid, p_call uuid, p_why text) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update ai.tool_calls c set status = 'failed', result = jsonb_build_object('error', p_why)::text, ticket = null, finished_at = ai.now()
   where c.tenant_id = p_tenant and c.id = p_call and c.status in ('queued', 'running')
$$;
comment on function ai.fail_tool(uuid, uuid, text) is 'Ends a call of a tool with what the model is told in place of a result.';

-- What became of runs: [{"id", "sqlstate", "message"}]; without an SQLSTATE it committed, and if it did not, the connection was lost. What only says
-- `again` is run again, three times at most. The model is told what the function raised on purpose (P0001, PTxxx); of anything else only that it failed.
-- Reports of a worker that no longer has the call change nothing. Locks the calls, then as ai.settle_tools().
create or replace function ai.worker_tools_done(p_worker uuid, p_results jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_one     record;
  v_tenants uuid[] := '{}';
  v_calls   uuid[] := '{}';
begin
  if p_worker is null or jsonb_typeof(p_results) is distinct from 'array' then
    raise exception 'ai.worker_tools_done() takes a worker and a JSON array of results' using errcode = 'PT400';
  end if;
  for v_one in
    select c.tenant_id, c.id, c.status, c.attempts, r.sqlstate, r.message
      from jsonb_to_recordset(p_results) r (id uuid, sqlstate text, message text)
      join ai.tool_calls c on c.id = r.id and c.settled_at is null
     where c.worker_id = p_worker
     order by c.id
       for update of c
  loop
    if v_one.status = 'running' and (v_one.sqlstate is null or ai.says_again(v_one.sqlstate) and v_one.sqlstate <> '57014') and v_one.attempts < 3 then
      update ai.tool_calls c set status = 'queued', ticket = null, worker_id = null where c.tenant_id = v_one.tenant_id and c.id = v_one.id;
      perform pg_notify('ai_tools', '') where ai.may_notify();
      continue;
    elsif v_one.status = 'running' then
      perform ai.fail_tool(v_one.tenant_id, v_one.id,
        case when v_one.sqlstate = '57014' then 'the tool took too long'
             when v_one.sqlstate = 'P0001' or v_one.sqlstate like 'PT___' then left(coalesce(v_one.message, 'the tool failed'), 1000)
             when v_one.sqlstate = '42501' then 'the tool may not do this'
             else 'the tool failed' end);
    elsif v_one.status not in ('succeeded', 'failed') then
      continue;
    end if;
    v_tenants := v_tenants || v_one.tenant_id;
    v_calls := v_calls || v_one.id;
  end loop;
  perform ai.settle_tools(v_tenants, v_calls);
end
$$;
comment on function ai.worker_tools_done(uuid, jsonb) is 'Takes what became of runs of tools, and lets their generations go on.';

-- The call that this transaction has the ticket of. Locks it until the transaction ends, so that nobody runs it a second time meanwhile. Raises PT401
-- without a ticket, PT403 in a session that has other rights than a tool may have, PT404 where the tool is gone, PT409 where it has ended.
create or replace function ai.begin_tool(out id uuid, out function text, out arguments jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_secret text := split_part(coalesce(current_setting('ai.session', true), ''), ':', 1);
  v_call   record;
begin
  if v_secret not like 'mrc\_%' or ai.tenant_id() is null then
    raise exception 'this session has no ticket for a tool' using errcode = 'PT401', hint = 'Only workers run tools.';
  elsif exists (select from pg_roles r where r.rolname = session_user and (r.rolsuper or r.rolbypassrls)) or pg_has_role(session_user, 'ai_worker', 'member')
     or pg_has_role(session_user, (select n.nspowner from pg_namespace n where n.nspname = 'ai'), 'member')
     or exists (select from ai.role_bindings b where b.role_name = session_user) or exists (select from ai.authenticators a where a.role_name = session_user) then
    raise exception 'the role % may not run tools', session_user
      using errcode = 'PT403', detail = 'It is a superuser, passes by row-level security, owns the schema, is a worker''s, is bound to a member, or is an authenticator.',
            hint = 'MARTLET_TOOLS_DATABASE_URL names a login role that is in ai_user and has what the functions need.';
  end if;
  select c.* into v_call from ai.tool_calls c where c.ticket = sha256(convert_to(v_secret, 'UTF8')) for update;
  if v_call.status is distinct from 'running' then
    raise exception 'this call of a tool has ended' using errcode = 'PT409';
  end if;
  id := v_call.id;
  arguments := v_call.arguments;
  function := (select ai.tool_function(t.function)::oid::regproc::text from ai.tools t where t.id = v_call.tool_id and t.enabled);
  if function is null then
    raise exception 'the tool is gone' using errcode = 'PT404';
  end if;
end
$$;
comment on function ai.begin_tool() is 'The call that this transaction has the ticket of. PT401, PT403, PT404, PT409.';

-- Writes the result of the call that this transaction has the ticket of. A tool that calls it itself gives its own result. Raises PT401, PT413.
create or replace function ai.finish_tool(p_result jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_secret text := split_part(coalesce(current_setting('ai.session', true), ''), ':', 1);
  v_text   text := case when jsonb_typeof(p_result) = 'string' then p_result #>> '{}' else coalesce(p_result::text, 'null') end;
begin
  if octet_length(v_text) > 100000 then
    raise exception 'the result of the tool has more than 100000 bytes' using errcode = 'PT413', hint = 'The model has to read it.';
  elsif v_secret not like 'mrc\_%' or ai.tenant_id() is null then
    raise exception 'this session has no ticket for a tool' using errcode = 'PT401', hint = 'Only workers run tools.';
  end if;
  update ai.tool_calls c set status = 'succeeded', result = v_text, finished_at = ai.now()
   where c.ticket = sha256(convert_to(v_secret, 'UTF8')) and c.status = 'running';
  if not found then
    raise exception 'this call of a tool has ended' using errcode = 'PT409';
  end if;
end
$$;
comment on function ai.finish_tool(jsonb) is 'Writes the result of the call that this transaction has the ticket of. PT401, PT409, PT413.';

-- Runs the function with the rights of this session, which is the member's. Inside it the search_path is pg_catalog, pg_temp, unless it sets its own.
create or replace function ai.run_tool() returns void
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_call   record;
  v_result jsonb;
begin
  select * into v_call from ai.begin_tool();
  execute format('select to_jsonb(%s($1))', v_call.function) into v_result using v_call.arguments;
  perform ai.finish_tool(v_result);
end
$$;
comment on function ai.run_tool() is 'Runs the tool that this transaction has a ticket for, with the rights of the session. For workers'' second connection.';

revoke execute on function ai.worker_tools(uuid, integer), ai.fail_tool(uuid, uuid, text), ai.worker_tools_done(uuid, jsonb), ai.begin_tool(), ai.finish_tool(jsonb),
  ai.run_tool() from public;
grant execute on function ai.worker_tools(uuid, integer), ai.worker_tools_done(uuid, jsonb) to ai_worker;
grant execute on function ai.begin_tool(), ai.finish_tool(jsonb), ai.run_tool() to ai_user;
