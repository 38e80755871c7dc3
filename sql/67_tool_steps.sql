-- The loop: what a model asks of tools is queued, run (sql/68_tool_runs.sql), and told to it; then the generation goes on.

-- An answer that calls tools. action `end`: the app's own are among them, so the app goes on; `wait`: they are queued, and the generation waits for
-- them; `again`: none of them has to be run; `fail`: more steps or calls than are allowed. As ai.go_on(), which calls it.
create or replace function ai.call_tools(
  p_tenant uuid, p_id uuid, p_attempt smallint, p_lane bigint, p_target smallint, p_deadline_at timestamptz, p_message jsonb, out action text, out error jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_calls constant integer := 32;
  c_steps constant integer := 20000;  -- of an answer: its calls share them, and the bytes, and the time
  c_bytes constant integer := 1000000;
  v_until constant timestamptz := clock_timestamp() + ai.judging_time();
  v_one   record;
  v_ids   jsonb;  -- of the calls before
  v_calls jsonb;
  v_open  uuid[];
begin
  action := 'end';
  select g.user_id, g.api_key_id, g.tools, g.steps, g.params, coalesce(g.max_steps, s.max_steps) as max_steps,
         coalesce((select p.messages from ai.prepared p where p.generation_id = g.id), g.messages) as messages
    into v_one
    from ai.generations g cross join ai.settings s where g.tenant_id = p_tenant and g.id = p_id;
  if jsonb_typeof(p_message -> 'tool_calls') is distinct from 'array' or p_message -> 'tool_calls' = '[]' then
    return;
  end if;
  -- The names of the app's own tools once, not for each of the calls, which may be very many.
  if exists (select from jsonb_array_elements(p_message -> 'tool_calls') c
              where coalesce(c.value #>> '{function,name}', c.value #>> '{custom,name}') = any (array(select unnest(ai.app_tools(v_one.params, v_one.tools))))) then
    return;
  end if;
  if v_one.steps >= v_one.max_steps or jsonb_array_length(p_message -> 'tool_calls') > c_calls then
    action := 'fail';
    error := jsonb_build_object('class', 'steps', 'code', 'PT508', 'message', case when v_one.steps >= v_one.max_steps then 'the model goes on calling tools'
                                else 'the model called too many tools at once' end, 'hint', 'ai.generations.max_steps, ai.settings.max_steps');
    return;
  end if;
  -- Results are matched by the ids of calls, so no two have the same. Some providers give none, or count anew in each answer: then the calls are numbered
  -- on from those before.
  v_ids := coalesce(jsonb_path_query_array(v_one.messages, '$[*].tool_calls[*].id'), '[]');
  select jsonb_agg(case when o.again then c.value || jsonb_build_object('id', 'call_' || jsonb_array_length(v_ids) + c.n) else c.value end order by c.n)
    into v_calls
    from jsonb_array_elements(p_message -> 'tool_calls') with ordinality c (value, n)
   cross join (select count(distinct nullif(i.value ->> 'id', '')) < count(*) or bool_or(v_ids ? (i.value ->> 'id')) as again
                 from jsonb_array_elements(p_message -> 'tool_calls') i) o;
  -- All that the dialect put into the message goes back with the results: providers want their reasoning again, signed or sealed as they gave it.
  perform ai.add_messages(p_tenant, p_id,
    jsonb_build_array((p_message - '{logprobs,native_finish_reason}'::text[]) || jsonb_build_object('tool_calls', v_calls)));

  with asked as (
    select c.n, c.value ->> 'id' as call_id, left(coalesce(c.value #>> '{function,name}', c.value #>> '{custom,name}'), 64) as name,
           t.id as tool_id, t.parameters, b.long, j.value as arguments
      from jsonb_array_elements(v_calls) with ordinality c (value, n)
     cross join lateral (select octet_length(c.value #>> '{function,arguments}') > c_bytes / jsonb_array_length(v_calls) as long) b
     cross join lateral ai.parse_json(case when b.long is not true then coalesce(nullif(c.value #>> '{function,arguments}', ''), '{}') end) j
      left join lateral (select * from ai.find_tool(p_tenant, c.value #>> '{function,name}') f where c.value #>> '{function,name}' = any (v_one.tools)) t on true
  ), judged as (
    select a.*, case when a.tool_id is null then 'there is no such tool' when a.long then 'the arguments are too long' when a.arguments is null then 'the arguments are not JSON'
                     else (select 'the arguments do not fit: ' || string_agg(concat_ws(': ', nullif(e.instance_path, ''), e.message), '; ')
                             from (select * from ai.json_errors_until(a.parameters, a.arguments, false, '{}', c_steps / jsonb_array_length(v_calls), v_until) s limit 10) e) end as wrong
      from asked a
  ), made as (
    insert into ai.tool_calls (tenant_id, generation_id, user_id, api_key_id, step, position, call_id, tool_id, name, arguments, status, result, created_at, finished_at, settled_at)
    select p_tenant, p_id, v_one.user_id, v_one.api_key_id, v_one.steps + 1, j.n, j.call_id, j.tool_id, coalesce(j.name, ''), j.arguments,
           case when j.wrong is null then 'queued' else 'failed' end, jsonb_build_object('error', j.wrong)::text,
           ai.now(), case when j.wrong is not null then ai.now() end, case when j.wrong is not null then ai.now() end
      from judged j
    returning id, settled_at
  )
  select array_agg(m.id) filter (where m.settled_at is null) into v_open from made m;
  update ai.tool_calls c set result = null where c.tenant_id = p_tenant and c.id = any (v_open);
  if v_open is null then
    perform ai.tell_results(p_tenant, p_id, (v_one.steps + 1)::smallint);
    action := 'again';
    return;
  end if;
  insert into ai.waiting (generation_id, for_id, tenant_id, lane_id, attempts, target, deadline_at)
  select p_id, o, p_tenant, p_lane, p_attempt, p_target, p_deadline_at from unnest(v_open) o;
  perform pg_notify('ai_tools', '') where ai.may_notify();
  action := 'wait';
end
$$;
comment on function ai.call_tools(uuid, uuid, smallint, bigint, smallint, timestamptz, jsonb) is 'Queues the tools that an answer calls.';

-- Adds the results of a step to what the next call says, in the order in which the model asked.
create or replace function ai.tell_results(p_tenant uuid, p_id uuid, p_step smallint) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  select ai.add_messages(p_tenant, p_id, jsonb_agg(jsonb_build_object('role', 'tool', 'tool_call_id', c.call_id, 'content', coalesce(c.result, '')) order by c.position))
    from ai.tool_calls c
   where c.tenant_id = p_tenant and c.generation_id = p_id and c.step = p_step
$$;
comment on function ai.tell_results(uuid, uuid, smallint) is 'Adds the results of tools to what the next call of a generation says.';

-- Tools have ended: their generations go on once all have. Locks, generation by generation in the order of their ids, all that each waits for; of two
-- that end at once the second sees that the first is gone. Does nothing for a generation that has ended meanwhile; one that cannot be told what its tools gave ends
-- as failed.
create or replace function ai.settle_tools(p_tenants uuid[], p_calls uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_one   record;
  v_place record;
  v_named text;  -- the constraint that an error names
begin
  for v_one in
    select c.tenant_id, c.generation_id, c.step, array_agg(c.id) as ids
      from unnest(p_tenants, p_calls) u (tenant_id, id)
      join ai.tool_calls c on c.tenant_id = u.tenant_id and c.id = u.id and c.settled_at is null
     group by 1, 2, 3 order by 2
  loop
    begin
      perform from ai.waiting w where w.generation_id = v_one.generation_id order by w.for_id for update;
      update ai.tool_calls c set settled_at = ai.now(), ticket = null where c.tenant_id = v_one.tenant_id and c.id = any (v_one.ids);
      v_place := null;
      with gone as (
        delete from ai.waiting w where w.generation_id = v_one.generation_id and w.for_id = any (v_one.ids) returning w.*
      )
      select * into v_place from gone g limit 1;
      continue when not found or exists (select from ai.waiting w where w.generation_id = v_one.generation_id);
      perform ai.tell_results(v_one.tenant_id, v_one.generation_id, v_one.step);
      insert into ai.queue (lane_id, generation_id, tenant_id, attempts, target)
      values (v_place.lane_id, v_one.generation_id, v_one.tenant_id, v_place.attempts, v_place.target);
      perform ai.list_lanes(array[v_place.lane_id]);
      perform ai.wake_workers();
    exception when others then
      -- What one cannot be told must not keep the results of all others from theirs.
      get stacked diagnostics v_named = constraint_name;
      if ai.fault_of(sqlstate, v_named) <> 'generation' then
        raise;
      end if;
      raise warning 'generation % cannot go on after its tools: %', v_one.generation_id, sqlstate;
      update ai.tool_calls c set settled_at = ai.now(), ticket = null where c.tenant_id = v_one.tenant_id and c.id = any (v_one.ids);
      perform ai.stop_waiting(v_one.tenant_id, v_one.generation_id);
      perform ai.end_generation(v_one.tenant_id, v_one.generation_id, 'failed',
        jsonb_build_object('class', 'unprepared', 'code', 'PT500', 'message', 'what follows its tools could not be done', 'sqlstate', sqlstate));
    end;
  end loop;
end
$$;
comment on function ai.settle_tools(uuid[], uuid[]) is 'Lets generations go on whose tools have all ended.';

revoke execute on function ai.call_tools(uuid, uuid, smallint, bigint, smallint, timestamptz, jsonb), ai.tell_results(uuid, uuid, smallint),
  ai.settle_tools(uuid[], uuid[]) from public;
