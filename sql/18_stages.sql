-- What acted on a generation is written on it: ai.generations.stages.

-- An entry of stages: {"stage", "result", "why", "ms", …}. p_started is a clock_timestamp(); null: it took no time worth
-- telling. Members without a value are left out.
create or replace function ai.stage(p_stage text, p_result text, p_why text default null, p_started timestamptz default null, p_more jsonb default '{}')
returns jsonb
language sql volatile parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object('stage', p_stage, 'result', p_result, 'why', p_why,
           'ms', round(extract(epoch from clock_timestamp() - p_started) * 1000, 2)) || p_more)
$$;
comment on function ai.stage(text, text, text, timestamptz, jsonb) is 'One entry of ai.generations.stages.';
revoke execute on function ai.stage(text, text, text, timestamptz, jsonb) from public;
