-- Tools: functions of the database that a model may call on behalf of the member who asks. docs/tools.md says why they are run as they are.

-- The function behind a name; null: there is none that could be a tool. A tool is a plain function of one jsonb that returns one value, outside
-- the schemas of Martlet and of PostgreSQL.
create or replace function ai.tool_function(p_name text) returns regprocedure
language sql stable security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select p.oid::regprocedure
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
   where p.oid = case when p_name ~ '^([a-z_][a-z0-9_$]*|"[^"]{1,63}")[.]([a-z_][a-z0-9_$]*|"[^"]{1,63}")$' then to_regprocedure(p_name || '(jsonb)') end and p.prokind = 'f' and not p.proretset and p.prorettype <> all ('{trigger,event_trigger,internal,void}'::regtype[])
     and n.nspname not in ('ai', 'pg_catalog', 'information_schema') and n.nspname not like 'pg\_temp%'
$$;
comment on function ai.tool_function(text) is 'The function behind the name of a tool; null: none that could be one.';

-- Trigger BEFORE INSERT OR UPDATE, each row of ai.tools. Raises PT400 for parameters that are no schema of an object, PT404 for a function that is not there.
create or replace function ai.check_tool() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform ai.check_json_schema(new.parameters);
  if new.parameters ->> 'type' is distinct from 'object' then
    raise exception 'the parameters of a tool are an object' using errcode = 'PT400', hint = '{"type": "object", "properties": {…}, "required": […]}';
  end if;
  if ai.tool_function(new.function) is null then
    raise exception 'there is no function %(jsonb) that could be a tool', new.function
      using errcode = 'PT404', hint = 'Its name has its schema; it takes one jsonb and returns one value. It must be there before the tool.';
  end if;
  return new;
end
$$;
comment on function ai.check_tool() is 'Trigger: a tool has a schema and a function.';

-- The tool of a name in a tenant: its own, or the shared one.
create or replace function ai.find_tool(p_tenant uuid, p_name text, out id bigint, out description text, out parameters jsonb)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.id, t.description, t.parameters
    from ai.tools t where t.name = p_name and (t.tenant_id = p_tenant or t.tenant_id is null) and t.enabled order by t.tenant_id nulls last limit 1
$$;
comment on function ai.find_tool(uuid, text) is 'The tool of a name in a tenant; all null: none.';

