-- Context sources: rows of an app's own tables that join a prompt, such as the caller's recent orders.
--
-- The query runs in the INSERT of the generation, as whoever inserts: the same role, the same row-level security as if the
-- caller had sent it. What it may read is what the caller may read, and it may not write. Two consequences: only the owner of
-- the schema defines sources, because whoever could would have SQL run as somebody else; and the query is not run where the
-- session is not the member it asks for, or where a definer function has put its owner's rights in place of the caller's.

-- Trigger BEFORE INSERT, each row, behind `admit`, which has stamped who asks and which sources the template wants. One
-- function, so that there is none that runs a text and could be called with another.
--
-- A cursor takes one statement only, and in the parentheses it must be one that reads. The transaction is read-only to the
-- end of the inner block: a subtransaction gives its parent's mode back when it ends.
-- Raises PT403 where the caller is somebody else or may not read, PT404 for a source that is not there, PT500 for whatever
-- else is wrong with a query, never with its text. What a retry mends (serialization, deadlock) is raised as it is.
create or replace function ai.gather_context() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_source record;
  v_cursor refcursor;
  v_rows   jsonb;
begin
  if new.context is not null or new.status <> 'queued' or new.purpose is not null then
    return new;
  end if;
  if (new.tenant_id, new.user_id) is distinct from (ai.tenant_id(), ai.user_id()) then
    raise exception 'context sources are read as the caller, who is not the member that is asked for'
      using errcode = 'PT403', hint = 'Ask as that member, or with a template without context sources.';
  end if;
  if current_user is distinct from coalesce(nullif(current_setting('role'), 'none'), session_user::text) then
    raise exception 'context sources are not read inside a security definer function'
      using errcode = 'PT403', hint = 'Insert the generation from the session itself or from a security invoker function.';
  end if;
  new.context := '{}';
  for v_source in
    select n.name, d.query, d.max_rows, d.max_bytes
      from unnest(new.context_sources) with ordinality n (name, ordinality)
      left join lateral (
        select c.query, c.max_rows, c.max_bytes
          from ai.context_sources c
         where c.name = n.name and (c.tenant_id is null or c.tenant_id = new.tenant_id)
         order by c.tenant_id nulls last limit 1) d on true
     order by n.ordinality
  loop
    if v_source.query is null then
      raise exception 'there is no context source %', v_source.name
        using errcode = 'PT404', detail = format('The template %s asks for it.', new.template);
    end if;
    begin
      perform set_config('transaction_read_only', 'on', true);
      v_cursor := null;
      open v_cursor for execute format(
        E'select jsonb_agg(l.line order by l.n) from (select r.line, r.n, sum(octet_length(r.line::text) + 2) over (order by r.n) as bytes'
        '  from (select row_number() over () as n, w.line from (select to_jsonb(q) as line from (%s\n) q limit %s) w) r) l where l.bytes <= %s',
        v_source.query, v_source.max_rows, v_source.max_bytes);
      fetch v_cursor into v_rows;
      close v_cursor;
    exception
      when transaction_rollback then
        raise;
      when insufficient_privilege then
        raise exception 'the context source % reads what this session may not read', v_source.name
          using errcode = 'PT403', hint = 'Its query runs with the rights of whoever inserts the generation.';
      when others then
        raise exception 'the context source % cannot be read', v_source.name
          using errcode = 'PT500', detail = format('SQLSTATE %s.', sqlstate), hint = 'Run its query as this member: ai.context_sources.';
    end;
    new.context := new.context || jsonb_build_object(v_source.name, coalesce(v_rows, '[]'));
  end loop;
  return new;
end
$$;
comment on function ai.gather_context() is 'Trigger: reads the context sources of a generation as the caller.';

-- Trigger BEFORE INSERT OR UPDATE of query, each row: opens the query in the parentheses in which it will be read, and fetches nothing. Raises PT400 for
-- what is not one SELECT that only reads. That it may not be read, or names what is not there, says nothing: it will be read as another
-- role, and perhaps later than its tables are made.
create or replace function ai.check_context_query() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_cursor refcursor;
begin
  begin
    perform set_config('transaction_read_only', 'on', true);
    open v_cursor for execute format(E'select to_jsonb(q) from (%s\n) q', new.query);
    close v_cursor;
  exception
    when syntax_error or feature_not_supported or invalid_cursor_definition or read_only_sql_transaction then
      raise exception 'the query of the context source % is refused: %', new.name, sqlerrm
        using errcode = 'PT400', detail = 'It is read as: select … from (the query).', hint = 'One SELECT that locks nothing, without a semicolon.';
    when others then
      null;
  end;
  return new;
end
$$;
comment on function ai.check_context_query() is 'Trigger: refuses the query of a context source that is not one SELECT.';

revoke execute on function ai.gather_context(), ai.check_context_query() from public;

-- objects

create or replace trigger check_query before insert or update of query on ai.context_sources
  for each row execute function ai.check_context_query();
create or replace trigger gather before insert on ai.generations
  for each row when (new.context_sources is not null)  -- a condition is parsed by every statement, so it is short
  execute function ai.gather_context();

-- Whoever inserts must be able to read what it runs.
drop policy if exists visible on ai.context_sources;
create policy visible on ai.context_sources for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('inference:execute') or ai.may('prompt:read') or ai.may('prompt:write')));
grant select on ai.context_sources to ai_user;
