-- Asking by a function call, and at a psql prompt. Everything here is the caller's own INSERT, under its own rights.

-- Inserts a generation and gives its id; what a guardrail refused and what a cache answered has ended already. With an idempotency key that was used before with the same input, the id of
-- that generation. Raises what the INSERT raises. The parameters' names are the columns'.
create or replace function ai.generate(
  prompt text default null, messages jsonb default null, model text default null, profile text default null, params jsonb default '{}',
  stream boolean default false, priority text default 'normal', run_after timestamptz default null, deadline_ms integer default null,
  idempotency_key text default null, metadata jsonb default null, kind text default 'chat',
  collection text default null, template text default null, cache text default null, cache_tags text[] default null, batch_id uuid default null,
  replay boolean default false)
returns uuid
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_id uuid;
begin
  insert into ai.generations as g (prompt, messages, model, profile, params, stream, priority, run_after, deadline_ms, idempotency_key, metadata, kind,
                                   collection, template, cache, cache_tags, batch_id, replay)
  values (prompt, messages, model, profile, params, stream, priority, run_after, deadline_ms, idempotency_key, metadata, kind,
          collection, template, cache, cache_tags, batch_id, replay)
  returning g.id into v_id;
  return coalesce(v_id, ai.idempotent_generation(idempotency_key));
end
$$;
comment on function ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text, text, text, text, text[], uuid, boolean) is
  'Asks for a generation and gives its id; the same id for the same idempotency key.';

-- Asks for the embedding of a text; the vector comes back in ai.generations.embedding.
create or replace function ai.embed(
  input text, model text default null, profile text default null, params jsonb default '{}', idempotency_key text default null, metadata jsonb default null)
returns uuid
language sql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
  select ai.generate(prompt => input, model => model, profile => profile, params => params, idempotency_key => idempotency_key,
                     metadata => metadata, kind => 'embedding')
$$;
comment on function ai.embed(text, text, text, jsonb, text, jsonb) is 'Asks for the embedding of a text and gives the generation''s id.';

-- For people in psql: call ai.ask('…', null). Inserts, commits, waits for the end (polling from 2 to 50 ms, with a
-- commit each round, so that it holds no snapshot), and gives the answer. It must run in autocommit, outside of a
-- transaction block; it has no SET clause, because a procedure with one cannot commit.
-- Raises PT400 inside a transaction block, 2D000 (PostgreSQL's own) inside a function, what the INSERT raises, PT502 for a failed generation, the code of its error (PT402, PT422, PT429, …; else PT403) for a rejected
-- one, PT409 for a cancelled one, PT504 when timeout_ms is over (the generation goes on).
create or replace procedure ai.ask(
  question text, inout answer text default null, model text default null, profile text default null, timeout_ms integer default 120000,
  collection text default null, template text default null)
language plpgsql security invoker
as $$
declare
  v_id    uuid;
  v_end   record;
  v_until timestamptz := pg_catalog.clock_timestamp() + timeout_ms * interval '1 ms';
  v_pause double precision := 0.002;
  v_stack text;
begin
  get diagnostics v_stack = pg_context;
  if pg_catalog.now() <> pg_catalog.statement_timestamp() and v_stack !~ E'\n' then
    raise exception 'ai.ask() cannot run inside a transaction block'
      using errcode = 'PT400', detail = 'It commits the question, so that a worker can see it, and then waits for the answer.',
            hint = 'Call it in autocommit, or use ai.generate() and read ai.generations later.';
  end if;
  if timeout_ms is null or timeout_ms not between 1 and 86400000 then
    raise exception 'timeout_ms must be from 1 to 86400000' using errcode = 'PT400';
  end if;
  v_id := ai.generate(prompt => question, model => model, profile => profile, collection => collection, template => template);
  commit;
  loop
    select g.status, g.output, g.error, g.finished_at into v_end from ai.generations g where g.id = v_id;
    exit when v_end.finished_at is not null;
    if pg_catalog.clock_timestamp() >= v_until then
      raise exception 'no answer within % ms', timeout_ms
        using errcode = 'PT504', detail = pg_catalog.format('Generation %s is still %s, and goes on.', v_id, v_end.status),
              hint = 'Is a worker running? martlet doctor';
    end if;
    commit;
    perform pg_catalog.pg_sleep(v_pause);
    v_pause := least(v_pause * 1.5, 0.05);
  end loop;
  if v_end.status <> 'succeeded' then
    raise exception 'the generation ended as %: %', v_end.status, coalesce(v_end.error ->> 'message', v_end.error ->> 'class')
      using errcode = case when v_end.status = 'rejected' and v_end.error ->> 'code' ~ '^PT[45][0-9]{2}$' then v_end.error ->> 'code'
                           when v_end.status = 'rejected' then 'PT403' when v_end.status = 'cancelled' then 'PT409' else 'PT502' end,
            detail = coalesce(v_end.error::text, ''), hint = pg_catalog.format('select * from ai.llm_calls where generation_id = %L;', v_id);
  end if;
  answer := v_end.output;
end
$$;
comment on procedure ai.ask(text, text, text, text, integer, text, text) is 'Asks, waits and gives the answer to a prompt: call ai.ask(''…'', null).';

revoke execute on function
  ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text, text, text, text, text[], uuid, boolean),
  ai.embed(text, text, text, jsonb, text, jsonb) from public;
revoke execute on procedure ai.ask(text, text, text, text, integer, text, text) from public;
grant execute on function
  ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text, text, text, text, text[], uuid, boolean),
  ai.embed(text, text, text, jsonb, text, jsonb) to ai_user;
grant execute on procedure ai.ask(text, text, text, text, integer, text, text) to ai_user;