-- The names of the tools in params.tools that are the app's own, p_tools being the database's. A name lies in the tool itself (Responses, Anthropic) or
-- one level below: {function: {name}}, {custom: {name}}, {functionDeclarations: [{name}]}.
create or replace function ai.app_tools(p_params jsonb, p_tools text[]) returns text[]
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select array(select n #>> '{}' from jsonb_path_query(p_params, '$.tools[*].**{0 to 1}.name') n where n #>> '{}' <> all (p_tools))
$$;
comment on function ai.app_tools(jsonb, text[]) is 'Names of the tools in params.tools that are the app''s own.';

-- The params of the calls after the first. A model that has to call a tool each time never comes to an answer, so a tool_choice that forces it to holds for
-- the first call only, in Gemini's own words, too; but `required` stays where the app has tools of its own, since a call of those ends the generation. Never
-- raises, because one statement makes the calls of all tenants.
create or replace function ai.later_params(p_params jsonb, p_tools text[]) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when c.name = any (p_tools) then l.params - 'tool_choice'
              when g.own <> '{}' then l.params
              when c.mode = 'required' then jsonb_set(l.params, c.mode_at, '"auto"')
              when c.word in ('required', 'any') then l.params - 'tool_choice'
              else l.params end
    from (select p_params -> 'tool_choice' as choice, ai.app_tools(p_params, p_tools) as own,
                 array[case jsonb_typeof(p_params -> 'tool_config') when 'object' then 'tool_config' else 'toolConfig' end, 'functionCallingConfig'] as config_at) g
   cross join lateral (
     select case when upper(p_params #> g.config_at ->> 'mode') = 'ANY'
                      and (g.own = '{}' or nullif(p_params #> g.config_at -> 'allowedFunctionNames', '[]') <@ to_jsonb(p_tools))
                 then p_params #- g.config_at else p_params end as params) l
   cross join lateral (
     select coalesce(g.choice ->> 'type', g.choice #>> '{}') as word, coalesce(g.choice #>> '{function,name}', g.choice ->> 'name') as name,
            coalesce(g.choice #>> '{allowed_tools,mode}', g.choice ->> 'mode') as mode,
            case when g.choice ? 'allowed_tools' then '{tool_choice,allowed_tools,mode}' else '{tool_choice,mode}' end::text[] as mode_at) c
$$;
comment on function ai.later_params(jsonb, text[]) is 'The params of a generation with tools after its first call: nothing is forced again.';

-- What becomes of the params of a generation that may call tools: their definitions join params.tools, so that the row says what the model was told.
-- Raises PT400, PT403 inside a tool, PT404.
create or replace function ai.admit_tools(p_tenant uuid, p_kind text, p_tools text[], p_max_steps integer, p_params jsonb) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_tools jsonb;
begin
  if p_kind <> 'chat' then
    raise exception 'only a chat takes tools' using errcode = 'PT400';
  elsif cardinality(p_tools) not between 1 and 64 or cardinality(p_tools) <> (select count(distinct t) from unnest(p_tools) t) then
    raise exception 'tools takes 1 to 64 names, each once' using errcode = 'PT400';
  elsif p_max_steps not between 1 and 100 then
    raise exception 'max_steps must be from 1 to 100' using errcode = 'PT400';
  elsif current_setting('ai.session', true) like 'mrc\_%' then
    raise exception 'what a tool asks for cannot call tools' using errcode = 'PT403', detail = 'Loops within loops would have no bound.';
  elsif ai.app_tools(p_params, '{}') && p_tools then
    raise exception 'a tool in params.tools has the name of one in tools' using errcode = 'PT400';
  end if;
  select jsonb_agg(jsonb_build_object('type', 'function', 'function', jsonb_build_object('name', n.name, 'description', t.description, 'parameters', t.parameters)) order by n.n)
    into v_tools
    from unnest(p_tools) with ordinality n (name, n)
   cross join lateral ai.find_tool(p_tenant, n.name) t
   where t.id is not null;
  if coalesce(jsonb_array_length(v_tools), 0) < cardinality(p_tools) then
    raise exception 'there is no tool %', (select n from unnest(p_tools) n where (ai.find_tool(p_tenant, n)).id is null limit 1)
      using errcode = 'PT404', hint = 'select name, description from ai.tools where enabled;';
  end if;
  return p_params || jsonb_build_object('tools', coalesce(nullif(p_params -> 'tools', 'null'), '[]') || v_tools);
end
$$;
comment on function ai.admit_tools(uuid, text, text[], integer, jsonb) is 'The params of a generation with the definitions of its tools. PT400, PT403, PT404.';

revoke execute on function ai.tool_function(text), ai.check_tool(), ai.find_tool(uuid, text), ai.app_tools(jsonb, text[]), ai.later_params(jsonb, text[]),
  ai.admit_tools(uuid, text, text[], integer, jsonb) from public;

-- objects

create or replace trigger check_tool before insert or update on ai.tools
  for each row execute function ai.check_tool();

drop policy if exists visible on ai.tools;
create policy visible on ai.tools for select to ai_user
  using ((tenant_id is null and (select ai.tenant_id()) is not null) or tenant_id = (select ai.tenant_id()));
grant select on ai.tools to ai_user;

-- As generations: a member sees its own, who has inference:read all of the tenant.
drop policy if exists visible on ai.tool_calls;
create policy visible on ai.tool_calls for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and user_id = coalesce((select ai.only_user()), user_id));
grant select (tenant_id, id, generation_id, user_id, step, position, call_id, tool_id, name, arguments, status, result, attempts, created_at, started_at, finished_at)
  on ai.tool_calls to ai_user;
